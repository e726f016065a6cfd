"""Removes credentials from URLs and texts before they are written or exported.

One `Redactor` is used for the fields url and redirect_url, error messages, span attributes and events. It changes only
secrets, and nothing else. This file does not know HTTP libraries or telemetry.

Used by ``__init__``, ``_call``, ``_connector``, ``_fetch``, ``_replay`` and ``cli``.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable

REDACTED = "REDACTED"
"""The replacement of a secret (OpenTelemetry semantic conventions 1.44, url.full)."""

# The signatures in the semantic conventions (url registry)
_AWS = {"X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "AWSAccessKeyId", "Signature"}
_AZURE_AND_GOOGLE = {"sig", "X-Goog-Signature"}
# Common names of secrets in APIs
_TOKENS = {"token", "access_token", "id_token", "refresh_token", "jwt", "auth"}
_KEYS = {"api_key", "apikey", "key", "password", "secret", "client_secret"}

DEFAULT_REDACTED_PARAMS: frozenset[str] = frozenset(_AWS | _AZURE_AND_GOOGLE | _TOKENS | _KEYS)
"""Query parameters whose values are redacted by default; see `redact_params`. Compared without case."""

# The parts of RFC 3986 that are needed: scheme, userinfo up to the last @ of the authority, host with an optional
# port. Backslashes and white space do not match, because clients disagree about where the authority ends
_URL = re.compile(
    r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.\-]*://)?"
    r"(?P<authority>(?(scheme)(?:(?P<user>[^/?#\\\s]*)@)?(?:\[[^\[\]@/?#\\\s]*\]|[^\[\]@:/?#\\\s]*)(?::[0-9]*)?))"
    r"(?P<path>[^?#]*)(?P<rest>.*)",
    re.DOTALL,
)
_IGNORED_BY_PARSERS = re.compile(r"[\t\r\n]")  # WHATWG URL, section 4.4: removed everywhere

# Names, and where their values end. The lookbehinds let a name start at its first character only. Otherwise a long run
# of characters would be tried from each of them, and a redirect of 8 kB would block the event loop for a second
_NAME = re.compile(r"(?<![^?&;#=])([^?&;#=]+)=")
_VALUE = re.compile(r"[^&#]*")
_ENCODED_VALUE = re.compile(r"(?<==)[^&#=%]*%[^&#=]*(?=[&#]|$)")
_NESTED_USERINFO = re.compile(r"(?<=//)[^/?#&\s<>]*@")
_TEXT_NAME = re.compile(r"(?<![^?&;#=\s\"'<>(,])([^?&;#=\s\"'<>(,]+)=[\"']?")
_TEXT_VALUE = re.compile(r"[^&#\s\"<>]*(?<!['),.\]}])")  # without punctuation of the surrounding text
_TEXT_USERINFO = re.compile(
    r"(?<=//)[^/?#\s<>]*[@\uff20]|(?<![^/?#\s<>])[^:/?#\s<>]*:[^/?#\s<>]*[@\uff20]"  # \uff20 is folded to @
)
_TEXT_ENCODED_VALUE = re.compile(r"(?<==)[^&#=%\s\"'<>]*%[^&#=\s\"'<>]*")


# The form of nearly every URL, which cannot contain a secret
_PLAIN = re.compile(r"https?://[a-zA-Z0-9.\-]+(?::[0-9]+)?(?:/[a-zA-Z0-9/._~%+\-]*)?")


def _looks_different_folded(url: str) -> bool:
    """Return whether compatibility folding, which is applied to host names, adds an ``@`` or another delimiter."""
    if url.isascii():
        return False
    folded = unicodedata.normalize("NFKC", url)
    return any(folded.count(mark) != url.count(mark) for mark in "@:/?#=")


class Redactor:
    """Redacts userinfo and the values of the given parameters.

    Args:
        params: Names of the query (or fragment) parameters whose values are secret, compared without case and decoded.
    """

    def __init__(self, params: Iterable[str] = DEFAULT_REDACTED_PARAMS) -> None:
        self._secret = frozenset(name.lower() for name in params)

    def url(self, url: str) -> str:
        """Return `url` without its secrets.

        A text that looks like a URL but cannot be parsed as one becomes ``REDACTED`` as a whole. So does any other text
        that may contain a secret, because it contains ``@`` or ``=``.
        """
        if _PLAIN.fullmatch(url) or not any(mark in url for mark in ("@", "=", "://", "\uff20")):
            return url
        match = _URL.fullmatch(url)
        if match is None or _IGNORED_BY_PARSERS.search(url) or _looks_different_folded(url):
            return REDACTED
        head, authority, user, path = match["scheme"] or "", match["authority"], match["user"], match["path"]
        if not head and ("@" in path or "=" in path):
            return REDACTED
        # The end of the authority is ambiguous
        if head and ((path and path[0] != "/") or (not authority and "@" in path)):
            return REDACTED
        if user:
            shown = f"{REDACTED}:{REDACTED}" if ":" in user else REDACTED
            authority = f"{shown}{authority[len(user) :]}"
        if "@" in path:  # a URL in the path, as in those of proxies and archives
            path = _NESTED_USERINFO.sub(f"{REDACTED}:{REDACTED}@", path)
        rest = match["rest"]
        if "@" in rest:  # a URL in a parameter
            rest = _NESTED_USERINFO.sub(f"{REDACTED}:{REDACTED}@", rest)
        if "%" in rest:
            rest = _ENCODED_VALUE.sub(self._encoded, rest)
        return f"{head}{authority}{path}{self._values(rest, _NAME, _VALUE)}"

    def text(self, text: str) -> str:
        """Return `text`, such as an error message, without the secrets of the URLs and ``name=value`` pairs in it."""
        # Looking for one character first: without any of them, a text takes a fiftieth of the time of the patterns
        if "@" in text or "\uff20" in text:
            text = _TEXT_USERINFO.sub(f"{REDACTED}:{REDACTED}@", text)
        if "%" in text:
            text = _TEXT_ENCODED_VALUE.sub(self._encoded, text)
        if "=" in text:
            text = self._values(text, _TEXT_NAME, _TEXT_VALUE)
        return text

    def _values(self, text: str, name: re.Pattern[str], value: re.Pattern[str]) -> str:
        pieces: list[str] = []
        kept = 0
        for match in name.finditer(text):
            start = match.end()
            if start <= kept or not self._is_secret(match[1]):
                continue  # part of a redacted value, or not secret; another pair may start in its value
            found = value.match(text, start)
            if found and found[0]:
                pieces += text[kept:start], REDACTED
                kept = found.end()
        return "".join(pieces) + text[kept:]

    def _is_secret(self, name: str) -> bool:
        """Return whether a parameter is secret; its name may be encoded, or that of a list (``token[]``)."""
        plain = unquote_plus(name).strip().lower()
        return plain in self._secret or plain.partition("[")[0] in self._secret

    def _encoded(self, match: re.Match[str]) -> str:
        """Redact a percent-encoded value if it is a URL or a query that contains a secret."""
        plain = unquote_plus(match[0])
        return match[0] if self.text(plain) == plain else REDACTED
