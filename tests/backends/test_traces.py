"""Traces in a real Jaeger: after tail sampling, of a service, of a replayed log, and behind the links of a report."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from support.backends import Backends, Collector, collector, wait_for
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


@contextmanager
def sending(to: Collector, service: str) -> Iterator[TracerProvider]:
    """Yield a provider of that service, which has sent all spans at the end of the block."""
    provider = TracerProvider(resource=Resource({"service.name": service}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(to.endpoints["http/protobuf"] + "/v1/traces")))
    try:
        yield provider
    finally:
        provider.shutdown()


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


def test_tail_sampling_keeps_every_failed_retried_and_slow_call(
    running: Backends, server: FaultServer, log: Log, tmp_path: Path
) -> None:
    with collector(tmp_path, running.jaeger, running.prometheus, with_tail_sampling) as sampling:
        with sending(sampling, "sampled") as provider:
            rows = asyncio.run(calls_of_all_kinds(server, log, provider))
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

    def complete() -> Any:
        """Return all spans when each request of the shop has its SERVER span in an upstream."""
        spans = running.jaeger.spans("callers", 60 + 60 + 120)
        calls = [span["tags"] for span in spans if span["tags"].get("otel_connector.project") in {"price", "stock"}]
        sent = sum(1 + call.get("http.request.resend_count", 0) for call in calls)
        return spans if len(calls) == 120 and len(spans) == 60 + 60 + 120 + sent else None

    spans = wait_for(complete)
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
        ("shop", "shop"): len(shop),  # a request and the calls below it
        ("shop", "price"): requests["price"],
        ("shop", "stock"): requests["stock"],
    }
    assert requests["offer"] == len(callers) == 60
    assert requests["price"] > 60, "some of them were retried"


def test_a_replayed_log_is_in_jaeger_and_calls_that_it_had_are_there_twice(
    running: Backends, server: FaultServer, log: Log, tmp_path: Path
) -> None:
    """Jaeger shows the equal copies of a second replay once."""

    async def calls(**options: Any) -> set[str]:
        connector = AsyncConnector(log.path, n_tries=1, **options)
        async with aiohttp.ClientSession() as session:
            for path in ["/ok", "/gone"] * 10:
                await connector.get(session, server.url(path), "Replayed", default=None)
        return {row.call_id for row in log.records()}

    server.script("/ok", ok)
    with sending(running.collector, "replayed") as provider:
        live = asyncio.run(calls(tracer_provider=provider))
    rows = asyncio.run(calls())
    assert (len(live), len(rows)) == (20, 40)

    def shown(least: int) -> Counter[str]:
        return Counter(span["tags"]["otel_connector.call_id"] for span in running.jaeger.spans("replayed", least))

    assert shown(20) == Counter(live)
    for option, sent in (((), 40), ((), 0), (("--ignore-checkpoint",), 40)):
        arguments = ("replay", "logs.csv", "--service-name", "replayed", *option)
        done = run_here(tmp_path, *arguments, **running.collector.environment())
        assert (done.code, done.error) == (0, "")
        notice, result = done.out.splitlines()
        assert notice.endswith("A backend that has spans of these calls already will have them twice.")
        assert f": {sent}" in result
        assert shown(60) == {call_id: 2 if call_id in live else 1 for call_id in rows}

    report = tmp_path / "report.html"
    link = f"http://{running.jaeger.address}:16686/api/traces/{{trace_id}}"
    done = run_here(tmp_path, "review", "logs.csv", "--html", str(report), "--trace-url", link)
    assert done.code == 0
    ids = re.findall(r"/api/traces/(\w+)", report.read_text(encoding="utf-8"))
    assert len(set(ids)) >= 10, "the failed calls"
    for trace_id in set(ids):
        (trace,) = running.jaeger.get(f"traces/{trace_id}")
        assert {f"{span['traceID']}-{span['spanID']}" for span in trace["spans"]} <= set(rows)
