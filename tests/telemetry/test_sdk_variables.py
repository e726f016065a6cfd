"""An empty ``OTEL_*`` variable counts as unset, and an error of the set-up names its variable, in every command.

The errors are those of the SDK and its exporters, which are built for real.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support import forked
from support.command_line import finish, start
from support.logs import call, write
from support.otlp_receiver import Received, grpc_receiver

from otel_connector._replay._replay import open_otlp
from otel_connector._telemetry._sdk_variables import sdk_variables

EMPTY_IS_UNSET = 'OpenTelemetry specification, "Environment Variable Specification", "Parsing empty value"'
SECONDS = "Set it to a number of seconds, such as 10, or unset it."


@pytest.fixture(autouse=True)
def no_otel_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def message(build: Any, expected: type[Exception] = ValueError) -> str:
    with pytest.raises(Exception) as caught, sdk_variables():  # noqa: PT011
        build()
    assert caught.type is expected
    return str(caught.value)


def processor() -> None:
    BatchSpanProcessor(InMemorySpanExporter())  # raises


def fail_with(text: str) -> Any:
    def fail() -> None:
        raise ValueError(text)

    return fail


MISTAKES: dict[str, tuple[dict[str, str], Any, type[Exception], str]] = {
    "a value": (
        {"OTEL_EXPORTER_OTLP_TIMEOUT": "abc", "OTEL_SERVICE_NAME": "a"},
        OTLPSpanExporter,
        ValueError,
        "OTEL_EXPORTER_OTLP_TIMEOUT=abc is not accepted: could not convert string to float: 'abc'. " + SECONDS,
    ),
    "the variable of the signal": (
        {"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "abc", "OTEL_EXPORTER_OTLP_TIMEOUT": "5"},
        OTLPSpanExporter,
        ValueError,
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT=abc is not accepted: could not convert string to float: 'abc'. " + SECONDS,
    ),
    "two variables with this value": (
        {"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "abc", "OTEL_EXPORTER_OTLP_TIMEOUT": "abc"},
        OTLPSpanExporter,
        ValueError,
        "OTEL_EXPORTER_OTLP_TIMEOUT=abc or OTEL_EXPORTER_OTLP_TRACES_TIMEOUT=abc is not accepted:"
        " could not convert string to float: 'abc'. " + SECONDS,
    ),
    "a name": (
        {"OTEL_EXPORTER_OTLP_COMPRESSION": "zip", "OTEL_SERVICE_NAME": "zip"},
        OTLPSpanExporter,
        RuntimeError,
        (
            'OTEL_EXPORTER_OTLP_COMPRESSION=zip is not accepted: Invalid value "zip" for compression envvar'
            " OTEL_EXPORTER_OTLP_COMPRESSION. Set it to gzip, or unset it."
        ),
    ),
    "another name": (
        {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "-1"},
        SpanLimits,
        ValueError,
        (
            "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=-1 is not accepted: OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT must be a non-negative"
            " integer but got -1. Set it to a whole number above 0, or unset it."
        ),
    ),
    "an option": (
        {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "0", "OTEL_SERVICE_NAME": "a"},
        processor,
        ValueError,
        (
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=0 is not accepted: max_export_batch_size must be a positive integer."
            " Set it to a whole number above 0, or unset it."
        ),
    ),
    "an option with a unit": (
        {"OTEL_BSP_SCHEDULE_DELAY": "-5"},
        processor,
        ValueError,
        (
            "OTEL_BSP_SCHEDULE_DELAY=-5 is not accepted: schedule_delay_millis must be positive."
            " Set it to a number of milliseconds above 0, or unset it."
        ),
    ),
    "the default of an option": (
        {"OTEL_BSP_MAX_QUEUE_SIZE": "100"},
        processor,
        ValueError,
        (
            "OTEL_BSP_MAX_QUEUE_SIZE=100 is not accepted: max_export_batch_size must be less than or equal to"
            " max_queue_size. Set it to a whole number above 0, or unset it."
        ),
    ),
    "a code": (
        {"OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES": "unavailable,soon"},
        OTLPSpanExporter,
        RuntimeError,
        (
            "OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES=unavailable,soon is not accepted: KeyError: 'SOON'."
            " Set it to another value, or unset it."
        ),
    ),
    "a number": (
        {"OTEL_METRIC_EXPORT_INTERVAL": "-5", "OTEL_SERVICE_NAME": "a5"},
        fail_with("interval value -5.0 is invalid \\  and needs to be larger than zero."),
        ValueError,
        (
            "OTEL_METRIC_EXPORT_INTERVAL=-5 is not accepted: interval value -5.0 is invalid \\ and needs to be larger"
            " than zero. Set it to a number of milliseconds above 0, or unset it."
        ),
    ),
    "not known": (
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1", "OTEL_SERVICE_NAME": "a"},
        OTLPSpanExporter,
        ValueError,
        "Invalid IPv6 URL. The variable is not known; these are set: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME.",
    ),
    "a configuration file replaces the others": (
        {"OTEL_CONFIG_FILE": "a.yaml", "OTEL_EXPORTER_OTLP_TIMEOUT": "abc"},
        fail_with("'abc' in line 3."),
        ValueError,
        (
            "OTEL_CONFIG_FILE=a.yaml is not accepted: 'abc' in line 3. Set it to a configuration file of the SDK, or"
            " unset it."
        ),
    ),
    "no variable": ({}, fail_with("why not"), ValueError, "why not"),
    "a secret": (
        {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=hush", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://u:hush@h:1/hush"},
        fail_with("'authorization=hush' or http://u:hush@h:1/hush"),
        ValueError,
        (
            "OTEL_EXPORTER_OTLP_HEADERS=REDACTED is not accepted: 'REDACTED' or http://h:1."
            " Set it to another value, or unset it."
        ),
    ),
    "different variables": (
        {"OTEL_EXPORTER_OTLP_TIMEOUT": "x", "OTEL_EXPORTER_OTLP_PROTOCOL": "x"},
        fail_with("'x'"),
        ValueError,
        "OTEL_EXPORTER_OTLP_PROTOCOL=x or OTEL_EXPORTER_OTLP_TIMEOUT=x is not accepted: 'x'. Correct it, or unset it.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_error_of_the_sdk_names_its_variable(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables, build, expected, text = MISTAKES[mistake]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert message(build, expected) == text


def test_a_package_that_is_missing_is_reported_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "abc")
    with pytest.raises(ImportError, match=r"^no 'abc'$"), sdk_variables():
        raise ImportError("no 'abc'")


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"])
def test_replay_names_the_variable_of_an_unknown_protocol(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, " http/json ")
    with pytest.raises(ValueError, match=rf"^{name}= http/json  is not accepted: .* Set it to grpc or http/protobuf"):
        open_otlp()


PROTOCOL = (
    "OTEL_EXPORTER_OTLP_PROTOCOL=http/json is not accepted: Unsupported OTLP protocol 'http/json' is configured."
    " Set it to grpc or http/protobuf, or unset it."
)
TIMEOUT = MISTAKES["a value"][3]


COMMANDS = {
    "demo": (["--otlp", "--calls", "1"], "OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", PROTOCOL),
    "fetch": (["http://127.0.0.1:1/", "--quiet"], "OTEL_EXPORTER_OTLP_TIMEOUT", "abc", TIMEOUT),
    "replay": (["logs.csv"], "OTEL_EXPORTER_OTLP_TIMEOUT", "abc", TIMEOUT),
    "doctor": (["--json"], "OTEL_EXPORTER_OTLP_TIMEOUT", "abc", TIMEOUT),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_all_commands_use_the_same_words(command: str, tmp_path: Path) -> None:
    write(tmp_path / "logs.csv", [call(0)])
    arguments, name, value, text = COMMANDS[command]
    variables = {name: value, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    done = finish(start(tmp_path, command, *arguments, extra=variables))
    if command != "doctor":
        assert (done.code, done.error) == (2, f"otel-connector {command}: {text}\n")
        return
    shown = json.loads(done.out)
    assert (done.code, done.error, shown["problems"]) == (1, "", [f"The SDK cannot be set up: {text}"])
    assert {each["name"]: each["value"] for each in shown["telemetry"]["variables"]} == variables


CONFIGURED = """
import otel_connector
try:
    otel_connector.configure()
except RuntimeError as error:
    print(error)
"""


def test_configure_names_an_unknown_exporter_and_those_that_are_installed(tmp_path: Path) -> None:
    done = forked.run_python(["-c", CONFIGURED], tmp_path, OTEL_TRACES_EXPORTER="otlp,oltp")
    assert done.stdout.startswith(
        "OTEL_TRACES_EXPORTER=otlp,oltp is not accepted: Requested component 'oltp' not found"
    )
    assert "Set it to console, csv" in done.stdout
    assert done.stdout.endswith(" or none, or unset it.\n")


@pytest.mark.parametrize("name", ["ENDPOINT", "TRACES_ENDPOINT", "PROTOCOL", "TIMEOUT", "COMPRESSION", "HEADERS"])
def test_an_empty_variable_counts_as_unset(name: str, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", "")
    exporter: Any
    exporter, endpoint = open_otlp()
    exporter.shutdown()
    assert (exporter._endpoint, exporter._timeout, endpoint) == ("localhost:4317", 10, "http://localhost:4317")
    assert os.environ[f"OTEL_EXPORTER_OTLP_{name}"] == ""
    assert capfd.readouterr().err == "", EMPTY_IS_UNSET  # gRPC prints "Source Location Trace" for an empty address


def test_doctor_treats_an_empty_endpoint_as_unset(tmp_path: Path) -> None:
    with grpc_receiver(Received()) as endpoint:
        variables = {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": endpoint, "OTEL_TRACES_EXPORTER": "none"}
        done = finish(start(tmp_path, "doctor", extra={"OTEL_EXPORTER_OTLP_ENDPOINT": "", **variables}))
    assert (done.code, done.error) == (0, "")
    assert f"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT={endpoint}  -> {endpoint}" in done.out
