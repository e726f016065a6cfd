"""The addresses of hosts: after a failed connection, the next attempt looks the host up again."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from otel_connector import AsyncConnector, ConnectFailed, ConnectorError
from otel_connector.testing import FakeClock, FaultServer, disconnect, ok, redirect

REFUSING = "127.0.0.2"  # refuses connections: the server listens on 127.0.0.1 only
OK = {"ok": True}


class Moving(AbstractResolver):
    """A resolver whose first answers are an address that refuses connections."""

    def __init__(self, wrong: int) -> None:
        self.wrong = wrong
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        del family
        self.asked.append(host)
        address = REFUSING if self.asked.count(host) <= self.wrong else "127.0.0.1"
        return [
            ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0),
        ]

    async def close(self) -> None:
        pass


def session_with(resolver: AbstractResolver) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=resolver))


async def test_a_host_that_has_moved_is_found_by_the_next_attempt(server: FaultServer) -> None:
    server.script("/x", ok)
    resolver = Moving(wrong=2)
    async with session_with(resolver) as session:
        connector = AsyncConnector(None, n_tries=3, clock=FakeClock())
        assert await connector.get(session, f"http://moved.test:{server.port}/x", "P") == OK
    assert resolver.asked == ["moved.test"] * 3


async def test_the_host_of_a_redirect_is_looked_up_again(server: FaultServer) -> None:
    server.script("/x", ok)
    server.script("/from", redirect(f"http://moved.test:{server.port}/x"))
    resolver = Moving(wrong=1)
    async with session_with(resolver) as session:
        assert await AsyncConnector(None, clock=FakeClock()).get(session, server.url("/from"), "P") == OK
    assert resolver.asked == ["moved.test"] * 2


async def test_the_host_of_a_proxy_is_looked_up_again(server: FaultServer) -> None:
    server.script("/x", ok)
    resolver = Moving(wrong=1)
    async with session_with(resolver) as session:
        connector = AsyncConnector(None, n_tries=2, clock=FakeClock())
        proxy = f"http://proxy.test:{server.port}"
        with pytest.raises(ConnectFailed):
            await connector.get(session, "https://target.test/x", "P", proxy=proxy)
        assert resolver.asked == ["proxy.test"] * 2


async def test_a_host_that_answers_is_looked_up_once(server: FaultServer) -> None:
    """An error status and a connection that breaks in the body say nothing about the address."""
    server.script("/x", [503, ok])
    resolver = Moving(wrong=0)
    async with session_with(resolver) as session:
        assert (
            await AsyncConnector(None, clock=FakeClock()).get(session, f"http://here.test:{server.port}/x", "P") == OK
        )
    assert resolver.asked == ["here.test"]


async def test_a_host_that_closes_connections_is_looked_up_again(server: FaultServer) -> None:
    server.script("/x", [disconnect, disconnect, ok])
    resolver = Moving(wrong=0)
    async with session_with(resolver) as session:
        assert (
            await AsyncConnector(None, clock=FakeClock()).get(session, f"http://here.test:{server.port}/x", "P") == OK
        )
    assert len(resolver.asked) > 1


@pytest.mark.parametrize("connector", [aiohttp.UnixConnector, aiohttp.BaseConnector])
async def test_a_connector_without_a_cache_of_addresses_is_retried(
    connector: Callable[..., aiohttp.BaseConnector], tmp_path: Any
) -> None:
    options = {"path": str(tmp_path / "socket")} if connector is aiohttp.UnixConnector else {}
    async with aiohttp.ClientSession(connector=connector(**options)) as session:
        subject = AsyncConnector(None, n_tries=2, clock=FakeClock())
        with pytest.raises(otel_error) as caught:
            await subject.get(session, "http://host.test/", "P")
    assert caught.value.attempts >= 1


otel_error = ConnectorError
