"""Programs that seed `random`: the SDK draws its ids from it, so three runs with one seed have the same call_ids."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import aiohttp
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.forked import run_python
from support.logs import Log

from otel_connector import AsyncConnector
from otel_connector._fetch._results import ResultsFile, ResultsSink
from otel_connector._replay._replay import Replay
from otel_connector.testing import FakeClock, FaultServer, ok

CONFIGURED = """
import random
random.seed(42)
from opentelemetry import trace
from otel_connector.providers import configure
configure()
random.seed(42)
with trace.get_tracer("program").start_as_current_span("call") as span:
    context = span.get_span_context()
    print(f"{context.trace_id:032x}-{context.span_id:016x}", random.getrandbits(32))
"""


def ids_of_two_runs(folder: Path, **environment: str) -> list[list[str]]:
    none = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
    runs = [run_python(["-W", "error", "-c", CONFIGURED], folder, **none, **environment) for _ in "ab"]
    assert [run.stderr for run in runs] == ["", ""]
    return [run.stdout.split() for run in runs]


def test_a_seed_does_not_influence_the_ids_of_configure(tmp_path: Path) -> None:
    """Nor do the ids influence what the program draws."""
    first, second = ids_of_two_runs(tmp_path)
    assert first[0] != second[0]
    assert first[1] == second[1] == str(random.Random(42).getrandbits(32))


def test_the_operators_id_generator_is_used(tmp_path: Path) -> None:
    """Set by OTEL_PYTHON_ID_GENERATOR, as the SDK documents; its own one is named ``random``."""
    first, second = ids_of_two_runs(tmp_path, OTEL_PYTHON_ID_GENERATOR="random")
    assert first == second


async def three_runs(server: FaultServer, session: aiohttp.ClientSession, log: Log, folder: Path) -> None:
    """Fetch two URLs in each of three runs that draw the same ids. The results of the last run are lost."""
    for run in range(3):
        random.seed(42)
        clock = FakeClock(1_000.0 * (run + 1))
        connector = AsyncConnector(log.path, clock=clock, tracer_provider=TracerProvider(shutdown_on_exit=False))
        name = "lost.jsonl" if run == 2 else "results.jsonl"
        results = await asyncio.to_thread(ResultsFile, folder / name, resume=True)
        urls = [server.url("/x", run=run, n=number) for number in range(2)]
        outcomes = connector.get_many(session, urls, "P", sink=ResultsSink(results), decode=bytes, ordered=True)
        assert [outcome.error async for outcome in outcomes] == [None, None]
        await results.aclose()


async def test_resume_and_replay_tell_calls_with_equal_ids_apart_by_their_start(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, tmp_path: Path
) -> None:
    server.script("/x", ok)
    await three_runs(server, session, log, tmp_path)
    ids = [record.call_id for record in log.records()]
    assert (len(ids), len(set(ids))) == (6, 2)
    exporter = InMemorySpanExporter()
    replay = await asyncio.to_thread(Replay, [log.path], exporter, to="memory", rate=None)
    await asyncio.to_thread(lambda: list(replay.run()))
    assert (replay.replayed().sent, replay.replayed().duplicates) == (6, 0)
    assert len(exporter.get_finished_spans()) == 6
    results = await asyncio.to_thread(ResultsFile, tmp_path / "results.jsonl", resume=True)
    urls = [server.url("/x", run=run, n=number) for run in range(3) for number in range(2)]
    connector = AsyncConnector(log.path, clock=FakeClock())
    again = connector.get_many(session, urls, "P", sink=ResultsSink(results), decode=bytes, resume=True)
    assert {outcome.url async for outcome in again} == set(urls[4:]), "only these results were lost"
    await results.aclose()


@pytest.mark.parametrize("start", [b"", b'"t":1.000000,'], ids=["line of 0.1", "another start"])
async def test_results_of_version_0_1_are_found_by_their_id_alone(
    start: bytes, server: FaultServer, session: aiohttp.ClientSession, log: Log, tmp_path: Path
) -> None:
    server.script("/x", ok)
    connector, path = AsyncConnector(log.path), tmp_path / "results.jsonl"
    await connector.get(session, server.url("/x"), "P")
    call_id = log.only().call_id.encode()
    path.write_bytes(b'{"url":"u","call_id":"' + call_id + b'",' + start + b'"status":200,"json":1}\n')
    results = await asyncio.to_thread(ResultsFile, path, resume=True)
    again = connector.get_many(session, [server.url("/x")], "P", sink=ResultsSink(results), decode=bytes, resume=True)
    assert len([outcome async for outcome in again]) == (1 if start else 0)
    await results.aclose()
