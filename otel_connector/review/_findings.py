"""Finds what happened in a run, as its failures (`_failures`), durations and sizes show it: the findings of a verdict.

`_anomalies` finds where and when with batches, and `_described` the figures; this module decides what matters. Does not
know how findings are written.

Used by ``review._compared_events`` and ``review._judge``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from otel_connector.review._anomalies import Anomaly, Threshold, anomalies, overlap
from otel_connector.review._cells import Cells
from otel_connector.review._described import (
    Edges,
    Search,
    condition_of,
    described,
    ends,
    example_of,
    hosts_of,
    lasting,
    number_of,
    period_of,
    place_of,
)
from otel_connector.review._failures import failures
from otel_connector.review._load import Calls
from otel_connector.review._slow_places import SLOW, slow_places
from otel_connector.review._verdict import Finding, FindingKind

FEWEST = 30
"""The fewest calls of a run whose parts are compared."""

_LONG = Threshold(odds=1.3, share=2e-3, least=10)
_TAIL = Threshold(odds=4, share=1e-3, least=5, whole=True)
_LARGE = Threshold(odds=1.5, share=0.01, least=10)
_SAME = Threshold(odds=5, share=2e-3, least=20)

_SLOWER = 1.15  # times the median elsewhere, from which a stretch is slower
_EDGE = 10  # part of a stretch at its start, and at its end
_MUCH_SLOWER = 2.5  # the same for a comparison: three times, less what a median of few calls may differ
_LONGER_TAIL = 3.0  # times the p99 elsewhere
_LARGER = 1.5  # times the median size elsewhere
_SIZE, _DURATION = "quantile_cont(response_size, 0.5)", "quantile_cont(delta_t, 0.5)"
_QUARTERS = 4
_GROWS = 1.15  # times the quarter before

_OF_TIME = 0.5  # a second that a run took longer weighs half as much as a failed call
_LEAST_WEIGHT = 0.01
_MOSTLY = 0.2  # share of the bodies of a stretch that have the same size


def slow_stretches(calls: Calls, parts: Cells) -> tuple[Finding, ...]:
    """Return the findings about durations that are suddenly much longer in a part of the run, the largest first."""
    run = Search(calls, parts)
    found = _slower(run, anomalies(parts, "long", _LONG), _MUCH_SLOWER)
    return tuple(sorted((each for each in found if _is_sudden(run, each, _DURATION)), key=lambda each: -each.weight))


def _is_sudden(run: Search, found: Finding, figure: str) -> bool:
    """Return whether half of the change of a figure, in orders of magnitude, is at the edges of the stretches.

    Slow drifts, which most runs have, have stretches as well.
    """
    edges = run.cells.edges
    inside, outside = list[Edges](), [(edges[0] - 1, edges[0] - 1)]
    for low, high in map(ends, found.stretches):
        width = (high - low) // _EDGE
        if low - width > edges[0]:
            inside, outside = [*inside, (low, low + width)], [*outside, (low - width, low - 1)]
        if high + width < edges[-1]:
            inside, outside = [*inside, (high - width, high)], [*outside, (high + 1, high + width)]
    inside = inside or [*map(ends, found.stretches)]
    median = f"{figure} FILTER (WHERE {{}})".format
    ((here, there),) = run.rows(
        f"{median(period_of(inside))}, coalesce({median(period_of(outside))}, {found.baseline})",
        f"success AND {condition_of(replace(found, stretches=()))}",
    )
    return _times(here, there) ** 2 >= _times(found.figure, found.baseline)


def _times(one: float, other: float) -> float:
    """Return how many times as large one is as the other, which may be 0; or the other as the one."""
    low, high = sorted((one, other))
    return high / low if low else math.inf


def findings(calls: Calls, parts: Cells) -> list[Finding]:
    """Return the findings about failures, durations and sizes of a run, from its cells."""
    run = Search(calls, parts)
    slow = list(_slow(run))
    of_slow = {name for each in slow for name in each.names}
    same = [
        (each, found)
        for number, _ in enumerate(run.cells.sizes)
        for each in anomalies(run.cells, f"size {number}", _SAME)
        if (found := _same_size(run, number, each))
    ]
    large, long = anomalies(run.cells, "large", _LARGE), anomalies(run.cells, "long", _LONG)
    tail = [each for each in anomalies(run.cells, "tail", _TAIL) if not of_slow & set(each.scope.names)]
    # Of few calls, only the tail may be sure; if half of a stretch is in it, its median is as well
    sure = [each for each in _apart(tail, long) if each.shares and each.shares[1] >= 1 / 2]
    slower = [*_slower(run, _apart(long, large)), *_slower(run, _apart(sure, large), event="tail")]
    return [
        *failures(run),
        *(each for each in slow if not any(_is_only_then(each, other) for other in slower)),
        *(found for _, found in same),
        *_bodies(run, large, [each for each, _ in same]),
        *_without_echo(run, slower),
        *_tails(run, _apart(tail, [*long, *sure])),
    ]


def _is_only_then(slow: Finding, slower: Finding) -> bool:
    """Return whether places are slow in a part of the run only, which a finding of its own says."""
    return set(slow.names) <= set(slower.names) and slower.baseline < SLOW * slow.baseline


def _without_echo(run: Search, slower: Sequence[Finding]) -> Iterator[Finding]:
    """Yield the findings without those of all calls in which no place but the named ones was slower."""
    named = " AND ".join(f"NOT {place_of(each)}" for each in slower if each.by)
    for each in slower:
        if named and not each.by:
            inside = period_of([ends(stretch) for stretch in each.stretches])
            median = "quantile_cont(delta_t, 0.5) FILTER (WHERE {})".format
            ((value, baseline),) = run.rows(f"{median(inside)}, {median(f'NOT {inside}')}", f"success AND {named}")
            if value is None or baseline is None or value < _SLOWER * baseline:
                continue
        yield each


def _apart(found: Sequence[Anomaly], known: Sequence[Anomaly]) -> list[Anomaly]:
    """Return the anomalies that no known one explains, without stretches that one of its stretches explains.

    One explains another one if they have half of their batches in common.
    """
    apart, stretches = list[Anomaly](), [part for each in known for part in _parts(each)]
    for each in found:
        if not _explained(each, known):
            left = tuple(stretch for part in _parts(each) if not _explained(part, stretches) for stretch in part.ranges)
            if left or not each.ranges:
                apart.append(replace(each, ranges=left))
    return apart


def _parts(anomaly: Anomaly) -> list[Anomaly]:
    return [replace(anomaly, ranges=(stretch,)) for stretch in anomaly.ranges]


def _explained(each: Anomaly, known: Sequence[Anomaly]) -> bool:
    return any(overlap(each, other) >= 1 / 2 for other in known)


def _compared(
    run: Search, kind: FindingKind, event: str, anomaly: Anomaly, figure: str, *, least: float
) -> Finding | None:
    """Return a finding with a figure of its calls, and the same elsewhere; None if it is less than `least` times it.

    Elsewhere is the rest of the run at the same places; for a finding about the whole run, the other places.
    """
    found = described(run, kind, event, anomaly)
    inside = condition_of(found)
    population = place_of(found) if found.stretches else "TRUE"
    ((value, baseline, calls, events, seconds, mean),) = run.rows(
        f"{figure} FILTER (WHERE {inside}), {figure} FILTER (WHERE NOT ({inside})), count_if(NOT ({inside})), "
        f"count_if({run.cells.conditions[event]} AND NOT ({inside})), sum(delta_t) FILTER (WHERE {inside}), "
        f"avg(delta_t) FILTER (WHERE NOT ({inside}))",
        f"{population} AND success",
    )
    low, high = (value, baseline) if kind == "smaller bodies" else (baseline, value)
    if value is None or baseline is None or high < least * low:
        return None
    additional = max(seconds - found.calls * mean, 0.0) / run.cells.seconds if run.cells.seconds else 0.0
    return replace(
        found, figure=value, baseline=baseline, other_calls=calls, other_events=events, weight=additional * _OF_TIME
    )


def _slower(run: Search, found: Sequence[Anomaly], least: float = _SLOWER, event: str = "long") -> Iterator[Finding]:
    return filter(None, (_compared(run, "slower", event, each, _DURATION, least=least) for each in found))


def _tails(run: Search, found: Sequence[Anomaly]) -> Iterator[Finding]:
    figure = "quantile_cont(delta_t, 0.99)"
    return filter(None, (_compared(run, "tail", "tail", each, figure, least=_LONGER_TAIL) for each in found))


def _bodies(run: Search, large: Sequence[Anomaly], known: Sequence[Anomaly]) -> Iterator[Finding]:
    """Yield the findings about bodies that are larger or smaller for some time, or grow; none at hosts that are known.

    Where a part of the run has larger bodies, the rest has smaller ones: the shorter of the two is the finding.
    """
    larger, smaller = list(large[:1]), anomalies(run.cells, "small", _LARGE)[:1]
    if larger and smaller and _have_common_hosts(larger[0], smaller[0]):
        is_larger = len(larger[0].batches) <= len(smaller[0].batches)
        larger, smaller = larger * is_larger, smaller * (not is_larger)
    of_kinds: tuple[tuple[FindingKind, str, list[Anomaly]], ...]
    of_kinds = (("larger bodies", "large", larger), ("smaller bodies", "small", smaller))
    for kind, event, of_kind in of_kinds:
        for each in of_kind:
            is_known = any(_have_common_hosts(each, other) for other in known)
            if not is_known and (found := _compared(run, kind, event, each, _SIZE, least=_LARGER)):
                found = replace(found, weight=max(found.weight, _LEAST_WEIGHT))
                quarters = () if _is_sudden(run, found, _SIZE) else _growing(run, found)
                yield replace(found, kind="larger bodies", quarters=quarters, stretches=()) if quarters else found


def _have_common_hosts(one: Anomaly, other: Anomaly) -> bool:
    hosts = [hosts_of(each.scope.names) for each in (one, other)]
    return not all(hosts) or bool(hosts[0] & hosts[1])


def _growing(run: Search, found: Finding) -> tuple[float, ...]:
    """Return the median size of each quarter of the run at the place of a finding; nothing if it does not grow."""
    edges = run.cells.edges
    width = (edges[-1] - edges[0]) // _QUARTERS + 1
    rows = run.rows(
        f"(epoch_us(t) - {edges[0]}) // {width}, {_SIZE}", f"{place_of(found)} AND success", "GROUP BY 1 ORDER BY 1"
    )
    medians = tuple(float(size) for _, size in rows)
    return medians if len(medians) == _QUARTERS and all(b >= _GROWS * a for a, b in pairwise(medians)) else ()


def _same_size(run: Search, number: int, anomaly: Anomaly) -> Finding | None:
    """Return the finding about bodies of one of the most frequent sizes; None if they are few of a stretch."""
    size, finding = run.cells.sizes[number], described(run, "same size", f"size {number}", anomaly)
    if finding.events < _MOSTLY * finding.calls:
        return None
    ((low, high, calls, events),) = run.rows(
        f"min(response_size), max(response_size), count(*), count(*) FILTER (WHERE response_size = {size})",
        f"{place_of(finding)} AND success AND NOT {condition_of(finding)}",
    )
    return replace(finding, figure=float(size), sizes=(low or 0, high or 0), other_calls=calls, other_events=events)


def _slow(run: Search) -> Iterator[Finding]:
    """Yield the hosts or endpoints that take much of the time because they are slower than the others."""
    if found := slow_places(run.cells):
        excess, scope = found
        condition = place_of(scope)
        ((calls, seconds, p50, baseline),) = run.rows(
            f"count_if({condition}), sum(delta_t) FILTER (WHERE {condition}), quantile_cont(delta_t, 0.5) "
            f"FILTER (WHERE {condition}), quantile_cont(delta_t, 0.5) FILTER (WHERE NOT {condition})",
            "success",
        )
        yield Finding(
            kind="slow",
            weight=excess * _OF_TIME,
            by=scope.by,
            names=scope.names,
            others=number_of(run, scope.by) - len(scope.names),
            period=lasting(run, scope),
            calls=calls,
            events=calls,
            other_calls=run.cells.calls - calls,
            figure=p50,
            baseline=baseline,
            seconds=seconds,
            share_of_time=seconds / run.cells.seconds,
            example=example_of(run, f"{condition} AND success", slowest=True),
        )
