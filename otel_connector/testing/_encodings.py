"""Content codings: compressing a body, and building one that inflates to far more than it is. Knows no HTTP."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from otel_connector.testing._arguments import instance, optional_module, whole

# A bomb is fed to the compressor in pieces of this size, so `size` bytes are never in memory.
_PIECE = 256 * 1024


class _Compressor(NamedTuple):
    add: Callable[[bytes], bytes]
    finish: Callable[[], bytes]


def compress(body: bytes, encoding: str) -> bytes:
    """Return `body` in the content coding `encoding`.

    Raises:
        TypeError: `body` is not bytes.
        ValueError: `encoding` is none of gzip, deflate, br, zstd.
        ImportError: br or zstd without a package for it.
    """
    compressor = _compressor(encoding)
    return compressor.add(instance("body", body, bytes)) + compressor.finish()


def compressed_zeros(size: int, encoding: str) -> bytes:
    """Return what inflates to `size` zero bytes; raises as `compress` does, and for a `size` below 1."""
    return _zeros(whole("size", size, 1), encoding)


# Deflating a GiB takes seconds: tests that share a bomb pay for it once.
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
    """Look up a streaming compressor; "deflate" is the zlib format (RFC 9110, section 8.4.1.2)."""
    if encoding == "gzip":
        return _like_zlib(zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS))
    if encoding == "deflate":
        return _like_zlib(zlib.compressobj(9))
    if encoding == "br":
        # On zeros, quality 5 is as small as the default 11 and thirty times as fast.
        brotli = optional_module("brotli", wanted_by='encoding="br"').Compressor(quality=5)
        return _Compressor(brotli.process, brotli.finish)
    if encoding == "zstd":
        return _like_zlib(_zstd().ZstdCompressor())
    raise ValueError(f"encoding must be one of gzip, deflate, br, zstd, not {encoding!r}")


def _like_zlib(compressor: Any) -> _Compressor:
    return _Compressor(compressor.compress, compressor.flush)


def _zstd() -> Any:
    """Import zstd from the standard library (Python 3.14 and later) or from its backport."""
    try:
        return importlib.import_module("compression.zstd")
    except ImportError:
        return optional_module("backports.zstd", wanted_by='encoding="zstd"', install="backports.zstd")
