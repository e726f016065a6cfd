"""Options that can be read only once: every request of a call, and every URL of a job, sends the same.

For one URL, the comparison is the first request, which plain aiohttp sends as well. The rule for bodies is that of
RFC 9110, section 9.2.2: a request is repeated automatically only if that has the same effect.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from otel_connector import AsyncConnector
from otel_connector.testing import FakeClock


async def authenticate(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    request.headers["X-Auth"] = "yes"
    return await handler(request)


def changing(mapping: dict[str, str]) -> dict[str, str]:
    """Return a mapping that the caller empties as soon as the first request has been sent."""
    CHANGING.append(mapping)
    return mapping


CHANGING: list[dict[str, str]] = []

ONCE: dict[str, Callable[[], dict[str, Any]]] = {
    "headers, zip": lambda: {"headers": zip(["X-A"], ["1"], strict=True)},
    "headers, generator": lambda: {"headers": (pair for pair in [("X-A", "1")])},
    "headers, a dict that is changed": lambda: {"headers": changing({"X-A": "1"})},
    "params, zip": lambda: {"params": zip(["a"], ["1"], strict=True)},
    "params, a dict that is changed": lambda: {"params": changing({"a": "1"})},
    "cookies, generator": lambda: {"cookies": (pair for pair in [("a", "1")])},
    "cookies, SimpleCookie": lambda: {"cookies": SimpleCookie("a=1; b=2")},
    "middlewares, generator": lambda: {"middlewares": (each for each in [authenticate])},
    "skip_auto_headers, generator": lambda: {"skip_auto_headers": (name for name in ["User-Agent"])},
    "data, bytes": lambda: {"data": b"abc"},
    "data, text": lambda: {"data": "abc"},
    "data, a dict that is changed": lambda: {"data": changing({"a": "1"})},
    "data, pairs": lambda: {"data": [("a", "1"), ("a", "2")]},
    "json": lambda: {"json": {"a": [1]}},
}


class Server:
    """Answers each path with 503 first, then with a redirect, then with JSON, and keeps what it received."""

    def __init__(self) -> None:
        self.received: dict[str, list[dict[str, Any]]] = {}

    async def answer(self, request: web.Request) -> web.Response:
        number = len(seen := self.received.setdefault(request.path, []))
        headers = {name: value for name, value in request.headers.items() if name.startswith(("X-", "Co", "User"))}
        seen.append({"query": request.query_string, "headers": headers, "body": await request.read()})
        for mapping in CHANGING:
            mapping.clear()
        if number == 1:
            return web.Response(status=307, headers={"Location": str(request.rel_url)})
        return web.json_response({"ok": True}, status=503 if number == 0 else 200)


@pytest.mark.parametrize("option", ONCE)
@pytest.mark.parametrize("way", ["get", "get_many"])
async def test_every_request_and_every_url_sends_the_same(
    option: str, way: str, session: aiohttp.ClientSession
) -> None:
    CHANGING.clear()
    handler = Server()
    application = web.Application()
    application.router.add_get("/{path}", handler.answer)
    connector = AsyncConnector(None, n_tries=2, timeout=5, clock=FakeClock())
    async with TestServer(application) as server:
        if way == "get":
            assert await connector.get(session, server.make_url("/1"), "P", **ONCE[option]()) == {"ok": True}
        else:
            urls = [server.make_url(f"/{number}") for number in range(3)]
            outcomes = connector.get_many(session, urls, "P", max_concurrency=1, **ONCE[option]())
            assert [outcome.error async for outcome in outcomes] == [None] * 3
    sent = [request for requests in handler.received.values() for request in requests]
    assert len(sent) == (3 if way == "get" else 9)
    expected = {"query", "headers", "body"}
    assert all(request == sent[0] for request in sent), option
    assert set(sent[0]) == expected
    name = option.split(",", maxsplit=1)[0]
    found = {
        "headers": sent[0]["headers"].get("X-A") == "1",
        "params": sent[0]["query"] == "a=1",
        "cookies": sent[0]["headers"].get("Cookie", "").startswith("a=1"),
        "middlewares": sent[0]["headers"].get("X-Auth") == "yes",
        "skip_auto_headers": "User-Agent" not in sent[0]["headers"],
    }
    assert found.get(name, sent[0]["body"] != b""), "the first request sends the option, too"


async def chunks() -> AsyncIterator[bytes]:
    yield b"abc"


def generator() -> Iterator[bytes]:
    yield b"abc"


BODIES: dict[str, Callable[[Path], Any]] = {
    "BytesIO": lambda _: io.BytesIO(b"abc"),
    "StringIO": lambda _: io.StringIO("abc"),
    "file": lambda path: path.open("rb"),
    "generator": lambda _: generator(),
    "async generator": lambda _: chunks(),
    "FormData": lambda _: aiohttp.FormData({"a": "1"}),
    "Payload": lambda _: aiohttp.BytesPayload(b"abc"),
    "MultipartWriter": lambda _: aiohttp.MultipartWriter(),
    "dict with a file": lambda path: {"a": path.open("rb")},
    "pairs with a file": lambda path: [("a", io.BytesIO(b"abc"))],
    "list of files": lambda path: [io.BytesIO(b"abc")],
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("way", ["get", "get_many"])
async def test_a_body_that_can_be_read_only_once_is_refused(
    kind: str, way: str, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"abc")
    data: Any = BODIES[kind](path)
    connector = AsyncConnector(None)
    refused = pytest.raises(TypeError, match=r"^data must be bytes, text, or fields .* can be read only once")
    if way == "get":
        with refused:
            await connector.get(session, "http://127.0.0.1:9/", "P", data=data)
    else:
        with refused:
            connector.get_many(session, ["http://127.0.0.1:9/"], "P", data=data)
    opened = data["a"] if kind == "dict with a file" else data
    if isinstance(opened, io.IOBase):
        opened.close()
    if kind == "async generator":
        await data.aclose()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"params": 5}, "params"),
        ({"headers": 5}, "headers"),
        ({"headers": [("X-A", 1)]}, "headers: X-A must be a str, not int"),
    ],
    ids=str,
)
async def test_a_value_of_the_wrong_type_names_its_option(
    option: dict[str, Any], message: str, session: aiohttp.ClientSession
) -> None:
    with pytest.raises(TypeError, match=message):
        await AsyncConnector(None, n_tries=1).get(session, "http://127.0.0.1:9/", "P", **option)
