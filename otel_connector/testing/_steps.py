"""The steps of a script: what the server does with one request, from a plain response to a decompression bomb.

A step knows the `Connection`. It does not know the server, the script or the client.

Used by ``testing``, ``testing._hold`` and ``testing._server``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from operator import methodcaller
from typing import Any, Protocol

from otel_connector._arguments import checked_instance, checked_int, checked_seconds
from otel_connector.testing._answers import (
    CHUNKED_HEAD,
    JSON,
    OK_BODY,
    Headers,
    check_header,
    checked_status,
    chunk_of,
    head,
    incomplete,
    ok_in_halves,
)
from otel_connector.testing._encodings import compress, compressed_zeros
from otel_connector.testing._request import ReceivedRequest


class Connection(Protocol):
    """The server's end of one client connection, as a step uses it.

    The request has been read, and nothing has been sent yet.

    If a step returns without `close` or `abort`, the connection waits for the next request.
    """

    @property
    def request(self) -> ReceivedRequest:
        """The request to answer."""
        ...

    async def send(self, data: bytes) -> None:
        """Send bytes unchanged, and wait until the operating system has accepted them.

        Raises:
            ConnectionError: The client has disconnected, or the step has closed the connection.
        """
        ...

    def close(self) -> None:
        """Close the connection in order (TCP FIN; with TLS, a close_notify before it)."""
        ...

    def abort(self) -> None:
        """Reset the connection (TCP RST)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What the server does with one request.

    Attributes:
        name: The name in a ``repr`` and in messages.
        play: The action, an async callable. It runs in the server's event loop, and is cancelled when the client
            disconnects or the server closes.
    """

    name: str
    play: Callable[[Connection], Awaitable[None]] = field(repr=False)  # its repr differs in every process

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            TypeError: `name` is not a str, or `play` cannot be called.
        """
        checked_instance("name", self.name, str)
        if not callable(self.play):
            raise TypeError(f"play must be an async callable, not {type(self.play).__name__}")


def respond(status: int = 200, body: bytes = b"", headers: Headers = (), content_type: str | None = JSON) -> Step:
    """Send a complete response.

    Args:
        status: 200 to 599.
        body: The body; its length is sent as Content-Length. Empty for 204 and 304.
        headers: Further headers, as pairs or a mapping. A Content-Length or Content-Type here replaces the default.
        content_type: The Content-Type; None sends none.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: `status` is out of range or cannot have a body, or a header is not a valid header line.
    """
    without_body = checked_status(status) in {204, 304}
    if checked_instance("body", body, bytes) and without_body:
        raise ValueError(f"body must be empty with status {status}")
    data = head(status, headers, content_type=content_type, length=None if without_body else len(body)) + body

    return Step(name=f"respond({status})", play=methodcaller("send", data))


def json_body(value: Any) -> Step:
    """Respond with 200 and `value` as JSON.

    Raises:
        TypeError, ValueError: `value` cannot be encoded as JSON.
    """
    return respond(body=json.dumps(value).encode())


def bare_status(status: int) -> Step:
    """Respond with a status and the body ``{"status": n}``. A plain number in a script means this step."""
    checked_status(status)
    return respond(status, b"" if status in {204, 304} else b'{"status": %d}' % status)


def redirect(location: str, status: int = 302) -> Step:
    """Redirect the client.

    Args:
        location: The value of the Location header: absolute, relative or malformed.
        status: 300 to 399.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: `status` is out of range, or `location` cannot be the value of a header.
    """
    checked_status(status, 300, 399)
    check_header("location", location)
    return respond(status, headers=[("Location", location)], content_type=None)


def retry_after(value: int | str, status: int = 503) -> Step:
    """Send a Retry-After header (RFC 9110, section 10.2.3).

    Args:
        value: Seconds, or the value of the header, such as a date.
        status: 200 to 599.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: An argument is out of range, or cannot be the value of a header.
    """
    text = value if isinstance(value, str) else str(checked_int("value", value, 0))
    check_header("value", text)
    return respond(status, b'{"status": %d}' % checked_status(status), [("Retry-After", text)])


def slow_headers(seconds: float) -> Step:
    """Send nothing for `seconds`, then respond as `ok` does.

    Raises:
        TypeError, ValueError: `seconds` is not a finite number, 0 or more.
    """
    return _send_with_pause(f"slow_headers({seconds})", b"", seconds, b"".join(ok_in_halves()))


def slow_body(seconds: float) -> Step:
    """Respond as `ok` does, with a pause of `seconds` in the middle of the body.

    Raises:
        TypeError, ValueError: `seconds` is not a finite number, 0 or more.
    """
    first, rest = ok_in_halves()
    return _send_with_pause(f"slow_body({seconds})", first, seconds, rest)


def drip(interval: float = 0.1) -> Step:
    """Send headers, and then one byte of body every `interval` seconds without end (chunked).

    Raises:
        TypeError, ValueError: `interval` is not a finite number, 0 or more.
    """
    return _repeat_chunk(f"drip({interval})", b" ", checked_seconds("interval", interval))


def endless(chunk: int = 65536) -> Step:
    """Send headers, and then a body without end, as fast as the client reads it.

    Args:
        chunk: Bytes in each chunk, 1 or more.

    Raises:
        TypeError, ValueError: `chunk` is not such a number.
    """
    return _repeat_chunk(f"endless({chunk})", b" " * checked_int("chunk", chunk), 0.0)


def reset_in_body(after: int = 16) -> Step:
    """Send headers and `after` bytes of a longer body, then reset the connection (RST).

    Raises:
        TypeError, ValueError: `after` is not an int, 0 or more.
    """
    data = incomplete(checked_int("after", after, 0), after + 64)
    return _send_and_end(f"reset_in_body({after})", data, abort=True)


def truncated(sent: int = 16, promised: int = 64) -> Step:
    """Send `sent` bytes of a body whose Content-Length is `promised`, then close in order (FIN).

    Raises:
        TypeError: An argument is not an int.
        ValueError: `sent` is below 0, or `promised` is not above `sent`.
    """
    data = incomplete(checked_int("sent", sent, 0), checked_int("promised", promised, sent + 1))
    return _send_and_end(f"truncated({sent}, {promised})", data)


def truncated_chunks() -> Step:
    """Send a chunked body without its last chunk, then close in order (FIN)."""
    return _send_and_end("truncated_chunks()", CHUNKED_HEAD + chunk_of(OK_BODY))


def compressed(body: bytes, encoding: str = "gzip") -> Step:
    """Respond with 200 and the compressed `body`.

    Args:
        body: The body that the client gets after decoding.
        encoding: ``gzip``, ``deflate``, ``br`` (needs brotli) or ``zstd`` (needs Python 3.14 or backports.zstd).

    Raises:
        TypeError: `body` is not bytes.
        ValueError: `encoding` is not one of these.
        ImportError: The package for `encoding` is not installed.
    """
    return respond(body=compress(body, encoding), headers=[("Content-Encoding", encoding)])


def bomb(size: int, encoding: str = "gzip") -> Step:
    """Respond with 200 and a small body that decompresses to `size` zero bytes.

    Making the body needs little memory, but takes seconds per GiB, once for each size.

    Args:
        size: Bytes after decoding, 1 or more.
        encoding: As for `compressed`.

    Raises:
        TypeError, ValueError, ImportError: As for `compressed`, or `size` is not such a number.
    """
    return respond(body=compressed_zeros(size, encoding), headers=[("Content-Encoding", encoding)])


def _send_and_end(name: str, data: bytes, *, abort: bool = False) -> Step:
    """Send `data`, then end the connection: with RST if `abort` is True, else with FIN."""

    async def play(connection: Connection) -> None:
        if data:
            await connection.send(data)
        if abort:
            connection.abort()
        else:
            connection.close()

    return Step(name=name, play=play)


def _send_with_pause(name: str, first: bytes, seconds: float, rest: bytes) -> Step:
    pause = checked_seconds("seconds", seconds)

    async def play(connection: Connection) -> None:
        if first:
            await connection.send(first)
        await asyncio.sleep(pause)
        await connection.send(rest)

    return Step(name=name, play=play)


def _repeat_chunk(name: str, data: bytes, pause: float) -> Step:
    """Send headers, and then `data` as a chunk every `pause` seconds without end."""
    chunk = chunk_of(data)

    async def play(connection: Connection) -> None:
        await connection.send(CHUNKED_HEAD)
        while True:
            await connection.send(chunk)
            await asyncio.sleep(pause)

    return Step(name=name, play=play)


async def _silent(_connection: Connection) -> None:
    await asyncio.Event().wait()


ok = respond(200, OK_BODY)
"""Respond with 200 and ``{"ok": true}``."""

empty = respond(200, content_type=None)
"""Respond with 200 and a body of 0 bytes."""

reset = _send_and_end("reset", b"", abort=True)
"""Reset the connection (RST) before the first byte of a response.

After a GET that ends in this way, aiohttp by itself sends the request once more, without reporting it to its caller. So
one call takes two steps of the script.
"""

disconnect = _send_and_end("disconnect", b"")
"""Close the connection in order (FIN) before the first byte of a response. aiohttp reacts as to `reset`."""

silent = Step(name="silent", play=_silent)
"""Read the request and send no response."""

garbage = _send_and_end("garbage", b"this is not HTTP\r\n\r\n")
"""Send bytes that are not HTTP, and close (FIN)."""

# A valid gzip header (RFC 1952) before a deflate block of the reserved type 3, which every decoder must refuse
corrupt_gzip = respond(
    body=b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff" + b"\xff" * 22, headers=[("Content-Encoding", "gzip")]
)
"""Respond with 200 and a gzip body of the right length that cannot be decoded."""
