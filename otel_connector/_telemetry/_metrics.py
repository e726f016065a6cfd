"""The metrics of a meter provider, through the OpenTelemetry API alone.

One histogram value is recorded per call. All other metrics are plain counters, which observable instruments read when
metrics are collected: a recording costs about 20 us of a call, an increment 0.1 us. The number of labels is limited
here. This file does not know spans, the SDK or aiohttp.

Source: OpenTelemetry semantic conventions 1.44, "HTTP client metrics".

Used by ``_call._attempts``, ``_replay._row_span``, ``_telemetry._call_span``, ``_telemetry._foreign_spans`` and
``_telemetry._spans``.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias, TypeVar

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.metrics import _internal as _api

from otel_connector._after_fork import start_over_in_child
from otel_connector._record import RowCounts
from otel_connector._telemetry import _names
from otel_connector._version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import Histogram, Meter, MeterProvider
    from opentelemetry.util.types import Attributes, AttributeValue

    from otel_connector._guard import TelemetryGuard

SCOPE: Final = "otel_connector"
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"

Host = tuple[str, "int | None"]
"""Address and port, as metric labels. The address is empty if a call has none."""

Wait = tuple[Host, str, str]
"""Host, project and reason of a wait, as metric labels."""

# In seconds. Semantic conventions, http.client.request.duration: the boundaries that they advise for one request; and
# four more, because a call includes its retries and waits
_DURATION_BUCKETS = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(30.0, 60.0, 120.0, 300.0),
)

# The SDK keeps every label set until the process ends (2.2 kB each) and has no limit: a crawler would fill the memory.
# Further hosts, projects and templates become `_other`. With these limits, statuses and errors included, an instrument
# stays near the specification's default limit of 2,000 label sets
HOST_LIMIT = 200
PROJECT_LIMIT = 50
TEMPLATE_LIMIT = 100
OTHER: Final = "_other"

RowCounter: TypeAlias = Callable[[], RowCounts]
_Label = TypeVar("_Label", bound=Hashable)
_Observe: TypeAlias = Callable[[CallbackOptions], Iterable[Observation]]

_UNKNOWN: Any = object()


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
        retries: Attempts after the first.
        delays: Seconds of waiting after failed attempts.
        queued: Seconds that calls waited for a permit.
        instruments: What reports them. None: nothing is reported, also of the calls that the parent of this process has
            started.
    """

    active: Counter[Host] = field(default_factory=Counter[Host])
    received: Counter[str] = field(default_factory=Counter[str])
    retries: Counter[Wait] = field(default_factory=Counter[Wait])
    delays: defaultdict[Wait, float] = field(default_factory=lambda: defaultdict[Wait, float](float))
    queued: defaultdict[Wait, float] = field(default_factory=lambda: defaultdict[Wait, float](float))
    instruments: Instruments | None = None


class Instruments:
    """The instruments of one meter provider, in one process.

    All connectors of a provider share them: if two observable instruments have the same name, the SDK calls only the
    callback of the first. In the child of a fork they start from zero, and report no connector until it is used there.

    Args:
        meter: The meter of the provider. None: nothing is recorded.
        duration: Its histogram of the requests; None if it could not be created.
        guard: Receives its exceptions.
    """

    def __init__(self, meter: Meter | None, duration: Histogram | None, guard: TelemetryGuard) -> None:
        self._hosts: set[Host] = set()
        self._projects: set[str] = set()
        self._templates: set[str] = set()
        self._live: set[CallCounts] = set()
        self.start_over()
        self._duration = duration
        self._call_duration: Histogram | None = None
        if meter is not None:
            start_over_in_child(self)
            self._create(meter, guard)

    def start_over(self) -> None:
        """Report nothing of the parent, in the child of a fork. Also called by the constructor."""
        # Reentrant: the garbage collector may call `retire` and `_retire_log` in the thread that holds the lock
        self._lock = threading.RLock()
        for counts in self._live:
            counts.instruments = None
        self._live, self._retiring, self._retired = set(), list[CallCounts](), CallCounts()
        self._logs: weakref.WeakKeyDictionary[CountedLog, RowCounter] = weakref.WeakKeyDictionary()
        self._closing_logs: list[RowCounter] = []
        self._retired_rows = RowCounts(0, 0, 0)
        self._in_use = False
        # Weak: the object refers to the application's limiter, which may refer to the connector
        self._paused_hosts: weakref.WeakSet[PausedHosts] = weakref.WeakSet()

    def _create(self, meter: Meter, guard: TelemetryGuard) -> None:
        creating = guard.guarded("creating an instrument")  # one at a time: the meter may fail for one kind only
        with creating:
            self._call_duration = _histogram(meter, _names.CALL_DURATION)
        for metric, observe in (
            (_names.RECEIVED, self._sum_of(lambda counts: counts.received, _project_label)),
            (_names.RETRIES, self._sum_of(lambda counts: counts.retries, _wait_labels)),
            (_names.RETRY_DELAY, self._sum_of(lambda counts: counts.delays, _wait_labels)),
            (_names.ACTIVE, self._sum_of(lambda counts: counts.active, _request_labels)),
            (_names.QUEUE_TIME, self._sum_of(lambda counts: counts.queued, _wait_labels)),
            (_names.PAUSED, self._observe_paused),
            (_names.ROWS_WRITTEN, self._rows("written")),
            (_names.ROWS_LOST, self._rows("lost")),
            (_names.ROWS_WAITING, self._rows("waiting")),
        ):
            with creating:
                is_counter = metric.kind == "counter"
                create = meter.create_observable_counter if is_counter else meter.create_observable_up_down_counter
                create(metric.name, [observe], metric.unit, metric.description)

    def record(
        self,
        seconds: float,
        host: Host,
        project: str,
        template: str,
        context: Context,
        *,
        status: int | None,
        error_type: str | None,
        success: bool,
        retried: bool,
        with_attempts: bool = False,
    ) -> None:
        """Record the duration of a request, or of a call whose attempts are recorded as requests.

        Args:
            seconds: The duration of its span.
            host: What `host` returned for it.
            project: What `project` returned for it.
            template: What `template` returned for it; empty if it has none.
            context: The context with the span, so that an exemplar refers to it.
            status: Its HTTP status.
            error_type: The value of ``error.type``, if it is an error.
            success: Whether it succeeded.
            retried: Whether an attempt had failed before it; of a call, whether it has waited after one.
            with_attempts: Whether each attempt was recorded by itself.
        """
        histogram = self._call_duration if with_attempts else self._duration
        if histogram is None:
            return
        # One by one: merging dictionaries would cost 0.9 % of the instructions of a bare aiohttp request
        labels = _request_labels(host)
        labels[_names.PROJECT] = project
        labels[_names.SUCCESS] = success
        labels[_names.RETRIED] = retried
        if template:
            labels[_names.URL_TEMPLATE] = template
        if status is not None:
            labels[_names.STATUS_CODE] = status
        if error_type is not None:
            labels[_names.ERROR_TYPE] = error_type
        histogram.record(seconds, labels, context=context)

    def add(self, counts: CallCounts, log: CountedLog | None, paused_hosts: PausedHosts | None) -> None:
        """From now on, report the metrics of this connector.

        Args:
            counts: Its counters, until they are passed to `retire`.
            log: Its log. The rows are reported once, even if several connectors write to it.
            paused_hosts: Its paused hosts, as long as the object exists.
        """
        with self._lock:
            self._in_use = True
            counts.instruments = self
            self._live.add(counts)
            if paused_hosts is not None:
                self._paused_hosts.add(paused_hosts)
            if log is not None and log not in self._logs:
                self._logs[log] = log.row_counter
                weakref.finalize(log, self._retire_log, log.row_counter).atexit = False

    def _retire_log(self, row_counter: RowCounter) -> None:
        """Keep the counts of an exporter that is gone. Its rows that wait are written by a thread, or at exit."""
        with self._lock:
            self._closing_logs.append(row_counter)
            self._fold_closed_logs()

    def _fold_closed_logs(self) -> None:
        counted = [(row_counter, row_counter()) for row_counter in self._closing_logs]
        self._closing_logs = [row_counter for row_counter, counts in counted if counts.waiting]
        closed = [self._retired_rows, *(counts for _, counts in counted if not counts.waiting)]
        self._retired_rows = RowCounts(*map(sum, zip(*closed, strict=True)))

    def retire(self, counts: CallCounts) -> None:
        """Keep the totals of a connector that no longer exists, or has another provider: a counter must not decrease.

        Calls in flight still add to them.
        """
        with self._lock:
            if (
                counts in self._live and counts not in self._retiring
            ):  # otherwise of the parent of this process, or done
                self._retiring.append(counts)

    def _fold_retired(self) -> None:
        retired = [counts for counts in self._retiring if not any(counts.active.copy().values())]
        for counts in retired:
            self._retiring.remove(counts)
            self._live.remove(counts)
            self._retired.received.update(counts.received)
            self._retired.retries.update(counts.retries)
            for total, more in ((self._retired.delays, counts.delays), (self._retired.queued, counts.queued)):
                for key, seconds in more.items():
                    total[key] += seconds

    def host(self, host: str, port: int | None) -> Host:
        """Return the labels of a host and port, limited in number."""
        return self._limited(self._hosts, (host, port), HOST_LIMIT, (OTHER, None))

    def project(self, project: str) -> str:
        """Return the label of a project, limited in number."""
        return project if project in self._projects else self._limited(self._projects, project, PROJECT_LIMIT, OTHER)

    def template(self, template: str) -> str:
        """Return the label of a template, limited in number."""
        return self._limited(self._templates, template, TEMPLATE_LIMIT, OTHER)

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
            self._fold_retired()
            return [*self._live, self._retired]

    def _sum_of(
        self, counter: Callable[[CallCounts], dict[_Label, Any]], labels: Callable[[_Label], Attributes]
    ) -> _Observe:
        """Return a callback that adds up one counter of all connectors. The counter's keys give the labels."""

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            total: defaultdict[_Label, float] = defaultdict(int)
            for counts in self._all_counts():
                for key, number in counter(counts).copy().items():  # a copy: the event loop may add a key at any time
                    total[key] += number
            return [Observation(number, labels(key)) for key, number in total.items()]

        return observe

    def _rows(self, kind: Literal["written", "waiting", "lost"]) -> _Observe:
        """Return a callback that counts the rows of all logs."""

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            with self._lock:
                self._fold_closed_logs()
                counters = [*self._logs.values(), *self._closing_logs]
                counts = [self._retired_rows, *(row_counter() for row_counter in counters)]
            return self._total(sum(getattr(each, kind) for each in counts))

        return observe

    def _observe_paused(self, _: CallbackOptions) -> Iterable[Observation]:
        with self._lock:
            sources = list(self._paused_hosts)
        return self._total(len({host for source in sources for host in source.paused()}))

    def _total(self, number: float) -> list[Observation]:
        """Return a total without labels; nothing before the first connector of this process."""
        return [Observation(number)] if self._in_use else []


def _request_labels(host: Host) -> dict[str, AttributeValue]:
    address, port = host
    labels: dict[str, AttributeValue] = {_names.METHOD: "GET"}
    if address:
        labels[_names.SERVER_ADDRESS] = address
        if port is not None:
            labels[_names.SERVER_PORT] = port
    return labels


def _histogram(meter: Meter, metric: _names.Metric) -> Histogram:
    return meter.create_histogram(
        metric.name, metric.unit, metric.description, explicit_bucket_boundaries_advisory=_DURATION_BUCKETS
    )


def given_provider(provider: MeterProvider | None) -> MeterProvider | None:
    """Return what `provider_in_force` needs for a provider that was passed in; None for the global one.

    The API's proxy stands for the global provider. ``metrics.get_meter_provider()`` returns it before one is set.
    """
    return None if type(provider).__name__ == "_ProxyMeterProvider" else provider


def provider_in_force(given: MeterProvider | None) -> MeterProvider | None:
    """Return the meter provider that is in force now, None if none is set. `given` takes precedence over the global."""
    if given is not None:
        return given
    # The API's own function would look for an environment variable, at 0.5 % of the instructions of a bare call, and
    # return a proxy, which stays with the first provider that is set
    provider: MeterProvider | None = getattr(_api, "_METER_PROVIDER", _UNKNOWN)
    return given_provider(metrics.get_meter_provider()) if provider is _UNKNOWN else provider


def _project_label(project: str) -> dict[str, AttributeValue]:
    return {_names.PROJECT: project}


def _wait_labels(wait: Wait) -> dict[str, AttributeValue]:
    host, project, reason = wait
    labels = _request_labels(host)
    del labels[_names.METHOD]
    return {**labels, _names.PROJECT: project, _names.REASON: reason}


class _Registry:
    """The instruments of every meter provider of the process.

    Several providers may pass on to one SDK: its own, and wrappers of it. The SDK returns the same histogram to all of
    them, which identifies the instruments. A wrapper that makes histograms of its own is identified by itself.
    """

    def __init__(self) -> None:
        self._by_provider: dict[int, Instruments] = {}  # by id, because a provider may not be hashable
        # By id, too, which is not used again while the instruments exist: they keep the histogram
        self._by_histogram: weakref.WeakValueDictionary[int, Instruments] = weakref.WeakValueDictionary()
        self.start_over()
        start_over_in_child(self)

    def start_over(self) -> None:
        self._lock = threading.Lock()

    def instruments_of(self, provider: MeterProvider, guard: TelemetryGuard) -> Instruments:
        with self._lock:
            found = self._by_provider.get(id(provider))
            if found is None:
                found = self._create(provider, guard)
                with contextlib.suppress(TypeError):  # it has no weak references, and is asked again
                    weakref.finalize(provider, self._by_provider.pop, id(provider), None).atexit = False
                    self._by_provider[id(provider)] = found
            return found

    def _create(self, provider: MeterProvider, guard: TelemetryGuard) -> Instruments:
        meter = duration = None
        with guard.guarded("getting a meter"):
            meter = provider.get_meter(SCOPE, __version__, SCHEMA_URL)
        if meter is not None:
            with guard.guarded("creating an instrument"):
                duration = _histogram(meter, _names.DURATION)
        found = self._by_histogram.get(id(duration))
        if found is None:
            found = Instruments(meter, duration, guard)
            if duration is not None:
                self._by_histogram[id(duration)] = found
        return found


# A second copy of this module (reloaded, or in another package) must find these: the SDK would ignore its callbacks
_registry: _Registry = metrics.__dict__.setdefault(f"_otel_connector_{__version__}", _Registry())


def instruments_of(provider: MeterProvider | None, guard: TelemetryGuard) -> Instruments:
    """Return the instruments of a meter provider.

    Args:
        provider: The provider; None for instruments that record nothing.
        guard: Receives its exceptions. Metrics whose instrument cannot be created are then not reported.
    """
    return Instruments(None, None, guard) if provider is None else _registry.instruments_of(provider, guard)
