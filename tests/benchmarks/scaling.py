"""How the cost of a call changes with the calls under way, with the size of the body, and with retries."""

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
_MOST, _SPARE = 10_000, 1_000  # calls at once, and descriptors for all else


async def _spend(call: Call, url: str, calls: int, at_once: int) -> float:
    """Return the CPU seconds of a call."""
    left = iter(range(calls))

    async def worker() -> None:
        for _ in left:
            await call(url)

    started = time.process_time()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    return (time.process_time() - started) / calls


async def _rows(title: str, cases: list[tuple[str, str, int, int]], variants: dict[str, Call], to: str) -> None:
    print(f"\n| {title} | " + " | ".join(f"{name} (of {to})" for name in variants if name != to) + " |")
    print("|---|" + "--:|" * (len(variants) - 1))
    for label, url, calls, at_once in cases:
        found: dict[str, list[float]] = {name: [] for name in variants}
        await _spend(variants[to], url, calls, at_once)  # which opens the connections
        for _ in range(_ROUNDS):
            for name in random.sample(list(variants), len(variants)):
                found[name].append(await _spend(variants[name], url, calls, at_once))
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
    async with Variants(folder, crowded=True) as make:
        bare, ours = await make.bare(), await make.ours(telemetry[0])
        both = {"bare aiohttp": bare, "CSV only": await make.ours(), "in full": ours}
        small = f"{server}/{SMALL}"
        crowds = [1, 10, 100, 1_000, *([_MOST] if most == resource.RLIM_INFINITY or most > _MOST + _SPARE else [])]
        cases = [(f"{crowd:,}", small, max(1_000, crowd), crowd) for crowd in crowds]
        await _rows("calls at once", cases, both, "bare aiohttp")
        bodies = [("1 kB", 1_000, 500), ("100 kB", 100_000, 200), ("10 MB", 10_000_000, 5)]
        cases = [(label, f"{server}/{size}", calls, 1) for label, size, calls in bodies]
        await _rows("body", cases, both, "bare aiohttp")
        peers = {"peers": await make.peers(telemetry[1]), "in full": ours}
        await _rows("retries", [("one a call", f"{server}/flaky", 300, 1)], peers, "peers")
    for each in telemetry:
        each.shutdown()
