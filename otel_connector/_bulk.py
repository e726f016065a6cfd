"""Requests many URLs: workers take them one by one, and outcomes are yielded as they arrive.

The function that requests a URL is passed in. At most as many URLs and outcomes are kept as may be in progress, never
the whole list. This file does not know the connector, files or progress bars.

Used by ``__init__``, ``_connector``, ``_fetch._fetch``, ``_fetch._results`` and ``cli._fetch_view``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Self
    from yarl import URL

    from otel_connector._record import CallRecord

_END = object()

_YIELD_EVERY = 256  # skipped URLs, after which other tasks run


class Outcome(NamedTuple):
    """The result of one URL.

    Attributes:
        url: As it was given.
        value: The decoded body; None if the call failed.
        error: Why the call failed; None if it did not.
        record: The call's ten fields, as in its row.
    """

    url: str | URL
    value: Any
    error: Exception | None
    record: CallRecord


class Resumed(NamedTuple):
    """What `resume` found in the logs.

    Attributes:
        is_done: Whether a URL is to be skipped.
        rows: Number of rows in the logs.
        of_project: Number of these that belong to the project.
        done: Number of URLs of the project that have a success.
    """

    is_done: Callable[[str | URL], bool]
    rows: int
    of_project: int
    done: int


class Work(NamedTuple):
    """What is done with the URLs.

    Attributes:
        fetch: Makes the call of one URL; an exception stops the run.
        max_concurrency: Maximum number of calls in progress.
        ordered: Whether outcomes have the order of the URLs.
        begin: Awaited before the first call; returns what `resume` found, None if no URL is to be skipped.
    """

    fetch: Callable[[str | URL], Awaitable[Outcome]]
    max_concurrency: int
    ordered: bool
    begin: Callable[[], Awaitable[Resumed | None]]


class Outcomes(AsyncIterator[Outcome]):
    """The outcomes of many URLs, in the order in which they arrive; the run starts when the first one is awaited.

    At most `max_concurrency` calls are in progress, and as many outcomes wait to be taken; then the calls wait. Leaving
    the loop early cancels the calls in progress, and each has its row. After ``break`` alone, that happens a moment
    later; an ``async with`` around the loop, or `aclose`, waits for it.
    """

    def __init__(self, urls: Iterable[str | URL] | AsyncIterable[str | URL], work: Work) -> None:
        self._workers = _WorkerPool(urls, work)
        self._outcomes = self._workers.outcomes()

    @property
    def skipped(self) -> int:
        """Number of URLs skipped so far, because the log has a success for them."""
        return self._workers.skipped

    @property
    def resumed(self) -> Resumed | None:
        """What `resume` found in the logs, once they are read; None without `resume`."""
        return self._workers.resumed

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    def __anext__(self) -> Awaitable[Outcome]:
        """Return the next outcome."""
        return self._outcomes.__anext__()

    async def aclose(self) -> None:
        """Cancel the calls in progress and wait for their end. May be called again."""
        await self._outcomes.aclose()

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close."""
        await self.aclose()


class _WorkerPool:
    """The workers of one run, and the outcomes that are not taken yet."""

    def __init__(self, urls: Iterable[str | URL] | AsyncIterable[str | URL], work: Work) -> None:
        self.skipped = 0
        self.resumed: Resumed | None = None
        self._urls = urls if isinstance(urls, AsyncIterable) else _as_async(urls)
        self._work = work
        self._iterator: Any  # of the URLs; asynchronous
        self._taking = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._exhausted = False  # there are no further URLs
        self._failure: BaseException | None = None
        self._taken = self._in_order = 0
        self._ready: deque[Outcome] = deque()
        self._early: dict[int, Outcome] = {}  # if `ordered`, outcomes that wait for an earlier one, by number
        self._room = asyncio.Semaphore(2 * work.max_concurrency)  # calls in progress, and as many outcomes
        self._changed = asyncio.Event()  # an outcome is ready, or a worker has ended

    async def outcomes(self) -> AsyncGenerator[Outcome]:
        """Start the run and yield the outcomes; at the end, cancel the workers and wait for them."""
        self.resumed = await self._work.begin()
        self._iterator = aiter(self._urls)
        try:
            self._add_worker()
            while True:
                if self._ready:
                    self._room.release()
                    yield self._ready.popleft()
                elif self._failure is not None:
                    raise self._failure
                elif not self._tasks:
                    return
                else:
                    self._changed.clear()
                    await self._changed.wait()
        finally:
            self._failure = None  # its traceback refers to this object
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if hasattr(self._iterator, "aclose"):
                await self._iterator.aclose()

    def _add_worker(self) -> None:
        task = asyncio.create_task(self._run_worker())
        self._tasks.add(task)
        task.add_done_callback(self._worker_ended)

    def _worker_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        failure = asyncio.CancelledError() if task.cancelled() else task.exception()
        if failure is not None:
            self._exhausted = True
            self._failure = self._failure or failure
        self._changed.set()

    async def _run_worker(self) -> None:
        """Take a URL, request it and deliver the outcome, until no URL is left."""
        while True:
            async with self._taking:
                await self._room.acquire()
                url: Any = _END if self._exhausted else await self._take()
            if url is _END:
                self._exhausted = True
                return
            number = self._taken
            self._taken += 1
            if len(self._tasks) < self._work.max_concurrency:
                self._add_worker()
            self._deliver(number, await self._work.fetch(url))

    async def _take(self) -> Any:
        """Return the next URL that is not done, `_END` after the last."""
        while True:
            try:
                url = await anext(self._iterator)
            except StopAsyncIteration:
                return _END
            if self.resumed is None or not self.resumed.is_done(url):
                return url
            self.skipped += 1
            if self.skipped % _YIELD_EVERY == 0:
                await asyncio.sleep(0)

    def _deliver(self, number: int, outcome: Outcome) -> None:
        if not self._work.ordered:
            self._ready.append(outcome)
        else:
            self._early[number] = outcome
            while self._in_order in self._early:
                self._ready.append(self._early.pop(self._in_order))
                self._in_order += 1
        self._changed.set()


async def _as_async(urls: Iterable[str | URL]) -> AsyncGenerator[str | URL]:
    for url in urls:
        yield url
