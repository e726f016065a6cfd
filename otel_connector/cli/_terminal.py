"""Prints lines, tables and progress to a terminal, a pipe or a file, even if its reader has gone away.

Does not know what is printed.

Used by ``cli``.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, cast

from rich import progress
from rich.console import Console
from rich.table import Table
from rich.text import Text


class TolerantStream:
    """A text stream that ignores write errors, for output that must not end a job.

    After the first error everything is discarded. The descriptor is redirected to the null device, so that the flush
    at the exit of the interpreter does not fail either.

    Args:
        stream: The stream to write to; None if the shell has closed it.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text`, or discard it."""
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._try("flush")

    def _try(self, method: str, *arguments: str) -> None:
        if self._stream is None:
            return
        try:
            getattr(self._stream, method)(*arguments)
        except UnicodeEncodeError:  # the encoding of the terminal lacks a character
            self._stream.write("".join(arguments).encode(self.encoding, "replace").decode(self.encoding))
        except (OSError, ValueError):
            stream, self._stream = self._stream, None
            with suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """Return the descriptor. rich reads the width of the terminal from it."""
        if self._stream is None:
            raise OSError("the stream is closed")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        """The encoding of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"


def output_console() -> Console:
    """Return a console on standard output, for the result of a command: an output error ends the command."""
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] # closed by the shell: ">&-"
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open until the program exits
    with suppress(AttributeError):  # a replacement of stdout may not have this method
        cast("Any", sys.stdout).reconfigure(errors="replace")  # print ? for a character that the encoding lacks
    return Console(highlight=False)


def print_document(text: str) -> None:
    """Print a document for programs (JSON, CSV, Markdown) in UTF-8, in any locale (RFC 8259, section 8.1).

    A lone surrogate, which a file name can contain, is escaped as in JSON.
    """
    with suppress(AttributeError):  # a replacement of stdout may not have this method
        cast("Any", sys.stdout).reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()


def tolerant_console(stream: TextIO) -> Console:
    """Return a console on `stream`, for messages beside the result: an output error is ignored."""
    return Console(file=cast("TextIO", TolerantStream(stream)), highlight=False)


def can_animate(console: Console, stream: TextIO | None = None) -> bool:
    """Whether `stream` (default: standard output) can be redrawn. FORCE_COLOR enables only colours."""
    return (stream or sys.stdout).isatty() and not console.is_dumb_terminal


def progress_bar(
    console: Console, *columns: progress.ProgressColumn, stream: TextIO | None = None
) -> progress.Progress:
    """Return a progress display that is erased at its end, and is not shown where nothing can be redrawn.

    Args:
        console: The console.
        columns: What it shows; by default a description, a bar, the percentage and the remaining time.
        stream: The stream of the console; default: standard output.
    """
    description, bar = progress.TextColumn("{task.description}"), progress.BarColumn(bar_width=None)
    columns = columns or (description, bar, progress.TaskProgressColumn(), progress.TimeRemainingColumn())
    disable = not can_animate(console, stream)
    return progress.Progress(*columns, console=console, transient=True, expand=True, disable=disable)


def print_lines(console: Console, *lines: str) -> None:
    """Print lines without wrapping, so that a path or a command can be copied."""
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def print_errors(*lines: str) -> None:
    """Print lines to standard error, if it can be written."""
    print_lines(tolerant_console(sys.stderr), *lines)


def table(first: str | None = None, *numbers: str) -> Table:
    """Return a table without lines: a text column `first`, and a right-aligned column for each of `numbers`."""
    columns = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    if first is not None:
        columns.add_column(first, no_wrap=True)
    for name in numbers:
        columns.add_column(name, justify="right", no_wrap=True)
    return columns
