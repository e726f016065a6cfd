"""Correlation: exemplars refer to traces, spans to rows, log lines to traces; and the effect of sampling."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from support.forked import run_python
from support.logs import Log
from support.sdk import SDK

from otel_connector import AsyncConnector
from otel_connector._telemetry import _names
from otel_connector.testing import FakeClock, FaultServer, ok

# One call that is retried and one that fails, in a program whose callbacks log as well
PROGRAM = """
import asyncio, json, logging, sys
import aiohttp
from opentelemetry import metrics, trace
from opentelemetry.instrumentation.logging import LoggingInstrumentor
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry._logs import set_logger_provider
from otel_connector import AsyncConnector, RetryPolicy

url, attempt_spans = sys.argv[1], sys.argv[2] == "attempt spans"
spans, logs, reader, lines = InMemorySpanExporter(), InMemoryLogRecordExporter(), InMemoryMetricReader(), []
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(spans))
metrics.set_meter_provider(MeterProvider([reader]))
set_logger_provider(LoggerProvider())
from opentelemetry._logs import get_logger_provider
get_logger_provider().add_log_record_processor(SimpleLogRecordProcessor(logs))

class Lines(logging.Handler):
    def emit(self, record):
        lines.append([record.name, record.otelTraceID, record.otelSpanID])

logging.basicConfig(level=logging.INFO, handlers=[Lines()])
LoggingInstrumentor().instrument(inject_trace_context=True)
mine = logging.getLogger("mine")

def decode(body):
    mine.info("decoding %d bytes", len(body))
    return json.loads(body)

async def main():
    connector = AsyncConnector("logs.csv", n_tries=2, retry=RetryPolicy(backoff=0.001), attempt_spans=attempt_spans,
                               on_retry=lambda attempt: mine.info("again"))
    async with aiohttp.ClientSession() as session:
        await connector.get(session, url + "/flaky", "P", decode=decode)
        await connector.get(session, url + "/gone", "P", default=None)
    mine.info("outside")

asyncio.run(main())
name = "otel_connector.call.duration" if attempt_spans else "http.client.request.duration"
exemplars = [[f"{e.trace_id:032x}", f"{e.span_id:016x}"]
             for r in reader.get_metrics_data().resource_metrics for s in r.scope_metrics for m in s.metrics
             if m.name == name for p in m.data.data_points for e in p.exemplars]
print(json.dumps({
    "spans": {s.attributes["otel_connector.call_id"]: f"{s.context.trace_id:032x}-{s.context.span_id:016x}"
              for s in spans.get_finished_spans() if "otel_connector.call_id" in s.attributes},
    "all spans": [[f"{s.context.trace_id:032x}", f"{s.context.span_id:016x}"] for s in spans.get_finished_spans()],
    "exemplars": exemplars,
    "lines": lines,
    "log records": [[r.log_record.body, f"{r.log_record.trace_id:032x}", f"{r.log_record.span_id:016x}"]
                    for r in logs.get_finished_logs()],
}))
logging.raiseExceptions = False  # from Python 3.12 on contrib's handler starts a thread at exit, which fails
"""


@pytest.mark.parametrize("how", ["events", "attempt spans"])
def test_spans_exemplars_and_log_lines_refer_to_the_rows_of_their_calls(
    how: str, server: FaultServer, tmp_path: Path
) -> None:
    server.script("/flaky", [503, ok])
    server.script("/gone", 404)
    done = run_python(["-c", PROGRAM, f"http://127.0.0.1:{server.port}", how], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    output: dict[str, Any] = json.loads(done.stdout)
    with (tmp_path / "logs.csv").open(newline="", encoding="utf-8") as file:
        flaky, gone = (row["call_id"] for row in csv.DictReader(file))

    assert output["spans"] == {flaky: flaky, gone: gone}, "a span refers to its row by an attribute and by its IDs"
    assert sorted("-".join(each) for each in output["exemplars"]) == sorted([flaky, gone])

    # A log line has the trace ID of its call and the ID of a span of that trace: the attempt's span if there is one
    in_flaky, in_gone = (call_id.partition("-")[0] for call_id in (flaky, gone))
    lines = [(name, trace_id) for name, trace_id, _ in output["lines"]]
    again, decoding, failed, outside = lines[1], lines[2], lines[3], lines[4]
    assert [lines[0][0], again[0]] == ["otel_connector.calls", "mine"]
    assert {lines[0][1], again[1], decoding[1]} == {in_flaky}
    assert failed == ("otel_connector.calls", in_gone)
    assert outside == ("mine", "0")
    assert [[trace_id, span_id] in output["all spans"] for _, trace_id, span_id in output["lines"]] == [True] * 4 + [
        False
    ]
    exported = [(body, trace_id, span_id) for body, trace_id, span_id in output["log records"]]
    assert [trace_id for _, trace_id, _ in exported] == [in_flaky] * 3 + [in_gone, f"{0:032x}"]
    if how == "events":
        assert ["-".join(each[1:]) for each in exported[:4]] == [flaky] * 3 + [gone]


async def test_log_and_metrics_are_complete_if_two_percent_of_calls_is_sampled(
    server: FaultServer, sdk: SDK, log: Log
) -> None:
    kept = InMemorySpanExporter()
    provider = TracerProvider(ParentBased(TraceIdRatioBased(0.02)), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    calls = 700
    for number in range(calls):
        server.script(f"/{number}", [503, ok] if number % 10 == 0 else 404 if number % 10 == 1 else ok)
    subject = AsyncConnector(
        log.path, n_tries=2, clock=FakeClock(), tracer_provider=provider, meter_provider=sdk.meter_provider
    )
    async with aiohttp.ClientSession() as session:
        urls = (server.url(f"/{number}") for number in range(calls))
        async for _ in subject.get_many(session, urls, "P", max_concurrency=20):
            pass

    records = log.records()
    spans = kept.get_finished_spans()
    assert 1 <= len(spans) <= 40, "14 on average; 0 or more than 40 are extremely unlikely"
    assert len(records) == calls
    assert {str((span.attributes or {})[_names.FIELD_PREFIX + "call_id"]) for span in spans} <= {
        r.call_id for r in records
    }
    durations = sdk.points("http.client.request.duration")
    assert sum(point.count for point in durations) == calls
    assert sum(point.sum for point in durations) == pytest.approx(sum(record.delta_t for record in records))
    for success in (True, False):
        counted = sum(point.count for point in durations if point.attributes["otel_connector.success"] is success)
        assert counted == sum(record.success is success for record in records)
    (received,) = sdk.points("otel_connector.received")
    assert received.value == sum(record.response_size for record in records)
    (retries,) = sdk.points("otel_connector.retries")
    assert retries.value == subject.stats().retries == calls // 10
