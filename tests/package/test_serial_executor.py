"""The daemon thread that runs jobs in order: order, exceptions, hangs, cancellation, fork, exit, references."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path

import pytest
from support.forked import run_python

from otel_connector._serial_executor import SerialExecutor

SECONDS = 20  # limit for what takes milliseconds


@pytest.fixture
def executor() -> Iterator[SerialExecutor]:
    executor = SerialExecutor("test")
    executor.start()
    yield executor
    executor.stop()
    for thread in named_threads():  # the next test looks for its own
        thread.join(SECONDS)


@pytest.fixture
def hung(executor: SerialExecutor) -> Iterator[threading.Event]:
    """The thread runs a job that ends when this event is set."""
    started, release = threading.Event(), threading.Event()

    def hang() -> None:
        started.set()
        release.wait(SECONDS)

    executor.submit(hang)
    assert started.wait(SECONDS)
    yield release
    release.set()


def named_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "otel_connector.test"]


def test_jobs_run_in_order_in_one_daemon_thread(executor: SerialExecutor) -> None:
    order: list[int] = []

    def job(number: int) -> Callable[[], threading.Thread]:
        def run() -> threading.Thread:
            order.append(number)
            return threading.current_thread()

        return run

    futures = [executor.submit(job(number)) for number in range(100)]
    threads = {future.result(SECONDS) for future in futures}
    assert order == list(range(100))
    assert threads == set(named_threads())
    assert len(threads) == 1
    assert threads.pop().daemon


def test_a_second_start_keeps_the_thread(executor: SerialExecutor) -> None:
    before = named_threads()
    executor.start()
    assert named_threads() == before


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_an_exception_goes_to_the_future_and_the_thread_continues(
    error: BaseException, executor: SerialExecutor
) -> None:
    def fail() -> None:
        raise error

    assert executor.submit(fail).exception(SECONDS) is error
    assert executor.submit(lambda: 1).result(SECONDS) == 1


def test_the_wait_for_a_job_that_hangs_is_bounded(executor: SerialExecutor, hung: threading.Event) -> None:
    later = executor.submit(lambda: 1)
    assert not wait([later], 0.01).done
    hung.set()
    assert later.result(SECONDS) == 1


def test_a_job_that_has_not_started_can_be_cancelled(executor: SerialExecutor, hung: threading.Event) -> None:
    ran: list[int] = []
    cancelled, last = executor.submit(lambda: ran.append(1)), executor.submit(lambda: ran.append(2))
    assert cancelled.cancel()
    hung.set()
    last.result(SECONDS)
    assert ran == [2]
    with pytest.raises(CancelledError):
        cancelled.result(0)


def test_stop_ends_the_thread_after_the_queued_jobs(executor: SerialExecutor, hung: threading.Event) -> None:
    (thread,) = named_threads()
    queued = executor.submit(lambda: 1)
    executor.stop()
    executor.stop()
    hung.set()
    assert queued.result(SECONDS) == 1
    thread.join(SECONDS)
    assert not thread.is_alive()


def test_the_thread_ends_when_the_executor_is_collected() -> None:
    abandoned = SerialExecutor("abandoned")
    abandoned.start()
    (thread,) = (each for each in threading.enumerate() if each.name == "otel_connector.abandoned")
    assert abandoned.submit(lambda: 1).result(SECONDS) == 1
    del abandoned
    gc.collect()
    thread.join(SECONDS)
    assert not thread.is_alive()


def test_it_can_be_started_again_after_stop(executor: SerialExecutor) -> None:
    executor.stop()
    executor.start()
    assert executor.submit(lambda: 1).result(SECONDS) == 1


class Owner:
    """Has jobs of its own, and ends the thread when it is collected."""

    def __init__(self, executor: SerialExecutor) -> None:
        weakref.finalize(self, executor.stop)

    def job(self) -> None:
        """Do nothing."""

    def failing_job(self) -> None:
        raise ValueError


def test_an_idle_thread_keeps_no_job_alive(executor: SerialExecutor) -> None:
    (thread,) = named_threads()
    owner = Owner(executor)
    gone = weakref.ref(owner)
    executor.submit(owner.job).result(SECONDS)
    assert executor.submit(owner.failing_job).exception(SECONDS)
    del owner
    thread.join(SECONDS)  # without a run of the garbage collector
    assert not thread.is_alive()
    assert gone() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_starts_its_own_thread_with_an_empty_queue(tmp_path: Path) -> None:
    program = """
import os, threading, warnings
from otel_connector._serial_executor import SerialExecutor
warnings.simplefilter("ignore", DeprecationWarning)  # the fork of a process with threads
executor, started, release = SerialExecutor("test"), threading.Event(), threading.Event()
executor.start()
executor.submit(lambda: (started.set(), release.wait()))
queued = executor.submit(os.getpid)
started.wait()
if child := os.fork():
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    release.set()
    assert queued.result(20) == os.getpid()
else:
    executor.start()
    same = executor.submit(os.getpid).result(20) == os.getpid()
    os._exit(0 if same and not queued.done() else 1)
"""
    done = run_python(["-c", program], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_job_that_hangs_does_not_delay_the_exit(tmp_path: Path) -> None:
    program = """
import atexit, threading
from otel_connector._serial_executor import SerialExecutor
executor, hung = SerialExecutor("hangs"), SerialExecutor("test")
executor.start(); hung.start()
hung.submit(threading.Event().wait)
atexit.register(lambda: print(executor.submit(lambda: "ran at exit").result(20)))
"""
    done = run_python(["-c", program], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran at exit\n", "")
