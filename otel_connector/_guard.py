"""Keep exceptions of application code that runs inside a call away from the call.

Span processors, exporters, samplers, propagators, log handlers and hooks belong to the application. What they raise is
logged, and the call continues. Two kinds of exception do not belong to them and are raised again: Ctrl-C, and what the
handler of a signal raised. This file does not know which code it guards.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from otel_connector._log_throttle import LogThrottle
from otel_connector._record import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

_logger = logging.getLogger("otel_connector")


class TelemetryGuard:
    """Keeps what the application's own telemetry raises away from the call, and tells of it once a minute.

    Args:
        monotonic_ns: The clock that paces the lines.
    """

    def __init__(self, monotonic_ns: Callable[[], int]) -> None:
        self._monotonic_ns = monotonic_ns
        self._throttle = LogThrottle()

    def swallow(self, error: BaseException, doing: str) -> None:
        """Log what telemetry raised; to be called where it was caught, and caught as BaseException.

        All of it ends here, SystemExit and the like too: an exporter that cannot read its settings and calls
        ``sys.exit``, or native code that panics, must not end the program that it watches; a CancelledError cannot be
        the task's, which is cancelled at an await only. Two things are not the telemetry's, though they come out of
        it, and go on: KeyboardInterrupt, which is the user's wherever it strikes, and what a handler of a signal
        raised (the usual ``sys.exit`` on SIGTERM, a time limit on SIGALRM), because Python runs it between any two
        steps of the main thread.

        Args:
            error: What was raised.
            doing: What the call was about to do, for the log line.

        Raises:
            BaseException: `error` itself, if it is not the telemetry's.
        """
        pass_on(error)
        left_out = self._throttle.admit(self._monotonic_ns() / 1e9)
        if left_out is None:
            return
        try:
            _logger.warning(
                "telemetry failed while %s, the call goes on without it: %s; mend or take out the span processor, "
                "exporter, sampler, propagator, metric reader or log handler in the traceback%s",
                doing,
                _described(error),
                left_out,
                exc_info=error,
            )
        except BaseException as problem:  # noqa: BLE001 - the log is broken, too, and there is no other place to tell
            pass_on(problem)


def pass_on(error: BaseException) -> None:
    """Raise what an application's code let out that is not its own: a Ctrl-C, or what a signal's handler raised."""
    if isinstance(error, KeyboardInterrupt) or _from_a_signal(error):
        try:
            raise error
        finally:
            del error  # or it would hold the frame that holds it


def _described(error: BaseException) -> str:
    try:
        return one_line(f"{type(error).__name__}: {error}")
    except Exception:  # noqa: BLE001 - its text is the application's code, too
        return type(error).__name__


def _from_a_signal(error: BaseException) -> bool:
    """Whether a signal's handler raised it: that has the frame which it interrupted, its caller's, as an argument."""
    step = error.__traceback__
    while step is not None and (inner := step.tb_next) is not None:
        for value in list(inner.tb_frame.f_locals.values()):  # a copy: another thread may add to those of a module
            # A handler may take its arguments as `*_`
            held: tuple[object, ...] = cast("Any", value) if isinstance(value, tuple) else (value,)
            if any(item is step.tb_frame for item in held):
                return True
        step = inner
    return False
