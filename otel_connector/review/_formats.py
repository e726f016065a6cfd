"""Formats a summary as JSON, CSV and Markdown, and as the values of a condition.

Numbers are in base units (seconds, bytes, shares of 1). Only Markdown, which people read, has rounded ones. Knows
neither DuckDB nor terminals.

Used by ``cli._review_command``, ``cli._review_view``, ``review._compare_text``, ``review._query`` and
``review._report``.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from otel_connector._csv._format import guarded
from otel_connector._record import one_line
from otel_connector._units import duration, rate, share, size
from otel_connector.review._json import plain
from otel_connector.review._lost_time import TIMED_OUT, Retries
from otel_connector.review._summary import Group, Summary
from otel_connector.review._verdict import Verdict
from otel_connector.review._verdict_text import UTC, Sentences, Wording, period_of, texts
from otel_connector.review._verdict_text import lines as lines_of

_LATENCIES = ("p50", "p90", "p95", "p99", "max")
_NUMBERS = ("bytes", "calls", "failed", "rate", "succeeded")
_KINDS = (
    dict.fromkeys((*_NUMBERS, "damaged"), "number") | dict.fromkeys(_LATENCIES, "seconds") | {"error_rate": "share"}
)

CONDITION_NAMES = dict(sorted(_KINDS.items()))
"""The names that a condition can use, with the kind of each; rate is calls per second."""

_HEAD = ("of", "name", "calls", "failed", "error_rate", "rate", *_LATENCIES, "bytes", "start", "end")
_ESCAPED_IN_MARKDOWN = {ord(char): f"\\{char}" for char in "\\`*_[]<>|~&"}


def values(summary: Summary) -> dict[str, float]:
    """Return the values that a condition can use; NaN if there are no calls."""
    total = summary.total
    found = {name: getattr(total.latency, name) for name in _LATENCIES}
    found |= {name: getattr(total, name) for name in (*_NUMBERS, "error_rate")}
    return {**{name: float(value) for name, value in found.items()}, "damaged": float(summary.damaged)}


def as_json(summary: Summary, verdict: Verdict, wording: Wording = UTC) -> str:
    """Return the verdict and the summary as indented JSON: times in UTC, NaN (the p99 of no calls) as null."""
    facts = {"verdict": {**plain(verdict), "text": texts(verdict, wording)}, **plain(summary)}
    return json.dumps(facts, indent=2, ensure_ascii=False)


def as_csv(summary: Summary) -> str:
    """Return the total, the projects, the hosts and the quarters as CSV, one line each."""
    rows = list[list[Any]]()
    for of, each in _every_group(summary):
        latency = [getattr(each.latency, name) for name in _LATENCIES]
        figures = [each.calls, each.failed, each.error_rate, each.rate, *latency, each.bytes]
        times = [time.isoformat() + "Z" if time else "" for time in (each.start, each.end)]
        rows.append([of, each.name, *("" if math.isnan(figure) else figure for figure in figures), *times])
    return csv_text(_HEAD, rows)


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return CSV with a header. None is an empty cell, and a formula gets a leading ``'``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([guarded(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue()


def _every_group(summary: Summary) -> Iterator[tuple[str, Group]]:
    yield "total", summary.total
    for of, groups in (
        ("project", summary.projects),
        ("host", summary.hosts),
        ("endpoint", summary.endpoints),
        ("quarter", summary.quarters),
    ):
        yield from ((of, each) for each in groups)


def as_markdown(summary: Summary, verdict: Verdict, wording: Wording = UTC) -> str:
    """Return the verdict, and the summary as tables in Markdown, with rounded numbers and units."""
    files = ", ".join(escaped(file.path) for file in summary.files if not file.problem)
    lines = [f"{files}: {period_of(verdict, wording)}", "", *verdict_in_markdown(lines_of(verdict, wording)), ""]
    heads = ("", "Calls", "Failed", "Rate", "p50", "p90", "p95", "p99", "Max", "Bytes")
    lines += markdown_table(heads, (_figures(of, each) for of, each in _every_group(summary)))
    if summary.errors:
        rows = ((each.name, f"{each.calls:,}", share(each.share), each.example.error) for each in summary.errors)
        lines += ["", *markdown_table(("Error", "Calls", "Share", "For example"), rows, texts=(0, 3))]
    if summary.slowest:
        slow = (
            (duration(each.delta_t), each.error_type, each.endpoint, each.url, each.call_id) for each in summary.slowest
        )
        lines += ["", *markdown_table(("Slowest", "Error", "Endpoint", "URL", "call_id"), slow, texts=(1, 2, 3, 4))]
    if summary.retries and summary.retries.reasons:
        lines += _lost_in_markdown(summary.retries)
    for file in summary.files:
        if file.problem or file.damaged:
            problem = escaped(file.problem) or f"damaged lines, not counted: {file.damaged:,}"
            lines += ["", f"{escaped(file.path)}: {problem}"]
    return "\n".join(lines) + "\n"


def _lost_in_markdown(found: Retries) -> Iterator[str]:
    yield from ("", f"Lost time: {lost_time(found)}")
    for by, lost in (("Host", found.hosts), ("Endpoint", found.endpoints)):
        rows = (
            (
                *(each.reason, each.name, f"{each.attempts:,}"),
                *map(duration, (each.failing, each.waiting, each.asked, each.queued)),
            )
            for each in lost
        )
        names = ("Lost time", by, "Failed attempts", "In attempts", "Back-off", "Retry-After", "Queued")
        yield from ("", *markdown_table(names, rows, texts=(0, 1)))


def lost_time(found: Retries) -> str:
    """Return the time that was lost, and its parts: ``28.0 s: timeouts 20.0 s, back-off 8.00 s``."""
    timed_out = [each for each in found.reasons if each.reason in TIMED_OUT]
    parts = {
        "timeouts": sum(each.failing for each in timed_out),
        f"{'other ' if timed_out else ''}failed attempts": sum(
            each.failing for each in found.reasons if each not in timed_out
        ),
        "back-off": sum(each.waiting for each in found.reasons),
        "Retry-After": sum(each.asked for each in found.reasons),
        "queue": sum(each.queued for each in found.reasons),
    }
    shown = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds)
    return ": ".join(filter(None, (duration(found.seconds), shown)))


def verdict_in_markdown(lines: Iterable[Sentences]) -> Iterator[str]:
    """Yield the lines of a verdict as a list, whose details are nested."""
    for line in lines:
        yield f"- {escaped(line.whole)}"
        yield from (f"  - {escaped(each)}" for each in line.details)


def _figures(of: str, each: Group) -> tuple[str, ...]:
    times = (duration(getattr(each.latency, name)) for name in _LATENCIES)
    name = f"{of} {each.name}" if of in {"project", "host", "endpoint"} else each.name or of
    return (name, f"{each.calls:,}", share(each.error_rate), rate(each.rate), *times, size(each.bytes))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: Sequence[int] = (0,)) -> Iterator[str]:
    """Yield the lines of a table. The columns in `texts` contain texts, the others numbers."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join('---' if number in texts else '--:' for number in range(len(head)))}|"
    for row in rows:
        yield f"| {' | '.join(map(escaped, row))} |"


def escaped(text: str) -> str:
    """Return a text so that Markdown shows it unchanged."""
    return one_line(text).translate(_ESCAPED_IN_MARKDOWN)
