"""Suppressed instrumentation is obeyed, and the connector's own suppression applies to nothing but its requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import aiohttp
import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.instrumentation.aiohttp_client import create_trace_config
from opentelemetry.instrumentation.utils import suppress_http_instrumentation, suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from support.logs import Log
from support.sdk import SDK

from otel_connector import AsyncConnector, RetryPolicy
from otel_connector.testing import FakeClock, FaultServer, json_body, ok, redirect


@contextmanager
def older_key() -> Iterator[None]:
    token = otel_context.attach(otel_context.set_value("suppress_instrumentation", value=True))
    yield
    otel_context.detach(token)


@pytest.mark.parametrize("attempt_spans", [False, True])
@pytest.mark.parametrize("suppress", [suppress_instrumentation, suppress_http_instrumentation, older_key])
async def test_a_suppressed_call_has_a_row_and_nothing_else(
    suppress: Callable[[], AbstractContextManager[None]],
    attempt_spans: bool,
    server: FaultServer,
    session: aiohttp.ClientSession,
    log: Log,
    sdk: SDK,
) -> None:
    server.script("/x", [503, ok])
    connector = AsyncConnector(log.path, clock=FakeClock(), attempt_spans=attempt_spans, **sdk.providers)
    with sdk.tracer_provider.get_tracer("t").start_as_current_span("caller") as caller, suppress():
        assert await connector.get(session, server.url("/x"), "P") == {"ok": True}
        with pytest.raises(aiohttp.ClientError):
            await connector.get(session, server.url("/none"), "P")
    assert [span.name for span in sdk.spans.get_finished_spans()] == ["caller"]
    for name in (
        *("http.client.request.duration", "otel_connector.call.duration", "http.client.active_requests"),
        *("otel_connector.received", "otel_connector.retries", "otel_connector.retry.delay"),
    ):
        assert sdk.points(name) == [], name
    assert not any("traceparent" in request.headers for request in server.requests)
    records = log.records()
    assert [record.success for record in records] == [True, False]
    trace_id = f"{caller.get_span_context().trace_id:032x}"
    assert {record.call_id[:32] for record in records} == {trace_id}
    assert len({record.call_id for record in records}) == 2


class FetchesToken(SpanExporter):
    """An exporter that gets its token by a call of a connector that is traced by the same provider."""

    def __init__(self, url: str) -> None:
        self.url, self.exported = url, list[str]()
        self.connector: AsyncConnector | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        async def token() -> None:
            async with aiohttp.ClientSession() as session:
                assert self.connector is not None
                await self.connector.get(session, self.url, "token")

        asyncio.run(token())
        self.exported += [span.name for span in spans]
        return SpanExportResult.SUCCESS


@pytest.mark.parametrize("processor", [SimpleSpanProcessor, BatchSpanProcessor])
def test_an_exporter_that_fetches_its_token_exports_one_span_for_one_span(
    processor: Callable[[SpanExporter], Any], server: FaultServer, log: Log
) -> None:
    server.script("/token", json_body("secret"))
    exporter, provider = FetchesToken(server.url("/token")), TracerProvider(shutdown_on_exit=False)
    exporter.connector = AsyncConnector(log.path, tracer_provider=provider)
    provider.add_span_processor(processor(exporter))
    provider.get_tracer("t").start_span("one").end()
    assert provider.force_flush()
    provider.shutdown()
    assert (exporter.exported, len(log.records())) == (["one"], 1)


class FetchesTokenInThread(FetchesToken):
    """The same, in a thread that does not have the context of the export. Only for the first two spans."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if len(self.exported) < 2:
            self.exported += [span.name for span in spans]
            with ThreadPoolExecutor() as pool:
                pool.submit(super().export, ()).result()
        return SpanExportResult.SUCCESS


def test_a_token_that_is_fetched_in_a_thread_without_the_context_is_traced(server: FaultServer, log: Log) -> None:
    server.script("/token", json_body("secret"))
    exporter, provider = FetchesTokenInThread(server.url("/token")), TracerProvider(shutdown_on_exit=False)
    exporter.connector = AsyncConnector(log.path, tracer_provider=provider)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer("t").start_span("one").end()
    assert exporter.exported == ["one", "GET"]


# Where application code runs inside a call. Each function makes a call that runs `inner` there


async def in_sink(connector: AsyncConnector, session: Any, url: str, inner: Callable[[], Awaitable[None]]) -> None:
    async for _ in connector.get_many(session, [url], "P", sink=lambda _: inner()):
        pass


async def in_task_of_sink(
    connector: AsyncConnector, session: Any, url: str, inner: Callable[[], Awaitable[None]]
) -> None:
    tasks: list[Any] = []
    async for _ in connector.get_many(session, [url], "P", sink=lambda _: tasks.append(asyncio.ensure_future(inner()))):
        pass
    await asyncio.gather(*tasks)


async def in_decode(connector: AsyncConnector, session: Any, url: str, inner: Callable[[], Awaitable[None]]) -> None:
    tasks: list[Any] = []
    await connector.get(session, url, "P", decode=lambda _: tasks.append(asyncio.ensure_future(inner())))
    await asyncio.gather(*tasks)


async def in_middleware(
    connector: AsyncConnector, session: Any, url: str, inner: Callable[[], Awaitable[None]]
) -> None:
    async def middleware(request: Any, handler: Any) -> Any:
        await inner()
        response = await handler(request)
        await inner()
        return response

    await connector.get(session, url, "P", middlewares=(middleware,))


PLACES = (in_sink, in_task_of_sink, in_decode, in_middleware)


@pytest.mark.parametrize("attempt_spans", [False, True])
@pytest.mark.parametrize("by", ["contrib", "connector"])
@pytest.mark.parametrize("place", PLACES)
async def test_a_request_of_application_code_within_a_call_is_traced(
    place: Any, by: str, attempt_spans: bool, server: FaultServer, sdk: SDK
) -> None:
    server.script("/x", ok)
    server.script("/inner", ok)
    options: dict[str, Any] = {"attempt_spans": attempt_spans, **sdk.providers}
    config = create_trace_config(tracer_provider=sdk.tracer_provider, meter_provider=sdk.meter_provider)
    async with aiohttp.ClientSession(trace_configs=[config]) as session:

        async def inner() -> None:
            if by == "contrib":
                await session.get(server.url("/inner"))
            else:
                await AsyncConnector(None, **sdk.providers).get(session, server.url("/inner"), "inner")

        await place(AsyncConnector(None, **options), session, server.url("/x"), inner)
    spans = sdk.spans.get_finished_spans()
    times = 2 if place is in_middleware else 1
    addresses = [
        str((span.attributes or {}).get("url.full") or (span.attributes or {}).get("http.url")) for span in spans
    ]
    assert sum(address.endswith("/inner") for address in addresses) == times
    assert sum(address.endswith("/x") for address in addresses) == 1
    sent = [request.headers.get("traceparent", "") for request in server.received("/inner")]
    ids = {f"{span.context.span_id:016x}" for span in spans if span.context is not None}
    assert len(sent) == times
    assert {parent.split("-")[2] for parent in sent} <= ids


# Where code runs inside aiohttp's own request. Each function returns the session of the call


def as_session(inner: Callable[[], Awaitable[None]]) -> aiohttp.ClientSession:
    with pytest.warns(DeprecationWarning, match="Inheritance"):

        class Session(aiohttp.ClientSession):
            async def _request(self, *args: Any, **options: Any) -> Any:
                await inner()
                return await super()._request(*args, **options)

    return Session()


def as_trace_config(inner: Callable[[], Awaitable[None]]) -> aiohttp.ClientSession:
    async def on_request_start(*_: object) -> None:
        await inner()

    config = aiohttp.TraceConfig()
    config.on_request_start.append(on_request_start)
    return aiohttp.ClientSession(trace_configs=[config])


def as_resolver(inner: Callable[[], Awaitable[None]]) -> aiohttp.ClientSession:
    class Resolver(aiohttp.ThreadedResolver):
        async def resolve(self, *args: Any, **options: Any) -> Any:
            await inner()
            return await super().resolve(*args, **options)

    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=Resolver()))


def as_connector(inner: Callable[[], Awaitable[None]]) -> aiohttp.ClientSession:
    class Connector(aiohttp.TCPConnector):
        async def connect(self, *args: Any, **options: Any) -> Any:
            await inner()
            return await super().connect(*args, **options)

    return aiohttp.ClientSession(connector=Connector())


@pytest.mark.parametrize("by", ["contrib", "connector"])
@pytest.mark.parametrize("place", [as_session, as_trace_config, as_resolver, as_connector])
async def test_a_request_inside_aiohttps_own_request_is_not_traced(
    place: Callable[[Callable[[], Awaitable[None]]], aiohttp.ClientSession], by: str, server: FaultServer, sdk: SDK
) -> None:
    server.script("/x", ok)
    server.script("/inner", ok)
    config = create_trace_config(tracer_provider=sdk.tracer_provider, meter_provider=sdk.meter_provider)
    async with aiohttp.ClientSession(trace_configs=[config]) as other:

        async def inner() -> None:
            if by == "contrib":
                await other.get(server.url("/inner"))
            else:
                await AsyncConnector(None, **sdk.providers).get(other, server.url("/inner"), "inner")

        async with place(inner) as session:
            url = server.url("/x").replace("127.0.0.1", "localhost")
            await AsyncConnector(None, **sdk.providers).get(session, url, "P")
    assert sdk.span().attributes["url.full"].endswith("/x")
    (request,) = server.received("/inner")
    assert "traceparent" not in request.headers


class Limiter:
    """A limiter that makes a request before it admits an attempt."""

    def __init__(self, inner: Callable[[], Awaitable[None]]) -> None:
        self._inner = inner

    async def __aenter__(self) -> None:
        await self._inner()

    async def __aexit__(self, *_: object) -> None:
        pass


async def test_requests_of_a_limiter_and_of_on_retry_are_traced(server: FaultServer, sdk: SDK) -> None:
    server.script("/x", [503, redirect("/y")])
    server.script("/y", ok)
    server.script("/inner", ok)
    config = create_trace_config(tracer_provider=sdk.tracer_provider, meter_provider=sdk.meter_provider)
    tasks: list[Any] = []
    async with aiohttp.ClientSession(trace_configs=[config]) as session:

        async def inner() -> None:
            await session.get(server.url("/inner"))

        connector = AsyncConnector(
            None,
            rate_limiter=lambda _: Limiter(inner),
            retry=RetryPolicy(backoff=0),
            on_retry=lambda _: tasks.append(asyncio.ensure_future(inner())),
            **sdk.providers,
        )
        await connector.get(session, server.url("/x"), "P")
        await asyncio.gather(*tasks)
    made = [span for span in sdk.spans.get_finished_spans() if span.instrumentation_scope.name != "otel_connector"]  # type: ignore[union-attr]
    assert len(made) == len(server.received("/inner")) >= 3
    assert all("traceparent" in request.headers for request in server.received("/inner"))


async def test_the_request_of_a_call_has_one_span(server: FaultServer, sdk: SDK) -> None:
    """Also after a redirect, and beside a middleware."""
    server.script("/x", redirect("/y"))
    server.script("/y", ok)
    config = create_trace_config(tracer_provider=sdk.tracer_provider, meter_provider=sdk.meter_provider)

    async def middleware(request: Any, handler: Any) -> Any:
        return await handler(request)

    async with aiohttp.ClientSession(trace_configs=[config]) as session:
        await AsyncConnector(None, **sdk.providers).get(session, server.url("/x"), "P", middlewares=(middleware,))
        await AsyncConnector(None, **sdk.providers).get(session, server.url("/x"), "P")
    assert [span.name for span in sdk.spans.get_finished_spans()] == ["GET", "GET"]
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_without_an_sdk_a_call_keeps_the_context_of_its_caller(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", ok)
    seen: list[object] = []
    token = otel_context.attach(baggage.set_baggage("tenant", "a"))
    try:
        await AsyncConnector(log.path).get(
            session, server.url("/x"), "P", decode=lambda _: seen.append(baggage.get_baggage("tenant"))
        )
    finally:
        otel_context.detach(token)
    assert seen == ["a"]
    assert server.requests[0].headers["baggage"] == "tenant=a"
    assert log.only().success
