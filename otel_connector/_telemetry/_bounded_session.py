"""A session of ``requests`` for the SDK's OTLP exporters: it reads the beginning of a response, and notes its meaning.

The exporters read the whole body of each response, and decompress it: a collector could fill the memory with it. They
use its status and its reason, so 64 KiB are enough, before and after decompression. They report every response below
400 as a success, so the session notes what a response means. This file does not know the SDK.

Used by ``_replay._replay``, ``_telemetry._exporter_watch`` and ``providers``.
"""

from __future__ import annotations

import io
import os
import zlib
from contextlib import suppress
from http import HTTPStatus
from typing import Any

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

    class Bounded(HTTPAdapter):
        def build_response(self, req: Any, resp: Any) -> requests.Response:
            body = resp.read(_LIMIT, decode_content=False)
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
    request = session.request
    if getattr(request, "is_observed", False):
        return

    def observed(method: str, url: str, **options: Any) -> Any:
        answers: list[Any] = []

        def keep(answer: Any, **_options: Any) -> None:
            answers.append(answer)

        hooks = {"response": [*session.hooks["response"], keep]}
        try:
            response = request(method, url, **{**options, "allow_redirects": False, "hooks": hooks})
        except Exception as error:
            # requests looks at the address of a redirect even if it is not followed, and raises if it is invalid
            if not answers or answers[-1].status_code not in _REDIRECTS:
                note(problem_of_error(error))
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
