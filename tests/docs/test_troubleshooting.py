"""Tests that `docs/troubleshooting.md` has an entry for each error class and each log line of the package.

Its messages of commands are compared with what the commands print.
"""

from __future__ import annotations

import ast
import gzip
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from support import logs
from support.command_line import finish, run_here, start
from support.documents import DOCS, blocks

import otel_connector
from otel_connector import ConnectorError
from otel_connector._telemetry._export_problem import Kind

PAGE = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
TEXTS = [
    line
    for block in blocks()
    if block.name.startswith("troubleshooting.md") and block.language == "text"
    for line in block.text.splitlines()
]
MESSAGES = [line for line in TEXTS if line.startswith("otel-connector")]
SHOWN = [line for line in TEXTS if line not in MESSAGES]
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


def classes(of: type[ConnectorError]) -> Iterator[str]:
    yield of.__name__
    for kind in of.__subclasses__():
        if kind.__module__.partition(".")[0] == "otel_connector":
            yield from classes(kind)


def called(node: ast.AST) -> str:
    """Return the name of the function or method that a node calls; empty if it calls none."""
    match node:
        case ast.Call(func=ast.Attribute(attr=name)) | ast.Call(func=ast.Name(id=name)):
            return name
    return ""


def texts_in(call: ast.Call) -> Iterator[str]:
    """Yield the arguments that are a line of a log: texts of several words."""
    for arg in call.args:
        if isinstance(arg, ast.Constant) and isinstance(arg.value, str) and " " in arg.value:
            yield arg.value


def log_lines(path: Path) -> Iterator[str]:
    """Yield the text of each log call in a file, before its values are inserted.

    The text is in the call, or in a constant of the file, or a parameter of a function that is called in the file.
    """
    text = path.read_text(encoding="utf-8")
    if "logger." not in text:
        return
    tree = ast.parse(text)
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for call in ast.walk(function):
            match call:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="_logger" | "logger"), attr=level)) if (
                    level in LEVELS
                ):
                    texts = list(texts_in(call))
                    if not texts:
                        names = [arg.id for arg in call.args if isinstance(arg, ast.Name)]
                        texts = [constants[name] for name in names if name in constants]
                    if not texts:
                        callers = [node for node in ast.walk(tree) if called(node) == function.name]
                        texts = [text for node in callers if isinstance(node, ast.Call) for text in texts_in(node)]
                    assert texts, f"{path}:{call.lineno}: this test cannot find the text of the log line"
                    yield from texts


def pattern_of(line: str) -> str:
    """Return a pattern of a log line with any values."""
    return ".*".join(map(re.escape, re.split(r"%[a-z]", line)))


PACKAGE = Path(otel_connector.__file__).parent


@cache
def lines_of_the_package() -> frozenset[str]:
    return frozenset(line for path in PACKAGE.rglob("*.py") for line in log_lines(path))


def test_the_log_lines_were_found() -> None:
    assert {"on_retry raised; the call continues%s", "aiohttp %s has no %s, so %s"} < lines_of_the_package()
    assert {"%s not sent: %s", "%s rejected by %s"} < lines_of_the_package()
    assert len(lines_of_the_package()) >= 9


def test_every_error_class_has_an_entry() -> None:
    names = set(classes(ConnectorError))
    assert len(names) > 5
    assert {name for name in names if not re.search(rf"^### {name}\n\n\S", PAGE, re.MULTILINE)} == set()


def test_every_log_line_has_an_entry_with_an_example_and_every_example_is_a_log_line() -> None:
    patterns = {line: re.compile(pattern_of(line)) for line in lines_of_the_package()}
    assert [line for line, pattern in patterns.items() if not any(map(pattern.fullmatch, SHOWN))] == []
    assert [shown for shown in SHOWN if not any(pattern.fullmatch(shown) for pattern in patterns.values())] == []


def row_of(kind: Kind) -> str:
    """Return a pattern of the beginning of a row of the table of losses."""
    sentence = f"{{what}} were rejected by {kind.value}" if kind is Kind.PARTIAL else kind.value
    pattern = re.sub(r"\\\{[a-z_]+\\\}", ".*?", re.escape(sentence))
    return rf"^\| .* \| `{pattern}`"


def test_every_kind_of_loss_has_a_row_with_an_example() -> None:
    assert [kind for kind in Kind if not re.search(row_of(kind), PAGE, re.MULTILINE)] == []


RUNS = {
    "a missing server": (["demo"], {"without": "trustme"}),
    "a missing database": (["review", "logs.csv"], {"without": "duckdb"}),
    "a log of another program": (["fetch", "-", "--log", "other.csv"], {}),
    "a compressed log": (["fetch", "-", "--log", "old.csv"], {}),
    "a review of another file": (["review", "other.csv"], {}),
    "results that exist": (["fetch", "http://127.0.0.1:1/{}", "--range", "1:5", "--out", "items.jsonl"], {}),
    "one redacted form": (["fetch", "https://api.example.com/items?key={}", "--range", "1:5"], {}),
    "no collector": (
        ["replay", "logs.csv"],
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        },
    ),
}


def test_every_message_of_a_command_is_printed_by_a_run(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n", encoding="utf-8")
    (tmp_path / "old.csv").write_bytes(gzip.compress(b""))
    (tmp_path / "items.jsonl").write_text(
        '{"url":"http://127.0.0.1/","call_id":"1","t":1.0,"status":200,"text":""}\n', encoding="utf-8"
    )
    logs.write(tmp_path / "logs.csv", [logs.call(0)])
    finished = [run_here(tmp_path, *words, **extra) for words, extra in RUNS.values()]
    finished.append(finish(start(tmp_path, "demo", without="typer")))  # in this process it is loaded
    assert {done.code for done in finished} == {2}
    printed = [done.error.splitlines()[-1] for done in finished]
    assert len(MESSAGES) == len(finished)
    for message in MESSAGES:
        pattern = ".*".join(map(re.escape, message.split("...")))
        assert any(re.fullmatch(pattern, line) for line in printed), (message, printed)
