"""Every way a call can end: its result or exception, its row, its span and its metrics, which must all agree."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from opentelemetry.trace import SpanKind, StatusCode
from support.logs import Log
from support.loop_and_memory import is_idle
from support.outcomes import OK_BODY, OUTCOMES, assert_span_carries, assert_times_agree, connector
from support.sdk import SDK

import otel_connector
from otel_connector import COLUMNS, AsyncConnector
from otel_connector._call._body import loads
from otel_connector.testing import (
    FakeClock,
    FaultServer,
    hold,
    hold_in_body,
    ok,
    redirect,
)


@pytest.mark.parametrize("name", OUTCOMES)
async def test_result_row_span_and_metrics_agree_for_each_outcome(
    name: str, server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    outcome = OUTCOMES[name]
    server.script("/x", outcome.steps)
    subject = connector(log, sdk, FakeClock(), timeout=outcome.timeout)
    url = server.url("/x")

    if outcome.error:
        with pytest.raises(getattr(otel_connector, outcome.error)) as caught:
            await subject.get(session, url, "P")
        error = caught.value
        assert type(error).__name__ == outcome.error
        assert (error.call_id, error.url, error.attempts) == (log.only().call_id, url, outcome.attempts)
    else:
        assert await subject.get(session, url, "P") == json.loads(OK_BODY)

    record, span = log.only(), sdk.span()
    assert (record.project, record.url, record.redirect_url) == ("P", url, "")
    assert record.response_code == outcome.code
    assert record.success == (not outcome.error)
    assert record.error.startswith(outcome.error)
    assert outcome.message in record.error
    if outcome.size is not None:
        assert record.response_size == outcome.size
    assert record.call_id == f"{span.context.trace_id:032x}-{span.context.span_id:016x}"
    assert_span_carries(span, record)
    assert_times_agree(span, record)

    attributes = dict(span.attributes or {})
    kind = outcome.error_type or (f"otel_connector.{outcome.error}" if outcome.error else None)
    assert attributes.get("error.type") == kind
    assert attributes.get("http.response.status_code") == outcome.code
    assert span.status.status_code is (StatusCode.ERROR if outcome.error else StatusCode.UNSET)
    failed = [event for event in span.events if event.name == "otel_connector.attempt"]
    expected = outcome.attempts - (not outcome.error) if outcome.events is None else outcome.events
    assert len(failed) == len(span.events) == expected
    numbers = [event.attributes["otel_connector.attempt.number"] for event in failed]
    assert numbers[-1:] == [outcome.attempts - (not outcome.error)][: len(failed)]
    assert len(server.received("/x")) == dict(span.attributes).get("http.request.resend_count", 0) + 1

    (point,) = sdk.points("http.client.request.duration")
    assert point.count == 1
    assert point.sum == record.delta_t
    assert point.attributes.get("error.type") == kind
    assert subject.stats().calls_active == 0
    assert is_idle(session)


async def test_a_redirect_chain_is_logged_with_its_first_and_last_url(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/a", redirect("/b"))
    server.script("/b", redirect("/c?token=hush"))
    server.script("/c", ok)

    assert await connector(log, sdk, FakeClock()).get(session, server.url("/a"), "P") == {"ok": True}

    record = log.only()
    assert record.url == server.url("/a")
    assert record.redirect_url == server.url("/c") + "?token=REDACTED"
    assert (record.response_code, record.success) == (200, True)
    assert_span_carries(sdk.span(), record)
    assert sdk.span().attributes["url.full"] == server.url("/a"), "the URL of the first request, not of a redirect"
    assert sdk.span().attributes["http.request.resend_count"] == 2


async def test_a_refused_connection_raises_connect_failed_and_is_logged(
    session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with pytest.raises(otel_connector.ConnectFailed, match="Cannot connect"):
            await connector(log, sdk, FakeClock()).get(session, url, "P")

    record = log.only()
    assert (record.response_code, record.response_size, record.success) == (None, 0, False)
    assert record.error.startswith("ConnectFailed: Cannot connect to host 127.0.0.1")
    assert_span_carries(sdk.span(), record)


async def test_an_untrusted_certificate_is_not_retried(
    tls_server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    clock = FakeClock()
    with pytest.raises(otel_connector.CertificateRejected) as caught:
        await connector(log, sdk, clock, timeout=5).get(session, tls_server.url("/x"), "P")

    assert caught.value.attempts == 1
    assert clock.sleeps == []
    assert log.only().error.startswith("CertificateRejected: ")


async def test_a_trusted_certificate_is_accepted(
    tls_server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    tls_server.script("/tls", ok)
    subject = connector(log, None, FakeClock(), timeout=5)
    assert await subject.get(session, tls_server.url("/tls"), "P", ssl=tls_server.client_ssl) == {"ok": True}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", ""),
        ("no url", "no%20url"),
        ("http://", "http://"),
        ("ftp://127.0.0.1/x", "ftp://127.0.0.1/x"),
        ("file:///etc/passwd", "file:///etc/passwd"),
        ("http://[::1/?token=hush", "http://[::1/?REDACTED"),
        ("http://127.0.0.1:99999/", "http://127.0.0.1:99999/"),
        ("http://user:hush@:80/", "http://REDACTED:REDACTED@:80/"),
        (f"http://{'a' * 70}.com/", f"http://{'a' * 70}.com/"),
    ],
)
async def test_an_invalid_url_raises_and_is_logged_without_its_secrets(
    url: str, shown: str, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    with pytest.raises(otel_connector.InvalidURL, match=r"^url |\w") as caught:
        await connector(log, sdk, FakeClock()).get(session, url, "P")

    assert isinstance(caught.value, ValueError)
    record = log.only()
    assert record.url in {shown, url}
    assert record.error.startswith("InvalidURL: ")
    assert "hush" not in record.error + record.url + str(caught.value)
    assert_span_carries(sdk.span(), record)


BAD_ARGUMENTS: dict[str, tuple[type[Exception], Callable[[aiohttp.ClientSession], dict[str, Any]]]] = {
    "session must be": (TypeError, lambda _: {"session": None}),
    "url must be": (TypeError, lambda _: {"url": 5}),
    "project_name must be": (TypeError, lambda _: {"project_name": None}),
    "decode must be": (TypeError, lambda _: {"decode": "json"}),
    "timeout must be a number": (TypeError, lambda _: {"timeout": "5"}),
    "timeout must be more than 0": (ValueError, lambda _: {"timeout": 0}),
    "timeout must be more than 0 seconds, and finite, not -1": (ValueError, lambda _: {"timeout": -1}),
    "params: ": (TypeError, lambda _: {"params": 5}),
    "headers: ": (TypeError, lambda _: {"headers": 5}),
    "raise_for_status is not": (TypeError, lambda _: {"raise_for_status": True}),
    "bogus is not an option of get": (TypeError, lambda _: {"bogus": 1}),
    "injection": (ValueError, lambda _: {"headers": {"X": "a\r\nb"}}),
}


@pytest.mark.parametrize("message", BAD_ARGUMENTS)
async def test_a_bad_argument_is_named_in_the_error_and_sends_no_request(
    message: str, server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    kind, changes = BAD_ARGUMENTS[message]
    arguments: dict[str, Any] = {"session": session, "url": server.url("/x"), "project_name": "P", "default": None}
    with pytest.raises(kind, match=message):
        await connector(log, sdk, FakeClock()).get(**{**arguments, **changes(session)})

    assert server.requests == []
    assert message in log.only().error
    assert_span_carries(sdk.span(), log.only())


async def test_a_closed_session_raises_session_closed(server: FaultServer, log: Log, sdk: SDK) -> None:
    async with aiohttp.ClientSession() as session:
        pass
    with pytest.raises(otel_connector.SessionClosed, match=r"^session is closed") as caught:
        await connector(log, sdk, FakeClock()).get(session, server.url("/x"), "P")
    assert isinstance(caught.value, ValueError)
    assert caught.value.attempts == 0
    assert log.only().url == server.url("/x")


async def test_a_session_closed_during_the_backoff_raises_session_closed(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", 503)

    class ClosingClock(FakeClock):
        async def sleep(self, delay: float) -> None:
            await session.close()
            await super().sleep(delay)

    with pytest.raises(otel_connector.SessionClosed):
        await connector(log, None, ClosingClock()).get(session, server.url("/x"), "P")
    assert log.only().error.startswith("SessionClosed")


def cancelled_before_the_headers(server: FaultServer) -> Any:
    held = hold()
    server.script("/x", held.step)
    return held.arrived


def cancelled_inside_the_body(server: FaultServer) -> Any:
    held = hold_in_body()
    server.script("/x", held.step)
    return held.arrived


@pytest.mark.parametrize("phase", [cancelled_before_the_headers, cancelled_inside_the_body])
async def test_a_call_cancelled_during_a_request_is_logged(
    phase: Callable[[FaultServer], Any], server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    arrived = phase(server)
    subject = connector(log, sdk, FakeClock(), timeout=30)
    task = asyncio.create_task(subject.get(session, server.url("/x"), "P", default="not for a cancelled call"))
    await arrived
    assert subject.stats().calls_active == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert_cancelled(log, sdk, session)


async def test_a_call_cancelled_during_the_backoff_is_logged(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", 503)
    sleeping = asyncio.Event()

    class EndlessSleepClock(FakeClock):
        async def sleep(self, delay: float) -> None:
            sleeping.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(connector(log, sdk, EndlessSleepClock()).get(session, server.url("/x"), "P"))
    await sleeping.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log.only().response_code == 503
    assert_cancelled(log, sdk, session)


async def test_a_call_cancelled_while_it_waits_for_a_connection_is_logged(
    server: FaultServer, log: Log, sdk: SDK
) -> None:
    held = hold()
    server.script("/x", held.step)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        subject = connector(None, None, FakeClock(), timeout=30)
        first = asyncio.create_task(subject.get(session, server.url("/x"), "P"))
        await held.arrived
        waiting = asyncio.create_task(connector(log, sdk, FakeClock(), timeout=30).get(session, server.url("/x"), "P"))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        held.release()
        assert await first == {"ok": True}
        assert_cancelled(log, sdk, session)


def assert_cancelled(log: Log, sdk: SDK, session: aiohttp.ClientSession) -> None:
    record, span = log.only(), sdk.span()
    assert (record.success, record.error.split(":")[0]) == (False, "CancelledError")
    assert_span_carries(span, record)
    assert span.status.status_code is StatusCode.UNSET, "a cancellation is not an error"
    assert "error.type" not in span.attributes
    assert is_idle(session)


async def test_name_attributes_and_scope_of_the_span_of_a_successful_call(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", ok)
    await connector(log, sdk, FakeClock()).get(session, server.url("/x", a="1"), "P", params={"b": "ü"})

    span, record = sdk.span(), log.only()
    assert (span.name, span.kind) == ("GET", SpanKind.CLIENT)
    assert record.url == server.url("/x") + "?a=1&b=%C3%BC"
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "url.full": record.url,
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        **{
            f"otel_connector.{name}": getattr(record, name) for name in COLUMNS if name not in {"redirect_url", "error"}
        },
    }
    assert span.instrumentation_scope.name == "otel_connector"
    assert span.instrumentation_scope.version == otel_connector.__version__
    assert span.instrumentation_scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"


@pytest.mark.parametrize(
    ("status", "kind", "attempts"),
    [
        (b"407 Proxy Authentication Required", otel_connector.ProxyRefused, 1),
        (b"403 Forbidden", otel_connector.ProxyRefused, 1),
        (b"429 Too Many Requests", otel_connector.ConnectFailed, 3),
        (b"502 Bad Gateway", otel_connector.ConnectFailed, 3),
    ],
)
async def test_a_proxy_that_refuses_connect_is_retried_for_transient_statuses_only(
    status: bytes, kind: type[otel_connector.ConnectFailed], attempts: int, log: Log
) -> None:
    requests: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    subject = AsyncConnector(log.path, n_tries=3, clock=FakeClock())
    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as proxy, aiohttp.ClientSession() as session:
        port = proxy.sockets[0].getsockname()[1]
        with pytest.raises(otel_connector.ConnectFailed) as caught:
            await subject.get(session, "https://127.0.0.1:1/x", "P", proxy=f"http://127.0.0.1:{port}")
    assert type(caught.value) is kind
    assert (caught.value.attempts, len(requests)) == (attempts, attempts)
    assert status.decode()[:3] in log.only().error
    assert log.only().response_code is None


@pytest.mark.parametrize(
    "body",
    [
        *(b'{"a": [1, null]}', b"[1]", b"[]\n", b"{}\r\n\t ", b" [1]", b"1", b'"x"', b"[NaN]", b'["\xed\xa0\x80"]'),
        *(
            '{"a": "\u00e4"}'.encode(encoding)
            for encoding in ("utf-8", "utf-8-sig", "utf-16-le", "utf-16", "utf-32-be")
        ),
        *(b"", b"[", b"[1,]", b"{'a': 1}", b"[1] x", b"[1]\xc2\xa0", b"[1]\x0b", b"{}{}", b"[1]\n\n]", b'["\xff"]'),
        b"[" * 100_000,
    ],
    ids=lambda body: repr(body[:12]),
)
def test_the_decoder_returns_and_raises_the_same_as_json_loads(body: bytes) -> None:
    """`loads` replaces `json.loads`: it must return the same values and raise the same errors."""

    def outcome(decode: Callable[[bytes], Any]) -> str:
        try:
            return repr(decode(body))
        except (ValueError, RecursionError) as error:
            return repr((type(error), error))

    assert outcome(loads) == outcome(json.loads)
