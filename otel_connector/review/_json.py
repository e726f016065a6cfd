"""Converts results to values for JSON: dataclasses to dicts, times to ISO 8601, NaN and infinity to None.

Knows no particular result.

Used by ``review._comparison``, ``review._formats`` and ``review._query``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import Any, cast


def plain(value: Any) -> Any:
    """Convert a value and all values in it. The dict of a dataclass has its fields, then its properties."""
    if is_dataclass(value):
        properties = sorted(name for name, each in vars(type(value)).items() if isinstance(each, property))
        return {name: plain(getattr(value, name)) for name in (*(each.name for each in fields(value)), *properties)}
    if isinstance(value, datetime):
        return f"{value.isoformat()}Z"
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in cast("Sequence[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
