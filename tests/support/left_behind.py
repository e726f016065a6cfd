"""Finds the processes, listening ports and temporary files that a run of the tests has left behind.

Every process that the tests start inherits the environment variable `MARK` with the id of the run, and has its
temporary files in the folder of the run. Both are checked at the end of the run. This module does not depend on pytest.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from pathlib import Path

import psutil

MARK = "OTEL_CONNECTOR_TEST_RUN"

EXIT_CODE = 6
"""The exit code of a run that left something behind. pytest does not use it, so `.ci/run` does not rerun the tests."""

# Chromium creates its socket and crash reports there, and is killed before it can remove them
_IGNORED = (".org.chromium.", "org.chromium.", ".com.google.", "playwright")


def begin() -> Path | None:
    """Mark this process and its future children. Return the temporary folder of the run, or None in a later process."""
    if MARK in os.environ:
        return None
    default = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="otel-connector-tests-"))
    folder.chmod(0o711)  # some tests run as another user
    os.environ[MARK] = uuid.uuid4().hex
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", default)  # keep tmp_path elsewhere: it is useful after a failure
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    return folder


def listening() -> list[str]:
    """Return the addresses on which this process listens."""
    connections = psutil.Process().net_connections("inet")
    return [f"{each.laddr.ip}:{each.laddr.port}" for each in connections if each.status == psutil.CONN_LISTEN]


def end(folder: Path, seconds: float = 5.0) -> list[str]:
    """Remove the processes and files that the run has left behind, and return a description of each.

    Args:
        folder: The run's temporary folder.
        seconds: Time in which the last processes may exit.
    """
    deadline = time.monotonic() + seconds
    while (left := _processes()) and time.monotonic() < deadline:
        psutil.wait_procs(left, timeout=0.1)
    found = [f"process {process.pid}: {_command(process)}" for process in left]
    for process in left:
        process.kill()
    found += [f"temporary: {path.name}" for path in folder.iterdir() if not path.name.startswith(_IGNORED)]
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _processes() -> list[psutil.Process]:
    """Return the processes with the mark of the run, and the children of this process, which may lack it."""
    marked = [each for each in psutil.process_iter() if each.pid != os.getpid() and _mark(each) == os.environ[MARK]]
    return list({*marked, *psutil.Process().children(recursive=True)})


def _mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except psutil.Error:  # it has exited, or belongs to another user
        return None


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:200]
    except psutil.Error:
        return "exited"
