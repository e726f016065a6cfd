"""Connections that parse for a few milliseconds at a time: what arrives is the same, and the loop goes on meanwhile."""

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
from support.loop_and_memory import STALL_LIMIT, assert_no_stall, free_again, leaves_nothing, turns_of_the_loop

from otel_connector import AsyncConnector, AttemptTimeout, BodyTruncated, MalformedResponse
from otel_connector._fair_reading import FairResponseHandler, read_fairly

OK = b"HTTP/1.1 200 OK\r\n"
BODY = bytes(range(256)) * 12_000
"""3 MB, of which a loop hands over many pieces."""

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
RUNS = [pytest.param(asyncio.run, id="asyncio"), pytest.param(uvloop.run, id="uvloop")]


@asynccontextmanager
async def serving(answer: Answer, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Yield the URL of a server that hands each of its connections to `answer`."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"http{'s' if context else ''}://{'localhost' if context else '127.0.0.1'}:{port}/"


def answers(*parts: bytes) -> Answer:
    """Answer every request of a connection by `parts`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.writelines(parts)
            await writer.drain()

    return answer


def once(*parts: bytes, reset: bool = False) -> Answer:
    """Answer one request by `parts` and close the connection."""

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
    "until the end of the connection": once(OK + b"\r\n", BODY),
    "announced often": answers(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 1_000, LENGTH, BODY),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("framing", FRAMINGS)
def test_whole(framing: str, run: Callable[[Any], None]) -> None:
    async def main() -> None:
        async with serving(FRAMINGS[framing]) as url, aiohttp.ClientSession() as session:
            subject = AsyncConnector(None, n_tries=1)
            for _ in range(3):
                assert await subject.get(session, url, "P", decode=bytes) == BODY
            assert free_again(session)

    run(main())


@pytest.mark.parametrize("run", RUNS)
def test_whole_over_tls(run: Callable[[Any], None]) -> None:
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


async def test_connection_is_kept() -> None:
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


async def test_what_nobody_asked_for_ends_the_connection() -> None:
    """It is held when the answer before it is complete, so the connection must not carry another request."""
    unasked = once(OK + b"Content-Length: 2\r\n\r\n[]", b"a" * 1_000_000)
    async with serving(unasked) as url, leaves_nothing(), aiohttp.ClientSession() as session:
        subject = AsyncConnector(None, n_tries=1)
        for _ in range(3):
            assert await subject.get(session, url, "P", default=None) in ([], None)


@pytest.mark.parametrize("reset", [False, True])
async def test_the_end_comes_after_what_was_before_it(reset: bool) -> None:
    async with serving(once(LENGTH, BODY[:-1], reset=reset)) as url, aiohttp.ClientSession() as session:
        subject = AsyncConnector(None, n_tries=1)
        with pytest.raises(BodyTruncated) as caught:
            await subject.get(session, url, "P")
        if not reset:  # a reset lets the kernel throw away what has not been read
            assert f"after {len(BODY) - 1} bytes" in str(caught.value)


async def test_broken_in_the_middle() -> None:
    broken = once(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1_000, b"none of it\r\n\r\n" * 50_000)
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
def test_no_stall(flood: str, run: Callable[[Any], None]) -> None:
    """With the server in the same loop: what it does is part of the turns that are measured."""

    async def main() -> None:
        async with serving(FLOODS[flood]) as url:
            subject = AsyncConnector(None, n_tries=1, timeout=1)
            async with leaves_nothing(), aiohttp.ClientSession() as session:
                await subject.get(session, "http://127.0.0.1:9/", "P", default=None)  # what is loaded once
                with turns_of_the_loop() as turns, pytest.raises(AttemptTimeout):
                    await subject.get(session, url, "P")
                assert free_again(session)
        assert_no_stall(turns, STALL_LIMIT)

    run(main())


@asynccontextmanager
async def holding() -> AsyncIterator[tuple[FairResponseHandler, aiohttp.ClientResponse]]:
    """Yield a connection that holds something, because nobody reads the body before it, and its response."""
    async with serving(once(LENGTH, BODY)) as url, aiohttp.ClientSession() as session:
        assert session.connector is not None
        read_fairly(session.connector)
        response = await session.get(url)
        assert response.connection is not None
        handler = response.connection.protocol
        assert isinstance(handler, FairResponseHandler)
        while not handler._held:  # noqa: ASYNC110 - nothing says so
            await asyncio.sleep(0)
        yield handler, response
        response.close()


@pytest.mark.parametrize("end", [FairResponseHandler.close, FairResponseHandler.abort])
async def test_closed_while_something_is_held(end: Callable[[FairResponseHandler], None]) -> None:
    async with holding() as (handler, _):
        closed = handler.closed
        assert closed is not None
        end(handler)
        assert not handler._held
        await asyncio.wait_for(closed, 5)


async def test_lost_while_something_is_held() -> None:
    """As when a write fails: what had come is parsed, and only then comes the end."""
    async with holding() as (handler, response):
        held, closed = len(handler._held), handler.closed
        assert handler.transport is not None
        assert closed is not None
        handler.transport.abort()
        await asyncio.wait_for(closed, 5)
        assert response.content.total_bytes > held
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.readany()


async def test_handed_over_all_the_same() -> None:
    """A transport may hand over what it had read when it was paused; that waits its turn behind what is held."""
    async with holding() as (handler, response):
        held, more = bytes(handler._held), BODY[:1_000]
        handler.data_received(more)
        assert handler._held == held + more
        response.close()
        assert not handler._held


async def test_websocket_of_the_same_session() -> None:
    """What follows the answer to an upgrade is no HTTP, and comes whole and in order, however much came with it."""
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
            b"Sec-WebSocket-Accept: %b\r\n\r\n" % (b"x" * 4_000, accepted(key)) + frame * 20
        )
        await writer.drain()
        assert (await reader.readexactly(8))[0] == 0x88, "the client closes"
        writer.write(b"\x88\x02" + (1000).to_bytes(2, "big"))  # the client waits ten seconds for this

    async with serving(answer) as url, aiohttp.ClientSession() as session:
        assert await AsyncConnector(None).get(session, url, "P") == []
        async with session.ws_connect(url) as socket:
            assert [len(await socket.receive_bytes()) for _ in range(20)] == [60_000] * 20


def accepted(key: bytes) -> bytes:
    """The answer to a WebSocket's key (RFC 6455, section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())


# What aiohttp's connector makes its connections of is no public name


async def test_the_name_that_is_used_is_there() -> None:
    async with serving(answers(OK + b"Content-Length: 2\r\n\r\n[]")) as url, aiohttp.ClientSession() as session:
        assert session.connector is not None
        assert session.connector._factory.func is ResponseHandler
        await AsyncConnector(None).get(session, url, "P")
        assert session.connector._factory.func is FairResponseHandler
        ((connection, _),) = next(iter(session.connector._conns.values()))
        assert isinstance(connection, FairResponseHandler)


async def test_others_stay() -> None:
    class Own(ResponseHandler):
        """Somebody's own."""

    own = functools.partial(Own, loop=asyncio.get_running_loop())
    async with aiohttp.TCPConnector() as connector:
        connector._factory = own  # type: ignore[assignment]
        read_fairly(connector)
        assert connector._factory is own
