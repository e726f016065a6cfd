"""Which files a review reads, and what each of them is: a log, a compressed one, a torn neighbour, or no log at all.

Opens nothing but regular files, changes none, and reads of each its first line and its end. What is damaged in the
middle shows only when all of it is read (`_repaired.py`). Knows nothing of DuckDB.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from otel_connector._csv._format import HEADER
from otel_connector._csv._lines import LINE_LIMIT, open_log, read_head
from otel_connector._csv._torn_tail import TORN_SUFFIX, blocks, count_lines, last_row_end, open_regular

_BLOCK = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A log that is there.

    Attributes:
        path: Where it is.
        plain: Whether DuckDB may read it as it is: not what is compressed, or what a spreadsheet saved.
        size: Bytes, when it was looked at.
        tail: What is there of a last line that has no end; not known of a compressed one.
    """

    path: str
    plain: bool
    size: int
    tail: bytes = b""

    def lines(self) -> int:
        r"""Count the ``\n`` of what was there when it was looked at; not of a compressed one."""
        return self._lines_between(0, self.size)

    def grown(self) -> int:
        r"""Count the ``\n`` of what has come since."""
        size = Path(self.path).stat().st_size
        return 0 if size == self.size else self._lines_between(self.size, size)

    def _lines_between(self, start: int, end: int) -> int:
        with open(open_regular(self.path, os.O_RDONLY), "rb") as file:  # noqa: PTH123 - of a descriptor
            return count_lines(file.fileno(), start, end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Torn:
    """A neighbour ``<logfile>.torn``: unfinished lines that were taken off a log.

    Attributes:
        path: Where it is.
        lines: How many it keeps.
        size: Bytes.
    """

    path: str
    lines: int
    size: int


def look_at(path: str) -> Found:
    """Say what a file is.

    Raises:
        OSError: It cannot be read, or is no regular file.
        ValueError: It is no log; says what it is.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError("its name is not UTF-8: rename it") from None
    with open_log(path) as (raw, file):
        first, _ = read_head(file)
        compressed = file is not raw
        plain = first == HEADER and not compressed  # DuckDB 2.0 does not come back from some damaged gzips
        size, tail = os.fstat(raw.fileno()).st_size, b""
        if not compressed:
            end = last_row_end(raw.fileno())
            tail = b"".join(blocks(raw.fileno(), end, min(size, end + LINE_LIMIT)))
    return Found(path=path, plain=plain, size=size, tail=tail)


def torn_neighbour(path: str) -> Torn | None:
    """Return what is kept beside a log of lines that were never finished."""
    torn = path if path.endswith(TORN_SUFFIX) else path + TORN_SUFFIX
    try:
        with open(open_regular(torn, os.O_RDONLY), "rb") as file:  # noqa: PTH123 - of a descriptor
            size = os.fstat(file.fileno()).st_size
            lines, end = 0, b"\n"
            for block in iter(lambda: file.read(_BLOCK), b""):
                lines, end = lines + block.count(b"\n"), block[-1:]
    except OSError:
        return None
    return Torn(path=torn, lines=lines + (end != b"\n"), size=size) if size else None
