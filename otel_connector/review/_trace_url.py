"""Fills in the user's template for the URL of a trace. Knows nothing of logs.

Used by ``review._report``.
"""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit

_NAMES = ("trace_id", "span_id", "call_id")
_PLACEHOLDER = re.compile(r"\{(\w*)\}")


class TraceURL:
    """A template of URLs such as ``http://localhost:16686/trace/{trace_id}``.

    Args:
        template: Contains ``{trace_id}``, ``{span_id}`` or ``{call_id}``. Braces around anything but a word are kept.

    Raises:
        ValueError: `template` is not an http or https URL, or has another placeholder, or none.
    """

    def __init__(self, template: str) -> None:
        try:
            parts = urlsplit(template)
        except ValueError as error:
            raise ValueError(f"trace_url={template!r}: {error}") from None
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise ValueError(f"trace_url={template!r}: it has to begin with http:// or https:// and a host")
        known = "{trace_id}, {span_id}, {call_id}"
        names = _PLACEHOLDER.findall(template)
        if unknown := [name for name in names if name not in _NAMES]:
            raise ValueError(f"trace_url={template!r}: {{{unknown[0]}}} is none of {known}")
        if not names:
            raise ValueError(f"trace_url={template!r}: it has none of {known} in it")
        self._template = template

    def of(self, call_id: str) -> str:
        """Return the URL of the trace of a call."""
        trace_id, _, span_id = call_id.partition("-")
        values = {"trace_id": trace_id, "span_id": span_id, "call_id": call_id}
        return _PLACEHOLDER.sub(lambda match: quote(values[match[1]], safe=""), self._template)
