"""The id of a test is the same in every process, so that xdist and ``--last-failed`` can select it."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from support import processes
from support.processes import ROOT, clean_environment


def collect(hash_seed: int) -> list[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", "-m", "", "-p", "no:cacheprovider"]
    environment = clean_environment({"PYTHONHASHSEED": str(hash_seed)})
    done = processes.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_two_processes_collect_the_same_ids() -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(collect, (1, 2))
    assert len(first) > 4_000
    assert first == second
    assert len(set(first)) == len(first)
