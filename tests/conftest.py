"""What the tests share: a faulty server, a session, a log, an SDK of their own, and a watch for blocking calls."""

from __future__ import annotations

import csv
import gc
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_connector import CallRecord, _csv_writer
from otel_connector._csv_format import decode_row
from otel_connector.testing import FakeClock, FaultServer


@pytest.fixture(autouse=True, scope="module")
def collections_pass_over_what_stays() -> None:
    """Have the garbage collector pass over the tests, and all that is loaded by now: that takes it 0.2 s each time.

    Some tests collect to measure memory, and a collection in a turn of the loop would be taken for a stall of it.
    Once is not enough: what earlier modules load and keep is half of it.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def blocking_calls_fail() -> Iterator[BlockBuster]:
    """A blocking call of ours on an event loop fails the test, but for those listed here with their reason."""
    # The fault server blocks nobody: it has a thread and a loop of its own
    with blockbuster_ctx("otel_connector", excluded_modules=["otel_connector.testing"]) as guard:
        for function in guard.functions.values():
            # The one write of a row before `get` returns, which makes the log survive a kill, with what belongs to it:
            # whose turn it is, where the path leads, a new file. In the mode "background" a thread does that
            function.can_block_in("otel_connector/_csv_writer.py", {"write"})
            # What a program asks for by name, and knows to be about the disk
            function.can_block_in("otel_connector/csv_exporter.py", {"__init__", "force_flush", "shutdown"})
        # Measuring the coverage takes a lock of its own
        guard.functions["threading.Lock.acquire"].can_block_in("coverage/collector.py", {"lock_data"})
        # The constructor loads the SDK when it is first given a logfile
        for function in guard.functions.values():
            function.can_block_in("otel_connector/_connector.py", {"_open_exporter"})
        yield guard


@pytest.fixture(autouse=True)
def no_rows_in_hand() -> Iterator[None]:
    """What a test left waiting for a disk that is gone is not tried for ever."""
    yield
    for writer in list(_csv_writer._with_rows_in_hand):
        writer.close()


@pytest.fixture(scope="session")
def tls_server() -> Iterator[FaultServer]:
    with FaultServer(tls=True) as server:
        yield server


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@dataclass
class Log:
    """The log of one test."""

    path: Path

    def cells(self) -> list[list[str]]:
        """All lines as the csv module reads them, the header first."""
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))

    def records(self) -> list[CallRecord]:
        """All rows."""
        return [decode_row(cells) for cells in self.cells()[1:]]

    def only(self) -> CallRecord:
        """The one row there is."""
        (record,) = self.records()
        return record


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "logs.csv")


def free_again(session: aiohttp.ClientSession) -> bool:
    """Whether no connection of the session is in use."""
    return session.connector is not None and not session.connector._acquired


@dataclass
class SDK:
    """A tracer and a meter provider that keep what they get."""

    spans: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    metrics: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)
    tracer_provider: TracerProvider = field(default_factory=lambda: TracerProvider(shutdown_on_exit=False))

    def __post_init__(self) -> None:
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.meter_provider = MeterProvider([self.metrics], shutdown_on_exit=False)

    @property
    def providers(self) -> dict[str, Any]:
        """The arguments that hand both to a connector."""
        return {"tracer_provider": self.tracer_provider, "meter_provider": self.meter_provider}

    def span(self) -> Any:
        """The one span there is, all of whose parts are there."""
        (span,) = self.spans.get_finished_spans()
        return span

    def points(self, name: str) -> list[Any]:
        """The data points of one metric, as they are now."""
        data = self.metrics.get_metrics_data()
        return [] if data is None else points(data, name)


def points(data: MetricsData, name: str) -> list[Any]:
    """Return the data points of the metric called `name`."""
    return [
        point
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    ]


@pytest.fixture
def sdk() -> Iterator[SDK]:
    sdk = SDK()
    yield sdk
    sdk.tracer_provider.shutdown()
    sdk.meter_provider.shutdown()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
