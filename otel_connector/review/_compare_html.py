"""Writes a comparison as one HTML file that needs no network: the headline and the tables. Knows no statistics.

Used by ``cli._review_command``.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from otel_connector.review import _compare_text as words
from otel_connector.review._comparison import Comparison, Difference
from otel_connector.review._html import Cell, Column, script_json, table, text, verdict_block
from otel_connector.review._report import page

_MOST = 10_000  # characters of the names of files or groups
_NUMBERS = ("Before", "After", "Difference", "Change", "Noise", "p")
_COLUMNS = (Column("Figure"), *(Column(name, number=True) for name in _NUMBERS), Column("Verdict"))


def comparison_report(comparison: Comparison, *, title: str) -> str:
    """Return a complete HTML page.

    Args:
        comparison: The comparison.
        title: The heading of the page.
    """
    both = (("before", comparison.before), ("after", comparison.after))
    runs = [f"{name}: {text(words.run(run), _MOST)}" for name, run in both]
    body = "".join(_sections(comparison))
    return page(title, "<br>".join(runs), body, script_json({"datasets": {}, "charts": {}}), "")


def _sections(comparison: Comparison) -> Iterator[str]:
    yield verdict_block(words.headline(comparison))
    title = words.all_calls(comparison)
    yield f"<section><h2>{title}</h2>{_table(title, [('', comparison.total.differences)])}</section>"
    for name, one, groups in words.tables(comparison):
        marked = [(group.name, found) for group in groups.compared if (found := words.marked(group))]
        shown = _table(f"Larger than noise, by {one}", marked) if marked else ""
        rest = "".join(f"<li>{what}: {text(names, _MOST)}</li>" for what, names in words.rest(groups))
        yield f'<section><h2>{name}</h2>{shown}<ul class="remarks">{rest}</ul></section>'
    yield f'<p class="faint">{html.escape(words.method(comparison))}</p>'


def _table(caption: str, groups: Sequence[tuple[str, Sequence[Difference]]]) -> str:
    rows = (
        [
            Cell(text(f"{f'{words.name(name)}: ' if name else ''}{words.label(row).strip()}")),
            *(
                Cell(text(each))
                for each in (
                    *words.figures(row),
                    *(figure(row) for figure in (words.difference, words.change, words.noise, words.p_value)),
                    words.verdict(row),
                )
            ),
        ]
        for name, differences in groups
        for row in differences
    )
    return table(_COLUMNS, rows, caption=caption)
