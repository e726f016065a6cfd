"""Tests of `support.blocking`: a blocking call of the package in an event loop fails a test."""

from __future__ import annotations

import time
from pathlib import Path

import aiohttp
import pytest
from blockbuster import BlockingError
from support.logs import Log, call, write

from otel_connector import AsyncConnector
from otel_connector._csv._check import check
from otel_connector.testing import FaultServer, ok


async def test_a_file_that_the_package_reads_in_an_event_loop_is_an_error(tmp_path: Path) -> None:
    log = write(tmp_path / "logs.csv", [call(0)])
    for _ in range(2):  # what is known of the first stack changes nothing
        with pytest.raises(BlockingError, match="Blocking call to "):
            check(log)


async def test_other_code_and_the_writer_of_rows_may_block(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", ok)
    time.sleep(0)  # noqa: ASYNC251 - that is the point
    for _ in range(2):
        assert await AsyncConnector(log.path).get(session, server.url("/x"), "P") == {"ok": True}
    assert len(log.records()) == 2
