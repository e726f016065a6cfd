"""Copies the options of a call that aiohttp reads at every request, so that every attempt sends the same.

A call sends its options several times: for each attempt, each redirect, and each request that aiohttp repeats by
itself. An iterator is empty after the first time, and a file is at its end. This file does not know how requests are
sent.

Used by ``_call._call`` and ``_connector``.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, cast

import aiohttp
from multidict import CIMultiDict, MultiDict, MultiMapping
from yarl import URL

from otel_connector._call._urls import with_params

_ANY_URL = URL("http://localhost/")

_WHOLE = frozenset({str, bytes, bytearray, memoryview})
_READ_ONCE: tuple[type, ...] = (io.IOBase, Iterator, AsyncIterable, aiohttp.Payload, aiohttp.FormData)


def repeatable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the options of ``aiohttp.ClientSession.get`` that can be sent any number of times.

    Raises:
        TypeError: `data` can be read only once, or `headers` is neither a mapping nor pairs of names and values.
        ValueError: A pair of `headers` has another length.
    """
    return {name: _COPIES[name](value) if name in _COPIES else value for name, value in options.items()}


def shared_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `repeatable` copy of the options of many calls, of which each call then makes its own.

    Raises:
        TypeError: As `repeatable`, or `params` has a type that aiohttp does not accept.
        ValueError: As `repeatable`, or `params` has a value that a URL cannot hold.
    """
    copy = repeatable(options)
    if copy.get("params"):
        with_params(_ANY_URL, copy["params"])
    return copy


def own_headers(headers: Any) -> CIMultiDict[str] | None:
    """Return a copy of a call's own headers, None if there are none.

    Raises:
        TypeError: `headers` is neither a mapping nor pairs of names and values.
        ValueError: A pair has another length.
    """
    if not headers:
        return None
    try:
        own = CIMultiDict[str](headers)
    except (TypeError, ValueError) as error:
        raise type(error)(f"headers: {error}") from error
    for name, value in cast("Iterable[tuple[str, object]]", own.items()):
        if not isinstance(value, str):
            raise TypeError(f"headers: {name} must be a str, not {type(value).__name__}")
    return own


def _copied(value: object) -> object:
    """Return a copy of a mapping or an iterable; any other value as it is, because aiohttp's error names it."""
    given: Any = value
    if isinstance(value, MultiMapping):
        return MultiDict(given)
    if isinstance(value, Mapping):
        return dict(given)
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return list(given)
    return value


def _body(value: Any) -> object:
    """Return `data`, copied; refuse what can be read only once, also as a field of a form."""
    if type(value) in _WHOLE:
        return value
    for part in _parts(value):
        if isinstance(part, _READ_ONCE):
            read_once = f"a call may send it several times, and a {type(part).__name__} can be read only once"
            raise TypeError(f"data must be bytes, text, or fields of these: {read_once}")
    return _copied(value)


def _parts(value: object) -> list[object]:
    """Return `data` itself, or the names and values of the form that it stands for."""
    given: Any = value
    if isinstance(value, Mapping):
        return list(given.values())
    if isinstance(value, (list, tuple)):
        pairs: list[Any] = [pair if isinstance(pair, tuple) else (pair,) for pair in given]
        return list(chain.from_iterable(pairs))
    return [value]


_COPIES: dict[str, Callable[[Any], Any]] = {
    "cookies": _copied,
    "data": _body,
    "headers": own_headers,
    "middlewares": _copied,
    "params": _copied,
    "proxy_headers": _copied,
    "skip_auto_headers": _copied,
}
