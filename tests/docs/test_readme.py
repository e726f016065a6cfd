"""Tests that the code blocks of the README and the examples run."""

from __future__ import annotations

import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import pytest
from support import processes
from support.forked import run_python
from support.processes import ROOT

from otel_connector.testing import FaultServer, json_body

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [text for language, text in BLOCKS if language == "bash"]

Outputs: TypeAlias = dict[int | str, Future[tuple[str, Path]]]
"""The output and the folder of each block (by its number) and each example (by its name)."""


def run(program: str, server: FaultServer, folder: Path) -> str:
    program = program.replace("https://api.example.com", f"http://127.0.0.1:{server.port}")
    done = run_python(["-W", "error", "-c", program], folder, OTEL_TRACES_EXPORTER="none", OTEL_METRICS_EXPORTER="none")
    assert (done.returncode, done.stderr) == (0, "")
    return str(done.stdout)


def test_every_block_has_a_known_language() -> None:
    # Blocks of "text" are output. Blocks of "shell" and "yaml" run in tests/telemetry
    assert Counter(language for language, _ in BLOCKS if language in {"shell", "yaml"}) == {"shell": 1, "yaml": 2}
    assert {language for language, _ in BLOCKS} == {"python", "bash", "text", "shell", "yaml"}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outputs]:
    """Run all blocks and examples, two at a time: most of the time is the start of Python."""

    def run_block(number: int, folder: Path) -> tuple[str, Path]:
        if "DictReader" in PYTHON[number] or "review.load" in PYTHON[number]:  # reads the log of the first block
            run(PYTHON[0], api, folder)
        return run(PYTHON[number], api, folder), folder

    def run_example(path: Path, folder: Path) -> tuple[str, Path]:
        if path.stem.startswith("test_"):
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
            done = processes.run(
                command,
                check=True,
                capture_output=True,
                timeout=60,
                cwd=folder,
                env={"PYTHONPATH": str(ROOT)},
                text=True,
            )
            return done.stdout, folder
        return run(path.read_text(encoding="utf-8"), api, folder), folder

    with FaultServer() as api, ThreadPoolExecutor(2) as pool:
        api.script("/data", json_body({"answer": 42}))  # replaces api.example.com
        started: Outputs = {}
        for number in range(len(PYTHON)):
            started[number] = pool.submit(run_block, number, tmp_path_factory.mktemp("block"))
        for path in EXAMPLES:
            started[path.stem] = pool.submit(run_example, path, tmp_path_factory.mktemp("example"))
        yield started


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_a_python_block_runs(number: int, outputs: Outputs) -> None:
    outputs[number].result()


def test_the_first_block_prints_the_response_and_writes_a_row(outputs: Outputs) -> None:
    output, folder = outputs[0].result()
    assert output == "{'answer': 42}\n"
    header, row = (folder / "logs.csv").read_text().splitlines()
    assert header == "call_id,project,t,delta_t,url,redirect_url,response_size,response_code,success,error"
    assert ",ExampleProject," in row
    assert row.endswith(",14,200,True,")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_after_an_installation_exists(command: str) -> None:
    """CI runs the installations, on a clean checkout. Here the command after ``&&`` must exist."""
    install, ran = (shlex.split(part) for part in command.strip().split(" && "))
    assert install[:4] == ["python", "-m", "pip", "install"]
    program = [sys.executable, *ran[1:]] if ran[0] == "python" else [sys.executable, "-m", "otel_connector", *ran[1:]]
    processes.run([*program, "--help"], check=True, capture_output=True, timeout=60, cwd=ROOT)


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])
def test_an_example_runs_and_prints_something(name: str, outputs: Outputs) -> None:
    assert outputs[name].result()[0]


def test_the_tables_list_all_columns_errors_and_retried_statuses() -> None:
    from otel_connector import COLUMNS, _errors
    from otel_connector._call._retry import RETRIED_STATUSES

    for column in COLUMNS:
        assert f"| {column} |" in README
    for name, kind in vars(_errors).items():
        if isinstance(kind, type) and issubclass(kind, _errors.ConnectorError):
            assert f"`{name}`" in README or name in {"BodyError", "RetryRefused"}
    assert f"| {', '.join(map(str, sorted(RETRIED_STATUSES)))} |" in README
