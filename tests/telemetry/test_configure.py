"""`configure`. Each program is a separate process, because a process can set its global providers only once."""

from __future__ import annotations

import atexit
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from types import MappingProxyType
from typing import Any

import pytest
from opentelemetry.sdk._configuration import _OTelSDKConfigurator
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    InMemoryMetricReader,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support import processes
from support.collector import agent, endpoints_at, own_address
from support.forked import Program
from support.otlp_receiver import Received, attributes_of, grpc_receiver, http_receiver

from otel_connector import providers
from otel_connector._telemetry._exporter_watch import watch_exporters
from otel_connector._telemetry._sdk_exit import Telemetry
from otel_connector.providers import _finish_all, configure

GRPC, HTTP = "grpc", "http/protobuf"

# The start of every program: `work` creates `count` spans and increments a counter as many times.
PRELUDE = """
import os, sys
from opentelemetry import metrics, trace
from otel_connector.providers import configure

def work(count=1):
    tracer, counter = trace.get_tracer("program"), metrics.get_meter("program").create_counter("calls")
    for _ in range(count):
        with tracer.start_as_current_span("call"):
            counter.add(1)
"""


class Arrivals(Received):
    """The received data, and the service name of each of the program's spans and metrics."""

    @property
    def span_services(self) -> list[str]:
        return [self._service(group) for group in self.resource_spans for s in group.scope_spans for _ in s.spans]

    @property
    def metric_services(self) -> list[str]:
        # The SDK also exports metrics about its own exports
        scopes = [(group, scope) for group in self.resource_metrics for scope in group.scope_metrics]
        return [self._service(group) for group, scope in scopes if scope.scope.name == "program" for _ in scope.metrics]

    @staticmethod
    def _service(group: Any) -> str:
        return str(attributes_of(group.resource)["service.name"])


@pytest.fixture
def collector() -> Arrivals:
    return Arrivals()


@pytest.fixture
def grpc_endpoint(collector: Arrivals) -> Iterator[str]:
    with grpc_receiver(collector) as endpoint:
        yield endpoint


@pytest.fixture
def http_endpoint(collector: Arrivals) -> Iterator[str]:
    with http_receiver(collector) as endpoint:
        yield endpoint


@pytest.fixture
def black_hole() -> Iterator[socket.socket]:
    """A listener that never answers; the kernel accepts its connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        yield listener


def otlp(endpoint: str, protocol: str = HTTP, **more: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol, **more}


def start(program: str, env: Mapping[str, str] | None = None, *, warnings: str = "error") -> processes.Process:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return Program(
        ["-W", warnings, "-c", PRELUDE + program],
        env={**clean, **(env or {})},
        stdin=subprocess.PIPE,  # open until `communicate`, so that a program can wait for it
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(
    program: str, env: Mapping[str, str] | None = None, *, warnings: str = "error", returncode: int = 0
) -> tuple[str, str]:
    process = start(program, env, warnings=warnings)
    out, err = process.communicate(timeout=60)
    assert process.returncode == returncode, err
    return out, err


def exit_seconds(process: processes.Process) -> tuple[float, str]:
    """Return the seconds from the program's line "ready" to its end, and its stderr."""
    assert process.stdout is not None
    line = process.stdout.readline()
    since = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert line == "ready\n", err
    return time.monotonic() - since, err


def test_spans_and_metrics_arrive_over_grpc_by_default(collector: Arrivals, grpc_endpoint: str) -> None:
    program = """
with configure("svc", resource_attributes={"team": "prices", "shard": 3, "share": 0.5, "canary": True}):
    assert "OTEL_TRACES_EXPORTER" not in os.environ
    work(3)
"""
    _, err = run(program, {"OTEL_EXPORTER_OTLP_ENDPOINT": grpc_endpoint})

    assert err == ""
    assert collector.span_services == ["svc"] * 3
    assert collector.metric_services == ["svc"]  # once, not both at the flush and at the shutdown
    assert {"team": "prices", "shard": 3, "share": 0.5, "canary": True}.items() <= collector.resources[0].items()


def test_spans_and_metrics_arrive_over_http(collector: Arrivals, http_endpoint: str) -> None:
    program = 'with configure("svc"): work(3)'
    _, err = run(program, otlp(http_endpoint))

    assert err == ""
    assert (collector.span_services, collector.metric_services) == (["svc"] * 3, ["svc"])


@pytest.mark.neighbours("rotel")
def test_a_real_collector_receives_spans_and_metrics_over_both_protocols() -> None:
    address = own_address()
    logs = ["--debug-log", "traces", "--debug-log", "metrics", "--debug-log-verbosity", "detailed"]
    with agent(address, "--exporter", "blackhole", *logs) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        for protocol, endpoint in endpoints_at(address).items():
            run('with configure("svc"): work()', otlp(endpoint, protocol))
        wanted = {"-> service.name: Str(svc)": 4, "Name           : call": 2, "-> Name: calls": 2}
        for line in map(bytes.decode, process.stdout):
            for text in [text for text in wanted if text in line]:
                wanted[text] -= 1
            if not any(wanted.values()):
                break
        process.terminate()
        watchdog.cancel()
    assert set(wanted.values()) == {0}


def test_resource_variables_of_the_environment_override_the_arguments(collector: Arrivals, http_endpoint: str) -> None:
    program = """
with configure("ours", resource_attributes={"team": "ours", "shard": 3}): work()
"""
    run(program, otlp(http_endpoint, OTEL_SERVICE_NAME="theirs", OTEL_RESOURCE_ATTRIBUTES="team=theirs"))
    run(program, otlp(http_endpoint, OTEL_RESOURCE_ATTRIBUTES="service.name=also-theirs"))
    run("with configure(): work()", otlp(http_endpoint))

    names = [resource["service.name"] for resource in collector.resources]
    assert names[0::2] == names[1::2]
    assert names[:4:2] == ["theirs", "also-theirs"]
    assert names[4].startswith("unknown_service")
    assert (collector.resources[0]["team"], collector.resources[0]["shard"]) == ("theirs", 3)
    assert collector.resources[2]["team"] == "ours"


def test_exporter_variables_of_the_environment_are_kept(collector: Arrivals, http_endpoint: str) -> None:
    program = """
with configure("svc"):
    assert (os.environ["OTEL_TRACES_EXPORTER"], os.environ["OTEL_METRICS_EXPORTER"]) == ("none", "")
    work()
"""
    _, err = run(program, otlp(http_endpoint, OTEL_TRACES_EXPORTER="none", OTEL_METRICS_EXPORTER=""))

    assert err == ""
    assert (collector.span_services, collector.metric_services) == ([], ["svc"])  # an empty variable counts as unset


def test_a_disabled_sdk_sends_nothing_and_its_shutdown_succeeds(closed_port: int) -> None:
    program = """
with configure("svc") as telemetry:
    work(100)
print(telemetry.shutdown())
"""
    env = otlp(f"http://127.0.0.1:{closed_port}", GRPC, OTEL_SDK_DISABLED="true")

    assert run(program, env) == ("True\n", "")


def test_without_a_with_block_telemetry_is_exported_at_exit(collector: Arrivals, grpc_endpoint: str) -> None:
    _, err = run('configure("svc"); work(3)', {"OTEL_EXPORTER_OTLP_ENDPOINT": grpc_endpoint})

    assert err == ""
    assert (collector.span_services, collector.metric_services) == (["svc"] * 3, ["svc"])


def test_force_flush_exports_while_the_program_is_running(collector: Arrivals, http_endpoint: str) -> None:
    program = """
with configure("svc") as telemetry:
    work()
    print(telemetry.force_flush(), flush=True)
    sys.stdin.readline()
print(telemetry.force_flush())
"""
    process = start(program, otlp(http_endpoint))
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        # An exporter whose request takes too long on a busy machine sends it once more
        assert (set(collector.span_services), set(collector.metric_services)) == ({"svc"}, {"svc"})
        out, err = process.communicate(timeout=30)
    assert (out, err) == ("False\n", "")  # after the shutdown nothing can be flushed


@pytest.mark.timing
def test_an_unreachable_collector_delays_the_exit_by_at_most_the_exit_timeout(
    closed_port: int, black_hole: socket.socket
) -> None:
    """3,000 spans and a metric are pending; the SDK alone takes 34-41 s to exit here."""
    body = 'work(3000)\n    print("ready", flush=True)\n'
    configured = 'configure("svc", exit_timeout=1)'
    block, no_block = f"with {configured}:\n    {body}", f"if {configured}:\n    {body}"
    by_default = f'with configure("svc"):\n    {body}'
    refused, silent = f"http://127.0.0.1:{closed_port}", f"http://127.0.0.1:{black_hole.getsockname()[1]}"
    cases = [(block, endpoint, protocol) for endpoint in (refused, silent) for protocol in (GRPC, HTTP)]
    cases += [(no_block, refused, GRPC), (by_default, silent, HTTP)]
    processes = [start(program, otlp(endpoint, protocol)) for program, endpoint, protocol in cases]
    with ThreadPoolExecutor(len(cases)) as pool:  # concurrently, so that the test takes the time of one program
        results = list(pool.map(exit_seconds, processes))

    for case, process, (seconds, err) in zip(cases, processes, results, strict=True):
        assert process.returncode == 0, err
        limit = 5 if by_default in case else 1
        assert seconds < limit + 3, case  # the margin is for a busy machine, which ends a process slowly
        assert err.count("Traces and metrics were not sent: ") == 1, err
        assert (
            "nothing listens at " if refused in case else f"did not answer within {limit} s, the time limit at the end"
        ) in err


def test_a_failed_export_makes_force_flush_return_false_and_is_logged(http_endpoint: str) -> None:
    program = """
with configure("svc") as telemetry:
    work()
    print("ready", telemetry.force_flush())
    work()
"""
    out, err = run(program, otlp(f"{http_endpoint}/nowhere"))

    assert out == "ready False\n"
    assert "Traces were not sent: http://127.0.0.1:" in err
    assert err.count("OTEL_EXPORTER_OTLP_ENDPOINT has a path, and most receivers have none") == 2  # traces, metrics
    assert "nowhere" not in err


def test_an_exception_in_the_with_block_propagates_and_the_spans_are_exported(
    collector: Arrivals, grpc_endpoint: str
) -> None:
    program = """
with configure("svc"):
    work()
    raise LookupError("mine")
"""
    _, err = run(program, {"OTEL_EXPORTER_OTLP_ENDPOINT": grpc_endpoint}, returncode=1)

    assert err.rstrip().endswith("LookupError: mine")
    assert collector.span_services == ["svc"]


SLEEPER = """
import time
with configure("svc", exit_timeout={exit_timeout}):
    work()
    print("ready", flush=True)
    while True:  # a single long sleep could start just after the signal and miss it
        time.sleep(0.05)
"""


def test_spans_are_exported_after_ctrl_c(collector: Arrivals, grpc_endpoint: str) -> None:
    process = start(SLEEPER.format(exit_timeout=5), {"OTEL_EXPORTER_OTLP_ENDPOINT": grpc_endpoint})
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)

    assert process.returncode == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert collector.span_services == ["svc"]


@pytest.mark.timing
def test_the_exit_timeout_also_applies_after_ctrl_c(closed_port: int) -> None:
    process = start(SLEEPER.format(exit_timeout=1), otlp(f"http://127.0.0.1:{closed_port}", GRPC))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    since = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)

    assert time.monotonic() - since < 5
    assert process.returncode == -signal.SIGINT
    assert "Traces and metrics were not sent: nothing listens at " in err


def test_a_signal_during_the_exit_waits_for_the_export() -> None:
    """As when a worker process has reached its number of requests, and its server is stopped at that moment."""
    program = """
import signal
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

class Slow(SpanExporter):
    def export(self, spans):
        print("ready", flush=True)
        sys.stdin.read()
        print("exported", len(spans), flush=True)
        return SpanExportResult.SUCCESS

configure("svc", exit_timeout=60, signals=[signal.SIGTERM])
trace.get_tracer_provider().add_span_processor(BatchSpanProcessor(Slow()))
work()
"""
    process = start(program, dict.fromkeys(("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER"), "none"))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("exported 1\n", "", -signal.SIGTERM)


def test_a_second_ctrl_c_ends_the_wait_for_the_flush(black_hole: socket.socket) -> None:
    env = otlp(f"http://127.0.0.1:{black_hole.getsockname()[1]}", OTEL_BSP_SCHEDULE_DELAY="600000")
    process = start(SLEEPER.format(exit_timeout=300), env)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    connection, _ = black_hole.accept()  # the flush has begun
    with connection:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)

    assert process.returncode == -signal.SIGINT
    assert "Traces and metrics were not sent: the export was interrupted." in err


def test_a_forked_child_exports_its_own_spans(collector: Arrivals, http_endpoint: str) -> None:
    program = """
configure("svc")
work()
child = os.fork()
if child == 0:
    work(3)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
print("child done")
"""
    out, err = run(program, otlp(http_endpoint), warnings="ignore")

    assert (out, err) == ("child done\n", "")
    assert collector.span_services == ["svc"] * 4


def test_shutdown_succeeds_in_a_child_that_was_forked_after_the_shutdown(
    collector: Arrivals, http_endpoint: str
) -> None:
    program = """
with configure("svc") as telemetry:
    work()
child = os.fork()
if child == 0:
    telemetry.flush_before_signal(300)  # waits for nothing
    sys.exit(0 if telemetry.shutdown() else 1)
print(os.waitpid(child, 0)[1])
"""

    assert run(program, otlp(http_endpoint), warnings="ignore") == ("0\n", "")
    assert collector.span_services == ["svc"]


@pytest.mark.parametrize(
    ("existing", "kind"),
    [
        ("from opentelemetry.sdk.trace import TracerProvider as P; trace.set_tracer_provider(P())", "tracer"),
        ("from opentelemetry.sdk.metrics import MeterProvider as P; metrics.set_meter_provider(P())", "meter"),
        ("trace.set_tracer_provider(trace.NoOpTracerProvider())", "tracer"),
        ("metrics.set_meter_provider(metrics.NoOpMeterProvider())", "meter"),
    ],
)
def test_configure_raises_if_a_provider_is_already_set(existing: str, kind: str) -> None:
    program = f"""
{existing}
try:
    configure("svc")
except RuntimeError as error:
    print(error)
"""
    out, err = run(program)

    assert err == ""
    assert re.fullmatch(
        rf"this process already has a {kind} provider \(opentelemetry.*\): do not call configure\(\), .*\n", out
    )


def test_a_second_call_of_configure_raises() -> None:
    program = """
with configure("svc"):
    try:
        configure("svc")
    except RuntimeError as error:
        print(error)
"""
    out, err = run(program, {"OTEL_SDK_DISABLED": "true"})

    assert err == ""
    assert out.startswith("configure() was called before in this process")


def test_configure_can_be_called_again_after_it_raised(collector: Arrivals, grpc_endpoint: str) -> None:
    program = """
os.environ["OTEL_TRACES_EXPORTER"] = "otpl"
try:
    configure("svc")
except RuntimeError as error:
    print(error)
del os.environ["OTEL_TRACES_EXPORTER"]
with configure("svc"):
    work()
"""
    out, err = run(program, {"OTEL_EXPORTER_OTLP_ENDPOINT": grpc_endpoint})

    assert err == ""
    assert "'otpl' not found" in out
    assert collector.span_services == ["svc"]


@pytest.mark.timing
def test_a_setup_that_fails_halfway_leaves_no_exit_handler(closed_port: int) -> None:
    program = """
try:
    configure("svc")
except ValueError as error:
    print("ready", flush=True)
"""
    env = otlp(f"http://127.0.0.1:{closed_port}", GRPC, OTEL_METRIC_EXPORT_INTERVAL="-1")
    process = start(program, env)
    seconds, _ = exit_seconds(process)

    assert process.returncode == 0
    assert seconds < 5


def test_a_missing_configuration_file_is_reported_by_the_sdk() -> None:
    program = """
try:
    configure()
except Exception as error:
    print(error)
"""
    out, _ = run(program, {"OTEL_CONFIG_FILE": "no-such-file.yaml"})

    assert out.startswith(
        "OTEL_CONFIG_FILE=no-such-file.yaml is not accepted: "
    )  # test_zero_code_setup.py tests an existing file


def test_importing_providers_loads_neither_the_sdk_nor_aiohttp() -> None:
    program = """
import importlib.util
unwanted = {"aiohttp", "grpc", "requests", "opentelemetry.sdk._configuration", "opentelemetry.sdk.metrics"}
spec = importlib.util.find_spec("otel_connector.providers")
module = importlib.util.module_from_spec(spec)
sys.modules["alone"] = module
before = set(sys.modules)
spec.loader.exec_module(module)
print(sorted(name for name in set(sys.modules) - before if name.startswith(("aiohttp", "grpc", "opentelemetry"))))
"""
    assert run(program) == ("[]\n", "")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"service_name": 1}, TypeError, "service_name must be a str, not int"),
        ({"service_name": " "}, ValueError, "service_name must not be empty"),
        ({"exit_timeout": "5"}, TypeError, "exit_timeout must be a number of seconds, not '5'"),
        ({"exit_timeout": True}, TypeError, "exit_timeout must be a number of seconds, not True"),
        ({"exit_timeout": 0}, ValueError, "exit_timeout must be more than 0 seconds"),
        ({"exit_timeout": float("nan")}, ValueError, "exit_timeout must be more than 0 seconds, and finite"),
        ({"exit_timeout": float("inf")}, ValueError, "exit_timeout must be more than 0 seconds, and finite"),
        ({"resource_attributes": [("a", "b")]}, TypeError, "resource_attributes must be a mapping, not list"),
        ({"resource_attributes": {1: "b"}}, TypeError, "resource_attributes: a key must be str, not int"),
        ({"resource_attributes": {"": "b"}}, ValueError, "resource_attributes: a key must not be empty"),
        (
            {"resource_attributes": {"a": None}},
            TypeError,
            r"resource_attributes\['a'\] must be str, bool, int or float",
        ),
        (
            {"service_name": "a", "resource_attributes": MappingProxyType({"service.name": "b"})},
            ValueError,
            "service_name and resource_attributes.* differ",
        ),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        configure(**arguments)


class Gate(SpanExporter):
    """An exporter whose exports wait until `opened` is set, and then end with `result`."""

    def __init__(self, result: SpanExportResult | Exception = SpanExportResult.SUCCESS) -> None:
        self.result = result
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.exported = 0
        self.shutdowns = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        self.opened.wait()
        self.exported += len(spans)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def shutdown(self) -> None:
        self.shutdowns += 1
        self.opened.set()


def traced(exporter: SpanExporter, *, spans: int = 1, exit_timeout: float = 30) -> tuple[Telemetry, TracerProvider]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_export_batch_size=1, schedule_delay_millis=600_000))
    telemetry = Telemetry({"traces": provider}, exit_timeout)
    for _ in range(spans):
        provider.get_tracer("test").start_span("call").end()
    return telemetry, provider


def test_force_flush_returns_after_its_timeout_and_the_flush_continues() -> None:
    gate = Gate()
    telemetry, _ = traced(gate)

    assert not telemetry.force_flush(0.01)
    assert not telemetry.force_flush(0.01)  # is queued behind the first flush, and withdrawn
    gate.opened.set()
    assert telemetry.force_flush()
    assert gate.exported == 1
    assert telemetry.shutdown()
    assert gate.shutdowns == 1


@pytest.mark.parametrize("bad", [0, -1, True, "1"])
def test_force_flush_names_a_bad_timeout(bad: Any) -> None:
    telemetry, _ = traced(Gate(), spans=0)
    with telemetry, pytest.raises((TypeError, ValueError), match="timeout must be"):
        telemetry.force_flush(bad)


def test_finishing_before_a_signal_exports_but_does_not_shut_down() -> None:
    exporter = InMemorySpanExporter()
    telemetry, provider = traced(exporter)
    _finish_all(telemetry, 5)
    assert len(exporter.get_finished_spans()) == 1
    with provider.get_tracer("program").start_as_current_span("another"):
        pass
    assert telemetry.shutdown()
    assert len(exporter.get_finished_spans()) == 2


@pytest.mark.parametrize("result", [SpanExportResult.FAILURE, OSError("no")])
def test_force_flush_and_shutdown_return_false_after_a_failed_export(
    result: SpanExportResult | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(result)
    gate.opened.set()
    telemetry, provider = traced(gate)

    assert not telemetry.force_flush()
    assert telemetry.force_flush()  # nothing is left to export: the failed spans were dropped
    provider.get_tracer("test").start_span("call").end()
    assert not telemetry.shutdown()
    assert [r.levelname for r in caplog.records if r.name == "otel_connector"] == ["WARNING"]
    assert "Traces were not sent: the exporter " in caplog.text


def test_shutdown_stops_an_exporter_that_hangs_and_drops_the_other_spans(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    telemetry, _ = traced(gate, spans=10, exit_timeout=0.1)

    assert not telemetry.shutdown()
    assert (
        "Traces were not sent: Gate did not answer within 0.1 s, the time limit at the end of the program."
        in caplog.text
    )
    assert gate.opened.wait(30)
    assert gate.shutdowns == 1  # our call released the export; the SDK's second call was suppressed
    assert gate.exported <= 1


@pytest.mark.parametrize("waits", [True, False], ids=["for the export", "for at most its own seconds"])
def test_a_signal_during_the_shutdown_waits(waits: bool) -> None:
    gate = Gate()
    telemetry, _ = traced(gate)
    with ThreadPoolExecutor(2) as pool:
        stopped = pool.submit(telemetry.shutdown)
        assert gate.entered.wait(30)
        finished = pool.submit(_finish_all, telemetry, 30 if waits else 0.01)
        if waits:
            assert not wait([finished], 0.01).done
        else:
            assert finished.result(30)
        gate.opened.set()
        assert finished.result(30)
        assert stopped.result(30)
    assert gate.exported == 1
    assert _finish_all(telemetry, 30)  # nothing is left to wait for


def test_a_signal_between_the_start_of_the_shutdown_and_its_exports_flushes() -> None:
    exporter = InMemorySpanExporter()
    telemetry, _ = traced(exporter)
    telemetry._closing = True
    assert _finish_all(telemetry, 30)
    assert len(exporter.get_finished_spans()) == 1
    telemetry._closing = False
    assert telemetry.shutdown()


@pytest.mark.timing
def test_a_signal_and_the_shutdown_that_it_causes_share_one_timeout() -> None:
    gate = Gate()
    telemetry, _ = traced(gate, spans=10, exit_timeout=30)
    since = time.monotonic()
    assert _finish_all(telemetry, 0.2)
    assert not telemetry.shutdown()
    assert time.monotonic() - since < 10


def test_nothing_is_finished_if_a_signal_interrupts_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "interrupted", lambda: True)
    gate = Gate()
    telemetry, _ = traced(gate)
    assert not _finish_all(telemetry, 30)
    gate.opened.set()
    assert telemetry.shutdown()


def test_an_error_in_the_shutdown_of_an_exporter_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Gate):
        def shutdown(self) -> None:
            raise OSError("no room")

    gate = Broken()
    gate.opened.set()
    telemetry, _ = traced(gate)

    assert not telemetry.shutdown()
    assert "Traces were not sent: the exporter failed: OSError: no room." in caplog.text


def test_concurrent_shutdowns_shut_the_exporter_down_once() -> None:
    gate = Gate()
    telemetry, _ = traced(gate)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(telemetry.shutdown) for _ in range(4)]
        assert gate.entered.wait(30)
        assert not wait(answers, 0.01).done
        gate.opened.set()
        assert [answer.result() for answer in answers] == [True] * 4
    assert gate.shutdowns == 1
    for thread in threading.enumerate():
        if (
            thread.name.startswith("otel_connector.") and thread.name != "otel_connector.log"
        ):  # this one is the log of another test
            thread.join(30)
            assert not thread.is_alive()


def test_private_parts_of_the_sdk_that_configure_uses_are_unchanged() -> None:
    """If this test fails, compare `providers.py` with the new version of the SDK first."""

    class Configurator(_OTelSDKConfigurator):
        seen: Any = None

        def _configure(self, **kwargs: Any) -> None:
            type(self).seen = kwargs

    Configurator().configure(resource_attributes={"a": "b"})  # type: ignore[no-untyped-call]
    assert Configurator.seen == {"resource_attributes": {"a": "b"}}

    tracers, loggers = TracerProvider(), LoggerProvider()
    span_exporters = [InMemorySpanExporter(), InMemorySpanExporter()]
    tracers.add_span_processor(BatchSpanProcessor(span_exporters[0]))
    tracers.add_span_processor(SimpleSpanProcessor(span_exporters[1]))
    log_exporters: list[Any] = [Gate(), Gate()]  # the base class has changed its name since 1.38
    loggers.add_log_record_processor(BatchLogRecordProcessor(log_exporters[0]))
    loggers.add_log_record_processor(SimpleLogRecordProcessor(log_exporters[1]))
    metric_exporter = ConsoleMetricExporter()
    meters = MeterProvider([PeriodicExportingMetricReader(metric_exporter), InMemoryMetricReader()])
    pipelines: list[tuple[Any, Sequence[object]]] = [
        (tracers, span_exporters),
        (loggers, log_exporters),
        (meters, [metric_exporter]),
    ]
    for provider, exporters in pipelines:
        watches = watch_exporters(provider, "traces", lambda _watch: None)
        assert [watch.exporter for watch in watches] == exporters
        atexit.unregister(
            provider.shutdown
        )  # configure() relies on this method being equal to the one that the SDK registered
        provider.shutdown()


def test_a_processor_without_an_exporter_is_skipped() -> None:
    class Silent(SpanProcessor):
        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            return True

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Silent())

    assert watch_exporters(provider, "traces", lambda _watch: None) == []
    with Telemetry({"traces": provider}, 30) as telemetry:
        assert telemetry.force_flush()
    assert telemetry.shutdown()
