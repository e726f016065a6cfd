"""The metrics belong to the meter provider that is in force, and to the process that counts."""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from opentelemetry import metrics
from opentelemetry.metrics import _internal as api
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.util._once import Once
from support import forked
from support.logs import Log
from support.samples import combinations
from support.sdk import points

from otel_connector import AsyncConnector, Attempt
from otel_connector._guard import TelemetryGuard
from otel_connector._telemetry import _metrics, _names
from otel_connector.testing import FakeClock, FaultServer, json_body, retry_after, silent

# Those of a call without `attempt_spans` and without a wait
ALL = {metric.name for metric in _names.METRICS} - {"otel_connector.call.duration", "otel_connector.queue.time"}


@pytest.fixture(autouse=True)
def without_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset the global meter provider, as the tests of applications do (``opentelemetry-test-utils``)."""
    monkeypatch.setattr(api, "_METER_PROVIDER", None)
    monkeypatch.setattr(api, "_METER_PROVIDER_SET_ONCE", Once())


def provider_with_reader(**options: Any) -> tuple[MeterProvider, InMemoryMetricReader]:
    reader = InMemoryMetricReader(**options)
    return MeterProvider([reader], shutdown_on_exit=False), reader


def totals(reader: InMemoryMetricReader) -> dict[str, Any]:
    """Return the sum of each metric of ours; of a histogram the number of values."""
    data = reader.get_metrics_data()
    found = {} if data is None else {name: points(data, name) for name in ALL}
    return {
        name: sum(point.value if hasattr(point, "value") else point.count for point in values)
        for name, values in found.items()
        if values
    }


@pytest.mark.parametrize("given", [False, True], ids=["global", "passed to the connector"])
async def test_every_provider_that_is_set_gets_all_metrics(
    given: bool, server: FaultServer, session: aiohttp.ClientSession, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        monkeypatch.setattr(api, "_METER_PROVIDER", None)
        monkeypatch.setattr(api, "_METER_PROVIDER_SET_ONCE", Once())
        provider, reader = provider_with_reader()
        metrics.set_meter_provider(provider)
        server.script("/x", [503, json_body({})])
        options = {"meter_provider": provider} if given else {}
        connector = AsyncConnector(log.path, clock=FakeClock(), **options)  # type: ignore[arg-type]
        await connector.get(session, server.url("/x"), "P")
        found = totals(reader)
        assert set(found) == ALL
        assert [found[name] for name in ("http.client.request.duration", "otel_connector.retries")] == [1, 1]
        assert (found["otel_connector.rows.written"], found["otel_connector.received"]) == (1, 2)


@pytest.mark.parametrize("public", [False, True], ids=["the API's private name", "without it"])
async def test_a_connector_reports_to_the_provider_that_is_in_force(
    public: bool, server: FaultServer, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each provider has all values of the calls that start while it is set, and none of others."""
    if public:
        monkeypatch.setattr(_metrics, "_api", object())
    server.script("/x", json_body({}))
    connector = AsyncConnector(None)
    await connector.get(session, server.url("/x"), "P")
    readers = []
    for _ in range(2):
        monkeypatch.setattr(api, "_METER_PROVIDER", None)
        monkeypatch.setattr(api, "_METER_PROVIDER_SET_ONCE", Once())
        provider, reader = provider_with_reader()
        readers.append(reader)
        metrics.set_meter_provider(provider)
        await connector.get(session, server.url("/x"), "P")
        await connector.get(session, server.url("/x"), "P")
    received, values = "otel_connector.received", "http.client.request.duration"
    assert [(totals(reader)[received], totals(reader)[values]) for reader in readers] == [(2 * 2, 2), (2 * 2, 2)]
    assert [totals(reader).get("http.client.active_requests", 0) for reader in readers] == [0, 0]


async def test_a_call_in_flight_when_the_provider_changes_is_active_nowhere_afterwards(
    server: FaultServer, session: aiohttp.ClientSession
) -> None:
    (first, first_reader), (second, second_reader) = provider_with_reader(), provider_with_reader()
    connector = AsyncConnector(None, meter_provider=first)

    async def sink(_: Any) -> None:
        assert totals(first_reader)["http.client.active_requests"] == 1
        connector._settings.telemetry._use(second)

    server.script("/x", json_body({}))
    async for outcome in connector.get_many(session, [server.url("/x")], "P", sink=sink):
        assert outcome.error is None
    assert totals(first_reader).get("http.client.active_requests", 0) == 0
    assert totals(second_reader).get("http.client.active_requests", 0) == 0


@pytest.mark.parametrize("attempt_spans", [False, True])
async def test_the_provider_with_which_a_call_has_started_has_all_its_values(
    attempt_spans: bool, server: FaultServer, session: aiohttp.ClientSession
) -> None:
    (first, first_reader), (second, second_reader) = provider_with_reader(), provider_with_reader()
    server.script("/x", [503, json_body({})])

    def change(_: Attempt) -> None:
        connector._settings.telemetry._use(second)

    connector = AsyncConnector(
        None, meter_provider=first, clock=FakeClock(), on_retry=change, attempt_spans=attempt_spans
    )
    await connector.get(session, server.url("/x"), "P")
    found = totals(first_reader)
    assert (found["otel_connector.received"], found["otel_connector.retries"]) == (2, 1)
    assert found["otel_connector.retry.delay"] > 0
    assert found["http.client.request.duration"] == 1 + attempt_spans
    assert {name: value for name, value in totals(second_reader).items() if value} == {}
    assert totals(first_reader) == found


async def test_a_provider_that_is_passed_in_and_then_made_global_counts_both_connectors(
    server: FaultServer, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    provider, reader = provider_with_reader()
    first = AsyncConnector(tmp_path / "first.csv", meter_provider=provider)
    metrics.set_meter_provider(provider)
    second = AsyncConnector(tmp_path / "second.csv")
    server.script("/x", json_body({}))
    for connector in (first, second, second):
        await connector.get(session, server.url("/x"), "P")
    found = totals(reader)
    assert (found["otel_connector.rows.written"], found["otel_connector.received"]) == (3, 6)
    assert found["http.client.request.duration"] == 3


class Facade(metrics.MeterProvider):
    """Passes on to the provider of an SDK, as a wrapper of an application does."""

    def __init__(self, provider: metrics.MeterProvider) -> None:
        self.provider = provider

    def get_meter(self, *args: Any, **options: Any) -> metrics.Meter:
        return self.provider.get_meter(*args, **options)


class Plain:
    """The same, without weak references and without a hash."""

    __slots__ = ("provider",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, provider: metrics.MeterProvider) -> None:
        self.provider = provider

    def get_meter(self, *args: Any, **options: Any) -> Any:
        return self.provider.get_meter(*args, **options)


class OwnMeters(Facade):
    """The same, with a new meter each time, which has the instruments of the SDK."""

    def get_meter(self, *args: Any, **options: Any) -> Any:
        meter = super().get_meter(*args, **options)
        names = [name for name in dir(meter) if name.startswith("create_")]
        return SimpleNamespace(**{name: getattr(meter, name) for name in names})


class OwnInstruments(Facade):
    """The same, with new instruments each time, as Logfire's provider makes them."""

    def get_meter(self, *args: Any, **options: Any) -> Any:
        meter = super().get_meter(*args, **options)

        def create_histogram(*args: Any, **options: Any) -> Any:
            return SimpleNamespace(record=meter.create_histogram(*args, **options).record)

        observable = ("create_observable_counter", "create_observable_up_down_counter")
        return SimpleNamespace(create_histogram=create_histogram, **{name: getattr(meter, name) for name in observable})


WAYS: dict[str, list[Callable[[MeterProvider], Any]]] = {
    "the API's proxy and the global": [lambda _: metrics.get_meter_provider(), lambda _: None],
    "the API's proxy and the SDK's": [lambda _: metrics.get_meter_provider(), lambda sdk: sdk],
    "the API's proxy twice": [lambda _: metrics.get_meter_provider()] * 2,
    "a wrapper and the global": [Facade, lambda _: None],
    "the SDK's and a wrapper": [lambda sdk: sdk, Facade],
    "two wrappers": [Facade, Facade],
    "a wrapper of a wrapper": [Facade, lambda sdk: Facade(Facade(sdk))],
    "a wrapper without weak references": [Plain, Plain],
    "wrapped meters": [OwnMeters, lambda sdk: sdk],
}


@pytest.mark.parametrize("public", [False, True], ids=["the API's private name", "without it"])
@pytest.mark.parametrize("ways", WAYS.values(), ids=WAYS)
async def test_connectors_whose_providers_are_of_one_sdk_are_counted_together(
    ways: list[Callable[[MeterProvider], Any]],
    public: bool,
    server: FaultServer,
    session: aiohttp.ClientSession,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if public:
        monkeypatch.setattr(_metrics, "_api", object())
    provider, reader = provider_with_reader()
    server.script("/x", json_body({}))
    connectors = []
    for number, way in enumerate(ways):
        connectors.append(AsyncConnector(tmp_path / f"{number}.csv", meter_provider=way(provider)))
        if not number:
            metrics.set_meter_provider(provider)
    for number in (0, 1, 0):
        await connectors[number].get(session, server.url("/x"), "P")
    connectors.clear()
    gc.collect()
    found = totals(reader)
    assert (found["otel_connector.rows.written"], found["otel_connector.received"]) == (3, 6)
    assert (found["http.client.request.duration"], found.get("http.client.active_requests", 0)) == (3, 0)
    assert caplog.text == ""


async def test_connectors_with_one_wrapper_that_makes_its_own_instruments_are_counted_together(
    server: FaultServer, session: aiohttp.ClientSession
) -> None:
    provider, reader = provider_with_reader()
    server.script("/x", json_body({}))
    wrapper = OwnInstruments(provider)
    for _ in range(2):
        await AsyncConnector(None, meter_provider=wrapper).get(session, server.url("/x"), "P")
    assert totals(reader)["otel_connector.received"] == 4


def test_the_instruments_of_a_provider_that_is_gone_are_collected() -> None:
    sdk, _ = provider_with_reader()
    providers: list[Any] = [sdk, Facade(sdk), Plain(sdk), OwnInstruments(sdk)]
    guard, ids = TelemetryGuard(time.monotonic_ns), set(map(id, providers))
    instruments = [weakref.ref(_metrics.instruments_of(provider, guard)) for provider in providers]
    gc.collect()
    assert None not in [reference() for reference in instruments], "the SDK has their callbacks"
    del sdk, providers, _
    gc.collect()
    assert [reference() for reference in instruments] == [None] * 4
    assert not ids & set(_metrics._registry._by_provider)


async def test_a_second_copy_of_the_module_reports_through_the_same_instruments(
    server: FaultServer, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, reader = provider_with_reader()
    server.script("/x", json_body({}))
    first = AsyncConnector(None, meter_provider=provider)
    spec = importlib.util.find_spec(_metrics.__name__)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "copy_of_metrics", copy)
    spec.loader.exec_module(copy)
    monkeypatch.setattr("otel_connector._telemetry._spans.instruments_of", copy.instruments_of)
    second = AsyncConnector(None, meter_provider=provider)
    await first.get(session, server.url("/x"), "P")
    await second.get(session, server.url("/x"), "P")
    assert totals(reader)["otel_connector.received"] == 4


# What a process reports, as JSON. The parent makes 3 calls, and a fourth is in flight when it forks.
PROGRAM = """
import asyncio, gc, json, multiprocessing, os, sys, tempfile
from pathlib import Path
import aiohttp
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from otel_connector import AsyncConnector, CSVSpanExporter

how, what, mode, url = sys.argv[1:5]
reader = InMemoryMetricReader()

def report():
    found, stats = {}, None
    data = reader.get_metrics_data()
    for metric in data.resource_metrics[0].scope_metrics[0].metrics if data and data.resource_metrics else ():
        if not hasattr(metric.data.data_points[0], "count"):  # an SDK's own histogram
            found[metric.name.removeprefix("otel_connector.")] = sum(point.value for point in metric.data.data_points)
    if connector is not None:
        stats = connector.stats()
        stats = [stats.calls_started, stats.calls_active, stats.retries, stats.bytes_received, stats.rows_written]
    return [stats, found]

async def calls(number):
    async with aiohttp.ClientSession() as session:
        for _ in range(number):
            await connector.get(session, url + "/x", "P")

def child():
    global connector
    if what == "drops the connector":
        connector = None
        gc.collect()
    elif what == "makes 2 calls":
        asyncio.run(calls(2))
    path = Path(tempfile.mkdtemp(dir=".")) / "report"
    path.write_text(json.dumps(report()))
    path.rename("child.json")

async def main():
    global connector
    metrics.set_meter_provider(MeterProvider([reader], shutdown_on_exit=False))
    connector = AsyncConnector(CSVSpanExporter("logs.csv", mode=mode))
    await calls(3)
    if what == "has a dropped connector":
        dropped, connector = connector, AsyncConnector(None)
        del dropped
        gc.collect()
    async with aiohttp.ClientSession() as session:
        in_flight = asyncio.ensure_future(connector.get(session, url + "/held", "P"))
        while not connector.stats().calls_active:
            await asyncio.sleep(0)
        report()  # the SDK collects in the parent
        if how == "os.fork":
            sys.stdout.flush()
            if not (pid := os.fork()):
                asyncio.events._set_running_loop(None)
                child()
                os._exit(0)
            os.waitpid(pid, 0)
        else:
            def target():
                asyncio.events._set_running_loop(None)
                child()
            process = multiprocessing.get_context("fork").Process(target=target)
            process.start()
            process.join()
        in_flight.cancel()
        await asyncio.wait([in_flight])
    print(json.dumps(report()))

connector = None
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("what", "how", "mode"),
    combinations(
        ["makes no call", "makes 2 calls", "drops the connector", "has a dropped connector"],
        ["os.fork", "multiprocessing"],
        ["call", "background"],
    ),
)
def test_a_forked_child_counts_from_zero(how: str, what: str, mode: str, server: FaultServer, tmp_path: Path) -> None:
    server.script("/x", json_body({}))
    server.script("/held", silent)
    done = forked.run_python(["-W", "ignore", "-c", PROGRAM, how, what, mode, server.url("/")[:-1]], tmp_path)
    assert done.returncode == 0, done.stderr
    stats, found = json.loads((tmp_path / "child.json").read_text())
    if what == "makes 2 calls":
        assert stats[:4] == [2, 0, 0, 4]
        assert (found["received"], found["http.client.active_requests"]) == (4, 0)
        assert found["rows.written"] + found["rows.waiting"] == 2
    else:
        assert stats in ([0] * 5, None)
        assert found == {}
    stats, found = json.loads(done.stdout)
    if what != "has a dropped connector":
        assert stats[:4] == [4, 0, 0, 6]
    assert (found["received"], found["http.client.active_requests"]) == (6, 0)
    assert found["rows.written"] + found["rows.waiting"] == (3 if what == "has a dropped connector" else 4)
    assert found["rows.lost"] == 0


IN_DECODE = """
import asyncio, json, os, sys, threading
import aiohttp
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from otel_connector import AsyncConnector

attempt_spans, url = sys.argv[1] == "True", sys.argv[2]
connector, reader = AsyncConnector(None, attempt_spans=attempt_spans), InMemoryMetricReader()
is_child = False

async def get(project, decode=bytes):
    async with aiohttp.ClientSession() as session:
        await connector.get(session, url, project, decode=decode)

def fork(body):
    global is_child
    if pid := os.fork():
        os.waitpid(pid, 0)
        return body
    is_child = True
    metrics.set_meter_provider(MeterProvider([reader], shutdown_on_exit=False))
    thread = threading.Thread(target=lambda: asyncio.run(get("child")))
    thread.start()
    thread.join()
    return body

asyncio.run(get("parent", fork))
if is_child:
    found = [
        (metric.name, point.attributes.get("otel_connector.project"), getattr(point, "count", None))
        for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
        for point in metric.data.data_points
        if "duration" in metric.name or "received" in metric.name
    ]
    with open("child.json", "w") as file:
        json.dump(sorted(found), file)
    os._exit(0)
"""


@pytest.mark.parametrize("attempt_spans", [False, True])
def test_a_call_that_was_in_flight_at_a_fork_is_not_measured_in_the_child(
    attempt_spans: bool, server: FaultServer, tmp_path: Path
) -> None:
    server.script("/x", json_body({}))
    arguments = ["-W", "ignore", "-c", IN_DECODE, str(attempt_spans), server.url("/x")]
    done = forked.run_python(arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    names = ["http.client.request.duration", *(["otel_connector.call.duration"] if attempt_spans else [])]
    expected = [[name, "child", 1] for name in names] + [["otel_connector.received", "child", None]]
    assert json.loads((tmp_path / "child.json").read_text()) == expected


FORKS = """
import asyncio, json, os, sys
import aiohttp
from otel_connector import AsyncConnector

what, url = sys.argv[1:3]

async def main():
    if what == "after a pause":
        connector = AsyncConnector("logs.csv", n_tries=1)
        decode = json.loads
    else:
        connector = AsyncConnector("logs.csv")
        decode = lambda body: os.fork()
    async with aiohttp.ClientSession() as session:
        value = await connector.get(session, url, "P", decode=decode, default=None)
    pid = os.fork() if value is None else value
    stats = connector.stats()
    shown = [stats.calls_started, stats.calls_active, stats.calls_failed, stats.rows_written, len(stats.hosts_paused)]
    if not pid:
        with open("child.json", "w") as file:
            json.dump(shown, file)
        os._exit(0)
    os.waitpid(pid, 0)
    print(json.dumps(shown))

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("what", "parent", "child"),
    [("after a pause", [1, 0, 1, 1, 1], [0, 0, 0, 0, 1]), ("in decode", [1, 0, 0, 1, 0], [0, 0, 0, 1, 0])],
)
def test_what_a_child_takes_over(
    what: str, parent: list[int], child: list[int], server: FaultServer, tmp_path: Path
) -> None:
    """The pause of a host still applies. A call that ends in both processes has a row of each; the parent counts it."""
    server.script("/x", retry_after(60) if what == "after a pause" else json_body({}))
    done = forked.run_python(["-W", "ignore", "-c", FORKS, what, server.url("/x")], tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == parent
    assert json.loads((tmp_path / "child.json").read_text()) == child
    rows = Log(tmp_path / "logs.csv").records()
    assert len(rows) == parent[3] + child[3]
    assert len({row.call_id for row in rows}) == 1
