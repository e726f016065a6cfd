"""The tasks behind `AsyncConnector.get_many`: one takes the URLs and starts a task for each; outcomes are yielded.

The function that requests a URL is passed in. Memory is bounded: of a long list, only the URLs in progress and a
limited number of outcomes are kept. This file does not know the connector, files or progress bars.

Only one task, the feeder, runs the iterator of the URLs: each step, its end and its closing. A generator may hold what
belongs to a task or to a context, such as a span, a context variable that it resets, or a cancel scope of anyio. The
context is a copy of the one in which the first outcome is awaited. As in a plain loop over the URLs, what the
generator has changed in it applies to the calls that start after that, so a span that it holds is their parent.

Used by ``__init__``, ``_call._resume``, ``_connector``, ``_fetch._fetch``, ``_fetch._results`` and ``cli._fetch_view``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
)
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Self
    from yarl import URL

    from otel_connector._record import CallRecord

_END = object()

STOPPED = "the run was stopped before this attempt was sent"
"""The argument of a CancelledError that a rate limiter raises to cancel its call, and not the run."""

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

    def __repr__(self) -> str:
        """Return a text with the URL as in the row, redacted."""
        url, value, error = self.record.url, self.value, self.error
        return f"Outcome(url={url!r}, value={value!r}, error={error!r}, record={self.record!r})"


class Resumed(NamedTuple):
    """What `resume` found in the logs.

    Attributes:
        is_done: Whether a URL is to be skipped.
        rows: Number of rows in the logs.
        of_project: Number of these that belong to the project.
        done: Number of URLs of the project that have a success.
        files: The files that were read.
    """

    is_done: Callable[[str | URL], bool]
    rows: int
    of_project: int
    done: int
    files: tuple[str, ...]


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

    At most `max_concurrency` calls are in progress. No further call starts while as many outcomes have not been taken.
    Leaving the loop early cancels the calls in progress; each of them writes its row. After ``break`` alone, this
    happens a moment later. To wait for it, use ``async with`` around the loop, or `aclose`.
    """

    def __init__(self, urls: Iterable[str | URL] | AsyncIterable[str | URL], work: Work) -> None:
        self._calls = _CallPool(urls, work)
        self._outcomes = self._calls.outcomes()

    @property
    def skipped(self) -> int:
        """Number of URLs skipped so far, because the log has a success for them."""
        return self._calls.skipped

    @property
    def resumed(self) -> Resumed | None:
        """What `resume` found in the logs, once they are read; None without `resume`."""
        return self._calls.resumed

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    def __anext__(self) -> Awaitable[Outcome]:
        """Return the next outcome.

        Raises:
            RuntimeError: The run belongs to another event loop. As with asyncio's own objects, this is an error even if
                that loop has ended and has closed the run; otherwise the outcomes would seem to be complete.
        """
        loop = self._calls.loop
        if loop is not None and loop is not asyncio.get_running_loop():
            raise RuntimeError(f"{self!r} is bound to a different event loop")
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


class _CallPool:
    """The calls of one run, and the outcomes that are not taken yet."""

    def __init__(self, urls: Iterable[str | URL] | AsyncIterable[str | URL], work: Work) -> None:
        self.skipped = 0
        self.resumed: Resumed | None = None
        self.loop: asyncio.AbstractEventLoop | None = None  # set when the run starts
        self._urls: Any = urls if isinstance(urls, AsyncIterable) else _as_async(urls)
        self._work = work
        self._tasks: set[asyncio.Task[None]] = set()  # the feeder, and the calls in progress
        self._stopped = False  # start no further calls
        self._failure: BaseException | None = None
        self._in_order = 0
        self._ready: deque[Outcome] = deque()
        self._early: dict[int, Outcome] = {}  # if `ordered`, outcomes that wait for an earlier one, by number
        self._free = asyncio.Semaphore(work.max_concurrency)  # calls that may start
        self._room = asyncio.Semaphore(2 * work.max_concurrency)  # calls in progress, and as many outcomes
        self._changed = asyncio.Event()  # an outcome is ready, or a task has ended

    async def outcomes(self) -> AsyncGenerator[Outcome]:
        """Start the run and yield the outcomes; at the end, cancel the tasks and wait for them."""
        self.loop = asyncio.get_running_loop()
        self.resumed = await self._work.begin()
        feeder = self._start(self._feed())
        try:
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
            # Its traceback refers to this object, so it is not kept
            failure, self._failure, self._stopped = self._failure, None, True
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            closing = None if feeder.cancelled() else feeder.exception()
            try:
                if closing is not None and failure is None:
                    raise closing  # the iterator of the URLs raised when it was closed
            finally:
                del failure, closing

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # A task factory may run the task here, up to its first wait or its end, so nothing depends on when it starts
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        failure = asyncio.CancelledError() if task.cancelled() else task.exception()
        if failure is not None and not self._stopped:
            self._stopped, self._failure = True, failure
        self._changed.set()

    async def _feed(self) -> None:
        """Take the URLs one by one, when there is room for their outcomes, and start their calls."""
        iterator: Any = aiter(self._urls)
        self._urls = None  # if this is the last reference, a generator ends in this task
        number = 0
        try:
            while True:
                await self._room.acquire()
                await self._free.acquire()
                url: Any = _END if self._stopped else await self._take(iterator)
                if url is _END or self._stopped:
                    return
                _ = self._start(self._call(number, url))
                number += 1
                await asyncio.sleep(0)  # other tasks run between two URLs, even if nothing has to be waited for
        finally:
            if hasattr(iterator, "aclose"):
                await iterator.aclose()

    async def _take(self, iterator: AsyncIterator[str | URL]) -> Any:
        """Return the next URL that is not done, `_END` after the last."""
        while True:
            try:
                url = await anext(iterator)
            except StopAsyncIteration:
                return _END
            if self.resumed is None or not self.resumed.is_done(url):
                return url
            self.skipped += 1
            if self.skipped % _YIELD_EVERY == 0:
                await asyncio.sleep(0)

    async def _call(self, number: int, url: str | URL) -> None:
        """Request a URL and deliver the outcome. If that raises, no further URL is taken."""
        try:
            outcome = await self._work.fetch(url)
        except asyncio.CancelledError as error:
            if error.args != (STOPPED,):
                raise
            self._room.release()
            self._free.release()
            return  # the call has its row, as one that is cancelled; the others go on
        self._free.release()
        self._deliver(number, outcome)

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
    iterator = iter(urls)
    try:
        for url in iterator:
            yield url
    finally:
        if isinstance(iterator, Generator):  # like an asynchronous one, so that it ends in the task that has run it
            iterator.close()
