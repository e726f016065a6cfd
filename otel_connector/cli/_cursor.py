"""Shows the cursor of a terminal while the program is stopped (Ctrl-Z), and after a signal that ends it.

A live view hides the cursor. Without this, the shell would have none. Does not know what is drawn.

Theory of operation. The handler of a signal writes to the descriptor itself, because a lock of the view or a part of
its output may be pending in the code that the signal interrupts. Then it gives the signal its default action and sends
it again. So the program stops or ends as it would without a handler, with the same status. A signal that is ignored or
has a handler of its own keeps it: ``nohup``, and commands that end in an orderly way and so leave the view.

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
_STOP = "SIGTSTP"
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

    def handle(number: int, _: object) -> None:
        _write(descriptor, _SHOW)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, handle)  # SIGCONT has arrived
        if in_foreground(descriptor):
            _write(descriptor, _HIDE)

    # Only the main thread can set handlers. Windows has few of these signals
    names = [_STOP, *_ENDS] if threading.current_thread() is threading.main_thread() else []
    numbers = [number for name in names if (number := getattr(signal, name, None)) is not None]
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
