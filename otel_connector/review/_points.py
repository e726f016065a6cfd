"""Computes the points of the charts in DuckDB: counts and percentiles by time, latency, status and project.

The number of points is bounded for any number of calls: time is divided into intervals of a common width, and latency
into bins of a constant ratio. Does not know how charts look.

Used by ``review._charts``, ``review._pictures``, ``review._report`` and ``review._zone``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any

from otel_connector._record import one_line
from otel_connector.review._load import Calls
from otel_connector.review._lost_time import retries_over_time

Point = dict[str, Any]
"""One point of a chart: times in milliseconds since 1970 (as in JavaScript), latencies in seconds."""

NO_RESPONSE = "no response"  # the status of a call without a response

SHORTEST = 1e-4
"""Seconds of the lowest latency in a chart: an axis of logarithms has no zero."""

_INVALID = "5xx other"
"""The status of all calls with a status outside 100 to 599: it is treated as a 5xx (RFC 9110, section 15)."""

_FAILED_FIRST = "543no12"  # first characters of statuses, in the order they are stacked: failures at the bottom
_MOST_INTERVALS, _FEWEST_INTERVALS = 240, 24
_MOST_COLUMNS = 120  # of the heat map
_CALLS_PER_INTERVAL = 10  # on average, before there are more intervals: with fewer calls, noise would dominate
_MOST_NAMES = 6  # projects, or statuses, that have their own colour
_MOST_ERRORS = 12
_NAME_LIMIT = 60  # characters
_BINS_PER_DECADE = (5, 10, 20, 40)
_FEWEST_BINS, _MOST_BINS = 8, 60  # for the middle 98 % of the calls, and for all
_MANY = 2_000  # calls from which the distribution has finer bins
_SECOND = 1_000_000
_WIDTHS = tuple(
    [factor * 10**power for power in (3, 4, 5) for factor in (1, 2, 5)]
    + [seconds * _SECOND for seconds in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800)]
    + [hours * 3_600 * _SECOND for hours in (6, 12, 24, 48, 168)]
)  # microseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """The data of all charts.

    Attributes:
        width: Seconds of an interval.
        domain: The period that the charts over time show, in milliseconds since 1970.
        over_time: One point per interval, including those without calls: ``t``, ``end``, ``calls``, ``failed``,
            ``p50``, ``p90``, ``p99``. The last three are None if there were no calls.
        statuses: The names of the statuses, in the order they are stacked.
        by_status: ``t``, ``end``, ``status``, ``calls``.
        latencies: By interval and latency: ``t``, ``end``, ``low``, ``high``, ``calls``.
        projects: The names of the projects, those with the most calls first.
        distribution: By latency and project: ``low``, ``high``, ``project``, ``calls``.
        errors: By class, the most frequent first: ``error``, ``calls``, ``share`` (of all calls, of 1).
        zone: The name of the time zone of all times.
        reasons: Why attempts were repeated, the most frequent first; empty without an attempts log.
        retries: By interval and reason: ``t``, ``end``, ``reason``, ``retries``.
    """

    width: float
    domain: tuple[float, float]
    over_time: list[Point]
    statuses: list[str]
    by_status: list[Point]
    latencies: list[Point]
    projects: list[str]
    distribution: list[Point]
    errors: list[Point]
    zone: str = "UTC"
    reasons: list[str] = field(default_factory=list[str])
    retries: list[Point] = field(default_factory=list[Point])


@dataclass(frozen=True, slots=True)
class _Intervals:
    """`number` intervals of `width` microseconds. The first begins at `start`."""

    start: int
    width: int
    number: int

    @property
    def sql(self) -> str:
        """The number of the interval of a call, from 0."""
        return f"((epoch_us(t) - {self.start}) // {self.width})"

    def times(self, number: int) -> Point:
        start = (self.start + number * self.width) / 1e3
        return {"t": start, "end": start + self.width / 1e3}


def points(calls: Calls, *, has_attempts: bool = False) -> Points | None:
    """Return the data of all charts; None if there are no calls.

    Args:
        calls: The calls.
        has_attempts: Whether their attempts have been read (`_lost_time.read_retries`).
    """
    found = calls.rows(
        "SELECT count(*), epoch_us(min(t)), epoch_us(max(t)), min(delta_t), max(delta_t), "
        "quantile_cont(delta_t, [0.01, 0.99]) FROM calls_compact"
    )
    total, first, last, shortest, longest, middle = found[0]
    if not total:
        return None
    most = min(_MOST_INTERVALS, max(_FEWEST_INTERVALS, total // _CALLS_PER_INTERVAL))
    narrowest = 1 if total >= _FEWEST_INTERVALS and last > first else _SECOND
    intervals = _intervals(first, last, most, narrowest)
    columns = _intervals(first, last, min(most, _MOST_COLUMNS), narrowest)
    per_decade = _bins_per_decade(shortest, longest, *middle)
    statuses, by_status = _by_status(calls, intervals)
    projects, distribution = _distribution(calls, 2 * per_decade if total >= _MANY else per_decade)
    reasons, retries = _retries(calls, intervals) if has_attempts else ([], [])
    return Points(
        width=intervals.width / _SECOND,
        domain=_domain(intervals),
        over_time=list(_over_time(calls, intervals)),
        statuses=statuses,
        by_status=by_status,
        latencies=list(_latencies(calls, columns, per_decade)),
        projects=projects,
        distribution=distribution,
        errors=list(_errors(calls, total)),
        reasons=reasons,
        retries=retries,
    )


def _intervals(first: int, last: int, most: int, narrowest: int) -> _Intervals:
    """Divide a period into at most `most` intervals of the smallest common width that is not below `narrowest`."""
    widths = chain(_WIDTHS, (_WIDTHS[-1] * 2**power for power in count(1)))
    width = next(width for width in widths if width >= narrowest and last // width - first // width < most)
    start = first // width * width
    return _Intervals(start, width, (last - start) // width + 1)


def _domain(intervals: _Intervals) -> tuple[float, float]:
    """Return the period to show: that of the intervals, with margins if they are few."""
    margin = max(0, _FEWEST_INTERVALS // 2 - intervals.number) / 2 * intervals.width
    end = intervals.start + intervals.number * intervals.width
    return (intervals.start - margin) / 1e3, (end + margin) / 1e3


def _bins_per_decade(shortest: float, longest: float, low: float, high: float) -> int:
    """Return the number of bins of latency for a factor of ten."""
    shortest, longest, low, high = (math.log10(max(seconds, SHORTEST)) for seconds in (shortest, longest, low, high))
    fitting = [number for number in _BINS_PER_DECADE if (longest - shortest) * number <= _MOST_BINS]
    fitting = fitting or [_BINS_PER_DECADE[0]]
    return next((number for number in fitting if (high - low) * number >= _FEWEST_BINS), fitting[-1])


def _over_time(calls: Calls, intervals: _Intervals) -> Iterator[Point]:
    rows = calls.rows(
        f"SELECT {intervals.sql}, count(*), count_if(NOT success), quantile_cont(delta_t, [0.5, 0.9, 0.99]) "
        "FROM calls_compact GROUP BY 1"
    )
    found = {interval: rest for interval, *rest in rows}
    for interval in range(intervals.number):
        total, failed, percentiles = found.get(interval, (0, 0, [None] * 3))
        rounded = (value if value is None else round(value, 6) for value in percentiles)
        latency = dict(zip(("p50", "p90", "p99"), rounded, strict=True))
        yield {**intervals.times(interval), "calls": total, "failed": failed, **latency}


def _by_status(calls: Calls, intervals: _Intervals) -> tuple[list[str], list[Point]]:
    status = (
        f"CASE WHEN response_code IS NULL THEN '{NO_RESPONSE}' "
        f"WHEN response_code BETWEEN 100 AND 599 THEN response_code::VARCHAR ELSE '{_INVALID}' END"
    )
    frequent = calls.rows(
        f"SELECT {status} FROM calls_compact GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT {_MOST_NAMES}"
    )
    rows = calls.rows(
        f"SELECT {intervals.sql}, CASE WHEN list_contains(?, {status}) THEN {status} ELSE 'other' END, count(*) "
        "FROM calls_compact GROUP BY 1, 2 ORDER BY 1, 2",
        [[name for (name,) in frequent]],
    )
    names = sorted({name for _, name, _ in rows}, key=lambda name: (_FAILED_FIRST.index(name[0]), name))
    return names, [{**intervals.times(interval), "status": name, "calls": number} for interval, name, number in rows]


def _retries(calls: Calls, intervals: _Intervals) -> tuple[list[str], list[Point]]:
    """Return the reasons of the retries, and their number by interval and reason."""
    rows = retries_over_time(calls, intervals.start, intervals.width, intervals.number)
    numbers = Counter[str]()
    for _, reason, number in rows:
        numbers[reason] += number
    common = [reason for reason, _ in numbers.most_common(_MOST_NAMES)]
    names = [*common, "other"] if len(numbers) > len(common) else common
    found = Counter[tuple[int, str]]()
    for interval, reason, number in rows:
        found[interval, reason if reason in common else "other"] += number
    retries = [{**intervals.times(at), "reason": name, "retries": number} for (at, name), number in found.items()]
    return names, retries


def _bin_sql(per_decade: int) -> str:
    return f"floor(log10(greatest(delta_t, {SHORTEST})) * {per_decade})::INTEGER"


def _bin(number: int, per_decade: int) -> Point:
    low, high = (float(f"{10 ** (edge / per_decade):.4g}") for edge in (number, number + 1))
    return {"low": low, "high": high}


def _latencies(calls: Calls, intervals: _Intervals, per_decade: int) -> Iterator[Point]:
    rows = calls.rows(
        f"SELECT {intervals.sql}, {_bin_sql(per_decade)}, count(*) FROM calls_compact GROUP BY 1, 2 ORDER BY 1, 2",
    )
    for interval, latency, number in rows:
        yield {**intervals.times(interval), **_bin(latency, per_decade), "calls": number}


def _distribution(calls: Calls, per_decade: int) -> tuple[list[str], list[Point]]:
    projects = calls.rows("SELECT project FROM calls_compact GROUP BY 1 ORDER BY count(*) DESC, 1")
    frequent = projects if len(projects) <= _MOST_NAMES + 1 else projects[:_MOST_NAMES]
    names = _distinct([name for (name,) in frequent])
    others = f"{len(projects) - len(frequent):,} other projects"
    rows = calls.rows(
        f"SELECT {_bin_sql(per_decade)}, CASE WHEN list_contains(?, project) THEN project END, count(*) "
        "FROM calls_compact GROUP BY 1, 2 ORDER BY 1, 2",
        [list(names)],
    )
    shown = [{**_bin(latency, per_decade), "project": names.get(name, others), "calls": n} for latency, name, n in rows]
    return [*names.values(), *([others] if len(frequent) < len(projects) else [])], shown


def _distinct(texts: Sequence[str]) -> dict[str, str]:
    """Return a label for each text: one line, short, and different from the other labels."""
    names = dict[str, str]()
    for number, text in enumerate(texts, 1):
        name = one_line(text, _NAME_LIMIT) or "(none)"
        names[text] = f"{name} ({number})" if name in names.values() else name
    return names


def _errors(calls: Calls, total: int) -> Iterator[Point]:
    rows = calls.rows("SELECT error_type, count(*) FROM calls_compact WHERE NOT success GROUP BY 1 ORDER BY 2 DESC, 1")
    shown = rows if len(rows) <= _MOST_ERRORS + 1 else rows[:_MOST_ERRORS]
    names = _distinct([name for name, _ in shown])
    rest = sum(number for _, number in rows[len(shown) :])
    others = [(f"{len(rows) - len(shown):,} other classes", rest)] if rest else []
    for name, number in [*((names[name], number) for name, number in shown), *others]:
        yield {"error": name, "calls": number, "share": number / total}
