"""Rows that are in the file, but not yet known to be on the disk.

After a failed fsync the kernel may drop the pages and mark them as clean. The next fsync then succeeds, although the
rows are gone (https://wiki.postgresql.org/wiki/Fsync_Errors). So all rows since the last successful fsync are kept, and
after a failure they have to be written again. This file knows neither the log nor what calls fsync.

Used by ``_csv._writer``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class UnsyncedRows:
    """Rows written since the last successful fsync. Not thread-safe: its writer has a lock.

    Args:
        interval: Seconds after which rows have to be on the disk; 0 for each row, None for never.
        limit: Bytes of rows that may be kept.

    Attributes:
        rows: The rows, oldest first; always empty without an interval.
    """

    def __init__(self, interval: float | None, limit: int) -> None:
        self.rows: deque[bytes] = deque()
        self._interval = interval
        self._limit = limit
        self._bytes = 0

    def add(self, rows: Sequence[bytes]) -> bool:
        """Add rows that were written, unless they are the last ones already: an interrupted call can be repeated.

        Returns:
            Whether fsync has to be called now.
        """
        if self._interval is None:
            return False
        if rows and not (self.rows and self.rows[-1] is rows[-1]):
            self.rows.extend(rows)
            self._bytes += sum(map(len, rows))
        return self._interval == 0 or self._bytes > self._limit

    def synced(self, last: bytes) -> None:
        """Forget the rows up to the object `last`: they are on the disk. Does nothing if it is not among them."""
        if any(row is last for row in self.rows):
            while self.rows.popleft() is not last:
                pass
        self.count_bytes()

    def count_bytes(self) -> None:
        """Count the bytes of the rows again, after a change that was interrupted."""
        self._bytes = sum(map(len, self.rows))
