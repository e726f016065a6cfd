"""The CSV log as an OpenTelemetry span exporter, and the processor that suits it.

The connector hands its calls to a `CSVSpanExporter` directly, so that a row depends on no sampler, queue or span
limit. The same class is an ordinary exporter and can stand in any tracer provider beside OTLP. Knows nothing of how a
call is made.
"""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_connector._arguments import checked_path
from otel_connector._csv._background import BackgroundRows
from otel_connector._csv._format import HEADER, encode_row
from otel_connector._csv._options import BACKLOG_BYTES, LogOptions
from otel_connector._csv._writer import RowWriter
from otel_connector._record import CallRecord, Fields, RowCounts
from otel_connector._telemetry._attributes import FIELD_NAMES
from otel_connector._telemetry._call_ids import call_id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span
    from opentelemetry.util.types import AttributeValue

PATH_VARIABLE = "OTEL_CONNECTOR_CSV_PATH"
"""Environment variable that names the file when the exporter is made without a path, as the SDK's entry point does."""

DEFAULT_PATH = "otel_connector.csv"

# The attributes' names, made once and not for each of some 100,000 spans a second
_CALL_ID, _PROJECT, _T, _DELTA_T, _URL, _REDIRECT_URL, _SIZE, _CODE, _SUCCESS, _ERROR = FIELD_NAMES

_NUMBER = (float, int)

# A call whose exporter also stands in a provider arrives twice: directly and by the processor. 4,096 is twice the
# batch processor's default queue, so the second arrival is recognised unless that queue was enlarged.
_REMEMBERED_CALLS = 4_096


class _WrittenCalls:
    """The calls written to one log of late. Without a lock, which a fork could leave taken in the child."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, int | None], tuple[str, int | None]] = {}
        self._before: dict[tuple[str, int | None], tuple[str, int | None]] = {}

    def add(self, call: tuple[str, int | None]) -> bool:
        """Remember a call; False if it is remembered already."""
        calls = self._calls
        if call in self._before or calls.setdefault(call, call) is not call:  # one step, whatever other threads do
            return False
        if len(calls) >= _REMEMBERED_CALLS:
            # All at once: a dictionary that loses its first entry again and again is searched for the next one
            self._before, self._calls = calls, {}
        return True


class _Registry:
    """The calls written to each log, by its path: two exporters may write one log, which may be rotated."""

    def __init__(self) -> None:
        self._by_path: weakref.WeakValueDictionary[str, _WrittenCalls] = weakref.WeakValueDictionary()
        self.reset_lock()

    def reset_lock(self) -> None:
        """Replace the lock: in the child of a fork, no thread is left that could release it."""
        self._lock = threading.Lock()

    def calls_of(self, path: str) -> _WrittenCalls:
        with self._lock:
            return self._by_path.setdefault(os.path.realpath(path), _WrittenCalls())


_registry = _Registry()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_registry.reset_lock)


class CSVSpanExporter(SpanExporter):
    """Writes one CSV row for every span that carries the ten ``otel_connector.*`` fields; passes over all others.

    A call that arrives twice (directly from the connector and through a provider it was added to) is written once.

    In the mode ``call`` each `export` is one append to the file, done before it returns: a killed process loses no row.
    What the disk refuses waits in memory and is written as soon as the disk takes it; `export` then says FAILURE and
    never raises. In the mode ``background`` a thread writes the rows, at most some 10 ms later, and a disk that hangs
    holds up no call; a killed process loses what is queued.

    With ``OTEL_TRACES_EXPORTER=csv`` the SDK makes one by itself and puts it behind its batch processor, which passes
    on sampled spans only, drops the oldest when its queue is full, and loses the queue on SIGTERM. `CSVSpanProcessor`
    does none of that, and a connector with a `logfile` needs neither.

    Args:
        path: The file; default ``$OTEL_CONNECTOR_CSV_PATH``, or ``otel_connector.csv``. Renamed (by logrotate, say), it
            is begun anew under its name.
        overwrite: Empty the file first; by default rows are appended.
        mode: ``call``, or ``background`` for a thread that writes.
        fsync_interval: Seconds of rows that a power cut may take; 0 has every row on the disk before `export` returns
            (in the mode ``call``). Default None: as many as the system has not written back yet. Of the rows since the
            last good fsync none is believed in when one fails: they are written again.
        rotate_rows: Rows after which the file is renamed (``logs.csv`` to ``logs.000001.csv``) and begun anew;
            1,000,000 fit a spreadsheet. Default None: never.
        rotate_bytes: The same, by size: no file gets larger, but for the sake of a single row.
        backlog_bytes: Bytes of rows that may wait in memory, default 64 MiB; rows beyond that are lost, the newest
            first, and counted.
        permissions: Mode of a file that is created, whatever the umask; default 0600.

    Raises:
        TypeError: An argument is of another type; named.
        ValueError: An argument cannot work, or the file has another header.
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
    ) -> None:
        if _as_object(mode) not in {"call", "background"}:
            raise ValueError(f"mode must be 'call' or 'background', not {mode!r}")
        argument = "path"
        if path is None:
            path = os.environ.get(PATH_VARIABLE) or DEFAULT_PATH
            argument = PATH_VARIABLE
        self._path = checked_path(argument, path)
        options = LogOptions(
            overwrite=overwrite,
            permissions=permissions,
            backlog_bytes=backlog_bytes,
            fsync_interval=fsync_interval,
            rotate_rows=rotate_rows,
            rotate_bytes=rotate_bytes,
        )
        try:
            writer = RowWriter(self._path, HEADER, options)
        except (OSError, ValueError) as error:
            raise named_error(argument, error) from error
        self._rows: RowWriter | BackgroundRows = writer
        if mode == "background":
            self._rows = BackgroundRows(writer, backlog_bytes, self._path)
        self._written_calls = _registry.calls_of(self._path)

    @property
    def path(self) -> str:
        """The file, as it was given."""
        return self._path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write a row for each span that carries the fields; FAILURE if a row is not in the file yet."""
        rows = _encoded(fields for span in spans if (fields := self._fields(span)) is not None)
        return SpanExportResult.SUCCESS if self._rows.write(rows) else SpanExportResult.FAILURE

    def export_record(self, record: CallRecord, start_time: int | None) -> None:
        """Write a call's row at once, whatever became of its own span: the connector's way in.

        It is the row that `export` writes for the call's span, complete at any sampler and any span limit. No span is
        made for it only to be taken apart again: that cost more than the row.

        Args:
            record: The call.
            start_time: When its span starts, Unix time in nanoseconds; None if it has none that could come here a
                second time, by the SDK.
        """
        if start_time is None or self._written_calls.add((record.call_id, start_time)):
            self._rows.write((encode_row(record),))

    @property
    def row_counter(self) -> Callable[[], RowCounts]:
        """What `counts` asks; it does not hold the exporter."""
        return self._rows.counts

    def counts(self) -> RowCounts:
        """Return how many rows are written, waiting for the disk, and lost."""
        return self._rows.counts()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Write what waits; True if every row is in the file.

        Args:
            timeout_millis: How long the thread of the mode ``background`` is waited for. In the mode ``call`` there is
                nothing to wait for: the rows are in the file, or the disk just refused them.
        """
        if isinstance(self._rows, BackgroundRows):
            return self._rows.flush(timeout_millis / 1e3)
        return self._rows.flush()

    def shutdown(self) -> None:
        """Write what waits, in the mode ``background`` for 5 s at most, and close the file. Later rows are lost."""
        self._rows.close()

    def _fields(self, span: ReadableSpan) -> Fields | None:
        """Read the ten fields back from a span; None if they are not there, of another kind, or written already."""
        context, attributes = span.get_span_context(), span.attributes
        if context is None or attributes is None:
            return None
        mapping: Any = attributes
        try:
            # The SDK's mapping is written in Python: ten look-ups in it cost three times as much as its copy
            mapping = mapping.copy()
        except AttributeError:  # of another kind of mapping
            mapping = attributes
        get: Callable[[str], AttributeValue | None] = mapping.get
        t, delta_t, size, code = get(_T), get(_DELTA_T), get(_SIZE), get(_CODE)
        if (
            _CALL_ID not in mapping
            or not isinstance(t, _NUMBER)
            or not isinstance(delta_t, _NUMBER)
            or not isinstance(size, int)
            or (code is not None and not isinstance(code, int))
        ):
            return None
        project, url, redirect_url, error = get(_PROJECT), get(_URL), get(_REDIRECT_URL), get(_ERROR)
        try:
            # Not the attribute: the SDK may have cut it (OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT), and then ids would collide
            call_id = call_id_of(context)
            fields = (
                call_id,
                project if type(project) is str else str(project or ""),  # nearly always, and half of what `str` costs
                t,
                delta_t,
                url if type(url) is str else str(url or ""),
                "" if redirect_url is None else str(redirect_url or ""),
                size,
                code,
                get(_SUCCESS) is True,
                "" if error is None else str(error or ""),
            )
        except (TypeError, ValueError):  # ids that are no integers, or a number of thousands of digits for a text
            return None
        # With the start, because the ids repeat in a program that seeds `random`, from which the SDK draws them
        return fields if self._written_calls.add((call_id, span.start_time)) else None


class CSVSpanProcessor(SpanProcessor):
    """Hands every ended span to a `CSVSpanExporter` at once, sampled or only recorded.

    Unlike the SDK's processors it queues nothing, so nothing is lost when the process is stopped, and its
    `force_flush` tells the truth. A span the sampler dropped altogether reaches no processor; a connector's own
    `logfile` has those too.

    Args:
        exporter: Where the rows go. It is shut down with the provider.

    Raises:
        TypeError: `exporter` is no `CSVSpanExporter`.
    """

    def __init__(self, exporter: CSVSpanExporter) -> None:
        if not isinstance(_as_object(exporter), CSVSpanExporter):
            raise TypeError(f"exporter must be a CSVSpanExporter, not {type(exporter).__name__}")
        self._exporter = exporter

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Do nothing: a row is made of a finished span."""

    def on_end(self, span: ReadableSpan) -> None:
        """Write the span's row, if it has one."""
        self._exporter.export((span,))

    def shutdown(self) -> None:
        """Close the exporter's file."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """True if every row handed over is in the file."""
        return self._exporter.force_flush(timeout_millis)


def _as_object(value: object) -> object:
    """Forget the declared type of an argument that is about to be checked."""
    return value


def named_error(argument: str, error: BaseException | None) -> OSError | ValueError:
    """Return an error of the writer with the name of the argument that the caller gave the path in."""
    if isinstance(error, OSError):
        return OSError(error.errno, f"{argument}: {error.strerror}", error.filename)
    return ValueError(f"{argument}: {error}")


def _encoded(records: Iterable[Fields]) -> list[bytes]:
    """Return the records' rows, without one whose number cannot be written: the others must not be lost with it."""
    rows: list[bytes] = []
    for record in records:
        with suppress(OverflowError, ValueError):  # an integer above what a float holds, or of thousands of digits
            rows.append(encode_row(record))
    return rows
