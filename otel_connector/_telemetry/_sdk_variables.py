"""What the SDK reads while it is set up: an empty variable counts as unset, and an error names its variable.

The errors of the SDK have the value of a variable, or the name of an option, and rarely the name of the variable. This
file does not interpret the variables: it compares their names and values with the text of the error. Log lines of the
SDK repeat values as well: from the first set-up on, they have no secrets.

Used by ``_replay._replay``, ``cli._demo_command`` and ``providers``.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points

from otel_connector._redact import REDACTED
from otel_connector._telemetry._tls_files import unusable_file
from otel_connector._telemetry._variable_values import shown_value, without_secrets

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
    (r"OTEL_PYTHON_TRACER_PROVIDER", "default_tracer_provider"),
    (r"OTEL_PYTHON_METER_PROVIDER", "default_meter_provider"),
    (r"\w+_(?:CERTIFICATE|CLIENT_KEY)", "a file in PEM format"),
)
_IGNORED = "{} has an entry that is ignored: it is not name=value{}. Write name=value,name=value, and {} in a value."

# The beginnings of two lines of the SDK, whose first argument is an entry: the variables that can have it, and the rest
_ENTRIES = {
    "Header format invalid": (
        re.compile(r"OTEL_EXPORTER_OTLP_(?:\w+_)?HEADERS"),
        (", or has a character that must be percent-encoded", "%20 for a space"),
    ),
    "Invalid key value resource": (re.compile(r"OTEL_RESOURCE_ATTRIBUTES"), ("", "%2C for a comma")),
}
_BATCH_AND_QUEUE = "{0}_MAX_EXPORT_BATCH_SIZE (default: 512) to at most {0}_MAX_QUEUE_SIZE (default: 2048)"
_CERTIFICATE = re.compile(r"OTEL_EXPORTER_OTLP_(?:TRACES_|METRICS_|LOGS_)?CERTIFICATE")
_HTTP = "opentelemetry.exporter.otlp.proto.http"
_LOGGERS = (  # those that repeat values; a filter of a logger does not apply to its children
    *("opentelemetry.util.re", "opentelemetry.sdk.resources", "opentelemetry.sdk._configuration"),
    *("opentelemetry.exporter.otlp.proto.grpc.exporter", f"{_HTTP}._common", f"{_HTTP}.trace_exporter"),
    *(f"{_HTTP}.metric_exporter", f"{_HTTP}._log_exporter", "opentelemetry.sdk._shared_internal"),
    *("opentelemetry.sdk.metrics._internal.export", "opentelemetry.sdk.trace.export"),
)


class _SafeLines(logging.Filter):
    """Removes the secrets of the variables from log lines, and logs each entry that is ignored once in a set-up."""

    logged: set[str]

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        for start, (variables, words) in _ENTRIES.items():
            if text.startswith(start) and isinstance(record.args, tuple):
                entry = str(record.args[0])
                names = (name for name, value in os.environ.items() if variables.fullmatch(name) and entry in value)
                line = _IGNORED.format(" or ".join(sorted(names)) or "An option of an exporter", *words)
                record.msg, record.args = line, ()
                is_new = line not in self.logged
                self.logged.add(line)
                return is_new
        if (safe := without_secrets(text)) != text:
            record.msg, record.args = safe, ()
        return True


_safe_lines = _SafeLines()


@contextmanager
def sdk_variables() -> Generator[None]:
    """Set up the SDK in this block. In it, empty variables are unset (OpenTelemetry specification, "Empty value").

    Raises:
        ImportError: As the block.
        ValueError, TypeError, OSError: The block raised one of these. The message names the variable.
        RuntimeError: The block raised another exception. The message names the variable.
    """
    _safe_lines.logged = set()
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_safe_lines)
    empty = [name for name, value in os.environ.items() if name.startswith("OTEL_") and not value]
    for name in empty:
        del os.environ[name]
    try:
        _check()
        yield
    except ImportError:
        raise
    except Exception as error:
        family = next((each for each in _FAMILIES if isinstance(error, each)), RuntimeError)
        raise family(_explained(error, os.environ)) from error
    finally:
        os.environ.update(dict.fromkeys(empty, ""))


def check_variables() -> None:
    """Raise the error of `sdk_variables` for a value that can be checked before the SDK, or the API, reads it."""
    with sdk_variables():
        pass


def _check() -> None:
    """Raise for values for which the SDK would raise StopIteration, or gRPC would end the process."""
    for kind in ("tracer", "meter", "logger"):
        value = os.environ.get(f"OTEL_PYTHON_{kind.upper()}_PROVIDER")
        if value and not entry_points(group=f"opentelemetry_{kind}_provider", name=value):
            raise ValueError(f"no {kind} provider {value!r} is installed")
    prefixes = {name.removesuffix("CERTIFICATE") for name in os.environ if _CERTIFICATE.fullmatch(name)}
    names = (f"{prefix}CLIENT_{kind}" for prefix in sorted(prefixes) for kind in ("CERTIFICATE", "KEY"))
    if why := unusable_file(names):
        raise OSError(why)


def _explained(error: Exception, environ: Mapping[str, str]) -> str:
    """Return the message of an error of the SDK, with the variables that it is about."""
    values = {name: value for name, value in sorted(environ.items()) if name.startswith("OTEL_")}
    text = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else str(error)
    names = _named_in(text, values)
    text = " ".join(without_secrets(text).split()).rstrip(".")
    if not names:
        known = ", ".join(values)
        return f"{text}. The variable is not known; these are set: {known}." if known else text
    settings = " or ".join(f"{name}={shown_value(name, values[name]) or REDACTED}" for name in names)
    expected = {_expected(name) for name in names}
    if "equal to max_queue_size" in text:
        remedy = " or ".join(dict.fromkeys(_BATCH_AND_QUEUE.format(name.partition("_MAX_")[0]) for name in names))
        return f"{settings} is not accepted: {text}. Set {remedy}."
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
