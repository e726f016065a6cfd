"""The exit codes of all commands, and the messages that explain them.

Does not know what the commands do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NoReturn

import typer

from otel_connector.cli._fail_if import Condition
from otel_connector.cli._terminal import print_errors

WRONG = 1  # the log, the calls or the condition of --fail-if are not as they should be
USAGE = 2  # an argument is invalid, or a file cannot be read or written
INTERRUPTED = 130  # 128 + SIGINT, as in shells

_FIRST_WORD = re.compile(r"\A[a-z_]+\b")


def fail(command: str, error: Exception, options: Mapping[str, str]) -> NoReturn:
    """Print what went wrong in one line, and exit with `USAGE`.

    Args:
        command: The name of the command.
        error: The error. The file is named first if it is about a file.
        options: The option that sets each parameter. Messages of the package start with the name of a parameter;
            it is replaced by the option that the user typed.
    """
    text, file = str(error) or type(error).__name__, ""
    if isinstance(error, OSError) and error.strerror and error.filename:
        text, file = error.strerror, f"{error.filename}: "
    text = _FIRST_WORD.sub(lambda name: options.get(name[0], name[0]), text)
    print_errors(f"otel-connector {command}: {file}{text}")
    raise typer.Exit(USAGE) from None


def code_of_condition(command: str, condition: Condition, values: Mapping[str, float]) -> int:
    """Return `WRONG` and print the comparisons that hold if a condition of ``--fail-if`` holds; else return 0."""
    messages = condition.check(values)
    print_errors(*(f"otel-connector {command}: {message}" for message in messages))
    return WRONG if messages else 0
