"""Tests of the command ``otel-connector fetch``.

Pipes, terminals, signals and ``kill -9`` are tested with a process. Arguments and messages are tested in this process.
"""

from __future__ import annotations

import asyncio
import base64
import csv
import gzip
import io
import json
import os
import pty
import random
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from rich.console import Console
from support import command_line, forked, processes
from support.command_line import Finished, environment, run_here
from support.logs import attempts_in
from support.loop_and_memory import leaves_nothing
from support.otlp_receiver import Received, grpc_receiver
from support.processes import Process
from typer.testing import CliRunner

from otel_connector import AsyncConnector, CSVSpanExporter
from otel_connector._fetch._fetch import CONDITION_NAMES, Fetch, FetchOptions, Progress
from otel_connector._fetch._url_lists import OneUrl, UrlLines, UrlRange
from otel_connector.cli import app
from otel_connector.cli._fail_if import parse
from otel_connector.cli._fetch_command import _event_loop, _run_until_stopped, exit_code
from otel_connector.cli._fetch_view import FetchView, progress_line, result_line
from otel_connector.cli._stop_signals import StopSignals
from otel_connector.cli._terminal import TolerantStream
from otel_connector.testing import FaultServer, json_body, respond, retry_after, silent, slow_body

VALUE = {"answer": 42}
WIDTHS = (40, 80, 200)  # columns of the terminals


@pytest.fixture
def api() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.script("/ok", json_body(VALUE))
        server.script("/missing", 404)
        server.script("/never", silent)
        yield server


def start(folder: Path, *arguments: str, **options: Any) -> Process:
    # coverage cannot trace a uvloop event loop, so asyncio's is used while coverage measures
    without = "" if sys.gettrace() is None else "uvloop"
    return command_line.start(folder, "fetch", *arguments, without=without, **options)


def fetch(folder: Path, *arguments: str) -> Finished:
    """Run the command in this process and return its result."""
    return run_here(folder, "fetch", *arguments)


def piped(folder: Path, *arguments: str, text: str = "", **extra: str) -> Finished:
    """Run the command as a process with `text` on its standard input, and return its result."""
    with start(folder, *arguments, stdin=subprocess.PIPE, extra=extra) as process:
        out, error = process.communicate(text, timeout=60)
    return Finished(process.returncode, out, error)


def rows(folder: Path, name: str = "logs.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def results(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".gz":
        text = gzip.decompress(path.read_bytes()).decode()
    elif path.suffix == ".zst":
        from importlib import import_module

        text = (
            import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
            .decompress(path.read_bytes())
            .decode()
        )
    else:
        text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


# Sources of URLs, and results


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_a_template_with_a_range_writes_a_row_and_a_result_for_each_url(
    ending: str, api: FaultServer, tmp_path: Path
) -> None:
    run = piped if ending == "jsonl" else fetch
    code, out, error = run(
        tmp_path, api.url("/ok?n={:03}"), "--range", "1:20", "--out", f"r.{ending}", "--project", "P"
    )
    assert code == 0, error
    assert re.match(r"20 URLs, up to 50 in flight, on (uvloop|asyncio)\n", error)
    assert re.search(r"^Done: 20 URLs in [\d.]+ m?s: [\d.,]+/s, 20 ok, 0 failed, 0 retries$", out, re.MULTILINE)
    last = (
        f"Log: {tmp_path / 'logs.csv'}\nResults: {tmp_path / f'r.{ending}'}\nReview: otel-connector review logs.csv\n"
    )
    assert out.endswith(last)
    found = {line["url"]: line for line in results(tmp_path / f"r.{ending}")}
    assert set(found) == {api.url(f"/ok?n={number:03}") for number in range(1, 21)}
    for row in rows(tmp_path):
        assert found[row["url"]] == {
            "url": row["url"],
            "call_id": row["call_id"],
            "t": float(row["t"]),
            "status": 200,
            "json": VALUE,
        }
        assert row["project"] == "P"


def test_bodies_are_stored_as_json_text_or_base64(api: FaultServer, tmp_path: Path) -> None:
    api.script("/text", respond(body="é\n".encode(), content_type="text/plain"))
    api.script("/bytes", respond(body=b"\xff\x00", content_type="image/png"))
    api.script("/none", respond(204))
    (tmp_path / "urls").write_text("".join(f"{api.url(path)}\n" for path in ("/ok", "/text", "/bytes", "/none")))
    assert fetch(tmp_path, "urls", "--out", "r.jsonl")[0] == 0
    found = {line.pop("url").rpartition("/")[2]: line for line in results(tmp_path / "r.jsonl")}
    assert [found[name]["status"] for name in ("ok", "text", "bytes", "none")] == [200, 200, 200, 204]
    assert found["ok"]["json"] == VALUE
    assert found["text"]["text"] == "é\n"
    assert base64.b64decode(found["bytes"]["base64"]) == b"\xff\x00"
    assert found["none"]["text"] == ""


@pytest.mark.parametrize("from_pipe", [False, True])
def test_a_list_skips_blank_lines_and_comments_and_an_invalid_url_is_a_failed_call(
    from_pipe: bool, api: FaultServer, tmp_path: Path
) -> None:
    """A URL that is listed twice is fetched twice."""
    lines = f"\ufeff# a comment\n\n{api.url('/ok')}\r\n  {api.url('/ok')}  \nno url\n{api.url('/missing')}"
    (tmp_path / "urls").write_text(lines, encoding="utf-8")
    code, out, error = piped(tmp_path, "-", text=lines) if from_pipe else fetch(tmp_path, "urls")
    assert code == 1
    assert ("An unknown number of URLs, up to" if from_pipe else "4 URLs, up to") in error
    assert "otel-connector fetch: failed is 2, above 0" in error
    assert re.search(r"^Done: 4 URLs in .*: .*/s, 2 ok, 2 failed, 0 retries$", out, re.MULTILINE)
    assert re.search(r"^HTTPStatusError 404 +1$", out, re.MULTILINE)
    assert re.search(r"^InvalidURL +1$", out, re.MULTILINE)
    assert Counter(row["url"] for row in rows(tmp_path)) == {api.url("/ok"): 2, "no url": 1, api.url("/missing"): 1}


def test_a_list_in_latin_1_requests_each_of_its_urls(api: FaultServer, tmp_path: Path) -> None:
    """As wget does; the results have the URLs as given."""
    api.script("/caf%E9", json_body(VALUE))
    api.script("/caf%E8", json_body(VALUE))
    (tmp_path / "urls").write_bytes(f"{api.url('/')}caf\xe9\n{api.url('/')}caf\xe8\n".encode("latin-1"))
    assert fetch(tmp_path, "urls", "--out", "r.jsonl")[0] == 0
    assert sorted(request.path for request in api.requests) == ["/caf%E8", "/caf%E9"]
    assert sorted(row["url"][-7:] for row in rows(tmp_path)) == ["/caf%E8", "/caf%E9"]
    assert sorted(line["url"][-10:] for line in results(tmp_path / "r.jsonl")) == ["/caf\\udce8", "/caf\\udce9"]
    assert fetch(tmp_path, "urls", "--out", "r.jsonl", "--resume")[0] == 0
    assert len(rows(tmp_path)) == 2


def test_escapes_are_sent_as_they_are_and_recognized_on_resume(api: FaultServer, tmp_path: Path) -> None:
    """A signature may hold for the exact text only."""
    api.script("/%7Ea%2f", json_body(VALUE))
    (tmp_path / "urls").write_text(f"{api.url('/%7Ea%2f?x=%27%28')}\n")
    for options in ([], ["--resume"]):
        assert fetch(tmp_path, "urls", *options)[0] == 0
    assert [(request.path, request.query) for request in api.requests] == [("/%7Ea%2f", "x=%27%28")]


def test_a_url_with_a_user_in_addition_to_an_authorization_header_fails_alone(api: FaultServer, tmp_path: Path) -> None:
    with_user = api.url("/ok").replace("//", "//user:hush@")
    (tmp_path / "urls").write_text(f"{with_user}\n{api.url('/ok')}\n")
    for options in ([], ["--resume"]):
        code, out, _ = fetch(tmp_path, "urls", "-H", "Authorization: Bearer x", *options)
        assert code == 1
        assert re.search(r"^InvalidURL +1$", out, re.MULTILINE)
    assert Counter(row["success"] for row in rows(tmp_path)) == {"True": 1, "False": 2}
    assert "hush" not in (tmp_path / "logs.csv").read_text()


def test_a_dash_is_standard_input_even_if_a_file_has_that_name(api: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "-").write_text("not a URL\n")
    code, out, error = piped(tmp_path, "-", text=api.url("/ok"))
    assert (code, "Done: 1 URL in" in out) == (0, True), error


def test_dedupe_fetches_each_url_once(api: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "urls").write_text(f"{api.url('/ok')}\n" * 5)
    code, out, _ = fetch(tmp_path, "urls", "--dedupe")
    assert (code, len(rows(tmp_path))) == (0, 1)
    assert "1 ok, 0 failed, 0 retries, 4 skipped" in out


@pytest.mark.parametrize("source", ["empty", "-"])
def test_an_empty_list_succeeds_with_0_urls(source: str, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# nothing\n\n")
    code, out, _ = fetch(tmp_path, source)
    assert code == 0
    assert re.search(r"^Done: 0 URLs in [\d.]+ m?s: 0/s, 0 ok, 0 failed, 0 retries$", out, re.MULTILINE)


def test_a_single_url_can_be_given_as_the_source(api: FaultServer, tmp_path: Path) -> None:
    code, _, error = fetch(tmp_path, api.url("/ok"))
    assert code == 0
    assert error.startswith("1 URL, up to")


# Options


def test_options_reach_the_calls(api: FaultServer, tmp_path: Path) -> None:
    api.script("/odd", [418, 500, json_body(1)])
    code, _, _ = fetch(
        tmp_path, api.url("/odd"), "-H", "X-Mine: a: b", "--header", "X-Other:c", "--tries", "3",
        "--retry-status", "418", "--rate", "1000", "--per-host", "5", "--timeout", "5", "--deadline", "60",
        "--log", "other.csv", "--fail-if", "retries != 2 or calls > 1",
    )  # fmt: skip
    assert code == 0
    assert len(rows(tmp_path, "other.csv")) == 1
    assert [attempt.reason for attempt in attempts_in(tmp_path / "other.attempts.csv")] == [
        "status_418",
        "status_500",
        "",
    ]
    assert {request.headers["X-Mine"] for request in api.received("/odd")} == {"a: b"}
    assert {request.headers["X-Other"] for request in api.received("/odd")} == {"c"}


def test_the_timeout_and_the_deadline_end_a_call_that_hangs(api: FaultServer, tmp_path: Path) -> None:
    fetch(tmp_path, api.url("/never"), "--timeout", "0.1", "--tries", "1")
    fetch(tmp_path, api.url("/never"), "--deadline", "0.1")
    assert [row["error"].partition(":")[0] for row in rows(tmp_path)] == ["AttemptTimeout", "DeadlineExceeded"]


def test_fail_if_decides_the_exit_code(api: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "urls").write_text(f"{api.url('/ok')}\n" * 3 + api.url("/missing"))
    for condition, code, message in (
        ("error_rate > 50%", 0, ""),
        ("error_rate > 20% and calls >= 4", 1, "error_rate is 25%, above 20%"),
        ("calls < 2", 0, ""),
    ):
        found, _, error = fetch(tmp_path, "urls", "--fail-if", condition)
        assert (found, message in error) == (code, True)


def test_quiet_prints_only_the_reason_for_a_failure(api: FaultServer, tmp_path: Path) -> None:
    assert fetch(tmp_path, api.url("/ok"), "-q") == (0, "", "")
    assert fetch(tmp_path, api.url("/missing"), "--quiet") == (1, "", "otel-connector fetch: failed is 1, above 0\n")


def test_traces_are_sent_to_the_endpoint_in_the_environment(api: FaultServer, tmp_path: Path) -> None:
    received = Received()
    with grpc_receiver(received) as endpoint:
        code, _, error = piped(tmp_path, api.url("/ok"), OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert code == 0, error
    assert list(received.call_ids()) == [row["call_id"] for row in rows(tmp_path)]


BAD: dict[str, tuple[list[str], str]] = {
    "a missing file": (["none.txt"], "none.txt: No such file or directory"),
    "a folder": (["."], ".: Is a directory"),
    "a template without a range": (["http://a/{}"], "http://a/{} is a template: give its numbers with --range"),
    "a range without a template": (["http://a/", "--range", "1:2"], "is not a template: it must have one {}"),
    "a template with two fields": (["http://a/{}/{}", "--range", "1:2"], "is not a template: it must have one {}"),
    "a template with a named field": (["http://a/{n}", "--range", "1:2"], "is not a template: it must have one {}"),
    "a template with an invalid format": (
        ["http://a/{:s}", "--range", "1:2"],
        "is not a template: Unknown format code 's'",
    ),
    "a broken template": (["http://a/{", "--range", "1:2"], "is not a template: "),
    "an invalid range": (["http://a/{}", "--range", "1-2"], "--range '1-2' must be FIRST:LAST or FIRST:LAST:STEP"),
    "an invalid header": (["http://a/", "-H", "secret"], "--header must be 'NAME: VALUE' or @FILE"),
    "a rate of 0": (["http://a/", "--rate", "0"], "--rate must be more than 0 attempts a second, and finite, not 0.0"),
    "an infinite rate": (
        ["http://a/", "--rate", "inf"],
        "--rate must be more than 0 attempts a second, and finite, not inf",
    ),
    "results to standard output": (["http://a/", "--out", "-"], "--out must be a file, not -"),
    "a header of two lines": (["http://a/", "-H", "a: b\nc: d"], "--header 'a' must be one line"),
    "a timeout of 0": (["http://a/", "--timeout", "0"], "timeout must be more than 0 seconds"),
    "an invalid status": (["http://a/", "--retry-status", "7"], "--retry-status must be"),
    "an invalid condition": (["http://a/", "--fail-if", "p99 > 1"], "p99"),
    "a binary file": (["binary"], "binary is not a list of URLs: a line is longer than"),
    "another tool's log": (["http://a/", "--log", "other.csv"], "other.csv"),
    "a results file that has results": (
        ["http://a/", "--out", "there.jsonl"],
        "--out: there.jsonl: this file already has results",
    ),
    "results in a missing folder": (["http://a/", "--out", "none/r.jsonl"], "none/r.jsonl: No such file or directory"),
    "resume from a file that is not a log": (
        ["http://127.0.0.1:9/", "--resume-from", "other.csv"],
        ": not a log",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_reported_with_exit_code_2_and_changes_no_file(name: str, tmp_path: Path) -> None:
    arguments, message = BAD[name]
    (tmp_path / "binary").write_bytes(bytes(3_000_000))
    (tmp_path / "other.csv").write_text("url,when\n")
    (tmp_path / "there.jsonl").write_text('{"a": 1}\n')
    code, _, error = fetch(tmp_path, *arguments)
    assert code == 2
    assert error.splitlines()[-1].startswith("otel-connector fetch: ")
    assert message in error
    assert (tmp_path / "other.csv").read_text() == "url,when\n"
    assert (tmp_path / "there.jsonl").read_text() == '{"a": 1}\n'


def test_binary_data_in_a_pipe_after_a_valid_line_is_reported(api: FaultServer, tmp_path: Path) -> None:
    code, _, error = piped(tmp_path, "-", text=f"{api.url('/ok')}\n" + "x" * 2_000_000)
    assert code == 2
    assert "- is not a list of URLs: a line is longer than" in error
    assert len(rows(tmp_path)) <= 1


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits")
def test_a_call_whose_result_cannot_be_written_fails_and_resume_fetches_it(api: FaultServer, tmp_path: Path) -> None:
    """A call without a stored result does not count as a success, so the next run fetches it."""
    api.script("/large", json_body("x" * 2_000))
    urls = [api.url("/large", n=number) for number in range(10)]
    (tmp_path / "urls").write_text("\n".join(urls))
    arguments = ("fetch", "urls", "--out", "r.jsonl", "--concurrency", "2")
    with command_line.start_limited(tmp_path, 6_000, *arguments) as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "otel-connector fetch: --out: r.jsonl: File too large" in error
    kept = {line["url"] for line in results(tmp_path / "r.jsonl")}
    assert 1 <= len(kept) <= 2
    assert {row["url"] for row in rows(tmp_path) if row["success"] == "True"} == kept
    assert fetch(tmp_path, "urls", "--out", "r.jsonl", "--resume")[0] == 0
    assert {line["url"] for line in results(tmp_path / "r.jsonl")} == set(urls)


# Resume, signals and kill -9


def test_resume_does_not_read_a_log_that_was_archived_by_date(api: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "urls").write_text("\n".join(api.url(f"/ok?n={number}") for number in range(5)))
    assert fetch(tmp_path, "urls")[0] == 0
    (tmp_path / "logs.csv").rename(tmp_path / "logs.20261128.csv")
    code, out, error = fetch(tmp_path, "urls", "--resume")
    assert (code, len(rows(tmp_path))) == (0, 5)
    assert "The log has 0 rows of the project 'fetch'; URLs with a success: 0; read: logs.csv\n" in error
    assert "5 ok, 0 failed" in out
    code, out, error = fetch(tmp_path, "urls", "--resume-from", "logs.20261128.csv", "--log", "new.csv")
    assert "URLs with a success: 5; read: new.csv, logs.20261128.csv\n" in error


def test_resume_skips_the_completed_urls_of_the_same_project(api: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "urls").write_text("\n".join([api.url("/ok?n=1"), api.url("/ok?n=2"), api.url("/missing")]))
    assert fetch(tmp_path, "urls", "--out", "r.jsonl")[0] == 1
    api.script("/missing", json_body(1))
    code, out, error = fetch(tmp_path, "urls", "--out", "r.jsonl", "--resume")
    assert code == 0
    assert "The log has 3 rows of the project 'fetch'; URLs with a success: 2; read: logs.csv\n" in error
    assert "1 ok, 0 failed, 0 retries, 2 skipped" in out
    assert len(results(tmp_path / "r.jsonl")) == 3
    code, out, error = fetch(tmp_path, "urls", "--resume", "--project", "Another")
    assert "The log has 4 rows, but none of the project 'Another': no URL is skipped; read: logs.csv\n" in error
    code, out, error = fetch(tmp_path, "urls", "--log", "new.csv", "--resume-from", "logs.csv")
    assert (code, rows(tmp_path, "new.csv")) == (0, [])


def interrupt_when(process: processes.Process, log: Path, lines: int) -> None:
    """Send Ctrl-C when the log has the given number of lines."""
    processes.wait_until(lambda: log.exists() and log.read_bytes().count(b"\n") >= lines, process)
    process.send_signal(signal.SIGINT)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_finishes_the_calls_in_flight(api: FaultServer, tmp_path: Path) -> None:
    arguments = (api.url("/ok?n={}"), "--range", "1:1000000", "--no-attempts", "--out", "r.jsonl", "--concurrency", "7")
    with start(tmp_path, *arguments) as process:
        interrupt_when(process, tmp_path / "logs.csv", 50)
        out, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert re.search(r"^Stopped: [\d,]+ of 1,000,000 URLs in ", out, re.MULTILINE)
    assert f"Continue with: otel-connector fetch '{arguments[0]}' {' '.join(arguments[1:])} --resume\n" in error
    assert "Traceback" not in error
    found = rows(tmp_path)
    assert all(row["success"] == "True" for row in found)
    assert {row["call_id"] for row in found} == {line["call_id"] for line in results(tmp_path / "r.jsonl")}


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_second_ctrl_c_cancels_the_calls_in_flight(api: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "urls").write_text("\n".join([api.url("/ok")] * 3 + [api.url("/never")] * 100))
    with start(tmp_path, "urls", "--concurrency", "5", "--timeout", "600") as process:
        processes.wait_until(lambda: len(api.received("/never")) == 5, process)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):  # it still waits for the calls in flight
            process.wait(0.5)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Continue with: otel-connector fetch urls " in error
    assert "Traceback" not in error
    cancelled = [row for row in rows(tmp_path) if row["error"].startswith("CancelledError")]
    assert len(cancelled) == 5


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_stops_a_fetch_that_waits_for_more_input(api: FaultServer, tmp_path: Path) -> None:
    """The pipe stays open, and nothing more is written to it."""
    with start(tmp_path, "-", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(f"{api.url('/ok')}\n")
        process.stdin.flush()
        interrupt_when(process, tmp_path / "logs.csv", 2)
        assert process.wait(30) == 130


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("kills", "count"), [(4, 300), pytest.param(20, 20_000, marks=[pytest.mark.soak, pytest.mark.timeout(1_800)])]
)
def test_after_kill_9_at_any_point_resume_completes_the_results(
    kills: int, count: int, api: FaultServer, tmp_path: Path
) -> None:
    """After the last run all results are there, and few URLs were requested twice."""
    concurrency, urls = 20, {api.url(f"/ok?n={number}") for number in range(1, count + 1)}
    arguments = (api.url("/ok?n={}"), "--range", f"1:{count}", "--out", "r.jsonl.gz", "--resume", "--concurrency", "20")
    chance, log = random.Random(count), tmp_path / "logs.csv"
    for number in range(kills):
        with start(tmp_path, *arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            so_far = log.read_bytes().count(b"\n") if log.exists() else 0
            wanted = so_far + chance.randrange(1, max(2, 2 * (count - so_far) // (kills - number + 1)))
            while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < wanted):
                time.sleep(0.005)
            process.kill()
    code, _, error = fetch(tmp_path, *arguments)
    assert code == 0, error
    code, printed, _ = fetch(tmp_path, *arguments)
    assert (code, f"{count:,} skipped" in printed) == (0, True)
    assert {line["url"] for line in results(tmp_path / "r.jsonl.gz")} == urls
    recorded = [row["call_id"] for row in rows(tmp_path) if row["success"] == "True"]
    assert set(recorded) <= {line["call_id"] for line in results(tmp_path / "r.jsonl.gz")}
    requested = Counter(request.query for request in api.requests)
    assert len(requested) == count
    assert sum(requested.values()) - count <= kills * concurrency


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_resume_fetches_urls_again_that_have_no_result_in_the_file(
    ending: str, api: FaultServer, tmp_path: Path
) -> None:
    """The log alone does not decide: it may belong to another results file, or the file may have been deleted."""
    template, out = api.url("/ok?n={}"), tmp_path / f"r.{ending}"
    assert fetch(tmp_path, template, "--range", "1:4", "--out", out.name)[0] == 0
    code, printed, _ = fetch(tmp_path, template, "--range", "1:6", "--out", out.name, "--resume")
    assert (code, "2 ok, 0 failed, 0 retries, 4 skipped" in printed) == (0, True)
    for others in ("another", out.name):
        out.unlink()
        other = tmp_path / (others if others != "another" else f"a.{ending}")
        assert fetch(tmp_path, template, "--range", "1:6", "--out", other.name, "--resume")[0] == 0
        assert {line["url"] for line in results(other)} == {api.url("/ok", n=number) for number in range(1, 7)}
        other.rename(out)
    printed = fetch(tmp_path, template, "--range", "1:6", "--resume").out
    assert re.match(r"Done: 6 URLs in [\d.]+ m?s: 0/s, 0 ok", printed)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_works_when_the_output_pipe_is_closed(api: FaultServer, tmp_path: Path) -> None:
    """For example with ``| tee``, which the same Ctrl-C ends."""
    with start(tmp_path, api.url("/ok?n={}"), "--range", "1:1000000") as process:
        assert process.stdout is not None
        process.stdout.close()
        interrupt_when(process, tmp_path / "logs.csv", 50)
        assert process.stderr is not None
        error = process.stderr.read()
        assert process.wait(30) == 130
    assert re.search(r"^Stopping after \d+ calls? in flight; a second Ctrl-C cancels these$", error, re.MULTILINE)
    assert "Continue with: otel-connector fetch " in error
    assert "Traceback" not in error


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_after_ctrl_c_calls_that_wait_for_the_rate_limiter_are_not_sent(api: FaultServer, tmp_path: Path) -> None:
    with start(tmp_path, api.url("/ok?n={}"), "--range", "1:1000", "--rate", "0.01") as process:
        interrupt_when(process, tmp_path / "logs.csv", 2)
        assert process.wait(20) == 130
    assert len(api.requests) == 1
    unsent = [row for row in rows(tmp_path) if row["success"] == "False"]
    assert {row["error"] for row in unsent} == {"CancelledError: the run was stopped before this attempt was sent"}


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_call_in_flight_ends_although_others_wait_for_the_rate_limiter(api: FaultServer, tmp_path: Path) -> None:
    api.script("/slow", slow_body(1.0))
    (tmp_path / "urls").write_text(f"{api.url('/slow')}\n" + f"{api.url('/ok')}\n" * 9)
    with start(tmp_path, "urls", "--rate", "0.01") as process:
        processes.wait_until(lambda: bool(api.received("/slow")), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    (done,) = (row for row in rows(tmp_path) if row["success"] == "True")
    assert done["url"].endswith("/slow")
    assert {row["error"].partition(":")[0] for row in rows(tmp_path) if row != done} == {"CancelledError"}


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_secrets_are_redacted_in_the_command_printed_to_continue(api: FaultServer, tmp_path: Path) -> None:
    url = api.url("/ok?n={}&token=SECRET1").replace("//", "//user:SECRET2@")
    headers = ("-H", "X-Token: Bearer SECRET3", "--header=Cookie: SECRET4", "-HX-Key: SECRET5", "-qHX-Q: SECRET6")
    with start(tmp_path, url, "--range", "1:1000000", *headers) as process:
        interrupt_when(process, tmp_path / "logs.csv", 50)
        out, error = process.communicate(timeout=30)
    assert "SECRET" not in out + error
    shown = url.replace("user:SECRET2", "REDACTED:REDACTED").replace("SECRET1", "REDACTED")
    names = ("X-Token", "Cookie", "X-Key", "X-Q")
    options = " ".join(f"--header '{name}: REDACTED'" for name in names)
    assert f"Continue with: otel-connector fetch '{shown}' --range 1:1000000 {options} --quiet --resume\n" in error
    assert "Replace REDACTED by the secrets before\n" in error


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits")
def test_rows_that_cannot_be_written_are_counted_and_the_exit_code_is_2(api: FaultServer, tmp_path: Path) -> None:
    with command_line.start_limited(tmp_path, 3_000, "fetch", api.url("/ok?n={}"), "--range", "1:100") as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    written = len(rows(tmp_path))
    assert f"logs.csv: {100 - written} rows could not be written; --resume fetches the URLs again" in error


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
def test_full_or_closed_standard_streams_do_not_stop_a_fetch(api: FaultServer, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full, start(tmp_path, api.url("/ok"), stderr=full, stdout=full) as process:  # noqa: PTH123 - a device
        assert process.wait(60) == 0
    quoted = shlex.join([sys.executable, "-m", "otel_connector", "fetch", api.url("/ok")])

    def closing(changed: str) -> processes.Process:
        return processes.Process(["sh", "-c", changed], cwd=tmp_path, env=environment({}), stderr=subprocess.PIPE)

    writing = [closing(f"{quoted} {closed}") for closed in ("2>&-", "<&- >&-")]  # concurrently, with one log
    # A fork: Python sets `sys.stdin` to None if its descriptor is closed
    program = "import os, sys; os.close(0); sys.stdin = None; from otel_connector.__main__ import main; main()"
    reading = forked.run_python(["-c", program, "fetch", "-"], tmp_path)
    assert (reading.returncode, reading.stderr) == (2, "otel-connector fetch: -: standard input is closed\n")
    for each in writing:
        each.communicate(timeout=60)
        assert each.returncode == 0
    assert len(rows(tmp_path)) == 3


# Display


def on_a_terminal(folder: Path, *arguments: str, columns: int) -> str:
    """Run the command with standard error on a terminal of that width, and return its output there."""
    ours, theirs = pty.openpty()
    extra = {"COLUMNS": str(columns), "LINES": "24", "TERM": "xterm-256color"}
    with start(folder, *arguments, stderr=theirs, stdout=subprocess.DEVNULL, extra=extra) as process:
        os.close(theirs)
        written = bytearray()
        with suppress(OSError):  # the process has closed its side
            while process.poll() is None or select.select([ours], [], [], 0)[0]:
                if select.select([ours], [], [], 0.1)[0]:
                    written += os.read(ours, 65_536)
    os.close(ours)
    return written.decode()


@pytest.fixture(scope="module")
def terminals(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Return the output of the same fetch on terminals of several widths. The fetches run concurrently."""

    def fetch_on(columns: int) -> str:
        folder = tmp_path_factory.mktemp(f"columns{columns}")
        with FaultServer() as api:
            api.script("/ok", json_body(VALUE))
            api.script("/slow", [retry_after(1), json_body(1)])
            (folder / "urls").write_text("\n".join([api.url("/ok")] * 300 + [api.url("/slow")]))
            return on_a_terminal(folder, "urls", columns=columns)

    with ThreadPoolExecutor() as pool:
        return dict(zip(WIDTHS, pool.map(fetch_on, WIDTHS), strict=True))


@pytest.mark.skipif(sys.platform == "win32", reason="terminals")
@pytest.mark.parametrize("columns", WIDTHS)
def test_the_progress_display_fits_terminals_of_every_width(columns: int, terminals: dict[int, str]) -> None:
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminals[columns])
    assert max(len(line) for line in re.split(r"[\r\n]+", text)) <= max(columns, 60)  # the first line is not wrapped
    if columns >= 80:
        assert re.search(r"300/301 \(100 %\)", text)
        assert re.search(r"300 ok +0 failed +0 retries +1 in flight", text)
    if columns == 200:
        assert "1 host paused" in text


def test_progress_lines_show_counts_rates_and_durations() -> None:
    now = Progress(1_234, 5_000, 1_100, 34, 100, 1, 50, 2, 312.4, 12.0, 4.0)
    assert progress_line(now) == (
        "1,234/5,000 (25 %), 12.0 s left, 312/s, 1,100 ok, 34 failed, 1 retry, 50 in flight, 2 hosts paused, "
        "100 skipped"
    )
    assert result_line(now) == "1,234 of 5,000 URLs in 4.00 s: 284/s, 1,100 ok, 34 failed, 1 retry, 100 skipped"
    assert result_line(now._replace(done=1, total=1)).startswith("1 URL in 4.00 s: ")
    assert progress_line(now._replace(total=None, paused=1, rate=1.25)).startswith("1,234 done, 1.25/s, ")
    assert progress_line(now._replace(total=0, done=0, remaining=None)).startswith("0/0, 312/s")


async def test_without_a_terminal_progress_is_printed_as_plain_lines(api: FaultServer, tmp_path: Path) -> None:
    seconds, written = 0.0, io.StringIO()
    run = Fetch(
        AsyncConnector(None, timeout=600),
        OneUrl(api.url("/never")),
        FetchOptions(project="P", concurrency=1),
        clock=lambda: seconds,
    )
    running = asyncio.ensure_future(run.run())
    view = FetchView(Console(file=written, width=40), run, animated=False, line_interval=0.001)
    showing = asyncio.ensure_future(view.show())
    while "1 in flight" not in written.getvalue():  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.001)
    showing.cancel()
    running.cancel()
    await asyncio.wait({showing, running})
    assert set(re.findall(r"^0/1 .*", written.getvalue(), re.MULTILINE)) <= {
        "0/1 (0 %), 0/s, 0 ok, 0 failed, 0 retries, 0 in flight",
        "0/1 (0 %), 0/s, 0 ok, 0 failed, 0 retries, 1 in flight",
    }


async def test_the_rate_is_that_of_the_last_ten_seconds(api: FaultServer) -> None:
    seconds = 0.0
    urls = UrlRange(api.url("/ok?n={}"), range(30))
    run = Fetch(AsyncConnector(None), urls, FetchOptions(project="P", concurrency=5), clock=lambda: seconds)
    assert run.progress().rate == 0
    seconds = 10.0
    await run.run()
    assert (run.progress().rate, run.progress().remaining) == (3.0, 0.0)
    seconds = 40.0
    assert run.progress().rate == 0.75, "no recent calls, so it is the rate of the whole run"
    assert run.figures()["calls"] == 30


async def test_closing_the_batches_of_a_long_list_early_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "urls").write_text("http://127.0.0.1:9/\n" * 100_000)
    urls = await asyncio.to_thread(UrlLines, str(tmp_path / "urls"))
    assert urls.total == 100_000
    async with leaves_nothing():
        batches = urls.batches()
        assert len(await anext(batches)) > 1_000
        await batches.aclose()


async def test_a_run_that_is_stopped_before_its_first_call_requests_nothing(api: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "urls").write_text(api.url("/ok") + "\n")
    urls = await asyncio.to_thread(UrlLines, str(tmp_path / "urls"))
    run = Fetch(AsyncConnector(None), urls, FetchOptions(project="P", concurrency=1))
    run.stop()
    await run.run()
    assert (api.requests, run.progress().done) == ([], 0)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
async def test_cancelling_the_fetch_task_raises_cancellederror(api: FaultServer) -> None:
    run = Fetch(AsyncConnector(None, timeout=600), OneUrl(api.url("/never")), FetchOptions(project="P", concurrency=1))
    watching = asyncio.ensure_future(_run_until_stopped(run, None, StopSignals()))
    while not api.requests:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.001)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


def test_writing_to_a_closed_or_ascii_only_stream_raises_nothing(tmp_path: Path) -> None:
    closed = TolerantStream(None)
    assert (closed.write("lost"), closed.isatty(), closed.encoding) == (4, False, "utf-8")
    closed.flush()
    with pytest.raises(OSError, match="the stream is closed"):
        closed.fileno()
    with (tmp_path / "ascii").open("w", encoding="ascii") as file:
        narrow = TolerantStream(file)
        assert narrow.fileno() == file.fileno()
        narrow.write("é 1\n")
        narrow.flush()
    assert (tmp_path / "ascii").read_text() == "? 1\n"


async def test_a_closed_log_gives_exit_code_2_and_reports_the_lost_rows(
    api: FaultServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = await asyncio.to_thread(CSVSpanExporter, tmp_path / "logs.csv")
    await asyncio.to_thread(log.shutdown)
    run = Fetch(AsyncConnector(log), OneUrl(api.url("/ok")), FetchOptions(project="P", concurrency=1))
    await run.run()
    assert exit_code(run, parse("failed > 0", CONDITION_NAMES), Path("logs.csv"), "", StopSignals()) == 2
    assert "1 row could not be written;" in capfd.readouterr().err


def test_uvloop_is_used_where_it_is_installed() -> None:
    assert _event_loop() == ("uvloop", uvloop.run)


def test_ctrl_c_during_imports_exits_with_130_and_no_traceback() -> None:
    program = command_line.WITHOUT.replace("raise ModuleNotFoundError(", "raise KeyboardInterrupt(").replace(
        ", name=name", ""
    )
    done = processes.run(
        [sys.executable, "-c", program, "typer"], env=environment({}), capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, b"")


def test_without_uvloop_asyncio_is_used(api: FaultServer, tmp_path: Path) -> None:
    assert "on asyncio\n" in run_here(tmp_path, "fetch", api.url("/ok"), without="uvloop").error


@pytest.mark.parametrize("missing", ["aiolimiter", "backports.zstd"])
def test_a_missing_optional_package_is_reported_with_the_install_command(missing: str, tmp_path: Path) -> None:
    if missing == "backports.zstd" and sys.version_info >= (3, 14):
        return  # it is in the standard library there
    arguments = ("http://a/", "--rate", "5", "--out", "r.zst")
    code, _, error = run_here(tmp_path, "fetch", *arguments, without=missing)
    assert code == 2
    assert error.startswith("otel-connector fetch: ")
    assert "pip install 'otel-connector[cli]'" in error


def test_help_describes_the_options_and_exit_codes() -> None:
    runner = CliRunner()
    output = runner.invoke(app, ["fetch", "--help"]).output
    for word in ("Examples:", "Exit code:", "--resume", "--fail-if", "130"):
        assert word in output
    assert "--install-completion" in runner.invoke(app, ["--help"]).output
    assert runner.invoke(app, ["--version"]).output.startswith("otel-connector ")


@pytest.mark.parametrize(
    ("arguments", "redirection"),
    [
        ("--log l.csv --out /dev/stdout", "> r.jsonl"),
        ("--log l.csv --out r.jsonl", "> r.jsonl"),
        ("--log l.csv --out r.jsonl", ">> r.jsonl"),
        ("--log /dev/stdout", "> r.jsonl"),
        ("--log r.jsonl", "2> r.jsonl"),
    ],
)
def test_a_file_that_the_shell_writes_an_output_to_is_refused(
    arguments: str, redirection: str, tmp_path: Path, api: FaultServer
) -> None:
    """The summary would overwrite the results or the log."""
    stream, mode, name = re.findall(r"(2?)(>>?) (.*)", redirection)[0]
    with (tmp_path / name).open("a" if mode == ">>" else "w") as file:
        redirected = {"stderr" if stream else "stdout": file}
        with start(tmp_path, api.url("/ok"), *arguments.split(), **redirected) as process:
            _, error = process.communicate()
    option = "--out" if "--out" in arguments else "--log"
    assert process.returncode == 2
    printed = (error or "") + (tmp_path / name).read_text()
    assert f"{option}: " in printed
    assert "standard output or standard error is written to this file" in printed
    assert not api.requests
