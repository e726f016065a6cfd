"""The options ``--project`` and ``--until`` of ``review`` and ``replay``, and the check of the period of both.

``--since`` is defined for each command, because only ``review`` accepts ages such as ``2h``. This file does not know
how the calls are selected.

Used by ``cli._replay_command`` and ``cli._review_command``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from otel_connector.cli._option_errors import naming
from otel_connector.review._filters import parse_moment

Project = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only calls of this project. Repeatable.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Only calls that started before this time.")]


def parse_period(since: str | None, until: str | None, now: datetime | None) -> tuple[datetime | None, datetime | None]:
    """Return the values of ``--since`` and ``--until`` as times; None for an option that is not given.

    Args:
        since: The value of ``--since``.
        until: The value of ``--until``.
        now: The time from which ages such as ``2h`` are counted back. None: ages are rejected.

    Raises:
        ValueError: A value is not a time, or ``--since`` is not before ``--until``.
    """
    with naming("--since"):
        start = None if since is None else parse_moment(since, now)
    with naming("--until"):
        end = None if until is None else parse_moment(until, now)
    if start is not None and end is not None and start >= end:
        relation = "later than" if start > end else "the same time as"
        raise ValueError(f"--since must be before --until: {since} is {relation} {until}")
    return start, end
