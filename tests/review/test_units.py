"""Tests of how figures are written, and of the one definition of a percentile in Python and in DuckDB."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_connector import _units
from otel_connector._percentile import percentile
from otel_connector.review import _vega


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"), (1e-6, "1.00 us"), (0.000_85, "850 us"), (0.000_999_7, "1.00 ms"), (0.207, "207 ms"),
        (0.9994, "999 ms"), (0.9999, "1.00 s"), (1.384, "1.38 s"), (12.34, "12.3 s"), (59.4, "59.4 s"),
        (60, "1 min 0 s"), (123.4, "2 min 3 s"), (27_960, "7 h 46 min"), (273_600, "3 d 4 h"), (float("nan"), "-"),
    ],
)  # fmt: skip
def test_durations_are_shown_in_readable_units(seconds: float, shown: str) -> None:
    assert _units.duration(seconds) == shown


@pytest.mark.parametrize(
    ("show", "value", "shown"),
    [
        (_units.size, 0, "0 B"),
        (_units.size, 999, "999 B"),
        (_units.size, 1_000, "1.00 kB"),
        (_units.size, 23_412_345_678, "23.4 GB"),
        (_units.size, 10**21, "1,000,000 PB"),
        (_units.size, float("nan"), "-"),
        (_units.share, 0, "0.00 %"),
        (_units.share, 1, "100.00 %"),
        (_units.share, 1e-9, "<0.01 %"),
        (_units.share, 1 - 1e-9, ">99.99 %"),
        (_units.share, 0.1234, "12.34 %"),
        (_units.share, float("nan"), "-"),
        (_units.rate, 357.2, "357/s"),
        (_units.rate, 0.5, "30.0/min"),
        (_units.rate, 0.001, "3.60/h"),
        (_units.rate, float("nan"), "-"),
        (_units.moment, None, "-"),
        (_units.moment, datetime(2026, 1, 2, 3, 4, 5, 6), "2026-01-02 03:04:05"),  # noqa: DTZ001 - naive, like DuckDB's
    ],
)
def test_figures_are_shown_with_their_units(show: Any, value: object, shown: str) -> None:
    assert show(value) == shown


@pytest.mark.parametrize(("number", "shown"), [(0, "0 files"), (1, "1 file"), (2, "2 files"), (1_234, "1,234 files")])
def test_counts_are_shown_with_singular_or_plural(number: int, shown: str) -> None:
    assert _units.counted(number, "file") == shown


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        ("", "-"),
        ("a", "a"),
        ("abc", "a, b, c"),
        ("abcd", "a, b, c, d"),
        ("x" * 20, ", ".join("x" * 20)),
        ("x" * 1_234, f"{', '.join('x' * 20)} and 1,214 more"),
    ],
)
def test_of_many_files_the_first_names_and_the_number_of_the_others_are_shown(names: Sequence[str], shown: str) -> None:
    assert _units.listed_files(names, _units.MOST_FILES) == shown
    assert _units.listed_files(names) == (", ".join(names) or "-")


@given(st.lists(st.integers(0, 10**10).map(lambda us: us / 1e6), min_size=1), st.floats(0, 1))
def test_python_duckdb_and_numpy_find_the_same_percentile(values: list[float], level: float) -> None:
    import duckdb
    import numpy as np

    found = percentile(sorted(values), level)
    in_sql = duckdb.execute(
        "SELECT quantile_cont(v, $level) FROM (SELECT unnest($v::DOUBLE[]) AS v)", {"level": level, "v": values}
    )
    assert found == pytest.approx(in_sql.fetchall()[0][0], rel=1e-12, abs=1e-15)
    assert found == pytest.approx(float(np.quantile(values, level)), rel=1e-12, abs=1e-15)


def test_there_is_no_percentile_of_no_values() -> None:
    assert math.isnan(percentile([], 0.5))


SECONDS = (
    None,
    0,
    1e-6,
    1.5e-5,
    0.000_85,
    0.000_999_7,
    0.207,
    0.9994,
    0.9999,
    1.384,
    12.34,
    59.4,
    60,
    123.4,
    27_960,
    273_600,
)
SHARES = (0, 1e-9, 0.0001, 0.1234, 0.5, 1 - 1e-9, 1)


def evaluated(expression: str, values: Sequence[float | None]) -> list[str]:
    """Return the texts that a Vega expression of ``datum.value`` has for some values."""
    import altair as alt
    import vl_convert

    chart = (
        alt.Chart(alt.InlineData(values=[{"number": number, "value": value} for number, value in enumerate(values)]))
        .transform_calculate(text=expression)
        .mark_text()
        .encode(y="number:O", text="text:N")
    )
    svg = ET.fromstring(vl_convert.vegalite_to_svg(chart.to_dict()))
    marks = next(each for each in svg.iter() if "mark-text role-mark" in each.get("class", ""))
    return [text.text or "" for text in marks.iter("{http://www.w3.org/2000/svg}text")]


def test_charts_write_durations_and_shares_as_the_rest_of_the_package() -> None:
    durations = [_units.duration(math.nan if seconds is None else seconds) for seconds in SECONDS]
    assert evaluated(_vega.duration("datum.value"), SECONDS) == durations
    assert evaluated(_vega.share("datum.value"), SHARES) == [_units.share(value) for value in SHARES]
    assert evaluated(_vega.duration("datum.value", axis=True), [0.0015, 0.1, 2, 60, 90, 3_600]) == [
        "1.5 ms",
        "100 ms",
        "2 s",
        "1 min",
        "1 min 30 s",
        "1 h",
    ]
