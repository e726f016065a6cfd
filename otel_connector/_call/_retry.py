"""Whether a failed attempt is tried again, and how long to wait before.

Pure: clock and chance come in as arguments, nothing here sleeps, sends or remembers. State belongs to a call, never
to a policy. Knows our error classes, not how they come about.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
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
"""What a server may answer differently a moment later: RFC 9110 (408, 500, 502, 503, 504), RFC 8470 (425), RFC 6585
(429). Every other status would be the same again."""

THROTTLING_STATUSES: frozenset[int] = frozenset({429, 503})
"""With these a server asks its callers to slow down."""

_HOST_LIMIT = 10_000
"""Hosts whose bucket is remembered; beyond that the one that failed first has a full one again."""

_DELAY_SECONDS = re.compile(r"[0-9]+")  # RFC 9110, section 10.2.3: delay-seconds = 1*DIGIT
_LEAP_SECOND = re.compile(r"(\d\d:\d\d:)60\b")  # RFC 9110, section 5.6.7: a second is 00 to 60
# RFC 9110, section 5.6.7: an rfc850-date that seems to be more than 50 years ahead is in the past
_TWO_DIGIT_YEAR = re.compile(r"\d\d-\w{3}-\d\d ")
_FIFTY_YEARS = 50 * 365.25 * 86_400  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What follows a failed attempt.

    Attributes:
        reason: Why it is tried again, or why it would have been: ``status_503``, ``connection``, ``timeout``,
            ``truncated``; for a failure that is final its class's name.
        wait: Seconds until the next attempt; None to give up.
    """

    reason: str
    wait: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """What is retried and how long is waited; a value that calls share without changing it.

    Attributes:
        statuses: HTTP statuses that are retried.
        backoff: Seconds that the first wait may last; each further one may last twice as long.
        backoff_cap: Seconds no computed wait exceeds.
        retry_after_cap: Seconds of a server's ``Retry-After`` that are obeyed; a longer one fails the call at once,
            with the true value in ``HTTPStatusError.retry_after``.

    Raises:
        TypeError: A field is of another type.
        ValueError: A number is negative or not finite, or a status is none.
    """

    statuses: frozenset[int] = RETRIED_STATUSES
    backoff: float = 0.5
    backoff_cap: float = 30.0
    retry_after_cap: float = 120.0

    def __post_init__(self) -> None:
        """Refuse what could not work, naming the field."""
        for name in ("backoff", "backoff_cap", "retry_after_cap"):
            checked_seconds(name, getattr(self, name))
        object.__setattr__(self, "statuses", _checked_statuses(self.statuses))

    def decide(
        self,
        error: Exception,
        *,
        attempt: int,
        n_tries: int,
        random: Callable[[], float],
        remaining: float = math.inf,
    ) -> Decision:
        """Say what follows attempt number `attempt` (from 1) of at most `n_tries`, which failed with `error`.

        Args:
            error: How the attempt failed.
            attempt: Its number, from 1.
            n_tries: How many attempts the call has in all.
            random: Returns a number in [0, 1).
            remaining: Seconds until the call's deadline; no wait lasts as long.
        """
        reason = self._reason(error)
        if reason is None:
            return Decision(reason=type(error).__name__, wait=None)
        if attempt >= n_tries:
            return Decision(reason=reason, wait=None)
        asked = error.retry_after if isinstance(error, HTTPStatusError) else None
        # A server that asks for no wait at all does not ask for a storm: then the back-off holds
        wait = asked or self._backoff_before(attempt + 1, random())
        possible = wait < remaining and (asked is None or asked <= self.retry_after_cap)
        return Decision(reason=reason, wait=wait if possible else None)

    def pause(self, error: Exception) -> float | None:
        """Return the seconds for which a failed attempt's server wants no calls at all; None if it did not say.

        429 (RFC 6585) and 503 (RFC 9110, section 15.6.4) are about the server, so their ``Retry-After`` holds for
        every call to it, up to the cap. On another status it is about that one resource.
        """
        if not isinstance(error, HTTPStatusError) or error.status not in THROTTLING_STATUSES:
            return None
        return None if error.retry_after is None else min(error.retry_after, self.retry_after_cap)

    def _reason(self, error: Exception) -> str | None:
        """Name what makes the failure worth another attempt; None if nothing does."""
        if isinstance(error, HTTPStatusError):
            return f"status_{error.status}" if error.status in self.statuses else None
        if isinstance(error, ConnectFailed):
            return None if isinstance(error, (CertificateRejected, ProxyRefused)) else "connection"
        if isinstance(error, AttemptTimeout):
            return "timeout"
        return "truncated" if isinstance(error, BodyTruncated) else None

    def _backoff_before(self, attempt: int, chance: float) -> float:
        """Return the wait before `attempt`: exponential with full jitter.

        M. Brooker, "Exponential Backoff And Jitter": of the jitters compared there, full jitter makes the fewest
        calls for the work done.
        """
        doublings = min(attempt - 2, 1_000)  # 2.0**1024 overflows, and the cap holds long before
        return chance * min(self.backoff_cap, self.backoff * 2.0**doublings)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudget:
    """How many retries a host gets in relation to its successes: a bucket of tokens for each host.

    Every retry takes tokens out, every success puts some back; with too few left a retry is refused. It keeps the
    callers of a host in trouble from multiplying its load by `n_tries`.

    The defaults are botocore's standard mode (1.44, ``retries/quota.py`` and ``retries/standard.py``): of a full
    bucket, 35 retries in a row, or 100 after throttling.

    Attributes:
        capacity: Tokens in a full bucket.
        retry_cost: Tokens of a retry.
        throttling_cost: Tokens of a retry after 429 or 503.
        refund: Tokens that a success at the first attempt puts back; one after retries puts back what the last of
            them had cost.

    Raises:
        TypeError: A field is no int.
        ValueError: A field is below 1, or a cost above the capacity.
    """

    capacity: int = 500
    retry_cost: int = 14
    throttling_cost: int = 5
    refund: int = 1

    def __post_init__(self) -> None:
        """Refuse what could not work, naming the field."""
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
    """The buckets of one `RetryBudget`, one for each host that ever failed.

    Args:
        budget: How large they are.
    """

    __slots__ = ("_budget", "_spent")

    def __init__(self, budget: RetryBudget) -> None:
        self._budget = budget
        self._spent: dict[str, int] = {}  # full ones are not kept, nor more than there may be hosts

    def take(self, host: str, error: Exception) -> int | None:
        """Pay for a retry after `error`: the tokens taken, or None if there are too few."""
        cost, spent = self._budget.cost(error), self._spent.get(host, 0)
        if spent + cost > self._budget.capacity:
            return None
        self._spent[host] = spent + cost
        if len(self._spent) > _HOST_LIMIT:
            del self._spent[next(iter(self._spent))]
        return cost

    def put_back(self, host: str, paid: int | None) -> None:
        """Note a success, for whose last retry `paid` tokens were taken; None if it needed none."""
        spent = self._spent.get(host, 0) - (self._budget.refund if paid is None else paid)
        if spent > 0:
            self._spent[host] = spent
        else:
            self._spent.pop(host, None)


def _checked_statuses(statuses: Any) -> frozenset[int]:
    if isinstance(statuses, (str, bytes)) or not isinstance(statuses, Iterable):
        raise TypeError(f"statuses must be HTTP status codes, not {statuses!r}")
    checked: set[int] = set()
    for status in cast("Iterable[object]", statuses):
        if isinstance(status, bool) or not isinstance(status, int):
            raise TypeError(f"statuses must be HTTP status codes, not {status!r}")
        if not 400 <= status <= 599:  # noqa: PLR2004 - the statuses that are errors, RFC 9110, section 15
            raise ValueError(f"statuses must be codes from 400 to 599, not {status!r}")
        checked.add(status)
    return frozenset(checked)


def parse_retry_after(value: str, now: float) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks to wait; None if it cannot be read.

    RFC 9110, section 10.2.3: whole seconds, or a date in any of the three forms of section 5.6.7. A date that is past
    means 0.

    Args:
        value: The header's value.
        now: Unix time in seconds, to which a date is compared.
    """
    value = value.strip()
    if _DELAY_SECONDS.fullmatch(value):
        return float(value)  # a number too large for a float becomes inf, which is above every cap
    try:
        date = parsedate_to_datetime(_LEAP_SECOND.sub(r"\g<1>59", value))
        if date.tzinfo is None:  # the asctime form names no zone; an HTTP date is always UTC
            date = date.replace(tzinfo=timezone.utc)
        if _TWO_DIGIT_YEAR.search(value):
            date = _in_reach(date, now)
        return max(date.timestamp() - now, 0.0)
    except (ValueError, OverflowError, TypeError):
        return None


def _in_reach(date: datetime, now: float) -> datetime:
    """Return `date` with the century that makes it the last such date which is at most 50 years after `now`."""
    this_year = datetime.fromtimestamp(now, tz=timezone.utc).year
    date = date.replace(year=this_year - this_year % 100 + 100 + date.year % 100)
    while (date.timestamp() - now) > _FIFTY_YEARS:
        date = date.replace(year=date.year - 100)
    return date
