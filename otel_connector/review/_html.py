"""HTML in pieces: texts that cannot become markup, and tables.

What a log holds was chosen by servers, so a text becomes HTML in `text` and nowhere else.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from otel_connector._record import one_line

TEXT_LIMIT = 300
"""Characters of a URL or a message that are shown."""

_SCRIPT_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table.

    Attributes:
        html: What is shown.
        order: The number it is sorted by; None for a text.
    """

    html: str
    order: float | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name, and whether it holds numbers."""

    name: str
    number: bool = False


def text(value: str, limit: int = TEXT_LIMIT) -> str:
    """Return a text as HTML: one line, no longer than `limit`, nothing in it an instruction to anybody."""
    return html.escape(one_line(value, limit))


def words(value: str) -> Cell:
    """Return a cell with a text, in a direction of its own."""
    return Cell(f"<bdi>{text(value)}</bdi>" if value else '<span class="faint">(none)</span>')


def script_json(value: Any) -> str:
    """Return JSON that may stand in a ``<script>``: no tag can end it, no line separator can break it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).translate(_SCRIPT_ESCAPES)


def table(columns: Sequence[Column], rows: Iterable[Sequence[Cell]], *, caption: str, searched: str = "") -> str:
    """Return a table in a box of its own, which scrolls if it has to.

    Args:
        columns: Its columns.
        rows: Its rows.
        caption: Its name, for those who do not see it.
        searched: What the rows are, in the plural, if the table can be sorted and searched.
    """
    head = "".join(f'<th scope="col"{_number(column)}>{html.escape(column.name)}</th>' for column in columns)
    body = "".join(f"<tr>{''.join(map(_cell, columns, row))}</tr>" for row in rows)
    name = html.escape(caption)
    attribute = f' data-rows="{html.escape(searched)}"' if searched else ""
    return (
        f'<div class="box" role="region" aria-label="{name}" tabindex="0"><table{attribute}>'
        f'<caption class="unseen">{name}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _number(column: Column) -> str:
    return ' class="number"' if column.number else ""


def _cell(column: Column, cell: Cell) -> str:
    order = "" if cell.order is None else f' data-order="{cell.order!r}"'
    return f"<td{_number(column)}{order}>{cell.html}</td>"
