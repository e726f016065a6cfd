"""Describes an anomaly with exact figures: where, when, how many calls, which classes, and one of the calls.

The edges of its stretches are refined, and its calls are counted by statements about them. Conditions in SQL for the
calls of a finding are made here only.

Used by ``review``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any

from otel_connector.review._anomalies import Anomaly, Selection
from otel_connector.review._cells import Cells, cells, of_all_calls
from otel_connector.review._filters import quoted
from otel_connector.review._load import Calls
from otel_connector.review._reasons import reasons
from otel_connector.review._stretches import SURE, Division, affected, down, find
from otel_connector.review._summary import ListedCall
from otel_connector.review._verdict import Finding, FindingKind, Reason, Stretch

_MOST_OF_RUN, _SMALLEST = 0.9, 1e-9  # part of a run: the longest period that is named, and the smallest
_CHANCE = 0.01  # probability that calls over the whole run have so short a period by chance
_CLOSE = 0.01  # share of the calls that may be between a stretch and the start or the end of the run
_BY_CHANCE = 3  # times the mean distance of two events, which may be there in addition
_SLICES = 512  # in which the edges of a stretch are searched
_MOST_CLASSES = 4
_EPOCH = datetime.fromisoformat("1970-01-01")
Edges = tuple[int, int]  # the first and the last microsecond of a stretch, since 1970
ALL = Selection(places=frozenset())  # of a finding, which has names only
_FIELDS = ", ".join(each.name for each in fields(ListedCall))
COLUMNS = ("host", "endpoint")
"""The columns that identify a place in which something can be unusual, the widest place first."""

PROJECT = "project"
"""The column that is a place only if hosts and endpoints do not explain what happened: its calls are to any of them."""

_NEARLY_ALL = 0.9  # share of failures of a place in a stretch, from which this place explains them


@dataclass(frozen=True, slots=True)
class Search:
    """The calls of a run and their cells."""

    calls: Calls
    cells: Cells

    def rows(self, columns: str, condition: str, rest: str = "") -> list[tuple[Any, ...]]:
        needs_places = "places." in columns + condition  # the join takes longer than the rest
        source = self.cells.source if needs_places else "calls_compact"
        return self.calls.rows(f"SELECT {columns} FROM {source} WHERE {condition} {rest}")


def parts_of(calls: Calls, *, brief: bool = False) -> Cells:
    """Return the cells of a run."""
    return cells(calls, COLUMNS, brief=brief)


def condition_of(finding: Finding) -> str:
    """Return the condition in SQL for the calls of a finding."""
    place = place_of(finding)
    when = period_of([ends(each) for each in finding.stretches]) if finding.stretches else "TRUE"
    return f"({place} AND {when})"


def hosts_of(names: Iterable[str]) -> set[str]:
    """Return the hosts among hosts and endpoints; of an endpoint, the part before its path."""
    return {name.partition("/")[0] for name in names}


def ends(stretch: Stretch) -> tuple[int, int]:
    """Return the start and the end of a stretch in microseconds since 1970."""
    low, high = ((each - _EPOCH) // timedelta(microseconds=1) for each in (stretch.start, stretch.end))
    return low, high


def described(run: Search, kind: FindingKind, event: str, anomaly: Anomaly, *, apart: str = "FALSE") -> Finding:
    """Return a finding with its stretches, counts, classes and an example, of the calls for which `apart` is false."""
    edges, scope = _edges(run, event, anomaly), anomaly.scope
    if edges and not scope.by:
        # The edges are in slices with other calls, of places that do not take part
        rows = _with_ends(run, run.cells.conditions[event], _population(event), edges)
        scope = affected_places(run, event, [(low, high) for low, high, *_ in rows])
    elif scope.by and of_all_calls(event) and (anomaly.shares is None or anomaly.shares[1] < _NEARLY_ALL):
        of_all = affected_places(run, event, edges, apart=apart)
        scope = of_all if of_all.by == PROJECT else scope
    return with_figures(run, Finding(kind=kind, weight=0.0, by=scope.by, names=scope.names), event, edges, apart=apart)


def with_figures(run: Search, finding: Finding, event: str, edges: list[Edges], *, apart: str = "FALSE") -> Finding:
    """Return a finding about a place with the figures of some periods; of the whole run, if there are none."""
    condition = run.cells.conditions[event]
    population, place = _population(event), place_of(finding)
    edges, stretches = stretches_of(run, condition, f"{place} AND {population}", edges)
    stretches = with_sides(run, f"{place} AND {population}", stretches)
    when = period_of(edges) if stretches else f"NOT ({apart})"
    ((calls, events, seconds),) = run.rows(
        f"count(*), count_if({condition}), coalesce(sum(delta_t) FILTER (WHERE {condition}), 0)",
        f"{place} AND {population} AND {when}",
    )
    beside = run.rows(f"count(*), count(*) FILTER (WHERE {condition})", f"{population} AND {when} AND NOT {place}")[0]
    failures = f"{place} AND {when} AND NOT success AND {condition}"
    classes = run.rows(
        "error_type, count(*)",
        failures,
        f"GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {_MOST_CLASSES}",
    )
    of_failures = tuple[Reason, ...]()
    if classes:
        first = stretches[0].start if stretches else None
        of_failures = reasons(run.rows, failures, sum(number for _, number in classes), classes[0][0], first)
    of_class = f" AND error_type = {quoted(classes[0][0])}" if classes else ""
    ((left_out,),) = run.rows("count(*)", f"{place} AND ({apart})") if apart != "FALSE" else [(0,)]
    return replace(
        finding,
        weight=events / run.cells.calls,
        rest=left_out > 0,
        others=number_of(run, finding.by) - len(finding.names) if finding.by else 0,
        stretches=stretches,
        period=None if stretches else lasting(run, finding),
        calls=calls,
        events=events,
        beside_calls=beside[0],
        beside_events=beside[1],
        seconds=seconds,
        share_of_time=seconds / run.cells.seconds if run.cells.seconds else 0.0,
        classes=tuple(classes),
        reasons=of_failures,
        example=example_of(run, f"{place} AND {when} AND {condition}{of_class}", slowest=not of_all_calls(event)),
    )


def with_sides(run: Search, population: str, stretches: tuple[Stretch, ...]) -> tuple[Stretch, ...]:
    """Return stretches that know whether the run begins or ends with them; `population` are the calls of their place.

    Counted in calls and not in time, because a log may have pauses, such as the days between nights.
    """
    if not stretches:
        return ()
    sides = [f"t < make_timestamp({ends(stretches[0])[0]})", f"t > make_timestamp({ends(stretches[-1])[1]})"]
    ((number, *of_run), (of_place, *there)) = (
        run.rows(f"count(*), {', '.join(f'count_if({side})' for side in sides)}", condition)[0]
        for condition in ("TRUE", population)
    )
    calls, events = (sum(getattr(each, name) for each in stretches) for name in ("calls", "events"))
    most = _CLOSE * calls + _BY_CHANCE * (calls - events) / events  # events are as frequent as in the stretches
    most_of_run = (_CLOSE + _BY_CHANCE / of_place) * number
    begins, stops = (b <= most and a <= most_of_run for b, a in zip(there, of_run, strict=True))
    found = [replace(stretches[0], from_start=begins), *stretches[1:]]
    return (*found[:-1], replace(found[-1], to_end=stops))


def lasting(run: Search, scope: Selection | Finding) -> Stretch | None:
    """Return the period from the first call of some places to the last; None if it is about that of the run.

    Calls that are even over the run are all in a smaller part of it by chance, if they are few.
    """
    if scope.by not in run.cells.columns:  # all calls, or projects
        return None
    column = run.cells.columns.index(scope.by)
    places = [totals for place, totals in run.cells.places.items() if place[column] in scope.names]
    first, last = min(each.first for each in places), max(each.last for each in places)
    calls, part = sum(each.calls for each in places), (last - first) / (run.cells.edges[-1] - run.cells.edges[0])
    if part > _MOST_OF_RUN or (calls - 2) * -math.log(max(part, _SMALLEST)) < -math.log(_CHANCE):
        return None
    start, end = (_EPOCH + timedelta(microseconds=each) for each in (first, last))
    return with_sides(run, place_of(scope), (Stretch(start=start, end=end, calls=calls, events=calls),))[0]


def example_of(run: Search, condition: str, *, slowest: bool) -> ListedCall | None:
    """Return the first or the slowest call of those with texts."""
    order = "delta_t DESC, t, call_id" if slowest else "t, call_id"
    rows = run.rows(_FIELDS, f"({condition}) AND call_id IS NOT NULL", f"ORDER BY {order} LIMIT 1")
    names = (each.name for each in fields(ListedCall))
    return ListedCall(**dict(zip(names, rows[0], strict=True))) if rows else None


def number_of(run: Search, column: str) -> int:
    """Return the number of values of a column."""
    if column not in run.cells.columns:
        ((number,),) = run.rows(f"count(DISTINCT {column})", "TRUE")
        return int(number)
    return len({place[run.cells.columns.index(column)] for place in run.cells.places})


def place_of(scope: Selection | Finding) -> str:
    """Return the condition for the calls to the places of a scope or a finding."""
    return f"({scope.by} IN ({', '.join(map(quoted, scope.names))}))" if scope.by else "TRUE"


def period_of(edges: Sequence[Edges]) -> str:
    """Return the condition for the calls that started in a stretch; both ends belong to it."""
    return f"({' OR '.join(f't BETWEEN make_timestamp({low}) AND make_timestamp({high})' for low, high in edges)})"


def _population(event: str) -> str:
    """Return the condition for the calls to which an event may happen."""
    return "TRUE" if of_all_calls(event) else "success"


def _edges(run: Search, event: str, anomaly: Anomaly) -> list[Edges]:
    """Return the first and the last microsecond of each stretch: those of its batches, refined in finer slices."""
    if not anomaly.ranges:
        return []
    edges = run.cells.edges
    coarse = [(edges[first], edges[end] - 1) for first, end in anomaly.ranges]
    start = edges[max(anomaly.ranges[0][0] - 1, 0)]
    end = edges[min(anomaly.ranges[-1][1] + 1, len(edges) - 1)]
    width = (end - start) // _SLICES + 1
    calls, events = [0] * _SLICES, [0] * _SLICES
    for number, count, hits in run.rows(
        f"(epoch_us(t) - {start}) // {width}, count(*), count_if({run.cells.conditions[event]})",
        f"{place_of(anomaly.scope)} AND {_population(event)} AND {period_of([(start, end - 1)])}",
        "GROUP BY 1",
    ):
        calls[number], events[number] = count, hits
    found = find(calls, events, anomaly.shares)
    if found is None or len(found.ranges) < len(coarse):
        return coarse
    # The first and the last event may be in the slices beside it, with calls that are none
    fine = [(start + (first - 1) * width, start + (last + 1) * width - 1) for first, last in found.ranges]
    # A part that is worse than the others has edges inside, and is not all of it
    is_all = fine[0][0] < edges[anomaly.ranges[0][0] + 1] and fine[-1][1] >= edges[anomaly.ranges[-1][1] - 1]
    return fine if is_all else coarse


def stretches_of(
    run: Search, condition: str, population: str, edges: list[Edges]
) -> tuple[list[Edges], tuple[Stretch, ...]]:
    """Return the stretches, each from its first event to its last, and these ends in microseconds."""
    rows = list[tuple[Any, ...]]()
    for counted in (condition, "TRUE") if edges else ():  # at first the ends, then the calls between them
        rows = _with_ends(run, condition, f"{population} AND {counted}", edges)
        edges = [(low, high) for low, high, *_ in rows]
    return edges, tuple(Stretch(start=row[2], end=row[3], calls=row[4], events=row[5]) for row in rows)


def _with_ends(run: Search, condition: str, population: str, edges: Sequence[Edges]) -> list[tuple[Any, ...]]:
    """Return of each stretch with events the first and the last one, in microseconds and as times, and the counts."""
    first, last = (f"{which}(t) FILTER (WHERE {condition})" for which in ("min", "max"))
    rows = run.rows(
        f"{_number_of(edges)}, epoch_us({first}), epoch_us({last}), {first}, {last}, count(*), count_if({condition})",
        f"{population} AND {period_of(edges)}",
        f"GROUP BY 1 HAVING count_if({condition}) > 0 ORDER BY 1",
    )
    return [row[1:] for row in rows]


def _number_of(edges: Sequence[Edges]) -> str:
    """Return the number of the stretch of a call, as SQL."""
    return f"CASE {' '.join(f'WHEN t <= make_timestamp({high}) THEN {i}' for i, (_, high) in enumerate(edges))} END"


def affected_places(run: Search, event: str, edges: Sequence[Edges] = (), *, apart: str = "FALSE") -> Selection:
    """Return the places of the events of all calls, in some stretches or in the whole run; all places if none differ.

    Without stretches, calls for which `apart` is true are not counted. Endpoints are places only if they explain the
    events better than hosts, and projects if better than both.
    """
    best, most = ALL, Division()
    counted = _counts_by_place(run, event, edges, apart)
    for column, counts in counted.items():
        found = affected([(name, *each) for name, each in counts.items()], in_stretch=bool(edges))
        if found.excess > most.excess and (best is ALL or found.gain > most.gain + SURE):
            best, most = Selection(by=column, names=found.names, places=frozenset()), found
    by = run.cells.columns[0]
    if edges and best is ALL and len(counted[by]) == 1:
        return Selection(by=by, names=tuple(counted[by]), places=frozenset())
    return best


def _counts_by_place(
    run: Search, event: str, edges: Sequence[Edges], apart: str
) -> dict[str, dict[str, tuple[int, int]]]:
    """Return the calls and the events by host, by endpoint and by project."""
    when = period_of(edges) if edges else f"NOT ({apart})"

    def rows(columns: Sequence[str]) -> list[tuple[Any, ...]]:
        names = ", ".join(columns)
        figures = f"{names}, count(*), count_if({run.cells.conditions[event]})"
        return run.rows(figures, f"{_population(event)} AND {when}", f"GROUP BY {names} ORDER BY {names}")

    places = run.cells.columns
    of_places = list[tuple[Any, ...]]()
    if edges or apart != "FALSE" or event != "failed":
        of_places += rows(places)
    else:  # the cells have counted them
        of_places += ((*place, totals.calls, totals.failed) for place, totals in run.cells.places.items())
    counted = dict[str, dict[str, tuple[int, int]]]()
    for columns, found in ((places, of_places), ((PROJECT,), rows((PROJECT,)))):
        for number, column in enumerate(columns):
            of_value = counted[column] = dict[str, tuple[int, int]]()
            for row in found:
                calls, events = of_value.get(row[number], (0, 0))
                of_value[row[number]] = calls + row[-2], events + row[-1]
    return counted


def surprise(calls: int, hits: int, rate: float) -> float:
    """Return the logarithm of Chernoff's bound of the probability that calls differ so much from a rate, negated.

    H. Chernoff, "A measure of asymptotic efficiency for tests of a hypothesis based on the sum of observations", Annals
    of Mathematical Statistics 23, 1952.
    """
    parts = ((hits, rate), (calls - hits, 1 - rate))
    return sum(part * math.log(part / (calls * share)) for part, share in parts if part)


def places_down(run: Search, condition: str, when: str) -> Selection:
    """Return the places of which nearly all calls of a time failed, if the others explain nothing; or all places."""
    for column in run.cells.columns:
        rows = run.rows(f"{column}, count(*), count_if({condition})", f"host <> '' AND {when}", "GROUP BY 1 ORDER BY 1")
        if names := down([(name, calls, hits) for name, calls, hits in rows]):
            return Selection(by=column, names=names, places=frozenset())
    return ALL
