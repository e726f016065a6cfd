"""Convert a call's values to the attributes and the status of its span.

Source: OpenTelemetry semantic conventions 1.44, "HTTP client span". This file does not know when a span starts or ends,
or how it is exported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.trace import Status, StatusCode

from otel_connector._record import COLUMNS
from otel_connector._telemetry._names import (
    ATTEMPT_DURATION,
    ATTEMPT_NUMBER,
    ATTEMPT_REASON,
    ATTEMPT_WAIT,
    ERROR_TYPE,
    FIELD_PREFIX,
    METHOD,
    PROTOCOL_VERSION,
    SERVER_ADDRESS,
    SERVER_PORT,
    STATUS_CODE,
    URL_FULL,
)

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

    from otel_connector._record import Attempt, CallRecord

FIELD_NAMES = tuple(FIELD_PREFIX + name for name in COLUMNS)
"""The names of the ten fields as attributes, in the order of the columns."""


def field_attributes(record: CallRecord) -> dict[str, AttributeValue]:
    """Return the ten fields as span attributes, ``otel_connector.<column>``; an empty field is omitted."""
    return {name: value for name, value in zip(FIELD_NAMES, record, strict=True) if value is not None and value != ""}


def http_attributes(url: str, host: str | None, port: int | None) -> dict[str, AttributeValue]:
    """Return the attributes that an HTTP span has from its start. `url` is redacted."""
    attributes: dict[str, AttributeValue] = {METHOD: "GET", URL_FULL: url}
    if host is not None:
        attributes[SERVER_ADDRESS] = host
    if port is not None:
        attributes[SERVER_PORT] = port
    return attributes


def outcome_attributes(
    status: int | None, http_version: tuple[int, int] | None, error_type: str | None
) -> dict[str, AttributeValue]:
    """Return the attributes of the last response and of the error, as far as there are any."""
    attributes: dict[str, AttributeValue] = {}
    if status is not None:
        attributes[STATUS_CODE] = status
    if http_version is not None:
        attributes[PROTOCOL_VERSION] = f"{http_version[0]}.{http_version[1]}"
    if error_type is not None:
        attributes[ERROR_TYPE] = error_type
    return attributes


def event_attributes(attempt: Attempt) -> dict[str, AttributeValue]:
    """Return the attributes of the event of a failed attempt."""
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
    return attributes


def error_status(error_type: str, error: str) -> Status:
    """Return the status of a span that ends in an error.

    Args:
        error_type: The value of ``error.type``.
        error: ``ClassName: message``, the description. It is omitted if `error_type` is an HTTP status, which needs no
            description (semantic conventions, "Status").
    """
    return Status(StatusCode.ERROR, None if error_type.isdigit() else error)
