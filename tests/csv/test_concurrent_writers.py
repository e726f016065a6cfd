"""One log and many who write it: processes, connectors, threads with loops of their own, and both sides of a fork.

Whoever writes and however it ends: one header, no line broken or glued, every row once.
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
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support import failing_calls
from support.failing_calls import WRITES, Children, Fault, Say, children, export, fork, joined, numbers
from support.logs import Log

from otel_connector import AsyncConnector, CSVSpanExporter
from otel_connector.testing import FaultServer, ok

in_processes = pytest.mark.skipif(bool(failing_calls.MISSING), reason=failing_calls.MISSING)
in_both_modes = pytest.mark.parametrize("mode", ["call", "background"])

REFUSED = asdict(Fault(action="fail", value=errno.EIO, times=-1, only=WRITES))
PART_OF_A_ROW = asdict(Fault(action="full", value=100, times=-1, only=WRITES))
KILLED_IN_A_ROW = asdict(Fault(action="torn", value=500, only=WRITES))
ALWAYS_SHORT = asdict(Fault(action="short", value=400, times=-1, only=WRITES))


@pytest.fixture(scope="module")
def child_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Children]:
    with children(failing_calls.compiled(tmp_path_factory.mktemp("shim")), __file__) as prepared:
        yield prepared


@pytest.fixture
def server(server: FaultServer) -> FaultServer:
    server.script("/", ok)
    return server


def exporter(path: str, mode: str) -> CSVSpanExporter:
    options: dict[str, Any] = {} if mode == "call" else {"mode": mode}
    return CSVSpanExporter(path, **options)


def told(child_processes: Children, *arguments: Any, **named: object) -> list[Any]:
    """Run a function in a child, which has to end well, and return what it said."""
    ended = child_processes.run(*arguments, **named)
    assert ended.code == 0
    return ended.said


def opened_again(path: Path) -> list[int]:
    """Return the rows of a log after the next writer has opened it."""
    CSVSpanExporter(path).shutdown()
    return numbers(path)


# Processes that know nothing of each other.


def append(say: Say, path: str, appenders: int, rows: int, fault: dict[str, Any] | None = None) -> None:
    """Have so many processes open the log at the same moment and write their rows."""
    ready, be_ready = os.pipe()
    go, let_go = os.pipe()

    def run(first: int) -> None:
        os.close(let_go)
        os.write(be_ready, b".")
        os.read(go, 1)  # returns when the last one who holds the other end has closed it
        own = CSVSpanExporter(path)
        if fault is not None:
            failing_calls.arm(path, fault)
        for number in range(first, first + rows):
            export(own, number, number % 300)
        own.force_flush()
        assert own.counts() == (rows, 0, 0)
        own.shutdown()

    pids = [fork(partial(run, index * rows)) for index in range(appenders)]
    for _ in pids:
        os.read(ready, 1)
    os.close(let_go)
    joined(*pids)


@in_processes
def test_64_processes_append_to_one_file(child_processes: Children, tmp_path: Path) -> None:
    path, rows = tmp_path / "logs.csv", 50
    told(child_processes, append, path=str(path), appenders=64, rows=rows)
    found = numbers(path)
    assert sorted(found) == list(range(64 * rows))
    for first in range(0, 64 * rows, rows):
        own = [number for number in found if first <= number < first + rows]
        assert own == sorted(own), "in the order they were written"


@in_processes
def test_rows_written_in_pieces_by_several_processes_are_not_mixed(child_processes: Children, tmp_path: Path) -> None:
    path = tmp_path / "logs.csv"
    told(child_processes, append, path=str(path), appenders=4, rows=100, fault=ALWAYS_SHORT)
    assert sorted(numbers(path)) == list(range(400))


def die_in_a_row(say: Say, path: str) -> None:
    """Write beside a process that is killed in the middle of its row."""
    own = CSVSpanExporter(path)
    export(own, 1)

    def neighbour() -> None:
        other = CSVSpanExporter(path)
        export(other, 2)
        failing_calls.arm(path, KILLED_IN_A_ROW)
        export(other, 3)

    _, status = os.waitpid(fork(neighbour), 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    export(own, 4)
    export(own, 5)
    say(own.counts())
    own.shutdown()


@in_processes
def test_a_neighbour_killed_in_the_middle_of_its_row_takes_no_row_with_it(
    child_processes: Children, tmp_path: Path
) -> None:
    path = tmp_path / "logs.csv"
    assert told(child_processes, die_in_a_row, path=str(path)) == [[3, 0, 0]]
    assert opened_again(path) == [1, 2, 4, 5]


def write_beside_half_a_row(say: Say, path: str) -> None:
    """Write between the halves of a row that the disk took in two pieces."""
    own = CSVSpanExporter(path)
    export(own, 1)
    failing_calls.arm(path, PART_OF_A_ROW)
    export(own, 2)
    failing_calls.disarm()

    def neighbour() -> None:
        other = CSVSpanExporter(path)
        export(other, 3)
        other.shutdown()
        assert other.counts() == (1, 0, 0)

    joined(fork(neighbour))
    export(own, 4)
    say(own.counts())
    own.shutdown()


@in_processes
def test_a_neighbours_row_does_not_come_between_the_halves_of_another(
    child_processes: Children, tmp_path: Path
) -> None:
    path = tmp_path / "logs.csv"
    assert told(child_processes, write_beside_half_a_row, path=str(path)) == [[3, 0, 0]]
    assert sorted(opened_again(path)) == [1, 2, 3, 4]


# Several in one process.


async def calls(connector: AsyncConnector, url: str, projects: Iterable[int]) -> None:
    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(connector.get(session, url, str(project)) for project in projects))


def adds_up(connector: AsyncConnector) -> bool:
    stats = connector.stats()
    return stats.calls_started == stats.rows_written + stats.rows_waiting + stats.rows_lost + stats.calls_active


async def test_two_connectors_on_one_file(server: FaultServer, log: Log) -> None:
    first, second = AsyncConnector(log.path), AsyncConnector(f"{log.path.parent}/./{log.path.name}")
    await asyncio.gather(calls(first, server.url(), range(40)), calls(second, server.url(), range(40, 80)))
    await first.aclose()
    await calls(second, server.url(), range(80, 100))
    assert sorted(numbers(log.path)) == list(range(100))
    assert (first.stats().rows_written, second.stats().rows_written) == (40, 60)


@pytest.mark.parametrize("shared", [True, False], ids=["one-exporter", "an-exporter-each"])
@in_both_modes
def test_threads_with_loops_of_their_own(shared: bool, mode: str, server: FaultServer, log: Log) -> None:
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


# The two sides of a fork.


def fork_with_rows_waiting(say: Say, path: str, mode: str, fault: dict[str, Any], child_first: bool) -> None:
    """Fork while the disk has refused rows; both sides write when it is well again."""
    own = exporter(path, mode)
    export(own, 1)
    own.force_flush()
    failing_calls.arm(path, fault)
    for number in (2, 3, 4):
        export(own, number)
    own.force_flush()
    say(own.counts())
    go, let_go = os.pipe()

    def child() -> None:
        failing_calls.disarm()
        os.close(let_go)
        os.read(go, 1)
        assert own.counts().waiting == 0, "they are the parent's"
        written = own.counts().written
        for number in (5, 6):
            export(own, number)
        own.force_flush()
        assert own.counts() == (written + 2, 0, 0)
        own.shutdown()

    pid = fork(child)
    failing_calls.disarm()
    if child_first:
        os.close(let_go)
        joined(pid)
    export(own, 7)
    own.force_flush()
    if not child_first:
        os.close(let_go)
        joined(pid)
    say(own.counts())
    own.shutdown()


@pytest.mark.parametrize("child_first", [True, False], ids=["child-first", "parent-first"])
@pytest.mark.parametrize("fault", [REFUSED, PART_OF_A_ROW], ids=["refused", "part-of-a-row"])
@in_both_modes
@in_processes
def test_rows_that_wait_at_a_fork_are_the_parents(
    mode: str, fault: dict[str, Any], child_first: bool, child_processes: Children, tmp_path: Path
) -> None:
    path = tmp_path / "logs.csv"
    said = told(
        child_processes, fork_with_rows_waiting, path=str(path), mode=mode, fault=fault, child_first=child_first
    )
    assert said == [[1, 3, 0], [5, 0, 0]]
    assert sorted(opened_again(path)) == [1, 2, 3, 4, 5, 6, 7]


def fork_among_calls(say: Say, path: str, url: str, mode: str, refused: bool) -> None:
    own = exporter(path, mode)
    connector = AsyncConnector(own)
    asyncio.run(_fork_among_calls(connector, own, url, refused))
    assert adds_up(connector)
    asyncio.run(connector.aclose())
    own.shutdown()
    say(connector.stats().rows_written)


async def _fork_among_calls(connector: AsyncConnector, own: CSVSpanExporter, url: str, refused: bool) -> None:
    async with aiohttp.ClientSession() as session:
        under_way = [asyncio.ensure_future(connector.get(session, url, str(number))) for number in range(20)]
        if refused:
            failing_calls.arm(own.path, REFUSED)
        await asyncio.wait(under_way[:5])
        pid = fork(partial(call_in_the_child, connector, own, url))
        failing_calls.disarm()
        await asyncio.gather(*under_way)
    joined(pid)
    await calls(connector, url, range(20, 30))


def call_in_the_child(connector: AsyncConnector, own: CSVSpanExporter, url: str) -> None:
    failing_calls.disarm()
    assert adds_up(connector)
    asyncio.run(calls(connector, url, range(100, 110)))
    assert adds_up(connector)
    own.shutdown()
    assert adds_up(connector)
    assert connector.stats().rows_waiting == 0


@pytest.mark.parametrize("refused", [False, True], ids=["none-waits", "some-wait"])
@in_both_modes
@in_processes
def test_a_fork_among_calls(
    mode: str, refused: bool, child_processes: Children, server: FaultServer, tmp_path: Path
) -> None:
    path = tmp_path / "logs.csv"
    assert told(child_processes, fork_among_calls, path=str(path), url=server.url(), mode=mode, refused=refused) == [30]
    assert sorted(opened_again(path)) == [*range(30), *range(100, 110)]


def prefork(say: Say, path: str, url: str) -> None:
    """Make a connector, use it, and hand it on to workers, as a server that loads the application first does."""
    connector = AsyncConnector(path)
    asyncio.run(calls(connector, url, range(10)))
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=work, args=(connector, url, range(first, first + 10))) for first in range(10, 60, 10)
    ]
    for worker in workers:
        worker.start()
    asyncio.run(calls(connector, url, range(60, 70)))
    for worker in workers:
        worker.join()
    say([worker.exitcode for worker in workers])
    say(connector.stats().rows_written)


def work(connector: AsyncConnector, url: str, projects: range) -> None:
    asyncio.run(calls(connector, url, projects))
    if not adds_up(connector):
        sys.exit("the accounting does not add up")


@in_processes
def test_workers_of_a_prefork_server(child_processes: Children, server: FaultServer, tmp_path: Path) -> None:
    path = tmp_path / "logs.csv"
    assert told(child_processes, prefork, path=str(path), url=server.url()) == [[0] * 5, 20]
    assert sorted(opened_again(path)) == list(range(70))


def fork_and_end(say: Say, path: str) -> None:
    """Fork a child that never uses the connector and ends as a program does."""
    own = CSVSpanExporter(path)
    failing_calls.arm(path, REFUSED)
    export(own, 1)
    worker = multiprocessing.get_context("fork").Process(target=sys.exit)
    worker.start()
    worker.join()
    failing_calls.disarm()
    export(own, 2)
    say(own.counts())


@in_processes
def test_a_child_that_ends_at_once_writes_nothing(child_processes: Children, tmp_path: Path) -> None:
    path = tmp_path / "logs.csv"
    assert told(child_processes, fork_and_end, path=str(path)) == [[2, 0, 0]]
    assert numbers(path) == [1, 2]


def fork_beside_a_writing_thread(say: Say, path: str, mode: str, forks: int) -> None:
    """Fork while another thread is in the middle of a row, with whatever locks it holds."""
    sys.settrace(None)  # a coverage tool's own lock may be held at a fork, too, and this is not about that one
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
@in_processes
def test_a_fork_while_another_thread_writes_leaves_a_child_that_can_write(
    mode: str, child_processes: Children, tmp_path: Path
) -> None:
    path, forks = tmp_path / "logs.csv", 40
    ((counts, rows),) = told(child_processes, fork_beside_a_writing_thread, path=str(path), mode=mode, forks=forks)
    assert counts == [rows, 0, 0]
    found = numbers(path)
    assert len(found) == len(set(found))
    assert set(found) == {*range(1, rows + 1), *range(1_000_000, 1_000_000 + forks)}
