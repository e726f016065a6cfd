"""Tests of `examples/service`: one trace covers the callers, the service, and its calls to both upstreams."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support import processes
from support.collector import Collector, collector
from support.forked import Program, run_python
from support.otlp_receiver import attributes_of
from support.processes import ROOT

sys.path.insert(0, str(ROOT / "examples" / "service"))

from trace_tree import Node, roots_of, tree

EXAMPLE = str(ROOT / "examples" / "service")
CONTRIB = """
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
AioHttpClientInstrumentor().instrument()
"""
ATTEMPT = "otel_connector.attempt"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def attempts_of(span: Any) -> int:
    """Return the number of requests that a call has sent."""
    return 1 + int(attributes_of(span).get("http.request.resend_count", 0))


def assert_tree(root: Node, calls: dict[str, dict[str, str]]) -> None:
    """Check one trace: the parent, kind and service of each span, and the events of the attempts."""
    assert (root.service, root.kind, root.span.name) == ("callers", "CLIENT", "GET")
    (server,) = root.children
    assert (server.service, server.kind, server.span.name) == ("shop", "SERVER", "GET /offer/{item}")
    assert sorted(str(child.attributes["otel_connector.project"]) for child in server.children) == ["price", "stock"]
    for call in server.children:
        about, row = call.attributes, calls[f"{call.span.trace_id.hex()}-{call.span.span_id.hex()}"]
        upstream = row["project"]
        assert (call.service, call.kind, call.span.name) == ("shop", "CLIENT", "GET")
        assert (about["url.full"], str(about["otel_connector.success"])) == (row["url"], row["success"])
        events = [(event.name, attributes_of(event)) for event in call.span.events]
        assert [name for name, _ in events] == [ATTEMPT] * len(events)
        numbers = [about[f"{ATTEMPT}.number"] for _, about in events]
        assert numbers == sorted(set(numbers)), (
            "in order; a second attempt by aiohttp itself has a number, but no event"
        )
        assert numbers[-1:] <= [attempts_of(call.span)]
        below = [(child.service, child.kind, child.span.name) for child in call.children]
        assert below == [(upstream, "SERVER", f"GET /{upstream}/{{item}}")] * attempts_of(call.span)


@pytest.fixture
def python_path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a PYTHONPATH that switches contrib's instrumentation on in every process of the example, if requested."""
    (tmp_path / "sitecustomize.py").write_text(CONTRIB if request.param == "contrib" else "")
    return os.pathsep.join([str(tmp_path), str(ROOT)])


@pytest.fixture
def real_collector() -> Any:
    with collector() as running:
        yield running


@pytest.mark.neighbours("rotel")
@pytest.mark.parametrize("python_path", ["nothing", "contrib"], indirect=True)
def test_one_trace_contains_the_callers_the_service_and_both_upstreams(
    real_collector: Collector, python_path: str, tmp_path: Path
) -> None:
    arguments = [EXAMPLE, "--requests", "60", "--concurrency", "6"]
    done = run_python(arguments, tmp_path, PYTHONPATH=python_path, **real_collector.environment())
    assert (done.returncode, done.stderr) == (0, "")
    callers, shop = rows(tmp_path / "service-logs" / "callers.csv"), rows(tmp_path / "service-logs" / "shop.csv")
    assert (len(callers), len(shop)) == (60, 120)

    received = real_collector.received
    received.wait_for(lambda: len(received.spans(3)) >= 180)
    received.wait_for(lambda: len(received.spans(2)) >= sum(map(attempts_of, received.spans(3))))
    assert received.call_ids(3) == Counter(row["call_id"] for row in [*callers, *shop]), "one CLIENT span for each call"
    calls = {row["call_id"]: row for row in shop}
    for row in callers:
        (root,) = roots_of(received.resource_spans, row["call_id"].partition("-")[0])
        assert_tree(root, calls)

    found = re.search(r"its trace: (\w{32})\nthe spans were sent to http://127", done.stdout)
    assert found is not None
    printed = tree(received.resource_spans, found[1])
    assert re.match(
        r"callers  CLIENT  GET  [\d.]+ ms  http://127.*  200\n└─ shop  SERVER  GET /offer/{item}  [\d.]+ ms", printed
    )
    slowest = max((row for row in shop if row["success"] == "True"), key=lambda row: float(row["delta_t"]))
    assert slowest["call_id"].startswith(found[1])
    # The slowest call may have no failed attempt: on a busy machine, it may only have waited
    trees = [tree(received.resource_spans, row["call_id"].partition("-")[0]) for row in callers]
    assert printed in trees
    assert [each for each in trees if f"* {ATTEMPT}: number 1, duration 0." in each]


def test_the_trace_is_printed_without_a_collector(tmp_path: Path) -> None:
    done = run_python([EXAMPLE, "--requests", "12", "--concurrency", "3", "--attempt-spans"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert re.fullmatch(
        r"1[012] offers, [012] requests that failed", lines[0]
    )  # its timeout is short for a busy machine
    printed = [re.sub(r"[\d.]+ ms.*", "", line).rstrip() for line in lines[3:]]
    assert printed[:3] == [
        "callers  CLIENT  GET",
        "└─ shop  SERVER  GET /offer/{item}",
        "   ├─ shop  INTERNAL  otel_connector.get",
    ]
    for upstream in ("price", "stock"):
        assert [line for line in printed if line.endswith(f"└─ {upstream}  SERVER  GET /{upstream}/{{item}}")]
    assert len(rows(tmp_path / "service-logs" / "shop.csv")) == 24


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_processes_of_the_example(sent: signal.Signals, tmp_path: Path) -> None:
    arguments = [EXAMPLE, "--requests", "100000"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    log = tmp_path / "service-logs" / "shop.csv"
    # `communicate` returns when the last process has exited, because all of them inherit the pipes
    with Program(arguments, cwd=tmp_path, **pipes) as process:
        # All processes run as soon as the log has a successful row
        processes.wait_until(lambda: log.exists() and b",200," in log.read_bytes(), process)
        process.send_signal(sent)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (1, "stopped\n")


def test_a_number_below_one_is_refused(tmp_path: Path) -> None:
    done = run_python([EXAMPLE, "--requests", "0"], tmp_path)
    assert (done.returncode, "must be at least 1" in done.stderr) == (2, True)
