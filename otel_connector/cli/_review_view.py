"""How a review looks on a terminal: as much of it as the screen has lines for.

Every mark has words beside its colour. Knows nothing of where the figures come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group as Drawing
from rich.table import Table
from rich.text import Text

from otel_connector._record import one_line
from otel_connector._units import NONE, duration, moment, rate, share, size
from otel_connector.cli._terminal import table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otel_connector.review import ErrorClass, Group, LogFile, Summary

_Figures = dict[str, Callable[["Group"], str | Text]]

_FIXED_LINES = 19  # of a summary with every part, without the rows of its tables, with the prompts above and below it
_MOST_ROWS = 10  # of a table, however high the screen is
_FEW_FAIL, _MANY_FAIL = 0.01, 0.1  # shares from which a failure rate is yellow, and red
_NAMED_DAMAGE = 3  # damaged lines that are shown of a file
_NAMED_QUIET = 3  # quiet periods, of the longest
_WIDE = 100  # columns from which rates, bytes and traces are shown
_LONGEST_NAME = 60  # columns, where there are many
_SAME = 0.05  # a change below a twentieth is none that a reader need see


def drawn(summary: Summary, *, width: int, lines: int | None = None) -> Drawing:
    """Return a summary as it is shown.

    Args:
        summary: What.
        width: Columns that there are.
        lines: How many lines there are; None if there are as many as it takes.
    """
    if not summary.total.calls:
        return Drawing(Text("No calls."))
    tables = [len(summary.projects), len(summary.hosts), len(summary.errors), len(summary.slowest)]
    room = sum(tables) if lines is None else max(lines - _FIXED_LINES, len(tables))
    projects, hosts, errors, slowest = _shared_out(room, tables)
    wide = width >= _WIDE
    parts: list[RenderableType] = [*_total(summary), "", _groups(summary, projects, hosts, wide=wide), ""]
    if summary.errors:
        more = len(summary.errors) - errors + summary.more_errors
        parts += [_errors(summary.errors, errors), *([Text(f"and {more:,} more", style="dim")] if more else []), ""]
    return Drawing(*parts, _slowest(summary, slowest, wide=wide), "", *_over_time(summary))


def _shared_out(room: int, wanted: Sequence[int]) -> list[int]:
    """Give each table rows in turn, until all have what they want or the room is used up."""
    given = [0] * len(wanted)
    while room > 0:
        takers = [i for i, want in enumerate(wanted) if given[i] < min(want, _MOST_ROWS)]
        if not takers:
            break
        for i in takers[:room]:
            given[i] += 1
        room -= len(takers[:room])
    return given


def about_files(files: Sequence[LogFile]) -> Iterator[str]:
    """Say what of the files is not in the figures."""
    for file in files:
        name = one_line(file.path)
        if file.problem:
            yield f"{name}: NOT READ: {file.problem}"
        if file.damaged:
            yield f"{name}: {_count(file.damaged, 'damaged line')}, not counted"
            yield from (f"  line {number:,}: {what}" for number, what in file.damage[:_NAMED_DAMAGE])
        if file.unfinished:
            yield f"{name}: its last line has no end, and is not counted: torn, or being written"
        if file.torn is not None:
            yield f"{one_line(file.torn.path)}: keeps {_count(file.torn.lines, 'unfinished line')}, not counted"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _total(summary: Summary) -> Iterator[Text]:
    total, latency = summary.total, summary.total.latency
    read = [file for file in summary.files if not file.problem]
    name = one_line(read[0].path) if len(read) == 1 else _count(len(read), "file")
    end = moment(total.end).removeprefix(f"{moment(total.start).partition(' ')[0]} ")
    yield _line(f"{name}: {moment(total.start)} to {end} UTC, {duration(total.seconds)}")
    succeeded = f"{share(1 - total.error_rate)} succeeded, {total.failed:,} failed"
    calls = (_count(total.calls, "call"), "bold")
    yield _line(calls, f", {rate(total.rate)}   ", (succeeded, _colour(total.error_rate)), f"   {size(total.bytes)}")
    shown = ("p50", latency.p50), ("p90", latency.p90), ("p95", latency.p95), ("p99", latency.p99), ("max", latency.max)
    yield _line(*(part for name, value in shown for part in ((f"{name} ", "dim"), f"{duration(value)}   ")))


def _line(*parts: str | tuple[str, str]) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _colour(error_rate: float) -> str:
    return "green" if error_rate < _FEW_FAIL else "yellow" if error_rate < _MANY_FAIL else "red"


def _groups(summary: Summary, projects: int, hosts: int, *, wide: bool) -> Table:
    """Draw projects, and below them hosts, in the same columns."""
    figures = _WIDE_FIGURES if wide else _FIGURES
    # Only the names give way where there is no room for all; where there is, numbers stay near their names
    columns = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", expand=not wide)
    longest = _LONGEST_NAME if wide else None
    columns.add_column("Project", no_wrap=True, overflow="ellipsis", ratio=1, min_width=12, max_width=longest)
    for name in figures:
        columns.add_column(name, no_wrap=True, justify="right")
    _add_groups(columns, summary.projects, projects, summary.more_projects, figures)
    columns.add_row(Text("Host", style="bold"))
    _add_groups(columns, summary.hosts, hosts, summary.more_hosts, figures)
    return columns


def _add_groups(columns: Table, groups: Sequence[Group], rows: int, more: int, figures: _Figures) -> None:
    for group in groups[:rows]:
        columns.add_row(Text(one_line(group.name) or "(none)"), *(figure(group) for figure in figures.values()))
    if more := len(groups) - rows + more:
        columns.add_row(Text(f"and {more:,} more", style="dim"))


def _failed(group: Group) -> Text:
    return Text(share(group.error_rate), style=_colour(group.error_rate))


_FIGURES: _Figures = {
    "Calls": lambda group: f"{group.calls:,}",
    "Failed": _failed,
    "p50": lambda group: duration(group.latency.p50),
    "p95": lambda group: duration(group.latency.p95),
    "p99": lambda group: duration(group.latency.p99),
    "Max": lambda group: duration(group.latency.max),
}
_WIDE_FIGURES: _Figures = {
    **_FIGURES,
    "Rate": lambda group: rate(group.rate),
    "Bytes": lambda group: size(group.bytes),
}


def _errors(classes: Sequence[ErrorClass], rows: int) -> Table:
    columns = table("Error", "Calls", "Share")
    columns.expand = True
    columns.add_column("For example", no_wrap=True, overflow="ellipsis", ratio=1)
    for each in classes[:rows]:
        example = each.example
        message = example.error.removeprefix(f"{each.name.partition(' ')[0]}: ")
        columns.add_row(
            Text(one_line(each.name), style="red"),
            f"{each.calls:,}",
            share(each.share),
            Text(one_line(f"{message}  {example.url}")),
        )
    return columns


def _slowest(summary: Summary, rows: int, *, wide: bool) -> Table:
    columns = table("Slowest")
    columns.expand = True
    columns.columns[0].justify = "right"
    columns.add_column("Status", no_wrap=True)
    columns.add_column("URL", no_wrap=True, overflow="ellipsis", ratio=1)
    if wide:
        columns.add_column("Trace", no_wrap=True)
    for each in summary.slowest[:rows]:
        status = Text(str(each.response_code or NONE), style="" if each.success else "red")
        trace = [Text(each.trace_id, style="dim")] if wide else []
        columns.add_row(duration(each.delta_t), status, Text(one_line(each.url)), *trace)
    return columns


def _over_time(summary: Summary) -> Iterator[Text]:
    """Say what changed between the first and the last quarter, when nothing happened, and when much did."""
    if summary.quarters:
        yield _line(("First to last quarter: ", "bold"), ", ".join(_changes(summary)) or "much the same")
    longest = summary.quiet[:_NAMED_QUIET]
    told = ", ".join(f"{duration(each.seconds)} from {each.start:%m-%d %H:%M:%S}" for each in longest)
    more = f" and {len(summary.quiet) - len(longest)} more" if len(summary.quiet) > len(longest) else ""
    yield _line(("Quiet: ", "bold"), f"{told}{more}" if told else "never for long")
    bursts = summary.bursts
    yield _line(
        ("Busiest: ", "bold"),
        f"{bursts.peak_calls:,} calls in the second from {moment(bursts.peak)}",
        f", {_count(bursts.seconds, 'second')} above {3 * bursts.median:,.0f}" if bursts.seconds else "",
    )


def _changes(summary: Summary) -> Iterator[str]:
    first, last, seconds = summary.quarters[0], summary.quarters[-1], summary.total.seconds / 4
    compared: tuple[tuple[str, Callable[[float], str], float, float], ...] = (
        ("rate", rate, first.calls / seconds, last.calls / seconds),
        ("failed", share, first.error_rate, last.error_rate),
        ("p50", duration, first.latency.p50, last.latency.p50),
        ("p95", duration, first.latency.p95, last.latency.p95),
    )
    for name, shown, before, after in compared:
        if abs(after - before) > _SAME * max(abs(before), abs(after)):  # never with a NaN
            yield f"{name} {shown(before)} -> {shown(after)}"
