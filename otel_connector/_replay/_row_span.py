"""Convert a row of a log back to the span of its call.

The ids of the span are in ``call_id``, and the times of the row have the span's precision of microseconds. What a row
does not contain is omitted: the parent, the events of failed attempts, ``network.protocol.version``,
``http.request.resend_count`` and ``otel_connector.queue.duration``. A call that had attempt spans is sent without
them. This file knows neither files nor collectors.

Used by ``_replay._replay``.
"""

from __future__ import annotations

import builtins
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, TraceFlags
from yarl import URL

from otel_connector import _errors
from otel_connector._csv._lines import read_line
from otel_connector._errors import class_name
from otel_connector._record import COLUMNS, CallRecord
from otel_connector._telemetry._attributes import error_status, field_attributes, http_attributes, outcome_attributes
from otel_connector._telemetry._metrics import SCHEMA_URL, SCOPE
from otel_connector._telemetry._names import CALL_NAME
from otel_connector._version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

_SCOPE = InstrumentationScope(SCOPE, __version__, SCHEMA_URL)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_TIMES = tuple(COLUMNS.index(name) for name in ("t", "delta_t"))

_INT64 = 2**63
"""First number that is too large for an attribute or a time of OTLP. The times are unsigned, but backends read them as
signed."""
_END_OF_TIME = Decimal(_INT64).scaleb(-9)  # seconds; in the year 2262

_OURS = {name: kind for name, kind in vars(_errors).items() if isinstance(kind, type)}
_OTHER = "_OTHER"  # semantic conventions, "error.type": the value if the type is unknown


class Row(NamedTuple):
    """A row, with the ids and times of its span.

    Attributes:
        record: Its ten fields.
        trace_id: The trace id.
        span_id: The span id.
        start: Start, Unix time in nanoseconds.
        end: End, Unix time in nanoseconds.
    """

    record: CallRecord
    trace_id: int
    span_id: int
    start: int
    end: int


def read_row(line: bytes) -> Row:
    """Parse a line without its line end. Another program may have saved it again, with the same values.

    Raises:
        ValueError: It is not a row, or the row cannot be converted to a span. The message is one line.
    """
    cells, record = read_line(line)
    # From the text: the sum of the record's floats would differ by some nanoseconds
    t, delta_t = (_nanoseconds(COLUMNS[index], cells[index]) for index in _TIMES)
    trace_id, span_id = (int(part, 16) for part in record.call_id.split("-"))
    if not (trace_id and span_id):
        raise ValueError("call_id contains an id of zeros, which is invalid")
    if t + delta_t >= _INT64:
        raise ValueError("the call ends later than a span can end")
    return Row(record, trace_id, span_id, t, t + delta_t)


def _nanoseconds(column: str, cell: str) -> int:
    with suppress(InvalidOperation):  # an exponent that Decimal cannot represent; as a float the number is 0
        seconds = Decimal(cell)
        if seconds < _END_OF_TIME:
            return int((seconds * 10**9).to_integral_value())
    raise ValueError(f"{column} is not a time that a span can have")


def span_of(row: Row, resource: Resource) -> ReadableSpan:
    """Return the span of a row, always the same, with all attributes of the live span that the row contains."""
    record, error_type = row.record, error_type_of(row.record)
    attributes = http_attributes(record.url, *_host_and_port(record.url))
    attributes |= field_attributes(record) | outcome_attributes(record.response_code, error_type)
    return ReadableSpan(
        CALL_NAME,
        context=SpanContext(row.trace_id, row.span_id, is_remote=False, trace_flags=_SAMPLED),
        resource=resource,
        attributes=attributes,
        kind=SpanKind.CLIENT,
        status=Status() if error_type is None else error_status(error_type, record.error),
        start_time=row.start,
        end_time=row.end,
        instrumentation_scope=_SCOPE,
    )


def error_type_of(record: CallRecord) -> str | None:
    """Return the value of ``error.type``; None if the call is not an error: it succeeded, or its caller cancelled it.

    A row has the name of a class without its module. The module is added if the class is one of this package or of
    Python.
    """
    name = record.error.partition(":")[0]
    if record.success or name == "CancelledError":
        return None
    if name == "HTTPStatusError" and record.response_code is not None:
        return str(record.response_code)
    kind = _OURS.get(name) or getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        return name or _OTHER
    return class_name(kind) if issubclass(kind, Exception) else None


def _host_and_port(text: str) -> tuple[str | None, int | None]:
    """Return the host and port of a URL; None for both if no call can request it."""
    try:
        url = URL(text)
        host, port = url.host, url.port
    except ValueError:
        return None, None
    return (host, port) if host and url.scheme in {"http", "https"} else (None, None)
