"""`.ci/run_tests.py` reports success only if every test has run and passed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support import processes
from support.processes import ROOT, clean_environment

SCRIPT = ROOT / ".ci" / "run_tests.py"
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "xdist"]
WITH_XDIST_ONLY = clean_environment({"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})

ALWAYS = "def test_always_fails(): assert False\n"
ONCE = """
from pathlib import Path
def test_fails_once():
    first = Path("seen")
    if not first.exists():
        first.touch()
        assert False
"""
PASSES = "def test_passes(): pass\n"
# A case that fails, and whose id no second process can select
UNSTABLE = """
import os, pytest
@pytest.mark.parametrize("pid", [os.getpid()])
def test_unstable(pid): assert False
"""
SKIPPED = "import pytest\ndef test_skipped(): pytest.skip('no reason')\n"
EXPECTED = "import pytest\n@pytest.mark.xfail\ndef test_expected_to_fail(): assert False\n"
BROKEN = "import no_such_module\n"


@pytest.mark.parametrize(
    ("tests", "code", "text"),
    [
        (PASSES, 0, "1 tests, 0 failed at first, 0 skipped"),
        (PASSES + ONCE, 0, "2 tests, 1 failed at first, 0 skipped"),
        (PASSES + ALWAYS, 1, "2 tests, 1 failed at first, 0 skipped"),
        (ALWAYS + ONCE, 1, "2 tests, 2 failed at first, 0 skipped"),
        (UNSTABLE + ONCE, 1, "2 failed, and only 1 of them could be run once more"),
        (PASSES + SKIPPED, 1, "test_skipped: no reason"),
        (PASSES + EXPECTED, 1, "1 skipped"),
        (PASSES + BROKEN, 2, "no_such_module"),
        ("", 5, "0 tests"),
    ],
    ids=[
        "passes",
        "fails once",
        "fails",
        "fails, and another once",
        "unstable id",
        "skipped",
        "xfail",
        "broken",
        "none",
    ],
)
def test_exit_code(tests: str, code: int, text: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(tests)
    (tmp_path / "reports").mkdir()
    command = [sys.executable, SCRIPT, tmp_path / "reports", "label", *PYTEST]
    done = processes.run(command, cwd=tmp_path, env=WITH_XDIST_ONLY, capture_output=True, text=True)
    assert (done.returncode, text in done.stdout) == (code, True), done.stdout + done.stderr


def test_summary(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(PASSES + ONCE)
    (tmp_path / "reports").mkdir()
    run = [sys.executable, SCRIPT, tmp_path / "reports", "label", *PYTEST]
    processes.run(run, cwd=tmp_path, env=WITH_XDIST_ONLY, capture_output=True, check=True)
    done = processes.run([sys.executable, SCRIPT, "--summary", tmp_path / "reports"], capture_output=True, text=True)
    *slowest, title, second = done.stdout.splitlines()
    assert slowest[0] == "the 25 slowest tests:"
    assert len(slowest) == 3
    assert (title, second) == ("passed only in the second run:", "  label: test_it::test_fails_once")
