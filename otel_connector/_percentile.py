"""Defines what a percentile is. Imports nothing of the package.

Used by ``cli._demo``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(ordered: Sequence[float], level: float) -> float:
    """Return a percentile by linear interpolation between the two nearest values.

    This is type 7 of R. J. Hyndman and Y. Fan, "Sample quantiles in statistical packages", The American Statistician
    50, 1996: the default of NumPy and pandas, and DuckDB's ``quantile_cont``, which `review` uses in SQL.

    Args:
        ordered: The values in ascending order.
        level: The percentile as a share of 1, such as 0.95.

    Returns:
        The percentile; NaN if there are no values.
    """
    if not ordered:
        return math.nan
    position = (len(ordered) - 1) * level
    lower = math.floor(position)
    below, above = ordered[lower], ordered[math.ceil(position)]
    return below + (above - below) * (position - lower)
