"""The mapping from the errors of aiohttp to those of this package.

It is one ordered table. aiohttp's classes overlap, so the first row that matches counts; where the class is not enough,
the stage at which the attempt failed decides. This file does not know retries, telemetry or the log.

Used by ``_call._transport``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from enum import Enum
from http.cookies import CookieError
from typing import Any, NamedTuple

import aiohttp
from yarl import URL

from otel_connector._call._aiohttp_private import LINE_TOO_LONG, MALFORMED_BODY
from otel_connector._call._exchange import REDIRECTS, Exchange, Request
from otel_connector._errors import (
    AttemptTimeout,
    BodyTruncated,
    CertificateRejected,
    ConnectFailed,
    ConnectorError,
    InvalidURL,
    MalformedResponse,
    ProxyRefused,
    RedirectRefused,
)
from otel_connector._units import exact_duration

# RFC 9110, section 15.5: the request is at fault, except for the three that may be answered differently a moment later
_REFUSALS = frozenset(range(400, 500)) - {408, 425, 429}

_TOO_MANY_HEADERS = "Too many headers received"
_HEAD_LIMITS = "options of aiohttp.ClientSession and get set the limits: max_line_size, max_field_size, max_headers"
_REFUSED = "redirect not followed: "

_FORBIDDEN_IN_HEADERS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # RFC 9110, section 5.5

_UNKNOWN_OPTION = re.compile(r"unexpected keyword argument '(\w+)'")
_QUOTED = re.compile(r"'.*'|\".*\"", re.DOTALL)

_HAS_SCHEME = re.compile(r"https?://[^/]")
_PROXY = "it must start with http:// or https:// and a host"

_AUTHORIZATION = "Authorization"
_CERTIFICATE = (aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch)
_CONNECTION = (aiohttp.ClientConnectionError, aiohttp.ClientHttpProxyError, OSError)
_ARGUMENT = (TypeError, ValueError, CookieError)
_KNOWN = (aiohttp.ClientError, OSError, asyncio.TimeoutError, *_ARGUMENT)


class Stage(Enum):
    """The stage at which an attempt failed."""

    URL = "the first request was prepared, and its URL is the reason"
    REQUEST = "the first request was prepared"
    SENDING = "aiohttp had accepted the options of the first request, which was not answered"
    ANSWERED = "a response had arrived, and its head was being processed"
    REDIRECT = "a redirect was answered, and its target was not"
    PROXY = "a proxy refused the connection"
    CONNECTOR = "a connector of another package raised an error of its own"
    BODY = "the head of the final response had arrived"


def stage_of(error: Exception, exchange: Exchange) -> Stage:
    """Return the stage at which an attempt has failed with `error`."""
    if exchange.in_body or isinstance(error, (aiohttp.ClientPayloadError, *MALFORMED_BODY)):  # or other code reads it
        return Stage.BODY
    if isinstance(error, aiohttp.ClientHttpProxyError) and error.status in _REFUSALS:
        return Stage.PROXY
    if exchange.redirects or (exchange.answered and exchange.status in REDIRECTS):
        return Stage.REDIRECT
    if exchange.answered:
        return Stage.ANSWERED
    return Stage.SENDING if exchange.entered else Stage.REQUEST


def error_for(error: Exception, request: Request, exchange: Exchange, seconds: float) -> Exception:
    """Return the error to raise for an attempt that failed with `error`.

    Args:
        error: What aiohttp raised.
        request: What was sent.
        exchange: What is known about the attempt; `out_of_time` is set.
        seconds: The limit of the attempt.

    Returns:
        A `TypeError` or `ValueError` if aiohttp does not accept an option of the call, otherwise a `ConnectorError`.
    """
    exchange.out_of_time = isinstance(error, asyncio.TimeoutError) and not isinstance(error, aiohttp.ServerTimeoutError)
    stage, failure = stage_of(error, exchange), _Failure(error, request, exchange, seconds)
    if stage is Stage.REQUEST and isinstance(error, ValueError) and _conflicts_with_authorization(request):
        stage = Stage.URL
    elif exchange.sent and not exchange.answered and not isinstance(error, _KNOWN) and _is_of_a_package(error):
        stage = Stage.CONNECTOR
    elif stage is Stage.SENDING and (isinstance(error, TypeError) or _has_forbidden_header(request)):
        stage = Stage.REQUEST
    rule = next(rule for rule in _TABLE if isinstance(error, rule.theirs) and rule.stage in {None, stage})
    return rule.ours(rule.message.format(failure).rstrip())


def _is_of_a_package(error: Exception) -> bool:
    """Return whether the class of an error is not built in: those are mistakes in the code of a connector."""
    return type(error).__module__ != "builtins"


def _conflicts_with_authorization(request: Request) -> bool:
    """Return whether the URL, or .netrc for its host, has credentials in addition to those of the call or session."""
    session, options = request.session, request.options
    has_header = _AUTHORIZATION in (request.headers or {}) or _AUTHORIZATION in session.headers
    if request.url.raw_user is not None or request.url.raw_password is not None:
        return has_header or options.get("auth") is not None
    return has_header and session.trust_env and options.get("auth") is None and session.auth is None


def _has_forbidden_header(request: Request) -> bool:
    """Return whether a header has a character that aiohttp rejects for every URL, but not before it sends."""
    headers: list[Mapping[str, object]] = [request.headers or {}, request.session.headers]
    headers.append(request.options.get("proxy_headers") or {})
    values = (str(value) for each in headers for value in each.values())
    return any(map(_FORBIDDEN_IN_HEADERS.search, values))


def without_quotations(message: str) -> str:
    """Return a library's message about a URL without what it quotes from the URL, which may be a password."""
    return _QUOTED.sub("'...'", message)


class _Failure(NamedTuple):
    """One failed attempt, and the parts of messages about it."""

    error: Any  # an instance of `_Rule.theirs`
    request: Request
    exchange: Exchange
    seconds: float

    @property
    def text(self) -> str:
        if isinstance(self.error, aiohttp.ServerDisconnectedError) and not isinstance(self.error.message, str):
            # A part of the head has arrived, and aiohttp's message shows it, including cookies
            return "the connection ended inside the head of the response"
        return str(self.error) or type(self.error).__name__

    @property
    def message(self) -> str:
        cause: BaseException | None = self.error
        while cause is not None and not isinstance(cause, LINE_TOO_LONG):
            cause = cause.__cause__
        if cause is not None:  # aiohttp's message shows the line, which may be a cookie
            return f"a line of the head of the response is longer than {cause.args[1]} bytes; {_HEAD_LIMITS}"
        message = self.error.message or self.text
        return f"{message}; {_HEAD_LIMITS}" if message == _TOO_MANY_HEADERS else message

    @property
    def quoting_nothing(self) -> str:
        return without_quotations(str(self.error))

    @property
    def requested(self) -> str:
        return self.request.redact(str(self.request.url))

    @property
    def location(self) -> str:
        return self.request.redact(self.exchange.location)

    @property
    def redirects(self) -> int:
        return len(self.error.history) - 1  # without the one that was refused

    @property
    def redacted(self) -> str:
        return self.request.redact(self.text)

    @property
    def url(self) -> str:
        """The URL that aiohttp rejects, the reason, and the URL of the call if it is another one."""
        url, reason, proxy = str(self.error.url), self.error.description, self.request.options.get("proxy")
        if proxy is not None and url in {str(proxy), str(URL(proxy)) if isinstance(self.error.url, URL) else ""}:
            # Without a scheme it may be a password, which has been given in the wrong place
            return f"proxy is not a URL: {self.request.redact(url) if _HAS_SCHEME.match(url) else _PROXY}"
        suffix = "" if url == str(self.request.url) else f": {self.location or self.requested}"
        return f"{self.request.redact(url)}{f' - {without_quotations(reason)}' if reason else ''}{suffix}"

    @property
    def options(self) -> str:
        """The names of all options of the call: aiohttp's message does not name the option."""
        return ", ".join([*(["headers"] if self.request.headers else []), *self.request.options]) or "session"

    @property
    def argument(self) -> str:
        """The options of the call and aiohttp's message; of an option that it does not know, only that."""
        unknown = _UNKNOWN_OPTION.search(str(self.error))
        return f"{unknown[1]} is not an option of get" if unknown else f"{self.options}: {self.error}"

    @property
    def time(self) -> str:
        read = f" ({self.exchange.size} bytes read)" if self.exchange.in_body else ""
        if not self.exchange.out_of_time:  # one of ClientTimeout's finer limits; aiohttp's message names it
            return f"{self.error}{read}"
        problem = "body not complete" if read else "no response"
        return f"{problem} within {exact_duration(round(self.seconds, 3))}{read}"


class _Rule(NamedTuple):
    theirs: type[Exception] | tuple[type[Exception], ...]
    stage: Stage | None
    ours: type[Exception]
    message: str  # {0} is the `_Failure`


_TABLE = [
    _Rule(asyncio.TimeoutError, None, AttemptTimeout, "{0.time}"),
    _Rule(_CERTIFICATE, None, CertificateRejected, "{0.text}"),
    _Rule(aiohttp.TooManyRedirects, None, RedirectRefused, "more than {0.redirects} redirects"),
    _Rule(aiohttp.InvalidUrlRedirectClientError, None, RedirectRefused, "{0.url}"),
    _Rule(aiohttp.NonHttpUrlRedirectClientError, None, RedirectRefused, "{0.redacted}"),  # aiohttp's message is the URL
    _Rule(aiohttp.InvalidURL, Stage.REDIRECT, RedirectRefused, "{0.url}"),
    _Rule(aiohttp.InvalidURL, None, InvalidURL, "{0.url}"),
    _Rule(aiohttp.NonHttpUrlClientError, None, InvalidURL, "{0.redacted}"),
    # Host (IDNA) and userinfo (Latin-1) of a URL are encoded only when it is requested
    _Rule(UnicodeError, Stage.REDIRECT, RedirectRefused, f"{_REFUSED}its host cannot be encoded: {{0.location}}"),
    _Rule(UnicodeError, None, InvalidURL, "url has a host or userinfo that cannot be encoded: {0.requested}"),
    # At a redirect, its Location is at fault: the options of the call were accepted for the first request
    _Rule(_ARGUMENT, Stage.REDIRECT, RedirectRefused, f"{_REFUSED}{{0.quoting_nothing}}: {{0.location}}"),
    _Rule(_ARGUMENT, Stage.URL, InvalidURL, "{0.quoting_nothing}: {0.requested}"),
    _Rule(TypeError, Stage.REQUEST, TypeError, "{0.argument}"),
    _Rule(_ARGUMENT, Stage.REQUEST, ValueError, "{0.argument}"),
    _Rule(MALFORMED_BODY, Stage.BODY, MalformedResponse, "the chunks of the body are malformed"),
    # Raised by a middleware, a trace or a resolver, or by aiohttp for this URL or response only
    _Rule(_ARGUMENT, None, ConnectorError, "{0.error.__class__.__name__}: {0.quoting_nothing}: {0.requested}"),
    _Rule(Exception, Stage.BODY, BodyTruncated, "the body ended after {0.exchange.size} bytes: {0.text}"),
    _Rule(Exception, Stage.PROXY, ProxyRefused, "proxy answered {0.error.status} {0.error.message}"),
    _Rule(_CONNECTION, None, ConnectFailed, "{0.text}"),
    _Rule(Exception, Stage.CONNECTOR, ConnectFailed, "{0.error.__class__.__name__}: {0.text}"),  # aiohttp-socks
    # aiohttp's parser gives a response that it cannot read a status of its own
    _Rule(aiohttp.ClientResponseError, None, MalformedResponse, "{0.message}"),
    _Rule(Exception, None, ConnectorError, "{0.error.__class__.__name__}: {0.text}"),
]
