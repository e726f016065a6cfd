"""The retry budget: one token bucket for each host; off by default."""

from __future__ import annotations

import pickle
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from support.logs import Log
from support.sdk import SDK

from otel_connector import (
    AsyncConnector,
    AttemptTimeout,
    BodyTruncated,
    ConnectFailed,
    HTTPStatusError,
    RateLimiterFailed,
    RetryBudget,
    RetryBudgetExhausted,
    RetryRefused,
)
from otel_connector._call import _retry
from otel_connector._call._retry import RetryQuotas
from otel_connector.testing import FakeClock, FaultServer, ok, truncated


def status(code: int) -> HTTPStatusError:
    return HTTPStatusError(str(code), status=code, headers=CIMultiDict())


FAILURES = [status(500), status(429), status(503), ConnectFailed("x"), AttemptTimeout("x"), BodyTruncated("x")]


def test_the_defaults_are_those_of_botocore() -> None:
    budget = RetryBudget()
    assert (budget.capacity, budget.retry_cost, budget.throttling_cost, budget.refund) == (500, 14, 5, 1)
    assert [budget.cost(error) for error in FAILURES] == [14, 5, 5, 14, 14, 14]


@pytest.mark.parametrize(("code", "retries"), [(500, 35), (429, 100)])
def test_a_full_bucket_allows_35_retries_of_errors_or_100_of_throttling(code: int, retries: int) -> None:
    quotas = RetryQuotas(RetryBudget())
    for _ in range(retries):
        assert quotas.take("h:1", status(code)) is not None
    assert quotas.take("h:1", status(code)) is None
    assert quotas.take("other:1", status(code)) is not None, "each host has its own bucket"


def test_a_success_returns_the_cost_of_its_last_retry_or_the_refund() -> None:
    quotas = RetryQuotas(RetryBudget(capacity=30, retry_cost=14, throttling_cost=5, refund=2))
    first, second = quotas.take("h:1", status(500)), quotas.take("h:1", status(500))
    assert (first, second, quotas.take("h:1", status(500))) == (14, 14, None)
    quotas.put_back("h:1", second)
    assert quotas.take("h:1", status(500)) == 14
    quotas.put_back("h:1", None)
    assert quotas.take("h:1", status(429)) is None, "4 tokens are left, and the retry costs 5"
    quotas.put_back("h:1", None)
    assert quotas.take("h:1", status(429)) == 5


def test_full_buckets_take_no_memory() -> None:
    quotas = RetryQuotas(RetryBudget())
    for number in range(1_000):
        quotas.put_back(f"{number}:1", quotas.take(f"{number}:1", status(500)))
        quotas.put_back(f"{number}:1", None)
    assert quotas._spent == {}


@given(
    budget=st.integers(1, 50).flatmap(
        lambda capacity: st.builds(
            RetryBudget,
            capacity=st.just(capacity),
            **dict.fromkeys(("retry_cost", "throttling_cost", "refund"), st.integers(1, capacity)),
        )
    ),
    events=st.lists(st.sampled_from([*FAILURES, None, "after a retry"]), max_size=60),
)
def test_the_tokens_spent_never_exceed_the_capacity(budget: RetryBudget, events: list[Any]) -> None:
    quotas, paid = RetryQuotas(budget), None
    for event in events:
        if isinstance(event, Exception):
            paid = quotas.take("h", event)
            assert paid in {None, budget.cost(event)}
        else:
            quotas.put_back("h", None if event is None else paid)
        assert 0 <= quotas._spent.get("h", 0) <= budget.capacity


def test_the_number_of_remembered_hosts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_retry, "_HOST_LIMIT", 3)
    quotas = RetryQuotas(RetryBudget())
    for number in range(10):
        assert quotas.take(f"{number}:1", status(500)) == 14
    assert list(quotas._spent) == ["7:1", "8:1", "9:1"]


class FailsEverySecondTime:
    """A limiter that raises at every second entry."""

    entered = 0

    async def __aenter__(self) -> None:
        self.entered += 1
        if self.entered % 2 == 0:
            raise RuntimeError("limiter")

    async def __aexit__(self, *reason: object) -> None:
        pass


async def test_a_retry_that_the_rate_limiter_prevents_costs_no_tokens(
    server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    server.script("/x", 500)
    budget = RetryBudget(capacity=14, retry_cost=14)
    subject = AsyncConnector(None, retry_budget=budget, rate_limiter=FailsEverySecondTime(), clock=clock)
    for _ in range(4):
        with pytest.raises(RateLimiterFailed):
            await subject.get(session, server.url("/x"), "P")
    assert len(server.requests) == 4


async def test_an_empty_bucket_fails_the_call_immediately_with_its_own_error(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK, clock: FakeClock
) -> None:
    server.script("/x", 500)
    budget = RetryBudget(capacity=2, retry_cost=1, throttling_cost=1)
    subject = AsyncConnector(log.path, retry_budget=budget, clock=clock, **sdk.providers)
    with pytest.raises(RetryBudgetExhausted) as caught:
        await subject.get(session, server.url("/x"), "P")
    error = caught.value
    assert isinstance(error, RetryRefused)
    assert str(error) == f"the retry budget of 127.0.0.1:{server.port} is exhausted: 500 Internal Server Error"
    assert isinstance(error.__cause__, HTTPStatusError)
    assert (error.attempts, len(clock.sleeps), len(server.requests)) == (3, 2, 3)
    record, span = log.only(), sdk.span()
    assert record.error == f"RetryBudgetExhausted: {error}"
    assert (record.response_code, record.call_id) == (500, error.call_id)
    assert span.attributes["error.type"] == "otel_connector.RetryBudgetExhausted"
    assert span.attributes["http.request.resend_count"] == 2
    assert [event.attributes.get("otel_connector.attempt.wait") for event in span.events] == [0.25, 0.5, None]
    assert subject.stats().retries == 2
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.attempts) == (str(error), 3)

    with pytest.raises(RetryBudgetExhausted) as caught:
        await subject.get(session, server.url("/x"), "P")
    assert caught.value.attempts == 1, "the next call makes its first attempt, but no retry"
    assert await subject.get(session, server.url("/x"), "P", default=None) is None


async def test_successes_refill_the_bucket(
    server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    budget = RetryBudget(capacity=2, retry_cost=2, throttling_cost=1)
    subject = AsyncConnector(None, retry_budget=budget, clock=clock)
    server.script("/x", [500, truncated(), ok, ok, 500, ok, 500, ok])
    url = server.url("/x")
    with pytest.raises(RetryBudgetExhausted):
        await subject.get(session, url, "P")
    for _ in range(2):
        assert await subject.get(session, url, "P") == {"ok": True}
    for _ in range(2):  # a success after a retry returns the tokens that the retry cost
        assert await subject.get(session, url, "P") == {"ok": True}
    assert server.statuses("/x") == [500, 200, 200, 200, 500, 200, 500, 200]


async def test_each_host_has_its_own_bucket(
    server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    subject = AsyncConnector(None, retry_budget=RetryBudget(capacity=14), clock=clock)
    server.script("/x", 500)
    with pytest.raises(RetryBudgetExhausted):
        await subject.get(session, server.url("/x"), "P")
    with FaultServer() as other:
        other.script("/x", [500, ok])
        assert await subject.get(session, other.url("/x"), "P") == {"ok": True}


async def test_failures_that_are_not_retried_cost_no_tokens(
    server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    subject = AsyncConnector(None, n_tries=1, retry_budget=RetryBudget(capacity=14), clock=clock)
    for step in (404, 500, ok):
        server.script("/x", step)
        await subject.get(session, server.url("/x"), "P", default=None)
    assert subject._settings.quotas is not None
    assert subject._settings.quotas._spent == {}


async def test_without_a_budget_all_retries_are_made(
    server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    server.script("/x", 500)
    with pytest.raises(HTTPStatusError) as caught:
        await AsyncConnector(None, n_tries=60, clock=clock).get(session, server.url("/x"), "P")
    assert caught.value.attempts == 60


FIELDS = ("capacity", "retry_cost", "throttling_cost", "refund")


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    ("value", "kind"),
    [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError), ("1", TypeError), (None, TypeError)],
)
def test_an_invalid_field_of_a_budget_is_named_in_the_error(field: str, value: object, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"^{field} must be"):
        RetryBudget(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", FIELDS[1:])
def test_no_cost_may_exceed_the_capacity(field: str) -> None:
    with pytest.raises(ValueError, match=f"^capacity must be at least {field}, 501, not 500"):
        RetryBudget(**{field: 501})
    small = RetryBudget(capacity=501, **{field: 501})
    assert hash(small) == hash(RetryBudget(capacity=501, **{field: 501}))


def test_a_bad_argument_is_named() -> None:
    with pytest.raises(TypeError, match=r"^retry_budget must be a RetryBudget, not int"):
        AsyncConnector(None, retry_budget=5)  # type: ignore[arg-type]
