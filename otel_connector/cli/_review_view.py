"""The terminal output of ``otel-connector review``: a summary that fits the screen, and the result of a query.

Every colour has words beside it. Does not know where the figures come from.

Used by ``cli._review_command``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone, tzinfo
from textwrap import wrap
from typing import TYPE_CHECKING

from rich.console import Group as Lines

from otel_connector._units import (
    MOST_FILES,
    NONE,
    counted,
    duration,
    listed_files,
    moment,
    rate,
    share,
    short_moment,
    size,
)
from otel_connector.cli._terminal import sentence, styled, table
from otel_connector.review._formats import lost_time

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from otel_connector.review import Group, LogFile, Retries, Summary, Tries
    from otel_connector.review._query import Answer

_PROMPTS = 2  # lines of a screen that the shell uses
# Lines of a section with one row of each table, "and more", and the empty line before it
_LEAST_LINES = {"groups": 9, "errors": 4, "slowest calls": 3}
_OF_SECTIONS = ("groups", "groups", "errors", "slowest calls", "groups")
_GAP = styled("   ")  # between two figures
_MAX_ROWS = 10  # of a table on a high screen
_YELLOW, _RED = 0.01, 0.1  # failure rates from which these colours are used
_LISTED_DAMAGE = 3  # damaged lines listed per file
_LISTED_PAUSES = 3  # of the longest periods without calls
_LISTED_LOST = 3  # of the reasons and hosts, or endpoints, that cost the most time
_WIDE = 100  # columns from which rates, bytes and traces are shown
_LEAST_OF_NAME = 8  # columns of the name of a log before its period
_MAX_NAME = 60  # columns of a name on a wide screen
_MIN_CHANGE = 0.05  # relative changes below this are not listed


def summary_view(
    summary: Summary,
    verdict: Sequence[str] = (),
    *,
    width: int,
    lines: int | None = None,
    all_rows: bool = False,
    zone: tzinfo = timezone.utc,
) -> Lines:
    """Return a summary for the terminal. On a low screen, its last tables are left out, so that its head stays visible.

    Args:
        summary: The summary.
        verdict: The lines of the verdict, without that of the files.
        width: Columns of the screen.
        lines: Lines of the screen; None for no limit: all rows are shown, and no text is cut.
        all_rows: Whether to show all rows, even if they do not fit the screen.
        zone: The time zone of the times.
    """
    wide, cut = width >= _WIDE, lines is not None
    said = [part for text in verdict for part in (_wrapped(text, width) if cut else [text])]
    if not summary.total.calls:
        return Lines(*map(styled, said or ["No calls."]))
    head = [
        part for each in _head(summary, zone, width, cut=cut) for part in (_wrapped(each, width) if cut else [each])
    ]
    names = wrap(_names(summary, cut=True), width) if cut and len(_read(summary)) > 1 else []
    listed = (summary.projects, summary.hosts, summary.errors, summary.slowest, summary.endpoints)
    sizes, lost = [len(each) for each in listed], list(_lost(summary.retries))
    sentences = {"retries": list(_retries(summary.retries)), "changes over time": list(_over_time(summary, zone))}
    fitting, left_out, total = sizes, list[str](), list(_total(summary, width))
    if lines is not None and not all_rows:
        room = lines - _PROMPTS - len(said) - len(head) + 1 - max(len(names), 1) - len(total) - 1 - _height(lost, width)
        needed = {name: least for name, least in _LEAST_LINES.items() if name != "errors" or summary.errors}
        needed |= {name: 1 + _height(found, width) for name, found in sentences.items() if found}
        fitting, left_out = _fitted(room, sizes, needed)
    sections: dict[str, Callable[[], Sequence[RenderableType]]] = {
        "groups": lambda: [_groups(summary, fitting[0], fitting[1], fitting[4], wide=wide, cut=cut)],
        "errors": lambda: _errors(summary, fitting[2], cut=cut) if summary.errors else [],
        "slowest calls": lambda: [_slowest(summary, fitting[3], wide=wide, cut=cut)],
        "retries": lambda: sentences["retries"],
        "changes over time": lambda: sentences["changes over time"],
    }
    parts: list[RenderableType] = [*map(styled, head), *map(styled, said), *([""] if said else []), *total]
    parts += lost
    for name, section in sections.items():
        if name not in left_out and (shown := section()):
            parts += ["", *shown]
    if left_out:
        parts.append(styled(f"Not on this screen: {', '.join(left_out)}", "dim"))
    return Lines(*parts)


def _wrapped(text: str, width: int) -> list[str]:
    """Return a line of the verdict as lines of the screen; those after the first, and details, are indented."""
    indent = "  " if text.startswith("  ") else ""
    return wrap(text.strip(), width, initial_indent=indent, subsequent_indent="  ", break_on_hyphens=False)


def _height(sentences: Sequence[Text], width: int) -> int:
    return sum(len(wrap(each.plain, width, break_on_hyphens=False)) for each in sentences)


def _fitted(room: int, sizes: Sequence[int], needed: dict[str, int]) -> tuple[list[int], list[str]]:
    """Return how many rows of the tables fit, and the sections that do not.

    Args:
        room: The lines of the screen.
        sizes: The rows of the tables.
        needed: The lines that each section needs at least.
    """
    left_out = list[str]()
    for name in reversed(needed):
        if sum(needed.values()) - sum(needed[each] for each in left_out) + bool(left_out) > room:
            left_out.append(name)
    kept = [size if name not in left_out else 0 for name, size in zip(_OF_SECTIONS, sizes, strict=True)]
    room -= sum(lines for name, lines in needed.items() if name not in left_out) + bool(left_out)
    return _share_rows(max(room, 0) + sum(map(bool, kept)), kept), left_out[::-1]


def _share_rows(room: int, sizes: Sequence[int]) -> list[int]:
    """Give rows to the tables in turn, until each has its size or the room is used up."""
    rows = [0] * len(sizes)
    while room > 0:
        growing = [i for i, size in enumerate(sizes) if rows[i] < min(size, _MAX_ROWS)][:room]
        if not growing:
            break
        for i in growing:
            rows[i] += 1
        room -= len(growing)
    return rows


def answer_table(answer: Answer) -> Table:
    """Return the result of a query as a table."""
    columns = table()
    for name in answer.columns:
        columns.add_column(styled(name), overflow="fold")
    for row in answer.texts():
        columns.add_row(*row)
    return columns


def file_lines(files: Sequence[LogFile]) -> Iterator[str]:
    """Yield lines about the parts of the files that the figures do not include."""
    for file in files:
        name = file.path
        if file.problem:
            yield f"{name}: NOT READ: {file.problem}"
        if file.damaged:
            yield f"{name}: {counted(file.damaged, 'damaged line')}, not counted"
            yield from (f"  line {number:,}: {what}" for number, what in file.damage[:_LISTED_DAMAGE])
        if file.unfinished:
            yield f"{name}: the last line has no line end and is not counted: it is torn, or a program is writing it"
        if file.torn is not None:
            yield f"{file.torn.path}: {counted(file.torn.lines, 'unfinished line')}, not counted"


def _read(summary: Summary) -> list[str]:
    return [file.path for file in summary.files if not file.problem]


def _names(summary: Summary, *, cut: bool) -> str:
    return listed_files(_read(summary), MOST_FILES if cut else None)


def _local(time: datetime, zone: tzinfo) -> datetime:
    return time.replace(tzinfo=timezone.utc).astimezone(zone)


def _head(summary: Summary, zone: tzinfo, width: int, *, cut: bool) -> Iterator[str]:
    """Yield the names of the files and the period."""
    total, names = summary.total, _names(summary, cut=cut)
    if (read := len(_read(summary))) > 1:
        yield names
        names = counted(read, "file")
    start, end = (_local(time, zone) for time in (total.start, total.end) if time)
    until = moment(end).removeprefix(f"{moment(start).partition(' ')[0]} ")
    period = f": {moment(start)} to {until} {start.tzname()}, {duration(total.seconds)}"
    room = max(width - len(period), _LEAST_OF_NAME) if cut else len(names)
    yield f"{names if len(names) <= room else f'…{names[1 - room :]}'}{period}"


def _total(summary: Summary, width: int) -> Iterator[Text]:
    """Yield lines with the figures of all calls. A line ends between two figures."""
    total, latency = summary.total, summary.total.latency
    succeeded = f"{share(1 - total.error_rate)} succeeded, {total.failed:,} failed"
    calls = (counted(total.calls, "call"), "bold")
    figures = [sentence(calls, f", {rate(total.rate)}"), sentence((succeeded, _colour(total.error_rate)))]
    yield from _packed([*figures, sentence(size(total.bytes))], width)
    shown = ("p50", latency.p50), ("p90", latency.p90), ("p95", latency.p95), ("p99", latency.p99), ("max", latency.max)
    yield from _packed([sentence((f"{name} ", "dim"), duration(value)) for name, value in shown], width)


def _packed(figures: Sequence[Text], width: int) -> Iterator[Text]:
    """Return lines with as many of the figures as fit."""
    lines = [[figures[0]]]
    for figure in figures[1:]:
        if _GAP.join([*lines[-1], figure]).cell_len <= width:
            lines[-1].append(figure)
        else:
            lines.append([figure])
    return map(_GAP.join, lines)


def _colour(error_rate: float) -> str:
    return "green" if error_rate < _YELLOW else "yellow" if error_rate < _RED else "red"


def _groups(summary: Summary, projects: int, hosts: int, endpoints: int, *, wide: bool, cut: bool) -> Table:
    """Return the table of the projects and, below them, the hosts and endpoints."""
    columns = table("Project", "Calls", "Failed", "p50", "p95", "p99", "Max", *(("Rate", "Bytes") if wide else ()))
    # On a narrow screen only the names are cut. On a wide one the table does not expand: numbers stay near the names
    columns.expand = cut and not wide
    names = columns.columns[0]
    names.overflow, names.ratio, names.min_width = "ellipsis", 1, 12
    names.max_width = _MAX_NAME if cut and wide else None
    _add_groups(columns, summary.projects, projects, summary.more_projects, wide=wide)
    columns.add_row(styled("Host", "bold"))
    _add_groups(columns, summary.hosts, hosts, summary.more_hosts, wide=wide)
    columns.add_row(styled("Endpoint", "bold"))
    _add_groups(columns, summary.endpoints, endpoints, summary.more_endpoints, wide=wide)
    return columns


def _add_groups(columns: Table, groups: Sequence[Group], rows: int, more: int, *, wide: bool) -> None:
    for group in groups[:rows]:
        failed = styled(share(group.error_rate), _colour(group.error_rate))
        latency = map(duration, (group.latency.p50, group.latency.p95, group.latency.p99, group.latency.max))
        rest = (rate(group.rate), size(group.bytes)) if wide else ()
        columns.add_row(group.name or "(none)", f"{group.calls:,}", failed, *latency, *rest)
    if more := len(groups) - rows + more:
        columns.add_row(styled(f"and {more:,} more", "dim"))


def _errors(summary: Summary, rows: int, *, cut: bool) -> list[RenderableType]:
    columns = table("Error", "Calls", "Share")
    columns.expand = cut
    columns.add_column("For example", no_wrap=True, overflow="ellipsis", ratio=1)
    for each in summary.errors[:rows]:
        example = each.example
        message = example.error.removeprefix(f"{each.name.partition(' ')[0]}: ")
        columns.add_row(
            styled(each.name, "red"),
            f"{each.calls:,}",
            share(each.share),
            f"{message}  {example.url}",
        )
    more = len(summary.errors) - rows + summary.more_errors
    return [columns, *([styled(f"and {more:,} more", "dim")] if more else [])]


def _slowest(summary: Summary, rows: int, *, wide: bool, cut: bool) -> Table:
    columns = table("Slowest")
    columns.expand = cut
    columns.columns[0].justify = "right"
    columns.add_column("Outcome", no_wrap=True)
    columns.add_column("Endpoint", no_wrap=True, overflow="ellipsis", ratio=1)
    if wide:
        columns.add_column("URL", no_wrap=True, overflow="ellipsis", ratio=1)
        columns.add_column("Trace", no_wrap=True)
    for each in summary.slowest[:rows]:
        code = NONE if each.response_code is None else str(each.response_code)
        outcome = styled(code) if each.success else styled(each.error_type, "red")
        rest: list[RenderableType] = [styled(each.url), styled(each.trace_id, "dim")] if wide else []
        columns.add_row(duration(each.delta_t), outcome, each.endpoint, *rest)
    return columns


def _over_time(summary: Summary, zone: tzinfo) -> Iterator[Text]:
    """Yield the change from the first to the last quarter, the periods without calls, and the busiest second."""
    if summary.quarters:
        yield sentence(("First to last quarter: ", "bold"), ", ".join(_changes(summary)) or "no change of 5 % or more")
    longest = summary.quiet[:_LISTED_PAUSES]
    listed = ", ".join(f"{duration(each.seconds)} from {short_moment(_local(each.start, zone))}" for each in longest)
    more = f" and {len(summary.quiet) - len(longest)} more" if len(summary.quiet) > len(longest) else ""
    yield sentence(("Without calls: ", "bold"), f"{listed}{more}" or "no long period")
    bursts = summary.bursts
    yield sentence(
        ("Busiest: ", "bold"),
        f"{counted(bursts.peak_calls, 'call')} in the second from {moment(bursts.peak and _local(bursts.peak, zone))}",
        f", {counted(bursts.seconds, 'second')} above {3 * bursts.median:,.0f}" if bursts.seconds else "",
    )


def _lost(found: Retries | None) -> Iterator[Text]:
    if found is not None and found.reasons:
        yield sentence(("Lost time: ", "bold"), lost_time(found))


def _retries(found: Retries | None) -> Iterator[Text]:
    """Yield where the time was lost, and which attempts succeeded, if attempts failed."""
    if found is None or not found.reasons:
        return
    for by, lost, left_out in (
        ("host", found.hosts, found.more_hosts),
        ("endpoint", found.endpoints, found.more_endpoints),
    ):
        costly = (f"{each.reason} at {each.name or NONE} {duration(each.seconds)}" for each in lost[:_LISTED_LOST])
        more = len(lost[_LISTED_LOST:]) + left_out
        listed = f"{', '.join(costly)}{f' and {more:,} more' if more else ''}"
        yield sentence((f"Lost time by {by}: ", "bold"), listed)
    yield sentence(("Retries: ", "bold"), "; ".join(map(_tries, found.tries)) or "none")


def _tries(each: Tries) -> str:
    if not each.succeeded:
        return f"{counted(each.failed, 'call')} failed after {each.attempts} attempts"
    failed = f", {each.failed:,} failed" if each.failed else ""
    return f"{counted(each.succeeded, 'call')} succeeded only at attempt {each.attempts}{failed}"


def _changes(summary: Summary) -> Iterator[str]:
    first, last, seconds = summary.quarters[0], summary.quarters[-1], summary.total.seconds / 4
    compared: tuple[tuple[str, Callable[[float], str], float, float], ...] = (
        ("rate", rate, first.calls / seconds, last.calls / seconds),
        ("failed", share, first.error_rate, last.error_rate),
        ("p50", duration, first.latency.p50, last.latency.p50),
        ("p95", duration, first.latency.p95, last.latency.p95),
    )
    for name, text, before, after in compared:
        if abs(after - before) > _MIN_CHANGE * max(abs(before), abs(after)):  # False if one is NaN
            yield f"{name} {text(before)} -> {text(after)}"
