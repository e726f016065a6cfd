"""Where a response ends, and what follows it: resets, malformed chunks, excess bytes, and status lines of others.

Each case runs with asyncio, with uvloop, and with aiohttp's parser in Python instead of the one in C. A variant runs
all its cases in one child process. The comment or the name of a case has the source of its expected outcome; "curl" is
curl 7.88, run on the same bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import select
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import aiohttp
import pytest
from support import processes
from support.forked import Program

from otel_connector import AsyncConnector, ConnectorError
from otel_connector.testing import Arrival, FakeClock, FaultServer, Step, respond
from otel_connector.testing._steps import Connection

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
CSV = b"id,price\n1,10\n2,2"
LENGTH = b"Content-Length: 2\r\n\r\n{}"
EVIL = OK + b'Content-Length: 6\r\n\r\n"evil"'

TRUNCATED, MALFORMED = "BodyTruncated", "MalformedResponse"


@dataclass(frozen=True)
class Case:
    """What the server sends, and the outcome: the body as text, or the class of the error.

    Attributes:
        parts: The first part is sent immediately, each further one when the client has received the head.
        expected: The outcome.
        end: How the connection ends: "reset", "close" or, if it stays open, "".
        requests: Requests that reach the server with `n_tries=2`, whose second attempt gets a complete response.
    """

    parts: tuple[bytes, ...]
    expected: str
    end: str = ""
    requests: int = 1


def reset(head: bytes, body: bytes = CSV) -> Case:
    """RFC 9112, section 8: a response without a length is complete at the end of the connection, not at a reset.

    curl: "(56) Recv failure: Connection reset by peer"; the next attempt gets the body.
    """
    return Case((head + body,), TRUNCATED, "reset", requests=2)


def malformed(*parts: bytes) -> Case:
    """RFC 9112, section 7.1; curl: "(56) Illegal or missing hexadecimal sequence in chunked-encoding"."""
    return Case(parts, MALFORMED)


def excess(data: bytes, expected: str = "{}") -> Case:
    """RFC 9112, section 6.3: extra data is not a response. curl ignores it and closes the connection."""
    return Case((data,), expected)


def status_line(start: str, expected: str = MALFORMED) -> Case:
    """RFC 9112, section 2.3; curl: "(1) Unsupported HTTP version", "(1) Received HTTP/0.9 when not allowed"."""
    return Case((start.encode() + b" 200 OK\r\n" + LENGTH,), expected)


CASES = {
    # A reset
    "reset, HTTP/1.0": reset(b"HTTP/1.0 200 OK\r\n\r\n"),
    "reset, HTTP/1.1": reset(OK + b"\r\n"),
    "reset, Connection: close": reset(OK + b"Connection: close\r\n\r\n"),
    "reset, Transfer-Encoding: identity": reset(OK + b"Transfer-Encoding: identity\r\n\r\n"),
    "reset, no byte of the body": reset(OK + b"\r\n", b""),
    "reset, a large body": reset(OK + b"\r\n", CSV * 100_000),
    "reset, gzip that is complete": reset(OK + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(CSV)),
    "reset, status 206": reset(b"HTTP/1.1 206 x\r\nContent-Range: bytes 0-16/17\r\n\r\n"),
    "reset, after the head": Case((OK + b"\r\n", CSV), TRUNCATED, "reset", 2),
    "reset, a length": reset(OK + b"Content-Length: 18\r\n\r\n"),
    "reset, chunks": reset(CHUNKED, b"2\r\n{}\r\n"),
    # The status is the error, even if its body is broken
    "reset, status 404": Case((b"HTTP/1.1 404 x\r\n\r\nno",), "HTTPStatusError", "reset"),
    # RFC 9112, section 6.3: the length is complete, so the reset is of no interest
    "reset, a complete length": Case((OK + b"Content-Length: 17\r\n\r\n" + CSV,), CSV.decode(), "reset"),
    "reset, complete chunks": Case((CHUNKED + b"2\r\n{}\r\n0\r\n\r\n",), "{}", "reset"),
    # RFC 9112, section 8: closed in order, so complete
    "closed, HTTP/1.0": Case((b"HTTP/1.0 200 OK\r\n\r\n" + CSV,), CSV.decode(), "close"),
    "closed, HTTP/1.1": Case((OK + b"\r\n" + CSV,), CSV.decode(), "close"),
    # Malformed chunks. If the connection stays open, only the parser can report them
    "chunks, no size, with the head": malformed(CHUNKED + b"zz\r\n"),
    "chunks, no size": malformed(CHUNKED, b"zz\r\n"),
    "chunks, no size in the second": malformed(CHUNKED + b"2\r\n{}\r\n", b"zz\r\n"),
    "chunks, a negative size": malformed(CHUNKED, b"-2\r\n{}\r\n0\r\n\r\n"),
    "chunks, more than the size": malformed(CHUNKED, b"2\r\n{}xx\r\n0\r\n\r\n"),
    "chunks, a trailer too long": malformed(CHUNKED + b"2\r\n{}\r\n0\r\n", b"X: " + b"a" * 9_000 + b"\r\n\r\n"),
    "chunks, too many trailers": malformed(CHUNKED + b"2\r\n{}\r\n0\r\n", b"X: a\r\n" * 200 + b"\r\n"),
    "chunks, no size, gzip": malformed(
        OK + b"Transfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n", b"2\r\n\x1f\x8b\r\nzz\r\n"
    ),
    "chunks, no size, status 503": Case(
        (b"HTTP/1.1 503 x\r\nTransfer-Encoding: chunked\r\n\r\n", b"zz\r\n"), "HTTPStatusError", requests=2
    ),
    # Excess bytes in the same segment
    "excess, a length": excess(OK + LENGTH + b"xxxx"),
    "excess, a length, line by line": excess(b"HTTP/1.1 103 x\r\n\r\n" + OK + LENGTH + b"xxxx\n"),
    "excess, Connection: close": excess(OK + b"Connection: close\r\n" + LENGTH + b"xxxx"),
    "excess, HTTP/1.0": excess(b"HTTP/1.0 200 OK\r\n" + LENGTH + b"xxxx"),
    "excess, a length of 0": excess(OK + b"Content-Length: 0\r\n\r\nxxxx", ""),
    "excess, chunks": excess(CHUNKED + b"2\r\n{}\r\n0\r\n\r\nxxxx"),
    "excess, a response": excess(OK + LENGTH + EVIL),
    "excess, a part of a response": excess(OK + LENGTH + EVIL[:20]),
    "excess, status 204": excess(b"HTTP/1.1 204 x\r\n\r\n{}", "None"),
    "excess, status 204 with a length": excess(b"HTTP/1.1 204 x\r\n" + LENGTH, "None"),
    "excess, status 204 with chunks": excess(
        b"HTTP/1.1 204 x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "None"
    ),
    "excess, status 304": excess(b"HTTP/1.1 304 x\r\n\r\n{}", "None"),
    "excess, status 404": Case((b"HTTP/1.1 404 x\r\n" + LENGTH + b"xxxx",), "HTTPStatusError"),
    # Versions and other protocols
    "RTSP": status_line("RTSP/1.0"),
    "ICE": status_line("ICE/1.0"),
    "ICY": status_line("ICY"),
    "RTSP after 103": Case((b"HTTP/1.1 103 x\r\n\r\nRTSP/1.0 200 OK\r\n" + LENGTH,), MALFORMED),
    "HTTP/0.9": status_line("HTTP/0.9"),
    "HTTP/1.2": status_line("HTTP/1.2"),
    "HTTP/9.9": status_line("HTTP/9.9"),
    "HTTP/3": status_line("HTTP/3"),
    "http/1.1": status_line("http/1.1"),
    "HTTP": Case((b"HTTP\r\n" + LENGTH,), MALFORMED),
    "HTTP/2.0": status_line("HTTP/2.0", "{}"),  # curl accepts it
    "HTTP/1.0": status_line("HTTP/1.0", "{}"),
    "HTTP/1.1 in two segments": Case((b"HTTP/1.1 103 x\r\n\r\nHT", b"TP/1.1 200 OK\r\n" + LENGTH), "{}"),
    "a head in two segments": Case((OK + b"X: " + b"a" * 7_000 + b"\r\nY: " + b"a" * 7_000 + b"\r\n" + LENGTH,), "{}"),
    "a head in two segments, and excess": excess(OK + b"X: " + b"a" * 7_000 + b"\r\n" + LENGTH + b"xxxx"),
    # RFC 9112, section 6.3: different lengths are an unrecoverable error
    "two lengths": Case((OK + b"Content-Length: 3\r\n" + LENGTH,), MALFORMED),
    "two lengths after 103": Case((b"HTTP/1.1 103 x\r\n\r\n" + OK + b"Content-Length: 3\r\n" + LENGTH,), MALFORMED),
    "two lengths in a redirect": Case(
        (b"HTTP/1.1 302 x\r\nLocation: /good\r\nContent-Length: 3\r\n" + LENGTH,), MALFORMED
    ),
    # RFC 9110, section 15: an invalid status is processed like a 5xx. curl --fail: "(22) returned error: 600"
    "status 600": Case((b"HTTP/1.1 600 x\r\n" + LENGTH,), "HTTPStatusError"),
    "status 999": Case((b"HTTP/1.1 999 x\r\n" + LENGTH,), "HTTPStatusError"),
    "status 099": Case((b"HTTP/1.1 099 x\r\n" + LENGTH,), MALFORMED),  # curl: "(1) Unsupported response code"
}


@dataclass
class Player:
    """The step of a case, and the events between it and the client."""

    case: Case
    head_received: Arrival = field(default_factory=Arrival)

    @property
    def step(self) -> Step:
        return Step(name="case", play=self.play)

    async def play(self, connection: Connection) -> None:
        await connection.send(self.case.parts[0])
        for part in self.case.parts[1:]:
            await self.head_received
            await connection.send(part)
        if self.case.end:
            (connection.abort if self.case.end == "reset" else connection.close)()

    async def middleware(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        response = await handler(request)
        self.head_received.happen()
        return response


async def outcome(subject: AsyncConnector, session: aiohttp.ClientSession, url: str, **options: Any) -> str:
    try:
        return str(await subject.get(session, url, "P", decode=bytes.decode, **options))
    except ConnectorError as error:
        return type(error).__name__


async def outcomes(server: FaultServer, case: Case) -> list[object]:
    """Return the outcome with one attempt, that of the next call on this session, and the requests of two attempts."""
    player = Player(case)
    server.script("/case", player.step)
    server.script("/good", respond(body=b"good"))
    subject = AsyncConnector(None, n_tries=1, timeout=10)
    async with aiohttp.ClientSession() as session:
        # The first 103 of a case is the head that the client receives; the middleware does not see it
        if case.parts[0].endswith(b"HT"):
            player.head_received.happen()
        first = await outcome(subject, session, server.url("/case"), middlewares=[player.middleware])
        following = await outcome(subject, session, server.url("/good"))
    server.reset_log()
    retried = Player(case)
    server.script("/case", [retried.step, respond(body=b"good")])
    async with aiohttp.ClientSession() as session:
        if case.parts[0].endswith(b"HT"):
            retried.head_received.happen()
        subject = AsyncConnector(None, n_tries=2, timeout=10, clock=FakeClock())
        await outcome(subject, session, server.url("/case"), middlewares=[retried.middleware])
    return [first, following, len(server.received("/case"))]


# A connection that is used again


IDLE: dict[str, bytes] = {
    "a response": EVIL,
    "a head": EVIL[:-6],
    "a part of a head": EVIL[:20],
    "a part of a head with a null": OK + b"X: a\x00",
    "100 Continue": b"HTTP/1.1 100 Continue\r\n\r\n",
    "no response": b"xxxx",
    "a line": b"xxxx\r\n",
    "an empty line": b"\r\n",
}


async def idle_outcomes(server: FaultServer, data: bytes, *, read: bool) -> list[object]:
    """Send `data` on an idle connection. Return the outcomes of the calls before and after, and their connections.

    Args:
        server: The server.
        data: The excess bytes.
        read: Whether the event loop reads them before the second call starts.
    """
    complete, sent = Arrival(), Arrival()

    async def play(connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 204 x\r\n\r\n")
        await complete
        await connection.send(data)
        sent.happen()

    server.reset_log()
    server.script("/case", [Step(name="excess", play=play), respond(body=b"good")])
    subject = AsyncConnector(None, n_tries=1, timeout=10)
    async with aiohttp.ClientSession() as session:
        first = await outcome(subject, session, server.url("/case"))
        complete.happen()
        if read:
            await sent
            for _ in range(10):
                await asyncio.sleep(0)
        else:
            sent.wait()  # blocks the event loop, so that it cannot read
        second = await outcome(subject, session, server.url("/case"))
    return [first, second, len({request.connection for request in server.requests}), len(server.requests)]


async def late_outcomes(server: FaultServer) -> list[object]:
    """Send excess bytes after the next request was sent on the connection."""

    async def play(connection: Connection) -> None:
        await connection.send(b"xxxx\r\n" + OK + LENGTH)

    server.reset_log()
    server.script("/case", [respond(body=b"first"), Step(name="excess", play=play), respond(body=b"good")])
    subject = AsyncConnector(None, n_tries=1, timeout=10)
    async with aiohttp.ClientSession() as session:
        first = await outcome(subject, session, server.url("/case"))
        second = await outcome(subject, session, server.url("/case"))
    return [first, second, len(server.requests)]


async def used_before(server: FaultServer) -> list[object]:
    """Make plain requests before the first call: their connections have aiohttp's class."""
    holding, released = Arrival(), Arrival()

    async def hold(connection: Connection) -> None:
        holding.happen()
        await released
        await connection.send(OK + LENGTH)

    server.script("/hold", Step(name="hold", play=hold))
    server.script("/idle", respond(body=b"idle"))
    server.script("/case", Player(CASES["reset, HTTP/1.1"]).step)
    subject, results = AsyncConnector(None, n_tries=1, timeout=10), list[object]()
    async with aiohttp.ClientSession() as session:
        async with session.get(server.url("/idle")) as response:  # connection 1, which is idle then
            await response.read()
        pending = asyncio.ensure_future(session.get(server.url("/hold")))  # again connection 1, in use
        await holding
        results.append(await outcome(subject, session, server.url("/idle")))  # connection 2, of the new class
        released.happen()
        async with await pending as response:
            results.append(await response.text())
        server.reset_log()
        for _ in range(2):  # connections 2 and 1
            results.append(await outcome(subject, session, server.url("/case")))
        results.append(len({request.connection for request in server.requests}))
    return results


# TLS


async def close_in_order(connection: Connection) -> None:
    connection.close()


async def fin(connection: Connection) -> None:
    """Send FIN without a close_notify, as a process does that ends."""
    raw_socket(connection).shutdown(socket.SHUT_WR)


async def abort(connection: Connection) -> None:
    connection.abort()


async def close_notify_and_reset(connection: Connection) -> None:
    transport: Any = getattr(connection, "_transport")  # noqa: B009 - a private name of the server
    tls, raw = transport.get_extra_info("ssl_object"), raw_socket(connection)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.unwrap()
    transport._ssl_protocol._process_outgoing()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def raw_socket(connection: Connection) -> socket.socket:
    transport: Any = getattr(connection, "_transport")  # noqa: B009 - a private name of the server
    return cast("socket.socket", transport.get_extra_info("socket"))


TLS_ENDS = {
    # RFC 9112, section 9.8: a body without a length is complete only after a close_notify. wget reports an error, curl
    # of Debian does not
    "no length, close_notify": (OK + b"\r\n", close_in_order, CSV.decode()),
    "no length, FIN": (OK + b"\r\n", fin, TRUNCATED),
    "no length, reset": (OK + b"\r\n", abort, TRUNCATED),
    # The same section: with a length, the body is complete when it has arrived
    "a length, FIN": (OK + b"Content-Length: 17\r\n\r\n", fin, CSV.decode()),
    "a length too long, FIN": (OK + b"Content-Length: 18\r\n\r\n", fin, TRUNCATED),
}
if sys.version_info >= (3, 11):  # where the server's transport has the method that this end uses
    TLS_ENDS["no length, close_notify and reset"] = (OK + b"\r\n", close_notify_and_reset, CSV.decode())


@contextlib.asynccontextmanager
async def tunnel() -> AsyncIterator[str]:
    """Yield the URL of a proxy that opens tunnels (CONNECT) and passes on how each side ends."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
            writer.close()
        except (ConnectionError, RuntimeError):  # the other side has ended; uvloop raises RuntimeError
            if (raw := writer.get_extra_info("socket")) is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        port = int(request.split()[1].rpartition(b":")[2])
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(relay(their_reader, writer), relay(reader, their_writer))

    proxy = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with proxy:
        yield f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}/"


async def tls_outcomes(server: FaultServer, head: bytes, end: Callable[[Connection], Awaitable[None]]) -> list[object]:
    """Return the outcomes of two calls, directly and through a tunnel."""

    async def play(connection: Connection) -> None:
        await connection.send(head + CSV)
        await end(connection)

    results = list[object]()
    server.script("/case", Step(name="case", play=play))
    subject = AsyncConnector(None, n_tries=1, timeout=10)
    async with tunnel() as proxy, aiohttp.ClientSession() as session:
        for options in ({}, {"proxy": proxy}):
            url = server.url("/case")
            results.append(await outcome(subject, session, url, ssl=server.client_ssl, **options))
    return results


async def all_outcomes() -> dict[str, list[object]]:
    results = dict[str, list[object]]()
    with FaultServer() as server:
        for name, case in CASES.items():
            results[name] = await outcomes(server, case)
        for name, data in IDLE.items():
            for read in (False, True):
                results[f"idle, {name}, read {read}"] = await idle_outcomes(server, data, read=read)
        results["late"] = await late_outcomes(server)
        results["used before"] = await used_before(server)
    with FaultServer(tls=True) as server:
        for name, (head, end, _) in TLS_ENDS.items():
            results[name] = await tls_outcomes(server, head, end)
    return results


def child(loop: str) -> None:
    """Run all cases, and print the outcomes."""
    if loop == "uvloop":
        import uvloop

        run: Callable[..., Any] = uvloop.run
    else:
        run = asyncio.run
    sys.stdout.write(json.dumps(run(all_outcomes())))


VARIANTS = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("uvloop", {}),
    "Python parser": ("asyncio", {"AIOHTTP_NO_EXTENSIONS": "1"}),
}


@pytest.fixture(scope="module", params=VARIANTS)
def results(request: pytest.FixtureRequest) -> dict[str, Any]:
    loop, variables = VARIANTS[request.param]
    command, environment = processes.function(__file__, f"child({loop!r})")
    pipes: dict[str, Any] = {"env": environment | variables, "stdout": -1, "stderr": -1, "text": True}
    # aiohttp chooses its parser when it is loaded, and a fork has loaded it
    process = processes.Process(command, **pipes) if variables else Program(command[1:], **pipes)
    with process:
        out, error = process.communicate(timeout=100)
    assert process.returncode == 0, error
    decoded: dict[str, Any] = json.loads(out)
    return decoded


def test_the_outcome_of_each_response(results: dict[str, Any]) -> None:
    expected = {name: [case.expected, "good", case.requests] for name, case in CASES.items()}
    assert {name: results[name] for name in CASES} == expected


def test_excess_bytes_on_an_idle_connection_are_not_a_response(results: dict[str, Any]) -> None:
    for name in IDLE:
        for read in (True, False):
            first, second, connections, requests = results[f"idle, {name}, read {read}"]
            assert [first, second] == ["None", "good"], name
            # An empty line before a response is legal (RFC 9112, section 2.2), so the connection may be used again
            assert connections == 2 or name == "an empty line", name
            assert requests == 2, name


def test_excess_bytes_after_the_next_request_let_it_be_sent_again(results: dict[str, Any]) -> None:
    """RFC 9112, section 9.3.1: on a new connection, because GET is idempotent."""
    assert results["late"] == ["first", "good", 3]


def test_connections_that_were_open_before_the_first_call_are_checked(results: dict[str, Any]) -> None:
    assert results["used before"] == ["idle", "{}", TRUNCATED, TRUNCATED, 2]


def test_the_end_of_a_body_over_tls(results: dict[str, Any]) -> None:
    expected = {name: [outcome] * 2 for name, (_, _, outcome) in TLS_ENDS.items()}
    assert {name: results[name] for name in TLS_ENDS} == expected


async def test_excess_bytes_are_found_where_there_is_no_poll(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows."""
    monkeypatch.delattr(select, "poll")
    assert await idle_outcomes(server, EVIL, read=False) == ["None", "good", 2, 2]


@pytest.mark.parametrize("tls", [False, True])
async def test_an_idle_connection_is_used_again(tls: bool, server: FaultServer, tls_server: FaultServer) -> None:
    used = tls_server if tls else server
    used.script("/used-again", respond(body=b"good"))
    async with aiohttp.ClientSession() as session:
        for _ in range(3):
            options = {"ssl": used.client_ssl} if tls else {}
            assert await outcome(AsyncConnector(None), session, used.url("/used-again"), **options) == "good"
    assert len({request.connection for request in used.received("/used-again")}) == 1
