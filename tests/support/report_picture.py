"""Makes the picture of a report in the documents: run ``python -m support.report_picture`` in ``tests``.

The log is made, not measured: a night of calls to twelve hosts with a gap, a burst with failures, and a slow host.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import sync_playwright

from otel_connector import CallRecord
from otel_connector.review import html_report, load, summarize
from support.logs import write
from support.processes import ROOT

CHROMIUM = "/usr/bin/chromium"
START = 1_795_039_200  # 2026-11-18 22:00:00 UTC
NIGHT = 8 * 3_600 + 7 * 60  # seconds
GAP = range(3 * 3_600 + 10 * 60, 3 * 3_600 + 33 * 60)
BURST = range(5 * 3_600, 5 * 3_600 + 10 * 60)
SLOW = range(6 * 3_600, 6 * 3_600 + 35 * 60)
PROJECTS = ("Prices", "Weather", "News", "Reviews", "Stock")
HOSTS = tuple(
    f"{name}.example.com" for name in ("api", "shop", "data", "cdn", "eu", "us", "a", "b", "c", "d", "e", "f")
)


def calls() -> Iterator[CallRecord]:
    """Yield the calls of the night."""
    chance, number = random.Random(8), 0
    for second in range(NIGHT):
        if second in GAP:
            continue
        rate = 42.0 if second in BURST else 5.5 + 2 * math.sin(second / 1_900) + math.sin(second / 700)
        for _ in range(int(rate + chance.random())):
            number += 1
            yield one_call(number, second + chance.random(), chance)


def one_call(number: int, second: float, chance: random.Random) -> CallRecord:
    """Return one call; `second` is its start."""
    which = min(int(chance.expovariate(0.35)), len(HOSTS) - 1)
    code: int | None = 200
    seconds, error = chance.lognormvariate(-2.25, 0.9), ""
    if int(second) in SLOW and which == 1:
        seconds *= 25
    if int(second) in range(GAP.stop, GAP.stop + 600):
        seconds *= 4
    if chance.random() < (0.08 if int(second) in BURST else 0.015):
        error, code = chance.choice(
            (("HTTPStatusError: 503 Service Unavailable", 503), ("HTTPStatusError: 404 Not Found", 404))
        )
    elif seconds > 30:
        seconds, error, code = 30.0, "AttemptTimeout: no response within 30 s", None
    return CallRecord(
        call_id=f"{number:032x}-{number:016x}",
        project=PROJECTS[which % len(PROJECTS)],
        t=START + second,
        delta_t=round(seconds, 6),
        url=f"https://{HOSTS[which]}/items/{number}",
        redirect_url="",
        response_size=0 if error else int(chance.lognormvariate(9, 1)),
        response_code=code,
        success=not error,
        error=error,
    )


def main() -> None:
    """Make the picture."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        with load(write(Path(folder, "logs.csv"), calls())) as loaded:
            page_file = Path(folder, "report.html")
            page_file.write_text(html_report(loaded, summarize(loaded), title="Overnight collection"), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 1688}, device_scale_factor=1.25)
        page.goto(page_file.as_uri())
        page.wait_for_selector("#chart-heatmap canvas")
        page.screenshot(path=ROOT / "docs" / "assets" / "report.png")
        browser.close()


if __name__ == "__main__":
    main()
