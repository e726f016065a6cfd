"""A log written by a thread of its own, so that a disk which hangs holds up no call.

Rows are queued in memory, bounded, and written some milliseconds later, many at once. That is what it costs: a killed
process loses what is queued. Knows neither files nor what a row means.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Protocol

from otel_connector._exit._before_exit import EXIT_TIMEOUT, finish_before_exit
from otel_connector._record import RowCounts

if TYPE_CHECKING:
    from collections.abc import Sequence

_logger = logging.getLogger("otel_connector")

_GATHERING = 0.01  # seconds in which rows gather: a thread that woke up for each would take the calls' turns
_IDLE = 1.0  # seconds after which a thread without work ends
_ROWS_AT_ONCE = 1_000  # of the queue, so that what is in the thread's hands stays small

_queues: weakref.WeakSet[BackgroundRows] = weakref.WeakSet()
_without_thread: set[BackgroundRows] = set()  # with rows for the end of the program, and maybe nobody who holds them


class Rows(Protocol):
    """Where the rows go; may block for as long as it likes."""

    def write(self, rows: Sequence[bytes]) -> bool: ...
    def flush(self) -> bool: ...
    def close(self) -> bool: ...
    def counts(self) -> RowCounts: ...
    def start_over(self) -> None: ...


class BackgroundRows:
    """Hands rows to a thread that writes them. Thread-safe.

    Args:
        rows: Where they go.
        limit: Bytes that may be queued; rows beyond that are lost, the newest first.
        name: What log lines call the file.
    """

    def __init__(self, rows: Rows, limit: int, name: str) -> None:
        self._rows = rows
        self._limit = limit
        self._name = name
        self._closed = False
        self._taken = 0  # rows ever queued
        self._refused = 0  # rows for which there was no room, or which came too late
        self._parents = 0  # rows that were queued when this process was forked off
        self._forget()
        _queues.add(self)

    def _forget(self) -> None:
        self._state = threading.Condition()  # on a lock that a signal handler may take again
        self._queue: deque[bytes] = deque()
        self._bytes = 0  # of the queue and of what the thread has in its hands
        self._running = False
        self._busy = False  # whether the thread has rows in its hands
        self._idle = False  # whether it waits for some
        self._hurry = threading.Event()

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
                    self._taken += 1
            if self._idle:
                self._state.notify_all()
            elif not self._running and self._queue:
                self._start_thread()
        return complete

    def flush(self, seconds: float) -> bool:
        """Wait until every row is in the file, but no longer than `seconds`; True if they are."""
        give_up = time.monotonic() + seconds
        self._hurry.set()
        with self._state:
            while self._running and (self._queue or self._busy):
                if not self._state.wait(max(give_up - time.monotonic(), 0.0)):
                    return False
            rows = list(self._queue)  # for which no thread could be started any more
            self._queue.clear()
            self._bytes -= sum(map(len, rows))
            _without_thread.discard(self)
        self._rows.write(rows)
        # What the disk refused waits behind the queue; it did not hang a moment ago
        return self._rows.flush()

    @property
    def busy(self) -> bool:
        """False: the thread that writes is not the one that a signal's handler interrupts."""
        return False

    def finish(self, seconds: float) -> None:
        """Write what is queued before the process ends."""
        if not self.flush(seconds) and not self._closed:
            waiting = self.counts().waiting
            _logger.warning("%s: the disk did not take %d rows in time, which are lost now", self._name, waiting)

    def close(self, seconds: float = EXIT_TIMEOUT) -> bool:
        """Write what is queued and close the file, in `seconds`; True if no row was left behind. Safe to call again."""
        complete = self.flush(seconds)
        with self._state:
            self._closed = True
            hangs = self._busy
            self._refused += len(self._queue)
            self._taken -= len(self._queue)
            self._queue.clear()
            self._hurry.set()
            self._state.notify_all()
        if not hangs:  # else the thread closes it, should it ever come back
            complete = self._rows.close() and complete
        return complete

    def counts(self) -> RowCounts:
        """Return what became of the rows so far. Never waits, not even for a disk that hangs."""
        written, _, lost = self._rows.counts()
        waiting = self._taken - written - lost
        return RowCounts(written=written + self._parents, waiting=waiting, lost=lost + self._refused)

    def _start_thread(self) -> None:
        finish_before_exit(self)
        self._hurry.clear()
        try:
            threading.Thread(target=self._run, name="otel_connector.log", daemon=True).start()
            self._running = True
        except RuntimeError:  # the process ends, and no thread can be started any more: `finish` writes the rows
            _without_thread.add(self)

    def _run(self) -> None:
        """Write what is queued, until nothing was for a while."""
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
                self._hurry.wait(_GATHERING)
        except BaseException:
            with self._state:  # the next row starts another one
                self._running = False
                self._state.notify_all()
            raise

    def _next(self) -> list[bytes]:
        """Take some rows off the queue; none if the thread is not needed any more."""
        with self._state:
            if not self._queue and not self._closed:
                self._idle = True
                self._state.wait(_IDLE)
                self._idle = False
            rows = [self._queue.popleft() for _ in range(min(len(self._queue), _ROWS_AT_ONCE))]
            self._busy = self._running = bool(rows)
            return rows

    def start_over(self) -> None:
        """Begin as the child of a fork, whose parent writes what is queued."""
        self._rows.start_over()
        waiting = self.counts().waiting
        self._taken -= waiting
        self._parents += waiting
        self._forget()


def _after_fork() -> None:
    for queue in list(_queues):
        queue.start_over()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
