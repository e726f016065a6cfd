"""Tests of wrong values of options and arguments: the message names the option and the value that the user typed.

`WRONG` has the wrong values of every option that takes a value; a test compares it with the options of the commands.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from support.command_line import run_here
from support.logs import call, write

from otel_connector._csv._format import ATTEMPTS
from otel_connector.cli import app
from otel_connector.cli._exit_codes import USAGE, fail

ZONES = "Europe/Berlin, America/New_York or UTC"
EMPTY, FOLDER, MISSING = "the path is empty", "Is a directory", "No such file or directory"
LOOP = "Too many levels of symbolic links"
NOT_A_LOG = "not a log: its first line is 'a,b', not the header"

LOG_OPTION = {
    "": EMPTY,
    "folder": f"--log: folder: {FOLDER}",
    "no/logs.csv": f"--log: no/logs.csv: {MISSING}",
    "loop": f"--log: loop: {LOOP}",
    "other.csv": "--log: other.csv: the file has another header: 'a,b'; choose another file, or empty this one",
}
LOGS = {
    "": f"'': {MISSING}",
    "folder": f"folder: {FOLDER}",
    "none.csv": f"none.csv: {MISSING}",
    "x*.csv": "x*.csv: no file matches this pattern",
    "loop": f"loop: {LOOP}",
    "other.csv": f"other.csv: {NOT_A_LOG}",
}
NO_REDACT = {name: f"--no-redact {name!r} is not a parameter that is redacted by default" for name in ("", "page")}
FAIL_IF = {"": "--fail-if '': expected a name", "x": "--fail-if 'x': unknown name, found 'x' at character 1"}


def new_file(option: str, missing: str) -> dict[str, str]:
    """Return wrong values of an option that names a new file; `missing` is the file in a missing folder."""
    return {"": EMPTY, "folder": f"{option}: folder: {FOLDER}", "no/x": f"{option}: {missing}: {MISSING}"}


def seconds(option: str, unit: str = "seconds") -> dict[str, str]:
    """Return wrong values of an option that is a number above 0. An empty message is one of typer."""
    least = f"{option} must be more than 0 {unit}, and finite, not "
    return {"": "", "x": "", "0": f"{least}0.0", "-1": f"{least}-1.0", "nan": f"{least}nan", "inf": f"{least}inf"}


def number(least: int) -> dict[str, str]:
    """Return wrong values of an option that is a whole number; all messages are those of typer."""
    return dict.fromkeys(("", "x", "1.5", str(least - 1)), "")


def time(option: str) -> dict[str, str]:
    """Return wrong values of an option that is a time."""
    return {text: f"{option}: {text!r} is not a time; examples: 2026-11-25" for text in ("", "never", "2026-13-01")}


TWO_COLUMNS = "--sql: two columns of the result are named 'a'; rename one with AS"

WRONG: dict[str, dict[str, dict[str, str]]] = {
    "demo": {"--log": LOG_OPTION, "--calls": number(1)},
    "check": {"FILES...": LOGS, "--max-unpacked-bytes": number(1)},
    "fetch": {
        "URLS": {
            "": f"'': {MISSING}",
            "folder": f"folder: {FOLDER}",
            "none.txt": f"none.txt: {MISSING}",
            "ftp://a/": "ftp://a/ must start with http:// or https://",
            "http://a/{}": "http://a/{} is a template: give its numbers with --range",
        },
        "--range": {
            "": "--range '' must be FIRST:LAST",
            "x": "--range 'x' must be FIRST:LAST",
            "1:2:0": "--range '1:2:0' must be FIRST:LAST",
            "1:1000000000000000000": "--range '1:1000000000000000000' must have numbers of at most 18 characters",
        },
        "--log": LOG_OPTION,
        "--out": {
            **new_file("--out", "no/x"),
            "-": "--out must be a file, not -",
            **{
                f"./{name}": f"--out: {name}: this file is a log, or belongs to one; name another file"
                for name in (
                    "logs.csv",
                    "logs.000001.csv",
                    "logs.csv.gz",
                    "logs.attempts.csv",
                    "logs.csv.replayed",
                    "x.torn",
                )
            },
            "other.csv": "--out: other.csv: this file already has results; continue it (--resume), or use another name",
            "loop": f"--out: loop: {LOOP}",
        },
        "--concurrency": number(1),
        "--rate": seconds("--rate", "attempts a second"),
        "--per-host": number(0),
        "--tries": number(1),
        "--timeout": seconds("--timeout"),
        "--deadline": seconds("--deadline"),
        "--retry-status": {"": "", "x": "", "399": "--retry-status must be codes from 400 to 599, not 399"},
        "--header": {
            "": "--header must be 'NAME: VALUE' or @FILE",
            "a": "--header must be 'NAME: VALUE' or @FILE",
            ": a": "--header must be 'NAME: VALUE' or @FILE",
            "a b: c": "--header must start with the name of a header",
            "a: b\nc": "--header 'a' must be one line",
            "@": "--header: .: Is a directory",
            "@none": "--header: none: No such file or directory",
            "@other.csv": "--header @other.csv: line 1 must be 'NAME: VALUE' or @FILE",
        },
        "--no-redact": NO_REDACT,
        "--redact": {"": "--redact must not be empty"},
        "--resume-from": {"": EMPTY} | {name: f"--resume-from: {why}" for name, why in LOGS.items() if name},
        "--fail-if": FAIL_IF,
    },
    "review": {
        "FILES...": LOGS,
        "--html": new_file("--html", "no/x")
        | {"logs.csv": "--html: logs.csv: this file is a log, or belongs to one; name another file"},
        "--png": new_file("--png", "no/x-rate.png"),
        "--svg": new_file("--svg", "no/x-rate.svg"),
        "--trace-url": {
            "": "--trace-url must start with http:// or https:// and a host, not ''",
            "j/{trace_id}": "--trace-url must start with http:// or https:// and a host, not 'j/{trace_id}'",
            "http://j/": "--trace-url must contain at least one of {trace_id}, {span_id} and {call_id}",
            "http://j/{id}": "--trace-url has an unknown placeholder {id}",
        },
        "--max-unpacked-bytes": number(1),
        "--fail-if": FAIL_IF,
        "--since": time("--since"),
        "--until": time("--until"),
        "--where": {
            "": "--where must not be empty",
            "bla": "--where 'bla' is not a valid condition: Binder Error: ",
            "bla(url)": "--where 'bla(url)' is not a valid condition: Catalog Error: ",
            "url::INT = 1": "--where 'url::INT = 1' is not a valid condition: Conversion Error: ",
            ")": "--where ')' is not a valid condition: Parser Error: ",
        },
        "--sql": {
            "": "--sql: the query is empty",
            "SELECT bla": "--sql: Binder Error: ",
            "SELECT 1 a, 2 a": TWO_COLUMNS,
        },
        "--top": number(1),
        "--urls": {
            "": EMPTY,
            "no/x": f"--urls: no/x: {MISSING}",
            "folder": f"--urls: folder: {FOLDER}",
            "/dev/null": "--urls: a list of URLs must be a file, ",
        },
        "--timezone": {name: f"--timezone must be a time zone such as {ZONES}, not {name!r}" for name in ("", "Mars")},
    },
    "doctor": {"--log": {"": EMPTY}},
    "replay": {
        "FILES...": LOGS,
        "--rate": seconds("--rate", "spans a second"),
        "--no-redact": NO_REDACT,
        "--redact": {"": "--redact must not be empty"},
        "--since": time("--since") | {"2h": "--since: '2h' is not a time"},
        "--until": time("--until") | {"2h": "--until: '2h' is not a time"},
        "--service-name": {"": "--service-name must not be empty"},
        "--checkpoint": {
            **new_file("--checkpoint", "no/x"),
            "loop": f"--checkpoint: loop: a symbolic link to loop: {LOOP}",
            "other.csv": "--checkpoint: other.csv: not a checkpoint of a replay; delete it, or name another file",
        },
    },
}
ANY_TEXT = {"--project", "--title"}  # every text is the name of a project, or a heading
POSITIONAL = {"fetch": "urls.txt", "review": "logs.csv", "replay": "logs.csv"}
BESIDE = {"--range": ("http://a/{}",), "--trace-url": ("--html", "x.html"), "--timezone": ("--html", "x.html")}


def cases() -> Iterator[tuple[str, str, str, str]]:
    """Yield the command, the option, the wrong value and the message of each entry of `WRONG`."""
    for command, options in WRONG.items():
        for option, values in options.items():
            yield from ((command, option, value, message) for value, message in values.items())


def arguments(command: str, option: str, value: str) -> list[str]:
    """Return the arguments of a command with one wrong value."""
    if not option.startswith("--"):
        return [command, value]
    beside = BESIDE.get(option, ())
    positional = [] if option == "--range" or command not in POSITIONAL else [POSITIONAL[command]]
    return [command, *positional, *beside, f"{option}={value}"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with files of several kinds."""
    write(tmp_path / "logs.csv", [call(0), call(1)])
    (tmp_path / "logs.attempts.csv").write_bytes(ATTEMPTS.header)
    (tmp_path / "urls.txt").write_text("# no URL\n")
    (tmp_path / "other.csv").write_text("a,b\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


@pytest.mark.parametrize(("command", "option", "value", "message"), list(cases()))
def test_a_wrong_value_is_reported_with_the_option(
    command: str, option: str, value: str, message: str, folder: Path
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.csv")}
    done = run_here(folder, *arguments(command, option, value), OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert done.code == 2
    # A checkpoint is written just before the first spans are sent
    assert not done.out or (command, option, done.out.count("\n")) == ("replay", "--checkpoint", 1)
    if message in {"", EMPTY}:  # reported by typer
        assert f"Invalid value for '{option}': {message}" in done.error
    else:
        assert done.error.startswith(f"otel-connector {command}: {message}")
    assert {path: path.read_bytes() for path in folder.rglob("*.csv")} == before


def options_with_a_value(command: Any) -> set[str]:
    """Return the options and arguments of a command that take a value, as its help shows them."""
    named = [param for param in command.params if not getattr(param, "is_flag", False) and param.name != "help"]
    return {max(param.opts, key=len) if param.opts[0].startswith("-") else str(param.metavar) for param in named}


def test_every_option_with_a_value_has_wrong_values() -> None:
    root: Any = typer.main.get_command(app)
    found = {name: options_with_a_value(command) - ANY_TEXT for name, command in root.commands.items()}
    assert found == {name: set(options) for name, options in WRONG.items()}


@pytest.mark.parametrize("command", ["review", "replay"])
@pytest.mark.parametrize(
    ("since", "until", "relation"),
    [
        ("2026-01-02", "2026-01-01T12:00", "later than"),
        ("2026-01-02T00:00:00.5", "2026-01-02T00:00:00.1", "later than"),
        ("2026-01-02", "2026-01-02T01:00+01:00", "the same time as"),
    ],
)
def test_a_period_without_time_is_reported(command: str, since: str, until: str, relation: str, folder: Path) -> None:
    done = run_here(folder, command, "logs.csv", "--since", since, "--until", until)
    why = f"--since must be before --until: {since} is {relation} {until}"
    assert done == (2, "", f"otel-connector {command}: {why}\n")


def test_a_template_that_refuses_a_number_of_the_range_is_reported(folder: Path) -> None:
    done = run_here(folder, "fetch", "http://a/{:c}", "--range", "1:2000000")
    assert (done.code, done.out) == (2, "")
    assert done.error.startswith("otel-connector fetch: 'http://a/{:c}' is not a template: ")


def test_a_device_as_the_checkpoint_is_reported_with_the_option(folder: Path) -> None:
    done = run_here(folder, "replay", "logs.csv", "--checkpoint", "/dev/full")
    assert done == (2, "", "otel-connector replay: --checkpoint: /dev/full: not a regular file\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("timeout must be above 0"), "timeout must be above 0"),
        (OSError(2, "No such file or directory", "a/b"), "a/b: No such file or directory"),
        (OSError(2, "No such file or directory", "out"), "--out: out: No such file or directory"),
        (OSError(2, "No such file or directory", "a\nb"), "a\\nb: No such file or directory"),
        (OSError("the disk is full"), "the disk is full"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_the_message_of_an_error_names_the_file_and_its_option(
    error: Exception, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught:
        fail("fetch", error, {"--log": None, "--out": Path("out")})
    assert caught.value.exit_code == USAGE
    assert capsys.readouterr().err == f"otel-connector fetch: {message}\n"
