"""Tests of `check`, `repair` and the command ``otel-connector check``.

A file that is not a log, or that cannot be repaired, must stay unchanged.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import fcntl
import gzip
import lzma
import os
import random
import resource
import shutil
import socket
import stat
import tempfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.records import BLANK, NASTY_RECORDS, RECORDS
from typer.testing import CliRunner

from otel_connector import CallRecord
from otel_connector._csv import _check, _lock, _torn_tail
from otel_connector._csv._check import CheckReport, DamagedLine, check, repair
from otel_connector._csv._format import CALLS, HEADER, encode_row
from otel_connector._csv._lines import LINE_LIMIT, is_plain_row, read_line
from otel_connector._csv._torn_tail import cut_torn_tail, last_row_end
from otel_connector._csv._writer import RowWriter
from otel_connector.cli import app

BLOCK = _torn_tail._BLOCK
ROW = encode_row(BLANK._replace(project="P", url="http://a/?b=1", response_code=200, success=True))
QUOTED = encode_row(BLANK._replace(project='a "b", c', error="E: \u00e9\n"))
LOG = HEADER + ROW + QUOTED
TAIL = ROW[:-9]
UNPRIVILEGED = 65_534
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root has other users")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs.csv"


def torn_of(path: Path) -> Path:
    return path.with_name(path.name + ".torn")


def rows_of(count: int) -> bytes:
    """Return rows of different lengths."""
    return b"".join(encode_row(BLANK._replace(project="x" * (number % 97))) for number in range(count))


def lines_of(report: CheckReport) -> list[tuple[int, int, int]]:
    return [(each.line, each.offset, each.length) for each in report.damage]


# Undamaged logs


@pytest.mark.parametrize(
    ("content", "rows"),
    [(HEADER, 0), (LOG, 2), (HEADER + b"".join(map(encode_row, NASTY_RECORDS)), len(NASTY_RECORDS))],
    ids=["header only", "rows", "nasty rows"],
)
def test_an_undamaged_log_is_reported_as_whole_and_repair_changes_nothing(
    content: bytes, rows: int, path: Path
) -> None:
    path.write_bytes(content)
    size = len(content)

    report = check(path)

    assert report == CheckReport(
        size=size, rows=rows, altered=0, damage=(), more=0, unfinished=None, torn=None, changed=False
    )
    assert report.whole
    assert repair(path) == 0
    assert path.read_bytes() == content
    assert not torn_of(path).exists()


def test_rows_across_blocks_are_counted_and_the_progress_is_reported(path: Path) -> None:
    path.write_bytes(HEADER + rows_of(9_000))
    size, reported = path.stat().st_size, list[tuple[int, int]]()

    report = check(path, lambda *progress: reported.append(progress))

    assert (report.whole, report.rows) == (True, 9_000)
    assert reported == [(min(done, size), size) for done in range(BLOCK, size + BLOCK, BLOCK)]


@given(RECORDS)
def test_every_encoded_record_is_accepted_as_undamaged(record: CallRecord) -> None:
    assert _check._what_is_wrong(encode_row(record)[:-1], CALLS) is None


@given(st.data())
def test_a_row_that_matches_the_fast_pattern_also_passes_the_full_check(data: st.DataObject) -> None:
    """Random bytes are changed, removed and inserted before the check."""
    line = bytearray(encode_row(data.draw(RECORDS))[:-1])
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(line)))
        end = data.draw(st.integers(start, min(start + 2, len(line))))
        line[start:end] = data.draw(
            st.sampled_from([b"", b"0", b"9", b".", b",", b"'", b"=", b'"', b"-", b"\x7f", b"\r"])
        )
    if is_plain_row(bytes(line)):
        _, record = read_line(bytes(line))
        assert encode_row(record)[:-1] == line


# Damaged logs


CELLS = ROW[:-1].split(b",")


def with_cell(index: int, cell: bytes) -> bytes:
    return b",".join([*CELLS[:index], cell, *CELLS[index + 1 :]])


BAD_LINES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "10 cells, this one has 0"),
    "text": (b"hello", "10 cells, this one has 1"),
    "two rows on one line": (TAIL + ROW[:-1], "10 cells, this one has"),
    "a row torn in its first cell, and another row": (ROW[:20] + ROW[:-1], "is not an id"),
    "a row torn in quotes, and another row": (QUOTED[:55] + ROW[:-1], "quotes"),
    "an extra quote": (with_cell(1, b'"a"b"'), "quotes"),
    "a carriage return": (ROW[:-1] + b"\r", "has changed its line end to CR LF"),
    "a carriage return in a cell": (with_cell(1, b"a\rb"), "carriage return"),
    "a carriage return in quotes": (with_cell(1, b'"a\rb"'), "carriage return"),
    "a control character": (with_cell(1, b"a\x1bb"), "another program has changed the line"),
    "a formula": (with_cell(1, b"=1"), "another program has changed the line"),
    "text instead of a number": (with_cell(2, b"x"), "t must be a number, not 'x'"),
    "a number in another notation": (with_cell(3, b"0.5"), "another program has changed the line"),
    "digits of another script": (with_cell(6, "\u0661".encode()), "response_size must be a number"),
    "not True or False": (with_cell(8, b"TRUE"), "success must be True or False"),
    "latin-1": (with_cell(1, b"\xe9"), "not UTF-8 from byte 50"),
    "a hole before a row": (bytes(4_096) + ROW[:-1], "NUL"),
    "a header": (HEADER[:-1], "header"),
    "too long": (b"x" * LINE_LIMIT, "longer than any row"),
    "nearly too long": (b"x" * (LINE_LIMIT - 1), "this one has 1"),
    "much too long": (b"x" * (3 * 2**20), "longer than any row"),
    "a hole that is too long": (bytes(3 * 2**20) + ROW[:-1], "NUL"),
    "a line that is too long and ends in a hole": (b"x" * LINE_LIMIT + bytes(9), "NUL"),
    "a huge cell": (with_cell(1, b"x" * 200_000), "longer than any row"),
    "terminal escape sequences": (b"\x1b[31m" * 9, "this one has 1"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_damaged_line_is_reported_with_its_line_number_offset_and_length(name: str, path: Path) -> None:
    line, what = BAD_LINES[name]
    path.write_bytes(LOG + line + b"\n" + ROW)

    report = check(path)

    altered = what.startswith(("another program has changed", "has changed its line end"))
    assert (report.rows, report.altered, report.damaged) == ((4, 1, 0) if altered else (3, 0, 1))
    assert lines_of(report) == [(4, len(LOG), len(line))]
    (damage,) = report.damage
    assert what in damage.what
    assert damage.what.isprintable()
    assert len(damage.what) < 300
    assert not report.whole
    assert report.unfinished is None


@pytest.mark.parametrize(
    ("content", "altered", "what"),
    [
        (b"\xef\xbb\xbf" + LOG, 1, "the line"),
        (LOG.replace(b"\n", b"\r\n"), 3, "its line end to CR LF"),
        (LOG.replace(b",P,", b',"P",'), 1, "the line"),
    ],
    ids=["a byte order mark", "CR LF", "more quotes"],
)
def test_a_log_that_another_program_saved_has_the_same_rows_and_is_reported_as_altered(
    content: bytes, altered: int, what: str, path: Path
) -> None:
    """Its rows can be read, but the bytes are not those that were written. Repair changes nothing."""
    path.write_bytes(content)
    report = check(path)
    assert (report.rows, report.altered, report.damaged, report.size) == (2, altered, 0, len(content))
    assert not report.whole
    expected = f"another program has changed {what}: its values can be read, but it is not as it was written"
    assert [each.what for each in report.damage] == [expected] * altered
    with contextlib.suppress(ValueError):
        assert repair(path) == 0
    assert path.read_bytes() == content


def test_the_first_20_damaged_lines_are_listed_and_the_rest_is_counted(path: Path) -> None:
    path.write_bytes(HEADER + b"bad\n" * 1_000 + ROW)

    report = check(path)

    assert [each.line for each in report.damage] == list(range(2, 22))
    assert (report.rows, report.more) == (1, 980)


def test_a_missing_header_is_reported_as_damage_and_repair_moves_an_unfinished_line(path: Path) -> None:
    path.write_bytes(ROW + ROW + TAIL)

    report = check(path)

    assert report.rows == 2
    assert lines_of(report) == [(1, 0, len(ROW) - 1)]
    assert "header is missing" in report.damage[0].what
    assert repair(path) == len(TAIL)
    assert (path.read_bytes(), torn_of(path).read_bytes()) == (ROW + ROW, TAIL)


@pytest.mark.parametrize(
    ("tail", "what"),
    [(TAIL, "no line end"), (b"\0" * 99, "NUL"), (b"x" * 3 * 2**20, "no line end"), (b"x" + bytes(3 * 2**20), "NUL")],
    ids=["start of a row", "a hole", "too long", "a hole that is too long"],
)
def test_an_unfinished_last_line_is_reported_and_repair_moves_it(tail: bytes, what: str, path: Path) -> None:
    path.write_bytes(LOG + tail)

    report = check(path)

    assert report.rows == 2
    assert report.damage == ()
    assert report.unfinished is not None
    assert report.unfinished == DamagedLine(line=4, offset=len(LOG), length=len(tail), what=report.unfinished.what)
    assert what in report.unfinished.what
    assert not report.whole
    assert repair(path) == len(tail)
    assert path.read_bytes() == LOG
    assert torn_of(path).read_bytes() == tail
    assert check(path) == CheckReport(
        size=len(LOG), rows=2, altered=0, damage=(), more=0, unfinished=None, torn=len(tail), changed=False
    )


def test_random_damage_raises_nothing_and_every_line_is_counted(path: Path) -> None:
    """Every line after the header is counted either as a row or as damage."""
    dice = random.Random(4)
    for _ in range(300):
        content = bytearray(HEADER + rows_of(8) + QUOTED)
        for _ in range(dice.randrange(1, 6)):
            start = dice.randrange(len(HEADER), len(content))
            content[start : start + dice.randrange(90)] = dice.choice(
                [b"", b"\n", b'"', b"\0\0", b"\xff", dice.randbytes(9)]
            )
        path.write_bytes(content)
        report = check(path)
        assert 1 + report.rows + report.damaged == content.count(b"\n")
        assert repair(path) == len(content) - content.rfind(b"\n") - 1
        assert path.read_bytes() == content[: content.rfind(b"\n") + 1]
        assert check(path).rows == report.rows


# Files of any size, and files that change


@contextlib.contextmanager
def peak_memory_below(limit: int) -> Iterator[None]:
    """Fail if Python allocates more than `limit` bytes in the block."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= limit, f"{peak:,}"


@pytest.mark.parametrize("end", [b"", b"\n" + ROW, ROW], ids=["to the end", "before a line", "inside a line"])
def test_a_log_with_a_hole_of_5_gigabytes_is_checked_with_little_memory(end: bytes, path: Path) -> None:
    path.write_bytes(LOG)
    with path.open("r+b") as file:
        file.truncate(5 * 2**30)
        file.seek(0, os.SEEK_END)
        file.write(end)

    with peak_memory_below(4 * 2**20):
        report = check(path)

    hole = report.damage[0] if end else report.unfinished
    assert hole is not None
    assert (hole.line, hole.offset) == (4, len(LOG))
    assert hole.length == 5 * 2**30 - len(LOG) + (len(ROW) - 1 if end == ROW else 0)
    assert "NUL" in hole.what
    assert report.rows == (3 if end == b"\n" + ROW else 2)
    assert report.size == path.stat().st_size
    if end:
        assert repair(path) == 0  # a line with a line end is never cut


def test_a_file_that_is_one_hole_of_5_gigabytes_is_refused_with_little_memory(path: Path) -> None:
    path.touch()
    os.truncate(path, 5 * 2**30)

    with peak_memory_below(4 * 2**20), pytest.raises(ValueError, match="not a log: the file begins with NUL"):
        check(path)
    with pytest.raises(ValueError, match="not a log: the file begins with NUL"):
        repair(path)
    assert path.stat().st_size == 5 * 2**30


def test_a_long_tail_is_moved_with_little_memory_and_stays_sparse(path: Path) -> None:
    path.write_bytes(LOG + TAIL)
    os.truncate(path, 64 * 2**20)

    with peak_memory_below(4 * 2**20):
        assert repair(path) == 64 * 2**20 - len(LOG)

    assert path.read_bytes() == LOG
    status = torn_of(path).stat()
    assert status.st_size == 64 * 2**20 - len(LOG)
    assert status.st_blocks * 512 < 2**20
    with torn_of(path).open("rb") as file:
        assert file.read(BLOCK).rstrip(b"\0") == TAIL


@pytest.mark.parametrize("hint", ["not there", "not supported"])
def test_holes_are_read_as_nul_bytes_where_seek_data_is_not_supported(
    hint: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(LOG + bytes(2 * BLOCK) + b"\n" + ROW)
    os.truncate(path, 4 * BLOCK)
    expected = check(path)
    with monkeypatch.context() as patch:
        if hint == "not there":
            patch.delattr(os, "SEEK_DATA")
        else:
            patch.setattr(os, "SEEK_DATA", 99)  # EINVAL, as from a file system without it
        assert check(path) == expected
    assert (expected.rows, len(expected.damage)) == (3, 1)


PACKED = gzip.compress(HEADER + rows_of(9_000))


@pytest.mark.parametrize(
    ("content", "damage", "unfinished"),
    [
        (PACKED, None, 0),
        (gzip.compress(HEADER + rows_of(5) + b"x" * 2 * 2**20), None, 2 * 2**20),
        (gzip.compress(HEADER + rows_of(5) + b"x" * 2 * 2**20 + b"\n" + ROW), "longer than any row", 0),
        (gzip.compress(HEADER + rows_of(5) + b"bad\n" + ROW), "10 cells", 0),
        (PACKED[:-9], "the file cannot be unpacked from here on", 0),
    ],
    ids=["whole", "unfinished", "too long", "a damaged line", "truncated"],
)
def test_a_compressed_log_is_checked(content: bytes, damage: str | None, unfinished: int, path: Path) -> None:
    path.write_bytes(content)
    reported: list[tuple[int, int]] = []
    report = check(path, lambda *progress: reported.append(progress))
    assert report.rows in {5, 6, 9_000} or damage is not None
    assert [damage in each.what for each in report.damage if damage] == [True] * (damage is not None)
    assert (report.unfinished.length if report.unfinished else 0) == unfinished
    assert report.whole == (damage is None and not unfinished)
    assert reported[-1] == (len(content), len(content))
    if damage is None:
        assert report.size == len(gzip.decompress(content))
    with pytest.raises(ValueError, match=r"not a log: the file is compressed .gzip.; unpack it first"):
        repair(path)
    assert path.read_bytes() == content


def test_check_waits_for_a_row_that_is_being_written(path: Path) -> None:
    """At first, half of the row is in the file. The rest and further rows are appended while the file is read."""
    content = HEADER + rows_of(3_000)
    path.write_bytes(content + ROW[:9])

    def more(done: int, size: int) -> None:
        if done == size:
            with path.open("ab") as file:
                file.write(ROW[9:] + ROW + TAIL)

    report = check(path, more)

    assert report == CheckReport(
        size=len(content + ROW), rows=3_001, altered=0, damage=(), more=0, unfinished=None, torn=None, changed=True
    )


def test_a_file_that_shrinks_during_the_check_is_reported_as_changed(path: Path) -> None:
    path.write_bytes(HEADER + rows_of(9_000))

    report = check(path, lambda done, _size: os.truncate(path, BLOCK + 10) if done == BLOCK else None)

    assert report.changed
    assert report.size == BLOCK + 10
    assert report.unfinished is not None


@pytest.mark.parametrize("log", range(5))  # several short logs: the time of a check grows with the log
def test_a_log_that_is_being_written_is_never_reported_as_damaged(log: int, path: Path) -> None:
    """A row that is being written is not reported as unfinished, and repair does not move it."""
    writer, stop = RowWriter(path, HEADER), threading.Event()

    def write() -> None:
        while not stop.is_set():
            writer.write([ROW])

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(6):
            assert check(path).damage == ()
            with contextlib.suppress(BlockingIOError):
                assert repair(path) == 0
    finally:
        stop.set()
        thread.join()
        assert writer.close()
    assert check(path).rows == writer.counts().written
    assert repair(path) == 0


# Files that are not logs


NOT_LOGS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "CSV of another tool": (
        b"timestamp,elapsed,label\n1,2,3\n",
        "first line is 'timestamp,elapsed,label', not the header",
    ),
    "header of another version": (HEADER[:-1] + b",more\n" + ROW, "not the header"),
    "an empty line before the header": (b"\n" + LOG, "first line is '', not"),
    "binary": (b"\x7fELF\x02\x01\x01" + random.Random(4).randbytes(9_999), "the file is binary"),
    "terminal escape sequences": (b"\x1b]0;owned\x07\n", "the file is binary"),
    "one long line": (b"x" * 3 * 2**20, "first line is 'x"),
    "gzip in gzip": (gzip.compress(gzip.compress(LOG) + b"\n"), "compressed .gzip"),
    "bzip2": (bz2.compress(LOG), "compressed .bzip2"),
    "xz": (lzma.compress(LOG), "compressed .xz"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(9), "compressed .zstd"),
    "zip": (b"PK\x03\x04" + LOG, "zip archive"),
    "UTF-16": (LOG.decode().encode("utf-16"), "in UTF-16"),
    "NUL": (bytes(4_096) + ROW, "begins with NUL"),
    "an incomplete header": (HEADER[:20], "only the beginning of a header"),
    "a header without a line end": (HEADER[:-1], "only the beginning of a header"),
    "an incomplete row": (TAIL, "first line is '0af7"),
}


@pytest.mark.parametrize("name", NOT_LOGS)
def test_a_file_that_is_not_a_log_is_reported_and_never_changed(name: str, path: Path) -> None:
    content, what = NOT_LOGS[name]
    path.write_bytes(content)

    for read in (check, repair):
        with pytest.raises(ValueError, match=rf"^not a log: .*{what}") as caught:
            read(path)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300
    assert path.read_bytes() == content
    assert not torn_of(path).exists()


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (lambda _path: None, errno.ENOENT),
        (Path.mkdir, errno.EISDIR),
        (os.mkfifo, errno.EINVAL),
        (bind, errno.ENXIO),
        (lambda path: path.symlink_to(path), errno.ELOOP),
        (lambda path: path.symlink_to("/dev/full"), errno.EINVAL),
    ],
    ids=["missing", "folder", "fifo", "socket", "loop", "device"],
)
def test_a_path_that_is_not_a_regular_file_is_refused_immediately(
    make: Callable[[Path], None], number: int, path: Path
) -> None:
    folder = Path.cwd()
    os.chdir(path.parent)  # the path of a socket must be short
    try:
        make(Path(path.name))
    finally:
        os.chdir(folder)

    with pytest.raises(OSError, match="logs") as caught:
        check(path)
    assert caught.value.errno == number
    with pytest.raises(OSError, match="logs"):
        repair(path)


def test_a_file_name_with_a_nul_or_a_surrogate_is_refused() -> None:
    for name in ("a\0b", "a\ud800"):
        with pytest.raises(OSError, match=r"null|surrogates"):
            check(name)


# Repair


def test_repair_appends_each_tail_as_a_line_to_a_private_torn_file(path: Path) -> None:
    umask = os.umask(0)
    try:
        for tail in (TAIL, b"abc"):
            path.write_bytes(LOG + tail)
            assert repair(path) == len(tail)
            assert path.read_bytes() == LOG
    finally:
        os.umask(umask)

    assert torn_of(path).read_bytes() == TAIL + b"\nabc"
    assert stat.S_IMODE(torn_of(path).stat().st_mode) == 0o600
    assert check(path).torn == len(TAIL) + 4


def test_a_writer_appends_to_a_repaired_log(path: Path) -> None:
    path.write_bytes(LOG + TAIL)
    repair(path)
    writer = RowWriter(path, HEADER)
    assert writer.write([ROW])
    assert writer.close()
    assert path.read_bytes() == LOG + ROW


def test_a_torn_tail_is_cut_through_a_descriptor_in_append_mode(path: Path) -> None:
    """The writer uses such a descriptor, and calls this function under its lock."""
    path.write_bytes(LOG + TAIL)
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        assert cut_torn_tail(fd, str(path)) == len(TAIL)
        assert cut_torn_tail(fd, str(path)) == 0
        os.write(fd, ROW)
    finally:
        os.close(fd)
    assert path.read_bytes() == LOG + ROW


@pytest.mark.parametrize("length", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
@pytest.mark.parametrize("before", [b"", b"\n", b"a\n", HEADER + b"x" * (2 * BLOCK) + b"\n"])
def test_last_row_end_finds_the_last_line_end_across_blocks(before: bytes, length: int, path: Path) -> None:
    path.write_bytes(before + b"x" * length)
    with path.open("rb") as file:
        assert last_row_end(file.fileno()) == len(before)


def test_repair_accepts_a_relative_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    path.write_bytes(LOG + TAIL)
    assert repair("logs.csv") == len(TAIL)
    assert torn_of(path).read_bytes() == TAIL


@pytest.mark.skipif(os.geteuid() != 0, reason="without geteuid, only files of root are trusted")
def test_check_and_repair_work_without_fcntl_and_posix_functions(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lock, "fcntl", None)
    for name in ("fchown", "geteuid", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "SEEK_DATA"):
        monkeypatch.delattr(os, name)
    for tail in (TAIL, b"abc"):
        path.write_bytes(LOG + tail)
        unfinished = check(path).unfinished
        assert unfinished is not None
        assert unfinished.length == len(tail)
        assert repair(path) == len(tail)
        assert path.read_bytes() == LOG


# Repairs that fail and must leave the files as they were


@contextlib.contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Limit the files of this process to `limit` bytes. Writes beyond that fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("before", [None, b"", b"older"])
@pytest.mark.parametrize("tail", [b"x" * 500_000, b"x" * 300_000 + bytes(2**20)], ids=["text", "hole"])
def test_repair_without_space_for_the_tail_changes_nothing(before: bytes | None, tail: bytes, path: Path) -> None:
    path.write_bytes(LOG + tail)
    if before is not None:
        torn_of(path).write_bytes(before)

    with file_size_limit(400_000), pytest.raises(OSError, match="too large"):
        repair(path)

    assert path.read_bytes() == LOG + tail
    assert (torn_of(path).read_bytes() if torn_of(path).exists() else None) == before


def hard_link_to_another_file(torn: Path) -> None:
    (torn.parent / "elsewhere").write_bytes(b"victim")
    torn.hardlink_to(torn.parent / "elsewhere")


def symlink_to_another_file(torn: Path) -> None:
    (torn.parent / "elsewhere").write_bytes(b"victim")
    torn.symlink_to(torn.parent / "elsewhere")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, hard_link_to_another_file, symlink_to_another_file])
def test_repair_refuses_a_torn_file_that_is_a_link_or_not_a_regular_file(
    make: Callable[[Path], None], path: Path
) -> None:
    path.write_bytes(LOG + TAIL)
    make(torn_of(path))

    with pytest.raises(OSError, match="torn"):
        repair(path)

    assert path.read_bytes() == LOG + TAIL
    if (elsewhere := path.with_name("elsewhere")).exists():
        assert elsewhere.read_bytes() == b"victim"


@AS_ROOT
def test_repair_refuses_a_torn_file_of_another_user(path: Path) -> None:
    path.write_bytes(LOG + TAIL)
    torn_of(path).touch()
    os.chown(torn_of(path), UNPRIVILEGED, UNPRIVILEGED)

    with pytest.raises(PermissionError, match="belongs to another user"):
        repair(path)

    assert path.read_bytes() == LOG + TAIL


@AS_ROOT
def test_a_torn_file_made_by_root_belongs_to_the_owner_of_the_log(path: Path) -> None:
    for tail in (TAIL, b"abc"):
        path.write_bytes(LOG + tail)
        os.chown(path, UNPRIVILEGED, UNPRIVILEGED)
        assert repair(path) == len(tail)
    assert torn_of(path).stat().st_uid == UNPRIVILEGED


@contextlib.contextmanager
def folder_of_an_unprivileged_user(mode: int) -> Iterator[Path]:
    """Yield a folder with that mode, owned by a user other than root. The block runs as that user."""
    folder = Path(tempfile.mkdtemp())
    user = os.geteuid()
    try:
        (folder / "logs.csv").write_bytes(LOG + TAIL)
        if user == 0:
            for each in (folder, folder / "logs.csv"):
                os.chown(each, UNPRIVILEGED, UNPRIVILEGED)
            os.seteuid(UNPRIVILEGED)
        folder.chmod(mode)
        yield folder
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)


def test_repair_in_a_folder_without_write_permission_changes_nothing() -> None:
    with folder_of_an_unprivileged_user(0o500) as folder:
        with pytest.raises(PermissionError, match="torn"):
            repair(folder / "logs.csv")
        assert (folder / "logs.csv").read_bytes() == LOG + TAIL
        folder.chmod(0o700)


def test_repair_works_in_a_folder_without_read_permission() -> None:
    with folder_of_an_unprivileged_user(0o300) as folder:
        assert repair(folder / "logs.csv") == len(TAIL)
        assert (folder / "logs.csv").read_bytes() == LOG
        folder.chmod(0o700)


def test_a_log_without_read_permission_is_refused() -> None:
    with folder_of_an_unprivileged_user(0o700) as folder:
        (folder / "logs.csv").chmod(0o000)
        for read in (check, repair):
            with pytest.raises(PermissionError, match="logs"):
                read(folder / "logs.csv")


FSYNC = os.fsync


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("before", [None, b"older"])
def test_repair_does_not_cut_the_log_when_fsync_fails(
    before: bytes | None, folder: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(LOG + TAIL)
    if before is not None:
        torn_of(path).write_bytes(before)

    def fail(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode) == folder:
            raise OSError(errno.EIO, "broken disk")
        FSYNC(fd)

    monkeypatch.setattr(os, "fsync", fail)
    if folder and before is not None:  # the torn file existed, so its folder is not synced
        assert repair(path) == len(TAIL)
        return
    with pytest.raises(OSError, match="broken disk"):
        repair(path)
    assert path.read_bytes() == LOG + TAIL
    assert (torn_of(path).read_bytes() if torn_of(path).exists() else None) == before


def test_repair_of_a_log_that_cannot_be_truncated_leaves_no_torn_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example a file with the attribute ``a`` of chattr(1), or with rules of the administrator."""
    path.write_bytes(LOG + TAIL)
    ftruncate, log = os.ftruncate, path.stat()

    def refuse(fd: int, length: int) -> None:
        if os.path.samestat(os.fstat(fd), log):
            raise PermissionError(errno.EPERM, "append only")
        ftruncate(fd, length)

    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(PermissionError, match="append only"):
        repair(path)
    assert path.read_bytes() == LOG + TAIL
    assert not torn_of(path).exists()


def test_an_interrupt_after_the_truncation_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(LOG + TAIL)
    ftruncate, log = os.ftruncate, path.stat()

    def interrupt(fd: int, length: int) -> None:
        ftruncate(fd, length)
        if os.path.samestat(os.fstat(fd), log):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "ftruncate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        repair(path)
    assert path.read_bytes() == LOG
    assert torn_of(path).read_bytes() == TAIL


def test_the_tail_is_synced_to_the_torn_file_before_the_log_is_truncated(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(LOG + TAIL)
    seen: list[tuple[bytes, bytes]] = []

    def record(fd: int) -> None:
        FSYNC(fd)
        seen.append((torn_of(path).read_bytes(), path.read_bytes()))

    monkeypatch.setattr(os, "fsync", record)
    assert repair(path) == len(TAIL)
    assert seen[-1] == (TAIL, LOG + TAIL)


def test_repair_stops_when_another_program_appends_without_a_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(LOG + TAIL)

    def append(_fd: int) -> None:
        with path.open("ab") as file:
            file.write(b"x")

    monkeypatch.setattr(os, "fsync", append)
    with pytest.raises(OSError, match="without a lock"):
        repair(path)
    assert path.read_bytes().startswith(LOG + TAIL)
    assert not torn_of(path).exists()


def test_last_row_end_raises_when_the_log_shrinks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(LOG + TAIL)
    lseek = os.lseek

    def shrink(fd: int, position: int, how: int) -> int:
        os.truncate(path, len(LOG))
        return lseek(fd, position, how)

    with path.open("rb") as file:
        monkeypatch.setattr(os, "lseek", shrink)
        with pytest.raises(OSError, match="shrinks"):
            last_row_end(file.fileno())


# The command


def run(*arguments: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["check", *map(str, arguments)], prog_name="otel-connector")
    return done.exit_code, done.stdout, done.stderr


def test_the_command_reports_an_undamaged_log(path: Path) -> None:
    path.write_bytes(LOG)
    assert run(path) == (0, f"{path}: intact; rows: 2, damaged lines: 0, bytes: {len(LOG)}\n", "")


def test_the_command_reports_an_unfinished_line_and_repair_moves_it(path: Path) -> None:
    path.write_bytes(LOG + TAIL)

    code, out, _ = run(path)
    assert code == 1
    assert out.splitlines() == [
        f"{path}: DAMAGED; rows: 2, damaged lines: 0, bytes: {len(LOG + TAIL)}",
        f"  last line 4, offset {len(LOG)}, length {len(TAIL)}: the line has no line end",
        f"    If no program is writing it, --repair moves it to {path}.torn",
    ]
    code, out, _ = run("--repair", path)
    assert code == 0
    assert out.splitlines() == [
        f"{path}: an unfinished last line of {len(TAIL)} bytes was moved to {path}.torn",
        f"{path}: intact; rows: 2, damaged lines: 0, bytes: {len(LOG)}",
    ]
    code, out, _ = run(path)
    assert code == 0
    assert out.splitlines()[1] == f"  {path}.torn has {len(TAIL)} bytes of unfinished lines from earlier repairs"


def test_the_command_says_that_a_log_with_cr_lf_was_altered_and_counts_its_rows(path: Path) -> None:
    crlf = (HEADER + 30 * ROW).replace(b"\n", b"\r\n")
    last = "  Altered lines have another form (line end, quotes, numbers); review, replay and resume read their rows"
    path.write_bytes(crlf)
    code, out, _ = run(path)
    lines = out.splitlines()
    assert code == 1
    assert lines[0] == f"{path}: ALTERED; rows: 30, altered lines: 31, damaged lines: 0, bytes: {len(crlf):,}"
    assert lines[1].endswith("its line end to CR LF: its values can be read, but it is not as it was written")
    assert lines[-2:] == ["  11 more damaged or altered lines are not listed", last]

    path.write_bytes(LOG + ROW[:-1] + b"\r\nbad\n")
    code, out, _ = run(path)
    assert code == 1
    assert out.startswith(f"{path}: DAMAGED; rows: 3, altered lines: 1, damaged lines: 1, bytes: ")
    path.write_bytes(crlf + TAIL)
    assert run(path)[1].startswith(f"{path}: DAMAGED; rows: 30, altered lines: 31, damaged lines: 0, bytes: ")


def test_the_command_lists_20_damaged_lines_and_counts_the_rest(path: Path) -> None:
    path.write_bytes(HEADER + b"bad\n" * 25)
    code, out, _ = run(path, "--repair")
    lines = out.splitlines()
    assert code == 1
    assert lines[1] == f"  line 2, offset {len(HEADER)}, length 3: a row has 10 cells, this one has 1"
    assert lines[-1] == "  5 more damaged lines are not listed"
    assert path.read_bytes() == HEADER + b"bad\n" * 25


def test_the_command_reports_that_the_file_changed_during_the_check(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(LOG)
    read = os.read

    def grow(fd: int, count: int) -> bytes:
        with path.open("ab") as file:
            file.write(ROW)
        return read(fd, count)

    monkeypatch.setattr(os, "read", grow)
    code, out, _ = run(path)
    assert code == 0
    assert out.splitlines()[-1] == "  The file changed during the check; the report is about its state at the start"


@pytest.mark.parametrize("repairs", [(), ("--repair",)])
def test_the_command_reports_files_that_are_not_logs_and_checks_the_others(repairs: Sequence[str], path: Path) -> None:
    path.write_bytes(LOG)
    other, missing = path.with_name("a\nb.csv"), path.with_name("none.csv")
    other.write_bytes(b"a,b\n1,2\n")

    code, out, error = run(*repairs, missing, other, path.parent, path)

    assert code == 2
    assert out.startswith(f"{path}: intact;")
    assert error.splitlines() == [
        f"otel-connector check: {missing}: No such file or directory",
        f"otel-connector check: {path.parent}/a\\nb.csv: not a log: its first line is 'a,b', not the header",
        f"otel-connector check: {path.parent}: Is a directory",
    ]


def test_the_command_reports_why_a_repair_failed(path: Path) -> None:
    path.write_bytes(LOG + TAIL)
    torn_of(path).mkdir()

    code, out, error = run("--repair", path)

    assert (code, out) == (2, "")
    assert error == (
        f"otel-connector check: {path}: the unfinished last line cannot be moved to '{path}.torn': Is a directory\n"
    )
    assert path.read_bytes() == LOG + TAIL


def test_the_command_checks_the_parts_of_a_log_once(path: Path) -> None:
    path.write_bytes(LOG)
    part = path.with_name("logs.000001.csv")
    part.write_bytes(HEADER + b"bad\n")
    code, out, _ = run(part, path)
    assert code == 1
    assert [line.partition(":")[0] for line in out.splitlines()[::2]] == [str(part), str(path)]


def test_the_command_does_not_repair_a_log_that_is_locked_by_a_writer(path: Path) -> None:
    path.write_bytes(LOG + TAIL)
    with path.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_SH)
        code, out, error = run("--repair", path)
        assert path.read_bytes() == LOG + TAIL
    assert (code, out) == (2, "")
    why = "another process is writing this file; end that process first, or try again later"
    assert error == f"otel-connector check: {path}: {why}\n"
    assert run("--repair", path)[0] == 0


def test_the_help_shows_an_example_and_the_exit_codes() -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "\n    otel-connector check --repair logs.csv logs.csv.1\n" in out
    assert "\n    1  a file is damaged, or another program has altered it\n" in out
    assert run()[0] == 2
