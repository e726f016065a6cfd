"""Finds stretches of a run in which events, such as failures, are more frequent than in the rest.

A two-state automaton over batches of calls: in the usual state an event has the probability `low`, in the other state
`high`. The most likely sequence of states is found exactly, in linear time; each stretch in the second state costs a
penalty. This is the automaton of J. Kleinberg ("Bursty and hierarchical structure in streams", Data Mining and
Knowledge Discovery 7, 2003, section 4: batches with a binomial cost). Both probabilities are trained on the sequence
(Viterbi training), from several starts. Events that come in clumps have a larger variance than the binomial one, so
likelihoods are divided by the dispersion (P. McCullagh and J. A. Nelder, Generalized Linear Models, 1989, section
4.5.2). `log_likelihood_ratio` compares any calls with the rest (M. Kulldorff, "A spatial scan statistic",
Communications in Statistics 26, 1997).

The library ruptures would add numpy and SciPy, 100 MB, for this. Knows neither DuckDB nor calls.

Used by ``review._anomalies`` and ``review._described``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress, groupby, pairwise
from typing import TypeAlias

_PENALTY = 3.0
"""Times the logarithm of the number of batches: what a stretch must gain. 2 is the penalty of the modified Bayesian
information criterion for two change points (N. R. Zhang and D. O. Siegmund, Biometrics 63, 2007); 3 leaves room for
several series of a log."""

_NEARLY_ALL = 0.9  # share of the calls of places that are down that failed
SURE = -math.log(0.01)
"""The gain of a division of places from which it is no chance."""

_AFFECTED = 0.5  # times the share of events of the places of a stretch, below which the others take no part in it
_ROUNDS = 8  # of the training; it nearly always ends after three
_SHIFTS = (0.3, 1.0, 3.0)  # of the logit of all events: the first guesses of both probabilities

Counted: TypeAlias = tuple[str, int, int]  # the name of a place, its calls, and how many of them are events


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretches:
    """The result of `find`.

    Attributes:
        ranges: The first batch of each stretch, and the one after its last.
        dispersion: The variance of the events, divided by that of independent calls; at least 1.
        shares: The share of events outside and inside.
        penalty: What each stretch had to gain, in the unit of the log-likelihood.
    """

    ranges: tuple[tuple[int, int], ...]
    shares: tuple[float, float]
    dispersion: float
    penalty: float


def find(calls: Sequence[int], events: Sequence[int], guess: tuple[float, float] | None = None) -> Stretches | None:
    """Find the stretches in which events are more frequent than in the rest; None if there are none.

    Args:
        calls: The number of calls in each batch.
        events: How many of them are events.
        guess: A further first guess of the share of events outside and inside.
    """
    number, hits = sum(calls), sum(events)
    if not 0 < hits < number:
        return None
    best: tuple[float, Stretches] | None = None
    for low, high in [*([guess] if guess else []), *_guesses(calls, events, hits / number)]:
        penalty = dispersion = 1.0
        states: list[bool] = []
        for _ in range(2):  # the second time with the dispersion that remains after the first
            penalty = dispersion * _PENALTY * math.log(max(len(calls), 2))
            states = _trained(calls, events, low, high, penalty)
            if not any(states):
                break
            before, dispersion = dispersion, _dispersion(calls, events, states)
            if dispersion == before:
                break
        ranges = tuple(_ranges(states))
        if not ranges or all(states):
            continue
        inside = _sums(calls, events, states)
        gain = log_likelihood_ratio(*inside, number, hits) / dispersion - len(ranges) * penalty / dispersion
        if gain > 0 and (best is None or gain > best[0]):
            shares = _smoothed(number - inside[0], hits - inside[1]), _smoothed(*inside)
            best = gain, Stretches(ranges=ranges, shares=shares, dispersion=dispersion, penalty=penalty)
    return best and best[1]


def log_likelihood_ratio(calls: int, events: int, all_calls: int, all_events: int) -> float:
    """Return how much more likely it is that some calls have another probability of events than the rest."""
    return (
        _log_likelihood(calls, events)
        + _log_likelihood(all_calls - calls, all_events - events)
        - _log_likelihood(all_calls, all_events)
    )


def down(counts: Sequence[Counted]) -> tuple[str, ...]:
    """Return the places of which nearly all calls failed, if this is why calls failed; empty otherwise.

    The places are divided into those of which half or more failed and the others.
    """
    inside = [place for place in counts if 2 * place[2] >= place[1]]
    calls, events = _of_places(inside)
    if not len(inside) < len(counts) or events < _NEARLY_ALL * calls or not events:
        return ()
    gain = log_likelihood_ratio(calls, events, *_of_places(counts))
    return tuple(name for name, *_ in inside) if gain - _chance(len(counts), len(inside)) > SURE else ()


@dataclass(frozen=True, slots=True)
class Division:
    """Places in which events are more frequent than in the others.

    Attributes:
        names: Their names; empty if there are none.
        gain: How much more likely the calls are with two shares of events than with one.
        excess: How much of it chance does not explain.
    """

    names: tuple[str, ...] = ()
    gain: float = 0.0
    excess: float = 0.0


def affected(counts: Sequence[Counted], *, in_stretch: bool = False) -> Division:
    """Divide places where this is the most likely: events are at least twice as frequent in one part as in the other.

    In a stretch, in which something happened, a division that is more likely than not is enough to spare places without
    any event.
    """
    ordered = sorted((place for place in counts if place[1]), key=lambda place: -place[2] / place[1])
    all_calls, all_events = _of_places(ordered)
    best, most = 0, Division()
    calls = events = 0
    for number, (place, following) in enumerate(pairwise(ordered), 1):
        calls, events = calls + place[1], events + place[2]
        left = all_events - events
        is_edge = place[2] * following[1] > following[2] * place[1]  # places of the same share stay together
        if is_edge and left * calls < _AFFECTED * events * (all_calls - calls):
            gain = log_likelihood_ratio(calls, events, all_calls, all_events)
            excess = gain - _chance(len(ordered), number)
            if excess > max(most.excess, SURE if left or not in_stretch else 0.0):
                best, most = number, Division(gain=gain, excess=excess)
    inside = {name for name, *_ in ordered[:best]}
    return replace(most, names=tuple(name for name, *_ in counts if name in inside))


def _of_places(counts: Sequence[Counted]) -> tuple[int, int]:
    return sum(place[1] for place in counts), sum(place[2] for place in counts)


def _chance(places: int, inside: int) -> float:
    """Return what a division of places may gain by chance: the ways to choose a number of places, then the places.

    Each place may have few calls, so that some of many places differ from the others.
    """
    ways = math.lgamma(places + 1) - math.lgamma(inside + 1) - math.lgamma(places - inside + 1)
    return ways + math.log(places)


def _log_likelihood(calls: int, events: int) -> float:
    rest = calls - events
    return sum(part * math.log(part / calls) for part in (events, rest) if part > 0)


def _guesses(calls: Sequence[int], events: Sequence[int], share: float) -> Iterator[tuple[float, float]]:
    """Yield first guesses of both probabilities: around that of all calls, and that of the most unusual batch."""
    logit = math.log(share / (1 - share))
    for shift in _SHIFTS:
        yield _expit(logit - min(shift, 1.0)), _expit(logit + shift)
    number, hits = sum(calls), sum(events)
    # The squared deviation, in units of its variance: for one batch of many, it is twice the log-likelihood ratio
    deviations = [
        (each - share * of) ** 2 / (share * (1 - share) * of) if each > share * of else 0.0
        for of, each in zip(calls, events, strict=True)
    ]
    most = deviations.index(max(deviations))
    yield _smoothed(number - calls[most], hits - events[most]), _smoothed(calls[most], events[most])


def _trained(calls: Sequence[int], events: Sequence[int], low: float, high: float, penalty: float) -> list[bool]:
    states: list[bool] = []
    for _ in range(_ROUNDS):
        before, states = states, _most_likely(calls, events, low, high, penalty)
        if states == before or not any(states) or all(states):
            break
        number, hits = _sums(calls, events, states)
        high, low = _smoothed(number, hits), _smoothed(sum(calls) - number, sum(events) - hits)
        if high <= low:
            return []
    return states


_Path: TypeAlias = "tuple[_Path, int, int] | None"


def _most_likely(calls: Sequence[int], events: Sequence[int], low: float, high: float, penalty: float) -> list[bool]:
    """Return the most likely state of each batch, by dynamic programming (A. J. Viterbi, 1967)."""
    of_event, of_other = math.log(high / low), math.log((1 - high) / (1 - low))
    usual, unusual, start = 0.0, -math.inf, 0
    # The stretches of either path: those before the last one, its first batch, and the one after its last
    ended: _Path = None
    before = ended
    for number, (count, hits) in enumerate(zip(calls, events, strict=True)):
        if unusual > usual:
            usual, ended = unusual, (before, start, number)
        elif usual - penalty > unusual:
            unusual, before, start = usual - penalty, ended, number
        unusual += hits * of_event + (count - hits) * of_other
    states = [False] * len(calls)
    last = (before, start, len(calls)) if unusual > usual else ended
    while last is not None:
        last, start, end = last
        states[start:end] = [True] * (end - start)
    return states


def _dispersion(calls: Sequence[int], events: Sequence[int], states: list[bool]) -> float:
    """Return Pearson's statistic of the events in each state, divided by its degrees of freedom.

    The batches beside a change of the state are left out: the change is somewhere in them.
    """
    chi_squared, batches = 0.0, 0
    neighbours = zip(states[:1] + states[:-1], states, states[1:] + states[-1:], strict=True)
    steady = [before == state == after for before, state, after in neighbours]
    for state in set(states):
        inside = [is_steady and each is state for each, is_steady in zip(states, steady, strict=True)]
        number, hits = _sums(calls, events, inside)
        share = _smoothed(number, hits)
        for calls_of, hits_of in compress(zip(calls, events, strict=True), inside):
            if calls_of:
                chi_squared += (hits_of - calls_of * share) ** 2 / (calls_of * share * (1 - share))
                batches += 1
    return max(chi_squared / max(batches - 2, 1), 1.0)


def _ranges(states: Sequence[bool]) -> Iterator[tuple[int, int]]:
    for state, group in groupby(range(len(states)), key=states.__getitem__):
        numbers = list(group)
        if state:
            yield numbers[0], numbers[-1] + 1


def _sums(calls: Sequence[int], events: Sequence[int], states: Sequence[bool]) -> tuple[int, int]:
    return sum(compress(calls, states)), sum(compress(events, states))


def _smoothed(calls: int, events: int) -> float:
    return (events + 0.5) / (calls + 1)


def _expit(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))
