"""Virtual time and chosen chance, in the shape of the connector's `Clock`. Knows nothing of servers or HTTP."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
from collections.abc import Iterable, Iterator
from typing import cast

from otel_connector._arguments import checked_seconds
from otel_connector._clock import Clock

_NS = 1_000_000_000


class FakeClock(Clock):
    """A clock that moves only when somebody sleeps on it, and then at once.

    A sleep takes no real time: it yields to the event loop and moves virtual time to its end. Of several tasks asleep,
    the one due first wakes first, equal ones in the order they came, and time never goes back. The clock does not know
    what tasks that are not asleep on it are doing (a request over a real socket, say): it does not wait for them.
    To be used from one event loop at a time.

    Attributes:
        sleeps: Every delay asked for, in seconds, in the order of asking; yours to read and to clear.
    """

    def __init__(self, start: float = 1_700_000_000.0, randoms: float | Iterable[float] | random.Random = 0.5) -> None:
        """Make a clock that stands still at `start`.

        Args:
            start: Unix time in seconds, 0 or more. The monotonic clock starts at 0, whatever this is.
            randoms: What `random` returns: one number for ever, each of some numbers in turn, or the draws of a
                (seeded) `random.Random`. Numbers in [0, 1).

        Raises:
            TypeError: `start` is no number, or `randoms` none of the three.
            ValueError: `start` is negative or not finite, or `randoms` is a number outside [0, 1).
        """
        self.sleeps: list[float] = []
        self._start_ns = round(checked_seconds("start", start) * _NS)
        self._elapsed_ns = 0
        self._randoms = _draws(randoms)
        self._asleep: list[tuple[int, int]] = []
        self._tickets = itertools.count()

    def time_ns(self) -> int:
        """Unix time in virtual nanoseconds."""
        return self._start_ns + self._elapsed_ns

    def monotonic_ns(self) -> int:
        """Virtual nanoseconds since the clock was made."""
        return self._elapsed_ns

    async def sleep(self, delay: float) -> None:
        """Note `delay` in `sleeps` and return when virtual time has come that far; nothing is waited for.

        As with `asyncio.sleep`, a delay below 0 counts as 0. A cancelled sleep leaves time where it is.

        Args:
            delay: Seconds.

        Raises:
            ValueError: `delay` is infinite or NaN: such a sleep could never end.
        """
        if not math.isfinite(delay):
            raise ValueError(f"delay must be a finite number of seconds, not {delay}")
        self.sleeps.append(delay)
        due = self._elapsed_ns + max(0, round(delay * _NS))
        ticket = (due, next(self._tickets))
        heapq.heappush(self._asleep, ticket)
        try:
            await asyncio.sleep(0)
            while self._asleep[0] != ticket:  # noqa: ASYNC110 -- an event would bind the clock to one loop
                await asyncio.sleep(0)
            # `advance` may have carried time past this one's due time already.
            self._elapsed_ns = max(self._elapsed_ns, due)
        finally:
            self._asleep.remove(ticket)
            heapq.heapify(self._asleep)

    def random(self) -> float:
        """Return the next of `randoms`.

        Raises:
            RuntimeError: there is no further one.
            ValueError: it is not in [0, 1).
        """
        try:
            return _chance(next(self._randoms))
        except StopIteration:
            raise RuntimeError("randoms is exhausted: more random numbers were drawn than were given") from None

    def advance(self, seconds: float) -> None:
        """Move time forward by `seconds`, as if so much had passed in the code under test.

        Raises:
            TypeError: `seconds` is no number.
            ValueError: `seconds` is negative or not finite.
        """
        self._elapsed_ns += round(checked_seconds("seconds", seconds) * _NS)


def _draws(randoms: object) -> Iterator[float]:
    if isinstance(randoms, random.Random):
        return iter(randoms.random, None)
    if isinstance(randoms, (int, float)) and not isinstance(randoms, bool):
        return itertools.repeat(_chance(float(randoms)))
    if not isinstance(randoms, Iterable) or isinstance(randoms, (str, bytes)):
        raise TypeError(f"randoms must be a number, numbers or a random.Random, not {type(randoms).__name__}")
    return iter(cast("Iterable[float]", randoms))


def _chance(value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"randoms must be in [0, 1), not {value}")
    return value
