"""Endurance: hundreds of thousands of calls in one process, and that nothing of them stays behind but their rows.

Run it by a command of its own::

    python -m pytest -m soak -n 0 --timeout 0 -s tests/call/test_endurance.py

``OTEL_CONNECTOR_SOAK_CALLS`` says how many calls, default 200,000 (some minutes); 10,000,000 is the figure to hold
a release to. Much fewer are all warm-up. Needs Linux, for ``/proc``.

Two processes of their own: a server that answers with as little as it can, and a client whose resident memory, file
descriptors and threads are looked at again and again while it calls, with the CSV log and the SDK's tracing and metrics
on. One call in fifty fails and one in fifty is tried again, so that the ways through failures are walked, too.
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
SAMPLES = 100
WARM_UP = 0.25
"""Of the calls: until then what is kept on purpose, such as the calls written of late, has reached its full size."""

LIMIT = 2**20
"""Bytes of resident memory that a million calls may leave behind."""

NOISE = 2**18
"""Bytes by which the memory goes up and down by itself: for a short run the better part of what it may grow."""

ONE_IN = 50  # calls is answered by 404, and as many by 503 at first


class Spans(SpanExporter):
    """Takes spans and forgets them."""

    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS


class Metrics(MetricExporter):
    """Takes metrics and forgets them."""

    def export(self, metrics_data: Any, timeout_millis: float = 10_000, **_: Any) -> MetricExportResult:
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        """Have nothing to close."""


class Seen:
    """What was there after so many calls: room for all of it is taken beforehand, because to note it takes memory."""

    def __init__(self) -> None:
        self.columns = {name: array("q", [0] * SAMPLES) for name in ("calls", "memory", "descriptors", "threads")}
        self.length = 0

    def note(self, calls: int) -> None:
        """Look, when garbage and the allocator's free pages are given back: what is left is held by somebody."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        found = (calls, resident("VmRSS"), descriptors, threading.active_count())
        for column, value in zip(self.columns.values(), found, strict=True):
            column[self.length] = value
        self.length += 1


async def call(connector: AsyncConnector, port: int, calls: int, look: Callable[[int], None]) -> int:
    """Make the calls, `WORKERS` at a time, and look now and then; return how many succeeded."""
    numbers, every, succeeded = iter(range(calls)), calls // SAMPLES, 0

    async def work(session: aiohttp.ClientSession) -> None:
        nonlocal succeeded
        for number in numbers:
            kind = {0: "gone", 1: "busy"}.get(number % ONE_IN, "ok")
            url = f"http://127.0.0.1:{port}/{kind}/{number}"
            value = await connector.get(session, url, f"P{number % 7}", default=None)
            succeeded += value == {"ok": True}
            if (number + 1) % every == 0:
                look(number + 1)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(work(session) for _ in range(WORKERS)))
    return succeeded


def measure(port: int, calls: int, logfile: str) -> None:
    """Be the client process, and print what it saw."""
    tracing = TracerProvider(shutdown_on_exit=False)
    tracing.add_span_processor(BatchSpanProcessor(Spans()))
    metrics = MeterProvider([PeriodicExportingMetricReader(Metrics(), 1_000)], shutdown_on_exit=False)
    providers: dict[str, Any] = {"tracer_provider": tracing, "meter_provider": metrics}
    connector = AsyncConnector(logfile, retry=RetryPolicy(backoff=0.001), **providers)
    seen = Seen()

    def look(number: int) -> None:
        tracing.force_flush()  # or the figures would go up and down with the spans that wait for their batch
        seen.note(number)

    succeeded = asyncio.run(call(connector, port, calls, look))
    columns = {name: list(column) for name, column in seen.columns.items()}
    sys.stdout.write(json.dumps({"seen": columns, "succeeded": succeeded, "stats": asdict(connector.stats())}))
    tracing.shutdown()
    metrics.shutdown()


def slope(calls: list[int], memory: list[int]) -> float:
    """Return by how many bytes the memory grows in a million calls: the line through all, by least squares."""
    millions = [number / 1e6 for number in calls]
    middle, height = sum(millions) / len(millions), sum(memory) / len(memory)
    together = sum((x - middle) * (y - height) for x, y in zip(millions, memory, strict=True))
    return together / sum((x - middle) ** 2 for x in millions)


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_stays_behind(tmp_path: Path) -> None:
    log = tmp_path / "logs.csv"
    with small_server() as port:
        command, environment = processes.function(__file__, f"measure({port}, {CALLS}, {str(log)!r})")
        done = processes.run(command, env=environment, capture_output=True, timeout=24 * 3600)
    assert done.returncode == 0, done.stderr.decode()
    assert not done.stderr, done.stderr.decode()
    told = json.loads(done.stdout)
    late = {name: column[int(SAMPLES * WARM_UP) :] for name, column in told["seen"].items()}
    growth = slope(late["calls"], late["memory"])
    sys.stdout.write(f"{CALLS:,} calls: {growth / 2**20:+.3f} MiB a million, at {late['memory'][-1] / 2**20:.1f} MiB\n")

    assert told["succeeded"] == CALLS - len(range(0, CALLS, ONE_IN))
    assert told["stats"]["rows_written"] == told["stats"]["calls_started"] == CALLS
    with log.open("rb") as file:
        assert sum(1 for _ in file) == CALLS + 1
    assert len(set(late["threads"])) == 1, late["threads"]
    assert max(late["descriptors"]) <= told["seen"]["descriptors"][0], late["descriptors"]
    assert growth < LIMIT + NOISE / ((late["calls"][-1] - late["calls"][0]) / 1e6), late["memory"]
