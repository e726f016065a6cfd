"""Other code that reads a response before the connector: middlewares, traces, response classes, sessions, caches.

The right value is always that of plain aiohttp: the same session, without the connector, with ``response.read()``.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import sys
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from importlib import import_module
from io import BytesIO
from types import SimpleNamespace
from typing import Any, ClassVar

import aiohttp
import brotli
import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from support.logs import Log
from support.loop_and_memory import ALLOWANCE, needs_at_most
from yarl import URL

import otel_connector
from otel_connector import AsyncConnector
from otel_connector._call import _body, _exchange, _transport
from otel_connector._call._bounded_content import content_of
from otel_connector.testing import Connection, FakeClock, FaultServer, bomb, endless, ok, redirect, respond, truncated

zstd: Any = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")

SMALL = b'{"ok": true}'
LARGE = random.Random(1).randbytes(2**18) + bytes(2**19)  # more than aiohttp buffers, even compressed
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": lambda body: brotli.compress(body, quality=1),
    "zstd": zstd.compress,
}


@cache
def encoded(coding: str, body: bytes) -> bytes:
    return ENCODERS[coding](body)


SEEN: list[bytes] = []
"""The bodies that other code has read."""


async def middleware(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    response = await handler(request)
    SEEN.append(await response.read())
    return response


async def releasing_middleware(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    response = await handler(request)
    SEEN.append(await response.read())
    response.release()
    return response


async def streaming_middleware(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Read the content in another way, and keep the body where `ClientResponse.read` does."""
    response = await handler(request)
    response._body = b"".join([piece async for piece in response.content.iter_chunked(5_000)])
    SEEN.append(response._body)
    return response


async def replacing_middleware(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    response = await handler(request)
    response._body = b"another body"
    SEEN.append(response._body)
    return response


def trace(event: str) -> aiohttp.TraceConfig:
    async def read(session: object, context: SimpleNamespace, params: Any) -> None:
        SEEN.append(await params.response.read())

    config = aiohttp.TraceConfig()
    getattr(config, event).append(read)
    return config


class ReadsInStart(aiohttp.ClientResponse):
    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        await super().start(connection)
        SEEN.append(await self.read())
        return self


class ReadsInHook(aiohttp.ClientResponse):
    """Overrides `read` only: it logs the body when the program reads it."""

    async def read(self) -> bytes:
        SEEN.append(await super().read())
        return SEEN[-1]


class Reversed(aiohttp.ClientResponse):
    """Returns another body than the server sent, for example a decrypted one."""

    async def read(self) -> bytes:
        SEEN.append((await super().read())[::-1])
        return SEEN[-1]


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # aiohttp discourages subclasses, and yet there are many

    class Session(aiohttp.ClientSession):
        async def _request(self, *args: Any, **kwargs: Any) -> aiohttp.ClientResponse:
            response = await super()._request(*args, **kwargs)
            SEEN.append(await response.read())
            return response

    class OwnGet(aiohttp.ClientSession):
        async def get(self, url: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            response = await self._request("GET", url, **kwargs)
            SEEN.append(await response.read())
            return response

    class Restreaming(aiohttp.ClientSession):
        """Replaces the content after it was read, as vcrpy and aiohttp-client-cache do."""

        async def _request(self, *args: Any, **kwargs: Any) -> aiohttp.ClientResponse:
            response = await super()._request(*args, **kwargs)
            SEEN.append(await response.read())
            response.content = content_of(SEEN[-1])
            return response


READERS: dict[str, Callable[[], aiohttp.ClientSession]] = {
    "middleware": lambda: aiohttp.ClientSession(middlewares=[middleware]),
    "middleware that releases": lambda: aiohttp.ClientSession(middlewares=[releasing_middleware]),
    "middleware that streams": lambda: aiohttp.ClientSession(middlewares=[streaming_middleware]),
    "middleware that replaces": lambda: aiohttp.ClientSession(middlewares=[replacing_middleware]),
    "trace at the end": lambda: aiohttp.ClientSession(trace_configs=[trace("on_request_end")]),
    "response class, start": lambda: aiohttp.ClientSession(response_class=ReadsInStart),
    "response class, read": lambda: aiohttp.ClientSession(response_class=ReadsInHook),
    "response class, another body": lambda: aiohttp.ClientSession(response_class=Reversed),
    "session, _request": Session,
    "session, get": OwnGet,
    "session, new content": Restreaming,
}


async def with_aiohttp(session: aiohttp.ClientSession, url: str) -> tuple[bytes, list[bytes]]:
    """Return the body that plain aiohttp returns, and the bodies that the other code has seen."""
    SEEN.clear()
    response = await session.get(url)
    # `read` would raise if the response was released, `text` and `json` use what was read
    body = response._body if response._released and response._body is not None else await response.read()
    response.release()
    return body, SEEN.copy()


async def with_connector(session: aiohttp.ClientSession, url: str, log: Log) -> tuple[bytes, list[bytes]]:
    SEEN.clear()
    body = await AsyncConnector(log.path, n_tries=1).get(session, url, "P", decode=bytes)
    return body, SEEN.copy()


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("reader", READERS)
async def test_a_body_that_other_code_reads_is_the_body_of_plain_aiohttp(
    reader: str, body: bytes, server: FaultServer, log: Log
) -> None:
    sizes = list[int]()
    async with READERS[reader]() as session:
        for coding in ENCODERS:
            headers = [("Content-Encoding", coding)] if coding != "identity" else []
            server.script(f"/{coding}", respond(body=encoded(coding, body), headers=headers))
            expected = await with_aiohttp(session, server.url(f"/{coding}"))
            found = await with_connector(session, server.url(f"/{coding}"), log)
            assert len(expected[1]) == 1, coding
            assert found == expected, coding
            sizes.append(len(expected[0]))
    assert [record.response_size for record in log.records()] == sizes


@pytest.mark.parametrize("reader", READERS)
async def test_other_statuses_have_the_same_outcome_with_other_readers(
    reader: str, server: FaultServer, log: Log
) -> None:
    subject = AsyncConnector(log.path, n_tries=1)
    empty, failed = (204, 205, 304), (404, 503)
    async with READERS[reader]() as session:
        for status in empty:
            server.script("/x", respond(status, b""))
            assert await subject.get(session, server.url("/x"), "P") is None, status
        for status in failed:
            server.script("/x", respond(status, gzip.compress(SMALL), [("Content-Encoding", "gzip")]))
            with pytest.raises(otel_connector.HTTPStatusError, match=str(status)):
                await subject.get(session, server.url("/x"), "P")
    assert [record.response_code for record in log.records()] == [*empty, *failed]


async def test_a_middleware_can_use_the_json_of_a_compressed_response(server: FaultServer, log: Log) -> None:
    found = list[object]()

    async def reads_json(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        response = await handler(request)
        found.append(await response.json(content_type=None))
        return response

    server.script("/x", respond(body=gzip.compress(SMALL), headers=[("Content-Encoding", "gzip")]))
    async with aiohttp.ClientSession(middlewares=[reads_json]) as session:
        assert await AsyncConnector(log.path).get(session, server.url("/x"), "P") == json.loads(SMALL)
    assert found == [json.loads(SMALL)]


@pytest.mark.parametrize("reader", [name for name in READERS if "replaces" not in name])
async def test_other_code_reads_not_more_than_the_limit(reader: str, server: FaultServer, log: Log) -> None:
    """Plain aiohttp has no limit: `read` would return 32 MiB, or never."""
    subject = AsyncConnector(log.path, n_tries=3, timeout=20, max_body_bytes=2**20)
    for step in (endless(), bomb(2**25, "gzip"), bomb(2**25, "br")):
        server.script("/x", step)
        with needs_at_most(4 * 2**20 + ALLOWANCE):  # `read` holds the pieces and the body
            async with READERS[reader]() as session:
                with pytest.raises(otel_connector.BodyTooLarge) as failed:
                    await subject.get(session, server.url("/x"), "P", decode=bytes)
        assert (failed.value.limit, failed.value.attempts) == (2**20, 1), step


@pytest.mark.parametrize("reader", [name for name in READERS if "replaces" not in name])
async def test_a_truncated_body_is_retried_if_other_code_reads_it(reader: str, server: FaultServer, log: Log) -> None:
    subject = AsyncConnector(log.path, n_tries=2, clock=FakeClock())
    expected = SMALL[::-1] if "another body" in reader else SMALL
    async with READERS[reader]() as session:
        for retries, coding in enumerate(("identity", "gzip", "br", "zstd"), 1):
            wire, headers = encoded(coding, SMALL), [("Content-Encoding", coding)]
            cut = truncated() if coding == "identity" else respond(body=wire[:-1], headers=headers)
            server.script("/x", [cut, respond(body=wire, headers=headers)])
            assert await subject.get(session, server.url("/x"), "P", decode=bytes) == expected, coding
            assert subject.stats().retries == retries, coding


async def test_a_body_that_other_code_has_taken_is_an_error(server: FaultServer, log: Log) -> None:
    """Plain aiohttp returns an empty body. Nothing of it is kept, so the call has not got what the server sent."""

    async def takes_all(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        response = await handler(request)
        await response.content.read()
        return response

    async def takes_a_part(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        response = await handler(request)
        assert await response.content.readexactly(7) == SMALL[:7]
        return response

    server.script("/x", ok)
    subject = AsyncConnector(log.path, n_tries=2)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(otel_connector.DecodeFailed, match="other code has read the 12 bytes of response"):
            await subject.get(session, server.url("/x"), "P", decode=bytes, middlewares=[takes_all])
        # As with plain aiohttp: the code that takes a part knows what it leaves
        assert await subject.get(session, server.url("/x"), "P", decode=bytes, middlewares=[takes_a_part]) == SMALL[7:]


async def _joined(pieces: Any) -> bytes:
    return b"".join([piece async for piece in pieces])


async def _when_complete(content: aiohttp.StreamReader) -> bytes:
    await content.wait_eof()
    return content.read_nowait()


READING_METHODS: dict[str, Callable[[aiohttp.StreamReader], Any]] = {
    "readany": lambda content: _joined(content.iter_any()),
    "read(n)": lambda content: _joined(content.iter_chunked(3_000)),
    "readchunk": lambda content: _joined(piece async for piece, _ in content.iter_chunks()),
    "readline": _joined,
    "readexactly": lambda content: content.readexactly(len(LINES)),
    "wait_eof": _when_complete,
}
LINES: bytes = b"".join(b"%060d\n" % number for number in range(3_000))  # more than aiohttp buffers


@pytest.mark.parametrize("method", READING_METHODS)
async def test_every_method_of_a_content_reads_the_decoded_body(method: str, server: FaultServer, log: Log) -> None:
    async def reads(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        response = await handler(request)
        response._body = await READING_METHODS[method](response.content)
        assert await response.content.read() == b""
        assert response.content.at_eof()
        assert response.content.total_bytes == len(LINES)
        assert response.content.total_raw_bytes == len(wire)
        assert response.content.exception() is None
        return response

    subject = AsyncConnector(log.path, n_tries=1)
    async with aiohttp.ClientSession(middlewares=[reads]) as session:
        for coding in ENCODERS:
            wire = encoded(coding, LINES)
            server.script("/x", respond(body=wire, headers=[("Content-Encoding", coding)]))
            assert await subject.get(session, server.url("/x"), "P", decode=bytes) == LINES, coding


async def test_one_coroutine_reads_a_content_at_a_time(server: FaultServer, log: Log) -> None:
    async def reads_twice(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        response = await handler(request)
        results = await asyncio.gather(response.read(), response.content.readany(), return_exceptions=True)
        assert isinstance(results[1], RuntimeError)  # as aiohttp raises
        return response

    server.script("/x", respond(body=encoded("gzip", LARGE), headers=[("Content-Encoding", "gzip")]))
    async with aiohttp.ClientSession(middlewares=[reads_twice]) as session:
        assert await AsyncConnector(log.path, n_tries=1).get(session, server.url("/x"), "P", decode=bytes) == LARGE


async def test_a_content_of_a_released_response_raises_the_error_of_aiohttp(server: FaultServer, log: Log) -> None:
    async def reads_after_release(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        response = await handler(request)
        response.release()
        with pytest.raises(aiohttp.ClientConnectionError, match="Connection closed"):
            await response.content.read()
        return await handler(request)

    server.script("/x", respond(body=encoded("gzip", LARGE), headers=[("Content-Encoding", "gzip")]))
    async with aiohttp.ClientSession(middlewares=[reads_after_release]) as session:
        assert await AsyncConnector(log.path, n_tries=1).get(session, server.url("/x"), "P", decode=bytes) == LARGE


async def test_without_a_content_of_our_own_aiohttp_decodes(
    server: FaultServer, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If aiohttp renames ``StreamReader._wait``."""
    for module in (_body, _exchange):
        monkeypatch.setattr(module, "CONTENT_CAN_BE_REPLACED", False)
    monkeypatch.setattr(_transport, "_AIOHTTP_DECOMPRESSES", True)
    for name in ("gzip", "x-gzip"):
        server.script(f"/{name}", respond(body=encoded("gzip", LARGE), headers=[("Content-Encoding", name)]))
    subject = AsyncConnector(log.path, n_tries=1)
    for reader in ("middleware", "response class, start"):
        async with READERS[reader]() as session:
            assert await subject.get(session, server.url("/gzip"), "P", decode=bytes) == LARGE
            with pytest.raises(otel_connector.DecodeFailed, match="this version of aiohttp does not decode gzip"):
                await subject.get(session, server.url("/x-gzip"), "P", decode=bytes)
    async with aiohttp.ClientSession() as session:
        raw = await subject.get(session, server.url("/gzip"), "P", decode=bytes, auto_decompress=False)
        assert gzip.decompress(raw) == LARGE


async def test_a_session_that_replaces_the_middlewares_gets_the_decoded_body(server: FaultServer, log: Log) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        class Replacing(aiohttp.ClientSession):
            async def _request(self, *args: Any, **kwargs: Any) -> aiohttp.ClientResponse:
                return await super()._request(*args, **{**kwargs, "middlewares": ()})

    subject = AsyncConnector(log.path, n_tries=1)
    async with Replacing() as session:
        for coding in ENCODERS:
            server.script("/x", respond(body=encoded(coding, LARGE), headers=[("Content-Encoding", coding)]))
            assert await subject.get(session, server.url("/x"), "P", decode=bytes) == LARGE


def test_memory_that_cannot_be_reserved_is_not_reserved() -> None:
    body = BytesIO(b"begin")
    assert _body._reserved(body, 2**62) is body
    assert _body._reserved(body, 2**20).getvalue()[:5] == b"begin"


async def test_a_subclass_of_the_session_receives_no_option_that_the_caller_did_not_give(
    server: FaultServer, log: Log
) -> None:
    received = list[dict[str, Any]]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        class Noting(aiohttp.ClientSession):
            def get(self, url: Any, **kwargs: Any) -> Any:
                received.append(kwargs)
                return super().get(url, **kwargs)

    server.script("/x", ok)
    async with Noting() as session:
        await AsyncConnector(log.path, propagate=False).get(session, server.url("/x"), "P")
        await AsyncConnector(log.path, propagate=False).get(session, server.url("/x"), "P", headers={"a": "b"})
    needed = {"timeout", "auto_decompress", "raise_for_status", "middlewares", "max_redirects"}
    assert [set(options) for options in received] == [needed, needed | {"headers"}]


async def test_an_error_that_a_connector_defines_is_connect_failed_and_retried(server: FaultServer, log: Log) -> None:
    """As those of aiohttp-socks, which are plain subclasses of `Exception`. A mistake in a connector is not retried."""

    class ProxyError(Exception):
        pass

    class Connector(aiohttp.TCPConnector):
        errors: ClassVar[list[Exception]] = []

        async def connect(self, *args: Any, **kwargs: Any) -> Any:
            if self.errors:
                raise self.errors.pop(0)
            return await super().connect(*args, **kwargs)

    server.script("/x", ok)
    server.script("/there", redirect(server.url("/x")))
    subject = AsyncConnector(log.path, n_tries=3, clock=FakeClock())
    async with aiohttp.ClientSession(connector=Connector()) as session:
        Connector.errors[:] = [ProxyError("refused"), ProxyError("refused")]
        assert await subject.get(session, server.url("/there"), "P") == {"ok": True}
        assert subject.stats().retries == 2
        Connector.errors[:] = [ProxyError("refused") for _ in range(3)]
        with pytest.raises(otel_connector.ConnectFailed, match=r"^ProxyError: refused"):
            await subject.get(session, server.url("/x"), "P")
        Connector.errors[:] = [KeyError("a mistake")]
        with pytest.raises(otel_connector.ConnectorError, match=r"^KeyError: 'a mistake'"):
            await subject.get(session, server.url("/x"), "P")
    assert subject.stats().retries == 4


class FromCache:
    """A response with the public attributes of that of aiohttp-client-cache 0.15."""

    def __init__(self, url: URL, status: int, body: bytes, history: tuple[Any, ...] = ()) -> None:
        self.url, self.status, self.history, self._body = url, status, history, body
        self.reason, self.version, self.closed = "OK", "1.1", True
        self.content = content_of(body)
        self.headers = CIMultiDictProxy(CIMultiDict({"Content-Encoding": "gzip"}))

    async def read(self) -> bytes:
        return self._body

    def close(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize("status", [200, 404])
async def test_a_response_from_a_cache_has_its_status_and_redirect_in_the_row(status: int, log: Log) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        class Cached(aiohttp.ClientSession):
            async def _request(self, method: str, url: URL, **_: Any) -> Any:  # type: ignore[override]
                return FromCache(url.with_path("/there"), status, LARGE, (FromCache(url, 302, b""),))

    async with Cached() as session:
        get = AsyncConnector(log.path, n_tries=1).get(session, "http://127.0.0.1:1/x", "P", decode=bytes)
        if status == 200:
            assert await get == LARGE
        else:
            with pytest.raises(otel_connector.HTTPStatusError):
                await get
    record = log.only()
    assert (record.response_code, record.redirect_url) == (status, "http://127.0.0.1:1/there")


async def test_a_response_from_a_cache_that_was_revalidated_is_not_the_304(server: FaultServer, log: Log) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        class Revalidating(aiohttp.ClientSession):
            async def _request(self, method: str, url: URL, **kwargs: Any) -> Any:  # type: ignore[override]
                response = await super()._request(method, url, **kwargs)
                return FromCache(url, 200, SMALL) if response.status == 304 else response

    server.script("/x", respond(304))
    async with Revalidating() as session:
        assert await AsyncConnector(log.path).get(session, server.url("/x"), "P") == json.loads(SMALL)
    assert log.only().response_code == 200


@pytest.mark.parametrize("with_head", [True, False], ids=["with the head", "later"])
async def test_the_size_of_a_body_that_is_too_large_contains_the_piece_that_was_too_much(
    with_head: bool, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    """However it arrives, `response_size` is the number of bytes that were read."""
    headed = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def fifty(connection: Connection) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n"
        if not with_head:
            await connection.send(head)
            future = asyncio.run_coroutine_threadsafe(headed.wait(), loop)
            await asyncio.wrap_future(future)
            head = b""
        await connection.send(head + b"x" * 50)

    async def middleware(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        response = await handler(request)
        headed.set()
        return response

    server.script("/x", fifty)
    connector = AsyncConnector(log.path, max_body_bytes=49)
    with pytest.raises(otel_connector.BodyTooLarge):
        await connector.get(session, server.url("/x"), "P", middlewares=[middleware])
    assert log.only().response_size == 50
