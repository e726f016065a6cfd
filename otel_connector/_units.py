"""Formats figures for people: durations, sizes, shares, rates, times and counts, each with its unit.

The one place that decides how these are written. Imports nothing of the package.

Used by ``_call``, ``_csv``, ``_telemetry``, ``cli``, ``review`` and ``testing``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timezone

NONE = "-"  # the text of a figure that does not exist

MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
SHORT_DURATIONS = (("us", 1e6), ("ms", 1e3), ("s", 1))
"""The units of durations below a minute, and how many of each a second has."""

LONG_DURATIONS = ((_DAY, _HOUR, ("d", "h")), (_HOUR, MINUTE, ("h", "min")), (MINUTE, 1, ("min", "s")))
"""The pairs of units of longer durations: the seconds of both, and their names."""

STEP = 1_000  # the factor between two units of bytes, or of durations below a second
LEAST_SHARE = 0.0001  # the smallest share that two decimals of a percentage can show
_PERIODS = (("s", 1), ("min", MINUTE), ("h", _HOUR))
_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")  # powers of 1,000
MOST_FILES = 20
"""How many names of files a terminal shows."""

_TWO_PLACES, _ONE_PLACE = 9.995, 99.95  # below these, a number is rounded to two or one decimals: three digits in all


def duration(seconds: float) -> str:
    """Format a duration: ``850 us``, ``207 ms``, ``1.38 s``, ``2 min 3 s``, ``7 h 46 min``, ``3 d 4 h``."""
    if math.isnan(seconds):
        return NONE
    if not seconds:
        return "0 s"
    if seconds < MINUTE:
        unit, factor = next((each for each in SHORT_DURATIONS if seconds * each[1] < STEP - 0.5), ("s", 1))
        return f"{_three_digits(seconds * factor)} {unit}"
    whole = round(seconds)
    larger, smaller, names = next(each for each in LONG_DURATIONS if whole >= each[0])
    return f"{whole // larger} {names[0]} {whole % larger // smaller} {names[1]}"


def exact_duration(seconds: float) -> str:
    """Format a duration that a user has set, in seconds with the digits that it needs: ``5 s``, ``0.25 s``."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + " s"


def size(count: float) -> str:
    """Format a number of bytes, in powers of 1,000: ``512 B``, ``23.4 GB``."""
    if math.isnan(count):
        return NONE
    power = min(int(math.log(max(count, 1), STEP) + 1e-9), len(_SIZES) - 1)
    return f"{_three_digits(count / STEP**power) if power else f'{count:.0f}'} {_SIZES[power]}"


def share(part: float) -> str:
    """Format a share of 1 as a percentage. Only exactly 0 is shown as 0 %, and only exactly 1 as 100 %."""
    if math.isnan(part):
        return NONE
    if 0 < part < LEAST_SHARE:
        return "<0.01 %"
    if 1 - LEAST_SHARE < part < 1:
        return ">99.99 %"
    return f"{part * 100:.2f} %"


def rate(per_second: float, like: float | None = None) -> str:
    """Format a rate, given per second: ``357/s``. A slow rate is shown per minute or hour, or in the unit of `like`."""
    if math.isnan(per_second):
        return NONE
    unit, seconds = rate_unit(per_second if like is None else like)
    return f"{_three_digits(per_second * seconds)}/{unit}"


def rate_unit(per_second: float) -> tuple[str, int]:
    """Return the shortest unit of time in which a rate is at least one, and its seconds; an hour if there is none."""
    return next((each for each in _PERIODS if per_second * each[1] >= 1), _PERIODS[-1])


def moment(time: datetime | None) -> str:
    """Format a time to the second. Times of a log are in UTC."""
    return NONE if time is None else f"{time:%Y-%m-%d %H:%M:%S}"


def short_moment(time: datetime) -> str:
    """Format a time as `moment` does, without the year if it is the current one."""
    text = moment(time)
    return text.removeprefix(f"{datetime.now(timezone.utc).year}-")


def listed_files(names: Sequence[str], most: int | None = None) -> str:
    """Format the names of files: ``a.csv, b.csv``; of more than `most`, ``a.csv, b.csv and 1,204 more``."""
    more = "" if most is None or len(names) <= most else f" and {len(names) - most:,} more"
    return f"{', '.join(names[:most])}{more}" or NONE


def counted(number: int, noun: str, plural: str = "") -> str:
    """Format a count with its noun: ``1 file``, ``1,204 files``. `plural` is needed if it has another end than "s"."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def _three_digits(value: float) -> str:
    places = (value < _TWO_PLACES) + (value < _ONE_PLACE)
    return f"{value:,.{places}f}"
