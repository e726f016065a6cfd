"""Tests of the CSV format with test data of other projects, used as the project and the error of calls.

A row must be one physical line, and no cell may start a formula. The csv module, pandas, polars and DuckDB, used as in
`docs/guides/log.md`, must return the same texts.
"""

from __future__ import annotations

import asyncio
import csv
import json
import random
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from unicodedata import category

import pytest
from support.logs import Log
from support.loop_and_memory import local_session
from support.processes import TESTS
from support.records import BLANK, as_written
from support.samples import THOROUGH
from support.sdk import SDK

import otel_connector
from otel_connector import AsyncConnector, CallRecord
from otel_connector._csv._check import check
from otel_connector._csv._format import HEADER, decode_row, encode_row
from otel_connector._record import one_line
from otel_connector._redact import Redactor
from otel_connector.testing import FaultServer, ok

DATA = TESTS / "data"

OWASP = "=+-@\t\r\n"
"""Characters that must not start a cell: OWASP, "CSV Injection", as of 2025."""
FULL_WIDTH = "\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b"
"""Full-width and small forms of the first four characters (Unicode, blocks "Halfwidth and Fullwidth Forms" and "Small
Form Variants"). Some spreadsheets treat them alike."""


Texts = list[tuple[str, str]]


def owasp() -> list[str]:
    """Return each character alone, before text, after characters that a reader may strip, and after a separator."""
    stripped = ("", " ", "'", "''", '"', '""', "\t", "\r\n", "\x00", "\ufeff", "\u200b", "\u202e")
    before = (*stripped, "a,", "a;", 'a",', "a\n")
    after = ("", "1", "1+1", "SUM(A1:A2)*cmd|' /C calc'!A0", '"x",y', "\n=1", "1.5e3")
    return [f"{a}{start}{b}" for start in (*OWASP, *FULL_WIDTH) for a in before for b in after]


def controls() -> list[str]:
    """Return each control character alone, at both ends, in the middle, and mixed with others and with CSV syntax.

    Of the 2,048 surrogates, which are alike, some are among them. The mixtures are random, with a fixed seed.
    """
    dice = random.Random(4)
    each = map(chr, [*range(0xD800), *range(0xD800, 0xE000, 31), *range(0xDFFF, sys.maxunicode + 1)])
    all_controls = [char for char in each if category(char) in {"Cc", "Cf", "Zl", "Zp", "Cs"}]
    alone = [form for char in all_controls for form in (char, f"{char}a", f"a{char}", f"a{char}b")]
    mixed = ["".join(dice.choices([*all_controls, *'",;=+\n\r'], k=12)) for _ in range(500)]
    pairs = [chr(high) + chr(low) for high, low in ((0xD800, 0xDC00), (0xDBFF, 0xDFFF), (0xDC00, 0xD800))]
    return [*alone, *mixed, *pairs]


def texts_of(name: str) -> list[str]:
    """Return the texts of one file without duplicates."""
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


SOURCES = {"csv-spectrum": 50, "PapaParse": 125, "blns": 400, "OWASP": 1_200, "Unicode": 1_600}
"""The sources of the texts, and the least number of texts in each."""


def read_csv(path: Path) -> Texts:
    with path.open(newline="", encoding="utf-8") as file:
        return [(row["project"], row["error"]) for row in csv.DictReader(file)]


def read_pandas(path: Path) -> Texts:
    import pandas as pd

    texts = {"project": str, "error": str}
    frame = pd.read_csv(path, keep_default_na=False, dtype=texts)
    return list(zip(frame["project"], frame["error"], strict=True))


def read_polars(path: Path) -> Texts:
    import polars as pl

    texts = {"project": pl.String, "error": pl.String}
    frame = pl.read_csv(path, schema_overrides=texts).select(pl.col(*texts).fill_null(""))  # null for empty
    return [(project, error) for project, error in frame.rows()]


def read_duckdb(path: Path) -> Texts:
    import duckdb

    found = duckdb.sql(f"SELECT project, error FROM '{path}'")
    assert found is not None
    return [(project or "", error or "") for project, error in found.fetchall()]  # null for empty


READERS: dict[str, Callable[[Path], Texts]] = {
    "csv": read_csv,
    "pandas": read_pandas,
    "polars": read_polars,
    "duckdb": read_duckdb,
}


def assert_log_holds(path: Path, expected: Sequence[CallRecord]) -> None:
    """Fail unless the log has these records for its own decoder, for `check` and for all readers, without formulas."""
    lines = path.read_bytes().decode().splitlines(keepends=True)
    assert lines[0] == HEADER.decode()
    assert len(lines) == 1 + len(expected), "one row is one line, by every definition of a line"
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
def test_every_reader_returns_the_same_texts_for_each_source(source: str, tmp_path: Path) -> None:
    values = vectors(source)
    assert len(values) >= SOURCES[source]
    records = [BLANK._replace(project=value, error=f"ValueError: {value}") for value in values]
    records += [BLANK._replace(project="P", error=value, redirect_url=value) for value in values]
    path = tmp_path / "logs.csv"
    path.write_bytes(HEADER + b"".join(map(encode_row, records)))

    assert_log_holds(path, [as_written(record) for record in records])


@pytest.mark.parametrize("source", SOURCES)
async def test_texts_in_a_call_are_one_line_in_the_row_the_span_and_the_exception(
    source: str, server: FaultServer, log: Log, sdk: SDK
) -> None:
    """The project and the error have the same text in the row and in the span."""
    values = vectors(source)
    values = values[:: len(values) // (200 if THOROUGH else 60) | 1]  # an odd step: each character has four forms
    server.script("/v", ok)
    async with local_session() as session, AsyncConnector(log.path, **sdk.providers) as subject:
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
    await asyncio.to_thread(assert_log_holds, log.path, records)
