"""Aggregates the calls of a run by time, place and error class in DuckDB: everything in which `_findings` searches.

Time is divided into batches with about the same number of calls, of a bounded number, so the number of cells is bounded
for any number of calls. Knows nothing of what is unusual.

Used by ``review``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from heapq import nlargest
from itertools import groupby
from operator import itemgetter
from typing import Any

from otel_connector.review._filters import quoted
from otel_connector.review._load import Calls
from otel_connector.review._pauses import Axis, axis_of

TAIL = 10
"""Times the median of its place: a call that takes longer is in the tail."""

_MOST_BATCHES = 200
_FEWEST_CALLS = 8  # of a batch, on average
_SLICES = 2_048  # of equal length, of which batches are made
_MOST_PLACES = 30  # with the most calls; and half as many with the most failures, and with the most seconds
_MOST_CLASSES, _MOST_SIZES = 8, 4  # error classes, and sizes of a body, that are events of their own
_SAMPLED = 500_000  # calls from which a part is enough for a median
_ONE_IN = 61  # a prime, so that times in whole milliseconds are sampled as well

Location = tuple[str, ...]
"""The values of the columns that identify a place, such as the host and the endpoint."""


@dataclass(frozen=True, slots=True)
class LocationTotals:
    """All calls of a place.

    Attributes:
        calls: Their number.
        failed: How many failed.
        seconds: The sum of their durations.
        first: The start of the first one, in microseconds since 1970.
        last: The start of the last one.
        bytes: The sum of the sizes of their bodies.
        success_seconds: The sum of the durations of the successes.
        p50: The median duration of the successes, in seconds; None if there are none.
        size: The median size of their bodies, in bytes; None if there are none.
    """

    calls: int
    failed: int
    seconds: float
    first: int
    last: int
    bytes: float
    success_seconds: float
    p50: float | None
    size: float | None


@dataclass(frozen=True, slots=True)
class Counts:
    """The calls of a place in each batch, and how many of them are events.

    For failures and error classes these are all calls, for all other events those that succeeded.
    """

    calls: list[int]
    events: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """The cells of a run.

    Attributes:
        columns: The columns that identify a place.
        places: All places.
        edges: Where batches begin, and where the last ends, in microseconds since 1970.
        source: The calls, as SQL for FROM, with the columns that the conditions need.
        conditions: The events, each with its condition in SQL.
        by_event: The counts by event and place; places without cells of their own are together under None. Events are
            ``failed``, ``long`` (longer than the median of its place), ``tail``, ``large`` and ``small`` (a body above,
            and below, the median of its place), ``class 0`` and so on, and ``size 0`` and so on.
        classes: The most frequent error classes.
        sizes: The most frequent sizes of bodies.
        calls: The number of calls.
        seconds: The sum of their durations.
    """

    columns: tuple[str, ...]
    places: dict[Location, LocationTotals]
    edges: list[int]
    source: str
    conditions: dict[str, str]
    by_event: dict[str, dict[Location | None, Counts]]
    classes: list[str]
    sizes: list[int]
    calls: int
    seconds: float


def cells(calls: Calls, columns: Sequence[str], *, brief: bool = False) -> Cells:
    """Aggregate the calls of a run, of which there must be some.

    Args:
        calls: The calls.
        columns: The columns that identify a place.
        brief: Whether only failures and long durations are counted, and no other events.
    """
    ((number, first, last),) = calls.rows(f"SELECT count(*), epoch_us(min(t)), epoch_us(max(t)) {_FROM}")
    names, width = ", ".join(columns), len(columns)
    part = f" AND epoch_us(t) % {_ONE_IN} = 0" if number > _SAMPLED else ""
    *rows, (*_, p50, size) = calls.rows(
        f"SELECT {names}, quantile_cont(delta_t, 0.5), quantile_cont(response_size, 0.5) {_FROM} "
        f"WHERE success{part} GROUP BY GROUPING SETS (({names}), ()) ORDER BY grouping({names})"
    )
    medians = {tuple(row[:width]): row[width:] for row in rows}
    rows = calls.rows(
        f"SELECT {names}, count(*), count_if(NOT success), sum(delta_t), epoch_us(min(t)), epoch_us(max(t)), "
        f"coalesce(sum(response_size), 0)::DOUBLE, coalesce(sum(delta_t) FILTER (WHERE success), 0) {_FROM} "
        f"GROUP BY {names}"
    )
    totals = {tuple(row[:width]): row[width:] for row in sorted(rows)}
    places = {place: LocationTotals(*found, *medians.get(place, (None, None))) for place, found in totals.items()}
    conditions = {"failed": "NOT success"}
    classes = _frequent(calls, "error_type", "NOT success", _MOST_CLASSES)
    sizes = list[int]()
    long = f"success AND delta_t > {{}} * coalesce(places.p50, {p50 or 0}::DOUBLE)"
    conditions["long"] = long.format(1)
    if not brief:
        conditions["tail"] = long.format(TAIL)
        for event, sign in (("large", ">"), ("small", "<")):
            conditions[event] = f"success AND response_size {sign} coalesce(places.size, {size or 0}::DOUBLE)"
        sizes = _frequent(calls, "response_size", "success", _MOST_SIZES)
    conditions |= {f"class {i}": f"error_type = {quoted(each)}" for i, each in enumerate(classes)}
    conditions |= {f"size {i}": f"success AND response_size = {each}" for i, each in enumerate(sizes)}
    axis = axis_of(calls, first, last, _SLICES)
    slices, edges = _batches(calls, number, axis)
    kept = _kept(places)
    source = _source(columns, kept)
    return Cells(
        columns=tuple(columns),
        places=places,
        edges=edges,
        source=source,
        conditions=conditions,
        by_event=_counted(calls, source, list(kept), conditions, (axis, slices)),
        classes=classes,
        sizes=sizes,
        calls=number,
        seconds=sum(each.seconds for each in places.values()),
    )


_FROM = "FROM calls_compact"


def _kept(places: dict[Location, LocationTotals]) -> dict[Location, LocationTotals]:
    """Return the places that have cells of their own."""
    kept = dict[Location, LocationTotals]()
    for name, most in (("calls", _MOST_PLACES), ("failed", _MOST_PLACES // 2), ("seconds", _MOST_PLACES // 2)):
        kept |= dict(nlargest(most, places.items(), key=partial(_figure_of, name)))
    return kept


def _figure_of(name: str, item: tuple[Location, LocationTotals]) -> float:
    figure: float = getattr(item[1], name)
    return figure


def _frequent(calls: Calls, column: str, condition: str, most: int) -> list[Any]:
    rows = calls.rows(f"SELECT {column} {_FROM} WHERE {condition} GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT {most}")
    return [value for (value,) in rows]


def _batches(calls: Calls, number: int, axis: Axis) -> tuple[list[int], list[int]]:
    """Return the number of the batch of each slice of time, and the edges of the batches in microseconds."""
    counts = dict(calls.rows(f"SELECT {axis.number}, count(*) {_FROM} GROUP BY 1"))
    target = max(number / _MOST_BATCHES, _FEWEST_CALLS)
    slices, edges, inside = list[int](), [0], 0
    for each in range(_SLICES):
        slices.append(len(edges) - 1)
        inside += counts.get(each, 0)
        if inside >= target:
            edges.append(each + 1)
            inside = 0
    if edges[-1] < _SLICES:
        edges.append(_SLICES)
    return slices, list(map(axis.start_of, edges))


def _source(columns: Sequence[str], kept: dict[Location, LocationTotals]) -> str:
    """Return the calls with ``place``, the number of their place, and its medians ``p50`` and ``size``."""
    rows = ", ".join(
        f"({', '.join(map(quoted, place))}, {each.p50 or 'NULL'}::DOUBLE, {each.size or 'NULL'}::DOUBLE, {number})"
        for number, (place, each) in enumerate(kept.items())
    )
    names = ", ".join(columns)
    return f"calls_compact LEFT JOIN (VALUES {rows}) AS places({names}, p50, size, place) USING ({names})"


def _counted(
    calls: Calls, source: str, kept: Sequence[Location], conditions: dict[str, str], parts: tuple[Axis, list[int]]
) -> dict[str, dict[Location | None, Counts]]:
    """Count the events in one statement."""
    axis, slices = parts
    counted = ", ".join(f"count_if({condition})" for condition in conditions.values())
    rows = calls.rows(
        f"SELECT (?::USMALLINT[])[{axis.number} + 1], coalesce(place, {len(kept)}), count(*), "
        f"count_if(success), {counted} FROM {source} GROUP BY 1, 2 ORDER BY 2",
        [slices],
    )
    found: dict[str, dict[Location | None, Counts]] = {name: {} for name in conditions}
    for place, cells_of in groupby(rows, itemgetter(1)):
        batches, _, *columns = zip(*cells_of, strict=True)
        all_calls, succeeded, *events = (_of_batches(batches, each, slices[-1] + 1) for each in columns)
        for name, each in zip(conditions, events, strict=True):
            found[name][[*kept, None][int(place)]] = Counts(all_calls if of_all_calls(name) else succeeded, each)
    return found


def _of_batches(batches: Sequence[int], numbers: Sequence[int], length: int) -> list[int]:
    found = [0] * length
    for batch, number in zip(batches, numbers, strict=True):
        found[batch] = number
    return found


def of_all_calls(event: str) -> bool:
    """Return whether an event may happen to any call, and not only to a success."""
    return event == "failed" or event.startswith("class")
