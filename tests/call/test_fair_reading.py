"""Connections that parse for a few milliseconds at a time: the data is unchanged, and the event loop is not blocked."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import trustme
import uvloop
from aiohttp.client_proto import ResponseHandler
from support.loop_and_memory import STALL_LIMIT, assert_no_stall, is_idle, leaves_nothing, slowest_iteration

from otel_connector import AsyncConnector, AttemptTimeout, BodyTruncated, MalformedResponse
from otel_connector._call._fair_reading import FairResponseHandler, read_fairly

OK = b"HTTP/1.1 200 OK\r\n"
BODY = bytes(range(256)) * 12_000
"""3 MB, which the event loop delivers in many pieces."""

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
RUNS = [pytest.param(asyncio.run, id="asyncio"), pytest.param(uvloop.run, id="uvloop")]


@asynccontextmanager
async def serving(answer: Answer, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Yield the URL of a server that passes each of its connections to `answer`."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has disconnected
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"http{'s' if context else ''}://{'localhost' if context else '127.0.0.1'}:{port}/"


def answers(*parts: bytes) -> Answer:
    """Answer every request of a connection with `parts`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.writelines(parts)
            await writer.drain()

    return answer


def answers_once(*parts: bytes, reset: bool = False) -> Answer:
    """Answer one request with `parts` and close the connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.writelines(parts)
        await writer.drain()
        if reset:
            writer.transport.abort()

    return answer


def chunks(body: bytes, size: int) -> bytes:
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


LENGTH = OK + b"Content-Length: %d\r\n\r\n" % len(BODY)
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
FRAMINGS: dict[str, Answer] = {
    "a length": answers(LENGTH, BODY),
    "large chunks": answers(CHUNKED, chunks(BODY, 100_000)),
    "small chunks": answers(CHUNKED, chunks(BODY, 300)),
    "until the end of the connection": answers_once(OK + b"\r\n", BODY),
    "many early hints": answers(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 1_000, LENGTH, BODY),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_body_is_received_unchanged(framing: str, run: Callable[[Any], None]) -> None:
    async def main() -> None:
        async with serving(FRAMINGS[framing]) as url, aiohttp.ClientSession() as session:
            subject = AsyncConnector(None, n_tries=1)
            for _ in range(3):
                assert await subject.get(session, url, "P", decode=bytes) == BODY
            assert is_idle(session)

    run(main())


@pytest.mark.parametrize("run", RUNS)
def test_a_body_is_received_unchanged_over_tls(run: Callable[[Any], None]) -> None:
    async def main() -> None:
        authority, served, trusting = (
            trustme.CA(),
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
            ssl.create_default_context(),
        )
        authority.issue_cert("localhost").configure_cert(served)
        authority.configure_trust(trusting)
        async with serving(answers(LENGTH, BODY), served) as url, aiohttp.ClientSession() as session:
            subject = AsyncConnector(None, n_tries=1)
            assert await subject.get(session, url, "P", decode=bytes, ssl=trusting) == BODY

    run(main())


async def test_the_connection_is_reused() -> None:
    connections = 0
    answer = answers(LENGTH, BODY)

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await answer(reader, writer)

    async with serving(counted) as url, aiohttp.ClientSession() as session:
        subject = AsyncConnector(None, n_tries=1)
        for _ in range(5):
            assert await subject.get(session, url, "P", decode=bytes) == BODY
    assert connections == 1


async def test_unrequested_data_after_a_response_closes_the_connection() -> None:
    """The data is still buffered when the response is complete, so the connection must not carry another request."""
    unasked = answers_once(OK + b"Content-Length: 2\r\n\r\n[]", b"a" * 1_000_000)
    async with serving(unasked) as url, leaves_nothing(), aiohttp.ClientSession() as session:
        subject = AsyncConnector(None, n_tries=1)
        for _ in range(3):
            assert await subject.get(session, url, "P", default=None) in ([], None)


@pytest.mark.parametrize("reset", [False, True])
async def test_data_received_before_the_end_of_the_connection_is_parsed(reset: bool) -> None:
    async with serving(answers_once(LENGTH, BODY[:-1], reset=reset)) as url, aiohttp.ClientSession() as session:
        subject = AsyncConnector(None, n_tries=1)
        with pytest.raises(BodyTruncated) as caught:
            await subject.get(session, url, "P")
        if not reset:  # after a reset the kernel discards data that has not been read
            assert f"after {len(BODY) - 1} bytes" in str(caught.value)


async def test_malformed_data_after_informational_responses_raises_malformed_response() -> None:
    broken = answers_once(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1_000, b"none of it\r\n\r\n" * 50_000)
    async with serving(broken) as url, leaves_nothing(), aiohttp.ClientSession() as session:
        with pytest.raises(MalformedResponse):
            await AsyncConnector(None, n_tries=1).get(session, url, "P")


def floods(part: bytes, head: bytes = b"") -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        while True:
            writer.write(part * (100_000 // len(part)))
            await writer.drain()

    return answer


FLOODS = {
    "chunks of one byte": floods(b"1\r\n \r\n", CHUNKED),
    "100 Continue": floods(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "103 Early Hints": floods(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
}


@pytest.mark.timing
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_small_messages_does_not_block_the_event_loop(flood: str, run: Callable[[Any], None]) -> None:
    """The server runs in the same event loop, so its work is included in the measured times."""

    async def main() -> None:
        async with serving(FLOODS[flood]) as url:
            subject = AsyncConnector(None, n_tries=1, timeout=0.5)
            async with leaves_nothing(), aiohttp.ClientSession() as session:
                # Load all modules before the measurement
                await subject.get(session, "http://127.0.0.1:9/", "P", default=None)
                with slowest_iteration() as longest, pytest.raises(AttemptTimeout):
                    await subject.get(session, url, "P")
                assert is_idle(session)
        assert_no_stall(longest, STALL_LIMIT)

    run(main())


def has_enough(handler: FairResponseHandler) -> bool:
    """Return whether the reader of the body has enough, so that nothing is parsed until it reads."""
    return handler._reader_full and handler._next_step is None


@asynccontextmanager
async def buffering(*, is_full: bool = False) -> AsyncIterator[tuple[FairResponseHandler, aiohttp.ClientResponse]]:
    """Yield a connection with buffered data, and its response, whose body is not read.

    With `is_full`, the reader of the body has enough. If all data that has arrived until then is parsed, which depends
    on the load of the machine, another connection is made.
    """
    async with serving(answers_once(LENGTH, BODY)) as url, aiohttp.ClientSession() as session:
        assert session.connector is not None
        read_fairly(session.connector)
        while True:
            response = await session.get(url)
            assert response.connection is not None
            handler = response.connection.protocol
            assert isinstance(handler, FairResponseHandler)
            while not (has_enough(handler) if is_full else handler._pending):  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0)
            if handler._pending:
                break
            response.close()
        yield handler, response
        response.close()


@pytest.mark.parametrize("end", [FairResponseHandler.close, FairResponseHandler.abort])
async def test_a_closed_connection_discards_its_buffered_data(end: Callable[[FairResponseHandler], None]) -> None:
    async with buffering() as (handler, _):
        closed = handler.closed
        assert closed is not None
        end(handler)
        assert not handler._pending
        await asyncio.wait_for(closed, 5)


async def test_a_lost_connection_parses_its_buffered_data_before_it_ends() -> None:
    """A connection is lost when a write fails, for example."""
    async with buffering(is_full=True) as (handler, response):
        held, closed = len(handler._pending), handler.closed
        assert handler.transport is not None
        assert closed is not None
        handler.transport.abort()
        await asyncio.wait_for(closed, 5)
        assert response.content.total_bytes >= held
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.readany()


async def test_data_received_after_a_pause_is_appended_to_the_buffered_data() -> None:
    """A paused transport may still deliver data that it has already read."""
    async with buffering() as (handler, response):
        held, more = bytes(handler._pending), BODY[:1_000]
        handler.data_received(more)
        assert handler._pending == held + more
        response.close()
        assert not handler._pending


async def test_reading_continues_with_the_buffered_data() -> None:
    async with buffering(is_full=True) as (handler, response):
        assert await response.read() == BODY
        assert not handler._pending


async def test_a_websocket_of_the_same_session_receives_every_message() -> None:
    """Data after the response to an upgrade is not HTTP. It may arrive together with that response."""
    frame = b"\x82\x7e" + (60_000).to_bytes(2, "big") + b"a" * 60_000

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if b"Upgrade" not in request:
            writer.write(OK + b"Content-Length: 2\r\n\r\n[]")
            request = await reader.readuntil(b"\r\n\r\n")
        (key,) = (
            line.split(b": ")[1] for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")
        )
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\nX: %b\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n" % (b"x" * 4_000, websocket_accept(key)) + frame * 20
        )
        await writer.drain()
        assert (await reader.readexactly(8))[0] == 0x88, "the client closes"
        writer.write(b"\x88\x02" + (1000).to_bytes(2, "big"))  # the client waits ten seconds for this

    async with serving(answer) as url, aiohttp.ClientSession() as session:
        assert await AsyncConnector(None).get(session, url, "P") == []
        async with session.ws_connect(url) as socket:
            assert [len(await socket.receive_bytes()) for _ in range(20)] == [60_000] * 20


def websocket_accept(key: bytes) -> bytes:
    """The value of Sec-WebSocket-Accept for a key (RFC 6455, section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())


# The connection factory of aiohttp's connector, which is not public


async def test_the_connection_factory_of_aiohttp_is_replaced() -> None:
    async with serving(answers(OK + b"Content-Length: 2\r\n\r\n[]")) as url, aiohttp.ClientSession() as session:
        assert session.connector is not None
        assert session.connector._factory.func is ResponseHandler
        await AsyncConnector(None).get(session, url, "P")
        assert session.connector._factory.func is FairResponseHandler
        ((connection, _),) = next(iter(session.connector._conns.values()))
        assert isinstance(connection, FairResponseHandler)


async def test_a_custom_connection_factory_is_not_replaced() -> None:
    class CustomHandler(ResponseHandler):
        """A connection class of the caller."""

    custom_factory = functools.partial(CustomHandler, loop=asyncio.get_running_loop())
    async with aiohttp.TCPConnector() as connector:
        connector._factory = custom_factory  # type: ignore[assignment]
        read_fairly(connector)
        assert connector._factory is custom_factory
