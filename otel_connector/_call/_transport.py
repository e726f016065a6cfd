"""One attempt: send the request, read the body within bounds, decode it, release the connection.

Every failure is raised as an error of this package, chained to the error of aiohttp. This file does not know retries,
telemetry or the log.

Used by ``_call._call``, ``_call._resume``, ``_call._settings`` and ``_fetch._fetch``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.hdrs import METH_GET
from multidict import CIMultiDict
from yarl import URL

from otel_connector._call._aiohttp_errors import error_for, without_quotations
from otel_connector._call._aiohttp_private import (
    CONTENT_CAN_BE_REPLACED,
    build_url,
    request_function,
    session_middlewares,
)
from otel_connector._call._body import body_received, decoded, has_no_content, read_body
from otel_connector._call._urls import check_url, parsed_url, with_params
from otel_connector._clock import time_limit
from otel_connector._errors import ConnectorError, InvalidURL

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from otel_connector._call._exchange import Exchange, Request

_DEFAULT_MAX_REDIRECTS = 10  # aiohttp's default

# aiohttp refuses the redirect of this number, and 0 would mean no limit
_FIRST_REFUSED = _DEFAULT_MAX_REDIRECTS + 1

_AIOHTTP_DECOMPRESSES = not CONTENT_CAN_BE_REPLACED

_CHANGED_OPTIONS = frozenset({"auto_decompress", "max_redirects", "middlewares"})  # passed to aiohttp in another form


async def attempt(request: Request, exchange: Exchange, seconds: float) -> Any:
    """Send once and return the decoded body; the connection is released when this returns or raises.

    Args:
        request: What to send.
        exchange: Filled with what is known about the attempt.
        seconds: Limit of this attempt, including the body; infinite for none.

    Raises:
        ConnectorError: The attempt failed; the class states how.
        TypeError: aiohttp does not accept one of the options, or its value.
        ValueError: As `TypeError`.
    """
    try:
        # Not aiohttp's own limit, which cannot be suspended while a redirect waits
        async with time_limit(None if seconds == math.inf else seconds) as exchange.limit:
            token = exchange.scope.enter()
            try:
                response = await _send(request, exchange)
            except BaseException:  # raised again; a response must not stay open
                if exchange.bounded is not None:  # other code may have raised what a content raised
                    exchange.size = exchange.bounded.content.total_bytes
                    exchange.bounded.close()
                raise
            finally:
                exchange.scope.leave(token)
            try:
                body = body_received(response, request, exchange)
                if body is None:
                    if response.status != exchange.status:
                        exchange.note_response(response)
                    body = await read_body(response, request, exchange)
                    if has_no_content(response):
                        return None
            finally:
                if not response.closed:  # aiohttp has released the connection of a body that was read
                    response.close()
    except ConnectorError:
        raise
    except UnicodeError as error:  # without a cause, which would contain the password of the URL
        raise error_for(error, request, exchange, seconds) from None
    except Exception as error:
        raise error_for(error, request, exchange, seconds) from error
    return decoded(request, body)


def resolve_url(session: aiohttp.ClientSession, url: Any, params: Any) -> URL:
    """Return the absolute URL to request: the session's base URL and `params` applied.

    Raises:
        InvalidURL: It is not a URL, has no host, or is not http(s).
        TypeError: `url` or `params` has a type that aiohttp does not accept.
        ValueError: `params` has a value that a URL cannot hold.
    """
    if not isinstance(url, (str, URL)):
        raise TypeError(f"url must be a str or a yarl.URL, not {type(url).__name__}")
    try:
        resolved = build_url(session, parsed_url(url) if isinstance(url, str) else url)
    except UnicodeError:
        raise InvalidURL("url has a host that cannot be encoded") from None
    except ValueError as error:
        raise InvalidURL(f"url is not a URL: {without_quotations(str(error))}") from error
    try:
        check_url(resolved)
        resolved.host  # noqa: B018 - decoded here for the first time
    except UnicodeError:
        raise InvalidURL("url has a host that cannot be decoded") from None
    except ValueError as error:
        raise InvalidURL(str(error)) from None
    return with_params(resolved, params) if params else resolved


def forget_address(session: aiohttp.ClientSession, exchange: Exchange, error: ConnectorError) -> None:
    """Have the next attempt look up the host that could not be reached; aiohttp keeps its address for 10 s."""
    forget: Callable[[str, int], None] | None = getattr(session.connector, "clear_dns_cache", None)
    if forget is None or exchange.answered:
        return
    cause, url = error.__cause__, exchange.final_url or exchange.requested
    host, port = url.raw_host, url.port
    if isinstance(cause, aiohttp.ClientConnectorError):  # it may be the host of a proxy
        host, port = cause.host, cause.port
    forget(host or "", port or 0)


def _send(request: Request, exchange: Exchange) -> Awaitable[aiohttp.ClientResponse]:
    options, context, headers = request.options, exchange.context, request.headers
    first_refused, own = _FIRST_REFUSED, None
    if options:
        own, first_refused = options.get("middlewares"), options.get("max_redirects", _DEFAULT_MAX_REDIRECTS) + 1
        exchange.follows = bool(options.get("allow_redirects", True))
        options = {name: value for name, value in options.items() if name not in _CHANGED_OPTIONS}
    others = session_middlewares(request.session) if own is None else own
    if others is None:
        middlewares: Sequence[aiohttp.ClientMiddlewareType] | None = None
        decompress = request.decompress
    else:
        # Otherwise `exchange` replaces the content by one that decompresses, within bounds
        decompress = _AIOHTTP_DECOMPRESSES and request.decompress
        middlewares = (exchange,)
        if others:  # last, so that it sees what the others send; and first, so that they see the request as it is sent
            middlewares, exchange.is_first = (exchange.first, *others, exchange), False
        if context and not headers:
            headers = context
        elif context:
            headers = CIMultiDict(headers)
            headers.update(context)  # replaces the call's own headers of these names
    if headers is not None:  # an option that the caller did not give is not passed to a subclass of the session
        options = {**options, "headers": headers}
    return request_function(request.session)(
        METH_GET,
        request.url,
        timeout=request.step_timeout,
        auto_decompress=decompress,
        raise_for_status=False,  # the session's own check of the status must not come before that of `_body`
        middlewares=middlewares,
        max_redirects=first_refused,
        **options,
    )
