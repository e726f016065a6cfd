"""Tests of `Replay`: it sends the rows of a log as the spans of their calls, each once. A rerun resumes."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import os
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.collector import agent, endpoints_at, forwarding, own_address
from support.logs import Log
from support.otlp_receiver import Received, attributes_of, grpc_receiver
from support.outcomes import OUTCOMES, connector
from support.records import BLANK, NASTY_RECORDS, RECORDS
from support.sdk import SDK

import otel_connector
from otel_connector import COLUMNS, CallRecord
from otel_connector._csv._check import DAMAGE_LIMIT
from otel_connector._csv._format import HEADER, encode_row
from otel_connector._csv._lines import LINE_LIMIT
from otel_connector._replay import _replay
from otel_connector._replay._replay import CollectorRefused, Replay, Replayed, RowFilter, open_otlp
from otel_connector._replay._row_span import error_type_of, read_row, span_of
from otel_connector._telemetry._attributes import field_attributes
from otel_connector._telemetry._metrics import SCHEMA_URL
from otel_connector.testing import FakeClock, FaultServer, hold, ok, redirect

TO = "http://collector:4317"
RESOURCE = Resource({})
START = 1_700_000_000_000_000  # Unix time in microseconds
BATCH = 512

LIVE_ONLY_ATTRIBUTES = {"network.protocol.version", "http.request.resend_count", "otel_connector.queue.duration"}
"""Attributes that a live span has and a row does not contain."""


def record(number: int, **changes: Any) -> CallRecord:
    """Return record `number`; every number has its own IDs and times."""
    return BLANK._replace(
        call_id=f"{number + 1:032x}-{number + 7:016x}",
        project="P",
        t=(START + number * 142_857) / 1e6,
        delta_t=number * 0.000_001,
        url="http://api.example.com/data",
        response_code=200,
        success=True,
    )._replace(**changes)


def rows(*numbers: int) -> bytes:
    return b"".join(encode_row(record(number)) for number in numbers)


def write_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.fixture
def logs_csv(tmp_path: Path) -> Path:
    return tmp_path / "logs.csv"


class CollectingExporter(InMemorySpanExporter):
    """Keeps the spans that a collector would receive."""

    def call_ids(self) -> list[str]:
        contexts = [span.get_span_context() for span in self.get_finished_spans()]
        return [f"{context.trace_id:032x}-{context.span_id:016x}" for context in contexts if context is not None]

    def numbers(self) -> list[int]:
        """Return the numbers of the spans' records, as given to `record`."""
        return [int(call_id[:32], 16) - 1 for call_id in self.call_ids()]


class BatchRecorder(SpanExporter):
    """Accepts `take` batches, and records the spans, bytes and time of each."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, take: int = 10**9) -> None:
        self.sizes: list[int] = []
        self.bytes: list[int] = []
        self.times: list[float] = []
        self._clock, self._take = clock, take

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if len(self.sizes) == self._take:
            return SpanExportResult.FAILURE
        self.sizes.append(len(spans))
        self.bytes.append(encode_spans(spans).ByteSize())
        self.times.append(self._clock())
        return SpanExportResult.SUCCESS


def replay(*logs: Path, into: SpanExporter, **options: Any) -> Replayed:
    """Replay the logs to the end, without a rate limit by default; return the counts."""
    whole = Replay(logs, into, **{"to": TO, "rate": None, **options})
    for _ in whole.run():
        pass
    return whole.replayed()


# From a row to a span


def assert_same_span(replayed: ReadableSpan, live: ReadableSpan) -> None:
    assert (
        (replayed.name, replayed.kind, replayed.parent)
        == (live.name, live.kind, live.parent)
        == ("GET", live.kind, None)
    )
    mine, theirs = replayed.get_span_context(), live.get_span_context()
    assert mine is not None
    assert theirs is not None
    assert (mine.trace_id, mine.span_id, mine.trace_state) == (theirs.trace_id, theirs.span_id, theirs.trace_state)
    assert (mine.trace_flags.sampled, mine.is_remote) == (theirs.trace_flags.sampled, theirs.is_remote) == (True, False)
    assert (replayed.start_time, replayed.end_time) == (live.start_time, live.end_time)
    assert (replayed.status.status_code, replayed.status.description) == (
        live.status.status_code,
        live.status.description,
    )
    assert replayed.instrumentation_scope == live.instrumentation_scope
    live_attributes = {
        name: value for name, value in (live.attributes or {}).items() if name not in LIVE_ONLY_ATTRIBUTES
    }
    assert replayed.attributes == live_attributes


async def test_replayed_spans_equal_the_live_spans_of_the_calls(server: FaultServer, log: Log, sdk: SDK) -> None:
    calls = connector(log, sdk, FakeClock())
    names = ["success", "success after retries", "404", "503 to the end", "reset before the headers"]
    names += ["closed inside the body", "not JSON", "endless body", "not HTTP", "redirect to another scheme"]
    urls = ["not a URL", "ftp://127.0.0.1/x", "http://user:hush@:80/", "http://127.0.0.1:99999/", "http://[::1/"]
    async with aiohttp.ClientSession() as session:
        for number, name in enumerate(names):
            server.script(f"/{number}", OUTCOMES[name].steps)
            await calls.get(session, server.url(f"/{number}") + "?token=hush&a=ü,", f"=P{number}", default=None)
        server.script("/from", redirect("/to?key=hush"))
        server.script("/to", ok)
        await calls.get(session, server.url("/from"), "redirected")
        for url in [*urls, f"http://{'a' * 70}.com/", "http://[::1]:1/"]:
            await calls.get(session, url, "", default=None)
        held = hold()
        server.script("/held", held.step)
        cancelled = asyncio.create_task(calls.get(session, server.url("/held"), "cancelled", timeout=60))
        await asyncio.wait_for(held.arrived, 10)
        cancelled.cancel()
        await asyncio.wait([cancelled])
    exporter = CollectingExporter()
    counted = await asyncio.to_thread(replay, log.path, into=exporter)

    live = {span.context.span_id: span for span in sdk.spans.get_finished_spans() if span.context is not None}
    assert counted.sent == len(live) == len(log.records()) == len(names) + 9
    for span in exporter.get_finished_spans():
        assert span.context is not None
        assert_same_span(span, live.pop(span.context.span_id))
    assert not live
    errors = Counter(str((span.attributes or {}).get("error.type")) for span in exporter.get_finished_spans())
    assert errors["None"] == 4, "two successes, a redirect and a cancelled call"
    assert {"404", "503", "otel_connector.ConnectFailed", "otel_connector.InvalidURL"} < errors.keys()


@pytest.mark.parametrize(
    ("url", "address", "port"),
    [
        ("http://xn--bcher-kva.example/?a=1", "bücher.example", 80),
        ("https://REDACTED:REDACTED@[::1]:8443/", "::1", 8443),
        (f"http://a.example/{'x' * 9_000}", "a.example", 80),
        ("ftp://a.example/", None, None),
        ("REDACTED", None, None),
        ("", None, None),
    ],
)
def test_server_address_and_port_are_read_from_the_url(url: str, address: str | None, port: int | None) -> None:
    attributes = span_of(read_row(encode_row(record(0, url=url))[:-1]), RESOURCE).attributes
    assert attributes is not None
    assert (attributes.get("server.address"), attributes.get("server.port")) == (address, port)


@pytest.mark.parametrize("number", range(len(NASTY_RECORDS)))
def test_span_attributes_keep_every_text_of_the_row(number: int) -> None:
    line = encode_row(NASTY_RECORDS[number])[:-1]
    row = read_row(line)
    span = span_of(row, RESOURCE)
    assert span.attributes is not None
    assert {name: value for name, value in span.attributes.items() if name.startswith("otel_connector.")} == (
        field_attributes(row.record)
    )
    assert encode_spans([span]).ByteSize() <= 2 * len(line) + 512


@given(
    ids=st.tuples(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1)),
    start=st.integers(0, 9_000_000_000_000_000),
    lasted=st.integers(0, 200_000_000_000_000),
)
def test_times_are_exact_to_the_microsecond(ids: tuple[int, int], start: int, lasted: int) -> None:
    """Times are parsed from the text: a float cannot represent the microseconds of later centuries."""
    cells = encode_row(record(0, call_id=f"{ids[0]:032x}-{ids[1]:016x}"))[:-1].split(b",")
    for column, micros in (("t", start), ("delta_t", lasted)):
        cells[COLUMNS.index(column)] = f"{micros // 10**6}.{micros % 10**6:06d}".encode()
    span = span_of(read_row(b",".join(cells)), RESOURCE)
    context = span.get_span_context()
    assert context is not None
    assert (context.trace_id, context.span_id, context.is_valid, context.trace_flags.sampled) == (*ids, True, True)
    assert (span.start_time, span.end_time) == (start * 1_000, (start + lasted) * 1_000)


@given(RECORDS, st.integers(0, 2**32 * 10**6), st.integers(0, 10**12))
def test_a_record_survives_the_round_trip_through_its_row(some: CallRecord, start: int, lasted: int) -> None:
    size = min(some.response_size, 2**63 - 1)
    some = some._replace(t=start / 1e6, delta_t=lasted / 1e6, response_size=size)
    row = read_row(encode_row(some)[:-1])
    assert (row.start, row.end) == (start * 1_000, (start + lasted) * 1_000)
    again = span_of(row, RESOURCE)
    assert again.to_json() == span_of(read_row(encode_row(row.record)[:-1]), RESOURCE).to_json()
    encode_spans([again])


def cells_with(column: str, cell: str) -> bytes:
    cells = encode_row(record(0))[:-1].decode().split(",")
    cells[COLUMNS.index(column)] = cell
    return ",".join(cells).encode()


@pytest.mark.parametrize(
    ("column", "cell", "what"),
    [
        ("t", "nan", "t must be from 0 to 253402300799, not nan"),
        ("t", "-0.5", "t must be from 0 to 253402300799, not -0.5"),
        ("t", "1e999999", "t must be from 0 to 253402300799, not inf"),
        ("t", "9223372036.854775808", "t is not a time that a span can have"),
        ("t", "1e-99999999999999999999", "t is not a time that a span can have"),
        ("delta_t", "-0.000001", "delta_t must be from 0 to 1000000000, not -1e-06"),
        ("delta_t", "inf", "delta_t must be from 0 to 1000000000, not inf"),
        ("delta_t", "7600000000", "delta_t must be from 0 to 1000000000, not 7600000000.0"),
        ("delta_t", "", "delta_t must be a number, not ''"),
        ("call_id", f"{0:032x}-{1:016x}", "call_id contains an id of zeros"),
        ("call_id", f"{1:032x}-{0:016x}", "call_id contains an id of zeros"),
        ("call_id", "hello", "call_id 'hello' is not an id"),
        ("response_size", str(2**63), "response_size must be from 0 to 9223372036854775807, not 9223372036854775808"),
        ("response_size", "-1", "response_size must be from 0 to 9223372036854775807, not -1"),
        ("response_code", str(2**63), "response_code must be from 0 to 2147483647, not 9223372036854775808"),
        ("response_code", "200.0", "response_code must be a number, not '200.0'"),
    ],
)
def test_a_row_that_cannot_become_a_span_is_refused_with_the_reason(column: str, cell: str, what: str) -> None:
    with pytest.raises(ValueError, match=what.replace("(", r"\(")):
        read_row(cells_with(column, cell))


def test_a_row_that_ends_after_the_latest_time_of_a_span_is_refused() -> None:
    line = encode_row(record(0)._replace(t=9223372036.0, delta_t=2.0))[:-1]
    with pytest.raises(ValueError, match="the call ends later than a span can end"):
        read_row(line)


@pytest.mark.parametrize(("t", "start"), [("1.7e9", 1_700_000_000), ("1700000000", 1_700_000_000), ("0", 0)])
def test_times_rewritten_by_another_program_are_read(t: str, start: int) -> None:
    assert read_row(cells_with("t", t)).start == start * 10**9


@pytest.mark.parametrize(
    ("error", "code", "error_type"),
    [
        ("HTTPStatusError: 503 x", 503, "503"),
        ("HTTPStatusError: 503 x", None, "otel_connector.HTTPStatusError"),
        ("RetryBudgetExhausted: no retry", 503, "otel_connector.RetryBudgetExhausted"),
        ("ConnectFailed", None, "otel_connector.ConnectFailed"),
        ("TypeError: url must be", None, "TypeError"),
        ("CancelledError", None, None),
        ("KeyboardInterrupt", None, None),
        ("Theirs: a: b", 200, "Theirs"),
        ("print: no class", 200, "print"),
        ("annotations: no class", 200, "annotations"),
        ("", None, "_OTHER"),
    ],
)
def test_the_error_type_is_derived_from_the_class_name(error: str, code: int | None, error_type: str | None) -> None:
    row = record(0, success=False, error=error, response_code=code)
    assert error_type_of(row) == error_type
    assert error_type_of(row._replace(success=True)) is None


def test_a_status_description_is_set_only_if_it_adds_information(logs_csv: Path) -> None:
    failed = [record(1, success=False, error="HTTPStatusError: 404 Not Found", response_code=404)]
    failed += [record(2, success=False, error="ConnectFailed: refused", response_code=None)]
    exporter = CollectingExporter()
    replay(write_file(logs_csv, HEADER + b"".join(map(encode_row, failed))), into=exporter)
    statuses = [(span.status.is_ok, span.status.description) for span in exporter.get_finished_spans()]
    assert statuses == [(False, None), (False, "ConnectFailed: refused")]


# Reading logs


def test_damaged_lines_are_counted_and_skipped(logs_csv: Path) -> None:
    parts = [HEADER, rows(0), b"x" * (2 * LINE_LIMIT) + b"\n", b"\0\0\n", HEADER, b"\xff,\n", b"a,b\n", rows(1)[:-1]]
    parts += [rows(2), rows(3), b'"open\n', b"\n", rows(4), rows(5)[:-9]]
    content = b"".join(parts)
    exporter = CollectingExporter()
    counted = replay(write_file(logs_csv, content), into=exporter)

    assert exporter.numbers() == [0, 3, 4]
    assert (counted.sent, counted.damaged, counted.unfinished, counted.duplicates) == (3, 8, 1, 0)
    assert (counted.done, counted.size) == (len(content), len(content))
    assert {log for log, _ in counted.damage} == {str(logs_csv)}
    lines = content.split(b"\n")
    for _, damage in counted.damage:
        assert content[damage.offset :].startswith(lines[damage.line - 1])
        assert damage.length == len(lines[damage.line - 1])
    reasons = {damage.line: damage.what for _, damage in counted.damage}
    assert list(reasons) == [3, 4, 5, 6, 7, 8, 10, 11, 13]
    expected = ["longer", "NUL", "header", "not UTF-8", "10 cells", "10 cells", "quotes", "10 cells", "no line end"]
    assert [text for text, reason in zip(expected, reasons.values(), strict=True) if text not in reason] == []


def test_only_the_first_damaged_lines_are_described(logs_csv: Path) -> None:
    counted = replay(write_file(logs_csv, HEADER + b"x\n" * 50 + b"torn"), into=CollectingExporter())
    assert (counted.damaged, counted.unfinished, len(counted.damage)) == (50, 1, DAMAGE_LIMIT)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "the file is empty"),
        (b"a,b\n1,2\n", "its first line is 'a,b', not the header"),
        (b"PK\x03\x04", "zip archive or a spreadsheet"),
        (gzip.compress(b"a,b\n1,2\n"), "its first line is 'a,b'"),
        (gzip.compress(HEADER + rows(*range(99)))[:30], "the file cannot be unpacked"),
        (b"\x1f\x8bx", "the file cannot be unpacked"),
    ],
    ids=["empty", "another CSV", "zip", "another CSV, compressed", "truncated compressed log", "not gzip"],
)
def test_a_file_that_is_not_a_log_is_refused_before_anything_is_sent(logs_csv: Path, content: bytes, what: str) -> None:
    good = write_file(logs_csv.with_name("good.csv"), HEADER + rows(0))
    exporter = CollectingExporter()
    with pytest.raises(ValueError, match=what) as caught:
        replay(good, write_file(logs_csv, content), into=exporter)
    assert str(caught.value).startswith(f"{logs_csv}: not a log: ")
    assert exporter.numbers() == []
    assert sorted(logs_csv.parent.iterdir()) == [good, logs_csv]


def test_a_path_that_cannot_be_read_raises_os_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.csv"):
        with pytest.raises(OSError, match=str(path)):
            replay(path, into=CollectingExporter())


def test_logs_without_a_header_or_without_rows_are_read(tmp_path: Path) -> None:
    exporter = CollectingExporter()
    bare, empty = write_file(tmp_path / "bare.csv", rows(3, 4)), write_file(tmp_path / "empty.csv", HEADER)
    counted = replay(bare, empty, into=exporter)
    assert (exporter.numbers(), counted.damaged, counted.unfinished) == ([3, 4], 0, 0)
    empty.write_bytes(HEADER + rows(5))
    assert (replay(bare, empty, into=exporter).sent, exporter.numbers()) == (1, [3, 4, 5])


def test_compressed_logs_are_read_and_progress_counts_compressed_bytes(tmp_path: Path) -> None:
    path = write_file(tmp_path / "logs.csv.1", gzip.compress(HEADER + rows(*range(700))) + gzip.compress(rows(700)))
    exporter = CollectingExporter()
    whole = Replay([path], exporter, to=TO, rate=None)
    progress = list(whole.run())
    assert exporter.numbers() == list(range(701))
    assert [(each.sent, each.size) for each in progress] == [(BATCH, path.stat().st_size), (701, path.stat().st_size)]
    assert 0 < progress[0].done <= progress[1].done == path.stat().st_size


def gzip_without_end(content: bytes) -> bytes:
    """Return the start of a gzip file, up to a block boundary; zlib's own boundaries depend on its version."""
    packer = zlib.compressobj(0, wbits=31)
    return packer.compress(content) + packer.flush(zlib.Z_FULL_FLUSH)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda packed: packed[:-3_000], "ended before"),
        (lambda packed: packed[:-8] + bytes(8), "CRC check failed"),
        (lambda packed: packed + b"x" * 9, "Not a gzipped file"),
        (lambda packed: gzip_without_end(gzip.decompress(packed)[:200_000]) + b"\xff" * 9, "invalid block type"),
    ],
)
def test_damage_in_a_compressed_log_is_counted(logs_csv: Path, spoil: Callable[[bytes], bytes], what: str) -> None:
    path = write_file(logs_csv, spoil(gzip.compress(HEADER + rows(*range(2_000)), 0)))
    exporter = CollectingExporter()
    counted = replay(path, into=exporter)
    assert (counted.damaged, counted.unfinished) == (1, 0)
    assert counted.damage[0][1].what.startswith("the file cannot be unpacked from here on: ")
    assert what in counted.damage[0][1].what
    assert exporter.numbers() == list(range(counted.sent))
    assert 500 < counted.sent <= 2_000
    again = replay(path, into=exporter)
    assert (again.sent, again.skipped, again.damaged) == (0, counted.sent, 1)


def test_rows_written_during_a_replay_are_sent_by_this_run_or_the_next(logs_csv: Path) -> None:
    write_file(logs_csv, HEADER + rows(*range(BATCH)) + rows(BATCH)[:20])
    exporter = CollectingExporter()
    with logs_csv.open("ab", buffering=0) as log:
        for each in Replay([logs_csv], exporter, to=TO, rate=None).run():
            if each.sent == BATCH and each.done < each.size:
                # Complete the unfinished row, and append one after the end
                log.write(rows(BATCH)[20:] + rows(BATCH + 1))
    assert exporter.numbers() == list(range(BATCH + 1))
    counted = replay(logs_csv, into=exporter)
    assert (counted.sent, counted.skipped, counted.unfinished) == (1, BATCH + 1, 0)
    assert exporter.numbers() == list(range(BATCH + 2))


# Duplicates and filters


def test_a_call_that_is_logged_twice_is_sent_once(tmp_path: Path) -> None:
    one = write_file(tmp_path / "one.csv", HEADER + rows(0, 1, 0, 2))
    two = write_file(tmp_path / "two.csv.gz", gzip.compress(HEADER + rows(3, 2, 1, 4)))
    exporter = CollectingExporter()
    counted = replay(one, two, one, into=exporter)
    assert exporter.numbers() == [0, 1, 2, 3, 4]
    assert (counted.sent, counted.duplicates, counted.skipped) == (5, 3, 0)


def test_calls_of_the_same_trace_are_not_duplicates(logs_csv: Path) -> None:
    ids = [f"{trace:032x}-{span:016x}" for trace in (1, 2, 2**64 + 1) for span in (1, 2)]
    some = b"".join(encode_row(record(0, call_id=call_id)) for call_id in ids)
    exporter = CollectingExporter()
    replay(write_file(logs_csv, HEADER + some), into=exporter)
    assert exporter.call_ids() == ids


def test_the_number_of_remembered_calls_is_bounded(logs_csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_replay, "REMEMBERED", 3)
    exporter = CollectingExporter()
    counted = replay(write_file(logs_csv, HEADER + rows(0, 1, 2, 0, 3, 4, 5, 3, 6, 0)), into=exporter)
    assert exporter.numbers() == [0, 1, 2, 3, 4, 5, 6, 0]
    assert counted.duplicates == 2


@pytest.mark.parametrize(
    ("row_filter", "numbers"),
    [
        (RowFilter(), [0, 1, 2, 3, 4, 5]),
        (RowFilter(projects=("Q", "none")), [4, 5]),
        (RowFilter(failed_only=True), [1, 5]),
        (RowFilter(since=record(1).t, until=record(4).t), [1, 2, 3]),
        (RowFilter(since=record(1).t, failed_only=True, projects=("Q",)), [5]),
    ],
)
def test_only_rows_that_match_the_filter_are_sent(logs_csv: Path, row_filter: RowFilter, numbers: list[int]) -> None:
    failed = {"success": False, "error": "ConnectFailed: x"}
    some = [record(0), record(1, **failed), record(2), record(3), record(4, project="Q")]
    some += [record(5, project="Q", **failed)]
    exporter = CollectingExporter()
    counted = replay(
        write_file(logs_csv, HEADER + b"".join(map(encode_row, some))), into=exporter, row_filter=row_filter
    )
    assert exporter.numbers() == numbers
    assert (counted.sent, counted.filtered_out) == (len(numbers), 6 - len(numbers))
    # Rows that the filter skipped do not count as sent in a later replay of all rows
    whole = replay(logs_csv, into=exporter)
    assert (whole.sent, whole.skipped) == ((0, 6) if row_filter == RowFilter() else (6, 0))


def test_an_empty_period_is_refused() -> None:
    for since, until in ((2.0, 1.0), (1.0, 1.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match=r"^since must be before until"):
            RowFilter(since=since, until=until)


def test_progress_is_reported_while_no_rows_match_the_filter(logs_csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_replay, "_BATCH_LINES", 10)
    write_file(logs_csv, HEADER + rows(*range(25)))
    whole = Replay([logs_csv], CollectingExporter(), to=TO, row_filter=RowFilter(failed_only=True))
    assert [each.filtered_out for each in whole.run()] == [9, 19, 25]


# Resuming from the checkpoint


def test_a_rerun_resumes_where_the_replay_was_stopped(logs_csv: Path) -> None:
    write_file(logs_csv, HEADER + b"damaged\n" + rows(*range(1_300)))
    exporter = CollectingExporter()
    running = Replay([logs_csv], exporter, to=TO, rate=None).run()
    assert next(running).sent == BATCH
    running.close()  # like an interrupt between two batches
    assert exporter.numbers() == list(range(BATCH))

    counted = replay(logs_csv, into=exporter)
    assert (counted.sent, counted.skipped, counted.damaged) == (1_300 - BATCH, BATCH, 0)
    assert exporter.numbers() == list(range(1_300))
    with logs_csv.open("ab") as log:
        log.write(b"damaged, too\n" + rows(1_300))
    counted = replay(logs_csv, into=exporter)
    assert (counted.sent, counted.skipped) == (1, 1_300)
    assert [damage.line for _, damage in counted.damage] == [1_303], "lines are counted from the beginning of the file"
    assert exporter.numbers() == list(range(1_301))


def test_a_refused_batch_stops_the_replay_and_is_sent_by_the_rerun(logs_csv: Path) -> None:
    write_file(logs_csv, HEADER + rows(*range(1_300)))
    whole = Replay([logs_csv], BatchRecorder(take=1), to=TO, rate=None)
    expected = "512 spans were not sent: the exporter gave no reason. Spans sent before: 512; the next run continues"
    with pytest.raises(CollectorRefused, match=f"^{expected} after those$"):
        list(whole.run())
    assert whole.replayed().sent == BATCH
    exporter = CollectingExporter()
    assert replay(logs_csv, into=exporter).skipped == BATCH
    assert exporter.numbers() == list(range(BATCH, 1_300))


class RaisingExporter(SpanExporter):
    """Raises an exception whose message contains a password."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise OSError("http://user:hush@host/ is gone")


class InterruptedExporter(SpanExporter):
    """Raises KeyboardInterrupt, like Ctrl-C during an export."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise KeyboardInterrupt


def test_an_exception_in_the_exporter_is_reported_without_secrets(logs_csv: Path) -> None:
    write_file(logs_csv, HEADER + rows(0))
    with pytest.raises(CollectorRefused, match="OSError: http://REDACTED:REDACTED@host/ is gone"):
        replay(logs_csv, into=RaisingExporter())
    with pytest.raises(KeyboardInterrupt):
        replay(logs_csv, into=InterruptedExporter())
    assert replay(logs_csv, into=CollectingExporter()).sent == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"to": "http://another:4317"},
        {"service_name": "another"},
        {"row_filter": RowFilter(projects=("P",))},
        {"ignore_checkpoint": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_replay_with_other_options_starts_from_the_beginning(logs_csv: Path, changes: dict[str, Any]) -> None:
    write_file(logs_csv, HEADER + rows(0, 1))
    assert replay(logs_csv, into=CollectingExporter()).sent == 2
    counted = replay(logs_csv, into=CollectingExporter(), **changes)
    assert (counted.sent, counted.skipped) == (2, 0)
    assert replay(logs_csv, into=CollectingExporter(), **{**changes, "ignore_checkpoint": False}).skipped == 2


@pytest.mark.parametrize(
    "content",
    [
        HEADER + rows(0, 2, 1, 3),  # a line ends at the offset in the checkpoint
        HEADER + rows(0),
        HEADER + rows(0, 1)[:-1],
        HEADER + rows(4, 1),
        gzip.compress(HEADER + rows(0)),
        gzip.compress(HEADER + rows(0) + os.urandom(100).hex().encode())[:-20],
    ],
)
def test_a_different_log_under_the_same_name_is_sent_from_the_beginning(logs_csv: Path, content: bytes) -> None:
    replay(write_file(logs_csv, HEADER + rows(0, 1)), into=CollectingExporter())
    exporter = CollectingExporter()
    counted = replay(write_file(logs_csv, content), into=exporter)
    if content.endswith(rows(0, 1)[:-1]):  # the same log without its last line end
        assert (counted.sent, counted.skipped) == (0, 2)
    else:
        assert (counted.sent, counted.skipped) == (len(exporter.numbers()), 0)
        assert exporter.numbers()


def test_one_checkpoint_can_serve_several_logs_even_after_a_rename(tmp_path: Path) -> None:
    checkpoint = tmp_path / "sent.json"
    one, two = write_file(tmp_path / "1.csv", HEADER + rows(0, 1)), write_file(tmp_path / "2.csv", HEADER + rows(2))
    exporter = CollectingExporter()
    replay(one, two, into=exporter, checkpoint=checkpoint)
    packed = write_file(tmp_path / "old.gz", gzip.compress(HEADER + rows(0, 1, 3)))
    counted = replay(packed, two, into=exporter, checkpoint=str(checkpoint))
    assert (counted.sent, counted.skipped) == (1, 3)
    assert exporter.numbers() == [0, 1, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.csv", "2.csv", "old.gz", "sent.json"]


RENAMED = {  # how the first file is called later, and what the second replay names
    "by the writer": ("h.000001.csv", ["h.csv"]),
    "by the writer, and compressed": ("h.000001.csv.gz", ["h.csv"]),
    "a part by its name": ("h.000001.csv", ["h.000001.csv", "h.csv"]),
    "by logrotate": ("h.csv.1", ["h.csv.1", "h.csv"]),
    "by logrotate, and compressed": ("h.csv.3.gz", ["h.csv.3.gz", "h.csv"]),
    "by logrotate, with a date": ("h.csv-20261129.gz", ["h.csv*"]),
    "by a pattern": ("h.000001.csv.gz", ["*"]),
    "compressed": ("h.csv.gz", ["h.csv.gz", "h.csv"]),
    "with a date": ("h.20261128.csv", ["h.20261128.csv", "h.csv"]),
    "with an ISO date, and compressed": ("h.2026-11-28T09:30:00Z.csv.gz", ["h.2026-11-28T09:30:00Z.csv.gz", "h.csv"]),
}


@pytest.mark.parametrize("how", RENAMED)
def test_rows_of_a_file_that_was_renamed_or_compressed_are_not_sent_again(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exporter, content = CollectingExporter(), HEADER + rows(0, 1)
    replay(write_file(Path("h.csv"), content), into=exporter)
    name, named = RENAMED[how]
    Path("h.csv").unlink()
    write_file(Path(name), gzip.compress(content + rows(2)) if name.endswith(".gz") else content + rows(2))
    write_file(Path("h.csv"), HEADER + rows(3, 4))
    for sent, skipped in ((3, 2), (0, 5)):
        counted = replay(*map(Path, named), into=exporter)
        assert (counted.sent, counted.skipped, counted.duplicates, counted.damaged) == (sent, skipped, 0, 0)
    assert sorted(exporter.numbers()) == [0, 1, 2, 3, 4]
    assert [path.name for path in tmp_path.iterdir() if "replayed" in path.name] == ["h.csv.replayed"]


MOVED = ["old.csv", "old.csv.gz", "2026-11-28/h.csv", "archive/old.csv.gz", "h.csv.bak", "h.csv~", "h-old"]


@pytest.mark.parametrize("target", MOVED)
@pytest.mark.parametrize("how", ["mv", "copytruncate"])
def test_rows_of_a_log_that_got_any_other_name_are_not_sent_again(
    how: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The position is in the checkpoint of the name that the file had. Each file is replayed by its own command."""
    monkeypatch.chdir(tmp_path)
    log, moved = Path("h.csv"), Path(target)
    exporter, content = CollectingExporter(), HEADER + rows(0, 1)
    replay(write_file(log, content), into=exporter)
    if how == "mv":
        log.unlink()
    moved.parent.mkdir(exist_ok=True)
    content += rows(2)
    write_file(moved, gzip.compress(content) if target.endswith(".gz") else content)
    write_file(log, HEADER + rows(3, 4))
    for sent, skipped in ((1, 2), (0, 3)):
        counted = replay(moved, into=exporter)
        assert (counted.sent, counted.skipped) == (sent, skipped)
    for sent, skipped in ((2, 0), (0, 2)):
        counted = replay(log, into=exporter)
        assert (counted.sent, counted.skipped) == (sent, skipped)
    assert replay(moved.rename(moved.with_name("again.csv")), into=exporter).skipped == 3
    assert exporter.numbers() == [0, 1, 2, 3, 4]


def test_the_furthest_position_that_fits_the_file_counts(tmp_path: Path) -> None:
    """A log that was moved, sent on and moved back; and a copy that has fewer rows than the log has by now."""
    log, copy = tmp_path / "h.csv", tmp_path / "copy.csv"
    replay(write_file(log, HEADER + rows(0)), into=CollectingExporter())
    replay(write_file(copy, HEADER + rows(0, 1, 2)), into=CollectingExporter())
    assert replay(write_file(log, HEADER + rows(0, 1, 2, 3)), into=CollectingExporter()).sent == 1
    assert replay(write_file(copy, HEADER + rows(0, 1)), into=CollectingExporter()).skipped == 0
    write_file(log, HEADER + rows(0, 9))
    replay(log, into=CollectingExporter())
    assert replay(copy, into=CollectingExporter()).skipped == 2


@pytest.mark.parametrize("content", [b"another program's", b"", None], ids=["another file", "empty", "a folder"])
def test_other_files_with_the_name_of_a_checkpoint_do_not_stop_a_replay(content: bytes | None, logs_csv: Path) -> None:
    other = logs_csv.with_name("other.csv.replayed")
    if content is None:
        other.mkdir()
    else:
        other.write_bytes(content)
    write_file(logs_csv, HEADER + rows(0, 1))
    assert [replay(logs_csv, into=CollectingExporter()).skipped for _ in range(2)] == [0, 2]
    assert content is None or other.read_bytes() == content


def test_a_position_of_another_endpoint_does_not_count_for_a_renamed_log(logs_csv: Path) -> None:
    replay(write_file(logs_csv, HEADER + rows(0, 1)), into=CollectingExporter())
    moved = logs_csv.rename(logs_csv.with_name("old.csv"))
    assert replay(moved, into=CollectingExporter(), to="http://another").sent == 2
    assert replay(moved, into=CollectingExporter(), ignore_checkpoint=True).sent == 2


@pytest.mark.parametrize("names", list(itertools.permutations(["link.csv", "data/h.csv", "l*.csv"])))
def test_rows_are_sent_once_under_all_names_of_a_log(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("link.csv").symlink_to("data/h.csv")
    for number, name in enumerate(["h.000001.csv", "h.000002.csv", "h.csv"]):
        write_file(Path("data", name), HEADER + rows(2 * number, 2 * number + 1))
    exporter = CollectingExporter()
    for name in names:
        replay(Path(name), into=exporter)
    assert exporter.numbers() == [0, 1, 2, 3, 4, 5]
    assert sorted(Path("data").iterdir()) == [
        Path("data", name) for name in ("h.000001.csv", "h.000002.csv", "h.csv", "h.csv.replayed")
    ]


def test_rows_of_a_log_that_is_rotated_during_a_replay_are_sent_once(tmp_path: Path) -> None:
    part = write_file(tmp_path / "h.000001.csv", HEADER + rows(0))
    log = write_file(tmp_path / "h.csv", HEADER + rows(1, 2))
    exporter = CollectingExporter()
    running = Replay([log], exporter, to=TO).run()
    next(running)
    log.rename(part.with_name("h.000002.csv"))
    write_file(log, HEADER + rows(3, 4, 5))
    assert [each.sent for each in running][-1] == 4
    assert replay(log, into=exporter).skipped == 4
    assert sorted(exporter.numbers()) == [0, 1, 2, 3, 4, 5]


def test_a_log_that_becomes_another_file_during_a_replay_is_not_sent(tmp_path: Path) -> None:
    write_file(tmp_path / "h.000001.csv", HEADER + rows(0))
    log = write_file(tmp_path / "h.csv", HEADER + rows(1, 2))
    running = Replay([log], CollectingExporter(), to=TO).run()
    next(running)
    log.write_text("another file\n")
    with pytest.raises(ValueError, match=f"^{log}: not a log"):
        list(running)


@pytest.mark.parametrize("name", ["h.000001.csv", "h.csv.gz", "link.csv"])
def test_a_checkpoint_of_version_0_1_0_is_continued(name: str, tmp_path: Path) -> None:
    """That version stored it beside the file, under the name of the file, one for each file."""
    content = HEADER + rows(0, 1)
    target = tmp_path / ("h.csv" if name == "link.csv" else name)
    write_file(target, gzip.compress(content) if name.endswith(".gz") else content)
    if name == "link.csv":
        (tmp_path / name).symlink_to(target)
    earlier = tmp_path / f"{name}.replayed"
    assert replay(tmp_path / name, into=CollectingExporter(), checkpoint=earlier).sent == 2
    for _ in range(2):
        assert replay(tmp_path / name, into=CollectingExporter()).skipped == 2
        assert "proof" in (tmp_path / "h.csv.replayed").read_text()
    earlier.unlink()
    assert replay(tmp_path / name, into=CollectingExporter()).skipped == 2


def test_a_checkpoint_has_a_hash_of_the_endpoint_and_those_with_its_text_are_read(logs_csv: Path) -> None:
    """An endpoint may have a secret. Earlier versions stored it, redacted."""
    to, checkpoint = "http://a:4318/t0ken?key=hush", Path(f"{logs_csv}.replayed")
    write_file(logs_csv, HEADER + rows(0, 1))
    assert replay(logs_csv, into=CollectingExporter(), to=to).sent == 2
    content = json.loads(checkpoint.read_text())
    assert content["to"] == "sha256:" + sha256(to.encode()).hexdigest()
    checkpoint.write_text(json.dumps({**content, "to": "http://a:4318/t0ken?key=REDACTED"}))
    write_file(logs_csv, HEADER + rows(0, 1, 2))
    counted = replay(logs_csv, into=CollectingExporter(), to=to)
    assert (counted.sent, counted.skipped) == (1, 2)
    assert "t0ken" not in checkpoint.read_text()
    assert replay(logs_csv, into=CollectingExporter(), to=to).skipped == 3


def test_a_log_can_have_thousands_of_parts(tmp_path: Path) -> None:
    log = write_file(tmp_path / "logs.csv", HEADER + rows(0))
    replay(log, into=CollectingExporter())
    checkpoint = Path(f"{log}.replayed")
    content = json.loads(checkpoint.read_text())
    position = next(iter(content["logs"].values()))
    content["logs"] |= {f"{number:032x}": position for number in range(20_000)}
    checkpoint.write_text(json.dumps(content))
    assert replay(log, into=CollectingExporter()).skipped == 1
    assert len(json.loads(checkpoint.read_text())["logs"]) == 20_001
    assert checkpoint.stat().st_size > 2**20


CHECKPOINT = {
    "otel_connector.replay": 1,
    "to": TO,
    "service": "s",
    "wanted": "w",
    "logs": {"a": {"offset": 0, "lines": 0, "sent": 0, "last": 0, "proof": ""}},
}


def checkpoint_with(**position: Any) -> str:
    return json.dumps({**CHECKPOINT, "logs": {"a": {**CHECKPOINT["logs"]["a"], **position}}})  # type: ignore[index]


@pytest.mark.parametrize(
    "content",
    [
        "important\n",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps({**CHECKPOINT, "otel_connector.replay": 2}),
        json.dumps({**CHECKPOINT, "logs": []}),
        json.dumps({name: value for name, value in CHECKPOINT.items() if name != "to"}),
        checkpoint_with(offset=-1),
        checkpoint_with(sent=True),
        checkpoint_with(lines=1.0),
        checkpoint_with(proof=None),
        checkpoint_with(more=1),
    ],
)
def test_a_file_that_is_not_a_checkpoint_is_refused_and_not_changed(logs_csv: Path, content: str) -> None:
    other = logs_csv.with_name("other.txt")
    other.write_text(content)
    write_file(logs_csv, HEADER + rows(0))
    for ignore_checkpoint in (False, True):
        with pytest.raises(OSError, match="not a checkpoint of a replay") as caught:
            replay(logs_csv, into=CollectingExporter(), checkpoint=other, ignore_checkpoint=ignore_checkpoint)
        assert caught.value.filename == str(other)
    assert other.read_text() == content


def test_a_checkpoint_identifies_the_filter_as_version_0_1_0_did(logs_csv: Path) -> None:
    """So a checkpoint of that version is continued."""
    write_file(logs_csv, HEADER + rows(0))
    replay(logs_csv, into=CollectingExporter())
    content = json.loads(Path(f"{logs_csv}.replayed").read_text())
    assert content["wanted"] == "Wanted(projects=(), since=-inf, until=inf, failed_only=False)"


def test_an_empty_checkpoint_file_is_treated_as_a_new_one(logs_csv: Path) -> None:
    write_file(Path(f"{logs_csv}.replayed"), b"")
    assert replay(write_file(logs_csv, HEADER + rows(0)), into=CollectingExporter()).sent == 1
    assert Path(f"{logs_csv}.replayed").stat().st_mode & 0o777 == 0o600


def test_a_checkpoint_keeps_its_mode_and_its_link(logs_csv: Path) -> None:
    real = logs_csv.with_name("real.json")
    for number, mode in enumerate((0o600, 0o640)):
        write_file(logs_csv, HEADER + rows(number))
        Path(f"{logs_csv}.replayed").unlink(missing_ok=True)
        Path(f"{logs_csv}.replayed").symlink_to(real)
        assert replay(logs_csv, into=CollectingExporter()).sent == 1
        assert Path(f"{logs_csv}.replayed").readlink() == real
        assert real.stat().st_mode & 0o777 == mode
        real.chmod(0o640)


def test_nothing_is_sent_if_the_checkpoint_cannot_be_written(logs_csv: Path) -> None:
    write_file(logs_csv, HEADER + rows(0))
    exporter = CollectingExporter()
    with pytest.raises(OSError, match="no/such"):
        replay(logs_csv, into=exporter, checkpoint=logs_csv.with_name("no") / "such" / "file")
    whole = Replay([logs_csv], exporter, to=TO)
    Path(f"{logs_csv}.replayed").mkdir()
    with pytest.raises(OSError, match="replayed"):
        list(whole.run())
    assert exporter.numbers() == []
    assert sorted(path.name for path in logs_csv.parent.iterdir()) == ["logs.csv", "logs.csv.replayed"]


# Rate limit


class ManualClock:
    """A clock that advances in `sleep`, and when a test changes `now`."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.mark.parametrize(
    ("rate", "sizes", "times"),
    [
        (None, [512, 188], [0, 0]),
        (10_000, [512, 188], [0, 0.0512]),
        (300, [300, 300, 100], [0, 1, 2]),
    ],
)
def test_spans_are_sent_at_the_given_rate(
    logs_csv: Path, rate: float | None, sizes: list[int], times: list[float]
) -> None:
    write_file(logs_csv, HEADER + rows(*range(700)))
    clock = ManualClock()
    exporter = BatchRecorder(clock)
    replay(logs_csv, into=exporter, rate=rate, monotonic=clock, sleep=clock.sleep)
    assert exporter.sizes == sizes
    assert [at - 1_000 for at in exporter.times] == pytest.approx(times)


def test_a_rate_below_one_span_per_second_is_allowed(logs_csv: Path) -> None:
    clock = ManualClock()
    exporter = BatchRecorder(clock)
    replay(write_file(logs_csv, HEADER + rows(0, 1, 2)), into=exporter, rate=0.1, monotonic=clock, sleep=clock.sleep)
    assert exporter.sizes == [1, 1, 1]
    assert clock.slept == pytest.approx([10, 10])


def test_the_rate_is_not_exceeded_after_a_slow_request(logs_csv: Path) -> None:
    clock = ManualClock()

    class SlowExporter(BatchRecorder):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = super().export(spans)
            clock.now += 5 if len(self.sizes) == 1 else 0
            return result

    exporter = SlowExporter(clock)
    replay(write_file(logs_csv, HEADER + rows(*range(40))), into=exporter, rate=10, monotonic=clock, sleep=clock.sleep)
    assert [at - 1_000 for at in exporter.times] == pytest.approx([0, 5, 6, 7])


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan"), True, "5"])
def test_an_invalid_rate_is_refused(logs_csv: Path, rate: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^rate must be "):
        Replay([write_file(logs_csv, HEADER)], CollectingExporter(), to=TO, rate=rate)


def test_a_request_is_smaller_than_the_grpc_limit_of_4_mib(logs_csv: Path) -> None:
    longest = {"url": "http://a/" + "漢" * 9_000, "redirect_url": "é" * 9_000, "error": "😀" * 9_000, "success": False}
    some = b"".join(encode_row(record(number, **longest)) for number in range(100))
    exporter = BatchRecorder()
    counted = replay(write_file(logs_csv, HEADER + some), into=exporter)
    assert counted.sent == sum(exporter.sizes) == 100
    assert len(exporter.sizes) > 1
    assert max(exporter.bytes) < 4 * 2**20


# Sending to a collector


@pytest.fixture(autouse=True)
def no_otel_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def resource_attributes(logs_csv: Path, **options: Any) -> dict[str, Any]:
    exporter = CollectingExporter()
    replay(write_file(logs_csv, HEADER + rows(0)), into=exporter, ignore_checkpoint=True, **options)
    (span,) = exporter.get_finished_spans()
    return dict(span.resource.attributes)


def test_the_resource_is_the_same_in_every_run(logs_csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = resource_attributes(logs_csv)
    assert (made["service.name"], made["otel_connector.replayed"]) == ("otel-connector-replay", True)
    assert made["telemetry.sdk.language"] == "python"
    assert "service.instance.id" not in made
    assert resource_attributes(logs_csv, service_name="mine")["service.name"] == "mine"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "theirs")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=7,team=prices")
    made = resource_attributes(logs_csv)
    assert (made["service.name"], made["service.instance.id"], made["team"]) == ("theirs", "7", "prices")
    assert resource_attributes(logs_csv, service_name="mine")["service.name"] == "mine"


@pytest.fixture
def received() -> Received:
    return Received()


@pytest.fixture
def backend(received: Received) -> Iterator[str]:
    """Start the receiver to which the collector forwards."""
    with grpc_receiver(received) as endpoint:
        yield endpoint


@pytest.mark.neighbours("rotel")
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_every_row_arrives_once_through_a_collector(
    logs_csv: Path, received: Received, backend: str, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [record(number) for number in range(1_200)]
    some += [record(1_200, success=False, error="ConnectFailed: refused", response_code=None, url="", project="=x")]
    write_file(logs_csv, HEADER + b"".join(map(encode_row, some)))
    address = own_address()
    endpoint = endpoints_at(address)[protocol]
    with agent(address, *forwarding(backend)):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        exporter, to = open_otlp()
        counted = replay(logs_csv, into=exporter, to=to, service_name="old")
        received.wait_for(lambda: len(received.call_ids()) >= len(some))
        exporter.shutdown()

    assert (counted.sent, to) == (1_201, endpoint)
    assert received.call_ids() == Counter(each.call_id for each in some)
    for span in received.spans():
        number = int.from_bytes(span.trace_id, "big") - 1
        assert span.start_time_unix_nano == (START + number * 142_857) * 1_000
        assert span.end_time_unix_nano - span.start_time_unix_nano == number * 1_000
        expected = span_of(read_row(encode_row(some[number])[:-1]), RESOURCE)
        assert attributes_of(span) == expected.attributes
        assert (span.name, span.kind, span.parent_span_id, list(span.events)) == ("GET", 3, b"", [])
        assert span.status.code == (2 if number == 1_200 else 0)
    for each in received.resource_spans:
        assert {"service.name": "old", "otel_connector.replayed": True}.items() <= attributes_of(each.resource).items()
        (scope,) = each.scope_spans
        assert (scope.scope.name, scope.scope.version) == ("otel_connector", otel_connector.__version__)
        assert scope.schema_url == SCHEMA_URL


@pytest.mark.neighbours("rotel")
def test_a_rerun_sends_the_rest_after_the_collector_was_killed(
    logs_csv: Path, received: Received, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(logs_csv, HEADER + rows(*range(1_300)))
    address = own_address()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoints_at(address)["grpc"])
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
    exporter, to = open_otlp()
    with agent(address, *forwarding(backend)) as process:
        whole = Replay([logs_csv], exporter, to=to, rate=None)
        running = whole.run()
        assert next(running).sent == BATCH
        received.wait_for(lambda: len(received.call_ids()) >= BATCH)
        process.kill()
        process.wait()
        with pytest.raises(
            CollectorRefused, match=r"512 spans were not sent: .*(nothing listens|did not answer|closed)"
        ):
            next(running)
    exporter.shutdown()
    assert whole.replayed().sent == BATCH

    exporter, to = open_otlp()
    with agent(address, *forwarding(backend)):
        counted = replay(logs_csv, into=exporter, to=to)
        received.wait_for(lambda: len(received.call_ids()) >= 1_300)
    exporter.shutdown()
    assert (counted.sent, counted.skipped) == (1_300 - BATCH, BATCH)
    assert received.call_ids() == Counter(record(number).call_id for number in range(1_300))


def test_protocol_and_endpoint_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [open_otlp()]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf ")
    found.append(open_otlp())
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:hush@a:1")
    found.append(open_otlp())
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:2/v1/traces")
    found.append(open_otlp())
    for exporter, _ in found:
        exporter.shutdown()
    assert [(type(exporter).__module__.split(".")[-2], to) for exporter, to in found] == [
        ("grpc", "http://localhost:4317"),
        ("http", "http://localhost:4318"),
        ("http", "http://user:hush@a:1"),
        ("http", "http://b:2/v1/traces"),
    ]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json")
    with pytest.raises(ValueError, match="Unsupported OTLP protocol 'http/json'"):
        open_otlp()
