"""A `Clock` with virtual time and given random numbers. Does not know servers and HTTP.

Used by ``testing``.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
from collections.abc import Iterable, Iterator
from typing import cast

from otel_connector._arguments import checked_number, checked_seconds
from otel_connector._clock import Clock

_NS = 1_000_000_000


class FakeClock(Clock):
    """A clock whose time advances only by `sleep` and `advance`.

    A sleep takes no real time: it yields to the event loop and sets virtual time to its end. If several tasks sleep,
    the one that is due first wakes first; equal ones wake in the order of their calls. Time never goes back. The clock
    does not wait for tasks that do something else, such as a request over a real socket.
    Use it from one event loop at a time.

    Attributes:
        sleeps: The delay of each call of `sleep`, in seconds, in order. Tests may read and clear it.
    """

    def __init__(self, start: float = 1_700_000_000.0, randoms: float | Iterable[float] | random.Random = 0.5) -> None:
        """Make a clock that shows `start`.

        Args:
            start: Unix time in seconds, 0 or more. The monotonic clock always starts at 0.
            randoms: The source of `random`: one number for all calls, an iterable of numbers, or a (seeded)
                `random.Random`. The numbers are in [0, 1).

        Raises:
            TypeError: `start` is not a number, or `randoms` has another type.
            ValueError: `start` is negative or not finite, or `randoms` is a number outside [0, 1).
        """
        self.sleeps: list[float] = []
        self._start_ns = round(checked_seconds("start", start) * _NS)
        self._elapsed_ns = 0
        self._randoms = _numbers(randoms)
        self._sleepers: list[tuple[int, int]] = []
        self._order = itertools.count()

    def time_ns(self) -> int:
        """Return the virtual Unix time in nanoseconds."""
        return self._start_ns + self._elapsed_ns

    def monotonic_ns(self) -> int:
        """Return the virtual nanoseconds since the clock was made."""
        return self._elapsed_ns

    async def sleep(self, delay: float) -> None:
        """Append `delay` to `sleeps`, and return when virtual time has reached its end, without a real wait.

        As with `asyncio.sleep`, a delay below 0 counts as 0. A cancelled sleep does not change the time.

        Args:
            delay: Seconds.

        Raises:
            TypeError: `delay` is not a number.
            ValueError: `delay` is infinite or NaN; such a sleep would never end.
        """
        if not math.isfinite(checked_number("delay", delay, " of seconds")):
            raise ValueError(f"delay must be a finite number of seconds, not {delay}")
        self.sleeps.append(delay)
        due = self._elapsed_ns + max(0, round(delay * _NS))
        sleeper = (due, next(self._order))
        heapq.heappush(self._sleepers, sleeper)
        try:
            await asyncio.sleep(0)
            while self._sleepers[0] != sleeper:  # noqa: ASYNC110 - an event would bind the clock to one loop
                await asyncio.sleep(0)
            # `advance` may have moved the time beyond `due` already
            self._elapsed_ns = max(self._elapsed_ns, due)
        finally:
            self._sleepers.remove(sleeper)
            heapq.heapify(self._sleepers)

    def random(self) -> float:
        """Return the next number of `randoms`.

        Raises:
            RuntimeError: `randoms` has no further number.
            ValueError: The number is not in [0, 1).
        """
        try:
            return _checked_random(next(self._randoms))
        except StopIteration:
            raise RuntimeError("randoms is exhausted: more random numbers were drawn than were given") from None

    def advance(self, seconds: float) -> None:
        """Move time forward by `seconds`, as if the code under test had taken that long.

        Raises:
            TypeError: `seconds` is not a number.
            ValueError: `seconds` is negative or not finite.
        """
        self._elapsed_ns += round(checked_seconds("seconds", seconds) * _NS)


def _numbers(randoms: object) -> Iterator[float]:
    if isinstance(randoms, random.Random):
        return iter(randoms.random, None)
    if isinstance(randoms, (int, float)) and not isinstance(randoms, bool):
        return itertools.repeat(_checked_random(float(randoms)))
    if not isinstance(randoms, Iterable) or isinstance(randoms, (str, bytes)):
        raise TypeError(f"randoms must be a number, numbers or a random.Random, not {type(randoms).__name__}")
    return iter(cast("Iterable[float]", randoms))


def _checked_random(value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"randoms must be in [0, 1), not {value}")
    return value
