"""Memory of 10,000 calls in flight in one process, compared with the same calls made by aiohttp alone.

Every run of the tests measures 400 calls: the memory for each call is the same, and the test is faster.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest
from support.calls_in_flight import measured
from support.waiting_server import SPARE

LIMIT = 20 * 1024
"""Bytes that a call in flight may need in addition to those that aiohttp needs."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("calls", [400, pytest.param(10_000, marks=pytest.mark.soak)])
def test_a_call_in_flight_needs_at_most_20_kib_more_than_with_aiohttp_alone(calls: int, tmp_path: Path) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY and most < calls + SPARE:
        pytest.skip(f"the limit of open files is {most}")
    logs = {kind: tmp_path / f"{kind}.csv" for kind in ("bare", "connector")}
    results = {kind: measured(kind, calls, log) for kind, log in logs.items()}

    assert [result["succeeded"] for result in results.values()] == [calls, calls]
    assert logs["connector"].read_text(encoding="utf-8").count("\n") == calls + 1
    above = results["connector"]["needed"] - results["bare"]["needed"]
    assert above <= LIMIT, f"{above:,.0f} bytes above {results['bare']['needed']:,.0f}"
