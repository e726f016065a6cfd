"""A damaged log as a whole one: its good lines in a temporary file, and what is wrong with the others.

A row is one physical line, so a line is judged by itself: a torn one takes none with it, whatever quotes it left open.
This costs some microseconds a line, which is why only files go this way that are damaged, packed, or saved by another
program. Knows nothing of DuckDB.
"""

from __future__ import annotations

import csv
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO

from otel_connector._csv._check import HOLE, LINE_LIMIT, PLAIN_ROW
from otel_connector._csv._format import HEADER, decode_row, encode_row
from otel_connector._csv._lines import open_log
from otel_connector._record import COLUMNS, TEXT_LIMIT, CallRecord, one_line
from otel_connector.review._files import Found

NAMED_DAMAGE = 20
"""Damaged lines that are told one by one; the others are counted."""

LATEST = 253_402_300_799
"""The last second of the year 9999: what is behind it is no time."""

LONGEST = 1e9
"""Seconds above which a duration is none: thirty years."""

_WHAT_LIMIT = 120  # characters said about one line
_BOM = b"\xef\xbb\xbf"


@dataclass(slots=True)
class Damage:
    """What was wrong in one file.

    Attributes:
        rows: How many lines are rows.
        lines: How many are none.
        named: The number of each of the first of them, from 1, and what is wrong with it.
        unfinished: Whether the last line has no end: torn, or being written.
    """

    rows: int = 0
    lines: int = 0
    named: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    unfinished: bool = False

    def note(self, line: int, what: str) -> None:
        """Note a line that is no row."""
        self.lines += 1
        if len(self.named) < NAMED_DAMAGE:
            self.named.append((line, what))


def copy_good_rows(found: Found, target: IO[bytes]) -> Damage:
    """Write the rows of a file that are whole, under a header, and say what the others are."""
    damage = Damage()
    target.write(HEADER)
    for number, line in _numbered(found, damage):
        if len(line) <= TEXT_LIMIT and PLAIN_ROW.fullmatch(line):
            damage.rows += target.write(line + b"\n") > 0
        elif (record := _record_of(line, number, damage.note)) is not None:
            damage.rows += target.write(encode_row(record)) > 0
    return damage


def _numbered(found: Found, damage: Damage) -> Iterator[tuple[int, bytes]]:
    """Yield the finished lines behind the header, without their line ends; others are noted."""
    number = 0
    with open_log(found.path) as (_, file):
        try:
            while line := file.readline(LINE_LIMIT):
                number += 1
                length = len(line)
                while not line.endswith(b"\n") and (more := file.readline(LINE_LIMIT)):
                    length, line = length + len(more), more
                if not line.endswith(b"\n"):
                    damage.unfinished = True
                elif length > LINE_LIMIT:
                    damage.note(number, "it is longer than any row")
                elif number > 1:
                    yield number, line[:-1].removesuffix(b"\r")
        except (EOFError, OSError, zlib.error) as error:
            damage.note(number + 1, f"what follows cannot be read: {error}")


def _record_of(line: bytes, number: int, note: Callable[[int, str], None]) -> CallRecord | None:
    if line.removeprefix(_BOM) == HEADER[:-1]:
        note(number, "it is a header: files were joined")
        return None
    if b"\0" in line:
        note(number, HOLE)
        return None
    try:
        record = decode_row(next(csv.reader([line.decode()], strict=True), list[str]()))
    except UnicodeDecodeError as error:
        note(number, f"it is not UTF-8 from its byte {error.start} on")
    except (csv.Error, ValueError) as error:
        note(number, one_line(str(error), _WHAT_LIMIT))
    else:
        if wrong := _what_cannot_be(record):
            note(number, wrong)
        else:
            return record
    return None


def _what_cannot_be(record: CallRecord) -> str | None:
    if not record.call_id.isascii() or len(record.call_id) != CALL_ID_LENGTH:
        return f"call_id is no id but {one_line(record.call_id, 60)!r}"
    for name, value, most in (("t", record.t, LATEST), ("delta_t", record.delta_t, LONGEST)):
        if not 0 <= value <= most or math.isnan(value):
            return f"{name} is {value}"
    sizes = (record.response_size, record.response_code or 0)
    if any(abs(size) >= bound for size, bound in zip(sizes, (2**63, 2**31), strict=True)):
        return f"{COLUMNS[6]} is {record.response_size}, {COLUMNS[7]} {record.response_code}"
    return None


CALL_ID_LENGTH = 49
"""Characters of a ``call_id``: 32 of the trace, a hyphen, 16 of the span."""
