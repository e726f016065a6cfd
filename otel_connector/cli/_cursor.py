"""Shows the cursor of a terminal while the program is stopped (Ctrl-Z), and after a signal that ends it.

A live view hides the cursor. Without this, the shell would have none. Does not know what is drawn.

Theory of operation. The handler of a signal writes to the descriptor itself, because a lock of the view or a part of
its output may be pending in the code that the signal interrupts. Then it gives the signal its default action and sends
it again. So the program stops or ends as it would without a handler, with the same status. SIGTTOU is blocked while the
handler writes: otherwise the write could stop a program in the background (POSIX.1-2024, XBD, section 11.1.4). A thread
that reads the terminal in the background sends SIGTTIN until the program stops. So the handler sends the signal while
it is blocked: if the program has stopped before it is unblocked, SIGCONT discards it, and the program stops once. A
signal that is ignored or has a handler of its own keeps it: ``nohup``, and commands that end in an orderly way and so
leave the view.

Used by ``cli._terminal``.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

_SHOW, _HIDE = b"\x1b[?25h", b"\n\x1b[?25l"  # DECTCEM; on a new line, below that of the shell
_STOPS = ("SIGTSTP", "SIGTTIN", "SIGTTOU")  # and SIGSTOP, which cannot be handled
_ENDS = (
    *("SIGHUP", "SIGQUIT", "SIGTERM", "SIGABRT", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGIO"),
    *("SIGXCPU", "SIGVTALRM", "SIGPROF"),
)


@contextmanager
def restored(descriptor: int) -> Generator[None]:
    """Show the cursor if a signal stops or ends the program in this block, which hides it.

    Args:
        descriptor: The terminal.
    """
    handling: set[int] = set()

    def handle(number: int, _: object) -> None:
        if number in handling:  # another thread got the signal, too
            return  # pragma: no cover - a matter of some microseconds
        handling.add(number)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {number, signal.SIGTTOU})
        _write(descriptor, _SHOW)
        signal.raise_signal(number)
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        # SIGCONT has arrived
        signal.signal(number, handle)
        handling.remove(number)
        if in_foreground(descriptor):
            _write(descriptor, _HIDE)

    # Only the main thread can set handlers. Windows has few of these signals, and no mask
    possible = hasattr(signal, "pthread_sigmask") and threading.current_thread() is threading.main_thread()
    numbers = [number for name in (*_STOPS, *_ENDS) if possible and (number := getattr(signal, name, None)) is not None]
    handled = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in handled:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in handled:
            if signal.getsignal(number) == handle:
                signal.signal(number, signal.SIG_DFL)


def in_foreground(descriptor: int) -> bool:
    """Whether the program may draw: a job in the background of a shell would draw over its prompt."""
    try:
        return os.tcgetpgrp(descriptor) in {os.getpgrp(), 0}  # 0: the group belongs to another container
    except (AttributeError, OSError):  # Windows, and terminals that control no job
        return True


def _write(descriptor: int, sequence: bytes) -> None:
    """Write without waiting, or not at all: a terminal may be stopped (Ctrl-S) or gone."""
    with suppress(OSError):
        if select.select([], [descriptor], [], 0)[1]:
            os.write(descriptor, sequence)
