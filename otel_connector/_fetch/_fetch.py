"""What ``otel-connector fetch`` does, apart from how it looks: a list, its calls, and where they stand.

Knows neither the command line nor the terminal.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp

from otel_connector._connector import AsyncConnector
from otel_connector._errors import HTTPStatusError
from otel_connector._fetch._chunk import ResultsSink

if TYPE_CHECKING:
    from otel_connector._bulk import Outcome, Outcomes, Resumed
    from otel_connector._fetch._results import ResultsFile
    from otel_connector._fetch._url_lists import UrlList

_RECENT = 10.0  # seconds that the present rate is taken of
_SAMPLE = 0.25  # seconds between two looks
_FEW = 5  # calls

CONDITION_NAMES = {
    "calls": "number",
    "succeeded": "number",
    "failed": "number",
    "error_rate": "share",
    "retries": "number",
    "passed_over": "number",
}
"""What ``--fail-if`` may ask for, and what each is."""


class Progress(NamedTuple):
    """Where a fetch stands.

    Attributes:
        done: URLs that are through: fetched, failed, or passed over.
        total: How many there are; None if that is not known.
        succeeded: URLs fetched.
        failed: URLs that failed.
        passed_over: URLs done in an earlier run, or seen before in this one.
        retries: Attempts after the first ones.
        active: Calls under way.
        paused: Hosts that asked for a pause.
        rate: Calls that ended a second, of late.
        remaining: Seconds it will take at this rate; None if that cannot be said.
        seconds: Since the start.
    """

    done: int
    total: int | None
    succeeded: int
    failed: int
    passed_over: int
    retries: int
    active: int
    paused: int
    rate: float
    remaining: float | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """What is fetched, and how.

    Attributes:
        project: The calls' project.
        concurrency: Calls under way at a time.
        resume: Whether to pass over what is done; or further logs to look into.
        dedupe: Whether to pass over URLs that came before in the list.
        options: What every call is given besides.
        results: Where bodies go.
    """

    project: str
    concurrency: int
    resume: bool | Sequence[str] = False
    dedupe: bool = False
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    results: ResultsFile | None = None


class StoppableLimiter:
    """A limiter of attempts that can be told to stop: who waits for his turn then has waited in vain.

    Args:
        limiter: An async context manager, entered for every attempt.
    """

    def __init__(self, limiter: AbstractAsyncContextManager[Any]) -> None:
        self._limiter = limiter
        self._waiting: set[asyncio.Future[Any]] = set()
        self._stopped = False

    def stop(self) -> None:
        """Let nobody through any more."""
        self._stopped = True
        for turn in self._waiting:
            turn.cancel()

    async def __aenter__(self) -> None:
        """Wait for a turn.

        Raises:
            RuntimeError: There will be none.
        """
        turn = asyncio.ensure_future(self._limiter.__aenter__())
        self._waiting.add(turn)
        try:
            await asyncio.wait({turn})
        finally:
            self._waiting.discard(turn)
            turn.cancel()
        if self._stopped:
            raise RuntimeError("stopped before its turn came")
        turn.result()

    async def __aexit__(self, *error: object) -> None:
        """Have nothing to give back: it is the number of attempts that is limited."""


class Fetch:
    """One run over a list of URLs.

    Args:
        connector: Makes the calls.
        urls: The list.
        wanted: What is fetched, and how.
        rate: The connector's limiter, which is told to stop, too.
        clock: Seconds, monotonic.

    Attributes:
        failures: How many calls failed in which way.
        stopped: Whether the run was told to stop before the end of the list.
        begun: Set when the first URL is looked for: what a log had of the list is known then.
    """

    def __init__(
        self,
        connector: AsyncConnector,
        urls: UrlList,
        wanted: FetchOptions,
        *,
        rate: StoppableLimiter | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.failures: Counter[str] = Counter()
        self.stopped = False
        self.begun = asyncio.Event()
        self._connector = connector
        self._urls = urls
        self._wanted = wanted
        self._rate = rate
        self._stop = asyncio.Event()
        self._seen: set[str] = set()
        self._outcomes: Outcomes | None = None
        self._succeeded = self._failed = self._repeated = 0
        self._clock = clock
        self._started = clock()
        self._samples: deque[tuple[float, int]] = deque([(self._started, 0)])

    @property
    def resumed(self) -> Resumed | None:
        """What the log had of the list, once that is known."""
        return None if self._outcomes is None else self._outcomes.resumed

    @property
    def project(self) -> str:
        """What the calls belong to."""
        return self._wanted.project

    @property
    def concurrency(self) -> int:
        """Calls under way at a time, at most."""
        return self._wanted.concurrency

    async def run(self) -> None:
        """Fetch the list.

        Raises:
            OSError: The list cannot be read, or results or rows cannot be written.
            ValueError: The list, or a log to resume from, is another kind of file.
        """
        wanted = self._wanted
        # The pool must not be narrower than what was asked for; per host it is bounded elsewhere
        pool = aiohttp.TCPConnector(limit=wanted.concurrency)
        async with aiohttp.ClientSession(connector=pool) as session:
            outcomes = self._connector.get_many(
                session,
                self._until_stopped(),
                wanted.project,
                max_concurrency=wanted.concurrency,
                resume=wanted.resume,
                sink=None if wanted.results is None else ResultsSink(wanted.results),
                decode=bytes,
                **wanted.options,
            )
            async with self._connector, outcomes:
                self._outcomes = outcomes
                async for outcome in outcomes:
                    self._count(outcome)

    def stop(self) -> None:
        """Begin no further calls; `run` returns when those under way have ended."""
        self.stopped = True
        self._stop.set()
        if self._rate is not None:
            self._rate.stop()

    def progress(self) -> Progress:
        """Return where it stands now."""
        now, ended = self._clock(), self._succeeded + self._failed
        if now - self._samples[-1][0] >= _SAMPLE:
            self._samples.append((now, ended))
        while now - self._samples[0][0] > _RECENT and len(self._samples) > 1:
            self._samples.popleft()
        since, before = self._samples[0]
        if ended - before < _FEW:  # too little to tell how it goes of late
            since, before = self._started, 0
        rate = (ended - before) / (now - since) if now > since else 0.0
        passed_over = self._passed_over()
        done, total = ended + passed_over, self._urls.total
        stats = self._connector.stats()
        return Progress(
            done=done,
            total=total,
            succeeded=self._succeeded,
            failed=self._failed,
            passed_over=passed_over,
            retries=stats.retries,
            active=stats.calls_active,
            paused=len(stats.hosts_paused),
            rate=rate,
            remaining=None if total is None or not rate else (total - done) / rate,
            seconds=now - self._started,
        )

    def rows_missing(self) -> int:
        """Return how many rows are not in the log, because the disk refuses them."""
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
            "passed_over": self._passed_over(),
        }

    def _passed_over(self) -> int:
        return self._repeated + (0 if self._outcomes is None else self._outcomes.passed_over)

    def _count(self, outcome: Outcome) -> None:
        if outcome.error is None:
            self._succeeded += 1
            return
        self._failed += 1
        error = outcome.error
        status = f" {error.status}" if isinstance(error, HTTPStatusError) else ""
        self.failures[f"{type(error).__name__}{status}"] += 1

    async def _until_stopped(self) -> AsyncGenerator[str]:
        """Yield the URLs one by one; end at once when told to, also while the next ones are waited for."""
        self.begun.set()
        async with aclosing(self._urls.batches()) as batches:
            while (batch := await _unless(self._stop, anext(batches, None))) is not None:
                for url in batch:
                    if self._stop.is_set():
                        return
                    if not self._is_repeated(url):
                        yield url

    def _is_repeated(self, url: str) -> bool:
        if not self._wanted.dedupe:
            return False
        repeated = url in self._seen
        self._seen.add(url)
        self._repeated += repeated
        return repeated


async def _unless(stop: asyncio.Event, coming: Awaitable[list[str] | None]) -> list[str] | None:
    """Return what comes; None if it is to stop before it does."""
    wanted, stopping = asyncio.ensure_future(coming), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({wanted, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return None if stop.is_set() else wanted.result()
    finally:
        stopping.cancel()
        if not wanted.done():
            wanted.cancel()
            await asyncio.wait({wanted})
