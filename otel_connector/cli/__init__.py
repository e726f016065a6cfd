"""The command line: one file per command, with its view. The functions behind the commands are in lower layers.

Only ``__main__`` imports this subpackage.

Used by the command and ``__main__``.
"""

from __future__ import annotations

from typing import Annotated

import typer

from otel_connector._version import __version__
from otel_connector.cli import _check_command, _demo_command, _fetch_command, _replay_command, _review_command

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(f"otel-connector {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Reliable async GETs: one OpenTelemetry span, one metric set and one CSV row per call."""


app.callback(epilog="Try it: otel-connector demo")(_options)
app.command(epilog=_demo_command.EPILOG)(_demo_command.demo)
app.command(epilog=_check_command.EPILOG)(_check_command.check)
app.command(epilog=_fetch_command.EPILOG)(_fetch_command.fetch)
app.command(epilog=_review_command.EPILOG)(_review_command.review)
app.command(epilog=_replay_command.EPILOG)(_replay_command.replay)
