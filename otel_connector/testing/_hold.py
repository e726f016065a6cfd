"""Steps that stop at a known point until the test releases them, so that no test waits for a fixed time.

Does not know the server and its scripts.

Used by ``testing``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Generator
from operator import methodcaller

from otel_connector._arguments import checked_instance, checked_int, checked_seconds
from otel_connector._units import exact_duration
from otel_connector.testing._answers import ok_in_halves
from otel_connector.testing._steps import Connection, Step, ok


class Arrival:
    """An event that happens once. It can be awaited from any event loop, or waited for from any thread.

    ``await arrival`` has no timeout; use `asyncio.wait_for` if the event may fail to happen.
    """

    def __init__(self) -> None:
        self._future: concurrent.futures.Future[None] = concurrent.futures.Future()
        # A running future cannot be cancelled, so a waiter that is cancelled does not affect the others
        self._future.set_running_or_notify_cancel()

    def __await__(self) -> Generator[object, None, None]:
        """Wait for the event in the caller's event loop."""
        return asyncio.wrap_future(self._future).__await__()

    def __bool__(self) -> bool:
        """Return whether the event has happened."""
        return self._future.done()

    def wait(self, timeout: float = 5.0) -> None:
        """Block the calling thread until the event has happened. Do not call this in an event loop.

        Args:
            timeout: Seconds, 0 or more.

        Raises:
            TypeError, ValueError: `timeout` is not a finite number, 0 or more.
            TimeoutError: The event did not happen in time.
        """
        try:
            self._future.result(checked_seconds("timeout", timeout))
        except concurrent.futures.TimeoutError:  # a class of its own before Python 3.11
            raise TimeoutError(f"the event did not happen within {exact_duration(timeout)}") from None

    def happen(self) -> None:
        """Set the event. Further calls do nothing."""
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            self._future.set_result(None)


class Hold:
    """A step that stops at a known point: an event reports that it has stopped, and `release` lets it continue.

    Made by `hold` and `hold_in_body`. The step can serve many requests: each is held until `release`, and none after.

    Attributes:
        step: The step, for a script.
        arrived: Happens when `arrivals` requests are held.
    """

    def __init__(self, first: bytes, rest: Step, arrivals: int, name: str) -> None:
        self.step = Step(name=name, play=self._play)
        self.arrived = Arrival()
        self._first = first
        self._rest = rest
        self._missing = checked_int("arrivals", arrivals)
        self._released = Arrival()

    def release(self) -> None:
        """Let the held requests and all later ones continue. Any thread may call this; further calls do nothing."""
        self._released.happen()

    async def _play(self, connection: Connection) -> None:
        if self._first:
            await connection.send(self._first)
        self._missing -= 1
        if self._missing <= 0:
            self.arrived.happen()
        await self._released
        await self._rest.play(connection)


def hold(then: Step = ok, *, arrivals: int = 1) -> Hold:
    """Hold a request before the first byte of its response.

    Args:
        then: The step to play after the release.
        arrivals: The number of held requests at which `Hold.arrived` happens, 1 or more.

    Raises:
        TypeError, ValueError: An argument has a wrong type or is out of range.
    """
    return Hold(b"", checked_instance("then", then, Step), arrivals, "hold()")


def hold_in_body(*, arrivals: int = 1) -> Hold:
    """Respond as `ok` does, but hold in the middle of the body: the headers and the first bytes are sent.

    Args:
        arrivals: The number of held requests at which `Hold.arrived` happens, 1 or more.

    Raises:
        TypeError, ValueError: `arrivals` is not such a number.
    """
    first, rest = ok_in_halves()
    return Hold(first, Step(name="rest of body", play=methodcaller("send", rest)), arrivals, "hold_in_body()")
