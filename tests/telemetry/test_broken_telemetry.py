"""Faults in the application's OpenTelemetry components do not affect a call: the caller receives its response.

Every provider, processor, exporter, sampler, propagator and collector here is one that an application can configure,
with one fault. A `SimpleSpanProcessor` with an exporter that hangs is not tested: it exports on the caller's thread and
therefore blocks the event loop by design. Applications avoid that with a `BatchSpanProcessor`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import grpc  # type: ignore[import-untyped]
import pytest
from blockbuster import BlockBuster
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.context.context import Context
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GRPCMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GRPCSpanExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import NoOpMeter, NoOpMeterProvider
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import NonRecordingSpan, NoOpTracer, NoOpTracerProvider, SpanContext
from support.faulty_disks import limited_size
from support.logs import Log
from support.loop_and_memory import assert_no_stall, slowest_iteration
from support.sdk import SDK

from otel_connector import AsyncConnector, HTTPStatusError
from otel_connector._guard import TelemetryGuard
from otel_connector._telemetry import _propagation, _spans
from otel_connector._telemetry._metrics import instruments_of
from otel_connector.testing import FakeClock, FaultServer, hold, ok

DAY = 86_400  # seconds


class Panic(BaseException):
    """A `BaseException`, as Python bindings raise it when native code panics."""


class Unspeakable(Exception):
    """An error whose `str` raises as well."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


ERRORS = [Unspeakable(), Panic("broken"), asyncio.CancelledError()]
ENDING = [KeyboardInterrupt(), SystemExit(3)]


class Fault:
    """The behaviour of a faulty component when it is called: raise an error or call a function."""

    def __init__(self, action: BaseException | Callable[[], object]) -> None:
        self.action = action
        self.called = 0

    def __call__(self, *_: Any, **__: Any) -> Any:
        self.called += 1
        if isinstance(self.action, BaseException):
            raise self.action
        return self.action()


# The application's telemetry. Each function puts the fault into one component and returns options of the connector.

Broken = Callable[[Fault], dict[str, Any]]


def tracing(*processors: SpanProcessor, **options: Any) -> dict[str, Any]:
    provider = TracerProvider(shutdown_on_exit=False, **options)
    for processor in processors:
        provider.add_span_processor(processor)
    return {"tracer_provider": provider}


def measuring(**options: Any) -> dict[str, Any]:
    reader = options.pop("reader", None) or InMemoryMetricReader()
    return {"meter_provider": MeterProvider([reader], shutdown_on_exit=False, **options)}


def on_start(fault: Fault) -> dict[str, Any]:
    class Starting(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            fault()

    return tracing(Starting())


def on_end(fault: Fault) -> dict[str, Any]:
    class Ending(SpanProcessor):
        def on_end(self, span: Any) -> None:
            fault()

    return tracing(Ending())


class Exporter(SpanExporter):
    def __init__(self, fault: Callable[[], object]) -> None:
        self.fault = fault
        self.called = threading.Event()

    def export(self, spans: object) -> SpanExportResult:
        self.called.set()
        self.fault()
        return SpanExportResult.SUCCESS


def simple_exporter(fault: Fault) -> dict[str, Any]:
    return tracing(SimpleSpanProcessor(Exporter(fault)))


def sampler(fault: Fault) -> dict[str, Any]:
    class Sampling(Sampler):
        def should_sample(self, *arguments: Any, **options: Any) -> Any:
            fault()
            return ALWAYS_ON.should_sample(*arguments, **options)

        def get_description(self) -> str:
            return "broken"

    return tracing(sampler=Sampling())


def id_generator(fault: Fault) -> dict[str, Any]:
    class Generating(RandomIdGenerator):
        def generate_span_id(self) -> int:
            fault()
            return super().generate_span_id()

    return tracing(id_generator=Generating())


def exemplar_reservoir(fault: Fault) -> dict[str, Any]:
    class Reservoir:
        offer = collect = staticmethod(fault)

    reservoir: Any = Reservoir()

    def builder(**_: Any) -> Any:
        return reservoir

    factory: Any = lambda _: builder  # noqa: E731
    views = [View(instrument_name="*", exemplar_reservoir_factory=factory)]
    return measuring(views=views, exemplar_filter=AlwaysOnExemplarFilter())


def exemplar_filter(fault: Fault) -> dict[str, Any]:
    class Filter(AlwaysOnExemplarFilter):
        def should_sample(self, *arguments: Any, **options: Any) -> bool:
            fault()
            return True

    return measuring(exemplar_filter=Filter())


class Aggregating(ExplicitBucketHistogramAggregation):
    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.fault = fault

    def _create_aggregation(self, *arguments: Any, **options: Any) -> Any:
        self.fault()
        return super()._create_aggregation(*arguments, **options)


def view(fault: Fault) -> dict[str, Any]:
    return measuring(views=[View(instrument_name="http.client.request.duration", aggregation=Aggregating(fault))])


def reader(fault: Fault) -> dict[str, Any]:
    return measuring(reader=InMemoryMetricReader(preferred_aggregation={Histogram: Aggregating(fault)}))


def get_tracer(fault: Fault) -> dict[str, Any]:
    class Provider(NoOpTracerProvider):
        get_tracer = fault

    return {"tracer_provider": Provider()}


def no_tracer(fault: Fault) -> dict[str, Any]:
    class Provider(NoOpTracerProvider):
        def get_tracer(self, *_: Any, **__: Any) -> Any:
            return None

    return {"tracer_provider": Provider()}


def no_span(fault: Fault) -> dict[str, Any]:
    class Tracer(NoOpTracer):
        def start_span(self, *_: Any, **__: Any) -> Any:
            return None

    class Provider(NoOpTracerProvider):
        def get_tracer(self, *_: Any, **__: Any) -> Any:
            return Tracer()

    return {"tracer_provider": Provider()}


def get_meter(fault: Fault) -> dict[str, Any]:
    class Provider(NoOpMeterProvider):
        get_meter = fault

    return {"meter_provider": Provider()}


def instruments(fault: Fault) -> dict[str, Any]:
    class Meter(NoOpMeter):
        create_histogram = fault

    class Provider(NoOpMeterProvider):
        def get_meter(self, *_: Any, **__: Any) -> Any:
            return Meter("broken")

    return {"meter_provider": Provider()}


RAISING: dict[str, Broken] = {
    function.__name__: function
    for function in (
        *(on_start, on_end, simple_exporter, sampler, id_generator),
        *(exemplar_reservoir, exemplar_filter, view, reader),
        *(get_tracer, get_meter, instruments),
    )
}


# The expected results, rows, statistics and log messages.


async def assert_unharmed(
    subject: AsyncConnector, server: FaultServer, logfile: Log | None, rounds: int = 1, *, broken_context: bool = False
) -> None:
    """Make calls that succeed, are retried and fail; assert that each has the same outcome as without telemetry."""
    server.script("/ok", ok)
    server.script("/gone", 404)
    before, rows = subject.stats(), len(logfile.records()) if logfile else 0
    for _ in range(rounds):
        server.script("/flaky", [503, ok])
        async with aiohttp.ClientSession() as session:
            calls = [subject.get(session, server.url(path), "P") for path in ("/flaky", "/gone")]
            second, third = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
            assert (
                second == await subject.get(session, server.url("/ok"), "P") == {"ok": True}
            )  # in the test's own task
        assert isinstance(third, HTTPStatusError)
        assert third.status == 404
    stats = subject.stats()
    assert stats.calls_active == 0
    assert stats.calls_started - before.calls_started == 3 * rounds
    assert stats.calls_succeeded - before.calls_succeeded == 2 * rounds
    assert stats.calls_failed - before.calls_failed == rounds
    assert stats.retries - before.retries == rounds
    assert stats.calls_started == stats.rows_written + stats.rows_waiting + stats.rows_lost or logfile is None
    if logfile is not None:
        new = logfile.records()[rows:]
        assert len(new) == len({record.call_id for record in new}) == 3 * rounds
        seen = sorted((record.url, record.response_code, record.success) for record in new)
        expected = [("/flaky", 200, True), ("/gone", 404, False), ("/ok", 200, True)] * rounds
        assert seen == sorted((server.url(path), code, success) for path, code, success in expected)
    active = subject._settings.telemetry.counts.active.values()
    assert not any(active), "the metrics report a call in flight"
    if not broken_context:
        assert otel_context.get_value(_propagation._SUPPRESS_HTTP) is None, "the call left its context attached"


def logged_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the package's log messages; asyncio must log none, such as an exception that was never retrieved."""
    assert not [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    return [record.getMessage() for record in caplog.records if record.name == "otel_connector"]


def assert_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = logged_messages(caplog)
    assert "the call continues" in line
    assert "Repair or remove" in line


def connector(log: Log, options: Mapping[str, Any], **more: Any) -> AsyncConnector:
    return AsyncConnector(log.path, n_tries=3, **{"clock": FakeClock(), **options, **more})


# Components that raise.


@pytest.mark.parametrize(
    ("name", "error", "attempt_spans"),
    [
        *((name, error, False) for name in RAISING for error in ERRORS),
        *((name, Panic(), True) for name in ("on_start", "on_end", "simple_exporter", "sampler", "id_generator")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
async def test_a_component_that_raises_does_not_affect_the_calls(
    name: str,
    error: BaseException,
    attempt_spans: bool,
    server: FaultServer,
    log: Log,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fault = Fault(error)
    subject = connector(log, RAISING[name](fault), attempt_spans=attempt_spans)
    await assert_unharmed(subject, server, log)
    assert fault.called
    if name == "simple_exporter" and isinstance(error, Exception):
        assert logged_messages(caplog) == [], "the SDK logs the error itself"
    else:
        assert_logged_once(caplog)


@pytest.mark.parametrize("attempt_spans", [False, True], ids=["one-span", "attempt-spans"])
@pytest.mark.parametrize("broken", [no_tracer, no_span])
async def test_a_provider_that_returns_none_does_not_affect_the_calls(
    broken: Broken, attempt_spans: bool, server: FaultServer, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    subject = connector(log, broken(Fault(ValueError())), attempt_spans=attempt_spans)
    await assert_unharmed(subject, server, log)
    assert_logged_once(caplog)


@pytest.mark.parametrize("number", [0, -1, 2**200, 1.5, "7", None], ids=repr)
async def test_calls_get_valid_ids_if_the_id_generator_returns_invalid_ones(
    number: Any, server: FaultServer, log: Log
) -> None:
    class Generating(RandomIdGenerator):
        def generate_span_id(self) -> int:
            return number  # type: ignore[no-any-return]

        generate_trace_id = generate_span_id

    await assert_unharmed(connector(log, tracing(id_generator=Generating())), server, log)
    assert all(int(part, 16) for record in log.records() for part in record.call_id.split("-"))


async def test_a_meter_provider_that_cannot_be_a_dictionary_key_gets_its_metrics(server: FaultServer, log: Log) -> None:
    reader = InMemoryMetricReader()
    sdk = MeterProvider([reader], shutdown_on_exit=False)

    class Slotted:
        __slots__ = ()

        def get_meter(self, *arguments: Any, **options: Any) -> Any:
            return sdk.get_meter(*arguments, **options)

    await assert_unharmed(connector(log, {"meter_provider": Slotted()}), server, log)
    data = reader.get_metrics_data()
    assert data is not None
    names = {metric.name for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    assert {"http.client.request.duration", "otel_connector.rows.written"} <= names


async def test_other_instruments_report_if_one_kind_cannot_be_created(server: FaultServer, log: Log) -> None:
    """One kind of instrument cannot be created; the others report."""
    reader = InMemoryMetricReader()
    sdk = MeterProvider([reader], shutdown_on_exit=False)

    class Provider(NoOpMeterProvider):
        def get_meter(self, *arguments: Any, **options: Any) -> Any:
            meter = sdk.get_meter(*arguments, **options)
            meter.create_observable_counter = Fault(Panic())  # type: ignore[method-assign]
            return meter

    await assert_unharmed(connector(log, {"meter_provider": Provider()}), server, log)
    data = reader.get_metrics_data()
    assert data is not None
    names = {metric.name for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    levels = {"http.client.active_requests", "otel_connector.host.paused", "otel_connector.rows.waiting"}
    assert names == {"http.client.request.duration", *levels}


# The propagator.


@pytest.fixture
def propagator() -> Iterator[Callable[[Callable[[dict[Any, Any]], object]], None]]:
    """Return a function that sets a global propagator, which calls `put` with the headers."""

    class Propagator(TextMapPropagator):
        @property
        def fields(self) -> set[str]:
            return set()

        def __init__(self, put: Callable[[dict[Any, Any]], object]) -> None:
            self.put = put

        def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Context:
            return Context()

        def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
            self.put(carrier)

    before = propagate.get_global_textmap()
    yield lambda put: propagate.set_global_textmap(Propagator(put))
    propagate.set_global_textmap(before)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("attempt_spans", [False, True], ids=["one-span", "attempt-spans"])
async def test_a_propagator_that_raises_does_not_affect_the_calls(
    error: BaseException,
    attempt_spans: bool,
    propagator: Any,
    server: FaultServer,
    log: Log,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def put(headers: dict[str, str]) -> None:
        headers["tracestate"] = "a=b"
        raise error

    propagator(put)
    await assert_unharmed(connector(log, tracing(), attempt_spans=attempt_spans), server, log)
    assert {request.headers["tracestate"] for request in server.requests} == {"a=b"}, (
        "headers that were set before the error are sent"
    )
    assert_logged_once(caplog)


INVALID_HEADERS: list[tuple[Any, Any]] = [
    ("traceparent", None),
    ("traceparent", b"00-1-1-01"),
    ("traceparent", "00-1-1-01\r\nX-Evil: 1"),
    ("tracestate", "a=\0"),
    ("baggage", "a=\ud800"),
    ("baggage", "a=" + "b" * 9_000),
    ("", "x"),
    ("two words", "x"),
    ("colon:", "x"),
    ("\u0441", "x"),
    (7, "x"),
    (None, "x"),
    ("Host", "elsewhere.invalid"),
    ("Content-Length", "5"),
    ("transfer-encoding", "chunked"),
    ("Expect", "100-continue"),
    ("connection", "close"),
]


@pytest.mark.parametrize(("name", "value"), INVALID_HEADERS, ids=lambda value: ascii(value)[:20])
async def test_invalid_headers_of_a_propagator_are_not_sent(
    name: Any, value: Any, propagator: Any, server: FaultServer, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    propagator(lambda headers: headers.update({name: value, "X-Fine": "kept"}))
    await assert_unharmed(connector(log, {}), server, log)
    for request in server.requests:
        assert request.headers["X-Fine"] == "kept"
        assert request.headers["Host"] == f"127.0.0.1:{server.port}"
        assert not {"X-Evil", "Expect", "traceparent", "baggage", "Content-Length"} & set(request.headers)
    assert_logged_once(caplog)


# The context, and the caller's own span.


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("attempt_spans", [False, True], ids=["one-span", "attempt-spans"])
@pytest.mark.parametrize("method", ["get_current", "attach", "detach"])
async def test_a_context_implementation_that_raises_does_not_affect_the_calls(
    method: str,
    attempt_spans: bool,
    error: BaseException,
    server: FaultServer,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An application can name its own implementation in `OTEL_PYTHON_CONTEXT`."""
    subject = connector(log, tracing(SimpleSpanProcessor(Exporter(lambda: None))), attempt_spans=attempt_spans)
    runtime = ContextVarsRuntimeContext()
    setattr(runtime, method, Fault(error))
    monkeypatch.setattr(otel_context, "_RUNTIME_CONTEXT", runtime)
    await assert_unharmed(subject, server, log, broken_context=True)
    monkeypatch.undo()
    if method != "detach" or not isinstance(error, Exception):  # the API logs the error itself
        assert_logged_once(caplog)


@pytest.mark.parametrize(
    "context",
    [*ERRORS, None, 7, SpanContext(1, 2.5, is_remote=False)],  # type: ignore[arg-type]
    ids=lambda context: type(context).__name__,
)
async def test_a_broken_span_of_the_caller_does_not_affect_the_calls(
    context: Any, server: FaultServer, log: Log, sdk: SDK, caplog: pytest.LogCaptureFixture
) -> None:
    class Span(NonRecordingSpan):
        def get_span_context(self) -> Any:
            return Fault(context)() if isinstance(context, BaseException) else context

    token = otel_context.attach(trace.set_span_in_context(Span(trace.INVALID_SPAN_CONTEXT)))
    try:
        await assert_unharmed(connector(log, sdk.providers), server, log)
    finally:
        otel_context.detach(token)
    assert len(logged_messages(caplog)) <= 1


async def test_calls_whose_span_cannot_be_started_stay_in_the_callers_trace(
    server: FaultServer, log: Log, sdk: SDK
) -> None:
    with sdk.tracer_provider.get_tracer("caller").start_as_current_span("around") as around:
        await assert_unharmed(connector(log, sampler(Fault(Panic()))), server, log)
    parent = around.get_span_context()
    for request in server.requests:
        assert request.headers["traceparent"].split("-")[1:3] == [f"{parent.trace_id:032x}", f"{parent.span_id:016x}"]
    assert {record.call_id.split("-")[0] for record in log.records()} == {f"{parent.trace_id:032x}"}


# Exceptions that must propagate although they are raised within telemetry.


@contextmanager
def handled(number: signal.Signals, handler: Any) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


INTERRUPTED: dict[str, Broken] = {
    **RAISING,
    "propagator": lambda fault: {},
}
del INTERRUPTED["get_tracer"], INTERRUPTED["get_meter"], INTERRUPTED["instruments"]


class FaultOnce(Fault):
    """A fault at the first call only: a user or a supervisor sends one signal, not one for every call."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        action, self.action = self.action, lambda: None
        return Fault(action)()


def exit_program(number: int, frame: object) -> None:
    raise SystemExit(4)


def end_a_time_limit(number: int, frame: object) -> None:
    raise TimeoutError("a time limit of the application")


@pytest.mark.parametrize("attempt_spans", [False, True], ids=["one-span", "attempt-spans"])
@pytest.mark.parametrize("name", INTERRUPTED)
@pytest.mark.parametrize(
    ("handler", "error"),
    [(signal.default_int_handler, KeyboardInterrupt), (exit_program, SystemExit)],
    ids=["ctrl-c", "sys-exit"],
)
async def test_a_signal_within_telemetry_ends_the_program_and_the_row_is_written(
    handler: Any,
    error: type[BaseException],
    name: str,
    attempt_spans: bool,
    propagator: Any,
    server: FaultServer,
    session: aiohttp.ClientSession,
    log: Log,
) -> None:
    server.script("/x", ok)
    fault = FaultOnce(lambda: signal.raise_signal(signal.SIGTERM))
    if name == "propagator":
        propagator(fault)
    subject = connector(log, INTERRUPTED[name](fault), attempt_spans=attempt_spans)
    with handled(signal.SIGTERM, handler), pytest.raises(error):
        await subject.get(session, server.url("/x"), "P")
    record = log.only()
    assert record.success or record.error.startswith(error.__name__)
    stats = subject.stats()
    assert (stats.calls_started, stats.calls_active, stats.rows_written) == (1, 0, 1)


@pytest.mark.parametrize("attempt_spans", [False, True], ids=["one-span", "attempt-spans"])
@pytest.mark.parametrize("name", INTERRUPTED)
async def test_a_component_that_always_ends_the_program_prevents_no_row(
    name: str, attempt_spans: bool, propagator: Any, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", ok)
    fault = Fault(SystemExit(3))
    if name == "propagator":
        propagator(fault)
    subject = connector(log, INTERRUPTED[name](fault), attempt_spans=attempt_spans)
    with pytest.raises(SystemExit):
        await subject.get(session, server.url("/x"), "P")
    record, stats = log.only(), subject.stats()
    assert record.success or record.error == "SystemExit: 3"
    assert (stats.calls_started, stats.calls_active, stats.rows_written) == (1, 0, 1)
    assert not any(subject._settings.telemetry.counts.active.values())


@pytest.mark.parametrize("broken", [on_start, on_end, exemplar_filter])
async def test_another_exception_of_a_signal_handler_within_telemetry_is_logged(
    broken: Broken, server: FaultServer, session: aiohttp.ClientSession, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """It cannot be distinguished from an exception of the component."""
    server.script("/x", ok)
    subject = connector(log, broken(FaultOnce(lambda: signal.raise_signal(signal.SIGTERM))))
    with handled(signal.SIGTERM, end_a_time_limit):
        assert await subject.get(session, server.url("/x"), "P") == {"ok": True}
    assert log.only().success
    assert_logged_once(caplog)


@pytest.mark.parametrize("error", ENDING, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("make", [get_tracer, get_meter, instruments])
def test_the_program_ends_if_a_component_ends_it_while_a_connector_is_created(
    make: Broken, error: BaseException, log: Log
) -> None:
    with pytest.raises(type(error)):
        connector(log, make(Fault(error)))


# Log messages.


def test_errors_are_logged_once_a_minute_with_the_number_of_suppressed_ones(
    caplog: pytest.LogCaptureFixture, clock: FakeClock
) -> None:
    guard = TelemetryGuard(clock.monotonic_ns)
    for _ in range(3):
        guard.swallow(ValueError("a\nb"), "testing")
    clock.advance(60)
    for _ in range(2):
        guard.swallow(Unspeakable(), "testing")
    first, second = logged_messages(caplog)
    assert first.startswith(r"telemetry failed while testing; the call continues without it: ValueError: a\nb. ")
    assert first.endswith("in the traceback")
    assert second.startswith("telemetry failed while testing; the call continues without it: Unspeakable. ")
    assert second.endswith("in the traceback; 2 similar messages were not logged")


class RaisingHandler(logging.Handler):
    """A logging handler that raises, as one that exports log records may do."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def emit(self, record: logging.LogRecord) -> None:
        raise self.error


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("logger", ["otel_connector.calls", "otel_connector"])
async def test_a_logging_handler_that_raises_does_not_affect_the_calls(
    logger: str, error: BaseException, server: FaultServer, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages about retries, failures and telemetry may go to such a handler."""
    caplog.set_level(logging.INFO, "otel_connector")
    handler = RaisingHandler(error)
    logging.getLogger(logger).addHandler(handler)
    try:
        subject = connector(log, on_end(Fault(error)), on_retry=Fault(ValueError()))
        await assert_unharmed(subject, server, log)
    finally:
        logging.getLogger(logger).removeHandler(handler)


@pytest.mark.parametrize("error", ENDING, ids=lambda error: type(error).__name__)
def test_the_program_ends_if_a_logging_handler_ends_it(error: BaseException, clock: FakeClock) -> None:
    handler = RaisingHandler(error)
    logging.getLogger("otel_connector").addHandler(handler)
    try:
        with pytest.raises(type(error)):
            TelemetryGuard(clock.monotonic_ns).swallow(ValueError(), "testing")
    finally:
        logging.getLogger("otel_connector").removeHandler(handler)


# Batches, which a thread of the SDK exports.


@contextmanager
def assert_loop_is_not_blocked() -> Iterator[None]:
    """Assert that nothing blocks the event loop. Garbage of earlier tests, which would block it, is not collected."""
    gc.collect()
    gc.disable()
    try:
        with slowest_iteration() as longest:
            yield
    finally:
        gc.enable()
    assert_no_stall(longest)


@contextmanager
def batching(exporter: SpanExporter, **options: Any) -> Iterator[dict[str, Any]]:
    settings: dict[str, Any] = {"schedule_delay_millis": 1, "max_export_batch_size": 1, "max_queue_size": 2, **options}
    providers = tracing(BatchSpanProcessor(exporter, **settings))
    yield providers
    providers["tracer_provider"].shutdown()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # Panic ends the SDK's thread
@pytest.mark.parametrize("error", [*ERRORS, SystemExit(3)], ids=lambda error: type(error).__name__)
async def test_a_batch_exporter_that_raises_does_not_affect_the_calls(
    error: BaseException, server: FaultServer, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = Exporter(Fault(error))
    with batching(exporter) as providers:
        subject = connector(log, providers)
        await assert_unharmed(subject, server, log)
        assert exporter.called.wait(5)
        await assert_unharmed(subject, server, log, rounds=3)
    assert logged_messages(caplog) == []


@pytest.mark.timing
async def test_a_batch_exporter_that_hangs_does_not_block_the_event_loop(
    server: FaultServer, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    exporter = Exporter(released.wait)
    with batching(exporter) as providers:
        subject = connector(log, providers)
        await assert_unharmed(subject, server, log)
        assert exporter.called.wait(5)
        with assert_loop_is_not_blocked():
            await assert_unharmed(subject, server, log, rounds=3)  # far more spans than the queue holds
        released.set()
    assert logged_messages(caplog) == []


async def test_calls_in_flight_succeed_if_the_providers_are_shut_down(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK, caplog: pytest.LogCaptureFixture
) -> None:
    held = hold(arrivals=20)
    server.script("/held", held.step)
    subject = connector(log, sdk.providers)
    calls = [asyncio.ensure_future(subject.get(session, server.url("/held"), "P")) for _ in range(20)]
    await held.arrived
    sdk.tracer_provider.shutdown()
    sdk.meter_provider.shutdown()
    held.release()
    assert await asyncio.gather(*calls) == [{"ok": True}] * 20
    await assert_unharmed(subject, server, log)
    assert len(log.records()) == 23
    assert logged_messages(caplog) == []


# Collectors, on real sockets.


class Collectors:
    """Faulty OTLP receivers. Setting `answer` releases the responses of the slow ones."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self._closing = ExitStack()

    def close(self) -> None:
        self.answer.set()
        self._closing.close()

    def down(self, protocol: str) -> str:
        """No process listens on the port."""
        listener = self._listener()
        listener.close()
        return f"http://127.0.0.1:{listener.port}"

    def black_hole(self, protocol: str) -> str:
        """The kernel accepts the connection and the bytes, but no process reads them."""
        return f"http://127.0.0.1:{self._listener().port}"

    def slow(self, protocol: str) -> str:
        """The receiver reads requests and answers them after the calls have ended."""
        return self._serve(protocol, 200)

    def throttling(self, protocol: str) -> str:
        """The receiver answers 503 and asks for a retry after one day."""
        return self._serve(protocol, 503)

    def _listener(self) -> Any:
        import socket

        listener: Any = self._closing.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))

        class Port:
            port = listener.getsockname()[1]
            close = listener.close

        return Port()

    def _serve(self, protocol: str, status: int) -> str:
        return self._serve_grpc(status) if protocol == "grpc" else self._serve_http(status)

    def _serve_http(self, status: int) -> str:
        answer = self.answer

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                if status == 200:
                    answer.wait(10)
                self.send_response(status)
                self.send_header("Retry-After", str(DAY))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        for close in (server.server_close, thread.join, server.shutdown):  # callbacks run in reverse order
            self._closing.callback(close)
        return f"http://127.0.0.1:{server.server_port}"

    def _serve_grpc(self, status: int) -> str:
        answer = self.answer

        def export(request: bytes, context: Any) -> bytes:
            if status == 503:
                info = RetryInfo()
                info.retry_delay.seconds = DAY
                context.set_trailing_metadata((("google.rpc.retryinfo-bin", info.SerializeToString()),))
                context.abort(grpc.StatusCode.UNAVAILABLE, "come back tomorrow")
            answer.wait(10)
            return b""

        class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
            def service(self, handler_call_details: Any) -> Any:
                return grpc.unary_unary_rpc_method_handler(export)

        server = grpc.server(self._closing.enter_context(ThreadPoolExecutor(max_workers=4)), handlers=[Handler()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self._closing.callback(lambda: server.stop(grace=None).wait())
        return f"http://127.0.0.1:{port}"


@pytest.fixture
def collectors() -> Iterator[Collectors]:
    collectors = Collectors()
    yield collectors
    collectors.close()


@contextmanager
def exporting(protocol: str, endpoint: str) -> Iterator[dict[str, Any]]:
    """Export traces and metrics over OTLP, with short timeouts to keep the tests fast."""
    spans: SpanExporter
    if protocol == "grpc":
        spans = GRPCSpanExporter(endpoint, insecure=True, timeout=0.3)
        reader = PeriodicExportingMetricReader(GRPCMetricExporter(endpoint, insecure=True, timeout=0.3), 5)
    else:
        spans = OTLPSpanExporter(f"{endpoint}/v1/traces", timeout=0.3)
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{endpoint}/v1/metrics", timeout=0.3), 5)
    meters = MeterProvider([reader], shutdown_on_exit=False)
    with batching(spans, max_queue_size=20, max_export_batch_size=5) as providers:
        yield {**providers, "meter_provider": meters}
        meters.shutdown()


@pytest.mark.timing
@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("state", [Collectors.down, Collectors.black_hole, Collectors.slow, Collectors.throttling])
async def test_a_faulty_collector_does_not_block_the_event_loop(
    state: Callable[[Collectors, str], str],
    protocol: str,
    collectors: Collectors,
    server: FaultServer,
    log: Log,
    caplog: pytest.LogCaptureFixture,
    blocking_calls: BlockBuster,
) -> None:
    # The SDK's own threads acquire the locks of its queues as well, for short times
    blocking_calls.functions["threading.Lock.acquire"].deactivate()
    with exporting(protocol, state(collectors, protocol)) as providers:
        subject = connector(log, providers)
        await assert_unharmed(subject, server, log)  # imports what is loaded on first use, and starts the first export
        with assert_loop_is_not_blocked():
            await assert_unharmed(subject, server, log, rounds=20)
        collectors.answer.set()
    assert logged_messages(caplog) == []


# Several faults together.


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX")
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_no_row_is_lost_with_a_full_disk_and_broken_telemetry(
    error: BaseException, server: FaultServer, tmp_path: Path, propagator: Any, caplog: pytest.LogCaptureFixture
) -> None:
    propagator(Fault(error))
    with limited_size(tmp_path / "disk") as disk:
        log = Log(disk.path)
        subject = connector(log, {**on_end(Fault(error)), **exemplar_filter(Fault(error))})
        await assert_unharmed(subject, server, log)
        disk.strike()
        try:
            await assert_unharmed(subject, server, None, rounds=2)
            stats = subject.stats()
            assert stats.rows_waiting > 0
            assert stats.rows_written + stats.rows_waiting == stats.calls_started == 9
        finally:
            disk.heal()
        await assert_unharmed(subject, server, None)
        await subject.aclose()
    assert len(log.records()) == len({record.call_id for record in log.records()}) == 12
    assert subject.stats().rows_written == 12
    telemetry, disk_line = sorted(logged_messages(caplog), key=lambda line: "cannot be written" in line)
    assert "Repair or remove" in telemetry
    assert "cannot be written" in disk_line


def test_a_connector_can_be_collected_while_the_same_thread_holds_the_lock() -> None:
    """Garbage collection can start at any point, and a connector that is collected adds its last counts there."""
    provider = MeterProvider(shutdown_on_exit=False)
    instruments = instruments_of(provider, TelemetryGuard(time.monotonic_ns))
    telemetry: Any = _spans.CallTelemetry(meter_provider=provider)
    telemetry.counts.received["P"] = 7
    telemetry.itself = telemetry
    with instruments._lock:
        del telemetry
        gc.collect()
    assert [counts.received for counts in instruments._all_counts()] == [{"P": 7}]
