r"""Which lines of a log are whole, and how an unfinished last line is removed.

A log is read in blocks, so its size does not matter, and without a lock, so its writers never wait. A row is one
physical line: only the bytes after the last ``\n`` can be left behind by a writer that was killed. Only these are ever
cut, after they were saved elsewhere. This file does not know open writers and their rows in memory.

Readers accept a row that another program saved in another notation (`_lines`). This file counts it and reports it as
altered, because the bytes are not those that were written.

Used by ``_replay._replay``, ``cli._check_command`` and ``cli._doctor_command``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedIOBase, BufferedReader, BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from otel_connector._csv import _lines
from otel_connector._csv._file import refuse_other_header
from otel_connector._csv._format import ATTEMPTS, CALLS, RowFormat
from otel_connector._csv._lock import try_lock
from otel_connector._csv._ownership import open_own, with_target
from otel_connector._csv._parts import torn_file
from otel_connector._csv._torn_tail import blocks, cut_torn_tail

DAMAGE_LIMIT = 20  # damaged lines that are described; the others are counted
_CHANGED = "another program has changed the line: its values can be read, but it is not as it was written"
_CR_LF = "another program has changed its line end to CR LF: its values can be read, but it is not as it was written"
_ALTERATIONS = frozenset({_CHANGED, _CR_LF})


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedLine:
    """One line that is not a whole row, or not as it was written.

    Attributes:
        line: Its number, from 1.
        offset: Where it begins, in bytes of the uncompressed content.
        length: Its bytes, without the line end.
        what: What is wrong with it, on one line; may quote from it.
    """

    line: int
    offset: int
    length: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """The result of `check` for one file.

    Attributes:
        size: Uncompressed bytes that were read: the file as it was at the start, and the rest of a line that was being
            written.
        rows: Number of whole rows, including altered ones: the rows that all readers count.
        altered: Number of altered lines, including a header: they are whole, and not as they were written.
        damage: The first `DAMAGE_LIMIT` damaged or altered lines, in order.
        more: Number of further damaged or altered lines.
        unfinished: The last line, if it has no line end: torn, or being written.
        torn: Size in bytes of the file ``<logfile>.torn`` of earlier repairs; None if there is none.
        changed: Whether the file grew or shrank while it was read.
        attempts: Whether the file is an attempts log.
    """

    size: int
    rows: int
    altered: int
    damage: tuple[DamagedLine, ...]
    more: int
    unfinished: DamagedLine | None
    torn: int | None
    changed: bool
    attempts: bool = False

    @property
    def whole(self) -> bool:
        """Whether every line is a whole row under one header, as it was written."""
        return not self.damage and self.unfinished is None

    @property
    def damaged(self) -> int:
        """Number of damaged lines, without the unfinished one."""
        return len(self.damage) + self.more - self.altered


@dataclass(slots=True)
class _Scan:
    """Counts and checks lines. Keeps at most one unfinished line, of at most `LINE_LIMIT` bytes and a block."""

    form: RowFormat[Any]
    rows: int = 0
    altered: int = 0
    number: int = 0  # of the last line that ended
    offset: int = 0  # of the next line
    damage: list[DamagedLine] = field(default_factory=list[DamagedLine])
    more: int = 0
    rest: bytes = b""  # the beginning of the next line
    dropped: int = 0  # bytes of the next line that are not kept, because it is longer than any row
    _has_nul: bool = False  # whether the dropped bytes contain NUL

    @property
    def unfinished(self) -> DamagedLine | None:
        """The line without a line end, if there is one."""
        length = self.dropped + len(self.rest)
        what = _lines.HOLE if self._has_nul or b"\0" in self.rest else _lines.UNFINISHED
        return DamagedLine(line=self.number + 1, offset=self.offset, length=length, what=what) if length else None

    def feed(self, block: bytes) -> None:
        if self.dropped and b"\n" not in block:  # a hole of gigabytes needs nothing else
            self._has_nul = self._has_nul or b"\0" in block
            self.dropped += len(block)
            return
        pieces = (self.rest + block).split(b"\n")
        self.rest = pieces.pop()
        for piece in pieces:
            self.end_line(piece, self.dropped + len(piece))
        if self.dropped or len(self.rest) > _lines.LINE_LIMIT:
            self._has_nul = self._has_nul or b"\0" in self.rest
            self.dropped += len(self.rest)
            self.rest = b""

    def end_line(self, line: bytes, length: int) -> None:
        """Check a line; if it is longer than any row, `line` may be a piece of it."""
        if length >= _lines.LINE_LIMIT:  # the line end counts
            what: str | None = _lines.HOLE if self._has_nul or b"\0" in line else _lines.TOO_LONG
        elif self.number == 0 and _lines.is_header(line, self.form):
            what = _how_altered(line, self.form.header)
            self.altered += what is not None
        else:
            what = _what_is_wrong(line, self.form)
            self.altered += what in _ALTERATIONS
            self.rows += what is None or what in _ALTERATIONS
            if self.number == 0 and what is None:
                what = "the header is missing; the line itself is a whole row"
        self.note(length, what)
        self.offset += length + 1
        self.dropped, self._has_nul = 0, False

    def note(self, length: int, what: str | None) -> None:
        """Count a line, and what is wrong with it."""
        self.number += 1
        if what is not None and len(self.damage) < DAMAGE_LIMIT:
            self.damage.append(DamagedLine(line=self.number, offset=self.offset, length=length, what=what))
        elif what is not None:
            self.more += 1


def _what_is_wrong(line: bytes, form: RowFormat[Any]) -> str | None:
    """Return why a line is not a row as it was written, or None if it is one."""
    if form is CALLS and _lines.is_plain_row(line):
        return None
    try:
        _, record = _lines.read_row(line, form)
    except ValueError as error:
        return str(error)
    return _how_altered(line, form.encode(record))


def _how_altered(line: bytes, written: bytes) -> str | None:
    """Return how a line differs from the line that was written; None if it does not."""
    return None if line + b"\n" == written else _CR_LF if line.endswith(b"\r") else _CHANGED


def check(
    path: str | os.PathLike[str],
    progress: Callable[[int, int], object] = lambda _done, _size: None,
    max_unpacked_bytes: int = _lines.MAX_UNPACKED_BYTES,
) -> CheckReport:
    """Read a log, or an attempts log, and report which lines are whole.

    Nothing is changed, no writer waits, and memory is bounded.
    Rows that are missing as a whole, and letters that were changed inside a text, are not detected.

    Args:
        path: The file, plain or gzip. It may be written meanwhile; then it is checked as it was at the start.
        progress: Called after each block with the bytes read, and the bytes of the file.
        max_unpacked_bytes: The most that a compressed log may have after decompression.

    Raises:
        OSError: It cannot be read, or is not a regular file.
        ValueError: It is not a log: empty, in another compression, binary, or with another header; or it exceeds
            `max_unpacked_bytes`. The message says so.
    """
    name = os.fspath(path)
    with _lines.open_log(name) as (raw, file):
        scan = _Scan(_lines.format_of(file))
        size = os.fstat(raw.fileno()).st_size
        limited = _lines.Limited(file, max_unpacked_bytes)
        for done in _scan_plain(raw.fileno(), scan, size) if file is raw else _scan_gzip(raw, file, limited, scan):
            progress(done, size)
        changed = os.fstat(raw.fileno()).st_size != size
    unfinished, torn = scan.unfinished, None
    with suppress(OSError):
        torn = os.lstat(torn_file(name)).st_size
    return CheckReport(
        size=scan.offset + (unfinished.length if unfinished else 0),
        rows=scan.rows,
        altered=scan.altered,
        damage=tuple(scan.damage),
        more=scan.more,
        unfinished=unfinished,
        torn=torn,
        changed=changed,
        attempts=scan.form is ATTEMPTS,
    )


def _scan_plain(fd: int, scan: _Scan, size: int) -> Generator[int]:
    """Scan a file up to `size`, and the rest of its last line; yield the bytes read so far."""
    done = 0
    for block in blocks(fd, 0, size, skip_holes=True):
        scan.feed(block)
        done += len(block)
        yield done
    os.lseek(fd, done, os.SEEK_SET)
    while scan.unfinished is not None and (block := os.read(fd, _lines.LINE_LIMIT)):  # a row that is being written
        scan.feed(block[: block.find(b"\n") + 1] or block)


def _scan_gzip(raw: BufferedReader, file: BufferedIOBase, limited: _lines.Limited, scan: _Scan) -> Generator[int]:
    """Scan the content of a compressed file; yield the compressed bytes read so far."""
    file.seek(0)
    done = 0
    # Line by line, as all readers do: how much can be read before damage depends on the sizes of the reads
    for line in _lines.lines(limited):
        if line.ended:
            scan.end_line(line.content, line.end - line.offset - 1)
        elif line.what == _lines.UNFINISHED:
            scan.rest, scan.dropped = line.content, line.end - line.offset - len(line.content)
        else:
            scan.note(line.end - line.offset, line.what)
        if (now := raw.tell()) > done:
            done = now
            yield done


def try_access(path: str | os.PathLike[str]) -> bool:
    """Return whether a log can be written now. False: another process holds its lock.

    A log that does not exist can be written if a file can be created in its folder; it is not created.

    Raises:
        OSError: The log cannot be written.
        ValueError: It is not a log to which rows of calls are appended.
    """
    name = os.fspath(path)
    try:
        fd = open_own(name, os.O_RDWR | os.O_APPEND)
    except FileNotFoundError:  # a writer also creates the target of a link
        folder = Path(os.path.realpath(name) if Path(name).is_symlink() else name).parent
        try:
            with TemporaryFile(dir=folder):
                return True
        except OSError as error:  # it names the temporary file
            raise with_target(OSError(error.errno, error.strerror, str(folder)), name) from None
    try:
        refuse_other_header(fd, CALLS.header)
        return try_lock(fd)
    finally:
        os.close(fd)


def repair(path: str | os.PathLike[str]) -> int:
    """Move the unfinished last line of a log to ``<logfile>.torn``, as opening the log would, and return its bytes.

    Other damage stays as it is. Without file locks (Windows) the caller must know that no process is writing.

    Raises:
        OSError: It cannot be opened or changed, a writer holds it, or the line cannot be saved. The log is unchanged.
        ValueError: It is not a log, or is compressed; nothing is changed.
    """
    name = os.fspath(path)
    fd = open_own(name, os.O_RDWR)
    try:
        # Before the lock: a file that is not a log is not locked either
        _lines.format_of(BytesIO(b"".join(blocks(fd, 0, _lines.LINE_LIMIT))))
        if not try_lock(fd):
            why = "another process is writing this file; end that process first, or try again later"
            raise BlockingIOError(errno.EWOULDBLOCK, why, name)
        return cut_torn_tail(fd, name)
    finally:
        os.close(fd)
