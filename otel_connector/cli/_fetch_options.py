"""The options of ``otel-connector fetch``, as its help shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from otel_connector._fetch._fetch import CONDITION_NAMES

Source = Annotated[
    str,
    typer.Argument(
        metavar="URLS",
        show_default=False,
        help="A file of URLs, one a line (blank lines and # comments are passed over); - for standard input; or,"
        " with --range, a template.",
    ),
]
Numbers = Annotated[
    str | None,
    typer.Option(
        "--range",
        metavar="FIRST:LAST[:STEP]",
        help="URLS is a template, and these whole numbers, both ends included, take the place of its {} ({:05} for"
        " leading zeros).",
    ),
]
Project = Annotated[str, typer.Option(metavar="NAME", help="What the calls belong to, in the log.")]
Log = Annotated[Path, typer.Option(metavar="PATH", help="CSV file; rows are appended.")]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH", show_default=False, help="Results as JSON lines; compressed if it ends in .gz or .zst."
    ),
]
Concurrency = Annotated[int, typer.Option(metavar="N", min=1, help="Calls under way at a time.")]
Rate = Annotated[float | None, typer.Option(metavar="N", show_default=False, help="Attempts a second, at most.")]
PerHost = Annotated[
    int,
    typer.Option(metavar="N", min=0, help="Calls to one host at a time; fewer while it throttles. 0: no limit."),
]
Tries = Annotated[int, typer.Option(metavar="N", min=1, help="Attempts of a call in all.")]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="For one attempt.")]
Deadline = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", show_default=False, help="For a call, all its attempts and waits included."),
]
RetryStatus = Annotated[
    list[int] | None,
    typer.Option(metavar="STATUS", show_default=False, help="Try this status again, too. May be repeated."),
]
Header = Annotated[
    list[str] | None,
    typer.Option("--header", "-H", metavar="'NAME: VALUE'", show_default=False, help="May be repeated."),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Pass over URLs that are done by the log, and in --out if given; append to it."),
]
ResumeFrom = Annotated[
    list[Path] | None,
    typer.Option(metavar="LOG", show_default=False, help="Pass over what this log says is done, too. Repeatable."),
]
Dedupe = Annotated[
    bool, typer.Option("--dedupe", help="Fetch a URL that comes again only once; keeps all URLs in memory.")
]
FailIf = Annotated[
    str,
    typer.Option(
        metavar="CONDITION",
        help=f"Exit with 1 if it holds, e.g. 'error_rate > 1% or calls < 100'. Names: {', '.join(CONDITION_NAMES)}.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
