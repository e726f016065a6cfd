"""Tests that every test has the same id in all processes, so that xdist and ``--last-failed`` can select it."""

from __future__ import annotations

import sys

import pytest
from support import processes
from support.processes import ROOT, clean_environment


def collect() -> list[str]:
    """Return the ids of all tests, collected in another process with another hash seed."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", "-m", "", "-p", "no:cacheprovider"]
    environment = clean_environment({"PYTHONHASHSEED": "7"})
    done = processes.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_two_processes_collect_the_same_ids(request: pytest.FixtureRequest) -> None:
    own_ids, other_ids = [item.nodeid for item in request.session.items], collect()
    assert len(other_ids) > 4_000
    assert len(set(other_ids)) == len(other_ids)
    assert set(own_ids) <= set(other_ids)
