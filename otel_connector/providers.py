"""`configure()`: traces and metrics over OTLP for a program that has no OpenTelemetry SDK yet.

The SDK reads all ``OTEL_*`` variables itself. This file only selects OTLP if no exporter is named, and limits the time
that the SDK may take at the end of the program. It imports the SDK only when `configure()` is called. It does not know
aiohttp or the connector, and serves any program.

Used by applications, ``__init__``, ``cli._demo_command``, ``cli._doctor_command`` and ``cli._fetch_command``.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import partial
from signal import Signals
from typing import Any, TypeAlias, cast

from otel_connector._arguments import checked_seconds, checked_text
from otel_connector._exit._before_exit import finish, interrupted
from otel_connector._exit._on_signal import checked_signals, finish_on
from otel_connector._telemetry._bounded_session import session_options
from otel_connector._telemetry._call_ids import new_span_id, new_trace_id
from otel_connector._telemetry._sdk_exit import Provider, Telemetry
from otel_connector._telemetry._sdk_variables import sdk_variables

__all__ = ["AttributeValue", "Telemetry", "configure"]

AttributeValue: TypeAlias = "str | bool | int | float"
"""A value of a resource attribute."""

_MIN_FLUSH_SECONDS = 0.1  # for the collector, if the disk took all of the time

# Acquired by the first configure() and never released: the global providers can be set only once in a process
_claim = threading.Lock()


def configure(
    service_name: str | None = None,
    *,
    exit_timeout: float = 5.0,
    resource_attributes: Mapping[str, AttributeValue] | None = None,
    signals: Iterable[Signals] = (),
) -> Telemetry:
    """Set up traces and metrics over OTLP, for a program that has no OpenTelemetry SDK.

    Call it once, at the entry point of a program, never in a library:

    ```python
    with configure("price-sync"):
        asyncio.run(main())
    ```

    The SDK reads all ``OTEL_*`` variables, including ``OTEL_CONFIG_FILE`` and ``OTEL_SDK_DISABLED``, as
    ``opentelemetry-instrument`` does. There is one difference: if ``OTEL_TRACES_EXPORTER`` or ``OTEL_METRICS_EXPORTER``
    is unset or empty, it is ``otlp``. Any other empty variable counts as unset, too. Log records are exported only if
    ``OTEL_LOGS_EXPORTER`` is set.

    Args:
        service_name: ``service.name``, unless the operator sets one (``OTEL_SERVICE_NAME``,
            ``OTEL_RESOURCE_ATTRIBUTES``, a resource detector). None (the default): the SDK's ``unknown_service:...``.
        exit_timeout: Maximum number of seconds, above 0, that the export may delay the end of the program.
        resource_attributes: Further attributes of the process. The operator's override them, too. A configuration file
            has a resource of its own: the SDK then ignores these and `service_name`, and logs that.
        signals: Signals, such as ``(signal.SIGTERM, signal.SIGHUP)``. When one arrives, all rows in memory are written
            and all spans are sent, within `exit_timeout`. Then the previous handler runs, or the program ends. Default:
            none. Only in the main thread. A handler that the program installs later replaces this one, so call
            `configure` after that.

    Returns:
        The `Telemetry`. Use it in ``with``, keep it for `Telemetry.force_flush`, or ignore it.

    Raises:
        TypeError, ValueError: An argument is wrong. Nothing was set up.
        RuntimeError: The process has a tracer or meter provider, or `configure` was called before, or the SDK does not
            know an exporter or a protocol that the environment names.
        ValueError, TypeError, OSError: The SDK does not accept the value of a variable. The message names it.
    """
    attributes = _check_attributes(service_name, resource_attributes)
    exit_timeout = min(checked_seconds("exit_timeout", exit_timeout, positive=True), threading.TIMEOUT_MAX)
    signals = checked_signals(signals)
    if not _claim.acquire(blocking=False):
        raise RuntimeError("configure() was called before in this process; call it once, where the program starts")
    try:
        _check_no_provider()
        telemetry = Telemetry(_set_up(attributes), exit_timeout)
    except BaseException:
        _claim.release()
        raise
    finish_on(signals, partial(_finish_all, telemetry, exit_timeout))
    return telemetry


def _finish_all(telemetry: Telemetry, seconds: float) -> bool:
    """Write the logs, and send the rest in the remaining time. Writing takes long only if the disk hangs.

    Return False and do nothing if the signal has interrupted the write of a row.
    """
    if interrupted():
        return False
    deadline = time.monotonic() + seconds
    finish(seconds)
    telemetry.flush_before_signal(max(deadline - time.monotonic(), _MIN_FLUSH_SECONDS))
    return True


def _check_attributes(service_name: object, resource_attributes: object) -> dict[str, AttributeValue]:
    """Check the two arguments that describe the process, and merge them."""
    if resource_attributes is not None and not isinstance(resource_attributes, Mapping):
        raise TypeError(f"resource_attributes must be a mapping, not {type(resource_attributes).__name__}")
    attributes: dict[str, AttributeValue] = {}
    for key, value in cast("Mapping[object, object]", resource_attributes or {}).items():
        if not isinstance(key, str):
            raise TypeError(f"resource_attributes: a key must be str, not {type(key).__name__}")
        if not key:
            raise ValueError("resource_attributes: a key must not be empty")
        if not isinstance(value, (str, bool, int, float)):
            raise TypeError(f"resource_attributes[{key!r}] must be str, bool, int or float, not {type(value).__name__}")
        attributes[key] = value
    if service_name is not None:
        name = checked_text("service_name", service_name)
        if attributes.setdefault("service.name", name) != name:
            raise ValueError("service_name and resource_attributes['service.name'] differ; give one of them")
    return attributes


def _check_no_provider() -> None:
    """Raise if a provider is set: the API would keep it and only log a warning."""
    from opentelemetry import metrics, trace

    found = _api_providers()
    for kind, api, provider, no_op in (
        ("tracer", trace, found["traces"], trace.NoOpTracerProvider),
        ("meter", metrics, found["metrics"], metrics.NoOpMeterProvider),
    ):
        cls = type(provider)
        # The API's proxy means that none is set. The application has chosen the no-op provider
        if isinstance(provider, no_op) or not f"{cls.__module__}.".startswith(f"{api.__name__}."):
            raise RuntimeError(
                f"this process already has a {kind} provider ({cls.__module__}.{cls.__qualname__}): do not call"
                " configure(), the connector uses the providers that are set"
            )


def _set_up(attributes: Mapping[str, AttributeValue]) -> dict[str, Provider]:
    """Make the SDK configure itself, and unregister the exit handlers of its providers."""
    options: dict[str, object] = {"exporter_args_map": _ExporterOptions()}
    old = _api_providers()
    try:
        with sdk_variables(), _otlp_by_default():
            from opentelemetry.sdk._configuration import (  # reads variables while it is imported
                _OTelSDKConfigurator,  # pyright: ignore[reportPrivateUsage]
            )
            from opentelemetry.sdk.resources import Resource

            class Configurator(_OTelSDKConfigurator):  # its docstring requires a subclass
                pass

            detected = Resource.create().attributes
            if added := {key: value for key, value in attributes.items() if not _is_set(detected, key)}:
                options["resource_attributes"] = added
            if not {"OTEL_PYTHON_ID_GENERATOR", "OTEL_CONFIG_FILE"} & os.environ.keys():
                options["id_generator"] = _id_generator()
            configurator: Any = cast("Any", Configurator)()
            configurator.configure(**options)
    except BaseException:
        for provider in _new_providers(old).values():
            provider.shutdown()
        raise
    return _new_providers(old)


class _ExporterOptions(dict[type, dict[str, Any]]):
    """The options of each exporter that the SDK creates. It does not import one that the environment does not name."""

    def __bool__(self) -> bool:
        return True  # the SDK replaces an empty mapping

    def get(self, exporter: type, default: Any = None) -> Any:
        over_http = exporter.__module__.startswith("opentelemetry.exporter.otlp.proto.http.")
        return session_options() if over_http else default


def _id_generator() -> object:
    """Return a generator of ids that `random.seed` does not influence; that of the SDK draws from `random`."""
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class OwnIds(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            return new_trace_id()

        def generate_span_id(self) -> int:
            return new_span_id()

    return OwnIds()


def _is_set(detected: Mapping[str, object], key: str) -> bool:
    """Return whether the operator has set a resource attribute."""
    value = detected.get(key)
    if key == "service.name":  # the SDK's default
        return not str(value).startswith("unknown_service")
    return value is not None


def _api_providers() -> dict[str, object]:
    from opentelemetry import _logs, metrics, trace

    with sdk_variables():
        return {
            "traces": trace.get_tracer_provider(),
            "metrics": metrics.get_meter_provider(),
            "logs": _logs.get_logger_provider(),
        }


def _new_providers(old: Mapping[str, object]) -> dict[str, Provider]:
    """Return the providers set since `old`, after removing their exit handlers, which have no time limit."""
    new = {
        name: cast("Provider", provider)
        for name, provider in _api_providers().items()
        if provider is not old[name] and hasattr(provider, "shutdown") and hasattr(provider, "force_flush")
    }
    for provider in new.values():
        atexit.unregister(provider.shutdown)
    return new


@contextmanager
def _otlp_by_default() -> Generator[None, None, None]:
    """Select OTLP as the exporter of traces and metrics in this block, if the environment names none."""
    from opentelemetry.environment_variables import OTEL_METRICS_EXPORTER, OTEL_TRACES_EXPORTER

    unset = [name for name in (OTEL_TRACES_EXPORTER, OTEL_METRICS_EXPORTER) if name not in os.environ]
    os.environ.update(dict.fromkeys(unset, "otlp"))
    try:
        yield
    finally:
        for name in unset:
            os.environ.pop(name, None)
