"""What the pictures show: counts and percentiles by time, latency, status and project, made by DuckDB.

However many calls there are, a picture has some hundred points: time is cut into pieces of a width that people count
in, latency into pieces of the same ratio. Knows nothing of how pictures look.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

from otel_connector._record import one_line
from otel_connector.review._load import Calls

Point = dict[str, Any]
"""One point of a picture: times in milliseconds since 1970 (as JavaScript has them), latencies in seconds."""

NO_RESPONSE = "no response"
"""The status of a call that was never answered."""

FAILED_FIRST = ("5", "4", "3", "n", "o", "1", "2")
"""First characters of statuses, from the bottom of a pile to its top: what failed stands on the ground, to be seen."""

_MOST_PIECES = 240
_FEWEST_PIECES = 24
_MOST_COLUMNS = 120  # of the heat map
_CALLS_A_PIECE = 10  # in the mean, before there are more pieces: with fewer, chance makes the picture
_MOST_PICTURED = 6  # projects, and statuses, that have a colour of their own
_MOST_ERRORS = 12
_NAME_LIMIT = 60  # characters
_SHORTEST = 1e-4  # seconds; a logarithm needs a floor
_RATIOS = (5, 10, 20, 40)  # pieces of latency in a factor of ten
_FEWEST_RATIOS, _MOST_RATIOS = 8, 60  # pieces that most calls, and all calls, are spread over
_MANY = 2_000  # calls from which the distribution is drawn finer
_SECOND = 1_000_000
_WIDTHS = tuple(
    [factor * 10**power for power in (3, 4, 5) for factor in (1, 2, 5)]
    + [seconds * 1_000_000 for seconds in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800)]
    + [hours * 3_600_000_000 for hours in (6, 12, 24, 48, 168)]
)  # microseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """All that is pictured of some calls.

    Attributes:
        width: Seconds of a piece of time.
        domain: Where time begins and ends in a picture, in milliseconds since 1970.
        over_time: By piece of time, those without a call included: ``t``, ``end``, ``calls``, ``failed``, ``p50``,
            ``p90``, ``p99``, these three None where there was no call.
        statuses: Their names, in the order they are piled.
        by_status: ``t``, ``end``, ``status``, ``calls``.
        latencies: By piece of time and latency: ``t``, ``end``, ``low``, ``high``, ``calls``.
        projects: Their names, the most calls first.
        distribution: By piece of latency and project: ``low``, ``high``, ``project``, ``calls``.
        errors: By class, the most first: ``error``, ``calls``, ``share`` (of all calls, of 1).
    """

    width: float
    domain: tuple[float, float]
    over_time: list[Point]
    statuses: list[str]
    by_status: list[Point]
    latencies: list[Point]
    projects: list[str]
    distribution: list[Point]
    errors: list[Point]


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Pieces of time: `number` of them, `width` microseconds each, the first beginning at `start`."""

    start: int
    width: int
    number: int

    @property
    def sql(self) -> str:
        """Which piece a call is in."""
        return f"((epoch_us(t) - {self.start}) // {self.width})"

    def times(self, piece: int) -> Point:
        start = (self.start + piece * self.width) / 1e3
        return {"t": start, "end": start + self.width / 1e3}


def points(calls: Calls) -> Points | None:
    """Return what is pictured; None if there is no call."""
    found = calls.rows(
        "SELECT count(*), epoch_us(min(t)), epoch_us(max(t)), min(delta_t), max(delta_t), "
        "quantile_cont(delta_t, [0.01, 0.99]) FROM calls_compact"
    )
    total, first, last, shortest, longest, bulk = found[0]
    if not total:
        return None
    most = min(_MOST_PIECES, max(_FEWEST_PIECES, total // _CALLS_A_PIECE))
    least = 1 if total >= _FEWEST_PIECES and last > first else _SECOND
    pieces = _pieces(first, last, most, least)
    ratio = _ratio(shortest, longest, *bulk)
    statuses, by_status = _by_status(calls, pieces)
    projects, distribution = _distribution(calls, 2 * ratio if total >= _MANY else ratio)
    return Points(
        width=pieces.width / 1e6,
        domain=_domain(pieces),
        over_time=list(_over_time(calls, pieces)),
        statuses=statuses,
        by_status=by_status,
        latencies=list(_latencies(calls, _pieces(first, last, min(most, _MOST_COLUMNS), least), ratio)),
        projects=projects,
        distribution=distribution,
        errors=list(_errors(calls, total)),
    )


def _pieces(first: int, last: int, most: int, least: int) -> _Pieces:
    """Cut a period into at most `most` pieces, as narrow as a usual width allows, but none below `least`."""
    widths = chain(_WIDTHS, (_WIDTHS[-1] * 2**power for power in count(1)))
    width = next(width for width in widths if width >= least and last // width - first // width < most)
    start = first // width * width
    return _Pieces(start, width, (last - start) // width + 1)


def _domain(pieces: _Pieces) -> tuple[float, float]:
    """Return what time a picture shows: the pieces, and room beside them where there are only some."""
    room = max(0, _FEWEST_PIECES // 2 - pieces.number) / 2 * pieces.width
    return (pieces.start - room) / 1e3, (pieces.start + pieces.number * pieces.width + room) / 1e3


def _ratio(shortest: float, longest: float, low: float, high: float) -> int:
    """Return into how many pieces a factor of ten of latency is cut."""
    bulk, span = math.log10(_log_floor(high) / _log_floor(low)), math.log10(_log_floor(longest) / _log_floor(shortest))
    fitting = [ratio for ratio in _RATIOS if span * ratio <= _MOST_RATIOS] or _RATIOS[:1]
    return next((ratio for ratio in fitting if bulk * ratio >= _FEWEST_RATIOS), fitting[-1])


def _log_floor(seconds: float) -> float:
    return max(seconds, _SHORTEST)


def _over_time(calls: Calls, pieces: _Pieces) -> Iterator[Point]:
    rows = calls.rows(
        f"SELECT {pieces.sql}, count(*), count_if(NOT success), quantile_cont(delta_t, [0.5, 0.9, 0.99]) "
        "FROM calls_compact GROUP BY 1"
    )
    found = {piece: rest for piece, *rest in rows}
    for piece in range(pieces.number):
        total, failed, percentiles = found.get(piece, (0, 0, [None] * 3))
        shown = (value if value is None else round(value, 6) for value in percentiles)
        latency = dict(zip(("p50", "p90", "p99"), shown, strict=True))
        yield {**pieces.times(piece), "calls": total, "failed": failed, **latency}


def _by_status(calls: Calls, pieces: _Pieces) -> tuple[list[str], list[Point]]:
    status = f"coalesce(response_code::VARCHAR, '{NO_RESPONSE}')"
    common = [
        name for (name,) in calls.rows(f"SELECT {status} FROM calls_compact GROUP BY 1 ORDER BY count(*) DESC, 1")
    ]
    rows = calls.rows(
        f"SELECT {pieces.sql}, CASE WHEN list_contains(?, {status}) THEN {status} ELSE 'other' END, count(*) "
        "FROM calls_compact GROUP BY 1, 2 ORDER BY 1, 2",
        [common[:_MOST_PICTURED]],
    )
    names = sorted({name for _, name, _ in rows}, key=lambda name: (FAILED_FIRST.index(name[0]), name))
    return names, [{**pieces.times(piece), "status": name, "calls": number} for piece, name, number in rows]


def _latency_piece(ratio: int) -> str:
    return f"floor(log10(greatest(delta_t, {_SHORTEST})) * {ratio})::INTEGER"


def _latency(piece: int, ratio: int) -> Point:
    return {"low": float(f"{10 ** (piece / ratio):.4g}"), "high": float(f"{10 ** ((piece + 1) / ratio):.4g}")}


def _latencies(calls: Calls, pieces: _Pieces, ratio: int) -> Iterator[Point]:
    rows = calls.rows(
        f"SELECT {pieces.sql}, {_latency_piece(ratio)}, count(*) FROM calls_compact GROUP BY 1, 2 ORDER BY 1, 2",
    )
    for piece, latency, number in rows:
        yield {**pieces.times(piece), **_latency(latency, ratio), "calls": number}


def _distribution(calls: Calls, ratio: int) -> tuple[list[str], list[Point]]:
    common = calls.rows("SELECT project FROM calls_compact GROUP BY 1 ORDER BY count(*) DESC, 1")
    own = common if len(common) <= _MOST_PICTURED + 1 else common[:_MOST_PICTURED]
    names = _named([name for (name,) in own])
    others = f"{len(common) - len(own):,} other projects"
    rows = calls.rows(
        f"SELECT {_latency_piece(ratio)}, CASE WHEN list_contains(?, project) THEN project END, count(*) "
        "FROM calls_compact GROUP BY 1, 2 ORDER BY 1, 2",
        [list(names)],
    )
    shown = [{**_latency(piece, ratio), "project": names.get(name, others), "calls": n} for piece, name, n in rows]
    return [*names.values(), *([others] if len(own) < len(common) else [])], shown


def _named(texts: Sequence[str]) -> dict[str, str]:
    """Return for each text what is shown of it: one line, not too long, and no two the same."""
    names = dict[str, str]()
    for number, text in enumerate(texts, 1):
        name = one_line(text, _NAME_LIMIT) or "(none)"
        names[text] = f"{name} ({number})" if name in names.values() else name
    return names


def _errors(calls: Calls, total: int) -> Iterator[Point]:
    rows = calls.rows("SELECT error_type, count(*) FROM calls_compact WHERE NOT success GROUP BY 1 ORDER BY 2 DESC, 1")
    shown = rows if len(rows) <= _MOST_ERRORS + 1 else rows[:_MOST_ERRORS]
    names = _named([name for name, _ in shown])
    rest = sum(number for _, number in rows[len(shown) :])
    others = [(f"{len(rows) - len(shown):,} other classes", rest)] if rest else []
    for name, number in [*((names[name], number) for name, number in shown), *others]:
        yield {"error": name, "calls": number, "share": number / total}
