"""Tests that no file name and no text of a server or a collector reaches the terminal as it is (CWE-150, CWE-117)."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as traces_grpc
from rich.progress import Task, TaskID
from support.command_line import Finished, environment, finish, run_here, start
from support.logs import call, write
from support.terminals import on_terminal

from otel_connector import cli
from otel_connector._csv import _check
from otel_connector._telemetry._export_problem import Kind, Problem, note, noting
from otel_connector.cli import _terminal
from otel_connector.testing import FaultServer, json_body

# Clears the screen, sets a title, in 7 and in 8 bits; forges a line; reverses the text; has no encoding; is markup
HOSTILE = "a\x1b[2J\x1b]0;t\x07\x9b31m\r\nforged: all is well\n\u202eb\u2066\udce9[red]:x:"
SAFE = "a\\x1b[2J\\x1b]0;t\\x07\\x9b31m\\r\\nforged: all is well\\n\\u202eb\\u2066\\udce9[red]:x:"
IN_UTF_8 = HOSTILE.replace("\udce9", "")
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def assert_escaped(text: str) -> None:
    assert UNSAFE.findall(text) == []
    assert not re.search(r"^forged", text, re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder in which every file and every text has a hostile name."""
    for name in (HOSTILE, IN_UTF_8):
        failed = call(1, project=name, url=f"http://h/{name}", error=f"X: {name}")
        log = write(tmp_path / f"{name}.csv", [call(0, project=name), failed])
        log.write_bytes(log.read_bytes() + b"damage\ntorn")
        (tmp_path / f"{name}.csv.torn").write_bytes(b"torn\n")
        (tmp_path / f"{name}.txt").write_text(f"ftp://h/{name[:3]}\n")
        (tmp_path / f"{name}.dir").mkdir()
        (tmp_path / f"{name}.other").write_bytes(b"\x1b[2J,\xc2\x9b31m\n")
    write(tmp_path / "logs.csv", [call(0), call(1)])
    return tmp_path


LOG, LIST, FOLDER, OTHER = (f"{HOSTILE}.{kind}" for kind in ("csv", "txt", "dir", "other"))
MISSING = f"{HOSTILE}.missing"
COMMANDS: dict[str, list[str]] = {
    "review": ["review", LOG],
    "review of two": ["review", LOG, "logs.csv"],
    "review of another file": ["review", OTHER],
    "review of a missing file": ["review", MISSING],
    "review of a missing pattern": ["review", f"{HOSTILE}*.none"],
    "review of a folder": ["review", FOLDER],
    "review --json": ["review", LOG, "--json"],
    "review --csv": ["review", LOG, "--csv"],
    "review --markdown": ["review", LOG, "--markdown"],
    "review --sql": ["review", LOG, "--sql", 'SELECT project, url, error, chr(155) AS "\x9b[b]" FROM calls'],
    "review --sql --csv": ["review", LOG, "--csv", "--sql", "SELECT project, url, error FROM calls"],
    "review --sql --json": ["review", LOG, "--json", "--sql", "SELECT project, url, error FROM calls"],
    "review --sql, an error": ["review", LOG, "--sql", "SELECT error::INT FROM calls"],
    "review --where, an error": ["review", LOG, "--where", f"'{HOSTILE}'::INT = 1"],
    "review --since": ["review", LOG, "--since", HOSTILE],
    "review --project": ["review", LOG, "--project", HOSTILE],
    "review --fail-if": ["review", LOG, "--fail-if", HOSTILE],
    "review --fail-if holds": ["review", LOG, "--fail-if", "error_rate > 1%"],
    "review --compare": ["review", "--compare", LOG, "logs.csv"],
    "review --html": ["review", LOG, "--html", f"{HOSTILE}.html", "--until", "2026-01-01"],  # no calls: no charts
    "review --html into a folder": ["review", LOG, "--html", FOLDER],
    "review --html over a log": ["review", "logs.csv", "--html", LOG],
    "review --svg": ["review", "logs.csv", "--svg", f"{HOSTILE}.svg"],
    "review --trace-url": ["review", LOG, "--html", "x.html", "--trace-url", f"http://h/{{{HOSTILE}}}"],
    "check": ["check", LOG],
    "check --repair": ["check", "--repair", LOG],
    "check of another file": ["check", OTHER],
    "check of a missing file": ["check", MISSING],
    "check of a folder": ["check", FOLDER],
    "replay of another file": ["replay", OTHER],
    "replay of a missing file": ["replay", MISSING],
    "replay --checkpoint": ["replay", "logs.csv", "--checkpoint", OTHER],
    "replay to no collector": ["replay", LOG],
    "fetch": ["fetch", "URL", "--log", f"{HOSTILE}.new", "--out", f"{HOSTILE}.jsonl"],
    "fetch --resume": ["fetch", "URL", "--log", LOG, "--resume", "--project", HOSTILE],
    "fetch of an invalid URL": ["fetch", LIST],
    "fetch of a missing list": ["fetch", MISSING],
    "fetch of a folder": ["fetch", FOLDER],
    "fetch --log": ["fetch", "URL", "--log", OTHER],
    "fetch --out": ["fetch", "URL", "--out", FOLDER],
    "fetch --resume-from": ["fetch", "URL", "--resume-from", OTHER],
    "fetch --header": ["fetch", "URL", "--header", HOSTILE],
    "demo": ["demo", "--calls", "1", "--no-otlp", "--log", f"{HOSTILE}.demo"],
    "demo --log": ["demo", "--no-otlp", "--log", OTHER],
    "an unknown option": ["check", f"--{HOSTILE}"],
    "an unknown command": [HOSTILE],
    "a wrong value": ["demo", "--calls", HOSTILE],
    "a second argument": ["demo", HOSTILE],
}


@pytest.mark.parametrize(
    ("command", "name"),
    [
        pytest.param(command, name, id=f"{command}-{kind}")
        for kind, name in (("not UTF-8", HOSTILE), ("UTF-8", IN_UTF_8))
        for command, arguments in COMMANDS.items()
        if kind == "not UTF-8" or arguments[0] != "review"  # which reads both, and takes longer
    ],
)
def test_every_command_escapes_every_name(command: str, name: str, folder: Path) -> None:
    with FaultServer() as server:
        server.script("/ok", json_body(1))
        arguments = [server.url("/ok") if each == "URL" else each.replace(HOSTILE, name) for each in COMMANDS[command]]
        # `fetch` would set up the SDK of this process; `test_the_texts_of_a_collector_are_escaped` tries that
        to = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
        done = run_here(folder, *arguments, **(to if arguments[0] == "replay" else {}))
    assert done.code in {0, 1, 2}
    assert done.out + done.error
    assert_escaped(done.out + done.error)


def test_every_command_is_tried() -> None:
    tried = {arguments[0] for arguments in COMMANDS.values()}
    # `doctor` sets up the SDK; `test_the_texts_of_a_collector_are_escaped` tries it
    assert {each.callback.__name__ for each in cli.app.registered_commands if each.callback} <= tried | {"doctor"}


def test_the_values_of_json_stay_and_the_name_is_shown_escaped(folder: Path) -> None:
    safe = SAFE.replace("\\udce9", "")
    write(folder / "new.csv", [call(0, project=IN_UTF_8)])
    arguments = ["review", "new.csv", "--sql", "SELECT project FROM calls LIMIT 1", "--json"]
    assert json.loads(run_here(folder, *arguments).out) == [{"project": safe}], "the log has it escaped"
    query = "SELECT chr(155) || chr(8238) || chr(27) AS x"
    assert json.loads(run_here(folder, "review", "logs.csv", "--json", "--sql", query).out) == [{"x": "\x9b\u202e\x1b"}]
    assert f"{SAFE}.csv: DAMAGED" in run_here(folder, *COMMANDS["check"]).out


def test_a_name_is_escaped_in_a_live_view(folder: Path) -> None:
    arguments = ["-m", "otel_connector", "check", LOG, "logs.csv"]
    with on_terminal(folder, arguments, environment({"TERM": "xterm"}), size=(24, 400)) as terminal:
        terminal.report("ended")
    text = re.sub(r"\x1b\[[0-9;]*[mKA]|\x1b\[\?25[hl]", "", terminal.output.decode())
    assert f"{SAFE}.csv: DAMAGED" in text
    assert_escaped(re.sub("\r+\n?", "\n", text))


def test_a_description_of_progress_is_no_markup() -> None:
    task = Task(TaskID(0), HOSTILE, None, 0, _get_time=lambda: 0.0)
    assert _terminal._Description().render(task).plain == SAFE


class Refusing(traces_grpc.TraceServiceServicer):
    """A collector that refuses everything with hostile details."""

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, IN_UTF_8)


@contextmanager
def refusing_grpc() -> Iterator[str]:
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        traces_grpc.add_TraceServiceServicer_to_server(Refusing(), server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.stop(grace=None).wait()


@contextmanager
def refusing_http() -> Iterator[str]:
    """A collector whose status line and body are hostile."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    head = b""
                    while b"\r\n\r\n" not in head:
                        head += connection.recv(65_536)
                    length = int(re.findall(rb"(?i)content-length: (\d+)", head)[0])
                    body = head.partition(b"\r\n\r\n")[2]
                    while len(body) < length:
                        body += connection.recv(65_536)
                    text = "\x1b[2J\x9b31m\x1b]0;t\x07".encode()
                    answer = (
                        b"HTTP/1.1 400 "
                        + text
                        + b"\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
                    )
                    hostile = IN_UTF_8.encode()
                    connection.sendall(answer % len(hostile) + hostile)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("command", ["replay", "demo", "fetch", "doctor"])
def test_the_texts_of_a_collector_are_escaped(command: str, protocol: str, folder: Path) -> None:
    with (refusing_grpc if protocol == "grpc" else refusing_http)() as endpoint, FaultServer() as server:
        server.script("/ok", json_body(1))
        arguments = {
            "replay": ["logs.csv"],
            "demo": ["--calls", "1"],
            "fetch": [server.url("/ok"), "--log", "n.csv"],
            "doctor": ["--log", LOG],
        }
        extra = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_METRICS_EXPORTER": "none",
        }
        done: Finished = finish(start(folder, command, *arguments[command], extra=extra))
    assert "\\x1b[2J" in done.out + done.error
    assert_escaped(done.out + done.error)


def test_a_log_record_is_one_line_and_its_traceback_is_indented() -> None:
    with pytest.raises(ValueError, match="forged") as raised:
        int(HOSTILE)
    record = logging.LogRecord(
        "x", logging.ERROR, __file__, 1, "failed: %s", (HOSTILE,), (raised.type, raised.value, raised.tb)
    )
    first, *rest = _terminal._OneLine().format(record).split("\n")
    assert first == f"failed: {SAFE}"
    assert rest[0] == "  Traceback (most recent call last):"
    assert all(line.startswith("  ") for line in rest)
    assert_escaped("\n".join((first, *rest)))


def test_lines_of_the_sdk_are_left_out_if_the_problem_of_the_export_is_known() -> None:
    of_sdk, of_package = (
        logging.LogRecord(name, logging.ERROR, __file__, 1, "failed", (), None)
        for name in ("opentelemetry.exporter.x", "otel_connector")
    )
    assert _terminal._is_no_repetition(of_sdk)
    with noting(lambda _problem: None):
        assert _terminal._is_no_repetition(of_sdk)
        note(Problem(kind=Kind.REFUSED))
        assert [_terminal._is_no_repetition(each) for each in (of_sdk, of_package)] == [False, True]


def test_a_fault_of_the_program_is_reported_without_its_escapes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LookupError(HOSTILE)

    monkeypatch.setattr(_check, "check", fail)
    done = run_here(folder, "check", "logs.csv")
    assert done.code == 1
    assert done.error.startswith("otel-connector: a fault of the program; please report it:\n  Traceback")
    assert "LookupError" in done.error
    assert_escaped(done.error)
