"""The log lines of calls, the limit of their number, and the `on_retry` hook."""

from __future__ import annotations

import asyncio
import logging

import aiohttp
import pytest
from support.logs import Log
from support.sdk import SDK

from otel_connector import AsyncConnector, Attempt, CallRecord, HTTPStatusError, RetryPolicy
from otel_connector._call import _call_log
from otel_connector._call._call_log import CallLogger
from otel_connector.testing import FakeClock, FaultServer, hold, ok, retry_after, truncated

ATTEMPT = Attempt(
    call_id="c",
    project="P",
    url="http://h/x",
    number=2,
    duration=0.1,
    status=503,
    error_type="503",
    error="HTTPStatusError: 503",
    reason="status_503",
    wait=0.25,
)
RECORD = CallRecord(
    call_id="c",
    project="P",
    t=0.0,
    delta_t=1.5,
    url="http://h/x",
    redirect_url="",
    response_size=0,
    response_code=None,
    success=False,
    error="ConnectFailed: refused",
)


@pytest.fixture(autouse=True)
def caplog(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The captured log, from level INFO."""
    caplog.set_level(logging.INFO, "otel_connector")
    return caplog


def test_a_retry_is_logged_as_info_and_a_failed_call_as_warning(
    caplog: pytest.LogCaptureFixture, clock: FakeClock
) -> None:
    call_logger = CallLogger(None, clock.monotonic_ns)
    call_logger.retrying("h:80", ATTEMPT)
    call_logger.failed("h:80", RECORD, 3)
    call_logger.failed("h:80", RECORD, 1)
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "otel_connector.calls",
            "INFO",
            "GET http://h/x: attempt 2 failed, next in 250 ms: HTTPStatusError: 503 (call_id c)",
        ),
        (
            "otel_connector.calls",
            "WARNING",
            "GET http://h/x failed after 3 attempts in 1.50 s: ConnectFailed: refused (call_id c)",
        ),
        (
            "otel_connector.calls",
            "WARNING",
            "GET http://h/x failed after 1 attempt in 1.50 s: ConnectFailed: refused (call_id c)",
        ),
    ]


def test_at_most_five_lines_a_minute_are_logged_for_each_host_and_level(
    caplog: pytest.LogCaptureFixture, clock: FakeClock
) -> None:
    call_logger = CallLogger(None, clock.monotonic_ns)

    def log_failures() -> list[str]:
        caplog.clear()
        for host in ("dead:80", "other:80"):
            for _ in range(100 if host == "dead:80" else 2):
                call_logger.retrying(host, ATTEMPT)
                call_logger.failed(host, RECORD, 3)
        return caplog.messages

    lines = log_failures()
    assert len(lines) == 2 * 5 + 2 * 2
    assert not [line for line in lines if "similar messages" in line]
    clock.advance(59.9)
    assert len(log_failures()) == 2 * 2, "the minute is not over"
    clock.advance(0.1)
    lines = log_failures()
    assert len(lines) == 2 * 5 + 2 * 2
    assert [line.partition("; ")[2] for line in lines if ";" in line] == ["195 similar messages were not logged"] * 2
    clock.advance(60)
    assert [line.partition("; ")[2] for line in log_failures() if ";" in line] == [
        "95 similar messages were not logged"
    ] * 2


def test_lines_below_the_log_level_are_not_counted(caplog: pytest.LogCaptureFixture, clock: FakeClock) -> None:
    call_logger = CallLogger(None, clock.monotonic_ns)
    caplog.set_level(logging.WARNING, "otel_connector")
    for _ in range(10):
        call_logger.retrying("h:80", ATTEMPT)
    assert call_logger._throttles == {}
    caplog.set_level(logging.INFO, "otel_connector")
    call_logger.retrying("h:80", ATTEMPT)
    assert len(caplog.records) == 1


def test_the_number_of_lines_is_bounded_for_many_unreachable_hosts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, clock: FakeClock
) -> None:
    monkeypatch.setattr(_call_log, "_HOSTS", 3)
    call_logger = CallLogger(None, clock.monotonic_ns)
    for number in range(8):
        call_logger.failed(f"{number}:80", RECORD, 1)
    assert len(caplog.messages) == 3 + 5, "the hosts beyond the limit share the lines of one host"
    for _ in range(3):
        clock.advance(61)
        call_logger.failed("8:80", RECORD, 1)
    assert [host for host, _ in call_logger._throttles] == ["1:80", "2:80", "", "8:80"], (
        "hosts whose minute is over are forgotten"
    )


async def test_the_hook_gets_every_attempt_that_is_retried(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK, caplog: pytest.LogCaptureFixture
) -> None:
    server.script("/x", [503, retry_after(7, 429), truncated(16, 64), ok])
    seen = list[Attempt]()
    clock = FakeClock()
    subject = AsyncConnector(log.path, on_retry=seen.append, clock=clock, **sdk.providers)
    assert await subject.get(session, server.url("/x", token="hunter2"), "P") == {"ok": True}
    assert [(each.number, each.reason, each.status, each.error_type, each.wait) for each in seen] == [
        (1, "status_503", 503, "503", 0.25),
        (2, "status_429", 429, "429", 7.0),
        (3, "truncated", 200, "otel_connector.BodyTruncated", 1.0),
    ]
    record = log.only()
    assert {(each.call_id, each.project, each.url) for each in seen} == {(record.call_id, "P", record.url)}
    assert record.url == server.url("/x", token="REDACTED")
    assert [each.duration for each in seen] == [0, 0, 0], "measured by the clock of the connector, without the waits"
    assert [entry.levelname for entry in caplog.records] == ["INFO"] * 3
    assert caplog.messages[1] == (
        f"GET {record.url}: attempt 2 failed, next in 7.00 s: {seen[1].error} (call_id {record.call_id})"
    )
    assert "hunter2" not in caplog.text


async def test_the_last_attempt_is_logged_and_not_passed_to_the_hook(
    server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    server.script("/x", 503)
    seen = list[Attempt]()
    subject = AsyncConnector(None, n_tries=3, on_retry=seen.append, clock=clock)
    with pytest.raises(HTTPStatusError) as caught:
        await subject.get(session, server.url("/x"), "P")
    assert [each.number for each in seen] == [1, 2]
    assert [entry.levelname for entry in caplog.records] == ["INFO", "INFO", "WARNING"]
    assert caplog.messages[2] == (
        f"GET {server.url('/x')} failed after 3 attempts in 750 ms: HTTPStatusError: {caught.value} "
        f"(call_id {caught.value.call_id})"
    )


@pytest.mark.parametrize("kind", [RuntimeError, asyncio.CancelledError])
async def test_an_exception_of_the_hook_is_logged_and_the_call_continues(
    kind: type[BaseException],
    server: FaultServer,
    session: aiohttp.ClientSession,
    log: Log,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def raising_hook(attempt: Attempt) -> None:
        raise kind("hook")

    server.script("/x", [503, 503, ok])
    subject = AsyncConnector(log.path, on_retry=raising_hook, clock=clock)
    assert await subject.get(session, server.url("/x"), "P") == {"ok": True}
    assert log.only().success
    warned = [entry for entry in caplog.records if entry.levelno == logging.WARNING]
    assert [entry.getMessage() for entry in warned] == ["on_retry raised; the call continues"] * 2
    assert warned[0].exc_info is not None
    assert isinstance(warned[0].exc_info[1], kind)


async def test_system_exit_of_the_hook_ends_the_call(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, clock: FakeClock
) -> None:
    def exiting_hook(attempt: Attempt) -> None:
        raise SystemExit(3)

    server.script("/x", [503, ok])
    with pytest.raises(SystemExit):
        await AsyncConnector(log.path, on_retry=exiting_hook, clock=clock).get(session, server.url("/x"), "P")
    assert log.only().error == "SystemExit: 3"


def test_exceptions_of_the_hook_are_logged_at_most_five_times_a_minute(
    caplog: pytest.LogCaptureFixture, clock: FakeClock
) -> None:
    def raising_hook(attempt: Attempt) -> None:
        raise RuntimeError("hook")

    call_logger = CallLogger(raising_hook, clock.monotonic_ns)
    for _ in range(20):
        call_logger.retrying("h:80", ATTEMPT)
    assert len([line for line in caplog.messages if line.startswith("on_retry raised")]) == 5
    clock.advance(60)
    call_logger.retrying("h:80", ATTEMPT)
    assert caplog.messages[-1] == "on_retry raised; the call continues; 15 similar messages were not logged"


async def test_a_cancelled_call_is_not_logged_as_a_failure(
    server: FaultServer, session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    held = hold()
    server.script("/x", held.step)
    call = asyncio.create_task(AsyncConnector(None).get(session, server.url("/x"), "P"))
    await held.arrived
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert caplog.records == []


async def test_the_number_of_lines_is_bounded_for_an_unreachable_host(
    session: aiohttp.ClientSession, log: Log, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultServer() as server:
        url = server.url("/x")
    subject = AsyncConnector(log.path, n_tries=2, clock=clock, retry=RetryPolicy(backoff=0))
    for _ in range(50):
        await subject.get(session, url, "P", default=None)
    assert len(log.records()) == 50
    assert [entry.levelname for entry in caplog.records].count("INFO") == 5
    assert [entry.levelname for entry in caplog.records].count("WARNING") == 5


@pytest.mark.parametrize("value", [5, "print", [print]])
def test_a_hook_that_is_not_callable_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"^on_retry must be callable, not "):
        AsyncConnector(None, on_retry=value)  # type: ignore[arg-type]


class AsyncHook:
    """A hook whose `__call__` is a coroutine function."""

    async def __call__(self, attempt: Attempt) -> None:
        pass


def test_an_asynchronous_hook_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^on_retry must be a plain function, not a coroutine function"):
        AsyncConnector(None, on_retry=AsyncHook())
