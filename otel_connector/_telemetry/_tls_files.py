"""Whether the files for TLS that the environment names can be used.

The SDK reads them without naming the variable of one that it cannot read, and gRPC ends the process for some of them.

Used by ``_telemetry._export_problem``, ``_telemetry._exporter_watch`` and ``_telemetry._sdk_variables``.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable
from pathlib import Path

from otel_connector._telemetry._variable_values import shown_value

OF_REQUESTS = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""The variables of which ``requests`` uses the first that is set, if ``OTEL_EXPORTER_OTLP_CERTIFICATE`` is unset."""


def unusable_file(names: Iterable[str]) -> str:
    """Return why the file that one of some variables names cannot be used; empty if all can."""
    for name in names:
        path = os.environ.get(name, "")
        try:
            if path:
                _read(path, is_client="_CLIENT_" in name)
        except OSError as error:
            reason = getattr(error, "reason", "").lower().replace("_", " ") or error.strerror
            file = f"{shown}: " if (shown := shown_value(name, path)) else ""
            return f"the file that {name} names cannot be used ({file}{reason})"
    return ""


def _read(path: str, *, is_client: bool) -> None:
    """Read the certificates of authorities, or open a file of the client, whose key may need a password."""
    if is_client:
        Path(path).open("rb").close()
    elif not Path(path).is_dir():  # requests accepts a folder
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
