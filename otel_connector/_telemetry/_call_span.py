"""What is known about the span of a call and the spans of its attempts while they are in progress.

This file does not know when a span starts or ends.

Used by ``_call._call``, ``_call._settings`` and ``_telemetry._spans``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from otel_connector._telemetry import _names

if TYPE_CHECKING:
    from contextvars import Token

    from opentelemetry.context import Context
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

    from otel_connector._telemetry._metrics import CallCounts, Host
    from otel_connector._telemetry._propagation import Scope


@dataclass(slots=True, eq=False)
class UrlTelemetry:
    """What the spans and metrics of all calls for one URL have in common; and what a call adds to it.

    Attributes:
        http: The attributes that an HTTP span starts with. Pass a copy: a sampler may change it.
        host: The host labels of the metrics, limited in number.
        name: The name of an HTTP span.
        template: The label ``url.template`` of the metrics, limited in number; empty for none.
        excluded: Whether there is no telemetry of its calls, by a setting of contrib.
    """

    http: dict[str, AttributeValue]
    host: Host
    name: str = _names.CALL_NAME
    template: str = ""
    excluded: bool = False


@dataclass(slots=True, eq=False)
class CallSpan:
    """The span of one call, while the call is in flight.

    Attributes:
        url_telemetry: The data of its URL.
        project: The project label of the metrics, limited in number.
        call_id: The ids of the span, or generated ids if the span has none of its own.
        span: The span.
        context: The context that contains the span.
        scope: The contexts of its attempts, unless these have spans of their own.
        traceparent: All that the W3C propagators would write, ``""`` for nothing. None if the propagators must be
            called, because there may be baggage or another vendor's ``tracestate``.
        counts: The counters that count the call as active.
        silent: Whether instrumentation is suppressed, or the URL excluded: no span, no metric and no header.
        recorded: False if the span is not recorded, so that no exporter receives it.
        token: Detaches the context; None if it is not attached.
    """

    url_telemetry: UrlTelemetry
    project: str
    call_id: str
    span: Span
    context: Context
    scope: Scope
    traceparent: str | None
    counts: CallCounts
    silent: bool = False
    recorded: bool = False
    token: Token[Context] | None = None


@dataclass(slots=True, eq=False)
class AttemptSpan:
    """The span of one attempt, with ``attempt_spans=True``.

    Attributes:
        span: The span.
        start_time: Unix time in nanoseconds.
        context: The context that contains the span.
        scope: The contexts of the attempt.
        token: Detaches the context.
    """

    span: Span
    start_time: int
    context: Context
    scope: Scope
    token: Token[Context]
