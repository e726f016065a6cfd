"""One connection of a client to the `FaultServer`: reads requests, sends bytes unchanged, and ends with FIN or RST.

Does not know scripts and steps.

Used by ``testing._server``.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from otel_connector.testing._request import MAX_HEAD_BYTES, BadRequest, ReceivedRequest, body_length, parse_head

# Closing with a linger time of 0 sends RST. The two fields are shorts on Windows and ints elsewhere
_LINGER_0 = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})")


@dataclass(slots=True)
class ServedRequest:
    """One request and the status of its response; None if no status line has been sent."""

    request: ReceivedRequest
    status: int | None = None


class Peer(asyncio.Protocol):
    """A `Connection` on an asyncio transport.

    `serve` runs as a task of the connection. The task is cancelled when the connection is lost; this ends steps that
    wait without a limit.

    Args:
        number: The number of the connection, from 1.
        peers: The open connections of the server; this object adds and removes itself.
        serve: Answers the requests of a connection.
    """

    def __init__(self, number: int, peers: set[Peer], serve: Callable[[Peer], Coroutine[None, None, None]]) -> None:
        self.number = number
        self.served: ServedRequest | None = None
        self._peers = peers
        self._serve = serve
        self._received = bytearray()
        self._new_data = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    # Called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the task that serves the connection."""
        self._transport = cast("asyncio.Transport", transport)
        # Data must not stay in asyncio's buffer, because `abort` would discard data that a step has sent before.
        # With a limit of 0, asyncio's TLS transport would never resume writing; so its limit is 1
        self._transport.set_write_buffer_limits(high=0 if transport.get_extra_info("sslcontext") is None else 1)
        self._peers.add(self)
        self.task = asyncio.get_running_loop().create_task(self._serve(self))

    def data_received(self, data: bytes) -> None:
        """Buffer the bytes. Stop reading from a client that sends too much."""
        self._received += data
        self._new_data.set()
        if len(self._received) > MAX_HEAD_BYTES:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio calls it
        """Cancel the task of the connection."""
        self._peers.discard(self)
        self.task.cancel()
        # Python 3.10's TLS transport issues a ResourceWarning unless it is also closed here
        self._transport.close()

    def pause_writing(self) -> None:
        """Let `send` wait."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let `send` continue."""
        self._writable.set()

    # Called by a step

    @property
    def request(self) -> ReceivedRequest:
        """The request to answer."""
        if self.served is None:
            raise RuntimeError("no request has been read on this connection")
        return self.served.request

    async def send(self, data: bytes) -> None:
        """Send bytes unchanged, and wait until the operating system has accepted them."""
        if self._transport.is_closing():
            raise ConnectionResetError("the connection is closed")
        if self.served is not None and self.served.status is None:
            self.served.status = _status_of(data)
        self._transport.write(data)
        # A step that only sends must also let other tasks run
        await asyncio.sleep(0)
        await self._writable.wait()

    def close(self) -> None:
        """Close the connection with FIN."""
        self._transport.close()

    def abort(self) -> None:
        """Close the connection with RST."""
        raw = self._transport.get_extra_info("socket")
        with suppress(OSError):  # the client has closed the connection, and the socket is closed
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
        self._transport.abort()

    # Called by the server

    @property
    def closing(self) -> bool:
        """Whether the connection is closed or being closed."""
        return self._transport.is_closing()

    async def read_request(self) -> ReceivedRequest:
        """Read one request. Its body is read and discarded.

        Raises:
            BadRequest: It is not an HTTP/1.x request, or its head is too large.
        """
        self.served = None
        while (end := self._received.find(b"\r\n\r\n")) < 0 and len(self._received) <= MAX_HEAD_BYTES:
            await self._receive_more()
        if not 0 <= end <= MAX_HEAD_BYTES:
            raise BadRequest(431, f"the request head is larger than {MAX_HEAD_BYTES} bytes")
        request = parse_head(bytes(self._received[:end]), self.number)
        del self._received[: end + 4]
        await self._skip(body_length(request))
        return request

    async def _skip(self, length: int) -> None:
        while length > len(self._received):
            length -= len(self._received)
            self._received.clear()
            await self._receive_more()
        del self._received[:length]

    async def _receive_more(self) -> None:
        self._new_data.clear()
        self._transport.resume_reading()
        await self._new_data.wait()


def _status_of(data: bytes) -> int | None:
    """Return the status in the first bytes of a response; None if they are not a status line."""
    matched = _STATUS_LINE.match(data)
    return None if matched is None else int(matched[1])
