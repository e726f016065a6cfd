"""Convert a call's values to the attributes and the status of its span.

Source: OpenTelemetry semantic conventions 1.44, "HTTP client span". This file does not know when a span starts or ends,
or how it is exported.

Used by ``_replay._row_span``, ``_telemetry._spans`` and ``csv_exporter``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.trace import Status, StatusCode

from otel_connector._record import COLUMNS
from otel_connector._telemetry import _names

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

    from otel_connector._record import AttemptRecord, CallRecord, Retry

FIELD_NAMES = tuple(_names.FIELD_PREFIX + name for name in COLUMNS)


def field_attributes(record: CallRecord) -> dict[str, AttributeValue]:
    """Return the ten fields as span attributes, ``otel_connector.<column>``; an empty field is omitted."""
    # 0 and False are values
    return {name: value for name, value in zip(FIELD_NAMES, record, strict=True) if value or value == 0}


def http_attributes(url: str, host: str | None, port: int | None) -> dict[str, AttributeValue]:
    """Return the attributes that an HTTP span has from its start. `url` is redacted."""
    attributes: dict[str, AttributeValue] = {_names.METHOD: "GET", _names.URL_FULL: url}
    if host is not None:
        attributes[_names.SERVER_ADDRESS] = host
    if port is not None:
        attributes[_names.SERVER_PORT] = port
    return attributes


def outcome_attributes(
    status: int | None, error_type: str | None, http_version: tuple[int, int] | None = None, resend_count: int = 0
) -> dict[str, AttributeValue]:
    """Return the attributes of the last request and response and of the error, if there are any."""
    attributes: dict[str, AttributeValue] = {}
    if status is not None:
        attributes[_names.STATUS_CODE] = status
    if http_version is not None:
        attributes[_names.PROTOCOL_VERSION] = f"{http_version[0]}.{http_version[1]}"
    if error_type is not None:
        attributes[_names.ERROR_TYPE] = error_type
    if resend_count:
        attributes[_names.RESEND_COUNT] = resend_count
    return attributes


def retry_attributes(retry: Retry | None) -> dict[str, AttributeValue]:
    """Return why a retry was made, and the waits between the attempt before it and itself; nothing for None."""
    if retry is None:
        return {}
    attributes: dict[str, AttributeValue] = {_names.RETRY_REASON: retry.reason, _names.RETRY_WAIT: retry.wait}
    if retry.queue:
        attributes[_names.RETRY_QUEUE] = retry.queue
    return attributes


def event_attributes(attempt: AttemptRecord) -> dict[str, AttributeValue]:
    """Return the attributes of the event of a failed attempt."""
    attributes: dict[str, AttributeValue] = {
        _names.ATTEMPT_NUMBER: attempt.number,
        _names.ATTEMPT_START: attempt.t,
        _names.ATTEMPT_DURATION: attempt.duration,
        _names.ATTEMPT_REASON: attempt.reason,
        **outcome_attributes(attempt.status, attempt.error_type),
    }
    if attempt.queue:
        attributes[_names.ATTEMPT_QUEUE] = attempt.queue
    if attempt.wait is not None:
        attributes[_names.ATTEMPT_WAIT] = attempt.wait
    if attempt.retry_after is not None:
        attributes[_names.ATTEMPT_RETRY_AFTER] = attempt.retry_after
    return attributes


def error_status(error_type: str, error: str) -> Status:
    """Return the status of a span that ends in an error.

    Args:
        error_type: The value of ``error.type``.
        error: ``ClassName: message``, the description. It is omitted if `error_type` is an HTTP status, which needs no
            description (semantic conventions, "Status").
    """
    return Status(StatusCode.ERROR, None if error_type.isdigit() else error)
