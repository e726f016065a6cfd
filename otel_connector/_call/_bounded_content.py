"""The body of a response as all code above the connection reads it: decoded, limited, and in short steps.

`BoundedContent` takes the place of ``ClientResponse.content`` before anything reads it. Middlewares, traces, caches and
session subclasses therefore see the body as plain aiohttp decodes it, and the call's limit applies to them, too.
aiohttp's own decoder is not used: it checks the end of a deflate stream only, has no limit when ``read`` is called,
and lets the server choose the memory of the window. This file does not know calls, statuses or errors of aiohttp.

How it works. All reading methods of aiohttp's `StreamReader` call `step` while the buffer is empty. It takes one step:
read what has arrived, or decode one more piece of it into the buffer. So little is decoded in advance.

Used by ``_call._body`` and ``_call._exchange``.
"""

from __future__ import annotations

import asyncio
from copy import copy
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from otel_connector._call._aiohttp_private import ContentWithoutConnection
from otel_connector._call._content_coding import ContentCodings
from otel_connector._errors import BodyTooLarge, ConnectorError
from otel_connector._serial_executor import SerialExecutor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import aiohttp

_WORK_SECONDS = 0.005
"""Seconds after which other tasks run, even if the next bytes are available without waiting."""

_IN_ADVANCE = 2**18  # bytes that are decoded before anything reads them

_LINE_LIMIT = 2**18  # bytes that `readline` reads, as in a content of aiohttp


class BoundedContent(ContentWithoutConnection):
    """A content that is read from another one, decoded and limited.

    Args:
        source: The content to read.
        codings: The content codings to decode, in the order in which they were applied.
        limit: Bytes, decoded, at which reading stops.

    Raises:
        DecodeFailed: There are too many codings. Other errors, also `BodyTruncated` and `BodyTooLarge`, are raised by
            the methods that read.
    """

    __slots__ = ("_busy", "_codings", "_limit", "_pieces", "_resumed", "_source", "_worker")

    def __init__(self, source: aiohttp.StreamReader, codings: Sequence[str], limit: int) -> None:
        super().__init__(_LINE_LIMIT)
        self._source = source
        self._codings = ContentCodings(codings)
        self._limit = limit
        self._pieces: Iterator[bytes] | None = None
        self._worker: SerialExecutor | None = None
        self._busy = False
        self._resumed = perf_counter()
        if source.is_eof() and source.exception() is None:
            self._read_received()

    async def step(self, func_name: str) -> None:
        """Take one step towards more data. aiohttp's methods repeat this until there is some, or the end."""
        if self._busy:
            raise RuntimeError(f"{func_name}() called while another coroutine is already waiting for incoming data")
        self._busy = True
        try:
            if perf_counter() - self._resumed > _WORK_SECONDS:
                await asyncio.sleep(0)
                self._resumed = perf_counter()
            if self._pieces is None:
                self._begin(await self._source.readany())
            else:
                self._add(await self._next_piece(self._pieces))
        except ConnectorError as error:
            self.set_exception(copy(error))  # a copy, because the traceback of `error` refers to this object
            raise
        finally:
            self._busy = False

    async def wait_eof(self) -> None:
        """Read up to the end."""
        while not self.is_eof():
            await self.step("wait_eof")

    def exception(self) -> BaseException | None:
        """Return the error that reading raises."""
        return super().exception() or self._source.exception()

    def set_exception(self, exc: BaseException, *args: Any, **kwargs: Any) -> None:
        """Make reading raise `exc`: the response was closed, or its body is not valid."""
        super().set_exception(exc, *args, **kwargs)
        self._source.set_exception(exc, *args, **kwargs)
        self._end_worker()

    def _read_received(self) -> None:
        """Decode a body that arrived with the head. Most take less than a step, and then no read has to wait."""
        try:
            self._begin(self._source.read_nowait())
            while self._pieces is not None:
                late = perf_counter() - self._resumed > _WORK_SECONDS
                if late or self._codings.window or self.total_bytes >= _IN_ADVANCE:
                    return
                self._add(next(self._pieces, None))
            self._begin(b"")
        except ConnectorError as error:
            self.set_exception(copy(error))

    def _begin(self, received: bytes) -> None:
        """Start with the next bytes of the source; none are its end."""
        self.total_compressed_bytes = self._source.total_bytes
        if received:
            self._pieces = self._codings.decode(received)
        else:
            self._codings.finish()
            self.feed_eof()
            self._end_worker()

    async def _next_piece(self, pieces: Iterator[bytes]) -> bytes | None:
        if not self._codings.window:
            return next(pieces, None)
        # A large window is filled in one step, which would block the event loop for too long. The thread is our own:
        # the loop's default executor has several, and each keeps an arena of memory
        if self._worker is None:
            self._worker = SerialExecutor("decoder")
            self._worker.start()
        return await asyncio.wrap_future(self._worker.submit(partial(next, pieces, None)))

    def _add(self, piece: bytes | None) -> None:
        if piece is None:
            self._pieces = None
            return
        window, total = self._codings.window, self.total_bytes + len(piece)
        if total + window > self._limit:
            self.total_bytes = total
            counted = f" (with {window} bytes for the window of its coding)" if window else ""
            raise BodyTooLarge(f"body passed {self._limit} bytes{counted} and was not read further", limit=self._limit)
        self.feed_data(piece)

    def _end_worker(self) -> None:
        if self._worker is not None:
            self._worker.stop()


def content_of(body: bytes) -> aiohttp.StreamReader:
    """Return a content that consists of `body`."""
    content = ContentWithoutConnection(_LINE_LIMIT)
    content.feed_data(body)
    content.feed_eof()
    return content
