"""`AsyncConnector`, the one thing most people use: its parameters, its life, and where its rows go.

The call itself is in ``_call``. Knows nothing of files and exporters' insides.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from otel_connector._arguments import (
    check_bool,
    check_call,
    check_provider,
    checked_clock,
    checked_deadline,
    checked_hook,
    checked_instance,
    checked_int,
    checked_limiter,
    checked_names,
    checked_paths,
    checked_seconds,
    checked_timeout,
    checked_urls,
)
from otel_connector._bulk import Outcome, Outcomes, Resumed, Work
from otel_connector._call._call import Call, CallSettings
from otel_connector._call._call_log import CallLogger
from otel_connector._call._pacing import AdmissionControl, RateLimiter
from otel_connector._call._retry import RetryBudget, RetryPolicy, RetryQuotas
from otel_connector._call._transport import own_headers
from otel_connector._clock import Clock, SystemClock
from otel_connector._csv._done import CompletedUrls, read_done
from otel_connector._errors import ConnectorError, SessionClosed
from otel_connector._record import Attempt, CallRecord
from otel_connector._redact import DEFAULT_REDACTED_PARAMS, Redactor
from otel_connector._telemetry._spans import CallTelemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
    from types import TracebackType

    import aiohttp
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider
    from typing_extensions import Self
    from yarl import URL

    from otel_connector.csv_exporter import CSVSpanExporter


class _Raise:
    """The type of the default that means: raise."""


_RAISE: Final = _Raise()

_CLOSED = "the connector is closed"


class _Many(NamedTuple):
    """What the calls of one `get_many` have in common."""

    session: aiohttp.ClientSession
    project_name: str
    decode: Callable[[bytes], Any]
    sink: Callable[[Outcome], Awaitable[object] | object] | None
    options: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorStats:
    """What one connector has done so far.

    Attributes:
        calls_started: Calls to `get`.
        calls_active: Of these, calls still under way.
        calls_succeeded: Calls that returned a decoded body.
        calls_failed: Calls that raised, or returned their `default`, cancelled ones included.
        retries: Attempts that the connector made after the first of a call; not those that aiohttp makes by itself.
        bytes_received: Bytes of body read by the ended calls' last attempts, after content decoding.
        hosts_paused: The ``host:port`` of servers that asked for a pause which has not ended.
        rows_written: Rows in the log.
        rows_waiting: Rows kept in memory because the disk refused them.
        rows_lost: Rows that were given up. Without a `logfile` the three are 0; with an exporter that several
            connectors share they are its sums.
    """

    calls_started: int
    calls_active: int
    calls_succeeded: int
    calls_failed: int
    retries: int
    bytes_received: int
    hosts_paused: tuple[str, ...]
    rows_written: int
    rows_waiting: int
    rows_lost: int


class AsyncConnector:
    """Sends reliable async HTTP GETs; each is one span, one metric set and one CSV row.

    ```python
    async with aiohttp.ClientSession() as session:
        connector = AsyncConnector("logs.csv", n_tries=3, timeout=5)
        data = await connector.get(session, "https://api.example.com/data", "ExampleProject")
    ```

    Neither `aclose` nor ``async with`` is needed to have the rows: each is in the file before its `get` returns. One
    connector serves one event loop at a time.

    Args:
        logfile: The CSV file, or a ready `CSVSpanExporter`; None writes no CSV.
        overwrite_log: True empties the file first; False appends.
        n_tries: Attempts of a call in all, the first included. aiohttp by itself sends a GET once more when a
            connection breaks before the answer; that counts as an attempt, too.
        timeout: Seconds for one attempt, its body included; or an `aiohttp.ClientTimeout`.
        retry: What is retried and how long is waited.
        retry_budget: How many retries a host gets in relation to its successes; None for any number.
        deadline: Seconds for a whole call, from `get` to its end, queue and waits included; None for no limit. A wait
            that would outlast it is not begun: the call then fails with the last attempt's own error.
        rate_limiter: An async context manager that every attempt enters (an ``aiolimiter.AsyncLimiter``, say), or a
            function that returns the one for a ``host:port``.
        adaptive_concurrency: Attempts to one host at a time, at most; fewer while it throttles. 0 sets no limit.
        max_body_bytes: Bytes of a body, after content decoding, at which reading stops and the call fails.
        redact_params: Query parameters whose values are never written or exported, in any case; in the place of the
            default ones, so add yours to `DEFAULT_REDACTED_PARAMS`.
        propagate: Whether requests carry the call's trace context (``traceparent``) and baggage, in the place of
            headers of those names.
        attempt_spans: Give each attempt a CLIENT span of its own below the call's, which is then INTERNAL.
        on_retry: Called with every `Attempt` that another one follows. What it raises is logged.
        tracer_provider: Where spans go; default the global provider, also if it is set up later.
        meter_provider: Where metrics go; default the global provider, also if it is set up later.
        clock: Time and chance; ``otel_connector.testing.FakeClock`` makes waits instant.

    Raises:
        TypeError: An argument is of another type; the message names it.
        ValueError: An argument is out of its range, or `logfile` is another kind of CSV; the message names it.
        OSError: `logfile` cannot be opened for appending or is not a regular file.
    """

    def __init__(
        self,
        logfile: str | os.PathLike[str] | CSVSpanExporter | None,
        overwrite_log: bool = False,
        n_tries: int = 10,
        timeout: float | aiohttp.ClientTimeout = 30,
        *,
        retry: RetryPolicy | None = None,
        retry_budget: RetryBudget | None = None,
        deadline: float | None = None,
        rate_limiter: RateLimiter | None = None,
        adaptive_concurrency: int = 0,
        max_body_bytes: int = 64 * 2**20,
        redact_params: Iterable[str] = DEFAULT_REDACTED_PARAMS,
        propagate: bool = True,
        attempt_spans: bool = False,
        on_retry: Callable[[Attempt], object] | None = None,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        clock: Clock | None = None,
    ) -> None:
        check_bool("overwrite_log", overwrite_log)
        check_bool("propagate", propagate)
        check_bool("attempt_spans", attempt_spans)
        check_provider("tracer_provider", tracer_provider, "get_tracer")
        check_provider("meter_provider", meter_provider, "get_meter")
        clock = SystemClock() if clock is None else checked_clock(clock)
        max_concurrency = checked_int("adaptive_concurrency", adaptive_concurrency, least=0)
        redactor = Redactor(checked_names("redact_params", redact_params))
        pacing = AdmissionControl(clock, checked_limiter(rate_limiter), max_concurrency, redactor.text)
        timeouts = checked_timeout(timeout)
        n_tries, max_body_bytes = checked_int("n_tries", n_tries), checked_int("max_body_bytes", max_body_bytes)
        deadline = checked_deadline(deadline)
        policy = checked_instance("retry", RetryPolicy() if retry is None else retry, RetryPolicy)
        buckets = (
            None if retry_budget is None else RetryQuotas(checked_instance("retry_budget", retry_budget, RetryBudget))
        )
        journal = CallLogger(checked_hook("on_retry", on_retry), clock.monotonic_ns)
        # Last, when nothing can be refused any more: it may empty the file
        self._exporter, self._owns_exporter = _open_exporter(logfile, overwrite=overwrite_log)
        telemetry = CallTelemetry(
            tracer_provider,
            meter_provider,
            log=self._exporter,
            pace=pacing,
            monotonic_ns=clock.monotonic_ns,
            attempt_spans=attempt_spans,
        )
        self._terms = CallSettings(
            n_tries=n_tries,
            timeout=timeouts,
            deadline=deadline,
            retry=policy,
            buckets=buckets,
            max_body_bytes=max_body_bytes,
            propagate=propagate,
            redactor=redactor,
            clock=clock,
            pacing=pacing,
            telemetry=telemetry,
            journal=journal,
        )
        self._closed = False
        self._started = self._succeeded = self._failed = self._retries = self._received = 0

    async def get(
        self,
        session: aiohttp.ClientSession,
        url: str | URL,
        project_name: str,
        *,
        decode: Callable[[bytes], Any] = json.loads,
        default: Any = _RAISE,
        **aiohttp_options: Any,
    ) -> Any:
        """Get `url` and return its decoded body, trying again what is worth it.

        However the call ends, it leaves one span, one metric set and one row, and its connection is free again.

        Args:
            session: An open session; its base URL, headers, cookies and pool apply.
            url: Absolute, or relative to the session's base URL; http or https.
            project_name: What the call belongs to; the ``project`` column.
            decode: Makes the value of the whole body's bytes, e.g. ``bytes.decode`` for text or ``bytes`` for the
                bytes themselves. Not called for 204, 205 and 304, which return None.
            default: Returned instead of raising a `ConnectorError`.
            aiohttp_options: What ``aiohttp.ClientSession.get`` takes besides: ``params``, ``headers``, ``ssl``,
                ``allow_redirects`` ... ``timeout`` overrides the connector's for this call.

        Raises:
            HTTPStatusError: 4xx or 5xx, after the tries were used up if the status is one that is retried.
            ConnectorError: Any other failure; its subclasses tell which.
            TypeError: An argument is of another type, or aiohttp does not take an option.
            ValueError: An option's value is out of its range.
            RuntimeError: The connector is closed; the only case that leaves no row.
            asyncio.CancelledError: The call was cancelled.
        """
        if self._closed:
            raise RuntimeError(_CLOSED)
        call = Call(self._terms, session, url, project_name, decode, aiohttp_options)
        self._started += 1
        try:
            value = await call.run()
        except BaseException as error:
            self._end(call, error)
            if not isinstance(default, _Raise) and isinstance(error, ConnectorError):
                return default
            raise
        self._end(call, None)
        return value

    def get_many(
        self,
        session: aiohttp.ClientSession,
        urls: Iterable[str | URL] | AsyncIterable[str | URL],
        project_name: str,
        *,
        max_concurrency: int = 100,
        ordered: bool = False,
        resume: bool | Iterable[str | os.PathLike[str]] = False,
        sink: Callable[[Outcome], Awaitable[object] | object] | None = None,
        decode: Callable[[bytes], Any] = json.loads,
        **aiohttp_options: Any,
    ) -> Outcomes:
        """Get many URLs, and return an async iterator over what comes of each, as it comes.

        ```python
        async for outcome in connector.get_many(session, urls, "ExampleProject"):
            print(outcome.url, outcome.value if outcome.error is None else outcome.error)
        ```

        Each URL is a call as `get` makes it, with its own row. A failure is an outcome, too; raised is only what ends
        all: the session or the connector is closed, aiohttp does not take an option, or `urls` or `sink` raised. The
        memory it takes depends on `max_concurrency`, not on the number of URLs, but for 70 bytes or so for each success
        that `resume` finds. Cancelling the wait for an outcome (a timeout around it) ends all, too.

        Args:
            session: As for `get`. Its pool (100 connections, unless its connector was made with another ``limit``)
                bounds what is under way, too.
            urls: Any iterable or async iterable, endless ones included. A plain one is asked on the event loop, so it
                must not wait; an async one is closed at the end.
            project_name: As for `get`.
            max_concurrency: Calls under way at a time. As many outcomes wait to be taken, then the calls wait.
            ordered: Give the outcomes in the order of `urls`; a slow one then holds back those behind it.
            resume: Pass over the URLs of which the log, its rotated parts included, has a success of this project;
                those that failed are tried again. Or further logs to look into, too: paths. A URL is known by what the
                log shows of it: of those that differ only in a redacted secret, one success stands for all.
            sink: Is given each success before its row is written, and awaited if it returns an awaitable: what the log
                says is done has been through the sink, whenever the program is killed. It may get one twice. What it
                raises is the end of that call, with a row that says so, and of all. If it has a method ``holds``, that
                is asked with the ``call_id`` of each success that `resume` finds, in a thread; without a result, the
                URL is fetched again.
            decode: As for `get`.
            aiohttp_options: As for `get`, the same for all.

        Raises:
            TypeError: An argument is of another type; named.
            ValueError: An argument is out of its range, or `resume` is asked for without a log.
            RuntimeError: The connector is closed.
        """
        if self._closed:
            raise RuntimeError(_CLOSED)
        check_call(session, project_name, decode, dict(aiohttp_options))
        check_bool("ordered", ordered)
        if "default" in aiohttp_options:
            raise TypeError("default is no option of get_many: a failure is an outcome")
        own_headers(aiohttp_options.get("headers"))
        if "timeout" in aiohttp_options:
            checked_timeout(aiohttp_options["timeout"])
        logs = self._logs_to_resume(resume)
        many = _Many(session, project_name, decode, checked_hook("sink", sink, awaited=True), aiohttp_options)

        async def begin() -> Resumed | None:
            if logs is None:
                return None
            done = await asyncio.to_thread(read_done, *logs, project_name, getattr(sink, "holds", None))
            is_done = partial(self._is_done, done, session, aiohttp_options.get("params"))
            return Resumed(is_done, done.rows, done.of_project, len(done))

        max_concurrency = checked_int("max_concurrency", max_concurrency)
        return Outcomes(checked_urls(urls), Work(partial(self._outcome, many), max_concurrency, ordered, begin))

    def _logs_to_resume(self, resume: bool | Iterable[str | os.PathLike[str]]) -> tuple[str | None, list[str]] | None:
        """Return the own log and the others to look into; None if nothing is to be passed over."""
        if resume is False:
            return None
        others = [] if resume is True else checked_paths("resume", resume)
        if self._exporter is None and resume is True:
            raise ValueError("resume=True looks into the log, and this connector has none; give a logfile, or paths")
        return (None if self._exporter is None else self._exporter.path), others

    def _is_done(self, done: CompletedUrls, session: aiohttp.ClientSession, params: Any, url: str | URL) -> bool:
        try:
            return self._terms.target(session, url, params).shown in done
        except (TypeError, ValueError, ConnectorError):
            return False  # no URL: its call says so

    async def _outcome(self, many: _Many, url: str | URL) -> Outcome:
        """Make one call of many."""
        if self._closed:
            raise RuntimeError(_CLOSED)
        session, project, decode, sink, options = many
        call = Call(self._terms, session, url, project, decode, {**options})
        self._started += 1
        in_sink = False
        try:
            value = await call.run()
            if sink is not None:
                in_sink = True
                kept = sink(Outcome(url, value, None, call.stop()))
                if isawaitable(kept):
                    await kept
        except BaseException as error:
            record = self._end(call, error)
            if in_sink or not isinstance(error, Exception) or isinstance(error, SessionClosed):
                raise
            if call.attempts and not isinstance(error, ConnectorError):
                raise  # an option that aiohttp does not take: it would be the same with every URL
            return Outcome(url, None, error, record)
        return Outcome(url, value, None, self._end(call, None))

    async def rate_limit(self, delay: float) -> None:
        """Wait `delay` seconds.

        Raises:
            TypeError: `delay` is not a number.
            ValueError: `delay` is negative or not finite.
        """
        await self._terms.clock.sleep(checked_seconds("delay", delay))

    def stats(self) -> ConnectorStats:
        """Return what the connector has done so far."""
        rows = self._exporter.counts() if self._exporter else None
        return ConnectorStats(
            calls_started=self._started,
            calls_active=self._started - self._succeeded - self._failed,
            calls_succeeded=self._succeeded,
            calls_failed=self._failed,
            retries=self._retries,
            bytes_received=self._received,
            hosts_paused=tuple(self._terms.pacing.paused()),
            rows_written=rows.written if rows else 0,
            rows_waiting=rows.waiting if rows else 0,
            rows_lost=rows.lost if rows else 0,
        )

    async def aclose(self) -> None:
        """Take no further calls, and close the log once the ones under way have their rows.

        Calls after this raise RuntimeError. An exporter handed in stays open. Safe to call again.
        """
        self._closed = True
        if self._started == self._succeeded + self._failed:
            self._close_log()

    def _end(self, call: Call, error: BaseException | None) -> CallRecord:
        """Count the call and write its row."""
        record = call.end(error, self._write)
        self._retries += call.retries
        if self._closed and self._started == self._succeeded + self._failed:
            self._close_log()
        return record

    def _write(self, record: CallRecord, start_time: int | None) -> None:
        # Counted first: who asks `stats` from inside the log finds the row, and so must not find the call under way
        self._succeeded += record.success
        self._failed += not record.success
        self._received += record.response_size
        if self._exporter is not None:
            self._exporter.export_record(record, start_time)

    def _close_log(self) -> None:
        if self._exporter is not None and self._owns_exporter:
            self._exporter.shutdown()

    async def __aenter__(self) -> Self:
        """Return the connector itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connector."""
        await self.aclose()


def _open_exporter(logfile: Any, *, overwrite: bool) -> tuple[CSVSpanExporter | None, bool]:
    """Return the exporter that `logfile` stands for, and whether the connector made it."""
    if logfile is None:
        return None, False
    from otel_connector.csv_exporter import CSVSpanExporter

    if isinstance(logfile, CSVSpanExporter):
        if overwrite:
            raise ValueError("overwrite_log goes with a path; give overwrite=True to the CSVSpanExporter instead")
        return logfile, False
    if not isinstance(logfile, (str, os.PathLike)):
        raise TypeError(f"logfile must be a path, a CSVSpanExporter or None, not {type(logfile).__name__}")
    return CSVSpanExporter(os.fspath(logfile), overwrite=overwrite), True
