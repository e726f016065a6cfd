"""Finds where the clock of the machine was set back while a log was written.

Rows are written when their calls end, so the ends of the calls in a file are in the order of time. A thousand rows
are read at equal distances in the file; where the end of a call lies before those above it, the clock was set back.
Smaller steps than the time between two of these rows are not found.
Knows neither DuckDB nor the rest of a review.

Used by ``review._judge``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from otel_connector._csv._lines import LINE_LIMIT, is_plain_row, read_line

_SAMPLES = 1_000  # rows, at equal distances
_FEWEST = 40  # of them that must follow a step: a few rows that were added are not a clock that goes on
_MOST = 3  # steps; rows with more are in another order than that of time
_LEAST = 60.0  # seconds: rows of several processes and threads are out of order by less


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockStep:
    """A step of the clock.

    Attributes:
        time: The end of the last call before it, as the clock showed it: seconds since 1970.
        seconds: By how many seconds it was set back.
    """

    time: float
    seconds: float


def clock_step(path: str) -> ClockStep | None:
    """Return the first step of the clock in a plain log; None if there is none."""
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        offsets = range(0, size, max(size // _SAMPLES, 1))
        ends = [(offset, end) for offset in offsets if (end := _end_at(file, offset)) is not None]
        steps = [pair for pair in pairwise(ends) if pair[1][1] < pair[0][1] - _LEAST]
        if 0 < len(steps) <= _MOST and sum(offset >= steps[0][1][0] for offset, _ in ends) >= _FEWEST:
            return _bisected(file, *steps[0])
    return None


def _bisected(file: BinaryIO, low: tuple[int, float], high: tuple[int, float]) -> ClockStep:
    """Return the step between two rows."""
    while high[0] - low[0] > 1:
        offset = (low[0] + high[0]) // 2
        end = _end_at(file, offset)
        if end is None or end < low[1] - _LEAST:
            high = offset, high[1] if end is None else end
        else:
            low = offset, end
    return ClockStep(time=low[1], seconds=low[1] - high[1])


def _end_at(file: BinaryIO, offset: int) -> float | None:
    """Return the end of the call in the first whole line after an offset; None if it is not a row."""
    file.seek(offset)
    file.readline(LINE_LIMIT)
    line = file.readline(LINE_LIMIT).removesuffix(b"\n")
    if is_plain_row(line):
        _, _, t, delta_t, _ = line.split(b",", 4)
        return float(t) + float(delta_t)
    try:
        _, record = read_line(line)
    except ValueError:
        return None
    return record.t + record.delta_t
