"""What is remembered of one call.

`CallRecord` holds the ten fields that the span, the CSV row and the API all carry. It is made once, at the end of a
call, and never changed. Its texts are clean from the start, so that every carrier shows the same characters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

URL_LIMIT = 8_192
"""Characters kept of a URL: above what servers and browsers take, far below the 32,767 a spreadsheet cell holds."""

TEXT_LIMIT = 2_048
"""Characters kept of any other text; the csv module's readers refuse cells from 131,072 on."""

# What would end a line, hide text or not encode: C0 and C1 controls with DEL, line and paragraph separators, the bidi
# controls (Unicode TR9, as in CVE-2021-42574), the byte order mark, and lone surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_SHORT_ESCAPES = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}


def one_line(text: str, limit: int = TEXT_LIMIT) -> str:
    r"""Make `text` one physical line of at most `limit` characters.

    Control characters, line separators, bidi controls and lone surrogates are escaped (``\n``, ``\x00``,
    ``\u202e``). What was cut is marked at the end as ``...[+N]``, N being the number of characters left out. Doing
    it twice changes nothing more.
    """
    if len(text) <= limit and text.isprintable():
        return text  # as nearly every URL and message, and asking is much cheaper than the search
    unread = max(len(text) - limit, 0)  # escaping only lengthens, so what is behind the limit is cut in any case
    line = _UNSAFE.sub(_escape, text[:limit])
    if unread or len(line) > limit:
        kept = limit - len(f"...[+{len(line) + unread}]")
        line = f"{line[:kept]}...[+{len(line) - kept + unread}]"
    return line


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    if char in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[char]
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"  # noqa: PLR2004 - what two hex digits can hold


class CallRecord(NamedTuple):
    """The ten fields of one call, in the order of the CSV's columns.

    A named tuple, and not a frozen dataclass as `Attempt` is: one is made in every call, at a third of the cost.

    Attributes:
        call_id: ``{trace_id:032x}-{span_id:016x}`` of the call's span; as unique as the SDK's ids, which repeat in a
            program that seeds `random` again and again.
        project: The `project_name` given to `get`.
        t: Start of the call, Unix time in seconds, whole microseconds.
        delta_t: Seconds from the start to the decoded body, retries and waits included, on the monotonic clock.
        url: The URL asked for, base URL and `params` applied, redacted.
        redirect_url: Where the last attempt was redirected to, redacted; empty if it was not.
        response_size: Bytes of body read in the last attempt, after content decoding.
        response_code: HTTP status of the last attempt; None if it got no response.
        success: Whether `get` returned the decoded body.
        error: ``ClassName: message`` on one line, redacted; empty on success.
    """

    call_id: str
    project: str
    t: float
    delta_t: float
    url: str
    redirect_url: str
    response_size: int
    response_code: int | None
    success: bool
    error: str


Fields = tuple[str, str, float, float, str, str, int, int | None, bool, str]
"""A `CallRecord`, or a plain tuple of its fields in their order, where they are not needed by name."""

COLUMNS: tuple[str, ...] = CallRecord._fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt that failed, and what followed.

    Attributes:
        call_id: The call's id, as in its row.
        project: The call's project.
        url: The URL asked for, redacted.
        number: Which attempt of the call, from 1.
        duration: Seconds it took.
        status: The HTTP status it got, if any.
        error_type: Qualified class name of its failure, or the status as text.
        error: ``ClassName: message`` on one line, redacted.
        reason: Why it was tried again or given up, e.g. ``status_503`` or ``connection``.
        wait: Seconds until the next attempt; None if there is none.
    """

    call_id: str
    project: str
    url: str
    number: int
    duration: float
    status: int | None
    error_type: str
    error: str
    reason: str
    wait: float | None


class RowCounts(NamedTuple):
    """What became of the rows of one log.

    Attributes:
        written: Rows that are in the file as a whole.
        waiting: Rows in memory: the disk refused them, or a writer in the background has not come to them yet.
        lost: Rows given up, because more bytes were waiting than may, or because they still waited at the end.
    """

    written: int
    waiting: int
    lost: int
