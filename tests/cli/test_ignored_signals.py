"""Tests that a signal which the parent process ignores stays ignored, as POSIX requires it of shells.

A shell starts ``command &`` with SIGINT and SIGQUIT ignored if job control is off, as in a script (POSIX.1-2024, XCU,
section 2.12), and ``nohup`` and ``trap '' TERM`` do it on request.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import command_line, processes
from support.forked import Program
from support.logs import call, rows
from support.otlp_receiver import Received, http_receiver

from otel_connector._csv._format import HEADER
from otel_connector.testing import FaultServer, hold, json_body

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@pytest.fixture
def api() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.script("/ok", json_body(1))
        yield server


def by_a_shell(folder: Path, command: str, ignored: str = "INT", **extra: str) -> processes.Process:
    """Start a command as a shell without job control does in the background."""
    script = f"trap '' {ignored}; exec {shlex.quote(sys.executable)} -m otel_connector {command}"
    return processes.Process(
        ["sh", "-c", script], cwd=folder, env=command_line.environment(extra), stdout=-1, stderr=-1, text=True
    )


def in_background(folder: Path, command: str, ignored: str = "INT", **extra: str) -> processes.Process:
    """Start a command with the signal ignored as `by_a_shell`, but without a new interpreter."""
    program = (
        f"import signal; signal.signal(signal.SIG{ignored}, signal.SIG_IGN)\n"
        "from otel_connector.__main__ import main; main()"
    )
    arguments = ["-c", program, *shlex.split(command)]
    return Program(arguments, cwd=folder, env=command_line.environment(extra), stdout=-1, stderr=-1, text=True)


@pytest.mark.parametrize(
    ("started", "ignored", "count"),
    [
        (by_a_shell, "INT", 1),
        (in_background, "INT", 2),
        (in_background, "HUP", 1),
        (in_background, "TERM", 1),
    ],
    ids=["INT, by a shell", "INT twice", "HUP", "TERM"],
)
def test_fetch_goes_on_after_a_signal_that_was_ignored_when_it_started(
    started: Callable[..., processes.Process], ignored: str, count: int, api: FaultServer, tmp_path: Path
) -> None:
    held = hold()
    api.script("/held", held.step)
    (tmp_path / "urls").write_text(f"{api.url('/held')}\n{api.url('/ok')}\n")
    with started(tmp_path, "fetch urls --concurrency 1", ignored) as process:
        held.arrived.wait(30)
        for _ in range(count):
            process.send_signal(getattr(signal, f"SIG{ignored}"))
        held.release()
        out, error = process.communicate()
    assert (process.returncode, "Done: 2 URLs in" in out) == (0, True), error
    assert "Stopping" not in error


def test_demo_in_the_background_of_a_script_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "logs.csv"
    with in_background(tmp_path, "demo --log logs.csv --calls 30 --no-otlp") as process:
        processes.wait_until(lambda: log.exists() and log.stat().st_size > len(HEADER), process)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate()
    assert (process.returncode, "30 calls started, 30 rows written" in out) == (0, True), error


def test_replay_in_the_background_of_a_script_goes_on(tmp_path: Path) -> None:
    received = Received()
    (tmp_path / "logs.csv").write_bytes(HEADER + rows(*map(call, range(1_024))))
    with http_receiver(received) as endpoint:
        to = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        with in_background(tmp_path, "replay logs.csv --rate 1024", **to) as process:
            received.wait_for(lambda: len(received.call_ids()) >= 512)
            process.send_signal(signal.SIGINT)
            out, error = process.communicate()
    assert (process.returncode, "\nSpans sent to " in out) == (0, True), error
    assert len(received.call_ids()) == 1_024


@pytest.mark.parametrize("ignored", ["INT", "TERM"])
def test_review_follow_in_the_background_of_a_script_goes_on(ignored: str, tmp_path: Path) -> None:
    log = tmp_path / "logs.csv"
    log.write_bytes(HEADER + rows(call(0)))
    with in_background(tmp_path, "review --follow logs.csv", ignored) as process:
        assert any("1 call," in line for line in process.stdout)
        process.send_signal(getattr(signal, f"SIG{ignored}"))
        log.write_bytes(HEADER + rows(call(0), call(1)))
        assert any("2 calls" in line for line in process.stdout), "it still follows the log"
        process.send_signal(signal.SIGTERM if ignored == "INT" else signal.SIGINT)
        process.communicate()
    assert process.returncode == 130
