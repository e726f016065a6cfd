"""Setup of the log and OTLP without code, as documented: by environment variables or by a file."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.collector import Collector, collector
from support.documents import block_starting
from support.forked import OPENTELEMETRY_INSTRUMENT, run_python

from otel_connector.testing import FaultServer, ok

SHELL = block_starting("shell", "pip install opentelemetry-distro\n")
FILE = block_starting("yaml", "file_format:")

PROGRAM = """
import asyncio, sys
import aiohttp
from otel_connector import AsyncConnector

async def main():
    async with aiohttp.ClientSession() as session:
        for _ in range(3):
            await AsyncConnector(None).get(session, sys.argv[1], "P")

{run}
"""


@pytest.fixture(scope="module")
def real_collector() -> Iterator[Collector]:
    with collector() as running:
        yield running


def assert_log_and_collector_have_all_calls(folder: Path, at: Collector) -> None:
    with (folder / "logs.csv").open(newline="", encoding="utf-8") as file:
        rows = Counter(row["call_id"] for row in csv.DictReader(file))
    assert sum(rows.values()) == 3
    at.received.wait_for(lambda: Counter({i: n for i, n in at.received.call_ids().items() if i in rows}) == rows)


@pytest.mark.neighbours("rotel", "opentelemetry.distro")
@pytest.mark.parametrize("way", ["environment", "file", "configure() and file"])
def test_the_log_and_the_collector_receive_all_calls(
    way: str, server: FaultServer, real_collector: Collector, tmp_path: Path
) -> None:
    server.script("/x", ok)
    own = "from otel_connector import configure\nwith configure():\n    asyncio.run(main())"
    (tmp_path / "app.py").write_text(PROGRAM.format(run=own if way.startswith("configure") else "asyncio.run(main())"))
    variables = real_collector.environment()
    if way == "environment":
        *_, exports, command = SHELL.splitlines()
        variables |= dict(each.split("=", 1) for each in exports.removeprefix("export ").split())
        assert command == "opentelemetry-instrument python app.py"
    else:
        text = FILE.replace("http://localhost:4317", real_collector.endpoints["grpc"])
        (tmp_path / "otel.yaml").write_text(text)
        variables["OTEL_CONFIG_FILE"] = "otel.yaml"
    program = ["app.py", server.url("/x")]
    if not way.startswith("configure"):
        program = ["-c", OPENTELEMETRY_INSTRUMENT, sys.executable, *program]
    done = run_python(program, tmp_path, **variables)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert_log_and_collector_have_all_calls(tmp_path, real_collector)
