"""Returns the charts of a log for a notebook, or writes them to files. Knows nothing of how they are drawn.

Altair and vl-convert are loaded when they are used.

Used by ``review`` and ``review._report``.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from otel_connector._arguments import check_bool, check_choice, checked_instance, checked_path
from otel_connector._csv._whole_file import check_target, refuse_log, write_whole
from otel_connector.review._load import Calls
from otel_connector.review._points import points

if TYPE_CHECKING:
    from otel_connector.review._chart_style import Figure

MISSING = "charts and reports need altair, jinja2 and vl-convert-python: pip install 'otel-connector[review]'"
_SCALE = 2  # pixels of a PNG per pixel of the chart


def figures(calls: Calls, *, dark: bool = False) -> dict[str, Figure]:
    """Return the charts as Altair charts, which a notebook displays by itself.

    Args:
        calls: The result of `load`.
        dark: Whether they are for a dark background.

    Returns:
        The charts by name: ``failures`` if a call failed, ``rate``, ``latency``, ``heatmap``, ``statuses`` (these over
        time, in UTC), ``distribution``, and ``errors`` if a call failed; empty if there are no calls. A chart has at
        most some thousand numbers, for any number of calls, and no URLs.

    Raises:
        TypeError: An argument has the wrong type; the message names it.
        ImportError: Altair is not installed; names the extra that installs it.
    """
    checked_instance("calls", calls, Calls)
    check_bool("dark", dark)
    try:
        from otel_connector.review._charts import charts
    except ImportError:
        raise ImportError(MISSING) from None
    found = points(calls)
    return {} if found is None else charts(found, dark=dark)


def save_pictures(calls: Calls, path: str | os.PathLike[str], form: str, *, dark: bool = False) -> list[Path]:
    """Write each chart to a file.

    Args:
        calls: The result of `load`.
        path: The common part of the names: ``night.png`` means ``night-latency.png``, ``night-rate.png`` and so on.
            Existing files are replaced. Only users who may read all logs may read the new ones.
        form: ``png`` (with two pixels per pixel of the chart) or ``svg``.
        dark: Whether they are for a dark background.

    Returns:
        The files; empty if there are no calls.

    Raises:
        ImportError: Altair or vl-convert is not installed; names the extra that installs them.
        OSError: A file cannot be written.
        TypeError: An argument has the wrong type; the message names it.
        ValueError: `form` has another value, `path` is empty, or a file to replace is a log.
    """
    check_choice("form", form, ("png", "svg"))
    try:
        import vl_convert
    except ImportError:
        raise ImportError(MISSING) from None
    base = Path(checked_path("path", path))
    if base.is_dir():  # the charts would be written beside it
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(base))
    stem = base.stem if base.suffix.lower() == f".{form}" else base.name
    charts = {base.with_name(f"{stem}-{name}.{form}"): each for name, each in figures(calls, dark=dark).items()}
    logs = [log.path for log in calls.files]
    for target in charts:
        check_target(str(target))
        refuse_log(str(target), logs)
    for target, figure in charts.items():
        spec = figure.to_dict(validate=False)
        is_png = form == "png"
        picture = vl_convert.vegalite_to_png(spec, scale=_SCALE) if is_png else vl_convert.vegalite_to_svg(spec)
        write_whole(str(target), picture if isinstance(picture, bytes) else picture.encode(), like=logs)
    return list(charts)
