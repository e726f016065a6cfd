"""The options of ``otel-connector fetch``, with their help texts, except ``--redact`` and ``--no-redact``.

Their defaults are in ``_fetch_command``. This file does not know what their values are used for.

Used by ``cli._fetch_command``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from otel_connector._fetch._fetch import CONDITION_NAMES
from otel_connector.cli._option_errors import path_option

Source = Annotated[
    str,
    typer.Argument(
        metavar="URLS",
        help="A file with one URL per line (# starts a comment), - for stdin, a URL, or a template (see --range).",
    ),
]
Numbers = Annotated[
    str | None,
    typer.Option(
        "--range",
        metavar="FIRST:LAST[:STEP]",
        help="URLS is a template. Its {} is replaced by the numbers from FIRST to LAST, both included ({:05} adds"
        " leading zeros).",
    ),
]
Project = Annotated[str, typer.Option(metavar="NAME", help="Project of the calls in the log.")]
Log = Annotated[Path, path_option(text="CSV file; rows are appended.")]
Attempts = Annotated[
    bool,
    typer.Option(
        "--attempts/--no-attempts", help="Write the failed attempts to logs.attempts.csv, if the log is logs.csv."
    ),
]
Out = Annotated[
    Path | None, path_option(text="JSON lines file for the bodies; compressed if its name ends in .gz or .zst.")
]
Concurrency = Annotated[int, typer.Option(metavar="N", min=1, help="Maximum number of calls in flight.")]
Rate = Annotated[float | None, typer.Option(metavar="N", help="Maximum attempts per second.")]
PerHost = Annotated[
    int,
    typer.Option(
        metavar="N", min=0, help="Maximum attempts in flight per host; lowered while the host throttles. 0: no limit."
    ),
]
Tries = Annotated[int, typer.Option(metavar="N", min=1, help="Maximum attempts per call, including the first.")]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="Limit for one attempt.")]
Deadline = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Limit for a call, including all attempts and waits.")
]
RetryStatus = Annotated[
    list[int] | None,
    typer.Option(metavar="STATUS", help="Retry this status, in addition to the default ones. Repeatable."),
]
Header = Annotated[
    list[str] | None,
    typer.Option(
        "--header",
        "-H",
        metavar="'NAME: VALUE'",
        help="Request header, or @FILE with one on each line (@- for stdin). Repeatable.",
    ),
]
KeepCookies = Annotated[
    bool,
    typer.Option(
        "--keep-cookies",
        help="Send the cookies of a host with later calls to it. By default only with the redirects of the same call.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Skip URLs with a success in the log and, with --out, a result; append to both."),
]
ResumeFrom = Annotated[
    list[Path] | None, path_option(text="Also skip URLs that have a success in this log. Repeatable.", metavar="LOG")
]
Dedupe = Annotated[bool, typer.Option("--dedupe", help="Fetch a repeated URL only once. All URLs are kept in memory.")]
FailIf = Annotated[
    str,
    typer.Option(
        metavar="CONDITION",
        help="Exit with 1 if this condition holds, e.g. 'error_rate > 1% or calls < 100'. Names: "
        f"{', '.join(CONDITION_NAMES)}.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")]
