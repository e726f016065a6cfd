r"""The end of a log: where its last whole row ends, and how the bytes after it are saved and removed.

A row is one physical line, so only the bytes after the last ``\n`` can be left behind by a killed writer. Only these
are ever cut, after they were saved in another file. Files are read in blocks, so their size does not matter. This file
knows neither which process writes a log nor what a row means. Results files of JSON lines use it, too.

Used by ``_csv._check``, ``_csv._file``, ``_fetch._result_formats`` and ``review._files``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from otel_connector._csv._ownership import open_regular, refuse_file_of_other_user
from otel_connector._csv._parts import torn_file

_BLOCK = 2**18  # bytes read at a time: larger is no faster, and this fits into a processor's cache
_LAST_BLOCK = 4_096  # bytes that nearly always contain the end of the last row
_ZEROS = bytes(_BLOCK)


def cut_torn_tail(fd: int, path: str) -> int:
    r"""Move the bytes after the last ``\n`` of a log to its `torn_file`, and return their number.

    The bytes are in that file and fsynced before the log is cut; after a crash between the two they are in both. Each
    tail is a line of that file, the last without a line end. Runs of NUL bytes take no space there.

    Args:
        fd: A log, open for reading and writing, under the exclusive lock of the caller. Its position is changed.
        path: The name of the log.

    Raises:
        OSError: The bytes cannot be saved, or the log cannot be cut. Both files are unchanged.
    """
    log = os.fstat(fd)
    end = last_row_end(fd)
    if end == log.st_size:
        return 0
    try:
        with _torn_file(path, fd, log) as torn:
            for block in blocks(fd, end, log.st_size):
                _write(torn, block)
            os.ftruncate(torn, os.lseek(torn, 0, os.SEEK_CUR))  # NUL bytes at the end were skipped
            os.fsync(torn)
            _cut(fd, log.st_size, end)
    except OSError as error:
        why = f"the unfinished last line cannot be moved to {torn_file(path)!r}: {error.strerror or error}"
        raise OSError(error.errno, why, path) from error
    return log.st_size - end


def last_row_end(fd: int) -> int:
    r"""Return the offset after the last ``\n``; 0 if there is none. The position of `fd` is changed.

    Raises:
        OSError: The file cannot be read, or it shrinks while it is read.
    """
    end, step = os.fstat(fd).st_size, _LAST_BLOCK
    while end:
        start, step = max(end - step, 0), _BLOCK
        block = b"".join(blocks(fd, start, end))
        if len(block) < end - start:  # a line end in the rest may not be the last one
            raise OSError(errno.EIO, "the file shrinks while it is read")
        if (found := block.rfind(b"\n")) >= 0:
            return start + found + 1
        end = start
    return 0


def blocks(fd: int, start: int, end: int, *, skip_holes: bool = False) -> Generator[bytes]:
    """Read from `start` to `end`, or to the end of the file if that comes first.

    Args:
        fd: The file.
        start: Offset of the first byte.
        end: Offset after the last byte.
        skip_holes: Return NUL bytes for ranges that the file system reports as never written, without reading them.
            Must not be used to decide where to cut: file systems have reported recent data as a hole.
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
    """Return where the hole that begins at `start` ends; `start` if there is none, or it is unknown."""
    try:
        return min(os.lseek(fd, start, os.SEEK_DATA), end)
    except AttributeError:  # Windows
        return start
    except OSError as error:
        # ENXIO: the rest of the file, which may have shrunk, is one hole
        return min(os.fstat(fd).st_size, end) if error.errno == errno.ENXIO else start


def _cut(fd: int, size: int, end: int) -> None:
    if os.fstat(fd).st_size != size:
        raise OSError(errno.EBUSY, "another program changes the log without a lock")
    os.ftruncate(fd, end)


@contextmanager
def _torn_file(log_path: str, fd: int, log: os.stat_result) -> Generator[int]:
    """Open the file for unfinished lines, at the start of a line.

    If the block raises, the file is restored, unless the log was already cut: an interrupt may come right after that.
    """
    path = torn_file(log_path)
    torn, new = _open_torn(path, log)
    size = os.lseek(torn, 0, os.SEEK_END)
    try:
        if size:
            _write(torn, b"\n")
        if new:
            sync_folder(path)
        yield torn
    except BaseException:  # raised again
        with suppress(OSError):  # the first error matters; bytes that stay in both files are not lost
            if os.fstat(fd).st_size >= log.st_size:  # not cut
                os.ftruncate(torn, size)
                if new:
                    Path(path).unlink()
        raise
    finally:
        os.close(torn)


def _open_torn(path: str, log: os.stat_result) -> tuple[int, bool]:
    """Open a file as private as the log, and no link of another user; return it, and whether it is new."""
    try:
        fd = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, partial(os.open, mode=0o600))
    except FileExistsError:
        fd = open_regular(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        with ExitStack() as on_error:
            on_error.callback(os.close, fd)
            status = os.fstat(fd)
            if status.st_nlink != 1:
                raise OSError(errno.EPERM, "a file with another hard link", path) from None
            refuse_file_of_other_user(path, status, log.st_uid, anywhere=True)
            on_error.pop_all()
        return fd, False
    with suppress(AttributeError, OSError):  # if root repairs a log, its owner must be able to read and extend the file
        os.fchown(fd, log.st_uid, log.st_gid)
    return fd, True


def _write(fd: int, data: bytes) -> None:
    if _ZEROS.startswith(data):  # a skipped range takes no space
        os.lseek(fd, len(data), os.SEEK_CUR)
        return
    while data:
        data = data[os.write(fd, data) :]


def sync_folder(path: str) -> None:
    """Call fsync on the folder of a new file, so that its name survives a power failure."""
    try:
        folder = os.open(Path(path).parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        # The file system cannot do this, or the user may write in the folder but not read it
        if error.errno not in {errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.EPERM}:
            raise
