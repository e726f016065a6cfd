"""Child processes whose system calls fail on purpose, or that are killed in the middle of a write.

`children` starts one Python process with `failing_calls.c` preloaded. It forks a child for every request, and returns
the values that the child reported and its exit code. It imports the test module of the request before the first fork.
A fork takes some milliseconds; a new interpreter would take 0.5 s. Most tests share one process, the fixture
`child_processes`. In the child, `arm` selects the system calls that fail. This module must not use pytest or an event
loop: the process that forks has only one thread.
"""

from __future__ import annotations

import csv
import ctypes
import faulthandler
import gc
import io
import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from otel_connector import CallRecord, CSVSpanExporter
from otel_connector._csv._format import HEADER, decode_row, encode_row
from support.processes import Process, clean_environment, run

MISSING = (
    "needs LD_PRELOAD as on Linux"
    if sys.platform != "linux"
    else "needs a C compiler, `cc`"
    if shutil.which("cc") is None
    else ""
)
"""Why these processes are not supported on this machine; empty if they are."""

WRITES = ("write", "writev", "pwrite")

_LONGEST = 60  # seconds that a child may take; most take some hundredths of a second
_CALL_ID_LENGTH = 32 + 1 + 16
_SOURCE = Path(__file__).with_suffix(".c")
_ACTIONS = {"fail": 1, "short": 2, "full": 3, "torn": 4}  # as in failing_calls.c

Say = Callable[[object], None]
"""Reports one JSON value to the test, either completely or not at all."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault of system calls on the files of a folder.

    Attributes:
        action: ``fail`` with the errno `value`; ``short``: a write writes `value` thousandths of its bytes; ``full``:
            the first write is short, later ones fail with ENOSPC; ``torn``: the process is killed, after `value`
            thousandths of a write, or before any other call.
        value: An errno or thousandths.
        nth: The first call that fails, counted from 1.
        times: How many calls fail; -1 for all calls from `nth` on.
        only: Names of the calls that are counted; all if empty.
    """

    action: str
    value: int
    nth: int = 1
    times: int = 1
    only: tuple[str, ...] = ()


def arm(folder: str, fault: Mapping[str, Any]) -> None:
    """Apply `Fault(**fault)` to the calls of this process on files in `folder`. Counting starts again at 1."""
    plan = Fault(**fault)
    only = f",{','.join(plan.only)}," if plan.only else ""
    shim = ctypes.CDLL(None)
    shim.failing_calls_arm.argtypes = [ctypes.c_char_p] * 2 + [ctypes.c_long] * 2 + [ctypes.c_int] * 2
    shim.failing_calls_arm.restype = None
    shim.failing_calls_arm(os.fsencode(folder), only.encode(), plan.nth, plan.times, _ACTIONS[plan.action], plan.value)


def disarm() -> None:
    """End the fault: all later calls of this process succeed."""
    ctypes.CDLL(None).failing_calls_pause(1)


@contextmanager
def spared() -> Iterator[None]:
    """Exclude the calls in the block from the fault and from its count. They belong to the test itself."""
    shim = ctypes.CDLL(None)
    shim.failing_calls_pause(1)
    try:
        yield
    finally:
        shim.failing_calls_pause(0)


def first_hit() -> str:
    """Return the name of the first call that failed since `arm`; empty if none did."""
    function = ctypes.CDLL(None).failing_calls_first_hit
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode()


def without_coverage(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without those that start coverage: a forked child may inherit its lock as locked."""
    return {name: value for name, value in variables.items() if not name.startswith("COVERAGE_")}


def compiled(folder: Path) -> Path:
    """Compile the preloaded library into `folder`, and return its path."""
    library = folder / "failing_calls.so"
    run(["cc", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl"], check=True)
    return library


# In the test.


class Ended(NamedTuple):
    """How a child ended.

    Attributes:
        code: The exit code, or the negative number of the signal that killed it.
        said: The values that it reported, in order.
    """

    code: int
    said: list[Any]


class Children:
    """Forks children of one prepared process, one after the other. Not thread-safe."""

    def __init__(self, process: Process) -> None:
        """Take the prepared process, which runs `serve`."""
        self._process = process

    def run(self, function: Callable[..., None], kill_after: float | None = None, /, **arguments: object) -> Ended:
        """Call a module-level function in a child, and wait until the child has exited.

        Args:
            function: Called as ``function(say, **arguments)``.
            kill_after: Seconds after which the child is killed with SIGKILL.
            arguments: Values that can be encoded as JSON.
        """
        name = f"{function.__module__}:{function.__qualname__}"
        folder = str(Path(function.__code__.co_filename).parent)
        self._process.stdin.write(json.dumps([folder, name, kill_after, arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the process that forks has ended while {name} ran"
        return Ended(*json.loads(answer))


@contextmanager
def children(folder: Path) -> Iterator[Children]:
    """Start a process with the library preloaded, which is compiled into `folder`."""
    command = [sys.executable, "-W", "error", "-c", "from support.failing_calls import serve; serve()"]
    variables = without_coverage(clean_environment({"LD_PRELOAD": str(compiled(folder))}))
    with Process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables) as process:
        yield Children(process)


# In the prepared process.


def serve() -> None:
    """Fork a child for every line of standard input, and write its `Ended` to standard output."""
    import_module("otel_connector.csv_exporter")  # loaded lazily, with the first log of a connector
    for line in sys.stdin:
        folder, name, kill_after, arguments = json.loads(line)
        of_module, _, attribute = name.partition(":")
        if of_module not in sys.modules:
            sys.path.append(folder)
            import_module(of_module)
            gc.collect()
            gc.freeze()  # otherwise the first garbage collection in a child copies every page
        function = getattr(sys.modules[of_module], attribute)
        print(json.dumps(_run(function, kill_after, arguments)), flush=True)  # noqa: T201 - the answer


def _run(function: Callable[..., None], kill_after: float | None, arguments: dict[str, Any]) -> Ended:
    listening, speaking = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(listening)
        _be_child(function, arguments, speaking)
    os.close(speaking)
    said = _listen(listening, pid, math.inf if kill_after is None else time.monotonic() + kill_after)
    os.close(listening)
    _, status = os.waitpid(pid, 0)
    return Ended(os.waitstatus_to_exitcode(status), [json.loads(line) for line in said.splitlines()])


def _be_child(function: Callable[..., None], arguments: dict[str, Any], speaking: int) -> None:
    # One write of at most PIPE_BUF bytes is atomic: a killed child has reported a value completely or not at all
    def say(value: object) -> None:
        os.write(speaking, json.dumps(value).encode() + b"\n")

    code = 1
    try:
        end_a_hang(_LONGEST)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # standard output is for the answers
        function(say, **arguments)
        code = 0
    except BaseException:  # noqa: BLE001 - after any exception, the forked copy of the server must exit
        traceback.print_exc()
    finally:
        os._exit(code)


def _listen(listening: int, pid: int, kill_at: float) -> bytes:
    """Return the output of a child that exits, or is killed at the time `kill_at`."""
    said = bytearray()
    while True:
        left = kill_at - time.monotonic()
        if left < math.inf and (left <= 0 or not select.select([listening], [], [], left)[0]):
            os.kill(pid, signal.SIGKILL)
            kill_at = math.inf
            continue
        heard = os.read(listening, 65_536)
        if not heard:
            return bytes(said)
        said += heard


def fork(task: Callable[[], object], seconds: int = 20) -> int:
    """Run `task` in a forked child and return its process id. A child that hangs is ended after `seconds`."""
    with warnings.catch_warnings():
        # From 3.12 on, Python warns that a child may hang if threads hold locks. The tests check that it does not
        warnings.filterwarnings("ignore", ".* is multi-threaded", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            end_a_hang(seconds)
            task()
            code = 0
        except BaseException:  # noqa: BLE001 - as in `_be_child`
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def end_a_hang(seconds: int) -> None:
    """End this process after that many seconds, with a traceback of where it hangs."""
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.alarm(seconds)


def joined(*pids: int) -> None:
    """Wait for forked children. Each of them must exit with 0."""
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        if code := os.waitstatus_to_exitcode(status):
            raise RuntimeError(f"the forked process {pid} ended with {code}")


# Rows, and checks of a log.


def export(exporter: CSVSpanExporter, number: int, length: int = 20) -> None:
    """Export a row that `numbers` returns as `number`. It has a quoted cell, and `length` characters in its URL."""
    record = CallRecord(
        call_id=f"{number:032x}-{number:016x}",
        project=f'{number}, "quoted"',
        t=number,
        delta_t=0.5,
        url="http://127.0.0.1/" + "x" * length,
        redirect_url="",
        response_size=2,
        response_code=200,
        success=True,
        error="",
    )
    exporter.export_record(record, number)


def records(path: Path, *, unfinished: bool = False) -> list[CallRecord]:
    """Return the rows of a log, which must start with its only header and have no broken or merged line.

    Only if `unfinished`, the last line may lack its line end.
    """
    content = path.read_bytes()
    if unfinished:
        content = content[: content.rfind(b"\n") + 1]
    assert content.startswith(HEADER), f"no header: {content[:200]!r}"
    assert content.endswith(b"\n"), f"an unfinished line: {content[-200:]!r}"
    assert content.count(HEADER) == 1
    return records_in(content[len(HEADER) :])


def records_in(lines: bytes) -> list[CallRecord]:
    """Return the rows in the lines of a log without its header. Each must be exactly as the writer encodes it."""
    found = [decode_row(cells) for cells in csv.reader(io.StringIO(lines.decode(), newline=""))]
    for record, line in zip(found, lines.splitlines(keepends=True), strict=True):
        assert encode_row(record) == line, f"no whole row: {line!r}"
        assert len(record.call_id) == _CALL_ID_LENGTH, f"no whole row: {line!r}"
    return found


def numbers(path: Path, *, unfinished: bool = False) -> list[int]:
    """Return the numbers of the rows of a log, in order; see `records`."""
    return [int(record.project.partition(",")[0]) for record in records(path, unfinished=unfinished)]
