"""Waits after a failed attempt that end by a cancellation, a deadline or an error count like all others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from support.logs import Log
from support.sdk import SDK, points

from otel_connector import AsyncConnector, RetryPolicy
from otel_connector.testing import FakeClock, FaultServer, ok, redirect, retry_after

RETRIED = "otel_connector.retried"


class StuckClock(FakeClock):
    """A clock whose waits end only by a cancellation, after 2 s."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck = asyncio.Event()

    async def sleep(self, delay: float) -> None:
        self.sleeps.append(delay)
        self.advance(2)
        self.stuck.set()
        await asyncio.Future()


class Limiter:
    """A rate limiter whose `at`-th step (enter, exit, enter ...) takes 3 s, and then does what `then` says."""

    def __init__(self, clock: FakeClock, at: int, then: Callable[[], Awaitable[object]]) -> None:
        self.clock, self.at, self.then, self.stuck = clock, at, then, asyncio.Event()
        self.steps = 0

    async def __aenter__(self) -> None:
        self.steps += 1
        if self.steps == self.at:
            self.clock.advance(3)
            self.stuck.set()
            await self.then()

    async def __aexit__(self, *_: object) -> None:
        await self.__aenter__()


async def never() -> None:
    await asyncio.Future()


async def fail() -> None:
    raise RuntimeError("no token")


async def test_a_wait_after_a_redirect_is_that_of_the_host_which_answered(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    with FaultServer() as other:
        server.script("/x", redirect(other.url("/y")))
        other.script("/y", [retry_after(7, 503), ok])
        subject = AsyncConnector(None, clock=FakeClock(), **sdk.providers)
        await subject.get(session, server.url("/x"), "P")
        data: Any = sdk.metrics.get_metrics_data()
        for name, value in (("retries", 1), ("retry.delay", 7)):
            (point,) = points(data, f"otel_connector.{name}")
            assert (point.value, point.attributes["server.port"]) == (value, other.port)


def counted(sdk: SDK, subject: AsyncConnector) -> dict[str, Any]:
    """Return the retries, and the seconds of waits and queues by their reason."""
    found: dict[str, Any] = {"retries": sum(point.value for point in sdk.points("otel_connector.retries"))}
    assert found["retries"] == subject.stats().retries
    for name in ("retry.delay", "queue.time"):
        points = sdk.points(f"otel_connector.{name}")
        found |= {f"{name} {point.attributes['otel_connector.reason']}": point.value for point in points}
    return found


async def assert_counted(
    sdk: SDK, subject: AsyncConnector, log: Log, expected: dict[str, float], *, retried: bool = True
) -> None:
    """Assert what is counted of a call that has ended, and that its attempts log agrees."""
    assert counted(sdk, subject) == {"retries": 0, **expected}
    (call,) = sdk.points("otel_connector.call.duration") or sdk.points("http.client.request.duration")
    assert call.attributes[RETRIED] is retried
    if sdk.points("otel_connector.call.duration"):
        assert [point.attributes[RETRIED] for point in sdk.points("http.client.request.duration")] == [False]
    waits = [attempt.wait or 0 for attempt in log.attempts()]
    assert sum(waits) == sum(seconds for name, seconds in expected.items() if name.startswith("retry.delay"))
    if retried:
        queues = sum(attempt.queue for attempt in log.attempts())
        assert queues == sum(seconds for name, seconds in expected.items() if name.startswith("queue.time"))


@pytest.fixture(params=[False, True], ids=["one span", "attempt spans"])
def options(request: pytest.FixtureRequest, sdk: SDK) -> dict[str, Any]:
    return {"attempt_spans": request.param, "attempts": True, **sdk.providers}


async def cancelled(stuck: asyncio.Event, subject: AsyncConnector, session: aiohttp.ClientSession, url: str) -> None:
    task = asyncio.ensure_future(subject.get(session, url, "P"))
    await stuck.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_call_that_is_cancelled_in_the_wait_has_waited(
    options: dict[str, Any], server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", [retry_after(30), ok])
    clock = StuckClock()
    subject = AsyncConnector(log.path, clock=clock, **options)
    await cancelled(clock.stuck, subject, session, server.url("/x"))
    await assert_counted(sdk, subject, log, {"retry.delay status_503": 2})


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (2, {"retry.delay status_503": 3}),
        (3, {"retry.delay status_503": 0.25, "queue.time status_503": 3, "queue.time first_attempt": 0}),
    ],
    ids=["while it leaves the limiter", "before attempt 2"],
)
async def test_a_call_that_is_cancelled_in_the_limiter_after_a_failure_has_waited(
    at: int,
    expected: dict[str, float],
    options: dict[str, Any],
    server: FaultServer,
    session: aiohttp.ClientSession,
    log: Log,
    sdk: SDK,
) -> None:
    server.script("/x", [503, ok])
    limiter = Limiter(clock := FakeClock(), at, never)
    subject = AsyncConnector(log.path, clock=clock, rate_limiter=limiter, **options)
    await cancelled(limiter.stuck, subject, session, server.url("/x"))
    await assert_counted(sdk, subject, log, {"queue.time first_attempt": 0, **expected})


@pytest.mark.parametrize("deadline", [None, 0.6], ids=["the limiter raises", "the deadline passes"])
async def test_a_queue_before_a_retry_that_ends_by_an_error_counts(
    deadline: float | None,
    options: dict[str, Any],
    server: FaultServer,
    session: aiohttp.ClientSession,
    log: Log,
    sdk: SDK,
) -> None:
    server.script("/x", [503, ok])
    limiter = Limiter(clock := FakeClock(), 3, never if deadline else fail)
    subject = AsyncConnector(log.path, clock=clock, rate_limiter=limiter, deadline=deadline, **options)
    assert await subject.get(session, server.url("/x"), "P", default=None) is None
    await assert_counted(
        sdk,
        subject,
        log,
        {"retry.delay status_503": 0.25, "queue.time status_503": 3, "queue.time first_attempt": 0},
    )


async def test_a_session_that_is_closed_during_the_wait_and_the_queue(
    options: dict[str, Any], server: FaultServer, log: Log, sdk: SDK
) -> None:
    server.script("/x", [503, ok])
    session = aiohttp.ClientSession()
    limiter = Limiter(clock := FakeClock(), 3, session.close)
    subject = AsyncConnector(log.path, clock=clock, rate_limiter=limiter, **options)
    assert await subject.get(session, server.url("/x"), "P", default=None) is None
    assert log.only().error.startswith("SessionClosed")
    await assert_counted(
        sdk,
        subject,
        log,
        {"retry.delay status_503": 0.25, "queue.time status_503": 3, "queue.time first_attempt": 0},
    )


async def test_a_pause_that_would_outlast_the_deadline_is_not_queue_time(
    options: dict[str, Any], server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    """Another call has paused the host while this one waited for its retry."""
    server.script("/x", [500, ok])
    clock = FakeClock()
    subject = AsyncConnector(log.path, clock=clock, deadline=20, retry=RetryPolicy(backoff=2), **options)
    admission = subject._settings.admission
    sleep = clock.sleep

    async def pausing_sleep(delay: float) -> None:
        admission.throttled(f"127.0.0.1:{server.port}", clock.monotonic_ns() / 1e9, 60)
        await sleep(delay)

    clock.sleep = pausing_sleep  # type: ignore[method-assign]
    assert await subject.get(session, server.url("/x"), "P", default=None) is None
    assert log.only().error == "HTTPStatusError: 500 Internal Server Error"
    await assert_counted(sdk, subject, log, {"retry.delay status_500": 1, "queue.time status_500": 0})


@pytest.mark.parametrize(("status", "n_tries"), [(404, 10), (503, 1)])
async def test_a_call_that_does_not_wait_after_its_failure_is_not_retried(
    status: int,
    n_tries: int,
    options: dict[str, Any],
    server: FaultServer,
    session: aiohttp.ClientSession,
    log: Log,
    sdk: SDK,
) -> None:
    server.script("/x", status)
    subject = AsyncConnector(log.path, n_tries=n_tries, clock=FakeClock(), **options)
    assert await subject.get(session, server.url("/x"), "P", default=None) is None
    await assert_counted(sdk, subject, log, {}, retried=False)


async def test_the_delays_of_a_call_are_the_waits_of_its_attempts_log(
    options: dict[str, Any], server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    """The time in which the limiter is exited is waited, too."""
    server.script("/x", [503, 500, ok])
    limiter = Limiter(clock := FakeClock(), 2, lambda: asyncio.sleep(0))
    subject = AsyncConnector(log.path, clock=clock, rate_limiter=limiter, **options)
    await subject.get(session, server.url("/x"), "P")
    waits = {f"retry.delay {each.reason}": each.wait for each in log.attempts() if each.wait}
    assert waits == {"retry.delay status_503": 3.25, "retry.delay status_500": 0.5}
    queues = {f"queue.time {reason}": 0 for reason in ("first_attempt", "status_503", "status_500")}
    assert counted(sdk, subject) == {"retries": 2, **waits, **queues}
