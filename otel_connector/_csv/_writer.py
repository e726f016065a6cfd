"""The rows of one log, none of which is lost, whatever the disk does.

A row is in the file before `RowWriter.write` returns. What the disk refuses is kept, in order, bounded, and written
before anything newer. The file is followed when it is renamed, rotated when it is full, opened anew after a fork, and
written again since the last good fsync when one fails. Knows neither what a row means nor who calls.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
import weakref
from collections import deque
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from otel_connector._csv._file import LogFile
from otel_connector._exit._before_exit import finish_before_exit
from otel_connector._guard import pass_on
from otel_connector._record import RowCounts

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

_logger = logging.getLogger("otel_connector")

BACKLOG_BYTES = 64 * 2**20
"""Bytes of rows kept while the disk refuses them: some 300,000 rows of a usual length."""

_WARNING_INTERVAL = 60.0  # seconds between two log lines about one failing file
_WRITTEN_AT_ONCE = 256  # rows of the backlog in one write
_LOOK_INTERVAL = 0.001  # seconds between two looks at where the path leads: a look costs as much as two rows
_CARE_INTERVAL = 1.0  # seconds between two tries to write what waits when no new rows come

# What says nothing against the descriptor: no room, no turn
_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EWOULDBLOCK})

# Seconds that a row waits for another writer's turn, and those that come after one which waited in vain
_PATIENCE, _LITTLE_PATIENCE = 1.0, 0.002

_writers: weakref.WeakSet[RowWriter] = weakref.WeakSet()
_with_rows_in_hand: set[RowWriter] = set()  # kept alive, because nobody else may be holding them


class RowWriter:
    """Appends rows to one CSV file. Thread-safe.

    Args:
        path: The file; created if it is not there.
        header: Its first line, with the line end; written once, whoever comes first.
        overwrite: Empty the file first.
        permissions: Mode of a file that is created.
        backlog_bytes: Bytes of rows kept while the disk refuses them; beyond that the newest are lost.
        fsync_interval: Seconds after which written rows are on the disk itself; 0 for every row, None for never.
        rotate_rows: Rows after which the file gets a number into its name and a new one begins.
        rotate_bytes: The same, by the size of the file.
        monotonic: The clock, in seconds.

    Raises:
        OSError: The file cannot be opened, or is not a regular file; the message starts with ``logfile``.
        ValueError: The file has another header; nothing in it is changed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: bytes,
        *,
        overwrite: bool = False,
        permissions: int = 0o600,
        backlog_bytes: int = BACKLOG_BYTES,
        fsync_interval: float | None = None,
        rotate_rows: int | None = None,
        rotate_bytes: int | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = os.fspath(path)
        # Not normalised, which would take a link and its ".." for nothing
        self._absolute = self.path if os.path.isabs(self.path) else _in_this_folder(self.path)  # noqa: PTH117 - a str
        self._header = header
        self._permissions = permissions
        self._backlog_bytes = backlog_bytes
        self._fsync_interval = fsync_interval
        self._rotate_rows = rotate_rows
        self._rotate_bytes = rotate_bytes
        self._monotonic = monotonic
        self._closed = False
        self._warned_at = -_WARNING_INTERVAL
        self._rotations = 0
        self._taken = self._lost = 0  # rows that ever came, and those given up; the others wait or are written
        self._forget()
        self._log: LogFile | None = self._open(overwrite=overwrite)
        _writers.add(self)

    def _forget(self) -> None:
        """Have nothing in hand: at the start, and in a child, whose parent goes on with what it had."""
        self._lock = threading.RLock()  # a signal handler may interrupt `write`, and ask for more
        # There is no public way to ask it; `threading.Condition` does the same
        self._is_owned: Callable[[], bool] = cast("Any", self._lock)._is_owned  # noqa: SLF001
        self._failure: Exception | None = None  # not logged yet
        self._patience = _PATIENCE
        self._new: Sequence[bytes] = ()  # rows that came with the call that is writing
        self._tried: Sequence[bytes] = ()  # rows that are being written: new ones, or the first of the backlog
        self._backlog: deque[bytes] = deque()  # whole rows; of the first, the file may have the beginning
        self._waiting_bytes = 0
        self._unsynced: deque[bytes] = deque()  # written since the last good fsync, if there are to be any
        self._unsynced_bytes = 0
        self._flusher: threading.Event | None = None  # ends the thread that looks after what is in hand
        self._look_at = 0.0

    @property
    def busy(self) -> bool:
        """Whether this very thread is in the middle of a write, which a signal's handler has interrupted."""
        # No flag of our own: a handler that raises could leave it standing
        return self._is_owned()

    def write(self, rows: Sequence[bytes]) -> bool:
        """Append whole rows; True if they are in the file when this returns.

        Never raises for what the disk does: rows that could not be written wait for the next call, in order, and are
        counted.
        """
        if not rows:
            return True
        interrupts = self._is_owned()
        with self._lock:
            if self._closed:
                self._taken += len(rows)
                self._lost += len(rows)
                self._failure = OSError(errno.EBADF, "it was closed; the rows are lost")
                complete = False
            elif interrupts:  # what is being written is written first
                for row in rows:
                    self._taken += 1
                    self._keep(row)
                complete = False
            else:
                complete = self._write_now(rows)
        if self._failure is not None:
            self._warn()
        return complete

    def _write_now(self, rows: Sequence[bytes]) -> bool:
        """Write the rows, after those that wait; True if none waits then."""
        try:
            if self._tried or self._new:
                self._recover()
            self._new, self._taken = rows, self._taken + len(rows)  # in one step: see `_recover`
            if self._backlog:
                self._drain()
            if not self._backlog:
                while self._new and self._try(self._new):
                    pass
            if self._new:
                self._keep_new()
        except BaseException:  # a signal's handler raised; what is undone is done by whoever comes next, or at the end
            _with_rows_in_hand.add(self)
            finish_before_exit(self)
            if self._log is not None:
                self._log.unlock()
            raise
        if self._backlog or self._unsynced:
            self._start_or_stop_flusher()
        return not self._backlog

    @contextmanager
    def _turn(self) -> Generator[None]:
        """Be the only one who writes."""
        with self._lock:
            self._recover()
            yield

    def _recover(self) -> None:
        """Go on where a signal's handler, which may raise between any two steps, had a write end.

        Whether the rows are in the file is not remembered by then, so they are looked for.
        """
        if self._tried:
            self._account(0 if self._log is None else self._log.landed(self._tried))
        self._keep_new()

    def flush(self) -> bool:
        """Write what waits, and fsync if that is asked for; True if nothing is in hand any more.

        Whoever interrupted a write to ask gets False: it goes on when they return.
        """
        if self.busy:
            return False
        with self._turn():
            self._drain()
            if self._log is not None and self._unsynced:
                self._sync_now(self._log)
            complete = not self._backlog
            self._start_or_stop_flusher()
        self._warn()
        return complete

    def finish(self, seconds: float) -> None:
        """Do what is left to do before the process ends; a disk that hangs is waited for."""
        del seconds
        if self.busy:
            return
        if not self.flush() and not self._closed:
            _logger.warning("%s: the disk refuses %d rows, which are lost now", self.path, self.counts().waiting)

    def close(self) -> bool:
        """Write what waits and close the file; True if no row was left behind. Safe to call again.

        Whoever interrupted a write to ask gets False, and the file stays open.
        """
        if self.busy:
            return False
        complete = self.flush()
        with self._turn():
            self._closed = True
            self._lost += len(self._backlog)
            self._backlog.clear()
            self._unsynced.clear()
            self._waiting_bytes = self._unsynced_bytes = 0
            self._start_or_stop_flusher()
            if self._log is not None:
                self._failure = self._log.close()
                self._log = None
        self._warn()
        return complete

    def counts(self) -> RowCounts:
        """Return what became of the rows so far. Never waits, not even for a disk that hangs."""
        waiting, lost = len(self._backlog) + len(self._new), self._lost
        return RowCounts(written=self._taken - waiting - lost, waiting=waiting, lost=lost)

    def _try(self, rows: Sequence[bytes]) -> int:
        """Write what of the rows goes into the file, and return how many that were; 0 if the disk refuses.

        Args:
            rows: The new ones, or the first of the backlog.
        """
        self._tried = rows
        try:
            done = self._append(rows)
        except (OSError, ValueError) as error:
            self._tried = ()
            self._note_refusal(error)
            return 0
        if done == len(rows) and rows is self._new:  # as nearly always
            self._new = ()
            self._tried = ()  # after it: see `_recover`
        else:
            self._account(done)
        self._patience = _PATIENCE
        if self._fsync_interval is not None and (log := self._log) is not None:
            return done if self._note_unsynced(log, rows[:done]) else 0
        return done

    def _account(self, done: int) -> None:
        """Note that so many of the rows tried are in the file."""
        if self._tried is self._new:
            self._new = self._new[done:]
        else:
            for row in self._tried[:done]:
                if self._backlog and self._backlog[0] is row:  # else it is noted already: see `_recover`
                    self._waiting_bytes -= len(self._backlog.popleft())
        self._tried = ()

    def _note_refusal(self, error: Exception) -> None:
        self._failure = error
        number = error.errno if isinstance(error, OSError) else None
        self._patience = _LITTLE_PATIENCE if number == errno.EWOULDBLOCK else _PATIENCE
        if number not in _PASSING and self._log is not None:
            # Behind the path there may be a better file by now: the disk was replaced, the server came back (ESTALE)
            self._let_go(self._log)

    def _append(self, rows: Sequence[bytes]) -> int:
        """Write the rows for which the file has room; return how many of them are in it as a whole."""
        data = rows[0] if len(rows) == 1 else b"".join(rows)
        log = self._log
        if log is None or self._monotonic() >= self._look_at:
            log = self._current()
        whole = log.append(data, self._patience)
        while log.full:
            log = self._after_rotation(log)
            whole = log.append(data, self._patience)
        if whole == len(data):
            return len(rows)
        done = 0
        while whole >= len(rows[done]):
            whole -= len(rows[done])
            done += 1
        if log.refusal is not None:
            self._failure = log.refusal
            if not done:
                raise log.refusal
        return done

    def _keep_new(self) -> None:
        """Have the rows wait that came and could not be written."""
        while self._new:
            row = self._new[0]
            if not self._backlog or self._backlog[-1] is not row:  # else a signal's handler raised in this loop
                self._keep(row)
            self._new = self._new[1:]

    def _keep(self, row: bytes) -> None:
        # The first is kept at any length: the file may have its beginning, to which the next would be glued
        if self._backlog and self._waiting_bytes + len(row) > self._backlog_bytes:
            self._lost += 1
        else:
            self._waiting_bytes += len(row)
            self._backlog.append(row)

    def _drain(self) -> None:
        """Write what waits, some rows at a time, so that trying costs the same however many wait."""
        while self._backlog and self._try(list(islice(self._backlog, _WRITTEN_AT_ONCE))):
            pass

    def _warn(self) -> None:
        """Log the last failure; without the lock, because a handler may do anything."""
        error, self._failure = self._failure, None
        if error is not None and (now := self._monotonic()) - self._warned_at >= _WARNING_INTERVAL:
            self._warned_at = now
            try:
                _logger.warning("%s cannot be written, %d rows wait: %s", self.path, self.counts().waiting, error)
            except BaseException as problem:  # noqa: BLE001 - an application's handler, which must not reach the call
                pass_on(problem)

    # Which file

    def _current(self) -> LogFile:
        """Return the file that the path leads to, with room for a row."""
        self._look_at = self._monotonic() + _LOOK_INTERVAL
        if self._log is not None and self._log.moved:
            self._follow(self._log)
        if self._log is None:
            self._log = self._open()
        return self._log

    def _open(self, *, overwrite: bool = False) -> LogFile:
        return LogFile(
            self._absolute,
            self._header,
            overwrite=overwrite,
            permissions=self._permissions,
            most_rows=self._rotate_rows,
            most_bytes=self._rotate_bytes,
            lasting=self._fsync_interval is not None,
        )

    def _follow(self, log: LogFile) -> None:
        """Go on in the file that the path leads to now; what was written before stays where it is."""
        try:
            new = self._open()
        except (OSError, ValueError) as error:
            if not log.has_name:
                raise
            self._failure = error  # until there is a new one the old file takes the rows, under its new name
            return
        waiting = len(self._backlog)
        self._let_go(log)
        self._log = new
        if len(self._backlog) > waiting:
            raise OSError(errno.EIO, "it has another name now, and its last rows could not be fsynced")

    def _let_go(self, log: LogFile) -> None:
        """Close the file, with its rows on the disk if that is asked for; else they wait to be written again."""
        if not self._unsynced or self._sync_now(log):
            self._log = None
            if (error := log.close()) is not None:
                self._failure = error

    def _after_rotation(self, log: LogFile) -> LogFile:
        """Give a full file a name with a number, and return the new one.

        Where that is refused, or no new file can be made, the old one is returned and grows on: the rows matter more
        than its size.
        """
        self._look_at = 0.0
        try:
            log.rename(self._next_part)
        except OSError as error:
            self._failure = error
            log.lift_limits()
        new = self._current()
        if new is log:
            log.lift_limits()
        return new

    def _next_part(self, name: str) -> str:
        """Return the next name that is free for a file of that name: ``logs.000001.csv`` for ``logs.csv``.

        Raises:
            OSError: Nobody can tell whether it is.
        """
        stem, suffix = os.path.splitext(name)  # noqa: PTH122 - what is passed on is a str
        while True:
            self._rotations += 1
            part = f"{stem}.{self._rotations:06d}{suffix}"
            try:
                os.lstat(part)
            except FileNotFoundError:
                return part

    # What the disk itself has

    def _note_unsynced(self, log: LogFile, rows: Sequence[bytes]) -> bool:
        """Remember rows that were written; False if they had to be synced at once, and the disk did not."""
        self._unsynced.extend(rows)
        self._unsynced_bytes += sum(map(len, rows))
        if not self._fsync_interval or self._unsynced_bytes > self._backlog_bytes:
            return self._sync_now(log)
        return True

    def _sync_now(self, log: LogFile) -> bool:
        try:
            log.synced = log.sync()
        except OSError as error:
            self._write_again(log, error)
            return False
        self._unsynced.clear()
        self._unsynced_bytes = 0
        return True

    def _write_again(self, log: LogFile, error: OSError) -> None:
        """After a failed fsync: believe in none of the rows since the last good one, nor in the next fsync.

        The kernel may have dropped the pages and called them clean, so that another fsync would succeed with the rows
        gone (https://wiki.postgresql.org/wiki/Fsync_Errors). They are written once more, through a new descriptor; if
        another program wrote in between they cannot be cut off before, and may then be there twice.
        """
        self._failure = error
        with suppress(OSError):
            log.take_back()
        log.close()
        self._log = None
        self._backlog.extendleft(reversed(self._unsynced))
        self._waiting_bytes += self._unsynced_bytes
        self._unsynced.clear()
        self._unsynced_bytes = 0

    # What is in hand

    def _start_or_stop_flusher(self) -> None:
        """Have a thread look after the rows in hand, which need it also when no further row comes; or let it end."""
        if not self._backlog and not self._unsynced:
            _with_rows_in_hand.discard(self)
            if self._flusher is not None:
                self._flusher.set()
                self._flusher = None
        elif self._flusher is None and not self._closed:
            _with_rows_in_hand.add(self)
            finish_before_exit(self)
            self._flusher = threading.Event()
            interval = self._fsync_interval or _CARE_INTERVAL
            with suppress(RuntimeError):  # the process ends, and no thread can be started any more
                threading.Thread(
                    target=_flush_periodically,
                    args=(self, self._flusher, interval),
                    name="otel_connector.log",
                    daemon=True,
                ).start()

    def flush_periodically(self, care: threading.Event) -> None:
        """Try to write what waits, and fsync without holding up a call."""
        with self._turn():
            if self._flusher is not care:
                return
            self._drain()
            log, unsynced = self._log, len(self._unsynced)
        end, failure = None, None
        try:
            if log is not None and unsynced:
                end = log.sync_beside()
        except OSError as error:
            failure = error
        with self._turn():
            if self._flusher is not care:
                return
            if log is not None and log is self._log and unsynced:
                if failure is not None:
                    self._write_again(log, failure)
                elif end is not None:
                    log.synced = end
                    for _ in range(min(unsynced, len(self._unsynced))):
                        self._unsynced_bytes -= len(self._unsynced.popleft())
            self._start_or_stop_flusher()
        self._warn()

    def start_anew(self) -> None:
        """Begin as the child of a fork: with a descriptor of its own, and without the rows that its parent writes."""
        _with_rows_in_hand.discard(self)  # what waits counts as written from now on: the parent does that
        if self._log is not None:
            self._log.abandon()
            self._log = None
        self._forget()


def _in_this_folder(path: str) -> str:
    try:
        return os.path.join(os.getcwd(), path) if path else path  # noqa: PTH109, PTH118 - a str
    except FileNotFoundError as error:
        raise OSError(errno.ENOENT, "logfile: the current folder is gone", path) from error


def _flush_periodically(writer: RowWriter, care: threading.Event, interval: float) -> None:
    while not care.wait(interval):
        writer.flush_periodically(care)


def _after_fork() -> None:
    for writer in list(_writers):
        writer.start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
