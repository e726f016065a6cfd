"""Level 3: one call, from its arguments to its record: queue, attempt, decide, wait, again.

Holds the loop and nothing else: what an attempt does is ``_transport``'s, whether there is another ``_retry``'s, when
it may start ``_pacing``'s, how it looks from outside ``_telemetry``'s. The record is made once, at the end. Knows no
exporter and no file.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from yarl import URL

from otel_connector._arguments import check_call, checked_timeout
from otel_connector._clock import time_limit
from otel_connector._errors import (
    AttemptTimeout,
    ConnectorError,
    DeadlineExceeded,
    HTTPStatusError,
    RetryBudgetExhausted,
    SessionClosed,
)
from otel_connector._record import TEXT_LIMIT, URL_LIMIT, Attempt, CallRecord, one_line
from otel_connector._retry import THROTTLING_STATUSES, parse_retry_after
from otel_connector._telemetry import call_id_of
from otel_connector._transport import Exchange, Request, attempt, bounded_by, merge_headers, resolve_url

if TYPE_CHECKING:
    from collections.abc import Callable

    import aiohttp
    from opentelemetry.trace import SpanContext

    from otel_connector._clock import Clock
    from otel_connector._journal import Journal
    from otel_connector._pacing import Pacing, Place
    from otel_connector._redact import Redactor
    from otel_connector._retry import Buckets, RetryPolicy
    from otel_connector._telemetry import CallSpan, CallTelemetry


WriteRow: TypeAlias = "Callable[[CallRecord, SpanContext, int, int], None]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What all calls of a connector have in common; the parameters of `AsyncConnector` say what each means."""

    n_tries: int
    timeout: aiohttp.ClientTimeout
    deadline: float | None
    retry: RetryPolicy
    buckets: Buckets | None
    max_body_bytes: int
    propagate: bool
    redactor: Redactor
    clock: Clock
    pacing: Pacing
    telemetry: CallTelemetry
    journal: Journal


class Call:
    """One call: `run` it, then `end` it, whatever came of it.

    Args:
        terms: What the connector's calls have in common.
        session: The session to send with.
        url: The URL asked for.
        project: What the call belongs to.
        decode: Makes the value of the body's bytes.
        options: Options of ``aiohttp.ClientSession.get``; taken over.
    """

    __slots__ = (
        "_accepted_ns",
        "_exchange",
        "_host",
        "_in_queue",
        "_last_failure",
        "_paid",
        "_place",
        "_project",
        "_queued",
        "_request",
        "_sent",
        "_span",
        "_started_ns",
        "_started_us",
        "_target",
        "_terms",
        "_url",
        "attempts",
        "retries",
    )  # fmt: skip

    def __init__(
        self,
        terms: Terms,
        *,
        session: aiohttp.ClientSession,
        url: str | URL,
        project: str,
        decode: Callable[[bytes], Any],
        options: dict[str, Any],
    ) -> None:
        """Check the arguments; a bad one is kept for `run` to raise, so that it has its row too."""
        self._terms = terms
        self._accepted_ns = terms.clock.monotonic_ns()
        self._target: URL | None = None
        self._request: Request | Exception | None
        try:
            check_call(session, project, decode, options)
            self._target = resolve_url(session, url, options.pop("params", None))
            self._request = Request(
                session=session,
                url=self._target,
                timeout=checked_timeout(options.pop("timeout")) if "timeout" in options else terms.timeout,
                decode=decode,
                max_body_bytes=terms.max_body_bytes,
                headers=merge_headers(options.pop("headers", None)),
                options=options,
            )
        except Exception as error:  # noqa: BLE001 - what is passed in may raise anything when it is looked at
            self._request = error
        target = self._target
        self._url = one_line(terms.redactor.url(_text(url if target is None else target)), URL_LIMIT)
        self._project = one_line(_text(project))
        self._host = "" if target is None else host_of(target)
        self._span: CallSpan | None = None
        self._exchange: Exchange | None = None
        self._place: Place | None = None
        self._paid: int | None = None
        self._in_queue = False
        self._last_failure = ""
        self._queued = 0.0
        self._started_us = self._started_ns = 0
        self._sent = 0
        self.attempts = self.retries = 0

    async def run(self) -> Any:
        """Attempt, decide, wait, until the call has its value or fails."""
        request, terms = self._request, self._terms
        if not isinstance(request, Request):
            self._request = None
            try:
                raise request if request is not None else RuntimeError("a call runs once")
            finally:
                del request  # or the error would hold the frame that holds it
        while True:
            try:
                await self._enter(request)
                value = await self._attempt(request)
            except ConnectorError as error:
                wait = self._after_failure(error)
                if wait is None:
                    raise
            else:
                terms.pacing.succeeded(self._host)
                if terms.buckets is not None:
                    terms.buckets.put_back(self._host, self._paid)
                return value
            finally:
                place, self._place = self._place, None
                await terms.pacing.leave(place, self._remaining())
            try:
                await terms.clock.sleep(wait)
            except BaseException:
                if terms.buckets is not None:  # paid for a retry that is not made
                    terms.buckets.put_back(self._host, self._paid)
                raise
            self.retries += 1

    def end(self, error: BaseException | None, write: WriteRow) -> None:
        """Make the call's record, and hand it to the exception, the log, the span and the metrics.

        The row comes before the end of the span: of a call that reaches an exporter both directly and through the SDK,
        the first is written, and the SDK may have cut what it hands on.

        Args:
            error: How the call failed; None if it did not.
            write: Takes the record, the context of the call's span, and its start and end in Unix nanoseconds.
        """
        terms, span = self._terms, self._opened()
        delta_us = (terms.clock.monotonic_ns() - self._started_ns) // 1_000
        if isinstance(error, ConnectorError):
            error.args = (one_line(terms.redactor.text(str(error))),)
            error.call_id, error.url, error.attempts = call_id_of(span.context), self._url, self.attempts
        record = self._record(span, error, delta_us)
        start_time, end_time = self._started_us * 1_000, (self._started_us + delta_us) * 1_000
        write(record, span.context, start_time, end_time)
        if isinstance(error, Exception):  # after the row, which a Ctrl-C in a log handler must not take
            terms.journal.failed(self._host, record, self.attempts)
        terms.telemetry.end(
            span,
            record,
            end_time=end_time,
            error_type=_error_type(error) if isinstance(error, Exception) else None,
            resend_count=max(self._sent - 1, 0),
            protocol_version=None if self._exchange is None else self._exchange.version,
            queued=self._queued,
        )

    async def _enter(self, request: Request) -> None:
        """Wait for the attempt's turn; before the first one that is not part of the call's time."""
        pacing, remaining, session = self._terms.pacing, self._remaining(), request.session
        self._in_queue = True
        try:
            if remaining == math.inf:
                place = await pacing.enter(session, self._host)
            elif remaining <= 0:
                raise self._too_late(f"before attempt {self.attempts + 1}")
            else:
                until = self._terms.clock.monotonic_ns() / 1e9 + remaining
                async with time_limit(remaining):
                    place = self._place = await pacing.enter(session, self._host, until)
        except asyncio.TimeoutError as error:
            if isinstance(error, ConnectorError):
                raise
            raise self._too_late("in the queue") from error
        self._place = place
        if session.closed:
            raise SessionClosed("session is closed; pass an open aiohttp.ClientSession")
        self._in_queue = False
        self._queued += place.queued

    def _too_late(self, where: str) -> DeadlineExceeded:
        after = f", after {self._last_failure}" if self._last_failure else ""
        return DeadlineExceeded(f"{self._terms.deadline:g} s passed {where}{after}")

    async def _attempt(self, request: Request) -> Any:
        """Make one attempt, with a span of its own if attempts have one."""
        terms, span = self._terms, self._opened()
        remaining, limit = self._remaining(), request.timeout
        bounded = remaining < (math.inf if limit.total is None else limit.total)
        if bounded:
            limit = bounded_by(limit, remaining)
        exchange = self._exchange = Exchange(asked=request.url)
        own = terms.telemetry.start_attempt(span, self._sent, self._unix_ns())
        if terms.propagate:
            exchange.context = terms.telemetry.inject(span, own)
        failure: BaseException | None = None
        try:
            return await attempt(request, exchange, limit)
        except AttemptTimeout as error:
            failure = error
            if not (bounded and exchange.out_of_time):
                raise
            failure = DeadlineExceeded(f"{terms.deadline:g} s passed: {error}")
            raise failure from error
        except BaseException as error:
            failure = error
            raise
        finally:
            self.attempts += 1 + exchange.repeats
            self._sent += exchange.sent
            terms.telemetry.end_attempt(
                own,
                end_time=self._unix_ns(),
                status=exchange.status,
                protocol_version=exchange.version,
                error_type=_error_type(failure) if isinstance(failure, Exception) else None,
                error=self._described(failure),
                resend_count=self._sent - 1 if exchange.sent > 1 else 0,
            )
            del failure  # or the error would hold the frame that holds it

    def _after_failure(self, error: ConnectorError) -> float | None:
        """Return the seconds to wait before the next attempt, None if there is none; note the failed one."""
        terms, exchange, now_ns = self._terms, self._exchange, self._terms.clock.monotonic_ns()
        if exchange is None or self._place is None or self._in_queue:
            return None  # it was no attempt that failed, but the wait for one
        if isinstance(error, HTTPStatusError) and "Retry-After" in error.headers:
            error.retry_after = parse_retry_after(error.headers["Retry-After"], terms.clock.time_ns() / 1e9)
        if isinstance(error, HTTPStatusError) and error.status in THROTTLING_STATUSES:
            # Who throttles is who answered, which a redirect may have made another host
            answered_by = self._host if exchange.final_url is None else host_of(exchange.final_url)
            terms.pacing.throttled(answered_by, self._place, terms.retry.pause(error))
        decision = terms.retry.decide(
            error,
            attempt=self.attempts,
            n_tries=terms.n_tries,
            random=terms.clock.random,
            remaining=self._remaining(),
        )
        wait, refused = decision.wait, False
        if wait is not None and terms.buckets is not None:
            self._paid = terms.buckets.take(self._host, error)
            refused = self._paid is None
        failed = Attempt(
            call_id=call_id_of(self._opened().context),
            project=self._project,
            url=self._url,
            number=self.attempts,
            duration=now_ns / 1e9 - self._place.entered,
            status=exchange.status,
            error_type=_error_type(error),
            error=self._described(error),
            reason=decision.reason,
            wait=None if refused else wait,
        )
        self._last_failure = failed.error
        terms.telemetry.attempt_failed(self._opened(), failed, self._unix_ns())
        if refused:
            raise RetryBudgetExhausted(f"no retry of {self._host}, its budget is used up: {error}") from error
        if wait is not None:
            terms.journal.retrying(self._host, failed)
        return wait

    def _opened(self) -> CallSpan:
        """Return the call's span; the first time, start it and the call's clocks."""
        if self._span is None:
            clock, target = self._terms.clock, self._target
            self._started_us, self._started_ns = clock.time_ns() // 1_000, clock.monotonic_ns()
            if self._in_queue:  # it never came out
                self._queued = (self._started_ns - self._accepted_ns) / 1e9
            host, port = (None, None) if target is None else (target.host, target.port)
            self._span = self._terms.telemetry.start(self._url, host, port, self._project, self._started_us * 1_000)
        return self._span

    def _remaining(self) -> float:
        """Return the seconds that are left of the deadline."""
        if self._terms.deadline is None:
            return math.inf
        return self._terms.deadline - (self._terms.clock.monotonic_ns() - self._accepted_ns) / 1e9

    def _unix_ns(self) -> int:
        """Return the time as the call's spans have it: its start plus what the monotonic clock counted since."""
        return self._started_us * 1_000 + self._terms.clock.monotonic_ns() - self._started_ns

    def _described(self, error: BaseException | None) -> str:
        if error is None:
            return ""
        message = self._terms.redactor.text(str(error))
        return one_line(f"{type(error).__name__}: {message}" if message else type(error).__name__, TEXT_LIMIT)

    def _record(self, span: CallSpan, error: BaseException | None, delta_us: int) -> CallRecord:
        exchange, redirect_url = self._exchange, ""
        if exchange is not None and exchange.final_url is not None:
            redirect_url = one_line(self._terms.redactor.url(str(exchange.final_url)), URL_LIMIT)
        return CallRecord(
            call_id=call_id_of(span.context),
            project=self._project,
            t=self._started_us / 1e6,
            delta_t=delta_us / 1e6,
            url=self._url,
            redirect_url=redirect_url,
            response_size=0 if exchange is None else exchange.size,
            response_code=None if exchange is None else exchange.status,
            success=error is None,
            error=self._described(error),
        )


def host_of(url: URL) -> str:
    """Return ``host:port``, by which the pace of a server is kept."""
    return f"{url.raw_host}:{url.port}"


def _error_type(error: Exception) -> str:
    """Return the value of ``error.type``: the status as text, or the class's qualified name."""
    if isinstance(error, HTTPStatusError):
        return str(error.status)
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _text(value: object) -> str:
    """Return the text of a URL or a project; nothing of what is neither, because it may be anything."""
    if isinstance(value, str):
        return str.__str__(value)  # not a subclass's own, which may do anything
    return str(value) if isinstance(value, URL) else ""
