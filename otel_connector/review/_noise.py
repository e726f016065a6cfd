"""How far a figure of a run can be off by chance, and whether two runs differ by more than that.

The calls of one run are no independent draws: a slow minute slows all of its calls, an outage fails hundreds at once.
Tests that take them for such call any difference significant once there are enough of them. So a run is cut into
`STRETCHES` equal stretches of time, and the noise of a figure is how much it differs between these, never between calls
(batch means: B. Schmeiser, "Batch size effects in the analysis of simulation output", Operations Research 30, 1982,
which finds 10 to 30 of them enough). Where stretches go together with their neighbours (a trend, an outage longer than
one of them), they count for fewer.

The standard library has the normal distribution, and nothing more is needed that is longer than a line; SciPy would
bring 100 MB for two functions. Knows neither DuckDB nor what a call is.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

STRETCHES = 30
"""Stretches of equal time into which a run is cut."""

_LEAST_STRETCHES = 4.0  # that neighbours which go together may leave of them
_PLENTY = 10  # events and non-events to be expected in either run for their share to be about normal


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure of one run.

    Attributes:
        value: The figure.
        below: Its standard error towards what is less.
        above: Its standard error towards what is more; another than `below` if its distribution is skew.
        freedom: Degrees of freedom of these.
    """

    value: float
    below: float
    above: float
    freedom: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What share of the calls of one run something holds for.

    Attributes:
        estimate: The share.
        events: How many calls it holds for.
        calls: Of how many.
        clumping: How many times the variance is that of independent calls; at least 1.
    """

    estimate: Estimate
    events: int
    calls: int
    clumping: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """What a test said.

    Attributes:
        p: How often chance alone makes a difference as large as this one.
        error: The standard error of the difference; NaN for a test that has none.
        freedom: Degrees of freedom of the error.
    """

    p: float
    error: float = math.nan
    freedom: float = math.inf

    def noise(self, level: float) -> float:
        """Return the difference that chance alone exceeds in a share `level` of all cases; NaN if not known."""
        return student_bound(level, self.freedom) * self.error


def effective_stretches(calls: Sequence[int]) -> float:
    """Return how many stretches with equally many calls would tell as much (L. Kish, Survey Sampling, 1965)."""
    squares = sum(n * n for n in calls)
    return sum(calls) ** 2 / squares if squares else 0.0


def ratio(parts: Sequence[float], wholes: Sequence[int]) -> Estimate:
    """Return the sum of `parts` over the sum of `wholes`, such as bytes per call.

    Its variance is that of a ratio estimator over clusters (W. G. Cochran, Sampling Techniques, 1977, chapter 6).

    Args:
        parts: Of each stretch.
        wholes: Of each stretch; not all zero.
    """
    whole = sum(wholes)
    value = sum(parts) / whole
    variance, stretches = _variance_of_sum([part - value * n for part, n in zip(parts, wholes, strict=True)], wholes)
    error = math.sqrt(variance) / whole
    return Estimate(value=value, below=error, above=error, freedom=stretches - 1)


def share(events: Sequence[int], calls: Sequence[int]) -> Share:
    """Return the share of calls that are `events`: a `ratio` no more certain than that of independent calls.

    Args:
        events: Of each stretch.
        calls: Of each stretch; not all zero.
    """
    found, number = ratio(events, calls), sum(calls)
    independent = found.value * (1 - found.value) / number
    clumping = max(found.above**2 / independent, 1.0) if independent else 1.0
    error = math.sqrt(clumping * independent)
    estimate = Estimate(value=found.value, below=error, above=error, freedom=found.freedom)
    return Share(estimate=estimate, events=sum(events), calls=number, clumping=clumping)


def rate(calls: Sequence[int], seconds: float) -> Estimate:
    """Return calls a second.

    Args:
        calls: Of each stretch.
        seconds: Of all of them together; not zero.
    """
    mean = sum(calls) / len(calls)
    variance, stretches = _variance_of_sum([n - mean for n in calls], [1] * len(calls))
    error = math.sqrt(variance) / seconds
    return Estimate(value=sum(calls) / seconds, below=error, above=error, freedom=stretches - 1)


def percentile(
    level: float, no_slower: Share, levels: Sequence[float], curve: Sequence[float], *, confidence: float
) -> Estimate | None:
    """Return a percentile, its errors by Woodruff's interval: free of any distribution, and right for clusters.

    The share of calls below it has an error; the percentiles at the ends of the interval of that share are the ends of
    the interval of the percentile (R. S. Woodruff, "Confidence intervals for medians and other position measures",
    Journal of the American Statistical Association 47, 1952).

    Args:
        level: Which, such as 0.95; one of `levels`.
        no_slower: The share of calls that took no longer than it.
        levels: Those at which `curve` is known, ascending.
        curve: The percentiles there.
        confidence: Of the interval.

    Returns:
        The percentile; None if its interval leaves what is known of the curve: too few calls are as slow.
    """
    bound = student_bound(1 - confidence, no_slower.estimate.freedom)
    margin = bound * no_slower.estimate.above
    if level - margin < levels[0] or level + margin > levels[-1]:
        return None
    value = curve[levels.index(level)]
    low, high = (_interpolated(at, levels, curve) for at in (level - margin, level + margin))
    freedom = no_slower.estimate.freedom
    return Estimate(value=value, below=(value - low) / bound, above=(high - value) / bound, freedom=freedom)


def welch(before: Estimate, after: Estimate) -> Tested:
    """Test whether two figures differ: Welch's t, with the errors on the sides that face each other.

    B. L. Welch, Biometrika 34, 1947; for skew figures G. Y. Zou and A. Donner, Statistics in Medicine 27, 2008.
    """
    difference = after.value - before.value
    first = (before.above if difference > 0 else before.below) ** 2
    second = (after.below if difference > 0 else after.above) ** 2
    error = math.sqrt(first + second)
    if not error:
        return Tested(p=0.0 if difference else 1.0, error=0.0)
    freedom = (first + second) ** 2 / (first**2 / before.freedom + second**2 / after.freedom)
    return Tested(p=student_p(difference / error, freedom), error=error, freedom=freedom)


def are_few(before: Share, after: Share) -> bool:
    """Whether events, or calls that are none, are too few for `welch`."""
    clumping = max(before.clumping, after.clumping)
    together = (before.events + after.events) / (before.calls + after.calls)
    fewest = min(before.calls, after.calls) / clumping
    return fewest * min(together, 1 - together) < _PLENTY


def fisher(before: Share, after: Share) -> Tested:
    """Test whether two shares of few events differ: Fisher's exact test, two-sided.

    The counts are first divided by how much they clump (J. N. K. Rao and A. J. Scott, "A simple method for the analysis
    of clustered binary data", Biometrics 48, 1992), so that an outage that failed eight calls counts as one event.
    """
    clumping = max(before.clumping, after.clumping)
    first, second = (
        (round(each.events / clumping), round(each.calls / clumping))
        for each in sorted((before, after), key=lambda each: each.calls)
    )
    events, calls, all_calls = first[0] + second[0], first[1], first[1] + second[1]
    possible = range(max(0, events - second[1]), min(events, calls) + 1)
    chances = [
        math.exp(_log_choose(events, x) + _log_choose(all_calls - events, calls - x) - _log_choose(all_calls, calls))
        for x in possible
    ]
    seen = chances[first[0] - possible.start] * (1 + 1e-7)  # equally likely ones differ by rounding
    return Tested(p=min(sum(chance for chance in chances if chance <= seen), 1.0))


def holm(ps: Sequence[float], level: float) -> list[float]:
    """Return, of tests that are shown together, the level that each has to reach for one false alarm in 1 / level.

    A test that passes it leaves more for the others (S. Holm, Scandinavian Journal of Statistics 6, 1979). It holds
    however the tests depend on each other, as those of p95 and p99 do.
    """
    levels = [0.0] * len(ps)
    left, still_passing = len(ps), True
    for place in sorted(range(len(ps)), key=ps.__getitem__):
        levels[place] = level / left
        still_passing = still_passing and ps[place] <= levels[place]
        left -= still_passing
    return levels


def student_p(t: float, freedom: float) -> float:
    """Return the two-sided p of Student's t.

    By the normal distribution, a little too large: by 10 % with 3 degrees of freedom, by 2 % with 10 (D. L. Wallace,
    "Bounds on normal approximations to Student's and the chi-square distributions", Annals of Mathematical
    Statistics 30, 1959).
    """
    z = math.sqrt(freedom * math.log1p(t * t / freedom)) if math.isfinite(freedom) else abs(t)
    return math.erfc(z * _wallace(freedom) / math.sqrt(2))


def student_bound(p: float, freedom: float) -> float:
    """Return the t whose two-sided p it is: the inverse of `student_p`."""
    z = -NormalDist().inv_cdf(p / 2) / _wallace(freedom)
    return math.sqrt(freedom * math.expm1(z * z / freedom)) if math.isfinite(freedom) else z


def _wallace(freedom: float) -> float:
    return (8 * freedom + 1) / (8 * freedom + 3) if math.isfinite(freedom) else 1.0


def _variance_of_sum(residuals: Sequence[float], weights: Sequence[int]) -> tuple[float, float]:
    """Return the variance of the sum of stretches, and for how many independent ones they count.

    A correlation r of neighbours leaves (1 - r) / (1 + r) of them, as in a process that forgets exponentially.
    """
    squares = sum(residual * residual for residual in residuals)
    stretches = effective_stretches(weights)
    if not squares:
        return 0.0, stretches
    neighbours = sum(one * other for one, other in pairwise(residuals)) / squares
    r = max(neighbours + 1 / len(residuals), 0.0)  # independent residuals around their own mean have -1 / n
    most = (stretches - _LEAST_STRETCHES) / (stretches + _LEAST_STRETCHES)
    left = (1 - min(r, most)) / (1 + min(r, most))
    return squares * stretches / (stretches - 1) / left, stretches * left


def _interpolated(level: float, levels: Sequence[float], curve: Sequence[float]) -> float:
    """Return the curve between two of its points: straight over the logit, over which tails are about straight."""
    right = max(bisect_left(levels, level), 1)
    start, end = _logit(levels[right - 1]), _logit(levels[right])
    part = (_logit(level) - start) / (end - start)
    return curve[right - 1] + part * (curve[right] - curve[right - 1])


def _logit(level: float) -> float:
    return math.log(level / (1 - level))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
