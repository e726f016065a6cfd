"""One open log file: who may write it, its header, and where it ends.

Every write happens under the file's lock, for some microseconds, so that whoever has it knows: nobody is in the middle
of a row. A line without an end is then one that a killed program or a full disk left behind, whatever else is writing,
and is taken off before the next row comes. Knows nothing of rows that wait, of rotation or of threads.
"""

from __future__ import annotations

import errno
import os
import stat
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

from otel_connector._csv._lock import lock, try_lock, unlock
from otel_connector._csv._torn_tail import (
    TORN_SUFFIX,
    count_lines,
    cut_torn_tail,
    last_row_end,
    refuse_strangers_links,
    sync_folder,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_HEAD_LIMIT = 4_096  # bytes read to compare a header: more than ours has, less than a wrong file may hold
_MENDED_SIZE = 2**20  # bytes of rows that come between a truncation and our noticing it: far more than ever do
_OPENING_TRIES = 100  # each is lost only to a rename at the very moment
_OPENING_PATIENCE = 5.0  # seconds; who keeps the lock for longer is no writer of ours

# What passes: then the rows behind an unfinished line wait, because a line that is ended where it is stays broken
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO})


class LogFile:
    """An open log.

    Args:
        path: The file; created if it is not there.
        header: Its first line, with the line end; written once, whoever comes first.
        overwrite: Empty the file first.
        permissions: Mode of a file that is created, whatever the umask.
        most_rows: Rows that it may hold; None for any number.
        most_bytes: Its size may not be more, but for the sake of a single row; None for any size.
        lasting: Whether its name has to survive a power cut.

    Raises:
        OSError: The file cannot be opened, is not a regular file, or is a symbolic link of somebody else's; the message
            starts with ``logfile``.
        ValueError: The file has another header; nothing in it is changed.
    """

    def __init__(
        self,
        path: str,
        header: bytes,
        *,
        overwrite: bool = False,
        permissions: int = 0o600,
        most_rows: int | None = None,
        most_bytes: int | None = None,
        lasting: bool = False,
    ) -> None:
        self._path = path
        self._header = header
        self._most_rows = most_rows
        self._most_bytes = most_bytes
        self.torn = 0  # bytes at the end that are the beginning of a row
        self.end = 0
        self.synced = 0  # where it ended when the disk last kept it
        self.refusal: OSError | None = None
        self.full = False  # whether there was no room for the last rows
        self._writing_at: int | None = None  # where the rows of the last `append` begin, once they are being written
        self._rows = 0  # known if there may be only so many
        self._others_end = 0  # what was written by others, or may have been, lies before this
        self._fd = _open_log(path, permissions)
        self._closing = weakref.finalize(self, _close, self._fd)
        self._closing.atexit = False  # what is in hand is written at the end of the program, and the system closes it
        try:
            status = os.fstat(self._fd)
            self.identity = (status.st_dev, status.st_ino)
            lock(self._fd, _OPENING_PATIENCE)
            try:
                self._prepare(overwrite=overwrite)
            finally:
                self.unlock()
            if lasting:
                sync_folder(path)
        except OSError as error:
            self._closing()
            raise _named(error.errno or errno.EIO, path, error.strerror or "") from error
        except ValueError:
            self._closing()
            raise

    @property
    def moved(self) -> bool:
        """Whether the path leads to another file now or to none, or this one is closed."""
        if not self._closing.alive:
            return True
        try:
            status = os.stat(self._path)  # noqa: PTH116 - a Path would cost as much as the call
        except OSError:
            return True
        return (status.st_dev, status.st_ino) != self.identity

    def append(self, rows: bytes, patience: float) -> int:
        """Append whole rows; return how many bytes of them are whole rows of the file now.

        If the disk refuses the rest, `refusal` says why, and the beginning of a row is taken off again. Where even that
        is refused it stays, `torn` says how long it is, and the next rows must begin with that row. Rows for which
        there is no room in a file that may not grow beyond some size are not written: then it is `full`.

        Args:
            rows: Whole rows.
            patience: Seconds that another writer's turn is waited for.

        Raises:
            OSError: Nothing was written.
        """
        self._writing_at = None
        if not try_lock(self._fd):
            lock(self._fd, patience)
        try:
            if os.lseek(self._fd, 0, os.SEEK_END) != self.end:  # somebody else wrote, or emptied the file
                self._mend()
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
        """Let the file grow from now on."""
        self._most_rows = self._most_bytes = None
        self.full = False

    def rename(self, free_name: Callable[[str], str]) -> bool:
        """Give the file another name, unless somebody did that already; True if it was done here.

        Args:
            free_name: Returns a name that no file has for the file of a name, links followed. It is asked when nobody
                else looks for one.

        Raises:
            OSError: It has its old name.
        """
        lock(self._fd, _OPENING_PATIENCE)
        try:
            if self.moved:
                return False
            real = os.path.realpath(self._path)
            os.rename(real, free_name(real))  # noqa: PTH104 - as it is spelt everywhere in this file
            return True
        finally:
            self.unlock()

    def sync(self) -> int:
        """Have the disk keep what was written so far; return where the file ended then.

        Raises:
            OSError: The disk did not. What was written since the last success must be taken for lost.
        """
        end = self.end
        _sync(self._fd)
        return end

    def sync_beside(self) -> int | None:
        """Do the same beside the other methods, from another thread; None if it could not even be tried.

        Raises:
            OSError: As with `sync`.
        """
        end = self.end
        try:
            fd = os.dup(self._fd)  # the file may be closed meanwhile, and the number be another file's
        except OSError:  # no descriptor is free, or it is closed already: that says nothing of the disk
            return None
        try:
            _sync(fd)
        finally:
            os.close(fd)
        return end

    def landed(self, rows: Sequence[bytes]) -> int:
        """Return how many of the rows are in the file as a whole, after an `append` of them that was broken off.

        0 if that cannot be read: then they are written again, because to have a row twice is better than not at all.
        """
        if self._writing_at is None or not self._closing.alive:
            return 0
        try:
            there = _read_at(self._fd, self._writing_at, sum(map(len, rows)))
        except OSError:
            return 0
        done = end = 0
        for row in rows:
            if not there.startswith(row, end):
                break
            end += len(row)
            done += 1
        return done

    def take_back(self) -> bool:
        """Cut the file back to where it was when the disk last kept it; True if nothing but our own rows was there.

        Raises:
            OSError: It could not be cut.
        """
        if self._others_end > self.synced:
            return False
        lock(self._fd, _OPENING_PATIENCE)
        try:
            if os.lseek(self._fd, 0, os.SEEK_END) != self.end:
                return False
            os.ftruncate(self._fd, self.synced)
            return True
        finally:
            self.unlock()

    @property
    def has_name(self) -> bool:
        """Whether anybody could find the rows that are written to it."""
        return self._closing.alive and os.fstat(self._fd).st_nlink > 0

    def abandon(self) -> None:
        """Close the descriptor and touch nothing else: in the child of a fork, whose parent goes on with the file."""
        self._closing()

    def close(self) -> OSError | None:
        """Close the file, without the beginning of a row if that can be taken off now. Safe to call again.

        Returns:
            What the file system said: on some, a full one is told of only then.
        """
        if self.torn and self._closing.alive:
            with suppress(OSError):
                lock(self._fd, 0.0)
                if os.lseek(self._fd, 0, os.SEEK_END) == self.end:
                    os.ftruncate(self._fd, self.end - self.torn)
        return self._closing()

    def unlock(self) -> None:
        """Let others write. Safe to call again."""
        try:
            unlock(self._fd)
        except OSError:  # no other process could write any more; closing the file releases the lock, too
            self._closing()

    def _prepare(self, *, overwrite: bool) -> None:
        if overwrite:
            os.ftruncate(self._fd, 0)
        head = _read_at(self._fd, 0, _HEAD_LIMIT)
        if 0 < len(head) < len(self._header) and self._header.startswith(head):
            os.ftruncate(self._fd, 0)  # half a header, of a program that was killed right then
        elif head and not head.startswith(self._header):
            found = head.split(b"\n", 1)[0][:200].decode(errors="replace")
            raise ValueError(
                f"logfile: {self._path!r} has another header: {found!r}; choose another file, or overwrite_log=True"
            )
        self._mend()
        self.synced = self.end

    def _mend(self) -> None:
        """See to it that the file starts with the header and ends with a whole row, whoever wrote it last."""
        known, end = self.end, os.lseek(self._fd, 0, os.SEEK_END)
        self.torn = 0
        if end == 0:  # new, or emptied by another program
            self._write_header(b"")
        elif end < min(known, _MENDED_SIZE) and self._is_beheaded():
            rows = _read_at(self._fd, 0, end)
            os.ftruncate(self._fd, 0)
            self._write_header(rows)
        elif _read_at(self._fd, end - 1, 1) != b"\n":
            self._set_aside()
        self.end = self._others_end = os.lseek(self._fd, 0, os.SEEK_END)
        if self._most_rows is not None:
            known = known if len(self._header) <= known <= self.end else 0
            before = self._rows if known else -1  # the header is no row
            self._rows = before + count_lines(self._fd, known, self.end)

    def _is_beheaded(self) -> bool:
        """Whether it begins with a row: emptied between our look and our write (logrotate's copytruncate)."""
        line = _read_at(self._fd, 0, _HEAD_LIMIT).split(b"\n", 1)[0]
        return not self._header.startswith(line) and line.count(b",") >= self._header.count(b",")

    def _write_header(self, rows: bytes) -> None:
        done = os.write(self._fd, self._header + rows)
        if done < len(self._header):  # half a header would make the file useless for ever
            os.ftruncate(self._fd, 0)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _set_aside(self) -> None:
        """Take an unfinished line off; where that can never be done, end it.

        Raises:
            OSError: It cannot be done now: there is no room to keep what is cut off.
        """
        cut = False
        if _read_at(self._fd, 0, len(self._header)) == self._header:  # what is not ours is not cut
            try:
                cut = cut_torn_tail(self._fd, self._path) > 0
            except OSError as error:
                if error.errno in _NO_ROOM:
                    why = f"its unfinished last line cannot be moved to {self._path}{TORN_SUFFIX}: {error.strerror}"
                    raise OSError(error.errno, why) from error
        if not cut:
            start = last_row_end(self._fd)
            line = _read_at(self._fd, start, _HEAD_LIMIT * 16)
            # A quote left open would have a reader take the following rows into the cell
            os.write(self._fd, b'"\n' if line.count(b'"') % 2 else b"\n")

    def _fitting(self, rows: bytes) -> bytes:
        """Return as many of the rows as there is room for."""
        if self.torn:  # which has its room already
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
        """Write what is left of the rows after their first `done` bytes; return how many bytes are written then."""
        before, size = done, len(rows)
        try:
            while True:
                written = os.write(self._fd, rows[done:] if done else rows)
                done += written
                self.end += written
                if done == size:
                    return done
                if not written:  # a file system that takes nothing, and does not say why, is not asked for ever
                    break
        except OSError as error:
            if done == before:
                self.torn = before
                raise
            self.refusal = error
        if self.refusal is None:
            self.refusal = OSError(errno.EIO, "the file system took a part of it")
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


def _open_log(path: str, permissions: int) -> int:
    # O_NONBLOCK: opening a FIFO without a reader would hang for ever. It means nothing to a regular file.
    flags = os.O_RDWR | os.O_APPEND | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    flags |= getattr(os, "O_BINARY", 0)
    try:
        fd = _open_or_create(path, flags, permissions)
        try:
            regular = stat.S_ISREG(os.fstat(fd).st_mode)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise _named(error.errno or errno.EIO, path, error.strerror or "") from error
    except ValueError as error:  # a NUL or a lone surrogate in it
        raise _named(errno.EINVAL, path, str(error)) from error
    if not regular:
        os.close(fd)
        raise _named(errno.EINVAL, path, "not a regular file")
    return fd


def _open_or_create(path: str, flags: int, permissions: int) -> int:
    for _ in range(_OPENING_TRIES):
        with suppress(FileExistsError):
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, permissions)
            if hasattr(os, "fchmod"):
                with suppress(OSError):  # not every file system has permissions, and the ones it made are no wider
                    os.fchmod(fd, permissions)  # the umask may have taken something off
            return fd
        # There is one; or there was a moment ago, and another writer has given it another name since
        with suppress(FileNotFoundError):
            return _open_existing(path, flags, permissions)
    link = os.path.islink(path)  # noqa: PTH114 - a str, as everywhere in this file
    raise FileNotFoundError(errno.ENOENT, "a symbolic link that leads nowhere" if link else "it comes and goes")


def _open_existing(path: str, flags: int, permissions: int) -> int:
    if not stat.S_ISLNK(os.lstat(path).st_mode):
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0))
    refuse_strangers_links(path)
    return os.open(path, flags | os.O_CREAT, permissions)


def _sync(fd: int) -> None:
    getattr(os, "fdatasync", os.fsync)(fd)


def _close(fd: int) -> OSError | None:
    try:
        os.close(fd)
    except OSError as error:
        return error
    return None


def _read_at(fd: int, start: int, size: int) -> bytes:
    os.lseek(fd, start, os.SEEK_SET)  # appending writes go to the end whatever the position is
    return os.read(fd, size)


def _named(number: int, path: str, why: str = "") -> OSError:
    return OSError(number, f"logfile: {why or os.strerror(number)}", path)
