"""Tests of the messages of the commands: they name the option that the user typed, and the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from support.command_line import run_here
from support.logs import call, write

from otel_connector.cli._exit_codes import USAGE, fail


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("timeout must be above 0"), "--timeout must be above 0"),
        (ValueError("timeout must be above 0, not 0; None sets no limit"), "--timeout must be above 0, not 0"),
        (ValueError("timeouts are not known"), "timeouts are not known"),
        (TypeError("The logfile is a folder"), "The logfile is a folder"),
        (OSError(2, "No such file or directory", "a/b"), "a/b: No such file or directory"),
        (OSError(2, "logfile: No such file or directory", "a/b"), "--log: a/b: No such file or directory"),
        (OSError("the disk is full"), "the disk is full"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_message_names_the_option_and_the_file(
    error: Exception, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught:
        fail("fetch", error)
    assert caught.value.exit_code == USAGE
    assert capsys.readouterr().err == f"otel-connector fetch: {message}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "--log", "no/logs.csv"), "--log: no/logs.csv: No such file or directory\n"),
        (("fetch", "http://a/", "--log", "no/logs.csv"), "--log: no/logs.csv: No such file or directory\n"),
        (("fetch", "http://a/", "--timeout", "0"), "--timeout must be more than 0 seconds, and finite, not 0.0\n"),
        (("fetch", "http://a/", "--deadline", "nan"), "--deadline must be more than 0 seconds, and finite, not nan\n"),
        (("fetch", "http://a/", "--fail-if", "x"), "--fail-if 'x': unknown name"),
        (("review", "logs.csv", "--since", "never"), "--since: 'never' is not a time"),
        (("review", "logs.csv", "--until", "never"), "--until: 'never' is not a time"),
        (("review", "logs.csv", "--where", "nothing"), "--where"),
        (("replay", "logs.csv", "--until", "2h"), "--until: '2h' is not a time"),
        (("replay", "logs.csv", "--rate", "0"), "--rate must be more than 0 spans a second, and finite, not 0.0\n"),
    ],
)
def test_a_command_names_the_invalid_option(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    write(tmp_path / "logs.csv", [call(0)])
    done = run_here(tmp_path, *arguments, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert (done.code, done.out) == (2, "")
    assert done.error.startswith(f"otel-connector {arguments[0]}: {message}")
