"""Keeps exceptions of application code that runs inside a call away from the call.

Span processors, exporters, samplers, propagators, log handlers and hooks belong to the application. What they raise is
logged, and the call continues. Two kinds of exception do not belong to them and are raised again: Ctrl-C, and what the
handler of a signal raised. This file does not know which code it guards.

Used by ``_call._call_log``, ``_csv._writer``, ``_telemetry._metrics``, ``_telemetry._propagation`` and
``_telemetry._spans``.
"""

from __future__ import annotations

import logging
from itertools import pairwise
from traceback import walk_tb
from typing import TYPE_CHECKING, cast

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

        All exceptions end here, including SystemExit. An exporter that cannot read its settings and calls ``sys.exit``,
        or native code that panics, must not end the program that it observes. A CancelledError cannot be one of the
        task, which is cancelled only at an await. Two exceptions are raised again, because they do not belong to the
        telemetry: KeyboardInterrupt, and what a signal handler raised (for example ``sys.exit`` on SIGTERM, or a time
        limit on SIGALRM), because Python runs signal handlers between any two steps of the main thread.

        Args:
            error: The exception.
            doing: What the call was about to do, for the log line.

        Raises:
            BaseException: `error` itself, if it does not belong to the telemetry.
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
    """Raise `error` again if it is a Ctrl-C, or if a signal handler raised it."""
    if isinstance(error, KeyboardInterrupt) or _from_signal_handler(error):
        try:
            raise error
        finally:
            del error  # otherwise the error would refer to this frame, and this frame to the error


def _described(error: BaseException) -> str:
    try:
        return one_line(f"{type(error).__name__}: {error}")
    except Exception:  # noqa: BLE001 - application code makes the text
        return type(error).__name__


def _from_signal_handler(error: BaseException) -> bool:
    """Return whether a signal handler raised `error`.

    Python calls a signal handler with the interrupted frame as an argument. So in the traceback, the frame of a handler
    is one that holds the frame above it in a variable. Comparing with `signal.getsignal` would be simpler, but handlers
    often restore the default handler before they raise.
    """
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    for interrupted, handler in pairwise(frames):
        for value in list(handler.f_locals.values()):  # a copy: another thread may add to the variables of a module
            # A handler may take its arguments as `*_`
            items = cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,)
            if any(item is interrupted for item in items):
                return True
    return False
