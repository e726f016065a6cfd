"""Tests the telemetry of a process for real: one span and one metric through each exporter that the SDK has built.

Everything that is reported about the configuration is read from the built objects, not from the variables again. Does
not know the terminal.

Used by ``cli._doctor_command`` and ``cli._doctor_view``.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from difflib import get_close_matches
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from otel_connector._serial_executor import SerialExecutor
from otel_connector._telemetry._export_problem import Kind, Problem, sentence
from otel_connector._telemetry._exporter_watch import ExporterWatch, first_of
from otel_connector._telemetry._variable_values import shown_value

if TYPE_CHECKING:
    from otel_connector._telemetry._sdk_exit import Telemetry

_POLL = 0.02  # seconds between two looks at an export in progress
_STOP = 2.0  # seconds for an export to end after it was stopped, and for one that ignores its own timeout
_OTHER_NAMES = ("OTEL_CONNECTOR_", "OTEL_PYTHON_", "OTEL_INSTRUMENTATION_", "OTEL_SEMCONV_", "OTEL_CONFIG_FILE")
_OTLP_VARIABLE = re.compile(r"OTEL_EXPORTER_OTLP_(?:(TRACES|METRICS|LOGS)_)?(\w+)")

# What the SDK made of an option of OTLP, where it keeps it
_HEADERS = (attrgetter("_client._headers"), attrgetter("_headers"))
_COMPRESSIONS = (attrgetter("_compression.name"),)
_OF_TLS = frozenset({"INSECURE", "CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"})
_STEPS = {
    "OTEL_BSP_SCHEDULE_DELAY": attrgetter("_batch_processor._schedule_delay_millis"),
    "OTEL_BSP_MAX_QUEUE_SIZE": attrgetter("_batch_processor._max_queue_size"),
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": attrgetter("_batch_processor._max_export_batch_size"),
    "OTEL_METRIC_EXPORT_INTERVAL": attrgetter("_export_interval_millis"),
    "OTEL_METRIC_EXPORT_TIMEOUT": attrgetter("_export_timeout_millis"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SetVariable:
    """An ``OTEL_*`` variable that is set.

    Attributes:
        name: Its name.
        value: Its value without secrets; None if it may be a secret.
        used_as: What the SDK made of it; empty if that cannot be read.
        problem: What is wrong with it; empty if nothing is known.
        remark: What else is known about it.
    """

    name: str
    value: str | None
    used_as: str
    problem: str = ""
    remark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExporterReport:
    """What one exporter did with one span or one metric.

    Attributes:
        signal: ``traces``, ``metrics`` or ``logs``.
        exporter: ``otlp``, or the class of another exporter; ``none`` if the signal has no exporter.
        protocol: ``grpc`` or ``http/protobuf``; empty for another exporter.
        endpoint: Scheme, host and port; empty for another exporter.
        setting: The variable that sets the endpoint, or ``default``.
        result: ``accepted``, ``partly``, ``rejected`` or ``not sent``.
        seconds: How long the export took.
        message: What happened and what to do; empty if everything was accepted.
        note: A warning of a receiver that has accepted everything.
        trace_id: Of the span that was sent; empty for other signals.
    """

    signal: str
    exporter: str
    protocol: str = ""
    endpoint: str = ""
    setting: str = ""
    result: str = "not sent"
    seconds: float = 0.0
    message: str = ""
    note: str = ""
    trace_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryReport:
    """The telemetry of a process.

    Attributes:
        exporters: One report for each exporter.
        service: ``service.name``.
        sampler: The description of the sampler.
        variables: The variables that are set.
        problems: What is wrong apart from the exports and the variables.
        log: The log of the exporter ``csv``; empty if there is none.
    """

    exporters: tuple[ExporterReport, ...]
    service: str
    sampler: str
    variables: tuple[SetVariable, ...]
    problems: tuple[str, ...]
    log: str = ""


def examine(telemetry: Telemetry, environ: Mapping[str, str] = os.environ) -> TelemetryReport:
    """Send a span and a metric through each exporter, and stop the exporters. Takes at most their timeouts."""
    providers: dict[str, Any] = {signal.name: signal.provider for signal in telemetry.signals}
    tracers = providers.get("traces")
    watches: list[ExporterWatch] = []
    problems: list[str] = []
    reports: list[ExporterReport] = []
    if tracers is None or (span := _span(tracers)) is None:
        problems.append("Nothing is sent: the SDK is disabled (OTEL_SDK_DISABLED).")
    else:
        watches += [watch for signal in telemetry.signals for watch in signal.watches]
        reports = _probe(watches, {"traces": [span], "metrics": _metric(tracers.resource)})
        # A sampler by ratio samples this trace id unless its ratio is 0
        if not tracers.sampler.should_sample(None, 0, "otel-connector doctor").decision.is_sampled():
            dropped = f"No traces are sent: the sampler {_described(tracers.sampler)} drops them."
            problems.append(f"{dropped} Unset OTEL_TRACES_SAMPLER.")
    silent = {"traces", "metrics"} - {report.signal for report in reports}
    reports += [ExporterReport(signal=name, exporter="none") for name in silent]
    return TelemetryReport(
        exporters=tuple(sorted(reports, key=lambda report: "traces metrics logs".index(report.signal))),
        service=str(tracers.resource.attributes["service.name"]) if tracers is not None else "",
        sampler=_described(tracers.sampler) if tracers is not None else "",
        variables=_variables(telemetry.signals, environ),
        problems=tuple(problems),
        log=next((watch.exporter.path for watch in watches if hasattr(watch.exporter, "path")), ""),
    )


def without_sdk(environ: Mapping[str, str] = os.environ) -> TelemetryReport:
    """Return the report of an SDK that cannot be set up: only the variables that are set."""
    return TelemetryReport(exporters=(), service="", sampler="", variables=_variables((), environ), problems=())


def _probe(watches: Iterable[ExporterWatch], batches: Mapping[str, Any]) -> list[ExporterReport]:
    """Export concurrently, so that all of it takes the time of one."""
    running = [(watch, *_start(watch, batches.get(watch.target.signal))) for watch in watches]
    # What arrived at one exporter can explain what did not at another, so all end before the first report
    ended = [(watch, future, _end(watch, future, began)) for watch, future, began in running]
    return [_report(watch, future, seconds, batches) for watch, future, seconds in ended]


def _start(watch: ExporterWatch, batch: Any) -> tuple[Future[float] | None, float]:
    began = time.monotonic()
    if batch is None:
        return None, began
    if hasattr(watch.exporter, "out"):  # of the SDK's console exporters
        watch.exporter.out = sys.stderr
    executor = SerialExecutor(watch.target.signal)

    def export() -> float:
        watch.export(batch)
        return time.monotonic() - began

    executor.start()
    future = executor.submit(export)
    executor.stop()
    return future, began


def _end(watch: ExporterWatch, future: Future[float] | None, began: float) -> float:
    """Wait for an export, stop its exporter, and return how long the export took."""
    if future is None:
        return 0.0
    while not future.done() and watch.problem is None and time.monotonic() - began < watch.target.timeout + _STOP:
        wait([future], _POLL)
    seconds = time.monotonic() - began
    watch.shutdown()  # the exporter would try again for some seconds
    wait([future], _STOP)
    return seconds


def _report(
    watch: ExporterWatch, future: Future[float] | None, seconds: float, batches: Mapping[str, Any]
) -> ExporterReport:
    target = watch.target
    report = ExporterReport(signal=target.signal, exporter=target.protocol)
    if watch.is_otlp:
        variable = target.variable("ENDPOINT")
        setting = variable if os.environ.get(variable) or "OTEL_CONFIG_FILE" in variable else "default"
        report = replace(report, exporter="otlp", protocol=target.protocol, endpoint=target.origin, setting=setting)
    if future is None:
        return report
    if future.done() and not watch.failed:
        span = batches["traces"][0].get_span_context()
        trace_id = format(span.trace_id, "032x") if target.signal == "traces" else ""
        return replace(report, result="accepted", seconds=future.result(), note=watch.hint, trace_id=trace_id)
    problem = watch.problem or watch.resolved(Problem(kind=Kind.NO_ANSWER))
    result = "partly" if watch.arrived else "rejected"
    return replace(report, result=result, seconds=seconds, message=sentence(problem, [target], count=watch.count))


def _span(provider: Any) -> Any:
    """Return a span with the provider's resource, which its sampler does not see; None if the SDK is disabled."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    own = TracerProvider(sampler=ALWAYS_ON, resource=provider.resource, shutdown_on_exit=False)
    span = own.get_tracer("otel_connector").start_span("otel-connector doctor")
    recording = span.is_recording()
    span.end()
    return span if recording else None


def _metric(resource: Any) -> Any:
    """Return a metric with two data points."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    own = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    counter = own.get_meter("otel_connector").create_counter("otel_connector.doctor")
    for number in range(2):
        counter.add(1, {"number": number})
    return reader.get_metrics_data()


def _variables(signals: Sequence[Any], environ: Mapping[str, str]) -> tuple[SetVariable, ...]:
    """Describe the variables without their secrets."""
    return tuple(_variable(name, value, signals) for name, value in sorted(environ.items()) if name.startswith("OTEL_"))


def _variable(name: str, value: str, signals: Sequence[Any]) -> SetVariable:
    """Describe a variable. Its value is shown only if it is known to be no secret."""
    from opentelemetry import environment_variables as of_api
    from opentelemetry.sdk import environment_variables as of_sdk

    known = {text for module in (of_api, of_sdk) for text in vars(module).values() if isinstance(text, str)}
    problem = remark = ""
    if name not in known and not name.startswith(_OTHER_NAMES):
        remark = "not a variable of the SDK"
        if close := get_close_matches(name, known, 1, 0.9):
            problem, remark = f"{name} is {remark}. Did you mean {close[0]}?", ""
    return SetVariable(
        name=name,
        value=None if problem or remark else shown_value(name, value),
        used_as=_used_as(name, signals),
        problem=problem,
        remark=remark,
    )


def _used_as(name: str, signals: Sequence[Any]) -> str:
    """Return what the SDK made of a variable, for each signal if they differ."""
    found: dict[str, str] = {}
    for signal in signals:
        for watch in signal.watches:
            if text := _option(name, watch):
                found[signal.name] = text
        if name == f"OTEL_{signal.name.upper()}_EXPORTER":
            names = ["otlp" if watch.is_otlp else watch.target.protocol for watch in signal.watches]
            found[signal.name] = ", ".join(names) or "no exporter"
        if signal.name == "traces":
            found |= _of_tracer_provider(name, signal.provider)
    texts = set(found.values())
    return "; ".join(f"{signal}: {text}" for signal, text in found.items()) if len(texts) > 1 else "".join(texts)


def _described(sampler: Any) -> str:
    """Return the description of a sampler; of one that follows the parent, only how it decides without a parent."""
    root, separator, _ = str(sampler.get_description()).partition(",")
    return f"{root}, ...}}" if separator else root


def _of_tracer_provider(name: str, provider: Any) -> dict[str, str]:
    attributes = provider.resource.attributes
    if name == "OTEL_SERVICE_NAME":
        return {"traces": str(attributes["service.name"])}
    if name == "OTEL_RESOURCE_ATTRIBUTES":
        return {"traces": ", ".join(sorted(key for key in attributes if not key.startswith("telemetry.sdk.")))}
    if name in {"OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"}:
        return {"traces": _described(provider.sampler)}
    return {}


def _option(name: str, watch: ExporterWatch) -> str:
    """Return what one exporter, or the step before it, made of a variable; empty if it is not about it."""
    if getter := _STEPS.get(name):
        value = first_of(watch.step, (getter,))
        return "" if value is None else f"{value:g}"
    match, target = _OTLP_VARIABLE.fullmatch(name), watch.target
    if match is None or not watch.is_otlp or match[1] not in {None, target.signal.upper()}:
        return ""
    secure = "TLS" if target.secure else "no TLS"
    headers = dict(first_of(watch.exporter, _HEADERS) or {})
    made = {
        "ENDPOINT": target.origin,
        "PROTOCOL": target.protocol,
        "TIMEOUT": f"{target.timeout:g} s",
        "HEADERS": ", ".join(sorted(each for each in headers if each.lower() not in {"content-type", "user-agent"})),
        # gRPC and SDK 1.44 have NoCompression
        "COMPRESSION": str(first_of(watch.exporter, _COMPRESSIONS) or "").lower().replace("nocompression", "none"),
    }
    return made.get(match[2], secure if match[2] in _OF_TLS else "")
