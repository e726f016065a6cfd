"""Runs ``otel-connector``, in this process or in a child process.

In this process all modules are loaded, and a run takes milliseconds; a new interpreter takes a second. Child processes
are needed to test signals, closed or full outputs, terminals, pipes, and the SDK, which is global to a process.
"""

from __future__ import annotations

import functools
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest
import typer.main

from otel_connector.__main__ import main
from support.forked import Program
from support.processes import Process, clean_environment

_command = functools.cache(typer.main.get_command)  # which reads the signatures of all commands, for 20 ms


class Finished(NamedTuple):
    """The exit code, standard output and standard error of a command."""

    code: int
    out: str
    error: str


# Runs the program as if the named package were not installed. The modules that may have imported it are loaded again
WITHOUT = """
import sys
missing = sys.argv.pop(1)
for name in list(sys.modules):
    if name.partition(".")[0] in {"otel_connector", "typer", "rich", missing}:
        del sys.modules[name]
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == missing or name.startswith(missing + "."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from otel_connector.__main__ import main
main()
"""


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the clean environment with `extra`. Warnings are errors."""
    return clean_environment({"PYTHONWARNINGS": "error", **extra})


def start(folder: Path, *arguments: str, without: str = "", **options: Any) -> Process:
    """Start ``otel-connector`` with `arguments` in `folder`, with empty standard input and both outputs in pipes.

    Args:
        folder: The working folder.
        arguments: The arguments of the program.
        without: A package that cannot be imported.
        options: `extra`, variables to add to the environment, and the options of `subprocess.Popen`.
    """
    options = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "env": environment(options.pop("extra", {})),
        **options,
    }
    if without == "uvloop" and "preexec_fn" not in options:  # no preloaded module depends on uvloop
        return Program(["-m", "otel_connector", *arguments], cwd=folder, without=without, **options)
    if without:
        return Program(["-c", WITHOUT, without, *arguments], cwd=folder, **options)
    return Program(["-m", "otel_connector", *arguments], cwd=folder, **options)


def start_limited(folder: Path, size: int, *arguments: str) -> Process:
    """Start ``otel-connector``, whose files cannot be larger than `size` bytes."""
    program = f"""
import atexit, resource
from otel_connector.__main__ import main
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
atexit.register(resource.setrlimit, resource.RLIMIT_FSIZE, limits)  # coverage writes its data after that
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, limits[1]))
main()
"""
    # Python before 3.13 keeps bytecode that it could not write to the end
    env = environment({"PYTHONDONTWRITEBYTECODE": "1"})
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    without = "" if sys.gettrace() is None else "uvloop"
    return Program(["-c", program, *arguments], cwd=folder, env=env, without=without, text=True, **pipes)


def finish(process: Process) -> Finished:
    """Wait until a program has exited."""
    out, error = process.communicate()
    return Finished(process.returncode, out, error)


@contextmanager
def _standard_input(given: IO[Any] | bytes | None) -> Iterator[IO[Any] | None]:
    if not isinstance(given, bytes):
        yield given
        return
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8") as pipe:  # noqa: PTH123 - opens a descriptor
        with open(writing, "wb") as writer:  # noqa: PTH123 - as above
            writer.write(given)
        yield pipe


def run_here(folder: Path, *arguments: str, without: str = "", **extra: str) -> Finished:
    """Run ``otel-connector`` with `arguments` in this process, in `folder` and with empty standard input.

    Args:
        folder: The working folder; the previous one is restored.
        arguments: The arguments of the program.
        without: A module that cannot be imported during the run.
        extra: Variables to add to the environment.
    """
    return run_with_input(b"", folder, *arguments, without=without, **extra)


def run_with_input(
    stdin: IO[Any] | bytes | None, folder: Path, *arguments: str, without: str = "", **extra: str
) -> Finished:
    """Do the same as `run_here` with a file as standard input, or at most 64 kB in a pipe, or None: it is closed."""
    out, error = io.StringIO(), io.StringIO()
    # With uvloop, coverage.py loses its trace function. Use asyncio if one is set
    missing = {without, "uvloop" if sys.gettrace() is not None else ""} - {""}
    variables = environment(extra)
    with pytest.MonkeyPatch.context() as patch, _standard_input(stdin) as standard_input:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["otel-connector", *arguments])
        patch.setattr(sys, "excepthook", sys.excepthook)  # typer sets its own
        patch.setattr(sys, "stdin", standard_input)
        patch.setattr(typer.main, "get_command", _command)
        for name in missing:
            patch.setitem(sys.modules, name, None)
        for name in os.environ.keys() - variables.keys():
            patch.delenv(name)
        for name in extra:
            patch.setenv(name, variables[name])
        before = signal.getsignal(signal.SIGTERM)  # review keeps its handler
        with redirect_stdout(out), redirect_stderr(error), pytest.raises(SystemExit) as ended:
            main()
        signal.signal(signal.SIGTERM, before)
    code = ended.value.code
    assert isinstance(code, int)
    return Finished(code, out.getvalue(), error.getvalue())
