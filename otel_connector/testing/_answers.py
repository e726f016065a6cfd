"""The bytes of a response: status line, headers and the framing of the body. Does not know connections and steps.

Used by ``testing._hold`` and ``testing._steps``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http.client import responses
from typing import Any

from otel_connector._arguments import TOKEN, checked_instance, checked_int

JSON = "application/json"
OK_BODY = b'{"ok": true}'

_FIELD_VALUE = re.compile(r"[\t -~\x80-\xff]*")

Headers = Mapping[str, str] | Iterable[tuple[str, str]]


def head(status: int, headers: Headers = (), *, content_type: str | None = JSON, length: int | None = None) -> bytes:
    """Return the bytes of a response before its body. If `length` is None, there is no Content-Length."""
    pairs = _checked_headers(headers)
    names = {name.lower() for name, _ in pairs}
    if content_type is not None and "content-type" not in names:
        check_header("content_type", content_type)
        pairs.append(("Content-Type", content_type))
    if length is not None and "content-length" not in names:
        pairs.append(("Content-Length", str(length)))
    lines = [
        f"HTTP/1.1 {status} {responses.get(status, 'Unassigned')}",
        *(f"{name}: {value}" for name, value in pairs),
        "",
        "",
    ]
    return "\r\n".join(lines).encode("latin-1")


def ok_in_halves() -> tuple[bytes, bytes]:
    """Return the response of `ok` in two parts; the first ends in the middle of the body."""
    middle = len(OK_BODY) // 2
    return head(200, length=len(OK_BODY)) + OK_BODY[:middle], OK_BODY[middle:]


def _checked_headers(headers: Any) -> list[tuple[str, str]]:
    try:
        pairs = [(name, value) for name, value in (headers.items() if hasattr(headers, "items") else headers)]
    except (TypeError, ValueError):
        raise TypeError(f"headers must be a mapping, or pairs of names and values, not {headers!r}") from None
    for name, value in pairs:
        if not TOKEN.fullmatch(checked_instance("headers: a name", name, str)):
            raise ValueError(f"headers: a name must be a token (RFC 9110, section 5.1), not {name!r}")
        check_header(f"headers: {name}", value)
    return pairs


def check_header(name: str, value: object) -> None:
    """Raise ValueError if the argument `name` cannot be the value of a header line (RFC 9110, section 5.5)."""
    if not _FIELD_VALUE.fullmatch(checked_instance(name, value, str)):
        raise ValueError(f"{name} must fit in one header line, not {value!r}")


def checked_status(status: int, least: int = 200, most: int = 599) -> int:
    """Return a status from `least` to `most`."""
    if checked_int("status", status, least) > most:
        raise ValueError(f"status must be at most {most}, not {status}")
    return status


def incomplete(sent: int, promised: int) -> bytes:
    """Return a response with `sent` bytes of body and a Content-Length of `promised`."""
    return head(200, length=promised) + b" " * sent


def chunk_of(data: bytes) -> bytes:
    """Return `data` as one chunk (RFC 9112, section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


CHUNKED_HEAD = head(200, [("Transfer-Encoding", "chunked")])
