"""The server of the benchmarks, in a process and on a core of its own: a cheap one, so that the client is measured.

``/N`` answers with a JSON document of some N bytes, whatever its query; ``/flaky`` with 503 first and the document
then, in turn; ``/slow`` after 20 ms, as a server that is not on this machine.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import resource
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import cast

import uvloop

SMALL = 60
"""Bytes of the usual document."""


_SLOW = 0.02  # seconds


def document(size: int) -> bytes:
    """Return a JSON document of some `size` bytes, long texts in long ones, as APIs have them."""
    whole = json.dumps({"id": 7, "name": "a document", "values": [1, 2, 3], "text": []})
    texts = ["x" * 1_000] * max((size - len(whole)) // 1_004, 0)
    return json.dumps({"id": 7, "name": "a document", "values": [1, 2, 3], "text": texts}).encode()


def response(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        status.encode(),
        len(body),
        body,
    )


class Answer(asyncio.Protocol):
    """Answers one request at a time of each connection."""

    responses: dict[bytes, bytes] = {}  # noqa: RUF012 - filled as paths are asked for, by all connections
    flaky = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        if not data.endswith(b"\r\n\r\n"):
            return
        path = data[5 : data.index(b" ", 5)].partition(b"?")[0]
        if path == b"flaky":
            Answer.flaky = not Answer.flaky
            self._transport.write(response("503 Service Unavailable" if Answer.flaky else "200 OK", document(SMALL)))
            return
        if path == b"slow":
            answer = response("200 OK", document(SMALL))
            asyncio.get_running_loop().call_later(_SLOW, self._transport.write, answer)
            return
        if path not in self.responses:
            self.responses[path] = response("200 OK", document(int(path)))
        self._transport.write(self.responses[path])


def allow_descriptors() -> int:
    """Let this process open as many files and connections as it may, and return how many that are."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def _serve(ready: Connection, core: int) -> None:
    os.sched_setaffinity(0, {core})
    allow_descriptors()

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Answer, "127.0.0.1", 0, backlog=16_384)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


@contextmanager
def server() -> Generator[str]:
    """Run it, pin this process to another core, and give its URL."""
    cores = sorted(os.sched_getaffinity(0))
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(sending, cores[-1]), daemon=True)
    process.start()
    os.sched_setaffinity(0, {cores[0]})
    try:
        yield f"http://127.0.0.1:{receiving.recv()}"
    finally:
        os.sched_setaffinity(0, set(cores))
        process.terminate()
        process.join()
