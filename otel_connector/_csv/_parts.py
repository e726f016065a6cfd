"""Which files form one log: its rotated parts, compressed or not, and the log itself.

Review, replay, resume and check use this file, so they read the same files of a log. It knows only names, neither what
a log contains nor how it is written.

Used by ``_csv._done``, ``_csv._file``, ``_replay._replay``, ``cli._check_command``, ``cli._fetch_command`` and
``review._load``.
"""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

_COMPRESSED = r"(?:\.(?:gz|zst|xz|bz2))?"  # all but gzip are refused with a message; skipping them would lose rows

_NO_MATCH = "no file matches this pattern"

# Files that are written in addition to a log; `<stem>.attempts<suffix>` is rotated as the log is
_SIDE_FILE = re.compile(
    rf"(?P<log>.+)\.(?:torn|replayed)|(?P<stem>.+)\.attempts(?:\.\d{{6,}})?(?P<suffix>\.[^.]+){_COMPRESSED}"
)


def log_files(names: Iterable[str]) -> list[str]:
    """Return the files of some logs in order: of each log its parts, oldest first, then the log itself.

    A part of ``logs.csv`` is ``logs.000001.csv``, plain or compressed (``logs.000001.csv.gz``). The parts of a symbolic
    link are in the folder of its target, because the writer renames the target. Each file is returned once, under the
    name by which it was found first. A pattern does not match the files that are written in addition to a log
    (``logs.csv.torn``, ``logs.csv.replayed``, ``logs.attempts.csv``), unless it matches nothing else.

    Args:
        names: Paths, or patterns such as ``logs*.csv``. A path that exists is never treated as a pattern.

    Raises:
        FileNotFoundError: A path does not exist, or a pattern matches nothing.
        OSError: A folder cannot be listed.
    """
    files: dict[tuple[int, int], str] = {}
    for name in names:
        for log in [name] if os.path.lexists(name) else _matches(name):
            for path in (*_parts_of(Path(log)), log):
                status = Path(path).stat()
                files.setdefault((status.st_dev, status.st_ino), path)
    return list(files.values())


def _matches(pattern: str) -> list[str]:
    found = sorted(glob.glob(pattern))  # noqa: PTH207 - Path.glob takes no absolute pattern
    if not found:
        is_pattern = any(sign in pattern for sign in "*?[")
        raise FileNotFoundError(errno.ENOENT, _NO_MATCH if is_pattern else os.strerror(errno.ENOENT), pattern)
    return [path for path in found if not _is_side_file(path)] or found


def _is_side_file(path: str) -> bool:
    """Return whether a file belongs to a log in the same folder. An independent log may have such a name, too."""
    found = _SIDE_FILE.fullmatch(path)
    return found is not None and Path(found["log"] or found["stem"] + found["suffix"]).exists()


def _parts_of(log: Path) -> list[str]:
    """Return the parts of a log, oldest first."""
    if not log.is_file():
        return []
    parts = _numbered_parts(log.resolve() if log.is_symlink() else log)
    return [path for _, path in sorted(parts.items())]


def _numbered_parts(log: Path) -> dict[int, str]:
    name = Path(re.sub(f"{_COMPRESSED}$", "", log.name))
    part = re.compile(rf"{re.escape(name.stem)}\.(\d{{6,}}){re.escape(name.suffix)}{_COMPRESSED}")
    parts: dict[int, str] = {}
    for path in sorted(log.parent.iterdir()):  # sorted: while gzip works, the original comes first and counts
        if found := part.fullmatch(path.name):
            parts.setdefault(int(found[1]), str(path))
    return parts


def next_part(log: Path) -> Path:
    """Return the path for the next part of a log. Its number is higher than those of all parts, compressed or not.

    Args:
        log: The file, not a link to it.

    Raises:
        OSError: Its folder cannot be listed.
    """
    number = max(_numbered_parts(log), default=0) + 1
    return log.with_name(f"{log.stem}.{number:06d}{log.suffix}")
