"""Keeps exceptions of application code that runs inside a call away from the call.

Span processors, exporters, samplers, propagators, log handlers and hooks belong to the application. What they raise is
logged, and the call continues. Only the exceptions that end a program are raised again. This file does not know which
code it guards.

Used by ``_call._call_log``, ``_csv._writer``, ``_telemetry._metrics``, ``_telemetry._propagation`` and
``_telemetry._spans``.
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
    """Keeps exceptions of the application's telemetry away from a call, and logs one of them per minute.

    Args:
        monotonic_ns: The clock that limits the log lines.
    """

    def __init__(self, monotonic_ns: Callable[[], int]) -> None:
        self._monotonic_ns = monotonic_ns
        self._throttle = LogThrottle()

    def guarded(self, doing: str) -> Guarded:
        """Return a context manager that passes an exception to `swallow`, and then continues after the block."""
        return Guarded(self, doing)

    def swallow(self, error: BaseException, doing: str) -> None:
        """Log an exception of telemetry code. Call this in an ``except BaseException``.

        A native component that panics raises a BaseException, and must not end the program that it observes. A
        CancelledError cannot be one of the task, which is cancelled only at an await.

        Args:
            error: The exception.
            doing: What the call was about to do, for the log line.

        Raises:
            KeyboardInterrupt, SystemExit: `error` itself; see `pass_on`.
        """
        pass_on(error)
        suppressed = self._throttle.admit(self._monotonic_ns() / 1e9)
        if suppressed is None:
            return
        try:
            _logger.warning(
                "telemetry failed while %s, the call continues without it: %s; repair or remove the span processor, "
                "exporter, sampler, propagator, metric reader or log handler in the traceback%s",
                doing,
                _described(error),
                suppressed,
                exc_info=error,
            )
        except BaseException as problem:  # noqa: BLE001 - the log handler fails, too, so there is no place to report it
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
    Python runs signal handlers between any two steps of the main thread. Any other exception of a signal handler cannot
    be distinguished from one of the code that it interrupted.
    """
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error


def _described(error: BaseException) -> str:
    try:
        return one_line(f"{type(error).__name__}: {error}")
    except Exception:  # noqa: BLE001 - application code makes the text
        return type(error).__name__
