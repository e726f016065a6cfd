"""Connections whose parsing gives the loop's other tasks their turn.

A loop hands over what has arrived in pieces of up to 256 KiB, uvloop several of them in one turn, and aiohttp parses
each in one go. Of a hostile server's smallest chunks or announcements (1xx) that takes 80 ms with asyncio and up to two
seconds with uvloop (measured), in which nothing else of the program runs. Knows the protocol of aiohttp's connections,
nothing of calls.
"""

from __future__ import annotations

import functools
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from aiohttp.client_proto import ResponseHandler

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    import aiohttp

_FIRST_BITE = 4 * 1024
"""Bytes that are parsed without looking at the clock: of the worst, some 2 ms with what follows from them."""

_LARGEST_BITE = 64 * 1024
"""Bytes to which a bite may grow while the turn lasts, so that a large body costs few of them."""

_TURN = 0.002
"""Seconds after which no further bite is taken in a turn of the loop; what has been parsed has to be read, too."""

_QUICK = 0.0005
"""Seconds that leave the loop as it is: uvloop hands over up to 32 pieces in one turn."""

_NOTHING = memoryview(b"")

# Not by `super()`, because every answer passes here, some of it twice: 2 % of a bare call's instructions
_parse = ResponseHandler.data_received
_resume_reading = ResponseHandler.resume_reading
_resume_transport_reading = ResponseHandler._resume_transport_reading  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
_should_close: Callable[[ResponseHandler], bool] = cast("Any", ResponseHandler.should_close).fget


class FairResponseHandler(ResponseHandler):
    """A connection that parses for some milliseconds at a time, however much has arrived.

    What is not parsed yet is held, in order, and the transport is paused until all of it is, so that what is held is at
    most what the loop hands over at once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._unmeasured = 0  # bytes parsed since the clock was last looked at
        self._held = _NOTHING
        self._next_turn: asyncio.Handle | None = None
        self._full = False  # whether what reads the body wants no more of it for now

    def data_received(self, data: bytes) -> None:
        """Parse `data` now if it is little, else as far as the turn allows."""
        if data:  # without, aiohttp goes on with what its parser has
            self._unmeasured += len(data)
            # What is no HTTP any more is not parsed here
            if (self._unmeasured > _FIRST_BITE or self._held) and not self.upgraded:
                self._hold(data)
                return
        _parse(self, data)

    def _hold(self, data: bytes) -> None:
        self._held = memoryview(bytes(self._held) + data if self._held else data)
        if self._next_turn is None and not self._full:
            began = perf_counter()
            self._parse_held(began)
            if not self._held and perf_counter() - began < _QUICK:
                return
            self._next_turn = self._loop.call_soon(self._take_turn)
        # Also with nothing left: reading again in this turn, uvloop would hand over the next piece in it
        self._pause_transport_reading()

    def _take_turn(self) -> None:
        self._next_turn = None
        if not self._held:
            self._resume_transport_reading()
            return
        self._parse_held(perf_counter())
        if not self._full:  # else aiohttp says when it goes on
            self._next_turn = self._loop.call_soon(self._take_turn)

    def _parse_held(self, began: float) -> None:
        self._unmeasured, bite = 0, _FIRST_BITE
        while self._held and not self._full:
            # Off before it is parsed: with the last of an answer, aiohttp asks whether the connection can be kept
            piece, self._held = self._held[:bite], self._held[bite:]
            super().data_received(bytes(piece))
            if self.exception() is not None:  # the parser gave up, or nobody waits any longer
                self._held = _NOTHING
            elif self.upgraded:
                bite = len(self._held)
            elif perf_counter() - began > _TURN:
                return
            else:
                bite = min(2 * bite, _LARGEST_BITE)

    def _resume_transport_reading(self) -> None:
        # Else nothing new is read yet, whatever aiohttp has room for
        if self._next_turn is None and not self._held and not self._full:
            _resume_transport_reading(self)

    def pause_reading(self) -> None:
        """Take no further bite either."""
        self._full = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Go on with what is held before anything new is read."""
        self._full = False
        _resume_reading(self, resume_parser)
        if self._held and self._next_turn is None and not self._full:
            self._next_turn = self._loop.call_soon(self._take_turn)

    @property
    def should_close(self) -> bool:
        """Whether the connection cannot be used again, because of what is held, too."""
        return bool(self._held) or _should_close(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Parse what came before the end, and say that it is the end."""
        held = bytes(self._held) if self.connected else b""
        self._let_go()
        if held:  # rare: while something is held, nothing is read, and so no end either, but a write may fail
            super().data_received(held)
        super().connection_lost(exc)

    def close(self) -> None:
        """Close the connection; what is held goes with it."""
        super().close()
        self._let_go()

    def abort(self) -> None:
        """Abort the connection; what is held goes with it."""
        super().abort()
        self._let_go()

    def _let_go(self) -> None:
        self._held = _NOTHING
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None


def read_fairly(connector: aiohttp.BaseConnector) -> None:
    """Have `connector` make its connections of `FairResponseHandler` from now on; one that makes others stays.

    Once for each is enough, and in every attempt it would cost 0.7 % of a bare call's instructions.
    """
    # There is no public way to say what a connection is made of; a test holds this one against the installed version
    make = getattr(connector, "_factory", None)
    if isinstance(make, functools.partial) and make.func is ResponseHandler:
        cast("Any", connector)._factory = functools.partial(FairResponseHandler, *make.args, **make.keywords)  # noqa: SLF001
