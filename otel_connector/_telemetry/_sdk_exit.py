"""What `configure` returns: SDK providers whose flush and shutdown take no longer than they may.

Left alone, the SDK holds a program's exit for 7 to 41 s when no collector answers, and says nothing about what was
lost. Here each signal is flushed by a daemon thread under one deadline, and a watch on its exporters tells the truth.
Nothing of the SDK is imported, and neither aiohttp nor the connector is known.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from operator import attrgetter
from types import TracebackType
from typing import Any, Protocol, cast, final

from otel_connector._arguments import checked_seconds
from otel_connector._serial_executor import SerialExecutor

_logger = logging.getLogger("otel_connector")

# The share of exit_timeout kept back, in seconds and as a part of the whole, for stopping exporters that are still
# trying. They stop within milliseconds when asked; a thread killed inside grpc's C++ code could abort the process.
_WIND_DOWN_SECONDS = 0.5
_WIND_DOWN_SHARE = 0.1

_AFTER_GIVING_UP = 0.1  # seconds for a collector that gave no answer a moment ago: to stop asking takes less

# Where the SDK keeps its exporters; it has no public way to them, nor to the result of an export. A path that is gone
# costs only precision (see `_watch_exporters`), and a test pins all of them.
_PIPELINES = (
    attrgetter("_active_span_processor._span_processors"),
    attrgetter("_metric_readers"),
    attrgetter("_sdk_config.metric_readers"),  # SDK 1.38
    attrgetter("_multi_log_record_processor._log_record_processors"),
)
_EXPORTERS = (attrgetter("_batch_processor._exporter"), attrgetter("span_exporter"), attrgetter("_exporter"))


class Provider(Protocol):
    """What the three SDK providers have in common. Both methods may block far longer than asked."""

    def force_flush(self, timeout_millis: int = ..., /) -> object: ...
    def shutdown(self) -> object: ...


class _ExporterWatch:
    """Counts one exporter's failed exports, and can be shut down twice.

    The SDK throws the result of ``export`` away: its ``force_flush`` says True when every batch was lost. So the watch
    stands in front of the two methods of this one exporter object.
    """

    def __init__(self, exporter: Any) -> None:
        self.failed = 0  # no lock: only "more than before" is ever asked, which a lost increment does not change
        self.sent_over_otlp = False
        self._is_otlp = type(exporter).__module__.startswith("opentelemetry.exporter.otlp.")
        self._stopped = False
        self._export: Callable[..., Any] = exporter.export
        self._shutdown: Callable[..., Any] = exporter.shutdown
        self._shutdown_claim = threading.Lock()
        exporter.export = self.export
        exporter.shutdown = self.shutdown

    def export(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Export; after the shutdown count the batch as failed, at once and without a line in the log."""
        if self._stopped:
            self.failed += 1
            return None  # the SDK looks at no result
        try:
            result = self._export(batch, *args, **kwargs)
        except BaseException:
            self.failed += 1
            raise
        # SpanExportResult, MetricExportResult and LogRecordExportResult are three enums with the same two names.
        if getattr(result, "name", None) == "FAILURE":
            self.failed += 1
        elif self._is_otlp:
            self.sent_over_otlp = True
        return result

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        """Wake an export that waits for its next try, and let no other begin. Only the first call does anything.

        We give up, the SDK shuts down later, and a forked child's reader collects once more: each of them would get
        a line in the log from the SDK's exporters, about nothing anybody can change.
        """
        self._stopped = True
        if self._shutdown_claim.acquire(blocking=False):
            self._shutdown(*args, **kwargs)


def _watch_exporters(provider: Provider) -> list[_ExporterWatch]:
    """Find the provider's exporters. One that is not found is bounded all the same, but its failures are not seen."""
    watches: list[_ExporterWatch] = []
    for step in _first(provider, _PIPELINES) or ():
        with suppress(AttributeError):  # no exporter behind this step, or one that takes no attributes
            watches.append(_ExporterWatch(_first(step, _EXPORTERS)))
    return watches


def _first(owner: object, getters: tuple[attrgetter[Any], ...]) -> Any:
    for getter in getters:
        with suppress(AttributeError):
            return getter(owner)
    return None


class _Signal:
    """Traces, metrics or logs: the provider, its exporters, and the executor on which it is waited for."""

    def __init__(self, name: str, provider: Provider) -> None:
        self.name = name
        self.executor = SerialExecutor(name)
        self.executor.start()
        self._provider = provider
        self._watches = _watch_exporters(provider)

    @property
    def failed(self) -> int:
        """How many exports have failed so far."""
        return sum(watch.failed for watch in self._watches)

    @property
    def sent_over_otlp(self) -> bool:
        """Whether a collector took any of it so far."""
        return any(watch.sent_over_otlp for watch in self._watches)

    def flush(self, timeout: float) -> object:
        """Have the SDK export what it holds; the SDK may take longer than `timeout`."""
        return self._provider.force_flush(_millis(timeout))

    def finish(self, timeout: float) -> object:
        """Flush and shut down; the SDK may take longer than `timeout`."""
        if self.name == "metrics":
            # Its shutdown collects a last time: a flush before it would send every metric twice.
            # It alone takes a time, without which it stops waiting after 30 s.
            return cast("Any", self._provider).shutdown(timeout_millis=_millis(timeout))
        # The other two abandon their queue after 30 s of shutdown, without a word; a flush does not.
        flushed = self.flush(timeout)
        self._provider.shutdown()
        return flushed

    def stop(self) -> None:
        """Stop the exporters; what they have not sent is lost."""
        for watch in self._watches:
            watch.shutdown()


def _millis(seconds: float) -> int:
    return math.ceil(seconds * 1000)


@final
class Telemetry:
    """The SDK that `configure` set up: flush it, shut it down. Made by `configure`, not by hand.

    As a context manager it shuts down when the block is left, however it is left; an exception passes through. Without
    a ``with`` the same happens when the interpreter exits. All methods may be called from any thread. They block: in a
    coroutine use ``await asyncio.to_thread(telemetry.force_flush)``, and put the ``with`` around ``asyncio.run``.
    A signal that kills, SIGTERM by default, sends nothing: have a handler raise ``SystemExit``.
    """

    def __init__(self, signals: Mapping[str, Provider], exit_timeout: float) -> None:
        self._exit_timeout = exit_timeout
        self._signals = [_Signal(name, provider) for name, provider in signals.items()]
        self._stopper = SerialExecutor("stop")
        self._stopper.start()
        self._reset()
        self._closing = False
        self._delivered = False
        self.gave_up_at = -math.inf  # monotonic seconds: when a signal's handler had waited in vain
        self._deadline = math.inf
        atexit.register(self.shutdown)
        if sys.platform == "win32":
            return
        os.register_at_fork(after_in_child=self._after_fork)

    def _reset(self) -> None:
        self._lock = threading.RLock()  # reentrant: a signal handler may call shutdown() inside shutdown()
        self._closed = threading.Event()

    def _after_fork(self) -> None:
        # The SDK empties its queues and restarts its own threads in the child; the child's spans are the child's.
        self._reset()
        if self._closing:
            self._closed.set()
            return
        for executor in self._executors():
            executor.start()

    def _executors(self) -> Iterator[SerialExecutor]:
        yield from (signal.executor for signal in self._signals)
        yield self._stopper

    def __enter__(self) -> Telemetry:
        """Return the object itself."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Shut down; an exception goes on its way."""
        self.shutdown()

    def sent_over_otlp(self) -> tuple[str, ...]:
        """Return which of ``traces``, ``metrics`` and ``logs`` a collector took any of so far."""
        return tuple(signal.name for signal in self._signals if signal.sent_over_otlp)

    def force_flush(self, timeout: float | None = None) -> bool:
        """Send every span that has ended, every metric and log record so far, and wait for it.

        Args:
            timeout: Seconds to wait at most, above 0; ``None`` (the default) is `configure`'s ``exit_timeout``.

        Returns:
            True if the exporters took everything within the time. False if an export failed (one that was already
            under way included), if the time was up (the SDK goes on trying), or after `shutdown`. Batches that failed
            earlier are gone and not told again; the SDK logged them.

        Raises:
            TypeError, ValueError: `timeout` is not a positive finite number.
        """
        timeout = self._exit_timeout if timeout is None else checked_seconds("timeout", timeout, positive=True)
        timeout = min(timeout, threading.TIMEOUT_MAX)
        if self._closing:
            return False
        before = self._failures()
        jobs = {signal.name: signal.executor.submit(partial(signal.flush, timeout)) for signal in self._signals}
        wait(jobs.values(), timeout)
        troubles = self._troubles(jobs, before)
        for future in jobs.values():
            future.cancel()  # one that waits behind a flush that hangs: nobody asks for it any more
        return not troubles

    def shutdown(self) -> bool:
        """Send what is left, then stop; never longer than `configure`'s ``exit_timeout``.

        That is for signal and end together, if the one led to the other.

        The first call does the work, every other one waits for it and returns the same. What could not be delivered is
        lost, and one WARNING on the logger ``otel_connector`` says so. The SDK's own messages are left as they are.

        Returns:
            True if the exporters took everything that was still to be sent.
        """
        with self._lock:
            first, self._closing = not self._closing, True
            if first:
                now, seconds = time.monotonic(), self._exit_timeout
                if now - self.gave_up_at < seconds:
                    seconds = min(seconds, _AFTER_GIVING_UP)
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
        time_to_stop = min(_WIND_DOWN_SECONDS, seconds * _WIND_DOWN_SHARE)
        before = self._failures()
        troubles = dict.fromkeys(before, "interrupted")  # until we know better: Ctrl-C ends the wait
        try:
            jobs = {s.name: s.executor.submit(partial(s.finish, seconds)) for s in self._signals}
            wait(jobs.values(), seconds - time_to_stop)
            troubles = self._troubles(jobs, before)
        finally:
            stopped = [self._stopper.submit(signal.stop) for signal in self._signals if signal.name in troubles]
            for executor in self._executors():
                executor.stop()
            self._delivered = not troubles
            if troubles:
                self._warn(troubles)
        remaining: list[Future[Any]] = [*jobs.values(), *stopped]
        wait(remaining, max(0.0, self._deadline - time.monotonic()))

    def _failures(self) -> dict[str, int]:
        return {signal.name: signal.failed for signal in self._signals}

    def _troubles(self, jobs: Mapping[str, Future[object]], before: Mapping[str, int]) -> dict[str, str]:
        """Tell, for each signal that was not delivered, why."""
        after = self._failures()
        troubles: dict[str, str] = {}
        for name, future in jobs.items():
            if not future.done():
                troubles[name] = "no answer in time"
            elif error := future.exception():
                troubles[name] = f"{type(error).__name__}: {error}"
            elif future.result() is False or after[name] > before[name]:
                troubles[name] = "export failed"
        return troubles

    def _warn(self, troubles: Mapping[str, str]) -> None:
        _logger.warning(
            "telemetry was lost at the end of the program: %s (exit_timeout=%g s). Is a collector listening where"
            " OTEL_EXPORTER_OTLP_ENDPOINT says (default http://localhost:4317 for grpc, http://localhost:4318 for"
            " http/protobuf), and does OTEL_EXPORTER_OTLP_PROTOCOL (default grpc) fit it?",
            ", ".join(f"{name} ({why})" for name, why in troubles.items()),
            self._exit_timeout,
        )
