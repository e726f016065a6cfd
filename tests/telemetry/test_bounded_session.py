"""A collector cannot fill the memory with the body of its response (CWE-409)."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from support import forked

from otel_connector._replay._replay import open_otlp
from otel_connector._telemetry._bounded_session import session_options
from otel_connector.testing import FaultServer, bomb, endless, respond

SIZE = 256 * 2**20  # bytes after decompression
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
