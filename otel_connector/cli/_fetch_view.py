"""The output of ``otel-connector fetch``: a live display on a terminal, otherwise one line every few seconds.

Threads draw it: a stopped terminal (Ctrl-S) or a pipe that is not read blocks no call. Does not know how URLs are
fetched.

Used by ``cli._fetch_command``.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table

from otel_connector._units import MOST_FILES, counted, duration, listed_files, rate
from otel_connector.cli._continue_command import review_command
from otel_connector.cli._terminal import is_terminal, live_view, print_lines, show, styled, table, tolerant_console

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console, RenderableType

    from otel_connector._bulk import Resumed
    from otel_connector._fetch._fetch import Fetch, Progress

_UPDATE_INTERVAL = 0.25  # seconds
_LINE_INTERVAL = 5.0  # seconds, where nothing can be redrawn


class FetchView:
    """Shows the progress of a fetch.

    Args:
        console: The console to print to.
        fetch: The fetch to show.
        animated: Whether to show a live display, instead of lines.
        line_interval: Seconds between two lines.
    """

    def __init__(
        self, console: Console, fetch: Fetch, *, animated: bool, line_interval: float = _LINE_INTERVAL
    ) -> None:
        self._line_interval = line_interval
        self._console = console
        self._fetch = fetch
        self._animated = animated
        self._latest = fetch.progress()

    def show_resumed(self) -> None:
        """Print what the log contains of the list, if the fetch is resumed."""
        if self._fetch.resumed is not None:
            most = MOST_FILES if is_terminal(self._console) else None
            print_lines(self._console, resumed_line(self._fetch.resumed, self._fetch.options.project, most))

    async def show(self) -> None:
        """Show the progress until cancelled."""
        if not self._animated:
            while True:
                await asyncio.sleep(self._line_interval)
                await asyncio.to_thread(print_lines, self._console, progress_line(self._fetch.progress()))
        with live_view(self._console, get_renderable=self._display, transient=True, refresh_per_second=4):
            while True:
                self._latest = self._fetch.progress()
                await asyncio.sleep(_UPDATE_INTERVAL)

    def _display(self) -> RenderableType:
        now = self._latest
        first = Table.grid(padding=(0, 1), expand=True)
        first.add_column(ratio=1)
        first.add_column(no_wrap=True, justify="right")
        bar = ProgressBar(total=now.total, completed=now.done, pulse=now.total is None)
        first.add_row(bar, styled(_completion(now)))
        second = styled("", overflow="ellipsis")
        for number, (text, style) in enumerate(_figures(now)):
            second.append("   " if number else "").append(text, style)
        return Group(first, second)


def show_start(console: Console, run: Fetch, event_loop: str) -> None:
    """Print what is fetched, and how."""
    total = run.progress().total
    urls = "An unknown number of URLs" if total is None else counted(total, "URL")
    print_lines(console, f"{urls}, up to {run.options.concurrency} in flight, on {event_loop}")


def show_result(run: Fetch, log: Path, out: Path | None) -> None:
    """Print the failures by class, the final figures and the files."""
    console = tolerant_console(sys.stdout)
    if run.failures:
        failures = table("Failed", "Calls")
        for name, count in run.failures.most_common():
            failures.add_row(styled(name, "red"), f"{count:,}")
        show(console, failures, "")
    print_lines(console, f"{'Stopped' if run.stopped else 'Done'}: {result_line(run.progress())}")
    print_lines(console, f"Log: {log.absolute()}", *([] if out is None else [f"Results: {out.absolute()}"]))
    print_lines(console, review_command(log))


def resumed_line(found: Resumed, project: str, most: int | None = None) -> str:
    """Return how much of the list the log contains, for a fetch that is resumed, and the names of `most` files."""
    files = listed_files(found.files, most)
    if found.rows and not found.of_project:
        rows = counted(found.rows, "row")
        return f"The log has {rows}, but none of the project {project!r}: no URL is skipped; read: {files}"
    rows = counted(found.of_project, "row")
    return f"The log has {rows} of the project {project!r}; URLs with a success: {found.done:,}; read: {files}"


def result_line(now: Progress) -> str:
    """Return the final figures as one line."""
    ended = now.succeeded + now.failed
    mean = now._replace(rate=ended / now.seconds if now.seconds else 0.0, active=0, paused=0)
    figures = [text for text, _ in _figures(mean) if not text.endswith("in flight")]
    all_done = now.total is None or now.done == now.total
    urls = counted(now.done, "URL") if all_done else f"{now.done:,} of {now.total:,} URLs"
    return f"{urls} in {duration(now.seconds)}: {', '.join(figures)}"


def progress_line(now: Progress) -> str:
    """Return the present figures as one line."""
    return ", ".join([_completion(now), *(text for text, _ in _figures(now))])


def _completion(now: Progress) -> str:
    if now.total is None:
        return f"{now.done:,} done"
    share = f" ({100 * now.done / now.total:.0f} %)" if now.total else ""
    left = "" if now.remaining is None else f", {duration(now.remaining)} left"
    return f"{now.done:,}/{now.total:,}{share}{left}"


def _figures(now: Progress) -> list[tuple[str, str]]:
    """Return the figures, each with its style."""
    figures = [
        (rate(now.rate) if now.rate else "0/s", ""),
        (f"{now.succeeded:,} ok", "green"),
        (f"{now.failed:,} failed", "red" if now.failed else ""),
        (counted(now.retries, "retry", "retries"), ""),
        (f"{now.active:,} in flight", ""),
    ]
    if now.paused:
        figures.append((f"{counted(now.paused, 'host')} paused", "yellow"))
    if now.skipped:
        figures.append((f"{now.skipped:,} skipped", ""))
    return figures
