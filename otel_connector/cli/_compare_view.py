"""The terminal output of ``otel-connector review --compare``: tables of the figures of two runs.

Verdicts are words, so the output can be read without colours. Does not know how differences are tested.

Used by ``cli._review_command``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from otel_connector._units import MOST_FILES
from otel_connector.cli._terminal import is_terminal, print_lines, show, styled, table
from otel_connector.review import _compare_text as words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from otel_connector.review._comparison import Comparison, Difference

_WIDE = 130  # columns from which the statistics are shown
_NARROW_NAME, _WIDE_NAME = 27, 48  # columns of a name
_FIGURES = 41  # columns of three figures and a verdict in words below each other; only names and verdicts are narrowed
_STYLES = {"worse": "bold red", "better": "bold green", "more": "bold cyan", "less": "bold cyan"}


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print a comparison."""
    most = MOST_FILES if is_terminal(console) else None
    before, after = words.run(comparison.before, most), words.run(comparison.after, most)
    print_lines(console, f"before  {before}", f"after   {after}", "")
    show(console, *(styled(text, "" if text.startswith(" ") else "bold") for text in words.texts(comparison)), "")
    show(console, _table(console, words.all_calls(comparison), [("", comparison.total.differences)]))
    if comparison.total.more_errors:
        print_lines(console, f"and {comparison.total.more_errors:,} rarer error classes")
    for title, _, groups in words.tables(comparison):
        print_lines(console, "")
        marked = [(words.name(group.name), found) for group in groups.compared if (found := words.marked(group))]
        if marked:
            show(console, _table(console, f"{title}, larger than noise", marked))
        else:
            show(console, styled(title, "bold"))
        for what, names in words.rest(groups):
            show(console, styled(f"{what}: {names}"))
    show(console, "", styled(words.method(comparison), "dim"))


def _table(console: Console, title: str, groups: Iterable[tuple[str, Sequence[Difference]]]) -> Table:
    """Return a table of the differences of each group, below the name of the group if it has one."""
    wide = console.width >= _WIDE
    statistics = ("Difference", "Change", "Noise", "p") if wide else ("Change",)
    rows = table(title, "Before", "After", *statistics)
    if is_terminal(console):
        rows.columns[0].max_width = _WIDE_NAME if wide else min(_NARROW_NAME, max(console.width - _FIGURES, 1))
        rows.columns[0].overflow = "ellipsis"
    rows.add_column("Verdict")
    if wide:
        rows.add_column("Test, or reason for none", overflow="fold")
    for name, differences in groups:
        if name:
            rows.add_row(styled(name, "bold"))
        for row in differences:
            rows.add_row(*_cells(row, indent="  " if name else "", wide=wide))
    return rows


def _cells(row: Difference, *, indent: str, wide: bool) -> list[Text]:
    statistics = (words.difference, words.change, words.noise, words.p_value) if wide else (words.change,)
    cells = (indent + words.label(row), *words.figures(row), *(text(row) for text in statistics))
    verdict = styled(row.verdict, _STYLES.get(row.verdict, ""))
    return [*map(styled, cells), verdict, *([styled(row.reason or row.test)] if wide else [])]
