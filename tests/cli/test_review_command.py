"""Tests of the command ``otel-connector review``: its output, the files that it writes and its exit codes."""

from __future__ import annotations

import bz2
import csv
import gzip
import html
import io
import json
import lzma
import os
import pty
import random
import re
import signal
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest
from rich.console import Console
from support import processes
from support.command_line import Finished, environment, finish, run_here, start
from support.logs import START, busy_hour, call, rows, write
from support.terminals import on_terminal

from otel_connector import review
from otel_connector._csv._format import HEADER
from otel_connector.cli import _review_view
from otel_connector.review import _filters, _load

NOW = datetime(2026, 11, 25, 12, tzinfo=timezone.utc)


def test_a_log_that_was_archived_by_date_is_not_reviewed_and_the_files_that_were_are_named(tmp_path: Path) -> None:
    write(tmp_path / "logs.20261128.csv", map(call, range(100)))
    write(tmp_path / "logs.csv", (call(number, error="AttemptTimeout: x") for number in range(10)))
    last = run_here(tmp_path, "review", "logs.csv", "--fail-if", "error_rate > 1%")
    assert (last.code, last.out.splitlines()[0].split(":")[0]) == (1, "logs.csv")
    facts = json.loads(run_here(tmp_path, "review", "logs.csv", "--json").out)
    assert ([file["path"] for file in facts["files"]], facts["total"]["calls"]) == (["logs.csv"], 10)
    compared = run_here(tmp_path, "review", "--compare", "logs.20261128.csv", "logs.csv", "--json")
    runs = json.loads(compared.out)
    assert [(runs[name]["files"], runs[name]["calls"]) for name in ("before", "after")] == [
        (["logs.20261128.csv"], 100),
        (["logs.csv"], 10),
    ]
    for number in range(1, 5):
        write(tmp_path / f"logs.{number:06d}.csv", [call(number)])
        if number == 1:
            lines = run_here(tmp_path, "review", "logs.csv").out.splitlines()
            assert lines[0] == "logs.000001.csv, logs.csv"
            assert lines[1].startswith("2 files: 2026-")
    compared = run_here(tmp_path, "review", "--compare", "logs.20261128.csv", "logs.csv")
    names = ", ".join([*(f"logs.{each:06d}.csv" for each in range(1, 5)), "logs.csv"])
    assert f"after   {names}: 14 calls" in compared.out


@pytest.mark.skipif(not hasattr(os, "setsid"), reason="terminals")
@pytest.mark.parametrize(
    ("number", "more", "compares"), [(20, b"", False), (21, b"and 1 more", False), (22, b"and 2 more", True)]
)
def test_a_terminal_names_the_files_up_to_a_limit(number: int, more: bytes, compares: bool, tmp_path: Path) -> None:
    names = many_files(tmp_path, number)
    arguments = ["--compare", "part-*", names[0]] if compares else ["part-*"]
    command = ["-m", "otel_connector", "review", *arguments]
    with on_terminal(tmp_path, command, environment({"TERM": "xterm"})) as terminal:
        assert terminal.report("ended") == "0"
    shown = terminal.output.partition(b"2026")[0]
    assert re.findall(rb"part-\d{3}-of-many\.csv", shown)[:20] == [each.encode() for each in names[:20]]
    assert (b" more" in shown, more in b" ".join(shown.split())) == (bool(more), True)


def test_a_pipe_names_all_files(tmp_path: Path) -> None:
    names = many_files(tmp_path, 22)
    for arguments in (["part-*"], ["--compare", "part-*", names[0]]):
        assert ", ".join(names) in run_here(tmp_path, "review", *arguments).out
    facts = json.loads(run_here(tmp_path, "review", "part-*", "--json").out)
    assert [file["path"] for file in facts["files"]] == names


def many_files(folder: Path, number: int) -> list[str]:
    """Write this many logs, and return their names."""
    names = [f"part-{each:03d}-of-many.csv" for each in range(number)]
    for each in names:
        write(folder / each, [call(0)])
    return names


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-11-25", NOW.replace(hour=0)),
        ("2026-11-25 08:30", NOW.replace(hour=8, minute=30)),
        ("2026-11-25T08:30:00Z", NOW.replace(hour=8, minute=30)),
        ("2026-11-25T08:30+02:00", NOW.replace(hour=6, minute=30)),
        ("2026-11-25T08:30:00.5", NOW.replace(hour=8, minute=30, microsecond=500_000)),
        ("2026-11-25 08:30:00,25Z", NOW.replace(hour=8, minute=30, microsecond=250_000)),
        ("2026-11-25T08:30:00.1234567+02:00", NOW.replace(hour=6, minute=30, microsecond=123_456)),
        ("1790000000", datetime(2026, 9, 21, 14, 13, 20, tzinfo=timezone.utc)),
        (" 90s ", NOW - timedelta(seconds=90)),
        ("1.5h", NOW - timedelta(minutes=90)),
        ("30min", NOW - timedelta(minutes=30)),
        ("2d", NOW - timedelta(days=2)),
    ],
)
def test_a_time_is_parsed_from_a_date_a_unix_time_or_an_age(text: str, time: datetime) -> None:
    assert _filters.parse_moment(text, NOW) == time


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-13-01", "5 weeks", "99999999999999", "999999999999h", "0001-01-01T00:00+14:00"]
)
def test_text_that_is_not_a_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time; examples"):
        _filters.parse_moment(text, NOW)


@pytest.fixture(scope="module")
def example_log(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write(tmp_path_factory.mktemp("example") / "logs.csv", busy_hour()))


@pytest.fixture(scope="module")
def small_log(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a log of an hour with a call every 10 seconds, of two projects and hosts."""
    made = [
        call(
            number,
            t=START + 10 * number,
            project="Prices" if number % 3 else "Weather",
            url=f"https://{'a' if number % 2 else 'b'}.example/{number}",
            **({"error": "HTTPStatusError: 503 Service Unavailable", "response_code": 503} if number % 12 == 0 else {}),
        )
        for number in range(360)
    ]
    return str(write(tmp_path_factory.mktemp("small") / "logs.csv", made))


@pytest.fixture(scope="module")
def example(example_log: str) -> review.Summary:
    with review.load(example_log) as calls:
        return review.summarize(calls)


def printed_summary(summary: review.Summary, width: int, lines: int | None) -> list[str]:
    console = Console(width=width, height=lines, file=io.StringIO(), highlight=False)
    console.print(_review_view.summary_view(summary, width=width, lines=lines))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "lines"), [(60, 40), (80, 24), (80, 40), (120, 30), (200, 50)])
def test_a_summary_fits_the_screen(width: int, lines: int, example: review.Summary) -> None:
    shown = printed_summary(example, width, lines)
    assert len(shown) <= lines - 2  # one line for the command and one for the next prompt
    assert max(map(len, shown)) <= width
    text = "\n".join(shown)
    for word in (
        "succeeded",
        "p50",
        "Project",
        "Host",
        "Error",
        "Slowest",
        *(["Not on this screen: changes over time"] if lines == 24 else ["First to last quarter", "Busiest"]),
        *([] if lines == 24 else ["Without calls", "10 min 1 s from 09-21 14:29:59"]),
    ):
        assert word in text
    assert ("Trace" in text) is (width >= 100)


def test_figures_of_all_calls_are_wrapped_between_them_on_a_narrow_terminal(example: review.Summary) -> None:
    whole = next(each for each in printed_summary(example, 160, 50) if each.startswith("p50"))
    for width in (60, 40, 20):
        shown = printed_summary(example, width, 60)
        start = next(number for number, each in enumerate(shown) if each.startswith("p50"))
        figures = [each.strip() for each in whole.split("   ") if each]
        wrapped = "   ".join(each.rstrip() for each in shown[start : shown.index("", start)])
        assert wrapped.split("   ") == figures
        assert len(shown) <= 58


def test_a_summary_without_a_line_limit_shows_all_details(example: review.Summary) -> None:
    text = "\n".join(printed_summary(example, 160, None))
    assert "14:13:20 to 15:13:19 UTC, 59 min 59 s" in text
    assert "(none)" in text  # for a project without a name and for a URL without a host
    assert "InvalidURL" in text
    assert "no scheme" in text
    assert "failed 2." in text
    assert "1 second above 3" in text


def test_problems_of_the_files_are_reported_before_the_summary(tmp_path: Path) -> None:
    (tmp_path / "logs.csv").write_bytes(HEADER + rows(call(0)) + b"x\ny\nz\nw\n" + rows(call(1))[:-5])
    (tmp_path / "logs.csv.torn").write_bytes(b"torn")
    (tmp_path / "other.csv").write_bytes(b"a,b\n")
    done = run_here(tmp_path, "review", "logs.csv", "other.csv")
    assert done.code == 2
    assert done.out.splitlines()[:7] == [
        "logs.csv: 4 damaged lines, not counted",
        "  line 3: a row has 10 cells, this one has 1",
        "  line 4: a row has 10 cells, this one has 1",
        "  line 5: a row has 10 cells, this one has 1",
        "logs.csv: the last line has no line end and is not counted: it is torn, or a program is writing it",
        "logs.csv.torn: 1 unfinished line, not counted",
        "other.csv: NOT READ: not a log: its first line is 'a,b', not the header",
    ]
    assert done.error.startswith("otel-connector review: other.csv: not a log")


def test_json_output_contains_the_summary(example_log: str, example: review.Summary, tmp_path: Path) -> None:
    done = run_here(tmp_path, "review", example_log, "--json")
    result = json.loads(done.out)
    summary = example
    assert (done.code, done.error) == (0, "")
    assert result["total"]["calls"] == summary.total.calls
    assert result["total"]["latency"]["p99"] == summary.total.latency.p99
    assert result["total"]["error_rate"] == summary.total.error_rate
    assert result["total"]["start"] == "2026-09-21T14:13:20Z"
    assert [each["name"] for each in result["projects"]] == [each.name for each in summary.projects]
    assert result["errors"][0]["example"]["call_id"] == summary.errors[0].example.call_id
    assert result["damaged"] == 0


def test_output_without_calls_has_empty_figures_and_no_nan(tmp_path: Path) -> None:
    write(tmp_path / "logs.csv", [call(0)])
    arguments = ("review", "logs.csv", "--project", "Unknown")
    done = run_here(tmp_path, *arguments, "--json")
    assert json.loads(done.out)["total"]["latency"]["p50"] is None
    assert run_here(tmp_path, *arguments).out == "No calls.\n"
    assert "total,,0,0,,," in run_here(tmp_path, *arguments, "--csv").out
    assert "| total | 0 | - | - |" in run_here(tmp_path, *arguments, "--markdown").out


def test_csv_and_markdown_output_contain_the_summary(example_log: str, tmp_path: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(run_here(tmp_path, "review", example_log, "--csv", "--top", "1").out)))
    assert [line["of"] for line in lines] == ["total", "project", "host", "endpoint", *["quarter"] * 4]
    assert lines[1]["name"] == "Prices"
    assert float(lines[1]["error_rate"]) == int(lines[1]["failed"]) / int(lines[1]["calls"])
    text = run_here(tmp_path, "review", example_log, "--markdown").out
    assert "| project Prices | 2,000 |" in text
    assert "| InvalidURL | 1 | 0.03 % | InvalidURL: no scheme |" in text


def test_markdown_output_escapes_special_characters(tmp_path: Path) -> None:
    write(tmp_path / "logs.csv", [call(0, project="a|b*c", error="X: <b>`|")])
    (tmp_path / "x.csv").write_bytes(b"_\n")
    text = run_here(tmp_path, "review", "logs.csv", "x.csv", "--markdown").out
    assert "project a\\|b\\*c" in text
    assert "X: \\<b\\>\\`\\|" in text
    assert "its first line is '\\_'" in text


@pytest.mark.parametrize(
    ("arguments", "calls"),
    [
        (("--project", "Prices"), 240),
        (("--project", "Prices", "--project", "Weather"), 360),
        (("--project", "it's"), 0),
        (("--since", "2026-09-21 15:00"), 80),
        (("--until", "2026-09-21T14:14:20Z"), 6),
        (("--since", "1790000010", "--until", "1790000030"), 2),
        (("--where", "NOT success -- and nothing else"), None),
        (("--where", "host = 'a.example' OR host = 'b.example'", "--project", "Prices"), 240),
    ],
)
def test_filters_select_the_calls_of_the_summary(
    arguments: tuple[str, ...], calls: int | None, small_log: str, tmp_path: Path
) -> None:
    total = json.loads(run_here(tmp_path, "review", small_log, "--json", *arguments).out)["total"]
    assert total["calls"] == (total["failed"] if calls is None else calls)


@pytest.mark.parametrize(
    ("condition", "code", "message"),
    [
        ("error_rate > 50%", 0, ""),
        ("calls < 400 and error_rate > 1%", 1, "calls is 360, below 400"),
        ("p99 > 100ms or max > 3600s", 1, "p99 is "),
        ("damaged > 0", 0, ""),
        ("p98 > 1s", 2, "unknown name"),
    ],
)
def test_fail_if_decides_the_exit_code_and_reports_the_reason(
    condition: str, code: int, message: str, small_log: str, tmp_path: Path
) -> None:
    done = run_here(tmp_path, "review", small_log, "--fail-if", condition)
    assert done.code == code
    assert message in done.error
    assert bool(message) is bool(done.error)


def test_an_age_is_refused_where_only_fixed_times_are_allowed() -> None:
    with pytest.raises(ValueError, match=r"examples: 2026-11-25, '2026-11-25 08:30', 1790000000$"):
        _filters.parse_moment("2h", None)


@pytest.mark.parametrize("condition", ["p99 > 1%", "error_rate > 2s", "succeeded < 100%", "calls > 1ms"])
def test_a_condition_with_the_wrong_unit_exits_with_2(condition: str, example_log: str, tmp_path: Path) -> None:
    done = run_here(tmp_path, "review", example_log, "--fail-if", condition)
    assert (done.code, "has another unit" in done.error) == (2, True)


def test_a_condition_without_enough_calls_exits_with_2(example_log: str, tmp_path: Path) -> None:
    write(tmp_path / "short.csv", [call(0)])
    arguments = ("review", "short.csv", "--project", "Unknown", "--fail-if")
    done = run_here(tmp_path, *arguments, "error_rate > 0")
    assert (done.code, done.error) == (2, "otel-connector review: --fail-if: there are no calls to judge\n")
    assert run_here(tmp_path, *arguments, "calls < 1").code == 1
    done = run_here(tmp_path, "review", "--compare", example_log, "short.csv", "--fail-if", "worse > 0")
    assert (done.code, "too few calls for a comparison" in done.error) == (2, True)


def test_a_condition_that_one_call_cannot_decide_exits_with_2(tmp_path: Path) -> None:
    """A rate needs two calls. The condition is decided if its other comparisons are sufficient."""
    write(tmp_path / "one.csv", [call(0)])

    def code(condition: str) -> int:
        return run_here(tmp_path, "review", "one.csv", "--fail-if", condition).code

    done = run_here(tmp_path, "review", "one.csv", "--fail-if", "rate < 5")
    assert (done.code, done.error) == (2, "otel-connector review: --fail-if: too few calls for a value of rate\n")
    assert code("rate < 5 or calls > 1") == code("rate < 5 and calls > 0") == 2
    assert code("rate < 5 or calls > 0") == 1
    assert code("rate < 5 and calls > 1") == code("failed > 0") == 0


def test_counts_of_one_are_singular_and_slow_calls_have_their_class_and_endpoint(tmp_path: Path) -> None:
    write(tmp_path / "one.csv", [call(7, error="AttemptTimeout: no answer")])
    out = run_here(tmp_path, "review", "one.csv").out
    assert "1 call," in out
    assert "Busiest: 1 call in the second from" in out
    assert re.search(r"250 ms +AttemptTimeout +api.example.com/7 +https://api.example.com/7 ", out)
    assert "1 call, 1 failed" in run_here(tmp_path, "review", "one.csv", "--markdown").out


@pytest.mark.parametrize(("year", "shown"), [(2026, "from 09-21 14:13:20"), (2027, "from 2026-09-21 14:13:20")])
def test_a_period_without_calls_has_its_year_unless_it_is_the_current_one(
    year: int, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Now:
        @staticmethod
        def now(zone: timezone) -> datetime:
            return datetime(year, 12, 1, tzinfo=zone)

    monkeypatch.setattr("otel_connector._units.datetime", Now)
    write(tmp_path / "a.csv", [*map(call, range(1)), *map(call, range(1_000, 1_100))])
    assert shown in run_here(tmp_path, "review", "a.csv").out


def test_the_terminal_and_markdown_show_times_in_the_time_zone(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [*map(call, range(1)), *map(call, range(1_000, 1_100))])
    for form, shown in (
        ((), ["2026-09-21 23:13:20 to 23:31:39 JST, 18 min 19 s", "from 09-21 23:13:20", "from 2026-09-21 23:"]),
        (("--markdown",), ["2026-09-21 23:13:20 to 2026-09-21 23:31:39 JST"]),
    ):
        out = run_here(tmp_path, "review", "a.csv", "--timezone", "Asia/Tokyo", *form).out
        assert [each for each in shown if each not in out] == []


def test_the_page_of_a_comparison_has_the_names_of_the_logs_or_the_title(tmp_path: Path) -> None:
    for name in ("before.csv", "after.csv"):
        write(tmp_path / name, map(call, range(10)))
    for options, title in (((), "after.csv against before.csv"), (("--title", "A & B"), "A &amp; B")):
        arguments = ("review", "--compare", "before.csv", "after.csv", "--html", "h_cmp.html", *options)
        assert run_here(tmp_path, *arguments).code == 0
        page = (tmp_path / "h_cmp.html").read_text(encoding="utf-8")
        assert f"<title>{title}</title>" in page
        assert f"<h1>{title}</h1>" in page
    done = run_here(tmp_path, "review", "--compare", "before.csv", "after.csv", "--title", "x")
    assert (done.code, "--title needs --html" in done.error) == (2, True)


def test_the_report_has_the_given_title_and_time_zone(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [call(0)])
    name = "a.000002.html"  # a part of the log would be a.000002.csv
    (tmp_path / name).write_text("old")
    options = ("--html", name, "--title", "Tonight", "--timezone", "Asia/Tokyo")
    assert run_here(tmp_path, "review", "a.csv", *options).code == 0
    page = (tmp_path / name).read_text(encoding="utf-8")
    assert "<h1>Tonight</h1><p>2026-09-21 23:13:20 Asia/Tokyo</p>" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "a.csv"], "the old report was replaced"
    done = run_here(tmp_path, "review", "a.csv", "--title", "x")
    assert (done.code, "--title needs --html" in done.error) == (2, True)
    done = run_here(tmp_path, "review", "a.csv", "--html", "r.html", "--timezone", "Mars")
    assert (done.code, "--timezone must be a time zone such as" in done.error) == (2, True)


def test_sql_on_a_large_log_has_all_urls_and_errors(
    example_log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_load, "_LARGE", 0)
    monkeypatch.setattr(_load, "_SAMPLE", 100_000)
    query = "SELECT count(DISTINCT call_id), count(url), count(error) FROM calls"
    assert run_here(tmp_path, "review", example_log, "--sql", query, "--csv").out.splitlines()[1] == "3041,3041,3041"


@pytest.mark.parametrize("query", ["", "-- nothing"])
def test_an_empty_sql_query_exits_with_2(query: str, example_log: str, tmp_path: Path) -> None:
    done = run_here(tmp_path, "review", example_log, "--sql", query)
    assert (done.code, done.out) == (2, "")
    assert done.error.startswith("otel-connector review: --sql: ")


def test_formulas_are_escaped_in_csv_and_control_characters_on_the_terminal(tmp_path: Path) -> None:
    write(tmp_path / "logs.csv", [call(0, project="=1+1", url="http://h/\x9b31m\u202e", error="X: \x9b31m")])
    assert "project,'=1+1," in run_here(tmp_path, "review", "logs.csv", "--csv").out
    query = 'SELECT project, chr(155) || url AS "[b]" FROM calls'
    assert "'=1+1," in run_here(tmp_path, "review", "logs.csv", "--sql", query, "--csv").out
    summary, result = run_here(tmp_path, "review", "logs.csv"), run_here(tmp_path, "review", "logs.csv", "--sql", query)
    for done in (summary, result):
        assert not {"\x9b", "\u202e"} & set(done.out)
    assert "[b]" in result.out


def test_damage_is_reported_on_stderr_with_csv_and_sql_output(tmp_path: Path) -> None:
    (tmp_path / "logs.csv").write_bytes(HEADER + rows(call(0)) + b"garbage\n")
    for arguments in (("--csv",), ("--sql", "SELECT 1")):
        assert "1 damaged line" in run_here(tmp_path, "review", "logs.csv", *arguments).error


def test_a_report_is_not_written_over_a_log(tmp_path: Path) -> None:
    for name in ("logs-1.csv", "logs-2.csv"):
        write(tmp_path / name, [call(0)])
    (tmp_path / "link.html").symlink_to("logs-1.csv")
    before = (tmp_path / "logs-1.csv").read_bytes()
    for arguments in (("--html", "logs-1.csv", "logs-2.csv"), ("logs-1.csv", "--html", "link.html")):
        done = run_here(tmp_path, "review", *arguments)
        assert (done.code, "this file is a log" in done.error) == (2, True)
    assert (tmp_path / "logs-1.csv").read_bytes() == before


LOG = HEADER + rows(call(7))
PROTECTED = {  # a file that a report must not replace, and its content
    "plain.csv": LOG,
    "no-header.csv": rows(call(7)),
    "saved-again.csv": b"\xef\xbb\xbf" + LOG.replace(b"\n", b"\r\n"),
    "log.csv.gz": gzip.compress(LOG),
    "gzip-without-suffix": gzip.compress(LOG),
    "cut.csv.gz": gzip.compress(LOG * 9)[:60],
    "log.csv.bz2": bz2.compress(LOG),
    "log.csv.xz": lzma.compress(LOG),
    "log.csv.zst": b"\x28\xb5\x2f\xfd rest of the frame",
    "log.csv.torn": b"half a row",
    "log.csv.replayed": b"{}",
    "hole.csv": bytes(5_000),  # as after a crash of the machine
    "log.attempts.csv": LOG,
}


SIDE_FILES = {name for name in PROTECTED if name.endswith((".torn", ".replayed"))}  # recognized by their names


@pytest.mark.parametrize(
    ("name", "through"),
    [
        *((name, through) for name in PROTECTED for through in ("path", "link")),
        *((name, "hard link") for name in PROTECTED if name not in SIDE_FILES),
    ],
)
def test_no_form_of_a_log_is_replaced_by_a_report(tmp_path: Path, name: str, through: str) -> None:
    write(tmp_path / "read.csv", [call(0)])
    path, target = tmp_path / name, tmp_path / "report.html"
    path.write_bytes(PROTECTED[name])
    if through == "path":
        target = path
    elif through == "link":
        target.symlink_to(path)
    else:
        target.hardlink_to(path)
    done = run_here(tmp_path, "review", "read.csv", "--html", target.name)
    assert (done.code, done.out) == (2, "")
    expected = (
        f"otel-connector review: --html: {target.name}: this file is a log, or belongs to one; name another file\n"
    )
    assert done.error == expected
    assert path.read_bytes() == PROTECTED[name]


@pytest.mark.parametrize(
    "name", ["read.part-000002.csv", "read.000002.csv", "read.000002.csv.gz", "read.csv.torn", "read.csv.replayed"]
)
def test_a_report_does_not_get_the_name_of_a_file_of_a_log(tmp_path: Path, name: str) -> None:
    """The next review would take it for a part of the log."""
    write(tmp_path / "read.csv", [call(0)])
    done = run_here(tmp_path, "review", "read.csv", "--html", name)
    assert done.code == 2
    assert f"--html: {name}: this file is a log, or belongs to one; name another file" in done.error
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["plain.csv", "log.csv.gz", "log.csv.torn"])
def test_no_log_is_replaced_by_a_picture_of_that_name(tmp_path: Path, name: str) -> None:
    write(tmp_path / "read.csv", [call(0)])
    (tmp_path / name).write_bytes(PROTECTED[name])
    (tmp_path / "n-rate.svg").symlink_to(name)
    done = run_here(tmp_path, "review", "read.csv", "--svg", "n.svg")
    assert (done.code, done.out) == (2, "")
    assert done.error.startswith("otel-connector review: --svg: n-rate.svg: this file is a log")
    assert (tmp_path / name).read_bytes() == PROTECTED[name]
    assert not list(tmp_path.glob("n-[!r]*.svg"))


@pytest.mark.parametrize("pattern", ["*.html", "other.html", "logs.csv"])
def test_no_file_that_is_reviewed_is_replaced(tmp_path: Path, pattern: str) -> None:
    """Not even one that cannot be read as a log, or that is found by a pattern or as a part of a rotated log."""
    write(tmp_path / "logs.csv", [call(0)])
    (tmp_path / "logs.000001.csv").write_text("damaged")
    (tmp_path / "other.html").write_text("damaged")
    target = "logs.000001.csv" if pattern == "logs.csv" else "other.html"
    done = run_here(tmp_path, "review", "logs.csv", pattern, "--html", target)
    assert (done.code, "this file is a log" in done.error) == (2, True)
    assert (tmp_path / target).read_text() == "damaged"


def test_a_missing_log_is_not_an_error_of_the_report(tmp_path: Path) -> None:
    done = run_here(tmp_path, "review", "nothing.csv", "--html", "r.html")
    assert done.error == "otel-connector review: nothing.csv: No such file or directory\n"


TARGETS = {"--html": "report.html", "--svg": "night-latency.svg"}


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "/dev/stdout"])
@pytest.mark.parametrize("option", ["--html", "--svg"])
def test_what_is_not_a_regular_file_is_refused_and_not_replaced(tmp_path: Path, kind: str, option: str) -> None:
    """As `--out` and `--log` of fetch do."""
    write(tmp_path / "logs.csv", [call(0)])
    target = tmp_path / TARGETS[option]
    if kind == "fifo":
        os.mkfifo(target)
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to(os.devnull if kind == "device" else kind)
    before = target.lstat()
    arguments = ("review", "logs.csv", option, target.name.replace("-latency", ""))
    # pytest replaces the standard output of this process by a file
    done = finish(start(tmp_path, *arguments)) if kind == "/dev/stdout" else run_here(tmp_path, *arguments)
    assert (done.code, done.out) == (2, "")
    message = "Is a directory" if kind == "folder" else "not a regular file"
    assert done.error.startswith(f"otel-connector review: {option}: ")
    linked = r"a symbolic link to \S+: " if target.is_symlink() else ""
    assert re.search(rf"{target.name}: {linked}{message}\n$", done.error)
    assert os.path.samestat(before, target.lstat())


class Written(NamedTuple):
    """A finished review: its folder, its result, and the mode of each file that it wrote."""

    folder: Path
    done: Finished
    modes: dict[str, str]


def written(folder: Path, *arguments: str) -> Written:
    done = run_here(folder, "review", *arguments)
    files = [path for path in folder.iterdir() if path.suffix != ".csv" and not path.is_symlink()]
    return Written(folder, done, {path.name: oct(path.stat().st_mode & 0o777) for path in files})


@pytest.fixture(scope="module")
def pictures_of_one_log(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Pictures of a log that its group may read, beside JSON output."""
    folder = tmp_path_factory.mktemp("written")
    for name, mode in (("a.csv", 0o640), ("b.csv", 0o600), ("foreign.csv", 0o644)):
        write(folder / name, [call(0)]).chmod(mode)
    return written(folder, "a.csv", "--json", "--svg", "n.svg", "--png", "n.png")


@pytest.fixture(scope="module")
def report_of_three_logs(pictures_of_one_log: Written) -> Written:
    """A report through a link, and the same pictures again, of logs with different modes."""
    folder = pictures_of_one_log.folder
    for path in folder.glob("n-*.png"):
        path.unlink()
    (folder / "real.html").write_text("old")
    (folder / "real.html").chmod(0o640)
    (folder / "r.html").symlink_to("real.html")
    logs = ("a.csv", "b.csv", "foreign.csv")
    return written(folder, *logs, "--html", "r.html", "--trace-url", "http://j/{trace_id}", "--svg", "n.svg")


CHARTS = 5


def test_pictures_are_written_beside_json_output_and_reported_on_stderr(pictures_of_one_log: Written) -> None:
    folder, done, modes = pictures_of_one_log
    assert (done.code, json.loads(done.out)["damaged"]) == (0, 0)
    for name in ("n-latency.svg", "n-rate.png"):
        assert f"Picture: {folder / name}" in done.error
    assert len(modes) == 2 * CHARTS


def test_a_report_is_written_and_named_in_the_output(report_of_three_logs: Written) -> None:
    folder, done, _ = report_of_three_logs
    assert (done.code, done.error) == (0, "")
    assert f"Report: {folder / 'r.html'}" in done.out
    assert f"Picture: {folder / 'n-rate.svg'}" in done.out
    page = (folder / "r.html").read_text(encoding="utf-8")
    assert "<h1>a.csv, b.csv, foreign.csv</h1>" in page
    assert "http://j/0000" in page
    assert "<svg" in (folder / "n-rate.svg").read_text(encoding="utf-8")


def test_reports_and_pictures_are_as_private_as_the_logs_and_follow_links(
    pictures_of_one_log: Written, report_of_three_logs: Written
) -> None:
    assert set(pictures_of_one_log.modes.values()) == {oct(0o640)}
    assert set(report_of_three_logs.modes.values()) == {oct(0o600)}, "also of files that existed"
    assert len(report_of_three_logs.modes) == CHARTS + 1
    assert (report_of_three_logs.folder / "r.html").is_symlink()
    assert "<h1>" in (report_of_three_logs.folder / "real.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_while_reading_exit_with_130_and_remove_temporary_files(
    tmp_path: Path, sent: signal.Signals
) -> None:
    lines = rows(*(call(n) for n in range(10_000)))
    with (tmp_path / "logs.csv").open("wb") as file:
        file.write(HEADER)
        for _ in range(100):
            file.write(lines)
    with start(tmp_path, "review", "logs.csv", extra={"TMPDIR": str(tmp_path)}) as process:
        processes.wait_until(lambda: list(tmp_path.glob("otel_connector-review-*")), process)
        process.send_signal(sent)
        _, error = process.communicate()
    assert (process.returncode, error) == (130, "")
    assert not list(tmp_path.glob("otel_connector-review-*"))


def test_sql_results_are_printed_in_every_form(small_log: str, tmp_path: Path) -> None:
    query = "SELECT project, count(*) AS n, NULL AS nothing FROM calls GROUP BY 1 ORDER BY 2 DESC LIMIT 1"
    arguments = ("review", small_log, "--sql", query)
    assert run_here(tmp_path, *arguments).out.split() == ["project", "n", "nothing", "Prices", "240"]
    assert json.loads(run_here(tmp_path, *arguments, "--json").out) == [
        {"project": "Prices", "n": 240, "nothing": None}
    ]
    assert run_here(tmp_path, *arguments, "--csv").out == "project,n,nothing\nPrices,240,\n"
    assert run_here(tmp_path, *arguments, "--markdown").out.splitlines()[-1] == "| Prices | 240 |  |"
    assert run_here(tmp_path, "review", small_log, "--sql", "CREATE TABLE x (i INT)").code == 0
    done = run_here(tmp_path, "review", small_log, "--sql", "SELECT nosuch FROM calls")
    assert (done.code, done.out) == (2, "")
    assert "nosuch" in done.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing.csv",), "nothing.csv: No such file or directory"),
        (("--json", "--csv"), "only one output format is possible, not --json and --csv"),
        (("--since", "never"), "--since: 'never' is not a time"),
        (("--where", "oops"), "where"),
    ],
)
def test_invalid_arguments_exit_with_2_and_name_the_cause(
    arguments: tuple[str, ...], message: str, example_log: str, tmp_path: Path
) -> None:
    done = run_here(
        tmp_path,
        "review",
        *([] if arguments[0].endswith("csv") and arguments[0][0] != "-" else [example_log]),
        *arguments,
    )
    assert (done.code, done.out) == (2, "")
    assert done.error.startswith("otel-connector review: ")
    assert message in done.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--html", "nowhere/x.html"), "nowhere/x.html: No such file or directory"),
        (("--html", "x.html", "--trace-url", "javascript:{trace_id}"), "--trace-url"),
    ],
)
def test_a_report_that_cannot_be_written_exits_with_2(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    write(tmp_path / "logs.csv", [call(0)])
    done = run_here(tmp_path, "review", "logs.csv", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.error


def steady_log(path: Path, factor: float, seconds: int) -> str:
    """Write a log with one call per second and uniformly distributed durations, multiplied by `factor`."""
    chance = random.Random(3)
    return str(write(path, (call(n, delta_t=round(factor * chance.uniform(0.1, 0.2), 6)) for n in range(seconds))))


def test_compare_reports_a_slower_run_as_worse(tmp_path: Path) -> None:
    before, after = (
        steady_log(tmp_path / f"{name}.csv", factor, 600) for name, factor in (("before", 1), ("after", 3))
    )
    done = run_here(tmp_path, "review", "--compare", before, after, "--json")
    assert (done.code, done.error) == (0, "")
    result = json.loads(done.out)
    (p50,) = (row for row in result["total"]["differences"] if row["figure"] == "p50")
    assert p50["verdict"] == "worse"
    assert p50["after"] == pytest.approx(3 * p50["before"], rel=1e-4)
    assert "| worse |" in run_here(tmp_path, "review", "--compare", before, after, "--markdown").out
    failing = run_here(tmp_path, "review", "--compare", before, after, "--fail-if", "worse > 0", "--html", "two.html")
    assert failing.code == 1
    assert "worse" in failing.out
    assert failing.out.endswith(f"Report: {tmp_path / 'two.html'}\n")
    page = (tmp_path / "two.html").read_text(encoding="utf-8")
    assert result["text"][0] in html.unescape(page)
    assert page.count('<th scope="col"') == 8  # of one table: the only project and host have all calls
    assert failing.error.startswith("otel-connector review: worse is ")
    assert run_here(tmp_path, "review", "--compare", before, before, "--fail-if", "worse > 0").code == 0


def test_a_page_of_two_runs_has_a_table_of_projects(tmp_path: Path) -> None:
    for name, factor in (("before.csv", 1), ("after.csv", 3)):
        chance = random.Random(3)
        made = [
            call(n, project="AB"[n % 2], delta_t=round((factor if n % 2 else 1) * chance.uniform(0.1, 0.2), 6))
            for n in range(1_200)
        ]
        write(tmp_path / name, made)
    done = run_here(tmp_path, "review", "--compare", "before.csv", "after.csv", "--html", "two.html")
    assert done.code == 0
    page = (tmp_path / "two.html").read_text(encoding="utf-8")
    assert "Larger than noise, by project" in page
    assert "Larger than noise, by host" not in page


def test_an_outage_is_worse_and_named_in_every_form(tmp_path: Path) -> None:
    before = steady_log(tmp_path / "before.csv", 1, 1_200)
    chance = random.Random(4)
    records = [call(n, delta_t=round(chance.uniform(0.1, 0.2), 6)) for n in range(1_200)]
    down: dict[str, Any] = {"success": False, "error": "ConnectFailed: <refused>", "response_code": None}
    after = str(write(tmp_path / "after.csv", [*records[:600], *(each._replace(**down) for each in records[600:])]))
    shown = run_here(tmp_path, "review", "--compare", before, after, "--fail-if", "worse > 0", "--html", "two.html")
    assert (shown.code, shown.error) == (1, "otel-connector review: worse is 1, above 0\n")
    says = "600 of 600 calls to api.example.com failed (ConnectFailed: <refused>)."
    assert says in shown.out
    assert says in html.unescape((tmp_path / "two.html").read_text(encoding="utf-8"))
    assert says in run_here(tmp_path, "review", "--compare", before, after, "--json").out
    marked = run_here(tmp_path, "review", "--compare", before, after, "--markdown").out
    assert "- Worse (after): Outage: from 14:23:20 to the end, 14:33:19 (9 min 59 s)." in marked
    assert run_here(tmp_path, "review", "--compare", after, before, "--fail-if", "worse > 0").code == 0


def test_compare_reports_damage_on_stderr(example_log: str, tmp_path: Path) -> None:
    (tmp_path / "logs.csv").write_bytes(HEADER + rows(call(0)) + b"garbage\n")
    done = run_here(tmp_path, "review", "--compare", example_log, "logs.csv")
    assert done.code == 0
    assert done.error.splitlines()[0] == "logs.csv: 1 damaged line, not counted"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--compare", "--csv"), "--compare cannot be combined with --csv"),
        (("--compare", "--follow", "--svg", "x.svg"), "--compare cannot be combined with --follow and --svg"),
        (("--compare",), "--compare needs two logs, before and after, not 1"),
        (("--compare", "--fail-if", "p99 > 1s"), "unknown name"),
        (("--follow", "--sql", "SELECT 1"), "--follow cannot be combined with --sql"),
        (("--sql", "SELECT 1", "--fail-if", "p99 > 1s"), "--sql cannot be combined with --fail-if"),
    ],
)
def test_conflicting_options_exit_with_2(
    arguments: tuple[str, ...], message: str, example_log: str, tmp_path: Path
) -> None:
    done = run_here(tmp_path, "review", example_log, *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.error


def test_a_missing_extra_is_named(example_log: str, tmp_path: Path) -> None:
    done = run_here(tmp_path, "review", example_log, without="duckdb")
    assert (done.code, done.out) == (2, "")
    assert "pip install 'otel-connector[review]'" in done.error


def test_follow_shows_new_calls_until_ctrl_c(tmp_path: Path) -> None:
    log = write(tmp_path / "logs.csv", [call(0)])
    with start(tmp_path, "review", "--follow", "logs.csv") as process:
        assert process.stdout is not None
        read_until(process.stdout, "logs.csv: ")  # the first line of each screen
        log.write_bytes(b"")  # truncate the log, like logrotate with copytruncate
        read_until(process.stdout, "logs.csv: ")
        log.write_bytes(HEADER + rows(call(0), call(1), call(2)))
        read_until(process.stdout, "3 calls")
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode == 130


def test_follow_of_a_missing_file_or_of_a_file_that_is_not_a_log_exits_with_2(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("what,when\n")
    done = run_here(tmp_path, "review", "notes.csv", "--follow")
    assert (done.code, done.out) == (2, "")
    assert "not a log" in done.error
    done = run_here(tmp_path, "review", "nothing.csv", "--follow")
    assert (done.code, done.out, done.error) == (
        2,
        "",
        "otel-connector review: nothing.csv: No such file or directory\n",
    )


def test_follow_redraws_the_summary_on_a_terminal(tmp_path: Path) -> None:
    log = write(tmp_path / "logs.csv", [call(0)])
    ours, theirs = pty.openpty()
    extra = {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    follow = start(tmp_path, "review", "--follow", "logs.csv", stdout=theirs, stderr=None, extra=extra)
    with follow as process, open(ours, "rb", 0) as screen:  # noqa: PTH123 - Path cannot open a descriptor
        os.close(theirs)
        written = b""
        while b"1 call" not in written:
            written += screen.read(4_096)
        with log.open("ab") as file:
            file.write(rows(call(1), call(2)))
        while b"3 calls" not in written:
            written += screen.read(4_096)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # the other end is closed
            while screen.read(4_096):
                pass
    assert process.returncode == 130
    assert b"\x1b[" in written  # the screen is redrawn


def read_until(stream: IO[str], text: str) -> None:
    """Read lines up to the first that contains `text`."""
    assert any(text in line for line in stream), text
