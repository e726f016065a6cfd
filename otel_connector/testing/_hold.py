"""Steps that stop at a known point until the test lets them go, so that no test has to sleep and hope."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Generator

from otel_connector._arguments import checked_seconds
from otel_connector.testing._answers import ok_in_halves
from otel_connector.testing._arguments import instance, whole
from otel_connector.testing._steps import Connection, Step, ok


class Arrival:
    """Something that happens once: to be awaited from any event loop, or waited for from any thread.

    ``await arrival`` has no timeout of its own: put it in `asyncio.wait_for` where the event may fail to come.
    """

    def __init__(self) -> None:
        self._future: concurrent.futures.Future[None] = concurrent.futures.Future()
        # A running future cannot be cancelled: a waiter that gives up must not take the event from the others.
        self._future.set_running_or_notify_cancel()

    def __await__(self) -> Generator[object, None, None]:
        """Wait for it in the caller's event loop."""
        return asyncio.wrap_future(self._future).__await__()

    def __bool__(self) -> bool:
        """Whether it has happened."""
        return self._future.done()

    def wait(self, timeout: float = 5.0) -> None:
        """Block the calling thread until it has happened; not for use in an event loop.

        Args:
            timeout: Seconds.

        Raises:
            TypeError, ValueError: `timeout` is no finite number, 0 or more.
            TimeoutError: it did not happen in time.
        """
        try:
            self._future.result(checked_seconds("timeout", timeout))
        except concurrent.futures.TimeoutError:  # a class of its own before Python 3.11
            raise TimeoutError(f"it did not happen within {timeout} s") from None

    def happen(self) -> None:
        """Let it happen; further calls do nothing."""
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            self._future.set_result(None)


class Hold:
    """A step that stops at a known point, and both ends of the rope.

    Made by `hold` and `hold_in_body`. It may stand for many requests: all are held until `release`, none after it.

    Attributes:
        step: To be put in a script.
        arrived: Happens once as many requests as were asked for are held.
    """

    def __init__(self, first: bytes, then: Step, arrivals: int, name: str) -> None:
        self.step = Step(name=name, play=self._play)
        self.arrived = Arrival()
        self._first = first
        self._then = then
        self._missing = whole("arrivals", arrivals, 1)
        self._released = Arrival()

    def release(self) -> None:
        """Let the held requests, and all later ones, go on. From any thread; further calls do nothing."""
        self._released.happen()

    async def _play(self, connection: Connection) -> None:
        if self._first:
            await connection.send(self._first)
        self._missing -= 1
        if self._missing <= 0:
            self.arrived.happen()
        await self._released
        await self._then.play(connection)


def hold(then: Step = ok, *, arrivals: int = 1) -> Hold:
    """Hold a request before the first byte of its answer.

    Args:
        then: What to do on release.
        arrivals: How many requests must be held for `Hold.arrived` to happen, 1 or more.

    Raises:
        TypeError, ValueError: an argument is not as said.
    """
    return Hold(b"", instance("then", then, Step), arrivals, "hold()")


def hold_in_body(*, arrivals: int = 1) -> Hold:
    """Answer as `ok` does, but hold in the middle of the body: headers and first bytes are sent.

    Args:
        arrivals: How many requests must be held for `Hold.arrived` to happen, 1 or more.

    Raises:
        TypeError, ValueError: `arrivals` is no such number.
    """
    first, rest = ok_in_halves()

    async def finish(connection: Connection) -> None:
        await connection.send(rest)

    return Hold(first, Step(name="rest of body", play=finish), arrivals, "hold_in_body()")
