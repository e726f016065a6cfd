"""`configure()`, traces and metrics over OTLP for a program that has no OpenTelemetry SDK yet.

The SDK reads every ``OTEL_*`` variable itself; this file only says "OTLP" where the environment names no exporter, and
leaves the end of the program to ``_bounded_exit``. Nothing of the SDK is imported before `configure()` is called. Must
not know aiohttp nor ``_connector``: it serves any program.
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

from otel_connector._arguments import checked_seconds
from otel_connector._exit._before_exit import finish, interrupted
from otel_connector._exit._on_signal import checked_signals, finish_on
from otel_connector._telemetry._sdk_exit import Provider, Telemetry

__all__ = ["AttributeValue", "Telemetry", "configure"]

AttributeValue: TypeAlias = "str | bool | int | float"
"""What a resource attribute may hold here."""

_LAST_CHANCE = 0.1  # seconds for the collector, after a disk that took all of the time

# Taken by the first configure() and kept: the API's global providers can be set once in a process.
_claim = threading.Lock()


def configure(
    service_name: str | None = None,
    *,
    exit_timeout: float = 5.0,
    resource_attributes: Mapping[str, AttributeValue] | None = None,
    signals: Iterable[Signals] = (),
) -> Telemetry:
    """Give a program that has no OpenTelemetry SDK traces and metrics over OTLP.

    For a program's entry point, once in a process, never for a library::

        with configure("price-sync"):
            asyncio.run(main())

    The SDK reads all ``OTEL_*`` variables, ``OTEL_CONFIG_FILE`` and ``OTEL_SDK_DISABLED`` included, as
    ``opentelemetry-instrument`` would. The one thing that differs: where ``OTEL_TRACES_EXPORTER`` or
    ``OTEL_METRICS_EXPORTER`` is unset or empty, it is ``otlp``. Log records are exported if ``OTEL_LOGS_EXPORTER``
    asks for it.

    Args:
        service_name: ``service.name`` where the operator gives none; theirs (``OTEL_SERVICE_NAME``,
            ``OTEL_RESOURCE_ATTRIBUTES``, a resource detector) wins. ``None``: the SDK's ``unknown_service:...``.
        exit_timeout: Seconds the end of the program may be held for what is still to be sent, above 0.
        resource_attributes: Further attributes of the process; again the operator's win. A configuration file has
            a resource of its own: the SDK then ignores these and `service_name`, and logs that it does.
        signals: Signals, such as ``(signal.SIGTERM, signal.SIGHUP)``, after which every row that waits in memory is
            written and every span sent, within `exit_timeout`, before they do what they did so far: run the program's
            handler, or end it. Default none. In the main thread only; a handler that the program installs later takes
            their place, so call `configure` after that.

    Returns:
        The `Telemetry` to use in ``with``, or to keep for `Telemetry.force_flush`, or to drop.

    Raises:
        TypeError, ValueError: An argument is wrong; nothing was set up.
        RuntimeError: The process has a tracer or meter provider, or `configure` was called before, or the SDK
            does not know an exporter or a protocol that the environment names. Other errors of the SDK pass through.
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
    """Write the logs, which takes no time but on a disk that hangs, and send the rest in what is left of it.

    False, with nothing done, if a log is in the middle of being written by whom the signal has interrupted.
    """
    if interrupted():
        return False
    give_up = time.monotonic() + seconds
    finish(seconds)
    if not telemetry.force_flush(max(give_up - time.monotonic(), _LAST_CHANCE)):
        telemetry.gave_up_at = time.monotonic()
    return True


def _check_attributes(service_name: object, resource_attributes: object) -> dict[str, AttributeValue]:
    """Check the two arguments that describe the process, and make one mapping of them."""
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
        if not isinstance(service_name, str):
            raise TypeError(f"service_name must be str or None, not {type(service_name).__name__}")
        if not service_name.strip():
            raise ValueError("service_name must not be empty")
        if attributes.setdefault("service.name", service_name) != service_name:
            raise ValueError("service_name and resource_attributes['service.name'] differ; give one of them")
    return attributes


def _check_no_provider() -> None:
    """Refuse a process that has a provider, for the API would keep the old one and only log it."""
    from opentelemetry import metrics, trace

    for kind, api, provider, no_op in (
        ("tracer", trace, trace.get_tracer_provider(), trace.NoOpTracerProvider),
        ("meter", metrics, metrics.get_meter_provider(), metrics.NoOpMeterProvider),
    ):
        cls = type(provider)
        # The API's own proxy means "none yet"; its no-op is somebody's choice.
        if isinstance(provider, no_op) or not f"{cls.__module__}.".startswith(f"{api.__name__}."):
            raise RuntimeError(
                f"this process has a {kind} provider already ({cls.__module__}.{cls.__qualname__}): drop configure(),"
                " the connector uses the providers that are set"
            )


def _set_up(attributes: Mapping[str, AttributeValue]) -> dict[str, Provider]:
    """Let the SDK configure itself, and take its providers' exit handlers away."""
    from opentelemetry.sdk._configuration import _OTelSDKConfigurator  # pyright: ignore[reportPrivateUsage]
    from opentelemetry.sdk.resources import Resource

    class Configurator(_OTelSDKConfigurator):  # to be subclassed, its docstring says, not to be used itself
        pass

    old = _api_providers()
    operators = Resource.create().attributes
    wanted = {key: value for key, value in attributes.items() if not _is_given(operators, key)}
    try:
        with _otlp_by_default():
            configurator: Any = cast("Any", Configurator)()
            configurator.configure(**({"resource_attributes": wanted} if wanted else {}))
    except BaseException:
        for provider in _new_providers(old).values():
            provider.shutdown()  # nothing to send yet
        raise
    return _new_providers(old)


def _is_given(operators: Mapping[str, object], key: str) -> bool:
    value = operators.get(key)
    if key == "service.name":  # the SDK puts a name of its own where nobody gave one
        return not str(value).startswith("unknown_service")
    return value is not None


def _api_providers() -> dict[str, object]:
    from opentelemetry import _logs, metrics, trace

    return {
        "traces": trace.get_tracer_provider(),
        "metrics": metrics.get_meter_provider(),
        "logs": _logs.get_logger_provider(),
    }


def _new_providers(old: Mapping[str, object]) -> dict[str, Provider]:
    """Return the providers set since `old`, no longer registered to run, without bound, when the interpreter exits."""
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
    """Name OTLP as the exporter of traces and metrics for as long as the SDK looks, where the environment has none.

    An empty variable counts as unset (OpenTelemetry specification, "Environment Variable Specification").
    """
    from opentelemetry.environment_variables import OTEL_METRICS_EXPORTER, OTEL_TRACES_EXPORTER

    before = {name: os.environ.get(name) for name in (OTEL_TRACES_EXPORTER, OTEL_METRICS_EXPORTER)}
    unset = [name for name, value in before.items() if not value]
    os.environ.update(dict.fromkeys(unset, "otlp"))
    try:
        yield
    finally:
        for name in unset:
            if (value := before[name]) is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
