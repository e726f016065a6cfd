"""3,000 calls of the demo: the logs, Jaeger and Prometheus have the same calls, even if the collector is killed.

The calls are those of six demos at the same time, because the calls of one demo mostly wait. They are compared when the
demos have ended: what the SDK reports as sent must have arrived.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SpanExportResult
from support.backends import Backends, Jaeger, collector
from support.collector import own_address
from support.command_line import finish, start
from support.logs import Log
from support.processes import Process, wait_until
from support.sdk import SDK

from otel_connector import COLUMNS, CallRecord

pytestmark = pytest.mark.backends
DEMOS, CALLS_OF_A_DEMO = 6, 500
CALLS = DEMOS * CALLS_OF_A_DEMO
SERVICE = "otel-connector-demo"
EMPTY = {"project": "", "url": "", "redirect_url": "", "response_code": None, "error": ""}


@dataclass(frozen=True)
class Run:
    """Demos that ran at the same time.

    Attributes:
        name: The start of their `service.instance.id`.
        rows: The rows of their logs by call_id.
        outputs: What they printed.
        began: When they were started, Unix time.
        ended: When the last one had ended.
    """

    name: str
    rows: dict[str, CallRecord]
    outputs: list[str]
    began: float
    ended: float

    def selected(self, query: str, running: Backends) -> list[tuple[dict[str, str], float]]:
        """Return the series of a query, in which RUN selects these demos."""
        return running.prometheus.series(query.replace("RUN", f'job="{SERVICE}", instance=~"{self.name}-.*"'))


def run_demos(
    running: Backends, folder: Path, name: str, meanwhile: Callable[[list[Process], list[Path]], None]
) -> Run:
    """Run the demos to their end, with the collector as their receiver."""
    began = time.time()
    logs = [folder / f"{number}.csv" for number in range(DEMOS)]
    processes = list[Process]()
    for log in logs:
        extra = running.collector.environment()
        extra["OTEL_RESOURCE_ATTRIBUTES"] = f"service.instance.id={name}-{log.stem}"
        command = ("demo", "--calls", str(CALLS_OF_A_DEMO), "--log", str(log))
        processes.append(start(folder, *command, extra=extra))
    meanwhile(processes, logs)
    ended = [finish(process) for process in processes]
    assert [done.code for done in ended] == [0] * DEMOS
    messages = {line.partition(" encountered")[0] for done in ended for line in done.error.splitlines()}
    assert messages <= {"Transient error StatusCode.UNAVAILABLE"}, "of the SDK, while there is no collector"
    rows = [row for log in logs for row in Log(log).records()]
    assert len(rows) == CALLS
    return Run(name, {row.call_id: row for row in rows}, [done.out for done in ended], began, time.time())


def spans_by_call(run: Run, running: Backends) -> dict[str, list[dict[str, Any]]]:
    """Return the spans of the run by the call_id that their own ids form."""
    found: dict[str, list[dict[str, Any]]] = {}
    for span in running.jaeger.spans(SERVICE, CALLS, start=int(run.began * 1e6), end=int(time.time() * 1e6)):
        found.setdefault(f"{span['traceID']}-{span['spanID']}", []).append(span)
    return found


def record_of(span: dict[str, Any]) -> CallRecord:
    """Return the ten fields of a span."""
    fields: dict[str, Any] = {name: span["tags"].get(f"otel_connector.{name}", EMPTY.get(name)) for name in COLUMNS}
    return CallRecord(**fields)


def assert_equal_counts(run: Run, running: Backends) -> None:
    """Check that Prometheus has counted the rows, by outcome, and that each exemplar is a call."""
    by_outcome = "sum by (otel_connector_success) (http_client_request_duration_seconds_count{RUN})"
    counted = {labels["otel_connector_success"]: value for labels, value in run.selected(by_outcome, running)}
    assert counted == Counter("true" if row.success else "false" for row in run.rows.values())
    assert run.selected("sum(otel_connector_rows_written_total{RUN})", running) == [({}, CALLS)]
    query = f'http_client_request_duration_seconds_bucket{{instance=~"{run.name}-.*"}}'
    found = running.prometheus.get("query_exemplars", query=query, start=run.began, end=time.time())
    exemplars = [exemplar["labels"] for series in found for exemplar in series["exemplars"]]
    assert len(exemplars) > CALLS // 20
    assert {f"{labels['trace_id']}-{labels['span_id']}" for labels in exemplars} <= run.rows.keys()


@pytest.fixture(scope="module")
def undisturbed(running: Backends, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_demos(running, tmp_path_factory.mktemp("demo"), "undisturbed", lambda *_: None)


def test_each_row_is_one_span_with_the_same_fields_and_is_counted_once(undisturbed: Run, running: Backends) -> None:
    assert len(undisturbed.rows) == CALLS
    spans = spans_by_call(undisturbed, running)
    assert Counter({call_id: len(copies) for call_id, copies in spans.items()}) == Counter(list(undisturbed.rows))
    assert {call_id: record_of(span) for call_id, (span,) in spans.items()} == undisturbed.rows
    assert_equal_counts(undisturbed, running)
    assert all("Traces and metrics were sent to" in output for output in undisturbed.outputs)


def test_the_link_that_the_demo_prints_is_a_trace(undisturbed: Run, running: Backends) -> None:
    for output in undisturbed.outputs:
        trace_id = output.partition("http://localhost:16686/trace/")[2].split()[0]
        (trace,) = running.jaeger.get(f"traces/{trace_id}")
        assert [span["traceID"] for span in trace["spans"]] == [trace_id]


def test_jaeger_finds_failed_calls_by_our_attribute_and_not_by_its_own(undisturbed: Run, running: Backends) -> None:
    """A fault of Jaeger that `opentelemetry/backends.md` names. If a version of Jaeger finds them, change the page."""
    period = {"start": int(undisturbed.began * 1e6), "end": int(time.time() * 1e6)}
    failed = {call_id for call_id, row in undisturbed.rows.items() if not row.success}
    ours = running.jaeger.spans(SERVICE, tags=json.dumps({"otel_connector.success": "false"}), **period)
    assert failed <= {span["tags"]["otel_connector.call_id"] for span in ours}
    assert running.jaeger.spans(SERVICE, tags=json.dumps({"error": "true"}), **period) == []
    assert any(span["tags"].get("error") for span in ours), "its page shows them as errors"


def test_nothing_is_missing_if_the_collector_is_killed_and_started_again(running: Backends, tmp_path: Path) -> None:
    """A batch that Jaeger accepted just before the kill is sent again, so a span may be there twice."""

    def kill(processes: list[Process], logs: list[Path]) -> None:
        def rows() -> int:
            return sum(log.read_bytes().count(b"\n") for log in logs if log.exists())

        wait_until(lambda: rows() > CALLS // 3, processes[0])
        running.collector.kill()
        before = rows()
        wait_until(lambda: rows() > before + CALLS // 6, processes[0])
        running.collector.start()
        assert [process.poll() for process in processes] == [None] * DEMOS

    run = run_demos(running, tmp_path, "killed", kill)
    assert len(run.rows) == CALLS
    spans = spans_by_call(run, running)
    assert all(record_of(copy) == run.rows[call_id] for call_id, copies in spans.items() for copy in copies)
    assert spans.keys() == run.rows.keys()
    assert_equal_counts(run, running)
    assert all("Traces and metrics were sent to" in output for output in run.outputs)


def test_every_rule_of_the_example_is_healthy(undisturbed: Run, running: Backends) -> None:
    """They are evaluated every 15 s, here once after the calls."""
    rules = running.prometheus.rules(after=undisturbed.ended)
    assert {rule["name"]: rule["health"] for rule in rules} == {rule["name"]: "ok" for rule in rules}
    assert len(rules) > 10


def test_the_collector_accepts_only_what_jaeger_has_accepted(running: Backends, sdk: SDK, tmp_path: Path) -> None:
    """A queue in the collector would accept it, and lose it if the collector is killed."""
    with sdk.tracer_provider.get_tracer("test").start_as_current_span("one"):
        pass
    spans = sdk.spans.get_finished_spans()
    no_jaeger = Jaeger(own_address())
    for traces, result in ((no_jaeger, SpanExportResult.FAILURE), (running.jaeger, SpanExportResult.SUCCESS)):
        with collector(tmp_path, traces, running.prometheus) as receiver:
            exporter = OTLPSpanExporter(receiver.endpoints["http/protobuf"] + "/v1/traces", timeout=1)
            assert exporter.export(spans) is result
            exporter.shutdown()  # type: ignore[no-untyped-call]
