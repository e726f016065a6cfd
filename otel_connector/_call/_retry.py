"""Decides whether a failed attempt is retried, and how long to wait before the next one.

Clock and random numbers are arguments; nothing here sleeps or sends. A policy has no state, because state belongs to a
call. This file knows the error classes of the package, but not how the errors occur.

Used by ``__init__``, ``_call._settings``, ``_connector``, ``cli._demo`` and ``cli._fetch_command``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from otel_connector._arguments import checked_int, checked_seconds
from otel_connector._errors import (
    AttemptTimeout,
    BodyTruncated,
    CertificateRejected,
    ConnectFailed,
    HTTPStatusError,
    ProxyRefused,
)

if TYPE_CHECKING:
    from collections.abc import Callable


RETRIED_STATUSES: frozenset[int] = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that may be different a moment later: RFC 9110 (408, 500, 502, 503, 504), RFC 8470 (425), RFC 6585 (429).
Every other status would be the same again."""

THROTTLING_STATUSES: frozenset[int] = frozenset({429, 503})
"""Statuses with which a server asks its callers to slow down."""

_HOST_LIMIT = 10_000
"""Hosts whose used tokens are kept; beyond that, the bucket of the host that failed first is full again."""

_ERROR_STATUSES = range(400, 600)  # RFC 9110, section 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The decision after a failed attempt.

    Attributes:
        reason: Why it is retried, or could have been: ``status_503``, ``connection``, ``timeout``, ``truncated``; for
            any other failure the name of its class.
        wait: Seconds until the next attempt; None if there is none.
    """

    reason: str
    wait: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Which failures are retried, and how long the waits are. An immutable value that calls share.

    Attributes:
        statuses: HTTP statuses that are retried. Default: 408, 425, 429, 500, 502, 503 and 504.
        backoff: Maximum of the first wait in seconds; it doubles with each further attempt. Default: 0.5.
        backoff_cap: Maximum of any computed wait in seconds. Default: 30.
        retry_after_cap: Maximum of a server's ``Retry-After`` in seconds. If it asks for more, the call fails without a
            further attempt, and ``HTTPStatusError.retry_after`` has the value. Default: 120.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A number is negative or not finite, or a status is not from 400 to 599.
    """

    statuses: frozenset[int] = RETRIED_STATUSES
    backoff: float = 0.5
    backoff_cap: float = 30.0
    retry_after_cap: float = 120.0

    def __post_init__(self) -> None:
        """Check the fields; the message names the field."""
        for name in ("backoff", "backoff_cap", "retry_after_cap"):
            checked_seconds(name, getattr(self, name))
        object.__setattr__(self, "statuses", checked_statuses("statuses", self.statuses))

    def decide(
        self,
        error: Exception,
        *,
        attempt: int,
        n_tries: int,
        random: Callable[[], float],
        remaining: float = math.inf,
    ) -> Decision:
        """Decide what follows a failed attempt.

        Args:
            error: How the attempt failed.
            attempt: Its number, from 1.
            n_tries: Maximum number of attempts of the call.
            random: Returns a number in [0, 1).
            remaining: Seconds until the deadline of the call; every wait is shorter.
        """
        reason = self._reason(error)
        if reason is None:
            return Decision(reason=type(error).__name__, wait=None)
        if attempt >= n_tries:
            return Decision(reason=reason, wait=None)
        retry_after = error.retry_after if isinstance(error, HTTPStatusError) else None
        # A Retry-After of 0 does not replace the backoff: all callers would return at the same time
        wait = retry_after or self._backoff_before(attempt + 1, random())
        possible = wait < remaining and (retry_after is None or retry_after <= self.retry_after_cap)
        return Decision(reason=reason, wait=wait if possible else None)

    def pause(self, error: Exception) -> float | None:
        """Return the seconds for which the server wants no calls; None if it did not ask for a pause.

        429 (RFC 6585) and 503 (RFC 9110, section 15.6.4) are about the server, so their ``Retry-After`` applies to
        every call to it, up to the cap. With another status it is about one resource.
        """
        if not isinstance(error, HTTPStatusError) or error.status not in THROTTLING_STATUSES:
            return None
        return None if error.retry_after is None else min(error.retry_after, self.retry_after_cap)

    def _reason(self, error: Exception) -> str | None:
        """Return why the failure is retried; None if it is not."""
        if isinstance(error, HTTPStatusError):
            return f"status_{error.status}" if error.status in self.statuses else None
        if isinstance(error, ConnectFailed):
            return None if isinstance(error, (CertificateRejected, ProxyRefused)) else "connection"
        if isinstance(error, AttemptTimeout):
            return "timeout"
        return "truncated" if isinstance(error, BodyTruncated) else None

    def _backoff_before(self, attempt: int, fraction: float) -> float:
        """Return the wait before `attempt`: exponential with full jitter.

        Of the jitters compared in M. Brooker, "Exponential Backoff And Jitter", full jitter needs the fewest calls.
        """
        doublings = min(attempt - 2, 1_000)  # 2.0**1024 overflows; the cap is reached long before
        return fraction * min(self.backoff_cap, self.backoff * 2.0**doublings)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudget:
    """The number of retries of a host in relation to its successes, as a bucket of tokens for each host.

    Every retry takes tokens, and every success returns some. If too few are left, a retry is refused. So the callers of
    a failing host cannot multiply its load by `n_tries`.

    The defaults are those of botocore's standard mode (1.44, ``retries/quota.py`` and ``retries/standard.py``): a full
    bucket is enough for 35 retries in a row, or 100 after throttling.

    Attributes:
        capacity: Tokens in a full bucket. Default: 500.
        retry_cost: Tokens of a retry. Default: 14.
        throttling_cost: Tokens of a retry after 429 or 503. Default: 5.
        refund: Tokens that a success at the first attempt returns. A success after retries returns the tokens of the
            last retry. Default: 1.

    Raises:
        TypeError: A field is not an int.
        ValueError: A field is below 1, or a cost is above the capacity.
    """

    capacity: int = 500
    retry_cost: int = 14
    throttling_cost: int = 5
    refund: int = 1

    def __post_init__(self) -> None:
        """Check the fields; the message names the field."""
        for name in ("capacity", "retry_cost", "throttling_cost", "refund"):
            checked_int(name, getattr(self, name))
        for name in ("retry_cost", "throttling_cost", "refund"):
            if getattr(self, name) > self.capacity:
                raise ValueError(f"capacity must be at least {name}, {getattr(self, name)}, not {self.capacity!r}")

    def cost(self, error: Exception) -> int:
        """Return the tokens of a retry after `error`."""
        throttled = isinstance(error, HTTPStatusError) and error.status in THROTTLING_STATUSES
        return self.throttling_cost if throttled else self.retry_cost


class RetryQuotas:
    """The buckets of one `RetryBudget`, one for each host that has used tokens.

    Args:
        budget: Their size.
    """

    __slots__ = ("_budget", "_spent")

    def __init__(self, budget: RetryBudget) -> None:
        self._budget = budget
        self._spent: dict[str, int] = {}  # by host, at most `_HOST_LIMIT`; full buckets are not kept

    def take(self, host: str, error: Exception) -> int | None:
        """Take the tokens for a retry after `error`; return their number, or None if too few are left."""
        cost, spent = self._budget.cost(error), self._spent.get(host, 0)
        if spent + cost > self._budget.capacity:
            return None
        self._spent[host] = spent + cost
        if len(self._spent) > _HOST_LIMIT:
            del self._spent[next(iter(self._spent))]
        return cost

    def put_back(self, host: str, paid: int | None) -> None:
        """Return tokens after a success; `paid` are those of its last retry, None if it had no retry."""
        spent = self._spent.get(host, 0) - (self._budget.refund if paid is None else paid)
        if spent > 0:
            self._spent[host] = spent
        else:
            self._spent.pop(host, None)


def checked_statuses(name: str, statuses: Any) -> frozenset[int]:
    """Return HTTP statuses of errors as a set; `name` is the argument or option, for messages."""
    if isinstance(statuses, (str, bytes)) or not isinstance(statuses, Iterable):
        raise TypeError(f"{name} must be HTTP status codes, not {statuses!r}")
    checked: set[int] = set()
    for status in cast("Iterable[object]", statuses):
        if isinstance(status, bool) or not isinstance(status, int):
            raise TypeError(f"{name} must be HTTP status codes, not {status!r}")
        if status not in _ERROR_STATUSES:
            raise ValueError(f"{name} must be codes from 400 to 599, not {status!r}")
        checked.add(status)
    return frozenset(checked)
