"""The demo's scenario, a few hundred calls that end in every way a call can end, and a summary of their rows.

Says which calls are made and what the server does to them, makes them with bounded concurrency, and computes the
summary from the log alone. Knows nothing of terminals: how progress and summary look is the command line's business.
"""

from __future__ import annotations

import asyncio
import csv
import math
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import aiohttp

from otel_connector._call._retry import RetryPolicy
from otel_connector._connector import AsyncConnector
from otel_connector._csv._format import decode_row
from otel_connector._errors import ConnectorError
from otel_connector._record import CallRecord
from otel_connector._redact import Redactor
from otel_connector.testing import (
    FaultServer,
    Step,
    bomb,
    empty,
    redirect,
    reset,
    reset_in_body,
    respond,
    retry_after,
    silent,
    slow_body,
    slow_headers,
    truncated,
)

PROJECTS = ("Prices", "Weather")
DEFAULT_CALLS = 300

_CONCURRENCY = 20  # with 300 calls: some 4 s, long enough to watch and short enough to wait for
_N_TRIES = 3
_TIMEOUT = 0.3  # seconds for one attempt
_RETRY = RetryPolicy(backoff=0.05, backoff_cap=0.2)
_MAX_BODY_BYTES = 2**20
_PATIENCE = 0.1  # seconds after which the caller of a "cancelled" call loses interest
_NEVER = 60.0  # seconds; longer than any of the timeouts


class _Sites(NamedTuple):
    """Where the calls go: a server that misbehaves, one with a certificate nobody trusts, and a closed port."""

    faulty: FaultServer
    untrusted: FaultServer
    closed: FaultServer


class _Target(NamedTuple):
    """What a kind's script may depend on: the path asked for, and seconds a healthy answer takes."""

    path: str
    latency: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """One way for a call to go.

    Attributes:
        name: It in words.
        share: How many of 300 calls go this way; there is always at least one.
        script: What the server does, attempt by attempt; the last step is repeated.
        url: Where the path is asked for.
        recovers: Whether it succeeds after a failed attempt.
        cancelled: Whether the caller gives up before the call ends.
    """

    name: str
    share: int
    script: Callable[[_Target], Sequence[Step | int]]
    url: Callable[[_Sites, str], str] = lambda sites, path: sites.faulty.url(path)
    recovers: bool = False
    cancelled: bool = False


def _healthy(target: _Target) -> list[Step | int]:
    return [slow_headers(target.latency)]


_SUCCESS = _Kind(name="success", share=0, script=_healthy)  # its share is what the others leave

_KINDS = (
    _SUCCESS,
    _Kind(name="503, then success", share=20, script=lambda to: [503, *_healthy(to)], recovers=True),
    _Kind(name="404", share=12, script=lambda _: [404]),
    _Kind(name="timeout before the headers", share=6, script=lambda _: [silent]),
    _Kind(name="redirect", share=16, script=lambda to: [redirect(f"{to.path}?lang=en"), *_healthy(to)]),
    _Kind(name="503 until the tries are used up", share=8, script=lambda _: [503]),
    _Kind(name="Retry-After obeyed", share=6, script=lambda to: [retry_after(1, 429), *_healthy(to)], recovers=True),
    _Kind(name="reset, then success", share=10, script=lambda to: [reset, *_healthy(to)], recovers=True),
    _Kind(name="timeout in the body", share=6, script=lambda _: [slow_body(_NEVER)]),
    _Kind(name="refused", share=6, script=_healthy, url=lambda sites, path: sites.closed.url(path)),
    _Kind(name="reset in the body", share=4, script=lambda _: [reset_in_body()]),
    _Kind(name="truncated body", share=4, script=lambda _: [truncated()]),
    _Kind(name="untrusted certificate", share=4, script=_healthy, url=lambda sites, path: sites.untrusted.url(path)),
    _Kind(
        name="invalid URL",
        share=4,
        script=_healthy,
        url=lambda sites, path: sites.faulty.url(path).replace("://", "//"),
    ),
    _Kind(
        name="not JSON",
        share=6,
        script=lambda _: [respond(body=b"<title>Back soon</title>", content_type="text/html")],
    ),
    _Kind(name="empty body", share=4, script=lambda _: [empty]),
    _Kind(name="body too large", share=4, script=lambda _: [bomb(4 * _MAX_BODY_BYTES)]),
    _Kind(name="cancelled by the caller", share=6, script=lambda _: [silent], cancelled=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    kind: _Kind
    project: str
    path: str
    latency: float


def _plan(count: int) -> list[_Call]:
    """Spread `count` calls of every kind evenly over the run; fewer calls than kinds leave the last kinds out."""
    counts = {kind: max(1, round(kind.share * count / DEFAULT_CALLS)) for kind in _KINDS}
    counts[_SUCCESS] = max(1, count - sum(counts.values()) + counts[_SUCCESS])
    order = sorted(
        ((turn + 0.5) / counts[kind], index, turn) for index, kind in enumerate(_KINDS) for turn in range(counts[kind])
    )
    calls: list[_Call] = []
    for number, (_, index, turn) in enumerate(order[:count], 1):
        which = (index + turn) % len(PROJECTS)
        calls.append(
            _Call(
                kind=_KINDS[index],
                project=PROJECTS[which],
                path=f"/{PROJECTS[which].lower()}/{number}",
                latency=(0.02, 0.05)[which] * (1 + number % 7 / 3),
            )
        )
    return calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one call ended for its caller.

    Attributes:
        kind: What the server was told to do, in words.
        succeeded: Whether the call returned a value.
    """

    kind: str
    succeeded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectSummary:
    """The rows of one project.

    Attributes:
        project: Its name.
        calls: How many rows it has.
        succeeded: How many of them are successes.
        failed: How many are not.
        p50: Median of delta_t in seconds (nearest rank).
        p95: 95th percentile of delta_t in seconds (nearest rank).
    """

    project: str
    calls: int
    succeeded: int
    failed: int
    p50: float
    p95: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeSummary:
    """The rows that ended the same way.

    Attributes:
        outcome: ``success``, ``success, redirected``, or the error's class; an HTTP status stands beside it.
        succeeded: Whether it is a success.
        calls: How many rows ended so.
        example: The message of the first of them; of a redirect where it led; empty if there is nothing to say.
    """

    outcome: str
    succeeded: bool
    calls: int
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What rows say.

    Attributes:
        projects: By name.
        outcomes: Successes first, then the most frequent first.
    """

    projects: tuple[ProjectSummary, ...]
    outcomes: tuple[OutcomeSummary, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the run did, and what its log says about it.

    Attributes:
        started: Calls started, counted by the connector.
        retries: Attempts after the first of a call, counted by the connector.
        rows: Rows of this run, read back from the file.
        summary: Computed from these rows.
        example: The row of a call that succeeded after a failed attempt, or of any; None if there is no row.
    """

    started: int
    retries: int
    rows: int
    summary: Summary
    example: CallRecord | None


class Demo:
    """One run of the scenario.

    Args:
        log: The CSV file; rows are appended.
        calls: How many calls to make, at least 1.

    Raises:
        ImportError: The ``testing`` extra is not installed; the message says how to get it.
        OSError: `log` cannot be opened for appending or is not a regular file.
        ValueError: `log` has another header.
    """

    def __init__(self, log: Path, calls: int = DEFAULT_CALLS) -> None:
        self._sites = _Sites(FaultServer(), FaultServer(tls=True), FaultServer())
        self._calls = _plan(calls)
        self._connector = AsyncConnector(
            log, n_tries=_N_TRIES, timeout=_TIMEOUT, retry=_RETRY, max_body_bytes=_MAX_BODY_BYTES
        )
        self._log = log
        self._size_before = log.stat().st_size

    @property
    def started(self) -> int:
        """Calls started so far."""
        return self._connector.stats().calls_started

    @property
    def rows_written(self) -> int:
        """Rows written so far."""
        return self._connector.stats().rows_written

    async def run(self) -> AsyncGenerator[Result, None]:
        """Make the calls, a few at a time, and yield each one's result when it ends; to be run once.

        Closing the generator, or cancelling the task that reads it, cancels the calls under way: they have their rows.
        """
        async with self._sites.closed:
            pass  # now its port is known, and refuses
        async with self._sites.faulty, self._sites.untrusted, aiohttp.ClientSession() as session, self._connector:
            waiting = iter(self._calls)
            running = self._begin(session, islice(waiting, _CONCURRENCY))
            try:
                while running:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    running |= self._begin(session, islice(waiting, len(done)))
                    for task in done:
                        yield task.result()
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    def report(self) -> Report:
        """Read the rows of this run back from the file and say what they say.

        Raises:
            OSError: The file is gone.
        """
        stats = self._connector.stats()
        sites = tuple(f"//127.0.0.1:{site.port}/" for site in self._sites)
        # Another process may have appended meanwhile: only what was asked of our own servers is ours
        rows = [row for row in read_rows(self._log, self._size_before) if any(site in row.url for site in sites)]
        recovered = {call.kind.url(self._sites, call.path) for call in self._calls if call.kind.recovers}
        return Report(
            started=stats.calls_started,
            retries=stats.retries,
            rows=len(rows),
            summary=summarise(rows),
            example=next((row for row in rows if row.url in recovered), rows[0] if rows else None),
        )

    def _begin(self, session: aiohttp.ClientSession, calls: Iterable[_Call]) -> set[asyncio.Task[Result]]:
        return {asyncio.create_task(self._make(session, call)) for call in calls}

    async def _make(self, session: aiohttp.ClientSession, call: _Call) -> Result:
        self._sites.faulty.script(call.path, call.kind.script(_Target(call.path, call.latency)))
        url = call.kind.url(self._sites, call.path)
        try:
            if call.kind.cancelled:
                get = self._connector.get(session, url, call.project, timeout=_NEVER)
                await asyncio.wait_for(get, _PATIENCE)
            else:
                await self._connector.get(session, url, call.project)
        except (ConnectorError, asyncio.TimeoutError):
            return Result(kind=call.kind.name, succeeded=False)
        return Result(kind=call.kind.name, succeeded=True)


def read_rows(log: Path, start: int = 0) -> Iterator[CallRecord]:
    """Read the rows of a log, from byte number `start` on, which must be the beginning of a line.

    Lines that are no rows are passed over: the header, and what a crash may have left.

    Raises:
        OSError: The file cannot be read.
    """
    with log.open("rb") as file, TextIOWrapper(file, encoding="utf-8", newline="") as text:
        file.seek(start)
        for cells in csv.reader(text):
            with suppress(ValueError):
                yield decode_row(cells)


def summarise(rows: Sequence[CallRecord]) -> Summary:
    """Count the rows by project and by outcome."""
    by_project: dict[str, list[CallRecord]] = {}
    for row in rows:
        by_project.setdefault(row.project, []).append(row)
    counts = Counter(map(_outcome, rows))
    first = {_outcome(row): row for row in reversed(rows)}
    outcomes = [
        OutcomeSummary(outcome=name, succeeded=first[name].success, calls=calls, example=_example(first[name]))
        for name, calls in counts.items()
    ]
    return Summary(
        projects=tuple(_project(project, by_project[project]) for project in sorted(by_project)),
        outcomes=tuple(sorted(outcomes, key=lambda each: (not each.succeeded, -each.calls, each.outcome))),
    )


def _project(project: str, rows: list[CallRecord]) -> ProjectSummary:
    succeeded = sum(row.success for row in rows)
    times = sorted(row.delta_t for row in rows)
    return ProjectSummary(
        project=project,
        calls=len(rows),
        succeeded=succeeded,
        failed=len(rows) - succeeded,
        p50=_percentile(times, 50),
        p95=_percentile(times, 95),
    )


def _percentile(times: list[float], percent: int) -> float:
    return times[math.ceil(len(times) * percent / 100) - 1]


def _outcome(row: CallRecord) -> str:
    if row.success:
        return "success, redirected" if row.redirect_url else "success"
    name = row.error.partition(":")[0]
    return f"{name} {row.response_code}" if name == "HTTPStatusError" else name


def _example(row: CallRecord) -> str:
    if row.success:
        return f"to {row.redirect_url}" if row.redirect_url else ""
    return row.error.partition(": ")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """Where telemetry would go.

    Attributes:
        endpoint: Its address, redacted.
        protocol: The OTLP protocol it was found by; None where the environment names it, or is to.
    """

    endpoint: str
    protocol: str | None = None

    def tell_the_sdk(self, environ: MutableMapping[str, str]) -> None:
        """Say over which protocol, where the SDK would take another by itself."""
        if self.protocol is not None:
            environ.setdefault("OTEL_EXPORTER_OTLP_PROTOCOL", self.protocol)


def find_collector(environ: Mapping[str, str], ports: tuple[int, int] = (4317, 4318)) -> Collector | None:
    """Return the collector that the environment names, else one that listens on this machine, else None.

    Args:
        environ: The environment. That an endpoint is there is all that is looked at: the SDK reads what it means.
        ports: Where OTLP over gRPC and over HTTP are looked for; by default where the specification has them
            (OpenTelemetry Protocol Exporter, "Configuration Options").
    """
    for signal in ("", "TRACES_", "METRICS_"):
        name = f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT"
        if environ.get(name):
            return Collector(endpoint=Redactor().url(environ[name]))
    for port, protocol in zip(ports, ("grpc", "http/protobuf"), strict=True):
        if _listens(port):
            return Collector(endpoint=f"http://localhost:{port}", protocol=protocol)
    return None


def _listens(port: int) -> bool:
    try:
        # On the loopback an answer, yes or no, takes far less than this
        with socket.create_connection(("127.0.0.1", port), timeout=0.25):
            return True
    except OSError:
        return False
