"""Requests of a call: resends by aiohttp itself are counted, and trace context is not sent to other origins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from opentelemetry import baggage, context
from support.forked import run_python
from support.logs import Log
from support.sdk import SDK

from otel_connector import AsyncConnector, Attempt, ConnectFailed, ConnectorError, HTTPStatusError
from otel_connector.testing import FakeClock, FaultServer, disconnect, ok, redirect, reset

RETRIES = "http.request.resend_count"


@pytest.fixture
def other() -> Iterator[FaultServer]:
    """A server of another origin: the same host, another port."""
    with FaultServer() as server:
        yield server


def connector(sdk: SDK | None = None, log: Log | None = None, **options: Any) -> AsyncConnector:
    arguments = {"n_tries": 3, "timeout": 2, "clock": FakeClock(), **(sdk.providers if sdk else {}), **options}
    return AsyncConnector(log.path if log else None, **arguments)


@pytest.mark.parametrize("broken", [reset, disconnect], ids=str)
async def test_a_resend_by_aiohttp_itself_is_counted(
    broken: Any, server: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    """If a reused connection was closed by the server, aiohttp sends the GET again without reporting it."""
    server.script("/x", [ok, broken, ok])
    seen = list[Attempt]()
    subject = connector(sdk, log, on_retry=seen.append)
    for _ in range(2):
        assert await subject.get(session, server.url("/x"), "P") == {"ok": True}
    first, second = sdk.spans.get_finished_spans()
    assert [dict(span.attributes or {}).get(RETRIES) for span in (first, second)] == [None, 1]
    assert [request.connection for request in server.requests][:2] == [1, 1], "the connection was reused"
    assert len(server.requests) == 3
    assert (second.events, seen) == ((), []), "no attempt of the connector failed"
    assert [record.success for record in log.records()] == [True, True]


@pytest.mark.parametrize(
    "steps",
    [
        [ok],
        [503, ok],
        [reset, ok],
        [503, reset, ok],
        [reset, 503, ok],
        [503, 503, 503],
        [reset, reset, reset, reset, reset],
        [reset, 503, reset, 503],
        [404],
    ],
    ids=str,
)
async def test_attempts_and_resend_count_match_the_requests_that_the_server_received(
    steps: list[Any], server: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/x", steps)
    try:
        await connector(sdk).get(session, server.url("/x"), "P")
    except ConnectorError as error:
        assert error.attempts == len(server.requests)  # noqa: PT017 - some of the calls succeed
    assert sdk.span().attributes.get(RETRIES, 0) == len(server.requests) - 1


async def test_attempt_numbers_include_the_resends_by_aiohttp(
    server: FaultServer, session: aiohttp.ClientSession, clock: FakeClock
) -> None:
    server.script("/x", reset)
    seen = list[Attempt]()
    with pytest.raises(ConnectFailed) as caught:
        await connector(n_tries=6, on_retry=seen.append, clock=clock).get(session, server.url("/x"), "P")
    assert [attempt.number for attempt in seen] == [2, 4]
    assert caught.value.attempts == len(server.requests) == 6


async def test_redirects_count_as_resends_but_not_as_attempts(
    server: FaultServer, other: FaultServer, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    server.script("/x", redirect("/y"))
    server.script("/y", redirect(other.url("/z")))
    other.script("/z", [503, reset, ok])
    assert await connector(sdk, log).get(session, server.url("/x"), "P") == {"ok": True}
    sent = [request.path for request in (*server.requests, *other.requests)]
    assert sorted(sent) == ["/x", "/x", "/y", "/y", "/z", "/z", "/z"]
    span = sdk.span()
    assert span.attributes[RETRIES] == len(sent) - 1
    assert [event.attributes["otel_connector.attempt.number"] for event in span.events] == [1]
    assert log.only().redirect_url == other.url("/z")

    other.script("/z", 404)
    with pytest.raises(HTTPStatusError) as caught:
        await connector().get(session, server.url("/x"), "P")
    assert caught.value.attempts == 1


async def test_trace_context_and_baggage_are_sent_to_the_first_origin_only(
    server: FaultServer, other: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    """After a redirect to another origin and back, only requests to the first carry trace context and baggage."""
    server.script("/x", redirect("/y"))
    server.script("/y", redirect(other.url("/there")))
    other.script("/there", redirect(server.url("/back")))
    server.script("/back", ok)
    token = context.attach(baggage.set_baggage("user", "me"))
    try:
        headers = {"Authorization": "Bearer s", "X-Mine": "1"}
        assert await connector(sdk).get(session, server.url("/x"), "P", headers=headers) == {"ok": True}
    finally:
        context.detach(token)
    names = ("traceparent", "baggage", "Authorization", "X-Mine")
    sent = {request.path: {name for name in names if name in request.headers} for request in server.requests}
    assert sent == {
        "/x": set(names),
        "/y": set(names),
        "/back": {"traceparent", "baggage", "X-Mine"},
    }, "aiohttp drops Authorization at the redirect to another origin and does not restore it"
    assert [{name for name in names if name in request.headers} for request in other.requests] == [{"X-Mine"}]
    ids = {request.headers["traceparent"][:-3] for request in server.requests}
    assert ids == {f"00-{sdk.span().context.trace_id:032x}-{sdk.span().context.span_id:016x}"}


async def test_a_traceparent_header_of_the_caller_is_not_sent_to_another_origin(
    server: FaultServer, other: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/x", redirect(other.url("/there")))
    other.script("/there", ok)
    headers = {"Traceparent": "00-11111111111111111111111111111111-2222222222222222-01"}
    await connector(sdk).get(session, server.url("/x"), "P", headers=headers)
    assert len(server.requests[0].headers.getall("traceparent")) == 1
    assert "traceparent" not in other.requests[0].headers


async def test_a_resend_to_another_origin_carries_no_trace_context(
    server: FaultServer, other: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/x", redirect(other.url("/there")))
    other.script("/there", [reset, ok])
    assert await connector(sdk).get(session, server.url("/x"), "P") == {"ok": True}
    assert len(other.requests) == 2
    assert not any("traceparent" in request.headers for request in other.requests)


async def test_every_attempt_sends_the_trace_context_to_the_first_origin(
    server: FaultServer, other: FaultServer, session: aiohttp.ClientSession, sdk: SDK
) -> None:
    server.script("/x", redirect(other.url("/there")))
    other.script("/there", [503, ok])
    assert await connector(sdk).get(session, server.url("/x"), "P") == {"ok": True}
    assert ["traceparent" in request.headers for request in server.requests] == [True, True]
    assert ["traceparent" in request.headers for request in other.requests] == [False, False]


class Stamp:
    """A client middleware that counts the requests and sets a header."""

    def __init__(self, name: str) -> None:
        self.name, self.passed = name, 0

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        self.passed += 1
        request.headers["X-Stamp"] = self.name
        return await handler(request)


async def test_the_middlewares_of_the_session_run_in_every_attempt(server: FaultServer, sdk: SDK) -> None:
    server.script("/x", [503, ok])
    first, second = Stamp("session"), Stamp("session 2")
    async with aiohttp.ClientSession(middlewares=(first, second)) as session:
        assert await connector(sdk).get(session, server.url("/x"), "P") == {"ok": True}
    assert [first.passed, second.passed] == [2, 2]
    assert [request.headers["X-Stamp"] for request in server.requests] == ["session 2"] * 2
    assert sdk.span().attributes[RETRIES] == 1


async def test_the_get_method_of_a_session_subclass_is_used(server: FaultServer, sdk: SDK) -> None:
    with pytest.warns(DeprecationWarning, match="Inheritance class"):

        class Signing(aiohttp.ClientSession):
            def get(self, url: Any, *, allow_redirects: bool = True, **options: Any) -> Any:
                options["headers"] = {**(options["headers"] or {}), "X-Signed": str(url.path)}
                return super().get(url, allow_redirects=allow_redirects, **options)

    server.script("/x", [503, ok])
    async with Signing() as session:
        assert await connector(sdk).get(session, server.url("/x"), "P", allow_redirects=False) == {"ok": True}
    assert [request.headers["X-Signed"] for request in server.requests] == ["/x"] * 2


async def test_a_get_method_set_on_a_session_object_is_used(
    server: FaultServer, session: aiohttp.ClientSession
) -> None:
    server.script("/x", ok)
    urls = list[str]()

    def get(url: Any, **options: Any) -> Any:
        urls.append(str(url))
        return aiohttp.ClientSession.get(session, url, **options)

    vars(session)["get"] = get  # as unittest.mock does; aiohttp warns if the attribute is assigned
    assert await connector().get(session, server.url("/x"), "P") == {"ok": True}
    assert urls == [server.url("/x")]


async def test_a_proxy_object_of_a_session_is_accepted(server: FaultServer, session: aiohttp.ClientSession) -> None:
    class Proxy:
        __class__ = aiohttp.ClientSession  # type: ignore[assignment]

        def __getattr__(self, name: str) -> Any:
            return getattr(session, name)

    server.script("/x", ok)
    proxy: Any = Proxy()
    assert await connector().get(proxy, server.url("/x"), "P") == {"ok": True}


RECORDED_BEFORE = """
import asyncio, sys
import aiohttp

urls = []
real = aiohttp.ClientSession.get

def recording(self, url, **options):
    urls.append(str(url))
    return real(self, url, **options)

aiohttp.ClientSession.get = recording
for name in [name for name in sys.modules if name.startswith("otel_connector")]:
    del sys.modules[name]  # the fork has loaded it
from otel_connector import AsyncConnector

async def main():
    async with aiohttp.ClientSession() as session:
        await AsyncConnector(None).get(session, sys.argv[1], "P")
    print(len(urls))

asyncio.run(main())
"""


def test_a_get_method_patched_before_the_import_is_used(server: FaultServer, tmp_path: Path) -> None:
    server.script("/x", ok)
    done = run_python(["-c", RECORDED_BEFORE, server.url("/x")], tmp_path)
    assert done.stdout == "1\n", done.stderr


async def test_the_middlewares_of_a_call_replace_those_of_the_session(server: FaultServer, sdk: SDK) -> None:
    server.script("/x", [reset, ok])
    of_session, of_call = Stamp("session"), Stamp("call")
    async with aiohttp.ClientSession(middlewares=(of_session,)) as session:
        assert await connector(sdk).get(session, server.url("/x"), "P", middlewares=(of_call,)) == {"ok": True}
        assert await connector().get(session, server.url("/x"), "P", middlewares=()) == {"ok": True}
    assert [of_session.passed, of_call.passed] == [0, 2]
    assert ["X-Stamp" in request.headers for request in server.requests] == [True, True, False]


async def test_resends_by_a_middleware_are_counted(server: FaultServer, log: Log, sdk: SDK) -> None:
    async def resend_until_200(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        while (response := await handler(request)).status != 200:
            response.release()
        return response

    server.script("/x", [503, 401, ok])
    async with aiohttp.ClientSession(middlewares=(resend_until_200,)) as session:
        assert await connector(sdk, log).get(session, server.url("/x"), "P") == {"ok": True}
    assert sdk.span().attributes[RETRIES] == len(server.requests) - 1 == 2
    assert log.only().redirect_url == ""
