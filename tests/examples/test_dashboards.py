"""The dashboards of `examples/observability`: what they ask for is there, and what they show is what the log says.

A real Prometheus scrapes a program that makes calls of all kinds. Then every query of a dashboard and every rule runs
there.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiohttp
import promql_parser
import pytest
import yaml
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Histogram, InMemoryMetricReader, Metric, Sum
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import CollectorRegistry
from support.logs import Log
from support.processes import ROOT
from support.prometheus import Prometheus, Scraped, prometheus

from otel_connector import AsyncConnector, Attempt, CallRecord, CSVSpanExporter, HTTPStatusError, RetryPolicy
from otel_connector.testing import FaultServer, hold, json_body, ok, retry_after, silent, truncated

FOLDER = ROOT / "examples" / "observability"
RULES = FOLDER / "prometheus" / "rules.yml"
DASHBOARDS = {path.stem: json.loads(path.read_bytes()) for path in (FOLDER / "grafana" / "dashboards").glob("*.json")}
PLANNED = 200  # what stands in the dashboard's box for the URLs of the job
BATCH = 28  # calls of one

pytestmark = [
    pytest.mark.neighbours("promql_parser", "opentelemetry.exporter.prometheus", "grafana_foundation_sdk"),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Debian's package prometheus"),
]


def panels(dashboard: str) -> dict[str, dict[str, Any]]:
    """The panels that have queries, by title."""
    return {panel["title"]: panel for panel in DASHBOARDS[dashboard]["panels"] if "targets" in panel}


def the_query(dashboard: str, title: str, number: int = 0) -> str:
    return cast("str", panels(dashboard)[title]["targets"][number]["expr"])


def asked(query: str, **chosen: str) -> str:
    """A query as Grafana sends it: the time range holds all there is, and of each variable all values are chosen."""
    values = {"__rate_interval": "5m", "__range": "10m", "planned": str(PLANNED)}
    values |= dict.fromkeys(("job", "project", "host"), ".*") | chosen
    return re.sub(r"\$(\w+)", lambda name: values[name[1]], query)


QUERIES = [
    pytest.param(asked(target["expr"]), target.get("legendFormat", ""), id=f"{name}: {title}, {target['refId']}")
    for name in sorted(DASHBOARDS)
    for title, panel in panels(name).items()
    for target in panel["targets"]
]


# The calls.


@dataclass
class Example:
    """A program's calls, and the Prometheus that saw them.

    Attributes:
        prometheus: Has scraped the program all the time.
        rows: The log: two batches of the same calls.
        resends: Attempts after the first, by the reason for them, counted as they were announced.
        queued: Seconds that each batch's calls waited for their turn, as their spans have it.
        held_back: The hosts that asked for a pause, as the connectors say.
        at: When both batches were in Prometheus, and nothing else.
        end: When it had also seen rows that wait, and rows that are lost.
        rules: The rules and what came of them, then.
    """

    prometheus: Prometheus
    rows: list[CallRecord]
    resends: Counter[str]
    queued: list[float]
    held_back: set[str]
    at: float
    end: float
    rules: list[dict[str, Any]]

    def value(self, query: str, **chosen: str) -> float:
        """The one value of a query, for the batches."""
        ((_, value),) = self.prometheus.series(asked(query, **chosen), self.at)
        return value

    def values(self, query: str, *labels: str) -> dict[Any, float]:
        """A query's values by these labels, for the batches; only one label is not in a tuple."""
        found: dict[Any, float] = {}
        for metric, value in self.prometheus.series(asked(query), self.at):
            key = tuple(metric.get(label, "") for label in labels)
            assert key not in found
            found[key if len(labels) > 1 else key[0]] = value
        return found

    def of_a_batch(self, by: Callable[[CallRecord], str]) -> Counter[str]:
        """The calls of one batch, by what `by` says of their rows."""
        both = Counter(map(by, self.rows))
        assert not any(number % 2 for number in both.values())
        return Counter({key: number // 2 for key, number in both.items()})


@dataclass
class Connectors:
    """What makes the calls of a batch.

    Attributes:
        patient: Most of them.
        hasty: Has no time.
        told: Makes one call, and is asked for a pause.
    """

    patient: AsyncConnector
    hasty: AsyncConnector
    told: AsyncConnector


async def batch(by: Connectors, server: FaultServer, refused: str) -> None:
    """Make calls for two projects at two hosts, which end in most of the ways a call can end; some have to queue."""
    steps: dict[str, Any] = {
        "/ok": ok,
        "/long": json_body(["x" * 2_000]),
        "/missing": 404,
        "/down": 503,
        "/busy": retry_after(100, 503),
        "/cut": truncated(),
        "/silent": silent,
        **{f"/again/{number}": [503, ok] for number in range(8)},
    }
    for path, script in steps.items():
        server.script(path, script)
    prices = ["/ok"] * 7 + ["/missing", "/down"] + [f"/again/{number}" for number in range(4)]
    weather = ["/long"] * 6 + ["/cut"] + [f"/again/{number}" for number in range(4, 8)]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=15)) as session:
        calls = [by.patient.get(session, server.url(path), "Prices", default=None) for path in prices]
        calls.append(by.told.get(session, server.url("/busy"), "Prices", default=None))
        calls.append(by.patient.get(session, refused, "Prices", default=None))
        there = [server.url(path).replace("127.0.0.1", "localhost") for path in [*weather, "/silent"]]
        calls += [by.patient.get(session, url, "Weather", default=None) for url in there[:-1]]
        calls.append(by.hasty.get(session, there[-1], "Weather", default=None))
        calls.append(asyncio.wait_for(by.patient.get(session, there[-1], "Weather"), 0.1))
        ends = await asyncio.gather(*calls, return_exceptions=True)
    assert len(ends) == BATCH
    assert [type(end) for end in ends if isinstance(end, BaseException)] == [asyncio.TimeoutError]


def rows_in_trouble(folder: Path, providers: dict[str, Any], server: FaultServer) -> AsyncConnector:
    """Make three calls whose rows have nowhere to go: one waits, for the others there is no room in memory."""
    folder.mkdir()
    connector = AsyncConnector(CSVSpanExporter(folder / "logs.csv", backlog_bytes=200), **providers)
    shutil.rmtree(folder)

    async def calls() -> None:
        async with aiohttp.ClientSession() as session:
            for _ in range(3):
                await connector.get(session, server.url("/ok"), "Prices")

    asyncio.run(calls())
    return connector


class Queued(SpanProcessor):
    """Adds up what the spans say of the queue."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_end(self, span: ReadableSpan) -> None:
        seconds = (span.attributes or {}).get("otel_connector.queue.duration", 0.0)
        assert isinstance(seconds, float)
        self.seconds += seconds


@contextmanager
def traced(collector: str, registry: CollectorRegistry) -> Iterator[dict[str, Any]]:
    """Give providers that count their own spans, with a queue that is too small while the collector does not answer."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
        metrics = MeterProvider([PrometheusMetricReader(registry=registry)], shutdown_on_exit=False)
        traces = TracerProvider(shutdown_on_exit=False, meter_provider=metrics)
        queue = {"max_queue_size": 16, "max_export_batch_size": 8, "schedule_delay_millis": 10}
        exporter = OTLPSpanExporter(collector, meter_provider=metrics)
        traces.add_span_processor(BatchSpanProcessor(exporter, meter_provider=metrics, **queue))
        try:
            yield {"tracer_provider": traces, "meter_provider": metrics}
        finally:
            traces.shutdown()
            metrics.shutdown()


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    folder = tmp_path_factory.mktemp("example")
    log = Log(folder / "logs.csv")
    registry = CollectorRegistry()
    scraped = Scraped(registry)
    resends: Counter[str] = Counter()

    def on_retry(attempt: Attempt) -> None:
        resends[attempt.reason] += attempt.wait is not None

    with FaultServer() as closed:
        refused = closed.url("/")
    collector = hold()
    with FaultServer() as server, traced(server.url("/v1/traces"), registry) as providers:
        server.script("/v1/traces", [collector.step, 400, ok])
        options = {"n_tries": 2, "retry": RetryPolicy(backoff=0.001), "on_retry": on_retry, **providers}
        exporter = CSVSpanExporter(log.path)
        patient, hasty = (AsyncConnector(exporter, timeout=timeout, **options) for timeout in (30, 0.1))
        # Another each time, because the second call would wait for the end of the pause
        told = [AsyncConnector(exporter, n_tries=1, **providers) for _ in range(2)]
        queued = Queued()
        providers["tracer_provider"].add_span_processor(queued)
        asyncio.run(batch(Connectors(patient, hasty, told[0]), server, refused))
        first = queued.seconds
        # Every series has begun before the first scrape, so that a rate sees the second batch, and all of it
        with scraped.served() as port, prometheus(folder, port, RULES) as running:
            scraped.wait()
            asyncio.run(batch(Connectors(patient, hasty, told[1]), server, refused))
            collector.release()
            at = settled(scraped, running)
            waits = [first, queued.seconds - first]
            held_back = {host for connector in told for host in connector.stats().hosts_held_back}
            broken = rows_in_trouble(folder / "gone", providers, server)
            assert (broken.stats().rows_waiting, broken.stats().rows_lost) == (1, 2)
            providers["tracer_provider"].force_flush()
            end = settled(scraped, running)
            (group,) = running.get("rules")["groups"]
            yield Example(running, log.records(), resends, waits, held_back, at, end, group["rules"])
        asyncio.run(broken.aclose())


def settled(scraped: Scraped, running: Prometheus) -> float:
    """Wait until Prometheus holds what the metrics are now, and has evaluated the rules with it; return the time."""
    stored = scraped.wait()
    while running.rules_evaluated() <= stored:
        scraped.wait()
    return time.time()


def error_class(row: CallRecord) -> str:
    """What `error.type` is for a row, without the package's name; empty if it has none."""
    name = row.error.split(":")[0]
    return {"HTTPStatusError": str(row.response_code), "CancelledError": ""}.get(name, name)


def without_package(error_type: str) -> str:
    return error_type.removeprefix("otel_connector.")


def host(row: CallRecord) -> str:
    return row.url.split("/")[2].split(":")[0]


def project(row: CallRecord) -> str:
    return row.project


# What is asked for is there.


@pytest.mark.parametrize(("query", "legend"), QUERIES)
def test_a_panels_query_has_an_answer(query: str, legend: str, example: Example) -> None:
    promql_parser.parse(query)
    series = example.prometheus.series(query, example.end)
    assert series
    shown = set(re.findall(r"{{(\w+)}}", legend))
    assert not shown or shown & {label for labels, _ in series for label in labels}


@pytest.mark.parametrize("name", sorted(DASHBOARDS))
def test_a_variable_has_values(name: str, example: Example) -> None:
    there = {
        "job": ["example"],
        "otel_connector_project": ["Prices", "Weather"],
        "server_address": ["127.0.0.1", "localhost"],
    }
    queries = [one["query"]["query"] for one in DASHBOARDS[name]["templating"]["list"] if one["type"] == "query"]
    assert queries
    for query in queries:
        wanted = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        assert wanted is not None
        selector, label = wanted.groups()
        assert example.prometheus.get(f"label/{label}/values", **{"match[]": asked(selector)}) == there[label]


def test_the_rules_run(example: Example) -> None:
    assert {rule["health"] for rule in example.rules} == {"ok"}
    for rule in example.rules:
        promql_parser.parse(rule["query"])
        if rule["type"] == "recording":
            assert example.prometheus.series(rule["name"], example.end), rule["name"]
    assert {rule["name"]: rule["state"] for rule in example.rules if rule["type"] == "alerting"} == {
        "OtelConnectorRowsLost": "firing",
        "OtelConnectorRowsWaiting": "pending",
        "OtelConnectorErrorRateHigh": "pending",
        "OtelConnectorRetryStorm": "inactive",
        "OtelConnectorSlow": "inactive",
        "OtelConnectorSpansDropped": "firing",
    }


# What is shown is what the log says.


def test_totals_are_those_of_the_log(example: Example) -> None:
    rows = example.rows
    assert len(rows) == 2 * BATCH
    expected = {
        "Done": len(rows),
        "Progress": len(rows) / PLANNED,
        "Succeeded": sum(row.success for row in rows),
        "Failed": sum(not row.success for row in rows),
        "Received": sum(row.response_size for row in rows),
    }
    assert {title: example.value(the_query("collection", title)) for title in expected} == expected
    by_project = example.values(the_query("collection", "Done so far by project"), "otel_connector_project")
    assert by_project == Counter(map(project, rows))


def test_a_variable_narrows_the_totals(example: Example) -> None:
    for name in ("Prices", "Weather"):
        ours = [row for row in example.rows if row.project == name]
        assert example.value(the_query("collection", "Done"), project=name) == len(ours)
        size = sum(row.response_size for row in ours)
        assert example.value(the_query("collection", "Received"), project=name) == size
    both = {"host": "localhost", "project": "Prices|Weather"}
    here = [row for row in example.rows if host(row) == "localhost"]
    assert example.value(the_query("collection", "Done"), **both) == len(here)


def test_failures_and_retries_are_those_of_the_log(example: Example) -> None:
    columns = ("error_type", "otel_connector_project", "server_address")
    table = example.values(the_query("collection", "Failures"), *columns)
    shown = {(without_package(error), *where): number for (error, *where), number in table.items()}
    assert shown == Counter((error_class(row), row.project, host(row)) for row in example.rows if not row.success)
    resends = example.values(the_query("collection", "Retries by reason"), "otel_connector_reason")
    assert resends == example.resends
    assert set(resends) == {"connection", "status_503", "timeout", "truncated"}


def test_hosts_held_back_are_those_of_the_connectors(example: Example) -> None:
    assert example.value(the_query("collection", "Hosts held back")) == len(example.held_back) == 1


@pytest.mark.timing  # rates over what was scraped in time
def test_time_in_the_queue_is_that_of_the_spans(example: Example) -> None:
    assert example.value("sum(otel_connector_queue_time_seconds_total)") == pytest.approx(sum(example.queued))
    # A rate sees the second batch only
    per_call = example.value(the_query("collection", "Time in the queue"))
    assert per_call == pytest.approx(example.queued[1] / BATCH, rel=0.1)


def test_rows_are_those_of_the_log(example: Example) -> None:
    queries = [
        the_query("health", title) for title in ("Rows written", "Rows waiting", "Rows lost", "Calls without a row")
    ]
    assert [example.value(query) for query in queries] == [len(example.rows), 0, 0, 0]
    at_the_end = [example.prometheus.series(asked(query), example.end)[0][1] for query in queries]
    assert at_the_end == [len(example.rows), 1, 2, 0]


def test_rates_are_in_the_proportions_of_the_log(example: Example) -> None:
    """How long the time was that a rate is taken over is Prometheus' affair; it is the same for all series."""
    calls = example.value(the_query("service", "Calls"))
    assert calls > 0

    def part(dashboard: str, title: str, label: str, number: int = 0) -> dict[str, Any]:
        values = example.values(the_query(dashboard, title, number), label)
        parts = {without_package(name): value / calls * BATCH for name, value in values.items() if value}
        return {name: pytest.approx(number) for name, number in parts.items()}

    failures = example.of_a_batch(error_class)
    del failures[""]  # a success, or given up by its caller
    assert part("service", "Errors by class", "error_type") == failures
    assert part("service", "Calls by project", "otel_connector_project") == example.of_a_batch(project)
    assert part("service", "Calls by host", "server_address") == example.of_a_batch(host)
    assert part("collection", "Calls by host", "server_address") == example.of_a_batch(host)
    assert part("service", "Given up by their caller", "otel_connector_project") == {"Weather": 1}
    outcomes = {
        wanted: part("collection", "Calls by outcome", "", number)[""] for number, wanted in ((0, "1"), (1, "0"))
    }
    assert outcomes == example.of_a_batch(lambda row: f"{row.success:d}")
    size: Counter[str] = Counter()
    for row in example.rows:
        size[row.project] += row.response_size
    halves = {name: number / 2 for name, number in size.items()}
    assert part("collection", "Bytes by project", "otel_connector_project") == halves


@pytest.mark.timing  # rates over what was scraped in time
def test_shares_are_those_of_the_log(example: Example) -> None:
    failed = example.of_a_batch(lambda row: row.project if error_class(row) else "")
    share = {name: failed[name] / number for name, number in example.of_a_batch(project).items()}
    for query in (the_query("service", "Errors by project"), "job_project:otel_connector_errors_per_call:ratio_rate5m"):
        assert example.values(query, "otel_connector_project") == pytest.approx(share)
    in_all = (failed["Prices"] + failed["Weather"]) / BATCH
    assert example.value(the_query("service", "Errors")) == pytest.approx(in_all)
    retries = sum(example.resends.values()) / len(example.rows)
    for query in (the_query("service", "Retries"), "job:otel_connector_resends_per_call:ratio_rate5m"):
        assert example.value(query) == pytest.approx(retries)


def test_quantiles_lie_in_the_bucket_of_the_logs_own(example: Example) -> None:
    series = example.prometheus.series("sum by (le) (http_client_request_duration_seconds_bucket)", example.at)
    bounds = sorted(float(labels["le"]) for labels, _ in series)
    seconds = sorted(row.delta_t for row in sorted(example.rows, key=lambda row: row.t)[BATCH:])
    for title, share in (("Median", 0.5), ("p99", 0.99)):
        exact = seconds[math.ceil(share * BATCH) - 1]
        upper = next(bound for bound in bounds if bound >= exact)
        lower = max((bound for bound in bounds if bound < exact), default=0)
        assert lower <= example.value(the_query("service", title)) <= upper


# Names.


def otlp_name(metric: Metric) -> str:
    """What Prometheus 3 calls a metric that it is sent over OTLP (`UnderscoreEscapingWithSuffixes`)."""
    name = re.sub(r"[^a-zA-Z0-9_:]", "_", metric.name)
    unit = "" if (metric.unit or "").startswith("{") else {"s": "_seconds", "By": "_bytes"}[metric.unit or ""]
    return name + unit + ("_total" if isinstance(metric.data, Sum) and metric.data.is_monotonic else "")


async def test_scraped_names_are_those_of_otlp(server: FaultServer, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", raising=False)  # only our own
    registry, memory = CollectorRegistry(), InMemoryMetricReader()
    provider = MeterProvider([PrometheusMetricReader(registry=registry), memory], shutdown_on_exit=False)
    server.script("/data", [503, ok])
    connector = AsyncConnector(log.path, retry=RetryPolicy(backoff=0), meter_provider=provider)
    async with aiohttp.ClientSession() as session:
        await connector.get(session, server.url("/data"), "Names")
        with pytest.raises(HTTPStatusError):
            await connector.get(session, server.url("/missing"), "Names")
    data = memory.get_metrics_data()
    assert data is not None
    (scope,) = data.resource_metrics[0].scope_metrics
    sent: dict[str, set[str]] = {}
    for metric in scope.metrics:
        labels = {name.replace(".", "_") for point in metric.data.data_points for name in point.attributes or {}}
        suffixes = ("_bucket", "_count", "_sum") if isinstance(metric.data, Histogram) else ("",)
        sent |= {otlp_name(metric) + suffix: labels for suffix in suffixes}
    scraped: dict[str, set[str]] = {}
    for family in registry.collect():
        for sample in family.samples:
            labels = {name for name in sample.labels if not name.startswith("otel_scope_") and name != "le"}
            scraped.setdefault(sample.name, set()).update(labels)
    scraped.pop("target_info")
    provider.shutdown()
    assert scraped == sent


def test_every_metric_is_on_a_dashboard(example: Example) -> None:
    there = {name for name in example.prometheus.get("label/__name__/values") if re.match("otel_connector|http_", name)}
    asked_for = {name for query in QUERIES for name in re.findall(r"(\w+){", cast("str", query.values[0]))}
    assert {name for name in there if not name.endswith("_sum")} <= asked_for


def test_the_rules_are_those_of_the_example() -> None:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    assert [group["name"] for group in groups] == ["otel_connector"]
