"""``otel-connector replay``: its options, and what is said of a replay while it runs and at its end."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from otel_connector._record import one_line
from otel_connector._replay._replay import (
    DEFAULT_RATE,
    DEFAULT_SERVICE,
    CollectorRefused,
    Replay,
    Replayed,
    RowFilter,
    open_otlp,
)
from otel_connector.cli._demo import find_collector
from otel_connector.cli._exit_codes import INTERRUPTED, USAGE, WRONG, reason
from otel_connector.cli._terminal import complain, moves, output, say, unbreakable
from otel_connector.review._filters import moment

EPILOG = """\b
The collector is the one of OTEL_EXPORTER_OTLP_ENDPOINT (and _PROTOCOL, _HEADERS and so on), or one
that listens on this machine. Each row becomes the span that its call had: same ids, same times. How
far a log is sent is noted in LOG.replayed, so that a rerun goes on there. The same row is the same
span whenever it is sent.

\b
Exit code:
  0    all rows are sent
  1    lines are damaged; all others are sent
  2    an argument is wrong, a file cannot be read, or the collector did not take the spans
  130  stopped by Ctrl-C

\b
Examples:
  otel-connector replay logs.csv --otlp
  otel-connector replay logs.csv --otlp --failed-only --since 2026-11-25T03:00
  OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317 otel-connector replay --otlp --rate 5000 logs.csv.gz
"""


def replay(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILES...", show_default=False, help="Logs, plain or gzip; with the parts of rotated ones."
        ),
    ],
    otlp: Annotated[
        bool, typer.Option("--otlp", help="Send over OTLP: the one way there is, and so the default.")
    ] = True,
    rate: Annotated[float, typer.Option(metavar="N", help="Spans a second at most.")] = DEFAULT_RATE,
    project: Annotated[
        list[str] | None, typer.Option(metavar="NAME", show_default=False, help="Only this project. Repeatable.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", show_default=False, help="Only calls begun then or later: ISO 8601 in UTC."),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", show_default=False, help="Only calls begun before.")
    ] = None,
    failed_only: Annotated[bool, typer.Option("--failed-only", help="Only calls that failed.")] = False,
    service_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help=f"Default: OTEL_SERVICE_NAME, or {DEFAULT_SERVICE}."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="PATH", show_default=False, help="Default: each log's own, LOG.replayed.")
    ] = None,
    ignore_checkpoint: Annotated[
        bool, typer.Option("--ignore-checkpoint", help="Send all, also what was sent before.")
    ] = False,
) -> None:
    """Send the rows of a log to a collector as spans, so that a run without one can be looked at in Jaeger or Grafana.

    A span has the row's own trace and span ids and times. What a row does not have is not there: no parent, and no
    events for failed attempts. Spans are told from live ones by the resource attribute otel_connector.replayed.
    """
    del otlp
    try:
        wanted = _wanted(project, since, until, failed_only=failed_only)
        collector = find_collector(os.environ)
        if collector is not None:
            collector.tell_the_sdk(os.environ)
        exporter, to = open_otlp()
        run = Replay(
            files,
            exporter,
            to=to,
            service_name=service_name,
            wanted=wanted,
            rate=rate,
            checkpoint=checkpoint,
            ignore_checkpoint=ignore_checkpoint,
        )
        try:
            _show_progress(run, to)
        except KeyboardInterrupt:
            say(output(), f"Stopped; sent: {run.replayed().sent:,}. The same command goes on there.")
            raise typer.Exit(INTERRUPTED) from None
        finally:
            exporter.shutdown()
    except (CollectorRefused, ImportError, OSError, TypeError, ValueError) as error:
        complain(f"otel-connector replay: {reason(error)}")
        raise typer.Exit(USAGE) from None
    replayed = run.replayed()
    _show_result(replayed, to)
    raise typer.Exit(WRONG if replayed.damaged else 0)


def _wanted(projects: list[str] | None, since: str | None, until: str | None, *, failed_only: bool) -> RowFilter:
    # Not "2h ago": that would be another replay whenever it is asked for, and none would go on where one stopped
    begin, end = (None if text is None else moment(text, None).timestamp() for text in (since, until))
    return RowFilter(
        projects=tuple(projects or ()),
        since=float("-inf") if begin is None else begin,
        until=float("inf") if end is None else end,
        failed_only=failed_only,
    )


def _show_progress(run: Replay, to: str) -> None:
    """Run it; on a terminal a line shows how far it is."""
    console = unbreakable(sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TaskProgressColumn(), TimeRemainingColumn())
    disabled = not moves(console, sys.stderr)
    with Progress(*columns, console=console, transient=True, expand=True, disable=disabled) as progress:
        task = progress.add_task(f"to {to}", total=None)
        for now in run.run():
            progress.update(task, completed=now.done, total=now.size, description=f"{now.sent:,} spans to {to}")


def _show_result(replayed: Replayed, to: str) -> None:
    console = output()
    for log, damage in replayed.damage:
        say(console, f"{one_line(log)}: line {damage.line:,}: {damage.what}")
    left_out = {
        "sent before": replayed.passed_over,
        "not asked for": replayed.unwanted,
        "there twice": replayed.duplicates,
        "damaged lines": replayed.damaged,
        "unfinished last lines": replayed.unfinished,
    }
    told = "".join(f"; {what}: {count:,}" for what, count in left_out.items() if count)
    say(console, f"Spans sent to {to}: {replayed.sent:,}{told}")
