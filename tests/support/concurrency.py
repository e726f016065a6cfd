"""A step of `FaultServer` that records how many requests are in flight at a time."""

from __future__ import annotations

from otel_connector.testing import Connection, slow_headers


class ConcurrencyRecorder:
    """A step that answers after `seconds`; `most` is the largest number of requests in flight at a time."""

    def __init__(self, seconds: float = 0.02) -> None:
        self.most = self.now = 0
        self._step = slow_headers(seconds)

    async def __call__(self, connection: Connection) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self._step.play(connection)
        finally:
            self.now -= 1
