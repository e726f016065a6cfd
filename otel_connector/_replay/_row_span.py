"""A row of a log, turned back into the span of its call.

The row has all that is needed: the span's own ids are its ``call_id``, and its times have the microseconds that the
span had. What a row does not have is left out, and nothing is made up: there is no parent, no event for a failed
attempt, no ``network.protocol.version``, ``http.request.resend_count`` or ``otel_connector.queue.duration``, and where
attempts had spans of their own these are gone, and the call's has the one form that needs none. Knows neither files
nor collectors.
"""

from __future__ import annotations

import builtins
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, TraceFlags
from yarl import URL

from otel_connector import _errors
from otel_connector._csv._check import read_line
from otel_connector._errors import class_name
from otel_connector._record import COLUMNS, CallRecord
from otel_connector._telemetry._attributes import error_status, field_attributes, http_attributes
from otel_connector._telemetry._metrics import SCHEMA_URL, SCOPE
from otel_connector._telemetry._names import CALL_NAME, ERROR_TYPE, STATUS_CODE
from otel_connector._version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

_SCOPE = InstrumentationScope(SCOPE, __version__, SCHEMA_URL)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_TIMES = tuple(COLUMNS.index(name) for name in ("t", "delta_t"))

_INT64 = 2**63
"""Numbers from here on fit neither an attribute nor a time of OTLP, which backends read as signed."""
_END_OF_TIME = Decimal(_INT64).scaleb(-9)  # seconds; in the year 2262

_OURS = {name: kind for name, kind in vars(_errors).items() if isinstance(kind, type)}
_OTHER = "_OTHER"  # semantic conventions, "error.type": when there is nothing better to say


class Row(NamedTuple):
    """A row as it is to be sent.

    Attributes:
        record: Its ten fields.
        trace_id: The trace id of the call's span.
        span_id: Its span id.
        start: When it starts, Unix time in nanoseconds.
        end: When it ends, in the same.
    """

    record: CallRecord
    trace_id: int
    span_id: int
    start: int
    end: int


def read_row(line: bytes) -> Row:
    """Return the row that a line without its end is.

    It may have been saved again by another program, as long as it says the same.

    Raises:
        ValueError: It is no row, or one that no span can be made of; says why on one line.
    """
    cells, record = read_line(line)
    # Of the cells' text, not of the record's numbers: floats that are added are some nanoseconds off
    t, delta_t = (_nanoseconds(COLUMNS[index], cells[index]) for index in _TIMES)
    trace_id, span_id = (int(part, 16) for part in record.call_id.split("-"))
    if not (trace_id and span_id):
        raise ValueError("call_id has an id of zeros, which stands for none")
    if t + delta_t >= _INT64:
        raise ValueError("it ends later than a span can")
    for name, number in (("response_size", record.response_size), ("response_code", record.response_code or 0)):
        if not 0 <= number < _INT64:
            raise ValueError(f"{name} is a number that there cannot be")
    return Row(record, trace_id, span_id, t, t + delta_t)


def _nanoseconds(column: str, cell: str) -> int:
    try:
        seconds = Decimal(cell)
        if 0 <= seconds < _END_OF_TIME:
            return int((seconds * 10**9).to_integral_value())
    except ArithmeticError:  # compared with what is not a number
        pass
    raise ValueError(f"{column} is a time that no span can have")


def span_of(row: Row, resource: Resource) -> ReadableSpan:
    """Return the span of a row's call, the same each time, with the attributes that the live one had of the row."""
    record, error_type = row.record, error_type_of(row.record)
    attributes = http_attributes(record.url, *_host_and_port(record.url))
    attributes.update(field_attributes(record))
    if record.response_code is not None:
        attributes[STATUS_CODE] = record.response_code
    if error_type is not None:
        attributes[ERROR_TYPE] = error_type
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
    """Return the value of ``error.type``; None if the call is no error: a success, or given up by its caller.

    A row has the name of a class and not its module. Those of this library and of Python are known; any other is given
    by its name alone.
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
    """Return where a URL leads; nothing for what is no URL that a call can be for."""
    try:
        url = URL(text)
        host, port = url.host, url.port
    except ValueError:
        return None, None
    return (host, port) if host and url.scheme in {"http", "https"} else (None, None)
