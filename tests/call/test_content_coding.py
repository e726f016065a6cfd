"""Content codings: bodies from the reference libraries are decoded; truncated and corrupt ones raise an error."""

from __future__ import annotations

import gzip
import random
import sys
import zlib
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any

import aiohttp
import brotli
import pytest
from aiohttp.http_parser import HttpResponseParserPy
from hypothesis import given
from hypothesis import strategies as st
from support.logs import Log

import otel_connector
from otel_connector import AsyncConnector, BodyTruncated, DecodeFailed
from otel_connector._call._content_coding import ContentCodings, _brotli_window, content_codings
from otel_connector.testing import Connection, FakeClock, FaultServer, ok, respond

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

zstd: Any = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


def raw_deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush()


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "br": ("br", brotli.compress),
    "zstd": ("zstd", zstd.compress),
}
BODY = bytes(range(256)) * 40


def decoded(names: Sequence[str], pieces: Sequence[bytes]) -> bytes:
    codings = ContentCodings(names)
    body = b"".join(made for piece in pieces for made in codings.decode(piece))
    codings.finish()
    return body


@given(
    st.lists(st.sampled_from(list(ENCODERS)), min_size=1, max_size=5),
    st.binary(max_size=5_000),
    st.integers(1, 40),
    st.lists(st.integers(1, 50), min_size=1),
)
def test_compressed_bodies_are_decoded_from_pieces_of_any_size(
    kinds: list[str], part: bytes, times: int, sizes: list[int]
) -> None:
    data = wire = part * times
    for kind in kinds:
        wire = ENCODERS[kind][1](wire)
    pieces: list[bytes] = []
    start = 0
    while start < len(wire):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(wire[start : start + size])
        start += size
    assert decoded([ENCODERS[kind][0] for kind in kinds], pieces) == data


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_stream_truncated_at_any_byte_raises_body_truncated(kind: str) -> None:
    name, encode = ENCODERS[kind]
    wire = encode(b"a whole body")
    for end in range(1, len(wire)):
        with pytest.raises(BodyTruncated, match=f"before the end of its {name} stream"):
            decoded([name], [wire[:end]])
    assert decoded([name], [wire]) == b"a whole body"
    assert decoded([name], []) == b"", "a response without a body has no stream"


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_corrupt_stream_or_data_after_its_end_raises_decode_failed(kind: str) -> None:
    name, encode = ENCODERS[kind]
    with pytest.raises(DecodeFailed, match=f"^{name}: "):
        decoded([name], [b"\xff\xff<html>this was never compressed</html>" * 10])
    with pytest.raises(DecodeFailed, match=f"^{name}: "):
        decoded([name], [encode(BODY), b"and more"])
    with pytest.raises(DecodeFailed, match=f"^{name}: "):
        decoded([name], [encode(BODY) + b"and more"])


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_several_members_are_decoded_as_one_stream(name: str) -> None:
    """RFC 1952, section 2.2, and RFC 8878, section 3.1: a stream consists of one or more members."""
    encode = ENCODERS[name][1]
    members = [encode(b"%d," % number) for number in range(1_024)]
    expected = b"".join(b"%d," % number for number in range(1_024))
    assert decoded([name], members) == decoded([name], [b"".join(members)]) == expected
    with pytest.raises(DecodeFailed, match="more than 1024 streams"):
        decoded([name], [*members, encode(b"")])
    with pytest.raises(BodyTruncated):
        decoded([name], [*members[:3], members[3][:-1]])


@pytest.mark.parametrize("kind", [*ENCODERS, "br of brotli"])
def test_the_size_of_the_decoded_pieces_is_bounded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "br of brotli":  # its pieces are up to twice as large as the limit
        monkeypatch.setitem(sys.modules, "brotlicffi", None)
    name, encode = ENCODERS[kind.partition(" of ")[0]]
    codings = ContentCodings([name])
    sizes = [len(piece) for piece in codings.decode(encode(bytes(2**22)))]
    codings.finish()
    assert sum(sizes) == 2**22
    assert max(sizes) <= 2**19


BLOCKERS = {
    # a body that decodes to nothing, and at least this many steps
    "zstd frames": ("zstd", zstd.compress(b"") * 1_024, 1_024),
    "zstd blocks": ("zstd", b"\x28\xb5\x2f\xfd\0\0" + b"\0\0\0" * 2**19 + b"\1\0\0", 190),
    "zstd skippable frames": ("zstd", (b"\x50\x2a\x4d\x18\x94\x11\0\0" + bytes(4_500)) * 1_000, 1_000),
    "gzip members": ("gzip", gzip.compress(b"") * 1_024, 1_024),
    "gzip blocks": ("gzip", gzip.compress(b"")[:10] + b"\0\0\0\xff\xff" * 2**18 + b"\3\0" + bytes(8), 160),
    "brotli metadata": ("br", b"\x0c" + b"\6" * 2**20 + b"\3", 128),
}


@pytest.mark.parametrize("kind", BLOCKERS)
def test_a_body_without_output_is_decoded_in_short_steps(kind: str) -> None:
    name, wire, steps = BLOCKERS[kind]
    codings = ContentCodings([name])
    pieces = list(codings.decode(wire))
    codings.finish()
    assert b"".join(pieces) == b""
    assert len(pieces) >= steps


def test_the_size_of_a_window_is_known_before_it_is_filled() -> None:
    noise = random.Random(1).randbytes(2**18)
    for log in range(10, 25):
        codings = ContentCodings(["br"])
        first = next(codings.decode(brotli.compress(noise, quality=1, lgwin=log)[:1]))
        assert first == b""
        assert codings.window == (2**log - 2**21 if log > 22 else 0), log
    for log in range(10, 24):
        options = {zstd.CompressionParameter.window_log: log, zstd.CompressionParameter.content_size_flag: 0}
        compressor = zstd.ZstdCompressor(options=options)
        wire = compressor.compress(noise * (64 if log > 21 else 8)) + compressor.flush()
        codings = ContentCodings(["zstd"])
        windows = [codings.window for _ in codings.decode(wire)]
        assert max(windows) == (2**log - 2**21 if log > 22 else 0), log
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 24})
    with pytest.raises(DecodeFailed, match="zstd: "):
        decoded(["zstd"], [compressor.compress(bytes(2**24)) + compressor.flush()])
    in_one_byte = ContentCodings(["zstd"])
    assert b"".join(made for byte in zstd.compress(BODY) for made in in_one_byte.decode(bytes([byte]))) == BODY


def test_the_size_of_a_brotli_window_is_read_from_the_first_byte() -> None:
    """RFC 7932, section 9.1: the codes of WBITS, read from the right."""
    codes = {"0": 16, "0000001": 17, "0011": 18, "0101": 19, "0111": 20, "1001": 21, "1011": 22, "1101": 23, "1111": 24}
    codes |= {f"{bits - 8:03b}0001": bits for bits in range(10, 16)}
    for code, bits in codes.items():
        assert _brotli_window(int(code, 2)) == 2**bits
        assert _brotli_window(int(f"{'1' * (8 - len(code))}{code}", 2)) == 2**bits, "the other bits do not matter"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        (["gzip"], ["gzip"]),
        (["X-GZIP"], ["gzip"]),
        ([" gzip , br"], ["gzip", "br"]),
        (["gzip", "br"], ["gzip", "br"]),
        (["identity"], []),
        (["gzip, identity,"], ["gzip"]),
        (["none"], []),
        ([""], []),
    ],
)
def test_header_values_are_parsed_into_content_codings(values: list[str], expected: list[str]) -> None:
    assert content_codings(values) == expected


@pytest.mark.parametrize("values", [["utf-8"], ["gzip, compress"], ["aws-chunked", "gzip"], ["x" * 5_000]])
def test_an_unknown_content_coding_is_refused_as_by_curl(values: list[str]) -> None:
    """Curl 7.88 with ``--compressed``: error 61, "Unrecognized content encoding type"."""
    with pytest.raises(
        DecodeFailed, match=r"content coding '\S{,40}' is unknown; auto_decompress=False returns"
    ) as failed:
        content_codings(values)
    assert len(str(failed.value)) < 150


def test_zeros_after_a_gzip_member_are_padding() -> None:
    """As for gzip(1), Python's `gzip`, requests and browsers; RFC 1952 does not say."""
    member = gzip.compress(BODY)
    for wire, body in [
        (member + b"\0", BODY),
        (member + bytes(20_000), BODY),
        (member + bytes(8) + member + b"\0", 2 * BODY),
    ]:
        assert decoded(["gzip"], [wire]) == body == gzip.decompress(wire)
        assert decoded(["gzip"], [wire[at : at + 1] for at in range(len(wire))]) == body
    for name, wire in {"gzip": bytes(3) + member, "deflate": zlib.compress(BODY) + b"\0"}.items():
        with pytest.raises(DecodeFailed, match=f"^{name}: "):
            decoded([name], [wire])
    with pytest.raises(DecodeFailed, match=r"^gzip: "):
        decoded(["gzip"], [member + bytes(3) + b"text"])


TRANSFER_CODINGS = {
    # header lines of the response: whether the body is read
    ("chunked",): True,
    ("Chunked",): True,
    ("identity, chunked",): True,  # curl 7.88
    ("gzip, chunked",): False,  # RFC 9112, section 7: only if the request has a TE field; curl decodes it
    ("x-gzip , chunked",): False,
    ("gzip", "chunked"): False,
    ("chunked, gzip",): False,
    ("foo, chunked",): False,  # curl: error 61
    ("gzip",): False,
}


@pytest.mark.parametrize("python_parser", [False, True], ids=["C parser", "Python parser"])
@pytest.mark.parametrize("lines", TRANSFER_CODINGS, ids=" / ".join)
async def test_a_transfer_coding_other_than_chunked_is_malformed(
    lines: tuple[str, ...], python_parser: bool, server: FaultServer, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    if python_parser:
        monkeypatch.setattr("aiohttp.client_proto.HttpResponseParser", HttpResponseParserPy)
    readable = TRANSFER_CODINGS[lines]
    body = BODY if readable else gzip.compress(BODY)
    head = "".join(f"Transfer-Encoding: {line}\r\n" for line in lines)

    async def play(connection: Connection) -> None:
        await connection.send(f"HTTP/1.1 200 OK\r\n{head}\r\n{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n")
        connection.close()

    server.script("/x", play)
    subject = AsyncConnector(log.path, n_tries=1, timeout=5)
    async with aiohttp.ClientSession() as session:
        if readable:
            assert await subject.get(session, server.url("/x"), "P", decode=bytes) == BODY
        else:
            with pytest.raises(otel_connector.MalformedResponse):
                await subject.get(session, server.url("/x"), "P", decode=bytes)


async def test_an_unknown_content_coding_fails_unless_the_call_asks_for_raw_bytes(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/x", respond(body=BODY, headers=[("Content-Encoding", "utf-8")]))
    subject = AsyncConnector(log.path, n_tries=3)
    with pytest.raises(DecodeFailed, match="content coding 'utf-8' is unknown"):
        await subject.get(session, server.url("/x"), "P", decode=bytes)
    assert await subject.get(session, server.url("/x"), "P", decode=bytes, auto_decompress=False) == BODY
    assert subject.stats().retries == 0


def test_more_than_five_content_codings_are_refused() -> None:
    with pytest.raises(DecodeFailed, match="6 content codings"):
        ContentCodings(["gzip"] * 6)


def test_a_coding_without_an_installed_decoder_raises_decode_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("brotli", "brotlicffi"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DecodeFailed, match="br: its decoder is not installed; pip install brotli"):
        decoded(["br"], [brotli.compress(BODY)])


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_decoder_is_not_searched_again_for_each_response(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python looks for a module that is not installed in all folders: that takes longer than the decoding."""

    class Finder(MetaPathFinder):
        def find_spec(self, fullname: str, path: object, target: object = None) -> None:
            searched.append(fullname)

    name, encode = ENCODERS[kind]
    assert decoded([name], [encode(BODY)]) == BODY
    searched: list[str] = []
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    assert decoded([name], [encode(BODY)]) == BODY
    assert searched == []


def test_a_brotli_version_without_an_output_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before version 1.2, the output for a few bytes has no limit."""

    class OldBrotli:
        class Decompressor:
            def process(self, data: bytes) -> bytes:
                raise AssertionError("it must not be used")

    monkeypatch.setitem(sys.modules, "brotlicffi", OldBrotli)
    with pytest.raises(DecodeFailed, match=r"pip install 'brotli>=1\.2'"):
        decoded(["br"], [brotli.compress(BODY)])


@pytest.mark.parametrize("kind", ENCODERS)
async def test_a_truncated_stream_with_a_matching_content_length_is_retried(
    kind: str, server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    name, encode = ENCODERS[kind]
    wire = encode(BODY)
    headers = [("Content-Encoding", name)]
    server.script("/x", [respond(body=wire[:-1], headers=headers), respond(body=wire, headers=headers)])
    server.script("/cut", respond(body=wire[:-1], headers=headers))
    subject = AsyncConnector(log.path, n_tries=2, clock=FakeClock())
    assert await subject.get(session, server.url("/x"), "P", decode=bytes) == BODY
    with pytest.raises(otel_connector.BodyTruncated, match=f"before the end of its {name} stream"):
        await subject.get(session, server.url("/cut"), "P", decode=bytes)
    assert subject.stats().retries == 2


async def test_two_content_codings_are_decoded_in_reverse_order(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    wire = brotli.compress(gzip.compress(b'{"a": 1}'))
    server.script("/x", respond(body=wire, headers=[("Content-Encoding", "gzip"), ("Content-Encoding", "br")]))
    subject = AsyncConnector(log.path, n_tries=1)
    assert await subject.get(session, server.url("/x"), "P") == {"a": 1}
    assert log.only().response_size == 8


async def test_the_inner_and_the_outer_of_two_codings_may_end_early(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    headers = [("Content-Encoding", "gzip"), ("Content-Encoding", "br")]
    inner = gzip.compress(BODY)
    server.script("/inner", respond(body=brotli.compress(inner[:-1]), headers=headers))
    server.script("/outer", respond(body=brotli.compress(inner)[:-1], headers=headers))
    subject = AsyncConnector(log.path, n_tries=1)
    for path, name in {"/inner": "gzip", "/outer": "br"}.items():
        with pytest.raises(BodyTruncated, match=f"before the end of its {name} stream"):
            await subject.get(session, server.url(path), "P", decode=bytes)


async def test_auto_decompress_of_the_session_applies_unless_the_call_sets_it(server: FaultServer, log: Log) -> None:
    wire = gzip.compress(BODY)
    server.script("/x", respond(body=wire, headers=[("Content-Encoding", "gzip")]))
    subject = AsyncConnector(log.path, n_tries=1)
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        assert await subject.get(session, server.url("/x"), "P", decode=bytes) == wire
        assert await subject.get(session, server.url("/x"), "P", decode=bytes, auto_decompress=True) == BODY


async def test_a_large_window_counts_towards_max_body_bytes(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    body = random.Random(1).randbytes(1_000) * 20_000
    wire = brotli.compress(body, quality=1, lgwin=24)
    server.script("/x", [respond(body=wire, headers=[("Content-Encoding", "br")]), ok])
    subject = AsyncConnector(log.path, n_tries=1)
    assert await subject.get(session, server.url("/x"), "P", decode=bytes) == body
    small = AsyncConnector(log.path, n_tries=1, max_body_bytes=2**22)
    server.script("/x", [respond(body=wire, headers=[("Content-Encoding", "br")])])
    with pytest.raises(otel_connector.BodyTooLarge, match="with 14680064 bytes for the window of its coding"):
        await small.get(session, server.url("/x"), "P", decode=bytes)
