"""Finds the pauses of a run, and the time without them: a log of several nights is mostly pauses.

Parts of equal length would have all calls of a night in one of them. Knows nothing of what happened in a run.

Used by ``review._cells`` and ``review._compare``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from otel_connector.review._load import Calls

_PAUSE = 0.02  # share of the rest of a run, from which a gap between two calls is a pause
_GAPS = 20  # times the mean time between two calls of this rest, which a pause has at least
_MOST = 0.5  # share of a run, from which its pauses are left out
_MOST_PAUSES = 200


def pauses(calls: Calls) -> list[tuple[int, int]]:
    """Return the periods without a call, if they are most of the run, such as the days between nights.

    Each is the microseconds since 1970 of the call before it, and of the call after it less one.
    """
    gaps = calls.rows(
        f"""WITH seconds AS (
            SELECT min(epoch_us(t)) AS first, max(epoch_us(t)) AS last, count(*) AS number FROM calls_compact
            GROUP BY epoch_us(t) // 1000000
        ), gaps AS (
            SELECT last AS low, lead(first) OVER (ORDER BY first) - 1 AS high,
                max(last) OVER () - min(first) OVER () AS length, sum(number) OVER () AS number
            FROM seconds
        )
        SELECT * FROM gaps WHERE high - low > 1000000 ORDER BY low - high, low LIMIT {_MOST_PAUSES}"""
    )
    if not gaps:
        return []
    found, (*_, length, number) = list[tuple[int, int]](), gaps[0]
    left, least = length, max(_PAUSE, _GAPS / number)
    for low, high, *_ in gaps:
        if high - low >= least * left:
            found.append((low, high))
            left -= high - low
    return sorted(found) if left <= (1 - _MOST) * length else []


def removed(periods: Sequence[tuple[int, int]]) -> str:
    """Return SQL for the microseconds of periods before the time of a call."""
    # BIGINT: the type of a literal below 2**31 is INT32, for which the sum is too large
    parts = (f"if(t > make_timestamp({high}), {high - low}, 0)::BIGINT" for low, high in periods)
    return f"({' + '.join(parts) or 0})"


@dataclass(frozen=True, slots=True)
class Axis:
    """Slices of a run of equal length, without its pauses.

    Attributes:
        first: The start of the run, in microseconds since 1970.
        width: The length of a slice, in microseconds.
        pauses: The pauses.
    """

    first: int
    width: int
    pauses: list[tuple[int, int]]

    @property
    def number(self) -> str:
        """The number of the slice of a call, as SQL."""
        return f"(epoch_us(t) - {removed(self.pauses)} - {self.first}) // {self.width}"

    def start_of(self, number: int) -> int:
        """Return where a slice begins, in microseconds since 1970."""
        time = self.first + number * self.width
        for low, high in self.pauses:
            time += high - low if time > low else 0
        return time


def axis_of(calls: Calls, first: int, last: int, slices: int) -> Axis:
    """Return the slices of a run, from its first call to its last, in microseconds since 1970."""
    found = pauses(calls)
    length = last - first - sum(high - low for low, high in found)
    return Axis(first, length // slices + 1, found)
