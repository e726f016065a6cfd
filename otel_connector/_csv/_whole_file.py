"""Writes a file as a whole: after a failure or a crash it has its old or its new content, never a part of one.

The content is written to a new file in the same folder, which then gets the name. The name of the new file cannot be
predicted, so another user can plant neither a file nor a link there. A symbolic link to the target is followed. Logs
and results are not written here: rows are appended to them. There is no fsync: if a power failure empties the file, it
can be written again.

Used by ``_fetch._chunk``, ``_replay._checkpoint``, ``cli._fetch_command``, ``cli._option_errors``,
``cli._review_command`` and ``review._pictures``.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from otel_connector._csv._lines import may_be_log
from otel_connector._csv._ownership import open_own, open_regular
from otel_connector._csv._parts import attempts_file, is_side_file, log_name

_PRIVATE = 0o600
_NEW = 0o666  # before the umask, as for any new file of a program
_EXECUTE, _GROUP, _OTHERS = 0o111, 0o070, 0o007
_OUTPUTS = (1, 2)  # standard output and standard error


def write_whole(path: str, content: bytes, *, like: Iterable[str] = ()) -> None:
    """Write a file, or replace its content.

    An existing file keeps its mode and group, unless `like` is narrower. If this user is root, it keeps its owner, too,
    unless a file of `like` has another owner.

    Args:
        path: The file.
        content: Its content.
        like: Files that the content was made from. Users who may not read one of them may not read the new file.
            Without them, a new file has the mode 0600.

    Raises:
        OSError: It cannot be written, or `check_target` refuses it; names `path`.
    """
    target, existing = check_target(path)
    new = target.with_name(f".otel-connector-{secrets.token_hex(8)}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(open_regular(str(new), flags, partial(os.open, mode=_PRIVATE)), "wb") as file:
            file.write(content)
            with suppress(AttributeError):  # Windows
                _set_access(file.fileno(), existing, list(like))
        new.replace(target)
    except BaseException as error:
        with suppress(OSError):
            new.unlink()
        if isinstance(error, OSError):  # it names the new file, which the caller does not know
            raise OSError(error.errno, error.strerror, path) from error
        raise


def check_target(path: str) -> tuple[Path, os.stat_result | None]:
    """Return the file that `path` leads to, and its status; None if it does not exist.

    Raises:
        OSError: Its folder does not exist; or it cannot be read, is not a regular file (a folder, a device, a FIFO
            ...), or is standard output; or it or a symbolic link to it belongs to another user, see `_ownership`.
    """
    try:
        fd = open_own(path, os.O_RDONLY)
    except FileNotFoundError:
        target = Path(path).resolve()
        if not target.parent.is_dir():
            raise
        return target, None
    status = os.fstat(fd)
    os.close(fd)
    _refuse_outputs(path, status)
    return Path(path).resolve(), status


def refuse_outputs(path: str) -> None:
    """Raise if the shell writes standard output or standard error to this file: two writers would damage it.

    Raises:
        FileExistsError: It does.
    """
    with suppress(FileNotFoundError):
        status = Path(path).stat()
        if stat.S_ISREG(status.st_mode):
            _refuse_outputs(path, status)


def _refuse_outputs(path: str, status: os.stat_result) -> None:
    if any(_is_open_as(status, output) for output in _OUTPUTS):
        raise FileExistsError(errno.EEXIST, "standard output or standard error is written to this file", path)


def refuse_log(path: str, logs: Iterable[str] = ()) -> None:
    """Raise if writing `path` would replace a log, or a compressed file, as logs may be, or if it has a log's name.

    Args:
        path: The file to write.
        logs: Logs that are read, whose names and those of their parts `path` must not have.

    Raises:
        OSError: It cannot be read.
        ValueError: It would; names `path`.
    """
    refuse_name_of_log(path, logs)
    if Path(path).is_file() and may_be_log(path):
        raise _belongs_to_log(path)


def refuse_name_of_log(path: str, logs: Iterable[str]) -> None:
    """Raise if `path` has the name of one of these logs, of a part of it, or of a file beside any log.

    Raises:
        ValueError: It has; names `path`.
    """
    names = [log_name(os.path.realpath(log)) for log in logs]
    real = os.path.realpath(path)
    if is_side_file(real) or log_name(real) in {*names, *map(attempts_file, names)}:
        raise _belongs_to_log(path)


def _belongs_to_log(path: str) -> ValueError:
    return ValueError(f"{path}: this file is a log, or belongs to one; name another file")


def _is_open_as(status: os.stat_result, fd: int) -> bool:
    try:
        return os.path.samestat(status, os.fstat(fd))
    except OSError:  # closed
        return False


def _set_access(fd: int, existing: os.stat_result | None, like: list[str]) -> None:
    """Set the owner and the mode of a new file."""
    mode = _NEW & ~_umask()
    if existing is not None:
        mode = stat.S_IMODE(existing.st_mode)
        try:
            kept = not os.geteuid() and _owned_by(existing.st_uid, like)
            os.fchown(fd, existing.st_uid if kept else -1, existing.st_gid)
        except OSError:  # not a group of this user
            mode &= ~_GROUP
    with suppress(OSError):  # some file systems have no permissions; then those of the new file are not wider
        os.fchmod(fd, mode & _narrowest(like, os.fstat(fd).st_gid))


def _owned_by(user: int, paths: list[str]) -> bool:
    try:
        return all(Path(path).stat().st_uid == user for path in paths)
    except OSError:  # renamed or removed in the meantime
        return False


def _narrowest(like: list[str], group: int) -> int:
    """Return the permissions that all files of `like` have, for a file of this group."""
    allowed = 0o777 if like else _PRIVATE
    for path in like:
        try:
            status = Path(path).stat()
        except OSError:  # renamed or removed in the meantime
            return _PRIVATE
        mode = status.st_mode
        if status.st_gid != group:  # for this file, the members of `group` are others
            mode = mode & ~_GROUP | (mode & _OTHERS) << 3
        allowed &= mode | _EXECUTE | _PRIVATE
    return allowed


def _umask() -> int:
    umask = os.umask(0o077)  # it can be read only by setting it: files that another thread creates now are private
    os.umask(umask)
    return umask
