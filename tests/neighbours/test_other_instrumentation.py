"""Tests with other instrumentation in the same process: each call has one CLIENT span and propagates its context."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from support.forked import run_python

from otel_connector.testing import FaultServer, ok

pytestmark = pytest.mark.neighbours("logfire", "sentry_sdk", "opentelemetry.instrumentation.asyncio")

CALLS = 5

# A program that also sets up other instrumentation. It prints its spans, and the output of the other instrumentation
PROGRAM = """
import asyncio, contextlib, json, sys
import aiohttp
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otel_connector import AsyncConnector, RetryPolicy

url, exporter, output = sys.argv[1], InMemorySpanExporter(), []
processor = SimpleSpanProcessor(exporter)
run, around = asyncio.run, contextlib.nullcontext

def provide():
    provider = TracerProvider()
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)

{setup}

async def main():
    connector = AsyncConnector("logs.csv", n_tries=3, retry=RetryPolicy(backoff=0.001))
    context.attach(baggage.set_baggage("tenant", "t1"))
    async with aiohttp.ClientSession() as session:
        with trace.get_tracer("program").start_as_current_span("job"), around():
            get = connector.get
            await asyncio.gather(*(get(session, f"{{url}}/{{number}}", "P") for number in range({calls})))
            {inside}

run(main())
{after}
spans = [(span.name, span.kind.name, f"{{span.context.trace_id:032x}}-{{span.context.span_id:016x}}",
          f"{{span.parent.span_id:016x}}" if span.parent else None) for span in exporter.get_finished_spans()]
print(json.dumps([spans, output]))
"""

CONTRIB = """
provide()
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.asyncio import AsyncioInstrumentor
from opentelemetry.instrumentation.logging import LoggingInstrumentor
for instrumentor in (AioHttpClientInstrumentor, AsyncioInstrumentor, LoggingInstrumentor):
    instrumentor().instrument()
"""

LOGFIRE = """
import logfire
logfire.configure(send_to_logfire=False, console=False, additional_span_processors=[processor])
logfire.instrument_aiohttp_client()
"""

# Sentry's own tracing: it has its own spans, one for each request that aiohttp sends
SENTRY = """
provide()
import sentry_sdk
from sentry_sdk.transport import Transport
class Keep(Transport):
    def capture_envelope(self, envelope):
        output.extend(item.payload.json for item in envelope.items)
sentry_sdk.init(dsn="http://key@sentry.invalid/1", transport=Keep, auto_enabling_integrations=False, {more})
"""

SENTRY_TRACING = (
    """
from sentry_sdk.integrations.aiohttp import AioHttpIntegration as Integration
"""
    + SENTRY.format(more="traces_sample_rate=1.0, integrations=[Integration()]")
    + "around = lambda: sentry_sdk.start_transaction(name='job')"
)

SENTRY_OVER_OTEL = """
from sentry_sdk.integrations.otlp import OTLPIntegration as Integration
""" + SENTRY.format(more="integrations=[Integration(setup_otlp_traces_exporter=False, setup_propagator=False)]")

UVLOOP = """
provide()
import uvloop
run = uvloop.run
"""

BARE_REQUEST = 'await (await session.get(f"{url}/bare")).read()'  # shows that the instrumentation is active

SETUPS = {
    "contrib's aiohttp, asyncio and logging": (CONTRIB, BARE_REQUEST, ""),
    "Logfire": (LOGFIRE, BARE_REQUEST, ""),
    "Sentry": (SENTRY_TRACING, "", "sentry_sdk.flush()"),
    "Sentry over OpenTelemetry": (SENTRY_OVER_OTEL, 'sentry_sdk.capture_message("inside")', "sentry_sdk.flush()"),
    "uvloop": (UVLOOP, "output.append(type(asyncio.get_running_loop()).__module__)", ""),
    "uvloop and contrib's": (UVLOOP + CONTRIB.replace("provide()", ""), BARE_REQUEST, ""),
}


def run_with(name: str, server: FaultServer, folder: Path) -> tuple[list[list[Any]], list[Any]]:
    """Run the program with this instrumentation. Return its spans and the output of the instrumentation."""
    for number in range(CALLS):
        server.script(f"/{number}", [503, ok])
    server.script("/bare", ok)
    setup, inside, after = SETUPS[name]
    program = PROGRAM.format(setup=setup, inside=inside or "pass", after=after, calls=CALLS)
    (folder / "program.py").write_text(program)  # in a file: Logfire reads the source of its caller
    done = run_python(["program.py", f"http://127.0.0.1:{server.port}"], folder)
    assert (done.returncode, done.stderr) == (0, "")
    spans, output = json.loads(done.stdout)
    return spans, output


@pytest.mark.parametrize("name", SETUPS)
def test_each_call_has_one_client_span_and_propagates_its_context(
    name: str, server: FaultServer, tmp_path: Path
) -> None:
    spans, output = run_with(name, server, tmp_path)
    with (tmp_path / "logs.csv").open(newline="", encoding="utf-8") as file:
        rows = [row["call_id"] for row in csv.DictReader(file)]
    clients = [(call_id, parent) for _, kind, call_id, parent in spans if kind == "CLIENT"]
    (job,) = (call_id for name, _, call_id, _ in spans if name == "job")
    bare = [request for request in server.requests if request.path == "/bare"]
    assert len(rows) == CALLS
    assert len(clients) == CALLS + len(bare)
    assert {call_id for call_id, _ in clients} >= set(rows)
    assert {parent for _, parent in clients} == {job.split("-")[1]}
    assert {call_id.split("-")[0] for call_id in rows} == {job.split("-")[0]}

    sent = ["-".join(request.headers["traceparent"].split("-")[1:3]) for request in server.requests]
    assert sorted(sent) == sorted(rows * 2 + [call_id for call_id, _ in clients if call_id not in rows])
    assert all("tenant=t1" in request.headers["baggage"] for request in server.requests)

    if name == "Sentry":
        (transaction,) = (item for item in output if item.get("type") == "transaction")
        assert [span["op"] for span in transaction["spans"]] == ["http.client"] * 2 * CALLS, (
            "Sentry's own spans, one for each request"
        )
        assert all("sentry-trace" in request.headers for request in server.requests), "Sentry's tracing is active"
    if name == "Sentry over OpenTelemetry":
        (event,) = (item for item in output if item.get("message") == "inside")
        assert (event["contexts"]["trace"]["trace_id"], event["contexts"]["trace"]["span_id"]) == tuple(job.split("-"))
    if name == "uvloop":
        assert output == ["uvloop"]
    assert len(bare) == (BARE_REQUEST in SETUPS[name])
