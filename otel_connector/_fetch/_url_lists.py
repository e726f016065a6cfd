"""Where the URLs of ``otel-connector fetch`` come from: a file, a pipe, a template with a range.

They come in batches, read in a thread, so that neither a slow disk nor a pipe that nobody writes to holds up the event
loop, and are never all in memory. Knows nothing of calls.
"""

from __future__ import annotations

import asyncio
import codecs
import errno
import os
import re
import string
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

_BLOCK = 65_536
_LONGEST_LINE = 2**20  # bytes; what has none shorter is no list of URLs
_BATCH = 1_000  # URLs of a range
_AHEAD = 2  # batches read before they are asked for

_RANGE = re.compile(r"(-?\d+):(-?\d+)(?::([1-9]\d*))?")


class UrlList(Protocol):
    """URLs in batches."""

    @property
    def total(self) -> int | None:
        """How many there are; None if that is not known beforehand."""
        ...

    def batches(self) -> AsyncGenerator[list[str]]:
        """Yield the URLs."""
        ...


class UrlLines:
    """The lines of a file or of standard input, but for blank ones and comments (``#`` first).

    UTF-8, with or without a byte order mark; the blanks around a URL are not part of it.

    Args:
        path: The file; ``-`` for standard input.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no text: a line is longer than 1 MiB.
    """

    def __init__(self, path: str) -> None:
        self._name = path
        if path == "-" and sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison] # closed by the shell: "<&-"
            raise OSError(errno.EBADF, "standard input is closed", path)
        self._fd = (
            os.dup(sys.stdin.fileno()) if path == "-" else os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        )
        if os.path.isdir(path):  # noqa: PTH112 - a str
            os.close(self._fd)
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        self.total = sum(map(len, self._parsed())) if Path(path).is_file() else None

    async def batches(self) -> AsyncGenerator[list[str]]:
        """Yield what is in each block that is read."""
        loop, items = asyncio.get_running_loop(), asyncio.Queue[list[str] | Exception | None]()
        room, left = threading.Semaphore(_AHEAD), False

        def hand_over(item: list[str] | Exception | None) -> None:
            room.acquire()
            if left:
                raise RuntimeError("nobody wants more")
            loop.call_soon_threadsafe(items.put_nowait, item)

        def read() -> None:
            with suppress(RuntimeError):  # nobody wants more, or the loop has ended
                try:
                    for batch in self._parsed():
                        hand_over(batch)
                    hand_over(None)
                except (OSError, ValueError) as error:
                    hand_over(error)

        # A daemon: a read from a pipe cannot be interrupted, and must not hold up the end of the program
        threading.Thread(target=read, name="otel_connector.urls", daemon=True).start()
        try:
            while (item := await items.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                room.release()
                yield item
        finally:
            left = True
            room.release()

    def _parsed(self) -> Iterator[list[str]]:
        """Read from the beginning, where there is one, to the end."""
        if Path(self._name).is_file():
            os.lseek(self._fd, 0, os.SEEK_SET)
        decode, rest = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode, ""
        while block := os.read(self._fd, _BLOCK):
            *lines, rest = (rest + decode(block)).split("\n")
            if len(rest) > _LONGEST_LINE:
                raise ValueError(f"{self._name} is no list of URLs: a line is longer than {_LONGEST_LINE:,} characters")
            yield _without_comments(lines)
        yield _without_comments([rest + decode(b"", final=True)])


def _without_comments(lines: list[str]) -> list[str]:
    return [url for line in lines if (url := line.strip()) and not url.startswith("#")]


@dataclass(frozen=True)
class UrlRange:
    """A template with the numbers of a range in the place of its ``{}``.

    Attributes:
        template: A URL with one ``{}``, or with a format for whole numbers, as ``{:05}``.
        numbers: The range.
    """

    template: str
    numbers: range

    @property
    def total(self) -> int:
        """How many there are."""
        return len(self.numbers)

    async def batches(self) -> AsyncGenerator[list[str]]:
        """Yield some at a time."""
        for start in range(0, len(self.numbers), _BATCH):
            yield [self.template.format(number) for number in self.numbers[start : start + _BATCH]]


@dataclass(frozen=True)
class OneUrl:
    """A single URL."""

    url: str
    total: int | None = 1

    async def batches(self) -> AsyncGenerator[list[str]]:
        """Yield it."""
        yield [self.url]


def urls_from(source: str, numbers: str | None) -> UrlList:
    """Return the URLs that `source` stands for: a template if there are `numbers`, a URL, a file, ``-`` for stdin.

    Raises:
        OSError: The file cannot be read.
        ValueError: The template or the range is none; or the file is no list of URLs.
    """
    if numbers is not None:
        return UrlRange(_checked_template(source), _parsed_range(numbers))
    if source.startswith(("http://", "https://")):
        if "{" in source:
            raise ValueError(f"{source} is a template: say with --range which numbers it stands for, as in 1:1000")
        return OneUrl(source)
    return UrlLines(source)


def _parsed_range(text: str) -> range:
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"--range {text!r} must be FIRST:LAST or FIRST:LAST:STEP, both included, as in 1:1000")
    first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
    return range(first, last + 1, step) if first <= last else range(first, last - 1, -step)


def _checked_template(template: str) -> str:
    try:
        fields = [(name, spec) for _, name, spec, _ in string.Formatter().parse(template) if name is not None]
        if [name for name, _ in fields] == [""]:
            template.format(1)
            return template
    except ValueError as error:
        raise ValueError(f"{template!r} is no template: {error}") from None
    raise ValueError(f"{template!r} is no template: it must have one {{}}, for the numbers of --range")
