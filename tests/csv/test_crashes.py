"""Tests of ``kill -9``: no row of a call that has returned is missing, and the next writer finds only whole rows.

A connector under load is killed at random moments, or in the middle of a write, which leaves a partial row.
After each kill the log is checked, and the next process continues it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support import failing_calls
from support.failing_calls import WRITES, Children, Fault, Say, children, records, records_in

from otel_connector import AsyncConnector, ConnectorError, CSVSpanExporter
from otel_connector._csv._format import HEADER
from otel_connector.testing import FaultServer, ok

CALLERS = 16
LATEST_KILL = 0.1
"""The longest time in seconds from the start of a process to its kill: enough for a hundred calls."""

CRASHES_PER_LOG = 100  # then a new log is started

duckdb_lock = threading.Lock()
"""DuckDB's default connection serves one thread at a time."""


# In the child.


def make_calls(say: Say, path: str, url: str, first: int, lengths: list[int], fault: dict[str, Any] | None) -> None:
    """Make calls forever, and report the number of each call after it has returned or raised."""
    connector = AsyncConnector(path, n_tries=1)
    if fault is not None:
        failing_calls.arm(path, fault)
    asyncio.run(_make_calls(say, connector, url, itertools.count(first), lengths))


async def _make_calls(say: Say, connector: AsyncConnector, url: str, count: Iterator[int], lengths: list[int]) -> None:

    async def caller(session: aiohttp.ClientSession) -> None:
        for number in count:
            filler, path = "x" * lengths[number % len(lengths)], "/ok" if number % 5 else "/missing"
            with contextlib.suppress(ConnectorError):
                await connector.get(session, f"{url}{path}?x={filler}", f'{number}, "in quotes"')
            say(number)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(caller(session) for _ in range(CALLERS)))


# In the test.


@dataclass
class CrashSeries:
    """A series of crashes of processes that write to the same log, one after the other."""

    path: Path
    server: FaultServer
    child_processes: Children
    chance: random.Random
    readers: tuple[Callable[[Path], list[list[str]]], ...]
    content: bytes = b""
    returned: int = 0
    torn: int = 0

    def crash(self, number: int, *, forced: bool) -> None:
        """Kill a connector once, and check the log that it leaves."""
        first = number * 1_000_000
        fault = Fault(
            action="torn", value=self.chance.randrange(1, 1_000), nth=self.chance.randrange(1, 40), only=WRITES
        )
        ended = self.child_processes.run(
            make_calls,
            None if forced else self.chance.uniform(0, LATEST_KILL),
            path=str(self.path),
            url=self.server.url()[:-1],
            first=first,
            lengths=[self.chance.choice([0, 0, 60, 400, 3_000]) for _ in range(7)],
            fault=asdict(fault) if forced else None,
        )
        assert ended.code == -signal.SIGKILL
        self.check_rows(first, ended.said)
        self.returned += len(ended.said)
        self.torn += self.repair(torn=forced)

    def check_rows(self, first: int, returned: list[int]) -> None:
        """Check the log after the crash, before it is repaired: every whole line can be read."""
        left = self.path.read_bytes() if self.path.exists() else b""
        assert left.startswith(self.content), "the earlier content is unchanged"
        lines = left[len(self.content) or len(HEADER) : left.rfind(b"\n") + 1]
        new = [int(record.project.partition(",")[0]) for record in records_in(lines)]
        assert len(new) == len(set(new)), "a row is there twice"
        assert set(returned) <= set(new), f"rows of calls that returned are missing: {set(returned) - set(new)}"
        assert len(new) <= len(returned) + CALLERS, "only calls in flight may have a further row"
        assert all(number >= first for number in new)

    def repair(self, *, torn: bool) -> bool:
        """Let the next writer open the log. Return whether it found a partial row; there must be one if `torn`."""
        left = self.path.read_bytes() if self.path.exists() else b""
        whole = left[: left.rfind(b"\n") + 1]
        tail = left[len(whole) :]
        assert tail or not torn
        beside = self.path.with_name(self.path.name + ".torn")
        before = beside.read_bytes() if beside.exists() else b""
        CSVSpanExporter(self.path).shutdown()
        self.content = self.path.read_bytes()
        assert self.content == (whole or HEADER)
        assert not tail or tail in beside.read_bytes()[len(before) :], "the torn tail is in the .torn file"
        return bool(tail)

    def check_readers(self) -> None:
        """Check that all readers get the same rows."""
        found = [record.call_id for record in records(self.path)]
        assert len(set(found)) == len(found)
        with duckdb_lock:
            for read in self.readers:
                assert [cells[0] for cells in read(self.path)] == found, read.__name__

    def crashes(self, numbers: Sequence[int]) -> None:
        """Crash once for every number. Every second crash leaves a partial row."""
        for index, number in enumerate(numbers):
            if index % CRASHES_PER_LOG == 0:
                self.path, self.content = self.path.with_name(f"{number}.csv"), b""
                self.server.reset_log()
            self.crash(number, forced=index % 2 == 0)
            if index % 20 == 19:
                self.check_readers()


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.script("/ok", ok)
        server.script("/missing", 404)
        yield server


@pytest.mark.parametrize(("kills", "threads"), [(6, 1), pytest.param(10_000, 2, marks=pytest.mark.soak)])
def test_no_row_of_a_call_that_returned_is_missing_after_kill_9(
    kills: int, threads: int, child_processes: Children, server: FaultServer, tmp_path: Path
) -> None:
    # Imported here, so that the children do not load them
    from support.records import read_csv, read_duckdb, read_pandas, read_polars

    readers = (read_csv, read_pandas, read_polars, read_duckdb)
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails

    def crashes(index: int) -> CrashSeries:
        with children(tmp_path) if index else nullcontext(child_processes) as prepared:
            series = CrashSeries(tmp_path / "logs.csv", server, prepared, random.Random(f"{seed} {index}"), readers)
            series.crashes(range(1 + index, kills + 1, threads))
            return series

    with ThreadPoolExecutor(threads) as pool:
        all_series = list(pool.map(crashes, range(threads)))
    assert sum(series.torn for series in all_series) >= kills // 2
    assert all(series.returned for series in all_series)


def test_a_log_killed_in_its_first_write_is_completed_by_the_next_writer(
    child_processes: Children, tmp_path: Path
) -> None:
    """The process is killed while it writes the header of a new log."""
    path = tmp_path / "logs.csv"
    for thousandths in (1, 500, 999):
        fault = Fault(action="torn", value=thousandths, only=WRITES)
        assert child_processes.run(open_log, path=str(path), fault=asdict(fault)).code == -signal.SIGKILL
        assert 0 < path.stat().st_size < len(HEADER)
        CSVSpanExporter(path).shutdown()
        assert path.read_bytes() == HEADER
        path.unlink()


def open_log(say: Say, path: str, fault: dict[str, Any]) -> None:
    failing_calls.arm(path, fault)
    CSVSpanExporter(path)


def make_five_calls(say: Say, path: str, url: str, fault: dict[str, Any] | None) -> None:
    if fault is not None:
        failing_calls.arm(path, fault)

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            connector = AsyncConnector(logfile=path, n_tries=3, timeout=5)
            for number in range(5):
                await connector.get(session, url, str(number))
                say(number)

    asyncio.run(main())


def test_a_program_killed_in_the_middle_of_a_row_can_be_run_again(
    child_processes: Children, server: FaultServer, tmp_path: Path
) -> None:
    path = tmp_path / "logs.csv"
    fault = asdict(Fault(action="torn", value=700, nth=5, only=WRITES))  # the header and three rows are whole
    program = partial(child_processes.run, make_five_calls, path=str(path), url=server.url("/ok"))
    assert program(fault=fault) == (-signal.SIGKILL, [0, 1, 2])
    assert not path.read_bytes().endswith(b"\n")

    assert program(fault=None) == (0, [0, 1, 2, 3, 4])
    assert [record.project for record in records(path)] == ["0", "1", "2", "0", "1", "2", "3", "4"]
