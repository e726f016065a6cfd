"""Runs a program on a pseudoterminal under a small shell with job control, as in an interactive session."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from support.forked import Program

SHOWN, HIDDEN = b"\x1b[?25h", b"\x1b[?25l"

# Starts a job. When it stops, takes the terminal back, reports that, and reads a command: fg or bg
_SHELL = """
import fcntl, os, signal, sys, termios
from support.forked import program
commands, reports = os.open(sys.argv[1], os.O_RDWR), os.open(sys.argv[2], os.O_RDWR)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpgrp()) if sys.argv[3] == "fg" else None
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.close(commands)
    os.close(reports)
    program(sys.argv[4:])()
else:
    os.write(reports, b"started %d\\n" % job)
while job:
    _, status = os.waitpid(job, os.WUNTRACED)
    try:
        os.tcsetpgrp(0, os.getpgrp())
    except OSError:
        pass  # the terminal is gone
    if not os.WIFSTOPPED(status):
        os.write(reports, b"ended %d\\n" % os.waitstatus_to_exitcode(status))
        break
    os.write(reports, b"stopped\\n")
    if os.read(commands, 3) == b"fg\\n":
        os.tcsetpgrp(0, job)
    os.killpg(job, signal.SIGCONT)
"""


class Terminal:
    """A pseudoterminal and the job that runs on it.

    Attributes:
        job: The process id of the job.
        output: Everything that was written to the terminal.
    """

    def __init__(self, master: int, commands: int, reports: int) -> None:
        self._master, self._commands, self._reports = master, commands, reports
        self._reported = b""
        self.output = b""
        self.job = int(self.report("started"))

    def read_until(self, pattern: bytes, start: int = 0) -> None:
        """Read until the output after `start` matches."""
        deadline = time.monotonic() + 30
        while not re.search(pattern, self.output[start:]):
            assert self._read(deadline - time.monotonic()), self.output[-500:]

    def type(self, keys: bytes) -> None:
        """Send keys, for example Ctrl-Z."""
        os.write(self._master, keys)

    def report(self, event: str) -> str:
        """Wait until the shell reports an event, and return its number."""
        deadline = time.monotonic() + 30
        while b"\n" not in self._reported:
            ready, _, _ = select.select([self._reports, self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no report: {event}"
            if self._reports in ready:
                self._reported += os.read(self._reports, 100)
            elif not self._read(0):
                select.select([self._reports], [], [], max(0.0, deadline - time.monotonic()))
                self._reported += os.read(self._reports, 100)
        text, _, self._reported = self._reported.partition(b"\n")
        while self._read(0):
            pass
        name, _, number = text.decode().partition(" ")
        assert name == event, text
        return number

    def stop_writers_in_background(self) -> None:
        """Do as ``stty tostop``."""
        attributes = termios.tcgetattr(self._master)
        attributes[3] |= termios.TOSTOP
        termios.tcsetattr(self._master, termios.TCSANOW, attributes)

    def command(self, name: str) -> None:
        """Give the shell a command for a stopped job: ``fg`` or ``bg``."""
        os.write(self._commands, f"{name}\n".encode())

    def hang_up(self) -> None:
        """Close the terminal, as a lost connection does."""
        os.close(self._master)
        self._master = os.open(os.devnull, os.O_RDWR)

    def cursor_is_visible(self) -> bool:
        """Whether the last sequence about the cursor shows it."""
        return self.output.rfind(SHOWN) >= self.output.rfind(HIDDEN)

    def _read(self, seconds: float) -> bool:
        with suppress(OSError):  # Linux reports this if no process has the terminal
            if select.select([self._master], [], [], max(0.0, seconds))[0]:
                piece = os.read(self._master, 65_536)
                self.output += piece
                return bool(piece)
        return False

    def close(self) -> None:
        """Close the descriptors."""
        for each in (self._master, self._commands, self._reports):
            os.close(each)


@contextmanager
def on_terminal(
    folder: Path, arguments: Sequence[str], env: Mapping[str, str], *, size: tuple[int, int] = (24, 80), job: str = "fg"
) -> Iterator[Terminal]:
    """Run ``python ARGUMENTS`` on a terminal of `size` (lines, columns), as a job in the foreground or background."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    with ExitStack() as stack:
        pipes = [Path(stack.enter_context(TemporaryDirectory()), name) for name in ("commands", "reports")]
        for pipe in pipes:
            os.mkfifo(pipe)
        ends = [os.open(pipe, os.O_RDWR) for pipe in pipes]
        shell = ["-c", _SHELL, *map(str, pipes), job, *arguments]
        stack.enter_context(Program(shell, cwd=folder, env=dict(env), stdin=slave, stdout=slave, stderr=slave))
        os.close(slave)
        terminal = Terminal(master, *ends)
        try:
            yield terminal
        finally:
            terminal.close()
