"""Tests against a server of another project: httpbin, served by werkzeug.

The two have peculiarities. Werkzeug closes the connection after every response and writes reason phrases in capitals.
In httpbin, ``/stream`` declares JSON but sends one JSON document per line, ``/image`` answers 406 to ``*/*`` (which
matches according to RFC 9110, section 12.5.1), ``/etag`` sends its tags without the quotes that section 8.8.3 requires,
and ``/status/308`` has no Location. ``seed=`` seeds the random numbers of the whole process, so it is not used.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from support.logs import Log
from support.outcomes import assert_span_carries
from support.sdk import SDK
from werkzeug.serving import WSGIRequestHandler, make_server

import otel_connector
from otel_connector import AsyncConnector, CallRecord
from otel_connector.testing import FakeClock


class _QuietHandler(WSGIRequestHandler):
    """HTTP/1.1 without a log line for each request."""

    protocol_version = "HTTP/1.1"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing."""


@dataclass
class Httpbin:
    """The running httpbin, and the paths that were requested."""

    url: str = ""
    paths: list[str] = field(default_factory=list)  # in the order of the requests

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Record the path and let httpbin answer."""
        import httpbin

        self.paths.append(environ["PATH_INFO"])
        return httpbin.app(environ, start_response)


@pytest.fixture(scope="session")
def running_httpbin() -> Iterator[Httpbin]:
    app = Httpbin()
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_QuietHandler)
    app.url = f"http://127.0.0.1:{server.port}"
    server.daemon_threads = False  # type: ignore[attr-defined] # closing waits for the last responses
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="httpbin")
    thread.start()
    yield app
    server.shutdown()
    thread.join()


@pytest.fixture
def httpbin_server(running_httpbin: Httpbin) -> Httpbin:
    running_httpbin.paths.clear()
    return running_httpbin


@dataclass(frozen=True)
class Case:
    """One call, its expected result and its expected row."""

    path: str
    expected: Any = None  # the value, or a predicate on it
    decode: Callable[[bytes], Any] = json.loads
    redirect: str = ""  # the path of the last redirect
    code: int | None = 200
    error: str = ""  # the start of the error in the row
    size: int | None = None  # None: the size of the body that `decode` gets
    attempts: int = 1
    redirects: int = 0
    url: str = ""  # the path in the row, if it differs from `path`
    options: dict[str, Any] = field(default_factory=dict)  # of get
    limits: dict[str, Any] = field(default_factory=dict)  # of the connector


def ends_with(suffix: str) -> Callable[[Any], bool]:
    return lambda value: value["url"].endswith(suffix)


def json_lines(body: bytes) -> list[int]:
    return [json.loads(line)["id"] for line in body.splitlines()]


def gunzipped(body: bytes) -> Any:
    return json.loads(gzip.decompress(body))


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


GET: dict[str, Any] = {"redirect": "/get", "expected": ends_with("/get")}
TOO_LARGE = "BodyTooLarge: body passed 49 bytes"

CASES = [
    # Statuses
    Case("/status/200", b"", decode=bytes),
    Case("/status/200", error="DecodeFailed: the body is empty", size=0),
    Case("/status/204", code=204, size=0),
    Case("/status/304", code=304, size=0),
    *(Case(f"/status/{code}", redirects=2, **GET) for code in (301, 302, 303, 307)),
    *(Case(f"/status/{code}", b"", decode=bytes, code=code) for code in (300, 305, 308)),
    Case("/status/404", code=404, error="HTTPStatusError: 404 NOT FOUND", size=0),
    Case("/status/406", code=406, error="HTTPStatusError: 406 NOT ACCEPTABLE", size=142),
    Case("/status/418", code=418, error="HTTPStatusError: 418 I'M A TEAPOT", size=135),
    Case("/status/500", code=500, error="HTTPStatusError: 500 INTERNAL SERVER ERROR", size=0, attempts=3),
    Case("/status/503", code=503, error="HTTPStatusError: 503 SERVICE UNAVAILABLE", size=0, attempts=3),
    Case("/status/600", code=600, error="HTTPStatusError: 600 UNKNOWN", size=0),
    # Redirects, ten of which are followed
    *(Case(f"/redirect/{count}", redirects=count, **GET) for count in (1, 3, 10)),
    Case(
        "/redirect/11",
        code=302,
        error="RedirectRefused: more than 10 redirects",
        size=0,
        redirect="/relative-redirect/1",
        redirects=10,
    ),
    Case("/absolute-redirect/3", redirects=3, **GET),
    Case("/relative-redirect/3", redirects=3, **GET),
    Case("/redirect-to?url=/get", redirects=1, **GET),
    Case(
        "/redirect-to?status_code=308&url=/bytes/9",
        lambda value: len(value) == 9,
        decode=bytes,
        redirect="/bytes/9",
        redirects=1,
    ),
    Case(
        "/redirect-to?url=/status/404", redirect="/status/404", redirects=1, code=404, error="HTTPStatusError", size=0
    ),
    Case("/redirect-to?url=ftp://h/x", code=302, error="RedirectRefused: ftp://h/x", size=0),
    Case(
        "/redirect/2", lambda page: b"/relative-redirect/1" in page, bytes, code=302, options={"allow_redirects": False}
    ),
    # Bodies
    Case("/gzip", lambda value: value["gzipped"]),
    Case("/gzip", lambda value: value["gzipped"], gunzipped, options={"auto_decompress": False}),
    Case("/brotli", lambda value: value["brotli"]),
    Case("/deflate", lambda value: value["deflated"]),
    Case("/drip?duration=0.01&numbytes=5", b"*****", bytes),
    Case("/drip?duration=0&numbytes=3&code=503", code=503, error="HTTPStatusError", size=3, attempts=3),
    Case("/drip?numbytes=0", code=400, error="HTTPStatusError: 400 BAD REQUEST", size=32),
    Case("/bytes/0", b"", bytes),
    Case("/bytes/102400", lambda value: len(value) == 102_400, bytes),
    Case("/bytes/50", lambda value: len(value) == 50, bytes, limits={"max_body_bytes": 50}),
    Case("/bytes/50", error=TOO_LARGE, size=50, limits={"max_body_bytes": 49}),
    Case("/stream-bytes/5000?chunk_size=7", lambda value: len(value) == 5000, bytes),
    Case("/range/26", b"bcd", bytes, code=206, options={"headers": {"Range": "bytes=1-3"}}),
    Case("/stream/3", [0, 1, 2], json_lines),
    Case("/stream/3", error="DecodeFailed: JSONDecodeError: Extra data", size=None),
    Case("/json", lambda value: value["slideshow"]["title"] == "Sample Slide Show"),
    Case("/html", lambda value: "Moby-Dick" in value, bytes.decode),
    Case("/html", error="DecodeFailed: JSONDecodeError: Expecting value", size=None),
    Case("/xml", lambda value: value.startswith("<?xml"), bytes.decode),
    Case("/encoding/utf8", lambda value: "∮ E⋅da = Q" in value, bytes.decode),
    Case("/image/png", lambda value: value.startswith(b"\x89PNG\r\n"), bytes),
    Case("/image/png", error="DecodeFailed: UnicodeDecodeError", size=None),
    Case("/image", code=406, error="HTTPStatusError: 406 NOT ACCEPTABLE", size=142),
    # Request options
    Case("/headers", lambda value: value["headers"]["X-Mine"] == "1", options={"headers": {"X-Mine": "1"}}),
    Case("/cookies", {"cookies": {"a": "1"}}, options={"cookies": {"a": "1"}}),
    Case("/basic-auth/u/p", {"authenticated": True, "user": "u"}, options={"headers": basic("u", "p")}),
    Case("/basic-auth/u/p", code=401, error="HTTPStatusError: 401 UNAUTHORIZED", size=0),
    Case("/bearer", {"authenticated": True, "token": "t"}, options={"headers": {"Authorization": "Bearer t"}}),
    Case(
        "/anything/ü?a=1",
        lambda value: value["args"] == {"a": ["1", "2"], "b": "x y&ü"},
        options={"params": [("a", "2"), ("b", "x y&ü")]},
        url="/anything/%C3%BC?a=1&a=2&b=x+y%26%C3%BC",
    ),
    Case("/anything?token=hush", lambda value: value["args"] == {"token": "hush"}, url="/anything?token=REDACTED"),
    # Caching
    Case("/etag/x", ends_with("/etag/x")),
    Case("/etag/x", ends_with("/etag/x"), options={"headers": {"If-None-Match": "y"}}),
    Case("/etag/x", code=304, size=0, options={"headers": {"If-None-Match": "x"}}),
    Case("/etag/x", code=412, error="HTTPStatusError", size=0, options={"headers": {"If-Match": "y"}}),
    Case("/cache", ends_with("/cache")),
    Case("/cache", code=304, size=0, options={"headers": {"If-None-Match": "x"}}),
    Case("/cache/60", ends_with("/cache/60")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.path} {case.error or case.code}")
async def test_result_row_and_span_of_a_call_agree(
    case: Case, httpbin_server: Httpbin, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    subject = AsyncConnector(log.path, n_tries=3, timeout=5, clock=FakeClock(), **case.limits, **sdk.providers)
    bodies: list[bytes] = []

    def decode(body: bytes) -> Any:
        bodies.append(body)
        return case.decode(body)

    call = subject.get(session, httpbin_server.url + case.path, "bin", decode=decode, **case.options)
    if case.error:
        with pytest.raises(getattr(otel_connector, case.error.split(":")[0])) as caught:
            await call
        assert caught.value.attempts == case.attempts
    else:
        value = await call
        assert case.expected(value) if callable(case.expected) else value == case.expected

    record, span = log.only(), sdk.span()
    assert record == CallRecord(
        call_id=f"{span.context.trace_id:032x}-{span.context.span_id:016x}",
        project="bin",
        t=record.t,
        delta_t=record.delta_t,
        url=httpbin_server.url + (case.url or case.path),
        redirect_url=httpbin_server.url + case.redirect if case.redirect else "",
        response_size=len(bodies[0]) if case.size is None else case.size,
        response_code=case.code,
        success=not case.error,
        error=record.error,
    )
    assert record.error.startswith(case.error)
    assert bool(record.error) == bool(case.error)
    assert_span_carries(span, record)
    assert span.attributes is not None
    assert span.attributes.get("http.response.status_code") == case.code
    assert len(httpbin_server.paths) == (case.redirects + 1) * case.attempts
    assert span.attributes.get("http.request.resend_count", 0) == len(httpbin_server.paths) - 1
    assert subject.stats().bytes_received == record.response_size


@pytest.mark.timing
async def test_a_response_later_than_the_timeout_raises_attempt_timeout(
    httpbin_server: Httpbin, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    subject = AsyncConnector(log.path, n_tries=1, timeout=0.2, **sdk.providers)
    with pytest.raises(TimeoutError, match=r"^no response within 0\.2 s$"):
        await subject.get(session, httpbin_server.url + "/delay/5", "bin")

    record = log.only()
    assert 0.2 <= record.delta_t < 4
    assert (record.response_code, record.response_size) == (None, 0)
    assert record.error == "AttemptTimeout: no response within 0.2 s"
    assert_span_carries(sdk.span(), record)


@pytest.mark.timing
@pytest.mark.parametrize("code", [200, 404])
async def test_a_body_later_than_the_timeout_fails_the_call_with_its_status_logged(
    code: int, httpbin_server: Httpbin, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    subject = AsyncConnector(log.path, n_tries=1, timeout=0.5, **sdk.providers)
    with pytest.raises(otel_connector.ConnectorError) as caught:
        await subject.get(session, httpbin_server.url + f"/drip?duration=5&numbytes=2&code={code}", "bin")

    # The status of an error response is known before its body
    expected = otel_connector.AttemptTimeout if code == 200 else otel_connector.HTTPStatusError
    assert type(caught.value) is expected
    record = log.only()
    assert 0.5 <= record.delta_t < 4
    assert (record.response_code, record.response_size) == (code, 1)
    assert_span_carries(sdk.span(), record)


@pytest.mark.timing
async def test_the_logged_duration_includes_the_body(
    httpbin_server: Httpbin, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    subject = AsyncConnector(log.path, timeout=5, **sdk.providers)
    await subject.get(session, httpbin_server.url + "/drip?duration=0.2&numbytes=4", "bin", decode=bytes)
    assert 0.15 <= log.only().delta_t < 1, "httpbin sleeps after each byte; the last sleep does not delay the call"
    assert_span_carries(sdk.span(), log.only())


async def test_cookies_are_kept_in_the_cookie_jar_of_the_session(httpbin_server: Httpbin, log: Log) -> None:
    url = httpbin_server.url + "/cookies/set?a=1&b=2"
    # By default aiohttp keeps no cookies of an IP address
    for unsafe, kept in ((False, {}), (True, {"a": "1", "b": "2"})):
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=unsafe)) as session:
            assert await AsyncConnector(log.path).get(session, url, "bin") == {"cookies": kept}
    assert {record.redirect_url for record in log.records()} == {httpbin_server.url + "/cookies"}


@pytest.mark.parametrize("propagate", [True, False])
async def test_trace_context_is_sent_unless_propagate_is_false(
    propagate: bool, httpbin_server: Httpbin, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    subject = AsyncConnector(log.path, propagate=propagate, **sdk.providers)
    sent = (await subject.get(session, httpbin_server.url + "/redirect-to?url=/headers", "bin"))["headers"]
    context = sdk.span().context
    wanted = f"00-{context.trace_id:032x}-{context.span_id:016x}-"
    assert sent.get("Traceparent", "").startswith(wanted) == propagate


async def test_without_an_sdk_no_trace_context_is_sent(
    httpbin_server: Httpbin, session: aiohttp.ClientSession, log: Log
) -> None:
    sent = (await AsyncConnector(log.path).get(session, httpbin_server.url + "/headers", "bin"))["headers"]
    assert "Traceparent" not in sent
    assert log.only().call_id.strip("0-") != ""


async def test_a_password_in_the_url_is_sent_and_redacted_in_the_row(
    httpbin_server: Httpbin, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    url = httpbin_server.url.replace("//", "//u:p@") + "/basic-auth/u/p"
    subject = AsyncConnector(log.path, **sdk.providers)
    assert (await subject.get(session, url, "bin"))["authenticated"]
    record = log.only()
    assert (record.url, record.redirect_url) == (url.replace("u:p@", "REDACTED:REDACTED@"), "")
    assert_span_carries(sdk.span(), record)


async def test_concurrent_calls_each_have_their_row_and_span(
    httpbin_server: Httpbin, session: aiohttp.ClientSession, log: Log, sdk: SDK
) -> None:
    subject = AsyncConnector(log.path, n_tries=1, **sdk.providers)
    paths = ["/get", "/status/404", "/redirect/2", "/gzip", "/bytes/10", "/stream/2", "/status/503", "/brotli"] * 5
    await asyncio.gather(
        *(subject.get(session, f"{httpbin_server.url}{path}", str(n), default=None) for n, path in enumerate(paths))
    )
    spans = {
        span.attributes["otel_connector.call_id"]: span for span in sdk.spans.get_finished_spans() if span.attributes
    }
    records = log.records()
    assert sorted(int(record.project) for record in records) == list(range(len(paths)))
    assert {record.call_id for record in records} == set(spans)
    for record in records:
        assert_span_carries(spans[record.call_id], record)
        assert record.url == httpbin_server.url + paths[int(record.project)]
