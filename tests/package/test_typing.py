"""The public API as a user's type checker sees it. The main check is that mypy and pyright accept this file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest
from yarl import URL

from otel_connector import (
    AsyncConnector,
    ConnectorError,
    ConnectorStats,
    CSVSpanExporter,
    CSVSpanProcessor,
    HTTPStatusError,
    RetryPolicy,
    configure,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_connector import CallRecord


async def use(session: aiohttp.ClientSession, folder: Path) -> ConnectorStats:
    async with AsyncConnector(folder / "a.csv", True, 3, 5.0, retry=RetryPolicy(backoff=0.0)) as connector:
        await connector.get(session, "http://127.0.0.1:1/", "P", default=None, headers={"A": "b"}, ssl=False)
        await connector.get(session, URL("http://127.0.0.1:1/"), "P", decode=bytes.decode, default="")
        await connector.rate_limit(0)
        try:
            await connector.get(session, "nowhere", "P", timeout=aiohttp.ClientTimeout(total=1))
        except HTTPStatusError as error:
            status: int = error.status
            headers: Mapping[str, str] = error.headers
            wait: float | None = error.retry_after
            print(status, headers, wait)  # noqa: T201
        except ConnectorError as error:
            texts: list[str] = [error.call_id, error.url, str(error.attempts)]
            assert all(texts)
        return connector.stats()


def read(record: CallRecord) -> tuple[str, float, int | None, bool]:
    return record.call_id, record.t, record.response_code, record.success


def test_the_type_checked_program_runs(tmp_path: Path) -> None:
    async def main() -> ConnectorStats:
        async with aiohttp.ClientSession() as session:
            return await use(session, tmp_path)

    stats = asyncio.run(main())
    assert (stats.calls_started, stats.calls_failed, stats.rows_written) == (3, 3, 3)


def test_arguments_that_type_checkers_reject_raise_type_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        AsyncConnector(tmp_path / "a.csv", n_tries="3")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        CSVSpanProcessor(CSVSpanExporter)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        configure(5)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
