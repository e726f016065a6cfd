"""All errors of a call, as one tree.

There is a class for each failure that a caller may want to handle differently; everything else is in the message::

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
    +-- MalformedResponse                     the response is not HTTP
    +-- RedirectRefused                       too many, unparsable, not http(s)
    +-- InvalidURL (ValueError)
    +-- SessionClosed (ValueError)
    +-- RateLimiterFailed
    +-- RetryRefused
        +-- RetryBudgetExhausted              chains the failure that would have been retried

A call also raises errors that are not in the tree: `TypeError` and `ValueError` for an invalid argument, and
`asyncio.CancelledError`. This file does not know how an error is detected (``_aiohttp_errors``), nor whether it is
retried (``_retry``).

Used by ``__init__``, ``_call``, ``_connector``, ``_distinct_urls``, ``_fetch``, ``_replay``, ``_telemetry`` and
``cli``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Mapping


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_SHOWN = 16_384  # characters, more than are ever shown: an error may quote a body of many MiB


def class_name(kind: type[BaseException]) -> str:
    """Return the qualified name of a class for ``error.type``, without the module if it is a built-in class."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def message_of(error: BaseException) -> str:
    """Return the text of an error without addresses of objects in memory."""
    return without_addresses(str(error))


def without_addresses(text: str) -> str:
    """Return a text without addresses of objects in memory, so that equal failures have equal texts."""
    begin = text[:_SHOWN]
    return _ADDRESS.sub("", begin) + text[_SHOWN:] if " at 0x" in begin else text


class ConnectorError(aiohttp.ClientError):
    """A call failed; the base class of the errors of `AsyncConnector.get`.

    It is the error of the last attempt. Its ``__cause__`` is the exception of aiohttp. It can be pickled, without its
    cause.

    Attributes:
        call_id: The id of the call, as in the column ``call_id`` of the CSV.
        url: The requested URL, redacted.
        attempts: Number of attempts, including the first; 0 if the call failed before its first attempt.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.call_id = ""
        self.url = ""
        self.attempts = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Restore the state, because the constructors of subclasses have further arguments."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[ConnectorError], args: tuple[Any, ...], state: dict[str, Any]) -> ConnectorError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class HTTPStatusError(ConnectorError):
    """The response had a 4xx or 5xx status, or one from 600 to 999, which RFC 9110, section 15, treats like a 5xx.

    Attributes:
        status: The status code.
        headers: The headers of the response; names are compared without case.
        retry_after: Seconds of the ``Retry-After`` header (RFC 9110, section 10.2.3), not capped; None if there was
            none.
    """

    def __init__(
        self, message: str, *, status: int, headers: Mapping[str, str], retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.retry_after = retry_after


class ConnectFailed(ConnectorError):
    """The connection failed, or broke before the headers of the response: refused, reset, DNS, TLS handshake."""


class CertificateRejected(ConnectFailed):
    """The certificate of the server was rejected; a retry would not change that."""


class ProxyRefused(ConnectFailed):
    """The proxy refused the connection (for example with 407); a retry would not change that."""


class AttemptTimeout(ConnectorError, TimeoutError):
    """One attempt took longer than `timeout`, including its body."""


class DeadlineExceeded(ConnectorError, TimeoutError):
    """The whole call took longer than `deadline`, including its waits."""


class BodyError(ConnectorError):
    """The headers of the response were valid, its body was not."""


class BodyTruncated(BodyError):
    """The connection ended before the end of the body, or a 206 has less than the request asked for."""


class BodyTooLarge(BodyError):
    """The decompressed body exceeded `max_body_bytes` and was not read further.

    Attributes:
        limit: The limit, in bytes.
    """

    def __init__(self, message: str, *, limit: int) -> None:
        super().__init__(message)
        self.limit = limit


class DecodeFailed(BodyError, ValueError):
    """The body is complete, but `decode` raised, or it is not in its content coding."""


class MalformedResponse(ConnectorError):
    """The response is not HTTP/1, exceeds its limits, or is a 206 with another range than the requested one."""


class RedirectRefused(ConnectorError):
    """A redirect was not followed: too many, or its target is not a URL, not http(s), or cannot be requested."""


class InvalidURL(ConnectorError, ValueError):
    """The URL cannot be requested: it is not a URL, has no valid host, is not http(s), or has credentials twice."""


class SessionClosed(ConnectorError, ValueError):
    """The session that was passed to `get` is closed."""


class RateLimiterFailed(ConnectorError):
    """The `rate_limiter` raised."""


class RetryRefused(ConnectorError):
    """The failure could be retried, but the retry was refused."""


class RetryBudgetExhausted(RetryRefused):
    """The `RetryBudget` of the host is exhausted; ``__cause__`` is the failure that would have been retried."""


def error_type_of(error: BaseException) -> str:
    """Return the value of ``error.type``: the status as text, or the class's qualified name."""
    return str(error.status) if isinstance(error, HTTPStatusError) else class_name(type(error))
