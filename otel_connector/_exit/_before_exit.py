"""What has to be finished before a process ends.

Whoever holds rows in memory says so here, and is asked to write them at the end of the program, of a
``multiprocessing`` child, or when a signal asks for it. Knows nothing of what is finished.
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
"""Seconds that the end of a process may wait for its logs, unless a disk hangs under a log that has no thread."""


class Unfinished(Protocol):
    """Somebody with work that must not be lost."""

    @property
    def busy(self) -> bool:
        """Whether this very thread is in the middle of it, interrupted by a signal, so that it must go on first."""
        ...

    def finish(self, seconds: float) -> None:
        """Finish it, in `seconds` if that is in their hands; whatever is raised is not seen by anybody."""


_known: weakref.WeakSet[Unfinished] = weakref.WeakSet()
_watched_pid = 0


def finish_before_exit(work: Unfinished) -> None:
    """Have `finish` called before the process ends, for as long as somebody holds `work`."""
    _known.add(work)
    watch_multiprocessing()


def watch_multiprocessing() -> None:
    """See to it that a ``multiprocessing`` child, which skips `atexit`, finishes too."""
    global _watched_pid  # noqa: PLW0603 - one registration for each process
    util = sys.modules.get("multiprocessing.util")
    if util is not None and _watched_pid != os.getpid():
        _watched_pid = os.getpid()
        util.Finalize(None, finish, exitpriority=0)


def interrupted() -> bool:
    """Whether a signal's handler, which asks this, has interrupted somebody in the middle of finishing."""
    return any(work.busy for work in list(_known))


def finish(seconds: float = EXIT_TIMEOUT) -> None:
    """Let everybody finish, in `seconds` together as far as that is in their hands."""
    give_up = time.monotonic() + seconds
    for work in list(_known):
        with suppress(Exception):
            work.finish(max(give_up - time.monotonic(), 0.0))


atexit.register(finish)
