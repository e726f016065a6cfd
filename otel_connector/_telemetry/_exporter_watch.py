"""A watch on each exporter of the SDK: what it sends where, what arrived, and what was lost and why.

The SDK ignores the result of ``export``, and its exporters report some losses as successes. So a watch replaces the
methods of the exporter object, and observes its requests. This file imports nothing of the SDK.

Used by ``_doctor``, ``_replay._replay`` and ``_telemetry._sdk_exit``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any, cast
from urllib.parse import urlsplit

from otel_connector._record import one_line
from otel_connector._telemetry._bounded_session import observe_session
from otel_connector._telemetry._export_problem import ExportTarget, Kind, Problem, noting, what_and_why
from otel_connector._telemetry._grpc_answers import observe_channel
from otel_connector._telemetry._tls_files import unusable_file
from otel_connector._telemetry._usual_ports import other_origin
from otel_connector._telemetry._variable_values import without_secrets

_logger = logging.getLogger("otel_connector")

# Where the SDK keeps its exporters and their options. It has no public access to them. If a path does not exist, its
# exporters are not stopped in time, and their failures are not counted. A test checks all paths
_PIPELINES = (
    attrgetter("_active_span_processor._span_processors"),
    attrgetter("_metric_readers"),
    attrgetter("_sdk_config.metric_readers"),  # SDK 1.38
    attrgetter("_multi_log_record_processor._log_record_processors"),
)
_EXPORTERS = (attrgetter("_batch_processor._exporter"), attrgetter("span_exporter"), attrgetter("_exporter"))
_SESSIONS = (attrgetter("_client._transport._session"), attrgetter("_session"))  # the second one is of SDK 1.44
_TIMEOUTS = (attrgetter("_timeout"), attrgetter("_client._timeout"))

# Half of what a gRPC server accepts by default, because sizes are estimated. `max_export_batch_size` of an exporter of
# metrics limits the number of data points, not the bytes, and nothing reports which of its requests failed
_REQUEST_BYTES = 2**21
_ITEM_BYTES = 512  # of a span or a data point without its texts
_TEXT_BYTES = 16  # of an attribute or an event without its texts
_EXEMPLAR_BYTES = 64  # without its texts
_BUCKET_BYTES = 16  # its count and its boundary


# What can happen because the endpoint is not the URL that the operator wanted
_OF_THE_ENDPOINT = frozenset(
    {
        *(Kind.REFUSED, Kind.OTHER_PORT, Kind.NOT_TLS, Kind.UNKNOWN_HOST, Kind.CERTIFICATE, Kind.HTTP_PORT),
        *(Kind.CLOSED, Kind.CONNECTION, Kind.NO_ANSWER, Kind.BAD_ENDPOINT),
    }
)


# What can happen because a file for TLS cannot be read
_OF_TLS = frozenset({Kind.CERTIFICATE, Kind.CONNECTION, Kind.CLOSED})


class ExporterWatch:
    """Counts what one exporter loses, and makes its shutdown idempotent.

    Args:
        exporter: The exporter. Its methods ``export`` and ``shutdown`` are replaced.
        signal: ``traces``, ``metrics`` or ``logs``.
        on_loss: Called after each export of which something was lost.
        step: The span processor, metric reader or log record processor that calls the exporter.

    Attributes:
        target: What is sent where.
        peers: The watches on all exporters of the program.
        failed: Number of exports of which something was lost. Without a lock: it is only compared with an earlier
            value, and a lost increment leaves it larger than that.
        arrived: Whether the exporter has sent something that was accepted.
        hint: The first warning of a receiver that has accepted an export; empty if there was none.
        lost: Number of items of the failed exports.
        count: Number of items of the last export.
    """

    def __init__(
        self,
        exporter: Any,
        signal: str,
        on_loss: Callable[[ExporterWatch], object] = lambda _watch: None,
        step: object = None,
    ) -> None:
        self.exporter, self.step = exporter, step
        self.failed = self.lost = self.count = 0
        self.peers: Sequence[ExporterWatch] = ()
        self.arrived, self.hint = False, ""
        self._noted: Problem | None = None
        self._export: Callable[..., Any] = exporter.export
        self._shutdown: Callable[..., Any] = exporter.shutdown
        self._on_loss = on_loss
        self._stopped = False
        self._shutdown_claim = threading.Lock()
        exporter.export = self.export
        exporter.shutdown = self.shutdown
        self.target = _target(exporter, signal)
        if self.is_otlp and self.target.protocol == "grpc":
            observe_channel(exporter)
        elif self.is_otlp and (session := first_of(exporter, _SESSIONS)) is not None:
            observe_session(session)

    @property
    def is_otlp(self) -> bool:
        """Whether the exporter sends to a receiver of OTLP."""
        return bool(self.target.endpoint)

    @property
    def problem(self) -> Problem | None:
        """What happened to the last request; None if the receiver accepted all of it."""
        return self._noted and self.resolved(self._noted)

    def export(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Export a batch, in requests that a receiver accepts. After the shutdown, count it as failed."""
        if self._stopped:
            self.failed += 1
            return None  # the SDK ignores the result
        split = _SPLITS.get(self.target.signal) if self.is_otlp else None
        result = None
        for part in split(batch) if split else (batch,):
            result = self._export_part(part, *args, **kwargs)
        return result

    def _export_part(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        noted: list[Problem | None] = [None]

        def observe(problem: Problem | None) -> None:
            if problem and problem.kind is Kind.REFUSED:
                other = other_origin(self.target.origin, self.target.protocol)
                problem = Problem(kind=Kind.OTHER_PORT, answer=other) if other else problem
            if problem and problem.kind is Kind.HINT:
                self._show_hint(problem)
                problem = None
            if problem and problem.kind is Kind.NO_ANSWER and noted[0]:  # a retry had only the rest of the time
                problem = noted[0]
            noted[0] = self._noted = problem

        self.count = _count(batch)
        try:
            with noting(observe):
                result = self._export(batch, *args, **kwargs)
        except BaseException as error:
            text = one_line(without_secrets(f"{type(error).__name__}: {error}"))
            if not self._stopped:  # otherwise its connection was closed, and the reason is the last problem
                self._noted = Problem(kind=Kind.FAILED, answer=text)
            self._lose(self.count)
            if self._stopped and isinstance(error, Exception):
                return None
            raise
        # SpanExportResult, MetricExportResult and LogRecordExportResult are three enums with the same two members
        if getattr(result, "name", None) == "FAILURE":
            self._noted = noted[0] or self._noted or Problem(kind=Kind.UNKNOWN)
            self._lose(self.count)
        elif (problem := noted[0]) is not None:
            self.arrived = self.arrived or 0 < problem.rejected < self.count
            self._lose(problem.rejected or self.count)
        else:
            self.arrived = True
        return result

    def _show_hint(self, problem: Problem) -> None:
        if not self.hint:
            target = self.target
            _, self.hint = what_and_why(problem, [target])
            _logger.warning("%s has accepted the %s, with a warning%s.", target.origin, target.signal, problem.answer)

    def _lose(self, items: int) -> None:
        self.failed += 1
        self.lost += items
        self._on_loss(self)

    def resolved(self, problem: Problem) -> Problem:
        """Return the problem with what only the configuration and other exports can tell."""
        target, kind = self.target, problem.kind
        if kind is Kind.NO_RECEIVER:
            return replace(problem, kind=self._kind_of_404())
        if kind in _OF_THE_ENDPOINT and not self.arrived and (mistake := target.mistake):
            return mistake
        if not 0 < target.timeout < threading.TIMEOUT_MAX:
            return Problem(kind=Kind.BAD_TIMEOUT)
        if (
            kind in _OF_TLS
            and (target.secure or target.protocol != "grpc")
            and (why := unusable_file(target.tls_variables))
        ):
            return Problem(kind=Kind.TLS_FILE, answer=why)
        if kind in {Kind.GRPC_PORT, Kind.CLOSED} and self.arrived:
            return Problem(kind=Kind.CONNECTION, answer="the receiver closed it")
        return problem

    def _kind_of_404(self) -> Kind:
        """Return what it means that the server does not know the path of a request."""
        target, kind = self.target, Kind.NO_RECEIVER
        if target.is_own and not urlsplit(target.endpoint).path.endswith(f"/v1/{target.signal}"):
            return Kind.WRONG_PATH
        peers = [peer for peer in self.peers if peer is not self and peer.target.base == target.base]
        if any(peer.arrived for peer in peers):
            return Kind.UNSUPPORTED
        traces = [peer for peer in peers if peer.target.signal == "traces"]
        if target.signal != "traces" and not (
            target.extra or any(peer.problem and peer.problem.kind is kind for peer in traces)
        ):
            return Kind.UNSUPPORTED
        return Kind.WRONG_BASE if target.extra else kind

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        """Interrupt an export that waits for its next try, and prevent further exports. Only the first call counts.

        Further calls come at the time limit, when the SDK itself shuts down, and from the reader of a forked child. The
        exporter would log a warning for each of them.
        """
        self._stopped = True
        if self._shutdown_claim.acquire(blocking=False):
            self._shutdown(*args, **kwargs)


def watch_exporters(provider: object, signal: str, on_loss: Callable[[ExporterWatch], object]) -> list[ExporterWatch]:
    """Find the exporters of a provider. For one that is not found, the time limit of the shutdown still applies."""
    watches: list[ExporterWatch] = []
    for step in first_of(provider, _PIPELINES) or ():
        with suppress(AttributeError):  # it has no exporter, or one whose methods cannot be replaced
            watches.append(ExporterWatch(first_of(step, _EXPORTERS), signal, on_loss, step))
    return watches


def first_of(owner: object, getters: tuple[attrgetter[Any], ...]) -> Any:
    """Return the first of some attributes that exists, or None."""
    for getter in getters:
        with suppress(AttributeError):
            return getter(owner)
    return None


def _target(exporter: Any, signal: str) -> ExportTarget:
    """Read what the SDK has made of the configuration."""
    module = type(exporter).__module__
    protocol, _, _ = module.removeprefix("opentelemetry.exporter.otlp.").removeprefix("proto.").partition(".")
    endpoint = getattr(exporter, "_endpoint", None)
    if not module.startswith("opentelemetry.exporter.otlp.") or not isinstance(endpoint, str):
        return ExportTarget(signal=signal, protocol=type(exporter).__name__)
    return ExportTarget(
        signal=signal,
        protocol={"http": "http/protobuf"}.get(protocol, protocol),
        endpoint=endpoint,
        secure=not getattr(exporter, "_insecure", True) or endpoint.lower().startswith("https:"),
        timeout=10.0 if (timeout := first_of(exporter, _TIMEOUTS)) is None else float(timeout),
    )


def _count(batch: Any) -> int:
    """Return the number of spans, data points or log records."""
    with suppress(AttributeError):
        return sum(
            len(metric.data.data_points)
            for resource in batch.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        )
    return len(batch)


def _parts(items: Sequence[Any], size_of: Callable[[Any], int]) -> Generator[Sequence[Any]]:
    """Split a batch, so that no request is larger than a receiver accepts."""
    start = size = 0
    for number, item in enumerate(items):
        more = size_of(item)
        if size + more > _REQUEST_BYTES and number > start:
            yield items[start:number]
            start, size = number, 0
        size += more
    yield items[start:]


def _parts_of_metrics(data: Any) -> Generator[Any]:
    """Split metrics between their data points."""
    points = [
        point
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    ]
    for part in _parts(points, _point_size):
        yield data if len(part) == len(points) else _with_points(data, set(map(id, part)))


def _with_points(data: Any, kept: set[int]) -> Any:
    """Return metrics with some of their data points, which are given by identity."""

    def of_scope(scope: Any) -> Any:
        found = [(each, [point for point in each.data.data_points if id(point) in kept]) for each in scope.metrics]
        metrics = [replace(each, data=replace(each.data, data_points=points)) for each, points in found if points]
        return replace(scope, metrics=metrics)

    resources = [replace(each, scope_metrics=list(map(of_scope, each.scope_metrics))) for each in data.resource_metrics]
    return replace(data, resource_metrics=resources)


def _span_size(span: Any) -> int:
    """Estimate the bytes of a span in a request; not less than they are."""
    texts = [span.attributes, *(event.attributes for event in span.events)]
    return _ITEM_BYTES + sum(map(_texts_size, texts))


def _point_size(point: Any) -> int:
    """Estimate the bytes of a data point in a request; not less than they are."""
    exemplars: Sequence[Any] = getattr(point, "exemplars", None) or ()
    texts = [point.attributes, *(each.filtered_attributes for each in exemplars)]
    sides = (point, getattr(point, "positive", None), getattr(point, "negative", None))
    buckets = sum(len(getattr(side, "bucket_counts", ())) for side in sides)  # of a histogram of either kind
    fixed = _ITEM_BYTES + _BUCKET_BYTES * buckets + _EXEMPLAR_BYTES * len(exemplars)
    return fixed + sum(map(_texts_size, texts))


def _texts_size(attributes: Mapping[str, Any] | None) -> int:
    return _TEXT_BYTES + sum(_TEXT_BYTES + len(name) + _value_size(value) for name, value in (attributes or {}).items())


def _value_size(value: Any) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
    return sum(map(_value_size, cast("Any", value))) if isinstance(value, Iterable) else _TEXT_BYTES


_SPLITS: Mapping[str, Callable[[Any], Iterable[Any]]] = {
    "traces": partial(_parts, size_of=_span_size),
    "metrics": _parts_of_metrics,
}
