"""Which failures are retried and after what wait; the tested functions neither sleep nor read the clock."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict

from otel_connector import _errors
from otel_connector._call._retry import RETRIED_STATUSES, Decision, RetryPolicy
from otel_connector._clock import Clock, SystemClock
from otel_connector._errors import ConnectFailed, HTTPStatusError
from otel_connector._retry_after import parse_retry_after

POLICY = RetryPolicy()
NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the RFC's own example


def status_error(status: int, retry_after: float | None = None) -> HTTPStatusError:
    return HTTPStatusError(f"{status} x", status=status, headers=CIMultiDict(), retry_after=retry_after)


def decide(error: Exception, attempt: int = 1, n_tries: int = 10, chance: float = 0.5, **policy: Any) -> Decision:
    return RetryPolicy(**policy).decide(error, attempt=attempt, n_tries=n_tries, random=lambda: chance)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectFailed("x"), "connection"),
        (_errors.AttemptTimeout("x"), "timeout"),
        (_errors.BodyTruncated("x"), "truncated"),
        *[(status_error(status), f"status_{status}") for status in (408, 425, 429, 500, 502, 503, 504)],
    ],
    ids=str,
)
def test_transient_failures_are_retried_until_the_last_attempt(error: Exception, reason: str) -> None:
    assert [decide(error, attempt, 3).reason for attempt in (1, 2, 3, 4)] == [reason] * 4
    assert [decide(error, attempt, 3).wait for attempt in (1, 2, 3, 4)] == [0.25, 0.5, None, None]
    assert decide(error, 1, 1).wait is None


def test_other_failures_are_never_retried() -> None:
    errors: list[Exception] = [
        *[status_error(status) for status in range(400, 600) if status not in RETRIED_STATUSES],
        status_error(404, retry_after=1.0),
        _errors.CertificateRejected("x"),
        _errors.BodyTooLarge("x", limit=1),
        *[getattr(_errors, name)("x") for name in ("ConnectorError", "BodyError", "DecodeFailed", "MalformedResponse")],
        *[getattr(_errors, name)("x") for name in ("RedirectRefused", "InvalidURL", "SessionClosed")],
        *[TimeoutError(), ConnectionError(), ValueError()],
    ]
    for error in errors:
        assert decide(error) == Decision(reason=type(error).__name__, wait=None), error


def test_custom_statuses_replace_the_default_ones() -> None:
    assert decide(status_error(404), statuses={404}) == Decision(reason="status_404", wait=0.25)
    assert decide(status_error(503), statuses=()).wait is None


def test_waits_double_up_to_the_cap_and_are_scaled_by_the_random_number() -> None:
    waits = [decide(ConnectFailed("x"), attempt, 10**9, 1.0).wait for attempt in (1, 2, 3, 4, 5, 6, 7, 8, 2_000, 10**8)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert decide(ConnectFailed("x"), 3, chance=0.25).wait == 0.5
    assert decide(ConnectFailed("x"), 3, chance=0.0).wait == 0.0


@pytest.mark.parametrize(
    ("asked", "wait"),
    [
        (0.0, 0.25),
        (5e-324, 5e-324),
        (7.5, 7.5),
        (120.0, 120.0),
        (math.nextafter(120.0, 121.0), None),
        (math.inf, None),
        (math.nan, None),
    ],
)
def test_retry_after_is_obeyed_up_to_its_cap(asked: float, wait: float | None) -> None:
    assert decide(status_error(503, asked)) == Decision(reason="status_503", wait=wait)
    assert decide(status_error(503, asked), 10, 10).wait is None


SECONDS = st.floats(0, allow_infinity=False)


@given(
    backoff=SECONDS,
    cap=SECONDS,
    asked_cap=SECONDS,
    error=st.one_of(
        st.builds(status_error, st.integers(400, 599), st.none() | st.floats(0)),
        st.sampled_from([ConnectFailed("x"), _errors.AttemptTimeout("x"), _errors.InvalidURL("x")]),
    ),
    attempt=st.integers(1, 10**6),
    further=st.integers(0, 10**6),
    chance=st.floats(0, 1, exclude_max=True),
)
@example(backoff=1e308, cap=1e308, asked_cap=0, error=ConnectFailed("x"), attempt=10**6, further=1, chance=0.99)
def test_a_wait_is_between_zero_and_its_cap_and_the_last_attempt_has_none(
    *, backoff: float, cap: float, asked_cap: float, error: Exception, attempt: int, further: int, chance: float
) -> None:
    limits = {"backoff": backoff, "backoff_cap": cap, "retry_after_cap": asked_cap}
    wait = decide(error, attempt, attempt + further, chance, **limits).wait
    asked = isinstance(error, HTTPStatusError) and error.retry_after is not None

    assert wait is None or (further > 0 and 0 <= wait <= (asked_cap if asked else cap))


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        *[(field, "1", TypeError) for field in ("backoff", "backoff_cap", "retry_after_cap")],
        *[("backoff", value, TypeError) for value in (None, True)],
        *[("backoff_cap", value, ValueError) for value in (-1, -0.001, math.inf, math.nan)],
        *[("statuses", value, TypeError) for value in ("503", [True], [503.0], [None], 503, None)],
        *[("statuses", [value], ValueError) for value in (399, 600, 200, -503)],
    ],
)
def test_an_invalid_field_of_a_policy_is_named_in_the_error(field: str, value: object, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"^{field} must be"):
        RetryPolicy(**{field: value})  # type: ignore[arg-type]


def test_policies_are_comparable_hashable_and_immutable() -> None:
    assert RetryPolicy(statuses=[503]) == RetryPolicy(statuses=frozenset({503}))  # type: ignore[arg-type]
    assert hash(POLICY) == hash(RetryPolicy(backoff=0.5))
    with pytest.raises(AttributeError):
        POLICY.backoff = 1.0  # type: ignore[misc]


@pytest.fixture(params=["UTC", "Asia/Kathmandu", "America/New_York", "XXX+11:30"])
def timezone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("timezone")
@pytest.mark.parametrize(
    "value", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
)
@pytest.mark.parametrize(("early", "wait"), [(30.0, 30.0), (0.25, 0.25), (0.0, 0.0), (-1.0, 0.0), (-1e9, 0.0)])
def test_the_three_http_date_formats_are_parsed_as_gmt_in_every_time_zone(
    value: str, early: float, wait: float
) -> None:
    assert parse_retry_after(value, NOW - early) == wait


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *[
            ("0", 0.0),
            ("120", 120.0),
            (" 007\t", 7.0),
            ("9" * 20, 1e20),
            ("9" * 400, math.inf),
            ("9" * 9_999, math.inf),
            # A fraction is rounded up: waiting longer is allowed, waiting less is not
            ("2.0", 2.0),
            ("2.", 2.0),
            ("2.001", 3.0),
            (".5", 1.0),
            ("0.0", 0.0),
            ("00.10", 1.0),
            ("9" * 400 + ".5", math.inf),
        ],
        *[
            (text, None)
            for text in (
                "",
                " ",
                "-1",
                "-1.5",
                "+1",
                "1e3",
                ".",
                "1.2.3",
                "1,5",
                "2, 5",
                "2s",
                "2 seconds",
                '"2"',
                "2;",
                "inf",
                "1 2",
                "0x10",
                "1_0",
                "²",
                "\u0663",
                "soon",
                ",",
                "1994-11-06T08:49:47Z",
            )
        ],
        *[
            (f"Sun, {text} GMT", None)
            for text in ("31 Feb 1994 00:00:00", "06 Nov 1994 25:00:00", "06 Nov 99999 0:0:0")
        ],
        ("Sun, 06 Nov 1994 08:49:37 +99999999", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 253_402_300_799.0 - NOW),
        ("Wed, 01 Jan 1000 00:00:00 +2359", 0.0),
        ("Sun, 06 Nov 1994 08:49:60 GMT", 22.0),  # RFC 9110, section 5.6.7 allows a leap second
        ("Sunday, 06-Nov-94 08:49:60 GMT", 22.0),
        ("Sun, 06 Nov 1994 08:49:61 GMT", None),
        ("Friday, 06-Nov-43 08:49:37 GMT", 17_897 * 86_400.0),  # 2043: 49 years ahead
        ("Tuesday, 06-Nov-45 08:49:37 GMT", 0.0),  # 1945: 2045 would be more than 50 years ahead
        ("Tuesday, 29-Feb-95 08:49:37 GMT", None),
    ],
)
def test_retry_after_is_parsed_to_seconds_or_none(value: str, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == (None if seconds is None else pytest.approx(seconds))


WORDS = [
    "Sun,",
    "06",
    "Nov",
    "1994",
    "06-Nov-94",
    "08:49:37",
    "GMT",
    "+0000",
    "-",
    ":",
    ",",
    "--",
    "9" * 20,
    "\x00",
    " ",
]


@given(
    st.text()
    | st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)
    | st.lists(st.sampled_from(WORDS), max_size=9).map("".join)
)
def test_parsing_a_header_never_raises_or_returns_a_negative_number(value: str) -> None:
    seconds = parse_retry_after(value, NOW)
    assert seconds is None or seconds >= 0
    assert re.fullmatch("[0-9]+", value) is None or seconds == float(value)


async def test_the_system_clock_implements_the_clock_protocol() -> None:
    clock: Clock = SystemClock()
    before = clock.monotonic_ns()
    await clock.sleep(0)
    assert before <= clock.monotonic_ns()
    assert abs(clock.time_ns() - time.time_ns()) < 60 * 10**9
    assert 0 <= clock.random() < 1
