"""The environment variables of contrib's aiohttp instrumentation that apply to the connector's spans as well.

These are the headers to capture and to sanitize, and the URLs to exclude. They are read and applied by the functions of
contrib (opentelemetry-python-contrib) itself, from the package ``opentelemetry-util-http``; without it, they have no
effect. This file does not know spans.

Used by ``_telemetry._spans``.
"""

from __future__ import annotations

import logging
import os
import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar

from multidict import CIMultiDict
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Callable

    from multidict import MultiMapping
    from opentelemetry.util.types import AttributeValue

    from otel_connector._guard import TelemetryGuard

_logger = logging.getLogger("otel_connector")

_CAPTURE = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_"
_REQUEST: Final = _CAPTURE + "CLIENT_REQUEST"
_RESPONSE: Final = _CAPTURE + "CLIENT_RESPONSE"
_SANITIZE: Final = _CAPTURE + "SANITIZE_FIELDS"
_EXCLUDED: Final = "OTEL_PYTHON_AIOHTTP_CLIENT_EXCLUDED_URLS"
_EXCLUDED_BY_ALL: Final = "OTEL_PYTHON_EXCLUDED_URLS"

_Value = TypeVar("_Value")


def contrib_settings(guard: TelemetryGuard) -> ContribSettings | None:
    """Return the settings of the environment; None if there are none, or without contrib's package.

    Args:
        guard: Receives the exceptions of contrib's functions.
    """
    if not any(map(os.environ.get, (_REQUEST, _RESPONSE, _EXCLUDED, _EXCLUDED_BY_ALL))):
        return None
    with guard.guarded("reading the settings of contrib"):
        try:
            helpers: Any = import_module("opentelemetry.util.http")
        except ImportError:
            return None
        return ContribSettings(helpers, guard)
    return None


class ContribSettings:
    """The headers to capture, and the URLs to exclude.

    Args:
        helpers: The module of contrib's functions.
        guard: Receives their exceptions.
    """

    def __init__(self, helpers: Any, guard: TelemetryGuard) -> None:
        self._guard = guard
        excluded = _EXCLUDED if _EXCLUDED in os.environ else _EXCLUDED_BY_ALL
        self._excluded: Any = _read(excluded, "no URL is excluded", lambda: helpers.get_excluded_urls("AIOHTTP_CLIENT"))

        def patterns(name: str, effect: str) -> list[str] | None:
            def read() -> list[str]:
                found: list[str] = helpers.get_custom_headers(name)
                re.compile("|".join(found))  # as contrib does at each request
                return found

            return _read(name, effect, read)

        sanitize = patterns(_SANITIZE, "no headers are captured")
        self._sanitize: Any = helpers.SanitizeValue(sanitize or ())
        self._request = self._response = None
        if sanitize is not None:
            self._request = patterns(_REQUEST, "no request headers are captured")
            self._response = patterns(_RESPONSE, "no response headers are captured")
        self._request_name: Callable[[str], str] = helpers.normalise_request_header_name
        self._response_name: Callable[[str], str] = helpers.normalise_response_header_name

    def excludes(self, url: URL) -> bool:
        """Return whether there is no telemetry of a call for this URL, with `params` applied and not redacted."""
        with self._guard.guarded("looking for the URL in the excluded ones"):
            # Contrib compares what aiohttp makes of a text, which has fewer escapes
            return self._excluded is not None and self._excluded.url_disabled(str(URL(str(url))))
        return False

    def request_headers(self, session: MultiMapping[str], own: MultiMapping[str] | None) -> dict[str, AttributeValue]:
        """Return the attributes of the headers that the caller gives.

        As in contrib, the headers that aiohttp adds (``Host``, ``Cookie``, ``User-Agent``) are not among them.

        Args:
            session: Those of the session.
            own: Those of the call, which replace them; None for none.
        """
        if not self._request:
            return {}
        headers, names = CIMultiDict(session), set[str]()
        for name, value in (own or {}).items():  # as aiohttp: a name in another case replaces the one before
            (headers.add if name in names else headers.__setitem__)(name, value)
            names.add(name)
        return self._captured(headers, self._request, self._request_name)

    def response_headers(self, headers: MultiMapping[str]) -> dict[str, AttributeValue]:
        """Return the attributes of the headers of a response."""
        return self._captured(headers, self._response, self._response_name)

    def _captured(
        self, headers: MultiMapping[str], patterns: list[str] | None, name_of: Callable[[str], str]
    ) -> dict[str, AttributeValue]:
        if not patterns:
            return {}
        with self._guard.guarded("capturing headers"):
            values = {name: headers.getall(name) for name in headers}
            found: dict[str, list[str]] = self._sanitize.sanitize_header_values(values, patterns, name_of)
            # Bytes that are not UTF-8 are lone surrogates in aiohttp; an exporter would fail, and lose all its spans
            return {name: [value.encode(errors="backslashreplace").decode() for value in found[name]] for name in found}
        return {}


def _read(name: str, effect: str, read: Callable[[], _Value]) -> _Value | None:
    """Return the value of a variable; None if it is not a regular expression, after a warning."""
    try:
        return read()
    except re.error as error:
        value = os.environ[name]
        _logger.warning("%s is ignored: %r is not a regular expression (%s), so %s", name, value, error, effect)
        return None
