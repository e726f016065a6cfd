"""Sessions that keep responses (aiohttp-client-cache, vcrpy), and connectors for SOCKS proxies (aiohttp-socks).

The program uses each session with and without the connector. Neither may see a difference.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import warnings
import zlib
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import brotli
import pytest
from support.logs import Log

from otel_connector import AsyncConnector, ConnectFailed
from otel_connector.testing import FakeClock, FaultServer, ok, redirect, respond

pytestmark = [
    pytest.mark.neighbours,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:aiohttp_client_cache"),
]

BODY = json.dumps({"values": list(range(50_000))}).encode()
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": lambda body: brotli.compress(body, quality=1),
    "x-gzip": lambda body: gzip.compress(body, mtime=0),  # aiohttp does not decode it: the cache keeps it as it is
    "gzip, br": lambda body: brotli.compress(gzip.compress(body, mtime=0), quality=1),
}


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        find_spec(package) is None, reason=f"needs {package}: python -m pip install '.[test-all]'"
    )


async def requested(how: str, session: aiohttp.ClientSession, url: str, log: Log) -> bytes:
    if how == "connector":
        return bytes(await AsyncConnector(log.path, n_tries=1).get(session, url, "P", decode=bytes))
    response = await session.get(url)
    return await response.read()


def kept(coding: str) -> bytes:
    """Return what plain aiohttp reads, and a cache keeps."""
    return BODY if "," not in coding and coding != "x-gzip" else ENCODERS[coding](BODY)


ORDERS = [("connector", "aiohttp"), ("aiohttp", "connector"), ("connector", "connector")]


def assert_one_request_and_equal_rows(server: FaultServer, log: Log) -> None:
    """Assert that the server got one request, and that each row has the values of a response without a cache."""
    assert len(server.received("/there")) == 1
    for record in log.records():
        assert (record.response_code, record.success) == (200, True)
        assert record.redirect_url == server.url("/there")
        assert record.response_size == len(BODY)


@needs("aiohttp_client_cache")
@pytest.mark.parametrize("coding", ENCODERS)
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
async def test_a_cache_keeps_the_same_body_with_and_without_the_connector(
    order: tuple[str, str], coding: str, server: FaultServer, log: Log
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cache: Any = import_module("aiohttp_client_cache")
    expected = {"connector": BODY, "aiohttp": kept(coding)}
    server.script("/there", respond(body=ENCODERS[coding](BODY), headers=[("Content-Encoding", coding)]))
    server.script("/x", redirect("/there"))
    async with cache.CachedSession(cache=cache.CacheBackend()) as session:
        for how in order:
            assert await requested(how, session, server.url("/x"), log) == expected[how], how
    assert_one_request_and_equal_rows(server, log)


@needs("vcr")
@pytest.mark.parametrize("coding", ENCODERS)
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
async def test_a_cassette_keeps_the_same_body_with_and_without_the_connector(
    order: tuple[str, str], coding: str, server: FaultServer, log: Log, tmp_path: Path
) -> None:
    vcr: Any = import_module("vcr")
    expected = {"connector": BODY, "aiohttp": kept(coding)}
    server.script("/there", respond(body=ENCODERS[coding](BODY), headers=[("Content-Encoding", coding)]))
    server.script("/x", redirect("/there"))
    for how in order:
        with vcr.use_cassette(str(tmp_path / "cassette.yaml")):
            async with aiohttp.ClientSession() as session:
                assert await requested(how, session, server.url("/x"), log) == expected[how], how
    assert_one_request_and_equal_rows(server, log)


async def socks_proxy(reply: int) -> Any:
    """Start a SOCKS5 proxy (RFC 1928) that responds to each CONNECT with `reply`; 0 connects."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(2**16):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, count = await reader.readexactly(2)
        await reader.readexactly(count)
        writer.write(b"\5\0")
        *_, kind = await reader.readexactly(4)
        host = socket.inet_ntoa(await reader.readexactly(4)) if kind == 1 else ""
        port = int.from_bytes(await reader.readexactly(2), "big")
        writer.write(b"\5" + bytes([reply]) + b"\0\1" + bytes(6))
        if reply:
            writer.close()
            return
        up_reader, up_writer = await asyncio.open_connection(host, port)
        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))

    return await asyncio.start_server(serve, "127.0.0.1", 0)


@needs("aiohttp_socks")
@pytest.mark.parametrize("reply", [None, 0, 1, 4, 5], ids=["no proxy", "ok", "failure", "host", "refused"])
async def test_a_failure_of_a_socks_proxy_is_connect_failed_and_retried(
    reply: int | None, server: FaultServer, log: Log
) -> None:
    server.script("/x", ok)
    proxy = None if reply is None else await socks_proxy(reply)
    port = 1 if proxy is None else proxy.sockets[0].getsockname()[1]
    subject = AsyncConnector(log.path, n_tries=3, clock=FakeClock())
    async with aiohttp.ClientSession(
        connector=import_module("aiohttp_socks").ProxyConnector("127.0.0.1", port)
    ) as session:
        if reply == 0:
            assert await subject.get(session, server.url("/x"), "P") == {"ok": True}
        else:
            with pytest.raises(ConnectFailed, match=r"Proxy(Connection)?Error: ") as failed:
                await subject.get(session, server.url("/x"), "P")
            assert failed.value.attempts == 3
    if proxy is not None:
        proxy.close()
        await proxy.wait_closed()
