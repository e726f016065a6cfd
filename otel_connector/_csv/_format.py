r"""One record as one line of CSV, and back: of a call, or of an attempt (`RowFormat`).

The format is RFC 4180 with ``\n`` as the line end: comma, quotes only where needed, UTF-8 without a byte order mark.
One row is one physical line, because its texts contain no line breaks (`one_line`). So tail, grep and a repair after a
crash need no reader that understands quotes.

Together with `_lines`, this file is the only grammar of a row. It does not know files.

Used by ``_csv``, ``csv_exporter`` and ``review``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from otel_connector._record import (
    ATTEMPT_COLUMNS,
    COLUMNS,
    TEXT_LIMIT,
    URL_LIMIT,
    AttemptRecord,
    CallRecord,
    Fields,
    one_line,
)

_Number = TypeVar("_Number", int, float)
_Record = TypeVar("_Record")

LATEST = (
    253_402_300_799  # largest `t` of a row, in seconds: the end of the year 9999. Dates of Python and SQL end there
)
LONGEST = 10**9  # largest `delta_t` of a row, in seconds: thirty years
_LARGEST_CODE = 2**31 - 1
_LARGEST_STATUS = 999  # of three digits (RFC 9112, section 4); aiohttp accepts no other

CALL_ID = re.compile("[0-9a-f]{32}-[0-9a-f]{16}")

# Characters with which a spreadsheet starts a formula (OWASP, "CSV Injection"), and the full-width and small forms that
# some spreadsheets treat as the same. A leading tab or line break cannot occur: they are escaped
FORMULA_STARTS = (*"=+-@", *"\uff1d\uff0b\uff0d\uff20", *"\ufe66\ufe62\ufe63\ufe6b")
_ESCAPED_STARTS = frozenset((*FORMULA_STARTS, "'"))

# A record as a line, if its texts need nothing; %f has 6 decimals, and .0 prints no character of None
_LINE = "%s,%s,%f,%f,%s,%s,%d,%d,%s,%s\n"
_LINE_WITHOUT_STATUS = "%s,%s,%f,%f,%s,%s,%d,%.0s,%s,%s\n"

# Such a line contains none of these bytes but its commas and its line end
_SPECIAL = bytes((*range(0x20), 0x7F, *b',"'))
_SPECIAL_IN_A_LINE = len(COLUMNS)

NUMBER = re.compile("[-+.0-9A-Za-z]*")  # Python also takes "1_000", " 1" and digits of other scripts for numbers


def encode_row(record: Fields) -> bytes:
    """Return the line of a record, with its line end.

    Times have 6 decimals. A text that a spreadsheet would take for a formula gets a leading ``'``. url and
    redirect_url are truncated at `URL_LIMIT` characters, the other texts at `TEXT_LIMIT`, with a visible mark.
    """
    call_id, project, t, delta_t, url, redirect_url, size, code, success, error = record
    line = (_LINE_WITHOUT_STATUS if code is None else _LINE) % record
    # Few texts need quotes or an escape. To check the whole line saves two thirds of the time of encoding each text
    if len(line) <= TEXT_LIMIT and (line.isascii() or line[:-1].isprintable()):
        row = line.encode()
        if len(row) - len(row.translate(None, _SPECIAL)) == _SPECIAL_IN_A_LINE and not (
            (call_id and call_id[0] in _ESCAPED_STARTS)
            or (project and project[0] in _ESCAPED_STARTS)
            or (url and url[0] in _ESCAPED_STARTS)
            or (redirect_url and redirect_url[0] in _ESCAPED_STARTS)
            or (error and error[0] in _ESCAPED_STARTS)
        ):
            return row
    return (
        f"{cell(call_id)},{cell(project)},{t:.6f},{delta_t:.6f},{cell(url, URL_LIMIT)},"
        f"{cell(redirect_url, URL_LIMIT)},{size:d},{'' if code is None else int(code)},{success},{cell(error)}\n"
    ).encode()


def cell(text: str, limit: int = TEXT_LIMIT) -> str:
    """Return the cell of a text."""
    text = guarded(one_line(text, limit))
    if "," in text or '"' in text:
        text = '"' + text.replace('"', '""') + '"'
    return text


def guarded(text: str) -> str:
    """Return a text with a leading ``'`` if a spreadsheet would take it for a formula."""
    return f"'{text}" if _is_formula(text) else text


def _is_formula(text: str) -> bool:
    # A text that already starts with ' and a formula gets another '. Otherwise decoding would remove its own
    return text.lstrip("'").startswith(FORMULA_STARTS)


def decode_row(cells: Sequence[str]) -> CallRecord:
    """Return the record of one row.

    The ``'`` before a formula is removed. Escaped characters stay escaped, as they are in the span. Numbers may be
    written in another notation, as a spreadsheet does.

    Args:
        cells: The cells of the row, as the csv module reads them.

    Raises:
        ValueError: The row has another number of cells, or a cell has no value of its column; names the column.
    """
    _check_cells(cells, COLUMNS)
    call_id, project, t, delta_t, url, redirect_url, size, code, success, error = cells
    if success not in {"True", "False"}:
        raise ValueError(f"success must be True or False, not {success!r}")
    return CallRecord(
        call_id=call_id,
        project=_unguarded(project),
        t=_number("t", t, float, LATEST),
        delta_t=_number("delta_t", delta_t, float, LONGEST),
        url=_unguarded(url),
        redirect_url=_unguarded(redirect_url),
        response_size=_number("response_size", size, int, 2**63 - 1),
        response_code=_number("response_code", code, int, _LARGEST_CODE) if code else None,
        success=success == "True",
        error=_unguarded(error),
    )


def encode_attempt(record: AttemptRecord) -> bytes:
    """Return the line of an attempt, with its line end. Numbers and texts are written as those of a call."""
    call_id, number, t, duration, queue, wait, reason, status, error_type, retry_after = record
    return (
        f"{cell(call_id)},{number:d},{t:.6f},{duration:.6f},{queue:.6f},{'' if wait is None else f'{wait:.6f}'},"
        f"{cell(reason)},{'' if status is None else status},{cell(error_type)},"
        f"{'' if retry_after is None else f'{retry_after:.6f}'}\n"
    ).encode()


def decode_attempt(cells: Sequence[str]) -> AttemptRecord:
    """Return the record of one row of an attempts log, as `decode_row` does of a log.

    Raises:
        ValueError: As for `decode_row`.
    """
    _check_cells(cells, ATTEMPT_COLUMNS)
    call_id, number, t, duration, queue, wait, reason, status, error_type, retry_after = cells
    if not (reason or status or error_type):
        raise ValueError("reason, status and error_type are all empty: an attempt that succeeded has a status")
    return AttemptRecord(
        call_id=call_id,
        number=_number("number", number, int, _LARGEST_CODE, least=1),
        t=_number("t", t, float, LATEST),
        duration=_number("duration", duration, float, LONGEST),
        queue=_number("queue", queue, float, LONGEST),
        wait=_number("wait", wait, float, LONGEST) if wait else None,
        reason=_unguarded(reason),
        status=_number("status", status, int, _LARGEST_STATUS) if status else None,
        error_type=_unguarded(error_type),
        retry_after=_number("retry_after", retry_after, float, LONGEST) if retry_after else None,
    )


@dataclass(frozen=True, slots=True)
class RowFormat(Generic[_Record]):
    """What the rows of a file are.

    Attributes:
        columns: The names of the columns.
        encode: Returns the line of a record.
        decode: Returns the record of the cells of a line; raises ValueError if they are not a row.
    """

    columns: tuple[str, ...]
    encode: Callable[[_Record], bytes]
    decode: Callable[[Sequence[str]], _Record]

    @property
    def header(self) -> bytes:
        """The first line of the file, with its line end."""
        return (",".join(self.columns) + "\n").encode()


CALLS: RowFormat[CallRecord] = RowFormat(COLUMNS, encode_row, decode_row)
ATTEMPTS: RowFormat[AttemptRecord] = RowFormat(ATTEMPT_COLUMNS, encode_attempt, decode_attempt)

HEADER = CALLS.header


def _check_cells(cells: Sequence[str], columns: tuple[str, ...]) -> None:
    if len(cells) != len(columns):
        raise ValueError(f"a row has {len(columns)} cells, this one has {len(cells)}")
    # A row that was torn in its first cell, and the next row joined to it, have as many cells together as one row
    if not CALL_ID.fullmatch(cells[0]):
        raise ValueError(f"call_id {cells[0]!r} is not an id; the line may contain parts of two rows")


def _unguarded(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _is_formula(cell) else cell


def _number(column: str, cell: str, kind: Callable[[str], _Number], most: int, *, least: int = 0) -> _Number:
    try:
        number = kind(cell if NUMBER.fullmatch(cell) else "")
    except ValueError:
        raise ValueError(f"{column} must be a number, not {cell!r}") from None
    if not least <= number <= most:
        raise ValueError(f"{column} must be from {least} to {most}, not {number}")
    return number
