"""Time and chance, as one value that can be passed in.

The loop in ``_connector`` waits, times and draws lots through a `Clock`, so that a test (ours or a user's) replaces
all three with ``otel_connector.testing.FakeClock`` and never sleeps. Knows nothing of HTTP, retries or telemetry.
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

time_limit: Callable[[float], AbstractAsyncContextManager[object]]
"""Bounds what is awaited inside, in seconds of the event loop; raises `asyncio.TimeoutError` when they are over."""
if sys.version_info >= (3, 11):
    time_limit = asyncio.timeout
else:  # what aiohttp itself uses there, and brings along
    time_limit = import_module("async_timeout").timeout


class Clock(Protocol):
    """What the connector needs to know of time: two clocks, one wait and one random number."""

    def time_ns(self) -> int:
        """Unix time in nanoseconds; may step when the machine's clock is set."""
        ...

    def monotonic_ns(self) -> int:
        """Nanoseconds from an arbitrary start; never steps back."""
        ...

    async def sleep(self, delay: float) -> None:
        """Return after `delay` seconds of this clock."""
        ...

    def random(self) -> float:
        """A random number in [0, 1)."""
        ...


class SystemClock:
    """The machine's own clocks, `asyncio.sleep` and `random.random`."""

    __slots__ = ()

    time_ns = staticmethod(time.time_ns)
    monotonic_ns = staticmethod(time.perf_counter_ns)
    sleep = staticmethod(asyncio.sleep)
    random = staticmethod(random.random)
