"""Finds what the attempts logs beside the logs show: pauses for which a server asked, and calls that were retried.

Their table is that of `_lost_time`. Knows nothing of the other findings.

Used by ``review._judge``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from otel_connector.review._anomalies import Anomaly, Selection, Threshold, anomalies
from otel_connector.review._cells import Cells, Counts
from otel_connector.review._described import Search, example_of, lasting, place_of, with_sides
from otel_connector.review._load import Calls
from otel_connector.review._verdict import Finding, Stretch

_RULE = Threshold(odds=2, share=0.01, least=10, whole=True)
_THROUGHOUT = 0.05  # share of all calls from which retries without a place are a finding
_MOST_REASONS = 12
_PAUSED = 0.05  # share of the run, from which pauses are a finding
_OF_RETRIES = 0.2  # a call that was retried weighs a fifth of a failed one
_ROUNDING = 0.001  # seconds by which the end of a pause may differ from the start of the call after it
_PAUSE = "reason = 'status_429' AND wait > 0"


def waits(calls: Calls, seconds: float, number: int) -> Iterator[Finding]:
    """Yield a finding for each host that asked for pauses in a considerable part of the run.

    Args:
        calls: The calls, whose attempts have been read.
        seconds: The length of the run.
        number: The number of all calls.
    """
    rows = calls.rows(f"""
        WITH pauses AS (
            SELECT host, t + duration AS low, t + duration + wait AS high, wait FROM attempts WHERE {_PAUSE}
        ), merged AS (
            SELECT *, max(high) OVER (PARTITION BY host ORDER BY low ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
                AS until FROM pauses
        ), paused AS (
            SELECT host, count_if(until IS NULL OR low >= until) AS pauses, median(wait) AS typical,
                sum(greatest(high - greatest(low, coalesce(until, low)), 0)) AS paused,
                make_timestamp((min(low) * 1e6)::BIGINT) AS first, make_timestamp((max(high) * 1e6)::BIGINT) AS last
            FROM merged GROUP BY 1
        ), started AS (
            SELECT c.host, count(*) AS number, count_if(since < greatest(high, until) - {_ROUNDING}) AS inside
            FROM (SELECT host, epoch_us(t) / 1e6 AS since FROM calls_compact) AS c
            ASOF LEFT JOIN merged AS m ON c.host = m.host AND since >= low GROUP BY 1
        )
        SELECT host, pauses, typical, paused, first, last, number, inside,
            (SELECT count(*) FROM calls_compact AS c WHERE c.host = paused.host AND c.t BETWEEN first AND last),
            (SELECT count(DISTINCT call_id) FROM attempts AS a WHERE a.host = paused.host AND {_PAUSE})
        FROM paused JOIN started USING (host) ORDER BY paused DESC, host""")
    considerable = (row for row in rows if seconds and row[3] >= _PAUSED * seconds)
    for host, pauses, typical, paused, first, last, of_host, inside, meanwhile, asked in considerable:
        yield Finding(
            kind="waits",
            weight=min(paused / seconds, 1.0),
            by="host",
            names=(host,),
            others=len(rows) - 1,
            stretches=(Stretch(start=first, end=last, calls=meanwhile, events=asked),),
            calls=of_host,
            events=asked,
            other_calls=number - of_host,
            beside_calls=inside,
            beside_events=pauses,
            figure=typical,
            baseline=of_host / seconds,
            seconds=paused,
            share_of_time=min(paused / seconds, 1.0),
            classes=(("status_429", asked),),
        )


def retries(calls: Calls, cells: Cells) -> Iterator[Finding]:
    """Yield findings about the calls that needed another attempt, more at a place or in a stretch than elsewhere."""
    counts = {
        place: Counts(list(each.calls), [0] * len(each.calls)) for place, each in cells.by_event["failed"].items()
    }
    cases = " ".join(f"WHEN started < {edge} THEN {i}" for i, edge in enumerate(cells.edges[1:]))
    for *values, batch, hits in calls.rows(
        f"SELECT {', '.join(cells.columns)}, CASE {cases} END, count(DISTINCT call_id) FROM attempts "
        "WHERE failure <> '' GROUP BY ALL"
    ):
        place = tuple(values)
        counts[place if place in counts else None].events[batch] += hits
    cells = replace(cells, by_event={"retried": counts})
    found = anomalies(cells, "retried", _RULE)
    retried = sum(sum(each.events) for each in counts.values())
    if not found and retried >= max(_THROUGHOUT * cells.calls, _RULE.least):
        found = [Anomaly(scope=Selection(places=frozenset(counts)))]
    for each in found:
        yield from _described(calls, cells, each, retried)


def _described(calls: Calls, cells: Cells, anomaly: Anomaly, retried: int) -> Iterator[Finding]:
    scope, counts = anomaly.scope, cells.by_event["retried"]
    edges = [(cells.edges[first], cells.edges[end]) for first, end in anomaly.ranges]
    times = [f"(started >= {low} AND started < {high})" for low, high in edges]
    when = " OR ".join(times) or "TRUE"
    condition = f"failure <> '' AND {place_of(scope)} AND ({when})"
    (_, number, succeeded, seconds), *reasons = calls.rows(
        "SELECT failure, count(*), count(DISTINCT call_id) FILTER (WHERE success), coalesce(sum(waited), 0) FROM "
        f"attempts WHERE {condition} GROUP BY ROLLUP (failure) ORDER BY failure IS NOT NULL, 2 DESC, 1 "
        f"LIMIT {1 + _MOST_REASONS}"
    )
    ends = [
        calls.rows(
            "SELECT make_timestamp(min(started)), make_timestamp(max(started)) FROM attempts "
            f"WHERE failure <> '' AND {place_of(scope)} AND {each}"
        )[0]
        for each in times
    ]
    run = Search(calls, cells)
    parts = anomaly.ranges or [(0, len(cells.edges) - 1)]
    calls_of, events_of = (
        [sum(sum(getattr(counts[each], what)[first:end]) for each in scope.places) for first, end in parts]
        for what in ("calls", "events")
    )
    of_scope, events = sum(calls_of), sum(events_of)
    stretches = tuple(
        Stretch(start=start, end=end, calls=of_part, events=retried_of_part)
        # Without `ends`, it is the whole run
        for (start, end), of_part, retried_of_part in zip(ends, calls_of, events_of, strict=False)
    )
    yield Finding(
        kind="retries",
        weight=_OF_RETRIES * events / cells.calls,
        by=scope.by,
        names=scope.names,
        others=len({place[cells.columns.index(scope.by)] for place in cells.places}) - len(scope.names)
        if scope.by
        else 0,
        stretches=with_sides(run, place_of(scope), stretches),
        period=None if ends else lasting(run, scope),
        calls=of_scope,
        events=events,
        other_calls=cells.calls - of_scope,
        other_events=retried - events,
        seconds=seconds,
        classes=tuple((name, count) for name, count, *_ in reasons),
        retries=number,
        succeeded=succeeded,
        example=example_of(run, f"call_id IN (SELECT call_id FROM attempts WHERE {condition})", slowest=True),
    )
