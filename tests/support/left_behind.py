"""What a run of the tests must not leave behind: processes, listening ports, temporary folders.

Every process that the tests start inherits the variable `MARK`, which names the run, and has its temporary files in
the run's own folder. At the end of the run both are looked at. Knows pytest's hooks only through its callers.
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

# Chromium keeps its socket and its crash reports there, and is killed before it can remove them
_NOT_OURS = (".org.chromium.", "org.chromium.", ".com.google.", "playwright")


def begin() -> Path | None:
    """Mark this process and those it will start; return the run's temporary folder in its first process."""
    if MARK in os.environ:
        return None
    usual = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="otel-connector-tests-"))
    folder.chmod(0o711)  # some tests become another user
    os.environ[MARK] = uuid.uuid4().hex
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", usual)  # tmp_path stays where it is: a failed test's is of use
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    return folder


def listening() -> list[str]:
    """Return the addresses on which this process listens."""
    connections = psutil.Process().net_connections("inet")
    return [f"{each.laddr.ip}:{each.laddr.port}" for each in connections if each.status == psutil.CONN_LISTEN]


def end(folder: Path, seconds: float = 5.0) -> list[str]:
    """Return what the run has left behind, and remove it.

    Args:
        folder: The run's temporary folder.
        seconds: How long the last processes may take to end.
    """
    give_up = time.monotonic() + seconds
    while (left := _processes()) and time.monotonic() < give_up:
        psutil.wait_procs(left, timeout=0.1)
    found = [f"process {process.pid}: {_command(process)}" for process in left]
    for process in left:
        process.kill()
    found += [f"temporary: {path.name}" for path in folder.iterdir() if not path.name.startswith(_NOT_OURS)]
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _processes() -> list[psutil.Process]:
    return [each for each in psutil.process_iter() if each.pid != os.getpid() and _mark(each) == os.environ[MARK]]


def _mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except psutil.Error:  # it has ended, or is of another user
        return None


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:200]
    except psutil.Error:
        return "ended by now"
