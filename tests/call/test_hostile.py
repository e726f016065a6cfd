"""Tests of hostile servers: decompression bombs, endless and slow responses, broken framing, a reset at every byte.

In every case the cap and the deadline hold, memory stays within the cap plus 8 MiB, no iteration of the event loop
takes longer than 50 ms, and no task, thread or socket is left behind. The measured memory is the resident memory of
this process, which includes the server; for the bombs, that of a separate process.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import brotli
import pytest
from support import processes
from support.forked import Program
from support.logs import Log
from support.loop_and_memory import (
    ALLOWANCE,
    STALL_LIMIT,
    assert_no_stall,
    is_idle,
    leaves_nothing,
    local_session,
    needs_at_most,
    resident,
    slowest_iteration,
)
from support.sdk import SDK

import otel_connector
from otel_connector import AsyncConnector, ConnectorError
from otel_connector.testing import Connection, FakeClock, FaultServer, Step, drip, endless, ok, respond, silent

GIB = 2**30
CAP = 4 * 2**20
LARGER_CAP = 32 * 2**20
BOMB = 4 * LARGER_CAP  # bytes that a bomb decompresses to
BODY = b'{"ok": true}'


# Bombs


@lru_cache(maxsize=1)
def gzip_bomb(size: int = BOMB, block: int = 2**20) -> bytes:
    """Return one gzip member of `size` zeros, from a block that is compressed once and repeated."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    piece = deflater.compress(bytes(block)) + deflater.flush(zlib.Z_FULL_FLUSH)  # byte-aligned, without back references
    # The checksum is missing: the client must stop before it
    return b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff" + piece * (size // block) + b"\x03\x00"


@lru_cache(maxsize=2)
def brotli_bomb(window: int) -> bytes:
    """Return compressed zeros whose decoder needs a window of 2 ** `window` bytes."""
    compressor, block = brotli.Compressor(quality=5, lgwin=window), bytes(2**22)
    return b"".join([*(compressor.process(block) for _ in range(BOMB // len(block))), compressor.finish()])


@lru_cache(maxsize=2)
def zstd_bomb(window: int) -> bytes:
    """Return compressed zeros whose decoder needs a window of 2 ** `window` bytes."""
    zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: window})
    block = bytes(2**22)
    return b"".join([*(compressor.compress(block) for _ in range(BOMB // len(block))), compressor.flush()])


BOMBS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "gzip": ("gzip", gzip_bomb, "BodyTooLarge"),
    "deflate": ("deflate", lambda: b"\x78\xda" + gzip_bomb()[10:], "BodyTooLarge"),
    "br": ("br", lambda: brotli_bomb(20), "BodyTooLarge"),
    "zstd": ("zstd", lambda: zstd_bomb(20), "BodyTooLarge"),
    "gzip in br": ("gzip, br", lambda: brotli.compress(gzip_bomb()), "BodyTooLarge"),
    # The server chooses the window, which is the output that a decoder keeps. It has at most 16 MiB with br
    # (RFC 7932, section 9.1) and 8 MiB with zstd (RFC 9659, section 3).
    "br, largest window": ("br", lambda: brotli_bomb(24), "BodyTooLarge"),
    "zstd, largest window": ("zstd", lambda: zstd_bomb(23), "BodyTooLarge"),
    "zstd, too large a window": ("zstd", lambda: zstd_bomb(24), "DecodeFailed"),
}

LARGEST: dict[str, Callable[[], bytes]] = {
    "gzip": lambda: gzip.compress(bytes(LARGER_CAP), 1),
    "identity": lambda: bytes(LARGER_CAP),
}
"""Bodies exactly as large as the cap, by their coding."""


async def measured_call(url: str, name: str, cap: int) -> dict[str, Any]:
    """Make one call. Return its error, its duration, its memory and the longest iteration of the event loop."""
    connector = AsyncConnector(None, n_tries=1, timeout=20, max_body_bytes=cap)
    async with aiohttp.ClientSession() as session:
        await connector.get(session, f"{url}warm", "P", decode=len)
        before, started = resident("VmRSS"), time.perf_counter()
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # noqa: ASYNC240 - /proc is not on a disk
        with slowest_iteration() as longest:
            try:
                await connector.get(session, f"{url}{name}", "P", decode=len)
                error_name = ""
            except ConnectorError as error:
                error_name = type(error).__name__
        return {
            "error": error_name,
            "seconds": time.perf_counter() - started,
            "needed": resident("VmHWM") - before,
            "longest_iteration": longest.cpu,
        }


def measure_each_in_a_fork(url: str, calls: list[tuple[str, int]]) -> None:
    """Make each call in a fork of this process, so that its memory is measured alone, and print the results.

    Runs in a separate process, which has one thread and no event loop, so it may fork.
    """
    for name, cap in calls:
        sys.stdout.flush()
        if (pid := os.fork()) == 0:
            code = 1
            try:
                print(json.dumps([name, cap, asyncio.run(measured_call(url, name, cap))]), flush=True)  # noqa: T201 - the test reads stdout
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, name


EncodedBodies: TypeAlias = dict[str, tuple[str, bytes, tuple[int, ...]]]
"""By name: the coding, the body, and the caps of its calls."""


def measured_calls(bodies: EncodedBodies, warm: Step = ok) -> dict[tuple[str, int], dict[str, Any]]:
    """Request each body in a separate process, after one call for `warm`. Return the results by name and cap."""
    calls: list[tuple[str, int]] = []
    with FaultServer() as server:
        server.script("/warm", warm)
        for number, (coding, body, caps) in enumerate(bodies.values()):
            server.script(f"/{number}", respond(body=body, headers=[("Content-Encoding", coding)]))
            calls += [(str(number), cap) for cap in caps]
        program, environment = processes.function(__file__, f"measure_each_in_a_fork({server.url('/')!r}, {calls!r})")
        with Program(program[1:], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            out, error = process.communicate(timeout=90)
    assert process.returncode == 0, error.decode()
    names = list(bodies)
    return {(names[int(number)], cap): result for number, cap, result in map(json.loads, out.splitlines())}


@pytest.fixture(scope="module")
def bombs() -> dict[tuple[str, int], dict[str, Any]]:
    made: EncodedBodies = {name: (coding, make(), (CAP, LARGER_CAP)) for name, (coding, make, _) in BOMBS.items()}
    assert all(len(body) < 2**21 for _, body, _ in made.values()), "the compressed bombs are small"
    return measured_calls(made)


@pytest.fixture(scope="module")
def largest() -> dict[tuple[str, int], dict[str, Any]]:
    return measured_calls({coding: (coding, make(), (LARGER_CAP,)) for coding, make in LARGEST.items()})


@pytest.mark.timing
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("cap", [CAP, LARGER_CAP])
@pytest.mark.parametrize("name", BOMBS)
def test_a_decompression_bomb_fails_within_the_memory_limit(
    name: str, cap: int, bombs: dict[tuple[str, int], dict[str, Any]]
) -> None:
    result = bombs[name, cap]

    assert result["error"] == BOMBS[name][2]
    assert result["needed"] <= cap + ALLOWANCE, f"{result['needed']:,}"
    assert result["longest_iteration"] < STALL_LIMIT
    assert result["seconds"] < 10


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", LARGEST)
def test_a_body_as_large_as_the_cap_is_not_held_twice_in_memory(
    name: str, largest: dict[tuple[str, int], dict[str, Any]]
) -> None:
    result = largest[name, LARGER_CAP]

    assert result["error"] == ""
    assert result["needed"] <= LARGER_CAP + ALLOWANCE, f"{result['needed']:,}"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_body_is_not_held_twice_after_a_decoder_has_freed_a_large_window() -> None:
    """Then malloc takes larger blocks from its heap, where a body that grows would be moved."""
    noise, compressor = random.Random(1).randbytes(2**20), brotli.Compressor(quality=1, lgwin=24)
    parts = [compressor.process(noise) for _ in range(LARGER_CAP // 2 // len(noise))]
    warm = respond(body=b"".join([*parts, compressor.finish()]), headers=[("Content-Encoding", "br")])
    results = measured_calls({"identity": ("identity", bytes(LARGER_CAP), (LARGER_CAP,))}, warm)
    result = results["identity", LARGER_CAP]
    assert result["error"] == ""
    assert result["needed"] <= LARGER_CAP + ALLOWANCE, f"{result['needed']:,}"


async def test_an_error_keeps_no_body_in_memory(server: FaultServer, session: aiohttp.ClientSession) -> None:
    """A program may keep the errors of a thousand failed calls."""
    server.script("/x", endless())
    subject = AsyncConnector(None, n_tries=1, timeout=10, max_body_bytes=CAP)
    kept: list[ConnectorError] = []
    with pytest.raises(otel_connector.BodyTooLarge):  # the first call loads modules, which stay in memory
        await subject.get(session, server.url("/x"), "P")
    with needs_at_most(3 * CAP):
        for _ in range(8):
            with pytest.raises(otel_connector.BodyTooLarge) as caught:
                await subject.get(session, server.url("/x"), "P")
            kept.append(caught.value)
            del caught


# Endless responses


def wire(head: bytes, repeated: bytes = b"", pause: float | None = None) -> Step:
    """Send `head`, then `repeated` forever, with `pause` seconds in between. If `repeated` is empty, close."""

    async def play(connection: Connection) -> None:
        await connection.send(head)
        while repeated:
            await connection.send(repeated)
            if pause:
                await asyncio.sleep(pause)
        connection.close()

    return Step(name=f"wire({head[:20]!r})", play=play)


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

TIMEOUT = {"AttemptTimeout"}
MALFORMED = {"MalformedResponse"}
TRUNCATED = {"BodyTruncated"}

ENDLESS: dict[str, tuple[Step, set[str]]] = {
    "chunks": (endless(), {"BodyTooLarge"}),
    "chunks of one byte": (wire(CHUNKED, b"1\r\n \r\n" * 1_000), {"BodyTooLarge"} | TIMEOUT),
    "a body until the end of the connection": (wire(OK + b"\r\n", b" " * 65_536), {"BodyTooLarge"}),
    "headers": (wire(OK, b"X-Header: 1\r\n" * 100), MALFORMED),
    "one header": (wire(OK + b"X-Header: ", b"a" * 65_536), MALFORMED),
    "a header's name": (wire(OK, b"a" * 65_536), MALFORMED),
    "a reason phrase": (wire(b"HTTP/1.1 200 ", b"a" * 65_536), MALFORMED),
    "no line at all": (wire(b"", b"a" * 65_536), MALFORMED),
    "empty lines": (wire(b"", b"\r\n" * 1_000), MALFORMED | TIMEOUT),
    "a chunk's extension": (wire(CHUNKED + b"1;", b"a" * 65_536), TIMEOUT),
    "chunks with extensions": (wire(CHUNKED, (b"1;" + b"a" * 4_000 + b"\r\n \r\n") * 16), {"BodyTooLarge"} | TIMEOUT),
    "a chunk's size": (wire(CHUNKED, b"0" * 65_536), TIMEOUT),
    "trailers": (wire(CHUNKED + b"0\r\n", b"X-Trailer: 1\r\n" * 100), MALFORMED),
    "one trailer": (wire(CHUNKED + b"0\r\nX-Trailer: ", b"a" * 65_536), MALFORMED),
    "100 Continue": (wire(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), TIMEOUT),
    "103 Early Hints": (wire(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"), TIMEOUT),
    "responses": (wire(b"", OK + b"Content-Length: 12\r\n\r\n" + BODY), {""}),
    "bytes after a response": (wire(OK + b"Content-Length: 12\r\n\r\n" + BODY, b"a" * 65_536), {""}),
    "a slow body": (drip(0.1), TIMEOUT),
    "slow headers": (wire(OK + b"X: ", b"a", 0.1), TIMEOUT),
    "a slow status line": (wire(b"HTTP/1.1 200 ", b"a", 0.1), TIMEOUT),
    "slow chunk sizes": (wire(CHUNKED, b"0", 0.1), TIMEOUT),
    "silence": (silent, TIMEOUT),
}


@asynccontextmanager
async def checked_resources(
    log: Log, sdk: SDK, **options: Any
) -> AsyncIterator[tuple[AsyncConnector, aiohttp.ClientSession]]:
    """Yield a connector and a session. Afterwards check the memory, the event loop, and what is left behind."""
    arguments = {"n_tries": 2, "timeout": 0.3, "max_body_bytes": CAP, "clock": FakeClock(), **sdk.providers, **options}
    subject = AsyncConnector(log.path, **arguments)
    with needs_at_most(CAP + ALLOWANCE), slowest_iteration() as longest:
        async with leaves_nothing(), local_session() as session:
            yield subject, session
            assert is_idle(session)
    assert_no_stall(longest)


async def error_of(subject: AsyncConnector, session: aiohttp.ClientSession, url: str) -> str:
    """Make one call. Return the name of its error class, or an empty string for a success."""
    try:
        assert await subject.get(session, url, "P") == json.loads(BODY)
    except ConnectorError as error:
        return type(error).__name__
    return ""


@pytest.mark.timing
@pytest.mark.parametrize("name", ENDLESS)
async def test_a_call_ends_although_the_response_is_endless(name: str, server: FaultServer, log: Log, sdk: SDK) -> None:
    step, expected = ENDLESS[name]
    server.script("/x", step)
    started = time.perf_counter()
    async with checked_resources(log, sdk, timeout=0.3 if expected & TIMEOUT else 5) as (subject, session):
        kind = await error_of(subject, session, server.url("/x"))
        assert kind in expected
        assert time.perf_counter() - started < 9
    assert log.only().success == (kind == "")
    assert sdk.span().name == "GET"


@pytest.mark.timing
@pytest.mark.parametrize("name", [name for name, (_, expected) in ENDLESS.items() if expected & TIMEOUT])
async def test_the_deadline_ends_a_call_with_an_endless_response(
    name: str, server: FaultServer, log: Log, sdk: SDK
) -> None:
    server.script("/x", ENDLESS[name][0])
    started = time.perf_counter()
    async with checked_resources(log, sdk, timeout=30, deadline=0.2) as (subject, session):
        kind = await error_of(subject, session, server.url("/x"))
        assert kind in {"DeadlineExceeded"} | ENDLESS[name][1] - TIMEOUT
        assert time.perf_counter() - started < 5
    assert log.only().error.startswith(kind)


@pytest.mark.timing
async def test_a_slow_body_of_an_error_response_does_not_delay_the_call(
    server: FaultServer, log: Log, sdk: SDK
) -> None:
    """The body of an error response is not needed, so the call must not wait for it until the timeout."""
    server.script("/x", wire(b"HTTP/1.1 404 x\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", 0.1))
    started = time.perf_counter()
    async with checked_resources(log, sdk, timeout=30) as (subject, session):
        assert await error_of(subject, session, server.url("/x")) == "HTTPStatusError"
        assert time.perf_counter() - started < 9


# Broken framing


def answer(*lines: bytes, body: bytes = BODY) -> bytes:
    return OK + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


FRAMING: dict[str, tuple[bytes, set[str]]] = {
    "a line of 1 MB": (answer(b"X: " + b"a" * 1_000_000), MALFORMED),
    "a length of 1 GiB": (answer(b"Content-Length: %d" % GIB), TRUNCATED),
    "a length beyond 64 bits": (answer(b"Content-Length: %d" % 2**70), MALFORMED),
    "a length of 5,000 digits": (answer(b"Content-Length: " + b"9" * 5_000), MALFORMED),
    "a negative length": (answer(b"Content-Length: -12"), MALFORMED),
    "a signed length": (answer(b"Content-Length: +12"), MALFORMED),
    "a length that is not a number": (answer(b"Content-Length: twelve"), MALFORMED),
    "an empty length": (answer(b"Content-Length: "), MALFORMED),
    "two lengths": (answer(b"Content-Length: 12", b"Content-Length: 13"), MALFORMED),
    "a list of lengths": (answer(b"Content-Length: 12, 12"), MALFORMED),
    "a length too short": (answer(b"Content-Length: 4"), {"DecodeFailed"}),
    "a length and chunks": (
        answer(b"Content-Length: 4", b"Transfer-Encoding: chunked", body=b"c\r\n" + BODY + b"\r\n0\r\n\r\n"),
        MALFORMED,
    ),
    "an unknown transfer coding": (answer(b"Transfer-Encoding: bogus"), MALFORMED | {""}),
    "a negative chunk": (CHUNKED + b"-c\r\n" + BODY + b"\r\n0\r\n\r\n", MALFORMED),
    "a chunk of 16 digits": (CHUNKED + b"7fffffffffffffff\r\n" + BODY, TRUNCATED),
    "a chunk of 17 digits": (CHUNKED + b"10000000000000000\r\n" + BODY, MALFORMED),
    "a chunk that is too long": (CHUNKED + b"4\r\n" + BODY + b"\r\n0\r\n\r\n", MALFORMED),
    "a chunk's extensions": (CHUNKED + b'c;a=b;c="d"\r\n' + BODY + b"\r\n0;e\r\n\r\n", {""}),
    "an extension of 1 MB": (CHUNKED + b"c;" + b"a" * 10**6 + b"\r\n" + BODY + b"\r\n0\r\n\r\n", {""}),
    "a null in a header": (answer(b"X: a\x00b", b"Content-Length: 12"), MALFORMED),
    "a bare CR in a header": (answer(b"X: a\rb", b"Content-Length: 12"), MALFORMED),
    "a folded header": (answer(b"X: a", b" b", b"Content-Length: 12"), MALFORMED | {""}),
    "a header without a name": (answer(b": a", b"Content-Length: 12"), MALFORMED),
    "a space before the colon": (answer(b"X : a", b"Content-Length: 12"), MALFORMED),
    "HTTP/9.9": (b"HTTP/9.9 200 OK\r\nContent-Length: 12\r\n\r\n" + BODY, MALFORMED),
    "HTTP/2": (b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", MALFORMED),
    "TLS": (b"\x15\x03\x01\x00\x02\x02\x46", MALFORMED),
    "status 99": (b"HTTP/1.1 099 x\r\nContent-Length: 12\r\n\r\n" + BODY, MALFORMED),
    "status 999": (b"HTTP/1.1 999 x\r\nContent-Length: 12\r\n\r\n" + BODY, {"HTTPStatusError"}),
    "status 1000": (b"HTTP/1.1 1000 x\r\nContent-Length: 12\r\n\r\n" + BODY, MALFORMED),
    "status -200": (b"HTTP/1.1 -200 x\r\nContent-Length: 12\r\n\r\n" + BODY, MALFORMED),
    "101 Switching Protocols": (b"HTTP/1.1 101 x\r\nUpgrade: y\r\nConnection: upgrade\r\n\r\n" + BODY, MALFORMED),
}


@pytest.mark.timing
@pytest.mark.parametrize("name", FRAMING)
async def test_broken_framing_ends_with_an_expected_outcome(name: str, server: FaultServer, log: Log, sdk: SDK) -> None:
    data, expected = FRAMING[name]
    server.script("/x", wire(data))
    async with checked_resources(log, sdk, timeout=5) as (subject, session):
        kind = await error_of(subject, session, server.url("/x"))
        assert kind in expected
    assert log.only().error.startswith(kind)
    assert sdk.span().name == "GET"


# A connection that ends at any byte


def ended_at_each_byte(data: bytes, *, abort: bool) -> Iterator[Step]:
    """Return, for each position in `data`, a step that ends the connection there."""

    def step(position: int) -> Step:
        async def play(connection: Connection) -> None:
            if position:
                await connection.send(data[:position])
            (connection.abort if abort else connection.close)()

        return Step(name=f"ended at {position}", play=play)

    return map(step, range(len(data)))


RESPONSES = {
    "length": (answer(b"Content-Length: 12"), len(BODY)),
    "chunks": (CHUNKED + b"6\r\n" + BODY[:6] + b"\r\n6;a=b\r\n" + BODY[6:] + b"\r\n0\r\nX: y\r\n\r\n", 0),
    "redirect": (b"HTTP/1.1 302 Found\r\nLocation: /to\r\nContent-Length: 2\r\n\r\nno", 0),
    "early hints": (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + answer(b"Content-Length: 12"), 0),
}


@pytest.mark.timing
@pytest.mark.parametrize("abort", [True, False], ids=["reset", "closed"])
@pytest.mark.parametrize("name", RESPONSES)
async def test_a_response_that_ends_at_any_byte_is_retried(
    name: str, abort: bool, server: FaultServer, log: Log, sdk: SDK
) -> None:
    """At each byte, the connection ends first in every attempt of a call, then in the first request only."""
    data = RESPONSES[name][0]
    server.script("/to", ok)
    calls = 0
    async with checked_resources(log, sdk, n_tries=3, timeout=5) as (subject, session):
        for step in ended_at_each_byte(data, abort=abort):
            server.script("/x", step)
            kind = await error_of(subject, session, server.url("/x"))
            calls += 1
            # A redirect is followed without its body, and a chunked body is complete before its trailers
            assert kind in {"ConnectFailed", "BodyTruncated", ""}, step.name
            assert kind or name in {"redirect", "chunks"}, step.name
            server.script("/x", [step, ok])
            assert await error_of(subject, session, server.url("/x")) == "", step.name
            calls += 1
    assert len(log.records()) == calls
    assert len(sdk.spans.get_finished_spans()) == calls
