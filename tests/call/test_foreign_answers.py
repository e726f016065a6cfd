"""Answers that nobody here wrote: other projects' vectors, sent byte for byte by a server on the loopback.

Whatever comes, a call ends within its time, returns or raises a documented class, leaves one row of one line and one
span that agree, and all the calls of a test together need no more memory than the cap and 8 MiB and leave no task,
thread or socket.
"""

from __future__ import annotations

import csv
import gzip
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from unicodedata import category

import aiohttp
import pytest
from support.logs import Log
from support.loop_and_memory import ALLOWANCE, closed_session, free_again, leaves_nothing, needs_at_most
from support.processes import TESTS
from support.sdk import SDK

import otel_connector
from otel_connector import AsyncConnector, Attempt, CallRecord, RetryBudget, RetryPolicy
from otel_connector._csv_format import decode_row
from otel_connector.testing import Connection, FakeClock, FaultServer, Step, json_body, ok, respond, retry_after

DATA = TESTS / "data"
CAP = 1_000_000
SECONDS = 2.0
"""For one attempt. A call here has at most two, and waits on a clock that takes no time."""

SIX_HOURS = 21_600
BIDI = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

BACKOFF = 0.25  # what half of the first back-off is: the chance of `FakeClock` times `RetryPolicy.backoff`


def wire(data: bytes) -> Step:
    """Send these bytes and close."""

    async def play(connection: Connection) -> None:
        await connection.send(data)
        connection.close()

    return Step(name=f"wire({data[:20]!r})", play=play)


def strings(name: str) -> Any:
    return json.loads((DATA / name).read_text(encoding="utf-8"))["cases"]


@dataclass
class Ending:
    """How one call ended, and what it left."""

    value: Any
    error: Exception | None
    record: CallRecord
    sleeps: list[float]

    @property
    def kind(self) -> str:
        return "" if self.error is None else type(self.error).__name__


@dataclass
class Bench:
    """A connector of which every call is checked for what holds of all of them."""

    server: FaultServer
    session: aiohttp.ClientSession
    log: Log
    sdk: SDK
    clock: FakeClock
    subject: AsyncConnector
    read: int = field(default=0)  # bytes of the log that were looked at

    async def ask(self, steps: Any, **options: Any) -> Ending:
        """Make one call that gets `steps`."""
        self.server.script("/v", steps)
        return await self.call(self.server.url("/v"), "P", **options)

    async def call(self, url: str, project: str, **options: Any) -> Ending:
        """Make one call."""
        self.clock.sleeps.clear()
        self.sdk.spans.clear()
        started, value, error = time.perf_counter(), None, None
        try:
            value = await self.subject.get(self.session, url, project, **options)
        except otel_connector.ConnectorError as caught:
            error = caught
        assert time.perf_counter() - started < 2.5 * SECONDS
        assert error is None or type(error).__name__ in otel_connector.__all__
        assert free_again(self.session)
        return Ending(value, error, self._only_record(error), list(self.clock.sleeps))

    def _only_record(self, error: Exception | None) -> CallRecord:
        with self.log.path.open("rb") as file:
            file.seek(self.read)
            added = file.read()
        self.read += len(added)
        text = added.decode()
        assert text.endswith("\n")
        assert len(text.splitlines()) == 1, "one row is one physical line, whatever is called a line"
        assert not [letter for letter in text[:-1] if category(letter) in {"Cc", "Cs", "Zl", "Zp"} or letter in BIDI]
        record = decode_row(next(csv.reader([text])))
        span = self.sdk.span()
        assert record.call_id == f"{span.context.trace_id:032x}-{span.context.span_id:016x}"
        assert record.success == (error is None) == ("error.type" not in span.attributes)
        assert error is None or record.error.startswith(type(error).__name__)
        return record


@asynccontextmanager
async def bench(server: FaultServer, log: Log, sdk: SDK, start: float = 1.7e9, **options: Any) -> AsyncIterator[Bench]:
    clock = FakeClock(start)
    arguments: dict[str, Any] = {"n_tries": 2, "timeout": SECONDS, "max_body_bytes": CAP, **options}
    subject = AsyncConnector(log.path, clock=clock, **sdk.providers, **arguments)
    with needs_at_most(CAP + ALLOWANCE):
        async with leaves_nothing(), closed_session() as session:
            yield Bench(server, session, log, sdk, clock, subject, read=log.path.stat().st_size)
    await subject.aclose()


# Retry-After, and what is retried


def at(*date: int) -> float:
    return datetime(*date, tzinfo=timezone.utc).timestamp()  # type: ignore[misc,arg-type]


@dataclass(frozen=True)
class Asked:
    """A Retry-After and the wait that follows; None where it cannot be read and the back-off holds."""

    source: str
    value: str
    wait: float | None
    now: float = 1.7e9


URLLIB3 = "urllib3 2.8.0, test/test_retry.py"
BOTOCORE = "botocore 1.44.5, tests/unit/retries/test_standard.py"
RFC9110 = "RFC 9110, sections 5.6.7 and 10.2.3"
JUNE = at(2019, 6, 3, 11)
NOVEMBER = at(1994, 11, 6, 8, 48, 37)

ASKED = [
    *[Asked(URLLIB3, value, wait) for value, wait in [("0", 0), ("1000", 1000), ("\t42 ", 42), ("3600", 3600)]],
    *[Asked(URLLIB3, value, None) for value in ("-1", "+1", "1.0", "\xb2")],
    Asked(URLLIB3, "Mon, 3 Jun 2019 12:00:00 UTC", 3600, JUNE),
    Asked(URLLIB3, "Mon, 3 Jun 2019 11:00:00 UTC", 0, JUNE),
    Asked(URLLIB3, "Mon, 03 Jun 2019 11:30:12 GMT", 1812, JUNE),
    Asked(URLLIB3, "Monday, 03-Jun-19 11:30:12 GMT", 1812, JUNE),
    Asked(URLLIB3, "Mon Jun  3 11:30:12 2019", 1812, JUNE),
    *[Asked(BOTOCORE, value, wait) for value, wait in [("1500", 1500), ("0", 0), ("10000", 10_000)]],
    *[Asked(BOTOCORE, value, None) for value in ("invalid", "-100")],
    Asked(RFC9110, "120", 120),
    Asked(RFC9110, "Fri, 31 Dec 1999 23:59:59 GMT", 9, at(1999, 12, 31, 23, 59, 50)),
    Asked(RFC9110, "Sun, 06 Nov 1994 08:49:37 GMT", 60, NOVEMBER),
    Asked(RFC9110, "Sunday, 06-Nov-94 08:49:37 GMT", 60, NOVEMBER),
    Asked(RFC9110, "Sun Nov  6 08:49:37 1994", 60, NOVEMBER),
    Asked("curl, CURLINFO_RETRY_AFTER", str(SIX_HOURS), SIX_HOURS),
]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: f"{asked.source.split()[0]}-{asked.value}")
async def test_retry_after(asked: Asked, server: FaultServer, log: Log, sdk: SDK) -> None:
    policy = RetryPolicy(retry_after_cap=SIX_HOURS)
    async with bench(server, log, sdk, asked.now, retry=policy) as subject:
        ending = await subject.ask([retry_after(asked.value), ok])

    assert ending.value == {"ok": True}
    # For 0 there is the back-off, in urllib3, too: its sleep_for_retry has then nothing to do
    assert ending.sleeps == [pytest.approx(asked.wait or BACKOFF, abs=1e-3)]


@pytest.mark.parametrize("seconds", [SIX_HOURS + 1, 10**400], ids=["a second", "beyond float"])
async def test_retry_after_above_the_cap(seconds: int, server: FaultServer, log: Log, sdk: SDK) -> None:
    """The one thing done otherwise: urllib3 and curl cut what is above six hours down to them, and then wait."""
    async with bench(server, log, sdk, retry=RetryPolicy(retry_after_cap=SIX_HOURS)) as subject:
        ending = await subject.ask([retry_after(seconds), ok])

    assert isinstance(ending.error, otel_connector.HTTPStatusError)
    assert ending.error.retry_after == float(str(seconds))
    assert ending.sleeps == []


STATUSES = {
    BOTOCORE: {200: False, 400: False, 429: True, 500: True, 502: True, 503: True, 504: True},
    URLLIB3: {418: False},
}
DIFFERENT_STATUSES = {
    509: f"{BOTOCORE}: retried for the error code BandwidthLimitExceeded in the body, which is not read here",
    413: "urllib3 2.8.0, Retry.RETRY_AFTER_STATUS_CODES: an answer too large for the server will be so again",
}


async def test_statuses_that_are_retried(server: FaultServer, log: Log, sdk: SDK) -> None:
    expected = {status: retried for table in STATUSES.values() for status, retried in table.items()}
    expected.update(dict.fromkeys(DIFFERENT_STATUSES, False))
    async with bench(server, log, sdk) as subject:
        for status, retried in expected.items():
            ending = await subject.ask([respond(status, b"1", [("Retry-After", "1")]), ok])
            assert ending.sleeps == ([1.0] if retried else []), status


@pytest.mark.parametrize(("header", "left", "waits"), [("1500", 486, BACKOFF), ("invalid", 486, BACKOFF)])
async def test_budget(header: str, left: int, waits: float, server: FaultServer, log: Log, sdk: SDK) -> None:
    """Botocore's capacities after a failure and the success that follows; its ``x-amz-retry-after`` is nothing here."""
    capacities: list[int] = []

    def note(_attempt: Attempt) -> None:
        capacities.append(capacity())

    def capacity() -> int:
        buckets = subject.subject._terms.buckets
        assert buckets is not None
        return budget.capacity - sum(buckets._spent.values())

    budget = RetryBudget()
    async with bench(server, log, sdk, retry_budget=budget, on_retry=note) as subject:
        ending = await subject.ask([respond(500, b"", [("x-amz-retry-after", header)]), ok])
        capacities.append(capacity())

    assert capacities == [left, 500]
    assert ending.sleeps == [waits]


# curl's limits


CURL_LINE, CURL_HEAD, CURL_HEADERS, CURL_CODINGS, CURL_CHUNK_DIGITS = 100 * 1024, 300 * 1024, 5_000, 5, 16
"""curl 8, ``include/curl/curl.h``, ``lib/http.h``, ``lib/headers.h``, ``lib/content_encoding.c``,
``lib/http_chunks.h``: bytes of one header line and of all, header lines, content codings, digits of a chunk's size."""


def answer(*lines: bytes, body: bytes = b"1", length: bool = True) -> Step:
    framing = [b"Content-Length: %d" % len(body)] if length else []
    return wire(b"\r\n".join([b"HTTP/1.1 200 OK", *framing, *lines, b"", body]))


def codings(count: int) -> Step:
    body = b"1"
    for _ in range(count):
        body = gzip.compress(body)
    return respond(body=body, headers=[("Content-Encoding", ", ".join(["gzip"] * count))])


def chunk(digits: bytes) -> Step:
    return answer(b"Transfer-Encoding: chunked", body=digits + b"\r\n1", length=False)


CURL = {
    "a line of the longest": (answer(b"X: " + b"a" * (CURL_LINE - 5)), "MalformedResponse"),
    "a line too long": (answer(b"X: " + b"a" * CURL_LINE), "MalformedResponse"),
    "a head too long": (answer(*[b"X: " + b"a" * 4_000] * (CURL_HEAD // 4_000 + 1)), ""),
    "the most lines": (answer(*[b"X: a"] * (CURL_HEADERS - 1)), "MalformedResponse"),
    "too many lines": (answer(*[b"X: a"] * (CURL_HEADERS + 1)), "MalformedResponse"),
    "the most codings": (codings(CURL_CODINGS), ""),
    "too many codings": (codings(CURL_CODINGS + 1), "DecodeFailed"),
    "the longest size of a chunk": (chunk(b"7" + b"f" * (CURL_CHUNK_DIGITS - 1)), "BodyTruncated"),
    "a chunk's size too long": (chunk(b"1" + b"0" * CURL_CHUNK_DIGITS), "MalformedResponse"),
    "a chunk's size too long by zeros": (chunk(b"0" * CURL_CHUNK_DIGITS + b"1"), "BodyTruncated"),
}


@pytest.mark.parametrize("name", CURL)
async def test_limits(name: str, server: FaultServer, log: Log, sdk: SDK) -> None:
    """Of lines the limits are aiohttp's here, 8,190 bytes each and 128 of them; of codings curl's."""
    step, kind = CURL[name]
    async with bench(server, log, sdk) as subject:
        assert (await subject.ask(step)).kind == kind


# JSON


LAXER = {
    "n_number_NaN": "json.loads reads NaN",
    "n_number_infinity": "json.loads reads Infinity",
    "n_number_minus_infinity": "json.loads reads -Infinity",
}
"""What must not be JSON and is to Python's json, and so to `get`; ``decode=`` takes a stricter reader."""


def parsed(body: bytes) -> Any:
    """Return what json.loads makes of it, as text, because NaN is not equal to itself; None if it raises."""
    try:
        return repr(json.loads(body))
    except (ValueError, RecursionError):
        return None


@pytest.mark.parametrize("kind", ["y", "n", "i"])
async def test_json(kind: str, server: FaultServer, log: Log, sdk: SDK) -> None:
    cases = {name: case for name, case in strings("json_test_suite.json").items() if name.startswith(kind)}
    assert len(cases) > 30
    different: list[str] = []
    async with bench(server, log, sdk) as subject:
        for name, case in cases.items():
            text = case if isinstance(case, str) else case[1] * case[0] + "".join(case[2:])
            ending = await subject.ask(respond(body=text.encode()))
            value = parsed(text.encode())
            assert ending.kind == ("DecodeFailed" if value is None else ""), name
            assert value is None or repr(ending.value) == value, name
            assert ending.record.response_size == len(text.encode()), name
            if kind != "i" and (value is None) != (kind == "n"):
                different.append(name)

    assert different == (list(LAXER) if kind == "n" else [])


# Naughty strings


def naughty() -> list[str]:
    found: list[str] = strings("naughty_strings.json")
    assert len(found) > 400
    # aiohttp reads a host that is a number as a name; here no name leads anywhere
    return [*found, "\r\nSet-Cookie: a=b", "a\nb", "a\rb", "\x00", "\x1b[31m", "\u2028", "\u202e", "=1+1", "\x85"]


def kinds(endings: Sequence[Ending]) -> set[str]:
    return {ending.kind for ending in endings}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_location(status: int, server: FaultServer, log: Log, sdk: SDK) -> None:
    async with bench(server, log, sdk) as subject:
        endings = [
            await subject.ask(wire(b"HTTP/1.1 %d x\r\nLocation: %b\r\n\r\n" % (status, text.encode())))
            for text in naughty()[status % 5 :: 5]
        ]

    expected = {"", "HTTPStatusError", "ConnectFailed", "RedirectRefused", "MalformedResponse", "DecodeFailed"}
    assert kinds(endings) <= expected


HEADERS = [b"X-Naughty", b"Content-Type", b"Content-Encoding", b"Transfer-Encoding", b"Content-Length", b"Set-Cookie"]
HEADERS += [b"Connection", b"Retry-After", b"Date", b"Content-Range", b"Upgrade"]


@pytest.mark.parametrize("header", HEADERS)
async def test_header(header: bytes, server: FaultServer, log: Log, sdk: SDK) -> None:
    index, status = HEADERS.index(header), 503 if header == b"Retry-After" else 200
    async with bench(server, log, sdk) as subject:
        endings = [
            await subject.ask(wire(b"HTTP/1.1 %d x\r\n%b: %b\r\n\r\n1" % (status, header, text.encode())))
            for text in naughty()[index % 5 :: 5]
        ]

    assert kinds(endings) <= {"", "HTTPStatusError", "MalformedResponse", "DecodeFailed", "BodyTruncated"}


async def test_name_of_a_header(server: FaultServer, log: Log, sdk: SDK) -> None:
    async with bench(server, log, sdk) as subject:
        for text in naughty()[::2]:
            ending = await subject.ask(wire(b"HTTP/1.1 200 OK\r\n%b: 1\r\n\r\n1" % text.encode()))
            assert ending.kind in {"", "MalformedResponse", "DecodeFailed", "BodyTruncated"}, text


async def test_reason(server: FaultServer, log: Log, sdk: SDK) -> None:
    async with bench(server, log, sdk) as subject:
        for text in naughty():
            head = b"HTTP/1.1 404 %b\r\nContent-Length: 0\r\n\r\n" % text.encode()
            assert (await subject.ask(wire(head))).kind in {"HTTPStatusError", "MalformedResponse"}, text


async def test_body(server: FaultServer, log: Log, sdk: SDK) -> None:
    """As JSON it comes back as it is; as it stands it is undecodable, and what is said of it is one line."""
    async with bench(server, log, sdk) as subject:
        for text in naughty():
            assert (await subject.ask(json_body(text))).value == text
            ending = await subject.ask(respond(body=text.encode()))
            assert ending.kind == ("DecodeFailed" if parsed(text.encode()) is None else ""), text


async def test_url_and_project(server: FaultServer, log: Log, sdk: SDK) -> None:
    async with bench(server, log, sdk) as subject:
        for text in naughty():
            ending = await subject.call(text, text)
            assert ending.kind in {"InvalidURL", "ConnectFailed"}, text
            ending = await subject.call(f"{server.url('/')}{text}?{text}#{text}", text)
            assert ending.kind in {"HTTPStatusError", "InvalidURL"}, text
