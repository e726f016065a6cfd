"""Tests that check, resume, replay and review give one answer about a log, however it is stored and named.

The answer is which lines are rows and how many are damaged. Two differences are wanted:

- A log that another program saved again, with a byte order mark or with CR LF as line end, has the same rows. All
  values are still there, and `review` has always read such files: people open a log in a spreadsheet and save it. Only
  `check` reports each such line as altered, because it compares the bytes with those that were written.
- `resume` has no report of damage. It skips damaged lines, so their URLs are requested again.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import duckdb
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from support.logs import call, rows
from support.samples import THOROUGH

from otel_connector import review
from otel_connector._csv._check import check
from otel_connector._csv._done import read_done
from otel_connector._csv._format import HEADER
from otel_connector._csv._lines import BOM, LINE_LIMIT
from otel_connector._csv._parts import log_files
from otel_connector._replay._replay import Replay
from otel_connector.review import _load
from otel_connector.review._filters import EVERYTHING
from otel_connector.review._sources import Source

GOOD = [rows(call(number, response_size=number)) for number in range(4)]
ODD = rows(call(4, response_size=4))
FAILURE: dict[str, Any] = {
    "response_size": 4,
    "success": True,
    "response_code": 200,
}  # a success, so that resume reports it
FAILED = rows(call(4, **FAILURE, error="X: y"))

# A line between good ones, and whether it is a row
LINES: dict[str, tuple[bytes, bool]] = {
    "a row": (ODD, True),
    "quotes": (rows(call(4, response_size=4, project="P", redirect_url='a "b", c')), True),
    "needless quotes": (ODD.replace(b",P,", b',"P",'), True),
    "another notation of a number": (ODD.replace(b"0.250000", b"0.25"), True),
    "TRUE": (ODD.replace(b"True", b"TRUE"), False),
    "true": (ODD.replace(b"True", b"true"), False),
    "1 as success": (ODD.replace(b"True", b"1"), False),
    "no success": (ODD.replace(b"True", b""), False),
    "text as time": (ODD.replace(b"0.250000", b"soon"), False),
    "an infinite time": (ODD.replace(b"0.250000", b"inf"), False),
    "a duration of 47 years": (ODD.replace(b"0.250000", b"1500000000.000000"), False),
    "a negative time": (ODD.replace(b"0.250000", b"-0.25"), False),
    "no size": (ODD.replace(b",4,200,", b",,200,"), False),
    "a huge size": (ODD.replace(b",4,200,", b",99999999999999999999,200,"), False),
    "nine cells": (ODD.replace(b",P,", b","), False),
    "eleven cells": (ODD.replace(b",P,", b",P,P,"), False),
    "an extra cell": (ODD[:-1] + b",x\n", False),
    "an extra empty cell": (ODD[:-1] + b",\n", False),
    "an extra blank cell": (ODD[:-1] + b", \n", False),
    "an extra quoted empty cell": (ODD[:-1] + b',""\n', False),
    "two extra empty cells": (ODD[:-1] + b",,\n", False),
    "two extra quoted empty cells": (ODD[:-1] + b',"",""\n', False),
    "an extra empty cell after an error": (FAILED[:-1] + b",\n", False),
    "an extra quoted empty cell after an error": (FAILED[:-1] + b',""\n', False),
    "an extra empty cell after a quoted error": (FAILED[:-1].replace(b"X: y", b'"X: ""y"""') + b",\n", False),
    "an extra empty cell at a CR LF": (FAILED[:-1] + b",\r\n", False),
    "a CR LF": (FAILED[:-1] + b"\r\n", True),
    "a quoted empty error": (ODD[:-1] + b'""\n', True),
    "an error that ends in a comma": (rows(call(4, **FAILURE, error="X: y,")), True),
    "an error that ends in a comma and a quote": (rows(call(4, **FAILURE, error='X: y,"')), True),
    "an underscore in a time": (ODD.replace(b"0.250000", b"0.2_5"), False),
    "a blank before a time": (ODD.replace(b"0.250000", b" 0.25"), False),
    "a blank after a time": (ODD.replace(b"0.250000", b"0.25 "), False),
    "a tab before a time": (ODD.replace(b"0.250000", b"\t0.25"), False),
    "an underscore in the start": (ODD.replace(b"1790000004.", b"1_790000004."), False),
    "a blank before the start": (ODD.replace(b"1790000004.", b" 1790000004."), False),
    "a letter in an id": (ODD.replace(b"0", b"g", 1), False),
    "an upper-case id": (ODD.replace(b"0", b"A", 1), False),
    "an id without a hyphen": (ODD.replace(b"-", b"0", 1), False),
    "a hyphen at another place of the id": (b"-" + ODD.replace(b"-", b"0", 1)[1:], False),
    "two carriage returns at the end": (FAILED[:-1] + b"\r\r\n", False),
    "a carriage return in quotes": (FAILED.replace(b"X: y", b'"X:\r y"'), False),
    "a blank before quotes": (FAILED.replace(b"X: y", b' "X"'), True),
    "blanks before quotes in the middle": (FAILED.replace(b",,", b',  "r",'), True),
    "a blank before empty quotes": (FAILED.replace(b"X: y", b' ""'), True),
    "a blank after quotes": (FAILED.replace(b"X: y", b'"X" '), False),
    "blanks after quotes in the middle": (FAILED.replace(b",,", b',"r"  ,'), False),
    "quotes after quotes": (FAILED.replace(b"X: y", b'"X" "y"'), False),
    "blanks and quotes in a text": (rows(call(4, **FAILURE, error='X: "a" , "b" "c", " "')), True),
    "a raw control character": (FAILED.replace(b"y", b"\x1fy"), True),
    "a row longer than 2 kB": (rows(call(4, **FAILURE, redirect_url="https://a/" + "x" * 8_000)), True),
    "a huge cell": (rows(call(4, **FAILURE)).replace(b",P,", b",P" + b"x" * 200_000 + b","), False),
    "a torn row": (ODD[:70] + b"\n", False),
    "a short id": (ODD[1:], False),
    "a header": (HEADER, False),
    "an empty line": (b"\n", False),
    "NUL bytes": (bytes(100) + ODD, False),
    "latin-1": (ODD.replace(b",P,", b",\xe9,"), False),
    "an open quote": (ODD.replace(b",P,", b',"P,'), False),
}

ALTERED = {"needless quotes", "another notation of a number", "a CR LF", "a quoted empty error"}
ALTERED |= {"a raw control character", "a blank before quotes", "blanks before quotes in the middle"}
ALTERED |= {"a blank before empty quotes"}

STORED: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda content: content,
    "gzip": gzip.compress,
    "CR LF": lambda content: content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"),
    "byte order mark": lambda content: BOM + content,
    "no header": lambda content: content.removeprefix(HEADER),
    "beside a damaged line": lambda content: content + b"damaged\n",
    "beside an unfinished line": lambda content: content + rows(call(9))[:-9],
}

# The line end is another one in each line. Of the other forms, which change the file around the line, each has every
# fifth line by default, and every line in `.ci/run`
STEP = 1 if THOROUGH else 5
FORMS_OF_LINES = [
    (line, stored)
    for offset, stored in enumerate(form for form in STORED if form != "plain")
    for line in list(LINES)[slice(offset % STEP, None, STEP) if stored != "CR LF" else slice(None)]
]

READ_IN_PLACE = ("plain", "beside an unfinished line")
"""The forms of which DuckDB reads the files themselves. Of the others it reads copies, which all have one form."""

NAMES = {"by name": "logs.csv", "by link": "link.csv", "by pattern": "l*gs*"}

Answer = tuple[list[int], int]


class Sizes(SpanExporter):
    """Collects the response size of each span, which identifies a call in this test."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def export(self, spans: list[ReadableSpan]) -> SpanExportResult:  # type: ignore[override]
        self.found += [span.attributes["otel_connector.response_size"] for span in spans]  # type: ignore[index,misc]
        return SpanExportResult.SUCCESS


def replayed(name: str) -> Answer:
    exporter = Sizes()
    *_, last = Replay([name], exporter, to="http://collector", ignore_checkpoint=True).run()
    return sorted(exporter.found), last.damaged


def reviewed(*names: str, large: int = _load._LARGE) -> tuple[list[int], dict[str, int]]:
    """Return the sizes of the rows of all logs, and the number of damaged lines of each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_load, "_LARGE", large)
        calls = review.load(*names)
    with calls:
        sizes = [row[0] for row in calls.rows("SELECT response_size FROM log ORDER BY 1")]
        assert len(calls) == len(sizes) == len(calls.rows("SELECT t FROM calls"))
        return sizes, {file.path: file.damaged for file in calls.files}


@pytest.fixture(scope="module")
def read_by_duckdb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], list[int] | None]]:
    """Return a function that has DuckDB read one log as a review does, with one connection for all tests.

    It returns the sizes of the rows; None if a review reads this log with Python instead.
    """
    folder = str(tmp_path_factory.mktemp("links"))
    with _load.Calls(duckdb.connect(config=_load._CONFIG), folder) as calls:
        calls.connection.execute("SET threads=1; ATTACH ':memory:' AS stored")

        def read(name: str) -> list[int] | None:
            source = Source(name, calls.linked(name, "log.csv"))
            if _load._read_wrong(calls, [source], EVERYTHING, folder, large=False):
                return None
            return [row[0] for row in calls.rows("SELECT response_size FROM log ORDER BY 1")]

        yield read


def resumed(name: str) -> tuple[list[int], int]:
    done = read_done(None, [name], "P")
    return [number for number in range(5) if f"https://api.example.com/{number}" in done], done.rows


def checked(name: str) -> tuple[int, int, int]:
    """Return the numbers of rows, of altered lines and of damaged lines."""
    reports = [check(path) for path in log_files([name])]
    headless = sum("header is missing" in each.what for report in reports for each in report.damage)
    altered, damaged = sum(each.altered for each in reports), sum(each.damaged for each in reports)
    return sum(report.rows for report in reports), altered + headless, damaged - headless


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    return tmp_path / "data"


def write_log(line: str, stored: str, path: Path) -> tuple[list[int], int]:
    """Write a log with this line between good ones. Return the numbers of its rows, and of its damaged lines."""
    odd, is_row = LINES[line]
    path.write_bytes(STORED[stored](HEADER + GOOD[0] + odd + b"".join(GOOD[1:])))
    return [0, 1, 2, 3, *([4] if is_row else [])], (not is_row) + (stored == "beside a damaged line")


@pytest.mark.parametrize("line", LINES)
def test_all_readers_agree_which_lines_are_rows(
    line: str, folder: Path, read_by_duckdb: Callable[[str], list[int] | None]
) -> None:
    """A review, whose answer about each file is below, uses what DuckDB has read only if that is the same."""
    answer = write_log(line, "plain", folder / "logs.csv")
    assert replayed("logs.csv") == answer
    numbers, damaged = answer
    assert read_by_duckdb("logs.csv") in ([None] if damaged else [numbers] if line == "a row" else [numbers, None])
    assert resumed("logs.csv") == (numbers, len(numbers))
    assert checked("logs.csv") == (len(numbers), line in ALTERED, damaged)


@pytest.mark.parametrize(("line", "stored"), FORMS_OF_LINES)
def test_the_form_of_a_log_does_not_change_which_lines_are_rows(line: str, stored: str, folder: Path) -> None:
    numbers, damaged = answer = write_log(line, stored, folder / "logs.csv")
    assert replayed("logs.csv") == answer
    assert resumed("logs.csv") == (numbers, len(numbers))
    altered = (line in ALTERED) + (stored in {"byte order mark", "no header"})
    assert checked("logs.csv") == (len(numbers), len(numbers) + 1 if stored == "CR LF" else altered, damaged)


@pytest.mark.parametrize("large", [_load._LARGE, 0], ids=["small", "large"])
@pytest.mark.parametrize("read_by", ["Python", "DuckDB"])
def test_a_review_of_logs_in_all_forms_has_their_rows(read_by: str, large: int, folder: Path) -> None:
    """One review of one log for each line and form. DuckDB reads all of the files unless it fails at one of them."""
    answers = {
        f"{line}, {stored}.csv": write_log(line, stored, folder / f"{line}, {stored}.csv")
        for line, stored in [*product(LINES, ["plain"]), *FORMS_OF_LINES]
        if (stored in READ_IN_PLACE if read_by == "DuckDB" or not large else True)
        if read_by == "Python" or LINES[line][1]
    }
    assert reviewed(*answers, large=large) == together(answers)


def together(answers: dict[str, Answer]) -> tuple[list[int], dict[str, int]]:
    """Return what a review of logs with these answers returns."""
    sizes = sorted(size for numbers, _ in answers.values() for size in numbers)
    return sizes, {name: damaged for name, (_, damaged) in answers.items()}


LENGTHS = (-1, 0, 1, 2, 2**18)
"""Bytes by which a row is longer than it can be."""


def write_long_row(longer: int, stored: str, path: Path) -> Answer:
    """Write a log with a row of this length between others, and return its answer."""
    row = FAILED.replace(b"X: y", b"x" * (LINE_LIMIT + longer - len(FAILED) + len(b"X: y")))
    assert len(row) == LINE_LIMIT + longer
    path.write_bytes(STORED[stored](HEADER + GOOD[0] + row + GOOD[1]))
    return ([0, 1, 4] if longer <= 0 else [0, 1]), longer > 0


@pytest.mark.parametrize("stored", ["plain", "gzip"])
@pytest.mark.parametrize("longer", LENGTHS)
def test_all_readers_agree_how_long_a_row_can_be(
    longer: int, stored: str, folder: Path, read_by_duckdb: Callable[[str], list[int] | None]
) -> None:
    numbers, damaged = answer = write_long_row(longer, stored, folder / "logs.csv")
    assert replayed("logs.csv") == answer
    assert stored == "gzip" or read_by_duckdb("logs.csv") == (None if damaged else numbers)
    assert resumed("logs.csv") == (numbers, len(numbers))
    assert checked("logs.csv") == (len(numbers), longer <= 0, longer > 0)


@pytest.mark.parametrize("large", [0, _load._LARGE], ids=["large", "small"])
@pytest.mark.parametrize("stored", ["plain", "gzip"])
def test_a_review_has_all_rows_that_are_not_too_long(stored: str, large: int, folder: Path) -> None:
    answers = {
        f"{number}.csv": write_long_row(each, stored, folder / f"{number}.csv") for number, each in enumerate(LENGTHS)
    }
    assert reviewed(*answers, large=large) == together(answers)


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        *((stored, "by name") for stored in STORED),
        *((stored, name) for stored in ("plain", "gzip") for name in NAMES if name != "by name"),
    ],
)
def test_all_readers_read_the_same_files(name: str, stored: str, folder: Path) -> None:
    """The log has a plain part and a compressed one. The files beside it are not parts.

    An archive of last night is not a part either: its successes must not be skipped, counted or sent.
    """
    store = STORED[stored]
    (folder / "logs.000001.csv.gz").write_bytes(gzip.compress(HEADER + GOOD[0]))
    (folder / "logs.000002.csv").write_bytes(store(HEADER + GOOD[1]))
    (folder / "logs.csv").write_bytes(store(HEADER + GOOD[2] + GOOD[3]))
    (folder / "logs.csv.torn").write_bytes(ODD)
    (folder / "logs.attempts.csv").write_bytes(HEADER + ODD)
    if name != "by pattern":  # the pattern matches an archive, which then is a log of its own
        for date in ("20261128", "2026-11-28", "20261128093000", "202611"):
            (folder / f"logs.{date}.csv").write_bytes(HEADER + FAILED.replace(b"False", b"True"))
    (folder.parent / "link.csv").symlink_to("data/logs.csv")
    path = str(folder.parent / NAMES[name] if name == "by link" else NAMES[name])
    damaged = 2 * (stored == "beside a damaged line")
    for _ in range(2):  # the first replay leaves a file beside the log, too
        assert replayed(path) == ([0, 1, 2, 3], damaged)
    sizes, broken_lines = reviewed(path)
    assert (sizes, sum(broken_lines.values())) == ([0, 1, 2, 3], damaged)
    assert resumed(path) == ([0, 1, 2, 3], 4)
    rows_of_all, _, broken = checked(path)
    assert (rows_of_all, broken) == (4, damaged)
