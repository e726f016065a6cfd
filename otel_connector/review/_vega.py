"""Builds Vega expressions: texts of values with units, and the ticks and labels of a time axis; and ticks of durations.

Vega evaluates them where a chart is drawn. The texts are those of `_units`. Knows neither Altair nor the data.

Used by ``review._charts``.
"""

from __future__ import annotations

import math

from otel_connector._units import LEAST_SHARE, LONG_DURATIONS, MINUTE, NONE, SHORT_DURATIONS, STEP

_SPAN = "(toNumber(domain('x')[1]) - toNumber(domain('x')[0]))"  # milliseconds that the x axis shows
_DAY = 86_400_000  # milliseconds
_STEPS = (
    *(1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 15_000, 30_000),
    *(minutes * 60_000 for minutes in (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720)),
    *(days * _DAY for days in (1, 2, 4, 7, 14, 28, 91, 182, 365, 1_826, 7_305, 36_525)),
)  # milliseconds between time labels
_LABEL, _LONG_LABEL = 60, 100  # pixels for a time label with its margin, without and with seconds

_MOST_TICKS = 7
_TICK_UNITS = ((1, 0, 60), (60, 60, 3_600), (3_600, 3_600, math.inf))  # seconds of a unit, and from where to where
_TICK_FACTORS = ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))

# Vega itself has no time ticks below a second. These two signals choose the smallest common step for which the labels
# fit, at any zoom
TICK_SIGNALS = {
    "least": f"{_SPAN} / max(2, width / ({_SPAN} < 600000 ? {_LONG_LABEL} : {_LABEL}))",
    "step": "".join(f"least <= {step} ? {step} : " for step in _STEPS[:-1]) + str(_STEPS[-1]),
}
"""The signals that `TIME_TICKS` needs: expressions by name, to be defined in this order."""

TIME_TICKS = "sequence(ceil(toNumber(domain('x')[0]) / step) * step, toNumber(domain('x')[1]) + 1, step)"
"""The times of the ticks of a time axis, in milliseconds since 1970."""

TIME_LABEL = (
    f"utcFormat(datum.value, {_SPAN} > {400 * _DAY} ? '%b %Y' : time(datum.value) % {_DAY} == 0 ? '%d %b' : "
    "time(datum.value) % 60000 == 0 ? '%H:%M' : time(datum.value) % 1000 == 0 ? '%H:%M:%S' : '%H:%M:%S.%L')"
)
"""The label of a tick: only as precise as its time."""


def duration(value: str, *, axis: bool = False) -> str:
    """Return an expression for the text of a duration in seconds, as `_units.duration` writes it.

    Args:
        value: The expression of the duration; it may be null.
        axis: Whether it is the label of an axis, which has no unnecessary zeros: ``1 ms``, ``2 min``.
    """
    digits = ".3~r" if axis else ".3r"
    text = f"{value} == null ? '{NONE}' : {value} == 0 ? '0 s' : "
    for unit, factor in SHORT_DURATIONS:
        limit = MINUTE if factor == 1 else (STEP - 0.5) / factor
        text += f"{value} < {limit} ? format({value} * {factor}, '{digits}') + ' {unit}' : "
    for larger, smaller, (first, second) in LONG_DURATIONS:
        number, rest = f"floor(round({value}) / {larger})", f"floor(round({value}) % {larger} / {smaller})"
        last = f"' ' + {rest} + ' {second}'"
        last = f"({rest} == 0 ? '' : {last})" if axis else last
        text += f"round({value}) >= {larger} ? {number} + ' {first}' + {last} : "
    return f"({text}'{NONE}')"


def share(value: str) -> str:
    """Return an expression for the text of a share of 1, as `_units.share` writes it."""
    small, large = f"{value} > 0 && {value} < {LEAST_SHARE}", f"{value} < 1 && {value} > {1 - LEAST_SHARE}"
    return f"({small} ? '<0.01 %' : {large} ? '>99.99 %' : format({value} * 100, '.2f') + ' %')"


def clock(value: str, zone: str) -> str:
    """Return an expression for the text of a time, with milliseconds if it has any, and the name of its zone."""
    return (
        f"utcFormat({value}, '%Y-%m-%d %H:%M:%S') + ({value} % 1000 == 0 ? '' : utcFormat({value}, '.%L')) + ' {zone}'"
    )


def ticks(low: float, high: float) -> list[float]:
    """Return the round numbers of seconds, minutes and hours in a range, as many as fit on an axis."""
    ticks = list[float]()
    for factors in _TICK_FACTORS:
        ticks = [
            tick
            for unit, start, end in _TICK_UNITS
            for power in range(-5, 5)
            for factor in factors
            if max(low, start) <= (tick := float(f"{factor}e{power}") * unit) <= high and tick < end
        ]
        if len(ticks) <= _MOST_TICKS:
            break
    return ticks
