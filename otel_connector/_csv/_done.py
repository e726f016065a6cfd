"""Which URLs of a project have a success row in a log, so that `resume` can skip them.

Logs of any length are read. Of each success only a number of eight bytes is kept. This file does not know requests.

Used by ``_connector``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterable
from hashlib import blake2b

from otel_connector._csv._format import cell
from otel_connector._csv._lines import is_plain_row, lines, open_log, read_head, read_line
from otel_connector._csv._parts import log_files
from otel_connector._record import COLUMNS, one_line

_PROJECT, _T, _URL, _SUCCESS = (COLUMNS.index(name) for name in ("project", "t", "url", "success"))

_CUT = re.compile(rb"\.\.\.\[\+\d+\]$")  # the mark of `one_line` for truncated text


class CompletedUrls:
    """The URLs that have a success, as the log shows them.

    They are kept as keyed hashes of 64 bits, which take some 70 bytes each in Python. If 10 million URLs are looked up
    among 10 million, one is mistaken for another in one of 200,000 runs. The key is random, so an attacker cannot
    choose URLs that collide.

    Attributes:
        rows: Number of rows that were read.
        of_project: Number of these that are rows of the project, failures included.
    """

    def __init__(self) -> None:
        self.rows = self.of_project = 0
        self._key = os.urandom(16)
        self._hashes: set[int] = set()

    def __contains__(self, url: str) -> bool:
        """Return whether a URL, as the log shows it, has a success."""
        return self._hash(url.encode()) in self._hashes

    def __len__(self) -> int:
        """Return the number of URLs that have a success."""
        return len(self._hashes)

    def note(self, url: bytes, *, ours: bool, completed: bool) -> None:
        """Count a row, and keep its URL if it is completed. A truncated URL is not kept: its end is unknown."""
        self.rows += 1
        self.of_project += ours
        if completed and not _CUT.search(url):
            self._hashes.add(self._hash(url))

    def _hash(self, url: bytes) -> int:
        return int.from_bytes(blake2b(url, digest_size=8, key=self._key).digest(), "little")


def read_done(
    log: str | None,
    others: Iterable[str],
    project: str,
    holds: Callable[[str, float], bool] | None = None,
    redact: Callable[[str], str] = str,
) -> CompletedUrls:
    """Read logs, and return the URLs of a project that have a success.

    Damaged rows, and a row that is being written, are skipped, so their URLs are requested again.

    Args:
        log: The connector's own log.
        others: Further logs: paths, or patterns. The parts of all logs are read, too.
        project: The project whose rows count.
        holds: Returns whether the result of a call of the own log, given by ``call_id`` and ``t``, exists; a success
            without a result does not count. None if this is unknown. The results of further logs are elsewhere.
        redact: Redacts a URL as it is redacted now; the row may be older.

    Raises:
        OSError: A log cannot be read, or is not a regular file.
        ValueError: A file is not a log; names it.
    """
    done, project = CompletedUrls(), one_line(project)
    project_cell = cell(project).encode()
    own = [] if log is None else [log]
    own_files = len(log_files(own))
    for number, path in enumerate(log_files([*own, *others])):
        has_result = holds if number < own_files else None
        t: bytes | float
        for line in _whole_lines(path):
            if is_plain_row(line):
                cells = line.split(b",")
                call_id, t, url = cells[0].decode(), cells[_T], cells[_URL]
                ours, success = cells[_PROJECT] == project_cell, cells[_SUCCESS] == b"True"
            else:
                try:
                    _, record = read_line(line)
                except ValueError:
                    continue
                call_id, t, url = record.call_id, record.t, record.url.encode()
                ours, success = record.project == project, record.success
            completed = ours and success and (has_result is None or has_result(call_id, float(t)))
            if completed and (b"=" in url or b"@" in url or b"%" in url):  # else there is no secret in it
                url = redact(url.decode()).encode()
            done.note(url, ours=ours, completed=completed)
    return done


def _whole_lines(path: str) -> Generator[bytes]:
    with open_log(path) as (_, file):
        try:
            read_head(file, may_be_empty=True)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        file.seek(0)
        yield from (line.content for line in lines(file) if line.what is None)
