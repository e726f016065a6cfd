"""What no test may find left behind or exceeded: tasks, threads, sockets, memory, and long turns of the loop.

For the tests of hostile servers and strangers' vectors. Knows sessions and loops, nothing of the connector.
"""

from __future__ import annotations

import asyncio
import gc
import re
import socket
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

STALL_LIMIT = 0.05
"""Seconds that one turn of the loop may take."""


ALLOWANCE = 8 * 2**20
"""Bytes that a call may need beside the body that its cap allows."""


class NoNames(AbstractResolver):
    """A resolver that knows no name, so that no vector leads out of this machine."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        raise OSError(None, f"no name server here to ask for {host}")

    async def close(self) -> None:
        """Have nothing to close."""


def closed_session(**options: object) -> aiohttp.ClientSession:
    """Return a session that reaches addresses on this machine and no name."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=NoNames(), limit=4), **options)  # type: ignore[arg-type]


def sockets() -> set[str]:
    """Return the sockets that this process has open; known on Linux only."""
    found: set[str] = set()
    if sys.platform != "linux":
        return found
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the descriptor that lists the folder, or one that another thread has closed
            if stat.S_ISSOCK(descriptor.stat().st_mode):
                found.add(str(descriptor.readlink()))
    return found


@asynccontextmanager
async def leaves_nothing(seconds: float = 5.0) -> AsyncIterator[None]:
    """Fail if more tasks, threads or sockets are there after the block than before it.

    Args:
        seconds: How long the other end, which hears of a closed connection later, may take.
    """
    before = (asyncio.all_tasks(), set(threading.enumerate()), sockets())
    yield
    give_up = time.monotonic() + seconds
    while True:
        now = (asyncio.all_tasks(), set(threading.enumerate()), sockets())
        left = [now[0] - before[0], now[1] - before[1], now[2] - before[2]]
        if not any(left):
            return
        if time.monotonic() > give_up:
            raise AssertionError(f"left behind: {left}")
        await asyncio.sleep(0)


def resident(line: str) -> int:
    """Return VmRSS or VmHWM, the memory of this process that is or was at most resident, in bytes."""
    (kilobytes,) = re.findall(rf"{line}:\s+([0-9]+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(kilobytes) * 1024


@contextmanager
def needs_at_most(limit: int) -> Iterator[None]:
    """Fail if the block needs more than `limit` bytes of resident memory at any time; measured on Linux only.

    Resident memory and not what Python allocates: it counts what decompressors allocate. A server in the same process
    is counted, too.
    """
    if sys.platform != "linux":
        yield
        return
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the high-water mark starts again, proc(5)
    before = resident("VmRSS")
    yield
    needed = resident("VmHWM") - before
    assert needed <= limit, f"{needed:,} bytes needed, {limit:,} allowed"


@dataclass
class Turns:
    """The longest turn of a loop, in seconds.

    Attributes:
        cpu: Of this thread's processor time: what the loop itself did, however busy the machine is.
        wall: Of real time.
    """

    cpu: float = 0.0
    wall: float = 0.0


@contextmanager
def turns_of_the_loop(interval: float = 0.001) -> Iterator[Turns]:
    """Measure the turns of the running loop by a timer that is due every `interval` seconds.

    What the garbage of earlier tests takes to be found is not the loop's: it is collected before.
    """
    loop, longest = asyncio.get_running_loop(), Turns()
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


def assert_no_stall(longest: Turns, limit: float = STALL_LIMIT) -> None:
    """Hold the loop to `limit`; real time may be ten times as long, on a machine that does other things too.

    Where every line is traced for the coverage, the time is the tracer's; the runs on the wheel hold the limit itself.
    """
    if sys.gettrace() is not None:
        limit *= 4
    assert longest.cpu < limit, longest
    assert longest.wall < 10 * limit, longest


def free_again(session: aiohttp.ClientSession) -> bool:
    """Whether no connection of the session is in use."""
    return session.connector is not None and not session.connector._acquired
