"""Spans and metrics: names, attributes, exemplars and redaction; a broken SDK does not affect a call."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import default_setter
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult
from opentelemetry.semconv.attributes import (
    error_attributes,
    http_attributes,
    network_attributes,
    server_attributes,
    url_attributes,
)
from opentelemetry.semconv.metrics import http_metrics
from opentelemetry.trace import SpanContext, TraceFlags, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from support.forked import run_python
from support.logs import Log
from support.sdk import SDK

import otel_connector
from otel_connector import AsyncConnector, ConnectorError, RetryPolicy
from otel_connector._telemetry import _call_ids, _metrics, _propagation
from otel_connector.testing import FakeClock, FaultServer, hold, ok, redirect, respond, retry_after


def connector(log: Log | None, sdk: SDK | None = None, **options: Any) -> AsyncConnector:
    providers: dict[str, Any] = sdk.providers if sdk else {}
    return AsyncConnector(log.path if log else None, **{"n_tries": 3, "clock": FakeClock(), **providers, **options})


async def test_failed_attempts_are_span_events_in_order(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/x", [503, retry_after(7, status=429), ok])
    clock = FakeClock(randoms=0.5)
    await connector(None, sdk, clock=clock, retry=RetryPolicy(backoff=2)).get(session, server.url("/x"), "P")

    first, second = sdk.span().events
    assert first.name == second.name == "otel_connector.attempt"
    assert first.timestamp <= second.timestamp
    shown = [dict(event.attributes or {}) for event in (first, second)]
    assert shown == [
        {
            "otel_connector.attempt.number": 1,
            "otel_connector.attempt.start": clock.time_ns() / 1e9 - 8,
            "otel_connector.attempt.duration": 0.0,
            "otel_connector.attempt.reason": "status_503",
            "otel_connector.attempt.wait": 1.0,
            "http.response.status_code": 503,
            "error.type": "503",
        },
        {
            "otel_connector.attempt.number": 2,
            "otel_connector.attempt.start": clock.time_ns() / 1e9 - 7,
            "otel_connector.attempt.duration": 0.0,
            "otel_connector.attempt.reason": "status_429",
            "otel_connector.attempt.wait": 7.0,
            "otel_connector.attempt.retry_after": 7.0,
            "http.response.status_code": 429,
            "error.type": "429",
        },
    ]
    assert clock.sleeps == [1.0, 7.0]
    assert sdk.span().attributes["http.request.resend_count"] == 2


async def test_attribute_names_are_those_of_the_current_semantic_conventions(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    """All names are in the installed conventions, no name is deprecated, and there is no exception event."""
    server.script("/x", [503, ok])
    server.script("/y", 404)
    subject = connector(None, sdk)
    await subject.get(session, server.url("/x"), "P")
    await subject.get(session, server.url("/y"), "P", default=None)

    modules = (error_attributes, http_attributes, network_attributes, server_attributes, url_attributes)
    known = {value for module in modules for name, value in vars(module).items() if name.isupper()}
    names = {name for span in sdk.spans.get_finished_spans() for name in span.attributes or {}}
    events = [event for span in sdk.spans.get_finished_spans() for event in span.events]
    names |= {name for event in events for name in event.attributes or {}}
    assert {name for name in names if not name.startswith("otel_connector.")} <= known
    assert not names & {"http.method", "http.url", "http.status_code", "http.host", "net.peer.name", "net.peer.port"}
    assert {event.name for event in events} == {"otel_connector.attempt"}
    for span in sdk.spans.get_finished_spans():
        required = {"http.request.method", "server.address", "server.port", "url.full"}
        assert required <= set(span.attributes or {})


async def test_required_attributes_are_passed_to_the_sampler(
    server: FaultServer, session: aiohttp.ClientSession
) -> None:
    server.script("/x", ok)
    seen: list[Any] = []

    class Asking(Sampler):
        def should_sample(self, *arguments: Any, **_: Any) -> SamplingResult:
            attributes = arguments[4]
            seen.append(dict(attributes))
            return SamplingResult(Decision.DROP)

        def get_description(self) -> str:
            return "asking"

    provider = TracerProvider(Asking(), shutdown_on_exit=False)
    await connector(None, tracer_provider=provider).get(session, server.url("/x"), "P")
    assert seen == [
        {
            "http.request.method": "GET",
            "url.full": server.url("/x"),
            "server.address": "127.0.0.1",
            "server.port": server.port,
        }
    ]


async def test_metrics_have_the_expected_names_values_and_attributes(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    held = hold()
    server.script("/ok", ok)
    server.script("/flaky", [503, ok])
    server.script("/gone", 404)
    server.script("/held", held.step)
    subject = connector(log, sdk)
    for path in ("/ok", "/ok", "/flaky"):
        await subject.get(session, server.url(path), "P")
    await subject.get(session, server.url("/gone"), "Q", default=None)
    task = asyncio.create_task(subject.get(session, server.url("/held"), "P"))
    await held.arrived

    where = {"http.request.method": "GET", "server.address": "127.0.0.1", "server.port": server.port}
    retried, project = "otel_connector.retried", "otel_connector.project"
    good = {**where, project: "P", "otel_connector.success": True, retried: False, "http.response.status_code": 200}
    bad = {**where, project: "Q", "otel_connector.success": False, retried: False, "http.response.status_code": 404}
    data = collect(sdk)
    durations = data.pop("http.client.request.duration")
    assert [(point.count, dict(point.attributes)) for point in durations] == [
        (2, good),
        (1, {**good, retried: True}),
        (1, {**bad, "error.type": "404"}),
    ]
    assert tuple(durations[0].explicit_bounds) == (
        *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
        *(30, 60, 120, 300),
    )
    del where["http.request.method"]
    retry = {**where, project: "P", "otel_connector.reason": "status_503"}
    (delay,) = data.pop("otel_connector.retry.delay")
    assert (dict(delay.attributes), delay.value > 0) == (retry, True)
    where["http.request.method"] = "GET"
    assert values(data) == {
        "http.client.active_requests": [(1, where)],
        "otel_connector.received": [(36, {"otel_connector.project": "P"}), (15, {"otel_connector.project": "Q"})],
        "otel_connector.retries": [(1, retry)],
        "otel_connector.host.paused": [(0, {})],
        "otel_connector.rows.written": [(4, {})],
        "otel_connector.rows.waiting": [(0, {})],
        "otel_connector.rows.lost": [(0, {})],
    }
    held.release()
    await task
    assert values(collect(sdk))["http.client.active_requests"] == [(0, where)]


def collect(sdk: SDK) -> dict[str, list[Any]]:
    data = sdk.metrics.get_metrics_data()
    assert data is not None
    (resource,) = data.resource_metrics
    (scope,) = resource.scope_metrics
    assert (scope.scope.name, scope.scope.version) == ("otel_connector", otel_connector.__version__)
    assert scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"
    return {metric.name: list(metric.data.data_points) for metric in scope.metrics}


def values(data: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    return {
        name: sorted(((point.value, dict(point.attributes)) for point in points), key=repr, reverse=True)
        for name, points in data.items()
        if hasattr(points[0], "value")
    }


async def test_metric_names_and_units_are_those_of_the_semantic_conventions(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/x", ok)
    subject = connector(None, sdk)
    await subject.get(session, server.url("/x"), "P")
    data = sdk.metrics.get_metrics_data()
    assert data is not None
    found = {metric.name: metric for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    assert found[http_metrics.HTTP_CLIENT_REQUEST_DURATION].unit == "s"
    assert found["http.client.active_requests"].unit == "{request}"
    assert found["otel_connector.received"].unit == "By"
    assert not [name for name in found if name.endswith("_total")]


async def test_the_exemplar_refers_to_the_span_of_the_call(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/x", ok)
    tracer = sdk.tracer_provider.get_tracer("caller")
    with tracer.start_as_current_span("around") as around:
        await connector(None, sdk).get(session, server.url("/x"), "P")
    (point,) = sdk.points("http.client.request.duration")
    (exemplar,) = point.exemplars
    span: Any = next(span for span in sdk.spans.get_finished_spans() if span.name == "GET")
    assert (exemplar.trace_id, exemplar.span_id) == (span.context.trace_id, span.context.span_id)
    assert span.parent is not None
    assert span.parent.span_id == around.get_span_context().span_id
    assert trace.get_current_span() is trace.INVALID_SPAN, "the call left no context attached"


async def test_the_number_of_hosts_and_projects_in_labels_is_bounded(
    session: aiohttp.ClientSession, sdk: SDK, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_metrics, "HOST_LIMIT", 3)
    monkeypatch.setattr(_metrics, "PROJECT_LIMIT", 2)
    subject = connector(None, sdk, n_tries=1)
    for number in range(6):
        await subject.get(session, f"http://127.0.0.1:{number + 1}/{number}", f"P{number}", default=None)
    points: list[Any] = sdk.points("http.client.request.duration")
    assert {point.attributes.get("server.port", "none") for point in points} == {1, 2, 3, "none"}
    assert {point.attributes["server.address"] for point in points} == {"127.0.0.1", "_other"}
    assert {point.attributes["otel_connector.project"] for point in points} == {"P0", "P1", "_other"}
    assert not [point for point in points if {"url.full", "otel_connector.call_id"} & set(point.attributes)]


async def test_connectors_of_one_meter_provider_report_their_sums(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    """The SDK calls only the first instrument's callback, which must cover all connectors; sums never decrease."""
    server.script("/x", ok)
    first, second = connector(log, sdk), connector(log, sdk)
    shared = otel_connector.CSVSpanExporter(log.path.with_name("shared.csv"))
    third, fourth = AsyncConnector(shared, **sdk.providers), AsyncConnector(shared, **sdk.providers)
    for subject in (first, second, third, fourth):
        await subject.get(session, server.url("/x"), "P")

    def totals() -> tuple[int, int]:
        data = values(collect(sdk))
        return data["otel_connector.received"][0][0], data["otel_connector.rows.written"][0][0]

    assert totals() == (48, 4)
    del first, second, third, fourth, subject
    gc.collect()
    assert totals() == (48, 4)


SECRETS = {
    "userinfo": "http://canary-user:canary-0@127.0.0.1:{port}/r",
    "query": "http://127.0.0.1:{port}/r?api_key=canary-1&X-Amz-Signature=canary-2&ACCESS_TOKEN=canary-3&q=seen",
    "percent": "http://127.0.0.1:{port}/r?api%5Fkey=canary-4",
    "fragment": "http://127.0.0.1:{port}/r#access_token=canary-5",
    "custom name": "http://127.0.0.1:{port}/r?session_id=canary-6",
    "refused": "http://127.0.0.1:1/r?token=canary-7",
    "invalid URL": "http://canary-8:canary-9@[::1?token=canary-10",
}


@pytest.mark.parametrize("url", SECRETS.values(), ids=SECRETS)
async def test_no_secret_is_in_the_log_the_error_the_span_or_the_metrics(
    url: str,
    server: FaultServer,
    session: aiohttp.ClientSession,
    log: Log,
    sdk: SDK,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "otel_connector")
    server.script("/r", [503, redirect("/end?sig=canary-11&Token=canary-12")])
    server.script("/end", respond(status=404))
    subject = connector(log, sdk, redact_params=[*otel_connector.DEFAULT_REDACTED_PARAMS, "session_id"])
    headers = {"Authorization": "Bearer canary-13", "Cookie": "c=canary-14"}
    if "@" in url:
        del headers["Authorization"]
    with pytest.raises(ConnectorError) as caught:
        await subject.get(session, url.format(port=server.port), "P", headers=headers)

    error, span = caught.value, sdk.span()
    shown = [log.path.read_text(), str(error), repr(error), error.url, span.to_json(), caplog.text]
    shown.append(repr(sdk.points("http.client.request.duration")))
    assert [text for text in shown if "canary" in text] == []
    if "seen" in url:
        assert "q=seen" in log.only().url


async def test_context_and_baggage_are_injected_unless_propagate_is_false(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/x", ok)
    token = context.attach(baggage.set_baggage("tenant", "t1"))
    try:
        mine = {"traceparent": "mine", "X-Own": "kept"}
        await connector(None, sdk).get(session, server.url("/x"), "P", headers=mine)
        await connector(None, sdk, propagate=False).get(session, server.url("/x"), "P", headers=mine)
    finally:
        context.detach(token)
    with_context, without = server.requests
    span: Any = sdk.spans.get_finished_spans()[0]
    assert with_context.headers["traceparent"].split("-")[2] == f"{span.context.span_id:016x}"
    assert with_context.headers["baggage"] == "tenant=t1"
    assert with_context.headers["X-Own"] == without.headers["X-Own"] == "kept"
    assert without.headers["traceparent"] == "mine"
    assert "baggage" not in without.headers
    assert mine == {"traceparent": "mine", "X-Own": "kept"}, "the caller's headers are not modified"


def test_private_names_that_the_package_uses_exist() -> None:
    """If one of these names is removed, the code falls back or fails: this test detects that first."""
    assert _propagation._SUPPRESS_HTTP == context._SUPPRESS_HTTP_INSTRUMENTATION_KEY
    assert callable(aiohttp.ClientSession._build_url)
    assert inspect.iscoroutinefunction(aiohttp.ClientSession._request), "get awaits it"
    assert list(inspect.signature(aiohttp.ClientSession._request).parameters)[:3] == ["self", "method", "str_or_url"]
    default = CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])
    assert {type(part) for part in default._propagators} == _propagation._W3C_PROPAGATORS
    assert _propagation._W3C_DEFAULT is propagate.get_global_textmap()
    assert "_middlewares" in aiohttp.ClientSession.ATTRS


class Carrier(dict[str, str]):
    """The headers that a propagator writes."""


@pytest.mark.parametrize(
    "propagator",
    [
        propagate.get_global_textmap(),
        CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()]),
        TraceContextTextMapPropagator(),
        W3CBaggagePropagator(),
        CompositePropagator([]),
    ],
    ids=["default", "like the default", "trace context", "baggage", "none"],
)
@pytest.mark.parametrize("around", ["nothing", "span", "remote span with a state", "baggage", "not sampled", "no SDK"])
async def test_the_headers_sent_are_those_that_the_global_propagator_writes(
    propagator: Any, around: str, server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/x", ok)
    state, inside, written = TraceState([("vendor", "7")]), Context(), Carrier()
    remote = SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1), trace_state=state)
    if around == "span":
        inside = trace.set_span_in_context(sdk.tracer_provider.get_tracer("t").start_span("server"), inside)
    elif around == "remote span with a state":
        inside = trace.set_span_in_context(trace.NonRecordingSpan(remote), inside)
    elif around == "baggage":
        inside = baggage.set_baggage("tenant", "t1", inside)
    providers: dict[str, Any] = {} if around == "no SDK" else {"tracer_provider": sdk.tracer_provider}
    if around == "not sampled":
        providers["tracer_provider"] = TracerProvider(ALWAYS_OFF, shutdown_on_exit=False)

    def writes(_: bytes) -> None:
        propagator.inject(written)  # inside the call, where its span is the current one

    before, token = propagate.get_global_textmap(), context.attach(inside)
    propagate.set_global_textmap(propagator)
    try:
        await AsyncConnector(None, **providers).get(session, server.url("/x"), "P", decode=writes)
    finally:
        propagate.set_global_textmap(before)
        context.detach(token)
    (request,) = server.requests
    names = {"traceparent", "tracestate", "baggage"}
    assert {name.lower(): value for name, value in request.headers.items() if name.lower() in names} == written


async def test_a_subclass_of_composite_propagator_is_used(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    class WithTenant(CompositePropagator):
        def inject(self, carrier: Any, context: Any = None, setter: Any = default_setter) -> None:
            super().inject(carrier, context, setter)
            setter.set(carrier, "x-tenant", "t1")

    server.script("/x", ok)
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(WithTenant([TraceContextTextMapPropagator()]))
    try:
        await connector(None, sdk).get(session, server.url("/x"), "P")
    finally:
        propagate.set_global_textmap(before)
    (request,) = server.requests
    assert request.headers["x-tenant"] == "t1"
    assert request.headers["traceparent"].split("-")[2] == f"{sdk.span().context.span_id:016x}"


class Project(str, Enum):
    """Project names as an enumeration, as applications may define them."""

    ALPHA = "alpha"


async def test_a_project_that_is_a_str_enum_member_is_recorded_as_a_plain_str(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", ok)
    await connector(log, sdk).get(session, server.url("/x"), Project.ALPHA)
    assert log.only().project == "alpha"
    assert type(sdk.span().attributes["otel_connector.project"]) is str


async def test_a_call_creates_no_trace_config_and_records_no_exception(
    server: FaultServer, sdk: SDK, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("must not be called")

    monkeypatch.setattr(aiohttp.TraceConfig, "__init__", refuse)
    monkeypatch.setattr("opentelemetry.sdk.trace.Span.record_exception", refuse)
    server.script("/x", 500)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(ConnectorError):
            await connector(None, sdk).get(session, server.url("/x"), "P")
        assert session.trace_configs == []


class Broken(SpanProcessor):
    """An application's processor that raises at the start and at the end of a span."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise RuntimeError("on_start")

    def on_end(self, span: Any) -> None:
        raise RuntimeError("on_end")


class RaisesOnEnd(SpanProcessor):
    def on_end(self, span: Any) -> None:
        raise RuntimeError("on_end")


@pytest.mark.parametrize("processor", [Broken(), RaisesOnEnd()])
async def test_an_error_in_a_span_processor_does_not_fail_the_call(
    processor: SpanProcessor,
    server: FaultServer,
    session: aiohttp.ClientSession,
    log: Log,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.script("/x", ok)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    subject = connector(log, tracer_provider=provider)
    remote = trace.NonRecordingSpan(trace.SpanContext(5, 6, is_remote=True))
    for parent in (trace.INVALID_SPAN, remote):
        with trace.use_span(parent):
            assert await subject.get(session, server.url("/x"), "P") == {"ok": True}
    assert [record.success for record in log.records()] == [True, True]
    assert len({record.call_id for record in log.records()}) == 2
    warnings = [record for record in caplog.records if record.name == "otel_connector"]
    assert len(warnings) == 1, "at most one warning per minute"
    assert "the call continues" in warnings[0].getMessage()


async def test_errors_in_propagator_span_and_histogram_do_not_fail_the_call(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    server.script("/x", [503, ok])
    monkeypatch.setattr(propagate, "inject", broken)
    monkeypatch.setattr("opentelemetry.sdk.trace.Span.add_event", broken)
    monkeypatch.setattr("opentelemetry.sdk.metrics.Histogram.record", broken)
    assert await connector(log, sdk).get(session, server.url("/x"), "P") == {"ok": True}
    assert log.only().success


LATE_SDK = """
import asyncio, sys
import aiohttp
from opentelemetry import metrics, trace
from opentelemetry.propagators.textmap import default_setter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otel_connector import AsyncConnector

async def main():
    subject, exporter, reader = AsyncConnector(None), InMemorySpanExporter(), InMemoryMetricReader()
    # The connector checks these to skip API calls that have no effect
    assert isinstance(subject._settings.telemetry._tracer, trace.ProxyTracer) and trace._TRACER_PROVIDER is None
    async with aiohttp.ClientSession() as session:
        await subject.get(session, sys.argv[1], "before")
        trace.set_tracer_provider(TracerProvider())
        trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
        metrics.set_meter_provider(MeterProvider([reader]))
        await subject.get(session, sys.argv[1], "after")
    print([span.attributes["otel_connector.project"] for span in exporter.get_finished_spans()])
    recorded = [metric for resource in reader.get_metrics_data().resource_metrics
                for scope in resource.scope_metrics for metric in scope.metrics if metric.unit == "s"]
    print([(point.count, point.attributes["otel_connector.project"]) for point in recorded[0].data.data_points])

asyncio.run(main())
"""


def test_an_sdk_set_up_between_two_calls_records_the_second(server: FaultServer, tmp_path: Path) -> None:
    server.script("/x", ok)
    done = run_python(["-c", LATE_SDK, server.url("/x")], tmp_path)
    assert (done.returncode, done.stdout.splitlines()) == (0, ["['after']", "[(1, 'after')]"]), done.stderr


@pytest.mark.parametrize("trace_id", [0, 1, 2**127 + 5, 2**128 - 1, 2**128, -1, True])
@pytest.mark.parametrize("span_id", [0, 1, 2**63 + 5, 2**64 - 1, 2**64, -1])
def test_a_call_id_is_the_trace_id_and_the_span_id_in_hexadecimal(trace_id: int, span_id: int) -> None:
    ids = SpanContext(trace_id, span_id, is_remote=False)
    assert _call_ids.call_id_of(ids) == f"{trace_id:032x}-{span_id:016x}"


@pytest.mark.parametrize("ids", [(1.5, 1), (1, (2,))])
def test_ids_that_are_not_integers_raise(ids: tuple[Any, Any]) -> None:
    context: Any = SimpleNamespace(trace_id=ids[0], span_id=ids[1])
    with pytest.raises(TypeError):
        _call_ids.call_id_of(context)
