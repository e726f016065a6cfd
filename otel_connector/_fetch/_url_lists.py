"""The sources of URLs of ``otel-connector fetch``: a file, a pipe, a template with a range, or a single URL.

URLs are read in batches and are never all in memory. Files and pipes are read in a thread, so that a slow disk or a
pipe without data does not block the event loop. Does not know calls.

Used by ``_fetch._fetch``, ``cli._continue_command``, ``cli._fetch_command`` and ``cli._review_command``.
"""

from __future__ import annotations

import asyncio
import codecs
import errno
import json
import os
import re
import shlex
import stat
import string
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import quote

from otel_connector._call._urls import NotOneURL
from otel_connector._serial_executor import SerialExecutor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Iterator

_BLOCK = 65_536  # bytes read at a time
_MAX_LINE = 2**20  # characters; a file with a longer line is not a list of URLs
_BATCH = 1_000  # URLs of a range in one batch

_CHECKED = 1_024  # bytes of which the encoding is detected
_COMPRESSED = {  # the first bytes, and the program that unpacks to standard output
    b"\x1f\x8b": ("gzip", "gzip -dc"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"),
    b"\xfd7zXZ\x00": ("xz", "xz -dc"),
    b"BZh": ("bzip2", "bzip2 -dc"),
    b"\x04\x22\x4d\x18": ("lz4", "lz4 -dc"),
    b"\x5d\x00\x00": ("lzma", "xz -dc"),
    b"PK\x03\x04": ("zip", "unzip -p"),
}

# White space of Unicode. Other invisible characters may be a part of an IRI (RFC 3987, section 2.2), but not before
# another URL; the last is the no-break space of ISO 8859-1 as a byte (PEP 383)
_SEPARATOR = re.compile("\\s|[\u180e\u200b\u2060\ufeff\udca0](?=https?://)", re.IGNORECASE)
_TAR_MAGIC = slice(257, 262)  # POSIX.1-2024, pax, ustar interchange format
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_AGAIN = "run the command again, with --resume, for the others"

_MAX_DIGITS = 18  # of a number of a range: the length of the range then fits into 64 bits, as Python requires
_LARGE_FORMAT = re.compile(r"\d{4}")
_RANGE = re.compile(r"(-?\d+):(-?\d+)(?::([1-9]\d*))?")


class _ListChangedError(Exception):
    """The list is not what it was when its URLs were counted."""


class _UrlSource:
    """What all sources of URLs have.

    Attributes:
        problem: Why not all URLs of the source were yielded; None if they were.
    """

    problem: str | None = None


class UrlLines(_UrlSource):
    """The lines of a file or of standard input, except blank lines and comments (``#`` first).

    UTF-8, with or without a byte order mark. White space around a URL is removed. A line with white space in it is
    yielded as a `NotOneURL`: it may be two URLs, or a URL with options or a note, and no URL contains white space
    (RFC 3986, section 2, and appendix C). White space of an IRI has to be percent-encoded.

    A file is read more than once, and only as it was when its URLs were counted. If a block of it has changed, no line
    of it is yielded, nor of later blocks. What was appended is not yielded. `problem` reports both.

    Args:
        path: The file; ``-`` is standard input.

    Attributes:
        total: The number of URLs; None if it is not known in advance.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a list of URLs: compressed, in another encoding, or with a line of more than 1 MiB.
    """

    def __init__(self, path: str) -> None:
        self._name = path
        if path == "-":
            if not sys.stdin:  # None: the shell closed it ("<&-")
                raise OSError(errno.EBADF, "standard input is closed", path)
            self._fd = os.dup(sys.stdin.fileno())
        else:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        mode = os.fstat(self._fd).st_mode
        if stat.S_ISDIR(mode):
            os.close(self._fd)
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        # The shell may have positioned standard input. A pipe is read once
        self._start = os.lseek(self._fd, 0, os.SEEK_CUR) if stat.S_ISREG(mode) else None
        self._counted: list[tuple[int, int]] | None = None  # length and hash of each block
        self.total: int | None = None
        if self._start is not None:
            counted: list[tuple[int, int]] = []
            self.total = sum(map(len, self._parsed(self._counting(self._start, counted))))
            self._counted = counted

    def in_advance(self) -> Iterator[list[str]]:
        """Yield all URLs in batches, before `batches`, from a file that can be read twice. Blocks."""
        if self._start is not None:
            with suppress(_ListChangedError):  # `batches` reports it
                yield from self._parsed(self._blocks())

    async def batches(self) -> AsyncGenerator[list[str]]:
        """Yield the URLs of each block that is read."""
        batches = self._parsed(self._blocks())
        # A thread of its own: a read from a pipe cannot be interrupted, and must not delay the exit of the program
        executor = SerialExecutor("urls")
        executor.start()
        try:
            coming = executor.submit(partial(next, batches, None))
            while (batch := await asyncio.wrap_future(coming)) is not None:
                coming = executor.submit(partial(next, batches, None))  # read while the calls of this one are made
                yield batch
        except _ListChangedError as changed:
            self.problem = str(changed)
        finally:
            executor.stop()

    def _parsed(self, blocks: Iterable[bytes]) -> Iterator[list[str]]:
        decode, rest, lines_before = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode, "", 0
        for number, block in enumerate(blocks):
            if number == 0:
                _check_encoding(self._name, block)
            *lines, rest = (rest + decode(block)).split("\n")
            if len(rest) > _MAX_LINE:
                raise ValueError(f"{self._name} is not a list of URLs: a line is longer than {_MAX_LINE:,} characters")
            yield _urls(lines, lines_before)
            lines_before += len(lines)
        yield _urls([rest + decode(b"", final=True)], lines_before)

    def _counting(self, start: int, counted: list[tuple[int, int]]) -> Iterator[bytes]:
        """Yield the blocks of a file, and add their lengths and hashes to `counted`."""
        os.lseek(self._fd, start, os.SEEK_SET)
        while block := self._read_full(_BLOCK):
            counted.append((len(block), hash(block)))
            yield block

    def _blocks(self) -> Iterator[bytes]:
        """Yield the blocks of a pipe, or those of a file if they are as they were when they were counted."""
        if self._start is None or self._counted is None:
            yield from iter(partial(self._read, _BLOCK), b"")
            return
        os.lseek(self._fd, self._start, os.SEEK_SET)
        for length, expected in self._counted:
            if hash(block := self._read_full(length)) != expected:
                raise _ListChangedError(
                    f"{self._name} was changed while it was read: its rest was not fetched; {_AGAIN}"
                )
            yield block
        if self._read(1):
            raise _ListChangedError(f"{self._name} has grown: lines that were added were not fetched; {_AGAIN}")

    def _read_full(self, size: int) -> bytes:
        """Read so many bytes, or less at the end of the file."""
        read = b""
        while more := self._read(size - len(read)):
            read += more
        return read

    def _read(self, size: int) -> bytes:
        try:
            return os.read(self._fd, size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._name) from None


def _urls(lines: list[str], lines_before: int) -> list[str]:
    urls: list[str] = []
    for number, line in enumerate(lines, lines_before + 1):
        url = line.strip()
        if url and not url.startswith("#"):
            found = _SEPARATOR.search(url)
            urls.append(NotOneURL(url, f"line {number:,} {_why_not_one(found[0])}") if found else url)
    return urls


def _why_not_one(char: str) -> str:
    what, instead = "white space", "%20 for a space"
    if not char.isascii():
        instead = f"{quote(char, errors='surrogateescape')} for this character"
        what = "the byte A0" if char == "\udca0" else f"U+{ord(char):04X}"
    return f"of the list has {what} in it: write one URL on a line, and {instead} in a URL"


def _check_encoding(name: str, head: bytes) -> None:
    """Raise ValueError for the beginning of a file that is compressed, or in UTF-16 or UTF-32."""
    shown = shlex.quote(name)
    found = next((each for magic, each in _COMPRESSED.items() if head.startswith(magic)), None)
    if head[_TAR_MAGIC] == b"ustar":
        found = "tar", "tar -xOf"
    elif name.endswith(".br") and _CONTROL.search(head[:_CHECKED]):  # brotli has no magic number (RFC 7932)
        found = "brotli", "brotli -dc"
    if found is not None:
        compression, program = found
        command = f"{program} {shown} | otel-connector fetch -"
        raise ValueError(f"{name} is compressed ({compression}); unpack it: {command}")
    encoding = json.detect_encoding(head[:_CHECKED])
    if not encoding.startswith("utf-8") and "\0" not in head[:_CHECKED].decode(encoding, "replace"):
        known = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")  # as iconv names it
        command = f"iconv -f {known} -t UTF-8 {shown} | otel-connector fetch -"
        raise ValueError(f"{name} is in {known}, not in UTF-8; convert it: {command}")


@dataclass(frozen=True)
class UrlRange(_UrlSource):
    """A template whose ``{}`` is replaced by each number of a range.

    Attributes:
        template: A URL with one ``{}``, or with a format for integers, such as ``{:05}``.
        numbers: The range.
    """

    template: str
    numbers: range

    @property
    def total(self) -> int:
        """The number of URLs."""
        return len(self.numbers)

    def in_advance(self) -> Iterator[list[str]]:
        """Yield the first two URLs: if they differ without their secrets, all do."""
        yield [self.template.format(number) for number in self.numbers[:2]]

    async def batches(self) -> AsyncGenerator[list[str]]:
        """Yield the URLs in batches."""
        for start in range(0, len(self.numbers), _BATCH):
            yield [self.template.format(number) for number in self.numbers[start : start + _BATCH]]


@dataclass(frozen=True)
class OneUrl(_UrlSource):
    """A single URL."""

    url: str
    total: int | None = 1

    def in_advance(self) -> Iterator[list[str]]:
        """Yield nothing."""
        return iter(())

    async def batches(self) -> AsyncGenerator[list[str]]:
        """Yield the URL."""
        yield [self.url]


UrlList: TypeAlias = UrlLines | UrlRange | OneUrl


def is_url(source: str) -> bool:
    """Return whether a source is a URL or a template, and not a file. The scheme may be in upper case."""
    return source.lower().startswith(("http://", "https://"))


def urls_from(source: str, numbers: str | None, redact: Callable[[str], str]) -> UrlList:
    """Return the URLs of `source`.

    Args:
        source: A URL, a file with URLs, or ``-`` for standard input; with `numbers` a template.
        numbers: The range of a template, as ``FIRST:LAST`` or ``FIRST:LAST:STEP``; None if `source` is not a template.
        redact: Redacts a URL in a message.

    Raises:
        OSError: The file cannot be read.
        ValueError: The template or the range is invalid, or the file is not a list of URLs.
    """
    if numbers is not None:
        parsed = _parsed_range(numbers)
        return UrlRange(_checked_template(source, parsed, redact), parsed)
    if is_url(source):
        if "{" in source:
            raise ValueError(f"{redact(source)} is a template: give its numbers with --range, for example 1:1000")
        return OneUrl(source)
    if "://" in source:
        raise ValueError(f"{redact(source)} must start with http:// or https://")
    return UrlLines(source)


def _parsed_range(text: str) -> range:
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"--range {text!r} must be FIRST:LAST or FIRST:LAST:STEP, both included, as in 1:1000")
    if any(len(number or "") > _MAX_DIGITS for number in match.groups()):
        raise ValueError(f"--range {text!r} must have numbers of at most {_MAX_DIGITS} characters")
    first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
    return range(first, last + 1, step) if first <= last else range(first, last - 1, -step)


def _checked_template(template: str, numbers: range, redact: Callable[[str], str]) -> str:
    why = "it must have one {}, for the numbers of --range"
    try:
        fields = [(name, form or "") for _, name, form, _ in string.Formatter().parse(template) if name is not None]
        if len(fields) == 1 and fields[0][0] == "" and "{" not in fields[0][1]:
            if not _LARGE_FORMAT.search(fields[0][1]):
                for number in (numbers[0], numbers[-1]):  # {:c} refuses some numbers
                    template.format(number)
                return template
            why = "the width and the precision of a number of --range must be at most 999"
    except (OverflowError, ValueError) as error:
        why = str(error)
    raise ValueError(f"{redact(template)!r} is not a template: {why}") from None
