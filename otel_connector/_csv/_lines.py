"""A log read line by line, packed with gzip or not, from any line on and in bounded memory.

A row is one physical line. What cannot be read as one (too long, without an end, behind damage to what is packed) is
given, too, with the reason, so that a reader can count it. Knows neither what a row means nor what becomes of it.
"""

from __future__ import annotations

import gzip
import os
import zlib
from contextlib import contextmanager, suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from otel_connector._csv._check import LINE_LIMIT, refuse_stranger
from otel_connector._csv._format import HEADER
from otel_connector._csv._torn_tail import open_regular
from otel_connector._record import one_line

if TYPE_CHECKING:
    from collections.abc import Generator
    from io import BufferedIOBase, BufferedReader

_GZIP = b"\x1f\x8b"
_BAD_GZIP = (gzip.BadGzipFile, EOFError, zlib.error)
UNFINISHED = "it has no line end"
"""What is said of a last line that is torn, or being written."""

_TOO_LONG = "it is longer than any row"


class Line(NamedTuple):
    """One line of a log.

    Attributes:
        number: From 1.
        offset: Where it begins, in bytes of what is packed.
        end: Where the next one begins.
        content: Its bytes, without the line end; of one that is too long the first of them.
        what: Why it cannot be read; None if it can.
        ended: Whether it has a line end.
    """

    number: int
    offset: int
    end: int
    content: bytes
    what: str | None
    ended: bool


class Log(NamedTuple):
    """A log that is to be read.

    Attributes:
        path: The file.
        identity: What it is known by: a hash of its first row.
        size: Its bytes on the disk.
    """

    path: str
    identity: str
    size: int


class Position(NamedTuple):
    """How far a log is sent.

    Attributes:
        offset: Bytes of what is packed.
        lines: Lines before that.
        sent: Spans that they gave.
        last: Where the last of these lines begins.
        proof: A hash of that line, so that another log is not taken for this one.
    """

    offset: int = 0
    lines: int = 0
    sent: int = 0
    last: int = 0
    proof: str = ""


@contextmanager
def open_log(path: str) -> Generator[tuple[BufferedReader, BufferedIOBase]]:
    """Open a log; give the file, and what its lines are read from: the same, or what is packed in it."""
    with open(open_regular(path, os.O_RDONLY), "rb") as raw:  # noqa: PTH123 - of a descriptor
        if raw.peek(len(_GZIP))[: len(_GZIP)] == _GZIP:
            with gzip.GzipFile(fileobj=raw) as file:
                yield raw, file
        else:
            yield raw, raw


def look_at(path: str) -> Log:
    """Return what there is to know of a log before it is read.

    It is known again by its first row, wherever it is moved, packed or not.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no log.
    """
    try:
        with open_log(path) as (raw, file):
            first, second = file.readline(LINE_LIMIT), file.readline(LINE_LIMIT)
            refuse_stranger(first + second, row_will_do=True)
            size = os.fstat(raw.fileno()).st_size
    except _BAD_GZIP as error:
        raise ValueError(f"{path}: not a log: it cannot be unpacked: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Log(path, hash_of(second if first == HEADER else first), size)


def hash_of(line: bytes) -> str:
    """Return what a line is known by."""
    return blake2b(line, digest_size=16).hexdigest()


def go_to(file: BufferedIOBase, position: Position) -> Position:
    """Go to where a log is sent to; to its beginning if the line before that is another one by now."""
    if position.offset:
        with suppress(*_BAD_GZIP):
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
    # How much comes out before damage depends on the steps in which it is read: they are those of the first time
    while start < end and (piece := file.readline(min(LINE_LIMIT, end - start))):
        start += len(piece)


def lines(file: BufferedIOBase, start: Position, end: int | None) -> Generator[Line]:
    """Read the lines from a position on, up to the one in which `end` is, whatever is in them."""
    offset, number = start.offset, start.lines
    while end is None or offset < end:
        begin, number = offset, number + 1
        try:
            first = piece = file.readline(LINE_LIMIT)
            offset += len(piece)
            while piece and not piece.endswith(b"\n"):
                piece = file.readline(LINE_LIMIT)
                offset += len(piece)
        except _BAD_GZIP as error:
            yield Line(
                number, begin, offset, b"", one_line(f"from here on it cannot be unpacked: {error}"), ended=False
            )
            return
        if not first:
            return
        ended = piece.endswith(b"\n")
        what = UNFINISHED if not ended else _TOO_LONG if offset - begin > LINE_LIMIT else None
        yield Line(number, begin, offset, first.removesuffix(b"\n"), what, ended)
