"""Many URLs: workers that take them one by one, and outcomes as they come.

What a worker does with a URL is handed in. Holds as many URLs and outcomes as may be under way, never the list. Knows
neither the connector nor files, and no progress bar.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self
    from yarl import URL

    from otel_connector._record import CallRecord

_END = object()

_A_TURN = 256  # URLs passed over before the loop's other tasks get theirs


class Outcome(NamedTuple):
    """What came of one URL.

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
    """What was found when a list was taken up again.

    Attributes:
        is_done: Whether a URL is to be passed over.
        rows: Rows of the logs that were looked into.
        of_project: Of these, rows of the project.
        done: URLs of the project that have a success.
    """

    is_done: Callable[[str | URL], bool]
    rows: int
    of_project: int
    done: int


class Work(NamedTuple):
    """What is done with the URLs of a list.

    Attributes:
        fetch: Makes the call of one URL; what it raises ends all.
        max_concurrency: Calls under way at a time, at most.
        ordered: Whether outcomes come in the order of the URLs.
        begin: Awaited before the first call; returns what is done already, None if nothing is to be passed over.
    """

    fetch: Callable[[str | URL], Awaitable[Outcome]]
    max_concurrency: int
    ordered: bool
    begin: Callable[[], Awaitable[Resumed | None]]


class Outcomes(AsyncIterator[Outcome]):
    """The outcomes of many URLs, as they come; nothing happens before the first is asked for.

    At most `max_concurrency` calls are under way, and as many outcomes wait to be taken: who takes them slowly slows
    the calls. Leaving the loop early cancels what runs, each with its row. ``break`` alone does so a moment later; an
    ``async with`` around the loop, or `aclose`, waits until nothing is left.
    """

    def __init__(self, urls: Iterable[str | URL] | AsyncIterable[str | URL], work: Work) -> None:
        self._crew = _WorkerPool(urls, work)
        self._outcomes = self._crew.outcomes()

    @property
    def passed_over(self) -> int:
        """How many URLs were passed over so far, because the log had a success of them."""
        return self._crew.passed_over

    @property
    def resumed(self) -> Resumed | None:
        """What the log had of the list, once that is known; None without `resume`."""
        return self._crew.resumed

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    def __anext__(self) -> Awaitable[Outcome]:
        """Return the next outcome."""
        return self._outcomes.__anext__()

    async def aclose(self) -> None:
        """Cancel the calls under way and wait for their end. Safe to call again."""
        await self._outcomes.aclose()

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        await self.aclose()


class _WorkerPool:
    """The workers of one list, and what they have laid down."""

    def __init__(self, urls: Iterable[str | URL] | AsyncIterable[str | URL], work: Work) -> None:
        self.passed_over = 0
        self._urls = urls
        self._work = work
        self._next: Callable[..., Any]
        self._awaits = isinstance(urls, AsyncIterable)
        self.resumed: Resumed | None = None
        self._taking = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False  # the list
        self._failure: BaseException | None = None
        self._taken = self._in_order = self._delivered = 0
        self._ready: deque[Outcome] = deque()
        self._early: dict[int, Outcome] = {}  # whose turn has not come, if the order is to be kept
        self._taker: asyncio.Future[None] | None = None  # waits until something is ready
        self._room: asyncio.Future[None] | None = None  # a worker waits until something is taken

    async def outcomes(self) -> AsyncGenerator[Outcome]:
        iterator: Any = None
        try:
            self.resumed = await self._work.begin()
            if self._awaits:
                iterator = aiter(cast("AsyncIterable[str | URL]", self._urls))
                self._next = iterator.__anext__
            else:
                self._next = partial(next, iter(cast("Iterable[str | URL]", self._urls)))
            self._add_worker()
            while True:
                if self._ready:
                    self._delivered += 1
                    _wake(self._room)
                    yield self._ready.popleft()
                elif self._failure is not None:
                    raise self._failure
                elif not self._tasks:
                    return
                else:
                    self._taker = asyncio.get_running_loop().create_future()
                    await self._taker
        finally:
            self._failure = None  # which holds the frames that hold this
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if hasattr(iterator, "aclose"):
                await iterator.aclose()

    def _add_worker(self) -> None:
        task = asyncio.create_task(self._serve())
        self._tasks.add(task)
        task.add_done_callback(self._gone)

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        failure = asyncio.CancelledError() if task.cancelled() else task.exception()
        if failure is not None:
            self._ended = True
            self._failure = self._failure or failure
        _wake(self._taker)

    async def _serve(self) -> None:
        """Be a worker: take a URL, fetch it, lay the outcome down, until there is none left."""
        most = 2 * self._work.max_concurrency  # under way, and laid down: as many again
        url: Any
        while True:
            # Mostly nothing has to be awaited, and so no lock be taken, which would cost as much as the rest
            if self._awaits or self.resumed or self._taken - self._delivered >= most or self._taking.locked():
                async with self._taking:
                    while not self._ended and self._taken - self._delivered >= most:
                        self._room = asyncio.get_running_loop().create_future()
                        await self._room
                    url = _END if self._ended else await self._take()
            else:
                url = _END if self._ended else self._next(_END)
            if url is _END:
                self._ended = True
                return
            number = self._taken
            self._taken += 1
            if len(self._tasks) < self._work.max_concurrency:
                self._add_worker()
            self._lay_down(number, await self._work.fetch(url))

    async def _take(self) -> Any:
        """Return the next URL that is not done, `_END` after the last."""
        while True:
            try:
                url = await self._next() if self._awaits else self._next(_END)
            except StopAsyncIteration:
                return _END
            if url is _END or self.resumed is None or not self.resumed.is_done(url):
                return url
            self.passed_over += 1
            if self.passed_over % _A_TURN == 0:
                await asyncio.sleep(0)

    def _lay_down(self, number: int, outcome: Outcome) -> None:
        if not self._work.ordered:
            self._ready.append(outcome)
        else:
            self._early[number] = outcome
            while self._in_order in self._early:
                self._ready.append(self._early.pop(self._in_order))
                self._in_order += 1
        _wake(self._taker)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
