"""Rejects a list in which two different URLs have the same redacted form, which identifies a URL in a log.

Of each URL with a secret only hashes are kept, in about 170 bytes; of the others nothing. This file does not know how a
URL is requested, nor logs.

Used by ``_call._resume``, ``_fetch._fetch`` and ``cli._fetch_command``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from otel_connector._errors import ConnectorError
from otel_connector._record import URL_LIMIT, one_line
from otel_connector._redact import REDACTED, Redactor

if TYPE_CHECKING:
    from yarl import URL

_YIELD_EVERY = 256  # URLs, after which other tasks run
_HASH_BITS = 64
_SECRET_BITS = 8  # of the hash of each secret, to find the one that differs


class SameRedactedForm(ValueError):
    """Two different URLs of one list have the same redacted form.

    Attributes:
        names: The parameters whose values differ; empty if it is the user or the password.
    """

    def __init__(self, url: str, names: Iterable[str]) -> None:
        self.names = sorted(set(names))
        differing = " and ".join(map(repr, self.names)) or "the user or the password before the host"
        self._what = f"two different URLs are {url} after redaction, so the log cannot tell them apart: {differing}"
        self._what += " differ, and are redacted" if len(self.names) > 1 else " differs, and is redacted"
        params = f"redact_params=DEFAULT_REDACTED_PARAMS - {{{', '.join(map(repr, self.names))}}}"
        super().__init__(f"urls: {self._what}{f'; if no secret, pass {params}' if self.names else _NO_OPTION}")

    def for_command(self, redact: Iterable[str]) -> ValueError:
        """Return the error with the options of the command line. `redact` are the names given with ``--redact``."""
        options = [f"without --redact {name}" if name in redact else f"with --no-redact {name}" for name in self.names]
        advice = f"; if no secret, run the command {' and '.join(options)}" if options else _NO_OPTION
        return ValueError(f"{self._what}{advice}")


_NO_OPTION = "; request them in lists of their own, each with its own log or project"


class DistinctUrls:
    """The URLs of one list.

    Args:
        redactor: Redacts as the log does.
        resolve: Returns the URL that is requested, or raises an error.
    """

    def __init__(self, redactor: Redactor, resolve: Callable[[str | URL], URL]) -> None:
        self._redactor = redactor
        self._resolve = resolve
        self._known: dict[int, int] = {}

    def identity(self, url: str | URL) -> str | None:
        """Return how a log shows a URL: two URLs are the same for `resume` and ``--dedupe`` if this is equal.

        Returns:
            None if its call fails, or if the log has only its beginning: such a URL is never taken for another one.
        """
        try:
            shown = self._redactor.url(str(self._resolve(url)))
        except (TypeError, ValueError, ConnectorError):
            return None
        return one_line(shown, URL_LIMIT) if len(shown) <= URL_LIMIT else None

    async def check_all(self, urls: Iterable[str | URL]) -> None:
        """Check a whole list; other tasks run meanwhile."""
        for number, url in enumerate(urls):
            self.check(url)
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)

    def check(self, url: str | URL) -> None:
        """Add a URL; the same one may be added again.

        Raises:
            SameRedactedForm: Another URL that was added has the same redacted form.
        """
        redact = self._redactor.url
        if isinstance(url, str) and REDACTED not in url and redact(url) == url:
            return  # what is added to it by the session or `params` is the same for all URLs
        try:
            full = str(self._resolve(url))
        except (TypeError, ValueError, ConnectorError):
            return  # its call fails, and reports it
        shown = redact(full)
        # A URL that is cut in the log is never taken for a completed one
        if (shown == full and REDACTED not in full) or len(shown) > URL_LIMIT:
            return
        secrets = self._redactor.secrets(full) or []
        parts = [hash(full[start:end]) % 2**_SECRET_BITS for start, end, _ in secrets]
        value = hash(full) % 2**_HASH_BITS
        for part in parts:
            value = value << _SECRET_BITS | part
        before = self._known.setdefault(hash(shown), value)
        if before == value:
            return
        names = [self._redactor.listed_name(name) for _, _, name in secrets]
        differing = {
            name
            for number, name in enumerate(reversed(names))
            if (before >> number * _SECRET_BITS ^ value >> number * _SECRET_BITS) % 2**_SECRET_BITS
        }
        raise SameRedactedForm(one_line(shown), filter(None, differing or names))
