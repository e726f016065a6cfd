"""A collector cannot fill the memory with the body of its response (CWE-409)."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import tracemalloc
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from support import forked

from otel_connector._replay._replay import open_otlp
from otel_connector._telemetry._bounded_session import _AnswerLimit, session_options
from otel_connector._telemetry._export_problem import Kind
from otel_connector._telemetry._exporter_watch import ExporterWatch
from otel_connector.testing import FaultServer, Step, bomb, drip, endless, respond, silent, slow_body, truncated_chunks

SIZE = 64 * 2**20  # bytes after decompression
MOST = 4 * 2**20  # bytes of memory


def a_span() -> Any:
    return TracerProvider(shutdown_on_exit=False).get_tracer("t").start_span("s")


@pytest.mark.parametrize("body", ["a bomb", "an endless body"])
def test_only_the_beginning_of_a_response_is_read(body: str, server: FaultServer) -> None:
    server.script("/v1/traces", endless() if body == "an endless body" else bomb(SIZE))
    exporter: Any = OTLPSpanExporter(server.url("/v1/traces"), **session_options())
    tracemalloc.start()
    try:
        result = exporter.export([a_span()])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        exporter.shutdown()
    assert (result, peak < MOST) == (SpanExportResult.SUCCESS, True)


def test_the_status_and_the_reason_of_an_error_are_logged_as_before(
    server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.script("/v1/traces", respond(status=400, body=b"no such tenant", headers=[("Set-Cookie", "a=b")]))
    for options in ({}, session_options()):
        exporter: Any = OTLPSpanExporter(server.url("/v1/traces"), **options)
        assert exporter.export([a_span()]) is SpanExportResult.FAILURE
        exporter.shutdown()
    plain, bounded = caplog.messages
    assert plain == bounded
    assert "400" in bounded


def test_a_connection_is_used_again_after_a_short_response(server: FaultServer) -> None:
    server.script("/v1/traces", respond(body=b"\0" * 1_000))
    exporter: Any = OTLPSpanExporter(server.url("/v1/traces"), **session_options())
    for _ in range(3):
        assert exporter.export([a_span()]) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert len({request.connection for request in server.requests}) == 1


def test_an_export_succeeds_if_no_thread_can_be_started(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.12.0 and 3.12.1 start none while the program ends, and no version if the system has no more."""
    server.script("/v1/traces", respond(body=b"", headers=[("Content-Type", "application/x-protobuf")]))
    exporter: Any = OTLPSpanExporter(server.url("/v1/traces"), **session_options())

    def start(_timer: threading.Timer) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Timer, "start", start)
    assert exporter.export([a_span()]) is SpanExportResult.SUCCESS
    exporter.shutdown()


def test_the_session_of_a_credential_provider_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER", "mine")
    assert session_options() == {}


def test_the_exporter_of_replay_is_bounded(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url("/"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    server.script("/v1/traces", bomb(SIZE))
    exporter, _ = open_otlp()
    tracemalloc.start()
    try:
        exporter.export([a_span()])
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()
        exporter.shutdown()


CONFIGURED = """
import resource, sys
from opentelemetry import metrics, trace
import otel_connector

telemetry = otel_connector.configure("test")
trace.get_tracer("t").start_span("s").end()
metrics.get_meter("m").create_counter("c").add(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert not telemetry.force_flush()  # the body is not a message of OTLP
telemetry.shutdown()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_the_exporters_that_configure_creates_are_bounded(server: FaultServer, tmp_path: Path) -> None:
    server.script("/v1/traces", bomb(SIZE))
    server.script("/v1/metrics", bomb(SIZE))
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url("/"), "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    done = forked.run_python(["-c", CONFIGURED], tmp_path, **variables)
    assert {request.path for request in server.requests} == {"/v1/traces", "/v1/metrics"}
    assert int(done.stdout) < SIZE // 2**20 // 4, done.stderr


def trickle(name: str, first: bytes) -> Step:
    """Send one byte every 0.1 s after the first bytes, without end."""

    async def play(connection: Any) -> None:
        await connection.send(first)
        while True:
            await connection.send(b"a")
            await asyncio.sleep(0.1)

    return Step(name=name, play=play)


SLOW = [
    silent,
    trickle("status line", b"HTTP/1.1 200 "),
    trickle("headers", b"HTTP/1.1 200 OK\r\nX-Header: "),
    trickle("body with a length", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"),
    trickle("body until the connection is closed", b"HTTP/1.1 200 OK\r\n\r\n"),
    drip(0.1),
    slow_body(60.0),
]


@pytest.mark.parametrize("step", SLOW, ids=lambda step: step.name)
def test_the_timeout_limits_the_whole_answer(step: Step, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_EXPORTER_OTLP_TIMEOUT: "Maximum time the OTLP exporter will wait for each batch export"."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url("/"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0.7")
    server.script("/v1/traces", [step, respond(content_type=None)])
    watch = ExporterWatch(open_otlp()[0], "traces")
    watch.export([a_span()])
    assert watch.problem is not None
    assert (watch.problem.kind, watch.lost) == (Kind.NO_ANSWER, 1)
    watch.export([a_span()])  # a new connection
    watch.shutdown()
    assert (watch.arrived, watch.lost) == (True, 1)


def test_a_body_that_is_cut_short_is_not_a_timeout(server: FaultServer) -> None:
    server.script("/v1/traces", truncated_chunks())
    watch = ExporterWatch(OTLPSpanExporter(server.url("/v1/traces"), **session_options()), "traces")
    watch.export([a_span()])
    watch.shutdown()
    assert watch.problem is not None
    assert (watch.problem.kind, watch.lost) == (Kind.CUT, 1)


def test_an_answer_that_ends_in_time_is_not_interrupted_later() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        limit = _AnswerLimit(ours, None)
        assert limit.end()
        limit._expire()  # its thread was late
        theirs.send(b"next")
        assert ours.recv(4) == b"next"


@pytest.fixture
def no_settings_of_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NO_PROXY", "no_proxy"):  # requests prefers the first two
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.7")


@pytest.mark.usefixtures("no_settings_of_requests")
@pytest.mark.parametrize("step", SLOW[2:4], ids=lambda step: step.name)
def test_the_timeout_limits_the_whole_answer_over_tls(
    step: Step, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with FaultServer(tls=True) as server:
        (authority,) = server.client_ssl.get_ca_certs(binary_form=True)
        (tmp_path / "authority.pem").write_text(ssl.DER_cert_to_PEM_cert(authority))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(tmp_path / "authority.pem"))
        server.script("/v1/traces", [step, respond(content_type=None)])
        watch = ExporterWatch(OTLPSpanExporter(server.url("/v1/traces"), **session_options()), "traces")
        for _ in range(3):  # the third with a connection that is used again
            watch.export([a_span()])
        watch.shutdown()
    assert (watch.problem, watch.arrived, watch.lost) == (None, True, 1)


@pytest.mark.usefixtures("no_settings_of_requests")
def test_the_timeout_limits_the_whole_answer_of_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            with suppress(OSError):  # the exporter closes the connection
                while not over.wait(0.1):
                    self.wfile.write(b"a")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01}).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
        try:
            exporter = OTLPSpanExporter("http://collector.invalid/v1/traces", **session_options())
            watch = ExporterWatch(exporter, "traces")
            for _ in range(2):  # the second with a manager that is used again
                watch.export([a_span()])
            watch.shutdown()
        finally:
            over.set()
            proxy.shutdown()
    assert watch.problem is not None
    assert (watch.problem.kind, watch.lost) == (Kind.NO_ANSWER, 2)
