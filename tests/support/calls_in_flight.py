"""Calls that are all in flight at the same time, and the memory that each of them needs.

The client is a separate process: it measures its resident memory while all calls are in flight.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp

from otel_connector import AsyncConnector
from support import processes, waiting_server
from support.loop_and_memory import resident
from support.waiting_server import SPARE, allow_descriptors


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
    program, environment = processes.function(waiting_server.__file__, f"serve({calls})")
    with processes.Process(
        program, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        result = asyncio.run(run(int(server.stdout.readline()), server))
    sys.stdout.write(json.dumps(result))


def measured(kind: str, calls: int, logfile: Path) -> dict[str, float]:
    """Make the calls in a process of their own, and return what `measure` prints.

    Args:
        kind: ``bare`` for aiohttp alone, ``connector`` for the connector.
        calls: The number of calls.
        logfile: The log of the connector.
    """
    program, environment = processes.function(__file__, f"measure({kind!r}, {calls}, {str(logfile)!r})")
    done = processes.run(program, env=environment, capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr.decode()
    result: dict[str, float] = json.loads(done.stdout)
    return result
