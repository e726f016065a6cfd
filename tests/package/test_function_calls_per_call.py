"""What a call costs, counted in function calls: a figure that no machine and no load changes.

It stands in for the time, which `tests/benchmarks` measures: a call that does more calls more. Counted are the calls of
our own functions and OpenTelemetry's, and what they call in C; aiohttp's are those of any call. A bound that is passed
is no mistake yet, but a change that has to say what it is for.
"""

from __future__ import annotations

import os
import sys
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
from otel_connector.testing import FaultServer, ok

COUNTED = (str(Path(otel_connector.__file__).parent) + os.sep, str(next(iter(opentelemetry.__path__))) + os.sep)


async def calls_of(subject: AsyncConnector, session: aiohttp.ClientSession, url: str) -> int:
    """Count what one `get` calls, once everything that is made only once is there."""
    for _ in range(3):
        await subject.get(session, url, "P")
    count = 0

    def see(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        del argument
        count += event in {"call", "c_call"} and frame.f_code.co_filename.startswith(COUNTED)

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        await subject.get(session, url, "P")
    finally:
        sys.setprofile(before)
    return count


# Measured on CPython 3.11 and 3.13 with the SDK 1.45: 76, 107 and 417; other versions count somewhat more or less
@pytest.mark.parametrize(("kind", "most"), [("nothing", 88), ("csv", 124), ("full", 480)])
async def test_function_calls(
    kind: str, most: int, server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", ok)
    options: dict[str, Any] = sdk.providers if kind == "full" else {}
    subject = AsyncConnector(None if kind == "nothing" else log.path, **options)
    count = await calls_of(subject, session, server.url("/x"))
    assert most / 2 < count <= most, "half of it means that nothing is counted any more"
