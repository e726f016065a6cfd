"""The command line: one file per command, with its view. The functions behind the commands are in lower layers.

Only ``__main__`` imports this subpackage.

Used by the command and ``__main__``.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, NoReturn, cast

import typer

from otel_connector._version import __version__
from otel_connector.cli import (
    _check_command,
    _demo_command,
    _doctor_command,
    _fetch_command,
    _replay_command,
    _review_command,
)
from otel_connector.cli._stop_signals import handled_signals
from otel_connector.cli._terminal import escape_log_lines, print_document, print_errors, printable

# The errors of arguments. typer does not export this class of click
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(requested: bool) -> None:
    if requested:
        print_document(f"otel-connector {__version__}")
        raise typer.Exit


def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Reliable async GETs: one OpenTelemetry span, one metric set and one CSV row per call."""
    del version  # its callback has handled it
    if context.invoked_subcommand in {"demo", "fetch", "replay"}:
        context.obj = context.with_resource(handled_signals())


app.callback(epilog="Try it: otel-connector demo")(_options)
app.command(epilog=_demo_command.EPILOG)(_demo_command.demo)
app.command(epilog=_check_command.EPILOG)(_check_command.check)
app.command(epilog=_doctor_command.EPILOG)(_doctor_command.doctor)
app.command(epilog=_fetch_command.EPILOG)(_fetch_command.fetch)
app.command(epilog=_review_command.EPILOG)(_review_command.review)
app.command(epilog=_replay_command.EPILOG)(_replay_command.replay)


def run() -> NoReturn:
    """Run the command line and exit. Its messages are escaped, those of typer, of loggers and of faults included.

    Raises:
        OSError: The output cannot be written.
    """
    escape_log_lines()
    try:
        code = app(prog_name="otel-connector", standalone_mode=False)
    except _UsageError as error:
        if sys.argv[1:]:  # otherwise it is the help
            error.message = printable(error.message)
        error.show()
        sys.exit(error.exit_code)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - a fault of the program
        lines = "".join(traceback.format_exception(error)).rstrip().split("\n")
        print_errors("otel-connector: a fault of the program; please report it:", *(f"  {each}" for each in lines))
        sys.exit(1)
    sys.exit(code or 0)
