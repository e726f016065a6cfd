"""What the SDK reads while it is set up: an empty variable counts as unset, and an error names its variable.

The errors of the SDK have the value of a variable, or the name of an option, and rarely the name of the variable. This
file does not interpret the variables: it compares their names and values with the text of the error. It also decides
which values may be shown.

Used by ``_doctor``, ``_replay._replay`` and ``providers``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points

from otel_connector._redact import REDACTED, Redactor
from otel_connector._telemetry._export_problem import origin_of

_CONFIG_FILE = "OTEL_CONFIG_FILE"  # replaces the other variables
_FAMILIES = (ValueError, TypeError, OSError)
_OPTION = re.compile(r"[a-z]+(?:_[a-z]+)+")  # a parameter of the SDK, such as max_queue_size
_EXPECTED = (
    (r"OTEL_CONFIG_FILE", "a configuration file of the SDK"),
    (r"\w+_ENDPOINT", "http://host:port or https://host:port"),
    (r"\w+_PROTOCOL", "grpc or http/protobuf"),
    (r"\w+_COMPRESSION", "gzip"),
    (r"OTEL_EXPORTER_OTLP_\w*TIMEOUT", "a number of seconds, such as 10"),
    (r"\w+_(?:INTERVAL|DELAY|TIMEOUT)", "a number of milliseconds above 0"),
    (r"\w+_(?:SIZE|LIMIT)", "a whole number above 0"),
    (r"OTEL_PYTHON_ID_GENERATOR", "random"),
)

# The variables whose values are known to be no secrets
_NO_SECRET = re.compile(
    "OTEL_("
    "(EXPORTER_OTLP|EXPORTER_OTLP_TRACES|EXPORTER_OTLP_METRICS|EXPORTER_OTLP_LOGS|EXPORTER_PROMETHEUS|BSP|BLRP|METRIC)"
    "_(PROTOCOL|TIMEOUT|COMPRESSION|INSECURE|CERTIFICATE|CLIENT_CERTIFICATE|TEMPORALITY_PREFERENCE|HOST|PORT"
    "|DEFAULT_HISTOGRAM_AGGREGATION|SCHEDULE_DELAY|MAX_QUEUE_SIZE|MAX_EXPORT_BATCH_SIZE|EXPORT_TIMEOUT|EXPORT_INTERVAL)"
    "|(TRACES|METRICS|LOGS)_EXPORTER|TRACES_SAMPLER|TRACES_SAMPLER_ARG|SERVICE_NAME|SDK_DISABLED|PROPAGATORS"
    "|CONFIG_FILE|LOG_LEVEL|METRICS_EXEMPLAR_FILTER|EXPERIMENTAL_RESOURCE_DETECTORS"
    r"|PYTHON_(ID_GENERATOR|\w+_CODES)|(\w+_)?(COUNT_LIMIT|LENGTH_LIMIT)|CONNECTOR_CSV_PATH|CONNECTOR_CSV_SPANS)"
)
_ORIGIN = re.compile(r"(?:[a-z][a-z0-9+.-]*://)?(?:[\w.-]+|\[[0-9a-f:.]+\])(?::[0-9]+)?", re.IGNORECASE)


def shown_value(name: str, value: str) -> str | None:
    """Return the value of a variable if it is known to be no secret; of an endpoint its origin."""
    is_endpoint = name.endswith("_ENDPOINT")
    shown = origin_of(value) if is_endpoint else value
    is_safe = _ORIGIN.fullmatch(shown) if is_endpoint else _NO_SECRET.fullmatch(name)
    return Redactor().text(shown) if is_safe else None


@contextmanager
def sdk_variables() -> Generator[None]:
    """Set up the SDK in this block. In it, empty variables are unset (OpenTelemetry specification, "Empty value").

    Raises:
        ImportError: As the block.
        ValueError, TypeError, OSError: The block raised one of these. The message names the variable.
        RuntimeError: The block raised another exception. The message names the variable.
    """
    empty = [name for name, value in os.environ.items() if name.startswith("OTEL_") and not value]
    for name in empty:
        del os.environ[name]
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        family = next((each for each in _FAMILIES if isinstance(error, each)), RuntimeError)
        raise family(_explained(error, os.environ)) from error
    finally:
        os.environ.update(dict.fromkeys(empty, ""))


def _explained(error: Exception, environ: Mapping[str, str]) -> str:
    """Return the message of an error of the SDK, with the variables that it is about."""
    values = {name: value for name, value in sorted(environ.items()) if name.startswith("OTEL_")}
    text = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else str(error)
    names = _named_in(text, values)
    for name, value in values.items():
        text = text.replace(value, shown_value(name, value) or REDACTED)
    text = Redactor().text(" ".join(text.split())).rstrip(".")
    if not names:
        known = ", ".join(values)
        return f"{text}. The variable is not known; these are set: {known}." if known else text
    settings = " or ".join(f"{name}={shown_value(name, values[name]) or REDACTED}" for name in names)
    expected = {_expected(name) for name in names}
    remedy = f"Set it to {expected.pop()}, or unset it" if len(expected) == 1 else "Correct it, or unset it"
    return f"{settings} is not accepted: {text}. {remedy}."


def _named_in(text: str, values: Mapping[str, str]) -> list[str]:
    """Return the variables that a text is about: by name, by a value in quotes, by option, or by a value."""
    if _CONFIG_FILE in values:
        return [_CONFIG_FILE]
    options = tuple(option.removesuffix("_millis") for option in _OPTION.findall(text))
    found: list[list[str]] = [[], [], [], []]
    for name, value in values.items():
        parts = "|".join(re.escape(part.strip()) for part in value.split(",") if part.strip()) or r"\Z."
        for number, is_meant in enumerate(
            (
                re.search(rf"\b{name}\b", text),
                re.search(rf"(['\"])(?:{parts})\1", text, re.IGNORECASE),
                options and name.lower().endswith(options),
                re.search(rf"(?<![\w.-])(?:{parts})(?!\w)", text, re.IGNORECASE),
            )
        ):
            if is_meant:
                found[number].append(name)
    return next(filter(None, found), found[0])


def _expected(name: str) -> str:
    """Return what a variable accepts."""
    if match := re.fullmatch(r"OTEL_(TRACES|METRICS|LOGS)_EXPORTER", name):
        installed = {each.name for each in entry_points(group=f"opentelemetry_{match[1].lower()}_exporter")}
        return f"{', '.join(sorted(installed))} or none"
    return next((expected for pattern, expected in _EXPECTED if re.fullmatch(pattern, name)), "another value")
