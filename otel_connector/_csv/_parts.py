"""Which files form one log: its rotated parts, compressed or not, and the log itself; and which files lie beside it.

Review, replay, resume and check use this file, so they read the same files of a log. It knows only names, neither what
a log contains nor how it is written.

All files of a log lead to one name (`log_name`): the path without symbolic links, without the number that rotation
adds, and without the suffix of a compression. A link to ``logs.csv``, ``logs.part-000001.csv``, ``logs.csv.gz`` and
``logs.csv.1`` all have the name ``logs.csv``. The files beside a log are called after this name:

- ``logs.csv.replayed`` stores how far each of its files was sent. A file is recognized by its first row
  (`_lines.LogHead`), which neither rotation nor compression changes.
- ``logs.attempts.csv`` has the attempts of its calls (`attempts_file`). It is rotated like a log.
- ``logs.csv.torn`` has the unfinished lines of ``logs.csv``. Each part has a file of its own (`torn_file`): lines of a
  part that is repaired later do not belong to the file that is written now.

Only a file that rotation made is a part. Its name has the word ``part``, which no date and no time has, so a log that
was archived by date or time (``logs.20261128.csv``, ``logs.001500.csv``) is another log. Earlier versions wrote the
number only (``logs.000001.csv``). Such files are parts from 000001 up to the first gap, and only below the first number
that has the word: rotation continues the count. Archived and rotated files (`_NUMBERED`) share the side files of the
log that they were.

Used by ``_csv``, ``_fetch``, ``_replay``, ``cli``, ``csv_exporter`` and ``review``.
"""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Generator, Iterable
from pathlib import Path

from otel_connector._csv._ownership import refuse_file_of_other_user

_TORN_SUFFIX = ".torn"

COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
"""Suffixes of compressed files. All but gzip are refused with a message; skipping them would lose rows."""

_COMPRESSED = f"(?:{'|'.join(map(re.escape, COMPRESSED))})?"

_NO_MATCH = "no file matches this pattern"

# Names of rotated and archived files: the writer's (`next_part`), those with a date, and those of logrotate
_NUMBERED = re.compile(
    r"(?P<stem>.*[^.])\.(?:part-\d{6,}|\d[\dT_:-]{5,}Z?)(?P<suffix>\.[^.]+)?"
    r"|(?P<log>.+\.[A-Za-z]\w*)[.-]\d[\dT_:-]*Z?",
    re.DOTALL,
)

# A checkpoint is written to a temporary file first, which kill -9 leaves behind
_SIDE_FILE = re.compile(rf"(?P<log>.*[^.])\.(?:torn|replayed(?:\.\w{{8}})?){_COMPRESSED}", re.DOTALL)
_ATTEMPTS = re.compile(r"(?P<stem>.*[^.])\.attempts(?P<suffix>\.[^.]+)?", re.DOTALL)


def log_files(names: Iterable[str]) -> list[str]:
    """Return the files of some logs in order: of each log its parts, oldest first, then the log itself.

    A part of ``logs.csv`` is ``logs.part-000001.csv``, plain or compressed (``logs.part-000001.csv.gz``). The parts of
    a symbolic link are in the folder of its target, because the writer renames the target. Each file is returned once,
    under the name by which it was found first. A pattern does not match the files that are written in addition to a log
    (``logs.csv.torn``, ``logs.csv.replayed``, ``logs.attempts.csv``), unless it matches nothing else.

    Args:
        names: Paths, or patterns such as ``logs*.csv``. A path that exists is never treated as a pattern.

    Raises:
        FileNotFoundError: A path does not exist, or a pattern matches nothing.
        OSError: A folder cannot be listed, or a part belongs to another user than the log does; see `_ownership`.
    """
    files: dict[tuple[int, int], str] = {}
    for name in names:
        for log in [name] if os.path.lexists(name) else _matches(name):
            owner = Path(log).stat().st_uid
            for path in (*_parts_of(Path(log)), log):
                status = Path(path).stat()
                refuse_file_of_other_user(path, status, owner)
                files.setdefault((status.st_dev, status.st_ino), path)
    return list(files.values())


def log_name(path: str) -> str:
    """Return the name of the log that a file belongs to; see the head of this file. Nothing needs to exist."""
    name = _uncompressed(Path(path))
    while found := _NUMBERED.fullmatch(name.name):
        name = name.with_name(found["log"] or found["stem"] + (found["suffix"] or ""))
    return str(name)


def torn_file(path: str) -> str:
    """Return the path of the file for the unfinished lines of a log; of such a file, its own path."""
    return path if path.endswith(_TORN_SUFFIX) else f"{_uncompressed(Path(path))}{_TORN_SUFFIX}"


def attempts_file(path: str) -> str:
    """Return the path of the file for the attempts of the calls of a log."""
    name = _uncompressed(Path(path))
    return str(name.with_name(f"{name.stem}.attempts{name.suffix}"))


def file_in_error(error: Exception, log: str) -> str:
    """Return the file that an error of a connector is about: its log, or the `attempts_file`."""
    text = error.strerror if isinstance(error, OSError) else str(error)
    return attempts_file(log) if text and text.startswith("attempts: ") else log


def is_side_file(path: str) -> bool:
    """Return whether a file has the name of one beside a log: ``logs.csv.torn`` or ``logs.csv.replayed``."""
    return _SIDE_FILE.fullmatch(Path(path).name) is not None


def without_side_files(paths: Iterable[str]) -> list[str]:
    """Return the files without the ``.torn`` and ``.replayed`` of others of them."""
    paths = list(paths)
    logs = {log_name(path) for path in paths if not is_side_file(path)}
    return [path for path in paths if not is_side_file(path) or logs.isdisjoint(_logs_of_side_file(Path(path)))]


def _uncompressed(path: Path) -> Path:
    """Return a path without symbolic links and without the suffix of a compression."""
    path = Path(os.path.realpath(path)) if path.is_symlink() else path  # `resolve` raises if links form a loop
    plain = re.sub(rf"(?<=.){_COMPRESSED}\Z", "", path.name)
    return path.with_name(plain) if plain else path  # "." and "/" have no name


def _matches(pattern: str) -> list[str]:
    found = sorted(glob.glob(pattern))  # noqa: PTH207 - Path.glob takes no absolute pattern
    if not found:
        is_pattern = any(sign in pattern for sign in "*?[")
        raise FileNotFoundError(errno.ENOENT, _NO_MATCH if is_pattern else os.strerror(errno.ENOENT), pattern)
    logs = {path: set(_logs_of_side_file(Path(path))) for path in found}
    folders = {Path(log).parent for names in logs.values() for log in names}
    existing = {log_name(str(file)) for folder in folders if folder.is_dir() for file in folder.iterdir()}
    return [path for path in found if existing.isdisjoint(logs[path])] or found


def _logs_of_side_file(path: Path) -> Generator[str]:
    """Yield the names of the logs that a file is called after. If there are no such logs, it may be a log itself."""
    if found := _SIDE_FILE.fullmatch(path.name):
        path = path.with_name(found["log"])
        yield log_name(str(path))
    path = Path(log_name(str(path)))
    if found := _ATTEMPTS.fullmatch(path.name):
        yield log_name(str(path.with_name(found["stem"] + (found["suffix"] or ""))))


def _parts_of(log: Path) -> list[str]:
    """Return the parts of a log, oldest first."""
    return [path for _, path in _numbered_parts(log.resolve() if log.is_symlink() else log)] if log.is_file() else []


def _numbered_parts(log: Path) -> list[tuple[int, str]]:
    """Return the number and the path of each part of a log, in order."""
    name = _uncompressed(log)
    part = re.compile(rf"{re.escape(name.stem)}\.((?:part-)?[0-9]{{6,}}){re.escape(name.suffix)}{_COMPRESSED}")
    found: dict[str, str] = {}
    # Sorted: while gzip works, the original comes first and counts. Comparing paths would take most of the time
    for file in sorted(os.listdir(log.parent)):  # noqa: PTH208
        if matched := part.fullmatch(file):
            found.setdefault(matched[1], str(log.with_name(file)))
    numbers = sorted(int(each.removeprefix("part-")) for each in found if each.startswith("part-"))
    parts = [(number, found[mark]) for number in numbers if number and (mark := _mark(number)) in found]
    earlier: list[tuple[int, str]] = []
    while not parts or len(earlier) + 1 < parts[0][0]:
        number = len(earlier) + 1
        # Of version 0.1.0, and of development versions after it
        paths = [found[mark] for mark in (f"{number:06d}", f"00{number:04d}") if mark in found]
        if not paths:
            break
        earlier.append((number, paths[0]))
    return [*earlier, *parts]


def _mark(number: int) -> str:
    """Return what rotation adds to the name of a part."""
    return f"part-{number:06d}"


def next_part(log: Path) -> Path:
    """Return the path for the next part of a log. Its number is higher than those of all parts, compressed or not.

    Args:
        log: The file, not a link to it.

    Raises:
        OSError: Its folder cannot be listed.
    """
    number = max(_numbered_parts(log), default=(0, ""))[0] + 1
    return log.with_name(f"{log.stem}.{_mark(number)}{log.suffix}")
