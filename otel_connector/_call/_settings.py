"""What all calls of a connector share: their settings, and the targets of recent calls.

This file does not know how calls are made.

Used by ``_call._call``, ``_call._resume`` and ``_connector``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
from yarl import URL

from otel_connector._call._retry import THROTTLING_STATUSES
from otel_connector._call._transport import resolve_url
from otel_connector._call._urls import host_of
from otel_connector._errors import ConnectorError, HTTPStatusError
from otel_connector._record import URL_LIMIT, one_line

if TYPE_CHECKING:
    from otel_connector._call._call_log import CallLogger
    from otel_connector._call._pacing import AdmissionControl
    from otel_connector._call._retry import RetryPolicy, RetryQuotas
    from otel_connector._clock import Clock
    from otel_connector._redact import Redactor
    from otel_connector._telemetry._call_span import UrlTelemetry
    from otel_connector._telemetry._spans import CallTelemetry

_TARGET_LIMIT = 128  # the size of yarl's cache of parsed URLs, which has the same purpose

_FIRST_SERVER_ERROR = 500  # RFC 9110, section 15.6


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """The settings that all calls of a connector share; `AsyncConnector` documents each parameter."""

    n_tries: int
    timeout: aiohttp.ClientTimeout
    step_timeout: aiohttp.ClientTimeout = field(init=False)
    deadline: float | None
    retry: RetryPolicy
    quotas: RetryQuotas | None
    max_body_bytes: int
    propagate: bool
    redactor: Redactor
    clock: Clock
    admission: AdmissionControl
    telemetry: CallTelemetry
    call_logger: CallLogger
    targets: dict[str, Target] = field(init=False, default_factory=dict[str, "Target"])
    """The targets of recent calls, by URL, because programs often request the same URLs again.

    Making a target takes 16 % of the instructions of a bare call.
    """

    def __post_init__(self) -> None:
        """Derive `step_timeout`, which aiohttp gets, from `timeout`."""
        object.__setattr__(self, "step_timeout", steps_of(self.timeout))

    def note_failure(self, error: ConnectorError, host: str, started: float) -> None:
        """Pause or admit the callers of the host that answered an attempt, which started at `started` and failed."""
        if isinstance(error, HTTPStatusError) and error.status in THROTTLING_STATUSES:
            self.admission.throttled(host, started, self.retry.pause(error))
        elif not self.admission.adaptive or (isinstance(error, HTTPStatusError) and error.status < _FIRST_SERVER_ERROR):
            # The server does not throttle. After a pause any other end admits further callers: they would wait for one
            # timeout after the other
            self.admission.succeeded(host, started)

    def target(self, session: aiohttp.ClientSession, url: Any, params: Any) -> Target:
        """Return the target of a call; raises what `resolve_url` raises."""
        resolved = resolve_url(session, url, params)
        shown = one_line(self.redactor.url(str(resolved)), URL_LIMIT)
        excluded = self.telemetry.contrib is not None and self.telemetry.contrib.excludes(resolved)
        url_telemetry = self.telemetry.for_url(shown, resolved.host, resolved.port, excluded=excluded)
        target = Target(resolved, shown, host_of(resolved), url_telemetry)
        # Only a str: a subclass may define equality. Only absolute URLs: they are the same in every session
        if type(url) is str and params is None and URL(url).absolute:
            if len(self.targets) >= _TARGET_LIMIT:
                self.targets.clear()
            self.targets[url] = target
        return target


def steps_of(timeout: aiohttp.ClientTimeout) -> aiohttp.ClientTimeout:
    """Return the limits of the steps of an attempt, for aiohttp; the whole is limited by `attempt`."""
    return aiohttp.ClientTimeout(
        total=None,
        connect=timeout.connect,
        sock_read=timeout.sock_read,
        sock_connect=timeout.sock_connect,
        ceil_threshold=timeout.ceil_threshold,
    )


@dataclass(slots=True, eq=False, repr=False)
class Target:
    """What a call requests.

    Attributes:
        url: The requested URL: absolute, `params` applied.
        shown: The same, redacted.
        host: ``host:port``, the key for pauses, limits and budgets.
        url_telemetry: The attributes and metric labels of the URL.
    """

    url: URL
    shown: str
    host: str
    url_telemetry: UrlTelemetry
