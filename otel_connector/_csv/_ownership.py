"""Whether a file may be trusted: which files are opened, and which are refused because another user put them there.

In a folder that other users may write, such as ``/tmp`` or one of their own, one of them can create a file before this
program does, or replace a link to it. Then this program would write to, or believe, a file of that user (CWE-379,
CWE-283). A file that exists must belong to this user or to root. A new file is created exclusively, so it is ours. The
owners of the folders above are not checked.

This file knows nothing about logs.

Used by ``_csv``, ``_fetch``, ``_replay``, ``cli`` and ``review``.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from otel_connector._record import one_line

_LINKS = 40  # symbolic links in a chain, the limit of Linux
_OPENING_TRIES = 100  # one fails only if the file is renamed at the same moment
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


def open_regular(path: str, flags: int, open_file: Callable[[str, int], int] = os.open) -> int:
    """Open a regular file, and refuse anything else without blocking.

    Args:
        path: The file.
        flags: Those of `os.open`.
        open_file: Called instead of `os.open`.

    Raises:
        OSError: It cannot be opened, or is not a regular file.
    """
    # O_NONBLOCK: opening a FIFO with no process at its other end would block forever. No effect on a regular file
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        fd = open_file(path, flags)
    except ValueError as error:  # a NUL or a lone surrogate in the path
        raise OSError(errno.EINVAL, str(error), path) from error
    with ExitStack() as on_error:
        on_error.callback(os.close, fd)
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):  # opened for reading; for writing, `open_file` has raised the same error
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        on_error.pop_all()
    return fd


def open_own(path: str, flags: int, permissions: int | None = None) -> int:
    """Open a regular file that may be trusted: this program creates it, or no other user has put it there.

    Args:
        path: The file, or a link to it.
        flags: Those of `os.open`, without ``O_CREAT``.
        permissions: Those of the file, if it does not exist; None to raise then.

    Raises:
        OSError: It cannot be opened, is not a regular file, or it or a symbolic link belongs to another user.
    """
    try:
        return open_regular(
            path, flags, _open_existing if permissions is None else partial(_open_or_create, permissions)
        )
    except OSError as error:
        raise with_target(error, path) from error.__cause__


def with_target(error: OSError, path: str) -> OSError:
    """Return an error about a file that, if `path` is a symbolic link, names the target."""
    if error.errno == errno.EPERM or not Path(path).is_symlink():  # EPERM is about the owner of the link
        return error
    target = Path(path).readlink() if error.errno == errno.ELOOP else os.path.realpath(path)
    of_folder = "" if error.filename in {None, path} else f"{one_line(str(error.filename))}: "
    return OSError(error.errno, f"a symbolic link to {one_line(str(target))}: {of_folder}{error.strerror}", path)


def _open_or_create(permissions: int, path: str, flags: int) -> int:
    for _ in range(_OPENING_TRIES):
        with suppress(FileExistsError):
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, permissions)
            if hasattr(os, "fchmod"):
                with suppress(OSError):  # some file systems have no permissions; those of the new file are not wider
                    os.fchmod(fd, permissions)  # the umask may have removed some
            return fd
        # The file exists, or it existed a moment ago and another writer has renamed it since
        with suppress(FileNotFoundError):
            return _open_existing(path, flags, permissions)
    renamed = "the file was renamed or removed during each attempt to open it"
    if Path(path).is_symlink():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(Path(os.path.realpath(path)).parent))
    raise FileNotFoundError(errno.ENOENT, renamed)


def _open_existing(path: str, flags: int, permissions: int | None = None) -> int:
    """Open a file that exists, or the target of a link, which may be created."""
    if stat.S_ISLNK(os.lstat(path).st_mode):
        _refuse_links_of_other_users(path)
        create = 0 if permissions is None else os.O_CREAT
        fd = os.open(path, flags | create, permissions or 0)
    else:
        fd = os.open(path, flags | _NOFOLLOW)
    with ExitStack() as on_error:
        on_error.callback(os.close, fd)
        refuse_file_of_other_user(path, os.fstat(fd))
        on_error.pop_all()
    return fd


def refuse_file_of_other_user(
    path: str, status: os.stat_result, owner: int | None = None, *, anywhere: bool = False
) -> None:
    """Raise if a file that others may have put there belongs neither to this user nor to root.

    Args:
        path: The file.
        status: Its status. If the file is open, that of the descriptor: the name may lead to another file by now.
        owner: Another user whose file is accepted.
        anywhere: Refuse it also in a folder that no other user may write.

    Raises:
        PermissionError: The file is refused. The message names its owner.
        OSError: Its folder is gone.
    """
    if _is_trusted(status.st_uid) or status.st_uid == owner:
        return
    folders = Path(path).parent, Path(os.path.realpath(path)).parent
    shared = any(_others_may_write(folder.stat()) for folder in folders)
    if shared or anywhere:
        where = ", in a folder that others may write" if shared else ""
        why = f"belongs to another user ({_name(status.st_uid)}){where}; remove it, or use a folder of your own"
        raise PermissionError(errno.EPERM, why, path)


def _refuse_links_of_other_users(path: str) -> None:
    """Raise unless every symbolic link from `path` to the file belongs to this user or to root."""
    for _ in range(_LINKS):
        status = os.lstat(path)
        if not stat.S_ISLNK(status.st_mode):
            return
        if not _is_trusted(status.st_uid):
            why = f"a symbolic link that belongs to another user ({_name(status.st_uid)})"
            raise PermissionError(errno.EPERM, why, path)
        path = str(Path(path).parent / Path(path).readlink())
        if not os.path.lexists(path):
            return
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _others_may_write(folder: os.stat_result) -> bool:
    return not _is_trusted(folder.st_uid) or bool(folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _is_trusted(user: int) -> bool:
    return user in {0, getattr(os, "geteuid", int)()}


def _name(user: int) -> str:
    import pwd  # Windows has none, and no users with numbers

    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
