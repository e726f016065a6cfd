"""A watch on each exporter of the SDK: what it sends where, what arrived, and what was lost and why.

The SDK ignores the result of ``export``, and its exporters report some losses as successes. So a watch replaces the
methods of the exporter object, and observes its requests. This file imports nothing of the SDK.

Used by ``_doctor``, ``_replay._replay`` and ``_telemetry._sdk_exit``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from operator import attrgetter
from typing import Any, cast

from otel_connector._record import one_line
from otel_connector._redact import Redactor
from otel_connector._telemetry._bounded_session import observe_session
from otel_connector._telemetry._export_problem import ExportTarget, Kind, Problem, noting
from otel_connector._telemetry._grpc_answers import observe_channel

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

_REQUEST_BYTES = 2**21  # half of what a gRPC server accepts by default, because the sizes of spans are estimated
_SPAN_BYTES = 512  # of a span without its texts
_TEXT_BYTES = 16  # of an attribute or an event without its texts


class ExporterWatch:
    """Counts what one exporter loses, and makes its shutdown idempotent.

    Args:
        exporter: The exporter. Its methods ``export`` and ``shutdown`` are replaced.
        signal: ``traces``, ``metrics`` or ``logs``.
        on_loss: Called after each export of which something was lost.
        step: The span processor, metric reader or log record processor that calls the exporter.

    Attributes:
        target: What is sent where.
        failed: Number of exports of which something was lost. Without a lock: it is only compared with an earlier
            value, and a lost increment leaves it larger than that.
        problem: What happened to the last request; None if the receiver accepted all of it.
        arrived: Whether the exporter has sent something that was accepted.
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
        self.problem: Problem | None = None
        self.arrived = False
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

    def export(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Export a batch, over gRPC in requests that a receiver accepts. After the shutdown, count it as failed."""
        if self._stopped:
            self.failed += 1
            return None  # the SDK ignores the result
        splits = self.target.protocol == "grpc" and self.target.signal == "traces"
        result = None
        for part in _parts(batch) if splits else (batch,):
            result = self._export_part(part, *args, **kwargs)
        return result

    def _export_part(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        noted: list[Problem | None] = [None]

        def observe(problem: Problem | None) -> None:
            noted[0] = self.problem = problem and self.resolved(problem)

        self.count = _count(batch)
        try:
            with noting(observe):
                result = self._export(batch, *args, **kwargs)
        except BaseException as error:
            text = one_line(Redactor().text(f"{type(error).__name__}: {error}"))
            if not self._stopped:  # otherwise its connection was closed, and the reason is the last problem
                self.problem = Problem(kind=Kind.FAILED, answer=text)
            self._lose(self.count)
            if self._stopped and isinstance(error, Exception):
                return None
            raise
        # SpanExportResult, MetricExportResult and LogRecordExportResult are three enums with the same two members
        if getattr(result, "name", None) == "FAILURE":
            self.problem = noted[0] or self.problem or Problem(kind=Kind.UNKNOWN)
            self._lose(self.count)
        elif (problem := noted[0]) is not None:
            self.arrived = self.arrived or 0 < problem.rejected < self.count
            self._lose(problem.rejected or self.count)
        else:
            self.arrived = True
        return result

    def _lose(self, items: int) -> None:
        self.failed += 1
        self.lost += items
        self._on_loss(self)

    def resolved(self, problem: Problem) -> Problem:
        """Return the problem with what only the configuration and earlier exports can tell."""
        target, kind = self.target, problem.kind
        if kind is Kind.NO_RECEIVER:
            is_own = target.variable("ENDPOINT") != "OTEL_EXPORTER_OTLP_ENDPOINT"
            if is_own and not target.endpoint.endswith(f"/v1/{target.signal}"):
                return replace(problem, kind=Kind.WRONG_PATH)
            return problem if target.signal == "traces" else replace(problem, kind=Kind.UNSUPPORTED)
        if kind is Kind.NOT_TLS and not target.has_scheme:
            return Problem(kind=Kind.NO_SCHEME, answer="the SDK uses TLS then")
        if kind is Kind.UNKNOWN_HOST and target.protocol == "grpc" and "@" in target.endpoint:
            return Problem(kind=Kind.BAD_ENDPOINT, answer=": over gRPC, it cannot have a user")
        if kind in {Kind.GRPC_PORT, Kind.CLOSED} and self.arrived:
            return Problem(kind=Kind.CONNECTION, answer="the receiver closed it")
        return problem

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
        secure=not getattr(exporter, "_insecure", True),
        timeout=float(first_of(exporter, _TIMEOUTS) or 10),
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


def _parts(spans: Sequence[Any]) -> Generator[Sequence[Any]]:
    """Split a batch of spans, so that no request is larger than a receiver accepts over gRPC."""
    start = size = 0
    for number, span in enumerate(spans):
        more = _span_size(span)
        if size + more > _REQUEST_BYTES and number > start:
            yield spans[start:number]
            start, size = number, 0
        size += more
    yield spans[start:]


def _span_size(span: Any) -> int:
    """Estimate the bytes of a span in a request; not less than they are."""
    texts = [span.attributes, *(event.attributes for event in span.events)]
    return _SPAN_BYTES + sum(map(_texts_size, texts))


def _texts_size(attributes: Mapping[str, Any] | None) -> int:
    return _TEXT_BYTES + sum(_TEXT_BYTES + len(name) + _value_size(value) for name, value in (attributes or {}).items())


def _value_size(value: Any) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
    return sum(map(_value_size, cast("Any", value))) if isinstance(value, Iterable) else _TEXT_BYTES
