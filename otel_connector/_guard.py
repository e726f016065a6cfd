"""Logs exceptions of the application's telemetry code, so that they do not break the call that runs it.

Such code is span processors, exporters, samplers, propagators, metric readers and log handlers. KeyboardInterrupt and
SystemExit are raised again. Any other exception is logged, and the call continues. This file does not know calls.

Used by ``_call._call_log``, ``_csv._writer``, ``_telemetry._contrib_settings``, ``_telemetry._metrics``,
``_telemetry._propagation`` and ``_telemetry._spans``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from otel_connector._log_throttle import LogThrottle
from otel_connector._record import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

_logger = logging.getLogger("otel_connector")


class TelemetryGuard:
    """Logs exceptions of the application's telemetry code: at most one per minute and guard.

    Args:
        monotonic_ns: The clock that limits the log lines.
    """

    def __init__(self, monotonic_ns: Callable[[], int]) -> None:
        self._monotonic_ns = monotonic_ns
        self._throttle = LogThrottle()

    def guarded(self, doing: str) -> Guarded:
        """Return a context manager that passes an exception of its block to `swallow`.

        The block must not contain an ``await``: see `swallow`.
        """
        return Guarded(self, doing)

    def swallow(self, error: BaseException, doing: str) -> None:
        """Log an exception of telemetry code. Call this from an ``except BaseException`` block.

        BaseException, because a panic in a Rust extension raises one. A CancelledError that arrives here was not
        raised by ``task.cancel()``, which takes effect only at an ``await``. So the code must not contain one.

        Args:
            error: The exception.
            doing: What the call was doing, for the log line: "ending the span".

        Raises:
            KeyboardInterrupt, SystemExit: `error` itself; see `pass_on`.
        """
        pass_on(error)
        suppressed = self._throttle.admit(self._monotonic_ns() / 1e9)
        if suppressed is None:
            return
        try:
            _logger.warning(
                "telemetry failed while %s; the call continues without it: %s. Repair or remove the span processor, "
                "exporter, sampler, propagator, metric reader or log handler in the traceback%s",
                doing,
                _described(error),
                suppressed,
                exc_info=error,
            )
        except BaseException as problem:  # noqa: BLE001 - the log handler failed, too, so this cannot be reported
            pass_on(problem)


class Guarded:
    """See `TelemetryGuard.guarded`."""

    __slots__ = ("_doing", "_guard")

    def __init__(self, guard: TelemetryGuard, doing: str) -> None:
        self._guard, self._doing = guard, doing

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, _: object, error: BaseException | None, traceback: object) -> bool:
        """Swallow the exception, if there is one."""
        if error is not None:
            self._guard.swallow(error, self._doing)
        return error is not None


def pass_on(error: BaseException) -> None:
    """Raise `error` again if it ends the program: if it is a KeyboardInterrupt or a SystemExit.

    asyncio has the same rule for its callbacks. Signal handlers raise these two (Ctrl-C, ``sys.exit`` on SIGTERM), and
    Python runs signal handlers between any two steps of the main thread. Other exceptions of a signal handler look the
    same as those of the code that it interrupted.
    """
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error


def _described(error: BaseException) -> str:
    try:
        return one_line(f"{type(error).__name__}: {error}")
    except Exception:  # noqa: BLE001 - `__str__` is application code
        return type(error).__name__
