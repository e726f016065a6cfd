"""Runs the command line in this process: it is loaded already, where a new interpreter takes a second to do that.

For what a command understands, does and says. What belongs to a process is tested with one: signals, outputs that are
closed or full, terminals, pipes, and the SDK, of which there is one in a process.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from otel_connector.__main__ import main
from support.forked import Program
from support.processes import Process, clean_environment


class Finished(NamedTuple):
    """How a command ended, and what it wrote to both outputs."""

    code: int
    out: str
    error: str


# Runs the program with the named package out of reach, as if it were not installed.
WITHOUT = """
import sys
missing = sys.argv.pop(1)
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == missing or name.startswith(missing + "."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from otel_connector.__main__ import main
main()
"""


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the clean environment with `extra`, in which a warning is an error."""
    return clean_environment({"PYTHONWARNINGS": "error", **extra})


def start(folder: Path, *arguments: str, without: str = "", **options: Any) -> Process:
    """Start ``otel-connector`` with `arguments` in `folder`, with nothing to read and both outputs in pipes.

    Args:
        folder: The working folder.
        arguments: What follows the program's name.
        without: A package that cannot be imported there.
        options: `extra`, variables to add to the environment; the others are `subprocess.Popen`'s.
    """
    options = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "env": environment(options.pop("extra", {})),
        **options,
    }
    if without == "uvloop" and "preexec_fn" not in options:  # nothing that is loaded there needs it
        return Program(["-m", "otel_connector", *arguments], cwd=folder, without=without, **options)
    if without:
        return Process([sys.executable, "-c", WITHOUT, without, *arguments], cwd=folder, **options)
    return Program(["-m", "otel_connector", *arguments], cwd=folder, **options)


def finish(process: Process) -> Finished:
    """Wait for a program to end."""
    out, error = process.communicate()
    return Finished(process.returncode, out, error)


def run_here(folder: Path, *arguments: str, without: str = "", **extra: str) -> Finished:
    """Run ``otel-connector`` with `arguments` in `folder`, which is left again, with nothing to read.

    Args:
        folder: Where.
        arguments: What follows the program's name.
        without: A module that cannot be imported meanwhile.
        extra: What is in the environment beside ours.
    """
    out, error = io.StringIO(), io.StringIO()
    # uvloop's loop loses coverage's tracer, so where that is at work, asyncio's is used
    missing = {without, "uvloop" if sys.gettrace() is not None else ""} - {""}
    wanted = environment(extra)
    with pytest.MonkeyPatch.context() as patch, Path(os.devnull).open(encoding="utf-8") as nothing:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["otel-connector", *arguments])
        patch.setattr(sys, "excepthook", sys.excepthook)  # typer sets its own
        patch.setattr(sys, "stdin", nothing)
        for name in missing:
            patch.setitem(sys.modules, name, None)
        for name in os.environ.keys() - wanted.keys():
            patch.delenv(name)
        for name in extra:
            patch.setenv(name, wanted[name])
        before = signal.getsignal(signal.SIGTERM)
        with redirect_stdout(out), redirect_stderr(error), pytest.raises(SystemExit) as ended:
            main()
        signal.signal(signal.SIGTERM, before)
    code = ended.value.code
    assert isinstance(code, int)
    return Finished(code, out.getvalue(), error.getvalue())
