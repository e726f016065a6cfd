"""Common parts of all tests: groups of tests, event loops, checks for resources that a run leaves, and fixtures."""

from __future__ import annotations

import asyncio
import gc
import linecache
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from blockbuster import BlockBuster
from hypothesis import settings
from opentelemetry import metrics, trace
from support import blocking, failing_calls, forked, left_behind, processes
from support.event_loops import LOOPS
from support.failing_calls import Children
from support.logs import Log
from support.sdk import SDK

from otel_connector._csv import _flusher
from otel_connector.testing import FakeClock, FaultServer

if TYPE_CHECKING:
    from support.backends import Backends

# `.ci/run` selects "thorough"
settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("thorough", max_examples=50, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

DEFAULT_SELECTION = "not timing and not soak and not backends"
NOT_RUN_NOTE = """\
not run: the groups timing, soak and backends. Run them with `python -m pytest -m timing -n 0`, \
`python -m pytest -m soak -n 0 --timeout 0`, and `python -m pytest -m backends` after `.ci/build_backends`"""

_run_folder = pytest.StashKey[Path]()
_left_behind = pytest.StashKey[list[str]]()


def pytest_xdist_auto_num_workers() -> int:
    """Return one more than the number of cores: some tests only wait for a child process."""
    return (os.cpu_count() or 1) + 1


# Packages that these files import at module level. Other packages are listed in the marker `neighbours`
FILE_REQUIREMENTS = {
    "test_dashboards.py": ("promql_parser", "opentelemetry.exporter.prometheus"),
    "test_observability.py": ("promql_parser",),
    "test_report.py": ("playwright",),
}


def _missing_packages(packages: Iterable[str]) -> str:
    """Return the reason to skip a test that needs these packages; empty if all are installed."""
    missing = [name for name in packages if not _is_installed(name)]
    return f"needs {', '.join(missing)}: python -m pip install '.[test-all]'" if missing else ""


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


class _SkippedModule(pytest.Module):
    """A test file that imports a package which is not installed."""

    def collect(self) -> list[pytest.Item | pytest.Collector]:
        pytest.skip(_missing_packages(FILE_REQUIREMENTS[self.path.name]), allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if _missing_packages(FILE_REQUIREMENTS.get(module_path.name, ())):
        return _SkippedModule.from_parent(parent, path=module_path)
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if reason := _missing_packages(name for mark in item.iter_markers("neighbours") for name in mark.args):
        pytest.skip(reason)
    if item.get_closest_marker("backends"):
        from support.backends import MISSING, programs  # loads gRPC

        if not programs():
            pytest.skip(MISSING)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--loop", choices=list(LOOPS), default="asyncio", help="the event loop of the async tests")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    name = str(config.getoption("--loop"))
    return {name: LOOPS[name]}


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--loop") == "debug":
        config.option.asyncio_debug = True  # pytest-asyncio sets the mode of each loop itself
        # asyncio notes the stack of each future then: all of it, and each file is looked up on the disk
        linecache.checkcache = lambda filename=None: None
        sys.tracebacklimit = 10  # as many frames as of a callback
    # A shell starts background jobs with these signals ignored, and every child process would inherit that
    for name, handler in (
        ("SIGINT", signal.default_int_handler),
        ("SIGHUP", signal.SIG_DFL),
        ("SIGQUIT", signal.SIG_DFL),
    ):
        ignored = getattr(signal, name, None)  # Windows has only the first
        if ignored is not None and signal.getsignal(ignored) is signal.SIG_IGN:
            signal.signal(ignored, handler)
    # Hundreds of processes load the same modules. Without cached bytecode, each compiles them, and the run takes twice
    # as long
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if (folder := left_behind.begin()) is not None:
        config.stash[_run_folder] = folder
    config.stash[_left_behind] = []


def _runs_on_loop(item: pytest.Item) -> bool:
    """Return whether a test runs on the loop of ``--loop``."""
    return item.get_closest_marker("asyncio") is not None or "loop_name" in getattr(item, "fixturenames", ())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Exclude soak and backends tests from `-m timing`, and tests without an event loop from runs with another loop.

    The slowest files run first. Otherwise one worker may still run them when all others are done.
    """
    if config.getoption("--loop") != "asyncio":
        config.hook.pytest_deselected(items=[item for item in items if not _runs_on_loop(item)])
        items[:] = [item for item in items if _runs_on_loop(item)]
    for item in items:
        if item.get_closest_marker("soak") or item.get_closest_marker("backends"):
            item.own_markers = [mark for mark in item.own_markers if mark.name != "timing"]
    items.sort(key=lambda item: item.get_closest_marker("browser") is None and "neighbours" not in item.path.parts)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if it leaves processes, listening ports or temporary files. The workers of xdist report theirs."""
    forked.close()
    config, found = session.config, session.config.stash[_left_behind]
    found += [f"listening: {address}" for address in left_behind.listening()]
    output: dict[str, Any] | None = getattr(config, "workeroutput", None)
    if output is not None:
        output["left_behind"] = found
    elif _run_folder in config.stash:
        found += left_behind.end(config.stash[_run_folder])
        if found:
            session.exitstatus = left_behind.EXIT_CODE


def pytest_testnodedown(node: Any, error: object) -> None:
    node.config.stash[_left_behind] += getattr(node, "workeroutput", {}).get("left_behind", [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for each in config.stash[_left_behind]:
        terminalreporter.write_line(f"left behind: {each}", red=True)
    if config.option.markexpr == DEFAULT_SELECTION:
        terminalreporter.write_line(NOT_RUN_NOTE)


@pytest.fixture(autouse=True, scope="module")
def freeze_loaded_objects() -> None:
    """Exclude all loaded objects from garbage collection, which would otherwise take 0.2 s each time.

    Some tests run the collector to measure memory, and a collection would be measured as a stall of the event loop.
    This is repeated for each module, because half of the objects are loaded by test modules.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def blocking_calls() -> Iterator[BlockBuster]:
    """Detect blocking calls of the package in an event loop. The exceptions are listed here with their reason.

    It is switched on once for all tests, because this takes 0.2 ms.
    """
    guard = blocking.guard()
    for function in guard.functions.values():
        # The row is written before `get` returns, so that it survives a kill of the process. This includes locking the
        # file, resolving the path and creating the file. With mode="background", a thread does this
        function.can_block_in("otel_connector/_csv/_writer.py", {"write"})
        # A program calls these functions in order to access the disk
        function.can_block_in("otel_connector/csv_exporter.py", {"__init__", "force_flush", "shutdown"})
        # The constructor imports the SDK when the first log is opened
        function.can_block_in("otel_connector/_connector.py", {"_open_exporter"})
        # uvloop joins the thread that shuts its executor down. blockbuster knows only the function of asyncio
        function.can_block_in("asyncio/runners.py", {"close"})
    # coverage.py takes a lock of its own when a thread runs a function for the first time
    running = coverage.Coverage.current() if (coverage := sys.modules.get("coverage")) is not None else None
    lock_of_coverage = getattr(getattr(running, "_collector", None), "data_lock", None)
    acquire = guard.functions["threading.Lock.acquire"]
    may_block = acquire.can_block_predicate
    acquire.can_block_predicate = lambda lock, *arguments, **options: (
        lock is lock_of_coverage or may_block(lock, *arguments, **options)
    )
    for function in guard.functions.values():
        function.can_block_predicate = blocking.MayBlock(function)
    yield guard
    guard.deactivate()


@pytest.fixture(autouse=True)
def leave_nothing_to_later_tests(blocking_calls: BlockBuster) -> Iterator[None]:
    """Make a blocking call fail the test, and end what the test has not ended.

    This is one fixture: each costs 0.1 ms for each test.
    """
    blocking_calls.activate()  # a test may have switched a function off
    with processes.kill_remaining():
        yield
        for writer in list(_flusher.with_pending_rows):
            writer.close()  # otherwise it retries after the end of the test
    # All later tests of this process would use a global provider
    assert not type(trace.get_tracer_provider()).__module__.startswith("opentelemetry.sdk")
    assert not type(metrics.get_meter_provider()).__module__.startswith("opentelemetry.sdk")


@pytest.fixture(scope="session")
def tls_server() -> Iterator[FaultServer]:
    with FaultServer(tls=True) as server:
        yield server


@pytest.fixture(scope="session")
def child_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Children]:
    """Forks processes whose system calls fail on purpose. Skips the test where that is not supported."""
    if failing_calls.MISSING:
        pytest.skip(failing_calls.MISSING)
    with failing_calls.children(tmp_path_factory.mktemp("failing_calls")) as prepared:
        yield prepared


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backends]:
    """Jaeger, Prometheus and a collector, started once for all tests of this process."""
    from support.backends import backends

    with backends(tmp_path_factory.mktemp("backends")) as started:
        yield started


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture(scope="session")
def loop_name(pytestconfig: pytest.Config) -> str:
    """Return the value of ``--loop``, for tests that are not async and run an event loop themselves."""
    return str(pytestconfig.getoption("--loop"))


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
    """Yield a port that refuses connections: it is bound during the test, but not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]
