"""Checks for leaked tasks, threads and sockets, for memory use, and for long iterations of the event loop.

This module depends on aiohttp and event loops, but not on the connector.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

STALL_LIMIT = 0.05
"""Seconds that one iteration of the event loop may take."""


ALLOWANCE = 8 * 2**20
"""Bytes of memory that a call may use in addition to the largest allowed body."""


def is_fast(function: Callable[[str], object], text: str) -> bool:
    """Return whether a function needs at most `STALL_LIMIT` of processor time for a text, the better of two times."""
    limit = STALL_LIMIT if sys.gettrace() is None else 10 * STALL_LIMIT  # coverage slows Python down
    return any(_processor_time(function, text) < limit for _ in range(2))


def _processor_time(function: Callable[[str], object], text: str) -> float:
    begun = time.thread_time()
    function(text)
    return time.thread_time() - begun


class OfflineResolver(AbstractResolver):
    """A resolver that resolves no name, so that no test connects to another machine."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        raise OSError(None, f"{host} cannot be resolved in tests")

    async def close(self) -> None:
        """Do nothing."""


def local_session(**options: object) -> aiohttp.ClientSession:
    """Return a session that resolves no host names. URLs with IP addresses work."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=OfflineResolver(), limit=4), **options)  # type: ignore[arg-type]


def sockets() -> set[str]:
    """Return the open sockets of this process; empty on other systems than Linux."""
    found: set[str] = set()
    if sys.platform != "linux":
        return found
    for descriptor in os.scandir("/proc/self/fd"):
        with suppress(OSError):  # this descriptor has been closed in the meantime
            found.add(os.readlink(descriptor))  # noqa: PTH115 - `Path` takes ten times as long
    return {name for name in found if name.startswith("socket:")}


@asynccontextmanager
async def leaves_nothing(seconds: float = 5.0) -> AsyncIterator[None]:
    """Fail if tasks, threads or sockets of the block still exist after it.

    Args:
        seconds: Time in which they may end; a server notices later that a connection is closed.
    """
    before = (asyncio.all_tasks(), set(threading.enumerate()), sockets())
    yield
    deadline = time.monotonic() + seconds
    while True:
        now = (asyncio.all_tasks(), set(threading.enumerate()), sockets())
        left = [now[0] - before[0], now[1] - before[1], now[2] - before[2]]
        if not any(left):
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"left behind: {left}")
        await asyncio.sleep(0)


def resident(line: str) -> int:
    """Return the resident memory of this process in bytes: the current (``VmRSS``) or the largest (``VmHWM``)."""
    (kilobytes,) = re.findall(rf"{line}:\s+([0-9]+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(kilobytes) * 1024


@contextmanager
def needs_at_most(limit: int) -> Iterator[None]:
    """Fail if the block needs more than `limit` bytes of resident memory at any time. Measured on Linux only.

    Resident memory also contains the memory of decompressors, which Python does not allocate. It includes the memory of
    servers in the same process.
    """
    if sys.platform != "linux":
        yield
        return
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM, proc(5)
    before = resident("VmRSS")
    yield
    needed = resident("VmHWM") - before
    assert needed <= limit, f"{needed:,} bytes needed, {limit:,} allowed"


@dataclass
class IterationTimes:
    """The longest iteration of an event loop, in seconds.

    Attributes:
        cpu: CPU time of the thread, which does not depend on other load on the machine.
        wall: Elapsed time.
    """

    cpu: float = 0.0
    wall: float = 0.0


@contextmanager
def slowest_iteration(interval: float = 0.001) -> Iterator[IterationTimes]:
    """Measure the longest iteration of the running loop, with a timer that is due every `interval` seconds.

    Garbage of earlier tests is collected first, because a collection would count as a long iteration.
    """
    loop, longest = asyncio.get_running_loop(), IterationTimes()
    gc.collect()
    cpu, wall = time.thread_time(), time.perf_counter()
    timers: list[asyncio.TimerHandle] = []

    def tick() -> None:
        nonlocal cpu, wall
        now_cpu, now_wall = time.thread_time(), time.perf_counter()
        longest.cpu, longest.wall = max(longest.cpu, now_cpu - cpu), max(longest.wall, now_wall - wall)
        cpu, wall = now_cpu, now_wall
        timers[:] = [loop.call_later(interval, tick)]

    timers.append(loop.call_later(interval, tick))
    try:
        yield longest
    finally:
        timers[0].cancel()


def assert_no_stall(longest: IterationTimes, limit: float = STALL_LIMIT) -> None:
    """Check the CPU time against `limit`, and the elapsed time against ten times as much: the machine may be busy.

    With coverage, the limit is four times as long, because every line is traced. CI also runs without coverage.
    """
    if sys.gettrace() is not None:
        limit *= 4
    assert longest.cpu < limit, longest
    assert longest.wall < 10 * limit, longest


def is_idle(session: aiohttp.ClientSession) -> bool:
    """Return whether no connection of the session is in use."""
    return session.connector is not None and not session.connector._acquired
