"""Level 7: the command line: what ``otel-connector`` understands, and how results look on a terminal and in a file.

What the commands do is elsewhere; nothing imports this file but ``__main__``.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import aclosing, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console, OverflowMethod
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from otel_connector import _csv_check
from otel_connector._demo import DEFAULT_CALLS, Collector, Demo, Report, Summary, find_collector
from otel_connector._record import one_line
from otel_connector._torn_tail import TORN_SUFFIX
from otel_connector._version import __version__
from otel_connector.providers import configure

_WRONG, _USAGE, _INTERRUPTED = 1, 2, 130  # the last is 128 + SIGINT, as shells have it

_SEND_SECONDS = 3.0  # how long the end of the demo waits for a collector that does not answer

_JAEGER = "docker run --rm -p 4317:4317 -p 16686:16686 jaegertracing/jaeger"

# Click keeps the lines of a paragraph that starts with a backspace as they are.
_EXAMPLES = """\b
Examples:
  otel-connector demo
  otel-connector demo --calls 2000 --log demo.csv
  OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317 otel-connector demo
"""

_CHECK_EXAMPLES = """\b
Exit code:
  0  every file is whole
  1  a file is damaged
  2  a file is not a log, cannot be read, or is being written and cannot be repaired

\b
Examples:
  otel-connector check logs.csv
  otel-connector check --repair logs.csv logs.csv.1
  otel-connector check logs.csv && python report.py logs.csv
"""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"otel-connector {__version__}")
        raise typer.Exit


@app.callback(epilog="Try it: otel-connector demo")
def _main(  # pyright: ignore[reportUnusedFunction] - typer has it
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Reliable async GETs: one OpenTelemetry span, one metric set and one CSV row per call."""


@app.command(epilog=_EXAMPLES)
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
    console = _console()
    try:
        run = Demo(log, calls)
        collector = _collector(otlp)
        telemetry = configure("otel-connector-demo", exit_timeout=_SEND_SECONDS) if collector else None
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        why = str(error).replace("overwrite_log=True", "move this one away")  # which is no option of the command
        typer.echo(f"otel-connector demo: {why}", err=True)
        raise typer.Exit(_USAGE) from None
    try:
        with telemetry or nullcontext():
            asyncio.run(_make_calls(run, calls, console))
    except KeyboardInterrupt:
        _say(console, f"Stopped: {run.started} calls started, {run.rows_written} rows written to {log.absolute()}")
        raise typer.Exit(_INTERRUPTED) from None
    report = run.report()
    _show_summary(console, report.summary)
    _show_log(console, report, log)
    if collector is None or telemetry is None:
        _say(console, *_how_to_see_traces(asked=otlp))
    elif telemetry.shutdown():  # it has happened; this asks how it went
        _say(console, *_where_traces_are(collector, telemetry.sent_over_otlp(), report, log))
    else:
        _say(console, f"Not all traces and metrics could be sent to {collector.endpoint}")
    if report.started != report.rows:
        raise typer.Exit(_WRONG)


@app.command(epilog=_CHECK_EXAMPLES)
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", show_default=False, help="Logs of any size.")],
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="First take off an unfinished last line, as the next program that opens the log would. It is kept in"
            " FILE.torn. Programs may be writing the log meanwhile.",
        ),
    ] = False,
) -> None:
    """Say what in a log is whole, and what is damaged.

    A program that was killed, or a full disk, can leave a last line without an end: --repair moves it out of the way.
    All other damage (a hole after a crash of the machine, joined files, lines that something else wrote) is shown with
    its line and its offset in bytes, and never changed: every other row can still be read. Files are read while
    programs write them; without --repair nothing is changed.
    """
    console = _console()
    worst = 0
    for path in files:
        name = one_line(os.fspath(path))
        try:
            moved = _csv_check.repair(path) if repair else 0
            report = _scan(console, path)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            typer.echo(f"otel-connector check: {name}: {why}", err=True)
            worst = _USAGE
            continue
        _show_check(console, name, report, moved)
        worst = max(worst, 0 if report.whole else _WRONG)
    raise typer.Exit(worst)


def _scan(console: Console, path: Path) -> _csv_check.Report:
    """Check one log; on a terminal a line shows how far it is."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, expand=True, disable=not _moves(console)) as progress:
        task = progress.add_task(one_line(path.name), total=None)
        return _csv_check.check(path, lambda done, size: progress.update(task, completed=done, total=size))


def _show_check(console: Console, name: str, report: _csv_check.Report, moved: int) -> None:
    torn_name = f"{name}{TORN_SUFFIX}"
    if moved:
        _say(console, f"{name}: an unfinished last line was moved to {torn_name}; bytes: {moved:,}")
    damaged = len(report.damage) + report.more
    verdict = "whole" if report.whole else "DAMAGED"
    _say(console, f"{name}: {verdict}; whole rows: {report.rows:,}, damaged lines: {damaged:,}, bytes: {report.size:,}")
    for each in report.damage:
        _say(console, f"  line {each.line:,}, offset {each.offset:,}, length {each.length:,}: {each.what}")
    if report.more:
        _say(console, f"  and damaged lines beyond these: {report.more:,}")
    if (last := report.unfinished) is not None:
        _say(console, f"  last line {last.line:,}, offset {last.offset:,}, length {last.length:,}: {last.what}")
        _say(console, f"    If no program is writing it now, --repair moves it to {torn_name}")
    if report.torn is not None and not moved:
        _say(console, f"  {torn_name} keeps unfinished lines from before; bytes: {report.torn:,}")
    if report.changed:
        _say(console, "  The file changed while it was read: this is how it began")


def _moves(console: Console) -> bool:
    """Whether the console can show movement; FORCE_COLOR asks for colours only."""
    return sys.stdout.isatty() and not console.is_dumb_terminal


def _console() -> Console:
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] # closed by the shell: ">&-"
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the program ends
    with suppress(AttributeError):  # what stands in for stdout need not have it
        cast("Any", sys.stdout).reconfigure(errors="replace")  # a character that is not there is no reason to fail
    return Console(highlight=False)


def _collector(otlp: bool | None) -> Collector | None:
    """Decide where telemetry goes, and tell the SDK if it is not where the SDK would send it by itself."""
    if otlp is False:
        return None
    collector = find_collector(os.environ)
    if collector is None:
        return Collector(endpoint="http://localhost:4317") if otlp else None
    if collector.protocol is not None:
        os.environ.setdefault("OTEL_EXPORTER_OTLP_PROTOCOL", collector.protocol)
    return collector


async def _make_calls(run: Demo, calls: int, console: Console) -> None:
    """Run the demo; on a terminal a line shows how far it is."""
    _say(console, "A server on this machine misbehaves on purpose. What its caller logs about it:")
    columns = (
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("[green]{task.fields[good]} ok[/] [red]{task.fields[bad]} failed[/]"),
        TimeElapsedColumn(),
    )
    ended = [0, 0]
    with Progress(*columns, console=console, transient=True, expand=True, disable=not _moves(console)) as progress:
        task = progress.add_task("", total=calls, good=0, bad=0)
        async with aclosing(run.run()) as results:
            async for result in results:
                ended[result.succeeded] += 1
                progress.update(task, advance=1, good=ended[True], bad=ended[False])


def _show_summary(console: Console, summary: Summary) -> None:
    projects = _table("Project", "Calls", "Succeeded", "Failed", "p50 delta_t", "p95 delta_t")
    for each in summary.projects:
        counts = (str(each.calls), str(each.succeeded), str(each.failed))
        projects.add_row(Text(each.project), *counts, f"{each.p50:.3f} s", f"{each.p95:.3f} s")
    console.print(projects)
    console.print()
    outcomes = _table("Outcome", "Calls")
    outcomes.expand = True
    overflow: OverflowMethod = "crop" if console.options.ascii_only else "ellipsis"
    outcomes.add_column("For example", no_wrap=True, overflow=overflow, ratio=1)
    for outcome in summary.outcomes:
        name = Text(outcome.outcome, style="green" if outcome.succeeded else "red")
        outcomes.add_row(name, str(outcome.calls), Text(outcome.example))
    console.print(outcomes)
    console.print()


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _show_log(console: Console, report: Report, log: Path) -> None:
    where = f"{report.retries} retries. The file: {log.absolute()}"
    if report.rows == report.started:
        _say(console, f"{report.started} calls started, {report.rows} rows written, {where}")
    else:
        _say(console, f"{report.started} calls started, BUT {report.rows} rows written, {where}")


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


def _say(console: Console, *lines: str) -> None:
    """Print lines as they are: not wrapped, so that a path or a command can be copied whole."""
    for line in lines:
        console.print(Text(line), soft_wrap=True)
