"""Every block of the README and every example runs."""

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

Printed: TypeAlias = dict[int | str, Future[tuple[str, Path]]]
"""By a block's number or an example's name: what it printed, and its folder."""


def run(program: str, server: FaultServer, folder: Path) -> str:
    program = program.replace("https://api.example.com", f"http://127.0.0.1:{server.port}")
    done = run_python(["-W", "error", "-c", program], folder, OTEL_TRACES_EXPORTER="none", OTEL_METRICS_EXPORTER="none")
    assert (done.returncode, done.stderr) == (0, "")
    return str(done.stdout)


def test_every_block_is_of_a_kind_that_is_run() -> None:
    # text is what something prints; the shell's and the two in YAML run in test_zero_code and test_ways_between
    assert Counter(language for language, _ in BLOCKS if language in {"shell", "yaml"}) == {"shell": 1, "yaml": 2}
    assert {language for language, _ in BLOCKS} == {"python", "bash", "text", "shell", "yaml"}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Printed]:
    """Run them all, two at a time: most of it is a Python that starts."""

    def run_block(number: int, folder: Path) -> tuple[str, Path]:
        if "DictReader" in PYTHON[number] or "review.load" in PYTHON[number]:  # reads what the first block writes
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
        api.script("/data", json_body({"answer": 42}))  # it stands in for api.example.com
        printing: Printed = {}
        for number in range(len(PYTHON)):
            printing[number] = pool.submit(run_block, number, tmp_path_factory.mktemp("block"))
        for path in EXAMPLES:
            printing[path.stem] = pool.submit(run_example, path, tmp_path_factory.mktemp("example"))
        yield printing


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_block(number: int, printed: Printed) -> None:
    printed[number].result()


def test_first_block_prints_the_answer(printed: Printed) -> None:
    said, folder = printed[0].result()
    assert said == "{'answer': 42}\n"
    header, row = (folder / "logs.csv").read_text().splitlines()
    assert header == "call_id,project,t,delta_t,url,redirect_url,response_size,response_code,success,error"
    assert ",ExampleProject," in row
    assert row.endswith(",14,200,True,")


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str) -> None:
    """The installing halves run in CI, on a clean checkout; here the commands they are followed by must exist."""
    install, ran = (shlex.split(part) for part in command.strip().split(" && "))
    assert install[:4] == ["python", "-m", "pip", "install"]
    program = [sys.executable, *ran[1:]] if ran[0] == "python" else [sys.executable, "-m", "otel_connector", *ran[1:]]
    processes.run([*program, "--help"], check=True, capture_output=True, timeout=60, cwd=ROOT)


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])
def test_example(name: str, printed: Printed) -> None:
    assert printed[name].result()[0]


def test_tables_name_what_the_code_has() -> None:
    from otel_connector import COLUMNS, _errors
    from otel_connector._retry import RETRIED_STATUSES

    for column in COLUMNS:
        assert f"| {column} |" in README
    for name, kind in vars(_errors).items():
        if isinstance(kind, type) and issubclass(kind, _errors.ConnectorError):
            assert f"`{name}`" in README or name in {"BodyError", "RetryRefused"}
    assert f"| {', '.join(map(str, sorted(RETRIED_STATUSES)))} |" in README
