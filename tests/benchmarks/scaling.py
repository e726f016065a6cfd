"""The cost of a call for different numbers of concurrent calls and sizes of the body, and with retries."""

from __future__ import annotations

import asyncio
import random
import resource
import statistics
import time
from pathlib import Path

from serving import SMALL, allow_descriptors
from variants import Call, Telemetry, Variants

_ROUNDS = 7
_MOST, _SPARE = 10_000, 1_000  # concurrent calls, and descriptors for other uses


async def _spend(call: Call, url: str, calls: int, concurrency: int) -> float:
    """Return the CPU seconds per call."""
    left = iter(range(calls))

    async def worker() -> None:
        for _ in left:
            await call(url)

    started = time.process_time()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return (time.process_time() - started) / calls


async def _rows(title: str, cases: list[tuple[str, str, int, int]], variants: dict[str, Call], to: str) -> None:
    print(f"\n| {title} | " + " | ".join(f"{name} (of {to})" for name in variants if name != to) + " |")
    print("|---|" + "--:|" * (len(variants) - 1))
    for label, url, calls, concurrency in cases:
        found: dict[str, list[float]] = {name: [] for name in variants}
        await _spend(variants[to], url, calls, concurrency)  # opens the connections
        for _ in range(_ROUNDS):
            for name in random.sample(list(variants), len(variants)):
                found[name].append(await _spend(variants[name], url, calls, concurrency))
        ratios = [
            statistics.median(a / b for a, b in zip(found[name], found[to], strict=True))
            for name in variants
            if name != to
        ]
        print(f"| {label} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |", flush=True)


async def table(server: str, folder: Path) -> None:
    """Measure and print."""
    most = allow_descriptors()
    telemetry = [Telemetry() for _ in range(2)]
    async with Variants(folder, shared_pool=True) as make:
        bare, ours = await make.bare(), await make.ours(telemetry[0])
        both = {"bare aiohttp": bare, "CSV only": await make.ours(), "in full": ours}
        small = f"{server}/{SMALL}"
        numbers = [1, 10, 100, 1_000, *([_MOST] if most == resource.RLIM_INFINITY or most > _MOST + _SPARE else [])]
        cases = [(f"{number:,}", small, max(1_000, number), number) for number in numbers]
        await _rows("concurrent calls", cases, both, "bare aiohttp")
        bodies = [("1 kB", 1_000, 500), ("100 kB", 100_000, 200), ("10 MB", 10_000_000, 5)]
        cases = [(label, f"{server}/{size}", calls, 1) for label, size, calls in bodies]
        await _rows("body", cases, both, "bare aiohttp")
        peers = {"peers": await make.peers(telemetry[1]), "in full": ours}
        await _rows("retries", [("one per call", f"{server}/flaky", 300, 1)], peers, "peers")
    for each in telemetry:
        each.shutdown()
