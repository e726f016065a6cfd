"""Work that must be finished before a process ends.

Objects that keep rows in memory register here. Their method `finish` is called at the end of the program or of a
``multiprocessing`` child, and when a signal arrives. This file does not know what the work is.

Used by ``_csv._background``, ``_csv._flusher`` and ``providers``.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
import weakref
from contextlib import suppress
from typing import Protocol

EXIT_TIMEOUT = 5.0
"""Maximum number of seconds that the logs may delay the end of a process. If a disk hangs, a log without a thread of
its own may take longer."""


class Unfinished(Protocol):
    """An object with work that must not be lost."""

    @property
    def busy(self) -> bool:
        """Whether the current thread is doing the work. In a signal handler: whether the signal interrupted it."""
        ...

    def finish(self, seconds: float) -> None:
        """Finish the work, within `seconds` if possible. Exceptions are ignored."""


_registered: weakref.WeakSet[Unfinished] = weakref.WeakSet()
_process_with_finalizer = 0


def finish_before_exit(work: Unfinished) -> None:
    """Call `work.finish` before the process ends, unless `work` is collected before."""
    _registered.add(work)
    finish_multiprocessing_child()


def finish_multiprocessing_child() -> None:
    """Register `finish` for the end of a ``multiprocessing`` child, which does not run the handlers of `atexit`."""
    global _process_with_finalizer  # noqa: PLW0603 - one registration per process
    util = sys.modules.get("multiprocessing.util")
    if util is not None and _process_with_finalizer != os.getpid():
        _process_with_finalizer = os.getpid()
        util.Finalize(None, finish, exitpriority=0)


def interrupted() -> bool:
    """Return, to a signal handler, whether the signal has interrupted unfinished work."""
    return any(work.busy for work in list(_registered))


def finish(seconds: float = EXIT_TIMEOUT) -> None:
    """Finish all work, within `seconds` for all of it if possible."""
    deadline = time.monotonic() + seconds
    for work in list(_registered):
        with suppress(Exception):
            work.finish(max(deadline - time.monotonic(), 0.0))


atexit.register(finish)
