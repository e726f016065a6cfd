"""What one call costs beside a bare `session.get` and `json()`: CPU time, as ratios from one run.

Run it from the project's root, on a machine that does nothing else::

    python tests/benchmarks/call_cost.py

The client is pinned to one core and the server, a process of its own, to another. Every round runs every variant in
random order, and a variant's figure is the median of its ratios to the bare calls of the same round, because the speed
of a shared machine drifts. No absolute time is printed: it would say more about the machine than about the code.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import aiohttp
import uvloop
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, TraceIdRatioBased

from otel_connector import AsyncConnector

BODY = json.dumps({"id": 7, "name": "a small document", "values": [1, 2, 3]}).encode()
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)

Call = Callable[[aiohttp.ClientSession, str], Awaitable[object]]


class Answer(asyncio.Protocol):
    """Answers whatever arrives: the cheapest server there is, so that the client is what is measured."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n"):
            self._transport.write(RESPONSE)


def serve(ready: Connection, core: int) -> None:
    os.sched_setaffinity(0, {core})

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Answer, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


class Discard(SpanExporter):
    """Takes spans and forgets them: what the SDK costs without what a network would."""

    def export(self, spans: object) -> SpanExportResult:
        del spans
        return SpanExportResult.SUCCESS


def ours(logfile: Path | None, sampler: Sampler | None = None) -> Call:
    tracing: TracerProvider | None = None
    metrics: MeterProvider | None = None
    if sampler is not None:
        tracing = TracerProvider(sampler, resource=Resource.get_empty(), shutdown_on_exit=False)
        tracing.add_span_processor(BatchSpanProcessor(Discard(), max_queue_size=100_000))
        metrics = MeterProvider([InMemoryMetricReader()], resource=Resource.get_empty(), shutdown_on_exit=False)
    connector = AsyncConnector(logfile, tracer_provider=tracing, meter_provider=metrics)

    async def call(session: aiohttp.ClientSession, url: str) -> object:
        return await connector.get(session, url, "bench")

    return call


async def bare(session: aiohttp.ClientSession, url: str) -> object:
    async with session.get(url) as response:
        return await response.json()


async def cpu_per_call(call: Call, session: aiohttp.ClientSession, url: str, calls: int) -> float:
    for _ in range(calls // 10):
        await call(session, url)
    started = time.process_time_ns()
    for _ in range(calls):
        await call(session, url)
    return (time.process_time_ns() - started) / calls


async def measure(port: int, folder: Path, rounds: int, calls: int) -> dict[str, list[float]]:
    url = f"http://127.0.0.1:{port}/data"
    variants: dict[str, Call] = {
        "bare aiohttp": bare,
        "no SDK, no CSV": ours(None),
        "CSV only": ours(folder / "csv.csv"),
        "1 % sampled, metrics, CSV": ours(folder / "sampled.csv", TraceIdRatioBased(0.01)),
        "in full, spans discarded": ours(folder / "full.csv", ALWAYS_ON),
    }
    ratios: dict[str, list[float]] = {name: [] for name in variants}
    async with aiohttp.ClientSession() as session:
        for _ in range(rounds):
            order = random.sample(list(variants), len(variants))
            spent = {name: await cpu_per_call(variants[name], session, url, calls) for name in order}
            for name, nanoseconds in spent.items():
                ratios[name].append(nanoseconds / spent["bare aiohttp"])
    return ratios


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--rounds", type=int, default=9, help="rounds (default 9)")
    arguments.add_argument("--calls", type=int, default=2_000, help="calls a variant and round (default 2000)")
    options = arguments.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    receiving, sending = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("spawn")
    server = context.Process(target=serve, args=(sending, cores[-1]), daemon=True)
    server.start()
    os.sched_setaffinity(0, {cores[0]})
    try:
        with tempfile.TemporaryDirectory() as folder:
            ratios = uvloop.run(measure(receiving.recv(), Path(folder), options.rounds, options.calls))
    finally:
        server.terminate()
        server.join()
    print("| variant | CPU per call, bare aiohttp = 1 | rounds from | to |")
    print("|---|--:|--:|--:|")
    for name, found in ratios.items():
        print(f"| {name} | {statistics.median(found):.2f} | {min(found):.2f} | {max(found):.2f} |")


if __name__ == "__main__":
    main()
