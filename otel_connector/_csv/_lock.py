"""Lock an open file against other processes, with an exclusive advisory lock (flock).

Windows and some file systems have no such locks. There every attempt succeeds, so the user has to make sure that only
one process writes a file (``docs/limits.md``). This file does not know what is in the locked file or why it is locked.

Used by ``_csv._check``, ``_csv._file`` and ``_fetch._results``.
"""

from __future__ import annotations

import errno
import time
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_EXCLUSIVE = 0 if fcntl is None else fcntl.LOCK_EX | fcntl.LOCK_NB
_PAUSE = 0.0001  # seconds between two attempts; a writer holds the lock for less than that
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})  # the file system has no locks


def try_lock(fd: int) -> bool:
    """Lock a file if no other process has locked it.

    The lock ends with `unlock`, when the last copy of the descriptor is closed, or with the process.

    Returns:
        Whether this process has the lock now.

    Raises:
        OSError: flock failed, and not because another process has the lock.
    """
    if fcntl is not None:
        try:
            fcntl.flock(fd, _EXCLUSIVE)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
    return True


def lock(fd: int, timeout: float) -> None:
    """Lock a file, and wait up to `timeout` seconds for the process that has the lock.

    Raises:
        BlockingIOError: The other process still has it.
        OSError: As `try_lock`.
    """
    deadline = time.monotonic() + timeout
    while not try_lock(fd):
        if time.monotonic() >= deadline:
            raise BlockingIOError(errno.EWOULDBLOCK, "locked by another process")
        time.sleep(_PAUSE)


def unlock(fd: int) -> None:
    """Release the lock; nothing happens if it is not held.

    Raises:
        OSError: The lock cannot be released. Closing the file then releases it.
    """
    if fcntl is not None:
        try:
            fcntl.flock(fd, fcntl.LOCK_UN)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
