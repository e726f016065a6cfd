"""``otel-connector review``: from its options to what is printed and written."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timezone
from functools import partial
from json import dumps as to_json
from pathlib import Path
from typing import Literal, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.console import Group as Drawing
from rich.live import Live
from rich.table import Table
from rich.text import Text

from otel_connector._csv._format import HEADER
from otel_connector._record import one_line
from otel_connector.cli import _review_options as options
from otel_connector.cli._compare_view import show_comparison
from otel_connector.cli._exit_codes import INTERRUPTED, USAGE, WRONG, reason
from otel_connector.cli._fail_if import Condition, parse
from otel_connector.cli._review_view import about_files, drawn
from otel_connector.cli._terminal import complain, moves, output, say, unbreakable
from otel_connector.review import Calls, Comparison, Summary, html_report, load, save_pictures, summarize
from otel_connector.review import compare as compare_logs
from otel_connector.review._compare_text import markdown as markdown_of
from otel_connector.review._filters import condition, moment
from otel_connector.review._formats import CONDITION_NAMES, as_csv, as_json, as_markdown, values
from otel_connector.review._query import Answer

EPILOG = f"""\b
The table calls has the columns call_id, project, t (UTC), delta_t (seconds), url, redirect_url,
response_size (bytes), response_code, success, error, host and error_type. It is DuckDB's own SQL:
what a query writes or reads beside the logs is its affair.

\b
Names in --fail-if: {", ".join(CONDITION_NAMES)};
  with --compare: better, worse (figures that are, beyond noise)

\b
Exit code:
  0    done
  1    the condition of --fail-if holds
  2    an argument is wrong, a file cannot be read or is no log, or --fail-if has no calls to judge
  130  stopped by Ctrl-C, or by SIGTERM

\b
Examples:
  otel-connector review logs.csv
  otel-connector review logs.csv --html report.html --trace-url 'http://localhost:16686/trace/{{trace_id}}'
  otel-connector review 'parts/*.csv' old.csv.gz --project Prices --since 2h
  otel-connector review --compare before.csv after.csv
  otel-connector review logs.csv --fail-if 'p99 > 2s or error_rate > 1%'
  otel-connector review logs.csv --sql 'SELECT host, max(delta_t) FROM calls GROUP BY host'
"""

_VERDICTS: tuple[Literal["better"], Literal["worse"]] = ("better", "worse")
_BEFORE_AND_AFTER = 2
_REPORTED = 500  # projects, hosts and errors that a report tells apart
_LOOK_AGAIN = 2.0  # seconds between two looks at a log that is followed; or as long as a look takes, if that is more


def review(
    files: options.Files,
    html: options.Html = None,
    png: options.Png = None,
    svg: options.Svg = None,
    trace_url: options.TraceUrl = None,
    json: options.Json = False,
    csv: options.Csv = False,
    markdown: options.Markdown = False,
    compare: options.Compare = False,
    fail_if: options.FailIf = None,
    project: options.Project = None,
    since: options.Since = None,
    until: options.Until = None,
    where: options.Where = None,
    sql: options.Sql = None,
    follow: options.Follow = False,
    top: options.Top = 20,
) -> None:
    """Say what happened in a log: how many calls, how fast, what failed, what changed, and when.

    The parts of a rotated log are read with it. Lines that are no rows are counted and named, never passed over.
    Percentiles are exact, interpolated linearly between the two nearest calls. Times are UTC.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or its temporary files would stay behind
    try:
        form = _form(json=json, csv=csv, markdown=markdown)
        chosen = _chosen(project, since, until, where)
        console, read = output(), partial(load, where=chosen)
        if compare:
            others = {"--csv": csv, "--follow": follow, "--html": html, "--png": png, "--svg": svg, "--sql": sql}
            _refuse(others, beside="--compare")
            raise typer.Exit(_compare(console, files, read, form, fail_if))
        failing = None if fail_if is None else parse(fail_if, CONDITION_NAMES)
        if follow:
            _refuse({"--html": html, "--png": png, "--svg": svg, "--sql": sql, "--fail-if": fail_if}, beside="--follow")
            _follow(console, partial(read, *files), top)
        if sql is not None:
            _refuse({"--html": html, "--png": png, "--svg": svg, "--fail-if": fail_if}, beside="--sql")
        _spare_logs(html, files)
        with read(*files) as calls:
            if form != "text" or sql is not None:
                complain(*about_files(calls.files))
            if sql is not None:
                _print_answer(console, Answer(calls, sql), form)
                raise typer.Exit(USAGE if any(file.problem for file in calls.files) else 0)
            summary = summarize(calls, top=top)
            written = _write(calls, summary, html, png, svg, trace_url)
        _print_summary(console, summary, form)
        say(console if form == "text" else unbreakable(sys.stderr), *written)
        raise typer.Exit(_code(summary, failing))
    except (ImportError, MemoryError, OSError, ValueError) as error:
        complain(f"otel-connector review: {reason(error)}")
        raise typer.Exit(USAGE) from None
    except (KeyboardInterrupt, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "interrupt" not in str(error).lower():  # DuckDB's word for Ctrl-C
            raise
        raise typer.Exit(INTERRUPTED) from None


def _refuse(options: Mapping[str, object], *, beside: str) -> None:
    """Refuse what would be asked for in vain."""
    asked = [name for name, value in options.items() if value]
    if asked:
        raise ValueError(f"{beside} goes without {' and '.join(asked)}")


def _spare_logs(html: Path | None, files: Sequence[str]) -> None:
    """Refuse to write a report over a log, as where the shell has put the first of many behind ``--html``."""
    if html is None or not html.is_file():
        return
    with html.open("rb") as file:
        is_log = file.read(len(HEADER)) == HEADER
    if is_log or any(Path(each).exists() and html.samefile(each) for each in files):
        raise ValueError(f"--html {html}: that is a log; name another file for the report")


def _compare(
    console: Console, files: Sequence[str], read: Callable[[str], Calls], form: str, fail_if: str | None
) -> int:
    """Set two runs side by side; a condition may ask how many figures are worse, or better, beyond noise."""
    failing = None if fail_if is None else parse(fail_if, _VERDICTS)
    if len(files) != _BEFORE_AND_AFTER:
        raise ValueError(f"--compare takes two logs, before and after, not {len(files)}; patterns in quotes")
    with read(files[0]) as before, read(files[1]) as after:
        comparison = compare_logs(before, after)
        unread = [file for calls in (before, after) for file in about_files(calls.files)]
    complain(*unread)
    if form == "text":
        show_comparison(console, comparison)
    else:
        told = (
            to_json(comparison.to_dict(), indent=2, ensure_ascii=False) if form == "json" else markdown_of(comparison)
        )
        typer.echo(told.rstrip("\n"))
    if failing is not None and not any(row.test for row in comparison.total.differences):
        complain("otel-connector review: --fail-if: there is too little in the logs to compare them")
        return USAGE
    holding = [] if failing is None else failing.check(_verdicts(comparison))
    complain(*(f"otel-connector review: {each}" for each in holding))
    return WRONG if holding else 0


def _verdicts(comparison: Comparison) -> dict[str, float]:
    """Count the figures, of all calls, of projects and of hosts, that are better or worse beyond noise."""
    groups = (comparison.total, *comparison.projects.compared, *comparison.hosts.compared)
    verdicts = [row.verdict for group in groups for row in group.differences]
    return {name: float(verdicts.count(name)) for name in _VERDICTS}


def _write(
    calls: Calls, summary: Summary, html: Path | None, png: Path | None, svg: Path | None, trace_url: str | None
) -> list[str]:
    """Write what was asked for, and say where it is."""
    written = list[str]()
    if html is not None:
        wide = summarize(calls, top=max(_REPORTED, len(summary.hosts)))  # tables that can be searched may be long
        page = html_report(calls, wide, title=html.stem, trace_url=trace_url)
        unfinished = html.with_name(f".{html.name}.{os.getpid()}")
        try:
            unfinished.write_text(page, encoding="utf-8")
            unfinished.replace(html)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(html)) from None
        written.append(f"Report: {html.absolute()}")
    elif trace_url is not None:
        raise ValueError("--trace-url is for the links in --html")
    for path, form in ((png, "png"), (svg, "svg")):
        if path is not None:
            written += [f"Picture: {picture.absolute()}" for picture in save_pictures(calls, path, form)]
    return written


def _form(**asked: bool) -> str:
    """Return in which form the answer is printed: ``text``, or the one that was asked for."""
    forms = [form for form, wanted in asked.items() if wanted]
    if len(forms) > 1:
        raise ValueError(f"one form at a time, not {' and '.join(f'--{form}' for form in forms)}")
    return forms[0] if forms else "text"


def _chosen(projects: Sequence[str] | None, since: str | None, until: str | None, where: str | None) -> str:
    now = datetime.now(timezone.utc)
    times = [None if text is None else moment(text, now) for text in (since, until)]
    return condition(projects=projects or (), since=times[0], until=times[1], where=where)


def _print_summary(console: Console, summary: Summary, form: str) -> None:
    forms = {"json": as_json, "csv": as_csv, "markdown": as_markdown}
    if form in forms:
        typer.echo(forms[form](summary).rstrip("\n"))
    else:
        about = list(about_files(summary.files))
        say(console, *about)
        console.print(_fitted(console, summary, len(about)))


def _fitted(console: Console, summary: Summary, taken: int) -> RenderableType:
    """Draw as much as the screen has lines for but for those taken; what is no terminal has as many as it takes."""
    return drawn(summary, width=console.width, lines=console.height - taken if console.is_terminal else None)


def _print_answer(console: Console, answer: Answer, form: str) -> None:
    forms = {"json": answer.as_json, "csv": answer.as_csv, "markdown": answer.as_markdown}
    if form in forms:
        typer.echo(forms[form]().rstrip("\n"))
        return
    columns = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in answer.columns:
        columns.add_column(Text(one_line(name)), overflow="fold")
    for row in answer.texts():
        columns.add_row(*(Text(one_line(cell)) for cell in row))
    console.print(columns)


def _follow(console: Console, read: Callable[[], Calls], top: int) -> NoReturn:
    """Show the log as it grows, until Ctrl-C; elsewhere than on a terminal, one summary after the other."""
    with (
        Live(console=console, auto_refresh=False, vertical_overflow="crop") if moves(console) else nullcontext() as live
    ):
        seen: Summary | None = None
        while True:
            begun = time.monotonic()
            try:
                with read() as calls:
                    summary = summarize(calls, top=top)
            except (OSError, ValueError):  # it is being rotated, or begun anew: it was a log a moment ago
                if seen is None:
                    raise
                summary = seen
            seen = summary
            about = [Text(line) for line in about_files(summary.files)]
            view = Drawing(*about, _fitted(console, summary, len(about)))
            if live is None:
                console.print(view, "")
            else:
                live.update(view, refresh=True)
            time.sleep(max(_LOOK_AGAIN, time.monotonic() - begun))


def _code(summary: Summary, failing: Condition | None) -> int:
    """Return the exit code, and say why it is not 0."""
    if unread := [file for file in summary.files if file.problem]:
        complain(*(f"otel-connector review: {one_line(file.path)}: {file.problem}" for file in unread))
        return USAGE
    holding = [] if failing is None else failing.check(values(summary))
    if failing is not None and not holding and not summary.total.calls:
        complain("otel-connector review: --fail-if: there are no calls to judge")
        return USAGE
    complain(*(f"otel-connector review: {each}" for each in holding))
    return WRONG if holding else 0
