"""The parsed head of one HTTP/1.x request. Does not know sockets, scripts and responses.

Used by ``testing``, ``testing._peer``, ``testing._server`` and ``testing._steps``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from multidict import CIMultiDict, CIMultiDictProxy

# Large enough for the cookies of any client; a client that sends more cannot fill the memory
MAX_HEAD_BYTES = 64 * 1024

_REQUEST_LINE = re.compile(r"([!-~]+) ([!-~]+) HTTP/(1\.[01])")
_FIELD = re.compile(r"([!-9;-~]+):[ \t]*(.*?)[ \t]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedRequest:
    """One request as the server read it.

    Attributes:
        method: As sent, such as ``GET``.
        path: The request target before the query string, as sent (percent-encoded).
        query: The text after the ``?``, as sent; empty if there is none.
        version: The protocol version, ``1.1`` or ``1.0``.
        headers: Case-insensitive; ``headers.getall(name)`` returns repeated ones.
        connection: The number of its connection, from 1. Equal numbers mean that a connection was reused.
        step: The index of the script's step that answers it; None if the path has no script.
    """

    method: str
    path: str
    query: str
    version: str
    headers: CIMultiDictProxy[str] = field(hash=False)
    connection: int
    step: int | None = None

    @property
    def keeps_alive(self) -> bool:
        """Whether the client allows further requests on the connection (RFC 9112, section 9.3)."""
        options = {part.strip().lower() for value in self.headers.getall("Connection", []) for part in value.split(",")}
        return "keep-alive" in options if self.version == "1.0" else "close" not in options


class BadRequest(Exception):
    """The request cannot be parsed; `status` is the status of the response."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def parse_head(head: bytes, connection: int) -> ReceivedRequest:
    """Parse a request line and header lines, without the empty line that ends them.

    Raises:
        BadRequest: They are not HTTP/1.0 or 1.1.
    """
    request_line, *lines = head.decode("latin-1").split("\r\n")
    matched = _REQUEST_LINE.fullmatch(request_line)
    if matched is None:
        raise BadRequest(400, "the request line is not HTTP/1.x")
    headers: CIMultiDict[str] = CIMultiDict()
    for line in lines:
        header = _FIELD.fullmatch(line)
        if header is None:
            raise BadRequest(400, "a header line is malformed")
        headers.add(header[1], header[2])
    path, _, query = matched[2].partition("?")
    return ReceivedRequest(
        method=matched[1],
        path=path,
        query=query,
        version=matched[3],
        headers=CIMultiDictProxy(headers),
        connection=connection,
    )


def body_length(request: ReceivedRequest) -> int:
    """Return the length of the body in bytes.

    Raises:
        BadRequest: There is no single Content-Length (chunked request bodies are not supported).
    """
    if "Transfer-Encoding" in request.headers:
        raise BadRequest(411, "the body has no Content-Length")
    lengths = request.headers.getall("Content-Length", ["0"])
    if len(lengths) != 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
        raise BadRequest(400, "Content-Length is not one number")
    return int(lengths[0])
