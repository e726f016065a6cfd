"""From a call to where its trace is shown: the user's template, checked once and filled in for each call."""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit

_NAMES = ("trace_id", "span_id", "call_id")
_PLACEHOLDER = re.compile(r"\{(\w*)\}")


class TraceURL:
    """A template of URLs such as ``http://localhost:16686/trace/{trace_id}``."""

    def __init__(self, template: str) -> None:
        """Check a template.

        Args:
            template: With ``{trace_id}``, ``{span_id}`` or ``{call_id}`` in it; other braces stay as they are.

        Raises:
            ValueError: It is no http or https URL, has another placeholder, or none.
        """
        try:
            parts = urlsplit(template)
        except ValueError as error:
            raise ValueError(f"trace_url={template!r}: {error}") from None
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise ValueError(f"trace_url={template!r}: it has to begin with http:// or https:// and a host")
        names = _PLACEHOLDER.findall(template)
        if unknown := [name for name in names if name not in _NAMES]:
            raise ValueError(
                f"trace_url={template!r}: {{{unknown[0]}}} is none of {{trace_id}}, {{span_id}}, {{call_id}}"
            )
        if not names:
            raise ValueError(f"trace_url={template!r}: it has none of {{trace_id}}, {{span_id}}, {{call_id}} in it")
        self._template = template

    def of(self, call_id: str) -> str:
        """Return where the trace of a call is shown."""
        trace_id, _, span_id = call_id.partition("-")
        values = {"trace_id": trace_id, "span_id": span_id, "call_id": call_id}
        return _PLACEHOLDER.sub(lambda match: quote(values[match[1]], safe=""), self._template)
