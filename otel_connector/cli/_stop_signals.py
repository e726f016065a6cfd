"""SIGINT, SIGTERM and SIGHUP: the first one stops a command so that its rows, spans and metrics are kept.

Ctrl-C sends SIGINT. ``docker stop``, Kubernetes and systemd send SIGTERM, and SIGKILL some seconds later. A terminal
that is lost sends SIGHUP. A signal that is ignored at the start stays ignored, as in a shell: ``nohup`` ignores SIGHUP,
and a script starts ``command &`` with SIGINT ignored (POSIX.1-2024, XCU, section 2.12). Does not know the commands.

Theory of operation. The handler runs in the main thread, between any two steps of the program. It raises `Stopped`,
which ends the command, until the command calls `defer`. From then on a first signal calls an action of the command
while its event loop runs (`calling`), and has no effect before and after: what remains then is bounded, such as the
export of the last spans. Each signal beyond the actions raises `Stopped` again. If a disk or a stopped terminal blocks
the main thread, another thread ends the process.

Used by ``cli``, ``cli._demo_command``, ``cli._fetch_command`` and ``cli._replay_command``.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

CALLS_SECONDS = 3.0
"""How long the calls in flight may take after SIGTERM or SIGHUP. The export of the last spans takes up to 4 s more."""

_ALL_SECONDS = 9.0  # until the end of the process in any case; ``docker stop`` sends SIGKILL after 10 s
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows lacks the last one


class Stopped(SystemExit):
    """A signal ends the command. Its exit code is that of a shell: 128 and the number of the first signal."""


class StopSignals:
    """The signals that a command has received."""

    def __init__(self) -> None:
        self._received: list[int] = []
        self._actions: Sequence[Callable[[], object]] = ()
        self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]

    @property
    def exit_code(self) -> int:
        """128 and the number of the first signal; 0 without any."""
        return 128 + self._received[0] if self._received else 0

    @property
    def interactive(self) -> bool:
        """Whether the first signal was SIGINT: its sender waits, and can send another one."""
        return self._received[:1] == [signal.SIGINT]

    def defer(self) -> None:
        """Let the command continue after a first signal: `calling` follows, or little remains to be done."""
        self._actions = (int,)  # does nothing

    @contextmanager
    def calling(self, *actions: Callable[[], object]) -> Generator[None]:
        """Call the first action for a first signal in this block or before it, the second one for the next, and so on.

        A signal at the start of the block may call its action twice. Afterwards, signals are deferred again.
        """
        self._actions = actions
        for action in actions[: len(self._received)]:
            action()
        try:
            yield
        finally:
            self.defer()

    def handle(self, number: int, _: FrameType | None) -> None:
        """Handle a signal.

        Raises:
            Stopped: The command has no action for it.
        """
        count = len(self._received)
        self._received.append(number)
        if count == 0 and not self.interactive:
            self._leave_lost_terminal()
            timer = threading.Timer(_ALL_SECONDS, os._exit, (self.exit_code,))
            timer.daemon = True
            timer.start()
        if count >= len(self._actions):
            raise Stopped(self.exit_code)
        self._actions[count]()

    def _leave_lost_terminal(self) -> None:
        """Discard the output from now on if its terminal is lost: a write would raise an error."""
        for stream in self._terminals:
            if not os.isatty(stream):
                with suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


@contextmanager
def handled_signals() -> Generator[StopSignals]:
    """Handle the signals in this block, and return them."""
    received = StopSignals()
    numbers = [number for name in _NAMES if (number := getattr(signal, name, None)) is not None]
    before = {number: signal.getsignal(number) for number in numbers}
    changed = [number for number in numbers if before[number] is not signal.SIG_IGN]
    for number in changed:
        signal.signal(number, received.handle)
    try:
        yield received
    finally:
        for number in changed:
            signal.signal(number, before[number])
