"""Finish work when a signal arrives, before the signal has its usual effect.

The previous handler, or the default action, runs afterwards. This file does not know what the work is.

Used by ``providers``.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, cast

_RETRY_SECONDS = 0.001  # enough to write several hundred rows


def checked_signals(signals: object) -> list[signal.Signals]:
    """Return the signals that can be handled.

    Raises:
        TypeError: `signals` is not a collection of signals.
        ValueError: A signal does not exist here or cannot be handled, or this is not the main thread.
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
            raise ValueError(f"signals: {each!r} is not a signal on this system") from None
        if number in {getattr(signal, "SIGKILL", None), getattr(signal, "SIGSTOP", None)}:
            raise ValueError(f"signals: {number.name} cannot be handled")
        checked.append(number)
    if checked and threading.current_thread() is not threading.main_thread():
        raise ValueError("signals can be handled only in the main thread; call configure() there, or without them")
    return checked


def finish_on(signals: Iterable[signal.Signals], finish: Callable[[], bool]) -> None:
    """Call `finish` when one of the signals arrives, then the previous handler or action of the signal.

    `finish` returns False if the signal has interrupted the work. Then the signal is raised again a moment later.

    A handler that the program installs later replaces this one. A handler that was installed before runs after
    `finish`, including one of the event loop (`loop.add_signal_handler`).
    """
    for number in signals:
        signal.signal(number, partial(_finish, finish, signal.getsignal(number)))


def _finish(finish: Callable[[], bool], previous: Any, number: int, frame: FrameType | None) -> None:
    if not finish():
        with suppress(RuntimeError):  # the interpreter is exiting and starts no thread
            again = threading.Timer(_RETRY_SECONDS, signal.raise_signal, (number,))
            again.daemon = True
            again.start()
            return
    if callable(previous):
        previous(number, frame)
    elif previous == signal.SIG_DFL:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
