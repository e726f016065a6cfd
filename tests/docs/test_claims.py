"""Tests of sentences in the pages that no other test checks: each names the page, and what is measured."""

from __future__ import annotations

import asyncio
import gzip
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from support import demo_picture
from support.documents import DOCS, README, block_starting
from support.sdk import SDK
from yarl import URL

from otel_connector import DEFAULT_REDACTED_PARAMS, AsyncConnector, DecodeFailed, HTTPStatusError, RetryPolicy
from otel_connector._csv._done import CompletedUrls
from otel_connector._distinct_urls import DistinctUrls
from otel_connector._redact import Redactor
from otel_connector.cli._demo_command import _JAEGER
from otel_connector.testing import Connection, FaultServer, Step, disconnect, ok, redirect, respond


def test_the_page_about_secrets_names_each_parameter_and_no_other() -> None:
    page = (DOCS / "guides" / "secrets.md").read_text(encoding="utf-8")
    listed = page.partition("Secret parameters are:\n")[2].partition("\n\nNames are compared")[0]
    assert set(re.findall(r"`([^`]+)`", listed)) == DEFAULT_REDACTED_PARAMS


@pytest.mark.parametrize(
    "steps", [[ok, disconnect, 500], [disconnect, 500]], ids=["reused connection", "new connection"]
)
async def test_the_second_request_of_aiohttp_is_not_a_retry(steps: list[Step | int]) -> None:
    """`guides/retries.md`: `n_tries` does not limit it, `.attempts` counts it, and `stats().retries` does not."""
    async with FaultServer() as server, aiohttp.ClientSession() as session:
        server.script("/x", steps)
        connector = AsyncConnector(None, n_tries=1)
        if steps[0] is ok:
            await connector.get(session, server.url("/x"), "Test")
        with pytest.raises(HTTPStatusError) as raised:
            await connector.get(session, server.url("/x"), "Test")
        assert len(server.received("/x")) == len(steps)
    assert (raised.value.attempts, connector.stats().retries) == (2, 0)


ERROR_BODIES = {
    "short": (respond(404, body=bytes(60_000)), 60_000, 60_000),
    "long, with what arrived together with the last bytes": (respond(404, body=bytes(3_000_000)), 65_537, 400_000),
    "gzip": (respond(404, body=gzip.compress(bytes(30_000)), headers={"Content-Encoding": "gzip"}), 30_000, 30_000),
    "several codings": (
        respond(404, body=gzip.compress(gzip.compress(b"")), headers={"Content-Encoding": "gzip, gzip"}),
        len(gzip.compress(gzip.compress(b""))),
        len(gzip.compress(gzip.compress(b""))),
    ),
}


@pytest.mark.parametrize(("step", "least", "most"), ERROR_BODIES.values(), ids=ERROR_BODIES)
async def test_the_size_of_the_body_of_an_error(step: Step, least: int, most: int) -> None:
    """`guides/log.md`: it is read until more than 64 KiB have arrived, and `response_size` counts all of that."""
    async with FaultServer() as server, aiohttp.ClientSession() as session:
        server.script("/x", step)
        connector = AsyncConnector(None, n_tries=1)
        with pytest.raises(HTTPStatusError):
            await connector.get(session, server.url("/x"), "Test")
    assert least <= connector.stats().bytes_received <= most


async def test_three_kinds_of_calls_have_no_row(tmp_path: Path) -> None:
    """`guides/log.md`; every other call has one, also with a rejected argument."""
    log = tmp_path / "logs.csv"
    async with aiohttp.ClientSession() as session:
        connector = AsyncConnector(log)
        with pytest.raises(TypeError):
            await connector.get(session, "http://127.0.0.1:1/", "Test", no_such_option=1)
        rows = log.read_text(encoding="utf-8").splitlines()
        assert len(rows) == 2
        task = asyncio.create_task(connector.get(session, "http://127.0.0.1:1/", "Test"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TypeError, match="missing"):
            await connector.get(session, "http://127.0.0.1:1/")  # type: ignore[call-arg]
        await connector.aclose()
        with pytest.raises(RuntimeError, match=r"^the connector is closed$"):
            await connector.get(session, "http://127.0.0.1:1/", "Test")
    assert log.read_text(encoding="utf-8").splitlines() == rows


def test_the_reference_lists_the_retried_statuses() -> None:
    (statuses,) = re.findall(r"statuses: HTTP statuses .* Default: ([\d, and]+)\.", RetryPolicy.__doc__ or "")
    assert {int(status) for status in re.findall(r"\d+", statuses)} == RetryPolicy().statuses


EMPTY = {"empty": respond(200, body=b""), "a redirect that is not followed": redirect("/y")}


@pytest.mark.parametrize("step", EMPTY.values(), ids=EMPTY)
async def test_an_empty_response_is_an_error_for_json_and_empty_bytes(step: Step) -> None:
    """`guides/requests.md`."""
    async with FaultServer() as server, aiohttp.ClientSession() as session:
        server.script("/x", step)
        connector, url = AsyncConnector(None, n_tries=1), server.url("/x")
        with pytest.raises(DecodeFailed):
            await connector.get(session, url, "Test", allow_redirects=False)
        assert await connector.get(session, url, "Test", allow_redirects=False, decode=bytes) == b""


async def test_a_response_of_http_1_0_is_a_success() -> None:
    """`http.md`."""

    async def old(connection: Connection) -> None:
        await connection.send(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        connection.close()

    async with FaultServer() as server, aiohttp.ClientSession() as session:
        server.script("/x", old)
        assert await AsyncConnector(None, n_tries=1).get(session, server.url("/x"), "Test") == {}


def bytes_for_each(urls: list[str], make: Callable[[], tuple[Any, Callable[[str], None]]]) -> float:
    """Return the memory that is kept after the second function that `make` returns was called with each URL."""
    tracemalloc.start()
    kept, add = make()
    before = tracemalloc.get_traced_memory()[0]
    for url in urls:
        add(url)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return (after - before) / len(urls)


def test_the_memory_of_a_completed_url() -> None:
    """`guides/many-urls.md` and the README: about 70 bytes. The set doubles at times, which gives 64 to 78."""

    def make() -> tuple[CompletedUrls, Callable[[str], None]]:
        completed = CompletedUrls()
        return completed, lambda url: completed.add(url.encode())

    assert 60 < bytes_for_each([f"https://api.example.com/data?page={n}" for n in range(70_000)], make) < 80


def test_the_memory_of_a_url_with_a_secret() -> None:
    """`guides/many-urls.md`: up to 170 bytes more."""

    def make() -> tuple[DistinctUrls, Callable[[str], None]]:
        distinct = DistinctUrls(Redactor(DEFAULT_REDACTED_PARAMS), URL)
        return distinct, distinct.check

    assert 80 < bytes_for_each([f"https://api.example.com/data?page={n}&token={n}" for n in range(3_000)], make) < 170


def test_the_demo_fails_a_quarter_of_its_calls() -> None:
    """The README says so; `test_every_kind_of_outcome_is_in_the_log` checks the log itself."""
    assert "a quarter failed on" in README.read_text(encoding="utf-8")
    text = demo_picture.shown(demo_picture.PICTURE.read_text(encoding="utf-8"))
    calls = [tuple(map(int, row)) for row in re.findall(r"(?:Prices|Weather) +(\d+) +(\d+) +(\d+)", text)]
    assert [round(failed / total, 2) for total, _, failed in calls] == [0.25, 0.25]


def test_the_picture_of_the_demo_shows_what_it_prints() -> None:
    """After a change of the demo: `python -m support.demo_picture` in `tests`."""
    picture = demo_picture.PICTURE.read_text(encoding="utf-8")
    assert "url(http" not in picture.replace('"', "")  # nothing is loaded
    text = demo_picture.shown(picture)
    assert _JAEGER in text
    assert re.search(r"must be an absolute http or https URL with a host: http//127\.0\.0\.1", text)
    assert "300 calls started, 300 rows written" in text


async def test_the_boundaries_of_durations_and_the_view_that_changes_them(server: FaultServer, sdk: SDK) -> None:
    """`opentelemetry/backends.md`, "How long may a duration be?"."""
    page = (DOCS / "opentelemetry" / "backends.md").read_text(encoding="utf-8")
    listed = page.partition("have the boundaries ")[2].partition(", because a call")[0]
    example: dict[str, Any] = {}
    exec(block_starting("python", "from opentelemetry.sdk.metrics import MeterProvider"), example)
    reader, server_url = InMemoryMetricReader(), server.url("/data")
    provider = MeterProvider([reader], views=example["views"], shutdown_on_exit=False)
    server.script("/data", ok)
    async with aiohttp.ClientSession() as session:
        for each in (sdk.meter_provider, provider):
            connector = AsyncConnector(None, meter_provider=each, attempt_spans=True)
            await connector.get(session, server_url, "Test")
    data = reader.get_metrics_data()
    assert data is not None
    for name in ("http.client.request.duration", "otel_connector.call.duration"):
        (usual,) = sdk.points(name)
        (changed,) = (
            cast("HistogramDataPoint", point)
            for metric in data.resource_metrics[0].scope_metrics[0].metrics
            if metric.name == name
            for point in metric.data.data_points
        )
        assert [f"{bound:g}" for bound in usual.explicit_bounds] == re.findall(r"[\d.]*\d", listed)
        assert list(changed.explicit_bounds) == example["boundaries"]
    provider.shutdown()
