"""Tests of the cursor on a real terminal: a live view hides it, and every stop and every end shows it again."""

from __future__ import annotations

import os
import re
import select
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command_line import environment
from support.logs import call, write
from support.terminals import HIDDEN, SHOWN, Terminal, on_terminal

from otel_connector.cli import _cursor
from otel_connector.testing import FaultServer, silent

pytestmark = pytest.mark.skipif(not hasattr(os, "setsid"), reason="terminals")

CTRL_C, CTRL_Z, CTRL_BACKSLASH = b"\x03", b"\x1a", b"\x1c"
SIGNALS = [getattr(signal, name) for name in _cursor._ENDS]
XTERM = {"TERM": "xterm-256color"}


@pytest.fixture
def fetching(tmp_path: Path) -> Iterator[Terminal]:
    """Run a fetch of one URL that is never answered, up to its live view."""
    with FaultServer() as server:
        server.script("/", [silent])
        arguments = ["-m", "otel_connector", "fetch", server.url("/"), "--timeout", "600"]
        with on_terminal(tmp_path, arguments, environment(XTERM)) as terminal:
            terminal.read_until(rb"1 in flight")
            assert not terminal.cursor_is_visible()
            yield terminal
            if terminal.job:
                os.kill(terminal.job, signal.SIGKILL)


def ended(terminal: Terminal) -> int:
    code = int(terminal.report("ended"))
    terminal.job = 0
    return code


STOPS = [signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU]  # POSIX.1-2024, <signal.h>: default action S, except SIGSTOP


@pytest.mark.parametrize("stop", [None, *STOPS], ids=lambda stop: stop.name if stop else "Ctrl-Z")
def test_a_stopped_fetch_shows_the_cursor_and_its_view_again_when_it_continues(
    stop: signal.Signals | None, fetching: Terminal
) -> None:
    for _ in range(2):
        os.kill(fetching.job, stop) if stop else fetching.type(CTRL_Z)
        fetching.report("stopped")
        assert fetching.cursor_is_visible()
        before = len(fetching.output)
        fetching.command("fg")
        fetching.read_until(re.escape(HIDDEN), before)
        fetching.read_until(rb"1 in flight", before)
        assert not fetching.cursor_is_visible()
    fetching.type(CTRL_C)
    fetching.read_until(rb"second Ctrl-C")
    fetching.type(CTRL_C)
    assert ended(fetching) == 130
    assert fetching.cursor_is_visible()


# Draws and reads only on signals. One that arrives just before signal.pause() would not end it
DRAWN = """
import os, signal
from otel_connector.cli._terminal import live_view, output_console
reader, writer = os.pipe()
os.set_blocking(writer, False)
signal.set_wakeup_fd(writer)
with live_view(output_console(), auto_refresh=False) as live:
    signal.signal(signal.SIGUSR1, lambda *_: (live.refresh(), os._exit(7)))
    signal.signal(signal.SIGUSR2, lambda *_: (os.read(0, 1), os._exit(8)))
    live.update("drawn", refresh=True)
    while True:
        os.read(reader, 1)
"""


@pytest.fixture
def in_background(tmp_path: Path) -> Iterator[Terminal]:
    """Run a job that has hidden the cursor and continues in the background, where a write stops it (stty tostop)."""
    with on_terminal(tmp_path, ["-c", DRAWN], environment(XTERM)) as terminal:
        terminal.read_until(rb"drawn")
        terminal.stop_writers_in_background()
        terminal.type(CTRL_Z)
        terminal.report("stopped")
        terminal.command("bg")
        yield terminal


def test_a_job_in_the_background_does_not_draw(in_background: Terminal) -> None:
    """POSIX.1-2024, XBD, section 11.1.4: with TOSTOP, a write would send SIGTTOU."""
    os.kill(in_background.job, signal.SIGUSR1)
    assert int(in_background.report("ended")) == 7


def test_a_job_in_the_background_that_reads_is_stopped_with_a_visible_cursor(in_background: Terminal) -> None:
    """POSIX.1-2024, XBD, section 11.1.4: a read sends SIGTTIN."""
    os.kill(in_background.job, signal.SIGUSR2)
    for _ in range(2):
        in_background.report("stopped")
        assert in_background.cursor_is_visible()
        in_background.command("bg")
    in_background.report("stopped")
    in_background.command("fg")
    in_background.read_until(re.escape(HIDDEN), in_background.output.rfind(SHOWN))
    in_background.type(b"x\n")
    assert int(in_background.report("ended")) == 8


ENDS = sorted(set(SIGNALS) - {signal.SIGUSR1, signal.SIGUSR2})  # the program handles these two


@pytest.mark.parametrize("number", ENDS, ids=lambda number: signal.Signals(number).name)
def test_a_signal_ends_a_job_in_the_background(number: int, in_background: Terminal) -> None:
    """The write of the handler does not stop it."""
    os.kill(in_background.job, number)
    assert int(in_background.report("ended")) == -number
    assert in_background.cursor_is_visible()


def test_a_fetch_that_continues_in_the_background_leaves_the_cursor_to_the_shell(fetching: Terminal) -> None:
    fetching.type(CTRL_Z)
    fetching.report("stopped")
    before = len(fetching.output)
    fetching.command("bg")
    os.kill(fetching.job, signal.SIGINT)
    fetching.read_until(rb"second Ctrl-C", before)
    assert HIDDEN not in fetching.output[before:]
    os.kill(fetching.job, signal.SIGINT)
    assert ended(fetching) == 130


def test_a_job_that_starts_in_the_background_prints_lines(tmp_path: Path) -> None:
    program = (
        "from otel_connector.cli._fetch_view import FetchView; from otel_connector.__main__ import main\n"
        "FetchView.__init__.__kwdefaults__['line_interval'] = 0.1; main()"
    )
    with FaultServer() as server:
        server.script("/", [silent])
        arguments = ["-c", program, "fetch", server.url("/"), "--timeout", "600"]
        with on_terminal(tmp_path, arguments, environment(XTERM), job="bg") as terminal:
            terminal.read_until(rb"0/1 \(0 %\), 0/s")
            os.kill(terminal.job, signal.SIGKILL)
            terminal.report("ended")
            assert HIDDEN not in terminal.output


def test_ctrl_backslash_shows_the_cursor_and_ends_as_without_a_handler(fetching: Terminal) -> None:
    fetching.type(CTRL_BACKSLASH)
    assert ended(fetching) == -signal.SIGQUIT
    assert fetching.cursor_is_visible()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: signal.Signals(number).name)
def test_every_signal_that_ends_a_fetch_shows_the_cursor(number: int, fetching: Terminal) -> None:
    os.kill(fetching.job, number)
    orderly = number in {signal.SIGTERM, signal.SIGHUP}
    if orderly:
        fetching.read_until(rb"Stopping after 1 call in flight")
        os.kill(fetching.job, number)
    assert ended(fetching) == (128 + number if orderly else -number)
    assert fetching.cursor_is_visible()


def test_a_terminal_that_is_stopped_delays_no_signal(fetching: Terminal) -> None:
    fetching.type(b"\x13")  # Ctrl-S
    os.kill(fetching.job, signal.SIGALRM)
    assert ended(fetching) == -signal.SIGALRM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGTSTP])
def test_a_followed_review_shows_the_cursor(number: int, tmp_path: Path) -> None:
    write(tmp_path / "logs.csv", [call(0)])
    arguments = ["-m", "otel_connector", "review", "--follow", "logs.csv"]
    with on_terminal(tmp_path, arguments, environment(XTERM)) as terminal:
        terminal.read_until(rb"Busiest")
        assert not terminal.cursor_is_visible()
        os.kill(terminal.job, number)
        if number == signal.SIGTSTP:
            terminal.report("stopped")
            assert terminal.cursor_is_visible()
            terminal.command("fg")
            os.kill(terminal.job, signal.SIGINT)
        assert terminal.report("ended") == "130"
        assert terminal.cursor_is_visible()


def test_an_exception_shows_the_cursor(tmp_path: Path) -> None:
    write(tmp_path / "logs.csv", [call(0)])
    program = (
        "import sys; from otel_connector.cli._terminal import live_view, output_console\n"
        "with live_view(output_console()) as live:\n    live.update('drawn', refresh=True); raise ValueError('x')"
    )
    with on_terminal(tmp_path, ["-c", program], environment(XTERM)) as terminal:
        assert int(terminal.report("ended")) == 1
        assert HIDDEN in terminal.output
        assert terminal.output.rfind(SHOWN) > terminal.output.rfind(HIDDEN)


def test_signals_with_a_handler_or_that_are_ignored_are_left_alone() -> None:
    number = signal.SIGUSR1
    kept = signal.signal(number, signal.SIG_IGN)  # nohup does this with SIGHUP
    try:
        with _cursor.restored(1):
            assert signal.getsignal(number) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGUSR2) is not signal.SIG_DFL
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # of the program, while the view is shown
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGXCPU) is signal.SIG_DFL
    finally:
        signal.signal(number, kept)
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)


def test_a_view_in_another_thread_sets_no_handler() -> None:
    found: list[object] = []

    def view() -> None:
        with _cursor.restored(1):
            found.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=view)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


def test_a_terminal_that_takes_no_output_is_not_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    while select.select([], [writer], [], 0)[1]:
        os.write(writer, bytes(4_096))
    os.set_blocking(writer, True)
    _cursor._write(writer, SHOWN)
    os.close(reader)
    os.close(writer)
