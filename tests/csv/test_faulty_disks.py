"""Tests of calls and rows while a real disk fails, and after it has recovered.

However the disk fails, no call may fail, and no line may be broken or merged with another. Every call must be in the
file once or be counted as waiting or lost, and the accounting must add up at every moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import logging
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support import faulty_disks
from support.faulty_disks import NAME, Disk, FuseDisk
from support.loop_and_memory import assert_no_stall, slowest_iteration
from yarl import URL

from otel_connector import COLUMNS, AsyncConnector, CallRecord
from otel_connector._csv._format import HEADER, decode_row
from otel_connector.csv_exporter import CSVSpanExporter
from otel_connector.testing import FaultServer, ok

CALL_ID = re.compile("[0-9a-f]{32}-[0-9a-f]{16}")
PROJECT = "P" * 300  # a row then has about 500 bytes, so that eight rows exceed the rest of any page


@dataclass
class Calls:
    """Makes calls with one connector, and checks the accounting after each of them."""

    exporter: CSVSpanExporter
    connector: AsyncConnector
    session: aiohttp.ClientSession
    server: FaultServer
    made: int = 0
    wrong: list[str] = field(default_factory=list)

    async def make(self, number: int = 20) -> None:
        """Make calls, five at a time. A row that cannot be written must not affect any of them."""
        for first in range(self.made, self.made + number, 5):
            self.made = first + 5
            await asyncio.gather(*map(self._call, range(first, self.made)))

    async def _call(self, number: int) -> None:
        url = self.server.url("/x", n=number)
        assert await self.connector.get(self.session, url, PROJECT, decode=self._decode) == {"ok": True}
        self.check_accounting()

    def _decode(self, body: bytes) -> Any:
        self.check_accounting()
        return json.loads(body)

    def check_accounting(self) -> None:
        """Check that every call is active or has its row counted as written, waiting or lost."""
        stats = self.connector.stats()
        if stats.calls_started != stats.rows_written + stats.rows_waiting + stats.rows_lost + stats.calls_active:
            self.wrong.append(str(stats))

    async def flushed(self, seconds: float = 10) -> bool:
        """Flush the waiting rows. This runs in a thread, because a hanging disk would block the event loop."""
        return await asyncio.to_thread(self.exporter.force_flush, int(seconds * 1_000))

    @property
    def waiting(self) -> int:
        return self.connector.stats().rows_waiting

    def assert_accounted(self, files: Iterable[Path]) -> None:
        """Assert that every call is in the files once, or counted as waiting or lost."""
        before = self.connector.stats()
        found = numbers(files)
        assert len(found) == len(set(found))
        assert set(found) <= set(range(self.made))
        assert before.rows_written <= len(found)
        assert self.made - len(found) <= before.rows_waiting + before.rows_lost
        assert not self.wrong

    def assert_complete(self, files: list[Path]) -> None:
        """Assert that every call is in the files once, and that the log ends with a whole line."""
        stats = self.connector.stats()
        assert sorted(numbers(files)) == list(range(self.made))
        assert (stats.rows_written, stats.rows_waiting, stats.rows_lost) == (self.made, 0, 0)
        assert files[-1].read_bytes().endswith(b"\n")
        assert not self.wrong


@contextlib.asynccontextmanager
async def calls_logged_to(path: Path, mode: str = "call", **options: Any) -> AsyncIterator[Calls]:
    """Yield a connector with a log, a session and a server. All of them are closed at the end."""
    if mode != "call":
        options["mode"] = mode
    exporter = CSVSpanExporter(path, **options)
    try:
        with FaultServer() as server:
            server.script("/x", ok)
            async with aiohttp.ClientSession() as session, AsyncConnector(exporter, n_tries=1, timeout=5) as connector:
                yield Calls(exporter, connector, session, server)
    finally:
        await asyncio.to_thread(exporter.shutdown)


def rows(path: Path) -> list[CallRecord]:
    """Return the whole rows of a file. The file must have one header, and each row must be one line of ten cells."""
    content = path.read_bytes()
    if not content:  # logrotate may create a file and rename it before any row is written
        return []
    whole, end, _ = content.rpartition(b"\n")
    text = (whole + end).decode()
    header, *cells = csv.reader(io.StringIO(text, newline=""), strict=True)
    assert header == list(COLUMNS)
    assert len(cells) + 1 == text.count("\n")
    return [record_of(row) for row in cells]


def record_of(cells: list[str]) -> CallRecord:
    """Decode a row. Raise ValueError if there is other text before or after it."""
    record = decode_row(cells)
    if not CALL_ID.fullmatch(record.call_id) or record.project != PROJECT or record.error:
        raise ValueError(f"no row of these tests: {record}")
    return record


def numbers(files: Iterable[Path]) -> list[int]:
    """Return the numbers of the calls in the files. Every call_id must be unique."""
    records = [record for file in files for record in rows(file)]
    assert len({record.call_id for record in records}) == len(records)
    return [int(URL(record.url).query["n"]) for record in records]


async def fail_midway(disk: Disk, mode: str) -> None:
    """Make 25 calls to a disk that fails in the middle of them and recovers before the last ones."""
    async with calls_logged_to(disk.path, mode) as calls:
        try:
            await calls.make(7)
            assert await calls.flushed()
            disk.strike()
            await calls.make(11)
            assert calls.waiting > 0 or not disk.refuses
            if disk.readable:
                calls.assert_accounted(disk.files())
        finally:
            disk.heal()
        await calls.make(7)
        assert await calls.flushed()
        calls.check_accounting()
    files = disk.files()
    assert files[-1] == disk.path  # a new log exists after a rename
    calls.assert_complete(files)


DISKS: dict[str, Callable[[Path], AbstractContextManager[Disk]]] = {
    "full": faulty_disks.full,
    "full, the log is renamed": faulty_disks.full_when_rotated,
    "no inode for a new log": faulty_disks.without_inodes,
    "immutable": faulty_disks.immutable,
    "read-only as the log is renamed": faulty_disks.read_only_when_rotated,
    "shut down and replaced": faulty_disks.shut_down_and_replaced,
    "damaged, read-only and replaced": faulty_disks.damaged_and_replaced,
    "EIO": partial(faulty_disks.fuse, faults=("write EIO",)),
    "EDQUOT": partial(faulty_disks.fuse, faults=("write EDQUOT",)),
    "every write is cut short": partial(faulty_disks.fuse, faults=("write short",)),
    "cut short, then EIO": partial(faulty_disks.fuse, faults=("write short-once",)),
    "stale descriptor": partial(faulty_disks.fuse, faults=("write ESTALE", "open stale")),
}
LIMITS: dict[str, Callable[[Path], AbstractContextManager[Disk]]] = {
    "limited_size": faulty_disks.limited_size,
    "without_descriptors": faulty_disks.without_descriptors,
}
MODES = pytest.mark.parametrize("mode", ["call", "background"])


@MODES
@pytest.mark.parametrize("fault", DISKS)
async def test_rows_wait_while_the_disk_fails_and_are_written_when_it_recovers(
    fault: str, mode: str, tmp_path: Path
) -> None:
    with DISKS[fault](tmp_path / "disk") as disk:
        await fail_midway(disk, mode)


@MODES
@pytest.mark.parametrize("limit", LIMITS)
def test_rows_wait_while_a_resource_limit_prevents_writing(limit: str, mode: str, tmp_path: Path) -> None:
    faulty_disks.in_a_child(__file__, "fail_by_a_limit", limit, mode, tmp_path / "disk")


def fail_by_a_limit(limit: str, mode: str, folder: str) -> None:
    with LIMITS[limit](Path(folder)) as disk:
        asyncio.run(fail_midway(disk, mode))


# Disks that hang.


@pytest.mark.timing
@pytest.mark.parametrize("fault", ["frozen", "hanging"])
async def test_a_disk_that_hangs_does_not_delay_calls_in_background_mode(fault: str, tmp_path: Path) -> None:
    disks: dict[str, Callable[[Path], AbstractContextManager[Disk]]] = {
        "frozen": faulty_disks.frozen,
        "hanging": partial(faulty_disks.fuse, faults=("write hang",)),
    }
    with disks[fault](tmp_path / "disk") as disk:
        async with calls_logged_to(disk.path, "background") as calls:
            try:
                await calls.make(10)
                assert await calls.flushed()
                disk.strike()
                await calls.make(5)
                await asyncio.to_thread(wait_until_it_hangs, disk)
                with slowest_iteration() as longest:
                    await calls.make(25)
                assert_no_stall(longest)
                assert calls.waiting > 0
                assert not await asyncio.wait_for(calls.flushed(0.1), 5)
            finally:
                disk.heal()
            await calls.make(10)
            assert await calls.flushed()
        calls.assert_complete(disk.files())


def wait_until_it_hangs(disk: Disk) -> None:
    if isinstance(disk, FuseDisk):
        disk.wait_until_it_hangs()
    else:
        faulty_disks.wait_until(faulty_disks.a_thread_waits_for_a_disk)


# fsync.


@MODES
async def test_rows_survive_a_power_cut(mode: str, tmp_path: Path) -> None:
    with faulty_disks.with_power_cut(tmp_path / "disk") as disk:
        async with calls_logged_to(disk.path, mode, fsync_interval=0) as calls:
            await calls.make(50)
            assert await calls.flushed()
            disk.strike()
        assert sorted(numbers(disk.files())) == list(range(50))


@MODES
async def test_rows_whose_fsync_failed_survive_a_power_cut_after_the_next_fsync(mode: str, tmp_path: Path) -> None:
    """After a failed fsync, the next one succeeds on Linux without saving these rows. They must be written again."""
    kept = tmp_path / NAME
    with faulty_disks.fuse(tmp_path / "disk", ["fsync EIO"]) as disk:
        async with calls_logged_to(disk.path, mode, fsync_interval=0) as calls:
            await calls.make(15)
            assert await calls.flushed()
            disk.strike()  # one fsync fails
            await calls.make(35)
            assert await calls.flushed()
            calls.check_accounting()
        disk.after_a_power_cut(kept)
    assert not calls.wrong
    assert set(whole_lines(kept)) == set(range(50))


def whole_lines(path: Path) -> tuple[int, ...]:
    """Return the numbers of the lines that are whole rows. A power cut may leave a hole and repeated rows."""
    found: list[int] = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        with contextlib.suppress(ValueError, csv.Error):
            found += [int(URL(record_of(cells).url).query["n"]) for cells in csv.reader([line.decode()], strict=True)]
    return tuple(found)


@MODES
async def test_an_error_of_the_system_call_close_is_not_raised_to_the_caller(mode: str, tmp_path: Path) -> None:
    with faulty_disks.fuse(tmp_path / "disk", ["flush EIO"]) as disk:
        async with calls_logged_to(disk.path, mode) as calls:
            await calls.make(20)
            disk.strike()
        assert calls.exporter.force_flush() in {True, False}
        disk.heal()
        calls.assert_complete([disk.path])


# Append-only files, deleted folders, full backlogs.


@MODES
async def test_rows_are_written_to_an_append_only_file(mode: str, tmp_path: Path) -> None:
    with faulty_disks.ext4(tmp_path / "disk"):
        path = tmp_path / "disk" / NAME
        async with calls_logged_to(path, mode) as calls:
            await calls.make(25)
            with faulty_disks.attribute(path, "a"):
                await calls.make(25)
                assert await calls.flushed()
        calls.assert_complete([path])


async def test_a_rotation_that_is_not_permitted_loses_no_row(tmp_path: Path) -> None:
    with faulty_disks.ext4(tmp_path / "disk"):
        path = tmp_path / "disk" / NAME
        async with calls_logged_to(path, rotate_rows=10) as calls:
            await calls.make(5)
            with faulty_disks.attribute(path, "a"):
                await calls.make(35)
                calls.check_accounting()
            await calls.make(10)
            assert await calls.flushed()
        calls.assert_complete(faulty_disks.rotated(path))


async def test_a_torn_tail_in_an_append_only_file_is_not_merged_with_a_row(tmp_path: Path) -> None:
    with faulty_disks.ext4(tmp_path / "disk"):
        path = tmp_path / "disk" / NAME
        async with calls_logged_to(path) as calls:
            await calls.make(5)
        torn = path.read_bytes()[:-20]
        path.write_bytes(torn)
        with faulty_disks.attribute(path, "a"):
            with contextlib.suppress(PermissionError):  # the file may also be refused
                async with calls_logged_to(path) as calls:
                    await calls.make(5)
            assert whole_lines(path) in {tuple(range(4)), (*range(4), *range(5))}


@MODES
async def test_rows_wait_while_the_folder_is_deleted(mode: str, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    async with calls_logged_to(folder / NAME, mode) as calls:
        await calls.make(10)
        assert await calls.flushed()
        shutil.rmtree(folder)
        await calls.make(30)
        assert calls.waiting == 30
        folder.mkdir()
        await calls.make(10)
        assert await calls.flushed()
    assert sorted(numbers([folder / NAME])) == list(range(10, 50))
    assert not calls.wrong


@MODES
async def test_rows_that_exceed_the_backlog_on_a_full_disk_are_counted_as_lost(mode: str, tmp_path: Path) -> None:
    with faulty_disks.full(tmp_path / "disk") as disk:
        async with calls_logged_to(disk.path, mode, backlog_bytes=3_000) as calls:
            disk.strike()
            await calls.make(40)
            calls.assert_accounted([disk.path])
            disk.heal()
            await calls.make(10)
            assert await calls.flushed()
            stats = calls.connector.stats()
        found = numbers([disk.path])
    assert stats.rows_waiting == 0
    assert 0 < stats.rows_lost < 40
    assert stats.rows_written == len(set(found)) == len(found) == 50 - stats.rows_lost
    assert not calls.wrong


async def test_the_accounting_adds_up_for_a_handler_of_the_logged_failure(tmp_path: Path) -> None:
    class AccountingHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            calls.check_accounting()
            messages.append(record.getMessage())

    messages: list[str] = []
    handler, logger = AccountingHandler(), logging.getLogger("otel_connector")
    with faulty_disks.full(tmp_path / "disk") as disk:
        async with calls_logged_to(disk.path) as calls:
            logger.addHandler(handler)
            try:
                disk.strike()
                await calls.make()
            finally:
                logger.removeHandler(handler)
            disk.heal()
    assert messages
    assert not calls.wrong


# Errors in the constructor.


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_device_is_refused_as_a_log(overwrite: bool) -> None:
    faulty_disks.need(device="/dev/full")
    with pytest.raises(OSError, match=r"^\[Errno \d+\] logfile: "):
        AsyncConnector("/dev/full", overwrite)


def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    with (
        faulty_disks.read_only(tmp_path),
        pytest.raises(OSError, match=r"^\[Errno 30\] logfile: Read-only file system"),
    ):
        AsyncConnector(tmp_path / NAME)


def test_a_disk_without_inodes_is_refused(tmp_path: Path) -> None:
    with (
        faulty_disks.mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "nr_inodes=1", "none") as folder,
        pytest.raises(OSError, match=r"^\[Errno 28\] logfile: No space left"),
    ):
        AsyncConnector(folder / NAME)


@pytest.mark.parametrize(("letter", "overwrite"), [("i", False), ("i", True), ("a", True)])
def test_an_immutable_or_append_only_file_is_refused_and_unchanged(
    letter: str, overwrite: bool, tmp_path: Path
) -> None:
    with faulty_disks.ext4(tmp_path / "disk"):
        path = tmp_path / "disk" / NAME
        content = HEADER + b"something\n"
        path.write_bytes(content)
        with (
            faulty_disks.attribute(path, letter),
            pytest.raises(PermissionError, match=r"^\[Errno 1\] logfile: Operation not permitted"),
        ):
            AsyncConnector(path, overwrite)
        assert path.read_bytes() == content


def test_a_full_disk_is_refused_and_the_log_is_usable_when_there_is_room(tmp_path: Path) -> None:
    with faulty_disks.full(tmp_path / "disk") as disk:
        disk.strike()
        with pytest.raises(OSError, match=r"^\[Errno 28\] logfile: No space left"):
            AsyncConnector(disk.path)
        disk.heal()
        CSVSpanExporter(disk.path).shutdown()
        assert disk.path.read_bytes() == HEADER


# logrotate.


@MODES
@pytest.mark.parametrize("directive", ["create", "nocreate"])
async def test_logrotate_that_renames_the_log_loses_no_row(directive: str, mode: str, tmp_path: Path) -> None:
    """The log is rotated while calls are made. Every file has one header, and every row is in exactly one file."""
    path = tmp_path / NAME
    rotate = faulty_disks.logrotate(path, directive)
    async with calls_logged_to(path, mode) as calls:
        for _ in range(5):
            await while_rotating(rotate, calls)
        await calls.make(5)
        assert await calls.flushed()
    assert len(faulty_disks.rotated(path)) > 1
    calls.assert_complete(faulty_disks.rotated(path))


@MODES
async def test_logrotate_with_copytruncate_breaks_no_line(mode: str, tmp_path: Path) -> None:
    """Rows that are written between the copy and the truncation are lost; only logrotate could prevent this.

    See logrotate(8). A header may be lost, too: a row that is written during the truncation becomes the first line.
    A copy may end with the beginning of a row: logrotate does not wait for the lock of the file.
    """
    path = tmp_path / NAME
    rotate = faulty_disks.logrotate(path, "copytruncate")
    async with calls_logged_to(path, mode) as calls:
        for _ in range(5):
            await while_rotating(rotate, calls)
        await calls.make(5)
        assert await calls.flushed()
        stats = calls.connector.stats()
    files = faulty_disks.rotated(path)
    found = [number for file in files for number in whole_lines(file)]
    lines = [line for file in files for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    rows = [line for line in lines if not line.startswith(b"call_id,")]
    assert len(rows) == len(found) == len(set(found))
    assert path.read_bytes().endswith(b"\n")
    assert set(range(calls.made - 5, calls.made)) <= set(found) <= set(range(calls.made))
    assert stats.rows_written == calls.made
    assert not calls.wrong


async def test_a_log_can_be_reopened_after_logrotate_with_copytruncate(tmp_path: Path) -> None:
    path = tmp_path / NAME
    rotate = faulty_disks.logrotate(path, "copytruncate")
    async with calls_logged_to(path) as calls:
        await calls.make(10)
        faulty_disks.run(*rotate())
        await calls.make(10)
    calls.assert_complete(faulty_disks.rotated(path))
    async with calls_logged_to(path) as calls:
        await calls.make(5)


async def while_rotating(rotate: Callable[[], list[Any]], calls: Calls) -> None:
    """Run logrotate, and make calls until it has exited."""
    logrotate = await asyncio.create_subprocess_exec(*rotate(), stderr=asyncio.subprocess.PIPE)
    ended = asyncio.create_task(logrotate.communicate())
    await calls.make(5)
    while not ended.done():
        await calls.make(5)
    _, error = await ended
    assert logrotate.returncode == 0, error
