"""Tests that every test that the security page names exists, and that the page is complete."""

from __future__ import annotations

import re

import pytest
from support.processes import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[^`]+)`", PAGE)))
ATTACKERS = ("A hostile server", "A hostile list or log", "Another local user", "A hostile collector")


@pytest.mark.parametrize("named", NAMED)
def test_a_named_test_exists(named: str) -> None:
    file, _, name = named.partition("::")
    assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("attacker", ATTACKERS)
def test_the_page_has_a_section_with_sentences_for_each_attacker(attacker: str) -> None:
    section = PAGE.partition(f"\n## {attacker}\n")[2].partition("\n## ")[0]
    assert len(re.findall(r"^\| .* \| `tests/", section, re.MULTILINE)) >= 2


def test_each_sentence_has_a_test() -> None:
    assert not re.findall(r"^\|.*\| \|$", PAGE, re.MULTILINE)


def test_the_page_says_how_to_report_a_fault_and_the_readme_links_to_it() -> None:
    assert "## Reporting a fault" in PAGE
    assert "(docs/security.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
