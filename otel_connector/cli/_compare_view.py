"""How two runs look side by side on a terminal: in words, so that it can be read without colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from otel_connector.cli._terminal import say, table
from otel_connector.review import _compare_text as words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from otel_connector.review._compare import Comparison, Difference

_WIDE = 130  # columns from which there is room for how it was found
_NARROW_NAME, _WIDE_NAME = 27, 48
_STYLES = {"worse": "bold red", "better": "bold green", "more": "bold cyan", "less": "bold cyan"}


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print a comparison."""
    say(console, f"before  {words.run(comparison.before)}", f"after   {words.run(comparison.after)}", "")
    console.print(Text(words.headline(comparison), style="bold"))
    say(console, "")
    console.print(_table(console, "All calls", [("", comparison.total.differences)]))
    if comparison.total.more_errors:
        say(console, f"and {comparison.total.more_errors:,} rarer error classes")
    for title, _, groups in words.tables(comparison):
        say(console, "")
        marked = [(words.name(group.name), found) for group in groups.compared if (found := words.marked(group))]
        if marked:
            console.print(_table(console, f"{title}, if beyond noise", marked))
        else:
            console.print(Text(title, style="bold"))
        for what, names in words.rest(groups):
            console.print(Text(f"{what}: {names}"))
    say(console, "")
    console.print(Text(words.method(comparison), style="dim"))


def _table(console: Console, title: str, groups: Iterable[tuple[str, Sequence[Difference]]]) -> Table:
    """Return the rows of some groups, each below its name if it has one."""
    wide = console.width >= _WIDE
    found = ("Difference", "Change", "Noise", "p") if wide else ("Change",)
    rows = table(title, "Before", "After", *found)
    rows.columns[0].max_width = _WIDE_NAME if wide else _NARROW_NAME
    rows.columns[0].overflow = "ellipsis"
    rows.add_column("Verdict", no_wrap=not wide)
    if wide:
        rows.add_column("Test, or why there is none", overflow="fold")
    for name, differences in groups:
        if name:
            rows.add_row(Text(name, style="bold"))
        for row in differences:
            rows.add_row(*_cells(row, indent="  " if name else "", wide=wide))
    return rows


def _cells(row: Difference, *, indent: str, wide: bool) -> list[Text]:
    cells = [indent + words.label(row), *words.figures(row)]
    cells += [words.difference(row), words.change(row), words.noise(row), words.p_value(row)] if wide else []
    cells += [] if wide else [words.change(row)]
    verdict = Text(row.verdict, style=_STYLES.get(row.verdict, ""))
    return [*map(Text, cells), verdict, *([Text(row.reason or row.test)] if wide else [])]
