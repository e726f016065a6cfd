"""`attempt_spans=True`: an INTERNAL span for the call and one CLIENT span below it for each attempt."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode
from support.logs import Log
from support.sdk import SDK, points

from otel_connector import COLUMNS, AsyncConnector, ConnectorError, DeadlineExceeded, RateLimiterFailed, RetryPolicy
from otel_connector.testing import (
    FakeClock,
    FaultServer,
    garbage,
    hold,
    ok,
    redirect,
    reset,
    respond,
    silent,
    truncated,
)


def connector(log: Log | None, sdk: SDK | None, **options: Any) -> AsyncConnector:
    providers = sdk.providers if sdk else {}
    arguments = {"n_tries": 3, "timeout": 0.3, "attempt_spans": True, "clock": FakeClock(), **providers, **options}
    return AsyncConnector(log.path if log else None, **arguments)


def times_of(span: ReadableSpan) -> tuple[int, int]:
    """Start and end in Unix nanoseconds."""
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def call_and_attempt_spans(sdk: SDK) -> tuple[Any, list[Any]]:
    """Return the span of the call and those of its attempts, and check how they are related."""
    spans: list[Any] = [*sdk.spans.get_finished_spans()]
    *attempts, call = spans
    assert (call.name, call.kind) == ("otel_connector.get", SpanKind.INTERNAL)
    for attempt in attempts:
        assert (attempt.name, attempt.kind) == ("GET", SpanKind.CLIENT)
        assert attempt.parent.span_id == call.context.span_id
        assert times_of(call)[0] <= times_of(attempt)[0] <= times_of(attempt)[1] <= times_of(call)[1]
        assert attempt.events == ()
    assert call.events == ()
    return call, attempts


def assert_call_span_has_only_the_row_fields(call: ReadableSpan, log: Log) -> None:
    record, attributes = log.only(), dict(call.attributes or {})
    names = {name for name in COLUMNS if getattr(record, name) not in {None, ""}}
    assert {key.removeprefix("otel_connector.") for key in attributes} - {"queue.duration", "error.type"} == names
    assert call.context is not None
    assert record.call_id == f"{call.context.trace_id:032x}-{call.context.span_id:016x}"


async def test_each_attempt_has_its_own_span(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", [503, truncated(16, 64), ok])
    assert await connector(log, sdk).get(session, server.url("/x", token="s"), "P") == {"ok": True}
    call, attempts = call_and_attempt_spans(sdk)
    assert_call_span_has_only_the_row_fields(call, log)
    assert call.status.status_code is StatusCode.UNSET

    common = {
        "http.request.method": "GET",
        "url.full": server.url("/x", token="REDACTED"),
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "network.protocol.version": "1.1",
    }
    assert [dict(attempt.attributes) for attempt in attempts] == [
        {**common, "http.response.status_code": 503, "error.type": "503", "otel_connector.attempt.number": 1},
        {
            **common,
            "http.response.status_code": 200,
            "error.type": "otel_connector.BodyTruncated",
            "http.request.resend_count": 1,
            "otel_connector.attempt.number": 2,
            "otel_connector.retry.reason": "status_503",
            "otel_connector.retry.wait": 0.25,
        },
        {
            **common,
            "http.response.status_code": 200,
            "http.request.resend_count": 2,
            "otel_connector.attempt.number": 3,
            "otel_connector.retry.reason": "truncated",
            "otel_connector.retry.wait": 0.5,
        },
    ]
    assert [attempt.status.status_code for attempt in attempts] == [
        StatusCode.ERROR,
        StatusCode.ERROR,
        StatusCode.UNSET,
    ]
    assert attempts[0].status.description is None, "the status code needs no description"
    assert attempts[1].status.description.startswith("BodyTruncated: the body ended after 16 bytes")


async def test_each_attempt_sends_its_own_trace_context(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/x", [503, ok])
    await connector(None, sdk).get(session, server.url("/x"), "P")
    call, attempts = call_and_attempt_spans(sdk)
    assert [request.headers["traceparent"][:-3] for request in server.requests] == [
        f"00-{call.context.trace_id:032x}-{attempt.context.span_id:016x}" for attempt in attempts
    ]


async def test_span_times_are_those_of_the_connectors_clock(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", [503, 503, ok])
    await connector(log, sdk).get(session, server.url("/x"), "P")
    call, attempts = call_and_attempt_spans(sdk)
    assert [(attempt.start_time - call.start_time) / 1e9 for attempt in attempts] == [0, 0.25, 0.75]
    assert (call.end_time - call.start_time) / 1e9 == log.only().delta_t == 0.75


@pytest.mark.parametrize(
    ("step", "error_type", "status"),
    [
        (404, "404", 404),
        (silent, "otel_connector.AttemptTimeout", None),
        (garbage, "otel_connector.MalformedResponse", None),
    ],
    ids=str,
)
async def test_a_failed_call_and_its_attempts_have_the_same_error_type(
    step: Any,
    error_type: str,
    status: int | None,
    server: FaultServer,
    session: aiohttp.ClientSession,
    log: Log,
    sdk: SDK,
) -> None:
    server.script("/x", step)
    with pytest.raises(ConnectorError) as caught:
        await connector(log, sdk, n_tries=2).get(session, server.url("/x"), "P")
    call, attempts = call_and_attempt_spans(sdk)
    assert_call_span_has_only_the_row_fields(call, log)
    assert len(attempts) == caught.value.attempts == len(server.requests)
    for span in (call, *attempts):
        assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, error_type)
    assert [attempt.attributes.get("http.response.status_code") for attempt in attempts] == [status] * len(attempts)
    assert call.attributes.get("otel_connector.response_code") == status
    (point,) = sdk.points("otel_connector.call.duration")
    retried = len(attempts) > 1
    assert (point.count, point.attributes["error.type"]) == (1, error_type)
    assert point.attributes["otel_connector.retried"] == retried
    requests = sdk.points("http.client.request.duration")
    assert [(each.count, each.attributes["otel_connector.retried"]) for each in requests] == [
        (1, again) for again in (False, True)[: len(attempts)]
    ]
    assert {each.attributes["error.type"] for each in requests} == {error_type}
    seconds = [(span.end_time - span.start_time) / 1e9 for span in attempts]
    assert [each.sum for each in requests] == pytest.approx(seconds)


async def test_an_exceeded_deadline_is_the_error_of_the_call_and_of_its_attempt(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", silent)
    with pytest.raises(DeadlineExceeded):
        await connector(log, sdk, timeout=30, deadline=0.1).get(session, server.url("/x"), "P")
    call, (attempt,) = call_and_attempt_spans(sdk)
    assert {span.attributes["error.type"] for span in (call, attempt)} == {"otel_connector.DeadlineExceeded"}
    assert attempt.status.description == log.only().error


async def test_a_call_that_fails_before_its_first_attempt_has_no_attempt_span(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    def broken(host: str) -> Any:
        raise OSError("x")

    with pytest.raises(RateLimiterFailed):
        await connector(log, sdk, rate_limiter=broken).get(session, server.url("/x"), "P")
    call, attempts = call_and_attempt_spans(sdk)
    assert attempts == []
    assert_call_span_has_only_the_row_fields(call, log)


async def test_cancellation_ends_both_spans_without_an_error(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    held = hold()
    server.script("/x", held.step)
    task = asyncio.create_task(connector(log, sdk, timeout=9).get(session, server.url("/x"), "P"))
    await held.arrived
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    call, (attempt,) = call_and_attempt_spans(sdk)
    for span in (call, attempt):
        assert span.status.status_code is StatusCode.UNSET
        assert "error.type" not in span.attributes
    assert log.only().error == "CancelledError"


async def test_the_resend_count_of_an_attempt_includes_earlier_redirects_and_resends(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/x", [reset, redirect("/y"), ok])
    server.script("/y", [503, ok])
    await connector(None, sdk).get(session, server.url("/x"), "P")
    call, attempts = call_and_attempt_spans(sdk)
    assert [request.path for request in server.requests] == ["/x", "/x", "/y", "/x"]
    assert [attempt.attributes.get("http.request.resend_count") for attempt in attempts] == [2, 3]
    assert "http.request.resend_count" not in call.attributes


async def test_the_span_of_the_call_is_a_child_of_the_callers_span(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/x", ok)
    tracer = sdk.tracer_provider.get_tracer("app")
    with tracer.start_as_current_span("job") as job:
        await connector(None, sdk).get(session, server.url("/x"), "P")
        assert trace.get_current_span() is job, "the call restored the current span"
    spans: list[Any] = [*sdk.spans.get_finished_spans()]
    attempt, call, parent = spans
    assert attempt.parent.span_id == call.context.span_id
    assert call.parent.span_id == parent.context.span_id


async def test_an_exemplar_refers_to_the_span_whose_duration_it_is(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/x", [503, ok])
    await connector(None, sdk).get(session, server.url("/x"), "P")
    call, attempts = call_and_attempt_spans(sdk)
    data = sdk.metrics.get_metrics_data()  # once: each collection forgets the exemplars
    assert data is not None
    found = [*points(data, "otel_connector.call.duration"), *points(data, "http.client.request.duration")]
    for point, span in zip(found, (call, *attempts), strict=True):
        (exemplar,) = point.exemplars
        assert (exemplar.trace_id, exemplar.span_id) == (span.context.trace_id, span.context.span_id)


async def test_an_unsampled_call_has_a_row_and_sends_its_trace_context(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", [503, ok])
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    assert await connector(log, None, tracer_provider=provider).get(session, server.url("/x"), "P") == {"ok": True}
    trace_id, span_id = log.only().call_id.split("-")
    sent = [request.headers["traceparent"].split("-") for request in server.requests]
    assert [(each[1], int(each[3], 16) & trace.TraceFlags.SAMPLED) for each in sent] == [(trace_id, 0)] * 2
    assert span_id not in {each[2] for each in sent}


@pytest.mark.parametrize("provider", [NoOpTracerProvider(), None], ids=["no-op", "none set up"])
async def test_without_an_sdk_only_the_trace_context_of_a_remote_parent_is_sent(
    provider: Any, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", [503, ok])
    subject = connector(log, None, tracer_provider=provider)
    assert await subject.get(session, server.url("/x"), "P") == {"ok": True}
    assert len(log.only().call_id) == 49
    assert not any("traceparent" in request.headers for request in server.requests), "generated IDs are never sent"

    remote = trace.SpanContext(5, 6, is_remote=True, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(remote)):
        assert await subject.get(session, server.url("/x"), "P") == {"ok": True}
    assert server.requests[-1].headers["traceparent"] == f"00-{5:032x}-{6:016x}-01", "the remote parent is passed on"
    assert log.records()[1].call_id.startswith(f"{5:032x}-")


class Broken(SpanProcessor):
    """An application's processor that raises for the spans of attempts."""

    def on_end(self, span: ReadableSpan) -> None:
        if span.kind is SpanKind.CLIENT:
            raise RuntimeError("on_end")


async def test_an_error_in_a_span_processor_does_not_fail_the_call(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    server.script("/x", [503, ok])
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Broken())
    subject = connector(log, None, tracer_provider=provider, retry=RetryPolicy(backoff=0))
    assert await subject.get(session, server.url("/x"), "P") == {"ok": True}
    assert log.only().success
    assert "the call continues" in caplog.text


@pytest.mark.parametrize("value", [1, "yes", None])
def test_a_bad_argument_is_named(value: object) -> None:
    with pytest.raises(TypeError, match=r"^attempt_spans must be True or False"):
        AsyncConnector(None, attempt_spans=value)  # type: ignore[arg-type]


# Where the time of a call went


class SlowLimiter:
    """Makes each attempt wait a little."""

    async def __aenter__(self) -> None:
        await asyncio.sleep(0.003)

    async def __aexit__(self, *_: object) -> None:
        pass


def microseconds(seconds: Any) -> int:
    """Return a time in whole microseconds; it must have no digits below."""
    assert isinstance(seconds, float)
    assert seconds == round(seconds, 6)
    return round(seconds * 1e6)


def assert_the_times_add_up(sdk: SDK) -> list[dict[str, Any]]:
    """Check that the spans of the attempts, the waits and the queues are exactly the span of the call.

    Returns:
        The attributes of each attempt, and of the call, about its time.
    """
    call, attempts = call_and_attempt_spans(sdk)
    found = [{**span.attributes} for span in (*attempts, call)]
    names = ("attempt.number", "retry.reason", "retry.wait", "retry.queue", "redirect.queue")
    times = [{name: each[key] for name in names if (key := f"otel_connector.{name}") in each} for each in found]
    before = [sum(microseconds(each.get(name, 0.0)) for name in ("retry.wait", "retry.queue")) for each in times]
    position = times_of(call)[0]
    for attempt, microseconds_before in zip(attempts, before, strict=False):
        assert times_of(attempt)[0] == position + microseconds_before * 1_000
        position = times_of(attempt)[1]
    assert times_of(call)[1] == position + before[-1] * 1_000
    microseconds(found[-1].get("otel_connector.queue.duration", 0.0))
    return times


REAL_TIME: dict[str, Any] = {"clock": None, "retry": RetryPolicy(backoff=0.004), "timeout": 5}


async def test_attempts_waits_and_queues_are_exactly_the_time_of_the_call(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/x", [503, truncated(16, 64), ok])
    subject = connector(None, sdk, **REAL_TIME, rate_limiter=SlowLimiter(), propagate=False)
    assert await subject.get(session, server.url("/x"), "P") == {"ok": True}
    first, second, third, call = assert_the_times_add_up(sdk)
    assert first == {"attempt.number": 1}
    assert second.pop("retry.queue") >= 0.003
    assert second.pop("retry.wait") >= 0.0
    assert second == {"attempt.number": 2, "retry.reason": "status_503"}
    assert (third["attempt.number"], third["retry.reason"]) == (3, "truncated")
    assert third["retry.queue"] >= 0.003
    assert call == {}


async def test_the_wait_of_a_redirect_is_within_the_span_of_its_attempt(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/x", [503, respond(302, headers=[("Location", "/y"), ("Retry-After", "4")])])
    server.script("/y", [ok])
    await connector(None, sdk, timeout=9).get(session, server.url("/x"), "P")
    _, second, _ = assert_the_times_add_up(sdk)
    _, (_, span) = call_and_attempt_spans(sdk)
    assert (second["redirect.queue"], times_of(span)[1] - times_of(span)[0]) == (4.0, 4 * 10**9)


@pytest.mark.parametrize("steps", [[404], [503], [silent]], ids=str)
async def test_the_times_of_a_failed_call_add_up(
    steps: list[Any], server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/x", steps)
    with pytest.raises(ConnectorError):
        await connector(None, sdk, **{**REAL_TIME, "timeout": 0.05}, n_tries=2).get(session, server.url("/x"), "P")
    assert_the_times_add_up(sdk)


async def test_the_wait_for_a_retry_that_is_not_made_is_on_the_span_of_the_call(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", 503)
    waits = asyncio.Event()
    policy = RetryPolicy(backoff=1e6, backoff_cap=1e6)  # with full jitter, a wait of some days
    subject = connector(log, sdk, **{**REAL_TIME, "retry": policy}, on_retry=lambda _: waits.set())
    task = asyncio.create_task(subject.get(session, server.url("/x"), "P"))
    await waits.wait()
    await asyncio.sleep(0.002)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    first, call = assert_the_times_add_up(sdk)
    assert first == {"attempt.number": 1}
    assert call.pop("retry.wait") >= 0.001
    assert call == {"retry.reason": "status_503"}


async def test_the_number_of_an_attempt_is_that_of_the_attempts_log(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    """A resend of aiohttp's own resend counts as an attempt."""
    server.script("/x", [reset, 503, ok])
    await connector(log, sdk, attempts=True).get(session, server.url("/x"), "P")
    _, attempts = call_and_attempt_spans(sdk)
    numbers = [attempt.attributes["otel_connector.attempt.number"] for attempt in attempts]
    assert numbers == [attempt.number for attempt in log.attempts()] == [2, 3]
