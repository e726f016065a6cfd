"""The calls of some logs as a DuckDB table: read once, whole, and every line accounted for.

DuckDB reads the files at its own speed. Whether it read them right is checked by arithmetic: one physical line is one
row, so rows and line ends have to agree. Where they do not, or a value cannot be, the damaged file goes through
`_repaired` and is read once more. So a line is a row, or it is counted and named; none is passed over in silence.
"""

from __future__ import annotations

import atexit
import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from otel_connector._csv._format import CALL_ID_LENGTH, FORMULA_STARTS, LATEST, LONGEST
from otel_connector._csv._lines import LINE_LIMIT
from otel_connector._csv._parts import log_files
from otel_connector._record import one_line
from otel_connector.review._files import Found, Torn, look_at, torn_neighbour
from otel_connector.review._filters import EVERYTHING, quoted
from otel_connector.review._repaired import Damage, copy_good_rows

if TYPE_CHECKING:
    import duckdb
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs] - it has none
    import polars as pl
    from typing_extensions import Self

MEMORY_LIMIT = "600MB"
"""What DuckDB may hold before it uses the temporary folder; the readers of CSV come on top."""

_LARGE = 128 * 2**20  # bytes of log from which the texts of ordinary calls are not kept in memory
_SAMPLE_ROWS = 20_000  # read first, to know what is ordinary
_KEPT_OF_ORDINARY = 1_009  # one in so many failures of a frequent kind keeps its texts; a prime
_FREQUENT = 0.005  # share of a sample's calls from which a kind of failure is frequent

_COLUMNS = (
    "{'call_id': 'VARCHAR', 'project': 'VARCHAR', 't': 'DOUBLE', 'delta_t': 'DOUBLE', 'url': 'VARCHAR', "
    "'redirect_url': 'VARCHAR', 'response_size': 'BIGINT', 'response_code': 'INTEGER', 'success': 'BOOLEAN', "
    "'error': 'VARCHAR'}"
)

# Of most calls of a large log these are not kept, and one column of nothing takes a fourth of what four take. Joined by
# a character that no text has, as it would be escaped there
_MOVED = ("call_id", "url", "redirect_url", "error")
_APART = "chr(31)"

# Where the URL leads, port included; nothing where it is no URL. The second half is asked once of each different text
# that a stored column has, and not of every row
_AUTHORITY = "CASE WHEN contains(url, '://') THEN split_part(url, '/', 3) ELSE '' END AS authority"
_HOST = """CASE WHEN contains(authority, '@') OR contains(authority, '?') OR contains(authority, '#')
    THEN regexp_extract(authority, '^(?:[^?#]*@)?([^?#]*)', 1) ELSE authority END AS host"""
_ERROR_TYPE = """CASE WHEN success THEN '' WHEN error = '' THEN 'no error given'
    WHEN starts_with(error, 'HTTPStatusError:') THEN 'HTTPStatusError ' || coalesce(response_code::VARCHAR, '')
    ELSE split_part(error, ':', 1) END"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFile:
    """What became of one file.

    Attributes:
        path: Where it is.
        problem: Why it could not be read as a log; empty if it was.
        damaged: Lines that are no rows.
        damage: The number, from 1, of the first of these and what is wrong with each.
        unfinished: Whether its last line has no end: torn, or being written. It is not counted as a call.
        torn: The neighbour that keeps lines taken off it, if there is one.
    """

    path: str
    problem: str = ""
    damaged: int = 0
    damage: tuple[tuple[int, str], ...] = ()
    unfinished: bool = False
    torn: Torn | None = None


@dataclass(slots=True)
class _Source:
    """A file, and from where DuckDB reads its rows."""

    found: Found
    read_from: str
    damage: Damage = field(default_factory=Damage)


class Calls:
    """The calls of some logs, typed, in memory; made by `load`.

    Attributes:
        files: What became of each file.
        connection: DuckDB's, with these views. ``log`` has the ten columns of all rows. ``calls`` has ``host`` and
            ``error_type`` beside them, of the rows that the filters leave; of a large log it is read from the files at
            each query. ``calls_compact`` is the same, and quick, but of large logs has the texts (call_id, url,
            redirect_url, error) only of calls that stand out, and NULL for the others. One thread at a time may ask.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, folder: str) -> None:
        self.connection = connection
        self.files: tuple[LogFile, ...] = ()
        self._folder = folder

    @property
    def relation(self) -> duckdb.DuckDBPyRelation:
        """The ten columns of every call, as a DuckDB relation over the files.

        t is a TIMESTAMP in UTC, delta_t DOUBLE seconds, response_size BIGINT bytes, response_code INTEGER or NULL,
        success BOOLEAN, the others VARCHAR, empty where the log's cell is.
        """
        return self.connection.table("log")

    def pl(self) -> pl.DataFrame:
        """Return every call as a polars frame (needs polars)."""
        import polars as pl

        return pl.DataFrame(self.relation)  # not by DuckDB's own way, which needs pyarrow

    def df(self) -> pd.DataFrame:
        """Return every call as a pandas frame (needs pandas)."""
        return cast("pd.DataFrame", self.relation.df())

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """Ask in SQL; the tables are ``calls``, ``log`` and ``calls_compact``."""
        return self.connection.sql(query)

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return what a query finds."""
        return self.connection.execute(query, list(parameters)).fetchall()

    def close(self) -> None:
        """Give back the memory, and take away the temporary files; else the end of the program does.

        Doing it twice is harmless. What came of it, relations included, is of no use any more.
        """
        self.connection.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        """Return this."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        """Say which files these are of; what is in them, `summarize` says."""
        return f"<Calls of {', '.join(file.path for file in self.files)}>"

    def __len__(self) -> int:
        """How many calls the filters leave."""
        return int(self.rows("SELECT count(*) FROM calls_compact")[0][0])


def load(*paths: str | os.PathLike[str], where: str = EVERYTHING) -> Calls:
    """Read logs.

    Args:
        paths: Logs, plain or gzip, or patterns such as ``logs*.csv``. The parts of a rotated log
            (``logs.000001.csv``) are read with it. A log may be written meanwhile.
        where: A condition in SQL on the columns; what it does not hold for is not in ``calls``.

    Returns:
        The calls. They hold memory, and temporary files, until `Calls.close`.

    Raises:
        FileNotFoundError: A file is not there.
        ImportError: DuckDB is not installed; says which extra brings it.
        OSError: DuckDB cannot do it, as where there is no room for temporary files.
        TypeError: A path is none.
        ValueError: None of the files is a log, or DuckDB cannot read `where`.
    """
    try:
        import duckdb
    except ImportError:
        raise ImportError("a review needs duckdb: pip install 'otel-connector[review]'") from None
    if not paths:
        raise ValueError("paths: name at least one log, or a pattern")
    for path in paths:
        if not isinstance(cast("object", path), (str, bytes, os.PathLike)):
            raise TypeError(f"paths must be paths, one after the other as in load(*paths), not {type(path).__name__}")
    files = log_files([os.fsdecode(path) for path in paths])
    folder = _temporary_folder()
    calls = Calls(duckdb.connect(), folder)
    try:
        _set_up(calls.connection, folder)
        sources, problems = _sorted_out(files)
        _read(calls.connection, list(sources.values()), where, folder)
        calls.files = tuple(_report(path, sources, problems) for path in files)
    except (duckdb.BinderException, duckdb.ConversionException, duckdb.ParserException) as error:
        calls.close()
        raise ValueError(f"where={where!r}: {_first_line(error)}") from None
    except duckdb.Error as error:
        calls.close()
        raise OSError(f"the logs cannot be reviewed: {_first_line(error)}") from None
    except BaseException:
        calls.close()
        raise
    return calls


def _temporary_folder() -> str:
    """Make a folder that is gone when the program ends, if not before."""
    folder = os.path.join(tempfile.gettempdir(), f"otel_connector-review-{secrets.token_hex(8)}")  # noqa: PTH118 - a str
    # First, or a Ctrl-C between the two would leave it behind. And not when the calls are collected: a relation that
    # came from them may be in use
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.mkdir(folder, 0o700)  # noqa: PTH102 - a str
    return folder


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _set_up(connection: duckdb.DuckDBPyConnection, folder: str) -> None:
    connection.execute(f"SET memory_limit='{MEMORY_LIMIT}'")
    connection.execute(f"SET temp_directory={quoted(folder)}")
    connection.execute("SET preserve_insertion_order=false")  # half the time
    connection.execute("SET enable_progress_bar=false")
    # Its file is thrown away: nothing of it need be safe
    connection.execute("PRAGMA disable_checkpoint_on_shutdown")
    connection.execute("SET checkpoint_threshold='100GB'")


def _sorted_out(files: list[str]) -> tuple[dict[str, _Source], dict[str, str]]:
    """Tell logs from what is none."""
    looked = {path: _looked_at(path) for path in files}
    sources = {path: _Source(found, path) for path, found in looked.items() if isinstance(found, Found)}
    problems = {path: problem for path, problem in looked.items() if isinstance(problem, str)}
    if not sources:
        raise ValueError("; ".join(f"{one_line(path)}: {problem}" for path, problem in problems.items()))
    return sources, problems


def _looked_at(path: str) -> Found | str:
    """Return what a file is, or why it cannot be read as a log."""
    try:
        return look_at(path)
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:
        return str(error)


def _report(path: str, sources: dict[str, _Source], problems: dict[str, str]) -> LogFile:
    if path in problems:
        return LogFile(path=path, problem=problems[path], torn=torn_neighbour(path))
    source = sources[path]
    return LogFile(
        path=path,
        damaged=source.damage.lines,
        damage=tuple(source.damage.named),
        unfinished=source.damage.unfinished or bool(source.found.tail),
        torn=torn_neighbour(path),
    )


def _read(connection: duckdb.DuckDBPyConnection, sources: list[_Source], where: str, folder: str) -> None:
    """Fill the table; a file that is not read as it should be is repaired first."""
    # What DuckDB holds in memory is not compressed: in a file a large log takes a fourth, and is asked sooner
    large = sum(source.found.size for source in sources) >= _LARGE
    connection.execute(f"ATTACH {quoted(f'{folder}/calls.duckdb' if large else ':memory:')} AS stored")
    suspects = [source for source in sources if not source.found.plain]
    while True:
        for source in suspects:
            with tempfile.NamedTemporaryFile(dir=folder, suffix=".csv", delete=False) as target:
                source.damage = copy_good_rows(source.found, target)
            source.read_from = target.name
        connection.execute(f"CREATE OR REPLACE VIEW log AS {_log_sql(sources)}")
        connection.execute(f"""
            CREATE OR REPLACE VIEW parsed_log AS
            SELECT *, {_HOST}, {_ERROR_TYPE} AS error_type FROM (SELECT *, {_AUTHORITY} FROM log)""")
        suspects = _misread(connection, sources, where)
        if not suspects:
            texts = ", ".join(
                f"split_part(texts, {_APART}, {number}) AS {name}" for number, name in enumerate(_MOVED, start=1)
            )
            for view, condition in (("calls_compact", "kept"), ("calls_with_text", "kept AND texts IS NOT NULL")):
                connection.execute(
                    f"CREATE OR REPLACE VIEW {view} AS SELECT * EXCLUDE (texts, authority, kept), {_HOST}, {texts} "
                    f"FROM (SELECT *{', TRUE AS kept' if where == EVERYTHING else ''} FROM stored.everything) "
                    f"WHERE {condition}"
                )
            whole = (
                f"SELECT * EXCLUDE (authority) FROM parsed_log WHERE ({where})"
                if large
                else "SELECT * FROM calls_compact"
            )
            connection.execute(f"CREATE OR REPLACE VIEW calls AS {whole}")
            return


def _misread(connection: duckdb.DuckDBPyConnection, sources: list[_Source], where: str) -> list[_Source]:
    """Read the files into the table, and return those that were not read line by line."""
    import duckdb

    unrepaired = [source for source in sources if source.read_from == source.found.path]
    with ThreadPoolExecutor(1) as beside:  # DuckDB lets other threads run
        counting = [beside.submit(source.found.lines) for source in unrepaired]
        try:
            connection.execute(_table_sql(connection, sources, where))
        except (duckdb.BinderException, duckdb.ParserException, duckdb.OutOfMemoryException):
            raise  # of `where`, or of a full disk
        except duckdb.Error:
            if not unrepaired:
                raise
            return unrepaired
        lines = sum(count.result() - 1 for count in counting)
    rows, bad = connection.execute("SELECT count(*), count_if(t IS NULL) FROM stored.everything").fetchall()[0]
    rows -= sum(source.damage.rows for source in sources)
    grown = sum(source.found.grown() for source in unrepaired)
    return [] if not bad and lines <= rows <= lines + grown else unrepaired


def _log_sql(sources: list[_Source]) -> str:
    """Return the query for the ten columns, typed; what cannot be a time is NULL, a guard before a formula is off."""
    paths = ", ".join(quoted(glob.escape(source.read_from)) for source in sources)
    tails = [source.found.tail.partition(b",")[0].decode("utf-8", "replace") for source in sources if source.found.tail]
    return f"""
        SELECT call_id, {_unguarded("project")},
            CASE WHEN t BETWEEN 0 AND {LATEST} THEN make_timestamp((t * 1e6)::BIGINT) END AS t,
            CASE WHEN delta_t BETWEEN 0 AND {LONGEST} THEN delta_t END AS delta_t,
            {_unguarded("url")}, {_unguarded("redirect_url")}, response_size, response_code, success,
            {_unguarded("error")}
        FROM read_csv([{paths}], header=true, delim=',', quote='"', escape='"', auto_detect=false, columns={_COLUMNS},
            store_rejects=true, max_line_size={LINE_LIMIT})
        {f"WHERE call_id NOT IN ({', '.join(map(quoted, tails))})" if tails else ""}"""


def _unguarded(column: str) -> str:
    """Take off the guard that a text wears which a spreadsheet would read as a formula (`_csv_format.cell`)."""
    starts = "".join(FORMULA_STARTS).replace("-", r"\-")
    guarded = f"starts_with({column}, '''') AND regexp_matches({column}, '^''+[{starts}]')"
    # Not `force_not_null`: where not all columns are read, DuckDB 2.0 takes it for other columns, and twice the time
    return f"CASE WHEN {guarded} THEN {column}[2:] ELSE coalesce({column}, '') END AS {column}"


def _table_sql(connection: duckdb.DuckDBPyConnection, sources: list[_Source], where: str) -> str:
    texts = f"CASE WHEN stands_out THEN concat_ws({_APART}, {', '.join(_MOVED)}) END AS texts"
    # Two columns more would take a tenth more time: a row that cannot be has no t, and `kept` is there only if needed
    return f"""
        CREATE OR REPLACE TABLE stored.everything AS
        SELECT CASE WHEN delta_t IS NOT NULL AND success IS NOT NULL AND response_size IS NOT NULL
                AND length(call_id) = {CALL_ID_LENGTH} THEN t END AS t,
            delta_t, project, authority, error_type, response_size, response_code, success, {texts}
            {f", ({where}) IS TRUE AS kept" if where != EVERYTHING else ""}
        FROM (
            SELECT *, {_stands_out_sql(connection, sources)} AS stands_out FROM parsed_log
        )"""


def _stands_out_sql(connection: duckdb.DuckDBPyConnection, sources: list[_Source]) -> str:
    """Return which calls keep their texts: all, or of large files the slow ones and some of each kind of failure.

    So that ten million calls need no gigabytes. What is slow and which failures are frequent is taken from the first
    calls; if that misleads, more or fewer are kept, and who asks for more than is here asks the log.
    """
    if sum(source.found.size for source in sources) < _LARGE:
        return "TRUE"
    sample = f"(FROM parsed_log LIMIT {_SAMPLE_ROWS})"
    slow = connection.execute(f"SELECT quantile_cont(delta_t, 0.999) FROM {sample}").fetchall()[0][0]
    failures = connection.execute(f"SELECT error_type, count(*) FROM {sample} WHERE NOT success GROUP BY 1").fetchall()
    frequent = [quoted(name) for name, calls in failures if calls > _FREQUENT * _SAMPLE_ROWS]
    rare = f"error_type NOT IN ({', '.join(frequent)})" if frequent else "TRUE"
    return f"(delta_t >= {slow or 0} OR (NOT success AND ({rare} OR epoch_us(t) % {_KEPT_OF_ORDINARY} = 0)))"
