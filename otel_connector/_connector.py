"""`AsyncConnector`, the main class of the package: its parameters, its lifecycle, and where its rows are written.

A call itself is in ``_call``. This file does not know files, nor the internals of exporters.

Used by ``__init__``, ``_fetch._chunk``, ``_fetch._fetch``, ``cli._demo`` and ``cli._fetch_command``.
"""

from __future__ import annotations

import json
import os
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final

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
    checked_path,
    checked_paths,
    checked_seconds,
    checked_template,
    checked_timeout,
    checked_urls,
)
from otel_connector._bulk import Outcome, Outcomes, Resumed, Work
from otel_connector._call._call import Call
from otel_connector._call._call_log import CallLogger
from otel_connector._call._options import shared_options
from otel_connector._call._pacing import AdmissionControl, RateLimiter
from otel_connector._call._resume import Resume
from otel_connector._call._retry import RetryBudget, RetryPolicy, RetryQuotas
from otel_connector._call._settings import CallSettings
from otel_connector._clock import Clock, SystemClock
from otel_connector._connector_stats import CallsOfProcess, CallTotals, ConnectorStats
from otel_connector._csv._done import read_done
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
    """The type of `default` if no default is given."""


_RAISE: Final = _Raise()

_CLOSED = "the connector is closed"


class AsyncConnector:
    """Sends reliable async HTTP GETs; each call is one span, one metric set and one CSV row.

    ```python
    async with aiohttp.ClientSession() as session:
        connector = AsyncConnector("logs.csv", n_tries=3, timeout=5)
        data = await connector.get(session, "https://api.example.com/data", "ExampleProject")
    ```

    Each row is in the file before its `get` returns, so neither `aclose` nor ``async with`` is required.

    Args:
        logfile: The CSV file, or a `CSVSpanExporter`; None writes no CSV.
        overwrite_log: True empties the file first; False appends.
        n_tries: Maximum number of attempts of a call, including the first. The second request that aiohttp by itself
            sends when a connection breaks before the response is not limited by it.
        timeout: Seconds for one attempt, including its body; or an `aiohttp.ClientTimeout`.
        retry: What is retried, and how long the waits are.
        retry_budget: The number of retries of a host in relation to its successes; None for no limit.
        deadline: Seconds for a whole call, from `get` to its end, including queue and waits; None for no limit. A wait
            that would exceed it does not start; the call then fails with the error of its last attempt.
        rate_limiter: An async context manager that every attempt enters (for example ``aiolimiter.AsyncLimiter``), or a
            function that returns the one for a ``host:port``.
        adaptive_concurrency: Maximum number of concurrent attempts to one host, in each event loop, reduced while the
            host throttles; 0 sets no limit.
        max_body_bytes: Bytes of a body, after content decoding, at which reading stops and the call fails.
        redact_params: Query parameters whose values are never written or exported, compared without case. They replace
            the default ones, so add yours to `DEFAULT_REDACTED_PARAMS`.
        propagate: Whether requests carry the trace context of the call (``traceparent``) and baggage, instead of
            headers of these names.
        attempt_spans: Whether each attempt has a CLIENT span of its own below the call's, which is then INTERNAL. In
            the metrics, ``http.client.request.duration`` then counts attempts, and ``otel_connector.call.duration``
            counts calls.
        attempts: Whether each failed attempt, and each attempt after one, has a row in ``<stem>.attempts.csv`` beside
            the log. If `logfile` is an exporter, this file has its options, too.
        on_retry: Called with every `Attempt` that is followed by another one. Its exceptions are logged.
        fair_reading: Whether connections parse large or hostile responses in steps of some milliseconds, so that other
            tasks can run, and report every error in a response. For this, the connector of each session is changed to
            use a subclass of aiohttp's connection class. False leaves it as it is: a reset can then end a body without
            a length as its end, as in aiohttp.
        tracer_provider: Provider for the spans. Default: the global provider, even if it is set later.
        meter_provider: Provider for the metrics. Default: the global provider, even if it is set later.
        clock: Time, waits and random numbers; with ``otel_connector.testing.FakeClock``, waits take no time.

    Raises:
        TypeError: An argument has the wrong type; the message names it.
        ValueError: An argument is out of range, or `logfile` is a CSV of another kind; the message names it.
        OSError: `logfile` cannot be opened for appending, or is not a regular file.
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
        attempts: bool = False,
        on_retry: Callable[[Attempt], object] | None = None,
        fair_reading: bool = True,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        clock: Clock | None = None,
    ) -> None:
        switches = {"overwrite_log": overwrite_log, "propagate": propagate, "attempt_spans": attempt_spans}
        for name, value in (switches | {"attempts": attempts, "fair_reading": fair_reading}).items():
            check_bool(name, value)
        check_provider("tracer_provider", tracer_provider, "get_tracer")
        check_provider("meter_provider", meter_provider, "get_meter")
        clock = SystemClock() if clock is None else checked_clock(clock)
        limits = checked_limiter(rate_limiter), checked_int("adaptive_concurrency", adaptive_concurrency, least=0)
        redactor = Redactor(checked_names("redact_params", redact_params))
        admission = AdmissionControl(clock, *limits, redactor.text, fair_reading=fair_reading)
        budget = None if retry_budget is None else checked_instance("retry_budget", retry_budget, RetryBudget)
        settings = partial(
            CallSettings,
            n_tries=checked_int("n_tries", n_tries),
            timeout=checked_timeout(timeout),
            deadline=checked_deadline(deadline),
            retry=RetryPolicy() if retry is None else checked_instance("retry", retry, RetryPolicy),
            quotas=None if budget is None else RetryQuotas(budget),
            max_body_bytes=checked_int("max_body_bytes", max_body_bytes),
            propagate=propagate,
            redactor=redactor,
            clock=clock,
            admission=admission,
            call_logger=CallLogger(checked_hook("on_retry", on_retry), clock.monotonic_ns),
        )
        # After all checks, because it may empty the file
        self._exporter, self._owns_exporter = _open_exporter(logfile, overwrite=overwrite_log, attempts=attempts)
        telemetry = CallTelemetry(
            tracer_provider,
            meter_provider,
            log=self._exporter,
            paused_hosts=admission,
            monotonic_ns=clock.monotonic_ns,
            attempt_spans=attempt_spans,
        )
        self._settings = settings(telemetry=telemetry)
        self._closed = False
        self._in_this_process = CallsOfProcess(self._exporter, with_attempts=attempts)

    async def get(
        self,
        session: aiohttp.ClientSession,
        url: str | URL,
        project_name: str,
        *,
        decode: Callable[[bytes], Any] = json.loads,
        default: Any = _RAISE,
        template: str | None = None,
        **aiohttp_options: Any,
    ) -> Any:
        """Request `url` and return its decoded body; retry what the policy retries.

        However the call ends, it has one span, one metric set and one row, and its connection is released.

        Args:
            session: An open session; its base URL, headers, cookies and connector are used.
            url: Absolute, or relative to the session's base URL; http or https.
            project_name: What the call belongs to; the ``project`` column.
            decode: Converts the bytes of the whole body to the value, for example ``bytes.decode`` for text or
                ``bytes`` for the bytes themselves. Not called for 204, 205 and 304, which return None.
            default: Returned instead of raising a `ConnectorError`.
            template: The path with placeholders, such as ``/items/{id}``, the same for all items: the span is named
                ``GET /items/{id}``, and it and the durations in the metrics have it as ``url.template``. Of more than
                100 templates, the metrics show the others as ``_other``.
            aiohttp_options: Further options of ``aiohttp.ClientSession.get``: ``params``, ``headers``, ``ssl``,
                ``allow_redirects`` ... ``timeout`` overrides that of the connector for this call.

        Raises:
            HTTPStatusError: 4xx or 5xx; if the status is retried, after the last attempt.
            ConnectorError: Any other failure, by subclass.
            TypeError: An argument has the wrong type, or aiohttp does not accept an option.
            ValueError: The value of an option is out of range.
            RuntimeError: The connector is closed; the call has no row.
            asyncio.CancelledError: The call was cancelled.
        """
        if self._closed:
            raise RuntimeError(_CLOSED)
        call, calls = Call(self._settings), self._in_this_process.calls
        calls.started += 1
        try:
            value = await call.run(session, url, project_name, decode, aiohttp_options, template=template)
        except BaseException as error:
            self._end(call, calls, error)
            if not isinstance(default, _Raise) and isinstance(error, ConnectorError):
                return default
            raise
        self._end(call, calls, None)
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
        template: str | None = None,
        **aiohttp_options: Any,
    ) -> Outcomes:
        """Request many URLs, and return an async iterator over their outcomes, in the order in which they arrive.

        ```python
        async for outcome in connector.get_many(session, urls, "ExampleProject"):
            print(outcome.url, outcome.value if outcome.error is None else outcome.error)
        ```

        Each URL is a call as `get` makes it. Failed calls are outcomes as well. An exception is raised only when the
        whole run must stop: the session or the connector is closed, aiohttp does not accept an option, or `urls` or
        `sink` raised. Cancelling the wait for an outcome stops the run, too. Memory depends on `max_concurrency`, not
        on the number of URLs, except for about 70 bytes for each success that `resume` finds.

        Args:
            session: As for `get`. The limit of its connector (100 by default) limits the calls in progress, too.
            urls: An iterable or async iterable, possibly endless, run by one task. It must not block the event loop.
            project_name: As for `get`.
            max_concurrency: Maximum number of calls in progress, and of outcomes that have not been taken.
            ordered: Yield the outcomes in the order of `urls`; a slow call then delays those after it.
            resume: Skip URLs that have a success of this project in the log; failed ones are requested again. Or paths
                of further logs to read. A URL is identified by its redacted form, without its signature.
            sink: Called with each success before its row is written, and awaited if it returns an awaitable. So every
                success in the log has passed through it, possibly twice. If it raises, the run stops. If it has a
                method ``holds``, this is called in a thread with ``call_id`` and ``t`` of each success that `resume`
                finds; if it returns False, the URL is requested again. ``call_id`` alone may repeat.
            decode: As for `get`.
            template: As for `get`, the same for all.
            aiohttp_options: As for `get`, the same for all.

        Raises:
            TypeError: An argument has the wrong type; the message names it.
            ValueError: An argument is out of range, or `resume` is True without a `logfile`. Later: with `resume`, two
                different URLs have the same redacted form (before the first call, or in an iterator at the second).
            RuntimeError: The connector is closed.
        """
        self._check_many(session, project_name, decode, ordered, aiohttp_options)
        if template is not None:
            checked_template(template)
        logs = self._logs_to_resume(resume)
        aiohttp_options = shared_options(aiohttp_options)
        shared = session, project_name, decode, aiohttp_options, template
        fetch = partial(self._outcome, checked_hook("sink", sink, awaited=True), shared)

        async def read_logs() -> Resumed | None:
            if logs is None:
                return None
            read = partial(read_done, *logs, project_name, getattr(sink, "holds", None), self._settings.redactor.url)
            return await Resume(self._settings, session, aiohttp_options.get("params")).begin(urls, read)

        concurrency = checked_int("max_concurrency", max_concurrency)
        return Outcomes(checked_urls(urls), Work(fetch, concurrency, ordered, read_logs))

    def _check_many(self, session: Any, project: Any, decode: Any, ordered: Any, options: dict[str, Any]) -> None:
        """Check what all calls of a `get_many` share, before the first one."""
        if self._closed:
            raise RuntimeError(_CLOSED)
        check_call(session, project, decode, options)
        check_bool("ordered", ordered)
        if "default" in options:
            raise TypeError("default is not an option of get_many: a failed call is an outcome")
        if "timeout" in options:
            checked_timeout(options["timeout"])

    def _logs_to_resume(self, resume: bool | Iterable[str | os.PathLike[str]]) -> tuple[str | None, list[str]] | None:
        """Return the connector's log and the other logs to read; None if no URL is to be skipped."""
        if resume is False:
            return None
        others = [] if resume is True else checked_paths("resume", resume)
        if self._exporter is None and resume is True:
            raise ValueError("resume=True reads the log, and this connector has none; give a logfile, or paths")
        return (None if self._exporter is None else self._exporter.path), others

    async def _outcome(
        self,
        sink: Callable[[Outcome], Awaitable[object] | object] | None,
        shared: tuple[aiohttp.ClientSession, str, Callable[[bytes], Any], dict[str, Any], str | None],
        url: str | URL,
    ) -> Outcome:
        """Make one call of a `get_many`; `shared` are the arguments of all its calls."""
        session, project, decode, options, template = shared
        if self._closed:
            raise RuntimeError(_CLOSED)
        call, calls = Call(self._settings), self._in_this_process.calls
        calls.started += 1
        in_sink = False
        try:
            value = await call.run(session, url, project, decode, options, template=template)
            if sink is not None:
                in_sink = True
                result = sink(Outcome(url, value, None, call.stop()))
                if isawaitable(result):
                    await result
        except BaseException as error:
            record = self._end(call, calls, error)
            if in_sink or not isinstance(error, Exception) or isinstance(error, SessionClosed):
                raise
            if isinstance(error, RuntimeError) or (call.attempts and not isinstance(error, ConnectorError)):
                raise  # the session is bound to another loop, or aiohttp rejects an option: the same for every URL
            return Outcome(url, None, error, record)
        return Outcome(url, value, None, self._end(call, calls, None))

    async def rate_limit(self, delay: float) -> None:
        """Wait `delay` seconds.

        Raises:
            TypeError: `delay` is not a number.
            ValueError: `delay` is negative or not finite.
        """
        await self._settings.clock.sleep(checked_seconds("delay", delay))

    def stats(self) -> ConnectorStats:
        """Return the counts of the connector."""
        calls, rows = self._in_this_process.calls, self._exporter.counts() if self._exporter else None
        return ConnectorStats(
            calls_started=calls.started,
            calls_active=calls.active,
            calls_succeeded=calls.succeeded,
            calls_failed=calls.failed,
            retries=calls.retries,
            bytes_received=calls.received,
            hosts_paused=tuple(self._settings.admission.paused()),
            rows_written=rows.written if rows else 0,
            rows_waiting=rows.waiting if rows else 0,
            rows_lost=rows.lost if rows else 0,
        )

    async def aclose(self) -> None:
        """Accept no further calls, and close the log when the calls in progress have their rows.

        Calls after this raise RuntimeError. An exporter that was passed in stays open. May be called again.
        """
        self._closed = True
        if not self._in_this_process.calls.active:
            self._close_log()

    def _end(self, call: Call, calls: CallTotals, error: BaseException | None) -> CallRecord:
        """Count the call and write its row."""
        record = call.end(error, calls.write)
        calls.retries += call.retries
        if self._closed and not calls.active:
            self._close_log()
        return record

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


def _open_exporter(logfile: Any, *, overwrite: bool, attempts: bool) -> tuple[CSVSpanExporter | None, bool]:
    """Return the exporter for `logfile`, and whether the connector created it."""
    if logfile is None:
        if attempts:
            raise ValueError("attempts=True needs a logfile: the file of the attempts is beside it")
        return None, False
    from otel_connector.csv_exporter import CSVSpanExporter, check_log_and_attempts, named_error

    if isinstance(logfile, CSVSpanExporter):
        if overwrite:
            raise ValueError("overwrite_log requires a path; pass overwrite=True to the CSVSpanExporter instead")
        exporter, is_own = logfile, False
    else:
        path = checked_path("logfile", logfile, "a path, a CSVSpanExporter or None")
        if overwrite and attempts:
            check_log_and_attempts(path)
        try:
            # No span reaches it, so the variable about spans has no effect
            exporter, is_own = CSVSpanExporter(path, overwrite=overwrite, spans="connector"), True
        except (OSError, ValueError) as error:
            # Its cause is the same error without the name of the exporter's argument
            raise named_error("logfile", error.__cause__, path) from error.__cause__
    if attempts:
        exporter.open_attempts()
    return exporter, is_own
