"""Records that are hard to write to a CSV file, and the readers that must return them unchanged.

The readers are imported when they are called: many tests use the records, and pandas takes a second to load.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from otel_connector._record import URL_LIMIT, CallRecord, one_line

BLANK = CallRecord(
    call_id="0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", project="", t=1_700_000_000.25, delta_t=0.5, url="",
    redirect_url="", response_size=0, response_code=None, success=False, error="",
)  # fmt: skip


NASTY = [
    *(
        "",
        " ",
        "  leading",
        "trailing  ",
        "a,b",
        ",",
        '"',
        '""',
        '"quoted"',
        '"half',
        'half"',
        "a\\",
        '\\"',
        "\\",
        "\\n",
    ),
    *(
        "'",
        "''",
        "'quoted'",
        "it's, isn't",
        "a;b|c\td",
        "NA",
        "NaN",
        "null",
        "NULL",
        "None",
        "N/A",
        "True",
        "1e5",
        "007",
    ),
    *(
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\uff1d1",
        "\ufe621",
        "\uff0b1",
        "\uff0d1",
        "\uff201",
        "'=1",
        "''@x",
        '="x,y"',
        "\t=1",
        "\r=1",
    ),
    *("a\nb", "\r\n", "a\x00b", "\x1b[31m", "\u2028", "\x85", "\u202eevil", "\ufeffbom", "\ud800", "\U0001f600é漢"),
    *("#comment", "{}", "[1, 2]", "2024-01-01", "x" * 300_000, "😀," * 150_000, '"' * 300_000, "\x00" * 300_000),
]


NASTY_RECORDS = [
    BLANK._replace(project=text, url=text, redirect_url=text, error=text, success=not text) for text in NASTY
]


TEXT = st.one_of(
    st.sampled_from(NASTY[:-4]),
    st.text(st.characters(exclude_categories=()), max_size=20),
    st.text("='+-@,\"\\ \n\uff1d\ufe66a", max_size=6),
)


RECORDS = st.builds(
    CallRecord,
    call_id=st.just(BLANK.call_id),
    project=TEXT,
    t=st.floats(0, 1e10),
    delta_t=st.floats(0, 1e6),
    url=TEXT,
    redirect_url=TEXT,
    response_size=st.integers(0, 2**63 - 1),
    response_code=st.none() | st.integers(100, 599),
    success=st.booleans(),
    error=TEXT,
)


def as_written(record: CallRecord) -> CallRecord:
    """Return the record with the documented changes of the format: single-line and limited texts, rounded times."""
    return record._replace(
        project=one_line(record.project),
        t=round(record.t, 6),
        delta_t=round(record.delta_t, 6),
        url=one_line(record.url, URL_LIMIT),
        redirect_url=one_line(record.redirect_url, URL_LIMIT),
        error=one_line(record.error),
    )


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def read_pandas(path: Path) -> list[list[str]]:
    import pandas as pd

    rows: list[list[str]] = pd.read_csv(path, dtype=str, keep_default_na=False).to_numpy().tolist()
    return rows


def read_polars(path: Path) -> list[list[str]]:
    import polars as pl

    return [[cell or "" for cell in row] for row in pl.read_csv(path, infer_schema=False).rows()]  # null for empty


def read_duckdb(path: Path) -> list[list[str]]:
    import duckdb

    rows: list[tuple[Any, ...]] = duckdb.read_csv(str(path), all_varchar=True, header=True).fetchall()
    return [[cell or "" for cell in row] for row in rows]  # null for empty
