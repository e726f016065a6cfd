"""Checks of arguments.

Each check returns the argument in the form that the package uses, or raises a `TypeError` or `ValueError` whose message
starts with the name of the argument. This file does not know what the arguments are used for; it opens, sends and waits
for nothing.

Used by ``_call``, ``_connector``, ``_csv``, ``_fetch``, ``_replay``, ``_telemetry``, ``cli``, ``csv_exporter``,
``providers``, ``review`` and ``testing``.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import AsyncIterable, Iterable
from typing import Any, TypeVar, cast

import aiohttp
from yarl import URL

from otel_connector._clock import Clock

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2: the name of a header

TEMPLATE_LENGTH = 1_024  # characters: far more than any route of an API has

_Kind = TypeVar("_Kind")


def check_call(session: Any, project: Any, decode: Any, options: dict[str, Any]) -> None:
    """Check the arguments of a call, and those of its options that the connector uses."""
    if not isinstance(session, aiohttp.ClientSession):
        raise TypeError(f"session must be an aiohttp.ClientSession, not {type(session).__name__}")
    if not isinstance(project, str):
        raise TypeError(f"project_name must be a str, not {type(project).__name__}")
    if not callable(decode):
        raise TypeError(f"decode must be callable, not {type(decode).__name__}")
    if not options:
        return
    if "max_redirects" in options:
        checked_int("max_redirects", options["max_redirects"], least=0)
    if "read_bufsize" in options:  # with 0, a body would never be read to its end
        checked_int("read_bufsize", options["read_bufsize"])
    if "raise_for_status" in options:
        raise TypeError("raise_for_status is not an option of get, which always raises HTTPStatusError")


def check_bool(name: str, value: object) -> None:
    """Reject a value that is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Reject a value that is not one of some texts."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, not {value!r}")


def checked_text(name: str, value: object) -> str:
    """Return a text that contains more than white space."""
    text = str.__str__(checked_instance(name, value, str))  # of a subclass, such as an Enum's member, what it holds
    if not text.strip():
        raise ValueError(f"{name} must not be empty")
    return text


def checked_template(value: object) -> str:
    """Return a template of paths, such as ``/items/{id}``."""
    text = checked_text("template", value)
    if len(text) > TEMPLATE_LENGTH:
        raise ValueError(f"template must have at most {TEMPLATE_LENGTH:,} characters, not {len(text):,}")
    return text


def checked_instance(name: str, value: object, kind: type[_Kind]) -> _Kind:
    """Return a value that is an instance of `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, not {type(value).__name__}")
    return value


def checked_hook(name: str, value: Any, *, awaited: bool = False) -> Any:
    """Return a callable, or None; a coroutine function is accepted only if its result is `awaited`."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable, not {type(value).__name__}")
    method = inspect.getattr_static(type(value), "__call__", None)  # of an instance of a class
    if not awaited and (inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(method)):
        raise TypeError(f"{name} must be a plain function, not a coroutine function, which would not be awaited")
    return value


def checked_limiter(value: Any) -> Any:
    """Return an async context manager, a function that returns one, or None."""
    if value is None or callable(value) or hasattr(value, "__aenter__"):
        return value
    raise TypeError(
        "rate_limiter must be an async context manager, or a function from host:port to one, "
        f"not {type(value).__name__}"
    )


def checked_int(name: str, value: object, least: int = 1) -> int:
    """Return an int that is at least `least`, and not a bool."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
    return value


def checked_number(name: str, value: object, of: str = "", hint: str = "") -> float:
    """Return an int or a float, and not a bool; `of` tells what it counts, `hint` is appended to the message."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number{of}, not {value!r}{hint}")
    return value


def checked_seconds(
    name: str, value: object, *, positive: bool = False, unit: str = "seconds", hint: str = ""
) -> float:
    """Return a finite number of seconds, 0 or more.

    Args:
        name: The argument, as the caller wrote it.
        value: Its value.
        positive: Refuse 0, too.
        unit: What the number counts, if not seconds.
        hint: Appended to the message, for example how to set no limit.
    """
    number = checked_number(name, value, f" of {unit}", hint)
    if not 0 <= number <= sys.float_info.max or (positive and number == 0):
        least = "more than 0" if positive else "0 or more"
        raise ValueError(f"{name} must be {least} {unit}, and finite, not {value!r}{hint}")
    return float(number)


def checked_timeout(value: object) -> aiohttp.ClientTimeout:
    """Return the limits of one attempt."""
    if isinstance(value, aiohttp.ClientTimeout):
        for field in ("total", "connect", "sock_read", "sock_connect"):
            if (limit := getattr(value, field)) is not None:
                checked_seconds(f"timeout.{field}", limit)
        return value
    # 0 is rejected, because aiohttp uses it for no limit
    seconds = checked_seconds("timeout", value, positive=True, hint="; aiohttp.ClientTimeout(total=None) sets no limit")
    # By default, aiohttp rounds limits above 5 s up to whole seconds of the loop's clock
    return aiohttp.ClientTimeout(total=seconds, ceil_threshold=sys.float_info.max)


def checked_deadline(value: object) -> float | None:
    """Return the seconds for a whole call, or None."""
    if value is None:
        return None
    return checked_seconds("deadline", value, positive=True, hint="; None sets no limit")


def check_provider(name: str, value: object, method: str) -> None:
    """Reject a provider that does not have `method`; None stands for the global provider."""
    if value is not None and (isinstance(value, type) or not callable(getattr(value, method, None))):
        raise TypeError(f"{name} must have a method {method}, which {type(value).__name__} does not have")


def checked_clock(value: Any) -> Clock:
    """Return a value that has the methods of `Clock`."""
    if isinstance(value, type) or not all(
        callable(getattr(value, method, None)) for method in ("time_ns", "monotonic_ns", "sleep", "random")
    ):
        raise TypeError(f"clock must be a Clock, not {type(value).__name__}")
    return cast("Clock", value)


def checked_urls(value: Any) -> Any:
    """Return an iterable or async iterable; a single URL is rejected."""
    if isinstance(value, (str, bytes, URL)):
        raise TypeError("urls must be an iterable of URLs, not a single one; use get for that")
    if not isinstance(value, (Iterable, AsyncIterable)):
        raise TypeError(f"urls must be an iterable or an async iterable of URLs, not {type(value).__name__}")
    return cast("Any", value)


def checked_path(name: str, value: object, expected: str = "a path") -> str:
    """Return a path as text; `expected` describes the accepted types in the message."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be {expected}, not {type(value).__name__}")
    text: object = os.fspath(cast("os.PathLike[Any]", value))
    if isinstance(text, bytes):
        raise TypeError(f"{name} must be a path of text, not of bytes: {value!r}")
    if not isinstance(text, str) or not text:
        raise ValueError(f"{name} must be a path of at least one character, not {value!r}")
    return text


def checked_paths(name: str, value: object) -> list[str]:
    """Return paths of logs as a list of str."""
    return [os.fsdecode(path) for path in _items(name, value, (str, os.PathLike), "True, False, or paths of logs")]


def checked_names(name: str, value: object) -> frozenset[str]:
    """Return names of query parameters as a set."""
    return frozenset(_items(name, value, (str,), "names of query parameters"))


def _items(name: str, value: object, kinds: tuple[type, ...], expected: str) -> list[Any]:
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        items = list(cast("Iterable[object]", value))
        if all(isinstance(item, kinds) for item in items):
            return items
    raise TypeError(f"{name} must be {expected}, not {value!r}")
