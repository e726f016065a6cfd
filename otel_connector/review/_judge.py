"""Gives the verdict on a run: what became of its URLs, and the findings in the order of their weight.

Does not know how a verdict is written.

Used by ``review`` and ``review._report``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import cast

from otel_connector._arguments import checked_instance
from otel_connector._csv._format import LATEST
from otel_connector.review._attempts import retries, waits
from otel_connector.review._cells import Cells
from otel_connector.review._clock import clock_step
from otel_connector.review._described import hosts_of, parts_of
from otel_connector.review._failures import failures_of_few
from otel_connector.review._filters import quoted
from otel_connector.review._findings import FEWEST, findings
from otel_connector.review._load import Calls
from otel_connector.review._rows import URL_ID
from otel_connector.review._summary import Group, ListedCall, Summary
from otel_connector.review._verdict import Finding, Mixed, Stretch, Urls, Verdict

_FIRST = 0.005  # share of the calls or URLs from which failures come before anything else
_COUNTED_FIRST = frozenset({"failures", "same size", "stopped"})
_BY_PAUSES = frozenset({"retries", "slow", "slower", "tail"})
_NEARLY_ALL = 0.9
_OF_TIME = 0.3  # a part of the run without calls weighs a third of one with failures
_URLS_AT_A_TIME = 1_500_000
_CLOCK = 0.02  # the weight of a step of the clock
_MIXED, _QUARTERS = 1.3, 4  # times the smallest figure of a quarter, from which the largest one differs
_EPOCH = datetime.fromisoformat("1970-01-01")


def verdict(calls: Calls, summary: Summary, *, urls: Iterable[str] | None = None) -> Verdict:
    """Return the verdict on a run.

    Args:
        calls: The result of `load`.
        summary: The result of `summarize`.
        urls: The URLs that were to be fetched, redacted as in the log. Without them, URLs without a row are not known.

    Raises:
        TypeError: An argument has the wrong type; the message names it.
    """
    checked_instance("calls", calls, Calls)
    checked_instance("summary", summary, Summary)
    if urls is not None and (isinstance(urls, str) or not isinstance(cast("object", urls), Iterable)):
        raise TypeError(f"urls must be an iterable of URLs, not {type(urls).__name__}")
    total, has_attempts = summary.total, summary.retries is not None
    found, of_urls = list[Finding](), _urls(calls, total.calls, urls, has_attempts=has_attempts)
    too_few, mixed = total.calls < FEWEST, Mixed()
    if too_few:
        found += failures_of_few(calls) if total.failed else ()
    else:
        parts = parts_of(calls)
        found += findings(calls, parts)
        mixed = _mixed(parts, summary.quarters)
        retried = list(retries(calls, parts)) if has_attempts else []
        found = [each for each in found if not any(_are_why(other, each) for other in retried)] + retried
        found += [*_gaps(calls, summary), *_clock(calls)]
    if has_attempts:
        paused = list(waits(calls, total.seconds, total.calls))
        asked = {name for each in paused for name in each.names}
        # Its pauses are why the calls to a host are slow, and its refusals why they are retried
        found = [each for each in found if not (asked and _is_by_pauses(each, asked))] + paused
    if of_urls.missing:
        weight = of_urls.missing / (of_urls.total + of_urls.missing)
        found.append(Finding(kind="stopped", weight=weight, calls=of_urls.total, events=of_urls.missing))
    return Verdict(
        start=total.start,
        end=total.end,
        calls=total.calls,
        failed=total.failed,
        urls=of_urls,
        p50=total.latency.p50,
        p99=total.latency.p99,
        too_few=too_few,
        unfinished=any(file.unfinished for file in summary.files),
        findings=tuple(map(_rounded, _ordered(found))),
        mixed=mixed,
    )


def _are_why(retried: Finding, slow: Finding) -> bool:
    """Return whether the waits before retries are most of what calls at the same places and times take longer."""
    if slow.kind not in {"slow", "slower", "tail"}:
        return False
    is_there = not retried.by or (slow.by and hosts_of(slow.names) <= hosts_of(retried.names))
    common = sum(
        max((min(a.end, b.end) - max(a.start, b.start)).total_seconds(), 0.0)
        for a in retried.stretches
        for b in slow.stretches
    )
    is_then = not retried.stretches or 2 * common >= sum(each.seconds for each in slow.stretches)
    longer = slow.seconds if slow.kind == "tail" else slow.calls * (slow.figure - slow.baseline)
    return bool(is_there) and is_then and 2 * retried.seconds >= longer


def _mixed(parts: Cells, quarters: Sequence[Group]) -> Mixed:
    """Return the figures of the quarters that differ because their calls go to other hosts or endpoints."""

    def spread(name: str, figures: Iterable[float]) -> tuple[float, ...]:
        pairs = [(a, b) for a, (b, calls) in zip(figures, _levels(parts, name), strict=False) if calls >= FEWEST]
        is_mixed = bool(pairs) and all(_MIXED * min(each) < max(each) for each in zip(*pairs, strict=True))
        return (min(pairs)[0], max(pairs)[0]) if is_mixed else ()

    sizes = (each.bytes / (each.succeeded or 1) for each in quarters)
    return Mixed(durations=spread("seconds", (each.latency.p50 for each in quarters)), sizes=spread("bytes", sizes))


def _levels(parts: Cells, name: str) -> list[tuple[float, int]]:
    """Return the mean of each quarter, if each place always had its mean of the whole run, and the calls of these."""
    sums, calls = [0.0] * _QUARTERS, [0] * _QUARTERS
    start, length = parts.edges[0], parts.edges[-1] - parts.edges[0]
    quarters = [int(_QUARTERS * ((low + high) / 2 - start) / length) for low, high in pairwise(parts.edges)]
    for place, counts in parts.by_event["failed"].items():
        if place is not None:
            totals = parts.places[place]
            for quarter, number in zip(quarters, counts.calls, strict=True):
                sums[quarter] += number * getattr(totals, name) / totals.calls
                calls[quarter] += number
    return [(total / (number or 1), number) for total, number in zip(sums, calls, strict=True)]


def _is_by_pauses(finding: Finding, asked: set[str]) -> bool:
    """Return whether the pauses of some hosts explain a finding: it is at these hosts, or about retries after them."""
    refused = dict(finding.classes).get("status_429", 0)
    is_after = finding.kind == "retries" and refused >= _NEARLY_ALL * finding.retries
    return finding.kind in _BY_PAUSES and (is_after or bool(asked & hosts_of(finding.names)))


def _rounded(finding: Finding) -> Finding:
    """Return a finding without the digits that depend on the order in which DuckDB adds numbers."""
    return replace(
        finding,
        weight=round(finding.weight, 6),
        seconds=round(finding.seconds, 6),
        share_of_time=round(finding.share_of_time, 6),
    )


def _ordered(found: Iterable[Finding]) -> list[Finding]:
    """Return the findings by weight, but the failures of the rest of the run after what is worse than this rest."""
    ordered = sorted(found, key=_order)
    failures = [each for each in ordered if each.kind == "failures"]
    if failures and failures[0].rest:
        worst = next(each for each in failures if not each.rest)
        ordered.remove(worst)
        ordered.insert(ordered.index(failures[0]), worst)
    return ordered


def _order(finding: Finding) -> tuple[bool, float]:
    return not (finding.kind in _COUNTED_FIRST and finding.weight >= _FIRST), -round(finding.weight, 6)


def _urls(calls: Calls, number: int, listed: Iterable[str] | None, *, has_attempts: bool) -> Urls:
    again = "url_id IN (SELECT url_id FROM attempts WHERE failure <> '' AND success)" if has_attempts else "FALSE"
    if number > _URLS_AT_A_TIME:
        ((number,),) = calls.rows("SELECT approx_count_distinct(url_id) FROM calls_compact")
    parts = number // _URLS_AT_A_TIME + 1
    counted = [
        calls.rows(
            "SELECT count(*), count(*) FILTER (WHERE done), count(*) FILTER (WHERE done AND failed), "
            f"count(*) FILTER (WHERE {again}) FROM ("
            "SELECT url_id, bool_or(success) AS done, bool_or(NOT success) AS failed FROM calls_compact "
            f"WHERE url_id % {parts} = {part} GROUP BY 1)"
        )[0]
        for part in range(parts)  # ten million URLs at a time would need 400 MB
    ]
    total, done, recovered, retried = (int(sum(column)) for column in zip(*counted, strict=True))
    missing, left = None, total - done
    if listed is not None:
        ((missing, left),) = calls.rows(
            "SELECT count_if(done IS NULL), count_if(done IS NOT TRUE) FROM (SELECT id, bool_or(success) AS done FROM "
            f"(SELECT DISTINCT {URL_ID} AS id FROM (SELECT unnest(?::VARCHAR[]) AS url)) "
            "LEFT JOIN calls_compact ON url_id = id GROUP BY 1)",
            [list(listed)],
        )
    return Urls(
        total=total,
        done=done,
        failed=total - done,
        retried=retried,
        recovered=recovered,
        missing=missing,
        left=left,
    )


def _first(calls: Calls, condition_and_order: str) -> ListedCall | None:
    """Return the first call of those with texts."""
    names = [each.name for each in fields(ListedCall)]
    rows = calls.rows(f"SELECT {', '.join(names)} FROM calls_with_text WHERE {condition_and_order}, call_id LIMIT 1")
    return ListedCall(**dict(zip(names, rows[0], strict=True))) if rows else None


def _before(calls: Calls, time: datetime) -> ListedCall | None:
    return _first(calls, f"t <= {quoted(time.isoformat())}::TIMESTAMP ORDER BY t DESC")


def _gaps(calls: Calls, summary: Summary) -> Iterator[Finding]:
    for each in summary.quiet:
        stretch = Stretch(start=each.start, end=each.start + timedelta(seconds=each.seconds), calls=0, events=0)
        share = each.seconds / summary.total.seconds
        yield Finding(
            kind="gap",
            weight=_OF_TIME * share,
            stretches=(stretch,),
            seconds=each.seconds,
            example=_before(calls, each.start),
        )


def _clock(calls: Calls) -> Iterator[Finding]:
    for path in calls.read_from:
        if step := clock_step(path):
            time = _EPOCH + timedelta(seconds=min(step.time, LATEST))
            stretch = Stretch(start=time, end=time, calls=0, events=0)
            yield Finding(
                kind="clock", weight=_CLOCK, stretches=(stretch,), seconds=step.seconds, example=_before(calls, time)
            )
