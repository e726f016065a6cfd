"""Time, waits and random numbers, as one value that is passed in.

A call uses a `Clock` for all three. A test replaces it with ``otel_connector.testing.FakeClock`` and never sleeps. This
file does not know HTTP, retries or telemetry.

Used by ``_arguments``, ``_call``, ``_connector`` and ``testing``.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
import time
from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from importlib import import_module
from typing import Any, Protocol

_A_YEAR = 365 * 86_400.0  # seconds

time_limit: Callable[[float | None], AbstractAsyncContextManager[object]]
"""An async context manager that limits its body to a number of seconds, and raises `asyncio.TimeoutError` after them.
None sets no limit."""
if sys.version_info >= (3, 11):
    time_limit = asyncio.timeout

    def _end_of(limit: Any) -> float | None:
        return None if limit.expired() else limit.when()

    def _set_end(limit: Any, when: float | None) -> None:
        limit.reschedule(when)
else:  # a dependency of aiohttp there
    time_limit = import_module("async_timeout").timeout

    def _end_of(limit: Any) -> float | None:
        return None if limit.expired else limit.deadline

    def _set_end(limit: Any, when: float | None) -> None:
        limit.update(asyncio.get_running_loop().time() + _A_YEAR if when is None else when)


def time_left(limit: object) -> float:
    """Return the seconds until a `time_limit` that is entered ends; infinite if it does not."""
    when = _end_of(limit)
    return math.inf if when is None else when - asyncio.get_running_loop().time()


@contextmanager
def suspended(limit: object) -> Generator[None]:
    """Do not count the time of the block towards a `time_limit` that is entered."""
    left = time_left(limit)
    if left == math.inf:
        yield
        return
    _set_end(limit, None)
    try:
        yield
    finally:
        _set_end(limit, asyncio.get_running_loop().time() + left)


def shorten(limit: object, seconds: float) -> None:
    """Let a `time_limit` that is entered end after `seconds`, if it would end later."""
    when, latest = _end_of(limit), asyncio.get_running_loop().time() + seconds
    if when is not None and latest < when:
        _set_end(limit, latest)


class Clock(Protocol):
    """Two clocks, a wait and a random number."""

    def time_ns(self) -> int:
        """Return the Unix time in nanoseconds; it may step when the system clock is set."""
        ...

    def monotonic_ns(self) -> int:
        """Return nanoseconds since an arbitrary start; it never steps back."""
        ...

    async def sleep(self, delay: float) -> None:
        """Return after `delay` seconds of this clock."""
        ...

    def random(self) -> float:
        """Return a random number in [0, 1)."""
        ...


class SystemClock:
    """The system clocks, `asyncio.sleep` and `random.random`."""

    __slots__ = ()

    time_ns = staticmethod(time.time_ns)
    monotonic_ns = staticmethod(time.perf_counter_ns)
    sleep = staticmethod(asyncio.sleep)
    random = staticmethod(random.random)
