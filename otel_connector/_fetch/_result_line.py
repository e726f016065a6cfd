r"""The JSON line of one result: how it is written, and how the call that it belongs to is found again.

Every reader sees one line, regardless of the characters in the URL and the body. Does not know files, compression or
calls.

Used by ``_fetch._results``.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, cast

# Some readers treat these characters as the end of a line. In JSON they are ordinary characters
_LINE_ENDS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})
_TO_SPACES = str.maketrans("\r\n", "  ")

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape; also one of a pair
_LONG_EXPONENT = re.compile(r"[eE][+-]?[0-9]{10}")
_MAX_INTEGER = 2**127  # polars rejects a file with a larger one
_MAX_DEPTH = 100  # DuckDB rejects a file with more than 128 levels, jq 1.6 one with more than 256

# As `result_line` writes it. The URL before it cannot contain this text, because its quotes are escaped
_CALL = re.compile(rb'","call_id":"([0-9a-f]+-[0-9a-f]+)",(?:"t":([0-9]+\.[0-9]{6}),)?"status":')
_MAX_HEAD_BYTES = 2**17  # the part of a line in which the call is searched; URLs are shorter


def result_line(url: str, call_id: str, t: float, status: int | None, body: bytes) -> bytes:
    r"""Return the JSON line of one result, with its ``\n``: the body under ``json``, ``text`` or ``base64``.

    The text of JSON is copied, so that numbers keep every digit and objects keep their order. Only line breaks, which
    have no meaning there, become spaces. JSON for which some readers reject the whole file is stored as text: with a
    lone surrogate, a number beyond a double, two members of one name (RFC 7493, sections 2.1 to 2.3), an integer of
    more than 127 bits, or more than 100 levels.

    Args:
        url: The requested URL. Lone surrogates, which strict readers reject, are written as in the log: ``\ud800``.
        call_id: The id of its row.
        t: The start of the call, as in its row. Ids repeat in a program that seeds `random` before the SDK draws them.
        status: The HTTP status, or None if there is none.
        body: The body, undecoded.
    """
    head = f'"url":{_quoted(url)},"call_id":{_quoted(call_id)},"t":{t:.6f},"status":{json.dumps(status)}'
    return f"{{{head},{_content(body)}}}\n".encode()


def _content(body: bytes) -> str:
    try:
        return f'"json":{_json_on_one_line(body)}'
    except (ValueError, RecursionError):  # not JSON, or the detected encoding is wrong
        pass
    try:
        return f'"text":{_quoted(body.decode())}'
    except UnicodeDecodeError:
        return f'"base64":"{base64.b64encode(body).decode()}"'


def _json_on_one_line(body: bytes) -> str:
    """Return the text of a JSON document without line breaks.

    Raises:
        ValueError: The body is not JSON, or some readers reject it.
        RecursionError: It is nested too deeply.
    """
    text = body.decode(json.detect_encoding(body))
    value = json.loads(
        text,
        parse_constant=_refuse_constant,
        parse_float=_checked_float,
        parse_int=_checked_int,
        object_pairs_hook=_checked_object,
    )
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()  # raises UnicodeEncodeError for a lone surrogate
    if text.count("[") + text.count("{") > _MAX_DEPTH:
        _check_depth(value)
    # Strings contain no raw \r and \n, because JSON requires escapes there. `_LINE_ENDS` occur only in strings
    return text.translate(_TO_SPACES).translate(_LINE_ENDS)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _checked_float(text: str) -> float:
    if math.isinf(number := float(text)) or _LONG_EXPONENT.search(text):
        raise ValueError(f"{text} is not a number for all readers")
    return number


def _checked_int(text: str) -> int:
    if abs(number := int(text)) >= _MAX_INTEGER:
        raise ValueError(f"{text} is not an integer for all readers")
    return number


def _checked_object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(members)
    if len(value) != len(members):
        raise ValueError("two members have the same name")
    return value


def _children(container: Any) -> Iterable[Any]:
    return cast("dict[str, Any]", container).values() if isinstance(container, dict) else container


def _check_depth(value: Any) -> None:
    level: list[Any] = [[value]]
    for _ in range(_MAX_DEPTH + 1):
        level = [child for each in level for child in _children(each) if isinstance(child, (dict, list))]
        if not level:
            return
    raise ValueError(f"more than {_MAX_DEPTH} levels")


def _quoted(text: str) -> str:
    """Return `text` as a JSON string that every reader treats as one line."""
    encodable = text.encode("utf-8", "backslashreplace").decode()
    return json.dumps(encodable, ensure_ascii=False).translate(_LINE_ENDS)


def calls(pieces: Iterable[bytes]) -> Iterator[tuple[str, float | None]]:
    """Yield ``call_id`` and ``t`` of each line of a file that is read in pieces; lines without an id are skipped.

    Lines that version 0.1 wrote have no ``t``.

    Memory is bounded: of a long line, only the beginning is kept.
    """
    head, searching = b"", True  # the beginning of the current line, and whether its call is still searched
    for data in pieces:
        for number, piece in enumerate(data.split(b"\n")):
            if number:
                head, searching = b"", True
            if not searching:
                continue
            head += piece
            if (found := _CALL.search(head)) is not None:
                yield found[1].decode(), None if found[2] is None else float(found[2])
            searching = found is None and len(head) <= _MAX_HEAD_BYTES
