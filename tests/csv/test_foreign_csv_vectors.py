"""CSV vectors that nobody here wrote: what goes in as a project and inside an error comes back from every reader.

One row is one physical line, no cell begins a formula, and the csv module, pandas, polars and duckdb, as the README
reads a log with them, give the same texts.
"""

from __future__ import annotations

import csv
import json
import random
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from unicodedata import category

import duckdb
import pandas as pd
import polars as pl
import pytest
from support.logs import Log
from support.loop_and_memory import closed_session
from support.processes import TESTS
from support.records import BLANK, as_written
from support.sdk import SDK

import otel_connector
from otel_connector import AsyncConnector, CallRecord
from otel_connector._csv_check import check
from otel_connector._csv_format import HEADER, decode_row, encode_row
from otel_connector._record import one_line
from otel_connector._redact import Redactor
from otel_connector.testing import FaultServer, ok

DATA = TESTS / "data"

OWASP = "=+-@\t\r\n"
"""What a cell must not begin with: OWASP, "CSV Injection", as of 2025."""
FULL_WIDTH = "\uff1d\uff0b\uff0d\uff20"
"""The first four as East Asian keyboards write them; some spreadsheets take them for the same."""

CONTROLS = [chr(code) for code in range(sys.maxunicode + 1) if category(chr(code)) in {"Cc", "Cf", "Zl", "Zp", "Cs"}]

Texts = list[tuple[str, str]]


def owasp() -> list[str]:
    """Each character alone, before text, behind what a reader may take off, and after a separator."""
    taken_off = ("", " ", "'", "''", '"', '""', "\t", "\r\n", "\x00", "\ufeff", "\u200b", "\u202e")
    before = (*taken_off, "a,", "a;", 'a",', "a\n")
    after = ("", "1", "1+1", "SUM(A1:A2)*cmd|' /C calc'!A0", '"x",y', "\n=1", "1.5e3")
    return [f"{a}{start}{b}" for start in (*OWASP, *FULL_WIDTH) for a in before for b in after]


def controls() -> list[str]:
    """Each control alone, at each end, in the middle, and (from a fixed seed) mixed with others and with CSV's own."""
    dice = random.Random(4)
    alone = [form for char in CONTROLS for form in (char, f"{char}a", f"a{char}", f"a{char}b")]
    mixed = ["".join(dice.choices([*CONTROLS, *'",;=+\n\r'], k=12)) for _ in range(500)]
    pairs = [chr(high) + chr(low) for high, low in ((0xD800, 0xDC00), (0xDBFF, 0xDFFF), (0xDC00, 0xD800))]
    return [*alone, *mixed, *pairs]


def texts_of(name: str) -> list[str]:
    """The texts of one file, each once."""
    cases = json.loads((DATA / name).read_text(encoding="utf-8"))["cases"]
    groups: Sequence[list[str]] = list(cases.values()) if isinstance(cases, dict) else [cases]
    return list(dict.fromkeys(text for group in groups for text in group))


@cache
def vectors(source: str) -> list[str]:
    return {
        "csv-spectrum": lambda: texts_of("csv_spectrum.json"),
        "PapaParse": lambda: texts_of("papaparse_unparse.json"),
        "blns": lambda: texts_of("naughty_strings.json"),
        "OWASP": owasp,
        "Unicode": controls,
    }[source]()


SOURCES = {"csv-spectrum": 50, "PapaParse": 125, "blns": 400, "OWASP": 1_200, "Unicode": 9_000}
"""Where they come from, and how many there are at least."""


def read_csv(path: Path) -> Texts:
    with path.open(newline="", encoding="utf-8") as file:
        return [(row["project"], row["error"]) for row in csv.DictReader(file)]


def read_pandas(path: Path) -> Texts:
    texts = {"project": str, "error": str}
    frame = pd.read_csv(path, keep_default_na=False, dtype=texts)
    return list(zip(frame["project"], frame["error"], strict=True))


def read_polars(path: Path) -> Texts:
    texts = {"project": pl.String, "error": pl.String}
    frame = pl.read_csv(path, schema_overrides=texts).select(pl.col(*texts).fill_null(""))  # null for empty
    return [(project, error) for project, error in frame.rows()]


def read_duckdb(path: Path) -> Texts:
    found = duckdb.sql(f"SELECT project, error FROM '{path}'")
    assert found is not None
    return [(project or "", error or "") for project, error in found.fetchall()]  # null for empty


READERS: dict[str, Callable[[Path], Texts]] = {
    "csv": read_csv,
    "pandas": read_pandas,
    "polars": read_polars,
    "duckdb": read_duckdb,
}


def holds(path: Path, expected: Sequence[CallRecord]) -> None:
    """Fail unless the log holds these records: to its own reader, as physical lines, to a spreadsheet, to the four."""
    lines = path.read_bytes().decode().splitlines(keepends=True)
    assert lines[0] == HEADER.decode()
    assert len(lines) == 1 + len(expected), "one row is one physical line, whatever is called a line"
    rows = [next(csv.reader([line], strict=True)) for line in lines[1:]]
    assert [decode_row(cells) for cells in rows] == expected
    assert not [cell for cells in rows for cell in cells if cell.startswith((*OWASP, *FULL_WIDTH))]
    report = check(path)
    assert report.whole
    assert report.rows == len(expected)
    texts = [(cells[1], cells[-1]) for cells in rows]
    for name, read in READERS.items():
        assert read(path) == texts, name


@pytest.mark.parametrize("source", SOURCES)
def test_every_reader_gets_the_same_texts(source: str, tmp_path: Path) -> None:
    values = vectors(source)
    assert len(values) >= SOURCES[source]
    records = [BLANK._replace(project=value, error=f"ValueError: {value}") for value in values]
    records += [BLANK._replace(project="P", error=value, redirect_url=value) for value in values]
    path = tmp_path / "logs.csv"
    path.write_bytes(HEADER + b"".join(map(encode_row, records)))

    holds(path, [as_written(record) for record in records])


@pytest.mark.parametrize("source", SOURCES)
async def test_a_call_leaves_them_on_one_line(source: str, server: FaultServer, log: Log, sdk: SDK) -> None:
    """What the caller and the server say is in the row, in the span and in the exception, and the same in all."""
    values = vectors(source) if source != "Unicode" else [*vectors(source)[:1_000], *vectors(source)[-520:]]
    values = values[:: max(len(values) // 500, 1)]
    server.script("/v", ok)
    async with closed_session() as session, AsyncConnector(log.path, **sdk.providers) as subject:
        for value in values:

            def decode(_body: bytes, value: str = value) -> None:
                raise ValueError(value)

            with pytest.raises(otel_connector.DecodeFailed) as caught:
                await subject.get(session, server.url("/v"), value, decode=decode)
            assert str(caught.value).splitlines() == [str(caught.value)]

    redactor, records, spans = Redactor(), log.records(), sdk.spans.get_finished_spans()
    for value, record, span in zip(values, records, spans, strict=True):
        why = redactor.text(f"ValueError: {value}".removesuffix(": "))
        attributes = span.attributes
        assert attributes is not None
        assert record.project == attributes.get("otel_connector.project", "") == one_line(value)
        assert record.error == attributes["otel_connector.error"] == one_line(f"DecodeFailed: {why}")
    holds(log.path, records)
