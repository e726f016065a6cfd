"""One client connection: bytes in, requests out, and the two ways to end it. Knows no script, no step and no log."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import cast

from otel_connector.testing._request import MAX_HEAD_BYTES, BadRequest, ReceivedRequest, body_length, parse_head

# A close with a linger time of 0 sends RST; the two fields are shorts on Windows and ints elsewhere.
_LINGER_0 = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})")


class Exchange:
    """One request and, once it is known, the status of its answer."""

    __slots__ = ("request", "status")

    def __init__(self, request: ReceivedRequest) -> None:
        self.request = request
        self.status: int | None = None


class Peer(asyncio.Protocol):
    """A `Connection` over a transport.

    `serve` runs as the connection's task and is cancelled when the connection is lost, which is how a step that waits
    for ever ends when its client leaves.
    """

    def __init__(self, number: int, peers: set[Peer], serve: Callable[[Peer], Coroutine[None, None, None]]) -> None:
        self.number = number
        self.exchange: Exchange | None = None
        self._peers = peers
        self._serve = serve
        self._received = bytearray()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to serve."""
        self._transport = cast("asyncio.Transport", transport)
        # Nothing may wait in our own buffer: an abort would throw away what a step has "sent" before it.
        # (asyncio's TLS transport takes "at 0" for "above 0" and would never let a send go on: hence its 1.)
        self._transport.set_write_buffer_limits(high=0 if transport.get_extra_info("sslcontext") is None else 1)
        self._peers.add(self)
        self.task = asyncio.get_running_loop().create_task(self._serve(self))

    def data_received(self, data: bytes) -> None:
        """Keep the bytes until they are read; stop a client that sends on and on."""
        self._received += data
        self._arrived.set()
        if len(self._received) > MAX_HEAD_BYTES:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """End whatever the task is doing."""
        self._peers.discard(self)
        self.task.cancel()
        # Python 3.10's TLS transport counts as open, and warns, until it is told what it has just told us.
        self._transport.close()

    def pause_writing(self) -> None:
        """Hold `send` back."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let `send` go on."""
        self._writable.set()

    # What a step calls.

    @property
    def request(self) -> ReceivedRequest:
        """The request to answer."""
        if self.exchange is None:
            raise RuntimeError("no request has been read on this connection")
        return self.exchange.request

    async def send(self, data: bytes) -> None:
        """Send bytes as they are and wait until the operating system has them."""
        if self._transport.is_closing():
            raise ConnectionResetError("the connection is closed")
        if self.exchange is not None and self.exchange.status is None:
            self.exchange.status = _status_of(data)
        self._transport.write(data)
        # Also when nothing holds us back: a step that only sends must not keep the loop to itself.
        await asyncio.sleep(0)
        await self._writable.wait()

    def close(self) -> None:
        """End the connection with FIN."""
        self._transport.close()

    def abort(self) -> None:
        """Break the connection off with RST."""
        raw = self._transport.get_extra_info("socket")
        with suppress(OSError):  # the client may have been faster, and the socket is closed
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
        self._transport.abort()

    # What the server calls.

    @property
    def closing(self) -> bool:
        """Whether the connection is closed or about to be."""
        return self._transport.is_closing()

    async def read_request(self) -> ReceivedRequest:
        """Read one request, its body included (which is thrown away).

        Raises:
            BadRequest: what came is not an HTTP/1.x request of bearable size.
        """
        self.exchange = None
        while (end := self._received.find(b"\r\n\r\n")) < 0 and len(self._received) <= MAX_HEAD_BYTES:
            await self._more()
        if not 0 <= end <= MAX_HEAD_BYTES:
            raise BadRequest(431, f"the request head is above {MAX_HEAD_BYTES} bytes")
        request = parse_head(bytes(self._received[:end]), self.number)
        del self._received[: end + 4]
        await self._skip(body_length(request))
        return request

    async def _skip(self, length: int) -> None:
        while length > len(self._received):
            length -= len(self._received)
            self._received.clear()
            await self._more()
        del self._received[:length]

    async def _more(self) -> None:
        self._arrived.clear()
        self._transport.resume_reading()
        await self._arrived.wait()


def _status_of(data: bytes) -> int | None:
    """Read the status from the first bytes of an answer; None if they are not a status line."""
    matched = _STATUS_LINE.match(data)
    return None if matched is None else int(matched[1])
