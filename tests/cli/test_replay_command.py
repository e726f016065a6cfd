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
from otel_connector.testing import FaultServer, respond


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


@pytest.mark.parametrize("secret", ["/t0ken", "?key=t0ken", "/?mine=t0ken#t0ken"])
def test_a_secret_of_the_endpoint_is_neither_shown_nor_stored(secret: str, server: FaultServer, tmp_path: Path) -> None:
    write(tmp_path / "logs.csv", [call(0), call(1)])
    to = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    origin = server.url("/")[:-1]
    endpoint = origin.replace("://", "://user:t0ken@") + secret
    done = Finished(0, "", "")
    for code in (401, 200):
        server.script(f"{secret.partition('?')[0].rstrip('/')}/v1/traces", respond(code))
        server.script(secret.partition("?")[0] or "/", respond(code))
        done = run_here(tmp_path, "replay", "logs.csv", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **to)
        assert "t0ken" not in f"{done}{(tmp_path / 'logs.csv.replayed').read_text()}"
        assert origin in (done.error if code == 401 else done.out)
    assert done.code == 0
    assert run_here(tmp_path, "replay", "logs.csv", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **to).out.endswith(
        ": 0; sent before: 2\n"
    )


def test_spans_that_the_collector_rejects_are_counted(server: FaultServer, tmp_path: Path) -> None:
    """OTLP, "Partial Success": the client must not send rejected items again."""
    write(tmp_path / "logs.csv", map(call, range(3)))
    to = {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url("/")[:-1], "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    partial = b'{"partialSuccess": {"rejectedSpans": %d, "errorMessage": "too old"}}'
    server.script("/v1/traces", [respond(200, partial % 3), respond(200, partial % 2)])
    done = run_here(tmp_path, "replay", "logs.csv", **to)
    rejected = f'3 of 3 spans were rejected by {server.url("/")[:-1]}: "too old".'
    assert done.code == 2
    assert done.error.startswith(f"otel-connector replay: {rejected} Spans sent before: 0; the next run continues")
    done = run_here(tmp_path, "replay", "logs.csv", **to)
    assert (done.code, done.out.splitlines()[1:]) == (
        1,
        [rejected.replace("3 of", "2 of"), f"Spans sent to {server.url('/')[:-1]}: 1; rejected by the collector: 2"],
    )
    done = run_here(tmp_path, "replay", "logs.csv", **to)
    assert (done.code, done.out.endswith(": 0; sent before: 1\n")) == (0, True)


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
    assert (done.code, done.out.count("\n")) == (2, 1)  # the line before the first span
    assert done.error == (
        "otel-connector replay: 1 span was not sent: nothing listens at http://127.0.0.1:1 (connection refused). Start"
        " a collector, or set OTEL_EXPORTER_OTLP_ENDPOINT, or OTEL_TRACES_EXPORTER=none. Spans sent before: 0; the next"
        " run continues after those\n"
    )


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


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_request_that_is_too_large_is_smaller_with_the_variable_of_the_message(protocol: str, tmp_path: Path) -> None:
    """The limit of gRPC is that of the server; over HTTP, 413 is RFC 9110, section 15.5.14."""
    write(tmp_path / "logs.csv", map(call, range(300)))
    received = Received()
    receiver = grpc_receiver if protocol == "grpc" else http_receiver
    variables = {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_EXPORTER_OTLP_TIMEOUT": "2"}
    with receiver(received, limit=60_000) as to:
        variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = to
        whole = run_here(tmp_path, "replay", "logs.csv", **variables)
        assert (whole.code, len(received.spans())) == (2, 0)
        assert "bytes is too large for" in whole.error
        assert "Set OTEL_BSP_MAX_EXPORT_BATCH_SIZE to less than 300." in whole.error
        smaller = run_here(tmp_path, "replay", "logs.csv", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="100", **variables)
        assert (smaller.code, smaller.error, len(received.call_ids())) == (0, "", 300)


def test_one_span_that_is_too_large_needs_another_limit(tmp_path: Path) -> None:
    write(tmp_path / "logs.csv", [call(0)])
    with grpc_receiver(Received(), limit=100) as to:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": to, "OTEL_EXPORTER_OTLP_TIMEOUT": "2"}
        done = run_here(tmp_path, "replay", "logs.csv", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="1", **variables)
    raised = "Raise the limit of the receiver (OpenTelemetry Collector: max_recv_msg_size_mib)."
    assert done.code == 2
    assert raised in done.error


@pytest.mark.parametrize("size", ["0", "-1", "many"])
def test_a_size_of_a_batch_that_the_sdk_does_not_accept_is_named(size: str, endpoint: str, tmp_path: Path) -> None:
    write(tmp_path / "logs.csv", [call(0)])
    to = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": size}
    message = f"OTEL_BSP_MAX_EXPORT_BATCH_SIZE must be a whole number of at least 1, not {size!r}"
    assert run_here(tmp_path, "replay", "logs.csv", **to) == (2, "", f"otel-connector replay: {message}\n")
