"""Finds the hosts and endpoints that are slower than the others and take much of the time.

Each is compared without itself: a figure of all calls would be its own if it has many of them. Several are compared
with the faster ones, because each would hide the others. Knows neither SQL nor how a finding is described.

Used by ``review._findings``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from otel_connector.review._anomalies import Selection
from otel_connector.review._cells import Cells, Location, LocationTotals

SLOW = 3.0
"""Times the median of the faster hosts or endpoints, and times their mean, from which one is slow."""

_TIME = 0.25  # share of all seconds
# The share that is enough if nearly all others are so much faster, and the fewest calls for such a median
_FAR_TIME, _NEARLY_ALL, _FEWEST_FAR = 0.03, 0.9, 8
_HOST, _ENDPOINT = 0, 1  # columns


def slow_places(cells: Cells) -> tuple[float, Selection] | None:
    """Return the slow hosts or endpoints with the largest excess of their time over their share of the calls, and it.

    Returns:
        None if there are none.
    """
    values = [_values(cells, column) for column in (_HOST, _ENDPOINT)]
    found = [each for column in (_HOST, _ENDPOINT) for each in _slow(cells, values, column)]
    return max(found, key=lambda each: each[0], default=None)


@dataclass(frozen=True)
class _Value:
    """A host or an endpoint, and its places with a success."""

    name: str
    places: dict[Location, LocationTotals]

    @cached_property
    def calls(self) -> int:
        return sum(each.calls for each in self.places.values())

    @cached_property
    def seconds(self) -> float:
        return sum(each.seconds for each in self.places.values())

    @cached_property
    def mean(self) -> float:
        """Of the successes: failures may take as long as a timeout."""
        return _mean([self])

    @cached_property
    def p50(self) -> float:
        return _percentile(self.places.values(), 1 / 2)

    def is_mostly_above(self, seconds: float) -> bool:
        """Return whether the medians of most of its places, with most of its calls, are at least so long."""
        above = [each for each in self.places.values() if (each.p50 or 0.0) >= seconds]
        return 2 * len(above) > len(self.places) and 2 * sum(each.calls for each in above) >= self.calls


def _values(cells: Cells, column: int) -> list[_Value]:
    """Return the hosts or endpoints, the slowest first."""
    places = defaultdict[str, dict[Location, LocationTotals]](dict)
    for place, totals in cells.places.items():
        if totals.p50:
            places[place[column]][place] = totals
    return sorted((_Value(name, each) for name, each in places.items()), key=lambda each: (-each.p50, each.name))


def _slow(cells: Cells, by_column: Sequence[list[_Value]], column: int) -> Iterator[tuple[float, Selection]]:
    values = by_column[column]
    for number, each in enumerate(values[:-1], 1):
        if each.seconds < _FAR_TIME * cells.seconds:
            continue
        slower, faster = values[: number - 1], values[number:]
        calls, mean = sum(one.calls for one in faster), _mean(faster)
        least = SLOW * (1 + each.calls**-0.5)  # figures of few calls are less certain
        is_far = each.calls >= _FEWEST_FAR and each.p50 >= least * _percentile(faster, _NEARLY_ALL)
        if is_far and number > len(faster) and sum(one.calls for one in [*slower, each]) > calls:
            continue  # more than half of all, by number and by calls: the others are fast
        together, others = ([*slower, each], faster) if is_far else ([each], [*slower, *faster])
        usual = _percentile(others, 1 / 2)
        needed = (_FAR_TIME if is_far else _TIME) * cells.seconds
        costly = [one for one in together if one.seconds >= needed and one.mean >= least * mean]
        if each.p50 >= SLOW * usual:
            yield from _named(cells, by_column, column, [(one, math.sqrt(one.p50 * usual)) for one in costly])


def _named(
    cells: Cells, by_column: Sequence[list[_Value]], column: int, slow: Sequence[tuple[_Value, float]]
) -> Iterator[tuple[float, Selection]]:
    """Yield slow hosts or endpoints: of an endpoint its host, if most endpoints of this host are slow.

    Args:
        cells: The cells of the run.
        by_column: All hosts, and all endpoints.
        column: The column of the slow ones.
        slow: Each slow one, and the median from which a part of it is slow.
    """
    hosts = {each.name: each for each in by_column[_HOST]}
    named: tuple[dict[str, _Value], dict[str, _Value]] = ({}, {})
    for value, least in slow:
        host = hosts[next(iter(value.places))[_HOST]]
        if column == _ENDPOINT and len(hosts) > 1 and host.is_mostly_above(least):
            named[_HOST][host.name] = host
        elif value.is_mostly_above(least):
            named[column][value.name] = value
    for by, found in zip(cells.columns, named, strict=True):
        if found:
            shares = (each.seconds / cells.seconds - each.calls / cells.calls for each in found.values())
            yield sum(shares), Selection(by=by, names=tuple(found), places=frozenset())


def _mean(found: Iterable[_Value]) -> float:
    """Return the mean duration of the successes, of which each has one."""
    places = [totals for each in found for totals in each.places.values()]
    return sum(each.success_seconds for each in places) / sum(each.calls - each.failed for each in places)


def _percentile(found: Iterable[_Value | LocationTotals], level: float) -> float:
    """Return a percentile of median durations, weighted by the calls."""
    found = sorted(found, key=lambda each: each.p50 or 0.0)
    up_to = accumulate(each.calls for each in found)
    needed = sum(each.calls for each in found) * level
    return next(each.p50 or 0.0 for each, calls in zip(found, up_to, strict=True) if calls >= needed)
