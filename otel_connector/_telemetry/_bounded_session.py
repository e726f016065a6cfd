"""A session of ``requests`` for the SDK's OTLP exporters: it reads the beginning of a response, and notes its meaning.

The exporters read the whole body of each response, and decompress it: a collector could fill the memory with it. They
use its status and its reason, so 64 KiB are enough, before and after decompression. The timeout of requests limits the
time between two bytes; here it limits the whole response. The exporters report every response below 400 as a success,
so the session notes what a response means. This file does not know the SDK.

Used by ``_replay._replay``, ``_telemetry._exporter_watch`` and ``providers``.
"""

from __future__ import annotations

import io
import os
import socket
import threading
import zlib
from contextlib import suppress
from http import HTTPStatus
from typing import Any, cast

from otel_connector._telemetry._export_problem import note
from otel_connector._telemetry._http_answers import problem_of_error, problem_of_response

_LIMIT = 64 * 1024  # bytes
_REDIRECTS = range(HTTPStatus.MULTIPLE_CHOICES, HTTPStatus.BAD_REQUEST)

_CODED = frozenset({"content-encoding", "content-length", "transfer-encoding"})  # these describe the whole body
# Of the codings that zlib decodes. Some servers send "deflate" without the header of zlib (RFC 9110, section 8.4.1.2)
_WINDOWS = {"gzip": (16 + zlib.MAX_WBITS,), "deflate": (zlib.MAX_WBITS, -zlib.MAX_WBITS)}


def session_options() -> dict[str, Any]:
    """Return the option ``session`` of an OTLP exporter over HTTP; none if the operator has chosen a session.

    A session in code would override that of ``OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER``, and of its variants
    for one signal.
    """
    prefix, suffix = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_", "CREDENTIAL_PROVIDER"
    if any(name.startswith(prefix) and name.endswith(suffix) and value for name, value in os.environ.items()):
        return {}
    return {"session": _bounded_session()}


def _bounded_session() -> Any:
    import requests  # comes with the exporter
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPResponse
    from urllib3.exceptions import HTTPError, ReadTimeoutError

    class Bounded(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **options: Any) -> None:
            super().init_poolmanager(*args, **options)
            _limit_time(self.poolmanager)

        def proxy_manager_for(self, proxy: Any, **options: Any) -> Any:
            is_new = proxy not in self.proxy_manager
            manager = super().proxy_manager_for(proxy, **options)
            return _limit_time(manager) if is_new else manager

        def build_response(self, req: Any, resp: Any) -> requests.Response:
            limit, body, error = resp.connection.answer_limit, b"", None
            try:
                body = resp.read(_LIMIT, decode_content=False)
            except HTTPError as raised:
                error = raised
            if not limit.end() or isinstance(error, ReadTimeoutError):
                resp.close()
                raise requests.exceptions.ReadTimeout(request=req) from error
            if error is not None:  # older exporters know only the exceptions of requests
                raise requests.exceptions.ChunkedEncodingError(error, request=req) from error
            if len(body) < _LIMIT:
                resp.release_conn()
            else:
                resp.close()
            headers = {name: value for name, value in resp.headers.items() if name.lower() not in _CODED}
            coding = resp.headers.get("Content-Encoding", "").strip().lower()
            decoded = _decoded(body, coding)
            beginning: Any = HTTPResponse(
                io.BytesIO(body if decoded is None else decoded),
                headers,
                resp.status,
                reason=resp.reason,
                preload_content=False,
            )
            response: requests.Response = super().build_response(req, beginning)
            vars(response)["coding"] = coding if decoded is None else ""
            return response

    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"
    for scheme in ("http://", "https://"):
        session.mount(scheme, Bounded())
    observe_session(session)
    return session


class _AnswerLimit:
    """Shuts a socket down after some seconds, so that a read in another thread ends."""

    def __init__(self, connected: socket.socket, seconds: float | None) -> None:
        self._socket, self._claim = connected, threading.Lock()
        self._timer: Any = threading.Timer(cast("Any", seconds), self._expire)  # with None, it waits for `end`
        self._timer.daemon = True
        # Python 3.12.1 starts no thread while the program ends. The timeout of each read and `exit_timeout` remain
        with suppress(RuntimeError):
            self._timer.start()

    def _expire(self) -> None:
        if self._claim.acquire(blocking=False):
            with suppress(OSError):  # it is closed
                # Not the method of a TLS socket, which removes the state that the other thread uses
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def end(self) -> bool:
        """Return whether the time has not expired; after that, it does not."""
        self._timer.cancel()
        return self._claim.acquire(blocking=False)


def _limit_time(manager: Any) -> Any:
    """Make a pool manager of urllib3 open connections with an `_AnswerLimit`, and return it."""

    def timed(pool: Any) -> Any:
        base: Any = pool.ConnectionCls

        class Timed(base):  # type: ignore[misc]
            def getresponse(self, *args: Any, **options: Any) -> Any:
                self.answer_limit = _AnswerLimit(self.sock, self.timeout)
                try:
                    return base.getresponse(self, *args, **options)
                except BaseException:
                    if not self.answer_limit.end():
                        raise TimeoutError from None
                    raise

        return type(pool.__name__, (pool,), {"ConnectionCls": Timed})

    manager.pool_classes_by_scheme = {scheme: timed(pool) for scheme, pool in manager.pool_classes_by_scheme.items()}
    return manager


def _decoded(body: bytes, coding: str) -> bytes | None:
    """Return the beginning of a body, decoded although no coding was requested; None if that is not possible."""
    if coding in {"", "identity"} or not body:
        return body
    for window in _WINDOWS.get(coding.removeprefix("x-"), ()):  # x-gzip: RFC 9110, section 8.4.1.3
        decoder = zlib.decompressobj(window)
        with suppress(zlib.error):
            decoded = decoder.decompress(body, _LIMIT)
            if decoder.eof or decoder.unconsumed_tail:
                return decoded
    return None


def observe_session(session: Any) -> None:
    """Make a session `note` what happens to each of its requests. A redirect is not followed, in no version of the SDK.

    It would change the POST to a GET, or send the telemetry to another host.
    """
    from requests import RequestException

    request = session.request
    if getattr(request, "is_observed", False):
        return

    def observed(method: str, url: str, **options: Any) -> Any:
        answers: list[Any] = []

        def keep(answer: Any, **_options: Any) -> None:
            answers.append(answer)

        own: dict[str, Any] = {"allow_redirects": False, "hooks": {"response": [*session.hooks["response"], keep]}}
        if isinstance(session.verify, str) and options.get("verify") is None:  # before REQUESTS_CA_BUNDLE
            own["verify"] = session.verify
        try:
            response = request(method, url, **{**options, **own})
        except Exception as error:
            # requests looks at the address of a redirect even if it is not followed, and raises if it is invalid
            if not answers or answers[-1].status_code not in _REDIRECTS:
                note(problem_of_error(error))
                if type(error) is OSError:  # of a file for TLS; older exporters know only the exceptions of requests
                    raise RequestException(*error.args) from error
                raise
            response = answers[-1]
        size = len(options.get("data") or b"")
        coding = getattr(response, "coding", "")  # another session decodes the body
        note(
            problem_of_response(response.status_code, response.headers, response.content, url, size=size, coding=coding)
        )
        return response

    vars(observed)["is_observed"] = True
    session.request = observed
