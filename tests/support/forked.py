"""Runs Python programs as forks of one prepared process, which has imported all large modules.

A new interpreter takes a second to load aiohttp, the SDK and gRPC; a fork takes some milliseconds. The fork unwinds its
stack to the main program and then runs the code as ``__main__``. So it exits as any Python program: it joins its
threads, runs its exit handlers, and ends with the same exit code or signal. Only the modules that the prepared process
has loaded are not freed.

Theory of operation. `Forkserver` starts the prepared process once and sends requests to it through a Unix socket. A
request is one JSON document with four descriptors: the program's standard streams, and a pipe for its status. The
prepared process forks, writes the pid to the status pipe, and writes the wait status there when it has reaped the
child. Coverage continues in a fork: an exit handler stores the data in a file named after the process.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from support.processes import Process, clean_environment, keep_running

PRELOADED = (
    *("otel_connector.cli", "otel_connector.csv_exporter", "otel_connector.providers", "otel_connector.testing"),
    *("aiohttp", "altair", "rich.console", "rich.progress", "trustme", "typer", "uvloop"),
    "typer._adapters",  # with pydantic; typer loads it with the first option, if there is such a module
    *(
        "opentelemetry.sdk._logs",
        "opentelemetry.sdk.metrics",
        "opentelemetry.sdk.trace",
        "opentelemetry.sdk._configuration",
    ),
    *(
        "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
        "opentelemetry.exporter.otlp.proto.grpc.metric_exporter",
    ),
    *(
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    ),
)
"""Modules that are safe to import before the fork: their import does not depend on the environment of the program.

DuckDB is not among them: programs that load it before gRPC end with a signal on Python 3.10.
"""

OPENTELEMETRY_INSTRUMENT = "from opentelemetry.instrumentation.auto_instrumentation import run; run()"
"""The console script `opentelemetry-instrument` as Python code, wherever it is installed."""

_LONGEST_REQUEST = 1 << 20

_kept: list[types.ModuleType] = []


class Program(Process):
    """``python ARGUMENTS`` as a fork of the prepared process. The options are `subprocess.Popen`'s.

    Args:
        arguments: ``-c TEXT ...``, ``-m MODULE ...`` or ``FILE ...``, and ``-W FILTER`` before one of them.
        without: A module that cannot be imported in the program.
        options: `cwd`, `env`, `text`, `bufsize`, `stdin`, `stdout` and `stderr` of `subprocess.Popen`.
    """

    def __init__(self, arguments: Sequence[str], *, without: str = "", **options: Any) -> None:
        self._status: int | None = None
        self._without = without
        super().__init__([sys.executable, *map(str, arguments)], **options)

    def _execute_child(self, args: Any, executable: Any, preexec: Any, close: Any, fds: Any, *more: Any) -> None:
        cwd, env, _, _, _, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *_ = more
        forkserver = _forkserver()
        if forkserver is None or preexec is not None:
            assert not self._without
            super()._execute_child(args, executable, preexec, close, fds, *more)  # type: ignore[misc]
            return
        request = {
            "arguments": args[1:],
            "cwd": os.fspath(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "without": self._without,
        }
        streams = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
        self._status, self.pid = forkserver.fork(request, streams)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]

    def _internal_poll(self, *arguments: Any, **named: Any) -> int | None:
        if self._status is None:
            result: int | None = super()._internal_poll(*arguments, **named)  # type: ignore[misc]
            return result
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self._reap()
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self._status is None:
            result: int = super()._wait(timeout)  # type: ignore[misc]
            return result
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self._reap()
        assert self.returncode is not None
        return self.returncode

    def _reap(self) -> None:
        assert self._status is not None
        with open(self._status, encoding="ascii") as status:  # noqa: PTH123 - opens a descriptor
            self.returncode = os.waitstatus_to_exitcode(int(status.read()))


def run_python(arguments: Sequence[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[Any]:
    """Run a Python program in `folder` until it exits, with the clean environment and these variables."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with Program(arguments, cwd=folder, env=clean_environment(variables), **pipes) as process:
        out, error = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


class Forkserver:
    """Starts the prepared process and sends requests to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            program = f"from support.forked import serve; run = serve({number}); run()"
            environment = clean_environment({"PYTHONDONTWRITEBYTECODE": "1"})
            self._process = Process([sys.executable, "-c", program], env=environment, pass_fds=[number])
        keep_running(self._process)
        self._socket, self._lock = ours, threading.Lock()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LONGEST_REQUEST)

    def fork(self, request: Mapping[str, Any], streams: Sequence[int]) -> tuple[int, int]:
        """Start a program. Return the descriptor from which its wait status can be read after its exit, and its pid."""
        status, theirs = os.pipe()
        try:
            with self._lock:
                socket.send_fds(self._socket, [json.dumps(request).encode()], [*streams, theirs])
        finally:
            os.close(theirs)
        pid = b""
        while not pid.endswith(b"\n"):
            piece = os.read(status, 1)
            assert piece, "the prepared process has ended"
            pid += piece
        return status, int(pid)

    def close(self) -> None:
        """End the prepared process."""
        self._socket.close()
        self._process.wait()


_forkservers: list[Forkserver] = []  # at most one
_lock = threading.Lock()


def _forkserver() -> Forkserver | None:
    """Return the fork server of this process, started at the first call; None on other systems than Linux."""
    if sys.platform != "linux":
        return None
    with _lock:
        if not _forkservers:
            _forkservers.append(Forkserver())
    return _forkservers[0]


def close() -> None:
    """End the prepared process if it was started."""
    while _forkservers:
        _forkservers.pop().close()


# The prepared process.


def serve(number: int) -> Any:
    """Fork a child for every request. Returns only in a child, with the program to run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in PRELOADED:
            with contextlib.suppress(ImportError):
                import_module(name)
    atexit.register(_keep_loaded_modules, dict(sys.modules))  # the first that is registered runs last
    if "coverage" in sys.modules and (measured := import_module("coverage").Coverage.current()) is not None:
        measured.save()  # otherwise each child stores what these imports have run
    gc.collect()
    gc.freeze()  # otherwise the first garbage collection in a child copies every page
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    running: dict[int, int] = {}
    data, streams, status = b"", list[int](), -1
    with socket.socket(fileno=number) as requests:
        while True:
            watched: list[Any] = [requests, wake]
            ready, _, _ = select.select(watched, [], [])
            if wake in ready:
                os.read(wake, 1_000)
                _report_ended(running)
            if requests in ready:
                data, descriptors, _, _ = socket.recv_fds(requests, _LONGEST_REQUEST, 4)
                if not data:
                    os._exit(0)
                *streams, status = descriptors
                pid = os.fork()
                if pid == 0:
                    break
                running[pid] = status
                os.write(status, b"%d\n" % pid)
                for stream in streams:
                    os.close(stream)
    for descriptor in (wake, waker, status, *running.values()):
        os.close(descriptor)
    return _child(json.loads(data), streams)


def _keep_loaded_modules(loaded: Mapping[str, types.ModuleType]) -> None:
    """Exclude the modules of the prepared process from the end of the interpreter, which frees every object.

    Freeing copies each page that the fork shares with the prepared process, and takes ten times as long as the fork.
    What the program itself has loaded and created is freed as in any process.
    """
    needed = {"sys", "builtins", "__main__"}
    if "coverage" in sys.modules:  # it stores its data after this
        needed |= {"coverage", *sys.stdlib_module_names}
    _kept.extend(loaded.values())
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_kept))  # this module is freed, its list is not
    for name in loaded:
        if name.partition(".")[0] not in needed:
            sys.modules.pop(name, None)


def _report_ended(running: dict[int, int]) -> None:
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            os.write(running[pid], b"%d" % status)
            os.close(running.pop(pid))


def _child(request: Mapping[str, Any], streams: Sequence[int]) -> Any:
    """Set up the requested environment in this fork. Return a function that runs the program."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for own, stream in enumerate(streams):
        os.dup2(stream, own)
        os.close(stream)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    _open_streams()
    if request["without"]:
        sys.modules[request["without"]] = None  # type: ignore[assignment]
    filters = list(filter(None, os.environ.get("PYTHONWARNINGS", "").split(",")))
    arguments = list(request["arguments"])
    while arguments[0] == "-W":
        filters.append(arguments[1])
        del arguments[:2]
    _set_warnings(filters)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = list(dict.fromkeys([request["cwd"], *filter(None, paths), *sys.path[1:]]))
    return program(arguments)


def program(arguments: Sequence[str]) -> Callable[[], Any]:
    """Return a function that runs ``python ARGUMENTS`` in this process."""
    if arguments[0] == "-m":
        sys.argv[:] = arguments[1:]
        return lambda: runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    sys.argv[:] = arguments
    if Path(arguments[0]).is_dir():
        return lambda: runpy.run_path(arguments[0], run_name="__main__")
    if arguments[0] == "-c":
        del sys.argv[1]
        code = compile(arguments[1], "<string>", "exec")
    else:
        main.__file__ = arguments[0]
        sys.path[0] = str(Path(arguments[0]).parent)
        code = compile(Path(arguments[0]).read_text(encoding="utf-8"), arguments[0], "exec")
    return lambda: exec(code, main.__dict__)


def _open_streams() -> None:
    """Create new standard streams: those of the prepared process were created for other files."""
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "utf-8").partition(":")
    sys.stdin = sys.__stdin__ = open(0, encoding=encoding, errors=errors or "strict", closefd=False)  # type: ignore[misc]  # noqa: SIM115 - stays open until the exit
    for name, number in (("stdout", 1), ("stderr", 2)):
        own = errors or ("strict" if number == 1 else "backslashreplace")
        lines = number == 2 or os.isatty(number)
        stream = open(number, "w", 1 if lines else -1, encoding, own, closefd=False)  # noqa: SIM115 - as above
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _set_warnings(filters: list[str]) -> None:
    """Set the warning filters of a new interpreter with these options."""
    sys.warnoptions[:] = filters
    warnings.resetwarnings()
    for action, category in (
        ("ignore", ResourceWarning),
        ("ignore", ImportWarning),
        ("ignore", PendingDeprecationWarning),
        ("ignore", DeprecationWarning),
    ):
        warnings.simplefilter(action, category)  # type: ignore[arg-type]
    warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")
    warnings._processoptions(filters)  # type: ignore[attr-defined]
