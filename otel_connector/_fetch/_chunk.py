"""A part of a long list that can travel: to another process or machine, and be fetched there.

`Chunk` is a value that pickles, `fetch_chunk` a function that does; each chunk has a log and a results file of its own.
Also what puts results into such a file. Knows no command line.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import aiohttp

from otel_connector._arguments import checked_int
from otel_connector._bulk import Outcome
from otel_connector._connector import AsyncConnector
from otel_connector._fetch._results import ResultsFile, result_line
from otel_connector._redact import DEFAULT_REDACTED_PARAMS, Redactor


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A part of a list of URLs, with all that is needed to fetch it anywhere.

    It pickles if what is in `connector` and `options` does; ``RetryPolicy`` and ``RetryBudget`` do.

    Attributes:
        urls: The URLs; kept as a tuple.
        project: The ``project_name`` of their calls.
        log: The CSV of this chunk alone, where it runs.
        results: The file for its results, JSON lines (``.gz`` and ``.zst`` are compressed); None for none.
        connector: Parameters of `AsyncConnector`, by their names; not `logfile` and `overwrite_log`.
        options: Parameters of `AsyncConnector.get_many` that go to every call, such as ``headers``.
        max_concurrency: Calls under way at a time.

    Raises:
        TypeError: An argument is of another type; named.
        ValueError: An argument is out of its range; named.
    """

    urls: Sequence[str]
    project: str
    log: str
    results: str | None = None
    connector: Mapping[str, Any] = field(default_factory=dict[str, Any])
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    max_concurrency: int = 100

    def __post_init__(self) -> None:
        """Refuse here what would be refused where the chunk runs, after a long way."""
        given: Any = self.urls
        if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
            raise TypeError(f"urls must be URLs, not {type(given).__name__}")
        object.__setattr__(self, "urls", tuple(cast("Iterable[str]", given)))
        for name in ("log", "results"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, os.fspath(getattr(self, name)))
        if not isinstance(cast("object", self.log), str):
            raise TypeError(f"log must be a path, not {type(self.log).__name__}")
        if self.results == self.log:
            raise ValueError("results must be another file than log")
        checked_int("max_concurrency", self.max_concurrency)
        for name in ("connector", "options"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name} must be a mapping of parameters, not {type(getattr(self, name)).__name__}")
        for name in ("logfile", "overwrite_log"):
            if name in self.connector:
                raise ValueError(f"connector must not have {name}: a chunk goes on with the log it has, its own")
        AsyncConnector(None, **self.connector)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkReport:
    """What came of a chunk in one run.

    Attributes:
        succeeded: URLs fetched in this run.
        failed: URLs that failed in this run; another run tries them again.
        passed_over: URLs that an earlier run had fetched.
        log: The chunk's log.
        results: The chunk's results.
    """

    succeeded: int
    failed: int
    passed_over: int
    log: str
    results: str | None


async def fetch_chunk(chunk: Chunk) -> ChunkReport:
    """Fetch what a chunk's log does not call done, or its results lack. Safe to run twice, and to kill at any moment.

    Each URL's result is in the results file at least once, under the ``call_id`` of its row. Logs and results of many
    chunks are read together: ``get_many(..., resume=[logs])``, ``otel-connector fetch --resume-from``.

    Raises:
        OSError: A file cannot be written, or another run of the chunk is writing it (`BlockingIOError`).
        ValueError: The log or the results are another kind of file.
    """
    results = None if chunk.results is None else await asyncio.to_thread(ResultsFile, chunk.results, resume=True)
    succeeded = failed = 0
    try:
        connector = await asyncio.to_thread(AsyncConnector, chunk.log, **chunk.connector)
        redacted = chunk.connector.get("redact_params", DEFAULT_REDACTED_PARAMS)
        async with connector, aiohttp.ClientSession() as session:
            outcomes = connector.get_many(
                session,
                chunk.urls,
                chunk.project,
                max_concurrency=chunk.max_concurrency,
                resume=True,
                sink=None if results is None else ResultsSink(results, redacted),
                decode=bytes,
                **chunk.options,
            )
            async with outcomes:
                async for outcome in outcomes:
                    succeeded += outcome.error is None
                    failed += outcome.error is not None
    finally:
        if results is not None:
            await results.aclose()
    return ChunkReport(
        succeeded=succeeded,
        failed=failed,
        passed_over=outcomes.passed_over,
        log=chunk.log,
        results=chunk.results,
    )


class ResultsSink:
    """A sink that writes outcomes whose value is the body's bytes as JSON lines.

    Args:
        results: The file.
        redacted: Query parameters whose values are not written; the URL is otherwise as it was given.
    """

    def __init__(self, results: ResultsFile, redacted: Iterable[str] = DEFAULT_REDACTED_PARAMS) -> None:
        self._results = results
        self._redact = Redactor(frozenset(redacted)).url
        self._held: set[int] | None = None

    def holds(self, call_id: str) -> bool:
        """Whether the file had the result of a call when this was first asked; that reads the file, and blocks."""
        if self._held is None:
            self._held = {hash(each) for each in self._results.call_ids()}  # 64 bits of each, keyed, are told apart
        return hash(call_id) in self._held

    async def __call__(self, outcome: Outcome) -> None:
        """Write one."""
        record = outcome.record
        body: bytes = outcome.value or b""  # of 204 and the like there is none
        url = self._redact(str(outcome.url))
        await self._results.write(result_line(url, record.call_id, record.response_code, body))
