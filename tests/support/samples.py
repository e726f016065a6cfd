"""Which of many similar cases the tests have: all with the profile "thorough" of `.ci/run`, and a sample by default."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, TypeVar

T = TypeVar("T")

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def every(step: int, cases: Sequence[T]) -> Sequence[T]:
    """Return every `step`-th case."""
    return cases if THOROUGH else cases[::step]


def combinations(*values: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Return every second combination of the values of three or more parameters: each pair of values is in one."""
    numbered = product(*map(enumerate, values))
    return [
        tuple(value for _, value in case) for case in numbered if THOROUGH or not sum(number for number, _ in case) % 2
    ]
