"""What a call's latency gains under load: calls started on time, whether earlier ones are back or not.

Bare aiohttp, the connector, the floor and the peers take turns of a second in random order; the percentiles are of all
turns of each: microseconds above bare aiohttp's, and the ratio to it. Beside them stands how full the client's one core
was: its CPU time, that of the SDK's thread included, and the time that its loop was ready to run and others had the
core. Where the two come near 100 % the latency is that of a queue, which says how long the turn was and not what a call
costs; where others had the core, that of their turns. Therefore there are lower rates, too.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from serving import SMALL
from variants import Call, Telemetry, Variants

_RATES = (100, 200, 500, 1_000)  # calls a second
_PERCENTILES = (50, 99, 99.9)
_TIMER_GRAIN = 0.001  # seconds: uvloop's timers go by the millisecond, for bare aiohttp's calls, too
_WAITED_FOR_CORE = Path("/proc/thread-self/schedstat")  # nanoseconds run, nanoseconds waited, turns had


@dataclass
class _Turns:
    """What the turns of one variant came to, in seconds."""

    took: list[float] = field(default_factory=list[float])
    passed: float = 0.0
    cpu: float = 0.0
    waited: float = 0.0

    def percentiles(self) -> list[float]:
        ordered = sorted(self.took)
        return [ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)] for percent in _PERCENTILES]

    def full(self) -> str:
        return f"{self.cpu / self.passed:.0%} + {self.waited / self.passed:.0%}"


def _waited_for_core() -> float:
    return int(_WAITED_FOR_CORE.read_text(encoding="ascii").split()[1]) / 1e9 if _WAITED_FOR_CORE.exists() else 0.0


async def _turn(call: Call, url: str, rate: int, into: _Turns) -> None:
    """Start a second's calls, each at its own time, and wait for the last one."""

    async def one(began: float) -> None:
        await call(url)
        into.took.append(time.perf_counter() - began)

    tasks = set[asyncio.Task[None]]()
    gc.collect()  # the turn before is not to be cleared up in this one
    cpu, waited, start = time.process_time(), _waited_for_core(), time.perf_counter()
    for number in range(rate):
        due = start + number / rate
        if (ahead := due - time.perf_counter()) > 0:
            await asyncio.sleep(ahead)
        # One that comes later than a timer may was held up by the others, and that belongs to what it takes
        tasks.add(asyncio.create_task(one(min(time.perf_counter(), due + _TIMER_GRAIN))))
    await asyncio.gather(*tasks)
    into.passed += time.perf_counter() - start
    into.cpu += time.process_time() - cpu
    into.waited += _waited_for_core() - waited


async def table(server: str, folder: Path, turns: int = 10) -> None:
    """Measure and print."""
    telemetries = {name: Telemetry() for name in ("in full", "floor", "peers")}
    print("| calls a second | | p50, added | p99, added | p99.9, added | the core: ran + waited |")
    print("|--:|---|--:|--:|--:|--:|")
    async with Variants(folder) as make:
        variants = {
            "bare aiohttp": await make.bare(),
            "in full": await make.ours(telemetries["in full"]),
            "floor": await make.floor(telemetries["floor"]),
            "peers": await make.peers(telemetries["peers"]),
        }
        for rate in _RATES:
            found = {name: _Turns() for name in variants}
            for turn in range(turns + 1):
                for name in random.sample(list(variants), len(variants)):
                    await _turn(variants[name], f"{server}/{SMALL}", rate, found[name] if turn else _Turns())
            bare = found["bare aiohttp"].percentiles()
            for name, each in found.items():
                pairs = zip(each.percentiles(), bare, strict=True)
                told = " | ".join(f"{(own - least) * 1e6:+,.0f} us, {own / least:.2f}" for own, least in pairs)
                print(f"| {rate:,} | {name} | {told} | {each.full()} |", flush=True)
    for telemetry in telemetries.values():
        telemetry.shutdown()
