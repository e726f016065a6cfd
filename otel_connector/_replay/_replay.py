"""Send the rows of old logs to a collector, as the spans of their calls.

A log is read in bounded memory. The SDK's OTLP exporter sends one batch of spans at a time. When the collector has
acknowledged a batch, the position in the log is stored in a checkpoint, where the next run continues. A row always
gives the same ids, times and attributes. So a batch that is sent again after a crash changes nothing in a backend that
uses the ids as keys. This file does not know the terminal.

Not every loss is visible here: a backend may drop spans that it has acknowledged (Tempo does beyond its limits).
Therefore the rate is limited.

Used by ``cli._replay_command``.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry.sdk.environment_variables import (
    OTEL_BSP_MAX_EXPORT_BATCH_SIZE,
    OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_EXPORTER_OTLP_PROTOCOL,
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
)
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, OTELResourceDetector, Resource

from otel_connector._arguments import checked_seconds
from otel_connector._csv import _lines
from otel_connector._csv._check import DAMAGE_LIMIT, DamagedLine
from otel_connector._csv._parts import log_files, log_name
from otel_connector._recent_calls import RecentCalls
from otel_connector._record import CallRecord
from otel_connector._redact import Redactor
from otel_connector._replay._checkpoint import Checkpoint
from otel_connector._replay._row_span import read_row, span_of
from otel_connector._telemetry._bounded_session import session_options
from otel_connector._telemetry._export_problem import Kind, Problem, sentence
from otel_connector._telemetry._exporter_watch import ExporterWatch
from otel_connector._telemetry._names import FIELD_PREFIX
from otel_connector._telemetry._sdk_variables import sdk_variables

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

CHECKPOINT_SUFFIX = ".replayed"
"""Appended to the name of a log, it is the name of its checkpoint."""

DEFAULT_RATE = 1_000.0
"""Spans per second. Nearly every call is a trace of its own. Tempo accepts 10,000 traces at a time and holds each for
about 10 s (``max_traces_per_user``, ``trace_idle_period``); it drops the others without an error."""

DEFAULT_SERVICE = "otel-connector-replay"

REPLAYED = f"{FIELD_PREFIX}replayed"
"""Resource attribute of replayed spans. It is not a span attribute, so the span equals the live one."""

REMEMBERED = 2**19
"""Duplicates are detected among at least this number of calls. At most twice as many are kept, in about 100 MB. A call
is sent twice if its rows are further apart, or if an earlier run has sent it."""

_BATCH_ROWS = 512  # at most, as the SDK's batch processor by default
_BATCH_BYTES = 2**21  # half of what a gRPC server accepts by default
_SPAN_BYTES = 512  # of a span without its texts; most of its texts are in two attributes
_BATCH_LINES = 8_192  # lines after which progress is reported and stored, even if none of them is sent


class CollectorRefused(RuntimeError):
    """The collector did not accept a batch, after all retries of the SDK's exporter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFilter:
    """Which rows to send. Default: all.

    Attributes:
        projects: Only rows of these projects, as the log shows them.
        since: Only calls that started at this time or later, Unix time in seconds.
        until: Only calls that started before this time.
        failed_only: Only calls that failed.
    """

    projects: tuple[str, ...] = ()
    since: float = -math.inf
    until: float = math.inf
    failed_only: bool = False

    def __post_init__(self) -> None:
        """Check that the period is not empty."""
        if not self.since < self.until:
            raise ValueError(f"since must be before until, but {self.since!r} is not before {self.until!r}")

    def __call__(self, record: CallRecord) -> bool:
        """Return whether to send a row."""
        return (
            self.since <= record.t < self.until
            and not (self.failed_only and record.success)
            and (not self.projects or record.project in self.projects)
        )

    def key(self) -> str:
        """Return the text that identifies this filter in a checkpoint, in the form of version 0.1.0."""
        return repr(self).replace(type(self).__name__, "Wanted", 1)


@dataclass(slots=True, kw_only=True)
class Replayed:
    """The progress of a replay.

    Attributes:
        size: Bytes of all logs, as they are on the disk.
        done: Bytes that have been processed.
        sent: Spans that the collector has acknowledged.
        skipped: Spans that an earlier run has sent, according to its checkpoint.
        filtered_out: Rows that the filter excludes.
        duplicates: Rows of calls that this run has already sent.
        damaged: Lines that are not rows, and rows that cannot be converted to a span.
        unfinished: Logs whose last line is incomplete: it is torn, or it is being written. That line is not sent.
        rejected: Spans that the collector has rejected, while it accepted others of the same batch.
        rejection: The first message about those.
        damage: The first `DAMAGE_LIMIT` damaged or unfinished lines, each with its log. Offsets are those of the
            uncompressed text.
    """

    size: int
    done: int = 0
    sent: int = 0
    skipped: int = 0
    filtered_out: int = 0
    duplicates: int = 0
    damaged: int = 0
    unfinished: int = 0
    rejected: int = 0
    rejection: str = ""
    damage: tuple[tuple[str, DamagedLine], ...] = ()


@dataclass(slots=True)
class _SpanBatch:
    spans: list[ReadableSpan] = field(default_factory=list["ReadableSpan"])
    size: int = 0
    lines: int = 0


class Replay:
    """One replay of logs. Call `run` once.

    Args:
        logs: CSV files, gzip or not, or patterns, in the order of sending. The parts of a rotated log are sent before
            it. Rows that are written after a file was opened are not sent.
        exporter: Exports the spans, see `open_otlp`. It is not shut down.
        to: The endpoint of the exporter. A checkpoint of another endpoint is not used; it stores a hash, because an
            endpoint may have a secret.
        service_name: ``service.name`` of the spans. Default: the operator's (``OTEL_SERVICE_NAME``,
            ``OTEL_RESOURCE_ATTRIBUTES``), or `DEFAULT_SERVICE`.
        row_filter: Which rows to send.
        rate: Maximum number of spans per second. None sets no limit.
        checkpoint: The file that stores how far each log has been sent. Default: ``<log>.replayed``, one for all files
            of a log, even if rotation or compression renames them (`log_name`). If ``mv`` has renamed a log, its
            position is found in the checkpoints of the logs that are or were in its folder and in the one above.
        ignore_checkpoint: Send all rows, also those that were sent before.
        monotonic: A clock that never steps back, in seconds.
        sleep: Waits for a number of seconds.
        redactor: Redacts the endpoint as version 0.1.0 did, whose checkpoints are read.

    Raises:
        TypeError, ValueError: `rate` is not a number, or not above 0.
        ValueError: ``OTEL_BSP_MAX_EXPORT_BATCH_SIZE`` is not a whole number above 0.
        ValueError: A file is not a log. The message names it.
        OSError: A file cannot be read, or is not a regular file, or the checkpoint is another kind of file.
    """

    def __init__(
        self,
        logs: Iterable[str | os.PathLike[str]],
        exporter: SpanExporter,
        *,
        to: str,
        service_name: str | None = None,
        row_filter: RowFilter | None = None,
        rate: float | None = DEFAULT_RATE,
        checkpoint: str | os.PathLike[str] | None = None,
        ignore_checkpoint: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        redactor: Redactor | None = None,
    ) -> None:
        self._rate, self._next = math.inf, -math.inf  # spans per second, and when the next one may be sent
        if rate is not None:
            self._rate = checked_seconds(
                "rate", rate, positive=True, unit="spans a second", hint="; None sets no limit"
            )
        self._monotonic, self._sleep = monotonic, sleep
        self._batch_rows = int(max(1, min(self._rate, _largest_batch())))
        self._reasons: list[tuple[Problem | None, str]] = []  # of what was lost of the current batch
        self._watch = ExporterWatch(exporter, "traces", lambda watch: self._reasons.append(_reason(watch)))
        self._row_filter = row_filter or RowFilter()
        self._resource = _resource(service_name)
        paths = _lines.logs_of_calls(log_files(os.fspath(log) for log in logs))
        self._logs = [_lines.read_log_head(path) for path in paths]
        hashed = sha256(to.encode("utf-8", "surrogateescape")).hexdigest()
        key = {
            "to": f"sha256:{hashed}",
            "service": str(self._resource.attributes[SERVICE_NAME]),
            "wanted": self._row_filter.key(),
        }
        former_key = {**key, "to": (redactor or Redactor()).url(to)}
        self._checkpoints: dict[str, Checkpoint] = {}  # of each file of a log
        files: dict[str, list[str]] = {}  # of each checkpoint
        for log in self._logs:
            name = log_name(log.path) + CHECKPOINT_SUFFIX if checkpoint is None else os.fspath(checkpoint)
            files.setdefault(name, []).append(log.path)
        others = [] if checkpoint is not None else _checkpoints_near(files)
        for name, paths in files.items():
            # Version 0.1.0 stored the position of each file beside it, under the name that the file had then
            earlier = [path + CHECKPOINT_SUFFIX for path in paths if checkpoint is None]
            found = Checkpoint(
                name, key, earlier, former_key=former_key, others=others, ignore_checkpoint=ignore_checkpoint
            )
            self._checkpoints |= dict.fromkeys(paths, found)
        self._sent_calls = RecentCalls(REMEMBERED)
        self._replayed = Replayed(size=sum(log.size for log in self._logs))

    def replayed(self) -> Replayed:
        """Return the progress."""
        return replace(self._replayed)

    def run(self) -> Generator[Replayed]:
        """Send the rows. Yield the progress after each batch.

        The replay stops if the caller stops iterating, closes the generator, or is interrupted. The checkpoint then
        contains all batches that were acknowledged.

        Raises:
            CollectorRefused: A batch was not accepted. The next run continues with it.
            OSError: A log cannot be read any more, or the checkpoint cannot be written.
            ValueError: A file is not a log any more.
        """
        before = 0
        for log in self._logs:
            for done in self._replay(log):
                self._replayed.done = before + min(done, log.size)
                yield self.replayed()
            before += log.size

    def _replay(self, log: _lines.LogHead) -> Generator[int]:
        """Send the rows of one log. Yield how many of its bytes are processed."""
        checkpoint = self._checkpoints[log.path]
        with _lines.open_log(log.path) as (raw, file):
            log = _lines.identify(log.path, raw, file)  # rotation may have renamed the file that had this name
            position = _lines.go_to(file, checkpoint.positions(log.identity))
            checkpoint.save(log.identity, position)  # if this fails, nothing has been sent
            self._replayed.skipped += position.sent
            end, batch = (log.size if file is raw else None), _SpanBatch()
            for line in _lines.lines(file, position, end):
                self._add(log.path, line, batch)
                if line.ended:
                    proof = _lines.hash_of(line.content)
                    position = _lines.Position(line.end, line.number, position.sent, line.offset, proof)
                if len(batch.spans) >= self._batch_rows or batch.size >= _BATCH_BYTES or batch.lines >= _BATCH_LINES:
                    position = self._send(batch, position)
                    checkpoint.save(log.identity, position)
                    yield position.offset if file is raw else raw.tell()
                    batch = _SpanBatch()
            checkpoint.save(log.identity, self._send(batch, position))
        yield log.size

    def _add(self, log: str, line: _lines.Line, batch: _SpanBatch) -> None:
        """Add the span of a line to the batch, or count why there is none."""
        batch.lines += 1
        if line.what is not None:
            self._count_damage(log, line, line.what)
            return
        if line.number == 1 and _lines.is_header(line.content):
            return
        try:
            row = read_row(line.content)
        except ValueError as error:
            self._count_damage(log, line, str(error))
            return
        if not self._row_filter(row.record):
            self._replayed.filtered_out += 1
        elif not self._sent_calls.add((row.trace_id << 64 | row.span_id) << 64 | row.start):  # the ids may repeat
            self._replayed.duplicates += 1
        else:
            batch.spans.append(span_of(row, self._resource))
            batch.size += 2 * len(line.content) + _SPAN_BYTES

    def _count_damage(self, log: str, line: _lines.Line, what: str) -> None:
        if what == _lines.UNFINISHED:
            self._replayed.unfinished += 1
        else:
            self._replayed.damaged += 1
        if len(self._replayed.damage) < DAMAGE_LIMIT:
            length = line.end - line.offset - line.ended
            found = DamagedLine(line=line.number, offset=line.offset, length=length, what=what)
            self._replayed.damage += ((log, found),)

    def _send(self, batch: _SpanBatch, position: _lines.Position) -> _lines.Position:
        """Send a batch when the rate allows it. Return the position of the next one."""
        count = len(batch.spans)
        if not count:
            return position
        self._wait_for(count)
        before = self._watch.lost
        self._reasons.clear()
        with suppress(Exception):  # each exporter raises errors of its own; the watch describes them
            self._watch.export(batch.spans)
        lost = self._watch.lost - before
        if self._reasons:
            problem, reason = self._reasons[0]
            if lost >= count or problem is None or problem.kind is not Kind.PARTIAL:
                progress = f"Spans sent before: {self._replayed.sent}; the next run continues after those"
                raise CollectorRefused(f"{reason} {progress}")
            self._replayed.rejected += lost
            self._replayed.rejection = self._replayed.rejection or reason
        self._replayed.sent += count - lost
        return position._replace(sent=position.sent + count - lost)

    def _wait_for(self, count: int) -> None:
        """Wait until the rate allows `count` spans. Unused time is not saved up for later."""
        if (wait := self._next - self._monotonic()) > 0:
            self._sleep(wait)
        self._next = max(self._next, self._monotonic()) + count / self._rate


def _largest_batch() -> int:
    """Return the most spans of a request: those of the SDK's batch processor, which the message of a 413 names."""
    size = os.environ.get(OTEL_BSP_MAX_EXPORT_BATCH_SIZE) or str(_BATCH_ROWS)
    if not size.strip().isdecimal() or int(size) < 1:
        raise ValueError(f"{OTEL_BSP_MAX_EXPORT_BATCH_SIZE} must be a whole number of at least 1, not {size!r}")
    return min(int(size), _BATCH_ROWS)


def _checkpoints_near(checkpoints: Iterable[str]) -> list[str]:
    """Return the checkpoints in the folders of some others, and in the folders above these."""
    folders = {folder: None for name in checkpoints for folder in (*Path(os.path.realpath(name)).parents,)[:2]}
    found: list[str] = []
    for folder in folders:
        with suppress(OSError):  # it is gone, or cannot be listed
            found += sorted(str(path) for path in folder.iterdir() if path.name.endswith(CHECKPOINT_SUFFIX))
    return found


def _reason(watch: ExporterWatch) -> tuple[Problem | None, str]:
    problem = watch.problem or Problem(kind=Kind.UNKNOWN)
    return problem, sentence(problem, [watch.target], count=watch.count, lost=watch.count)


def open_otlp() -> tuple[SpanExporter, str]:
    """Return the SDK's OTLP exporter of spans, set up by the ``OTEL_*`` variables, and its endpoint with its secrets.

    Raises:
        RuntimeError, ValueError, TypeError, OSError: The SDK does not accept the value of a variable. The message
            names it.
    """
    with sdk_variables():
        exporter, default = _exporter_and_default()
    environ = os.environ
    return exporter, environ.get(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) or environ.get(
        OTEL_EXPORTER_OTLP_ENDPOINT
    ) or default


def _exporter_and_default() -> tuple[SpanExporter, str]:
    environ = os.environ
    protocol = environ.get(OTEL_EXPORTER_OTLP_TRACES_PROTOCOL) or environ.get(OTEL_EXPORTER_OTLP_PROTOCOL) or "grpc"
    if protocol.strip() == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

        return OverGrpc(), "http://localhost:4317"
    if protocol.strip() == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

        return OverHttp(**session_options()), "http://localhost:4318"
    raise ValueError(f"Unsupported OTLP protocol {protocol.strip()!r} is configured")  # as the SDK


def _resource(service_name: str | None) -> Resource:
    """Return the resource of the spans: the SDK's, without the attributes that differ between runs."""
    detected = Resource.create()
    attributes = dict(detected.attributes)
    if SERVICE_INSTANCE_ID not in OTELResourceDetector().detect().attributes:
        attributes.pop(SERVICE_INSTANCE_ID, None)  # random, and the calls were made by another instance
    if service_name is not None:
        attributes[SERVICE_NAME] = service_name
    elif str(attributes[SERVICE_NAME]).startswith("unknown_service"):  # the SDK's default
        attributes[SERVICE_NAME] = DEFAULT_SERVICE
    return Resource({**attributes, REPLAYED: True}, detected.schema_url)
