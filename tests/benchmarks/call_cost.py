"""What one call costs in CPU time, beside a bare `session.get` and `json()`, as ratios from one run.

The client has one core and the server another. In every round the variants take turns, some dozens of calls each, in
random order, so that what else the machine does falls on all of them; a round's ratio is that of the sums, and what is
printed are the median of the rounds' ratios and their quarters. A turn ends when its spans are exported, or the SDK's
thread would do that in another variant's turn. No absolute time: it would say more about the machine than about the
code.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

from serving import SMALL
from variants import ONE_PERCENT, Call, Telemetry, Variants

_CALLS_A_TURN = 50


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
    at_a_turn: int = _CALLS_A_TURN,
) -> list[dict[str, int]]:
    """Return, for each round, the CPU nanoseconds of `calls` calls of each variant, its export included."""
    found: list[dict[str, int]] = []
    for number in range(rounds + 1):
        sums = dict.fromkeys(variants, 0)
        for _ in range(calls // at_a_turn):
            for name in random.sample(list(variants), len(variants)):
                sums[name] += await _spend(variants[name], url, at_a_turn, telemetries.get(name))
        if number:  # the first one warms up
            found.append(sums)
    return found


def ratios(found: list[dict[str, int]], name: str, to: str) -> tuple[float, float, float]:
    """Return the median of the rounds' ratios, and the first and third quarter."""
    first, median, third = statistics.quantiles([each[name] / each[to] for each in found], n=4)
    return median, first, third


def show(found: list[dict[str, int]]) -> None:
    """Print the variants as ratios to bare aiohttp."""
    print("| variant | CPU per call, bare aiohttp = 1 | quarters of the rounds |")
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
    for other, said in ((FLOOR, "the floor"), (PEERS, "the peers")):
        print_ratio(found, FULL, other, said)


def print_ratio(found: list[dict[str, int]], name: str, to: str, said: str) -> None:
    median, first, third = ratios(found, name, to)
    print(f"in full, of {said}: {median:.2f} ({first:.2f} - {third:.2f})")
