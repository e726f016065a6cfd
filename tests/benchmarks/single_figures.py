"""The time of the import, the rate of exporting finished spans, and the memory of calls in flight."""

from __future__ import annotations

import gc
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext
from opentelemetry.util.types import AttributeValue
from serving import SMALL
from variants import Variants

from otel_connector import CSVSpanExporter

_IN_FLIGHT = 10_000
_SPANS, _BATCH = 100_000, 512  # the default batch of the SDK

sys.path.insert(0, str(Path(__file__).parent.parent))
from support.calls_in_flight import measured  # noqa: E402 - a test checks the limit with it


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
    print(f"`import {ours}`, of `import {theirs}`: {ratio:.2f} (without the start of the interpreter)")


def _spans(count: int, *, of_the_sdk: bool = False) -> list[ReadableSpan]:
    """Return spans with their attributes in a dictionary, or as the SDK stores them, with those of the conventions."""
    nothing = Resource.get_empty()
    spans: list[ReadableSpan] = []
    for number in range(1, count + 1):
        attributes: dict[str, AttributeValue] = {
            "otel_connector.call_id": f"{number:032x}-{number:016x}",
            "otel_connector.project": "bench",
            "otel_connector.t": 1_790_000_000.123456,
            "otel_connector.delta_t": 0.001234,
            "otel_connector.url": "http://127.0.0.1:8000/data",
            "otel_connector.response_size": 60,
            "otel_connector.response_code": 200,
            "otel_connector.success": True,
        }
        conventions: dict[str, AttributeValue] = {
            "http.request.method": "GET",
            "url.full": "http://127.0.0.1:8000/data",
            "server.address": "127.0.0.1",
            "server.port": 8000,
            "http.response.status_code": 200,
            "network.protocol.version": "1.1",
        }
        own = BoundedAttributes(128, {**conventions, **attributes}, immutable=False) if of_the_sdk else attributes
        ids = SpanContext(number, number, is_remote=False)
        spans.append(ReadableSpan("GET", ids, resource=nothing, start_time=number, attributes=own))
    return spans


def _export(folder: Path, kind: str, spans: list[ReadableSpan], bare: float) -> None:
    rates: list[float] = []
    for number in range(5):
        exporter = CSVSpanExporter(folder / f"{kind}.{number}.csv")
        gc.collect()  # otherwise the creation of the spans would be measured
        started = time.process_time()
        for first in range(0, len(spans), _BATCH):
            exporter.export(spans[first : first + _BATCH])
        rates.append(len(spans) / (time.process_time() - started))
        exporter.shutdown()
    rate = statistics.median(rates)
    print(f"`CSVSpanExporter.export`, {kind}: {rate:,.0f} rows per CPU second, {rate * bare:,.0f} per bare call")


async def _bare(server: str, folder: Path, rounds: int = 7, calls: int = 500) -> float:
    """Return the CPU seconds of a bare call, as a measure of the speed of this machine."""
    async with Variants(folder) as make:
        call, spent = await make.bare(), list[float]()
        for _ in range(rounds):
            started = time.process_time()
            for _ in range(calls):
                await call(f"{server}/{SMALL}")
            spent.append((time.process_time() - started) / calls)
    return statistics.median(spent)


async def table(server: str, folder: Path) -> None:
    """Measure and print."""
    _imports()
    bare = await _bare(server, folder)
    _export(folder, "attributes in a dictionary", _spans(_SPANS), bare)
    _export(folder, "spans of the SDK", _spans(_SPANS, of_the_sdk=True), bare)
    needed = {kind: measured(kind, _IN_FLIGHT, folder / f"{kind}.in.csv")["needed"] for kind in ("bare", "connector")}
    bare, above = needed["bare"] / 1024, (needed["connector"] - needed["bare"]) / 1024
    print(f"{_IN_FLIGHT:,} calls in flight: {bare:.1f} KiB each with bare aiohttp, {above:.1f} KiB more with ours")
