"""The steps a script is made of: what the server does with one request, from a plain answer to a bomb.

A step knows the `Connection` it plays on and nothing of the server, of scripts or of who asks.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from otel_connector._arguments import checked_seconds
from otel_connector.testing._answers import (
    JSON,
    OK_BODY,
    Headers,
    check_header,
    chunk_of,
    chunked_head,
    head,
    ok_in_halves,
    partial,
)
from otel_connector.testing._arguments import instance, whole
from otel_connector.testing._encodings import compress, compressed_zeros
from otel_connector.testing._request import ReceivedRequest


class Connection(Protocol):
    """The server's end of one client connection, as a step sees it: the request has been read, nothing is sent yet.

    A step that returns without `close` or `abort` has answered: the connection waits for the next request.
    """

    @property
    def request(self) -> ReceivedRequest:
        """The request to answer."""
        ...

    async def send(self, data: bytes) -> None:
        """Send bytes as they are and wait until the operating system has them.

        Raises:
            ConnectionError: the client has gone, or the step has closed the connection.
        """
        ...

    def close(self) -> None:
        """End the connection in good order (TCP FIN; under TLS a close_notify before it)."""
        ...

    def abort(self) -> None:
        """Break the connection off (TCP RST)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What the server does with one request.

    Attributes:
        name: What it is called in a ``repr`` and in messages.
        play: Does it. Runs in the server's event loop and is cancelled when the client leaves or the server closes.
    """

    name: str
    play: Callable[[Connection], Awaitable[None]] = field(repr=False)  # its repr would change with every process

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            TypeError: `name` is no str or `play` cannot be called.
        """
        instance("name", self.name, str)
        if not callable(self.play):
            raise TypeError(f"play must be an async callable, not {type(self.play).__name__}")


def respond(status: int = 200, body: bytes = b"", headers: Headers = (), content_type: str | None = JSON) -> Step:
    """Answer in full.

    Args:
        status: 200 to 599.
        body: Sent with its length; 204 and 304 cannot have one.
        headers: Further headers, as pairs or a mapping. A Content-Length or Content-Type here replaces ours.
        content_type: None sends none.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: `status` is out of range or cannot have a body, or a header is not one line of a message.
    """
    bodiless = whole("status", status, 200, 599) in {204, 304}
    if instance("body", body, bytes) and bodiless:
        raise ValueError(f"body must be empty with status {status}")
    data = head(status, headers, content_type=content_type, length=None if bodiless else len(body)) + body

    async def play(connection: Connection) -> None:
        await connection.send(data)

    return Step(name=f"respond({status})", play=play)


def json_body(value: Any) -> Step:
    """Answer 200 with `value` as JSON.

    Raises:
        TypeError, ValueError: `value` cannot be written as JSON.
    """
    return respond(body=json.dumps(value).encode())


def bare_status(status: int) -> Step:
    """Make the step that a plain number in a script stands for: the status with ``{"status": n}`` as its body."""
    whole("status", status, 200, 599)
    return respond(status, b"" if status in {204, 304} else b'{"status": %d}' % status)


def redirect(location: str, status: int = 302) -> Step:
    """Send the client elsewhere.

    Args:
        location: The Location header as it is: absolute, relative or broken.
        status: 300 to 399.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: `status` is out of range or `location` does not fit in a header.
    """
    whole("status", status, 300, 399)
    check_header("location", location)
    return respond(status, headers=[("Location", location)], content_type=None)


def retry_after(value: int | str, status: int = 503) -> Step:
    """Tell the client to come back later (RFC 9110, section 10.2.3).

    Args:
        value: Seconds, or the header as it is, such as a date.
        status: 200 to 599.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range or does not fit in a header.
    """
    text = value if isinstance(value, str) else str(whole("value", value, 0))
    check_header("value", text)
    return respond(status, b'{"status": %d}' % whole("status", status, 200, 599), [("Retry-After", text)])


def slow_headers(seconds: float) -> Step:
    """Send nothing for `seconds`, then answer as `ok` does.

    Raises:
        TypeError, ValueError: `seconds` is no finite number, 0 or more.
    """
    delay = checked_seconds("seconds", seconds)

    async def play(connection: Connection) -> None:
        await asyncio.sleep(delay)
        await ok.play(connection)

    return Step(name=f"slow_headers({seconds})", play=play)


def slow_body(seconds: float) -> Step:
    """Answer as `ok` does, with a pause of `seconds` in the middle of the body.

    Raises:
        TypeError, ValueError: `seconds` is no finite number, 0 or more.
    """
    delay = checked_seconds("seconds", seconds)

    async def play(connection: Connection) -> None:
        first, rest = ok_in_halves()
        await connection.send(first)
        await asyncio.sleep(delay)
        await connection.send(rest)

    return Step(name=f"slow_body({seconds})", play=play)


def drip(interval: float = 0.1) -> Step:
    """Send headers and then one byte of body every `interval` seconds, for ever (chunked).

    Raises:
        TypeError, ValueError: `interval` is no finite number, 0 or more.
    """
    pause = checked_seconds("interval", interval)

    async def play(connection: Connection) -> None:
        await connection.send(chunked_head())
        while True:
            await connection.send(chunk_of(b" "))
            await asyncio.sleep(pause)

    return Step(name=f"drip({interval})", play=play)


def endless(chunk: int = 65536) -> Step:
    """Send headers and then a body without end, as fast as the client takes it.

    Args:
        chunk: Bytes in each chunk, 1 or more.

    Raises:
        TypeError, ValueError: `chunk` is no such number.
    """
    piece = chunk_of(b" " * whole("chunk", chunk, 1))

    async def play(connection: Connection) -> None:
        await connection.send(chunked_head())
        while True:
            await connection.send(piece)

    return Step(name=f"endless({chunk})", play=play)


def reset_in_body(after: int = 16) -> Step:
    """Send headers and `after` bytes of a longer body, then break the connection off (RST).

    Raises:
        TypeError, ValueError: `after` is no int, 0 or more.
    """
    data = partial(whole("after", after, 0), after + 64)

    async def play(connection: Connection) -> None:
        await connection.send(data)
        connection.abort()

    return Step(name=f"reset_in_body({after})", play=play)


def truncated(sent: int = 16, promised: int = 64) -> Step:
    """Send `sent` bytes of a body whose Content-Length says `promised`, then close in good order (FIN).

    Raises:
        TypeError: an argument is no int.
        ValueError: `sent` is below 0, or `promised` not above it.
    """
    data = partial(whole("sent", sent, 0), whole("promised", promised, sent + 1))

    async def play(connection: Connection) -> None:
        await connection.send(data)
        connection.close()

    return Step(name=f"truncated({sent}, {promised})", play=play)


def truncated_chunks() -> Step:
    """Send a chunked body and close (FIN) where its last chunk should be."""

    async def play(connection: Connection) -> None:
        await connection.send(chunked_head() + chunk_of(OK_BODY))
        connection.close()

    return Step(name="truncated_chunks()", play=play)


def compressed(body: bytes, encoding: str = "gzip") -> Step:
    """Answer 200 with `body` compressed.

    Args:
        body: What the client should have after decoding.
        encoding: ``gzip``, ``deflate``, ``br`` (needs brotli) or ``zstd`` (needs Python 3.14 or backports.zstd).

    Raises:
        TypeError: `body` is not bytes.
        ValueError: `encoding` is none of these.
        ImportError: the package for `encoding` is not installed.
    """
    return respond(body=compress(body, encoding), headers=[("Content-Encoding", encoding)])


def bomb(size: int, encoding: str = "gzip") -> Step:
    """Answer 200 with a small body that inflates to `size` zero bytes.

    Building it holds only the small body in memory, but takes time: seconds per GiB, once for each size.

    Args:
        size: Bytes after decoding, 1 or more.
        encoding: As for `compressed`.

    Raises:
        TypeError, ValueError, ImportError: as for `compressed`, or `size` is no such number.
    """
    return respond(body=compressed_zeros(size, encoding), headers=[("Content-Encoding", encoding)])


async def _reset(connection: Connection) -> None:
    connection.abort()


async def _disconnect(connection: Connection) -> None:
    connection.close()


async def _silent(connection: Connection) -> None:  # noqa: ARG001
    await asyncio.Event().wait()


async def _garbage(connection: Connection) -> None:
    await connection.send(b"this is not HTTP\r\n\r\n")
    connection.close()


ok = respond(200, OK_BODY)
"""Answer 200 with ``{"ok": true}``."""

empty = respond(200, content_type=None)
"""Answer 200 with a body of 0 bytes."""

reset = Step(name="reset", play=_reset)
"""Break the connection off (RST) before the first byte of an answer.

Mind that aiohttp asks once more by itself, unseen by its caller, when a GET ends so: it takes two steps of the script.
"""

disconnect = Step(name="disconnect", play=_disconnect)
"""Close the connection in good order (FIN) before the first byte of an answer; to aiohttp the same as `reset`."""

silent = Step(name="silent", play=_silent)
"""Read the request and never answer."""

garbage = Step(name="garbage", play=_garbage)
"""Answer with bytes that are not HTTP, and close (FIN)."""

# A true gzip header (RFC 1952) before a deflate block of the reserved type 3: every decoder must refuse it.
corrupt_gzip = respond(
    body=b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff" + b"\xff" * 22, headers=[("Content-Encoding", "gzip")]
)
"""Answer 200 with a gzip body of the right length that cannot be decoded."""
