"""A signal that ends the program, put off until what is in memory is out.

Knows nothing of what is finished, and takes nothing away from the program: whatever a signal did before, it does after.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, cast

_A_MOMENT = 0.001  # seconds: some hundred rows are written in it


def checked_signals(signals: object) -> list[signal.Signals]:
    """Return the signals that a program can be told to finish on.

    Raises:
        TypeError: It is no collection of signals.
        ValueError: There is no such signal here, nobody can handle it, or this is not the main thread.
    """
    if isinstance(signals, (str, bytes)) or not isinstance(signals, Iterable):
        raise TypeError(f"signals must be signals, such as (signal.SIGTERM,), not {signals!r}")
    checked: list[signal.Signals] = []
    for each in cast("Iterable[object]", signals):
        if isinstance(each, bool) or not isinstance(each, int):
            raise TypeError(f"signals must be signals, such as signal.SIGTERM, not {each!r}")
        try:
            number = signal.Signals(each)
        except ValueError:
            raise ValueError(f"signals: there is no signal {each!r} here") from None
        if number in {getattr(signal, "SIGKILL", None), getattr(signal, "SIGSTOP", None)}:
            raise ValueError(f"signals: nobody can handle {number.name}")
        checked.append(number)
    if checked and threading.current_thread() is not threading.main_thread():
        raise ValueError("signals can be handled in the main thread only; call configure() there, or without them")
    return checked


def finish_on(signals: Iterable[signal.Signals], finish: Callable[[], bool]) -> None:
    """Have `finish` called when one of the signals comes, and then what the signal did so far.

    `finish` returns False if the signal interrupted what has to be finished; then it comes again a moment later.

    A handler of the program's own that is installed later takes the place of this one; one that was there before runs
    after `finish`, also one of the event loop's (`loop.add_signal_handler`).
    """
    for number in signals:
        signal.signal(number, partial(_finish, finish, signal.getsignal(number)))


def _finish(finish: Callable[[], bool], before: Any, number: int, frame: FrameType | None) -> None:
    if not finish():
        with suppress(RuntimeError):  # the program ends, and no thread can be started any more
            again = threading.Timer(_A_MOMENT, signal.raise_signal, (number,))
            again.daemon = True
            again.start()
            return
    if callable(before):
        before(number, frame)
    elif before == signal.SIG_DFL:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
