"""Tests of the lock of a file: between processes, without `fcntl`, and on file systems without locks."""

from __future__ import annotations

import errno
import os
import runpy
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.forked import run_python

from otel_connector._csv import _lock
from otel_connector._csv._lock import lock, try_lock, unlock


@pytest.fixture
def descriptors(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Open one file twice, as two processes would."""
    opened = [os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT) for _ in range(2)]
    yield opened[0], opened[1]
    for fd in opened:
        os.close(fd)


def test_a_file_is_held_by_one_opener_at_a_time(descriptors: tuple[int, int]) -> None:
    first, second = descriptors
    unlock(first)
    assert try_lock(first)
    assert try_lock(first), "the holder may ask again"
    assert not try_lock(second)
    with pytest.raises(BlockingIOError, match="locked by another process"):
        lock(second, 0.001)
    unlock(first)
    lock(second, 0.0)
    assert not try_lock(first)


def test_lock_waits_for_the_holder(descriptors: tuple[int, int]) -> None:
    first, second = descriptors
    lock(first, 0.0)
    timer = threading.Timer(0.05, unlock, [first])
    timer.start()
    lock(second, 10.0)
    timer.join()


def test_the_lock_ends_with_the_process(descriptors: tuple[int, int], tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from otel_connector._csv._lock import lock\n"
        "lock(os.open(sys.argv[1], os.O_RDWR), 0); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert run_python(["-c", program, str(tmp_path / "file")], tmp_path).returncode == -signal.SIGKILL
    assert try_lock(descriptors[0])


def test_every_attempt_succeeds_without_fcntl(descriptors: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    module = runpy.run_path(_lock.__file__)
    assert module["fcntl"] is None
    for fd in descriptors:
        assert module["try_lock"](fd)
    module["unlock"](descriptors[0])


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_distinguished_from_a_failing_one(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(_lock.fcntl, "flock", fail)
    if number != errno.EIO:
        assert try_lock(0)
        unlock(0)
        return
    for use in (try_lock, unlock):
        with pytest.raises(OSError, match="Input/output"):
            use(0)
