"""Searches the cells of a run for places and stretches of time in which events are too frequent.

It is Kulldorff's scan statistic (see `_stretches`): the candidates are all calls in some stretches, each place in some
stretches, and each place in the whole run. The best one is removed from the cells, and the search starts over
(Z. Zhang, R. Assuncao and M. Kulldorff, "Spatial scan statistics adjusted for multiple clusters", Journal of
Probability and Statistics, 2010). So an outage of one host is not also reported as an outage of all, and two causes are
two anomalies. Knows neither SQL nor what an event means.

Used by ``review._attempts``, ``review._described``, ``review._failures``, ``review._findings`` and
``review._slow_places``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from otel_connector.review._cells import Cells, Counts, Location
from otel_connector.review._stretches import Stretches, find, log_likelihood_ratio

_MOST = 6  # anomalies of an event
_FEWEST_EVENTS = 4  # of a place that is searched
_MOST_PLACES = 12  # that are searched for events other than failures, those with the most events
_PENALTY = 16.0  # what a place must gain in the whole run: that of a stretch of 200 batches
_ALIKE = 0.8  # share of the batches that two anomalies have in common, from which they are one

Table = dict[Location | None, Counts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """What an anomaly must be to matter.

    Attributes:
        odds: The least ratio of the odds of an event inside and outside.
        share: The least share of all calls, of 1, that its additional events are.
        least: The least number of its additional events.
        whole: Whether a place can be unusual in the whole run.
    """

    odds: float
    share: float
    least: int
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Some places: those with a value in a column.

    Attributes:
        by: The column; empty for all places.
        names: The values; empty for all places.
        places: The places.
    """

    by: str = ""
    names: tuple[str, ...] = ()
    places: frozenset[Location | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Anomaly:
    """A scope, and the batches in which its events are too frequent; none for the whole run.

    Attributes:
        scope: The places.
        ranges: The first batch of each stretch, and the one after its last.
        shares: The share of events outside and inside.
    """

    scope: Selection
    ranges: tuple[tuple[int, int], ...] = ()
    shares: tuple[float, float] | None = None

    @property
    def batches(self) -> set[int]:
        """The numbers of its batches; empty for the whole run."""
        return {number for first, end in self.ranges for number in range(first, end)}


def scopes(cells: Cells, places: Mapping[Location | None, object]) -> Iterator[Selection]:
    """Yield all places, and the places by each value of each column that has more than one."""
    yield Selection(places=frozenset(places))
    for number, column in enumerate(cells.columns):
        by_value = dict[str, set[Location | None]]()
        for place in places:
            if place is not None:
                by_value.setdefault(place[number], set()).add(place)
        if len(by_value) > 1 or None in places:
            for value, found in by_value.items():
                yield Selection(by=column, names=(value,), places=frozenset(found))


def anomalies(cells: Cells, event: str, threshold: Threshold) -> list[Anomaly]:
    """Return the anomalies of an event, the most unlikely one first."""
    table = {
        place: Counts(list(each.calls), list(each.events)) for place, each in cells.by_event.get(event, {}).items()
    }
    sums = {scope: _sums(table, scope) for scope in scopes(cells, table)}
    by_events = sorted(sums, key=lambda scope: -sum(sums[scope][1]))
    known: list[Selection] = by_events if event == "failed" else by_events[:_MOST_PLACES]
    searched = dict[Selection, _Searched]()
    found = list[Anomaly]()
    while len(found) < _MOST:
        for scope in known:
            if scope not in searched:
                calls, events = sums.pop(scope) if scope in sums else _sums(table, scope)
                searched[scope] = calls, events, find(calls, events) if sum(events) >= _FEWEST_EVENTS else None
        candidates = sorted(_candidates(table, searched, threshold), key=lambda each: -each.gain)
        anomaly = next((each.anomaly for each in candidates if not _has_parts(each, candidates, table)), None)
        if anomaly is None:
            break
        found.append(anomaly)
        _remove(table, anomaly)
        for scope in known:  # those in which calls were removed are searched again
            if scope.places & anomaly.scope.places:
                del searched[scope]
    return _joined(found)


_Searched = tuple[list[int], list[int], Stretches | None]  # the calls and the events of a scope, and its stretches


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An anomaly that may be found.

    Attributes:
        anomaly: The anomaly.
        gain: How much more likely the calls are with it.
        penalty: What the gain had to exceed.
        counts: The calls and the events in it.
    """

    anomaly: Anomaly
    gain: float
    penalty: float
    counts: tuple[int, int]


def _candidates(table: Table, searched: Mapping[Selection, _Searched], threshold: Threshold) -> Iterator[_Candidate]:
    all_calls, all_events = map(sum, _sums(table, Selection(places=frozenset(table))))
    for scope, (calls, events, each) in searched.items():
        possible = list[tuple[Anomaly, float]]()
        if each is not None:
            possible.append((Anomaly(scope=scope, ranges=each.ranges, shares=each.shares), each.penalty))
        if threshold.whole and scope.by:
            possible.append((Anomaly(scope=scope), _PENALTY))
        for anomaly, penalty in possible:
            inside = anomaly.batches or range(len(calls))
            number, hits = sum(calls[i] for i in inside), sum(events[i] for i in inside)
            if _matters(number, hits, all_calls, all_events, threshold):
                gain = log_likelihood_ratio(number, hits, all_calls, all_events)
                if gain > (needed := max(len(anomaly.ranges), 1) * penalty):
                    yield _Candidate(anomaly, gain, needed, (number, hits))


def _has_parts(whole: _Candidate, candidates: Sequence[_Candidate], table: Table) -> bool:
    """Return whether places of an anomaly explain more, each at its own times, than they do at its times.

    So outages that overlap, or follow each other, are no outage of all places, unless they are too many to find.
    """
    scope = whole.anomaly.scope
    of_all = _total(table, Selection(places=frozenset(table)))
    by_place = dict[Selection, _Candidate]()  # the candidates are sorted, the best one of each place comes first
    for each in candidates if whole.anomaly.ranges else ():
        if each.anomaly.scope.places < scope.places:
            by_place.setdefault(each.anomaly.scope, each)
    for column in {each.by for each in by_place}:
        parts = [each for place, each in by_place.items() if place.by == column]
        gain = _joint_gain([each.counts for each in parts], of_all) - sum(each.penalty for each in parts)
        places = Selection(places=frozenset[Location | None]().union(*(each.anomaly.scope.places for each in parts)))
        same_time = _joint_gain([_total(table, places, whole.anomaly.batches)], of_all)
        if len(parts) <= _MOST and gain > max(whole.gain, same_time) - whole.penalty:
            return True
    return False


def _joint_gain(parts: Iterable[tuple[int, int]], of_all: tuple[int, int]) -> float:
    """Return how much more likely the calls are if each part, of which none has a call of another, has its own rate."""
    gain, (all_calls, all_events) = 0.0, of_all
    for calls, events in parts:
        gain += log_likelihood_ratio(calls, events, all_calls, all_events)
        all_calls, all_events = all_calls - calls, all_events - events
    return gain


def _total(table: Table, scope: Selection, batches: Iterable[int] | None = None) -> tuple[int, int]:
    """Return the calls and the events of a scope, in some batches."""
    calls, events = _sums(table, scope)
    inside = range(len(calls)) if batches is None else batches
    return sum(calls[i] for i in inside), sum(events[i] for i in inside)


def _matters(calls: int, events: int, all_calls: int, all_events: int, threshold: Threshold) -> bool:
    outside, other = all_calls - calls, all_events - events
    if not outside:
        return False
    odds = (events + 0.5) / (calls - events + 0.5) / ((other + 0.5) / (outside - other + 0.5))
    additional = events - calls * other / outside
    return odds >= threshold.odds and additional >= max(threshold.least, threshold.share * all_calls)


def _sums(table: Table, scope: Selection) -> tuple[list[int], list[int]]:
    counts = [each for place, each in table.items() if place in scope.places]
    calls = list(map(sum, zip(*(each.calls for each in counts), strict=True)))
    return calls, list(map(sum, zip(*(each.events for each in counts), strict=True)))


def _remove(table: Table, anomaly: Anomaly) -> None:
    """Remove an anomaly from the cells, with the batches beside it: its edges are somewhere in them."""
    for place in anomaly.scope.places:
        counts = table[place]
        last = len(counts.calls)
        beside = {number for first, end in anomaly.ranges for number in range(max(first - 1, 0), min(end + 1, last))}
        for number in beside or range(last):
            counts.calls[number] = counts.events[number] = 0


def _joined(found: list[Anomaly]) -> list[Anomaly]:
    """Join the anomalies of several places at the same time."""
    joined = list[Anomaly]()
    for each in found:
        for number, other in enumerate(joined):
            if each.scope.by and each.scope.by == other.scope.by and overlap(each, other) >= _ALIKE:
                names, places = other.scope.names + each.scope.names, other.scope.places | each.scope.places
                joined[number] = replace(other, scope=replace(other.scope, names=names, places=places))
                break
        else:
            joined.append(each)
    return joined


def overlap(one: Anomaly, other: Anomaly) -> float:
    """Return the batches that two anomalies have in common, as a share of those of either; the whole run is not one."""
    either = one.batches | other.batches
    return len(one.batches & other.batches) / len(either) if either else 0.0
