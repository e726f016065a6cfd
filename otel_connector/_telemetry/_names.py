"""What a call's telemetry consists of: each name with its type, its unit, when it is there and whose it is.

The code takes its names from here, and the README's reference is made of it (``python -m support.reference``, in
``tests``). A test holds that nothing else leaves a call, and nothing in another type. Knows no OpenTelemetry.
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
ERROR_TYPE: Final = "error.type"

PROJECT: Final = FIELD_PREFIX + "project"
SUCCESS: Final = FIELD_PREFIX + "success"
REASON: Final = FIELD_PREFIX + "reason"
QUEUE_DURATION: Final = FIELD_PREFIX + "queue.duration"

CALL_NAME: Final = "GET"
CALL_WITH_ATTEMPT_SPANS_NAME: Final = FIELD_PREFIX + "get"
ATTEMPT_EVENT: Final = FIELD_PREFIX + "attempt"
ATTEMPT_NUMBER: Final = ATTEMPT_EVENT + ".number"
ATTEMPT_DURATION: Final = ATTEMPT_EVENT + ".duration"
ATTEMPT_WAIT: Final = ATTEMPT_EVENT + ".wait"
ATTEMPT_REASON: Final = ATTEMPT_EVENT + ".reason"


class Attribute(NamedTuple):
    """An attribute of a span, an event or a metric.

    Attributes:
        name: As it is sent.
        type: ``string``, ``int``, ``double`` or ``boolean``, as OTLP has them.
        unit: In UCUM's terms; empty for what has none.
        when: When it is there.
        source: Whose name it is.
    """

    name: str
    type: str
    unit: str
    when: str
    source: str


class Metric(NamedTuple):
    """An instrument.

    Attributes:
        name: As it is sent.
        kind: ``histogram``, ``counter`` or ``up-down counter``; the latter two are observable.
        unit: In UCUM's terms.
        description: What it counts or measures.
        labels: The names of its attributes.
        source: Whose name it is.
    """

    name: str
    kind: str
    unit: str
    description: str
    labels: tuple[str, ...]
    source: str


_ERROR_TYPE = Attribute(
    ERROR_TYPE,
    "string",
    "",
    "it failed, and not because its caller cancelled it: the status, or the exception's qualified class name",
    CONVENTIONS,
)
_STATUS_CODE = Attribute(STATUS_CODE, "int", "", "an answer came", CONVENTIONS)

HTTP_ATTRIBUTES: Final = (
    Attribute(METHOD, "string", "", "always, from the start; GET", CONVENTIONS),
    Attribute(URL_FULL, "string", "", "always, from the start; redacted", CONVENTIONS),
    Attribute(SERVER_ADDRESS, "string", "", "the URL has a host; from the start", CONVENTIONS),
    Attribute(SERVER_PORT, "int", "", "the URL has a port, its scheme's own included; from the start", CONVENTIONS),
    _STATUS_CODE,
    Attribute(PROTOCOL_VERSION, "string", "", "an answer came", CONVENTIONS),
    Attribute(RESEND_COUNT, "int", "", "more than one request was sent, for whatever reason", CONVENTIONS),
)
"""On the call's span; with ``attempt_spans=True`` on the attempts' spans instead."""

CALL_ATTRIBUTES: Final = (
    _ERROR_TYPE,
    Attribute(FIELD_PREFIX + "call_id", "string", "", "always", OURS),
    Attribute(PROJECT, "string", "", "unless empty", OURS),
    Attribute(FIELD_PREFIX + "t", "double", "s", "always", OURS),
    Attribute(FIELD_PREFIX + "delta_t", "double", "s", "always", OURS),
    Attribute(FIELD_PREFIX + "url", "string", "", "unless empty", OURS),
    Attribute(FIELD_PREFIX + "redirect_url", "string", "", "redirects led elsewhere", OURS),
    Attribute(FIELD_PREFIX + "response_size", "int", "By", "always", OURS),
    Attribute(FIELD_PREFIX + "response_code", "int", "", "an answer came", OURS),
    Attribute(SUCCESS, "boolean", "", "always", OURS),
    Attribute(FIELD_PREFIX + "error", "string", "", "it did not succeed", OURS),
    Attribute(QUEUE_DURATION, "double", "s", "it waited for its turn before it started", OURS),
)
"""On the call's span, set when it ends: the ten fields, as in the log, and what else is known then."""

EVENT_ATTRIBUTES: Final = (
    Attribute(ATTEMPT_NUMBER, "int", "", "always; from 1", OURS),
    Attribute(ATTEMPT_DURATION, "double", "s", "always", OURS),
    Attribute(ATTEMPT_REASON, "string", "", "always: why it was tried again or given up, e.g. status_503", OURS),
    Attribute(ATTEMPT_WAIT, "double", "s", "another attempt follows", OURS),
    _STATUS_CODE,
    Attribute(ERROR_TYPE, "string", "", "always: the status, or the exception's qualified class name", CONVENTIONS),
)
"""On the event of an attempt that failed."""

LABELS: Final = (
    Attribute(METHOD, "string", "", "always; GET", CONVENTIONS),
    Attribute(SERVER_ADDRESS, "string", "", "the URL has a host; beyond 200 hosts _other", CONVENTIONS),
    Attribute(SERVER_PORT, "int", "", "the host has one and is not _other", CONVENTIONS),
    _STATUS_CODE,
    _ERROR_TYPE,
    Attribute(PROJECT, "string", "", "always; beyond 50 projects _other", OURS),
    Attribute(SUCCESS, "boolean", "", "always", OURS),
    Attribute(REASON, "string", "", "always: why it was tried again, e.g. status_503 or connection", OURS),
)
"""On the metrics that name them."""

DURATION: Final = Metric(
    "http.client.request.duration",
    "histogram",
    "s",
    "Duration of HTTP client requests.",
    (METHOD, SERVER_ADDRESS, SERVER_PORT, STATUS_CODE, ERROR_TYPE, PROJECT, SUCCESS),
    CONVENTIONS,
)
ACTIVE: Final = Metric(
    "http.client.active_requests",
    "up-down counter",
    "{request}",
    "Number of active HTTP requests.",
    (METHOD, SERVER_ADDRESS, SERVER_PORT),
    IN_DEVELOPMENT,
)
RECEIVED: Final = Metric(
    "otel_connector.received", "counter", "By", "Bytes of body read, after content decoding.", (PROJECT,), OURS
)
RETRIES: Final = Metric(
    "otel_connector.retries", "counter", "{retry}", "Attempts after the first of a call.", (REASON,), OURS
)
PAUSED: Final = Metric(
    "otel_connector.host.paused",
    "up-down counter",
    "{host}",
    "Hosts that asked for a pause which has not ended.",
    (),
    OURS,
)
QUEUE_TIME: Final = Metric(
    "otel_connector.queue.time",
    "counter",
    "s",
    "Time that calls waited for their turn: for a connection of the pool, a limiter, a host's pause.",
    (),
    OURS,
)
ROWS_WRITTEN: Final = Metric("otel_connector.rows.written", "counter", "{row}", "Rows in the log.", (), OURS)
ROWS_WAITING: Final = Metric(
    "otel_connector.rows.waiting", "up-down counter", "{row}", "Rows the disk refused so far.", (), OURS
)
ROWS_LOST: Final = Metric("otel_connector.rows.lost", "counter", "{row}", "Rows that never got there.", (), OURS)

METRICS: Final = (
    DURATION,
    ACTIVE,
    RECEIVED,
    RETRIES,
    PAUSED,
    QUEUE_TIME,
    ROWS_WRITTEN,
    ROWS_WAITING,
    ROWS_LOST,
)
