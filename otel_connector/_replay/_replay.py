"""The rows of old logs, sent to a collector as the spans of their calls.

A log is read in bounded memory, a batch of spans at a time goes through the SDK's own OTLP exporter, and what the
collector has acknowledged is noted in a checkpoint, from where a rerun goes on. A row gives the same ids, times and
attributes whenever it is sent, so a batch that was sent just before a crash, and is sent again, becomes nothing new in
a backend that keys by id. Knows no terminal: what progress looks like is the command line's business.

What OTLP cannot tell is not known here either: the SDK's exporter takes a partial success for a success, and a backend
may give up later what it took (Tempo does beyond its limits). Hence the pace.
"""

from __future__ import annotations

import logging
import math
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_EXPORTER_OTLP_PROTOCOL,
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
)
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace.export import SpanExportResult

from otel_connector._arguments import checked_seconds
from otel_connector._csv._check import DAMAGE_LIMIT, Damage
from otel_connector._csv._format import HEADER
from otel_connector._csv._lines import UNFINISHED, Line, Log, Position, go_to, hash_of, lines, look_at, open_log
from otel_connector._csv._parts import log_files
from otel_connector._record import CallRecord, one_line
from otel_connector._redact import Redactor
from otel_connector._replay._checkpoint import Checkpoint
from otel_connector._replay._row_span import read_row, span_of
from otel_connector._telemetry._names import FIELD_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

CHECKPOINT_SUFFIX = ".replayed"
"""What the name of a log gets for the file that says how far it was sent."""

DEFAULT_RATE = 1_000.0
"""Spans a second. Most calls are a trace of their own, of which Tempo takes 10,000 at a time and holds each for some
10 s (``max_traces_per_user``, ``trace_idle_period``); what is beyond that it gives up without telling the sender."""

DEFAULT_SERVICE = "otel-connector-replay"

REPLAYED = f"{FIELD_PREFIX}replayed"
"""Resource attribute that tells these spans from live ones. Not the span's, which has what the live one had."""

REMEMBERED = 2**19
"""Calls that are known to be sent, at least: twice as many at most, in some 100 MB. A call that stands twice in the
logs with more than these between is sent twice, and so is one that an earlier run has sent."""

_BATCH_ROWS = 512  # as the SDK's batch processor has it (OTEL_BSP_MAX_EXPORT_BATCH_SIZE)
_BATCH_BYTES = 2**21  # half of what a gRPC server takes by default
_SPAN_BYTES = 512  # of a span beside its texts, of which most are there twice
_TURN_LINES = 8_192  # lines after which progress is told and noted, though nothing of them is to be sent


class CollectorRefused(RuntimeError):
    """The collector did not take a batch, although the SDK's exporter had tried it again as long as it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFilter:
    """Which rows are to be sent; by default all.

    Attributes:
        projects: Only those of these projects, as the log shows them.
        since: Only those that start then or later, Unix time in seconds.
        until: Only those that start before then.
        failed_only: Only those without success.
    """

    projects: tuple[str, ...] = ()
    since: float = -math.inf
    until: float = math.inf
    failed_only: bool = False

    def __post_init__(self) -> None:
        """Refuse a time that nothing is in."""
        if not self.since < self.until:
            raise ValueError(f"since must be before until, but {self.since!r} is not before {self.until!r}")

    def __call__(self, record: CallRecord) -> bool:
        """Whether a row is to be sent."""
        return (
            self.since <= record.t < self.until
            and not (self.failed_only and record.success)
            and (not self.projects or record.project in self.projects)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """How far a replay is.

    Attributes:
        sent: Spans that the collector has acknowledged.
        passed_over: Spans that an earlier run has sent, by its checkpoint.
        unwanted: Rows that were not asked for.
        duplicates: Rows of calls that this run has met before.
        damaged: Lines that are no rows, or rows that no span can be made of.
        unfinished: Logs whose last line has no end: torn, or being written. It is not sent.
        damage: The first `DAMAGE_LIMIT` damaged or unfinished lines, each with its log; offsets are of what is packed.
        done: Bytes of the logs that are dealt with, as they are on the disk.
        size: Bytes of all logs.
    """

    sent: int
    passed_over: int
    unwanted: int
    duplicates: int
    damaged: int
    unfinished: int
    damage: tuple[tuple[str, Damage], ...]
    done: int
    size: int


@dataclass(slots=True)
class _Counts:
    """What `Replayed` says, while it is counted."""

    sent: int = 0
    passed_over: int = 0
    unwanted: int = 0
    duplicates: int = 0
    damaged: int = 0
    unfinished: int = 0
    damage: list[tuple[str, Damage]] = field(default_factory=list[tuple[str, Damage]])

    def note(self, log: str, line: Line, what: str) -> None:
        if what == UNFINISHED:
            self.unfinished += 1
        else:
            self.damaged += 1
        if len(self.damage) < DAMAGE_LIMIT:
            length = line.end - line.offset - line.ended
            self.damage.append((log, Damage(line=line.number, offset=line.offset, length=length, what=what)))


@dataclass(slots=True)
class _Batch:
    spans: list[ReadableSpan] = field(default_factory=list["ReadableSpan"])
    size: int = 0
    lines: int = 0


class Replay:
    """One replay of logs; `run` it once.

    Args:
        logs: CSV files, packed with gzip or not, or patterns, in the order in which they are sent. The parts of a
            rotated log are sent before it. They may be written meanwhile; then they are sent as they were in the
            beginning.
        exporter: Takes the spans, as `open_otlp` returns it. It is not shut down.
        to: Where it sends to, redacted. What was sent elsewhere is no reason to pass over a row.
        service_name: ``service.name`` of the spans. Default: the operator's (``OTEL_SERVICE_NAME``,
            ``OTEL_RESOURCE_ATTRIBUTES``), or `DEFAULT_SERVICE`.
        wanted: Which rows.
        rate: Spans a second at most; None for as many as the collector takes.
        checkpoint: The file that says how far each log is sent to `to`; default ``<log>.replayed``, for each its own.
        ignore_checkpoint: Send all rows, whatever the checkpoint says.
        monotonic: A clock that never steps back, in seconds.
        sleep: Waits for a number of seconds.

    Raises:
        TypeError, ValueError: `rate` is no number, or not above 0.
        ValueError: A file is no log, or the checkpoint is another program's file; names it.
        OSError: A file cannot be read, or is no regular file.
    """

    def __init__(
        self,
        logs: Iterable[str | os.PathLike[str]],
        exporter: SpanExporter,
        *,
        to: str,
        service_name: str | None = None,
        wanted: RowFilter | None = None,
        rate: float | None = DEFAULT_RATE,
        checkpoint: str | os.PathLike[str] | None = None,
        ignore_checkpoint: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        limit = math.inf
        if rate is not None:
            limit = checked_seconds("rate", rate, positive=True, unit="spans a second", hint="; None sets no limit")
        self._pace = _Pace(limit, monotonic, sleep)
        self._batch_rows = min(_BATCH_ROWS, max(1, int(min(self._pace.rate, _BATCH_ROWS))))
        self._exporter, self._to = exporter, to
        self._wanted = wanted or RowFilter()
        self._resource = _resource(service_name)
        self._logs = [look_at(path) for path in log_files(os.fspath(log) for log in logs)]
        shared = None if checkpoint is None else os.fspath(checkpoint)
        key = {"to": to, "service": str(self._resource.attributes[SERVICE_NAME]), "wanted": repr(self._wanted)}
        names = {log.path: shared or log.path + CHECKPOINT_SUFFIX for log in self._logs}
        checkpoints = {name: Checkpoint(name, key, ignore_checkpoint=ignore_checkpoint) for name in set(names.values())}
        self._checkpoints = {path: checkpoints[name] for path, name in names.items()}
        self._sent_calls = _Calls()
        self._counts = _Counts()
        self._done = 0

    def replayed(self) -> Replayed:
        """Return how far it is."""
        counts = self._counts
        return Replayed(
            sent=counts.sent,
            passed_over=counts.passed_over,
            unwanted=counts.unwanted,
            duplicates=counts.duplicates,
            damaged=counts.damaged,
            unfinished=counts.unfinished,
            damage=tuple(counts.damage),
            done=self._done,
            size=sum(log.size for log in self._logs),
        )

    def run(self) -> Generator[Replayed]:
        """Send the rows, and say after each batch how far it is.

        Whoever stops reading, closes the generator or lets an interrupt out of it stops the replay; what is
        acknowledged until then is noted.

        Raises:
            CollectorRefused: A batch was not taken. What was sent before is noted, and a rerun goes on there.
            OSError: A log cannot be read any more, or the checkpoint cannot be written.
        """
        before = 0
        for log in self._logs:
            for at in self._replay(log):
                self._done = before + min(at, log.size)
                yield self.replayed()
            before += log.size

    def _replay(self, log: Log) -> Generator[int]:
        """Send the rows of one log; say how many of its bytes are dealt with."""
        checkpoint = self._checkpoints[log.path]
        with open_log(log.path) as (raw, file):
            position = go_to(file, checkpoint.position(log.identity))
            checkpoint.save(log.identity, position)  # where that is not possible nothing is sent
            self._counts.passed_over += position.sent
            end, batch = (log.size if file is raw else None), _Batch()
            for line in lines(file, position, end):
                self._take(log.path, line, batch)
                if line.ended:
                    position = Position(line.end, line.number, position.sent, line.offset, hash_of(line.content))
                if len(batch.spans) >= self._batch_rows or batch.size >= _BATCH_BYTES or batch.lines >= _TURN_LINES:
                    position = self._send(batch, position)
                    checkpoint.save(log.identity, position)
                    yield position.offset if file is raw else raw.tell()
                    batch = _Batch()
            checkpoint.save(log.identity, self._send(batch, position))
        yield log.size

    def _take(self, log: str, line: Line, batch: _Batch) -> None:
        """Put a line's span into the batch, or count why there is none."""
        batch.lines += 1
        if line.what is not None:
            self._counts.note(log, line, line.what)
            return
        if line.number == 1 and line.content == HEADER[:-1]:
            return
        try:
            row = read_row(line.content)
        except ValueError as error:
            self._counts.note(log, line, str(error))
            return
        if not self._wanted(row.record):
            self._counts.unwanted += 1
        elif not self._sent_calls.add(row.trace_id << 64 | row.span_id):
            self._counts.duplicates += 1
        else:
            batch.spans.append(span_of(row, self._resource))
            batch.size += 2 * len(line.content) + _SPAN_BYTES

    def _send(self, batch: _Batch, position: Position) -> Position:
        """Send a batch in its turn, and return where the next one begins."""
        count = len(batch.spans)
        if not count:
            return position
        self._pace.wait_for(count)
        with _reasons() as reasons:
            try:
                taken = self._exporter.export(batch.spans) is SpanExportResult.SUCCESS
            except Exception as error:  # noqa: BLE001 - whatever the exporter has of its own
                reasons.append(f"{type(error).__name__}: {error}")
                taken = False
        if not taken:
            why = one_line(Redactor().text(reasons[-1])) if reasons else "it gave no reason"
            raise CollectorRefused(
                f"{self._to} did not take a batch of {count}: {why}. Sent before it: {self._counts.sent}; a rerun goes "
                "on there"
            )
        self._counts.sent += count
        return position._replace(sent=position.sent + count)


def open_otlp() -> tuple[SpanExporter, str]:
    """Return the SDK's OTLP exporter of spans as the ``OTEL_*`` variables have it, and where it sends to, redacted.

    Raises:
        ValueError: They name a protocol that the SDK does not speak, or something else that it does not take.
    """
    environ = os.environ
    protocol = environ.get(OTEL_EXPORTER_OTLP_TRACES_PROTOCOL) or environ.get(OTEL_EXPORTER_OTLP_PROTOCOL) or "grpc"
    exporter: SpanExporter
    if protocol.strip() == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

        exporter, default = OverGrpc(), "http://localhost:4317"
    elif protocol.strip() == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

        exporter, default = OverHttp(), "http://localhost:4318"
    else:
        raise ValueError(f"the OTLP protocol is grpc or http/protobuf, not {protocol!r}")
    endpoint = environ.get(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) or environ.get(OTEL_EXPORTER_OTLP_ENDPOINT) or default
    return exporter, Redactor().url(endpoint)


def _resource(service_name: str | None) -> Resource:
    """Return what the spans' resource is: the SDK's, without what differs from run to run."""
    made = Resource.create()
    attributes = dict(made.attributes)
    if SERVICE_INSTANCE_ID not in OTELResourceDetector().detect().attributes:
        attributes.pop(SERVICE_INSTANCE_ID, None)  # a random number, and the calls were another instance's
    if service_name is not None:
        attributes[SERVICE_NAME] = service_name
    elif str(attributes[SERVICE_NAME]).startswith("unknown_service"):  # the SDK's where nobody gave a name
        attributes[SERVICE_NAME] = DEFAULT_SERVICE
    return Resource({**attributes, REPLAYED: True}, made.schema_url)


class _Pace:
    """Keeps spans to a rate; time in which there were none to send is not made up for."""

    def __init__(self, rate: float, monotonic: Callable[[], float], sleep: Callable[[float], object]) -> None:
        self.rate = rate
        self._monotonic, self._sleep = monotonic, sleep
        self._next = -math.inf

    def wait_for(self, count: int) -> None:
        """Wait until `count` spans may be sent."""
        if (wait := self._next - self._monotonic()) > 0:
            self._sleep(wait)
        self._next = max(self._next, self._monotonic()) + count / self.rate


class _Calls:
    """The calls that were met of late, at least `REMEMBERED` of them."""

    def __init__(self) -> None:
        self._calls: set[int] = set()
        self._before: set[int] = set()

    def add(self, call: int) -> bool:
        """Remember a call; False if it is remembered already."""
        if call in self._calls or call in self._before:
            return False
        if len(self._calls) >= REMEMBERED:
            self._before, self._calls = self._calls, set()
        self._calls.add(call)
        return True


class _Reasons(logging.Handler):
    """Keeps what the SDK's exporters say, which is their only way to give a reason."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def _reasons() -> Generator[list[str]]:
    handler, logger = _Reasons(), logging.getLogger("opentelemetry.exporter")
    logger.addHandler(handler)
    try:
        yield handler.said
    finally:
        logger.removeHandler(handler)
