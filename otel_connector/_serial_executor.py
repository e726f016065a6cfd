"""One daemon thread that runs jobs in order.

The thread is a daemon, because a job may hang, and the interpreter must not wait for it at exit. A caller that waits
for a job sets its own limit, by ``future.result(timeout)``. This file does not know what the jobs do.

Used by ``_call._bounded_content``, ``_doctor``, ``_fetch._results``, ``_fetch._url_lists`` and
``_telemetry._sdk_exit``.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

_Result = TypeVar("_Result")
_Jobs: TypeAlias = "SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]"
"""Jobs in the order of their arrival; None ends the thread."""


class SerialExecutor:
    """Runs jobs one after the other in a daemon thread.

    The thread ends when the executor is collected. The executor keeps no reference to a job that has ended, so an
    object whose methods are jobs can be collected while the thread is idle. ``weakref.finalize(owner, executor.stop)``
    then ends the thread.

    Args:
        name: The thread is called ``otel_connector.<name>``.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: _Jobs = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, unless it is running. Call this before `submit`, from one thread at a time.

        In the child of a fork this starts a new thread with an empty queue: the parent's thread runs the parent's jobs.
        If jobs have to run at exit, start early: since Python 3.12 an exiting interpreter starts no further thread.

        Raises:
            RuntimeError: The interpreter is exiting, or the system allows no further thread.
        """
        if self._thread is None or not self._thread.is_alive():
            self._jobs = SimpleQueue()
            thread = threading.Thread(target=_run, args=(self._jobs,), name=f"otel_connector.{self._name}", daemon=True)
            thread.start()
            self._thread = thread
            weakref.finalize(self, self._jobs.put, None).atexit = False  # the thread has no reference to this object

    def submit(self, job: Callable[[], _Result]) -> Future[_Result]:
        """Queue a job, from any thread, also from a signal handler.

        Returns:
            The future of its result or exception. It can be cancelled until the job starts.
        """
        future: Future[_Result] = Future()
        self._jobs.put((future, job))
        return future

    def stop(self) -> None:
        """End the thread after the jobs that are queued. Does not wait. Safe to call again."""
        self._thread = None
        self._jobs.put(None)


def _run(jobs: _Jobs) -> None:
    while (item := jobs.get()) is not None:
        future, job = item
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - the future passes it to the caller
                future.set_exception(error)
        del item, future, job  # while the thread waits, it must not keep the owner of the job alive
