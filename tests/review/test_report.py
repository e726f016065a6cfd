"""Tests of the HTML report in a real browser, opened from disk: it draws, sorts, searches and sends no requests."""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import duckdb
import pytest
from playwright.sync_api import BrowserContext, Page, sync_playwright

from otel_connector._record import COLUMNS
from otel_connector.review import compare, html_report, load, summarize
from otel_connector.review._compare_html import comparison_report
from otel_connector.testing import FaultServer, respond

pytestmark = pytest.mark.browser

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
ROWS = 50_000
OVER_TIME = ("failures", "rate", "latency", "heatmap", "statuses")
CHARTS = (*OVER_TIME, "distribution", "errors")
TWO_FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
TRACE = "http://localhost:16686/trace/{trace_id}?uiFind={span_id}"
# Texts with which a server, or the author of a log, could try to run code in the report
HOSTILE = (
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 2'>",
    '"><svg onload="window.pwned = 3">',
    "javascript:window.pwned = 4",
    "<!--<script>",
    "\u2028window.pwned = 5\u2029",
    "${window.pwned = 6}",
    "__proto__",
)


def call_id(number: int) -> str:
    return f"{number:032x}-{number + 7:016x}"


def row(number: int, t: float, delta_t: float = 0.2, code: int | None = 200, error: str = "", **other: str) -> str:
    texts = {"project": "P", "url": f"https://api.example.com/{number}"} | other
    cells = (call_id(number), texts["project"], f"{t:.6f}", f"{delta_t:.6f}", texts["url"], "", "1000", code or "")
    return ",".join(f'"{str(cell).replace(chr(34), chr(34) * 2)}"' for cell in (*cells, not error, error))


def log_of(path: Path, *rows: str) -> Path:
    path.write_text("\n".join((",".join(COLUMNS), *rows)) + "\n", encoding="utf-8")
    return path


def big_log(path: Path) -> Path:
    """Write a log of hours with pauses, a burst, hundreds of hosts, projects and error classes, and hostile texts."""
    duckdb.sql(
        f"""COPY (
        SELECT printf('%032x-%016x', i, i + 7) call_id, 'project ' || i % 300 project,
            printf('%.6f', 1790000000 + CASE WHEN i < 22500 THEN i * 0.4 WHEN i < 32500 THEN 9000 + i * 0.04
                ELSE 14000 + i * 0.24 + i // 2500 * 400 END) t,
            printf('%.6f', 0.02 + (i * 7919 % 1000) / 1500
                + CASE WHEN i % 100 = 0 THEN (i % 1700) / 100 ELSE 0 END) delta_t,
            'https://host' || i % 900 || '.example.com:8443/' || i || '?q=' || repeat('x', i % 400) url,
            '' redirect_url, i % 5000 response_size,
            CASE i % 40 WHEN 1 THEN '503' WHEN 2 THEN '404' WHEN 3 THEN NULL WHEN 4 THEN (i % 100 + 100)::VARCHAR
                ELSE '200' END code,
            CASE WHEN i % 40 IN (1, 2, 3, 4) THEN 'False' ELSE 'True' END success,
            CASE i % 40 WHEN 1 THEN 'HTTPStatusError: 503 Service Unavailable'
                WHEN 2 THEN 'HTTPStatusError: 404 Not Found'
                WHEN 3 THEN 'ConnectFailed: Cannot connect' WHEN 4 THEN 'Error' || i % 2000 || ': strange' END error
        FROM range({ROWS}) _(i)) TO '{path}' (HEADER false)"""
    )
    text = path.read_text(encoding="utf-8")
    hostile = (
        row(ROWS + i, 1790035000.0 + i, 30 + i, 500, f"{text}: {text}", project=text, url=f"https://{text}/{text}")
        for i, text in enumerate(HOSTILE)
    )
    path.write_text("\n".join((",".join(COLUMNS), *hostile)) + "\n" + text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write the reports before the browser starts: its event loop runs in this thread, which must not block then."""
    folder = tmp_path_factory.mktemp("reports")
    hundred = [row(i, 1790000000 + i * 0.003, 0.05 + i * 0.01, 404 if i % 9 == 0 else 200, "E: x" if i % 9 == 0 else "")
               for i in range(100)]  # fmt: skip
    damaged = log_of(folder / "hundred.csv", *hundred, "no row at all")
    damaged.write_text(damaged.read_text() + "half a li")
    (folder / "hundred.csv.torn").write_text("half a row")
    foreign = folder / "foreign.csv"
    foreign.write_text("a,b\n1,2\n")
    logs = {
        "big": [big_log(folder / "big.csv")],
        "hundred": [damaged, foreign],
        "one": [log_of(folder / "one.csv", row(1, 1790000000))],
        "none": [log_of(folder / "none.csv")],
    }
    written = dict[str, Path]()
    for name, paths in logs.items():
        with load(*paths) as calls:
            trace = None if name == "one" else TRACE
            page = html_report(calls, summarize(calls, top=500), title=f"<b>{name}</b> & more", trace_url=trace)
        written[name] = folder / f"{name}.html"
        written[name].write_text(page, encoding="utf-8")
    with load(damaged) as before, load(damaged) as after:
        written["two runs"] = folder / "two.html"
        written["two runs"].write_text(comparison_report(compare(before, after)), encoding="utf-8")
    return written


@dataclass
class Contexts:
    """The browser contexts of a desktop and of a phone, which all tests of this module share."""

    desktop: BrowserContext
    phone: BrowserContext


@pytest.fixture(scope="module")
def contexts(reports: dict[str, Path]) -> Iterator[Contexts]:
    if shutil.which(CHROMIUM) is None:
        pytest.skip(f"needs {CHROMIUM}")
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        # Playwright inspects the stack in each call; without reading the source of each frame, this is much faster
        patch.setattr(inspect, "stack", partial(inspect.stack, 0))
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        phone = browser.new_context(viewport={"width": 390, "height": 900}, has_touch=True, is_mobile=True)
        yield Contexts(browser.new_context(viewport={"width": 1400, "height": 900}), phone)
        browser.close()


@dataclass
class ObservedPage:
    """A page with its requests, and with its console messages, errors and dialogs."""

    page: Page
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def canvases(self, *names: str) -> dict[str, dict[str, Any]]:
        """Return for each canvas a hash, its size, and its colours with their pixel counts, most frequent first."""
        found = self.page.evaluate(
            """names => Object.fromEntries(names.map(name => {
                const canvas = document.querySelector(`#chart-${name} canvas`);
                const copy = new OffscreenCanvas(canvas.width, canvas.height)
                    .getContext("2d", {willReadFrequently: true});
                copy.drawImage(canvas, 0, 0);
                const pixels = new Uint32Array(copy.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
                const colours = new Map();
                let hash = 0, run = 0, last = pixels[0];
                for (const each of pixels) {
                    hash = (hash * 31 + each) | 0;
                    if (each !== last) {
                        colours.set(last, (colours.get(last) ?? 0) + run);
                        [last, run] = [each, 0];
                    }
                    run++;
                }
                colours.set(last, (colours.get(last) ?? 0) + run);
                return [name, {hash, width: canvas.width, height: canvas.height,
                    counts: [...colours.entries()].sort((a, b) => b[1] - a[1]).slice(0, 40)}];
            }))""",
            list(names),
        )
        assert isinstance(found, dict)
        return found


def opened(context: BrowserContext, url: str, color_scheme: Literal["light", "dark"]) -> ObservedPage:
    observed = ObservedPage(context.new_page())
    page = observed.page
    page.emulate_media(color_scheme=color_scheme)
    page.on("request", lambda request: observed.requests.append(request.url))
    page.on("console", lambda message: observed.messages.append(message.text))
    page.on("pageerror", lambda error: observed.messages.append(str(error)))
    page.on("dialog", lambda dialog: observed.messages.append(dialog.message))
    page.goto(url)
    page.wait_for_selector(":root[data-drawn]", timeout=30_000, state="attached")
    return observed


@pytest.fixture(scope="module")
def report(contexts: Contexts, reports: dict[str, Path]) -> Any:
    """Return a function that opens a report once for all tests, in the colours that the system has then.

    The tests leave all but the order of rows as it was.
    """
    once = dict[tuple[str, bool], ObservedPage]()

    def of(name: str, color_scheme: Literal["light", "dark"] = "light", *, phone: bool = False) -> ObservedPage:
        if (name, phone) not in once:
            context = contexts.phone if phone else contexts.desktop
            once[name, phone] = opened(context, reports[name].as_uri(), color_scheme)
        page = once[name, phone].page
        page.bring_to_front()  # the browser draws the pages in the background only once a second
        if page.get_attribute(":root", "data-drawn") != color_scheme:
            page.emulate_media(color_scheme=color_scheme)
            page.wait_for_selector(f":root[data-drawn={color_scheme}]", timeout=30_000, state="attached")
        return once[name, phone]

    return of


# The default of Jenkins, and one that forbids the scripts only: then the content of <noscript> is not shown
POLICIES = ("sandbox; default-src 'none'; img-src 'self'; style-src 'self';", "script-src 'none'")


@pytest.fixture(scope="module")
def servers(reports: dict[str, Path]) -> Iterator[list[str]]:
    """Serve the report of a hundred calls as a CI server does, one for each policy; yield the URLs."""
    page = reports["hundred"].read_bytes()
    with FaultServer() as server:
        for number, policy in enumerate(POLICIES):
            headers = {"Content-Security-Policy": policy}
            server.script(f"/{number}", respond(200, page, headers, "text/html; charset=utf-8"))
        yield [server.url(f"/{number}") for number, _ in enumerate(POLICIES)]


FRAMES = """all => all.map(each => {
    const [title, chart] = [each.querySelector("h3"), each.querySelector(".chart")];
    return [title.checkVisibility(), chart.checkVisibility(), chart.innerText];
})"""


def test_each_frame_states_why_it_is_empty_if_a_server_forbids_the_scripts(
    servers: list[str], contexts: Contexts
) -> None:
    for url in servers:
        page = contexts.desktop.new_page()
        page.goto(url)
        frames = page.eval_on_selector_all("figure", FRAMES)
        assert len(frames) == len(CHARTS)
        for title_is_visible, chart_is_visible, text in frames:
            assert title_is_visible
            assert chart_is_visible
            assert "forbids scripts (Content-Security-Policy): download the file, and open it from disk" in text
        assert page.locator("canvas").count() == 0
        page.close()


def test_a_drawn_chart_replaces_the_reason(report: Any) -> None:
    page = report("hundred").page
    assert page.locator(".chart canvas").count() == len(CHARTS)
    assert "Content-Security-Policy" not in page.locator("main").inner_text()


def drawn_pixels(canvas_content: dict[str, Any]) -> int:
    """Return the number of pixels that do not have the most frequent colour, the background."""
    return int(canvas_content["width"] * canvas_content["height"] - canvas_content["counts"][0][1])


@pytest.mark.parametrize(
    ("name", "scheme"), [("big", "light"), ("hundred", "dark"), ("hundred", "light"), ("one", "dark")]
)
def test_every_chart_is_drawn_without_any_request(
    name: str, scheme: str, report: Any, reports: dict[str, Path]
) -> None:
    charts = CHARTS[1:-1] if name == "one" else CHARTS  # no call of this log failed
    observed = report(name, scheme)
    canvases = observed.canvases(*charts)
    for chart, canvas_content in canvases.items():
        assert canvas_content["width"] > 400, chart
        assert drawn_pixels(canvas_content) > 2_500, chart
        assert len(canvas_content["counts"]) > 10, chart
    assert observed.page.locator("canvas").count() == len(charts)
    assert observed.messages == []
    assert observed.requests == [reports[name].as_uri()]
    assert observed.page.evaluate("performance.getEntriesByType('resource').length") == 0


def test_a_report_is_smaller_than_3_mb_for_any_number_of_calls(reports: dict[str, Path]) -> None:
    assert {name: path.stat().st_size < 3_000_000 for name, path in reports.items()} == dict.fromkeys(reports, True)


def test_equal_calls_are_listed_in_the_same_order_for_any_order_of_the_rows(tmp_path: Path) -> None:
    # More than the tables of slow and of failed calls show, all of the same duration; each second with 40 failures
    made = [row(n, 1_790_000_000 + n % 20, error=f"E{n % 2}: x") for n in range(800)]

    def report() -> str:
        with load(log_of(tmp_path / "logs.csv", *made)) as calls:
            return html_report(calls, summarize(calls))

    pages = set[str]()
    with ThreadPoolExecutor(1) as thread:  # the browser's event loop runs in this thread, which must not block
        for _ in range(2):
            made = made[331:] + made[:331]
            pages.add(thread.submit(report).result())
    assert len(pages) == 1


def test_reports_state_that_there_are_no_calls_or_no_failures(report: Any) -> None:
    observed = report("none")
    assert observed.page.inner_text("#nothing") == "No calls\n\nThe files contain no calls that match."
    assert observed.messages == []
    observed = report("one", "dark")
    assert "No call failed." in observed.page.inner_text("#errors")
    assert observed.page.inner_text("header p") == "2026-09-21 14:13:20 UTC"
    assert observed.page.locator("a").count() == 0  # there are no links without a URL template


def test_damage_and_unread_files_are_reported(report: Any) -> None:
    observed = report("hundred")
    text = observed.page.inner_text(".files")
    assert re.search(r"1 file read, 1 damaged line, 1 file not read", text)
    assert "line 102: " in text
    assert "The last line has no line end and is not counted" in text
    assert "hundred.csv.torn: 1 unfinished line, not counted" in text
    assert "not read: not a log" in text


def test_hostile_texts_are_shown_as_text_and_not_executed(report: Any) -> None:
    observed = report("big")
    page = observed.page
    assert page.evaluate("window.pwned") is None
    assert page.locator("script").count() == 3
    assert page.locator("img, svg, iframe, object, embed").count() == 0
    assert page.inner_text("h1") == "<b>big</b> & more"
    slowest = page.inner_text("#slowest")
    for text in HOSTILE:
        assert text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029") in slowest
    hrefs = page.eval_on_selector_all("a", "links => links.map(link => link.href)")
    assert len(hrefs) > 100
    assert all(href.startswith("http://localhost:16686/trace/") for href in hrefs)
    # A second defence: the page's Content Security Policy blocks other scripts and all requests
    page.evaluate(
        """() => { const script = document.createElement("script"); script.textContent = "window.pwned = 9";
            document.body.append(script); }"""
    )
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"
    assert any("Content Security Policy" in text for text in observed.messages)
    page.evaluate("document.body.lastElementChild.remove()")
    observed.messages.clear()


def column(page: Page, section: str, number: int) -> list[str]:
    rows = page.locator(f"#{section} tbody tr:not([hidden]) td:nth-child({number})")
    return rows.all_inner_texts()


def sort_directions(page: Page, section: str) -> list[str | None]:
    found = page.eval_on_selector_all(f"#{section} th", "heads => heads.map(head => head.getAttribute('aria-sort'))")
    assert isinstance(found, list)
    return found


def test_the_table_of_hosts_can_be_sorted_and_searched(report: Any) -> None:
    page = report("big").page
    busiest = column(page, "hosts", 2)
    assert [int(calls.replace(",", "")) for calls in busiest] == sorted(
        (int(calls.replace(",", "")) for calls in busiest), reverse=True
    )
    page.click("#hosts th >> text=Calls")
    assert sort_directions(page, "hosts")[:3] == ["none", "descending", "none"]
    page.click("#hosts th >> text=Calls")
    assert sort_directions(page, "hosts")[:3] == ["none", "ascending", "none"]
    assert column(page, "hosts", 2) == busiest[::-1] or sorted(busiest) == sorted(column(page, "hosts", 2))
    page.click("#hosts th >> text=Max")
    seconds = [float(text.split()[0]) / (1000 if " ms" in text else 1) for text in column(page, "hosts", 8)]
    assert seconds == sorted(seconds, reverse=True)
    page.fill("#hosts input", "HOST1 8443")
    found = column(page, "hosts", 1)
    assert found
    assert all("host1" in name for name in found)
    assert page.inner_text("#hosts output").startswith(f"{len(found)} of ")
    page.fill("#hosts input", "no such host")
    assert column(page, "hosts", 1) == []
    page.fill("#hosts input", "")
    assert len(column(page, "hosts", 1)) == len(busiest)


def test_a_search_for_an_endpoint_finds_its_calls(report: Any) -> None:
    page = report("big").page
    endpoint = page.locator("#failed tr[data-endpoint*='{id}']").first.get_attribute("data-endpoint")
    page.fill("#failed input", endpoint)
    found = page.locator("#failed tbody tr:visible").evaluate_all("rows => rows.map(row => row.dataset.endpoint)")
    assert set(found) == {endpoint}
    page.fill("#failed input", "")


def test_the_tables_can_be_used_with_the_keyboard(report: Any) -> None:
    page = report("hundred").page
    page.focus("#failed input")
    page.keyboard.type("example.com/99")
    assert len(column(page, "failed", 5)) == 1
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    page.keyboard.press("Tab")  # to the scrollable box
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert sort_directions(page, "failed")[:3] == ["none", "descending", "none"]
    assert column(page, "failed", 2)[0] == "1.04 s"
    page.keyboard.press("Space")
    assert sort_directions(page, "failed")[:3] == ["none", "ascending", "none"]
    assert column(page, "failed", 2)[0] == "50.0 ms"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_links_lead_to_the_trace(report: Any) -> None:
    page = report("hundred").page
    link = page.locator("#slowest a").first
    assert page.locator("#slowest code").first.inner_text() == call_id(99)
    trace_id, span_id = call_id(99).split("-")
    assert link.get_attribute("href") == f"http://localhost:16686/trace/{trace_id}?uiFind={span_id}"
    assert link.get_attribute("rel") == "noopener noreferrer"


def test_charts_over_time_zoom_and_move_together(report: Any) -> None:
    observed = report("big")
    page = observed.page
    overview = page.inner_text("#overview")
    assert "Without calls: 4 h 38 min from 2026-09-21 17:04:59." in overview
    assert "without calls." not in overview  # seven shorter ones are usual in this log
    period = page.inner_text("#moves p")
    assert re.fullmatch(r"2026-09-21 14:10:00 to 2026-09-22 00:00:00 UTC", period)
    whole = observed.canvases(*CHARTS)
    page.focus("#moves button")
    page.keyboard.press("Enter")
    assert page.inner_text("#moves p") != period
    page.evaluate(TWO_FRAMES)
    closer = observed.canvases(*CHARTS)
    changed = {name for name in CHARTS if whole[name]["hash"] != closer[name]["hash"]}
    assert changed == set(OVER_TIME)
    zoomed = page.inner_text("#moves p")
    page.click("#moves >> text=Earlier")
    assert page.inner_text("#moves p") < zoomed
    page.click("#moves >> text=Later")
    assert page.inner_text("#moves p") == zoomed
    canvas = page.locator("#chart-rate canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 600, box["y"] + 90)
    page.mouse.down()
    page.mouse.move(box["x"] + 500, box["y"] + 90, steps=2)
    page.mouse.up()
    page.evaluate(TWO_FRAMES)
    assert page.inner_text("#moves p") > zoomed
    dragged = observed.canvases(*OVER_TIME)
    assert all(dragged[name]["hash"] != closer[name]["hash"] for name in OVER_TIME)
    page.click("#moves >> text=Whole period")
    page.mouse.move(2, 2)
    page.evaluate(TWO_FRAMES)
    assert page.inner_text("#moves p") == period
    assert {name: each["hash"] for name, each in observed.canvases(*OVER_TIME).items()} == {
        name: whole[name]["hash"] for name in OVER_TIME
    }
    page.click("#moves >> text=Zoom in")
    page.click("#moves >> text=Zoom in")
    page.click("#moves >> text=Zoom out")
    page.click("#moves >> text=Zoom out")
    assert page.inner_text("#moves p") == period
    assert observed.messages == []


def test_a_tooltip_shows_the_values_under_the_pointer(report: Any) -> None:
    page = report("big").page
    for chart, words in (
        ("latency", ("from", "UTC", "p99", "failed", "calls/s")),
        ("rate", ("calls/s", "p50")),
        ("heatmap", ("latency", " to ", "calls")),
        ("statuses", ("status", "200")),
        ("distribution", ("project", "latency")),
        ("errors", ("class", "of all calls")),
    ):
        canvas = page.locator(f"#chart-{chart} canvas")
        canvas.scroll_into_view_if_needed()
        page.evaluate(TWO_FRAMES)  # a scroll event hides the tooltip
        box = canvas.bounding_box()
        across, down = {"errors": (0.4, 0.1), "distribution": (0.5, 0.75), "statuses": (0.2, 0.85)}.get(
            chart, (0.2, 0.75)
        )
        page.mouse.move(box["x"] + box["width"] * across, box["y"] + box["height"] * down)
        text = page.locator("#tip").text_content()
        assert page.locator("#tip").is_visible(), chart
        assert all(word in text for word in words), (chart, text)
        page.mouse.move(1, 1)
        assert page.locator("#tip").is_hidden()


def test_the_page_does_not_scroll_horizontally_on_a_phone(report: Any) -> None:
    for name in ("big", "hundred"):
        observed = report(name, phone=True)
        assert observed.page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
        boxes = [canvas.bounding_box() for canvas in observed.page.locator("canvas").all()]
        assert len(boxes) == len(CHARTS)
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
        assert all(drawn_pixels(canvas_content) > 2_000 for canvas_content in observed.canvases(*CHARTS).values())
        boxes = observed.page.locator(".box")
        assert not any(boxes.evaluate_all("boxes => boxes.map(box => box.scrollWidth > box.clientWidth)"))
        cell = observed.page.locator("#failed td").nth(2)
        assert cell.evaluate("cell => getComputedStyle(cell, '::before').content") == '"Outcome"'
        hidden = "cells => cells.filter(cell => !cell.offsetParent).length"
        assert observed.page.locator("#failed tbody tr").first.locator("td").evaluate_all(hidden) == 0
        assert observed.messages == []


def test_all_figures_of_a_comparison_are_in_the_flow_of_the_page_on_a_phone(report: Any) -> None:
    observed = report("two runs", phone=True)
    assert observed.page.locator("tbody tr").count() >= 8
    assert observed.page.evaluate("document.documentElement.scrollWidth") == 390
    boxes = observed.page.locator(".box")
    assert boxes.evaluate_all("boxes => boxes.map(box => box.scrollHeight - box.clientHeight)") == [0]
    assert observed.messages == []


def test_every_column_is_visible_on_a_desktop_and_names_of_classes_and_hosts_are_whole(report: Any) -> None:
    for name in ("big", "hundred"):
        page = report(name).page
        boxes = page.locator(".box")
        assert not any(boxes.evaluate_all("boxes => boxes.map(box => box.scrollWidth > box.clientWidth)"))
        for label in ("Class", "Outcome", "Host"):
            cells = page.locator(f'td[data-label="{label}"] bdi').evaluate_all(
                "all => all.map(each => [each.innerText, each.getBoundingClientRect().height])"
            )
            assert [text for text, height in cells if len(text) <= 22 and height > 30] == []  # more than one line


def test_a_click_on_a_bar_filters_the_tables_of_calls(report: Any) -> None:
    page = report("hundred").page
    assert page.inner_text("#slowest output") == "50 of 50"
    canvas = page.locator("#chart-errors canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.4)
    assert page.inner_text("#slowest .search button") == "Class: E \u2715"
    near = page.locator("#chart-errors + .chosen")
    assert page.locator("#tip").is_hidden()
    assert near.inner_text() == "Class: E: 12 of 12 failed calls, 6 of 50 slowest calls Show all calls"
    assert near.locator("a").evaluate_all("all => all.map(each => each.hash)") == ["#failed", "#slowest"]
    failed = [cell for cell in column(page, "slowest", 3) if cell]
    assert set(failed) == {"E"}
    assert page.inner_text("#slowest output") == f"{len(failed)} of 50"
    near.locator("button").click()
    assert page.inner_text("#slowest output") == "50 of 50"
    assert page.inner_text(".chosen") == ""
    canvas = page.locator("#chart-rate canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.6)
    assert page.inner_text("#slowest .search button").startswith("Started from 2026-09-21 14:13:20.")
    assert 0 < len(column(page, "slowest", 1)) < 50
    assert re.match(r"Started from 2026-09-21 14:13:20\.\d+ to .+: \d of 12 failed calls, \d+ of 50 slowest calls",
                    page.inner_text("#chart-rate + .chosen"))  # fmt: skip
    page.set_viewport_size({"width": 390, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("#slowest .search button").evaluate("button => button.getBoundingClientRect().right") <= 390
    page.fill("#failed input", "no such call")
    assert "None of the failed calls listed here matches." in page.inner_text("#failed")
    assert page.locator("#failed .box").is_hidden()
    page.fill("#failed input", "")
    assert "None of" not in page.inner_text("#failed")
    page.locator("#chart-rate + .chosen button").click()
    page.set_viewport_size({"width": 1400, "height": 900})


def test_a_table_of_few_rows_has_no_search(report: Any) -> None:
    page = report("hundred").page
    assert page.locator("#slowest input").is_visible()
    assert page.locator("#hosts input").is_hidden()


def test_a_url_is_shown_by_its_path_cut_in_the_middle_with_the_whole_as_a_tooltip(report: Any) -> None:
    page = report("big").page
    cells = page.locator("#slowest td:nth-child(5)")
    texts, whole = cells.all_inner_texts(), cells.evaluate_all("cells => cells.map(cell => cell.title)")
    long = [(text, url) for text, url in zip(texts, whole, strict=True) if len(url) > 200 and "host" in url]
    assert long
    assert all(text.startswith("/") and len(text) <= 70 and "\u2026" in text for text, _ in long)
    assert all(url.startswith("https://host") and url.endswith(text.partition("\u2026")[2]) for text, url in long)


def test_the_print_layout_hides_the_controls_and_fits_the_sheet(report: Any) -> None:
    page = report("hundred", "dark").page
    page.emulate_media(media="print")
    assert page.locator("#moves").is_hidden()
    assert page.locator("#scheme").is_hidden()
    assert page.locator("#failed .search").is_hidden()
    assert page.locator("#failed .box").evaluate("box => box.scrollHeight <= box.clientHeight + 1")
    page.set_viewport_size({"width": 700, "height": 900})  # the size of a sheet; the charts are not drawn again for it
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 36, 48)"
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 1400, "height": 900})


CONTRASTS = """() => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = colour => numbers(colour).slice(0, 3).map(c => c / 255)
        .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = element => {
        const colour = getComputedStyle(element).backgroundColor;
        return (numbers(colour)[3] ?? 1) === 0 ? behind(element.parentElement) : colour;
    };
    const found = new Map();
    for (const element of document.body.querySelectorAll("*")) {
        const texts = [...element.childNodes].filter(each => each.nodeType === 3 && each.data.trim());
        if (texts.length && !["SCRIPT", "NOSCRIPT"].includes(element.tagName)) {
            const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
            found.set(element.tagName + "." + element.className, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
        }
    }
    return Object.fromEntries(found);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrasts_landmarks_and_labels_are_accessible(scheme: str, report: Any) -> None:
    page = report("hundred", scheme).page
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 15
    assert {name: ratio for name, ratio in contrasts.items() if ratio < 4.5} == {}
    assert [page.locator(tag).count() for tag in ("header", "main", "footer", "h1")] == [1, 1, 1, 1]
    assert page.eval_on_selector_all(
        "main > section", "all => all.every(each => each.ariaLabelledByElements?.length !== 0)"
    )
    labels = page.eval_on_selector_all("figure [role=graphics-document]", "all => all.map(each => each.ariaLabel)")
    assert len(labels) == len(CHARTS)
    assert all(label and len(label) > 20 for label in labels)
    assert page.locator("table:not(:has(caption))").count() == 0
    assert page.locator("th:not([scope=col])").count() == 0


def test_the_colour_scheme_follows_the_system_until_the_reader_chooses_one(report: Any) -> None:
    """This is the last test with this page: the choice cannot be undone."""
    observed = report("hundred", "light")
    page = observed.page
    white, dark = 0xFFFFFFFF, 0xFF241C17  # in the order of the canvas: alpha, blue, green, red

    def background() -> set[int]:
        return {
            canvas_content["counts"][0][0]
            for canvas_content in observed.canvases("latency", "rate", "statuses", "errors").values()
        }

    assert background() <= {white, 0xFFC2904A}  # successful calls may cover more pixels than the background
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector(":root[data-drawn=dark]", state="attached")
    assert dark in background()
    assert white not in background()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 24)"
    page.click("#scheme")
    page.wait_for_selector(":root[data-drawn=light]", state="attached")
    assert white in background()
    page.emulate_media(color_scheme="light")
    page.click("#scheme")  # the choice of the reader overrides the system's
    page.wait_for_selector(":root[data-drawn=dark]", state="attached")
    assert page.inner_text("#scheme") == "Light colours"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 24)"
    assert observed.messages == []
