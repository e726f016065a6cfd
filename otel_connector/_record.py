"""The record of a call, of an attempt, and of the rows of a log.

`CallRecord` holds the ten fields of the span, the CSV row and the API. It is created once, at the end of a call, and
never changed. Its texts are escaped here, so that all three show the same characters. This file does not know how a
record is written or sent.

Used by ``__init__``, ``__main__``, ``_bulk``, ``_call``, ``_connector``, ``_connector_stats``, ``_csv``,
``_distinct_urls``, ``_guard``, ``_replay``, ``_telemetry``, ``cli``, ``csv_exporter`` and ``review``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

URL_LIMIT = 8_192
"""Maximum characters of a URL: more than servers and browsers accept, far fewer than a spreadsheet cell (32,767)."""

TEXT_LIMIT = 2_048
"""Maximum characters of any other text. The csv module rejects cells of 131,072 characters and more."""

UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Characters that end a line, hide text or cannot be encoded: C0 and C1 controls with DEL, line and paragraph
separators, the bidi controls (Unicode TR9, as in CVE-2021-42574), the byte order mark, and lone surrogates."""

_CUT = re.compile(r"\.\.\.\[\+(\d+)\]\Z")  # the mark of a text that was cut before, by this file or by the redactor
_LONGEST_CUT = 24  # characters
_SHORT_ESCAPES = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}


def one_line(text: str, limit: int = TEXT_LIMIT) -> str:
    r"""Return `text` as one physical line of at most `limit` characters.

    Control characters, line separators, bidi controls and lone surrogates are escaped (``\n``, ``\x00``, ``\u202e``).
    If the line is truncated, it ends in ``...[+N]``, where N is the number of characters left out. Applying this
    function to its result does not change it.
    """
    if len(text) <= limit and text.isprintable():
        return text  # nearly every URL and message, in half the time of the search below
    unread = 0
    if len(text) > limit and (before := _CUT.search(text, len(text) - _LONGEST_CUT)):
        text, unread = text[: before.start()], int(before[1])
    unread += max(len(text) - limit, 0)  # escapes are longer, so characters beyond the limit are cut in any case
    line = UNSAFE.sub(_escape, text[:limit])
    if unread or len(line) > limit:
        kept = limit - len(f"...[+{len(line) + unread}]")
        line = f"{line[:kept]}...[+{len(line) - kept + unread}]"
    return line


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    if char in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[char]
    return f"\\x{ord(char):02x}" if char <= "\xff" else f"\\u{ord(char):04x}"


class CallRecord(NamedTuple):
    """The ten fields of one call, in the order of the CSV's columns.

    It is a named tuple and not a frozen dataclass like `Attempt`, because every call creates one, at a third of the
    cost.

    Attributes:
        call_id: ``{trace_id:032x}-{span_id:016x}`` of the call's span; as unique as the SDK's ids, which repeat in a
            program that seeds `random` repeatedly.
        project: The `project_name` given to `get`.
        t: Start of the call, Unix time in seconds, whole microseconds.
        delta_t: Seconds from the start to the decoded body, including retries and waits, on the monotonic clock.
        url: The requested URL, base URL and `params` applied, redacted.
        redirect_url: The target of the redirects of the last attempt, redacted; empty if there were none.
        response_size: Bytes of body read in the last attempt, after content decoding.
        response_code: HTTP status of the last attempt; None if it had no response.
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
    """One failed attempt, and the decision after it.

    Attributes:
        call_id: The call's id, as in its row.
        project: The call's project.
        url: The requested URL, redacted.
        number: Number of the attempt in its call, from 1.
        duration: Seconds that it took.
        status: HTTP status of its response; None if it had none.
        error_type: Qualified class name of its error, or the status as text.
        error: ``ClassName: message`` on one line, redacted.
        reason: Why it was retried or could have been, for example ``status_503`` or ``connection``.
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


class Retry(NamedTuple):
    """Why an attempt after the first was made, and the time between the end of the one before it and its start.

    Attributes:
        reason: The reason of the attempt before it, such as ``status_503``.
        wait: Seconds that the call waited, without the queue time.
        queue: Seconds that it then waited for a permit.
    """

    reason: str
    wait: float
    queue: float


class AttemptRecord(NamedTuple):
    """The fields of one attempt of a call, in the order of the columns of the attempts log; also those of its event.

    Of all attempts of a call, `duration`, `queue` and `wait` together are the call's `delta_t`.

    Attributes:
        call_id: The call's id, as in its row.
        number: Number of the attempt in its call, from 1. A second request that aiohttp makes by itself has a number,
            and no record.
        t: Start of the attempt, Unix time in seconds, whole microseconds; that of the first attempt is the call's `t`.
        duration: Seconds from its start to its result, without the queue time of redirects.
        queue: Seconds that its redirects, and after its failure the next attempt, waited for a permit.
        wait: Seconds between its failure and the next attempt, without the queue time; None if none was to follow.
        reason: Why it was retried or could have been, for example ``status_503`` or ``connection``; ``cancelled`` if
            the call was cancelled during the attempt; empty if the attempt succeeded.
        status: HTTP status of its response; None if it had none.
        error_type: Qualified class name of its error, or the status as text; empty if it succeeded or was cancelled.
        retry_after: Seconds of the server's ``Retry-After``, if `wait` is due to it; None if it is due to the backoff.
    """

    call_id: str
    number: int
    t: float
    duration: float
    queue: float
    wait: float | None
    reason: str
    status: int | None
    error_type: str
    retry_after: float | None = None


ATTEMPT_COLUMNS: tuple[str, ...] = AttemptRecord._fields


class RowCounts(NamedTuple):
    """The number of rows of one log, by state.

    Attributes:
        written: Rows that are completely in the file.
        waiting: Rows in memory, because they could not be written, or not yet by the thread in the background.
        lost: Rows that were discarded, because too many bytes were waiting, or because they still waited at the end.
    """

    written: int
    waiting: int
    lost: int
