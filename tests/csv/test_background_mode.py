"""Tests of ``mode="background"``: the queue, the writer thread, hanging disks, forks and signals.

Also tests the validation of the arguments of `CSVSpanExporter`.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing.util
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from otel_connector import CSVSpanExporter, _after_fork
from otel_connector._csv import _background
from otel_connector._csv._background import BackgroundRows
from otel_connector._csv._writer import RowWriter
from otel_connector._exit import _before_exit
from otel_connector._exit._on_signal import checked_signals, finish_on
from otel_connector._record import RowCounts

HEADER = b"a,b\n"
LIMIT = 1_000


def row(number: int) -> bytes:
    return f"{number:018},\n".encode()


class HangingDisk:
    """Stores rows in a list. Every write hangs until `open` is set."""

    def __init__(self) -> None:
        self.rows: list[bytes] = []
        self.arrived = threading.Semaphore(0)
        self.open = threading.Event()
        self.closed = 0

    def write(self, rows: Sequence[bytes]) -> bool:
        self.arrived.release()
        assert self.open.wait(30)
        self.rows += rows
        return True

    def flush(self) -> bool:
        return True

    def close(self) -> bool:
        self.closed += 1
        return True

    def counts(self) -> RowCounts:
        return RowCounts(written=len(self.rows), waiting=0, lost=0)

    def start_over(self) -> None:
        pass


@pytest.fixture
def disk() -> Iterator[HangingDisk]:
    disk = HangingDisk()
    yield disk
    disk.open.set()


@pytest.fixture
def no_waiting_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_background, "_IDLE", 0.0)
    monkeypatch.setattr(_background, "_GATHERING", 0.0)


def rows_of(disk: HangingDisk, limit: int = LIMIT) -> BackgroundRows:
    return BackgroundRows(disk, limit, "logs.csv")


def make_thread_hang(rows: BackgroundRows, disk: HangingDisk) -> None:
    """Write a row and wait until the thread hangs in writing it."""
    assert rows.write([row(0)])
    assert disk.arrived.acquire(timeout=5)


def test_write_does_not_wait_for_a_disk_that_hangs(disk: HangingDisk) -> None:
    rows = rows_of(disk)
    make_thread_hang(rows, disk)
    for number in range(1, 10):
        assert rows.write([row(number)])
        assert rows.counts() == (0, number + 1, 0)
    assert not rows.flush(0.0)
    disk.open.set()
    assert rows.flush(5)
    assert disk.rows == [row(number) for number in range(10)]
    assert rows.counts() == (10, 0, 0)
    assert rows.close()


def test_the_queue_is_bounded_and_rows_beyond_it_are_counted_as_lost(disk: HangingDisk) -> None:
    rows = rows_of(disk, limit=3 * len(row(0)))
    make_thread_hang(rows, disk)
    assert [rows.write([row(number)]) for number in range(1, 5)] == [True, True, False, False]
    assert rows.counts() == (0, 3, 2)
    disk.open.set()
    assert rows.flush(5)
    assert rows.write([row(9)]), "there is room again"
    assert rows.flush(5)
    assert rows.counts() == (4, 0, 2)


def test_close_on_a_disk_that_hangs_returns_false_after_its_timeout(disk: HangingDisk) -> None:
    rows = rows_of(disk)
    make_thread_hang(rows, disk)
    rows.write([row(1)])
    assert not rows.close(0.0)
    assert rows.counts() == (0, 1, 1), "one row is still being written, one is lost"
    assert not rows.write([row(2)])
    assert rows.counts() == (0, 1, 2)
    disk.open.set()
    assert rows.flush(5)
    while not disk.closed:
        pass
    assert rows.counts() == (1, 0, 2)
    assert rows.close(5)


@pytest.mark.usefixtures("no_waiting_times")
def test_the_idle_thread_ends_and_the_next_write_starts_a_new_one(disk: HangingDisk) -> None:
    disk.open.set()
    rows, before = rows_of(disk), set(threading.enumerate())
    for number in range(5):
        assert rows.write([row(number)])
        for thread in set(threading.enumerate()) - before:
            thread.join(5)
    assert disk.rows == [row(number) for number in range(5)]


def test_a_write_wakes_the_idle_thread(disk: HangingDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_background, "_IDLE", 3_600.0)
    disk.open.set()
    rows = rows_of(disk)
    for number in range(20):
        assert rows.write([row(number)])
        assert disk.arrived.acquire(timeout=5)
    assert rows.close()
    assert len(disk.rows) == 20


def test_rows_are_written_at_exit_when_no_thread_can_be_started(
    disk: HangingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread can be started in a program that is already exiting."""

    def refuse(_: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    disk.open.set()
    rows = rows_of(disk)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert rows.write([row(0)])
    assert rows.counts() == (0, 1, 0)
    del rows
    gc.collect()
    _before_exit.finish(1)
    assert disk.rows == [row(0)]


def test_rows_that_a_hanging_disk_does_not_take_in_time_are_logged_as_lost(
    disk: HangingDisk, caplog: pytest.LogCaptureFixture
) -> None:
    rows = rows_of(disk)
    make_thread_hang(rows, disk)
    rows.finish(0.0)
    assert caplog.messages == ["logs.csv: 1 row lost, because the disk did not take them in time"]
    disk.open.set()
    assert rows.close()
    rows.finish(0.0)
    assert len(caplog.messages) == 1


def test_queued_rows_that_a_hanging_disk_does_not_take_before_the_end_are_logged_as_lost(
    disk: HangingDisk, caplog: pytest.LogCaptureFixture
) -> None:
    rows = rows_of(disk)
    make_thread_hang(rows, disk)
    rows.write([row(1), row(2)])
    for _ in range(2):
        assert not rows.close(0.0)
    assert caplog.messages == ["logs.csv: 2 rows lost, because the disk did not take them in time"]
    rows.finish(0.0)  # the process ends: the row that is being written is lost, too
    assert caplog.messages[1:] == ["logs.csv: 1 row lost, because the disk did not take them in time"]
    disk.open.set()
    rows.finish(5.0)
    assert len(caplog.messages) == 2


def test_after_a_fork_the_child_does_not_own_the_parents_queue(disk: HangingDisk) -> None:
    rows = rows_of(disk)
    make_thread_hang(rows, disk)
    rows.write([row(1)])
    _after_fork._after_fork()  # runs in a child: the thread and its rows belong to the parent
    assert rows.counts() == (0, 0, 0)
    disk.open.set()
    assert rows.write([row(2)])
    assert rows.flush(5)


def test_after_a_fork_the_child_does_not_own_the_parents_backlog(tmp_path: Path) -> None:
    path = tmp_path / "logs.csv"
    writer = RowWriter(path, HEADER)
    assert writer.write([row(0)])
    assert writer._log is not None
    parents, full = writer._log._fd, os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, parents)
    os.close(full)
    assert not writer.write([row(1)])
    _after_fork._after_fork()
    _after_fork._after_fork()  # runs again in a child of the child
    assert writer.counts() == (0, 0, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(parents)
    assert writer.write([row(2)])
    assert path.read_bytes() == HEADER + row(0) + row(2)


def test_a_multiprocessing_child_registers_the_exit_function_once(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[Any] = []
    monkeypatch.setattr(_before_exit, "_process_with_finalizer", 0)
    monkeypatch.setattr(multiprocessing.util, "Finalize", lambda *arguments, **options: registered.append(arguments))
    _before_exit.finish_multiprocessing_child()
    _before_exit.finish_multiprocessing_child()
    assert registered == [(None, _before_exit.finish)]


def test_an_exception_while_finishing_does_not_stop_the_other_writers() -> None:
    class Work:
        busy = False
        seconds = -1.0

        def finish(self, seconds: float) -> None:
            self.seconds = seconds
            raise RuntimeError

    works = [Work(), Work()]
    for work in works:
        _before_exit.finish_before_exit(work)
    _before_exit.finish(0.0)
    assert [work.seconds for work in works] == [0.0, 0.0]


class FailingDisk(HangingDisk):
    """Raises an unexpected exception in its first write."""

    def write(self, rows: Sequence[bytes]) -> bool:
        if not self.rows:
            self.rows.append(b"")
            raise SystemExit
        return super().write(rows)


def test_a_thread_that_dies_is_replaced_by_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    died = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _: died.set())
    disk = FailingDisk()
    disk.open.set()
    queue = BackgroundRows(disk, LIMIT, "logs.csv")
    queue.write([row(1)])
    queue.flush(5)
    assert died.wait(5)
    queue.write([row(2)])
    assert queue.flush(5)
    assert disk.rows == [b"", row(2)]
    assert queue.close()


# Signals


@pytest.fixture
def usr1() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("usr1")
@pytest.mark.parametrize("own", [True, False])
def test_the_programs_own_signal_handler_runs_after_finish(own: bool) -> None:
    ran: list[str] = []
    handler: Callable[..., object] | signal.Handlers = (lambda *_: ran.append("own")) if own else signal.SIG_IGN
    signal.signal(signal.SIGUSR1, handler)

    def finish() -> bool:
        ran.append("finish")
        return True

    finish_on(checked_signals((signal.SIGUSR1,)), finish)
    signal.raise_signal(signal.SIGUSR1)
    assert ran == ["finish", "own"][: 1 + own]


@pytest.mark.usefixtures("usr1")
def test_a_signal_with_the_default_action_still_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[tuple[int, object]] = []
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    finish_on([signal.SIGUSR1], lambda: True)
    raise_signal = signal.raise_signal
    monkeypatch.setattr(signal, "raise_signal", lambda number: raised.append((number, signal.getsignal(number))))
    raise_signal(signal.SIGUSR1)
    assert raised == [(signal.SIGUSR1, signal.SIG_DFL)]


@pytest.mark.usefixtures("usr1")
def test_a_signal_during_a_write_is_handled_again_after_the_write(tmp_path: Path) -> None:
    """The row is complete and written once before the handler runs, which may end the program."""
    log, ran, counted = tmp_path / "logs.csv", list[str](), list[RowCounts]()
    writer = RowWriter(log, b"h\n")

    def finish() -> bool:
        if _before_exit.interrupted():
            ran.append("interrupted")
            return False
        ran.append("finish")
        writer.finish(1.0)
        return True

    signal.signal(signal.SIGUSR1, lambda *_: ran.append("own"))
    finish_on([signal.SIGUSR1], finish)
    _before_exit.finish_before_exit(writer)

    class Rows(list[bytes]):
        def __getitem__(self, key: Any) -> Any:  # called in the middle of the write
            if not ran:
                signal.raise_signal(signal.SIGUSR1)
                writer.write([b"2\n"])
                assert not writer.flush()
                assert not writer.close()
                counted.append(writer.counts())
            return super().__getitem__(key)

    assert not writer.write(Rows([b"1\n"])), "the row from the signal handler still waits"
    while "own" not in ran:
        pass
    assert ran[0] == "interrupted"
    assert ran[-2:] == ["finish", "own"]
    assert sum(counted[0]) == 2
    assert log.read_bytes() == b"h\n1\n2\n"
    writer.close()


@pytest.mark.parametrize(
    ("signals", "kind", "text"),
    [
        ("SIGTERM", TypeError, "signals must be signals"),
        (15, TypeError, "signals must be signals"),
        (["SIGTERM"], TypeError, "signals must be signals"),
        ([True], TypeError, "signals must be signals"),
        ([0], ValueError, "signals: 0 is not a signal"),
        ([signal.SIGKILL], ValueError, "signals: SIGKILL cannot be handled"),
    ],
)
def test_invalid_signals_are_refused(signals: object, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        checked_signals(signals)


def test_signals_are_refused_outside_the_main_thread() -> None:
    errors: list[Exception] = []

    def check() -> None:
        try:
            checked_signals([signal.SIGTERM])
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])
    assert checked_signals(()) == []


# The exporter


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        (
            {"path": type("BytesPath", (), {"__fspath__": lambda _: b"logs.csv"})()},
            TypeError,
            "path must be .* of text",
        ),
        ({"path": b"logs.csv"}, TypeError, "path must be a path, not bytes"),
        ({"overwrite": 1}, TypeError, "overwrite must be True or False"),
        ({"mode": "thread"}, ValueError, "mode must be 'call' or 'background'"),
        ({"mode": None}, ValueError, "mode must be 'call' or 'background'"),
        ({"fsync_interval": -1}, ValueError, "fsync_interval must be 0 or more"),
        ({"fsync_interval": "1"}, TypeError, "fsync_interval must be a number"),
        ({"rotate_rows": 0}, ValueError, "rotate_rows must be at least 1"),
        ({"rotate_rows": 1.5}, TypeError, "rotate_rows must be an int"),
        ({"rotate_bytes": 0}, ValueError, "rotate_bytes must be at least 1"),
        ({"backlog_bytes": 0}, ValueError, "backlog_bytes must be at least 1"),
        ({"permissions": "600"}, TypeError, "permissions must be an int"),
        ({"permissions": 600}, ValueError, "permissions must let the owner read and write"),
        ({"permissions": 0o400}, ValueError, "permissions must let the owner read and write"),
        ({"permissions": 0o1600}, ValueError, "permissions must let the owner read and write"),
    ],
)
def test_an_invalid_argument_is_refused_and_no_file_is_created(
    arguments: dict[str, Any], kind: type[Exception], text: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=text):
        CSVSpanExporter(**{"path": tmp_path / "logs.csv", **arguments})
    assert not list(tmp_path.iterdir())


def test_force_flush_and_shutdown_of_an_idle_background_exporter(tmp_path: Path) -> None:
    exporter = CSVSpanExporter(tmp_path / "logs.csv", mode="background")
    assert exporter.force_flush(100)
    assert exporter.counts() == (0, 0, 0)
    logging.getLogger("otel_connector").debug("nothing to write")
    exporter.shutdown()
