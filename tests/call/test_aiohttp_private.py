"""Checks the private names of aiohttp that the package uses: a version without one of them still works.

Each name is hidden in turn, in a child process. aiohttp itself still finds it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler
from support import processes
from support.forked import Program

from otel_connector import AsyncConnector
from otel_connector._call import _aiohttp_private
from otel_connector._call._fair_reading import FairResponseHandler
from otel_connector.testing import FaultServer, compressed, ok, redirect

SESSION_NAMES = ["_build_url", "_base_url", "_middlewares", "_request"]
HANDLER_NAMES = list(_aiohttp_private._HANDLER_NAMES)
MODULE_NAMES = ["client_proto", "http", "http_exceptions"]
CONTENT_NAMES = ["_wait"]
RESPONSE_NAMES = ["_body", "_protocol"]
STATE_NAMES = list(_aiohttp_private._STATE)
CONNECTOR_NAMES = ["_factory", "_conns", "_acquired", "_loop"]
UNCHECKED = "so errors in a response can be missed, and a server that sends many small chunks can block the event loop"
WARNINGS = {
    "_wait": "no StreamReader._wait, so compressed bodies are decoded by aiohttp",
    "_build_url": "no ClientSession._build_url, so relative URLs are joined",
    "_middlewares": "no ClientSession._middlewares, so requests carry no trace context",
    "_request": "no ClientSession._request, so requests are sent with ClientSession.get",
    "_factory": f"no BaseConnector._factory, {UNCHECKED}",
    **dict.fromkeys(("client_proto", "http"), f"no ResponseHandler._pause_transport_reading, {UNCHECKED}"),
    "_conns": "no BaseConnector._conns, so errors in responses on connections that were open before",
    "_acquired": "no BaseConnector._acquired, so errors in responses on connections that were open before",
    **{name: f"no ResponseHandler.{name}, {UNCHECKED}" for name in HANDLER_NAMES + STATE_NAMES},
}


def hide_from_the_package(cls: type[Any], name: str) -> None:
    """Make the attribute `name` of the instances of `cls` invisible to the package only."""

    def lookup(self: object, wanted: str) -> object:
        if wanted == name and sys._getframe(1).f_globals["__name__"].startswith("otel_connector."):
            raise AttributeError(wanted)
        return object.__getattribute__(self, wanted)

    cls.__getattribute__ = lookup  # type: ignore[assignment]


@contextmanager
def without(name: str) -> Iterator[None]:
    """Import the package without an attribute of `ResponseHandler` or `StreamReader`, or without a module."""
    if name in MODULE_NAMES:
        module = sys.modules.pop(f"aiohttp.{name}")
        sys.modules[f"aiohttp.{name}"] = None  # type: ignore[assignment] # makes the import fail
        yield
        sys.modules[f"aiohttp.{name}"] = module
        return
    classes = [aiohttp.StreamReader] if name in CONTENT_NAMES else ResponseHandler.__mro__
    owners = {cls: vars(cls)[name] for cls in classes if name in vars(cls)}
    for cls in owners:
        delattr(cls, name)
    yield
    for cls, value in owners.items():
        setattr(cls, name, value)


async def calls(url: str) -> None:
    """Make a call with a relative URL, one with a redirect and one with gzip, with a middleware of the session."""
    called = list[str]()

    async def middleware(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        called.append(request.url.path)
        return await handler(request)

    subject = AsyncConnector("logs.csv")
    async with aiohttp.ClientSession(url, middlewares=[middleware]) as session:
        for path in ("/x", "/redirect", "/gzip"):
            assert await subject.get(session, path, "P") == {"ok": True}
    assert called == ["/x", "/redirect", "/x", "/gzip"]


def check_log(url: str) -> None:
    """Check that the rows are complete."""
    _, first, second, third = Path("logs.csv").read_text(encoding="utf-8").splitlines()
    assert first.endswith(f",{url}/x,,12,200,True,"), first
    assert second.endswith(f",{url}/redirect,{url}/x,12,200,True,"), second
    assert third.endswith(f",{url}/gzip,,12,200,True,"), third


def child(name: str, url: str) -> None:
    """Run in a child process. Names that the package looks up when it is imported need another import."""
    logging.basicConfig(format="%(message)s", force=True)
    if name in {*MODULE_NAMES, *HANDLER_NAMES, *CONTENT_NAMES}:
        for module in [each for each in sys.modules if each.startswith("otel_connector")]:
            del sys.modules[module]
        with without(name):
            import otel_connector
        globals()["AsyncConnector"] = otel_connector.AsyncConnector
    owners = {
        ResponseHandler: STATE_NAMES,
        aiohttp.BaseConnector: CONNECTOR_NAMES,
        aiohttp.ClientResponse: RESPONSE_NAMES,
        aiohttp.ClientSession: SESSION_NAMES,
    }
    for owner, names in owners.items():
        if name in names:
            hide_from_the_package(owner, name)
    asyncio.run(calls(url))
    check_log(url)


ALL_NAMES = (
    SESSION_NAMES + CONNECTOR_NAMES + MODULE_NAMES + HANDLER_NAMES + STATE_NAMES + CONTENT_NAMES + RESPONSE_NAMES
)


def children(url: str) -> None:
    """Run `child` for each name in a fork, in a folder of that name, with its standard error in a file."""
    gc.freeze()
    for name in ALL_NAMES:
        Path(name).mkdir()
        pid = os.fork()
        if pid == 0:
            os.chdir(name)
            os.dup2(os.open("stderr", os.O_WRONLY | os.O_CREAT), 2)
            child(name, url)
            if "coverage" not in sys.modules:  # it stores its data at the end of the interpreter
                os._exit(0)  # which takes as long as the calls
            return
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        Path(name, "status").write_text(str(status), encoding="ascii")


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which `children` has run."""
    folder = tmp_path_factory.mktemp("children")
    with FaultServer() as server:
        server.script("/x", ok)
        server.script("/redirect", redirect("/x"))
        server.script("/gzip", compressed(b'{"ok": true}'))
        command, environment = processes.function(__file__, f"children({server.url('/').rstrip('/')!r})")
        with Program(command[1:], env=environment, cwd=folder) as process:
            assert process.wait(60) == 0
    return folder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
@pytest.mark.parametrize("name", ALL_NAMES)
def test_calls_work_without_a_private_name_and_a_warning_is_logged_once(name: str, ended: Path) -> None:
    error = (ended / name / "stderr").read_text(encoding="utf-8")
    assert (ended / name / "status").read_text(encoding="ascii") == "0", error
    lines = [line for line in error.splitlines() if line.startswith("aiohttp ")]
    expected = WARNINGS.get(name)  # none if only a detail of a message is lost
    assert len(lines) == (expected is not None), error
    assert expected is None or expected in lines[0]


async def test_fair_reading_can_be_switched_off(server: FaultServer) -> None:
    server.script("/x", ok)
    async with aiohttp.ClientSession() as session:
        for fair_reading, expected in [
            (False, ResponseHandler),
            (True, FairResponseHandler),
            (False, FairResponseHandler),  # it stays as the other connector of this package has left it
        ]:
            await AsyncConnector(None, fair_reading=fair_reading).get(session, server.url("/x"), "P")
            assert session.connector is not None
            assert session.connector._factory.func is expected
            ((connection, _),) = next(iter(session.connector._conns.values()))
            assert type(connection) is expected


async def test_a_connection_that_has_ended_keeps_its_class(server: FaultServer) -> None:
    """The pool may still contain it."""
    server.script("/x", ok)
    async with aiohttp.ClientSession() as session:
        assert session.connector is not None
        async with session.get(server.url("/x")) as response:
            await response.read()
        ((connection, _),) = next(iter(session.connector._conns.values()))
        connection.transport.close()  # type: ignore[union-attr]
        closed = connection.closed
        assert closed is not None
        await asyncio.wait([closed], timeout=5)
        assert await AsyncConnector(None).get(session, server.url("/x"), "P") == {"ok": True}
        assert type(connection) is ResponseHandler
