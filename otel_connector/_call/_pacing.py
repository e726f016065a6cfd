"""When an attempt may start: the size of the connection pool, pauses that a server asked for, and the rate limiter.

An attempt first waits here, so that its own time is spent on the network and not in a queue. There is no rate limiting
algorithm in this file: the application passes one in as an async context manager. This file does not know telemetry,
nor how an attempt is made.

A `Permit` is entered and left once. Its parts are acquired in this order, so that no waiter holds a scarcer resource:
pause of the host, limit of the host, rate limiter, connections of the pool. A pause may begin while a permit waits for
the other parts. It then returns them and waits again.

Used by ``_call._call``, ``_call._settings`` and ``_connector``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from otel_connector._call._aiohttp_private import loop_of
from otel_connector._call._fair_reading import read_fairly
from otel_connector._call._host_limits import HostState, ResizableLimiter
from otel_connector._clock import time_limit
from otel_connector._errors import DeadlineExceeded, RateLimiterFailed, SessionClosed
from otel_connector._log_throttle import LogThrottle
from otel_connector._units import duration

if TYPE_CHECKING:
    import aiohttp

    from otel_connector._clock import Clock

_logger = logging.getLogger("otel_connector")

RateLimiter = AbstractAsyncContextManager[Any, Any] | Callable[[str], AbstractAsyncContextManager[Any, Any]]
"""The type of `rate_limiter`: one limiter for all, or a function that returns the limiter for a ``host:port``."""

_HOST_LIMIT = 10_000
"""Hosts whose state is kept. Beyond that, the host used least recently is removed, unless it has calls in flight."""

_EXAMINED_HOSTS = 4  # hosts examined for each one to remove, because some of them may be in use

_MIN_EXIT_SECONDS = 0.1  # that a rate limiter gets to exit, however little is left of the deadline


class _Pool:
    """The limiters of one aiohttp connector: a slot for each connection that it may open.

    All our calls with that connector queue here and never inside aiohttp, where the wait would count towards the
    timeout of the attempt. Other code that uses the same connector is not seen.

    Attributes:
        connector: The connector.
        loop: Its event loop.
        suffix: What its path adds to the key of a server; empty if it has none.
    """

    def __init__(self, connector: aiohttp.BaseConnector) -> None:
        self.connector = weakref.ref(connector)
        self.loop = loop_of(connector)
        path = getattr(connector, "path", None)  # of a UnixConnector, or a NamedPipeConnector
        # An abstract socket starts with a NUL, which ss and netstat show as @
        self.suffix = "" if path is None else f" ({os.fsdecode(path).replace(chr(0), '@')})"
        self._total = ResizableLimiter(connector.limit)
        self._total_only = (self._total,)
        self._limit_per_host = connector.limit_per_host
        self._hosts: dict[str, ResizableLimiter] = {}

    def limiters(self, host: str) -> Sequence[ResizableLimiter]:
        """Return the limiters of which a request to `host` needs a slot."""
        if not self._limit_per_host:
            return self._total_only
        if host not in self._hosts:
            self._hosts = {name: limiter for name, limiter in self._hosts.items() if not limiter.idle}
            self._hosts[host] = ResizableLimiter(self._limit_per_host)
        return self._hosts[host], self._total


_pools: weakref.WeakKeyDictionary[aiohttp.BaseConnector, _Pool] = weakref.WeakKeyDictionary()


class AdmissionControl:
    """Controls when the attempts of one connector may start.

    Args:
        clock: Time and waits.
        rate_limiter: Entered before each attempt and exited after it.
        adaptive_concurrency: Maximum number of concurrent attempts to one host. It is halved when the server
            throttles, and grows by one for each round of successes (additive increase, multiplicative decrease, as in
            RFC 5681); 0 for no such limit.
        redact: Removes the secrets from the message of a rate limiter's exception.
        fair_reading: Whether the session's connector is changed, to check responses and to parse them in small steps.
    """

    def __init__(
        self,
        clock: Clock,
        rate_limiter: RateLimiter | None,
        adaptive_concurrency: int,
        redact: Callable[[str], str] = str,
        *,
        fair_reading: bool = True,
    ) -> None:
        self.clock = clock
        self.rate_limiter = rate_limiter
        self.adaptive = adaptive_concurrency
        self._redact = redact
        self._fair_reading = fair_reading
        self.hosts: OrderedDict[str, HostState] = OrderedDict()
        self._throttle = LogThrottle()
        # The pool that was used last: a lookup in a dictionary of weak keys costs ten times as much
        self._pool: _Pool | None = None

    def now(self) -> float:
        """Return the monotonic time in seconds."""
        return self.clock.monotonic_ns() / 1e9

    def paused(self) -> list[str]:
        """Return the hosts that asked for a pause which has not ended; may be called in any thread."""
        now = self.now()
        hosts = self.hosts.copy()  # atomic, whereas the thread of the event loop may add hosts during an iteration
        return [name for name, host in hosts.items() if host.paused_until > now]

    def pause_of(self, host: str) -> float:
        """Return the remaining seconds of the pause that the server asked for."""
        state = self.hosts.get(host)
        return 0.0 if state is None else max(state.paused_until - self.now(), 0.0)

    def state_of(self, host: str) -> HostState:
        """Return the state of a host; create it if there is none."""
        state = self.hosts.get(host)
        if state is None:
            self._remove_idle_hosts()
            state = self.hosts[host] = HostState(self.adaptive)
        self.hosts.move_to_end(host)
        return state

    def host_limiters(self, host: str) -> Sequence[ResizableLimiter]:
        """Return the limiter of a host, if it has a limit."""
        state = self.state_of(host) if self.adaptive else self.hosts.get(host)
        return () if state is None or not state.limit else (state.limiter,)

    def pool_limiters(self, session: aiohttp.ClientSession, host: str) -> Sequence[ResizableLimiter]:
        """Return the limiters of the session's pool for an attempt to `host`; empty if the pool is closed."""
        pool = self.pool(session)
        return () if pool is None else pool.limiters(host)

    def pool(self, session: aiohttp.ClientSession) -> _Pool | None:
        """Return the pool of the session; None if it is closed.

        Raises:
            RuntimeError: The session belongs to another event loop than the running one.
        """
        connector = session.connector
        if connector is None or connector.closed:
            return None
        pool = self._pool
        if pool is None or pool.connector() is not connector:
            pool = self._pool = _pools.setdefault(connector, _Pool(connector))
            if self._fair_reading:
                read_fairly(connector)
        if pool.loop is not asyncio.get_running_loop():
            raise RuntimeError("session is bound to a different event loop")
        return pool

    def throttled(self, host: str, entered: float, pause: float | None) -> None:
        """Note that the server asked the callers of `host` to slow down.

        Args:
            host: ``host:port``.
            entered: When the throttled attempt started, in monotonic seconds.
            pause: Seconds of the ``Retry-After``, capped; None if there was none.
        """
        self.state_of(host).throttled(self.now(), entered, pause)

    def succeeded(self, host: str, entered: float = math.inf) -> None:
        """Note that the server answered without throttling.

        Args:
            host: ``host:port``.
            entered: When the attempt started, in monotonic seconds.
        """
        state = self.hosts.get(host)
        if state is not None and state.limit:
            state.succeeded(self.now(), entered)

    def limiter_failed(self, error: Exception) -> None:
        """Log that the rate limiter raised when it was exited: the attempt has its result."""
        if (suppressed := self._throttle.admit(self.now())) is not None:
            message = f"{type(error).__name__}: {self._redact(str(error))}"
            with contextlib.suppress(Exception):  # raised by the application's log handler
                _logger.warning("rate_limiter failed after an attempt: %s%s", message, suppressed)

    def _remove_idle_hosts(self) -> None:
        """Make room for one more host."""
        excess = max(len(self.hosts) + 1 - _HOST_LIMIT, 0)
        for name in list(islice(self.hosts, excess * _EXAMINED_HOSTS)):
            if len(self.hosts) < _HOST_LIMIT:
                return
            if self.hosts[name].idle:
                del self.hosts[name]
            else:
                self.hosts.move_to_end(name)


@dataclass(slots=True, eq=False)
class Permit:
    """The permission for one attempt. It is entered once and left once.

    Attributes:
        admission: Grants it.
        session: The session whose pool the attempt uses.
        host: ``host:port``; `enter_nowait` adds the path of the session's connector, if it has one.
        limiters: Those of which it has a slot.
        rate_limiter: The rate limiter that it has entered.
        waiting: Whether the attempt may not start yet.
        entered: When the attempt was allowed to start, in monotonic seconds.
        admitted: The same, or when the last redirect was allowed to be followed.
        queued: Seconds that it waited before the attempt, also without success.
        suspended: Seconds that redirects waited during the attempt.
        suffix: What the path of the session's connector adds to `host`.
    """

    admission: AdmissionControl
    session: aiohttp.ClientSession
    host: str
    limiters: tuple[ResizableLimiter, ...] = ()
    rate_limiter: AbstractAsyncContextManager[Any, Any] | None = None
    waiting: bool = True
    entered: float = 0.0
    admitted: float = 0.0
    queued: float = 0.0
    suspended: float = 0.0
    suffix: str = ""

    def enter_nowait(self) -> bool:
        """Enter if nothing has to be waited for; return whether it was entered.

        Most attempts can. Awaiting `enter` for these would double the cost of admission.

        Raises:
            SessionClosed: The session has no open pool.
        """
        admission, host = self.admission, self.host
        pool = admission.pool(self.session)
        if pool is None:
            raise _session_closed()
        if pool.suffix:
            self.suffix = pool.suffix
            host = self.host = f"{host}{pool.suffix}"
        if admission.rate_limiter is not None:
            return False
        limiters = pool.limiters(host)
        if admission.hosts or admission.adaptive:
            if admission.pause_of(host):
                return False
            limiters = (*admission.host_limiters(host), *limiters)
        for limiter in limiters:
            if not limiter.acquire_nowait():
                self.leave_nowait()
                return False
            self.limiters += (limiter,)
        self.waiting = False
        self.entered = self.admitted = admission.clock.monotonic_ns() / 1e9
        return True

    async def enter(self, until: float = math.inf) -> None:
        """Wait until the attempt may start.

        Args:
            until: Monotonic seconds; a pause that ends later is not waited for.

        Raises:
            DeadlineExceeded: The pause of the host ends after `until`.
            RateLimiterFailed: The rate limiter raised.
        """
        started = self.admission.now()
        try:
            await self._acquire_all(until)
            self.waiting = False
        finally:
            self.entered = self.admitted = self.admission.now()
            self.queued = self.entered - started

    def move_nowait(self, host: str) -> bool:
        """Exchange the slots for those of another host, to which a redirect leads; return whether that was possible.

        If it was not, no slot is left. aiohttp has returned the connection to the first host.
        """
        admission = self.admission
        if admission.hosts and admission.pause_of(host):
            return False
        if host != self.host:
            self._release()
            self.host = host
            for limiter in (*admission.host_limiters(host), *admission.pool_limiters(self.session, host)):
                if not limiter.acquire_nowait():
                    self._release()
                    return False
                self.limiters += (limiter,)
            self.admitted = admission.now()
        return True

    async def move(self, host: str, pause: float, until: float) -> None:
        """Wait until the request of a redirect may be sent.

        Args:
            host: Its ``host:port``.
            pause: Seconds that the redirect asks to wait.
            until: Monotonic seconds; a pause that ends later is not waited for.

        Raises:
            DeadlineExceeded: The pause ends after `until`.
            RateLimiterFailed: The rate limiter raised.
        """
        self._release()
        self.host = host
        if pause:
            if self.admission.now() + pause >= until:
                raise DeadlineExceeded(f"the redirect asks to wait for {duration(pause)}, past the deadline")
            await self.leave(until - self.admission.now())
            await self.admission.clock.sleep(pause)
        await self._acquire_all(until)
        self.admitted = self.admission.now()

    async def _acquire_all(self, until: float) -> None:
        admission, host = self.admission, self.host
        try:
            while True:
                await self._wait_for_pause(until)
                for limiter in admission.host_limiters(host):
                    await self._acquire(limiter)
                if admission.rate_limiter is not None and self.rate_limiter is None:
                    self.rate_limiter = await _entered(admission.rate_limiter, host)
                # Looked up only now: while this task waits, a pool may remove the limiter of a host that is idle
                for limiter in admission.pool_limiters(self.session, host):
                    await self._acquire(limiter)
                if not admission.pause_of(host):
                    break
                await self.leave(until - admission.now())
        except BaseException:  # raised again; a slot must not be lost
            await self.leave(until - admission.now())
            raise

    def check_session(self) -> None:
        """Raise `SessionClosed` if the session was closed while this waited. The attempt then does not start."""
        if self.session.closed:
            self.waiting = True
            raise _session_closed()

    def leave_nowait(self) -> bool:
        """Return the slots; return whether this was all, and `leave` need not be awaited."""
        self._release()
        return self.rate_limiter is None

    async def leave(self, remaining: float = math.inf) -> None:
        """Return the slots and exit the rate limiter; raises nothing but a cancellation.

        Args:
            remaining: Seconds that are left of the call. The limiter has at least `_MIN_EXIT_SECONDS`: one that is
                reached over a network would stay occupied.
        """
        if self.leave_nowait() or (limiter := self.rate_limiter) is None:
            return
        self.rate_limiter = None
        try:
            async with time_limit(None if remaining == math.inf else max(remaining, _MIN_EXIT_SECONDS)):
                await limiter.__aexit__(None, None, None)
        except Exception as error:  # noqa: BLE001 - raised by application code
            self.admission.limiter_failed(error)

    async def _wait_for_pause(self, until: float) -> None:
        admission, host = self.admission, self.host
        while pause := admission.pause_of(host):
            if admission.now() + pause >= until:
                raise DeadlineExceeded(f"{host} asked for a pause that ends in {duration(pause)}, after the deadline")
            await self.leave(until - admission.now())
            await admission.clock.sleep(pause)

    def _release(self) -> None:
        for limiter in self.limiters:
            limiter.release()
        self.limiters = ()

    async def _acquire(self, limiter: ResizableLimiter) -> None:
        await limiter.acquire()
        self.limiters += (limiter,)


def _session_closed() -> SessionClosed:
    """Return the error of an attempt whose session is closed."""
    return SessionClosed("session is closed; pass an open aiohttp.ClientSession")


async def _entered(rate_limiter: RateLimiter, host: str) -> AbstractAsyncContextManager[Any, Any]:
    """Enter the rate limiter for `host` and return it."""
    try:
        limiter = _limiter_for(rate_limiter, host)
        await limiter.__aenter__()
    except Exception as error:
        raise RateLimiterFailed(f"rate_limiter raised {type(error).__name__}: {error}") from error
    return limiter


def _limiter_for(rate_limiter: Any, host: str) -> AbstractAsyncContextManager[Any, Any]:
    # A class has an attribute `__aenter__` as well, but it is called to get an instance
    limiter: Any = rate_limiter
    if isinstance(rate_limiter, type) or not hasattr(rate_limiter, "__aenter__"):
        limiter = rate_limiter(host)
    if not hasattr(limiter, "__aenter__"):
        raise TypeError(f"it returned {type(limiter).__name__} for {host}, which is not an async context manager")
    manager: AbstractAsyncContextManager[Any, Any] = limiter
    return manager
