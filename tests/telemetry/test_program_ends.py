"""Every way a program can end: in both write modes, the log then has a row for each call that returned."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import pytest
from support.forked import Program

from otel_connector import CSVSpanExporter
from otel_connector._csv._check import check
from otel_connector.testing import FaultServer, ok, silent

CALLS = 20

# A program that ends in the way that is inserted as `end`; `wait` prints "ready" and waits for a signal
PROGRAM = """
import asyncio, os, signal, sys, threading
import aiohttp
from otel_connector import AsyncConnector, CSVSpanExporter
from otel_connector.providers import configure

URL, LOG, MODE = sys.argv[1:4]
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it

async def calls(connector):
    async with aiohttp.ClientSession() as session:
        for number in range({calls}):
            await connector.get(session, URL, str(number))

def wait():
    # A signal that arrives just before signal.pause() would not end it
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    print("ready", flush=True)
    while True:
        os.read(reader, 1)

def work():
    connector = AsyncConnector(CSVSpanExporter(LOG, mode=MODE))
    asyncio.run(calls(connector))
    return connector

def work_in_a_pool():
    work()

if __name__ == "__main__":
{end}
"""

FORKS = """
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool:
    [pool.apply(work_in_a_pool) for _ in range(2)]
    pool.close()
    pool.join()
"""

# A child process of multiprocessing does not run the interpreter's exit handlers
CHILD = """
import multiprocessing
sys.path.insert(0, os.path.dirname(LOG))
import child
context = multiprocessing.get_context({method!r})
process = context.Process(target=child.work)
process.start()
process.join()
sys.exit(process.exitcode)
"""

# The code of `end`, the signal that is sent to the program after "ready" (or None), and the expected exit code
ENDS: dict[str, tuple[str, int | None, int]] = {
    "normal end": ("work()", None, 0),
    "normal end, without a reference to the connector": ("work() and None", None, 0),
    "an exception": ("work(); raise ValueError", None, 1),
    "sys.exit": ("work(); sys.exit(3)", None, 3),
    "sys.exit in a thread, then normal end": ("threading.Thread(target=lambda: (work(), sys.exit())).start()", None, 0),
    "end of a thread, then normal end": (
        "thread = threading.Thread(target=work); thread.start(); thread.join()",
        None,
        0,
    ),
    "SIGINT": ("work(); wait()", signal.SIGINT, -signal.SIGINT),
    "SIGTERM": ("configure(signals=[signal.SIGTERM]); work(); wait()", signal.SIGTERM, -signal.SIGTERM),
    "SIGHUP": ("configure(signals=[signal.SIGTERM, signal.SIGHUP]); work(); wait()", signal.SIGHUP, -signal.SIGHUP),
    "SIGTERM, with a handler of the program": (
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(7)); configure(signals=[signal.SIGTERM]); work(); wait()",
        signal.SIGTERM,
        7,
    ),
    **{f"a child by {method}": (CHILD.format(method=method), None, 0) for method in ("fork", "spawn", "forkserver")},
    "a pool of two": (FORKS, None, 0),
}
MODES = ["call", "background"]

Programs: TypeAlias = dict[tuple[str, str], Future[tuple[int, str, Path]]]
"""For each name and mode: the exit code, stderr and log of the program."""


def run(
    end: str, url: str, log: Path, mode: str, number: int | None = None, env: dict[str, str] | None = None
) -> tuple[int, str]:
    """Run the program, send it the signal once it is ready, and return its exit code and stderr."""
    program = PROGRAM.format(calls=CALLS, end="\n".join(f"    {line}" for line in end.splitlines()))
    (log.parent / "child.py").write_text(
        program.partition("if __name__")[0]
    )  # imported by a child process of multiprocessing
    process = Program(
        ["-c", program, url, str(log), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", **(env or {})},
    )
    with process:
        try:
            if number is not None:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                process.send_signal(number)
            _, stderr_text = process.communicate(timeout=30)
        finally:
            process.kill()
    return process.returncode, stderr_text


def projects(log: Path) -> Sequence[str]:
    assert check(log).whole
    with log.open(newline="", encoding="utf-8") as file:
        return [row["project"] for row in csv.DictReader(file)]


@pytest.fixture
def url(server: FaultServer) -> str:
    server.script("/x", ok)
    return server.url("/x")


both_modes = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(scope="module")
def programs(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Programs]:
    """Run all programs, two at a time: most of their time is the start of Python."""

    def run_one(name: str, mode: str, log: Path) -> tuple[int, str, Path]:
        end, number, _ = ENDS[name]
        return (*run(end, server.url("/x"), log, mode, number), log)

    with FaultServer() as server, ThreadPoolExecutor(2) as pool:
        server.script("/x", ok)
        yield {
            (name, mode): pool.submit(run_one, name, mode, tmp_path_factory.mktemp("program") / "logs.csv")
            for name in ENDS
            for mode in MODES
        }


@both_modes
@pytest.mark.parametrize("name", ENDS)
def test_the_log_has_all_rows_after_the_program_ended(
    name: str, mode: str, programs: dict[tuple[str, str], Future[tuple[int, str, Path]]]
) -> None:
    code, stderr_text, log = programs[name, mode].result()
    assert code == ENDS[name][2], stderr_text
    found, numbers = projects(log), [str(number) for number in range(CALLS)]
    if name == "a pool of two":
        assert sorted(found) == sorted(numbers * 2)
    else:
        assert found == numbers


def test_in_mode_call_no_row_is_lost_by_a_signal_without_a_handler(url: str, tmp_path: Path) -> None:
    ended, _ = run("work(); wait()", url, tmp_path / "logs.csv", "call", signal.SIGTERM)
    assert ended == -signal.SIGTERM
    assert len(projects(tmp_path / "logs.csv")) == CALLS


@both_modes
def test_calls_that_ctrl_c_cancels_have_rows_in_the_log(mode: str, url: str, tmp_path: Path) -> None:
    end = """
async def main():
    connector = AsyncConnector(CSVSpanExporter(LOG, mode=MODE))
    await calls(connector)
    async with aiohttp.ClientSession() as session:
        in_flight = asyncio.gather(*(connector.get(session, URL + "/silent", "cancelled") for _ in range(5)))
        while connector.stats().calls_active < 5:
            await asyncio.sleep(0)
        print("ready", flush=True)
        await in_flight
asyncio.run(main())
"""
    with FaultServer() as other:
        other.script("/x", ok)
        other.script("/x/silent", silent)
        ended, stderr_text = run(end, other.url("/x"), tmp_path / "logs.csv", mode, signal.SIGINT)
    assert ended == -signal.SIGINT, stderr_text
    found = projects(tmp_path / "logs.csv")
    assert found[:CALLS] == [str(number) for number in range(CALLS)]
    assert set(found[CALLS:]) <= {"cancelled"}
    assert len(found) == CALLS + 5


def test_rows_that_cannot_be_written_are_reported_at_exit(url: str, tmp_path: Path) -> None:
    end = """
connector = AsyncConnector(LOG)
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(LOG) + 300, resource.RLIM_INFINITY))
asyncio.run(calls(connector))
"""
    ended, stderr_text = run(end, url, tmp_path / "logs.csv", "call")
    assert ended == 0
    written = len(projects(tmp_path / "logs.csv"))
    assert 0 < written < CALLS
    assert f"{CALLS - written} rows lost, because the disk refused them" in stderr_text


@both_modes
def test_a_program_with_a_long_fsync_interval_ends_cleanly(mode: str, url: str, tmp_path: Path) -> None:
    end = (
        "connector = AsyncConnector(CSVSpanExporter(LOG, mode=MODE, fsync_interval=60)); asyncio.run(calls(connector))"
    )
    assert run(end, url, tmp_path / "logs.csv", mode) == (0, "")
    assert len(projects(tmp_path / "logs.csv")) == CALLS


def test_an_exporter_in_background_mode_can_be_shut_down_twice(tmp_path: Path) -> None:
    exporter = CSVSpanExporter(tmp_path / "logs.csv", mode="background")
    assert exporter.force_flush()
    exporter.shutdown()
    exporter.shutdown()
