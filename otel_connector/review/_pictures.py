"""The pictures of a log by name, for a notebook or as files. Loads Altair and vl-convert when they are asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from otel_connector.review._load import Calls
from otel_connector.review._points import points

if TYPE_CHECKING:
    from otel_connector.review._chart_style import Figure

MISSING = "pictures need altair and vl-convert-python: pip install 'otel-connector[review]'"
"""What is said where they are not installed."""

_SCALE = 2  # pixels of a PNG for one of the picture's


def figures(calls: Calls, *, dark: bool = False) -> dict[str, Figure]:
    """Return the pictures as Altair charts, each of which a notebook shows by itself.

    Args:
        calls: What `load` read.
        dark: Whether they are for a dark background.

    Returns:
        By name: ``latency``, ``rate``, ``heatmap``, ``statuses`` (these over time, in UTC), ``distribution``, and
        ``errors`` if a call failed; empty if there is no call. However many calls there are, a picture holds no more
        than some thousand numbers, and none of the log's URLs.

    Raises:
        ImportError: Altair is not installed; says which extra brings it.
    """
    try:
        from otel_connector.review._charts import charts
    except ImportError:
        raise ImportError(MISSING) from None
    found = points(calls)
    return {} if found is None else charts(found, dark=dark)


def save_pictures(calls: Calls, path: str | os.PathLike[str], form: str, *, dark: bool = False) -> list[Path]:
    """Write each picture to a file of its own.

    Args:
        calls: What `load` read.
        path: Where: ``night.png`` means ``night-latency.png``, ``night-rate.png`` and so on, beside each other. What
            is there is replaced.
        form: ``png`` (two pixels for each of the picture's) or ``svg``.
        dark: Whether they are for a dark background.

    Returns:
        The files; none if there is no call.

    Raises:
        ImportError: Altair or vl-convert is not installed; says which extra brings them.
        OSError: A file cannot be written.
        ValueError: `form` is neither.
    """
    if form not in {"png", "svg"}:
        raise ValueError(f"form={form!r}: it is 'png' or 'svg'")
    try:
        import vl_convert
    except ImportError:
        raise ImportError(MISSING) from None
    base = Path(path)
    stem = base.stem if base.suffix.lower() == f".{form}" else base.name
    written = list[Path]()
    for name, figure in figures(calls, dark=dark).items():
        spec = figure.to_dict()
        target = base.with_name(f"{stem}-{name}.{form}")
        if form == "png":
            target.write_bytes(vl_convert.vegalite_to_png(spec, scale=_SCALE))
        else:
            target.write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
        written.append(target)
    return written
