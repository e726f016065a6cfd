"""The attempts of a call that does not succeed at its first one: when each began, what it took, and what it cost.

The times are differences of moments in whole microseconds, each of which is used once. So durations,
queue times and waits of all attempts together are exactly the time of the call. This file does not know clocks, spans
or rows.

Used by ``_call._call``.
"""

from __future__ import annotations

from asyncio import CancelledError
from typing import TYPE_CHECKING

from otel_connector._errors import error_type_of
from otel_connector._record import AttemptRecord, Retry

if TYPE_CHECKING:
    from otel_connector._record import Attempt
    from otel_connector._telemetry._metrics import Host

_CANCELLED = "cancelled"  # the reason of an attempt that has no result


class AttemptHistory:
    """The attempts of one call. All moments are Unix times in microseconds: the start of the call, plus monotonic time.

    An attempt that failed is complete only when the next one begins, or the call ends: then the wait and the queue time
    after it are known.

    Args:
        call_id: The call's id.
        started: Start of the call.

    Attributes:
        records: The attempts, in order.
        failures: The records of those that failed, each with its end in Unix nanoseconds.
        began: Start of the last attempt.
        retry: Why and when the last attempt was made; after the end of the call, the retry for which it still waited.
            None for the first attempt, and if no retry was to follow.
        host: The host labels of the server that answered the last failed attempt, if it is not that of the URL.
    """

    def __init__(self, call_id: str, started: int) -> None:
        self.records: list[AttemptRecord] = []
        self.failures: list[tuple[AttemptRecord, int]] = []
        self.retry: Retry | None = None
        self.host: Host | None = None
        self._call_id = call_id
        self.began = started
        self._failure: Attempt | None = None  # its failure, until it is complete
        self._failed_at = self._suspended = 0
        self._queue_since: int | None = None
        self._retry_after: float | None = None

    def failed(
        self, failure: Attempt, now: int, suspended: float, host: Host | None, retry_after: float | None
    ) -> None:
        """Note that an attempt failed.

        Args:
            failure: The attempt.
            now: Its end.
            suspended: Seconds that redirects waited during it.
            host: Who answered it.
            retry_after: Seconds of its ``Retry-After``.
        """
        self.retry, self.host, self._retry_after = None, host, retry_after or None
        self._failure, self._failed_at, self._suspended = failure, now, self._within_attempt(suspended, now)

    def queues(self, now: int) -> None:
        """Note that the next attempt has to wait for its permit."""
        self._queue_since = now

    def begins(self, now: int) -> None:
        """Note that the next attempt begins."""
        self._complete(now)
        self.began = now

    def ends(self, now: int, number: int, error: BaseException | None, status: int | None, suspended: float) -> None:
        """Note the end of the call.

        Args:
            now: The end.
            number: Of the last attempt.
            error: Why it did not succeed, if `failed` was not called for it; None if it succeeded.
            status: HTTP status of its last response.
            suspended: Seconds that redirects waited during it.
        """
        if self._complete(now):
            return
        self.retry = None
        reason = error_type = ""
        if isinstance(error, CancelledError):
            reason = _CANCELLED
        elif error is not None:
            reason, error_type = type(error).__name__, error_type_of(error)
        self._suspended = self._within_attempt(suspended, now)
        self._add(now, self._suspended, None, (number, reason, status, error_type))

    def _complete(self, now: int) -> bool:
        """Add the record of the attempt that failed; False if none has, since the last one began."""
        failure, ended, queue, wait, asked = self._failure, now, self._suspended, None, None
        if failure is None:
            return False
        if failure.wait is not None:
            queue_since = now if self._queue_since is None else self._queue_since
            ended, wait, queue = self._failed_at, queue_since - self._failed_at, queue + now - queue_since
            asked = self._retry_after
            self.retry = Retry(failure.reason, wait / 1e6, (now - queue_since) / 1e6)
        self._add(ended, queue, wait, (failure.number, failure.reason, failure.status, failure.error_type), asked)
        self._failure = self._queue_since = None
        return True

    def _add(
        self,
        ended: int,
        queue: int,
        wait: int | None,
        outcome: tuple[int, str, int | None, str],
        retry_after: float | None = None,
    ) -> None:
        number, reason, status, error_type = outcome
        record = AttemptRecord(
            self._call_id,
            number,
            self.began / 1e6,
            (ended - self.began - self._suspended) / 1e6,
            queue / 1e6,
            None if wait is None else wait / 1e6,
            reason,
            status,
            error_type,
            retry_after,
        )
        self.records.append(record)
        if error_type:
            self.failures.append((record, ended * 1_000))

    def _within_attempt(self, seconds: float, now: int) -> int:
        """Return a part of the last attempt in microseconds, not longer than the attempt."""
        return min(round(seconds * 1e6), now - self.began)
