"""The latency of calls that start at a fixed rate, even if earlier calls are not done.

Bare aiohttp, the connector, the floor and the peers run alternately for a second each, in random order. The percentiles
are those of all seconds of a variant: the microseconds above bare aiohttp, and the ratio to it. The last column is the
use of the client's core: the CPU time, including the SDK's thread, and the time in which the loop was ready to run but
other processes used the core. Near 100 %, calls wait in a queue, and their latency does not show the cost of a call.
Therefore lower rates are measured, too.
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
_TIMER_GRAIN = 0.001  # seconds; the resolution of uvloop's timers, also for bare aiohttp
_WAITED_FOR_CORE = Path("/proc/thread-self/schedstat")  # nanoseconds run, nanoseconds waited, number of time slices


@dataclass
class _Slices:
    """The measured times of one variant, in seconds."""

    latencies: list[float] = field(default_factory=list[float])
    elapsed: float = 0.0
    cpu: float = 0.0
    waited: float = 0.0

    def percentiles(self) -> list[float]:
        ordered = sorted(self.latencies)
        return [ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)] for percent in _PERCENTILES]

    def core_usage(self) -> str:
        return f"{self.cpu / self.elapsed:.0%} + {self.waited / self.elapsed:.0%}"


def _waited_for_core() -> float:
    return int(_WAITED_FOR_CORE.read_text(encoding="ascii").split()[1]) / 1e9 if _WAITED_FOR_CORE.exists() else 0.0


async def _measure_second(call: Call, url: str, rate: int, into: _Slices) -> None:
    """Start the calls of one second, each at its due time, and wait for the last one."""

    async def one(began: float) -> None:
        await call(url)
        into.latencies.append(time.perf_counter() - began)

    tasks = set[asyncio.Task[None]]()
    gc.collect()  # otherwise garbage of the previous second would be collected in this one
    cpu, waited, start = time.process_time(), _waited_for_core(), time.perf_counter()
    for number in range(rate):
        due = start + number / rate
        if (ahead := due - time.perf_counter()) > 0:
            await asyncio.sleep(ahead)
        # A later start than the timers explain was caused by the other calls, so it counts as latency
        tasks.add(asyncio.create_task(one(min(time.perf_counter(), due + _TIMER_GRAIN))))
    await asyncio.gather(*tasks)
    into.elapsed += time.perf_counter() - start
    into.cpu += time.process_time() - cpu
    into.waited += _waited_for_core() - waited


async def table(server: str, folder: Path, slices: int = 10) -> None:
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
            found = {name: _Slices() for name in variants}
            for number in range(slices + 1):
                for name in random.sample(list(variants), len(variants)):
                    await _measure_second(
                        variants[name], f"{server}/{SMALL}", rate, found[name] if number else _Slices()
                    )
            bare = found["bare aiohttp"].percentiles()
            for name, each in found.items():
                pairs = zip(each.percentiles(), bare, strict=True)
                texts = " | ".join(f"{(own - least) * 1e6:+,.0f} us, {own / least:.2f}" for own, least in pairs)
                print(f"| {rate:,} | {name} | {texts} | {each.core_usage()} |", flush=True)
    for telemetry in telemetries.values():
        telemetry.shutdown()
