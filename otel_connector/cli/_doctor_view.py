"""The output of ``otel-connector doctor``, as lines and as JSON. Does not know how anything is tested.

Used by ``cli._doctor_command``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from otel_connector._doctor import ExporterReport, SetVariable, TelemetryReport
from otel_connector._units import counted, duration

_SENT = {"traces": "1 span", "metrics": "1 metric"}
_JAEGER = "http://localhost:16686/trace/"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogState:
    """Whether a log can be written.

    Attributes:
        path: The log.
        exists: Whether it exists. If it does not, a file can be created in its folder.
        rows: Number of whole rows.
        whole: Whether every line is a whole row.
        locked: Whether another process holds its lock.
        problem: Why it cannot be written or read, or what is wrong with it.
    """

    path: str
    exists: bool = True
    rows: int = 0
    whole: bool = True
    locked: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The result of the command.

    Attributes:
        telemetry: What the SDK has built and what it could send. If it could not be set up: only the variables.
        problem: Why it could not be set up.
        messages: What the SDK has logged while it was set up.
        log: The state of the log.
    """

    telemetry: TelemetryReport
    problem: str
    messages: tuple[str, ...]
    log: LogState

    @property
    def problems(self) -> list[str]:
        """Everything that is wrong."""
        found = [self.problem, *self.messages, self.log.problem, *self.telemetry.problems]
        if self.log.locked:
            found.append("another process holds the lock of the log")
        found += [report.message for report in self.telemetry.exporters]
        found += [variable.problem for variable in self.telemetry.variables]
        return list(filter(None, found))


def document(diagnosis: Diagnosis) -> str:
    """Return the result as JSON."""
    return json.dumps({**asdict(diagnosis), "problems": diagnosis.problems}, indent=2)


def lines(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield the lines of the result."""
    telemetry = diagnosis.telemetry
    if telemetry.variables:
        yield "Variables"
        names = list(map(_setting, telemetry.variables))
        width = max(map(len, names))
        for each, name in zip(telemetry.variables, names, strict=True):
            yield f"  {name:{width}}  {f'-> {each.used_as}' if each.used_as else each.remark}".rstrip()
            yield from _indented(each.problem)
    yield "Telemetry"
    yield from _indented(diagnosis.problem)
    for message in diagnosis.messages:
        yield from _indented(message)
    yield from _telemetry_lines(telemetry)
    yield "Log"
    yield f"  {diagnosis.log.path}  {_state(diagnosis.log)}"
    yield from _indented(diagnosis.log.problem)
    count = len(diagnosis.problems)
    yield f"{counted(count, 'problem')}." if count else "No problems."


def _setting(variable: SetVariable) -> str:
    return f"{variable.name} (set, not shown)" if variable.value is None else f"{variable.name}={variable.value}"


def _telemetry_lines(telemetry: TelemetryReport) -> Iterator[str]:
    where = [_where(report) for report in telemetry.exporters]
    width = max(map(len, where), default=0)
    for report, shown in zip(telemetry.exporters, where, strict=True):
        took = f": {_SENT[report.signal]} in {duration(report.seconds)}" if report.result == "accepted" else ""
        yield f"  {report.signal:8}  {shown:{width}}  {report.result}{took}"
        yield from _indented(report.message or report.note)
    for problem in telemetry.problems:
        yield from _indented(problem)
    if telemetry.service:
        yield f"  {'service':8}  {telemetry.service}"
        yield f"  {'sampler':8}  {telemetry.sampler}"
    for report in telemetry.exporters:
        if report.trace_id and report.endpoint:
            yield f"  {'look up':8}  {_JAEGER}{report.trace_id} (if the receiver is a Jaeger on this machine)"


def _where(report: ExporterReport) -> str:
    if not report.endpoint:
        return report.exporter
    return f"{report.exporter}, {report.protocol}, {report.endpoint} ({report.setting})"


def _state(log: LogState) -> str:
    if log.problem and log.whole:
        return "cannot be written or read"
    if not log.exists:
        return "does not exist yet; its folder is writable"
    whole = "intact" if log.whole else "not intact"
    lock = "locked by another process" if log.locked else "not locked by another process"
    return f"writable, {counted(log.rows, 'row')}, {whole}, {lock}"


def _indented(text: str) -> Iterator[str]:
    if text:
        yield f"            {text}"
