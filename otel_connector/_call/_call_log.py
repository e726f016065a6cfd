"""The log lines of calls, limited in number, and the `on_retry` hook.

A retry is logged as INFO and a failed call as WARNING, on the logger ``otel_connector.calls``. This file does not know
how calls are made.

Used by ``_call._settings`` and ``_connector``.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import TYPE_CHECKING

from otel_connector._guard import TelemetryGuard, pass_on
from otel_connector._log_throttle import LogThrottle
from otel_connector._units import counted, duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_connector._record import Attempt, CallRecord

# The handler does nothing. Without it, a program that does not configure logging would print each failure on stderr,
# although it has the exception and the row. Problems of the log file use the logger above, and are printed.
_logger = logging.getLogger("otel_connector.calls")
_logger.addHandler(logging.NullHandler())

_LINES = 5  # for each host and level per interval; then their number is logged
_HOSTS = 1_000  # hosts and levels that have a limit of their own


class CallLogger:
    """Logs retries and failures, and calls the `on_retry` hook.

    Args:
        on_retry: Called with every attempt that is followed by another one; its exceptions are logged.
        monotonic_ns: The clock that limits the log lines.
    """

    def __init__(self, on_retry: Callable[[Attempt], object] | None, monotonic_ns: Callable[[], int]) -> None:
        self._on_retry = on_retry
        self._monotonic_ns = monotonic_ns
        self._guard = TelemetryGuard(monotonic_ns)
        self._throttles: OrderedDict[tuple[str, int], LogThrottle] = OrderedDict()

    def retrying(self, host: str, attempt: Attempt) -> None:
        """Log that another attempt follows this one."""
        values = attempt.url, attempt.number, duration(attempt.wait or 0.0), attempt.error, attempt.call_id
        self._log(host, logging.INFO, "GET %s: attempt %d failed, next in %s: %s (call_id %s)%s", *values)
        if self._on_retry is None:
            return
        try:
            self._on_retry(attempt)
        except BaseException as error:  # noqa: BLE001 - application code, which may raise anything
            pass_on(error)
            self._log("on_retry", logging.WARNING, "on_retry raised; the call continues%s", error=error)

    def failed(self, host: str, record: CallRecord, attempts: int) -> None:
        """Log that a call failed."""
        values = record.url, counted(attempts, "attempt"), duration(record.delta_t), record.error, record.call_id
        self._log(host, logging.WARNING, "GET %s failed after %s in %s: %s (call_id %s)%s", *values)

    def _log(self, host: str, level: int, line: str, *values: object, error: BaseException | None = None) -> None:
        """Log a line about a host, unless there were too many recently."""
        with self._guard.guarded("logging"):  # runs the application's log handlers and filters
            if _logger.isEnabledFor(level) and (suppressed := self._admit(host, level)) is not None:
                _logger.log(level, line, *values, suppressed, exc_info=error)

    def _admit(self, host: str, level: int) -> str | None:
        """Return the text to append to the line; None if the line must not be logged."""
        now = self._monotonic_ns() / 1e9
        key = (host, level)
        if key not in self._throttles and len(self._throttles) >= _HOSTS:
            oldest = next(iter(self._throttles))
            if self._throttles[oldest].is_over(now):
                del self._throttles[oldest]
            else:  # too many failing hosts: all further ones share one limit
                key = ("", level)
        throttle = self._throttles.setdefault(key, LogThrottle(_LINES))
        if throttle.is_over(now):
            self._throttles.move_to_end(key)
        return throttle.admit(now)
