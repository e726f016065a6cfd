"""``otel-connector check``: its options, and how what it found looks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from otel_connector._csv import _check
from otel_connector._csv._torn_tail import TORN_SUFFIX
from otel_connector._record import one_line
from otel_connector.cli._exit_codes import USAGE, WRONG
from otel_connector.cli._terminal import moves, output, say

# Click keeps the lines of a paragraph that starts with a backspace as they are.
EPILOG = """\b
Exit code:
  0  every file is whole
  1  a file is damaged
  2  a file is not a log, cannot be read, or is being written and cannot be repaired

\b
Examples:
  otel-connector check logs.csv
  otel-connector check --repair logs.csv logs.csv.1
  otel-connector check logs.csv && python report.py logs.csv
"""


def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", show_default=False, help="Logs of any size.")],
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="First take off an unfinished last line, as the next program that opens the log would. It is kept in"
            " FILE.torn. Programs may be writing the log meanwhile.",
        ),
    ] = False,
) -> None:
    """Say what in a log is whole, and what is damaged.

    A program that was killed, or a full disk, can leave a last line without an end: --repair moves it out of the way.
    All other damage (a hole after a crash of the machine, joined files, lines that something else wrote) is shown with
    its line and its offset in bytes, and never changed: every other row can still be read. Files are read while
    programs write them; without --repair nothing is changed.
    """
    console = output()
    worst = 0
    for path in files:
        name = one_line(os.fspath(path))
        try:
            moved = _check.repair(path) if repair else 0
            report = _scan(console, path)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            typer.echo(f"otel-connector check: {name}: {why}", err=True)
            worst = USAGE
            continue
        _show_check(console, name, report, moved)
        worst = max(worst, 0 if report.whole else WRONG)
    raise typer.Exit(worst)


def _scan(console: Console, path: Path) -> _check.Report:
    """Check one log; on a terminal a line shows how far it is."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, expand=True, disable=not moves(console)) as progress:
        task = progress.add_task(one_line(path.name), total=None)
        return _check.check(path, lambda done, size: progress.update(task, completed=done, total=size))


def _show_check(console: Console, name: str, report: _check.Report, moved: int) -> None:
    torn_name = f"{name}{TORN_SUFFIX}"
    if moved:
        say(console, f"{name}: an unfinished last line was moved to {torn_name}; bytes: {moved:,}")
    damaged = len(report.damage) + report.more
    verdict = "whole" if report.whole else "DAMAGED"
    say(console, f"{name}: {verdict}; whole rows: {report.rows:,}, damaged lines: {damaged:,}, bytes: {report.size:,}")
    for each in report.damage:
        say(console, f"  line {each.line:,}, offset {each.offset:,}, length {each.length:,}: {each.what}")
    if report.more:
        say(console, f"  and damaged lines beyond these: {report.more:,}")
    if (last := report.unfinished) is not None:
        say(console, f"  last line {last.line:,}, offset {last.offset:,}, length {last.length:,}: {last.what}")
        say(console, f"    If no program is writing it now, --repair moves it to {torn_name}")
    if report.torn is not None and not moved:
        say(console, f"  {torn_name} keeps unfinished lines from before; bytes: {report.torn:,}")
    if report.changed:
        say(console, "  The file changed while it was read: this is how it began")
