"""The options of ``otel-connector review``, as its help shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILES...", show_default=False, help="Logs, plain or gzip, also being written; or patterns, in quotes."
    ),
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html", metavar="PATH", show_default=False, help="Write a report for the browser: one file, no network."
    ),
]
Png = Annotated[
    Path | None,
    typer.Option(
        "--png",
        metavar="PATH",
        show_default=False,
        help="Write the pictures: night.png is night-latency.png and so on.",
    ),
]
Svg = Annotated[Path | None, typer.Option("--svg", metavar="PATH", show_default=False, help="Write them as SVG.")]
TraceUrl = Annotated[
    str | None,
    typer.Option(
        metavar="TEMPLATE",
        show_default=False,
        help="Where the report's links to traces lead, e.g. 'http://localhost:16686/trace/{trace_id}'.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print what there is to say as JSON.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print it as CSV.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print it as Markdown.")]
FailIf = Annotated[
    str | None,
    typer.Option(
        metavar="CONDITION", show_default=False, help="Exit with 1 if it holds, e.g. 'p99 > 2s or error_rate > 1%'."
    ),
]
Compare = Annotated[bool, typer.Option("--compare", help="Compare two logs: FILES are before and after.")]
Project = Annotated[
    list[str] | None, typer.Option(metavar="NAME", show_default=False, help="Only this project. Repeatable.")
]
Since = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", show_default=False, help="Only calls begun then or later: ISO 8601 in UTC, or 2h (ago)."
    ),
]
Until = Annotated[str | None, typer.Option(metavar="TIME", show_default=False, help="Only calls begun before.")]
Where = Annotated[
    str | None, typer.Option(metavar="SQL", show_default=False, help="Only calls for which this condition holds.")
]
Sql = Annotated[
    str | None,
    typer.Option(metavar="QUERY", show_default=False, help="Answer this instead, in DuckDB's SQL on the table calls."),
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Look again while the log is written, until Ctrl-C.")]
Top = Annotated[int, typer.Option(metavar="N", min=1, help="How many projects, hosts and errors are told apart.")]
