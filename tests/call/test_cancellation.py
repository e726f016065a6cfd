"""Cancellation of a call at each of its awaits in turn, until the call completes before it is cancelled.

`Stepped` runs the coroutine step by step, forwards the futures that it waits for, and counts them. So the cancellation
comes exactly at the k-th suspension, and no await of a call is missed.
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
from otel_connector._call._pacing import _pools
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
REASON = "cancelled by the test"
FEWEST_SUSPENSIONS = 3
"""Suspensions that every call has: connecting, the headers, the body."""


class Stepped:
    """An awaitable that runs a coroutine and cancels its task at one of the coroutine's suspensions.

    Args:
        coroutine: The coroutine to run.
        cancel_at: The number of the suspension, from 1.
        after_wake: Whether to cancel after the task has been woken and before it runs again.
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
                except BaseException as error:  # noqa: BLE001 - every exception is passed to the coroutine
                    waited_for = awaiting.throw(error)
                else:
                    waited_for = awaiting.send(answer)
        except StopIteration as stop:
            return stop.value

    def _cancel(self, task: asyncio.Task[Any], waited_for: Any) -> None:
        if self._after_wake and isinstance(waited_for, asyncio.Future):
            # Added before the task's own callback: it runs when the future is done and the task does not run yet
            waited_for.add_done_callback(lambda _: task.cancel(REASON))
        else:
            # Not immediately: the task starts to wait after this, and must be cancelled while it waits
            asyncio.get_running_loop().call_soon(task.cancel, REASON)


@dataclass
class Scenario:
    """The server's script and the options of one call.

    Attributes:
        script: Paths and their steps.
        options: Further arguments of the connector.
        pool: The connection limit of the session.
        neighbour: Whether a call before it holds the pool's only connection, and a call after it waits for one.
    """

    script: dict[str, Any]
    options: Callable[[], dict[str, Any]] = field(default=dict)
    pool: int = 2
    neighbour: bool = False


class SlowExitLimiter(asyncio.Semaphore):
    """A limiter whose exit awaits, too."""

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            await asyncio.sleep(0)
        finally:
            self.release()


SCENARIOS = {
    "plain": Scenario({"/x": json_body(BODY)}),
    "body in two parts": Scenario({"/x": slow_body(0.01)}),
    "redirect": Scenario({"/x": redirect("/y"), "/y": redirect("/z"), "/z": ok}),
    "retry": Scenario({"/x": [503, respond(502), ok]}),
    "retry after": Scenario({"/x": [retry_after(3), ok]}),
    "attempt spans": Scenario({"/x": [503, ok]}, lambda: {"attempt_spans": True}),
    "limiter": Scenario({"/x": [503, ok]}, lambda: {"rate_limiter": asyncio.Semaphore(1)}),
    "limiter with a slow exit": Scenario({"/x": [503, ok]}, lambda: {"rate_limiter": SlowExitLimiter(1)}),
    "adaptive concurrency": Scenario({"/x": [429, ok]}, lambda: {"adaptive_concurrency": 1}),
    "deadline": Scenario({"/x": [503, ok]}, lambda: {"deadline": 3600}),
    "budget": Scenario({"/x": [503, ok]}, lambda: {"retry_budget": RetryBudget()}),
    "pool of one": Scenario({"/x": [503, ok], "/n": ok}, pool=1, neighbour=True),
    "pool of one and a limiter": Scenario(
        {"/x": [503, ok], "/n": ok}, lambda: {"rate_limiter": asyncio.Semaphore(1), "deadline": 3600}, 1, neighbour=True
    ),
}


@asynccontextmanager
async def neighbours(
    scenario: Scenario, subject: AsyncConnector, session: aiohttp.ClientSession, url: str
) -> AsyncIterator[None]:
    """Make a call before and a call after the one that is cancelled. Both must succeed."""
    if not scenario.neighbour:
        yield
        return
    before = asyncio.ensure_future(subject.get(session, url, "neighbour"))
    await asyncio.sleep(0)  # the first call takes the connection
    behind: list[asyncio.Task[Any]] = []
    asyncio.get_running_loop().call_soon(
        lambda: behind.append(asyncio.ensure_future(subject.get(session, url, "neighbour")))
    )
    yield
    assert [await before, await behind[0]] == [BODY, BODY]


def assert_everything_released(subject: AsyncConnector, connector: aiohttp.BaseConnector) -> None:
    assert not connector._acquired
    pool = _pools[connector]
    assert all(limiter.idle for limiter in [pool._total, *pool._hosts.values()])
    admission = subject._settings.admission
    assert all(host.limiter.idle for host in admission.hosts.values())
    limiter: Any = admission.rate_limiter
    assert limiter is None or limiter._value == 1
    assert subject.stats().calls_active == 0


async def outcome_of(stepped: Stepped) -> Any:
    """Return the value or the CancelledError of the call itself; `asyncio.gather` would create a new one."""
    try:
        return await stepped
    except asyncio.CancelledError as error:
        return error


async def cancelled_at(k: int, scenario: Scenario, server: FaultServer, log: Log, *, after_wake: bool) -> bool:
    """Make the call and cancel it at its k-th suspension. Return whether it had that many suspensions."""
    for path, steps in scenario.script.items():
        server.script(path, steps)
    log.path.unlink(missing_ok=True)
    sdk = SDK()
    subject = AsyncConnector(log.path, n_tries=3, timeout=30, clock=FakeClock(), **sdk.providers, **scenario.options())
    async with leaves_nothing():
        connector = aiohttp.TCPConnector(limit=scenario.pool)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            neighbours(scenario, subject, session, server.url("/n")),
        ):
            stepped = Stepped(subject.get(session, server.url("/x"), "P"), k, after_wake=after_wake)

            outcome = await asyncio.ensure_future(outcome_of(stepped))
            if not scenario.neighbour:
                assert_everything_released(subject, connector)
        assert_everything_released(subject, connector)
    await subject.aclose()
    check_row_and_span(outcome, stepped.suspensions >= k, log, sdk)
    sdk.tracer_provider.shutdown()
    sdk.meter_provider.shutdown()
    return stepped.suspensions >= k


def check_row_and_span(outcome: Any, reached: bool, log: Log, sdk: SDK) -> None:
    """Check that the call has one row and one span, which report the cancellation of a cancelled call."""
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
        assert outcome.args == (REASON,)
        assert not record.success
        assert record.error.startswith("CancelledError")
    else:
        # A cancellation after the last wake-up may find the call complete
        assert outcome == BODY
        assert record.success


@pytest.mark.parametrize("after_wake", [False, True], ids=["waiting", "woken"])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_call_cancelled_at_any_await_releases_everything_and_is_logged(
    name: str, after_wake: bool, server: FaultServer, log: Log
) -> None:
    k = 1
    while await cancelled_at(k, SCENARIOS[name], server, log, after_wake=after_wake):
        k += 1
        assert k < 200, "the call never completes"
    assert k > FEWEST_SUSPENSIONS
