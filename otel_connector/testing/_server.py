"""The server: its thread, its scripts and its log. Knows steps only as something to play on a connection."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import re
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

from otel_connector.testing._arguments import instance, optional_module
from otel_connector.testing._peer import Exchange, Peer
from otel_connector.testing._request import BadRequest, ReceivedRequest
from otel_connector.testing._steps import Connection, Step, bare_status

if TYPE_CHECKING:
    from typing_extensions import Self

_HOST = "127.0.0.1"
_PATH = re.compile(r"/[!\"$-~]*")

# Closing takes milliseconds; only a step that blocks the server's event loop or refuses to be cancelled takes longer.
_CLOSE_TIMEOUT = 5.0

_ScriptStep = Step | int | Callable[[Connection], Awaitable[None]]


class FaultServer:
    """An HTTP/1.1 server on 127.0.0.1 that misbehaves as its scripts say.

    It runs in a thread and an event loop of its own, so it serves synchronous and asynchronous tests alike:
    ``with FaultServer() as server`` or, in a coroutine, ``async with FaultServer() as server``, which does not block
    the caller's event loop. It starts once and closes once. Every method may be called from any thread.

    Connections are kept alive. The body of a request is read by its Content-Length and thrown away. A step that raises
    (anything but the `ConnectionError` of a client that left) breaks its connection off and fails the test: leaving the
    ``with`` block raises `RuntimeError` from it.
    """

    def __init__(self, *, tls: bool = False) -> None:
        """Make a server; it listens from `start` on.

        Args:
            tls: Serve HTTPS, with a certificate of a throw-away authority that only `client_ssl` trusts.

        Raises:
            TypeError: `tls` is no bool.
            ImportError: `tls` without trustme, which the ``testing`` extra brings.
        """
        wanted = instance("tls", tls, bool)
        self._trustme = optional_module("trustme", wanted_by="FaultServer(tls=True)") if wanted else None
        self._client_ssl: ssl.SSLContext | None = None
        self._scripts: dict[str, _Script] = {}
        self._log: list[Exchange] = []
        self._failures: list[tuple[str, Exception]] = []
        self._numbers = itertools.count(1)
        self._peers: set[Peer] = set()
        self._lifecycle = threading.Lock()
        self._thread: threading.Thread | None = None
        self._running: _Running | None = None
        self._closed = False

    # Scripts.

    def script(self, path: str, steps: _ScriptStep | Sequence[_ScriptStep]) -> None:
        """Say what the requests to `path` get; a script that was there before is replaced.

        Every request takes the next step, and the last step is repeated for ever. Requests are numbered as they are
        read, whatever connection they come on.

        Args:
            path: Starts with ``/``; compared with the target as it is sent, without its query string.
            steps: A step or several in turn. An int is that status with a short JSON body; an async callable is played
                as a step.

        Raises:
            TypeError: `path` is no str, or something in `steps` is no step.
            ValueError: `path` is no path, `steps` is empty, or a status is not from 200 to 599.
        """
        _check_path(path)
        if "?" in path:
            raise ValueError(f"path must have no query string: {path!r}")
        several = isinstance(steps, Sequence) and not isinstance(steps, (str, bytes))
        listed: list[Any] = list(steps) if several else [steps]  # type: ignore[arg-type]
        if not listed:
            raise ValueError("steps must not be empty")
        self._scripts[path] = _Script([_as_step(index, step) for index, step in enumerate(listed)])

    # The log.

    @property
    def requests(self) -> list[ReceivedRequest]:
        """Every request read so far, in the order of reading; a request is listed before it is answered."""
        return [exchange.request for exchange in list(self._log)]

    def received(self, path: str) -> list[ReceivedRequest]:
        """Return the requests to one path, in the order of reading."""
        return [request for request in self.requests if request.path == path]

    def statuses(self, path: str | None = None) -> list[int | None]:
        """Return the statuses that went out, one for each request to `path` (None: to all paths).

        It is None for a request that has had no status line (yet): a reset, a silence, bytes that are not HTTP.
        """
        return [exchange.status for exchange in list(self._log) if path in {None, exchange.request.path}]

    def reset_log(self) -> None:
        """Forget the requests read so far; scripts stay where they are."""
        self._log = []

    # Addresses.

    @property
    def port(self) -> int:
        """The port; still known after `close`, when connections to it are refused.

        Raises:
            RuntimeError: the server was never started.
        """
        if self._running is None:
            raise RuntimeError("the FaultServer has not been started")
        return self._running.port

    def url(self, path: str = "/", /, **params: object) -> str:
        """Return the absolute URL of `path`, with `params` as its query string.

        Raises:
            TypeError: `path` is no str.
            ValueError: `path` is no path.
            RuntimeError: the server was never started.
        """
        _check_path(path)
        scheme = "http" if self._trustme is None else "https"
        query = ("&" if "?" in path else "?") + urlencode(params, doseq=True) if params else ""
        return f"{scheme}://{_HOST}:{self.port}{path}{query}"

    @property
    def client_ssl(self) -> ssl.SSLContext:
        """What a client needs to trust this server and no other: to be passed as ``ssl=``.

        Raises:
            RuntimeError: the server was made without ``tls=True`` or never started.
        """
        if self._client_ssl is None:
            raise RuntimeError("client_ssl is there once a FaultServer(tls=True) has been started")
        return self._client_ssl

    # Life.

    def start(self) -> None:
        """Listen on a free port; blocks for some milliseconds. ``with`` calls it.

        Raises:
            RuntimeError: the server was started or closed before.
            OSError: no socket was to be had.
        """
        with self._lifecycle:
            if self._closed or self._thread is not None:
                raise RuntimeError("a FaultServer starts once: make a new one")
            server_ssl, self._client_ssl = (None, None) if self._trustme is None else _certify(self._trustme)
            running: Future[_Running] = Future()
            self._thread = threading.Thread(
                target=self._run, args=(server_ssl, running), name="FaultServer", daemon=True
            )
            self._thread.start()
            self._running = running.result()

    def close(self) -> None:
        """Break off every connection, stop listening and end the thread; further calls do nothing. ``with`` calls it.

        Raises:
            RuntimeError: a step raised, or keeps the server's event loop from ending.
        """
        self._stop()
        if self._failures:
            path, failure = self._failures[0]
            self._failures.clear()
            raise RuntimeError(f"a step of {path} raised {failure!r}") from failure

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; what a step raised gives way to what the block raised."""
        if error is None:
            self.close()
        else:
            self._stop()

    async def __aenter__(self) -> Self:
        """Start without blocking the caller's event loop."""
        try:
            await asyncio.to_thread(self.start)
        except asyncio.CancelledError:
            await asyncio.to_thread(self._stop)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close without blocking the caller's event loop."""
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    def _stop(self) -> None:
        with self._lifecycle:
            if self._closed:
                return
            self._closed = True
            if self._running is None or self._thread is None:
                return
            self._running.loop.call_soon_threadsafe(self._running.stop.set)
            self._thread.join(_CLOSE_TIMEOUT)
            if self._thread.is_alive():
                raise RuntimeError(f"a step keeps the FaultServer from closing within {_CLOSE_TIMEOUT} s")

    # From here on: in the server's thread.

    def _run(self, server_ssl: ssl.SSLContext | None, running: Future[_Running]) -> None:
        # Not whatever the policy makes: the wire must look the same under uvloop.
        loop = asyncio.SelectorEventLoop()
        # Debug mode logs failed handshakes, which are what a test may be after.
        loop.set_debug(False)
        try:
            loop.run_until_complete(self._listen(server_ssl, running))
        except Exception as error:  # noqa: BLE001 -- it belongs to the thread that waits for the start
            running.set_exception(error)
        finally:
            loop.close()

    async def _listen(self, server_ssl: ssl.SSLContext | None, running: Future[_Running]) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()

        def peer() -> Peer:
            return Peer(next(self._numbers), self._peers, self._serve)

        server = await loop.create_server(peer, _HOST, 0, ssl=server_ssl)
        running.set_result(_Running(loop, stop, server.sockets[0].getsockname()[1]))
        await stop.wait()
        # A connection accepted just now gets its transport some turns later, and not from a closed server: to close at
        # once would leak its socket.
        loop.remove_reader(server.sockets[0].fileno())
        await _turns(3)
        server.close()
        for connected in list(self._peers):
            connected.abort()
        # Beside the connections' own tasks these are asyncio's, of handshakes that have not ended.
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        # asyncio closes a socket some turns after it was told to; a loop closed before that leaks it.
        await _turns(10)

    async def _serve(self, peer: Peer) -> None:
        try:
            while not peer.closing and await self._exchange(peer):
                pass
            peer.close()
        except ConnectionError:
            peer.abort()
        except Exception as error:  # noqa: BLE001 -- raised again by `close`, where the test sees it
            self._failures.append((peer.request.path, error))
            peer.abort()

    async def _exchange(self, peer: Peer) -> bool:
        """Answer one request; return whether another may follow."""
        try:
            request = await peer.read_request()
        except BadRequest as error:
            await bare_status(error.status).play(peer)
            return False
        script = self._scripts.get(request.path, _UNSCRIPTED)
        index, step = script.take()
        peer.exchange = Exchange(replace(request, step=index))
        self._log.append(peer.exchange)
        await step.play(peer)
        return request.keeps_alive


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class _Running(NamedTuple):
    loop: asyncio.AbstractEventLoop
    stop: asyncio.Event
    port: int


class _Script:
    """Steps and how many of them were taken; taken from the server's thread only."""

    __slots__ = ("_steps", "_taken")

    def __init__(self, steps: list[Step]) -> None:
        self._steps = steps
        self._taken = 0

    def take(self) -> tuple[int | None, Step]:
        index = min(self._taken, len(self._steps) - 1)
        self._taken += 1
        return index, self._steps[index]


class _Unscripted(_Script):
    __slots__ = ()

    def take(self) -> tuple[int | None, Step]:
        return None, self._steps[0]


_UNSCRIPTED = _Unscripted([bare_status(404)])


def _as_step(index: int, step: object) -> Step:
    if isinstance(step, Step):
        return step
    if isinstance(step, int) and not isinstance(step, bool):
        return bare_status(step)
    if inspect.iscoroutinefunction(step) or inspect.iscoroutinefunction(getattr(step, "__call__", None)):  # noqa: B004
        return Step(name=getattr(step, "__name__", type(step).__name__), play=step)  # type: ignore[arg-type]
    hint = ""
    if inspect.isfunction(step):
        hint = f": {step.__name__} is a function that is not async (was it to be called?)"
    elif isinstance(getattr(step, "step", None), Step):
        hint = ": put its .step in the script"
    raise TypeError(f"steps[{index}] must be a Step, a status or an async callable, not {type(step).__name__}{hint}")


def _check_path(path: str) -> None:
    if not _PATH.fullmatch(instance("path", path, str)):
        raise ValueError(f"path must start with / and be written as it is sent, not {path!r}")


def _certify(trustme: Any) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Make an authority, a certificate of it for this host, and the two ends' contexts."""
    authority = trustme.CA()
    server_ssl = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(_HOST, "localhost").configure_cert(server_ssl)
    client_ssl = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client_ssl)
    return server_ssl, client_ssl
