"""`fetch --rate N` lets at most N attempts through in any second, and nearly as many."""

from __future__ import annotations

import asyncio
import math
import selectors
from bisect import bisect_left

import pytest

from otel_connector.cli._fetch_command import _limiter


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that does not wait for its timers: its time advances to the next one, and `late` seconds more."""

    def __init__(self, late: float) -> None:
        loop, self.now = self, 1_000.0

        class Selector(selectors.SelectSelector):
            def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
                ready = super().select(0)
                loop.now += 1e-6 if ready or not timeout else timeout + late  # an iteration takes time, too
                return ready

        super().__init__(Selector())

    def time(self) -> float:
        return self.now


def admitted(rate: float, seconds: float, late: float) -> list[float]:
    """Return when attempts were admitted, if there is always one that waits."""
    loop, times, limiter = VirtualTimeLoop(late), list[float](), _limiter(rate)

    async def attempts() -> None:
        while loop.time() < 1_000.0 + seconds:
            async with limiter:
                times.append(loop.time())

    try:
        loop.run_until_complete(attempts())
    finally:
        loop.close()
    return times


@pytest.mark.parametrize("late", [0.00001, 0.001], ids=["", "timers 1 ms late"])
@pytest.mark.parametrize("rate", [0.5, 1, 1.5, 3, 10, 100, 1000])
def test_no_more_attempts_than_the_rate_are_admitted_in_any_second(rate: float, late: float) -> None:
    seconds = 5 / min(rate, 1)
    times = admitted(rate, seconds, late)
    for number, start in enumerate(times):
        assert bisect_left(times, start + max(1, 1 / rate) - 1e-6) - number <= math.ceil(rate)
    assert 0.95 * rate * seconds - 2 <= len(times) <= rate * seconds + 2
