"""Copies the rows of a log to a file that DuckDB reads as we do, and describes the damaged lines.

A row is one physical line, so each line is judged by itself: a torn line damages no other, even if it opens a quote.
This takes some microseconds per line. It is done only for logs that are damaged, compressed, or saved by another
program. Knows nothing of DuckDB.

Used by ``review._sources``.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from typing import IO

from otel_connector._csv._format import HEADER
from otel_connector._csv._lines import UNFINISHED, Limited, is_header, is_plain_row, lines, open_log, read_line
from otel_connector.review._files import FoundLog

_DESCRIBED = 20  # damaged lines that are described; further ones are only counted


@dataclass(slots=True)
class CopyReport:
    """What was found in one log.

    Attributes:
        rows: The number of lines that are rows.
        damaged: The number of lines that are not.
        described: The line number, from 1, and the defect of each of the first 20 of these.
        unfinished: Whether the last line has no line end: it is torn, or being written.
        unpacked: The bytes of a compressed log after decompression.
    """

    rows: int = 0
    damaged: int = 0
    described: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    unfinished: bool = False
    unpacked: int = 0

    def add_damage(self, line: int, defect: str) -> None:
        """Count a damaged line, and describe it if it is one of the first."""
        self.damaged += 1
        if len(self.described) < _DESCRIBED:
            self.described.append((line, defect))


def copy_good_rows(log: FoundLog, target: IO[str], report: CopyReport, max_unpacked_bytes: int) -> None:
    """Write the header and the rows of a log to `target`. Texts stay unchanged; numbers are written in one notation.

    Args:
        log: The log.
        target: The copy.
        report: What was found in the log; filled by this function.
        max_unpacked_bytes: The most that a compressed log may have after decompression.

    Raises:
        OSError: The log cannot be read, or the copy cannot be written.
        ValueError: The log exceeds `max_unpacked_bytes`.
    """
    target.write(HEADER.decode())
    writer = csv.writer(target, lineterminator="\n")
    with open_log(log.path) as (raw, file):
        limited = Limited(file, max_unpacked_bytes)
        for line in lines(file if file is raw else limited):
            report.unpacked = limited.unpacked
            if line.what == UNFINISHED:
                report.unfinished = True
            elif line.what is not None:
                report.add_damage(line.number, line.what)
            elif is_plain_row(line.content):
                target.write(line.content.decode() + "\n")
                report.rows += 1
            elif line.number > 1 or not is_header(line.content):
                try:
                    cells, record = read_line(line.content)
                except ValueError as error:
                    report.add_damage(line.number, str(error))
                else:
                    # The texts of the record lack their guards, which the reader of the copy would remove again
                    _, project, _, _, url, redirect_url, *_, error_text = cells
                    writer.writerow(
                        record._replace(project=project, url=url, redirect_url=redirect_url, error=error_text)
                    )
                    report.rows += 1
