"""Tests of ``otel-connector demo``. Most run it like a new user: in its own process and in an empty folder."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from support import processes
from support.command_line import Finished, environment, finish, run_here, start, start_limited
from support.forked import Program
from support.logs import attempts_in, call
from support.otlp_receiver import Received, grpc_receiver, http_receiver
from support.own_network import run_in_own_network
from typer.testing import CliRunner

import otel_connector
from otel_connector import COLUMNS, CallRecord, review
from otel_connector._csv._format import HEADER, encode_row
from otel_connector._percentile import percentile
from otel_connector._telemetry._usual_ports import PORTS
from otel_connector._units import duration
from otel_connector.cli import app
from otel_connector.cli._collector import select_collector
from otel_connector.cli._demo import Demo, DemoReport, DemoResult, DemoSummary, read_rows, summarise
from otel_connector.cli._demo_command import _where_traces_are
from otel_connector.testing import FaultServer, respond

CALLS = 40  # every kind of call is made, and at least one kind more than once

ROW = CallRecord(
    call_id=f"{1:032x}-{1:016x}",
    project="P",
    t=0.0,
    delta_t=1.0,
    url="http://a/",
    redirect_url="",
    response_size=2,
    response_code=200,
    success=True,
    error="",
)


def demo(folder: Path, *arguments: str, **extra: str) -> Finished:
    """Run the demo to its end."""
    return finish(start(folder, "demo", "--calls", str(CALLS), *arguments, extra=extra))


def rows_of(path: Path) -> list[CallRecord]:
    return list(read_rows(path))


def class_of(row: CallRecord) -> str:
    return row.error.split(":")[0]


def test_one_call_is_counted_in_the_singular(tmp_path: Path) -> None:
    code, out, _ = run_here(tmp_path, "demo", "--calls", "1", "--no-otlp")
    assert code == 0
    assert re.search(r"^1 call started, 1 row written, (0 retries|1 retry|\d+ retries)\. ", out, re.MULTILINE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run the demo once in a new folder; return its log and its output."""
    folder = tmp_path_factory.mktemp("demo")
    code, out, err = demo(folder, "--no-otlp")
    assert (code, err) == (0, "")
    return folder / "demo.csv", out


def test_every_call_is_written_as_one_row(finished: tuple[Path, str]) -> None:
    log, out = finished
    rows = rows_of(log)
    assert len(rows) == CALLS == len({row.call_id for row in rows})
    assert len(log.read_text(encoding="utf-8").splitlines()) == CALLS + 1
    assert f"{CALLS} calls started, {CALLS} rows written" in out
    assert str(log) in out
    assert "No traces or metrics were sent (--no-otlp)." in out


def test_every_kind_of_outcome_is_in_the_log(finished: tuple[Path, str]) -> None:
    rows = rows_of(finished[0])
    assert {row.project for row in rows} == {"Prices", "Weather"}
    assert {(class_of(row), row.response_code) for row in rows} == {
        ("", 200),
        ("HTTPStatusError", 404),
        ("HTTPStatusError", 503),
        ("AttemptTimeout", None),
        ("AttemptTimeout", 200),
        ("ConnectFailed", None),
        ("BodyTruncated", 200),
        ("CertificateRejected", None),
        ("InvalidURL", None),
        ("DecodeFailed", 200),
        ("BodyTooLarge", 200),
        ("CancelledError", None),
    }
    successes = [row for row in rows if row.success]
    assert any(row.redirect_url.endswith("?lang=en") for row in successes)
    assert any(row.delta_t > 1 for row in successes), "Retry-After: 1 was obeyed"
    undecodable = {row.response_size for row in rows if class_of(row) == "DecodeFailed"}
    assert len(undecodable) == 2, "one kind has a body that is not JSON, the other has an empty body"
    assert 0 in undecodable


def test_the_attempts_log_beside_the_log_has_the_attempts_of_all_calls_but_immediate_successes(
    finished: tuple[Path, str],
) -> None:
    seconds = Counter[str]()
    for attempt in attempts_in(finished[0].with_name("demo.attempts.csv")):
        seconds[attempt.call_id] += round((attempt.duration + attempt.queue + (attempt.wait or 0)) * 1e6)
    times = {row.call_id: round(row.delta_t * 1e6) for row in rows_of(finished[0])}
    without_attempt = {"InvalidURL", "CancelledError"}  # the latter perhaps
    failed = {row.call_id for row in rows_of(finished[0]) if not row.success and class_of(row) not in without_attempt}
    assert failed < seconds.keys(), "calls that succeeded after a failed attempt have rows, too"
    assert {call_id: times[call_id] for call_id in seconds} == dict(seconds)


def test_the_printed_tables_match_the_rows(finished: tuple[Path, str]) -> None:
    log, out = finished
    rows, lines = rows_of(log), [line.split() for line in out.splitlines()]
    for project in ("Prices", "Weather"):
        own = [row for row in rows if row.project == project]
        good = sum(row.success for row in own)
        times = sorted(row.delta_t for row in own)
        percentiles = " ".join(duration(percentile(times, level)) for level in (0.5, 0.95))
        shown = [project, str(len(own)), str(good), str(len(own) - good), *percentiles.split()]
        assert shown in lines
    for name, count in Counter(class_of(row) for row in rows if class_of(row) not in {"", "HTTPStatusError"}).items():
        assert any(line[:2] == [name, str(count)] for line in lines), name
    for code, count in Counter(row.response_code for row in rows if class_of(row) == "HTTPStatusError").items():
        assert any(line[:3] == ["HTTPStatusError", str(code), str(count)] for line in lines), code
    redirected = sum(row.success and bool(row.redirect_url) for row in rows)
    assert any(line[:3] == ["success,", "redirected", str(redirected)] for line in lines)
    assert ["success", str(sum(row.success for row in rows) - redirected)] in lines


def test_piped_output_is_plain_text_with_one_line_for_each_row(finished: tuple[Path, str]) -> None:
    log, out = finished
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out) is None
    example = next(row.error for row in rows_of(log) if class_of(row) == "CertificateRejected")
    assert example.partition(": ")[2] in out, "nothing is cut"
    assert len(out.splitlines()) <= 23, "the command, the output and the next prompt fit in 24 lines"


def test_an_ascii_encoding_and_forced_colours_are_respected(tmp_path: Path) -> None:
    one = start(tmp_path, "demo", "--calls", "18", "--no-otlp", extra={"PYTHONIOENCODING": "ascii"})
    other = start(tmp_path, "demo", "--calls", "18", "--no-otlp", extra={"FORCE_COLOR": "1"})
    code, out, err = finish(one)
    assert (code, err, out.isascii()) == (0, "", True)
    code, out, err = finish(other)
    assert (code, err) == (0, "")
    assert "\x1b[1m" in out
    assert re.search(r"\r|\x1b\[[0-9;?]*[^0-9;?m]", out) is None, "colours are allowed, but no cursor movement"
    # Both processes wrote to one file at the same time, and each counted only its own rows
    assert len(rows_of(tmp_path / "demo.csv")) == 36


def test_progress_is_shown_on_a_terminal_and_erased_at_the_end(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    extra = {"TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1"}
    process = Program(
        ["-m", "otel_connector", "demo", "--calls", "5", "--no-otlp"],
        cwd=tmp_path,
        env=environment(extra),
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    output = b""
    try:
        while piece := os.read(master, 65_536):
            output += piece
    except OSError:  # Linux reports this if the other end is closed
        pass
    os.close(master)
    assert process.wait(60) == 0
    assert b"5/5" in output
    assert b"\x1b[2K" in output, "the progress line is erased"
    assert re.search(rb"\x1b\[(?:\d+;)*(?:3|4|9|10)[0-7](?:;\d+)*m", output) is None, "NO_COLOR is set"


@pytest.fixture
def received() -> Received:
    return Received()


@pytest.fixture
def endpoint(received: Received) -> Iterator[str]:
    with grpc_receiver(received) as endpoint:
        yield endpoint


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_a_collector_receives_every_call_of_the_log(
    tmp_path: Path, received: Received, endpoint: str, variable: str
) -> None:
    # The second variable sets no endpoint for metrics, so their exporter is turned off
    none = {} if variable == "OTEL_EXPORTER_OTLP_ENDPOINT" else {"OTEL_METRICS_EXPORTER": "none"}
    code, out, err = demo(tmp_path, **{variable: endpoint}, **none)
    assert (code, err) == (0, "")
    ids = {row.call_id for row in rows_of(tmp_path / "demo.csv")}
    assert len(ids) == CALLS
    assert received.call_ids() == Counter(ids)
    assert ("http.client.request.duration" in received.metric_names()) is not bool(none)
    assert f"sent to {endpoint}." in out
    command = out.splitlines()[-2].partition("grep ")[2]
    call_id, log = shlex.split(command)
    (example,) = (row for row in rows_of(tmp_path / log) if row.call_id == call_id)
    assert example.success
    assert f"/trace/{call_id.split('-')[0]}\n" in out


def test_no_example_trace_is_shown_without_a_row() -> None:
    report = DemoReport(started=1, retries=0, rows=0, summary=summarise([]), example=None)
    sent = {"traces": "http://a", "metrics": "http://a"}
    assert list(_where_traces_are(sent, (), report, Path("demo.csv"))) == ["Traces and metrics were sent to http://a."]
    assert list(_where_traces_are({**sent, "metrics": "http://b"}, ("traces",), report, Path("demo.csv"))) == [
        "Some traces were sent to http://a.",
        "Metrics were sent to http://b.",
    ]


def test_a_trace_that_the_collector_may_have_rejected_is_not_called_sent() -> None:
    report = DemoReport(started=1, retries=0, rows=1, summary=summarise([call(0)]), example=call(0))
    for lost, expected in ((("traces",), "; the collector may have rejected this one:"), ((), ":")):
        shown = list(_where_traces_are({"traces": "http://a"}, lost, report, Path("demo.csv")))
        assert shown[1] == f"One of the traces, if the collector is Jaeger{expected}"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"OTEL_SDK_DISABLED": "true"}, "No traces or metrics were sent: "),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}, "No traces or metrics were sent: "),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, "Metrics were sent to "),
    ],
)
def test_traces_that_were_not_sent_are_not_reported_as_sent(
    tmp_path: Path, received: Received, endpoint: str, environment: dict[str, str], expected: str
) -> None:
    code, out, err = demo(tmp_path, "--calls", "3", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **environment)
    assert (code, err, received.call_ids()) == (0, "", Counter())
    assert expected in out
    assert "/trace/" not in out


@pytest.mark.parametrize(
    ("to", "code", "expected"), [(">&-", 0, ""), (">/dev/full", 2, "the output cannot be written")]
)
def test_a_closed_output_is_ignored_and_a_full_one_ends_the_demo(
    tmp_path: Path, to: str, code: int, expected: str
) -> None:
    command = f"{shlex.quote(sys.executable)} -m otel_connector demo --calls 3 --no-otlp {to}"
    done = processes.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert expected in done.stderr
    assert len(rows_of(tmp_path / "demo.csv")) == (3 if code == 0 else 0), (
        "a demo whose output cannot be written makes no calls"
    )


def test_an_sdk_that_cannot_be_set_up_is_reported(tmp_path: Path) -> None:
    code, out, err = demo(tmp_path, "--otlp", OTEL_TRACES_EXPORTER="no-such-exporter")
    assert (code, out) == (2, "")
    assert "no-such-exporter" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_does_not_answer_is_reported(protocol: str, closed_port: int, tmp_path: Path) -> None:
    named = f"http://user:pw@127.0.0.1:{closed_port}/t0ken"
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": named, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    code, out, err = finish(start(tmp_path, "demo", "--calls", "1", extra=variables))
    expected = (
        ": over gRPC, it cannot have a user. Write http://host:port or https://host:port.\n"
        if protocol == "grpc"
        else " OTEL_METRICS_EXPORTER=none.\n"
    )
    assert code == 1
    assert err.startswith("Traces and metrics were not sent: ")
    assert err.endswith(expected)
    assert err.count("\n") == 1
    assert "t0ken" not in err
    assert "pw" not in err
    assert "sent to" not in out
    assert "/trace/" not in out


def test_a_jaeger_takes_the_traces_and_its_missing_metrics_are_one_line(tmp_path: Path) -> None:
    received = Received()
    with grpc_receiver(received, metrics=False) as endpoint:
        code, out, err = demo(tmp_path, "--calls", "2", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert (code, len(received.call_ids())) == (0, 2)
    assert err == (
        f"Metrics were not sent: {endpoint} takes no metrics (UNIMPLEMENTED; Jaeger does not). Set"
        " OTEL_METRICS_EXPORTER=none, or OTEL_EXPORTER_OTLP_METRICS_ENDPOINT.\n"
    )
    assert f"\nTraces were sent to {endpoint}.\n" in out
    assert "  http://localhost:16686/trace/" in out


@pytest.mark.parametrize("command", [("demo", "--calls", "1"), ("fetch", "urls.txt", "--fail-if", "failed > 1")])
def test_a_page_at_the_endpoint_is_a_loss_of_one_line(
    command: tuple[str, ...], server: FaultServer, tmp_path: Path
) -> None:
    page = respond(200, b"<html>", content_type="text/html")
    server.script("/v1/traces", page)
    server.script("/v1/metrics", page)
    (tmp_path / "urls.txt").write_text(f"{server.url('/')}\n")
    origin = server.url("/")[:-1]
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": origin, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    code, out, err = finish(start(tmp_path, *command, extra=variables))
    text = f"Traces and metrics were not sent: {origin} answered 200 with text/html. This is not an OTLP receiver."
    assert (code, err.splitlines()[-1], err.count("not sent")) == (int(command[0] == "demo"), text, 1)
    assert "sent to" not in out


def run_without_other_listeners(folder: str) -> None:
    """Run demos where only the receiver of this function can listen; print the results as JSON."""
    received, results = Received(), dict[str, Finished]()
    with start(Path(folder), "demo", "--otlp", "--calls", "1", "--log", "requested.csv") as requested:
        results["none"] = finish(start(Path(folder), "demo", "--calls", "18", "--log", "none.csv"))
        results["requested"] = finish(requested)
    with http_receiver(received, 4318):
        results["http"] = finish(start(Path(folder), "demo", "--calls", "18", "--log", "http.csv"))
    sys.stdout.write(json.dumps([results, received.call_ids()]))


class OnDefaultPorts(NamedTuple):
    """Finished demos in a network of their own.

    Attributes:
        folder: Their folder.
        results: The result without a collector, with ``--otlp`` and without a collector, and with one for HTTP.
        call_ids: The calls that the collector received.
    """

    folder: Path
    results: dict[str, Finished]
    call_ids: Counter[str]


@pytest.fixture(scope="module")
def on_default_ports(tmp_path_factory: pytest.TempPathFactory) -> OnDefaultPorts:
    folder = tmp_path_factory.mktemp("ports")
    done = run_in_own_network(__file__, f"run_without_other_listeners({str(folder)!r})")
    assert done.returncode == 0, done.stderr
    results, call_ids = json.loads(done.stdout)
    return OnDefaultPorts(folder, {name: Finished(*each) for name, each in results.items()}, Counter(call_ids))


def test_a_missing_collector_is_reported_if_otlp_was_requested(on_default_ports: OnDefaultPorts) -> None:
    code, out, err = on_default_ports.results["requested"]
    assert code == 1
    assert "No collector listens on this machine" not in out
    assert "docker run" not in out
    assert "were not sent: nothing listens at http://localhost:4317 " in err


def test_without_a_collector_the_output_shows_how_to_start_one(on_default_ports: OnDefaultPorts) -> None:
    code, out, err = on_default_ports.results["none"]
    assert (code, err) == (0, "")
    assert "No collector listens on this machine" in out
    # without an address, docker opens a port to the network, and past the firewall
    assert "docker run --rm -p 127.0.0.1:4317:4317 -p 127.0.0.1:16686:16686 jaegertracing/jaeger\n" in out


def test_a_collector_on_the_default_http_port_is_found(on_default_ports: OnDefaultPorts) -> None:
    code, out, err = on_default_ports.results["http"]
    assert (code, err) == (0, "")
    assert "sent to http://localhost:4318." in out
    rows = rows_of(on_default_ports.folder / "http.csv")
    assert on_default_ports.call_ids == Counter(row.call_id for row in rows)


def test_an_endpoint_in_the_environment_takes_precedence_over_a_listening_port(closed_port: int) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        one, closed = listener.getsockname()[1], closed_port
        for environ, ports, found, protocol in (
            ({}, (one, closed), True, "grpc"),
            ({}, (closed, one), True, "http/protobuf"),
            ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, (closed, one), True, "grpc"),
            ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1?key=x"}, (one, one), True, None),
            ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, (closed, closed), False, None),
        ):
            variables = dict(environ)
            assert select_collector(variables, dict(zip(PORTS, ports, strict=True))) is found
            assert variables.get("OTEL_EXPORTER_OTLP_PROTOCOL") == protocol


def test_rows_are_appended_and_the_summary_counts_only_this_run(tmp_path: Path, finished: tuple[Path, str]) -> None:
    log = tmp_path / "mine.csv"
    before = finished[0].read_bytes()
    log.write_bytes(before)
    code, out, err = run_here(tmp_path, "demo", "--calls", "2", "--no-otlp", "--log", "mine.csv")
    assert (code, err) == (0, "")
    assert log.read_bytes().startswith(before)
    assert len(rows_of(log)) == CALLS + 2
    assert "2 calls started, 2 rows written" in out
    assert not (tmp_path / "demo.csv").exists()


def test_rows_that_cannot_be_written_are_reported(tmp_path: Path) -> None:
    before = HEADER + encode_row(ROW) * 1_000  # larger than any other file that the program writes
    (tmp_path / "demo.csv").write_bytes(before)
    with start_limited(tmp_path, len(before) + 1_000, "demo", "--calls", "18", "--no-otlp") as process:
        done = finish(process)
    assert done.code == 1
    assert re.search(r"18 calls started, BUT \d rows written", done.out)
    assert "cannot be written" in done.error


def test_an_interrupted_run_keeps_its_rows_and_exits_with_130(tmp_path: Path) -> None:
    process = start(tmp_path, "demo", "--calls", "5000", "--no-otlp")
    log = tmp_path / "demo.csv"
    while process.poll() is None and not (log.exists() and log.stat().st_size > len(HEADER)):
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, err) == (130, "")
    (started, rows), rest = re.findall(r"Stopped: (\d+) calls started, (\d+) rows written to (.*)", out)[0][:2], out
    assert started == rows
    assert len(rows_of(log)) == int(rows)
    assert 0 < int(rows) < 5000
    assert str(log) in rest


@pytest.mark.parametrize("name", ["other.csv", "no/such/folder/demo.csv", "."])
def test_a_log_that_cannot_be_written_is_an_error_without_a_traceback(tmp_path: Path, name: str) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    code, out, err = run_here(tmp_path, "demo", "--log", name)
    assert (code, out) == (2, "")
    assert err.startswith("otel-connector demo: ")
    assert "--log" in err
    assert len(err.splitlines()) == 1
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(
    ("missing", "hint"),
    [
        ("typer", "needs typer: pip install 'otel-connector[cli]'"),
        ("rich", "needs rich: pip install 'otel-connector[cli]'"),
    ],
)
def test_a_missing_extra_is_named(tmp_path: Path, missing: str, hint: str) -> None:
    done = finish(start(tmp_path, "demo", without=missing))
    assert (done.code, done.out) == (2, "")
    assert hint in done.error
    assert len(done.error.splitlines()) == 1
    assert not list(tmp_path.iterdir()), "no file is created if a package is missing"


def test_a_missing_extra_that_the_server_needs_is_named(tmp_path: Path) -> None:
    code, out, err = run_here(tmp_path, "demo", without="trustme")
    assert (code, out) == (2, "")
    assert "needs trustme: pip install 'otel-connector[testing]'" in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir()), "no file is created if a package is missing"


def test_a_broken_installation_is_not_reported_as_a_missing_extra(tmp_path: Path) -> None:
    done = finish(start(tmp_path, "demo", without="otel_connector.cli._demo"))
    assert done.code == 1
    assert "No module named 'otel_connector.cli._demo'" in done.error


def test_help_and_version_are_printed() -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["--version"]).stdout == f"otel-connector {otel_connector.__version__}\n"
    assert "demo" in runner.invoke(app, []).output
    shown = runner.invoke(app, ["demo", "--help"], prog_name="otel-connector")
    assert shown.exit_code == 0
    assert "\n    otel-connector demo --calls 2000 --log more.csv\n" in shown.stdout
    assert all(option in shown.stdout for option in ("--log PATH", "--calls N", "--otlp", "--no-otlp"))
    assert runner.invoke(app, ["demo", "--calls", "0"]).exit_code == 2


async def test_run_yields_the_result_of_every_call_and_report_counts_them(tmp_path: Path) -> None:
    run = await asyncio.to_thread(Demo, tmp_path / "demo.csv", 18)
    results = [result async for result in run.run()]
    assert len({result.kind for result in results}) == 18
    assert DemoResult(kind="redirect", succeeded=True) in results
    assert DemoResult(kind="cancelled by the caller", succeeded=False) in results
    assert [result.kind for result in results if result.succeeded and ("then" in result.kind or "once" in result.kind)]
    report = await asyncio.to_thread(run.report)
    assert (report.started, report.rows) == (18, 18)
    assert sum(each.succeeded for each in report.summary.projects) == sum(result.succeeded for result in results)
    assert report.example is not None
    assert report.example.success


async def test_closing_the_results_stops_the_calls(tmp_path: Path) -> None:
    run = await asyncio.to_thread(Demo, tmp_path / "demo.csv", 300)
    results = run.run()
    await anext(results)
    await results.aclose()
    stats = run.stats()
    assert stats.calls_started == stats.rows_written == len(await asyncio.to_thread(rows_of, tmp_path / "demo.csv"))
    assert stats.calls_started < 300


def test_the_summary_of_no_rows_is_empty() -> None:
    assert summarise([]) == DemoSummary(projects=(), outcomes=())


@pytest.mark.parametrize("count", [1, 2, 3, 19, 20, 21, 100])
def test_the_demo_and_review_compute_the_same_percentiles(count: int, tmp_path: Path) -> None:
    rows = [ROW._replace(delta_t=float(number)) for number in range(count, 0, -1)]
    log = tmp_path / "demo.csv"
    log.write_bytes(HEADER + b"".join(map(encode_row, rows)))
    (project,) = summarise(rows_of(log)).projects
    with review.load(log) as calls:
        latency = review.summarize(calls).total.latency
    assert (project.p50, project.p95) == pytest.approx((latency.p50, latency.p95), rel=1e-9)


def test_the_example_of_an_outcome_is_its_first_message() -> None:
    errors = ["A: one: two", "B: x", "B: y", "C"]
    failed = [ROW._replace(success=False, error=error) for error in errors]
    outcomes = summarise([*failed, ROW, ROW._replace(redirect_url="http://b/")]).outcomes
    assert [(each.outcome, each.calls, each.example) for each in outcomes] == [
        ("success", 1, ""),
        ("success, redirected", 1, "to http://b/"),
        ("B", 2, "x"),
        ("A", 1, "one: two"),
        ("C", 1, ""),
    ]


def test_lines_that_are_not_rows_are_skipped(tmp_path: Path) -> None:
    log = tmp_path / "demo.csv"
    damaged = b"torn,1\n" + b"," * (len(COLUMNS) - 1) + b"\n"
    log.write_bytes(HEADER + encode_row(ROW) + damaged + encode_row(ROW) + encode_row(ROW).removesuffix(b"\n"))
    assert rows_of(log) == [ROW, ROW]
    assert list(read_rows(log, len(HEADER) + len(encode_row(ROW)))) == [ROW]
