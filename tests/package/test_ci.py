"""Tests of `.ci/run_tests.py`, which reports success only if every test has run and passed, and of `build_backends`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import processes
from support.left_behind import EXIT_CODE, MARK
from support.processes import ROOT, clean_environment

BUILD = ROOT / ".ci" / "build_backends"
SCRIPT = ROOT / ".ci" / "run_tests.py"
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "xdist"]
WITH_XDIST_ONLY = clean_environment({"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})

FAILS = "def test_always_fails(): assert False\n"
FAILS_ONCE = """
from pathlib import Path
from typing import Any
def test_fails_once():
    first = Path("seen")
    if not first.exists():
        first.touch()
        assert False
"""
PASSES = "def test_passes(): pass\n"
# A test that fails, with an id that another process cannot select
UNSTABLE_ID = """
import os, pytest
@pytest.mark.parametrize("pid", [os.getpid()])
def test_unstable(pid): assert False
"""
SKIPPED = "import pytest\ndef test_skipped(): pytest.skip('no reason')\n"
EXPECTED_TO_FAIL = "import pytest\n@pytest.mark.xfail\ndef test_expected_to_fail(): assert False\n"
IMPORT_ERROR = "import no_such_module\n"
# The teardown of the module's fixture is reported for the last test, which does not use it
TEARDOWN_FAILS = """
import pytest
@pytest.fixture(scope="module")
def broken():
    yield
    assert False
def test_uses_it(broken): pass
def test_does_not(): pass
"""
LEAVES_A_PORT = """
import socket
def test_leaves_a_port(): globals()["kept"] = socket.create_server(("127.0.0.1", 0))
"""


@pytest.mark.parametrize(
    ("tests", "code", "text"),
    [
        (PASSES, 0, "1 tests, 0 failed at first, 0 skipped"),
        (PASSES + FAILS, 1, "2 tests, 1 failed at first, 0 skipped"),
        (FAILS + FAILS_ONCE, 1, "2 tests, 2 failed at first, 0 skipped"),
        (UNSTABLE_ID + FAILS_ONCE, 1, "2 failed, and only 1 of them could be run once more"),
        (PASSES + SKIPPED, 1, "test_skipped: no reason"),
        (PASSES + EXPECTED_TO_FAIL, 1, "1 skipped"),
        (PASSES + IMPORT_ERROR, 2, "no_such_module"),
        ("", 5, "0 tests"),
        (TEARDOWN_FAILS + FAILS_ONCE, 1, "3 tests, 1 failed at first"),
    ],
    ids=[
        "passes",
        "fails",
        "fails, and another once",
        "unstable id",
        "skipped",
        "xfail",
        "broken",
        "none",
        "teardown fails",
    ],
)
def test_the_exit_code_is_zero_only_if_all_tests_have_passed(tests: str, code: int, text: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(tests)
    (tmp_path / "reports").mkdir()
    command = [sys.executable, SCRIPT, tmp_path / "reports", "label", *PYTEST]
    done = processes.run(command, cwd=tmp_path, env=WITH_XDIST_ONLY, capture_output=True, text=True)
    assert (done.returncode, text in done.stdout) == (code, True), done.stdout + done.stderr


def test_a_test_may_fail_once_and_the_summary_lists_it_and_the_slowest_tests(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(PASSES + FAILS_ONCE)
    (tmp_path / "reports").mkdir()
    run = [sys.executable, SCRIPT, tmp_path / "reports", "label", *PYTEST]
    done = processes.run(run, cwd=tmp_path, env=WITH_XDIST_ONLY, capture_output=True, text=True)
    assert (done.returncode, "2 tests, 1 failed at first, 0 skipped" in done.stdout) == (0, True), done.stdout
    done = processes.run([sys.executable, SCRIPT, "--summary", tmp_path / "reports"], capture_output=True, text=True)
    *slowest, title, second = done.stdout.splitlines()
    assert slowest[0] == "the 25 slowest tests:"
    assert len(slowest) == 3
    assert (title, second) == ("passed only in the second run:", "  label: test_it::test_fails_once")


def test_a_run_that_leaves_something_behind_has_no_second_run(tmp_path: Path) -> None:
    """The check is that of the project, so the tests run with its conftest."""
    (tmp_path / "test_it.py").write_text(LEAVES_A_PORT + FAILS_ONCE)
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"))
    (tmp_path / "reports").mkdir()
    command: list[Any] = [sys.executable, SCRIPT, tmp_path / "reports", "label", *PYTEST, "-p", "pytest_asyncio.plugin"]
    command += ["-o", "asyncio_mode=auto", "-o", "markers=timing\nsoak\nbackends\nbrowser\nneighbours"]
    environment = {name: value for name, value in WITH_XDIST_ONLY.items() if name != MARK}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == EXIT_CODE, done.stdout + done.stderr
    assert "left behind: listening: 127.0.0.1:" in done.stdout
    assert "once more" not in done.stdout


def test_programs_that_are_there_are_not_built_again(tmp_path: Path) -> None:
    environment = clean_environment(
        {"OTEL_CONNECTOR_BACKENDS": str(tmp_path), "PATH": "/usr/bin:/bin", "GOPROXY": "off"}
    )
    find = processes.run([BUILD, "--find"], env=environment, capture_output=True, text=True)
    programs = [Path(line) for line in find.stdout.splitlines()]
    assert find.returncode == 1
    assert [program.name.partition("-")[0] for program in programs] == ["jaeger", "prometheus", "promtool", "otelcol"]
    assert not list(tmp_path.iterdir())
    for program in programs:
        assert program.parent == tmp_path
        program.touch(mode=0o755)
    for options in ([], ["--find"]):
        done = processes.run([BUILD, *options], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, find.stdout, "")
