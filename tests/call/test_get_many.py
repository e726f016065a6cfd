"""Tests of `get_many`: one outcome and one row for each URL, bounded memory, no tasks or connections left behind."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from support import processes
from support.forked import Program
from support.logs import Log
from support.loop_and_memory import is_idle, leaves_nothing
from support.sdk import SDK
from support.small_server import small_server
from yarl import URL

import otel_connector
from otel_connector import AsyncConnector, CSVSpanExporter, HTTPStatusError, InvalidURL, Outcome, SessionClosed
from otel_connector._csv._done import CompletedUrls, read_done
from otel_connector._csv._format import HEADER, encode_row
from otel_connector._csv._parts import log_files
from otel_connector.testing import FakeClock, FaultServer, json_body, respond, silent

VALUE = {"answer": 42}


@pytest.fixture
def server(server: FaultServer) -> FaultServer:
    """A server with a path that succeeds, one that is missing, and one that never answers."""
    server.script("/ok", json_body(VALUE))
    server.script("/missing", 404)
    server.script("/never", silent)
    return server


def connector(log: Log | None, **options: Any) -> AsyncConnector:
    return AsyncConnector(None if log is None else log.path, **{"n_tries": 1, "clock": FakeClock(), **options})


def urls(server: FaultServer, count: int, path: str = "/ok") -> list[str]:
    return [server.url(path, n=number) for number in range(count)]


async def as_async(given: list[str], iterations: int = 0) -> AsyncIterator[str]:
    for url in given:
        for _ in range(iterations):
            await asyncio.sleep(0)
        yield url


async def until(condition: Callable[[], object]) -> None:
    """Run the event loop until the condition is met."""
    while not condition():  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0)


async def all_of(outcomes: Any) -> list[Outcome]:
    """Collect all outcomes."""
    return [outcome async for outcome in outcomes]


# Outcomes


async def test_every_url_has_one_outcome_and_one_row(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    given = [*urls(server, 20), server.url("/missing"), "no url", server.url("/ok")]
    subject = connector(log, **sdk.providers)
    found = [outcome async for outcome in subject.get_many(session, given, "P", max_concurrency=4)]
    assert sorted(str(outcome.url) for outcome in found) == sorted(given)
    for outcome in found:
        assert (outcome.error is None) == outcome.record.success == (outcome.value == VALUE)
    errors = {str(outcome.url): outcome.error for outcome in found if outcome.error is not None}
    assert {url: type(error) for url, error in errors.items()} == {
        server.url("/missing"): HTTPStatusError,
        "no url": InvalidURL,
    }
    assert sorted(log.records()) == sorted(rounded(outcome) for outcome in found)
    assert len(sdk.spans.get_finished_spans()) == len(given)
    stats = subject.stats()
    assert (stats.calls_started, stats.calls_succeeded, stats.calls_failed) == (23, 21, 2)


def rounded(outcome: Outcome) -> Any:
    """The record with its times rounded to six decimals, as in the log."""
    record = outcome.record
    return record._replace(t=round(record.t, 6), delta_t=round(record.delta_t, 6))


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_every_kind_of_iterable_is_accepted(run: Callable[[Any], None], ordered: bool, server: FaultServer) -> None:
    given = urls(server, 12)

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            subject = connector(None)
            for iterable in (
                given,
                tuple(map(URL, given)),
                iter(given),
                {}.fromkeys(given),
                as_async(given),
                as_async(given, 3),
            ):
                outcomes = subject.get_many(session, iterable, "P", max_concurrency=5, ordered=ordered)
                found = [str(outcome.url) async for outcome in outcomes]
                assert (found if ordered else sorted(found, key=given.index)) == given
                assert outcomes.skipped == 0

    run(main())


async def test_an_empty_iterable_yields_no_outcome(session: aiohttp.ClientSession) -> None:
    assert [outcome async for outcome in connector(None).get_many(session, [], "P")] == []
    assert [outcome async for outcome in connector(None).get_many(session, as_async([]), "P")] == []


async def test_ordered_outcomes_keep_the_order_of_the_urls_if_the_first_call_is_slow(
    server: FaultServer, session: aiohttp.ClientSession
) -> None:
    server.script("/late", [503, json_body(1)])
    given = [server.url("/late"), *urls(server, 9)]
    subject = connector(None, n_tries=2)
    for ordered in (False, True):
        server.script("/late", [503, json_body(1)])
        outcomes = subject.get_many(session, given, "P", max_concurrency=5, ordered=ordered)
        found = [outcome.url async for outcome in outcomes]
        assert sorted(map(str, found)) == sorted(given)
        if ordered:
            assert found == given


async def test_the_options_apply_to_every_call(server: FaultServer, session: aiohttp.ClientSession, log: Log) -> None:
    server.script("/text", respond(body=b"text"))
    params, headers = {"a": "1"}, {"X-Mine": "2"}
    outcomes = connector(log).get_many(
        session, [server.url("/text")] * 5, "P", decode=bytes.decode, params=params, headers=headers, timeout=3
    )
    assert [outcome.value async for outcome in outcomes] == ["text"] * 5
    assert {record.url for record in log.records()} == {server.url("/text?a=1")}
    assert {request.headers["X-Mine"] for request in server.received("/text")} == {"2"}
    assert (params, headers) == ({"a": "1"}, {"X-Mine": "2"})


async def test_the_spans_of_the_calls_are_children_of_the_current_span(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    tracer = sdk.tracer_provider.get_tracer("test")
    with tracer.start_as_current_span("job") as job:
        async for _ in connector(None, **sdk.providers).get_many(session, urls(server, 6), "P", max_concurrency=2):
            pass
    spans = [span for span in sdk.spans.get_finished_spans() if span.name == "GET"]
    assert [span.parent.span_id for span in spans if span.parent] == [job.get_span_context().span_id] * 6


# Bounds


async def test_max_concurrency_bounds_the_calls_in_flight(server: FaultServer, session: aiohttp.ClientSession) -> None:
    subject, most = connector(None), 0

    def counted_urls() -> Iterator[str]:
        nonlocal most
        for url in urls(server, 60):
            most = max(most, subject.stats().calls_active)
            yield url

    def count(body: bytes) -> bytes:
        nonlocal most
        most = max(most, subject.stats().calls_active)
        return body

    async for _ in subject.get_many(session, counted_urls(), "P", max_concurrency=7, decode=count):
        most = max(most, subject.stats().calls_active)
    assert most == 7


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("awaited", [False, True])
async def test_a_slow_consumer_slows_the_calls_down(
    awaited: bool, ordered: bool, server: FaultServer, session: aiohttp.ClientSession
) -> None:
    """The iterable is endless. The test ends only if no more URLs are taken than there is room for."""
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield server.url("/ok")

    async def endless_async() -> AsyncIterator[str]:
        for url in endless():
            yield url

    subject = connector(None)
    given = endless_async() if awaited else endless()
    async with subject.get_many(session, given, "P", max_concurrency=3, ordered=ordered) as outcomes:
        for delivered in range(1, 20):
            await anext(outcomes)
            await until(lambda: not subject.stats().calls_active)  # then the workers wait for room
            assert taken <= delivered + 6
            assert subject.stats().calls_started <= delivered + 6


async def test_few_urls_start_few_workers(server: FaultServer, session: aiohttp.ClientSession) -> None:
    outcomes = connector(None).get_many(session, urls(server, 3), "P", max_concurrency=10_000)
    most = 0
    async for _ in outcomes:
        most = max(most, len(asyncio.all_tasks()))
    assert most <= 3 + 2


# Leaving the loop early


def leave_by_break(outcomes: Any) -> Any:
    async def leave() -> None:
        async for _ in outcomes:
            break

    return leave()


def leave_by_exception(outcomes: Any) -> Any:
    async def loop() -> None:
        async for _ in outcomes:
            raise LookupError

    async def leave() -> None:
        with pytest.raises(LookupError):
            await loop()

    return leave()


def leave_by_aclose(outcomes: Any) -> Any:
    async def leave() -> None:
        async with aclosing(outcomes):
            await anext(outcomes)
        await outcomes.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(outcomes)

    return leave()


def leave_by_async_with(outcomes: Any) -> Any:
    async def leave() -> None:
        async with outcomes as same:
            assert same is outcomes
            await anext(outcomes)

    return leave()


def leave_by_cancel(outcomes: Any) -> Any:
    async def consume() -> None:
        async for _ in outcomes:
            started.set()

    started = asyncio.Event()

    async def leave() -> None:
        task = asyncio.ensure_future(consume())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    return leave()


def leave_by_timeout(outcomes: Any) -> Any:
    async def leave() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(all_of(outcomes), 0.3)

    return leave()


WAYS_TO_LEAVE = [
    leave_by_break,
    leave_by_exception,
    leave_by_aclose,
    leave_by_async_with,
    leave_by_cancel,
    leave_by_timeout,
]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("leave", WAYS_TO_LEAVE)
async def test_leaving_the_loop_cancels_the_calls_in_flight_and_leaves_nothing_behind(
    leave: Callable[[Any], Any], ordered: bool, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    """Each cancelled call has a row, and its connection is released."""
    subject = connector(log, timeout=30)
    given = itertools.chain(urls(server, 1), urls(server, 20, "/never"))
    async with leaves_nothing():
        await leave(subject.get_many(session, given, "P", max_concurrency=5, ordered=ordered))
        gc.collect()
        await until(lambda: not subject.stats().calls_active)  # after `break` the calls end a moment later
        assert is_idle(session)
        await session.close()
    stats, records = subject.stats(), log.records()
    assert stats.calls_started == stats.rows_written == len(records)
    ended = [record.error.partition(":")[0] for record in records if not record.success]
    assert set(ended) == {"CancelledError"}
    assert 1 <= len(ended) <= 5
    assert sum(record.success for record in records) == 1


async def test_leaving_the_loop_ends_an_async_iterable_that_waits(
    server: FaultServer, session: aiohttp.ClientSession
) -> None:
    ended = False

    async def stuck() -> AsyncIterator[str]:
        nonlocal ended
        try:
            yield server.url("/ok")
            await asyncio.Event().wait()
        finally:
            ended = True

    async with leaves_nothing():
        async with connector(None).get_many(session, stuck(), "P") as outcomes:
            await anext(outcomes)
        await session.close()
    assert ended


async def test_closing_before_the_first_outcome_makes_no_call_and_takes_no_url(
    session: aiohttp.ClientSession, server: FaultServer
) -> None:
    given = iter(urls(server, 3))
    subject = connector(None)
    await subject.get_many(session, given, "P").aclose()
    assert subject.stats().calls_started == 0
    assert len(list(given)) == 3


# Errors that end the run


async def test_an_exception_of_the_iterable_is_raised_after_the_outcomes_of_the_earlier_urls(
    server: FaultServer, log: Log
) -> None:
    def broken() -> Iterator[str]:
        yield from urls(server, 3)
        raise LookupError("no more lines")

    async def broken_async() -> AsyncIterator[str]:
        for url in broken():
            yield url

    for given in (broken(), broken_async()):
        subject = connector(log, overwrite_log=True)
        async with leaves_nothing(), aiohttp.ClientSession() as session:
            outcomes = subject.get_many(session, given, "P", max_concurrency=1)
            found = [await anext(outcomes) for _ in range(3)]
            with pytest.raises(LookupError, match="no more lines"):
                await anext(outcomes)
        assert len(found) == len(log.records()) == 3


@pytest.mark.parametrize("option", [{"heders": {}}, {"headers": {"a": "b\nc"}}])
async def test_an_option_that_aiohttp_rejects_ends_the_run(
    option: dict[str, Any], server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    """Otherwise the call of every URL would fail with the same error."""
    outcomes = connector(log).get_many(session, itertools.repeat(server.url("/ok")), "P", max_concurrency=1, **option)
    with pytest.raises((TypeError, ValueError), match=r"heders|headers"):
        await all_of(outcomes)
    assert len(log.records()) == 1


class StoringSink:
    """A sink that reports which results it has stored."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, float], Any] = {}

    def __call__(self, outcome: Outcome) -> None:
        self.values[outcome.record.call_id, outcome.record.t] = outcome.value

    def holds(self, call_id: str, t: float) -> bool:
        return (call_id, t) in self.values


async def test_resume_repeats_the_calls_whose_results_the_sink_has_lost(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    given, sink = [*urls(server, 4), server.url('/ok?q="a,b"')], StoringSink()
    await all_of(connector(log).get_many(session, given, "P", sink=sink))
    assert await all_of(connector(log).get_many(session, given, "P", sink=sink, resume=True)) == []
    lost = [record for record in log.records() if "q=" in record.url or record.url.endswith("n=2")]
    for record in lost:
        del sink.values[record.call_id, record.t]
    again = await all_of(connector(log).get_many(session, given, "P", sink=sink, resume=True))
    assert {outcome.url for outcome in again} == {given[2], given[4]}
    assert len(sink.values) == 5
    # The results of calls in other logs are stored elsewhere, so `holds` is not called
    others = connector(None).get_many(session, given, "P", sink=StoringSink(), resume=[log.path])
    assert await all_of(others) == []


@pytest.mark.timing
@pytest.mark.parametrize("awaited", [False, True])
async def test_the_sink_runs_before_the_row_is_written_and_its_time_is_not_counted(
    awaited: bool, server: FaultServer, session: aiohttp.ClientSession, log: Log, clock: FakeClock
) -> None:
    kept: list[Outcome] = []

    def keep(outcome: Outcome) -> None:
        clock.advance(5)
        assert outcome.record.call_id not in {record.call_id for record in log.records()}
        kept.append(outcome)

    async def keep_async(outcome: Outcome) -> None:
        await asyncio.sleep(0)
        keep(outcome)

    subject = connector(log, clock=clock)
    given = [*urls(server, 10), server.url("/missing")]
    outcomes = subject.get_many(session, given, "P", sink=keep_async if awaited else keep, max_concurrency=1)
    found = [outcome async for outcome in outcomes]
    assert kept == [outcome for outcome in found if outcome.error is None]
    assert len(kept) == 10
    assert max(record.delta_t for record in log.records()) < 5, "the time of the sink is not counted"


async def test_an_exception_of_the_sink_ends_the_run_and_its_call_is_logged_as_failed(
    server: FaultServer, log: Log, sdk: SDK
) -> None:
    """A result that the sink did not store is not logged as a success."""
    kept: list[Outcome] = []

    async def full(outcome: Outcome) -> None:
        if len(kept) == 3:
            raise OSError(28, "No space left on device")
        kept.append(outcome)

    subject = connector(log, **sdk.providers)
    async with leaves_nothing(), aiohttp.ClientSession() as session:
        with pytest.raises(OSError, match="No space left on device"):
            await all_of(subject.get_many(session, urls(server, 50), "P", sink=full, max_concurrency=1))
    records = log.records()
    assert [record.success for record in records] == [True] * 3 + [False]
    assert records[-1].error == "OSError: [Errno 28] No space left on device"
    assert len(sdk.spans.get_finished_spans()) == 4


async def test_a_call_cancelled_while_its_sink_runs_is_logged_as_cancelled(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    working = asyncio.Event()

    async def slow(outcome: Outcome) -> None:
        working.set()
        await asyncio.Event().wait()

    subject = connector(log)
    outcomes = subject.get_many(session, urls(server, 5), "P", sink=slow, max_concurrency=1)
    first = asyncio.ensure_future(outcomes.__anext__())
    await working.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert log.only().error.startswith("CancelledError")


async def test_a_session_closed_during_the_run_raises_session_closed(server: FaultServer, log: Log) -> None:
    """Otherwise an endless iterable would fail forever."""
    async with aiohttp.ClientSession() as session:
        outcomes = connector(log).get_many(session, itertools.repeat(server.url("/ok")), "P", max_concurrency=1)
        assert (await anext(outcomes)).error is None
        await session.close()
        with pytest.raises(SessionClosed):
            await all_of(outcomes)
    assert log.records()[-1].error.startswith("SessionClosed")


async def test_a_connector_closed_during_the_run_raises_runtime_error(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    subject = connector(log)
    outcomes = subject.get_many(session, itertools.repeat(server.url("/ok")), "P", max_concurrency=2)
    await anext(outcomes)
    await subject.aclose()
    with pytest.raises(RuntimeError, match="the connector is closed"):
        await all_of(outcomes)
    assert subject.stats().calls_started == len(log.records())
    with pytest.raises(RuntimeError, match="the connector is closed"):
        subject.get_many(session, [], "P")


async def test_a_worker_cancelled_from_outside_ends_the_run_as_cancelled(
    server: FaultServer, session: aiohttp.ClientSession
) -> None:
    subject = connector(None, timeout=30)
    before = asyncio.all_tasks()
    outcomes = subject.get_many(session, [server.url("/never")], "P")
    first = asyncio.ensure_future(outcomes.__anext__())
    await until(lambda: subject.stats().calls_active)
    for task in asyncio.all_tasks() - before - {first}:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "one URL": ({"urls": "http://a/"}, TypeError, "urls must be an iterable of URLs, not a single one"),
    "a yarl URL": ({"urls": URL("http://a/")}, TypeError, "urls must be an iterable of URLs, not a single one"),
    "not an iterable": ({"urls": 5}, TypeError, "urls must be an iterable or an async iterable"),
    "zero concurrency": ({"max_concurrency": 0}, ValueError, "max_concurrency must be at least 1"),
    "fractional concurrency": ({"max_concurrency": 0.5}, TypeError, "max_concurrency must be an int"),
    "ordered": ({"ordered": 1}, TypeError, "ordered must be True or False"),
    "sink": ({"sink": 1}, TypeError, "sink must be callable"),
    "project": ({"project_name": None}, TypeError, "project_name must be a str"),
    "session": ({"session": None}, TypeError, "session must be an aiohttp.ClientSession"),
    "decode": ({"decode": 1}, TypeError, "decode must be callable"),
    "an option": ({"raise_for_status": True}, TypeError, "raise_for_status is not an option of get"),
    "default": ({"default": None}, TypeError, "default is not an option of get_many: a failed call is an outcome"),
    "headers": ({"headers": {"a": 1}}, TypeError, "headers: a must be a str"),
    "timeout": ({"timeout": 0}, ValueError, "timeout must be more than 0"),
    "resume without a log": (
        {"resume": True},
        ValueError,
        "resume=True reads the log, and this connector has none",
    ),
    "resume by one path": ({"resume": "logs.csv"}, TypeError, "resume must be True, False, or paths"),
    "resume by numbers": ({"resume": [1]}, TypeError, "resume must be True, False, or paths"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_argument_is_named(name: str, session: aiohttp.ClientSession) -> None:
    changed, kind, message = BAD[name]
    arguments = {"session": session, "urls": [], "project_name": "P", **changed}
    with pytest.raises(kind, match=re.escape(message)):
        connector(None).get_many(**arguments)


# Resume


async def test_resume_skips_the_urls_with_a_successful_call_of_the_same_project(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    given: Any = [*urls(server, 5), server.url("/missing"), "no url", None]
    for number in range(3):
        subject = connector(log)
        outcomes = subject.get_many(session, given, "P", ordered=True, resume=number > 0)
        found = [outcome.url async for outcome in outcomes]
        assert found == given or number > 0
        assert outcomes.skipped == (5 if number else 0)
        if number:
            assert set(found) == set(given[5:])
    others = connector(log).get_many(session, given[:5], "Another", resume=True)
    assert len([outcome async for outcome in others]) == 5


async def test_resume_reads_all_parts_of_a_rotated_log_and_the_given_logs(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, tmp_path: Path
) -> None:
    exporter = CSVSpanExporter(log.path, rotate_rows=2)
    given = urls(server, 7)
    async for _ in AsyncConnector(exporter).get_many(session, given, "P", max_concurrency=1):
        pass
    parts = await asyncio.to_thread(log_files, [str(log.path)])
    assert [Path(part).name for part in parts] == [
        "logs.part-000001.csv",
        "logs.part-000002.csv",
        "logs.part-000003.csv",
        "logs.csv",
    ]
    outcomes = connector(log).get_many(session, urls(server, 8), "P", resume=True)
    assert [outcome.url async for outcome in outcomes] == urls(server, 8)[7:]
    # Logs given by path, with another log of the connector and without one
    elsewhere = Log(tmp_path / "other.csv")
    for subject in (connector(elsewhere), connector(None)):
        outcomes = subject.get_many(session, given, "P", resume=[*parts[:-1], log.path])
        assert [outcome.url async for outcome in outcomes] == []
        assert outcomes.skipped == 7


async def test_resume_compares_urls_as_they_are_logged(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    """Params are included and secrets are redacted: a run with a new token continues the previous one."""
    long = server.url("/ok?q=" + "a" * 9_000)
    first = [server.url("/ok?id=1&token=one"), server.url('/ok?id=2,"b"'), long]
    assert len([outcome async for outcome in connector(log).get_many(session, first, "P", params={"x": 1})]) == 3
    again = [server.url("/ok?id=1&token=two"), server.url('/ok?id=2,"b"'), server.url("/ok?id=1&token=two")]
    outcomes = connector(log).get_many(session, [*again, long], "P", params={"x": 1}, resume=True)
    # A very long URL is truncated in the log, so it is unknown whether it is the same
    assert [outcome.url async for outcome in outcomes] == [long]
    outcomes = connector(log).get_many(session, again, "P", params={"x": 2}, resume=True)
    assert len([outcome async for outcome in outcomes]) == 3


async def test_skipping_many_urls_does_not_block_the_event_loop(session: aiohttp.ClientSession, log: Log) -> None:
    record = otel_connector.CallRecord("0" * 32 + "-" + "0" * 16, "P", 0.0, 0.0, "http://a/", "", 0, 200, True, "")
    log.path.write_bytes(HEADER + encode_row(record))
    outcomes = connector(log).get_many(session, itertools.repeat("http://a/", 5_000), "P", resume=True)
    iterations = 0

    async def count() -> None:
        nonlocal iterations
        while True:
            iterations += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    assert [outcome async for outcome in outcomes] == []
    counting.cancel()
    assert outcomes.skipped == 5_000
    assert iterations > 5


def row(number: int, **changed: Any) -> bytes:
    record = otel_connector.CallRecord(
        f"{number:032x}-{number:016x}", "P", 1.5, 0.5, f"http://a/{number}", "", 0, 200, True, ""
    )
    return encode_row(record._replace(**changed))


def read_completed(path: Path, content: bytes, project: str = "P") -> tuple[set[int], CompletedUrls]:
    path.write_bytes(content)
    done = read_done(None, [str(path)], project)
    return {number for number in range(20) if f"http://a/{number}" in done}, done


def test_only_successful_rows_of_the_project_count_as_completed(tmp_path: Path) -> None:
    content = HEADER + row(1) + row(2, success=False, error="X: a, b") + row(3, project="Q") + row(4, error='odd, "x"')
    found, done = read_completed(tmp_path / "logs.csv", content)
    assert found == {1, 4}
    assert (done.rows, done.of_project, len(done)) == (4, 3, 2)


@pytest.mark.parametrize("project", ["a,b", '"', "=1+1", "'=1", "\n\x00", "é\u202e", "p" * 5_000, ""])
def test_a_project_with_special_characters_is_found_in_the_log(project: str, tmp_path: Path) -> None:
    assert read_completed(tmp_path / "logs.csv", HEADER + row(1, project=project) + row(2), project)[0] == {1}


def test_damaged_lines_are_skipped(tmp_path: Path) -> None:
    damaged = [
        b"\n",
        b"a,b\n",
        b'"\n',
        b"\xff\xfe\n",
        bytes(3_000) + b"\n",
        b"x" * 3_000_000 + b"," * 9 + b"\n",
        HEADER,
    ]
    content = HEADER + b"".join(row(number) + line for number, line in enumerate(damaged)) + row(18) + row(19)[:-1]
    assert read_completed(tmp_path / "logs.csv", content)[0] == {*range(len(damaged)), 18}


def test_an_empty_log_has_no_completed_urls_and_a_file_that_is_not_a_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    assert read_completed(path, b"")[0] == set()
    assert read_completed(path, HEADER[:20])[0] == set()
    with pytest.raises(ValueError, match=r"other.csv: not a log: its first line is 'url,when', not the header"):
        read_completed(path, b"url,when\nhttp://a/1,now\n")
    with pytest.raises(FileNotFoundError, match=r"none.csv"):
        read_done(None, [str(tmp_path / "none.csv")], "P")
    with pytest.raises(IsADirectoryError):
        read_done(None, [str(tmp_path)], "P")


async def test_resume_from_a_file_that_is_not_a_log_raises_value_error(
    server: FaultServer, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    other = tmp_path / "other.csv"
    other.write_text("url,when\n")
    with pytest.raises(ValueError, match=r"other.csv: not a log"):
        await anext(connector(None).get_many(session, urls(server, 1), "P", resume=[other]))


# Memory

MEMORY = """
import asyncio, json, sys
import aiohttp
from support.loop_and_memory import resident
from otel_connector import AsyncConnector

async def main(port, count):
    connector, early = AsyncConnector(None), 0
    urls = (f"http://127.0.0.1:{port}/ok/{number}" for number in range(count))
    async with aiohttp.ClientSession() as session:
        done = 0
        async for _ in connector.get_many(session, urls, "P", max_concurrency=50):
            done += 1
            if done == min(10_000, count // 2):
                early = resident("VmRSS")
    print(json.dumps([done, early, resident("VmRSS")]))

asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("count", [3_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_memory_does_not_grow_with_the_number_of_urls(count: int) -> None:
    with small_server() as port:
        command, environment = ["-c", MEMORY, str(port), str(count)], processes.clean_environment()
        with Program(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            out, _ = process.communicate(timeout=1_800)
    calls, early, late = json.loads(out)
    assert calls == count
    assert late - early < 10 * 2**20, f"{(late - early) / 2**20:.1f} MiB"
