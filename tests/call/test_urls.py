"""Tests of the URL that is requested: its bytes and escapes, URLs that cannot be requested, and targets of redirects.

The sources of the expected values are RFC 3986, the WHATWG URL Standard, and what wget 1.21 and curl 7.88 send. If wget
is installed, its requests are compared.
"""

from __future__ import annotations

import asyncio
import base64
import re
import shutil
import socket
import subprocess
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http.cookies import CookieError
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from support.logs import Log
from support.loop_and_memory import STALL_LIMIT
from yarl import URL

from otel_connector import AsyncConnector, Chunk, ConnectorError, InvalidURL, RedirectRefused, fetch_chunk
from otel_connector._call._urls import ExactURL, listed_url, parsed_url, redirect_target
from otel_connector._record import one_line
from otel_connector.testing import FakeClock, FaultServer, ok, redirect

VALUE = {"ok": True}
PRESENTATION_FORM = "\ufdfa"  # one character that IDNA maps to 18


@pytest.fixture
def other() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def connector(log: Log | None = None) -> AsyncConnector:
    return AsyncConnector(None if log is None else log.path, n_tries=1, clock=FakeClock())


def targets(server: FaultServer) -> list[str]:
    """Return the request targets that the server has received."""
    return [request.path + (f"?{request.query}" if request.query else "") for request in server.requests]


def location(value: str) -> Any:
    """Return a step that redirects to `value`, whose bytes are sent as they are."""

    async def play(connection: Any) -> None:
        sent = value.encode("utf-8", "surrogateescape")
        await connection.send(b"HTTP/1.1 302 Found\r\nLocation: " + sent + b"\r\nContent-Length: 0\r\n\r\n")

    return play


def basic_auth(user: str, password: str) -> Any:
    """Return a `BasicAuth`, which is deprecated."""
    with pytest.warns(DeprecationWarning, match="BasicAuth"):
        return aiohttp.BasicAuth(user, password)


# Bytes and characters that yarl drops

LOSSLESS = {  # wget sends the same; requests does, except for bytes
    "/caf\udce9": "/caf%E9",
    "/caf\udcc3\udca9": "/caf%C3%A9",
    "/caf\u00e9": "/caf%C3%A9",
    "/x?a=\udce9&b": "/x?a=%E9&b",
    "/x#\udce9": "/x",  # a fragment is not sent
    "/\udcff/\udc80": "/%FF/%80",
    "/a\tb": "/a%09b",
    "/a\nb\rc": "/a%0Ab%0Dc",
    "/a\x01\x7f": "/a%01%7F",
    "/a\n": "/a",  # a line with its end, as a file yields it
    "/a\r\n": "/a",
}


@pytest.mark.parametrize("exact", [False, True], ids=["library", "list"])
@pytest.mark.parametrize(("given", "sent"), LOSSLESS.items(), ids=map(ascii, LOSSLESS))
async def test_no_character_of_a_url_is_lost(
    given: str, sent: str, exact: bool, server: FaultServer, session: aiohttp.ClientSession
) -> None:
    text = server.url()[:-1] + given
    assert await connector().get(session, ExactURL(text) if exact else text, "P", default=None) is None
    assert targets(server) == [sent]


@pytest.mark.parametrize("given", ["http://h/caf\ud800", "http://h/?a=\udfff", "http://h/#\udc7f", "http://\udbff/"])
async def test_a_surrogate_that_stands_for_no_byte_is_an_error(given: str, session: aiohttp.ClientSession) -> None:
    """There is no byte to send (PEP 383)."""
    with pytest.raises(InvalidURL, match="lone surrogate"):
        await connector().get(session, given, "P")


@pytest.mark.parametrize("mark", ["#", "?"])
@pytest.mark.parametrize("exact", [False, True], ids=["library", "list"])
async def test_a_password_behind_an_empty_port_is_refused_and_not_shown(
    exact: bool, mark: str, session: aiohttp.ClientSession, log: Log
) -> None:
    """Yarl drops the empty port (RFC 3986, section 3.2.3), and nothing would show that a password follows."""
    text = f"http://user:{mark}c4n4ry@h/"
    with pytest.raises(InvalidURL, match=r"percent-encode it: http://REDACTED$"):
        await AsyncConnector(log.path).get(session, ExactURL(text) if exact else text, "P")
    assert "c4n4ry" not in log.path.read_text()
    assert str(parsed_url("http://h:#a")) == "http://h/#a"
    assert str(parsed_url("http://h:80?a@b")) == "http://h/?a@b"


@pytest.mark.parametrize(
    "params",
    [
        {"token": b"c4n4ry"},
        {"token": ["a", b"c4n4ry"]},
        [("token", b"c4n4ry")],
        {"token": {"x": "c4n4ry of type y"}},
        {"token": float("nan")},
        b"c4n4ry",
        {b"c4n4ry": 1},
        ["c4n4ry"],
    ],
    ids=repr,
)
async def test_an_error_about_params_does_not_quote_a_value(
    params: Any, session: aiohttp.ClientSession, log: Log
) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^params: ") as caught:
        await AsyncConnector(log.path).get(session, "http://h/", "P", params=params)
    shown = "".join(traceback.format_exception(caught.value.with_traceback(None)))
    assert "c4n4ry" not in shown + log.path.read_text()


@pytest.mark.parametrize(
    "params", [{"a": "\udce9"}, {"\udce9": "a"}, [("a", "\udce9")], "a=\udce9", {"a": ["b", "\ud800"]}], ids=ascii
)
async def test_a_surrogate_in_params_is_an_error(
    params: Any, server: FaultServer, session: aiohttp.ClientSession
) -> None:
    with pytest.raises(ValueError, match=r"^params: a text has a lone surrogate"):
        await connector().get(session, server.url("/x"), "P", params=params)
    with pytest.raises(ValueError, match=r"^params: a text has a lone surrogate"):
        connector().get_many(session, [server.url("/x")], "P", params=params)
    assert server.requests == []


async def test_a_subclass_of_str_is_requested_by_the_text_that_it_holds(
    server: FaultServer, session: aiohttp.ClientSession
) -> None:
    class Text(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "Text.X"

    server.script("/x", ok)
    assert await connector().get(session, Text(server.url("/x")), "P") == VALUE


# Bytes that are not UTF-8 are written as surrogates
BYTES_AS_TEXT = st.binary(max_size=20).map(lambda data: data.decode("utf-8", "surrogateescape"))
PARTS = st.one_of(BYTES_AS_TEXT, st.sampled_from(["%", "%7E", "%2f", "%e9", "[", "a b", "\u00e9", "\ufdfa", "+", "'"]))


@given(parts=st.lists(PARTS, min_size=1, max_size=6), exact=st.booleans())
def test_the_path_and_the_query_stand_for_the_bytes_that_were_given(parts: list[str], exact: bool) -> None:
    text = re.sub("[/?#.]", "", "".join(parts)).rstrip("\t\n\r")
    data = unquote_to_bytes(text.encode("utf-8", "surrogateescape"))
    given = f"http://h/x/{text}?{text}"
    url = parsed_url(ExactURL(given) if exact else given)
    target = redirect_target(URL("http://h/x/y"), f"/x/{text}?{text}")
    assert target is not None
    for found in (url, target):
        assert unquote_to_bytes(found.raw_path) == b"/x/" + data
        # yarl sends a space of the query as +
        assert unquote_to_bytes(found.raw_query_string).replace(b"+", b" ") == data.replace(b"+", b" ")
        assert found.raw_path_qs.isascii()
        assert found.raw_path_qs.isprintable()


# URLs that cannot be requested

INVALID = {
    "http://ho\x01st/": "character in its host",  # WHATWG URL, forbidden domain code points
    "http://h\x00/": "character in its host",
    "http://h\t/": "character in its host",
    "http://h\x7f/": "character in its host",
    "http://a b/": "character in its host",
    "http://caf\udce9/": "character in its host",
    "http://ex%41mple.com/": "character in its host",
    "http://a|b/": "character in its host",
    "http://[v1.fe]/": "not an IPv6 address",  # RFC 3986, section 3.2.2; yarl takes it for the name v1.fe
    "http://[127.0.0.1:80]/": "not a URL",
    "http://[a:80]/": "not an IPv6 address",
    "http://u@[0:80]/": "not an IPv6 address",
    "http://\ufdd0zyx.com/": "cannot be encoded",
    "http://a..b/": "empty label",  # RFC 1035, section 2.3.1
    "https://.example.com/": "empty label",
    "http://u%3Ax:p@h/": "user name with a colon",  # RFC 7617, section 2
    "http://u%E9:p@h/": "not in UTF-8",
    "http://u:%E9@h/": "not in UTF-8",
    "http://u\udce9@h/": "not in UTF-8",
    "http://[]@/": "not a URL",
    "http://[::1/": "not a URL",
    "http://h:99999/": "not a URL",
    "http:///x": "host",
    "ftp://h/": "absolute http or https",
    "http://256/": "not a canonical IPv4 address",
    f"http://{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 63}/": "more than 253 characters",  # RFC 1035, section 2.3.4
    f"http://{PRESENTATION_FORM * 2700}/": "more than 253 characters",
    f"http://xn--{'a' * 8000}/": "more than 253 characters",
}

PREPARED = {
    "a port out of range": URL("http://h:99999/", encoded=True),
    "a space": URL("http://h/a b", encoded=True),
    "a line end": URL.build(scheme="http", authority="h", path="/a\r\nX: y", encoded=True),
    "a surrogate": URL("http://h/\udce9", encoded=True),
    "a control character in the host": URL("http://\x01/", encoded=True),
}


@pytest.mark.parametrize(
    ("url", "reason"),
    [*INVALID.items(), *((url, "") for url in PREPARED.values())],
    ids=[*(ascii(url)[:40] for url in INVALID), *PREPARED],
)
async def test_a_url_that_cannot_be_requested_is_an_outcome_of_its_own(
    url: Any, reason: str, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    """It does not end the job, and `default` applies."""
    server.script("/x", ok)
    given = [server.url("/x"), url, server.url("/x")]
    outcomes = [outcome async for outcome in connector(log).get_many(session, given, "P", ordered=True)]
    assert [outcome.value for outcome in outcomes] == [VALUE, None, VALUE]
    error = outcomes[1].error
    assert isinstance(error, InvalidURL)
    assert reason in str(error)
    assert str(error).endswith((error.url, "]")), "the message names the URL, redacted; a long one is cut"
    assert await connector().get(session, url, "P", default="D") == "D"


LONGEST = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])


@pytest.mark.parametrize("host", [LONGEST, LONGEST + ".", "\u1112\u1161\u11ab" * 20, "b\u00fccher.example", "a_b"])
def test_a_host_of_up_to_253_characters_is_valid(host: str) -> None:
    """Letters of Hangul count as the syllables that they form, as in IDNA."""
    url = parsed_url(f"http://user:{'x' * 300}@{host}:8080/")
    assert url.port == 8080


# An Authorization header in addition to the user and password of a URL: curl sends the header, requests the user


@pytest.mark.filterwarnings("ignore:The .auth. parameter:DeprecationWarning")
@pytest.mark.parametrize("by", ["headers", "session", "auth"])
async def test_a_conflict_with_the_user_of_one_url_is_the_outcome_of_this_url(
    by: str, server: FaultServer, log: Log
) -> None:
    server.script("/x", ok)
    header = {"Authorization": "Bearer x"}
    options: Any = {"headers": {"headers": header}, "auth": {"auth": basic_auth("a", "b")}}.get(by, {})
    with_user = server.url("/x").replace("//", "//user:hush@")
    async with aiohttp.ClientSession(headers=header if by == "session" else None) as session:
        given = [with_user, server.url("/x")]
        outcomes = connector(log).get_many(session, given, "P", ordered=True, **options)
        (first, second) = [outcome async for outcome in outcomes]
    assert isinstance(first.error, InvalidURL)
    assert str(first.error).startswith("Cannot combine AUTH")
    assert str(first.error).endswith(with_user.replace("user:hush", "REDACTED:REDACTED"))
    assert "hush" not in log.path.read_text()
    assert second.value == VALUE


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], object]:
    """Return a function that writes the file in which aiohttp looks for users and passwords."""
    path = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(path))
    return path.write_text


async def test_a_conflict_with_netrc_is_the_outcome_of_the_urls_of_this_host(
    netrc: Callable[[str], object], server: FaultServer, log: Log
) -> None:
    server.script("/x", ok)
    netrc("machine localhost login user password hush\n")
    given = [server.url("/x").replace("127.0.0.1", "localhost"), server.url("/x")]
    async with aiohttp.ClientSession(trust_env=True) as session:
        outcomes = connector(log).get_many(session, given, "P", ordered=True, headers={"Authorization": "x"})
        (first, second) = [outcome async for outcome in outcomes]
    assert isinstance(first.error, InvalidURL)
    assert str(first.error).endswith(given[0])
    assert second.value == VALUE


@pytest.mark.filterwarnings("ignore:The .auth. parameter:DeprecationWarning")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"headers": {"Authorization": "x"}, "auth": basic_auth("a", "")}, "Cannot combine AUTHORIZATION"),
        ({"headers": {"a": "b\n"}}, "headers: "),
        ({"nothing": 1}, "^nothing is not an option of get$"),
        ({"data": "x", "json": "y"}, "^data, json: "),
        ({"params": {"a": b"x"}}, "^params: "),
        ({"params": 5}, "^params: "),
    ],
    ids=str,
)
async def test_an_option_that_no_url_accepts_ends_the_job(
    options: Any, message: str, server: FaultServer, session: aiohttp.ClientSession
) -> None:
    server.script("/x", ok)
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        await anext(connector().get_many(session, [server.url("/x")], "P", **options))
    assert not isinstance(caught.value, InvalidURL)


class Loopback(AbstractResolver):
    """Resolves every name to the loopback, or raises the error that it is given."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        if self.error is not None:
            raise self.error
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        """Do nothing."""


ERRORS = [ValueError("odd"), UnicodeError("odd"), KeyError("odd"), RuntimeError("odd"), CookieError("odd")]


@pytest.mark.parametrize("by", ["middleware", "middleware after the response", "resolver", "trace"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_an_error_that_is_raised_for_one_url_is_its_outcome(
    by: str, error: Exception, server: FaultServer, log: Log
) -> None:
    async def middleware(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
        odd = request.url.host == "odd.example"
        if odd and by == "middleware":
            raise error
        response: aiohttp.ClientResponse = await handler(request)
        if odd and by == "middleware after the response":
            response.close()
            raise error
        return response

    async def trace(session: object, context: object, params: object) -> None:
        raise error  # the names of other hosts are not looked up

    server.script("/x", ok)
    traces = aiohttp.TraceConfig()
    if by == "trace":
        traces.on_dns_resolvehost_start.append(trace)
    pool = aiohttp.TCPConnector(resolver=Loopback(error if by == "resolver" else None))
    async with aiohttp.ClientSession(connector=pool, middlewares=[middleware], trace_configs=[traces]) as session:
        given = [f"http://odd.example:{server.port}/x", server.url("/x")]
        odd, other = [each async for each in connector(log).get_many(session, given, "P", ordered=True)]
    assert isinstance(odd.error, ConnectorError)
    assert "odd" in str(odd.error)
    assert other.value == VALUE
    assert [record.success for record in sorted(log.records(), key=lambda record: record.success)] == [False, True]


async def test_an_option_that_aiohttp_checks_late_ends_the_job(tls_server: FaultServer, server: FaultServer) -> None:
    async with aiohttp.ClientSession() as session:
        options: Any = {"proxy_headers": {"a": "b\n"}, "proxy": server.url()}
        with pytest.raises(ValueError, match="proxy_headers") as caught:
            await anext(connector().get_many(session, [tls_server.url("/x")], "P", **options))
    assert not isinstance(caught.value, ConnectorError)


# Percent-escapes of a list

EXACT = {  # wget sends the same
    "/%7Ea%2f%2F%41": "/%7Ea%2f%2F%41",
    "/%zz%": "/%25zz%25",
    "/x?q=%27%28+%2B&s=%7e": "/x?q=%27%28+%2B&s=%7e",
    "/x?a=b c": "/x?a=b%20c",
    "/a b": "/a%20b",
    "/x?a[0]=%31": "/x?a[0]=%31",
    '/|^`{}"<>\\': "/%7C%5E%60%7B%7D%22%3C%3E%5C",
    "/a/../b/./c%7E": "/b/c%7E",
    "/%2e%2e/a%7E/..": "/%2e%2e/",
    "//a//%7E": "//a//%7E",
    "/\u00e9%7E": "/%C3%A9%7E",
    "/\udce9%7E": "/%E9%7E",
    "/x%7E#a%7E b": "/x%7E",
}


@pytest.mark.parametrize(("given", "sent"), EXACT.items(), ids=map(ascii, EXACT))
async def test_escapes_of_a_listed_url_are_sent_as_they_are(
    given: str, sent: str, server: FaultServer, tmp_path: Path
) -> None:
    chunk = Chunk(urls=[server.url()[:-1] + given], project="P", log=str(tmp_path / "log"), connector={"n_tries": 1})
    await fetch_chunk(chunk)
    assert targets(server) == [sent]


@pytest.mark.skipif(shutil.which("wget") is None, reason="needs wget")
async def test_wget_sends_the_same(server: FaultServer) -> None:
    expected = {**{given: sent for given, sent in LOSSLESS.items() if "\n" not in given}, **EXACT}
    urls = [(server.url()[:-1] + given).encode("utf-8", "surrogateescape") for given in expected]
    command = [b"wget", b"--quiet", b"--tries=1", b"--no-iri", b"--output-document=/dev/null", *urls]
    await asyncio.to_thread(subprocess.run, command, check=False, env={"LC_ALL": "C.UTF-8"})
    assert targets(server) == list(expected.values())


@pytest.mark.parametrize("path", ["/a%2Fb", "/a?b=1&c=d+e", "/a/b;c=d", "/x?a=(b)'!*"])
def test_a_listed_url_without_a_difference_stays_as_it_is(path: str) -> None:
    plain = f"http://h{path.replace('%2F', '/')}"
    assert listed_url(plain) is plain
    assert str(parsed_url(ExactURL(plain))) == str(URL(plain))
    assert str(parsed_url(ExactURL("//h/%7E"))) == "//h/%7E"
    assert str(parsed_url(ExactURL("a%7E"))) == "a~", "a relative URL is not a URL of a list"
    assert listed_url(5) == 5


async def test_a_prepared_url_is_sent_as_it_is(server: FaultServer, session: aiohttp.ClientSession) -> None:
    server.script("/%7Ea", ok)
    assert await connector().get(session, URL(server.url("/%7Ea?s=%27"), encoded=True), "P") == VALUE
    assert targets(server) == ["/%7Ea?s=%27"]


# Targets of redirects, from /r%20r/x?y

LOCATIONS = {  # wget requests the same
    "/caf\udce9": "/caf%E9",
    "/caf\u00e9": "/caf%C3%A9",
    "/a b?c d": "/a%20b?c%20d",
    "/%7Ex%2f?%27": "/%7Ex%2f?%27",
    "/a\tb": "/a%09b",
    "rel": "/r%20r/rel",
    "./rel": "/r%20r/rel",
    "../rel/..": "/",
    "?q": "/r%20r/x?q",
    "#f": "/r%20r/x?y",
    "/x#\udce9": "/x",
}


@pytest.mark.parametrize("with_others", [False, True])
@pytest.mark.parametrize(("value", "sent"), LOCATIONS.items(), ids=map(ascii, LOCATIONS))
async def test_a_redirect_is_followed_to_the_exact_target(
    value: str, sent: str, with_others: bool, server: FaultServer, log: Log
) -> None:
    """Also after aiohttp has sent the request again, and in the eyes of other middlewares."""
    seen: list[str] = []

    async def middleware(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
        seen.append(request.url.raw_path_qs)
        response: aiohttp.ClientResponse = await handler(request)
        return response

    server.script("/r%20r/x", [location(value), ok])
    for path in {sent.partition("?")[0]} - {"/r%20r/x"}:
        server.script(path, ok)
    async with aiohttp.ClientSession(middlewares=[middleware] * with_others) as session:
        assert await connector(log).get(session, server.url("/r%20r/x?y"), "P") == VALUE
    assert targets(server) == ["/r%20r/x?y", sent]
    assert seen == targets(server)[: len(seen)]
    assert log.only().redirect_url == ("" if sent == "/r%20r/x?y" else server.url(sent))


@pytest.mark.parametrize(
    ("value", "target"),
    [
        ("//other:81/%7E", "http://other:81/%7E"),
        ("HTTP://OTHER/a%7E", "http://other/a%7E"),
        ("http:/y", "http://h/y"),  # a reference without authority (RFC 3986, section 5.2.2, for earlier parsers)
        ("http:y", "http://h/a/y"),
        ("https://u:p@h/%7E#f", "https://h/%7E"),
        ("ftp://h/", None),
        ("mailto:a", None),
    ],
)
def test_the_kinds_of_references(value: str, target: str | None) -> None:
    found = redirect_target(URL("http://u:p@h/a/b"), value)
    assert (None if found is None else str(found)) == target


REFUSED = {
    "http://256/": "256 - is not a canonical IPv4 address",
    "http://ho%01st/": "character in its host",
    "http://\x01/": "character in its host",
    "http://caf\udce9/": "character in its host",
    "http://a..b/": "empty label",
    "https://.a/": "empty label",
    "http://u%3A@h/": "user name with a colon",
    "http://[]@/": "IPv6",
    "http://[::1/": "IPv6",
    "http:///y": "host",
    "https:y": "host",
    f"http://{PRESENTATION_FORM * 2700}/": "more than 253 characters",
    f"http://xn--{'a' * 8000}/": "more than 253 characters",
}


def proxy_that_redirects_to(value: str) -> Any:
    """Return a context manager for a proxy that answers every request with a redirect; its value is the URL."""

    @asynccontextmanager
    async def running() -> AsyncIterator[str]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            sent = value.encode("utf-8", "surrogateescape")
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: " + sent + b"\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
            yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"

    return running()


@pytest.mark.parametrize(("value", "reason"), REFUSED.items(), ids=[ascii(value)[:40] for value in REFUSED])
async def test_a_redirect_that_cannot_be_followed_is_refused(
    value: str, reason: str, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    """The server is the reason, not the caller. The message names the target, and the connection is released."""
    server.script("/x", location(value))
    server.script("/ok", ok)
    given = [server.url("/x"), server.url("/ok")]
    refused, fetched = [each async for each in connector(log).get_many(session, given, "P", ordered=True)]
    assert isinstance(refused.error, RedirectRefused)
    assert reason in str(refused.error)
    shown = one_line(value.replace("//u%3A@", "//REDACTED@").replace("//[]@", "//REDACTED@"))
    assert str(refused.error).endswith((shown, "]", "REDACTED"))
    assert fetched.value == VALUE
    if "256" not in value:  # which the proxy would resolve
        async with proxy_that_redirects_to(value) as proxy:
            given = ["http://example.com/x"]
            (refused,) = [each async for each in connector().get_many(session, given, "P", proxy=proxy)]
        assert isinstance(refused.error, RedirectRefused)
        assert reason in str(refused.error)


async def test_a_middleware_can_change_the_target_of_a_redirect(server: FaultServer, other: FaultServer) -> None:
    async def to_other(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
        response: aiohttp.ClientResponse = await handler(request)
        if response.status == 302:
            response._cache["headers"] = CIMultiDictProxy(CIMultiDict(Location=other.url("/y")))
        return response

    server.script("/x", location("http://127.0.0.1:1/"))
    other.script("/y", ok)
    async with aiohttp.ClientSession(middlewares=[to_other]) as session:
        assert await connector().get(session, server.url("/x"), "P") == VALUE


async def test_a_redirect_that_is_not_followed_is_not_checked(
    server: FaultServer, session: aiohttp.ClientSession
) -> None:
    server.script("/x", location("http://a..b/"))
    assert await connector().get(session, server.url("/x"), "P", decode=bytes, allow_redirects=False) == b""


LONG = [
    f"http://{PRESENTATION_FORM * 2700}/",
    f"http://{'.'.join([PRESENTATION_FORM] * 2000)}/",
    f"http://{PRESENTATION_FORM * 14}/",
    f"http://{chr(0xE9) * 253}/",
    f"http://xn--{'a' * 8000}/",
    f"http://{'xn--a.' * 1300}/",
    f"http://{PRESENTATION_FORM * 2700}@h/",
    f"http://h/{PRESENTATION_FORM * 2700}?{PRESENTATION_FORM * 10}",
    f"/{'../' * 2700}",
    f"/{'%' * 8000}",
    f"/{'a=' * 4000}",
    f"//{'@' * 8000}",
]


@pytest.mark.timing
@pytest.mark.parametrize("value", LONG, ids=[ascii(value)[:30] for value in LONG])
async def test_a_location_does_not_block_the_event_loop(
    value: str, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    """Measured is the processor time of this thread, which does not depend on the load of the machine."""
    parsed_url("http://b\u00fccher.example/")  # loads the tables
    server.script("/x", location(value))
    server.script("/y", ok)
    subject = connector(log)
    await subject.get(session, server.url("/y"), "P")
    before = time.thread_time()
    await subject.get(session, server.url("/x"), "P", default=None)
    assert time.thread_time() - before < STALL_LIMIT


# Credentials after a redirect to another host


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


async def by_host(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
    """A middleware that sends credentials of its own to each host."""
    request.headers["Authorization"] = f"Bearer {request.url.host}"
    response: aiohttp.ClientResponse = await handler(request)
    return response


async def after_401(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
    """A middleware that sends credentials if the server requires them, as digest authentication does."""
    response: aiohttp.ClientResponse = await handler(request)
    if response.status == 401:
        response.release()
        request.headers["Authorization"] = "Digest x"
        response = await handler(request)
    return response


# How the session is made, what the call adds, and the Authorization header that each host receives
A, B, BOTH = "machine 127.0.0.1 login a password 1\n", "machine localhost login b password 2\n", ""
CREDENTIALS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str, str | None, str | None]] = {
    # The first three: aiohttp, curl 7.88 and requests send the same. Then, aiohttp and requests; curl sends none to B
    ".netrc of both": (A + B, {"trust_env": True}, {}, "", basic("a", "1"), basic("b", "2")),
    ".netrc of the second": (B, {"trust_env": True}, {}, "", None, basic("b", "2")),
    ".netrc of the first": (A, {"trust_env": True}, {}, "", basic("a", "1"), None),
    ".netrc of the second, header": (
        B,
        {"trust_env": True},
        {"headers": {"Authorization": "x"}},
        "",
        "x",
        basic("b", "2"),
    ),
    # As aiohttp
    "middleware of the session": ("", {"middlewares": [by_host]}, {}, "", "Bearer 127.0.0.1", "Bearer localhost"),
    "middleware of the call": ("", {}, {"middlewares": [by_host]}, "", "Bearer 127.0.0.1", "Bearer localhost"),
    "middleware after 401": ("", {"middlewares": [after_401]}, {}, "", None, "Digest x"),
    "user of the target": ("", {}, {}, "c:3@", None, basic("c", "3")),
    "user of the target, session": ("", {"auth": basic_auth("a", "1")}, {}, "c:3@", basic("a", "1"), basic("c", "3")),
    # RFC 9110, section 15.4: made for the first origin
    "auth of the session": ("", {"auth": basic_auth("a", "1")}, {}, "", basic("a", "1"), None),
    "header of the session": ("", {"headers": {"Authorization": "x"}}, {}, "", "x", None),
    "header of the call": ("", {}, {"headers": {"Authorization": "x"}}, "", "x", None),
    "header, other middleware": (
        "",
        {"middlewares": [after_401]},
        {"headers": {"Authorization": "x"}},
        "",
        "x",
        "Digest x",
    ),
    "auth, other middleware": (
        "",
        {"auth": basic_auth("a", "1"), "middlewares": [after_401]},
        {},
        "",
        basic("a", "1"),
        "Digest x",
    ),
}


@pytest.mark.filterwarnings("ignore:The .auth. parameter:DeprecationWarning")
@pytest.mark.parametrize(
    ("hosts", "of_session", "of_call", "user", "first", "second"), CREDENTIALS.values(), ids=list(CREDENTIALS)
)
async def test_credentials_reach_only_the_host_that_they_were_made_for(
    hosts: str,
    of_session: dict[str, Any],
    of_call: dict[str, Any],
    user: str,
    first: str | None,
    second: str | None,
    netrc: Callable[[str], object],
    server: FaultServer,
    other: FaultServer,
) -> None:
    netrc(hosts)
    server.script("/x", redirect(f"http://{user}localhost:{other.port}/y"))
    other.script("/y", [401, ok] if second == "Digest x" else ok)
    async with aiohttp.ClientSession(**of_session) as session:
        assert await connector().get(session, server.url("/x"), "P", **of_call) == VALUE
    assert [request.headers.get("Authorization") for request in server.requests] == [first]
    assert other.requests[-1].headers.get("Authorization") == second
    assert all("traceparent" not in request.headers for request in other.requests)
