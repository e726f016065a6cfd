"""One call, from its arguments to its record: queue, attempt, decide, wait, again.

Holds the loop and nothing else: what an attempt does is ``_transport``'s, whether there is another ``_retry``'s, when
it may start ``_pacing``'s, how it looks from outside ``_telemetry``'s. The record is made once, at the end. Knows no
exporter and no file.
"""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from yarl import URL

from otel_connector._arguments import check_call, checked_timeout
from otel_connector._call._pacing import session_closed
from otel_connector._call._retry import THROTTLING_STATUSES, parse_retry_after
from otel_connector._call._transport import Exchange, Request, attempt, bounded_by, loads, own_headers, resolve_url
from otel_connector._clock import time_limit
from otel_connector._errors import (
    AttemptTimeout,
    ConnectorError,
    DeadlineExceeded,
    HTTPStatusError,
    RetryBudgetExhausted,
    class_name,
)
from otel_connector._record import TEXT_LIMIT, URL_LIMIT, Attempt, CallRecord, new_record, one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    import aiohttp

    from otel_connector._call._call_log import CallLogger
    from otel_connector._call._pacing import AdmissionControl, Permit
    from otel_connector._call._retry import RetryPolicy, RetryQuotas
    from otel_connector._clock import Clock
    from otel_connector._redact import Redactor
    from otel_connector._telemetry._spans import CallSpan, CallTelemetry, UrlTelemetry


_FIRST_SERVER_ERROR = 500  # RFC 9110, section 15.6

_TARGETS = 128  # as many as yarl remembers of what it has parsed, and for the same reason

WriteRow: TypeAlias = "Callable[[CallRecord, int | None], None]"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """What all calls of a connector have in common; the parameters of `AsyncConnector` say what each means."""

    n_tries: int
    timeout: aiohttp.ClientTimeout
    deadline: float | None
    retry: RetryPolicy
    buckets: RetryQuotas | None
    max_body_bytes: int
    propagate: bool
    redactor: Redactor
    clock: Clock
    pacing: AdmissionControl
    telemetry: CallTelemetry
    journal: CallLogger
    targets: dict[str, Target] = field(init=False, default_factory=dict[str, "Target"])
    """What was asked for of late, by URL: programs ask for the same again."""

    def target(self, session: aiohttp.ClientSession, url: Any, params: Any) -> Target:
        """Return what there is to know of the URL that a call is for; it may raise what `resolve_url` does."""
        resolved = resolve_url(session, url, params)
        shown = one_line(self.redactor.url(str(resolved)), URL_LIMIT)
        asked = self.telemetry.for_url(shown, resolved.host, resolved.port)
        target = Target(resolved, shown, host_of(resolved), asked)
        # A str, because those of a subclass may be equal to anything; absolute, and so the same in every session
        if type(url) is str and params is None and URL(url).absolute:
            if len(self.targets) >= _TARGETS:
                self.targets.clear()
            self.targets[url] = target
        return target


@dataclass(slots=True, eq=False)
class Target:
    """What a call is for.

    Attributes:
        url: The URL asked for: absolute, `params` applied.
        shown: The same, redacted.
        host: Whose it is, as the pace is kept by.
        asked: What telemetry knows it by.
    """

    url: URL
    shown: str
    host: str
    asked: UrlTelemetry


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
        "_failure",
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
        "_stopped_ns",
        "_target",
        "_terms",
        "_url",
        "attempts",
        "retries",
    )

    def __init__(  # noqa: PLR0917 - by name, they cost 0.5 % of a bare call
        self,
        terms: CallSettings,
        session: aiohttp.ClientSession,
        url: str | URL,
        project: str,
        decode: Callable[[bytes], Any],
        options: dict[str, Any],
    ) -> None:
        self._terms = terms
        self._accepted_ns = terms.clock.monotonic_ns()
        self._request: Request | Exception | None
        self._target: Target | None = None
        self._span: CallSpan | None = None
        self._exchange: Exchange | None = None
        self._place: Permit | None = None
        self._failure: ConnectorError | None = None
        self._paid: int | None = None
        self._stopped_ns: int | None = None
        self._host = self._last_failure = ""
        self._in_queue = False
        self._queued = 0.0
        self._started_us = self._started_ns = self._sent = self.attempts = self.retries = 0
        try:
            check_call(session, project, decode, options)
            params = options.pop("params", None) if options else None
            target = terms.targets.get(url) if type(url) is str and params is None else None
            if target is None:
                target = terms.target(session, url, params)
            self._target = target
            timeout, headers = terms.timeout, None
            if options:
                headers = own_headers(options.pop("headers", None))
                timeout = checked_timeout(options.pop("timeout")) if "timeout" in options else timeout
            self._request = Request(
                session,
                target.url,
                timeout,
                loads if decode is json.loads else decode,
                terms.max_body_bytes,
                terms.redactor.url,
                headers,
                options,
            )
            self._url, self._host = target.shown, target.host
        except Exception as error:  # noqa: BLE001 - what is passed in may raise anything when it is looked at
            self._request, project = error, _text(project)
            target = self._target
            self._url = one_line(terms.redactor.url(_text(url)), URL_LIMIT) if target is None else target.shown
        # Of a subclass (an Enum's member, say) its text, and not what it would be written as
        self._project = one_line(project if type(project) is str else _text(project))

    async def run(self) -> Any:
        """Attempt, decide, wait, until the call has its value or fails."""
        request, terms = self._request, self._terms
        if not isinstance(request, Request):
            del request  # or the error would hold the frame that holds it
            raise self._refused()
        while True:
            try:
                self._in_queue = True
                if terms.deadline is not None:
                    self._check_deadline(f"before attempt {self.attempts + 1}")
                self._place = terms.pacing.enter_now(request.session, self._host)
                if self._place is None:
                    await self._enter(request)
                self._in_queue = False
                value = await self._attempt(request)
            except ConnectorError as error:
                wait = self._after_failure(error)
                if wait is None:
                    raise
            else:
                if terms.pacing.adaptive or terms.buckets is not None:
                    self._succeeded()
                return value
            finally:
                place, self._place = self._place, None
                if not terms.pacing.leave_now(place):
                    await terms.pacing.leave(place, self._remaining())
            self._in_queue = True
            await terms.clock.sleep(wait)
            self.retries += 1

    def _refused(self) -> Exception:
        """Return what was wrong with the arguments, once."""
        error, self._request = self._request, None
        return error if isinstance(error, Exception) else RuntimeError("a call runs once")

    def stop(self) -> CallRecord:
        """Note that the call has its value: what its caller does with it before `end` is not the call's time.

        Returns:
            What its record will be, if it ends without an error.
        """
        self._stopped_ns = self._terms.clock.monotonic_ns()
        return self._record(self._opened(), None, (self._stopped_ns - self._started_ns) // 1_000)

    def end(self, error: BaseException | None, write: WriteRow) -> CallRecord:
        """Make the call's record, and hand it to the exception, the log, the span and the metrics.

        The row comes before the end of the span: of a call that reaches an exporter both directly and through the SDK,
        the first is written, and the SDK may have cut what it hands on.

        Args:
            error: How the call failed; None if it did not.
            write: Takes the record, and when the call's span starts in Unix nanoseconds; None where there is no span.
        """
        terms, span = self._terms, self._span or self._opened()
        self._failure = None  # whose frames hold this call
        if self._in_queue and self._paid is not None and terms.buckets is not None:
            terms.buckets.put_back(self._host, self._paid)  # paid for a retry that was not made
        stopped_ns = terms.clock.monotonic_ns() if self._stopped_ns is None else self._stopped_ns
        delta_us = (stopped_ns - self._started_ns) // 1_000
        if isinstance(error, ConnectorError):
            error.args = (one_line(terms.redactor.text(str(error))),)
            error.call_id, error.url, error.attempts = span.call_id, self._url, self.attempts
        record, error_type = self._record(span, error, delta_us), None
        write(record, self._started_us * 1_000 if span.recorded else None)
        if isinstance(error, Exception):
            error_type = _error_type(error)
            terms.journal.failed(self._host, record, self.attempts)  # after the row: a handler may let a Ctrl-C out
        terms.telemetry.end(
            span,
            record,
            end_time=(self._started_us + delta_us) * 1_000,
            error_type=error_type,
            resend_count=self._sent - 1 if self._sent else 0,
            http_version=None if self._exchange is None else self._exchange.version,
            queued=self._queued,
        )
        return record

    async def _enter(self, request: Request) -> None:
        """Wait for the attempt's turn; before the first one that is not part of the call's time."""
        pacing, remaining, session = self._terms.pacing, self._remaining(), request.session
        try:
            if remaining == math.inf:
                place = await pacing.enter(session, self._host)
            else:
                until = self._terms.clock.monotonic_ns() / 1e9 + remaining
                async with time_limit(remaining):
                    place = self._place = await pacing.enter(session, self._host, until)
        except DeadlineExceeded:
            if self._failure is not None:  # a wait that is not begun leaves the call with its last attempt's error
                raise self._failure from self._failure.__cause__
            raise
        except asyncio.TimeoutError as error:
            raise self._too_late("in the queue") from error
        self._place = place
        if session.closed:  # asked for here, where no limit of time cuts short how the limiter is left
            raise session_closed()
        self._queued += place.queued
        self._terms.telemetry.counts.queued += place.queued

    def _check_deadline(self, where: str) -> None:
        if self._remaining() <= 0:
            raise self._too_late(where)

    def _too_late(self, where: str) -> DeadlineExceeded:
        after = f", after {self._last_failure}" if self._last_failure else ""
        return DeadlineExceeded(f"{self._terms.deadline:g} s passed {where}{after}")

    async def _attempt(self, request: Request) -> Any:
        """Make one attempt, with a span of its own if attempts have one."""
        terms, span = self._terms, self._span or self._opened()
        limit, bounded = request.timeout, False
        if terms.deadline is not None:
            remaining, total = self._remaining(), limit.total or math.inf  # 0 is no limit to aiohttp either
            bounded = remaining < total
            limit = bounded_by(limit, min(remaining, total))
        exchange = self._exchange = Exchange(request.url)
        own = None
        if terms.telemetry.attempt_spans:
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
            if own is not None:
                terms.telemetry.end_attempt(
                    own,
                    end_time=self._unix_ns(),
                    status=exchange.status,
                    http_version=exchange.version,
                    error_type=_error_type(failure) if isinstance(failure, Exception) else None,
                    error=self._described(failure),
                    resend_count=self._sent - 1 if exchange.sent > 1 else 0,
                )
            del failure  # or the error would hold the frame that holds it

    def _succeeded(self) -> None:
        """Tell those who go by it."""
        self._terms.pacing.succeeded(self._host)
        if self._terms.buckets is not None:
            self._terms.buckets.put_back(self._host, self._paid)

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
        elif isinstance(error, HTTPStatusError) and error.status < _FIRST_SERVER_ERROR:
            terms.pacing.succeeded(self._host)  # it answers, and has nothing against the pace
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
            call_id=self._opened().call_id,
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
            self._failure = error
            terms.journal.retrying(self._host, failed)
        return wait

    def _opened(self) -> CallSpan:
        """Return the call's span; the first time, start it and the call's clocks."""
        if self._span is None:
            clock, telemetry, target = self._terms.clock, self._terms.telemetry, self._target
            self._started_us, self._started_ns = clock.time_ns() // 1_000, clock.monotonic_ns()
            if self._in_queue:  # it never came out
                self._queued = (self._started_ns - self._accepted_ns) / 1e9
                telemetry.counts.queued += self._queued
            asked = telemetry.for_url(self._url, None, None) if target is None else target.asked
            self._span = telemetry.start(asked, self._project, self._started_us * 1_000)
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
        fields = (
            span.call_id,
            self._project,
            self._started_us / 1e6,
            delta_us / 1e6,
            self._url,
            redirect_url,
            0 if exchange is None else exchange.size,
            None if exchange is None else exchange.status,
            error is None,
            "" if error is None else self._described(error),
        )
        return new_record(fields)


def host_of(url: URL) -> str:
    """Return ``host:port``, by which the pace of a server is kept; without the final dot that a full name may have."""
    host = url.raw_host or ""
    return f"{host.removesuffix('.')}:{url.port}"


def _error_type(error: Exception) -> str:
    """Return the value of ``error.type``: the status as text, or the class's qualified name."""
    return str(error.status) if isinstance(error, HTTPStatusError) else class_name(type(error))


def _text(value: object) -> str:
    """Return the text of a URL or a project; nothing of what is neither, because it may be anything."""
    if isinstance(value, str):
        return str.__str__(value)  # not a subclass's own, which may do anything
    return str(value) if isinstance(value, URL) else ""
