"""Time, waits and random numbers, as one value that is passed in.

A call uses a `Clock` for all three. A test replaces it with ``otel_connector.testing.FakeClock`` and never sleeps. This
file does not know HTTP, retries or telemetry.

Used by ``_arguments``, ``_call._body``, ``_call._call``, ``_call._pacing``, ``_connector`` and ``testing._fake_clock``.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from typing import Protocol

time_limit: Callable[[float | None], AbstractAsyncContextManager[object]]
"""An async context manager that limits its body to a number of seconds, and raises `asyncio.TimeoutError` after them.
None sets no limit."""
if sys.version_info >= (3, 11):
    time_limit = asyncio.timeout
else:  # a dependency of aiohttp there
    time_limit = import_module("async_timeout").timeout


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
