"""Traces in a real Jaeger: after tail sampling, of a service, of a replayed log, and behind the links of a report."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from support.backends import Backends, collector, wait_for
from support.command_line import run_here
from support.documents import block_starting
from support.forked import run_python
from support.logs import Log
from support.processes import ROOT

from otel_connector import AsyncConnector, CallRecord, RetryPolicy
from otel_connector.testing import FaultServer, ok, slow_body

pytestmark = pytest.mark.backends

TAIL_SAMPLING = block_starting("yaml", "processors:\n  tail_sampling:")
SLOW = 2.0  # seconds, the threshold of the policy


def with_tail_sampling(config: str) -> str:
    """Return the collector's configuration with the processor of the page, which decides after 1 s instead of 30 s."""
    processor = TAIL_SAMPLING.removeprefix("processors:\n").replace("decision_wait: 30s", "decision_wait: 1s")
    assert processor != TAIL_SAMPLING
    config = config.replace("processors:\n", f"processors:\n{processor}", 1)
    old = "processors: [memory_limiter]\n      exporters: [otlp_grpc/jaeger]"
    assert old in config
    return config.replace(old, old.replace("[memory_limiter]", "[memory_limiter, tail_sampling]"))


async def calls_of_all_kinds(server: FaultServer, log: Log, provider: TracerProvider) -> dict[str, list[CallRecord]]:
    """Make calls, and return their rows by the reason to keep them."""
    steps: dict[str, Any] = {"rest": ok, "failed": 404, "retried": [503, ok], "slow": slow_body(SLOW + 0.2)}
    counts = {"rest": 500, "failed": 20, "retried": 20, "slow": 5}
    paths = [f"/{kind}/{number}" for kind, count in counts.items() for number in range(count)]
    for path in paths:
        server.script(path, steps[path.split("/")[1]])
    connector = AsyncConnector(log.path, retry=RetryPolicy(backoff=0.01), n_tries=2, tracer_provider=provider)
    async with aiohttp.ClientSession() as session:
        async for _ in connector.get_many(session, map(server.url, paths), "Sampled", max_concurrency=50):
            pass
    rows: dict[str, list[CallRecord]] = {}
    for row in log.records():
        rows.setdefault(row.url.split("/")[3], []).append(row)
    return rows


async def test_tail_sampling_keeps_every_failed_retried_and_slow_call(
    running: Backends, server: FaultServer, log: Log, tmp_path: Path
) -> None:
    with collector(tmp_path, running.jaeger, running.prometheus, with_tail_sampling) as sampling:
        provider = TracerProvider(resource=Resource({"service.name": "sampled"}), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(sampling.endpoints["http/protobuf"] + "/v1/traces")
        provider.add_span_processor(BatchSpanProcessor(exporter))
        rows = await calls_of_all_kinds(server, log, provider)
        provider.shutdown()
        expected = {row.call_id for kind in ("failed", "retried", "slow") for row in rows[kind]}
        assert len(expected) == 45

        def kept() -> set[str]:
            return {span["tags"]["otel_connector.call_id"] for span in running.jaeger.spans("sampled")}

        wait_for(lambda: expected <= kept())
    rest = kept() - expected
    assert rest <= {row.call_id for row in rows["rest"]}
    assert len(rest) < 50, "5 of 500 on average"


def test_a_request_to_the_service_is_one_trace_and_the_dependency_graph_is_right(
    running: Backends, tmp_path: Path
) -> None:
    arguments = [str(ROOT / "examples" / "service"), "--requests", "60", "--concurrency", "6"]
    done = run_python(arguments, tmp_path, **running.collector.environment())
    assert (done.returncode, done.stderr) == (0, "")
    callers, shop = (Log(tmp_path / "service-logs" / f"{name}.csv").records() for name in ("callers", "shop"))
    spans = running.jaeger.spans("callers")
    by_id = {span["spanID"]: span for span in spans}
    traces = Counter(span["traceID"] for span in spans)
    roots = {f"{span['traceID']}-{span['spanID']}" for span in spans if not span["references"]}
    assert roots == {row.call_id for row in callers}
    assert set(traces) == {row.call_id.partition("-")[0] for row in [*callers, *shop]}
    assert {row.call_id for row in shop} <= {f"{span['traceID']}-{span['spanID']}" for span in spans}
    parents = [reference["spanID"] for span in spans for reference in span["references"]]
    assert set(parents) <= set(by_id), "no span is missing"

    requests = Counter(span["operationName"].split("/")[1] for span in spans if span["tags"]["span.kind"] == "server")
    now = int(time.time() * 1000)
    edges = running.jaeger.get("dependencies", endTs=now, lookback=now)
    graph = {(edge["parent"], edge["child"]): edge["callCount"] for edge in edges}
    assert graph == {
        ("callers", "shop"): requests["offer"],
        ("shop", "price"): requests["price"],
        ("shop", "stock"): requests["stock"],
    }
    assert requests["offer"] == len(callers) == 60
    assert requests["price"] > 60, "some of them were retried"


async def test_a_log_without_telemetry_is_in_jaeger_after_a_replay_and_twice_after_a_second_one(
    running: Backends, server: FaultServer, log: Log, tmp_path: Path
) -> None:
    server.script("/ok", ok)
    connector = AsyncConnector(log.path, n_tries=1)
    async with aiohttp.ClientSession() as session:
        for path in ["/ok", "/gone"] * 10:
            await connector.get(session, server.url(path), "Replayed", default=None)
    rows = {row.call_id: row for row in log.records()}
    replay = ["replay", "logs.csv", "--service-name", "replayed"]
    for copies, option in ((1, []), (1, []), (2, ["--ignore-checkpoint"])):
        done = run_here(tmp_path, *replay, *option, **running.collector.environment())
        assert (done.code, done.error) == (0, "")
        assert "A backend that has spans of these calls already will have them twice." in done.out
        found = Counter(span["tags"]["otel_connector.call_id"] for span in running.jaeger.spans("replayed"))
        assert found == dict.fromkeys(rows, copies)

    report = tmp_path / "report.html"
    link = f"http://{running.jaeger.address}:16686/api/traces/{{trace_id}}"
    done = run_here(tmp_path, "review", "logs.csv", "--html", str(report), "--trace-url", link)
    assert done.code == 0
    ids = re.findall(r"/api/traces/(\w+)", report.read_text(encoding="utf-8"))
    assert len(set(ids)) >= 10, "the failed calls"
    for trace_id in set(ids):
        (trace,) = running.jaeger.get(f"traces/{trace_id}")
        assert {f"{span['traceID']}-{span['spanID']}" for span in trace["spans"]} <= set(rows)
