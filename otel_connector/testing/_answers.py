"""The bytes of an answer: status line, headers and ways to frame a body. Knows no connection and no step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from otel_connector.testing._arguments import instance

JSON = "application/json"
OK_BODY = b'{"ok": true}'

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE = re.compile(r"[\t -~\x80-\xff]*")

Headers = Mapping[str, str] | Iterable[tuple[str, str]]


def head(status: int, headers: Headers = (), *, content_type: str | None = JSON, length: int | None = None) -> bytes:
    """Build the bytes of an answer up to its body; `length` None leaves Content-Length out."""
    pairs = _pairs(headers)
    named = {name.lower() for name, _ in pairs}
    if content_type is not None and "content-type" not in named:
        check_header("content_type", content_type)
        pairs.append(("Content-Type", content_type))
    if length is not None and "content-length" not in named:
        pairs.append(("Content-Length", str(length)))
    lines = [f"HTTP/1.1 {status} {_phrase(status)}", *(f"{name}: {value}" for name, value in pairs), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def ok_in_halves() -> tuple[bytes, bytes]:
    """Split the answer of `ok` in the middle of its body."""
    middle = len(OK_BODY) // 2
    return head(200, length=len(OK_BODY)) + OK_BODY[:middle], OK_BODY[middle:]


def _pairs(headers: Any) -> list[tuple[str, str]]:
    pairs: list[Any] = list(headers.items() if hasattr(headers, "items") else headers)
    for name, value in pairs:
        if not _TOKEN.fullmatch(instance("headers: a name", name, str)):
            raise ValueError(f"headers: a name must be a token (RFC 9110, section 5.1), not {name!r}")
        check_header(f"headers: {name}", value)
    return pairs


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unassigned"


def check_header(name: str, value: object) -> None:
    """Refuse what does not fit in one header line (RFC 9110, section 5.5)."""
    if not _FIELD_VALUE.fullmatch(instance(name, value, str)):
        raise ValueError(f"{name} must fit in one header line, not {value!r}")


def partial(sent: int, promised: int) -> bytes:
    """Build an answer that has `sent` bytes of body and a Content-Length of `promised`."""
    return head(200, length=promised) + b" " * sent


def chunked_head() -> bytes:
    """Build the head of an answer whose body comes in chunks."""
    return head(200, [("Transfer-Encoding", "chunked")])


def chunk_of(data: bytes) -> bytes:
    """Frame `data` as one chunk (RFC 9112, section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)
