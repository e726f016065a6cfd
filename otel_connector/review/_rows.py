"""Writes SQL that reads the rows of logs as `_csv._lines` does: their columns, and whether a line is a row.

DuckDB's grammar is wider than ours, so cells are read as texts, and each row is checked. DuckDB drops empty cells at
the end of a row that has too many cells. Therefore it reads one column more, which must be missing, and fills missing
cells with NULL. No empty cell is NULL, because the text for NULL is a NUL character, which no row contains. Does not
know where the rows are stored.

Used by ``review._judge``, ``review._load`` and ``review._lost_time``.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence

from otel_connector._csv._format import CALL_ID, FORMULA_STARTS, LATEST, LONGEST, NUMBER
from otel_connector._csv._lines import LINE_LIMIT
from otel_connector._record import COLUMNS
from otel_connector.review._endpoints import LOCATION, in_steps
from otel_connector.review._filters import quoted

NUL = "chr(0)"
"""SQL for a character that no row contains."""

_BUFFER = 2**24  # bytes that DuckDB reads at a time; with its default, 16 lines of the largest size, it takes more time

URL_ID = "xor(hash(url), hash('xxxx' || url))"
"""SQL for a number that identifies a URL. DuckDB's hash alone is equal for 1 of 200 URLs that differ in some digits. It
takes 8 bytes at a time; after 4 more bytes, these are others."""

DIALECT = f"""auto_detect=false, hive_partitioning=false, union_by_name=false, filename=false, compression='none',
    header=true, delim=',', quote='"', escape='"', nullstr={NUL}"""
"""Options of ``read_csv``. DuckDB guesses each of these otherwise, from the content or the name of a file."""

_OPTIONS = f"{DIALECT}, null_padding=true, store_rejects=true, max_line_size={LINE_LIMIT}, buffer_size={_BUFFER}"

_ERROR_TYPE = """CASE WHEN success THEN '' WHEN error = '' THEN 'no error given'
    WHEN starts_with(error, 'HTTPStatusError:') THEN 'HTTPStatusError ' || coalesce(response_code::VARCHAR, '')
    WHEN contains(error, ':') THEN left(error, instr(error, ':') - 1) ELSE error END AS error_type"""

# DuckDB also reads "TRUE" as a BOOLEAN, "1e2", "99.6" and "0x64" as a BIGINT, and "1_0" and " 1" as a DOUBLE. A regular
# expression takes twice as long as the comparison of the times with the notation that nearly all have. (A time that is
# too large for the cast raises an error, and `_repaired` reads the file.)
_IS_ROW = f"""delta_t IS NOT NULL AND error IS NOT NULL AND extra_cell IS NULL
    AND regexp_full_match(call_id, '{CALL_ID.pattern}')
    AND CASE WHEN t_number::DECIMAL(18, 6)::VARCHAR = t_cell
            AND delta_t::DECIMAL(18, 6)::VARCHAR = delta_t_cell THEN TRUE
        ELSE regexp_full_match(concat_ws(' ', t_cell, delta_t_cell), '{NUMBER.pattern} {NUMBER.pattern}') END
    AND (success OR success_cell = 'False') AND response_size >= 0 AND response_size::VARCHAR = size_cell
    AND (code_cell = '' OR (response_code >= 0 AND response_code::VARCHAR = code_cell))"""


def cells_sql(files: Sequence[str], unfinished: Sequence[str]) -> str:
    """Return SQL for the typed columns of files. A time or duration that is out of range is NULL.

    Args:
        files: The paths at which DuckDB reads.
        unfinished: What is left of the call_id in their last lines, if these have no line end: they are no rows.
    """
    paths = ", ".join(quoted(glob.escape(path)) for path in files)
    names = {"t": "t_cell", "delta_t": "delta_t_cell", "response_size": "size_cell"}
    names |= {"response_code": "code_cell", "success": "success_cell"}
    columns = ", ".join(f"'{names.get(column, column)}': 'VARCHAR'" for column in (*COLUMNS, "extra_cell"))
    return f"""
        SELECT call_id, {_unguarded("project")},
            CASE WHEN t_number BETWEEN 0 AND {LATEST} THEN make_timestamp((t_number * 1e6)::BIGINT) END AS t,
            CASE WHEN delta_t_number BETWEEN 0 AND {LONGEST} THEN delta_t_number END AS delta_t,
            {_unguarded("url")}, {_unguarded("redirect_url")}, TRY_CAST(size_cell AS BIGINT) AS response_size,
            TRY_CAST(code_cell AS INTEGER) AS response_code, success_cell = 'True' AS success, {_unguarded("error")},
            {", ".join(names.values())}, t_number, extra_cell
        FROM (
            SELECT *, TRY_CAST(t_cell AS DOUBLE) AS t_number, TRY_CAST(delta_t_cell AS DOUBLE) AS delta_t_number
            FROM read_csv([{paths}], columns={{{columns}}}, {_OPTIONS})
        )
        {f"WHERE call_id NOT IN ({', '.join(map(quoted, unfinished))})" if unfinished else ""}"""


def parsed_sql(cells: str) -> str:
    """Return SQL for the columns with ``is_row``, host, path of the URL, and error class."""
    columns = ", ".join(COLUMNS)
    parsed = f"SELECT {columns}, {_IS_ROW} AS is_row, {_ERROR_TYPE} FROM ({cells})"
    return f"SELECT {columns}, is_row, host, error_type, url_path FROM ({in_steps(parsed, *LOCATION)})"


def _unguarded(column: str) -> str:
    """Return SQL that removes the ``'`` before a formula (`_csv._format.guarded`)."""
    starts = "".join(FORMULA_STARTS).replace("-", r"\-")
    # The comparison finds a leading ' in half the time of `starts_with`: ( is the next character
    is_guarded = f"{column} >= '''' AND {column} < '(' AND regexp_matches({column}, '^''+[{starts}]')"
    return f"CASE WHEN {is_guarded} THEN {column}[2:] ELSE {column} END AS {column}"
