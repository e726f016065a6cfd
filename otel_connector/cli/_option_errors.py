"""Names the option that the user typed in the message about its value, and the file if the value is one.

Does not know the commands, nor what the values are used for.

Used by ``cli``.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from otel_connector._csv._parts import file_in_error
from otel_connector._csv._whole_file import refuse_outputs
from otel_connector._record import one_line


class InvalidOption(ValueError):
    """The value of an option cannot be used. The message starts with the option."""


def described(error: BaseException) -> str:
    """Return what went wrong; if it is about a file, the file comes first."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{one_line(str(error.filename)) or repr('')}: {error.strerror}"
    return str(error) or type(error).__name__


@contextmanager
def naming(option: str) -> Generator[None]:
    """Name an option in all errors of the block.

    Raises:
        InvalidOption: The block raised an error.
    """
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        raise InvalidOption(f"{option}: {described(error)}") from None


@contextmanager
def naming_log(log: Path, *, attempts_hint: str = "") -> Generator[None]:
    """Name ``--log`` in the errors of the files of a connector, with a hint in those of the attempts log.

    Raises:
        InvalidOption: The file cannot be opened, or is not a log.
    """
    try:
        refuse_outputs(str(log))
        yield
    except (OSError, ValueError) as error:  # its cause is the same error without the name of the connector's parameter
        cause = error.__cause__ or error
        why = cause.strerror if isinstance(cause, OSError) and cause.strerror else cause
        file = file_in_error(error, str(log))
        hint = attempts_hint if file != str(log) else ""
        raise InvalidOption(f"--log: {one_line(file)}: {why}{hint}") from None


def path_option(*names: str, text: str, metavar: str = "PATH") -> Any:
    """Return an option whose value is a path, with a help text. An empty path would mean the current folder."""
    return typer.Option(*names, metavar=metavar, parser=_path, help=text)


def _path(value: str | Path) -> Path:
    if not value:
        raise typer.BadParameter("the path is empty")
    return Path(value)
