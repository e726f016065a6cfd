"""Tests a program that uses the connector, with a real faulty server and a clock whose waits take no time."""

import asyncio
from pathlib import Path

import aiohttp

from otel_connector import AsyncConnector
from otel_connector.testing import FakeClock, FaultServer, ok, reset_in_body, retry_after


async def fetch(url: str, log: Path, clock: FakeClock) -> object:
    async with aiohttp.ClientSession() as session:
        return await AsyncConnector(log, clock=clock).get(session, url, "Mine")


def test_three_faults_and_a_success(tmp_path: Path) -> None:
    clock = FakeClock()
    with FaultServer() as server:
        server.script("/data", [500, retry_after(20), reset_in_body(), ok])
        assert asyncio.run(fetch(server.url("/data"), tmp_path / "logs.csv", clock)) == {"ok": True}
        assert server.statuses("/data") == [500, 503, 200, 200]
    assert clock.sleeps[1] == 20
    assert (tmp_path / "logs.csv").read_text().count("\n") == 2
