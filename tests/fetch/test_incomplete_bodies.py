"""A response that is not complete is a failure on every way to fetch: no result, an exit code, and again on resume.

`tests/call/test_framing.py` and `test_ranges.py` have all forms of such responses.
"""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.command_line import run_here

from otel_connector import AsyncConnector, Chunk, fetch_chunk
from otel_connector.testing import FaultServer, Step, json_body, respond
from otel_connector.testing._steps import Connection


async def play_reset(connection: Connection) -> None:
    await connection.send(b"HTTP/1.0 200 OK\r\n\r\n1")  # of 12; JSON as well
    connection.abort()


async def play_malformed(connection: Connection) -> None:
    await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\nzz\r\n")


FAULTS = {
    "reset": ("BodyTruncated", Step(name="reset", play=play_reset)),
    "part": ("BodyTruncated", respond(206, b"1", {"Content-Range": "bytes 0-0/2"})),
    "malformed": ("MalformedResponse", Step(name="malformed", play=play_malformed)),
}
EXPECTED = {"/ok": "", **{f"/{name}": kind for name, (kind, _) in FAULTS.items()}}


@pytest.fixture
def api() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.script("/ok", json_body(12))
        for name, (_, step) in FAULTS.items():
            server.script(f"/{name}", step)
        yield server


def repair(api: FaultServer) -> None:
    """Serve the complete response everywhere."""
    for path in EXPECTED:
        api.script(path, json_body(12))
    api.reset_log()


def rows(path: Path) -> dict[str, str]:
    """Return the class of the error of each row, by path of its URL."""
    with path.open(encoding="utf-8", newline="") as file:
        return {"/" + row["url"].rpartition("/")[2]: row["error"].partition(":")[0] for row in csv.DictReader(file)}


def test_fetch_exits_with_1_and_resume_fetches_only_what_failed(api: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "urls").write_text("\n".join(map(api.url, EXPECTED)))
    code, _, _ = run_here(tmp_path, "fetch", "urls", "--out", "r.jsonl", "--tries", "1")
    assert (code, rows(tmp_path / "logs.csv")) == (1, EXPECTED)
    assert [json.loads(line)["json"] for line in (tmp_path / "r.jsonl").read_text().splitlines()] == [12]
    repair(api)
    code, _, _ = run_here(tmp_path, "fetch", "urls", "--out", "r.jsonl", "--resume")
    assert code == 0
    assert {request.path for request in api.requests} == set(EXPECTED) - {"/ok"}
    assert [json.loads(line)["json"] for line in (tmp_path / "r.jsonl").read_text().splitlines()] == [12] * 4


async def one_by_one(urls: list[str]) -> AsyncIterator[str]:
    for url in urls:
        yield url


@pytest.mark.parametrize("given", [list, iter, one_by_one], ids=["list", "iterator", "async iterator"])
async def test_get_many_yields_failures_and_resume_fetches_them_again(
    given: Callable[[list[str]], Any], api: FaultServer, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    urls = [api.url(path) for path in EXPECTED]
    subject = AsyncConnector(tmp_path / "logs.csv", n_tries=1)
    outcomes = [each async for each in subject.get_many(session, given(urls), "P")]
    kinds = {each.record.url: type(each.error).__name__ if each.error else "" for each in outcomes}
    assert kinds == {api.url(path): kind for path, kind in EXPECTED.items()}
    repair(api)
    again = [each async for each in subject.get_many(session, given(urls), "P", resume=True)]
    assert {str(each.url) for each in again} == set(urls) - {api.url("/ok")}
    assert [each.value for each in again] == [12] * 3


async def test_a_chunk_reports_failures_and_fetches_them_again(api: FaultServer, tmp_path: Path) -> None:
    urls = tuple(api.url(path) for path in EXPECTED)
    log, results = str(tmp_path / "logs.csv"), str(tmp_path / "r.jsonl")
    part = Chunk(urls=urls, project="P", log=log, results=results, connector={"n_tries": 1})
    report = await fetch_chunk(part)
    assert (report.succeeded, report.failed) == (1, 3)
    assert await asyncio.to_thread(rows, tmp_path / "logs.csv") == EXPECTED
    repair(api)
    report = await fetch_chunk(part)
    assert (report.succeeded, report.failed, report.skipped) == (3, 0, 1)
