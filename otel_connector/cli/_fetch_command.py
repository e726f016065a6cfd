"""``otel-connector fetch``: what is made of its arguments."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from otel_connector._call._retry import RETRIED_STATUSES, RetryPolicy
from otel_connector._connector import AsyncConnector
from otel_connector._fetch._fetch import CONDITION_NAMES, Fetch, FetchOptions, StoppableLimiter
from otel_connector._fetch._results import ResultsFile
from otel_connector._fetch._url_lists import urls_from
from otel_connector.cli import _fetch_options as options
from otel_connector.cli._exit_codes import USAGE, reason
from otel_connector.cli._fail_if import parse
from otel_connector.cli._fetch_run import exit_code, fetch_and_show, show_result
from otel_connector.cli._terminal import complain

# Click keeps the lines of a paragraph that starts with a backspace as they are.
EPILOG = """\b
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


def fetch(
    source: options.Source,
    numbers: options.Numbers = None,
    project: options.Project = "fetch",
    log: options.Log = Path("logs.csv"),
    out: options.Out = None,
    concurrency: options.Concurrency = 50,
    rate: options.Rate = None,
    per_host: options.PerHost = 0,
    tries: options.Tries = 5,
    timeout: options.Timeout = 30.0,
    deadline: options.Deadline = None,
    retry_status: options.RetryStatus = None,
    header: options.Header = None,
    resume: options.Resume = False,
    resume_from: options.ResumeFrom = None,
    dedupe: options.Dedupe = False,
    fail_if: options.FailIf = "failed > 0",
    quiet: options.Quiet = False,
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
        wanted = FetchOptions(
            project=project,
            concurrency=concurrency,
            resume=[os.fspath(path) for path in resume_from] if resume_from else resume,
            dedupe=dedupe,
            options={"headers": _headers(header)} if header else {},
            results=results,
        )
        run = Fetch(connector, urls, wanted, limiter=limiter)
        fetch_and_show(run, quiet=quiet)
    except (ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        complain(f"otel-connector fetch: {reason(error)}")
        raise typer.Exit(USAGE) from None
    finally:
        if results is not None:
            results.close()
    code = exit_code(run, condition, log)
    if not quiet:
        show_result(run, log, out)
    raise typer.Exit(code)


def _results_file(path: Path, *, resume: bool) -> ResultsFile:
    if path == Path("-"):
        raise ValueError("--out must be a file, not -: what was killed goes on with it")
    return ResultsFile(path, resume=resume)


def _headers(given: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [each.partition(":") for each in given]
    for name, colon, value in pairs:
        if not colon or not name.strip():
            raise ValueError(f"--header {name!r} must be 'NAME: VALUE'")
        if not value.isprintable():  # not shown: it may be a secret
            raise ValueError(f"--header {name!r} must be one line, without control characters")
    return [(name.strip(), value.strip()) for name, _, value in pairs]


def _limiter(rate: float) -> StoppableLimiter:
    """Return a limiter of attempts a second; a tenth of a second's worth may come at once."""
    try:
        from aiolimiter import AsyncLimiter
    except ImportError:
        raise ImportError("--rate needs aiolimiter: pip install 'otel-connector[cli]'") from None
    if not 0 < rate <= sys.float_info.max:
        raise ValueError(f"--rate must be above 0, and finite, not {rate:g}")
    burst = max(1.0, rate / 10)
    return StoppableLimiter(AsyncLimiter(burst, burst / rate))
