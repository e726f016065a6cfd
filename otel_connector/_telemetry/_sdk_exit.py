"""The SDK providers that `configure` has set up: flush and shut them down within a time limit.

By itself, the SDK delays the end of a program by 7 to 41 s if no collector answers, and does not report what was lost.
Here a daemon thread per signal flushes and shuts down, with one deadline for all, and a watch on each exporter counts
the failed exports, which are logged. This file imports nothing of the SDK. It does not know aiohttp or the connector.

Used by ``_doctor`` and ``providers``.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, NamedTuple, Protocol, cast, final

from otel_connector._arguments import checked_seconds
from otel_connector._log_throttle import LogThrottle
from otel_connector._record import one_line
from otel_connector._serial_executor import SerialExecutor
from otel_connector._telemetry._export_problem import ExportTarget, Kind, Problem, what_and_why
from otel_connector._telemetry._exporter_watch import ExporterWatch, watch_exporters
from otel_connector._telemetry._variable_values import without_secrets
from otel_connector._units import exact_duration

_logger = logging.getLogger("otel_connector")
# The part of exit_timeout that is reserved to stop exporters that are still trying: a number of seconds, and a share.
# They stop within milliseconds. A thread that is killed inside the C++ code of grpc could abort the process
_STOP_SECONDS = 0.5
_STOP_SHARE = 0.1

_OF_ONE_SIGNAL = frozenset({Kind.PARTIAL, Kind.TOO_LARGE, Kind.WRONG_PATH})  # their sentences are about one

_SLICE = 0.1  # seconds: if the system delivers a signal to another thread, it does not interrupt a wait of this one

_SECONDS_AFTER_TIMEOUT = 0.1  # for a collector that did not answer a moment ago


class Provider(Protocol):
    """The common methods of the three SDK providers. Both may block far longer than requested."""

    def force_flush(self, timeout_millis: int = ..., /) -> object: ...
    def shutdown(self) -> object: ...


class _Loss(NamedTuple):
    """What was lost where: the items of the last export, and those of all failed exports if others have arrived."""

    target: ExportTarget
    problem: Problem
    items: int = 0
    lost: int | None = None
    suffix: str = ""

    @classmethod
    def of(cls, watch: ExporterWatch) -> _Loss:
        problem = watch.problem or Problem(kind=Kind.UNKNOWN)
        return cls(watch.target, problem, watch.count, watch.lost if watch.arrived else None)


class Signal:
    """Traces, metrics or logs: the provider, its exporters, and the thread that flushes it."""

    def __init__(self, name: str, provider: Provider, on_loss: Callable[[ExporterWatch], object]) -> None:
        self.name = name
        self.executor = SerialExecutor(name)
        self.provider = provider
        self.watches = watch_exporters(provider, name, on_loss)

    @property
    def failed(self) -> int:
        """The number of failed exports."""
        return sum(watch.failed for watch in self.watches)

    def loss(self, problem: Problem) -> _Loss:
        """Return what was lost, with `problem` if its exporters do not know more."""
        known = [_Loss.of(watch) for watch in self.watches if watch.problem is not None]
        targets = [watch.target for watch in self.watches] or [ExportTarget(signal=self.name, protocol="its exporter")]
        return known[0] if known else _Loss(targets[0], problem)

    def flush(self, timeout: float) -> object:
        """Make the SDK export its queue. The SDK may take longer than `timeout` seconds."""
        return self.provider.force_flush(_millis(timeout))

    def finish(self, timeout: float) -> object:
        """Flush and shut down. The SDK may take longer than `timeout` seconds."""
        if self.name == "metrics":
            # Its shutdown collects and exports: with a flush before it, every metric would be sent twice. Only this
            # provider has a timeout here; the default is 30 s
            return cast("Any", self.provider).shutdown(timeout_millis=_millis(timeout))
        # The shutdown of the other two drops the queue after 30 s without a message; a flush does not
        flushed = self.flush(timeout)
        self.provider.shutdown()
        return flushed

    def stop(self) -> None:
        """Stop the exporters. What they have not sent is lost."""
        for watch in self.watches:
            watch.shutdown()


class _Job(NamedTuple):
    """A flush or a shutdown that was started, and how many exports of its signal had failed before."""

    signal: Signal
    failed_before: int
    future: Future[object]


def _millis(seconds: float) -> int:
    return math.ceil(seconds * 1000)


@final
class Telemetry:
    """The SDK that `configure` has set up: flush it, and shut it down. Only `configure` creates one.

    As a context manager it shuts down at the end of the block; an exception propagates. Without ``with``, it shuts down
    when the interpreter exits. All methods are thread-safe. They block: in a coroutine use
    ``await asyncio.to_thread(telemetry.force_flush)``, and put the ``with`` around ``asyncio.run``. A signal that kills
    the process, such as SIGTERM without a handler, sends nothing: see `configure`'s ``signals``.
    """

    def __init__(self, signals: Mapping[str, Provider], exit_timeout: float) -> None:
        self._exit_timeout = exit_timeout
        self._throttles: dict[tuple[str, Kind], LogThrottle] = {}
        self.signals = tuple(Signal(name, provider, self._on_loss) for name, provider in signals.items())
        watches = [watch for signal in self.signals for watch in signal.watches]
        for watch in watches:
            watch.peers = watches
        self._stopper = SerialExecutor("stop")
        self._executors = [*(signal.executor for signal in self.signals), self._stopper]
        self._start_threads()
        self._reset()
        self._closing = False
        self._finishing: list[_Job] = []  # of `shutdown`
        self._delivered = False
        self._lost: Mapping[str, Problem] = {}  # at the end of the program
        self._timed_out_at = -math.inf  # monotonic seconds: when a signal handler had waited without success
        self._deadline = math.inf
        atexit.register(self.shutdown)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _start_threads(self) -> None:
        for executor in self._executors:
            executor.start()

    def _reset(self) -> None:
        self._lock = threading.RLock()  # reentrant: a signal handler may call shutdown() during shutdown()
        self._closed = threading.Event()

    def _after_fork(self) -> None:
        # In the child, the SDK clears its queues and restarts its threads: the child exports only its own spans
        self._reset()
        if self._closing:
            self._closed.set()
        else:
            self._start_threads()

    def __enter__(self) -> Telemetry:
        """Return this object."""
        return self

    def __exit__(self, *error: object) -> None:
        """Shut down. An exception propagates."""
        self.shutdown()

    def sent_over_otlp(self) -> dict[str, str]:
        """Return the signals of which a receiver has accepted an export, each with the address of the receiver."""
        watches = [watch for signal in self.signals for watch in signal.watches if watch.arrived and watch.is_otlp]
        return {watch.target.signal: watch.target.origin for watch in watches}

    def lost(self) -> tuple[str, ...]:
        """Return the signals of which something was lost, without those that their receiver does not take at all."""
        return tuple(
            signal.name
            for signal in self.signals
            if (signal.failed or signal.name in self._lost)
            and signal.loss(Problem(kind=Kind.UNKNOWN)).problem.kind is not Kind.UNSUPPORTED
        )

    def _on_loss(self, watch: ExporterWatch) -> None:
        if not self._closing:  # otherwise `_finish` logs it
            self._log([_Loss.of(watch)])

    def _log(self, losses: Iterable[_Loss]) -> None:
        """Log one line for each problem, at most once a minute; what a receiver does not take is logged once."""
        groups: dict[tuple[Problem, str, str], list[_Loss]] = {}
        for loss in losses:
            if (suffix := self._admit(loss)) is not None:
                kind, target = loss.problem.kind, loss.target
                is_of_one = kind in _OF_ONE_SIGNAL or (kind is Kind.WRONG_BASE and target.is_own)
                key = loss.problem, target.origin, target.signal if is_of_one else ""
                groups.setdefault(key, []).append(loss._replace(suffix=suffix))
        for (problem, *_), group in groups.items():
            first = group[0]
            lost = first.lost if len(group) == 1 else None
            what, why = what_and_why(problem, [loss.target for loss in group], count=first.items, lost=lost)
            why = f"{why.removesuffix('.')}{first.suffix}" if first.suffix else why
            if problem.kind is Kind.PARTIAL:
                _logger.warning("%s rejected by %s", what, why)
            else:
                _logger.warning("%s not sent: %s", what, why)

    def _admit(self, loss: _Loss) -> str | None:
        """Return None if a loss must not be logged now, else what to append to its line."""
        key = loss.target.signal, loss.problem.kind
        if loss.problem.kind is Kind.UNSUPPORTED and key in self._throttles:
            return None
        return self._throttles.setdefault(key, LogThrottle()).admit(time.monotonic())

    def force_flush(self, timeout: float | None = None) -> bool:
        """Export all spans that have ended, all metrics and all log records, and wait for it.

        Args:
            timeout: Maximum wait in seconds, above 0. None (the default) is `configure`'s ``exit_timeout``.

        Returns:
            True if the exporters accepted everything in time. False if an export failed, even one that was in progress
            before; if the time was over (the SDK continues to try); and after `shutdown`. Batches that failed earlier
            are lost and not reported here; they were logged.

        Raises:
            TypeError, ValueError: `timeout` is not a positive finite number.
        """
        timeout = self._exit_timeout if timeout is None else checked_seconds("timeout", timeout, positive=True)
        timeout = min(timeout, threading.TIMEOUT_MAX)
        if self._closing:
            return False
        jobs = self._start(Signal.flush, timeout)
        lost = self._wait_for(jobs, timeout)
        for job in jobs:
            job.future.cancel()  # it has not started if an earlier flush hangs
        return not lost

    def flush_before_signal(self, seconds: float) -> None:
        """Export everything within `seconds`, before a signal ends the program.

        The signal may have interrupted `shutdown`. Then this waits for its exports, or flushes if it has started none.
        """
        if not self._closing:
            if not self.force_flush(seconds):
                self._timed_out_at = time.monotonic()
        elif not self._closed.is_set():
            jobs = self._finishing or self._start(Signal.flush, seconds)
            self._wait_for(jobs, min(seconds, self._deadline - time.monotonic()))

    def shutdown(self) -> bool:
        """Export what is left and shut down, within `configure`'s ``exit_timeout``.

        If a signal causes the shutdown, that time includes the work of its handler. The first call does the work; every
        further call waits for it and returns the same result. What could not be exported is lost. A WARNING on the
        logger ``otel_connector`` reports why, in addition to the SDK's own messages.

        Returns:
            True if the exporters accepted everything.
        """
        with self._lock:
            first, self._closing = not self._closing, True
            if first:
                now, seconds = time.monotonic(), self._exit_timeout
                if now - self._timed_out_at < seconds:
                    seconds = min(seconds, _SECONDS_AFTER_TIMEOUT)
                self._deadline = now + seconds
        if first:
            try:
                self._finish(self._deadline - time.monotonic())
            finally:
                self._closed.set()
                atexit.unregister(self.shutdown)
        else:
            self._closed.wait(max(0.0, self._deadline - time.monotonic()))
        return self._delivered

    def _finish(self, seconds: float) -> None:
        time_to_stop = min(_STOP_SECONDS, seconds * _STOP_SHARE)
        interrupted = Problem(kind=Kind.INTERRUPTED)
        lost = {signal.name: interrupted for signal in self.signals if signal.watches}  # stays if Ctrl-C ends the wait
        try:
            self._finishing = self._start(Signal.finish, seconds)
            lost = self._wait_for(self._finishing, seconds - time_to_stop)
        finally:
            stopped = [self._stopper.submit(signal.stop) for signal in self.signals if signal.name in lost]
            for executor in self._executors:
                executor.stop()
            self._delivered, self._lost = not lost, lost
            self._log(signal.loss(lost[signal.name]) for signal in self.signals if signal.name in lost)
        remaining: list[Future[Any]] = [*(job.future for job in self._finishing), *stopped]
        wait(remaining, max(0.0, self._deadline - time.monotonic()))

    def _start(self, job: Callable[[Signal, float], object], timeout: float) -> list[_Job]:
        """Start a job with a timeout for each signal."""
        return [
            _Job(signal, signal.failed, signal.executor.submit(partial(job, signal, timeout)))
            for signal in self.signals
        ]

    def _wait_for(self, jobs: Sequence[_Job], seconds: float) -> dict[str, Problem]:
        """Wait at most `seconds`.

        Returns:
            For each signal that was not delivered by then the problem, unless its exporter knows more.
        """
        _wait([job.future for job in jobs], seconds)
        lost: dict[str, Problem] = {}
        for signal, failed_before, future in jobs:
            if not future.done():
                lost[signal.name] = Problem(kind=Kind.TOO_SLOW, answer=exact_duration(self._exit_timeout))
            elif error := future.exception():
                text = one_line(without_secrets(f"{type(error).__name__}: {error}"))
                lost[signal.name] = Problem(kind=Kind.FAILED, answer=text)
            elif future.result() is False or signal.failed > failed_before:
                lost[signal.name] = Problem(kind=Kind.UNKNOWN)
        return lost


def _wait(jobs: Iterable[Future[object]], seconds: float) -> None:
    """Wait until the jobs are done, in slices, so that a signal takes effect."""
    deadline = time.monotonic() + seconds
    while wait(jobs, max(0.0, min(_SLICE, deadline - time.monotonic()))).not_done and time.monotonic() < deadline:
        pass
