"""``otel-connector check``: its options and its output.

Does not know how a log is read or repaired: `_csv/_check` does that.

Used by ``cli``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otel_connector._csv import _check
from otel_connector._csv._lines import MAX_UNPACKED_BYTES
from otel_connector._csv._parts import attempts_file, log_files, torn_file
from otel_connector.cli._exit_codes import USAGE, WRONG
from otel_connector.cli._option_errors import described
from otel_connector.cli._terminal import output_console, print_errors, print_lines, progress_bar

if TYPE_CHECKING:
    from rich.console import Console

# \b is the escape of click for a paragraph that must not be wrapped
EPILOG = """\b
Exit code:
  0  all files are intact
  1  a file is damaged, or another program has altered it
  2  a file is not a log, cannot be read, or cannot be repaired because a program is writing it

\b
Examples:
  otel-connector check logs.csv
  otel-connector check --repair logs.csv logs.csv.1
  otel-connector check logs.csv && python report.py logs.csv
"""


def check(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="Logs of any size, with their rotated parts.")],
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="First move an unfinished last line to FILE.torn, as a program that opens the log does. A file that"
            " a program is writing is not repaired.",
        ),
    ] = False,
    max_unpacked_bytes: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Maximum size of a compressed log after decompression. A log that exceeds it is not checked.",
        ),
    ] = MAX_UNPACKED_BYTES,
) -> None:
    """Report whether a log is intact, and where it is damaged.

    A killed program or a full disk can leave a last line without a line end; --repair moves it to another file. All
    other damage (NUL bytes after a crash of the machine, joined files, lines of other programs) is reported with its
    line and byte offset and is never changed; all other rows can still be read. A file can be checked while a program
    writes it. Without --repair, no file is changed. The attempts log of a log (logs.attempts.csv) is checked with it.
    """
    console = output_console()
    roles: dict[str, str] = {}
    codes: list[int] = []
    for file in files:
        found = _roles(file)
        codes += [] if found else [USAGE]
        for path, role in found.items():
            roles[path] = role or roles.get(path, "")
    codes += (_check_file(console, path, role, max_unpacked_bytes, repair=repair) for path, role in roles.items())
    raise typer.Exit(max(codes))


def _roles(file: str) -> dict[str, str]:
    """Return the files of a log: its parts and the log, and those of its attempts, each with a text that says so.

    If they cannot be found, print why and return none.
    """
    try:
        roles = dict.fromkeys(log_files([file]), "")
    except OSError as error:
        print_errors(f"otel-connector check: {described(error)}")
        return {}
    for log in tuple(roles):
        if os.path.lexists(attempts := attempts_file(log)):
            found = [attempts]  # if it cannot be read, its check reports why
            with suppress(OSError):
                found = log_files(found)
            roles |= dict.fromkeys(found, f"the attempts log of {log}: ")
    return roles


def _check_file(console: Console, path: str, role: str, max_unpacked_bytes: int, *, repair: bool) -> int:
    """Check one file, print the result, and return the exit code."""
    try:
        moved = _check.repair(path) if repair else 0
        report = _scan(console, path, max_unpacked_bytes)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        print_errors(f"otel-connector check: {path}: {role}{why}")
        return USAGE
    if role and not report.attempts:
        print_errors(f"otel-connector check: {path}: {role}not an attempts log: the file is a log of calls")
        return USAGE
    print_lines(console, *_report_lines(path, report, moved))
    return 0 if report.whole else WRONG


def _scan(console: Console, path: str, max_unpacked_bytes: int) -> _check.CheckReport:
    """Check one log, and show the progress on a terminal."""
    with progress_bar(console) as progress:
        task = progress.add_task(Path(path).name, total=None)
        return _check.check(
            path, lambda done, size: progress.update(task, completed=done, total=size), max_unpacked_bytes
        )


def _report_lines(path: str, report: _check.CheckReport, moved: int) -> Iterator[str]:
    torn_name = torn_file(path)
    if moved:
        yield f"{path}: an unfinished last line of {moved:,} bytes was moved to {torn_name}"
    damaged, altered = report.damaged, f", altered lines: {report.altered:,}" if report.altered else ""
    verdict = "intact" if report.whole else "DAMAGED" if damaged or report.unfinished else "ALTERED"
    yield f"{path}: {verdict}; rows: {report.rows:,}{altered}, damaged lines: {damaged:,}, bytes: {report.size:,}"
    for each in report.damage:
        yield f"  line {each.line:,}, offset {each.offset:,}, length {each.length:,}: {each.what}"
    if report.more:
        yield f"  {report.more:,} more {'damaged or altered' if altered else 'damaged'} lines are not listed"
    if altered:
        readers = "" if report.attempts else "; review, replay and resume read their rows"
        yield f"  Altered lines have another form (line end, quotes, numbers){readers}"
    if (last := report.unfinished) is not None:
        yield f"  last line {last.line:,}, offset {last.offset:,}, length {last.length:,}: {last.what}"
        yield f"    If no program is writing it, --repair moves it to {torn_name}"
    if report.torn is not None and not moved:
        yield f"  {torn_name} has {report.torn:,} bytes of unfinished lines from earlier repairs"
    if report.changed:
        yield "  The file changed during the check; the report is about its state at the start"
