"""Defines the verdict on a run: what happened, as frozen values, of which JSON is a copy.

Knows nothing of how they are found (`_findings`) and how they are written (`_verdict_text`).

Used by ``review``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from otel_connector.review._summary import ListedCall

FindingKind: TypeAlias = Literal[
    "failures",
    "slow",
    "slower",
    "tail",
    "same size",
    "larger bodies",
    "smaller bodies",
    "gap",
    "clock",
    "stopped",
    "waits",
    "retries",
]
"""What a finding is about:

- ``failures``: calls that failed
- ``slow``: hosts or endpoints that are slower than the others in the whole run
- ``slower``: durations that are longer in a stretch than in the rest
- ``tail``: calls that take more than ten times the median
- ``same size``: successes whose bodies suddenly have all the same size
- ``larger bodies``: bodies that are larger in a stretch than in the rest
- ``smaller bodies``: bodies that are smaller in a stretch than in the rest
- ``gap``: no call started, and no other pause is nearly as long
- ``clock``: the clock was set back
- ``stopped``: URLs have no row
- ``waits``: the server asked for pauses
- ``retries``: calls that needed another attempt
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A part of the run.

    Attributes:
        start: The start of its first event (a failure, a slow call, a pause), in UTC.
        end: The start of its last event, in UTC; of pauses, the end of the last one.
        calls: The number of calls of the finding's place in it.
        events: How many of them are events.
        from_start: Whether the run begins with it: no more calls are before it than by chance.
        to_end: Whether the run ends with it, in the same way.
    """

    start: datetime
    end: datetime
    calls: int
    events: int
    from_start: bool = False
    to_end: bool = False

    @property
    def seconds(self) -> float:
        """Its length in seconds."""
        return (self.end - self.start).total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """An error that nearly all failures of a finding had from some time on.

    Attributes:
        start: The start of the first call that had it, in UTC.
        error: Its class and message, of one of the calls; the class alone if the messages are mixed.
    """

    start: datetime
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that happened.

    Attributes:
        kind: What it is about.
        weight: The share of the run that it cost, of 1; findings are ordered by it.
        by: The column of the place: ``host``, ``endpoint``, or ``project`` if neither explains it; empty for all calls.
        names: The hosts, endpoints or projects; empty for all calls.
        others: The number of other ones.
        stretches: When it happened, in the order of time; empty for the whole run.
        period: From the first call of its places to the last, if this is a part of the run, and there are no stretches.
        calls: The number of calls there and then.
        events: How many of them are events.
        rest: Whether calls there are left out, because they belong to other findings about failures.
        one_class: Whether only failures of one class are its events.
        other_calls: The number of calls that belong to no finding of this kind.
        other_events: How many of these are events.
        beside_calls: The number of calls of the other places in the same stretches; for ``waits``, of the calls that
            started during a pause.
        beside_events: How many of these are events; for ``waits``, the number of pauses.
        figure: The figure that differs: seconds or bytes; NaN if there is none.
        baseline: The same figure elsewhere.
        seconds: The seconds that the events took; for ``clock`` the step, for ``gap`` the length.
        share_of_time: Their share of the seconds of all calls, of 1.
        classes: The classes of the failures with their numbers, the most frequent first; for ``retries``, the reasons
            for which another attempt was made.
        reasons: The errors that nearly all failures had, one after the other; if their classes are mixed, those of the
            most frequent class.
        retries: For ``retries``, the number of attempts after a failed one.
        succeeded: For ``retries``, how many of the events succeeded in the end.
        quarters: For ``larger bodies``, the median of each quarter of the run, if it grows from each to the next.
        sizes: For ``same size``, the smallest and the largest body elsewhere, in bytes.
        example: One of the calls.
    """

    kind: FindingKind
    weight: float
    by: str = ""
    names: tuple[str, ...] = ()
    others: int = 0
    stretches: tuple[Stretch, ...] = ()
    period: Stretch | None = None
    calls: int = 0
    events: int = 0
    rest: bool = False
    one_class: bool = False
    other_calls: int = 0
    other_events: int = 0
    beside_calls: int = 0
    beside_events: int = 0
    figure: float = math.nan
    baseline: float = math.nan
    seconds: float = 0.0
    share_of_time: float = math.nan
    classes: tuple[tuple[str, int], ...] = ()
    reasons: tuple[Reason, ...] = ()
    retries: int = 0
    succeeded: int = 0
    quarters: tuple[float, ...] = ()
    sizes: tuple[int, ...] = ()
    example: ListedCall | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Urls:
    """What became of the URLs.

    Attributes:
        total: The number of different URLs in the logs.
        done: Those with a success.
        failed: Those without a success.
        retried: Those with a call that succeeded only after another attempt; 0 without an attempts log.
        recovered: Those with a call that failed and another one that succeeded.
        missing: Those of the list that have no row; None if there is no list.
        left: Those of the list without a success; without a list, `failed`.
    """

    total: int
    done: int
    failed: int
    retried: int
    recovered: int
    missing: int | None = None
    left: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """What differs between the quarters of the run because their calls go to other hosts or endpoints.

    Attributes:
        durations: The smallest and the largest median of the durations of a quarter, in seconds; empty if not mixed.
        sizes: The same for the mean size of the bodies, in bytes.
    """

    durations: tuple[float, ...] = ()
    sizes: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What happened in a run.

    Attributes:
        start: The start of the first call, in UTC; None if there are no calls.
        end: The start of the last call, in UTC; None if there are no calls.
        calls: The number of calls.
        failed: The number of calls that failed.
        urls: What became of the URLs.
        p50: The median duration in seconds.
        p99: The 99th percentile of the durations.
        too_few: Whether there are too few calls to compare parts of the run.
        unfinished: Whether a log ends in a torn row.
        findings: What happened, the worst first; empty if nothing is unusual.
        mixed: What differs over time because the calls go to other hosts or endpoints.
    """

    start: datetime | None
    end: datetime | None
    calls: int
    failed: int
    urls: Urls
    p50: float
    p99: float
    too_few: bool
    unfinished: bool
    findings: tuple[Finding, ...]
    mixed: Mixed

    @property
    def seconds(self) -> float:
        """Seconds from the first start to the last."""
        return (self.end - self.start).total_seconds() if self.start and self.end else 0.0
