"""Tests of concurrent writers to one log: processes, connectors, threads with event loops, and both sides of a fork.

In every case the log has one header, no line is broken or merged with another, and every row is there once.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support import failing_calls
from support.failing_calls import WRITES, Children, Fault, Say, export, fork, joined, numbers
from support.logs import Log

from otel_connector import AsyncConnector, CSVSpanExporter, csv_exporter
from otel_connector.testing import FaultServer, ok

in_both_modes = pytest.mark.parametrize("mode", ["call", "background"])

REFUSED = asdict(Fault(action="fail", value=errno.EIO, times=-1, only=WRITES))
PARTIAL_ROW = asdict(Fault(action="full", value=100, times=-1, only=WRITES))
KILLED_DURING_A_ROW = asdict(Fault(action="torn", value=500, only=WRITES))
ALWAYS_SHORT = asdict(Fault(action="short", value=400, times=-1, only=WRITES))


@pytest.fixture
def server(server: FaultServer) -> FaultServer:
    server.script("/", ok)
    return server


def exporter(path: str, mode: str) -> CSVSpanExporter:
    options: dict[str, Any] = {} if mode == "call" else {"mode": mode}
    return CSVSpanExporter(path, **options)


def run_in_child(child_processes: Children, *arguments: Any, **named: object) -> list[Any]:
    """Run a function in a child process, which must exit with 0. Return the values that it reported."""
    ended = child_processes.run(*arguments, **named)
    assert ended.code == 0
    return ended.said


def numbers_after_reopening(path: Path) -> list[int]:
    """Open and close the log with another writer, then return the numbers of its rows."""
    CSVSpanExporter(path).shutdown()
    return numbers(path)


# Independent processes.


def append_in_processes(say: Say, path: str, processes: int, rows: int, fault: dict[str, Any] | None = None) -> None:
    """Start processes that open the log at the same moment, and let each of them write its rows."""
    ready, report_ready = os.pipe()
    go, release = os.pipe()

    def run(first: int) -> None:
        os.close(release)
        os.write(report_ready, b".")
        os.read(go, 1)  # returns when the last process that has the other end open has closed it
        own = CSVSpanExporter(path)
        if fault is not None:
            failing_calls.arm(path, fault)
        for number in range(first, first + rows):
            export(own, number, number % 300)
        own.force_flush()
        assert own.counts() == (rows, 0, 0)
        own.shutdown()

    pids = [fork(partial(run, index * rows)) for index in range(processes)]
    for _ in pids:
        os.read(ready, 1)
    os.close(release)
    joined(*pids)


def test_64_processes_append_to_one_file(child_processes: Children, tmp_path: Path) -> None:
    path, rows = tmp_path / "logs.csv", 25
    run_in_child(child_processes, append_in_processes, path=str(path), processes=64, rows=rows)
    found = numbers(path)
    assert sorted(found) == list(range(64 * rows))
    for first in range(0, 64 * rows, rows):
        own = [number for number in found if first <= number < first + rows]
        assert own == sorted(own), "the rows of a process are in the order they were written"


def test_rows_written_in_pieces_by_several_processes_are_not_mixed(child_processes: Children, tmp_path: Path) -> None:
    path = tmp_path / "logs.csv"
    run_in_child(child_processes, append_in_processes, path=str(path), processes=4, rows=100, fault=ALWAYS_SHORT)
    assert sorted(numbers(path)) == list(range(400))


def write_beside_a_killed_process(say: Say, path: str) -> None:
    """Write to the log while another process is killed in the middle of a row."""
    own = CSVSpanExporter(path)
    export(own, 1)

    def other_process() -> None:
        other = CSVSpanExporter(path)
        export(other, 2)
        failing_calls.arm(path, KILLED_DURING_A_ROW)
        export(other, 3)

    _, status = os.waitpid(fork(other_process), 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    export(own, 4)
    export(own, 5)
    say(own.counts())
    own.shutdown()


def test_a_process_killed_in_the_middle_of_a_row_damages_no_row_of_another(
    child_processes: Children, tmp_path: Path
) -> None:
    path = tmp_path / "logs.csv"
    assert run_in_child(child_processes, write_beside_a_killed_process, path=str(path)) == [[3, 0, 0]]
    assert numbers_after_reopening(path) == [1, 2, 4, 5]


def write_beside_a_partial_row(say: Say, path: str) -> None:
    """Let another process write while only a part of a row of this process has been written."""
    own = CSVSpanExporter(path)
    export(own, 1)
    failing_calls.arm(path, PARTIAL_ROW)
    export(own, 2)
    failing_calls.disarm()

    def other_process() -> None:
        other = CSVSpanExporter(path)
        export(other, 3)
        other.shutdown()
        assert other.counts() == (1, 0, 0)

    joined(fork(other_process))
    export(own, 4)
    say(own.counts())
    own.shutdown()


def test_no_row_is_written_between_the_two_parts_of_a_partial_row(child_processes: Children, tmp_path: Path) -> None:
    path = tmp_path / "logs.csv"
    assert run_in_child(child_processes, write_beside_a_partial_row, path=str(path)) == [[3, 0, 0]]
    assert sorted(numbers_after_reopening(path)) == [1, 2, 3, 4]


# Several writers in one process.


async def calls(connector: AsyncConnector, url: str, projects: Iterable[int]) -> None:
    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(connector.get(session, url, str(project)) for project in projects))


def accounting_adds_up(connector: AsyncConnector) -> bool:
    stats = connector.stats()
    return stats.calls_started == stats.rows_written + stats.rows_waiting + stats.rows_lost + stats.calls_active


async def test_two_connectors_in_one_process_share_a_log(server: FaultServer, log: Log) -> None:
    first, second = AsyncConnector(log.path), AsyncConnector(f"{log.path.parent}/./{log.path.name}")
    await asyncio.gather(calls(first, server.url(), range(40)), calls(second, server.url(), range(40, 80)))
    await first.aclose()
    await calls(second, server.url(), range(80, 100))
    assert sorted(numbers(log.path)) == list(range(100))
    assert (first.stats().rows_written, second.stats().rows_written) == (40, 60)


@pytest.mark.parametrize("shared", [True, False], ids=["one-exporter", "separate-exporters"])
@in_both_modes
def test_threads_with_separate_event_loops_share_a_log(shared: bool, mode: str, server: FaultServer, log: Log) -> None:
    exporters = [exporter(str(log.path), mode)] * 4 if shared else [exporter(str(log.path), mode) for _ in range(4)]

    def run(index: int) -> None:
        connector = AsyncConnector(exporters[index])
        asyncio.run(calls(connector, server.url(), range(index * 50, index * 50 + 50)))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(run, range(4)))
    for each in exporters:
        each.shutdown()
    assert sorted(numbers(log.path)) == list(range(200))
    assert [each.counts().written for each in exporters] == [200 if shared else 50] * 4


# Parent and child after a fork.


def fork_with_rows_waiting(say: Say, path: str, mode: str, fault: dict[str, Any], child_first: bool) -> None:
    """Fork while rows wait because writes fail. Both processes write when writes succeed again."""
    own = exporter(path, mode)
    export(own, 1)
    own.force_flush()
    failing_calls.arm(path, fault)
    for number in (2, 3, 4):
        export(own, number)
    own.force_flush()
    say(own.counts())
    go, release = os.pipe()

    def child() -> None:
        failing_calls.disarm()
        os.close(release)
        os.read(go, 1)
        assert own.counts().waiting == 0, "the waiting rows belong to the parent"
        written = own.counts().written
        for number in (5, 6):
            export(own, number)
        own.force_flush()
        assert own.counts() == (written + 2, 0, 0)
        own.shutdown()

    pid = fork(child)
    failing_calls.disarm()
    if child_first:
        os.close(release)
        joined(pid)
    export(own, 7)
    own.force_flush()
    if not child_first:
        os.close(release)
        joined(pid)
    say(own.counts())
    own.shutdown()


@pytest.mark.parametrize("child_first", [True, False], ids=["child-first", "parent-first"])
@pytest.mark.parametrize("fault", [REFUSED, PARTIAL_ROW], ids=["refused", "partial-row"])
@in_both_modes
def test_after_a_fork_only_the_parent_writes_the_rows_that_wait(
    mode: str, fault: dict[str, Any], child_first: bool, child_processes: Children, tmp_path: Path
) -> None:
    path = tmp_path / "logs.csv"
    values = run_in_child(
        child_processes, fork_with_rows_waiting, path=str(path), mode=mode, fault=fault, child_first=child_first
    )
    assert values == [[1, 3, 0], [5, 0, 0]]
    assert sorted(numbers_after_reopening(path)) == [1, 2, 3, 4, 5, 6, 7]


def fork_during_calls(say: Say, path: str, url: str, mode: str, refused: bool) -> None:
    own = exporter(path, mode)
    connector = AsyncConnector(own)
    asyncio.run(_fork_during_calls(connector, own, url, refused))
    assert accounting_adds_up(connector)
    asyncio.run(connector.aclose())
    own.shutdown()
    say(connector.stats().rows_written)


async def _fork_during_calls(connector: AsyncConnector, own: CSVSpanExporter, url: str, refused: bool) -> None:
    async with aiohttp.ClientSession() as session:
        tasks = [asyncio.ensure_future(connector.get(session, url, str(number))) for number in range(20)]
        if refused:
            failing_calls.arm(own.path, REFUSED)
        await asyncio.wait(tasks[:5])
        pid = fork(partial(call_in_the_child, connector, own, url))
        failing_calls.disarm()
        await asyncio.gather(*tasks)
    joined(pid)
    await calls(connector, url, range(20, 30))


def call_in_the_child(connector: AsyncConnector, own: CSVSpanExporter, url: str) -> None:
    failing_calls.disarm()
    assert accounting_adds_up(connector)
    asyncio.run(calls(connector, url, range(100, 110)))
    assert accounting_adds_up(connector)
    own.shutdown()
    assert accounting_adds_up(connector)
    assert connector.stats().rows_waiting == 0


@pytest.mark.parametrize("refused", [False, True], ids=["no-row-waits", "some-rows-wait"])
@in_both_modes
def test_a_fork_while_calls_are_in_flight_neither_loses_nor_repeats_rows(
    mode: str, refused: bool, child_processes: Children, server: FaultServer, tmp_path: Path
) -> None:
    path = tmp_path / "logs.csv"
    assert run_in_child(
        child_processes, fork_during_calls, path=str(path), url=server.url(), mode=mode, refused=refused
    ) == [30]
    assert sorted(numbers_after_reopening(path)) == [*range(30), *range(100, 110)]


def start_prefork_workers(say: Say, path: str, url: str) -> None:
    """Use a connector before and after forking workers, as a server that preloads its application does."""
    connector = AsyncConnector(path)
    asyncio.run(calls(connector, url, range(10)))
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=call_in_worker, args=(connector, url, range(first, first + 10)))
        for first in range(10, 60, 10)
    ]
    for worker in workers:
        worker.start()
    asyncio.run(calls(connector, url, range(60, 70)))
    for worker in workers:
        worker.join()
    say([worker.exitcode for worker in workers])
    say(connector.stats().rows_written)


def call_in_worker(connector: AsyncConnector, url: str, projects: range) -> None:
    asyncio.run(calls(connector, url, projects))
    if not accounting_adds_up(connector):
        sys.exit("the accounting does not add up")


def test_workers_of_a_prefork_server_share_a_log(
    child_processes: Children, server: FaultServer, tmp_path: Path
) -> None:
    path = tmp_path / "logs.csv"
    assert run_in_child(child_processes, start_prefork_workers, path=str(path), url=server.url()) == [[0] * 5, 20]
    assert sorted(numbers_after_reopening(path)) == list(range(70))


def fork_a_child_that_exits(say: Say, path: str) -> None:
    """Fork a child that never uses the exporter and exits normally."""
    own = CSVSpanExporter(path)
    failing_calls.arm(path, REFUSED)
    export(own, 1)
    worker = multiprocessing.get_context("fork").Process(target=sys.exit)
    worker.start()
    worker.join()
    failing_calls.disarm()
    export(own, 2)
    say(own.counts())


def test_a_forked_child_that_exits_immediately_writes_nothing(child_processes: Children, tmp_path: Path) -> None:
    path = tmp_path / "logs.csv"
    assert run_in_child(child_processes, fork_a_child_that_exits, path=str(path)) == [[2, 0, 0]]
    assert numbers(path) == [1, 2]


def fork_beside_a_writing_thread(say: Say, path: str, mode: str, forks: int) -> None:
    """Fork while another thread writes and may hold any of its locks."""
    sys.settrace(None)  # the lock of a coverage tool may be held at a fork, too, and is not tested here
    sys.setswitchinterval(1e-6)
    own, enough, written = exporter(path, mode), threading.Event(), itertools.count(1)

    def write() -> None:
        sys.settrace(None)
        while not enough.is_set():
            export(own, next(written))

    def child(number: int) -> None:
        failing_calls.disarm()
        export(own, number)
        own.shutdown()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(forks):
            joined(fork(partial(child, 1_000_000 + number), seconds=5))
    finally:
        enough.set()
        thread.join()
        own.shutdown()
    say([own.counts(), next(written) - 1])


@in_both_modes
def test_a_child_forked_while_another_thread_writes_can_write(
    mode: str, child_processes: Children, tmp_path: Path
) -> None:
    path, forks = tmp_path / "logs.csv", 12
    ((counts, rows),) = run_in_child(
        child_processes, fork_beside_a_writing_thread, path=str(path), mode=mode, forks=forks
    )
    assert counts == [rows, 0, 0]
    found = numbers(path)
    assert len(found) == len(set(found))
    assert set(found) == {*range(1, rows + 1), *range(1_000_000, 1_000_000 + forks)}


def fork_while_a_thread_creates_an_exporter(say: Say, path: str) -> None:
    """Fork while another thread holds the lock that all exporters of the process use when they are created."""
    locked = threading.Event()

    def hold() -> None:
        with csv_exporter._registry_lock:
            locked.set()
            time.sleep(0.1)

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait()
    joined(fork(lambda: export(CSVSpanExporter(path), 1), seconds=5))
    thread.join()
    export(CSVSpanExporter(path), 2)
    say("written")


def test_a_child_forked_while_another_thread_creates_an_exporter_can_create_one(
    child_processes: Children, tmp_path: Path
) -> None:
    path = tmp_path / "logs.csv"
    assert run_in_child(child_processes, fork_while_a_thread_creates_an_exporter, path=str(path)) == ["written"]
    assert numbers(path) == [1, 2]
