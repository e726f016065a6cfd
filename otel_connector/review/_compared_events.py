"""Finds what happened in one of two runs and not in the other: outages and slow stretches.

An outage of the second run is compared with one of the first run that is like it: the main error class of one of them
is in the other, and both were at the same host. An outage elsewhere is another one. Durations drift in many runs, so a
stretch is slow only if no part of the other run is nearly as slow. Knows nothing of statistics.

Used by ``review._compare``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from otel_connector.review._cells import Cells
from otel_connector.review._comparison import Outage
from otel_connector.review._described import condition_of, hosts_of, parts_of
from otel_connector.review._failures import outages
from otel_connector.review._findings import FEWEST, slow_stretches
from otel_connector.review._load import Calls
from otel_connector.review._noise import BATCHES
from otel_connector.review._verdict import Finding

_LARGER = 1.5  # times the share of the calls that failed in the outage of the other run, from which this one is worse
_NOTABLE = 0.1  # share of the failures of an outage, from which one of its classes is compared
_DEVIATIONS = 3  # so many standard deviations above that, a number of failures is no chance
_TWICE = 2.0  # times the median of the slowest batch of the other run, from which a stretch is slow
_FEWEST_PER_BATCH = 5  # calls, for this median


def events(before: Calls, after: Calls) -> Iterator[Outage]:
    """Yield the outages of both runs, then the stretches that are slow in one of them."""
    if min(len(before), len(after)) < FEWEST:
        return
    parts = [parts_of(run, brief=True) for run in (before, after)]
    yield from _matched(*(outages(run, of_run) for run, of_run in zip((before, after), parts, strict=True)))
    for found in slow_stretches(after, parts[1]):
        if _is_slow(found, parts[1], before):
            yield Outage(run="after", verdict="worse", finding=found)
    for found in slow_stretches(before, parts[0]):
        if _is_slow(found, parts[0], after):
            yield Outage(run="before", verdict="better", finding=found)


def _is_slow(found: Finding, parts: Cells, other: Calls) -> bool:
    """Return whether a stretch of a run is slow for the other run, too: twice as slow as any of its length there."""
    places = parts.places.values()
    length = (max(each.last for each in places) - min(each.first for each in places)) / 1e6
    if sum(each.seconds for each in found.stretches) * BATCHES < len(found.stretches) * length:
        return False  # the batches of the other run are too long to compare it with
    medians = other.rows(
        "SELECT quantile_cont(delta_t, 0.5) FROM calls_compact, (SELECT epoch_us(min(t)) AS first, "
        f"epoch_us(max(t)) AS last FROM calls_compact) WHERE success AND "
        f"{condition_of(dataclasses.replace(found, stretches=()))} "
        f"GROUP BY (epoch_us(t) - first) * {BATCHES} // (last - first + 1) HAVING count(*) >= {_FEWEST_PER_BATCH}"
    )
    return bool(medians) and found.figure >= _TWICE * max(median for (median,) in medians)


def _matched(before: Sequence[Finding], after: Sequence[Finding]) -> Iterator[Outage]:
    """Compare each outage of the second run, the largest first, with one of the first run that is like it."""
    left = list(before)
    for second in after:
        first = next((each for each in left if _is_alike(each, second)), None)
        is_known = first is not None and not _is_larger(second, first)
        yield Outage(run="after", verdict="in both runs" if is_known else "worse", finding=second)
        if first is not None:
            left.remove(first)
            yield Outage(run="before", verdict="better" if _is_larger(first, second) else "in both runs", finding=first)
    yield from (Outage(run="before", verdict="better", finding=each) for each in left)


def _is_alike(first: Finding, second: Finding) -> bool:
    """Return whether the main error class of an outage is in the other one, and both were at the same host."""
    classes = [dict(each.classes) for each in (first, second)]
    is_same = next(iter(classes[0])) in classes[1] or next(iter(classes[1])) in classes[0]
    return is_same and (not first.names or bool(hosts_of(first.names) & hosts_of(second.names)))


def _is_larger(one: Finding, other: Finding) -> bool:
    """Return whether an outage has clearly more failures than another one, in all or of one of its error classes."""
    if one.weight > _LARGER * other.weight:
        return True
    listed = dict(other.classes)
    unlisted = min(listed.values()) if sum(listed.values()) < other.events else 0  # at most so many of each
    longer = (other.weight / other.events) / (one.weight / one.events)  # times the calls of the other run
    for name, number in one.classes:
        most = _LARGER * longer * listed.get(name, unlisted)
        if number > _NOTABLE * one.events and number - most > _DEVIATIONS * math.sqrt(most + 1):
            return True
    return False
