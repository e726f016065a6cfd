"""A signal's handler may raise between any two lines of the writer: every row is in the file once all the same."""

from __future__ import annotations

import json
import linecache
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support import processes
from support.failing_calls import without_coverage
from support.processes import clean_environment

from otel_connector import _csv_writer, _log_file
from otel_connector._csv_writer import RowWriter

HEADER = b"a,b\n"
FILES = {_csv_writer.__file__, _log_file.__file__}


def row(number: int) -> bytes:
    return f"{number},".encode().ljust(20, b"x") + b"\n"


class Interrupted(BaseException):
    """What the handler raises."""


def place(frame: FrameType) -> tuple[str, int]:
    return frame.f_code.co_filename, frame.f_lineno


def interrupt(nth: int) -> Callable[[FrameType, str, Any], Any]:
    """Return a trace function that raises before the `nth` line of the writer's files that is run."""
    left = nth

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        del argument
        if frame.f_code.co_filename not in FILES:
            return None
        # At the end of a `with` a trace function is called where no signal's handler ever is: before the lock is let go
        if event == "line" and not linecache.getline(*place(frame)).lstrip().startswith("with "):
            left -= 1
            if not left:
                raise Interrupted
        return trace

    return trace


def with_rows_that_wait(path: Path) -> RowWriter:
    """Return a writer with one row in the file and three that a full disk refused, which has room again."""
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


def with_nothing_that_waits(path: Path) -> RowWriter:
    writer = RowWriter(path, HEADER)
    for number in range(4):
        writer.write([row(number)])
    return writer


def main(folder: Path, kind: str) -> None:
    """Interrupt a write at its first line, its second, and so on; print what was found."""
    make = {"waiting": with_rows_that_wait, "nothing": with_nothing_that_waits}[kind]
    logging.disable()  # what is said of the full disk
    endings, nth, interrupted = Counter[str](), 0, True
    while interrupted:
        nth += 1
        path = folder / f"{nth}.csv"
        writer = make(path)
        sys.settrace(interrupt(nth))
        try:
            writer.write([row(4)])
            interrupted = False
        except Interrupted:
            pass
        finally:
            sys.settrace(None)
        other = RowWriter(path, HEADER)
        if not other.write([row(9)]):
            endings["the lock was kept"] += 1
        other.close()
        writer.write([row(5)])
        writer.close()
        lines = path.read_bytes().splitlines(keepends=True)
        lines.remove(row(9))
        taken = [row(number) for number in range(6)]
        if row(4) not in lines:  # the write had not begun
            taken.remove(row(4))
        endings["right" if lines == [HEADER, *taken] else f"wrong: {lines}"] += 1
        endings["counted" if writer.counts() == (len(taken), 0, 0) else f"{nth}: {writer.counts()}"] += 1
    print(json.dumps([nth, endings]))  # noqa: T201 - read by the test


@pytest.mark.parametrize("kind", ["waiting", "nothing"])
def test_a_write_interrupted_at_every_line(kind: str, tmp_path: Path) -> None:
    environment = without_coverage(clean_environment())  # coverage is a trace function, too
    done = processes.run(
        [sys.executable, __file__, str(tmp_path), kind], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines, endings = json.loads(done.stdout)
    assert lines > 20
    assert endings == {"right": lines, "counted": lines}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
