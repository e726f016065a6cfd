"""Each kind of loss and mistake of an export has its own sentence, over HTTP and over gRPC and for each signal.

The receivers are real: they listen on the loopback and behave in that way. The texts are those of the documentation.
"""

from __future__ import annotations

import errno
import gzip
import os
import re
import socket
import ssl
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from http import HTTPStatus
from operator import methodcaller
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
import requests
import trustme
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogs
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogs
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetrics
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpans
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from support.otlp_receiver import Received, attributes_of, grpc_receiver

from otel_connector import _log_throttle
from otel_connector._telemetry._bounded_session import session_options
from otel_connector._telemetry._export_problem import (
    ExportTarget,
    Kind,
    Problem,
    has_noted,
    note,
    noting,
    sentence,
)
from otel_connector._telemetry._exporter_watch import _SESSIONS, ExporterWatch, first_of
from otel_connector._telemetry._grpc_answers import problem_of_status, what_listens
from otel_connector._telemetry._http_answers import problem_of_error
from otel_connector._telemetry._sdk_exit import Telemetry
from otel_connector._telemetry._tls_files import OF_REQUESTS
from otel_connector._telemetry._usual_ports import PORTS
from otel_connector._telemetry._variable_values import origin_of
from otel_connector.testing import FaultServer, Step, respond

GRPC, HTTP = "grpc", "http/protobuf"
SIGNALS = ("traces", "metrics", "logs")
PROTOBUF = "application/x-protobuf"
EXPORTERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("traces", GRPC): GrpcSpans,
    ("metrics", GRPC): GrpcMetrics,
    ("logs", GRPC): GrpcLogs,
    ("traces", HTTP): HttpSpans,
    ("metrics", HTTP): HttpMetrics,
    ("logs", HTTP): HttpLogs,
}
RESPONSES: dict[str, tuple[Any, str, str]] = {
    "traces": (ExportTraceServiceResponse, "rejected_spans", "spans"),
    "metrics": (ExportMetricsServiceResponse, "rejected_data_points", "data points"),
    "logs": (ExportLogsServiceResponse, "rejected_log_records", "log records"),
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_") or name in OF_REQUESTS]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.7")  # below the shortest backoff of the SDK, so it tries once


def spans(count: int = 3, text: str = "") -> Sequence[ReadableSpan]:
    provider = TracerProvider(shutdown_on_exit=False)
    made: list[Any] = [provider.get_tracer("t").start_span("s", attributes={"url": text}) for _ in range(count)]
    for each in made:
        each.add_event("e", {"numbers": [1, 2], "text": "é"})
        each.end()
    return made


def batch_of(signal: str) -> Any:
    """Return three items."""
    if signal == "traces":
        return spans()
    if signal == "metrics":
        reader = InMemoryMetricReader()
        meters = MeterProvider([reader], shutdown_on_exit=False)
        counter = meters.get_meter("t").create_counter("c")
        for number in range(3):
            counter.add(1, {"n": number})
        return reader.get_metrics_data()
    records: Any = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
    loggers = LoggerProvider(shutdown_on_exit=False)
    loggers.add_log_record_processor(SimpleLogRecordProcessor(records))
    for _ in range(3):
        loggers.get_logger("t").emit(LogRecord(body="x"))
    return records.get_finished_logs()


def watched(signal: str, protocol: str, found: list[str]) -> ExporterWatch:
    """Return the watch of the SDK's own exporter; it adds the sentences about what was lost to a list."""

    def on_loss(watch: ExporterWatch) -> None:
        assert watch.problem is not None
        lost = watch.lost if watch.arrived else None
        found.append(sentence(watch.problem, [watch.target], count=watch.count, lost=lost))

    options = session_options() if protocol == HTTP else {}
    return ExporterWatch(EXPORTERS[signal, protocol](**options), signal, on_loss)


def messages(signal: str, protocol: str, exports: int = 1, batch: Any = None) -> tuple[list[str], ExporterWatch]:
    """Export three items, and return the sentences about what was lost."""
    found = list[str]()
    watch = watched(signal, protocol, found)
    try:
        for _ in range(exports):
            watch.exporter.export(batch or batch_of(signal))
    finally:
        watch.exporter.shutdown()
    return found, watch


@contextmanager
def grpc_server(answer: Callable[[bytes, Any], bytes], credentials: Any = None) -> Iterator[str]:
    """Answer every method with `answer`, and yield the address."""

    class AnyMethod(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, handler_call_details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(answer)

    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, [AnyMethod()])
        secure = credentials is not None
        port = server.add_secure_port("127.0.0.1:0", credentials) if secure else server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(grace=None).wait()


def aborting(code: Any, details: str, *metadata: tuple[str, bytes]) -> Callable[[bytes, Any], bytes]:
    def answer(request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata(metadata)
        context.abort(code, details)
        raise AssertionError

    return answer


DAY = "Sun, 15 Nov 2026"


def coded(coding: str, body: bytes, *, status: int = 200, content_type: str = "application/json") -> Step:
    return respond(status, body, content_type=content_type, headers=[("Content-Encoding", coding)])


def raw(response: bytes) -> Step:
    return Step(name="raw", play=methodcaller("send", response))


# The answers of an HTTP server, with the sentence after "Traces were not sent: http://127.0.0.1:1234 "
def not_followed(answer: str) -> str:
    """Return the message about a redirect."""
    remedy = "Set OTEL_EXPORTER_OTLP_ENDPOINT to the address of the receiver."
    return f"answered {answer}, which is not followed. {remedy}"


ANSWERS: dict[str, tuple[Step, str]] = {
    "a page": (
        respond(200, b"<!doctype html>", content_type="text/html; charset=utf-8"),
        "answered 200 with text/html. This is not an OTLP receiver.",
    ),
    "a page without a type": (
        respond(200, b"hello", content_type=None),
        "answered 200 with a body of an unknown type. This is not an OTLP receiver.",
    ),
    "protobuf that is not OTLP": (
        respond(200, b"\xff\xff", content_type=PROTOBUF),
        f"answered 200 with {PROTOBUF} that is not a message of OTLP. This is not an OTLP receiver.",
    ),
    "JSON that is not OTLP": (
        respond(200, b"[]"),
        "answered 200 with application/json that is not a message of OTLP. This is not an OTLP receiver.",
    ),
    "JSON of another service": (
        respond(200, b'{"error": "no"}'),
        "answered 200 with application/json that is not a message of OTLP. This is not an OTLP receiver.",
    ),
    "a redirect to a login page": (
        respond(302, headers=[("Location", "https://user:hush@login.example.com:8443/in?key=hush")]),
        not_followed("302 Found, a redirect to https://login.example.com:8443"),
    ),
    "a redirect on the same host": (
        respond(307, headers=[("Location", "/login")]),
        not_followed("307 Temporary Redirect, a redirect to http://ORIGIN"),
    ),
    "a redirect without a target": (
        respond(300),
        not_followed("300 Multiple Choices"),
    ),
    "a redirect to another host, without a scheme": (  # RFC 3986, section 4.2: a network-path reference
        respond(302, headers=[("Location", "//login.example.com/in?key=hush")]),
        not_followed("302 Found, a redirect to http://login.example.com"),
    ),
    "a redirect with an address in its query": (
        respond(302, headers=[("Location", "/in?key=hush&next=https://user:hush@a/")]),
        not_followed("302 Found, a redirect to http://ORIGIN"),
    ),
    **{
        f"a redirect to {location[:20]!r}": (
            raw(b"HTTP/1.1 308 x\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % location.encode()),
            not_followed("308 Permanent Redirect, a redirect to an invalid address"),
        )
        for location in (
            "http://[hush",
            "http://a:hush/",
            "http://a:99999/",
            "https:///hush",
            "http://a b/",
            "http://a/\x7fhush",
            "\x01",
        )
    },
    "a redirect to another scheme": (
        respond(302, headers=[("Location", "mailto:hush@example.com")]),
        not_followed("302 Found, a redirect to an address of the scheme mailto"),
    ),
    "a redirect to a long name": (
        respond(302, headers=[("Location", f"http://{'a' * 30_000}.example/")]),
        (
            f"answered 302 Found, a redirect to http://{'a' * 182}...[+29826], which is not followed."
            " Set OTEL_EXPORTER_OTLP_ENDPOINT to the address of the receiver."
        ),
    ),
    "a redirect whose header is too long": (
        respond(302, headers=[("Location", f"http://a/{'a' * 65_536}")]),
        "answered with a header line of more than 65,536 bytes. This is not an OTLP receiver.",
    ),
    "JSON with an infinite number": (
        respond(200, b'{"partialSuccess": {"rejectedSpans": 1e999}}'),
        "answered 200 with application/json that is not a message of OTLP. This is not an OTLP receiver.",
    ),
    "deeply nested JSON": (
        respond(200, b"[" * 60_000),
        "answered 200 with application/json that is not a message of OTLP. This is not an OTLP receiver.",
    ),
    "401": (respond(401), "answered 401 Unauthorized. Set OTEL_EXPORTER_OTLP_HEADERS."),
    "403": (respond(403), "answered 403 Forbidden. Set OTEL_EXPORTER_OTLP_HEADERS."),
    "429": (respond(429, headers=[("Retry-After", "30")]), "answered 429 Too Many Requests and asked to wait 30 s."),
    # RFC 9110, section 10.2.3: seconds or a date, in any form of section 5.6.7; compared with the Date of the response
    "503 with a date": (
        respond(503, headers=[("Retry-After", f"{DAY} 10:00:30 GMT"), ("Date", f"{DAY} 10:00:00 GMT")]),
        "answered 503 Service Unavailable and asked to wait 30 s.",
    ),
    "429 with a date of RFC 850": (
        respond(429, headers=[("Retry-After", "Sunday, 06-Nov-94 08:49:38 GMT"), ("Date", "Sun Nov  6 08:49:37 1994")]),
        "answered 429 Too Many Requests and asked to wait 1 s.",
    ),
    "429 with a date in the past": (
        respond(429, headers=[("Retry-After", f"{DAY} 10:00:00 GMT"), ("Date", f"{DAY} 10:00:01 GMT")]),
        "answered 429 Too Many Requests.",
    ),
    "503 with an invalid date": (
        respond(503, headers=[("Retry-After", "Sun, 31 Feb 2027 10:00:00 GMT")]),
        "answered 503 Service Unavailable.",
    ),
    "503 with a word": (respond(503, headers=[("Retry-After", "soon")]), "answered 503 Service Unavailable."),
    "503 with 0": (respond(503, headers=[("Retry-After", "0")]), "answered 503 Service Unavailable."),
    "503 with an endless number": (
        respond(503, headers=[("Retry-After", "9" * 400)]),
        "answered 503 Service Unavailable.",
    ),
    # RFC 9110, section 8.4: the codings of a body
    "a page in gzip": (
        coded("gzip", gzip.compress(b"<!doctype html>"), content_type="text/html"),
        "answered 200 with text/html. This is not an OTLP receiver.",
    ),
    "a text in gzip": (
        coded("x-gzip", gzip.compress(b"no such tenant"), status=400, content_type="text/plain"),
        'answered 400 Bad Request: "no such tenant".',
    ),
    "a coding that is not decoded": (
        coded("br", b"\x8b\x00\x80{}\x03"),
        "answered 200 with a body in the content coding br, which was not requested and cannot be decoded.",
    ),
    "a coding that is not decoded, whose bytes could be an answer": (
        coded("br", b"xx", content_type=PROTOBUF),
        "answered 200 with a body in the content coding br, which was not requested and cannot be decoded.",
    ),
    "a coding that is only named": (
        coded("gzip", b"{}"),
        "answered 200 with a body in the content coding gzip, which was not requested and cannot be decoded.",
    ),
    "two codings": (
        coded("gzip, gzip", gzip.compress(gzip.compress(b"{}"))),
        "answered 200 with a body in the content coding gzip, gzip, which was not requested and cannot be decoded.",
    ),
    "gzip that ends too early": (
        coded("gzip", gzip.compress(b"{}")[:-9]),
        "answered 200 with a body in the content coding gzip, which was not requested and cannot be decoded.",
    ),
    "400 with a text": (
        respond(400, b"no such tenant, token=hush\n", content_type="text/plain"),
        'answered 400 Bad Request: "no such tenant, token=REDACTED".',
    ),
    "400 with a status message": (
        respond(400, Status(code=3, message="bad span").SerializeToString(), content_type=PROTOBUF),
        'answered 400 Bad Request: "bad span".',
    ),
    "400 with garbage": (respond(400, b"\xff\xff", content_type=PROTOBUF), "answered 400 Bad Request."),
    "a status without a name": (respond(599), "answered 599."),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_over_http_that_is_not_a_confirmation_is_a_loss(
    answer: str, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, text = ANSWERS[answer]
    endpoint = server.url("/")[:-1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    for signal in SIGNALS:
        server.script(f"/v1/{signal}", step)
        found, watch = messages(signal, HTTP)
        what = f"{signal.capitalize()} were not sent: {endpoint} {text.replace('http://ORIGIN', endpoint)}"
        assert found == [what]
        assert (watch.failed, watch.arrived, watch.lost) == (1, False, 3), signal


CONFIRMATIONS = {
    "200 without a type": respond(200, content_type=None),
    "204": respond(204, content_type=None),
    "JSON": respond(200, b"{}"),
    "JSON without a body": respond(200),
    "protobuf": respond(200, b"", content_type=PROTOBUF),
    # The session requests no coding. A receiver that uses one all the same has accepted the export
    "gzip": coded("gzip", gzip.compress(b"{}")),
    "GZIP of an empty message": coded("GZIP", gzip.compress(b""), content_type=PROTOBUF),
    "gzip without a body": coded("gzip", b""),
    "deflate": coded("deflate", zlib.compress(b"{}")),
    "deflate without a header": coded("deflate", zlib.compress(b"{}")[2:-4]),
    "br without a body": coded("br", b""),
    "identity": coded("identity", b"{}"),
    "a negative number of rejected items": respond(200, b'{"partialSuccess": {"rejectedSpans": -1}}'),
}


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("step", CONFIRMATIONS.values(), ids=CONFIRMATIONS)
def test_a_confirmation_over_http_is_not_a_loss(
    step: Step, signal: str, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prometheus confirms without a body and without a type; OTLP/HTTP requires the type of the request."""
    server.script(f"/v1/{signal}", step)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url("/"))
    found, watch = messages(signal, HTTP)
    assert (found, watch.failed, watch.arrived) == ([], 0, True)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (coded("gzip", gzip.compress(b"{}")), None),
        (
            coded("gzip", gzip.compress(b"<p>"), content_type="text/html"),
            Problem(kind=Kind.NOT_OTLP, answer="200 with text/html"),
        ),
        (
            respond(302, headers=[("Location", "http://[hush")]),
            Problem(kind=Kind.REDIRECT, answer="302 Found, a redirect to an invalid address"),
        ),
    ],
)
def test_the_session_of_a_credential_provider_decodes_the_answer_itself(
    answer: Step, expected: Problem | None, server: FaultServer
) -> None:
    seen: list[int] = []
    session = requests.Session()
    session.hooks["response"].append(lambda response, **_options: seen.append(response.status_code))
    server.script("/v1/traces", answer)
    watch = ExporterWatch(HttpSpans(server.url("/v1/traces"), session=session), "traces")
    watch.exporter.export(spans())
    watch.shutdown()
    assert watch.problem == expected
    assert len(seen) == 1, "its own hook runs"


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize(("rejected", "protocol"), [(2, GRPC), (3, GRPC), (2, HTTP), (3, HTTP), (2, "json")])
def test_rejected_items_are_a_loss(
    rejected: int, protocol: str, signal: str, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OTLP specification, "Partial Success"."""
    response, field, items = RESPONSES[signal]
    body: bytes = response(
        partial_success={field: rejected, "error_message": "quota exceeded, key=hush"}
    ).SerializeToString()
    with grpc_server(lambda _request, _context: body) as address:
        endpoint = f"http://{address}"
        if protocol != GRPC:
            endpoint = server.url("/")[:-1]
            partial = b'{"rejectedSpans": "%d", "errorMessage": "quota exceeded, key=hush"}' % rejected
            json = respond(200, b'{"partialSuccess": %b}' % partial)
            server.script(f"/v1/{signal}", json if protocol == "json" else respond(200, body, content_type=PROTOBUF))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        found, watch = messages(signal, HTTP if protocol == "json" else protocol)
    assert found == [f'{rejected} of 3 {items} were rejected by {endpoint}: "quota exceeded, key=REDACTED".']
    assert (watch.failed, watch.arrived, watch.lost) == (1, rejected < 3, rejected)


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_a_hint_of_the_receiver_is_not_a_loss_and_is_logged_once(
    protocol: str, server: FaultServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """OTLP specification, "Partial Success": with rejected items of 0, the message is a warning or a suggestion."""
    response, *_ = RESPONSES["traces"]
    body: bytes = response(partial_success={"error_message": "use gzip"}).SerializeToString()
    server.script("/v1/traces", respond(200, body, content_type=PROTOBUF))
    with grpc_server(lambda _request, _context: body) as address:
        monkeypatch.setenv(
            "OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{address}" if protocol == GRPC else server.url("/")[:-1]
        )
        found, watch = messages("traces", protocol, exports=2)
    assert (found, watch.arrived, watch.failed) == ([], True, 0)
    assert watch.hint == f'{watch.target.origin} has accepted the traces, with a warning: "use gzip".'
    assert [each.getMessage() for each in caplog.records if each.name == "otel_connector"] == [watch.hint]


UNSUPPORTED = (
    "Metrics were not sent: {origin} takes no metrics ({answer}; Jaeger does not)."
    " Set OTEL_METRICS_EXPORTER=none, or OTEL_EXPORTER_OTLP_METRICS_ENDPOINT."
)
NO_RECEIVER = (
    "Traces were not sent: {origin} answered 404 Not Found for /v1/traces."
    " Set OTEL_EXPORTER_OTLP_ENDPOINT to the address of an OTLP receiver."
)
WRONG_PATH = (
    "{what} were not sent: {origin} answered 404 Not Found. {variable} is used as it is: it must end in /v1/{signal}."
)


def wrong_base(extra: str, suffix: str = "") -> str:
    return (
        "{what} were not sent: {origin} answered 404 Not Found. {variable} has a "
        f"{extra}, and most receivers have none. Set {{variable}} to {{origin}}{suffix}, or correct the {extra}."
    )


@pytest.mark.parametrize(
    ("signal", "variable", "path", "expected"),
    [
        ("traces", "OTEL_EXPORTER_OTLP_ENDPOINT", "", NO_RECEIVER),
        ("metrics", "OTEL_EXPORTER_OTLP_ENDPOINT", "/", UNSUPPORTED),
        ("traces", "OTEL_EXPORTER_OTLP_ENDPOINT", "/t0ken", wrong_base("path")),
        ("traces", "OTEL_EXPORTER_OTLP_ENDPOINT", "?t0ken", wrong_base("query")),
        ("traces", "OTEL_EXPORTER_OTLP_ENDPOINT", "#t0ken", wrong_base("fragment")),
        ("metrics", "OTEL_EXPORTER_OTLP_ENDPOINT", "/t0ken?x", wrong_base("path and query")),
        ("logs", "OTEL_EXPORTER_OTLP_ENDPOINT", "/t0ken/?x", wrong_base("path and query")),
        ("traces", "OTEL_EXPORTER_OTLP_ENDPOINT", "/v1/traces", wrong_base("path")),
        ("traces", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "/t0ken", WRONG_PATH),
        ("metrics", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "", WRONG_PATH),
        ("logs", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "/", WRONG_PATH),
        ("metrics", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "/v1/metrics", UNSUPPORTED),
        ("metrics", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "/t0ken/v1/metrics", wrong_base("path", "/v1/metrics")),
        ("traces", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "/v1/traces?t0ken", wrong_base("query", "/v1/traces")),
        ("traces", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "/v1/traces", NO_RECEIVER.replace("OTLP_E", "OTLP_TRACES_E")),
    ],
)
def test_404_names_the_path_or_the_signal(
    signal: str, variable: str, path: str, expected: str, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, server.url("/")[:-1] + path)
    found, _ = messages(signal, HTTP)
    fields = {"what": signal.capitalize(), "signal": signal, "variable": variable, "answer": "404 Not Found"}
    assert found == [expected.format(origin=server.url("/")[:-1], **fields)]


@contextmanager
def listener(send: bytes = b"", *, closes: bool = True) -> Iterator[str]:
    """Accept connections, and close each after its first bytes have arrived and `send` was sent."""
    open_connections: list[socket.socket] = []

    def serve(listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            connection.recv(65_536)
            connection.sendall(send)
            if send and closes:  # with unread bytes, a close would be a reset
                connection.settimeout(1)
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65_536):
                        pass
            if closes:
                connection.close()
            else:
                open_connections.append(connection)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            for each in open_connections:
                each.close()


@contextmanager
def nothing() -> Iterator[str]:
    """Yield an address at which nothing listens: the socket is bound, and does not listen."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@contextmanager
def http_server(*, tls: bool = False) -> Iterator[str]:
    with FaultServer(tls=tls) as server:
        yield server.url("/").split("/")[2]


def accepting(_request: bytes, _context: Any) -> bytes:
    return b""


@contextmanager
def unknown_host() -> Iterator[str]:
    yield "collector.invalid:4317"  # RFC 6761, section 6.4: such a name is never resolved


NOT_HTTP = (
    "something that does not speak HTTP/1.1 answers at {origin}. Check the port in OTEL_EXPORTER_OTLP_ENDPOINT (usually"
    " 4318)."
)

# How the endpoint is written, where it is, and the sentence after "Traces were not sent: "
MISTAKES: dict[tuple[str, str], tuple[str, Callable[[], Any], str]] = {
    ("nothing listens", GRPC): (
        "http://",
        nothing,
        (
            "nothing listens at {origin} (connection refused). Start a collector, or set OTEL_EXPORTER_OTLP_ENDPOINT,"
            " or OTEL_{SIGNAL}_EXPORTER=none."
        ),
    ),
    ("gRPC to an HTTP port", GRPC): (
        "http://",
        http_server,
        (
            "{origin} speaks HTTP/1.1, and the protocol is grpc. Use the gRPC port (usually 4317) in"
            " OTEL_EXPORTER_OTLP_ENDPOINT, or set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf if an OTLP receiver has"
            " this port."
        ),
    ),
    ("HTTP to a gRPC port", HTTP): (
        "http://",
        lambda: grpc_server(accepting),
        (
            "{origin} closed the HTTP connection, as gRPC servers do. Set OTEL_EXPORTER_OTLP_PROTOCOL=grpc, or use the"
            " HTTP port (usually 4318), or write https:// if it expects TLS."
        ),
    ),
    ("HTTP to a port that closes", HTTP): (
        "http://",
        listener,
        (
            "{origin} closed the HTTP connection, as gRPC servers do. Set OTEL_EXPORTER_OTLP_PROTOCOL=grpc, or use the"
            " HTTP port (usually 4318), or write https:// if it expects TLS."
        ),
    ),
    ("https to plain", GRPC): (
        "https://",
        lambda: grpc_server(accepting),
        (
            "{origin} does not speak TLS. Write http:// in OTEL_EXPORTER_OTLP_ENDPOINT if the connection may be"
            " unencrypted."
        ),
    ),
    ("https to plain", HTTP): (
        "https://",
        lambda: grpc_server(accepting),
        (
            "{origin} does not speak TLS. Write http:// in OTEL_EXPORTER_OTLP_ENDPOINT if the connection may be"
            " unencrypted."
        ),
    ),
    ("plain to https", GRPC): (
        "http://",
        listener,
        (
            "{origin} closed the connection before it answered. Write https:// in OTEL_EXPORTER_OTLP_ENDPOINT if it"
            " expects TLS."
        ),
    ),
    ("no scheme", GRPC): (
        "",
        lambda: grpc_server(accepting),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT={origin} has no scheme; the SDK uses TLS then. Write http://{origin} or"
            " https://{origin}."
        ),
    ),
    ("no scheme", HTTP): (
        "",
        http_server,
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT={origin} has no scheme; the SDK sends nothing then. Write http://{origin} or"
            " https://{origin}."
        ),
    ),
    ("another protocol", HTTP): (
        "http://",
        lambda: listener(b"SSH-2.0-x\r\n"),
        NOT_HTTP,
    ),
    ("garbage", HTTP): ("http://", lambda: listener(b"\x01\xff\x80"), NOT_HTTP),
    ("a Redis", HTTP): ("http://", lambda: listener(b"-ERR unknown command\r\n"), NOT_HTTP),
    ("another version of HTTP", HTTP): ("http://", lambda: listener(b"HTTP/7.1 200 OK\r\n\r\n"), NOT_HTTP),
    ("plain to TLS", HTTP): (  # RFC 8446, section 6: an alert, fatal, unexpected_message
        "http://",
        lambda: listener(b"\x15\x03\x01\x00\x02\x02\x0a"),
        "{origin} speaks TLS. Write https:// in OTEL_EXPORTER_OTLP_ENDPOINT.",
    ),
    ("chunks that are none", HTTP): (
        "http://",
        lambda: listener(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"),
        "the answer of {origin} is not complete.",
    ),
    ("too many headers", HTTP): (
        "http://",
        lambda: listener(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 101 + b"\r\n"),
        "{origin} answered with a response that cannot be read. This is not an OTLP receiver.",
    ),
    ("another protocol", GRPC): (
        "http://",
        lambda: listener(b"SSH-2.0-x\r\n"),
        (
            "{origin} does not speak HTTP/2, and the protocol is grpc. Use the gRPC port (usually 4317) in"
            " OTEL_EXPORTER_OTLP_ENDPOINT, or set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf if an OTLP receiver has"
            " this port."
        ),
    ),
    ("another scheme", HTTP): (
        "ftp://",
        nothing,
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT is not a URL that the exporter can use. Write http://host:port or"
            " https://host:port."
        ),
    ),
    ("an unknown host", GRPC): (
        "http://",
        unknown_host,
        "the host name collector.invalid is unknown (DNS). Correct OTEL_EXPORTER_OTLP_ENDPOINT.",
    ),
    ("an untrusted certificate", GRPC): (
        "https://",
        lambda: http_server(tls=True),
        (
            "the certificate of {origin} is not accepted: unable to get local issuer certificate. Set"
            " OTEL_EXPORTER_OTLP_CERTIFICATE to the file of its authority."
        ),
    ),
    ("no answer", GRPC): (
        "http://",
        lambda: listener(closes=False),
        "{origin} did not answer within 0.7 s (OTEL_EXPORTER_OTLP_TIMEOUT).",
    ),
    ("401", GRPC): (
        "http://",
        lambda: grpc_server(aborting(grpc.StatusCode.UNAUTHENTICATED, "who?")),
        "{origin} answered UNAUTHENTICATED. Set OTEL_EXPORTER_OTLP_HEADERS.",
    ),
    ("429", GRPC): (
        "http://",
        lambda: grpc_server(
            aborting(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "slow down, key=hush",
                ("google.rpc.retryinfo-bin", RetryInfo(retry_delay={"seconds": 30}).SerializeToString()),
            )
        ),
        '{origin} answered RESOURCE_EXHAUSTED and asked to wait 30 s: "slow down, key=REDACTED".',
    ),
    ("the signal is not taken", GRPC): (
        "http://",
        lambda: grpc_server(aborting(grpc.StatusCode.UNIMPLEMENTED, "unknown service")),
        (
            "{origin} takes no {signal} (UNIMPLEMENTED{jaeger}). Set OTEL_{SIGNAL}_EXPORTER=none, or"
            " OTEL_EXPORTER_OTLP_{SIGNAL}_ENDPOINT."
        ),
    ),
    ("another status", GRPC): (
        "http://",
        lambda: grpc_server(aborting(grpc.StatusCode.INTERNAL, "")),
        "{origin} answered INTERNAL.",
    ),
    ("a request that is too large", GRPC): (
        "http://",
        lambda: grpc_server(aborting(grpc.StatusCode.RESOURCE_EXHAUSTED, "received message larger than max (9 vs. 5)")),
        "a request of {size} bytes is too large for {origin} (its limit is 5 bytes). {smaller}.",
    ),
}
for both in ("nothing listens", "an unknown host", "an untrusted certificate", "no answer"):
    MISTAKES[both, HTTP] = MISTAKES[both, GRPC]
SMALLER = {
    "traces": "Set OTEL_BSP_MAX_EXPORT_BATCH_SIZE to less than 3",
    "metrics": "Raise the limit of the receiver (OpenTelemetry Collector: max_recv_msg_size_mib)",
    "logs": "Set OTEL_BLRP_MAX_EXPORT_BATCH_SIZE to less than 3",
}


@pytest.mark.parametrize(
    ("mistake", "protocol"),
    MISTAKES,
)
def test_each_mistake_has_its_own_sentence(mistake: str, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme, receiver, text = MISTAKES[mistake, protocol]
    results: dict[str, tuple[list[str], ExporterWatch]] = {}
    with receiver() as address:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"{scheme}{address}")
        for signal in SIGNALS[:1] if mistake == "no answer" else SIGNALS:  # each takes 0.7 s
            results[signal] = messages(signal, protocol)
    for signal, (found, watch) in results.items():
        fields = {
            "origin": f"{scheme}{address}",
            "SIGNAL": signal.upper(),
            "signal": signal,
            "jaeger": "" if signal == "traces" else "; Jaeger does not",
            "smaller": SMALLER[signal],
            "size": watch.problem.size if watch.problem else None,
        }
        expected = f"{signal.capitalize()} were not sent: {text.format(**fields)}"
        assert (found, watch.failed, watch.arrived) == ([expected], 1, False)


def test_the_words_after_an_export_that_arrived_count_what_was_lost(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script("/v1/traces", [respond(), respond(413), respond(503)])
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint := server.url("/")[:-1])
    found, watch = messages("traces", HTTP, exports=3)
    assert re.sub(r"[\d,]+ bytes", "SIZE", found[0]) == (
        f"3 spans were not sent: a request of SIZE is too large for {endpoint} (413 {HTTPStatus(413).phrase})."
        " Set OTEL_BSP_MAX_EXPORT_BATCH_SIZE to less than 3."
    )
    assert found[1:] == [f"6 spans were not sent: {endpoint} answered 503 Service Unavailable."]
    assert watch.arrived


@pytest.mark.parametrize("kind", [Kind.GRPC_PORT, Kind.CLOSED])
def test_a_receiver_that_closes_the_connection_later_does_not_get_the_advice_for_a_wrong_port(kind: Kind) -> None:
    watch = ExporterWatch(HttpSpans("http://a:1/v1/traces"), "traces")
    watch.arrived = True
    assert sentence(watch.resolved(Problem(kind=kind)), [watch.target]) == (
        "Traces were not sent: no connection to http://a:1: the receiver closed it."
    )
    watch.shutdown()


@pytest.mark.parametrize(
    ("endpoint", "wrong"),
    [
        ("http://user:hush@127.0.0.1:1", "over gRPC, it cannot have a user"),
        ("127.0.0.1:1/hush", "it has no scheme, and a path"),
    ],
)
def test_an_endpoint_that_grpc_takes_for_a_host_name_is_named(
    endpoint: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target of gRPC has no user and no path (grpc, doc/naming.md), so it takes all of it for the host name."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    (found,), _ = messages("traces", GRPC)
    assert found == (
        f"Traces were not sent: OTEL_EXPORTER_OTLP_ENDPOINT is not a URL that the exporter can use: {wrong}."
        " Write http://host:port or https://host:port."
    )


NO_SCHEME = "OTEL_EXPORTER_OTLP_ENDPOINT={given} has no scheme; the SDK {does} then. Write http://{address} or https://{address}."
BAD_ENDPOINT = (
    "OTEL_EXPORTER_OTLP_ENDPOINT is not a URL that the exporter can use{why}. Write http://host:port or"
    " https://host:port."
)


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        ("127.0.0.1:{closed}", "no scheme"),
        ("//127.0.0.1:{closed}", "no scheme"),
        ("//127.0.0.1:{open}", "no scheme"),
        ("127.0.0.1", "no scheme"),  # without a port, grpc uses 443
        ("collector.invalid", "no scheme"),
        ("ftp://127.0.0.1:{closed}", ""),
        ("ftp://127.0.0.1:{open}", ""),
        ("http://", ": it has no host"),
        ("https://", ": it has no host"),
        ("http:///hush", ": it has no host"),
        ("https://:{closed}", ": it has no host"),
        ("http://?hush", ": it has no host"),
        ("http:127.0.0.1:{closed}", ""),
        ("http:/127.0.0.1:{closed}", ""),
        ("http://127.0.0.1:99999", ": its port is not a number from 0 to 65535"),
        ("http://127.0.0.1:hush", ": its port is not a number from 0 to 65535"),
    ],
)
def test_what_is_wrong_with_the_endpoint_is_reported_for_any_listener(
    endpoint: str, why: str, protocol: str, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listener(b"x" * 9) as address:
        endpoint = endpoint.format(closed=closed_port, open=address.rpartition(":")[2])
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        (found,), _ = messages("traces", protocol)
    given = endpoint.removeprefix("//")
    expected = BAD_ENDPOINT.format(why=why)
    if why == "no scheme":
        does = "uses TLS" if protocol == GRPC else "sends nothing"
        usual = "" if ":" in given else f":{PORTS[protocol]}"
        expected = NO_SCHEME.format(given=given, address=f"{given}{usual}", does=does)
    assert found == f"Traces were not sent: {expected}"


UNUSABLE = "Traces were not sent: the file that {} names cannot be used ({}). Correct the variable, or unset it."
MISSING = "No such file or directory"


@pytest.mark.parametrize(
    ("protocol", "variable", "file", "why"),
    [
        (GRPC, "OTEL_EXPORTER_OTLP_CERTIFICATE", "none.pem", f"none.pem: {MISSING}"),
        (GRPC, "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "garbage.pem", "garbage.pem: no certificate or crl found"),
        (HTTP, "OTEL_EXPORTER_OTLP_CERTIFICATE", "none.pem", f"none.pem: {MISSING}"),
        (HTTP, "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "garbage.pem", "garbage.pem: no certificate or crl found"),
        (HTTP, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "none.pem", f"none.pem: {MISSING}"),
        (HTTP, "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "hush.pem", MISSING),  # may be the key itself
        (HTTP, "REQUESTS_CA_BUNDLE", "none.pem", MISSING),
        (HTTP, "CURL_CA_BUNDLE", "none.pem", MISSING),
        (HTTP, "OTEL_EXPORTER_OTLP_CERTIFICATE", ".", ""),  # requests accepts a folder
        (HTTP, "REQUESTS_CA_BUNDLE", "ca.pem", ""),  # and then ignores CURL_CA_BUNDLE
    ],
)
def test_a_file_for_tls_that_cannot_be_used_is_named(
    protocol: str, variable: str, file: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The errors of requests and gRPC have other causes: an OSError, or a certificate that is not accepted."""
    monkeypatch.chdir(tmp_path)
    Path("garbage.pem").write_text("garbage", encoding="ascii")
    trustme.CA().cert_pem.write_to_path("ca.pem")
    if file == "ca.pem":
        monkeypatch.setenv("CURL_CA_BUNDLE", "none.pem")
    if "CLIENT" in variable:  # requests ignores a key without a certificate
        monkeypatch.setenv(variable.replace("KEY", "CERTIFICATE"), "garbage.pem")
    monkeypatch.setenv(variable, file)
    with http_server(tls=True) as address:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"https://{address}")
        (found,), _ = messages("traces", protocol)
    assert found == UNUSABLE.format(variable, why) if why else "is not accepted: unable to get" in found


def test_the_certificate_of_the_variable_is_used_before_that_of_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenTelemetry Protocol Exporter, "Configuration Options". requests prefers its variable to that of a session."""
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "other.pem"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(tmp_path / "ca.pem"))
    with FaultServer(tls=True) as server:
        (authority,) = server.client_ssl.get_ca_certs(binary_form=True)
        (tmp_path / "ca.pem").write_text(ssl.DER_cert_to_PEM_cert(authority), encoding="ascii")
        server.script("/v1/traces", respond())
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url("/"))
        found, watch = messages("traces", HTTP)
    assert (found, watch.arrived) == ([], True)


@pytest.mark.parametrize(
    ("protocol", "variable", "timeout"),
    [
        (GRPC, "OTEL_EXPORTER_OTLP_TIMEOUT", "-1"),
        (GRPC, "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "inf"),
        (HTTP, "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0"),
        (GRPC, "OTEL_EXPORTER_OTLP_TIMEOUT", "nan"),
    ],
)
def test_a_timeout_that_is_no_time_is_named(
    protocol: str, variable: str, timeout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export ends with the shutdown: over gRPC, one without an end to its time is tried for a minute."""
    monkeypatch.setenv(variable, timeout)
    found = list[str]()
    with ThreadPoolExecutor(1) as pool, grpc_server(accepting) if protocol == GRPC else http_server() as address:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{address}")
        watch = watched("traces", protocol, found)
        export = pool.submit(watch.exporter.export, spans())
        while watch.problem is None and not export.done():
            wait([export], 0.01)
        watch.exporter.shutdown()
    remedy = "Set it to a number of seconds above 0, such as 10."
    assert found == [f"Traces were not sent: {variable}={timeout} is not a time that an exporter can wait. {remedy}"]


def test_a_local_socket_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint := f"unix://{tmp_path.parent}/x.sock")
    found, _ = messages("traces", GRPC)
    assert found == [f"Traces were not sent: no connection to {endpoint}: {MISSING}."]


@pytest.mark.parametrize(
    ("endpoint", "insecure"),
    [
        ("127.0.0.1:{}", "true"),
        ("ftp://127.0.0.1:{}", "true"),  # the SDK ignores the scheme then
        ("HTTP://127.0.0.1:{}", "false"),
        ("ipv4:127.0.0.1:{}", "true"),  # grpc, doc/naming.md
    ],
)
def test_an_endpoint_that_grpc_can_use_is_not_called_wrong(
    endpoint: str, insecure: str, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.format(closed_port))
    if insecure == "true":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", insecure)
    (found,), _ = messages("traces", GRPC)
    assert "nothing listens at http" in found


def test_another_failure_of_the_connection_has_the_text_of_the_system() -> None:
    error = requests.exceptions.ConnectionError(OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH)))
    assert problem_of_error(error) == Problem(kind=Kind.CONNECTION, answer="Network is unreachable")


def test_a_proxy_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://user:hush@127.0.0.1:{closed_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector.invalid:4318")
    (found,), _ = messages("traces", HTTP)
    assert found == (
        "Traces were not sent: no connection to http://collector.invalid:4318: the proxy of the environment failed"
        " (Connection refused)."
    )


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("protocol", [GRPC, HTTP])
@pytest.mark.parametrize("variable", ["", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_{SIGNAL}_ENDPOINT"])
def test_a_receiver_at_the_port_of_the_other_protocol_is_named(
    variable: str, protocol: str, signal: str, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (other,) = {GRPC, HTTP} - {protocol}
    variable = variable.format(SIGNAL=signal.upper())
    is_own = variable.endswith(f"{signal.upper()}_ENDPOINT")
    closed, options = f"http://127.0.0.1:{closed_port}", session_options() if protocol == HTTP else {}
    endpoint = f"{closed}/v1/{signal}"  # over gRPC, the SDK ignores the path
    if variable:
        monkeypatch.setenv(variable, endpoint if is_own else closed)
    else:
        options["endpoint"] = endpoint  # as the default of the SDK
    with listener() as address:
        monkeypatch.setitem(PORTS, protocol, closed_port)
        monkeypatch.setitem(PORTS, other, int(address.rpartition(":")[2]))
        watch = ExporterWatch(EXPORTERS[signal, protocol](**options), signal)
        watch.exporter.export(batch_of(signal))
        watch.shutdown()
    assert watch.problem is not None
    also = f", and {variable}=http://{address}{f'/v1/{signal}' if is_own and other == HTTP else ''}" if variable else ""
    assert sentence(watch.problem, [watch.target]) == (
        f"{signal.capitalize()} were not sent: nothing listens at {closed} (connection refused), but something listens"
        f" at http://{address}, the usual port of {other}. Set OTEL_EXPORTER_OTLP_PROTOCOL={other}{also}."
    )


@pytest.mark.parametrize(
    ("port", "rest"),
    [
        (
            16686,
            (
                " (Jaeger's page has this port; its receiver has 4317 and 4318). Use the gRPC port (usually 4317) in"
                " OTEL_EXPORTER_OTLP_ENDPOINT."
            ),
        ),
        (4318, ". Set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, or use the gRPC port (usually 4317)."),
        (
            8080,
            (
                ". Use the gRPC port (usually 4317) in OTEL_EXPORTER_OTLP_ENDPOINT, or set"
                " OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf if an OTLP receiver has this port."
            ),
        ),
    ],
)
def test_the_remedy_for_a_port_of_http_depends_on_the_port(port: int, rest: str) -> None:
    target = ExportTarget(signal="traces", protocol=GRPC, endpoint=f"localhost:{port}")
    found = sentence(Problem(kind=Kind.HTTP_PORT, answer="speaks HTTP/1.1"), [target])
    assert found.partition("and the protocol is grpc")[2] == rest


def test_the_configuration_file_is_named_instead_of_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_CONFIG_FILE", "sdk.yaml")
    targets = [ExportTarget(signal=signal, protocol=HTTP, endpoint="http://a:1/v1/x?key=hush") for signal in SIGNALS]
    assert sentence(Problem(kind=Kind.REFUSED), targets[:2]) == (
        "Traces and metrics were not sent: nothing listens at http://a:1 (connection refused). Start a collector, or"
        " set endpoint in OTEL_CONFIG_FILE, or no exporter of traces in OTEL_CONFIG_FILE and no exporter of metrics in"
        " OTEL_CONFIG_FILE."
    )
    assert sentence(Problem(kind=Kind.UNSUPPORTED, answer="404"), targets[2:], lost=1).endswith(
        "Set no exporter of logs in OTEL_CONFIG_FILE, or endpoint in OTEL_CONFIG_FILE."
    )


@pytest.mark.parametrize(
    ("count", "lost", "expected"),
    [
        (1, 1, "1 span was not sent: x"),
        (2, 2, "2 spans were not sent: x"),
        (0, 0, "Some spans were not sent: x"),
        (0, None, "Traces were not sent: x"),
    ],
)
def test_the_number_of_lost_items_is_stated_if_it_is_known(count: int, lost: int | None, expected: str) -> None:
    target = ExportTarget(signal="traces", protocol="x")
    problem = Problem(kind=Kind.STATUS, answer="")
    assert sentence(problem, [target], count=count, lost=lost) == f"{expected} answered ."


@pytest.mark.parametrize(
    ("signal", "rejected", "count", "expected"),
    [
        ("metrics", 2, 0, "2 data points were"),  # an unknown number
        ("metrics", 1, 0, "1 data point was"),
        ("traces", 1, 1, "1 of 1 span was"),
        ("traces", 1, 2, "1 of 2 spans was"),
        ("traces", 2, 2, "2 of 2 spans were"),
        ("logs", 1_000, 1_001, "1,000 of 1,001 log records were"),
    ],
)
def test_the_verb_agrees_with_the_number_of_rejected_items(
    signal: str, rejected: int, count: int, expected: str
) -> None:
    target = ExportTarget(signal=signal, protocol=HTTP, endpoint="http://a:1/v1/x")
    problem = Problem(kind=Kind.PARTIAL, rejected=rejected)
    assert sentence(problem, [target], count=count) == f"{expected} rejected by http://a:1."


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://user:hush@a:1/t0ken?x#y", "http://a:1"),
        ("https://[::1]:4318/v1", "https://[::1]:4318"),
        ("user:hush@a:1/t0ken", "a:1"),
        ("hush@x://a/b", "x://a"),
        ("unix:///run/x.sock", "unix:///run/x.sock"),  # gRPC Name Resolution
        ("unix:x?t0ken", "unix:x"),
        ("dns:///a:1", "dns:///a:1"),
    ],
)
def test_an_origin_has_no_secret(url: str, origin: str) -> None:
    assert origin_of(url) == origin


# Requests above the limit of a receiver


def test_long_urls_are_sent_in_requests_that_a_receiver_accepts_over_grpc() -> None:
    """4 MiB is what a receiver accepts by default (grpc, GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH)."""
    received = Received()
    batch = spans(512, "http://a/" + "x" * 12_000)
    with grpc_receiver(received) as endpoint:
        whole = GrpcSpans(endpoint)
        assert whole.export(batch) is SpanExportResult.FAILURE
        watch = ExporterWatch(whole, "traces")
        assert watch.exporter.export(batch) is SpanExportResult.SUCCESS
        watch.shutdown()
    assert (len(received.spans()), watch.failed, watch.arrived) == (512, 0, True)


RAISE = "Raise the limit of the receiver (OpenTelemetry Collector: max_recv_msg_size_mib)."


def test_a_span_above_the_limit_is_reported_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    with grpc_receiver(Received()) as endpoint:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "10")
        monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES", "UNAVAILABLE")
        found, watch = messages("traces", GRPC, batch=[*spans(1), *spans(1, "x" * 2**22), *spans(1)])
    assert re.sub(r"4,194,\d{3} bytes", "SIZE", found[0], count=1) == (
        f"1 span was not sent: a request of SIZE is too large for {endpoint} (its limit is 4,194,304 bytes). {RAISE}"
    )
    assert (len(found), watch.lost) == (1, 1)


def many_points(count: int, text: str, *, kind: str = "counter") -> Any:
    """Return metrics with `count` data points of one instrument, and one of another."""
    reader = InMemoryMetricReader()
    exponential = View(instrument_name="many", aggregation=ExponentialBucketHistogramAggregation())
    views = [exponential] if kind == "exponential" else []
    meters = MeterProvider([reader], shutdown_on_exit=False, views=views, exemplar_filter=AlwaysOnExemplarFilter())
    meter = meters.get_meter("t")
    meter.create_counter("one").add(1)
    for number in range(count):
        attributes: dict[str, Any] = {"n": number, "url": text}
        if kind == "counter":
            meter.create_counter("many").add(1, attributes)
        else:
            meter.create_histogram("many").record(number, attributes)
    return reader.get_metrics_data()


@pytest.mark.parametrize("kind", ["counter", "histogram", "exponential"])
def test_many_data_points_are_sent_in_requests_that_a_receiver_accepts_over_grpc(kind: str) -> None:
    """`otel_connector.call.duration` and others have a data point for each host, project and outcome."""
    received = Received()
    batch = many_points(500, "http://a/" + "x" * 12_000, kind=kind)
    with grpc_receiver(received) as endpoint:
        whole = GrpcMetrics(endpoint)
        assert whole.export(batch) is MetricExportResult.FAILURE
        watch = ExporterWatch(whole, "metrics")
        assert watch.exporter.export(batch) is MetricExportResult.SUCCESS
        watch.shutdown()
    sent = [
        (metric.name, attributes_of(point).get("n"))
        for resource in received.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in getattr(metric, metric.WhichOneof("data")).data_points
    ]
    assert sorted(sent[1:]) == [("many", number) for number in range(500)]
    assert sent[0] == ("one", None)
    assert (watch.failed, watch.arrived, len(received.resource_metrics) > 3) == (0, True, True)


@pytest.mark.parametrize("signal", ["traces", "metrics"])
def test_large_requests_are_split_over_http_and_one_that_is_refused_does_not_hide_the_others(
    signal: str, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 9110, section 15.5.14: 413. Nothing tells the limit."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", origin := server.url("/")[:-1])
    text = "x" * 2**20
    batch = spans(4, text) if signal == "traces" else many_points(3, text)
    server.script(f"/v1/{signal}", [respond(413), respond()])
    found, watch = messages(signal, HTTP, batch=batch)
    sizes = [int(request.headers["Content-Length"]) for request in server.requests]
    assert len(sizes) > 1
    assert max(sizes) < 2**21
    too_large = f"a request of {sizes[0]:,} bytes is too large for {origin} (413 {HTTPStatus(413).phrase})."
    raises = "Raise the limit of the receiver (OpenTelemetry Collector: max_request_body_size)."
    assert found == [f"{signal.capitalize()} were not sent: {too_large} {raises}"]
    assert (watch.failed, watch.lost < 3, watch.arrived) == (1, True, True)


# The watch


class Ending(SpanExporter):
    """An exporter that is shut down while it exports, as at the end of a program."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.shutdown()
        raise ValueError("Cannot invoke RPC on closed channel!")


def test_an_export_that_the_shutdown_interrupts_raises_nothing() -> None:
    watch = ExporterWatch(Ending(), "traces")
    assert watch.exporter.export(spans()) is None
    assert watch.exporter.export(spans()) is None
    assert watch.failed == 2


def test_an_exception_of_a_channel_is_not_a_status() -> None:
    watch = ExporterWatch(GrpcSpans("http://127.0.0.1:1"), "traces")
    watch.exporter._channel.close()
    with pytest.raises(ValueError, match="closed channel"):
        watch.exporter.export(spans())
    assert watch.problem == Problem(kind=Kind.FAILED, answer="ValueError: Cannot invoke RPC on closed channel!")
    watch.shutdown()


def test_a_request_that_the_shutdown_cancels_has_no_reason() -> None:
    with listener(closes=False) as address, ThreadPoolExecutor(1) as pool:
        watch = ExporterWatch(GrpcSpans(f"http://{address}", timeout=20), "traces")
        export = pool.submit(watch.export, spans())
        while not watch.count:  # the request is sent some microseconds after that
            export.done()
        watch.shutdown()
        export.result(10)
    assert watch.failed == 1
    assert problem_of_status("CANCELLED", "Channel closed!", None, 0) is None


@pytest.mark.parametrize(
    ("details", "kind"),
    [
        ("DNS resolution failed for a:1: x", Kind.UNKNOWN_HOST),
        ("a text of a later version of grpc", Kind.STATUS),
        ("failed to connect to all addresses; last error: a new one", Kind.STATUS),
        ("failed to connect to all addresses; Trying to connect an http1.x server (HTTP status 400)", Kind.HTTP_PORT),
        ("failed to connect to all addresses; Peer name a is not in peer certificate", Kind.CERTIFICATE),
        ("data refused due to high memory usage", Kind.STATUS),  # memory_limiter of the OpenTelemetry Collector
        ("recvmsg:Connection reset by peer (104)", Kind.CLOSED),
        ("Socket closed", Kind.CLOSED),
    ],
)
def test_a_text_of_another_version_of_grpc(details: str, kind: Kind) -> None:
    problem = problem_of_status("UNAVAILABLE", details, None, 0)
    assert problem is not None
    assert problem.kind is kind


BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"  # of a server in Go, also to the start of TLS


@pytest.mark.parametrize(
    ("listens", "tls", "kind"),
    [
        (nothing, False, None),
        (nothing, True, None),
        (unknown_host, True, None),
        (http_server, False, Kind.HTTP_PORT),
        (partial(listener, BAD_REQUEST), True, Kind.NOT_TLS),
        (partial(http_server, tls=True), True, Kind.CONNECTION),
        (partial(grpc_server, accepting), False, Kind.CONNECTION),
        (listener, False, Kind.HTTP_PORT),
        (partial(listener, b"220 ready\r\n"), False, Kind.HTTP_PORT),
        (partial(listener, closes=False), False, Kind.CONNECTION),
    ],
)
def test_one_address_that_refuses_does_not_hide_what_listens_at_another(
    listens: Callable[[], AbstractContextManager[str]], tls: bool, kind: Kind | None
) -> None:
    with listens() as address:
        problem = what_listens(address, tls=tls)
    assert (problem and problem.kind) is kind


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_host_with_two_addresses_is_named_after_the_one_that_listens(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of "localhost", grpc tries 127.0.0.1 and ::1."""
    with listener(BAD_REQUEST) as address:
        port = address.rpartition(":")[2]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"{scheme}://localhost:{port}")
        found, _ = messages("traces", GRPC)
    (message,) = found
    assert ("does not speak TLS" if scheme == "https" else "speaks HTTP/1.1") in message


@pytest.mark.parametrize("protocol", [GRPC, "other"])
def test_an_exporter_without_the_private_attributes_fails_without_a_reason(protocol: str) -> None:
    class Other(SpanExporter):
        """Has what any version of the SDK has."""

        _endpoint = "http://a:1"

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            return SpanExportResult.FAILURE

    Other.__module__ = f"opentelemetry.exporter.otlp.proto.{protocol}.x"
    watch = ExporterWatch(Other(), "traces")
    assert watch.exporter.export(spans()) is SpanExportResult.FAILURE
    assert (watch.problem, watch.is_otlp) == (Problem(kind=Kind.UNKNOWN), True)


def test_an_answer_is_the_reason_of_a_loss_if_the_time_ends_during_the_retry_after_it() -> None:
    """The last try has only what is left of the timeout, however short that is."""

    class Retrying(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            for kind in kinds:
                note(Problem(kind=kind))
            return SpanExportResult.FAILURE

    watch = ExporterWatch(Retrying(), "traces")
    for kinds in ([Kind.NO_ANSWER], [Kind.TOO_LARGE, Kind.NO_ANSWER], [Kind.NO_ANSWER, Kind.STATUS]):
        watch.exporter.export(spans())
        assert watch.problem == Problem(kind=kinds[-1] if kinds[0] is Kind.NO_ANSWER else kinds[0])


def test_the_private_attributes_of_the_sdk_that_a_watch_uses_are_unchanged() -> None:
    """If this test fails, compare `_exporter_watch.py` and `_grpc_answers.py` with the new version of the SDK first."""
    for (signal, protocol), make in EXPORTERS.items():
        exporter = make(timeout=7)
        watch = ExporterWatch(exporter, signal)
        assert watch.target.protocol == protocol
        assert (watch.target.endpoint != "", watch.target.timeout) == (True, 7)
        if protocol == GRPC:
            assert "observe_channel" in exporter._stub.__qualname__
        else:
            assert first_of(exporter, _SESSIONS).request.is_observed
        watch.shutdown()


# What `configure()` logs


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "otel_connector"]


def test_a_loss_is_logged_once_a_minute_and_an_unsupported_signal_once(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.script("/v1/traces", [respond(500), respond(500), respond(500), respond()])
    server.script("/v1/metrics", respond(404))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", origin := server.url("/")[:-1])
    tracers, reader = TracerProvider(shutdown_on_exit=False), PeriodicExportingMetricReader(HttpMetrics())
    tracers.add_span_processor(BatchSpanProcessor(HttpSpans()))
    meters = MeterProvider([reader], shutdown_on_exit=False)
    meters.get_meter("t").create_counter("c").add(1)
    telemetry = Telemetry({"traces": tracers, "metrics": meters}, 5)
    for interval in (60, 60, 0):
        monkeypatch.setattr(_log_throttle, "LOG_INTERVAL", interval)
        tracers.get_tracer("t").start_span("s").end()
        assert not telemetry.force_flush()
    assert sorted(warnings_of(caplog)) == [
        UNSUPPORTED.format(origin=origin, answer="404 Not Found"),
        f"Traces were not sent: {origin} answered 500 Internal Server Error.",
        f"Traces were not sent: {origin} answered 500 Internal Server Error; 1 similar message was not logged",
    ]
    tracers.get_tracer("t").start_span("s").end()
    assert not telemetry.shutdown()  # the metrics
    assert len(warnings_of(caplog)) == 3
    assert (telemetry.sent_over_otlp(), telemetry.lost()) == ({"traces": origin}, ("traces",))


def test_the_end_of_a_program_reports_both_signals_in_one_line(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    partial: Any = {"rejected_spans": 1}
    body = ExportTraceServiceResponse(partial_success=partial).SerializeToString()
    server.script("/v1/traces", [respond(401), respond(200, body, content_type=PROTOBUF)])
    server.script("/v1/metrics", respond(401))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", origin := server.url("/")[:-1])
    for expected in (
        [f"Traces and metrics were not sent: {origin} answered 401 Unauthorized. Set OTEL_EXPORTER_OTLP_HEADERS."],
        [
            f"1 of 2 spans was rejected by {origin}.",
            f"Metrics were not sent: {origin} answered 401 Unauthorized. Set OTEL_EXPORTER_OTLP_HEADERS.",
        ],
    ):
        tracers, reader = TracerProvider(shutdown_on_exit=False), PeriodicExportingMetricReader(HttpMetrics())
        tracers.add_span_processor(BatchSpanProcessor(HttpSpans()))
        meters = MeterProvider([reader], shutdown_on_exit=False)
        meters.get_meter("t").create_counter("c").add(1)
        telemetry = Telemetry({"traces": tracers, "metrics": meters}, 5)
        for _ in range(2):
            tracers.get_tracer("t").start_span("s").end()
        assert not telemetry.shutdown()
        assert warnings_of(caplog) == expected
        assert telemetry.lost() == ("traces", "metrics")
        caplog.clear()


def test_a_server_that_takes_nothing_is_not_called_a_receiver_without_metrics(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", origin := server.url("/")[:-1])  # no path of it exists
    tracers, reader = TracerProvider(shutdown_on_exit=False), PeriodicExportingMetricReader(HttpMetrics())
    tracers.add_span_processor(BatchSpanProcessor(HttpSpans()))
    meters = MeterProvider([reader], shutdown_on_exit=False)
    meters.get_meter("t").create_counter("c").add(1)
    telemetry = Telemetry({"traces": tracers, "metrics": meters}, 5)
    tracers.get_tracer("t").start_span("s").end()
    assert not telemetry.shutdown()
    assert warnings_of(caplog) == [NO_RECEIVER.replace("Traces", "Traces and metrics").format(origin=origin)]


@contextmanager
def both_signals(server: FaultServer, base: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Telemetry]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url(base))
    tracers, reader = TracerProvider(shutdown_on_exit=False), PeriodicExportingMetricReader(HttpMetrics())
    tracers.add_span_processor(BatchSpanProcessor(HttpSpans()))
    meters = MeterProvider([reader], shutdown_on_exit=False)
    meters.get_meter("t").create_counter("c").add(1)
    telemetry = Telemetry({"traces": tracers, "metrics": meters}, 5)
    tracers.get_tracer("t").start_span("s").end()
    yield telemetry


@pytest.mark.parametrize("base", ["/", "/t0ken", "/t0ken/"])
def test_a_jaeger_behind_a_path_takes_no_metrics(
    base: str, server: FaultServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its traces arrive, so the path is right."""
    server.script(f"{base.rstrip('/')}/v1/traces", respond())
    with both_signals(server, base, monkeypatch) as telemetry:
        telemetry.signals[0].flush(5)
        telemetry.shutdown()
    origin = server.url("/")[:-1]
    assert warnings_of(caplog) == [UNSUPPORTED.format(origin=origin, answer="404 Not Found")]
    assert telemetry.lost() == ()


def test_a_receiver_of_metrics_behind_a_path_takes_no_traces(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Prometheus accepts metrics at /api/v1/otlp/v1/metrics: the endpoint is right for them."""
    server.script("/api/v1/otlp/v1/metrics", respond())
    with both_signals(server, "/api/v1/otlp", monkeypatch) as telemetry:
        telemetry.shutdown()
    remedy = "Set OTEL_TRACES_EXPORTER=none, or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT."
    assert warnings_of(caplog) == [
        f"Traces were not sent: {server.url('/')[:-1]} takes no traces (404 Not Found). {remedy}"
    ]


def test_a_wrong_path_is_reported_for_both_signals_in_one_line(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with both_signals(server, "/t0ken?x", monkeypatch) as telemetry:
        telemetry.shutdown()
    fields = {"what": "Traces and metrics", "variable": "OTEL_EXPORTER_OTLP_ENDPOINT", "origin": server.url("/")[:-1]}
    assert warnings_of(caplog) == [wrong_base("path and query").format(**fields)]
    assert telemetry.lost() == ("traces", "metrics")


def test_wrong_paths_in_the_variables_of_two_signals_are_two_lines(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", server.url("/v1/traces?t0ken"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", server.url("/t0ken/v1/metrics"))
    with both_signals(server, "/", monkeypatch) as telemetry:
        telemetry.shutdown()
    assert warnings_of(caplog) == [
        wrong_base(extra, f"/v1/{signal}").format(
            what=signal.capitalize(),
            variable=f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT",
            origin=server.url("/")[:-1],
        )
        for signal, extra in (("traces", "query"), ("metrics", "path"))
    ]


def test_rejected_items_of_two_signals_are_two_lines(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    partial: Any = {"rejected_spans": 1}  # the numbers of the fields are the same in all signals
    body = ExportTraceServiceResponse(partial_success=partial).SerializeToString()
    for signal in ("traces", "metrics"):
        server.script(f"/v1/{signal}", respond(200, body, content_type=PROTOBUF))
    with both_signals(server, "/", monkeypatch) as telemetry:
        telemetry.shutdown()
    origin = server.url("/")[:-1]
    assert [(each.msg, each.getMessage()) for each in caplog.records if each.name == "otel_connector"] == [
        ("%s rejected by %s", f"1 of 1 span was rejected by {origin}."),
        ("%s rejected by %s", f"1 of 1 data point was rejected by {origin}."),
    ]


def test_what_the_sdk_logs_is_a_repetition_only_if_the_problem_is_known() -> None:
    seen: list[Problem | None] = []
    note(None)  # of a session that is not watched
    with noting(seen.append):
        assert not has_noted()
        note(Problem(kind=Kind.REFUSED))
        assert has_noted()
    assert not has_noted()
    assert seen == [Problem(kind=Kind.REFUSED)]
