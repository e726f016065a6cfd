"""Tests of `support.blocking`: a blocking call of the package in an event loop fails a test."""

from __future__ import annotations

import time
from typing import Any

import aiohttp
import pytest
from blockbuster import BlockingError
from support.logs import Log

import otel_connector
from otel_connector import AsyncConnector
from otel_connector.testing import FaultServer, ok


def sleep_of(file: str) -> Any:
    """Return a function, as if it were in that file of the package, that sleeps."""
    defined: dict[str, Any] = {"time": time}
    exec(compile("def sleep(): time.sleep(0)", f"{otel_connector.__path__[0]}/{file}", "exec"), defined)
    return defined["sleep"]


async def test_a_blocking_call_of_the_package_in_an_event_loop_is_an_error() -> None:
    time.sleep(0)  # noqa: ASYNC251 - of other code
    for _ in range(2):  # what is known of the first stack changes nothing
        with pytest.raises(BlockingError, match=r"Blocking call to time\.sleep"):
            sleep_of("_connector.py")()
        sleep_of("testing/_server.py")()  # which has a thread of its own


async def test_the_writer_of_rows_may_block(server: FaultServer, session: aiohttp.ClientSession, log: Log) -> None:
    server.script("/x", ok)
    for _ in range(2):
        assert await AsyncConnector(log.path).get(session, server.url("/x"), "P") == {"ok": True}
    assert len(log.records()) == 2
