"""Tests of the charts of a log: their points, compared with an independent count, and the chart files."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from otel_connector._csv._format import HEADER
from otel_connector._record import COLUMNS
from otel_connector.review import Calls, _charts, _report, figures, html_report, load, save_pictures, summarize
from otel_connector.review._chart_style import DARK, LIGHT, darkened
from otel_connector.review._points import Points, points
from otel_connector.review._trace_url import TraceURL

START = 1_790_000_000.0
NAMES = ["failures", "rate", "latency", "heatmap", "statuses", "distribution", "errors"]
Row = tuple[float, float, str, int | None, str]  # t, delta_t, project, response_code, error


def load_rows(path: Path, rows: Sequence[Row]) -> Calls:
    lines = (
        f"{i:032x}-{i:016x},{project},{t:.6f},{delta_t:.6f},https://h/{i},,7,{code or ''},{not error},{error}"
        for i, (t, delta_t, project, code, error) in enumerate(rows)
    )
    path.write_text("\n".join((",".join(COLUMNS), *lines)) + "\n")
    return load(path)


def points_of(path: Path, rows: Sequence[Row]) -> Points:
    with load_rows(path, rows) as calls:
        found = points(calls)
    assert found is not None
    return found


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.csv"


def test_points_match_an_independent_count_of_the_rows(log: Path) -> None:
    chance = random.Random(3)
    rows: list[Row] = []
    for _ in range(3_000):
        failed = chance.random() < 0.1
        code = chance.choice([404, 503, None]) if failed else 200
        rows.append((
            round(START + chance.random() * 3_000, 6),
            round(chance.lognormvariate(-2, 1), 6),
            f"p{int(chance.paretovariate(1)) % 12}",
            code,
            f"{chance.choice('ABC')}: x" if failed else "",
        ))  # fmt: skip
    found = points_of(log, rows)
    assert 60 <= len(found.over_time) <= 240
    for point in found.over_time:
        inside = [row for row in rows if point["t"] <= row[0] * 1000 < point["end"]]
        assert (point["calls"], point["failed"]) == (len(inside), sum(bool(row[4]) for row in inside))
        if len(inside) > 1:
            percentiles = statistics.quantiles([row[1] for row in inside], n=100, method="inclusive")
            for name in ("p50", "p90", "p99"):
                assert point[name] == pytest.approx(percentiles[int(name[1:]) - 1], abs=2e-6)
    for shown in (found.by_status, found.latencies, found.distribution):
        assert sum(point["calls"] for point in shown) == len(rows)
    assert found.statuses == ["503", "404", "no response", "200"]
    for piece in {(point["low"], point["high"]) for point in found.distribution}:
        inside = [row for row in rows if piece[0] * 1.0002 < row[1] < piece[1] * 0.9998]
        shown_calls = sum(point["calls"] for point in found.distribution if (point["low"], point["high"]) == piece)
        assert abs(shown_calls - len(inside)) <= 3  # the edges are rounded to four digits
    common = [name for name, _ in Counter(row[2] for row in rows).most_common(6)]
    assert sorted(found.projects[:6]) == sorted(common)
    assert re.fullmatch(r"\d other projects", found.projects[6])
    counted = Counter(row[4][:1] for row in rows if row[4])
    assert {point["error"]: point["calls"] for point in found.errors} == counted
    assert sum(point["share"] for point in found.errors) == pytest.approx(counted.total() / len(rows))


@pytest.mark.parametrize(
    ("seconds", "calls", "width"),
    [
        (0, 1, 1.0),
        (0.5, 2, 1.0),
        (0.28, 100, 0.02),
        (50, 100, 5.0),
        (50, 5_000, 0.5),
        (8 * 3_600, 5_000, 300.0),
        (31 * 86_400, 5_000, 21_600.0),
        (50 * 365 * 86_400, 500, 86_400.0 * 7 * 64),
    ],
)
def test_time_is_divided_into_intervals_of_common_widths(seconds: float, calls: int, width: float, log: Path) -> None:
    rows = [(START + seconds * i / max(calls - 1, 1), 0.1, "P", 200, "") for i in range(calls)]
    found = points_of(log, rows)
    assert found.width == width
    assert len(found.over_time) <= 240
    assert sum(point["calls"] for point in found.over_time) == calls
    assert found.domain[0] <= found.over_time[0]["t"]
    assert found.domain[1] >= found.over_time[-1]["end"]
    assert found.domain[1] - found.domain[0] >= 12 * width * 1000


def test_a_pause_is_drawn_as_a_gap(log: Path) -> None:
    rows = [(START + i, 0.1, "P", 200, "") for i in (*range(200), *range(1_000, 1_200), 1_500)]
    with load_rows(log, rows) as calls:
        found = points(calls)
        assert found is not None
        latency = figures(calls)["latency"].to_dict()
    empty = [point for point in found.over_time if not point["calls"]]
    assert len(empty) > 10
    assert all(point["p50"] is None for point in empty)
    (alone,) = latency["datasets"]["alone"]  # a single point, which a line would not show
    assert alone["t"] <= (START + 1_500) * 1000 < alone["end"]


def test_charts_of_extreme_values_have_a_bounded_number_of_points(log: Path) -> None:
    rows = [(START + i, 10 ** (i % 13 - 6), "P", 100 + i % 500, f"E{i % 50}: x") for i in range(2_000)]
    with load_rows(log, rows) as calls:
        found = points(calls)
        latency = figures(calls)["latency"].to_dict()
    assert found is not None
    assert len(latency["layer"][0]["encoding"]["y"]["axis"]["values"]) > 3
    assert len({point["low"] for point in found.latencies}) <= 60
    assert len(found.statuses) == 7
    assert "other" in found.statuses
    assert [point["error"] for point in found.errors][-1] == "38 other classes"
    assert sum(point["calls"] for point in found.errors) == 2_000


def test_long_and_empty_project_names_stay_distinct(log: Path) -> None:
    long = "x" * 80
    rows: list[Row] = [(START + i, 0.1, name, 200, "") for i, name in enumerate(["", long + "1", long + "2"])]
    found = points_of(log, rows)
    assert found.projects[0] == "(none)"
    assert len(set(found.projects)) == 3
    assert all(len(name) <= 70 for name in found.projects)
    assert {point["project"] for point in found.distribution} == set(found.projects)


def test_a_log_without_calls_has_no_charts(log: Path, tmp_path: Path) -> None:
    with load_rows(log, []) as calls:
        assert points(calls) is None
        assert figures(calls) == {}
        assert save_pictures(calls, tmp_path / "night.png", "png") == []


def test_figures_are_valid_charts_with_title_description_and_data(log: Path) -> None:
    rows: list[Row] = [(START + i, 0.1, "P", 200 if i % 7 else 500, "" if i % 7 else "E: x") for i in range(100)]
    with load_rows(log, rows) as calls:
        light, dark = figures(calls), figures(calls, dark=True)
    assert list(light) == list(dark) == NAMES
    for name, figure in light.items():
        spec = figure.to_dict()  # validates the chart
        assert spec["title"]["text"]
        assert spec["description"].startswith(spec["title"]["text"])
        assert spec["datasets"]
        assert spec["config"]["background"] == "#ffffff"
        bundle: Any = figure._repr_mimebundle_()
        assert spec["title"]["text"] in bundle["text/html"]
        in_dark = dark[name].to_dict()
        assert in_dark["config"]["background"] == "#171c24"
        # What a report does. The names of the views are hashes of the charts
        assert without_view_names(darkened(spec)) == without_view_names(in_dark)


def without_view_names(spec: Any) -> str:
    return re.sub(r"view_[0-9a-f]+", "view", json.dumps(spec))


def test_a_name_that_is_a_colour_stays_in_a_dark_chart(log: Path) -> None:
    name = LIGHT.failed
    with load_rows(log, [(START, 0.1, name, 200, "")]) as calls:
        page = html_report(calls, summarize(calls))
    data = json.loads(page.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])
    scales = [data["charts"][scheme]["distribution"]["encoding"]["color"]["scale"] for scheme in ("light", "dark")]
    assert [scale["domain"] for scale in scales] == [[name], [name]]
    assert [scale["range"] for scale in scales] == [[LIGHT.categories[0]], [DARK.categories[0]]]


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def test_a_page_without_calls_does_not_contain_the_library_for_charts(tmp_path: Path) -> None:
    (tmp_path / "logs.csv").write_bytes(HEADER)
    with load(tmp_path / "logs.csv") as calls:
        page = html_report(calls, summarize(calls))
    assert "The files contain no calls that match." in page
    assert len(page) < 100_000, "the library has 900,000 characters"


def test_charts_are_saved_as_png_and_svg_files(log: Path, tmp_path: Path) -> None:
    with load_rows(log, [(START, 0.1, "P", 200, "")]) as calls:
        written = save_pictures(calls, tmp_path / "night.png", "png")
        assert [path.name for path in written] == [f"night-{name}.png" for name in NAMES[1:-1]]
        assert all(width > 1_700 and height > 400 for width, height in map(png_size, written))
        written = save_pictures(calls, tmp_path / "v1.2", "svg")
        assert [path.name for path in written] == [f"v1.2-{name}.svg" for name in NAMES[1:-1]]
        assert all(ET.parse(path).getroot().tag.endswith("svg") for path in written)
        assert "Rate over time" in written[0].read_text(encoding="utf-8")
        with pytest.raises(ValueError, match="form must be 'png' or 'svg', not 'pdf'"):
            save_pictures(calls, tmp_path / "night", "pdf")


def test_times_are_those_of_the_time_zone_and_the_title_is_that_of_the_log(tmp_path: Path) -> None:
    """Of a log over the end of summer time: 2026-10-25, 03:00 CEST is 02:00 CET."""
    with load_rows(
        tmp_path / "night.csv", [(1792886400.0, 0.1, "P", 200, ""), (1792893600.0, 0.1, "P", None, "E: x")]
    ) as calls:
        summary = summarize(calls)
        pages = {title: html_report(calls, summary, title=title, timezone="Europe/Berlin") for title in (None, "Night")}
        with pytest.raises(ValueError, match=r"timezone must be a time zone such as Europe/Berlin, .* not 'Mars'"):
            html_report(calls, summary, timezone="Mars")
    for title, page in pages.items():
        assert f"<h1>{title or 'night.csv'}</h1>" in page
        assert "2026-10-25 02:00:00 to 2026-10-25 03:00:00 Europe/Berlin, 2 h 0 min" in page
        assert "Times are Europe/Berlin." in page
        assert ">2026-10-25 03:00:00</time>" in page
        assert "Times are UTC" not in page


@pytest.mark.parametrize(
    ("url", "shown"),
    [("https://h/a?b=1", "/a?b=1"), ("https://h", "/"), ("no URL", "no URL"), ("http://[a/b", "http://[a/b")],
)
def test_a_url_is_shown_by_its_path(url: str, shown: str) -> None:
    assert _report._path(url) == shown


def test_the_url_of_an_example_has_its_host_if_the_column_of_hosts_has_another_one() -> None:
    assert [_report._path("https://u@h:8/a?b=1", host) for host in ("h:8", "i")] == ["/a?b=1", "h:8/a?b=1"]


def test_an_axis_extends_beyond_its_largest_value(log: Path) -> None:
    """100 calls at the same time. Nothing is beyond 100 %."""
    rows: list[Row] = [(START, 0.1, "P", 200, "" if i else "E: x") for i in range(100)]
    with load_rows(log, rows) as calls:
        drawn, found = figures(calls), points(calls)
    rate, numbers = (
        drawn["rate"].to_dict()["layer"][0]["encoding"]["y"],
        drawn["distribution"].to_dict()["encoding"]["y"],
    )
    assert rate["scale"]["domain"][1] > 100
    assert numbers["scale"]["domain"][1] > 100
    assert found is not None
    for failed, high in ((1, 2), (2, 5), (50, 100), (100, 100)):
        over_time = [{**point, "failed": failed} if point["calls"] else point for point in found.over_time]
        share = _charts._failures(dataclasses.replace(found, over_time=over_time), LIGHT).to_dict()
        assert share["layer"][0]["encoding"]["y"]["scale"]["domain"] == [0, high], failed


def test_the_times_of_the_verdict_are_those_of_the_time_zone(tmp_path: Path) -> None:
    start = 1_792_886_400.0  # 2026-10-25 00:00:00 UTC
    outage = range(200, 300)
    rows = [
        (start + 10 * n, 0.1, "P", None if n in outage else 200, "ConnectFailed: refused" if n in outage else "")
        for n in range(600)
    ]
    with load_rows(tmp_path / "night.csv", rows) as calls:
        page = html_report(calls, summarize(calls), timezone="Asia/Tokyo")
    verdict = page[page.index("Outage") :][:400]
    assert "09:33:20 to 09:49:50" in verdict
    assert "UTC" not in verdict


@pytest.mark.parametrize("missing", ["altair", "jinja2", "vl_convert"])
def test_a_missing_package_is_reported_with_the_extra_to_install(
    missing: str, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("otel_connector.review._charts")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with load_rows(log, [(START, 0.1, "P", 200, "")]) as calls:
        uses: list[Any] = [lambda: html_report(calls, summarize(calls))] if missing != "vl_convert" else []
        uses += [lambda: save_pictures(calls, log, "png")] if missing != "jinja2" else []
        uses += [lambda: figures(calls)] if missing == "altair" else []
        for use in uses:
            with pytest.raises(ImportError, match=re.escape("pip install 'otel-connector[review]'")):
                use()


def test_a_trace_url_template_is_filled_in_and_escaped() -> None:
    call = f"{'a' * 32}-{'b' * 16}"
    assert (
        TraceURL("https://t/{trace_id}?s={span_id}#{call_id}").of(call) == f"https://t/{'a' * 32}?s={'b' * 16}#{call}"
    )
    grafana = 'http://g/explore?left={"queries":[{"query":"{trace_id}"}]}'
    assert TraceURL(grafana).of(call) == grafana.replace("{trace_id}", "a" * 32)
    assert TraceURL("http://t/{call_id}").of('"><script>{trace_id}') == "http://t/%22%3E%3Cscript%3E%7Btrace_id%7D"


INVALID_TEMPLATES = {
    "javascript:alert({trace_id})": "must start with http:// or https:// and a host",
    "//host/{trace_id}": "must start with http:// or https:// and a host",
    "http:///{trace_id}": "must start with http:// or https:// and a host",
    "http://[half/{trace_id}": "Invalid IPv6",
    "http://t/{traceid}": r"unknown placeholder \{traceid\}",
    "http://t/{}": r"unknown placeholder \{\}",
    "http://t/": "must contain at least one of",
}


def test_an_invalid_trace_url_template_is_refused(log: Path) -> None:
    with load_rows(log, [(START, 0.1, "P", 200, "")]) as calls:
        summary = summarize(calls)
        for template, why in INVALID_TEMPLATES.items():
            with pytest.raises(ValueError, match=f"^trace_url .*{why}.*'{re.escape(template)}'$"):
                html_report(calls, summary, trace_url=template)
