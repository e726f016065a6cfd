"""Counts the calls of a connector, in each process by itself, and passes their records on to the log.

This file does not know how a call is made, nor files.

Used by ``__init__``, ``_connector`` and ``cli._demo``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from otel_connector._after_fork import start_over_in_child

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_connector._record import AttemptRecord, CallRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorStats:
    """Counts of one connector since its start, or since the fork in the child of a fork.

    Without a `logfile`, the three counts of rows are 0. If several connectors share an exporter, they are its sums.

    Attributes:
        calls_started: Calls to `get`, and those of `get_many`.
        calls_active: Number of these that are in progress.
        calls_succeeded: Calls that returned a decoded body.
        calls_failed: Calls that raised, or returned their `default`, including cancelled ones.
        retries: Attempts that the connector made after the first of a call; not those that aiohttp makes by itself.
        bytes_received: Bytes of the body that the last attempts of completed calls read, after content decoding.
        hosts_paused: The ``host:port`` of servers that asked for a pause that has not ended, also before the fork;
            ``host:port (path)`` for one on a Unix socket.
        rows_written: Rows in the log.
        rows_waiting: Rows kept in memory because they could not be written yet.
        rows_lost: Rows that were discarded.
    """

    calls_started: int
    calls_active: int
    calls_succeeded: int
    calls_failed: int
    retries: int
    bytes_received: int
    hosts_paused: tuple[str, ...]
    rows_written: int
    rows_waiting: int
    rows_lost: int


class Exporter(Protocol):
    """Writes the rows of calls."""

    def export_record(self, record: CallRecord, start_time: int | None, attempts: Sequence[AttemptRecord] = ()) -> None:
        """Write the rows of the attempts and the row of a call; `start_time` is that of its span."""
        ...


class CallTotals:
    """The calls that a connector has started in one process.

    Args:
        exporter: Writes their rows; None for no rows.
        with_attempts: Whether it writes those of their attempts, too.

    Attributes:
        started: Number of calls.
        succeeded: Those that returned their value.
        failed: Those that failed or were cancelled.
        retries: Their attempts after the first ones.
        received: Bytes of their bodies.
    """

    def __init__(self, exporter: Exporter | None, *, with_attempts: bool) -> None:
        self._exporter = exporter
        self._with_attempts = with_attempts
        self.started = self.succeeded = self.failed = self.retries = self.received = 0

    @property
    def active(self) -> int:
        """Number of calls in progress."""
        return self.started - self.succeeded - self.failed

    def write(self, record: CallRecord, start_time: int | None, attempts: Sequence[AttemptRecord]) -> None:
        """Count a call that has ended, and write its row, after those of its attempts."""
        # Counted before the row is written: a caller of `stats` that finds the row must not find the call in progress
        if record.success:
            self.succeeded += 1
        else:
            self.failed += 1
        self.received += record.response_size
        if self._exporter is not None:
            self._exporter.export_record(record, start_time, attempts if self._with_attempts else ())


class CallsOfProcess:
    """The calls of a connector in this process. The child of a fork starts from zero.

    Args:
        exporter: Writes their rows; None for no rows.
        with_attempts: Whether it writes those of their attempts, too.

    Attributes:
        calls: The calls. A call keeps the object with which it has started.
    """

    def __init__(self, exporter: Exporter | None, *, with_attempts: bool = False) -> None:
        self._exporter, self._with_attempts = exporter, with_attempts
        self.start_over()
        start_over_in_child(self)

    def start_over(self) -> None:
        """Count from zero."""
        self.calls = CallTotals(self._exporter, with_attempts=self._with_attempts)
