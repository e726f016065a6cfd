"""One log file that is open for appending: its header, its lock, and where its last row ends.

Every write happens under the file's lock, which is held for some microseconds. The process that holds it knows that no
other process is in the middle of a row. So a line without a line end was left by a killed program or a full disk; it is
removed before the next row is written. This file does not know rows that wait, rotation policy, or threads.

Used by ``_csv._check``, ``_csv._writer`` and ``csv_exporter``.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from otel_connector._csv._lines import not_text
from otel_connector._csv._lock import lock, try_lock, unlock
from otel_connector._csv._options import LogOptions
from otel_connector._csv._ownership import open_own
from otel_connector._csv._parts import next_part
from otel_connector._csv._torn_tail import (
    blocks,
    cut_torn_tail,
    last_row_end,
    sync_folder,
)

_HEAD_LIMIT = 4_096  # bytes read to compare a header: more than ours has, less than a wrong file may contain
_TRUNCATED_LIMIT = 2**20  # bytes of rows between a truncation and its detection: more than are written in that time
_OPENING_TIMEOUT = 5.0  # seconds; a program that holds the lock for longer is not a writer of this package

# Temporary errors. The rows after an unfinished line wait, because ending that line would leave it in the log
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO})


class NotRotated(OSError):
    """The log has no new file; rows are written to the old one."""


class AppendFile:
    """A log that is open for appending.

    Args:
        path: The file; created if it does not exist.
        header: Its first line, with the line end; written once, by the first writer.
        options: How it is written; the file does not use `overwrite` and `backlog_bytes`.
        overwrite: Empty the file first.

    Attributes:
        end: Where the file ends, as far as this writer knows.
        torn: Bytes at the end that are the beginning of a row.
        synced: Where the file ended at the last successful fsync.
        refusal: Why the last `append` wrote only some of the rows.
        full: Whether the limits left no room for the last rows.

    Raises:
        OSError: The file cannot be opened, is not a regular file, or it or its symbolic link is another user's.
        ValueError: The file has another header; it is not changed.
    """

    def __init__(self, path: str, header: bytes, options: LogOptions, *, overwrite: bool = False) -> None:
        self._path = path
        self._header = header
        self._most_rows, self._most_bytes = options.rotate_rows, options.rotate_bytes
        self.torn = self.end = self.synced = 0
        self.refusal: OSError | None = None
        self.full = False
        self._writing_at: int | None = None  # where the rows of the last `append` begin, once they are being written
        self._rows = 0  # counted only if `_most_rows` is set
        self._others_end = 0  # bytes that other writers wrote, or may have written, lie before this offset
        self._sync_lock = threading.Lock()
        self._sync_failed = False  # the kernel reports an error only once
        self._fd = open_own(path, os.O_RDWR | os.O_APPEND, options.permissions)
        self._closing = weakref.finalize(self, _close, self._fd)
        self._closing.atexit = False  # pending rows are written at exit, and the system closes the file
        try:
            status = os.fstat(self._fd)
            self._identity = (status.st_dev, status.st_ino)
            with self._locked():
                self._prepare(overwrite=overwrite)
            if options.fsync_interval is not None:  # then the name of the file has to survive a power failure, too
                sync_folder(path)
        except (OSError, ValueError):
            self._closing()
            raise

    @property
    def moved(self) -> bool:
        """Whether the path leads to another file or to none, or this file is closed."""
        if not self._closing.alive:
            return True
        try:
            status = os.stat(self._path)  # noqa: PTH116 - Path.stat would take longer than the system call
        except OSError:
            return True
        return (status.st_dev, status.st_ino) != self._identity

    def append(self, rows: bytes, timeout: float) -> int:
        """Append whole rows.

        If the disk refuses some of them, `refusal` states why, and the beginning of a row is removed again. If that is
        refused, too, the beginning stays, `torn` is its length, and the next rows must start with that row. If the
        limits leave no room for a row, nothing is written and `full` is set.

        Args:
            rows: Whole rows.
            timeout: Seconds to wait for a process that holds the lock.

        Returns:
            Bytes of the rows that are in the file as whole rows.

        Raises:
            OSError: Nothing was written.
        """
        self._writing_at = None
        if not try_lock(self._fd):
            lock(self._fd, timeout)
        try:
            if os.lseek(self._fd, 0, os.SEEK_END) != self.end:  # another process wrote, or emptied the file
                self._repair()
            if self._most_rows is not None or self._most_bytes is not None:
                rows = self._fitting(rows)
                if self.full:
                    return 0
            torn, self.torn, self.refusal = self.torn, 0, None
            self._writing_at = self.end - torn
            done = self._write(rows, torn)
            if done < len(rows):
                done = self._without_torn_end(rows, done)
            if self._most_rows is not None:
                self._rows += rows.count(b"\n", 0, done)
            return done
        finally:
            self.unlock()

    def lift_limits(self) -> None:
        """Let the file grow without limits from now on."""
        self._most_rows = self._most_bytes = None
        self.full = False

    def rename_to_part(self) -> None:
        """Rename the file to its next part, unless another process has renamed it. Links stay.

        Raises:
            NotRotated: The file has its old name. Only the rename may fail: EBUSY for a file that is mounted by itself.
        """
        try:
            with self._locked():
                if not self.moved:
                    real = Path(os.path.realpath(self._path))
                    real.rename(next_part(real))
        except OSError as error:
            raise NotRotated(str(error)) from error

    def sync(self) -> None:
        """Call fsync.

        Raises:
            OSError: Everything written since the last successful fsync must be treated as lost.
        """
        self._sync(self._fd)
        self.synced = self.end

    def sync_concurrently(self) -> int | None:
        """Call fsync from another thread while rows are appended; the caller sets `synced`.

        Returns:
            Where the file ended before the call; None if fsync could not even be called.

        Raises:
            OSError: As with `sync`.
        """
        end = self.end
        try:
            fd = os.dup(self._fd)  # the file may be closed meanwhile, and its number reused
        except OSError:  # no free descriptor, or closed already: this says nothing about the disk
            return None
        try:
            self._sync(fd)
        finally:
            os.close(fd)
        return end

    def _sync(self, fd: int) -> None:
        with self._sync_lock:  # of two concurrent calls, only one would get the error
            if self._sync_failed:
                raise OSError(errno.EIO, "an fsync of this file has failed")
            self._sync_failed = True  # until it has succeeded: a signal handler may raise before its error is handled
            getattr(os, "fdatasync", os.fsync)(fd)
            self._sync_failed = False

    def count_written(self, rows: Sequence[bytes]) -> int:
        """Return how many of the rows are in the file, after an `append` of them that was interrupted.

        If the file cannot be read, return 0. The rows are then written again: a duplicate is better than a lost row.
        """
        if self._writing_at is None or not self._closing.alive:
            return 0
        try:
            found = _read_at(self._fd, self._writing_at, sum(map(len, rows)))
        except OSError:
            return 0
        done = end = 0
        while done < len(rows) and found.startswith(rows[done], end):
            end += len(rows[done])
            done += 1
        return done

    def truncate_to_synced(self) -> None:
        """Cut the file to its length at the last successful fsync, if only this writer has written since.

        Raises:
            OSError: It could not be cut.
        """
        if self._others_end > self.synced:
            return
        with self._locked():
            if os.lseek(self._fd, 0, os.SEEK_END) == self.end:
                os.ftruncate(self._fd, self.synced)

    @property
    def has_name(self) -> bool:
        """Whether the file is in any folder, so that its rows can be found."""
        return self._closing.alive and os.fstat(self._fd).st_nlink > 0

    def abandon(self) -> None:
        """Close the descriptor and change nothing: in the child of a fork, while the parent uses the file."""
        self._closing()

    def close(self) -> OSError | None:
        """Close the file, and remove the beginning of a row if that is possible now. Safe to call again.

        Returns:
            The error of the file system, if any: some report a full disk only at close.
        """
        if self.torn and self._closing.alive:
            with suppress(OSError):
                lock(self._fd, 0.0)
                if os.lseek(self._fd, 0, os.SEEK_END) == self.end:
                    os.ftruncate(self._fd, self.end - self.torn)
        return self._closing()

    def unlock(self) -> None:
        """Release the lock. Safe to call again."""
        try:
            unlock(self._fd)
        except OSError:  # no other process could write any more; closing the file releases the lock, too
            self._closing()

    @contextmanager
    def _locked(self) -> Generator[None]:
        lock(self._fd, _OPENING_TIMEOUT)
        try:
            yield
        finally:
            self.unlock()

    def _prepare(self, *, overwrite: bool) -> None:
        if overwrite:
            os.ftruncate(self._fd, 0)
        head = _read_at(self._fd, 0, _HEAD_LIMIT)
        if 0 < len(head) < len(self._header) and self._header.startswith(head):
            os.ftruncate(self._fd, 0)  # half a header, of a program that was killed at that moment
        else:
            refuse_other_header(self._fd, self._header)
        self._repair()
        self.synced = self.end

    def _repair(self) -> None:
        """Make the file start with the header and end with a whole row."""
        known, end = self.end, os.lseek(self._fd, 0, os.SEEK_END)
        self.torn = 0
        if end == 0:  # new, or emptied by another program
            self._write_header(b"")
        elif end < min(known, _TRUNCATED_LIMIT) and self._lacks_header():
            rows = _read_at(self._fd, 0, end)
            os.ftruncate(self._fd, 0)
            self._write_header(rows)
        elif _read_at(self._fd, end - 1, 1) != b"\n":
            self._remove_unfinished_line()
        self.end = self._others_end = os.lseek(self._fd, 0, os.SEEK_END)
        if self._most_rows is not None:
            known = known if len(self._header) <= known <= self.end else 0
            before = self._rows if known else -1  # the header is not a row
            self._rows = before + sum(block.count(b"\n") for block in blocks(self._fd, known, self.end))

    def _lacks_header(self) -> bool:
        """Whether the file starts with a row: it was emptied between a check and a write (logrotate's copytruncate)."""
        line = _read_at(self._fd, 0, _HEAD_LIMIT).split(b"\n", 1)[0]
        return not self._header.startswith(line) and line.count(b",") >= self._header.count(b",")

    def _write_header(self, rows: bytes) -> None:
        done = os.write(self._fd, self._header + rows)
        if done < len(self._header):  # with half a header, the file would not be a log
            os.ftruncate(self._fd, 0)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _remove_unfinished_line(self) -> None:
        """Move an unfinished line to the torn file. If that can never be done, end the line.

        Raises:
            OSError: It cannot be done now: there is no room for the torn file.
        """
        cut = False
        if _read_at(self._fd, 0, len(self._header)) == self._header:  # a file of another program is not cut
            try:
                cut = cut_torn_tail(self._fd, self._path) > 0
            except OSError as error:
                if error.errno in _NO_ROOM:
                    raise
        if not cut:
            start = last_row_end(self._fd)
            line = _read_at(self._fd, start, _HEAD_LIMIT * 16)
            # With an open quote, a reader would take the following rows into the cell
            os.write(self._fd, b'"\n' if line.count(b'"') % 2 else b"\n")

    def _fitting(self, rows: bytes) -> bytes:
        """Return the rows for which the limits leave room."""
        if self.torn:  # the rest of that row has its room already
            return rows[: rows.find(b"\n") + 1]
        end = len(rows)
        if self._most_rows is not None and rows.count(b"\n") > (room := self._most_rows - self._rows):
            end = 0
            for _ in range(room):
                end = rows.find(b"\n", end) + 1
        if self._most_bytes is not None and self.end + end > self._most_bytes:
            end = rows.rfind(b"\n", 0, max(self._most_bytes - self.end, 0)) + 1
            if not end and self.end == len(self._header):
                end = rows.find(b"\n") + 1
        self.full = not end
        return rows[:end]

    def _write(self, rows: bytes, done: int) -> int:
        """Write the rows without their first `done` bytes; return how many bytes are written then."""
        before, size = done, len(rows)
        try:
            while done < size:
                written = os.write(self._fd, rows[done:] if done else rows)
                done += written
                self.end += written
                if not written:  # some file systems write nothing and report no error; do not retry without end
                    self.refusal = OSError(errno.EIO, "the file system wrote only a part of the rows")
                    break
        except OSError as error:
            if done == before:
                self.torn = before
                raise
            self.refusal = error
        return done

    def _without_torn_end(self, rows: bytes, done: int) -> int:
        whole = rows.rfind(b"\n", 0, done) + 1
        if whole < done:
            try:
                os.ftruncate(self._fd, self.end - (done - whole))
                self.end -= done - whole
            except OSError:
                self.torn = done - whole
        return whole


def check_usable(path: str, header: bytes | None, options: LogOptions) -> None:
    """Raise as `AppendFile` does if it could not open a file. The file is created, but nothing in it is changed.

    Args:
        path: The file.
        header: The header that it must have, if it is not empty; None for any content.
        options: How it is written.

    Raises:
        OSError, ValueError: As `AppendFile`.
    """
    fd = open_own(path, os.O_RDWR | os.O_APPEND, options.permissions)
    try:
        lock(fd, _OPENING_TIMEOUT)
        if header is not None:
            refuse_other_header(fd, header)
    finally:
        os.close(fd)


def refuse_other_header(fd: int, header: bytes) -> None:
    """Raise ValueError unless a file has the header, the beginning of it, or nothing. The message has what it is."""
    head = _read_at(fd, 0, _HEAD_LIMIT)
    if head.startswith(header) or header.startswith(head):
        return
    what, remedy = not_text(head)
    if what:
        raise ValueError(f"{what}; {f'{remedy}, or ' if remedy else ''}choose another file")
    found = head.split(b"\n", 1)[0][:200].decode(errors="replace")
    raise ValueError(f"the file has another header: {found!r}; choose another file, or empty this one")


def absolute(path: str) -> str:
    """Return a path that stays valid if the program changes its current folder.

    It is not normalized: if ``a`` is a link, ``a/..`` is another folder than the current one.
    """
    if not path or Path(path).is_absolute():
        return path
    try:
        return f"{Path.cwd()}{os.sep}{path}"
    except FileNotFoundError as error:
        raise OSError(errno.ENOENT, "the current folder is gone", path) from error


def _close(fd: int) -> OSError | None:
    try:
        os.close(fd)
    except OSError as error:
        return error
    return None


def _read_at(fd: int, start: int, size: int) -> bytes:
    os.lseek(fd, start, os.SEEK_SET)  # appending writes go to the end, regardless of the position
    return os.read(fd, size)
