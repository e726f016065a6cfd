"""Makes twenty calls at a time, handles each kind of failure, and reads the log."""

import asyncio
import csv
from pathlib import Path

import aiohttp

from otel_connector import AsyncConnector, ConnectorError, HTTPStatusError


async def main() -> None:
    connector = AsyncConnector("logs.csv", overwrite_log=True, n_tries=5, timeout=10)
    in_flight = asyncio.Semaphore(20)

    async def fetch(session: aiohttp.ClientSession, number: int) -> None:
        async with in_flight:
            try:
                await connector.get(session, "https://api.example.com/data", "Prices", params={"page": number})
            except HTTPStatusError as error:
                print(f"page {number}: status {error.status}")
            except ConnectorError as error:
                print(f"page {number}: {error} after {error.attempts} attempts, call_id {error.call_id}")

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(fetch(session, number) for number in range(100)))


asyncio.run(main())

with Path("logs.csv").open(newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
print(f"{len(rows)} rows, {sum(row['success'] == 'True' for row in rows)} with success")
