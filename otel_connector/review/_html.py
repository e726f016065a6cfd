"""Builds pieces of HTML: escaped texts, JSON for scripts, and tables.

Servers choose the texts of a log, so they are hostile input. Only `text` turns a text into HTML. Knows nothing of what
the tables show.

Used by ``review._compare_html`` and ``review._report``.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from otel_connector._record import one_line
from otel_connector.review._verdict_text import Sentences

_SENTENCE_LIMIT = 2_000  # characters of a sentence of a verdict
_TEXT_LIMIT = 300  # characters of a URL or a message that are shown
_SCRIPT_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table.

    Attributes:
        html: Its content.
        order: The number by which it is sorted; None for a text.
    """

    html: str
    order: float | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its name, and whether its cells are numbers."""

    name: str
    number: bool = False


def text(value: str, limit: int = _TEXT_LIMIT) -> str:
    """Return a text as HTML: escaped, in one line, and with at most `limit` characters."""
    return html.escape(one_line(value, limit))


def words(value: str) -> Cell:
    """Return a cell with a text. The writing direction of the text does not affect its surroundings."""
    return Cell(f"<bdi>{text(value)}</bdi>" if value else '<span class="faint">(none)</span>')


def script_json(value: Any) -> str:
    """Return JSON for a ``<script>``: it contains no tag that could end the script, and no line separator."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).translate(_SCRIPT_ESCAPES)


def verdict_block(lines: Iterable[Sentences]) -> str:
    """Return the lines of a verdict as the list at the head of a page."""
    items = "".join(
        f"<li>{text(line.text, _SENTENCE_LIMIT)}{_link(line.link)}"
        f"{''.join(f'<br><small>{text(each, _SENTENCE_LIMIT)}</small>' for each in line.details)}</li>"
        for line in lines
    )
    return f'<ul class="verdict">{items}</ul>'


def _link(url: str) -> str:
    target = html.escape(url)
    return f' <a href="{target}" target="_blank" rel="noopener noreferrer">{target}</a>' if url else ""


def table(columns: Sequence[Column], rows: Iterable[Sequence[Cell]], *, caption: str, searched: str = "") -> str:
    """Return a table in a box that scrolls if the table is larger.

    Args:
        columns: The columns.
        rows: The rows.
        caption: The name of the table, for screen readers.
        searched: The name of the rows in the plural. If it is given, the table can be sorted and searched.
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
