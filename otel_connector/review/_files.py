"""Inspects the files of a review: whether each is a log, and which lines were cut off it earlier.

It opens regular files only, and changes none. `inspect_log` reads the first line and the end of a log. `FoundLog.lines`
reads the whole file, counts its lines, and finds those that DuckDB reads in another way than `_csv._lines`. Does not
know the columns of a row.

Used by ``review._repaired`` and ``review._sources``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from otel_connector._csv._format import HEADER
from otel_connector._csv._lines import LINE_LIMIT, open_log, read_head
from otel_connector._csv._ownership import open_regular
from otel_connector._csv._parts import torn_file
from otel_connector._csv._torn_tail import blocks, last_row_end

# DuckDB drops blanks between a comma and a quote. This expression matches all of them, and also a few cells
# whose text has quotes. It starts with a quote, because `re` finds a single character faster than anything else
_BLANK_AT_QUOTE = re.compile(rb'"(?: +[,\n"]|(?<= ")(?:[^",\n]|"[,\n]))')


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLog:
    """A log, as it was when it was inspected.

    Attributes:
        path: The file.
        plain: Whether DuckDB can read it: it is not compressed, and no other program has saved it again.
        size: Its bytes on the disk.
        tail: The bytes of a last line that has no line end; empty if it is compressed.
    """

    path: str
    plain: bool
    size: int
    tail: bytes = b""

    def lines(self) -> int | None:
        r"""Count the ``\n`` of a plain log up to `size`; None if DuckDB may read one of its lines in another way."""
        return self._lines_between(0, self.size)

    def grown(self) -> int:
        r"""Count the ``\n`` that were written since; 0 if the file was renamed or removed since."""
        try:
            return self._lines_between(self.size, Path(self.path).stat().st_size) or 0
        except OSError:
            return 0

    def _lines_between(self, start: int, end: int) -> int | None:
        lines, rest = 0, b""
        with os.fdopen(open_regular(self.path, os.O_RDONLY), "rb") as file:
            for block in blocks(file.fileno(), start, end):
                if b"\0" in block or b"\r" in block or len(rest) > LINE_LIMIT:
                    return None
                if (b'"' in block or b'"' in rest) and _BLANK_AT_QUOTE.search(rest + block):
                    return None
                rest = block[end_of_lines:] if (end_of_lines := block.rfind(b"\n") + 1) else rest + block
                lines += len(block) - len(block.replace(b"\n", b""))  # takes half the time of `count`
        return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class TornFile:
    """The file ``<logfile>.torn``, with the unfinished lines that were cut off a log.

    Attributes:
        path: The file.
        lines: The number of its lines.
        size: Its bytes.
    """

    path: str
    lines: int
    size: int


def inspect_log(path: str) -> FoundLog:
    """Inspect a log.

    Raises:
        OSError: It cannot be read, or is not a regular file.
        ValueError: It is not a log; the message says why.
    """
    with open_log(path) as (raw, file):
        first, _ = read_head(file)
        compressed = file is not raw
        plain = first == HEADER and not compressed  # DuckDB 2.0 hangs on some damaged gzip files
        size, tail = os.fstat(raw.fileno()).st_size, b""
        if not compressed:
            end = last_row_end(raw.fileno())
            tail = b"".join(blocks(raw.fileno(), end, min(size, end + LINE_LIMIT)))
    return FoundLog(path=path, plain=plain, size=size, tail=tail)


def find_torn_file(path: str) -> TornFile | None:
    """Return the file with the unfinished lines of a log; None if there is none, or it is empty."""
    torn = torn_file(path)
    try:
        with os.fdopen(open_regular(torn, os.O_RDONLY), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            lines, end = 0, b"\n"
            for block in blocks(file.fileno(), 0, size):
                lines, end = lines + block.count(b"\n"), block[-1:]
    except OSError:
        return None
    return TornFile(path=torn, lines=lines + (end != b"\n"), size=size) if size else None
