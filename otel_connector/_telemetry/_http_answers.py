"""What an answer over OTLP/HTTP, or the lack of one, means for the export.

Does not know the SDK, nor how the requests are sent.

Used by ``_telemetry._bounded_session`` and ``_telemetry._grpc_answers``.
"""

from __future__ import annotations

import json
import math
import socket
import ssl
import time
from collections.abc import Generator, Mapping, Sequence
from http import HTTPStatus
from http.client import BadStatusLine, HTTPException, IncompleteRead, LineTooLong, UnknownProtocol
from typing import Any
from urllib.parse import urljoin, urlsplit

from multidict import CIMultiDict

from otel_connector._record import one_line
from otel_connector._retry_after import retry_after_of
from otel_connector._telemetry._export_problem import Kind, Problem, asked_to_wait, quoted
from otel_connector._telemetry._variable_values import origin_of

_PROTOBUF = frozenset({"application/x-protobuf", "application/protobuf"})
_JSON = "application/json"
_SHOWN = 200  # characters of a value of a header

_STATUSES = {
    401: Kind.CREDENTIALS,
    403: Kind.CREDENTIALS,
    404: Kind.NO_RECEIVER,
    405: Kind.NO_RECEIVER,
    413: Kind.TOO_LARGE,
    501: Kind.NO_RECEIVER,
}

# OpenSSL's reasons for a record that is not TLS; which one depends on its version and on the first bytes
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL"})
_HTTP_2 = (
    "\0\0"  # an HTTP/2 server starts with the frame SETTINGS, whose length is below 65,536 (RFC 9113, section 4.1)
)
_TLS_ALERT = "\x15\x03"  # RFC 8446, section 5.1: the type alert, and the version


def problem_of_response(
    status: int, headers: Mapping[str, str], body: bytes, url: str, *, size: int, coding: str = ""
) -> Problem | None:
    """Return what is wrong with a response; None if the receiver confirmed everything in OTLP.

    Args:
        status: The status code.
        headers: The headers, case-insensitive.
        body: The body, or its beginning.
        url: The URL of the request.
        size: Bytes of the request.
        coding: The content coding that the body still has.
    """
    media_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    known = {each.value: each.phrase for each in HTTPStatus}
    answer = f"{status} {known.get(status, '')}".rstrip()
    if status < HTTPStatus.MULTIPLE_CHOICES:
        return _problem_of_success(status, media_type, body, coding)
    if status < HTTPStatus.BAD_REQUEST:
        return Problem(kind=Kind.REDIRECT, answer=f"{answer}{_target_of_redirect(headers.get('Location'), url)}")
    if kind := _STATUSES.get(status):
        return Problem(kind=kind, answer=answer, size=size if kind is Kind.TOO_LARGE else 0)
    wait = retry_after_of(CIMultiDict(headers), time.time())
    if wait is not None and math.isfinite(wait):
        wait = math.ceil(wait)  # a date that was compared with the clock of this machine
    return Problem(kind=Kind.STATUS, answer=f"{answer}{asked_to_wait(wait)}{quoted(_text(media_type, body))}")


def _target_of_redirect(location: str | None, url: str) -> str:
    """Return the words about the address of a redirect, without its path and query, which may be secret."""
    if not location:
        return ""
    try:
        parts = urlsplit(urljoin(url, location))
        valid = location.isprintable() and " " not in parts.netloc and (parts.port, parts.hostname)[1]
    except ValueError:  # brackets that are not closed, or a port that is not a number
        return ", a redirect to an invalid address"
    if parts.scheme not in {"http", "https"}:
        return f", a redirect to an address of the scheme {one_line(parts.scheme, _SHOWN)}"
    return f", a redirect to {one_line(origin_of(parts.geturl()), _SHOWN) if valid else 'an invalid address'}"


def _problem_of_success(status: int, media_type: str, body: bytes, coding: str) -> Problem | None:
    # Prometheus confirms with an empty body without a type. The empty message of OTLP has no bytes either
    if not body and media_type in {"", _JSON, *_PROTOBUF}:
        return None
    if coding and media_type in {_JSON, *_PROTOBUF}:
        return Problem(
            kind=Kind.UNREADABLE, answer=f"{status} with a body in the content coding {one_line(coding, _SHOWN)}"
        )
    try:
        if media_type in _PROTOBUF:
            return problem_of_message(_message(body))
        if media_type == _JSON:
            return _problem_of_json(json.loads(body))
    except (ArithmeticError, AttributeError, RecursionError, TypeError, ValueError):
        return Problem(kind=Kind.NOT_OTLP, answer=f"{status} with {media_type} that is not a message of OTLP")
    shown = quoted(media_type).removeprefix(": ").strip('"') or "a body of an unknown type"
    return Problem(kind=Kind.NOT_OTLP, answer=f"{status} with {shown}")


def problem_of_message(message: Any) -> Problem | None:
    """Return what a response of OTLP rejects, of any signal; None if it accepts everything without a hint."""
    fields = {field.name: value for field, value in message.partial_success.ListFields()}
    rejected = sum(value for name, value in fields.items() if name.startswith("rejected_"))
    return _partial(rejected, fields.get("error_message", ""))


def _message(body: bytes) -> Any:
    """Parse a response. Those of all signals have the same numbers of fields."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    try:
        return ExportTraceServiceResponse.FromString(body)
    except DecodeError as error:
        raise ValueError(str(error)) from error


def _problem_of_json(message: Any) -> Problem | None:
    if message.keys() - {"partialSuccess"}:
        raise ValueError("another message")
    partial: dict[str, Any] = message.get("partialSuccess") or {}
    rejected = sum(int(value) for name, value in partial.items() if name.startswith("rejected"))
    return _partial(rejected, str(partial.get("errorMessage", "")))


def _partial(rejected: int, message: str) -> Problem | None:
    if rejected > 0:
        return Problem(kind=Kind.PARTIAL, answer=quoted(message), rejected=rejected)
    # A message without rejected items is a hint of the receiver, not a loss (OTLP, "Partial Success")
    return Problem(kind=Kind.HINT, answer=quoted(message)) if message else None


def _text(media_type: str, body: bytes) -> str:
    """Return the text of an error; empty if its type is another one."""
    if media_type == "text/plain":
        return body.decode("utf-8", "replace")
    if media_type in _PROTOBUF:  # google.rpc.Status: 2 is its message (OTLP/HTTP, "Failures")
        from google.protobuf.message import DecodeError
        from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

        try:
            return str(Status.FromString(body).message)
        except DecodeError:
            return ""
    return ""


def problem_of_error(error: BaseException) -> Problem:
    """Return why a request had no response. The texts of the exceptions have the URL, so only their kinds are used."""
    from requests import exceptions

    if isinstance(error, (exceptions.MissingSchema, exceptions.InvalidSchema, exceptions.InvalidURL)):
        return Problem(kind=Kind.BAD_ENDPOINT)
    if isinstance(error, exceptions.Timeout):  # its causes have what the end of the time did to the connection
        return Problem(kind=Kind.NO_ANSWER)
    causes = list(_causes(error, []))
    if isinstance(error, exceptions.ProxyError):
        return Problem(kind=Kind.CONNECTION, answer=f"the proxy of the environment failed ({_shown(causes)})")
    if found := next(filter(None, map(_problem_of_cause, causes)), None):
        return found
    return Problem(kind=Kind.CONNECTION, answer=_shown(causes))


def _problem_of_cause(cause: BaseException) -> Problem | None:
    kind, answer = None, ""
    match cause:
        case ssl.SSLCertVerificationError():
            kind, answer = Kind.CERTIFICATE, cause.verify_message
        case ssl.SSLError() if cause.reason in _NOT_TLS:
            kind = Kind.NOT_TLS
        case socket.gaierror():
            kind = Kind.UNKNOWN_HOST
        case ConnectionRefusedError():
            kind = Kind.REFUSED
        case ConnectionResetError() | BrokenPipeError():  # RemoteDisconnected is one of the first
            kind = Kind.GRPC_PORT
        case HTTPException():
            return _problem_of_no_response(cause)
        case _:
            pass
    return kind and Problem(kind=kind, answer=answer)


def _problem_of_no_response(cause: HTTPException) -> Problem:
    """Return what a server has sent, if it is no response of HTTP/1.1."""
    match cause:
        case BadStatusLine() if (line := str(cause.args[0])).startswith((_HTTP_2, _TLS_ALERT)):
            return Problem(kind=Kind.GRPC_PORT if line.startswith(_HTTP_2) else Kind.TLS_PORT)
        case BadStatusLine() | UnknownProtocol():
            return Problem(kind=Kind.NOT_HTTP)
        case IncompleteRead():
            return Problem(kind=Kind.CUT)
        case LineTooLong():
            return Problem(kind=Kind.NOT_OTLP, answer="with a header line of more than 65,536 bytes")
        case _:
            return Problem(kind=Kind.NOT_OTLP, answer="with a response that cannot be read")


def _causes(error: BaseException, seen: list[BaseException]) -> Generator[BaseException]:
    """Yield an exception and all that caused it. requests and urllib3 keep some of them only in their arguments."""
    if error not in seen:
        seen.append(error)
        yield error
        for each in (*error.args, getattr(error, "reason", None), error.__cause__, error.__context__):
            if isinstance(each, BaseException):
                yield from _causes(each, seen)


def _shown(causes: Sequence[BaseException]) -> str:
    """Return the text of the operating system, or a class: the texts of the others may have the URL."""
    texts = (cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror)
    return next(texts, type(causes[-1]).__name__)
