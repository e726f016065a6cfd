"""``otel-connector fetch``, run as people run it: as a process, killed, interrupted, in a pipe, on a terminal.

What it makes of its arguments, and says, is tested in this process.
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
from support import command_line, processes
from support.command_line import Finished, environment, run_here
from support.loop_and_memory import leaves_nothing
from support.otlp_receiver import Received, grpc_receiver
from support.processes import Process
from typer.testing import CliRunner

from otel_connector import AsyncConnector, CSVSpanExporter
from otel_connector._fail_if import parse
from otel_connector._fetch import CONDITION_NAMES, Fetch, Progress, Wanted
from otel_connector._fetch_view import FetchView, as_line, duration, in_the_end
from otel_connector._terminal import Unbreakable
from otel_connector._url_lists import OneUrl, UrlLines, UrlRange
from otel_connector.cli import app
from otel_connector.cli._fetch_run import _runner, _watched, exit_code
from otel_connector.testing import FaultServer, json_body, respond, retry_after, silent

VALUE = {"answer": 42}
WIDTHS = (40, 80, 200)  # of terminals


@pytest.fixture
def api() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.script("/ok", json_body(VALUE))
        server.script("/missing", 404)
        server.script("/never", silent)
        yield server


def start(folder: Path, *arguments: str, **options: Any) -> Process:
    # uvloop's loop loses coverage's tracer, so where that is at work, asyncio's is used
    without = "" if sys.gettrace() is None else "uvloop"
    return command_line.start(folder, "fetch", *arguments, without=without, **options)


def fetch(folder: Path, *arguments: str) -> Finished:
    """Run it to its end, in this process."""
    return run_here(folder, "fetch", *arguments)


def piped(folder: Path, *arguments: str, said: str = "", **extra: str) -> Finished:
    """Run it to its end as a process that gets `said` through a pipe."""
    with start(folder, *arguments, stdin=subprocess.PIPE, extra=extra) as process:
        out, error = process.communicate(said, timeout=60)
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


# Where URLs come from, and where results go


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_template(ending: str, api: FaultServer, tmp_path: Path) -> None:
    run = piped if ending == "jsonl" else fetch
    code, out, error = run(
        tmp_path, api.url("/ok?n={:03}"), "--range", "1:20", "--out", f"r.{ending}", "--project", "P"
    )
    assert code == 0, error
    assert re.match(r"20 URLs, up to 50 at a time, on (uvloop|asyncio)\n", error)
    assert re.search(r"^Done: 20 URLs in 0:0\d: [\d.,]+/s, 20 ok, 0 failed, 0 retries$", out, re.MULTILINE)
    assert f"Log: {tmp_path / 'logs.csv'}\nResults: {tmp_path / f'r.{ending}'}\n" in out
    found = {line["url"]: line for line in results(tmp_path / f"r.{ending}")}
    assert set(found) == {api.url(f"/ok?n={number:03}") for number in range(1, 21)}
    for row in rows(tmp_path):
        assert found[row["url"]] == {"url": row["url"], "call_id": row["call_id"], "status": 200, "json": VALUE}
        assert row["project"] == "P"


def test_bodies_of_every_kind(api: FaultServer, tmp_path: Path) -> None:
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
def test_lines(from_pipe: bool, api: FaultServer, tmp_path: Path) -> None:
    """Blank lines and comments are none, a line that is no URL is a failed call, and a URL that comes twice is two."""
    lines = f"\ufeff# a comment\n\n{api.url('/ok')}\r\n  {api.url('/ok')}  \nno url\n{api.url('/missing')}"
    (tmp_path / "urls").write_text(lines, encoding="utf-8")
    code, out, error = piped(tmp_path, "-", said=lines) if from_pipe else fetch(tmp_path, "urls")
    assert code == 1
    assert ("URLs as they come, up to" if from_pipe else "4 URLs, up to") in error
    assert "otel-connector fetch: failed is 2, above 0" in error
    assert re.search(r"^Done: 4 URLs in .*: .*/s, 2 ok, 2 failed, 0 retries$", out, re.MULTILINE)
    assert re.search(r"^HTTPStatusError 404 +1$", out, re.MULTILINE)
    assert re.search(r"^InvalidURL +1$", out, re.MULTILINE)
    assert Counter(row["url"] for row in rows(tmp_path)) == {api.url("/ok"): 2, "no url": 1, api.url("/missing"): 1}


def test_dedupe(api: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "urls").write_text(f"{api.url('/ok')}\n" * 5)
    code, out, _ = fetch(tmp_path, "urls", "--dedupe")
    assert (code, len(rows(tmp_path))) == (0, 1)
    assert "1 ok, 0 failed, 0 retries, 4 passed over" in out


@pytest.mark.parametrize("source", ["empty", "-"])
def test_nothing_to_fetch(source: str, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# nothing\n\n")
    code, out, _ = fetch(tmp_path, source)
    assert code == 0
    assert re.search(r"^Done: 0 URLs in 0:00: 0.0/s, 0 ok, 0 failed, 0 retries$", out, re.MULTILINE)


def test_one_url(api: FaultServer, tmp_path: Path) -> None:
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
    assert {request.headers["X-Mine"] for request in api.received("/odd")} == {"a: b"}
    assert {request.headers["X-Other"] for request in api.received("/odd")} == {"c"}


def test_deadline_and_timeout(api: FaultServer, tmp_path: Path) -> None:
    fetch(tmp_path, api.url("/never"), "--timeout", "0.1", "--tries", "1")
    fetch(tmp_path, api.url("/never"), "--deadline", "0.1")
    assert [row["error"].partition(":")[0] for row in rows(tmp_path)] == ["AttemptTimeout", "DeadlineExceeded"]


def test_condition(api: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "urls").write_text(f"{api.url('/ok')}\n" * 3 + api.url("/missing"))
    for condition, code, said in (
        ("error_rate > 50%", 0, ""),
        ("error_rate > 20% and calls >= 4", 1, "error_rate is 25%, above 20%"),
        ("calls < 2", 0, ""),
    ):
        found, _, error = fetch(tmp_path, "urls", "--fail-if", condition)
        assert (found, said in error) == (code, True)


def test_quiet(api: FaultServer, tmp_path: Path) -> None:
    assert fetch(tmp_path, api.url("/ok"), "-q") == (0, "", "")
    assert fetch(tmp_path, api.url("/missing"), "--quiet") == (1, "", "otel-connector fetch: failed is 1, above 0\n")


def test_traces_go_where_the_environment_says(api: FaultServer, tmp_path: Path) -> None:
    received = Received()
    with grpc_receiver(received) as endpoint:
        code, _, error = piped(tmp_path, api.url("/ok"), OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert code == 0, error
    assert list(received.call_ids()) == [row["call_id"] for row in rows(tmp_path)]


BAD: dict[str, tuple[list[str], str]] = {
    "no file": (["none.txt"], "none.txt: No such file or directory"),
    "a folder": (["."], ".: Is a directory"),
    "a template without a range": (["http://a/{}"], "http://a/{} is a template: say with --range"),
    "a range without a template": (["http://a/", "--range", "1:2"], "is no template: it must have one {}"),
    "a template with two places": (["http://a/{}/{}", "--range", "1:2"], "is no template: it must have one {}"),
    "a template with a name": (["http://a/{n}", "--range", "1:2"], "is no template: it must have one {}"),
    "a template with an odd format": (["http://a/{:s}", "--range", "1:2"], "is no template: Unknown format code 's'"),
    "a broken template": (["http://a/{", "--range", "1:2"], "is no template: "),
    "a range that is none": (["http://a/{}", "--range", "1-2"], "--range '1-2' must be FIRST:LAST or FIRST:LAST:STEP"),
    "a header that is none": (["http://a/", "-H", "secret"], "--header 'secret' must be 'NAME: VALUE'"),
    "no rate": (["http://a/", "--rate", "0"], "--rate must be above 0, and finite, not 0"),
    "an endless rate": (["http://a/", "--rate", "inf"], "--rate must be above 0, and finite, not inf"),
    "results to the output": (["http://a/", "--out", "-"], "--out must be a file, not -"),
    "a header of two lines": (["http://a/", "-H", "a: b\nc: d"], "--header 'a' must be one line"),
    "no timeout": (["http://a/", "--timeout", "0"], "timeout must be more than 0 seconds"),
    "a status that is none": (["http://a/", "--retry-status", "7"], "statuses"),
    "a condition that is none": (["http://a/", "--fail-if", "p99 > 1"], "p99"),
    "a binary": (["binary"], "binary is no list of URLs: a line is longer than"),
    "another tool's log": (["http://a/", "--log", "other.csv"], "other.csv"),
    "results that are there": (["http://a/", "--out", "there.jsonl"], "there.jsonl: it has results already"),
    "results in no folder": (["http://a/", "--out", "none/r.jsonl"], "none/r.jsonl: No such file or directory"),
    "a log to resume from that is none": (
        ["http://127.0.0.1:9/", "--resume-from", "other.csv"],
        "is not a log of this library",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, tmp_path: Path) -> None:
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


def test_pipe_that_turns_out_to_be_binary(api: FaultServer, tmp_path: Path) -> None:
    code, _, error = piped(tmp_path, "-", said=f"{api.url('/ok')}\n" + "x" * 2_000_000)
    assert code == 2
    assert "- is no list of URLs: a line is longer than" in error
    assert len(rows(tmp_path)) <= 1


@pytest.mark.skipif(sys.platform == "win32", reason="limits of files")
def test_results_that_cannot_be_written_any_more(api: FaultServer, tmp_path: Path) -> None:
    """What has no result is no success, so the next run fetches it."""
    import resource

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000))

    api.script("/large", json_body("x" * 2_000))
    urls = [api.url("/large", n=number) for number in range(10)]
    (tmp_path / "urls").write_text("\n".join(urls))
    with start(tmp_path, "urls", "--out", "r.jsonl", "--concurrency", "2", preexec_fn=little_room) as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "otel-connector fetch: r.jsonl: File too large" in error
    kept = {line["url"] for line in results(tmp_path / "r.jsonl")}
    assert 1 <= len(kept) <= 2
    assert {row["url"] for row in rows(tmp_path) if row["success"] == "True"} == kept
    assert fetch(tmp_path, "urls", "--out", "r.jsonl", "--resume")[0] == 0
    assert {line["url"] for line in results(tmp_path / "r.jsonl")} == set(urls)


# Resume, and the ways to stop it


def test_resume(api: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "urls").write_text("\n".join([api.url("/ok?n=1"), api.url("/ok?n=2"), api.url("/missing")]))
    assert fetch(tmp_path, "urls", "--out", "r.jsonl")[0] == 1
    api.script("/missing", json_body(1))
    code, out, error = fetch(tmp_path, "urls", "--out", "r.jsonl", "--resume")
    assert code == 0
    assert "The log has 3 rows of the project 'fetch'; URLs that are done: 2" in error
    assert "1 ok, 0 failed, 0 retries, 2 passed over" in out
    assert len(results(tmp_path / "r.jsonl")) == 3
    code, out, error = fetch(tmp_path, "urls", "--resume", "--project", "Another")
    assert "The log has 4 rows, but none of the project 'Another': nothing is passed over" in error
    code, out, error = fetch(tmp_path, "urls", "--log", "new.csv", "--resume-from", "logs.csv")
    assert (code, rows(tmp_path, "new.csv")) == (0, [])


def interrupt_when(process: processes.Process, log: Path, lines: int) -> None:
    """Press Ctrl-C when the log has so many lines."""
    processes.wait_until(lambda: log.exists() and log.read_bytes().count(b"\n") >= lines, process)
    process.send_signal(signal.SIGINT)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_finishes_what_is_under_way(api: FaultServer, tmp_path: Path) -> None:
    arguments = (api.url("/ok?n={}"), "--range", "1:1000000", "--concurrency", "7", "--out", "r.jsonl")
    with start(tmp_path, *arguments) as process:
        interrupt_when(process, tmp_path / "logs.csv", 50)
        out, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert re.search(r"^Stopped: [\d,]+ of 1,000,000 URLs in ", out, re.MULTILINE)
    assert f"Go on with: otel-connector fetch '{arguments[0]}' {' '.join(arguments[1:])} --resume\n" in error
    assert "Traceback" not in error
    found = rows(tmp_path)
    assert all(row["success"] == "True" for row in found)
    assert {row["call_id"] for row in found} == {line["call_id"] for line in results(tmp_path / "r.jsonl")}


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_twice_stops_at_once(api: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "urls").write_text("\n".join([api.url("/ok")] * 3 + [api.url("/never")] * 100))
    with start(tmp_path, "urls", "--concurrency", "5", "--timeout", "600") as process:
        interrupt_when(process, tmp_path / "logs.csv", 4)
        with pytest.raises(subprocess.TimeoutExpired):  # the calls under way are waited for
            process.wait(0.5)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Go on with: otel-connector fetch urls " in error
    assert "Traceback" not in error
    cancelled = [row for row in rows(tmp_path) if row["error"].startswith("CancelledError")]
    assert len(cancelled) == 5


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_while_the_list_is_waited_for(api: FaultServer, tmp_path: Path) -> None:
    """The pipe stays open, and nobody writes to it."""
    with start(tmp_path, "-", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(f"{api.url('/ok')}\n")
        process.stdin.flush()
        interrupt_when(process, tmp_path / "logs.csv", 2)
        assert process.wait(30) == 130


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("kills", "count"), [(5, 1_000), pytest.param(20, 20_000, marks=[pytest.mark.soak, pytest.mark.timeout(1_800)])]
)
def test_kill_9_at_any_point(kills: int, count: int, api: FaultServer, tmp_path: Path) -> None:
    """After the last rerun all results are there, and few URLs were asked for twice."""
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
    assert {line["url"] for line in results(tmp_path / "r.jsonl.gz")} == urls
    recorded = [row["call_id"] for row in rows(tmp_path) if row["success"] == "True"]
    assert set(recorded) <= {line["call_id"] for line in results(tmp_path / "r.jsonl.gz")}
    asked = Counter(request.query for request in api.requests)
    assert len(asked) == count
    assert sum(asked.values()) - count <= kills * concurrency


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_what_has_no_result_in_the_file_is_fetched_again(ending: str, api: FaultServer, tmp_path: Path) -> None:
    """Whatever the log says: it may be that of another file, or the file is gone."""
    template, out = api.url("/ok?n={}"), tmp_path / f"r.{ending}"
    assert fetch(tmp_path, template, "--range", "1:4", "--out", out.name)[0] == 0
    code, said, _ = fetch(tmp_path, template, "--range", "1:6", "--out", out.name, "--resume")
    assert (code, "2 ok, 0 failed, 0 retries, 4 passed over" in said) == (0, True)
    for others in ("another", out.name):
        out.unlink()
        other = tmp_path / (others if others != "another" else f"a.{ending}")
        assert fetch(tmp_path, template, "--range", "1:6", "--out", other.name, "--resume")[0] == 0
        assert {line["url"] for line in results(other)} == {api.url("/ok", n=number) for number in range(1, 7)}
        other.rename(out)
    assert fetch(tmp_path, template, "--range", "1:6", "--resume")[1].startswith("Done: 6 URLs in 0:00: 0.0/s, 0 ok")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_when_nobody_reads_the_output(api: FaultServer, tmp_path: Path) -> None:
    """As with ``| tee``, which dies of the same Ctrl-C."""
    with start(tmp_path, api.url("/ok?n={}"), "--range", "1:1000000") as process:
        assert process.stdout is not None
        process.stdout.close()
        interrupt_when(process, tmp_path / "logs.csv", 50)
        assert process.stderr is not None
        error = process.stderr.read()
        assert process.wait(30) == 130
    assert re.search(
        r"^Stopping when the calls under way \(\d+\) have ended; Ctrl-C ends them at once$", error, re.MULTILINE
    )
    assert "Go on with: otel-connector fetch " in error
    assert "Traceback" not in error


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_sends_nothing_more_though_many_wait_for_the_rate(api: FaultServer, tmp_path: Path) -> None:
    with start(tmp_path, api.url("/ok?n={}"), "--range", "1:1000", "--rate", "0.01") as process:
        interrupt_when(process, tmp_path / "logs.csv", 2)
        assert process.wait(20) == 130
    assert len(api.requests) == 1
    unsent = [row for row in rows(tmp_path) if row["success"] == "False"]
    assert {row["error"] for row in unsent} == {
        "RateLimiterFailed: rate_limiter raised RuntimeError: stopped before its turn came"
    }


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_the_command_that_goes_on_has_no_secrets(api: FaultServer, tmp_path: Path) -> None:
    url = api.url("/ok?n={}&token=SECRET1").replace("//", "//user:SECRET2@")
    headers = ("-H", "X-Token: Bearer SECRET3", "--header=Cookie: SECRET4", "-HX-Key: SECRET5")
    with start(tmp_path, url, "--range", "1:1000000", *headers) as process:
        interrupt_when(process, tmp_path / "logs.csv", 50)
        out, error = process.communicate(timeout=30)
    assert "SECRET" not in out + error
    assert "--header=Cookie: REDACTED" in error
    assert "(with the secrets in the place of REDACTED)" in error


@pytest.mark.skipif(sys.platform == "win32", reason="limits of files")
def test_rows_that_cannot_be_written(api: FaultServer, tmp_path: Path) -> None:
    import resource

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))

    with start(tmp_path, api.url("/ok?n={}"), "--range", "1:100", preexec_fn=little_room) as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    written = len(rows(tmp_path))
    assert f"logs.csv: rows that could not be written: {100 - written}; --resume fetches those again" in error


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
def test_outputs_that_cannot_be_written_end_no_job(api: FaultServer, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full, start(tmp_path, api.url("/ok"), stderr=full, stdout=full) as process:  # noqa: PTH123 - a device
        assert process.wait(60) == 0
    command = [sys.executable, "-m", "otel_connector", "fetch", api.url("/ok")]
    quoted = shlex.join(command)

    def closing(changed: str) -> processes.Process:
        return processes.Process(["sh", "-c", changed], cwd=tmp_path, env=environment({}), stderr=subprocess.PIPE)

    writing = [closing(f"{quoted} {closed}") for closed in ("2>&-", ">&-", "<&-")]  # side by side, to one log
    reading = closing(f"{quoted.rpartition(' ')[0]} - <&- >/dev/null")
    _, error = reading.communicate(timeout=60)
    assert (reading.returncode, error) == (2, b"otel-connector fetch: -: standard input is closed\n")
    for each in writing:
        each.communicate(timeout=60)
        assert each.returncode == 0
    assert len(rows(tmp_path)) == 4


# How it looks


def on_a_terminal(folder: Path, *arguments: str, columns: int) -> str:
    """Run it with standard error on a terminal of so many columns; return what it wrote there."""
    ours, theirs = pty.openpty()
    extra = {"COLUMNS": str(columns), "LINES": "24", "TERM": "xterm-256color"}
    with start(folder, *arguments, stderr=theirs, stdout=subprocess.DEVNULL, extra=extra) as process:
        os.close(theirs)
        written = bytearray()
        with suppress(OSError):  # the other side is closed
            while process.poll() is None or select.select([ours], [], [], 0)[0]:
                if select.select([ours], [], [], 0.1)[0]:
                    written += os.read(ours, 65_536)
    os.close(ours)
    return written.decode()


@pytest.fixture(scope="module")
def terminals(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """What one fetch wrote to terminals of some widths, all at the same time."""

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
def test_terminal(columns: int, terminals: dict[int, str]) -> None:
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminals[columns])
    assert max(len(line) for line in re.split(r"[\r\n]+", text)) <= max(columns, 60)  # the first line is not wrapped
    if columns >= 80:
        assert re.search(r"300/301 \(100 %\)", text)
        assert re.search(r"300 ok +0 failed +0 retries +1 in flight", text)
    if columns == 200:
        assert "1 host held back" in text


def test_lines_that_tell_where_it_stands() -> None:
    now = Progress(1_234, 5_000, 1_100, 34, 100, 1, 50, 2, 312.4, 12.0, 4.0)
    assert as_line(now) == (
        "1,234/5,000 (25 %), 0:12 left, 312/s, 1,100 ok, 34 failed, 1 retry, 50 in flight, 2 hosts held back, "
        "100 passed over"
    )
    assert in_the_end(now) == "1,234 of 5,000 URLs in 0:04: 284/s, 1,100 ok, 34 failed, 1 retry, 100 passed over"
    assert in_the_end(now._replace(done=1, total=1)).startswith("1 URL in 0:04: ")
    assert as_line(now._replace(total=None, held_back=1, rate=1.25)).startswith("1,234 done, 1.2/s, ")
    assert as_line(now._replace(total=0, done=0, remaining=None)).startswith("0/0, 312/s")
    assert [duration(seconds) for seconds in (0, 59.6, 3_600, 90_061)] == ["0:00", "1:00", "1:00:00", "1 d 1:01:01"]


async def test_lines_where_nothing_moves(api: FaultServer, tmp_path: Path) -> None:
    """And the rate is that of the last ten seconds."""
    seconds, written = 0.0, io.StringIO()
    run = Fetch(
        AsyncConnector(None, timeout=600),
        OneUrl(api.url("/never")),
        Wanted(project="P", concurrency=1),
        clock=lambda: seconds,
    )
    running = asyncio.ensure_future(run.run())
    view = FetchView(Console(file=written, width=40), run, moving=False, line_every=0.001)
    showing = asyncio.ensure_future(view.show())
    while "1 in flight" not in written.getvalue():  # noqa: ASYNC110 - nothing says when
        await asyncio.sleep(0.001)
    showing.cancel()
    running.cancel()
    await asyncio.wait({showing, running})
    assert set(re.findall(r"^0/1 .*", written.getvalue(), re.MULTILINE)) <= {
        "0/1 (0 %), 0.0/s, 0 ok, 0 failed, 0 retries, 0 in flight",
        "0/1 (0 %), 0.0/s, 0 ok, 0 failed, 0 retries, 1 in flight",
    }


async def test_the_rate_is_that_of_late(api: FaultServer) -> None:
    seconds = 0.0
    urls = UrlRange(api.url("/ok?n={}"), range(30))
    run = Fetch(AsyncConnector(None), urls, Wanted(project="P", concurrency=5), clock=lambda: seconds)
    assert run.progress().rate == 0
    seconds = 10.0
    await run.run()
    assert (run.progress().rate, run.progress().remaining) == (3.0, 0.0)
    seconds = 40.0
    assert run.progress().rate == 0.75, "nothing of late, so it is that of all the time"
    assert run.figures()["calls"] == 30


async def test_who_leaves_a_long_list_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "urls").write_text("http://127.0.0.1:9/\n" * 100_000)
    urls = await asyncio.to_thread(UrlLines, str(tmp_path / "urls"))
    assert urls.total == 100_000
    async with leaves_nothing():
        batches = urls.batches()
        assert len(await anext(batches)) > 1_000
        await batches.aclose()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
async def test_cancelled_without_a_ctrl_c(api: FaultServer) -> None:
    run = Fetch(AsyncConnector(None, timeout=600), OneUrl(api.url("/never")), Wanted(project="P", concurrency=1))
    watching = asyncio.ensure_future(_watched(run, None))
    while not api.requests:  # noqa: ASYNC110 - nothing says when
        await asyncio.sleep(0.001)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)


def test_an_output_that_ends_no_job(tmp_path: Path) -> None:
    closed = Unbreakable(None)
    assert (closed.write("lost"), closed.isatty(), closed.encoding) == (4, False, "utf-8")
    closed.flush()
    with pytest.raises(OSError, match="it is closed"):
        closed.fileno()
    with (tmp_path / "ascii").open("w", encoding="ascii") as file:
        narrow = Unbreakable(file)
        assert narrow.fileno() == file.fileno()
        narrow.write("é 1\n")
        narrow.flush()
    assert (tmp_path / "ascii").read_text() == "? 1\n"


async def test_a_log_that_takes_no_rows(api: FaultServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = await asyncio.to_thread(CSVSpanExporter, tmp_path / "logs.csv")
    await asyncio.to_thread(log.shutdown)
    run = Fetch(AsyncConnector(log), OneUrl(api.url("/ok")), Wanted(project="P", concurrency=1))
    await run.run()
    assert exit_code(run, parse("failed > 0", CONDITION_NAMES), Path("logs.csv")) == 2
    assert "rows that could not be written: 1;" in capfd.readouterr().err


def test_uvloop_is_used_where_it_is_installed() -> None:
    assert _runner() == ("uvloop", uvloop.run)


def test_ctrl_c_while_the_program_loads() -> None:
    program = command_line.WITHOUT.replace("raise ModuleNotFoundError(", "raise KeyboardInterrupt(").replace(
        ", name=name", ""
    )
    done = processes.run(
        [sys.executable, "-c", program, "typer"], env=environment({}), capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, b"")


def test_without_uvloop(api: FaultServer, tmp_path: Path) -> None:
    assert "on asyncio\n" in run_here(tmp_path, "fetch", api.url("/ok"), without="uvloop").error


@pytest.mark.parametrize("missing", ["aiolimiter", "backports.zstd"])
def test_what_is_not_installed_is_named(missing: str, tmp_path: Path) -> None:
    if missing == "backports.zstd" and sys.version_info >= (3, 14):
        return  # it is in the standard library there
    arguments = ("http://a/", "--rate", "5", "--out", "r.zst")
    code, _, error = run_here(tmp_path, "fetch", *arguments, without=missing)
    assert code == 2
    assert error.startswith("otel-connector fetch: ")
    assert "pip install 'otel-connector[cli]'" in error


def test_help_and_completion() -> None:
    runner = CliRunner()
    told = runner.invoke(app, ["fetch", "--help"]).output
    for word in ("Examples:", "Exit code:", "--resume", "--fail-if", "130"):
        assert word in told
    assert "--install-completion" in runner.invoke(app, ["--help"]).output
    assert runner.invoke(app, ["--version"]).output.startswith("otel-connector ")
