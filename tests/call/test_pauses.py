"""What limits and pauses belong to: a server, an event loop and a process; and how callers return after a pause."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from support import forked
from support.logs import Log
from support.samples import combinations
from support.sdk import SDK

from otel_connector import AsyncConnector, HTTPStatusError, RetryBudget, _after_fork
from otel_connector._call._pacing import AdmissionControl
from otel_connector._telemetry import _metrics
from otel_connector.testing import Connection, FakeClock, FaultServer, ok, retry_after, silent, slow_headers

# After a pause


class RateLimited:
    """A step that accepts a number of requests per second of a clock, and asks the others to wait for a second."""

    def __init__(self, clock: FakeClock, rate: int, *, sliding: bool) -> None:
        self.arrivals = list[float]()
        self._clock = clock
        self._rate = rate
        self._sliding = sliding
        self._accepted = deque[float]()
        self._refusal = retry_after(1, 429)

    async def __call__(self, connection: Connection) -> None:
        now = self._clock.monotonic_ns() / 1e9
        self.arrivals.append(now)
        while self._accepted and self._accepted[0] <= (now - 1 if self._sliding else int(now) - 1e-9):
            self._accepted.popleft()
        if len(self._accepted) < self._rate:
            self._accepted.append(now)
            await ok.play(connection)
        else:
            await self._refusal.play(connection)


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("options", [{}, {"adaptive_concurrency": 100}], ids=["", "adaptive"])
async def test_callers_return_gradually_after_a_pause(
    options: dict[str, Any], sliding: bool, server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    """A server allows 20 requests per second. If all callers return at the same time, most are refused again."""
    limited = RateLimited(clock, 20, sliding=sliding)
    server.script("/x", limited)
    subject = AsyncConnector(None, n_tries=5, clock=clock, **options)
    urls = [server.url("/x", n=number) for number in range(150)]
    outcomes = [outcome async for outcome in subject.get_many(session, urls, "P", max_concurrency=100)]
    assert sum(outcome.error is None for outcome in outcomes) >= 148
    assert len(limited.arrivals) <= 150 + 110, "100 in the first burst, and a few at the end of each second"


@pytest.mark.parametrize("status", [429, 503])
async def test_no_caller_returns_before_the_end_of_a_pause(
    status: int, server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    arrivals = list[float]()

    async def step(connection: Connection) -> None:
        arrivals.append(clock.monotonic_ns() / 1e9)
        await (retry_after(7, status) if len(arrivals) <= 5 else ok).play(connection)

    server.script("/x", step)
    subject = AsyncConnector(None, n_tries=5, clock=clock)
    outcomes = subject.get_many(session, [server.url("/x")] * 40, "P", max_concurrency=10)
    assert [outcome.error async for outcome in outcomes] == [None] * 40
    later = [arrival for arrival in arrivals if arrival > 0]
    assert len(later) >= 30
    assert min(later) >= 7


async def test_a_pause_admits_one_caller_then_twice_as_many_with_each_round(clock: FakeClock) -> None:
    admission = AdmissionControl(clock, None, 0)
    admission.throttled("h:1", 0.0, 10)
    state = admission.state_of("h:1")
    clock.advance(10)
    grown = list[float]()
    for _ in range(7):
        admission.succeeded("h:1", 10.0)
        grown.append(state.limit)
    assert grown == [2, 3, 4, 5, 6, 7, 8], "one more for each response: twice as many with each round"
    clock.advance(1)
    admission.throttled("h:1", 10.5, 10)
    assert (state.limit, state.threshold) == (1, 4)
    admission.throttled("h:1", 10.5, 10)
    assert (state.limit, state.threshold) == (1, 4), "the same burst"
    clock.advance(10)
    for _ in range(7):
        admission.succeeded("h:1", 21.0)
    assert state.limit == pytest.approx(4 + 1 / 4 + 1 / 4.25 + 1 / 4.485 + 1 / 4.708, abs=0.01), (
        "then one with each round"
    )
    admission.throttled("h:1", 22.0, None)
    assert state.limit == pytest.approx(2.46, abs=0.01), "without Retry-After the limit is halved"


async def test_responses_to_requests_from_before_a_pause_admit_no_caller(clock: FakeClock) -> None:
    admission = AdmissionControl(clock, None, 0)
    admission.throttled("h:1", 0.0, 10)
    for _ in range(50):
        admission.succeeded("h:1", 0.0)
    assert admission.state_of("h:1").limit == 1


async def test_a_limit_after_a_pause_ends_when_it_is_not_needed(clock: FakeClock) -> None:
    admission = AdmissionControl(clock, None, 0)
    admission.throttled("h:1", 0.0, 10)
    state = admission.state_of("h:1")
    clock.advance(19)
    admission.succeeded("h:1", 10.0)
    assert state.limit == 2
    clock.advance(1)
    limiter = state.limiter
    assert [limiter.acquire_nowait(), limiter.acquire_nowait()] == [True, True]
    waiting = asyncio.ensure_future(limiter.acquire())
    await asyncio.sleep(0)
    admission.succeeded("h:1", 10.0)
    assert state.limit == 3, "a caller has waited"
    await waiting
    admission.succeeded("h:1", 10.0)
    assert state.limit == 0
    assert admission.host_limiters("h:1") == ()


@pytest.mark.parametrize("step", [404, 500, silent], ids=["404", "500", "timeout"])
async def test_callers_return_after_a_pause_even_if_the_server_fails(
    step: Any, server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    """Otherwise the calls would time out one after the other."""
    server.script("/x", [retry_after(7), step])
    subject = AsyncConnector(None, n_tries=1, timeout=0.1, clock=clock)
    await subject.get(session, server.url("/x"), "P", default=None)
    for limit in (2, 3):
        await subject.get(session, server.url("/x"), "P", default=None)
        assert subject._settings.admission.state_of(f"127.0.0.1:{server.port}").limit == limit


# Unix sockets


class UnixServer:
    """A server on a Unix socket, whose answers are functions."""

    def __init__(self, path: str, *answers: Callable[[], web.Response]) -> None:
        self.path = path
        self.arrivals = 0
        self._answers = answers

    async def answer(self, _: web.BaseRequest) -> web.Response:
        self.arrivals += 1
        return self._answers[min(self.arrivals, len(self._answers)) - 1]()

    async def start(self) -> web.ServerRunner:
        runner = web.ServerRunner(web.Server(self.answer))
        await runner.setup()
        await web.UnixSite(runner, self.path).start()
        return runner


def busy() -> web.Response:
    return web.Response(status=429, headers={"Retry-After": "30"})


def fine() -> web.Response:
    return web.json_response({"ok": True})


def moved() -> web.Response:
    return web.Response(status=302, headers={"Location": "http://other/"})


@pytest.mark.parametrize(
    ("options", "answers"),
    [({}, [busy, fine]), ({"adaptive_concurrency": 4}, [busy, fine]), ({}, [moved, busy, fine])],
    ids=["pause", "limit", "pause after a redirect"],
)
@pytest.mark.parametrize("abstract", [False, True])
async def test_two_unix_sockets_have_a_pause_and_a_limit_each(
    abstract: bool, options: dict[str, Any], answers: list[Any], tmp_path: Path, clock: FakeClock
) -> None:
    """Both are `localhost`."""
    if abstract and type(asyncio.get_running_loop()).__module__.startswith("uvloop"):
        return  # uvloop does not connect to abstract addresses
    first, second = (f"\0otel-{os.getpid()}-{n}" if abstract else str(tmp_path / n) for n in ("one", "two"))
    runners = [await UnixServer(first, *answers).start(), await UnixServer(second, fine).start()]
    subject = AsyncConnector(None, n_tries=1, clock=clock, **options)
    url = "http://localhost/x"
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=first)) as one,
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=second)) as two,
    ):
        with pytest.raises(HTTPStatusError):
            await subject.get(one, url, "P")
        host = "other:80" if moved in answers else "localhost:80"
        assert subject.stats().hosts_paused == (f"{host} ({first})".replace("\0", "@"),)
        assert await subject.get(two, url, "P") == {"ok": True}
        assert clock.sleeps == []
    for runner in runners:
        await runner.cleanup()


async def test_two_unix_sockets_have_slots_of_their_own(tmp_path: Path) -> None:
    """Each server answers only when the other one has a request, too."""
    arrived, both = set[str](), asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.Response:
        arrived.add(request.headers["X-To"])
        if len(arrived) == len(paths):
            both.set()
        await both.wait()
        return fine()

    paths = [str(tmp_path / name) for name in ("one", "two")]
    runners = [web.ServerRunner(web.Server(answer)) for _ in paths]
    subject = AsyncConnector(None, n_tries=1, timeout=5, adaptive_concurrency=1)
    async with contextlib.AsyncExitStack() as stack:
        calls = list[Any]()
        for runner, path in zip(runners, paths, strict=True):
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.UnixSite(runner, path).start()
            pool = aiohttp.UnixConnector(path=path)
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=pool))
            calls.append(subject.get(session, "http://localhost/", "P", headers={"X-To": path}))
        assert await asyncio.gather(*calls) == [{"ok": True}] * 2


async def test_two_unix_sockets_have_a_retry_budget_each(tmp_path: Path, clock: FakeClock, log: Log) -> None:
    def down() -> web.Response:
        return web.Response(status=500)

    paths = [str(tmp_path / name) for name in ("one", "two")]
    runners = [await UnixServer(paths[0], down).start(), await UnixServer(paths[1], down, fine).start()]
    budget = RetryBudget(capacity=20, retry_cost=14)
    subject = AsyncConnector(log.path, n_tries=4, clock=clock, retry_budget=budget)
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=paths[0])) as one,
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=paths[1])) as two,
    ):
        assert await subject.get(one, "http://localhost/", "P", default=None) is None
        assert f"the retry budget of localhost:80 ({paths[0]}) is exhausted" in log.only().error
        assert await subject.get(two, "http://localhost/", "P") == {"ok": True}
    for runner in runners:
        await runner.cleanup()


# Event loops and processes


# Four calls are pending in one event loop, and two of them hold all slots. Then another call is made elsewhere
PROGRAM = """
import asyncio, gc, os, sys
import aiohttp
from otel_connector import AsyncConnector

where, whose, limit, url, log = sys.argv[1:]
subject = AsyncConnector(log, n_tries=1, timeout=5, adaptive_concurrency=2 if limit == "adaptive" else 0)
sessions, tasks = [], []

async def begin():
    pool = aiohttp.TCPConnector(limit=2 if limit == "session" else 100)
    sessions.append(aiohttp.ClientSession(connector=pool))
    tasks.extend(asyncio.create_task(subject.get(sessions[0], url + "/never", "P")) for _ in range(4))
    for _ in range(50):
        await asyncio.sleep(0)
    if where == "fork" and not os.fork():
        another_call()
        os._exit(0)
    if where == "fork":
        os.wait()
        os._exit(0)

async def call():
    async with aiohttp.ClientSession() as own:
        session = sessions[0] if whose == "same session" else own
        return await asyncio.wait_for(subject.get(session, url + "/ok", "P"), 8)

def another_call():
    try:
        print(asyncio.run(call()), flush=True)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)

loop = asyncio.new_event_loop()
loop.run_until_complete(begin())
if where != "stopped loop":
    loop.close()
if where == "deleted tasks":
    tasks.clear()
    gc.collect()
another_call()
os._exit(0)
"""

BOUND = "RuntimeError: session is bound to a different event loop"  # as asyncio's own objects raise


@pytest.mark.parametrize(
    ("where", "whose", "limit"),
    combinations(
        ["closed loop", "deleted tasks", "stopped loop", "fork"],
        ["another session", "same session"],
        ["adaptive", "session", "none"],
    ),
)
def test_pending_calls_of_another_event_loop_or_process_occupy_no_slot(
    where: str, whose: str, limit: str, server: FaultServer, log: Log, tmp_path: Path
) -> None:
    """A wait for them would never end. A session belongs to its event loop."""
    result = BOUND if whose == "same session" else "{'ok': True}"
    server.script("/never", silent)
    server.script("/ok", ok)
    arguments = [where, whose, limit, server.url("/").removesuffix("/"), str(log.path)]
    done = forked.run_python(["-W", "ignore", "-c", PROGRAM, *arguments], tmp_path)
    assert done.stdout.strip() == result, done.stderr
    (record,) = [record for record in log.records() if record.url.endswith("/ok")]
    assert (record.success, record.error) == (result != BOUND, "" if result != BOUND else result)


# Another thread, such as one that exports metrics, holds the locks while the process forks
LOCKED = """
import asyncio, os, sys, threading
import aiohttp
from opentelemetry.sdk.metrics import MeterProvider
from otel_connector import AsyncConnector
from otel_connector._telemetry import _metrics

subject = AsyncConnector(None, n_tries=1, meter_provider=MeterProvider())
held, forked = threading.Event(), threading.Event()

async def call(url):
    async with aiohttp.ClientSession() as session:
        return await subject.get(session, url, "a project that is new")

def hold():
    (instruments,) = _metrics._registry._by_provider.values()
    with _metrics._registry._lock, instruments._lock:
        held.set()
        forked.wait()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
if os.fork():
    forked.set()
    thread.join()
    os.wait()
else:
    print(asyncio.run(call(sys.argv[1])), AsyncConnector(None).stats().calls_started, flush=True)
    os._exit(0)
"""


def test_a_lock_that_another_thread_holds_during_a_fork_is_free_in_the_child(
    server: FaultServer, tmp_path: Path
) -> None:
    server.script("/ok", ok)
    done = forked.run_python(["-W", "ignore", "-c", LOCKED, server.url("/ok")], tmp_path)
    assert done.stdout.strip() == "{'ok': True} 0", done.stderr


async def test_the_locks_of_the_metrics_are_replaced_after_a_fork(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/ok", ok)
    subject = AsyncConnector(None, **sdk.providers)
    before = _metrics._registry._lock
    with before:
        _after_fork._after_fork()
        assert await subject.get(session, server.url("/ok"), "P") == {"ok": True}
        assert _metrics._registry._lock is not before
    assert sdk.points("otel_connector.received")


async def test_a_session_of_another_event_loop_ends_a_get_many(server: FaultServer, clock: FakeClock) -> None:
    """It is an error of all URLs."""

    async def make() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    loop = asyncio.new_event_loop()
    session = await asyncio.to_thread(loop.run_until_complete, make())
    subject = AsyncConnector(None, clock=clock)
    with pytest.raises(RuntimeError, match=r"^session is bound to a different event loop"):
        async for _ in subject.get_many(session, [server.url("/x")] * 3, "P"):
            pass
    await asyncio.to_thread(loop.run_until_complete, session.close())
    await asyncio.to_thread(loop.close)


def test_each_thread_with_an_event_loop_has_the_whole_limit(server: FaultServer) -> None:
    server.script("/x", slow_headers(0.01))
    subject = AsyncConnector(None, n_tries=1, timeout=10, adaptive_concurrency=2)
    results = list[Any]()

    async def calls() -> None:
        async with aiohttp.ClientSession() as session:
            results.extend(await asyncio.gather(*(subject.get(session, server.url("/x"), "P") for _ in range(20))))

    threads = [threading.Thread(target=asyncio.run, args=(calls(),), daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(results) == 80
    assert not any(thread.is_alive() for thread in threads)
