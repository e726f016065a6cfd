"""Imports packages that only some features need, with one message if they are missing. Does not know the features.

Used by ``_fetch._result_formats``, ``cli._fetch_command``, ``testing._encodings`` and ``testing._server``.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import Any


def optional_module(*names: str, needed_by: str, install: str) -> Any:
    """Import the first of some modules that is installed.

    Args:
        names: The modules, in the order of preference.
        needed_by: The option or class that needs it, for the message.
        install: The argument of ``pip install``, for the message.

    Raises:
        ImportError: None of them is installed; the message says how to install the last one.
    """
    for name in names:
        with suppress(ModuleNotFoundError):  # other errors of an installed module are raised
            return import_module(name)
    raise ImportError(f"{needed_by} needs {names[-1]}: pip install {install}", name=names[-1])
