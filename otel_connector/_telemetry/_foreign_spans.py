"""Converts the span of another HTTP client to the fields of a row.

An HTTP span has the stable names of the semantic conventions 1.44, or the old ones of 1.11, which
opentelemetry-python-contrib uses by default. A value of another type than the conventions define counts as missing.
This file does not know how a row is written.

Used by ``csv_exporter``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http.client import responses
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from opentelemetry.trace import SpanKind, StatusCode

from otel_connector._errors import without_addresses
from otel_connector._record import Fields
from otel_connector._redact import REDACTED, Redactor
from otel_connector._telemetry import _names
from otel_connector._telemetry._call_ids import call_id_of
from otel_connector._telemetry._metrics import SCOPE

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

_METHOD = (_names.METHOD, "http.method")
_URL = (_names.URL_FULL, "http.url")
_STATUS_CODE = (_names.STATUS_CODE, "http.status_code")
_ERROR_TYPE = (_names.ERROR_TYPE,)
_BODY_SIZE = ("http.response.body.size", "http.response_content_length")

# A client of a database such as Elasticsearch also gives its spans an HTTP method. The request itself may have another
# span, that of the HTTP client below
_OTHER_SYSTEMS = ("db.system", "db.system.name", "messaging.system", "rpc.system", "rpc.system.name")

_STATUSES = range(100, 1_000)  # three digits (RFC 9110, section 15)
_FIRST_ERROR = 400
_SIZES = range(2**63)  # the integers of OTLP
_OTHER = "_OTHER"  # semantic conventions, "error.type": the value if the type is unknown
_CLASS = re.compile(r"(\w{1,99})(?::|\Z)")  # at the start of a description that the SDK has made of an exception
# A client quotes the value of a header that it refuses, such as a key with the line break of the file that it is from
_HEADER_VALUE = re.compile(r"(header value:? )b?['\"].*", re.DOTALL)


def is_http_client(span: ReadableSpan, attributes: Mapping[str, Any]) -> bool:
    """Return whether a span is that of one HTTP request or redirect chain, and not of the connector."""
    scope = span.instrumentation_scope
    return (
        span.kind is SpanKind.CLIENT
        and any(name in attributes for name in _METHOD)
        and not any(name in attributes for name in _OTHER_SYSTEMS)
        and (scope is None or scope.name != SCOPE)
    )


def foreign_fields(span: ReadableSpan, attributes: Mapping[str, Any], redactor: Redactor) -> Fields | None:
    """Return the fields of the row of an HTTP span; None if it has no valid ids or has not ended.

    If the clock was set back meanwhile, so that the span ends before its start, its duration is 0. A span without a
    status code got no response, so it is not a success. Its error is empty if the span does not name one, as that of
    contrib's httpx after a cancellation.

    Raises:
        OverflowError: A time is too large for a float.
    """
    context, start, end = span.get_span_context(), span.start_time, span.end_time
    if context is None or not context.is_valid or not isinstance(start, int) or not isinstance(end, int):
        return None
    code = _number(attributes, _STATUS_CODE, _STATUSES)
    is_error = span.status.status_code is StatusCode.ERROR or bool(_text(attributes, _ERROR_TYPE))
    url = _text(attributes, _URL)
    success = code is not None and code < _FIRST_ERROR and not is_error
    return (
        call_id_of(context),
        _text(span.resource.attributes, ("service.name",)),
        start // 1_000 / 1e6,
        max(end - start, 0) // 1_000 / 1e6,
        redactor.url(url),
        "",
        _number(attributes, _BODY_SIZE, _SIZES) or 0,
        code,
        success,
        "" if success else redactor.text(_error(span, attributes, code), _secrets(url, redactor)),
    )


def _secrets(url: str, redactor: Redactor) -> set[str]:
    """Return the secrets of a URL, which an error may quote. A text below 4 characters is too frequent to be one."""
    secrets = [url[start:end] for start, end, _ in redactor.secrets(url) or ()]
    return {form for secret in secrets for form in (secret, unquote_plus(secret)) if len(form) >= 4}  # noqa: PLR2004


def _error(span: ReadableSpan, attributes: Mapping[str, Any], code: int | None) -> str:
    """Return ``ClassName: message`` from the status code, the exception, ``error.type`` and the description."""
    if code is not None and code >= _FIRST_ERROR:
        return f"HTTPStatusError: {code} {responses.get(code, '')}".rstrip()
    kind, message = _text(attributes, _ERROR_TYPE), span.status.description or ""
    for event in reversed(span.events):
        if event.name == "exception":
            exception = event.attributes or {}
            kind, message = _text(exception, ("exception.type",)) or kind, _text(exception, ("exception.message",))
            break
    kind = kind.rpartition(".")[2]
    if (found := _CLASS.match(message)) and kind in {"", found[1]}:
        kind, message = found[1], message[found.end() :].lstrip()
    if not kind and (message or span.status.status_code is StatusCode.ERROR):
        kind = _OTHER
    message = _HEADER_VALUE.sub(rf"\1{REDACTED}", without_addresses(message))
    return f"{kind}: {message}" if message else kind


def _text(attributes: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Return the first of these attributes that is a text; empty if there is none."""
    return next((value for value in map(attributes.get, names) if isinstance(value, str)), "")


def _number(attributes: Mapping[str, Any], names: tuple[str, ...], allowed: range) -> int | None:
    """Return the first of these attributes that is an allowed integer."""
    for value in map(attributes.get, names):
        if isinstance(value, int) and not isinstance(value, bool) and value in allowed:
            return value
    return None
