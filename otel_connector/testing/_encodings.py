"""Content codings: compresses a body, and makes small bodies that decompress to large ones. Does not know HTTP.

Used by ``testing._steps``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache
from itertools import chain, repeat
from typing import Any, TypeAlias

from otel_connector._arguments import checked_instance, checked_int
from otel_connector._optional_module import optional_module

# The zeros are compressed in pieces of this size, so that they are never all in memory
_PIECE = 256 * 1024


_Compressor: TypeAlias = tuple[Callable[[bytes], bytes], Callable[[], bytes]]
"""Two methods: one takes input and returns output, the other returns the rest of the output."""


def compress(body: bytes, encoding: str) -> bytes:
    """Return `body` in the content coding `encoding`.

    Raises:
        TypeError: `body` is not bytes.
        ValueError: `encoding` is not one of gzip, deflate, br, zstd.
        ImportError: The package for br or zstd is not installed.
    """
    add, finish = _compressor(encoding)
    return add(checked_instance("body", body, bytes)) + finish()


def compressed_zeros(size: int, encoding: str) -> bytes:
    """Return a body that decompresses to `size` zero bytes, 1 or more. Raises the same errors as `compress`."""
    return _zeros(checked_int("size", size), encoding)


# Compressing a GiB takes seconds. Tests that use the same body wait for it once
@lru_cache(maxsize=4)
def _zeros(size: int, encoding: str) -> bytes:
    add, finish = _compressor(encoding)
    pieces = chain(repeat(bytes(_PIECE), size // _PIECE), [bytes(size % _PIECE)])
    return b"".join([*map(add, pieces), finish()])


def _compressor(encoding: object) -> _Compressor:
    """Return a streaming compressor. "deflate" means the zlib format (RFC 9110, section 8.4.1.2)."""
    compressor: Any
    if encoding == "br":
        brotli = optional_module("brotli", needed_by='encoding="br"', install="'otel-connector[testing]'")
        # For zeros, quality 5 compresses as well as the default of 11, and is thirty times as fast
        compressor = brotli.Compressor(quality=5)
        return compressor.process, compressor.finish
    if encoding == "gzip":
        compressor = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    elif encoding == "deflate":
        compressor = zlib.compressobj(9)
    elif encoding == "zstd":
        names = ("compression.zstd", "backports.zstd")  # the standard library (Python 3.14 and later), and its backport
        compressor = optional_module(*names, needed_by='encoding="zstd"', install="backports.zstd").ZstdCompressor()
    else:
        raise ValueError(f"encoding must be one of gzip, deflate, br, zstd, not {encoding!r}")
    return compressor.compress, compressor.flush
