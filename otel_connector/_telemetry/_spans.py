"""One call as one span, through the OpenTelemetry API alone.

Converts a `CallRecord` to span attributes, starts and ends the span of the call, adds failed attempts as span events,
injects the trace context, and suppresses other instrumentation inside the call. Telemetry never breaks a call:
exceptions of a processor, sampler or propagator go to `TelemetryGuard`, invalid values that they return are omitted,
and the call continues. A processor that blocks also blocks the event loop, because the API calls it there. This file
does not know the SDK or aiohttp.

Source: OpenTelemetry semantic conventions 1.44, "HTTP client span", the form with one span for the top-most operation.
"""

from __future__ import annotations

import os
import random
import re
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.baggage import get_all as get_baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace import INVALID_SPAN, INVALID_SPAN_CONTEXT, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_connector._guard import TelemetryGuard
from otel_connector._record import COLUMNS, Attempt, CallRecord
from otel_connector._telemetry._metrics import SCHEMA_URL, SCOPE, Active, CallCounts, Host, Log, Pace, instruments_of
from otel_connector._telemetry._names import (
    ATTEMPT_DURATION,
    ATTEMPT_EVENT,
    ATTEMPT_NUMBER,
    ATTEMPT_REASON,
    ATTEMPT_WAIT,
    CALL_NAME,
    CALL_WITH_ATTEMPT_SPANS_NAME,
    ERROR_TYPE,
    FIELD_PREFIX,
    METHOD,
    PROTOCOL_VERSION,
    QUEUE_DURATION,
    RESEND_COUNT,
    SERVER_ADDRESS,
    SERVER_PORT,
    STATUS_CODE,
    URL_FULL,
)
from otel_connector._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from contextvars import Token

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider
    from opentelemetry.util.types import AttributeValue

FIELD_NAMES = tuple(FIELD_PREFIX + name for name in COLUMNS)
"""The attributes' names, in the order of the columns."""

_CALL_ID, _PROJECT, _T, _DELTA_T, _URL, _REDIRECT_URL, _SIZE, _CODE, _SUCCESS, _ERROR = FIELD_NAMES

# What contrib's instrumentations look at before they make a span of their own. The key has no public name; where it is
# gone, the plain text that it is made of does no harm. A test holds the name against the installed version.
_SUPPRESS_HTTP: Final[str] = getattr(
    otel_context, "_SUPPRESS_HTTP_INSTRUMENTATION_KEY", "suppress_http_instrumentation"
)

# What a propagator may put on a request: a name that is one (RFC 9110, section 5.6.2), and not one of those that say
# where a request goes or where it ends, which would make it another request
_W3C_NAMES = frozenset({"baggage", "traceparent", "tracestate"})  # which need no closer look
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_A_PROPAGATORS = frozenset({"connection", "content-length", "expect", "host", "te", "transfer-encoding", "upgrade"})
_HEADER_LIMIT = 8_192  # characters of a value: what W3C Baggage asks of everybody, and most servers take no more


# Ids for calls that get no span of their own. Not the module's own numbers: a program that seeds them would have the
# same ids again. Not the system's either: they cost a system call each
_ids = random.Random()  # noqa: S311 - ids, not secrets
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ids.seed)

_HTTP_1_1 = (1, 1)

_UNKNOWN = object()

_W3C_PROPAGATORS: Mapping[type, Collection[str]] = {
    TraceContextTextMapPropagator: ("traceparent", "tracestate"),
    W3CBaggagePropagator: ("baggage",),
}

# Made once: most calls are made where the context holds nothing, and a context is copied whole for each value
_ONLY_SUPPRESSED = otel_context.set_value(_SUPPRESS_HTTP, value=True, context=Context())


def call_id_of(context: SpanContext) -> str:
    """Return the call_id of the span with this context: trace and span id in hexadecimal, joined by a hyphen.

    Raises:
        TypeError, ValueError: An id is no integer: an application's id generator may do that.
    """
    trace_id, span_id = context[0], context[1]  # not by its properties' names: they cost three times as much
    try:
        # Half of what the numbers' own format costs
        return (trace_id.to_bytes(16, "big") + span_id.to_bytes(8, "big")).hex("-", -16)
    except (AttributeError, OverflowError):  # a generator that gives something else
        return f"{trace_id:032x}-{span_id:016x}"


def field_attributes(record: CallRecord) -> dict[str, AttributeValue]:
    """Return the ten fields as span attributes, ``otel_connector.<column>``; an empty one is left out."""
    # One by one, because a loop over names and values takes three times as many steps, in every call with a span
    call_id, project, t, delta_t, url, redirect_url, size, code, success, error = record
    attributes: dict[str, AttributeValue] = {
        _CALL_ID: call_id,
        _PROJECT: project,
        _T: t,
        _DELTA_T: delta_t,
        _URL: url,
    }
    if redirect_url:
        attributes[_REDIRECT_URL] = redirect_url
    attributes[_SIZE] = size
    if code is not None:
        attributes[_CODE] = code
    attributes[_SUCCESS] = success
    if error:
        attributes[_ERROR] = error
    if not project:
        del attributes[_PROJECT]
    if not url:
        del attributes[_URL]
    return attributes


def http_attributes(url: str, host: str | None, port: int | None) -> dict[str, AttributeValue]:
    """Return what an HTTP span says from its start, for a URL that is redacted."""
    attributes: dict[str, AttributeValue] = {METHOD: "GET", URL_FULL: url}
    if host is not None:
        attributes[SERVER_ADDRESS] = host
    if port is not None:
        attributes[SERVER_PORT] = port
    return attributes


def error_status(error_type: str, error: str) -> Status:
    """Return the status of a span that ends in an error.

    Args:
        error_type: The value of ``error.type``.
        error: ``ClassName: message``.
    """
    # A status code says it all; a description would only repeat it (semantic conventions, "Status")
    return Status(StatusCode.ERROR, None if error_type.isdigit() else error)


@dataclass(slots=True, eq=False)
class UrlTelemetry:
    """What the spans and metrics of all calls for one URL have in common.

    Attributes:
        http: The attributes that an HTTP span starts with; to be copied, because a sampler may change what it gets.
        host: The bounded host labels of their metrics.
        active: How many calls to that host are under way.
    """

    http: dict[str, AttributeValue]
    host: Host
    active: Active


@dataclass(slots=True, eq=False)
class CallSpan:
    """One call's span while it runs.

    Attributes:
        call_id: What the call is known by: the span's ids, minted ones where the API gave none of its own.
        asked: What was asked for.
        project: The bounded project label of the call's metrics.
        span: The span.
        otel: The context that has it.
        token: What ends its being the current span; None if it is not.
        traceparent: What the W3C propagators would write for it, ``""`` for nothing; None if they have to be asked,
            because there may be baggage, or another vendor's ``tracestate``.
        recorded: Whether the span records, or may do so later; else no exporter ever gets it.
    """

    call_id: str
    asked: UrlTelemetry
    project: str
    span: Span
    otel: Context
    token: Token[Context] | None
    traceparent: str | None
    recorded: bool


@dataclass(slots=True, eq=False)
class AttemptSpan:
    """One attempt's own span, where attempts have spans."""

    span: Span
    otel: Context
    token: Token[Context]


class CallTelemetry:
    """Spans and metrics of one connector.

    A provider that breaks is a provider less, here as during a call: with the global ones, which the operator may set
    up after this, the same fault would come up in the one or the other.

    Args:
        attempt_spans: Make the call's span INTERNAL and give each attempt a CLIENT span below it, the other form that
            the conventions allow; the call's span then carries no HTTP attributes, and attempts are no events.
        tracer_provider: Where the tracer comes from; default the global one, also if it is set up later.
        meter_provider: Where the meter comes from; default the global one, also if it is set up later.
        log: Where the rows go, for the metrics; None where there is no log.
        pace: What holds hosts back, for the metrics.
        monotonic_ns: The clock that paces log lines about broken telemetry.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        *,
        log: Log | None = None,
        pace: Pace | None = None,
        monotonic_ns: Callable[[], int] = time.perf_counter_ns,
        attempt_spans: bool = False,
    ) -> None:
        self._guard = TelemetryGuard(monotonic_ns)
        try:
            self._tracer = trace.get_tracer(SCOPE, __version__, tracer_provider, SCHEMA_URL)
        except BaseException as error:  # noqa: BLE001 - an application's provider
            self._guard.swallow(error, "getting a tracer")
            self._tracer = trace.NoOpTracer()
        self._instruments = instruments_of(meter_provider, self._guard.swallow)
        self.counts = CallCounts()
        self._instruments.add(self.counts)
        if log is not None:
            self._instruments.watch(log)
        if pace is not None:
            self._instruments.watch_pace(pace)
        weakref.finalize(self, self._instruments.retire, self.counts).atexit = False
        self.attempt_spans = attempt_spans
        self._is_proxy = isinstance(self._tracer, trace.ProxyTracer)
        self._propagator: object = None  # the global one asked about last
        self._names: Collection[str] | None = None

    def asked(self, url: str, host: str | None, port: int | None) -> UrlTelemetry:
        """Return what `start` needs to know of a URL, which may be kept for its further calls.

        Args:
            url: The URL asked for, redacted.
            host: Its host, None if it has none.
            port: Its port.
        """
        labels = self._instruments.host(host or "", port)
        return UrlTelemetry(http_attributes(url, host, port), labels, self.counts.active.setdefault(labels, Active()))

    def start(self, asked: UrlTelemetry, project: str, start_time: int) -> CallSpan:
        """Start the call's span and make it current, until `end`.

        Args:
            asked: What `asked` returned for its URL.
            project: The call's project.
            start_time: Unix time in nanoseconds.
        """
        span: Span
        traceparent: str | None
        try:
            around = otel_context.get_current()
            # Nothing around and no SDK: the API would hand back its invalid span, for 4 % of a bare call's instructions
            if not around and self._is_proxy and getattr(trace, "_TRACER_PROVIDER", _UNKNOWN) is None:
                span, call_id, context, traceparent, recorded = INVALID_SPAN, _fresh_id(), _ONLY_SUPPRESSED, "", False
            else:
                span, call_id, context, traceparent, recorded = self._start(asked, start_time, around)
            token: Token[Context] | None = otel_context.attach(context)
        except BaseException as error:  # noqa: BLE001 - an application's sampler, processor, id generator or context
            self._guard.swallow(error, "starting the call's span")
            span, call_id, context, token = self._without_span()
            traceparent, recorded = None, True
        asked.active.calls += 1
        return CallSpan(call_id, asked, self._instruments.project(project), span, context, token, traceparent, recorded)

    def _start(
        self, asked: UrlTelemetry, start_time: int, around: Context
    ) -> tuple[Span, str, Context, str | None, bool]:
        name, kind, attributes = CALL_NAME, SpanKind.CLIENT, asked.http.copy()
        if self.attempt_spans:
            name, kind, attributes = CALL_WITH_ATTEMPT_SPANS_NAME, SpanKind.INTERNAL, {}
        span = self._tracer.start_span(name, kind=kind, attributes=attributes, start_time=start_time)
        given, recording = span.get_span_context(), span.is_recording()
        # Another one than the API's own may begin to record later
        recorded = recording or type(span) is not trace.NonRecordingSpan
        context, baggage = (_suppressed(around), get_baggage(around)) if around else (_ONLY_SUPPRESSED, None)
        if not given.is_valid:  # one without a context must not hide the caller's own from the propagator
            call_id = _minted_id(trace.get_current_span(around).get_span_context()) if around else _fresh_id()
            return span, call_id, context, None if around else "", recorded
        own_id = call_id = call_id_of(given)
        if around and not recording:
            call_id = _call_id(own_id, given, around)
        context = trace.set_span_in_context(span, context)
        traceparent = None if baggage or given.trace_state else f"00-{own_id}-{given.trace_flags:02x}"
        return span, call_id, context, traceparent, recorded

    def _without_span(self) -> tuple[Span, str, Context, Token[Context] | None]:
        """Return what a call has in the place of a span of its own: the caller's, if that is in order."""
        span, call_id, context = INVALID_SPAN, _minted_id(INVALID_SPAN_CONTEXT), Context()
        try:
            around = otel_context.get_current()
            parent = trace.get_current_span(around).get_span_context()
            call_id = _minted_id(parent)
            span = trace.NonRecordingSpan(parent)
            context = _suppressed(around)
            return span, call_id, context, otel_context.attach(context)
        except BaseException as error:  # noqa: BLE001 - an application's context or span class
            self._guard.swallow(error, "looking for the caller's span")
            return span, call_id, context, None

    def start_attempt(self, call: CallSpan, resend_count: int, start_time: int) -> AttemptSpan | None:
        """Start an attempt's span below the call's and make it current; None if that fails.

        Args:
            call: The call's span.
            resend_count: Requests that the call has sent before.
            start_time: Unix time in nanoseconds.
        """
        attributes = call.asked.http.copy()
        if resend_count:
            attributes[RESEND_COUNT] = resend_count
        try:
            span = self._tracer.start_span(
                CALL_NAME, kind=SpanKind.CLIENT, attributes=attributes, start_time=start_time
            )
            context = trace.set_span_in_context(span)
            return AttemptSpan(span, context, otel_context.attach(context))
        except BaseException as error:  # noqa: BLE001 - an application's sampler, processor, id generator or context
            self._guard.swallow(error, "starting the attempt's span")
            return None

    def end_attempt(
        self,
        attempt: AttemptSpan,
        *,
        end_time: int,
        status: int | None,
        http_version: tuple[int, int] | None,
        error_type: str | None,
        error: str,
        resend_count: int = 0,
    ) -> None:
        """End an attempt's span.

        Args:
            attempt: What `start_attempt` returned.
            end_time: Unix time in nanoseconds.
            status: The HTTP status of its last response.
            http_version: Major and minor HTTP version of its last response.
            error_type: The value of ``error.type``; None if the attempt is no error.
            error: ``ClassName: message``, for the span's status.
            resend_count: Which resend its last request was, if it sent more than one (a redirect, aiohttp's own second
                try); else 0.
        """
        try:
            otel_context.detach(attempt.token)
            if attempt.span.is_recording():
                attributes = _outcome(attempt.span, status, http_version, error_type, error)
                if resend_count:
                    attributes[RESEND_COUNT] = resend_count
                attempt.span.set_attributes(attributes)
            attempt.span.end(end_time)
        except BaseException as problem:  # noqa: BLE001 - an application's processor, exporter or context
            self._guard.swallow(problem, "ending the attempt's span")

    def inject(self, call: CallSpan, attempt: AttemptSpan | None) -> dict[str, str]:
        """Return the headers for the trace context (and baggage), as the global propagator writes them.

        Minted ids are never injected: they would make every service behind drop its spans. A header that would spoil
        the request is left out.
        """
        headers: dict[str, str] = {}
        try:
            if attempt is None and call.traceparent is not None and (names := self._w3c_names()) is not None:
                # What they would write, for a tenth of what they cost
                return {"traceparent": call.traceparent} if call.traceparent and "traceparent" in names else headers
            propagate.inject(headers, context=call.otel if attempt is None else attempt.otel)
            for name, value in headers.items():
                if name not in _W3C_NAMES or len(value) > _HEADER_LIMIT or not value.isprintable():
                    return self._sendable(headers)
        except BaseException as error:  # noqa: BLE001 - an application's propagator
            self._guard.swallow(error, "injecting the trace context")
            return self._sendable(headers)
        return headers

    def _w3c_names(self) -> Collection[str] | None:
        """Return what the global propagator, which may be another one by now, may write; None if it is not the API's.

        The API's are its default and what it consists of.
        """
        propagator = propagate.get_global_textmap()
        if propagator is not self._propagator:
            parts: Iterable[object] = (propagator,)
            if type(propagator) is CompositePropagator:  # not a subclass, which may write what it likes
                parts = getattr(propagator, "_propagators", parts)
            kinds = {type(part) for part in parts}
            self._propagator, self._names = propagator, None
            if kinds <= _W3C_PROPAGATORS.keys():
                self._names = frozenset(name for kind in kinds for name in _W3C_PROPAGATORS[kind])
        return self._names

    def _sendable(self, headers: dict[str, str]) -> dict[str, str]:
        """Return those of a propagator's headers that leave the request what it is."""
        sendable = {name: value for name, value in headers.items() if _may_be_sent(name, value)}
        if len(sendable) < len(headers):
            left_out = [_shown(name) for name in headers if name not in sendable]
            error = ValueError(f"the global propagator sets headers that cannot be sent: {', '.join(left_out)}")
            self._guard.swallow(error, "injecting the trace context")
        return sendable

    def attempt_failed(self, call: CallSpan, attempt: Attempt, timestamp: int) -> None:
        """Put a failed attempt on the span as an event and count the resend that follows, if one does."""
        if attempt.wait is not None:
            self.counts.retries[attempt.reason] += 1
        if self.attempt_spans:
            return
        attributes: dict[str, AttributeValue] = {
            ATTEMPT_NUMBER: attempt.number,
            ATTEMPT_DURATION: attempt.duration,
            ATTEMPT_REASON: attempt.reason,
            ERROR_TYPE: attempt.error_type,
        }
        if attempt.status is not None:
            attributes[STATUS_CODE] = attempt.status
        if attempt.wait is not None:
            attributes[ATTEMPT_WAIT] = attempt.wait
        try:
            if call.span.is_recording():
                call.span.add_event(ATTEMPT_EVENT, attributes, timestamp)
        except BaseException as error:  # noqa: BLE001 - an application's span class
            self._guard.swallow(error, "adding an event")

    def end(
        self,
        call: CallSpan,
        record: CallRecord,
        *,
        end_time: int,
        error_type: str | None,
        resend_count: int,
        http_version: tuple[int, int] | None,
        queued: float,
    ) -> None:
        """End the call's span with everything known, and record its metrics.

        Args:
            call: What `start` returned.
            record: The call's ten fields.
            end_time: Unix time in nanoseconds: the start plus ``record.delta_t``.
            error_type: The value of ``error.type``; None if the call is no error (a success, or given up by its
                caller).
            resend_count: Requests sent after the first, for whatever reason.
            http_version: Major and minor HTTP version of the last response.
            queued: Seconds that the call waited for its turn before it started.
        """
        call.asked.active.calls -= 1
        self.counts.received[call.project] += record.response_size
        try:
            if call.token is not None:
                otel_context.detach(call.token)
            if call.span is not INVALID_SPAN:
                if call.span.is_recording():
                    attributes = field_attributes(record)
                    status, version = record.response_code, http_version
                    if self.attempt_spans:
                        status = version = None
                    attributes.update(_outcome(call.span, status, version, error_type, record.error))
                    if resend_count and not self.attempt_spans:
                        attributes[RESEND_COUNT] = resend_count
                    if queued:
                        attributes[QUEUE_DURATION] = queued
                    call.span.set_attributes(attributes)
                call.span.end(end_time)
        except BaseException as error:  # noqa: BLE001 - an application's processor, exporter or context
            self._guard.swallow(error, "ending the call's span")
        try:
            self._instruments.record(record, call.asked.host, call.project, error_type, call.otel)
        except BaseException as error:  # noqa: BLE001 - an application's view, reader or exemplar reservoir
            self._guard.swallow(error, "recording the metrics")


def _shown(name: object) -> str:
    return repr(str.__str__(name)) if isinstance(name, str) else type(name).__name__


def _may_be_sent(name: object, value: object) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, str)
        and _HEADER_NAME.fullmatch(name) is not None
        and name.lower() not in _NOT_A_PROPAGATORS
        and len(value) <= _HEADER_LIMIT
        and value.isprintable()
    )


def _outcome(
    span: Span, status: int | None, http_version: tuple[int, int] | None, error_type: str | None, error: str
) -> dict[str, AttributeValue]:
    """Set the span's status and return the attributes that say how it ended."""
    attributes: dict[str, AttributeValue] = {}
    if status is not None:
        attributes[STATUS_CODE] = status
    if http_version is not None:
        # To put it together is 0.2 % of a bare call's instructions, and nearly all are this one
        attributes[PROTOCOL_VERSION] = "1.1" if http_version == _HTTP_1_1 else f"{http_version[0]}.{http_version[1]}"
    if error_type is not None:
        attributes[ERROR_TYPE] = error_type
        span.set_status(error_status(error_type, error))
    return attributes


def _suppressed(around: Context) -> Context:
    """Return the context with what keeps other instrumentations out."""
    return otel_context.set_value(_SUPPRESS_HTTP, value=True, context=around)


def _call_id(own_id: str, given: SpanContext, around: Context) -> str:
    """Return the call_id of a span that is not recording: of minted ids where the API handed back the parent's.

    Args:
        own_id: What the call_id is of the context given.
        given: That context.
        around: Where the parent's span is.

    Raises:
        AttributeError: The parent has no span context.
        TypeError: An id is no integer.
    """
    parent = trace.get_current_span(around).get_span_context()
    return own_id if given.span_id != parent.span_id else _minted_id(parent)


def _minted_id(parent: SpanContext) -> str:
    minted = _fresh_id()
    return f"{parent.trace_id:032x}{minted[32:]}" if parent.is_valid else minted


def _fresh_id() -> str:
    return _ids.getrandbits(192).to_bytes(24, "big").hex("-", -16)  # a third of what it costs to format the number
