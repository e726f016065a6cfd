"""Tests of sentences in the pages that no other test checks: each names the page, and what is measured."""

from __future__ import annotations

import gzip
import re

import aiohttp
import pytest
from support import demo_picture
from support.documents import DOCS

from otel_connector import DEFAULT_REDACTED_PARAMS, AsyncConnector, HTTPStatusError
from otel_connector.cli._demo_command import _JAEGER
from otel_connector.testing import FaultServer, Step, disconnect, ok, respond


def test_the_page_about_secrets_names_each_parameter_and_no_other() -> None:
    page = (DOCS / "guides" / "secrets.md").read_text(encoding="utf-8")
    listed = page.partition("Secret parameters are:\n")[2].partition("\n\nNames are compared")[0]
    assert set(re.findall(r"`([^`]+)`", listed)) == DEFAULT_REDACTED_PARAMS


@pytest.mark.parametrize(
    "steps", [[ok, disconnect, 500], [disconnect, 500]], ids=["reused connection", "new connection"]
)
async def test_the_second_request_of_aiohttp_is_not_a_retry(steps: list[Step | int]) -> None:
    """`guides/retries.md`: `n_tries` does not limit it, `.attempts` counts it, and `stats().retries` does not."""
    async with FaultServer() as server, aiohttp.ClientSession() as session:
        server.script("/x", steps)
        connector = AsyncConnector(None, n_tries=1)
        if steps[0] is ok:
            await connector.get(session, server.url("/x"), "Test")
        with pytest.raises(HTTPStatusError) as raised:
            await connector.get(session, server.url("/x"), "Test")
        assert len(server.received("/x")) == len(steps)
    assert (raised.value.attempts, connector.stats().retries) == (2, 0)


ERROR_BODIES = {
    "short": (respond(404, body=bytes(60_000)), 60_000, 60_000),
    "long, with what arrived together with the last bytes": (respond(404, body=bytes(3_000_000)), 65_537, 400_000),
    "gzip": (respond(404, body=gzip.compress(bytes(30_000)), headers={"Content-Encoding": "gzip"}), 30_000, 30_000),
    "several codings": (
        respond(404, body=gzip.compress(gzip.compress(b"")), headers={"Content-Encoding": "gzip, gzip"}),
        len(gzip.compress(gzip.compress(b""))),
        len(gzip.compress(gzip.compress(b""))),
    ),
}


@pytest.mark.parametrize(("step", "least", "most"), ERROR_BODIES.values(), ids=ERROR_BODIES)
async def test_the_size_of_the_body_of_an_error(step: Step, least: int, most: int) -> None:
    """`guides/log.md`: it is read until more than 64 KiB have arrived, and `response_size` counts all of that."""
    async with FaultServer() as server, aiohttp.ClientSession() as session:
        server.script("/x", step)
        connector = AsyncConnector(None, n_tries=1)
        with pytest.raises(HTTPStatusError):
            await connector.get(session, server.url("/x"), "Test")
    assert least <= connector.stats().bytes_received <= most


def test_the_picture_of_the_demo_shows_what_it_prints() -> None:
    """After a change of the demo: `python -m support.demo_picture` in `tests`."""
    picture = demo_picture.PICTURE.read_text(encoding="utf-8")
    assert "url(http" not in picture.replace('"', "")  # nothing is loaded
    text = demo_picture.shown(picture)
    assert _JAEGER in text
    assert re.search(r"must be an absolute http or https URL with a host: http//127\.0\.0\.1", text)
    assert "300 calls started, 300 rows written" in text
