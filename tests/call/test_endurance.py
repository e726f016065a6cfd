"""Endurance test: hundreds of thousands of calls in one process leave nothing behind but their rows.

Run it with a separate command::

    python -m pytest -m soak -n 0 --timeout 0 -s tests/call/test_endurance.py

``OTEL_CONNECTOR_SOAK_CALLS`` is the number of calls. The default is 200,000, which takes some minutes; releases are
tested with 10,000,000. Much smaller numbers consist of warm-up only. Needs Linux, for ``/proc``.

The server and the client run in separate processes. The server sends minimal responses. The client writes the CSV log,
uses the SDK's tracing and metrics, and samples its resident memory, file descriptors and threads while it makes calls.
One call in fifty fails and one in fifty is retried, so that failures are covered too.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import sys
import threading
from array import array
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from support import processes
from support.loop_and_memory import resident
from support.small_server import small_server

from otel_connector import AsyncConnector, RetryPolicy

CALLS = int(os.environ.get("OTEL_CONNECTOR_SOAK_CALLS", "200000"))
WORKERS = 20
SAMPLE_COUNT = 100
WARM_UP = 0.25
"""Share of the calls after which memory kept on purpose, such as the recently written calls, has its full size."""

LIMIT = 2**20
"""Bytes of resident memory that a million calls may add."""

NOISE = 2**18
"""Bytes by which the memory fluctuates. In a short run this is most of the growth that is allowed."""

ONE_IN = 50  # one call in 50 gets a 404 response, and another one a 503 response first


class DiscardingSpanExporter(SpanExporter):
    """Discards all spans."""

    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS


class DiscardingMetricExporter(MetricExporter):
    """Discards all metrics."""

    def export(self, metrics_data: Any, timeout_millis: float = 10_000, **_: Any) -> MetricExportResult:
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        """Do nothing."""


class Samples:
    """Memory, descriptors and threads by number of calls. Allocated in advance, so that sampling adds no memory."""

    def __init__(self) -> None:
        self.columns = {name: array("q", [0] * SAMPLE_COUNT) for name in ("calls", "memory", "descriptors", "threads")}
        self.length = 0

    def add(self, calls: int) -> None:
        """Add a sample. Garbage and free pages are released before, so that only memory in use is counted."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        found = (calls, resident("VmRSS"), descriptors, threading.active_count())
        for column, value in zip(self.columns.values(), found, strict=True):
            column[self.length] = value
        self.length += 1


async def make_calls(connector: AsyncConnector, port: int, calls: int, sample: Callable[[int], None]) -> int:
    """Make the calls, `WORKERS` at a time, and sample at regular intervals. Return how many succeeded."""
    numbers, every, succeeded = iter(range(calls)), calls // SAMPLE_COUNT, 0

    async def work(session: aiohttp.ClientSession) -> None:
        nonlocal succeeded
        for number in numbers:
            kind = {0: "gone", 1: "busy"}.get(number % ONE_IN, "ok")
            url = f"http://127.0.0.1:{port}/{kind}/{number}"
            value = await connector.get(session, url, f"P{number % 7}", default=None)
            succeeded += value == {"ok": True}
            if (number + 1) % every == 0:
                sample(number + 1)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(work(session) for _ in range(WORKERS)))
    return succeeded


def measure(port: int, calls: int, logfile: str) -> None:
    """Run the client process and print its samples."""
    tracing = TracerProvider(shutdown_on_exit=False)
    tracing.add_span_processor(BatchSpanProcessor(DiscardingSpanExporter()))
    metrics = MeterProvider([PeriodicExportingMetricReader(DiscardingMetricExporter(), 1_000)], shutdown_on_exit=False)
    providers: dict[str, Any] = {"tracer_provider": tracing, "meter_provider": metrics}
    connector = AsyncConnector(logfile, retry=RetryPolicy(backoff=0.001), **providers)
    samples = Samples()

    def sample(number: int) -> None:
        tracing.force_flush()  # otherwise the memory varies with the number of spans in the batch
        samples.add(number)

    succeeded = asyncio.run(make_calls(connector, port, calls, sample))
    columns = {name: list(column) for name, column in samples.columns.items()}
    sys.stdout.write(json.dumps({"samples": columns, "succeeded": succeeded, "stats": asdict(connector.stats())}))
    tracing.shutdown()
    metrics.shutdown()


def slope(calls: list[int], memory: list[int]) -> float:
    """Return the growth of the memory in bytes for each million calls, by a least-squares line."""
    millions = [number / 1e6 for number in calls]
    middle, height = sum(millions) / len(millions), sum(memory) / len(memory)
    together = sum((x - middle) * (y - height) for x, y in zip(millions, memory, strict=True))
    return together / sum((x - middle) ** 2 for x in millions)


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_descriptors_and_threads_do_not_grow_with_the_number_of_calls(tmp_path: Path) -> None:
    log = tmp_path / "logs.csv"
    with small_server() as port:
        command, environment = processes.function(__file__, f"measure({port}, {CALLS}, {str(log)!r})")
        done = processes.run(command, env=environment, capture_output=True, timeout=24 * 3600)
    assert done.returncode == 0, done.stderr.decode()
    assert not done.stderr, done.stderr.decode()
    report = json.loads(done.stdout)
    late = {name: column[int(SAMPLE_COUNT * WARM_UP) :] for name, column in report["samples"].items()}
    growth = slope(late["calls"], late["memory"])
    sys.stdout.write(f"{CALLS:,} calls: {growth / 2**20:+.3f} MiB a million, at {late['memory'][-1] / 2**20:.1f} MiB\n")

    assert report["succeeded"] == CALLS - len(range(0, CALLS, ONE_IN))
    assert report["stats"]["rows_written"] == report["stats"]["calls_started"] == CALLS
    with log.open("rb") as file:
        assert sum(1 for _ in file) == CALLS + 1
    assert len(set(late["threads"])) == 1, late["threads"]
    assert max(late["descriptors"]) <= report["samples"]["descriptors"][0], late["descriptors"]
    assert growth < LIMIT + NOISE / ((late["calls"][-1] - late["calls"][0]) / 1e6), late["memory"]
