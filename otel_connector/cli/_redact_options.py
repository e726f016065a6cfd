"""The options that select which parameters are redacted, shared by ``fetch`` and ``replay``.

Does not know what is redacted.

Used by ``cli._fetch_command`` and ``cli._replay_command``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from otel_connector._arguments import checked_text
from otel_connector._redact import DEFAULT_REDACTED_PARAMS, Redactor

Redact = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Redact this URL parameter as well. Repeatable.")
]
NoRedact = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Do not redact this URL parameter. Repeatable.")
]


def redacted_params(redact: Iterable[str] | None, no_redact: Iterable[str] | None) -> frozenset[str]:
    """Return the names of the parameters to redact.

    Raises:
        ValueError: A name of `redact` is empty, or a name of `no_redact` is not redacted by default.
    """
    for name in redact or ():
        checked_text("--redact", name)
    names = DEFAULT_REDACTED_PARAMS | frozenset(redact or ())
    listed = Redactor(names).listed_name
    kept = set[str]()
    for name in no_redact or ():
        if not listed(name):
            raise ValueError(f"--no-redact {name!r} is not a parameter that is redacted by default")
        kept.add(listed(name))
    return names - kept
