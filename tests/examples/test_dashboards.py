"""Tests of the dashboards in `examples/observability`: their queries return data, and the values agree with the log.

A program makes calls of all kinds and sends its metrics to a real Prometheus. Then every query of a dashboard and every
rule is evaluated there.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiohttp
import promql_parser
import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import CollectorRegistry
from support.backends import EXAMPLE, Prometheus, prometheus
from support.logs import Log

from otel_connector import AsyncConnector, Attempt, CallRecord, CSVSpanExporter, RetryPolicy
from otel_connector.testing import FaultServer, hold, json_body, ok, retry_after, silent, truncated

DASHBOARDS = {path.stem: json.loads(path.read_bytes()) for path in (EXAMPLE / "grafana" / "dashboards").glob("*.json")}
PLANNED = 200  # the number of URLs that is entered in the dashboard
BATCH = 28  # calls per batch
ROUNDED = 4 * BATCH * 1e-6  # seconds: a span and an attempt have whole microseconds, a metric has not

pytestmark = [
    pytest.mark.neighbours("promql_parser", "opentelemetry.exporter.prometheus", "grafana_foundation_sdk"),
    pytest.mark.backends,
]


def panels(dashboard: str) -> dict[str, dict[str, Any]]:
    """Return the panels with queries, by title."""
    return {panel["title"]: panel for panel in DASHBOARDS[dashboard]["panels"] if "targets" in panel}


def query_of(dashboard: str, title: str, number: int = 0) -> str:
    return cast("str", panels(dashboard)[title]["targets"][number]["expr"])


def filled_in(query: str, **chosen: str) -> str:
    """Return a query as Grafana sends it, with a time range that covers all data, and with all values of variables."""
    values = {"__rate_interval": "5m", "__range": "10m", "planned": str(PLANNED)}
    values |= dict.fromkeys(("job", "project", "host"), ".*") | chosen
    return re.sub(r"\$(\w+)", lambda name: values[name[1]], query)


QUERIES = [
    pytest.param(filled_in(target["expr"]), target.get("legendFormat", ""), id=f"{name}: {title}, {target['refId']}")
    for name in sorted(DASHBOARDS)
    for title, panel in panels(name).items()
    for target in panel["targets"]
]


# The program and its calls.


@dataclass
class Example:
    """The calls of a program, and the Prometheus that received its metrics.

    Attributes:
        prometheus: Received the metrics after both batches, and at the end.
        rows: The log: two batches of the same calls.
        retries: Retries by their reason, counted by `on_retry`.
        delays: Seconds of waiting after failed attempts by their reason, from the attempts log.
        queued: The queue time of the calls of both batches in seconds, from their spans.
        paused: The hosts that requested a pause, from the statistics of the connectors.
        at: The time of the samples with both batches and nothing else.
        scraped: The names of the metrics and their labels, as `opentelemetry-exporter-prometheus` shows them.
        end: The time when it had also stored the counts of buffered and lost rows.
        rules: The rules and their state at `end`.
    """

    prometheus: Prometheus
    rows: list[CallRecord]
    retries: Counter[str]
    delays: dict[str, float]
    queued: float
    paused: set[str]
    at: float
    scraped: dict[str, set[str]]
    end: float
    rules: list[dict[str, Any]]

    def value(self, query: str, **chosen: str) -> float:
        """Return the only value of a query at the time `at`."""
        ((_, value),) = self.prometheus.series(filled_in(query, **chosen), self.at)
        return value

    def values(self, query: str, *labels: str) -> dict[Any, float]:
        """Return the values of a query at the time `at`, by label: the key is a tuple, or a text for a single label."""
        found: dict[Any, float] = {}
        for metric, value in self.prometheus.series(filled_in(query), self.at):
            key = tuple(metric.get(label, "") for label in labels)
            assert key not in found
            found[key if len(labels) > 1 else key[0]] = value
        return found

    def recorded(self, name: str) -> str:
        """Return the query of a recording rule, with those of the rules that it reads in it."""
        queries = {rule["name"]: rule["query"] for rule in self.rules if rule["type"] == "recording"}
        return re.sub("|".join(queries), lambda other: f"({self.recorded(other[0])})", queries[name])

    def of_a_batch(self, by: Callable[[CallRecord], str]) -> Counter[str]:
        """Count the calls of one batch by the key that `by` returns for a row."""
        both = Counter(map(by, self.rows))
        assert not any(number % 2 for number in both.values())
        return Counter({key: number // 2 for key, number in both.items()})


@dataclass
class Connectors:
    """The connectors that make the calls of a batch.

    Attributes:
        usual: Makes most calls.
        short_timeout: Makes a call that times out.
        paused: Makes a call whose response requests a pause.
    """

    usual: AsyncConnector
    short_timeout: AsyncConnector
    paused: AsyncConnector


async def batch(by: Connectors, server: FaultServer, refused: str) -> None:
    """Make calls of two projects to two hosts, with most of the possible outcomes. Some calls wait in the queue."""
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
        calls = [by.usual.get(session, server.url(path), "Prices", default=None) for path in prices]
        calls.append(by.paused.get(session, server.url("/busy"), "Prices", default=None))
        calls.append(by.usual.get(session, refused, "Prices", default=None))
        urls = [server.url(path).replace("127.0.0.1", "localhost") for path in [*weather, "/silent"]]
        calls += [by.usual.get(session, url, "Weather", default=None) for url in urls[:-1]]
        calls.append(by.short_timeout.get(session, urls[-1], "Weather", default=None))
        calls.append(asyncio.wait_for(by.usual.get(session, urls[-1], "Weather"), 0.1))
        ends = await asyncio.gather(*calls, return_exceptions=True)
    assert len(ends) == BATCH
    assert [type(end) for end in ends if isinstance(end, BaseException)] == [asyncio.TimeoutError]


def lose_rows(folder: Path, providers: dict[str, Any], server: FaultServer) -> AsyncConnector:
    """Make three calls whose rows cannot be written: one row is buffered, two exceed the buffer and are lost."""
    folder.mkdir()
    connector = AsyncConnector(CSVSpanExporter(folder / "logs.csv", backlog_bytes=200), **providers)
    shutil.rmtree(folder)

    async def calls() -> None:
        async with aiohttp.ClientSession() as session:
            for _ in range(3):
                await connector.get(session, server.url("/ok"), "Prices")

    asyncio.run(calls())
    return connector


class QueueTimes(SpanProcessor):
    """Adds up the queue times of the spans."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_end(self, span: ReadableSpan) -> None:
        seconds = (span.attributes or {}).get("otel_connector.queue.duration", 0.0)
        assert isinstance(seconds, float)
        self.seconds += seconds


@contextmanager
def traced(collector: str, metrics_to: str, registry: CollectorRegistry) -> Iterator[dict[str, Any]]:
    """Yield providers with the SDK's own metrics. Their span queue overflows while the collector does not answer."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
        sent = PeriodicExportingMetricReader(OTLPMetricExporter(metrics_to), export_interval_millis=math.inf)
        metrics = MeterProvider(
            [sent, PrometheusMetricReader(registry=registry)],
            Resource({"service.name": "example", "service.instance.id": "1"}),
            shutdown_on_exit=False,
        )
        traces = TracerProvider(shutdown_on_exit=False, meter_provider=metrics)
        queue = {"max_queue_size": 16, "max_export_batch_size": 8, "schedule_delay_millis": 10}
        exporter = OTLPSpanExporter(collector, meter_provider=metrics)
        traces.add_span_processor(BatchSpanProcessor(exporter, meter_provider=metrics, **queue))
        try:
            yield {"tracer_provider": traces, "meter_provider": metrics}
        finally:
            traces.shutdown()
            metrics.shutdown()


@pytest.fixture(scope="module", params=[False, True], ids=["one span", "attempt spans"])
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    folder = tmp_path_factory.mktemp("example")
    log = Log(folder / "logs.csv")
    registry = CollectorRegistry()
    retries: Counter[str] = Counter()

    def on_retry(attempt: Attempt) -> None:
        retries[attempt.reason] += attempt.wait is not None

    with FaultServer() as closed:
        refused = closed.url("/")
    collector = hold()
    with (
        prometheus(folder, evaluation_interval="200ms") as running,
        FaultServer() as server,
        traced(server.url("/v1/traces"), running.otlp, registry) as providers,
    ):
        server.script("/v1/traces", [collector.step, 400, ok])
        options: dict[str, Any] = {"n_tries": 2, "on_retry": on_retry, "attempts": True, **providers}
        options["attempt_spans"] = request.param
        options["retry"] = RetryPolicy(backoff=0.001)
        exporter = CSVSpanExporter(log.path)
        usual, short_timeout = (AsyncConnector(exporter, timeout=timeout, **options) for timeout in (30, 0.1))
        # One for each batch: a second call of the same connector would wait for the end of the pause
        paused = [AsyncConnector(exporter, **{**options, "n_tries": 1}) for _ in range(2)]
        queued = QueueTimes()
        providers["tracer_provider"].add_span_processor(queued)
        asyncio.run(batch(Connectors(usual, short_timeout, paused[0]), server, refused))
        asyncio.run(batch(Connectors(usual, short_timeout, paused[1]), server, refused))
        collector.release()
        # One export, as of a job of seconds. At its time, a rate is exactly what was counted
        providers["meter_provider"].get_meter("test").create_observable_gauge("next_millisecond", [next_millisecond])
        providers["meter_provider"].force_flush()
        ((_, at),) = running.series("max(timestamp(otel_connector_rows_written_total))")
        waits = queued.seconds
        hosts = {host for connector in paused for host in connector.stats().hosts_paused}
        failing = lose_rows(folder / "gone", providers | {"attempt_spans": request.param}, server)
        assert (failing.stats().rows_waiting, failing.stats().rows_lost) == (1, 2)
        providers["tracer_provider"].force_flush()
        providers["meter_provider"].force_flush()
        names = scraped_names(registry)
        end = time.time()
        delays = defaultdict[str, float](float)
        for attempt in log.attempts():
            if attempt.wait is not None:
                delays[attempt.reason] += attempt.wait
        rules = running.rules(after=end)
        yield Example(running, log.records(), retries, delays, waits, hosts, at, names, time.time(), rules)
        asyncio.run(failing.aclose())


def next_millisecond(options: CallbackOptions) -> Iterable[Observation]:
    """Wait for the next millisecond, when the counters have been observed.

    The SDK lets a counter start when it is observed first. Prometheus stores a 0 there if that was a millisecond before
    the export.
    """
    now = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 == now:
        pass
    return []


def scraped_names(registry: CollectorRegistry) -> dict[str, set[str]]:
    """Return the labels of each metric in the output for a scraping Prometheus."""
    names: dict[str, set[str]] = {}
    for family in registry.collect():
        for sample in family.samples:
            names.setdefault(sample.name, set()).update(
                name for name in sample.labels if not name.startswith("otel_scope_") and name != "le"
            )
    return names


def error_class(row: CallRecord) -> str:
    """Return the `error.type` of the call, without the name of the package; empty if it has none."""
    name = row.error.split(":")[0]
    return {"HTTPStatusError": str(row.response_code), "CancelledError": ""}.get(name, name)


def without_package(error_type: str) -> str:
    return error_type.removeprefix("otel_connector.")


def host(row: CallRecord) -> str:
    return row.url.split("/")[2].split(":")[0]


def project(row: CallRecord) -> str:
    return row.project


# Every query returns data.


@pytest.mark.parametrize(("query", "legend"), QUERIES)
def test_the_query_of_a_panel_returns_series(query: str, legend: str, example: Example) -> None:
    promql_parser.parse(query)
    series = example.prometheus.series(query, example.end)
    assert series
    shown = set(re.findall(r"{{(\w+)}}", legend))
    assert not shown or shown & {label for labels, _ in series for label in labels}


@pytest.mark.parametrize("name", sorted(DASHBOARDS))
def test_the_variables_of_a_dashboard_have_values(name: str, example: Example) -> None:
    expected = {
        "job": ["example"],
        "otel_connector_project": ["Prices", "Weather"],
        "server_address": ["127.0.0.1", "localhost"],
    }
    queries = [one["query"]["query"] for one in DASHBOARDS[name]["templating"]["list"] if one["type"] == "query"]
    assert queries
    for query in queries:
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        assert found is not None
        selector, label = found.groups()
        assert example.prometheus.get(f"label/{label}/values", **{"match[]": filled_in(selector)}) == expected[label]


def test_the_rules_are_evaluated_and_the_expected_alerts_fire(example: Example) -> None:
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


# The values agree with the log.


def test_totals_agree_with_the_log(example: Example) -> None:
    rows = example.rows
    assert len(rows) == 2 * BATCH
    expected = {
        "Done": len(rows),
        "Progress": len(rows) / PLANNED,
        "Succeeded": sum(row.success for row in rows),
        "Failed": sum(not row.success for row in rows),
        "Received": sum(row.response_size for row in rows),
    }
    assert {title: example.value(query_of("collection", title)) for title in expected} == expected
    by_project = example.values(query_of("collection", "Done so far by project"), "otel_connector_project")
    assert by_project == Counter(map(project, rows))


def test_a_variable_filters_the_totals(example: Example) -> None:
    for name in ("Prices", "Weather"):
        ours = [row for row in example.rows if row.project == name]
        assert example.value(query_of("collection", "Done"), project=name) == len(ours)
        size = sum(row.response_size for row in ours)
        assert example.value(query_of("collection", "Received"), project=name) == size
    both = {"host": "localhost", "project": "Prices|Weather"}
    here = [row for row in example.rows if host(row) == "localhost"]
    assert example.value(query_of("collection", "Done"), **both) == len(here)


def test_failures_and_retries_agree_with_the_log(example: Example) -> None:
    columns = ("error_type", "otel_connector_project", "server_address")
    table = example.values(query_of("collection", "Failures"), *columns)
    shown = {(without_package(error), *where): number for (error, *where), number in table.items()}
    assert shown == Counter((error_class(row), row.project, host(row)) for row in example.rows if not row.success)
    retries = example.values(query_of("collection", "Retries by reason"), "otel_connector_reason")
    assert retries == example.retries
    assert set(retries) == {"connection", "status_503", "timeout", "truncated"}


def test_the_cost_of_retries_agrees_with_their_waits(example: Example) -> None:
    cost = example.values(query_of("collection", "Cost of retries"), "otel_connector_reason")
    assert set(cost) == set(example.delays)
    assert all(cost[reason] >= example.delays[reason] for reason in cost)  # the queue before a retry is part of it
    waited = example.values(query_of("collection", "Waiting by host"), "server_address")
    assert sum(waited.values()) == pytest.approx(sum(example.delays.values()) + example.queued, abs=ROUNDED)


def test_paused_hosts_agree_with_the_connectors(example: Example) -> None:
    assert example.value(query_of("collection", "Hosts paused")) == len(example.paused) == 1


def test_queue_times_agree_with_the_spans(example: Example) -> None:
    assert example.value("sum(otel_connector_queue_time_seconds_total)") == pytest.approx(example.queued, abs=ROUNDED)
    per_call = example.value(query_of("collection", "Time in the queue"))
    assert per_call == pytest.approx(example.queued / (2 * BATCH), abs=ROUNDED)


def test_counts_of_rows_agree_with_the_log(example: Example) -> None:
    queries = [
        query_of("health", title) for title in ("Rows written", "Rows waiting", "Rows lost", "Calls without a row")
    ]
    assert [example.value(query) for query in queries] == [len(example.rows), 0, 0, 0]
    at_the_end = [example.prometheus.series(filled_in(query), example.end)[0][1] for query in queries]
    assert at_the_end == [len(example.rows), 1, 2, 0]


def test_rates_have_the_proportions_of_the_log(example: Example) -> None:
    """The values are compared as shares of all calls: the exact length of a rate's time range is not known."""
    calls = example.value(query_of("service", "Calls"))
    assert calls > 0

    def part(dashboard: str, title: str, label: str, number: int = 0) -> dict[str, Any]:
        values = example.values(query_of(dashboard, title, number), label)
        parts = {without_package(name): value / calls * BATCH for name, value in values.items() if value}
        return {name: pytest.approx(number) for name, number in parts.items()}

    failures = example.of_a_batch(error_class)
    del failures[""]  # successes and cancelled calls
    assert part("service", "Errors by class", "error_type") == failures
    assert part("service", "Calls by project", "otel_connector_project") == example.of_a_batch(project)
    assert part("service", "Calls by host", "server_address") == example.of_a_batch(host)
    assert part("collection", "Calls by host", "server_address") == example.of_a_batch(host)
    assert part("service", "Cancelled calls", "otel_connector_project") == {"Weather": 1}
    outcomes = {
        success: part("collection", "Calls by outcome", "", number)[""] for number, success in ((0, "1"), (1, "0"))
    }
    assert outcomes == example.of_a_batch(lambda row: f"{row.success:d}")
    size: Counter[str] = Counter()
    for row in example.rows:
        size[row.project] += row.response_size
    halves = {name: number / 2 for name, number in size.items()}
    assert part("collection", "Bytes by project", "otel_connector_project") == halves


def test_shares_agree_with_the_log(example: Example) -> None:
    failed = example.of_a_batch(lambda row: row.project if error_class(row) else "")
    share = {name: failed[name] / number for name, number in example.of_a_batch(project).items()}
    recorded = example.recorded("job_project:otel_connector_errors_per_call:ratio_rate5m")
    for query in (query_of("service", "Errors by project"), recorded):
        assert example.values(query, "otel_connector_project") == pytest.approx(share)
    in_all = (failed["Prices"] + failed["Weather"]) / BATCH
    assert example.value(query_of("service", "Errors")) == pytest.approx(in_all)
    retries = sum(example.retries.values()) / len(example.rows)
    for query in (query_of("service", "Retries"), example.recorded("job:otel_connector_retries_per_call:ratio_rate5m")):
        assert example.value(query) == pytest.approx(retries)


def test_quantiles_are_in_the_same_bucket_as_those_of_the_log(example: Example) -> None:
    series = example.prometheus.series(
        "sum by (le) (otel_connector_call_duration_seconds_bucket or http_client_request_duration_seconds_bucket)",
        example.at,
    )
    bounds = sorted(float(labels["le"]) for labels, _ in series)
    seconds = sorted(row.delta_t for row in example.rows)
    for title, share in (("Median", 0.5), ("p99", 0.99)):
        value = seconds[math.ceil(share * len(seconds)) - 1]
        upper = next(bound for bound in bounds if bound >= value)
        lower = max((bound for bound in bounds if bound < value), default=0)
        assert lower <= example.value(query_of("service", title)) <= upper


# Names.


def test_metrics_have_the_same_names_over_otlp_and_when_they_are_scraped(example: Example) -> None:
    """Of exports, scraping shows labels that are not sent yet: those of the last export."""
    stored: dict[str, set[str]] = {}
    for series in example.prometheus.get("series", **{"match[]": '{job="example"}'}):
        labels = set(series) - {"__name__", "job", "instance", "le"}
        stored.setdefault(series["__name__"], set()).update(labels)
    name = re.compile("otel_connector_|http_client_|otel_sdk_(span|processor)_")
    assert len(stored) > 12
    assert {each: stored[each] for each in stored if name.match(each)} == {
        each: labels for each, labels in example.scraped.items() if name.match(each)
    }


def test_every_metric_is_used_by_a_dashboard(example: Example) -> None:
    stored = {
        name for name in example.prometheus.get("label/__name__/values") if re.match("otel_connector|http_", name)
    }
    used = {name for query in QUERIES for name in re.findall(r"\w+", cast("str", query.values[0]))}
    assert {name for name in stored if not name.endswith("_sum")} <= used
