"""Every private name of aiohttp that the package uses, each with a fallback.

aiohttp may rename a private name in any release. The package must then still import and make its calls: slower, without
protection of the event loop against many small chunks, without the checks of `CheckedHandler`, or with less detail. A
warning is logged once for each feature that is lost. `CheckedHandler`, which checks the framing of responses and the
end of TLS connections, is here because it is made of private names. This file does not know calls, attempts or the
package's errors.

Used by ``_call``.
"""

from __future__ import annotations

import asyncio
import logging
import re
import select
import ssl
from contextlib import suppress
from functools import cache, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import aiohttp
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from aiohttp.client_proto import ResponseHandler
    from aiohttp.http import HttpProcessingError, HttpResponseParser
    from aiohttp.http_exceptions import LineTooLong
else:
    try:
        from aiohttp.client_proto import ResponseHandler
        from aiohttp.http import HttpProcessingError, HttpResponseParser
    except ImportError:
        ResponseHandler = asyncio.Protocol  # lacks the names below, so it is not used for connections
        HttpProcessingError = HttpResponseParser = type("Missing", (Exception,), {})
    try:
        from aiohttp.http_exceptions import LineTooLong
    except ImportError:
        LineTooLong = type("Missing", (Exception,), {})

_logger = logging.getLogger("otel_connector")

# The undocumented names of aiohttp's class that the classes of connections below use
_TRANSPORT = ("_pause_transport_reading", "_resume_transport_reading")
_READING = ("pause_reading", "resume_reading", "exception", "upgraded", "set_response_params", "set_exception")
_CLOSING = ("abort", "close", "connected", "is_connected", "should_close")
_HANDLER_NAMES = _TRANSPORT + _READING + _CLOSING
_MISSING_HANDLER_NAMES = [name for name in _HANDLER_NAMES if not hasattr(ResponseHandler, name)]
_STATE = ("_buffer", "_parser", "_payload", "_reading_paused")  # of an instance
_FACTORY = "_factory"

_UNCHECKED = "errors in a response can be missed, and a server that sends many small chunks can block the event loop"

# Called without `super()`, which would cost 1 % more instructions of a bare call: they run for every response
_aiohttp_resume: Any = getattr(ResponseHandler, "_resume_transport_reading", None)
_aiohttp_data_received: Any = getattr(ResponseHandler, "data_received", None)
_aiohttp_set_response_params: Any = getattr(ResponseHandler, "set_response_params", None)
_aiohttp_is_connected: Any = getattr(ResponseHandler, "is_connected", None)

# aiohttp uses this parser where its C extension is not installed, or if AIOHTTP_NO_EXTENSIONS is set
_PARSER_IS_PYTHON = HttpResponseParser.__module__ == "aiohttp.http_parser"

# The beginning of nearly every response. Others are parsed line by line
_begins_final_response = re.compile(rb"HTTP/1\.[01] [2-9]").match

# As curl does. llhttp, the parser of aiohttp, accepts HTTP/0.9, RTSP/1.0 and ICE/1.0 as well. HTTP/2.0 occurs in the
# responses of misconfigured servers, which curl reads, too
_VERSIONS = frozenset({b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0"})
_VERSION_LENGTH = 8  # bytes

_FIRST_FINAL_STATUS = 200
_SWITCHING_PROTOCOLS = 101

KEPT_BODY = "_body"
"""The attribute of a response with the body that `ClientResponse.read` has read, or that other code has set."""

CONTENT_CAN_BE_REPLACED = hasattr(aiohttp.StreamReader, "_wait")
"""Whether `BoundedContent` can replace the content of a response. If not, aiohttp decodes it."""


def _method_of_aiohttp(name: str) -> object:
    """Return a method of the session; an object that is no method if another library has replaced it already."""
    method: object = getattr(aiohttp.ClientSession, name, None)
    return method if getattr(method, "__module__", None) == aiohttp.ClientSession.__module__ else object()


# Libraries replace these, for example to record traffic
_aiohttp_get = _method_of_aiohttp("get")
_aiohttp_request = _method_of_aiohttp("_request")


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

    `ClientSession.get` wraps each request for ``async with``, which costs 6 % of the instructions of a bare call. So
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


def only_aiohttp_reads(session: aiohttp.ClientSession) -> bool:
    """Return whether no trace, subclass or library can read a response before the session returns it."""
    methods = [getattr(getattr(session, name, None), "__func__", None) for name in ("get", "_request")]
    return not session.trace_configs and methods == [_aiohttp_get, _aiohttp_request]


def loop_of(connector: aiohttp.BaseConnector) -> asyncio.AbstractEventLoop:
    """Return the event loop that a connector belongs to; if it cannot be read, the running one."""
    loop: asyncio.AbstractEventLoop | None = getattr(connector, "_loop", None)
    return asyncio.get_running_loop() if loop is None else loop


class _NoConnection:
    """What a `StreamReader` calls of its connection. Here, the original content controls the connection."""

    _reading_paused = False
    connected = True

    def pause_reading(self) -> None:
        """Do nothing."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Do nothing."""


class ContentWithoutConnection(aiohttp.StreamReader):
    """A content whose reading methods call `step` while they have no data. A subclass replaces it.

    Args:
        limit: Bytes that `readline` reads.
    """

    __slots__ = ()

    def __init__(self, limit: int) -> None:
        connection: Any = _NoConnection()
        super().__init__(connection, limit, loop=asyncio.get_running_loop())

    async def _wait(self, func_name: str) -> None:
        await self.step(func_name)

    async def step(self, func_name: str) -> None:
        """Take one step towards more data.

        Args:
            func_name: The reading method.
        """


def warn_of_content() -> None:
    """Warn that contents cannot be replaced."""
    _warn_once("StreamReader._wait", "compressed bodies are decoded by aiohttp, which accepts incomplete ones")


def is_undecoded(response: aiohttp.ClientResponse) -> bool:
    """Return whether a response came from a connection, and aiohttp has not decoded its body."""
    return hasattr(response, "_protocol") and response.content.total_compressed_bytes is None


class MalformedBody(aiohttp.ClientPayloadError):
    """A body turned out not to be in the chunked coding after its head had been received."""

    def __init__(self, *_: object) -> None:
        super().__init__("the body is not in the chunked coding")  # the parser's message would quote the body


MALFORMED_BODY = (MalformedBody, HttpProcessingError)
"""What a reader of a malformed body gets. The parser in Python raises its own error for most of them."""


LINE_TOO_LONG: type[Exception] = LineTooLong  # a line of a head is longer than the session allows


class CheckedHandler(ResponseHandler):
    """A connection of aiohttp that reports every error in a response, and never takes excess bytes for a response.

    aiohttp itself takes a reset for the end of a body without a length. It does not report an error in a chunked body
    to the reader of that body. It discards a complete response with the excess bytes after it, and takes bytes that
    arrive on an idle connection for the next response.
    """

    _requests = 1  # sent on this connection; 1 also for a connection whose class was replaced
    _params: dict[str, Any]  # of the current request
    _headed = True  # whether the head of the response to the current request is complete
    _version = b""  # the beginning of its status line, unless that has just been or will be parsed
    _whole: bytes | None = None  # a response whose head and body are parsed in one step
    _poll: Callable[[int], list[tuple[int, int]]] | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._requests = 0

    def set_response_params(self, **params: Any) -> None:
        """Prepare for the response to the next request."""
        self._params, self._headed = params, False
        self._requests += 1
        _aiohttp_set_response_params(self, **params)
        if _PARSER_IS_PYTHON:  # the class of its errors in a body
            setattr(self._parser, "payload_exception", MalformedBody)  # noqa: B010 - the C parser does not have it

    def data_received(self, data: bytes) -> None:
        """Parse `data`."""
        if self._headed:
            _aiohttp_data_received(self, data)
        elif self._version or not _begins_final_response(data):
            self._parse_by_line(data)
        else:
            self._whole = data
            _aiohttp_data_received(self, data)
            self._whole = None
            if not self._buffer:  # the rest of the head follows
                self._version = data[:_VERSION_LENGTH]
            elif _PARSER_IS_PYTHON:
                self._head_received()
            else:
                self._headed = True

    def _parse_by_line(self, data: bytes) -> None:
        """Parse lines up to the end of the head, and then the rest.

        So aiohttp has received the head before an error in the bytes after it.
        """
        start = 0
        while start < len(data) and not self._headed:
            end = data.find(b"\n", start) + 1 or len(data)
            line, start, interim = data[start:end], end, len(self._buffer)
            if len(self._version) < _VERSION_LENGTH and (self._version or line not in {b"\r\n", b"\n"}):
                self._version += line[: _VERSION_LENGTH - len(self._version)]
                complete = len(self._version) == _VERSION_LENGTH or line.endswith(b"\n")
                if complete and self._version not in _VERSIONS:
                    self._reject(f"Bad status line: it begins with {self._version!r}, which is not HTTP/1")
            if self.exception() is not None:
                return
            _aiohttp_data_received(self, line)
            if len(self._buffer) > interim:
                self._version = b""
                self._head_received()
        if start < len(data):
            _aiohttp_data_received(self, data[start:])

    def _head_received(self) -> None:
        (message, _), _ = self._buffer[-1]
        self._headed = message.code >= _FIRST_FINAL_STATUS or message.code == _SWITCHING_PROTOCOLS
        if _PARSER_IS_PYTHON:
            for (message, _), _ in self._buffer:
                # RFC 9112, section 6.3: different lengths are an unrecoverable error. The C parser detects them
                if len(set(message.headers.getall("Content-Length", ()))) > 1:
                    self._buffer.clear()
                    self._reject("different values of Content-Length")
                    break

    def _reject(self, message: str) -> None:
        self.close()
        self.set_exception(HttpProcessingError(code=400, message=message))

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        """Report an error to the waiting request, or to the reader of the body."""
        if isinstance(exc, HttpProcessingError):
            if self._whole is not None:
                # aiohttp has discarded the head with the error, but it may be complete, and so may be the body
                data, self._whole = self._whole, None
                _aiohttp_set_response_params(self, **self._params)
                self._parse_by_line(data)
                return
            if not self._headed and self._requests > 1:
                # Probably excess bytes of the response before. At this error, aiohttp sends the request again on
                # another connection (RFC 9112, section 9.3.1)
                exc_cause = exc
                exc = aiohttp.ServerDisconnectedError("the connection carried bytes that belong to no response")
            elif self._headed and self._payload is not None and not self._payload.is_eof():
                malformed = MalformedBody()
                malformed.__cause__ = exc
                self._payload.set_exception(malformed)
        if exc_cause is None:
            super().set_exception(exc)
        else:
            super().set_exception(exc, exc_cause)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Report the end of the connection to the reader of the body, unless the body may end here."""
        payload = self._payload
        if payload is not None and not payload.is_eof():
            reason = self._cut_off(exc)
            if reason is not None and payload.exception() is None:
                cut_off = aiohttp.ClientPayloadError(reason)
                cut_off.__cause__ = exc
                payload.set_exception(cut_off)
            if payload.exception() is not None:
                self._payload = None  # otherwise aiohttp would replace the first error
        super().connection_lost(exc)

    def _cut_off(self, exc: BaseException | None) -> str | None:
        """Return why the end of the connection is not the end of a body without a length; None if it is."""
        ssl_object = None if self.transport is None else self.transport.get_extra_info("ssl_object")
        if ssl_object is None:
            return None if exc is None else str(exc) or type(exc).__name__
        # RFC 9112, section 9.8: such a body is complete only if TLS was closed in order
        try:
            closed = not ssl_object.read(1)
        except ssl.SSLZeroReturnError:
            closed = True
        except (OSError, ValueError):
            closed = False
        if closed:
            return None
        return "the connection ended without a close_notify of TLS" if exc is None else str(exc) or type(exc).__name__

    def is_connected(self) -> bool:
        """Whether the connection is open and, if no request is in progress, has received no excess bytes."""
        if not _aiohttp_is_connected(self):
            return False
        if not self._headed:
            return True
        if self._buffer:
            return False
        payload = self._payload
        in_progress = payload is None or not payload.is_eof()
        return in_progress or not (self._parser_in_message() or self._readable())

    def _parser_in_message(self) -> bool:
        """Return whether the parser has received a part of a message after the last one."""
        parser: Any = self._parser
        if _PARSER_IS_PYTHON:
            return bool(getattr(parser, "_tail", b"") or getattr(parser, "_lines", ()))
        try:
            return parser is not None and parser.feed_eof() is not None
        except Exception:  # noqa: BLE001 - of the partial message
            return True

    def _readable(self) -> bool:
        """Return whether bytes, or the end of the connection, have arrived that the event loop has not read yet.

        urllib3, httpcore and curl check this as well before they use a connection again.
        """
        poll = self._poll
        if poll is None:
            connection: Any = self.transport and self.transport.get_extra_info("socket")
            if connection is None or not hasattr(select, "poll"):  # Windows, where a named pipe has no socket
                return bool(connection and select.select([connection], [], [], 0)[0])
            poller = select.poll()
            poller.register(connection, select.POLLIN)
            poll = self._poll = poller.poll
        return bool(poll(0))


class PausableHandler(CheckedHandler):
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


is_reading_paused: Callable[[ResponseHandler], bool] = attrgetter("_reading_paused")
"""Whether a connection does not read."""


def replace_connection_class(connector: aiohttp.BaseConnector, replacement: type[CheckedHandler]) -> None:
    """Make `connector` use `replacement` for its connections, also for the open ones.

    If it uses a class of the application, nothing is changed.
    """
    missing = [f"ResponseHandler.{name}" for name in _MISSING_HANDLER_NAMES]
    factory: Any = getattr(connector, _FACTORY, None)
    if not hasattr(connector, _FACTORY):
        missing.append("BaseConnector._factory")
    if not missing:
        if getattr(factory, "func", None) is not ResponseHandler:
            return
        missing = [f"ResponseHandler.{name}" for name in _STATE if not hasattr(factory(), name)]
    if missing:
        _warn_once(missing[0], _UNCHECKED)
        return
    setattr(connector, _FACTORY, partial(replacement, *factory.args, **factory.keywords))
    for connection in _open_connections(connector):
        if type(connection) is ResponseHandler and connection.transport is not None:
            connection.__class__ = replacement
            connection.transport.set_protocol(connection)  # uvloop keeps the methods of the old class


def _open_connections(connector: aiohttp.BaseConnector) -> Sequence[ResponseHandler]:
    idle: dict[Any, Iterable[tuple[ResponseHandler, float]]] | None = getattr(connector, "_conns", None)
    acquired: set[ResponseHandler] | None = getattr(connector, "_acquired", None)
    if idle is None or acquired is None:
        name = "_conns" if idle is None else "_acquired"
        _warn_once(f"BaseConnector.{name}", "errors in responses on connections that were open before can be missed")
        return ()
    return [*acquired, *(connection for each in idle.values() for connection, _ in each)]
