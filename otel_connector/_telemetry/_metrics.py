"""The metric set of a meter provider, through the OpenTelemetry API alone.

One histogram is recorded a call; everything else is plain counters that observable instruments read when metrics are
collected, because a recording costs some 20 us of a call and a counter 0.1. Labels are bounded here. Knows nothing of
spans, the SDK or aiohttp.

Source: OpenTelemetry semantic conventions 1.44, "HTTP client metrics".
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypedDict, TypeVar

from opentelemetry import metrics
from opentelemetry.metrics import Observation

from otel_connector._telemetry._names import (
    ACTIVE,
    DURATION,
    ERROR_TYPE,
    METHOD,
    PAUSED,
    PROJECT,
    QUEUE_TIME,
    REASON,
    RECEIVED,
    RETRIES,
    ROWS_LOST,
    ROWS_WAITING,
    ROWS_WRITTEN,
    SERVER_ADDRESS,
    SERVER_PORT,
    STATUS_CODE,
    SUCCESS,
    Metric,
)
from otel_connector._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider
    from opentelemetry.util.types import AttributeValue

    from otel_connector._record import CallRecord

SCOPE: Final = "otel_connector"
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"

Host = tuple[str, "int | None"]
"""Address and port, as metric labels; an empty address where a call has none."""

_Label = TypeVar("_Label", bound=Hashable)


class _Named(TypedDict):
    """What an instrument is made with."""

    name: str
    unit: str
    description: str


# Semantic conventions, http.client.request.duration: the advised boundaries, in seconds
_DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

# The SDK keeps every label set for ever (2.2 kB each) and knows no limit; a crawler would fill the memory. A label
# beyond these counts becomes `_other`. Their sum with statuses and errors stays near the specification's default
# limit of 2,000 sets an instrument.
HOST_LIMIT = 200
PROJECT_LIMIT = 50
OTHER: Final = "_other"
_LABEL_SETS = 2_000  # kept ready; a status is any number that a server thinks of, so there may be more


RowCounter: TypeAlias = "Callable[[], tuple[int, int, int]]"
"""Returns the rows written, waiting and lost."""


Swallow: TypeAlias = "Callable[[BaseException, str], None]"
"""Takes what the application's provider raised and what was being done; raises it again if it is not the provider's."""


class Log(Protocol):
    """What writes rows and counts them."""

    @property
    def row_counter(self) -> RowCounter:
        """Counts the rows; does not hold the log itself."""
        ...


class Pace(Protocol):
    """What knows which hosts asked for a pause."""

    def paused(self) -> Collection[str]:
        """Return the ``host:port`` of each; asked in any thread."""
        ...


@dataclass(slots=True, eq=False)
class Active:
    """How many calls to one host are under way."""

    calls: int = 0


@dataclass(slots=True, eq=False)
class CallCounts:
    """Plain counters of one connector, read by the observable instruments; written by one event loop at a time.

    Attributes:
        active: Calls under way, by host and port.
        received: Bytes of body read, by project.
        retries: Attempts after the first, by the reason for them.
        queued: Seconds that calls waited for their turn.
    """

    active: dict[Host, Active] = field(default_factory=dict[Host, Active])
    received: Counter[str] = field(default_factory=Counter[str])
    retries: Counter[str] = field(default_factory=Counter[str])
    queued: float = 0.0


class Instruments:
    """The instruments of one meter provider.

    Made once a provider: of two observable instruments with one name the SDK calls the first one's callback only, so
    all connectors report through the same.
    """

    def __init__(self, provider: MeterProvider | None, swallow: Swallow) -> None:
        # Reentrant: `retire` and `_retire_log` run when the garbage collector says so, also in a thread that has it
        self._lock = threading.RLock()
        self._live: set[CallCounts] = set()
        self._retired = CallCounts()
        self._logs: weakref.WeakKeyDictionary[Log, RowCounter] = weakref.WeakKeyDictionary()
        self._retired_rows = [0, 0]
        # Held weakly: it has the application's limiter, which may have the connector
        self._paces: weakref.WeakSet[Pace] = weakref.WeakSet()
        self._hosts: set[Host] = set()
        self._projects: set[str] = set()
        self._duration: Histogram | None = None
        self._proxy: Any = None
        self._labels: dict[tuple[Host, str, int | None, bool, str | None], dict[str, AttributeValue]] = {}
        try:
            meter = metrics.get_meter(SCOPE, __version__, provider, SCHEMA_URL)
        except BaseException as error:  # noqa: BLE001 - an application's provider
            swallow(error, "getting a meter")
            return
        for create in (self._create_duration, self._create_sums, self._create_levels):
            _attempt(create, meter, swallow)

    def _create_duration(self, meter: Meter) -> None:
        self._duration = meter.create_histogram(
            explicit_bucket_boundaries_advisory=_DURATION_BUCKETS, **_named(DURATION)
        )
        # The API's own, which passes on to nobody as long as there is no SDK: to ask it before the labels are looked up
        # saves 1 % of a bare call's instructions
        self._proxy = self._duration if hasattr(self._duration, "_real_instrument") else None

    def _create_sums(self, meter: Meter) -> None:
        create = meter.create_observable_counter
        create(callbacks=[self._observe_received], **_named(RECEIVED))
        create(callbacks=[self._observe_retries], **_named(RETRIES))
        create(callbacks=[self._observe_queued], **_named(QUEUE_TIME))
        create(callbacks=[self._row_observer(0)], **_named(ROWS_WRITTEN))
        create(callbacks=[self._row_observer(2)], **_named(ROWS_LOST))

    def _create_levels(self, meter: Meter) -> None:
        create = meter.create_observable_up_down_counter
        create(callbacks=[self._observe_active], **_named(ACTIVE))
        create(callbacks=[self._observe_paused], **_named(PAUSED))
        create(callbacks=[self._row_observer(1)], **_named(ROWS_WAITING))

    def record(self, record: CallRecord, host: Host, project: str, error_type: str | None, context: Context) -> None:
        """Record an ended call.

        Args:
            record: The call.
            host: What `host` returned for it.
            project: What `project` returned for it.
            error_type: The value of ``error.type``, if the call is an error.
            context: Holds the call's span, so that an exemplar points at it.
        """
        if self._duration is None or (self._proxy is not None and self._proxy._real_instrument is None):  # noqa: SLF001 - a test holds it
            return
        ended = (host, project, record.response_code, record.success, error_type)
        labels = self._labels.get(ended)
        if labels is None:
            if len(self._labels) >= _LABEL_SETS:
                self._labels.clear()
            labels = self._labels[ended] = _labels_of(*ended)
        self._duration.record(record.delta_t, labels.copy(), context=context)  # an application's meter may keep it

    def add(self, counts: CallCounts) -> None:
        """Report these counts from now on."""
        with self._lock:
            self._live.add(counts)

    def watch_pace(self, pace: Pace) -> None:
        """Report the hosts that it holds back from now on, for as long as it is there."""
        with self._lock:
            self._paces.add(pace)

    def watch(self, log: Log) -> None:
        """Report the log's rows from now on, once, however many connectors write to it."""
        with self._lock:
            if log not in self._logs:
                self._logs[log] = log.row_counter
                weakref.finalize(log, self._retire_log, log.row_counter).atexit = False

    def _retire_log(self, rows: RowCounter) -> None:
        written, waiting, lost = rows()
        with self._lock:
            self._retired_rows[0] += written
            self._retired_rows[1] += waiting + lost

    def retire(self, counts: CallCounts) -> None:
        """Keep the sums of a connector that is gone: a counter must not go back."""
        with self._lock:
            self._live.discard(counts)
            self._retired.received.update(counts.received)
            self._retired.retries.update(counts.retries)
            self._retired.queued += counts.queued

    def host(self, host: str, port: int | None) -> Host:
        """Return the labels for a host and port, bounded in number."""
        label = (host, port)
        return label if label in self._hosts else self._bounded(self._hosts, label, HOST_LIMIT, (OTHER, None))

    def project(self, project: str) -> str:
        """Return the label for a project, bounded in number."""
        return project if project in self._projects else self._bounded(self._projects, project, PROJECT_LIMIT, OTHER)

    def _bounded(self, known: set[_Label], label: _Label, limit: int, other: _Label) -> _Label:
        with self._lock:
            if len(known) >= limit and label not in known:
                return other
            known.add(label)
            return label

    def _all(self) -> list[CallCounts]:
        with self._lock:
            return [*self._live, self._retired]

    def _observe_active(self, _: CallbackOptions) -> Iterable[Observation]:
        active: Counter[Host] = Counter()
        for counts in self._all():
            active.update({host: level.calls for host, level in counts.active.copy().items()})
        return [Observation(number, {METHOD: "GET", **_host_labels(host)}) for host, number in active.items()]

    def _observe_received(self, _: CallbackOptions) -> Iterable[Observation]:
        received: Counter[str] = Counter()
        for counts in self._all():
            received.update(counts.received.copy())
        return [Observation(size, {PROJECT: name}) for name, size in received.items()]

    def _observe_retries(self, _: CallbackOptions) -> Iterable[Observation]:
        retries: Counter[str] = Counter()
        for counts in self._all():
            retries.update(counts.retries.copy())
        return [Observation(number, {REASON: reason}) for reason, number in retries.items()]

    def _observe_queued(self, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(sum(counts.queued for counts in self._all()))]

    def _observe_paused(self, _: CallbackOptions) -> Iterable[Observation]:
        with self._lock:
            paces = list(self._paces)
        return [Observation(len({host for pace in paces for host in pace.paused()}))]  # a host of two is one

    def _row_observer(self, index: int) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            with self._lock:
                retired = {0: self._retired_rows[0], 1: 0, 2: self._retired_rows[1]}[index]
                return [Observation(retired + sum(rows()[index] for rows in self._logs.values()))]

        return observe


def _labels_of(
    host: Host, project: str, status: int | None, success: bool, error_type: str | None
) -> dict[str, AttributeValue]:
    labels: dict[str, AttributeValue] = {
        METHOD: "GET",
        PROJECT: project,
        SUCCESS: success,
        **_host_labels(host),
    }
    if status is not None:
        labels[STATUS_CODE] = status
    if error_type is not None:
        labels[ERROR_TYPE] = error_type
    return labels


def _attempt(create: Callable[[Meter], None], meter: Meter, swallow: Swallow) -> None:
    try:
        create(meter)
    except BaseException as error:  # noqa: BLE001 - an application's meter, which may break for one kind only
        swallow(error, "making an instrument")


def _host_labels(host: Host) -> dict[str, AttributeValue]:
    address, port = host
    if not address:
        return {}
    return {SERVER_ADDRESS: address} if port is None else {SERVER_ADDRESS: address, SERVER_PORT: port}


def _named(metric: Metric) -> _Named:
    return {"name": metric.name, "unit": metric.unit, "description": metric.description}


_instruments: weakref.WeakKeyDictionary[Any, Instruments] = weakref.WeakKeyDictionary()
_instruments_lock = threading.Lock()


class _Global:
    """Stands for whatever meter provider is, or will be, the global one."""


_GLOBAL = _Global()


def _raise(error: BaseException, _: str) -> None:
    raise error


def instruments_of(provider: MeterProvider | None, swallow: Swallow = _raise) -> Instruments:
    """Return the instruments of a meter provider, None being the global one, also if it is set up later.

    Args:
        provider: The application's.
        swallow: Takes what it raises; what could not be made is then not reported.
    """
    try:
        key = _GLOBAL if provider is None or provider is metrics.get_meter_provider() else provider
        with _instruments_lock:
            found = _instruments.get(key)
            if found is None:
                found = _instruments[key] = Instruments(provider, swallow)
            return found
    except BaseException as error:  # noqa: BLE001 - an application's provider, which may break, or be no key
        swallow(error, "looking up the meter provider")
        return Instruments(provider, swallow)
