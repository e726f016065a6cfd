"""Tests of `fetch_chunk`: chunks are sent to other processes, run again, run concurrently, and combined."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.failing_calls import fork
from support.logs import Log

from otel_connector import AsyncConnector, Chunk, ChunkReport, RetryBudget, RetryPolicy, fetch_chunk
from otel_connector.testing import FaultServer, json_body, silent


@pytest.fixture
def api() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.script("/ok", json_body({"answer": 42}))
        server.script("/missing", 404)
        server.script("/never", silent)
        yield server


def run(chunk: Chunk) -> ChunkReport:
    return asyncio.run(fetch_chunk(chunk))


def lines(path: str | None) -> list[dict[str, Any]]:
    assert path is not None
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def chunks(api: FaultServer, folder: Path) -> list[Chunk]:
    urls = [api.url("/ok", n=number, token="secret") for number in range(30)] + [api.url("/missing")]
    return [
        Chunk(
            urls=tuple(urls[number::3]),
            project="P",
            log=str(folder / f"logs-{number}.csv"),
            results=str(folder / f"results-{number}.jsonl"),
            connector={"n_tries": 2, "retry": RetryPolicy(backoff=0.01), "retry_budget": RetryBudget()},
            options={"headers": {"X-Mine": "1"}},
            max_concurrency=4,
        )
        for number in range(3)
    ]


def test_chunks_run_in_another_process_and_a_second_run_skips_completed_urls(api: FaultServer, tmp_path: Path) -> None:
    parts = chunks(api, tmp_path)
    assert pickle.loads(pickle.dumps(parts)) == parts
    assert pickle.loads(pickle.dumps(fetch_chunk)) is fetch_chunk
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        reports = list(pool.map(run, parts))
        again = list(pool.map(run, parts))
    assert [(report.succeeded, report.failed, report.skipped) for report in reports] == [
        (10, 1, 0),
        (10, 0, 0),
        (10, 0, 0),
    ]
    assert [(report.succeeded, report.failed, report.skipped) for report in again] == [
        (0, 1, 10),
        (0, 0, 10),
        (0, 0, 10),
    ]
    found = [line for report in again for line in lines(report.results)]
    assert {line["url"] for line in found} == {api.url("/ok", n=number, token="REDACTED") for number in range(30)}
    assert len(found) == 30
    rows = [record for report in again for record in Log(Path(report.log)).records()]
    assert {line["call_id"] for line in found} == {record.call_id for record in rows if record.success}
    assert {request.headers["X-Mine"] for request in api.requests} == {"1"}


async def test_the_logs_of_all_chunks_together_can_be_resumed_from(api: FaultServer, tmp_path: Path, log: Log) -> None:
    parts = chunks(api, tmp_path)
    for part in parts:
        await fetch_chunk(part)
    urls = [url for part in parts for url in part.urls]
    async with aiohttp.ClientSession() as session:
        outcomes = AsyncConnector(log.path).get_many(session, urls, "P", resume=[part.log for part in parts])
        assert [outcome.url async for outcome in outcomes] == [api.url("/missing")]


async def test_a_chunk_without_a_results_path_stores_no_results(api: FaultServer, tmp_path: Path) -> None:
    report = await fetch_chunk(Chunk(urls=(api.url("/ok"),), project="P", log=str(tmp_path / "logs.csv")))
    assert (report.succeeded, report.results) == (1, None)


async def test_urls_whose_results_file_was_deleted_are_fetched_again(api: FaultServer, tmp_path: Path) -> None:
    (chunk, *_) = chunks(api, tmp_path)
    await fetch_chunk(chunk)
    assert chunk.results is not None
    await asyncio.to_thread(Path(chunk.results).unlink)
    report = await fetch_chunk(chunk)
    assert (report.succeeded, report.skipped) == (10, 0)
    assert len(await asyncio.to_thread(lines, chunk.results)) == 10


async def test_redact_params_of_a_chunk_apply_to_the_urls_in_its_results(api: FaultServer, tmp_path: Path) -> None:
    chunk = Chunk(
        urls=(api.url("/ok", mine="m", token="t"),),
        project="P",
        log=str(tmp_path / "logs.csv"),
        results=str(tmp_path / "results.jsonl"),
        connector={"redact_params": ["mine"]},
    )
    await fetch_chunk(chunk)
    assert [line["url"] for line in lines(chunk.results)] == [api.url("/ok", mine="REDACTED", token="t")]


async def test_two_runs_cannot_write_the_same_results_file_at_the_same_time(api: FaultServer, tmp_path: Path) -> None:
    chunk = Chunk(
        urls=(api.url("/never"),), project="P", log=str(tmp_path / "logs.csv"), results=str(tmp_path / "results.jsonl")
    )
    first = asyncio.ensure_future(fetch_chunk(chunk))
    while not api.requests:  # noqa: ASYNC110 - the server has no event to wait for
        await asyncio.sleep(0)
    with pytest.raises(BlockingIOError, match=r"results\.jsonl"):
        await fetch_chunk(chunk)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await fetch_chunk(Chunk(urls=(), project="P", log=chunk.log, results=chunk.results))


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_chunk_killed_midway_is_completed_by_the_next_run(api: FaultServer, tmp_path: Path) -> None:
    urls = tuple(api.url("/ok", n=number) for number in range(400))
    chunk = Chunk(urls=urls, project="P", log=str(tmp_path / "logs.csv"), results=str(tmp_path / "results.jsonl"))
    pid = fork(lambda: run(chunk))
    log, deadline = Path(chunk.log), time.monotonic() + 30
    while not log.exists() or log.read_bytes().count(b"\n") < 50:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    report = run(chunk)
    assert report.failed == 0
    assert report.succeeded + report.skipped == 400
    assert {line["url"] for line in lines(chunk.results)} == set(urls)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "urls is one URL": ({"urls": "http://a/"}, TypeError, "urls must be an iterable of URLs, not str"),
    "urls is an int": ({"urls": 1}, TypeError, "urls must be an iterable of URLs, not int"),
    "log is an int": ({"log": 1}, TypeError, "not int"),
    "log is None": ({"log": None}, TypeError, "log must be a path, not NoneType"),
    "log is empty": ({"log": ""}, ValueError, "log must be a path of at least one character"),
    "results is empty": ({"results": ""}, ValueError, "results must be a path of at least one character"),
    "results is the same file as log": ({"results": "logs.csv"}, ValueError, "results must be another file than log"),
    "attempts is an int": ({"connector": {"attempts": 1}}, TypeError, "attempts must be True or False, not 1"),
    "connector is an AsyncConnector": (
        {"connector": AsyncConnector(None)},
        TypeError,
        "connector must be a mapping of parameters, not Async",
    ),
    "options is a list": ({"options": []}, TypeError, "options must be a mapping of parameters, not list"),
    "max_concurrency is 0": ({"max_concurrency": 0}, ValueError, "max_concurrency must be at least 1"),
    "connector has a logfile": ({"connector": {"logfile": "a"}}, ValueError, "connector must not have logfile"),
    "n_tries is 0": ({"connector": {"n_tries": 0}}, ValueError, "n_tries must be at least 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused_when_the_chunk_is_created(name: str) -> None:
    changed, kind, message = BAD[name]
    arguments: dict[str, Any] = {"urls": ["http://a/"], "project": "P", "log": "logs.csv", **changed}
    with pytest.raises(kind, match=message):
        Chunk(**arguments)


def test_paths_are_stored_as_text_and_urls_as_a_tuple(tmp_path: Path) -> None:
    chunk = Chunk(urls=iter(["http://a/"]), project="P", log=tmp_path / "a", results=tmp_path / "b")  # type: ignore[arg-type]
    assert (chunk.urls, chunk.log, chunk.results) == (("http://a/",), str(tmp_path / "a"), str(tmp_path / "b"))


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"log": "no/logs.csv"}, FileNotFoundError, r"\] log: No such file or directory: 'no/logs.csv'$"),
        ({"log": "other.csv"}, ValueError, r"^log: 'other.csv': the file has another header: 'a,b'; "),
        ({"results": "folder"}, IsADirectoryError, r"\] Is a directory: 'folder'$"),
        ({"results": "other.csv"}, ValueError, r"^'other.csv' does not contain JSON lines: "),
        ({"results": "logs.000001.csv"}, ValueError, r"^logs\.000001\.csv: this file is a log, or belongs to one; "),
        (
            {"results": "logs.attempts.csv"},
            ValueError,
            r"^logs\.attempts\.csv: this file is a log, or belongs to one; ",
        ),
    ],
)
async def test_a_file_that_cannot_be_used_is_named(
    changed: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.csv").write_text("a,b\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(kind, match=message):
        await fetch_chunk(Chunk(**{"urls": [], "project": "P", "log": "logs.csv", **changed}))
    assert (tmp_path / "other.csv").read_text() == "a,b\n"


def test_the_attempts_of_a_chunk_are_beside_its_log(api: FaultServer, tmp_path: Path) -> None:
    log = Log(tmp_path / "logs.csv")
    options: Any = {"attempts": True, "n_tries": 2, "retry": RetryPolicy(statuses=[404], backoff=0)}  # type: ignore[arg-type]
    chunk = Chunk(urls=[api.url("/missing"), api.url("/ok")], project="P", log=str(log.path), connector=options)
    assert run(pickle.loads(pickle.dumps(chunk))).failed == 1
    assert [(each.number, each.reason) for each in log.attempts()] == [(1, "status_404"), (2, "status_404")]


def test_an_attempts_log_of_another_kind_is_named_in_the_error_of_a_chunk(tmp_path: Path) -> None:
    (tmp_path / "logs.attempts.csv").write_text("a,b\n")
    chunk = Chunk(urls=[], project="P", log=str(tmp_path / "logs.csv"), connector={"attempts": True})
    with pytest.raises(ValueError, match=r"log: '.*logs\.attempts\.csv': the file has another header"):
        run(chunk)
