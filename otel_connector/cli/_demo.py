"""The scenario of the demo: a few hundred calls with every kind of outcome, and a summary of their rows.

Plans the calls and what the server does to each, makes them with bounded concurrency, and computes the summary from the
log alone. Does not know the terminal.

Used by ``cli._demo_command``.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import aiohttp

import otel_connector.testing as faults
from otel_connector._call._retry import RetryPolicy
from otel_connector._connector import AsyncConnector
from otel_connector._connector_stats import ConnectorStats
from otel_connector._csv._lines import lines, read_line
from otel_connector._errors import ConnectorError
from otel_connector._percentile import percentile
from otel_connector._record import CallRecord

PROJECTS = ("Prices", "Weather")
DEFAULT_CALLS = 300

_CONCURRENCY = 20  # 300 calls take about 4 s: long enough to watch, short enough to wait for
_N_TRIES = 3
_TIMEOUT = 0.3  # seconds for one attempt
_RETRY = RetryPolicy(backoff=0.05, backoff_cap=0.2)
_MAX_BODY_BYTES = 2**20
_CANCEL_AFTER = 0.1  # seconds until the caller of a "cancelled" call cancels it
_NEVER = 60.0  # seconds; longer than all timeouts


class _Servers(NamedTuple):
    """The servers: a faulty one, one with an untrusted certificate, and one that has stopped (its port refuses)."""

    faulty: faults.FaultServer
    untrusted: faults.FaultServer
    closed: faults.FaultServer


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCall:
    """One call of the scenario.

    Attributes:
        kind: What happens to it.
        project: Its project.
        path: The path of its URL.
        latency: Seconds until a healthy response.
    """

    kind: OutcomeKind
    project: str
    path: str
    latency: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeKind:
    """One way in which a call can end.

    Attributes:
        name: A description.
        share: How many of 300 calls end this way; at least one call does.
        script: What the server does, attempt by attempt; the last step is repeated.
        server: The name of the server in `_Servers`.
        valid_url: Whether the URL can be requested.
        recovers: Whether the call succeeds after a failed attempt.
        cancelled: Whether the caller cancels the call.
    """

    name: str
    share: int
    script: Callable[[PlannedCall], Sequence[faults.Step | int]]
    server: str = "faulty"
    valid_url: bool = True
    recovers: bool = False
    cancelled: bool = False

    def url(self, servers: _Servers, path: str) -> str:
        """Return the URL of a path."""
        url: str = getattr(servers, self.server).url(path)
        return url if self.valid_url else url.replace("://", "//")


def _ok(call: PlannedCall) -> list[faults.Step | int]:
    return [faults.slow_headers(call.latency)]


_HTML = faults.respond(body=b"<title>Back soon</title>", content_type="text/html")
_SUCCESS = OutcomeKind(name="success", share=0, script=_ok)  # all calls that no other kind takes

_KINDS = (
    _SUCCESS,
    OutcomeKind(name="503, then success", share=20, script=lambda call: [503, *_ok(call)], recovers=True),
    OutcomeKind(name="404", share=12, script=lambda _: [404]),
    OutcomeKind(name="timeout before the headers", share=6, script=lambda _: [faults.silent]),
    OutcomeKind(name="redirect", share=16, script=lambda call: [faults.redirect(f"{call.path}?lang=en"), *_ok(call)]),
    OutcomeKind(name="503 until no attempts are left", share=8, script=lambda _: [503]),
    OutcomeKind(name="429 once", share=6, script=lambda call: [faults.retry_after(1, 429), *_ok(call)], recovers=True),
    OutcomeKind(name="reset, then success", share=10, script=lambda call: [faults.reset, *_ok(call)], recovers=True),
    OutcomeKind(name="timeout in the body", share=6, script=lambda _: [faults.slow_body(_NEVER)]),
    OutcomeKind(name="refused", share=6, script=_ok, server="closed"),
    OutcomeKind(name="reset in the body", share=4, script=lambda _: [faults.reset_in_body()]),
    OutcomeKind(name="truncated body", share=4, script=lambda _: [faults.truncated()]),
    OutcomeKind(name="untrusted certificate", share=4, script=_ok, server="untrusted"),
    OutcomeKind(name="invalid URL", share=4, script=_ok, valid_url=False),
    OutcomeKind(name="not JSON", share=6, script=lambda _: [_HTML]),
    OutcomeKind(name="empty body", share=4, script=lambda _: [faults.empty]),
    OutcomeKind(name="body too large", share=4, script=lambda _: [faults.bomb(4 * _MAX_BODY_BYTES)]),
    OutcomeKind(name="cancelled by the caller", share=6, script=lambda _: [faults.silent], cancelled=True),
)


def _plan(count: int) -> list[PlannedCall]:
    """Plan `count` calls, each kind evenly spread over the run. Fewer calls than kinds leave out the last kinds."""
    counts = {kind: max(1, round(kind.share * count / DEFAULT_CALLS)) for kind in _KINDS}
    counts[_SUCCESS] = max(1, count - sum(counts.values()) + counts[_SUCCESS])
    order = sorted(
        ((turn + 0.5) / counts[kind], index, turn) for index, kind in enumerate(_KINDS) for turn in range(counts[kind])
    )
    calls: list[PlannedCall] = []
    for number, (_, index, turn) in enumerate(order[:count], 1):
        which = (index + turn) % len(PROJECTS)
        path, latency = f"/{PROJECTS[which].lower()}/{number}", (0.02, 0.05)[which] * (1 + number % 7 / 3)
        calls.append(PlannedCall(kind=_KINDS[index], project=PROJECTS[which], path=path, latency=latency))
    return calls


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """The result of one call.

    Attributes:
        kind: The name of its `OutcomeKind`.
        succeeded: Whether the call returned a value.
    """

    kind: str
    succeeded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectSummary:
    """Figures of the rows of one project.

    Attributes:
        project: The name of the project.
        calls: Number of rows.
        succeeded: Number of successful calls.
        p50: Median of delta_t in seconds.
        p95: 95th percentile of delta_t in seconds.
    """

    project: str
    calls: int
    succeeded: int
    p50: float
    p95: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeSummary:
    """The rows with the same outcome.

    Attributes:
        outcome: ``success``, ``success, redirected``, or the class of the error, with the status of an HTTP error.
        succeeded: Whether the outcome is a success.
        calls: Number of rows.
        example: The message of the first of the rows; the target of a redirect; else empty.
    """

    outcome: str
    succeeded: bool
    calls: int
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSummary:
    """A summary of rows.

    Attributes:
        projects: The projects, sorted by name.
        outcomes: The outcomes: successes first, then the most frequent first.
    """

    projects: tuple[ProjectSummary, ...]
    outcomes: tuple[OutcomeSummary, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """What the run did, and what its log contains.

    Attributes:
        started: Calls started, counted by the connector.
        retries: Attempts after the first of a call, counted by the connector.
        rows: Rows of this run, read back from the file.
        summary: The summary of these rows.
        example: The row of a call that succeeded after a failed attempt, or of any call; None if there is no row.
    """

    started: int
    retries: int
    rows: int
    summary: DemoSummary
    example: CallRecord | None


class Demo:
    """One run of the scenario.

    Args:
        log: The CSV file; rows are appended.
        calls: How many calls to make, at least 1.

    Raises:
        ImportError: The ``testing`` extra is not installed; the message says how to install it.
        OSError: `log` cannot be opened for appending or is not a regular file.
        ValueError: `log` has another header.
    """

    def __init__(self, log: Path, calls: int = DEFAULT_CALLS) -> None:
        self._servers = _Servers(faults.FaultServer(), faults.FaultServer(tls=True), faults.FaultServer())
        self._calls = _plan(calls)
        self._connector = AsyncConnector(
            log, n_tries=_N_TRIES, timeout=_TIMEOUT, retry=_RETRY, max_body_bytes=_MAX_BODY_BYTES, attempts=True
        )
        self._log = log
        self._size_before = log.stat().st_size

    def stats(self) -> ConnectorStats:
        """Return the present counts of calls and rows."""
        return self._connector.stats()

    async def run(self) -> AsyncGenerator[DemoResult, None]:
        """Make the calls, some at a time, and yield the result of each when it ends. Can be used once.

        If the generator is closed, or its task is cancelled, the calls in flight are cancelled and write their rows.
        """
        async with self._servers.closed:
            pass  # from now on its port is known and refuses connections
        async with self._servers.faulty, self._servers.untrusted, aiohttp.ClientSession() as session, self._connector:
            limit = asyncio.Semaphore(_CONCURRENCY)
            tasks = [asyncio.create_task(self._make(session, call, limit)) for call in self._calls]
            try:
                for next_result in asyncio.as_completed(tasks):
                    yield await next_result
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def report(self) -> DemoReport:
        """Read the rows of this run from the file and summarise them.

        Raises:
            OSError: The file cannot be read.
        """
        stats = self.stats()
        servers = tuple(f"//127.0.0.1:{server.port}/" for server in self._servers)
        # Other processes may append rows at the same time. The rows of this run are those of its servers
        rows = [row for row in read_rows(self._log, self._size_before) if any(each in row.url for each in servers)]
        recovered = {call.kind.url(self._servers, call.path) for call in self._calls if call.kind.recovers}
        return DemoReport(
            started=stats.calls_started,
            retries=stats.retries,
            rows=len(rows),
            summary=summarise(rows),
            example=next((row for row in rows if row.url in recovered), rows[0] if rows else None),
        )

    async def _make(self, session: aiohttp.ClientSession, call: PlannedCall, limit: asyncio.Semaphore) -> DemoResult:
        async with limit:
            self._servers.faulty.script(call.path, call.kind.script(call))
            url = call.kind.url(self._servers, call.path)
            try:
                if call.kind.cancelled:
                    get = self._connector.get(session, url, call.project, timeout=_NEVER)
                    await asyncio.wait_for(get, _CANCEL_AFTER)
                else:
                    await self._connector.get(session, url, call.project)
            except (ConnectorError, asyncio.TimeoutError):
                return DemoResult(kind=call.kind.name, succeeded=False)
            return DemoResult(kind=call.kind.name, succeeded=True)


def read_rows(log: Path, start: int = 0) -> Iterator[CallRecord]:
    """Yield the rows of a log, from the byte offset `start`, which must be the start of a line.

    Lines that are not rows are skipped: the header, and lines that were damaged in a crash.

    Raises:
        OSError: The file cannot be read.
    """
    with log.open("rb") as file:
        file.seek(start)
        for line in lines(file):
            if line.what is None:
                with suppress(ValueError):
                    yield read_line(line.content)[1]


def summarise(rows: Sequence[CallRecord]) -> DemoSummary:
    """Count the rows by project and by outcome."""
    by_project, by_outcome = defaultdict[str, list[CallRecord]](list), defaultdict[str, list[CallRecord]](list)
    for row in rows:
        by_project[row.project].append(row)
        by_outcome[_outcome(row)].append(row)
    outcomes = [
        OutcomeSummary(outcome=name, succeeded=each[0].success, calls=len(each), example=_example(each[0]))
        for name, each in by_outcome.items()
    ]
    return DemoSummary(
        projects=tuple(_project(project, by_project[project]) for project in sorted(by_project)),
        outcomes=tuple(sorted(outcomes, key=lambda each: (not each.succeeded, -each.calls, each.outcome))),
    )


def _project(project: str, rows: list[CallRecord]) -> ProjectSummary:
    times = sorted(row.delta_t for row in rows)
    return ProjectSummary(
        project=project,
        calls=len(rows),
        succeeded=sum(row.success for row in rows),
        p50=percentile(times, 0.5),
        p95=percentile(times, 0.95),
    )


def _outcome(row: CallRecord) -> str:
    if row.success:
        return "success, redirected" if row.redirect_url else "success"
    name = row.error.partition(":")[0]
    return f"{name} {row.response_code}" if name == "HTTPStatusError" else name


def _example(row: CallRecord) -> str:
    if row.success:
        return f"to {row.redirect_url}" if row.redirect_url else ""
    return row.error.partition(": ")[2]
