"""Fills in the user's template for the URL of a trace. Knows nothing of logs.

Used by ``cli._review_command``, ``review._next_step``, ``review._report`` and ``review._verdict_text``.
"""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit

from otel_connector._arguments import checked_instance

_NAMES = ("trace_id", "span_id", "call_id")
_PLACEHOLDER = re.compile(r"\{(\w*)\}")


class TraceURL:
    """A template of URLs such as ``http://localhost:16686/trace/{trace_id}``.

    Args:
        template: Contains ``{trace_id}``, ``{span_id}`` or ``{call_id}``. Braces around anything but a word are kept.
        argument: The argument or option with the template, for messages.

    Raises:
        TypeError: `template` is not a str.
        ValueError: `template` is not an http or https URL, or has an unknown placeholder, or has no placeholder.
    """

    def __init__(self, template: str, argument: str = "trace_url") -> None:
        try:
            parts = urlsplit(checked_instance(argument, template, str))
        except ValueError as error:
            raise ValueError(f"{argument} is not a URL: {error}: {template!r}") from None
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise ValueError(f"{argument} must start with http:// or https:// and a host, not {template!r}")
        known = "{trace_id}, {span_id} and {call_id}"
        names = _PLACEHOLDER.findall(template)
        if unknown := [name for name in names if name not in _NAMES]:
            raise ValueError(f"{argument} has an unknown placeholder {{{unknown[0]}}}; known are {known}: {template!r}")
        if not names:
            raise ValueError(f"{argument} must contain at least one of {known}, not {template!r}")
        self._template = template

    def of(self, call_id: str) -> str:
        """Return the URL of the trace of a call."""
        trace_id, _, span_id = call_id.partition("-")
        values = {"trace_id": trace_id, "span_id": span_id, "call_id": call_id}
        return _PLACEHOLDER.sub(lambda match: quote(values[match[1]], safe=""), self._template)
