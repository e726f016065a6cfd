"""What a call's latency gains under load: 1,000 calls a second, started on time whether earlier ones are back or not.

Bare aiohttp and the connector take turns of a second; the percentiles are of all turns of each.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from serving import SMALL
from variants import Call, Telemetry, Variants

_A_SECOND = 1_000  # calls
_PERCENTILES = (50, 99, 99.9)


async def _turn(call: Call, url: str, took: list[float]) -> None:
    async def one() -> None:
        began = time.perf_counter()
        await call(url)
        took.append(time.perf_counter() - began)

    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()
    start = loop.time()
    for number in range(_A_SECOND):
        if (ahead := start + number / _A_SECOND - loop.time()) > 0:
            await asyncio.sleep(ahead)
        tasks.add(asyncio.create_task(one()))
    await asyncio.gather(*tasks)


def _percentile(times: list[float], percent: float) -> float:
    ordered = sorted(times)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]


async def table(server: str, folder: Path, turns: int = 20) -> None:
    """Measure and print."""
    telemetry = Telemetry()
    async with Variants(folder) as make:
        variants = {"bare aiohttp": await make.bare(), "in full": await make.ours(telemetry)}
        times: dict[str, list[float]] = {name: [] for name in variants}
        for turn in range(turns + 1):
            for name, call in variants.items():
                found: list[float] = []
                await _turn(call, f"{server}/{SMALL}", found)
                if turn:
                    times[name] += found
    telemetry.shutdown()
    print("| percentile | bare aiohttp = 1 | in full | added |")
    print("|--:|--:|--:|--:|")
    for percent in _PERCENTILES:
        bare, ours = (_percentile(times[name], percent) for name in variants)
        print(f"| p{percent:g} | 1.00 | {ours / bare:.2f} | {(ours - bare) * 1e6:,.0f} us |")
