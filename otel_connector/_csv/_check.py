r"""Level 2: what is whole in a log and what is not, and how an unfinished last line is taken off.

A log is read here in blocks, so that its size is of no matter, and without a lock, so that its writers never wait. A
row is one physical line: what follows the last ``\n`` is all that a killed writer can leave behind, and all that is
ever cut, after it was kept elsewhere. Knows nothing of open writers and their rows in memory.
"""

from __future__ import annotations

import csv
import errno
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from otel_connector._csv._format import HEADER, decode_row, encode_row
from otel_connector._csv._lock import try_lock
from otel_connector._csv._torn_tail import TORN_SUFFIX, blocks, cut_torn_tail, open_regular, refuse_strangers_links
from otel_connector._record import TEXT_LIMIT, CallRecord, one_line

if TYPE_CHECKING:
    from collections.abc import Callable

LINE_LIMIT = 2**20
"""Bytes of a line that are looked at. The longest row has some 90 kB: two texts of 8,192 and three of 2,048 characters
of 4 bytes."""

DAMAGE_LIMIT = 20
"""Damaged lines that a `Report` names; the others are counted."""

_BLOCK = 2**18  # bytes read at once: larger is no faster, and this stays in a processor's cache
_GLANCE = 4_096  # bytes that show the header, or where the last row ends
_WHAT_LIMIT = 200  # characters said about one line
_HEADER_LINE = HEADER.rstrip(b"\n")
HOLE = "there are NUL bytes in it: a hole, as a crash of the machine leaves"
_CALL_ID = re.compile("[0-9a-f]{32}-[0-9a-f]{16}")

# Nearly every row is of ASCII, needs no quotes and wears no guard. It is known at sight, in a tenth of the time that
# reading it and writing it once more takes. No text reaches its limit in a line that is not longer than the lowest.
_PLAIN_TEXT = rb"(?:[ !#-&(-*.-<>?A-~][ !#-+\--~]*)?"
_PLAIN_TIME = rb"(?:0|[1-9][0-9]{0,8}|1[0-9]{9})\.[0-9]{6}"
PLAIN_ROW = re.compile(
    rb"%b,%b,%b,%b,%b,%b,(?:0|[1-9][0-9]{0,17}),(?:[1-9][0-9]{2})?,(?:True|False),%b"
    % (_CALL_ID.pattern.encode(), _PLAIN_TEXT, _PLAIN_TIME, _PLAIN_TIME, _PLAIN_TEXT, _PLAIN_TEXT, _PLAIN_TEXT)
)
"""What nearly every row looks like. A line that does not match may still be a row."""

# How files begin that take a log's place: what logrotate packs with, and what a spreadsheet saves
_MAGIC = {
    b"\x1f\x8b": "it is compressed (gzip): unpack it first",
    b"\x28\xb5\x2f\xfd": "it is compressed (zstd): unpack it first",
    b"\xfd7zXZ\x00": "it is compressed (xz): unpack it first",
    b"BZh": "it is compressed (bzip2): unpack it first",
    b"PK\x03\x04": "it is a zip archive or a spreadsheet",
    b"\x00": "it begins with NUL bytes, as a file does whose beginning a crash of the machine took",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One line that is no whole row.

    Attributes:
        line: Its number, from 1.
        offset: Where it begins, in bytes from the start of the file.
        length: Its bytes, without the line end.
        what: What is wrong with it, on one line; may quote from it.
    """

    line: int
    offset: int
    length: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `check` found in one log.

    Attributes:
        size: Bytes looked at: the file as it was in the beginning, and the rest of a line that was being written.
        rows: Whole rows.
        damage: The first `DAMAGE_LIMIT` damaged lines, in order.
        more: How many damaged lines there are beyond those.
        unfinished: The last line, if its line end is missing: torn, or being written.
        torn: Bytes in the neighbour ``<logfile>.torn`` that earlier repairs filled; None if it is not there.
        changed: Whether the file grew or shrank while it was read.
    """

    size: int
    rows: int
    damage: tuple[Damage, ...]
    more: int
    unfinished: Damage | None
    torn: int | None
    changed: bool

    @property
    def whole(self) -> bool:
        """Whether every line is a whole row under one header."""
        return not self.damage and self.unfinished is None


@dataclass(slots=True)
class _Scan:
    """Counts and judges lines; keeps at most one unfinished line, of at most `LINE_LIMIT` bytes and a block."""

    rows: int = 0
    lines: int = 0
    offset: int = 0  # of the line that comes next
    damage: list[Damage] = field(default_factory=list[Damage])
    more: int = 0
    _rest: bytes = b""  # of that line, what is known
    _dropped: int = 0  # bytes of it that are not kept, because it is longer than any row
    _hollow: bool = False  # whether there are NUL bytes among them

    @property
    def unfinished(self) -> Damage | None:
        """The line without an end, if there is one."""
        length = self._dropped + len(self._rest)
        if not length:
            return None
        what = HOLE if self._hollow or b"\0" in self._rest else "it has no line end"
        return Damage(line=self.lines + 1, offset=self.offset, length=length, what=what)

    def feed(self, block: bytes) -> None:
        if self._dropped and b"\n" not in block:  # a hole of gigabytes is not worth more
            self._hollow = self._hollow or b"\0" in block
            self._dropped += len(block)
            return
        pieces = (self._rest + block).split(b"\n")
        self._rest = pieces.pop()
        for piece in pieces:
            self._end_line(piece)
        if self._dropped or len(self._rest) > LINE_LIMIT:
            self._hollow = self._hollow or b"\0" in self._rest
            self._dropped += len(self._rest)
            self._rest = b""

    def _end_line(self, line: bytes) -> None:
        length = self._dropped + len(line)
        if length > LINE_LIMIT:
            what = HOLE if self._hollow or b"\0" in line else "it is longer than any row"
        elif self.lines == 0 and line == _HEADER_LINE:
            what = None
        else:
            plain = len(line) <= TEXT_LIMIT and PLAIN_ROW.fullmatch(line)
            what = None if plain else _what_is_wrong(line)
            self.rows += what is None
            if self.lines == 0 and what is None:
                what = "the header is missing; the line itself is a whole row"
        self.lines += 1
        if what is not None and len(self.damage) < DAMAGE_LIMIT:
            self.damage.append(Damage(line=self.lines, offset=self.offset, length=length, what=what))
        elif what is not None:
            self.more += 1
        self.offset += length + 1
        self._dropped, self._hollow = 0, False


def read_line(line: bytes) -> tuple[list[str], CallRecord]:
    """Return the cells of a line without its end, and the record they stand for, whoever wrote it.

    Raises:
        ValueError: It is no row; says on one line what is wrong with it.
    """
    if b"\0" in line:
        raise ValueError(HOLE)
    if line == _HEADER_LINE:
        raise ValueError("it is a header: files were joined")
    try:
        cells = next(csv.reader([line.decode()], strict=True))
        record = decode_row(cells)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 from its byte {error.start} on") from None
    except csv.Error as error:
        raise ValueError(f"its quotes or line ends are not those of a row: {error}") from None
    except ValueError as error:
        raise ValueError(one_line(str(error), _WHAT_LIMIT)) from None
    if not _CALL_ID.fullmatch(record.call_id):  # where the first cell was torn, the row glued to it has ten cells, too
        raise ValueError(one_line(f"call_id is no id but {record.call_id!r}; parts of two rows, maybe", _WHAT_LIMIT))
    return cells, record


def _what_is_wrong(line: bytes) -> str | None:
    """Return why `line` is no row of ours, None if it is one."""
    try:
        _, record = read_line(line)
    except ValueError as error:
        return str(error)
    # Written once more it is the same to the byte, unless another program wrote it
    return None if encode_row(record) == line + b"\n" else "it is not as it was written: something changed it"


def check(path: str | os.PathLike[str], progress: Callable[[int, int], object] | None = None) -> Report:
    """Read a log and say what is whole in it. Nothing is changed, nobody has to wait, and memory is bounded.

    What cannot be seen: a row that is missing as a whole, and letters that were changed inside a text.

    Args:
        path: The file. It may be written meanwhile; then it is looked at as it was in the beginning.
        progress: Called after each block with the bytes read, and those to read.

    Raises:
        OSError: It cannot be read, or is not a regular file.
        ValueError: It is not a log: empty, compressed, binary, or with another tool's header; says which.
    """
    name = os.fspath(path)
    fd = open_regular(name, os.O_RDONLY)
    try:
        refuse_stranger(b"".join(blocks(fd, 0, LINE_LIMIT)), row_will_do=True)
        scan = _Scan()
        size, done = os.fstat(fd).st_size, 0
        for block in blocks(fd, 0, size, skip_holes=True):
            scan.feed(block)
            done += len(block)
            if progress is not None:
                progress(done, size)
        os.lseek(fd, done, os.SEEK_SET)
        while scan.unfinished is not None and (block := os.read(fd, _BLOCK)):  # a row that is being written
            block = block[: block.find(b"\n") + 1] or block
            scan.feed(block)
            done += len(block)
        changed = os.fstat(fd).st_size != size
    finally:
        os.close(fd)
    return Report(
        size=done,
        rows=scan.rows,
        damage=tuple(scan.damage),
        more=scan.more,
        unfinished=scan.unfinished,
        torn=_size_of(name + TORN_SUFFIX),
        changed=changed,
    )


def repair(path: str | os.PathLike[str]) -> int:
    """Take the unfinished last line off a log that nobody is writing, as opening it would, and return its bytes.

    Other damage stays as it is. Without file locks (Windows) the caller knows that nobody writes.

    Raises:
        OSError: It cannot be opened or changed, a writer has it locked, or the line cannot be kept in
            ``<logfile>.torn``. The log is as it was.
        ValueError: It is not a log; nothing is touched.
    """
    name = os.fspath(path)
    refuse_strangers_links(name)
    fd = open_regular(name, os.O_RDWR)
    try:
        refuse_stranger(b"".join(blocks(fd, 0, _GLANCE)))  # before the lock: what is not ours is not locked either
        if not try_lock(fd):
            raise BlockingIOError(errno.EWOULDBLOCK, "a program is writing it: try again, or end that first", name)
        return cut_torn_tail(fd, name)
    finally:
        os.close(fd)


def refuse_stranger(head: bytes, *, row_will_do: bool = False) -> None:
    """Raise ValueError if a file that starts with `head` is no log, and say what it is.

    Args:
        head: More than the header, and the whole first line if a row will do.
        row_will_do: Take a row of a log for a header, too.
    """
    if head.startswith(HEADER):
        return
    line, end, _ = head.partition(b"\n")
    if row_will_do and end and _what_is_wrong(line) is None:
        return
    if not head:
        why = "it is empty"
    elif HEADER.startswith(head):
        why = "it holds the beginning of a header and no row; it can be deleted"
    else:
        found = line[: 4 * _WHAT_LIMIT].decode(errors="replace")[:_WHAT_LIMIT]
        said = (why for magic, why in _MAGIC.items() if head.startswith(magic))
        why = next(said, f"its first line is {found!r}, not the header")
    raise ValueError(f"not a log: {why}")


def _size_of(path: str) -> int | None:
    try:
        return os.lstat(path).st_size
    except (OSError, ValueError):
        return None
