"""Checks that a partial response (206) is what the request asked for.

A 206 has a part of the representation in its body, and only its header says which part (RFC 9110, section 15.3.7). This
file knows headers only, not connections, bodies or retries.

Used by ``_call._body``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from aiohttp.hdrs import CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE

from otel_connector._errors import BodyTruncated, MalformedResponse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from multidict import MultiMapping

_BYTES = "bytes"  # the only unit that RFC 9110 defines

# RFC 9110, section 14.4. Some servers write another separator than the space, which curl accepts, too
_CONTENT_RANGE = re.compile(r"bytes[ :=]+([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.IGNORECASE)

# RFC 9110, section 14.1.2: first-last, first- (to the end) or -length (the last bytes)
_WANTED = re.compile(r"([0-9]{0,18})-([0-9]{0,18})")


class _Part(NamedTuple):
    """The part in the body; `complete` is the length of the representation, None if the server does not know it."""

    first: int
    last: int
    complete: int | None

    def __str__(self) -> str:
        return f"bytes {self.first}-{self.last} of {'*' if self.complete is None else self.complete}"


def check_range(sent: MultiMapping[str], received: MultiMapping[str]) -> int | None:
    """Check the part that a 206 has in its body.

    Args:
        sent: The headers of the request.
        received: The headers of the response.

    Returns:
        The number of bytes that the body must have; None if the headers do not contain it.

    Raises:
        BodyTruncated: It is less than the request asked for.
        MalformedResponse: It is another part than the requested one, or the response does not state which one it is.
    """
    requested = sent.get(RANGE, "").strip()
    name, _, ranges = requested.partition("=")
    unit = name.strip().lower()
    wanted = _wanted(ranges) if unit == _BYTES else []
    if received.get(CONTENT_TYPE, "").lower().startswith("multipart/byteranges"):
        if not requested:
            raise BodyTruncated("status 206 with several ranges, and none was requested")
        if len(wanted) == 1:  # RFC 9110, section 15.3.7.2, does not allow it
            raise MalformedResponse("status 206 with several parts, and one range was requested")
        return None  # each part has a header of its own
    values = {value.strip() for value in received.getall(CONTENT_RANGE, ())}
    text = values.pop() if len(values) == 1 else ""
    if unit not in {"", _BYTES} and text.lower().startswith(f"{unit} "):
        return None  # a unit that is not known here
    part = _part(text)
    if not wanted:
        if part is None or part.first or part.complete != part.last + 1:
            found = "without a valid Content-Range" if part is None else f"with {part}"
            raise BodyTruncated(f"status 206 {found}, and no range was requested")
    elif part is None:
        raise MalformedResponse("status 206 without a valid Content-Range")
    else:
        _check_wanted(part, wanted, requested)
    return part.last - part.first + 1


def check_size(expected: int, received: MultiMapping[str], size: int) -> None:
    """Check that the body of a 206 has as many bytes as its ``Content-Range`` announces.

    Args:
        expected: What `check_range` has returned.
        received: The headers of the response.
        size: Bytes of the body, after content decoding.

    Raises:
        BodyTruncated: There are fewer.
        MalformedResponse: There are more.
    """
    # The range is one of the coded representation (RFC 9110, section 14.1), so its decoded size is not compared
    sent = int(received.get(CONTENT_LENGTH, expected if CONTENT_ENCODING in received else size))
    if sent != expected:
        error = BodyTruncated if sent < expected else MalformedResponse
        raise error(f"status 206 announced {expected} bytes and sent {sent}")


def _wanted(ranges: str) -> list[tuple[int | None, int | None]]:
    """Return the first and the last byte of each requested range; none if one is invalid, because servers ignore it."""
    wanted = list[tuple[int | None, int | None]]()
    for each in ranges.split(","):
        match = _WANTED.fullmatch(each.strip())
        if match is None or match[0] == "-":
            return []
        wanted.append((int(match[1]) if match[1] else None, int(match[2]) if match[2] else None))
    return wanted


def _part(text: str) -> _Part | None:
    match = _CONTENT_RANGE.fullmatch(text)
    if match is None:
        return None
    part = _Part(int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3]))
    return part if part.first <= part.last and (part.complete is None or part.last < part.complete) else None


def _check_wanted(part: _Part, wanted: Iterable[tuple[int | None, int | None]], requested: str) -> None:
    """Raise an error unless `part` is the requested range, or contains all requested ranges if there are several."""
    needed = [_needed(part, first, last) for first, last in wanted]
    satisfiable = [(first, last) for first, last in needed if part.complete is None or first < part.complete]
    first = min((first for first, _ in satisfiable), default=-1)
    last = max((last for _, last in satisfiable), default=-1)
    if first != part.first or last < part.last:
        raise MalformedResponse(f"status 206 with {part}, requested was {requested}")
    if last > part.last:
        raise BodyTruncated(f"status 206 with {part}, requested was {requested}")


def _needed(part: _Part, first: int | None, last: int | None) -> tuple[int, int]:
    """Return the first and the last byte of a requested range, limited to the representation if its length is known."""
    end = part.last if part.complete is None else part.complete - 1
    if first is None:  # the last bytes; without the length, only their number can be checked
        return max(end + 1 - (last or 0), 0), end
    if last is None:
        return first, end
    return first, last if part.complete is None else min(last, end)
