"""The thread that flushes a writer while it has pending rows, and keeps the writer alive until then.

This file does not know what is flushed.

Used by ``_csv._writer``.
"""

from __future__ import annotations

import threading
from typing import Protocol

from otel_connector._exit._before_exit import Unfinished, finish_before_exit


class Flushable(Unfinished, Protocol):
    """A writer with rows that may be pending."""

    def flush_periodically(self, stopped: threading.Event) -> None:
        """Flush; called by the flusher thread that ends with this event."""

    def close(self) -> bool:
        """Write what is pending, and close the file."""
        ...


# Writers that must not be collected, although nothing else may refer to them
with_pending_rows: set[Flushable] = set()


def keep_until_flushed(writer: Flushable) -> None:
    """Keep a writer alive, and let it finish before the process ends."""
    with_pending_rows.add(writer)
    finish_before_exit(writer)


class Flusher:
    """At most one daemon thread that flushes a writer. Not thread-safe: the writer has a lock.

    Args:
        interval: Seconds between two flushes.

    Attributes:
        current: The event that ends the current thread; None if there is no thread.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self.current: threading.Event | None = None

    def run_while(self, pending: bool, writer: Flushable) -> None:
        """Start the thread if rows are pending, and end it if none is."""
        if not pending:
            with_pending_rows.discard(writer)
            if self.current is not None:
                self.current.set()
                self.current = None
        elif self.current is None:
            keep_until_flushed(writer)
            self.current = stopped = threading.Event()
            try:
                threading.Thread(
                    target=_run, args=(writer, stopped, self._interval), name="otel_connector.log", daemon=True
                ).start()
            except RuntimeError:  # the process ends and starts no further thread
                pass
            except BaseException:  # of a signal handler: the next write starts another thread
                stopped.set()
                self.current = None
                raise


def _run(writer: Flushable, stopped: threading.Event, interval: float) -> None:
    while not stopped.wait(interval):
        writer.flush_periodically(stopped)
