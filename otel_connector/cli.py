"""Level 8: the command line: what ``otel-connector`` understands, and how results look on a terminal and in a file.

What the commands do is elsewhere; nothing imports this file but ``__main__``.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any, TextIO, cast

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
from otel_connector._connector import AsyncConnector
from otel_connector._demo import DEFAULT_CALLS, Collector, Demo, Report, Summary, find_collector
from otel_connector._fail_if import Condition, parse
from otel_connector._fetch import CONDITION_NAMES, Fetch, Rate, Wanted
from otel_connector._fetch_view import FetchView, Unbreakable, in_the_end
from otel_connector._record import one_line
from otel_connector._redact import DEFAULT_REDACTED_PARAMS, REDACTED, Redactor
from otel_connector._results import ResultsFile
from otel_connector._retry import RETRIED_STATUSES, RetryPolicy
from otel_connector._torn_tail import TORN_SUFFIX
from otel_connector._url_lists import urls_from
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

_FETCH_EXAMPLES = """\b
The results are JSON lines: url, call_id (which finds the row in the log, and the trace), status, and
the body as json, as text, or in base64. The log has a row for every call, failures included.

\b
Ctrl-C lets the calls under way end, then says how to go on; a second one ends them at once.

\b
Exit code:
  0    every URL was fetched, or as --fail-if says
  1    the condition of --fail-if holds: by default, if a URL failed
  2    an argument is wrong, or a file cannot be read or written
  130  stopped by Ctrl-C

\b
Examples:
  otel-connector fetch urls.txt --out results.jsonl
  otel-connector fetch urls.txt --out results.jsonl.zst --resume
  otel-connector fetch 'https://api.example.com/items/{}' --range 1:5000 --rate 20 --tries 5
  zcat urls.gz | otel-connector fetch - --project Prices --concurrency 200 --fail-if 'error_rate > 1%'
"""

app = typer.Typer(
    no_args_is_help=True,
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


@app.command(epilog=_FETCH_EXAMPLES)
def fetch(  # noqa: PLR0917 - one parameter an option
    source: Annotated[
        str,
        typer.Argument(
            metavar="URLS",
            show_default=False,
            help="A file of URLs, one a line (blank lines and # comments are passed over); - for standard input; or,"
            " with --range, a template.",
        ),
    ],
    numbers: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="FIRST:LAST[:STEP]",
            help="URLS is a template, and these whole numbers, both ends included, take the place of its {} ({:05} for"
            " leading zeros).",
        ),
    ] = None,
    project: Annotated[str, typer.Option(metavar="NAME", help="What the calls belong to, in the log.")] = "fetch",
    log: Annotated[Path, typer.Option(metavar="PATH", help="CSV file; rows are appended.")] = Path("logs.csv"),
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", show_default=False, help="Results as JSON lines; compressed if it ends in .gz or .zst."
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(metavar="N", min=1, help="Calls under way at a time.")] = 50,
    rate: Annotated[
        float | None, typer.Option(metavar="N", show_default=False, help="Attempts a second, at most.")
    ] = None,
    per_host: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Calls to one host at a time; fewer while it throttles. 0: no limit."),
    ] = 0,
    tries: Annotated[int, typer.Option(metavar="N", min=1, help="Attempts of a call in all.")] = 5,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For one attempt.")] = 30.0,
    deadline: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", show_default=False, help="For a call, all its attempts and waits included."),
    ] = None,
    retry_status: Annotated[
        list[int] | None,
        typer.Option(metavar="STATUS", show_default=False, help="Try this status again, too. May be repeated."),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", metavar="'NAME: VALUE'", show_default=False, help="May be repeated."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Pass over URLs that are done by the log, and in --out if given; append to it."),
    ] = False,
    resume_from: Annotated[
        list[Path] | None,
        typer.Option(metavar="LOG", show_default=False, help="Pass over what this log says is done, too. Repeatable."),
    ] = None,
    dedupe: Annotated[
        bool, typer.Option("--dedupe", help="Fetch a URL that comes again only once; keeps all URLs in memory.")
    ] = False,
    fail_if: Annotated[
        str,
        typer.Option(
            metavar="CONDITION",
            help="Exit with 1 if it holds, e.g. 'error_rate > 1% or calls < 100'."
            f" Names: {', '.join(CONDITION_NAMES)}.",
        ),
    ] = "failed > 0",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Fetch many URLs, each with its retries, its row in the log and its result, and show where it stands.

    It can be killed at any moment: with --resume it goes on where it was. URLs that differ only in a redacted secret
    are one to --resume. Progress goes to standard error, the summary to standard output. With
    OTEL_EXPORTER_OTLP_ENDPOINT set, traces and metrics are sent there.
    """
    results = None
    try:
        condition = parse(fail_if, CONDITION_NAMES)
        urls = urls_from(source, numbers)
        limiter = None if rate is None else _limiter(rate)
        connector = AsyncConnector(
            log,
            n_tries=tries,
            timeout=timeout,
            deadline=deadline,
            retry=RetryPolicy(statuses=RETRIED_STATUSES | frozenset(retry_status or ())),
            rate_limiter=limiter,
            adaptive_concurrency=per_host,
        )
        results = None if out is None else _results_file(out, resume=resume)
        wanted = Wanted(
            project=project,
            concurrency=concurrency,
            resume=[os.fspath(path) for path in resume_from] if resume_from else resume,
            dedupe=dedupe,
            options={"headers": _headers(header)} if header else {},
            results=results,
        )
        run = Fetch(connector, urls, wanted, rate=limiter)
        _fetch(run, quiet=quiet)
    except (ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        _complain(f"otel-connector fetch: {_why(error) or type(error).__name__}")
        raise typer.Exit(_USAGE) from None
    finally:
        if results is not None:
            results.close()
    code = _code_of_fetch(run, condition, log)
    if not quiet:
        _show_fetch(run, log, out)
    raise typer.Exit(code)


def _complain(*lines: str) -> None:
    """Say what is wrong on standard error, if there is anybody to hear it."""
    console = Console(file=cast("TextIO", Unbreakable(sys.stderr)), highlight=False)
    _say(console, *lines)


def _results_file(path: Path, *, resume: bool) -> ResultsFile:
    if path == Path("-"):
        raise ValueError("--out must be a file, not -: what was killed goes on with it")
    return ResultsFile(path, resume=resume)


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _headers(given: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [each.partition(":") for each in given]
    for name, colon, value in pairs:
        if not colon or not name.strip():
            raise ValueError(f"--header {name!r} must be 'NAME: VALUE'")
        if not value.isprintable():  # not shown: it may be a secret
            raise ValueError(f"--header {name!r} must be one line, without control characters")
    return [(name.strip(), value.strip()) for name, _, value in pairs]


def _limiter(rate: float) -> Rate:
    """Return a limiter of attempts a second; a tenth of a second's worth may come at once."""
    try:
        from aiolimiter import AsyncLimiter
    except ImportError:
        raise ImportError("--rate needs aiolimiter: pip install 'otel-connector[cli]'") from None
    if not 0 < rate <= sys.float_info.max:
        raise ValueError(f"--rate must be above 0, and finite, not {rate:g}")
    burst = max(1.0, rate / 10)
    return Rate(AsyncLimiter(burst, burst / rate))


def _runner() -> tuple[str, Callable[[Coroutine[Any, Any, None]], None]]:
    """Return the event loop's name, and what runs a coroutine on it: uvloop's, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return "asyncio", asyncio.run
    return "uvloop", uvloop.run


def _fetch(run: Fetch, *, quiet: bool) -> None:
    """Run it, show it, and listen for Ctrl-C."""
    console = Console(file=cast("TextIO", Unbreakable(sys.stderr)), highlight=False)
    name, run_on_loop = _runner()
    now = run.progress()
    if not quiet:
        count = "URLs as they come" if now.total is None else f"{now.total:,} {'URL' if now.total == 1 else 'URLs'}"
        _say(console, f"{count}, up to {run.concurrency} at a time, on {name}")
    telemetry = configure("otel-connector-fetch") if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") else nullcontext()
    with telemetry, suppress(KeyboardInterrupt):
        run_on_loop(_watched(run, None if quiet else FetchView(console, run, moving=_moves(console, sys.stderr))))


async def _watched(run: Fetch, view: FetchView | None) -> None:
    loop, fetching = asyncio.get_running_loop(), asyncio.ensure_future(run.run())
    showing: asyncio.Future[None] | None = None

    def interrupted() -> None:
        if not run.stopped:
            run.stop()
            _complain(
                f"Stopping when the calls under way ({run.progress().active}) have ended; Ctrl-C ends them at once"
            )
            return
        loop.remove_signal_handler(signal.SIGINT)  # a third one ends the program
        fetching.cancel()

    with suppress(NotImplementedError):  # Windows: there Ctrl-C cancels all of it
        loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        begun = asyncio.ensure_future(run.begun.wait())
        await asyncio.wait({fetching, begun}, return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        if view is not None:
            view.say_what_was_found()
            showing = asyncio.ensure_future(view.show())
        await fetching
    except asyncio.CancelledError:
        if not run.stopped:
            raise
    finally:
        if showing is not None:
            showing.cancel()
            with suppress(asyncio.CancelledError):
                await showing


def _code_of_fetch(run: Fetch, condition: Condition, log: Path) -> int:
    """Return the exit code, and say why it is what it is."""
    missing = run.rows_missing()
    if missing:
        _complain(
            f"otel-connector fetch: {log}: rows that could not be written: {missing:,}; --resume fetches those again"
        )
    if run.stopped:
        _complain(f"Go on with: {_again(sys.argv[1:])}")
        return _INTERRUPTED
    holding = condition.check(run.figures())
    _complain(*(f"otel-connector fetch: {each}" for each in holding))
    return _USAGE if missing else _WRONG if holding else 0


def _again(arguments: Sequence[str]) -> str:
    """Return the command that goes on, without what is secret in it."""
    redact, shown = Redactor(DEFAULT_REDACTED_PARAMS).text, list[str]()
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_header = before in {"-H", "--header"} or argument.startswith(("-H", "--header="))
        if is_header and ":" in argument:
            shown.append(f"{argument.partition(':')[0]}: {REDACTED}")
        else:
            shown.append(redact(argument))
    command = f"otel-connector {shlex.join([*shown, *([] if '--resume' in shown else ['--resume'])])}"
    return command if shown == list(arguments) else f"{command}  (with the secrets in the place of {REDACTED})"


def _show_fetch(run: Fetch, log: Path, out: Path | None) -> None:
    """Say what came of it."""
    console = Console(file=cast("TextIO", Unbreakable(sys.stdout)), highlight=False)
    if run.failures:
        failures = _table("Failed", "Calls")
        for name, count in run.failures.most_common(10):
            failures.add_row(Text(name, style="red"), f"{count:,}")
        console.print(failures)
        console.print()
    _say(console, f"{'Stopped' if run.stopped else 'Done'}: {in_the_end(run.progress())}")
    _say(console, f"Log: {log.absolute()}", *([] if out is None else [f"Results: {out.absolute()}"]))


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


def _moves(console: Console, stream: TextIO | None = None) -> bool:
    """Whether the console can show movement; FORCE_COLOR asks for colours only."""
    return (stream or sys.stdout).isatty() and not console.is_dumb_terminal


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
