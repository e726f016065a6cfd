"""How a log is read: line by line, compressed with gzip or not, from any line on, in bounded memory.

A row is one physical line, so each line is checked by itself. Lines that cannot be read (too long, without a line end,
after damage in the compressed data) are returned with the reason, so that a reader can count them. Together with
`_format`, this file is the only grammar of a row: check, replay, resume and review use it. It knows neither what a
reader does with a row nor which program writes the log.

Another program may have saved a log again: with a byte order mark, with CR LF as line end, with more quotes, or with
numbers in another notation. Its rows still count, because their values are the same. Only `_check` reports the change.

Used by ``_csv``, ``_replay``, ``cli`` and ``review``.
"""

from __future__ import annotations

import csv
import gzip
import logging
import os
import re
import zlib
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from io import BufferedIOBase, BufferedReader
from typing import Any, NamedTuple, TypeVar

from otel_connector._csv._format import ATTEMPTS, CALL_ID, CALLS, HEADER, RowFormat
from otel_connector._csv._ownership import open_regular
from otel_connector._csv._parts import without_side_files
from otel_connector._record import TEXT_LIMIT, CallRecord, one_line
from otel_connector._units import size

_Record = TypeVar("_Record")

_logger = logging.getLogger("otel_connector")

# Largest length of a line, in bytes, with its line end. The longest row has some 90 kB: two texts of 8,192 and three of
# 2,048 characters of 4 bytes. It is also the largest cell that the csv module reads by default
LINE_LIMIT = 2**17

HOLE = "the line contains NUL bytes, as after a crash of the machine"
TOO_LONG = "the line is longer than any row"
UNFINISHED = "the line has no line end"  # torn, or being written

MAX_UNPACKED_BYTES = 10_000_000_000
"""Bytes that the compressed logs of a review, or one of a check, may have after decompression, by default.

gzip packs up to 1,032 bytes into one (https://zlib.net/zlib_tech.html), so a small file that someone has sent could
fill the disk. These are some 60 million rows. The number is fixed, so that a log has the same review on each machine.
"""

# Bytes that a line counts at least; each row has more. Otherwise line ends would take hours before they reach the limit
_SHORTEST_LINE = 64

BOM = b"\xef\xbb\xbf"
BAD_GZIP = (gzip.BadGzipFile, EOFError, zlib.error)
_GZIP = b"\x1f\x8b"
_REASON_LIMIT = 200  # characters about one line

# Nearly every row is ASCII and needs no quotes and no leading '. This expression recognizes it in a tenth of the time
# that decoding it takes. No text reaches its limit in a line that is not longer than the lowest one. The groups are the
# cells that `rows` returns
_PLAIN_TEXT = rb"(?!['=+@-])[ !#-+\--~]*"
_PLAIN_TIME = rb"(?:1[0-9]{9}|0|[1-9][0-9]{0,8})\.[0-9]{6}"
_PLAIN_DURATION = rb"(?:0|[1-9][0-9]{0,8})\.[0-9]{6}"  # below `LONGEST`
_PLAIN_CELLS = rb"(%b),(%b),(%b),%b,(%b),%b,(?:0|[1-9][0-9]{0,17}),(?:[1-9][0-9]{2})?,(True|False),%b" % (
    CALL_ID.pattern.encode(),
    *(_PLAIN_TEXT, _PLAIN_TIME, _PLAIN_DURATION, _PLAIN_TEXT, _PLAIN_TEXT, _PLAIN_TEXT),
)
_PLAIN_ROW, _PLAIN_LINE = re.compile(_PLAIN_CELLS), re.compile(_PLAIN_CELLS + b"\n")

_UNPACK = "unpack it first"
# The first bytes of files that users name instead of a log: compressed by logrotate, or saved by a spreadsheet
_MAGIC = {
    _GZIP: ("the file is compressed (gzip)", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("the file is compressed (zstd)", _UNPACK),
    b"\xfd7zXZ\x00": ("the file is compressed (xz)", _UNPACK),
    b"BZh": ("the file is compressed (bzip2)", _UNPACK),
    b"PK\x03\x04": ("the file is a zip archive or a spreadsheet", ""),
    b"\x00": ("the file begins with NUL bytes, as after a crash of the machine", ""),
}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # without the escape character, which colors have


class Line(NamedTuple):
    """One line of a log.

    Attributes:
        number: Its number, from 1.
        offset: Where it begins, in bytes of the uncompressed content.
        end: Where the next line begins, in the same.
        content: Its bytes without the line end; of a line that is too long only the first of them.
        what: Why the line cannot be read; None if it can be read.
        ended: Whether it has a line end.
    """

    number: int
    offset: int
    end: int
    content: bytes
    what: str | None
    ended: bool


class LogHead(NamedTuple):
    """What is known about a log before its rows are read.

    Attributes:
        path: The file.
        identity: A hash of its first row. It identifies the log even after it was moved or compressed.
        size: Bytes on the disk.
    """

    path: str
    identity: str
    size: int


class Position(NamedTuple):
    """How far a log is sent.

    Attributes:
        offset: Bytes of the uncompressed content.
        lines: Lines before that.
        sent: Spans that were sent for them.
        last: Where the last of these lines begins.
        proof: A hash of that line, so that another log is not mistaken for this one.
    """

    offset: int = 0
    lines: int = 0
    sent: int = 0
    last: int = 0
    proof: str = ""


_START = Position()


def is_plain_row(line: bytes) -> bool:
    """Return whether a line without its end is a row as `encode_row` writes it, with nothing to decode in its texts.

    A line that is not plain may still be a row.
    """
    return len(line) <= TEXT_LIMIT and _PLAIN_ROW.fullmatch(line) is not None


def is_header(line: bytes, form: RowFormat[Any] = CALLS) -> bool:
    """Return whether a line without its end is the header, even if another program has saved it again."""
    if form.columns[0].encode() not in line:  # nearly every row, in a tenth of the time
        return False
    names = line.removeprefix(BOM).rstrip(b"\r\n").decode(errors="replace").split(",")
    return tuple(name.strip('" ') for name in names) == form.columns


def read_line(line: bytes) -> tuple[list[str], CallRecord]:
    r"""Return the cells of a row of a log and its record; see `read_row`."""
    return read_row(line, CALLS)


def read_row(line: bytes, form: RowFormat[_Record]) -> tuple[list[str], _Record]:
    r"""Return the cells of a row and its record.

    Args:
        line: The line, without ``\n``.
        form: What the rows of the file are.

    Raises:
        ValueError: It is not a row; the message is one line and states why.
    """
    if b"\0" in line:
        raise ValueError(HOLE)
    if is_header(line, form):
        raise ValueError("the line is a header: files were joined")
    if b"\r" in line.removesuffix(b"\r"):
        raise ValueError("the line contains a carriage return")
    try:
        cells = next(csv.reader([line.decode()], strict=True), list[str]())
        return cells, form.decode(cells)
    except UnicodeDecodeError as error:
        raise ValueError(f"the line is not UTF-8 from byte {error.start} on") from None
    except csv.Error as error:
        raise ValueError(f"the quotes are not those of a row: {error}") from None
    except ValueError as error:
        raise ValueError(one_line(str(error), _REASON_LIMIT)) from None


def not_text(head: bytes) -> tuple[str, str]:
    """Return what a file is that begins with `head`, and what to do; both are empty if it is text in UTF-8."""
    if known := next((found for magic, found in _MAGIC.items() if head.startswith(magic)), None):
        return known
    if head.startswith(_UTF_16):
        return "the file is in UTF-16, not in UTF-8", ""
    return "the file is binary" if _CONTROL.search(head) else "", ""


def not_a_log(head: bytes) -> ValueError:
    """Return the error for a file that begins with `head` and is not a log. The message says what it seems to be."""
    if not head:
        why = "the file is empty"
    elif HEADER.startswith(head):
        why = "the file contains only the beginning of a header; it can be deleted"
    elif is_header(head.partition(b"\n")[0], ATTEMPTS):
        why = "the file has the attempts of a log; name the log"
    else:
        line = head.partition(b"\n")[0]
        found = line[: 4 * _REASON_LIMIT].decode(errors="replace")[:_REASON_LIMIT]
        why = "; ".join(filter(None, not_text(head))) or f"its first line is {found!r}, not the header"
    return ValueError(f"not a log: {why}")


@contextmanager
def open_log(path: str) -> Generator[tuple[BufferedReader, BufferedIOBase]]:
    """Open a log.

    Yields:
        The file, and the object from which its content is read: the same, or its decompressed content.
    """
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as raw:
        compressed = raw.peek(len(_GZIP)).startswith(_GZIP)
        yield raw, gzip.GzipFile(fileobj=raw) if compressed else raw


class Limited(BufferedIOBase):
    """The content of a compressed log, line by line. It raises ValueError where its limit is exceeded.

    Attributes:
        unpacked: The bytes that were read; a line counts at least 64.
    """

    def __init__(self, file: BufferedIOBase, limit: int) -> None:
        self._file, self._limit = file, limit
        self.unpacked = 0

    def readline(self, limit: int | None = -1, /) -> bytes:
        line = self._file.readline(limit)
        self.unpacked += max(len(line), _SHORTEST_LINE) if line else 0
        if self.unpacked > self._limit:
            raise ValueError(
                "not read: the compressed logs have more bytes after decompression than --max-unpacked-bytes"
                f" (max_unpacked_bytes) allows; {size(self._limit)} were left for this one"
            )
        return line


def read_log_head(path: str, *, may_be_empty: bool = False) -> LogHead:
    """Return what is known about a log before its rows are read. `may_be_empty` is that of `read_head`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not a log; names the path.
    """
    with open_log(path) as (raw, file):
        return identify(path, raw, file, may_be_empty=may_be_empty)


def identify(path: str, raw: BufferedReader, file: BufferedIOBase, *, may_be_empty: bool = False) -> LogHead:
    """Return what `read_log_head` returns of an open log, and move to its beginning.

    Raises:
        ValueError: It is not a log; names the path.
    """
    try:
        first, second = read_head(file, may_be_empty=may_be_empty)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    file.seek(0)
    return LogHead(path, hash_of(second if is_header(first) else first), os.fstat(raw.fileno()).st_size)


def read_head(file: BufferedIOBase, *, may_be_empty: bool = False) -> tuple[bytes, bytes]:
    """Read the first two lines of an open log. It may lack a header, if its first line is a row.

    Args:
        file: Its uncompressed content.
        may_be_empty: Accept a file that contains nothing, or only the beginning of a header.

    Raises:
        ValueError: It is not a log.
    """
    try:
        first, second = file.readline(LINE_LIMIT), file.readline(LINE_LIMIT)
    except BAD_GZIP as error:
        raise ValueError(f"not a log: the file cannot be unpacked: {error}") from None
    if _starts_file(first, CALLS) or (may_be_empty and not first.endswith(b"\n") and HEADER.startswith(first)):
        return first, second
    raise not_a_log(first)


def format_of(file: BufferedIOBase) -> RowFormat[Any]:
    """Return what the rows of an open file are, a log or an attempts log. Read its first line, as `read_head`.

    Raises:
        ValueError: It is neither.
    """
    start = file.tell()
    with suppress(*BAD_GZIP):
        if _starts_file(file.readline(LINE_LIMIT), ATTEMPTS):
            return ATTEMPTS
    file.seek(start)
    read_head(file)
    return CALLS


def _starts_file(line: bytes, form: RowFormat[Any]) -> bool:
    """Return whether the first line of a file is a header, or a row: the header may be missing."""
    if not line.endswith(b"\n"):
        return False
    if is_header(line, form):
        return True
    with suppress(ValueError):
        read_row(line[:-1], form)
        return True
    return False


def logs_of_calls(paths: Sequence[str]) -> list[str]:
    """Return the files without those that lie beside a log, and log the names of the attempts logs in one line.

    The shell expands ``*.csv`` and ``logs*`` to these files, too. If there are no other files, return all: reading one
    raises an error that says what it is. So does a file that cannot be read.
    """
    paths = without_side_files(paths)
    left_out = [path for path in paths if _is_attempts_log(path)]
    if len(left_out) in {0, len(paths)}:
        return list(paths)
    _logger.warning("left out, because attempts logs have no calls: %s", ", ".join(map(one_line, left_out)))
    return [path for path in paths if path not in left_out]


def _is_attempts_log(path: str) -> bool:
    with suppress(OSError, ValueError), open_log(path) as (_, file):
        return format_of(file) is ATTEMPTS
    return False


def may_be_log(path: str) -> bool:
    """Return whether a file is a log or an attempts log, or is compressed in a form in which one may be.

    Raises:
        OSError: It cannot be read.
    """
    with open_log(path) as (raw, file):
        if raw.peek(max(map(len, _MAGIC))).startswith(tuple(_MAGIC)):
            return True
        with suppress(ValueError):
            format_of(file)
            return True
    return False


def hash_of(line: bytes) -> str:
    """Return the hash by which a line is recognized."""
    return blake2b(line, digest_size=16).hexdigest()


def go_to(file: BufferedIOBase, positions: Iterable[Position]) -> Position:
    """Move to the first position before which its line is, or to the beginning. A position may be of another file."""
    for position in positions:
        with suppress(*BAD_GZIP):
            _skip(file, 0, position.last)
            line = file.readline(LINE_LIMIT)
            if hash_of(line.removesuffix(b"\n")) == position.proof:
                _skip(file, position.last + len(line), position.offset)
                return position
        file.seek(0)
    return Position()


def _skip(file: BufferedIOBase, start: int, end: int) -> None:
    if not isinstance(file, gzip.GzipFile):
        file.seek(end)
        return
    # The bytes that can be read before damage depend on the sizes of the reads, so they are those of the first time
    while start < end and (piece := file.readline(min(LINE_LIMIT, end - start))):
        start += len(piece)


def lines(file: BufferedIOBase, start: Position = _START, end: int | None = None) -> Generator[Line]:
    """Yield all lines of a log, rows or not.

    Args:
        file: The uncompressed content, at `start`.
        start: Where to start.
        end: The line that contains this offset is the last one.
    """
    offset, number = start.offset, start.lines
    while end is None or offset < end:
        begin, number = offset, number + 1
        try:
            first = piece = file.readline(LINE_LIMIT)
            offset += len(piece)
            while piece and not piece.endswith(b"\n"):
                piece = file.readline(LINE_LIMIT)
                offset += len(piece)
        except BAD_GZIP as error:
            damage = one_line(f"the file cannot be unpacked from here on: {error}")
            yield Line(number, begin, offset, b"", damage, ended=False)
            return
        if not first:
            return
        ended = piece.endswith(b"\n")
        what = UNFINISHED if not ended else TOO_LONG if offset - begin > LINE_LIMIT else None
        yield Line(number, begin, offset, first.removesuffix(b"\n"), what, ended)


def rows(file: BufferedIOBase) -> Generator[tuple[bytes, ...]]:
    """Yield call_id, project, t, url and success of each row, decoded. Skip the lines that are not rows.

    It takes half the time of `lines`, because it returns nothing else.

    Args:
        file: The uncompressed content, at the beginning of a line.
    """
    with suppress(*BAD_GZIP):
        while line := file.readline(LINE_LIMIT):
            if len(line) <= TEXT_LIMIT and (found := _PLAIN_LINE.fullmatch(line)):
                yield found.groups()
            elif line.endswith(b"\n"):
                with suppress(ValueError):
                    _, record = read_line(line[:-1])
                    texts = record.call_id, record.project, repr(record.t), record.url, str(record.success)
                    yield tuple(text.encode() for text in texts)
            else:  # it is longer than any row, or has no line end
                while (piece := file.readline(LINE_LIMIT)) and not piece.endswith(b"\n"):
                    pass
