"""When an attempt may start: the pool's size, the pace a server asked for, and a limiter of the caller's.

An attempt first waits here, so that its own time is spent on the network and not in a queue. There is no rate limiting
algorithm in this file: what the caller wants of that kind comes in as an async context manager. Knows nothing of
telemetry, nor of how an attempt is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from otel_connector._call._fair_reading import read_fairly
from otel_connector._clock import time_limit
from otel_connector._errors import DeadlineExceeded, RateLimiterFailed, SessionClosed
from otel_connector._log_throttle import LogThrottle

if TYPE_CHECKING:
    import aiohttp

    from otel_connector._clock import Clock

_logger = logging.getLogger("otel_connector")

RateLimiter = AbstractAsyncContextManager[Any, Any] | Callable[[str], AbstractAsyncContextManager[Any, Any]]
"""What `rate_limiter` takes: one limiter for all, or a function from ``host:port`` to the limiter for it."""

_HOST_LIMIT = 10_000
"""Hosts whose pace is remembered; beyond that the one heard of first goes, unless calls to it are under way."""

_LOOKS = 4  # hosts that are looked at for each one too many, because some of them may be in use


_LEAVING = 0.1  # seconds

_UNLIMITED = 0  # as aiohttp's pools say it


class ResizableLimiter:
    """So many at a time, first come first served; the number may change at any time.

    Args:
        limit: How many; 0 for any number.
    """

    __slots__ = ("_taken", "_waiting", "limit")

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def idle(self) -> bool:
        """Whether nobody has or wants a slot."""
        return not self._taken and not self._waiting

    def take(self) -> bool:
        """Take a slot if one is free and nobody waits for it."""
        if self._waiting or (self.limit and self._taken + 1 > self.limit):  # a limit of 2.5 is one of 2
            return False
        self._taken += 1
        return True

    async def wait(self) -> None:
        """Wait for a slot and take it."""
        if self.take():
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():  # it was handed over in the moment of the cancellation
                self.free()
            elif turn in self._waiting:  # `hand_on` takes a cancelled one out, too
                self._waiting.remove(turn)
            raise

    def free(self) -> None:
        """Give a slot back."""
        self._taken -= 1
        if self._waiting:
            self.hand_on()

    def hand_on(self) -> None:
        """Let in who may come in now."""
        while self._waiting and (not self.limit or self._taken + 1 <= self.limit):
            turn = self._waiting.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(None)


class _Pool:
    """The places of one aiohttp connector, as many as it has connections.

    All our calls on that pool queue here and never inside aiohttp, where the wait would be charged to the attempt's
    timeout. What other code does with the same pool is not seen.
    """

    def __init__(self, pool: aiohttp.BaseConnector) -> None:
        read_fairly(pool)  # here, because this is made once for each
        self._all = ResizableLimiter(pool.limit)
        self._per_host = pool.limit_per_host
        self.only_all = (self._all,) if self._per_host == _UNLIMITED else ()
        self._hosts: dict[str, ResizableLimiter] = {}

    def places(self, host: str) -> Sequence[ResizableLimiter]:
        """Return what a request to `host` takes a slot of, where there is no `only_all`."""
        if host not in self._hosts:
            self._hosts = {name: slots for name, slots in self._hosts.items() if not slots.idle}
            self._hosts[host] = ResizableLimiter(self._per_host)
        return self._hosts[host], self._all


_pools: weakref.WeakKeyDictionary[aiohttp.BaseConnector, _Pool] = weakref.WeakKeyDictionary()


@dataclass(slots=True)
class _Host:
    """What is known of one host's pace."""

    slots: ResizableLimiter
    held_until: float = 0.0  # monotonic seconds
    reduced_at: float = -1.0  # monotonic seconds


@dataclass(slots=True, eq=False)
class Permit:
    """A place that an attempt has taken, to be given back by `AdmissionControl.leave`.

    Attributes:
        entered: When it was taken, in seconds on the monotonic clock.
        waited: Whether it was not free at once.
        queued: Seconds it was waited for.
    """

    entered: float
    slots: Sequence[ResizableLimiter]
    waited: bool = False
    queued: float = 0.0
    limiter: AbstractAsyncContextManager[Any, Any] | None = None


class AdmissionControl:
    """Lets one connector's attempts in.

    Args:
        clock: Time and waits.
        rate_limiter: Entered before each attempt and left after it.
        adaptive_concurrency: Attempts to one host at a time, at most: halved when the server throttles, and growing
            back by one for each round of successes (additive increase, multiplicative decrease, as in RFC 5681);
            0 for no such limit.
        redact: Takes the secrets out of what a limiter says.
    """

    def __init__(
        self,
        clock: Clock,
        rate_limiter: RateLimiter | None,
        adaptive_concurrency: int,
        redact: Callable[[str], str] = str,
    ) -> None:
        self._redact = redact
        self._clock = clock
        self._rate_limiter = rate_limiter
        self.adaptive = adaptive_concurrency
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._throttle = LogThrottle()
        # The pool asked last: a dictionary of weak keys costs ten times as much to look into
        self._last_pool: Callable[[], aiohttp.BaseConnector | None] = lambda: None
        self._only_all: Sequence[ResizableLimiter] = ()
        self._last_places: Callable[[str], Sequence[ResizableLimiter]] = lambda _: ()

    def paused(self) -> list[str]:
        """Return the hosts that asked for a pause which has not ended; in any thread."""
        now = self._now()
        hosts = self._hosts.copy()  # in one go, while the event loop's thread may add some
        return [name for name, host in hosts.items() if host.held_until > now]

    def enter_now(self, session: aiohttp.ClientSession, host: str) -> Permit | None:
        """Let an attempt to `host` start if nothing has to be waited for; None if `enter` must be asked.

        Which is most attempts: to await `enter` only to hear so would cost as much as the rest of the way here.

        Raises:
            SessionClosed: There is no pool any more.
        """
        if self._rate_limiter is not None or (self._hosts and self.pause_of(host)):
            return None
        slots = self._places(session, host)
        if not slots:
            raise session_closed()
        if self.adaptive:
            slots = (self._known(host).slots, *slots)
        for taken, each in enumerate(slots):
            if not each.take():
                for other in slots[:taken]:
                    other.free()
                return None
        return Permit(self._clock.monotonic_ns() / 1e9, slots)

    async def enter(self, session: aiohttp.ClientSession, host: str, until: float = math.inf) -> Permit:
        """Wait until an attempt to `host` may start.

        Who waits for a pause keeps neither the limiter nor a place of the pool from others, and who waits for the
        limiter no place of the pool. A pause may begin meanwhile, so it is asked for again at the end.

        Args:
            session: Its pool's places are taken.
            host: ``host:port``.
            until: Monotonic seconds; a pause that lasts longer is not waited out.

        Raises:
            DeadlineExceeded: The host's pause ends after `until`.
            RateLimiterFailed: The rate limiter raised.
        """
        began = self._now()
        place = Permit(began, ())
        try:
            while True:
                await self._wait_out(place, host, until)
                if self._rate_limiter is not None:
                    place.limiter = await _pass(self._rate_limiter, host)
                    place.waited = True
                await self._take(place, session, host)
                if not self.pause_of(host):
                    break
                await self.leave(place, until - self._now())
        except BaseException:
            await self.leave(place, until - self._now())
            raise
        place.entered = self._now()
        place.queued = place.entered - began if place.waited else 0.0
        return place

    async def _wait_out(self, place: Permit, host: str, until: float) -> None:
        while pause := self.pause_of(host):
            if self._now() + pause >= until:
                raise DeadlineExceeded(f"{host} asked for {pause:g} s without calls, which is past the deadline")
            place.waited = True
            await self._clock.sleep(pause)

    def pause_of(self, host: str) -> float:
        """Return the seconds for which the server asked not to be called."""
        known = self._hosts.get(host)
        return 0.0 if known is None else max(known.held_until - self._now(), 0.0)

    @staticmethod
    def leave_now(place: Permit | None) -> bool:
        """Give the place back, but for its limiter; True if it has none, and so nothing is left to do."""
        if place is None:
            return True
        for slots in place.slots:
            slots.free()
        place.slots = ()
        return place.limiter is None

    async def leave(self, place: Permit | None, remaining: float = math.inf) -> None:
        """Give the place back, if there is one; never raises but for a cancellation.

        Args:
            place: What `enter` returned.
            remaining: Seconds that are left of the call: a limiter has no longer to let it go, and never less than
                `_LEAVING`, so that one which is asked over a network is not left occupied.
        """
        if place is None or self.leave_now(place) or (limiter := place.limiter) is None:
            return
        place.limiter = None
        try:
            if remaining == math.inf:
                await limiter.__aexit__(None, None, None)
            else:
                async with time_limit(max(remaining, _LEAVING)):
                    await limiter.__aexit__(None, None, None)
        except Exception as error:  # noqa: BLE001 - the attempt is over, its outcome stands
            if (suppressed := self._throttle.admit(self._now())) is not None:
                message = self._redact(str(error))
                with contextlib.suppress(Exception):  # raised by the application's log handler
                    _logger.warning(
                        "rate_limiter failed after an attempt: %s: %s%s", type(error).__name__, message, suppressed
                    )

    def throttled(self, host: str, place: Permit, pause: float | None) -> None:
        """Note that the server asked `host`'s callers to slow down.

        Args:
            host: ``host:port``.
            place: The place of the attempt that was told so.
            pause: Seconds of its ``Retry-After``, capped; None if it named none.
        """
        known, now = self._known(host), self._now()
        if pause is not None:
            known.held_until = max(known.held_until, now + pause)
        # One signal a burst: attempts that were under way before the reduction say nothing new
        if self.adaptive and place.entered > known.reduced_at:
            known.reduced_at = now
            known.slots.limit = max(1.0, known.slots.limit / 2)

    def succeeded(self, host: str) -> None:
        """Note that the server had no objection."""
        if self.adaptive and (known := self._hosts.get(host)) is not None:
            slots = known.slots
            slots.limit = min(float(self.adaptive), slots.limit + 1 / slots.limit)
            slots.hand_on()

    def _now(self) -> float:
        return self._clock.monotonic_ns() / 1e9

    def _known(self, host: str) -> _Host:
        known = self._hosts.get(host)
        if known is None:
            self._forget_hosts()
            known = self._hosts[host] = _Host(ResizableLimiter(self.adaptive))
        self._hosts.move_to_end(host)
        return known

    def _forget_hosts(self) -> None:
        """Make room for one more."""
        for name in list(islice(self._hosts, max(len(self._hosts) + 1 - _HOST_LIMIT, 0) * _LOOKS)):
            if len(self._hosts) < _HOST_LIMIT:
                return
            if self._hosts[name].slots.idle:
                del self._hosts[name]
            else:
                self._hosts.move_to_end(name)

    def _places(self, session: aiohttp.ClientSession, host: str) -> Sequence[ResizableLimiter]:
        """Return what an attempt to `host` takes a slot of in the session's pool; nothing if that is closed."""
        pool = session.connector
        if pool is None or pool.closed:  # as `session.closed` is, for half of what that costs
            return ()
        if self._last_pool() is not pool:
            if pool not in _pools:
                _pools[pool] = _Pool(pool)
            places = _pools[pool]
            self._last_pool, self._last_places, self._only_all = weakref.ref(pool), places.places, places.only_all
        return self._only_all or self._last_places(host)

    async def _take(self, place: Permit, session: aiohttp.ClientSession, host: str) -> None:
        if self.adaptive:
            await self._take_one(place, self._known(host).slots)
        for slots in self._places(session, host):  # asked for now: a pool forgets a host that nobody waits for
            await self._take_one(place, slots)

    @staticmethod
    async def _take_one(place: Permit, slots: ResizableLimiter) -> None:
        if not slots.take():
            place.waited = True
            await slots.wait()
        place.slots = (*place.slots, slots)


def session_closed() -> SessionClosed:
    """Return the error of an attempt that finds its session closed."""
    return SessionClosed("session is closed; pass an open aiohttp.ClientSession")


async def _pass(rate_limiter: RateLimiter, host: str) -> AbstractAsyncContextManager[Any, Any]:
    try:
        limiter = _limiter_for(rate_limiter, host)
        await limiter.__aenter__()
    except Exception as error:
        raise RateLimiterFailed(f"rate_limiter raised {type(error).__name__}: {error}") from error
    return limiter


def _limiter_for(given: Any, host: str) -> AbstractAsyncContextManager[Any, Any]:
    # A class is asked for an instance: its own __aenter__ is nobody's
    limiter: Any = given if hasattr(given, "__aenter__") and not isinstance(given, type) else given(host)
    if not hasattr(limiter, "__aenter__"):
        raise TypeError(f"it returned {type(limiter).__name__} for {host}, which is no async context manager")
    manager: AbstractAsyncContextManager[Any, Any] = limiter
    return manager
