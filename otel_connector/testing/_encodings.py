"""Content codings: compresses a body, and makes small bodies that decompress to large ones. Does not know HTTP."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from otel_connector._arguments import checked_instance, checked_int
from otel_connector._optional_module import optional_module

# The zeros are compressed in pieces of this size, so that they are never all in memory
_PIECE = 256 * 1024


class _Compressor(NamedTuple):
    add: Callable[[bytes], bytes]
    finish: Callable[[], bytes]


def compress(body: bytes, encoding: str) -> bytes:
    """Return `body` in the content coding `encoding`.

    Raises:
        TypeError: `body` is not bytes.
        ValueError: `encoding` is not one of gzip, deflate, br, zstd.
        ImportError: The package for br or zstd is not installed.
    """
    compressor = _compressor(encoding)
    return compressor.add(checked_instance("body", body, bytes)) + compressor.finish()


def compressed_zeros(size: int, encoding: str) -> bytes:
    """Return a body that decompresses to `size` zero bytes, 1 or more. Raises the same errors as `compress`."""
    return _zeros(checked_int("size", size), encoding)


# Compressing a GiB takes seconds. Tests that use the same body wait for it once
@lru_cache(maxsize=4)
def _zeros(size: int, encoding: str) -> bytes:
    compressor = _compressor(encoding)
    return b"".join([*map(compressor.add, _pieces(size)), compressor.finish()])


def _pieces(size: int) -> Iterator[bytes]:
    piece = bytes(_PIECE)
    for _ in range(size // _PIECE):
        yield piece
    yield bytes(size % _PIECE)


def _compressor(encoding: object) -> _Compressor:
    """Return a streaming compressor. "deflate" means the zlib format (RFC 9110, section 8.4.1.2)."""
    if encoding == "gzip":
        return _like_zlib(zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS))
    if encoding == "deflate":
        return _like_zlib(zlib.compressobj(9))
    if encoding == "br":
        # For zeros, quality 5 compresses as well as the default of 11, and is thirty times as fast
        brotli = optional_module("brotli", needed_by='encoding="br"', install="'otel-connector[testing]'")
        compressor = brotli.Compressor(quality=5)
        return _Compressor(compressor.process, compressor.finish)
    if encoding == "zstd":
        names = ("compression.zstd", "backports.zstd")  # the standard library (Python 3.14 and later), and its backport
        zstd = optional_module(*names, needed_by='encoding="zstd"', install="backports.zstd")
        return _like_zlib(zstd.ZstdCompressor())
    raise ValueError(f"encoding must be one of gzip, deflate, br, zstd, not {encoding!r}")


def _like_zlib(compressor: Any) -> _Compressor:
    return _Compressor(compressor.compress, compressor.flush)
