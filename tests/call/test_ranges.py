"""Partial responses (206): the part in the body must be what the request asked for (RFC 9110, section 15.3.7)."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from support.logs import Log

from otel_connector import AsyncConnector, BodyTruncated, ConnectorError, HTTPStatusError, MalformedResponse
from otel_connector.testing import FakeClock, FaultServer, Step, redirect, respond
from otel_connector.testing._encodings import compress
from otel_connector.testing._steps import Connection

WHOLE = bytes(range(48, 98))
"""A representation of 50 bytes."""


def partial(content_range: str | None, body: bytes | None = None, **headers: str) -> Step:
    """Return a 206 with the bytes that a valid `content_range` names."""
    if body is None:
        first, last = (int(each) for each in str(content_range).split()[1].split("/")[0].split("-"))
        body = WHOLE[first : last + 1]
    sent = {} if content_range is None else {"Content-Range": content_range}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return respond(206, body, sent | named, content_type=None)


OK, TRUNCATED, MALFORMED = None, BodyTruncated, MalformedResponse

# The request's Range, the response, and the error. Section numbers are those of RFC 9110. curl and requests accept
# every 206; wget reports a range that starts elsewhere
CASES: dict[str, tuple[str | None, Step, type[ConnectorError] | None]] = {
    # Not requested: 15.3.7 lets a client use what it understands, which is the whole only
    "not requested, whole": (None, partial("bytes 0-49/50"), OK),
    "not requested, a part": (None, partial("bytes 0-13/50"), TRUNCATED),
    "not requested, the end": (None, partial("bytes 40-49/50"), TRUNCATED),
    "not requested, no length": (None, partial("bytes 0-49/*"), TRUNCATED),
    "not requested, no Content-Range": (None, partial(None, WHOLE), TRUNCATED),
    "not requested, another unit": (None, partial("lines 0-1/2", WHOLE), TRUNCATED),
    "not requested, several parts": (
        None,
        partial(None, b"--x\r\n", Content_Type="multipart/byteranges; boundary=x"),
        TRUNCATED,
    ),
    "not requested, shorter than announced": (None, partial("bytes 0-49/50", WHOLE[:14]), TRUNCATED),
    "not requested, longer than announced": (None, partial("bytes 0-13/14", WHOLE), MALFORMED),
    # Requested and sent: 14.1.2
    "first-last": ("bytes=0-13", partial("bytes 0-13/50"), OK),
    "first-last, no length": ("bytes=0-13", partial("bytes 0-13/*"), OK),
    "first-last, in the middle": ("bytes=10-19", partial("bytes 10-19/50"), OK),
    "first-last, beyond the end": ("bytes=40-99", partial("bytes 40-49/50"), OK),
    "first-": ("bytes=40-", partial("bytes 40-49/50"), OK),
    "first-, no length": ("bytes=40-", partial("bytes 40-49/*"), OK),
    "-length": ("bytes=-10", partial("bytes 40-49/50"), OK),
    "-length, longer than the whole": ("bytes=-99", partial("bytes 0-49/50"), OK),
    "-length, no length": ("bytes=-10", partial("bytes 40-49/*"), OK),
    "upper case, spaces": ("Bytes= 0-13", partial("BYTES 0-13/50"), OK),
    "separators that curl accepts": ("bytes=0-13", partial("bytes: 0-13/50", WHOLE[:14]), OK),
    # 15.3.7: a server may send a part of the requested range, so the rest is missing
    "first-last, less": ("bytes=0-13", partial("bytes 0-9/50"), TRUNCATED),
    "first-last, less, no length": ("bytes=0-13", partial("bytes 0-9/*"), TRUNCATED),
    "first-, less": ("bytes=40-", partial("bytes 40-44/50"), TRUNCATED),
    "-length, less": ("bytes=-10", partial("bytes 40-44/50"), TRUNCATED),
    # Another range than the requested one
    "first-last, another start": ("bytes=10-19", partial("bytes 0-9/50"), MALFORMED),
    "first-last, more": ("bytes=10-19", partial("bytes 10-29/50"), MALFORMED),
    "first-last, whole": ("bytes=10-19", partial("bytes 0-49/50"), MALFORMED),
    "first-, another start": ("bytes=40-", partial("bytes 0-49/50"), MALFORMED),
    "-length, another start": ("bytes=-10", partial("bytes 0-9/50"), MALFORMED),
    "-length, less, no length": ("bytes=-10", partial("bytes 45-49/*"), MALFORMED),
    "no Content-Range": ("bytes=0-13", partial(None, WHOLE[:14]), MALFORMED),
    # 14.4: an invalid Content-Range
    "last before first": ("bytes=0-13", partial("bytes 13-0/50", WHOLE), MALFORMED),
    "beyond the length": ("bytes=0-13", partial("bytes 0-13/10", WHOLE[:14]), MALFORMED),
    "unsatisfied": ("bytes=0-13", partial("bytes */50", b""), MALFORMED),
    "no numbers": ("bytes=0-13", partial("bytes a-b/c", b""), MALFORMED),
    # 15.3.7.1: the body has the announced bytes
    "shorter than announced": ("bytes=0-13", partial("bytes 0-13/50", WHOLE[:10]), TRUNCATED),
    "longer than announced": ("bytes=0-13", partial("bytes 0-13/50", WHOLE[:20]), MALFORMED),
    # 14.1: of a coded representation, the range is one of the coded bytes
    "gzip": (
        "bytes=0-",
        partial(f"bytes 0-{len(compress(WHOLE, 'gzip')) - 1}/*", compress(WHOLE, "gzip"), Content_Encoding="gzip"),
        OK,
    ),
    # Several ranges: 15.3.7.2
    "several, several parts": (
        "bytes=0-4,10-14",
        partial(None, b"--x\r\n", Content_Type="multipart/byteranges; boundary=x"),
        OK,
    ),
    "several, one part with both": ("bytes=0-4,10-14", partial("bytes 0-14/50"), OK),
    "several, one of them": ("bytes=0-4,10-14", partial("bytes 0-4/50"), TRUNCATED),
    "several, one cannot be satisfied": ("bytes=0-4,60-", partial("bytes 0-4/50"), OK),
    "one, several parts": (
        "bytes=0-13",
        partial(None, b"--x\r\n", Content_Type="multipart/byteranges; boundary=x"),
        MALFORMED,
    ),
    # 14.2: a server may ignore Range, also an invalid one, and a unit that it does not know
    "ignored": ("bytes=0-13", respond(200, WHOLE), OK),
    "an invalid range, whole": ("bytes=a-b", partial("bytes 0-49/50"), OK),
    "an invalid range, a part": ("bytes=-", partial("bytes 0-13/50"), TRUNCATED),
    "another unit": ("lines=0-1", partial("lines 0-1/9", WHOLE), OK),
    "another unit, bytes": ("lines=0-1", partial("bytes 0-13/50"), TRUNCATED),
    # 15.5.17
    "not satisfiable": ("bytes=60-", respond(416, b"", {"Content-Range": "bytes */50"}), HTTPStatusError),
}


async def body(server: FaultServer, session: aiohttp.ClientSession, requested: str | None, **options: Any) -> bytes:
    headers = None if requested is None else {"Range": requested}
    subject = AsyncConnector(None, clock=FakeClock(), **options)
    value: bytes = await subject.get(session, server.url("/x"), "P", decode=bytes, headers=headers)
    return value


@pytest.mark.parametrize("name", CASES)
async def test_a_partial_response(name: str, server: FaultServer, session: aiohttp.ClientSession) -> None:
    requested, step, expected = CASES[name]
    server.script("/y", step)
    for first in (step, redirect("/y")):
        server.script("/x", first)
        if expected is None:
            assert await body(server, session, requested, n_tries=1)
        else:
            with pytest.raises(expected) as caught:
                await body(server, session, requested, n_tries=3)
            assert type(caught.value) is expected, first
            assert caught.value.attempts == (3 if expected is BodyTruncated else 1), first


async def test_a_range_in_the_headers_of_the_session_is_a_requested_one(server: FaultServer) -> None:
    server.script("/x", partial("bytes 0-13/50"))
    async with aiohttp.ClientSession(headers={"Range": "bytes=0-13"}) as session:
        assert await body(server, session, None) == WHOLE[:14]


async def test_a_chunked_part_that_is_too_short_is_truncated(
    server: FaultServer, session: aiohttp.ClientSession
) -> None:
    async def play(connection: Connection) -> None:
        head = b"HTTP/1.1 206 x\r\nContent-Range: bytes 0-13/50\r\nTransfer-Encoding: chunked\r\n\r\n"
        await connection.send(head + b"2\r\n01\r\n0\r\n\r\n")

    server.script("/x", Step(name="chunked", play=play))
    with pytest.raises(BodyTruncated, match="announced 14 bytes and sent 2"):
        await body(server, session, "bytes=0-13", n_tries=1)


async def test_the_row_of_an_unrequested_part_is_a_failure(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", partial("bytes 0-13/50"))
    subject = AsyncConnector(log.path, n_tries=1)
    assert await subject.get(session, server.url("/x"), "P", default=None) is None
    row = log.only()
    assert (row.success, row.response_code) == (False, 206)
    assert row.error == "BodyTruncated: status 206 with bytes 0-13 of 50, and no range was requested"
