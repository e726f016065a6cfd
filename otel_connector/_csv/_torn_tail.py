r"""Level 0: the end of a log: where its last whole row ends, and what becomes of bytes behind it.

A row is one physical line, so what follows the last ``\n`` is all that a killed writer can leave behind, and all that
is ever cut, after it was kept elsewhere. Files are read in blocks, so that their size is of no matter. Knows neither
who writes nor what a row means.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

TORN_SUFFIX = ".torn"
"""What the name of a log gets for the file that keeps its unfinished lines."""

_BLOCK = 2**18  # bytes read at once: larger is no faster, and this stays in a processor's cache
_GLANCE = 4_096  # bytes that show where the last row ends, nearly always
_ZEROS = bytes(_BLOCK)
_LINKS = 40  # symbolic links one after another, as Linux has it


def cut_torn_tail(fd: int, path: str) -> int:
    r"""Move what follows the last ``\n`` of a log to ``<path>.torn`` and return how many bytes that were.

    The bytes are in that file and fsynced before the log is cut; in a crash between the two they are in both. Several
    tails there are a line each, the last without an end. Runs of NUL bytes take no space there.

    Args:
        fd: A log, open for reading and writing, under the caller's exclusive lock. Its position is moved.
        path: The log's name.

    Raises:
        OSError: The bytes cannot be kept, or the log cannot be cut. The log is as it was, and so is the other file.
    """
    log = os.fstat(fd)
    end = last_row_end(fd)
    if end == log.st_size:
        return 0
    try:
        with _torn_file(path, fd, log) as torn:
            for block in blocks(fd, end, log.st_size):
                _write(torn, block)
            os.ftruncate(torn, os.lseek(torn, 0, os.SEEK_CUR))  # NUL bytes at the end were passed over
            os.fsync(torn)
            _cut(fd, log.st_size, end)
    except OSError as error:
        why = f"the unfinished last line cannot be moved to {path + TORN_SUFFIX!r}: {error.strerror or error}"
        raise OSError(error.errno, why, path) from error
    return log.st_size - end


def last_row_end(fd: int) -> int:
    r"""Return the offset behind the last ``\n``, looked for from the end in blocks; 0 if there is none.

    The position of `fd` is moved.

    Raises:
        OSError: It cannot be read, or shrinks meanwhile.
    """
    end, step = os.fstat(fd).st_size, _GLANCE  # nearly always the last byte is a line end
    while end:
        start, step = max(end - step, 0), _BLOCK
        block = b"".join(blocks(fd, start, end))
        if len(block) < end - start:  # an end found in half of it could be too early, and rows be cut
            raise OSError(errno.EIO, "the file shrinks while it is read")
        if (found := block.rfind(b"\n")) >= 0:
            return start + found + 1
        end = start
    return 0


def count_lines(fd: int, start: int, end: int) -> int:
    r"""Return how many ``\n`` there are from `start` to `end`."""
    return sum(block.count(b"\n") for block in blocks(fd, start, end))


def open_regular(path: str, flags: int) -> int:
    """Open a regular file that is there, and never wait for anything else."""
    # O_NONBLOCK: opening a FIFO without a writer would hang for ever. It means nothing to a regular file.
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        fd = os.open(path, flags, 0o600)
    except ValueError as error:  # a NUL or a lone surrogate in it
        raise OSError(errno.EINVAL, str(error), path) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return fd


def refuse_strangers_links(path: str) -> None:
    """Raise unless every symbolic link on the way from `path` to a file is the user's own, or root's.

    In a folder that others may write, a link is how somebody has another program write where they may not.

    Raises:
        OSError: A link belongs to somebody else, or there are too many.
    """
    for _ in range(_LINKS):
        status = os.lstat(path)
        if not stat.S_ISLNK(status.st_mode):
            return
        if status.st_uid not in {0, getattr(os, "geteuid", int)()}:
            raise OSError(errno.EPERM, "a symbolic link that belongs to another user", path)
        path = str(Path(path).parent / Path(path).readlink())
        if not os.path.lexists(path):
            return
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def blocks(fd: int, start: int, end: int, *, skip_holes: bool = False) -> Generator[bytes]:
    """Read from `start` to `end`, or to the end of the file if that comes first.

    Args:
        fd: The file.
        start: Offset of the first byte.
        end: Offset behind the last byte.
        skip_holes: Believe the file system where it says that nothing was ever written. Not for what decides on a
            cut: file systems have been wrong about fresh data.
    """
    hole_end = start
    while start < end:
        if skip_holes and hole_end <= start:
            hole_end = _hole_end(fd, start, end)
        wanted = min(_BLOCK, end - start)
        if hole_end >= start + wanted:
            block = _ZEROS[:wanted]
        else:
            os.lseek(fd, start, os.SEEK_SET)
            block = os.read(fd, wanted)
        if not block:
            return
        start += len(block)
        yield block


def _hole_end(fd: int, start: int, end: int) -> int:
    """Return where the hole that begins at `start` ends; `start` if there is none, or nobody knows."""
    try:
        return min(os.lseek(fd, start, os.SEEK_DATA), end)
    except AttributeError:  # Windows
        return start
    except OSError as error:
        # Nothing but a hole up to the end of the file, which may have shrunk
        return min(os.fstat(fd).st_size, end) if error.errno == errno.ENXIO else start


def _cut(fd: int, size: int, end: int) -> None:
    if os.fstat(fd).st_size != size:
        raise OSError(errno.EBUSY, "another program changes the log without a lock")
    os.ftruncate(fd, end)


@contextmanager
def _torn_file(log_path: str, fd: int, log: os.stat_result) -> Generator[int]:
    """Open the file for unfinished lines, at the start of a line; it is as it was if the block raises.

    Unless the log was cut by then, for an interrupt can come right behind it.
    """
    path = log_path + TORN_SUFFIX
    torn, new = _open_torn(path, log)
    size = os.lseek(torn, 0, os.SEEK_END)
    try:
        if size:
            _write(torn, b"\n")
        if new:
            sync_folder(path)
        yield torn
    except BaseException:
        with suppress(OSError):  # the error that led here says more, and twice kept is not lost
            uncut = os.fstat(fd).st_size >= log.st_size
            if uncut:
                os.ftruncate(torn, size)
            if uncut and new:
                Path(path).unlink()
        raise
    finally:
        os.close(torn)


def _open_torn(path: str, log: os.stat_result) -> tuple[int, bool]:
    """Open a file as private as a log, and nobody else's trap; say whether it is new."""
    nofollow = getattr(os, "O_NOFOLLOW", 0)
    try:
        fd = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | nofollow)
    except FileExistsError:
        fd = open_regular(path, os.O_RDWR | nofollow)
        status = os.fstat(fd)
        if status.st_nlink != 1 or status.st_uid not in {log.st_uid, 0, getattr(os, "geteuid", int)()}:
            os.close(fd)
            raise OSError(errno.EPERM, "another user's file, or linked from elsewhere", path) from None
        return fd, False
    with suppress(AttributeError, OSError):  # root repairs for others, who want to read it and to add to it
        os.fchown(fd, log.st_uid, log.st_gid)
    return fd, True


def _write(fd: int, data: bytes) -> None:
    if _ZEROS.startswith(data):  # it takes no space when it is passed over
        os.lseek(fd, len(data), os.SEEK_CUR)
        return
    while data:
        data = data[os.write(fd, data) :]


def sync_folder(path: str) -> None:
    """Make the name of a new file last."""
    try:
        folder = os.open(Path(path).parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        # Not for this file system, or not for this user, who may write here but not look around
        if error.errno not in {errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.EPERM}:
            raise
