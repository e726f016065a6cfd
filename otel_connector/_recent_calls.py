"""Remembers the calls that were seen recently, to recognize one that is written or sent a second time.

This file knows neither what identifies a call nor how it arrives.

Used by ``_replay._replay`` and ``csv_exporter``.
"""

from __future__ import annotations

from collections.abc import Hashable


class RecentCalls:
    """The last calls. Thread-safe without a lock, which a fork could leave locked in the child.

    Args:
        count: Minimum number of calls that are remembered. The maximum is twice as large.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._calls: dict[Hashable, object] = {}
        self._before: dict[Hashable, object] = {}

    def add(self, call: Hashable) -> bool:
        """Remember a call; False if it is remembered already."""
        calls, mark = self._calls, object()
        if call in self._before or calls.setdefault(call, mark) is not mark:  # atomic: only one thread sees its mark
            return False
        if len(calls) >= self._count:
            # Removing the first entry each time would be slow: a dictionary keeps the places of removed entries
            self._before, self._calls = calls, {}
        return True
