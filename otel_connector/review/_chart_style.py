"""Defines how charts look: colours for light and for dark backgrounds, fonts, grids and legends.

Colours follow M. Okabe and K. Ito, "Color Universal Design", 2008, which colour-blind people can tell apart. Knows
nothing of the data.

Used by ``review._charts``, ``review._pictures`` and ``review._report``.
"""

# pyright: reportUnknownMemberType=false
# The types of Altair are incomplete. mypy treats these as Any and checks the rest

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import Any, cast

import altair as alt

Figure = alt.Chart | alt.LayerChart
"""A chart, which a notebook displays by itself."""

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """The colours for one background. Every text colour has a contrast of at least 4.5 to it.

    Attributes:
        background: The background.
        ink: Titles and numbers.
        faint: Labels and subtitles.
        grid: Grid lines and axes.
        succeeded: Calls that succeeded.
        failed: Calls that failed.
        percentiles: The lines of p50, p90 and p99.
        categories: Projects.
        heat: The scale of a heat map, from few to many calls.
        statuses: Shades by the first character of a status. The others have the last colour of `categories`.
    """

    background: str
    ink: str
    faint: str
    grid: str
    succeeded: str
    failed: str
    percentiles: tuple[str, str, str]
    categories: tuple[str, ...]
    heat: tuple[str, ...]
    statuses: dict[str, tuple[str, ...]]


LIGHT = Style(
    background="#ffffff",
    ink="#1c2430",
    faint="#586273",
    grid="#e4e8ee",
    succeeded="#4a90c2",
    failed="#c84a00",
    percentiles=("#0067a5", "#00806a", "#a0457f"),
    categories=("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#8a5a2b", "#8d96a5"),
    heat=("#dcebf6", "#9cc8e6", "#4d9bcf", "#1667a3", "#0b3a66"),
    statuses={
        "2": ("#4a90c2", "#86b8dc", "#2b6a97"),
        "3": ("#009e73", "#5cc4a5"),
        "4": ("#e0a100", "#f2cc5c", "#b07c00", "#ffe6a3"),
        "5": ("#c84a00", "#ec8a4d", "#8f3500", "#f5b38a"),
        "n": ("#6b4c9a",),
    },
)
DARK = Style(
    background="#171c24",
    ink="#e7ebf1",
    faint="#a3adbb",
    grid="#2a323e",
    succeeded="#4c97cc",
    failed="#ff8546",
    percentiles=("#62b6f0", "#37c9a4", "#e59ac8"),
    categories=("#3f9ddb", "#f0b429", "#2fbf94", "#dd8fbb", "#8fd0f5", "#c08a55", "#8c96a6"),
    heat=("#26425c", "#245d8a", "#3a8fc9", "#86c5ef", "#e4f3fd"),
    statuses={
        "2": ("#4c97cc", "#2f6c98", "#8cc2e8"),
        "3": ("#2fbf94", "#1d7d61"),
        "4": ("#f0b429", "#b8860b", "#ffd978", "#7a5a08"),
        "5": ("#ff8546", "#c2551c", "#ffb48c", "#8a3a10"),
        "n": ("#b493e6",),
    },
)


def _colours(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
        return
    parts: Iterable[Any] = cast("dict[str, Any]", value).values() if isinstance(value, dict) else value
    for part in parts:
        yield from _colours(part)


_DARK_OF = dict(zip(_colours(astuple(LIGHT)), _colours(astuple(DARK)), strict=True))


def darkened(spec: Any) -> Any:
    """Return the specification of a chart, drawn in `LIGHT`, with the colours of `DARK`. Names in scales stay."""
    if isinstance(spec, dict):
        items = cast("dict[str, Any]", spec).items()
        return {key: value if key == "domain" else darkened(value) for key, value in items}
    if isinstance(spec, list):
        return [darkened(part) for part in cast("list[Any]", cast("object", spec))]
    return _DARK_OF.get(spec, spec) if isinstance(spec, str) else spec


def styled(chart: Any, style: Style) -> Figure:
    """Apply a style to a chart, and return it."""
    text: Any = {"labelColor": style.faint, "titleColor": style.faint, "labelFontSize": 12, "titleFontSize": 12}
    chart.config = alt.Config(
        font=_FONT,
        background=style.background,
        padding={"left": 4, "right": 14, "top": 4, "bottom": 4},
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            **text,
            titleFontWeight="normal",
            gridColor=style.grid,
            domainColor=style.grid,
            tickColor=style.grid,
            labelPadding=5,
        ),
        axisY=alt.AxisConfig(labelLimit=220),
        legend=alt.LegendConfig(
            **text, titleFontWeight="normal", symbolStrokeWidth=2.5, labelLimit=160, columns=4, offset=10
        ),
        title=alt.TitleConfig(
            anchor="start",
            color=style.ink,
            fontSize=16,
            fontWeight=600,
            subtitleColor=style.faint,
            subtitleFontSize=12,
            subtitlePadding=5,
            offset=14,
        ),
    )
    result: Figure = chart
    return result
