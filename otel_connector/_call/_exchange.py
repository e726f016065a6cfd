"""What one attempt sends, and what is known about its requests and responses so far.

`Request` is shared by all attempts of a call. Each attempt has its own `Exchange`, which is filled in step by step, so
that it is complete to the point where the attempt ended. This file does not know how errors are mapped, nor retries,
telemetry or the log.

Used by ``_call._aiohttp_errors``, ``_call._body``, ``_call._call``, ``_call._credentials`` and ``_call._transport``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import ClientResponse
from aiohttp.hdrs import CONTENT_ENCODING, TRANSFER_ENCODING

from otel_connector._call._aiohttp_private import (
    CONTENT_CAN_BE_REPLACED,
    is_undecoded,
    only_aiohttp_reads,
    warn_of_content,
)
from otel_connector._call._bounded_content import BoundedContent
from otel_connector._call._content_coding import coding_of_aiohttp
from otel_connector._call._urls import redirect_target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from multidict import MultiMapping
    from yarl import URL

    from otel_connector._telemetry._propagation import Scope

# The caller's trace and its credentials for a proxy: not for another origin (W3C Trace Context; RFC 9110, section 15.4)
_SAME_ORIGIN_ONLY = ("Proxy-Authorization", "traceparent", "tracestate", "baggage")

_CHUNKED = "chunked"

REDIRECTS = frozenset({301, 302, 303, 307, 308})
"""The statuses whose Location aiohttp follows."""


@dataclass(slots=True, eq=False, repr=False)
class Request:
    """What every attempt of a call sends.

    Attributes:
        session: The session to send with.
        url: Absolute, `params` applied.
        timeout: For one attempt, including the body.
        step_timeout: The same without the total, for aiohttp.
        decode: Converts the bytes of the body to the value.
        max_body_bytes: Where reading stops, in bytes after content decoding.
        redact: Removes the secrets from a URL. It has to be applied before the URL becomes part of a sentence.
        headers: The call's own headers; None if it has none.
        options: Further options of ``aiohttp.ClientSession.get``.
    """

    session: aiohttp.ClientSession
    url: URL
    timeout: aiohttp.ClientTimeout
    step_timeout: aiohttp.ClientTimeout
    decode: Callable[[bytes], Any]
    max_body_bytes: int
    redact: Callable[[str], str]
    headers: Mapping[str, str] | None
    options: Mapping[str, Any]

    @property
    def decompress(self) -> bool:
        """Whether content codings are decoded: an option of the call, or else of the session."""
        decompress: bool | None = self.options.get("auto_decompress")
        return self.session.auto_decompress if decompress is None else decompress


@dataclass(slots=True, eq=False, repr=False)
class Exchange:
    """What is known about one attempt so far.

    It is passed to aiohttp as the last client middleware. Only a middleware sees every request that is really sent:
    each step of a redirect, and the request that aiohttp sends again by itself when a connection breaks. If there are
    other middlewares, `first` is passed as the first one, so that they see the request after a redirect as it is sent.

    Attributes:
        request: What the call sends.
        context: Headers with the trace context and baggage; removed if a redirect leads to another origin.
        status: Status of the last response.
        size: Bytes of the body read so far, after content decoding.
        answered: Whether the last request that was sent was answered.
        in_body: Whether the head of the final response has arrived.
        final_url: Where redirects led, if it is another URL than the requested one.
        redirects: Number of redirects that were followed.
        sent: Number of requests that were sent, or that failed to be sent.
        repeats: Number of these that aiohttp sent by itself because the connection broke before the response.
        version: HTTP version of the last response.
        out_of_time: Whether the attempt as a whole took too long, and not one step of it.
        entered: Whether aiohttp has made a request of the options and passed it to the middlewares.
        follows: Whether redirects are followed.
        is_first: Whether there is no other middleware.
        location: The target of the last redirect, as it was sent; empty if there was none.
        target: The same, parsed; None if aiohttp refuses it.
        bounded: The last response whose content was replaced.
        received: The content of the last response if it arrived with the head, complete and without coding, in a
            response of aiohttp's own class.
        limit: The `time_limit` of the attempt.
        scope: The contexts of the attempt: other instrumentations are suppressed for its request, and for nothing else.
        before_redirect: Awaited before the request of a redirect, with its URL and the headers of the redirect.
        headers: Those of the last redirect.
        response_headers: Those of the last response.
        sent_with: The headers of the last request, and the user and the headers for its proxy; see `_credentials`.
    """

    request: Request
    context: Mapping[str, str] | None = None
    status: int | None = None
    size: int = 0
    answered: bool = False
    in_body: bool = False
    final_url: URL | None = None
    redirects: int = 0
    sent: int = 0
    repeats: int = 0
    version: aiohttp.HttpVersion | None = None
    out_of_time: bool = False
    entered: bool = False
    follows: bool = True
    is_first: bool = True
    location: str = ""
    target: URL | None = None
    bounded: aiohttp.ClientResponse | None = None
    received: aiohttp.StreamReader | None = None
    limit: object = None
    scope: Scope = field(init=False)
    before_redirect: Callable[[URL, MultiMapping[str]], Awaitable[None]] | None = None
    headers: MultiMapping[str] | None = None
    response_headers: MultiMapping[str] | None = None
    sent_with: tuple[Any, Any, Any] = (None, None, None)

    @property
    def requested(self) -> URL:
        """The URL that the call requests."""
        return self.request.url

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send one request for aiohttp and note its result."""
        if self.sent:
            self._note_repetition()
        self.sent += 1
        self.entered = True
        if self.target is not None:
            await self._follow(request, self.target)
        if special := request.response_class is not ClientResponse:
            self._bound_from_start(request)
        self.sent_with = request.headers, request.proxy_auth, request.proxy_headers
        if self.is_first:
            response = await handler(request)
        else:
            token = self.scope.enter()
            try:
                response = await handler(request)
            finally:
                self.scope.leave(token)
        self.answered, self.status, self.version = True, response.status, response.version
        self.response_headers = headers = response.headers
        if self.follows and response.status in REDIRECTS:
            self._note_redirect(request.url, response)
        content = response.content
        if special or CONTENT_ENCODING in headers or headers.get(TRANSFER_ENCODING, _CHUNKED) != _CHUNKED:
            self.bound_content(response)
        elif content.is_eof():
            self.received = content
        elif not (self.is_first and only_aiohttp_reads(self.request.session)):
            self.bound_content(response)
        return response

    async def first(self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        """Prepare a request after a redirect for the other middlewares."""
        self.entered = True
        if self.target is not None:
            self._prepare(request, self.target)
        token = self.scope.enter(other=True)
        try:
            return await handler(request)
        finally:
            self.scope.leave(token)

    async def _follow(self, request: aiohttp.ClientRequest, target: URL) -> None:
        """Prepare a request after a redirect, and wait until it may be sent."""
        if self.is_first:
            self._prepare(request, target)
        self._note_target(request.url)
        if self.headers is not None and self.before_redirect is not None:
            headers, self.headers = self.headers, None  # only once, even if aiohttp sends the request again
            token = self.scope.enter(other=True)
            try:
                await self.before_redirect(request.url, headers)
            finally:
                self.scope.leave(token)

    def _prepare(self, request: aiohttp.ClientRequest, target: URL) -> None:
        """Set the exact URL of a request after a redirect, and remove what is for the first origin only."""
        origin = request.url.origin()
        if origin == target.origin():  # aiohttp has parsed the same target, but encodes its path in another form
            request.url = target
        if origin == self.requested.origin():
            return
        for name in (*_SAME_ORIGIN_ONLY, *(self.context or ())):
            request.headers.popall(name, None)
        # aiohttp removes the call's own credentials, but adds those of the session again at every step. Others are for
        # the new origin: from .netrc or the target
        auth = request.session.auth
        if auth is not None and request.headers.get("Authorization") == auth.encode():
            del request.headers["Authorization"]

    def _note_repetition(self) -> None:
        """Note that aiohttp sends another request: after a redirect, or because the connection broke."""
        if not self.answered:
            self.repeats += 1
        elif self.status in REDIRECTS:
            self.redirects += 1
        self.answered = False

    def _note_redirect(self, current: URL, response: aiohttp.ClientResponse) -> None:
        """Parse the target of a redirect before aiohttp does.

        Raises:
            ValueError: It is not a URL, or cannot be requested.
        """
        self.headers = headers = response.headers
        self.location, self.target = headers.get("Location") or headers.get("URI") or "", None
        if self.location:  # without it, aiohttp takes the response for the final one
            try:
                self.target = redirect_target(current, self.location)
            except ValueError:
                response.close()
                raise

    def bound_content(self, response: aiohttp.ClientResponse) -> None:
        """Let all code that reads this response read it decoded, and up to the limit of the call."""
        content = response.content
        if not CONTENT_CAN_BE_REPLACED:
            warn_of_content()
        elif not isinstance(content, BoundedContent) and not content.at_eof():
            values = response.headers.getall(CONTENT_ENCODING, ())
            codings = coding_of_aiohttp(values) if self.request.decompress else ()
            self.bounded = response
            response.content = BoundedContent(content, codings, self.request.max_body_bytes)

    def _bound_from_start(self, request: aiohttp.ClientRequest) -> None:
        """Let a response class of the application, whose `start` may read the body, read it in the same form."""
        original = request.response_class
        if CONTENT_CAN_BE_REPLACED and original.start is not ClientResponse.start:
            # aiohttp calls it and does nothing else with it, so it need not be a class
            request.response_class = partial(_bounded_response, original, self)  # type: ignore[assignment]

    def note_response(self, response: aiohttp.ClientResponse) -> None:
        """Note the final response if it did not pass this object: it is from a cache, or there are no middlewares."""
        if not self.sent and is_undecoded(response):
            self.bound_content(response)
        self.redirects = len(response.history)
        self.sent = self.sent or self.redirects + 1
        self.answered, self.status, self.response_headers = True, response.status, response.headers
        version: object = response.version  # that of a cache may have another type
        self.version = version if isinstance(version, aiohttp.HttpVersion) else None
        if self.redirects:
            self._note_target(response.url)

    def _note_target(self, url: URL) -> None:
        # aiohttp removes fragment and userinfo before it sends; that alone is not a redirect
        self.final_url = url if url != self.requested.with_fragment(None).with_user(None) else None


class _BoundedFromStart(aiohttp.ClientResponse):
    """Replaces the content at the end of aiohttp's own `start`, before the rest of the `start` of a subclass runs."""

    exchange: Exchange

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        """Start the response."""
        await super().start(connection)
        self.exchange.bound_content(self)
        del self.exchange  # which refers to the response
        return self


def _bounded_response(original: type[aiohttp.ClientResponse], exchange: Exchange, *args: Any, **kwargs: Any) -> Any:
    """Create a response of a class that overrides `start`, with `_BoundedFromStart` as its last base but one."""
    bases: tuple[Any, ...] = (original, _BoundedFromStart)
    response: Any = type(original.__name__, bases, {"__module__": original.__module__})(*args, **kwargs)
    response.exchange = exchange
    return response
