"""``otel-connector doctor``: its options, the state of the log, and its exit code.

Does not know how telemetry is tested (`_doctor`), nor how the result is shown (`_doctor_view`).

Used by ``cli``.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from logging.handlers import BufferingHandler
from pathlib import Path
from sys import maxsize
from typing import Annotated

import typer

from otel_connector import _doctor
from otel_connector._csv import _check
from otel_connector.cli._doctor_view import Diagnosis, LogState, document, lines
from otel_connector.cli._exit_codes import WRONG
from otel_connector.cli._option_errors import described, path_option
from otel_connector.cli._terminal import output_console, print_document, print_lines, printable
from otel_connector.providers import configure

# \b is the escape of click for a paragraph that must not be wrapped
EPILOG = """\b
Exit code:
  0  everything that is configured works
  1  there is a problem; its line has the cause and what to do

\b
Examples:
  otel-connector doctor
  otel-connector doctor --log /var/log/prices.csv --json
  OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317 otel-connector doctor
"""


def doctor(
    log: Annotated[
        Path | None,
        path_option(text="CSV file whose access is checked. Default: that of the exporter csv, or logs.csv."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Find out why traces or metrics are missing.

    Shows the OTEL_* variables that are set and what the SDK made of them, without secrets. Sends one span and one
    metric through each exporter, and reports what the receiver did with it, the cause and the remedy. Checks whether
    the log can be written.
    """
    problem, messages = "", list[str]()
    with _logged() as records:
        try:
            telemetry = configure("otel-connector-doctor")
        except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
            problem = f"The SDK cannot be set up: {described(error)}"
            report = _doctor.without_sdk()
        else:
            messages = [printable(each.getMessage()) for each in records]
            report = _doctor.examine(telemetry)
    known = tuple(dict.fromkeys(messages))
    log = log or Path(report.log or "logs.csv")
    diagnosis = Diagnosis(telemetry=report, problem=problem, messages=known, log=_log_state(log))
    if json:
        print_document(document(diagnosis))
    else:
        print_lines(output_console(), *lines(diagnosis))
    raise typer.Exit(WRONG if diagnosis.problems else 0)


@contextmanager
def _logged() -> Generator[list[logging.LogRecord]]:
    """Collect all log records: the result has what they report about exports, in its own words."""
    handler, root = BufferingHandler(maxsize), logging.getLogger()
    root.addHandler(handler)
    yield handler.buffer  # stays until the program ends, whose shutdown exports nothing


def _log_state(log: Path) -> LogState:
    try:
        free = _check.try_access(log)
        if not log.exists():
            return LogState(path=str(log), exists=False, locked=not free)
        report = _check.check(log) if log.stat().st_size else None
    except (OSError, ValueError) as error:
        return LogState(path=str(log), problem=described(error))
    rows, whole = (report.rows, report.whole) if report else (0, True)
    problem = "" if whole else f"It is damaged or altered. Run: otel-connector check {log}"
    return LogState(path=str(log), rows=rows, whole=whole, locked=not free, problem=problem)
