"""The mapping from the errors of aiohttp to those of this package.

It is one ordered table. aiohttp's classes overlap, so the first row that matches counts; what the class does not tell
is told by the stage at which the attempt failed. This file does not know retries, telemetry or the log.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from enum import Enum
from http.cookies import CookieError
from typing import Any, NamedTuple

import aiohttp

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

# RFC 9110, section 15.5: the request is at fault, except for the three that may be answered differently a moment later
_REFUSALS = frozenset(range(400, 500)) - {408, 425, 429}

_Ours = ConnectorError | TypeError | ValueError

_QUOTED = re.compile(r"'.*'|\".*\"", re.DOTALL)


class Stage(Enum):
    """How far an attempt had come when it failed."""

    REQUEST = "request"
    """The first request was prepared or sent, and not answered."""
    REDIRECT = "redirect"
    """A redirect was answered, and its target was not."""
    BODY = "body"
    """The head of the final response had arrived."""


class _Failure(NamedTuple):
    """One failed attempt, from which its error is made."""

    error: Any  # an instance of a class in the row of the table
    request: Request
    exchange: Exchange
    timeout: aiohttp.ClientTimeout

    @property
    def text(self) -> str:
        return str(self.error) or type(self.error).__name__


def error_for(error: Exception, request: Request, exchange: Exchange, timeout: aiohttp.ClientTimeout) -> _Ours:
    """Return the error to raise for an attempt that failed with `error`.

    Args:
        error: What aiohttp raised.
        request: What was sent.
        exchange: What was learned; `out_of_time` is set.
        timeout: The limit of the attempt.

    Returns:
        A `TypeError` or `ValueError` if aiohttp does not accept an option of the call, otherwise a `ConnectorError`.
    """
    exchange.out_of_time = isinstance(error, asyncio.TimeoutError) and not isinstance(error, aiohttp.ServerTimeoutError)
    failure, stage = _Failure(error, request, exchange, timeout), stage_of(exchange)
    for classes, at, make in _TABLE:
        if isinstance(error, classes) and at in {None, stage}:
            return make(failure)
    return ConnectorError(f"{type(error).__name__}: {failure.text}")


def stage_of(exchange: Exchange) -> Stage:
    """Return the stage at which an attempt is, or has failed."""
    if exchange.in_body:
        return Stage.BODY
    at_redirect = exchange.redirects or (exchange.answered and exchange.status in REDIRECTS)
    return Stage.REDIRECT if at_redirect else Stage.REQUEST


def without_quotations(text: str) -> str:
    """Return a library's message about a URL without what it quotes from the URL, which may be a password."""
    return _QUOTED.sub("'...'", text)


def _timeout_text(failure: _Failure) -> str:
    read = f" ({failure.exchange.size} bytes read)" if failure.exchange.in_body else ""
    if not failure.exchange.out_of_time:  # one of ClientTimeout's finer limits; aiohttp's message names it
        return f"{failure.error}{read}"
    problem = "body not complete" if read else "no response"
    return f"{problem} within {round(failure.timeout.total or 0.0, 3):g} s{read}"


def _url_text(failure: _Failure) -> str:
    url, reason = str(failure.error.url), failure.error.description
    prefix = "proxy is not a URL: " if url == str(failure.request.options.get("proxy")) else ""
    return f"{prefix}{failure.request.redact(url)}{f' - {without_quotations(reason)}' if reason else ''}"


def _refused_option(failure: _Failure) -> TypeError | ValueError:
    """Name all options that the call has: aiohttp's message does not tell which one it means."""
    names = [*(["headers"] if failure.request.headers else []), *failure.request.options]
    kind = TypeError if isinstance(failure.error, TypeError) else ValueError
    return kind(f"{', '.join(names) or 'session'}: {failure.error}")


def _proxy_error(failure: _Failure) -> ConnectFailed:
    status = failure.error.status
    if status in _REFUSALS:
        return ProxyRefused(f"proxy answered {status} {failure.error.message}".rstrip())
    return ConnectFailed(failure.text)


def _disconnected(failure: _Failure) -> ConnectFailed:
    if isinstance(failure.error.message, str):
        return ConnectFailed(failure.text)
    # A part of the head has arrived, and aiohttp's message shows it, including cookies
    return ConnectFailed("the connection ended inside the head of the response")


_TABLE: tuple[tuple[tuple[type[Exception], ...], Stage | None, Callable[[_Failure], _Ours]], ...] = (
    ((asyncio.TimeoutError,), None, lambda failure: AttemptTimeout(_timeout_text(failure))),
    (
        (aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch),
        None,
        lambda failure: CertificateRejected(failure.text),
    ),
    # Redirects
    (
        (aiohttp.TooManyRedirects,),
        None,
        lambda failure: RedirectRefused(f"more than {len(failure.error.history) - 1} redirects"),
    ),
    ((aiohttp.InvalidUrlRedirectClientError,), None, lambda failure: RedirectRefused(_url_text(failure))),
    (
        (aiohttp.NonHttpUrlRedirectClientError,),
        None,
        lambda failure: RedirectRefused(failure.request.redact(failure.text)),  # the text is the URL
    ),
    # URLs and options. The codecs of a URL's host (IDNA) and userinfo (Latin-1) are used only when it is requested
    ((aiohttp.InvalidURL,), None, lambda failure: InvalidURL(_url_text(failure))),
    ((aiohttp.NonHttpUrlClientError,), None, lambda failure: InvalidURL(failure.request.redact(failure.text))),
    (
        (UnicodeError,),
        Stage.REDIRECT,
        lambda _: RedirectRefused("redirect not followed: its host or userinfo cannot be encoded"),
    ),
    ((UnicodeError,), None, lambda _: InvalidURL("url has a host or userinfo that cannot be encoded")),
    (
        (TypeError, ValueError, CookieError),
        Stage.REDIRECT,  # the options were accepted for the first request
        lambda failure: RedirectRefused(f"redirect not followed: {without_quotations(str(failure.error))}"),
    ),
    ((TypeError, ValueError, CookieError), None, _refused_option),
    # Connections
    (
        (Exception,),
        Stage.BODY,
        lambda failure: BodyTruncated(f"the body ended after {failure.exchange.size} bytes: {failure.text}"),
    ),
    ((aiohttp.ClientHttpProxyError,), None, _proxy_error),
    ((aiohttp.ServerDisconnectedError,), None, _disconnected),
    ((aiohttp.ClientConnectionError, OSError), None, lambda failure: ConnectFailed(failure.text)),
    # aiohttp's parser gives a response that it cannot read a status of its own
    (
        (aiohttp.ClientResponseError,),
        None,
        lambda failure: MalformedResponse(failure.error.message or failure.text),
    ),
)
