"""The names of all attributes and metrics, each with its type, its unit, when it is present and its source.

The code takes the names from here, and ``docs/reference/telemetry.md`` is generated from here (by ``python -m
support.reference``, in ``tests``). A test checks that nothing else is sent, and nothing with another type. This file
does not know OpenTelemetry.

Used by ``_replay`` and ``_telemetry``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

CONVENTIONS: Final = "semantic conventions 1.44, stable"
IN_DEVELOPMENT: Final = "semantic conventions 1.44, in development"
OURS: Final = "otel_connector"

FIELD_PREFIX: Final = "otel_connector."

METHOD: Final = "http.request.method"
RESEND_COUNT: Final = "http.request.resend_count"
STATUS_CODE: Final = "http.response.status_code"
PROTOCOL_VERSION: Final = "network.protocol.version"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
URL_FULL: Final = "url.full"
URL_TEMPLATE: Final = "url.template"
ERROR_TYPE: Final = "error.type"

PROJECT: Final = FIELD_PREFIX + "project"
SUCCESS: Final = FIELD_PREFIX + "success"
REASON: Final = FIELD_PREFIX + "reason"
RETRIED: Final = FIELD_PREFIX + "retried"
QUEUE_DURATION: Final = FIELD_PREFIX + "queue.duration"

CALL_NAME: Final = "GET"
CALL_WITH_ATTEMPT_SPANS_NAME: Final = FIELD_PREFIX + "get"
ATTEMPT_EVENT: Final = FIELD_PREFIX + "attempt"
ATTEMPT_NUMBER: Final = ATTEMPT_EVENT + ".number"
ATTEMPT_START: Final = ATTEMPT_EVENT + ".start"
ATTEMPT_DURATION: Final = ATTEMPT_EVENT + ".duration"
ATTEMPT_QUEUE: Final = ATTEMPT_EVENT + ".queue"
ATTEMPT_WAIT: Final = ATTEMPT_EVENT + ".wait"
ATTEMPT_RETRY_AFTER: Final = ATTEMPT_EVENT + ".retry_after"
ATTEMPT_REASON: Final = ATTEMPT_EVENT + ".reason"

RETRY_REASON: Final = FIELD_PREFIX + "retry.reason"
RETRY_WAIT: Final = FIELD_PREFIX + "retry.wait"
RETRY_QUEUE: Final = FIELD_PREFIX + "retry.queue"
REDIRECT_QUEUE: Final = FIELD_PREFIX + "redirect.queue"


class Attribute(NamedTuple):
    """An attribute of a span, an event or a metric.

    Attributes:
        name: The name.
        type: ``string``, ``int``, ``double`` or ``boolean``, as in OTLP.
        unit: The unit in UCUM; empty if it has none.
        when: When it is present.
        source: Which specification defines the name.
    """

    name: str
    type: str
    unit: str
    when: str
    source: str = OURS


class Metric(NamedTuple):
    """An instrument.

    Attributes:
        name: The name.
        kind: ``histogram``, ``counter`` or ``up-down counter``. The latter two are observable.
        unit: The unit in UCUM.
        description: What it counts or measures.
        labels: The names of its attributes.
        source: Which specification defines the name.
    """

    name: str
    kind: str
    unit: str
    description: str
    labels: tuple[str, ...] = ()
    source: str = OURS


_ERROR_TYPE = Attribute(
    ERROR_TYPE,
    "string",
    "",
    "the call failed and was not cancelled by its caller: the status, or the exception's qualified class name",
    CONVENTIONS,
)
_STATUS_CODE = Attribute(STATUS_CODE, "int", "", "there was a response", CONVENTIONS)

HTTP_ATTRIBUTES: Final = (
    Attribute(METHOD, "string", "", "always, from the start; GET", CONVENTIONS),
    Attribute(URL_FULL, "string", "", "always, from the start; redacted", CONVENTIONS),
    Attribute(SERVER_ADDRESS, "string", "", "the URL has a host; from the start", CONVENTIONS),
    Attribute(
        SERVER_PORT, "int", "", "the URL has a port, or its scheme has a default port; from the start", CONVENTIONS
    ),
    _STATUS_CODE,
    Attribute(PROTOCOL_VERSION, "string", "", "there was a response", CONVENTIONS),
    Attribute(RESEND_COUNT, "int", "", "more than one request was sent, for any reason", CONVENTIONS),
)
"""On the call's span; with ``attempt_spans=True`` on the attempts' spans instead."""

HEADER_ATTRIBUTES: Final = (
    Attribute(
        "http.request.header.<key>",
        "string[]",
        "",
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_REQUEST matches a header that was given; from the start",
        CONVENTIONS,
    ),
    Attribute(
        "http.response.header.<key>",
        "string[]",
        "",
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_RESPONSE matches a header of the last response",
        CONVENTIONS,
    ),
)
"""As `HTTP_ATTRIBUTES`. Contrib's functions make the names: in lower case, with ``_`` for ``-``."""

TEMPLATE_ATTRIBUTE: Final = Attribute(
    URL_TEMPLATE, "string", "", "`template` was given; from the start", IN_DEVELOPMENT
)
"""On the call's span; with ``attempt_spans=True`` on the attempts' spans as well."""

CALL_ATTRIBUTES: Final = (
    _ERROR_TYPE,
    Attribute(FIELD_PREFIX + "call_id", "string", "", "always"),
    Attribute(PROJECT, "string", "", "unless empty"),
    Attribute(FIELD_PREFIX + "t", "double", "s", "always"),
    Attribute(FIELD_PREFIX + "delta_t", "double", "s", "always"),
    Attribute(FIELD_PREFIX + "url", "string", "", "unless empty"),
    Attribute(FIELD_PREFIX + "redirect_url", "string", "", "the final URL differs"),
    Attribute(FIELD_PREFIX + "response_size", "int", "By", "always"),
    Attribute(FIELD_PREFIX + "response_code", "int", "", "there was a response"),
    Attribute(SUCCESS, "boolean", "", "always"),
    Attribute(FIELD_PREFIX + "error", "string", "", "the call did not succeed"),
    Attribute(
        QUEUE_DURATION, "double", "s", "the call waited for a permit: before it started, for a retry or a redirect"
    ),
)
"""On the call's span, set at its end: the ten fields, as in the log, and two more."""

RETRY_ATTRIBUTES: Final = (
    Attribute(RETRY_REASON, "string", "", "not the first attempt: why it was made, e.g. status_503"),
    Attribute(RETRY_WAIT, "double", "s", "not the first attempt: the wait before it, without queue"),
    Attribute(RETRY_QUEUE, "double", "s", "not the first attempt, and after the wait it waited for a permit"),
)
"""With ``attempt_spans=True``: on the span of an attempt; on the call's span if the retry was not made."""

ATTEMPT_SPAN_ATTRIBUTES: Final = (
    Attribute(ATTEMPT_NUMBER, "int", "", "always; from 1"),
    *RETRY_ATTRIBUTES,
    Attribute(REDIRECT_QUEUE, "double", "s", "its redirects waited for a permit, within the span"),
)
"""With ``attempt_spans=True``: what the span of an attempt has beside `HTTP_ATTRIBUTES`."""

EVENT_ATTRIBUTES: Final = (
    Attribute(ATTEMPT_NUMBER, "int", "", "always; from 1"),
    Attribute(ATTEMPT_START, "double", "s", "always; Unix time"),
    Attribute(ATTEMPT_DURATION, "double", "s", "always; without queue"),
    Attribute(ATTEMPT_REASON, "string", "", "always: the reason of the retry, or of the failure, e.g. status_503"),
    Attribute(ATTEMPT_QUEUE, "double", "s", "its redirects, or the next attempt after the wait, waited for a permit"),
    Attribute(ATTEMPT_WAIT, "double", "s", "another attempt follows, or was to follow; without queue"),
    Attribute(ATTEMPT_RETRY_AFTER, "double", "s", "the wait is that of the server's Retry-After"),
    _STATUS_CODE,
    Attribute(ERROR_TYPE, "string", "", "always: the status, or the exception's qualified class name", CONVENTIONS),
)
"""On the event of a failed attempt."""

LABELS: Final = (
    Attribute(METHOD, "string", "", "always; GET", CONVENTIONS),
    Attribute(SERVER_ADDRESS, "string", "", "the URL has a host; after 200 hosts _other", CONVENTIONS),
    Attribute(SERVER_PORT, "int", "", "the URL has a port and the host is not _other", CONVENTIONS),
    _STATUS_CODE,
    _ERROR_TYPE,
    Attribute(URL_TEMPLATE, "string", "", "`template` was given; after 100 templates _other", IN_DEVELOPMENT),
    Attribute(PROJECT, "string", "", "always; after 50 projects _other"),
    Attribute(SUCCESS, "boolean", "", "always"),
    Attribute(
        RETRIED,
        "boolean",
        "",
        "always: whether the call waited after a failed attempt, even if it ended before the next one; of an attempt "
        "(attempt_spans=True), whether one before it had failed",
    ),
    Attribute(
        REASON,
        "string",
        "",
        "always: the reason of the retry, e.g. status_503 or connection; of a wait also first_attempt and redirect",
    ),
)
"""On the metrics that list them."""

_REQUEST_LABELS = (METHOD, SERVER_ADDRESS, SERVER_PORT)
_DURATION_LABELS = (*_REQUEST_LABELS, STATUS_CODE, ERROR_TYPE, URL_TEMPLATE, PROJECT, SUCCESS, RETRIED)
_WAIT_LABELS = (SERVER_ADDRESS, SERVER_PORT, PROJECT, REASON)

DURATION: Final = Metric(
    "http.client.request.duration",
    "histogram",
    "s",
    "Duration of HTTP client requests.",
    _DURATION_LABELS,
    CONVENTIONS,
)
CALL_DURATION: Final = Metric(
    "otel_connector.call.duration",
    "histogram",
    "s",
    "Duration of calls, with all attempts and waits. Only with attempt_spans=True.",
    _DURATION_LABELS,
)
ACTIVE: Final = Metric(
    "http.client.active_requests",
    "up-down counter",
    "{request}",
    "Number of active HTTP requests.",
    _REQUEST_LABELS,
    IN_DEVELOPMENT,
)
RECEIVED: Final = Metric(
    "otel_connector.received", "counter", "By", "Bytes of body read, after content decoding.", (PROJECT,)
)
RETRIES: Final = Metric(
    "otel_connector.retries", "counter", "{retry}", "Attempts after the first of a call.", _WAIT_LABELS
)
RETRY_DELAY: Final = Metric(
    "otel_connector.retry.delay",
    "counter",
    "s",
    "Time that calls waited after failed attempts, even if they ended before the next one.",
    _WAIT_LABELS,
)
PAUSED: Final = Metric(
    "otel_connector.host.paused", "up-down counter", "{host}", "Hosts that are paused at their request."
)
QUEUE_TIME: Final = Metric(
    "otel_connector.queue.time",
    "counter",
    "s",
    "Time that calls waited for a permit: for a connection of the pool, a limiter, or the end of a host's pause.",
    _WAIT_LABELS,
)
ROWS_WRITTEN: Final = Metric("otel_connector.rows.written", "counter", "{row}", "Rows written to the log.")
ROWS_WAITING: Final = Metric(
    "otel_connector.rows.waiting", "up-down counter", "{row}", "Rows in memory that are not written yet."
)
ROWS_LOST: Final = Metric("otel_connector.rows.lost", "counter", "{row}", "Rows that were lost.")

METRICS: Final = (
    *(DURATION, CALL_DURATION, ACTIVE, RECEIVED, RETRIES, RETRY_DELAY, QUEUE_TIME, PAUSED),
    *(ROWS_WRITTEN, ROWS_WAITING, ROWS_LOST),
)
