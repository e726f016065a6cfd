"""The texts of errors: they name the limit that was exceeded, and equal failures have equal texts."""

from __future__ import annotations

import re
import ssl
from typing import Any

import aiohttp
import pytest
from support.logs import Log

from otel_connector import AsyncConnector, ConnectFailed, ConnectorError, DecodeFailed, MalformedResponse
from otel_connector.testing import Connection, FakeClock, FaultServer, ok

LONG = b"s3cret" + b"a" * 9_000
HEADS = {
    "value of a header": b"HTTP/1.1 200 OK\r\nSet-Cookie: a=" + LONG + b"\r\n",
    "name of a header": b"HTTP/1.1 200 OK\r\n" + LONG + b": b\r\n",
    "status line": b"HTTP/1.1 200 " + LONG + b"\r\n",
    "number of headers": b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: 1\r\n" % number for number in range(200)),
}


@pytest.mark.parametrize("part", HEADS)
async def test_a_head_above_a_limit_of_aiohttp_names_the_options_that_raise_it(
    part: str, server: FaultServer, session: aiohttp.ClientSession
) -> None:
    async def long_head(connection: Connection) -> None:
        await connection.send(HEADS[part] + b"Content-Length: 2\r\n\r\n{}")

    server.script("/x", long_head)
    with pytest.raises(MalformedResponse, match="set the limits: max_line_size, max") as caught:
        await AsyncConnector(None, n_tries=1).get(session, server.url("/x"), "P")
    assert "s3cret" not in str(caught.value)
    options: dict[str, Any] = {"max_line_size": 20_000, "max_field_size": 20_000, "max_headers": 300}
    assert await AsyncConnector(None).get(session, server.url("/x"), "P", **options) == {}


class Reason:
    """An object whose text contains its address, as that of most objects does."""


def raises(body: bytes) -> Any:
    raise ValueError(body, Reason())


def refused() -> dict[str, Any]:
    return {"ssl": ssl.create_default_context()}


@pytest.mark.parametrize(
    ("options", "error"),
    [(refused, ConnectFailed), (lambda: {"decode": raises}, DecodeFailed)],
    ids=["TLS context", "decoder"],
)
async def test_equal_failures_have_equal_texts(
    options: Any, error: type[ConnectorError], server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    """The text of an object contains its address in memory, which is another one each time."""
    server.script("/x", ok)
    url = server.url("/x") if error is DecodeFailed else "https://127.0.0.2:1/"
    connector, texts = AsyncConnector(log.path, n_tries=1, clock=FakeClock()), set[str]()
    kept = [options() for _ in range(3)]
    for each in kept:
        with pytest.raises(error) as caught:
            await connector.get(session, url, "P", **each)
        texts.add(str(caught.value))
    assert len(texts) == 1
    assert not re.search("0x[0-9a-f]{6}", str(texts))
    assert {record.error for record in log.records()} == {f"{error.__name__}: {texts.pop()}"}
