"""Tests that the code blocks of the README and of the pages in `docs` run, and the examples."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import pytest
from support import processes
from support.command_line import Finished, run_here
from support.documents import DOCS, PAGES, README, Block, blocks
from support.forked import run_python
from support.processes import ROOT

from otel_connector.testing import FaultServer, json_body

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
BLOCKS = blocks()
PYTHON = [block for block in BLOCKS if block.language == "python"]
COMMANDS = [block for block in BLOCKS if block.language == "bash"]
FIRST_CALL = next(block for block in PYTHON if block.name.startswith("getting-started.md"))
READS_A_LOG = ("DictReader", "review.load")
QUIET = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_SDK_DISABLED": "true"}

Outputs: TypeAlias = dict[str, Future[tuple[str, Path]]]
"""The output and the folder of each block and each example, by its name."""


def of(block: Block) -> str:
    """Return the id of a test."""
    return block.name


def local(text: str, server: FaultServer) -> str:
    """Replace the server of the documents by one on the loopback, and its many pages by a few."""
    return text.replace("https://api.example.com", f"http://127.0.0.1:{server.port}").replace("1:5000", "1:5")


def run(program: str, server: FaultServer, folder: Path) -> str:
    program = local(program, server)
    done = run_python(["-W", "error", "-c", program], folder, OTEL_TRACES_EXPORTER="none", OTEL_METRICS_EXPORTER="none")
    assert (done.returncode, done.stderr) == (0, "")
    return str(done.stdout)


def test_every_block_has_a_known_language() -> None:
    # Blocks of "text" are output. Blocks of "shell" and "yaml" run in tests/telemetry and tests/neighbours
    others = [block.language for block in BLOCKS if block.language in {"shell", "yaml"}]
    assert others == ["shell", "yaml", "shell", "yaml"]
    assert {block.language for block in BLOCKS} == {"python", "bash", "text", "shell", "yaml"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_fence_of_a_page_belongs_to_a_block(page: Path) -> None:
    fences = re.findall(r"```|~~~", page.read_text(encoding="utf-8"))
    name = str(page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT))
    assert len(fences) == 2 * sum(block.name.startswith(f"{name}:") for block in BLOCKS)


@pytest.fixture(scope="module")
def api() -> Iterator[FaultServer]:
    """Replaces api.example.com."""
    with FaultServer() as server:
        for path in ("/data", *(f"/items/{number}" for number in range(1, 6))):
            server.script(path, json_body({"answer": 42}))
        yield server


@pytest.fixture(scope="module")
def first_log(api: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the first call, and return its log."""
    folder = tmp_path_factory.mktemp("first")
    run(FIRST_CALL.text, api, folder)
    return folder / "logs.csv"


@pytest.fixture(scope="module")
def outputs(api: FaultServer, first_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outputs]:
    """Run all blocks and examples, two at a time: most of the time is the start of Python."""

    def run_block(block: Block, folder: Path) -> tuple[str, Path]:
        if any(name in block.text for name in READS_A_LOG):
            shutil.copy(first_log, folder)
        return run(block.text, api, folder), folder

    def run_example(path: Path, folder: Path) -> tuple[str, Path]:
        if path.stem.startswith("test_"):
            done = run_python(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)], folder)
            assert done.returncode == 0, done.stdout
            return done.stdout, folder
        return run(path.read_text(encoding="utf-8"), api, folder), folder

    with ThreadPoolExecutor(2) as pool:
        started: Outputs = {}
        for block in PYTHON:
            started[block.name] = pool.submit(run_block, block, tmp_path_factory.mktemp("block"))
        for path in EXAMPLES:
            started[path.stem] = pool.submit(run_example, path, tmp_path_factory.mktemp("example"))
        yield started


def masked(text: str) -> list[str]:
    """Replace what differs from run to run: ids, times and the address of the server."""
    text = re.sub(r"[0-9a-f]{32}-[0-9a-f]{16}", "ID", text)
    text = re.sub(r"https?://[\w.:]+/", "URL/", text)
    return [re.sub(r"\d+\.\d+", "TIME", line).rstrip() for line in text.strip().splitlines()]


@pytest.mark.parametrize("block", PYTHON, ids=of)
def test_a_python_block_runs_and_prints_what_the_page_shows(block: Block, outputs: Outputs) -> None:
    output, _ = outputs[block.name].result()
    if block.output is not None:
        assert masked(output) == masked(block.output)


def test_the_first_call_prints_the_response_and_writes_a_row(outputs: Outputs) -> None:
    output, folder = outputs[FIRST_CALL.name].result()
    assert output == "{'answer': 42}\n"
    header, row = (folder / "logs.csv").read_text().splitlines()
    assert header == "call_id,project,t,delta_t,url,redirect_url,response_size,response_code,success,error"
    assert ",ExampleProject," in row
    assert row.endswith(",14,200,True,")


def parts_of(block: Block) -> Iterator[list[str]]:
    for line in block.text.splitlines():
        yield from (shlex.split(part, comments=True) for part in line.split(" && "))


@pytest.fixture(scope="module")
def ran_once(api: FaultServer, first_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Finished]:
    """Return a function that runs ``otel-connector`` with these words, beside the two logs that commands read.

    Two pages have the same commands: a command runs once. A demo makes fewer calls than in the pages.
    """

    @functools.cache
    def run_command(*words: str) -> Finished:
        folder = tmp_path_factory.mktemp("command")
        for name in ("logs.csv", "demo.csv"):
            shutil.copy(first_log, folder / name)
        if words[0] == "review":
            return run_here(folder, *words, **QUIET)
        fewer = ["--calls", "18"] if words[0] == "demo" else []
        command = ["-m", "otel_connector", *(local(word, api) for word in words), *fewer]
        done = run_python(command, folder, **QUIET)
        return Finished(done.returncode, done.stdout, done.stderr)

    return run_command


@pytest.mark.parametrize("block", COMMANDS, ids=of)
def test_the_commands_of_a_block_run(block: Block, ran_once: Callable[..., Finished]) -> None:
    """CI runs the installations, on a clean checkout. Of programs in the tree, only ``--help`` is run here."""
    ran = 0
    for words in parts_of(block):
        if words in (["python", "-m", "venv", ".venv"], [".", ".venv/bin/activate"]):
            continue
        if words[:4] == ["python", "-m", "pip", "install"]:
            assert set(re.findall(r"\w+", words[4].partition("[")[2])) <= extras(), words
            continue
        if words[0] == "python":
            done = run_python([*words[1:], "--help"], ROOT, **QUIET)
            assert done.returncode == 0, done.stderr
        else:
            assert words[0] == "otel-connector"
            code, _, error = ran_once(*words[1:])
            assert code == 0, error
        ran += 1
    assert ran or "pip install" in block.text


def environment() -> dict[str, str]:
    return processes.clean_environment(QUIET)


def extras() -> set[str]:
    """Return the names of the extras. Python 3.10 has no parser of TOML."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    return set(re.findall(r"^([\w-]+) = \[", table, re.MULTILINE))


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])
def test_an_example_runs_and_prints_something(name: str, outputs: Outputs) -> None:
    assert outputs[name].result()[0]


def test_the_tables_list_all_columns_errors_and_retried_statuses() -> None:
    from otel_connector import COLUMNS, _errors
    from otel_connector._call._retry import RETRIED_STATUSES

    log, retries = ((DOCS / "guides" / name).read_text(encoding="utf-8") for name in ("log.md", "retries.md"))
    for column in COLUMNS:
        assert f"| {column} |" in log
    for name, kind in vars(_errors).items():
        if isinstance(kind, type) and issubclass(kind, _errors.ConnectorError):
            assert f"`{name}`" in retries or name in {"BodyError", "RetryRefused"}
    assert f"| {', '.join(map(str, sorted(RETRIED_STATUSES)))} |" in retries


def test_the_classifiers_and_the_page_about_limits_name_the_versions_that_were_run() -> None:
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    limits = (DOCS / "limits.md").read_text(encoding="utf-8")
    assert f"CPython {', '.join(classifiers[:-1])} and {classifiers[-1]}" in limits


def test_the_readme_is_one_page_and_its_programs_are_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 180
    programs = [block.text for block in PYTHON if block.name.startswith("README.md")]
    assert len(programs) == 3
    assert all(len(program.splitlines()) <= 12 for program in programs)
