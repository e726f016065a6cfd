"""One call as one span, through the OpenTelemetry API alone.

Starts and ends the span of a call, adds failed attempts as span events, and records the metrics of the call. Telemetry
never breaks a call: exceptions of a processor, sampler, id generator or propagator go to the `TelemetryGuard`, and the
call continues. A processor that blocks also blocks the event loop, because the API calls it there. This file does not
know the SDK or aiohttp.

Source: OpenTelemetry semantic conventions 1.44, "HTTP client span", the form with one span for the top-most operation.

Used by ``_call._settings`` and ``_connector``.
"""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.baggage import get_all as get_baggage
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, SpanKind

from otel_connector._after_fork import start_over_in_child
from otel_connector._guard import TelemetryGuard
from otel_connector._telemetry import _names
from otel_connector._telemetry._attributes import (
    error_status,
    event_attributes,
    field_attributes,
    http_attributes,
    outcome_attributes,
    retry_attributes,
)
from otel_connector._telemetry._call_ids import call_id_of, new_call_id
from otel_connector._telemetry._call_span import AttemptSpan, CallSpan, UrlTelemetry
from otel_connector._telemetry._contrib_settings import contrib_settings
from otel_connector._telemetry._metrics import (
    SCHEMA_URL,
    SCOPE,
    CallCounts,
    CountedLog,
    Host,
    PausedHosts,
    given_provider,
    instruments_of,
    provider_in_force,
)
from otel_connector._telemetry._propagation import Scope, headers_for, is_suppressed
from otel_connector._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from multidict import MultiMapping
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider
    from opentelemetry.util.types import AttributeValue

    from otel_connector._record import AttemptRecord, CallRecord, Retry


GivenHeaders: TypeAlias = "tuple[MultiMapping[str], MultiMapping[str] | None]"

_EMPTY = Context()


class CallTelemetry:
    """Spans and metrics of one connector.

    The metrics belong to the meter provider that is in force, in this process: at each call it is compared with that of
    the call before. So a provider that is set later, or instead of another one, has the calls from then on.

    If a provider raises, the connector runs without it and does not fall back to the global one: the operator may set
    that up later, and it would then report some of the calls.

    Args:
        tracer_provider: Provides the tracer. Default: the global provider, even if it is set later.
        meter_provider: Provides the meter. Default: the global provider, even if it is set later.
        log: The log whose rows the metrics count; None if there is none.
        paused_hosts: Knows the paused hosts, for the metrics.
        monotonic_ns: The clock that limits how often broken telemetry is logged.
        attempt_spans: Make the call's span INTERNAL, with a CLIENT span below it for each attempt: the other form that
            the conventions allow. The call's span then has no HTTP attributes, and attempts are not events.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        *,
        log: CountedLog | None = None,
        paused_hosts: PausedHosts | None = None,
        monotonic_ns: Callable[[], int] = time.perf_counter_ns,
        attempt_spans: bool = False,
    ) -> None:
        self._guard = TelemetryGuard(monotonic_ns)
        self._untraced = Scope(_EMPTY, self._guard)
        self._uncounted = CallCounts()  # of calls for which instrumentation is suppressed
        self.contrib = contrib_settings(self._guard)
        self._tracer: Tracer = trace.NoOpTracer()
        with self._guard.guarded("getting a tracer"):
            self._tracer = trace.get_tracer(SCOPE, __version__, tracer_provider, SCHEMA_URL)
        self._meter_provider, self._log, self._paused_hosts = given_provider(meter_provider), log, paused_hosts
        self._provider_in_use: MeterProvider | None = None
        self._instruments = instruments_of(None, self._guard)
        self.counts = CallCounts()
        with self._guard.guarded("looking up the meter provider"):
            metrics.get_meter_provider()  # creates the one that the environment names
        self._lock = threading.Lock()
        self._use(provider_in_force(self._meter_provider))
        self.attempt_spans = attempt_spans
        self._is_proxy = isinstance(self._tracer, trace.ProxyTracer)
        start_over_in_child(self)

    def start_over(self) -> None:
        """Count from zero, in the child of a fork. A connector that is not used there reports nothing."""
        self._provider_in_use, self._instruments = None, instruments_of(None, self._guard)
        self.counts = CallCounts()
        self._lock = threading.Lock()

    def _use(self, provider: MeterProvider | None) -> None:
        """Report to this meter provider from now on; what was counted so far stays with the one before."""
        with self._lock:  # threads with event loops of their own may share the connector
            if provider is self._provider_in_use:
                return
            self._instruments.retire(self.counts)
            self.counts = CallCounts()
            self._instruments = instruments_of(provider, self._guard)
            self._provider_in_use = provider
            self._instruments.add(self.counts, self._log, self._paused_hosts)
            weakref.finalize(self, self._instruments.retire, self.counts).atexit = False

    def for_url(self, url: str, host: str | None, port: int | None, *, excluded: bool = False) -> UrlTelemetry:
        """Return what `start` needs for a URL. It can be kept for further calls.

        Args:
            url: The requested URL, redacted.
            host: Its host, None if it has none.
            port: Its port.
            excluded: Whether its calls have no telemetry.
        """
        return UrlTelemetry(http_attributes(url, host, port), self.host(host, port), excluded=excluded)

    def for_call(self, url_telemetry: UrlTelemetry, template: str, headers: GivenHeaders | None) -> UrlTelemetry:
        """Return what `start` needs for a call with a template, or if headers are captured.

        Args:
            url_telemetry: What `for_url` returned.
            template: Such as ``/items/{id}``; empty for none.
            headers: Those of the session, and those of the call; None if they are not known.
        """
        http = url_telemetry.http.copy()
        if self.contrib is not None and headers is not None:
            http |= self.contrib.request_headers(*headers)
        if not template:
            return replace(url_telemetry, http=http)
        http[_names.URL_TEMPLATE] = template
        name, label = f"{_names.CALL_NAME} {template}", self._instruments.template(template)
        return replace(url_telemetry, http=http, name=name, template=label)

    def start(self, url_telemetry: UrlTelemetry, project: str, start_time: int) -> CallSpan:
        """Start the call's span and make it the current span until `end`.

        Args:
            url_telemetry: What `for_url` or `for_call` returned.
            project: The call's project.
            start_time: Unix time in nanoseconds.
        """
        provider = provider_in_force(self._meter_provider)
        if provider is not self._provider_in_use:
            self._use(provider)
        label = self._instruments.project(project)
        try:  # no `guarded` here and in `end`: together they would cost 2 % more instructions of a bare call
            call = self._start(url_telemetry, label, start_time)
            if call.scope is not self._untraced:
                call.token = otel_context.attach(call.context)
        except BaseException as error:  # noqa: BLE001 - a sampler, processor, id generator or context of the application
            self._guard.swallow(error, "starting the call's span")
            return self._start_without_span(url_telemetry, project)
        call.counts.active[url_telemetry.host] += 1
        return call

    def without_span(self, url_telemetry: UrlTelemetry, project: str) -> CallSpan:
        """Return what a call has if `start` raised, because a component ends the program."""
        self.counts.active[url_telemetry.host] += 1
        label = self._instruments.project(project)
        return self._without_span(url_telemetry, label, new_call_id(), None)

    def _without_span(self, url_telemetry: UrlTelemetry, label: str, call_id: str, traceparent: str | None) -> CallSpan:
        scope = self._untraced
        return CallSpan(url_telemetry, label, call_id, INVALID_SPAN, _EMPTY, scope, traceparent, self.counts)

    def _start(self, url_telemetry: UrlTelemetry, label: str, start_time: int) -> CallSpan:
        current = otel_context.get_current()
        if url_telemetry.excluded or (current and is_suppressed(current)):
            call_id = new_call_id(trace.get_current_span(current).get_span_context())
            call = self._without_span(url_telemetry, label, call_id, "")
            call.silent, call.counts = True, self._uncounted
            call.context, call.scope = current, Scope(current, self._guard)
            return call
        if not current and self._is_proxy and getattr(trace, "_TRACER_PROVIDER", self) is None:
            # No SDK is set: the API would return the invalid span. Skipping it saves 4 % of the instructions of a call
            return self._without_span(url_telemetry, label, new_call_id(), "")
        caller = trace.get_current_span(current).get_span_context() if current else None
        name, kind, attributes = url_telemetry.name, SpanKind.CLIENT, url_telemetry.http.copy()
        if self.attempt_spans:
            name, kind = _names.CALL_WITH_ATTEMPT_SPANS_NAME, SpanKind.INTERNAL
            attributes = {key: attributes[key] for key in (_names.URL_TEMPLATE,) if key in attributes}
        span = self._tracer.start_span(name, kind=kind, attributes=attributes, start_time=start_time)
        own, recording = span.get_span_context(), span.is_recording()
        # A span of another class than the API's may start to record later
        recorded = recording or type(span) is not trace.NonRecordingSpan
        if not own.is_valid:  # not put into the context: it would hide the caller's span from the propagator
            call = self._without_span(url_telemetry, label, new_call_id(caller), None if current else "")
            call.span, call.recorded = span, recorded
            if current:
                call.context, call.scope = current, Scope(current, self._guard)
            return call
        call_id = own_id = call_id_of(own)
        if not recording and caller is not None and own.span_id == caller.span_id:
            call_id = new_call_id(caller)  # without an SDK the API returns the caller's span
        context = trace.set_span_in_context(span, current)
        scope = Scope(context, self._guard)
        known = not own.trace_state and not (current and get_baggage(current))
        traceparent = f"00-{own_id}-{own.trace_flags:02x}" if known else None
        call = CallSpan(url_telemetry, label, call_id, span, context, scope, traceparent, self.counts)
        call.recorded = recorded
        return call

    def _start_without_span(self, url_telemetry: UrlTelemetry, project: str) -> CallSpan:
        """Return what a call has if its span cannot be started: the caller's span, unless that is broken, too."""
        call = self.without_span(url_telemetry, project)
        call.recorded = True
        with self._guard.guarded("looking for the caller's span"):
            current = otel_context.get_current()
            parent = trace.get_current_span(current).get_span_context()
            call.call_id, call.span = new_call_id(parent), trace.NonRecordingSpan(parent)
            call.context, call.scope = current, Scope(current, self._guard)
            call.token = otel_context.attach(call.context)
        return call

    def start_attempt(
        self, call: CallSpan, resend_count: int, start_time: int, retry: Retry | None = None
    ) -> AttemptSpan | None:
        """Start the span of an attempt below the call's span and make it the current span; None if that fails.

        Args:
            call: The call's span.
            resend_count: Requests that the call has sent before.
            start_time: Unix time in nanoseconds.
            retry: Why it is made, and the waits before it; None for the first attempt.
        """
        if call.silent:
            return None
        attributes = call.url_telemetry.http | retry_attributes(retry)
        if resend_count:
            attributes[_names.RESEND_COUNT] = resend_count
        with self._guard.guarded("starting the attempt's span"):
            name, kind = call.url_telemetry.name, SpanKind.CLIENT
            span = self._tracer.start_span(name, kind=kind, attributes=attributes, start_time=start_time)
            context = trace.set_span_in_context(span)
            scope = Scope(context, self._guard)
            return AttemptSpan(span, start_time, context, scope, otel_context.attach(context))
        return None

    def end_attempt(
        self,
        call: CallSpan,
        attempt: AttemptSpan,
        *,
        end_time: int,
        number: int,
        status: int | None,
        http_version: tuple[int, int] | None,
        error_type: str | None,
        error: str,
        retried: bool,
        redirect_queue: float,
        resend_count: int = 0,
        headers: MultiMapping[str] | None = None,
    ) -> None:
        """End the span of an attempt, and record its duration.

        Args:
            call: The call's span.
            attempt: What `start_attempt` returned.
            end_time: Unix time in nanoseconds.
            number: Its number, from 1.
            status: The HTTP status of its last response.
            http_version: Major and minor HTTP version of its last response.
            error_type: The value of ``error.type``; None if the attempt is not an error.
            error: ``ClassName: message``, for the status of the span; empty if the attempt succeeded.
            retried: Whether there was an attempt before.
            redirect_queue: Seconds that its redirects waited for a permit.
            resend_count: The resend count of its last request, if it sent more than one (a redirect, or a resend of
                aiohttp); otherwise 0.
            headers: Those of its last response; None if it had none.
        """
        with self._guard.guarded("ending the attempt's span"):
            otel_context.detach(attempt.token)
            if attempt.span.is_recording():
                attributes = self.contrib.response_headers(headers) if self.contrib and headers else {}
                attributes |= outcome_attributes(status, error_type, http_version, resend_count)
                attributes[_names.ATTEMPT_NUMBER] = number
                if redirect_queue:
                    attributes[_names.REDIRECT_QUEUE] = round(redirect_queue, 6)
                attempt.span.set_attributes(attributes)
                if error_type is not None:
                    attempt.span.set_status(error_status(error_type, error))
            attempt.span.end(end_time)
        if (instruments := call.counts.instruments) is None:
            return
        with self._guard.guarded("recording the metrics"):
            instruments.record(
                (end_time - attempt.start_time) / 1e9,
                call.url_telemetry.host,
                call.project,
                call.url_telemetry.template,
                attempt.context,
                status=status,
                error_type=error_type,
                success=not error,
                retried=retried,
            )

    def inject(self, call: CallSpan, attempt: AttemptSpan | None) -> dict[str, str]:
        """Return the headers with the trace context and the baggage, as the global propagator writes them.

        Generated ids are never injected: their trace is not sampled, so the called services would drop their spans.
        """
        if call.silent:
            return {}
        if attempt is None:
            return headers_for(call.context, call.traceparent, self._guard)
        return headers_for(attempt.context, None, self._guard)

    def _add_events(self, call: CallSpan, failures: Sequence[tuple[AttemptRecord, int]]) -> None:
        for attempt, ended in () if self.attempt_spans else failures:
            with self._guard.guarded("adding an event"):
                call.span.add_event(_names.ATTEMPT_EVENT, event_attributes(attempt), ended)

    def waited(
        self, call: CallSpan, attempt: AttemptRecord, host: Host | None, *, again: bool, unmade: Retry | None = None
    ) -> None:
        """Count the wait after an attempt, if there was one, and the attempt that follows.

        Args:
            call: The call's span.
            attempt: The attempt.
            host: The host labels of the server that caused the wait; None for that of the URL.
            again: Whether another one follows. If not, the call has ended.
            unmade: The retry for which the call waited when it ended. No attempt has a span for this time.
        """
        if unmade is not None and self.attempt_spans:
            with self._guard.guarded("setting the attributes of a retry"):
                call.span.set_attributes(retry_attributes(unmade))
        key = host or call.url_telemetry.host, call.project, attempt.reason
        if attempt.wait is not None:
            call.counts.delays[key] += attempt.wait
            call.counts.retries[key] += again

    def queued(self, call: CallSpan, reason: str, seconds: float, host: Host | None = None) -> None:
        """Count the time that an attempt waited for its permit.

        Args:
            call: The call's span.
            reason: Of the retry; or ``first_attempt`` or ``redirect``.
            seconds: The time.
            host: The host labels of the server for which it waited. Default: that of the URL.
        """
        call.counts.queued[host or call.url_telemetry.host, call.project, reason] += seconds

    def host(self, host: str | None, port: int | None) -> Host:
        """Return the host labels of a server, limited in number."""
        return self._instruments.host(host or "", port)

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
        retried: bool,
        headers: MultiMapping[str] | None = None,
        failures: Sequence[tuple[AttemptRecord, int]] = (),
    ) -> None:
        """End the call's span with all attributes and its events, and record its metrics.

        Args:
            call: What `start` returned.
            record: The call's ten fields.
            end_time: Unix time in nanoseconds: the start plus ``record.delta_t``.
            error_type: The value of ``error.type``; None if the call is not an error (it succeeded, or the caller
                cancelled it).
            resend_count: Requests sent after the first, for any reason.
            http_version: Major and minor HTTP version of the last response.
            queued: Seconds that the call waited for a permit before it started.
            retried: Whether it has waited after a failed attempt.
            headers: Those of the last response; None if there was none.
            failures: The failed attempts, each with its end in Unix nanoseconds; each becomes an event, unless
                attempts have spans.
        """
        instruments = call.counts.instruments  # those with which the call has started
        call.counts.received[call.project] += record.response_size
        call.counts.active[call.url_telemetry.host] -= 1  # the last change: these counters may be retired
        try:
            if call.token is not None:
                otel_context.detach(call.token)
            if call.span is not INVALID_SPAN:
                if call.span.is_recording():
                    attributes: dict[str, AttributeValue] = {_names.QUEUE_DURATION: round(queued, 6)} if queued else {}
                    if self.attempt_spans:
                        attributes |= outcome_attributes(None, error_type)
                    else:  # headers first: the SDK drops the oldest attributes above its limit
                        attributes |= self.contrib.response_headers(headers) if self.contrib and headers else {}
                        attributes |= outcome_attributes(record.response_code, error_type, http_version, resend_count)
                    attributes |= field_attributes(record)
                    call.span.set_attributes(attributes)
                    if failures:
                        self._add_events(call, failures)
                    if error_type is not None:
                        call.span.set_status(error_status(error_type, record.error))
                call.span.end(end_time)
        except BaseException as error:  # noqa: BLE001 - a processor, exporter or context of the application
            self._guard.swallow(error, "ending the call's span")
        if call.silent or instruments is None:
            return
        try:
            instruments.record(
                record.delta_t,
                call.url_telemetry.host,
                call.project,
                call.url_telemetry.template,
                call.context,
                status=record.response_code,
                error_type=error_type,
                success=record.success,
                retried=retried,
                with_attempts=self.attempt_spans,
            )
        except BaseException as error:  # noqa: BLE001 - a view, reader or exemplar reservoir of the application
            self._guard.swallow(error, "recording the metrics")
