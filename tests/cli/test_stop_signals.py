"""Tests that SIGTERM and SIGHUP end ``fetch``, ``demo`` and ``replay`` like the first Ctrl-C: nothing is lost.

``docker stop`` sends SIGTERM, and SIGKILL 10 s later (Docker CLI reference); Kubernetes 30 s later
(``terminationGracePeriodSeconds``), systemd 90 s later (``TimeoutStopSec``). A lost terminal sends SIGHUP. A shell
reports a process that a signal ended with 128 and its number (POSIX.1-2024, XCU, section 2.8.2, and bash).
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import command_line, processes
from support.forked import Program
from support.logs import call, write
from support.otlp_receiver import Received, http_receiver
from support.processes import Process, wait_until
from support.terminals import HIDDEN, on_terminal

from otel_connector.cli._stop_signals import Stopped, StopSignals
from otel_connector.testing import FaultServer, json_body, silent

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
EACH_STOP = pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
AS_PID_1 = ["unshare", "--pid", "--fork", "--mount-proc"]
CANNOT_UNSHARE = 77
# The same in this process
FORKED_AS_PID_1 = f"""
import ctypes, os, sys
new_pid_namespace = 0x20000000  # CLONE_NEWPID, linux/sched.h
if ctypes.CDLL(None).unshare(new_pid_namespace):
    sys.exit({CANNOT_UNSHARE})
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
from otel_connector.__main__ import main
main()
"""
XTERM = {"TERM": "xterm-256color"}


@pytest.fixture
def received() -> Received:
    return Received()


@pytest.fixture
def collector(received: Received) -> Iterator[dict[str, str]]:
    """Receive telemetry, and return the variables for it."""
    with http_receiver(received) as endpoint:
        yield sent_to(endpoint)


@pytest.fixture
def silent_collector() -> Iterator[socket.socket]:
    """Accept connections, and answer nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def api() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.script("/ok", json_body(1))
        server.script("/never", silent)
        yield server


def sent_to(endpoint: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}


def start(folder: Path, *arguments: str, **options: Any) -> Process:
    # coverage cannot trace a uvloop event loop, so asyncio's is used while coverage measures
    return command_line.start(folder, *arguments, without="" if sys.gettrace() is None else "uvloop", **options)


def has_rows(folder: Path, count: int) -> bool:
    log = folder / "logs.csv"
    return log.exists() and log.read_bytes().count(b"\n") > count


def call_ids(folder: Path) -> Counter[str]:
    with (folder / "logs.csv").open(newline="", encoding="utf-8") as file:
        return Counter(row["call_id"] for row in csv.DictReader(file))


def errors(folder: Path) -> Counter[str]:
    with (folder / "logs.csv").open(newline="", encoding="utf-8") as file:
        return Counter(row["error"].partition(":")[0] for row in csv.DictReader(file))


def sleeps_and_handles(number: signal.Signals, process: Process) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = re.search(r"\(sleeping\).*^SigCgt:\t([0-9a-f]+)$", status, re.DOTALL | re.MULTILINE)  # proc(5)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


def counted(received: Received) -> int:
    return sum(point.count for point in received.points("http.client.request.duration"))


def test_signals_before_during_and_after_the_event_loop() -> None:
    signals, calls = StopSignals(), list[str]()
    signals.defer()
    signals.handle(signal.SIGINT, None)
    with signals.calling(lambda: calls.append("stop"), lambda: calls.append("cancel")):
        assert calls == ["stop"], "it came before the loop ran"
        signals.handle(signal.SIGTERM, None)
    assert (calls, signals.exit_code) == (["stop", "cancel"], 130)
    with pytest.raises(Stopped, match="130"):
        signals.handle(signal.SIGTERM, None)


def test_a_first_signal_before_the_run_raises_and_one_after_it_does_not() -> None:
    before, after = StopSignals(), StopSignals()
    with pytest.raises(Stopped, match="130"):
        before.handle(signal.SIGINT, None)
    with after.calling(list):
        pass
    after.handle(signal.SIGINT, None)
    assert after.exit_code == 130


@EACH_STOP
def test_a_stopped_fetch_has_as_many_rows_as_spans_and_counted_calls(
    number: signal.Signals, api: FaultServer, received: Received, collector: dict[str, str], tmp_path: Path
) -> None:
    arguments = (api.url("/ok?n={}"), "--range", "1:1000000", "--rate", "200.0")
    with start(tmp_path, "fetch", *arguments, extra=collector) as process:
        wait_until(lambda: has_rows(tmp_path, 30), process)
        process.send_signal(number)
        out, error = process.communicate()
    assert process.returncode == 128 + number
    assert received.call_ids(3) == call_ids(tmp_path)
    assert counted(received) == received.call_ids(3).total() >= 30
    assert f"Continue with: otel-connector fetch '{arguments[0]}' {' '.join(arguments[1:])} --resume\n" in error
    assert re.search(r"^Stopped: [\d,]+ of 1,000,000 URLs in ", out, re.MULTILINE)
    assert "Traceback" not in error


@EACH_STOP
def test_a_stopped_demo_has_as_many_rows_as_spans_and_counted_calls(
    number: signal.Signals, received: Received, collector: dict[str, str], tmp_path: Path
) -> None:
    with start(tmp_path, "demo", "--log", "logs.csv", "--calls", "5000", extra=collector) as process:
        wait_until(lambda: has_rows(tmp_path, 30), process)
        process.send_signal(number)
        out, error = process.communicate()
    assert (process.returncode, error) == (128 + number, "")
    assert received.call_ids(3) == call_ids(tmp_path)
    started, written = re.findall(r"^Stopped: (\d+) calls started, (\d+) rows written to ", out, re.MULTILINE)[0]
    assert int(started) == int(written) == counted(received) == call_ids(tmp_path).total()


@EACH_STOP
def test_a_stopped_replay_is_continued_by_the_same_command(
    number: signal.Signals, received: Received, collector: dict[str, str], tmp_path: Path
) -> None:
    write(tmp_path / "logs.csv", map(call, range(1_500)))
    with start(tmp_path, "replay", "logs.csv", "--rate", "512", extra=collector) as process:
        checkpoint = tmp_path / "logs.csv.replayed"
        wait_until(lambda: checkpoint.exists() and '"sent": 512' in checkpoint.read_text(), process)
        with suppress(subprocess.TimeoutExpired):  # meanwhile, the replay waits for the second batch
            process.wait(0.1)
        process.send_signal(number)
        out, error = process.communicate()
    assert (process.returncode, error) == (128 + number, "")
    assert out.splitlines()[1:] == ["Stopped; spans sent: 512. The same command continues."]
    assert received.call_ids().total() == 512
    assert command_line.run_here(tmp_path, "replay", "logs.csv", "--rate", "1e6", **collector).code == 0
    assert received.call_ids() == call_ids(tmp_path)


@pytest.mark.timing
def test_a_fetch_whose_server_and_collector_hang_ends_within_the_10_s_of_docker_stop(
    api: FaultServer, silent_collector: socket.socket, tmp_path: Path
) -> None:
    (tmp_path / "urls").write_text("\n".join([api.url("/ok")] * 3 + [api.url("/never")] * 20))
    to = sent_to(f"http://127.0.0.1:{silent_collector.getsockname()[1]}")
    arguments = ("fetch", "urls", "--concurrency", "5", "--timeout", "600.0")
    with start(tmp_path, *arguments, extra=to) as process:
        wait_until(lambda: len(api.received("/never")) == 5, process)
        process.send_signal(signal.SIGTERM)
        before = time.monotonic()
        out, error = process.communicate(timeout=10)
    assert (process.returncode, out.startswith("Stopped: 3 of 23 URLs in ")) == (143, True)
    assert time.monotonic() - before > 3, "the calls in flight had some time"
    assert "Stopping after 5 calls in flight; those that take longer than 3 s are cancelled\n" in error
    assert f"Continue with: otel-connector {' '.join(arguments)} --resume\n" in error
    assert errors(tmp_path) == {"": 3, "CancelledError": 5}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_second_signal_cancels_the_calls_and_a_third_one_the_export(
    number: signal.Signals, api: FaultServer, silent_collector: socket.socket, tmp_path: Path
) -> None:
    (tmp_path / "urls").write_text(f"{api.url('/never')}\n" * 5)
    to = sent_to(f"http://127.0.0.1:{silent_collector.getsockname()[1]}")
    with start(tmp_path, "fetch", "urls", "--timeout", "600", extra=to) as process:
        wait_until(lambda: len(api.received("/never")) == 5, process)
        process.send_signal(signal.SIGTERM)
        assert any("Stopping after 5 calls" in line for line in process.stderr)
        process.send_signal(number)
        silent_collector.accept()[0].close()
        wait_until(lambda: errors(tmp_path)["CancelledError"] == 5, process)
        process.send_signal(number)
        _, error = process.communicate()
    assert (process.returncode, "Traceback" in error) == (143, False)
    assert re.search(r"(Traces|Metrics|metrics) were not sent: the export was interrupted\.", error)


def test_a_signal_during_the_last_export_lets_it_end(
    api: FaultServer, received: Received, collector: dict[str, str], tmp_path: Path
) -> None:
    """The receiver answers only after the signal."""
    arrived, go_on = threading.Event(), threading.Event()
    add = received.add

    def add_later(kind: str, groups: Any) -> None:
        arrived.set()
        assert go_on.wait(30)
        add(kind, groups)

    received.add = add_later  # type: ignore[assignment,method-assign]
    with start(tmp_path, "fetch", api.url("/ok"), extra=collector) as process:
        assert arrived.wait(30)
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
        go_on.set()
        out, error = process.communicate()
    assert (process.returncode, out.startswith("Done: 1 URL in "), "Continue" in error) == (143, True, False)
    assert received.call_ids(3) == call_ids(tmp_path)
    assert counted(received) == 1


@EACH_STOP
def test_a_fetch_that_waits_for_its_list_ends(number: signal.Signals, api: FaultServer, tmp_path: Path) -> None:
    """The pipe stays open, and nothing is written to it."""
    os.mkfifo(tmp_path / "urls")
    with start(tmp_path, "fetch", "urls") as process:
        writer = os.open(tmp_path / "urls", os.O_WRONLY)  # returns when the command has opened it
        wait_until(lambda: has_rows(tmp_path, 0), process)
        assert any("unknown number of URLs" in line for line in process.stderr)
        process.send_signal(number)
        _, error = process.communicate()
        os.close(writer)
    assert (process.returncode, "Traceback" in error) == (128 + number, False), error
    assert api.requests == []


def test_a_fetch_that_opens_a_pipe_without_a_writer_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "urls")
    with start(tmp_path, "fetch", "urls") as process:
        wait_until(lambda: sleeps_and_handles(signal.SIGTERM, process), process)
        process.send_signal(signal.SIGTERM)
        assert process.communicate() == ("", "")
    assert process.returncode == 143


def test_a_lost_terminal_loses_no_row_and_no_span(
    api: FaultServer, received: Received, collector: dict[str, str], tmp_path: Path
) -> None:
    """The output can no longer be written then: Linux reports EIO."""
    for arguments in (["fetch", api.url("/ok?n={}"), "--range", "1:1000000", "--rate", "200"], ["demo"]):
        command = ["-m", "otel_connector", *arguments]
        with on_terminal(tmp_path, command, command_line.environment(XTERM | collector)) as terminal:
            terminal.read_until(re.escape(HIDDEN))
            while not has_rows(tmp_path, 30):
                time.sleep(0.01)
            terminal.hang_up()
            os.kill(terminal.job, signal.SIGHUP)
            assert terminal.report("ended") == "129"
        assert received.call_ids(3) == call_ids(tmp_path)


def test_a_terminal_that_takes_no_output_delays_the_end_by_some_seconds(api: FaultServer, tmp_path: Path) -> None:
    program = (
        "from otel_connector.cli import _stop_signals; from otel_connector.__main__ import main\n"
        "_stop_signals._ALL_SECONDS = 1; main()"
    )
    arguments = ["-c", program, "fetch", api.url("/never"), "--timeout", "600"]
    with on_terminal(tmp_path, arguments, command_line.environment(XTERM)) as terminal:
        terminal.read_until(rb"1 in flight")
        terminal.type(b"\x13")  # Ctrl-S
        os.kill(terminal.job, signal.SIGTERM)
        assert terminal.report("ended") == "143"


@EACH_STOP
def test_as_process_1_of_a_container_each_signal_ends_a_fetch(
    number: signal.Signals, api: FaultServer, received: Received, collector: dict[str, str], tmp_path: Path
) -> None:
    """The kernel discards a signal for this process that has no handler: pid_namespaces(7)."""
    arguments = ["fetch", api.url("/ok?n={}"), "--range", "1:1000000", "--rate", "200"]
    program = ["-c", FORKED_AS_PID_1, *arguments]
    options: dict[str, Any] = {"without": "" if sys.gettrace() is None else "uvloop", "stderr": -1, "text": True}
    with Program(program, cwd=tmp_path, env=command_line.environment(collector), **options) as process:
        try:
            wait_until(lambda: has_rows(tmp_path, 30), process)
        except AssertionError:
            if process.poll() == CANNOT_UNSHARE:
                pytest.skip("this user cannot create a PID namespace")
            raise
        (child,) = psutil.Process(process.pid).children()
        child.send_signal(number)
        _, error = process.communicate()
    assert (process.returncode, "Continue with: " in error) == (128 + number, True)
    assert received.call_ids(3) == call_ids(tmp_path)


def test_process_1_ends_while_it_loads(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or processes.run([*AS_PID_1, "true"], capture_output=True).returncode:
        pytest.skip("this user cannot create a PID namespace")
    program = command_line.WITHOUT.replace("raise ModuleNotFoundError(", "__import__('os').kill(1, 15); (").replace(
        ", name=name", ""
    )
    command = [*AS_PID_1, sys.executable, "-c", program, "typer", "check", "logs.csv"]
    done = processes.run(command, cwd=tmp_path, env=command_line.environment({}), capture_output=True)
    assert (done.returncode, done.stderr) == (143, b"")
