"""Memory of 10,000 calls in flight in one process, compared with the same calls made by aiohttp alone.

Every run of the tests measures 1,000 calls: the memory for each call is the same, and the test is faster.

The server is a separate process and answers no request until all have arrived. Two client processes measure their
resident memory while all calls are in flight: one uses aiohttp alone, the other uses the connector.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support import processes
from support.loop_and_memory import resident

from otel_connector import AsyncConnector

LIMIT = 20 * 1024
"""Bytes that a call in flight may need in addition to those that aiohttp needs."""

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


async def bare(session: aiohttp.ClientSession, url: str) -> Any:
    async with session.get(url) as response:
        return await response.json()


def measure(kind: str, calls: int, logfile: str) -> None:
    """Make the calls, and print the bytes that each call needed and the number of calls that succeeded."""

    async def run(port: int, server: processes.Process) -> dict[str, float]:
        url, loop = f"http://127.0.0.1:{port}/", asyncio.get_running_loop()
        connector = AsyncConnector(logfile, timeout=300)
        pool = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=pool, timeout=aiohttp.ClientTimeout(total=300)) as session:
            gc.collect()
            before = resident("VmRSS")
            if kind == "bare":
                tasks = [asyncio.ensure_future(bare(session, url)) for _ in range(calls)]
            else:
                tasks = [asyncio.ensure_future(connector.get(session, url, "P")) for _ in range(calls)]
            assert server.stdout is not None
            assert server.stdin is not None
            assert await loop.run_in_executor(None, server.stdout.readline) == "held\n"
            gc.collect()
            needed = resident("VmRSS") - before
            server.stdin.write("go\n")
            server.stdin.flush()
            values = await asyncio.gather(*tasks)
        return {"needed": needed / calls, "succeeded": values.count({"ok": True})}

    allow_descriptors(calls + SPARE)
    program, environment = processes.function(__file__, f"serve({calls})")
    with processes.Process(
        program, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        result = asyncio.run(run(int(server.stdout.readline()), server))
    sys.stdout.write(json.dumps(result))


def measured(kind: str, calls: int, logfile: Path) -> dict[str, float]:
    program, environment = processes.function(__file__, f"measure({kind!r}, {calls}, {str(logfile)!r})")
    done = processes.run(program, env=environment, capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr.decode()
    result: dict[str, float] = json.loads(done.stdout)
    return result


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("calls", [1_000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_a_call_in_flight_needs_at_most_20_kib_more_than_with_aiohttp_alone(calls: int, tmp_path: Path) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY and most < calls + SPARE:
        pytest.skip(f"the limit of open files is {most}")
    logs = {kind: tmp_path / f"{kind}.csv" for kind in ("bare", "connector")}
    results = {kind: measured(kind, calls, log) for kind, log in logs.items()}

    assert [result["succeeded"] for result in results.values()] == [calls, calls]
    assert logs["connector"].read_text(encoding="utf-8").count("\n") == calls + 1
    above = results["connector"]["needed"] - results["bare"]["needed"]
    assert above <= LIMIT, f"{above:,.0f} bytes above {results['bare']['needed']:,.0f}"
