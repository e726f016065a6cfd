"""Arguments of `get` and of the constructor: every option reaches aiohttp, and every bad argument is named."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import math
import os
import random
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from multidict import CIMultiDict, MultiDict
from support import processes
from support.logs import Log
from support.outcomes import assert_span_carries
from support.sdk import SDK

import otel_connector
from otel_connector import AsyncConnector, CSVSpanExporter
from otel_connector.testing import (
    Connection,
    FakeClock,
    FaultServer,
    compressed,
    disconnect,
    endless,
    garbage,
    hold,
    hold_in_body,
    ok,
    redirect,
    respond,
    silent,
    truncated,
)

OK = {"ok": True}


def connector(log: Log | None = None, sdk: SDK | None = None, **options: Any) -> AsyncConnector:
    providers = sdk.providers if sdk else {}
    arguments: dict[str, Any] = {"timeout": 5, "clock": FakeClock(), **providers, **options}
    return AsyncConnector(log.path if log else None, **arguments)


def files(folder: Path) -> dict[str, bytes | None]:
    """The contents of the files in `folder`, or None for an entry that is not a regular file."""
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}


@contextlib.contextmanager
def no_file_changed_or_left_open(folder: Path) -> Iterator[None]:
    """Check that the block changes no file in `folder` and leaves no descriptor open."""

    def seen() -> tuple[dict[str, bytes | None], int]:
        free = os.open(os.devnull, os.O_RDONLY)  # the lowest free number; it is higher if one was leaked
        os.close(free)
        return files(folder), free

    before = seen()
    yield
    assert seen() == before


# Options of the request and of the body


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ({"X-A": "1"}, ["1"]),
        (CIMultiDict([("x-a", "1"), ("x-a", "2")]), ["1", "2"]),
        ([("X-A", "1"), ("X-A", "2")], ["1", "2"]),
        (iter([("X-A", "1")]), ["1"]),
        (CIMultiDict({"X-A": "1"}).items(), ["1"]),
        ({}, ["session"]),
        (None, ["session"]),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_headers_replace_those_of_the_session_in_every_attempt(
    headers: Any, sent: list[str], server: FaultServer, sdk: SDK
) -> None:
    """The mapping of the caller is not changed."""
    server.script("/x", [503, ok])
    given = repr(headers)
    async with aiohttp.ClientSession(headers={"X-A": "session", "X-B": "session"}) as session:
        assert await connector(None, sdk).get(session, server.url("/x"), "P", headers=headers) == OK
    for request in server.requests:
        assert request.headers.getall("X-A") == sent
        assert request.headers["X-B"] == "session"
        assert len(request.headers.getall("traceparent")) == 1
    assert len(server.requests) == 2
    assert repr(headers) == given


@pytest.mark.parametrize(
    ("params", "query"),
    [
        ({"b": "x y"}, "a=1&b=x+y"),
        ({"a": 2, "b": 0.5}, "a=1&a=2&b=0.5"),
        ([("b", "1"), ("b", "2")], "a=1&b=1&b=2"),
        (MultiDict([("b", "1"), ("b", "ü&=")]), "a=1&b=1&b=%C3%BC%26%3D"),
        ("b=1&c", "a=1&b=1&c"),
        ({"b": ["1", "2"]}, "a=1&b=1&b=2"),
        ({}, "a=1"),
        (None, "a=1"),
        ("", "a=1"),
    ],
    ids=str,
)
async def test_params_are_added_to_the_query_as_aiohttp_does(
    params: Any, query: str, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    """The logged URL is the one that was sent."""
    server.script("/x", ok)
    await connector(log).get(session, server.url("/x", a=1), "P", params=params)
    async with session.get(server.url("/x", a=1), params=params):
        pass
    sent, sent_by_aiohttp = server.requests
    assert sent.query == sent_by_aiohttp.query == query
    assert log.only().url == server.url("/x") + "?" + query


async def test_cookies_are_sent_in_every_attempt(server: FaultServer, session: aiohttp.ClientSession) -> None:
    server.script("/x", [503, ok])
    await connector().get(session, server.url("/x"), "P", cookies={"a": "1"})
    assert [request.headers["Cookie"] for request in server.requests] == ["a=1", "a=1"]


@pytest.mark.parametrize("auto_decompress", [True, False])
async def test_auto_decompress_selects_whether_decode_gets_the_decompressed_body(
    auto_decompress: bool, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    """The logged size is the size of the body that `decode` gets."""
    server.script("/x", compressed(b"x" * 1000))
    body = await connector(log).get(session, server.url("/x"), "P", decode=bytes, auto_decompress=auto_decompress)
    assert (body if auto_decompress else gzip.decompress(body)) == b"x" * 1000
    assert log.only().response_size == len(body)


async def test_a_body_without_a_length_is_empty_if_read_until_eof_is_false(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    async def without_length(connection: Connection) -> None:
        await connection.send(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"ok": true}')
        connection.close()

    server.script("/x", without_length)
    assert await connector(log).get(session, server.url("/x"), "P") == OK
    assert await connector(log).get(session, server.url("/x"), "P", decode=bytes, read_until_eof=False) == b""
    assert [record.response_size for record in log.records()] == [12, 0]


# Redirects


async def test_a_redirect_is_the_response_if_allow_redirects_is_false(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    """Its body is empty, so it is not JSON."""
    server.script("/x", redirect("/y"))
    subject = connector(log, sdk)
    assert await subject.get(session, server.url("/x"), "P", allow_redirects=False, decode=bytes) == b""
    with pytest.raises(otel_connector.DecodeFailed, match="the body is empty"):
        await subject.get(session, server.url("/x"), "P", allow_redirects=False)
    assert [(r.response_code, r.redirect_url, r.success) for r in log.records()] == [(302, "", True), (302, "", False)]
    for span, record in zip(sdk.spans.get_finished_spans(), log.records(), strict=True):
        assert_span_carries(span, record)
        assert "http.request.resend_count" not in (span.attributes or {})
    assert len(server.requests) == 2


async def test_max_redirects_bounds_the_number_of_followed_redirects(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    for here, there in ("ab", "bc", "cd"):
        server.script(f"/{here}", redirect(f"/{there}"))
    server.script("/d", ok)
    subject = connector(log, sdk)
    assert await subject.get(session, server.url("/a"), "P", max_redirects=3) == OK
    with pytest.raises(otel_connector.RedirectRefused, match="more than 2 redirects"):
        await subject.get(session, server.url("/a"), "P", max_redirects=2)
    followed, refused = log.records()
    assert (followed.redirect_url, refused.redirect_url) == (server.url("/d"), server.url("/c"))
    assert (followed.response_code, refused.response_code) == (200, 302)
    counts = [(span.attributes or {})["http.request.resend_count"] for span in sdk.spans.get_finished_spans()]
    assert counts == [3, 2]


async def test_a_302_response_without_a_location_is_not_a_redirect(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", respond(302, b"{}"))
    assert await connector(log, sdk).get(session, server.url("/x"), "P") == {}
    assert (log.only().response_code, log.only().redirect_url) == (302, "")
    assert "http.request.resend_count" not in (sdk.span().attributes or {}), "one request was sent"


@pytest.mark.parametrize(
    "change",
    [lambda url: url + "#part", lambda url: url.replace("//", "//u:p@")],
    ids=["fragment", "userinfo"],
)
async def test_a_fragment_or_userinfo_in_the_url_is_not_logged_as_a_redirect(
    change: Callable[[str], str], server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", ok)
    await connector(log).get(session, change(server.url("/x")), "P")
    assert log.only().redirect_url == ""


# Timeouts


@pytest.mark.parametrize(
    ("timeout", "step", "message"),
    [
        (0.1, silent, "no response within 0.1 s"),
        (aiohttp.ClientTimeout(total=0.1), silent, "no response within 0.1 s"),
        (aiohttp.ClientTimeout(total=1), hold_in_body().step, "body not complete within 1 s (6 bytes read)"),
        (aiohttp.ClientTimeout(sock_read=0.1), silent, "Timeout on reading data from socket"),
        (
            aiohttp.ClientTimeout(sock_read=0.5),
            hold_in_body().step,
            "Timeout on reading data from socket (6 bytes read)",
        ),
        (
            aiohttp.ClientTimeout(total=9, sock_read=0.5),
            hold_in_body().step,
            "Timeout on reading data from socket (6 bytes read)",
        ),
    ],
    ids=["number", "total", "total in body", "sock_read", "sock_read in body", "sock_read before total in body"],
)
async def test_the_timeout_of_a_call_replaces_that_of_the_connector(
    timeout: Any, step: Any, message: str, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    """The message names the limit that was exceeded."""
    server.script("/x", step)
    with pytest.raises(otel_connector.AttemptTimeout) as caught:
        await connector(log, n_tries=1).get(session, server.url("/x"), "P", timeout=timeout)
    assert str(caught.value) == message
    assert log.only().error == f"AttemptTimeout: {message}"


async def test_a_client_timeout_is_accepted_as_the_timeout_of_the_connector(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", silent)
    subject = connector(log, n_tries=1, timeout=aiohttp.ClientTimeout(sock_read=0.05))
    with pytest.raises(otel_connector.AttemptTimeout, match="reading data from socket"):
        await subject.get(session, server.url("/x"), "P")


async def test_a_timeout_while_connecting_raises_attempt_timeout(session: aiohttp.ClientSession, log: Log) -> None:
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):  # no connection is accepted, so the second or third one stays half open
            client = sockets.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        timeout = aiohttp.ClientTimeout(sock_connect=0.1)
        with pytest.raises(otel_connector.AttemptTimeout, match="Connection timeout to host"):
            await connector(log, n_tries=1).get(session, url, "P", timeout=timeout)
    assert (log.only().response_code, log.only().response_size) == (None, 0)


# Sessions


@pytest.mark.parametrize("url", ["x", "./x?a=1", "/base/x"])
async def test_a_relative_url_is_joined_to_the_base_url_of_the_session(
    url: str, server: FaultServer, log: Log, sdk: SDK
) -> None:
    server.script("/base/x", ok)
    async with aiohttp.ClientSession(server.url("/base/")) as session:
        assert await connector(log, sdk).get(session, url, "P", params={"b": "2"}) == OK
        async with session.get(url, params={"b": "2"}) as response:
            assert log.only().url == str(response.url)
    assert log.only().redirect_url == ""
    assert_span_carries(sdk.span(), log.only())


async def refuse(response: aiohttp.ClientResponse) -> None:
    raise AssertionError(response)


@pytest.mark.parametrize("raise_for_status", [True, refuse])
async def test_raise_for_status_of_the_session_has_no_effect(
    raise_for_status: Any, server: FaultServer, log: Log
) -> None:
    server.script("/x", [503, 404])
    async with aiohttp.ClientSession(raise_for_status=raise_for_status) as session:
        with pytest.raises(otel_connector.HTTPStatusError) as caught:
            await connector(log).get(session, server.url("/x"), "P")
    assert (caught.value.status, caught.value.attempts) == (404, 2)
    assert log.only().response_size == len('{"status": 404}')


async def test_middlewares_run_in_every_attempt_and_see_the_trace_context(
    server: FaultServer, log: Log, sdk: SDK
) -> None:
    """Applies to the middlewares of the session and to those of the call."""
    server.script("/x", [503, ok, ok])
    seen: list[bool] = []

    async def middleware(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        seen.append("traceparent" in request.headers)
        request.headers["X-Mine"] = "1"
        return await handler(request)

    async with aiohttp.ClientSession(middlewares=[middleware]) as session:
        assert await connector(log, sdk).get(session, server.url("/x"), "P") == OK
    async with aiohttp.ClientSession() as session:
        assert await connector(log, sdk).get(session, server.url("/x"), "P", middlewares=[middleware]) == OK
    assert [request.headers.get("X-Mine") for request in server.requests] == ["1", "1", "1"]
    assert seen == [True, True, True]


async def test_an_exception_of_a_middleware_fails_the_call(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    async def middleware(*_: Any) -> aiohttp.ClientResponse:
        raise LookupError("no such tenant")

    with pytest.raises(otel_connector.ConnectorError, match=r"^LookupError: .*no such tenant") as caught:
        await connector(log).get(session, server.url("/x"), "P", middlewares=[middleware])
    assert isinstance(caught.value.__cause__, LookupError)
    assert "no such tenant" in log.only().error


async def test_one_connector_is_used_with_two_sessions(server: FaultServer, log: Log) -> None:
    server.script("/x", ok)
    subject = connector(log)
    async with aiohttp.ClientSession() as one, aiohttp.ClientSession() as two:
        await asyncio.gather(*(subject.get(each, server.url("/x"), "P") for each in (one, two)))
    assert [record.success for record in log.records()] == [True, True]


# decode and default


class Decoder:
    """A reusable decoder whose method is passed as `decode`, as with msgspec and pydantic."""

    def decode(self, body: bytes) -> dict[str, int]:
        return {"length": len(body)}


class Interrupt(BaseException):
    """Used instead of KeyboardInterrupt, which would end the test run."""


def raises(error: BaseException) -> Callable[[bytes], Any]:
    def decode(body: bytes) -> Any:
        raise error

    return decode


@pytest.mark.parametrize(
    ("decode", "value"),
    [
        (json.loads, OK),
        (bytes, b'{"ok": true}'),
        (bytes.decode, '{"ok": true}'),
        (Decoder().decode, {"length": 12}),
        (lambda _: None, None),
        (lambda _: 0, 0),
    ],
)
async def test_the_value_of_decode_is_returned(
    decode: Any, value: Any, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", ok)
    assert await connector(log).get(session, server.url("/x"), "P", decode=decode, default="not this") == value
    assert (log.only().success, log.only().error) == (True, "")


@pytest.mark.parametrize(
    "error", [ValueError("v"), RecursionError("deep"), TypeError("t"), KeyError("k"), MemoryError(), StopIteration()]
)
async def test_an_exception_of_decode_raises_decode_failed(
    error: Exception, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", ok)
    with pytest.raises(otel_connector.DecodeFailed) as caught:
        await connector(log).get(session, server.url("/x"), "P", decode=raises(error))
    assert caught.value.__cause__ is error
    assert log.only().error == f"DecodeFailed: {type(error).__name__}: {error}".removesuffix(": ")
    assert len(server.requests) == 1


async def test_json_nested_too_deeply_raises_decode_failed(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", respond(body=b"[" * 100_000))
    with pytest.raises(otel_connector.DecodeFailed, match="RecursionError"):
        await connector(log).get(session, server.url("/x"), "P")
    assert log.only().response_size == 100_000


@pytest.mark.parametrize("status", [204, 205, 304])
async def test_a_response_without_content_is_not_decoded(
    status: int, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", respond(status))
    decode = raises(AssertionError("called"))
    assert await connector(log).get(session, server.url("/x"), "P", decode=decode, default=1) is None
    assert (log.only().response_code, log.only().success) == (status, True)


FAILURES: dict[str, Any] = {
    "HTTPStatusError": 404,
    "AttemptTimeout": silent,
    "ConnectFailed": disconnect,
    "BodyTruncated": truncated(),
    "BodyTooLarge": endless(),
    "DecodeFailed": respond(body=b"<"),
    "MalformedResponse": garbage,
    "RedirectRefused": redirect("/x"),
    "InvalidURL": None,
    "SessionClosed": None,
}


@pytest.mark.parametrize("error", FAILURES)
@pytest.mark.parametrize("default", [None, 0, raises(AssertionError("called"))])
async def test_default_is_returned_for_every_connector_error(
    error: str, default: Any, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    if FAILURES[error] is not None:
        server.script("/x", FAILURES[error])
    if error == "SessionClosed":
        await session.close()
    url = "ftp://h" if error == "InvalidURL" else server.url("/x")
    # Only the expected timeout is short: on a busy machine the other failures may take long
    timeout = 0.1 if error == "AttemptTimeout" else 10
    subject = connector(log, n_tries=1, timeout=timeout, max_body_bytes=100_000)
    assert await subject.get(session, url, "P", default=default) is default
    assert (log.only().success, log.only().error.split(":")[0]) == (False, error)
    assert (subject.stats().calls_failed, subject.stats().calls_succeeded) == (1, 0)


async def test_default_is_not_returned_for_a_wrong_argument_an_interrupt_or_a_cancellation(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    held = hold()
    server.script("/held", held.step)
    server.script("/x", ok)
    subject = connector(log)
    with pytest.raises(TypeError, match="bogus"):
        await subject.get(session, server.url("/x"), "P", default=1, bogus=1)
    with pytest.raises(Interrupt):
        await subject.get(session, server.url("/x"), "P", default=1, decode=raises(Interrupt()))
    task = asyncio.create_task(subject.get(session, server.url("/held"), "P", default=1))
    await held.arrived
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [record.error.split(":")[0] for record in log.records()] == ["TypeError", "Interrupt", "CancelledError"]
    assert not session.connector._acquired  # type: ignore[union-attr]


# The constructor


async def test_n_tries_of_one_makes_one_attempt(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, clock: FakeClock
) -> None:
    server.script("/x", 503)
    with pytest.raises(otel_connector.HTTPStatusError):
        await connector(log, n_tries=1, clock=clock).get(session, server.url("/x"), "P")
    assert (len(server.requests), clock.sleeps) == (1, [])


async def test_the_constructor_accepts_positional_arguments(
    server: FaultServer, session: aiohttp.ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log = Log(tmp_path / "x.csv")
    log.path.write_text("emptied\n")
    server.script("/x", 503)
    subject = AsyncConnector("x.csv", True, 3, 5, clock=FakeClock())
    with pytest.raises(otel_connector.HTTPStatusError):
        await subject.get(session, server.url("/x"), "P")
    assert len(server.requests) == 3
    assert subject._settings.timeout.total == 5
    assert log.only().response_code == 503


async def test_no_file_is_written_without_a_logfile(
    server: FaultServer, session: aiohttp.ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sdk: SDK
) -> None:
    monkeypatch.chdir(tmp_path)
    server.script("/x", ok)
    async with connector(None, sdk) as subject:
        assert await subject.get(session, server.url("/x"), "P") == OK
    assert files(tmp_path) == {}
    assert subject.stats().rows_written == 0
    assert sdk.span()


@pytest.mark.parametrize("kind", [str, Path])
async def test_overwrite_log_selects_whether_the_log_is_emptied_or_appended_to(
    kind: Any, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", ok)
    for overwrite, rows in ((False, 1), (False, 2), (True, 1), (True, 1), (False, 2)):
        async with AsyncConnector(kind(log.path), overwrite) as subject:
            await subject.get(session, server.url("/x"), "P")
        assert len(log.records()) == rows


async def test_an_exporter_is_accepted_as_logfile_by_several_connectors(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    """Closing one of the connectors does not close the exporter."""
    server.script("/x", ok)
    exporter = CSVSpanExporter(log.path)
    for count in (1, 2):
        async with AsyncConnector(exporter) as subject:
            await subject.get(session, server.url("/x"), "P")
        assert subject.stats().rows_written == count
    with pytest.raises(ValueError, match="overwrite_log"):
        AsyncConnector(exporter, overwrite_log=True)
    exporter.shutdown()
    assert len(log.records()) == 2


async def test_two_connectors_write_to_one_file(server: FaultServer, session: aiohttp.ClientSession, log: Log) -> None:
    server.script("/x", ok)
    subjects = [connector(log), connector(log)]
    await asyncio.gather(*(subjects[n % 2].get(session, server.url("/x"), str(n)) for n in range(20)))
    assert {int(record.project) for record in log.records()} == set(range(20))
    assert [subject.stats().rows_written for subject in subjects] == [10, 10]


@pytest.mark.parametrize("with_sdk", [False, True])
async def test_every_call_is_logged_in_a_program_that_seeds_its_random_numbers(
    with_sdk: bool, server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    """Two spans may then have the same ids. Each of the two calls has its row nevertheless."""
    server.script("/x", ok)
    subject, state = connector(log, sdk if with_sdk else None, clock=None), random.getstate()
    try:
        for project in ("A", "B"):
            random.seed(1)
            await subject.get(session, server.url("/x"), project)
    finally:
        random.setstate(state)
    assert [record.project for record in log.records()] == ["A", "B"]


# Lifecycle


async def test_a_closed_connector_refuses_calls(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", ok)
    async with connector(log, sdk) as subject:
        await subject.get(session, server.url("/x"), "P")
    await subject.aclose()
    with pytest.raises(RuntimeError, match="the connector is closed"):
        await subject.get(session, server.url("/x"), "P", default=1)
    assert (len(log.records()), len(sdk.spans.get_finished_spans())) == (1, 1)
    assert subject.stats().calls_started == 1
    with pytest.raises(LookupError):
        async with subject:
            raise LookupError


def run_uvloop(main: Any) -> None:
    uvloop.run(main)


@pytest.mark.parametrize("run", [asyncio.run, run_uvloop])
def test_one_connector_is_used_in_consecutive_event_loops(
    run: Callable[[Any], None], server: FaultServer, log: Log, sdk: SDK
) -> None:
    server.script("/x", [503, truncated(), ok])
    subject = connector(log, sdk)

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            assert await subject.get(session, server.url("/x"), "P") == OK
            with pytest.raises(otel_connector.AttemptTimeout):
                await subject.get(session, server.url("/x"), "P", timeout=1e-6)

    run(main())
    run(main())
    assert [record.success for record in log.records()] == [True, False] * 2
    for span, record in zip(sdk.spans.get_finished_spans(), log.records(), strict=True):
        assert_span_carries(span, record)


PROGRAM = """\
import asyncio, aiohttp
from otel_connector import AsyncConnector

async def main():
    async with aiohttp.ClientSession() as session:
        connector = AsyncConnector(logfile="logs.csv", overwrite_log=True, n_tries=3, timeout=5)
        response = await connector.get(session, "https://api.example.com/data", "ExampleProject")
        print(response)

asyncio.run(main())
"""


def test_the_introductory_program_runs_without_warnings_and_writes_its_row(server: FaultServer, log: Log) -> None:
    """It has no SDK, no `async with` on the connector, and does not close the connector."""
    server.script("/data", [503, ok])
    program = PROGRAM.replace("https://api.example.com/data", server.url("/data"))
    done = processes.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", program],
        cwd=log.path.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # On a busy machine asyncio's debug mode reports that loading the SDK took long, which is not a warning
    printed = [
        line for line in done.stderr.splitlines() if not re.fullmatch(r"Executing <Task .* took .* seconds", line)
    ]
    assert (done.returncode, done.stdout, printed) == (0, "{'ok': True}\n", [])
    assert (log.only().project, log.only().url, log.only().success) == ("ExampleProject", server.url("/data"), True)
    assert log.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("delay", [0, 0.25, 3])
async def test_rate_limit_sleeps_for_the_delay(delay: float, clock: FakeClock) -> None:
    waited = await AsyncConnector(None, clock=clock).rate_limit(delay)  # type: ignore[func-returns-value]
    assert waited is None
    assert clock.monotonic_ns() == delay * 1e9


NOT_SECONDS: list[tuple[Any, type[Exception]]] = [
    (-1, ValueError),
    (math.nan, ValueError),
    (math.inf, ValueError),
    (10**400, ValueError),
    ("1", TypeError),
    (True, TypeError),
    (None, TypeError),
    ([1], TypeError),
]


@pytest.mark.parametrize(("delay", "kind"), NOT_SECONDS, ids=lambda value: repr(value)[:9])
async def test_a_bad_delay_of_rate_limit_is_named(delay: Any, kind: type[Exception], clock: FakeClock) -> None:
    with pytest.raises(kind, match=r"^delay must be"):
        await AsyncConnector(None, clock=clock).rate_limit(delay)
    assert clock.sleeps == []


BAD_ARGUMENTS: dict[str, list[tuple[Any, type[Exception]]]] = {
    "overwrite_log": [("yes", TypeError), (1, TypeError), (None, TypeError)],
    "n_tries": [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError), ("3", TypeError)],
    "timeout": [*NOT_SECONDS, (0, ValueError), (0.0, ValueError), (False, TypeError)],
    "retry": [("x", TypeError), (5, TypeError), (otel_connector.RetryPolicy, TypeError)],
    "max_body_bytes": [(0, ValueError), (1e6, TypeError), (None, TypeError)],
    "redact_params": [("token", TypeError), (b"token", TypeError), ([1], TypeError), (None, TypeError)],
    "propagate": [(1, TypeError), ("no", TypeError)],
    "tracer_provider": [("x", TypeError), (object, TypeError)],
    "meter_provider": [("x", TypeError), (object, TypeError)],
    "clock": [("x", TypeError), (5, TypeError)],
    "logfile": [
        (5, TypeError),
        (b"x.csv", TypeError),
        ("", ValueError),
        ("a\0b", OSError),
        ("a\ud800b", OSError),
        ("folder", OSError),
        ("missing/x.csv", OSError),
        ("fifo", OSError),
        ("theirs.csv", ValueError),
        ("rows.csv", ValueError),
    ],
}


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [(name, value, kind) for name, cases in BAD_ARGUMENTS.items() for value, kind in cases],
    ids=lambda value: ascii(value)[:20],
)
def test_a_bad_argument_of_the_constructor_is_named_and_no_file_is_changed(
    name: str, value: Any, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message starts with the argument's name. No file is created, left open, changed or emptied."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    os.mkfifo("fifo")
    Path("theirs.csv").write_text("timestamp,level\n1,INFO\n")
    Path("rows.csv").write_text("no header here")
    Path("logs.csv").write_text("must not be emptied\n")
    arguments = {"logfile": "logs.csv", "overwrite_log": name != "logfile", name: value}
    with no_file_changed_or_left_open(tmp_path), pytest.raises(kind) as caught:
        AsyncConnector(**arguments)
    message = caught.value.strerror if isinstance(caught.value, OSError) else str(caught.value)
    assert (message or "").startswith(name)


async def test_a_session_of_another_type_is_refused(log: Log) -> None:
    for bad in (None, aiohttp.ClientSession, object()):
        with pytest.raises(TypeError, match=r"^session must be an aiohttp\.ClientSession"):
            await connector(log).get(bad, "http://127.0.0.1/", "P")  # type: ignore[arg-type]
    assert len(log.records()) == 3
