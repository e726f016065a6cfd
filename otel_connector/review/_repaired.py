"""A damaged log as a whole one: its good lines in a temporary file, and what is wrong with the others.

A row is one physical line, so a line is judged by itself: a torn one takes none with it, whatever quotes it left open.
This costs some microseconds a line, which is why only files go this way that are damaged, packed, or saved by another
program. Knows nothing of DuckDB.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import IO

from otel_connector._csv._format import HEADER, encode_row
from otel_connector._csv._lines import UNFINISHED, is_header, is_plain_row, lines, open_log, read_line
from otel_connector.review._files import Found

NAMED_DAMAGE = 20
"""Damaged lines that are told one by one; the others are counted."""


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
    with open_log(found.path) as (_, file):
        for line in lines(file):
            if line.what == UNFINISHED:
                damage.unfinished = True
            elif line.what is not None:
                damage.note(line.number, line.what)
            elif is_plain_row(line.content):
                damage.rows += target.write(line.content + b"\n") > 0
            elif line.number > 1 or not is_header(line.content):
                try:
                    _, record = read_line(line.content)
                except ValueError as error:
                    damage.note(line.number, str(error))
                else:
                    damage.rows += target.write(encode_row(record)) > 0
    return damage
