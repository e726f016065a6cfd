"""The event loops of the option ``--loop``, and a way to use the chosen one in a test that is not async."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "debug": asyncio.new_event_loop,
    "uvloop": _uvloop,
}


def run_on(loop_name: str, main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `asyncio.run` does, on a new event loop of that name."""
    with contextlib.closing(LOOPS[loop_name]()) as loop:
        loop.set_debug(enabled=loop_name == "debug")
        try:
            return loop.run_until_complete(main)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
