"""No cell of a log stops a review, for any text in it: every output is made, or the line is counted as damaged."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console
from support.command_line import run_here
from support.logs import START, call, write

from otel_connector._record import COLUMNS
from otel_connector.cli._compare_view import show_comparison
from otel_connector.cli._review_view import summary_view
from otel_connector.review import compare, html_report, load, summarize, verdict
from otel_connector.review._compare_text import markdown
from otel_connector.review._formats import as_csv, as_json, as_markdown
from otel_connector.review._points import points
from otel_connector.review._verdict_text import texts as texts_of

ODD_TEXTS = ["", "P", "nan", "__proto__", "'=1", "\x1f", "\u202e", "\uffff", "<b>", "a|b", "\\n", "%s", "x" * 3_000,
             "http://", "http://[::1]:80/", "HTTPStatusError:", "5xx other", "no response", "other"]  # fmt: skip
ODD_NUMBERS = ["", "nan", "inf", "-inf", "1e400", "1e-300", "5e-324", "-1", "-0.0", "0", "1", "0x10", "1_0", " 1", "+5",
               "253402300799", "253402300798.999999", "253402300800", "-62135596800", "1e9", "1000000001",
               "9223372036854775807", "9223372036854775808", "2147483647", "2147483648"]  # fmt: skip
ODD_STATUSES = ["0", "9", "99", "100", "599", "600", "700", "999", "1000", "50000", "0200", "2147483647"]

texts = st.sampled_from(ODD_TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.sampled_from(ODD_NUMBERS) | st.floats().map(str) | st.integers().map(str) | texts
call_ids = st.integers(1, 2**60).map(lambda number: f"{number:032x}-{number:016x}")


def odd_row(*, good: bool) -> st.SearchStrategy[tuple[str, ...]]:
    """Return cells of any kind; or only those that a row may have, so that the review counts the row."""
    times = st.sampled_from(["0", "1e-300", "0.000001", "1790000000.5", "1790000100", "253402300798.999999"])
    durations = st.sampled_from(["0", "-0.0", "5e-324", "0.25", "1e9"])
    sizes = st.sampled_from(["0", "1", "9223372036854775807"])
    statuses = st.sampled_from(["", *ODD_STATUSES])
    if not good:
        times, durations, sizes, statuses = (each | numbers for each in (times, durations, sizes, statuses))
    success = st.sampled_from(["True", "False", *([] if good else ["true", "1", ""])])
    ids = call_ids if good else call_ids | texts
    return st.tuples(ids, texts, times, durations, texts, texts, sizes, statuses, success, texts)


@pytest.fixture(scope="module", autouse=True)
def time_zone() -> Iterator[None]:
    """In this zone, the first and the last moments of a log (1970, 9999) have another year."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "America/Los_Angeles")
        time.tzset()
        yield
    time.tzset()


def review_in_every_form(folder: Path, rows: list[tuple[str, ...]]) -> int:
    """Write and review a log, compare it with a usual one, and return the number of calls and damaged lines."""
    log = folder / "odd.csv"
    # Not with the csv module, which writes no NUL on Python 3.10
    lines = (",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in rows)
    log.write_text(",".join(COLUMNS) + "\n" + "".join(lines), encoding="utf-8", newline="\n")
    usual = write(folder / "usual.csv", (call(number) for number in range(50)))
    console = Console(file=io.StringIO(), width=100)
    with load(log) as calls, load(log, usual) as others:
        summary = summarize(calls)
        said = verdict(calls, summary)
        assert texts_of(verdict(others, summarize(others)))
        console.print(summary_view(summary, texts_of(said), width=100, lines=24))
        assert json.loads(as_json(summary, said))["total"]["calls"] == summary.total.calls
        assert as_csv(summary)
        assert as_markdown(summary, said)
        page = html_report(calls, summary, trace_url="http://localhost/{trace_id}", verdict=said)
        assert page.endswith("</html>\n")
        for before, after in ((calls, others), (others, calls)):
            comparison = compare(before, after)
            show_comparison(console, comparison)
            assert markdown(comparison)
            assert json.dumps(comparison.to_dict(), allow_nan=False)
        return summary.total.calls + summary.damaged


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example([])
@given(st.lists(odd_row(good=True), max_size=13) | st.lists(odd_row(good=False), max_size=13))
def test_no_cell_stops_a_review(rows: list[tuple[str, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        counted = review_in_every_form(Path(folder), rows)
    if not any(character in cell for row in rows for cell in row for character in "\r\n"):
        assert counted == len(rows)


LINE = ("0" * 31 + "1-" + "0" * 15 + "1", "P", str(START), "0.25", "http://h/", "", "1", "200", "True", "")


def test_a_status_outside_100_to_599_is_shown_as_another_5xx(tmp_path: Path) -> None:
    """A client should process such a response as if it had a 5xx status code (RFC 9110, section 15)."""
    log = tmp_path / "logs.csv"
    failed = [
        (f"{number:032x}-{number:016x}", *LINE[1:7], status, "False", "HTTPStatusError: x")
        for number, status in enumerate(ODD_STATUSES, 7)
    ]
    with log.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows((COLUMNS, LINE, *failed))
    codes = list(map(int, ODD_STATUSES))
    usual = [code for code in codes if 100 <= code <= 599]
    with load(log) as calls:
        found = points(calls)
    assert found is not None
    assert set(found.statuses) == {"5xx other", "200", *map(str, usual)}
    shown = {point["status"]: point["calls"] for point in found.by_status}
    assert shown == {"5xx other": len(codes) - len(usual), "200": 1 + usual.count(200), "100": 1, "599": 1}
    done = run_here(tmp_path, "review", "logs.csv", "--top", "50", "--html", "r.html", "--svg", "r.svg")
    assert (done.code, done.error) == (0, "")
    assert [code for code in codes if not re.search(rf"^HTTPStatusError {code} ", done.out, re.MULTILINE)] == []


def test_the_statuses_of_the_odd_calls_are_one_group(tmp_path: Path) -> None:
    codes = (200, 503, 404, None, 0, 99, 999, 600)
    log = write(tmp_path / "logs.csv", (call(n, response_code=code) for n, code in enumerate(codes)))
    with load(log) as calls:
        found = points(calls)
    assert found is not None
    assert found.statuses == ["503", "5xx other", "404", "no response", "200"]
    assert sum(point["calls"] for point in found.by_status if point["status"] == "5xx other") == 4


@pytest.mark.parametrize("sizes", [(2**63 - 1,) * 40, (2**63 - 1, 0)])
def test_sums_of_sizes_beyond_64_bits_are_compared(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    log = write(tmp_path / "logs.csv", (call(n, response_size=size) for n, size in enumerate(sizes)))
    with load(log) as before, load(log) as after:
        compared = {each.figure: each for each in compare(before, after).total.differences}
        assert math.isclose(compared["bytes_per_call"].before, sum(sizes) / len(sizes))


def test_calls_that_are_centuries_apart_are_compared(tmp_path: Path) -> None:
    log = write(tmp_path / "logs.csv", (call(n, t=t) for n, t in enumerate((0.0, 253_402_300_798.999999))))
    with load(log) as before, load(log) as after:
        assert compare(before, after).total.differences[0].after == 2
