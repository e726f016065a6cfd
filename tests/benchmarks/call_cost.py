"""The CPU time of a call, as a ratio to a bare `session.get` and `json()` in the same run.

The client has one core and the server another. In every round, the variants run alternately, in random order and in
slices of some dozen calls, so that other load on the machine affects all of them. The ratio of a round is that of the
sums. The median and the quartiles of these ratios are printed. A slice ends when its spans are exported; otherwise the
SDK's thread would export them in a slice of another variant. Absolute times are not printed: they depend on the machine
more than on the code.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

from serving import SMALL
from variants import ONE_PERCENT, Call, Telemetry, Variants

_CALLS_PER_SLICE = 50


async def _spend(call: Call, url: str, calls: int, telemetry: Telemetry | None) -> int:
    started = time.process_time_ns()
    for _ in range(calls):
        await call(url)
    if telemetry is not None:
        telemetry.tracing.force_flush()
    return time.process_time_ns() - started


async def spent(
    variants: Mapping[str, Call],
    telemetries: Mapping[str, Telemetry],
    url: str,
    *,
    rounds: int,
    calls: int,
    calls_per_slice: int = _CALLS_PER_SLICE,
) -> list[dict[str, int]]:
    """Return the CPU nanoseconds of `calls` calls of each variant, including the export, for each round."""
    found: list[dict[str, int]] = []
    for number in range(rounds + 1):
        sums = dict.fromkeys(variants, 0)
        for _ in range(calls // calls_per_slice):
            for name in random.sample(list(variants), len(variants)):
                sums[name] += await _spend(variants[name], url, calls_per_slice, telemetries.get(name))
        if number:  # the first round is a warm-up
            found.append(sums)
    return found


def ratios(found: list[dict[str, int]], name: str, to: str) -> tuple[float, float, float]:
    """Return the median, the first and the third quartile of the ratios of the rounds."""
    first, median, third = statistics.quantiles([each[name] / each[to] for each in found], n=4)
    return median, first, third


def show(found: list[dict[str, int]]) -> None:
    """Print a table of the variants, as ratios to bare aiohttp."""
    print("| variant | CPU per call, bare aiohttp = 1 | quartiles of the rounds |")
    print("|---|--:|--:|")
    for name in found[0]:
        median, first, third = ratios(found, name, BARE)
        print(f"| {name} | {median:.2f} | {first:.2f} - {third:.2f} |")


BARE, FLOOR, PEERS, FULL = "bare aiohttp", "floor: SDK span, histogram, injection", "peers", "in full, spans discarded"
_SAMPLED = "1 % sampled, metrics, CSV"


async def table(server: str, folder: Path, rounds: int = 15, calls: int = 1_000) -> None:
    """Measure and print."""
    telemetries = {name: Telemetry() for name in (FULL, FLOOR, PEERS)} | {_SAMPLED: Telemetry(sampler=ONE_PERCENT)}
    async with Variants(folder) as make:
        variants = {
            BARE: await make.bare(),
            "no SDK, no CSV": await make.ours(csv=False),
            "CSV only": await make.ours(),
            _SAMPLED: await make.ours(telemetries[_SAMPLED]),
            FULL: await make.ours(telemetries[FULL]),
            FLOOR: await make.floor(telemetries[FLOOR]),
            PEERS: await make.peers(telemetries[PEERS]),
        }
        found = await spent(variants, telemetries, f"{server}/{SMALL}", rounds=rounds, calls=calls)
    for telemetry in telemetries.values():
        telemetry.shutdown()
    show(found)
    print()
    for other, label in ((FLOOR, "the floor"), (PEERS, "the peers")):
        print_ratio(found, FULL, other, label)


def print_ratio(found: list[dict[str, int]], name: str, to: str, label: str) -> None:
    median, first, third = ratios(found, name, to)
    print(f"in full, of {label}: {median:.2f} ({first:.2f} - {third:.2f})")
