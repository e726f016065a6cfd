"""Tests of the command ``otel-connector replay``: the spans that it sends, its output and its exit codes."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.command_line import Finished, finish, run_here, start
from support.logs import call, rows, write
from support.otlp_receiver import Received, grpc_receiver, http_receiver
from support.processes import wait_until

from otel_connector._csv._format import HEADER


@pytest.fixture
def received() -> Received:
    return Received()


@pytest.fixture
def endpoint(received: Received) -> Iterator[str]:
    with grpc_receiver(received) as endpoint:
        yield endpoint


def run_replay(folder: Path, endpoint: str, *arguments: str) -> Finished:
    return run_here(folder, "replay", *arguments, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)


def test_the_rows_of_a_log_and_its_rotated_parts_are_sent_once(
    received: Received, endpoint: str, tmp_path: Path
) -> None:
    write(tmp_path / "logs.000001.csv", map(call, range(5)))
    write(tmp_path / "logs.csv", [call(5), call(6, error="AttemptTimeout: x", project="Q")])
    before = "A backend that has spans of these calls already will have them twice."
    to = f"Sending spans to {endpoint}. {before}\nSpans sent to {endpoint}"
    assert run_replay(tmp_path, endpoint, "logs.csv", "--otlp") == (0, f"{to}: 7\n", "")
    assert run_replay(tmp_path, endpoint, "logs.csv") == (0, f"{to}: 0; sent before: 7\n", "")
    assert len(received.call_ids()) == 7
    some = run_replay(tmp_path, endpoint, "logs.csv", "--failed-only", "--project", "Q", "--since", "1790000000")
    assert some == (0, f"{to}: 1; not selected: 6\n", "")
    assert (
        run_replay(tmp_path, endpoint, "logs.csv", "--ignore-checkpoint", "--until", "1790000003").out
        == f"{to}: 3; not selected: 4\n"
    )


def test_rows_that_are_not_sent_are_reported(received: Received, endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "logs.csv").write_bytes(HEADER + rows(call(0), call(0)) + b"garbage\n" + rows(call(1))[:-9])
    done = run_replay(tmp_path, endpoint, "logs.csv", "--checkpoint", "here", "--service-name", "old")
    assert done.code == 1
    assert done.out.splitlines()[1:] == [
        "logs.csv: line 4: a row has 10 cells, this one has 1",
        "logs.csv: line 5: the line has no line end",
        f"Spans sent to {endpoint}: 1; duplicates: 1; damaged lines: 1; unfinished last lines: 1",
    ]
    assert (tmp_path / "here").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing.csv",), "nothing.csv: No such file or directory"),
        (("logs.csv", "--since", "2h"), "--since: '2h' is not a time"),
        (("other.csv",), "other.csv: not a log"),
        (("logs.csv", "--since", "never"), "--since: 'never' is not a time"),
        (("logs.csv", "--rate", "0"), "--rate must be more than 0 spans a second"),
        (("logs.csv", "--since", "2026-01-02", "--until", "2026-01-01"), "--since must be before --until"),
    ],
)
def test_invalid_arguments_exit_with_2_and_name_the_cause(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    write(tmp_path / "logs.csv", [call(0)])
    (tmp_path / "other.csv").write_text("a,b\n")
    done = run_replay(tmp_path, "http://127.0.0.1:1", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.error.startswith("otel-connector replay: ")
    assert message in done.error


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ((), "mine=1&key=REDACTED"),
        (("--redact", "mine"), "mine=REDACTED&key=REDACTED"),
        (("--no-redact", "key"), "mine=1&key=2"),
    ],
)
def test_the_endpoint_is_redacted_as_the_options_say(options: tuple[str, ...], shown: str, tmp_path: Path) -> None:
    write(tmp_path / "logs.csv", [call(0)])
    to = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    endpoint = "http://127.0.0.1:1/?mine=1&key=2"
    done = run_here(tmp_path, "replay", "logs.csv", *options, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **to)
    assert done.error.startswith(f"otel-connector replay: http://127.0.0.1:1/?{shown} did not accept a batch of 1")


def test_an_unknown_protocol_exits_with_2(tmp_path: Path) -> None:
    write(tmp_path / "logs.csv", [call(0)])
    done = run_here(tmp_path, "replay", "logs.csv", OTEL_EXPORTER_OTLP_PROTOCOL="carrier-pigeon")
    assert (done.code, "carrier-pigeon" in done.error) == (2, True)


def test_a_missing_collector_exits_with_2_and_the_error_explains_how_to_resume(tmp_path: Path) -> None:
    write(tmp_path / "logs.csv", [call(0)])
    done = run_here(
        tmp_path,
        "replay",
        "logs.csv",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
    )
    assert (done.code, done.out.count("\n")) == (2, 1)
    assert "did not accept a batch of 1" in done.error
    assert "the next run continues" in done.error


def test_ctrl_c_stops_the_replay_between_two_batches(received: Received, tmp_path: Path) -> None:
    write(tmp_path / "logs.csv", map(call, range(3_000)))
    with http_receiver(received) as endpoint:
        to = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        with start(tmp_path, "replay", "logs.csv", "--rate", "512", "--checkpoint", "here", extra=to) as process:
            received.wait_for(lambda: len(received.call_ids()) >= 512)
            wait_until(lambda: '"sent": 512' in (tmp_path / "here").read_text(), process)
            with suppress(subprocess.TimeoutExpired):  # meanwhile, the replay waits for the second batch
                process.wait(0.2)
            process.send_signal(signal.SIGINT)
            done = finish(process)
        assert done.code == 130
        assert done.out.splitlines()[1].startswith("Stopped; spans sent: ")
        assert run_here(tmp_path, "replay", "logs.csv", "--checkpoint", "here", **to).code == 0
    assert len(received.call_ids()) == 3_000
    assert sum(received.call_ids().values()) <= 3_000 + 512  # the batch in flight may have arrived twice
