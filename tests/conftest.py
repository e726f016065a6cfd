"""What all tests share: the groups, the event loops, what a run may not leave behind, and the common fixtures."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from blockbuster import BlockBuster
from hypothesis import settings
from support import forked, left_behind, processes
from support.logs import Log
from support.sdk import SDK

from otel_connector import _csv_writer
from otel_connector.testing import FakeClock, FaultServer

# `.ci/run` asks for the second one
settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("thorough", max_examples=100, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

LEFT_OUT = "not timing and not soak"
NOT_RUN = """\
not run: the groups timing and soak. Run them with `python -m pytest -m timing -n 0` and \
`python -m pytest -m soak -n 0 --timeout 0`"""

_temporary = pytest.StashKey[Path]()
_found = pytest.StashKey[list[str]]()


def _debug_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_debug(enabled=True)
    return loop


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "debug": _debug_loop,
    "uvloop": _uvloop,
}


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than there are cores: some tests wait for what they have started."""
    return (os.cpu_count() or 1) + 1


# What these files import themselves; what the tests of a program need is named in its marker, `neighbours`
IMPORTED = {
    "test_dashboards.py": ("promql_parser", "opentelemetry.exporter.prometheus"),
    "test_observability.py": ("promql_parser",),
    "test_report.py": ("playwright",),
}


def _not_installed(packages: Iterable[str]) -> str:
    """Return why tests that need these packages cannot run; empty if they can."""
    missing = [name for name in packages if not _is_installed(name)]
    return f"needs {', '.join(missing)}: python -m pip install '.[test-all]'" if missing else ""


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


class _Skipped(pytest.Module):
    """A file whose imports are not installed."""

    def collect(self) -> list[pytest.Item | pytest.Collector]:
        pytest.skip(_not_installed(IMPORTED[self.path.name]), allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if _not_installed(IMPORTED.get(module_path.name, ())):
        return _Skipped.from_parent(parent, path=module_path)
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if why := _not_installed(name for mark in item.iter_markers("neighbours") for name in mark.args):
        pytest.skip(why)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--loop", choices=list(LOOPS), default="asyncio", help="the event loop of the async tests")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    name = str(config.getoption("--loop"))
    return {name: LOOPS[name]}


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what it runs in the background with these ignored, and every child process would inherit it
    for ignored, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(ignored) is signal.SIG_IGN:
            signal.signal(ignored, handler)
    # Hundreds of processes load the same modules: without their bytecode each compiles them, which doubles the time
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if (folder := left_behind.begin()) is not None:
        config.stash[_temporary] = folder
    config.stash[_found] = []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep soak tests out of `-m timing`, and tests without an event loop out of a run on another one.

    Start the longest files first, so that none is left over for one worker.
    """
    if config.getoption("--loop") != "asyncio":
        config.hook.pytest_deselected(items=[item for item in items if not item.get_closest_marker("asyncio")])
        items[:] = [item for item in items if item.get_closest_marker("asyncio")]
    for item in items:
        if item.get_closest_marker("soak"):
            item.own_markers = [mark for mark in item.own_markers if mark.name != "timing"]
    items.sort(key=lambda item: item.get_closest_marker("browser") is None and "neighbours" not in item.path.parts)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if something is left of it. The workers of xdist tell the first process what they have found."""
    forked.close()
    config, found = session.config, session.config.stash[_found]
    found += [f"listening: {address}" for address in left_behind.listening()]
    output: dict[str, Any] | None = getattr(config, "workeroutput", None)
    if output is not None:
        output["left_behind"] = found
    elif _temporary in config.stash:
        found += left_behind.end(config.stash[_temporary])
        if found:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_testnodedown(node: Any, error: object) -> None:
    node.config.stash[_found] += getattr(node, "workeroutput", {}).get("left_behind", [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for each in config.stash[_found]:
        terminalreporter.write_line(f"left behind: {each}", red=True)
    if config.option.markexpr == LEFT_OUT:
        terminalreporter.write_line(NOT_RUN)


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """End the processes that a test has started and left running."""
    with processes.none_left():
        yield


@pytest.fixture(autouse=True, scope="module")
def collections_pass_over_what_stays() -> None:
    """Have the garbage collector pass over the tests, and all that is loaded by now: that takes it 0.2 s each time.

    Some tests collect to measure memory, and a collection in a turn of the loop would be taken for a stall of it.
    Once is not enough: what earlier modules load and keep is half of it.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def blocking_calls() -> BlockBuster:
    """The blocking calls that fail a test: ours on an event loop, but for those listed here with their reason."""
    # The fault server blocks nobody: it has a thread and a loop of its own
    guard = BlockBuster("otel_connector", excluded_modules=["otel_connector.testing"])
    for function in guard.functions.values():
        # The one write of a row before `get` returns, which makes the log survive a kill, with what belongs to it: the
        # lock, where the path leads, a new file. In the mode "background" a thread does that
        function.can_block_in("otel_connector/_csv_writer.py", {"write"})
        # Calls that a program makes for the sake of the disk
        function.can_block_in("otel_connector/csv_exporter.py", {"__init__", "force_flush", "shutdown"})
        # The constructor loads the SDK when it is first given a logfile
        function.can_block_in("otel_connector/_connector.py", {"_open_exporter"})
    # Measuring the coverage takes a lock of its own
    guard.functions["threading.Lock.acquire"].can_block_in("coverage/collector.py", {"lock_data"})
    return guard


@pytest.fixture(autouse=True)
def blocking_calls_fail(blocking_calls: BlockBuster) -> Iterator[BlockBuster]:
    """Have a blocking call fail the test."""
    blocking_calls.activate()
    try:
        yield blocking_calls
    finally:
        blocking_calls.deactivate()


@pytest.fixture(autouse=True)
def no_rows_in_hand() -> Iterator[None]:
    """What a test left waiting for a disk that is gone is not tried for ever."""
    yield
    for writer in list(_csv_writer._with_rows_in_hand):
        writer.close()


@pytest.fixture(scope="session")
def tls_server() -> Iterator[FaultServer]:
    with FaultServer(tls=True) as server:
        yield server


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "logs.csv")


@pytest.fixture
def sdk() -> Iterator[SDK]:
    sdk = SDK()
    yield sdk
    sdk.tracer_provider.shutdown()
    sdk.meter_provider.shutdown()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses connections: it is bound during the test, and nothing listens on it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]
