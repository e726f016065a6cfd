"""The content codings of a body undone, piece by piece.

gzip, deflate, brotli and zstd, alone or one over another, each in pieces of bounded size, whatever the server packed
into a few bytes. The end of each is looked for, so that a body which stops early never passes for a whole one. aiohttp
could do the first half of that, but tells nobody where a stream ended and lets the server choose the decoder's memory.
Knows bytes only: nothing of connections, responses or limits.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from otel_connector._errors import BodyTruncated, DecodeFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_PIECE = 2**18  # bytes that a decoder makes in one go: about a millisecond of work

# A decoder copies what it leaves over, and leaves over all but the first of many small members: of a slice, not of all
_SLICE = 2**13  # bytes

_MEMBERS = 1_024  # gzip members or zstd frames in one body; real ones have a few (aiohttp draws the line there, too)
_CODINGS = 5  # one over another, as curl allows

# RFC 9659, section 3: the window of the coding "zstd" is at most 8 MiB; a decoder may refuse more
_ZSTD_WINDOW_LOG = 23

_FREE_WINDOW = 2**22  # bytes of window that no body is charged for: what brotli takes unless its user asks for more
_SPARE = 2**21  # bytes of a larger one that are not charged either: they are there anyway


class _Decoder(Protocol):
    """One compressed stream. `more` says whether it can go on without further input, `window` what memory it takes."""

    @property
    def window(self) -> int: ...
    @property
    def ended(self) -> bool: ...
    @property
    def left_over(self) -> bytes: ...
    def feed(self, data: bytes) -> bytes: ...
    def more(self) -> bool: ...


class ContentCodings:
    """Undoes what a ``Content-Encoding`` header names, in the order of RFC 9110, section 8.4: the last named first.

    Args:
        names: The codings, as `content_codings` returns them.

    Raises:
        DecodeFailed: There are too many, or what decodes one of them is not installed.
    """

    __slots__ = ("_streams",)

    def __init__(self, names: Sequence[str]) -> None:
        if len(names) > _CODINGS:
            raise DecodeFailed(f"{len(names)} content codings on one body; at most {_CODINGS} are undone")
        self._streams = [_Stream(name) for name in reversed(names)]

    @property
    def window(self) -> int:
        """Bytes that the decoders keep beside what they hand out, if many; known once the first piece is there."""
        kept = sum(stream.window for stream in self._streams)
        return kept - _SPARE if kept > _FREE_WINDOW else 0

    def undo(self, data: bytes, above: int = 0) -> Iterator[bytes]:
        """Yield what `data` stands for, in pieces of bounded size.

        Args:
            data: The next bytes of the body.
            above: How many codings are undone already.

        Raises:
            DecodeFailed: The bytes are not what the coding says.
        """
        if above == len(self._streams):
            yield data
            return
        for piece in self._streams[above].undo(data):
            if piece:
                yield from self.undo(piece, above + 1)
            else:
                yield piece

    def finish(self) -> None:
        """Note the end of the body.

        Raises:
            BodyTruncated: A compressed stream is not complete. A body without a byte is, in any coding.
        """
        for stream in self._streams:
            stream.finish()


def content_codings(values: Sequence[str]) -> list[str]:
    """Return the codings that ``Content-Encoding`` headers name and that can be undone; none if one is unknown.

    What else servers write there (``utf-8``, ``none``) is passed over with all the others, as browsers do: the body is
    then handed on as it came.
    """
    names = [name for value in values for each in value.split(",") if (name := each.strip().lower())]
    names = [name.removeprefix("x-") for name in names if name != "identity"]  # x-gzip: RFC 9110, section 8.4.1.3
    return names if all(name in _MAKERS for name in names) else []


class _Stream:
    """One coding: a sequence of members, of which gzip and zstd allow several."""

    __slots__ = ("_decoder", "_members", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._members = 0
        self._decoder: _Decoder | None = None

    @property
    def window(self) -> int:
        """Bytes that the decoder keeps beside what it hands out."""
        return 0 if self._decoder is None else self._decoder.window

    def undo(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` stands for; DecodeFailed if it is no such stream."""
        for start in range(0, len(data), _SLICE):
            rest = data[start : start + _SLICE]
            while rest:
                decoder = self._current(rest)
                if decoder.window:
                    yield b""  # so that who reads learns of the window before it is filled
                yield from self._fed_with(decoder, rest)
                rest = decoder.left_over if decoder.ended else b""

    def finish(self) -> None:
        """Raise BodyTruncated unless the stream is complete."""
        if self._decoder is not None and not self._decoder.ended:
            raise BodyTruncated(f"the body ended before its {self._name} stream did")

    def _current(self, data: bytes) -> _Decoder:
        """Return the decoder for `data`, which may begin a new member."""
        if self._decoder is None or self._decoder.ended:
            if self._members and self._name not in {"gzip", "zstd"}:
                raise DecodeFailed(f"{self._name}: bytes after the end of the stream")
            if self._members == _MEMBERS:
                raise DecodeFailed(f"{self._name}: more than {_MEMBERS} streams, one after another")
            self._members += 1
            self._decoder = _MAKERS[self._name](data)
        return self._decoder

    def _fed_with(self, decoder: _Decoder, data: bytes) -> Iterator[bytes]:
        try:
            if piece := decoder.feed(data):
                yield piece
            while decoder.more():
                yield decoder.feed(b"")
        except Exception as error:  # each library has a class of its own
            raise DecodeFailed(f"{self._name}: {error}") from error


class _Zlib:
    """gzip (RFC 1952), zlib (RFC 1950) or raw deflate (RFC 1951)."""

    __slots__ = ("_inflater", "window")

    def __init__(self, bits: int) -> None:
        self._inflater = zlib.decompressobj(bits)
        self.window = 0  # 32 KiB, which nobody counts

    @property
    def ended(self) -> bool:
        return self._inflater.eof

    @property
    def left_over(self) -> bytes:
        return self._inflater.unused_data

    def feed(self, data: bytes) -> bytes:
        return self._inflater.decompress(data or self._inflater.unconsumed_tail, _PIECE)

    def more(self) -> bool:
        return bool(self._inflater.unconsumed_tail)


class _Brotli:
    """Brotli (RFC 7932)."""

    __slots__ = ("_decompressor", "window")

    def __init__(self, head: bytes) -> None:
        self.window = _brotli_window(head[0])  # as a whole: the library fills it before it hands anything out
        self._decompressor = _library("br", "brotlicffi", "brotli").Decompressor()
        if not hasattr(self._decompressor, "can_accept_more_data"):
            raise DecodeFailed("br: the installed brotli cannot be bounded; pip install 'brotli>=1.2'")

    @property
    def ended(self) -> bool:
        finished: bool = self._decompressor.is_finished()
        return finished

    @property
    def left_over(self) -> bytes:
        return b""  # the library refuses what follows its stream

    def feed(self, data: bytes) -> bytes:
        piece: bytes = self._decompressor.process(data, output_buffer_limit=_PIECE)
        return piece

    def more(self) -> bool:
        return not self._decompressor.can_accept_more_data()


class _Zstd:
    """Zstandard (RFC 8878)."""

    __slots__ = ("_asked", "_decompressor", "window")

    def __init__(self, head: bytes) -> None:
        zstd = _library("zstd", "compression.zstd", "backports.zstd")
        limits = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
        self._decompressor = zstd.ZstdDecompressor(options=limits)
        self._asked = _zstd_window(head)
        self.window = 0

    @property
    def ended(self) -> bool:
        ended: bool = self._decompressor.eof
        return ended

    @property
    def left_over(self) -> bytes:
        unused: bytes = self._decompressor.unused_data
        return unused

    def feed(self, data: bytes) -> bytes:
        piece: bytes = self._decompressor.decompress(data, _PIECE)
        self.window = min(self._asked, self.window + len(piece))  # filled as the output comes
        return piece

    def more(self) -> bool:
        return not self._decompressor.eof and not self._decompressor.needs_input


def _deflate(data: bytes) -> _Decoder:
    # RFC 9110, section 8.4.1.2: with zlib's header; some servers leave it out, and no raw stream begins like one
    return _Zlib(zlib.MAX_WBITS if data[0] & 0x0F == zlib.DEFLATED else -zlib.MAX_WBITS)


_MAKERS: dict[str, Callable[[bytes], _Decoder]] = {
    "gzip": lambda _: _Zlib(16 + zlib.MAX_WBITS),
    "deflate": _deflate,
    "br": _Brotli,
    "zstd": _Zstd,
}


def _library(coding: str, *names: str) -> Any:
    """Import the first of several modules that is there; they are not ours to depend on, and few programs need one."""
    for name in names:
        with suppress(ImportError):
            return import_module(name)
    raise DecodeFailed(f"{coding}: nothing installed decodes it; pip install {names[-1]}")


def _brotli_window(first: int) -> int:
    """Return the window that a brotli stream's first byte asks for, in bytes (RFC 7932, section 9.1)."""
    if not first & 1:
        return 1 << 16
    high, low = first >> 4 & 7, first >> 1 & 7
    if low:
        return 1 << 17 + low
    return 1 << 8 + high if high else 1 << 17


def _zstd_window(head: bytes) -> int:
    """Return the window that a zstd frame's header asks for, in bytes (RFC 8878, section 3.1.1.1.2).

    Where the header does not say it (the window is then the content's size), or is not there as a whole, the largest
    there may be.
    """
    if len(head) < 6 or head[4] & 0x20:  # noqa: PLR2004 - magic number, descriptor (with its single-segment flag), window
        return 1 << _ZSTD_WINDOW_LOG
    exponent, mantissa = head[5] >> 3, head[5] & 7
    return (8 + mantissa) << (7 + exponent)
