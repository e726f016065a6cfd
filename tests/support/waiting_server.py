"""A server in a process of its own that answers no request until all have arrived.

It imports neither aiohttp nor the connector, which would take most of its time.
"""

from __future__ import annotations

import asyncio
import resource
import sys

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{"ok": true}'
SPARE = 200  # descriptors that are not connections


def allow_descriptors(count: int) -> bool:
    """Raise the limit of open files to `count`, or as far as allowed; return whether `count` was reached."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = count if most == resource.RLIM_INFINITY else min(count, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    return bool(allowed == count)


class UnansweredConnection(asyncio.Protocol):
    """A connection that adds itself to `held` when its request has arrived, and sends no response."""

    def __init__(self, held: list[asyncio.Transport]) -> None:
        self.held = held

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n"):
            self.held.append(self.transport)


def serve(calls: int) -> None:
    """Wait for `calls` requests, report that on stdout, and answer them all after the next line on stdin."""

    async def run() -> None:
        held: list[asyncio.Transport] = []
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: UnansweredConnection(held), "127.0.0.1", 0, backlog=calls)
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        while len(held) < calls:  # noqa: ASYNC110 - this process has nothing else to do
            await asyncio.sleep(0.01)
        sys.stdout.write("held\n")
        sys.stdout.flush()
        await loop.run_in_executor(None, sys.stdin.readline)
        for transport in held:
            transport.write(ANSWER)
        await loop.run_in_executor(None, sys.stdin.readline)

    allow_descriptors(calls + SPARE)
    asyncio.run(run())
