"""Draws `Points` as Altair charts, each complete in itself, for a light or a dark background.

Altair with vl-convert, because a page with such charts needs only 0.9 MB of JavaScript, which runs without `eval`, and
both come from PyPI. Reports of bokeh have 1.5 MB and those of plotly 5 MB, and both need a browser to make a PNG. No
chart uses colour alone: shape, dashes or position show the same. Knows neither DuckDB nor files.

Used by ``review._pictures`` and ``review._report``.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The types of Altair are incomplete. mypy treats these as Any and checks the rest

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import altair as alt
from altair.utils.schemapi import debug_mode

from otel_connector._units import duration, rate_unit
from otel_connector.review import _vega
from otel_connector.review._chart_style import DARK, LIGHT, Figure, Style, styled
from otel_connector.review._points import NO_RESPONSE, SHORTEST, Point, Points

OVER_TIME = ("failures", "rate", "latency", "heatmap", "statuses", "retries")  # the charts that share a time axis

_INTERVALS = alt.NamedData("over_time")
_WIDTH, _HEIGHT, _LOW = 880, 230, 190  # pixels
_TRIANGLES = _HEIGHT - 8  # pixels from the top to the triangles that mark failures
_TRIANGLE_ROOM = 0.12  # share of the height that stays free for them
_OVERLAP = 0.7  # pixels by which the cells of the heat map overlap, or the background shows between them
_HEADROOM = 1.05  # factor of the highest number, at the end of its axis
_MARGIN = 1.2  # factor of latency at both ends of the distribution
_BAR = 26  # pixels of height for an error class
_AXIS = 64  # pixels for the y axis of every chart over time, so that their time axes are aligned
_PERCENTILES = ("p50", "p90", "p99")
_DASHES: list[Any] = [[1, 0], [7, 3], [3, 1.5]]
_PER_CENT = (1, 2, 5, 10, 20, 50)  # ends of the axis of failures, before 100
_UNIT_NAMES = {"s": "second", "min": "minute", "h": "hour"}
_LATENCY_TEXT = f"{_vega.duration('datum.low')} + ' to ' + {_vega.duration('datum.high')}"


@debug_mode(arg=False)  # Altair would validate each figure more than once
def charts(points: Points, *, dark: bool) -> dict[str, Figure]:
    """Return the charts by name: first those over time; of failures, errors and retries only if there are any."""
    style = DARK if dark else LIGHT
    draw = {
        **({"failures": _failures} if points.errors else {}),
        "rate": _rate,
        "latency": _latency,
        "heatmap": _heatmap,
        "statuses": _statuses,
        **({"retries": _retries} if points.retries else {}),
        "distribution": _distribution,
    }
    if points.errors:
        draw["errors"] = _errors
    return {name: styled(function(points, style), style) for name, function in draw.items()}


def _interval_texts(points: Points) -> dict[str, str]:
    return {"from_": _vega.clock("datum.t", points.zone), "to": _vega.clock("datum.end", points.zone)}


def _latency(points: Points, style: Style) -> Figure:
    """Draw lines with a gap where there are no calls. An interval between two gaps is a dot."""
    over_time = points.over_time
    shown = [point[name] for point in over_time for name in _PERCENTILES if point[name] is not None]
    percentiles = (
        alt.Chart(_INTERVALS)
        .transform_calculate(middle="(datum.t + datum.end) / 2")
        .transform_fold(list(_PERCENTILES), as_=["percentile", "seconds"])
        .encode(
            x=_time("middle", points),
            y=_seconds("seconds", min(shown), max(shown), free=_TRIANGLE_ROOM),
            color=_colour("percentile", _PERCENTILES, style.percentiles, symbol="stroke"),
        )
    )
    lines = percentiles.mark_line(strokeWidth=2, interpolate="linear").encode(
        strokeDash=alt.StrokeDash(
            "percentile:N",
            scale=alt.Scale(domain=list(_PERCENTILES), range=_DASHES),
            title=None,
            legend=_legend("stroke"),
        )
    )
    alone = list(_between_gaps(over_time))
    dots = percentiles.mark_circle(size=26, opacity=1).encode(x=_time("middle")).properties(data=alt.NamedData("alone"))
    failures = (
        alt.Chart(_INTERVALS)
        .transform_filter("datum.failed > 0")
        .transform_calculate(middle="(datum.t + datum.end) / 2")
        .mark_point(shape="triangle-up", filled=True, color=style.failed, opacity=1)
        .encode(
            x=_time("middle"),
            y=alt.YValue(_TRIANGLES),  # type: ignore[no-untyped-call]
            size=alt.Size("failed:Q", scale=alt.Scale(type="sqrt", range=[18, 160]), legend=None),
        )
    )
    layers = [lines, *([dots] if alone else []), *([failures] if points.errors else []), _hover(points, style)]
    return _over_time(
        layers,
        "Latency over time",
        f"Duration of calls, including retries and waits. Each point is {_width(points)}. Triangles mark failed calls; "
        "a larger triangle means more.",
        points.zone,
        height=_HEIGHT,
        over_time=over_time,
        alone=alone,
    )


def _between_gaps(over_time: Sequence[Point]) -> Iterator[Point]:
    padded = [None, *over_time, None]
    for before, point, after in zip(padded, over_time, padded[2:], strict=False):
        if point["calls"] and not (before and before["calls"]) and not (after and after["calls"]):
            yield point


def _failures(points: Points, style: Style) -> Figure:
    most = max(100 * point["failed"] / max(point["calls"], 1) for point in points.over_time)
    high = next((tick for tick in _PER_CENT if tick > most), 100)
    y = alt.Y(
        "percent:Q",
        title="failed, in %",
        scale=alt.Scale(domain=[0, high], nice=False),
        axis=alt.Axis(minExtent=_AXIS, maxExtent=_AXIS, tickCount=5),
    )
    bars = (
        alt.Chart(_INTERVALS)
        .transform_filter("datum.failed > 0")
        .transform_calculate(percent="100 * datum.failed / datum.calls", zero="0")
        .mark_rect(color=style.failed)
        .encode(x=_time(points=points), x2=alt.X2("end"), y=y, y2=alt.Y2("zero:Q"))
    )
    return _over_time(
        [bars, _hover(points, style)],
        "Failure rate over time",
        f"Share of the calls that failed, by their start. Each bar is {_width(points)}. Click a bar to see its calls.",
        points.zone,
        over_time=points.over_time,
    )


def _rate(points: Points, style: Style) -> Figure:
    unit, factor = _rate_unit(points)
    outcomes = ["failed", "succeeded"]
    rates = (
        alt.Chart(_INTERVALS)
        .transform_calculate(succeeded="datum.calls - datum.failed")
        .transform_fold(outcomes, as_=["outcome", "number"])
        .transform_calculate(rate=f"datum.number * {factor}", order="datum.outcome == 'failed' ? 0 : 1")
    )
    bars = _stacked_rates(rates, points, unit, _colour("outcome", outcomes, (style.failed, style.succeeded)))
    return _over_time(
        [bars, _hover(points, style)],
        "Rate over time",
        f"Calls started per {_UNIT_NAMES[unit]}. Each bar is {_width(points)}. Failed calls are at the bottom.",
        points.zone,
        over_time=points.over_time,
    )


def _heatmap(points: Points, style: Style) -> Figure:
    low = min(point["low"] for point in points.latencies)
    high = max(point["high"] for point in points.latencies)
    most = max(2, *(point["calls"] for point in points.latencies))
    marks = [10**power for power in range(9) if 10**power <= most]
    legend = alt.Legend(
        title="calls (logarithmic)",
        titleOrient="left",
        orient="top",
        gradientLength=120,
        gradientThickness=10,
        format=",d",
        values=[*(mark for mark in marks if mark * 2 <= most), most],  # with its end
    )
    cells = (
        alt.Chart(alt.NamedData("latencies"))
        .transform_calculate(
            **_interval_texts(points),
            latency=_LATENCY_TEXT,
            right=f"datum.end + {(points.domain[1] - points.domain[0]) * _OVERLAP} / width",
            top=f"datum.high * {(high / low) ** (_OVERLAP / _HEIGHT)}",
        )
        .mark_rect()
        .encode(
            x=_time(points=points),
            x2=alt.X2("right"),
            y=_seconds("low", low, high),
            y2=alt.Y2("top"),
            color=alt.Color(
                "calls:Q",
                scale=alt.Scale(type="log", domain=[1, most], range=list(style.heat), interpolate="lab"),
                legend=legend,
            ),
            tooltip=_tooltip("from_", "to", "latency", "calls"),
        )
    )
    return _over_time(
        [cells],
        "Heat map of latency",
        "Number of calls by time and duration. Two bands are two kinds of calls, which percentiles do not show.",
        points.zone,
        height=_HEIGHT,
        latencies=points.latencies,
    )


def _statuses(points: Points, style: Style) -> Figure:
    unit, factor = _rate_unit(points)
    by_status = _ordered(points.by_status, "status", points.statuses)
    rates = alt.Chart(alt.NamedData("by_status")).transform_calculate(
        rate=f"datum.calls * {factor}", **_interval_texts(points)
    )
    colours = _colour("status", points.statuses, tuple(_status_colours(points.statuses, style)))
    bars = _stacked_rates(rates, points, unit, colours).encode(tooltip=_tooltip("from_", "to", "status", "calls"))
    return _over_time(
        [_hover(points, style), bars],
        "Status codes over time",
        f"Calls by the status of their last response. Each bar is {_width(points)}. "
        f"“{NO_RESPONSE}” are calls without any response.",
        points.zone,
        over_time=points.over_time,
        by_status=by_status,
    )


def _retries(points: Points, style: Style) -> Figure:
    retries = _ordered(points.retries, "reason", points.reasons)
    highest = max(sum(point["retries"] for point in group) for _, group in groupby(retries, itemgetter("t")))
    chart = alt.Chart(alt.NamedData("retries")).transform_calculate(**_interval_texts(points))
    colours = _colour("reason", points.reasons, style.categories)
    tooltip = [*_tooltip("from_", "to", "reason"), alt.Tooltip("retries:Q", format=",")]
    bars = _stacked_bars(chart, points, "retries", _number("retries", highest)).encode(color=colours, tooltip=tooltip)
    return _over_time(
        [bars],
        "Retries over time",
        f"Attempts after a failed one, by the reason of its failure. Each bar is {_width(points)}.",
        points.zone,
        retries=retries,
    )


def _status_colours(statuses: Sequence[str], style: Style) -> Iterator[str]:
    used = dict[str, int]()
    for name in statuses:
        shades = style.statuses.get(name[0], style.categories[-1:])
        yield shades[used.setdefault(name[0], 0) % len(shades)]
        used[name[0]] += 1


def _distribution(points: Points, style: Style) -> Figure:
    low = min(point["low"] for point in points.distribution) / _MARGIN
    high = max(point["high"] for point in points.distribution) * _MARGIN
    seconds = alt.X(
        "low:Q",
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(values=_vega.ticks(low, high), labelExpr=_vega.duration("datum.value", axis=True), grid=False),
        title="latency (logarithmic)",
    )
    highest = max(
        sum(point["calls"] for point in group) for _, group in groupby(points.distribution, itemgetter("low"))
    )
    chosen = alt.selection_point(name="chosen", fields=["project"], bind="legend")
    chart = (
        alt.Chart(alt.NamedData("distribution"))
        .transform_calculate(latency=_LATENCY_TEXT)
        .transform_stack(**_stacked("calls", "low"))
        .mark_rect(stroke=style.background, strokeWidth=0.5)
        .encode(
            x=seconds,
            x2=alt.X2("high"),
            y=_number("calls", highest, 0),
            y2=alt.Y2("top"),
            color=_colour("project", points.projects, style.categories),
            opacity=alt.OpacityValue(**alt.condition(chosen, alt.value(1), alt.value(0.15))),
            tooltip=_tooltip("project", "latency", "calls"),
        )
        .add_params(chosen)
        .properties(height=_HEIGHT)
    )
    return _titled(
        chart,
        "Latency by project",
        "Number of calls by duration. Click a project in the legend to highlight it.",
        distribution=_ordered(points.distribution, "project", points.projects),
    )


def _errors(points: Points, style: Style) -> Figure:
    most = max(point["calls"] for point in points.errors)
    share = _vega.share("datum.share")
    bars = (
        alt.Chart(alt.NamedData("errors"))
        .transform_calculate(
            text=f"format(datum.calls, ',') + (width < 300 ? '' : '  (' + {share} + ')')",
            of_all=share,
        )
        .encode(
            y=alt.Y("error:N", sort=None, title=None, axis=alt.Axis(ticks=False, domain=False)),
            x=alt.X("calls:Q", title=None, axis=None, scale=alt.Scale(domain=[0, most * 1.45], nice=False)),
            tooltip=_tooltip("error", "calls", "of_all"),
        )
    )
    numbers = bars.mark_text(align="left", dx=6, color=style.ink, fontSize=12).encode(text=alt.Text("text:N"))
    chart = alt.layer(bars.mark_bar(color=style.failed, height={"band": 0.72}), numbers)
    return _titled(
        chart.properties(height=_BAR * len(points.errors)),
        "Errors by class",
        "Number of failed calls, and their share of all calls.",
        errors=points.errors,
    )


def _ordered(points: Sequence[Point], field: str, names: Sequence[str]) -> list[Point]:
    """Add to each point its position in a stack: that of its name in `names`."""
    return [{**point, "order": names.index(point[field])} for point in points]


def _stacked(number: str, groups: str) -> dict[str, Any]:
    """Return the arguments of a stack of numbers, in the order of the field ``order``."""
    return {"stack": number, "groupby": [groups], "sort": [alt.SortField("order")], "as_": ["bottom", "top"]}


def _stacked_rates(chart: alt.Chart, points: Points, unit: str, colour: alt.Color) -> alt.Chart:
    """Draw the field ``rate`` as bars over time, stacked in the order of the field ``order``."""
    highest = max(point["calls"] for point in points.over_time) * _rate_unit(points)[1]
    bars: alt.Chart = _stacked_bars(chart, points, "rate", _number(f"calls/{unit}", highest)).encode(color=colour)
    return bars


def _stacked_bars(chart: alt.Chart, points: Points, field: str, y: alt.Y) -> alt.Chart:
    stacked = chart.transform_stack(**_stacked(field, "t")).mark_rect()
    bars: alt.Chart = stacked.encode(x=_time(points=points), x2=alt.X2("end"), y=y, y2=alt.Y2("top"))
    return bars


def _number(title: str, highest: float, width: int = _AXIS) -> alt.Y:
    """Return the axis of a stack, which extends beyond its highest number."""
    scale = alt.Scale(domain=[0, highest * _HEADROOM], nice=True)
    return alt.Y("bottom:Q", title=title, scale=scale, axis=alt.Axis(minExtent=width, maxExtent=_AXIS))


def _tooltip(*fields: str) -> list[alt.Tooltip]:
    """Return the lines of a tooltip; all fields but ``calls`` are texts."""
    titles = {"from_": "from", "failures": "failed", "error": "class", "of_all": "of all calls"}
    return [
        alt.Tooltip("calls:Q", format=",")
        if field == "calls"
        else alt.Tooltip(f"{field}:N", title=titles.get(field, field))
        for field in fields
    ]


def _time(field: str = "t", points: Points | None = None) -> alt.X:
    """Return a time axis. Exactly one layer of a chart gets `points`, which define the period."""
    # An expression, because Vega-Lite turns a domain of numbers into two domains and warns that they differ
    domain = alt.Undefined if points is None else alt.ExprRef(str(list(points.domain)))
    scale = alt.Scale(type="utc", domain=domain, nice=False)
    axis = alt.Axis(grid=False, labelFlush=True, values=alt.ExprRef(_vega.TIME_TICKS), labelExpr=_vega.TIME_LABEL)
    return alt.X(f"{field}:T", scale=scale, title=None, axis=axis)


def _seconds(field: str, low: float, high: float, free: float = 0.0) -> alt.Y:
    """Return an axis of latency, of which the share `free` at the bottom stays empty."""
    low, high = max(low, SHORTEST) / 1.15, max(high, SHORTEST) * 1.15
    high = next((tick for tick in _vega.ticks(high, high * 10) if tick >= high), high)
    low /= (high / low) ** free
    label = _vega.duration("datum.value", axis=True)
    return alt.Y(
        f"{field}:Q",
        scale=alt.Scale(type="log", domain=[low, high], nice=False, clamp=True),
        axis=alt.Axis(values=_vega.ticks(low, high), labelExpr=label, minExtent=_AXIS, maxExtent=_AXIS),
        title="latency (logarithmic)",
    )


def _colour(field: str, names: Sequence[str], colours: Sequence[str], symbol: str = "square") -> alt.Color:
    scale = alt.Scale(domain=list(names), range=list(colours)[: len(names)])
    return alt.Color(f"{field}:N", scale=scale, title=None, sort=None, legend=_legend(symbol))


def _legend(symbol: str) -> alt.Legend:
    return alt.Legend(orient="top", symbolType=symbol, symbolSize=300 if symbol == "stroke" else 110)


def _hover(points: Points, style: Style) -> alt.Chart:
    """Return an invisible bar over each interval. Its tooltip shows all figures of the interval."""
    here = alt.selection_point(name="here", on="pointerover", clear="pointerout", fields=["t"], empty=False)
    unit, factor = _rate_unit(points)
    bars: alt.Chart = (
        alt.Chart(_INTERVALS)
        .transform_filter("datum.calls > 0")
        .transform_calculate(
            **_interval_texts(points),
            **{name: _vega.duration(f"datum.{name}") for name in _PERCENTILES},
            rate=f"format(datum.calls * {factor}, '.3~r') + ' calls/{unit}'",
            failures=f"format(datum.failed, ',') + ' (' + {_vega.share('datum.failed / datum.calls')} + ')'",
        )
        .mark_rect(color=style.ink)
        .encode(
            x=_time(),
            x2=alt.X2("end"),
            fillOpacity=alt.FillOpacityValue(**alt.condition(here, alt.value(0.12), alt.value(0))),
            tooltip=_tooltip("from_", "to", "calls", "failures", "rate", *_PERCENTILES),
        )
        .add_params(here)
    )
    return bars


def _over_time(
    layers: Sequence[alt.Chart], title: str, subtitle: str, zone: str, *, height: int = _LOW, **datasets: list[Point]
) -> Figure:
    """Make a chart movable by dragging, and zoomable with Ctrl and the wheel; the wheel alone scrolls the page."""
    period = alt.selection_interval(
        name="period", encodings=["x"], bind="scales", zoom="wheel![event.ctrlKey || event.metaKey]"
    )
    signals = [alt.param(name=name, expr=expression) for name, expression in _vega.TICK_SIGNALS.items()]
    first, *others = layers
    # Not to the chart of all layers, which would be copied and validated four times
    chart = alt.layer(first.add_params(period, *signals), *others, height=height)
    return _titled(chart, title, f"{subtitle} Times are {zone}.", **datasets)


def _titled(chart: Any, title: str, subtitle: str, **datasets: list[Point]) -> Figure:
    """Add the title, the width, and the data that the layers refer to by name."""
    # Attributes, because each method of a chart copies all of it, and validates the data number by number
    chart.title, chart.description = alt.TitleParams(title, subtitle=subtitle), f"{title}. {subtitle}"
    chart.width, chart.datasets = _WIDTH, datasets
    titled: Figure = chart
    return titled


def _width(points: Points) -> str:
    return re.sub(r"\.0+(?= )| 0 (?:s|min|h)$", "", duration(points.width))


def _rate_unit(points: Points) -> tuple[str, float]:
    """Return the unit of the highest rate, and the factor that turns the calls of an interval into a rate."""
    unit, seconds = rate_unit(max(point["calls"] for point in points.over_time) / points.width)
    return unit, seconds / points.width
