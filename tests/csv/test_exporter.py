"""Tests of `CSVSpanExporter` and `CSVSpanProcessor` as components of an OpenTelemetry SDK."""

from __future__ import annotations

import asyncio
import csv
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanContext
from opentelemetry.util._importlib_metadata import entry_points
from support.forked import run_python
from support.logs import Log

from otel_connector import AsyncConnector, CSVSpanExporter, CSVSpanProcessor, csv_exporter
from otel_connector._csv._format import decode_row
from otel_connector._csv._writer import RowWriter
from otel_connector._record import COLUMNS
from otel_connector.testing import FaultServer, ok

FIELDS: dict[str, Any] = {
    "otel_connector.call_id": "cut off",
    "otel_connector.project": "P",
    "otel_connector.t": 1.5,
    "otel_connector.delta_t": 0.25,
    "otel_connector.url": "http://h/",
    "otel_connector.response_size": 3,
    "otel_connector.response_code": 200,
    "otel_connector.success": True,
}


def span(number: int = 1, start_time: int = 1, **changes: Any) -> ReadableSpan:
    attributes = {**FIELDS, **{f"otel_connector.{name}": value for name, value in changes.items()}}
    kept = {name: value for name, value in attributes.items() if value is not None}
    context = SpanContext(number, number, is_remote=False)
    return ReadableSpan("GET", context, resource=Resource.get_empty(), attributes=kept, start_time=start_time)


def test_only_spans_with_all_fields_of_a_call_are_written(log: Log) -> None:
    exporter = CSVSpanExporter(log.path)
    other = ReadableSpan("other", SpanContext(9, 9, is_remote=False), resource=Resource.get_empty())
    strange = [span(7, t="yesterday"), span(7, response_size=None), span(7, response_code="200"), span(7, call_id=None)]
    no_context = ReadableSpan("GET", resource=Resource.get_empty(), attributes=FIELDS)
    assert exporter.export([span(1), other, *strange, no_context, span(2, error="E: x", success=False)]) is (
        SpanExportResult.SUCCESS
    )
    assert log.cells()[1:] == [
        [f"{1:032x}-{1:016x}", "P", "1.500000", "0.250000", "http://h/", "", "3", "200", "True", ""],
        [f"{2:032x}-{2:016x}", "P", "1.500000", "0.250000", "http://h/", "", "3", "200", "False", "E: x"],
    ]
    exporter.shutdown()


class PlainMapping(Mapping[str, Any]):
    """Attributes in a mapping that has only the required methods."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def test_a_span_that_cannot_be_written_does_not_affect_the_others(log: Log) -> None:
    exporter = CSVSpanExporter(log.path)
    ids: Any = 1.5
    nothing = Resource.get_empty()
    invalid_ids = ReadableSpan("GET", SpanContext(ids, ids, is_remote=False), resource=nothing, attributes=FIELDS)
    too_many = [span(2, t=10**400), span(3, response_size=10**5_000), span(4, response_code=10**5_000)]
    context = SpanContext(5, 5, is_remote=False)
    plain_mapping = ReadableSpan("GET", context, resource=nothing, attributes=PlainMapping(FIELDS))
    spans = [span(1), invalid_ids, *too_many, plain_mapping, span(6, t=7, delta_t=True, response_size=True)]
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    assert [int(cells[0][:32], 16) for cells in log.cells()[1:]] == [1, 5, 6]
    assert log.cells()[-1][2:] == ["7.000000", "1.000000", "http://h/", "", "1", "200", "True", ""]
    exporter.shutdown()


VALUES = st.one_of(
    st.sampled_from([None, True, False, -1, 0, 200, 10**400, 10**5_000, 1.5, 1e300, -0.0, float("nan"), float("inf")]),
    st.sampled_from(["", "=1", "a,b", '"', "\n", "\u2028", "\ud800", "\uff1d", "'", "x" * 9_000, b"b", [], {}, ["a"]]),
    st.floats(0, 2e9),
    st.text("aé-'=,\"\x7f", max_size=5),
)
CHANGES = st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=2)


@given(st.lists(st.tuples(CHANGES, st.integers(1, 3), st.booleans()), max_size=40))
def test_a_batch_is_written_like_its_spans_one_by_one(made: list[tuple[dict[str, Any], int, bool]]) -> None:
    spans: list[ReadableSpan] = []
    for number, (changes, start, sdk_attributes) in enumerate(made):
        each = span(number // 2 + 1, start, **changes)
        if sdk_attributes:
            own = BoundedAttributes(attributes=each.attributes, immutable=False)
            each = ReadableSpan("GET", each.context, resource=each.resource, attributes=own, start_time=start)
        spans.append(each)
    with tempfile.TemporaryDirectory() as folder:
        batch, alone = (CSVSpanExporter(Path(folder) / name) for name in ("batch.csv", "alone.csv"))
        batch.export(spans)
        for each in spans:
            alone.export([each])
        batch.shutdown()
        alone.shutdown()
        assert Path(batch.path).read_bytes() == Path(alone.path).read_bytes()
        assert batch.counts() == alone.counts()


def test_a_call_that_arrives_twice_is_written_once(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_exporter, "_REMEMBERED_CALLS", 2)
    exporter = CSVSpanExporter(log.path)
    exporter.export([span(1), span(2), span(1), span(2)])
    exporter.export([span(1)])
    assert exporter.counts().written == 2
    exporter.export([span(1, start_time=2), span(3)])  # a program that seeds `random` repeats its ids
    assert exporter.counts().written == 4
    exporter.export([span(1)])
    assert exporter.counts().written == 5, "only the last calls are remembered"
    exporter.shutdown()


def test_export_after_shutdown_fails_and_counts_the_row_as_lost(log: Log) -> None:
    exporter = CSVSpanExporter(log.path)
    exporter.shutdown()
    exporter.shutdown()
    assert exporter.export([span()]) is SpanExportResult.FAILURE
    assert exporter.counts() == (0, 0, 1)


def test_export_and_force_flush_report_a_full_disk(log: Log) -> None:
    exporter = CSVSpanExporter(log.path)
    assert isinstance(exporter._rows, RowWriter)
    assert exporter._rows._log is not None
    file = exporter._rows._log._fd
    keep = os.dup(file)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file)
    assert exporter.export([span(1)]) is SpanExportResult.FAILURE
    assert exporter.force_flush() is False
    os.dup2(keep, file)
    assert exporter.force_flush() is True
    assert exporter.counts() == (1, 0, 0)
    os.close(keep)
    os.close(full)
    exporter.shutdown()


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((5,), TypeError, "path must be a path"),
        (("",), ValueError, "path must be a path of at least one character"),
        ((b"x",), TypeError, "path must be a path"),
    ],
)
def test_an_invalid_path_is_refused(arguments: tuple[Any, ...], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        CSVSpanExporter(*arguments)


def test_messages_name_the_argument_in_which_the_path_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.csv"
    other.write_text("a,b\n")
    monkeypatch.setenv("OTEL_CONNECTOR_CSV_PATH", str(tmp_path))
    for make, folder, name in (
        (CSVSpanExporter, tmp_path, "path"),
        (lambda _: CSVSpanExporter(), tmp_path, "OTEL_CONNECTOR_CSV_PATH"),
        (AsyncConnector, tmp_path, "logfile"),
    ):
        with pytest.raises(IsADirectoryError, match=rf"\[Errno 21\] {name}: Is a directory: '{folder}'"):
            make(folder)
    for kind, name in ((CSVSpanExporter, "path"), (AsyncConnector, "logfile")):
        with pytest.raises(
            ValueError, match=rf"^{name}: '{other}': the file has another header: 'a,b'; choose another"
        ):
            kind(other)
    wrong: Any
    for wrong in ("", 3, type("BytesPath", (), {"__fspath__": lambda _: b"logs.csv"})()):
        for kind, name in ((CSVSpanExporter, "path"), (AsyncConnector, "logfile")):
            with pytest.raises((TypeError, ValueError), match=f"^{name} must be a path"):
                kind(wrong)


def test_an_invalid_overwrite_and_an_invalid_exporter_are_refused(log: Log) -> None:
    wrong: Any = 1
    with pytest.raises(TypeError, match="overwrite must be True or False"):
        CSVSpanExporter(log.path, overwrite=wrong)
    assert not log.path.exists()
    with pytest.raises(TypeError, match="exporter must be a CSVSpanExporter"):
        CSVSpanProcessor(wrong)


def test_without_an_argument_the_path_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exporter = CSVSpanExporter()
    assert exporter.path == "otel_connector.csv"
    exporter.shutdown()
    monkeypatch.setenv("OTEL_CONNECTOR_CSV_PATH", str(tmp_path / "named.csv"))
    exporter = CSVSpanExporter()
    assert exporter.path == str(tmp_path / "named.csv")
    exporter.shutdown()


class RecordOnly(Sampler):
    """Records every span and samples none."""

    def should_sample(self, *arguments: Any, **_: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_ONLY, arguments[4])

    def get_description(self) -> str:
        return "record only"


@pytest.mark.parametrize(
    ("processor", "sampler", "rows"),
    [
        (CSVSpanProcessor, ALWAYS_ON, 3),
        (CSVSpanProcessor, RecordOnly(), 3),
        (CSVSpanProcessor, ALWAYS_OFF, 0),
        (SimpleSpanProcessor, ALWAYS_ON, 3),
        (SimpleSpanProcessor, RecordOnly(), 0),
        (BatchSpanProcessor, ALWAYS_ON, 3),
    ],
)
@pytest.mark.parametrize("is_logfile_too", [False, True])
def test_a_provider_and_a_connector_with_the_same_exporter_write_each_call_once(
    processor: Any, sampler: Sampler, rows: int, is_logfile_too: bool, server: FaultServer, log: Log
) -> None:
    """If the exporter is also the connector's logfile, unsampled calls are written as well."""
    server.script("/x", ok)
    exporter = CSVSpanExporter(log.path)
    provider = TracerProvider(sampler, shutdown_on_exit=False)
    provider.add_span_processor(processor(exporter))
    connector = AsyncConnector(exporter if is_logfile_too else None, tracer_provider=provider)

    async def calls() -> None:
        async with aiohttp.ClientSession() as session:
            for _ in range(3):
                await connector.get(session, server.url("/x"), "P")
        await connector.aclose()

    asyncio.run(calls())
    with provider.get_tracer("app").start_as_current_span("a span of the application"):
        pass
    assert provider.force_flush()
    assert len(log.records()) == (3 if is_logfile_too else rows)
    assert exporter.counts().written == len(log.records()), "aclose does not close an exporter that was passed in"
    provider.shutdown()


def test_the_span_processor_and_the_logfile_write_equal_rows(server: FaultServer, log: Log, tmp_path: Path) -> None:
    server.script("/x", [503, ok])
    other = Log(tmp_path / "other.csv")
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(CSVSpanProcessor(CSVSpanExporter(other.path)))

    async def call() -> None:
        async with aiohttp.ClientSession() as session:
            await AsyncConnector(log.path, tracer_provider=provider).get(session, server.url("/x?q=1"), "=P,1")

    asyncio.run(call())
    provider.shutdown()
    assert other.path.read_bytes() == log.path.read_bytes()


def test_the_exporter_is_registered_as_the_entry_point_csv() -> None:
    (found,) = entry_points(group="opentelemetry_traces_exporter", name="csv")
    assert issubclass(found.load(), SpanExporter)
    assert found.load() is CSVSpanExporter


PROGRAM = """
import asyncio, aiohttp
from otel_connector import AsyncConnector, configure

async def main():
    async with aiohttp.ClientSession() as session:
        await AsyncConnector(None).get(session, {url!r}, "FromTheEnvironment")

with configure():
    asyncio.run(main())
"""


def test_otel_traces_exporter_csv_selects_the_exporter(server: FaultServer, log: Log) -> None:
    server.script("/x", ok)
    variables = {
        "OTEL_TRACES_EXPORTER": "csv",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_CONNECTOR_CSV_PATH": str(log.path),
        "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "20",
    }
    program = PROGRAM.format(url=server.url("/x"))
    done = run_python(["-c", program], log.path.parent, **variables)
    assert done.returncode == 0, done.stderr
    record = log.only()
    assert (record.project, record.response_code) == ("FromTheEnvironment", 200)
    assert len(record.call_id) == 49, "the call id is complete although the SDK truncated the attribute"


def test_export_record_does_not_repeat_a_call_that_export_has_written(tmp_path: Path) -> None:
    path = tmp_path / "logs.csv"
    exporter = CSVSpanExporter(path)
    exporter.export([span(1)])
    (cells,) = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))[1:]
    exporter.export_record(decode_row(cells), 1)
    assert path.read_text(encoding="utf-8").count("\n") == 2
    exporter.export_record(decode_row(cells), 2)
    assert path.read_text(encoding="utf-8").count("\n") == 3, "the same ids with another start time are another call"
