"""A call that is cancelled at any of its awaits, one after the other, until it completes untouched.

The call is stepped by hand: `Stepped` hands on what its coroutine waits for, and counts. So the cancellation is sure to
come at the k-th suspension and not a moment before or after, and no await of a call can be forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from opentelemetry.trace import StatusCode
from support.logs import Log
from support.loop_and_memory import leaves_nothing
from support.sdk import SDK

from otel_connector import AsyncConnector, RetryBudget
from otel_connector._pacing import _pools
from otel_connector.testing import (
    FakeClock,
    FaultServer,
    json_body,
    ok,
    redirect,
    respond,
    retry_after,
    slow_body,
)

BODY = {"ok": True}
FEW = 3
"""Suspensions that every call has at least: connecting, the headers, the body."""


class Stepped:
    """An awaitable that runs a coroutine, and has its task cancelled at one of the coroutine's suspensions.

    Args:
        coroutine: What to run.
        cancel_at: Which suspension, from 1.
        after_wake: True cancels when the task has been woken already, but has not run again yet.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], cancel_at: int, *, after_wake: bool) -> None:
        self.suspensions = 0
        self._coroutine = coroutine
        self._cancel_at = cancel_at
        self._after_wake = after_wake

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        awaiting = self._coroutine.__await__()
        try:
            waited_for = next(awaiting)
            while True:
                self.suspensions += 1
                if self.suspensions == self._cancel_at:
                    self._cancel(task, waited_for)
                try:
                    answer = yield waited_for
                except BaseException as error:  # noqa: BLE001 - whatever is thrown in belongs to the coroutine
                    waited_for = awaiting.throw(error)
                else:
                    waited_for = awaiting.send(answer)
        except StopIteration as stop:
            return stop.value

    def _cancel(self, task: asyncio.Task[Any], waited_for: Any) -> None:
        if self._after_wake and isinstance(waited_for, asyncio.Future):
            # Before the task's own callback: when this runs, the future is done and the task not yet awake
            waited_for.add_done_callback(lambda _: task.cancel("enough"))
        else:
            # Not at once: a task is cancelled while it waits, and it begins to wait after this
            asyncio.get_running_loop().call_soon(task.cancel, "enough")


@dataclass
class Scene:
    """What one call meets.

    Attributes:
        script: Paths and their steps.
        options: Further arguments of the connector.
        pool: How many connections the session has.
        neighbour: Whether another call has the pool's only connection first, and another waits behind.
    """

    script: dict[str, Any]
    options: Callable[[], dict[str, Any]] = field(default=dict)
    pool: int = 2
    neighbour: bool = False


class Gate(asyncio.Semaphore):
    """A limiter whose way out is an await, too."""

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            await asyncio.sleep(0)
        finally:
            self.release()


SCENES = {
    "plain": Scene({"/x": json_body(BODY)}),
    "body in two parts": Scene({"/x": slow_body(0.01)}),
    "redirect": Scene({"/x": redirect("/y"), "/y": redirect("/z"), "/z": ok}),
    "retry": Scene({"/x": [503, respond(502), ok]}),
    "retry after": Scene({"/x": [retry_after(3), ok]}),
    "attempt spans": Scene({"/x": [503, ok]}, lambda: {"attempt_spans": True}),
    "limiter": Scene({"/x": [503, ok]}, lambda: {"rate_limiter": asyncio.Semaphore(1)}),
    "limiter that is slow to leave": Scene({"/x": [503, ok]}, lambda: {"rate_limiter": Gate(1)}),
    "adaptive concurrency": Scene({"/x": [429, ok]}, lambda: {"adaptive_concurrency": 1}),
    "deadline": Scene({"/x": [503, ok]}, lambda: {"deadline": 3600}),
    "budget": Scene({"/x": [503, ok]}, lambda: {"retry_budget": RetryBudget()}),
    "pool of one": Scene({"/x": [503, ok], "/n": ok}, pool=1, neighbour=True),
    "pool of one and a limiter": Scene(
        {"/x": [503, ok], "/n": ok}, lambda: {"rate_limiter": asyncio.Semaphore(1), "deadline": 3600}, 1, neighbour=True
    ),
}


@asynccontextmanager
async def neighbours(
    scene: Scene, subject: AsyncConnector, session: aiohttp.ClientSession, url: str
) -> AsyncIterator[None]:
    """Have a call before and a call behind the one that is cancelled; both must come through."""
    if not scene.neighbour:
        yield
        return
    before = asyncio.ensure_future(subject.get(session, url, "neighbour"))
    await asyncio.sleep(0)  # it has the connection now
    behind: list[asyncio.Task[Any]] = []
    asyncio.get_running_loop().call_soon(
        lambda: behind.append(asyncio.ensure_future(subject.get(session, url, "neighbour")))
    )
    yield
    assert [await before, await behind[0]] == [BODY, BODY]


def everything_is_free(subject: AsyncConnector, connector: aiohttp.BaseConnector) -> None:
    assert not connector._acquired
    pool = _pools[connector]
    assert all(slots.idle for slots in [pool._all, *pool._hosts.values()])
    pacing = subject._terms.pacing
    assert all(host.slots.idle for host in pacing._hosts.values())
    limiter: Any = pacing._rate_limiter
    assert limiter is None or limiter._value == 1
    assert subject.stats().calls_active == 0


async def outcome_of(stepped: Stepped) -> Any:
    """Return the call's value, or the cancellation as it comes out of it: `asyncio.gather` would make a new one."""
    try:
        return await stepped
    except asyncio.CancelledError as error:
        return error


async def cancelled_at(k: int, scene: Scene, server: FaultServer, log: Log, *, after_wake: bool) -> bool:
    """Make the call and cancel it at its k-th suspension; return whether it had that many."""
    for path, steps in scene.script.items():
        server.script(path, steps)
    log.path.unlink(missing_ok=True)
    sdk = SDK()
    subject = AsyncConnector(log.path, n_tries=3, timeout=30, clock=FakeClock(), **sdk.providers, **scene.options())
    async with leaves_nothing():
        connector = aiohttp.TCPConnector(limit=scene.pool)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            neighbours(scene, subject, session, server.url("/n")),
        ):
            stepped = Stepped(subject.get(session, server.url("/x"), "P"), k, after_wake=after_wake)

            outcome = await asyncio.ensure_future(outcome_of(stepped))
            if not scene.neighbour:
                everything_is_free(subject, connector)
        everything_is_free(subject, connector)
    await subject.aclose()
    check(outcome, stepped.suspensions >= k, log, sdk)
    sdk.tracer_provider.shutdown()
    sdk.meter_provider.shutdown()
    return stepped.suspensions >= k


def check(outcome: Any, reached: bool, log: Log, sdk: SDK) -> None:
    """One row and one span, which tell of the cancellation if it came."""
    (record,) = [record for record in log.records() if record.project == "P"]
    spans = [
        span
        for span in sdk.spans.get_finished_spans()
        if span.attributes and "otel_connector.call_id" in span.attributes
    ]
    (span,) = [span for span in spans if (span.attributes or {})["otel_connector.project"] == "P"]
    assert span.status.status_code is StatusCode.UNSET
    if isinstance(outcome, asyncio.CancelledError):
        assert type(outcome) is asyncio.CancelledError
        assert outcome.args == ("enough",)
        assert not record.success
        assert record.error.startswith("CancelledError")
    else:
        # One that comes with the last wake-up of all may find the call complete
        assert outcome == BODY
        assert record.success


@pytest.mark.parametrize("after_wake", [False, True], ids=["waiting", "woken"])
@pytest.mark.parametrize("name", SCENES)
async def test_every_await(name: str, after_wake: bool, server: FaultServer, log: Log) -> None:
    k = 1
    while await cancelled_at(k, SCENES[name], server, log, after_wake=after_wake):
        k += 1
        assert k < 200, "the call never completes"
    assert k > FEW
