"""Runs the client tests from aiohttp's source archive twice: unchanged, and with every GET through the connector.

Run it from the project's root; it needs pip and the network, and writes only to a temporary folder::

    python tests/benchmarks/aiohttp_own_tests.py

It downloads the source archive of the installed aiohttp, and pytest-mock, which these tests need. The same tests must
pass in both runs, except those in `DIFFERENCES`, each with a reason. Otherwise the exit status is 1. A GET of a session
returns a response, but the connector returns a body. Therefore a shim makes one attempt through the connector, and
returns aiohttp's response with the body that the connector has read. If the call fails, the shim raises aiohttp's
error, which is the cause of the connector's error.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from otel_connector import AsyncConnector, BodyError, ConnectorError, HTTPStatusError

SWITCH = "OTEL_CONNECTOR_SHIM"
RESULTS = "OTEL_CONNECTOR_RESULTS"
TESTS = "tests/test_client_functional.py"

_UPGRADE = "101 is an upgrade, not a response to a GET: MalformedResponse"
_WHOLE = "the body is never complete, and the connector reads all of it before it returns"
_EARLY = "the body comes too late; the connector reads it in `get`, so `get` fails and not the later read"
_STREAM = "reads the stream of the response, which the connector has already read"
_DECODED = "the connector decompresses, and its DecodeFailed comes from the decoder's error"
_RELEASED = "a released response cannot be read, but that of the shim still has its body"
_REFUSED = "the connector rejects the URL: InvalidURL, a ClientError and a ValueError"

DIFFERENCES = {
    "test_HTTP_302_max_redirects": "the connector follows max_redirects redirects, aiohttp one less",
    "test_auth_persist_on_redirect_to_other_host_with_global_auth": "a session's auth is not sent to another origin",
    "test_timeout_none": "timeout=None means no limit in aiohttp; the connector requires a limit: TypeError",
    "test_upload_tracker_closed_session": "SessionClosed (a ClientError, a ValueError) where aiohttp has RuntimeError",
    "test_keepalive_after_empty_body_status": _UPGRADE,
    "test_upgrade_connection_not_released_after_read": _UPGRADE,
    "test_keepalive_after_empty_body_status_stream_response": _UPGRADE,
    "test_ssl_client_shutdown_timeout": _WHOLE,
    "test_close_resp_on_error_async_with_session": _WHOLE,
    "test_non_close_detached_session_on_error_cm": _WHOLE,
    "test_read_timeout_on_reading_chunks": _EARLY,
    "test_timeout_on_reading_data": _EARLY,
    "test_timeout_with_full_buffer": _EARLY,
    "test_readline_error_on_conn_close": _STREAM,
    "test_payload_decompress_size_limit": _STREAM,
    "test_payload_decompress_size_limit_brotli": _STREAM,
    "test_payload_decompress_size_limit_zstd": _STREAM,
    "test_stream_reader_total_raw_bytes": _STREAM,
    "test_bad_payload_compression": _DECODED,
    "test_read_from_closed_response": _RELEASED,
    "test_read_from_closed_response2": _RELEASED,
    "test_read_after_raise_outside_context": _RELEASED,
    "test_exception_when_read_outside_of_session": _RELEASED,
    "test_invalid_and_non_http_url": _REFUSED,
    "test_invalid_idna": _REFUSED,
    "test_request_error_before_body_created_does_not_mask": _REFUSED,
    "test_upload_tracker_non_http_scheme": _REFUSED,
}
"""Tests that pass unchanged but not through the connector: the name without parameters, and the reason."""


@dataclass
class Exchange:
    """The response and body that aiohttp received for one call of the connector."""

    response: aiohttp.ClientResponse | None = None
    body: list[bytes] = field(default_factory=list[bytes])


_exchange: ContextVar[Exchange | None] = ContextVar("_exchange", default=None)
_request = aiohttp.ClientSession._request
_readany = aiohttp.StreamReader.readany
_used: Counter[str] = Counter()
_outcomes: dict[str, str] = {}


async def _routed(self: aiohttp.ClientSession, method: str, url: Any, **options: Any) -> aiohttp.ClientResponse:
    """Replace ``ClientSession._request``. Requests other than GET, and those of the connector, are sent unchanged."""
    inside = _exchange.get()
    if inside is not None or method != "GET":
        response = await _request(self, method, url, **options)
        if inside is not None:
            inside.response = response
        return response
    _used[os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0]] += 1
    exchange = Exchange()
    token = _exchange.set(exchange)
    try:
        return await _through_the_connector(self, url, exchange, options)
    finally:
        _exchange.reset(token)


async def _through_the_connector(
    session: aiohttp.ClientSession, url: Any, exchange: Exchange, options: dict[str, Any]
) -> aiohttp.ClientResponse:
    options.setdefault("timeout", session.timeout)
    raise_for_status = options.pop("raise_for_status", None)
    connector = AsyncConnector(None, n_tries=1, propagate=False)
    try:
        value: bytes | None = await connector.get(session, url, "aiohttp", decode=bytes, **options)
        if value is not None:  # decompressed by the connector; the pieces from aiohttp are not
            exchange.body[:] = [value]
    except HTTPStatusError:
        pass  # in a session, a status is an error only with raise_for_status, see below
    except BodyError as error:
        if exchange.response is None:
            raise _original(error) from error
        # A session returns a response after the headers. The read of the body fails
        _set_read(exchange.response, _original(error))
    except ConnectorError as error:
        raise _original(error) from error
    response = exchange.response
    assert response is not None
    if response._body is None and "read" not in vars(response):
        response._body = b"".join(exchange.body)
        _set_read(response, None)
    check = session._raise_for_status if raise_for_status is None else raise_for_status
    if callable(check):
        await cast("Callable[[aiohttp.ClientResponse], Awaitable[None]]", check)(response)
    elif check:
        response.raise_for_status()
    return response


def _original(error: ConnectorError) -> Exception:
    """Return the error of aiohttp that caused the connector's error."""
    return error.__cause__ if isinstance(error.__cause__, Exception) else error


def _set_read(response: aiohttp.ClientResponse, error: Exception | None) -> None:
    """Make `response.read` return the body that the connector has read, or raise its error."""

    async def read() -> bytes:
        if error is not None:
            raise error
        assert response._body is not None
        return response._body

    response.read = read  # type: ignore[method-assign]


async def _record_body_piece(self: aiohttp.StreamReader) -> bytes:
    piece = await _readany(self)
    if (exchange := _exchange.get()) is not None:
        exchange.body.append(piece)
    return piece


# Hooks: this file is a pytest plugin in the runs that it starts.


def pytest_configure() -> None:
    """Install the shim."""
    if os.environ.get(SWITCH) == "1":
        aiohttp.ClientSession._request = _routed  # type: ignore[assignment,method-assign]
        aiohttp.StreamReader.readany = _record_body_piece  # type: ignore[method-assign]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record the outcome of a test. A failure in any phase counts."""
    if report.when == "call" or report.outcome != "passed":
        reason = "" if report.outcome != "failed" else report.longreprtext.strip().splitlines()[-1]
        if _outcomes.get(report.nodeid, "passed") == "passed":
            _outcomes[report.nodeid] = report.outcome if not reason else f"failed: {reason}"


def pytest_sessionfinish() -> None:
    """Write the recorded outcomes to a file."""
    Path(os.environ[RESULTS]).write_text(json.dumps({"outcomes": _outcomes, "used": _used}), encoding="utf-8")


# The command.


def fetch(folder: Path) -> None:
    """Download aiohttp's tests and their requirements into `folder`."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    version = importlib.metadata.version("aiohttp")
    wanted = ["--no-binary", ":all:", "--no-deps", f"aiohttp=={version}"]
    subprocess.run([*pip, "download", "-d", str(folder), *wanted], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), "pytest-mock"], check=True)
    (archive,) = folder.glob("aiohttp-*.tar.gz")
    with tarfile.open(archive) as source:
        # Without the package next to the tests: the installed one is tested
        members = [member for member in source.getmembers() if "/tests/" in member.name and member.isfile()]
        for member in members:
            member.name = member.name.split("/", 1)[1]
        source.extractall(folder, members, filter="data")


def run(folder: Path, *, shim: bool) -> tuple[dict[str, str], dict[str, int]]:
    """Run the tests. Return the outcome of each, and the number of GETs that each sent through the connector."""
    results = folder / f"results-{shim}.json"
    paths = [str(folder / "site"), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, SWITCH: str(int(shim)), RESULTS: str(results), "PYTHONPATH": os.pathsep.join(paths)}
    plugins = ["-p", "aiohttp_own_tests", "-p", "no:asyncio", "-p", "no:cacheprovider", "-p", "pytest_mock"]
    command = [sys.executable, "-m", "pytest", "-q", "--timeout", "10", "-c", os.devnull, "--rootdir", str(folder)]
    subprocess.run([*command, *plugins, TESTS], cwd=folder, env=environment, check=False, stdout=subprocess.DEVNULL)
    found = json.loads(results.read_text(encoding="utf-8"))
    return found["outcomes"], found["used"]


def plain_name(test: str) -> str:
    return test.rsplit("::", 1)[-1].split("[", 1)[0]


def main() -> int:
    """Run the tests in both ways, and compare the outcomes."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fetch(folder)
        bare, _ = run(folder, shim=False)
        through, used = run(folder, shim=True)
    different = {test: through.get(test, "not run") for test in bare if bare[test] == "passed" != through.get(test)}
    tests = [test for test in bare if test in used]
    print(f"{len(bare)} tests, {sum(used.values())} GETs through the connector in {len(tests)} of them")
    print(f"bare: {dict(Counter(outcome.split(':')[0] for outcome in bare.values()))}")
    print(f"through the connector: {dict(Counter(outcome.split(':')[0] for outcome in through.values()))}")
    for test, outcome in different.items():
        print(f"- {test.rsplit('::', 1)[-1]}: {DIFFERENCES.get(plain_name(test), 'NOT LISTED: ' + outcome)}")
    gone = set(DIFFERENCES) - set(map(plain_name, different))
    print(*(f"- {test} is listed, but is no longer a difference" for test in sorted(gone)), sep="\n")
    return int(bool(gone) or any(plain_name(test) not in DIFFERENCES for test in different))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
