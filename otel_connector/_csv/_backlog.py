"""Rows that could not be written yet: in order, bounded, and written before anything newer.

This file does not know why the rows wait, nor where they are written.

Used by ``_csv._writer``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice


class Backlog:
    """A queue of whole rows. Not thread-safe: its writer has a lock.

    Args:
        limit: Bytes of rows that may wait. The first row is always accepted: the file may already contain its
            beginning, and the next row would be joined to it.
        rows: The rows that wait from the start, regardless of their size.

    Attributes:
        rows: The rows, oldest first. Of the first, the file may contain the beginning.
    """

    def __init__(self, limit: int, rows: Iterable[bytes] = ()) -> None:
        self.rows = deque(rows)
        self._limit = limit
        self.count_bytes()

    def add(self, row: bytes) -> bool:
        """Append a row; False if there is no room, and the row is lost."""
        if self.rows and self._bytes + len(row) > self._limit:
            return False
        self.rows.append(row)
        self._bytes += len(row)
        return True

    def first(self, count: int) -> list[bytes]:
        """Return the first rows, at most `count`."""
        return list(islice(self.rows, count))

    def ends_with(self, row: bytes) -> bool:
        """Return whether `row` is the last row: the same object, not an equal one."""
        return bool(self.rows) and self.rows[-1] is row

    def remove(self, rows: Iterable[bytes]) -> None:
        """Remove the first rows. Rows that are removed already are skipped, so an interrupted call can be repeated."""
        for row in rows:
            if self.rows and self.rows[0] is row:
                self._bytes -= len(self.rows.popleft())

    def count_bytes(self) -> None:
        """Count the bytes of the rows again, after a change that was interrupted."""
        self._bytes = sum(map(len, self.rows))
