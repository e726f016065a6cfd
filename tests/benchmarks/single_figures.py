"""The import, the export of ready spans, and the memory of calls in flight."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

from otel_connector import CSVSpanExporter

_IN_FLIGHT = 10_000
_SPANS, _BATCH = 200_000, 512  # the batch is the SDK's own

sys.path.insert(0, str(Path(__file__).parent.parent))
from test_in_flight import measured  # noqa: E402 - from the tests, which hold its bound


def _import_seconds(modules: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
    return time.perf_counter() - started


def _imports(rounds: int = 21) -> None:
    ours, theirs, nothing = "otel_connector", "aiohttp, opentelemetry.trace", "sys"
    times: dict[str, list[float]] = {ours: [], theirs: [], nothing: []}
    for _ in range(rounds):
        for modules in random.sample(list(times), len(times)):
            times[modules].append(_import_seconds(modules))
    start = statistics.median(times[nothing])
    ratio = (statistics.median(times[ours]) - start) / (statistics.median(times[theirs]) - start)
    print(f"`import {ours}`, of `import {theirs}`: {ratio:.2f} (the interpreter's own start taken off)")


def _spans(count: int) -> list[ReadableSpan]:
    nothing = Resource.get_empty()
    return [
        ReadableSpan(
            "GET",
            SpanContext(number, number, is_remote=False),
            resource=nothing,
            start_time=number,
            attributes={
                "otel_connector.call_id": f"{number:032x}-{number:016x}",
                "otel_connector.project": "bench",
                "otel_connector.t": 1_790_000_000.123456,
                "otel_connector.delta_t": 0.001234,
                "otel_connector.url": "http://127.0.0.1:8000/data",
                "otel_connector.response_size": 60,
                "otel_connector.response_code": 200,
                "otel_connector.success": True,
            },
        )
        for number in range(1, count + 1)
    ]


def _export(folder: Path) -> None:
    spans = _spans(_SPANS)
    rates: list[float] = []
    for number in range(5):
        exporter = CSVSpanExporter(folder / f"{number}.csv")
        started = time.process_time()
        for first in range(0, _SPANS, _BATCH):
            exporter.export(spans[first : first + _BATCH])
        rates.append(_SPANS / (time.process_time() - started))
        exporter.shutdown()
    print(f"`CSVSpanExporter.export`: {statistics.median(rates):,.0f} rows a second of CPU time")


async def table(server: str, folder: Path) -> None:
    """Measure and print."""
    del server
    _imports()
    _export(folder)
    needed = {kind: measured(kind, _IN_FLIGHT, folder / f"{kind}.in.csv")["needed"] for kind in ("bare", "connector")}
    bare, above = needed["bare"] / 1024, (needed["connector"] - needed["bare"]) / 1024
    print(f"{_IN_FLIGHT:,} calls in flight: {bare:.1f} KiB each bare, {above:.1f} KiB more each with the connector")
