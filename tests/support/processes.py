"""Child processes of the tests. Each has a timeout, and is killed together with its own children.

`run` and `Process` have the arguments of `subprocess.run` and `subprocess.Popen`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from support.left_behind import MARK

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent

DEFAULT_TIMEOUT = 60.0
"""Default timeout of a child process in seconds."""

_running: list[Process] = []


class Process(subprocess.Popen[Any]):
    """A process in its own session, so that signals can be sent to its children, too.

    As a context manager, it waits up to `DEFAULT_TIMEOUT` seconds for the exit of the process. If the block raises, the
    process is killed first.
    """

    stdin: Any  # not optional, so that tests need no check for None
    stdout: Any
    stderr: Any

    def __init__(self, command: Sequence[Any] | str, **options: Any) -> None:
        if options.get("env") is not None and MARK in os.environ:
            options["env"] = {MARK: os.environ[MARK], **options["env"]}
        super().__init__(command, **{"start_new_session": True, **options})
        self.started_by = threading.get_ident()
        _running.append(self)

    def kill_all(self) -> None:
        """Kill the process, all processes in its session, and its children in other sessions."""
        children = list[psutil.Process]()
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(self.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()

    def communicate(self, input: Any = None, timeout: float | None = DEFAULT_TIMEOUT) -> tuple[Any, Any]:  # noqa: A002 - subprocess's name
        """Like `subprocess.Popen.communicate`, but with a default timeout, after which all processes are killed."""
        try:
            return super().communicate(input, timeout)
        except subprocess.TimeoutExpired:
            self.kill_all()
            super().communicate()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for stream in (self.stdout, self.stderr, self.stdin):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if kind is not None:
            self.kill_all()
        try:
            self.wait(DEFAULT_TIMEOUT)
        finally:
            if self.poll() is None:
                self.kill_all()
                self.wait()


def run(
    command: Sequence[Any] | str,
    *,
    input: Any = None,  # noqa: A002 - subprocess's name
    capture_output: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Like `subprocess.run`, but with a default timeout, after which the children of the process are killed, too."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Process(command, **options) as process:
        out, error = process.communicate(input, timeout)
    if check and process.returncode:
        raise AssertionError(f"{command} ended with {process.returncode}: {error or out}")
    return subprocess.CompletedProcess(command, process.returncode, out, error)


def wait_until(condition: Callable[[], object], process: Process, seconds: float = 30.0) -> None:
    """Wait until the condition is true. Fail if the process exits before.

    The condition is polled every 5 ms. Between the polls this process sleeps, so that the other one can run.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"the process has ended with {process.wait(0.005)}")


def keep_running(process: Process) -> None:
    """Exclude the process from `kill_remaining`."""
    _running.remove(process)


@contextlib.contextmanager
def kill_remaining() -> Iterator[None]:
    """Kill all processes that this thread has started in the block and that still run at its end."""
    before = list(_running)
    yield
    for process in [each for each in _running if each not in before and each.started_by == threading.get_ident()]:
        if process.poll() is None:
            process.kill_all()
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        _running.remove(process)


def clean_environment(extra: Mapping[str, str] | None = None, *folders: Path) -> dict[str, str]:
    """Return the environment of this process without variables that configure telemetry or the terminal.

    Args:
        extra: Variables to add.
        folders: Folders to add to the import path, beside those of the tests and the project.
    """
    changed = ("OTEL_", "COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_", "GITHUB_ACTIONS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(changed)}
    path = os.pathsep.join(filter(None, [*map(str, folders), str(ROOT), str(TESTS), kept.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, **(extra or {})}


def function(module_file: str, call: str, *, folders: Sequence[Path] = ()) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment that call a function of a test module in a process of its own.

    Args:
        module_file: The module's ``__file__``.
        call: The call as Python text, such as ``measure(3)``.
        folders: Further folders to import from.
    """
    path = Path(module_file)
    program = f"import {path.stem}; {path.stem}.{call}"
    return [sys.executable, "-c", program], clean_environment(None, path.parent, *folders)
