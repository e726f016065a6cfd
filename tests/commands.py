"""Runs the command line in this process: it is loaded already, where a new interpreter takes a second to do that.

For what a command understands, does and says. What belongs to a process is tested with one: signals, outputs that are
closed or full, terminals, pipes, and the SDK, of which there is one in a process.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from otel_connector.__main__ import main

REPOSITORY = Path(__file__).parents[1]


class Said(NamedTuple):
    """How a command ended, and what it wrote to both outputs."""

    code: int
    out: str
    error: str


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours, without what would send telemetry, colour the output or change its width."""
    changed = ("OTEL_", "COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_", "GITHUB_ACTIONS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(changed)}
    path = os.pathsep.join(filter(None, (str(REPOSITORY), kept.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, "PYTHONWARNINGS": "error", **extra}


def run_here(folder: Path, *arguments: str, without: str = "", **extra: str) -> Said:
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
    return Said(code, out.getvalue(), error.getvalue())
