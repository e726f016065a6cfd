"""How result lines are stored in a file: plain, gzip or zstd. The extension of the file selects the format.

In a compressed file each batch of lines is a complete gzip member or zstd frame (both are called member here). So all
earlier batches can be read at any time, and what a killed process left unfinished is recognized and cut. Does not know
the content of a line, locks or threads.

Used by ``_fetch._results``.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from otel_connector._csv._torn_tail import blocks, cut_torn_tail
from otel_connector._optional_module import optional_module

# Bytes that are decompressed at a time: the decoder of a completed member copies the input that follows it
_PIECE = 8_192
_GZIP = 16 + zlib.MAX_WBITS
_ZSTD_LEVEL = 3  # the library's default; a reader needs its window of 2 MiB


class _Plain:
    """Lines as they are.

    Args:
        path: The name of the file; an unfinished last line is moved to ``<path>.torn``.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def pack(self, lines: bytes) -> bytes:
        """Return the bytes to append for some complete lines."""
        return lines

    def repair(self, fd: int) -> int:
        """Cut an unfinished end, and return how many bytes were cut.

        Raises:
            ValueError: The file does not contain JSON lines; it is not changed.
        """
        _check_first_byte(b"".join(blocks(fd, 0, 1)))
        return cut_torn_tail(fd, self._path)

    def lines(self, fd: int) -> Iterator[bytes]:
        """Yield the content in bounded pieces, from the beginning."""
        return blocks(fd, 0, os.fstat(fd).st_size)


@dataclass(frozen=True, slots=True)
class _Compressed:
    """Members one after the other, each with the lines of one batch. The methods are those of `_Plain`.

    Attributes:
        name: The name of the format.
        error: What the decoder raises.
        pack: Returns one member with some lines.
        decoder: Makes a decoder for one member.
        unpacked: Decompresses data in bounded pieces with a decoder, up to the end of the member.
    """

    name: str
    error: type[Exception]
    pack: Callable[[bytes], bytes]
    decoder: Callable[[], Any]
    unpacked: Callable[[Any, bytes], Iterator[bytes]]

    def repair(self, fd: int) -> int:
        """Cut an unfinished member at the end, and return how many bytes were cut.

        Raises:
            ValueError: The file has another format, or is damaged before its end; it is not changed.
        """
        first, last = b"", b"\n"  # the first byte of all, and the last one so far
        end, end_byte = 0, b"\n"  # where the last complete member ends, and its last byte
        try:
            for text, member_end in self._members(fd):
                first, last = first or text[:1], text[-1:] or last
                if member_end:
                    end, end_byte = member_end, last
        except self.error as error:
            # Damaged, not torn: complete members may follow, so nothing is cut
            raise ValueError(
                f"is damaged after its first {end} bytes ({error}); to continue without the rest: truncate -s {end}"
                if end
                else f"is not {self.name} ({error})"
            ) from error
        _check_first_byte(first)
        if end_byte != b"\n":
            raise ValueError("does not end with a complete line: another program made it")
        size = os.fstat(fd).st_size
        if end < size:
            os.ftruncate(fd, end)
        return size - end

    def lines(self, fd: int) -> Iterator[bytes]:
        """Yield the content in bounded pieces, from the beginning."""
        return (text for text, _ in self._members(fd))

    def _members(self, fd: int) -> Iterator[tuple[bytes, int]]:
        """Yield the content in pieces, each with 0; after each member, yield nothing with the offset of its end."""
        decoder, offset = self.decoder(), 0
        for block in blocks(fd, 0, os.fstat(fd).st_size):
            for start in range(0, len(block), _PIECE):
                data = block[start : start + _PIECE]
                offset += len(data)
                while data:
                    for text in self.unpacked(decoder, data):
                        yield text, 0
                    if not decoder.eof:
                        break
                    data, decoder = decoder.unused_data, self.decoder()
                    yield b"", offset - len(data)


def _gzip() -> _Compressed:
    """Return the format of gzip members (RFC 1952)."""
    return _Compressed("gzip", zlib.error, _gzipped, partial(zlib.decompressobj, _GZIP), _gunzipped)


def _gzipped(lines: bytes) -> bytes:
    packer = zlib.compressobj(wbits=_GZIP)
    return packer.compress(lines) + packer.flush()


def _gunzipped(decoder: Any, data: bytes) -> Iterator[bytes]:
    while data and not decoder.eof:
        yield decoder.decompress(data, _PIECE)
        data = decoder.unconsumed_tail


def _zstd() -> _Compressed:
    """Return the format of zstd frames (RFC 8878) with a checksum.

    Raises:
        ImportError: No zstd library is installed.
    """
    names = ("compression.zstd", "backports.zstd")  # the standard library (Python 3.14 and later), and its backport
    library = optional_module(*names, needed_by="a results file that ends in .zst", install="'otel-connector[cli]'")
    parameters = library.CompressionParameter
    options = {parameters.compression_level: _ZSTD_LEVEL, parameters.checksum_flag: 1}
    pack = partial(library.compress, options=options)
    return _Compressed("zstd", library.ZstdError, pack, library.ZstdDecompressor, _decompressed_zstd)


def _decompressed_zstd(decoder: Any, data: bytes) -> Iterator[bytes]:
    yield decoder.decompress(data, _PIECE)
    while not decoder.eof and not decoder.needs_input:
        yield decoder.decompress(b"", _PIECE)


ResultFormat: TypeAlias = _Plain | _Compressed


def format_of(path: str) -> ResultFormat:
    """Return the format for a file name: ``.gz`` is gzip, ``.zst`` is zstd, everything else is plain.

    Raises:
        ImportError: The format is zstd, and no library for it is installed.
    """
    extension = Path(path).suffix.lower()
    return _gzip() if extension == ".gz" else _zstd() if extension == ".zst" else _Plain(path)


def _check_first_byte(first: bytes) -> None:
    """Raise ValueError if a file that begins with this byte does not contain JSON lines. An empty file is accepted."""
    if first not in {b"", b"{"}:
        raise ValueError(f"does not contain JSON lines: its first byte is {first!r}, not '{{'")
