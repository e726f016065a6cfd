"""The sources of URLs of ``otel-connector fetch``: a file, a pipe, a template with a range, or a single URL.

URLs are read in batches and are never all in memory. Files and pipes are read in a thread, so that a slow disk or a
pipe without data does not block the event loop. Does not know calls.

Used by ``_fetch._fetch``, ``cli._continue_command`` and ``cli._fetch_command``.
"""

from __future__ import annotations

import asyncio
import codecs
import errno
import os
import re
import stat
import string
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from otel_connector._serial_executor import SerialExecutor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

_BLOCK = 65_536  # bytes read at a time
_MAX_LINE = 2**20  # characters; a file with a longer line is not a list of URLs
_BATCH = 1_000  # URLs of a range in one batch

_MAX_DIGITS = 18  # of a number of a range: the length of the range then fits into 64 bits, as Python requires
_RANGE = re.compile(r"(-?\d+):(-?\d+)(?::([1-9]\d*))?")


class UrlLines:
    """The lines of a file or of standard input, except blank lines and comments (``#`` first).

    UTF-8, with or without a byte order mark. White space around a URL is removed.

    Args:
        path: The file; ``-`` is standard input.

    Attributes:
        total: The number of URLs; None if it is not known in advance.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a text file: a line is longer than 1 MiB.
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
        # Standard input is read once, even if it is a file: the shell may have positioned it
        self._rereadable = path != "-" and stat.S_ISREG(mode)
        self.total = sum(map(len, self._parsed())) if self._rereadable else None

    def in_advance(self) -> Iterator[list[str]]:
        """Yield all URLs in batches, before `batches`, from a file that can be read twice. Blocks."""
        return self._parsed() if self._rereadable else iter(())

    async def batches(self) -> AsyncGenerator[list[str]]:
        """Yield the URLs of each block that is read."""
        batches = self._parsed()
        # A thread of its own: a read from a pipe cannot be interrupted, and must not delay the exit of the program
        executor = SerialExecutor("urls")
        executor.start()
        try:
            coming = executor.submit(partial(next, batches, None))
            while (batch := await asyncio.wrap_future(coming)) is not None:
                coming = executor.submit(partial(next, batches, None))  # read while the calls of this one are made
                yield batch
        finally:
            executor.stop()

    def _parsed(self) -> Iterator[list[str]]:
        """Read to the end: a file from its beginning, a pipe from its present position."""
        if self._rereadable:
            os.lseek(self._fd, 0, os.SEEK_SET)
        decode, rest = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode, ""
        while block := os.read(self._fd, _BLOCK):
            *lines, rest = (rest + decode(block)).split("\n")
            if len(rest) > _MAX_LINE:
                raise ValueError(f"{self._name} is not a list of URLs: a line is longer than {_MAX_LINE:,} characters")
            yield _without_comments(lines)
        yield _without_comments([rest + decode(b"", final=True)])


def _without_comments(lines: list[str]) -> list[str]:
    return [url for line in lines if (url := line.strip()) and not url.startswith("#")]


@dataclass(frozen=True)
class UrlRange:
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
class OneUrl:
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


def urls_from(source: str, numbers: str | None) -> UrlList:
    """Return the URLs of `source`.

    Args:
        source: A URL, a file with URLs, or ``-`` for standard input; with `numbers` a template.
        numbers: The range of a template, as ``FIRST:LAST`` or ``FIRST:LAST:STEP``; None if `source` is not a template.

    Raises:
        OSError: The file cannot be read.
        ValueError: The template or the range is invalid, or the file is not a list of URLs.
    """
    if numbers is not None:
        parsed = _parsed_range(numbers)
        return UrlRange(_checked_template(source, parsed), parsed)
    if is_url(source):
        if "{" in source:
            raise ValueError(f"{source} is a template: give its numbers with --range, for example 1:1000")
        return OneUrl(source)
    if "://" in source:
        raise ValueError(f"{source} must start with http:// or https://")
    return UrlLines(source)


def _parsed_range(text: str) -> range:
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"--range {text!r} must be FIRST:LAST or FIRST:LAST:STEP, both included, as in 1:1000")
    if any(len(number or "") > _MAX_DIGITS for number in match.groups()):
        raise ValueError(f"--range {text!r} must have numbers of at most {_MAX_DIGITS} characters")
    first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
    return range(first, last + 1, step) if first <= last else range(first, last - 1, -step)


def _checked_template(template: str, numbers: range) -> str:
    try:
        if [name for _, name, _, _ in string.Formatter().parse(template) if name is not None] == [""]:
            for number in (numbers[0], numbers[-1]):  # {:c} refuses some numbers
                template.format(number)
            return template
    except (OverflowError, ValueError) as error:
        raise ValueError(f"{template!r} is not a template: {error}") from None
    raise ValueError(f"{template!r} is not a template: it must have one {{}}, for the numbers of --range")
