"""The files from which DuckDB reads logs: links to them, and copies of their good rows, in a private folder.

DuckDB expands ``~``, patterns and URLs in a path, encodes it as UTF-8, and takes the compression of the file and
columns of the table from it. Therefore each log has a numbered name in the private folder, independent of its own path.
Does not know what DuckDB does with the rows.

Used by ``review``, ``review._load``, ``review._report`` and ``review._summary``.
"""

from __future__ import annotations

import atexit
import errno
import os
import secrets
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from otel_connector._csv._format import HEADER
from otel_connector.review._files import FoundLog, TornFile, find_torn_file, inspect_log
from otel_connector.review._repaired import CopyReport, copy_good_rows

_BLOCK = 2**15  # bytes of each part of a sample: many lines

# Errors of a write to the private folder. A read of a log does not have them
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFile:
    """What was found in one file.

    Attributes:
        path: The file.
        problem: Why it could not be read as a log; empty if it was read.
        damaged: The number of lines that are not rows.
        damage: The line number, from 1, and the defect of each of the first 20 of them.
        unfinished: Whether its last line has no line end: it is torn, or being written. It is not counted as a call.
        torn: The file with the lines that were cut off the log, if there is one.
    """

    path: str
    problem: str = ""
    damaged: int = 0
    damage: tuple[tuple[int, str], ...] = ()
    unfinished: bool = False
    torn: TornFile | None = None


class Source:
    """A file that was named as a log, and where DuckDB reads its rows.

    Args:
        path: The file.
        link: The path in the private folder at which DuckDB reads it.

    Attributes:
        problem: Why it cannot be read; empty if it can.
        log: The log. Only of a file without a problem.
        report: What was found when its rows were copied; None if they were not.
        read_from: The link, or the copy.
    """

    log: FoundLog

    def __init__(self, path: str, link: str) -> None:
        self.problem = ""
        self.report: CopyReport | None = None
        self.read_from = link
        self._path = path
        try:
            self.log = inspect_log(path)
        except (OSError, ValueError) as error:
            self.problem = _reason(error)

    def link(self) -> bool:
        """Create the link. Return whether DuckDB can read the log, as far as its first line shows."""
        try:
            Path(self.read_from).symlink_to(Path(self._path).resolve())
        except OSError:  # the file system of the folder has no links
            return False
        return self.log.plain

    def copy(self, max_unpacked_bytes: int) -> int:
        """Copy the good rows, and return how many bytes were decompressed. If the log cannot be read, set `problem`.

        Raises:
            OSError: The copy cannot be written.
        """
        report = CopyReport()
        self.read_from += ".copy"
        try:
            with Path(self.read_from).open("x", encoding="utf-8", newline="") as target:
                copy_good_rows(self.log, target, report, max_unpacked_bytes)
        except (OSError, ValueError) as error:
            Path(self.read_from).unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in _NO_SPACE:
                raise _tmpdir_error(error) from None
            self.problem = _reason(error)
        else:
            self.report = report
        return report.unpacked

    def described(self) -> LogFile:
        """Return what was found."""
        report = self.report or CopyReport()
        return LogFile(
            path=self._path,
            problem=self.problem,
            damaged=report.damaged,
            damage=tuple(report.described),
            unfinished=report.unfinished or (not self.problem and bool(self.log.tail)),
            torn=find_torn_file(self._path),
        )


def write_sample(paths: Sequence[str], target: str, size: int) -> None:
    """Write about `size` bytes of lines, spread evenly over some logs, to a file, after the header."""
    ends = list(accumulate(Path(path).stat().st_size for path in paths))
    with Path(target).open("wb") as sample:
        sample.write(HEADER)
        for at in range(0, ends[-1], max(1, ends[-1] * _BLOCK // size)):
            number = bisect_right(ends, at)
            with Path(paths[number]).open("rb") as log:
                log.seek(at - ends[number] + Path(paths[number]).stat().st_size)
                log.readline()  # the rest of a line, or the header
                sample.write(log.read(_BLOCK).rpartition(b"\n")[0] + b"\n")


def create_private_folder() -> str:
    """Create a folder for temporary files that is removed when the program ends, at the latest.

    Raises:
        OSError: There is no usable folder for it; names TMPDIR.
    """
    try:
        parent = tempfile.gettempdir()
    except FileNotFoundError as error:  # lists the folders
        raise OSError(f"{error.strerror}; set TMPDIR to a folder with free space") from None
    folder = Path(parent, f"otel_connector-review-{secrets.token_hex(8)}").absolute()
    name = folder.as_posix()
    # DuckDB encodes a path as UTF-8, and takes a \ for a separator and a ? for the end of the path of a database
    if os.fsencode(folder) != str(folder).encode(errors="surrogatepass") or not {*r"\?"}.isdisjoint(name):
        raise _tmpdir_error(OSError(errno.EINVAL, "DuckDB cannot use a path with this name"))
    # Registered first, or a Ctrl-C after the creation would leave the folder. It is not bound to the life of the calls,
    # because relations may be used longer
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        folder.mkdir(0o700)
    except OSError as error:
        raise _tmpdir_error(error) from None
    return name


def _tmpdir_error(error: OSError) -> OSError:
    why = f"{error.strerror}; a review writes temporary files there: set TMPDIR to another folder"
    return OSError(error.errno, why, tempfile.gettempdir())


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
