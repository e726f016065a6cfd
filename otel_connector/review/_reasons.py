"""Finds the errors that the failed calls of a finding had one after the other: a server that is down, then a DNS error.

Errors whose messages differ in numbers, or in the host, are alike. Does not know how a finding was found.

Used by ``review._described``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from datetime import datetime
from itertools import accumulate, groupby
from math import ceil
from operator import itemgetter
from typing import Any

from otel_connector.review._filters import quoted
from otel_connector.review._verdict import Reason

_MOST = 2_000  # calls that are looked at, and texts of each class
_BLOCKS, _FEWEST = 24, 4  # parts of these calls, and the fewest calls of a part
_PURE, _KNOWN = 0.8, 0.75  # share of the calls of a part that have its error, and of the parts that have one
_VARIABLE = re.compile(r"Cannot connect to host .*? (?=ssl:)|\d+")

Rows = Callable[[str, str, str], list[tuple[Any, ...]]]
"""Takes columns, a condition and the rest of a statement about the calls of a run; returns the rows."""


def reasons(rows: Rows, condition: str, failed: int, main: str, first: datetime | None) -> tuple[Reason, ...]:
    """Return the errors of the failed calls that match a condition, in the order of time.

    If the classes are mixed, they are those of the most frequent class. Classes are known for all calls. Of a large
    log, texts are known for a part of the failures of each class only.

    Args:
        rows: The calls.
        condition: A condition in SQL.
        failed: The number of failed calls that match it.
        main: The most frequent class of them.
        first: The start of the first of them, if it is known; of many calls, only a part is looked at.
    """
    of_calls = rows("t, error_type", f"{condition} AND hash(t) % {failed // _MOST + 1} = 0", "ORDER BY t, error_type")
    found = list[Reason]()
    classes = _in_turn(of_calls) or [(each, main) for each, name in of_calls if name == main][:1]
    ends = [start for start, _ in classes[1:]]
    for (start, name), end in zip(classes, [*ends, None], strict=False):
        after = f" AND t >= {_moment(start)}" if found else ""
        before = f" AND t < {_moment(end)}" if end else ""
        of_texts = rows(
            "t, error",
            f"{condition}{after}{before} AND error_type = {quoted(name)} AND call_id IS NOT NULL",
            f"ORDER BY hash(call_id) LIMIT {_MOST}",
        )
        parts = _in_turn([(time, _alike(error), error) for time, error in sorted(of_texts)])
        texts = {_alike(error): error for _, error in sorted(of_texts, reverse=True)}
        errors = [(time, texts[alike]) for time, alike in parts] or [(start, name)]
        errors[0] = (first if first and not found else start, errors[0][1])
        found += [Reason(start=time, error=error) for time, error in errors]
    return tuple(found)


def _alike(error: str) -> str:
    return _VARIABLE.sub("", error)


def _moment(time: datetime) -> str:
    return f"{quoted(time.isoformat())}::TIMESTAMP"


def _in_turn(rows: Sequence[tuple[Any, ...]]) -> list[tuple[datetime, Any]]:
    """Return the labels that rows of times and labels have one after the other, with their starts; none if mixed."""
    size = max(_FEWEST, ceil(len(rows) / _BLOCKS))
    blocks = [rows[start : start + size] for start in range(0, len(rows), size)]
    if len(blocks) > 1 and len(blocks[-1]) < _FEWEST:
        blocks[-2:] = [[*blocks[-2], *blocks[-1]]]
    labels = [(number, _label(block)) for number, block in enumerate(blocks)]
    known = [each for each in labels if each[1] is not None]
    found, last = list[tuple[datetime, Any]](), 0
    if len(known) < _KNOWN * len(labels):
        return found
    for label, numbers in groupby(known, key=itemgetter(1)):
        first, *_, end = [number for number, _ in numbers] * 2
        # The change is between the last block with the label before it, and the first one with its own
        low, high = (sum(map(len, blocks[:number])) for number in (last, first + 1))
        at = _change(rows[low:high], found[-1][1], label) if found else 0
        found.append((rows[low + at][0], label))
        last = end
    return found


def _label(block: Sequence[tuple[Any, ...]]) -> Hashable:
    """Return the label that nearly all rows have; None if there is none."""
    ((label, number),) = Counter(row[1] for row in block).most_common(1)
    return label if number >= _PURE * len(block) else None


def _change(rows: Sequence[tuple[Any, ...]], before: Any, after: Any) -> int:
    """Return the number of the first row after a change of labels: most before it have one, and most others another."""
    scores = accumulate((row[1] == before) - (row[1] == after) for row in rows)
    return min(max(enumerate(scores, 1), key=itemgetter(1))[0], len(rows) - 1)
