"""The server of the benchmarks, in its own process and on its own core. It does little, so that the client is measured.

The response of ``/N`` is a JSON document of about N bytes; the query is ignored. ``/flaky`` responds alternately with
503 and the document, and ``/slow`` after 20 ms, like a server on another machine.
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
"""Bytes of the usual document, about."""


_SLOW = 0.02  # seconds


def document(size: int) -> bytes:
    """Return a JSON document of about `size` bytes. Large documents contain long texts, as those of real APIs."""
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
    """Responds to one request of a connection at a time."""

    responses: dict[bytes, bytes] = {}  # noqa: RUF012 - a cache that all connections share
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
    """Raise the limit of open descriptors to the allowed maximum, and return it."""
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
    """Run the server, pin this process to another core, and yield the URL."""
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
