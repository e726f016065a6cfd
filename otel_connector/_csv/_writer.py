"""Writes the rows of one log, and keeps those that the disk refuses until it accepts them.

This file knows neither what a row means nor what calls it.

Theory of operation
-------------------
A row is in exactly one of these states:

- *new*: passed to `RowWriter.write`, in `_new`, until it is written or buffered.
- *waiting*: in `_backlog`, because a row before it, or the row itself, could not be written. The first waiting row may
  be in the file in part; no other row is written before its rest.
- *written*: whole in the file. With an fsync interval it is also in `_unsynced` until an fsync succeeds.
- *lost*: the backlog was full, or the writer was closed. Lost rows are counted.

`_received` counts all rows, so the number of written rows is `_received` minus new, waiting and lost rows.

One write, under `_lock`:

1. `_recover`, if an earlier write was interrupted.
2. Take the rows: set `_new` and `_received`.
3. Write the waiting rows, some at a time. If the disk refuses them, go to step 5.
4. Write the new rows. `_tried` names the rows that are being appended, from before the system call until they are
   accounted for. `AppendFile.append` holds the lock of the file during the call.
5. Buffer the new rows that are not written.

What may interrupt these steps:

- *An error of the disk* ends step 3 or 4. If some of the rows were written, the others are tried once more. After an
  error other than a full disk or a held lock the file is closed, and the next write opens the path again.
- *An exception from a signal handler* (Ctrl-C, ``sys.exit``). Python runs handlers at function calls and backward
  jumps, so not between two assignments of one statement: step 2 is one statement, and so is each move of rows from one
  state to another. If `_tried` is still set, it is not known whether these rows were written, and `_recover` searches
  the file for them. `_backlog` and `_unsynced` compare row objects, so adding and removing rows can be repeated; their
  bytes are counted again. The pending rows are written by the next write, by the flusher thread, or at exit.
- *A signal handler that calls the writer* while its own thread is inside a write: its rows are buffered, because the
  interrupted write must end first. Its `flush` and `close` return False.
- *A fork*: the child forgets all pending rows, which the parent writes, and opens the file again.
- *kill -9*: rows whose `write` returned are in the file. The beginning of a row may be left behind; the next writer
  moves it to the torn file (`AppendFile`).
- *A failed fsync*: all rows in `_unsynced` are treated as lost and wait again (see `_fsync`). fsync is not retried on
  this descriptor: `AppendFile` repeats the error, even if an exception interrupted the handling of the first one. The
  file is first cut back if no other process has written since. Otherwise the rows may be in the file twice.

While rows wait or are not synced, a thread flushes them and keeps the writer alive (`_flusher`).

Used by ``csv_exporter``.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, cast

from otel_connector._after_fork import start_over_in_child
from otel_connector._csv._backlog import Backlog
from otel_connector._csv._file import AppendFile, NotRotated, absolute
from otel_connector._csv._flusher import Flusher, keep_until_flushed, with_pending_rows
from otel_connector._csv._fsync import UnsyncedRows
from otel_connector._csv._options import LogOptions
from otel_connector._guard import pass_on
from otel_connector._log_throttle import LogThrottle
from otel_connector._record import RowCounts
from otel_connector._units import counted

_logger = logging.getLogger("otel_connector")

_DEFAULT_OPTIONS = LogOptions()
_BATCH = 256  # waiting rows in one write
_PATH_CHECK_INTERVAL = 0.001  # seconds between two checks where the path leads: a check costs as much as two rows
_FLUSH_INTERVAL = 1.0  # seconds between two attempts to write waiting rows when no new rows come

# Errors after which the descriptor is still usable: no room, or another process holds the lock
_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EWOULDBLOCK})

# Seconds that a row waits for the lock of the file, and seconds for the rows after one that waited without success
_LOCK_TIMEOUT, _SHORT_LOCK_TIMEOUT = 1.0, 0.002


class RowWriter:
    """Appends rows to one CSV file. Thread-safe.

    Args:
        path: The file; created if it does not exist. Renamed by another program, it is created again.
        header: Its first line, with the line end; written once, by the first writer.
        options: How it is written.
        monotonic: The clock, in seconds.

    Raises:
        OSError: The file cannot be opened, is not a regular file, or it or its symbolic link is another user's.
        ValueError: The file has another header; it is not changed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: bytes,
        options: LogOptions = _DEFAULT_OPTIONS,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = os.fspath(path)
        self._absolute = absolute(self.path)
        self._header = header
        self._options = options
        self._monotonic = monotonic
        self._closed = False
        self._throttle, self._rotations = LogThrottle(), LogThrottle()
        self._reset()
        self._log: AppendFile | None = self._open(overwrite=options.overwrite)
        start_over_in_child(self)

    def _reset(self) -> None:
        """Start without pending rows: in the constructor, and in the child of a fork."""
        self._received = self._lost = 0
        self._lock = threading.RLock()  # reentrant: a signal handler may interrupt `write` and call it
        # The lock has no public method for this; `threading.Condition` uses the same one
        self._is_owned: Callable[[], bool] = cast("Any", self._lock)._is_owned  # noqa: SLF001
        self._failure: Exception | None = None  # not logged yet
        self._lock_timeout = _LOCK_TIMEOUT
        self._new: Sequence[bytes] = ()
        self._tried: Sequence[bytes] = ()  # new rows, or the first of the backlog
        self._backlog = Backlog(self._options.backlog_bytes)
        self._unsynced = self._no_unsynced_rows()
        self._flusher = Flusher(self._options.fsync_interval or _FLUSH_INTERVAL)
        self._check_path_at = 0.0

    @property
    def busy(self) -> bool:
        """Whether the calling thread is inside a write, which a signal handler has interrupted."""
        # Not a flag: an exception of a handler could leave it set
        return self._is_owned()

    def write(self, rows: Sequence[bytes]) -> bool:
        """Append whole rows. Does not raise for errors of the disk: rows that cannot be written wait, in order.

        Returns:
            Whether the rows are in the file.
        """
        if not rows:
            return True
        interrupts = self._is_owned()
        with self._lock:
            if self._closed:
                self._received += len(rows)
                self._lost += len(rows)
                self._failure = OSError(errno.EBADF, "the log is closed; the rows are lost")
                complete = False
            elif interrupts:
                for row in rows:
                    self._received += 1
                    self._buffer(row)
                complete = False
            else:
                complete = self._write_now(rows)
        if self._failure is not None:
            self._warn()
        return complete

    def _write_now(self, rows: Sequence[bytes]) -> bool:
        """Write the waiting rows and then these; True if none waits at the end."""
        try:
            if self._tried or self._new:
                self._recover()
            self._new, self._received = rows, self._received + len(rows)  # one statement: see the theory of operation
            if self._backlog.rows:
                self._drain()
            if not self._backlog.rows:
                while self._new and self._try(self._new):
                    pass
            if self._new:
                self._buffer_new()
        except BaseException:  # of a signal handler; the next write, the flusher or the exit completes this one
            keep_until_flushed(self)
            if self._log is not None:
                self._log.unlock()
            raise
        if self._backlog.rows or self._unsynced.rows:
            self._start_or_stop_flusher()
        return not self._backlog.rows

    def _recover(self) -> None:
        """Complete the accounting of a write that an exception from a signal handler interrupted."""
        if self._tried:
            self._account(0 if self._log is None else self._log.count_written(self._tried))
            self._unsynced.count_bytes()
            self._backlog.count_bytes()
        self._buffer_new()

    def flush(self) -> bool:
        """Write the waiting rows, and call fsync if there is an interval.

        Returns:
            Whether no row is pending. False in a signal handler that interrupted a write.
        """
        if self.busy:
            return False
        with self._lock:
            self._recover()
            self._drain()
            if self._log is not None and self._unsynced.rows:
                self._sync_now(self._log)
            complete = not self._backlog.rows
            self._start_or_stop_flusher()
        self._warn()
        return complete

    def finish(self, seconds: float) -> None:
        """Write the waiting rows before the process ends. Waits for a disk that hangs, regardless of `seconds`."""
        del seconds
        if not self.busy and not self.flush() and not self._closed:
            self._log_lost(self.counts().waiting)

    def close(self) -> bool:
        """Write the waiting rows and close the file. Safe to call again.

        Returns:
            Whether no row is lost by this. False in a signal handler that interrupted a write; the file stays open.
        """
        if self.busy:
            return False
        complete = self.flush()
        with self._lock:
            self._recover()
            closed, self._closed = self._closed, True
            self._lost, self._backlog = self._lost + len(self._backlog.rows), Backlog(self._options.backlog_bytes)
            self._unsynced = self._no_unsynced_rows()
            self._start_or_stop_flusher()
            if self._log is not None:
                self._failure = self._log.close()
                self._log = None
        self._warn()
        if self._lost and not closed:
            self._log_lost(self._lost)
        return complete

    def counts(self) -> RowCounts:
        """Return the numbers of written, waiting and lost rows. Never blocks, not even while a disk hangs."""
        waiting, lost = len(self._backlog.rows) + len(self._new), self._lost
        return RowCounts(written=self._received - waiting - lost, waiting=waiting, lost=lost)

    def _try(self, rows: Sequence[bytes]) -> int:
        """Write `_new`, or the first rows of the backlog; return how many, or 0 if the disk refuses them."""
        self._tried = rows
        try:
            done = self._append(rows)
        except (OSError, ValueError) as error:
            self._tried = ()
            self._note_refusal(error)
            return 0
        self._lock_timeout = _LOCK_TIMEOUT
        if done == len(rows) and rows is self._new and self._options.fsync_interval is None:  # nearly always
            self._new, self._tried = (), ()
        elif self._account(done) and (log := self._log) is not None and not self._sync_now(log):
            return 0
        return done

    def _account(self, done: int) -> bool:
        """Record that the first `done` of the tried rows are in the file; True if fsync has to be called now."""
        must_sync = self._unsynced.add(self._tried[:done])
        if self._tried is self._new:
            self._new, self._tried = self._new[done:], ()
        else:
            self._backlog.remove(self._tried[:done])
            self._tried = ()
        return must_sync

    def _note_refusal(self, error: Exception) -> None:
        self._failure = error
        number = error.errno if isinstance(error, OSError) else None
        self._lock_timeout = _SHORT_LOCK_TIMEOUT if number == errno.EWOULDBLOCK else _LOCK_TIMEOUT
        if number not in _PASSING and self._log is not None:
            # The path may lead to a usable file now: the disk was replaced, or the server came back (ESTALE)
            self._close_log(self._log)

    def _append(self, rows: Sequence[bytes]) -> int:
        """Append the rows for which the file has room; return the number of rows that are in it."""
        data = rows[0] if len(rows) == 1 else b"".join(rows)
        log = self._log
        if log is None or self._monotonic() >= self._check_path_at:
            log = self._current()
        whole = log.append(data, self._lock_timeout)
        while log.full:
            log = self._after_rotation(log)
            whole = log.append(data, self._lock_timeout)
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

    def _buffer_new(self) -> None:
        """Move the new rows that could not be written to the backlog."""
        while self._new:
            row = self._new[0]
            if not self._backlog.ends_with(row):  # it does if this loop was interrupted
                self._buffer(row)
            self._new = self._new[1:]

    def _buffer(self, row: bytes) -> None:
        if not self._backlog.add(row):
            self._lost += 1

    def _drain(self) -> None:
        """Write the waiting rows. Only some are tried at a time, so the cost of a write does not grow with them."""
        while self._backlog.rows and self._try(self._backlog.first(_BATCH)):
            pass

    def _warn(self) -> None:
        """Log the last failure, without the lock, because a log handler may do anything."""
        error, self._failure = self._failure, None
        throttle, what = self._throttle, f"written, {counted(self.counts().waiting, 'row')} waiting"
        if isinstance(error, NotRotated):
            throttle, what = self._rotations, "rotated, its rows go on into the old file"
        if error is None or (suffix := throttle.admit(self._monotonic())) is None:
            return
        self._log_warning("%s cannot be %s: %s%s", what, error, suffix)

    def _log_lost(self, rows: int) -> None:
        self._log_warning("%s: %s lost, because the disk refused them", counted(rows, "row"))

    def _log_warning(self, message: str, *arguments: object) -> None:
        """Log a line that begins with the path."""
        try:
            _logger.warning(message, self.path, *arguments)
        except BaseException as problem:  # noqa: BLE001 - of a log handler of the application; the call must go on
            pass_on(problem)

    def _current(self) -> AppendFile:
        """Return the file to which the path leads now."""
        self._check_path_at = self._monotonic() + _PATH_CHECK_INTERVAL
        if self._log is not None and self._log.moved:
            self._follow(self._log)
        if self._log is None:
            self._log = self._open()
        return self._log

    def _open(self, *, overwrite: bool = False) -> AppendFile:
        return AppendFile(self._absolute, self._header, self._options, overwrite=overwrite)

    def _follow(self, log: AppendFile) -> None:
        """Switch to the file to which the path leads now. The rows written before stay in the old file."""
        try:
            new = self._open()
        except (OSError, ValueError) as error:
            if not log.has_name:
                raise
            self._failure = NotRotated(str(error))  # until a new file can be opened
            return
        waiting = len(self._backlog.rows)
        self._close_log(log)
        self._log = new
        if len(self._backlog.rows) > waiting:
            raise OSError(errno.EIO, "the file was renamed, and the fsync of its last rows failed")

    def _close_log(self, log: AppendFile) -> None:
        """Close the file. If its rows must be on the disk and fsync fails, they wait to be written again."""
        if not self._unsynced.rows or self._sync_now(log):
            self._log = None
            if (error := log.close()) is not None:
                self._failure = error

    def _after_rotation(self, log: AppendFile) -> AppendFile:
        """Rename a full file to the name of a part, and return the new file.

        If that fails, or no new file can be created, return the old one without its limits: rows matter more.
        """
        self._check_path_at = 0.0
        try:
            log.rename_to_part()
        except NotRotated as error:
            self._failure = error
        new = self._current()
        if new is log:
            log.lift_limits()
        return new

    def _sync_now(self, log: AppendFile) -> bool:
        try:
            log.sync()
        except OSError as error:
            self._write_again(log, error)
            return False
        self._unsynced = self._no_unsynced_rows()
        return True

    def _write_again(self, log: AppendFile, error: OSError) -> None:
        """After a failed fsync, put all rows since the last successful one back into the backlog."""
        self._failure = error
        with suppress(OSError):
            log.truncate_to_synced()
        backlog = Backlog(self._options.backlog_bytes, chain(self._unsynced.rows, self._backlog.rows))
        unsynced = self._no_unsynced_rows()
        self._backlog, self._unsynced, self._log = backlog, unsynced, None  # one statement: see the theory of operation
        log.close()

    def _no_unsynced_rows(self) -> UnsyncedRows:
        return UnsyncedRows(self._options.fsync_interval, self._options.backlog_bytes)

    def _start_or_stop_flusher(self) -> None:
        self._flusher.run_while(bool(self._backlog.rows or self._unsynced.rows), self)

    def flush_periodically(self, stopped: threading.Event) -> None:
        """Write the waiting rows, and call fsync without blocking a write; only for the current flusher."""
        with self._lock:
            self._recover()
            if self._flusher.current is not stopped:
                return
            self._drain()
            log, unsynced = self._log, self._unsynced.rows
            last = unsynced[-1] if unsynced else None
        end, failure = None, None
        try:
            if log is not None and last is not None:
                end = log.sync_concurrently()
        except OSError as error:
            failure = error
        with self._lock:
            self._recover()
            if self._flusher.current is not stopped:
                return
            if log is not None and log is self._log and last is not None:
                if failure is not None:
                    self._write_again(log, failure)
                elif end is not None:
                    log.synced = max(log.synced, end)  # another fsync may have succeeded meanwhile
                    self._unsynced.synced(last)
            self._start_or_stop_flusher()
        self._warn()

    def start_over(self) -> None:
        """Continue in the child of a fork, with an own descriptor, and without the rows and counts of the parent."""
        with_pending_rows.discard(self)
        if self._log is not None:
            self._log.abandon()
            self._log = None
        self._reset()
