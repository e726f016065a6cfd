"""Tests that the lines of `docs/guides/log.md` read texts and numbers as such, and empty cells as missing values.

Each block of lines is taken from the page and run as it is, in a folder with a log. The right values are those that
were written: `CallRecord` has the types, and an empty cell is None (table of the columns).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.documents import block_starting
from support.logs import call, write

from otel_connector import COLUMNS, CallRecord, review

STEPS = block_starting("python", "import csv\n").strip().split("\n\n")

NUMBERS = ("7", "007", "1.5", "1e5", "0x10", "1_000", "00", "NaN")
WORDS = ("NA", "null", "NULL", "None", "true", "True", "inf", "2026-11-25", "12:00", " ", "a,b", 'a"b', "'=1", "\u00e9")
NO_RESPONSE = {"error": "ConnectFailed: refused", "response_size": 0}
UNAVAILABLE = {"error": "HTTPStatusError: 503", "response_code": 503}
LOGS: dict[str, Sequence[CallRecord]] = {
    "projects that look like numbers": [call(n, project=name) for n, name in enumerate(NUMBERS)],
    "projects that look like other values": [call(n, project=name) for n, name in enumerate((*NUMBERS, *WORDS))],
    "a text after 20,480 numbers": [call(n, project=str(n)) for n in range(20_480)] + [call(20_480, project="abc")],
    "some calls without a response": [call(0), call(1, **NO_RESPONSE), call(2, **UNAVAILABLE)],
    "no response in the first 101 calls": [call(n, **NO_RESPONSE) for n in range(101)] + [call(101, **UNAVAILABLE)],
    "no response at all": [call(n, **NO_RESPONSE) for n in range(3)],
    "errors that are numbers": [call(n, error=text, url=text, redirect_url=text) for n, text in enumerate("123")],
    "whole seconds": [call(n, delta_t=float(n)) for n in range(3)],
    "empty texts": [call(n, project="", url="") for n in range(3)],
    "no failure": [call(n) for n in range(3)],
    "a large body": [call(0, response_size=2**53 + 1)],
}


def run(reader: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the lines of the page before and for one reader, and return the variables."""
    monkeypatch.chdir(folder)
    (lines,) = [step for step in STEPS if reader in step and "import" not in step]
    variables: dict[str, Any] = {}
    for step in (*(each for each in STEPS if "import" in each or each.startswith("texts")), lines):
        exec(step, variables)
    return variables


def of_csv(variables: dict[str, Any]) -> Iterable[Sequence[Any]]:
    return [[row[name] for name in COLUMNS] for row in variables["rows"]]


def of_pandas(variables: dict[str, Any]) -> Iterable[Sequence[Any]]:
    frame = variables["frame"]
    assert tuple(frame.columns) == COLUMNS
    missing = frame.isna().to_numpy().tolist()
    rows = zip(*(frame[name].tolist() for name in COLUMNS), strict=True)
    return [
        [None if is_missing else cell for cell, is_missing in zip(row, flags, strict=True)]
        for row, flags in zip(rows, missing, strict=True)
    ]


def of_polars(variables: dict[str, Any]) -> Iterable[Sequence[Any]]:
    assert tuple(variables["frame"].columns) == COLUMNS
    return list(variables["frame"].rows())


def of_duckdb(variables: dict[str, Any]) -> Iterable[Sequence[Any]]:
    assert tuple(variables["log"].columns) == COLUMNS
    return sorted(variables["log"].fetchall())


READERS: dict[str, Callable[[dict[str, Any]], Iterable[Sequence[Any]]]] = {
    "csv.DictReader": of_csv,
    "pandas.": of_pandas,
    "polars.": of_polars,
    "duckdb.": of_duckdb,
}


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("reader", READERS)
def test_the_values_are_those_that_were_written(
    reader: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = LOGS[name]
    folder = tmp_path / "project=Other"  # not a column of the log
    folder.mkdir()
    write(folder / "logs.csv", records)
    guarded = {"'=1": "''=1"}  # as the page: "gets a leading '"
    expected = [[None if cell == "" else guarded.get(str(cell), cell) for cell in record] for record in records]
    found = [list(row) for row in READERS[reader](run(reader, folder, monkeypatch))]
    assert [row[1:] for row in found] == [row[1:] for row in expected]
    assert found == expected
    kinds = {type(cell) for row in found for cell in row}
    assert kinds <= {str, int, float, bool, type(None)}
    assert not any(isinstance(cell, float) and math.isnan(cell) for row in found for cell in row)


def test_a_status_is_found_as_a_number_with_every_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import duckdb
    import polars as pl

    write(tmp_path / "logs.csv", LOGS["no response in the first 101 calls"])
    assert sum(row["response_code"] == 503 for row in run("csv.DictReader", tmp_path, monkeypatch)["rows"]) == 1
    frame = run("pandas.", tmp_path, monkeypatch)["frame"]
    assert (len(frame[frame.response_code == 503]), int(frame.response_code.isna().sum())) == (1, 101)
    frame = run("polars.", tmp_path, monkeypatch)["frame"]
    assert (len(frame.filter(pl.col("response_code") == 503)), frame["response_code"].null_count()) == (1, 101)
    log = run("duckdb.", tmp_path, monkeypatch)["log"]
    assert isinstance(log, duckdb.DuckDBPyRelation)
    assert len(log.filter("response_code = 503").fetchall()) == 1


@pytest.mark.parametrize("name", LOGS)
def test_the_frames_of_a_review_have_the_same_types(name: str, tmp_path: Path) -> None:
    """`load(...).df()` and `.pl()` of the documents: texts are never missing there."""
    with review.load(write(tmp_path / "logs.csv", LOGS[name])) as calls:
        pandas_frame, polars_frame = calls.df(), calls.pl()
    wanted = sum(record.response_code == 503 for record in LOGS[name])
    assert int((pandas_frame["response_code"] == 503).sum()) == wanted
    assert len(polars_frame.filter(polars_frame["response_code"] == 503)) == wanted
    projects = sorted(record.project for record in LOGS[name])
    assert sorted(pandas_frame["project"]) == sorted(polars_frame["project"]) == projects
    assert polars_frame["response_code"].dtype.is_integer()
