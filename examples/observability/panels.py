"""Builds the parts of the dashboards: queries, panels and variables, with the same look everywhere.

This file knows Grafana's data model. It does not know the metrics; `dashboards.py` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    GraphThresholdsStyleMode,
    HeatmapCellLayout,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DashboardRangeMapOptions,
    DataSourceRef,
    DataTransformerConfig,
    Panel,
    RangeMap,
    Threshold,
    ThresholdsMode,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

TAG = "otel_connector"
GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"

_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_EVERYTHING = VariableOption(selected=True, text=["All"], value=["$__all"])


def query(expr: str, legend: str = "", *, exemplars: bool = False) -> prometheus.Dataquery:
    """Return a query over the dashboard's time range.

    Args:
        expr: PromQL.
        legend: The name of each series; ``{{label}}`` is the value of a label.
        exemplars: Query the exemplars as well. Grafana draws them as dots that open a trace.
    """
    built = prometheus.Dataquery().expr(expr).legend_format(legend or "__auto").range()
    return built.exemplar(exemplars)


def number(
    title: str,
    description: str,
    unit: str,
    expr: str,
    *,
    steps: Mapping[float, str] | None = None,
    decimals: int | None = None,
    named: Mapping[float, str] | None = None,
) -> stat.Panel:
    """Return a panel with one number, the value at the end of the time range.

    Args:
        title: What it counts.
        description: What it means, and which value requires action.
        unit: Grafana's id of a unit.
        expr: PromQL.
        steps: The colour from each value on; green below the first. None: always blue, for a neutral number.
        decimals: Digits after the point; None for Grafana's default.
        named: The text that is shown from each value on, instead of the number.
    """
    panel = stat.Panel().title(title).description(description).unit(unit).datasource(_SOURCE).height(4).span(4)
    panel = panel.with_target(query(expr).ref_id("A")).thresholds(_thresholds(steps)).mappings(_mappings(named))
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel if decimals is None else panel.decimals(decimals)


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: prometheus.Dataquery,
    span: int = 8,
    stacked: bool = False,
    steps: Mapping[float, str] | None = None,
    most: float | None = None,
    named: Mapping[float, str] | None = None,
) -> timeseries.Panel:
    """Return a panel with one line per series, and a legend with the last and the greatest value.

    Args:
        title: What is drawn.
        description: What it means, and how to read it.
        unit: Grafana's id of a unit.
        queries: Results of `query`.
        span: Columns, of 24.
        stacked: Draw the series on top of each other. Only useful if their sum has a meaning.
        steps: The values from which it is a warning (yellow) or an alert (red), drawn as dashed lines.
        most: The upper end of the axis; None adapts it to the data.
        named: The text that legend and tooltip show from each value on, instead of the number.
    """
    panel = timeseries.Panel().title(title).description(description).unit(unit).datasource(_SOURCE)
    panel = panel.height(8).span(span).min(0).fill_opacity(30 if stacked else 8).show_points(VisibilityMode.NEVER)
    panel = panel.mappings(_mappings(named))
    panel = panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    legend = common.VizLegendOptions().show_legend(show_legend=True).display_mode(LegendDisplayMode.TABLE)
    panel = panel.legend(legend.placement(LegendPlacement.BOTTOM).calcs(["lastNotNull", "max"]))
    for letter, one in zip("ABCDEF", queries, strict=False):
        panel = panel.with_target(one.ref_id(letter))
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if steps is not None:
        dashed = common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds(_thresholds(steps)).thresholds_style(dashed)
    return panel if most is None else panel.max(most)


def buckets(title: str, description: str, unit: str, expr: str, *, span: int = 12) -> heatmap.Panel:
    """Return a heat map of a histogram's buckets, with its exemplars.

    Args:
        title: What is drawn.
        description: How to read it.
        unit: Grafana's id of the buckets' unit.
        expr: PromQL that gives one series for each ``le``.
        span: Columns, of 24.
    """
    colours = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    panel = heatmap.Panel().title(title).description(description).datasource(_SOURCE).height(8).span(span)
    panel = panel.with_target(query(expr, "{{le}}", exemplars=True).format(PromQueryFormat.HEATMAP).ref_id("A"))
    panel = (
        panel.calculate(calculate=False)
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .filter_values(heatmap.FilterValueRange().le(1e-9))
    )
    panel = panel.rows_frame(heatmap.RowsHeatmapOptions().layout(HeatmapCellLayout.AUTO))
    panel = panel.cell_values(heatmap.CellValues().unit("short"))
    return panel.color(colours.scale(HeatmapColorScale.EXPONENTIAL).exponent(0.5).fill("dark-orange"))


def ranking(title: str, description: str, unit: str, expr: str, legend: str, *, span: int = 8) -> bargauge.Panel:
    """Return a bar for each series, with the value at the end of the time range.

    Args:
        title: What is counted.
        description: What it means.
        unit: Grafana's id of a unit.
        expr: PromQL.
        legend: The name of each bar.
        span: Columns, of 24.
    """
    panel = bargauge.Panel().title(title).description(description).unit(unit).datasource(_SOURCE).height(8).span(span)
    panel = panel.with_target(query(expr, legend).ref_id("A")).thresholds(_thresholds(None)).min(0)
    return panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


def rows(title: str, description: str, expr: str, names: Mapping[str, str], *, span: int = 12) -> table.Panel:
    """Return a table with one row per series, with the values at the end of the time range, the greatest first.

    Args:
        title: What is listed.
        description: What it means.
        expr: PromQL.
        names: The columns in their order: the label, or ``Value``, and its heading.
        span: Columns, of 24.
    """
    panel = table.Panel().title(title).description(description).datasource(_SOURCE).height(8).span(span)
    panel = panel.with_target(prometheus.Dataquery().expr(expr).instant().format(PromQueryFormat.TABLE).ref_id("A"))
    order = {name: index for index, name in enumerate(names)}
    panel = panel.with_transformation(
        DataTransformerConfig(
            id_val="organize",
            options={"excludeByName": {"Time": True}, "indexByName": order, "renameByName": dict(names)},
        )
    )
    return panel.sort_by([common.TableSortByFieldState().display_name(names["Value"]).desc(desc=True)])


def choice(name: str, label: str, description: str, labels_of: str) -> dashboard.QueryVariable:
    """Return a variable for the values of one label. Several can be selected; by default all are.

    Args:
        name: Its name in queries.
        label: Its name in the dashboard.
        description: What it selects.
        labels_of: ``selector, label``. "All" also matches series without this label,
            for example calls with an invalid URL, which have no host.
    """
    built = dashboard.QueryVariable(name).label(label).description(description).datasource(_SOURCE)
    built = (
        built.query({"query": f"label_values({labels_of})", "refId": name})
        .multi(multi=True)
        .include_all(include_all=True)
    )
    built = built.all_value(".*").current(_EVERYTHING).sort(VariableSort.ALPHABETICAL_ASC)
    return built.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)


def amount(name: str, label: str, description: str, default: str) -> dashboard.TextBoxVariable:
    """Return a variable for a number that the reader enters."""
    option = VariableOption(selected=True, text=default, value=default)
    return dashboard.TextBoxVariable(name).label(label).description(description).default_value(default).current(option)


def page(uid: str, title: str, description: str, *variables: Any) -> dashboard.Dashboard:
    """Return an empty dashboard, with the data source as its first variable and links to the other dashboards."""
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    source = source.description("The Prometheus that stores the metrics.")
    source = source.current(VariableOption(selected=True, text="Prometheus", value="prometheus"))
    links = (
        dashboard.DashboardLink("otel_connector").type(DashboardLinkType.DASHBOARDS).tags([TAG]).icon("external link")
    )
    built = dashboard.Dashboard(title).uid(uid).description(description).tags([TAG]).readonly()
    built = built.tooltip(DashboardCursorSync.CROSSHAIR).time("now-1h", "now").refresh("30s").timezone("browser")
    built = built.link(links.keep_time(keep_time=True).include_vars(include_vars=True))
    for variable in (source, *variables):
        built = built.with_variable(variable)
    return built


def section(built: dashboard.Dashboard, title: str, *panels: Builder[Panel]) -> None:
    """Add a heading and the panels below it, from left to right."""
    built.with_row(dashboard.Row(title))
    for panel in panels:
        built.with_panel(panel)


def to_json(built: dashboard.Dashboard) -> str:
    """Return the text of the dashboard's file."""
    model = json.loads(JSONEncoder().encode(built.build()))
    for variable in model["templating"]["list"]:
        for name in (
            "auto",
            "auto_count",
            "auto_min",
        ):  # the SDK gives them to all; Grafana knows them of intervals only
            variable.pop(name, None)
    return json.dumps(model, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _mappings(named: Mapping[float, str] | None) -> list[Any]:
    texts = enumerate((named or {}).items())
    return [
        RangeMap(DashboardRangeMapOptions(from_val=value, result=ValueMappingResult(text=text, index=index)))
        for index, (value, text) in texts
    ]


def _thresholds(steps: Mapping[float, str] | None) -> dashboard.ThresholdsConfig:
    lowest = Threshold(value=None, color=BLUE if steps is None else GREEN)
    above = [Threshold(value=value, color=colour) for value, colour in (steps or {}).items()]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([lowest, *above])
