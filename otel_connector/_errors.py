"""Every exception a call can end with, as one tree.

What a caller can act on differently is a class of its own; everything else is text::

    ConnectorError (aiohttp.ClientError)      .call_id .url .attempts
    +-- HTTPStatusError                       .status .headers .retry_after
    +-- ConnectFailed                         refused, reset, DNS, TLS
    |   +-- CertificateRejected               never retried
    |   +-- ProxyRefused                      never retried
    +-- AttemptTimeout (TimeoutError)
    +-- DeadlineExceeded (TimeoutError)
    +-- BodyError
    |   +-- BodyTruncated
    |   +-- BodyTooLarge                      .limit
    |   +-- DecodeFailed (ValueError)
    +-- MalformedResponse                     what came back is not HTTP
    +-- RedirectRefused                       too many, unparsable, not http(s)
    +-- InvalidURL (ValueError)
    +-- SessionClosed (ValueError)
    +-- RateLimiterFailed
    +-- RetryRefused
        +-- RetryBudgetExhausted              chains the failure that wanted the retry

Outside the tree, from one call: `TypeError` and `ValueError` for a bad argument, and `asyncio.CancelledError`, which
passes untouched. This file knows neither how an error is found (``_transport``) nor whether it is worth a retry
(``_retry``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Mapping


def class_name(kind: type[BaseException]) -> str:
    """Return a class's qualified name, as ``error.type`` has it: of what is built in without its module."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


class ConnectorError(aiohttp.ClientError):
    """A call failed; the base of everything `AsyncConnector.get` raises of its own.

    It is the last attempt's own failure, chained (``__cause__``) to what aiohttp raised. It pickles, without its cause.

    Attributes:
        call_id: The call's id, as in the CSV's ``call_id`` column.
        url: The URL asked for, redacted.
        attempts: How many attempts were made, the first included; 0 if the call failed before one was.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.call_id = ""
        self.url = ""
        self.attempts = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the state, because subclasses take further arguments."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[ConnectorError], args: tuple[Any, ...], state: dict[str, Any]) -> ConnectorError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class HTTPStatusError(ConnectorError):
    """The server answered with a 4xx or 5xx status.

    Attributes:
        status: The status code.
        headers: The response's headers, names in any case.
        retry_after: Seconds the server asked to wait (RFC 9110, section 10.2.3), as sent and not capped; None if it
            did not ask.
    """

    def __init__(
        self, message: str, *, status: int, headers: Mapping[str, str], retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.retry_after = retry_after


class ConnectFailed(ConnectorError):
    """No connection, or it broke before the response's headers: refused, reset, DNS, TLS handshake."""


class CertificateRejected(ConnectFailed):
    """The server's certificate was not accepted; asking again would not change that."""


class ProxyRefused(ConnectFailed):
    """The proxy does not make the connection (407, say); asking again would not change that."""


class AttemptTimeout(ConnectorError, TimeoutError):
    """One attempt took longer than `timeout`, its body included."""


class DeadlineExceeded(ConnectorError, TimeoutError):
    """The call as a whole took longer than `deadline`, its waits included."""


class BodyError(ConnectorError):
    """The headers were good, the body was not."""


class BodyTruncated(BodyError):
    """The connection ended before the body did."""


class BodyTooLarge(BodyError):
    """The body, decompressed, passed `max_body_bytes` and was not read further.

    Attributes:
        limit: The limit, in bytes.
    """

    def __init__(self, message: str, *, limit: int) -> None:
        super().__init__(message)
        self.limit = limit


class DecodeFailed(BodyError, ValueError):
    """The whole body came, but `decode` (or the content coding) could not make sense of it."""


class MalformedResponse(ConnectorError):
    """What came back is not HTTP, or breaks its limits."""


class RedirectRefused(ConnectorError):
    """A redirect was not followed: too many, not a URL, or not to http(s)."""


class InvalidURL(ConnectorError, ValueError):
    """The URL asked for cannot be requested: not a URL, without a host, or not http(s)."""


class SessionClosed(ConnectorError, ValueError):
    """The session handed to `get` was already closed."""


class RateLimiterFailed(ConnectorError):
    """The caller's `rate_limiter` raised."""


class RetryRefused(ConnectorError):
    """Another attempt would have been worth it, and was not made."""


class RetryBudgetExhausted(RetryRefused):
    """The host has used up its `RetryBudget`; ``__cause__`` is the failure that wanted the retry."""
