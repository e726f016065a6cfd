"""The log of 70 concurrent calls is complete and correct in every state that OpenTelemetry can be in."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from support.event_loops import run_on
from support.logs import Log
from support.otlp_receiver import Received, http_receiver

from otel_connector import AsyncConnector, ConnectorError
from otel_connector.testing import FakeClock, FaultServer, ok, redirect, respond, truncated

CALLS = 42
REMOTE_PARENT = SpanContext(0x1234567890ABCDEF1234567890ABCDEF, 0x1234567890ABCDEF, is_remote=True)

# The steps that the server plays for a URL, and the status code and the success that the row must have
KINDS: list[tuple[Any, int | None, bool]] = [
    (ok, 200, True),
    ([503, 503, ok], 200, True),
    (404, 404, False),
    (redirect("/end"), 200, True),
    ([429, truncated(), ok], 200, True),
    (respond(body=b"no json"), 200, False),
    (503, 503, False),
]


@dataclass
class Condition:
    """A state of OpenTelemetry, and the number of spans that must reach the collector."""

    spans: range
    sampler: Sampler | None = None  # None: no SDK is set up
    environment: dict[str, str] = field(default_factory=dict)
    remote_parent: bool = False
    contrib: bool = False
    carries_context: bool = True


CONDITIONS = {
    "no SDK": Condition(range(1), carries_context=False),
    "no SDK, remote parent": Condition(range(1), remote_parent=True),
    "always on": Condition(range(CALLS, CALLS + 1), ALWAYS_ON),
    "always off": Condition(range(1), ALWAYS_OFF),
    # 5 and 37 are five standard deviations from the mean
    "ratio 0.5": Condition(range(5, 38), ParentBased(TraceIdRatioBased(0.5))),
    "unsampled remote parent": Condition(range(1), ParentBased(ALWAYS_ON), remote_parent=True),
    "SDK disabled": Condition(range(1), ALWAYS_ON, {"OTEL_SDK_DISABLED": "true"}, carries_context=False),
    "values truncated at 16": Condition(
        range(CALLS, CALLS + 1), ALWAYS_ON, {"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "16"}
    ),
    "at most three attributes": Condition(range(CALLS, CALLS + 1), ALWAYS_ON, {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "3"}),
    "contrib active": Condition(range(CALLS, CALLS + 1), ALWAYS_ON, contrib=True),
}


async def call_all(connector: AsyncConnector, server: FaultServer) -> None:
    async with aiohttp.ClientSession() as session:

        async def one(number: int) -> object:
            try:
                return await connector.get(session, server.url(f"/{number}"), f"P{number % 3}")
            except ConnectorError as error:
                return error

        await asyncio.gather(*(one(number) for number in range(CALLS)))


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:opentelemetry"
)  # contrib and the SDK use names that they deprecate
@pytest.mark.parametrize("name", CONDITIONS)
def test_the_log_is_complete_and_correct_in_every_state(
    name: str,
    server: FaultServer,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    loop_name: str,
) -> None:
    condition = CONDITIONS[name]
    caplog.set_level(logging.CRITICAL, "opentelemetry")  # the SDK logs every value that it truncates
    received = Received()
    server.script("/end", ok)
    for number in range(CALLS):
        server.script(f"/{number}", KINDS[number % len(KINDS)][0])
    for variable, value in condition.environment.items():
        monkeypatch.setenv(variable, value)

    with ExitStack() as stack:
        endpoint = stack.enter_context(http_receiver(received))
        provider = make_provider(condition.sampler, f"{endpoint}/v1/traces")
        if provider is not None:
            stack.callback(provider.shutdown)
        if condition.contrib:
            AioHttpClientInstrumentor().instrument(tracer_provider=provider)
            stack.callback(AioHttpClientInstrumentor().uninstrument)
        if condition.remote_parent:
            stack.callback(context.detach, context.attach(trace.set_span_in_context(NonRecordingSpan(REMOTE_PARENT))))
        connector = AsyncConnector(log.path, True, 3, 5, tracer_provider=provider, clock=FakeClock())
        run_on(loop_name, call_all(connector, server))
        if provider is not None:
            provider.force_flush()

    records = {record.url: record for record in log.records()}
    ids = {record.call_id for record in records.values()}
    assert len(log.records()) == len(records) == len(ids) == CALLS
    for number in range(CALLS):
        _, code, success = KINDS[number % len(KINDS)]
        record = records[server.url(f"/{number}")]
        assert (record.project, record.response_code, record.success) == (f"P{number % 3}", code, success)
        if not record.redirect_url:
            assert server.statuses(f"/{number}")[-1] == code
        assert_sent_context_matches_the_row(condition, server, number, record.call_id)
    spans = received.call_ids()
    assert spans.total() in condition.spans
    assert set(spans) <= ids


def make_provider(sampler: Sampler | None, endpoint: str) -> TracerProvider | None:
    if sampler is None:
        return None
    provider = TracerProvider(sampler, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return provider


def assert_sent_context_matches_the_row(condition: Condition, server: FaultServer, number: int, call_id: str) -> None:
    """The trace context that was sent has the IDs of the row; IDs that were generated without an SDK are not sent."""
    for request in server.received(f"/{number}"):
        parent = request.headers.get("traceparent")
        if not condition.carries_context:
            assert parent is None
        elif condition.sampler is None:
            assert parent == "00-1234567890abcdef1234567890abcdef-1234567890abcdef-00", (
                "the remote parent is passed on unchanged"
            )
        else:
            assert parent is not None
            assert parent.split("-")[1:3] == call_id.split("-")
            if condition.remote_parent:
                assert parent.split("-")[3] == f"{TraceFlags.DEFAULT:02x}"
    if condition.remote_parent:
        assert call_id.split("-", maxsplit=1)[0] == f"{REMOTE_PARENT.trace_id:032x}"
