"""What a person is told while calls run: log lines that a dead host cannot turn into a flood, and a hook.

A retry is INFO, a failed call WARNING, on the logger ``otel_connector.calls``; what the application's own telemetry
raises into a call is a WARNING on ``otel_connector``. Knows nothing of how calls are made.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import TYPE_CHECKING

from otel_connector._guard import TelemetryGuard, pass_on
from otel_connector._log_throttle import LogThrottle

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_connector._record import Attempt, CallRecord

# With a handler that does nothing, so that a program without a logging set-up is not told of each failure on its
# stderr: it has the exception and the row. Troubles of the log itself are on the logger above, and are shown there.
_logger = logging.getLogger("otel_connector.calls")
_logger.addHandler(logging.NullHandler())

# A person who reads along is told of a host's first troubles in each minute and then how many there were more
_LINES = 5
_HOSTS = 1_000  # hosts and levels whose lines are counted at a time


class CallLogger:
    """Tells of retries and failures.

    Args:
        on_retry: Called with every attempt that another one follows; what it raises is logged and changes nothing.
        monotonic_ns: The clock that paces the lines.
    """

    def __init__(self, on_retry: Callable[[Attempt], object] | None, monotonic_ns: Callable[[], int]) -> None:
        self._on_retry = on_retry
        self._monotonic_ns = monotonic_ns
        self._guard = TelemetryGuard(monotonic_ns)
        self._throttles: OrderedDict[tuple[str, int], LogThrottle] = OrderedDict()

    def retrying(self, host: str, attempt: Attempt) -> None:
        """Tell that another attempt follows this one."""
        self._log(
            host,
            logging.INFO,
            "GET %s: attempt %d failed, next in %.3f s: %s (call_id %s)%s",
            attempt.url,
            attempt.number,
            attempt.wait,
            attempt.error,
            attempt.call_id,
        )
        if self._on_retry is None:
            return
        try:
            self._on_retry(attempt)
        except BaseException as error:  # noqa: BLE001 - the application's hook, which may raise what means more elsewhere
            pass_on(error)
            self._log("on_retry", logging.WARNING, "on_retry raised; the call goes on%s", error=error)

    def failed(self, host: str, record: CallRecord, attempts: int) -> None:
        """Tell that a call failed."""
        self._log(
            host,
            logging.WARNING,
            "GET %s failed after %d attempts in %.3f s: %s (call_id %s)%s",
            record.url,
            attempts,
            record.delta_t,
            record.error,
            record.call_id,
        )

    def _log(self, host: str, level: int, line: str, *values: object, error: BaseException | None = None) -> None:
        """Log a line, unless there were many about this host of late; at its end comes how many were left out."""
        try:
            if (left_out := self._may_log(host, level)) is not None:
                _logger.log(level, line, *values, left_out, exc_info=error)
        except BaseException as problem:  # noqa: BLE001 - an application's handler or filter, which may be an exporter
            self._guard.swallow(problem, "logging")

    def _may_log(self, host: str, level: int) -> str | None:
        """Return what to add to the line, None if there is to be none."""
        if not _logger.isEnabledFor(level):
            return None
        now = self._monotonic_ns() / 1e9
        key = (host, level)
        if key not in self._throttles and len(self._throttles) >= _HOSTS:
            oldest = next(iter(self._throttles))
            if self._throttles[oldest].is_over(now):
                del self._throttles[oldest]
            else:  # more hosts in trouble than can be told apart: they share the lines of one
                key = ("", level)
        throttle = self._throttles.setdefault(key, LogThrottle(_LINES))
        if throttle.is_over(now):
            self._throttles.move_to_end(key)
        return throttle.admit(now)
