"""``otel-connector demo``: its options, and how what came of it looks."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Sequence
from contextlib import aclosing, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, OverflowMethod
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from otel_connector.cli._demo import DEFAULT_CALLS, Collector, Demo, Report, Summary, find_collector
from otel_connector.cli._exit_codes import INTERRUPTED, USAGE, WRONG
from otel_connector.cli._terminal import moves, output, say, table
from otel_connector.providers import configure

_SEND_SECONDS = 3.0  # how long the end of the demo waits for a collector that does not answer

_JAEGER = "docker run --rm -p 4317:4317 -p 16686:16686 jaegertracing/jaeger"

# Click keeps the lines of a paragraph that starts with a backspace as they are.
EPILOG = """\b
Examples:
  otel-connector demo
  otel-connector demo --calls 2000 --log demo.csv
  OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317 otel-connector demo
"""


def demo(
    log: Annotated[Path, typer.Option(metavar="PATH", help="CSV file; rows are appended.")] = Path("logs.csv"),
    calls: Annotated[int, typer.Option(metavar="N", min=1, help="How many calls to make.")] = DEFAULT_CALLS,
    otlp: Annotated[
        bool | None,
        typer.Option(
            "--otlp/--no-otlp",
            show_default=False,
            help="Send traces and metrics to a collector, or do not. By default they are sent if"
            " OTEL_EXPORTER_OTLP_ENDPOINT is set or something listens on port 4317 or 4318.",
        ),
    ] = None,
) -> None:
    """Call a server that misbehaves, and show what the log says about it.

    The server runs on this machine, for as long as the demo does. The calls end in every way a call can end: success,
    redirect, 404, 503, Retry-After, timeout, refused, reset, truncated, bad certificate, cancelled and so on.
    """
    console = output()
    try:
        run = Demo(log, calls)
        collector = _collector(otlp)
        telemetry = configure("otel-connector-demo", exit_timeout=_SEND_SECONDS) if collector else None
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        why = str(error).replace("overwrite_log=True", "move this one away")  # which is no option of the command
        typer.echo(f"otel-connector demo: {why}", err=True)
        raise typer.Exit(USAGE) from None
    try:
        with telemetry or nullcontext():
            asyncio.run(_make_calls(run, calls, console))
    except KeyboardInterrupt:
        say(console, f"Stopped: {run.started} calls started, {run.rows_written} rows written to {log.absolute()}")
        raise typer.Exit(INTERRUPTED) from None
    report = run.report()
    _show_summary(console, report.summary)
    _show_log(console, report, log)
    if collector is None or telemetry is None:
        say(console, *_how_to_see_traces(asked=otlp))
    elif telemetry.shutdown():  # it has happened; this asks how it went
        say(console, *_where_traces_are(collector, telemetry.sent_over_otlp(), report, log))
    else:
        say(console, f"Not all traces and metrics could be sent to {collector.endpoint}")
    if report.started != report.rows:
        raise typer.Exit(WRONG)


def _collector(otlp: bool | None) -> Collector | None:
    """Decide where telemetry goes, and tell the SDK if it is not where the SDK would send it by itself."""
    if otlp is False:
        return None
    collector = find_collector(os.environ)
    if collector is None:
        return Collector(endpoint="http://localhost:4317") if otlp else None
    collector.tell_the_sdk(os.environ)
    return collector


async def _make_calls(run: Demo, calls: int, console: Console) -> None:
    """Run the demo; on a terminal a line shows how far it is."""
    say(console, "A server on this machine misbehaves on purpose. What its caller logs about it:")
    columns = (
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("[green]{task.fields[good]} ok[/] [red]{task.fields[bad]} failed[/]"),
        TimeElapsedColumn(),
    )
    ended = [0, 0]
    with Progress(*columns, console=console, transient=True, expand=True, disable=not moves(console)) as progress:
        task = progress.add_task("", total=calls, good=0, bad=0)
        async with aclosing(run.run()) as results:
            async for result in results:
                ended[result.succeeded] += 1
                progress.update(task, advance=1, good=ended[True], bad=ended[False])


def _show_summary(console: Console, summary: Summary) -> None:
    projects = table("Project", "Calls", "Succeeded", "Failed", "p50 delta_t", "p95 delta_t")
    for each in summary.projects:
        counts = (str(each.calls), str(each.succeeded), str(each.failed))
        projects.add_row(Text(each.project), *counts, f"{each.p50:.3f} s", f"{each.p95:.3f} s")
    console.print(projects)
    console.print()
    outcomes = table("Outcome", "Calls")
    outcomes.expand = True
    overflow: OverflowMethod = "crop" if console.options.ascii_only else "ellipsis"
    outcomes.add_column("For example", no_wrap=True, overflow=overflow, ratio=1)
    for outcome in summary.outcomes:
        name = Text(outcome.outcome, style="green" if outcome.succeeded else "red")
        outcomes.add_row(name, str(outcome.calls), Text(outcome.example))
    console.print(outcomes)
    console.print()


def _show_log(console: Console, report: Report, log: Path) -> None:
    where = f"{report.retries} retries. The file: {log.absolute()}"
    if report.rows == report.started:
        say(console, f"{report.started} calls started, {report.rows} rows written, {where}")
    else:
        say(console, f"{report.started} calls started, BUT {report.rows} rows written, {where}")


def _how_to_see_traces(*, asked: bool | None) -> tuple[str, ...]:
    if asked is False:
        return ("No traces or metrics were sent, as asked.",)
    return ("No collector listens here. To see the traces, start one and run this again:", f"  {_JAEGER}")


def _where_traces_are(collector: Collector, signals: Sequence[str], report: Report, log: Path) -> tuple[str, ...]:
    if not signals:
        return ("No traces or metrics were sent: the OTEL_* variables of the environment ask for none over OTLP.",)
    sent = f"{' and '.join(signals).capitalize()} were sent to {collector.endpoint}."
    if report.example is None or "traces" not in signals:
        return (sent,)
    call_id = report.example.call_id
    return (
        f"{sent} One to look up in Jaeger:",
        f"  http://localhost:16686/trace/{call_id.partition('-')[0]}",
        f"  its row: grep {call_id} {shlex.quote(str(log))}",
    )
