"""Checks that the package, its tests, its examples and its documents are written in plain technical English.

`PHRASES` and `IDENTIFIERS` list what must not be written any more, with what to write instead. The list is a safeguard:
it finds exact phrases only, so that a change is still read for its language.
"""

from __future__ import annotations

import io
import keyword
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import ROOT

# Matched as whole words, in any case, also across the end of a line
PHRASES = {
    "passed over": "skipped",
    "pass over": "skip",
    "passes over": "skips",
    "passing over": "skipping",
    "under way": "in flight, in progress",
    "of late": "recently",
    "in vain": "without effect",
    "anew": "again, start over",
    "held back": "paused",
    "holds back": "pauses",
    "hold back": "pause",
    "is told": "is reported, is called",
    "are told": "are reported, are called",
    "was told": "was reported, was called",
    "is said": "is reported, is logged",
    "are said": "are reported, are logged",
    "is asked for": "is requested",
    "are asked for": "are requested",
    "was asked for": "was requested",
    "whoever": "name the caller, the process, the writer",
    "nobody": "name the caller, the process, the writer",
    "somebody": "name the caller, the process, the writer",
    "mend": "repair, fix",
    "mends": "repairs, fixes",
    "mended": "repaired, fixed",
    "go by": "use",
    "goes by": "uses",
    "in hand": "pending",
    "lay down": "store",
    "laid down": "stored",
    "look after": "flush, maintain",
    "looks after": "flushes, maintains",
    "--afresh": "--ignore-checkpoint",
    "have nothing learned": "no docstring",
    "know of none": "no docstring",
    "hold nothing": "no docstring",
    "said to be none": "is reported",
    "is its affair": "nothing restricts it",
    "also if": "even if",
    "whatever": "regardless of, for any",
    "for ever": "forever, without end",
    "in one go": "in one step",
    "is no id": "is not an id",
    "is no log": "is not a log",
    "is no url": "is not a URL",
    "parts of two rows, maybe": "the line may contain parts of two rows",
    "it comes and goes": "it is renamed or removed again and again",
    "took a part of": "wrote only a part of",
    "leads nowhere": "has no target",
    "as a crash of the machine leaves": "as after a crash of the machine",
    "end that first": "end that program first",
    "it has none of": "must contain one of",
    "is none of": "is not one of",
    "has to begin with": "must start with",
    "twice is better than never": "a duplicate is better than a lost row",
    "errors that pass": "temporary errors",
    "all ask here": "all use this file",
    "who writes": "name the program, the process, the writer",
    "who uses": "what uses",
    "who calls": "what calls",
    "who acquires": "what acquires",
    "this very": "the same",
    "has learned": "is known",
    "is learned": "is known",
    "otel_connector.resends": "otel_connector.retries",
    "hosts_held_back": "hosts_paused",
}

# Matched as names in Python code, in exactly this case
IDENTIFIERS = {
    "Terms": "CallSettings",
    "Asked": "UrlTelemetry",
    "Place": "Permit",
    "Slots": "ResizableLimiter",
    "Pacing": "AdmissionControl",
    "Journal": "CallLogger",
    "Troubles": "TelemetryGuard",
    "Wanted": "FetchOptions, RowFilter",
    "Into": "ResultsSink",
    "Done": "CompletedUrls",
    "Buckets": "RetryQuotas",
    "_Crew": "_WorkerPool",
    "_Lane": "_SerialExecutor",
    "_care": "_flusher",
    "look_after": "flush_periodically",
    "_settle": "_start_or_stop_flusher",
    "_take_turn": "lock",
    "_has_turn": "try_lock",
    "end_turn": "unlock",
    "at_once": "max_concurrency",
    "resends": "retries",
    "standing_out": "calls_with_text",
    "passed_over": "skipped",
    "_mend": "_repair",
    "_in_hand": "_pending",
    "told": "messages, reported",
    "of_late": "recent",
    "beheaded": "without_header",
    "stranger": "unknown_file",
}

SUFFIXES = {".py", ".md", ".js", ".css", ".html", ".c", ".yml", ".yaml", ".json", ".toml", ".cfg", ".sh", ".txt", ""}
FOLDERS = ("otel_connector", "tests", "examples", "docs")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")

BREAK = r"[\s#_]+"  # names, too; a phrase may continue behind a line end, the indentation and the sign of a comment
PATTERNS = {
    phrase: re.compile(rf"(?<![A-Za-z0-9-]){BREAK.join(map(re.escape, phrase.split()))}(?![A-Za-z0-9-])", re.IGNORECASE)
    for phrase in PHRASES
}


def files() -> list[Path]:
    """Return the files to check: all text files of the package, the tests and the examples, and the documents."""
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if is_text(path)]
    return [path for path in (*found, *(ROOT / name for name in DOCUMENTS)) if path != Path(__file__).resolve()]


def is_text(path: Path) -> bool:
    """Whether a file is text that is written by hand."""
    parts = path.relative_to(ROOT).parts
    not_by_hand = {"data", "__pycache__", "assets", "site", ".cache"}
    return path.suffix in SUFFIXES and path.is_file() and not not_by_hand.intersection(parts)


def checked_text(path: Path) -> str:
    """Return the text of a file. Of the changelog, past versions and what users wrote before are left out."""
    text = path.read_text(encoding="utf-8")
    if path.name == "CHANGELOG.md":
        text = text.partition("\n## 0.1.0\n")[0]
        text = re.sub(r"^\| [^|]*\|", "|", text, flags=re.MULTILINE)
    return text


def phrases_in(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the phrase and its replacement for each phrase that is not plain English."""
    words = re.sub(BREAK, " ", text).lower()
    for phrase, plain in PHRASES.items():
        if phrase.lower() not in words:  # much faster than the pattern
            continue
        for match in PATTERNS[phrase].finditer(text):
            yield text.count("\n", 0, match.start()) + 1, phrase, plain


def identifiers_in(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the name and its replacement for each name in Python code that is not plain English."""
    if not any(name in text for name in IDENTIFIERS):
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and token.string in IDENTIFIERS:
            yield token.start[0], token.string, IDENTIFIERS[token.string]


def test_all_files_are_written_in_plain_english() -> None:
    lines, checked = list[str](), files()
    assert len(checked) > 200
    for path in checked:
        text = checked_text(path)
        found = [*phrases_in(text), *(identifiers_in(text) if path.suffix == ".py" else ())]
        lines += [f"{path.relative_to(ROOT)}:{line}: {what!r}; write: {plain}" for line, what, plain in sorted(found)]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a line is Passed\n    # over here", [(1, "passed over")]),
        ("x\nthe calls under way", [(2, "under way")]),
        ("an amendment, a renewal, passed overall", []),
        ("skipped, in flight", []),
    ],
)
def test_phrases_are_found_as_whole_words_and_across_lines(text: str, found: list[tuple[int, str]]) -> None:
    assert [(line, phrase) for line, phrase, _ in phrases_in(text)] == found


def test_identifiers_are_found_in_code_but_not_in_text() -> None:
    text = '"""Terms."""\nTerms = 1  # Terms\nterms.Terms("Terms")\n'
    assert [(line, name) for line, name, _ in identifiers_in(text)] == [(2, "Terms"), (3, "Terms")]


def test_the_identifiers_are_names() -> None:
    assert all(name.isidentifier() and not keyword.iskeyword(name) for name in IDENTIFIERS)
