"""The option ``--loop`` runs the tests on the event loop that it names."""

from __future__ import annotations

import asyncio

import pytest


async def test_the_event_loop_is_the_requested_one(pytestconfig: pytest.Config) -> None:
    loop, requested = asyncio.get_running_loop(), pytestconfig.getoption("--loop")
    assert (type(loop).__module__ == "uvloop") is (requested == "uvloop")
    assert loop.get_debug() is (requested == "debug")
