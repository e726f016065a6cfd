"""Tests that the pages in `docs` become a site: built without network, without a warning, and without a dead link."""

from __future__ import annotations

import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
from support import processes
from support.documents import DOCS, PAGES, README
from support.processes import ROOT

import otel_connector
from otel_connector import review, testing

pytestmark = pytest.mark.neighbours("zensical", "mkdocstrings_handlers")

LOADS = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src")}
"""Tags whose address the browser requests by itself."""


class Page(NamedTuple):
    """A page of the site: the ids in it, its links, and what it loads."""

    ids: set[str]
    links: set[str]
    loaded: set[str]


class Reader(HTMLParser):
    """Collects the parts of a `Page`."""

    def __init__(self) -> None:
        super().__init__()
        self.page = Page(set(), set(), set())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"id", "name"} and value:
                self.page.ids.add(value)
            if name in {"href", "src"} and value:
                self.page.links.add(value)
                if (tag, name) in LOADS:
                    self.page.loaded.add(value)


def without_network() -> list[str]:
    """Return the start of a command that runs a program without network; empty where that is not possible."""
    start = ["unshare", "--map-root-user", "--net"]
    possible = shutil.which("unshare") and processes.run([*start, "true"], capture_output=True).returncode == 0
    return start if possible else []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as CONTRIBUTING says, in a copy, because the build writes beside its configuration."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("site", ".cache"))
    (folder / "otel_connector").symlink_to(ROOT / "otel_connector")
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^zensical (build .*)$", contributing, re.MULTILINE)
    built = processes.run(
        [*without_network(), sys.executable, "-m", "zensical", *command.split()],
        cwd=folder,
        env=processes.clean_environment({"NO_COLOR": "1"}),
        capture_output=True,
        text=True,
    )
    output = built.stdout + built.stderr
    assert built.returncode == 0, output
    assert "No issues found" in output
    assert not re.search("warning|error", output, re.IGNORECASE), output
    return folder / "docs" / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    found: dict[Path, Page] = {}
    for path in site.rglob("*.html"):
        reader = Reader()
        reader.feed(path.read_text(encoding="utf-8"))
        found[path] = reader.page
    return found


def test_every_document_is_a_page_and_is_in_the_navigation(site: Path, pages: dict[Path, Page]) -> None:
    documents = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in PAGES if path != README}
    assert {path.relative_to(site).as_posix() for path in pages} == documents | {"404.html"}
    assert not (site / "zensical.toml").exists()
    linked = {urlsplit(link).path.removeprefix("./") for link in pages[site / "index.html"].links}
    assert linked >= documents


def dead(link: str, page: Path, pages: dict[Path, Page]) -> bool:
    """Whether a relative link of a page has no target."""
    address = urlsplit(link)
    target = page if not address.path else (page.parent / unquote(address.path)).resolve()
    if not target.is_file():
        return True
    return bool(address.fragment) and target in pages and unquote(address.fragment) not in pages[target].ids


def test_no_link_and_no_anchor_is_dead(site: Path, pages: dict[Path, Page]) -> None:
    found = [
        f"{path.name}: {link}"
        for path, page in pages.items()
        if path.name != "404.html"  # its links start at the root of a server
        for link in page.links
        if not urlsplit(link).scheme and not link.startswith("javascript:") and dead(link, path, pages)
    ]
    assert not found


def test_a_browser_loads_nothing_from_another_server(pages: dict[Path, Page]) -> None:
    assert not [link for page in pages.values() for link in page.loaded if urlsplit(link).scheme or link[:2] == "//"]


def test_links_of_the_readme_have_targets(site: Path, pages: dict[Path, Page]) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", README.read_text(encoding="utf-8"))
    assert targets
    for target in targets:
        address = urlsplit(target)
        path = ROOT / address.path
        assert path.is_file(), target
        if address.fragment:
            page = site / path.relative_to(DOCS).with_suffix(".html")
            assert address.fragment in pages[page].ids, target


def test_a_long_signature_has_a_line_for_each_parameter(site: Path) -> None:
    page = re.sub(r"<[^>]+>", "", (site / "reference" / "python.html").read_text(encoding="utf-8"))
    assert "AsyncConnector(\n    logfile: " in page


@pytest.mark.parametrize(
    ("module", "page"),
    [(otel_connector, "python"), (review, "review"), (testing, "testing")],
    ids=["calls", "review", "testing"],
)
def test_the_reference_has_every_public_name(
    module: ModuleType, page: str, site: Path, pages: dict[Path, Page]
) -> None:
    names = set(module.__all__) - {"__version__"}
    assert {f"{module.__name__}.{name}" for name in names} <= pages[site / "reference" / f"{page}.html"].ids


ARTICLE = re.compile(r"<article class=\"md-content__inner md-typeset\">(.*?)</article>", re.DOTALL)
TABLES_AND_WRONG = """() => {
    const tables = [...document.querySelectorAll('article table')], cells = [...document.querySelectorAll('article td')]
    const wrong = [
        ...tables.filter(each => each.scrollWidth > innerWidth),
        ...cells.filter(each => getComputedStyle(each).textAlign != 'left'),
    ]
    return [tables.length, wrong.map(each => `${each.closest('section').id}: ${each.textContent.slice(0, 80)}`)]
}"""


@pytest.mark.browser
def test_on_a_phone_no_table_is_wider_than_the_page_and_each_cell_starts_at_the_left(
    site: Path, pages: dict[Path, Page]
) -> None:
    sync_api, chromium = pytest.importorskip("playwright.sync_api"), shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    # All articles in one page: their styles and scripts are the same, and a page takes a quarter of a second to load
    articles = {path: ARTICLE.findall(path.read_text(encoding="utf-8")) for path in pages}
    assert all(len(found) == 1 for found in articles.values())
    together = "".join(
        f"<section id='{path.relative_to(site).as_posix()}'>{article}</section>"
        for path, (article,) in articles.items()
    )
    index = (site / "index.html").read_text(encoding="utf-8")
    everything = site / "everything.html"
    everything.write_text(index.replace(articles[site / "index.html"][0], together), encoding="utf-8")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto(everything.as_uri())
        tables, wrong = page.evaluate(TABLES_AND_WRONG)
        browser.close()
    everything.unlink()
    assert tables == together.count("<table")
    assert not wrong
