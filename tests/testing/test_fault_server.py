"""Tests of `otel_connector.testing`: the steps of `FaultServer`, its resources, and the virtual time of `FakeClock`.

Most tests read from blocking sockets, which distinguish RST (`ConnectionResetError`) from FIN (an empty read). Tests of
a client's reaction use aiohttp.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import logging
import random
import socket
import ssl
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from blockbuster import blockbuster_ctx

from otel_connector import testing
from otel_connector.testing import (
    Connection,
    FakeClock,
    FaultServer,
    ReceivedRequest,
    Step,
    bomb,
    compressed,
    corrupt_gzip,
    disconnect,
    drip,
    empty,
    endless,
    garbage,
    hold,
    hold_in_body,
    json_body,
    ok,
    redirect,
    reset,
    reset_in_body,
    respond,
    retry_after,
    silent,
    slow_body,
    slow_headers,
    truncated,
    truncated_chunks,
)

if TYPE_CHECKING:
    from otel_connector._clock import Clock

OK_BODY = b'{"ok": true}'


class Wire:
    """A blocking connection to a server, read byte by byte."""

    def __init__(self, server: FaultServer) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def get(self, path: str = "/x", *headers: str) -> None:
        self.send("\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode())

    def head(self) -> tuple[int, dict[str, str]]:
        lines = [line.decode().rstrip("\r\n") for line in iter(self._file.readline, b"\r\n")]
        assert lines, "the connection was closed before a response"
        return int(lines[0].split(" ")[1]), dict(line.split(": ", 1) for line in lines[1:])

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes, or up to FIN."""
        return self._file.read(size)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        status, headers = self.head()
        return status, headers, self.read(int(headers.get("Content-Length", 0)))

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@contextmanager
def wire(server: FaultServer) -> Iterator[Wire]:
    opened = Wire(server)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def answered_by(step: Any) -> Iterator[Wire]:
    """Yield a connection on which a request was sent. The server answers it with `step`."""
    with FaultServer() as server, wire(server) as opened:
        server.script("/x", step)
        opened.get()
        yield opened


def connect_and_request(server: FaultServer, path: str, step: Step) -> socket.socket:
    """Connect and send a request for `step`. With TLS, a missing close_notify is an error."""
    server.script(path, step)
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    if server.url().startswith("https:"):
        tls = server.client_ssl
        connection = tls.wrap_socket(connection, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
    connection.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
    return connection


# Steps on the wire.


@pytest.mark.parametrize(
    ("step", "status", "headers", "body"),
    [
        (ok, 200, {"Content-Type": "application/json", "Content-Length": "12"}, OK_BODY),
        (empty, 200, {"Content-Length": "0"}, b""),
        (503, 503, {"Content-Type": "application/json", "Content-Length": "15"}, b'{"status": 503}'),
        (204, 204, {"Content-Type": "application/json"}, b""),
        (599, 599, {"Content-Type": "application/json", "Content-Length": "15"}, b'{"status": 599}'),
        (json_body([1, "é"]), 200, {"Content-Type": "application/json", "Content-Length": "13"}, b'[1, "\\u00e9"]'),
        (
            respond(418, b"tea", [("X-A", "1")], content_type="text/plain"),
            418,
            {"X-A": "1", "Content-Type": "text/plain", "Content-Length": "3"},
            b"tea",
        ),
        (
            respond(200, b"tea", {"content-type": "a/b", "content-length": "2"}),
            200,
            {"content-type": "a/b", "content-length": "2"},
            b"",
        ),
        (redirect("/y"), 302, {"Location": "/y", "Content-Length": "0"}, b""),
        (redirect("http://[broken", 308), 308, {"Location": "http://[broken", "Content-Length": "0"}, b""),
        (
            retry_after(7),
            503,
            {"Retry-After": "7", "Content-Type": "application/json", "Content-Length": "15"},
            b'{"status": 503}',
        ),
        (
            retry_after("Wed, 21 Oct 2026 07:28:00 GMT", 429),
            429,
            {
                "Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT",
                "Content-Type": "application/json",
                "Content-Length": "15",
            },
            b'{"status": 429}',
        ),
        (slow_headers(0), 200, {"Content-Type": "application/json", "Content-Length": "12"}, OK_BODY),
        (slow_body(0), 200, {"Content-Type": "application/json", "Content-Length": "12"}, OK_BODY),
    ],
)
def test_responses_have_the_expected_status_headers_and_body(
    step: Step | int, status: int, headers: dict[str, str], body: bytes
) -> None:
    with answered_by(step) as connection:
        assert connection.answer() == (status, headers, body)


def test_reset_sends_rst_and_disconnect_sends_fin() -> None:
    with answered_by(reset) as connection, pytest.raises(ConnectionResetError):
        connection.read()
    with answered_by(disconnect) as connection:
        assert connection.read() == b""


def test_reset_in_body_sends_rst_after_the_start_of_the_body() -> None:
    with answered_by(reset_in_body(16)) as connection:
        assert connection.head()[1]["Content-Length"] == "80"
        assert len(connection.read(16)) == 16
        with pytest.raises(ConnectionResetError):
            connection.read()


def test_truncated_sends_fewer_bytes_than_promised() -> None:
    with answered_by(truncated(16, 64)) as connection:
        assert connection.head()[1]["Content-Length"] == "64"
        assert len(connection.read()) == 16


def test_truncated_chunks_sends_no_final_chunk() -> None:
    with answered_by(truncated_chunks()) as connection:
        assert connection.head()[1]["Transfer-Encoding"] == "chunked"
        assert connection.read() == b'c\r\n{"ok": true}\r\n'


def test_silent_reads_and_never_answers() -> None:
    with FaultServer() as server, wire(server) as mute, wire(server) as other:
        server.script("/mute", silent)
        server.script("/x", ok)
        mute.get("/mute")
        while not server.received("/mute"):
            other.get()
            other.answer()
        mute.socket.settimeout(0)
        with pytest.raises(BlockingIOError):
            mute.socket.recv(1)
        assert server.statuses("/mute") == [None]


def test_garbage_is_not_http() -> None:
    with answered_by(garbage) as connection:
        assert not connection.read().startswith(b"HTTP/")


@pytest.mark.timing
@pytest.mark.parametrize("step", [slow_headers(0.05), slow_body(0.05)])
def test_slow_steps_take_at_least_their_delay(step: Step) -> None:
    with FaultServer() as server, wire(server) as connection:
        server.script("/x", step)
        started = time.perf_counter()
        connection.get()
        assert connection.answer()[2] == OK_BODY
        assert time.perf_counter() - started >= 0.05


def test_drip_sends_one_byte_per_chunk() -> None:
    with answered_by(drip(0.001)) as connection:
        connection.head()
        assert connection.read(18) == b"1\r\n \r\n" * 3


def test_endless_keeps_sending_chunks() -> None:
    with answered_by(endless(1000)) as connection:
        connection.head()
        chunk = b"3e8\r\n" + b" " * 1000 + b"\r\n"
        assert connection.read(len(chunk) * 500) == chunk * 500


def test_corrupt_gzip_cannot_be_decoded() -> None:
    with answered_by(corrupt_gzip) as connection:
        _, headers, body = connection.answer()
    assert headers["Content-Encoding"] == "gzip"
    assert len(body) == int(headers["Content-Length"])
    with pytest.raises(zlib.error):
        zlib.decompress(body, wbits=31)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
async def test_compressed_and_bomb_are_decoded_by_aiohttp(encoding: str) -> None:
    size = 3_000_001
    async with FaultServer() as server, aiohttp.ClientSession() as session:
        server.script("/x", [compressed(OK_BODY, encoding), bomb(size, encoding)])
        async with session.get(server.url("/x")) as response:
            assert response.headers["Content-Encoding"] == encoding
            assert await response.json() == {"ok": True}
        async with session.get(server.url("/x")) as response:
            assert int(response.headers["Content-Length"]) < size / 500
            assert await response.read() == bytes(size)


async def test_zstd_works_or_raises_import_error_if_python_has_no_zstd() -> None:
    stdlib = sys.version_info >= (3, 14)
    backport = importlib.util.find_spec("backports") and importlib.util.find_spec("backports.zstd")
    if not (stdlib or backport):
        with pytest.raises(ImportError, match=r"pip install backports\.zstd"):
            compressed(OK_BODY, "zstd")
        return
    async with FaultServer() as server, aiohttp.ClientSession() as session:
        server.script("/x", compressed(OK_BODY, "zstd"))
        async with session.get(server.url("/x")) as response:
            assert await response.json() == {"ok": True}


def test_a_missing_optional_package_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("brotli", "trustme"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"brotli: pip install 'otel-connector\[testing\]'") as caught:
        compressed(b"", "br")
    assert caught.value.name == "brotli"
    with pytest.raises(ImportError, match=r"trustme: pip install 'otel-connector\[testing\]'"):
        FaultServer(tls=True)


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (reset, aiohttp.ClientOSError),
        (disconnect, aiohttp.ServerDisconnectedError),
        (reset_in_body(), aiohttp.ClientError),
        (truncated(), aiohttp.ClientPayloadError),
        (truncated_chunks(), aiohttp.ClientPayloadError),
        (garbage, aiohttp.ClientResponseError),
        (corrupt_gzip, aiohttp.ClientPayloadError),
        (silent, asyncio.TimeoutError),
        (drip(0.01), asyncio.TimeoutError),
        (slow_headers(60), asyncio.TimeoutError),
        (slow_body(60), asyncio.TimeoutError),
    ],
)
@pytest.mark.filterwarnings(
    # CPython 3.10 reports aiohttp's TLS transport as unclosed if the server closed the connection
    "ignore:unclosed transport:ResourceWarning" if sys.version_info < (3, 11) else "error"
)
@pytest.mark.parametrize("tls", [False, True])
async def test_aiohttp_raises_the_expected_error_for_each_fault(step: Step, error: type[Exception], tls: bool) -> None:
    timeout = aiohttp.ClientTimeout(total=0.1 if error is asyncio.TimeoutError else 5)
    async with FaultServer(tls=tls) as server, aiohttp.ClientSession(timeout=timeout) as session:
        server.script("/x", step)
        with pytest.raises(error):
            async with session.get(server.url("/x"), ssl=server.client_ssl if tls else True) as response:
                await response.read()
        # aiohttp has sent the request a second time by itself, as documented at `reset`
        if step in {reset, disconnect}:
            assert len(server.requests) == 2


# Holding.


@pytest.mark.parametrize("make", [hold, hold_in_body])
async def test_a_held_request_can_be_cancelled_without_a_sleep(make: Any) -> None:
    held = make()
    async with FaultServer() as server, aiohttp.ClientSession() as session:
        server.script("/x", [held.step, ok])
        url = server.url("/x")

        async def call() -> Any:
            async with session.get(url) as response:
                return await response.json()

        task = asyncio.create_task(call())
        await asyncio.wait_for(held.arrived, 5)
        assert held.arrived
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await call() == {"ok": True}
        assert server.statuses("/x") == [200 if make is hold_in_body else None, 200]


@pytest.mark.parametrize("make", [hold, hold_in_body])
def test_a_held_request_is_answered_after_release(make: Any) -> None:
    held = make()
    assert not held.arrived
    with FaultServer() as server, wire(server) as connection:
        server.script("/x", held.step)
        connection.get()
        held.arrived.wait(5)
        if make is hold_in_body:
            assert connection.head()[0] == 200
            assert connection.read(6) == OK_BODY[:6]
        held.release()
        held.release()
        assert connection.read(6) == OK_BODY[6:] if make is hold_in_body else connection.answer()[2] == OK_BODY
        connection.get()
        assert connection.answer()[2] == OK_BODY


async def test_a_hold_can_wait_for_several_arrivals_and_give_another_answer() -> None:
    held = hold(then=respond(410), arrivals=3)
    async with FaultServer() as server, aiohttp.ClientSession() as session:
        server.script("/x", held.step)

        async def call() -> int:
            async with session.get(server.url("/x")) as response:
                return response.status

        tasks = [asyncio.create_task(call()) for _ in range(3)]
        await asyncio.wait_for(held.arrived, 5)
        assert len(server.received("/x")) == 3
        held.release()
        assert await asyncio.gather(*tasks) == [410] * 3


async def test_arrived_can_be_awaited_again_after_a_timeout() -> None:
    held = hold()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(held.arrived, 0.001)
    async with FaultServer() as server, aiohttp.ClientSession() as session:
        server.script("/x", held.step)
        task = asyncio.create_task(session.get(server.url("/x")).__aenter__())
        await asyncio.wait_for(held.arrived, 5)
        held.release()
        (await task).close()


def test_waiting_for_an_arrival_can_time_out() -> None:
    with pytest.raises(TimeoutError, match=r"within 0\.001 s"):
        hold().arrived.wait(0.001)


# Scripts and the log.


def test_steps_are_played_in_order_and_the_last_one_repeats() -> None:
    with FaultServer() as server, wire(server) as connection:
        server.script("/x", [503, respond(429), ok])
        for _ in range(4):
            connection.get("/x?n=1&n=2", "X-Two: a", "x-two: b")
            connection.answer()
        assert server.statuses("/x") == server.statuses() == [503, 429, 200, 200]
        assert [request.step for request in server.received("/x")] == [0, 1, 2, 2]
        first = server.requests[0]
        assert (first.method, first.path, first.query, first.version) == ("GET", "/x", "n=1&n=2", "1.1")
        assert first.headers["X-TWO"] == "a"
        assert first.headers.getall("x-Two") == ["a", "b"]
        assert hash(first)
        server.reset_log()
        assert (server.requests, server.statuses("/x")) == ([], [])
        server.script("/x", [201, 202])
        connection.get()
        assert connection.answer()[0] == 201


def test_an_unscripted_path_gets_404() -> None:
    with FaultServer() as server, wire(server) as connection:
        connection.get("/nowhere")
        assert connection.answer()[0] == 404
        assert server.received("/nowhere")[0].step is None
        assert server.received("/x") == []


def test_url_contains_the_address_and_the_encoded_query() -> None:
    with FaultServer() as server:
        root = f"http://127.0.0.1:{server.port}"
        assert server.url() == f"{root}/"
        assert server.url("/a%20b", q="ä b", n=[1, 2]) == f"{root}/a%20b?q=%C3%A4+b&n=1&n=2"
        assert server.url("/a?b=1", c=2) == f"{root}/a?b=1&c=2"


def test_a_custom_step_can_send_bytes_and_play_another_step() -> None:
    async def half_a_status_line(connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 20")
        connection.close()
        with pytest.raises(ConnectionError):
            await connection.send(b"0 OK\r\n\r\n")

    class Echo:
        async def __call__(self, connection: Connection) -> None:
            await respond(body=connection.request.query.encode()).play(connection)

    with FaultServer() as server, wire(server) as first, wire(server) as second:
        server.script("/x", [half_a_status_line, Echo()])
        first.get()
        assert first.read() == b"HTTP/1.1 20"
        second.get("/x?hello")
        assert second.answer()[2] == b"hello"
        assert server.statuses("/x") == [None, 200]


def test_a_step_that_raises_fails_the_test() -> None:
    async def broken(connection: Connection) -> None:
        raise LookupError(connection.request.path)

    server = FaultServer()
    server.start()
    server.script("/x", broken)
    with wire(server) as connection:
        connection.get()
        with pytest.raises(ConnectionResetError):
            connection.read()
    with pytest.raises(RuntimeError, match="a step of /x raised LookupError") as caught:
        server.close()
    assert isinstance(caught.value.__cause__, LookupError)
    server.close()

    def failing_test() -> None:
        with FaultServer() as server, wire(server) as connection:
            server.script("/x", broken)
            connection.get()
            with pytest.raises(ConnectionResetError):
                connection.read()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing_test()


def test_a_client_that_disconnects_is_not_an_error() -> None:
    held = hold()
    disconnected = threading.Event()

    async def reports_the_disconnect(connection: Connection) -> None:
        try:
            await held.step.play(connection)
        finally:
            disconnected.set()

    async def sends_after_abort(connection: Connection) -> None:
        connection.abort()
        await connection.send(b"x")

    with FaultServer() as server:
        server.script("/x", [reports_the_disconnect, sends_after_abort])
        with wire(server) as connection:
            connection.get()
            held.arrived.wait()
        assert disconnected.wait(5)
        with wire(server) as connection:
            connection.get()
            with pytest.raises(ConnectionResetError):
                connection.read()


# HTTP.


def test_a_connection_is_reused_unless_the_client_requests_close() -> None:
    with FaultServer() as server:
        server.script("/x", ok)
        with wire(server) as connection:
            connection.get()
            connection.get()
            assert connection.answer() == connection.answer()
            connection.get("/x", "Connection: x, Close")
            assert connection.answer()[0] == 200
            assert connection.read() == b""
        with wire(server) as connection:
            connection.send(b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert connection.answer()[0] == 200
            connection.send(b"GET /x HTTP/1.0\r\n\r\n")
            assert connection.answer()[0] == 200
            assert connection.read() == b""
        assert [request.connection for request in server.requests] == [1, 1, 1, 2, 2]


async def test_aiohttp_reuses_a_connection() -> None:
    async with FaultServer() as server, aiohttp.ClientSession() as session:
        server.script("/x", [ok, ok, disconnect, ok])
        for _ in range(2):
            async with session.get(server.url("/x")) as response:
                assert await response.read() == OK_BODY
        async with session.post(server.url("/y"), data=b"b" * 300_000) as response:
            assert response.status == 404
        assert {request.connection for request in server.requests} == {1}
        assert server.requests[-1].method == "POST"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * (64 * 1024), 431),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * (64 * 1024) + b"\r\n\r\n", 431),
    ],
)
def test_an_invalid_request_gets_an_error_status_and_is_not_logged(data: bytes, status: int) -> None:
    with FaultServer() as server, wire(server) as connection:
        connection.send(data)
        assert connection.answer()[0] == status
        assert connection.read() == b""
        assert server.requests == []


def test_a_request_in_several_segments_is_read_with_its_body() -> None:
    with FaultServer() as server, wire(server) as connection:
        server.script("/x", ok)
        for piece in (b"POST /x HT", b"TP/1.1\r\nContent-Length: 5\r\n\r", b"\nab", b"cdeGET /x HTTP/1.1\r\n\r\n"):
            connection.send(piece)
        assert connection.answer()[2] == connection.answer()[2] == OK_BODY
        assert [request.method for request in server.requests] == ["POST", "GET"]


# TLS.


async def test_the_certificate_is_trusted_only_with_client_ssl(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    async with FaultServer(tls=True) as server, aiohttp.ClientSession() as session:
        server.script("/x", ok)
        assert server.url("/x").startswith("https://127.0.0.1:")
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(server.url("/x"))
        assert server.requests == []
        for _ in range(2):
            async with session.get(server.url("/x"), ssl=server.client_ssl) as response:
                assert await response.json() == {"ok": True}
        assert len({request.connection for request in server.requests}) == 1
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
    assert capfd.readouterr() == ("", "")


def test_a_failed_handshake_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with FaultServer(tls=True) as server:
        with wire(server) as connection:
            connection.get()
            assert b"HTTP" not in connection.read()
        with wire(server):
            pass
    assert capfd.readouterr() == ("", "")


def test_with_tls_disconnect_sends_close_notify_and_reset_sends_rst() -> None:
    with FaultServer(tls=True) as server:
        with connect_and_request(server, "/disconnect", disconnect) as secure:
            assert secure.recv(1) == b""
        secure = connect_and_request(server, "/reset", reset)
        # Read below TLS: Python's ssl module reports both RST and FIN as EOF
        with socket.socket(fileno=secure.detach()) as raw:
            raw.settimeout(5)
            with pytest.raises(ConnectionResetError):
                read_to_end(raw)


def read_to_end(raw: socket.socket) -> None:
    while raw.recv(65536):
        pass


def test_client_ssl_requires_a_tls_server() -> None:
    with FaultServer() as server, pytest.raises(RuntimeError, match="client_ssl"):
        _ = server.client_ssl
    with FaultServer(tls=True) as server:
        assert isinstance(server.client_ssl, ssl.SSLContext)


# Start and close.


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd").iterdir())


@pytest.mark.timing
@pytest.mark.parametrize("tls", [False, True])
def test_close_with_requests_in_flight_is_fast_and_leaves_nothing_open(tls: bool) -> None:
    gc.collect()  # otherwise objects of an earlier test may be closed between the two counts
    threads, files = threading.active_count(), open_files()
    for _ in range(3):
        with FaultServer(tls=tls) as server:
            held = hold_in_body()
            steps = {"/silent": silent, "/drip": drip(), "/endless": endless(), "/held": held.step}
            connections = [connect_and_request(server, path, step) for path, step in steps.items()]
            # The last connection sends nothing. With TLS, its handshake has not started
            connections.append(socket.create_connection(("127.0.0.1", server.port)))
            connections[2].recv(1)
            held.arrived.wait()
            started = time.perf_counter()
            server.close()
            assert time.perf_counter() - started < 1
            for connection in connections:
                connection.close()
    gc.collect()
    assert (threading.active_count(), open_files()) == (threads, files)


@pytest.mark.parametrize("tls", [False, True])
def test_async_with_does_not_block_the_callers_loop(tls: bool) -> None:
    async def use() -> None:
        held = hold()
        async with FaultServer(tls=tls) as server, aiohttp.ClientSession() as session:
            server.script("/x", [held.step, endless()])
            ssl = server.client_ssl if tls else True
            first = asyncio.ensure_future(session.get(server.url("/x"), ssl=ssl).__aenter__())
            await asyncio.wait_for(held.arrived, 5)
            held.release()
            (await first).close()
            async with session.get(server.url("/x"), ssl=ssl) as response:
                assert len(await response.content.readexactly(100_000)) == 100_000
            assert server.statuses("/x") == [200, 200]

    with blockbuster_ctx():
        asyncio.run(use())


async def test_a_cancelled_start_leaves_no_server() -> None:
    threads = server_threads()
    server = FaultServer()
    task = asyncio.ensure_future(server.__aenter__())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server_threads() == threads
    with pytest.raises(RuntimeError, match="starts once"):
        server.start()


def server_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "FaultServer"}


async def test_async_with_raises_an_error_if_a_step_raised() -> None:
    async def broken(connection: Connection) -> None:
        raise LookupError

    async def use() -> None:
        async with FaultServer() as server, aiohttp.ClientSession() as session:
            server.script("/x", broken)
            with pytest.raises(aiohttp.ClientError):
                await session.get(server.url("/x"))

    with pytest.raises(RuntimeError, match="a step of /x"):
        await use()


def test_a_server_starts_once_and_closes_any_number_of_times() -> None:
    server = FaultServer()
    with pytest.raises(RuntimeError, match="not been started"):
        server.url()
    server.start()
    with pytest.raises(RuntimeError, match="starts once"):
        server.start()
    server.close()
    server.close()
    with pytest.raises(RuntimeError, match="starts once"):
        server.start()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)
    FaultServer().close()


def test_a_failed_start_raises_an_error_with_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_connector.testing._server._HOST", "192.0.2.1")  # reserved for documentation, RFC 5737
    server = FaultServer()
    with pytest.raises(OSError, match=r"192\.0\.2\.1"):
        server.start()
    server.close()


def test_a_step_that_does_not_end_makes_close_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_connector.testing._server._CLOSE_TIMEOUT", 0.01)
    threads = server_threads()
    held, end = hold(), threading.Event()

    async def does_not_end(connection: Connection) -> None:
        with suppress(asyncio.CancelledError):
            await held.step.play(connection)
        while not end.is_set():  # noqa: ASYNC110 - waiting for an event would end on cancellation
            await asyncio.sleep(0)

    server = FaultServer()
    server.start()
    server.script("/x", does_not_end)
    with wire(server) as connection:
        connection.get()
        held.arrived.wait()
        with pytest.raises(RuntimeError, match="prevents the FaultServer from closing"):
            server.close()
        end.set()
    for thread in server_threads() - threads:
        thread.join(5)


def test_threads_can_script_send_requests_and_read_concurrently() -> None:
    failures: list[BaseException] = []

    def work(server: FaultServer, number: int) -> None:
        path = f"/{number}"
        try:
            with wire(server) as connection:
                for _ in range(20):
                    server.script(path, [503, ok])
                    for status in (503, 200, 200):
                        connection.get(path)
                        assert connection.answer()[0] == status
            assert server.statuses(path) == [503, 200, 200] * 20
        except BaseException as error:  # noqa: BLE001 - reported in the main thread
            failures.append(error)

    with FaultServer() as server:
        server.script("/shared", [200 + number for number in range(100)])
        threads = [threading.Thread(target=work, args=(server, number)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert failures == []
        assert len(server.requests) == 8 * 60


# Arguments.


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: respond(status=True), TypeError, "status must be an int"),
        (lambda: respond(199), ValueError, "status must be at least 200"),
        (lambda: respond(body="x"), TypeError, "body must be a bytes"),  # type: ignore[arg-type]
        (lambda: respond(204, b"x"), ValueError, "body must be empty"),
        (lambda: respond(headers=[("a b", "c")]), ValueError, "headers: a name"),
        (lambda: respond(headers=[("a", "c\r\nd")]), ValueError, "headers: a must fit in one"),
        (lambda: respond(headers={"a": 1}), TypeError, "headers: a must be a str"),  # type: ignore[arg-type]
        (lambda: respond(content_type="a\n"), ValueError, "content_type must fit"),
        (lambda: redirect("/\u20ac"), ValueError, "location must fit"),
        (lambda: redirect("/", 200), ValueError, "status must be at least 300"),
        (lambda: retry_after(-1), ValueError, "value must be at least 0"),
        (lambda: retry_after(1.5), TypeError, "value must be an int"),  # type: ignore[arg-type]
        (lambda: retry_after("\n"), ValueError, "value must fit"),
        (lambda: slow_headers(-1), ValueError, "seconds must be 0 or more"),
        (lambda: slow_body("1"), TypeError, "seconds must be a number"),  # type: ignore[arg-type]
        (lambda: drip(float("nan")), ValueError, "interval must be"),
        (lambda: endless(0), ValueError, "chunk must be at least 1"),
        (lambda: reset_in_body(-1), ValueError, "after must be"),
        (lambda: truncated(64, 64), ValueError, "promised must be at least 65"),
        (lambda: compressed("x"), TypeError, "body must be a bytes"),  # type: ignore[arg-type]
        (lambda: compressed(b"", "lzma"), ValueError, "encoding must be one of"),
        (lambda: bomb(0), ValueError, "size must be at least 1"),
        (lambda: hold(200), TypeError, "then must be a Step"),  # type: ignore[arg-type]
        (lambda: hold(arrivals=0), ValueError, "arrivals must be"),
        (lambda: Step(name=1, play=ok.play), TypeError, "name must be"),  # type: ignore[arg-type]
        (lambda: Step(name="x", play=1), TypeError, "play must be an async"),  # type: ignore[arg-type]
        (lambda: FaultServer(tls=1), TypeError, "tls must be a bool"),  # type: ignore[arg-type]
        (lambda: FaultServer().script("x", ok), ValueError, "path must start with /"),
        (lambda: FaultServer().script("/x y", ok), ValueError, "path must start with /"),
        (lambda: FaultServer().script("/x?a", ok), ValueError, "path must have no query"),
        (lambda: FaultServer().script(1, ok), TypeError, "path must be a str"),  # type: ignore[arg-type]
        (lambda: FaultServer().script("/x", []), ValueError, "steps must not be empty"),
        (lambda: FaultServer().script("/x", [ok, True]), TypeError, r"steps\[1\] must be a Step"),
        (lambda: FaultServer().script("/x", [600]), ValueError, "status must be at most 599"),
        (lambda: FaultServer().script("/x", "ok"), TypeError, r"steps\[0\] must be"),  # type: ignore[arg-type]
        (lambda: FaultServer().script("/x", slow_body), TypeError, "did you mean to call it"),  # type: ignore[arg-type]
        (lambda: FaultServer().script("/x", hold()), TypeError, r"put its \.step"),  # type: ignore[arg-type]
        (lambda: FakeClock(-1), ValueError, "start must be"),
        (lambda: FakeClock("now"), TypeError, "start must be"),  # type: ignore[arg-type]
        (lambda: FakeClock(randoms=1), ValueError, r"randoms must be in \[0, 1\)"),
        (lambda: FakeClock(randoms="0"), TypeError, "randoms must be"),  # type: ignore[arg-type]
        (lambda: FakeClock(randoms=[-0.1]).random(), ValueError, "randoms must be"),
        (lambda: FakeClock().advance(-1), ValueError, "seconds must be"),
    ],
)
def test_an_invalid_argument_is_named_in_the_error(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_peer_that_has_read_no_request_raises_an_error() -> None:
    from otel_connector.testing._peer import Peer

    async def serve(peer: Peer) -> None:
        raise NotImplementedError

    with pytest.raises(RuntimeError, match="no request"):
        _ = Peer(1, set(), serve).request


def test_public_names_are_sorted_and_complete() -> None:
    assert testing.__all__ == sorted(testing.__all__)
    assert {name for name in vars(testing) if not name.startswith("_")} == set(testing.__all__)
    assert ReceivedRequest.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert repr(slow_body(2)).startswith("Step(name='slow_body(2)'")


# Virtual time.


@pytest.mark.timing
async def test_virtual_time_passes_without_waiting() -> None:
    clock: Clock = FakeClock(start=1_000.25)
    fake = FakeClock(start=1_000.25)
    assert clock.time_ns() == 1_000_250_000_000
    assert clock.monotonic_ns() == 0
    started = time.perf_counter()
    await fake.sleep(3600)
    await fake.sleep(-1)
    fake.advance(0.5)
    assert time.perf_counter() - started < 1
    assert fake.sleeps == [3600, -1]
    assert (fake.time_ns(), fake.monotonic_ns()) == (4_600_750_000_000, 3_600_500_000_000)
    with pytest.raises(ValueError, match="delay must be"):
        await fake.sleep(float("inf"))


async def test_a_sleep_yields_to_the_loop_once() -> None:
    clock = FakeClock()
    order: list[str] = []

    async def other() -> None:
        order.append("other")

    task = asyncio.create_task(other())
    await clock.sleep(1)
    order.append("slept")
    assert order == ["other", "slept"]
    await task


async def test_sleepers_wake_in_order_and_time_never_goes_back() -> None:
    clock = FakeClock(start=0)
    woken: list[tuple[int, str]] = []

    async def sleeper(name: str, *delays: float) -> None:
        for delay in delays:
            await clock.sleep(delay)
            woken.append((clock.time_ns() // 10**9, name))

    await asyncio.gather(sleeper("a", 5, 1), sleeper("b", 1, 2, 2), sleeper("c", 5), sleeper("d", 0))
    assert woken == [(0, "d"), (1, "b"), (3, "b"), (5, "a"), (5, "c"), (5, "b"), (6, "a")]


async def test_advance_moves_the_time_and_a_cancelled_sleep_does_not() -> None:
    clock = FakeClock()
    late = asyncio.create_task(clock.sleep(10))
    later = asyncio.create_task(clock.sleep(20))
    await asyncio.sleep(0)
    late.cancel()
    clock.advance(60)
    with pytest.raises(asyncio.CancelledError):
        await late
    await later
    assert clock.monotonic_ns() == 60 * 10**9


def test_random_returns_the_selected_numbers() -> None:
    constant, listed = FakeClock(), FakeClock(randoms=[0.1, 0.9])
    assert [constant.random(), constant.random()] == [0.5, 0.5]
    assert [listed.random(), listed.random()] == [0.1, 0.9]
    with pytest.raises(RuntimeError, match="randoms is exhausted"):
        listed.random()
    seeded, same = FakeClock(randoms=random.Random(7)), random.Random(7)
    assert [seeded.random() for _ in range(3)] == [same.random() for _ in range(3)]


def test_json_body_accepts_only_json_values() -> None:
    with pytest.raises(TypeError):
        json_body({1, 2})
    with answered_by(json_body(None)) as connection:
        assert json.loads(connection.answer()[2]) is None
