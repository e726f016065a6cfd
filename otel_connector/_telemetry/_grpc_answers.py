"""What a status of gRPC means for an export over OTLP, and an observer of the exporter's channel.

The SDK's exporter discards the answer and logs the status, where a filter drops most lines. So an interceptor, which is
public in grpc, observes each request. It is installed through attributes of the exporter that are not public. If a
version of the SDK has no such attributes, an export fails without a reason. A test checks them. Where grpc reports a
refused connection, the port is asked what listens there.

Used by ``_telemetry._exporter_watch``.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from otel_connector._telemetry._export_problem import Kind, Problem, asked_to_wait, note, quoted
from otel_connector._telemetry._http_answers import problem_of_message

_PRIVATE = frozenset({"_stub", "_channel", "_client", "_endpoint", "_insecure"})
_RETRY_INFO = "google.rpc.retryinfo-bin"  # where the SDK's exporter reads it
_TOO_LARGE = re.compile(r"larger than max\D*(?:\d+\D+)?(\d+)")  # of grpc in C++ and in Go

_CODES = {
    "UNIMPLEMENTED": Kind.UNSUPPORTED,
    "UNAUTHENTICATED": Kind.CREDENTIALS,
    "PERMISSION_DENIED": Kind.CREDENTIALS,
    "DEADLINE_EXCEEDED": Kind.NO_ANSWER,
}

# Why there is no connection: grpc reports it only in its text. A receiver may use the same code with any text
_NO_CONNECTION = "failed to connect.*"
_CONNECTIONS = (
    (re.compile(r"errors resolving|DNS resolution failed"), Kind.UNKNOWN_HOST, ""),
    (re.compile(rf"{_NO_CONNECTION}(?:refused|10061)"), Kind.REFUSED, ""),
    # 80 and 79 are the fourth bytes of HTTP/1.1 and of <!DOCTYPE
    (re.compile(rf"{_NO_CONNECTION}(?:http1\.x|frame type (?:79|80)\b)"), Kind.HTTP_PORT, "speaks HTTP/1.1"),
    (re.compile(rf"{_NO_CONNECTION}(?:parsing HTTP/2|ALPN)"), Kind.HTTP_PORT, "does not speak HTTP/2"),
    (re.compile(rf"{_NO_CONNECTION}CERTIFICATE_VERIFY_FAILED: ([\w ]+)"), Kind.CERTIFICATE, ""),
    (re.compile(rf"{_NO_CONNECTION}(Peer name [^,]*|Hostname Verification)", re.IGNORECASE), Kind.CERTIFICATE, ""),
    (re.compile(rf"{_NO_CONNECTION}error: (No such file or directory|Permission denied)"), Kind.CONNECTION, ""),
    (re.compile(rf"{_NO_CONNECTION}(Failed to create security handshaker)"), Kind.CONNECTION, ""),
    (re.compile(rf"{_NO_CONNECTION}(?:WRONG_VERSION_NUMBER|PACKET_LENGTH_TOO_LONG)"), Kind.NOT_TLS, ""),
    (re.compile(rf"(?:{_NO_CONNECTION})?(?:Socket closed|recvmsg:|Connection reset)"), Kind.CLOSED, ""),
)

_HTTPS = 443  # the port of grpc without one
_PROBE_SECONDS = 1.0
_HTTP_2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # RFC 9113, section 3.4
_FRAME_HEADER = 9  # bytes; the fourth is the type
_SETTINGS = b"\x04"  # the first frame of every server
_ONE_REFUSES = Problem(kind=Kind.CONNECTION, answer="one of its addresses refuses it")


def observe_channel(exporter: Any) -> None:
    """Make the exporter `note` what happens to each of its requests."""
    state: dict[str, Any] = exporter.__dict__
    if not state.keys() >= _PRIVATE:
        return
    import grpc  # type: ignore[import-untyped]

    class Observer(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
        def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
            call = continuation(client_call_details, request)
            error = call.exception()
            if error is None:
                note(problem_of_message(call.result()))
            elif isinstance(error, grpc.RpcError):
                metadata: Mapping[str, bytes] = dict(call.trailing_metadata() or ())
                wait = _seconds(metadata.get(_RETRY_INFO))
                if problem := problem_of_status(call.code().name, call.details() or "", wait, request.ByteSize()):
                    is_refused = problem.kind is Kind.REFUSED
                    found = what_listens(state["_endpoint"], tls=not state["_insecure"]) if is_refused else None
                    note(found or problem)
            return call

    stub = state["_stub"]

    def observed(channel: Any) -> Any:
        return stub(grpc.intercept_channel(channel, Observer()))

    state.update(_stub=observed, _client=observed(state["_channel"]))


def what_listens(endpoint: str, *, tls: bool) -> Problem | None:
    """Return why grpc could not connect to an endpoint, if something listens there; None if nothing does.

    grpc tries all addresses of a host name, for ``localhost`` also ``::1``, and reports the failure of one of them.

    Args:
        endpoint: Host and port.
        tls: Whether grpc uses TLS.
    """
    try:
        parsed = urlsplit(f"//{endpoint}")
        connection = socket.create_connection((parsed.hostname, parsed.port or _HTTPS), _PROBE_SECONDS)
    except (OSError, ValueError):
        return None
    with connection:
        try:
            if tls:
                _unverified().wrap_socket(connection).close()
                return _ONE_REFUSES
            connection.sendall(_HTTP_2)
            answer = connection.recv(_FRAME_HEADER)
        except ssl.SSLError:
            return Problem(kind=Kind.NOT_TLS)
        except OSError:
            return _ONE_REFUSES
    if answer[3:4] == _SETTINGS:
        return _ONE_REFUSES
    spoken = "speaks HTTP/1.1" if answer.startswith(b"HTTP/1.") else "does not speak HTTP/2"
    return Problem(kind=Kind.HTTP_PORT, answer=spoken)


def _unverified() -> ssl.SSLContext:
    """Return a context for a handshake only. Nothing is sent with it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _seconds(retry_info: bytes | None) -> float | None:
    if retry_info is None:
        return None
    from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]

    return float(RetryInfo.FromString(retry_info).retry_delay.ToTimedelta().total_seconds())


def problem_of_status(code: str, details: str, wait: float | None, size: int) -> Problem | None:
    """Return what a status other than OK means; None if it is the exporter's own shutdown.

    Args:
        code: The name of the status code.
        details: Its text.
        wait: The seconds that the receiver asked to wait, if it did.
        size: Bytes of the request.
    """
    if code == "CANCELLED" and "Channel closed" in details:
        return None
    if kind := _CODES.get(code):
        return Problem(kind=kind, answer=code)
    if code == "RESOURCE_EXHAUSTED" and (found := _TOO_LARGE.search(details)):
        return Problem(kind=Kind.TOO_LARGE, answer=f"its limit is {int(found[1]):,} bytes", size=size)
    if code == "UNAVAILABLE":
        for pattern, kind, answer in _CONNECTIONS:
            if match := pattern.match(details):
                return Problem(kind=kind, answer=answer or "".join(match.groups()))
    return Problem(kind=Kind.STATUS, answer=f"{code}{asked_to_wait(wait)}{quoted(details)}")
