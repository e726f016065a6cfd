"""The limit of one host: slots that are acquired and returned, and how many there are after the host has throttled.

The number is set by `adaptive_concurrency`, and by a pause. After a pause, callers are admitted gradually, as TCP sends
after a timeout (RFC 5681, section 3.1): one at first, twice as many with each round of responses until half of what the
server did not accept before, then one more with each round. The responses of the server control this, not the time, so
it works for a server that allows 20 requests per second as well as for one that is restarted.

Slots belong to the event loop whose tasks hold them. A loop that was closed while calls were pending, or that belongs
to the parent of a forked process or to another thread, never returns its slots, so no other loop waits for them. This
file does not know aiohttp, nor what acquires the slots.

Used by ``_call._pacing``.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from collections import deque


class ResizableLimiter:
    """A number of slots, granted in the order of the requests; the number may change at any time.

    Args:
        limit: The number of slots; 0 for no limit. A limit of 2.5 is one of 2.
    """

    __slots__ = ("_acquired", "_waiters", "limit")

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._acquired = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def idle(self) -> bool:
        """Whether no slot is acquired or waited for."""
        return not self._acquired and not self._waiters

    @property
    def waited_for(self) -> bool:
        """Whether tasks wait for a slot."""
        return bool(self._waiters)

    def acquire_nowait(self) -> bool:
        """Acquire a slot if one is free and no task waits for it; return whether it was acquired."""
        if self._waiters or (self.limit and self._acquired + 1 > self.limit):
            return False
        self._acquired += 1
        return True

    async def acquire(self) -> None:
        """Wait for a slot and acquire it."""
        if self.acquire_nowait():
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except BaseException:  # raised again; a slot must not be lost
            if waiter.done() and not waiter.cancelled():  # the slot was granted just before the cancellation
                self.release()
            elif waiter in self._waiters:  # `grant` removes cancelled waiters, too
                self._waiters.remove(waiter)
            raise

    def release(self) -> None:
        """Return a slot."""
        self._acquired -= 1
        if self._waiters:
            self.grant()

    def grant(self) -> None:
        """Grant the free slots to the tasks that wait for one."""
        while self._waiters and (not self.limit or self._acquired + 1 <= self.limit):
            waiter = self._waiters.popleft()
            if not waiter.done() and not waiter.get_loop().is_closed():
                self._acquired += 1
                waiter.set_result(None)


class HostState:
    """The pause of one host, and its limit.

    Args:
        most: Maximum of the limit; 0 for none, and then there is a limit only after a pause.

    Attributes:
        limit: Slots in each event loop; 0 for no limit.
        threshold: The limit up to which a response adds a whole slot, after a pause.
        paused_until: The end of the pause, in monotonic seconds.
        settled_at: When the limit may end because no task waits for a slot, in monotonic seconds.
        reduced_at: When the limit was last reduced, in monotonic seconds.
    """

    __slots__ = ("_limit", "_limiters", "_most", "paused_until", "reduced_at", "settled_at", "threshold")

    def __init__(self, most: int) -> None:
        self._most = self._limit = float(most)
        self._limiters: tuple[tuple[weakref.ref[asyncio.AbstractEventLoop], ResizableLimiter], ...] = ()
        self.threshold = 0.0
        self.paused_until = self.settled_at = 0.0
        self.reduced_at = -1.0

    @property
    def limit(self) -> float:
        """Slots in each event loop; 0 for no limit."""
        return self._limit

    @limit.setter
    def limit(self, limit: float) -> None:
        self._limit = limit
        for _, limiter in self._limiters:
            # Other loops grant their new slots when they return one: they may be in other threads
            limiter.limit = limit

    @property
    def idle(self) -> bool:
        """Whether no slot is acquired or waited for."""
        return all(limiter.idle for _, limiter in self._limiters)

    @property
    def limiter(self) -> ResizableLimiter:
        """The slots of the running event loop."""
        running = asyncio.get_running_loop()
        for loop, limiter in self._limiters:
            if loop() is running:
                return limiter
        others = [(loop, limiter) for loop, limiter in self._limiters if not _is_closed(loop())]
        limiter = ResizableLimiter(self._limit)
        self._limiters = (*others, (weakref.ref(running), limiter))  # in one step, for other threads
        return limiter

    def throttled(self, now: float, entered: float, pause: float | None) -> None:
        """Note that the server asked its callers to slow down.

        Args:
            now: Monotonic seconds, as all times here.
            entered: When the throttled attempt started.
            pause: Seconds for which the server wants no calls; None if it did not ask for a pause.
        """
        if pause:
            self.paused_until = max(self.paused_until, now + pause)
            self.settled_at = max(self.settled_at, now + 2 * pause)
        # One reduction for each burst: attempts that started before the last reduction carry no new information
        if entered <= self.reduced_at:
            return
        if pause:
            self.threshold = self.limit / 2 if self.limit else math.inf
            self.reduced_at, self.limit = now, 1.0
        elif self.limit:
            self.reduced_at, self.limit = now, max(1.0, self.limit / 2)

    def succeeded(self, now: float, entered: float) -> None:
        """Note that the server has answered without throttling an attempt that started at `entered`."""
        if entered < self.paused_until:
            return
        limiter = self.limiter
        if not self._most and not limiter.waited_for and now >= self.settled_at:
            self.limit = 0
            return
        limit = self.limit + (1 if self.limit < self.threshold else 1 / self.limit)
        self.limit = min(limit, self._most or math.inf)
        limiter.grant()


def _is_closed(loop: asyncio.AbstractEventLoop | None) -> bool:
    return loop is None or loop.is_closed()
