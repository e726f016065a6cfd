"""Every block of the README and every example runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_connector.testing import FaultServer, json_body

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [text for language, text in BLOCKS if language == "bash"]


@pytest.fixture
def api() -> Iterator[FaultServer]:
    """What stands in for api.example.com."""
    with FaultServer() as server:
        server.script("/data", json_body({"answer": 42}))
        yield server


def run(program: str, server: FaultServer, folder: Path) -> str:
    program = program.replace("https://api.example.com", f"http://127.0.0.1:{server.port}")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-"],
        input=program,
        cwd=folder,
        env={"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert {language for language, _ in BLOCKS} == {"python", "bash", "text"}  # the last is what one of them prints


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_block(number: int, api: FaultServer, tmp_path: Path) -> None:
    if "DictReader" in PYTHON[number]:  # it reads the log that the first block writes
        run(PYTHON[0], api, tmp_path)
    run(PYTHON[number], api, tmp_path)


def test_first_block_prints_the_answer(api: FaultServer, tmp_path: Path) -> None:
    assert run(PYTHON[0], api, tmp_path) == "{'answer': 42}\n"
    header, row = (tmp_path / "logs.csv").read_text().splitlines()
    assert header == "call_id,project,t,delta_t,url,redirect_url,response_size,response_code,success,error"
    assert ",ExampleProject," in row
    assert row.endswith(",14,200,True,")


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str) -> None:
    """The installing halves run in CI, on a clean checkout; here the commands they are followed by must exist."""
    install, ran = (shlex.split(part) for part in command.strip().split(" && "))
    assert install[:4] == ["python", "-m", "pip", "install"]
    program = [sys.executable, *ran[1:]] if ran[0] == "python" else [sys.executable, "-m", "otel_connector", *ran[1:]]
    subprocess.run([*program, "--help"], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, api: FaultServer, tmp_path: Path) -> None:
    if path.stem.startswith("test_"):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
        subprocess.run(
            command, check=True, capture_output=True, timeout=60, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}
        )
    else:
        assert run(path.read_text(encoding="utf-8"), api, tmp_path)


def test_tables_name_what_the_code_has() -> None:
    from otel_connector import COLUMNS, _errors
    from otel_connector._retry import RETRIED_STATUSES

    for column in COLUMNS:
        assert f"| {column} |" in README
    for name, kind in vars(_errors).items():
        if isinstance(kind, type) and issubclass(kind, _errors.ConnectorError):
            assert f"`{name}`" in README or name in {"BodyError", "RetryRefused"}
    assert f"| {', '.join(map(str, sorted(RETRIED_STATUSES)))} |" in README
