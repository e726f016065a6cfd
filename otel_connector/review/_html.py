"""Builds pieces of HTML from the templates: tables, pages, escaped texts, JSON for scripts.

Servers choose the texts of a log, so they are hostile input. Jinja2 escapes each text that a template inserts, unless
it is `Markup`: the result of a template. Knows nothing of what the tables show.

Used by ``review._compare_html`` and ``review._report``.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from otel_connector._record import one_line
from otel_connector._units import counted
from otel_connector._version import __version__
from otel_connector.review._verdict_text import Sentences

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_SENTENCE_LIMIT = 2_000  # characters of a sentence of a verdict
_TEXT_LIMIT = 300  # characters of a message that are shown
_SCRIPT_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table.

    Attributes:
        html: Its content: a text, or `Markup`.
        order: The number by which it is sorted; None for a text.
        whole: The whole text, as a tooltip, if `html` is only a part of it.
    """

    html: str
    order: float | None = None
    whole: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its name, and whether its cells are numbers."""

    name: str
    number: bool = False


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found: Any = Environment(
        loader=PackageLoader("otel_connector.review", "templates"),
        autoescape=True,
        auto_reload=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["line"] = one_line
    found.globals["counted"] = counted
    templates: Environment = found
    return templates


def rendered(name: str, **values: Any) -> Markup:
    """Return the template ``<name>.html.j2``, filled in."""
    from markupsafe import Markup

    return Markup(_templates().get_template(f"{name}.html.j2").render(values))  # noqa: S704 - it escapes its values


def text(value: str, limit: int = _TEXT_LIMIT) -> Markup:
    """Return a text as HTML: escaped, in one line, and with at most `limit` characters."""
    from markupsafe import escape

    return escape(one_line(value, limit))


def words(value: str, most: int = _TEXT_LIMIT) -> Cell:
    """Return a cell with a text, cut in the middle. Its writing direction does not affect its surroundings."""
    whole = one_line(value, 8 * _TEXT_LIMIT)
    shown = middle_cut(whole, most)
    return Cell(rendered("words", shown=shown), whole=whole if shown != whole else "")


def middle_cut(value: str, most: int) -> str:
    """Return a text of at most `most` characters: of a longer one, its start and its end."""
    return value if len(value) <= most else f"{value[: most // 2]}\u2026{value[-(most - most // 2 - 1) :]}"


def script_json(value: Any) -> str:
    """Return JSON for a ``<script>``: it contains no tag that could end the script, and no line separator."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).translate(_SCRIPT_ESCAPES)


def verdict_block(lines: Iterable[Sentences]) -> Markup:
    """Return the lines of a verdict as the list at the head of a page."""
    return rendered("verdict", sentences=list(lines), most=_SENTENCE_LIMIT)


def table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[Cell]],
    *,
    caption: str,
    searched: str = "",
    data: Sequence[Mapping[str, object]] = (),
) -> Markup:
    """Return a table in a box that scrolls if the table is larger.

    Args:
        columns: The columns.
        rows: The rows.
        caption: The name of the table, for screen readers.
        searched: The name of the rows in the plural. If it is given, the table can be sorted and searched.
        data: The ``data-`` attributes of each row, if rows have any.
    """
    return rendered("table", columns=columns, rows=list(rows), caption=caption, searched=searched, data=data)


def page(title: str, period: str, body: str, data: str, library: str, *, zone: str = "UTC") -> str:
    """Return a page that needs no other file. Its policy allows only its own scripts, and no requests.

    Args:
        title: Its title, and the heading.
        period: The line below the heading.
        body: Its content: `Markup`.
        data: The result of `script_json`.
        library: The JavaScript that draws charts.
        zone: The name of the time zone of all times.
    """
    from markupsafe import Markup

    style, script = (
        files("otel_connector.review").joinpath(name).read_text(encoding="utf-8")
        for name in ("report.css", "report.js")
    )
    policy = (
        f"default-src 'none'; script-src {_hash(library)} {_hash(script)}; style-src {_hash(style)}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    ours = {"data": data, "library": library, "style": style, "script": script}
    return rendered(
        "page",
        title=one_line(title, _TEXT_LIMIT),
        period=period,
        body=body,
        policy=policy,
        version=__version__,
        zone=zone,
        **{name: Markup(value) for name, value in ours.items()},  # noqa: S704 - files of this package, and escaped JSON
    )


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
