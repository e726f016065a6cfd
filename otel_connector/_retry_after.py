"""How long a response asks its client to wait: the header ``Retry-After`` (RFC 9110, section 10.2.3).

Used by ``_call._call`` and ``_telemetry._http_answers``.
"""

from __future__ import annotations

import math
import re
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multidict import MultiMapping

# RFC 9110, section 10.2.3: delay-seconds = 1*DIGIT. Shopify ("2.0"), Sentry, Microsoft Graph and others send a fraction
_DELAY_SECONDS = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+")
_AGE = re.compile(r"[0-9]{1,9}")  # RFC 9111, section 5.1: delta-seconds; more than 31 years is an error of the cache
_LEAP_SECOND = re.compile(r"(\d\d:\d\d:)60\b")  # RFC 9110, section 5.6.7: a second is 00 to 60
# RFC 9110, section 5.6.7: an rfc850-date that appears to be more than 50 years in the future is in the past
_TWO_DIGIT_YEAR = re.compile(r"\d\d-\w{3}-\d\d ")
_FIFTY_YEARS = 50 * 365.25 * 86_400  # seconds


def retry_after_of(headers: MultiMapping[str], now: float) -> float | None:
    """Return the seconds for which a response asks its client to wait; None if it does not ask, or not validly.

    A date is compared with the server's own clock, which may differ from ours: with the ``Date`` of the response (RFC
    9110, section 6.6.1), plus its ``Age`` in a cache (RFC 9111, section 4.2.3); without a valid ``Date``, with `now`.
    Of several values the longest counts, because each is a minimum.

    Args:
        headers: Those of the response.
        now: Unix time in seconds.
    """
    values: Sequence[str] = headers.getall("Retry-After", ())
    if not values:
        return None
    dates, age = headers.getall("Date", ()), headers.get("Age", "")
    date = _unix_time(dates[0], now) if len(dates) == 1 else None
    if date is not None:
        now = date + (int(age) if _AGE.fullmatch(age) else 0)
    return max((seconds for value in values if (seconds := parse_retry_after(value, now)) is not None), default=None)


def parse_retry_after(value: str, now: float) -> float | None:
    """Return the seconds of a ``Retry-After`` header; None if it is invalid.

    RFC 9110, section 10.2.3: seconds, or a date in any of the three forms of section 5.6.7. A date in the past means 0.
    A fraction of a second, which the RFC does not allow, is rounded up. Not accepted are signs, exponents, units, lists
    of numbers, and dates of other standards.

    Args:
        value: The value of the header.
        now: Unix time in seconds, which is subtracted from a date.
    """
    value = value.strip()
    if _DELAY_SECONDS.fullmatch(value):
        seconds = float(value)  # a number too large for a float becomes inf, which exceeds every cap
        return seconds if seconds == math.inf else float(math.ceil(seconds))
    date = _unix_time(value, now)
    return None if date is None else max(date - now, 0.0)


def _unix_time(value: str, now: float) -> float | None:
    """Return the Unix time in seconds of an HTTP date in any of its three forms; None if it is invalid."""
    try:
        date = parsedate_to_datetime(_LEAP_SECOND.sub(r"\g<1>59", value))
        if date.tzinfo is None:  # the asctime form has no zone; an HTTP date is always UTC
            date = date.replace(tzinfo=timezone.utc)
        if _TWO_DIGIT_YEAR.search(value):
            date = _with_century(date, now)
        return date.timestamp()
    except (ValueError, OverflowError, TypeError):
        return None


def _with_century(date: datetime, now: float) -> datetime:
    """Return `date` with the latest century for which it is at most 50 years after `now`."""
    this_year = datetime.fromtimestamp(now, tz=timezone.utc).year
    date = date.replace(year=this_year - this_year % 100 + 100 + date.year % 100)
    while (date.timestamp() - now) > _FIFTY_YEARS:
        date = date.replace(year=date.year - 100)
    return date
