"""Tests of what a review says with the attempts log: lost time, calls by number of attempts, retries over time."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.command_line import run_here
from support.logs import START, call, write

from otel_connector import review
from otel_connector._record import ATTEMPT_COLUMNS
from otel_connector.cli._review_view import summary_view
from otel_connector.review._points import points

A, B = "https://a.example/x", "https://b.example/x"


def attempts(*rows: tuple[int, int, float, float, float, str, str], retry_after: str = "") -> str:
    """Return an attempts log. A row has call, number, duration, queue, wait, reason, status."""
    lines = [",".join(ATTEMPT_COLUMNS)]
    for number, attempt, duration, queue, wait, reason, status in rows:
        name = f"{number + 1:032x}-{number + 1:016x}"
        t = START + number + attempt / 10
        waited = f"{wait:.6f}" if wait else ""
        texts = f"{waited},{reason},{status},{status},{retry_after if wait else ''}"
        lines.append(f"{name},{attempt},{t:.6f},{duration:.6f},{queue:.6f},{texts}")
    return "\n".join(lines) + "\n"


def write_log(folder: Path) -> Path:
    """Write a log of four calls: two with a second attempt, one with three, and one that failed after two."""
    made = [call(0, url=A), call(1, url=A), call(2, url=B), call(90, url=B, error="AttemptTimeout: x"), call(95)]
    (folder / "logs.attempts.csv").write_text(
        attempts(
            (0, 1, 0.5, 2.0, 1.0, "status_503", "503"),
            (0, 2, 0.1, 0.0, 0.0, "", "200"),
            (1, 1, 0.5, 0.0, 1.0, "status_503", "503"),
            (1, 2, 0.1, 0.0, 0.0, "", "200"),
            (2, 1, 5.0, 0.0, 1.0, "timeout", ""),
            (2, 2, 5.0, 0.0, 1.0, "timeout", ""),
            (2, 3, 0.1, 0.0, 0.0, "", "200"),
            (90, 1, 5.0, 0.0, 1.0, "timeout", ""),
            (90, 2, 5.0, 0.0, 0.0, "timeout", ""),
            (7_000, 1, 5.0, 0.0, 1.0, "timeout", ""),  # of a call that is not in the log
        )
        + "torn",
        encoding="utf-8",
    )
    return write(folder / "logs.csv", made)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path)


TO_A_PAGE = ("--json", "--html", "r.html")


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the log, for `output`."""
    return write_log(tmp_path_factory.mktemp("reviewed")).parent


@pytest.fixture(scope="module")
def output(reviewed: Path) -> Callable[..., str]:
    """Return a function that returns the output of a review with some options, which runs once."""
    return cache(lambda *options: run_here(reviewed, "review", "logs.csv", *options).out)


@pytest.fixture(scope="module")
def page(reviewed: Path, output: Callable[..., str]) -> str:
    output(*TO_A_PAGE)
    return (reviewed / "r.html").read_text(encoding="utf-8")


def test_lost_time_by_reason_and_host_and_calls_by_number_of_attempts(log: Path) -> None:
    with review.load(log) as calls:
        found = review.summarize(calls).retries
        limited = review.summarize(calls, top=1).retries
    assert found is not None
    assert [(each.reason, each.name, each.attempts) for each in found.hosts] == [
        ("timeout", "b.example", 4),
        ("status_503", "a.example", 2),
    ]
    assert [(each.reason, each.name) for each in found.endpoints] == [
        ("timeout", "b.example/x"),
        ("status_503", "a.example/x"),
    ]
    timeout, status = found.hosts
    assert (timeout.failing, timeout.waiting, timeout.queued, timeout.seconds) == (20.0, 3.0, 0.0, 23.0)
    assert (status.failing, status.waiting, status.queued, status.seconds) == (1.0, 2.0, 2.0, 5.0)
    assert [(each.attempts, each.succeeded, each.failed) for each in found.tries] == [(2, 2, 1), (3, 1, 0)]
    assert found.seconds == 28.0
    assert [each.retries for each in found.over_time] == [4, *[0] * 21, 1, 0]
    assert limited is not None
    assert (len(limited.hosts), limited.more_hosts) == (len(limited.endpoints), limited.more_endpoints) == (1, 1)
    assert limited.seconds == 28.0


def test_waits_for_which_the_server_asked_are_apart_from_back_off(log: Path) -> None:
    asked = attempts(
        (0, 1, 0.5, 0.0, 7.0, "status_503", "503"), (0, 2, 0.1, 0.0, 0.0, "", "200"), retry_after="7.000000"
    )
    back_off = attempts((1, 1, 0.5, 2.0, 1.0, "status_503", "503"), (1, 2, 0.1, 0.0, 0.0, "", "200")).partition("\n")[2]
    log.with_name("logs.attempts.csv").write_text(asked + back_off, encoding="utf-8")
    with review.load(log) as calls:
        found = review.summarize(calls).retries
    assert found is not None
    (lost,) = found.hosts
    assert (lost.reason, lost.failing, lost.waiting, lost.asked, lost.queued, lost.seconds) == (
        *("status_503", 1.0, 1.0, 7.0, 2.0),
        11.0,
    )


def test_rows_without_the_last_column_are_read(log: Path) -> None:
    """Development versions wrote nine columns."""
    path = log.with_name("logs.attempts.csv")
    path.write_text("".join(line.rpartition(",")[0] + "\n" for line in path.read_text().splitlines()), encoding="utf-8")
    with review.load(log) as calls:
        found = review.summarize(calls).retries
    assert found is not None
    assert [(each.waiting, each.asked) for each in found.hosts] == [(3.0, 0.0), (2.0, 0.0)]


def test_only_the_attempts_of_the_selected_calls_count(log: Path) -> None:
    with review.load(log, where="host = 'a.example'") as calls:
        found = review.summarize(calls).retries
    assert found is not None
    assert [each.reason for each in found.hosts] == ["status_503"]


def test_all_parts_of_a_rotated_attempts_log_are_read(log: Path) -> None:
    whole = log.with_name("logs.attempts.csv")
    header, *rows = whole.read_text(encoding="utf-8").splitlines(keepends=True)
    log.with_name("logs.attempts.000001.csv").write_text("".join([header, *rows[:4]]), encoding="utf-8")
    whole.write_text("".join([header, *rows[4:]]), encoding="utf-8")
    with review.load(log) as calls:
        found = review.summarize(calls).retries
    assert found is not None
    assert (len(found.files), found.seconds) == (2, 28.0)


def test_the_report_has_a_chart_of_the_retries_over_time(log: Path) -> None:
    with review.load(log) as calls:
        summary = review.summarize(calls)
        page = review.html_report(calls, summary, timezone="Europe/Berlin")
        found = points(calls, has_attempts=True)
    assert found is not None
    assert found.reasons == ["timeout", "status_503"]
    assert [(each["t"], each["reason"], each["retries"]) for each in found.retries] == [
        (1790000000e3, "status_503", 2),
        (1790000000e3, "timeout", 2),
        (1790000090e3, "timeout", 1),
    ]
    assert "Time lost to failed attempts" in page
    assert 'id="chart-retries"' in page
    assert '"t":1790007200000.0,"end":1790007205000.0,"reason":"status_503","retries":2' in page
    assert "Times are Europe/Berlin" in page


def test_retries_for_rare_reasons_have_one_name(log: Path) -> None:
    rows = [(0, number + 1, 0.1, 0.0, 1.0, f"status_{500 + min(number, 8)}", "500") for number in range(11)]
    log.with_name("logs.attempts.csv").write_text(attempts(*rows), encoding="utf-8")
    with review.load(log) as calls:
        review.summarize(calls)
        found = points(calls, has_attempts=True)
    assert found is not None
    assert found.reasons == ["status_508", *(f"status_{number}" for number in range(500, 505)), "other"]
    assert sum(each["retries"] for each in found.retries if each["reason"] == "other") == 3


@pytest.mark.parametrize("parts", [False, True])
def test_compressed_attempts_logs_are_read(parts: bool, log: Path, tmp_path: Path) -> None:
    whole = log.with_name("logs.attempts.csv")
    header, *rows = whole.read_bytes().splitlines(keepends=True)
    packed = log.with_name(f"logs.attempts{'.000001' if parts else ''}.csv.gz")
    packed.write_bytes(gzip.compress(b"".join([header, *rows[: 4 if parts else None]])))
    whole.unlink()
    if parts:
        whole.write_bytes(b"".join([header, *rows[4:]]))
    with review.load(log) as calls:
        found = review.summarize(calls).retries
    assert found is not None
    assert (len(found.files), found.seconds) == (1 + parts, 28.0)


@pytest.mark.parametrize(
    ("suffix", "content", "options", "why"),
    [
        (".zst", b"\x28\xb5\x2f\xfd" + b"x" * 99, [], "not a log: the file is compressed (zstd); unpack it first"),
        (".gz", gzip.compress(b"x" * 99), [], "not a log: its first line is 'xxx"),
        (".gz", None, ["--max-unpacked-bytes", "500"], "more bytes after decompression than --max-unpacked-bytes"),
    ],
    ids=["zstd", "another file", "too large"],
)
def test_an_attempts_log_that_cannot_be_read_is_left_out_with_one_line(
    suffix: str,
    content: bytes | None,
    options: list[str],
    why: str,
    log: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = log.with_name("logs.attempts.csv")
    log.with_name(f"{whole.name}{suffix}").write_bytes(content or gzip.compress(whole.read_bytes()))
    whole.unlink()
    done = run_here(tmp_path, "review", "logs.csv", *options)
    assert done.code == 0
    (line,) = (record.getMessage() for record in caplog.records)
    assert re.match(f"the attempts log is left out: .*logs.attempts.csv{suffix}: ", line)
    assert why in line
    assert "Lost time" not in done.out


def test_a_retry_that_did_not_start_is_not_counted(log: Path) -> None:
    """A call was cancelled, or reached its deadline, during the wait: its last row has the wait, and no row follows."""
    stopped = attempts((0, 1, 0.5, 0.0, 1.0, "timeout", ""), (0, 2, 0.5, 0.0, 1.0, "status_503", "503"))
    log.with_name("logs.attempts.csv").write_text(stopped, encoding="utf-8")
    with review.load(log) as calls:
        found = review.summarize(calls).retries
        shown = points(calls, has_attempts=True)
    assert found is not None
    assert shown is not None
    assert sum(each.retries for each in found.over_time) == sum(each["retries"] for each in shown.retries) == 1
    assert shown.reasons == ["timeout"]


def test_the_outputs_have_the_lost_time(output: Callable[..., str], page: str) -> None:
    text = output()
    lost = "Lost time: 28.0 s: timeouts 20.0 s, other failed attempts 1.00 s, back-off 5.00 s, queue 2.00 s"
    assert f"   max 250 ms\n{lost}\n\nProject" in text.replace("   \n", "\n")
    assert (
        "\nLost time by host: timeout at b.example 23.0 s, status_503 at a.example 5.00 s\n"
        "Lost time by endpoint: timeout at b.example/x 23.0 s, status_503 at a.example/x 5.00 s\n"
        "Retries: 2 calls succeeded only at attempt 2, 1 failed; 1 call succeeded only at attempt 3\n"
    ) in text
    retries: Any = json.loads(output(*TO_A_PAGE))["retries"]
    assert (retries["seconds"], retries["reasons"][0]["failing"], retries["hosts"][0]["seconds"]) == (28.0, 20.0, 23.0)
    markdown = output("--markdown")
    assert lost in markdown
    assert "| timeout | b.example | 4 | 20.0 s | 3.00 s | 0 s | 0 s |" in markdown
    assert "| timeout | b.example/x | 4 | 20.0 s | 3.00 s | 0 s | 0 s |" in markdown
    assert lost.partition(": ")[2] in page
    assert "<h3>Time lost to failed attempts by endpoint, also of calls that succeeded later</h3>" in page
    shortened = output("--top", "1")
    assert (lost in shortened, shortened.count("23.0 s and 1 more\n")) == (True, 2)


@pytest.mark.parametrize(
    ("lines", "left_out"),
    [(20, "errors, slowest calls, retries, changes over time"), (34, "changes over time"), (36, "")],
)
def test_a_low_screen_has_the_parts_of_the_lost_time_and_uses_its_lines(lines: int, left_out: str, log: Path) -> None:
    with review.load(log) as calls:
        summary = review.summarize(calls)
    with (console := Console(width=70)).capture() as captured:
        console.print(summary_view(summary, width=70, lines=lines))
    shown = captured.get().splitlines()
    assert shown[3] == "Lost time: 28.0 s: timeouts 20.0 s, other failed attempts 1.00 s, "
    assert [line for line in shown if line.startswith("Not")] == [f"Not on this screen: {left_out}"] * bool(left_out)
    assert len(shown) <= lines - 2


def test_calls_that_failed_after_all_attempts(log: Path, tmp_path: Path) -> None:
    rows = attempts((90, 1, 5.0, 0.0, 1.0, "timeout", ""), (90, 2, 5.0, 0.0, 0.0, "timeout", ""))
    log.with_name("logs.attempts.csv").write_text(rows, encoding="utf-8")
    assert "\nRetries: 1 call failed after 2 attempts\n" in run_here(tmp_path, "review", "logs.csv").out


def test_calls_without_a_second_attempt(log: Path, tmp_path: Path) -> None:
    log.with_name("logs.attempts.csv").write_text(attempts((90, 1, 5.0, 0.0, 0.0, "timeout", "")), encoding="utf-8")
    assert "\nRetries: none\n" in run_here(tmp_path, "review", "logs.csv", "--html", "r.html").out
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert ("5.00 s: timeouts 5.00 s" in page, "Calls with more than one attempt" in page) == (True, False)


def dicts(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects of a JSON document."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from dicts(each)


def test_what_exists_by_host_exists_by_endpoint(output: Callable[..., str], page: str) -> None:
    facts = json.loads(output(*TO_A_PAGE))
    compared = json.loads(output("logs.csv", "--compare", "--json"))
    by_host = [(each, key) for each in dicts([facts, compared]) for key in each if "host" in key]
    assert {key for _, key in by_host} == {"host", "hosts", "more_hosts"}
    assert [key for each, key in by_host if key.replace("host", "endpoint") not in each] == []
    assert re.findall(">(Endpoints?)</th>", page) == ["Endpoints", "Endpoint", "Endpoint"]
    # The tables of calls have a column of hosts; their rows are found by the endpoint, of which the path is a part
    assert {*re.findall('data-endpoint="([^"]*)"', page)} == {each["name"] for each in facts["endpoints"]}
    assert set(re.findall("(?m)^[a-z]+", output("--csv"))) >= {"host", "endpoint"}
    assert set(re.findall(r"(?m)^\| (?:Lost time \| )?(Host|host|Endpoint|endpoint) ", output("--markdown"))) == {
        *("Host", "host", "Endpoint", "endpoint")
    }


@pytest.mark.parametrize("content", [None, ",".join(ATTEMPT_COLUMNS) + "\n"], ids=["no attempts log", "no attempts"])
def test_a_log_without_attempts_has_no_lost_time(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "logs.attempts.csv").write_text(content, encoding="utf-8")
    write(tmp_path / "logs.csv", [call(0)])
    text = run_here(tmp_path, "review", "logs.csv").out
    assert "Lost time" not in text
    assert "Lost time" not in run_here(tmp_path, "review", "logs.csv", "--markdown").out


@pytest.mark.parametrize(
    ("retried", "by", "names"),
    [
        ("https://a.example/", "host", ("a.example",)),
        ("https://b.example/part7x/", "endpoint", ("b.example/part7x/{id}",)),
    ],
)
def test_retries_at_a_host_or_endpoint_of_many(retried: str, by: str, names: tuple[str, ...], tmp_path: Path) -> None:
    """More endpoints than those with cells of their own; the calls of a host are in the cells of several of them."""
    urls = [f"https://{'ab'[n % 2]}.example/part{n // 2 % 24}x/{n}" for n in range(960)]
    numbers = [n for n, url in enumerate(urls) if url.startswith(retried)]
    made = [call(n, url=url, delta_t=1.2 if n in numbers else 0.25) for n, url in enumerate(urls)]
    tried = [(0.1, 0.0, 1.0, "status_503", "503"), (0.1, 0.0, 0.0, "", "200")]
    rows = attempts(*((n, attempt, *values) for n in numbers for attempt, values in enumerate(tried, 1)))
    (tmp_path / "logs.attempts.csv").write_text(rows, encoding="utf-8")
    with review.load(write(tmp_path / "logs.csv", made)) as calls:
        findings = review.verdict(calls, review.summarize(calls)).findings
    (found,) = (each for each in findings if each.kind == "retries")
    assert (found.by, found.names) == (by, names)
    assert (found.calls, found.events, found.other_events) == (len(numbers), len(numbers), 0)
