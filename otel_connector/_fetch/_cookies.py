"""The cookie jars of a job: by default no cookie outlives its call, and no cookie is sent to another host.

aiohttp's jar is shared by all calls of a session and accepts a cookie for a public suffix, so a server could choose the
session in which later hosts are requested. Does not know calls: a call is a task.

Used by ``_fetch._chunk`` and ``_fetch._fetch``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from http.cookies import BaseCookie, Morsel, SimpleCookie
from typing import Any, cast
from weakref import WeakKeyDictionary

import aiohttp
from aiohttp.abc import AbstractCookieJar
from yarl import URL


class HostCookies(aiohttp.CookieJar):
    """Cookies that are sent only to the host that has set them.

    The attribute ``Domain`` only decides whether a cookie is stored: not if it is another host, or a top-level domain,
    which is a public suffix (RFC 6265, section 5.3, steps 5 and 6). So no list of the other public suffixes is needed,
    which a user agent has to keep up to date. A host may be an IP address (section 5.1.3).
    """

    def __init__(self) -> None:
        super().__init__(unsafe=True)  # aiohttp's name for IP addresses

    def update_cookies_from_headers(self, headers: Sequence[str], response_url: URL) -> None:
        """Store the cookies of a response."""
        AbstractCookieJar.update_cookies_from_headers(self, headers, response_url)

    def update_cookies(self, cookies: Any, response_url: URL = URL()) -> None:  # noqa: B008 - as in aiohttp
        """Store cookies, without their domain."""
        host = (response_url.raw_host or "").lower()
        for name, morsel in cast("list[tuple[str, Morsel[str]]]", cookies):
            domain = morsel["domain"].removeprefix(".").lower()
            parents, _, top = domain.rpartition(".")
            if domain not in {"", host} and (not parents or top.isdecimal() or not host.endswith(f".{domain}")):
                continue
            of_host: Any = morsel.copy()
            of_host["domain"] = ""
            super().update_cookies([(name, of_host)], response_url)


class CallCookies(aiohttp.DummyCookieJar):
    """Cookies that are forgotten at the end of the call that received them, as by curl. Redirects of the call get them.

    Each call of a `get_many` is a task.
    """

    def __init__(self) -> None:
        super().__init__()
        self._jars: WeakKeyDictionary[asyncio.Task[Any] | None, HostCookies] = WeakKeyDictionary()

    def update_cookies_from_headers(self, headers: Sequence[str], response_url: URL) -> None:
        """Store the cookies of a response of this call."""
        self._jars.setdefault(asyncio.current_task(), HostCookies()).update_cookies_from_headers(headers, response_url)

    def filter_cookies(self, request_url: URL) -> BaseCookie[str]:
        """Return the cookies of this call for a request."""
        jar = self._jars.get(asyncio.current_task())
        return SimpleCookie() if jar is None else jar.filter_cookies(request_url)


def cookie_jar(*, keep: bool) -> AbstractCookieJar:
    """Return the jar of a job; with `keep`, the cookies of a host are kept for later calls to it."""
    return HostCookies() if keep else CallCookies()
