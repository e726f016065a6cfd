"""The metrics of a meter provider, through the OpenTelemetry API alone.

One histogram value is recorded per call. All other metrics are plain counters, which observable instruments read when
metrics are collected: a recording costs about 20 us of a call, an increment 0.1 us. The number of labels is limited
here. This file does not know spans, the SDK or aiohttp.

Source: OpenTelemetry semantic conventions 1.44, "HTTP client metrics".

Used by ``_replay._row_span`` and ``_telemetry._spans``.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias, TypeVar

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from otel_connector._record import RowCounts
from otel_connector._telemetry import _names
from otel_connector._version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import Histogram, Meter, MeterProvider
    from opentelemetry.util.types import Attributes, AttributeValue

    from otel_connector._guard import TelemetryGuard
    from otel_connector._record import CallRecord

SCOPE: Final = "otel_connector"
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"

Host = tuple[str, "int | None"]
"""Address and port, as metric labels. The address is empty if a call has none."""

# Semantic conventions, http.client.request.duration: the advised boundaries, in seconds
_DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

# The SDK keeps every label set until the process ends (2.2 kB each) and has no limit: a crawler would fill the memory.
# Further hosts and projects become `_other`. With these limits, statuses and errors included, an instrument stays near
# the specification's default limit of 2,000 label sets
HOST_LIMIT = 200
PROJECT_LIMIT = 50
OTHER: Final = "_other"

RowCounter: TypeAlias = Callable[[], RowCounts]
_Label = TypeVar("_Label", bound=Hashable)
_Observe: TypeAlias = Callable[[CallbackOptions], Iterable[Observation]]


class CountedLog(Protocol):
    """A log that counts its rows."""

    @property
    def row_counter(self) -> RowCounter:
        """Counts the rows. It keeps no reference to the log."""
        ...


class PausedHosts(Protocol):
    """Knows which hosts are paused."""

    def paused(self) -> Collection[str]:
        """Return the ``host:port`` of each paused host. Called in any thread."""
        ...


@dataclass(slots=True, eq=False)
class CallCounts:
    """The counters of one connector. One event loop at a time writes them; the instruments read them in any thread.

    Attributes:
        active: Calls in flight, by host and port.
        received: Bytes of body read, by project.
        retries: Attempts after the first, by the reason of the retry.
        queued: Seconds that calls waited for a permit.
    """

    active: dict[Host, int] = field(default_factory=dict[Host, int])
    received: Counter[str] = field(default_factory=Counter[str])
    retries: Counter[str] = field(default_factory=Counter[str])
    queued: float = 0.0


class Instruments:
    """The instruments of one meter provider.

    All connectors of a provider share them: if two observable instruments have the same name, the SDK calls only the
    callback of the first.
    """

    def __init__(self, provider: MeterProvider | None, guard: TelemetryGuard) -> None:
        # Reentrant: the garbage collector may call `retire` and `_retire_log` in the thread that holds the lock
        self._lock = threading.RLock()
        self._live: set[CallCounts] = set()
        self._retired = CallCounts()
        self._logs: weakref.WeakKeyDictionary[CountedLog, RowCounter] = weakref.WeakKeyDictionary()
        self._retired_rows = RowCounts(0, 0, 0)
        # Weak: the object refers to the application's limiter, which may refer to the connector
        self._paused_hosts: weakref.WeakSet[PausedHosts] = weakref.WeakSet()
        self._hosts: set[Host] = set()
        self._projects: set[str] = set()
        self._duration: Histogram = metrics.NoOpHistogram(_names.DURATION.name)
        with guard.guarded("getting a meter"):
            self._create(metrics.get_meter(SCOPE, __version__, provider, SCHEMA_URL), guard)

    def _create(self, meter: Meter, guard: TelemetryGuard) -> None:
        creating = guard.guarded("creating an instrument")  # one at a time: the meter may fail for one kind only
        metric = _names.DURATION
        with creating:
            self._duration = meter.create_histogram(
                metric.name, metric.unit, metric.description, explicit_bucket_boundaries_advisory=_DURATION_BUCKETS
            )
        for metric, observe in (
            (_names.RECEIVED, self._sum_of(lambda counts: counts.received, lambda project: {_names.PROJECT: project})),
            (_names.RETRIES, self._sum_of(lambda counts: counts.retries, lambda reason: {_names.REASON: reason})),
            (_names.ACTIVE, self._sum_of(lambda counts: counts.active, _request_labels)),
            (_names.QUEUE_TIME, self._observe_queued),
            (_names.PAUSED, self._observe_paused),
            (_names.ROWS_WRITTEN, self._rows("written")),
            (_names.ROWS_LOST, self._rows("lost")),
            (_names.ROWS_WAITING, self._rows("waiting")),
        ):
            with creating:
                is_counter = metric.kind == "counter"
                create = meter.create_observable_counter if is_counter else meter.create_observable_up_down_counter
                create(metric.name, [observe], metric.unit, metric.description)

    def record(self, record: CallRecord, host: Host, project: str, error_type: str | None, context: Context) -> None:
        """Record a call that has ended.

        Args:
            record: The call.
            host: What `host` returned for it.
            project: What `project` returned for it.
            error_type: The value of ``error.type``, if the call is an error.
            context: The context with the call's span, so that an exemplar refers to it.
        """
        if getattr(self._duration, "_real_instrument", self) is None:
            return  # no SDK: the labels would cost 1 % of the instructions of a bare call
        # One by one: merging dictionaries would cost 0.9 % of the instructions of a bare aiohttp request
        labels = _request_labels(host)
        labels[_names.PROJECT] = project
        labels[_names.SUCCESS] = record.success
        if record.response_code is not None:
            labels[_names.STATUS_CODE] = record.response_code
        if error_type is not None:
            labels[_names.ERROR_TYPE] = error_type
        self._duration.record(record.delta_t, labels, context=context)

    def add(self, counts: CallCounts, log: CountedLog | None, paused_hosts: PausedHosts | None) -> None:
        """From now on, report the metrics of this connector.

        Args:
            counts: Its counters, until they are passed to `retire`.
            log: Its log. The rows are reported once, even if several connectors write to it.
            paused_hosts: Its paused hosts, as long as the object exists.
        """
        with self._lock:
            self._live.add(counts)
            if paused_hosts is not None:
                self._paused_hosts.add(paused_hosts)
            if log is not None and log not in self._logs:
                self._logs[log] = log.row_counter
                weakref.finalize(log, self._retire_log, log.row_counter).atexit = False

    def _retire_log(self, row_counter: RowCounter) -> None:
        """Keep the counts of a log that is gone. Rows that were waiting then are lost."""
        written, waiting, lost = row_counter()
        with self._lock:
            retired = self._retired_rows
            self._retired_rows = RowCounts(retired.written + written, 0, retired.lost + waiting + lost)

    def retire(self, counts: CallCounts) -> None:
        """Keep the totals of a connector that no longer exists: a counter must not decrease."""
        with self._lock:
            self._live.discard(counts)
            self._retired.received.update(counts.received)
            self._retired.retries.update(counts.retries)
            self._retired.queued += counts.queued

    def unlock(self) -> None:
        """Replace the lock, in the child of a fork: no other thread is left that could release it."""
        self._lock = threading.RLock()

    def host(self, host: str, port: int | None) -> Host:
        """Return the labels of a host and port, limited in number."""
        return self._limited(self._hosts, (host, port), HOST_LIMIT, (OTHER, None))

    def project(self, project: str) -> str:
        """Return the label of a project, limited in number."""
        return project if project in self._projects else self._limited(self._projects, project, PROJECT_LIMIT, OTHER)

    def _limited(self, known: set[_Label], label: _Label, limit: int, other: _Label) -> _Label:
        if label in known:
            return label
        with self._lock:
            if len(known) >= limit and label not in known:
                return other
            known.add(label)
            return label

    def _all_counts(self) -> list[CallCounts]:
        with self._lock:
            return [*self._live, self._retired]

    def _sum_of(
        self, counter: Callable[[CallCounts], dict[_Label, int]], labels: Callable[[_Label], Attributes]
    ) -> _Observe:
        """Return a callback that adds up one counter of all connectors. The counter's keys give the labels."""

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            total: Counter[_Label] = Counter()
            for counts in self._all_counts():
                total.update(counter(counts).copy())  # a copy: the event loop may add a key at any time
            return [Observation(number, labels(key)) for key, number in total.items()]

        return observe

    def _rows(self, kind: Literal["written", "waiting", "lost"]) -> _Observe:
        """Return a callback that counts the rows of all logs."""

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            with self._lock:
                counts = [self._retired_rows, *(row_counter() for row_counter in self._logs.values())]
            return [Observation(sum(getattr(each, kind) for each in counts))]

        return observe

    def _observe_queued(self, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(sum(counts.queued for counts in self._all_counts()))]

    def _observe_paused(self, _: CallbackOptions) -> Iterable[Observation]:
        with self._lock:
            sources = list(self._paused_hosts)
        return [Observation(len({host for source in sources for host in source.paused()}))]


def _request_labels(host: Host) -> dict[str, AttributeValue]:
    address, port = host
    labels: dict[str, AttributeValue] = {_names.METHOD: "GET"}
    if address:
        labels[_names.SERVER_ADDRESS] = address
        if port is not None:
            labels[_names.SERVER_PORT] = port
    return labels


class _GlobalProvider:
    """The key of the global meter provider, even if the application sets that later."""


_instruments: weakref.WeakKeyDictionary[Any, Instruments] = weakref.WeakKeyDictionary()
_instruments_lock = threading.Lock()


def _after_fork() -> None:
    global _instruments_lock  # noqa: PLW0603 - the lock may be held by a thread that the child does not have
    _instruments_lock = threading.Lock()
    for instruments in list(_instruments.values()):
        instruments.unlock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def instruments_of(provider: MeterProvider | None, guard: TelemetryGuard) -> Instruments:
    """Return the instruments of a meter provider.

    Args:
        provider: The application's provider. None is the global one, even if it is set later.
        guard: Receives its exceptions. Metrics whose instrument cannot be created are then not reported.
    """
    with guard.guarded("looking up the meter provider"):  # the lookup may raise, or the provider may not be hashable
        key = _GlobalProvider if provider is None or provider is metrics.get_meter_provider() else provider
        with _instruments_lock:
            if key not in _instruments:
                _instruments[key] = Instruments(provider, guard)
            return _instruments[key]
    return Instruments(provider, guard)
