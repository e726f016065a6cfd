"""Two runs side by side, and which differences are larger than noise.

What is tested, and why so (`_noise` has the tests and their sources):

- The noise of a figure is how much it differs between 30 equal stretches of time of its own run, as the calls of one
  run depend on each other. What differs between two runs of the same thing on two days is not in it: no single pair of
  runs tells that.
- Calls a second, bytes a call, and shares of failures: Welch's t on the figures and these errors. Where failures are
  few, Fisher's exact test on counts divided by how much they clump.
- Percentiles: Woodruff's interval, which assumes no distribution, and Welch's t on its ends.
- Many rows are shown, and some of many differ by chance: each of the three tables (all calls, projects, hosts) is
  corrected by Holm's method, so that in all of it together one false mark is as likely as the confidence says.
- A difference may be certain and yet nothing: one of less than `minimum` is called so.
- Where a run is too short, or its noise would hide a difference of half the figure, it says so instead of "same".

The number of calls is not tested: it is what was asked for.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeAlias

from otel_connector.review import _noise
from otel_connector.review._load import Calls
from otel_connector.review._noise import STRETCHES, Estimate, Tested

Verdict: TypeAlias = Literal[
    "better",
    "worse",
    "more",
    "less",
    "same within noise",
    "too small to matter",
    "too few to tell",
    "too noisy to tell",
    "not tested",
]
"""What became of a figure; "more" and "less" are for figures of which neither is better."""

LARGER_THAN_NOISE: tuple[Verdict, ...] = ("better", "worse", "more", "less")

WELCH = f"Welch's t, errors from {STRETCHES} stretches of each run"
WOODRUFF = f"Woodruff's intervals from {STRETCHES} stretches of each run, Welch's t"
FISHER = f"Fisher's exact test, counts divided by their clumping in {STRETCHES} stretches"

FEWEST_CALLS = 100
"""Calls in a run below which nothing is tested: three a stretch."""

SHORTEST = 10.0
"""Seconds of a run below which nothing is tested.

A stretch would be shorter than one hiccup: a segment sent again, at 0.2 s the earliest on Linux, fills it whole.
"""

ERRORS = 10
"""How many error classes are compared in each group, those with the most calls."""

_FEWEST_STRETCHES = 10  # with calls, as many as Schmeiser asks for
_FEWEST_SLOWER = 10  # calls slower than a percentile, and faster
_HIDES = 0.5  # share of a figure: noise above this does not show that it is the same
_NEUTRAL = frozenset({"calls_per_second", "bytes_per_call"})  # neither more nor less of them is better
_PERCENTILES = (0.5, 0.9, 0.95, 0.99)


def _levels() -> tuple[float, ...]:
    """Return at which levels the curve of percentiles is taken: dense around those shown, and far into the tail."""
    logits = [-2 + 0.8 * step for step in range(13)]
    logits += [math.log(p / (1 - p)) + side for p in _PERCENTILES for side in (-0.05, 0.05)]
    return tuple(sorted({*_PERCENTILES, *(1 / (1 + math.exp(-logit)) for logit in logits)}))


_LEVELS = _levels()


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A figure of both runs.

    Attributes:
        figure: ``calls``, ``calls_per_second``, ``error_rate``, ``error_share``, ``p50``, ``p90``, ``p95``, ``p99`` or
            ``bytes_per_call``.
        error: The class, of an ``error_share``.
        unit: ``1`` (a share), ``s``, ``By``, ``{call}`` or ``{call}/s``, as UCUM writes them.
        before: In the first run; NaN if it is not there.
        after: In the second.
        noise: A difference that chance alone makes rarely, as rarely as the confidence and the correction for the other
            rows say; NaN where that is not known.
        p: How often chance alone makes such a difference, before that correction; NaN if it was not tested.
        test: The test; empty if there was none.
        verdict: What came of it.
        reason: Why it is "too few to tell".
    """

    figure: str
    error: str = ""
    unit: str
    before: float
    after: float
    noise: float = math.nan
    p: float = math.nan
    test: str = ""
    verdict: Verdict = "not tested"
    reason: str = ""

    @property
    def absolute(self) -> float:
        """After less before."""
        return self.after - self.before

    @property
    def relative(self) -> float:
        """The difference as a share of before: 0 where both are zero, infinite where only before is."""
        if self.before:
            return self.absolute / self.before
        return math.inf if self.after else 0.0

    @property
    def larger_than_noise(self) -> bool:
        """Whether it is marked as a difference."""
        return self.verdict in LARGER_THAN_NOISE


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Calls that both runs have: all, those of a project, or those to a host.

    Attributes:
        name: Of the project or host; empty for all calls.
        differences: The figures.
        more_errors: How many rarer error classes are not among them.
    """

    name: str
    differences: tuple[Difference, ...]
    more_errors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlyIn:
    """A project or host that one of the runs has not.

    Attributes:
        name: Which.
        calls: How many the other has.
    """

    name: str
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """The projects, or the hosts, of two runs; of each kind those with the most calls.

    Attributes:
        compared: Those that both have.
        only_before: Those that only the first has.
        only_after: Those that only the second has.
        more: How many of each of these three there are beyond those.
    """

    compared: tuple[Compared, ...]
    only_before: tuple[OnlyIn, ...]
    only_after: tuple[OnlyIn, ...]
    more: tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One of the two.

    Attributes:
        files: What was read.
        calls: How many.
        start: When the first began, in UTC; None if there was none.
        end: When the last began.
    """

    files: tuple[str, ...]
    calls: int
    start: datetime | None
    end: datetime | None

    @property
    def seconds(self) -> float:
        """From the first start to the last."""
        return (self.end - self.start).total_seconds() if self.start and self.end else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        before: The first run.
        after: The second run.
        confidence: How sure a table of marks is: in so many of cases without any difference it has none.
        minimum: What is smaller, as a share of before, does not matter.
        total: All calls.
        projects: By project.
        hosts: By host and port.
    """

    before: Run
    after: Run
    confidence: float
    minimum: float
    total: Compared
    projects: Groups
    hosts: Groups

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it: times in ISO 8601, None for what is no number."""
        return {name: _jsonable(value) for name, value in _values(self)}


def compare(
    before: Calls, after: Calls, *, confidence: float = 0.99, minimum: float = 0.02, groups: int = 20
) -> Comparison:
    """Compare two runs.

    Args:
        before: What `load` read of the first.
        after: And of the second.
        confidence: How sure a mark has to be, of 1. Each table holds in so many cases: all calls, projects, hosts.
        minimum: The smallest relative difference that matters, of 1.
        groups: How many projects, and how many hosts, are compared; those with the most calls.

    Raises:
        ValueError: An argument is out of its range; says which.
    """
    if not 0.5 <= confidence < 1:  # noqa: PLR2004 - a coin is no test
        raise ValueError(f"confidence must be from 0.5 to below 1, not {confidence!r}")
    if not 0 <= minimum < math.inf:
        raise ValueError(f"minimum must be 0 or more, not {minimum!r}")
    if groups < 0:
        raise ValueError(f"groups must be 0 or more, not {groups!r}")
    first, second = (_measured(run, "''", [""]).get("", _NOTHING) for run in (before, after))
    asked = _Asked(runs=((before, first), (after, second)), confidence=confidence, minimum=minimum)
    (total,) = _judged(asked, [("", first, second)])
    return Comparison(
        before=_run(before, first),
        after=_run(after, second),
        confidence=confidence,
        minimum=minimum,
        total=total,
        projects=_groups(asked, "project", groups),
        hosts=_groups(asked, "host", groups),
    )


def _run(calls: Calls, whole: _Measured) -> Run:
    files = tuple(file.path for file in calls.files if not file.problem)
    return Run(files=files, calls=whole.calls, start=whole.start, end=whole.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What `compare` was asked, and each run as a whole."""

    runs: tuple[tuple[Calls, _Measured], tuple[Calls, _Measured]]
    confidence: float
    minimum: float


@dataclass(slots=True, kw_only=True)
class _Measured:
    """Some calls of one run; what is counted, is counted for each stretch."""

    calls: int = 0
    start: datetime | None = None
    end: datetime | None = None
    curve: tuple[float, ...] = (math.nan,) * len(_LEVELS)
    per_stretch: list[int] = field(default_factory=lambda: [0] * STRETCHES)
    bytes: list[int] = field(default_factory=lambda: [0] * STRETCHES)
    no_slower: list[list[int]] = field(default_factory=lambda: [[0] * STRETCHES for _ in _PERCENTILES])
    errors: dict[str, list[int]] = field(default_factory=dict[str, list[int]])

    @property
    def seconds(self) -> float:
        return (self.end - self.start).total_seconds() if self.start and self.end else 0.0

    @property
    def failed(self) -> list[int]:
        return [sum(counts) for counts in zip([0] * STRETCHES, *self.errors.values(), strict=True)]

    def percentile(self, level: float) -> float:
        return self.curve[_LEVELS.index(level)]

    def too_few(self) -> str:
        """Say why nothing can be told of it, if so."""
        if self.calls < FEWEST_CALLS:
            return f"fewer than {FEWEST_CALLS} calls in a run"
        if self.seconds < SHORTEST:
            return f"a run shorter than {SHORTEST:.0f} s"
        if self.seconds < STRETCHES * self.percentile(0.5):
            return f"a run shorter than {STRETCHES} calls one after the other"
        if _noise.effective_stretches(self.per_stretch) < _FEWEST_STRETCHES:
            return "nearly all calls of a run at one time"
        return ""


_NOTHING = _Measured()


def _measured(run: Calls, by: str, names: Sequence[str]) -> dict[str, _Measured]:
    """Measure groups in three passes: their percentiles, then what depends on these and on their period, and errors.

    Args:
        run: All calls.
        by: A column, or an expression, that tells the groups apart.
        names: Those that are wanted.
    """
    found = {
        name: _Measured(calls=calls, start=start, end=end, curve=tuple(curve))
        for name, calls, start, end, curve in run.rows(
            f"SELECT {by}, count(*), min(t), max(t), quantile_cont(delta_t, {list(_LEVELS)}) FROM calls_compact "
            f"WHERE {by} IN (SELECT unnest(?::VARCHAR[])) GROUP BY 1",
            [list(names)],
        )
    }
    groups = list(found.items())
    bounds = [
        [name for name, _ in groups],
        [group.start for _, group in groups],
        # of an instant, a millionth of a second: all its calls are in the first stretch
        [STRETCHES / (group.seconds * 1e6 + 1) for _, group in groups],
        *([group.percentile(level) for _, group in groups] for level in _PERCENTILES),
    ]
    columns = "unnest(?::VARCHAR[]) AS name, unnest(?::TIMESTAMP[]) AS start, unnest(?::DOUBLE[]) AS per_us"
    thresholds = "".join(f", unnest(?::DOUBLE[]) AS q{number}" for number, _ in enumerate(_PERCENTILES))
    joined = (
        f"SELECT *, floor((epoch_us(t) - epoch_us(start)) * per_us)::INTEGER AS stretch FROM calls_compact "
        f"JOIN (SELECT {columns}{thresholds}) ON {by} = name"
    )
    no_slower = "".join(f", count_if(delta_t <= q{number})" for number, _ in enumerate(_PERCENTILES))
    counted = f"SELECT name, stretch, count(*), sum(response_size)::BIGINT{no_slower} FROM ({joined}) GROUP BY 1, 2"
    for name, stretch, calls, size, *counts in run.rows(counted, bounds):
        group = found[name]
        group.per_stretch[stretch], group.bytes[stretch] = calls, size
        for into, count in zip(group.no_slower, counts, strict=True):
            into[stretch] = count
    failed = f"SELECT name, error_type, stretch, count(*) FROM ({joined} WHERE NOT success) GROUP BY ALL ORDER BY ALL"
    for name, error, stretch, count in run.rows(failed, bounds):
        found[name].errors.setdefault(error, [0] * STRETCHES)[stretch] = count
    return found


def _groups(asked: _Asked, by: str, most: int) -> Groups:
    """Compare what both runs have, and list what only one has."""
    before, after = (
        dict(run.rows(f"SELECT {by}, count(*) FROM calls_compact GROUP BY 1 ORDER BY 2 DESC, 1"))
        for run, _ in asked.runs
    )
    both = sorted(before.keys() & after.keys(), key=lambda name: (-before[name] - after[name], name))
    only_before = [OnlyIn(name=name, calls=calls) for name, calls in before.items() if name not in after]
    only_after = [OnlyIn(name=name, calls=calls) for name, calls in after.items() if name not in before]
    # one that has all the calls is measured already
    firsts, seconds = (
        {both[0]: whole} if both and counts[both[0]] == whole.calls else _measured(run, by, both[:most])
        for (run, whole), counts in zip(asked.runs, (before, after), strict=True)
    )
    return Groups(
        compared=_judged(asked, ((name, firsts[name], seconds[name]) for name in both[:most])),
        only_before=tuple(only_before[:most]),
        only_after=tuple(only_after[:most]),
        more=(max(len(both) - most, 0), max(len(only_before) - most, 0), max(len(only_after) - most, 0)),
    )


def _judged(asked: _Asked, groups: Iterable[tuple[str, _Measured, _Measured]]) -> tuple[Compared, ...]:
    """Test all figures of one table, and judge them together."""
    tables: list[tuple[str, list[_Row], int]] = []
    for name, before, after in groups:
        errors, more = _most_frequent(before, after)
        tables.append((name, list(_rows(asked, (before, after), errors)), more))
    ps = [row.tested.p for _, rows, _ in tables for row in rows if row.tested]
    levels = iter(_noise.holm(ps, 1 - asked.confidence))
    return tuple(
        Compared(
            name=name,
            differences=tuple(
                _verdict(asked, row.difference, row.tested, next(levels)) if row.tested else row.difference
                for row in rows
            ),
            more_errors=more,
        )
        for name, rows, more in tables
    )


def _most_frequent(before: _Measured, after: _Measured) -> tuple[list[str], int]:
    """Return the error classes that are shown, and how many are not."""

    def failed(error: str) -> float:
        return sum(sum(run.errors.get(error, ())) / max(run.calls, 1) for run in (before, after))

    ordered = sorted({*before.errors, *after.errors}, key=lambda error: (-failed(error), error))
    return ordered[:ERRORS], len(ordered[ERRORS:])


@dataclass(frozen=True, slots=True)
class _Row:
    """A figure, and what the test said of it by itself."""

    difference: Difference
    tested: Tested | None = None


_Runs: TypeAlias = tuple[_Measured, _Measured]


def _rows(asked: _Asked, runs: _Runs, errors: Sequence[str]) -> Iterator[_Row]:
    """Test each figure of one group."""
    before, after = runs
    yield _Row(_figure("calls", "{call}", [before.calls, after.calls]))
    reason = before.too_few() or after.too_few()
    speed = _figure("calls_per_second", "{call}/s", (_over(run.calls, run.seconds) for run in runs))
    rates = [_noise.rate(run.per_stretch, run.seconds) for run in runs if not reason]
    yield _row(speed, WELCH, _noise.welch(*rates) if rates else None, reason)
    yield _share("error_rate", "", runs, [run.failed for run in runs], reason)
    for error in errors:
        yield _share("error_share", error, runs, [run.errors.get(error, [0] * STRETCHES) for run in runs], reason)
    for number in range(len(_PERCENTILES)):
        yield _latency(asked, runs, number, reason)
    size = _figure("bytes_per_call", "By", (_over(sum(run.bytes), run.calls) for run in runs))
    sizes = [_noise.ratio(run.bytes, run.per_stretch) for run in runs if not reason]
    yield _row(size, WELCH, _noise.welch(*sizes) if sizes else None, reason)


def _row(row: Difference, test: str, tested: Tested | None, reason: str) -> _Row:
    if tested is None:
        return _Row(dataclasses.replace(row, verdict="too few to tell", reason=reason))
    return _Row(dataclasses.replace(row, p=tested.p, test=test), tested)


def _figure(figure: str, unit: str, values: Iterable[float], error: str = "") -> Difference:
    before, after = values
    return Difference(figure=figure, error=error, unit=unit, before=before, after=after)


def _share(figure: str, error: str, runs: _Runs, counts: Sequence[Sequence[int]], reason: str) -> _Row:
    row = _figure(figure, "1", (_over(sum(each), run.calls) for each, run in zip(counts, runs, strict=True)), error)
    if reason:
        return _row(row, "", None, reason)
    before, after = (_noise.share(each, run.per_stretch) for each, run in zip(counts, runs, strict=True))
    if _noise.are_few(before, after):
        return _row(row, FISHER, _noise.fisher(before, after), "")
    return _row(row, WELCH, _noise.welch(before.estimate, after.estimate), "")


def _latency(asked: _Asked, runs: _Runs, number: int, reason: str) -> _Row:
    level = _PERCENTILES[number]
    found: list[Estimate] = []
    for run in () if reason else runs:
        if run.calls * (1 - level) >= _FEWEST_SLOWER:
            no_slower = _noise.share(run.no_slower[number], run.per_stretch)
            estimate = _noise.percentile(level, no_slower, _LEVELS, run.curve, confidence=asked.confidence)
            found += [estimate] if estimate else []
    tested = _noise.welch(*found) if len(found) == len(runs) else None
    row = _figure(f"p{level * 100:.0f}", "s", (run.percentile(level) for run in runs))
    return _row(row, WOODRUFF, tested, reason or "too few calls as slow")


def _over(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _verdict(asked: _Asked, row: Difference, tested: Tested, level: float) -> Difference:
    """Say what a test comes to among the others of its table."""
    noise = tested.noise(level)
    row = dataclasses.replace(row, noise=noise)
    if tested.p <= level:
        if abs(row.relative) < asked.minimum:
            return dataclasses.replace(row, verdict="too small to matter")
        neutral = row.figure in _NEUTRAL
        grown: Verdict = "more" if neutral else "worse"
        shrunk: Verdict = "less" if neutral else "better"
        return dataclasses.replace(row, verdict=grown if row.absolute > 0 else shrunk)
    if row.before == row.after == 0:
        return dataclasses.replace(row, verdict="same within noise")
    if math.isnan(noise) or (row.unit == "1" and noise > _HIDES * (row.before or row.after)):
        return dataclasses.replace(row, verdict="too few to tell", reason="too few failures, or too few bursts of them")
    if noise > _HIDES * (row.before or row.after):
        return dataclasses.replace(row, verdict="too noisy to tell", reason="noise that would hide a half of it")
    return dataclasses.replace(row, verdict="same within noise")


def _jsonable(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="microseconds") + "Z"
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, tuple):
        return [_jsonable(each) for each in value]  # pyright: ignore[reportUnknownVariableType] # of anything
    if dataclasses.is_dataclass(value):
        return {name: _jsonable(each) for name, each in _values(value)}
    return value


def _values(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the fields and the properties of a dataclass."""
    for each in dataclasses.fields(value):
        yield each.name, getattr(value, each.name)
    for name, _ in inspect.getmembers(value.__class__, lambda each: isinstance(each, property)):
        yield name, getattr(value, name)
