"""What a call passes on: trace headers to the server, and "do not instrument" to other libraries in this process.

The headers are those of the global propagator, which belongs to the application: what it raises goes to the
`TelemetryGuard`, and a header that would change or break the request is omitted. This file does not know spans or how a
request is sent.

Used by ``_call._exchange``, ``_telemetry._call_span`` and ``_telemetry._spans``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel_context
from opentelemetry import propagate
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_connector._arguments import TOKEN

if TYPE_CHECKING:
    from contextvars import Token

    from otel_connector._guard import TelemetryGuard

# opentelemetry-python-contrib checks this context key before it creates a span. The key has no public name. If it is
# renamed, the fallback has no effect; a test compares the name with the installed version
_SUPPRESS_HTTP: Final[str] = getattr(
    otel_context, "_SUPPRESS_HTTP_INSTRUMENTATION_KEY", "suppress_http_instrumentation"
)

_W3C_PROPAGATORS: frozenset[type] = frozenset({TraceContextTextMapPropagator, W3CBaggagePropagator})

# The propagator that the environment sets (OTEL_PROPAGATORS), if it is the API's default
_environment = propagate.get_global_textmap()
_W3C_DEFAULT = (
    _environment
    if type(_environment) is CompositePropagator
    and frozenset(map(type, getattr(_environment, "_propagators", ()))) == _W3C_PROPAGATORS
    else None
)

_REQUEST_HEADERS = frozenset({"connection", "content-length", "expect", "host", "te", "transfer-encoding", "upgrade"})
"""Headers that determine where a request goes or where it ends. A propagator must not set them."""
_HEADER_LIMIT = 8_192  # characters of a value: the minimum that W3C Baggage requires, and the maximum of most servers


# The keys of the API's `suppress_instrumentation`, of its older form, and of contrib's `suppress_http_instrumentation`
_SUPPRESSING: Final = (
    getattr(otel_context, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation"),
    "suppress_instrumentation",
    _SUPPRESS_HTTP,
)


def is_suppressed(context: Context) -> bool:
    """Return whether no instrumentation may create a span for a request in this context."""
    return any(map(context.get, _SUPPRESSING))


class Scope:
    """The contexts of one attempt: that of its request, and that of all other code which runs during the attempt.

    Args:
        context: The context with the span of the call, or of the attempt.
        guard: Receives the exceptions of the application's implementation of contexts.
    """

    __slots__ = ("_context", "_guard", "_request_context")

    def __init__(self, context: Context, guard: TelemetryGuard) -> None:
        self._context, self._guard = context, guard
        self._request_context = Context({**context, _SUPPRESS_HTTP: True})

    def enter(self, *, other: bool = False) -> Token[Context] | None:
        """Enter the context of the request, in which no other instrumentation creates a span. `leave` takes the token.

        Args:
            other: Enter the context of other code instead, such as a middleware, within a request.
        """
        try:
            return otel_context.attach(self._context if other else self._request_context)
        except BaseException as error:  # noqa: BLE001 - of the application
            self._guard.swallow(error, "entering a context")
            return None

    def leave(self, token: Token[Context] | None) -> None:
        """Return to the context before."""
        try:
            if token is not None:
                otel_context.detach(token)
        except BaseException as error:  # noqa: BLE001 - as above
            self._guard.swallow(error, "leaving a context")


def headers_for(context: Context, traceparent: str | None, guard: TelemetryGuard) -> dict[str, str]:
    """Return the headers that the global propagator writes for a context.

    Args:
        context: The context, with the span.
        traceparent: The value of the only header that the W3C propagators would write; ``""`` if they would write none;
            None if this is not known.
        guard: Receives the exceptions of the propagator.
    """
    headers: dict[str, str] = {}
    try:  # no `guarded`: it would cost 1 % more instructions of a bare call
        # The application may replace the propagator at any time
        if traceparent is not None and propagate.get_global_textmap() is _W3C_DEFAULT:
            # Calling the propagators would give the same headers, and take 5 % of the time of a call
            return {"traceparent": traceparent} if traceparent else headers
        propagate.inject(headers, context=context)
    except BaseException as error:  # noqa: BLE001 - a propagator of the application
        guard.swallow(error, "injecting the trace context")
    return _valid(headers, guard)


def _valid(headers: dict[Any, Any], guard: TelemetryGuard) -> dict[str, str]:
    """Return the headers that can be sent, and report the others. A propagator may set names and values of any type."""
    valid = {name: value for name, value in headers.items() if _can_be_sent(name, value)}
    if len(valid) < len(headers):
        # `str.__str__`: a subclass may have a `__repr__` that raises
        omitted = [
            repr(str.__str__(name)) if isinstance(name, str) else type(name).__name__
            for name in headers
            if name not in valid
        ]
        error = ValueError(f"the global propagator sets headers that cannot be sent: {', '.join(omitted)}")
        guard.swallow(error, "injecting the trace context")
    return valid


def _can_be_sent(name: object, value: object) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, str)
        and TOKEN.fullmatch(name) is not None
        and name.lower() not in _REQUEST_HEADERS
        and len(value) <= _HEADER_LIMIT
        and value.isprintable()
    )
