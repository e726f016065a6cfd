"""How the pictures look: Altair charts of `Points`, each complete in itself, in light or dark.

Altair with vl-convert, because a page of its charts needs 0.9 MB of JavaScript, which runs without `eval`, and both
come from PyPI. A report by bokeh takes 1.5 MB and one by plotly 5 MB, and a PNG takes a browser with either of them.
Colours are after Okabe and Ito, who chose them for people who see fewer; shape, dashes or a place of its own say
the same once more.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# Altair leaves many of its types open; mypy, which takes these for Any, checks the rest

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from otel_connector._units import duration
from otel_connector.review._points import NO_RESPONSE, Point, Points

Figure = alt.Chart | alt.LayerChart
"""A picture, which a notebook shows by itself."""

OVER_TIME = ("latency", "rate", "heatmap", "statuses")
"""The pictures that have the same time below them."""

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
_OVER_TIME = alt.NamedData("over_time")
_WIDTH, _HEIGHT, _LOW = 880, 230, 190
_MARK = _HEIGHT - 8  # pixels from the top of the triangles that mark failures
_SEAM = 0.7  # pixels
_ROOM_BESIDE = 1.2  # factor of latency, at both ends of the distribution
_BAR = 26  # pixels of height for a class of errors
_ROOM_FOR_MARKS = 0.12  # of the height
_AXIS = 64  # pixels left of every picture over time, so that these stand exactly below each other
_LABEL_LIMIT = 220
_MINUTE, _HOUR = 60, 3_600
_DAY = 86_400_000  # milliseconds
_STEPS = (
    *(1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 15_000, 30_000),
    *(minutes * 60_000 for minutes in (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720)),
    *(days * _DAY for days in (1, 2, 4, 7, 14, 28, 91, 182, 365, 1_826, 7_305, 36_525)),
)  # between labels of time, in milliseconds
_LABEL, _LONG_LABEL = 60, 100  # pixels for a label of time, with room; the long ones have seconds
_SPAN = "(toNumber(domain('x')[1]) - toNumber(domain('x')[0]))"
_TIME_TICKS = "sequence(ceil(toNumber(domain('x')[0]) / step) * step, toNumber(domain('x')[1]) + 1, step)"
_MOST_TICKS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """The colours of one scheme; every text has a contrast of 4.5 and more to the background."""

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


_LIGHT = _Look(
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
        "o": ("#8d96a5",),
        "1": ("#8d96a5",),
    },
)
_DARK = _Look(
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
        "o": ("#8c96a6",),
        "1": ("#8c96a6",),
    },
)


def charts(points: Points, *, dark: bool) -> dict[str, Figure]:
    """Return the pictures by name: those over time first, and errors only if there are any."""
    look = _DARK if dark else _LIGHT
    drawn = {
        "latency": _latency,
        "rate": _rate,
        "heatmap": _heatmap,
        "statuses": _statuses,
        "distribution": _distribution,
    }
    if points.errors:
        drawn["errors"] = _errors
    return {name: _dressed(draw(points, look), look) for name, draw in drawn.items()}


def _latency(points: Points, look: _Look) -> Figure:
    """Draw lines that are broken where there were no calls; a piece of time between two such is a dot."""
    over_time = points.over_time
    names = ["p50", "p90", "p99"]
    dashes: list[Any] = [[1, 0], [7, 3], [3, 1.5]]
    shown = [point[name] for point in over_time for name in names if point[name] is not None]
    percentiles = (
        alt.Chart(_OVER_TIME)
        .transform_calculate(middle="(datum.t + datum.end) / 2")
        .transform_fold(names, as_=["percentile", "seconds"])
        .encode(
            x=_time("middle", points),
            y=_seconds("seconds", min(shown), max(shown), below=_ROOM_FOR_MARKS),
            color=_colour("percentile", names, look.percentiles, symbol="stroke"),
        )
    )
    lines = percentiles.mark_line(strokeWidth=2, interpolate="linear").encode(
        strokeDash=alt.StrokeDash(
            "percentile:N", scale=alt.Scale(domain=names, range=dashes), title=None, legend=_legend("stroke")
        )
    )
    alone = list(_alone(over_time))
    dots = percentiles.mark_circle(size=26, opacity=1).encode(x=_time("middle")).properties(data=alt.NamedData("alone"))
    failures = (
        alt.Chart(_OVER_TIME)
        .transform_filter("datum.failed > 0")
        .transform_calculate(middle="(datum.t + datum.end) / 2")
        .mark_point(shape="triangle-up", filled=True, color=look.failed, opacity=1)
        .encode(
            x=_time("middle"),
            y=alt.value(_MARK),
            size=alt.Size("failed:Q", scale=alt.Scale(type="sqrt", range=[18, 160]), legend=None),
        )
    )
    layers = [lines, *([dots] if alone else []), *([failures] if points.errors else []), _hover(points, look)]
    return _over_time(
        alt.layer(*layers).properties(height=_HEIGHT),
        "Latency over time",
        f"How long calls took, retries and waits included; each point is {_width(points)}. A triangle marks "
        "failed calls: the larger, the more.",
        over_time=over_time,
        alone=alone,
    )


def _alone(over_time: Sequence[Point]) -> Iterator[Point]:
    padded = [None, *over_time, None]
    for before, point, after in zip(padded, over_time, padded[2:], strict=False):
        if point["calls"] and not (before and before["calls"]) and not (after and after["calls"]):
            yield point


def _rate(points: Points, look: _Look) -> Figure:
    unit, factor = _rate_unit(points)
    outcomes = ["failed", "succeeded"]
    bars = (
        alt.Chart(_OVER_TIME)
        .transform_calculate(succeeded="datum.calls - datum.failed")
        .transform_fold(outcomes, as_=["outcome", "number"])
        .transform_calculate(rate=f"datum.number * {factor}", place="datum.outcome == 'failed' ? 0 : 1")
        .transform_stack(**_piled("rate", "t"))
        .mark_rect()
        .encode(
            x=_time(points=points),
            x2="end",
            y=alt.Y("bottom:Q", title=f"calls/{unit}", axis=alt.Axis(minExtent=_AXIS, maxExtent=_AXIS)),
            y2="top",
            color=_colour("outcome", outcomes, (look.failed, look.succeeded)),
        )
    )
    return _over_time(
        alt.layer(bars, _hover(points, look)).properties(height=_LOW),
        "Rate over time",
        f"Calls begun per {_unit_name(unit)}; each bar is {_width(points)}; failed calls at the bottom.",
        over_time=points.over_time,
    )


def _heatmap(points: Points, look: _Look) -> Figure:
    low = min(point["low"] for point in points.latencies)
    high = max(point["high"] for point in points.latencies)
    most = max(2, *(point["calls"] for point in points.latencies))
    marks = [10**power for power in range(9) if 10**power <= most]
    cells = (
        alt.Chart(alt.NamedData("latencies"))
        .transform_calculate(
            from_=_clock("datum.t"),
            to=_clock("datum.end"),
            latency=f"{_duration('datum.low')} + ' to ' + {_duration('datum.high')}",
            # A little over the next cell, or the background shows between them
            right=f"datum.end + {(points.domain[1] - points.domain[0]) * _SEAM} / width",
            top=f"datum.high * {(high / low) ** (_SEAM / _HEIGHT)}",
        )
        .mark_rect()
        .encode(
            x=_time(points=points),
            x2="right",
            y=_seconds("low", low, high),
            y2="top",
            color=alt.Color(
                "calls:Q",
                scale=alt.Scale(type="log", domain=[1, most], range=list(look.heat), interpolate="lab"),
                legend=alt.Legend(
                    title="calls",
                    titleOrient="left",
                    orient="top",
                    gradientLength=200,
                    gradientThickness=10,
                    format=",d",
                    values=marks if marks[1:] else [1, most],
                ),
            ),
            tooltip=[
                alt.Tooltip("from_:N", title="from"),
                alt.Tooltip("to:N"),
                alt.Tooltip("latency:N"),
                alt.Tooltip("calls:Q", format=","),
            ],
        )
    )
    return _over_time(
        alt.layer(cells).properties(height=_HEIGHT),
        "Heat map of latency",
        "How many calls took how long, and when: two bands are two kinds of calls, which percentiles do not show.",
        latencies=points.latencies,
    )


def _statuses(points: Points, look: _Look) -> Figure:
    unit, factor = _rate_unit(points)
    places = {name: place for place, name in enumerate(points.statuses)}
    by_status = [{**point, "place": places[point["status"]]} for point in points.by_status]
    bars = (
        alt.Chart(alt.NamedData("by_status"))
        .transform_calculate(rate=f"datum.calls * {factor}", from_=_clock("datum.t"), to=_clock("datum.end"))
        .transform_stack(**_piled("rate", "t"))
        .mark_rect()
        .encode(
            x=_time(points=points),
            x2="end",
            y=alt.Y("bottom:Q", title=f"calls/{unit}", axis=alt.Axis(minExtent=_AXIS, maxExtent=_AXIS)),
            y2="top",
            color=_colour("status", points.statuses, tuple(_status_colours(points.statuses, look))),
            tooltip=[
                alt.Tooltip("from_:N", title="from"),
                alt.Tooltip("to:N"),
                alt.Tooltip("status:N"),
                alt.Tooltip("calls:Q", format=","),
            ],
        )
    )
    return _over_time(
        alt.layer(_hover(points, look), bars).properties(height=_LOW),
        "Status codes over time",
        f"Calls by the status of their last response; each bar is {_width(points)}; "
        f"“{NO_RESPONSE}” is a call that was never answered.",
        over_time=points.over_time,
        by_status=by_status,
    )


def _status_colours(statuses: Sequence[str], look: _Look) -> Iterator[str]:
    used = dict[str, int]()
    for name in statuses:
        shades = look.statuses[name[0]]
        yield shades[used.setdefault(name[0], 0) % len(shades)]
        used[name[0]] += 1


def _distribution(points: Points, look: _Look) -> Figure:
    low = min(point["low"] for point in points.distribution)
    high = max(point["high"] for point in points.distribution)
    low, high = low / _ROOM_BESIDE, high * _ROOM_BESIDE
    places = {name: place for place, name in enumerate(points.projects)}
    distribution = [{**point, "place": places[point["project"]]} for point in points.distribution]
    seconds = alt.X(
        "low:Q",
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(values=_ticks(low, high), labelExpr=_duration("datum.value"), grid=False),
        title="latency (logarithmic)",
    )
    chosen = alt.selection_point(name="chosen", fields=["project"], bind="legend")
    chart = (
        alt.Chart(alt.NamedData("distribution"))
        .transform_calculate(latency=f"{_duration('datum.low')} + ' to ' + {_duration('datum.high')}")
        .transform_stack(**_piled("calls", "low"))
        .mark_rect(stroke=look.background, strokeWidth=0.5)
        .encode(
            x=seconds,
            x2="high",
            y=alt.Y("bottom:Q", title="calls", axis=alt.Axis(format=",d", tickMinStep=1)),
            y2="top",
            color=_colour("project", points.projects, look.categories),
            opacity=alt.condition(chosen, alt.value(1), alt.value(0.15)),
            tooltip=[alt.Tooltip("project:N"), alt.Tooltip("latency:N"), alt.Tooltip("calls:Q", format=",")],
        )
        .add_params(chosen)
        .properties(height=_HEIGHT)
    )
    return _titled(
        chart,
        "Latency by project",
        "How many calls took how long. A click on a project in the legend shows it alone.",
        distribution=distribution,
    )


def _errors(points: Points, look: _Look) -> Figure:
    most = max(point["calls"] for point in points.errors)
    bars = (
        alt.Chart(alt.NamedData("errors"))
        .transform_calculate(
            text="format(datum.calls, ',') + (width < 300 ? '' : '  (' + " + _share("datum.share") + " + ')')",
            of_all=_share("datum.share"),
        )
        .encode(
            y=alt.Y("error:N", sort=None, title=None, axis=alt.Axis(ticks=False, domain=False)),
            x=alt.X("calls:Q", title=None, axis=None, scale=alt.Scale(domain=[0, most * 1.45], nice=False)),
            tooltip=[
                alt.Tooltip("error:N", title="class"),
                alt.Tooltip("calls:Q", format=","),
                alt.Tooltip("of_all:N", title="of all calls"),
            ],
        )
    )
    numbers = bars.mark_text(align="left", dx=6, color=look.ink, fontSize=12).encode(text="text:N")
    chart = alt.layer(bars.mark_bar(color=look.failed, height={"band": 0.72}), numbers)
    return _titled(
        chart.properties(height=_BAR * len(points.errors)),
        "Errors by class",
        "Failed calls, and their share of all calls.",
        errors=points.errors,
    )


def _piled(number: str, groups: str) -> dict[str, Any]:
    """Return how numbers are put upon each other, by `place`."""
    return {"stack": number, "groupby": [groups], "sort": [alt.SortField("place")], "as_": ["bottom", "top"]}


def _time(field: str = "t", points: Points | None = None) -> alt.X:
    """Return the axis of time; `points`, in one layer of a picture only, says from when to when it goes."""
    # As an expression, because Vega-Lite makes two domains of one it is given in numbers, and warns that they differ
    domain = alt.Undefined if points is None else alt.ExprRef(str(list(points.domain)))
    scale = alt.Scale(type="utc", domain=domain, nice=False)
    axis = alt.Axis(grid=False, labelFlush=True, values=alt.ExprRef(_TIME_TICKS), labelExpr=_short_clock())
    return alt.X(f"{field}:T", scale=scale, title=None, axis=axis)


def _steps() -> tuple[alt.Parameter, alt.Parameter]:
    """Return the signals of Vega that say how far apart labels of time are; itself it knows no time below a second.

    A usual step, as small as there is room for, however far the picture was zoomed into.
    """
    least = f"{_SPAN} / max(2, width / ({_SPAN} < 600000 ? {_LONG_LABEL} : {_LABEL}))"
    step = "".join(f"least <= {step} ? {step} : " for step in _STEPS[:-1]) + str(_STEPS[-1])
    return alt.param(name="least", expr=least), alt.param(name="step", expr=step)


def _short_clock() -> str:
    """Return an expression of Vega for a label of time: as exact as it has to be there."""
    time = "time(datum.value)"
    years = f"{_SPAN} > {400 * _DAY}"
    return (
        f"utcFormat(datum.value, {years} ? '%b %Y' : {time} % {_DAY} == 0 ? '%d %b' : {time} % 60000 == 0 ? '%H:%M' : "
        f"{time} % 1000 == 0 ? '%H:%M:%S' : '%H:%M:%S.%L')"
    )


def _seconds(field: str, low: float, high: float, below: float = 0.0) -> alt.Y:
    """Return an axis of latency; `below` is what share of it stays free at the bottom."""
    low, high = max(low, 1e-4) / 1.15, max(high, 1e-4) * 1.15
    low /= (high / low) ** below
    axis = alt.Axis(values=_ticks(low, high), labelExpr=_duration("datum.value"), minExtent=_AXIS, maxExtent=_AXIS)
    return alt.Y(
        f"{field}:Q",
        scale=alt.Scale(type="log", domain=[low, high], nice=False, clamp=True),
        axis=axis,
        title="latency (logarithmic)",
    )


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two, as many as an axis has room for."""
    for factors in ((1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3)):
        ticks = [tick for tick in _round_numbers(factors) if low <= tick <= high]
        if len(ticks) <= _MOST_TICKS:
            return ticks
    return [tick for tick in _round_numbers((1,)) if low <= tick <= high]


def _round_numbers(factors: Sequence[float]) -> Iterator[float]:
    for power in range(-5, 9):
        yield from (float(f"{factor}e{power}") for factor in factors)


def _colour(field: str, names: Sequence[str], colours: Sequence[str], symbol: str = "square") -> alt.Color:
    scale = alt.Scale(domain=list(names), range=list(colours)[: len(names)])
    return alt.Color(f"{field}:N", scale=scale, title=None, sort=None, legend=_legend(symbol))


def _legend(symbol: str) -> alt.Legend:
    return alt.Legend(orient="top", symbolType=symbol, symbolSize=300 if symbol == "stroke" else 110)


def _hover(points: Points, look: _Look) -> alt.Chart:
    """Return an unseen bar over each piece of time, which tells all of it."""
    here = alt.selection_point(name="here", on="pointerover", clear="pointerout", fields=["t"], empty=False)
    unit, factor = _rate_unit(points)
    texts = {name: _duration(f"datum.{name}") for name in ("p50", "p90", "p99")}
    unseen: alt.Chart = (
        alt.Chart(_OVER_TIME)
        .transform_filter("datum.calls > 0")
        .transform_calculate(
            from_=_clock("datum.t"),
            to=_clock("datum.end"),
            rate=f"format(datum.calls * {factor}, '.3~r') + ' calls/{unit}'",
            failures="format(datum.failed, ',') + ' (' + " + _share("datum.failed / datum.calls") + " + ')'",
            **texts,
        )
        .mark_rect(color=look.ink)
        .encode(
            x=_time(),
            x2="end",
            fillOpacity=alt.condition(here, alt.value(0.12), alt.value(0)),
            tooltip=[
                alt.Tooltip("from_:N", title="from"),
                alt.Tooltip("to:N"),
                alt.Tooltip("calls:Q", format=","),
                alt.Tooltip("failures:N", title="failed"),
                alt.Tooltip("rate:N"),
                *(alt.Tooltip(f"{name}:N") for name in texts),
            ],
        )
        .add_params(here)
    )
    return unseen


def _over_time(chart: alt.LayerChart, title: str, subtitle: str, **datasets: list[Point]) -> Figure:
    """Let a picture be moved by dragging it, and widened with Ctrl and the wheel, so that the page still scrolls."""
    period = alt.selection_interval(
        name="period", encodings=["x"], bind="scales", zoom="wheel![event.ctrlKey || event.metaKey]"
    )
    return _titled(chart.add_params(period, *_steps()), title, f"{subtitle} Times are UTC.", **datasets)


def _titled(chart: Any, title: str, subtitle: str, **datasets: list[Point]) -> Figure:
    """Add what a picture needs to stand alone; `datasets` are the numbers that its layers name."""
    named: Figure = chart.properties(
        title=alt.TitleParams(title, subtitle=subtitle), description=f"{title}. {subtitle}", width=_WIDTH
    )
    named.datasets = datasets  # not as a property: it would be checked number by number, which takes seconds
    return named


def _dressed(chart: Any, look: _Look) -> Figure:
    datasets, chart.datasets = chart.datasets, alt.Undefined  # or each step would copy them
    text = {"labelColor": look.faint, "titleColor": look.faint, "labelFontSize": 12, "titleFontSize": 12}
    dressed: Figure = (
        chart.configure(font=_FONT, background=look.background, padding={"left": 4, "right": 14, "top": 4, "bottom": 4})
        .configure_view(stroke=None)
        .configure_axis(
            **text,
            titleFontWeight="normal",
            gridColor=look.grid,
            domainColor=look.grid,
            tickColor=look.grid,
            labelPadding=5,
        )
        .configure_axisY(labelLimit=_LABEL_LIMIT)
        .configure_legend(**text, titleFontWeight="normal", symbolStrokeWidth=2.5, labelLimit=160, columns=4, offset=10)
        .configure_title(
            anchor="start",
            color=look.ink,
            fontSize=16,
            fontWeight=600,
            subtitleColor=look.faint,
            subtitleFontSize=12,
            subtitlePadding=5,
            offset=14,
        )
    )
    dressed.datasets = datasets
    return dressed


def _width(points: Points) -> str:
    return re.sub(r"\.0+(?= )| 0 (?:s|min|h)$", "", duration(points.width))


def _rate_unit(points: Points) -> tuple[str, float]:
    """Return the unit in which the highest rate is one or more, and by what calls in a piece of time are multiplied."""
    most = max(point["calls"] for point in points.over_time) / points.width
    unit, seconds = next((each for each in (("s", 1), ("min", _MINUTE)) if most * each[1] >= 1), ("h", _HOUR))
    return unit, seconds / points.width


def _unit_name(unit: str) -> str:
    return {"s": "second", "min": "minute", "h": "hour"}[unit]


def _duration(value: str) -> str:
    """Return an expression of Vega for a duration with its unit."""
    return (
        f"({value} == null ? '-' : {value} < 0.001 ? format({value} * 1e6, '.3~r') + ' µs' : "
        f"{value} < 0.9995 ? format({value} * 1e3, '.3~r') + ' ms' : "
        f"{value} < 60 ? format({value}, '.3~r') + ' s' : format({value} / 60, '.3~r') + ' min')"
    )


def _share(value: str) -> str:
    """Return an expression of Vega for a share of 1 as a percentage."""
    return f"format({value} * 100, '.2f') + ' %'"


def _clock(value: str) -> str:
    """Return an expression of Vega for a time, to the millisecond where it has any."""
    return f"utcFormat({value}, '%Y-%m-%d %H:%M:%S') + ({value} % 1000 == 0 ? '' : utcFormat({value}, '.%L')) + ' UTC'"
