"""Tests that every test has the same id in all processes, so that xdist and ``--last-failed`` can select it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from support import processes
from support.processes import ROOT, clean_environment

PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "xdist"]
# `.ci/run` selects "thorough", and compares the ids of all groups
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
# A set of texts has another order in each process
UNSTABLE = """
import pytest
@pytest.mark.parametrize("name", set(map(str, range(100))))
def test_unstable(name): pass
"""


def collect(folder: Path) -> list[str]:
    """Return the ids of all tests, collected in another process with another hash seed and temporary folder."""
    command = [*PYTEST, "--collect-only", "-n", "0", "-m", "", "-p", "no:cacheprovider"]
    environment = clean_environment({"PYTHONHASHSEED": "7", "TMPDIR": str(folder)})
    done = processes.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout
    return [line for line in done.stdout.splitlines() if "::" in line]


def compared_by_xdist(config: pytest.Config) -> bool:
    """Return whether this run has several workers, each with a hash seed of its own."""
    workers: int = getattr(config, "workerinput", {}).get("workercount", 1)
    return workers > 1 and os.environ.get("PYTHONHASHSEED", "random") == "random"


def test_two_processes_collect_the_same_ids(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    own_ids = [item.nodeid for item in request.session.items]
    assert len(set(own_ids)) == len(own_ids)
    if compared_by_xdist(request.config) and not THOROUGH:
        return  # it has ended a run with different ids before the first test, as the next test shows
    other_ids = collect(tmp_path)
    assert len(other_ids) > 4_000
    assert len(set(other_ids)) == len(other_ids)
    assert set(own_ids) <= set(other_ids)


def test_workers_that_collect_different_ids_run_no_test(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(UNSTABLE)
    environment = clean_environment({"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONHASHSEED": "random"})
    done = processes.run([*PYTEST, "-n", "2"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, "Different tests were collected between" in done.stdout) == (1, True), done.stdout
    assert "passed" not in done.stdout
