"""How figures are written for people: with a unit, three digits that count, and the same everywhere."""

from __future__ import annotations

import math
from datetime import datetime

NONE = "-"
"""What is shown where there is no figure."""

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
_SHORT = (("us", 1e6), ("ms", 1e3), ("s", 1))
_LONG = ((_DAY, _HOUR, ("d", "h")), (_HOUR, _MINUTE, ("h", "min")), (_MINUTE, 1, ("min", "s")))
_PERIODS = (("s", 1), ("min", _MINUTE), ("h", _HOUR))
_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")  # powers of 1,000
_STEP = 1_000


def duration(seconds: float) -> str:
    """Write a duration: ``850 us``, ``207 ms``, ``1.38 s``, ``2 min 3 s``, ``7 h 46 min``, ``3 d 4 h``."""
    if math.isnan(seconds):
        return NONE
    if not seconds:
        return "0 s"
    if seconds < _MINUTE:
        unit, factor = next((each for each in _SHORT if seconds * each[1] < _STEP - 0.5), ("s", 1))
        return f"{_three_digits(seconds * factor)} {unit}"
    whole = round(seconds)
    larger, smaller, names = next(each for each in _LONG if whole >= each[0])
    return f"{whole // larger} {names[0]} {whole % larger // smaller} {names[1]}"


def size(count: float) -> str:
    """Write a number of bytes, in powers of 1,000: ``512 B``, ``23.4 GB``."""
    if math.isnan(count):
        return NONE
    power = min(int(math.log(max(count, 1), _STEP) + 1e-9), len(_SIZES) - 1)
    return f"{_three_digits(count / _STEP**power) if power else f'{count:.0f}'} {_SIZES[power]}"


def share(part: float) -> str:
    """Write a share of 1 as a percentage; what is not all is not shown as all, nor what is not nothing as nothing."""
    if math.isnan(part):
        return NONE
    if 0 < part < 0.0001:  # noqa: PLR2004 - what two digits can show
        return "<0.01 %"
    if 0.9999 < part < 1:  # noqa: PLR2004
        return ">99.99 %"
    return f"{part * 100:.2f} %"


def rate(per_second: float) -> str:
    """Write calls a second; a slow rate by the minute or hour."""
    if math.isnan(per_second):
        return NONE
    unit, factor = next((each for each in _PERIODS if per_second * each[1] >= 1), _PERIODS[-1])
    return f"{_three_digits(per_second * factor)}/{unit}"


def moment(time: datetime | None) -> str:
    """Write a moment to the second; times of a log are UTC."""
    return NONE if time is None else f"{time:%Y-%m-%d %H:%M:%S}"


def _three_digits(value: float) -> str:
    if value >= 99.95:  # noqa: PLR2004 - what one decimal would show as 100.0
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"  # noqa: PLR2004
