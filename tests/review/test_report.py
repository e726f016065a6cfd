"""The report as a reader has it: opened from disk in a real browser, which draws, sorts, searches, and asks nobody."""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import duckdb
import pytest
from playwright.sync_api import BrowserContext, Page, sync_playwright

from otel_connector._record import COLUMNS
from otel_connector.review import html_report, load, summarize

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
ROWS = 200_000
OVER_TIME = ("latency", "rate", "heatmap", "statuses")
CHARTS = (*OVER_TIME, "distribution", "errors")
TWO_FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
TRACE = "http://localhost:16686/trace/{trace_id}?uiFind={span_id}"
# What a server, or who writes a log by hand, might put where a page shows it
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
    """Hours with pauses and a burst, hundreds of hosts, projects and classes of errors, and hostile texts."""
    duckdb.sql(
        f"""COPY (
        SELECT printf('%032x-%016x', i, i + 7) call_id, 'project ' || i % 300 project,
            printf('%.6f', 1790000000 + CASE WHEN i < 90000 THEN i * 0.1 WHEN i < 130000 THEN 9000 + i * 0.01
                ELSE 14000 + i * 0.06 + i // 10000 * 400 END) t,
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
    """The pages, written before a browser runs: while it does, its loop is this thread's, where nothing may block."""
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
    return written


@dataclass
class Contexts:
    """The browser's contexts: of a desk and of a phone, each for all tests of this module."""

    desk: BrowserContext
    phone: BrowserContext


@pytest.fixture(scope="module")
def contexts(reports: dict[str, Path]) -> Iterator[Contexts]:
    if shutil.which(CHROMIUM) is None:
        pytest.skip(f"needs {CHROMIUM}")
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        # Playwright looks at the stack at each of its calls; to read the source of each frame, too, is most of the time
        patch.setattr(inspect, "stack", partial(inspect.stack, 0))
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        phone = browser.new_context(viewport={"width": 390, "height": 900}, has_touch=True, is_mobile=True)
        yield Contexts(browser.new_context(viewport={"width": 1400, "height": 900}), phone)
        browser.close()


@dataclass
class Seen:
    """A page, and what it did beside being looked at."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def pictures(self, *names: str) -> dict[str, dict[str, Any]]:
        """What is on each canvas: its colours and how many pixels have them, in the order of how many."""
        found = self.page.evaluate(
            """names => Object.fromEntries(names.map(name => {
                const canvas = document.querySelector(`#chart-${name} canvas`);
                const copy = new OffscreenCanvas(canvas.width, canvas.height)
                    .getContext("2d", {willReadFrequently: true});
                copy.drawImage(canvas, 0, 0);
                const pixels = new Uint32Array(copy.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
                const colours = new Map();
                let hash = 0;
                for (const each of pixels) {
                    colours.set(each, (colours.get(each) ?? 0) + 1);
                    hash = (hash * 31 + each) | 0;
                }
                return [name, {hash, width: canvas.width, height: canvas.height,
                    counts: [...colours.entries()].sort((a, b) => b[1] - a[1]).slice(0, 40)}];
            }))""",
            list(names),
        )
        assert isinstance(found, dict)
        return found


@pytest.fixture
def opened(contexts: Contexts, reports: dict[str, Path]) -> Iterator[Any]:
    pages = list[Page]()

    def open_page(name: str, color_scheme: Literal["light", "dark"] = "light", *, phone: bool = False) -> Seen:
        page = (contexts.phone if phone else contexts.desk).new_page()
        page.emulate_media(color_scheme=color_scheme)
        pages.append(page)
        seen = Seen(page)
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.on("console", lambda message: seen.complaints.append(message.text))
        seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        seen.page.on("dialog", lambda dialog: seen.complaints.append(dialog.message))
        seen.page.goto(reports[name].as_uri())
        seen.page.wait_for_selector(":root[data-drawn]", timeout=30_000, state="attached")
        return seen

    yield open_page
    for page in pages:
        page.close()


def drawn_pixels(picture: dict[str, Any]) -> int:
    """How many pixels are not the background."""
    return int(picture["width"] * picture["height"] - picture["counts"][0][1])


@pytest.mark.parametrize(("name", "scheme"), [("big", "light"), ("big", "dark"), ("hundred", "light"), ("one", "dark")])
def test_every_picture_is_drawn_and_nobody_is_asked(
    name: str, scheme: str, opened: Any, reports: dict[str, Path]
) -> None:
    charts = CHARTS[:-1] if name == "one" else CHARTS
    seen = opened(name, color_scheme=scheme)
    pictures = seen.pictures(*charts)
    for chart, picture in pictures.items():
        assert picture["width"] > 400, chart
        assert drawn_pixels(picture) > 2_500, chart
        assert len(picture["counts"]) > 10, chart
    assert seen.page.locator("canvas").count() == len(charts)
    assert seen.complaints == []
    assert seen.requests == [reports[name].as_uri()]
    assert seen.page.evaluate("performance.getEntriesByType('resource').length") == 0


def test_a_page_is_small_however_many_calls_there_are(reports: dict[str, Path]) -> None:
    assert {name: path.stat().st_size < 3_000_000 for name, path in reports.items()} == dict.fromkeys(reports, True)


def test_a_log_without_calls_and_one_without_failures(opened: Any) -> None:
    seen = opened("none")
    assert seen.page.inner_text("#nothing") == "No calls\n\nThere is no call in what was read."
    assert seen.complaints == []
    seen = opened("one")
    assert "No call failed." in seen.page.inner_text("#what")
    assert seen.page.inner_text("header p") == "2026-09-21 14:13:20 UTC"
    assert seen.page.locator("a").count() == 0  # no template, no links


def test_what_is_not_in_the_figures_is_said(opened: Any) -> None:
    seen = opened("hundred")
    told = seen.page.inner_text(".files")
    assert re.search(r"1 file read, 1 damaged line, 1 file not read", told)
    assert "line 102: " in told
    assert "Its last line has no end and is not counted" in told
    assert "keeps 1 unfinished line, not counted" in told
    assert "not read: it is no log of this library" in told


def test_hostile_texts_stay_texts(opened: Any) -> None:
    seen = opened("big")
    page = seen.page
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
    # what got past all this could do nothing: the page's policy lets no other script run, and nothing be fetched
    page.evaluate(
        """() => { const script = document.createElement("script"); script.textContent = "window.pwned = 9";
            document.body.append(script); }"""
    )
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"
    assert any("Content Security Policy" in text for text in seen.complaints)


def column(page: Page, section: str, number: int) -> list[str]:
    rows = page.locator(f"#{section} tbody tr:not([hidden]) td:nth-child({number})")
    return rows.all_inner_texts()


def heads(page: Page, section: str) -> list[str | None]:
    found = page.eval_on_selector_all(f"#{section} th", "heads => heads.map(head => head.getAttribute('aria-sort'))")
    assert isinstance(found, list)
    return found


def test_the_hosts_are_sorted_and_searched(opened: Any) -> None:
    page = opened("big").page
    busiest = column(page, "hosts", 2)
    assert [int(calls.replace(",", "")) for calls in busiest] == sorted(
        (int(calls.replace(",", "")) for calls in busiest), reverse=True
    )
    page.click("#hosts th >> text=Calls")
    assert heads(page, "hosts")[:3] == ["none", "descending", "none"]
    page.click("#hosts th >> text=Calls")
    assert heads(page, "hosts")[:3] == ["none", "ascending", "none"]
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


def test_the_tables_need_no_mouse(opened: Any) -> None:
    page = opened("hundred").page
    page.focus("#failed input")
    page.keyboard.type("example.com/99")
    assert len(column(page, "failed", 5)) == 1
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    page.keyboard.press("Tab")  # the box, which scrolls
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert heads(page, "failed")[:3] == ["none", "descending", "none"]
    assert column(page, "failed", 2)[0] == "1.04 s"
    page.keyboard.press("Space")
    assert heads(page, "failed")[:3] == ["none", "ascending", "none"]
    assert column(page, "failed", 2)[0] == "50.0 ms"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_links_lead_to_the_trace(opened: Any) -> None:
    page = opened("hundred").page
    link = page.locator("#slowest a").first
    assert link.inner_text() == call_id(99)
    trace_id, span_id = call_id(99).split("-")
    assert link.get_attribute("href") == f"http://localhost:16686/trace/{trace_id}?uiFind={span_id}"
    assert link.get_attribute("rel") == "noopener noreferrer"


def test_pictures_over_time_show_the_same_period(opened: Any) -> None:
    seen = opened("big")
    page = seen.page
    assert "Quiet at 6 more times." in page.inner_text("#overview")
    told = page.inner_text("#moves p")
    assert re.fullmatch(r"2026-09-21 14:10:00 to 2026-09-22 00:00:00 UTC", told)
    whole = seen.pictures(*CHARTS)
    page.focus("#moves button")
    page.keyboard.press("Enter")
    assert page.inner_text("#moves p") != told
    page.evaluate(TWO_FRAMES)
    closer = seen.pictures(*CHARTS)
    changed = {name for name in CHARTS if whole[name]["hash"] != closer[name]["hash"]}
    assert changed == set(OVER_TIME)
    zoomed = page.inner_text("#moves p")
    page.click("text=Earlier")
    assert page.inner_text("#moves p") < zoomed
    page.click("text=Later")
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
    dragged = seen.pictures(*OVER_TIME)
    assert all(dragged[name]["hash"] != closer[name]["hash"] for name in OVER_TIME)
    page.click("text=Whole period")
    page.mouse.move(2, 2)
    page.evaluate(TWO_FRAMES)
    assert page.inner_text("#moves p") == told
    assert {name: each["hash"] for name, each in seen.pictures(*OVER_TIME).items()} == {
        name: whole[name]["hash"] for name in OVER_TIME
    }
    page.click("text=Zoom in")
    page.click("text=Zoom in")
    page.click("text=Zoom out")
    page.click("text=Zoom out")
    assert page.inner_text("#moves p") == told
    assert seen.complaints == []


def test_a_picture_tells_what_is_under_the_pointer(opened: Any) -> None:
    page = opened("big").page
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
        box = canvas.bounding_box()
        across, down = {"errors": (0.4, 0.1), "distribution": (0.5, 0.75), "statuses": (0.2, 0.85)}.get(
            chart, (0.2, 0.75)
        )
        page.mouse.move(box["x"] + box["width"] * across, box["y"] + box["height"] * down)
        told = page.locator("#tip").text_content()
        assert page.locator("#tip").is_visible(), chart
        assert all(word in told for word in words), (chart, told)
        page.mouse.move(1, 1)
        assert page.locator("#tip").is_hidden()


def test_light_and_dark_are_followed(opened: Any) -> None:
    seen = opened("hundred", color_scheme="light")
    page = seen.page
    white, dark = 0xFFFFFFFF, 0xFF241C17  # as the canvas has them: alpha, blue, green, red

    def background() -> set[int]:
        return {picture["counts"][0][0] for picture in seen.pictures("latency", "rate", "statuses", "errors").values()}

    page.wait_for_selector(":root[data-drawn=light]", state="attached")
    assert background() <= {white, 0xFFC2904A}  # the succeeded may be more than the background
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector(":root[data-drawn=dark]", state="attached")
    assert dark in background()
    assert white not in background()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 24)"
    page.click("#scheme")
    page.wait_for_selector(":root[data-drawn=light]", state="attached")
    assert white in background()
    page.emulate_media(color_scheme="light")
    page.click("#scheme")  # what the reader chooses holds against the system
    page.wait_for_selector(":root[data-drawn=dark]", state="attached")
    assert page.inner_text("#scheme") == "Light colours"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 24)"
    assert seen.complaints == []


def test_a_phone_has_no_page_to_move_sideways(opened: Any) -> None:
    for name in ("big", "hundred"):
        seen = opened(name, phone=True)
        assert seen.page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
        boxes = [canvas.bounding_box() for canvas in seen.page.locator("canvas").all()]
        assert len(boxes) == len(CHARTS)
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
        assert all(drawn_pixels(picture) > 2_000 for picture in seen.pictures(*CHARTS).values())
        table = seen.page.locator("#failed .box")
        assert table.evaluate("box => box.scrollWidth > box.clientWidth")
        assert seen.complaints == []


def test_on_paper(opened: Any) -> None:
    page = opened("hundred", color_scheme="dark").page
    page.emulate_media(media="print")
    assert page.locator("#moves").is_hidden()
    assert page.locator("#scheme").is_hidden()
    assert page.locator("#failed .search").is_hidden()
    assert page.locator("#failed .box").evaluate("box => box.scrollHeight <= box.clientHeight + 1")
    page.set_viewport_size({"width": 700, "height": 900})  # of a sheet, for which nothing is drawn again
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 36, 48)"


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
def test_who_sees_less_reads_as_much(scheme: str, opened: Any) -> None:
    page = opened("hundred", color_scheme=scheme).page
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
