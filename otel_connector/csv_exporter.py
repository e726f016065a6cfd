"""The CSV log as an OpenTelemetry span exporter, and the span processor to use with it.

The connector passes its calls directly to a `CSVSpanExporter`, so no sampler, queue or span limit affects a row. The
same class is an ordinary exporter that can be added to any tracer provider next to OTLP. This file does not know how a
call is made.

Used by applications, ``__init__``, ``_connector`` and ``_fetch._chunk``.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext

from otel_connector._arguments import check_choice, checked_instance, checked_names, checked_path
from otel_connector._csv._background import BackgroundRows
from otel_connector._csv._file import check_usable
from otel_connector._csv._format import ATTEMPTS, CALLS, LATEST, LONGEST, RowFormat, encode_attempt, encode_row
from otel_connector._csv._options import BACKLOG_BYTES, LogOptions
from otel_connector._csv._parts import attempts_file
from otel_connector._csv._writer import RowWriter
from otel_connector._recent_calls import RecentCalls
from otel_connector._record import AttemptRecord, CallRecord, Fields, RowCounts, one_line
from otel_connector._redact import DEFAULT_REDACTED_PARAMS, Redactor
from otel_connector._telemetry._attributes import FIELD_NAMES
from otel_connector._telemetry._call_ids import call_id_of
from otel_connector._telemetry._foreign_spans import foreign_fields, is_http_client

_logger = logging.getLogger("otel_connector")

PATH_VARIABLE = "OTEL_CONNECTOR_CSV_PATH"
"""Environment variable with the path of the file, used if the exporter is created without a path, as the SDK does."""

DEFAULT_PATH = "otel_connector.csv"

SPANS_VARIABLE = "OTEL_CONNECTOR_CSV_SPANS"
"""Environment variable with the value of `spans`, used if the exporter is created without that argument."""

_NUMBER = (float, int)

_DEFAULT_OPTIONS = LogOptions()

# If the exporter of a connector is also added to a provider, a call arrives twice. 4,096 is twice the default queue of
# the batch processor, so the second arrival is recognized unless that queue was enlarged
_REMEMBERED_CALLS = 4_096


# The calls written to each log, by its path: two exporters may write one log, which may be rotated
_calls_by_path: weakref.WeakValueDictionary[str, RecentCalls] = weakref.WeakValueDictionary()
_registry_lock = threading.RLock()

if hasattr(os, "register_at_fork"):  # held during a fork: in the child, no other thread is left that could release it
    os.register_at_fork(
        before=_registry_lock.acquire, after_in_parent=_registry_lock.release, after_in_child=_registry_lock.release
    )


class CSVSpanExporter(SpanExporter):
    """Writes one CSV row for every span that has the ten ``otel_connector.*`` fields.

    With ``spans="http"`` it also writes a row for every HTTP request of another client, such as httpx with its
    instrumentation: for each CLIENT span with the attribute ``http.request.method`` or ``http.method``, of any method,
    that is not one of a database, an RPC or messaging. All other spans are skipped. A call that arrives twice (directly
    from the connector and through a provider it was added to) is written once.

    In the mode ``call``, `export` appends to the file before it returns: a killed process loses no row. Rows that the
    disk refuses wait in memory and are written when the disk accepts them; `export` then returns FAILURE and never
    raises. In the mode ``background`` a thread writes the rows, usually within 10 ms. A disk that hangs then blocks no
    call, but a killed process loses the queued rows.

    With ``OTEL_TRACES_EXPORTER=csv`` the SDK creates an exporter and adds it with its batch processor. That processor
    forwards sampled spans only, drops the oldest spans when its queue is full, and loses the queue on SIGTERM.
    `CSVSpanProcessor` does none of this. A connector with a `logfile` needs neither.

    Args:
        path: The file. Default: ``$OTEL_CONNECTOR_CSV_PATH``, or ``otel_connector.csv``. If it is renamed (for example
            by logrotate), a new file is created under its name.
        overwrite: Empty the file first. Default: append.
        mode: ``call`` (default), or ``background`` for a thread that writes.
        fsync_interval: Seconds of rows that a power failure may lose; 0 calls fsync for each row before `export`
            returns (in the mode ``call``). Default None: fsync is never called. If fsync fails, all rows since the last
            successful one are written again.
        rotate_rows: Number of rows after which the file is renamed (``logs.csv`` to ``logs.part-000001.csv``) and a new
            one is created; 1,000,000 rows fit into a spreadsheet. Default None: never.
        rotate_bytes: Size in bytes that the file does not exceed, unless a single row is longer; it is renamed before.
            Default None: any size.
        backlog_bytes: Bytes of rows that may wait in memory, default 64 MiB. Further rows are lost and counted.
        permissions: Mode of a file that is created, regardless of the umask. Default: 0600.
        spans: ``connector`` for the calls of the connector, or ``http`` for all HTTP requests. Default:
            ``$OTEL_CONNECTOR_CSV_SPANS``, or ``connector``; the first HTTP request that therefore has no row is logged.
        redact_params: Query parameters whose values are not written to the rows of other clients, compared without
            case. The rows of a connector are redacted by its own `redact_params`.

    Raises:
        TypeError: An argument has the wrong type; the message names it.
        ValueError: An argument is invalid, or the file has another header; the message names the argument.
        OSError: The file cannot be opened for appending, is not a regular file, or is another user's symbolic link.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        overwrite: bool = False,
        mode: Literal["call", "background"] = "call",
        fsync_interval: float | None = None,
        rotate_rows: int | None = None,
        rotate_bytes: int | None = None,
        backlog_bytes: int = BACKLOG_BYTES,
        permissions: int = 0o600,
        spans: Literal["connector", "http"] | None = None,
        redact_params: Iterable[str] = DEFAULT_REDACTED_PARAMS,
    ) -> None:
        check_choice("mode", mode, ("call", "background"))
        secret = checked_names("redact_params", redact_params)
        variable = os.environ.get(SPANS_VARIABLE, "").strip().lower() if spans is None else ""
        chosen = variable or spans
        if chosen is not None:
            check_choice(SPANS_VARIABLE if variable else "spans", chosen, ("connector", "http"))
        self._foreign_redactor = Redactor(secret) if chosen == "http" else None
        self._reports_foreign_spans = chosen is None
        argument = "path"
        if path is None:
            path = os.environ.get(PATH_VARIABLE) or DEFAULT_PATH
            argument = PATH_VARIABLE
        self._path = checked_path(argument, path)
        self._background = mode == "background"
        self._options = LogOptions(
            overwrite=overwrite,
            permissions=permissions,
            backlog_bytes=backlog_bytes,
            fsync_interval=fsync_interval,
            rotate_rows=rotate_rows,
            rotate_bytes=rotate_bytes,
        )
        self._rows = self._open(argument, self._path, CALLS)
        self._attempts: RowWriter | BackgroundRows | None = None
        real_path = os.path.realpath(self._path)
        with _registry_lock:
            self._written_calls = _calls_by_path.setdefault(real_path, RecentCalls(_REMEMBERED_CALLS))

    def _open(self, argument: str, path: str, form: RowFormat[Any]) -> RowWriter | BackgroundRows:
        """Open a file with the options of this exporter; `argument` is named in errors."""
        try:
            if form is ATTEMPTS:  # its name was not given, so a file of another kind is not emptied
                check_usable(path, form.header, self._options)
            writer = RowWriter(path, form.header, self._options)
        except (OSError, ValueError) as error:
            raise named_error(argument, error, path) from error
        return BackgroundRows(writer, self._options.backlog_bytes, path) if self._background else writer

    def open_attempts(self) -> None:
        """Open the file for the attempts of calls, ``<stem>.attempts.csv`` beside the log, with the options of the log.

        A connector with ``attempts=True`` does this. It has no effect if the file is open.

        Raises:
            ValueError: The file has another header. It is not emptied then, not even with ``overwrite=True``.
            OSError: As for the log.
        """
        with _registry_lock:
            if self._attempts is None:
                self._attempts = self._open("attempts", attempts_file(self._path), ATTEMPTS)

    @property
    def path(self) -> str:
        """The path of the file, as it was given."""
        return self._path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write a row for each span that is a call; FAILURE if a row is not in the file yet."""
        rows: list[bytes] = []
        for span in spans:
            # A span that cannot be a row (ids of another type, a number that is too large for a float, or one with
            # thousands of digits) must not prevent the other rows
            with suppress(Exception):
                if (fields := self._fields(span)) is not None:
                    rows.append(encode_row(fields))
        return SpanExportResult.SUCCESS if self._rows.write(rows) else SpanExportResult.FAILURE

    def export_record(self, record: CallRecord, start_time: int | None, attempts: Sequence[AttemptRecord] = ()) -> None:
        """Write the row of a call of the connector, after those of its attempts.

        It is the row that `export` writes for the span of the call, complete with any sampler and any span limit. No
        span is created only to be read again; that would cost more than the row.

        Args:
            record: The call.
            start_time: Start of its span, Unix time in nanoseconds; None if it has no span that could arrive here a
                second time through the SDK.
            attempts: Its attempts; they are written after `open_attempts`.
        """
        if start_time is None or self._written_calls.add((record.call_id, start_time)):
            try:
                if attempts and self._attempts is not None:
                    self._attempts.write([*map(encode_attempt, attempts)])
            finally:  # a signal handler may raise during that write
                self._rows.write((encode_row(record),))

    @property
    def row_counter(self) -> Callable[[], RowCounts]:
        """A function that returns `counts` and does not keep the exporter alive."""
        return self._rows.counts

    def counts(self) -> RowCounts:
        """Return the numbers of rows that are written, waiting for the disk, and lost."""
        return self._rows.counts()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Write the waiting rows; True if every row is in its file.

        Args:
            timeout_millis: How long to wait for the threads of the mode ``background``, in milliseconds. The mode
                ``call`` does not wait: the rows are in the file, or the disk has just refused them.
        """
        deadline = time.monotonic() + timeout_millis / 1e3
        complete = True
        for rows in self._files():
            if isinstance(rows, BackgroundRows):
                complete = rows.flush(max(deadline - time.monotonic(), 0.0)) and complete
            else:
                complete = rows.flush() and complete
        return complete

    def shutdown(self) -> None:
        """Write the waiting rows, in the mode ``background`` for at most 5 s for each file, and close the files.

        Later rows are lost, and counted.
        """
        for rows in self._files():
            rows.close()

    def _files(self) -> list[RowWriter | BackgroundRows]:
        return [self._rows] if self._attempts is None else [self._attempts, self._rows]

    def _fields(self, span: ReadableSpan) -> Fields | None:
        """Return the ten fields of a span; None if it is not a call, or its row was written already."""
        context, attributes = span.get_span_context(), span.attributes
        if context is None or attributes is None:
            return None
        mapping: Any = attributes
        try:
            # The SDK's mapping is written in Python: ten look-ups in it cost three times as much as its copy
            mapping = mapping.copy()
        except AttributeError:  # of another kind of mapping
            mapping = attributes
        if mapping.get(FIELD_NAMES[0]) is None:
            fields = self._foreign_fields(span, mapping)
        else:
            fields = _connector_fields(context, mapping)
        # With the start time, because ids repeat in a program that seeds `random`, which the SDK uses for them
        return fields if fields and self._written_calls.add((fields[0], span.start_time)) else None

    def _foreign_fields(self, span: ReadableSpan, attributes: Mapping[str, Any]) -> Fields | None:
        """Return the fields of an HTTP span of another client, or log that it has no row."""
        redactor = self._foreign_redactor
        if not (redactor or self._reports_foreign_spans) or not is_http_client(span, attributes):
            return None
        if redactor:
            fields = foreign_fields(span, attributes, redactor)
            # Otherwise the readers would take the row for a damaged one
            return fields if fields and 0 <= fields[2] <= LATEST and fields[3] <= LONGEST else None
        self._reports_foreign_spans = False
        scope = span.instrumentation_scope
        _logger.warning(
            "%s: HTTP requests of other clients have no rows; the first is a span of %s. Set %s=http, or pass "
            'spans="http", to write them; with "connector", this line is not logged',
            self._path,
            one_line(scope.name) if scope else "unknown scope",
            SPANS_VARIABLE,
        )
        return None


def _connector_fields(context: SpanContext, attributes: Mapping[str, Any]) -> Fields | None:
    """Return the fields in the attributes of the span of a call; None if one is missing or of another type."""
    _, project, t, delta_t, url, redirect_url, size, code, success, error = map(attributes.get, FIELD_NAMES)
    if (
        not isinstance(t, _NUMBER)
        or not isinstance(delta_t, _NUMBER)
        or not isinstance(size, int)
        or (code is not None and not isinstance(code, int))
    ):
        return None
    # Not the attribute: the SDK may truncate it (OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT), and ids would collide
    call_id = call_id_of(context)
    project, url, redirect_url, error = [str(text or "") for text in (project, url, redirect_url, error)]
    return (call_id, project, t, delta_t, url, redirect_url, size, code, success is True, error)


class CSVSpanProcessor(SpanProcessor):
    """Passes every ended span to a `CSVSpanExporter` immediately, sampled or only recorded.

    Unlike the processors of the SDK it queues nothing, so nothing is lost when the process is stopped, and its
    `force_flush` returns the true result. A span that the sampler drops reaches no processor; the `logfile` of a
    connector has its row, too.

    Args:
        exporter: The exporter that writes the rows. It is shut down with the provider.

    Raises:
        TypeError: `exporter` is not a `CSVSpanExporter`.
    """

    def __init__(self, exporter: CSVSpanExporter) -> None:
        self._exporter = checked_instance("exporter", exporter, CSVSpanExporter)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Do nothing: a row is written when a span ends."""

    def on_end(self, span: ReadableSpan) -> None:
        """Write the row of the span, if it is a call."""
        self._exporter.export((span,))

    def shutdown(self) -> None:
        """Shut down the exporter."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Return True if every row is in the file."""
        return self._exporter.force_flush(timeout_millis)


def check_log_and_attempts(logfile: str) -> None:
    """Raise if a log or its attempts log cannot be used, before one of them is emptied.

    Raises:
        ValueError: The attempts log has another header; names it.
        OSError: One cannot be opened; names it.
    """
    argument, path = "logfile", logfile
    try:
        check_usable(path, None, _DEFAULT_OPTIONS)
        argument, path = "attempts", attempts_file(logfile)
        check_usable(path, ATTEMPTS.header, _DEFAULT_OPTIONS)
    except (OSError, ValueError) as error:
        raise named_error(argument, error, path) from error


def named_error(argument: str, error: BaseException | None, path: str) -> OSError | ValueError:
    """Return an error of the writer with the path, and the name of the argument, as the caller gave them."""
    if isinstance(error, OSError):
        return OSError(error.errno, f"{argument}: {error.strerror}", path)
    return ValueError(f"{argument}: {path!r}: {error}")
