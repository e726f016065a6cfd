"""Decodes the content codings of a body, piece by piece.

gzip, deflate, brotli and zstd are decoded, alone or several in sequence. The size of a piece is bounded for every
compression ratio. The end of each stream is checked, so that a truncated body is never mistaken for a complete one.
aiohttp decodes these codings as well, but it does not report where a stream ended, and the server can choose the memory
of the decoder. This file knows the header and the bytes of a body and the memory of its decoders, but not connections,
attempts or the limit of a call.

Used by ``_call._body``, ``_call._bounded_content`` and ``_call._exchange``.
"""

from __future__ import annotations

import sys
import zlib
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from otel_connector._errors import BodyTruncated, DecodeFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_PIECE = 2**18  # bytes that a decoder returns at a time: about a millisecond of work

# A decoder copies its unused input. With many small members that is nearly all of it, so it gets slices of this size
_SLICE = 2**13  # bytes

_MEMBERS = 1_024  # gzip members or zstd frames in one body; real bodies have a few (aiohttp has the same limit)
_CODINGS = 5  # in sequence; curl's limit

# RFC 9659, section 3: the window of the coding "zstd" is at most 8 MiB; a decoder may refuse more
_ZSTD_WINDOW_LOG = 23
_SINGLE_SEGMENT = 0x20  # flag in the descriptor of a zstd frame

_NO_CODING = frozenset({"", "identity", "none"})  # RFC 9110, section 12.5.3; curl accepts "none", too
_NAME_LIMIT = 40  # characters of an unknown name in a message

_FREE_WINDOW = 2**22  # bytes of window that do not count towards the limit of a body: brotli's default
_UNCOUNTED = 2**21  # bytes of a larger window that do not count: they are allocated in any case


class _Decoder(Protocol):
    """One compressed stream.

    `more` returns whether it has further output without further input. `window` is its memory in bytes.
    """

    @property
    def window(self) -> int: ...
    @property
    def ended(self) -> bool: ...
    @property
    def unused(self) -> bytes: ...
    def feed(self, data: bytes) -> bytes: ...
    def more(self) -> bool: ...


class ContentCodings:
    """Decodes the codings of a ``Content-Encoding`` header, the last one first (RFC 9110, section 8.4).

    Args:
        names: The codings, as `content_codings` returns them.

    Raises:
        DecodeFailed: There are too many, or the decoder of one is not installed.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if len(names) > _CODINGS:
            raise DecodeFailed(f"{len(names)} content codings on one body; at most {_CODINGS} are decoded")
        self._streams = [_Stream(name) for name in reversed(names)]

    @property
    def window(self) -> int:
        """Bytes of the decoders' windows that count towards the limit of a body; known with the first piece."""
        memory = sum(stream.window for stream in self._streams)
        return memory - _UNCOUNTED if memory > _FREE_WINDOW else 0

    def decode(self, data: bytes, done: int = 0) -> Iterator[bytes]:
        """Yield the decoded bytes of `data`, in pieces of bounded size.

        Args:
            data: The next bytes of the body.
            done: Number of codings that are decoded already.

        Raises:
            DecodeFailed: The bytes are not in the coding.
        """
        if done == len(self._streams):
            yield data
            return
        for piece in self._streams[done].decode(data):
            if piece:
                yield from self.decode(piece, done + 1)
            else:
                yield piece

    def finish(self) -> None:
        """Check that the body may end here.

        Raises:
            BodyTruncated: A compressed stream is not complete. A body of 0 bytes is complete in any coding.
        """
        for stream in self._streams:
            stream.finish()


def content_codings(values: Sequence[str]) -> list[str]:
    """Return the codings in the values of ``Content-Encoding``, in the order in which they were applied.

    Raises:
        DecodeFailed: One of them is unknown, as for curl.
    """
    names = [name for value in values for each in value.split(",") if (name := each.strip().lower()) not in _NO_CODING]
    names = [name.removeprefix("x-") for name in names]  # x-gzip: RFC 9110, section 8.4.1.3
    for name in names:
        if name not in _MAKERS:
            unknown = f"content coding {name[:_NAME_LIMIT]!r} is unknown"
            raise DecodeFailed(f"{unknown}; auto_decompress=False returns the body as it was sent")
    return names


def coding_of_aiohttp(values: Sequence[str]) -> list[str]:
    """Return the coding that aiohttp decodes of the values of ``Content-Encoding``: one known name alone, or none."""
    last = values[-1].lower() if values else ""
    return [last] if last in _MAKERS else []


class _Stream:
    """One coding: a stream, or for gzip and zstd a sequence of several."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._members = 0
        self._decoder: _Decoder | None = None

    @property
    def window(self) -> int:
        """Memory of the decoder, in bytes."""
        return 0 if self._decoder is None else self._decoder.window

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Yield the decoded bytes of `data`; raise DecodeFailed if they are not in the coding."""
        for start in range(0, len(data), _SLICE):
            rest = data[start : start + _SLICE]
            while rest := self._without_padding(rest):
                decoder = self._current(rest)
                # The reader must know the window before it is filled. And there may be no output for a long time
                yield b""
                yield from self._outputs(decoder, rest)
                rest = decoder.unused if decoder.ended else b""

    def finish(self) -> None:
        """Raise BodyTruncated unless the stream is complete."""
        if self._decoder is not None and not self._decoder.ended:
            raise BodyTruncated(f"the body ended before the end of its {self._name} stream")

    def _without_padding(self, data: bytes) -> bytes:
        """Return `data` without the zeros that may follow a gzip member; gzip and Python's `gzip` skip them, too."""
        padded = self._name == "gzip" and self._decoder is not None and self._decoder.ended
        return data.lstrip(b"\0") if padded else data

    def _current(self, data: bytes) -> _Decoder:
        """Return the decoder for `data`, which may start a new member."""
        if self._decoder is None or self._decoder.ended:
            if self._members and self._name not in {"gzip", "zstd"}:
                raise DecodeFailed(f"{self._name}: bytes after the end of the stream")
            if self._members == _MEMBERS:
                raise DecodeFailed(f"{self._name}: more than {_MEMBERS} streams in one body")
            self._members += 1
            self._decoder = _MAKERS[self._name](data)
        return self._decoder

    def _outputs(self, decoder: _Decoder, data: bytes) -> Iterator[bytes]:
        try:
            if piece := decoder.feed(data):
                yield piece
            while decoder.more():
                yield decoder.feed(b"")
        except Exception as error:  # each library has its own class
            raise DecodeFailed(f"{self._name}: {error}") from error


class _Zlib:
    """gzip (RFC 1952), zlib (RFC 1950) or raw deflate (RFC 1951)."""

    window = 0  # 32 KiB, which is not counted

    def __init__(self, bits: int) -> None:
        self._inflater = zlib.decompressobj(bits)

    @property
    def ended(self) -> bool:
        return self._inflater.eof

    @property
    def unused(self) -> bytes:
        return self._inflater.unused_data

    def feed(self, data: bytes) -> bytes:
        return self._inflater.decompress(data or self._inflater.unconsumed_tail, _PIECE)

    def more(self) -> bool:
        return bool(self._inflater.unconsumed_tail)


class _Brotli:
    """Brotli (RFC 7932)."""

    unused = b""  # the library rejects bytes after its stream

    def __init__(self, head: bytes) -> None:
        self.window = _brotli_window(head[0])  # all of it: the library fills it before it returns output
        self._decompressor = _library("br", "brotlicffi", "brotli").Decompressor()
        self._idle = True
        if not hasattr(self._decompressor, "can_accept_more_data"):
            raise DecodeFailed("br: the installed brotli has no limit for its output; pip install 'brotli>=1.2'")

    @property
    def ended(self) -> bool:
        return bool(self._decompressor.is_finished())

    def feed(self, data: bytes) -> bytes:
        piece = bytes(self._decompressor.process(data, output_buffer_limit=_PIECE))
        self._idle = not piece
        return piece

    def more(self) -> bool:
        # Only brotlicffi counts pending output in `can_accept_more_data`. With brotli, it shows only when it is fetched
        return not self.ended and not (self._idle and self._decompressor.can_accept_more_data())


class _Zstd:
    """Zstandard (RFC 8878)."""

    def __init__(self, head: bytes) -> None:
        zstd = _library("zstd", "compression.zstd", "backports.zstd")
        limits = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
        self._decompressor = zstd.ZstdDecompressor(options=limits)
        self._full_window = _zstd_window(head)
        self.window = 0

    @property
    def ended(self) -> bool:
        return bool(self._decompressor.eof)

    @property
    def unused(self) -> bytes:
        return bytes(self._decompressor.unused_data)

    def feed(self, data: bytes) -> bytes:
        piece: bytes = self._decompressor.decompress(data, _PIECE)
        self.window = min(self._full_window, self.window + len(piece))  # filled with the output
        return piece

    def more(self) -> bool:
        return not self._decompressor.eof and not self._decompressor.needs_input


def _deflate(data: bytes) -> _Decoder:
    # RFC 9110, section 8.4.1.2: with zlib's header. Some servers omit it; no raw stream starts like one
    return _Zlib(zlib.MAX_WBITS if data[0] & 0x0F == zlib.DEFLATED else -zlib.MAX_WBITS)


_MAKERS: dict[str, Callable[[bytes], _Decoder]] = {
    "gzip": lambda _: _Zlib(16 + zlib.MAX_WBITS),
    "deflate": _deflate,
    "br": _Brotli,
    "zstd": _Zstd,
}


def _library(coding: str, *names: str) -> Any:
    """Import the first of several modules that is installed. They are not dependencies: few programs need one.

    A module that is loaded is used as it is: for one that is not installed, Python looks through all folders each time.
    """
    for name in names:
        if (loaded := sys.modules.get(name)) is not None:
            return loaded
    for name in names:
        with suppress(ImportError):
            return import_module(name)
    raise DecodeFailed(f"{coding}: its decoder is not installed; pip install {names[-1]}")


def _brotli_window(first: int) -> int:
    """Return the window of a brotli stream, given its first byte, in bytes (RFC 7932, section 9.1)."""
    if not first & 1:
        return 1 << 16
    high, low = first >> 4 & 7, first >> 1 & 7
    if low:
        return 1 << 17 + low
    return 1 << 8 + high if high else 1 << 17


def _zstd_window(head: bytes) -> int:
    """Return the window of a zstd frame, given its header, in bytes (RFC 8878, section 3.1.1.1.2).

    If the header does not contain it (the window is then the size of the content) or is incomplete, return the largest
    window that is accepted.
    """
    descriptor, window = head[4:5], head[5:6]  # after the magic number
    if not window or descriptor[0] & _SINGLE_SEGMENT:
        return 1 << _ZSTD_WINDOW_LOG
    exponent, mantissa = window[0] >> 3, window[0] & 7
    return (8 + mantissa) << (7 + exponent)
