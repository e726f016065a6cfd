"""The compared variants: bare aiohttp, the minimum for a complete span, common other libraries, and the connector."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp_retry import ExponentialRetry, RetryClient
from opentelemetry import propagate, trace
from opentelemetry.instrumentation.aiohttp_client import create_trace_config
from opentelemetry.metrics import MeterProvider as AnyMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, TraceIdRatioBased
from opentelemetry.trace import SpanKind
from opentelemetry.trace import TracerProvider as AnyTracerProvider
from opentelemetry.util.types import AttributeValue
from serving import SMALL
from typing_extensions import Self

from otel_connector import AsyncConnector, RetryPolicy

Call = Callable[[str], Awaitable[object]]
"""Fetches a URL and decodes its JSON."""

ONE_PERCENT = TraceIdRatioBased(0.01)
_BOUNDARIES = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


class Discard(SpanExporter):
    """Discards all spans, to measure the cost of the SDK without a network."""

    def export(self, spans: object) -> SpanExportResult:
        del spans
        return SpanExportResult.SUCCESS


class Telemetry:
    """An SDK for one variant.

    Args:
        exporter: Exports the spans, behind the SDK's batch processor.
        reader: Reads the metrics.
        sampler: Selects the spans that are recorded.
    """

    def __init__(
        self, exporter: SpanExporter | None = None, reader: MetricReader | None = None, sampler: Sampler = ALWAYS_ON
    ) -> None:
        nothing = Resource.get_empty()
        self.tracing = TracerProvider(sampler, resource=nothing, shutdown_on_exit=False)
        self.tracing.add_span_processor(BatchSpanProcessor(exporter or Discard(), max_queue_size=100_000))
        self.metrics = MeterProvider([reader or InMemoryMetricReader()], resource=nothing, shutdown_on_exit=False)

    def shutdown(self) -> None:
        self.tracing.shutdown()
        self.metrics.shutdown()


class Variants:
    """Opens the sessions that the variants need, and closes them.

    Args:
        folder: For the logs.
        shared_pool: Whether all sessions share one connection pool without a limit. This is needed for thousands of
            calls in flight: with one pool per session, the process would need too many connections.
    """

    def __init__(self, folder: Path, *, shared_pool: bool = False) -> None:
        self._folder = folder
        self._shared = aiohttp.TCPConnector(limit=0) if shared_pool else None
        self._stack = AsyncExitStack()
        self._logs = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *reason: object) -> None:
        await self._stack.aclose()
        if self._shared is not None:
            await self._shared.close()

    async def _session(self, **options: Any) -> aiohttp.ClientSession:
        pool, own = self._shared or aiohttp.TCPConnector(), self._shared is None
        session = aiohttp.ClientSession(connector=pool, connector_owner=own, **options)
        return await self._stack.enter_async_context(session)

    def _log(self) -> Path:
        self._logs += 1
        return self._folder / f"{self._logs}.csv"

    async def bare(self) -> Call:
        """Return a variant with aiohttp only."""
        session = await self._session()

        async def call(url: str) -> object:
            async with session.get(url) as response:
                return await response.json()

        return call

    async def floor(self, telemetry: Telemetry) -> Call:
        """Return a variant with the same span, histogram record and injection, but no retry, row or redaction."""
        session = await self._session()
        tracer = telemetry.tracing.get_tracer("floor", "1", "https://opentelemetry.io/schemas/1.44.0")
        duration = telemetry.metrics.get_meter("floor").create_histogram(
            "http.client.request.duration", "s", explicit_bucket_boundaries_advisory=_BOUNDARIES
        )

        async def call(url: str) -> object:
            began, since = time.time_ns(), time.perf_counter_ns()
            first: dict[str, AttributeValue] = {
                "http.request.method": "GET",
                "url.full": url,
                "server.address": "127.0.0.1",
                "server.port": 80,
            }
            span = tracer.start_span("GET", kind=SpanKind.CLIENT, attributes=first, start_time=began)
            context = trace.set_span_in_context(span)
            headers: dict[str, str] = {}
            propagate.inject(headers, context)
            async with session.get(url, headers=headers) as response:
                value = await response.json()
            took = time.perf_counter_ns() - since
            ids = span.get_span_context()
            span.set_attributes(
                {
                    "otel_connector.call_id": f"{ids.trace_id:032x}-{ids.span_id:016x}",
                    "otel_connector.project": "bench",
                    "otel_connector.t": began / 1e9,
                    "otel_connector.delta_t": took / 1e9,
                    "otel_connector.url": url,
                    "otel_connector.response_size": SMALL,
                    "otel_connector.response_code": response.status,
                    "otel_connector.success": True,
                    "http.response.status_code": response.status,
                    "network.protocol.version": "1.1",
                }
            )
            span.end(began + took)
            labels: dict[str, AttributeValue] = {
                "http.request.method": "GET",
                "server.address": "127.0.0.1",
                "server.port": 80,
                "http.response.status_code": response.status,
                "otel_connector.project": "bench",
                "otel_connector.success": True,
            }
            duration.record(took / 1e9, labels, context)
            return value

        return call

    async def peers(self, telemetry: Telemetry) -> Call:
        """Return a variant with contrib's instrumentation, aiohttp-retry and a flushed log line."""
        config = create_trace_config(tracer_provider=telemetry.tracing, meter_provider=telemetry.metrics)
        session = await self._session(trace_configs=[config])
        client = RetryClient(
            client_session=session, retry_options=ExponentialRetry(attempts=10, start_timeout=0.001, statuses={503})
        )
        log = self._stack.enter_context(self._log().open("a", encoding="utf-8"))

        async def call(url: str) -> object:
            began, since = time.time(), time.perf_counter()
            async with client.get(url) as response:
                value = await response.json()
            log.write(f"bench,{began:.6f},{time.perf_counter() - since:.6f},{url},{response.status}\n")
            log.flush()
            return value

        return call

    async def ours(
        self,
        telemetry: Telemetry | None = None,
        *,
        csv: bool = True,
        tracing: AnyTracerProvider | None = None,
        metrics: AnyMeterProvider | None = None,
    ) -> Call:
        """Return a variant with the connector."""
        session = await self._session()
        connector = AsyncConnector(
            self._log() if csv else None,
            timeout=300,  # the default of aiohttp, as in the other variants: ten thousand concurrent calls take long
            retry=RetryPolicy(backoff=0.001),
            tracer_provider=telemetry.tracing if telemetry else tracing,
            meter_provider=telemetry.metrics if telemetry else metrics,
        )

        async def call(url: str) -> object:
            return await connector.get(session, url, "bench")

        return call
