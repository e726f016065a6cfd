"""Turns the filters of a review into one condition in SQL, and reads times as users type them. Knows no database.

Used by ``cli`` and ``review``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

EVERYTHING = "TRUE"  # the condition that every call matches

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)", re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}


class InvalidCondition(ValueError):
    """A condition in SQL that DuckDB does not accept.

    Attributes:
        reason: The message of DuckDB.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"where {where!r} is not a valid condition: {reason}")
        self.reason = reason


def condition(
    *,
    projects: Sequence[str] = (),
    since: datetime | None = None,
    until: datetime | None = None,
    where: str | None = None,
) -> str:
    """Return a condition for `load`.

    Args:
        projects: Only calls of these projects.
        since: Only calls that started at this time or later.
        until: Only calls that started before this time.
        where: A further condition in SQL.
    """
    parts = list[str]()
    if projects:
        parts.append(f"project IN ({', '.join(map(quoted, projects))})")
    parts += [f"t {sign} TIMESTAMP '{_utc(time)}'" for sign, time in ((">=", since), ("<", until)) if time is not None]
    if where is not None:
        parts.append(f"({where}\n)")  # the line end ends a comment, which would hide the parenthesis
    return " AND ".join(parts) or EVERYTHING


def parse_moment(text: str, now: datetime | None) -> datetime:
    """Parse a time: ISO 8601 (UTC if it has no zone), Unix seconds, or an age (``90s``, ``30m``, ``2h``).

    Args:
        text: The text.
        now: The time, with a zone, from which an age counts back. None if ages are not allowed, because the same text
            would mean another time at each run.

    Raises:
        ValueError: The text is not a time.
    """
    text = text.strip()
    try:
        if now is not None and (ago := _AGO.fullmatch(text)):
            return now - timedelta(seconds=float(ago[1]) * _SECONDS[ago[2].lower()])
        if re.fullmatch(r"\d{9,11}(\.\d+)?", text):
            return datetime.fromtimestamp(float(text), timezone.utc)
        # Python 3.10 does not support the Z, nor a fraction that has not 3 or 6 digits
        iso = re.sub("[Zz]$", "+00:00", text)
        iso = re.sub(r"(:\d\d)[.,](\d+)", lambda part: f"{part[1]}.{part[2][:6]:0<6}", iso)
        time = datetime.fromisoformat(iso)
        return time.astimezone(timezone.utc) if time.tzinfo else time.replace(tzinfo=timezone.utc)
    except (OverflowError, ValueError):
        examples = "2026-11-25, '2026-11-25 08:30', 1790000000" + (" or 2h (ago)" if now else "")
        raise ValueError(f"{text!r} is not a time; examples: {examples}") from None


def _utc(time: datetime) -> str:
    return f"{time.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S.%f}"


def quoted(text: str) -> str:
    """Return a text as SQL: a literal, or an expression for a text with NUL, which DuckDB 1 accepts in no statement."""
    if "\0" in text:
        return "decode('" + "".join(f"\\x{byte:02X}" for byte in text.encode()) + "'::BLOB)"
    return "'" + text.replace("'", "''") + "'"
