"""The values of ``--header``: ``NAME: VALUE``, or ``@FILE`` with one header on each line, as in curl.

No message shows a value: it may be a secret, also where it is not a header. Does not know what is requested.

Used by ``cli._fetch_command``.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from otel_connector._arguments import TOKEN
from otel_connector.cli._option_errors import naming


def parsed_headers(values: Sequence[str], *, stdin_is_used: bool) -> list[tuple[str, str]]:
    """Return names and values.

    Args:
        values: The values of the option. ``@-`` is standard input. In a file, blank lines and lines that start with
            ``#`` are skipped.
        stdin_is_used: Whether the list of URLs is read from standard input.

    Raises:
        ValueError: A value or a line is not a header, a file cannot be read, or ``@-`` is given while standard input is
            used.
    """
    if stdin_is_used and "@-" in values:
        raise ValueError("--header @- and URLS - cannot both be standard input")
    found: list[tuple[str, str]] = []
    for number, value in enumerate(values, 1):
        if value.startswith("@"):
            found += _from_file(value)
        else:
            found.append(_header(value, "--header" if len(values) == 1 else f"--header number {number}"))
    return found


def _from_file(value: str) -> Iterator[tuple[str, str]]:
    with naming("--header"):
        content = _read(value[1:])
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"--header {value}: the file is not in UTF-8") from None
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            yield _header(line, f"--header {value}: line {number}")


def _read(path: str) -> bytes:
    if path != "-":
        return Path(path).read_bytes()
    if not sys.stdin:  # None: the shell closed it ("<&-")
        raise OSError(errno.EBADF, "standard input is closed", path)
    return sys.stdin.buffer.read()


def _header(text: str, where: str) -> tuple[str, str]:
    name, colon, value = map(str.strip, text.partition(":"))
    if not colon or not name:
        raise ValueError(f"{where} must be 'NAME: VALUE' or @FILE")
    if not TOKEN.fullmatch(name):
        raise ValueError(f"{where} must start with the name of a header (RFC 9110, section 5.6.2)")
    if not value.isprintable():
        raise ValueError(f"{where} {name!r} must be one line, without control characters")
    return name, value
