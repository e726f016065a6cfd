"""One call, from its arguments to its record: wait for a permit, attempt, decide, wait, repeat.

This file contains the loop. ``_transport`` makes an attempt, ``_retry`` decides whether there is another one,
``_pacing`` decides when an attempt may start, ``_telemetry`` records spans and metrics. The record is created once, at
the end. This file does not know exporters or files.

Used by ``_connector``.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from aiohttp import ClientSession
from multidict import CIMultiDict
from yarl import URL

from otel_connector._arguments import check_call, checked_template, checked_timeout
from otel_connector._call._attempts import AttemptHistory
from otel_connector._call._body import loads
from otel_connector._call._credentials import credentials_of
from otel_connector._call._exchange import Exchange, Request
from otel_connector._call._options import repeatable
from otel_connector._call._pacing import Permit
from otel_connector._call._settings import steps_of
from otel_connector._call._transport import attempt, forget_address
from otel_connector._call._urls import host_of, text_of
from otel_connector._clock import shorten, suspended, time_limit
from otel_connector._errors import (
    AttemptTimeout,
    ConnectorError,
    DeadlineExceeded,
    HTTPStatusError,
    InvalidURL,
    RedirectRefused,
    RetryBudgetExhausted,
    error_type_of,
    message_of,
)
from otel_connector._record import TEXT_LIMIT, URL_LIMIT, Attempt, AttemptRecord, CallRecord, one_line
from otel_connector._redact import REDACTED
from otel_connector._retry_after import retry_after_of
from otel_connector._units import exact_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import aiohttp
    from multidict import MultiMapping

    from otel_connector._call._settings import CallSettings, Target
    from otel_connector._telemetry._call_span import CallSpan

_FIRST_ATTEMPT, _REDIRECT = "first_attempt", "redirect"  # reasons of a wait, beside those of retries

_TIMER_SECONDS = 0.01  # by which a timer may differ from the clock

WriteRow: TypeAlias = "Callable[[CallRecord, int | None, Sequence[AttemptRecord]], None]"


class Call:
    """One call: `run` it once, then `end` it, regardless of its result.

    Args:
        settings: The settings of the connector.
    """

    _history: AttemptHistory | None = None  # here are values that most calls keep
    _failure: ConnectorError | None = None
    _credentials: tuple[Exchange | None, frozenset[str]] | None = None  # those of the last attempt
    _headers: CIMultiDict[str] | None = None
    _paid: int | None = None  # tokens of the last retry
    _stopped_ns: int | None = None
    _template = _last_failure = ""
    _reason = _FIRST_ATTEMPT

    def __init__(self, settings: CallSettings) -> None:
        self._settings = settings
        self._accepted_ns = settings.clock.monotonic_ns()
        self._target: Target | None = None
        self._span: CallSpan | None = None
        self._exchange: Exchange | None = None
        self._permit: Permit | None = None
        self._given: tuple[Any, Any, dict[str, Any]] = None, None, {}  # session, URL and options
        self._url = self._host = self._project = ""
        self._queued = 0.0
        self._started_us = self._started_ns = self._ended_ns = self._sent = self.attempts = self.retries = 0

    async def run(
        self,
        session: aiohttp.ClientSession,
        url: str | URL,
        project: str,
        decode: Callable[[bytes], Any],
        options: dict[str, Any],
        *,
        template: str | None = None,
    ) -> Any:
        """Attempt, decide and wait, until the call has its value or fails.

        Args:
            session: The session to send with.
            url: The URL to request.
            project: The project that the call belongs to.
            decode: Converts the bytes of the body to the value.
            options: Options of ``aiohttp.ClientSession.get``; this object keeps a copy.
            template: The template of the URL; None for none.
        """
        settings, request = self._settings, self._prepared(session, url, project, decode, options, template=template)
        host = self._host
        permit = self._permit = Permit(settings.admission, session, host)
        while True:
            try:
                if settings.deadline is not None and self._remaining() <= 0:
                    raise self._deadline_exceeded(f"before attempt {self.attempts + 1}")
                if not permit.enter_nowait():
                    await self._enter(permit)
                self._host = permit.host
                exchange = self._exchange = Exchange(request)
                try:
                    value = await self._attempt(request, exchange)
                except ConnectorError as error:
                    wait = self._after_failure(error, exchange, permit)
                    if wait is None:
                        raise
                    forget_address(session, exchange, error)
                else:
                    if settings.admission.hosts:
                        settings.admission.succeeded(permit.host, permit.admitted)
                    if settings.quotas is not None:
                        settings.quotas.put_back(self._host, self._paid)
                    return value
            finally:
                if not permit.leave_nowait():
                    await permit.leave(self._remaining())
            permit = self._permit = Permit(settings.admission, session, host)
            await settings.clock.sleep(wait)

    def _prepared(
        self, session: Any, url: Any, project: Any, decode: Any, options: dict[str, Any], *, template: Any
    ) -> Request:
        """Check the arguments and return the request; an error of an argument has a row, too."""
        settings = self._settings
        self._given = session, url, options
        # For a subclass of str, such as an Enum's member, the text that it holds
        self._project = one_line(project if type(project) is str else text_of(project))
        try:
            check_call(session, project, decode, options)
            if template is not None:
                self._template = one_line(settings.redactor.text(checked_template(template)))
            if options:
                options = repeatable(options)
                self._headers = options.pop("headers", None)
            params = options.pop("params", None) if options else None
            target = settings.targets.get(url) if type(url) is str and params is None else None
            self._target = target = target or settings.target(session, url, params)
            self._url, self._host = target.shown, target.host
            timeout = checked_timeout(options.pop("timeout")) if "timeout" in options else settings.timeout
            return Request(
                session,
                target.url,
                timeout,
                settings.step_timeout if timeout is settings.timeout else steps_of(timeout),
                loads if decode is json.loads else decode,
                settings.max_body_bytes,
                settings.redactor.url,
                self._headers,
                options,
            )
        except BaseException as error:
            if self._target is None:
                self._url = one_line(settings.redactor.url(text_of(url)), URL_LIMIT)
            if isinstance(error, InvalidURL):
                error.args = (f"{error}: {self._url}",)
            elif isinstance(error, (TypeError, ValueError)):
                self._redact_message(error)
            raise

    def stop(self) -> CallRecord:
        """Freeze the end time: what the caller does with the value before `end` does not count.

        Returns:
            The record of the call, if it ends without an error.
        """
        self._stopped_ns = self._ended_ns or self._settings.clock.monotonic_ns()
        return self._record(self._opened(), None, (self._stopped_ns - self._started_ns) // 1_000)

    def end(self, error: BaseException | None, write: WriteRow) -> CallRecord:
        """Create the record of the call, and pass it to the exception, the row, the log, the span and the metrics.

        The row is written before the span ends. If an exporter receives a call both directly and through the SDK, it
        writes the first one, and the SDK may have truncated its attributes.

        Args:
            error: How the call failed; None if it did not.
            write: Takes the record, the start of the span in Unix nanoseconds (None: no span), and the attempts.
        """
        settings, span = self._settings, self._span or self._opened()
        waited, self._failure = self._failure is not None, None  # its traceback refers to this call
        if self._paid is not None and self._permit is not None and self._permit.waiting and settings.quotas is not None:
            settings.quotas.put_back(self._host, self._paid)  # the retry was not made
        stopped_ns = self._stopped_ns
        if stopped_ns is None:
            stopped_ns = self._ended_ns or settings.clock.monotonic_ns()
        delta_us = (stopped_ns - self._started_ns) // 1_000
        if isinstance(error, ConnectorError):
            self._redact_message(error)
            error.call_id, error.url, error.attempts = span.call_id, self._url, self.attempts
        record, error_type, history = self._record(span, error, delta_us), None, self._history
        exchange = self._exchange
        if history is not None or (error is not None and self.attempts and self._stopped_ns is None):
            history = history or AttemptHistory(span.call_id, self._started_us)
            status, suspended = cast("Exchange", exchange).status, cast("Permit", self._permit).suspended
            unsuccessful = error if self._stopped_ns is None else None
            history.ends(self._started_us + delta_us, self.attempts, unsuccessful, status, suspended)
            settings.telemetry.waited(span, history.records[-1], history.host, again=False, unmade=history.retry)
        write(record, self._started_us * 1_000 if span.recorded else None, () if history is None else history.records)
        if isinstance(error, Exception):
            error_type = error_type_of(error)
            # After the row, because a log handler may raise KeyboardInterrupt
            settings.call_logger.failed(self._host, record, self.attempts)
        settings.telemetry.end(
            span,
            record,
            end_time=(self._started_us + delta_us) * 1_000,
            error_type=error_type,
            resend_count=self._sent - 1 if self._sent else 0,
            http_version=None if exchange is None else exchange.version,
            queued=self._queued,
            retried=waited,
            headers=None if exchange is None else exchange.response_headers,
            failures=() if history is None else history.failures,
        )
        return record

    async def _enter(self, permit: Permit) -> None:
        """Wait until the attempt may start; before the first one, this is not part of the call's time."""
        remaining = self._remaining()
        if self._history is not None:
            self._history.queues(self._unix_us(self._settings.clock.monotonic_ns()))
        try:
            async with time_limit(None if remaining == math.inf else remaining):
                await permit.enter(self._settings.clock.monotonic_ns() / 1e9 + remaining)
            permit.check_session()  # here, where no time limit applies when the rate limiter is left
        except DeadlineExceeded:
            if self._failure is not None:  # the pause would outlast the deadline: the last failure is the call's
                raise self._failure from self._failure.__cause__
            raise
        except asyncio.TimeoutError as error:
            raise self._deadline_exceeded("in the queue") from error
        finally:
            if self.attempts or not permit.waiting:  # otherwise `_opened` counts it, when the call ends
                self._queued += permit.queued
                self._settings.telemetry.queued(self._opened(), self._reason, permit.queued)

    def _deadline_exceeded(self, where: str) -> DeadlineExceeded:
        after = f", after {self._last_failure}" if self._last_failure else ""
        return DeadlineExceeded(f"{exact_duration(self._settings.deadline or 0.0)} passed {where}{after}")

    async def _attempt(self, request: Request, exchange: Exchange) -> Any:
        """Make one attempt, with its own span if `attempt_spans` is set."""
        settings, telemetry, span = self._settings, self._settings.telemetry, self._span or self._opened()
        seconds = request.timeout.total or math.inf  # aiohttp uses 0 for no limit
        remaining = math.inf if settings.deadline is None else self._remaining()
        attempt_span, exchange.scope = None, span.scope
        if self._history is not None:
            self._history.begins(self._unix_us(settings.clock.monotonic_ns()))
            self.retries += 1
            telemetry.waited(span, self._history.records[-1], self._history.host, again=True)
        if telemetry.attempt_spans:
            history, began, retry = self._history, self._started_us, None
            if history is not None:
                began, retry = history.began, history.retry
            attempt_span = telemetry.start_attempt(span, self._sent, began * 1_000, retry)
            exchange.scope = span.scope if attempt_span is None else attempt_span.scope
        if settings.propagate:
            exchange.context = telemetry.inject(span, attempt_span)
        failure: BaseException | None = None
        exchange.before_redirect = self._before_redirect
        try:
            return await attempt(request, exchange, min(seconds, remaining))
        except AttemptTimeout as error:
            failure = error
            if not (exchange.out_of_time and (remaining < seconds or self._remaining() < _TIMER_SECONDS)):
                raise
            failure = DeadlineExceeded(f"{exact_duration(settings.deadline or 0.0)} passed: {error}")
            raise failure from error
        except BaseException as error:
            failure = error
            if not isinstance(error, ConnectorError) and isinstance(error, (TypeError, ValueError)):
                self._redact_message(error)
            raise
        finally:
            exchange.before_redirect = exchange.limit = None  # they refer to this call and to the task
            self.attempts += 1 + exchange.repeats
            self._sent += exchange.sent
            if attempt_span is not None:
                self._ended_ns = settings.clock.monotonic_ns()
                telemetry.end_attempt(
                    span,
                    attempt_span,
                    end_time=self._unix_us(self._ended_ns) * 1_000,
                    number=self.attempts,
                    redirect_queue=cast("Permit", self._permit).suspended,
                    status=exchange.status,
                    http_version=exchange.version,
                    error_type=error_type_of(failure) if isinstance(failure, Exception) else None,
                    error=self._described(failure),
                    retried=self.retries > 0,
                    resend_count=self._sent - 1 if exchange.sent > 1 else 0,
                    headers=exchange.response_headers,
                )
            del failure  # otherwise the error would refer to this frame, and this frame to the error

    async def _before_redirect(self, url: URL, headers: MultiMapping[str]) -> None:
        """Wait until the request of a redirect may be sent. This is not part of the time of the attempt."""
        settings, permit, exchange = self._settings, cast("Permit", self._permit), cast("Exchange", self._exchange)
        host, started_ns, remaining = f"{host_of(url)}{permit.suffix}", settings.clock.monotonic_ns(), self._remaining()
        pause = retry_after_of(headers, settings.clock.time_ns() / 1e9) or 0.0
        if pause > settings.retry.retry_after_cap:
            raise RedirectRefused(f"the redirect asks to wait for {exact_duration(pause)}, above retry_after_cap")
        if not pause and permit.move_nowait(host):
            return
        try:
            with suspended(exchange.limit):
                async with time_limit(None if remaining == math.inf else remaining):
                    await permit.move(host, pause, started_ns / 1e9 + remaining)
        except DeadlineExceeded:
            raise
        except asyncio.TimeoutError as error:
            raise self._deadline_exceeded("in the queue of a redirect") from error
        finally:
            waited = (settings.clock.monotonic_ns() - started_ns) / 1e9
            permit.suspended += waited
            self._queued += waited
            settings.telemetry.queued(self._opened(), _REDIRECT, waited, settings.telemetry.host(url.host, url.port))
        shorten(exchange.limit, self._remaining())

    def _after_failure(self, error: ConnectorError, exchange: Exchange, permit: Permit) -> float | None:
        """Note a failed attempt, and return the seconds to wait before the next one; None if there is none."""
        settings, final = self._settings, exchange.final_url
        now_ns = self._ended_ns or settings.clock.monotonic_ns()
        if isinstance(error, HTTPStatusError):
            error.retry_after = retry_after_of(CIMultiDict(error.headers), settings.clock.time_ns() / 1e9)
        host = None if final is None else settings.telemetry.host(final.host, final.port)
        answered_by = permit.host if final is None else f"{host_of(final)}{permit.suffix}"  # another after a redirect
        settings.note_failure(error, answered_by, permit.admitted)
        decision = settings.retry.decide(
            error,
            attempt=self.attempts,
            n_tries=settings.n_tries,
            random=settings.clock.random,
            remaining=self._remaining(),
        )
        wait, refused = decision.wait, False
        if wait is not None and settings.quotas is not None:
            self._paid = settings.quotas.take(self._host, error)
            refused = self._paid is None
        failed = Attempt(
            call_id=self._opened().call_id,
            project=self._project,
            url=self._url,
            number=self.attempts,
            duration=now_ns / 1e9 - permit.entered - permit.suspended,
            status=exchange.status,
            error_type=error_type_of(error),
            error=self._described(error),
            reason=decision.reason,
            wait=None if refused else wait,
        )
        self._last_failure, self._reason = failed.error, failed.reason
        self._history = self._history or AttemptHistory(failed.call_id, self._started_us)
        self._history.failed(failed, self._unix_us(now_ns), permit.suspended, host, getattr(error, "retry_after", None))
        if refused:
            raise RetryBudgetExhausted(f"the retry budget of {self._host} is exhausted: {error}") from error
        if wait is not None:
            self._failure, self._ended_ns = error, 0
            settings.call_logger.retrying(self._host, failed)
        return wait

    def _opened(self) -> CallSpan:
        """Return the call's span; the first time, start the span and the clocks of the call."""
        if self._span is None:
            clock, telemetry, target = self._settings.clock, self._settings.telemetry, self._target
            self._started_us, self._started_ns = clock.time_ns() // 1_000, clock.monotonic_ns()
            url_telemetry = telemetry.for_url(self._url, None, None) if target is None else target.url_telemetry
            if self._template or telemetry.contrib is not None:
                headers = None if target is None else (self._given[0].headers, self._headers)
                url_telemetry = telemetry.for_call(url_telemetry, self._template, headers)
            try:
                self._span = telemetry.start(url_telemetry, self._project, self._started_us * 1_000)
            except BaseException:  # ends the program; `end` must not start the span again
                self._span = telemetry.without_span(url_telemetry, self._project)
                raise
            if self._permit is not None and self._permit.waiting:  # the call ends before its first attempt
                self._queued = (self._started_ns - self._accepted_ns) / 1e9
                telemetry.queued(self._span, self._reason, self._queued)
        return self._span

    def _remaining(self) -> float:
        """Return the seconds that are left until the deadline; infinite if there is none."""
        if self._settings.deadline is None:
            return math.inf
        return self._settings.deadline - (self._settings.clock.monotonic_ns() - self._accepted_ns) / 1e9

    def _unix_us(self, monotonic_ns: int) -> int:
        """Return a moment for spans and rows: the start of the call plus the time on the monotonic clock since then."""
        return self._started_us + (monotonic_ns - self._started_ns) // 1_000

    def _described(self, error: BaseException | None) -> str:
        if error is None:
            return ""
        message = self._redacted(error)
        return one_line(f"{type(error).__name__}: {message}" if message else type(error).__name__, TEXT_LIMIT)

    def _redact_message(self, error: BaseException) -> None:
        error.args = (one_line(self._redacted(error)),)

    def _redacted(self, error: BaseException) -> str:
        """Return the message of an error without secrets, and without the credentials that the call has sent."""
        redactor, exchange = self._settings.redactor, self._exchange
        if self._credentials is None or self._credentials[0] is not exchange:
            session, url, options = self._given
            session = session if isinstance(session, ClientSession) else None
            known = url if self._target is None else self._target.url
            try:
                self._credentials = exchange, credentials_of(session, known, options, exchange, redactor)
            except Exception:  # noqa: BLE001 - of an option that cannot be read: it may have shown a secret before
                return REDACTED
        return redactor.text(message_of(error), self._credentials[1])

    def _record(self, span: CallSpan, error: BaseException | None, delta_us: int) -> CallRecord:
        exchange, redirect_url = self._exchange, ""
        if exchange is not None and exchange.final_url is not None:
            redirect_url = one_line(self._settings.redactor.url(str(exchange.final_url)), URL_LIMIT)
        return CallRecord(
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
