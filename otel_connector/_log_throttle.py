"""Limits how often a warning is logged, and counts the lines that were left out.

Otherwise a failing server or disk would cause one line per call. This file does not know what is logged, nor where.

Used by ``_call._call_log``, ``_call._pacing``, ``_csv._writer``, ``_guard`` and ``_telemetry._sdk_exit``.
"""

from __future__ import annotations

LOG_INTERVAL = 60.0
"""Seconds in which a warning is logged at most once, unless its `LogThrottle` allows more lines."""


class LogThrottle:
    """Admits the first lines of each interval.

    It has no lock: two threads that log at the same time may log one line more than allowed.

    Args:
        lines: Number of lines to admit in each interval.
    """

    __slots__ = ("_admitted", "_lines", "_started", "_suppressed")

    def __init__(self, lines: int = 1) -> None:
        self._lines = lines
        self._admitted = self._suppressed = 0
        self._started: float | None = None

    def admit(self, now: float) -> str | None:
        """Return the text to append to the line, or None if the line must not be logged.

        Args:
            now: Monotonic time, in seconds.

        Returns:
            The number of lines left out since the last one, as text; empty if there are none.
        """
        if self.is_over(now):
            suppressed = self._suppressed
            self._started, self._admitted, self._suppressed = now, 1, 0
            lines = "1 similar message was" if suppressed == 1 else f"{suppressed} similar messages were"
            return f"; {lines} not logged" if suppressed else ""
        if self._admitted < self._lines:
            self._admitted += 1
            return ""
        self._suppressed += 1
        return None

    def is_over(self, now: float) -> bool:
        """Return whether the current interval has ended, or none has started; `now` is in monotonic seconds."""
        return self._started is None or now - self._started >= LOG_INTERVAL
