"""Every private name of aiohttp that the package uses, each with a fallback.

aiohttp may rename a private name in any release. The package must then still import and make its calls: slower, without
protection of the event loop against many small chunks, or with less detail. A warning is logged once for each feature
that is lost. This file does not know calls,
attempts or errors.

Used by ``_call._fair_reading`` and ``_call._transport``.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import aiohttp
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aiohttp.client_proto import ResponseHandler
else:
    try:
        from aiohttp.client_proto import ResponseHandler
    except ImportError:
        ResponseHandler = asyncio.Protocol  # lacks the names below, so no connection is made of it

_logger = logging.getLogger("otel_connector")

# What `PausableHandler` and its subclass use of aiohttp's class, none of which is documented
_TRANSPORT = ("_pause_transport_reading", "_resume_transport_reading")
_READING = ("pause_reading", "resume_reading", "exception", "upgraded")
_CLOSING = ("abort", "close", "connected", "should_close")
_HANDLER_NAMES = _TRANSPORT + _READING + _CLOSING
_MISSING_HANDLER_NAMES = [name for name in _HANDLER_NAMES if not hasattr(ResponseHandler, name)]
_FACTORY = "_factory"

# Called without `super()`, which would cost 1 % more instructions of a bare call: it runs for every response
_aiohttp_resume: Any = getattr(ResponseHandler, "_resume_transport_reading", None)

# If another library has replaced `get` before this import, for example to record traffic, its `get` is called
_aiohttp_get: object = getattr(aiohttp.ClientSession, "get", None)
if getattr(_aiohttp_get, "__module__", None) != aiohttp.ClientSession.__module__:
    _aiohttp_get = object()


@cache
def _warn_once(name: str, effect: str) -> None:
    with suppress(Exception):  # raised by the application's log handler
        _logger.warning("aiohttp %s has no %s, so %s", aiohttp.__version__, name, effect)


def build_url(session: aiohttp.ClientSession, url: str | URL) -> URL:
    """Return `url`, joined to the session's base URL if it is relative.

    Raises:
        ValueError: It is not a URL.
    """
    build: Callable[[str | URL], URL] | None = getattr(session, "_build_url", None)
    if build is not None:
        return build(url)
    base: URL | None = getattr(session, "_base_url", None)
    _warn_once("ClientSession._build_url", "relative URLs are joined to ClientSession._base_url, if there is one")
    parsed = URL(url)
    return base.join(parsed) if base is not None and not parsed.absolute else parsed


def session_middlewares(session: aiohttp.ClientSession) -> Sequence[aiohttp.ClientMiddlewareType] | None:
    """Return the session's own middlewares; None if they cannot be read.

    In that case none may be passed with a request, because they would replace those of the session.
    """
    middlewares: Sequence[aiohttp.ClientMiddlewareType] | None = getattr(session, "_middlewares", None)
    if middlewares is None:
        _warn_once(
            "ClientSession._middlewares",
            "requests carry no trace context, and redirects and resends are seen only in the response",
        )
    return middlewares


def request_function(session: aiohttp.ClientSession) -> Callable[..., Awaitable[aiohttp.ClientResponse]]:
    """Return the function that sends a request: it takes a method, which is GET, a URL and options.

    `ClientSession.get` wraps each request for ``async with``, which costs 5 % of the instructions of a bare call. So
    `_request` is called directly, unless a proxy, a subclass or another library has replaced `get`.
    """
    if getattr(session.get, "__func__", None) is _aiohttp_get:
        request: Callable[..., Awaitable[aiohttp.ClientResponse]] | None = getattr(session, "_request", None)
        if request is not None:
            return request
        _warn_once("ClientSession._request", "requests are sent with ClientSession.get, which is slower")

    def get(_: str, url: URL, **options: Any) -> Awaitable[aiohttp.ClientResponse]:
        return session.get(url, **options)

    return get


class PausableHandler(ResponseHandler):
    """A connection of aiohttp that does not resume reading while one of the three attributes below forbids it.

    A subclass sets them.
    """

    _pending = memoryview(b"")  # data that is not parsed yet
    _next_step: asyncio.Handle | None = None
    _reader_full = False

    def pause_transport(self) -> None:
        """Stop reading from the transport."""
        self._pause_transport_reading()

    def _resume_transport_reading(self) -> None:
        if self._next_step is None and not self._pending and not self._reader_full:
            _aiohttp_resume(self)

    resume_transport = _resume_transport_reading


def replace_connection_class(connector: aiohttp.BaseConnector, replacement: type[PausableHandler]) -> None:
    """Make `connector` create its connections from `replacement`, unless it uses a class of the application."""
    missing = [f"ResponseHandler.{name}" for name in _MISSING_HANDLER_NAMES]
    factory: Any = getattr(connector, _FACTORY, None)
    if factory is None:
        missing.append("BaseConnector._factory")
    if missing:
        _warn_once(missing[0], "a server that sends many small chunks can block the event loop")
    elif isinstance(factory, partial) and factory.func is ResponseHandler:
        setattr(connector, _FACTORY, partial(replacement, *factory.args, **factory.keywords))
