"""Tests of `RowWriter`: concurrent writers, rotation, fsync, interrupts and real write errors.

Write errors come from the system, through `/dev/full` and RLIMIT_FSIZE.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import itertools
import logging
import os
import resource
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import faulty_disks
from support.forked import run_python

from otel_connector._csv import _file, _lock, _writer
from otel_connector._csv._check import repair
from otel_connector._csv._options import LogOptions
from otel_connector._csv._writer import RowWriter

HEADER = b"a,b\n"
LOGGER = "otel_connector"


def row(number: int, length: int = 20) -> bytes:
    return f"{number},".encode().ljust(length, b"x") + b"\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs.csv"


def open_descriptors() -> list[str]:
    return sorted(entry.name for entry in Path("/dev/fd").iterdir())


def descriptor_of(writer: RowWriter) -> int:
    assert writer._log is not None
    return writer._log._fd


@contextlib.contextmanager
def full_disk(writer: RowWriter) -> Iterator[None]:
    """Make every write fail with ENOSPC: in the block, the writer's descriptor refers to /dev/full."""
    descriptor = descriptor_of(writer)
    file, full = os.dup(descriptor), os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, descriptor)
    try:
        yield
    finally:
        os.dup2(file, descriptor)
        os.close(file)
        os.close(full)


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Limit the files of this process to `size` bytes: a write beyond that is short, and the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_concurrently(*tasks: Callable[[], object]) -> None:
    barrier = threading.Barrier(len(tasks))

    def run(task: Callable[[], object]) -> None:
        barrier.wait()
        task()

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_rows_are_in_the_file_when_write_returns(path: Path) -> None:
    writer = RowWriter(path, HEADER)

    assert path.read_bytes() == HEADER
    assert writer.write([])
    assert writer.write([row(1)])
    assert writer.write([row(2), row(3)])
    assert path.read_bytes() == HEADER + row(1) + row(2) + row(3)
    assert writer.counts() == (3, 0, 0)
    assert writer.path == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(("overwrite", "kept"), [(False, HEADER + row(1)), (True, HEADER)])
@pytest.mark.parametrize("locks", [True, False], ids=["flock", "no-flock"])
def test_a_file_is_continued_or_overwritten(
    path: Path, overwrite: bool, kept: bytes, locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not locks:
        monkeypatch.setattr(_lock, "fcntl", None)
    for number, mode in ((1, False), (2, overwrite)):
        writer = RowWriter(path, HEADER, LogOptions(overwrite=mode))
        assert writer.write([row(number)])
        assert writer.close()

    assert path.read_bytes() == kept + row(2)


@pytest.mark.parametrize(
    "content", [b"x,y\n1,2\n", b"a,c", b"a,b\r\n", b"\xef\xbb\xbfa,b\n", b"\xff\n", b"\n" + HEADER]
)
def test_another_header_is_refused_and_nothing_is_changed(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    descriptors = open_descriptors()

    with pytest.raises(ValueError, match=r"^the file has another header: .*; choose another file, or empty this one$"):
        RowWriter(path, HEADER)
    assert path.read_bytes() == content
    assert open_descriptors() == descriptors
    RowWriter(path, HEADER, LogOptions(overwrite=True))
    assert path.read_bytes() == HEADER


@pytest.mark.parametrize("length", range(len(HEADER)))
def test_an_incomplete_header_is_completed(path: Path, length: int) -> None:
    """A program that is killed during its first write leaves such a file."""
    path.write_bytes(HEADER[:length])
    assert RowWriter(path, HEADER).write([row(1)])
    assert path.read_bytes() == HEADER + row(1)


def symlink_loop(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: folder,
        lambda folder: folder / "missing" / "logs.csv",
        lambda folder: folder / ("x" * 300),
        lambda _: "",
        lambda folder: str(folder / "nul\0"),
        lambda folder: str(folder / "surrogate\ud800"),
        lambda _: "/dev/full",
        fifo,
        symlink_loop,
    ],
    ids=["folder", "missing", "long", "empty", "nul", "surrogate", "device", "fifo", "loop"],
)
def test_a_path_that_cannot_be_a_regular_file_is_refused_immediately(
    make: Callable[[Path], str | Path], tmp_path: Path
) -> None:
    path, descriptors = make(tmp_path), open_descriptors()

    with pytest.raises(OSError, match=r"^\[Errno \d+\] .") as caught:
        RowWriter(path, HEADER)
    assert caught.value.filename == str(path)
    assert open_descriptors() == descriptors


def test_a_folder_without_write_permission_is_refused(path: Path) -> None:
    path.parent.chmod(0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)  # root may write to any folder
    try:
        with pytest.raises(PermissionError, match="Permission denied"):
            RowWriter(path, HEADER)
    finally:
        os.seteuid(user)
        path.parent.chmod(0o700)


@pytest.mark.parametrize("room", [0, 1, len(HEADER) - 1])
def test_a_disk_without_room_for_the_header_is_refused_and_the_file_is_usable_later(path: Path, room: int) -> None:
    with file_size_limit(room), pytest.raises(OSError, match=r"^\[Errno"):
        RowWriter(path, HEADER)
    RowWriter(path, HEADER)
    assert path.read_bytes() == HEADER


def test_rows_are_buffered_while_the_disk_is_full_and_written_in_order(path: Path) -> None:
    writer = RowWriter(path, HEADER)
    with full_disk(writer):
        assert not writer.write([row(1), row(2)])
        assert not writer.write([row(3)])
        assert not writer.flush()
        assert writer.counts() == (0, 3, 0)

    assert writer.write([row(4)])
    assert writer.flush()
    assert path.read_bytes() == HEADER + b"".join(map(row, (1, 2, 3, 4)))
    assert writer.counts() == (4, 0, 0)


@given(
    steps=st.lists(
        st.tuples(st.lists(st.integers(4, 60), max_size=5), st.none() | st.integers(0, 120)), min_size=1, max_size=12
    )
)
def test_short_writes_never_merge_lose_or_reorder_rows(
    steps: list[tuple[list[int], int | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each step writes rows of the given lengths, with that many bytes of free space or, for None, without a limit."""
    path = tmp_path_factory.mktemp("full") / "logs.csv"
    writer, sent, logger = RowWriter(path, HEADER), [HEADER], logging.getLogger(LOGGER)
    logger.disabled = True
    try:
        for lengths, room in steps:
            rows = [row(number, length) for number, length in enumerate(lengths, len(sent))]
            sent += rows
            with contextlib.nullcontext() if room is None else file_size_limit(path.stat().st_size + room):
                done = writer.write(rows)
            assert done == (path.read_bytes() == b"".join(sent)) or not rows
            assert writer.counts() == (whole := path.read_bytes().count(b"\n") - 1, len(sent) - 1 - whole, 0)
        assert writer.close()
    finally:
        logger.disabled = False
    assert path.read_bytes() == b"".join(sent)


def test_closing_on_a_full_disk_loses_the_waiting_rows_and_returns_false(path: Path) -> None:
    writer = RowWriter(path, HEADER)
    descriptor = descriptor_of(writer)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, descriptor)
    os.close(full)
    writer.write([row(1), row(2)])
    assert not writer.close()

    assert writer.counts() == (0, 0, 2)
    assert path.read_bytes() == HEADER


def test_a_closed_writer_counts_rows_as_lost(path: Path) -> None:
    writer = RowWriter(path, HEADER)
    assert [writer.close(), writer.close(), writer.flush()] == [True, True, True]
    assert not writer.write([row(1), row(2)])
    assert writer.counts() == (0, 0, 2)
    assert path.read_bytes() == HEADER


def test_a_closed_writer_does_not_write_to_a_file_that_reuses_its_descriptor(path: Path, tmp_path: Path) -> None:
    writer = RowWriter(path, HEADER)
    descriptor = descriptor_of(writer)
    writer.close()
    with (tmp_path / "other").open("wb") as other:
        assert other.fileno() == descriptor
        assert not writer.write([row(1)])
        writer.close()
        os.fstat(other.fileno())
    assert (tmp_path / "other").read_bytes() == b""


def test_a_full_backlog_keeps_the_oldest_rows_and_drops_new_ones(path: Path) -> None:
    writer = RowWriter(path, HEADER, LogOptions(backlog_bytes=3 * len(row(0))))
    with full_disk(writer):
        for number in range(5):
            writer.write([row(number)])
        assert writer.counts() == (0, 3, 2)
    assert writer.flush()
    assert path.read_bytes() == HEADER + row(0) + row(1) + row(2)
    assert writer.counts() == (3, 0, 2)


def test_a_full_backlog_accepts_a_row_when_the_disk_has_room_again(path: Path) -> None:
    writer = RowWriter(path, HEADER, LogOptions(backlog_bytes=len(row(0))))
    with full_disk(writer):
        writer.write([row(1)])

    assert writer.write([row(2)])
    assert path.read_bytes() == HEADER + row(1) + row(2)
    assert writer.counts() == (2, 0, 0)


def test_the_rest_of_a_partly_written_row_is_kept_even_above_the_backlog_limit(path: Path) -> None:
    writer = RowWriter(path, HEADER, LogOptions(backlog_bytes=1))
    with file_size_limit(len(HEADER) + 5):
        writer.write([row(1)])

    writer.write([row(2)])
    assert path.read_bytes() == HEADER + row(1) + row(2)


def test_the_cost_of_a_row_does_not_grow_with_the_backlog(path: Path) -> None:
    """Write 20,000 rows one by one. If each write tried the whole backlog again, this would take minutes."""
    writer = RowWriter(path, HEADER)
    with full_disk(writer):
        for number in range(20_000):
            writer.write([row(number)])
    assert writer.close()
    assert path.read_bytes() == HEADER + b"".join(map(row, range(20_000)))


def test_write_errors_are_logged_once_a_minute(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    writer = RowWriter(path, HEADER, monotonic=lambda: now)
    logged = []
    with full_disk(writer):
        for now in (0.0, 1.0, 59.9, 60.0, 61.0, 120.0):  # noqa: B007 - read by the clock
            writer.write([row(1)])
            logged.append(len(caplog.records))

    assert logged == [1, 1, 1, 2, 2, 3]
    assert {(record.name, record.levelname) for record in caplog.records} == {(LOGGER, "WARNING")}
    assert str(path) in caplog.text
    assert "No space left" in caplog.text


@pytest.mark.parametrize("kind", [RuntimeError, GeneratorExit])
def test_a_logging_handler_may_use_the_writer_and_may_raise(path: Path, kind: type[BaseException]) -> None:
    class LockTakingHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not lock.acquire(timeout=1):  # `counts` takes this lock, and would wait forever
                failures.append("held")
            else:
                lock.release()
            raise kind

    failures: list[str] = []
    writer = RowWriter(path, HEADER)
    lock, handler, logger = writer._lock, LockTakingHandler(), logging.getLogger(LOGGER)
    logger.addHandler(handler)
    try:
        with full_disk(writer):
            assert not writer.write([row(1)])
    finally:
        logger.removeHandler(handler)
    assert not failures
    assert writer.counts() == (0, 1, 0)


def test_the_descriptor_is_closed_when_the_writer_is_garbage_collected(path: Path) -> None:
    writer = RowWriter(path, HEADER)
    descriptor = descriptor_of(writer)
    del writer
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_threads_that_share_a_writer_lose_no_rows(path: Path) -> None:
    writer = RowWriter(path, HEADER)
    run_concurrently(
        *(lambda first=first: [writer.write([row(first + n)]) for n in range(500)] for first in range(0, 4_000, 500))
    )

    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted([HEADER, *map(row, range(4_000))])
    assert writer.counts() == (4_000, 0, 0)


def test_writers_that_open_a_new_file_concurrently_write_one_header(path: Path) -> None:
    for _ in range(20):
        path.unlink(missing_ok=True)
        run_concurrently(*(lambda n=n: RowWriter(path, HEADER).write([row(n)]) for n in range(8)))
        assert path.read_bytes().startswith(HEADER)
        assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted([HEADER, *map(row, range(8))])


PROCESSES = """
import multiprocessing, sys
from otel_connector._csv._writer import RowWriter

def run(number):
    barrier.wait()
    writer = RowWriter(sys.argv[1], b"a,b\\n")
    for n in range(500):
        assert writer.write([f"{number},{n},{'x' * (n % 400)}\\n".encode()])

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(8)
    processes = [context.Process(target=run, args=(number,)) for number in range(8)]
    for process in processes: process.start()
    for process in processes: process.join()
    sys.exit(any(process.exitcode for process in processes))
"""


def test_processes_that_share_a_file_lose_no_rows(path: Path) -> None:
    done = run_python(["-c", PROCESSES, str(path)], path.parent)
    assert done.returncode == 0, done.stderr

    header, *lines = path.read_text().splitlines()
    assert header == HEADER.decode().strip()
    for number in range(8):
        own = [line for line in lines if line.startswith(f"{number},")]
        assert own == [f"{number},{n},{'x' * (n % 400)}" for n in range(500)]
    assert len(lines) == 4_000


def test_a_torn_tail_is_moved_to_the_torn_file(path: Path) -> None:
    """A killed process or a disk that stayed full leaves such a tail."""
    path.write_bytes(HEADER + row(1) + row(2)[:7])
    RowWriter(path, HEADER).write([row(3)])
    assert path.read_bytes() == HEADER + row(1) + row(3)
    assert torn(path).read_bytes() == row(2)[:7]


def torn(path: Path) -> Path:
    return path.with_name(path.name + ".torn")


def test_a_torn_tail_is_moved_by_the_next_writer(path: Path) -> None:
    """Other writers go on after a process was killed in the middle of a row.

    Every row is written under the lock. A writer that holds the lock therefore knows that the tail is not in progress.
    """
    first, second = RowWriter(path, HEADER), RowWriter(path, HEADER)
    assert first.write([row(1)])
    with path.open("ab") as killed:
        killed.write(b'9,"half a ')
    assert second.write([row(2)])
    assert first.write([row(3)])
    assert path.read_bytes() == HEADER + row(1) + row(2) + row(3)
    assert torn(path).read_bytes() == b'9,"half a '


@pytest.mark.parametrize(("tail", "end"), [(b"9,half", b"\n"), (b'9,"half', b'"\n')])
def test_a_torn_tail_that_cannot_be_moved_is_ended_with_a_line_end(path: Path, tail: bytes, end: bytes) -> None:
    """If the tail has an open quote, it is closed first. Readers would otherwise take the next rows into that cell."""
    path.write_bytes(HEADER + row(1) + tail)
    torn(path).mkdir()  # the tail cannot be saved, so it is not cut
    writer = RowWriter(path, HEADER)
    assert writer.write([row(3)])
    assert path.read_bytes() == HEADER + row(1) + tail + end + row(3)


def test_a_torn_tail_stays_and_rows_wait_while_there_is_no_room_to_move_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ending the tail leaves a broken line forever, so this is done only if the tail can never be moved."""
    writer = RowWriter(path, HEADER)
    assert writer.write([row(1)])
    with path.open("ab") as file:
        file.write(b'9,"half')

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)  # called for the torn file before the line is cut
        assert not writer.write([row(2)])
        assert path.read_bytes() == HEADER + row(1) + b'9,"half'
        with pytest.raises(OSError, match=r"the unfinished last line cannot be moved to .*: No space"):
            RowWriter(path, HEADER)
    assert writer.write([row(3)])
    assert path.read_bytes() == HEADER + row(1) + row(2) + row(3)
    assert torn(path).read_bytes() == b'9,"half'
    assert writer.close()


def test_an_emptied_file_gets_its_header_again(path: Path) -> None:
    """Logrotate with `copytruncate` empties the file."""
    writer = RowWriter(path, HEADER)
    assert writer.write([row(1)])
    os.truncate(path, 0)
    assert writer.write([row(2)])
    assert path.read_bytes() == HEADER + row(2)


def test_rows_wait_while_another_program_locks_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_LOCK_TIMEOUT", "_SHORT_LOCK_TIMEOUT"):
        monkeypatch.setattr(_writer, name, 0.0)
    monkeypatch.setattr(_file, "_OPENING_TIMEOUT", 0.0)
    writer = RowWriter(path, HEADER)
    with path.open("rb") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"locked by another process"):
            RowWriter(path, HEADER)
        assert not writer.write([row(1)])
        assert not writer.write([row(2)])
        assert writer.counts() == (0, 2, 0)
    assert writer.write([row(3)])
    assert path.read_bytes() == HEADER + row(1) + row(2) + row(3)


def test_a_write_waits_for_the_file_lock(path: Path) -> None:
    writer = RowWriter(path, HEADER)
    with path.open("rb") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        timer = threading.Timer(0.05, lambda: fcntl.flock(theirs, fcntl.LOCK_UN))
        timer.start()
        assert writer.write([row(1)])
        timer.join()
    assert path.read_bytes() == HEADER + row(1)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_rows_are_written_on_a_file_system_without_locks(
    path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(_lock.fcntl, "flock", no_locks)
    writer = RowWriter(path, HEADER)
    assert writer.write([row(1)])
    assert path.read_bytes() == HEADER + row(1)


# Renamed files and rotation


def test_after_a_rename_or_a_deletion_rows_go_to_a_new_file(path: Path) -> None:
    writer = RowWriter(path, HEADER, monotonic=itertools.count().__next__)
    assert writer.write([row(1)])
    path.rename(path.with_suffix(".1"))
    assert writer.write([row(2)])
    path.unlink()
    assert writer.write([row(3)])
    assert path.with_suffix(".1").read_bytes() == HEADER + row(1)
    assert path.read_bytes() == HEADER + row(3)
    assert writer.counts() == (3, 0, 0)


def test_rows_go_to_the_renamed_file_while_no_new_file_can_be_made(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = RowWriter(path, HEADER, monotonic=itertools.count().__next__)
    path.rename(path.with_suffix(".1"))
    path.mkdir()
    assert writer.write([row(1)])
    assert path.with_suffix(".1").read_bytes() == HEADER + row(1)
    assert "Is a directory" in caplog.text
    path.rmdir()
    assert writer.write([row(2)])
    assert path.read_bytes() == HEADER + row(2)


def test_rows_wait_while_the_path_leads_to_a_file_of_another_program(path: Path) -> None:
    writer = RowWriter(path, HEADER, monotonic=itertools.count().__next__)
    path.unlink()
    path.write_bytes(b"of another tool\n")
    assert not writer.write([row(1)])
    path.unlink()
    assert writer.write([row(2)])
    assert path.read_bytes() == HEADER + row(1) + row(2)


def test_a_relative_path_is_resolved_when_the_writer_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    writer = RowWriter("logs.csv", HEADER, monotonic=itertools.count().__next__)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "logs.csv").unlink()
    assert writer.write([row(1)])
    assert (tmp_path / "logs.csv").read_bytes() == HEADER + row(1)


def parts(path: Path) -> list[bytes]:
    return [part.read_bytes() for part in sorted(path.parent.glob("logs*.csv"), key=lambda part: (part == path, part))]


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_rotation_by_rows_starts_a_new_file_after_the_given_number(path: Path, batch: int) -> None:
    writer = RowWriter(path, HEADER, LogOptions(rotate_rows=4))
    rows = [row(number) for number in range(10)]
    for start in range(0, 10, batch):
        assert writer.write(rows[start : start + batch])
    assert parts(path) == [HEADER + b"".join(rows[:4]), HEADER + b"".join(rows[4:8]), HEADER + b"".join(rows[8:])]
    assert [part.name for part in sorted(path.parent.iterdir())] == [
        "logs.csv",
        "logs.part-000001.csv",
        "logs.part-000002.csv",
    ]
    assert writer.counts() == (10, 0, 0)


def test_a_new_writer_counts_the_rows_already_in_the_file_for_rotation(path: Path) -> None:
    for number in range(10):
        writer = RowWriter(path, HEADER, LogOptions(rotate_rows=4))
        assert writer.write([row(number)])
        writer.close()
    assert [part.count(b"\n") - 1 for part in parts(path)] == [4, 4, 2]


def test_rotation_counts_the_rows_of_other_writers(path: Path) -> None:
    first, second = (
        RowWriter(path, HEADER, LogOptions(rotate_rows=4), monotonic=itertools.count().__next__) for _ in "ab"
    )
    for number in range(5):
        assert first.write([row(number)])
        assert second.write([row(number + 10)])
    assert [part.count(b"\n") - 1 for part in parts(path)] == [4, 4, 2]
    assert sorted(b"".join(parts(path)).splitlines()) == sorted(
        [*[HEADER.strip()] * 3, *(row(number + other).strip() for number in range(5) for other in (0, 10))]
    )


def test_rotation_by_bytes_starts_a_new_file_before_the_limit_is_exceeded(path: Path) -> None:
    limit = len(HEADER) + 2 * len(row(0)) + 5
    writer = RowWriter(path, HEADER, LogOptions(rotate_bytes=limit))
    rows = [row(1), row(2), row(3), row(4, 500), row(5)]
    assert writer.write(rows)
    assert parts(path) == [HEADER + rows[0] + rows[1], HEADER + rows[2], HEADER + rows[3], HEADER + rows[4]]


def assert_only_the_rotation_fails(path: Path, caplog: pytest.LogCaptureFixture, cause: str) -> None:
    """Every row is written, and one line says what cannot be done: not the writing."""
    writer = RowWriter(path, HEADER, LogOptions(rotate_rows=1))
    for number in range(3):
        assert writer.write([row(number)])
    assert path.read_bytes() == HEADER + row(0) + row(1) + row(2)
    assert (writer.counts().waiting, writer.counts().lost) == (0, 0)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{path} cannot be rotated, its rows go on into the old file: ")
    assert cause in line


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EPERM, errno.EACCES, errno.EXDEV, errno.EROFS, errno.ENOSPC])
def test_a_failed_rename_is_logged_and_rows_stay_in_the_old_file(
    number: int, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "rename", refuse)  # before Python 3.11 it does not look up os.rename
    assert_only_the_rotation_fails(path, caplog, os.strerror(number))


def test_a_log_that_is_mounted_by_itself_is_written_but_not_rotated(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As with ``docker run -v /data/logs.csv:/logs.csv``."""
    path.touch()
    with faulty_disks.mounted(path, "--bind", path):
        assert_only_the_rotation_fails(path, caplog, "Device or resource busy")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_log_in_a_folder_that_cannot_be_changed_is_written_but_not_rotated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "logs.csv")
        path.touch()
        os.chown(path, 65_534, 65_534)
        Path(folder).chmod(0o755)
        os.seteuid(65_534)
        try:
            assert_only_the_rotation_fails(path, caplog, "Permission denied")
        finally:
            os.seteuid(0)


def test_a_rotation_that_fails_does_not_hide_a_disk_that_fails(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RowWriter(path, HEADER, LogOptions(rotate_rows=1))
    with monkeypatch.context() as patch:
        failing(patch, _file, "next_part", errno.EBUSY)
        assert writer.write([row(0), row(1)])
    with full_disk(writer):
        assert not writer.write([row(2)])
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        f"{path} cannot be rotated",
        f"{path} cannot be written",
    ]


def test_rows_stay_in_the_old_file_when_rotation_cannot_open_a_new_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RowWriter(path, HEADER, LogOptions(rotate_rows=1), monotonic=itertools.count().__next__)
    assert writer.write([row(0)])
    monkeypatch.setattr(_writer, "AppendFile", None)  # it must not be used
    monkeypatch.setattr(writer, "_open", lambda: (_ for _ in ()).throw(OSError(errno.EMFILE, "no more files")))
    assert writer.write([row(1), row(2)])
    assert parts(path) == [HEADER + row(0) + row(1) + row(2)]
    monkeypatch.undo()
    assert writer.write([row(3)])
    assert parts(path) == [HEADER + row(0) + row(1) + row(2), HEADER + row(3)]


@pytest.mark.parametrize("existing", ["logs.part-000001.csv", "logs.part-000001.csv.gz", "logs.part-000001.csv.zst"])
def test_a_part_gets_a_number_behind_all_parts_compressed_or_not(existing: str, path: Path) -> None:
    path.with_name(existing).write_bytes(b"of another time\n")
    path.with_name("logs.part-000004.csv").write_bytes(b"later\n")
    writer = RowWriter(path, HEADER, LogOptions(rotate_rows=1))
    for number in range(3):
        assert writer.write([row(number)])
    assert path.with_name(existing).read_bytes() == b"of another time\n"
    assert path.with_name("logs.part-000005.csv").read_bytes() == HEADER + row(0)
    assert path.with_name("logs.part-000006.csv").read_bytes() == HEADER + row(1)
    assert path.read_bytes() == HEADER + row(2)


def test_rows_stay_in_the_file_while_no_free_name_can_be_found(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = RowWriter(path, HEADER, LogOptions(rotate_rows=1))
    with monkeypatch.context() as patch:
        failing(patch, _file, "next_part", errno.EIO)
        for number in range(3):
            assert writer.write([row(number)])
    assert "Input/output error" in caplog.text
    assert path.read_bytes() == HEADER + row(0) + row(1) + row(2)


# Permissions and symbolic links


@pytest.mark.parametrize("permissions", [0o600, 0o640, 0o666])
def test_a_new_file_gets_the_given_permissions_regardless_of_the_umask(path: Path, permissions: int) -> None:
    umask = os.umask(0o077)
    try:
        RowWriter(path, HEADER, LogOptions(permissions=permissions))
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == permissions


def test_a_symbolic_link_of_the_same_user_is_followed(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "target.csv")
    assert RowWriter(path, HEADER).write([row(1)])
    assert path.is_symlink()
    assert (tmp_path / "target.csv").read_bytes() == HEADER + row(1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link to another user")
def test_a_symbolic_link_of_another_user_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "target.csv").write_bytes(HEADER)
    path.symlink_to(tmp_path / "target.csv")
    os.lchown(path, 65_534, 65_534)
    with pytest.raises(PermissionError, match="a symbolic link that belongs to another user"):
        RowWriter(path, HEADER)
    assert (tmp_path / "target.csv").read_bytes() == HEADER


# fsync


class Syncs:
    """Replaces `os.fdatasync`: records the file sizes at each call, and fails on request."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.fails = 0
        self.called = threading.Semaphore(0)
        monkeypatch.setattr(os, "fdatasync", self)

    def __call__(self, fd: int) -> None:
        if self.fails:
            self.fails -= 1
            raise OSError(errno.EIO, "Input/output error")
        self.sizes.append(os.fstat(fd).st_size)
        self.called.release()


def test_fsync_interval_0_syncs_every_row(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = Syncs(monkeypatch)
    writer = RowWriter(path, HEADER, LogOptions(fsync_interval=0))
    for number in (1, 2):
        assert writer.write([row(number)])
        assert syncs.sizes[-1] == path.stat().st_size
    assert len(syncs.sizes) == 2


def test_rows_are_synced_after_the_interval_without_another_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = Syncs(monkeypatch)
    writer = RowWriter(path, HEADER, LogOptions(fsync_interval=0.01))
    assert writer.write([row(1)])
    assert syncs.called.acquire(timeout=5)
    assert syncs.sizes[0] == path.stat().st_size
    assert writer.close()


@pytest.mark.parametrize("interval", [0, 0.01])
def test_a_failed_fsync_rewrites_the_rows_since_the_last_successful_fsync(
    path: Path, interval: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    syncs = Syncs(monkeypatch)
    writer = RowWriter(path, HEADER, LogOptions(fsync_interval=interval))
    assert writer.write([row(1)])
    assert writer.flush()
    syncs.fails = 1
    before = descriptor_of(writer)
    identity = os.fstat(before).st_ino
    writer.write([row(2)])
    while not writer.flush():
        pass
    assert path.read_bytes() == HEADER + row(1) + row(2), "row 2 is there once: no other program wrote"
    assert (writer.counts(), os.fstat(descriptor_of(writer)).st_ino) == ((2, 0, 0), identity)
    assert "Input/output error" in caplog.text
    assert syncs.sizes[-1] == path.stat().st_size


def test_a_failed_fsync_does_not_truncate_rows_of_other_writers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = Syncs(monkeypatch)
    writer, other = RowWriter(path, HEADER, LogOptions(fsync_interval=3_600)), RowWriter(path, HEADER)
    assert writer.write([row(1)])
    assert other.write([row(2)])
    assert writer.write([row(3)])
    syncs.fails = 1
    assert not writer.flush()
    assert writer.counts() == (0, 2, 0)
    assert writer.flush()
    assert path.read_bytes() == HEADER + b"".join(map(row, (1, 2, 3, 1, 3)))
    assert writer.close()


def test_a_renamed_file_is_synced_before_the_writer_closes_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = Syncs(monkeypatch)
    writer = RowWriter(path, HEADER, LogOptions(fsync_interval=3_600), monotonic=itertools.count().__next__)
    assert writer.write([row(1)])
    path.rename(path.with_suffix(".1"))
    assert writer.write([row(2)])
    assert syncs.sizes == [path.with_suffix(".1").stat().st_size]
    path.rename(path.with_suffix(".2"))
    syncs.fails = 1
    assert not writer.write([row(3)])
    assert writer.flush()
    assert path.read_bytes() == HEADER + row(2) + row(3), "rows whose fsync failed are in the new file, too"
    assert writer.close()


def test_the_number_of_unsynced_rows_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = Syncs(monkeypatch)
    writer = RowWriter(path, HEADER, LogOptions(fsync_interval=3_600, backlog_bytes=3 * len(row(0))))
    for number in range(5):
        assert writer.write([row(number)])
    assert syncs.sizes == [len(HEADER) + 4 * len(row(0))]
    assert writer.close()


@pytest.mark.parametrize("limit", [6 * len(row(0)), 64 * 2**20])
def test_a_failed_fsync_while_the_backlog_is_written_neither_loses_nor_repeats_rows(
    path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed fsync it is unknown which rows are on the disk, so all of them wait again, in order."""
    syncs = Syncs(monkeypatch)
    monkeypatch.setattr(_writer, "_BATCH", 2)
    writer = RowWriter(path, HEADER, LogOptions(fsync_interval=3_600, backlog_bytes=limit))
    assert all(writer.write([row(number)]) for number in range(2))
    with full_disk(writer):
        for number in range(2, 6):
            assert not writer.write([row(number)])
    writer._unsynced._limit = 3 * len(row(0))  # the bound on unsynced rows forces an fsync in the middle
    syncs.fails = 3
    for _ in range(3):
        assert not writer.flush()
        assert writer.counts() == (0, 6, 0)
    assert writer.flush()
    assert path.read_bytes() == HEADER + b"".join(map(row, range(6)))
    assert writer.counts() == (6, 0, 0)
    assert writer.close()


def test_an_fsync_that_keeps_failing_does_not_block_writes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = Syncs(monkeypatch)
    writer = RowWriter(path, HEADER, LogOptions(fsync_interval=0))
    syncs.fails = 10**9
    for number in range(3):
        assert not writer.write([row(number)])
        assert writer.counts() == (0, number + 1, 0)
    syncs.fails = 0
    assert writer.write([row(3)])
    assert path.read_bytes() == HEADER + b"".join(map(row, range(4)))
    assert writer.close()


def test_an_fsync_that_fails_in_the_flusher_thread_is_not_hidden_by_a_flush_at_the_same_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports an error once for an open file, so the second of two calls would succeed."""
    entered, go_on = threading.Event(), threading.Event()

    def fails_once(fd: int) -> None:
        del fd
        if not entered.is_set():
            entered.set()
            assert go_on.wait(5)
            raise OSError(errno.EIO, "Input/output error")

    writer = RowWriter(path, HEADER, LogOptions(fsync_interval=3_600))
    assert writer.write([row(1)])
    monkeypatch.setattr(os, "fdatasync", fails_once)
    identity = writer._log
    flusher = threading.Thread(target=writer.flush_periodically, args=[writer._flusher.current])
    flushed: list[bool] = []
    flush = threading.Thread(target=lambda: flushed.append(writer.flush()))
    flusher.start()
    assert entered.wait(5)
    flush.start()
    while flush.is_alive() and writer._lock.acquire(blocking=False):  # until the flush has taken the lock
        writer._lock.release()
    go_on.set()
    for thread in (flusher, flush):
        thread.join(5)
    assert writer.flush()
    assert writer._log is not identity, "the rows were written again"
    assert (path.read_bytes(), writer.counts()) == (HEADER + row(1), (1, 0, 0))
    assert writer.close()


def test_without_a_new_thread_rows_wait_for_the_next_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python starts no thread any more when the process ends."""

    def refuses(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuses)
    writer = RowWriter(path, HEADER)
    with full_disk(writer):
        assert not writer.write([row(1)])
    assert writer.write([row(2)])
    assert path.read_bytes() == HEADER + row(1) + row(2)
    assert writer.close()


def test_an_interrupted_start_of_the_flusher_is_repeated_by_the_next_write(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: threading.Thread) -> None:
        raise Interrupted

    writer = RowWriter(path, HEADER, LogOptions(fsync_interval=3_600))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(Interrupted):
            writer.write([row(1)])
    assert (writer._flusher.current,) == (None,)
    assert writer.write([row(2)])
    assert writer._flusher.current is not None
    assert writer.close()


def test_a_missing_free_descriptor_does_not_count_as_a_failed_fsync(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the rows would be written again, and would be in the file twice if another program had written."""
    syncs = Syncs(monkeypatch)
    writer = RowWriter(path, HEADER, LogOptions(fsync_interval=3_600))
    assert writer.write([row(1)])
    assert writer._flusher.current is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptor_of(writer) + 1, hard))
    try:
        writer.flush_periodically(writer._flusher.current)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (syncs.sizes, len(writer._unsynced.rows), writer.counts()) == ([], 1, (1, 0, 0)), (
        "the fsync is still pending"
    )
    writer.flush_periodically(writer._flusher.current)
    assert (syncs.sizes, len(writer._unsynced.rows)) == ([path.stat().st_size], 0)
    assert writer.close()


def test_a_row_counts_as_waiting_during_its_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, int]] = []
    writer = RowWriter(path, HEADER)
    write = os.write

    def slow(fd: int, data: bytes) -> int:
        seen.append(writer.counts())
        return write(fd, data)

    monkeypatch.setattr(os, "write", slow)
    assert writer.write([row(1)])
    assert (seen, writer.counts()) == ([(0, 1, 0)], (1, 0, 0))


# Signal handlers that raise in the middle of a write; `test_interrupted_writes` raises at every line


class Interrupted(BaseException):
    """Raised by the signal handler."""


@pytest.mark.parametrize("waiting", [0, 3])
@pytest.mark.parametrize("written", [True, False])
def test_an_interrupted_write_is_resumed_by_the_next_write(
    path: Path, written: bool, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, write = RowWriter(path, HEADER), os.write
    with full_disk(writer):
        for number in range(waiting):
            assert not writer.write([row(number)])

    def broken_off(fd: int, data: bytes) -> int:
        if written:
            write(fd, data)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", broken_off)
        with pytest.raises(Interrupted):
            writer.write([row(8)])
    assert sum(writer.counts()) == waiting + 1
    other = RowWriter(path, HEADER)
    assert other.write([b"other\n"]), "the lock was released"
    assert writer.write([row(9)])
    lines = path.read_bytes().splitlines(keepends=True)
    assert sorted(lines) == sorted([HEADER, b"other\n", *map(row, range(waiting)), row(8), row(9)])
    assert writer.counts() == (waiting + 2, 0, 0)
    assert writer.close()


def test_an_interrupt_after_a_row_was_recorded_does_not_record_it_again(path: Path) -> None:
    """A signal handler may also raise after the last step of the bookkeeping."""
    writer, first, second = RowWriter(path, HEADER), row(1), row(2)
    assert writer.write([first])
    writer._tried = [first]
    writer._received += 1
    writer._buffer(second)
    writer._new = [second]
    assert writer.flush()
    assert path.read_bytes() == HEADER + first + second
    assert writer.counts() == (2, 0, 0)
    assert writer.close()


@pytest.mark.parametrize("where", ["_open", "try_lock"])
def test_a_write_interrupted_before_it_starts_keeps_its_row(
    path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*arguments: object, **options: object) -> Any:
        raise Interrupted

    writer = RowWriter(path, HEADER, monotonic=itertools.count().__next__)
    owner: object = RowWriter if where == "_open" else _file
    if where == "_open":
        assert writer._log is not None
        writer._close_log(writer._log)
    with monkeypatch.context() as patch:
        patch.setattr(owner, where, raises)
        with pytest.raises(Interrupted):
            writer.write([row(1)])
    assert writer.write([row(2)])
    assert path.read_bytes() == HEADER + row(1) + row(2)
    assert writer.counts() == (2, 0, 0)
    assert writer.close()


def test_interrupted_rows_count_as_not_written_when_the_file_cannot_be_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(fd: int, size: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    writer = RowWriter(path, HEADER)
    assert writer.write([row(1)])
    assert writer._log is not None
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", unreadable)
        assert writer._log.count_written([row(1)]) == 0
    assert writer._log.count_written([row(1), row(2)]) == 1
    assert writer.close()


def test_reentrant_calls_during_a_write_do_not_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, write, results = RowWriter(path, HEADER), os.write, list[bool]()

    def reentrant(fd: int, data: bytes) -> int:
        if not results:
            writer.finish(5)
            results.extend([writer.flush(), writer.close(), writer.write([row(2)])])
        return write(fd, data)

    monkeypatch.setattr(os, "write", reentrant)
    assert not writer.write([row(1)]), "the row from the reentrant call still waits"
    assert results == [False] * 3
    assert writer.flush()
    assert path.read_bytes() == HEADER + row(1) + row(2)
    assert writer.close()


# Waiting rows without another write


def test_waiting_rows_are_written_without_another_write_call(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_writer, "_FLUSH_INTERVAL", 0.001)
    writer, before = RowWriter(path, HEADER), set(threading.enumerate())
    with full_disk(writer):
        assert not writer.write([row(1)])
        (thread,) = set(threading.enumerate()) - before
    thread.join(timeout=5)
    assert not thread.is_alive(), "the thread ends when nothing is left to do"
    assert path.read_bytes() == HEADER + row(1)
    assert writer.counts() == (1, 0, 0)


# System calls that fail. test_failing_calls.py makes each of them fail in turn, in separate processes


def failing(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, number: int, times: int = 1_000) -> list[int]:
    """Make a system call fail `times` times. The returned list grows with each failure."""
    failed: list[int] = []
    call = getattr(owner, name)

    def fail(*arguments: object, **options: object) -> object:
        if len(failed) < times:
            failed.append(number)
            raise OSError(number, os.strerror(number))
        return call(*arguments, **options)

    monkeypatch.setattr(owner, name, fail)
    return failed


def test_rows_wait_when_locking_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RowWriter(path, HEADER)
    failing(monkeypatch, fcntl, "flock", errno.EIO, times=1)
    assert not writer.write([row(1)])
    assert writer.write([row(2)])
    assert path.read_bytes() == HEADER + row(1) + row(2)


def test_a_lock_that_cannot_be_released_is_released_by_closing_the_descriptor(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RowWriter(path, HEADER, monotonic=itertools.count().__next__)
    flock = fcntl.flock

    def fail(fd: int, operation: int) -> None:
        if operation == fcntl.LOCK_UN:
            raise OSError(errno.EIO, "not given back")
        flock(fd, operation)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", fail)
        assert writer.write([row(1)])
    other = RowWriter(path, HEADER)
    assert other.write([row(2)])
    assert writer.write([row(3)])
    assert path.read_bytes() == HEADER + row(1) + row(2) + row(3)


def test_a_partial_row_that_cannot_be_truncated_is_completed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RowWriter(path, HEADER)
    with monkeypatch.context() as patch:
        failing(patch, os, "ftruncate", errno.EPERM)
        with file_size_limit(len(HEADER) + 5):
            assert not writer.write([row(1)])
            assert not writer.write([row(2)])
        assert path.read_bytes() == HEADER + row(1)[:5]
        assert writer.write([row(3)])
    assert path.read_bytes() == HEADER + row(1) + row(2) + row(3)
    assert writer.counts() == (3, 0, 0)


def test_a_partial_row_is_completed_before_the_file_is_rotated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RowWriter(path, HEADER, LogOptions(rotate_bytes=len(HEADER) + len(row(1))))
    with monkeypatch.context() as patch:
        failing(patch, os, "ftruncate", errno.EPERM)
        with file_size_limit(len(HEADER) + 5):
            assert not writer.write([row(1)])
        assert writer.write([row(2)])
    assert parts(path) == [HEADER + row(1), HEADER + row(2)]


def test_a_partial_row_is_truncated_at_close(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RowWriter(path, HEADER)
    with file_size_limit(len(HEADER) + 5):
        with monkeypatch.context() as patch:
            failing(patch, os, "ftruncate", errno.EPERM, times=1)
            assert not writer.write([row(1)])
        assert not writer.close()
    assert path.read_bytes() == HEADER
    assert writer.counts() == (0, 0, 1)


def test_a_partial_row_that_another_writer_moved_is_written_again_in_full(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, other = RowWriter(path, HEADER), RowWriter(path, HEADER)
    with file_size_limit(len(HEADER) + 5), monkeypatch.context() as patch:
        failing(patch, os, "ftruncate", errno.EPERM, times=1)
        assert not writer.write([row(1)])
    assert other.write([row(2)])
    assert writer.write([row(3)])
    assert path.read_bytes() == HEADER + row(2) + row(1) + row(3)
    assert torn(path).read_bytes() == row(1)[:5]
    assert not writer.close() or writer.counts() == (2, 0, 0)


def test_a_file_replaced_by_another_programs_content_is_not_truncated(path: Path) -> None:
    writer = RowWriter(path, HEADER)
    path.write_bytes(b"its own\nhalf a line")
    assert writer.write([row(1)])
    assert path.read_bytes() == b"its own\nhalf a line\n" + row(1)
    assert not torn(path).exists()


def test_a_failed_close_is_logged(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Some file systems report only at close that the disk is full."""
    writer = RowWriter(path, HEADER, monotonic=itertools.count().__next__)
    path.rename(path.with_suffix(".1"))
    close = os.close

    def fail(fd: int) -> None:
        close(fd)
        raise OSError(errno.EDQUOT, "quota exceeded")

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fail)
        assert writer.write([row(1)])
    assert "quota exceeded" in caplog.text


def test_a_file_shortened_by_another_program_is_not_truncated_after_a_failed_fsync(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = Syncs(monkeypatch)
    writer = RowWriter(path, HEADER, LogOptions(fsync_interval=3_600))
    assert writer.write([row(1), row(2)])
    os.truncate(path, len(HEADER) + len(row(1)))
    syncs.fails = 1
    assert not writer.flush()
    assert writer.flush()
    assert path.read_bytes() == HEADER + row(1) + row(1) + row(2)
    assert writer.close()


def test_a_rotation_done_by_another_writer_is_not_repeated(path: Path) -> None:
    first, second = (
        RowWriter(path, HEADER, LogOptions(rotate_rows=1)),
        RowWriter(path, HEADER, LogOptions(rotate_rows=1)),
    )
    assert first.write([row(1)])
    assert second.write([row(2)])
    assert first.write([row(3)])
    assert parts(path) == [HEADER + row(1), HEADER + row(2), HEADER + row(3)]


def test_an_incomplete_header_is_truncated_when_creating_the_file_fails(path: Path) -> None:
    with file_size_limit(3), pytest.raises(OSError, match=r"^\[Errno"):
        RowWriter(path, HEADER)
    assert path.read_bytes() == b""


def test_rows_lost_at_exit_are_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = RowWriter(path, HEADER)
    with full_disk(writer):
        assert not writer.write([row(1)])
        writer.finish(1.0)
    assert f"{path}: 1 row lost, because the disk refused them" in caplog.text
    writer.finish(1.0)
    assert path.read_bytes() == HEADER + row(1)


def test_a_row_waits_when_lseek_fails_and_is_written_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Syncs(monkeypatch)
    writer = RowWriter(path, HEADER, LogOptions(fsync_interval=3_600), monotonic=itertools.count().__next__)
    assert writer.write([row(1)])
    with monkeypatch.context() as patch:
        failing(patch, os, "lseek", errno.EIO, times=1)
        assert not writer.write([row(2)])
    assert writer.flush()
    assert path.read_bytes() == HEADER + row(1) + row(2)
    assert writer.close()


def test_a_short_write_that_ends_between_two_rows_truncates_nothing(path: Path) -> None:
    writer = RowWriter(path, HEADER)
    with file_size_limit(len(HEADER + row(1))):
        assert not writer.write([row(1), row(2)])
        assert path.read_bytes() == HEADER + row(1)
        assert writer.counts() == (1, 1, 0)
    assert writer.flush()
    assert path.read_bytes() == HEADER + row(1) + row(2)


def test_closing_does_not_truncate_a_partial_row_that_another_writer_moved(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, other = RowWriter(path, HEADER), RowWriter(path, HEADER)
    with file_size_limit(len(HEADER) + 5), monkeypatch.context() as patch:
        failing(patch, os, "ftruncate", errno.EPERM, times=1)
        assert not writer.write([row(1)])
    assert other.write([row(2)])
    assert writer._log is not None
    assert writer._log.close() is None
    assert path.read_bytes() == HEADER + row(2)


def test_an_outdated_flusher_syncs_nothing_and_a_flush_during_a_flushers_fsync_is_harmless(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = Syncs(monkeypatch)
    writer = RowWriter(path, HEADER, LogOptions(fsync_interval=3_600))
    assert writer.write([row(1)])
    writer.flush_periodically(threading.Event())
    assert not syncs.sizes
    stopped = writer._flusher.current
    assert stopped is not None
    close = os.close

    def meanwhile(fd: int) -> None:
        """Flush and write between the flusher's fsync and its accounting."""
        monkeypatch.setattr(os, "close", close)
        close(fd)
        assert writer.flush()
        assert writer.write([row(2)])

    monkeypatch.setattr(os, "close", meanwhile)
    writer.flush_periodically(stopped)
    assert (writer.counts(), list(writer._unsynced.rows)) == ((2, 0, 0), [row(2)])
    assert writer.close()


@pytest.mark.parametrize("fails", [0, 1])
def test_the_flusher_syncs_rows_and_keeps_them_when_fsync_fails(
    path: Path, fails: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = Syncs(monkeypatch)
    writer = RowWriter(path, HEADER, LogOptions(fsync_interval=3_600))
    assert writer.write([row(1)])
    stopped = writer._flusher.current
    assert stopped is not None
    syncs.fails = fails
    writer.flush_periodically(stopped)
    assert writer.counts() == (1 - fails, fails, 0)
    assert writer.close()
    assert path.read_bytes() == HEADER + row(1)


def test_a_rename_during_the_flushers_fsync_loses_no_row(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = Syncs(monkeypatch)
    writer = RowWriter(path, HEADER, LogOptions(fsync_interval=3_600), monotonic=itertools.count().__next__)
    assert writer.write([row(1)])
    stopped = writer._flusher.current
    assert stopped is not None

    close = os.close

    def meanwhile(fd: int) -> None:
        """Rename and write between the flusher's fsync and its accounting."""
        monkeypatch.setattr(os, "close", close)
        close(fd)
        path.rename(path.with_suffix(".1"))
        assert writer.write([row(2)])

    monkeypatch.setattr(os, "close", meanwhile)
    writer.flush_periodically(stopped)
    assert len(syncs.sizes) == 2
    assert path.read_bytes() == HEADER + row(2)
    assert writer.close()
    assert writer.counts() == (2, 0, 0)


def test_the_descriptor_is_closed_when_fstat_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptors = open_descriptors()
    with monkeypatch.context() as patch:
        failing(patch, os, "fstat", errno.EIO)
        with pytest.raises(OSError, match=r"^\[Errno"):
            RowWriter(path, HEADER)
    assert open_descriptors() == descriptors


def test_a_log_that_starts_with_a_row_gets_its_header_again(path: Path) -> None:
    """The file starts with a row if copytruncate empties it between the writer's check and its write."""
    writer = RowWriter(path, HEADER)
    assert writer.write([row(1), row(2)])
    path.write_bytes(row(3))
    assert writer.write([row(4)])
    assert path.read_bytes() == HEADER + row(3) + row(4)
    path.write_bytes(b"its own\n")
    assert writer.write([row(5)])
    assert path.read_bytes() == b"its own\n" + row(5), "another program's file gets no header"


def test_a_shortened_log_that_still_has_its_header_gets_no_second_header(path: Path) -> None:
    writer = RowWriter(path, HEADER)
    assert writer.write([row(1), row(2)])
    path.write_bytes(HEADER + row(3))
    assert writer.write([row(4)])
    assert path.read_bytes() == HEADER + row(3) + row(4)


def test_nothing_is_logged_when_no_write_fails(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = RowWriter(path, HEADER, LogOptions(rotate_rows=2))
    assert writer.write([row(number) for number in range(9)])
    assert writer.close()
    assert writer.write([])
    assert caplog.messages == []


def test_rows_wait_when_write_returns_0(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = RowWriter(path, HEADER)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda *_: 0)
        assert not writer.write([row(1)])
    assert "wrote only a part of the rows" in caplog.text
    assert writer.flush()
    assert path.read_bytes() == HEADER + row(1)


def test_opening_is_retried_while_other_writers_rename_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other writers rename the file between two checks of the opening writer."""
    gone: list[str] = []
    lstat = os.lstat

    def leave(name: str) -> os.stat_result:
        if len(gone) < 3:
            gone.append(name)
            raise FileNotFoundError(errno.ENOENT, "renamed")
        return lstat(name)

    path.write_bytes(HEADER)
    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", leave)
        assert RowWriter(path, HEADER).write([row(1)])
        assert len(gone) == 3
        patch.setattr(os, "lstat", lambda _: (_ for _ in ()).throw(FileNotFoundError()))
        with pytest.raises(FileNotFoundError, match="renamed or removed during each attempt"):
            RowWriter(path, HEADER)


def test_rotation_renames_the_target_of_a_symbolic_link_and_keeps_the_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path.symlink_to("data/real.csv")
    writer = RowWriter(path, HEADER, LogOptions(rotate_rows=1))
    for number in range(3):
        assert writer.write([row(number)])
    assert path.is_symlink()
    found = {part.name: part.read_bytes() for part in (tmp_path / "data").iterdir()}
    assert found == {
        "real.part-000001.csv": HEADER + row(0),
        "real.part-000002.csv": HEADER + row(1),
        "real.csv": HEADER + row(2),
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link to another user")
def test_a_chain_of_symbolic_links_with_one_of_another_user_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "target.csv").write_bytes(HEADER)
    (tmp_path / "theirs.csv").symlink_to("target.csv")
    os.lchown(tmp_path / "theirs.csv", 65_534, 65_534)
    path.symlink_to("theirs.csv")
    with pytest.raises(PermissionError, match="belongs to another user"):
        RowWriter(path, HEADER)
    with pytest.raises(PermissionError, match="belongs to another user"):
        repair(path)


def test_a_trailing_slash_and_a_deleted_current_folder_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match=r"^\[Errno"):
        RowWriter(f"{path}/", HEADER)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(OSError, match="the current folder is gone"):
        RowWriter("logs.csv", HEADER)


def test_a_log_that_was_renamed_is_not_renamed_again(path: Path) -> None:
    writer = RowWriter(path, HEADER)
    path.rename(path.with_suffix(".1"))
    assert writer._log is not None
    writer._log.rename_to_part()
    assert [file.name for file in path.parent.iterdir()] == ["logs.1"]
