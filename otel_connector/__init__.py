"""Reliable async HTTP GETs, each recorded as one OpenTelemetry span, one metric set and one CSV row.

`AsyncConnector` retries failed attempts and records each call: the row and the span have the same ten fields, and the
metrics count calls by project, host, status and success. This file only lists the public names; it knows nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_connector._bulk import Outcome, Outcomes, Resumed
from otel_connector._call._retry import RetryBudget, RetryPolicy
from otel_connector._connector import AsyncConnector
from otel_connector._connector_stats import ConnectorStats
from otel_connector._errors import (
    AttemptTimeout,
    BodyError,
    BodyTooLarge,
    BodyTruncated,
    CertificateRejected,
    ConnectFailed,
    ConnectorError,
    DeadlineExceeded,
    DecodeFailed,
    HTTPStatusError,
    InvalidURL,
    MalformedResponse,
    ProxyRefused,
    RateLimiterFailed,
    RedirectRefused,
    RetryBudgetExhausted,
    RetryRefused,
    SessionClosed,
)
from otel_connector._record import COLUMNS, Attempt, CallRecord
from otel_connector._redact import DEFAULT_REDACTED_PARAMS
from otel_connector._version import __version__

if TYPE_CHECKING:
    from otel_connector._fetch._chunk import Chunk, ChunkReport, fetch_chunk
    from otel_connector.csv_exporter import CSVSpanExporter, CSVSpanProcessor
    from otel_connector.providers import configure

__all__ = [
    "COLUMNS",
    "DEFAULT_REDACTED_PARAMS",
    "AsyncConnector",
    "Attempt",
    "AttemptTimeout",
    "BodyError",
    "BodyTooLarge",
    "BodyTruncated",
    "CSVSpanExporter",
    "CSVSpanProcessor",
    "CallRecord",
    "CertificateRejected",
    "Chunk",
    "ChunkReport",
    "ConnectFailed",
    "ConnectorError",
    "ConnectorStats",
    "DeadlineExceeded",
    "DecodeFailed",
    "HTTPStatusError",
    "InvalidURL",
    "MalformedResponse",
    "Outcome",
    "Outcomes",
    "ProxyRefused",
    "RateLimiterFailed",
    "RedirectRefused",
    "Resumed",
    "RetryBudget",
    "RetryBudgetExhausted",
    "RetryPolicy",
    "RetryRefused",
    "SessionClosed",
    "__version__",
    "configure",
    "fetch_chunk",
]

# Loaded on first use: they import the SDK or files for chunks, which a program that only makes calls does not need
_LAZY = {
    "Chunk": "otel_connector._fetch._chunk",
    "ChunkReport": "otel_connector._fetch._chunk",
    "CSVSpanExporter": "otel_connector.csv_exporter",
    "CSVSpanProcessor": "otel_connector.csv_exporter",
    "configure": "otel_connector.providers",
    "fetch_chunk": "otel_connector._fetch._chunk",
}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        from importlib import import_module

        value = getattr(import_module(_LAZY[name]), name)
        value.__module__ = __name__
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


def _name_as_public() -> None:
    """Make tracebacks, error.type and the log show the public names, not the private files."""
    for name in __all__:
        if name not in _LAZY and isinstance(globals()[name], type):
            globals()[name].__module__ = __name__


_name_as_public()
