"""Defines the result of a comparison of two runs: frozen values.

Knows nothing of how they are computed (`_compare`) and how they are shown (`_compare_text`).

Used by ``cli._compare_view``, ``review``, ``review._compare``, ``review._compare_html``, ``review._compare_text`` and
``review._compared_events``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from otel_connector.review._json import plain
from otel_connector.review._verdict import Finding

FigureVerdict: TypeAlias = Literal[
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
"""The verdict on a figure. "more" and "less" are for figures of which neither is better, "less" also for durations of a
run in which more calls failed."""

LARGER_THAN_NOISE: tuple[FigureVerdict, ...] = ("worse", "better", "more", "less")  # in the order of a headline

SLOW_CALLS = 10
"""Times the median of the first run: a call of either run that takes longer is slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One figure in both runs.

    Attributes:
        figure: ``calls``, ``calls_per_second``, ``error_rate``, ``error_share``, ``p50``, ``p90``, ``p95``, ``p99``,
            ``slow_share`` (of the calls that take more than ten times the median of the first run) or
            ``bytes_per_call``.
        error: The error class of an ``error_share``.
        unit: The UCUM unit: ``1`` (a share), ``s``, ``By``, ``{call}`` or ``{call}/s``.
        before: The value in the first run; NaN if it has none.
        after: The value in the second run; NaN if it has none.
        noise: The largest difference that is attributed to chance, at the confidence of the comparison and corrected
            for the other rows of the table; NaN if unknown.
        p: The probability of such a difference by chance alone, before that correction; NaN if it was not tested.
        test: The name of the test; empty if there was none.
        verdict: The verdict.
        reason: Why there is no clear verdict, if the verdict is "too few to tell" or "too noisy to tell".
    """

    figure: str
    error: str = ""
    unit: str
    before: float
    after: float
    noise: float = math.nan
    p: float = math.nan
    test: str = ""
    verdict: FigureVerdict = "not tested"
    reason: str = ""

    @property
    def absolute(self) -> float:
        """`after` minus `before`."""
        return self.after - self.before

    @property
    def relative(self) -> float:
        """The difference as a share of `before`: 0 if both are zero, infinite if only `before` is."""
        if self.before:
            return self.absolute / self.before
        return math.inf if self.after else 0.0

    @property
    def is_of_durations(self) -> bool:
        """Whether it is a percentile of the durations, or the share of slow calls."""
        return self.unit == "s" or self.figure == "slow_share"

    @property
    def larger_than_noise(self) -> bool:
        """Whether the difference is marked as real."""
        return self.verdict in LARGER_THAN_NOISE


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Calls that both runs have: all calls, those of a project, or those to a host.

    Attributes:
        name: The project or host; empty for all calls.
        differences: The figures.
        more_errors: The number of rarer error classes that are not among them.
    """

    name: str
    differences: tuple[Difference, ...]
    more_errors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlyIn:
    """A project or host that only one of the runs has.

    Attributes:
        name: The project or host.
        calls: The number of its calls.
    """

    name: str
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """The projects, hosts or endpoints of two runs: of each of the first three kinds, those with the most calls.

    Attributes:
        compared: Those of both runs.
        only_before: Those of the first run only.
        only_after: Those of the second run only.
        more: The number of further ones of these three kinds.
    """

    compared: tuple[Compared, ...]
    only_before: tuple[OnlyIn, ...]
    only_after: tuple[OnlyIn, ...]
    more: tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """Calls of one of the two runs that failed, or took much longer, in a part of it.

    Attributes:
        run: The run.
        verdict: "worse" if the first run has no outage of the same error class and at the same places that is nearly
            as large, "better" if the second run has none, otherwise "in both runs".
        finding: What failed or was slower, when and where: of the kind ``failures`` or ``slower``.
    """

    run: Literal["before", "after"]
    verdict: Literal["worse", "better", "in both runs"]
    finding: Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One of the two runs.

    Attributes:
        files: The files that were read.
        calls: The number of calls.
        failed: How many of them failed.
        start: The start of the first call, in UTC; None if there is none.
        end: The start of the last call, in UTC; None if there is none.
    """

    files: tuple[str, ...]
    calls: int
    failed: int
    start: datetime | None
    end: datetime | None

    @property
    def seconds(self) -> float:
        """Seconds from the first start to the last."""
        return (self.end - self.start).total_seconds() if self.start and self.end else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two runs, compared.

    Attributes:
        before: The first run.
        after: The second run.
        confidence: The probability that a table of two equal runs marks no difference, of 1.
        minimum: The smallest relative difference that matters, of 1.
        outages: The outages of both runs, and the stretches of one run that are slow for both.
        total: All calls apart from those of the outages; so are the projects and hosts.
        projects: By project.
        hosts: By host and port.
        endpoints: By endpoint: the host and path of a URL, with ``{id}`` for its values.
    """

    before: Run
    after: Run
    confidence: float
    minimum: float
    outages: tuple[Outage, ...]
    total: Compared
    projects: Groups
    hosts: Groups
    endpoints: Groups

    @property
    def groups(self) -> tuple[Compared, ...]:
        """All calls, then each project, host and endpoint that was compared."""
        tables = (self.projects, self.hosts, self.endpoints)
        return (self.total, *(group for table in tables for group in table.compared))

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as values for JSON. Times are in ISO 8601; NaN and infinity are None."""
        result: dict[str, Any] = plain(self)
        del result["groups"]  # they are in the tables
        return result
