"""A session of ``requests`` for the SDK's OTLP exporters that reads only the beginning of a response.

The exporters read the whole body of each response, and decompress it: a collector could fill the memory with it. They
use its status and its reason, so 64 KiB are enough. This file does not know the SDK.

Used by ``_replay._replay`` and ``providers``.
"""

from __future__ import annotations

import io
import os
from typing import Any

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
    for scheme in ("http://", "https://"):
        session.mount(scheme, Bounded())
    return session
