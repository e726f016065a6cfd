"""A queue of rows with its own writer thread, so that a disk that hangs blocks no call.

Rows are queued in memory, within a limit, and written some milliseconds later, many at a time. The cost: a killed
process loses the queued rows. This file knows neither files nor what a row means.

`SerialExecutor` does not fit here: its queue has no limit, and its thread does not end while it is idle.

Used by ``csv_exporter``.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from otel_connector._after_fork import start_over_in_child
from otel_connector._exit._before_exit import EXIT_TIMEOUT, finish_before_exit
from otel_connector._record import RowCounts
from otel_connector._units import counted

_logger = logging.getLogger("otel_connector")

_GATHERING = 0.01  # seconds in which rows are collected: waking the thread for each row would slow the calls down
_IDLE = 1.0  # seconds after which a thread without work ends
_BATCH = 1_000  # rows in one write of the thread
_LOST = "%s: %s lost, because the disk did not take them in time"

_without_thread: set[BackgroundRows] = set()  # kept alive: their rows are written at exit


class Rows(Protocol):
    """The destination of the rows. Its methods may block, except `counts`."""

    def write(self, rows: Sequence[bytes]) -> bool: ...
    def flush(self) -> bool: ...
    def close(self) -> bool: ...
    def counts(self) -> RowCounts: ...
    def start_over(self) -> None: ...


class BackgroundRows:
    """Passes rows to a thread that writes them. Thread-safe.

    Args:
        rows: Their destination.
        limit: Bytes that may be queued; further rows are lost.
        name: The name of the file in log lines.
    """

    busy = False  # signal handlers interrupt the main thread, not the writer thread

    def __init__(self, rows: Rows, limit: int, name: str) -> None:
        self._rows = rows
        self._limit = limit
        self._name = name
        self._closed = False
        self._reset()
        start_over_in_child(self)

    def _reset(self) -> None:
        self._received = 0  # rows ever queued
        self._refused = 0  # rows for which there was no room, or that came after `close`
        self._state = threading.Condition()  # with a reentrant lock, for signal handlers
        self._queue: deque[bytes] = deque()
        self._bytes = 0  # of the queued rows and those that the thread is writing
        self._running = False
        self._busy = False  # whether the thread is writing
        self._no_gathering = threading.Event()

    def write(self, rows: Sequence[bytes]) -> bool:
        """Queue the rows; False if there was no room for one of them."""
        complete = True
        with self._state:
            for row in rows:
                if self._closed or self._bytes + len(row) > self._limit:
                    self._refused += 1
                    complete = False
                else:
                    self._queue.append(row)
                    self._bytes += len(row)
                    self._received += 1
            self._state.notify_all()
            if not self._running and self._queue:
                self._start_thread()
        return complete

    def flush(self, seconds: float) -> bool:
        """Wait until every row is in the file, for at most `seconds`; True if they are."""
        self._no_gathering.set()
        with self._state:
            if not self._state.wait_for(lambda: not (self._running and (self._queue or self._busy)), seconds):
                return False
            rows = list(self._queue)  # no thread could be started for these
            self._queue.clear()
            self._bytes -= sum(map(len, rows))
            _without_thread.discard(self)
        self._rows.write(rows)
        # The destination may keep rows that the disk refused. The disk does not hang: the thread has ended its write
        return self._rows.flush()

    def finish(self, seconds: float) -> None:
        """Write the queued rows before the process ends."""
        if not self.flush(seconds) and (waiting := self.counts().waiting):
            _logger.warning(_LOST, self._name, counted(waiting, "row"))

    def close(self, seconds: float = EXIT_TIMEOUT) -> bool:
        """Write the queued rows and close the file, within `seconds`; True if no row is lost. Safe to call again."""
        complete = self.flush(seconds)
        with self._state:
            self._closed = True
            hangs, queued = self._busy, len(self._queue)
            self._refused += queued
            self._received -= queued
            self._queue.clear()
            self._no_gathering.set()
            self._state.notify_all()
        if queued:
            _logger.warning(_LOST, self._name, counted(queued, "row"))
        if not hangs:  # otherwise the thread closes it, if its write ever ends
            complete = self._rows.close() and complete
        return complete

    def counts(self) -> RowCounts:
        """Return the numbers of written, waiting and lost rows. Never blocks, not even while a disk hangs."""
        written, _, lost = self._rows.counts()
        waiting = self._received - written - lost
        return RowCounts(written=written, waiting=waiting, lost=lost + self._refused)

    def _start_thread(self) -> None:
        finish_before_exit(self)
        self._no_gathering.clear()
        try:
            threading.Thread(target=self._run, name="otel_connector.log", daemon=True).start()
            self._running = True
        except RuntimeError:  # the process ends and starts no further thread; `finish` writes the rows
            _without_thread.add(self)

    def _run(self) -> None:
        """Write the queued rows; return after some idle time."""
        try:
            while rows := self._next():
                try:
                    self._rows.write(rows)
                finally:
                    with self._state:
                        self._bytes -= sum(map(len, rows))
                        self._busy = False
                        closed = self._closed
                        self._state.notify_all()
                if closed:
                    self._rows.close()
                self._no_gathering.wait(_GATHERING)
        except BaseException:  # raised again
            with self._state:  # the next row starts a new thread
                self._running = False
                self._state.notify_all()
            raise

    def _next(self) -> list[bytes]:
        """Take rows from the queue; none if the thread must end."""
        with self._state:
            if not self._queue and not self._closed:
                self._state.wait(_IDLE)
            rows = [self._queue.popleft() for _ in range(min(len(self._queue), _BATCH))]
            self._busy = self._running = bool(rows)
            return rows

    def start_over(self) -> None:
        """Continue in the child of a fork, without the queued rows, which the parent writes, and its counts."""
        self._rows.start_over()
        self._reset()
