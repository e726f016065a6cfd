"""Regression tests for defects that external testers found when they tried to break the package."""

from __future__ import annotations

import asyncio
import gc
import gzip
import weakref
import zlib
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from support.logs import Log
from support.loop_and_memory import is_idle
from support.sdk import SDK

import otel_connector
from otel_connector import (
    AsyncConnector,
    Attempt,
    ConnectorError,
    CSVSpanExporter,
    CSVSpanProcessor,
    RetryBudget,
    RetryPolicy,
)
from otel_connector._redact import Redactor
from otel_connector.testing import FakeClock, FaultServer, hold, ok, redirect, respond


@pytest.mark.parametrize("processor", [CSVSpanProcessor, SimpleSpanProcessor])
async def test_a_row_is_not_truncated_by_the_attribute_length_limit_of_the_sdk(
    processor: Any, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/a/very/long/path", ok)
    exporter = CSVSpanExporter(log.path)
    provider = TracerProvider(
        resource=Resource.get_empty(), span_limits=SpanLimits(max_attribute_length=16), shutdown_on_exit=False
    )
    provider.add_span_processor(processor(exporter))
    subject = AsyncConnector(exporter, tracer_provider=provider)
    await subject.get(session, server.url("/a/very/long/path"), "Project with a long name")
    assert (log.only().project, log.only().url) == ("Project with a long name", server.url("/a/very/long/path"))
    exporter.shutdown()


@pytest.mark.parametrize("url", ["http://u:пароль@127.0.0.1:1/", "http://u:%D0%BF@127.0.0.1:1/"])
async def test_a_password_that_cannot_be_encoded_is_not_shown_in_the_error_or_the_log(
    url: str, session: aiohttp.ClientSession, log: Log
) -> None:
    with pytest.raises(otel_connector.InvalidURL) as caught:
        await AsyncConnector(log.path, clock=FakeClock()).get(session, url, "P")
    assert caught.value.__cause__ is None
    assert "парол" not in repr(caught.value) + log.path.read_text()


@pytest.mark.parametrize("location", ["http://ж@127.0.0.1:1/", "http://a..b/", f"http://{'a' * 70}.com/"])
async def test_a_redirect_to_a_url_that_cannot_be_encoded_fails_the_call(
    location: str, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    head = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"

    async def play(connection: Any) -> None:
        await connection.send(head.encode())

    server.script("/x", play)
    subject = AsyncConnector(log.path, n_tries=1, clock=FakeClock())
    assert await subject.get(session, server.url("/x"), "P", default="D") == "D"
    assert log.only().error.startswith(("RedirectRefused: ", "ConnectFailed: "))


@pytest.mark.parametrize("host", ["xn--a", "xn--", "a.xn--", "xn--zzzzzzzzz.com"])
async def test_a_host_that_cannot_be_decoded_makes_the_url_invalid(
    host: str, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    subject = AsyncConnector(log.path, n_tries=1, **sdk.providers)
    assert await subject.get(session, f"http://{host}/", "P", default="D") == "D"
    assert log.only().error == f"InvalidURL: url has a host that cannot be decoded: http://{host}/"
    assert (subject.stats().calls_active, subject.stats().calls_failed) == (0, 1)
    assert sdk.span().name == "GET"


async def test_a_redirect_that_conflicts_with_the_callers_headers_is_refused(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    """The ValueError that aiohttp raises here would blame the caller for a redirect of the server."""
    server.script("/x", redirect(server.url("/y").replace("//", "//evil:hunter2@")))
    server.script("/y", ok)
    subject = AsyncConnector(log.path, n_tries=1)
    with pytest.raises(otel_connector.RedirectRefused) as caught:
        await subject.get(session, server.url("/x"), "P", headers={"Authorization": "x"})
    assert "hunter2" not in str(caught.value) + log.path.read_text()


async def test_a_response_truncated_within_its_headers_reveals_no_cookie(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    async def play(connection: Any) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\nSet-Cookie: sid=TOPSECRET\r\nX-")
        connection.close()

    server.script("/x", play)
    with pytest.raises(otel_connector.ConnectFailed) as caught:
        await AsyncConnector(log.path, n_tries=1).get(session, server.url("/x"), "P")
    assert "TOPSECRET" not in str(caught.value) + log.path.read_text()


@pytest.mark.parametrize("length", [b"", b"Content-Length: 8\r\n"])
async def test_a_205_response_ends_without_a_wait_for_its_body(
    length: bytes, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    async def play(connection: Any) -> None:
        await connection.send(b"HTTP/1.1 205 Reset Content\r\n" + length + b"\r\n")
        await asyncio.Event().wait()

    server.script("/x", play)
    assert await AsyncConnector(log.path, n_tries=1, timeout=5).get(session, server.url("/x"), "P") is None
    assert log.only().response_code == 205
    assert is_idle(session)


async def test_a_call_in_flight_at_aclose_succeeds_and_its_row_is_written(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    held = hold()
    server.script("/x", held.step)
    async with AsyncConnector(log.path) as subject:
        task = asyncio.create_task(subject.get(session, server.url("/x"), "P"))
        await held.arrived
    with pytest.raises(RuntimeError, match="closed"):
        await subject.get(session, server.url("/x"), "P")
    held.release()
    assert await task == {"ok": True}
    assert log.only().success
    assert subject.stats().rows_lost == 0


async def test_rows_of_a_shared_log_are_counted_once_in_the_metrics(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", ok)
    exporter = CSVSpanExporter(log.path)
    for number in range(1, 4):
        subject = AsyncConnector(exporter, **sdk.providers)
        await subject.get(session, server.url("/x"), "P")
        del subject
        gc.collect()
        assert [point.value for point in sdk.points("otel_connector.rows.written")] == [number]
    del exporter
    gc.collect()
    assert [point.value for point in sdk.points("otel_connector.rows.written")] == [3]


async def test_two_exporters_on_one_file_write_a_call_once(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", ok)
    provider = TracerProvider(resource=Resource.get_empty(), shutdown_on_exit=False)
    provider.add_span_processor(CSVSpanProcessor(CSVSpanExporter(log.path)))
    subject = AsyncConnector(log.path, tracer_provider=provider)
    await subject.get(session, server.url("/x"), "P")
    assert log.only().success


@pytest.mark.parametrize(
    "secret",
    [
        "http://u:canary\uff20host/",
        "http://host:canary/",
        "http://h/?u=http://a:canary@b/",
        "http://h/p/http://a:canary@b/",
        "http://h/?token[]=canary",
        "http://h/?token%5B0%5D=canary",
        "http://h/?%20token=canary",
        "http://h/?token+=canary",
        "http://h/?next=%2Fa%3Ftoken%3Dcanary",
    ],
)
def test_secrets_in_unusual_notations_are_redacted(secret: str) -> None:
    assert "canary" not in Redactor().url(secret)


@pytest.mark.parametrize(
    "location",
    [
        "ftp://h/?a=%26token%3Dcanary",
        "ftp://u:canary PW@h/",
        "http://u:canary PW@h:abc/",
        "http://u:canary<PW@h:abc/",
        'ftp://h/?token=a"canary',
        "http://[::1/?token=a<canary",
        "http://h:abc/?next=http%3A%2F%2Fu%3Acanary%40z",
    ],
)
async def test_secrets_in_a_rejected_redirect_target_are_not_shown(
    location: str, server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", redirect(location))
    subject = AsyncConnector(log.path, n_tries=1, **sdk.providers)
    with pytest.raises(otel_connector.ConnectorError) as caught:
        await subject.get(session, server.url("/x"), "P")
    assert "canary" not in f"{caught.value}{log.only()}{sdk.span().to_json()}"


@pytest.mark.parametrize("host", ["u:canary\uff20127.0.0.1:1", "u:canary PW\uff1ax@h", "u:canary\u2039PW\uff0fx@h"])
async def test_secrets_in_a_rejected_url_are_not_shown(
    host: str, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    subject = AsyncConnector(log.path, n_tries=1, **sdk.providers)
    with pytest.raises(otel_connector.InvalidURL) as caught:
        await subject.get(session, f"http://{host}/", "P")
    assert "canary" not in f"{caught.value}{log.only()}{sdk.span().to_json()}"


@pytest.mark.parametrize(
    ("proxy", "error"),
    [
        *(
            (each, "it must start with http:// or https:// and a host$")
            for each in ("canary", "canary x", "http:canary")
        ),
        *(
            (each, "it must start with http:// or https:// and a host$")
            for each in ("canary", "canary x", "http:canary", "canary:x", "u:canary@h:80")
        ),
        ("http://h:99999", "http://h:99999$"),
        ("http://us:canary\uff20h/", "http://REDACTED@h/"),
    ],
)
async def test_a_proxy_that_is_not_a_url_is_named_in_the_error(
    proxy: str, error: str, server: FaultServer, session: aiohttp.ClientSession
) -> None:
    with pytest.raises(otel_connector.InvalidURL, match=f"^proxy is not a URL: {error}"):
        await AsyncConnector(None).get(session, server.url("/x"), "P", proxy=proxy)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"headers": {"a": 5}}, "headers: a must be a str"),
        ({"cookies": 5}, "^cookies: "),
        ({"cookies": {"a b": "x"}}, "^cookies: "),
        ({"read_bufsize": 0}, "read_bufsize must be at least 1"),
        ({"foo": 1}, "^foo is not an option of get$"),
        ({"foo": 1, "headers": {"a": "b"}}, "^foo is not an option of get$"),
        ({"skip_auto_headers": 5}, "skip_auto_headers"),
        ({"proxy": 5}, "proxy"),
        ({"middlewares": 5}, "middlewares"),
        ({"ssl": "idna"}, "ssl"),
        ({"timeout": aiohttp.ClientTimeout(total=-1)}, "timeout.total"),
        ({"decode": None}, "decode"),
    ],
)
async def test_a_bad_option_is_named_in_the_error(
    options: dict[str, Any], name: str, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", ok)
    with pytest.raises((TypeError, ValueError), match=name) as caught:
        await AsyncConnector(log.path, clock=FakeClock()).get(session, server.url("/x"), "P", **options)
    assert not isinstance(caught.value, ConnectorError)
    assert not log.only().success


async def test_an_asynchronous_decoder_is_refused(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    async def decode(body: bytes) -> bytes:
        return body

    server.script("/x", ok)
    with pytest.raises(TypeError, match="decode must be a plain function"):
        await AsyncConnector(log.path).get(session, server.url("/x"), "P", decode=decode)
    assert not log.only().success


def test_a_backoff_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(ValueError, match="backoff"):
        RetryPolicy(backoff=10**400)


@pytest.mark.parametrize("url", ["nope", "http://127.0.0.1:1/"])
async def test_errors_are_freed_without_the_garbage_collector(url: str, session: aiohttp.ClientSession) -> None:
    subject = AsyncConnector(None, n_tries=2, clock=FakeClock())
    gc.collect()
    gc.disable()
    try:
        seen: list[weakref.ref[ConnectorError]] = []
        try:
            await subject.get(session, url, "P")
        except ConnectorError as error:
            seen.append(weakref.ref(error))
        assert [error() for error in seen] == [None]
    finally:
        gc.enable()


async def test_a_call_whose_arguments_raise_when_they_are_read_is_logged(
    session: aiohttp.ClientSession, log: Log
) -> None:
    class Hostile(dict[str, str]):
        def keys(self) -> Any:
            raise RuntimeError("no")

        items = __iter__ = keys

    class Text(str):
        __slots__ = ()

        def __str__(self) -> str:
            raise RuntimeError("no")

    subject = AsyncConnector(log.path, clock=FakeClock())
    with pytest.raises(RuntimeError, match="no"):
        await subject.get(session, "http://127.0.0.1:1/", "P", params=Hostile(a="b"))
    with pytest.raises(otel_connector.ConnectFailed):  # the text that it holds is requested
        await subject.get(session, Text("http://127.0.0.1:2/"), Text("P"))
    first, second = log.records()
    assert (first.url, second.url) == ("http://127.0.0.1:1/", "http://127.0.0.1:2/")
    assert first.error == "RuntimeError: REDACTED", "what the option contains is not known"


async def test_control_characters_of_a_reason_phrase_are_not_in_the_exception(
    server: FaultServer, session: aiohttp.ClientSession
) -> None:
    async def play(connection: Any) -> None:
        await connection.send(b"HTTP/1.1 404 A\x1b[31mB \xf6\r\nContent-Length: 0\r\n\r\n")

    server.script("/x", play)
    with pytest.raises(ConnectorError) as caught:
        await AsyncConnector(None).get(session, server.url("/x"), "P")
    str(caught.value).encode()
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("status", ["000", "099", "101"])
async def test_a_status_that_is_not_a_final_response_is_malformed(
    status: str, server: FaultServer, session: aiohttp.ClientSession
) -> None:
    async def play(connection: Any) -> None:
        await connection.send(f"HTTP/1.1 {status} Odd\r\nContent-Length: 2\r\n\r\n{{}}".encode())

    server.script("/x", play)
    with pytest.raises(otel_connector.MalformedResponse):
        await AsyncConnector(None, n_tries=1, timeout=5).get(session, server.url("/x"), "P")


@pytest.mark.timing
async def test_an_error_response_with_an_unfinished_body_does_not_delay_the_call(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    async def play(connection: Any) -> None:
        await connection.send(b"HTTP/1.1 404 Gone\r\nContent-Length: 100\r\n\r\nbegin")
        await asyncio.Event().wait()

    server.script("/x", play)
    with pytest.raises(otel_connector.HTTPStatusError):
        await AsyncConnector(log.path, timeout=30).get(session, server.url("/x"), "P")
    assert log.only().delta_t < 5
    assert log.only().response_size == 5


async def test_a_corrupt_gzip_body_raises_decode_failed(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    body = gzip.compress(b"{}")[:-12] + b"garbage"
    server.script("/x", respond(body=body, headers=[("Content-Encoding", "gzip")]))
    with pytest.raises(otel_connector.DecodeFailed):
        await AsyncConnector(log.path, n_tries=1).get(session, server.url("/x"), "P")


async def test_a_redirect_to_an_unreachable_host_is_in_the_row(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", redirect("http://127.0.0.1:1/there"))
    with pytest.raises(otel_connector.ConnectFailed):
        await AsyncConnector(log.path, n_tries=1).get(session, server.url("/x"), "P")
    assert log.only().redirect_url == "http://127.0.0.1:1/there"
    assert log.only().response_code == 302


def test_rows_written_to_a_closed_log_are_reported_as_lost(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    exporter = CSVSpanExporter(Path(log.path))
    exporter.shutdown()
    exporter._rows.write([b"row\n"])
    assert "the rows are lost" in caplog.text


async def test_a_truncated_deflate_body_that_arrives_with_the_headers_is_detected(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    body = zlib.compress(bytes(range(256)) * 4)[:-40]
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    async def play(connection: Any) -> None:
        await connection.send(head + body)

    server.script("/x", play)
    with pytest.raises(otel_connector.BodyTruncated):
        await AsyncConnector(log.path, n_tries=1, timeout=5).get(session, server.url("/x"), "P")


def test_an_asynchronous_on_retry_hook_is_refused() -> None:
    async def hook(attempt: Attempt) -> None:
        del attempt

    with pytest.raises(TypeError, match="on_retry must be a plain function"):
        AsyncConnector(None, on_retry=hook)


@pytest.mark.parametrize("budget", [None, RetryBudget(capacity=28)])
async def test_a_call_cancelled_during_the_backoff_costs_no_tokens(
    budget: RetryBudget | None, server: FaultServer, session: aiohttp.ClientSession
) -> None:
    server.script("/x", 500)

    class Cancelling(FakeClock):
        async def sleep(self, delay: float) -> None:
            raise asyncio.CancelledError

    subject = AsyncConnector(None, retry_budget=budget, clock=Cancelling())
    for _ in range(5):  # each retry would cost 14 tokens
        with pytest.raises(asyncio.CancelledError):
            await subject.get(session, server.url("/x"), "P")
