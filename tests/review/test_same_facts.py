"""Tests that a log has the same review, byte for byte, in whichever way it is stored, named and printed.

A way to review a log is a function in `WAYS`. Further ways are further functions with the decorator `way`.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from support import processes
from support.command_line import environment, finish, run_here, start
from support.logs import busy_hour, call, rows

from otel_connector._csv._format import HEADER

PROJECTS = ("\u65e5\u672c", "caf\u00e9", "7", "007", "a=b", "")
CONTENT = HEADER + rows(*busy_hour(), *(call(5_000 + n, project=name) for n, name in enumerate(PROJECTS)))


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a log is reviewed.

    Attributes:
        files: The arguments that name the log.
        path: The name of the log in the facts.
        extra: Variables of the environment.
    """

    files: tuple[str, ...] = ("logs.csv",)
    path: str = "logs.csv"
    extra: dict[str, str] = field(default_factory=dict[str, str])


Prepare = Callable[[Path], Way]
WAYS: dict[str, Prepare] = {}
"""Functions that store the log in an empty folder, by the words of their names."""


def way(prepare: Prepare) -> Prepare:
    """Add a way to `WAYS`."""
    WAYS[prepare.__name__.replace("_", " ")] = prepare
    return prepare


def stored(path: Path, content: bytes = CONTENT) -> str:
    """Write the log to a file, whose folder may not exist, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


@way
def plain(folder: Path) -> Way:
    stored(folder / "logs.csv")
    return Way()


@way
def absolute(folder: Path) -> Way:
    path = stored(folder / "logs.csv")
    return Way(files=(path,), path=path)


@way
def compressed(folder: Path) -> Way:
    stored(folder / "logs.csv.gz", gzip.compress(CONTENT))
    return Way(files=("logs.csv.gz",), path="logs.csv.gz")


@way
def through_a_link(folder: Path) -> Way:
    (folder / "logs.csv").symlink_to(stored(folder / "elsewhere" / "data"))
    return Way()


@way
def by_a_pattern(folder: Path) -> Way:
    stored(folder / "logs.csv")
    return Way(files=("l*.c?[v]",))


@way
def in_a_folder_named_as_a_partition(folder: Path) -> Way:
    stored(folder / "a=b" / "project=Other" / "success=True" / "logs.csv")
    path = "a=b/project=Other/success=True/logs.csv"
    return Way(files=(path,), path=path)


@way
def compressed_in_a_folder_named_as_a_partition(folder: Path) -> Way:
    stored(folder / "a=b" / "t=5" / "logs.csv.gz", gzip.compress(CONTENT))
    path = "a=b/t=5/logs.csv.gz"
    return Way(files=(path,), path=path)


@way
def with_a_tmpdir_named_as_a_partition(folder: Path) -> Way:
    stored(folder / "logs.csv.gz", gzip.compress(CONTENT))
    (folder / "project=Other").mkdir()
    return Way(files=("logs.csv.gz",), path="logs.csv.gz", extra={"TMPDIR": str(folder / "project=Other")})


@way
def in_a_locale_with_iso_8859_1(folder: Path) -> Way:
    stored(folder / "logs.csv")
    return Way(extra={"PYTHONIOENCODING": "iso-8859-1"})


def facts(folder: Path, prepare: Prepare, *options: str) -> str:
    """Return what a review prints, with ``logs.csv`` as the name of the log."""
    folder.mkdir()
    used = prepare(folder)
    arguments = ("review", *used.files, *options)
    if used.extra:  # the encoding of the output and TMPDIR are those of a process
        done = finish(start(folder, *arguments, extra=used.extra, encoding="utf-8"))
    else:
        done = run_here(folder, *arguments)
    assert (done.code, done.error) == (0, "")
    return done.out.replace(json.dumps(used.path), '"logs.csv"')


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function that returns the facts of the plain log."""
    return cache(lambda form: facts(tmp_path_factory.mktemp("plain") / "folder", plain, form))


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, "--json") for name in WAYS if name != "plain"),
        # The same values as in JSON, without the name of the log: only a copy and the encoding may change the text
        *((name, "--csv") for name in ("compressed", "in a locale with iso 8859 1")),
    ],
)
def test_the_facts_are_equal_byte_for_byte(
    name: str, form: str, tmp_path: Path, expected: Callable[[str], str]
) -> None:
    assert all(project in expected(form) for project in PROJECTS)
    assert facts(tmp_path / "found", WAYS[name], form) == expected(form)


def test_the_facts_are_equal_in_a_new_interpreter_without_utf_8(tmp_path: Path, expected: Callable[[str], str]) -> None:
    """Here the names of files have another encoding as well, which a fork of a prepared interpreter cannot have."""
    name = "\u65e5\u672c.csv"
    stored(tmp_path / name)
    variables = environment({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"})
    command = [sys.executable, "-m", "otel_connector", "review", name, "--json"]
    done = processes.run(command, cwd=tmp_path, env=variables, capture_output=True, check=True)
    found = json.loads(done.stdout.decode())
    assert found["files"][0].pop("path").encode(errors="surrogateescape").decode() == name
    without_path = json.loads(expected("--json"))
    del without_path["files"][0]["path"]
    assert found == without_path


def test_all_calls_of_the_log_are_in_the_facts(expected: Callable[[str], str]) -> None:
    found = json.loads(expected("--json"))
    assert found["total"]["calls"] == CONTENT.count(b"\n") - 1
    assert {group["name"] for group in found["projects"]} == {"P", "Prices", "Weather", *PROJECTS}
