"""Finds what happened in a run: the findings of a verdict.

`_anomalies` finds where and when with batches, and `_described` the figures; this module decides what matters. Does not
know how findings are written.

Used by ``review._compared_events`` and ``review._judge``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from otel_connector.review._anomalies import Anomaly, Threshold, anomalies, overlap
from otel_connector.review._cells import Cells
from otel_connector.review._described import (
    ALL,
    PROJECT,
    Edges,
    Search,
    affected_places,
    condition_of,
    described,
    ends,
    example_of,
    hosts_of,
    lasting,
    number_of,
    parts_of,
    period_of,
    place_of,
    places_down,
    stretches_of,
    surprise,
    with_figures,
)
from otel_connector.review._load import Calls
from otel_connector.review._slow_places import SLOW, slow_places
from otel_connector.review._verdict import Finding, FindingKind

FEWEST = 30
"""The fewest calls of a run whose parts are compared."""

_FAILED = Threshold(odds=2, share=1e-4, least=4, whole=True)
_LONG = Threshold(odds=1.3, share=2e-3, least=10)
_TAIL = Threshold(odds=4, share=1e-3, least=5, whole=True)
_LARGE = Threshold(odds=1.5, share=0.01, least=10)
_SAME = Threshold(odds=5, share=2e-3, least=20)

_SLOWER = 1.15  # times the median elsewhere, from which a stretch is slower
_EDGE = 10  # part of a stretch at its start, and at its end
_MUCH_SLOWER = 2.5  # the same for a comparison: three times, less what a median of few calls may differ
_LONGER_TAIL = 3.0  # times the p99 elsewhere
_LARGER = 1.5  # times the median size elsewhere
_THROUGHOUT = 0.01  # share of failures that belong to no stretch and no place, above which they are a finding
_FEWEST_FAILED, _CHANCE = 5, 0.1  # of so many, and the probability of so many if the share is no larger
_SURELY = 0.01  # probability that failures are so close together by chance, below which they have a stretch
_DOWN = 0.9  # share of the calls of a place that failed in the whole run, from which this is an outage
_QUARTERS = 4
_GROWS = 1.15  # times the quarter before

_OF_TIME = 0.5  # a second that a run took longer weighs half as much as a failed call
_LEAST_WEIGHT = 0.01
_MOSTLY = 0.2  # share of the bodies of a stretch that have the same size


def outages(calls: Calls, parts: Cells) -> tuple[Finding, ...]:
    """Return the findings about failures in a part of the run, or of nearly all calls of it, the largest first."""
    found = _failures(Search(calls, parts))
    shown = (each for each in found if each.stretches or each.events >= _DOWN * each.calls)
    return tuple(sorted(shown, key=lambda each: -each.weight))


def slow_stretches(calls: Calls, parts: Cells) -> tuple[Finding, ...]:
    """Return the findings about durations that are suddenly much longer in a part of the run, the largest first."""
    run = Search(calls, parts)
    found = _slower(run, anomalies(parts, "long", _LONG), _MUCH_SLOWER)
    return tuple(sorted((each for each in found if _is_sudden(run, each)), key=lambda each: -each.weight))


def _is_sudden(run: Search, found: Finding) -> bool:
    """Return whether half of a change of durations, in orders of magnitude, is at the edges of the stretches.

    Slow drifts, which most runs have, have stretches as well.
    """
    inside, outside = list[Edges](), list[Edges]()
    for low, high in map(ends, found.stretches):
        width = (high - low) // _EDGE
        inside += [(low, low + width), (high - width, high)]
        outside += [(low - width, low - 1), (high + 1, high + width)]
    median = "quantile_cont(delta_t, 0.5) FILTER (WHERE {})".format
    ((slow, usual),) = run.rows(
        f"{median(period_of(inside))}, coalesce({median(period_of(outside))}, {found.baseline})",
        f"success AND {condition_of(replace(found, stretches=()))}",
    )
    return bool((slow / usual) ** 2 >= found.figure / found.baseline)


def findings(calls: Calls, parts: Cells) -> list[Finding]:
    """Return the findings about failures, durations and sizes of a run, from its cells."""
    run = Search(calls, parts)
    slow = list(_slow(run))
    of_slow = {name for each in slow for name in each.names}
    same = {
        size: found for i, size in enumerate(run.cells.sizes) if (found := anomalies(run.cells, f"size {i}", _SAME))
    }
    large, long = anomalies(run.cells, "large", _LARGE), anomalies(run.cells, "long", _LONG)
    known = [each for found in same.values() for each in found]
    tail = [each for each in anomalies(run.cells, "tail", _TAIL) if not of_slow & set(each.scope.names)]
    # Of few calls, only the tail may be sure; if half of a stretch is in it, its median is as well
    sure = [each for each in _apart(tail, long) if each.shares and each.shares[1] >= 1 / 2]
    slower = [*_slower(run, _apart(long, large)), *_slower(run, _apart(sure, large), event="tail")]
    return [
        *_failures(run),
        *(each for each in slow if not any(_is_only_then(each, other) for other in slower)),
        *(each for size, found in same.items() for each in _same_size(run, size, found)),
        *_larger(run, _apart(large, known)),
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


def _failures(run: Search) -> Iterator[Finding]:
    # A class may be unusual although all failures together are not
    events_of = ["failed", *(f"class {number}" for number, _ in enumerate(run.cells.classes))]
    searched = ((event, anomalies(run.cells, event, _FAILED) or _down(run, event)) for event in events_of)
    event, unusual = next((pair for pair in searched if pair[1]), ("failed", list[Anomaly]()))
    condition, one_class = run.cells.conditions[event], event != "failed"
    ranged = [_widened(run, condition, each, unusual) for each in unusual if each.ranges]
    found = _without_parts(run, condition, [described(run, "failures", event, each) for each in ranged])
    stretches = _any(found)
    whole = [each for each in unusual if not each.ranges]
    whole = _with_places_down(run, condition, f"NOT ({stretches})", whole) if unusual else []
    places = [described(run, "failures", event, each, apart=stretches) for each in whole]
    found = _without_parts(run, condition, [*found, *(each for each in places if each.events >= _FAILED.least)])
    inside = _any(found)
    ((calls, events),) = run.rows(f"count(*), count_if({condition})", f"NOT ({inside})")
    if found:
        # Of one class, a finding leaves out the others: they are a finding of their own
        yield from _rest(run, f"({inside}) AND NOT success AND {condition}" if one_class else inside, one_class)
    elif _are_many(events, calls):
        yield _alone(run)
    yield from (replace(each, other_calls=calls, other_events=events, one_class=one_class) for each in found)


def _rest(run: Search, apart: str, one_class: bool) -> Iterator[Finding]:
    """Yield the failures for which `apart` is false: those at places that have more than others, then the rest."""
    is_whole = one_class  # calls of the class were left out, and no places
    while True:
        ((calls, events),) = run.rows("count(*), count_if(NOT success)", f"NOT ({apart})")
        if not _are_many(events, run.cells.calls if one_class else calls):
            return
        found = _throughout(run, apart)
        if not found.by:
            yield replace(found, calls=run.cells.calls, rest=False) if is_whole else found
            return
        yield replace(found, other_calls=found.beside_calls, other_events=found.beside_events)
        apart, is_whole = f"{apart} OR {condition_of(found)}", False


def _are_many(events: int, calls: int) -> bool:
    """Return whether failures are more than the few that belong to no finding."""
    is_more = events >= max(_THROUGHOUT * calls, _FEWEST_FAILED)
    return is_more and surprise(calls, events, _THROUGHOUT) > -math.log(_CHANCE)


def _throughout(run: Search, apart: str = "FALSE") -> Finding:
    """Return the failures of a whole run for which `apart` is false, at the places that have them."""
    scope = affected_places(run, "failed", apart=apart)
    return with_figures(
        run, Finding(kind="failures", weight=0.0, by=scope.by, names=scope.names), "failed", [], apart=apart
    )


def _alone(run: Search) -> Finding:
    """Return the failures of a run as one finding: at the places that have them, and from the first one to the last.

    It is about the whole run if their times may be spread over it: k of them, of which any call is one with the same
    probability, are in a part w of the calls with the probability k w^(k-1) - (k-1) w^k (the range of a uniform sample:
    H. A. David and H. N. Nagaraja, Order Statistics, 2003, section 2.3).
    """
    found, edges = _throughout(run), run.cells.edges
    name, number = found.classes[0]
    # A few failures of other classes, which are at any time, do not hide when those of one class were
    is_one = 0 < found.events - number < _FEWEST_FAILED
    of_class = (f"class {i}" for i, each in enumerate(run.cells.classes) if is_one and each == name)
    for event in ("failed", *of_class):
        condition, whole = run.cells.conditions[event], [(edges[0], edges[-1] - 1)]
        _, (stretch,) = stretches_of(run, condition, place_of(found), whole)
        part, k = stretch.calls / found.calls, stretch.events
        if k * part ** (k - 1) - (k - 1) * part**k < _SURELY:
            ((all_events,),) = run.rows("count(*)", condition)
            return replace(
                with_figures(run, found, event, whole),
                one_class=event != "failed",
                other_calls=run.cells.calls - stretch.calls,
                other_events=all_events - stretch.events,
            )
    failed = sum(each.failed for each in run.cells.places.values())
    return replace(found, other_calls=run.cells.calls - found.calls, other_events=failed - found.events)


def failures_of_few(calls: Calls) -> Iterator[Finding]:
    """Yield the failures of a log that has too few calls to compare its parts: from the first one to the last."""
    run = Search(calls, parts_of(calls, brief=True))
    hosts = tuple(sorted({host for (host, _), totals in run.cells.places.items() if totals.failed}))
    whole = [(run.cells.edges[0], run.cells.edges[-1] - 1)]
    found = with_figures(run, Finding(kind="failures", weight=0.0, by="host", names=hosts), "failed", whole)
    yield replace(found, other_calls=run.cells.calls - found.calls)


def _down(run: Search, event: str) -> list[Anomaly]:
    """Return the places that are down in the whole run: together they are unusual, if not alone."""
    if event != "failed" or sum(each.failed for each in run.cells.places.values()) < _FAILED.least:
        return []
    scope = places_down(run, run.cells.conditions[event], "TRUE")
    return [Anomaly(scope=scope)] if scope.by else []


def _widened(run: Search, condition: str, anomaly: Anomaly, unusual: Sequence[Anomaly]) -> Anomaly:
    """Return an anomaly with all places that are down in its stretches: one with few calls is not found alone."""
    edges, scope = run.cells.edges, anomaly.scope
    when = period_of([(edges[first], edges[end] - 1) for first, end in anomaly.ranges])
    down = places_down(run, condition, when) if scope.by else ALL
    of_others = {host for each in unusual if each.ranges and each is not anomaly for host in hosts_of(each.scope.names)}
    is_wider = down.by == scope.by and set(scope.names) < set(down.names) and not hosts_of(down.names) & of_others
    return replace(anomaly, scope=down) if is_wider else anomaly


def _with_places_down(run: Search, condition: str, when: str, unusual: list[Anomaly]) -> list[Anomaly]:
    """Return the anomalies of the whole run. The places that are down are one of them."""
    down = places_down(run, condition, when)
    others = [each for each in unusual if not {*each.scope.names, *hosts_of(each.scope.names)} & set(down.names)]
    is_part = any(each.scope.by == "host" and hosts_of(each.scope.names) & hosts_of(down.names) for each in others)
    return unusual if is_part or not down.by else [Anomaly(scope=down), *others]


def _without_parts(run: Search, condition: str, found: Sequence[Finding]) -> list[Finding]:
    """Return the findings without those whose failures belong to one about a project, which is at several hosts."""
    kept = list[Finding]()
    for each in sorted(found, key=lambda each: each.by != PROJECT):
        known = _any([other for other in kept if other.by == PROJECT])
        left = f"{condition_of(each)} AND {condition} AND NOT ({known})"
        if known == "FALSE" or run.rows("count(*)", left)[0][0] >= _FAILED.least:
            kept.append(each)
    return kept


def _any(found: Sequence[Finding]) -> str:
    """Return the condition for the calls of some findings."""
    return " OR ".join(map(condition_of, found)) or "FALSE"


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
    if value is None or baseline is None or value < least * baseline:
        return None
    additional = max(seconds - found.calls * mean, 0.0) / run.cells.seconds if run.cells.seconds else 0.0
    return replace(
        found, figure=value, baseline=baseline, other_calls=calls, other_events=events, weight=additional * _OF_TIME
    )


def _slower(run: Search, found: Sequence[Anomaly], least: float = _SLOWER, event: str = "long") -> Iterator[Finding]:
    figure = "quantile_cont(delta_t, 0.5)"
    return filter(None, (_compared(run, "slower", event, each, figure, least=least) for each in found))


def _tails(run: Search, found: Sequence[Anomaly]) -> Iterator[Finding]:
    figure = "quantile_cont(delta_t, 0.99)"
    return filter(None, (_compared(run, "tail", "tail", each, figure, least=_LONGER_TAIL) for each in found))


def _larger(run: Search, found: Sequence[Anomaly]) -> Iterator[Finding]:
    edges, median = run.cells.edges, "quantile_cont(response_size, 0.5)"
    width = (edges[-1] - edges[0]) // _QUARTERS + 1
    for finding in filter(
        None, (_compared(run, "larger bodies", "large", each, median, least=_LARGER) for each in found[:1])
    ):
        quarters = run.rows(
            f"(epoch_us(t) - {edges[0]}) // {width}, {median}",
            f"{place_of(finding)} AND success",
            "GROUP BY 1 ORDER BY 1",
        )
        medians = tuple(float(size) for _, size in quarters)
        grow = len(medians) == _QUARTERS and all(b >= _GROWS * a for a, b in pairwise(medians))
        of_growth: dict[str, Any] = {"quarters": medians, "stretches": ()} if grow else {}
        yield replace(finding, weight=max(finding.weight, _LEAST_WEIGHT), **of_growth)


def _same_size(run: Search, size: int, found: Sequence[Anomaly]) -> Iterator[Finding]:
    event = f"size {run.cells.sizes.index(size)}"
    same = [described(run, "same size", event, each) for each in found]
    for finding in (each for each in same if each.events >= _MOSTLY * each.calls):
        place = place_of(finding)
        ((low, high, calls, events),) = run.rows(
            f"min(response_size), max(response_size), count(*), count(*) FILTER (WHERE response_size = {size})",
            f"{place} AND success AND NOT {condition_of(finding)}",
        )
        yield replace(finding, figure=float(size), sizes=(low or 0, high or 0), other_calls=calls, other_events=events)


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
