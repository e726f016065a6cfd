"""A session of ``requests`` for the SDK's OTLP exporters: it reads the beginning of a response, and notes its meaning.

The exporters read the whole body of each response, and decompress it: a collector could fill the memory with it. They
use its status and its reason, so 64 KiB are enough. They report every response below 400 as a success, so the session
notes what a response means. This file does not know the SDK.

Used by ``_replay._replay``, ``_telemetry._exporter_watch`` and ``providers``.
"""

from __future__ import annotations

import io
import os
from typing import Any

from otel_connector._telemetry._export_problem import note
from otel_connector._telemetry._http_answers import problem_of_error, problem_of_response

_LIMIT = 64 * 1024  # bytes, not decompressed

_CODED = frozenset({"content-encoding", "content-length", "transfer-encoding"})  # these describe the whole body


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
            beginning: Any = HTTPResponse(
                io.BytesIO(body), headers, resp.status, reason=resp.reason, preload_content=False
            )
            return super().build_response(req, beginning)

    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"  # the body is not decompressed
    for scheme in ("http://", "https://"):
        session.mount(scheme, Bounded())
    observe_session(session)
    return session


def observe_session(session: Any) -> None:
    """Make a session `note` what happens to each of its requests. A redirect is not followed, in no version of the SDK.

    It would change the POST to a GET, or send the telemetry to another host.
    """
    request = session.request
    if getattr(request, "is_observed", False):
        return

    def observed(method: str, url: str, **options: Any) -> Any:
        try:
            response = request(method, url, **{**options, "allow_redirects": False})
        except Exception as error:
            note(problem_of_error(error, url))
            raise
        size = len(options.get("data") or b"")
        note(problem_of_response(response.status_code, response.headers, response.content, url, size))
        return response

    vars(observed)["is_observed"] = True
    session.request = observed
