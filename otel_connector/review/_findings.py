"""Finds what happened in a run, and describes it with exact figures: the findings of a verdict.

`_anomalies` finds where and when with batches; here their edges are refined, and each finding is counted by statements
about its own calls. Does not know how findings are written.

Used by ``review._compare``, ``review._judge`` and ``review._report``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from otel_connector.review._anomalies import Anomaly, Selection, Threshold, anomalies, overlap
from otel_connector.review._cells import Cells, LocationTotals, cells, of_all_calls
from otel_connector.review._filters import quoted
from otel_connector.review._load import Calls
from otel_connector.review._stretches import find
from otel_connector.review._summary import ListedCall
from otel_connector.review._verdict import Finding, FindingKind, Stretch

FEWEST = 30
"""The fewest calls of a run whose parts are compared."""

_FAILED = Threshold(odds=2, share=1e-4, least=5, whole=True)
_LONG = Threshold(odds=1.3, share=2e-3, least=10)
_TAIL = Threshold(odds=4, share=1e-3, least=5, whole=True)
_LARGE = Threshold(odds=1.5, share=0.01, least=10)
_SAME = Threshold(odds=5, share=2e-3, least=20)

_SLOW = 4.0  # times the median of the others, from which a host or endpoint is slow
_SLOW_TIME, _SLOW_EXCESS = 0.25, 3.0  # its share of all seconds, and of its share of the calls
# The share that is enough if nearly all calls to the others are so much faster, and the fewest calls for such a median
_FAR_TIME, _NEARLY_ALL, _FEWEST_FAR = 0.03, 0.9, 8
_SLOWER = 1.15  # times the median elsewhere, from which a stretch is slower
_MUCH_SLOWER = 2.5  # the same for a comparison: three times, less what a median of few calls may differ
_LONGER_TAIL = 3.0  # times the p99 elsewhere
_LARGER = 1.5  # times the median size elsewhere
_THROUGHOUT = 0.01  # share of failures that belong to no stretch and no place, from which they are a finding
_DOWN = 0.9  # share of the calls of a place that failed in the whole run, from which this is an outage
_AFFECTED = 0.5  # times the rate of the stretch, from which a place takes part in it
_CHANCE = 0.01  # probability that one of the places of a stretch has so few failures by chance, if it is spared
_SLICES = 512  # in which the edges of a stretch are searched
_MOST_CLASSES = 4
_QUARTERS = 4
_GROWS = 1.15  # times the quarter before

_OF_TIME = 0.5  # a second that a run took longer weighs half as much as a failed call
_LEAST_WEIGHT = 0.01
_MOSTLY = 0.2  # share of the bodies of a stretch that have the same size

_EVENTS: dict[FindingKind, str] = {"slower": "long", "tail": "tail", "larger bodies": "large"}
_EPOCH = datetime.fromisoformat("1970-01-01")
_Edges = tuple[int, int]  # the first and the last microsecond of a stretch, since 1970
_ALL = Selection(places=frozenset())  # of a finding, which has names only
_FIELDS = ", ".join(each.name for each in fields(ListedCall))


@dataclass(frozen=True, slots=True)
class _Search:
    """The calls of a run and their cells."""

    calls: Calls
    cells: Cells

    def rows(self, columns: str, condition: str, rest: str = "") -> list[tuple[Any, ...]]:
        needs_places = "places." in columns + condition  # the join takes longer than the rest
        source = self.cells.source if needs_places else "calls_compact"
        return self.calls.rows(f"SELECT {columns} FROM {source} WHERE {condition} {rest}")


COLUMNS = ("host", "endpoint")
"""The columns that identify a place in which something can be unusual, the widest place first."""


def parts_of(calls: Calls, *, brief: bool = False) -> Cells:
    """Return the cells of a run."""
    return cells(calls, COLUMNS, brief=brief)


def outages(calls: Calls, parts: Cells) -> tuple[Finding, ...]:
    """Return the findings about failures in a part of the run, or of nearly all calls of it, the largest first."""
    found = _failures(_Search(calls, parts), throughout=True)
    shown = (each for each in found if each.stretches or each.events >= _DOWN * each.calls)
    return tuple(sorted(shown, key=lambda each: -each.weight))


def slow_stretches(calls: Calls, parts: Cells) -> tuple[Finding, ...]:
    """Return the findings about durations that are much longer in a part of the run, the largest first."""
    found = _slower(_Search(calls, parts), anomalies(parts, "long", _LONG), _MUCH_SLOWER)
    return tuple(sorted(found, key=lambda each: -each.weight))


def condition_of(finding: Finding) -> str:
    """Return the condition in SQL for the calls of a finding."""
    place = _place(Selection(by=finding.by, names=finding.names, places=frozenset()))
    when = _period([ends(each) for each in finding.stretches]) if finding.stretches else "TRUE"
    return f"({place} AND {when})"


def findings(calls: Calls, parts: Cells) -> list[Finding]:
    """Return the findings about failures, durations and sizes of a run, from its cells."""
    run = _Search(calls, parts)
    slow = list(_slow(run))
    of_slow = {name for each in slow for name in each.names}
    same = {
        size: found for i, size in enumerate(run.cells.sizes) if (found := anomalies(run.cells, f"size {i}", _SAME))
    }
    large, long = anomalies(run.cells, "large", _LARGE), anomalies(run.cells, "long", _LONG)
    known = [each for found in same.values() for each in found]
    tail = [each for each in anomalies(run.cells, "tail", _TAIL) if not of_slow & set(each.scope.names)]
    return [
        *_failures(run, throughout=True),
        *slow,
        *(each for size, found in same.items() for each in _same_size(run, size, found)),
        *_larger(run, _apart(large, known)),
        *_slower(run, _apart(long, large)),
        *_tails(run, _apart(tail, long)),
    ]


def _apart(found: Sequence[Anomaly], known: Sequence[Anomaly]) -> list[Anomaly]:
    """Return the anomalies that no known one explains: they have fewer than half of their batches in common."""
    return [each for each in found if not any(overlap(each, other) >= 1 / 2 for other in known)]


def _failures(run: _Search, *, throughout: bool) -> Iterator[Finding]:
    # A class may be unusual although all failures together are not
    events_of = ["failed", *(f"class {number}" for number, _ in enumerate(run.cells.classes))]
    searched = ((event, anomalies(run.cells, event, _FAILED)) for event in events_of)
    event, found = next((pair for pair in searched if pair[1]), ("failed", list[Anomaly]()))
    condition, one_class = run.cells.conditions[event], event != "failed"
    described = [_described(run, "failures", event, each) for each in found if each.ranges]
    stretches = _any(described)
    places = [_described(run, "failures", event, each, apart=stretches) for each in found if not each.ranges]
    described += [each for each in places if each.events >= _FAILED.least]
    inside = _any(described)
    ((calls, events),) = run.rows(f"count(*), count_if({condition})", f"NOT ({inside})")
    # Of one class, a finding leaves out the others: they are a finding of their own
    apart = f"({inside}) AND NOT success AND {condition}" if one_class else inside
    left = run.rows("count_if(NOT success)", f"NOT ({apart})")[0][0] if one_class else events
    if throughout and left >= max(_THROUGHOUT * calls, _FAILED.least):
        whole = _described(run, "failures", "failed", Anomaly(scope=_ALL), apart=apart)
        yield replace(whole, calls=run.cells.calls, rest=False) if one_class else whole
    yield from (replace(each, other_calls=calls, other_events=events, one_class=one_class) for each in described)


def _any(found: Sequence[Finding]) -> str:
    """Return the condition for the calls of some findings."""
    return " OR ".join(map(condition_of, found)) or "FALSE"


def _described(run: _Search, kind: FindingKind, event: str, anomaly: Anomaly, *, apart: str = "FALSE") -> Finding:
    """Return a finding with its stretches, counts, classes and an example, of the calls for which `apart` is false."""
    condition, edges = run.cells.conditions[event], _edges(run, event, anomaly)
    scope = anomaly.scope if anomaly.scope.by or not edges else _affected(run, condition, edges)
    population = "TRUE" if of_all_calls(event) else "success"
    place = _place(scope)
    edges, stretches = _stretches(run, condition, f"{place} AND {population}", edges)
    when = _period(edges) if stretches else f"NOT ({apart})"
    ((calls, events, seconds),) = run.rows(
        f"count(*), count_if({condition}), coalesce(sum(delta_t) FILTER (WHERE {condition}), 0)",
        f"{place} AND {population} AND {when}",
    )
    beside = run.rows(f"count(*), count(*) FILTER (WHERE {condition})", f"{population} AND {when} AND NOT {place}")[0]
    classes = run.rows(
        "error_type, count(*)",
        f"{place} AND {when} AND NOT success AND {condition}",
        f"GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {_MOST_CLASSES}",
    )
    of_class = f" AND error_type = {quoted(classes[0][0])}" if classes else ""
    ((left_out,),) = run.rows("count(*)", f"{place} AND ({apart})") if apart != "FALSE" else [(0,)]
    return Finding(
        kind=kind,
        weight=events / run.cells.calls,
        rest=left_out > 0,
        by=scope.by,
        names=scope.names,
        others=len(_values(run, scope.by)) - len(scope.names) if scope.by else 0,
        stretches=stretches,
        calls=calls,
        events=events,
        beside_calls=beside[0],
        beside_events=beside[1],
        seconds=seconds,
        share_of_time=seconds / run.cells.seconds if run.cells.seconds else 0.0,
        classes=tuple(classes),
        example=_example(run, f"{place} AND {when} AND {condition}{of_class}", slowest=not of_all_calls(event)),
    )


def _example(run: _Search, condition: str, *, slowest: bool) -> ListedCall | None:
    """Return the first or the slowest call of those with texts."""
    order = "delta_t DESC, t, call_id" if slowest else "t, call_id"
    rows = run.rows(_FIELDS, f"({condition}) AND call_id IS NOT NULL", f"ORDER BY {order} LIMIT 1")
    names = (each.name for each in fields(ListedCall))
    return ListedCall(**dict(zip(names, rows[0], strict=True))) if rows else None


def _values(run: _Search, column: str) -> dict[str, LocationTotals]:
    """Return the values of a column, each with one of its places."""
    number = run.cells.columns.index(column)
    return {place[number]: totals for place, totals in run.cells.places.items()}


def _place(scope: Selection) -> str:
    """Return the condition for the calls of a scope."""
    return f"({scope.by} IN ({', '.join(map(quoted, scope.names))}))" if scope.by else "TRUE"


def _period(edges: Sequence[_Edges]) -> str:
    """Return the condition for the calls that started in a stretch; both ends belong to it."""
    return f"({' OR '.join(f't BETWEEN make_timestamp({low}) AND make_timestamp({high})' for low, high in edges)})"


def _edges(run: _Search, event: str, anomaly: Anomaly) -> list[_Edges]:
    """Return the first and the last microsecond of each stretch: those of its batches, refined in finer slices."""
    if not anomaly.ranges:
        return []
    edges = run.cells.edges
    coarse = [(edges[first], edges[end] - 1) for first, end in anomaly.ranges]
    start = edges[max(anomaly.ranges[0][0] - 1, 0)]
    end = edges[min(anomaly.ranges[-1][1] + 1, len(edges) - 1)]
    width = (end - start) // _SLICES + 1
    population = "TRUE" if of_all_calls(event) else "success"
    calls, events = [0] * _SLICES, [0] * _SLICES
    for number, count, hits in run.rows(
        f"(epoch_us(t) - {start}) // {width}, count(*), count_if({run.cells.conditions[event]})",
        f"{_place(anomaly.scope)} AND {population} AND {_period([(start, end - 1)])}",
        "GROUP BY 1",
    ):
        calls[number], events[number] = count, hits
    found = find(calls, events, anomaly.shares)
    if found is None or len(found.ranges) < len(coarse):
        return coarse
    # The first and the last event may be in the slices beside it, with calls that are none
    return [(start + (first - 1) * width, start + (last + 1) * width - 1) for first, last in found.ranges]


def _stretches(
    run: _Search, condition: str, population: str, edges: list[_Edges]
) -> tuple[list[_Edges], tuple[Stretch, ...]]:
    """Return the stretches, each from its first event to its last."""
    rows = list[tuple[Any, ...]]()
    for _ in range(2 if edges else 0):  # at first the ends, then the calls between them
        number = " ".join(f"WHEN t <= make_timestamp({high}) THEN {i}" for i, (_, high) in enumerate(edges))
        first, last = (f"{which}(t) FILTER (WHERE {condition})" for which in ("min", "max"))
        rows = run.rows(
            f"CASE {number} END, epoch_us({first}), epoch_us({last}), {first}, {last}, count(*), count_if({condition})",
            f"{population} AND {_period(edges)}",
            f"GROUP BY 1 HAVING count_if({condition}) > 0 ORDER BY 1",
        )
        edges = [(low, high) for _, low, high, *_ in rows]
    return edges, tuple(Stretch(start=row[3], end=row[4], calls=row[5], events=row[6]) for row in rows)


def _affected(run: _Search, condition: str, edges: Sequence[_Edges]) -> Selection:
    """Return the places that take part in stretches of all calls, by the first column in which some do not."""
    for column in run.cells.columns:
        rows = run.rows(f"{column}, count(*), count_if({condition})", _period(edges), "GROUP BY 1 ORDER BY 2 DESC, 1")
        rate = sum(hits for *_, hits in rows) / sum(calls for _, calls, _ in rows)
        least = math.log(len(rows) / _CHANCE)
        spared = {
            name
            for name, calls, hits in rows
            if hits < _AFFECTED * rate * calls and _surprise(calls, hits, rate) > least
        }
        if spared or len(rows) == 1:
            affected = tuple(name for name, *_ in rows if name not in spared)
            return Selection(by=column, names=affected, places=frozenset())
    return _ALL


def _surprise(calls: int, hits: int, rate: float) -> float:
    """Return the logarithm of Chernoff's bound of the probability that calls differ so much from a rate, negated.

    H. Chernoff, "A measure of asymptotic efficiency for tests of a hypothesis based on the sum of observations", Annals
    of Mathematical Statistics 23, 1952.
    """
    parts = ((hits, rate), (calls - hits, 1 - rate))
    return sum(part * math.log(part / (calls * share)) for part, share in parts if part)


def _compared(run: _Search, kind: FindingKind, anomaly: Anomaly, figure: str, least: float) -> Finding | None:
    """Return a finding with a figure of its calls, and the same elsewhere; None if it is less than `least` times it.

    Elsewhere is the rest of the run at the same places; for a finding about the whole run, the other places.
    """
    event = _EVENTS[kind]
    found = _described(run, kind, event, anomaly)
    scope = Selection(by=found.by, names=found.names, places=frozenset())
    inside = condition_of(found)
    population = _place(scope) if found.stretches else "TRUE"
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


def ends(stretch: Stretch) -> tuple[int, int]:
    """Return the start and the end of a stretch in microseconds since 1970."""
    low, high = ((each - _EPOCH) // timedelta(microseconds=1) for each in (stretch.start, stretch.end))
    return low, high


def _slower(run: _Search, found: Sequence[Anomaly], least: float = _SLOWER) -> Iterator[Finding]:
    figure = "quantile_cont(delta_t, 0.5)"
    return filter(None, (_compared(run, "slower", each, figure, least) for each in found))


def _tails(run: _Search, found: Sequence[Anomaly]) -> Iterator[Finding]:
    figure = "quantile_cont(delta_t, 0.99)"
    return filter(None, (_compared(run, "tail", each, figure, _LONGER_TAIL) for each in found))


def _larger(run: _Search, found: Sequence[Anomaly]) -> Iterator[Finding]:
    edges, median = run.cells.edges, "quantile_cont(response_size, 0.5)"
    width = (edges[-1] - edges[0]) // _QUARTERS + 1
    for finding in filter(None, (_compared(run, "larger bodies", each, median, _LARGER) for each in found[:1])):
        quarters = run.rows(
            f"(epoch_us(t) - {edges[0]}) // {width}, {median}",
            f"{_place(Selection(by=finding.by, names=finding.names, places=frozenset()))} AND success",
            "GROUP BY 1 ORDER BY 1",
        )
        medians = tuple(float(size) for _, size in quarters)
        grow = len(medians) == _QUARTERS and all(b >= _GROWS * a for a, b in pairwise(medians))
        of_growth: dict[str, Any] = {"quarters": medians, "stretches": ()} if grow else {}
        yield replace(finding, weight=max(finding.weight, _LEAST_WEIGHT), **of_growth)


def _same_size(run: _Search, size: int, found: Sequence[Anomaly]) -> Iterator[Finding]:
    event = f"size {run.cells.sizes.index(size)}"
    described = [_described(run, "same size", event, each) for each in found]
    for finding in (each for each in described if each.events >= _MOSTLY * each.calls):
        place = _place(Selection(by=finding.by, names=finding.names, places=frozenset()))
        ((low, high, calls, events),) = run.rows(
            f"min(response_size), max(response_size), count(*), count(*) FILTER (WHERE response_size = {size})",
            f"{place} AND success AND NOT {condition_of(finding)}",
        )
        yield replace(finding, figure=float(size), sizes=(low or 0, high or 0), other_calls=calls, other_events=events)


def _slow(run: _Search) -> Iterator[Finding]:
    """Yield the host or endpoint that takes much of the time because it is slower than the others."""
    candidates = list[tuple[float, Selection]]()
    for number, column in enumerate(run.cells.columns):
        by_value = dict[str, list[LocationTotals]]()
        for place, totals in run.cells.places.items():
            by_value.setdefault(place[number], []).append(totals)
        for value, inside in by_value.items():
            others = [each for name, group in by_value.items() if name != value for each in group]
            time = sum(each.seconds for each in inside) / run.cells.seconds if run.cells.seconds else 0.0
            calls, fastest = sum(each.calls for each in inside), min(each.p50 or 0.0 for each in inside)
            part = calls / run.cells.calls
            is_far = calls >= _FEWEST_FAR and fastest >= _SLOW * _weighted(others, _NEARLY_ALL)
            is_costly = others and time >= max(_FAR_TIME if is_far else _SLOW_TIME, _SLOW_EXCESS * part)
            if is_costly and fastest >= _SLOW * _weighted(others, 1 / 2):
                candidates.append((time - part, Selection(by=column, names=(value,), places=frozenset())))
    if candidates:
        excess, slowest = max(candidates, key=lambda each: each[0])
        condition = _place(slowest)
        ((calls, seconds, p50, baseline),) = run.rows(
            f"count_if({condition}), sum(delta_t) FILTER (WHERE {condition}), quantile_cont(delta_t, 0.5) "
            f"FILTER (WHERE {condition}), quantile_cont(delta_t, 0.5) FILTER (WHERE NOT {condition})",
            "success",
        )
        yield Finding(
            kind="slow",
            weight=excess * _OF_TIME,
            by=slowest.by,
            names=slowest.names,
            others=len(_values(run, slowest.by)) - 1,
            calls=calls,
            events=calls,
            other_calls=run.cells.calls - calls,
            figure=p50,
            baseline=baseline,
            seconds=seconds,
            share_of_time=seconds / run.cells.seconds,
            example=_example(run, f"{condition} AND success", slowest=True),
        )


def _weighted(places: Sequence[LocationTotals], level: float) -> float:
    """Return a percentile of the median durations of the places, weighted by their calls."""
    left = sum(each.calls for each in places) * level
    for each in sorted(places, key=lambda each: each.p50 or 0.0):
        left -= each.calls
        if left <= 0:
            return each.p50 or 0.0
    return 0.0
