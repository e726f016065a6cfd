"""`get_many` runs the iterator of the URLs in one task, and its limits hold with every task factory.

A plain loop, `for url in urls: await connector.get(...)`, gives the right values: all steps of the iterator in one task
and one context, and what the iterator sets in the context applies to the calls of the loop's body.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

import aiohttp
import pytest
import uvloop
from support.concurrency import ConcurrencyRecorder
from support.sdk import SDK

from otel_connector import AsyncConnector, Outcome
from otel_connector.testing import FakeClock, FaultServer, ok

TENANT: ContextVar[str] = ContextVar("TENANT", default="unknown")


@pytest.fixture
def server(server: FaultServer) -> FaultServer:
    server.script("/ok", ok)
    return server


def connector(**options: Any) -> AsyncConnector:
    return AsyncConnector(None, **{"n_tries": 1, "clock": FakeClock(), **options})


class Steps:
    """An iterator of URLs that records the task of each of its steps."""

    def __init__(self, urls: Iterable[str]) -> None:
        self.urls = urls
        self.tasks = list[Any]()
        self.ended = False

    def plain(self) -> Generator[str]:
        token = TENANT.set("ours")
        try:
            for url in self.urls:
                self.tasks.append(asyncio.current_task())
                yield url
        finally:
            self.tasks.append(asyncio.current_task())
            TENANT.reset(token)  # a ValueError in any other context
            self.ended = True

    async def asynchronous(self) -> AsyncGenerator[str]:
        with contextlib.closing(self.plain()) as urls:
            for url in urls:
                await asyncio.sleep(0)
                yield url

    async def in_a_scope(self) -> AsyncIterator[str]:
        async with contextlib.AsyncExitStack() as stack:
            if sys.version_info >= (
                3,
                11,
            ):  # like a cancel scope of anyio, it is exited in the task that has entered it
                await stack.enter_async_context(asyncio.timeout(60))
            async with aclosing(self.asynchronous()) as urls:
                async for url in urls:
                    yield url


async def take_all(outcomes: Any) -> None:
    assert len([outcome async for outcome in outcomes]) == 30


async def leave_early(outcomes: Any) -> None:
    async with outcomes:
        await anext(outcomes)
        await anext(outcomes)


async def cancel(outcomes: Any) -> None:
    async def consume() -> None:
        async with outcomes:
            async for _ in outcomes:
                await asyncio.sleep(0)

    task = asyncio.ensure_future(consume())
    for _ in range(30):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def fail_in_the_sink(outcomes: Any) -> None:
    with pytest.raises(OSError, match="disk full"):
        await take_all(outcomes)


@pytest.mark.parametrize("end", [take_all, leave_early, cancel, fail_in_the_sink], ids=lambda end: end.__name__)
@pytest.mark.parametrize("kind", ["plain", "asynchronous", "in_a_scope"])
@pytest.mark.parametrize("kept", [False, True], ids=["", "kept by the caller"])
async def test_one_task_runs_every_step_of_the_iterator(
    kept: bool, kind: str, end: Callable[[Any], Any], server: FaultServer, session: aiohttp.ClientSession
) -> None:
    steps = Steps([server.url("/ok")] * 30)
    urls, seen = getattr(steps, kind)(), list[str]()

    def sink(outcome: Outcome) -> None:
        seen.append(TENANT.get())
        if end is fail_in_the_sink and len(seen) == 5:
            raise OSError("disk full")

    outcomes = connector().get_many(session, urls, "P", max_concurrency=4, sink=sink)
    if not kept:
        del urls
    await end(outcomes)
    assert (steps.ended, len(set(steps.tasks))) == (True, 1)
    assert set(seen) <= {"ours"}, "calls have the context that the iterator has set, as in a plain loop"
    assert TENANT.get() == "unknown"


async def test_calls_are_children_of_a_span_that_the_iterator_holds(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    tracer = sdk.tracer_provider.get_tracer("test")

    def pages() -> Iterator[str]:
        for number in range(3):
            with tracer.start_as_current_span(f"page {number}"):
                yield from [server.url("/ok", page=number)] * 4

    with tracer.start_as_current_span("job"):
        async for _ in connector(**sdk.providers).get_many(session, pages(), "P", max_concurrency=2):
            pass
    spans = sdk.spans.get_finished_spans()
    names = {span.context.span_id: span.name for span in spans if span.context is not None}
    parents = {
        (names[span.parent.span_id], (span.attributes or {})["url.full"])
        for span in spans
        if span.parent and span.name == "GET"
    }
    assert parents == {(f"page {number}", server.url("/ok", page=number)) for number in range(3)}
    assert {names[span.parent.span_id] for span in spans if span.parent and span.name != "GET"} == {"job"}


@pytest.mark.parametrize("end", [take_all, leave_early])
async def test_an_error_of_an_iterator_that_is_closed_is_raised(
    end: Callable[[Any], Any], server: FaultServer, session: aiohttp.ClientSession
) -> None:
    async def urls() -> AsyncIterator[str]:
        try:
            for _ in range(30):
                yield server.url("/ok")
        finally:
            raise OSError("the list cannot be closed")

    with pytest.raises(OSError, match="the list cannot be closed"):
        await end(connector().get_many(session, urls(), "P"))


async def test_an_iterator_that_ignores_its_cancellation_starts_no_further_calls(
    server: FaultServer, session: aiohttp.ClientSession
) -> None:
    async def stubborn() -> AsyncIterator[str]:
        yield server.url("/ok")
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        yield server.url("/ok")

    subject = connector()
    async with subject.get_many(session, stubborn(), "P") as outcomes:
        await anext(outcomes)
    assert subject.stats().calls_started == 1


# Another event loop


@pytest.mark.parametrize("closed", [False, True])
def test_a_run_that_is_continued_in_another_event_loop_raises(closed: bool, server: FaultServer) -> None:
    """Not StopAsyncIteration, which would mean that the outcomes are complete; asyncio's own objects raise it, too."""
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    sessions = list[aiohttp.ClientSession]()

    async def begin() -> Any:
        sessions.append(aiohttp.ClientSession())
        outcomes = connector().get_many(sessions[0], [server.url("/ok")] * 9, "P", max_concurrency=2)
        await anext(outcomes)
        return outcomes

    async def proceed(outcomes: Any) -> None:
        await anext(outcomes)

    async def end(outcomes: Any) -> None:
        await outcomes.aclose()
        await sessions[0].close()

    outcomes = first.run_until_complete(begin())
    if closed:
        first.run_until_complete(end(outcomes))
        first.close()
    with pytest.raises(RuntimeError, match="is bound to a different event loop"):
        second.run_until_complete(proceed(outcomes))
    second.close()
    if not closed:
        first.run_until_complete(end(outcomes))
        first.close()


# Task factories

if sys.version_info >= (3, 12):
    # Not asyncio.eager_task_factory, because that of Python 3.13.0 rejects an argument that uvloop passes
    def eager(loop: Any, coroutine: Any, **options: Any) -> Any:
        return asyncio.Task(coroutine, loop=loop, **{**options, "eager_start": True})

    def lazy(loop: Any, coroutine: Any, **options: Any) -> Any:
        return asyncio.Task(coroutine, loop=loop, **{**options, "eager_start": False})

    FACTORIES: dict[str, Any] = {"eager": eager, "lazy": lazy, "none": None}

    LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
        # Options of the session's connector, of the connector, and of get_many
        "max_concurrency": ({}, {}, {"max_concurrency": 3}),
        "limit": ({"limit": 3}, {}, {}),
        "limit_per_host": ({"limit_per_host": 3}, {}, {}),
        "adaptive_concurrency": ({}, {"adaptive_concurrency": 3}, {}),
        "rate_limiter": ({}, {"rate_limiter": 3}, {}),
    }

    @pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
    @pytest.mark.parametrize("factory", FACTORIES)
    @pytest.mark.parametrize("limit", LIMITS)
    def test_a_limit_holds_with_every_task_factory(
        limit: str, factory: str, run: Callable[[Any], None], server: FaultServer
    ) -> None:
        pool, options, arguments = LIMITS[limit]
        recorder = ConcurrencyRecorder(0.01)
        server.script("/slow", recorder)

        async def main() -> None:
            asyncio.get_running_loop().set_task_factory(FACTORIES[factory])
            limiter = {"rate_limiter": asyncio.Semaphore(3)} if "rate_limiter" in options else {}
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(**pool)) as session:
                subject = connector(**{**options, **limiter})
                outcomes = subject.get_many(session, [server.url("/slow")] * 30, "P", **arguments)
                assert [outcome.error async for outcome in outcomes] == [None] * 30

        run(main())
        assert recorder.most == 3

    @pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
    @pytest.mark.parametrize("factory", FACTORIES)
    @pytest.mark.parametrize("max_concurrency", [1, 100])
    @pytest.mark.parametrize(
        ("url", "count"), [("/ok", 300), ("no url", 1_500)], ids=["calls", "calls that never wait"]
    )
    def test_every_url_has_an_outcome_with_every_task_factory(
        url: str, count: int, max_concurrency: int, factory: str, run: Callable[[Any], None], server: FaultServer
    ) -> None:
        """A chain of eager tasks that start each other ends in a RecursionError."""
        given = [server.url(url) if url.startswith("/") else url] * count
        most = 0

        async def main() -> None:
            asyncio.get_running_loop().set_task_factory(FACTORIES[factory])
            async with aiohttp.ClientSession() as session:
                subject = connector()

                def watch(body: bytes) -> bytes:
                    nonlocal most
                    most = max(most, subject.stats().calls_active)
                    return body

                outcomes = subject.get_many(session, given, "P", max_concurrency=max_concurrency, decode=watch)
                assert len([outcome async for outcome in outcomes]) == count
                assert subject.stats().calls_started == count

        run(main())
        assert most <= max_concurrency
