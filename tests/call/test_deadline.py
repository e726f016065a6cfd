"""`deadline` bounds the whole call: queue, limiter, pause, attempts and waits. A call that exceeds it is logged."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from support.logs import Log
from support.loop_and_memory import is_idle
from support.sdk import SDK

from otel_connector import (
    AsyncConnector,
    Attempt,
    AttemptTimeout,
    ConnectorError,
    DeadlineExceeded,
    HTTPStatusError,
    RetryPolicy,
)
from otel_connector._call import _transport
from otel_connector._clock import time_limit
from otel_connector.testing import FakeClock, FaultServer, drip, hold, hold_in_body, ok, retry_after, silent, slow_body

MARGIN = 2.0  # seconds that a busy machine may take longer; without the deadline a call would take 10 s or more


async def ends_in_time(call: Awaitable[Any], deadline: float, least: float | None = None) -> DeadlineExceeded:
    """Return the error of a call that must end at its deadline, or immediately if `least` is 0."""
    started = time.perf_counter()
    with pytest.raises(DeadlineExceeded) as caught:
        await call
    took = time.perf_counter() - started
    assert (deadline if least is None else least) - 0.01 <= took <= deadline + MARGIN
    assert isinstance(caught.value, TimeoutError)
    return caught.value


def assert_row(log: Log, sdk: SDK, error: ConnectorError) -> None:
    record, span = log.only(), sdk.span()
    assert record.error == f"DeadlineExceeded: {error}"
    assert (record.success, record.call_id) == (False, error.call_id)
    assert span.attributes["error.type"] == "otel_connector.DeadlineExceeded"


@pytest.mark.timing
@pytest.mark.parametrize(
    ("step", "text"),
    [
        (silent, "no response within"),
        (hold_in_body().step, "body not complete within"),
        (drip(0.02), "body not complete within"),
    ],
    ids=str,
)
async def test_the_deadline_ends_an_attempt_in_progress(
    step: Any, text: str, server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", step)
    subject = AsyncConnector(log.path, timeout=30, deadline=0.5, **sdk.providers)
    error = await ends_in_time(subject.get(session, server.url("/x"), "P"), 0.5)
    assert str(error).startswith(f"0.5 s passed: {text}")
    assert isinstance(error.__cause__, AttemptTimeout)
    assert error.attempts == 1
    assert_row(log, sdk, error)
    assert log.only().delta_t < 0.5 + MARGIN
    assert is_idle(session)


@pytest.mark.timing
async def test_the_deadline_ends_a_later_attempt(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", [503, silent])
    policy = RetryPolicy(backoff=0.001)
    subject = AsyncConnector(log.path, timeout=0.4, deadline=0.8, retry=policy, **sdk.providers)
    error = await ends_in_time(subject.get(session, server.url("/x"), "P"), 0.8)
    assert error.attempts == 3, "503, 0.4 s of silence, and the rest of the deadline"
    assert_row(log, sdk, error)


async def test_a_socket_timeout_before_the_deadline_is_retried(
    server: FaultServer, session: aiohttp.ClientSession
) -> None:
    server.script("/x", [silent, ok])
    timeout = aiohttp.ClientTimeout(total=None, sock_read=0.5)
    subject = AsyncConnector(None, timeout=timeout, deadline=20, retry=RetryPolicy(backoff=0.001))
    assert await subject.get(session, server.url("/x"), "P") == {"ok": True}


@pytest.mark.timing
async def test_an_attempt_without_a_timeout_ends_at_the_deadline(
    server: FaultServer, session: aiohttp.ClientSession
) -> None:
    """For aiohttp a total of 0 means no timeout."""
    server.script("/x", silent)
    for total in (0, None):
        subject = AsyncConnector(None, timeout=aiohttp.ClientTimeout(total=total), deadline=0.2)
        error = await ends_in_time(subject.get(session, server.url("/x"), "P"), 0.2)
        assert str(error).startswith("0.2 s passed: no response within 0.")


async def test_a_timeout_above_five_seconds_is_not_rounded_up(
    server: FaultServer, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default aiohttp rounds timeouts above 5 s up to whole seconds, even past the deadline."""
    limits = list[float | None]()

    def recording_limit(seconds: float | None) -> Any:
        limits.append(seconds)  # checked here, because waiting for it would take 5 s
        return time_limit(seconds)

    monkeypatch.setattr(_transport, "time_limit", recording_limit)
    server.script("/x", ok)
    cases: list[tuple[Any, float | None]] = [(5.5, None), (5.5, 5.6), (aiohttp.ClientTimeout(total=5.5), 5.6)]
    for timeout, deadline in cases:
        await AsyncConnector(None, timeout=timeout, deadline=deadline).get(session, server.url("/x"), "P")
    assert limits == [5.5] * 3


async def test_a_pause_caused_by_another_call_ends_the_call_with_the_error_of_its_last_attempt(
    server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    server.script("/x", 500)
    server.script("/y", retry_after(60, 429))

    def other_call(attempt: Attempt) -> None:
        admission = subject._settings.admission
        admission.throttled(f"127.0.0.1:{server.port}", 0.0, 60.0)

    subject = AsyncConnector(None, deadline=10, clock=clock, on_retry=other_call)
    with pytest.raises(HTTPStatusError) as caught:
        await subject.get(session, server.url("/x"), "P")
    assert (caught.value.status, caught.value.attempts) == (500, 1)
    assert isinstance(caught.value.__context__, DeadlineExceeded), "it states why there was no further attempt"


@pytest.mark.timing
async def test_the_deadline_ends_the_wait_for_a_connection(server: FaultServer, log: Log, sdk: SDK) -> None:
    held = hold()
    server.script("/x", held.step)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        holding = asyncio.create_task(AsyncConnector(None).get(session, server.url("/x"), "P"))
        await held.arrived
        subject = AsyncConnector(log.path, deadline=0.3, **sdk.providers)
        error = await ends_in_time(subject.get(session, server.url("/x"), "P"), 0.3)
        assert (str(error), error.attempts) == ("0.3 s passed in the queue", 0)
        assert_row(log, sdk, error)
        held.release()
        assert await holding == {"ok": True}
        assert await subject.get(session, server.url("/x"), "P") == {"ok": True}, "its slot is free again"


@pytest.mark.timing
async def test_the_deadline_ends_the_wait_for_the_rate_limiter(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", ok)
    limiter = asyncio.Lock()
    await limiter.acquire()
    subject = AsyncConnector(log.path, deadline=0.3, rate_limiter=limiter, **sdk.providers)
    error = await ends_in_time(subject.get(session, server.url("/x"), "P"), 0.3)
    assert_row(log, sdk, error)
    limiter.release()
    assert await subject.get(session, server.url("/x"), "P") == {"ok": True}


class HangingExitLimiter:
    """A limiter whose exit hangs until it is cancelled."""

    cancelled = False

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *reason: object) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def test_the_deadline_cancels_a_limiter_that_hangs_on_exit_after_an_attempt(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    server.script("/x", ok)
    limiter = HangingExitLimiter()
    subject = AsyncConnector(log.path, deadline=1, rate_limiter=limiter)
    assert await asyncio.wait_for(subject.get(session, server.url("/x"), "P"), 5) == {"ok": True}
    assert limiter.cancelled
    assert log.only().success
    assert caplog.messages == ["rate_limiter failed after an attempt: TimeoutError: "]


@pytest.mark.timing
async def test_the_deadline_cancels_a_limiter_that_hangs_on_exit_while_the_call_is_queued(server: FaultServer) -> None:
    held = hold()
    server.script("/x", held.step)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        holding = asyncio.create_task(AsyncConnector(None).get(session, server.url("/x"), "P"))
        await held.arrived
        limiter = HangingExitLimiter()
        subject = AsyncConnector(None, deadline=0.2, rate_limiter=limiter)
        await ends_in_time(subject.get(session, server.url("/x"), "P"), 0.2)
        assert limiter.cancelled
        held.release()
        await holding


@pytest.mark.timing
async def test_time_spent_in_the_queue_shortens_the_attempt(server: FaultServer) -> None:
    held = hold()
    server.script("/x", held.step)
    server.script("/y", silent)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        holding = asyncio.create_task(AsyncConnector(None).get(session, server.url("/x"), "P"))
        await held.arrived
        asyncio.get_running_loop().call_later(0.2, held.release)
        error = await ends_in_time(AsyncConnector(None, deadline=0.8).get(session, server.url("/y"), "P"), 0.8)
        assert error.attempts == 1
        (left,) = re.findall(r"no response within ([0-9.]+) s", str(error))
        assert float(left) <= 0.8 - 0.19, "0.2 s of the deadline were spent in the queue"
        await holding


@pytest.mark.timing
async def test_a_pause_beyond_the_deadline_fails_the_call_immediately(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK, clock: FakeClock
) -> None:
    server.script("/x", retry_after(60))
    subject = AsyncConnector(log.path, n_tries=1, deadline=10, clock=clock, **sdk.providers)
    with pytest.raises(HTTPStatusError):
        await subject.get(session, server.url("/x"), "P")
    error = await ends_in_time(subject.get(session, server.url("/x"), "P"), 0, 0)
    assert str(error) == f"127.0.0.1:{server.port} asked for a pause that ends in 1 min 0 s, after the deadline"
    assert (clock.sleeps, len(server.requests), error.attempts) == ([], 1, 0)
    assert log.records()[1].error == f"DeadlineExceeded: {error}"


@pytest.mark.timing
async def test_a_pause_that_begins_while_the_call_is_queued_fails_the_call(
    server: FaultServer, log: Log, sdk: SDK
) -> None:
    held = hold(retry_after(60))
    server.script("/x", [held.step, ok])
    subject = AsyncConnector(None, n_tries=1)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        holding = asyncio.create_task(subject.get(session, server.url("/x"), "P"))
        await held.arrived
        with_deadline = AsyncConnector(log.path, deadline=5, **sdk.providers)
        # As if it were the same connector
        with_deadline._settings.admission.hosts = subject._settings.admission.hosts
        queued = asyncio.create_task(with_deadline.get(session, server.url("/x"), "P"))
        await asyncio.sleep(0)
        held.release()
        assert_row(log, sdk, await ends_in_time(queued, 5, 0))
        with pytest.raises(HTTPStatusError):
            await holding


async def test_a_pause_shorter_than_the_deadline_is_waited_for(
    server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    server.script("/x", [retry_after(6), ok])
    subject = AsyncConnector(None, deadline=10, clock=clock)
    assert await subject.get(session, server.url("/x"), "P") == {"ok": True}
    assert clock.sleeps == [6]


async def test_a_retry_after_beyond_the_deadline_is_not_waited_for(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, clock: FakeClock
) -> None:
    server.script("/x", retry_after(10))
    with pytest.raises(HTTPStatusError) as caught:
        await AsyncConnector(log.path, deadline=10, clock=clock).get(session, server.url("/x"), "P")
    assert (caught.value.attempts, caught.value.retry_after, clock.sleeps) == (1, 10, [])
    assert log.only().error.startswith("HTTPStatusError: 503")


async def test_a_backoff_beyond_the_deadline_is_not_waited_for(
    server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    server.script("/x", 503)
    with pytest.raises(HTTPStatusError) as caught:
        await AsyncConnector(None, deadline=1, clock=clock).get(session, server.url("/x"), "P")
    assert (caught.value.attempts, clock.sleeps) == (3, [0.25, 0.5])


@pytest.mark.timing
async def test_a_deadline_that_passes_before_the_next_attempt_ends_the_call(
    server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    def let_the_deadline_pass(attempt: Attempt) -> None:
        clock.advance(60)

    server.script("/x", 503)
    subject = AsyncConnector(None, deadline=10, clock=clock, on_retry=let_the_deadline_pass)
    error = await ends_in_time(subject.get(session, server.url("/x"), "P"), 0, 0)
    assert (error.attempts, len(server.requests)) == (1, 1)
    assert str(error) == "10 s passed before attempt 2, after HTTPStatusError: 503 Service Unavailable"


async def test_default_is_returned_when_the_deadline_passes(
    server: FaultServer, session: aiohttp.ClientSession
) -> None:
    server.script("/x", slow_body(30))
    subject = AsyncConnector(None, deadline=0.05)
    assert await subject.get(session, server.url("/x"), "P", default="late") == "late"


async def test_a_timeout_before_the_deadline_is_retried(
    server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    server.script("/x", [silent, ok])
    subject = AsyncConnector(None, timeout=0.5, deadline=10, clock=clock)
    assert await subject.get(session, server.url("/x"), "P") == {"ok": True}


@given(
    asked=st.none() | st.floats(0, 1e6),
    remaining=st.floats(-10, 1e6),
    attempt=st.integers(1, 100),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_a_wait_is_shorter_than_the_remaining_time(
    asked: float | None, remaining: float, attempt: int, chance: float
) -> None:
    error = HTTPStatusError("503", status=503, headers=CIMultiDict(), retry_after=asked)
    decision = RetryPolicy(retry_after_cap=1e6).decide(
        error, attempt=attempt, n_tries=1_000, random=lambda: chance, remaining=remaining
    )
    assert decision.wait is None or decision.wait < remaining
    assert decision.reason == "status_503"


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        *[(value, ValueError) for value in (0, -1, math.nan, math.inf, -0.0)],
        *[(value, TypeError) for value in ("1", True, [1])],
    ],
)
def test_a_bad_deadline_is_named(value: object, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^deadline must be"):
        AsyncConnector(None, deadline=value)  # type: ignore[arg-type]
