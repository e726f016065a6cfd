"""Runs the command line in this process: it is loaded already, where a new interpreter takes a second to do that.

For what a command understands, does and says. What belongs to a process is tested with one: signals, outputs that are
closed or full, terminals, pipes, and the SDK, of which there is one in a process.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

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


def run_here(folder: Path, *arguments: str, without: str = "") -> Said:
    """Run ``otel-connector`` with `arguments` in `folder`, which is left again, with nothing to read.

    Args:
        folder: Where.
        arguments: What follows the program's name.
        without: A module that cannot be imported meanwhile.
    """
    out, error, before = io.StringIO(), io.StringIO(), Path.cwd()
    with ExitStack() as stack:
        stack.enter_context(patch.object(sys, "argv", ["otel-connector", *arguments]))
        stack.enter_context(patch.object(sys, "excepthook", sys.excepthook))  # typer sets its own
        stack.enter_context(patch.dict(os.environ, environment({}), clear=True))
        if without:
            stack.enter_context(patch.dict(sys.modules, {without: None}))
        if sys.gettrace() is not None:  # uvloop's loop loses coverage's tracer, so asyncio's is used
            stack.enter_context(patch.dict(sys.modules, {"uvloop": None}))
        stack.enter_context(patch.object(sys, "stdin", stack.enter_context(Path(os.devnull).open(encoding="utf-8"))))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(error))
        stack.callback(os.chdir, before)
        os.chdir(folder)
        ended = stack.enter_context(pytest.raises(SystemExit))
        main()
    code = ended.value.code
    assert isinstance(code, int)
    return Said(code, out.getvalue(), error.getvalue())
