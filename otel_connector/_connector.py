"""Level 4: `AsyncConnector`, the one thing most people use: its parameters, its life, and where its rows go.

The call itself is in ``_call``. Knows nothing of files and exporters' insides.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from otel_connector._arguments import (
    check_bool,
    check_provider,
    checked_clock,
    checked_deadline,
    checked_hook,
    checked_instance,
    checked_int,
    checked_limiter,
    checked_names,
    checked_seconds,
    checked_timeout,
)
from otel_connector._call import Call, Terms
from otel_connector._clock import Clock, SystemClock
from otel_connector._errors import ConnectorError
from otel_connector._journal import Journal
from otel_connector._pacing import Pacing, RateLimiter
from otel_connector._record import Attempt, CallRecord
from otel_connector._redact import DEFAULT_REDACTED_PARAMS, Redactor
from otel_connector._retry import Buckets, RetryBudget, RetryPolicy
from otel_connector._telemetry import CallTelemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorStats:
    """What one connector has done so far.

    Attributes:
        calls_started: Calls to `get`.
        calls_active: Of these, calls still under way.
        calls_succeeded: Calls that returned a decoded body.
        calls_failed: Calls that raised, or returned their `default`, cancelled ones included.
        resends: Attempts that the connector made after the first of a call; not those that aiohttp makes by itself.
        bytes_received: Bytes of body read by the ended calls' last attempts, after content decoding.
        hosts_held_back: The ``host:port`` of servers that asked for a pause which has not ended.
        rows_written: Rows in the log.
        rows_waiting: Rows kept in memory because the disk refused them.
        rows_lost: Rows that were given up. Without a `logfile` the three are 0; with an exporter that several
            connectors share they are its sums.
    """

    calls_started: int
    calls_active: int
    calls_succeeded: int
    calls_failed: int
    resends: int
    bytes_received: int
    hosts_held_back: tuple[str, ...]
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
        """Check the arguments and open the log."""
        check_bool("overwrite_log", overwrite_log)
        check_bool("propagate", propagate)
        check_bool("attempt_spans", attempt_spans)
        check_provider("tracer_provider", tracer_provider, "get_tracer")
        check_provider("meter_provider", meter_provider, "get_meter")
        clock = SystemClock() if clock is None else checked_clock(clock)
        at_once = checked_int("adaptive_concurrency", adaptive_concurrency, least=0)
        redactor = Redactor(checked_names("redact_params", redact_params))
        pacing = Pacing(clock, checked_limiter(rate_limiter), at_once, redactor.text)
        timeouts = checked_timeout(timeout)
        n_tries, max_body_bytes = checked_int("n_tries", n_tries), checked_int("max_body_bytes", max_body_bytes)
        deadline = checked_deadline(deadline)
        policy = checked_instance("retry", RetryPolicy() if retry is None else retry, RetryPolicy)
        buckets = None if retry_budget is None else Buckets(checked_instance("retry_budget", retry_budget, RetryBudget))
        journal = Journal(checked_hook("on_retry", on_retry), clock.monotonic_ns)
        # Last, when nothing can be refused any more: it may empty the file
        self._exporter, self._owns_exporter = _open_exporter(logfile, overwrite=overwrite_log)
        telemetry = CallTelemetry(
            tracer_provider,
            meter_provider,
            log=self._exporter,
            monotonic_ns=clock.monotonic_ns,
            attempt_spans=attempt_spans,
        )
        self._terms = Terms(
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
        self._started = self._succeeded = self._failed = self._resends = self._received = 0

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
            raise RuntimeError("the connector is closed")
        call = Call(self._terms, session=session, url=url, project=project_name, decode=decode, options=aiohttp_options)
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
            resends=self._resends,
            bytes_received=self._received,
            hosts_held_back=tuple(self._terms.pacing.held_back()),
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

    def _end(self, call: Call, error: BaseException | None) -> None:
        """Count the call and write its row."""
        call.end(error, self._write)
        self._resends += call.retries
        if self._closed and self._started == self._succeeded + self._failed:
            self._close_log()

    def _write(self, record: CallRecord, start_time: int) -> None:
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
