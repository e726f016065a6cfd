"""Finds failures: outages, places that are down in the whole run, and the failures of the rest.

`_anomalies` finds where and when with batches, and `_described` the figures; this module decides what matters. Does not
know how findings are written.

Used by ``review._compared_events``, ``review._findings`` and ``review._judge``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from otel_connector.review._anomalies import Anomaly, Threshold, anomalies
from otel_connector.review._cells import Cells
from otel_connector.review._described import (
    ALL,
    PROJECT,
    Search,
    affected_places,
    condition_of,
    described,
    hosts_of,
    parts_of,
    period_of,
    place_of,
    places_down,
    stretches_of,
    surprise,
    with_figures,
)
from otel_connector.review._load import Calls
from otel_connector.review._verdict import Finding

_FAILED = Threshold(odds=2, share=1e-4, least=4, whole=True)
_THROUGHOUT = 0.01  # share of failures that belong to no stretch and no place, above which they are a finding
_FEWEST_FAILED, _CHANCE = 5, 0.1  # of so many, and the probability of so many if the share is no larger
_SURELY = 0.01  # probability that failures are so close together by chance, below which they have a stretch
_DOWN = 0.9  # share of the calls of a place that failed in the whole run, from which this is an outage


def outages(calls: Calls, parts: Cells) -> tuple[Finding, ...]:
    """Return the findings about failures in a part of the run, or of nearly all calls of it, the largest first."""
    found = failures(Search(calls, parts))
    shown = (each for each in found if each.stretches or each.events >= _DOWN * each.calls)
    return tuple(sorted(shown, key=lambda each: -each.weight))


def failures(run: Search) -> Iterator[Finding]:
    """Yield the findings about failures: those in stretches and at places, and those of the rest of the run."""
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
