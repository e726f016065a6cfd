"""The README and the pages in `docs`, and the code blocks in them."""

from __future__ import annotations

import re
from typing import NamedTuple

from support.processes import ROOT

DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [
    README,
    *sorted(path for path in DOCS.rglob("*.md") if not {"site", ".cache"}.intersection(path.relative_to(DOCS).parts)),
]

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A code block.

    Attributes:
        name: The page and the line of the block, such as ``guides/log.md:38``.
        language: What follows its fence.
        text: Its lines.
        output: The block of the language ``text`` that follows it, if only white space is between them.
    """

    name: str
    language: str
    text: str
    output: str | None


def blocks() -> list[Block]:
    """Return all code blocks, in the order of the pages."""
    found = list[Block]()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        name = page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT)
        for match in _BLOCK.finditer(text):
            after = _BLOCK.match(text, match.end() + len(text[match.end() :]) - len(text[match.end() :].lstrip()))
            output = after[2] if after and after[1] == "text" else None
            found.append(Block(f"{name}:{text.count(chr(10), 0, match.start()) + 1}", match[1], match[2], output))
    return found


def block_starting(language: str, start: str) -> str:
    """Return the text of the only block of a language that starts so."""
    (found,) = (block.text for block in blocks() if block.language == language and block.text.startswith(start))
    return found
