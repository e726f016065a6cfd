"""Estimates how much a figure of a run varies by chance, and tests whether two runs differ by more than that.

The calls of one run are not independent: a slow minute slows all its calls, and an outage fails hundreds of them. Tests
that assume independent calls find any difference significant if there are enough calls. So a run is divided into
`BATCHES` intervals of equal length, and the noise of a figure is how much it differs between these, not between calls
(batch means: B. Schmeiser, "Batch size effects in the analysis of simulation output", Operations Research 30, 1982,
which finds that 10 to 30 batches are enough). If neighbouring batches are correlated (by a trend, or an outage longer
than a batch), they count as fewer.

The standard library has the normal distribution; the rest is short. SciPy would add 100 MB for two functions. Knows
neither DuckDB nor calls.

Used by ``review._compare``, ``review._compare_text`` and ``review._compared_events``.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import NormalDist

BATCHES = 30
"""The number of intervals of equal length into which a run is divided."""

_FEWEST_BATCHES = 4.0  # independent batches that are assumed at least, however correlated they are
_PLENTY = 10  # expected events, and expected non-events, in each run from which their share is nearly normal


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure of one run with its uncertainty.

    Attributes:
        value: The figure.
        below: Its standard error downwards.
        above: Its standard error upwards; differs from `below` if the distribution is skewed.
        freedom: The degrees of freedom of the standard errors.
    """

    value: float
    below: float
    above: float
    freedom: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The share of the calls of one run that are events, such as failures.

    Attributes:
        estimate: The share.
        events: The number of events.
        calls: The number of calls.
        design_effect: The variance divided by that of independent calls; at least 1.
    """

    estimate: Estimate
    events: int
    calls: int
    design_effect: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Significance:
    """The result of a test of a difference.

    Attributes:
        p: The probability of a difference as large as this one by chance alone.
        error: The standard error of the difference; NaN if the test has none.
        freedom: The degrees of freedom of the error.
    """

    p: float
    error: float = math.nan
    freedom: float = math.inf

    def noise(self, level: float) -> float:
        """Return the difference that chance alone exceeds with the probability `level`; NaN if unknown."""
        return student_bound(level, self.freedom) * self.error


def effective_batches(calls: Sequence[int]) -> float:
    """Return the number of equally large batches with the same information (L. Kish, Survey Sampling, 1965)."""
    squares = sum(n * n for n in calls)
    return sum(calls) ** 2 / squares if squares else 0.0


def ratio(parts: Sequence[float], wholes: Sequence[int]) -> Estimate:
    """Return the sum of `parts` over the sum of `wholes`, such as bytes per call.

    Its variance is that of a ratio estimator over clusters (W. G. Cochran, Sampling Techniques, 1977, chapter 6).

    Args:
        parts: One for each batch.
        wholes: One for each batch; not all zero.
    """
    whole = sum(wholes)
    value = sum(parts) / whole
    return _estimate(value, [part - value * n for part, n in zip(parts, wholes, strict=True)], wholes, whole)


def share(events: Sequence[int], calls: Sequence[int]) -> Share:
    """Return the share of events: a `ratio` that is never more certain than that of independent calls.

    Args:
        events: The number in each batch.
        calls: The number in each batch; not all zero.
    """
    found, number = ratio(events, calls), sum(calls)
    independent = found.value * (1 - found.value) / number
    design_effect = max(found.above**2 / independent, 1.0) if independent else 1.0
    error = math.sqrt(design_effect * independent)
    estimate = replace(found, below=error, above=error)
    return Share(estimate=estimate, events=sum(events), calls=number, design_effect=design_effect)


def rate(calls: Sequence[int], seconds: float) -> Estimate:
    """Return the calls per second.

    Args:
        calls: The number in each batch.
        seconds: The duration of all batches together; not zero.
    """
    mean = sum(calls) / len(calls)
    return _estimate(sum(calls) / seconds, [n - mean for n in calls], [1] * len(calls), seconds)


def _estimate(value: float, residuals: Sequence[float], weights: Sequence[int], divisor: float) -> Estimate:
    """Return an estimate. Its standard error is that of the sum of the residuals, divided by `divisor`."""
    variance, batches = _variance_of_sum(residuals, weights)
    error = math.sqrt(variance) / divisor
    return Estimate(value=value, below=error, above=error, freedom=batches - 1)


def percentile_estimate(
    level: float, no_slower: Share, levels: Sequence[float], curve: Sequence[float], *, confidence: float
) -> Estimate | None:
    """Return a percentile with the errors of Woodruff's interval, which assumes no distribution and allows clusters.

    The share of calls below the percentile has a confidence interval. The percentiles at the ends of that interval are
    the ends of the interval of the percentile (R. S. Woodruff, "Confidence intervals for medians and other position
    measures", Journal of the American Statistical Association 47, 1952).

    Args:
        level: The percentile as a share of 1, such as 0.95; one of `levels`.
        no_slower: The share of calls that took no longer than the percentile.
        levels: The levels at which `curve` is known, ascending.
        curve: The percentiles at these levels.
        confidence: The confidence of the interval.

    Returns:
        The percentile; None if the interval exceeds the known part of the curve: too few calls are as slow.
    """
    bound = student_bound(1 - confidence, no_slower.estimate.freedom)
    margin = bound * no_slower.estimate.above
    if level - margin < levels[0] or level + margin > levels[-1]:
        return None
    value = curve[levels.index(level)]
    low, high = (_interpolated(at, levels, curve) for at in (level - margin, level + margin))
    return replace(no_slower.estimate, value=value, below=(value - low) / bound, above=(high - value) / bound)


def welch(before: Estimate, after: Estimate) -> Significance:
    """Test whether two figures differ: Welch's t-test, with the errors on the sides that face each other.

    B. L. Welch, Biometrika 34, 1947; for skewed figures G. Y. Zou and A. Donner, Statistics in Medicine 27, 2008.
    """
    difference = after.value - before.value
    first = (before.above if difference > 0 else before.below) ** 2
    second = (after.below if difference > 0 else after.above) ** 2
    error = math.sqrt(first + second)
    if not error:
        return Significance(p=0.0 if difference else 1.0, error=0.0)
    freedom = (first + second) ** 2 / (first**2 / before.freedom + second**2 / after.freedom)
    return Significance(p=student_p(difference / error, freedom), error=error, freedom=freedom)


def are_few(before: Share, after: Share) -> bool:
    """Return whether there are too few events, or too few calls that are not events, for `welch`."""
    design_effect = max(before.design_effect, after.design_effect)
    together = (before.events + after.events) / (before.calls + after.calls)
    fewest = min(before.calls, after.calls) / design_effect
    return fewest * min(together, 1 - together) < _PLENTY


def fisher(before: Share, after: Share) -> Significance:
    """Test whether two shares of few events differ: Fisher's exact test, two-sided.

    The counts are first divided by the design effect (J. N. K. Rao and A. J. Scott, "A simple method for the analysis
    of clustered binary data", Biometrics 48, 1992), so that an outage that failed eight calls counts as one event.
    """
    design_effect = max(before.design_effect, after.design_effect)
    first, second = (
        (round(each.events / design_effect), round(each.calls / design_effect))
        for each in sorted((before, after), key=lambda each: each.calls)
    )
    events, calls, all_calls = first[0] + second[0], first[1], first[1] + second[1]
    possible = range(max(0, events - second[1]), min(events, calls) + 1)
    chances = [
        math.exp(_log_choose(events, x) + _log_choose(all_calls - events, calls - x) - _log_choose(all_calls, calls))
        for x in possible
    ]
    observed = chances[first[0] - possible.start] * (1 + 1e-7)  # equal probabilities differ by rounding errors
    return Significance(p=min(sum(chance for chance in chances if chance <= observed), 1.0))


def holm(ps: Sequence[float], level: float) -> list[float]:
    """Return the significance level of each of several tests, so that any false positive has the probability `level`.

    A test that passes leaves more for the others (S. Holm, Scandinavian Journal of Statistics 6, 1979). This holds for
    tests that depend on each other, too, as those of p95 and p99 do.
    """
    levels = [0.0] * len(ps)
    remaining, all_passed = len(ps), True
    for index in sorted(range(len(ps)), key=ps.__getitem__):
        levels[index] = level / remaining
        all_passed = all_passed and ps[index] <= levels[index]
        remaining -= all_passed
    return levels


def student_p(t: float, freedom: float) -> float:
    """Return the two-sided p-value of Student's t.

    It is approximated by the normal distribution, and slightly too large: by 10 % with 3 degrees of freedom, by 2 %
    with 10 (D. L. Wallace, "Bounds on normal approximations to Student's and the chi-square distributions", Annals of
    Mathematical Statistics 30, 1959).
    """
    z = math.sqrt(freedom * math.log1p(t * t / freedom)) if math.isfinite(freedom) else abs(t)
    return math.erfc(z * _wallace(freedom) / math.sqrt(2))


def student_bound(p: float, freedom: float) -> float:
    """Return the t that has the two-sided p-value `p`: the inverse of `student_p`."""
    z = -NormalDist().inv_cdf(p / 2) / _wallace(freedom)
    return math.sqrt(freedom * math.expm1(z * z / freedom)) if math.isfinite(freedom) else z


def _wallace(freedom: float) -> float:
    return (8 * freedom + 1) / (8 * freedom + 3) if math.isfinite(freedom) else 1.0


def _variance_of_sum(residuals: Sequence[float], weights: Sequence[int]) -> tuple[float, float]:
    """Return the variance of the sum over all batches, and the number of independent batches they are equal to.

    A correlation r of neighbours reduces the number by (1 - r) / (1 + r), as in an AR(1) process.
    """
    squares = sum(residual * residual for residual in residuals)
    batches = effective_batches(weights)
    if not squares:
        return 0.0, batches
    neighbours = sum(one * other for one, other in pairwise(residuals)) / squares
    r = max(neighbours + 1 / len(residuals), 0.0)  # independent residuals around their own mean have -1 / n
    r = min(r, (batches - _FEWEST_BATCHES) / (batches + _FEWEST_BATCHES))
    remaining = (1 - r) / (1 + r)
    return squares * batches / (batches - 1) / remaining, batches * remaining


def _interpolated(level: float, levels: Sequence[float], curve: Sequence[float]) -> float:
    """Return a value between two points of the curve: linear in the logit, in which tails are nearly linear."""
    right = max(bisect_left(levels, level), 1)
    start, end = _logit(levels[right - 1]), _logit(levels[right])
    part = (_logit(level) - start) / (end - start)
    return curve[right - 1] + part * (curve[right] - curve[right - 1])


def _logit(level: float) -> float:
    return math.log(level / (1 - level))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
