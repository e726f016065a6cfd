"""``otel-connector fetch``: from its options to a run, which ends by itself or by Ctrl-C, and its exit code.

Does not know how URLs are fetched (`_fetch/_fetch`), nor how the progress is shown (`_fetch_view`).

Used by ``cli``.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

import typer

from otel_connector._arguments import checked_seconds
from otel_connector._call._retry import RETRIED_STATUSES, RetryPolicy, checked_statuses
from otel_connector._connector import AsyncConnector
from otel_connector._csv._lines import logs_of_calls, read_log_head
from otel_connector._csv._ownership import refuse_file_of_other_user
from otel_connector._csv._parts import log_files
from otel_connector._csv._whole_file import refuse_name_of_log, refuse_outputs
from otel_connector._distinct_urls import SameRedactedForm
from otel_connector._fetch._fetch import CONDITION_NAMES, Fetch, FetchOptions, StoppableLimiter
from otel_connector._fetch._results import ResultsFile
from otel_connector._fetch._url_lists import urls_from
from otel_connector._optional_module import optional_module
from otel_connector._redact import REDACTED, Redactor
from otel_connector._units import counted, exact_duration
from otel_connector.cli import _fetch_options as options
from otel_connector.cli import _redact_options as redacting
from otel_connector.cli._continue_command import continue_command
from otel_connector.cli._exit_codes import USAGE, code_of_condition, fail
from otel_connector.cli._fail_if import Condition, parse
from otel_connector.cli._fetch_view import FetchView, show_result, show_start
from otel_connector.cli._header_option import parsed_headers
from otel_connector.cli._option_errors import naming, naming_log
from otel_connector.cli._stop_signals import CALLS_SECONDS, Stopped, StopSignals
from otel_connector.cli._terminal import can_animate, print_errors, tolerant_console
from otel_connector.providers import configure

_EXIT_TIMEOUT = 4.0  # seconds for the export of the last spans; with CALLS_SECONDS, less than `docker stop` waits

# \b is the escape of click for a paragraph that must not be wrapped
EPILOG = """\b
The results are JSON lines: url, call_id and t (identify the row in the log, and the trace), status, and the
body as json, as text, or as base64. The log has a row for every call, including failed calls.

\b
Ctrl-C stops the run after the calls in flight have ended, and prints the command that continues it.
A second Ctrl-C cancels these calls. SIGTERM (docker stop, Kubernetes, systemd) and SIGHUP do the same,
but cancel these calls after 3 s; the run ends within 9 s.

\b
Exit code:
  0    all URLs were fetched, or the condition of --fail-if does not hold
  1    the condition of --fail-if holds; by default, if a URL failed
  2    an argument is invalid, a file cannot be read or written, or the list has changed during the run
  129  stopped by SIGHUP
  130  stopped by Ctrl-C
  143  stopped by SIGTERM

\b
Examples:
  otel-connector fetch urls.txt --out results.jsonl
  otel-connector fetch urls.txt --out results.jsonl.zst --resume
  otel-connector fetch 'https://api.example.com/items/{}' --range 1:5000 --rate 20 --tries 5
  zcat urls.gz | otel-connector fetch - --project Prices --concurrency 200 --fail-if 'error_rate > 1%'
"""


def fetch(
    context: typer.Context,
    source: options.Source,
    numbers: options.Numbers = None,
    project: options.Project = "fetch",
    log: options.Log = Path("logs.csv"),
    attempts: options.Attempts = True,
    out: options.Out = None,
    concurrency: options.Concurrency = 50,
    rate: options.Rate = None,
    per_host: options.PerHost = 0,
    tries: options.Tries = 5,
    timeout: options.Timeout = 30.0,
    deadline: options.Deadline = None,
    retry_status: options.RetryStatus = None,
    header: options.Header = None,
    keep_cookies: options.KeepCookies = False,
    resume: options.Resume = False,
    resume_from: options.ResumeFrom = None,
    dedupe: options.Dedupe = False,
    redact: redacting.Redact = None,
    no_redact: redacting.NoRedact = None,
    fail_if: options.FailIf = "failed > 0",
    quiet: options.Quiet = False,
) -> None:
    """Fetch many URLs, with retries, a log and a results file.

    The process can be killed at any time; --resume continues the run. A URL is identified without its secrets, so a
    list in which two URLs differ only in a secret is rejected. Progress is printed to standard error, the summary to
    standard output. If OTEL_EXPORTER_OTLP_ENDPOINT is set, traces and metrics are sent there.
    """
    try:
        params = redacting.redacted_params(redact, no_redact)
        condition, urls = parse(fail_if, CONDITION_NAMES), urls_from(source, numbers, Redactor(params).url)
        limiter, done = None if rate is None else _limiter(rate), _checked_logs(resume_from or ()) or resume
        policy, args = _retry_policy(retry_status or ()), _call_options(header, source)
        _check_values(out, log, {"--timeout": timeout, "--deadline": deadline})
        with naming_log(log, attempts_hint="; --no-attempts does not write it"):
            connector = AsyncConnector(
                log,
                n_tries=tries,
                timeout=timeout,
                deadline=deadline,
                retry=policy,
                rate_limiter=limiter,
                adaptive_concurrency=per_host,
                redact_params=params,
                attempts=attempts,
            )
        with nullcontext() if out is None else closing(_results_file(out, resume=resume)) as results:
            chosen = FetchOptions(
                project=project,
                concurrency=concurrency,
                resume=done,
                dedupe=dedupe,
                call_options=args,
                results=results,
                keep_cookies=keep_cookies,
            )
            run = _run(Fetch(connector, urls, chosen, limiter=limiter, redact_params=params), context.obj, quiet=quiet)
    except (ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        fail("fetch", _with_options(error, redact or ()), {"--out": out})
    code = exit_code(run, condition, log, continue_command(context, Redactor(params)), context.obj)
    if not quiet:
        show_result(run, log, out)
    raise typer.Exit(code)


def _retry_policy(statuses: Sequence[int]) -> RetryPolicy:
    return RetryPolicy(statuses=RETRIED_STATUSES | checked_statuses("--retry-status", statuses))


def _call_options(header: Sequence[str] | None, source: str) -> dict[str, Any]:
    return {"headers": parsed_headers(header, stdin_is_used=source == "-")} if header else {}


def _with_options(error: Exception, redact: Sequence[str]) -> Exception:
    return error.for_command(redact) if isinstance(error, SameRedactedForm) else error


def _check_values(out: Path | None, log: Path, options: Mapping[str, float | None]) -> None:
    for option, seconds in options.items():
        if seconds is not None:
            checked_seconds(option, seconds, positive=True)
    if out == Path("-"):
        raise ValueError("--out must be a file, not -: --resume needs the file to continue a killed run")
    if out is not None:
        with naming("--out"):
            refuse_name_of_log(str(out), [str(log)])


def _results_file(out: Path, *, resume: bool) -> ResultsFile:
    with naming("--out"):
        refuse_outputs(str(out))
        return ResultsFile(out, resume=resume)


def _checked_logs(resume_from: Sequence[Path]) -> list[str]:
    with naming("--resume-from"):
        logs = logs_of_calls(log_files(map(os.fspath, resume_from)))
        for path in logs:
            refuse_file_of_other_user(path, Path(path).stat())
            read_log_head(path, may_be_empty=True)
    return logs


def _limiter(rate: float) -> StoppableLimiter:
    """Return a limiter of at most `rate` attempts in any second.

    A timer fires up to a millisecond late. So that the attempts of that time are not lost, 2 % of a second's attempts
    may follow each other immediately, in addition to one. They are subtracted from the rate of the others.
    """
    checked_seconds("--rate", rate, positive=True, unit="attempts a second")
    aiolimiter = optional_module("aiolimiter", needed_by="--rate", install="'otel-connector[cli]'")
    late = 0.02 * rate
    burst = 1 + late
    return StoppableLimiter(aiolimiter.AsyncLimiter(burst, burst / (rate - late)))


def _event_loop() -> tuple[str, Callable[[Coroutine[Any, Any, None]], None]]:
    """Return the name of the event loop, and a function that runs a coroutine on it: uvloop if it is installed."""
    try:
        import uvloop
    except ImportError:
        return "asyncio", asyncio.run
    return "uvloop", uvloop.run


def _run(run: Fetch, signals: StopSignals, *, quiet: bool) -> Fetch:
    """Fetch the URLs, show the progress, and send the telemetry. Return `run`."""
    console = tolerant_console(sys.stderr)
    name, run_on_loop = _event_loop()
    if not quiet:
        show_start(console, run, name)
    telemetry = (
        configure("otel-connector-fetch", exit_timeout=_EXIT_TIMEOUT)
        if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        else nullcontext()
    )
    view = None if quiet else FetchView(console, run, animated=can_animate(console))
    signals.defer()
    with telemetry, suppress(Stopped):
        run_on_loop(_run_until_stopped(run, view, signals))
    return run


async def _run_until_stopped(run: Fetch, view: FetchView | None, signals: StopSignals) -> None:
    loop, fetching = asyncio.get_running_loop(), asyncio.create_task(run.run())

    def stop() -> None:
        run.stop()
        cancelled = "a second Ctrl-C cancels these"
        if not signals.interactive:
            loop.call_later(CALLS_SECONDS, fetching.cancel)
            cancelled = f"those that take longer than {exact_duration(CALLS_SECONDS)} are cancelled"
        print_errors(f"Stopping after {counted(run.progress().active, 'call')} in flight; {cancelled}")

    soon = loop.call_soon_threadsafe  # wakes the loop
    try:
        with signals.calling(lambda: soon(stop), lambda: soon(fetching.cancel)):
            await _shown(run, fetching, view)
    except asyncio.CancelledError:
        if not run.stopped:
            raise


async def _shown(run: Fetch, fetching: asyncio.Task[None], view: FetchView | None) -> None:
    """Wait until the URLs are fetched, and show the progress."""
    showing: asyncio.Future[None] | None = None
    try:
        begun = asyncio.create_task(run.begun.wait())
        await asyncio.wait({fetching, begun}, return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        if view is not None:
            view.show_resumed()
            showing = asyncio.ensure_future(view.show())
        await fetching
    finally:
        if showing is not None:
            showing.cancel()
            with suppress(asyncio.CancelledError):
                await showing


def exit_code(run: Fetch, condition: Condition, log: Path, resume_command: str, signals: StopSignals) -> int:
    """Return the exit code, and print the reason if it is not 0."""
    if missing := run.rows_missing():
        rows = counted(missing, "row")
        print_errors(f"otel-connector fetch: {log}: {rows} could not be written; --resume fetches the URLs again")
    if run.not_urls:
        more = f" ({counted(run.not_urls - 1, 'more line')})" if run.not_urls > 1 else ""
        print_errors(f"otel-connector fetch: {run.first_not_url}{more}")
    if run.list_problem:
        print_errors(f"otel-connector fetch: {run.list_problem}")
    if run.stopped:
        print_errors(f"Continue with: {resume_command}")
        if REDACTED in resume_command:
            print_errors(f"Replace {REDACTED} by the secrets before")
        return signals.exit_code
    code = code_of_condition("fetch", condition, run.figures())
    return signals.exit_code or (USAGE if missing or run.list_problem else code)
