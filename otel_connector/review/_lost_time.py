"""Summarizes the attempts logs beside the logs: which failures cost how much time, and how many attempts calls needed.

An attempts log is optional; without one, there is nothing to say. Its rows have a ``call_id``, so they are joined with
the calls, which have the host. Does not know how figures are shown.

Used by ``review``, ``review._formats``, ``review._points``, ``review._report`` and ``review._summary``.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path

from otel_connector._csv._lines import Limited, format_of, lines, open_log
from otel_connector._csv._parts import COMPRESSED, attempts_file, log_files, log_name
from otel_connector._record import ATTEMPT_COLUMNS, one_line
from otel_connector.review._endpoints import LOCATION, in_steps
from otel_connector.review._filters import quoted
from otel_connector.review._load import Calls
from otel_connector.review._rows import DIALECT, URL_ID

_logger = logging.getLogger("otel_connector")

TIMED_OUT = ("AttemptTimeout", "DeadlineExceeded", "TimeoutError", "timeout")
"""The error classes of calls, and the reasons of attempts, that ended by a limit of time."""

_NUMBERS = ("t", "duration", "queue", "wait", "retry_after")
_INTERVALS = 24  # of the period, for the retries over time


@dataclass(frozen=True, slots=True, kw_only=True)
class LostTime:
    """Time that calls lost to failed attempts of one kind, also of calls that succeeded later.

    Attributes:
        reason: Why the attempts failed, such as ``status_503``, ``timeout`` or ``connection``.
        name: The host and port, or the endpoint, if the attempts are those of one.
        attempts: The number of failed attempts.
        failing: Seconds of these attempts. Of timeouts, this is the time that was waited for a response.
        waiting: Seconds of waits after them: back-off.
        asked: Seconds of the other waits after them, for which the server asked with ``Retry-After``.
        queued: Seconds in a queue after them: for a paused host, a limiter or a connection.
    """

    reason: str
    name: str
    attempts: int
    failing: float
    waiting: float
    asked: float
    queued: float

    @property
    def seconds(self) -> float:
        """All seconds that were lost."""
        return self.failing + self.waiting + self.asked + self.queued


_FIELDS = tuple(each.name for each in fields(LostTime))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tries:
    """Calls that needed the same number of attempts, of those with more than one.

    Attributes:
        attempts: The number of attempts.
        succeeded: The number of calls whose last attempt succeeded.
        failed: The number of the other calls.
    """

    attempts: int
    succeeded: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """Retries in an interval.

    Attributes:
        start: Its start, in UTC.
        retries: The number of attempts after a failed one that started in it.
    """

    start: datetime
    retries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """What the attempts logs say.

    Attributes:
        files: The attempts logs that were read.
        reasons: By reason, the most costly first.
        hosts: By reason and host.
        more_hosts: The number of further ones.
        endpoints: By reason and endpoint.
        more_endpoints: The number of further ones.
        tries: By number of attempts, from two.
        over_time: Of 24 equal intervals of the period.
    """

    files: tuple[str, ...]
    reasons: tuple[LostTime, ...]
    hosts: tuple[LostTime, ...]
    more_hosts: int
    endpoints: tuple[LostTime, ...]
    more_endpoints: int
    tries: tuple[Tries, ...]
    over_time: tuple[Retried, ...]

    @property
    def seconds(self) -> float:
        """Seconds that all calls together lost."""
        return sum(each.seconds for each in self.reasons)


def read_retries(calls: Calls, start: datetime | None, end: datetime | None, top: int) -> Retries | None:
    """Summarize the attempts of the calls; None if no log has an attempts log beside it.

    Args:
        calls: The calls.
        start: The start of the first call.
        end: The start of the last call.
        top: Maximum number of entries of `Retries.hosts`, and of `Retries.endpoints`.
    """
    files = _attempts_logs([file.path for file in calls.files if not file.problem])
    if not files or start is None or end is None:
        return None
    copies = {path: _readable(calls, path, f"attempts-{number}.csv") for path, number in zip(files, count())}
    files, links = [path for path in files if copies[path]], [copy for copy in copies.values() if copy]
    if not links:
        return None
    columns = ", ".join(f"{quoted(name)}: 'VARCHAR'" for name in ATTEMPT_COLUMNS)
    numbers = ", ".join(f"TRY_CAST({name} AS DOUBLE) AS {name}" for name in _NUMBERS)
    joined = f"""
        SELECT attempt.*, epoch_us(calls.t) AS started, url, success, {URL_ID} AS url_id FROM (
            SELECT *, lag(reason) OVER before AS failure, lag(wait) OVER before AS waited FROM (
                SELECT call_id, TRY_CAST(number AS INTEGER) AS number, {numbers}, coalesce(reason, '') AS reason
                FROM read_csv([{", ".join(map(quoted, links))}], columns={{{columns}}}, {DIALECT},
                    ignore_errors=true, null_padding=true)
                WHERE t IS NOT NULL AND number IS NOT NULL)
            WINDOW before AS (PARTITION BY call_id ORDER BY number)
        ) AS attempt JOIN calls USING (call_id)"""
    # From the URL, because the column of `calls` would be computed for every row of a large log
    located = in_steps(joined, *LOCATION, *calls.endpoints.sql)
    kept = f"call_id, number, {', '.join(_NUMBERS)}, reason, failure, waited, started, success, url_id, host, endpoint"
    calls.rows(f"CREATE OR REPLACE TEMP TABLE attempts AS SELECT {kept} FROM ({located})")
    reasons, hosts, endpoints = _lost(calls)
    tries = calls.rows(
        "SELECT most, count_if(success), count_if(NOT success) FROM (SELECT max(number) AS most, any_value(success) AS "
        "success FROM attempts GROUP BY call_id) WHERE most > 1 GROUP BY 1 ORDER BY 1"
    )
    width = max(end - start, timedelta(seconds=1)) // _INTERVALS
    first, microsecond = start - datetime.fromisoformat("1970-01-01"), timedelta(microseconds=1)
    retries = Counter[int]()
    for interval, _, number in retries_over_time(calls, first // microsecond, width // microsecond, _INTERVALS):
        retries[interval] += number
    return Retries(
        files=tuple(files),
        reasons=tuple(reasons),
        hosts=tuple(hosts[:top]),
        more_hosts=len(hosts[top:]),
        endpoints=tuple(endpoints[:top]),
        more_endpoints=len(endpoints[top:]),
        tries=tuple(Tries(attempts=most, succeeded=good, failed=bad) for most, good, bad in tries),
        over_time=tuple(Retried(start=start + width * number, retries=retries[number]) for number in range(_INTERVALS)),
    )


def _lost(calls: Calls) -> list[list[LostTime]]:
    """Return the lost time by reason, by reason and host, and by reason and endpoint, the most costly first."""
    sums = (
        *("sum(duration)", "sum(wait) FILTER (WHERE retry_after IS NULL)"),
        *("sum(wait) FILTER (WHERE retry_after IS NOT NULL)", "sum(queue)"),
    )
    rows = calls.rows(
        "SELECT (host IS NOT NULL)::INT + 2 * (endpoint IS NOT NULL)::INT, reason, coalesce(host, endpoint, ''), "
        f"count(*), {', '.join(f'coalesce(round({each}, 6), 0)' for each in sums)} FROM attempts WHERE reason <> '' "
        "GROUP BY GROUPING SETS ((reason), (reason, host), (reason, endpoint)) "
        "ORDER BY round(sum(duration + coalesce(wait, 0) + queue), 6) DESC, 2, 3"
    )
    found = {by: list[LostTime]() for by in range(3)}
    for by, *row in rows:
        found[by].append(LostTime(**dict(zip(_FIELDS, row, strict=True))))
    return list(found.values())


def retries_over_time(calls: Calls, start: int, width: int, number: int) -> list[tuple[int, str, int]]:
    """Count the attempts after a failed one: by interval, and by the reason of that failure.

    Args:
        calls: The calls, whose attempts have been read.
        start: The start of the first interval, in microseconds since 1970.
        width: Microseconds of an interval.
        number: The number of intervals; what started after the last one counts to it.
    """
    return calls.rows(
        f"SELECT least((t * 1e6 - {start})::BIGINT // {width}, {number - 1})::INT, failure, count(*) "
        "FROM attempts WHERE failure IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2"
    )


def _attempts_logs(logs: Sequence[str]) -> list[str]:
    """Return the attempts logs of some logs, with their parts, compressed or not."""
    named = dict.fromkeys(attempts_file(log_name(log)) for log in logs)
    found = (next((path for path in (name, *_compressed(name)) if Path(path).is_file()), None) for name in named)
    return [path for name in found if name for path in log_files([name])]


def _compressed(name: str) -> list[str]:
    return [f"{name}{suffix}" for suffix in COMPRESSED]


def _readable(calls: Calls, path: str, name: str) -> str | None:
    """Return a link to an attempts log, or an unpacked copy; None if it cannot be read, and log why."""
    try:
        with open_log(path) as (raw, file):
            if file is raw and not path.endswith(COMPRESSED):
                return calls.linked(path, name)
            format_of(file)
            file.seek(0)
            content = lines(Limited(file, calls.max_unpacked_bytes))
            with Path(calls.linked(path, name)).with_suffix(".copy").open("wb") as target:
                target.writelines(line.content + b"\n" for line in content if line.what is None)
            return target.name
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        _logger.warning("the attempts log is left out: %s: %s", one_line(path), why)
        return None
