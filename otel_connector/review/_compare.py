"""Compares two runs, and decides which differences are larger than noise.

The tests, and the reasons for them (their sources are in `_noise`):

- The noise of a figure is its variation between 30 batches of its own run, equal intervals of time, because the calls
  of one run depend on each other. It does not include how the same job differs from day to day: a single pair of runs
  cannot show that.
- Calls per second, bytes per call, and shares of failures: Welch's t-test on the figures and these errors. If there are
  few failures: Fisher's exact test on counts that are divided by their design effect.
- Percentiles: Woodruff's interval, which assumes no distribution, and Welch's t-test on its ends.
- Of many rows, some differ by chance. Each of the four tables (all calls, projects, hosts, endpoints) is corrected by
  Holm's method, so that the probability of a wrong mark in the whole table is as low as the confidence requires.
- A significant difference can be irrelevant: below `minimum` it gets a verdict of its own.
- If a run is too short, or its noise could hide a difference of half the figure, the verdict says so instead of "same".

Two questions are answered. What was worse in this run? Outages and slow stretches are named (`_compared_events`): each
is one event, which no statistics of batches can tell from chance. What is worse apart from them? That is what is
tested, without their calls.

The number of calls is not tested, because the user decides on it. Knows nothing of how a comparison is shown.

Used by ``review``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import TypeAlias

from otel_connector._arguments import checked_instance, checked_int, checked_number
from otel_connector._units import exact_duration
from otel_connector.review import _noise
from otel_connector.review._compared_events import events
from otel_connector.review._comparison import (
    SLOW_CALLS,
    Compared,
    Comparison,
    Difference,
    FigureVerdict,
    Groups,
    OnlyIn,
    Run,
)
from otel_connector.review._described import condition_of, ends
from otel_connector.review._endpoints import Endpoints
from otel_connector.review._load import Calls
from otel_connector.review._noise import BATCHES, Estimate, Significance
from otel_connector.review._pauses import pauses, removed
from otel_connector.review._verdict import Finding

WELCH = f"Welch's t-test, errors from {BATCHES} batches of each run"
WOODRUFF = f"Woodruff's intervals from {BATCHES} batches of each run, Welch's t-test"
FISHER = f"Fisher's exact test, counts divided by their design effect in {BATCHES} batches"

_FEWEST_CALLS = 100  # of a run that is tested: three per batch
# Fewest seconds of a run that is tested. In a shorter run, one retransmitted TCP segment (0.2 s at the earliest on
# Linux) would fill a whole batch
_SHORTEST = 10.0
_MOST_ERRORS = 10  # error classes that are compared in each group: those with the most calls
_FEWEST_BATCHES = 10  # with calls; the minimum of Schmeiser
_FEWEST_SLOWER = 10  # calls that are slower than a tested percentile
_COIN = 0.5  # a confidence that needs no test
_HIDES = 0.5  # share of a figure: with more noise, the figure cannot be called the same
_NEUTRAL = frozenset({"calls_per_second", "bytes_per_call"})  # neither more nor less of them is better
_PERCENTILES = (0.5, 0.9, 0.95, 0.99)


def _levels() -> tuple[float, ...]:
    """Return the levels of the curve of percentiles: dense around those shown, and far into the tail."""
    logits = [-2 + 0.8 * step for step in range(13)]
    logits += [math.log(p / (1 - p)) + side for p in _PERCENTILES for side in (-0.05, 0.05)]
    return tuple(sorted({*_PERCENTILES, *(1 / (1 + math.exp(-logit)) for logit in logits)}))


_LEVELS = _levels()


def compare(
    before: Calls, after: Calls, *, confidence: float = 0.99, minimum: float = 0.02, groups: int = 20
) -> Comparison:
    """Compare two runs.

    Args:
        before: The calls of the first run. Both get the same endpoints, which are found in both runs together.
        after: The calls of the second run.
        confidence: The probability that a table of two equal runs marks no difference, of 1. There are four tables:
            all calls, projects, hosts, endpoints.
        minimum: The smallest relative difference that matters, of 1.
        groups: The number of projects, of hosts and of endpoints that are compared: those with the most calls.

    Raises:
        TypeError: An argument has the wrong type; the message names it.
        ValueError: An argument is out of range; the message names it.
    """
    checked_instance("before", before, Calls)
    checked_instance("after", after, Calls)
    if not _COIN <= checked_number("confidence", confidence) < 1:
        raise ValueError(f"confidence must be from {_COIN} to below 1, not {confidence!r}")
    if not 0 <= checked_number("minimum", minimum) < math.inf:
        raise ValueError(f"minimum must be 0 or more, and finite, not {minimum!r}")
    checked_int("groups", groups, least=0)
    _share_endpoints(before, after)
    found = tuple(events(before, after))
    # What is down in a whole run is left out of both: the rest of the run would have other places than the other run
    down = [each.finding for each in found if not each.finding.stretches]
    for run, name in ((before, "before"), (after, "after")):
        _create_view(run, [*(each.finding for each in found if each.run == name), *down])
    whole = _measured(before, "''", [""])
    first, second = (each.get("", _NOTHING) for each in (whole, _measured(after, "''", [""], whole)))
    task = _Task(runs=((before, first), (after, second)), confidence=confidence, minimum=minimum)
    (total,) = _tested(task, [("", first, second)])
    return Comparison(
        before=_run(before),
        after=_run(after),
        confidence=confidence,
        minimum=minimum,
        outages=found,
        total=total,
        projects=_groups(task, "project", groups),
        hosts=_groups(task, "host", groups),
        endpoints=_groups(task, "endpoint", groups),
    )


def _share_endpoints(before: Calls, after: Calls) -> None:
    """Find the endpoints in both runs together. Otherwise the same URL may have a value in one run only."""
    shared = Endpoints(before.endpoints.groups + after.endpoints.groups)
    for calls in (before, after):
        paths = (path for path, *_ in calls.endpoints.groups)
        if calls.regroup and any(calls.endpoints.of(path) != shared.of(path) for path in paths):
            calls.regroup(shared)


def _run(calls: Calls) -> Run:
    files = tuple(file.path for file in calls.files if not file.problem)
    ((number, failed, start, end),) = calls.rows(
        "SELECT count(*), count(*) FILTER (WHERE NOT success), min(t), max(t) FROM calls_compact"
    )
    return Run(files=files, calls=number, failed=failed, start=start, end=end)


def _create_view(calls: Calls, found: Sequence[Finding]) -> None:
    """Create the view ``calls_apart``: calls without those of outages, and no time of outages of all and of pauses."""
    kept = " AND ".join(f"NOT {condition_of(each)}" for each in found) or "TRUE"
    of_all = list[tuple[int, int]]()
    of_outages = [ends(stretch) for each in found if not each.others for stretch in each.stretches]
    for low, high in sorted([*of_outages, *pauses(calls)]):
        last = max((end for _, end in of_all), default=low)
        of_all += [(max(low, last), high)] if high > last else []  # without what belongs to another one
    shifted = f"SELECT * REPLACE (make_timestamp(epoch_us(t) - {removed(of_all)}) AS t)" if of_all else "SELECT *"
    calls.rows(f"CREATE OR REPLACE TEMP VIEW calls_apart AS {shifted} FROM calls_compact WHERE {kept}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """The arguments of `compare`, and each run as a whole."""

    runs: tuple[tuple[Calls, _Measured], tuple[Calls, _Measured]]
    confidence: float
    minimum: float


@dataclass(slots=True, kw_only=True)
class _Measured:
    """Figures of some calls of one run. Lists have one number for each batch."""

    calls: int = 0
    start: datetime | None = None
    end: datetime | None = None
    curve: tuple[float, ...] = (math.nan,) * len(_LEVELS)
    per_batch: list[int] = field(default_factory=lambda: [0] * BATCHES)
    bytes: list[int] = field(default_factory=lambda: [0] * BATCHES)
    slow: list[int] = field(default_factory=lambda: [0] * BATCHES)
    no_slower: list[list[int]] = field(default_factory=lambda: [[0] * BATCHES for _ in _PERCENTILES])
    errors: dict[str, list[int]] = field(default_factory=dict[str, list[int]])

    @property
    def seconds(self) -> float:
        return (self.end - self.start).total_seconds() if self.start and self.end else 0.0

    @property
    def failed(self) -> list[int]:
        return [sum(counts) for counts in zip([0] * BATCHES, *self.errors.values(), strict=True)]

    def percentile(self, level: float) -> float:
        return self.curve[_LEVELS.index(level)]

    def too_few(self) -> str:
        """Return why the calls cannot be compared; empty if they can."""
        if self.calls < _FEWEST_CALLS:
            return f"fewer than {_FEWEST_CALLS} calls in a run"
        if self.seconds < _SHORTEST:
            return f"a run shorter than {exact_duration(_SHORTEST)}"
        if self.seconds < BATCHES * self.percentile(0.5):
            return f"a run shorter than {BATCHES} sequential calls"
        if _noise.effective_batches(self.per_batch) < _FEWEST_BATCHES:
            return f"nearly all calls of a run in fewer than {_FEWEST_BATCHES} of {BATCHES} equal parts of its time"
        return ""


_NOTHING = _Measured()


def _measured(
    run: Calls, by: str, names: Sequence[str], first: Mapping[str, _Measured] = MappingProxyType({})
) -> dict[str, _Measured]:
    """Measure groups of calls in three queries: percentiles, then the counts that depend on them, then errors.

    Args:
        run: All calls.
        by: The column, or expression, that identifies a group.
        names: The groups to measure.
        first: The same groups of the first run, of whose medians slow calls take many times as long; empty for its own.
    """
    found = {
        name: _Measured(calls=calls, start=start, end=end, curve=tuple(curve))
        for name, calls, start, end, curve in run.rows(
            f"SELECT {by}, count(*), min(t), max(t), quantile_cont(delta_t, {list(_LEVELS)}) FROM calls_apart "
            f"WHERE {by} IN (SELECT unnest(?::VARCHAR[])) GROUP BY 1",
            [list(names)],
        )
    }
    groups = list(found.values())
    parameters = [
        list(found),
        [group.start for group in groups],
        # + 1 microsecond: the calls of a period without length are all in the first batch
        [BATCHES / (group.seconds * 1e6 + 1) for group in groups],
        [SLOW_CALLS * first.get(name, group).percentile(0.5) for name, group in found.items()],
        *([group.percentile(level) for group in groups] for level in _PERCENTILES),
    ]
    columns = "unnest(?::VARCHAR[]) AS name, unnest(?::TIMESTAMP[]) AS start, unnest(?::DOUBLE[]) AS per_us, "
    columns += "unnest(?::DOUBLE[]) AS longest"
    thresholds = "".join(f", unnest(?::DOUBLE[]) AS q{number}" for number, _ in enumerate(_PERCENTILES))
    joined = (
        # the limit is for periods of centuries, whose number of microseconds is rounded
        f"SELECT *, least(floor((epoch_us(t) - epoch_us(start)) * per_us), {BATCHES - 1})::INTEGER AS batch "
        f"FROM calls_apart "
        f"JOIN (SELECT {columns}{thresholds}) ON {by} = name"
    )
    no_slower = "".join(f", count_if(delta_t <= q{number})" for number, _ in enumerate(_PERCENTILES))
    figures = f"count(*), sum(response_size), count_if(delta_t > longest){no_slower}"
    for name, batch, calls, size, slow, *counts in run.rows(
        f"SELECT name, batch, {figures} FROM ({joined}) GROUP BY 1, 2", parameters
    ):
        group = found[name]
        group.per_batch[batch], group.bytes[batch], group.slow[batch] = calls, size, slow
        for target, count in zip(group.no_slower, counts, strict=True):
            target[batch] = count
    failed = f"SELECT name, error_type, batch, count(*) FROM ({joined} WHERE NOT success) GROUP BY ALL ORDER BY ALL"
    for name, error, batch, count in run.rows(failed, parameters):
        found[name].errors.setdefault(error, [0] * BATCHES)[batch] = count
    return found


def _groups(task: _Task, by: str, most: int) -> Groups:
    """Compare the groups that both runs have, and list those that only one has."""
    before, after = (
        dict(run.rows(f"SELECT {by}, count(*) FROM calls_apart GROUP BY 1 ORDER BY 2 DESC, 1")) for run, _ in task.runs
    )
    both = sorted(before.keys() & after.keys(), key=lambda name: (-before[name] - after[name], name))
    only_before = [OnlyIn(name=name, calls=calls) for name, calls in before.items() if name not in after]
    only_after = [OnlyIn(name=name, calls=calls) for name, calls in after.items() if name not in before]
    # A group with all calls of a run has been measured already
    firsts, seconds = dict[str, _Measured](), dict[str, _Measured]()
    for (run, whole), counts, measured in zip(task.runs, (before, after), (firsts, seconds), strict=True):
        is_whole = both and counts[both[0]] == whole.calls
        measured.update({both[0]: whole} if is_whole else _measured(run, by, both[:most], firsts))
    return Groups(
        compared=_tested(task, ((name, firsts[name], seconds[name]) for name in both[:most])),
        only_before=tuple(only_before[:most]),
        only_after=tuple(only_after[:most]),
        more=(max(len(both) - most, 0), max(len(only_before) - most, 0), max(len(only_after) - most, 0)),
    )


def _tested(task: _Task, groups: Iterable[tuple[str, _Measured, _Measured]]) -> tuple[Compared, ...]:
    """Test all figures of one table, and correct for their number."""
    tables: list[tuple[str, list[_TestedFigure], int]] = []
    for name, before, after in groups:
        errors, more = _most_frequent(before, after)
        tables.append((name, list(_rows(task, (before, after), errors)), more))
    ps = [significance.p for _, rows, _ in tables for _, significance in rows if significance]
    levels = iter(_noise.holm(ps, 1 - task.confidence))
    return tuple(
        Compared(
            name=name,
            differences=_without_faster_failures(
                [
                    _judged(task, difference, significance, next(levels)) if significance else difference
                    for difference, significance in rows
                ]
            ),
            more_errors=more,
        )
        for name, rows, more in tables
    )


def _without_faster_failures(rows: Sequence[Difference]) -> tuple[Difference, ...]:
    """Return the figures. Shorter durations are not better if more calls failed: failed calls are often short."""
    if not any(row.figure == "error_rate" and row.verdict == "worse" for row in rows):
        return tuple(rows)
    return tuple(
        dataclasses.replace(row, verdict="less") if row.is_of_durations and row.verdict == "better" else row
        for row in rows
    )


def _most_frequent(before: _Measured, after: _Measured) -> tuple[list[str], int]:
    """Return the error classes that are compared, and the number of the others."""

    def rate(error: str) -> float:
        return sum(sum(run.errors.get(error, ())) / max(run.calls, 1) for run in (before, after))

    ordered = sorted({*before.errors, *after.errors}, key=lambda error: (-rate(error), error))
    return ordered[:_MOST_ERRORS], len(ordered[_MOST_ERRORS:])


_TestedFigure: TypeAlias = tuple[Difference, Significance | None]  # a figure, and the result of its own test
_Runs: TypeAlias = tuple[_Measured, _Measured]


def _rows(task: _Task, runs: _Runs, errors: Sequence[str]) -> Iterator[_TestedFigure]:
    """Test each figure of one group."""
    before, after = runs
    yield _figure("calls", "{call}", [before.calls, after.calls]), None
    reason = before.too_few() or after.too_few()
    speed = _figure("calls_per_second", "{call}/s", (_ratio(run.calls, run.seconds) for run in runs))
    rates = [_noise.rate(run.per_batch, run.seconds) for run in runs if not reason]
    yield _row(speed, WELCH, _noise.welch(*rates) if rates else None, reason)
    yield _share("error_rate", "", runs, [run.failed for run in runs], reason)
    for error in errors:
        yield _share("error_share", error, runs, [run.errors.get(error, [0] * BATCHES) for run in runs], reason)
    for number in range(len(_PERCENTILES)):
        yield _latency(task, runs, number, reason)
    yield _share("slow_share", "", runs, [run.slow for run in runs], reason)
    size = _figure("bytes_per_call", "By", (_ratio(sum(run.bytes), run.calls) for run in runs))
    sizes = [_noise.ratio(run.bytes, run.per_batch) for run in runs if not reason]
    yield _row(size, WELCH, _noise.welch(*sizes) if sizes else None, reason)


def _row(row: Difference, test: str, significance: Significance | None, reason: str) -> _TestedFigure:
    if significance is None:
        return dataclasses.replace(row, verdict="too few to tell", reason=reason), None
    return dataclasses.replace(row, p=significance.p, test=test), significance


def _figure(figure: str, unit: str, values: Iterable[float], error: str = "") -> Difference:
    before, after = values
    return Difference(figure=figure, error=error, unit=unit, before=before, after=after)


def _share(figure: str, error: str, runs: _Runs, counts: Sequence[Sequence[int]], reason: str) -> _TestedFigure:
    row = _figure(figure, "1", (_ratio(sum(each), run.calls) for each, run in zip(counts, runs, strict=True)), error)
    if reason:
        return _row(row, "", None, reason)
    before, after = (_noise.share(each, run.per_batch) for each, run in zip(counts, runs, strict=True))
    if _noise.are_few(before, after):
        return _row(row, FISHER, _noise.fisher(before, after), "")
    return _row(row, WELCH, _noise.welch(before.estimate, after.estimate), "")


def _latency(task: _Task, runs: _Runs, number: int, reason: str) -> _TestedFigure:
    level = _PERCENTILES[number]
    found: list[Estimate] = []
    for run in () if reason else runs:
        if run.calls * (1 - level) >= _FEWEST_SLOWER:
            no_slower = _noise.share(run.no_slower[number], run.per_batch)
            estimate = _noise.percentile_estimate(level, no_slower, _LEVELS, run.curve, confidence=task.confidence)
            found += [estimate] if estimate else []
    significance = _noise.welch(*found) if len(found) == len(runs) else None
    row = _figure(f"p{level * 100:.0f}", "s", (run.percentile(level) for run in runs))
    return _row(row, WOODRUFF, significance, reason or "too few calls as slow")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _judged(task: _Task, row: Difference, significance: Significance, level: float) -> Difference:
    """Return a figure with its verdict, at the significance level that the correction leaves for it."""
    noise = significance.noise(level)
    verdict: FigureVerdict = "same within noise"
    reason = ""
    if significance.p <= level:
        verdicts: tuple[FigureVerdict, FigureVerdict] = (
            ("more", "less") if row.figure in _NEUTRAL else ("worse", "better")
        )
        verdict = verdicts[row.absolute <= 0]
        if abs(row.relative) < task.minimum:
            verdict = "too small to matter"
    elif row.before or row.after:
        hidden = noise > _HIDES * (row.before or row.after)
        if math.isnan(noise) or (hidden and row.unit == "1"):
            what = "slow calls" if row.is_of_durations else "failures"
            verdict, reason = "too few to tell", f"too few independent {what}"
        elif hidden:
            verdict, reason = "too noisy to tell", "the noise could hide a difference of a half"
    return dataclasses.replace(row, noise=noise, verdict=verdict, reason=reason)
