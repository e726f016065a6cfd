"""A part of a long list of URLs that can be sent to another process or machine and fetched there.

A `Chunk` and the function `fetch_chunk` can be pickled. Each chunk has its own log and its own results file. Does not
know the command line, nor how chunks are distributed.

Used by ``__init__``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import aiohttp

from otel_connector._arguments import check_bool, checked_instance, checked_int, checked_path
from otel_connector._call._urls import listed_url
from otel_connector._connector import AsyncConnector
from otel_connector._csv._parts import file_in_error
from otel_connector._csv._whole_file import refuse_name_of_log
from otel_connector._fetch._cookies import cookie_jar
from otel_connector._fetch._results import ResultsFile, ResultsSink
from otel_connector._redact import DEFAULT_REDACTED_PARAMS
from otel_connector.csv_exporter import named_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A part of a list of URLs, with everything that is needed to fetch it anywhere.

    It can be pickled if the values of `connector` and `options` can; ``RetryPolicy`` and ``RetryBudget`` can.

    Attributes:
        urls: The URLs; stored as a tuple.
        project: The ``project_name`` of their calls.
        log: The CSV file of this chunk, on the machine where it runs. No other chunk uses it.
        results: The file for its results, JSON lines (``.gz`` and ``.zst`` are compressed); None stores no results.
        connector: Parameters of `AsyncConnector` by name, except `logfile` and `overwrite_log`. Default: none.
        options: Parameters of `AsyncConnector.get_many` for every call, such as ``headers``. Default: none.
        max_concurrency: Maximum number of calls in flight. Default: 100.
        keep_cookies: Whether each host gets the cookies that it has set in earlier calls of this run. By default, the
            cookies of a response are sent only with the redirects of its call. A cookie is never sent to another host.

    Raises:
        TypeError: An argument has a wrong type; the message names it.
        ValueError: An argument is out of range; the message names it.
    """

    urls: Sequence[str] = field(repr=False)  # these and the options may contain secrets
    project: str
    log: str
    results: str | None = None
    connector: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    options: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    max_concurrency: int = 100
    keep_cookies: bool = False

    def __post_init__(self) -> None:
        """Check the arguments here, and not only where the chunk runs."""
        urls: Any = self.urls
        if isinstance(urls, (str, bytes)) or not isinstance(urls, Iterable):
            raise TypeError(f"urls must be an iterable of URLs, not {type(urls).__name__}")
        checked_instance("project", self.project, str)
        object.__setattr__(self, "urls", tuple(cast("Iterable[str]", urls)))
        object.__setattr__(self, "log", checked_path("log", self.log))
        if self.results is not None:
            object.__setattr__(self, "results", checked_path("results", self.results))
        if self.results == self.log:
            raise ValueError("results must be another file than log")
        checked_int("max_concurrency", self.max_concurrency)
        checked_instance("keep_cookies", self.keep_cookies, bool)
        for name in ("connector", "options"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name} must be a mapping of parameters, not {type(getattr(self, name)).__name__}")
        for name in ("logfile", "overwrite_log"):
            if name in self.connector:
                raise ValueError(f"connector must not have {name}: a chunk appends to its own log")
        for name in ("session", "urls", "project_name", "max_concurrency", "resume", "sink", "decode"):
            if name in self.options:
                raise ValueError(f"options must not have {name}: fetch_chunk sets it")
        check_bool("attempts", self.connector.get("attempts", False))
        options: dict[str, Any] = {**self.connector, "attempts": False}  # which needs a log
        AsyncConnector(None, **options)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkReport:
    """The outcome of one run of a chunk.

    Attributes:
        succeeded: Number of URLs that were fetched in this run.
        failed: Number of URLs that failed in this run; another run tries them again.
        skipped: Number of URLs that were skipped, because an earlier run had fetched them.
        log: The chunk's log.
        results: The chunk's results file, or None.
    """

    succeeded: int
    failed: int
    skipped: int
    log: str
    results: str | None


def _open_log(chunk: Chunk) -> AsyncConnector:
    try:
        return AsyncConnector(chunk.log, **chunk.connector)
    except (OSError, ValueError) as error:  # its cause is the same error without the name of the connector's argument
        raise named_error("log", error.__cause__ or error, file_in_error(error, chunk.log)) from error.__cause__


def _open_results(chunk: Chunk) -> ResultsFile | None:
    if chunk.results is None:
        return None
    refuse_name_of_log(chunk.results, [chunk.log])
    return ResultsFile(chunk.results, resume=True)


async def fetch_chunk(chunk: Chunk) -> ChunkReport:
    """Fetch the URLs of a chunk that have no success in its log, or no result in its results file.

    It can be run again, and killed at any moment. After a complete run the results file has each URL's result at least
    once, with the ``call_id`` of its row. ``get_many(..., resume=[logs])`` and ``otel-connector fetch --resume-from``
    read the logs of many chunks together.

    Args:
        chunk: The chunk.

    Returns:
        The numbers of this run. Failed calls do not raise an exception.

    Raises:
        OSError: A file cannot be written, or another run of the chunk is writing it (`BlockingIOError`).
        TypeError: `chunk` is not a `Chunk`.
        ValueError: The log or the results file is a file of another kind, or the results file has the name of a file of
            the log.
    """
    checked_instance("chunk", chunk, Chunk)
    results = await asyncio.to_thread(_open_results, chunk)
    succeeded = failed = 0
    try:
        connector = await asyncio.to_thread(_open_log, chunk)
        redacted = chunk.connector.get("redact_params", DEFAULT_REDACTED_PARAMS)
        jar = cookie_jar(keep=chunk.keep_cookies)
        async with connector, aiohttp.ClientSession(cookie_jar=jar) as session:
            outcomes = connector.get_many(
                session,
                map(listed_url, chunk.urls),
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
        succeeded=succeeded, failed=failed, skipped=outcomes.skipped, log=chunk.log, results=chunk.results
    )
