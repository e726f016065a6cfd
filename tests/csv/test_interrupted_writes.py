"""Tests of writes that are interrupted by an exception from a signal handler.

The exception is raised before every line of the writer's code in turn. Every row must be in the file exactly once, even
if the next fsync fails and the kernel forgets what was written since the last one.
"""

from __future__ import annotations

import errno
import linecache
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support.failing_calls import Children, Say

from otel_connector._csv import _backlog, _file, _flusher, _fsync, _lock, _writer
from otel_connector._csv._options import LogOptions
from otel_connector._csv._writer import RowWriter

HEADER = b"a,b\n"
FILES = {module.__file__ for module in (_writer, _backlog, _fsync, _flusher, _file, _lock)}


def row(number: int) -> bytes:
    return f"{number},".encode().ljust(20, b"x") + b"\n"


class Interrupted(BaseException):
    """Raised by the trace function, instead of a signal handler."""


def location(frame: FrameType) -> tuple[str, int]:
    return frame.f_code.co_filename, frame.f_lineno


def interrupt(nth: int) -> Callable[[FrameType, str, Any], Any]:
    """Return a trace function that raises before the `nth` line that is run in the writer's files."""
    left = nth

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        del argument
        if frame.f_code.co_filename not in FILES:
            return None
        # At the end of a `with` block, before the lock is released, a trace function is called. A signal handler
        # never runs at that point
        if event == "line" and not linecache.getline(*location(frame)).lstrip().startswith("with "):
            left -= 1
            if not left:
                raise Interrupted
        return trace

    return trace


def writer_with_waiting_rows(path: Path) -> RowWriter:
    """Return a writer with one row in the file and three that wait: the disk was full, and has room again."""
    writer = RowWriter(path, HEADER)
    writer.write([row(0)])
    assert writer._log is not None
    descriptor = writer._log._fd
    file, full = os.dup(descriptor), os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, descriptor)
    for number in range(1, 4):
        writer.write([row(number)])
    os.dup2(file, descriptor)
    os.close(file)
    os.close(full)
    return writer


def writer_without_waiting_rows(path: Path) -> RowWriter:
    writer = RowWriter(path, HEADER)
    for number in range(4):
        writer.write([row(number)])
    return writer


class Disk:
    """Replaces `os.fdatasync`. When it fails, what was written since the last success is lost, as in the kernel."""

    def __init__(self) -> None:
        self.fails = 0
        self._sizes: dict[str, int] = {}
        os.fdatasync = self  # type: ignore[assignment]

    def __call__(self, fd: int) -> None:
        path, size = str(Path(f"/proc/self/fd/{fd}").readlink()), os.fstat(fd).st_size
        if not self.fails:
            self._sizes[path] = size
            return
        self.fails -= 1
        begin = self._sizes.get(path, len(HEADER))
        with Path(path).open("r+b") as file:
            file.seek(begin)
            file.write(bytes(size - begin))
        raise OSError(errno.EIO, "Input/output error")


def writer_with_fsync(path: Path, interval: float, *, failing: bool) -> RowWriter:
    """Return a writer with four rows in the file. The next fsync may fail."""
    disk = Disk()
    writer = RowWriter(path, HEADER, LogOptions(fsync_interval=interval))
    for number in range(4):
        writer.write([row(number)])
    disk.fails = int(failing)
    return writer


WRITERS: dict[str, Callable[[Path], RowWriter]] = {
    "rows wait": writer_with_waiting_rows,
    "no row waits": writer_without_waiting_rows,
    "fsync after each row": partial(writer_with_fsync, interval=0, failing=False),
    "a failing fsync after each row": partial(writer_with_fsync, interval=0, failing=True),
    "a failing fsync later": partial(writer_with_fsync, interval=3_600, failing=True),
}


def write_of_another_process(path: Path) -> bool:
    """Return whether another writer can write. Its row is removed, so that the file is this writer's alone."""
    other = RowWriter(path, HEADER)
    written = other.write([row(9)])
    other.close()
    os.truncate(path, path.read_bytes().find(row(9)))
    return written


def interrupt_writes(say: Say, folder: str, kind: str) -> None:
    """Interrupt a write at its first line, its second, and so on. Report what the files contained."""
    os.dup2(os.open(Path(folder, "stderr"), os.O_WRONLY | os.O_CREAT), 2)
    make = WRITERS[kind]
    logging.disable()  # the warnings about the full disk
    endings, nth, interrupted = Counter[str](), 0, True
    while interrupted:
        nth += 1
        path = Path(folder, f"{nth}.csv")
        writer = make(path)
        sys.settrace(interrupt(nth))
        try:
            writer.write([row(4)])
            interrupted = False
        except Interrupted:
            pass
        finally:
            sys.settrace(None)
        if not write_of_another_process(path):
            endings["the lock was kept"] += 1
        writer.write([row(5)])
        while not writer.flush():
            pass
        writer.close()
        lines = path.read_bytes().splitlines(keepends=True)
        taken = [row(number) for number in range(6)]
        if row(4) not in lines:  # the write was interrupted before it took the row
            taken.remove(row(4))
        endings["right" if lines == [HEADER, *taken] else f"wrong: {lines}"] += 1
        endings["counted" if writer.counts() == (len(taken), 0, 0) else f"{nth}: {writer.counts()}"] += 1
    say([nth, endings])


@pytest.mark.parametrize("kind", WRITERS)
def test_a_write_interrupted_at_any_line_neither_loses_nor_repeats_rows(
    kind: str, child_processes: Children, tmp_path: Path
) -> None:
    """In a child process, without coverage, which uses a trace function, too."""
    code, said = child_processes.run(interrupt_writes, folder=str(tmp_path), kind=kind)
    assert (code, (tmp_path / "stderr").read_text()) == (0, "")
    ((lines, endings),) = said
    assert lines > 20
    assert endings == {"right": lines, "counted": lines}
