"""Reads logs into a DuckDB table, once and completely, and accounts for every line.

DuckDB reads the files at its own speed. Its grammar is wider than ours (`_csv/_lines`), so each row is checked in SQL
(`_rows`), and the number of rows is compared with the number of line ends: one physical line is one row. If anything
differs, `_sources` has it read with our grammar and copied, and DuckDB reads the copy instead. So each line is either a
row, or it is counted and described. Knows neither summaries nor reports.

Used by ``review``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from importlib import import_module
from os import PathLike, fsdecode
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from otel_connector._arguments import checked_int, checked_text
from otel_connector._csv._lines import MAX_UNPACKED_BYTES, logs_of_calls
from otel_connector._csv._parts import log_files
from otel_connector._record import COLUMNS, one_line
from otel_connector.review._endpoints import Endpoints, in_steps, path_sql
from otel_connector.review._filters import EVERYTHING, InvalidCondition, quoted
from otel_connector.review._rows import NUL, URL_ID, cells_sql, parsed_sql
from otel_connector.review._sources import LogFile, Source, create_private_folder, write_sample

if TYPE_CHECKING:
    import duckdb
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs] - pandas has none
    import polars as pl
    from typing_extensions import Self

MEMORY_LIMIT = "600MB"
"""Memory that DuckDB may use before it writes to the temporary folder. Its CSV readers use more in addition."""

MANY_ROWS = 12_000_000
"""Rows from which `MEMORY_LIMIT` is too little for statements: DuckDB keeps all values of a percentile in memory."""

_SMALL = 2**20  # bytes of logs up to which DuckDB has work for one thread only; others take a tenth of the time
_LARGE = 128 * 2**20  # bytes of logs from which the texts of ordinary calls are not kept in memory
_SAMPLE = 8 * 2**20  # bytes of the logs that are read first, to find out what is ordinary
_KEPT = 5_000  # failures of a frequent class that keep their texts, about
_FREQUENT = 0.005  # share of the calls of the sample from which a class of failures is frequent

# In a large log most calls do not keep these columns. One empty column takes a quarter of the memory of four, so there
# they are joined with a character that no text contains: a line with it is not a row
_TEXTS = ("call_id", "url", "redirect_url", "error")

# It does not download an extension for a path or a function, nor read variables of Python as tables
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,
}


class Calls:
    """The calls of some logs in a DuckDB database; created by `load`.

    Attributes:
        files: What was found in each file.
        connection: The DuckDB connection, with these views. ``log`` has the ten columns of all rows. ``calls`` also has
            ``host``, ``endpoint`` and ``error_type``, for the rows that match the filters; for a large log, each query
            reads the files. ``calls_compact`` is the same and fast, but for a large log the texts (call_id, url,
            redirect_url, error) are NULL, except for slow calls and examples of failures. Use it in one thread at a
            time. An endpoint is the host and path of a URL with ``{id}`` for its values:
            ``api.example.com/items/{id}/stock``. There are at most 50; further ones are ``other``. ``url_id`` of
            ``calls_compact`` is a hash of the URL.
        read_from: The plain files that DuckDB reads: links to the logs, or copies of their good rows.
        endpoints: The endpoints that the column ``endpoint`` has.
        regroup: Replaces them; the logs are read again.
        max_unpacked_bytes: The argument of `load`.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, folder: str, paths: Sequence[str] = ()) -> None:
        self.connection = connection
        self._paths = paths
        self.files: tuple[LogFile, ...] = ()
        self.read_from: tuple[str, ...] = ()
        self.endpoints = Endpoints(())
        self.regroup: Callable[[Endpoints], None] | None = None
        self.max_unpacked_bytes = MAX_UNPACKED_BYTES
        self._folder = folder

    @property
    def relation(self) -> duckdb.DuckDBPyRelation:
        """The ten columns of all rows, as a DuckDB relation over the files.

        t is a TIMESTAMP in UTC, delta_t DOUBLE seconds, response_size BIGINT bytes, response_code INTEGER or NULL,
        success BOOLEAN. The others are VARCHAR, and empty if the cell is empty.
        """
        return self.connection.table("log")

    def pl(self) -> pl.DataFrame:
        """Return all rows as a polars frame.

        Raises:
            ImportError: polars is not installed.
        """
        try:
            import polars as pl
        except ImportError:
            raise ImportError("Calls.pl needs polars: pip install polars") from None
        return pl.DataFrame(self.relation)  # DuckDB's own conversion needs pyarrow

    def df(self) -> pd.DataFrame:
        """Return all rows as a pandas frame.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import_module("pandas")  # DuckDB's own error names a private module
        except ImportError:
            raise ImportError("Calls.df needs pandas: pip install pandas") from None
        return cast("pd.DataFrame", self.relation.df())

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """Run a query in SQL. The tables are ``calls``, ``log`` and ``calls_compact``."""
        return self.connection.sql(query)

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query.

        Raises:
            OSError: There is no space for temporary files.
        """
        import duckdb

        try:
            return self.connection.execute(query, list(parameters)).fetchall()
        except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
            raise _cannot_be_reviewed(error, self.named) from None

    def linked(self, path: str, name: str) -> str:
        """Return a link to a file in the folder for temporary files: DuckDB expands patterns in a path."""
        link = Path(self._folder, name)
        link.unlink(missing_ok=True)
        link.symlink_to(Path(path).resolve())
        return str(link)

    def named(self, message: str) -> str:
        """Return a message of DuckDB with the names of the logs in place of those in the folder for temporary files."""
        for number, file in enumerate(self._paths):
            for suffix in (".copy", ""):
                message = message.replace(f"{self._folder}/{number}.csv{suffix}", file)
        return message

    def close(self) -> None:
        """Release the memory and remove the temporary files. Otherwise this happens when the program ends.

        It can be called again. Relations of these calls cannot be used afterwards.
        """
        self.connection.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        """Return the calls."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the calls."""
        self.close()

    def __repr__(self) -> str:
        """Return the names of the files. `summarize` returns their content."""
        return f"<Calls of {', '.join(file.path for file in self.files)}>"

    def __len__(self) -> int:
        """Return the number of calls that match the filters."""
        return int(self.rows("SELECT count(*) FROM calls_compact")[0][0])


def load(*paths: str | PathLike[str], where: str = EVERYTHING, max_unpacked_bytes: int = MAX_UNPACKED_BYTES) -> Calls:
    """Read logs.

    Args:
        paths: Logs, plain or gzip, or patterns such as ``logs*.csv``. The parts of a rotated log
            (``logs.part-000001.csv``) are read with it. A log may be written at the same time.
        where: A condition in SQL on the columns. ``calls`` contains only the rows that match it.
        max_unpacked_bytes: Bytes that all compressed logs together may have after decompression. A log that exceeds
            them is not read, and has this as its `LogFile.problem`.

    Returns:
        The calls. They use memory and temporary files until `Calls.close`.

    Raises:
        FileNotFoundError: A file does not exist.
        ImportError: DuckDB is not installed; names the extra that installs it.
        OSError: DuckDB fails, or there is no space for temporary files; names the folder, which TMPDIR sets.
        TypeError: A path has another type.
        ValueError: The files contain no log, or `where` is not a condition.
    """
    try:
        import duckdb
    except ImportError:
        raise ImportError("a review needs duckdb: pip install 'otel-connector[review]'") from None
    if not paths:
        raise ValueError("paths must name at least one log, or a pattern")
    for path in paths:
        if not isinstance(cast("object", path), (str, bytes, PathLike)):
            raise TypeError(f"paths must be paths, one after the other as in load(*paths), not {type(path).__name__}")
    checked_text("where", where)
    checked_int("max_unpacked_bytes", max_unpacked_bytes)
    files = logs_of_calls(log_files([fsdecode(path) for path in paths]))
    folder = create_private_folder()
    calls = Calls(duckdb.connect(config=_CONFIG), folder, files)
    calls.max_unpacked_bytes = max_unpacked_bytes
    with ExitStack() as on_error:
        on_error.push(calls)
        found = [Source(path, f"{folder}/{number}.csv") for number, path in enumerate(files)]
        try:
            _set_up(calls.connection, folder)
            _read(calls, [each for each in found if not each.problem], where, folder, max_unpacked_bytes)
        except (duckdb.DataError, duckdb.NotSupportedError, duckdb.ProgrammingError) as error:
            raise InvalidCondition(where, _first_line(error)) from None
        except duckdb.Error as error:
            raise _cannot_be_reviewed(error, calls.named) from None
        calls.files = tuple(each.described() for each in found)
        calls.read_from = tuple(each.read_from for each in found if not each.problem)
        if all(file.problem for file in calls.files):
            raise ValueError("; ".join(f"{one_line(file.path)}: {file.problem}" for file in calls.files))
        on_error.pop_all()
    return calls


def _cannot_be_reviewed(error: duckdb.Error, named: Callable[[str], str]) -> OSError:
    return OSError(
        f"the logs cannot be reviewed: {named(_first_line(error))} (temporary files are in {tempfile.gettempdir()}; if"
        " it is full, set TMPDIR to another folder)"
    )


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _set_up(connection: duckdb.DuckDBPyConnection, folder: str) -> None:
    import duckdb

    connection.execute(f"SET memory_limit='{MEMORY_LIMIT}'")
    connection.execute(f"SET temp_directory={quoted(folder)}")
    connection.execute("SET preserve_insertion_order=false")  # halves the time
    with suppress(duckdb.InvalidInputException):  # in Jupyter without ipywidgets, where there is none
        connection.execute("SET enable_progress_bar=false")
    # The database is temporary, so it need not be durable
    connection.execute("PRAGMA disable_checkpoint_on_shutdown")
    connection.execute("SET checkpoint_threshold='100GB'")


def _read(calls: Calls, sources: list[Source], where: str, folder: str, max_unpacked_bytes: int) -> None:
    """Create the table and the views. Files that DuckDB does not read as we do are copied first."""
    connection = calls.connection
    size = sum(source.log.size for source in sources)
    if size <= _SMALL:
        connection.execute("SET threads=1")
    # DuckDB does not compress tables in memory. In a file, a large log takes a quarter and is queried faster
    large = size >= _LARGE
    connection.execute(f"ATTACH {quoted(f'{folder}/calls.duckdb' if large else ':memory:')} AS stored")
    wrong = [source for source in sources if not source.link()]
    while True:
        for source in wrong:
            max_unpacked_bytes -= source.copy(max_unpacked_bytes)
        sources = [source for source in sources if not source.problem]
        if not sources:
            return
        wrong = _read_wrong(calls, sources, where, folder, large=large)
        if not wrong:
            break
    if connection.execute("SELECT count(*) >= ? FROM stored.everything", [MANY_ROWS]).fetchall() == [(True,)]:
        connection.execute("RESET memory_limit")  # to 80 % of the memory of the machine
    part = f"CASE WHEN texts IS NOT NULL THEN split_part(texts, {NUL}, {{}}) END AS {{}}"  # '' in DuckDB 1.1
    parts = ", ".join(part.format(number, name) for number, name in enumerate(_TEXTS, 1))
    kept = "FROM stored.everything"
    if where != EVERYTHING:
        kept = f"SELECT * EXCLUDE kept {kept} WHERE kept"
    rows = f"SELECT * EXCLUDE texts, {parts} FROM ({kept})" if large else kept
    connection.execute(f"CREATE VIEW calls_compact AS {rows}")
    connection.execute(f"CREATE VIEW calls_with_text AS {rows} {'WHERE texts IS NOT NULL' if large else ''}")
    from_files = f"SELECT * EXCLUDE is_row FROM parsed_log WHERE ({where})"
    connection.execute(f"CREATE VIEW calls AS {from_files if large else 'SELECT * EXCLUDE url_id FROM calls_compact'}")


def _read_wrong(calls: Calls, sources: list[Source], where: str, folder: str, *, large: bool) -> list[Source]:
    """Read the files into the table, and return those that DuckDB may have read wrong and that are not copies."""
    import duckdb

    connection = calls.connection
    originals = [source for source in sources if source.report is None]
    with ThreadPoolExecutor(1) as thread:  # DuckDB releases the GIL. The block waits for the end
        counts = [thread.submit(source.log.lines) for source in originals]
        try:
            _create_table(calls, sources, where, folder, large=large)
        except (duckdb.BinderException, duckdb.ParserException, duckdb.OutOfMemoryException):
            raise  # caused by `where`, or by a full disk
        except duckdb.Error:
            if not originals:
                raise
            return originals
        counted = [None if count.exception() else count.result() for count in counts]
    rows, bad = connection.execute("SELECT count(*), count_if(t IS NULL) FROM stored.everything").fetchall()[0]
    rows -= sum(source.report.rows for source in sources if source.report is not None)
    lines = sum(count - 1 for count in counted if count is not None)  # without the headers
    grown = sum(source.log.grown() for source in originals)
    return [] if not bad and None not in counted and lines <= rows <= lines + grown else originals


def _create_table(calls: Calls, sources: list[Source], where: str, folder: str, *, large: bool) -> None:
    """Create the table ``everything``, the view ``log``, and for a large log ``parsed_log``, which reads the files.

    A sample from all parts of the logs, or all of them if they are small, decides what is an endpoint, and which calls
    of a large log keep their texts.
    """
    connection = calls.connection
    files = sampled = [source.read_from for source in sources]
    size = sum(source.log.size for source in sources)
    if size > _SAMPLE:
        sampled = [f"{folder}/sample.csv"]
        write_sample(files, sampled[0], _SAMPLE)
    tails = (source.log.tail for source in sources)
    unfinished = [tail.partition(b",")[0].decode("utf-8", "replace") for tail in tails if tail]
    cells = cells_sql(files, unfinished)
    connection.execute(f"CREATE OR REPLACE TEMP TABLE sample AS {parsed_sql(cells_sql(sampled, unfinished))}")
    groups = connection.execute(
        "SELECT path, count(*), count_if(NOT success), sum(delta_t) "
        f"FROM ({in_steps('FROM sample', path_sql())}) WHERE is_row GROUP BY 1 ORDER BY 1"
    ).fetchall()
    table = partial(_table_sql, has_texts=_has_texts_sql(connection, size / _SAMPLE) if large else "", where=where)
    from_files, calls.endpoints = parsed_sql(cells), Endpoints(groups)
    parsed = _with_endpoints("FROM sample" if sampled is files and not large else from_files, calls.endpoints)
    connection.execute(table(parsed))
    calls.regroup = partial(_regroup, calls, from_files, table, large=large)
    connection.execute("DROP TABLE sample")
    connection.execute(f"CREATE OR REPLACE VIEW log AS SELECT {', '.join(COLUMNS)} FROM ({cells})")
    if large:
        connection.execute(f"CREATE OR REPLACE VIEW parsed_log AS {parsed}")


def _with_endpoints(parsed: str, endpoints: Endpoints) -> str:
    columns = f"{', '.join(COLUMNS)}, is_row, host, error_type, endpoint"
    return f"SELECT {columns} FROM ({in_steps(parsed, *endpoints.sql)})"


def _table_sql(parsed: str, has_texts: str, where: str) -> str:
    texts = ", ".join(_TEXTS)
    if has_texts:
        texts = f"CASE WHEN {has_texts} THEN concat_ws({NUL}, {texts}) END AS texts"
    # An invalid row has no t, and `kept` exists only if it is needed: two more columns take 10 % more time
    return f"""
        CREATE OR REPLACE TABLE stored.everything AS
        SELECT CASE WHEN is_row THEN t END AS t,
            delta_t, project, host, endpoint, error_type, response_size, response_code, success,
            {URL_ID} AS url_id, {texts}
            {f", ({where}) IS TRUE AS kept" if where != EVERYTHING else ""}
        FROM ({parsed})"""


def _regroup(calls: Calls, from_files: str, table: Callable[[str], str], endpoints: Endpoints, *, large: bool) -> None:
    """Read the files again, with other endpoints; without rows that are being written."""
    parsed = _with_endpoints(from_files, endpoints)
    calls.rows(f"{table(parsed)} WHERE is_row")
    if large:
        calls.rows(f"CREATE OR REPLACE VIEW parsed_log AS {parsed}")
    calls.endpoints = endpoints


def _has_texts_sql(connection: duckdb.DuckDBPyConnection, times: float) -> str:
    """Return the condition for the calls of a large log that keep their texts: slow ones, and some of each failure.

    It bounds the memory for any number of calls. Thresholds come from the sample. If it is not typical, more or fewer
    texts are kept; a query that needs others reads the log.

    Args:
        connection: The database with the sample.
        times: The size of the logs, in sizes of the sample.
    """
    failures: dict[str, int] | None
    calls, slow, failures = connection.execute(
        "SELECT count(*), quantile_cont(delta_t, 0.999), histogram(error_type) FILTER (WHERE NOT success) "
        "FROM sample WHERE is_row"
    ).fetchall()[0]
    frequent = {name: failed for name, failed in (failures or {}).items() if failed > _FREQUENT * calls}
    of_class = "".join(
        f" WHEN {quoted(name)} THEN hash(t) % {max(int(failed * times / _KEPT), 1)} = 0"
        for name, failed in frequent.items()
    )
    kept = f"CASE error_type{of_class} ELSE TRUE END" if of_class else "TRUE"
    # CASE evaluates the conditions of failures for failures only
    return f"CASE WHEN delta_t >= {slow or 0} THEN TRUE WHEN success THEN FALSE ELSE {kept} END"
