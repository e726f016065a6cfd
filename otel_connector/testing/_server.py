"""The server: its thread, its scripts and its log of requests. Does not know what the steps of a script do.

Used by ``testing``.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import chain, count, repeat
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import urlencode

from otel_connector._arguments import checked_instance
from otel_connector._optional_module import optional_module
from otel_connector._units import exact_duration
from otel_connector.testing._peer import Peer, ServedRequest
from otel_connector.testing._request import BadRequest, ReceivedRequest
from otel_connector.testing._steps import Connection, Step, bare_status

if TYPE_CHECKING:
    from typing_extensions import Self

_HOST = "127.0.0.1"
_PATH = re.compile(r"/[!\"$-~]*")

# Seconds. Closing takes milliseconds, unless a step blocks the server's event loop or ignores its cancellation
_CLOSE_TIMEOUT = 5.0

_ScriptStep = Step | int | Callable[[Connection], Awaitable[None]]


class FaultServer:
    """An HTTP/1.1 server on 127.0.0.1 that misbehaves according to its scripts.

    It runs in its own thread and event loop, so synchronous and asynchronous tests can use it:
    ``with FaultServer() as server`` or, in a coroutine, ``async with FaultServer() as server``, which does not block
    the caller's event loop. It can be started only once. Every method may be called from any thread.

    Connections are kept alive. The body of a request is read by its Content-Length and discarded. If a step raises an
    exception, its connection is reset and the test fails: at the end of the ``with`` block, `RuntimeError` is raised
    from it. The only exception to this is `ConnectionError`, because the client may have disconnected.
    """

    def __init__(self, *, tls: bool = False) -> None:
        """Make a server. It does not listen before `start`.

        Args:
            tls: Serve HTTPS, with a certificate of a temporary authority that only `client_ssl` trusts.

        Raises:
            TypeError: `tls` is not a bool.
            ImportError: `tls` is True, and trustme is not installed (it is in the ``testing`` extra).
        """
        self._trustme: Any = None
        if checked_instance("tls", tls, bool):
            extra = "'otel-connector[testing]'"
            self._trustme = optional_module("trustme", needed_by="FaultServer(tls=True)", install=extra)
        self._client_ssl: ssl.SSLContext | None = None
        self._scripts: dict[str, Iterator[tuple[int, Step]]] = {}  # the steps that follow, with their numbers
        self._log: list[ServedRequest] = []
        self._failures: list[tuple[str, Exception]] = []
        self._numbers = count(1)
        self._peers: set[Peer] = set()
        self._lifecycle = threading.Lock()
        self._thread: threading.Thread | None = None
        self._running: _Running | None = None
        self._closed = False

    # Scripts

    def script(self, path: str, steps: _ScriptStep | Sequence[_ScriptStep]) -> None:
        """Set the responses to the requests for `path`. This replaces an earlier script.

        Every request takes the next step, in the order in which requests are read, from any connection. The last step
        is repeated.

        Args:
            path: Starts with ``/``. It is compared with the request target as sent, without the query string.
            steps: One step, or several in order. An int is a response with that status and a short JSON body; an async
                callable is played as a step.

        Raises:
            TypeError: `path` is not a str, or an element of `steps` is not a step.
            ValueError: `path` is not a path, `steps` is empty, or a status is not from 200 to 599.
        """
        _check_path(path)
        if "?" in path:
            raise ValueError(f"path must have no query string: {path!r}")
        several = isinstance(steps, Sequence) and not isinstance(steps, (str, bytes))
        given: list[Any] = list(cast("Sequence[Any]", steps)) if several else [steps]
        if not given:
            raise ValueError("steps must not be empty")
        numbered = [(number, _as_step(number, step)) for number, step in enumerate(given)]
        self._scripts[path] = chain(numbered, repeat(numbered[-1]))

    # The log

    @property
    def requests(self) -> list[ReceivedRequest]:
        """All requests that were read, in this order. A request is listed before it is answered."""
        return [served.request for served in list(self._log)]

    def received(self, path: str) -> list[ReceivedRequest]:
        """Return the requests for one path, in the order in which they were read."""
        return [request for request in self.requests if request.path == path]

    def statuses(self, path: str | None = None) -> list[int | None]:
        """Return the statuses that were sent, one for each request for `path` (None: for all paths).

        The status is None if no status line has been sent: for example after a reset, or if the bytes are not HTTP.
        """
        return [served.status for served in list(self._log) if path in {None, served.request.path}]

    def reset_log(self) -> None:
        """Clear the log of requests. Scripts continue where they are."""
        self._log = []

    # Addresses

    @property
    def port(self) -> int:
        """The port. It stays available after `close`, when connections to it are refused.

        Raises:
            RuntimeError: The server has not been started.
        """
        if self._running is None:
            raise RuntimeError("the FaultServer has not been started")
        return self._running.port

    def url(self, path: str = "/", /, **params: object) -> str:
        """Return the absolute URL of `path`, with `params` as its query string.

        Raises:
            TypeError: `path` is not a str.
            ValueError: `path` is not a path.
            RuntimeError: The server has not been started.
        """
        _check_path(path)
        scheme = "http" if self._trustme is None else "https"
        query = ("&" if "?" in path else "?") + urlencode(params, doseq=True) if params else ""
        return f"{scheme}://{_HOST}:{self.port}{path}{query}"

    @property
    def client_ssl(self) -> ssl.SSLContext:
        """The TLS context of a client that trusts only this server, for the parameter ``ssl=``.

        Raises:
            RuntimeError: The server was made without ``tls=True``, or has not been started.
        """
        if self._client_ssl is None:
            raise RuntimeError("client_ssl is available after a FaultServer(tls=True) has been started")
        return self._client_ssl

    # Start and close

    def start(self) -> None:
        """Listen on a free port. This blocks for some milliseconds. ``with`` calls it.

        Raises:
            RuntimeError: The server was started or closed before.
            OSError: No socket is available.
        """
        with self._lifecycle:
            if self._closed or self._thread is not None:
                raise RuntimeError("a FaultServer starts once; make a new one")
            server_ssl, self._client_ssl = (None, None) if self._trustme is None else _certify(self._trustme)
            running: Future[_Running] = Future()
            self._thread = threading.Thread(
                target=self._run, args=(server_ssl, running), name="FaultServer", daemon=True
            )
            self._thread.start()
            self._running = running.result()

    def close(self) -> None:
        """Reset all connections, stop listening and end the thread. Further calls do nothing. ``with`` calls it.

        Raises:
            RuntimeError: A step raised an exception, or prevents the end of the server's event loop.
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

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        """Close. An exception of the block takes precedence over one of a step."""
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

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        """Close without blocking the caller's event loop."""
        await asyncio.to_thread(self.__exit__, kind, error, traceback)

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
                raise RuntimeError(
                    f"a step prevents the FaultServer from closing within {exact_duration(_CLOSE_TIMEOUT)}"
                )

    # In the server's thread

    def _run(self, server_ssl: ssl.SSLContext | None, running: Future[_Running]) -> None:
        # Not a loop of the current policy: the server must send the same bytes if the test uses uvloop
        loop = asyncio.SelectorEventLoop()
        # Debug mode logs failed handshakes, which a test may cause on purpose
        loop.set_debug(False)
        try:
            loop.run_until_complete(self._listen(server_ssl, running))
        except Exception as error:  # noqa: BLE001 - raised in the thread that waits in `start`
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
        # A new connection gets its transport some iterations after it was accepted. If the server were closed before
        # that, its socket would leak
        loop.remove_reader(server.sockets[0].fileno())
        await _iterate_loop(3)
        server.close()
        for connected in list(self._peers):
            connected.abort()
        # The tasks of the connections, and asyncio's tasks of handshakes in progress
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        # asyncio closes a socket some iterations after the request. If the loop were closed before, it would leak
        await _iterate_loop(10)

    async def _serve(self, peer: Peer) -> None:
        try:
            while not peer.closing and await self._answer(peer):
                pass
            peer.close()
        except ConnectionError:
            peer.abort()
        except Exception as error:  # noqa: BLE001 - raised again by `close`, in the test
            self._failures.append((peer.request.path, error))
            peer.abort()

    async def _answer(self, peer: Peer) -> bool:
        """Answer one request; return whether another may follow."""
        try:
            request = await peer.read_request()
        except BadRequest as error:
            await bare_status(error.status).play(peer)
            return False
        number, step = next(self._scripts.get(request.path, _NO_SCRIPT))
        peer.served = ServedRequest(replace(request, step=number))
        self._log.append(peer.served)
        await step.play(peer)
        return request.keeps_alive


async def _iterate_loop(times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


class _Running(NamedTuple):
    loop: asyncio.AbstractEventLoop
    stop: asyncio.Event
    port: int


_NO_SCRIPT = repeat((None, bare_status(404)))


def _as_step(number: int, step: Any) -> Step:
    if isinstance(step, Step):
        return step
    if _is_async_callable(step):
        return Step(name=getattr(step, "__name__", type(step).__name__), play=step)
    if isinstance(step, int) and not isinstance(step, bool):
        return bare_status(step)
    hint = ""
    if inspect.isfunction(step):
        hint = f": {step.__name__} is a function that is not async (did you mean to call it?)"
    elif isinstance(getattr(step, "step", None), Step):
        hint = ": put its .step in the script"
    raise TypeError(f"steps[{number}] must be a Step, a status or an async callable, not {type(step).__name__}{hint}")


def _is_async_callable(step: Any) -> bool:
    return inspect.iscoroutinefunction(step) or (callable(step) and inspect.iscoroutinefunction(step.__call__))


def _check_path(path: str) -> None:
    if not _PATH.fullmatch(checked_instance("path", path, str)):
        raise ValueError(f"path must start with / and be percent-encoded, not {path!r}")


def _certify(trustme: Any) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Make a certificate of a temporary authority, and return the TLS contexts of the server and the client."""
    authority = trustme.CA()
    server_ssl = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(_HOST, "localhost").configure_cert(server_ssl)
    client_ssl = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client_ssl)
    return server_ssl, client_ssl
