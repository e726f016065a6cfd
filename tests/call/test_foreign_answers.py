"""Responses from the test vectors of other projects, sent byte for byte by a server on the loopback interface.

In every case, a call ends in time, returns or raises a documented error, and leaves one row on one line and one span,
which agree. All calls of a test together need no more memory than the cap plus 8 MiB, and leave no task, thread or
socket.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import aiohttp
import pytest
from support.logs import Log
from support.loop_and_memory import ALLOWANCE, is_idle, leaves_nothing, local_session, needs_at_most
from support.processes import TESTS
from support.samples import every
from support.sdk import SDK

import otel_connector
from otel_connector import AsyncConnector, Attempt, CallRecord, RetryBudget, RetryPolicy
from otel_connector._csv._format import decode_row
from otel_connector.testing import Connection, FakeClock, FaultServer, Step, json_body, ok, respond, retry_after

DATA = TESTS / "data"
CAP = 1_000_000
SECONDS = 2.0
"""Timeout of one attempt. A call has at most two attempts, and waits by a fake clock."""

SIX_HOURS = 21_600
UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029"  # the categories Cc, Cs, Zl and Zp
    "\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]"  # that change the direction of a text
)

BACKOFF = 0.25  # half of the first backoff: the random number of `FakeClock` times `RetryPolicy.backoff`


def wire(data: bytes) -> Step:
    """Send these bytes and close."""

    async def play(connection: Connection) -> None:
        await connection.send(data)
        connection.close()

    return Step(name=f"wire({data[:20]!r})", play=play)


def vectors(name: str) -> Any:
    return json.loads((DATA / name).read_text(encoding="utf-8"))["cases"]


@dataclass
class CallResult:
    """Value or error of one call, its row, and its waits."""

    value: Any
    error: Exception | None
    record: CallRecord
    sleeps: list[float]

    @property
    def kind(self) -> str:
        return "" if self.error is None else type(self.error).__name__


@dataclass
class CheckedConnector:
    """A connector that checks for every call what the docstring of this module states."""

    server: FaultServer
    session: aiohttp.ClientSession
    log: Log
    sdk: SDK
    clock: FakeClock
    subject: AsyncConnector
    read: int = field(default=0)  # bytes of the log that were checked

    async def call_with_response(self, steps: Any, **options: Any) -> CallResult:
        """Make one call to which the server responds with `steps`."""
        self.server.script("/v", steps)
        return await self.call(self.server.url("/v"), "P", **options)

    async def call(self, url: str, project: str, **options: Any) -> CallResult:
        """Make one call."""
        self.clock.sleeps.clear()
        self.sdk.spans.clear()
        value, error = None, None
        try:
            value = await asyncio.wait_for(self.subject.get(self.session, url, project, **options), 2.5 * SECONDS)
        except otel_connector.ConnectorError as caught:
            error = caught
        assert error is None or type(error).__name__ in otel_connector.__all__
        assert is_idle(self.session)
        return CallResult(value, error, self._only_record(error), list(self.clock.sleeps))

    def _only_record(self, error: Exception | None) -> CallRecord:
        with self.log.path.open("rb") as file:
            file.seek(self.read)
            added = file.read()
        self.read += len(added)
        text = added.decode()
        assert text.endswith("\n")
        assert len(text.splitlines()) == 1, "one row is one line, also for readers that know other line ends"
        assert UNSAFE.search(text[:-1]) is None
        record = decode_row(next(csv.reader([text])))
        span = self.sdk.span()
        assert record.call_id == f"{span.context.trace_id:032x}-{span.context.span_id:016x}"
        assert record.success == (error is None) == ("error.type" not in span.attributes)
        assert error is None or record.error.startswith(type(error).__name__)
        return record


@asynccontextmanager
async def checked_connector(
    server: FaultServer, log: Log, sdk: SDK, start: float = 1.7e9, **options: Any
) -> AsyncIterator[CheckedConnector]:
    clock = FakeClock(start)
    arguments: dict[str, Any] = {"n_tries": 2, "timeout": SECONDS, "max_body_bytes": CAP, **options}
    subject = AsyncConnector(log.path, clock=clock, **sdk.providers, **arguments)
    with needs_at_most(CAP + ALLOWANCE):
        async with leaves_nothing(), local_session() as session:
            yield CheckedConnector(server, session, log, sdk, clock, subject, read=log.path.stat().st_size)
    await subject.aclose()


# Retry-After, retried statuses and the retry budget


def at(*date: int) -> float:
    return datetime(*date, tzinfo=timezone.utc).timestamp()  # type: ignore[misc,arg-type]


@dataclass(frozen=True)
class RetryAfterCase:
    """A Retry-After header and the expected wait; None if the header is invalid and the backoff applies."""

    source: str
    value: str
    wait: float | None
    now: float = 1.7e9


URLLIB3 = "urllib3 2.8.0, test/test_retry.py"
BOTOCORE = "botocore 1.44.5, tests/unit/retries/test_standard.py"
FRACTIONS = "Shopify, SpaceTraders (urllib3#2861) and Sentry (sentry#7919)"
RFC9110 = "RFC 9110, sections 5.6.7 and 10.2.3"
JUNE = at(2019, 6, 3, 11)
NOVEMBER = at(1994, 11, 6, 8, 48, 37)

RETRY_AFTER_CASES = [
    *[
        RetryAfterCase(URLLIB3, value, wait)
        for value, wait in [("0", 0), ("1000", 1000), ("\t42 ", 42), ("3600", 3600)]
    ],
    *[RetryAfterCase(URLLIB3, value, None) for value in ("-1", "+1", "\xb2")],
    # urllib3 raises InvalidHeader for these; curl waits for the seconds before the point, and we round up
    *[RetryAfterCase(FRACTIONS, value, wait) for value, wait in [("2.0", 2), ("0.493", 1), ("292.052427053", 293)]],
    RetryAfterCase(URLLIB3, "Mon, 3 Jun 2019 12:00:00 UTC", 3600, JUNE),
    RetryAfterCase(URLLIB3, "Mon, 3 Jun 2019 11:00:00 UTC", 0, JUNE),
    RetryAfterCase(URLLIB3, "Mon, 03 Jun 2019 11:30:12 GMT", 1812, JUNE),
    RetryAfterCase(URLLIB3, "Monday, 03-Jun-19 11:30:12 GMT", 1812, JUNE),
    RetryAfterCase(URLLIB3, "Mon Jun  3 11:30:12 2019", 1812, JUNE),
    *[RetryAfterCase(BOTOCORE, value, wait) for value, wait in [("1500", 1500), ("0", 0), ("10000", 10_000)]],
    *[RetryAfterCase(BOTOCORE, value, None) for value in ("invalid", "-100")],
    RetryAfterCase(RFC9110, "120", 120),
    RetryAfterCase(RFC9110, "Fri, 31 Dec 1999 23:59:59 GMT", 9, at(1999, 12, 31, 23, 59, 50)),
    RetryAfterCase(RFC9110, "Sun, 06 Nov 1994 08:49:37 GMT", 60, NOVEMBER),
    RetryAfterCase(RFC9110, "Sunday, 06-Nov-94 08:49:37 GMT", 60, NOVEMBER),
    RetryAfterCase(RFC9110, "Sun Nov  6 08:49:37 1994", 60, NOVEMBER),
    RetryAfterCase("curl, CURLINFO_RETRY_AFTER", str(SIX_HOURS), SIX_HOURS),
]


@pytest.mark.parametrize("case", RETRY_AFTER_CASES, ids=lambda case: f"{case.source.split()[0]}-{case.value}")
async def test_retry_after_is_obeyed_as_by_other_clients(
    case: RetryAfterCase, server: FaultServer, log: Log, sdk: SDK
) -> None:
    policy = RetryPolicy(retry_after_cap=SIX_HOURS)
    async with checked_connector(server, log, sdk, case.now, retry=policy) as subject:
        result = await subject.call_with_response([retry_after(case.value), ok])

    assert result.value == {"ok": True}
    # For 0 the backoff applies, as in urllib3, whose sleep_for_retry then does not sleep
    assert result.sleeps == [pytest.approx(case.wait or BACKOFF, abs=1e-3)]


FRIDAY, THURSDAY = "Fri, 31 Dec 1999 23:59:59 GMT", "Thursday, 30-Dec-99 23:59:59 GMT"
DATES = {
    # Date, Age, seconds from the server's clock to ours: RFC 9110, section 6.6.1; RFC 9111, section 4.2.3
    "server 30 s behind": (["Fri, 31 Dec 1999 23:59:49 GMT"], None, 30, 10),
    "server 8 s ahead": (["Fri, 31 Dec 1999 23:59:49 GMT"], None, -8, 10),
    "rfc850-date": (["Friday, 31-Dec-99 23:59:49 GMT"], None, 30, 10),
    "asctime-date": (["Fri Dec 31 23:59:49 1999"], None, 30, 10),
    "from a cache": (["Fri, 31 Dec 1999 23:59:39 GMT"], "10", 30, 10),
    "invalid Age": (["Fri, 31 Dec 1999 23:59:49 GMT"], "-10", 30, 10),
    "no Date": ([], None, 3, 7),
    "invalid Date": (["yesterday"], None, 3, 7),
    "two dates": (["Fri, 31 Dec 1999 23:59:49 GMT", "Fri, 31 Dec 1999 23:59:40 GMT"], None, 3, 7),
    "empty Date": ([""], None, 3, 7),
}


@pytest.mark.parametrize("value", [FRIDAY, "Friday, 31-Dec-99 23:59:59 GMT", "Fri Dec 31 23:59:59 1999"])
@pytest.mark.parametrize("case", DATES)
async def test_a_date_is_compared_with_the_clock_of_the_server(
    case: str, value: str, server: FaultServer, log: Log, sdk: SDK
) -> None:
    """Without a valid Date, it is compared with our clock."""
    dates, age, ahead, wait = DATES[case]
    headers = [*(("Date", date) for date in dates), ("Retry-After", value), *([("Age", age)] if age else [])]
    now = at(1999, 12, 31, 23, 59, 49) + ahead
    async with checked_connector(server, log, sdk, now, retry=RetryPolicy(retry_after_cap=SIX_HOURS)) as subject:
        result = await subject.call_with_response([respond(503, headers=headers), ok])

    assert result.value == {"ok": True}
    assert result.sleeps == [pytest.approx(wait, abs=1e-3)]


@pytest.mark.parametrize(
    ("values", "wait"),
    [(["2", "7"], 7), (["7", "2"], 7), (["soon", "7"], 7), ([THURSDAY, "7"], 7), (["soon", ""], None)],
)
async def test_of_several_values_the_longest_wait_counts(
    values: list[str], wait: float | None, server: FaultServer, log: Log, sdk: SDK
) -> None:
    """Each value is a minimum (RFC 9110, section 10.2.3); curl uses the last one, which may be too short."""
    async with checked_connector(server, log, sdk) as subject:
        result = await subject.call_with_response(
            [respond(503, headers=[("Retry-After", value) for value in values]), ok]
        )

    assert result.value == {"ok": True}
    assert result.sleeps == [wait or BACKOFF]


@pytest.mark.parametrize("seconds", [SIX_HOURS + 1, 10**400], ids=["a second", "beyond float"])
async def test_a_retry_after_above_the_cap_is_not_retried(
    seconds: int, server: FaultServer, log: Log, sdk: SDK
) -> None:
    """Urllib3 and curl, in contrast, reduce longer waits to six hours, and then wait."""
    async with checked_connector(server, log, sdk, retry=RetryPolicy(retry_after_cap=SIX_HOURS)) as subject:
        result = await subject.call_with_response([retry_after(seconds), ok])

    assert isinstance(result.error, otel_connector.HTTPStatusError)
    assert result.error.retry_after == float(str(seconds))
    assert result.sleeps == []


STATUSES = {
    BOTOCORE: {200: False, 400: False, 429: True, 500: True, 502: True, 503: True, 504: True},
    URLLIB3: {418: False},
}
DIFFERENT_STATUSES = {
    509: f"{BOTOCORE}: retried for the error code BandwidthLimitExceeded in the body, which is not read here",
    413: "urllib3 2.8.0, Retry.RETRY_AFTER_STATUS_CODES: a request that is too large is rejected again",
}


async def test_retried_statuses_match_other_clients_except_for_documented_differences(
    server: FaultServer, log: Log, sdk: SDK
) -> None:
    expected = {status: retried for table in STATUSES.values() for status, retried in table.items()}
    expected.update(dict.fromkeys(DIFFERENT_STATUSES, False))
    async with checked_connector(server, log, sdk) as subject:
        for status, retried in expected.items():
            result = await subject.call_with_response([respond(status, b"1", [("Retry-After", "1")]), ok])
            assert result.sleeps == ([1.0] if retried else []), status


@pytest.mark.parametrize(("header", "left", "waits"), [("1500", 486, BACKOFF), ("invalid", 486, BACKOFF)])
async def test_the_retry_budget_has_the_capacities_of_botocore(
    header: str, left: int, waits: float, server: FaultServer, log: Log, sdk: SDK
) -> None:
    """The capacities after a failure and the success that follows. Botocore's ``x-amz-retry-after`` is ignored."""
    capacities: list[int] = []

    def record_capacity(_attempt: Attempt) -> None:
        capacities.append(capacity())

    def capacity() -> int:
        quotas = subject.subject._settings.quotas
        assert quotas is not None
        return budget.capacity - sum(quotas._spent.values())

    budget = RetryBudget()
    async with checked_connector(server, log, sdk, retry_budget=budget, on_retry=record_capacity) as subject:
        result = await subject.call_with_response([respond(500, b"", [("x-amz-retry-after", header)]), ok])
        capacities.append(capacity())

    assert capacities == [left, 500]
    assert result.sleeps == [waits]


# Limits of curl


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
    "the longest line": (answer(b"X: " + b"a" * (CURL_LINE - 5)), "MalformedResponse"),
    "a line too long": (answer(b"X: " + b"a" * CURL_LINE), "MalformedResponse"),
    "a head too long": (answer(*[b"X: " + b"a" * 4_000] * (CURL_HEAD // 4_000 + 1)), ""),
    "the largest number of lines": (answer(*[b"X: a"] * (CURL_HEADERS - 1)), "MalformedResponse"),
    "too many lines": (answer(*[b"X: a"] * (CURL_HEADERS + 1)), "MalformedResponse"),
    "the largest number of codings": (codings(CURL_CODINGS), ""),
    "too many codings": (codings(CURL_CODINGS + 1), "DecodeFailed"),
    "the longest chunk size": (chunk(b"7" + b"f" * (CURL_CHUNK_DIGITS - 1)), "BodyTruncated"),
    "a chunk size too long": (chunk(b"1" + b"0" * CURL_CHUNK_DIGITS), "MalformedResponse"),
    "a chunk size too long because of zeros": (chunk(b"0" * CURL_CHUNK_DIGITS + b"1"), "BodyTruncated"),
}


@pytest.mark.parametrize("name", CURL)
async def test_responses_at_the_limits_of_curl_end_with_the_expected_outcome(
    name: str, server: FaultServer, log: Log, sdk: SDK
) -> None:
    """For header lines the limits of aiohttp apply: 128 lines of 8,190 bytes. For codings those of curl apply."""
    step, kind = CURL[name]
    async with checked_connector(server, log, sdk) as subject:
        assert (await subject.call_with_response(step)).kind == kind


# JSON


ACCEPTED_BY_PYTHON = {
    "n_number_NaN": "json.loads reads NaN",
    "n_number_infinity": "json.loads reads Infinity",
    "n_number_minus_infinity": "json.loads reads -Infinity",
}
"""Invalid JSON that Python's json accepts, and therefore `get`. A stricter parser can be passed as ``decode=``."""


def parsed(body: bytes) -> Any:
    """Return the result of json.loads as text, because NaN is not equal to itself, or None if it raises."""
    try:
        return repr(json.loads(body))
    except (ValueError, RecursionError):
        return None


@pytest.mark.parametrize("kind", ["y", "n", "i"])
async def test_json_vectors_are_decoded_as_by_json_loads(kind: str, server: FaultServer, log: Log, sdk: SDK) -> None:
    cases = {name: case for name, case in vectors("json_test_suite.json").items() if name.startswith(kind)}
    assert len(cases) > 30
    different: list[str] = []
    async with checked_connector(server, log, sdk) as subject:
        for name, case in cases.items():
            text = case if isinstance(case, str) else case[1] * case[0] + "".join(case[2:])
            result = await subject.call_with_response(respond(body=text.encode()))
            value = parsed(text.encode())
            assert result.kind == ("DecodeFailed" if value is None else ""), name
            assert value is None or repr(result.value) == value, name
            assert result.record.response_size == len(text.encode()), name
            if kind != "i" and (value is None) != (kind == "n"):
                different.append(name)

    assert different == (list(ACCEPTED_BY_PYTHON) if kind == "n" else [])


# Naughty strings


def naughty() -> list[str]:
    found: list[str] = vectors("naughty_strings.json")
    assert len(found) > 400
    # aiohttp treats a host that is a number as a name; the session here resolves no names
    own = ["\r\nSet-Cookie: a=b", "a\nb", "a\rb", "\x00", "\x1b[31m", "\u2028", "\u202e", "=1+1", "\x85"]
    return [*every(3, found), *own]


def kinds(results: Sequence[CallResult]) -> set[str]:
    return {result.kind for result in results}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_to_naughty_strings_end_with_an_expected_outcome(
    status: int, server: FaultServer, log: Log, sdk: SDK
) -> None:
    async with checked_connector(server, log, sdk) as subject:
        results = [
            await subject.call_with_response(wire(b"HTTP/1.1 %d x\r\nLocation: %b\r\n\r\n" % (status, text.encode())))
            for text in naughty()[status % 5 :: 5]
        ]

    expected = {"", "HTTPStatusError", "ConnectFailed", "RedirectRefused", "MalformedResponse", "DecodeFailed"}
    assert kinds(results) <= expected


HEADERS = [b"X-Naughty", b"Content-Type", b"Content-Encoding", b"Transfer-Encoding", b"Content-Length", b"Set-Cookie"]
HEADERS += [b"Connection", b"Retry-After", b"Date", b"Content-Range", b"Upgrade"]


@pytest.mark.parametrize("header", HEADERS)
async def test_naughty_header_values_end_with_an_expected_outcome(
    header: bytes, server: FaultServer, log: Log, sdk: SDK
) -> None:
    index, status = HEADERS.index(header), 503 if header == b"Retry-After" else 200
    async with checked_connector(server, log, sdk) as subject:
        results = [
            await subject.call_with_response(
                wire(b"HTTP/1.1 %d x\r\n%b: %b\r\n\r\n1" % (status, header, text.encode()))
            )
            for text in naughty()[index % 10 :: 10]
        ]

    assert kinds(results) <= {"", "HTTPStatusError", "MalformedResponse", "DecodeFailed", "BodyTruncated"}


async def test_naughty_header_names_end_with_an_expected_outcome(server: FaultServer, log: Log, sdk: SDK) -> None:
    async with checked_connector(server, log, sdk) as subject:
        for text in naughty()[::2]:
            result = await subject.call_with_response(wire(b"HTTP/1.1 200 OK\r\n%b: 1\r\n\r\n1" % text.encode()))
            assert result.kind in {"", "MalformedResponse", "DecodeFailed", "BodyTruncated"}, text


async def test_naughty_reason_phrases_end_with_an_expected_error(server: FaultServer, log: Log, sdk: SDK) -> None:
    async with checked_connector(server, log, sdk) as subject:
        for text in naughty()[1::2]:
            head = b"HTTP/1.1 404 %b\r\nContent-Length: 0\r\n\r\n" % text.encode()
            assert (await subject.call_with_response(wire(head))).kind in {"HTTPStatusError", "MalformedResponse"}, text


async def test_naughty_bodies_are_returned_or_raise_decode_failed(server: FaultServer, log: Log, sdk: SDK) -> None:
    """A JSON string is returned unchanged. The bare text raises an error unless it happens to be JSON."""
    async with checked_connector(server, log, sdk) as subject:
        assert (await subject.call_with_response(json_body(naughty()))).value == naughty()
        for text in naughty():
            result = await subject.call_with_response(respond(body=text.encode()))
            assert result.kind == ("DecodeFailed" if parsed(text.encode()) is None else ""), text


async def test_naughty_urls_and_projects_end_with_an_expected_error(server: FaultServer, log: Log, sdk: SDK) -> None:
    async with checked_connector(server, log, sdk) as subject:
        for text in naughty():
            result = await subject.call(text, text)
            assert result.kind in {"InvalidURL", "ConnectFailed"}, text
            result = await subject.call(f"{server.url('/')}{text}?{text}#{text}", text)
            assert result.kind in {"HTTPStatusError", "InvalidURL"}, text
