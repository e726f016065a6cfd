"""Summarizes calls: figures as frozen values, which a terminal, a page, JSON or a condition can use.

Percentiles are exact, as defined in `_percentile`; DuckDB's ``quantile_cont`` has the same definition. DuckDB reads the
rows in any order, so each choice among equal values has a further key. Does not know how figures are shown.

Used by ``review``, ``review._described``, ``review._formats``, ``review._judge``, ``review._report`` and
``review._verdict``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from otel_connector._arguments import checked_instance, checked_int
from otel_connector.review._endpoints import OTHER
from otel_connector.review._load import MANY_ROWS, Calls
from otel_connector.review._lost_time import Retries, read_retries
from otel_connector.review._sources import LogFile

_SLOWEST = 10  # of the slowest calls are listed
_QUIET = 10  # quiet periods are listed
_QUIET_SHARE = 0.01  # of the whole period: the shortest quiet period
_QUIET_GAPS = 20  # times the mean time between two calls: the same
_ALIKE, _UNUSUAL = 3, 3.0  # a gap is unusual if it is three times as long as the fourth longest
_MANY = 100_000  # calls
_BURST = 3.0  # times the median rate of the seconds with calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Durations of calls in seconds, including retries and waits. All are NaN if there are no calls.

    Attributes:
        p50: The median.
        p90: The 90th percentile.
        p95: The 95th percentile.
        p99: The 99th percentile.
        max: The longest duration.
    """

    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Calls that have something in common: a project, a host, an endpoint, or a quarter of the period.

    Attributes:
        name: The project, the host, the endpoint or the quarter; empty for all calls.
        calls: The number of calls.
        failed: The number of calls that did not succeed.
        bytes: The size of all response bodies, in bytes.
        latency: Their durations.
        start: The start of the first call, in UTC; None if there is none.
        end: The start of the last call, in UTC; None if there is none.
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
        """The number of calls that succeeded."""
        return self.calls - self.failed

    @property
    def error_rate(self) -> float:
        """The share of calls that failed, of 1; NaN if there are no calls."""
        return self.failed / self.calls if self.calls else float("nan")

    @property
    def seconds(self) -> float:
        """Seconds from the first start to the last."""
        return (self.end - self.start).total_seconds() if self.start and self.end else 0.0

    @property
    def rate(self) -> float:
        """Calls per second between the first start and the last; NaN if these are equal."""
        return self.calls / self.seconds if self.seconds else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedCall:
    """One call, with the values of its row."""

    call_id: str
    project: str
    t: datetime
    delta_t: float
    url: str
    response_code: int | None
    success: bool
    error: str
    endpoint: str
    error_type: str

    @property
    def trace_id(self) -> str:
        """The id of its trace: 32 hexadecimal digits."""
        return self.call_id.partition("-")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorClass:
    """Failures of one class.

    Attributes:
        name: The class; for `HTTPStatusError` also the status.
        calls: The number of calls.
        share: Their share of all calls, of 1.
        first: The start of the first of them, in UTC.
        last: The start of the last of them, in UTC.
        hosts: The number of hosts that had them.
        host: The host with the most of them.
        endpoints: The number of endpoints that had them.
        endpoint: The endpoint with the most of them; ``other`` only if no other has any.
        example: One of them.
    """

    name: str
    calls: int
    share: float
    first: datetime
    last: datetime
    hosts: int
    host: str
    endpoints: int
    endpoint: str
    example: ListedCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """A period in which no call started.

    Attributes:
        start: The start of the last call before it, in UTC.
        seconds: Its length.
    """

    start: datetime
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bursts:
    """Seconds with many calls.

    Attributes:
        peak: The busiest second, in UTC; None if there are no calls.
        peak_calls: The number of calls that started in it.
        median: The median number of calls of the seconds with any.
        seconds: The number of seconds with at least three times the median.
    """

    peak: datetime | None
    peak_calls: int
    median: float
    seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of some logs.

    Attributes:
        files: What was found in each file.
        total: All calls.
        projects: By project, those with the most calls.
        more_projects: The number of further projects.
        hosts: By host and port, those with the most calls.
        more_hosts: The number of further hosts.
        endpoints: By endpoint (host and path, with ``{id}`` for its values), those with the most calls.
        more_endpoints: The number of further endpoints.
        errors: By error class, those with the most calls.
        more_errors: The number of further classes.
        slowest: The slowest calls, one for each URL.
        quiet: The longest quiet periods.
        bursts: The busiest seconds.
        quarters: The four quarters of the period.
        retries: Lost time and retries, from the attempts logs; None if there are none.
    """

    files: tuple[LogFile, ...]
    total: Group
    projects: tuple[Group, ...]
    more_projects: int
    hosts: tuple[Group, ...]
    more_hosts: int
    endpoints: tuple[Group, ...]
    more_endpoints: int
    errors: tuple[ErrorClass, ...]
    more_errors: int
    slowest: tuple[ListedCall, ...]
    quiet: tuple[Quiet, ...]
    bursts: Bursts
    quarters: tuple[Group, ...]
    retries: Retries | None

    @property
    def damaged(self) -> int:
        """The number of lines, of all files, that are not rows."""
        return sum(file.damaged for file in self.files)


_FIGURES = """count(*), count(*) FILTER (WHERE NOT success), coalesce(sum(response_size), 0),
    quantile_cont(delta_t, [0.5, 0.9, 0.95, 0.99]), max(delta_t), min(t), max(t)"""

_CALL = "struct_pack({})".format(", ".join(f"{field.name} := {field.name}" for field in fields(ListedCall)))


def summarize(calls: Calls, *, top: int = 20) -> Summary:
    """Summarize calls.

    Args:
        calls: The result of `load`.
        top: Maximum number of projects, hosts, endpoints and error classes; those with the most calls are listed.

    Raises:
        TypeError: An argument has the wrong type; the message names it.
        ValueError: `top` is negative.
    """
    checked_instance("calls", calls, Calls)
    checked_int("top", top, least=0)
    total, quarters = _total_and_quarters(calls)
    projects, more_projects = _groups(calls, "project", top, total)
    hosts, more_hosts = _groups(calls, "host", top, total)
    endpoints, more_endpoints = _groups(calls, "endpoint", top, total)
    errors = _errors(calls, total.calls)
    return Summary(
        files=calls.files,
        total=total,
        projects=projects,
        more_projects=more_projects,
        hosts=hosts,
        more_hosts=more_hosts,
        endpoints=endpoints,
        more_endpoints=more_endpoints,
        errors=errors[:top],
        more_errors=len(errors[top:]),
        slowest=_slowest(calls),
        quiet=_quiet(calls, total),
        bursts=_bursts(calls),
        quarters=quarters,
        retries=read_retries(calls, total.start, total.end, top),
    )


def _group(name: str, row: Sequence[Any]) -> Group:
    """Create a group from a row of `_FIGURES`. Without calls, some of them are NULL."""
    count, failed, size, percentiles, longest, start, end = row
    nan = float("nan")
    p50, p90, p95, p99 = percentiles or [nan] * 4
    latency = Latency(p50=p50, p90=p90, p95=p95, p99=p99, max=nan if longest is None else longest)
    return Group(name=name, calls=count, failed=failed, bytes=size, latency=latency, start=start, end=end)


def _groups(calls: Calls, column: str, top: int, total: Group) -> tuple[tuple[Group, ...], int]:
    """Return the groups with the most calls, and the number of the others."""
    left, condition, names = 0, "", list[Any]()
    if total.calls > _MANY:  # the percentiles of all groups could need too much memory
        counts = calls.rows(f"SELECT {column}, count(*) FROM calls_compact GROUP BY 1 ORDER BY 2 DESC, 1")
        if left := len(counts[top:]):
            condition, names = f"WHERE {column} IN (SELECT unnest(?))", [[name for name, _ in counts[:top]]]
    rows = calls.rows(
        f"SELECT {column}, {_FIGURES} FROM calls_compact {condition} GROUP BY 1 ORDER BY 2 DESC, 1", names
    )
    return tuple(_group(name, row) for name, *row in rows[:top]), left + len(rows[top:])


def _errors(calls: Calls, total: int) -> tuple[ErrorClass, ...]:
    counts = calls.rows(
        "WITH groups AS (SELECT error_type, host, endpoint, count(*) AS n, min(t) AS first, max(t) AS last "
        "FROM calls_compact WHERE NOT success GROUP BY ALL) SELECT error_type, sum(n)::BIGINT, min(first), max(last), "
        "count(DISTINCT host), max_by(host, (of_host, host)), "
        f"count(DISTINCT endpoint), max_by(endpoint, (endpoint <> '{OTHER}', of_endpoint, endpoint)) FROM (SELECT *, "
        "sum(n) OVER (PARTITION BY error_type, host) AS of_host, "
        "sum(n) OVER (PARTITION BY error_type, endpoint) AS of_endpoint FROM groups) GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    query = f"SELECT error_type, max_by({_CALL}, (t, call_id)) FROM {{}} WHERE NOT success {{}} GROUP BY 1"
    examples = dict[str, dict[str, Any]](calls.rows(query.format("calls_with_text", "")))
    for name in {name for name, *_ in counts} - examples.keys():  # no texts of these classes are in memory
        examples.update(calls.rows(query.format("calls", "AND error_type = ?"), [name]))
    return tuple(
        ErrorClass(
            name=name,
            calls=count,
            share=count / total,
            first=first,
            last=last,
            hosts=hosts,
            host=host,
            endpoints=endpoints,
            endpoint=endpoint,
            example=ListedCall(**examples[name]),
        )
        for name, count, first, last, hosts, host, endpoints, endpoint in counts
    )


def _slowest(calls: Calls) -> tuple[ListedCall, ...]:
    """Return the slowest call of each of the slowest URLs."""
    query = f"SELECT max_by({_CALL}, (delta_t, t, call_id)) FROM {{}} GROUP BY url "
    query += f"ORDER BY max(delta_t) DESC, url LIMIT {_SLOWEST}"
    found = [ListedCall(**row) for (row,) in calls.rows(query.format("calls_with_text"))]
    cutoff = found[-1].delta_t if len(found) == _SLOWEST else -1.0
    ((unknown,),) = calls.rows("SELECT count(*) FROM calls_compact WHERE delta_t > ? AND call_id IS NULL", [cutoff])
    if unknown:
        # The texts in memory are not sufficient: the first calls of a large log were slower than the rest
        found = [ListedCall(**row) for (row,) in calls.rows(query.format("calls"))]
    return tuple(found)


def _quiet(calls: Calls, total: Group) -> tuple[Quiet, ...]:
    """Return the longest periods without a new call, if they are unusually long, also for this log."""
    if not total.seconds:
        return ()
    shortest = max(1.0, total.seconds * _QUIET_SHARE, _QUIET_GAPS * total.seconds / total.calls)
    rows = calls.rows(
        """WITH seconds AS (
            SELECT epoch_us(t) // 1000000 AS second, min(t) AS first, max(t) AS last FROM calls_compact GROUP BY 1
        ), gaps AS (
            SELECT last, (epoch_us(lead(first) OVER (ORDER BY second)) - epoch_us(last)) / 1e6 AS gap FROM seconds
        )
        SELECT last, gap FROM gaps WHERE gap IS NOT NULL ORDER BY gap DESC, last LIMIT ?""",
        [_QUIET],
    )
    # A job that calls every hour has as many gaps as hours, and none of them is unusual
    usual = rows[_ALIKE][1] * _UNUSUAL if len(rows) > _ALIKE else 0.0
    return tuple(Quiet(start=start, seconds=seconds) for start, seconds in rows if seconds >= max(shortest, usual))


def _bursts(calls: Calls) -> Bursts:
    peak, peak_calls, median, seconds = calls.rows(
        "WITH seconds AS (SELECT epoch_us(t) // 1000000 AS second, count(*) AS n FROM calls_compact GROUP BY 1), "
        "middle AS (SELECT median(n) AS median FROM seconds) "
        "SELECT make_timestamp(max_by(second, (n, -second)) * 1000000), max(n), any_value(median), "
        "count_if(n >= ? * median) FROM seconds, middle",
        [_BURST],
    )[0]
    return Bursts(peak=peak, peak_calls=peak_calls or 0, median=median or 0.0, seconds=seconds or 0)


def _total_and_quarters(calls: Calls) -> tuple[Group, tuple[Group, ...]]:
    """Return all calls, and the four parts of equal length of their period; there are none if it has no length."""
    ((number, start, length),) = calls.rows(
        "SELECT count(*), epoch_us(min(t)), epoch_us(max(t)) - epoch_us(min(t)) FROM calls_compact"
    )
    quarter = f"least((epoch_us(t) - {start}) * 4 // {length}, 3)" if length else "NULL"
    if number < MANY_ROWS:  # in one statement, because DuckDB takes the percentiles of each set in one thread
        sets = "GROUP BY GROUPING SETS ((), (quarter)) ORDER BY grouping(quarter) DESC"
        rows = calls.rows(f"SELECT {quarter} AS quarter, {_FIGURES} FROM calls_compact {sets}")
    else:
        rows = calls.rows(f"SELECT NULL, {_FIGURES} FROM calls_compact")
        rows += calls.rows(f"SELECT {quarter}, {_FIGURES} FROM calls_compact GROUP BY 1")
    (_, *total), *found = rows
    if not length:
        return _group("", total), ()
    by_quarter: dict[int, Sequence[Any]] = {number: row for number, *row in found}
    empty = (0, 0, 0, None, None, None, None)
    quarters = (_group(f"quarter {number + 1}", by_quarter.get(number, empty)) for number in range(4))
    return _group("", total), tuple(quarters)
