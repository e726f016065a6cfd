"""Reads the log of a test, and writes logs with given rows. This module depends on the row format only."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otel_connector import CallRecord
from otel_connector._csv._format import HEADER, decode_attempt, decode_row, encode_row
from otel_connector._record import ATTEMPT_COLUMNS, AttemptRecord

START = 1_790_000_000.0  # 2026-09-21 14:13:20 UTC


@dataclass
class Log:
    """The log of one test."""

    path: Path

    def cells(self) -> list[list[str]]:
        """Return the cells of all lines, the header first."""
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))

    def records(self) -> list[CallRecord]:
        """Return all rows."""
        return [decode_row(cells) for cells in self.cells()[1:]]

    def attempts(self) -> list[AttemptRecord]:
        """Return all rows of the attempts log beside the log."""
        return attempts_in(self.path.with_suffix(".attempts.csv"))

    def only(self) -> CallRecord:
        """Return the row of a log with one row."""
        (record,) = self.records()
        return record


def attempts_in(path: Path) -> list[AttemptRecord]:
    """Return the rows of an attempts log. It must have one header, and end with a whole line."""
    text = path.read_bytes().decode()
    header, *lines = csv.reader(text.splitlines(), strict=True)
    assert (tuple(header), text[-1]) == (ATTEMPT_COLUMNS, "\n")
    return [decode_attempt(cells) for cells in lines]


def call(number: int, **fields: Any) -> CallRecord:
    """Return a record of a call. The calls are one second apart, in the order of `number`."""
    failed = "error" in fields
    made: dict[str, Any] = {
        "call_id": f"{number + 1:032x}-{number + 1:016x}",
        "project": "P",
        "t": START + number,
        "delta_t": 0.25,
        "url": f"https://api.example.com/{number}",
        "redirect_url": "",
        "response_size": 0 if failed else 100,
        "response_code": None if failed else 200,
        "success": not failed,
        "error": "",
    }
    return CallRecord(**{**made, **fields})


def rows(*records: CallRecord) -> bytes:
    return b"".join(map(encode_row, records))


def write(path: Path, records: Iterable[CallRecord]) -> Path:
    path.write_bytes(HEADER + rows(*records))
    return path


def busy_hour() -> list[CallRecord]:
    """Return the calls of an hour with a gap, a slow and failing last quarter, an invalid URL, and a burst."""
    random_numbers = random.Random(5)
    made = list[CallRecord]()
    for number in range(3_600):
        if 1_000 <= number < 1_600:  # ten minutes without calls
            continue
        slow = 4.0 if number >= 2_700 else 1.0
        fields: dict[str, Any] = {
            "project": "Prices" if number % 3 else "Weather",
            "url": f"https://{'a' if number % 2 else 'b'}.example/{number}",
            "delta_t": round(slow * random_numbers.lognormvariate(-1.6, 0.6), 6),
        }
        if random_numbers.random() < (0.2 if number >= 2_700 else 0.02):
            fields |= {"error": "HTTPStatusError: 503 Service Unavailable", "response_code": 503}
        made.append(call(number, **fields))
    made.append(call(3_600, error="InvalidURL: no scheme", url="no url", project="", t=START + 500))
    made += [call(4_000 + n, t=START + 300.5) for n in range(40)]
    return made
