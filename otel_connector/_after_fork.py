"""Calls objects in the child of a fork, before any other code runs there.

The threads of the parent are missing in the child, so a lock that one of them holds is never released there. What the
parent has counted, or still has to write, belongs to the parent. This file does not know what the objects do about it.

Used by ``_connector_stats``, ``_csv._background``, ``_csv._writer``, ``_telemetry._metrics`` and ``_telemetry._spans``.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """An object that has to change in the child of a fork."""

    def start_over(self) -> None:
        """Continue in the child, without the threads and the pending work of the parent. May be called repeatedly."""
        ...


_objects: weakref.WeakSet[Forkable] = weakref.WeakSet()


def start_over_in_child(forkable: Forkable) -> None:
    """Call `start_over` of this object in each forked child, in any order, as long as the object exists."""
    _objects.add(forkable)


def _after_fork() -> None:
    for forkable in list(_objects):
        forkable.start_over()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
