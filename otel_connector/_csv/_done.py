"""Which URLs of a project have a success row in a log, so that `resume` can skip them.

Logs of any length are read. Of each success only a number of eight bytes is kept. This file does not know requests.

Used by ``_connector``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterable
from hashlib import blake2b

from otel_connector._csv._lines import logs_of_calls, open_log, read_head, rows
from otel_connector._csv._ownership import refuse_file_of_other_user
from otel_connector._csv._parts import log_files
from otel_connector._record import one_line

_CUT = re.compile(rb"\.\.\.\[\+\d+\]$")  # the mark of `one_line` for truncated text

_SEVERAL = -1  # no hash: several URLs of a log have the same redacted form


class CompletedUrls:
    """The URLs that have a success, as the log shows them.

    They are kept as keyed hashes of 64 bits, which take some 70 bytes each in Python. If 10 million URLs are looked up
    among 10 million, one is mistaken for another in one of 200,000 runs. The key is random, so an attacker cannot
    choose URLs that collide.

    Attributes:
        files: The files that were read.
        rows: Number of rows that were read.
        of_project: Number of these that are rows of the project, failures included.
    """

    def __init__(self) -> None:
        self.files: list[str] = []
        self.rows = self.of_project = 0
        self._hash_of_key = blake2b(os.urandom(16), digest_size=8)
        self._hashes: set[int] = set()
        self._older: dict[int, int] = {}

    def __contains__(self, url: str) -> bool:
        """Return whether a URL, as the log shows it, has a success."""
        url_hash = self._hash(url.encode())
        return url_hash in self._hashes or self._older.get(url_hash, _SEVERAL) != _SEVERAL

    def __len__(self) -> int:
        """Return the number of URLs that have a success."""
        return len(self._hashes | {form for form, url in self._older.items() if url != _SEVERAL})

    def add(self, url: bytes) -> None:
        """Keep a URL that has a success. A truncated URL is not kept: its end is unknown."""
        if not (url.endswith(b"]") and _CUT.search(url)):
            self._hashes.add(self._hash(url))

    def add_older(self, url: bytes, redacted: bytes) -> None:
        """Keep a URL of a run that redacted less. If another one has the same redacted form, neither is known by it."""
        if not (url.endswith(b"]") and _CUT.search(url)):
            url_hash, form = self._hash(url), self._hash(redacted)
            if self._older.setdefault(form, url_hash) != url_hash:
                self._older[form] = _SEVERAL

    def _hash(self, url: bytes) -> int:
        url_hash = self._hash_of_key.copy()  # takes half the time of a new hash with `key`
        url_hash.update(url)
        return int.from_bytes(url_hash.digest(), "little")


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
        redact: Redacts a URL as it is redacted now; the row may be older. What only this makes equal is unknown.

    Raises:
        OSError: A log cannot be read, is not a regular file, or belongs to another user; see `_ownership`.
        ValueError: A file is not a log; names it.
    """
    done, our_project = CompletedUrls(), one_line(project).encode()
    own = [] if log is None else [log]
    own_files = len(log_files(own))
    done.files = log_files([*own, *logs_of_calls(log_files(others))])
    for number, path in enumerate(done.files):
        has_result = holds if number < own_files else None
        count = of_project = 0  # attributes would take longer
        for call_id, row_project, t, url, success in _rows(path):
            count += 1
            if row_project == our_project:
                of_project += 1
                if success == b"True" and (has_result is None or has_result(call_id.decode(), float(t))):
                    # Without one of these characters there is no secret in it
                    secret = b"=" in url or b"@" in url or b"%" in url
                    redacted = redact(url.decode()).encode() if secret else url
                    if redacted == url:
                        done.add(url)
                    else:
                        done.add_older(url, redacted)
        done.rows += count
        done.of_project += of_project
    return done


def _rows(path: str) -> Generator[tuple[bytes, ...]]:
    with open_log(path) as (raw, file):
        refuse_file_of_other_user(path, os.fstat(raw.fileno()))
        try:
            read_head(file, may_be_empty=True)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        file.seek(0)
        yield from rows(file)
