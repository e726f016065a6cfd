"""``otel-connector replay``: its options, its progress and its output.

Does not know how rows become spans, nor how they are sent: `_replay/_replay` does that.

Used by ``cli``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from otel_connector._arguments import checked_seconds, checked_text
from otel_connector._redact import Redactor
from otel_connector._replay import _replay as replays
from otel_connector._telemetry._variable_values import origin_of
from otel_connector._units import counted
from otel_connector.cli import _call_filters as filters
from otel_connector.cli import _redact_options as redacting
from otel_connector.cli._collector import select_collector
from otel_connector.cli._exit_codes import WRONG, fail
from otel_connector.cli._option_errors import path_option
from otel_connector.cli._stop_signals import Stopped
from otel_connector.cli._terminal import output_console, print_lines, progress_bar, tolerant_console

# \b is the escape of click for a paragraph that must not be wrapped
EPILOG = """\b
Spans are sent to the collector of OTEL_EXPORTER_OTLP_ENDPOINT (and _PROTOCOL, _HEADERS and so on), or to
one that listens on this machine. A row always gives the same span. LOG.replayed stores how far a log
was sent; a rerun continues from there.

\b
Exit code:
  0    all rows were sent
  1    lines are damaged, or the collector rejected some spans; all other rows were sent
  2    an argument is invalid, a file cannot be read, or the collector did not accept the spans
  129  stopped by SIGHUP
  130  stopped by Ctrl-C
  143  stopped by SIGTERM

\b
Examples:
  otel-connector replay logs.csv --otlp
  otel-connector replay logs.csv --otlp --failed-only --since 2026-11-25T03:00
  OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317 otel-connector replay --otlp --rate 5000 logs.csv.gz
"""

_TWICE = "A backend that has spans of these calls already will have them twice."

Files = Annotated[
    list[str], typer.Argument(metavar="FILES...", help="Logs, plain or gzip. The parts of rotated logs are included.")
]
Otlp = Annotated[bool, typer.Option("--otlp", help="Send over OTLP. This is the default, and the only protocol.")]
Rate = Annotated[float, typer.Option(metavar="N", help="Maximum number of spans per second.")]
Since = Annotated[
    str | None, typer.Option(metavar="TIME", help="Only calls that started at or after this UTC time (ISO 8601).")
]
FailedOnly = Annotated[bool, typer.Option("--failed-only", help="Only failed calls.")]
ServiceName = Annotated[
    str | None, typer.Option(metavar="NAME", help=f"Default: OTEL_SERVICE_NAME, or {replays.DEFAULT_SERVICE}.")
]
Checkpoint = Annotated[Path | None, path_option(text="Checkpoint file. Default: LOG.replayed.")]
IgnoreCheckpoint = Annotated[
    bool, typer.Option("--ignore-checkpoint", help="Send all rows, also those that were sent before.")
]


def replay(
    files: Files,
    otlp: Otlp = True,
    rate: Rate = replays.DEFAULT_RATE,
    project: filters.Project = None,
    since: Since = None,
    until: filters.Until = None,
    failed_only: FailedOnly = False,
    service_name: ServiceName = None,
    checkpoint: Checkpoint = None,
    ignore_checkpoint: IgnoreCheckpoint = False,
    redact: redacting.Redact = None,
    no_redact: redacting.NoRedact = None,
) -> None:
    """Send the rows of a log to a collector as spans.

    Shows a run that had no telemetry in Jaeger or Grafana. A span has the trace id, the span id and the times of its
    row. It has no parent and no events for failed attempts, because a row does not contain them. The resource attribute
    otel_connector.replayed marks these spans.

    A backend does not replace the span of a call that it has already: Jaeger then shows the call twice.
    """
    del otlp
    try:
        checked_seconds("--rate", rate, positive=True, unit="spans a second")
        if service_name is not None:
            checked_text("--service-name", service_name)
        row_filter = _row_filter(project, since, until, failed_only=failed_only)
        select_collector(os.environ)
        redactor = Redactor(redacting.redacted_params(redact, no_redact))
        exporter, endpoint = replays.open_otlp()
        to = origin_of(endpoint)
        run = replays.Replay(
            files,
            exporter,
            to=endpoint,
            service_name=service_name,
            row_filter=row_filter,
            rate=rate,
            checkpoint=checkpoint,
            ignore_checkpoint=ignore_checkpoint,
            redactor=redactor,
        )
        try:
            print_lines(output_console(), f"Sending spans to {to}. {_TWICE}")
            _run_with_progress(run, to)
        except Stopped:
            print_lines(output_console(), f"Stopped; spans sent: {run.replayed().sent:,}. The same command continues.")
            raise
        finally:
            exporter.shutdown()
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        fail("replay", error, {"--checkpoint": checkpoint})
    replayed = run.replayed()
    _show_result(replayed, to)
    raise typer.Exit(WRONG if replayed.damaged or replayed.rejected else 0)


def _row_filter(
    projects: list[str] | None, since: str | None, until: str | None, *, failed_only: bool
) -> replays.RowFilter:
    # Ages such as 2h are refused: they would select other rows in a rerun, which could not use the checkpoint
    start, end = filters.parse_period(since, until, None)
    return replays.RowFilter(
        projects=tuple(projects or ()),
        since=float("-inf") if start is None else start.timestamp(),
        until=float("inf") if end is None else end.timestamp(),
        failed_only=failed_only,
    )


def _run_with_progress(run: replays.Replay, to: str) -> None:
    """Send the rows, and show the progress on a terminal."""
    with progress_bar(tolerant_console(sys.stderr)) as progress:
        task = progress.add_task(f"to {to}", total=None)
        for now in run.run():
            progress.update(
                task, completed=now.done, total=now.size, description=f"{counted(now.sent, 'span')} to {to}"
            )


def _show_result(replayed: replays.Replayed, to: str) -> None:
    console = output_console()
    for log, damage in replayed.damage:
        print_lines(console, f"{log}: line {damage.line:,}: {damage.what}")
    if replayed.rejection:
        print_lines(console, replayed.rejection)
    not_sent = {
        "sent before": replayed.skipped,
        "not selected": replayed.filtered_out,
        "duplicates": replayed.duplicates,
        "damaged lines": replayed.damaged,
        "unfinished last lines": replayed.unfinished,
        "rejected by the collector": replayed.rejected,
    }
    counts = "".join(f"; {what}: {count:,}" for what, count in not_sent.items() if count)
    print_lines(console, f"Spans sent to {to}: {replayed.sent:,}{counts}")
