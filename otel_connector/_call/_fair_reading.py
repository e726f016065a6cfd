"""Connections that parse a few milliseconds at a time, so that the loop's other tasks can run.

An event loop delivers what has arrived in pieces of up to 256 KiB, uvloop several of them in one iteration, and aiohttp
parses each piece in one step. If a hostile server sends the smallest chunks or many interim responses (1xx), that takes
80 ms with asyncio and up to two seconds with uvloop (measured), and nothing else in the program runs meanwhile. This
file knows the protocol class of aiohttp's connections, but not calls.

How it works. `_pending` holds bytes that have arrived and are not parsed yet, in order. While there are any, the
transport is paused, so `_pending` never exceeds what the loop delivers in one iteration. `_next_step` is the scheduled
`_continue`: it parses for `_PARSE_SECONDS`, schedules itself again while bytes are pending, and resumes the transport
when there are none. `_reader_full` is set between `pause_reading` and `resume_reading` of aiohttp: the reader of the
body has enough, so nothing is parsed until aiohttp resumes. A lost or closed connection discards what is pending,
except that `connection_lost` parses the rest first, because the response may be complete.

Used by ``_call._pacing``.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Any

from otel_connector._call._aiohttp_private import PausableHandler, is_reading_paused, replace_connection_class

if TYPE_CHECKING:
    import aiohttp

_FIRST_PIECE = 4 * 1024
"""Bytes that are parsed without measuring the time: about 2 ms for the worst input, with the work that it causes."""

_LARGEST_PIECE = 64 * 1024
"""Bytes to which a piece may grow within one step, so that a large body takes few pieces."""

_PARSE_SECONDS = 0.002
"""Seconds after which a step ends. Tasks need time as well, to read what has been parsed."""

_QUICK_SECONDS = 0.0005
"""Seconds within which the transport need not be paused: uvloop delivers up to 32 pieces in one iteration."""

_NOTHING = memoryview(b"")

# Called without `super()`, which would cost 1 % more instructions of a bare call: every response passes here
_parse = PausableHandler.data_received
_resume_reading: Any = getattr(PausableHandler, "resume_reading", None)
_should_close: Any = getattr(PausableHandler, "should_close", None)  # a property


class FairResponseHandler(PausableHandler):
    """A connection that parses for some milliseconds at a time, however much has arrived."""

    _unmeasured = 0  # bytes parsed since the time was last measured

    def data_received(self, data: bytes) -> None:
        """Parse `data` now if it is little, otherwise as far as the time allows."""
        if data:  # without data, aiohttp continues with what its parser holds
            self._unmeasured += len(data)
            # After an upgrade (WebSocket), the data is not HTTP, and aiohttp does not parse it here
            if (self._unmeasured > _FIRST_PIECE or self._pending) and not self.upgraded:
                self._add_pending(data)
                return
        _parse(self, data)

    def _add_pending(self, data: bytes) -> None:
        self._pending = memoryview(bytes(self._pending) + data if self._pending else data)
        if self._next_step is None and not self._reader_full:
            started = perf_counter()
            self._parse_pending(started)
            if not self._pending and perf_counter() - started < _QUICK_SECONDS:
                return
            self._next_step = asyncio.get_running_loop().call_soon(self._continue)
        # Even if nothing is pending: otherwise uvloop would deliver the next piece in the same iteration
        self.pause_transport()

    def _continue(self) -> None:
        self._next_step = None
        if not self._pending:
            self.resume_transport()
            return
        self._parse_pending(perf_counter())
        if not self._reader_full:  # otherwise `resume_reading` continues
            self._next_step = asyncio.get_running_loop().call_soon(self._continue)

    def _parse_pending(self, started: float) -> None:
        self._unmeasured, size = 0, _FIRST_PIECE
        while self._pending and not self._reader_full:
            # Removed before it is parsed: at the end of a response, aiohttp checks whether the connection can be reused
            piece, self._pending = self._pending[:size], self._pending[size:]
            _parse(self, bytes(piece))
            if self.exception() is not None:  # the parser failed, or the request has ended
                self._pending = _NOTHING
            elif self.upgraded:
                size = len(self._pending)
            elif perf_counter() - started > _PARSE_SECONDS:
                return
            else:
                size = min(2 * size, _LARGEST_PIECE)

    def pause_reading(self) -> None:
        """Stop parsing and reading: the reader of the body has enough."""
        self._reader_full = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Continue with the pending data before anything new is read."""
        if not is_reading_paused(self):  # aiohttp calls this after every read; its own method would parse no data
            return
        self._reader_full = False
        _resume_reading(self, resume_parser)
        if self._pending and self._next_step is None and not self._reader_full:
            self._next_step = asyncio.get_running_loop().call_soon(self._continue)

    @property
    def should_close(self) -> bool:
        """Whether the connection cannot be reused, for example because data is pending."""
        return bool(self._pending) or _should_close.__get__(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Parse what arrived before the end, then report the end."""
        pending = bytes(self._pending) if self.connected else b""
        self._discard_pending()
        if pending:  # rare: while data is pending, nothing is read, but a write may fail
            super().data_received(pending)
        super().connection_lost(exc)

    def close(self) -> None:
        """Close the connection and discard the pending data."""
        super().close()
        self._discard_pending()

    def abort(self) -> None:
        """Abort the connection and discard the pending data."""
        super().abort()
        self._discard_pending()

    def _discard_pending(self) -> None:
        self._pending = _NOTHING
        if self._next_step is not None:
            self._next_step.cancel()
            self._next_step = None


def read_fairly(connector: aiohttp.BaseConnector) -> None:
    """Make `connector` create its connections from `FairResponseHandler`, unless it uses a class of the application."""
    replace_connection_class(connector, FairResponseHandler)
