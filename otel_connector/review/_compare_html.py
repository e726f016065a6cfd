"""Writes a comparison as one HTML file that needs no network: the headline and the tables. Knows no statistics.

Used by ``cli._review_command``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from otel_connector._record import one_line
from otel_connector.review import _compare_text as words
from otel_connector.review._comparison import Comparison, Difference
from otel_connector.review._html import Cell, Column, page, rendered, script_json, table, text, verdict_block

_MOST = 10_000  # characters of the names of files or groups
_NUMBERS = ("Before", "After", "Difference", "Change", "Noise", "p")
_COLUMNS = (Column("Figure"), *(Column(name, number=True) for name in _NUMBERS), Column("Verdict"))


def comparison_report(comparison: Comparison, *, title: str | None = None) -> str:
    """Return a complete HTML page.

    Args:
        comparison: The comparison.
        title: The heading of the page; None for the names of the logs.
    """
    both = (("before", comparison.before), ("after", comparison.after))
    runs = "; ".join(f"{name}: {one_line(words.run(run), _MOST)}" for name, run in both)
    heading = words.all_calls(comparison)
    body = rendered(
        "comparison",
        verdict=verdict_block(words.headline(comparison)),
        title=heading,
        total=_table(heading, [("", comparison.total.differences)]),
        groups=list(_groups(comparison)),
        method=words.method(comparison),
        most=_MOST,
    )
    return page(title or words.title(comparison), runs, body, script_json({"datasets": {}, "charts": {}}), "")


def _groups(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for name, one, groups in words.tables(comparison):
        marked = [(group.name, found) for group in groups.compared if (found := words.marked(group))]
        shown = _table(f"Larger than noise, by {one}", marked) if marked else ""
        yield {"name": name, "table": shown, "rest": list(words.rest(groups))}


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
