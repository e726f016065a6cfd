r"""Level 1: one `CallRecord` as one CSV line, and back.

RFC 4180 with ``\n`` as the line end: comma, quotes only where needed, UTF-8 without a byte order mark. One row is one
physical line, because its texts hold no line breaks (`one_line`), so tail, grep and a repair after a crash need no
quote-aware reader. Knows nothing of files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from otel_connector._record import COLUMNS, TEXT_LIMIT, URL_LIMIT, CallRecord, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_Number = TypeVar("_Number", int, float)

HEADER = (",".join(COLUMNS) + "\n").encode()
"""The first line of every log."""

# What makes a spreadsheet read a cell as a formula (OWASP, "CSV Injection"), with the full-width forms that some
# spreadsheets fold to the same. A leading tab or line break cannot occur: they are escaped.
_FORMULA_STARTS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_GUARDED_STARTS = frozenset((*_FORMULA_STARTS, "'"))

_COMMAS = len(COLUMNS) - 1


def encode_row(record: CallRecord) -> bytes:
    """Return the record's line, its line end included.

    Times have 6 decimals. A text that a spreadsheet would take for a formula gets a leading ``'``; url and
    redirect_url are cut at `URL_LIMIT`, the other texts at `TEXT_LIMIT` characters, with a visible mark.
    """
    call_id, project, t, delta_t, url, redirect_url, size, code, success, error = record
    code_text = "" if code is None else code
    line = f"{call_id},{project},{t:.6f},{delta_t:.6f},{url},{redirect_url},{size},{code_text},{success},{error}"
    # Most rows need nothing of what a cell may need, and to ask that of the whole line costs half as much
    if (
        len(line) <= TEXT_LIMIT
        and line.count(",") == _COMMAS
        and '"' not in line
        and line.isprintable()
        and _GUARDED_STARTS.isdisjoint((call_id[:1], project[:1], url[:1], redirect_url[:1], error[:1]))
    ):
        return f"{line}\n".encode()
    return (
        f"{cell(call_id)},{cell(project)},{t:.6f},{delta_t:.6f},{cell(url, URL_LIMIT)},"
        f"{cell(redirect_url, URL_LIMIT)},{size},{code_text},{success},{cell(error)}\n"
    ).encode()


def cell(text: str, limit: int = TEXT_LIMIT) -> str:
    """Return the cell of a text."""
    text = one_line(text, limit)
    if _is_formula(text):
        text = f"'{text}"
    if "," in text or '"' in text:
        text = '"' + text.replace('"', '""') + '"'
    return text


def _is_formula(text: str) -> bool:
    # A text that already wears the guard gets another one, or it would lose its own when it is read back
    return text.lstrip("'").startswith(_FORMULA_STARTS)


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
