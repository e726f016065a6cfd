"""The wait before the request of a redirect: a Retry-After, a pause or a queue of its host; not the attempt's time.

RFC 9110, section 10.2.3: with a 3xx, Retry-After is the minimum time before the redirected request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from support.logs import Log
from support.sdk import SDK

from otel_connector import (
    AsyncConnector,
    AttemptTimeout,
    DeadlineExceeded,
    HTTPStatusError,
    RedirectRefused,
    RetryPolicy,
)
from otel_connector.testing import Connection, FakeClock, FaultServer, hold, ok, respond, retry_after, slow_headers


@pytest.fixture
def other() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.script("/ok", ok)
        yield server


def queue_time(span: ReadableSpan) -> float:
    return float(str((span.attributes or {}).get("otel_connector.queue.duration", 0)))


def to(location: str, *values: str, status: int = 303) -> Any:
    """A redirect with Retry-After headers."""
    return respond(status, headers=[("Location", location), *(("Retry-After", value) for value in values)])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("values", "waits"),
    [
        ((), []),
        (("5",), [5]),
        (("2.5",), [3]),
        (("0",), []),
        (("soon",), []),
        (("1", "4"), [4]),
        (("Tue, 14 Nov 2023 22:13:27 GMT",), [7]),  # the clock starts at 22:13:20
    ],
)
async def test_a_retry_after_on_a_redirect_is_waited_for(
    values: tuple[str, ...],
    waits: list[float],
    status: int,
    server: FaultServer,
    other: FaultServer,
    session: aiohttp.ClientSession,
    clock: FakeClock,
    log: Log,
) -> None:
    server.script("/x", to(other.url("/ok"), *values, status=status))
    subject = AsyncConnector(log.path, n_tries=1, clock=clock)
    assert await subject.get(session, server.url("/x"), "P") == {"ok": True}
    assert clock.sleeps == waits
    assert log.only().delta_t == sum(waits)


async def test_a_wait_is_counted_by_host_project_and_reason(
    server: FaultServer, other: FaultServer, session: aiohttp.ClientSession, clock: FakeClock, sdk: SDK
) -> None:
    server.script("/x", [retry_after(2), to(other.url("/ok"), "5")])
    subject = AsyncConnector(None, n_tries=2, clock=clock, **sdk.providers)
    assert await subject.get(session, server.url("/x"), "P") == {"ok": True}

    def waits(name: str) -> dict[tuple[Any, ...], float]:
        names = ("server.address", "server.port", "otel_connector.project", "otel_connector.reason")
        return {tuple(point.attributes[each] for each in names): point.value for point in sdk.points(name)}

    assert waits("otel_connector.retries") == {("127.0.0.1", server.port, "P", "status_503"): 1}
    assert waits("otel_connector.retry.delay") == {("127.0.0.1", server.port, "P", "status_503"): 2}
    assert waits("otel_connector.queue.time") == {("127.0.0.1", other.port, "P", "redirect"): 5}


async def test_a_redirect_to_itself_is_polled_with_its_retry_after(
    server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock, sdk: SDK
) -> None:
    """So a server reports a job that is not ready; without the wait it ends as too many redirects."""
    server.script("/job", [*[to("/job", "1")] * 4, ok])
    subject = AsyncConnector(None, n_tries=1, clock=clock, **sdk.providers)
    assert await subject.get(session, server.url("/job"), "P") == {"ok": True}
    assert clock.sleeps == [1, 1, 1, 1]
    assert (sdk.span().attributes or {})["otel_connector.queue.duration"] == 4


@pytest.mark.parametrize("seconds", [121, 10**400])
async def test_a_redirect_with_a_wait_above_the_cap_is_refused(
    seconds: int, server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    server.script("/x", to("/ok", str(seconds)))
    with pytest.raises(RedirectRefused, match="above retry_after_cap"):
        await AsyncConnector(None, clock=clock).get(session, server.url("/x"), "P")
    assert (clock.sleeps, len(server.requests)) == ([], 1)


async def test_a_redirect_with_a_wait_beyond_the_deadline_is_not_waited_for(
    server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    server.script("/x", to("/ok", "10"))
    subject = AsyncConnector(None, clock=clock, deadline=10, retry=RetryPolicy(retry_after_cap=1e6))
    with pytest.raises(DeadlineExceeded, match=r"the redirect asks to wait for 10\.0 s"):
        await subject.get(session, server.url("/x"), "P")
    assert clock.sleeps == []


async def test_a_redirect_waits_for_the_pause_of_its_host(
    server: FaultServer, other: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    other.script("/busy", retry_after(30))
    server.script("/x", to(other.url("/ok")))
    subject = AsyncConnector(None, n_tries=1, clock=clock)
    with pytest.raises(HTTPStatusError):
        await subject.get(session, other.url("/busy"), "P")
    assert await subject.get(session, server.url("/x"), "P") == {"ok": True}
    assert clock.sleeps == [30]


LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "limit": ({"limit": 2}, {}),
    "limit_per_host": ({"limit_per_host": 2}, {}),
    "both": ({"limit": 4, "limit_per_host": 2}, {}),
    "adaptive_concurrency": ({}, {"adaptive_concurrency": 2}),
    "rate_limiter": ({"limit_per_host": 2}, {"rate_limiter": asyncio.Semaphore}),
}


@pytest.mark.parametrize("limit", LIMITS)
async def test_the_queue_for_the_host_of_a_redirect_is_not_the_time_of_the_attempt(
    limit: str, server: FaultServer, other: FaultServer, sdk: SDK, log: Log
) -> None:
    """28 calls of 0.1 s share two connections to that host, with a timeout of 1 s."""
    pool, options = LIMITS[limit]
    if "rate_limiter" in options:
        options = {"rate_limiter": asyncio.Semaphore(8)}
    most = now = 0
    slow = slow_headers(0.1)

    async def step(connection: Connection) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        try:
            await slow.play(connection)
        finally:
            now -= 1

    other.script("/slow", step)
    server.script("/x", to(other.url("/slow")))
    subject = AsyncConnector(log.path, n_tries=1, timeout=1, **options, **sdk.providers)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(**pool)) as session:
        calls = [subject.get(session, server.url("/x"), "P") for _ in range(24)]
        calls += [subject.get(session, other.url("/slow"), "P") for _ in range(4)]
        assert await asyncio.gather(*calls) == [{"ok": True}] * 28
    assert most == 2
    assert max(map(queue_time, sdk.spans.get_finished_spans())) > 1


async def test_the_time_before_and_after_the_wait_counts_towards_the_timeout(
    server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    server.script("/x", to("/never", "3"))
    server.script("/never", slow_headers(30))
    subject = AsyncConnector(None, n_tries=1, timeout=0.2, clock=clock)
    with pytest.raises(AttemptTimeout, match=r"no response within 200 ms|no response within 0\.2 s"):
        await subject.get(session, server.url("/x"), "P")
    assert clock.sleeps == [3]


async def test_a_deadline_ends_the_queue_of_a_redirect(server: FaultServer, other: FaultServer) -> None:
    held = hold()
    other.script("/held", held.step)
    server.script("/x", to(other.url("/ok")))
    subject = AsyncConnector(None, n_tries=1, timeout=0.5, deadline=0.8)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit_per_host=1)) as session:
        holding = asyncio.ensure_future(AsyncConnector(None).get(session, other.url("/held"), "P"))
        await held.arrived
        with pytest.raises(DeadlineExceeded, match="passed in the queue of a redirect"):
            await subject.get(session, server.url("/x"), "P")
        held.release()
        assert await holding == {"ok": True}
        assert await subject.get(session, server.url("/x"), "P") == {"ok": True}, "no slot is left in use"


@pytest.mark.parametrize(
    "options", [{"timeout": aiohttp.ClientTimeout(total=None)}, {"deadline": 10}], ids=["no timeout", "deadline"]
)
async def test_a_redirect_waits_with_other_limits_of_the_attempt(
    options: dict[str, Any], server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    server.script("/x", to("/y", "3"))
    server.script("/y", to("/ok"))  # the same host, which has its slots already
    server.script("/ok", ok)
    subject = AsyncConnector(None, n_tries=1, clock=clock, **options)
    assert await subject.get(session, server.url("/x"), "P") == {"ok": True}
    assert clock.sleeps == [3]
