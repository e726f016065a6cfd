"""``otel-connector demo``: its options and its output.

Does not know which calls are made, nor how they are summarised: `_demo` does that.

Used by ``cli``.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import aclosing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from otel_connector._telemetry._sdk_variables import check_variables
from otel_connector._units import counted, duration
from otel_connector.cli._collector import select_collector
from otel_connector.cli._continue_command import review_command
from otel_connector.cli._demo import DEFAULT_CALLS, Demo, DemoReport, DemoSummary
from otel_connector.cli._exit_codes import WRONG, fail
from otel_connector.cli._option_errors import naming_log, path_option
from otel_connector.cli._stop_signals import Stopped, StopSignals
from otel_connector.cli._terminal import is_terminal, output_console, print_lines, progress_bar, show, styled, table
from otel_connector.providers import configure

if TYPE_CHECKING:
    from rich.console import Console, OverflowMethod

_EXIT_TIMEOUT = 3.0  # seconds to wait at the end for a collector that does not answer

_JAEGER = "docker run --rm -p 127.0.0.1:4317:4317 -p 127.0.0.1:16686:16686 jaegertracing/jaeger"

# \b is the escape of click for a paragraph that must not be wrapped
EPILOG = """\b
Ctrl-C, SIGTERM (docker stop, Kubernetes, systemd) and SIGHUP cancel the calls in flight. Their rows are written,
and the spans are sent.

\b
Exit code:
  0    every call has its row, and all traces and metrics that the collector takes have arrived
  1    rows are missing, or traces or metrics did not arrive; otel-connector doctor tests the set-up
  2    an argument is invalid, or a file cannot be written
  129  stopped by SIGHUP
  130  stopped by Ctrl-C
  143  stopped by SIGTERM

\b
Examples:
  otel-connector demo
  otel-connector demo --calls 2000 --log more.csv
  OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317 otel-connector demo
"""


def demo(
    context: typer.Context,
    log: Annotated[
        Path, path_option(text="CSV file; rows are appended. Failed attempts have rows in demo.attempts.csv beside it.")
    ] = Path("demo.csv"),
    calls: Annotated[int, typer.Option(metavar="N", min=1, help="Number of calls.")] = DEFAULT_CALLS,
    otlp: Annotated[
        bool | None,
        typer.Option(
            "--otlp/--no-otlp",
            help="Whether to send traces and metrics to a collector. By default they are sent if"
            " OTEL_EXPORTER_OTLP_ENDPOINT is set or if a process listens on port 4317 or 4318.",
        ),
    ] = None,
) -> None:
    """Call a faulty server, and show what the log contains.

    The server runs on this machine until the demo ends. Every kind of outcome occurs: success, redirect, 404, 503,
    Retry-After, timeout, refused or reset connection, truncated body, untrusted certificate, cancellation and so on.
    """
    console, signals = output_console(), cast("StopSignals", context.obj)
    try:
        if otlp is not False:
            check_variables()
        with naming_log(log):
            run = Demo(log, calls)
        sends = otlp is not False and (select_collector(os.environ) or otlp)
        telemetry = configure("otel-connector-demo", exit_timeout=_EXIT_TIMEOUT) if sends else None
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        fail("demo", error)
    signals.defer()
    try:
        with telemetry or nullcontext():
            asyncio.run(_make_calls(run, calls, console, signals))
            report = run.report()
            _show_summary(console, report.summary)
            but = "" if report.rows == report.started else "BUT "
            started, rows = counted(report.started, "call"), counted(report.rows, "row")
            counts = f"{started} started, {but}{rows} written, {counted(report.retries, 'retry', 'retries')}."
            print_lines(console, f"{counts} The log: {log.absolute()}")
    except (asyncio.CancelledError, Stopped):
        started, rows = counted(run.stats().calls_started, "call"), counted(run.stats().rows_written, "row")
        print_lines(console, f"Stopped: {started} started, {rows} written to {log.absolute()}")
        raise typer.Exit(signals.exit_code) from None
    lost: tuple[str, ...] = ()
    if telemetry is None:
        print_lines(console, *_how_to_get_traces(requested=otlp))
    else:  # what did not arrive was logged at the end of the block
        lost = telemetry.lost()
        print_lines(console, *_where_traces_are(telemetry.sent_over_otlp(), lost, report, log))
    print_lines(console, review_command(log))
    raise typer.Exit(signals.exit_code or (WRONG if report.started != report.rows or lost else 0))


async def _make_calls(run: Demo, calls: int, console: Console, signals: StopSignals) -> None:
    """Run the demo, and show its progress on a terminal."""
    print_lines(console, "Calling a faulty server on this machine. The log contains:")
    columns = (
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("[green]{task.fields[good]} ok[/] [red]{task.fields[bad]} failed[/]"),
        TimeElapsedColumn(),
    )
    ended = [0, 0]
    this_task: asyncio.Task[Any] = cast("Any", asyncio.current_task())
    soon = asyncio.get_running_loop().call_soon_threadsafe  # wakes the loop
    with progress_bar(console, *columns) as progress, signals.calling(lambda: soon(this_task.cancel)):
        task = progress.add_task("", total=calls, good=0, bad=0)
        async with aclosing(run.run()) as results:
            async for result in results:
                ended[result.succeeded] += 1
                progress.update(task, advance=1, good=ended[True], bad=ended[False])


def _show_summary(console: Console, summary: DemoSummary) -> None:
    projects = table("Project", "Calls", "Succeeded", "Failed", "p50 delta_t", "p95 delta_t")
    for each in summary.projects:
        counts = (str(each.calls), str(each.succeeded), str(each.calls - each.succeeded))
        projects.add_row(each.project, *counts, duration(each.p50), duration(each.p95))
    outcomes = table("Outcome", "Calls")
    outcomes.expand = is_terminal(console)
    overflow: OverflowMethod = "crop" if console.options.ascii_only else "ellipsis"
    outcomes.add_column("For example", no_wrap=True, overflow=overflow, ratio=1)
    for outcome in summary.outcomes:
        name = styled(outcome.outcome, "green" if outcome.succeeded else "red")
        outcomes.add_row(name, str(outcome.calls), outcome.example)
    show(console, projects, "", outcomes, "")


def _how_to_get_traces(*, requested: bool | None) -> tuple[str, ...]:
    if requested is False:
        return ("No traces or metrics were sent (--no-otlp).",)
    return ("No collector listens on this machine. To see traces, start one and run the demo again:", f"  {_JAEGER}")


def _where_traces_are(sent: Mapping[str, str], lost: Collection[str], report: DemoReport, log: Path) -> Iterator[str]:
    if not sent and not lost:
        yield "No traces or metrics were sent: the OTEL_* variables disable the export over OTLP."
    for origin in dict.fromkeys(sent.values()):
        signals = [f"some {name}" if name in lost else name for name, to in sent.items() if to == origin]
        what = " and ".join(signals)
        yield f"{what[:1].upper()}{what[1:]} were sent to {origin}."
    if report.example is not None and "traces" in sent:
        call_id = report.example.call_id
        rejected = "; the collector may have rejected this one" if "traces" in lost else ""
        yield f"One of the traces, if the collector is Jaeger{rejected}:"
        yield f"  http://localhost:16686/trace/{call_id.partition('-')[0]}"
        yield f"  its row: grep {call_id} {shlex.quote(str(log))}"
