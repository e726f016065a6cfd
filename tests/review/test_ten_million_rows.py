"""Time and memory of a summary of ten million rows, compared with DuckDB alone. Soak tests, as they take minutes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median

import duckdb
import pytest
from support import processes

ROWS = 10_000_000
ROUNDS = 3

GENERATED = """
    WITH numbers AS (
        SELECT i, random() AS a, random() AS b, random() AS c, random() AS kind FROM range({rows}) AS numbers(i)
    ),
    made AS (
        SELECT *, 0.2 * exp(0.6 * sqrt(-2 * ln(1 - a)) * cos(2 * pi() * b)) + (c < 0.01)::INT * 3 * a AS seconds
        FROM numbers
    )
    SELECT printf('%016x%016x-%016x', (hash(i) >> 1)::BIGINT, (hash(i + 7) >> 1)::BIGINT, (hash(3 * i) >> 1)::BIGINT)
            AS call_id,
        'project' || i % 8 AS project,
        printf('%.6f', 1790000000 + i * 0.0028) AS t,
        printf('%.6f', seconds) AS delta_t,
        'https://api' || i % 20 || '.example.com/v1/' || CASE WHEN i % 2 = 0 THEN 'items/' || i % 1000000 || '/stock'
            ELSE 'authors/' || translate((hash(i % 1000000) >> 8)::VARCHAR, '0123456789', 'abcdefghij') END
            || '?page=' || i % 100 || '&sort=newest' AS url,
        CASE WHEN i % 50 = 0 THEN 'https://cdn.example.com/' || i END AS redirect_url,
        (seconds * 10000)::INT AS response_size,
        CASE WHEN kind < 0.9 THEN '200' WHEN kind < 0.96 THEN '503' END AS response_code,
        CASE WHEN kind < 0.9 THEN 'True' ELSE 'False' END AS success,
        CASE WHEN kind < 0.9 THEN NULL WHEN kind < 0.96 THEN 'HTTPStatusError: 503 Service Unavailable'
            ELSE 'AttemptTimeout: no answer within 5 s' END AS error
    FROM made
"""

# The figures of a summary and of a verdict, also by endpoint, quarter, and batch and host, in one statement
DUCKDB_ALONE = """
    import sys, duckdb
    duckdb.sql('SET enable_progress_bar=false')
    duckdb.sql(f'''
        SELECT project, split_part(url, '/', 3) AS host, split_part(error, ':', 1) AS error_type, count(*),
            floor((t - 1790000000) / 7000) AS quarter, floor((t - 1790000000) / 140) AS batch,
            regexp_replace(split_part(url, '?', 1), '/([0-9]+|authors/[^/]+)(/|$)', '/{{id}}/', 'g') AS endpoint,
            count(*) FILTER (WHERE NOT success), sum(response_size), quantile_cont(delta_t, [0.5, 0.9, 0.95, 0.99]),
            max(delta_t), min(t), max(t), max_by(url, delta_t), max_by(call_id, delta_t)
        FROM read_csv('{sys.argv[1]}')
        GROUP BY GROUPING SETS ((), (project), (host), (endpoint), (error_type), (quarter), (batch, host))
    ''').fetchall()
"""
SUMMARY = """
    import sys
    from otel_connector import review
    with review.load(sys.argv[1]) as calls:
        summary = review.summarize(calls)
        assert review.verdict(calls, summary).urls.total
        assert summary.total.calls == int(sys.argv[2])
        assert len(summary.endpoints) + summary.more_endpoints == 20
"""


def measure(program: str, *arguments: str) -> tuple[float, float]:
    """Run `program`; return its seconds and its peak memory in MB."""
    text = "\n".join(line.removeprefix("    ") for line in program.splitlines())
    text += "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    start = time.perf_counter()
    done = processes.run([sys.executable, "-c", text, *arguments], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, int(done.stdout) / 1_024


@pytest.mark.soak
def test_forty_million_rows_are_reviewed(tmp_path: Path) -> None:
    """DuckDB keeps the values of a percentile in memory: with a limit of 600 MB, at most 33 million."""
    log = tmp_path / "logs.csv"
    duckdb.sql(f"COPY ({GENERATED.format(rows=4 * ROWS)}) TO '{log}' (HEADER)")
    seconds, peak = measure(SUMMARY, str(log), str(4 * ROWS))
    print(f"{seconds:.1f} s, {peak:.0f} MB")
    assert peak < 1_600


@pytest.mark.soak
def test_a_review_takes_at_most_1_7_times_as_long_as_duckdb_alone_and_less_than_600_mb(tmp_path: Path) -> None:
    log = tmp_path / "logs.csv"
    duckdb.sql(f"COPY ({GENERATED.format(rows=ROWS)}) TO '{log}' (HEADER)")
    ratios, peaks = list[float](), list[float]()
    for _ in range(ROUNDS):
        bare, bare_peak = measure(DUCKDB_ALONE, str(log))
        ours, peak = measure(SUMMARY, str(log), str(ROWS))
        ratios.append(ours / bare)
        peaks.append(peak)
        print(f"DuckDB alone {bare:.1f} s, {bare_peak:.0f} MB; the summary {ours:.1f} s, {peak:.0f} MB")
    print(f"{log.stat().st_size / 1e9:.2f} GB; ratios {' '.join(f'{ratio:.2f}' for ratio in sorted(ratios))}")
    assert median(ratios) <= 1.7
    assert max(peaks) < 600
