"""The options of ``otel-connector review``, with their help texts.

Does not know what their values are used for.

Used by ``cli._review_command``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from otel_connector.cli._option_errors import path_option

DEFAULT_TOP = 20  # projects, hosts, endpoints and errors

Files = Annotated[
    list[str],
    typer.Argument(metavar="FILES...", help="Logs, plain or gzip, complete or being written; or quoted patterns."),
]
Html = Annotated[Path | None, path_option("--html", text="Write an HTML report, a single file.")]
Png = Annotated[Path | None, path_option("--png", text="Write charts: night.png gives night-latency.png and so on.")]
Svg = Annotated[Path | None, path_option("--svg", text="Write the charts as SVG.")]
TraceUrl = Annotated[
    str | None,
    typer.Option(metavar="TEMPLATE", help="Link traces, e.g. 'http://localhost:16686/trace/{trace_id}'."),
]
Urls = Annotated[
    Path | None,
    path_option("--urls", text="The list of URLs that were to be fetched: those without a row are counted."),
]
Title = Annotated[
    str | None, typer.Option(metavar="TEXT", help="The heading of the report. Default: the names of the logs.")
]
Timezone = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The time zone of the times shown, e.g. Europe/Berlin. Default: UTC."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print the result as CSV.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print the result as Markdown.")]
FailIf = Annotated[
    str | None,
    typer.Option(metavar="CONDITION", help="Exit with 1 if this condition holds, e.g. 'p99 > 2s or error_rate > 1%'."),
]
Compare = Annotated[bool, typer.Option("--compare", help="Compare two logs: FILES are before and after.")]
Since = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Only calls that started at or after this UTC time (ISO 8601), or this long ago (2h)."
    ),
]
Where = Annotated[str | None, typer.Option(metavar="SQL", help="Only calls for which this SQL condition holds.")]
Sql = Annotated[
    str | None, typer.Option(metavar="QUERY", help="Print the result of this query (DuckDB SQL) on the table calls.")
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Update the summary while the log grows, until Ctrl-C.")]
MaxUnpackedBytes = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=1,
        help="Maximum size of all compressed logs after decompression. A log that exceeds it is not read.",
    ),
]
Top = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help=f"Maximum number of projects, hosts, endpoints and errors to list. Default: {DEFAULT_TOP}, or what fits a"
        " terminal.",
    ),
]
