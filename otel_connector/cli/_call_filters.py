"""The options that select calls of a log, shared by ``review`` and ``replay``.

Does not know how the calls are selected.

Used by ``cli._replay_command`` and ``cli._review_command``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from otel_connector._units import moment
from otel_connector.cli._option_errors import naming
from otel_connector.review._filters import parse_moment

Project = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only calls of this project. Repeatable.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Only calls that started before this time.")]


def parse_period(since: str | None, until: str | None, now: datetime | None) -> tuple[datetime | None, datetime | None]:
    """Return the times that are the values of ``--since`` and ``--until``; None for an option that is not given.

    Args:
        since: The value of ``--since``.
        until: The value of ``--until``.
        now: The time from which ages such as ``2h`` are counted back; None refuses ages.

    Raises:
        ValueError: A value is not a time, or the period contains no time.
    """
    with naming("--since"):
        start = None if since is None else parse_moment(since, now)
    with naming("--until"):
        end = None if until is None else parse_moment(until, now)
    if start is not None and end is not None and start >= end:
        relation = "later than" if start > end else "the same as"
        raise ValueError(f"--since must be before --until: {moment(start)} UTC is {relation} {moment(end)} UTC")
    return start, end
