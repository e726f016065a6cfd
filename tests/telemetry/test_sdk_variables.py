"""An empty ``OTEL_*`` variable counts as unset, and an error of the set-up names its variable, in every command.

The errors are those of the SDK and its exporters, which are built for real.
"""

from __future__ import annotations

import json
import logging
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
from otel_connector._telemetry._export_problem import quoted
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
            " max_queue_size. Set OTEL_BSP_MAX_EXPORT_BATCH_SIZE (default: 512) to at most OTEL_BSP_MAX_QUEUE_SIZE"
            " (default: 2048)."
        ),
    ),
    "two options": (
        {"OTEL_BSP_MAX_QUEUE_SIZE": "100", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "5000"},
        processor,
        ValueError,
        (
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=5000 or OTEL_BSP_MAX_QUEUE_SIZE=100 is not accepted: max_export_batch_size"
            " must be less than or equal to max_queue_size. Set OTEL_BSP_MAX_EXPORT_BATCH_SIZE (default: 512) to at"
            " most OTEL_BSP_MAX_QUEUE_SIZE (default: 2048)."
        ),
    ),
    "a provider that is not installed": (  # the API would raise StopIteration
        {"OTEL_PYTHON_TRACER_PROVIDER": "bogus", "OTEL_PYTHON_METER_PROVIDER": "default_meter_provider"},
        list,
        ValueError,
        (
            "OTEL_PYTHON_TRACER_PROVIDER=bogus is not accepted: no tracer provider 'bogus' is installed."
            " Set it to default_tracer_provider, or unset it."
        ),
    ),
    "a key of the client": (  # without its file, gRPC would end the process. The value may be the key itself
        {
            "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE": __file__,
            "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE": __file__,
            "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY": "s3cr3t",
        },
        list,
        OSError,
        (
            "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY=REDACTED is not accepted: the file that"
            " OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY names cannot be used (No such file or directory). Set it to a file"
            " in PEM format, or unset it."
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


def test_doctor_names_a_provider_that_is_not_installed_and_ignores_an_empty_one(tmp_path: Path) -> None:
    extra = {"OTEL_PYTHON_METER_PROVIDER": "bogus", "OTEL_PYTHON_TRACER_PROVIDER": ""}
    done = finish(start(tmp_path, "doctor", "--json", extra=extra))
    (problem,) = json.loads(done.out)["problems"]
    assert done.error == ""
    assert problem == (
        "The SDK cannot be set up: OTEL_PYTHON_METER_PROVIDER=bogus is not accepted: no meter provider 'bogus' is"
        " installed. Set it to default_meter_provider, or unset it."
    )
    done = finish(start(tmp_path, "demo", "--otlp", "--calls", "1", extra=extra))
    assert (done.code, done.out, done.error) == (
        2,
        "",
        problem.replace("The SDK cannot be set up", "otel-connector demo") + "\n",
    )
    silent = {"OTEL_METRICS_EXPORTER": "none", "OTEL_TRACES_EXPORTER": "none"}
    done = finish(start(tmp_path, "doctor", extra={**silent, "OTEL_PYTHON_TRACER_PROVIDER": ""}))
    assert (done.code, done.error) == (0, "")


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


HUSH = "S3CR3T"
ENTRY = "{} has an entry that is ignored: it is not name=value"
ENCODED = (
    ", or has a character that must be percent-encoded. Write name=value,name=value, and %20 for a space in a value."
)
PLAIN = ". Write name=value,name=value, and %2C for a comma in a value."
SPECIFICATION = 'OpenTelemetry Protocol Exporter, "Specifying headers via environment variables"'

# The variables, and the lines about them in any command
SECRETS: dict[str, tuple[dict[str, str], list[str]]] = {
    "no =": (
        {"OTEL_EXPORTER_OTLP_HEADERS": f"Authorization Bearer {HUSH}"},
        [ENTRY.format("OTEL_EXPORTER_OTLP_HEADERS") + ENCODED],
    ),
    "a space in a name": (
        {"OTEL_EXPORTER_OTLP_TRACES_HEADERS": f"Authorization=Bearer%20{HUSH}, api key={HUSH}2"},
        [ENTRY.format("OTEL_EXPORTER_OTLP_TRACES_HEADERS") + ENCODED],
    ),
    "two variables": (
        {"OTEL_EXPORTER_OTLP_HEADERS": f"a;{HUSH}", "OTEL_EXPORTER_OTLP_METRICS_HEADERS": f"a;{HUSH}"},
        [ENTRY.format("OTEL_EXPORTER_OTLP_HEADERS or OTEL_EXPORTER_OTLP_METRICS_HEADERS") + ENCODED],
    ),
    "a resource attribute": (
        {"OTEL_RESOURCE_ATTRIBUTES": f"a={HUSH},{HUSH}"},
        [ENTRY.format("OTEL_RESOURCE_ATTRIBUTES") + PLAIN],
    ),
}


@pytest.mark.parametrize(
    ("secret", "protocol"), [*((each, "grpc") for each in SECRETS), ("a space in a name", "http/protobuf")]
)
def test_an_entry_that_the_sdk_ignores_is_named_without_its_secret(secret: str, protocol: str, tmp_path: Path) -> None:
    variables, expected = SECRETS[secret]
    extra = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol, **variables}
    done = finish(start(tmp_path, "doctor", "--json", extra=extra))
    assert HUSH not in done.out + done.error, SPECIFICATION
    assert (json.loads(done.out)["messages"], done.error) == (expected, "")


LOGGED = """
import logging, sys
logging.basicConfig(format="%(message)s", stream=sys.stdout)
import otel_connector
with otel_connector.configure(exit_timeout=1):
    from opentelemetry import trace
    trace.get_tracer("t").start_span("s").end()
"""
EVERYWHERE = {
    "OTEL_RESOURCE_ATTRIBUTES": f"a={HUSH},{HUSH}",
    # A line feed at the end of a value: neither gRPC nor HTTP can send it, and the errors repeat it
    "OTEL_EXPORTER_OTLP_HEADERS": f"Authorization=Bearer%20{HUSH}%0A,api key={HUSH}2",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "0.3",
    "OTEL_METRICS_EXPORTER": "none",
}


IN_URL = f"http://u:{HUSH}@127.0.0.1:1/{HUSH}/x?key={HUSH}#{HUSH}"


@pytest.mark.parametrize(
    ("command", "protocol", "endpoint"),
    [
        ("configure", "grpc", "http://127.0.0.1:1"),
        ("configure", "grpc", f"http://u:{HUSH}@127.0.0.1:1"),
        ("configure", "http/protobuf", IN_URL),
        ("fetch", "http/protobuf", IN_URL),
        ("replay", "http/protobuf", IN_URL),
    ],
)
def test_no_log_line_of_the_sdk_has_a_secret(command: str, protocol: str, endpoint: str, tmp_path: Path) -> None:
    write(tmp_path / "logs.csv", [call(0)])
    extra = {**EVERYWHERE, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    if command == "configure":
        done = forked.run_python(["-c", LOGGED], tmp_path, **extra)
        shown = done.stdout + done.stderr
    else:
        argument = "logs.csv" if command == "replay" else "http://127.0.0.1:1/"
        options = ["--quiet", "--tries", "1"] if command == "fetch" else []
        ended = finish(start(tmp_path, command, argument, *options, extra=extra))
        shown = ended.out + ended.error
    assert HUSH not in shown
    assert shown.count(ENTRY.format("OTEL_RESOURCE_ATTRIBUTES")) == 1
    assert shown.count(ENTRY.format("OTEL_EXPORTER_OTLP_HEADERS")) == 1
    assert " not sent: " in shown


def test_a_text_of_a_receiver_and_of_an_exporter_has_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-key={HUSH}")
    monkeypatch.setenv("OTEL_SHORT", "1")
    assert quoted(f"{HUSH.lower()} expired, 1 day ago") == ': "REDACTED expired, 1 day ago"'
    record = logging.makeLogRecord({"msg": "Header format invalid! %s", "args": (f"{HUSH} x",)})
    with sdk_variables():
        logging.getLogger("opentelemetry.util.re").filter(record)
    assert record.getMessage() == ENTRY.format("An option of an exporter") + ENCODED  # it is from the code


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS"])
@pytest.mark.parametrize(
    "value", ["", " ", "://", "http://", "//", "@", "http://@/", ",", "=", "a=,=b", "%", "(", "http://["]
)
def test_a_variable_with_any_value_does_not_break_a_message(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert quoted("not a secret") == ': "not a secret"'
