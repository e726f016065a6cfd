"""Tests of the cookies of ``otel-connector fetch`` and `fetch_chunk`: which response decides which request.

Every host name is that of the same server.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command_line import run_here

from otel_connector import AsyncConnector, Chunk, fetch_chunk
from otel_connector._fetch._fetch import Fetch, FetchOptions
from otel_connector._fetch._url_lists import UrlLines
from otel_connector.testing import FaultServer, redirect, respond


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    """Return a server, in a process in which all names are names of this machine."""
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **options: look_up("127.0.0.1", *rest, **options))
    with FaultServer() as server:
        server.script("/read", respond(body=b"1"))
        yield server


def run(server: FaultServer, folder: Path, *urls: str, keep: bool, by_chunk: bool) -> list[tuple[str, str]]:
    """Fetch the URLs, without their port, one after the other, and return the host and the cookies of each request."""
    listed = [f"http://{host}:{server.port}/{path}" for host, _, path in (url.partition("/") for url in urls)]
    if by_chunk:
        chunk = Chunk(urls=listed, project="P", log=str(folder / "l.csv"), max_concurrency=1, keep_cookies=keep)
        assert asyncio.run(fetch_chunk(chunk)).succeeded == len(urls)
    else:
        (folder / "urls").write_text("\n".join(listed))
        fetch_options = FetchOptions(project="P", concurrency=1, keep_cookies=keep)
        fetch = Fetch(AsyncConnector(None), UrlLines(str(folder / "urls")), fetch_options)
        asyncio.run(fetch.run())
        assert fetch.progress().succeeded == len(urls)
    hosts = [request.headers["Host"].partition(":")[0] for request in server.requests]
    return list(zip(hosts, (request.headers.get("Cookie", "") for request in server.requests), strict=True))


# The host that sets a cookie, its attributes, and the host that is requested next
ELSEWHERE = {
    "a public suffix (RFC 6265, section 5.3, step 5)": ("evil.com", "; Domain=com", "bank.com"),
    "a public suffix with a leading dot": ("evil.co.uk", "; Domain=.co.uk", "bank.co.uk"),
    "a public suffix of a hoster": ("evil.github.io", "; Domain=github.io", "bank.github.io"),
    "a parent domain": ("a.example.com", "; Domain=example.com", "b.example.com"),
    "a subdomain of the host that set it": ("example.com", "; Domain=example.com", "a.example.com"),
    "another host (RFC 6265, section 5.3, step 6)": ("evil.com", "; Domain=bank.com", "bank.com"),
    "no domain (RFC 6265, section 5.3, step 6: host-only)": ("evil.com", "", "bank.com"),
    "an address": ("127.0.0.1", "", "localhost"),
}
BOTH = pytest.mark.parametrize("by_chunk", [False, True], ids=["fetch", "fetch_chunk"])


@BOTH
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", ELSEWHERE)
def test_no_host_sets_a_cookie_for_another_one(
    name: str, keep: bool, by_chunk: bool, server: FaultServer, tmp_path: Path
) -> None:
    host, attributes, other = ELSEWHERE[name]
    cookie = {"Set-Cookie": f"session=evil; Path=/{attributes}"}
    server.script("/set", respond(body=b"1", headers=cookie))
    server.script("/redirect", respond(302, headers={**cookie, "Location": f"http://{other}:{server.port}/read"}))
    urls = [f"{host}/set", f"{other}/read", f"{host}/redirect"]
    found = run(server, tmp_path, *urls, keep=keep, by_chunk=by_chunk)
    assert [asked for asked, _ in found] == [host, other, host, other]
    assert [cookies for asked, cookies in found if asked == other] == ["", ""]


@pytest.mark.parametrize(
    ("host", "domain", "stored"),
    [
        ("evil.com", "com", False),
        ("evil.com", ".COM", False),
        ("localhost", "localhost", True),  # it is the host itself
        ("evil.com", "bank.com", False),
        ("evil.com", "vil.com", False),
        ("evil.com", "a.evil.com", False),
        ("127.0.0.1", "0.0.1", False),
        ("a.evil.com", "evil.com", True),
        ("evil.com", ".EVIL.com", True),
    ],
)
def test_a_cookie_whose_domain_is_a_top_level_domain_or_another_host_is_not_stored(
    host: str, domain: str, stored: bool, server: FaultServer, tmp_path: Path
) -> None:
    """RFC 6265, section 5.3, steps 5 and 6, and section 5.1.3."""
    server.script("/set", respond(body=b"1", headers={"Set-Cookie": f"sid=1; Domain={domain}"}))
    requests = run(server, tmp_path, f"{host}/set", f"{host}/read", keep=True, by_chunk=False)
    assert requests == [(host, ""), (host, "sid=1" if stored else "")]


@BOTH
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("attributes", ["", "; Domain=example.com", "; Domain=.example.com", "; HttpOnly"])
@pytest.mark.parametrize("host", ["www.example.com", "127.0.0.1"])
def test_a_cookie_is_sent_with_the_redirects_of_its_call_and_later_only_if_kept(
    host: str, attributes: str, keep: bool, by_chunk: bool, server: FaultServer, tmp_path: Path
) -> None:
    cookie = {"Set-Cookie": f"session=1; Path=/{attributes}", "Location": f"http://{host}:{server.port}/read"}
    server.script("/redirect", respond(302, headers=cookie))
    found = run(server, tmp_path, f"{host}/redirect", f"{host}/read", keep=keep, by_chunk=by_chunk)
    sent = "" if host == "127.0.0.1" and "Domain" in attributes else "session=1"  # RFC 6265, section 5.3, step 6
    assert found == [(host, ""), (host, sent), (host, sent if keep else "")]


@BOTH
def test_a_secure_cookie_and_one_of_another_path_are_not_sent(
    by_chunk: bool, server: FaultServer, tmp_path: Path
) -> None:
    """RFC 6265, section 5.4."""
    for name, cookie in {"/a": "a=1; Path=/other", "/b": "b=1; Path=/; Secure", "/c": "c=1; Path=/; Max-Age=0"}.items():
        server.script(name, respond(body=b"1", headers={"Set-Cookie": cookie}))
    urls = [f"example.com{path}" for path in ("/a", "/b", "/c", "/read")]
    assert run(server, tmp_path, *urls, keep=True, by_chunk=by_chunk)[-1] == ("example.com", "")


def test_a_redirect_that_needs_no_cookie_has_none(server: FaultServer, tmp_path: Path) -> None:
    server.script("/redirect", redirect("/read"))
    found = run(server, tmp_path, "example.com/redirect", keep=False, by_chunk=False)
    assert found == [("example.com", "")] * 2


def test_the_option_keeps_the_cookies_of_a_host(server: FaultServer, tmp_path: Path) -> None:
    """The server has an address, as hosts in an intranet have."""
    server.script("/set", respond(body=b"1", headers={"Set-Cookie": "session=1; Path=/"}))
    (tmp_path / "urls").write_text(f"{server.url('/set')}\n{server.url('/read')}\n")
    for options, sent in (([], ""), (["--keep-cookies"], "session=1")):
        assert run_here(tmp_path, "fetch", "urls", "--concurrency", "1", *options).code == 0
        assert server.requests[-1].headers.get("Cookie", "") == sent


def test_keep_cookies_of_a_chunk_is_checked() -> None:
    with pytest.raises(TypeError, match=r"^keep_cookies must be a bool, not str$"):
        Chunk(urls=[], project="P", log="logs.csv", keep_cookies="no")  # type: ignore[arg-type]
