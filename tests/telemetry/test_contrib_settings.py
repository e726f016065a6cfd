"""Environment variables of opentelemetry-python-contrib's aiohttp instrumentation apply to the connector's spans.

Each request is made twice in the same process: by aiohttp with contrib's instrumentation, and by a connector. What
contrib shows is the right value. The cases whose names start with "contrib" have the values of contrib's own tests
(0.66b1, ``test_aiohttp_client_integration.py``).
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import aiohttp
import pytest
from multidict import CIMultiDict
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.utils import suppress_http_instrumentation, suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.util import http
from support.forked import run_python
from support.logs import Log
from support.sdk import SDK, points
from yarl import URL

from otel_connector import AsyncConnector, ConnectorError
from otel_connector.testing import Connection, FakeClock, FaultServer, ok, redirect, reset, respond, truncated

REQUEST = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_REQUEST"
RESPONSE = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_RESPONSE"
SANITIZE = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS"
EXCLUDED = "OTEL_PYTHON_AIOHTTP_CLIENT_EXCLUDED_URLS"
EXCLUDED_BY_ALL = "OTEL_PYTHON_EXCLUDED_URLS"
HELPERS = "opentelemetry.util.http"
PREFIXES = "http.request.header.", "http.response.header."

Headers = Mapping[str, str] | Sequence[tuple[str, str]]
Captured = dict[str, tuple[str, ...]]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (REQUEST, RESPONSE, SANITIZE, EXCLUDED, EXCLUDED_BY_ALL):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def contrib() -> Iterator[AioHttpClientInstrumentor]:
    """Remove contrib's instrumentation at the end."""
    instrumentor = AioHttpClientInstrumentor()
    yield instrumentor
    instrumentor.uninstrument()


def captured(span: ReadableSpan) -> Captured:
    """Return the headers in the attributes of a span."""
    return {name: value for name, value in (span.attributes or {}).items() if name.startswith(PREFIXES)}  # type: ignore[misc]


class Case(NamedTuple):
    """A request with headers, and what its span shows of them."""

    variables: dict[str, str]
    sent: Headers
    answered: Headers
    shown: Captured


ANOTHER = {
    "X-Custom-Header": "custom-value",
    "X-Another-Header": "another-value",
    "X-Excluded-Header": "excluded-value",
}
THREE = {"X-Header-One": "value1", "X-Header-Two": "value2", "X-Header-Three": "value3"}
RED = ("[REDACTED]",)

CASES = {
    "contrib: custom request headers": Case(
        {REQUEST: "X-Custom-Header,X-Another-Header"},
        ANOTHER,
        {},
        {
            "http.request.header.x_custom_header": ("custom-value",),
            "http.request.header.x_another_header": ("another-value",),
        },
    ),
    "contrib: custom response headers": Case(
        {RESPONSE: "X-Custom-Header,X-Another-Header"},
        {},
        ANOTHER,
        {
            "http.response.header.x_custom_header": ("custom-value",),
            "http.response.header.x_another_header": ("another-value",),
        },
    ),
    "contrib: not configured": Case({}, {"X-Request-Header": "request-value"}, {"X-Response-Header": "value"}, {}),
    "contrib: sanitized": Case(
        {
            REQUEST: "Authorization,X-Api-Key",
            RESPONSE: "Set-Cookie,X-Secret",
            SANITIZE: "Authorization,X-Api-Key,Set-Cookie,X-Secret",
        },
        {"Authorization": "Bearer secret-token", "X-Api-Key": "secret-key"},
        {"Set-Cookie": "session=abc123", "X-Secret": "secret"},
        {
            "http.request.header.authorization": RED,
            "http.request.header.x_api_key": RED,
            "http.response.header.set_cookie": RED,
            "http.response.header.x_secret": RED,
        },
    ),
    "contrib: regular expressions": Case(
        {REQUEST: "X-Custom-Request-.*", RESPONSE: "X-Custom-Response-.*"},
        {"X-Custom-Request-One": "value-one", "X-Custom-Request-Two": "value-two", "X-Other-Request-Header": "other"},
        {"X-Custom-Response-A": "value-A", "X-Custom-Response-B": "value-B", "X-Other-Response-Header": "other"},
        {
            "http.request.header.x_custom_request_one": ("value-one",),
            "http.request.header.x_custom_request_two": ("value-two",),
            "http.response.header.x_custom_response_a": ("value-A",),
            "http.response.header.x_custom_response_b": ("value-B",),
        },
    ),
    "contrib: case of the names": Case(
        {REQUEST: "x-request-header", RESPONSE: "x-response-header"},
        {"X-ReQuESt-HeaDER": "custom-value"},
        {"X-ReSPoNse-HeaDER": "custom-value"},
        {
            "http.request.header.x_request_header": ("custom-value",),
            "http.response.header.x_response_header": ("custom-value",),
        },
    ),
    "contrib: several values": Case(
        {REQUEST: "X-Multi-Value"},
        (("X-Multi-Value", "value1"), ("X-Multi-Value", "value2")),
        {},
        {"http.request.header.x_multi_value": ("value1", "value2")},
    ),
    "contrib: standard headers": Case(
        {REQUEST: "Content-Type,Accept", RESPONSE: "Content-Type,Server"},
        {"Content-Type": "application/json", "Accept": "application/json"},
        {"Content-Type": "text/plain", "Server": "TestServer/1.0"},
        {
            "http.request.header.content_type": ("application/json",),
            "http.request.header.accept": ("application/json",),
            "http.response.header.content_type": ("text/plain",),
            "http.response.header.server": ("TestServer/1.0",),
        },
    ),
    "contrib: all request headers": Case(
        {REQUEST: ".*"},
        THREE,
        {},
        {
            "http.request.header.x_header_one": ("value1",),
            "http.request.header.x_header_two": ("value2",),
            "http.request.header.x_header_three": ("value3",),
            "http.request.header.x_of_the_session": ("s",),
        },
    ),
    "contrib: all response headers": Case(
        {RESPONSE: ".*"},
        {},
        {"X-Response-One": "value1", "X-Response-Two": "value2", "X-Response-Three": "value3"},
        {
            "http.response.header.x_response_one": ("value1",),
            "http.response.header.x_response_two": ("value2",),
            "http.response.header.x_response_three": ("value3",),
            "http.response.header.content_type": ("application/json",),
            "http.response.header.content_length": ("2",),
        },
    ),
    "contrib: sanitized by a regular expression": Case(
        {REQUEST: "X-Test.*", SANITIZE: ".*secret.*"},
        {"X-Test": "normal-value", "X-Test-Secret": "secret-value"},
        {},
        {"http.request.header.x_test": ("normal-value",), "http.request.header.x_test_secret": RED},
    ),
    "a header of the session, and one that the call replaces": Case(
        {REQUEST: " X-Of-The-Session , accept ,"},
        (("X-OF-THE-SESSION", "a"), ("x-of-the-session", "b")),
        {},
        {"http.request.header.x_of_the_session": ("b",)},
    ),
    "several values of a response header": Case(
        {RESPONSE: "set-cookie"},
        {},
        (("Set-Cookie", "a=1"), ("set-cookie", "b=2")),
        {"http.response.header.set_cookie": ("a=1", "b=2")},
    ),
    "a name that a pattern matches only in part": Case(
        {REQUEST: "X-Test", RESPONSE: "Content"}, {"X-Test-More": "1"}, {"Content-Language": "en"}, {}
    ),
    "sanitized in part of the name": Case({REQUEST: ".*", SANITIZE: "session"}, {}, {}, {
        "http.request.header.x_of_the_session": RED,
    }),
    "nothing to capture": Case({REQUEST: "", RESPONSE: "", SANITIZE: ".*"}, {"X-Test": "1"}, {"X-Test": "1"}, {}),
    "what aiohttp adds, and the trace context, is no header of the caller": Case(
        {REQUEST: "host,user-agent,accept-encoding,cookie,traceparent"}, {}, {}, {}
    ),
}  # fmt: skip


def set_up(
    variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, contrib: AioHttpClientInstrumentor, sdk: SDK
) -> None:
    """Set the variables and then contrib's instrumentation; a connector reads them when it is created."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    contrib.instrument(**sdk.providers)


def spans(sdk: SDK) -> tuple[list[ReadableSpan], list[ReadableSpan]]:
    """Return the spans of contrib and those of the connector."""
    found: tuple[list[ReadableSpan], list[ReadableSpan]] = [], []
    for span in sdk.spans.get_finished_spans():
        assert span.instrumentation_scope is not None
        found[span.instrumentation_scope.name == "otel_connector"].append(span)
    return found


@pytest.mark.parametrize("name", CASES)
async def test_headers_are_captured_and_sanitized_as_by_contrib(
    name: str, server: FaultServer, sdk: SDK, contrib: AioHttpClientInstrumentor, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    server.script("/x", respond(body=b"{}", headers=case.answered))
    set_up(case.variables, monkeypatch, contrib, sdk)
    async with aiohttp.ClientSession(headers={"X-Of-The-Session": "s"}) as session:
        await session.get(server.url("/x"), headers=case.sent)
        await AsyncConnector(None, **sdk.providers).get(session, server.url("/x"), "P", headers=case.sent)
    (of_contrib,), (ours,) = spans(sdk)
    assert captured(ours) == captured(of_contrib) == case.shown


async def test_the_captured_response_is_the_last_one_and_the_request_the_first_one(
    server: FaultServer, sdk: SDK, contrib: AioHttpClientInstrumentor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After redirects, for an error, and if the body fails: that of `http.response.status_code`."""
    server.script("/moved", respond(302, headers={"Location": "/there", "X-Number": "1"}))
    server.script("/there", respond(body=b"{}", headers={"X-Number": "2"}))
    server.script("/gone", respond(404, headers={"X-Number": "3"}))
    server.script("/cut", truncated(16, 64))
    set_up({REQUEST: "x-sent", RESPONSE: "x-number,content-length"}, monkeypatch, contrib, sdk)
    connector = AsyncConnector(None, n_tries=1, **sdk.providers)
    async with aiohttp.ClientSession(headers={"X-Sent": "a"}) as session:
        for path in ("/moved", "/gone", "/cut"):
            await session.get(server.url(path))
            await connector.get(session, server.url(path), "P", default=None)
    shown = [tuple(map(captured, found)) for found in spans(sdk)]
    assert shown[0] == shown[1]
    assert [each.get("http.response.header.x_number") for each in shown[1]] == [("2",), ("3",), None]
    assert shown[1][2]["http.response.header.content_length"] == ("64",)
    assert {each["http.request.header.x_sent"] for each in shown[1]} == {("a",)}


@pytest.mark.parametrize("attempt_spans", [False, True])
async def test_of_several_attempts_the_call_shows_the_last_response_and_each_attempt_its_own(
    attempt_spans: bool, server: FaultServer, session: aiohttp.ClientSession, sdk: SDK, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REQUEST, "x-sent")
    monkeypatch.setenv(RESPONSE, "x-number")
    server.script("/x", [respond(503, headers={"X-Number": str(number)}) for number in (1, 2)])
    connector = AsyncConnector(None, n_tries=2, clock=FakeClock(), attempt_spans=attempt_spans, **sdk.providers)
    await connector.get(session, server.url("/x"), "P", default=None, headers={"X-Sent": "a"})
    shown = [captured(span) for span in sdk.spans.get_finished_spans()]
    last = {"http.request.header.x_sent": ("a",), "http.response.header.x_number": ("2",)}
    first = {**last, "http.response.header.x_number": ("1",)}
    assert shown == ([first, last, {}] if attempt_spans else [last])


async def test_without_a_response_in_the_last_attempt_none_is_shown(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `http.response.status_code`, which is that of the last attempt."""
    monkeypatch.setenv(RESPONSE, ".*")

    server.script("/x", [503, reset])
    connector = AsyncConnector(None, n_tries=2, clock=FakeClock(), **sdk.providers)
    await connector.get(session, server.url("/x"), "P", default=None)
    assert captured(sdk.span()) == {}
    assert "http.response.status_code" not in sdk.span().attributes


async def test_headers_of_a_response_without_middlewares_are_captured(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a response from a cache, whose session does not send the request."""
    monkeypatch.setenv(RESPONSE, "x-number")
    server.script("/x", respond(body=b"{}", headers={"X-Number": "1"}))
    stored = await session.get(server.url("/x"))
    await stored.read()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        class Cached(aiohttp.ClientSession):
            async def _request(self, *_: Any, **__: Any) -> Any:
                return stored

    async with Cached() as cached:
        await AsyncConnector(None, **sdk.providers).get(cached, server.url("/x"), "P")
    assert captured(sdk.span()) == {"http.response.header.x_number": ("1",)}


class Remembering(Sampler):
    """Keeps the attributes that it is asked about."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def should_sample(self, *arguments: Any, **_: Any) -> SamplingResult:
        self.seen.append(dict(arguments[4]))
        return SamplingResult(Decision.DROP)

    def get_description(self) -> str:
        return "remembering"


async def test_a_sampler_sees_the_request_headers_at_the_start(
    server: FaultServer, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with contrib, which passes them to `start_span`; with a template, too."""
    monkeypatch.setenv(REQUEST, "x-tenant")
    server.script("/x", ok)
    sampler = Remembering()
    provider = TracerProvider(sampler, shutdown_on_exit=False)
    connector = AsyncConnector(None, tracer_provider=provider)
    await connector.get(session, server.url("/x"), "P", headers={"X-Tenant": "a"}, template="/{x}")
    (seen,) = sampler.seen
    assert seen["http.request.header.x_tenant"] == ["a"]
    assert seen["url.template"] == "/{x}"


async def test_a_header_that_cannot_be_exported_is_escaped(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes of aiohttp that are not UTF-8 are lone surrogates. An OTLP exporter would lose the whole batch."""
    monkeypatch.setenv(RESPONSE, "x-.*")

    async def raw(connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Name: caf\xe9\r\nX-Tab: a\tb\r\n\r\n{}")

    server.script("/x", raw)
    await AsyncConnector(None, **sdk.providers).get(session, server.url("/x"), "P")
    assert captured(sdk.span()) == {
        "http.response.header.x_name": (r"caf\udce9",),
        "http.response.header.x_tab": ("a\tb",),
    }
    assert encode_spans([sdk.span()]).resource_spans


async def test_the_fields_of_a_call_are_not_displaced_by_the_headers_of_a_server(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK keeps 128 attributes of a span, and drops the oldest ones."""
    monkeypatch.setenv(RESPONSE, ".*")
    server.script("/x", respond(body=b"{}", headers={f"X-{number}": "1" for number in range(125)}))
    await AsyncConnector(None, **sdk.providers).get(session, server.url("/x"), "P")
    attributes = sdk.span().attributes
    assert len(attributes) == 128
    assert attributes["otel_connector.call_id"]
    assert attributes["http.response.status_code"] == 200


# Excluded URLs


def in_contrib(sdk: SDK) -> bool:
    """Return whether contrib has recorded a duration."""
    data = sdk.metrics.get_metrics_data()
    return data is not None and bool(points(data, "http.client.duration"))


class Exclusion(NamedTuple):
    """The variables, what is requested, and whether it is excluded."""

    variables: dict[str, str]
    url: str  # {} stands for the server
    excluded: bool
    options: Mapping[str, Any] = MappingProxyType({})


ALL = {EXCLUDED: ".*"}
EXCLUSIONS = {
    "contrib: by its own variable": Exclusion(
        {EXCLUDED: "/some/path"}, "{}/some/path?query=param&other=param2", True
    ),
    "contrib: by the general variable": Exclusion(
        {EXCLUDED_BY_ALL: "/some/path"}, "{}/some/path?query=param&other=param2", True
    ),
    "contrib: before the instrumentation": Exclusion({EXCLUDED: "/test-path"}, "{}/test-path?query=params", True),
    "documentation of contrib, first": Exclusion({EXCLUDED: "client/.*/info,healthcheck"}, "{}/client/123/info", True),
    "documentation of contrib, second": Exclusion({EXCLUDED: "client/.*/info,healthcheck"}, "{}/xyz/healthcheck", True),
    "another path": Exclusion({EXCLUDED: "client/.*/info,healthcheck"}, "{}/client/123", False),
    "its own variable replaces the general one": Exclusion({EXCLUDED: "/a", EXCLUDED_BY_ALL: "/x"}, "{}/x", False),
    "an empty one of its own, too": Exclusion({EXCLUDED: "", EXCLUDED_BY_ALL: "/x"}, "{}/x", False),
    "the variable of another client": Exclusion({"OTEL_PYTHON_HTTPX_EXCLUDED_URLS": "/x"}, "{}/x", False),
    "nothing between two commas": Exclusion({EXCLUDED: "/a,,/b"}, "{}/x", True),
    "case": Exclusion({EXCLUDED: "/X"}, "{}/x", False),
    "a host": Exclusion({EXCLUDED: r"^http://127\.0\.0\.1:"}, "{}/x", True),
    "a secret that the row does not show": Exclusion({EXCLUDED: "token=abc"}, "{}/x?token=abc", True),
    "what the row shows instead": Exclusion({EXCLUDED: "REDACTED"}, "{}/x?token=abc", False),
    "params": Exclusion({EXCLUDED: r"\?a=1&b=%20$"}, "{}/x?a=1", False, {"params": {"b": " "}}),
    "params as sent": Exclusion({EXCLUDED: r"\?a=1&b=\+$"}, "{}/x?a=1", True, {"params": {"b": " "}}),
    "an escape that aiohttp decodes": Exclusion({EXCLUDED: "/~x"}, "{}/%7Ex", True),
    "the escape itself": Exclusion({EXCLUDED: "/%7Ex"}, "{}/%7Ex", False),
    "a character that is sent as an escape": Exclusion({EXCLUDED: "/%C3%A9"}, "{}/é", True),
    "a fragment": Exclusion({EXCLUDED: "#part"}, "{}/x#part", True),
    "the target of a redirect": Exclusion({EXCLUDED: "/there"}, "{}/moved", False),
    "a redirect to another URL": Exclusion({EXCLUDED: "/moved"}, "{}/moved", True),
}  # fmt: skip


@pytest.mark.parametrize("attempt_spans", [False, True])
@pytest.mark.parametrize("name", EXCLUSIONS)
async def test_an_excluded_url_has_a_row_and_nothing_else_as_with_contrib(
    name: str,
    attempt_spans: bool,
    server: FaultServer,
    log: Log,
    sdk: SDK,
    contrib: AioHttpClientInstrumentor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = EXCLUSIONS[name]
    url = case.url.format(server.url()[:-1])
    server.script("/moved", redirect("/there"))
    for path in {"/there", "/~x", "/%7Ex", URL(url).raw_path} - {"/moved"}:
        server.script(path, ok)
    set_up(case.variables, monkeypatch, contrib, sdk)
    connector = AsyncConnector(log.path, attempt_spans=attempt_spans, **sdk.providers)
    async with aiohttp.ClientSession() as session:
        await session.get(url, **case.options)
        of_contrib = len(server.requests)
        await connector.get(session, url, "P", **case.options)
        await connector.get(session, URL(url), "P", **case.options)
    assert [bool(found) for found in spans(sdk)] == [not case.excluded] * 2
    assert in_contrib(sdk) is not case.excluded
    for metric in ("http.client.request.duration", "otel_connector.received", "http.client.active_requests"):
        assert bool(sdk.points(metric)) is not case.excluded, metric
    sent = ["traceparent" in request.headers for request in server.requests]
    assert set(sent[:of_contrib]) == set(sent[of_contrib:]) == {not case.excluded}
    assert [record.success for record in log.records()] == [True, True]
    assert connector.stats().calls_succeeded == 2
    assert {point.value for point in sdk.points("otel_connector.rows.written")} == {2}


async def test_an_excluded_relative_url_is_the_absolute_one(
    server: FaultServer, log: Log, sdk: SDK, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EXCLUDED, f"{server.url()}x")
    server.script("/x", ok)
    async with aiohttp.ClientSession(server.url()) as session:
        await AsyncConnector(log.path, **sdk.providers).get(session, "/x", "P")
    assert sdk.spans.get_finished_spans() == ()
    assert log.only().success


async def test_a_retried_failure_of_an_excluded_url_is_not_counted(
    server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EXCLUDED, "/x")
    server.script("/x", 503)
    connector = AsyncConnector(log.path, n_tries=2, clock=FakeClock(), **sdk.providers)
    with pytest.raises(ConnectorError):
        await connector.get(session, server.url("/x"), "P")
    for name in ("otel_connector.retries", "otel_connector.retry.delay", "otel_connector.queue.time"):
        assert sdk.points(name) == [], name
    assert (connector.stats().retries, log.only().response_code) == (1, 503)


@pytest.mark.parametrize("suppressed", [False, True])
async def test_code_within_a_call_without_a_span_has_the_context_of_the_caller(
    suppressed: bool,
    server: FaultServer,
    log: Log,
    sdk: SDK,
    contrib: AioHttpClientInstrumentor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Requests of a middleware and of `decode` are below the caller's span, or suppressed if the call is."""
    set_up({} if suppressed else {EXCLUDED: "/x"}, monkeypatch, contrib, sdk)
    server.script("/x", ok)
    server.script("/inner", ok)
    current: list[int] = []

    async def middleware(request: Any, handler: Any) -> Any:
        current.append(trace.get_current_span().get_span_context().span_id)
        async with aiohttp.ClientSession() as other:
            await other.get(server.url("/inner"))
        return await handler(request)

    def decode(_: bytes) -> None:
        current.append(trace.get_current_span().get_span_context().span_id)

    connector = AsyncConnector(log.path, **sdk.providers)
    with sdk.tracer_provider.get_tracer("t").start_as_current_span("caller") as caller:
        async with aiohttp.ClientSession() as session:
            options: dict[str, Any] = {"middlewares": (middleware,), "decode": decode}
            if suppressed:
                with suppress_instrumentation():
                    await connector.get(session, server.url("/x"), "P", **options)
            else:
                await connector.get(session, server.url("/x"), "P", **options)
        own = caller.get_span_context()
        assert trace.get_current_span() is caller
    assert current == [own.span_id] * 2
    of_contrib, ours = spans(sdk)
    assert ours == []
    inner = [span for span in of_contrib if span.name == "GET"]
    assert [span.parent.span_id for span in inner if span.parent] == [] if suppressed else [own.span_id]
    assert log.only().call_id.startswith(f"{own.trace_id:032x}-")


async def test_without_an_sdk_an_excluded_call_sends_no_baggage_and_records_no_metric(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a tracer provider there is no span in any case; the meter provider must not record it."""
    monkeypatch.setenv(EXCLUDED, "/x")
    server.script("/x", ok)
    server.script("/y", ok)
    connector = AsyncConnector(None, meter_provider=sdk.meter_provider)
    await connector.get(session, server.url("/x"), "P")
    assert sdk.points("http.client.request.duration") == []
    await connector.get(session, server.url("/y"), "P")
    assert len(sdk.points("http.client.request.duration")) == 1


@pytest.mark.parametrize("session_inside", [False, True])
@pytest.mark.parametrize("path", ["/test-path", "/loop"])
@pytest.mark.parametrize("suppress", [suppress_instrumentation, suppress_http_instrumentation])
async def test_the_cases_of_contrib_for_suppression(
    suppress: Callable[[], AbstractContextManager[None]],
    path: str,
    session_inside: bool,
    server: FaultServer,
    sdk: SDK,
    contrib: AioHttpClientInstrumentor,
) -> None:
    """The session is created before or within the suppression, and the server answers, or redirects without end."""
    server.script("/test-path", ok)
    server.script("/loop", redirect("/loop"))
    contrib.instrument(**sdk.providers)
    connector = AsyncConnector(None, **sdk.providers)
    async with AsyncExitStack() as stack:
        if session_inside:
            stack.enter_context(suppress())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        if not session_inside:
            stack.enter_context(suppress())
        await connector.get(session, server.url(path), "P", default=None)
    assert spans(sdk) == ([], [])
    assert not sdk.points("http.client.duration")
    assert not sdk.points("http.client.request.duration")
    assert not any("traceparent" in request.headers for request in server.requests)


# How the variables are read


async def test_a_connector_reads_the_variables_when_it_is_created(
    server: FaultServer, session: aiohttp.ClientSession, sdk: SDK, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `AioHttpClientInstrumentor().instrument()`."""
    server.script("/x", ok)
    before = AsyncConnector(None, **sdk.providers)
    monkeypatch.setenv(EXCLUDED, "/x")
    after = AsyncConnector(None, **sdk.providers)
    monkeypatch.delenv(EXCLUDED)
    await after.get(session, server.url("/x"), "P")
    assert sdk.spans.get_finished_spans() == ()
    await before.get(session, server.url("/x"), "P")
    assert len(sdk.spans.get_finished_spans()) == 1


INVALID = {
    REQUEST: ({REQUEST: "x-(sent", RESPONSE: "x-answered"}, {"http.response.header.x_answered"}),
    RESPONSE: ({RESPONSE: "[", REQUEST: "x-sent"}, {"http.request.header.x_sent"}),
    SANITIZE: ({SANITIZE: "*", REQUEST: "x-sent", RESPONSE: "x-answered"}, set[str]()),
    EXCLUDED: ({EXCLUDED: "(", REQUEST: "x-sent"}, {"http.request.header.x_sent"}),
    EXCLUDED_BY_ALL: ({EXCLUDED_BY_ALL: "(?", REQUEST: "x-sent"}, {"http.request.header.x_sent"}),
}


@pytest.mark.parametrize("name", INVALID)
async def test_a_variable_that_is_not_a_regular_expression_is_named_and_has_no_effect(
    name: str,
    server: FaultServer,
    session: aiohttp.ClientSession,
    sdk: SDK,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Contrib raises in each request. Headers that cannot be sanitized are not captured."""
    variables, shown = INVALID[name]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    server.script("/x", respond(body=b"{}", headers={"X-Answered": "1"}))
    with caplog.at_level(logging.WARNING, logger="otel_connector"):
        connector = AsyncConnector(None, **sdk.providers)
    (line,) = caplog.messages
    assert line.startswith(f"{name} is ignored: {variables[name]!r} is not a regular expression")
    await connector.get(session, server.url("/x"), "P", headers={"X-Sent": "1"})
    assert set(captured(sdk.span())) == shown


async def test_without_the_package_of_contrib_the_variables_have_no_effect(
    server: FaultServer,
    session: aiohttp.ClientSession,
    sdk: SDK,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, HELPERS, None)
    for variable in (REQUEST, RESPONSE, EXCLUDED):
        monkeypatch.setenv(variable, ".*")
    server.script("/x", ok)
    await AsyncConnector(None, **sdk.providers).get(session, server.url("/x"), "P", headers={"X-Sent": "1"})
    assert captured(sdk.span()) == {}
    assert caplog.messages == []


class AnotherVersion(ModuleType):
    """A version of contrib's package with other functions."""

    def get_excluded_urls(self, _: str) -> AnotherVersion:
        return self

    def url_disabled(self, _: str) -> bool:
        raise LookupError("boom")


class YetAnotherVersion(AnotherVersion):
    """A version in which only the exclusion of URLs behaves differently."""

    def __getattr__(self, name: str) -> Any:
        return getattr(http, name)


@pytest.mark.parametrize(
    ("version", "doing"),
    [(AnotherVersion, "reading the settings of contrib"), (YetAnotherVersion, "looking for the URL in the excluded")],
)
async def test_another_version_of_contrib_does_not_break_a_call(
    version: type[ModuleType],
    doing: str,
    server: FaultServer,
    session: aiohttp.ClientSession,
    sdk: SDK,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, HELPERS, version(HELPERS))
    monkeypatch.setenv(EXCLUDED, "/x")
    server.script("/x", ok)
    await AsyncConnector(None, **sdk.providers).get(session, server.url("/x"), "P")
    assert sdk.span().attributes["otel_connector.success"] is True
    (line,) = caplog.messages
    assert line.startswith(f"telemetry failed while {doing}")


PROGRAM = f"""
import sys
from otel_connector import AsyncConnector
AsyncConnector(None)
print({HELPERS!r} in sys.modules)
"""


@pytest.mark.parametrize(
    ("variable", "loaded"), [("UNRELATED", False), (SANITIZE, False), (REQUEST, True), (EXCLUDED, True)]
)
def test_the_package_of_contrib_is_loaded_only_if_a_variable_is_set(
    variable: str, loaded: bool, tmp_path: Path
) -> None:
    done = run_python(["-c", PROGRAM], tmp_path, **{variable: "x"})
    assert done.stdout == f"{loaded}\n"


async def test_headers_of_an_odd_response_do_not_break_the_span(
    server: FaultServer,
    session: aiohttp.ClientSession,
    sdk: SDK,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of a response class of the application; the exception is logged, as for any of its components."""
    monkeypatch.setenv(RESPONSE, ".*")
    monkeypatch.setenv(REQUEST, ".*")
    server.script("/x", respond(body=b"{}", headers={"X-Odd": "1"}))

    class Headers(CIMultiDict[str]):
        def getall(self, key: str, default: Any = ()) -> Any:
            if key == "X-Odd":
                raise LookupError("boom")
            return super().getall(key, default)

    class Changed(aiohttp.ClientResponse):
        async def start(self, connection: Any) -> aiohttp.ClientResponse:
            changed: Any = await super().start(connection)
            changed._cache["headers"] = Headers(changed.headers)
            return self

    async with aiohttp.ClientSession(response_class=Changed) as odd:
        await AsyncConnector(None, **sdk.providers).get(odd, server.url("/x"), "P")
    assert sdk.span().attributes["otel_connector.success"] is True
    assert [line for line in caplog.messages if "capturing headers" in line]


async def test_python_hooks_of_contrib_are_not_called_for_the_calls_of_a_connector(
    server: FaultServer, sdk: SDK, contrib: AioHttpClientInstrumentor
) -> None:
    """The docs say so: there is no span of contrib that they could change."""
    server.script("/x", ok)
    called: list[str] = []

    def url_filter(url: URL) -> str:
        called.append("url_filter")
        return str(url)

    contrib.instrument(
        url_filter=url_filter,
        request_hook=lambda *_: called.append("request_hook"),
        response_hook=lambda *_: called.append("response_hook"),
        **sdk.providers,
    )
    async with aiohttp.ClientSession() as session:
        await AsyncConnector(None, **sdk.providers).get(session, server.url("/x"), "P")
        assert called == []
        await session.get(server.url("/x"))
    assert called == ["url_filter", "request_hook", "response_hook"]
