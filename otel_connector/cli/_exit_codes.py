"""The exit codes of all commands, and the messages that explain them.

Does not know what the commands do.

Used by ``cli._check_command``, ``cli._demo_command``, ``cli._fetch_command``, ``cli._replay_command`` and
``cli._review_command``.
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

# Messages of the package start with the name of a parameter. It is replaced by the option, because the user typed that
_OPTIONS = {
    "logfile": "--log",
    "timeout": "--timeout",
    "deadline": "--deadline",
    "statuses": "--retry-status",
    "rate": "--rate",
    "trace_url": "--trace-url",
    "where": "--where",
}
_PARAMETER = re.compile(r"\A[a-z_]+\b")
_PYTHON_ADVICE = re.compile(r"; \S+ sets no limit\Z")  # names a Python value, which cannot be typed


def fail(command: str, error: Exception) -> NoReturn:
    """Print what went wrong in one line, with the file if it is about one, and exit with `USAGE`."""
    file, text = "", str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename:
        file, text = f"{error.filename}: ", error.strerror
    text = _PARAMETER.sub(lambda name: _OPTIONS.get(name[0], name[0]), _PYTHON_ADVICE.sub("", text))
    if file and text.startswith("--"):
        option, _, text = text.partition(": ")
        file = f"{option}: {file}"
    print_errors(f"otel-connector {command}: {file}{text}")
    raise typer.Exit(USAGE) from None


def code_of_condition(command: str, condition: Condition, values: Mapping[str, float]) -> int:
    """Return `WRONG` and print the comparisons that hold if a condition of ``--fail-if`` holds; else return 0."""
    messages = condition.check(values)
    print_errors(*(f"otel-connector {command}: {message}" for message in messages))
    return WRONG if messages else 0
