"""A server in a process of its own that answers with as little as it can, for clients that are measured."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from support import processes

OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{"ok": true}'


GONE = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


class Answering(asyncio.Protocol):
    """A connection whose requests are answered by what their path begins with; a busy one only the second time."""

    def __init__(self, busy: set[bytes]) -> None:
        self.busy = busy

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        if not data.endswith(b"\r\n\r\n"):
            raise RuntimeError("half a request: not from this client")
        if data.startswith(b"GET /gone"):
            self.transport.write(GONE)
        elif data.startswith(b"GET /busy") and (path := data.split(maxsplit=2)[1]) not in self.busy:
            self.busy.add(path)
            self.transport.write(BUSY)
        else:
            self.transport.write(OK)


def serve() -> None:
    """Print the port, and answer until standard input ends."""

    async def run() -> None:
        loop, busy = asyncio.get_running_loop(), set[bytes]()
        server = await loop.create_server(lambda: Answering(busy), "127.0.0.1", 0)
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await loop.run_in_executor(None, sys.stdin.read)

    asyncio.run(run())


@contextmanager
def small_server() -> Iterator[int]:
    """Run the server for the time of the block, and yield its port."""
    command, environment = processes.function(__file__, "serve()")
    with processes.Process(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()
