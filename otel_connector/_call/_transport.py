"""One attempt: send, read the body within bounds, decode, release.

The only file that knows aiohttp's error tree: whatever goes wrong leaves as one of our errors, chained to aiohttp's
own. Knows neither retries nor telemetry nor the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.cookies import CookieError
from io import BytesIO
from types import CoroutineType
from typing import TYPE_CHECKING, Any, cast

import aiohttp
from aiohttp.hdrs import CONTENT_ENCODING, METH_GET
from multidict import CIMultiDict
from yarl import URL

from otel_connector._call._content_coding import ContentCodings, content_codings
from otel_connector._clock import time_limit
from otel_connector._errors import (
    AttemptTimeout,
    BodyTooLarge,
    BodyTruncated,
    CertificateRejected,
    ConnectFailed,
    ConnectorError,
    DecodeFailed,
    HTTPStatusError,
    InvalidURL,
    MalformedResponse,
    ProxyRefused,
    RedirectRefused,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence

_OK = 200
_FIRST_FINAL_STATUS = 200  # RFC 9110, section 15: 1xx only announce an answer, and there is nothing below
_FIRST_ERROR_STATUS = 400  # RFC 9110, section 15: 4xx and 5xx are errors

# RFC 9110: these answers have no content, so there is nothing to decode
_RESET_CONTENT = 205
_NO_CONTENT = frozenset({204, _RESET_CONTENT, 304})

# RFC 9110, section 15.5: the request is at fault; but for the three that a server may answer differently a moment later
_REFUSALS = frozenset(range(400, 500)) - {408, 425, 429}

_ERROR_BODY_LIMIT = 64 * 1024
"""Bytes read of an error's body: enough to keep the connection for the next attempt."""

# What is there already is read without a pause, however much a decompressor makes of it; others get their turn so often
_PAUSE_EVERY = 2**20  # bytes

_ERROR_BODY_SECONDS = 1.0  # longer than most answers take to arrive as a whole, and no reason to hold a failed call


# Credentials, and whom the caller traces with: not for another origin (RFC 9110, section 15.4; W3C Trace Context)
_NOT_FOR_STRANGERS = ("Authorization", "Proxy-Authorization", "traceparent", "tracestate", "baggage")

_DEFAULT_MAX_REDIRECTS = 10  # as aiohttp has it

_OURS = frozenset({"auto_decompress", "max_redirects", "middlewares"})  # options that go to aiohttp in another form

_JSON_STARTS = (b"{", b"[")
_JSON_SPACE = " \t\n\r"  # RFC 8259, section 2
_raw_decode = json.JSONDecoder().raw_decode

# Unless somebody was there before this import, as a tool that records traffic may be
_aiohttps_get: object = getattr(aiohttp.ClientSession, "get", None)
if getattr(_aiohttps_get, "__module__", None) != aiohttp.ClientSession.__module__:
    _aiohttps_get = object()

_QUOTED = re.compile(r"'.*'|\".*\"", re.DOTALL)

_REDIRECTS = frozenset({301, 302, 303, 307, 308})  # the statuses whose Location aiohttp follows


class Exchange:
    """What one attempt has learned, filled in as it comes: it stands whatever ends the attempt.

    It is handed to aiohttp as a client middleware, because that alone sees every request that is really sent: the
    steps of a redirect, and the second try that aiohttp gives a GET by itself when a connection breaks.

    Attributes:
        asked: The URL asked for.
        context: Headers with the trace context and baggage; taken off when a redirect leads to another origin.
        status: Status of the last response.
        size: Bytes of body read so far, after content decoding.
        answered: Whether the last request that went out was answered.
        in_body: Whether the final response's headers are there.
        final_url: Where redirects led, if elsewhere than to the URL asked for.
        redirects: How many were followed.
        sent: How many requests went out, or tried to.
        repeats: Of these, how many aiohttp sent by itself because the connection broke before the answer.
        version: HTTP version of the last response.
        out_of_time: Whether the attempt as a whole took too long, and not one step of it.
    """

    __slots__ = (
        "answered",
        "asked",
        "context",
        "final_url",
        "in_body",
        "out_of_time",
        "redirects",
        "repeats",
        "sent",
        "size",
        "status",
        "version",
    )

    def __init__(self, asked: URL) -> None:
        self.asked = asked
        self.context: Mapping[str, str] | None = None
        self.status: int | None = None
        self.size = self.redirects = self.sent = self.repeats = 0
        self.answered = self.in_body = self.out_of_time = False
        self.final_url: URL | None = None
        self.version: aiohttp.HttpVersion | None = None

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send one request for aiohttp and note what comes of it."""
        if self.sent:
            if not self.answered:
                self.repeats += 1
            elif self.status in _REDIRECTS:
                self.redirects += 1
        self.sent += 1
        if self.redirects:
            self._note_redirect(request)
        self.answered = False
        response = await handler(request)
        self.answered, self.status, self.version = True, response.status, response.version
        return response

    def _note_redirect(self, request: aiohttp.ClientRequest) -> None:
        # aiohttp takes the fragment and the userinfo off before it sends; that they are gone is no redirect
        sent = self.asked.with_fragment(None).with_user(None)
        self.final_url = request.url if request.url != sent else None
        if request.url.origin() != sent.origin():
            # aiohttp takes off what the call gave; a session's own auth it puts on again at every step
            for name in (*_NOT_FOR_STRANGERS, *(self.context or ())):
                request.headers.popall(name, None)


@dataclass(slots=True, eq=False)
class Request:
    """What every attempt of a call sends.

    Not a named tuple: to ask that for a field by its name costs ten times as much.

    Attributes:
        session: The session to send with.
        url: Absolute, `params` applied.
        timeout: For one attempt, body included.
        decode: Makes the value of the body's bytes.
        max_body_bytes: Where reading stops, in bytes after content decoding.
        redact: Takes the secrets out of a URL, whole, which nobody can do once it stands in a sentence.
        headers: The call's own headers, None if it has none.
        options: Further options of ``aiohttp.ClientSession.get``.
    """

    session: aiohttp.ClientSession
    url: URL
    timeout: aiohttp.ClientTimeout
    decode: Callable[[bytes], Any]
    max_body_bytes: int
    redact: Callable[[str], str]
    headers: Mapping[str, str] | None
    options: Mapping[str, Any]


def resolve_url(session: aiohttp.ClientSession, url: Any, params: Any) -> URL:
    """Return the absolute URL that a GET asks for: the session's base URL and `params` applied.

    Raises:
        InvalidURL: It is no URL, has no host, or is not http(s).
        TypeError: `url` or `params` is of a type that aiohttp does not take.
        ValueError: `params` has a value that a URL cannot hold.
    """
    if not isinstance(url, (str, URL)):
        raise TypeError(f"url must be a str or a yarl.URL, not {type(url).__name__}")
    try:
        # There is no public way to the session's base URL; a test holds this one against the installed version
        resolved = session._build_url(url)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    except ValueError as error:
        raise InvalidURL(f"url is not a URL: {_reason(str(error))}") from error
    try:
        host = resolved.host
    except UnicodeError:
        raise InvalidURL("url has a host that cannot be decoded") from None
    if resolved.scheme not in {"http", "https"} or not host:
        raise InvalidURL("url must be an absolute http or https URL with a host")
    try:
        return resolved.extend_query(params) if params else resolved
    except (TypeError, ValueError) as error:
        message = f"params: {error}"
        raise type(error)(message) from error


def own_headers(headers: Any) -> CIMultiDict[str] | None:
    """Return a call's own headers as a mapping of its own, None if there are none.

    Raises:
        TypeError: `headers` is neither a mapping nor pairs of names and values.
        ValueError: A pair has another length.
    """
    if not headers:
        return None
    try:
        own = CIMultiDict[str](headers)
    except (TypeError, ValueError) as error:
        raise type(error)(f"headers: {error}") from error
    for name, value in cast("Iterable[tuple[str, object]]", own.items()):
        if not isinstance(value, str):
            raise TypeError(f"headers: {name} must be a str, not {type(value).__name__}")
    return own


def bounded_by(limit: aiohttp.ClientTimeout, total: float) -> aiohttp.ClientTimeout:
    """Return the limit of an attempt with another total, in seconds, to be kept to the millisecond; inf for none."""
    return aiohttp.ClientTimeout(
        total=None if total == math.inf else max(total, 0.001),  # 0 would mean no limit
        connect=limit.connect,
        sock_read=limit.sock_read,
        sock_connect=limit.sock_connect,
        ceil_threshold=math.inf,  # or aiohttp would round what is above 5 s up to whole seconds
    )


async def attempt(request: Request, exchange: Exchange, timeout: aiohttp.ClientTimeout) -> Any:
    """Send once and return the decoded body; the connection is free again when this returns or raises.

    Args:
        request: What to send.
        exchange: Filled with what is learned.
        timeout: For this attempt, body included.

    Raises:
        ConnectorError: The attempt failed; the class says how.
        TypeError: aiohttp does not take one of the options, or a value of one.
        ValueError: As `TypeError`.
    """
    try:
        response = await _send(request, exchange, timeout)
        try:
            body = _body_at_hand(response, request, exchange)
            if body is None:
                body = await _body(response, request, exchange)
        finally:
            if not response.closed:  # the connection of a body that is read went back to the pool by itself
                response.close()
    except ConnectorError:
        raise
    except UnicodeError:  # of a host or of userinfo; without the cause, which holds the password
        raise _unsendable(exchange) from None
    except Exception as error:
        if isinstance(error, (TypeError, ValueError, CookieError)) and not isinstance(error, aiohttp.ClientError):
            if exchange.answered and exchange.status in _REDIRECTS:  # it is the Location that does not go with them
                raise RedirectRefused(f"redirect not followed: {_reason(str(error))}") from error
            raise _named(error, request) from error
        raise _translate(error, request, exchange, timeout) from error
    return None if exchange.status in _NO_CONTENT else _decode(request.decode, body)


def _send(request: Request, exchange: Exchange, timeout: aiohttp.ClientTimeout) -> Awaitable[aiohttp.ClientResponse]:
    session, options, context, headers = request.session, request.options, exchange.context, request.headers
    # There is no public way to the session's middlewares, nor around the wrapper that `get` makes for ``async with``
    # and ``await`` alike, which costs 5 % of a bare call's instructions; a test holds both. Another `get`, of the
    # session, its class or a proxy, is asked
    others: Sequence[aiohttp.ClientMiddlewareType] = session._middlewares  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    own = getattr(session.get, "__func__", None) is not _aiohttps_get
    send = _through_own_get(session) if own else session._request  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    asked, most_redirects = options, _DEFAULT_MAX_REDIRECTS
    if options:
        asked = {name: options[name] for name in options if name not in _OURS}
        if options.get("middlewares") is not None:
            others = options["middlewares"]
        most_redirects = options.get("max_redirects", most_redirects)
    if context:  # in the place of headers of these names
        headers = context if headers is None else _merged(headers, context)
    return send(
        METH_GET,
        request.url,
        timeout=timeout,
        headers=headers,
        auto_decompress=False,  # what the server compressed is undone here, within bounds
        raise_for_status=False,  # statuses are judged here, so the session's own rule must not come first
        middlewares=(*others, exchange) if others else (exchange,),  # last, so that it sees what the others send
        # aiohttp refuses the redirect of that number, and follows any number of them for 0
        max_redirects=most_redirects + 1,
        **asked,
    )


def _through_own_get(session: aiohttp.ClientSession) -> Callable[..., Awaitable[aiohttp.ClientResponse]]:
    """Return what asks by a `get` that is not aiohttp's."""

    def send(_: str, url: URL, **options: Any) -> Awaitable[aiohttp.ClientResponse]:
        return session.get(url, **options)

    return send


def _merged(headers: Mapping[str, str], context: Mapping[str, str]) -> Mapping[str, str]:
    merged = CIMultiDict(headers)
    merged.update(context)
    return merged


def _body_at_hand(response: aiohttp.ClientResponse, request: Request, exchange: Exchange) -> bytes | None:
    """Return the body if it came with the headers as a whole and is as it was sent, as most do; else None.

    To await `_body` for it would cost 3 % of a bare call's instructions more.
    """
    content = response.content
    if response.status != _OK or not content.is_eof() or CONTENT_ENCODING in response.headers:
        return None
    exchange.in_body = True
    body = content.read_nowait()
    _count(exchange, body, request.max_body_bytes)
    return body


async def _body(response: aiohttp.ClientResponse, request: Request, exchange: Exchange) -> bytes:
    """Return the body of a response, or raise what its status stands for."""
    status, limit = response.status, request.max_body_bytes
    if status < _FIRST_FINAL_STATUS:
        raise MalformedResponse(f"status {status} is no answer")
    exchange.in_body = True
    if status == _RESET_CONTENT:
        return b""  # it has none, and says no length either: who read on would wait for the end of the connection
    if status >= _FIRST_ERROR_STATUS:
        raise await _status_error(response, exchange)
    if CONTENT_ENCODING in response.headers:
        undo = request.options.get("auto_decompress")
        if request.session.auto_decompress if undo is None else undo:
            return await _read(response, exchange, limit, content_codings(response.headers.getall(CONTENT_ENCODING)))
    return await _read(response, exchange, limit)


async def _read(response: aiohttp.ClientResponse, exchange: Exchange, limit: int, codings: Sequence[str] = ()) -> bytes:
    # Not a list of pieces, which joining would hold twice: what BytesIO hands out is its own buffer
    with BytesIO() as body:
        pause_at = _PAUSE_EVERY
        async with contextlib.aclosing(_pieces(response, codings)) as pieces:
            async for piece, window in pieces:
                _count(exchange, piece, limit, window)
                body.write(piece)
                if exchange.size >= pause_at:
                    pause_at = exchange.size + _PAUSE_EVERY
                    await asyncio.sleep(0)
        return body.getvalue()


def _count(exchange: Exchange, piece: bytes, limit: int, window: int = 0) -> None:
    exchange.size += len(piece)
    if exchange.size + window > limit:
        counted = f" (with {window} bytes for the window of its coding)" if window else ""
        raise BodyTooLarge(f"body passed {limit} bytes{counted} and was not read further", limit=limit)


async def _pieces(response: aiohttp.ClientResponse, codings: Sequence[str]) -> AsyncGenerator[tuple[bytes, int]]:
    """Yield the body's bytes, decoded, each with the memory that the decoder takes beside them."""
    if not codings:
        while received := await response.content.readany():
            yield received, 0
        return
    decoder, loop, worker = ContentCodings(codings), asyncio.get_running_loop(), None
    try:
        while received := await response.content.readany():
            pieces = decoder.undo(received)
            while True:
                # A large window is filled in one go, which takes longer than the loop's other tasks should wait. In one
                # thread: the loop's own pool takes several, each with an arena of memory that it keeps
                if decoder.window:
                    worker = worker or ThreadPoolExecutor(1, "otel_connector.decoder")
                    piece = await loop.run_in_executor(worker, next, pieces, None)
                else:
                    piece = next(pieces, None)
                if piece is None:
                    break
                yield piece, decoder.window
        decoder.finish()
    finally:
        if worker is not None:
            worker.shutdown(wait=False)


async def _status_error(response: aiohttp.ClientResponse, exchange: Exchange) -> HTTPStatusError:
    """Read a little of the body, so that the connection can be used again, and make the error."""
    # The status is the error; that its body is long, late or broken adds nothing
    with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError, OSError):
        async with time_limit(_ERROR_BODY_SECONDS):
            await _read(response, exchange, _ERROR_BODY_LIMIT)
    return HTTPStatusError(
        f"{response.status} {response.reason or ''}".rstrip(),
        status=response.status,
        headers=CIMultiDict(response.headers),  # a copy, because aiohttp's proxy does not pickle
    )


def _unsendable(exchange: Exchange) -> ConnectorError:
    """Say what cannot be encoded: found only when it is used, a URL's host in the IDNA codec, userinfo in Latin-1."""
    if exchange.answered and exchange.status in _REDIRECTS:
        return RedirectRefused("redirect not followed: its host or userinfo cannot be encoded")
    if exchange.redirects:
        return RedirectRefused("redirect not followed: its host cannot be encoded")
    return InvalidURL("url has a host or userinfo that cannot be encoded")


def _named(error: Exception, request: Request) -> TypeError | ValueError:
    """Return the error of an option that aiohttp does not take, with the names of those it was given."""
    kind = TypeError if isinstance(error, TypeError) else ValueError
    names = [*(["headers"] if request.headers else []), *request.options]
    return kind(f"{', '.join(names) or 'session'}: {error}")


def loads(body: bytes) -> Any:
    """Return what `json.loads` does, for most bodies without its search for encoding and white space.

    Which saves two fifths of its instructions, 3 % of a bare call's.
    """
    # An object or array in UTF-8, which JSON between systems is (RFC 8259, section 8.1)
    if not body.startswith(_JSON_STARTS) or body[1:2] == b"\0":
        return json.loads(body)
    text = body.decode("utf-8", "surrogatepass")
    value, end = _raw_decode(text)
    if end < len(text) and text[end:].strip(_JSON_SPACE):
        return json.loads(text)  # which says what is wrong with it
    return value


def _decode(decode: Callable[[bytes], Any], body: bytes) -> Any:
    try:
        value = decode(body)
    except Exception as error:
        what = f"{type(error).__name__}: {error}".removesuffix(": ") if body else "the body is empty"
        raise DecodeFailed(what) from error
    if isinstance(value, CoroutineType):
        value.close()
        raise TypeError("decode must be a plain function, it returned a coroutine")
    return value


# aiohttp's classes overlap, so the first match counts. What stands in no row is told apart by how far the attempt came.
_BY_CLASS: tuple[tuple[tuple[type[Exception], ...], type[ConnectorError]], ...] = (
    ((aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch), CertificateRejected),
    ((aiohttp.InvalidUrlRedirectClientError, aiohttp.NonHttpUrlRedirectClientError), RedirectRefused),
    ((aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError), InvalidURL),
)


def _reason(text: str) -> str:
    """Return what a library says against a URL without what it quotes of it, which may be a password."""
    return _QUOTED.sub("'...'", text)


def _translate(
    error: Exception, request: Request, exchange: Exchange, timeout: aiohttp.ClientTimeout
) -> ConnectorError:
    """Make our error of aiohttp's."""
    text = str(error) or type(error).__name__
    if isinstance(error, asyncio.TimeoutError):
        exchange.out_of_time = not isinstance(error, aiohttp.ServerTimeoutError)
        return AttemptTimeout(_timeout_text(error, exchange, timeout))
    if isinstance(error, aiohttp.TooManyRedirects):
        return RedirectRefused(f"more than {exchange.redirects} redirects")
    if isinstance(error, aiohttp.InvalidURL):
        url, why = str(error.url), error.description
        named = "proxy is not a URL: " if url == str(request.options.get("proxy")) else ""
        text = f"{named}{request.redact(url)}{f' - {_reason(why)}' if why else ''}"
    elif isinstance(error, aiohttp.NonHttpUrlClientError):
        text = request.redact(text)  # it says nothing but the URL
    for classes, ours in _BY_CLASS:
        if isinstance(error, classes):
            return ours(text)
    if not exchange.in_body:
        return _without_response(error, text)
    return BodyTruncated(f"the body ended after {exchange.size} bytes: {text}")


def _without_response(error: Exception, text: str) -> ConnectorError:
    if isinstance(error, aiohttp.ClientHttpProxyError) and error.status in _REFUSALS:
        return ProxyRefused(f"proxy answered {error.status} {error.message}".rstrip())
    if isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(cast("object", error.message), str):
        # aiohttp would show what there is of it, cookies too
        return ConnectFailed("the connection ended inside the head of the answer")
    if isinstance(error, (aiohttp.ClientConnectionError, aiohttp.ClientHttpProxyError, OSError)):
        return ConnectFailed(text)
    if isinstance(error, aiohttp.ClientResponseError):
        # Not a status of the server's: aiohttp's parser gives what it cannot read a status of its own
        return MalformedResponse(error.message or text)
    return ConnectorError(f"{type(error).__name__}: {text}")


def _timeout_text(error: Exception, exchange: Exchange, timeout: aiohttp.ClientTimeout) -> str:
    read = "" if not exchange.in_body else f" ({exchange.size} bytes read)"
    if isinstance(error, aiohttp.ServerTimeoutError):  # one of ClientTimeout's finer limits; aiohttp says which
        return f"{error}{read}"
    what = "body not complete" if read else "no response"
    return f"{what} within {round(timeout.total or 0.0, 3):g} s{read}"
