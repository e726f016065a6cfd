"""`template=` of a call: the name of its span, `url.template`, and a label of its metrics that is limited in number.

Source: OpenTelemetry semantic conventions 1.44, "HTTP spans", "Name" (`{method} {target}`) and `url.template`.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any

import aiohttp
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from support.logs import Log
from support.sdk import SDK

from otel_connector import AsyncConnector, Chunk, ConnectorError, fetch_chunk
from otel_connector._telemetry._metrics import OTHER, TEMPLATE_LIMIT
from otel_connector.testing import FakeClock, FaultServer, json_body, ok

ITEMS = "/items/{id}"
DURATION, CALL_DURATION = "http.client.request.duration", "otel_connector.call.duration"


def labels(sdk: SDK, metric: str = DURATION) -> list[object]:
    """Return the label of each point of a metric, None for none."""
    return [point.attributes.get("url.template") for point in sdk.points(metric)]


def names_and_templates(sdk: SDK) -> list[tuple[str, object]]:
    return [(span.name, (span.attributes or {}).get("url.template")) for span in sdk.spans.get_finished_spans()]


async def test_the_span_the_attribute_and_the_label(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    """Two URLs with one template; the same URL without one keeps the short name. No row and no counter has it."""
    server.script("/items/1", [503, ok])
    server.script("/items/2", 404)
    connector = AsyncConnector(log.path, clock=FakeClock(), **sdk.providers)
    await connector.get(session, server.url("/items/1"), "P", template=ITEMS)
    await connector.get(session, server.url("/items/2"), "P", template=ITEMS, default=None)
    await connector.get(session, server.url("/items/1"), "P")
    assert names_and_templates(sdk) == [(f"GET {ITEMS}", ITEMS), (f"GET {ITEMS}", ITEMS), ("GET", None)]
    assert labels(sdk) == [ITEMS, ITEMS, None]
    for name in ("otel_connector.retries", "otel_connector.received", "http.client.active_requests"):
        assert labels(sdk, name) == [None], name
    assert ITEMS not in log.path.read_text(encoding="utf-8")
    assert [record.success for record in log.records()] == [True, False, True]


async def test_one_template_for_all_urls_of_a_get_many(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/items/1", ok)
    server.script("/items/2", 404)
    urls = [server.url("/items/1"), server.url("/items/2")]
    connector = AsyncConnector(None, **sdk.providers)
    outcomes = [outcome async for outcome in connector.get_many(session, urls, "P", template=ITEMS)]
    assert len(outcomes) == 2
    assert names_and_templates(sdk) == [(f"GET {ITEMS}", ITEMS)] * 2
    assert labels(sdk) == [ITEMS, ITEMS]


def test_the_options_of_a_chunk_may_have_a_template(server: FaultServer, log: Log) -> None:
    server.script("/items/1", ok)
    options: dict[str, Any] = {"template": ITEMS}
    chunk = Chunk(project="P", urls=(server.url("/items/1"),), log=str(log.path), options=options)
    assert asyncio.run(fetch_chunk(chunk)).succeeded == 1


async def test_attempt_spans_have_the_name_and_both_histograms_the_label(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/items/1", [503, ok])
    connector = AsyncConnector(None, clock=FakeClock(), attempt_spans=True, **sdk.providers)
    await connector.get(session, server.url("/items/1"), "P", template=ITEMS)
    assert names_and_templates(sdk) == [(f"GET {ITEMS}", ITEMS)] * 2 + [("otel_connector.get", ITEMS)]
    assert labels(sdk) == [ITEMS, ITEMS]
    assert labels(sdk, CALL_DURATION) == [ITEMS]


class Remembering(Sampler):
    """Keeps the name and the attributes that it is asked about."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, object]] = []

    def should_sample(self, *arguments: Any, **_: Any) -> SamplingResult:
        self.seen.append((arguments[2], arguments[4].get("url.template")))
        return SamplingResult(Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "remembering"


@pytest.mark.parametrize("attempt_spans", [False, True])
async def test_a_sampler_sees_the_template_at_the_start(
    attempt_spans: bool, server: FaultServer, session: aiohttp.ClientSession
) -> None:
    server.script("/items/1", ok)
    sampler = Remembering()
    provider = TracerProvider(sampler, shutdown_on_exit=False)
    connector = AsyncConnector(None, tracer_provider=provider, attempt_spans=attempt_spans)
    await connector.get(session, server.url("/items/1"), "P", template=ITEMS)
    call: list[tuple[str, object]] = [("otel_connector.get", ITEMS)] if attempt_spans else []
    assert sampler.seen == [*call, (f"GET {ITEMS}", ITEMS)]


async def test_the_number_of_templates_as_labels_is_limited(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/x", ok)
    connector = AsyncConnector(None, **sdk.providers)
    templates = [f"/{number}/{{id}}" for number in range(TEMPLATE_LIMIT + 3)]
    for template in [*templates, templates[0]]:
        await connector.get(session, server.url("/x"), "P", template=template)
    counts = {point.attributes["url.template"]: point.count for point in sdk.points(DURATION)}
    assert counts == {templates[0]: 2, **dict.fromkeys(templates[1:TEMPLATE_LIMIT], 1), OTHER: 3}
    assert names_and_templates(sdk)[-2] == (f"GET {templates[-1]}", templates[-1]), "spans need no limit"


WRONG: list[tuple[object, type[Exception], str]] = [
    (1, TypeError, "template must be a str, not int"),
    (b"/items", TypeError, "template must be a str, not bytes"),
    ("", ValueError, "template must not be empty"),
    (" \n", ValueError, "template must not be empty"),
    ("/" * 1_025, ValueError, "template must have at most 1,024 characters, not 1,025"),
]


@pytest.mark.parametrize(("template", "kind", "message"), WRONG, ids=repr)
async def test_a_wrong_template_is_named_before_anything_is_sent(
    template: Any,
    kind: type[Exception],
    message: str,
    server: FaultServer,
    session: aiohttp.ClientSession,
    log: Log,
    sdk: SDK,
) -> None:
    """An error of an argument of `get` has a row, as any other; `get_many` raises before its first call."""
    server.script("/x", ok)
    connector = AsyncConnector(log.path, **sdk.providers)
    with pytest.raises(kind, match=f"^{message}$"):
        connector.get_many(session, [server.url("/x")], "P", template=template)
    with pytest.raises(kind, match=f"^{message}$"):
        await connector.get(session, server.url("/x"), "P", template=template)
    assert server.requests == []
    assert log.only().error == f"{kind.__name__}: {message}"
    assert names_and_templates(sdk) == [("GET", None)]
    assert labels(sdk) == [None]


class Route(str, Enum):
    ITEMS = ITEMS


TEXTS = [
    (Route.ITEMS, ITEMS),
    ("/" * 1_024, "/" * 1_024),
    ("/a\nb\ud800", r"/a\nb\ud800"),
    ("/login?token=s3cret", "/login?token=REDACTED"),
    ("/Items(id={id});v={v}/{user}@{domain}", "/Items(id={id});v={v}/{user}@{domain}"),
]


@pytest.mark.parametrize(("template", "shown"), TEXTS, ids=range(len(TEXTS)))
async def test_a_template_is_one_line_without_secrets(
    template: str, shown: str, server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    """As every text of a call; and the value is exactly a str, which the exporters require."""
    server.script("/x", ok)
    await AsyncConnector(None, **sdk.providers).get(session, server.url("/x"), "P", template=template)
    assert names_and_templates(sdk) == [(f"GET {shown}", shown)]
    assert labels(sdk) == [shown]
    assert type(sdk.span().attributes["url.template"]) is str


async def test_a_call_whose_url_is_wrong_has_its_template(
    session: aiohttp.ClientSession, sdk: SDK, server: FaultServer
) -> None:
    server.script("/x", json_body({}))
    with pytest.raises(ConnectorError):
        await AsyncConnector(None, **sdk.providers).get(session, "ftp://h/", "P", template=ITEMS)
    assert names_and_templates(sdk) == [(f"GET {ITEMS}", ITEMS)]
    assert labels(sdk) == [ITEMS]


class Broken(Sampler):
    """Raises an exception, or one that ends the program."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        raise self._error

    def get_description(self) -> str:
        return "broken"


@pytest.mark.parametrize("error", [RuntimeError("boom"), SystemExit(1)], ids=repr)
async def test_a_call_without_a_span_has_the_label(
    error: BaseException, server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/x", ok)
    provider = TracerProvider(Broken(error), shutdown_on_exit=False)
    connector = AsyncConnector(None, tracer_provider=provider, meter_provider=sdk.meter_provider)
    try:
        await connector.get(session, server.url("/x"), "P", template=ITEMS)
    except SystemExit:
        assert isinstance(error, SystemExit)
    assert labels(sdk) == [ITEMS]
