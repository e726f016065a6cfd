"""Everything that the commands print: lines, tables, documents, log lines and live views, with their consoles.

This is the one place that creates consoles, and the one that escapes: every text passes `printable`. Otherwise the name
of a file, or a text of a server or a collector, could move the cursor or forge a line. Does not know what is printed.

Used by ``cli``.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich import progress
from rich.console import Console, ConsoleDimensions
from rich.live import Live
from rich.table import Table
from rich.text import Text

from otel_connector._record import UNSAFE, one_line
from otel_connector._telemetry._export_problem import has_noted
from otel_connector.cli import _cursor

if TYPE_CHECKING:
    from rich.console import OverflowMethod, RenderableType

_UNKNOWN_SIZE = 80, 24  # columns and lines, as in `shutil.get_terminal_size`
_MAX_SIZE = 10_000  # no terminal is larger; views fill their width with spaces
_UNLIMITED = 10**9  # columns
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


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
            _discard(stream)

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


def _discard(stream: TextIO) -> None:
    """Redirect a stream to the null device: what is still in its buffer, too, is written without an error."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class _Console(Console):
    """A console whose size is that of its own stream. What is not a terminal has no limit, so that nothing is cut."""

    def __init__(self, stream: TextIO, **options: Any) -> None:
        self._limited = stream.isatty()  # also after the terminal is lost: a view is as wide as the console
        super().__init__(file=stream, **options)

    def on_broken_pipe(self) -> None:
        """Leave it to `print_lines`: rich would end the program with exit code 1."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    @property  # type: ignore[misc] # it cannot be set
    def size(self) -> ConsoleDimensions:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The columns and lines. 0 means unknown, also of a pseudoterminal; so do values that are not numbers."""
        if not self._limited:
            return ConsoleDimensions(_UNLIMITED, _UNKNOWN_SIZE[1])
        own: tuple[int, int] = _UNKNOWN_SIZE
        with suppress(OSError):
            own = os.get_terminal_size(self.file.fileno())
        columns, lines = (
            given if 0 < (given := _number(name)) <= _MAX_SIZE else size or unknown
            for name, size, unknown in zip(("COLUMNS", "LINES"), own, _UNKNOWN_SIZE, strict=True)
        )
        return ConsoleDimensions(columns - self.legacy_windows, lines)


def _number(variable: str) -> int:
    try:
        return int(os.environ.get(variable, ""))
    except ValueError:
        return 0


def _console(stream: TextIO) -> Console:
    """Return a console. rich decides on colours: FORCE_COLOR and TTY_COMPATIBLE enable them, and nothing else here."""
    plain = bool(os.environ.get("NO_COLOR")) and not stream.isatty()
    # Without a width and a height, rich would read the variables, and raise for some values
    width, height = _UNKNOWN_SIZE
    return _Console(
        stream, width=width, height=height, color_system=None if plain else "auto", highlight=False, markup=False
    )


def output_console() -> Console:
    """Return a console on standard output, for the result of a command: an output error ends the command."""
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] # closed by the shell: ">&-"
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open until the program exits
    with suppress(AttributeError):  # a replacement of stdout may not have this method
        cast("Any", sys.stdout).reconfigure(errors="replace")  # print ? for a character that the encoding lacks
    return _console(sys.stdout)


def tolerant_console(stream: TextIO) -> Console:
    """Return a console on `stream`, for messages beside the result: an output error is ignored."""
    return _console(cast("TextIO", TolerantStream(stream)))


def is_terminal(console: Console) -> bool:
    """Whether people see the output of `console` on a screen. rich's own answer depends on FORCE_COLOR."""
    return console.file.isatty()


def can_animate(console: Console) -> bool:
    """Whether the output of `console` can be redrawn, by rich and by a job in the foreground."""
    drawn = console.is_terminal and console.is_interactive and not console.is_dumb_terminal
    return drawn and is_terminal(console) and _cursor.in_foreground(console.file.fileno())


class _Live(Live):
    """A view that is not redrawn while the program is in the background, whose writes may stop it (stty tostop)."""

    def __init__(self, console: Console, **options: Any) -> None:
        super().__init__(console=console, **options)
        self._descriptor = console.file.fileno()

    def refresh(self) -> None:
        if _cursor.in_foreground(self._descriptor):
            super().refresh()


@contextmanager
def live_view(console: Console, **options: Any) -> Generator[Live]:
    """Return a view that is redrawn in the foreground; the options are those of `rich.live.Live`."""
    with _cursor.restored(console.file.fileno()), _Live(console, **options) as live:
        yield live


class _Description(progress.ProgressColumn):
    def render(self, task: progress.Task) -> Text:
        return styled(task.description)


@contextmanager
def progress_bar(console: Console, *columns: progress.ProgressColumn) -> Generator[progress.Progress]:
    """Return a progress display that is erased at its end, and is not shown where nothing can be redrawn.

    Args:
        console: The console.
        columns: What it shows; by default a description, a bar, the percentage and the remaining time.
    """
    shown = can_animate(console)
    bar = progress.BarColumn(bar_width=None)
    columns = columns or (_Description(), bar, progress.TaskProgressColumn(), progress.TimeRemainingColumn())
    view = progress.Progress(*columns, console=console, expand=True, disable=not shown)
    with live_view(console, get_renderable=view.get_renderable, transient=True) if shown else nullcontext():
        yield view


def printable(text: str) -> str:
    """Return a text as one line without characters that a terminal obeys; see `one_line`. It is not cut."""
    return one_line(text, sys.maxsize)


def styled(text: str, style: str = "", *, overflow: OverflowMethod | None = None) -> Text:
    """Return a text for a table or a view; with `overflow`, it is not wrapped."""
    return Text(printable(text), style, overflow=overflow, no_wrap=True if overflow else None)


def sentence(*parts: str | tuple[str, str]) -> Text:
    """Return a line of texts and of texts with a style. It is wrapped at the width of a terminal."""
    made = styled("")
    for part in parts:
        made.append_text(styled(part) if isinstance(part, str) else styled(*part))
    return made


class _Table(Table):
    """A table whose texts are escaped."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        super().add_row(*(styled(cell) if isinstance(cell, str) else cell for cell in cells), **options)


def table(first: str | None = None, *numbers: str) -> Table:
    """Return a table without lines: a text column `first`, and a right-aligned column for each of `numbers`."""
    columns = _Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    if first is not None:
        columns.add_column(first, no_wrap=True)
    for name in numbers:
        columns.add_column(name, justify="right", no_wrap=True)
    return columns


def show(console: Console, *views: RenderableType) -> bool:
    """Print tables and texts, one below the other, and return whether the output is open.

    After `| head` the rest is discarded: the exit code is that of the result.
    """
    if is_terminal(console):
        console.print(*views, sep="\n", crop=False)
        return True
    with console.capture() as captured:
        console.print(*views, sep="\n", crop=False)
    return _written(cast("TextIO", console.file), "\n".join(map(_without_padding, captured.get().split("\n"))))


def _written(stream: TextIO, text: str) -> bool:
    """Write a text, and return whether the stream is open: False if the reader of a pipe has closed it."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        _discard(stream)
        return False
    return True


def _without_padding(line: str) -> str:
    """Return a line without the blanks at its end, with which a table pads its cells; styles among them stay."""
    styles = ""
    while True:
        line = line.rstrip(" ")
        start = line.rfind("\x1b") if line.endswith("m") else -1
        if start < 0 or not _STYLE.fullmatch(line, start):
            return line + styles
        line, styles = line[:start], line[start:] + styles


def print_lines(console: Console, *lines: str) -> None:
    """Print lines without wrapping, so that a path or a command can be copied. After `| head`, discard them."""
    try:
        for each in lines:
            console.print(styled(each), soft_wrap=True)
    except BrokenPipeError:
        _discard(cast("TextIO", console.file))


def print_errors(*lines: str) -> None:
    """Print lines to standard error, if it can be written."""
    print_lines(tolerant_console(sys.stderr), *lines)


def print_document(text: str) -> None:
    r"""Print JSON, CSV or Markdown to standard output, in UTF-8 in any locale (RFC 8259, section 8.1).

    Control characters and lone surrogates are escaped as in JSON (``\u009b``), so that the values stay.
    """
    with suppress(AttributeError):  # a replacement of stdout may not have this method
        cast("Any", sys.stdout).reconfigure(encoding="utf-8", errors="backslashreplace")
    _written(sys.stdout, UNSAFE.sub(_escape, text.rstrip("\n")) + "\n")


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    return char if char in "\n\t" else f"\\u{ord(char):04x}"


def indented(text: str) -> Generator[str]:
    """Yield the lines of a text of several lines. All but the first are indented, so that none can forge another."""
    for number, each in enumerate(text.split("\n")):
        yield f"  {each}" if number else each


class _OneLine(logging.Formatter):
    """Formats a log record as one line; those of its traceback follow, indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the library's name
        return "\n".join(f"  {printable(each)}" for each in super().formatException(ei).split("\n"))


def escape_log_lines() -> None:
    """Escape the log lines of this process, those of the SDK included: no command sets up a handler of its own.

    What the SDK logs about an export whose problem is known is left out: this package reports it, and only once.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # grpc writes each TLS handshake that fails to standard error
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_OneLine())
        logging.lastResort.addFilter(_is_no_repetition)


def _is_no_repetition(record: logging.LogRecord) -> bool:
    """Return False for a line of the SDK about an export whose problem this package reports."""
    return not (record.name.startswith("opentelemetry.") and has_noted())
