"""What a log says is done: the URLs of a project that have a success row.

Reads the logs from their beginning to their end, however long they are, and keeps of each success a number of eight
bytes. Knows neither aiohttp nor OpenTelemetry.
"""

from __future__ import annotations

import os
import re
from hashlib import blake2b
from typing import TYPE_CHECKING

from otel_connector._csv._format import cell
from otel_connector._csv._lines import is_plain_row, lines, open_log, read_head, read_line
from otel_connector._csv._parts import log_files
from otel_connector._record import COLUMNS, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

_PROJECT, _URL, _SUCCESS = (COLUMNS.index(name) for name in ("project", "url", "success"))

_CUT = re.compile(rb"\.\.\.\[\+\d+\]$")  # how `one_line` marks what it has cut


class CompletedUrls:
    """The URLs that have a success, by what the log shows of them.

    Kept are keyed hashes of 64 bits, some 70 bytes each as Python has them: of 10 million URLs looked up among as many,
    one is taken for another once in 200,000 runs, and nobody can choose URLs for which it happens.

    Attributes:
        rows: Whole rows that were read.
        of_project: Of these, rows of the project, failures included.
    """

    def __init__(self) -> None:
        self.rows = self.of_project = 0
        self._key = os.urandom(16)
        self._hashes: set[int] = set()

    def __contains__(self, url: str) -> bool:
        """Whether a URL, as the log shows it, has a success."""
        return self._hash(url.encode()) in self._hashes

    def __len__(self) -> int:
        """How many URLs have a success."""
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
    log: str | None, others: Iterable[str], project: str, holds: Callable[[str], bool] | None = None
) -> CompletedUrls:
    """Read logs, and return what is done of a project.

    A row that is damaged, or is being written, is passed over; so its URL is tried again.

    Args:
        log: The connector's own log.
        others: Further logs: paths, or patterns. The parts of all logs are read, too.
        project: Whose rows count.
        holds: Whether there is a result of a ``call_id`` of the own log; a success without one does not count. None if
            nobody knows. Results of further logs are elsewhere.

    Raises:
        OSError: A log cannot be read, or is no regular file.
        ValueError: A file has another header: it is no log.
    """
    done, project = CompletedUrls(), one_line(project)
    project_cell = cell(project).encode()
    own = [] if log is None else [log]
    own_files = len(log_files(own))
    for number, path in enumerate(log_files([*own, *others])):
        has_result = holds if number < own_files else None
        for line in _whole_lines(path):
            if is_plain_row(line):
                cells = line.split(b",")
                call_id, url = cells[0].decode(), cells[_URL]
                ours, success = cells[_PROJECT] == project_cell, cells[_SUCCESS] == b"True"
            else:
                try:
                    _, record = read_line(line)
                except ValueError:
                    continue
                call_id, url = record.call_id, record.url.encode()
                ours, success = record.project == project, record.success
            completed = ours and success and (has_result is None or has_result(call_id))
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
