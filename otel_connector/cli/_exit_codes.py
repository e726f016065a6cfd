"""The exit codes of all commands, and the messages that explain them.

Does not know what the commands do.

Used by ``cli._check_command``, ``cli._demo_command``, ``cli._doctor_command``, ``cli._fetch_command``,
``cli._replay_command`` and ``cli._review_command``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

import typer

from otel_connector.cli._fail_if import Condition
from otel_connector.cli._option_errors import described
from otel_connector.cli._terminal import indented, print_errors

WRONG = 1  # the log, the calls or the condition of --fail-if are not as they should be
USAGE = 2  # an argument is invalid, or a file cannot be read or written
INTERRUPTED = 130  # 128 + SIGINT, as in shells


def fail(command: str, error: Exception, files: Mapping[str, Path | None] = MappingProxyType({})) -> NoReturn:
    """Print what went wrong, and exit with `USAGE`.

    Args:
        command: The command.
        error: Why it fails.
        files: Options whose values are files. If the error is about one of these files, the message names its option.
    """
    file: object = getattr(error, "filename", None)
    option = next((f"{option}: " for option, value in files.items() if value is not None and str(value) == file), "")
    print_errors(*indented(f"otel-connector {command}: {option}{described(error)}"))
    raise typer.Exit(USAGE) from None


def code_of_condition(command: str, condition: Condition, values: Mapping[str, float]) -> int:
    """Return `WRONG` if a condition of ``--fail-if`` holds, `USAGE` if it cannot be evaluated, else 0; print why."""
    if messages := condition.check(values):
        print_errors(*(f"otel-connector {command}: {message}" for message in messages))
        return WRONG
    if unknown := condition.undecided(values):
        print_errors(f"otel-connector {command}: --fail-if: too few calls for a value of {', '.join(unknown)}")
        return USAGE
    return 0
