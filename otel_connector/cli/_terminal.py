"""How lines and tables reach a terminal, a pipe or a file, also one that nobody reads any more.

Knows nothing of what is shown.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Unbreakable:
    """An output that nobody may be there to read: what cannot be written is dropped, and ends no job.

    The first failure is the last: from then on the descriptor leads nowhere, also when the interpreter flushes it.

    Args:
        stream: What is written to; None if the shell has closed it.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        """Send it on."""
        self._try("flush")

    def _try(self, method: str, *arguments: str) -> None:
        if self._stream is None:
            return
        try:
            getattr(self._stream, method)(*arguments)
        except UnicodeEncodeError:  # a terminal without the character
            self._stream.write("".join(arguments).encode(self.encoding, "replace").decode(self.encoding))
        except (OSError, ValueError):
            stream, self._stream = self._stream, None
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """Return its descriptor, by which a terminal's width is found."""
        if self._stream is None:
            raise OSError("it is closed")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        """How text becomes bytes there."""
        return getattr(self._stream, "encoding", None) or "utf-8"


def output() -> Console:
    """Return a console on standard output, for a command whose output is what it is for: it fails if that fails."""
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] # closed by the shell: ">&-"
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the program ends
    with suppress(AttributeError):  # what stands in for stdout need not have it
        cast("Any", sys.stdout).reconfigure(errors="replace")  # a character that is not there is no reason to fail
    return Console(highlight=False)


def unbreakable(stream: TextIO) -> Console:
    """Return a console on `stream`, for what is said on the side: nobody may be there to read it."""
    return Console(file=cast("TextIO", Unbreakable(stream)), highlight=False)


def moves(console: Console, stream: TextIO | None = None) -> bool:
    """Whether the console can show movement; FORCE_COLOR asks for colours only."""
    return (stream or sys.stdout).isatty() and not console.is_dumb_terminal


def say(console: Console, *lines: str) -> None:
    """Print lines as they are: not wrapped, so that a path or a command can be copied whole."""
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def complain(*lines: str) -> None:
    """Say what is wrong on standard error, if there is anybody to hear it."""
    say(unbreakable(sys.stderr), *lines)


def table(first: str, *numbers: str) -> Table:
    """Return a table without lines, its first column text, the others numbers."""
    columns = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    columns.add_column(first, no_wrap=True)
    for name in numbers:
        columns.add_column(name, justify="right", no_wrap=True)
    return columns
