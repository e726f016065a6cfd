"""Tests of sizes, colours and limits of the output: what the environment says, on a terminal and in a pipe."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest
from support.command_line import Finished, environment, run_here
from support.logs import call, write
from support.terminals import HIDDEN, SHOWN, on_terminal

from otel_connector.cli import _terminal

PROJECTS = 15
SGR = re.compile(r"\x1b\[[0-9;]*m")

# The right value is that of shutil.get_terminal_size: what is not a number above 0 means unknown
NO_SIZES = ("", "0", "00", "-1", "abc", "²", "1.5", "99999999999")
UNKNOWN_SIZES = [{name: value} for name in ("COLUMNS", "LINES") for value in NO_SIZES]
UNKNOWN_SIZES.append({"COLUMNS": "0", "LINES": "0"})
FEW_UNKNOWN_SIZES = [{"COLUMNS": "0", "LINES": "-1"}]

COMMANDS: dict[str, list[str]] = {
    "review": ["review", "logs.csv"],
    "review --sql": ["review", "logs.csv", "--sql", "SELECT DISTINCT project FROM calls ORDER BY 1"],
    "review --compare": ["review", "--compare", "logs.csv", "logs.csv"],
    "review --json": ["review", "logs.csv", "--json", "--until", "2030-01-01"],
    "check": ["check", "logs.csv"],
    "fetch": ["fetch", "urls.txt", "--log", "new.csv"],
    "help": ["--help"],
    "help of a command": ["review", "--help"],
    "an error of a command": ["review", "missing.csv"],
    "an error of replay": ["replay", "missing.csv"],
    "an error of demo": ["demo", "--log", "."],
    "an error of fetch": ["fetch", "missing.txt"],
    "an error of typer": ["review", "--no-such-option"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a log of many projects with long names, and an empty list."""
    tmp_path = tmp_path_factory.mktemp("folder")
    names = [f"{'a long name of a project ' * 4}{number:02}" for number in range(PROJECTS)]
    write(tmp_path / "logs.csv", [call(n, project=names[n % PROJECTS], error=f"E{n % 12}: x") for n in range(60)])
    (tmp_path / "urls.txt").write_text("# none\n")
    return tmp_path


def run(folder: Path, arguments: list[str], variables: Mapping[str, str]) -> Finished:
    (folder / "new.csv").unlink(missing_ok=True)
    done = run_here(folder, *arguments, **variables)
    return done._replace(out=re.sub(r"in [\d.]+ \w*s: \S+", "", done.out))  # the duration and the rate of a fetch


@pytest.fixture(scope="module")
def in_a_pipe(folder: Path) -> Callable[[str], Finished]:
    """Return a function that returns the result of a command whose environment sets nothing."""
    return cache(lambda command: run(folder, COMMANDS[command], {}))


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_size_changes_no_output(command: str, folder: Path, in_a_pipe: Callable[[str], Finished]) -> None:
    expected = in_a_pipe(command)
    assert expected.out + expected.error
    # One function reads the size, for all commands; a review takes longer
    for variables in FEW_UNKNOWN_SIZES if command.startswith("review") else UNKNOWN_SIZES:
        assert run(folder, COMMANDS[command], variables) == expected, variables


# Most of the time of a child process is that of its imports
RUNS = """
import fcntl, json, os, struct, sys, termios
from otel_connector.__main__ import main
variables = dict(os.environ)
for arguments, size, more in json.loads(sys.argv[1]):
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    os.environ.clear()
    os.environ.update(variables | more)
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit:
        print("\\n\\n\\t-- END --", flush=True)
"""


def on_screens(folder: Path, *runs: tuple[list[str], tuple[int, int], dict[str, str]]) -> list[str]:
    """Return what commands show on a terminal of a size (lines, columns), one after the other in one process."""
    env = environment({"TERM": "xterm-256color"})
    with on_terminal(folder, ["-c", RUNS, json.dumps(runs)], env) as terminal:
        terminal.report("ended")
        *shown, rest = terminal.output.decode().split("\r\n\r\n\t-- END --\r\n")
    assert (len(shown), rest) == (len(runs), "")
    return shown


def on_a_screen(folder: Path, arguments: list[str], size: tuple[int, int], **variables: str) -> str:
    """Do the same for one command in a process of its own."""
    env = environment({"TERM": "xterm-256color", **variables})
    with on_terminal(folder, ["-m", "otel_connector", *arguments], env, size=size) as terminal:
        terminal.report("ended")
        return terminal.output.decode()


def test_a_terminal_of_an_unknown_size_is_80_by_24(folder: Path) -> None:
    runs: list[tuple[tuple[int, int], dict[str, str]]] = [
        ((0, 0), {}),
        ((0, 0), {"COLUMNS": "0", "LINES": "-1"}),
        ((50, 200), {"COLUMNS": "80", "LINES": "24"}),
        ((24, 80), {"COLUMNS": "0", "LINES": "x"}),
    ]
    expected = on_a_screen(folder, COMMANDS["review"], (24, 80))
    assert max(map(len, SGR.sub("", expected).split("\r\n"))) <= 80
    assert expected.count("\r\n") <= 24
    for run_of, shown in zip(runs, on_screens(folder, *((COMMANDS["review"], *each) for each in runs)), strict=True):
        assert shown == expected, run_of


# rich reads FORCE_COLOR (https://force-color.org) and TTY_COMPATIBLE; the others are of other programs
FORCED = [{"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}, {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "1"}]
OF_OTHERS = [{"CLICOLOR_FORCE": "1"}, {"GITHUB_ACTIONS": "true"}, {"TTY_INTERACTIVE": "1"}, {"FORCE_COLOR": ""}]
ALL_OF_OTHERS = {name: value for each in OF_OTHERS for name, value in each.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_forced_colours_in_a_pipe_are_colours_only(
    command: str, folder: Path, in_a_pipe: Callable[[str], Finished]
) -> None:
    plain = in_a_pipe(command)
    assert "\x1b" not in plain.out + plain.error
    slow = command.startswith("review")  # a review takes longer, and one function decides for all commands
    for variables in (FORCED[-1], ALL_OF_OTHERS) if slow else (*FORCED, *OF_OTHERS):
        done = run(folder, COMMANDS[command], variables)
        assert done._replace(out=SGR.sub("", done.out), error=SGR.sub("", done.error)) == plain, variables
    # https://no-color.org: it is for programs that add colour by default, or are forced to
    for variables in FORCED[-1:] if slow else FORCED:
        assert run(folder, COMMANDS[command], {**variables, "NO_COLOR": "1"}) == plain, variables


@pytest.mark.parametrize("variables", [*FORCED, ALL_OF_OTHERS])
def test_nothing_is_cut_in_a_pipe(variables: dict[str, str], folder: Path) -> None:
    shown = run(folder, COMMANDS["review"], {**variables, "COLUMNS": "40", "LINES": "10"}).out
    assert bool(SGR.search(shown)) is (variables in FORCED)
    text = SGR.sub("", shown)
    assert "…" not in text
    assert text.count("a long name of a project " * 4) == PROJECTS
    assert all(f"E{number} " in text for number in range(12))
    assert not re.search(r"and \d+ more", text)
    assert not re.search(r" $", text, re.MULTILINE)
    if variables in (FORCED[-1], ALL_OF_OTHERS):
        assert "…" not in run(folder, COMMANDS["review --compare"], variables).out


@pytest.mark.parametrize(
    "variables", [{"FORCE_COLOR": ""}, {"TTY_COMPATIBLE": "0"}, {"TTY_INTERACTIVE": "0"}, {"TERM": "dumb"}]
)
def test_what_rich_does_not_redraw_is_printed_as_lines(variables: dict[str, str], folder: Path) -> None:
    shown = on_a_screen(folder, ["fetch", "urls.txt"], (24, 80), **variables)
    assert not {HIDDEN.decode(), SHOWN.decode()} & set(re.findall(r"\x1b\[\?\w+", shown))
    assert "Done: 0 URLs" in shown


def test_top_is_obeyed_in_a_pipe_and_on_a_terminal(folder: Path) -> None:
    tops = (3, 12, 50)
    commands = [[*COMMANDS["review"], "--top", str(top)] for top in tops]
    screens = on_screens(folder, *((each, (24, 80), {}) for each in commands))
    for top, command, screen in zip(tops, commands, screens, strict=True):
        for text in (run(folder, command, {}).out, SGR.sub("", screen)):
            assert len(re.findall(r"^a long name", text, re.MULTILINE)) == min(top, PROJECTS), top
            assert (f"and {PROJECTS - top:,} more" in text) is (top < PROJECTS), top


def test_a_comparison_fits_a_terminal(folder: Path) -> None:
    heads = {60: "Before", 80: "Before", 200: "Test, or reason for none"}
    screens = on_screens(folder, *((COMMANDS["review --compare"], (24, columns), {}) for columns in heads))
    for (columns, head), screen in zip(heads.items(), screens, strict=True):
        text = SGR.sub("", screen)
        assert head in text, columns
        assert max(map(len, text.split("\r\n")[2:])) <= columns  # after the lines with the files, which can be copied
        assert not re.search(r"\s[+-]?[\d.,]+ ?[%\w/]*\u2026", text), f"a figure is cut at {columns}"


def test_without_arguments_the_help_is_shown(folder: Path) -> None:
    done = run_here(folder)
    assert "\nCommands:\n" in done.out + done.error


def test_a_closed_stream_has_no_size_and_no_handler_of_last_resort_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="closed"):
        _terminal.TolerantStream(None).fileno()
    monkeypatch.setattr(logging, "lastResort", None)
    _terminal.escape_log_lines()
    assert logging.lastResort is None


def test_no_command_prints_but_through_this_module() -> None:
    folder = Path(_terminal.__file__).parent
    for path in folder.glob("*.py"):
        if path.name != "_terminal.py":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"typer\.(echo|secho)|\bprint\(|std(out|err)\.write|console\.print|\bConsole\(", text)
