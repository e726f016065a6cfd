"""Makes one call: prints its value and writes a row to logs.csv. No set-up and no close are needed."""

import asyncio

import aiohttp

from otel_connector import AsyncConnector


async def main() -> None:
    async with aiohttp.ClientSession() as session:
        connector = AsyncConnector(logfile="logs.csv", overwrite_log=True, n_tries=3, timeout=5)
        response = await connector.get(session, "https://api.example.com/data", "ExampleProject")
        print(response)


asyncio.run(main())
