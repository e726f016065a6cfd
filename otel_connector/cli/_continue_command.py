"""The commands that continue a run: for a stopped ``otel-connector fetch``, and for the review of a log.

The first is made of the options as they were parsed. Secrets are replaced, and the result is one line that a shell
reads back as the same arguments. Does not know how a fetch runs.

Used by ``cli._demo_command``, ``cli._fetch_command`` and ``cli._fetch_view``.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from otel_connector._fetch._url_lists import is_url
from otel_connector._redact import REDACTED, Redactor

if TYPE_CHECKING:
    import typer

_PLACEHOLDER = re.compile(r"\{[^{}]*\}")
_NUMBER = "7036014592"  # stands for the placeholder, so that a template is a URL


def continue_command(context: typer.Context, redactor: Redactor) -> str:
    """Return the command. If it contains ``REDACTED``, the secrets have to be inserted.

    Args:
        context: The arguments of the command that was stopped.
        redactor: Redacts URLs.
    """
    words = ["otel-connector", "fetch"]
    after: list[str] = []
    for parameter in context.command.params:
        name: str = parameter.name or ""
        source = context.get_parameter_source(name)
        if name == "resume" or source is None or source.name != "COMMANDLINE":
            continue
        value: Any = context.params[name]
        if name == "source":
            text = _shown_url(value, redactor, template=context.params.get("numbers") is not None)
            # A file whose name looks like an option has to follow the options
            (after if text.startswith("-") and text != "-" else words).append(text)
        elif isinstance(value, bool):
            words.append((parameter.opts if value else parameter.secondary_opts)[0])
        else:
            values = cast("list[Any]", value if isinstance(value, (list, tuple)) else [value])
            for text in map(str, values):
                words += _option(parameter.opts[0], _shown_header(text) if name == "header" else text)
    return " ".join(map(_quoted, [*words, "--resume", *(["--", *after] if after else [])]))


def _option(name: str, value: str) -> Generator[str]:
    if value.startswith("-"):
        yield f"{name}={value}"
    else:
        yield name
        yield value


def _shown_header(header: str) -> str:
    return header if header.startswith("@") else f"{header.partition(':')[0]}: {REDACTED}"


def review_command(log: Path) -> str:
    """Return a line with the command that reviews a log."""
    name = str(log)
    return f"Review: otel-connector review {_quoted(f'./{name}' if name.startswith('-') else name)}"


def _shown_url(source: str, redactor: Redactor, *, template: bool) -> str:
    """Return a URL or a template without its secrets; the placeholder of a template stays, also in a secret."""
    if not template:
        return redactor.url(source) if is_url(source) else source
    placeholder = found[0] if (found := _PLACEHOLDER.search(source)) else "{}"
    url = source.replace(placeholder, _NUMBER)
    secrets = redactor.secrets(url)
    if secrets is None:
        return f"{REDACTED}{placeholder}"
    pieces: list[str] = []
    kept = 0
    for start, end, _ in sorted(secrets):
        if end > kept:
            pieces += url[kept:start], _NUMBER.join(REDACTED if part else "" for part in url[start:end].split(_NUMBER))
            kept = end
    return "".join([*pieces, url[kept:]]).replace(_NUMBER, placeholder)


def _quoted(word: str) -> str:
    """Return a word as bash, zsh and ksh read it (POSIX.1-2024, section 2.2.4, for what cannot be printed)."""
    if word.isascii() and word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(_escaped(byte) for byte in os.fsencode(word)) + "'"


def _escaped(byte: int) -> str:
    char = chr(byte)
    return char if char.isascii() and char.isprintable() and char not in "\\'" else f"\\x{byte:02x}"
