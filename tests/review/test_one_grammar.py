"""Tests that rows are read by one grammar, whether DuckDB reads the file or Python does.

DuckDB reads plain files. Python reads files that are compressed, damaged, or saved by another program. Both must find
the same rows and the same damaged lines.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.logs import call, rows

from otel_connector import COLUMNS, review
from otel_connector._csv._format import HEADER
from otel_connector.review import _load
from otel_connector.review._filters import EVERYTHING
from otel_connector.review._sources import Source

GOOD = rows(call(0)), rows(call(2, error="X: a, b"))
DAMAGED = b"garbage\n"
WAYS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda log: log,
    "gzip": gzip.compress,
    "CRLF": lambda log: log.replace(b"\n", b"\r\n"),
    "BOM": lambda log: b"\xef\xbb\xbf" + log,
    "beside a damaged line": lambda log: log + DAMAGED,
}
ROW = rows(call(1))
CELLS = {
    "True": ["TRUE", "true", "T", "1", "t", "yes", " True", "True ", "", '"True"'],
    "1790000001.000000": ["1790000001", "1.790000001e9", "+1790000001", "1790000001.0000004", "nan", "inf", "-1", ""],
    "0.250000": ["0.25", ".25", " 0.25", "2.5e-1", "1e300", "-0.25", ""],
    "100": ["1e2", "100.0", "99.6", "+100", " 100", "-100", "0100", "0x10", "1_00", "", '"100"'],
    "200": ["2e2", "200.0", "+200", "0200", "-200", "", "2_00", '"200"'],
    "https://api.example.com/1": ["a\x1fb", "'=1", "'\x1f", "\x1f", '"x\x1f,"', "a\tb"],
    "P": ['a"b', '"a"b', '"a""b"', "'=1", "''=1", "'", "'a", "\t", "\u00e9", "\u2028", "NULL", "a\rb", '"'],
}


END = (b",", b",,", b',""', b',"",""', b", ", b",x", b"x,", b'"x"",",', b"X: y,", b'"X: y",', b"\x1fx", b"\r", b",\r")


def read(path: Path, log: bytes, *, copied: bool | None = None) -> tuple[list[Any], int]:
    """Return the rows of a log, as DuckDB has them, and the number of its damaged lines.

    If `copied` is given, fail unless Python has copied the rows, or DuckDB has read the log itself.
    """
    path.write_bytes(log)
    with review.load(path) as calls:
        assert copied in {None, calls.read_from[0].endswith(".copy")}
        found = calls.rows("SELECT * FROM log ORDER BY ALL")
        assert len(calls) == len(found)
        assert calls.rows(f"SELECT {', '.join(COLUMNS)} FROM calls ORDER BY ALL") == found
        return found, calls.files[0].damaged


def answers(folder: Path, middle: bytes, *ways: str) -> dict[str, tuple[list[Any], int]]:
    """Return what a review finds in a log with two good rows around `middle`, for each way to store the log."""
    log = HEADER + GOOD[0] + middle + GOOD[1]
    found = {name: read(folder / "logs.csv", WAYS[name](log)) for name in ways or WAYS}
    beside, damaged = found["beside a damaged line"]
    found["beside a damaged line"] = beside, damaged - 1
    return found


ODD = {
    f"{cell}={other}": ROW.replace(f",{cell},".encode(), f",{other},".encode(), 1)
    for cell, others in CELLS.items()
    for other in others
}
ODD |= {f"{end!r} at the end": ROW[:-1] + end + b"\n" for end in END}


def with_id(name: str) -> bytes:
    """Return a row of `ODD` with an id of its own."""
    return b"%032x" % list(ODD).index(name) + ODD[name][32:]


def id_of(name: str) -> str:
    """Return the first part of the id of that row."""
    return with_id(name)[:32].decode()


@pytest.fixture(scope="module")
def read_by_python(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what a review finds in one log with all of the odd rows, by id. Python reads it, as it is damaged."""
    log = HEADER + b"".join(map(with_id, ODD)) + DAMAGED
    found, damaged = read(tmp_path_factory.mktemp("odd") / "logs.csv", log)
    assert damaged == len(ODD) - len(found) + 1
    return {row[0][:32]: row for row in found}


LARGE = pytest.mark.parametrize("large", [0, _load._LARGE], ids=["a large log", "a small log"])
COPIED = [
    *(f"{cell}={other}" for cell in ("100", "200") for other in (f"+{cell}", f"0{cell}")),
    f"{END[-2]!r} at the end",
]
"""Odd rows that DuckDB reads in another way: if a log has one, Python copies its rows."""


@LARGE
def test_odd_rows_are_read_by_duckdb_as_by_python(
    large: int, read_by_python: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(_load, "_LARGE", large)
    own = [name for name in ODD if id_of(name) in read_by_python and name not in COPIED]
    assert len(own) > 25
    for names in (own, *([name] for name in COPIED)):
        log = HEADER + GOOD[0] + b"".join(map(with_id, names)) + GOOD[1]
        found, damaged = read(tmp_path / "logs.csv", log, copied=names is not own)
        by_id = {row[0][:32]: row for row in found}
        assert [name for name in names if by_id.get(id_of(name)) != read_by_python[id_of(name)]] == []
        assert (len(found), damaged) == (len(names) + 2, 0)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[review.Calls]:
    path = tmp_path_factory.mktemp("loaded") / "logs.csv"
    path.write_bytes(HEADER + GOOD[0])
    with review.load(path) as calls:
        yield calls


@pytest.mark.parametrize(
    ("cells", "large"),
    [((*CELLS, "at the end"), False), (("True", "at the end"), True)],
    ids=["a small log", "a large log"],
)
def test_an_odd_line_that_is_no_row_is_none_for_duckdb(
    cells: tuple[str, ...], large: bool, read_by_python: dict[str, Any], loaded: review.Calls, tmp_path: Path
) -> None:
    """Otherwise, it would be a row in a plain log, and a damaged line in others."""
    names = [name for name in ODD if name.partition("=")[0] in cells or name.endswith(cells)]
    lines = [name for name in names if id_of(name) not in read_by_python]
    assert len(lines) > 15
    for number, name in enumerate(["", *lines]):
        assert not name or ODD[name] != ROW
        path = tmp_path / f"{number}.csv"
        path.write_bytes(HEADER + GOOD[0] + (with_id(name) if name else b"") + GOOD[1])
        source = Source(str(path), str(tmp_path / f"{number}.link"))
        assert source.link()
        wrong = _load._read_wrong(loaded, [source], EVERYTHING, str(tmp_path), large=large)
        assert (name, wrong) == (name, [source] if name else [])


def test_texts_with_control_characters_are_complete(tmp_path: Path) -> None:
    texts = {name: f"a\x1fb\x01{name}\x1f" for name in ("url", "redirect_url", "error")}
    quoted = {name: f'"{text}"' for name, text in texts.items()}
    row = rows(call(1, url="URL", redirect_url="REDIRECT_URL", error="ERROR")).decode()
    for cells in (texts, quoted):
        line = row
        for name, text in cells.items():
            line = line.replace(f",{name.upper()}", f",{text}")
        (tmp_path / "logs.csv").write_bytes(HEADER + line.encode())
        with review.load(tmp_path / "logs.csv") as calls:
            assert calls.rows("SELECT url, redirect_url, error FROM calls") == [tuple(texts.values())]
            assert calls.files[0].damaged == 0


@LARGE
def test_a_line_with_a_nul_byte_is_damaged_wherever_it_is(large: int, tmp_path: Path, monkeypatch: Any) -> None:
    """Hosts, paths and classes of errors are parts of later statements, in which DuckDB 1 accepts no NUL byte."""
    monkeypatch.setattr(_load, "_LARGE", large)
    failed = rows(call(1, error="XY: z"))
    for before, after in (b"//a", b"pi."), (b".com/", b"1"), (b",", b"P,"), (b",X", b"Y: z"), (b"XY: z", b"\n"):
        middle = failed.replace(before + after, before + b"\0" + after)
        assert middle != failed
        assert {(len(rows), damaged) for rows, damaged in answers(tmp_path, middle).values()} == {(2, 1)}


@pytest.mark.parametrize("tail", [b"a\0b'c\xc3\xa9,P", bytes(5_000)], ids=["text", "as after a power cut"])
def test_the_unfinished_last_line_may_contain_nul_bytes(tail: bytes, tmp_path: Path) -> None:
    found, damaged = read(tmp_path / "logs.csv", HEADER + GOOD[0] + tail)
    assert (len(found), damaged) == (1, 0)


@LARGE
def test_only_true_and_false_are_outcomes_of_a_call(large: int, tmp_path: Path, monkeypatch: Any) -> None:
    """In a file that DuckDB does not read itself; the test above has the others."""
    monkeypatch.setattr(_load, "_LARGE", large)
    both = ROW.replace(b"True", b"TRUE") + ROW.replace(b"True", b"1")
    ways = [way for way in WAYS if way != "plain"]
    assert {(len(rows), damaged) for rows, damaged in answers(tmp_path, both, *ways).values()} == {(2, 2)}


mutations = st.lists(
    st.tuples(
        st.integers(0, len(ROW) - 1),
        st.integers(0, 3),
        st.text(alphabet=",\"'=-+.eE 0159aTrue_\t\x1f\u00e9\0", max_size=3),
    ),
    min_size=1,
    max_size=2,
)


# An example takes 0.1 s
@settings(
    max_examples=min(settings().max_examples, 40) * 2 // 5, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(mutations, st.booleans())
def test_a_changed_row_is_read_in_the_same_way_from_every_file(
    tmp_path: Path, changes: list[tuple[int, int, str]], large: bool
) -> None:
    row = ROW.decode()[:-1]
    for position, removed, added in changes:
        row = row[:position] + added + row[position + removed :]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_load, "_LARGE", 0 if large else _load._LARGE)
        found = answers(tmp_path, row.encode() + b"\n", "plain", "beside a damaged line")
    assert found["plain"] == found["beside a damaged line"]
