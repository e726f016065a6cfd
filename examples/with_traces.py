"""Exports traces and metrics over OTLP from a program without an SDK: one line sets it up and flushes it at exit."""

import asyncio

import aiohttp
from opentelemetry import trace

from otel_connector import AsyncConnector, configure


async def main() -> None:
    connector = AsyncConnector("logs.csv", n_tries=3, timeout=5)
    async with aiohttp.ClientSession() as session:
        with trace.get_tracer("nightly").start_as_current_span("nightly job"):
            print(await connector.get(session, "https://api.example.com/data", "ExampleProject"))


with configure("nightly-job"):
    asyncio.run(main())
