"""``otel-connector review``: from its options to the printed summary and the written files.

Does not know how figures are computed (`review`), nor how they look on a terminal (`_review_view`).

Used by ``cli``.
"""

from __future__ import annotations

import logging
import shlex
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime, timezone
from functools import partial
from glob import has_magic
from itertools import chain
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Group

from otel_connector._arguments import checked_text
from otel_connector._csv._lines import MAX_UNPACKED_BYTES, logs_of_calls
from otel_connector._csv._parts import log_files
from otel_connector._csv._whole_file import check_target, refuse_log, write_whole
from otel_connector._record import URL_LIMIT, one_line
from otel_connector._redact import DEFAULT_REDACTED_PARAMS, Redactor
from otel_connector.cli import _call_filters as filters
from otel_connector.cli import _review_options as options
from otel_connector.cli._compare_view import show_comparison
from otel_connector.cli._exit_codes import INTERRUPTED, USAGE, code_of_condition, fail
from otel_connector.cli._fail_if import Condition, parse
from otel_connector.cli._option_errors import InvalidOption, naming
from otel_connector.cli._review_view import answer_table, file_lines, summary_view
from otel_connector.cli._terminal import (
    can_animate,
    is_terminal,
    live_view,
    output_console,
    print_document,
    print_errors,
    print_lines,
    show,
    styled,
    tolerant_console,
)
from otel_connector.review import Calls, Summary, Verdict, html_report, load, save_pictures, summarize
from otel_connector.review import compare as compare_logs
from otel_connector.review import verdict as judge
from otel_connector.review._compare_html import comparison_report
from otel_connector.review._compare_text import counts
from otel_connector.review._compare_text import markdown as markdown_of
from otel_connector.review._compare_text import texts as comparison_texts
from otel_connector.review._filters import InvalidCondition, condition
from otel_connector.review._formats import CONDITION_NAMES, as_csv, as_json, as_markdown, values
from otel_connector.review._query import Answer
from otel_connector.review._trace_url import TraceURL
from otel_connector.review._verdict_text import UTC, Wording, texts
from otel_connector.review._zone import Zone

if TYPE_CHECKING:
    from rich.console import Console

# \b is the escape of click for a paragraph that must not be wrapped
EPILOG = f"""\b
The table calls has the columns call_id, project, t (UTC), delta_t (seconds), url, redirect_url,
response_size (bytes), response_code, success, error, host, endpoint and error_type. Queries may read
and write other files; nothing restricts them.

\b
Names in --fail-if: {", ".join(CONDITION_NAMES)};
  with --compare: better, worse: how many lines about outages and slow stretches have this verdict (outages with one
  cause are one line), and how many figures of the tables

\b
Exit code:
  0    done
  1    the condition of --fail-if holds
  2    an argument is invalid, a file cannot be read or is not a log, or --fail-if has no calls to judge
  130  stopped by Ctrl-C or SIGTERM

\b
Examples:
  otel-connector review logs.csv
  otel-connector review logs.csv --html report.html --trace-url 'http://localhost:16686/trace/{{trace_id}}'
  otel-connector review 'parts/*.csv' old.csv.gz --project Prices --since 2h
  otel-connector review --compare before.csv after.csv
  otel-connector review logs.csv --fail-if 'p99 > 2s or error_rate > 1%'
  otel-connector review logs.csv --sql 'SELECT host, max(delta_t) FROM calls GROUP BY host'
"""

_VERDICTS = {"better": "number", "worse": "number"}
_BEFORE_AND_AFTER = 2
_REPORT_GROUPS = 500  # projects, hosts, endpoints and errors in a report
_FOLLOW_INTERVAL = 2.0  # seconds between two updates; longer if an update takes longer


def review(
    files: options.Files,
    html: options.Html = None,
    png: options.Png = None,
    svg: options.Svg = None,
    trace_url: options.TraceUrl = None,
    title: options.Title = None,
    timezone: options.Timezone = None,
    json: options.Json = False,
    csv: options.Csv = False,
    markdown: options.Markdown = False,
    compare: options.Compare = False,
    fail_if: options.FailIf = None,
    project: filters.Project = None,
    since: options.Since = None,
    until: filters.Until = None,
    where: options.Where = None,
    sql: options.Sql = None,
    follow: options.Follow = False,
    top: options.Top = None,
    urls: options.Urls = None,
    max_unpacked_bytes: options.MaxUnpackedBytes = MAX_UNPACKED_BYTES,
) -> None:
    """Summarise a log: calls, rate, latency, failures, changes.

    The parts of a rotated log are included. Lines that are not rows are counted and reported. Percentiles are exact,
    linearly interpolated between the two nearest calls. Times are UTC.
    """
    _end_on_sigterm()
    targets = {"--html": html, "--png": png, "--svg": svg}
    of_report = {"--trace-url": trace_url, "--title": title, "--timezone": timezone}
    outputs = {**targets, **of_report, "--urls": urls, "--sql": sql}
    try:
        console, form = output_console(), _form(json=json, csv=csv, markdown=markdown)
        read = partial(load, where=_condition(project, since, until, where), max_unpacked_bytes=max_unpacked_bytes)
        if compare:
            _refuse({"--csv": csv, "--follow": follow, **outputs, "--html": None, "--title": None}, beside="--compare")
            raise typer.Exit(_compare(console, files, read, form, fail_if=fail_if, html=html, title=title))
        failing = None if fail_if is None else parse(fail_if, CONDITION_NAMES)
        if follow:
            _refuse({f"--{form}": form != "text", **outputs, "--fail-if": fail_if}, beside="--follow")
            _follow(console, partial(read, *files), top)
        if sql is not None:
            _refuse({**outputs, "--sql": None, "--fail-if": fail_if}, beside="--sql")
        _check_report(html, of_report, files)
        with read(*files) as calls:
            print_errors(*(file_lines(calls.files) if form != "text" or sql is not None else ()))
            if sql is not None:
                raise typer.Exit(_print_answer(console, calls, sql, form))
            summary = summarize(calls, top=top or options.DEFAULT_TOP)
            verdict = judge(calls, summary, urls=None if urls is None else _listed(urls))
            wording = _wording(urls, files, trace_url, timezone)
            page = partial(html_report, title=title, trace_url=trace_url, timezone=timezone or "UTC")
            written = _write(calls, summary, targets, partial(page, verdict=verdict, command=wording.command))
        _print_summary(console, summary, verdict, wording, form, top)
        print_lines(console if form == "text" else tolerant_console(sys.stderr), *written)
        raise typer.Exit(_exit_code(summary, failing))
    except InvalidCondition as error:
        fail("review", InvalidOption(f"--where {where!r} is not a valid condition: {error.reason}"))
    except (ImportError, MemoryError, OSError, ValueError) as error:
        fail("review", error, targets)
    except (KeyboardInterrupt, RuntimeError) as error:
        if not _is_interrupt(error):
            raise
        raise typer.Exit(INTERRUPTED) from None


def _is_interrupt(error: BaseException) -> bool:
    """Return whether an error is a Ctrl-C. DuckDB reports it as a RuntimeError with this word."""
    return not isinstance(error, RuntimeError) or "interrupt" in str(error).lower()


def _end_on_sigterm() -> None:
    """Remove the temporary files on SIGTERM, as on Ctrl-C. A signal that was ignored stays ignored, as in a shell."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _refuse(options: Mapping[str, object], *, beside: str) -> None:
    """Refuse options that have no effect beside another one."""
    if given := [name for name, value in options.items() if value is not None and value is not False]:
        raise ValueError(f"{beside} cannot be combined with {' and '.join(given)}")


def _check_report(html: Path | None, options: Mapping[str, str | None], files: Sequence[str]) -> None:
    """Refuse to write a report to a folder or a device, or over a log: the shell expands ``--html *.csv`` to that."""
    if html is None and options["--title"] is not None:
        raise ValueError("--title needs --html")
    if (trace_url := options["--trace-url"]) is not None:
        TraceURL(trace_url, "--trace-url")
    if (name := options["--timezone"]) is not None:
        Zone(name, "--timezone")
    if html is not None:
        check_target(str(html))
        logs = log_files(files)
        with naming("--html"):
            refuse_log(str(html), logs)


def _compare(
    console: Console,
    files: Sequence[str],
    read: Callable[[str], Calls],
    form: str,
    fail_if: str | None,
    html: Path | None,
    title: str | None,
) -> int:
    """Print a comparison of two logs, and return the exit code. A condition counts what changed."""
    failing = None if fail_if is None else parse(fail_if, _VERDICTS)
    files = logs_of_calls(files)
    if len(files) != _BEFORE_AND_AFTER:
        raise ValueError(f"--compare needs two logs, before and after, not {len(files)}; quote patterns")
    _check_report(html, {"--trace-url": None, "--timezone": None, "--title": title}, files)
    with read(files[0]) as before, read(files[1]) as after:
        comparison = compare_logs(before, after)
        print_errors(*file_lines((*before.files, *after.files)))
    if html is not None:
        page = comparison_report(comparison, title=title)
        write_whole(str(html), page.encode(), like=[*comparison.before.files, *comparison.after.files])
    if form == "text":
        show_comparison(console, comparison)
    elif form == "json":
        facts = {"text": comparison_texts(comparison), **comparison.to_dict()}
        print_document(dumps(facts, indent=2, ensure_ascii=False))
    else:
        print_document(markdown_of(comparison))
    if html is not None:
        print_lines(console if form == "text" else tolerant_console(sys.stderr), f"Report: {html.absolute()}")
    if failing is None:
        return 0
    if not comparison.outages and not any(row.test for each in comparison.groups for row in each.differences):
        print_errors("otel-connector review: --fail-if: the logs have too few calls for a comparison")
        return USAGE
    return code_of_condition("review", failing, counts(comparison))


def _listed(path: Path) -> Iterator[str]:
    """Yield the URLs of a list as a log shows them."""
    from otel_connector._call._urls import parsed_url
    from otel_connector._fetch._url_lists import UrlLines

    redactor = Redactor(DEFAULT_REDACTED_PARAMS)
    with naming("--urls"):
        listed = UrlLines(str(path))
        if listed.total is None:
            raise ValueError("a list of URLs must be a file, because it is read more than once, not a pipe")
        for url in chain.from_iterable(listed.in_advance()):
            try:
                requested = str(parsed_url(url))
            except ValueError:  # its row has the text of the list
                requested = url
            yield one_line(redactor.url(requested), URL_LIMIT)


def _wording(urls: Path | None, files: Sequence[str], trace_url: str | None, timezone: str | None) -> Wording:
    """Return how the verdict is written: in which zone, and with which links to traces and command for missing URLs."""
    command = ""
    if urls is not None and len(files) == 1 and not has_magic(files[0]):
        command = shlex.join(["otel-connector", "fetch", str(urls), "--log", files[0]])
    traces = None if trace_url is None else TraceURL(trace_url, "--trace-url")
    return Wording(zone=Zone(timezone or "UTC", "--timezone").info, traces=traces, command=command)


def _write(
    calls: Calls, summary: Summary, targets: Mapping[str, Path | None], page_of: Callable[[Calls, Summary], str]
) -> list[str]:
    """Write the report and the charts, and return lines with their paths."""
    written = list[str]()
    if (html := targets["--html"]) is not None:
        # The tables of a report can be searched, so they may be long
        detailed = summarize(calls, top=max(_REPORT_GROUPS, len(summary.hosts)))
        write_whole(str(html), page_of(calls, detailed).encode(), like=[log.path for log in calls.files])
        written.append(f"Report: {html.absolute()}")
    for form in ("png", "svg"):
        if (path := targets[f"--{form}"]) is not None:
            with naming(f"--{form}"):
                written += [f"Picture: {picture.absolute()}" for picture in save_pictures(calls, path, form)]
    return written


def _form(**requested: bool) -> str:
    """Return the requested output format; the default is ``text``."""
    forms = [form for form, is_requested in requested.items() if is_requested]
    if len(forms) > 1:
        raise ValueError(f"only one output format is possible, not {' and '.join(f'--{form}' for form in forms)}")
    return forms[0] if forms else "text"


def _condition(projects: Sequence[str] | None, since: str | None, until: str | None, where: str | None) -> str:
    """Return the condition of the filter options in SQL."""
    if where is not None:
        checked_text("--where", where)
    start, end = filters.parse_period(since, until, datetime.now(timezone.utc))
    return condition(projects=projects or (), since=start, until=end, where=where)


def _print_summary(
    console: Console, summary: Summary, verdict: Verdict, wording: Wording, form: str, top: int | None
) -> None:
    if form == "text":
        show(console, _screen(console, summary, verdict, wording, top))
    elif form == "csv":
        print_document(as_csv(summary))
    else:
        print_document({"json": as_json, "markdown": as_markdown}[form](summary, verdict, wording))


def _screen(console: Console, summary: Summary, verdict: Verdict, wording: Wording, top: int | None) -> Group:
    """Return lines about the files, and a summary that fits the rest of a terminal. Other outputs have no limit."""
    about_files = [styled(line, overflow="ignore") for line in file_lines(summary.files)]
    lines = console.height - len(about_files) if is_terminal(console) else None
    said = texts(verdict, wording)
    all_rows, width = top is not None, console.width
    shown = summary_view(summary, said, width=width, lines=lines, all_rows=all_rows, zone=wording.zone)
    return Group(*about_files, shown)


def _print_answer(console: Console, calls: Calls, sql: str, form: str) -> int:
    """Print the result of a query, and return the exit code."""
    with naming("--sql"):
        answer = Answer(calls, sql)
    if form == "text":
        show(console, answer_table(answer))
    else:
        forms = {"json": answer.as_json, "csv": answer.as_csv, "markdown": answer.as_markdown}
        print_document(forms[form]())
    return USAGE if any(file.problem for file in calls.files) else 0


def _follow(console: Console, read: Callable[[], Calls], top: int | None) -> NoReturn:
    """Show the log while it grows, until Ctrl-C. If the output is not a terminal, print one summary after another."""
    view = live_view(console, auto_refresh=False, vertical_overflow="crop") if can_animate(console) else nullcontext()
    with view as live, _each_line_once():
        screen: Group | None = None
        while True:
            started = time.monotonic()
            try:
                with read() as calls:
                    summary = summarize(calls, top=top or options.DEFAULT_TOP)
                    screen = _screen(console, summary, judge(calls, summary), UTC, top)
            except (OSError, ValueError):  # the log is being rotated or truncated: show the previous summary
                if screen is None:
                    raise
            if live is not None:
                live.update(screen, refresh=True)
            elif not show(console, screen, ""):
                raise typer.Exit
            time.sleep(max(_FOLLOW_INTERVAL, time.monotonic() - started))


@contextmanager
def _each_line_once() -> Generator[None]:
    """Log each line about the files once, and not at each update."""
    logger, logged = logging.getLogger("otel_connector"), set[str]()

    def is_new(record: logging.LogRecord) -> bool:
        known = len(logged)
        logged.add(record.getMessage())
        return len(logged) > known

    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


def _exit_code(summary: Summary, failing: Condition | None) -> int:
    """Return the exit code, and print the reason if it is not 0."""
    if unread := [file for file in summary.files if file.problem]:
        print_errors(*(f"otel-connector review: {file.path}: {file.problem}" for file in unread))
        return USAGE
    if failing is None:
        return 0
    figures = values(summary)
    if not summary.total.calls and not failing.check(figures):
        print_errors("otel-connector review: --fail-if: there are no calls to judge")
        return USAGE
    return code_of_condition("review", failing, figures)
