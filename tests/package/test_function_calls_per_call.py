"""Limits the number of function calls per call of the connector. It does not depend on the machine or its load.

It replaces a measurement of time, which `tests/benchmarks` makes. Counted are calls of functions of the package and of
OpenTelemetry, and the C functions that these call. Calls in aiohttp are not counted: the connector does not change
them. If a change exceeds a limit, it may still be right, but its commit must state the reason for the new limit.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import aiohttp
import opentelemetry
import pytest
from support.logs import Log
from support.sdk import SDK

import otel_connector
from otel_connector import AsyncConnector
from otel_connector._call import _bounded_content
from otel_connector.testing import Connection, FaultServer, ok, respond

BODY = b'{"ok": true}'
COUNTED = (str(Path(otel_connector.__file__).parent) + os.sep, str(next(iter(opentelemetry.__path__))) + os.sep)


async def function_calls_per_get(
    subject: AsyncConnector, session: aiohttp.ClientSession, url: str, reading: threading.Event | None = None
) -> int:
    """Return the number of function calls of one `get`, after warm-up calls that create what is created only once.

    `reading` is set when the connector awaits the body.
    """
    for _ in range(3):
        await subject.get(session, url, "P")
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        del argument
        if reading is not None and frame.f_code.co_name == "readany":
            reading.set()
        count += event in {"call", "c_call"} and frame.f_code.co_filename.startswith(COUNTED)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        await subject.get(session, url, "P")
    finally:
        sys.setprofile(before)
    return count


# Measured with CPython 3.11 and the SDK 1.45: 95, 128 and 448. Other versions differ by up to 3
@pytest.mark.parametrize(("kind", "limit"), [("nothing", 96), ("csv", 130), ("csv with attempts", 130), ("full", 452)])
async def test_the_number_of_function_calls_per_call_is_limited(
    kind: str, limit: int, server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", ok)
    options: dict[str, Any] = sdk.providers if kind == "full" else {}
    path = None if kind == "nothing" else log.path
    subject = AsyncConnector(path, attempts=kind == "csv with attempts", **options)
    count = await function_calls_per_get(subject, session, server.url("/x"))
    assert limit / 2 < count <= limit, "if it is below half of the limit, the calls are no longer counted correctly"


# Measured as above: 128 and 228
@pytest.mark.parametrize(("coding", "limit"), [("identity", 131), ("gzip", 233)])
async def test_the_number_of_function_calls_for_a_body_after_its_head_is_limited(
    coding: str, limit: int, server: FaultServer, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The number of seconds after which a call lets other tasks run once more, which takes 9 function calls. On
    # a busy machine, the body arrives later than the package's limit
    monkeypatch.setattr(_bounded_content, "_WORK_SECONDS", 60.0)
    reading = threading.Event()
    body = gzip.compress(BODY) if coding == "gzip" else BODY

    async def later(connection: Connection) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nContent-Encoding: {coding}\r\n\r\n"
        await connection.send(head.replace("Content-Encoding: identity\r\n", "").encode())
        await asyncio.to_thread(reading.wait)
        await connection.send(body)

    server.script("/x", [*[respond(body=BODY)] * 3, later])
    count = await function_calls_per_get(AsyncConnector(None), session, server.url("/x"), reading)
    assert limit / 2 < count <= limit, "if it is below half of the limit, the calls are no longer counted correctly"
