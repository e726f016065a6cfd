"""Faulty servers and virtual time, for the tests of this package and of programs that use the connector.

A `FaultServer` is a real HTTP server on the loopback interface that misbehaves according to a script. A `FakeClock`
replaces the connector's clock, so that no test waits for a backoff::

    from otel_connector.testing import FaultServer, ok, retry_after, slow_body

    with FaultServer() as server:
        server.script("/data", [500, retry_after(3), slow_body(2), ok])
        ...  # request server.url("/data") four times, with any client
        assert server.statuses("/data") == [500, 503, 200, 200]

Other faults are written as functions. A step is an async callable that receives the `Connection` after the request has
been read. It runs in the server's own event loop, may use `asyncio.sleep`, and is cancelled when the client disconnects
or the server closes::

    async def half_a_status_line(connection):
        await connection.send(b"HTTP/1.1 20")
        connection.close()


    server.script("/data", [half_a_status_line, ok])

``FaultServer(tls=True)`` and the brotli and zstd bodies need ``pip install 'otel-connector[testing]'``. This package
does not know test frameworks or OpenTelemetry, and of the connector it knows only the interface of the clock.

Used by applications and ``cli._demo``.
"""

from otel_connector.testing._fake_clock import FakeClock
from otel_connector.testing._hold import Arrival, Hold, hold, hold_in_body
from otel_connector.testing._request import ReceivedRequest
from otel_connector.testing._server import FaultServer
from otel_connector.testing._steps import (
    Connection,
    Step,
    bomb,
    compressed,
    corrupt_gzip,
    disconnect,
    drip,
    empty,
    endless,
    garbage,
    json_body,
    ok,
    redirect,
    reset,
    reset_in_body,
    respond,
    retry_after,
    silent,
    slow_body,
    slow_headers,
    truncated,
    truncated_chunks,
)

__all__ = [
    "Arrival",
    "Connection",
    "FakeClock",
    "FaultServer",
    "Hold",
    "ReceivedRequest",
    "Step",
    "bomb",
    "compressed",
    "corrupt_gzip",
    "disconnect",
    "drip",
    "empty",
    "endless",
    "garbage",
    "hold",
    "hold_in_body",
    "json_body",
    "ok",
    "redirect",
    "reset",
    "reset_in_body",
    "respond",
    "retry_after",
    "silent",
    "slow_body",
    "slow_headers",
    "truncated",
    "truncated_chunks",
]
