"""What a message may show of the ``OTEL_*`` variables: their values, endpoints, and texts of the SDK that repeat them.

Does not know what the variables mean, except which of them can have secrets.

Used by ``_doctor``, ``_telemetry`` and ``cli``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from urllib.parse import unquote

from otel_connector._redact import REDACTED, Redactor

# The variables whose values are known to be no secrets
_NO_SECRET = re.compile(
    "OTEL_("
    "(EXPORTER_OTLP|EXPORTER_OTLP_TRACES|EXPORTER_OTLP_METRICS|EXPORTER_OTLP_LOGS|EXPORTER_PROMETHEUS|BSP|BLRP|METRIC)"
    "_(PROTOCOL|TIMEOUT|COMPRESSION|INSECURE|CERTIFICATE|CLIENT_CERTIFICATE|TEMPORALITY_PREFERENCE|HOST|PORT"
    "|DEFAULT_HISTOGRAM_AGGREGATION|SCHEDULE_DELAY|MAX_QUEUE_SIZE|MAX_EXPORT_BATCH_SIZE|EXPORT_TIMEOUT|EXPORT_INTERVAL)"
    "|(TRACES|METRICS|LOGS)_EXPORTER|TRACES_SAMPLER|TRACES_SAMPLER_ARG|SERVICE_NAME|SDK_DISABLED|PROPAGATORS"
    "|CONFIG_FILE|LOG_LEVEL|METRICS_EXEMPLAR_FILTER|EXPERIMENTAL_RESOURCE_DETECTORS"
    r"|PYTHON_(CONTEXT|ID_GENERATOR|(TRACER|METER|LOGGER)_PROVIDER|\w+_CODES)|(\w+_)?(COUNT_LIMIT|LENGTH_LIMIT)"
    "|CONNECTOR_CSV_PATH|CONNECTOR_CSV_SPANS)"
)
_TARGET = re.compile(r"(?:unix(?:-abstract)?:|dns:///)[\w./:-]+")  # of gRPC (gRPC Name Resolution)
_ORIGIN = re.compile(
    rf"{_TARGET.pattern}|(?:[a-z][a-z0-9+.-]*://)?(?:[\w.-]+|\[[0-9a-f:.]+\])(?::[0-9]+)?", re.IGNORECASE
)
_MIN_LENGTH = 6  # characters of a secret; shorter values, such as "1" and "true", are words of other texts


def origin_of(url: str) -> str:
    """Return the scheme, the host and the port of a URL, which a message may show; a target of gRPC as it is."""
    if _TARGET.fullmatch(url):
        return url
    scheme, separator, _ = url.partition("://")
    return f"{scheme.rpartition('@')[2]}{separator}{address_of(url)}" if separator else address_of(url)


def address_of(url: str) -> str:
    """Return the host and the port of a URL, with or without a scheme."""
    rest = url.partition("://")[2] if "://" in url else url.removeprefix("//")
    for mark in "/?#":
        rest = rest.partition(mark)[0]
    return rest.rpartition("@")[2]


def shown_value(name: str, value: str) -> str | None:
    """Return the value of a variable if it is known to be no secret; of an endpoint its origin."""
    is_endpoint = name.endswith("_ENDPOINT")
    shown = origin_of(value) if is_endpoint else value
    is_safe = _ORIGIN.fullmatch(shown) if is_endpoint else _NO_SECRET.fullmatch(name)
    return Redactor().text(shown) if is_safe else None


def without_secrets(text: str) -> str:
    """Return a text without the secrets of the variables: the SDK, and receivers, repeat values or parts of them."""
    found: dict[str, str] = {}
    for name, value in os.environ.items():
        if value and name.startswith("OTEL_") and (shown := shown_value(name, value)) != value:
            parts = {value: shown or REDACTED, **dict.fromkeys(_parts(name, value), REDACTED)}
            found |= {part.lower(): to for each, to in parts.items() if len(part := each.strip()) >= _MIN_LENGTH}
    if found:
        any_part = "|".join(map(re.escape, sorted(found, key=len, reverse=True)))
        text = re.sub(rf"(?<!\w)(?:{any_part})(?!\w)", lambda match: found[match[0].lower()], text, flags=re.IGNORECASE)
    return Redactor().text(text)


def _parts(name: str, value: str) -> Iterator[str]:
    """Yield the parts of a value that a text can have without the rest: entries of a list, or parts of a URL."""
    if name.endswith("_ENDPOINT"):
        user, _, rest = (value.partition("://")[2] or value).partition(address_of(value) or value)
        yield from (user.strip("@/"), rest.strip("/?#"))
        return
    for entry in value.split(","):
        yield entry
        if name.endswith("_HEADERS"):  # an error about a value has it decoded, and escapes what cannot be printed
            yield from re.split(r"[^\x20-\x7e]+", unquote(entry.partition("=")[2]))
