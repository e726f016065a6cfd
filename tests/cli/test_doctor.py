"""Tests of ``otel-connector doctor``: real exporters and receivers, the output, and the exit codes."""

from __future__ import annotations

import bz2
import fcntl
import gzip
import json
import lzma
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetrics
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpans
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import ConsoleLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from support.command_line import Finished, finish, run_here, start
from support.logs import call, write
from support.otlp_receiver import Received, grpc_receiver, http_receiver
from support.own_network import run_in_own_network

from otel_connector import CSVSpanExporter
from otel_connector._csv._format import ATTEMPTS, HEADER, encode_row
from otel_connector._doctor import SetVariable, TelemetryReport, examine, without_sdk
from otel_connector._telemetry._sdk_exit import Telemetry
from otel_connector.cli._doctor_command import _log_state
from otel_connector.cli._doctor_view import Diagnosis, LogState, document, lines
from otel_connector.testing import FaultServer, respond

UNSUPPORTED = (
    "Metrics were not sent: {} takes no metrics (UNIMPLEMENTED; Jaeger does not)."
    " Set OTEL_METRICS_EXPORTER=none, or OTEL_EXPORTER_OTLP_METRICS_ENDPOINT."
)


def doctor(folder: Path, *arguments: str, **variables: str) -> Finished:
    return finish(start(folder, "doctor", *arguments, extra=variables))


def without_times(text: str) -> str:
    return re.sub(r" in [\d.]+ \w+", " in TIME", re.sub(r"[0-9a-f]{32}", "ID", text))


def test_a_jaeger_takes_traces_and_no_metrics(tmp_path: Path) -> None:
    write(tmp_path / "logs.csv", map(call, range(3)))
    received = Received()
    with grpc_receiver(received, metrics=False) as endpoint:
        done = doctor(
            tmp_path,
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20hush",
            OTEL_EXPORTER_OTLP_ENDPOIN="x",
            OTEL_BSP_SCHEDULE_DELAY="70",
        )
    assert (done.code, done.error) == (1, "")
    width = max(len(f"OTEL_EXPORTER_OTLP_ENDPOINT={endpoint}"), len("OTEL_EXPORTER_OTLP_HEADERS (set, not shown)"))
    to = f"otlp, grpc, {endpoint} (OTEL_EXPORTER_OTLP_ENDPOINT)"
    assert without_times(done.out).splitlines() == [
        "Variables",
        f"  {'OTEL_BSP_SCHEDULE_DELAY=70':{width}}  -> 70",
        "  OTEL_EXPORTER_OTLP_ENDPOIN (set, not shown)",
        f"{'':12}OTEL_EXPORTER_OTLP_ENDPOIN is not a variable of the SDK. Did you mean OTEL_EXPORTER_OTLP_ENDPOINT?",
        f"  {f'OTEL_EXPORTER_OTLP_ENDPOINT={endpoint}':{width}}  -> {endpoint}",
        f"  {'OTEL_EXPORTER_OTLP_HEADERS (set, not shown)':{width}}  -> authorization",
        "Telemetry",
        f"  traces    {to}  accepted: 1 span in TIME",
        f"  metrics   {to}  rejected",
        f"            {UNSUPPORTED.format(endpoint)}",
        "  service   otel-connector-doctor",
        "  sampler   ParentBased{root:AlwaysOnSampler, ...}",
        "  look up   http://localhost:16686/trace/ID (if the receiver is a Jaeger on this machine)",
        "Log",
        "  logs.csv  writable, 3 rows, intact, not locked by another process",
        "2 problems.",
    ]
    (span,) = received.spans()
    assert (span.name, span.trace_id.hex() in done.out) == ("otel-connector doctor", True)


def test_json_and_the_exit_code_0_if_everything_arrived(tmp_path: Path) -> None:
    received = Received()
    with http_receiver(received) as endpoint:
        done = doctor(
            tmp_path,
            "--json",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"{endpoint}/",
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_SERVICE_NAME="prices",
        )
    assert (done.code, done.error) == (0, "")
    made = json.loads(done.out)
    assert made["problems"] == []
    assert [(each["signal"], each["result"]) for each in made["telemetry"]["exporters"]] == [
        ("traces", "accepted"),
        ("metrics", "accepted"),
    ]
    assert {each["name"]: each["used_as"] for each in made["telemetry"]["variables"]} == {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_SERVICE_NAME": "prices",
    }
    assert made["log"]["exists"] is False
    (span,) = received.spans()
    assert made["telemetry"]["exporters"][0]["trace_id"] == span.trace_id.hex()
    assert "otel_connector.doctor" in received.metric_names()
    assert {each["service.name"] for each in received.resources} == {"prices"}


def test_an_sdk_that_cannot_be_set_up_or_is_disabled_is_a_problem(tmp_path: Path) -> None:
    done = doctor(tmp_path, OTEL_TRACES_EXPORTER="otpl", OTEL_EXPORTER_OTLP_TIMEOUT="soon")
    assert (done.code, done.error) == (1, "")
    assert done.out.startswith("Variables\n  OTEL_EXPORTER_OTLP_TIMEOUT=soon\n  OTEL_TRACES_EXPORTER=otpl\nTelemetry\n")
    assert "The SDK cannot be set up: OTEL_TRACES_EXPORTER=otpl is not accepted: " in done.out
    done = doctor(tmp_path, OTEL_SDK_DISABLED="true")
    assert done.code == 1
    assert "Nothing is sent: the SDK is disabled (OTEL_SDK_DISABLED)." in done.out
    assert "  traces    none  not sent\n" in done.out
    assert done.out.endswith("1 problem.\n")


@pytest.fixture(autouse=True)
def no_otel_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def silent() -> Iterator[str]:
    """Accepts connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=10) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def telemetry_of(spans: list[Any], metrics: list[Any] = [], logs: list[Any] = [], **options: Any) -> Telemetry:  # noqa: B006
    tracers = TracerProvider(shutdown_on_exit=False, **options)
    for processor in spans:
        tracers.add_span_processor(processor)
    meters = MeterProvider(metrics, shutdown_on_exit=False)
    loggers = LoggerProvider(shutdown_on_exit=False)
    for each in logs:
        loggers.add_log_record_processor(each)
    return Telemetry({"traces": tracers, "metrics": meters, "logs": loggers}, 1)


def results(report: TelemetryReport) -> list[tuple[str, str, str]]:
    return [(each.signal, each.exporter, each.result) for each in report.exporters]


def test_a_metric_of_which_one_data_point_is_rejected_is_partly_accepted(server: FaultServer) -> None:
    body = ExportMetricsServiceResponse(partial_success={"rejected_data_points": 1}).SerializeToString()  # type: ignore[arg-type]
    server.script("/v1/metrics", respond(200, body, content_type="application/x-protobuf"))
    exporter = HttpMetrics(server.url("/v1/metrics"))
    with telemetry_of([], [PeriodicExportingMetricReader(exporter)]) as telemetry:
        report = examine(telemetry, {})
    assert results(report) == [("traces", "none", "not sent"), ("metrics", "otlp", "partly")]
    origin = server.url("/")[:-1]
    assert report.exporters[1].message == f"1 of 2 data points was rejected by {origin}."
    assert (report.exporters[1].setting, report.exporters[1].trace_id) == ("default", "")


def test_a_warning_of_the_receiver_is_a_note_and_no_problem(server: FaultServer) -> None:
    server.script("/v1/metrics", respond(200, b'{"partialSuccess": {"errorMessage": "slow down"}}'))
    exporter = HttpMetrics(server.url("/v1/metrics"))
    with telemetry_of([], [PeriodicExportingMetricReader(exporter)]) as telemetry:
        report = examine(telemetry, {})
    note = f'{server.url("/")[:-1]} has accepted the metrics, with a warning: "slow down".'
    assert (report.exporters[1].result, report.exporters[1].note) == ("accepted", note)
    made = Diagnosis(telemetry=report, problem="", messages=(), log=LogState(path="a.csv"))
    assert f"            {note}" in list(lines(made))
    assert made.problems == []


def test_a_server_that_takes_nothing_is_not_called_a_receiver_without_metrics(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", origin := server.url("/")[:-1])  # no path of it exists
    with telemetry_of([BatchSpanProcessor(HttpSpans())], [PeriodicExportingMetricReader(HttpMetrics())]) as telemetry:
        report = examine(telemetry, {})
    remedy = "Set OTEL_EXPORTER_OTLP_ENDPOINT to the address of an OTLP receiver."
    assert [each.message for each in report.exporters] == [
        f"{signal.capitalize()} were not sent: {origin} answered 404 Not Found for /v1/{signal}. {remedy}"
        for signal in ("traces", "metrics")
    ]


@pytest.mark.parametrize("http", [True, False])
def test_a_receiver_at_the_default_port_of_the_other_protocol_is_named(http: bool, tmp_path: Path) -> None:
    done = run_in_own_network(__file__, f"doctor_without_other_listeners({str(tmp_path)!r}, http={http})")
    assert done.returncode == 0, done.stderr
    used, other, protocol = (4317, 4318, "http/protobuf") if http else (4318, 4317, "grpc")
    for signal in ("Traces", "Metrics"):
        assert (
            f"{signal} were not sent: nothing listens at http://localhost:{used} (connection refused), but something"
            f" listens at http://localhost:{other}, the usual port of {protocol}."
            f" Set OTEL_EXPORTER_OTLP_PROTOCOL={protocol}."
        ) in done.stdout


def doctor_without_other_listeners(folder: str, *, http: bool) -> None:
    """Run in a network namespace: the receiver has one default port, and the default is the other one, or is set."""
    with socket.create_server(("127.0.0.1", 4318 if http else 4317)):
        done = run_here(Path(folder), "doctor", **({} if http else {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}))
    assert (done.code, done.error) == (1, "")
    sys.stdout.write(done.out)


def test_a_silent_receiver_is_rejected_after_the_timeout(silent: str) -> None:
    with telemetry_of([BatchSpanProcessor(HttpSpans(f"{silent}/v1/traces", timeout=0.2))]) as telemetry:
        report = examine(telemetry, {})
    assert report.exporters[0].message == (
        f"Traces were not sent: {silent} did not answer within 0.2 s (OTEL_EXPORTER_OTLP_TIMEOUT)."
    )


@pytest.mark.timing
def test_an_exporter_that_tries_again_is_stopped_after_its_first_problem(closed_port: int) -> None:
    exporter = GrpcSpans(f"http://127.0.0.1:{closed_port}", timeout=60)
    with telemetry_of([BatchSpanProcessor(exporter)]) as telemetry:
        report = examine(telemetry, {})
    assert report.exporters[0].seconds < 10
    assert "nothing listens at" in report.exporters[0].message


def test_exporters_that_are_not_otlp_and_logs(capsys: pytest.CaptureFixture[str]) -> None:
    spans, logs = SimpleSpanProcessor(ConsoleSpanExporter()), SimpleLogRecordProcessor(ConsoleLogRecordExporter())
    with telemetry_of([spans], logs=[logs]) as telemetry:
        report = examine(telemetry, {})
    assert results(report) == [
        ("traces", "ConsoleSpanExporter", "accepted"),
        ("metrics", "none", "not sent"),
        ("logs", "ConsoleLogRecordExporter", "not sent"),
    ]
    shown = capsys.readouterr()
    assert (shown.out, "otel-connector doctor" in shown.err) == ("", True)
    made = Diagnosis(telemetry=report, problem="", messages=(), log=LogState(path="a.csv", rows=1))
    assert "  traces    ConsoleSpanExporter       accepted: 1 span in TIME" in map(without_times, lines(made))


def test_a_sampler_that_drops_everything_is_a_problem(server: FaultServer) -> None:
    with telemetry_of([BatchSpanProcessor(HttpSpans(server.url("/v1/traces")))], sampler=ALWAYS_OFF) as telemetry:
        report = examine(telemetry, {})
    (problem,) = report.problems
    assert problem == "No traces are sent: the sampler AlwaysOffSampler drops them. Unset OTEL_TRACES_SAMPLER."
    made = Diagnosis(telemetry=report, problem="", messages=("Invalid timeout value",), log=LogState(path="a.csv"))
    assert f"            {problem}" in list(lines(made))
    assert "            Invalid timeout value" in list(lines(made))
    assert json.loads(document(made))["problems"] == made.problems


def test_the_log_of_the_exporter_csv_is_the_one_that_is_checked(tmp_path: Path) -> None:
    log = tmp_path / "mine.csv"
    with telemetry_of([SimpleSpanProcessor(CSVSpanExporter(log))]) as telemetry:
        report = examine(telemetry, {})
    assert (report.log, results(report)[0]) == (str(log), ("traces", "CSVSpanExporter", "accepted"))
    assert log.read_bytes() == HEADER


def test_without_a_provider_nothing_is_sent() -> None:
    with Telemetry({}, 1) as telemetry:
        report = examine(telemetry, {})
    assert (report.service, report.sampler, results(report)) == (
        "",
        "",
        [("traces", "none", "not sent"), ("metrics", "none", "not sent")],
    )
    made = Diagnosis(telemetry=report, problem="", messages=(), log=LogState(path="a.csv"))
    assert not [line for line in lines(made) if line.startswith("  service")]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "http://user:hush@a:1/t0ken?b",
            ("http://a:1", "traces: http://h:1; metrics: http://h:2"),
        ),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://h:1/v1/traces", ("http://h:1", "http://h:1")),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", ("grpc", "http/protobuf")),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "5", ("5", "7 s")),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=b", (None, "x-key")),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip", ("gzip", "none")),
        ("OTEL_EXPORTER_OTLP_INSECURE", "true", ("true", "no TLS")),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta", ("delta", "")),
        ("OTEL_TRACES_EXPORTER", "otlp", ("otlp", "otlp")),
        ("OTEL_LOGS_EXPORTER", "none", ("none", "no exporter")),
        ("OTEL_SERVICE_NAME", "s", ("s", "prices")),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=1,token=hush", (None, "service.name")),
        ("OTEL_TRACES_SAMPLER", "x", ("x", "ParentBased{root:AlwaysOnSampler, ...}")),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "9", ("9", "8")),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1", ("1", "60000")),
        ("OTEL_PYTHON_LOG_LEVEL", "x", (None, "")),
        ("OTEL_CONNECTOR_CSV_PATH", "a.csv", ("a.csv", "")),
    ],
)
def test_a_variable_is_shown_with_what_the_sdk_made_of_it(
    name: str, value: str, expected: tuple[str | None, str]
) -> None:
    traces = HttpSpans("http://user:hush@h:1/v1/traces", timeout=7, headers={"x-key": "hush"})
    spans = BatchSpanProcessor(traces, max_export_batch_size=8)
    metrics = PeriodicExportingMetricReader(HttpMetrics("http://h:2/t0ken", timeout=7, headers={"x-key": "hush"}))
    resource = Resource({"service.name": "prices", "telemetry.sdk.name": "x"})
    telemetry = telemetry_of([spans], [metrics], resource=resource)
    for signal in telemetry.signals:
        signal.stop()
    (variable,) = examine(telemetry, {name: value, "PATH": "/"}).variables
    telemetry.shutdown()
    assert variable == SetVariable(name=name, value=expected[0], used_as=expected[1])


HUSH = "s3cr3t"
DID_YOU_MEAN = "{} is not a variable of the SDK. Did you mean {}?"


@pytest.mark.parametrize(
    ("name", "value", "problem", "remark"),
    [
        (
            "OTEL_EXPORTER_OTLP_ENDPIONT",
            f"http://x?k={HUSH}",
            DID_YOU_MEAN.format("OTEL_EXPORTER_OTLP_ENDPIONT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
            "",
        ),
        (
            "OTEL_EXPORTER_OTLP_HEADER",
            HUSH,
            DID_YOU_MEAN.format("OTEL_EXPORTER_OTLP_HEADER", "OTEL_EXPORTER_OTLP_HEADERS"),
            "",
        ),
        ("OTEL_EXPORTER_OTLP_AUTH_TOKEN", HUSH, "", "not a variable of the SDK"),
        ("OTEL_COLLECTOR_ENDPOINT", f"http://{HUSH}", "", "not a variable of the SDK"),
        ("OTEL_PYTHON_TOKEN", HUSH, "", ""),  # may be of contrib
        ("OTEL_CONNECTOR_TOKEN", HUSH, "", ""),
        ("OTEL_RESOURCE_ATTRIBUTES", f"deploy={HUSH}", "", ""),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", HUSH, "", ""),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", f"http:{HUSH}=", "", ""),  # not an address
        ("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://user:{HUSH}", "", ""),
        ("OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER", HUSH, "", ""),
    ],
)
def test_a_value_that_may_be_a_secret_is_not_shown(name: str, value: str, problem: str, remark: str) -> None:
    resource = Resource({"service.name": "prices", "deploy": HUSH})
    with telemetry_of([], resource=resource) as telemetry:
        report = examine(telemetry, {name: value})
    (variable,) = report.variables
    assert (variable.value, variable.problem, variable.remark) == (None, problem, remark)
    made = Diagnosis(telemetry=report, problem="", messages=(), log=LogState(path="a.csv"))
    shown = "\n".join(lines(made))
    assert HUSH not in shown + document(made)
    assert f"  {name} (set, not shown)" in shown
    assert remark in shown
    assert len(made.problems) == bool(problem)


def test_the_state_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "logs.csv"
    assert _log_state(log) == LogState(path=str(log), exists=False)
    log.write_bytes(b"")
    assert _log_state(log) == LogState(path=str(log))
    log.write_bytes(HEADER + b"garbage\n")
    damaged = _log_state(log)
    assert damaged == LogState(
        path=str(log), whole=False, problem=f"It is damaged or altered. Run: otel-connector check {log}"
    )
    write(log, [call(0)])
    with log.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        locked = _log_state(log)
    assert locked == LogState(path=str(log), rows=1, locked=True)
    assert _log_state(tmp_path / "none" / "logs.csv").problem == f"{tmp_path / 'none'}: No such file or directory"
    assert "another header" in _log_state(Path(__file__)).problem


ROWS = HEADER + encode_row(call(0))
NOT_LOGS = {
    "gzip": (gzip.compress(ROWS), "the file is compressed (gzip); unpack it first, or choose another file"),
    "zstd": (b"\x28\xb5\x2f\xfd" + ROWS, "the file is compressed (zstd); unpack it first, or choose another file"),
    "xz": (lzma.compress(ROWS), "the file is compressed (xz); unpack it first, or choose another file"),
    "bzip2": (bz2.compress(ROWS), "the file is compressed (bzip2); unpack it first, or choose another file"),
    "zip": (b"PK\x03\x04" + ROWS, "the file is a zip archive or a spreadsheet; choose another file"),
    "UTF-16": (ROWS.decode().encode("utf-16"), "the file is in UTF-16, not in UTF-8; choose another file"),
    "UTF-16 without a mark": (ROWS.decode().encode("utf-16-le"), "the file is binary; choose another file"),
    "binary": (b"\x7fELF\x02\x01\x01", "the file is binary; choose another file"),
    "NUL": (bytes(9), "the file begins with NUL bytes, as after a crash of the machine; choose another file"),
    "a text": (b"a,b\n", "the file has another header: 'a,b'; choose another file, or empty this one"),
    "a byte order mark": (b"\xef\xbb\xbf" + ROWS, "the file has another header: '\\ufeffcall_id,"),
    "no header": (ROWS.partition(b"\n")[2], "the file has another header: '"),
    "an attempts log": (ATTEMPTS.header, "the file has another header: 'call_id,number,"),
}


@pytest.mark.parametrize("name", NOT_LOGS)
def test_a_file_to_which_no_writer_appends_is_reported_in_the_words_of_the_writer(name: str, tmp_path: Path) -> None:
    content, problem = NOT_LOGS[name]
    log = tmp_path / "z.csv"
    log.write_bytes(content)
    state = _log_state(log)
    with pytest.raises(ValueError, match=re.escape(state.problem)):
        CSVSpanExporter(log)
    assert state.problem.startswith(problem)
    assert state.problem.isprintable()
    assert log.read_bytes() == content


@pytest.mark.parametrize(
    ("target", "log", "problem"),
    [
        ("fresh.csv", "link.csv", ""),  # a writer creates the target
        ("none/a.csv", "link.csv", "link.csv: a symbolic link to {0}/none/a.csv: {0}/none: No such file or directory"),
        ("chain.csv", "link.csv", "link.csv: a symbolic link to {0}/gone/b.csv: {0}/gone: No such file or directory"),
        ("link.csv", "link.csv", "link.csv: a symbolic link to link.csv: Too many levels of symbolic links"),
        (".", "link.csv", "link.csv: a symbolic link to {0}: Is a directory"),
        ("file\nwith", "link.csv/logs.csv", "link.csv/logs.csv: Not a directory"),
        ("fresh.csv", ".", ".: Is a directory"),
        ("fresh.csv", "none/logs.csv", "none: No such file or directory"),
    ],
)
def test_a_log_that_cannot_be_written_is_named_with_the_target_of_its_link(
    target: str, log: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter raises for the same cause."""
    monkeypatch.chdir(tmp_path)
    Path("chain.csv").symlink_to("gone/b.csv")
    Path("file\nwith").touch()
    Path("link.csv").symlink_to(target)
    state = _log_state(Path(log))
    assert (state.problem, state.exists) == (problem.format(tmp_path), bool(problem))
    if problem:
        with pytest.raises((OSError, ValueError), match=re.escape(problem.format(tmp_path).rpartition(": ")[2])):
            CSVSpanExporter(log)
    else:
        CSVSpanExporter(log).shutdown()
        assert Path(target).read_bytes() == HEADER


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (LogState(path="a", exists=False), ["  a  does not exist yet; its folder is writable", "No problems."]),
        (LogState(path="a", problem="a: no"), ["  a  cannot be written or read", "            a: no", "1 problem."]),
        (
            LogState(path="a", rows=2, locked=True),
            ["  a  writable, 2 rows, intact, locked by another process", "1 problem."],
        ),
        (
            LogState(path="a", whole=False, problem="damaged"),
            ["  a  writable, 0 rows, not intact, not locked by another process", "            damaged", "1 problem."],
        ),
    ],
)
def test_the_lines_about_a_log(state: LogState, shown: list[str]) -> None:
    made = Diagnosis(telemetry=without_sdk({}), problem="", messages=(), log=state)
    assert list(lines(made)) == ["Telemetry", "Log", *shown]
