"""`one_line` turns any text into one physical line of limited length; records are immutable."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otel_connector._record import COLUMNS, TEXT_LIMIT, URL_LIMIT, Attempt, CallRecord, one_line

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)  # lone surrogates included
LIMITS = st.integers(min_value=16, max_value=60)
BIDI = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
CHARACTERS = "".join(map(chr, (*range(0x10000), *range(0x10000, 0x110000, 97))))


def is_clean(text: str) -> bool:
    return (
        len(text.splitlines()) <= 1
        and not {unicodedata.category(char) for char in text} & {"Cc", "Cs", "Zl", "Zp"}
        and not {unicodedata.bidirectional(char) for char in text} & BIDI
        and not set(text) & set("\u061c\u200e\u200f\ufeff")
    )


@given(ANY_TEXT, LIMITS)
@example("\u2028" * 16, 16)
@example("\ud83d\ude00", 16)
def test_one_line_returns_one_clean_encodable_line_and_is_idempotent(text: str, limit: int) -> None:
    line = one_line(text, limit)

    assert is_clean(line)
    assert len(line) <= limit
    assert one_line(line, limit) == line
    line.encode()


def test_one_line_escapes_unsafe_characters_only() -> None:
    lines = [one_line(char) for char in CHARACTERS]

    assert all(line == char if is_clean(char) else is_clean(line) for line, char in zip(lines, CHARACTERS, strict=True))
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("a\tb\r\nc", "a\\tb\\r\\nc"),
        ("\x00\x1b\x7f\x85", "\\x00\\x1b\\x7f\\x85"),
        ("\u2028\u2029\u202e\u2066\ufeff\u061c\u200f", "\\u2028\\u2029\\u202e\\u2066\\ufeff\\u061c\\u200f"),
        ("\ud800x\udfff", "\\ud800x\\udfff"),
        ("é 漢 😀 \u00a0 \\n", "é 漢 😀 \u00a0 \\n"),
    ],
)
def test_one_line_writes_unsafe_characters_as_python_escapes(text: str, line: str) -> None:
    assert one_line(text) == line


@pytest.mark.parametrize("limit", [TEXT_LIMIT, URL_LIMIT, 50])
@pytest.mark.parametrize("beyond", [0, 1, 10, 300_000])
def test_truncated_text_ends_with_the_number_of_removed_characters(limit: int, beyond: int) -> None:
    line = one_line("x" * (limit + beyond), limit)

    kept, _, count = line.removesuffix("]").partition("...[+")
    assert len(kept) + int(count or 0) == limit + beyond
    assert len(line) <= limit


def test_truncation_counts_the_characters_of_the_escaped_text() -> None:
    assert one_line("\x00" * 20, 50) == "\\x00" * 10 + "\\x...[+38]"


def test_columns_are_the_ten_fields_in_order() -> None:
    assert COLUMNS == (
        "call_id", "project", "t", "delta_t", "url",
        "redirect_url", "response_size", "response_code", "success", "error",
    )  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        CallRecord(
            call_id="i", project="p", t=0.0, delta_t=0.0, url="", redirect_url="",
            response_size=0, response_code=None, success=True, error="",
        ),
        Attempt(
            call_id="", project="", url="", number=1, duration=0.0, status=None, error_type="E", error="E",
            reason="timeout", wait=None,
        ),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_records_and_attempts_are_immutable(value: CallRecord | Attempt) -> None:
    for name in COLUMNS if isinstance(value, CallRecord) else value.__slots__:
        with pytest.raises(AttributeError):
            setattr(value, name, None)
    assert not hasattr(value, "__dict__")
