"""One voice for bad arguments: every check of this package names the argument. Knows nothing of what they are for."""

from __future__ import annotations

import importlib
from typing import Any, TypeVar

_T = TypeVar("_T")


def whole(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return `value` if it is an int (no bool) in [low, high].

    Raises:
        TypeError: it is no int.
        ValueError: it is out of bounds.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be {bounds}, not {value}")
    return value


def instance(name: str, value: object, kind: type[_T]) -> _T:
    """Return `value` if it is of the class `kind`; raise TypeError if not."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be of type {kind.__name__}, not {type(value).__name__}")
    return value


def optional_module(name: str, *, wanted_by: str, install: str = "'otel-connector[testing]'") -> Any:
    """Import a package that the connector itself does without; `install` is what pip has to be asked for.

    Raises:
        ImportError: it is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        message = f"{wanted_by} needs {name}: pip install {install}"
        raise ImportError(message, name=name) from error
