r"""Level 1: one `CallRecord` as one CSV line, and back.

RFC 4180 with ``\n`` as the line end: comma, quotes only where needed, UTF-8 without a byte order mark. One row is one
physical line, because its texts hold no line breaks (`one_line`), so tail, grep and a repair after a crash need no
quote-aware reader. Knows nothing of files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from otel_connector._record import COLUMNS, TEXT_LIMIT, URL_LIMIT, CallRecord, Fields, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_Number = TypeVar("_Number", int, float)

HEADER = (",".join(COLUMNS) + "\n").encode()
"""The first line of every log."""

# What makes a spreadsheet read a cell as a formula (OWASP, "CSV Injection"), with the full-width forms that some
# spreadsheets fold to the same. A leading tab or line break cannot occur: they are escaped.
FORMULA_STARTS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_GUARDED_STARTS = frozenset((*FORMULA_STARTS, "'"))

# A record as one line, if its texts need nothing: a quarter cheaper in one go from the tuple than as an f-string
_LINE = "%s,%s,%.6f,%.6f,%s,%s,%d,%d,%s,%s\n"
_LINE_WITHOUT_CODE = "%s,%s,%.6f,%.6f,%s,%s,%d,%.0s,%s,%s\n"  # .0: no character of "None"

# What such a line has only for its commas and its end. To count it all together costs half as much as to look for
# commas, for quotes and, in ASCII, for what cannot be printed
_SPECIAL = bytes((*range(0x20), 0x7F, *b',"'))
_SPECIAL_IN_A_LINE = len(COLUMNS)

# What `call_id` looks like: letters and digits with a hyphen between them
_IDS_LENGTH, _TRACE_ID, _HYPHEN, _SPAN_ID = 49, slice(32), slice(32, 33), slice(33, 49)

# Texts of late that need nothing: a program asks for the same again and has few projects, and what one look at them
# tells saves a quarter of what it costs to put a row into text
_plain_texts: set[str] = set()
_PLAIN_TEXTS = 128

_LINES_AT_ONCE = 32  # enough to share what a look costs, and not too many to be looked at again, one by one


def encode_row(record: Fields) -> bytes:
    """Return the record's line, its line end included.

    Times have 6 decimals. A text that a spreadsheet would take for a formula gets a leading ``'``; url and
    redirect_url are cut at `URL_LIMIT`, the other texts at `TEXT_LIMIT` characters, with a visible mark.
    """
    call_id, project, t, delta_t, url, redirect_url, size, code, success, error = record
    row: bytes | None
    line = (_LINE if code is not None else _LINE_WITHOUT_CODE) % record
    if url in _plain_texts and project in _plain_texts and not redirect_url and not error and line.isascii():
        row = line.encode()
        if (
            len(call_id) == _IDS_LENGTH
            and row[_TRACE_ID].isalnum()
            and row[_HYPHEN] == b"-"
            and row[_SPAN_ID].isalnum()
        ):
            return row
    # Most rows need nothing of what a cell may need, and to ask that of the whole line costs half as much
    if (
        len(line) <= TEXT_LIMIT
        and (row := _plain(line, 1)) is not None
        and _GUARDED_STARTS.isdisjoint((call_id[:1], project[:1], url[:1], redirect_url[:1], error[:1]))
    ):
        if len(_plain_texts) >= _PLAIN_TEXTS:
            _plain_texts.clear()
        _plain_texts.update((project, url))
        return row
    return (
        f"{cell(call_id)},{cell(project)},{t:.6f},{delta_t:.6f},{cell(url, URL_LIMIT)},"
        f"{cell(redirect_url, URL_LIMIT)},{size:d},{'' if code is None else int(code)},{success},{cell(error)}\n"
    ).encode()


def encode_rows(records: Sequence[Fields]) -> list[bytes]:
    """Return the records' lines, each as `encode_row` returns it.

    What has to be asked of a line is asked of some dozens at once: then a row costs a fifth less.
    """
    rows: list[bytes] = []
    for first in range(0, len(records), _LINES_AT_ONCE):
        some = records[first : first + _LINES_AT_ONCE]
        lines = [(_LINE if record[7] is not None else _LINE_WITHOUT_CODE) % record for record in some]
        joined = "".join(lines)
        call_ids, projects, _, _, urls, redirect_urls, _, _, _, errors = zip(*some, strict=True)
        texts = {*call_ids, *projects, *urls, *redirect_urls, *errors}
        if (
            max(map(len, lines)) <= TEXT_LIMIT
            and (data := _plain(joined, len(lines))) is not None
            and _GUARDED_STARTS.isdisjoint([text[:1] for text in texts])
        ):
            rows += data.splitlines(keepends=True)
        else:
            rows += map(encode_row, some)
    return rows


def _plain(text: str, lines: int) -> bytes | None:
    """Return the lines encoded; None if a text in them may have to be quoted or escaped."""
    if not text.isascii() and not text.replace("\n", "").isprintable():
        return None
    data = text.encode()
    return data if len(data) - len(data.translate(None, _SPECIAL)) == lines * _SPECIAL_IN_A_LINE else None


def cell(text: str, limit: int = TEXT_LIMIT) -> str:
    """Return the cell of a text."""
    text = guarded(one_line(text, limit))
    if "," in text or '"' in text:
        text = '"' + text.replace('"', '""') + '"'
    return text


def guarded(text: str) -> str:
    """Return a text with a guard before it, if a spreadsheet would take it for a formula."""
    return f"'{text}" if _is_formula(text) else text


def _is_formula(text: str) -> bool:
    # A text that already wears the guard gets another one, or it would lose its own when it is read back
    return text.lstrip("'").startswith(FORMULA_STARTS)


def decode_row(cells: Sequence[str]) -> CallRecord:
    """Return the record that one row's cells (as the csv module reads them) stand for.

    The guard before a formula is taken off again; escaped characters stay escaped, as they are in the span.

    Raises:
        ValueError: The row has another number of cells, or a cell is not of its column's type; names the column.
    """
    if len(cells) != len(COLUMNS):
        raise ValueError(f"a row has {len(COLUMNS)} cells, this one has {len(cells)}")
    call_id, project, t, delta_t, url, redirect_url, size, code, success, error = cells
    if success not in {"True", "False"}:
        raise ValueError(f"success is True or False, not {success!r}")
    return CallRecord(
        call_id=_unguard(call_id),
        project=_unguard(project),
        t=_number("t", t, float),
        delta_t=_number("delta_t", delta_t, float),
        url=_unguard(url),
        redirect_url=_unguard(redirect_url),
        response_size=_number("response_size", size, int),
        response_code=_number("response_code", code, int) if code else None,
        success=success == "True",
        error=_unguard(error),
    )


def _unguard(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _is_formula(cell) else cell


def _number(column: str, cell: str, kind: Callable[[str], _Number]) -> _Number:
    try:
        return kind(cell)
    except ValueError:
        raise ValueError(f"{column} is a number, not {cell!r}") from None
