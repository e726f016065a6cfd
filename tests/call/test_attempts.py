"""Tests of the attempts log: which attempts have a row, what is in it, and that it agrees with the events of the span.

How the file is written (crashes, rotation, full disks ...) is tested in ``tests/csv/test_attempts_file.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
from aiolimiter import AsyncLimiter
from support.logs import Log
from support.outcomes import OUTCOMES
from support.outcomes import connector as outcome_connector
from support.sdk import SDK

from otel_connector import AsyncConnector, ConnectorError, DeadlineExceeded, RetryBudget, RetryPolicy
from otel_connector._record import AttemptRecord, CallRecord
from otel_connector.testing import FakeClock, FaultServer, hold, ok, redirect, reset, respond, retry_after, slow_headers


def connector(log: Log, **options: Any) -> AsyncConnector:
    return AsyncConnector(log.path, **{"n_tries": 3, "attempts": True, "clock": FakeClock(), **options})


def microseconds(*seconds: float | None) -> int:
    """Return a sum of times, exactly."""
    return sum(round((each or 0.0) * 1e6) for each in seconds)


def assert_add_up(attempts: list[AttemptRecord], record: CallRecord) -> None:
    """Check that the attempts of a call are complete: their times are exactly those of the call, without a gap."""
    assert [attempt.call_id for attempt in attempts] == [record.call_id] * len(attempts)
    start = microseconds(record.t)
    for attempt in attempts:
        assert microseconds(attempt.t) == start
        start += microseconds(attempt.duration, attempt.queue, attempt.wait)
    assert start - microseconds(record.t) == microseconds(record.delta_t)


async def test_a_row_per_attempt_that_failed_or_followed_a_failed_one(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", [503, retry_after(7, status=429), ok])
    clock = FakeClock(randoms=0.5)
    await connector(log, clock=clock, retry=RetryPolicy(backoff=2)).get(session, server.url("/x"), "P")

    call = log.only()
    assert log.path.with_suffix(".attempts.csv").read_text() == (
        "call_id,number,t,duration,queue,wait,reason,status,error_type,retry_after\n"
        f"{call.call_id},1,1700000000.000000,0.000000,0.000000,1.000000,status_503,503,503,\n"
        f"{call.call_id},2,1700000001.000000,0.000000,0.000000,7.000000,status_429,429,429,7.000000\n"
        f"{call.call_id},3,1700000008.000000,0.000000,0.000000,,,200,,\n"
    )
    assert_add_up(log.attempts(), call)


@pytest.mark.parametrize("name", OUTCOMES)
async def test_the_rows_of_each_outcome_add_up_and_are_the_events(
    name: str, server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    outcome = OUTCOMES[name]
    server.script("/x", outcome.steps)
    subject = outcome_connector(log, sdk, FakeClock(), attempts=True, timeout=outcome.timeout)
    with suppress(ConnectorError):
        await subject.get(session, server.url("/x"), "P")

    record, attempts, events = log.only(), log.attempts(), sdk.span().events
    if outcome.attempts == 1 and not outcome.error:
        assert (attempts, events) == ([], ())
        return
    assert_add_up(attempts, record)
    assert attempts[-1].number == outcome.attempts
    assert (attempts[-1].status, attempts[-1].error_type) == (outcome.code, sdk.span().attributes.get("error.type", ""))
    failed = [attempt for attempt in attempts if attempt.error_type]
    assert len(failed) == len(attempts) - (not outcome.error)
    assert [dict(event.attributes) for event in events] == list(map(as_event, failed))


def as_event(attempt: AttemptRecord) -> dict[str, Any]:
    """Return the attributes of the event of an attempt."""
    prefix = "otel_connector.attempt."
    about = {
        prefix + name: getattr(attempt, name)
        for name in ("number", "duration", "queue", "wait", "reason", "retry_after")
    }
    about |= {prefix + "start": attempt.t, "http.response.status_code": attempt.status}
    absent = {prefix + "queue"} if not attempt.queue else set[str]()
    return {
        name: value
        for name, value in (about | {"error.type": attempt.error_type}).items()
        if value is not None and name not in absent
    }


async def test_a_call_that_succeeds_at_its_first_attempt_has_no_row_even_if_it_queued(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", [retry_after(5, status=429), ok])
    clock = FakeClock()
    subject = connector(log, clock=clock, n_tries=1, **sdk.providers)
    await subject.get(session, server.url("/x"), "P", default=None)
    await subject.get(session, server.url("/x"), "P")

    first, second = log.records()
    (attempt,) = log.attempts()
    assert (attempt.call_id, attempt.number, attempt.queue, attempt.wait) == (first.call_id, 1, 0.0, None)
    queued = sdk.spans.get_finished_spans()[1].attributes or {}
    assert (second.success, queued["otel_connector.queue.duration"]) == (True, 5.0)


class SlowLimiter:
    """A rate limiter that is entered after 3 s and exited after 0.25 s."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    async def __aenter__(self) -> None:
        await self._clock.sleep(3)

    async def __aexit__(self, *error: object) -> None:
        await self._clock.sleep(0.25)


async def test_the_queue_time_of_a_row_is_that_of_the_next_attempt(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    """Before the first attempt it is not part of the call. The time in which the limiter is exited is waited, too."""
    server.script("/x", [500, 503, ok])
    clock = FakeClock(randoms=0.5)
    subject = connector(
        log, clock=clock, rate_limiter=SlowLimiter(clock), retry=RetryPolicy(backoff=2), **sdk.providers
    )
    await subject.get(session, server.url("/x"), "P")

    attempts = log.attempts()
    shown = [(attempt.duration, attempt.queue, attempt.wait) for attempt in attempts]
    assert shown == [(0.0, 3.0, 1.25), (0.0, 3.0, 2.25), (0.25, 0.0, None)]
    assert_add_up(attempts, log.only())
    assert [dict(event.attributes) for event in sdk.span().events] == list(map(as_event, attempts[:2]))


async def test_the_wait_of_a_redirect_is_queue_time_of_its_attempt(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    away = respond(303, headers=[("Location", "/y"), ("Retry-After", "4")])
    server.script("/x", [away, away])
    server.script("/y", [500, ok])
    clock = FakeClock(randoms=0.5)
    await connector(log, clock=clock, retry=RetryPolicy(backoff=2)).get(session, server.url("/x"), "P")

    attempts = log.attempts()
    assert [(each.duration, each.queue, each.wait) for each in attempts] == [(0.0, 4.0, 1.0), (0.0, 4.0, None)]
    assert_add_up(attempts, log.only())


async def test_with_attempt_spans_the_rows_are_the_same_and_the_span_has_no_events(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", [503, ok])
    await connector(log, attempt_spans=True, **sdk.providers).get(session, server.url("/x"), "P")
    assert [(each.number, each.reason) for each in log.attempts()] == [(1, "status_503"), (2, "")]
    assert [span.events for span in sdk.spans.get_finished_spans()] == [(), (), ()]


# Calls that end during an attempt, a wait or a queue.


async def cancelled(call: Awaitable[Any], when: Awaitable[object]) -> None:
    task = asyncio.ensure_future(call)
    await when
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


@pytest.mark.parametrize(
    ("before", "rows"),
    [([], [(1, "cancelled", "")]), ([503], [(1, "status_503", "503"), (2, "cancelled", "")])],
    ids=["first attempt", "second attempt"],
)
async def test_an_attempt_during_which_the_call_is_cancelled_has_a_row_and_no_event(
    before: list[int],
    rows: list[tuple[int, str, str]],
    server: FaultServer,
    session: aiohttp.ClientSession,
    log: Log,
    sdk: SDK,
) -> None:
    held = hold()
    server.script("/x", [*before, held.step])
    subject = connector(log, **sdk.providers)
    await cancelled(subject.get(session, server.url("/x"), "P"), held.arrived)
    held.release()
    attempts = log.attempts()
    assert [(each.number, each.reason, each.error_type) for each in attempts] == rows
    assert [(each.status, each.wait) for each in attempts[-1:]] == [(None, None)]
    assert_add_up(attempts, log.only())
    assert len(sdk.span().events) == len(before)


class Stopped(BaseException):
    """Ends a call, and is neither an error nor a cancellation."""


async def test_an_attempt_that_another_base_exception_ends_has_its_class_as_reason(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", [503, ok])

    def decode(body: bytes) -> None:
        raise Stopped(len(body))

    with pytest.raises(Stopped):
        await connector(log, **sdk.providers).get(session, server.url("/x"), "P", decode=decode)
    name = f"{Stopped.__module__}.Stopped"
    attempts = log.attempts()
    assert [(each.reason, each.status, each.error_type) for each in attempts] == [
        ("status_503", 503, "503"),
        ("Stopped", 200, name),
    ]
    assert log.only().error.startswith("Stopped: ")
    assert [dict(event.attributes) for event in sdk.span().events] == [as_event(each) for each in attempts]


@pytest.mark.parametrize(
    ("before", "reasons"), [([], []), ([503], ["status_503", ""])], ids=["the first attempt", "a retry"]
)
async def test_a_sink_that_raises_is_not_a_failure_of_the_attempt(
    before: list[int], reasons: list[str], server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", [*before, ok])

    def sink(_: object) -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        async for _ in connector(log).get_many(session, [server.url("/x")], "P", sink=sink):
            pass
    assert log.only().error == "OSError: no room"
    assert [each.reason for each in log.attempts()] == reasons


class Endless(FakeClock):
    """A clock whose sleeps advance the time by 2 s and do not end."""

    def __init__(self) -> None:
        super().__init__()
        self.sleeping = asyncio.Event()

    async def sleep(self, delay: float) -> None:
        self.advance(2)
        self.sleeping.set()
        await asyncio.Event().wait()


async def test_a_call_that_is_cancelled_while_it_waits_has_the_time_that_it_waited(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", 503)
    clock = Endless()
    subject = connector(log, clock=clock, **sdk.providers)
    await cancelled(subject.get(session, server.url("/x"), "P"), clock.sleeping.wait())
    (attempt,) = log.attempts()
    assert (attempt.number, attempt.queue, attempt.wait) == (1, 0.0, 2.0)
    assert_add_up([attempt], log.only())
    assert [dict(event.attributes) for event in sdk.span().events] == [as_event(attempt)]


class Blocked:
    """A rate limiter that admits one attempt."""

    def __init__(self) -> None:
        self.entered, self.queued = 0, asyncio.Event()

    async def __aenter__(self) -> None:
        self.entered += 1
        if self.entered > 1:
            self.queued.set()
            await asyncio.Event().wait()

    async def __aexit__(self, *error: object) -> None:
        """Do nothing."""


@pytest.mark.parametrize("end", ["deadline", "cancelled"])
async def test_a_call_that_ends_in_the_queue_of_its_second_attempt_has_one_row(
    end: str, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", 500)
    limiter = Blocked()
    options = {"clock": None, "rate_limiter": limiter, "retry": RetryPolicy(backoff=0)}
    subject = connector(log, **options, deadline=0.2 if end == "deadline" else None)
    if end == "deadline":
        with pytest.raises(DeadlineExceeded):
            await subject.get(session, server.url("/x"), "P")
    else:
        await cancelled(subject.get(session, server.url("/x"), "P"), limiter.queued.wait())
    (attempt,) = log.attempts()
    assert (attempt.number, attempt.reason, attempt.queue > 0, attempt.wait is None) == (1, "status_500", True, False)
    assert_add_up([attempt], log.only())


async def test_a_refused_retry_has_no_wait(server: FaultServer, session: aiohttp.ClientSession, log: Log) -> None:
    server.script("/x", 500)
    budget = RetryBudget(capacity=1, retry_cost=1, throttling_cost=1)
    await connector(log, retry_budget=budget).get(session, server.url("/x"), "P", default=None)
    assert [each.wait is None for each in log.attempts()] == [False, True]
    assert_add_up(log.attempts(), log.only())


async def test_a_call_without_an_attempt_has_no_row(session: aiohttp.ClientSession, log: Log) -> None:
    await connector(log).get(session, "http://[::1", "P", default=None)
    assert (len(log.records()), log.attempts()) == (1, [])


async def test_an_option_that_aiohttp_rejects_is_a_failed_attempt(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    with pytest.raises(TypeError):
        await connector(log).get(session, server.url("/x"), "P", no_such_option=1)
    (attempt,) = log.attempts()
    assert (attempt.number, attempt.reason, attempt.status, attempt.error_type) == (1, "TypeError", None, "TypeError")


async def test_the_attempt_of_a_call_whose_sink_raises_has_not_failed(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", [503, ok])
    server.script("/y", ok)

    def sink(outcome: object) -> None:
        raise OSError("the disk is full")

    subject = connector(log, **sdk.providers)
    for path in ("/x", "/y"):
        with pytest.raises(OSError, match="the disk is full"):
            async for _ in subject.get_many(session, [server.url(path)], "P", sink=sink):
                pass
    first, second = log.records()
    assert (first.success, second.success) == (False, False)
    assert [(each.call_id, each.reason, each.error_type) for each in log.attempts()] == [
        (first.call_id, "status_503", "503"),
        (first.call_id, "", ""),
    ]


# Many calls with a real clock.


async def test_attempts_of_concurrent_calls_add_up_to_the_microsecond(server: FaultServer, log: Log, sdk: SDK) -> None:
    steps: list[Any] = [503, slow_headers(0.02), reset, retry_after(0, 429), redirect("/ok"), slow_headers(1), 404, ok]
    for number in range(24):
        server.script(f"/{number}", [steps[(number + turn) % len(steps)] for turn in range(4)])
    server.script("/ok", slow_headers(0.005))
    subject = AsyncConnector(
        log.path,
        n_tries=3,
        timeout=0.1,
        retry=RetryPolicy(backoff=0.02),
        rate_limiter=AsyncLimiter(100, 1),
        attempts=True,
        **sdk.providers,
    )
    urls = [server.url(f"/{number}") for number in range(24)]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=2)) as session:
        outcomes = [outcome async for outcome in subject.get_many(session, urls, "P")]

    assert {outcome.error is None for outcome in outcomes} == {True, False}
    by_call = {
        record.call_id: [each for each in log.attempts() if each.call_id == record.call_id] for record in log.records()
    }
    assert sum(map(len, by_call.values())) == len(log.attempts())
    assert any(attempt.queue for attempt in log.attempts())
    spans = [(span.attributes or {}, span.events) for span in sdk.spans.get_finished_spans()]
    events = {
        about["otel_connector.call_id"]: [dict(each.attributes or {}) for each in events] for about, events in spans
    }
    for record in log.records():
        attempts = by_call[record.call_id]
        assert attempts or record.success
        if attempts:
            assert_add_up(attempts, record)
        assert events[record.call_id] == [as_event(attempt) for attempt in attempts if attempt.error_type]
    assert subject.stats().rows_written == 24


# The option.


async def test_without_the_option_there_is_no_file(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", 503)
    await connector(log, attempts=False).get(session, server.url("/x"), "P", default=None)
    assert [path.name for path in log.path.parent.iterdir()] == ["logs.csv"]


def test_attempts_without_a_log_are_an_error() -> None:
    with pytest.raises(ValueError, match="attempts=True needs a logfile"):
        AsyncConnector(None, attempts=True)
