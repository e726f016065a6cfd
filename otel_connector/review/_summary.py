"""What happened, in figures: frozen values that a terminal, a page, JSON or a condition can show.

Percentiles are exact, interpolated linearly between the two nearest calls (Hyndman and Fan's type 7, as `numpy`,
pandas and DuckDB's ``quantile_cont`` have it by default). Knows nothing of how figures look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, cast

from otel_connector.review._load import Calls, LogFile

SLOWEST = 10
"""How many of the slowest calls are named."""

QUIET = 10
"""How many quiet periods are named."""

_QUIET_SHARE = 0.01  # of the period: nothing shorter is called quiet
_QUIET_TIMES = 20  # times the mean distance of two calls: nor is anything shorter than this
_BURST_TIMES = 3.0  # times the median rate of the busy seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long calls took, in seconds, retries and waits included; all are NaN if there was no call.

    Attributes:
        p50: Half of the calls took no longer.
        p90: Nine of ten took no longer.
        p95: 19 of 20 took no longer.
        p99: 99 of 100 took no longer.
        max: The longest.
    """

    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Calls that have something in common: a project, a host, or a quarter of the time.

    Attributes:
        name: What they share.
        calls: How many.
        failed: How many of these did not succeed.
        bytes: What their bodies had, in bytes.
        latency: How long they took.
        start: When the first began, in UTC; None if there was none.
        end: When the last began.
    """

    name: str
    calls: int
    failed: int
    bytes: int
    latency: Latency
    start: datetime | None
    end: datetime | None

    @property
    def succeeded(self) -> int:
        """How many succeeded."""
        return self.calls - self.failed

    @property
    def error_rate(self) -> float:
        """The share that failed, of 1; NaN if there was no call."""
        return self.failed / self.calls if self.calls else float("nan")

    @property
    def seconds(self) -> float:
        """From the first start to the last."""
        return (self.end - self.start).total_seconds() if self.start and self.end else 0.0

    @property
    def rate(self) -> float:
        """Calls a second between the first start and the last; NaN if that is no time."""
        return self.calls / self.seconds if self.seconds else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call, as its row has it."""

    call_id: str
    project: str
    t: datetime
    delta_t: float
    url: str
    response_code: int | None
    success: bool
    error: str

    @property
    def trace_id(self) -> str:
        """The trace it is in, 32 hexadecimal digits."""
        return self.call_id.partition("-")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorClass:
    """Failures of one class.

    Attributes:
        name: The class, and for `HTTPStatusError` the status.
        calls: How many.
        share: Of all calls, of 1.
        example: One of them.
    """

    name: str
    calls: int
    share: float
    example: Call


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """A time in which no call was begun.

    Attributes:
        start: When the last call before it began, in UTC.
        seconds: How long it was.
    """

    start: datetime
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bursts:
    """Seconds with many calls.

    Attributes:
        peak: When the busiest second began, in UTC; None if there was no call.
        peak_calls: Calls begun in it.
        median: Calls of the median second that had any.
        seconds: How many seconds had three times the median or more.
    """

    peak: datetime | None
    peak_calls: int
    median: float
    seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What some logs say.

    Attributes:
        files: What became of each file.
        total: All calls.
        projects: By project, the most calls first; as many as were asked for.
        more_projects: How many projects there are beyond those.
        hosts: By host and port, the most calls first; as many as were asked for.
        more_hosts: How many hosts there are beyond those.
        errors: By class, the most calls first; as many as were asked for.
        more_errors: How many classes there are beyond those.
        slowest: The slowest calls, one of each URL.
        quiet: The longest quiet periods.
        bursts: The busiest seconds.
        quarters: The four quarters of the period.
    """

    files: tuple[LogFile, ...]
    total: Group
    projects: tuple[Group, ...]
    more_projects: int
    hosts: tuple[Group, ...]
    more_hosts: int
    errors: tuple[ErrorClass, ...]
    more_errors: int
    slowest: tuple[Call, ...]
    quiet: tuple[Quiet, ...]
    bursts: Bursts
    quarters: tuple[Group, ...]

    @property
    def damaged(self) -> int:
        """Lines of all files that are no rows."""
        return sum(file.damaged for file in self.files)


_FIGURES = """count(*), count(*) FILTER (WHERE NOT success), coalesce(sum(response_size), 0),
    quantile_cont(delta_t, [0.5, 0.9, 0.95, 0.99]), max(delta_t), min(t), max(t)"""

_CALL = "struct_pack({})".format(", ".join(f"{field.name} := {field.name}" for field in fields(Call)))


def summarize(calls: Calls, *, top: int = 20) -> Summary:
    """Return what happened.

    Args:
        calls: What `load` read.
        top: How many projects, hosts and classes of errors are told apart, those with the most calls.
    """
    total = _group("", calls.rows(f"SELECT {_FIGURES} FROM calls_compact")[0])
    projects, more_projects = _groups(calls, "project", top)
    hosts, more_hosts = _groups(calls, "host", top)
    errors = _errors(calls, total.calls)
    return Summary(
        files=calls.files,
        total=total,
        projects=projects,
        more_projects=more_projects,
        hosts=hosts,
        more_hosts=more_hosts,
        errors=errors[:top],
        more_errors=len(errors[top:]),
        slowest=_slowest(calls, SLOWEST),
        quiet=_quiet(calls, total),
        bursts=_bursts(calls),
        quarters=_quarters(calls, total),
    )


def _group(name: str, row: Sequence[Any]) -> Group:
    """Make one of a row of `_FIGURES`; aggregates of nothing are NULL."""
    count, failed, size, percentiles, longest, start, end = row
    nan = float("nan")
    p50, p90, p95, p99 = percentiles or [nan] * 4
    latency = Latency(p50=p50, p90=p90, p95=p95, p99=p99, max=nan if longest is None else longest)
    return Group(name=name, calls=count, failed=failed, bytes=size, latency=latency, start=start, end=end)


def _groups(calls: Calls, column: str, top: int) -> tuple[tuple[Group, ...], int]:
    """Return the groups with the most calls, and how many there are beyond them."""
    counts = calls.rows(f"SELECT {column}, count(*) FROM calls_compact GROUP BY 1 ORDER BY 2 DESC, 1")
    few = len(counts) <= top
    rows = calls.rows(
        f"SELECT {column}, {_FIGURES} FROM calls_compact {'' if few else f'WHERE {column} IN (SELECT unnest(?))'} "
        "GROUP BY 1 ORDER BY 2 DESC, 1",
        [] if few else [[name for name, _ in counts[:top]]],
    )
    return tuple(_group(name, row) for name, *row in rows), len(counts[top:])


def _errors(calls: Calls, total: int) -> tuple[ErrorClass, ...]:
    counts = calls.rows(
        "SELECT error_type, count(*) FROM calls_compact WHERE NOT success GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    examples = dict[str, dict[str, Any]](
        calls.rows(f"SELECT error_type, max_by({_CALL}, t) FROM calls_with_text WHERE NOT success GROUP BY 1")
    )
    return tuple(
        ErrorClass(
            name=name, calls=count, share=count / total, example=Call(**(examples.get(name) or _one_of(calls, name)))
        )
        for name, count in counts
    )


def _one_of(calls: Calls, error_type: str) -> dict[str, Any]:
    """Look for an example in the files, where memory has none."""
    query = f"SELECT {_CALL} FROM calls WHERE NOT success AND error_type = ? LIMIT 1"
    ((found,),) = calls.rows(query, [error_type])
    return cast("dict[str, Any]", found)


def _slowest(calls: Calls, most: int) -> tuple[Call, ...]:
    """Return the slowest call of each of the slowest URLs."""
    query = f"SELECT max_by({_CALL}, delta_t) FROM {{}} GROUP BY url ORDER BY max(delta_t) DESC, url LIMIT ?"
    found = [Call(**row) for (row,) in calls.rows(query.format("calls_with_text"), [most])]
    cutoff = found[-1].delta_t if len(found) == most else -1.0
    ((unknown,),) = calls.rows("SELECT count(*) FROM calls_compact WHERE delta_t > ? AND call_id IS NULL", [cutoff])
    if unknown:
        # What memory keeps of large files is not enough: the first calls were slower than the rest
        found = [Call(**row) for (row,) in calls.rows(query.format("calls"), [most])]
    return tuple(found)


def _quiet(calls: Calls, total: Group) -> tuple[Quiet, ...]:
    """Return the longest times without a new call, if they stand out."""
    if not total.seconds:
        return ()
    least = max(1.0, total.seconds * _QUIET_SHARE, _QUIET_TIMES * total.seconds / total.calls)
    rows = calls.rows(
        """WITH seconds AS (
            SELECT epoch_us(t) // 1000000 AS second, min(t) AS first, max(t) AS last FROM calls_compact GROUP BY 1
        ), gaps AS (
            SELECT last, (epoch_us(lead(first) OVER (ORDER BY second)) - epoch_us(last)) / 1e6 AS gap FROM seconds
        )
        SELECT last, gap FROM gaps WHERE gap >= ? ORDER BY gap DESC, last LIMIT ?""",
        [least, QUIET],
    )
    return tuple(Quiet(start=start, seconds=seconds) for start, seconds in rows)


def _bursts(calls: Calls) -> Bursts:
    peak, peak_calls, median, seconds = calls.rows(
        "WITH seconds AS (SELECT epoch_us(t) // 1000000 AS second, count(*) AS n FROM calls_compact GROUP BY 1), "
        "middle AS (SELECT median(n) AS median FROM seconds) "
        "SELECT make_timestamp(max_by(second, n) * 1000000), max(n), any_value(median), count_if(n >= ? * median) "
        "FROM seconds, middle",
        [_BURST_TIMES],
    )[0]
    return Bursts(peak=peak, peak_calls=peak_calls or 0, median=median or 0.0, seconds=seconds or 0)


def _quarters(calls: Calls, total: Group) -> tuple[Group, ...]:
    """Cut the period in four parts of the same length; none if it has no length."""
    if total.start is None or not total.seconds:
        return ()
    rows = calls.rows(
        f"SELECT least(floor((epoch_us(t) - epoch_us(?::TIMESTAMP)) / ?), 3)::INTEGER, {_FIGURES} "
        "FROM calls_compact GROUP BY 1",
        [total.start, total.seconds * 1e6 / 4],
    )
    found: dict[int, Sequence[Any]] = {number: row for number, *row in rows}
    empty = (0, 0, 0, None, None, None, None)
    return tuple(_group(f"quarter {number + 1}", found.get(number, empty)) for number in range(4))
