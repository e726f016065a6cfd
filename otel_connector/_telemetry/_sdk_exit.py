"""The SDK providers that `configure` has set up: flush and shut them down within a time limit.

By itself, the SDK delays the end of a program by 7 to 41 s if no collector answers, and does not report what was lost.
Here a daemon thread per signal flushes and shuts down, with one deadline for all, and a watch on each exporter counts
the failed exports. This file imports nothing of the SDK. It does not know aiohttp or the connector.

Used by ``providers``.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from operator import attrgetter
from typing import Any, Protocol, cast, final

from otel_connector._arguments import checked_seconds
from otel_connector._record import one_line
from otel_connector._serial_executor import SerialExecutor
from otel_connector._units import exact_duration

_logger = logging.getLogger("otel_connector")
_LOST = (
    "telemetry was lost at the end of the program: %s (exit_timeout=%s). Check that a collector listens at"
    " OTEL_EXPORTER_OTLP_ENDPOINT (default http://localhost:4317 for grpc, http://localhost:4318 for http/protobuf),"
    " and that OTEL_EXPORTER_OTLP_PROTOCOL (default grpc) is its protocol"
)

# The part of exit_timeout that is reserved to stop exporters that are still trying: a number of seconds, and a share.
# They stop within milliseconds. A thread that is killed inside the C++ code of grpc could abort the process
_STOP_SECONDS = 0.5
_STOP_SHARE = 0.1

_SECONDS_AFTER_TIMEOUT = 0.1  # for a collector that did not answer a moment ago

# Where the SDK keeps its exporters. It has no public access to them, nor to the result of an export. If a path does not
# exist, its exporters are not stopped in time, and their failures are not counted. A test checks all paths
_PIPELINES = (
    attrgetter("_active_span_processor._span_processors"),
    attrgetter("_metric_readers"),
    attrgetter("_sdk_config.metric_readers"),  # SDK 1.38
    attrgetter("_multi_log_record_processor._log_record_processors"),
)
_EXPORTERS = (attrgetter("_batch_processor._exporter"), attrgetter("span_exporter"), attrgetter("_exporter"))


class Provider(Protocol):
    """The common methods of the three SDK providers. Both may block far longer than requested."""

    def force_flush(self, timeout_millis: int = ..., /) -> object: ...
    def shutdown(self) -> object: ...


class _ExporterWatch:
    """Counts the failed exports of one exporter, and makes its shutdown idempotent.

    The SDK ignores the result of ``export``: its ``force_flush`` returns True even if every batch was lost. Therefore
    the watch replaces the two methods of the exporter object.
    """

    def __init__(self, exporter: Any) -> None:
        # Without a lock: it is only compared with an earlier value, and a lost increment leaves it larger than that
        self.failed = 0
        self.sent_over_otlp = False
        self._is_otlp = type(exporter).__module__.startswith("opentelemetry.exporter.otlp.")
        self._stopped = False
        self._export: Callable[..., Any] = exporter.export
        self._shutdown: Callable[..., Any] = exporter.shutdown
        self._shutdown_claim = threading.Lock()
        exporter.export = self.export
        exporter.shutdown = self.shutdown

    def export(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Export a batch. After the shutdown, count it as failed, without a log line."""
        if self._stopped:
            self.failed += 1
            return None  # the SDK ignores the result
        try:
            result = self._export(batch, *args, **kwargs)
        except BaseException:
            self.failed += 1
            raise
        # SpanExportResult, MetricExportResult and LogRecordExportResult are three enums with the same two members
        if getattr(result, "name", None) == "FAILURE":
            self.failed += 1
        elif self._is_otlp:
            self.sent_over_otlp = True
        return result

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        """Interrupt an export that waits for its next try, and prevent further exports. Only the first call counts.

        Further calls come at the time limit, when the SDK itself shuts down, and from the reader of a forked child. The
        exporter would log a warning for each of them.
        """
        self._stopped = True
        if self._shutdown_claim.acquire(blocking=False):
            self._shutdown(*args, **kwargs)


def _watch_exporters(provider: Provider) -> list[_ExporterWatch]:
    """Find the exporters of a provider. For one that is not found, the time limit still applies."""
    watches: list[_ExporterWatch] = []
    for step in _first(provider, _PIPELINES) or ():
        with suppress(AttributeError):  # it has no exporter, or one whose methods cannot be replaced
            watches.append(_ExporterWatch(_first(step, _EXPORTERS)))
    return watches


def _first(owner: object, getters: tuple[attrgetter[Any], ...]) -> Any:
    for getter in getters:
        with suppress(AttributeError):
            return getter(owner)
    return None


class _Signal:
    """Traces, metrics or logs: the provider, its exporters, and the thread that flushes it."""

    def __init__(self, name: str, provider: Provider) -> None:
        self.name = name
        self.executor = SerialExecutor(name)
        self._provider = provider
        self._watches = _watch_exporters(provider)

    @property
    def failed(self) -> int:
        """The number of failed exports."""
        return sum(watch.failed for watch in self._watches)

    @property
    def sent_over_otlp(self) -> bool:
        """Whether a collector has accepted an export."""
        return any(watch.sent_over_otlp for watch in self._watches)

    def flush(self, timeout: float) -> object:
        """Make the SDK export its queue. The SDK may take longer than `timeout` seconds."""
        return self._provider.force_flush(_millis(timeout))

    def finish(self, timeout: float) -> object:
        """Flush and shut down. The SDK may take longer than `timeout` seconds."""
        if self.name == "metrics":
            # Its shutdown collects and exports: with a flush before it, every metric would be sent twice. Only this
            # provider has a timeout here; the default is 30 s
            return cast("Any", self._provider).shutdown(timeout_millis=_millis(timeout))
        # The shutdown of the other two drops the queue after 30 s without a message; a flush does not
        flushed = self.flush(timeout)
        self._provider.shutdown()
        return flushed

    def stop(self) -> None:
        """Stop the exporters. What they have not sent is lost."""
        for watch in self._watches:
            watch.shutdown()


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
        self._signals = [_Signal(name, provider) for name, provider in signals.items()]
        self._stopper = SerialExecutor("stop")
        self._executors = [*(signal.executor for signal in self._signals), self._stopper]
        self._start_threads()
        self._reset()
        self._closing = False
        self._delivered = False
        self.timed_out_at = -math.inf  # monotonic seconds: when a signal handler had waited without success
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

    def sent_over_otlp(self) -> tuple[str, ...]:
        """Return for which of ``traces``, ``metrics`` and ``logs`` a collector has accepted an export."""
        return tuple(signal.name for signal in self._signals if signal.sent_over_otlp)

    def force_flush(self, timeout: float | None = None) -> bool:
        """Export all spans that have ended, all metrics and all log records, and wait for it.

        Args:
            timeout: Maximum wait in seconds, above 0. None (the default) is `configure`'s ``exit_timeout``.

        Returns:
            True if the exporters accepted everything in time. False if an export failed, even one that was in progress
            before; if the time was over (the SDK continues to try); and after `shutdown`. Batches that failed earlier
            are lost and not reported here; the SDK has logged them.

        Raises:
            TypeError, ValueError: `timeout` is not a positive finite number.
        """
        timeout = self._exit_timeout if timeout is None else checked_seconds("timeout", timeout, positive=True)
        timeout = min(timeout, threading.TIMEOUT_MAX)
        if self._closing:
            return False
        jobs, lost = self._deliver(_Signal.flush, timeout, timeout)
        for future in jobs:
            future.cancel()  # it has not started if an earlier flush hangs
        return not lost

    def shutdown(self) -> bool:
        """Export what is left and shut down, within `configure`'s ``exit_timeout``.

        If a signal causes the shutdown, that time includes the work of its handler. The first call does the work; every
        further call waits for it and returns the same result. What could not be exported is lost. One WARNING on the
        logger ``otel_connector`` reports it, in addition to the SDK's own messages.

        Returns:
            True if the exporters accepted everything.
        """
        with self._lock:
            first, self._closing = not self._closing, True
            if first:
                now, seconds = time.monotonic(), self._exit_timeout
                if now - self.timed_out_at < seconds:
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
        lost = {signal.name: "interrupted" for signal in self._signals}  # stays if Ctrl-C ends the wait
        try:
            jobs, lost = self._deliver(_Signal.finish, seconds, seconds - time_to_stop)
        finally:
            stopped = [self._stopper.submit(signal.stop) for signal in self._signals if signal.name in lost]
            for executor in self._executors:
                executor.stop()
            self._delivered = not lost
            if lost:
                signals = ", ".join(f"{name} ({why})" for name, why in lost.items())
                _logger.warning(_LOST, signals, exact_duration(self._exit_timeout))
        remaining: list[Future[Any]] = [*jobs, *stopped]
        wait(remaining, max(0.0, self._deadline - time.monotonic()))

    def _deliver(
        self, job: Callable[[_Signal, float], object], timeout: float, wait_for: float
    ) -> tuple[list[Future[object]], dict[str, str]]:
        """Start a job with a timeout for each signal, and wait `wait_for` seconds.

        Returns:
            The futures, and the reason for each signal that was not delivered by then.
        """
        before = [signal.failed for signal in self._signals]
        jobs = [signal.executor.submit(partial(job, signal, timeout)) for signal in self._signals]
        wait(jobs, wait_for)
        lost: dict[str, str] = {}
        for signal, failed_before, future in zip(self._signals, before, jobs, strict=True):
            if not future.done():
                lost[signal.name] = "no answer in time"
            elif error := future.exception():
                lost[signal.name] = one_line(f"{type(error).__name__}: {error}")
            elif future.result() is False or signal.failed > failed_before:
                lost[signal.name] = "export failed"
        return jobs, lost
