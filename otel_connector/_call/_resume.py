"""Which URLs of a `get_many` are skipped with `resume`: those that have a success in the logs.

A URL is identified by its redacted form. A list in which two different URLs have the same one is rejected. This file
does not know how calls are made, nor how logs are read.

Used by ``_connector``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

from otel_connector._bulk import Resumed
from otel_connector._call._transport import resolve_url
from otel_connector._distinct_urls import DistinctUrls
from otel_connector._redact import REDACTED

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

    from otel_connector._call._settings import CallSettings


class Completed(Protocol):
    """The URLs that have a success, and the files and the numbers of rows that were read."""

    files: list[str]
    rows: int
    of_project: int

    def __contains__(self, url: str, /) -> bool: ...
    def __len__(self) -> int: ...


class Resume:
    """One `get_many` with `resume`.

    Args:
        settings: The settings of the connector.
        session: The session of the calls.
        params: Their option ``params``.
    """

    def __init__(self, settings: CallSettings, session: aiohttp.ClientSession, params: Any) -> None:
        self._distinct = DistinctUrls(settings.redactor, partial(resolve_url, session, params=params))
        self._completed: Completed

    async def begin(self, urls: Any, read_logs: Callable[[], Completed]) -> Resumed:
        """Check `urls` if it can be iterated twice, and read the logs.

        Args:
            urls: The argument of `get_many`.
            read_logs: Called in a thread.

        Raises:
            SameRedactedForm: Two different URLs have the same redacted form.
        """
        if isinstance(urls, (Sequence, AbstractSet)):
            await self._distinct.check_all(cast("Iterable[str | URL]", urls))
        completed = self._completed = await asyncio.to_thread(read_logs)
        return Resumed(self._is_done, completed.rows, completed.of_project, len(completed), tuple(completed.files))

    def _is_done(self, url: str | URL) -> bool:
        shown = self._distinct.identity(url)
        if shown is None:
            return False
        if REDACTED in shown:
            self._distinct.check(url)
        return shown in self._completed
