"""How ``otel-connector fetch`` looks: two lines that move on a terminal, elsewhere a line now and then.

What moves is drawn by a thread: a terminal that is stopped (Ctrl-S), or a pipe that nobody reads, holds up no call.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from otel_connector.cli._terminal import say

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from otel_connector._bulk import Resumed
    from otel_connector._fetch._fetch import Fetch, Progress

_LOOK_EVERY = 0.25  # seconds
_LINE_EVERY = 5.0  # seconds, where nothing moves
_DAY = 86_400


class FetchView:
    """Shows a fetch until it is told to stop.

    Args:
        console: Where; what is not a terminal gets lines.
        fetch: What is shown.
        moving: Whether the console can show movement.
        line_every: Seconds between two lines, if it cannot.
    """

    def __init__(self, console: Console, fetch: Fetch, *, moving: bool, line_every: float = _LINE_EVERY) -> None:
        self._line_every = line_every
        self._console = console
        self._fetch = fetch
        self._moving = moving
        self._latest = fetch.progress()

    def say_what_was_found(self) -> None:
        """Say what the log had of the list, if it was looked into."""
        if self._fetch.resumed is not None:
            say(self._console, what_was_found(self._fetch.resumed, self._fetch.options.project))

    async def show(self) -> None:
        """Show it until cancelled."""
        if not self._moving:
            while True:
                await asyncio.sleep(self._line_every)
                await asyncio.to_thread(say, self._console, as_line(self._fetch.progress()))
        with Live(get_renderable=self._drawn, console=self._console, transient=True, refresh_per_second=4):
            while True:
                self._latest = self._fetch.progress()
                await asyncio.sleep(_LOOK_EVERY)

    def _drawn(self) -> RenderableType:
        now = self._latest
        first = Table.grid(padding=(0, 1), expand=True)
        first.add_column(ratio=1)
        first.add_column(no_wrap=True, justify="right")
        bar = ProgressBar(total=now.total, completed=now.done, pulse=now.total is None)
        first.add_row(bar, Text(_how_far(now)))
        second = Text(no_wrap=True, overflow="ellipsis")
        for number, (text, style) in enumerate(_figures(now)):
            second.append("   " if number else "").append(text, style)
        return Group(first, second)


def what_was_found(found: Resumed, project: str) -> str:
    """Say what a log had of a list that is taken up again."""
    if found.rows and not found.of_project:
        return f"The log has {found.rows:,} rows, but none of the project {project!r}: nothing is passed over"
    return f"The log has {found.of_project:,} rows of the project {project!r}; URLs that are done: {found.done:,}"


def in_the_end(now: Progress) -> str:
    """Return what came of it as one line of text."""
    ended = now.succeeded + now.failed
    rate = now._replace(rate=ended / now.seconds if now.seconds else 0.0, active=0, paused=0)
    figures = [text for text, _ in _figures(rate) if not text.endswith("in flight")]
    of_total = "" if now.total is None or now.done == now.total else f" of {now.total:,}"
    noun = "URL" if now.done == 1 and not of_total else "URLs"
    return f"{now.done:,}{of_total} {noun} in {duration(now.seconds)}: {', '.join(figures)}"


def as_line(now: Progress) -> str:
    """Return where it stands as one line of text."""
    return ", ".join([_how_far(now), *(text for text, _ in _figures(now))])


def _how_far(now: Progress) -> str:
    if now.total is None:
        return f"{now.done:,} done"
    share = f" ({100 * now.done / now.total:.0f} %)" if now.total else ""
    left = "" if now.remaining is None else f", {duration(now.remaining)} left"
    return f"{now.done:,}/{now.total:,}{share}{left}"


def _figures(now: Progress) -> list[tuple[str, str]]:
    figures = [
        (f"{now.rate:,.{0 if now.rate >= 10 else 1}f}/s", ""),  # noqa: PLR2004 - two digits are enough
        (f"{now.succeeded:,} ok", "green"),
        (f"{now.failed:,} failed", "red" if now.failed else ""),
        (f"{now.retries:,} {'retry' if now.retries == 1 else 'retries'}", ""),
        (f"{now.active:,} in flight", ""),
    ]
    if now.paused:
        figures.append((f"{now.paused:,} {'host' if now.paused == 1 else 'hosts'} paused", "yellow"))
    if now.passed_over:
        figures.append((f"{now.passed_over:,} passed over", ""))
    return figures


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds, with days before them if there are any."""
    days, rest = divmod(round(seconds), _DAY)
    minutes, seconds = divmod(rest, 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{days} d " if days else "") + (
        f"{hours}:{minutes:02}:{seconds:02}" if hours or days else f"{minutes}:{seconds:02}"
    )
