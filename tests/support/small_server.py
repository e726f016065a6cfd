"""A server in its own process that does as little as possible, for measurements of a client."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from support import processes

OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{"ok": true}'


NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


class SmallServer(asyncio.Protocol):
    """A connection. Paths that start with ``/gone`` get 404, and those with ``/busy`` get 503 for the first time.

    All others get 200 and a JSON document.
    """

    def __init__(self, busy: set[bytes]) -> None:
        self.busy = busy

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        if not data.endswith(b"\r\n\r\n"):
            raise RuntimeError("a request in several segments is not supported")
        if data.startswith(b"GET /gone"):
            self.transport.write(NOT_FOUND)
        elif data.startswith(b"GET /busy") and (path := data.split(maxsplit=2)[1]) not in self.busy:
            self.busy.add(path)
            self.transport.write(UNAVAILABLE)
        else:
            self.transport.write(OK)


def serve() -> None:
    """Print the port, and serve until standard input ends."""

    async def run() -> None:
        loop, busy = asyncio.get_running_loop(), set[bytes]()
        server = await loop.create_server(lambda: SmallServer(busy), "127.0.0.1", 0)
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await loop.run_in_executor(None, sys.stdin.read)

    asyncio.run(run())


@contextmanager
def small_server() -> Iterator[int]:
    """Run the server during the block, and yield its port."""
    command, environment = processes.function(__file__, "serve()")
    with processes.Process(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()
