"""One run of ``otel-connector fetch``: the calls for a list of URLs, their counts, and the progress.

Does not know the command line and the terminal.

Used by ``cli._fetch_command``, ``cli._fetch_options`` and ``cli._fetch_view``.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import aiohttp

from otel_connector._bulk import STOPPED
from otel_connector._call._transport import resolve_url
from otel_connector._call._urls import NotOneURL, listed_url
from otel_connector._connector import AsyncConnector
from otel_connector._distinct_urls import DistinctUrls
from otel_connector._errors import HTTPStatusError
from otel_connector._fetch._cookies import cookie_jar
from otel_connector._fetch._results import ResultsSink
from otel_connector._redact import DEFAULT_REDACTED_PARAMS, Redactor

if TYPE_CHECKING:
    from otel_connector._bulk import Outcome, Outcomes, Resumed
    from otel_connector._fetch._results import ResultsFile
    from otel_connector._fetch._url_lists import UrlList

_T = TypeVar("_T")

_RATE_WINDOW = 10.0  # seconds over which the current rate is computed
_SAMPLE_INTERVAL = 0.25  # seconds between two samples of the number of completed calls
_MIN_CALLS_FOR_RATE = 5  # with fewer calls in the window, the rate of the whole run is used

CONDITION_NAMES = {
    "calls": "number",
    "succeeded": "number",
    "failed": "number",
    "error_rate": "share",
    "retries": "number",
    "skipped": "number",
}
"""The names that ``--fail-if`` accepts, and the kind of each value."""


class Progress(NamedTuple):
    """The numbers of a run at one moment.

    Attributes:
        done: URLs that were fetched, failed, or were skipped.
        total: The number of URLs in the list; None if it is not known.
        succeeded: URLs that were fetched.
        failed: URLs that failed.
        skipped: URLs that were skipped: fetched in an earlier run, or a duplicate in this list.
        retries: Attempts after the first attempt of a call.
        active: Calls in flight.
        paused: Hosts that are paused because a response requested it.
        rate: Completed calls per second, recently.
        remaining: Seconds until the end at this rate; None if it is not known.
        seconds: Since the start.
    """

    done: int
    total: int | None
    succeeded: int
    failed: int
    skipped: int
    retries: int
    active: int
    paused: int
    rate: float
    remaining: float | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """The options of a run.

    Attributes:
        project: The ``project_name`` of the calls.
        concurrency: Maximum number of calls in flight.
        resume: Whether to skip URLs that the log has a success of; or the paths of further logs to search as well.
        dedupe: Whether to skip URLs that occurred earlier in the list.
        call_options: Parameters of `AsyncConnector.get_many` for every call.
        results: The file for the bodies; None stores no bodies.
        keep_cookies: Whether each host gets the cookies that it has set in earlier calls.
    """

    project: str
    concurrency: int
    resume: bool | Sequence[str] = False
    dedupe: bool = False
    call_options: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    results: ResultsFile | None = None
    keep_cookies: bool = False


class StoppableLimiter:
    """A limiter of attempts that can be stopped: calls that wait for it are then cancelled.

    Args:
        limiter: An async context manager, entered for every attempt.
    """

    def __init__(self, limiter: AbstractAsyncContextManager[Any]) -> None:
        self._limiter = limiter
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Let no further attempt through."""
        self._stop.set()

    async def __aenter__(self) -> None:
        """Wait until the limiter admits an attempt.

        Raises:
            asyncio.CancelledError: The limiter was stopped: the call is cancelled, and the others go on.
        """
        await _result_unless_stopped(self._limiter.__aenter__(), self._stop)
        if self._stop.is_set():
            raise asyncio.CancelledError(STOPPED)

    async def __aexit__(self, *error: object) -> None:
        """Do nothing: the limiter limits the rate of attempts, not their number at a time."""


class Fetch:
    """One run over a list of URLs.

    Args:
        connector: Makes the calls.
        urls: The list.
        options: The options of the run.
        limiter: The connector's rate limiter; `stop` stops it as well.
        redact_params: Names of the parameters that the connector redacts.
        clock: A monotonic clock, in seconds.

    Attributes:
        options: The options of the run.
        failures: The number of failed calls by error class and status.
        stopped: Whether `stop` was called.
        begun: Set when the first URL is read. `resumed` is known then.
        not_urls: The number of lines that were not requested, because each is more than one URL.
        first_not_url: Why the first of them was not requested; empty without any.
    """

    def __init__(
        self,
        connector: AsyncConnector,
        urls: UrlList,
        options: FetchOptions,
        *,
        limiter: StoppableLimiter | None = None,
        redact_params: Collection[str] = DEFAULT_REDACTED_PARAMS,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.options = options
        self.failures: Counter[str] = Counter()
        self.stopped = False
        self.begun = asyncio.Event()
        self.not_urls, self.first_not_url = 0, ""
        self._connector = connector
        self._urls = urls
        self._limiter = limiter
        self._redact_params = redact_params
        self._stop = asyncio.Event()
        self._seen: set[str] = set()
        self._outcomes: Outcomes | None = None
        self._succeeded = self._failed = self._repeated = 0
        self._clock = clock
        self._started = clock()
        self._samples: deque[tuple[float, int]] = deque([(self._started, 0)])

    @property
    def resumed(self) -> Resumed | None:
        """What the logs contained of the list; None before `begun`, or without ``resume``."""
        return None if self._outcomes is None else self._outcomes.resumed

    @property
    def list_problem(self) -> str | None:
        """Why not every URL of the list was yielded, if the list was read to its end; None if every one was."""
        return self._urls.problem

    async def run(self) -> None:
        """Fetch the list.

        Raises:
            OSError: The list cannot be read, or results or rows cannot be written.
            ValueError: The list, or a log to resume from, is a file of another kind.
            SameRedactedForm: Two different URLs of the list have the same redacted form. This is found before the
                first call, except in a pipe.
        """
        options = self.options
        # The default limit of 100 connections could be below `concurrency`. The connector limits each host
        pool = aiohttp.TCPConnector(limit=options.concurrency)
        jar = cookie_jar(keep=options.keep_cookies)
        async with aiohttp.ClientSession(connector=pool, cookie_jar=jar) as session:
            distinct = DistinctUrls(Redactor(self._redact_params), partial(resolve_url, session, params=None))
            await asyncio.to_thread(self._check_list, distinct)
            outcomes = self._connector.get_many(
                session,
                self._until_stopped(distinct),
                options.project,
                max_concurrency=options.concurrency,
                resume=options.resume,
                sink=None if options.results is None else ResultsSink(options.results, self._redact_params),
                decode=bytes,
                **options.call_options,
            )
            async with self._connector, outcomes:
                self._outcomes = outcomes
                async for outcome in outcomes:
                    self._count(outcome)

    def stop(self) -> None:
        """Start no further calls. `run` returns when the calls in flight have ended."""
        self.stopped = True
        self._stop.set()
        if self._limiter is not None:
            self._limiter.stop()

    def progress(self) -> Progress:
        """Return the current numbers. Call this regularly: it also samples the counts for the rate."""
        now, ended = self._clock(), self._succeeded + self._failed
        if now - self._samples[-1][0] >= _SAMPLE_INTERVAL:
            self._samples.append((now, ended))
        while now - self._samples[0][0] > _RATE_WINDOW and len(self._samples) > 1:
            self._samples.popleft()
        since, before = self._samples[0]
        if ended - before < _MIN_CALLS_FOR_RATE:
            since, before = self._started, 0
        rate = (ended - before) / (now - since) if now > since else 0.0
        done, total = ended + self._skipped, self._urls.total
        stats = self._connector.stats()
        return Progress(
            done=done,
            total=total,
            succeeded=self._succeeded,
            failed=self._failed,
            skipped=self._skipped,
            retries=stats.retries,
            active=stats.calls_active,
            paused=len(stats.hosts_paused),
            rate=rate,
            remaining=None if total is None or not rate else (total - done) / rate,
            seconds=now - self._started,
        )

    def rows_missing(self) -> int:
        """Return how many rows are not in the log, because they could not be written."""
        stats = self._connector.stats()
        return stats.rows_waiting + stats.rows_lost

    def figures(self) -> dict[str, float]:
        """Return the values of `CONDITION_NAMES`."""
        calls = self._succeeded + self._failed
        return {
            "calls": calls,
            "succeeded": self._succeeded,
            "failed": self._failed,
            "error_rate": self._failed / calls if calls else float("nan"),
            "retries": self._connector.stats().retries,
            "skipped": self._skipped,
        }

    @property
    def _skipped(self) -> int:
        return self._repeated + (0 if self._outcomes is None else self._outcomes.skipped)

    def _count(self, outcome: Outcome) -> None:
        if outcome.error is None:
            self._succeeded += 1
            return
        self._failed += 1
        error = outcome.error
        status = f" {error.status}" if isinstance(error, HTTPStatusError) else ""
        self.failures[f"{type(error).__name__}{status}"] += 1

    def _check_list(self, distinct: DistinctUrls) -> None:
        """Check the URLs that can be read in advance."""
        for batch in self._urls.in_advance():
            if self.stopped:
                return
            for url in batch:
                distinct.check(listed_url(url))

    async def _until_stopped(self, distinct: DistinctUrls) -> AsyncGenerator[str]:
        """Yield the URLs one by one. End when `stop` is called, also while waiting for the next batch."""
        self.begun.set()
        async with aclosing(self._urls.batches()) as batches:
            while (batch := await _result_unless_stopped(anext(batches, None), self._stop)) is not None:
                for url in batch:
                    if self._stop.is_set():
                        return
                    if isinstance(url, NotOneURL):
                        self.not_urls, self.first_not_url = self.not_urls + 1, self.first_not_url or url.why
                    listed = listed_url(url)
                    distinct.check(listed)
                    if not self._is_repeated(listed, distinct):
                        yield listed

    def _is_repeated(self, url: str, distinct: DistinctUrls) -> bool:
        if not self.options.dedupe:
            return False
        identity = distinct.identity(url) or url
        repeated = identity in self._seen
        self._seen.add(identity)
        self._repeated += repeated
        return repeated


async def _result_unless_stopped(awaitable: Awaitable[_T], stop: asyncio.Event) -> _T | None:
    """Return the result of `awaitable`; None if `stop` is set first."""
    result, stopping = asyncio.ensure_future(awaitable), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({result, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return None if stop.is_set() else result.result()
    finally:
        stopping.cancel()
        if not result.done():
            result.cancel()
            await asyncio.wait({result})
