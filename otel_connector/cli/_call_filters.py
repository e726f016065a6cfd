"""The options that select calls of a log, shared by ``review`` and ``replay``.

Does not know how the calls are selected.

Used by ``cli._replay_command`` and ``cli._review_command``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from otel_connector.review._filters import parse_moment

Project = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only calls of this project. Repeatable.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Only calls that started before this time.")]


def parse_time(option: str, text: str | None, now: datetime | None) -> datetime | None:
    """Return the time that is the value of an option.

    Args:
        option: The option, for the message.
        text: Its value; None if it is not given.
        now: The time from which ages such as ``2h`` are counted back; None refuses ages.

    Raises:
        ValueError: The value is not a time.
    """
    try:
        return None if text is None else parse_moment(text, now)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None
