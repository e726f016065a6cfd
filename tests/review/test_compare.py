"""Tests of the comparison of two runs: which differences are marked, and which are not.

Both kinds of error are measured: marks without a real difference, even if the calls of a run are correlated, and real
differences that are not marked.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import datetime
from functools import cache
from itertools import count
from statistics import NormalDist
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console

from otel_connector.cli._compare_view import show_comparison
from otel_connector.review import _compare_text, _noise
from otel_connector.review._compare import FISHER, WELCH, WOODRUFF, compare
from otel_connector.review._comparison import Compared, Comparison, Difference, FigureVerdict, Groups
from otel_connector.review._load import Calls
from otel_connector.review._noise import BATCHES, Estimate
from otel_connector.review._sources import LogFile

ARGUMENTS: dict[str, Any] = {"calls": 6_000, "seconds": 600, "slower": 1.0, "failing": 0.01, "hosts": 2, "seed": 1}

# Sequential calls with lognormal durations; a wave makes the durations of neighbouring calls similar
RUN = """
    WITH drawn AS (
        SELECT i, i * $seconds / $calls AS since, hash(i, $seed, 1) / 18446744073709551616.0 AS u,
            hash(i, $seed, 2) / 18446744073709551616.0 AS v, hash(i, $seed, 3) / 18446744073709551616.0 AS w
        FROM range($calls) r(i)
    )
    SELECT make_timestamp(1700000000000000 + (since * 1e6)::BIGINT) AS t,
        $slower * 0.1 * exp(0.5 * sqrt(-2 * ln(u + 1e-12)) * cos(2 * pi() * v) + 0.05 * sin(since)) AS delta_t,
        'P' AS project, 'host' || hash(i) % $hosts AS host, host || '/{id}' AS endpoint, w >= $failing AS success,
        CASE WHEN success THEN '' WHEN i % 3 = 0 THEN 'HTTPStatusError 503' ELSE 'ConnectFailed' END AS error_type,
        500 + (u * 1000)::BIGINT AS response_size, 200 AS response_code,
        printf('%032x-%016x', i + 1, i + 1) AS call_id, 'https://' || host || '/' || i AS url, error_type AS error
    FROM drawn
"""


@cache
def database() -> duckdb.DuckDBPyConnection:
    """Return the database of all runs. Each run is an attached one: a new database takes longer than the rest."""
    return duckdb.connect(config={"threads": 1})


@pytest.fixture(scope="module", autouse=True)
def close_database() -> Iterator[None]:
    yield
    database().close()
    database.cache_clear()


numbers = count()


@contextmanager
def run(sql: str = "", **arguments: Any) -> Iterator[Calls]:
    """Create a run from `ARGUMENTS` and `arguments`, then execute the statements of `sql`."""
    connection, own = database().cursor(), f"run_{next(numbers)}"
    connection.execute(f"ATTACH ':memory:' AS {own}; USE {own}")
    connection.execute(f"CREATE TABLE calls_compact AS {RUN}", ARGUMENTS | arguments)
    for statement in filter(str.strip, sql.split(";")):
        connection.execute(statement)
    with Calls(connection, tempfile.mkdtemp()) as calls:
        calls.files = (LogFile(path="logs/run.csv"), LogFile(path="logs/none.txt", problem="it is not a log"))
        yield calls
    database().execute(f"DETACH {own}")


def compared(before: AbstractContextManager[Calls], after: AbstractContextManager[Calls], **options: Any) -> Comparison:
    with ExitStack() as stack:
        return compare(stack.enter_context(before), stack.enter_context(after), **options)


def row(group: Compared, figure: str, error: str = "") -> Difference:
    (found,) = (each for each in group.differences if (each.figure, each.error) == (figure, error))
    return found


def verdicts(group: Compared) -> dict[str, str]:
    return {each.error or each.figure: each.verdict for each in group.differences}


@pytest.fixture(scope="module")
def different() -> Comparison:
    """The second run is 20 % slower, fails twice as often, and has an additional host and project."""
    more = "INSERT INTO calls_compact SELECT * REPLACE ('new' AS host, 'Q|*' AS project) FROM calls_compact LIMIT 50"
    first, second = run(calls=20_000), run(more, calls=20_000, slower=1.2, failing=0.02, seed=2)
    return compared(first, second)


@pytest.fixture(scope="module")
def short() -> Comparison:
    """Two runs of one second each."""
    return compared(run(calls=500, seconds=1), run(calls=500, seconds=1, seed=2, slower=3))


# Verdicts


def test_real_differences_are_marked(different: Comparison) -> None:
    assert verdicts(different.total) == {
        "calls": "not tested",
        "calls_per_second": "same within noise",
        "error_rate": "worse",
        "ConnectFailed": "worse",
        "HTTPStatusError 503": "worse",
        "p50": "worse",
        "p90": "worse",
        "p95": "worse",
        "p99": "worse",
        "slow_share": "same within noise",
        "bytes_per_call": "same within noise",
    }
    slower = row(different.total, "p95")
    assert slower.relative == pytest.approx(0.2, abs=0.04)
    assert slower.absolute == slower.after - slower.before
    assert slower.noise < slower.absolute
    assert (slower.test, row(different.total, "error_rate").test) == (WOODRUFF, WELCH)


def test_improvements_are_marked_as_better() -> None:
    result = compared(
        run(calls=20_000, slower=1.2, failing=0.02, seed=2), run("UPDATE calls_compact SET response_size = 9")
    )
    found = verdicts(result.total)
    assert (found["p95"], found["error_rate"]) == ("better", "better")
    assert (found["calls_per_second"], found["bytes_per_call"]) == ("less", "less")
    assert row(result.total, "bytes_per_call").after == 9


def test_a_run_compared_with_itself_has_no_difference() -> None:
    result = compared(run(calls=20_000), run(calls=20_000))
    assert not any(each.larger_than_noise for each in result.total.differences)
    assert all(each.p == 1 and each.relative == 0 for each in result.total.differences[1:])
    (text,) = _compare_text.texts(result)
    assert text.startswith("No difference of all calls is larger than noise: error rate 0.96 % / 0.96 %, p50 ")


def test_the_headline_names_what_only_a_table_of_groups_marks(different: Comparison) -> None:
    """One host of ten is slower, too little for all calls: `worse` counts figures that only the tables show."""
    slower = "UPDATE calls_compact SET delta_t = delta_t * 1.3 WHERE host = 'host1'"
    result = compared(run(hosts=10), run(slower, seed=2, hosts=10))
    (group,) = (each for each in result.hosts.compared if each.name == "host1")
    marked = [(each.figure, each.relative) for each in group.differences if each.verdict == "worse"]
    text = "\n".join(_compare_text.texts(result))
    assert len(marked) > 1
    figures = ", ".join(f"{figure} {share * 100:+.1f} %" for figure, share in marked)
    assert f"\nWorse at one host: host1 {figures}\nWorse at one endpoint: host1/{{id}} {figures}\n" in text
    assert "Worse at" not in "\n".join(_compare_text.texts(different)), "all calls have the same marks"


def groups_of(*found: Compared) -> Groups:
    return Groups(compared=found, only_before=(), only_after=(), more=(0, 0, 0))


def marks(names: str, figure: str, verdict: FigureVerdict = "worse") -> Groups:
    found = Difference(figure=figure, unit="s", before=1, after=1.8, verdict=verdict)
    marked = (Compared(name=name, differences=(found,)) for name in names)
    return groups_of(*marked, Compared(name="same", differences=()))


@pytest.mark.parametrize(
    ("part", "groups", "line"),
    [
        ("projects", marks("P", "p99", "better"), "Better in one project: P p99 +80.0 %"),
        ("hosts", marks("h", "p99", "more"), "More at one host: h p99 +80.0 %"),
        ("endpoints", marks("a", "p90"), "Worse at one endpoint: a p90 +80.0 %"),
        (
            "endpoints",
            marks("abcde", "p90"),
            "Worse at 5 endpoints: a p90 +80.0 %; b p90 +80.0 %; c p90 +80.0 %; and 2 more",
        ),
    ],
)
def test_a_mark_of_a_group_is_one_line_of_the_headline(
    part: str, groups: Groups, line: str, different: Comparison
) -> None:
    nothing = dataclasses.replace(
        different.total, differences=(dataclasses.replace(row(different.total, "p95"), verdict="same within noise"),)
    )
    none = groups_of()
    result = dataclasses.replace(different, total=nothing, projects=none, hosts=none, endpoints=none)
    texts = _compare_text.texts(dataclasses.replace(result, **{part: groups}))  # type: ignore[arg-type]
    assert texts == ["No difference of all calls is larger than noise", line]


def test_a_host_without_calls_in_one_of_the_runs_is_named(different: Comparison) -> None:
    moved = "UPDATE calls_compact SET host = 'beta.example' WHERE host = 'host1'"
    gone = "DELETE FROM calls_compact WHERE host = 'host1'"
    result = compared(run(moved), run(gone))
    (there,) = result.hosts.only_before
    assert f"No calls to beta.example in the second run; {there.calls:,} before" in _compare_text.texts(result)
    texts = _compare_text.texts(compared(run(gone), run(moved)))
    assert f"No calls to beta.example in the first run; {there.calls:,} after" in texts
    # Few calls may be missing by chance
    rare = "UPDATE calls_compact SET host = 'rare' WHERE call_id IN (SELECT call_id FROM calls_compact LIMIT 9)"
    assert "rare" not in "\n".join(_compare_text.texts(compared(run(rare), run())))
    # The calls of an outage are left out
    texts = _compare_text.texts(compared(run(moved), run(f"{gone}; {down(0.5, 0.6)}")))
    assert f"No calls to beta.example in the second run, apart from the outage; {there.calls:,} before" in texts


def test_of_many_hosts_without_calls_three_are_named_and_of_an_empty_run_none() -> None:
    alike: dict[str, Any] = {"calls": 20_000, "hosts": 7}
    moved = "UPDATE calls_compact SET host = 'x' || host WHERE host <> 'host0'"
    found = [text for text in _compare_text.texts(compared(run(**alike), run(moved, **alike))) if "No calls" in text]
    more = [text for text in found if "more hosts" in text]
    assert more == ["No calls to 3 more hosts in the second run", "No calls to 3 more hosts in the first run"]
    assert len(found) == 8
    assert "No calls to" not in "\n".join(_compare_text.texts(compared(run(**alike), run(calls=0))))


def test_figures_equal_those_of_a_plain_query() -> None:
    with run() as calls:
        expected = calls.rows(
            "SELECT count(*), count_if(NOT success) / count(*), count_if(error_type = 'ConnectFailed') / count(*), "
            "quantile_cont(delta_t, 0.5), quantile_cont(delta_t, 0.99), avg(response_size) FROM calls_compact"
        )[0]
        found = compare(calls, calls).total
    figures = [("calls", ""), ("error_rate", ""), ("error_share", "ConnectFailed"), ("p50", ""), ("p99", "")]
    assert [row(found, *each).before for each in [*figures, ("bytes_per_call", "")]] == pytest.approx(expected)


def test_hosts_that_only_one_run_has_are_listed(different: Comparison) -> None:
    assert [each.name for each in different.hosts.compared] == ["host0", "host1"]
    assert [(each.name, each.calls) for each in different.hosts.only_after] == [("new", 50)]
    assert different.hosts.only_before == ()
    assert all(row(each, "p95").verdict == "worse" for each in different.hosts.compared)


def test_the_busiest_hosts_are_compared_and_the_others_counted() -> None:
    swapped = "UPDATE calls_compact SET host = 'x' || host WHERE host IN ('host2', 'host3')"
    result = compared(run(hosts=4), run(swapped, hosts=4), groups=1).hosts
    assert [len(each) for each in (result.compared, result.only_before, result.only_after)] == [1, 1, 1]
    assert result.more == (1, 1, 1)


def test_rare_error_classes_are_counted() -> None:
    many = "UPDATE calls_compact SET error_type = 'E' || (hash(t) % 15) WHERE NOT success"
    first, second = run(many, failing=0.2), run(many, failing=0.2, seed=2)
    total = compared(first, second).total
    assert (len([each for each in total.differences if each.error]), total.more_errors > 0) == (10, True)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"calls": 99}, "fewer than 100 calls in a run"),
        ({"calls": 0}, "fewer than 100 calls in a run"),
        ({"seconds": 9}, "a run shorter than 10 s"),
        ({"slower": 500.0}, "a run shorter than 30 sequential calls"),
    ],
)
def test_runs_with_too_little_data_get_no_verdict(arguments: dict[str, Any], reason: str) -> None:
    total = compared(run(), run(seed=2, **arguments)).total
    assert {(each.verdict, each.reason) for each in total.differences[1:]} == {("too few to tell", reason)}
    assert all(math.isnan(each.p) and not each.test for each in total.differences)


def test_calls_at_the_same_time_count_as_one_observation() -> None:
    burst = "UPDATE calls_compact SET t = TIMESTAMP '2023-11-14 22:14:00' WHERE hash(t) % 10 <> 0"
    total = compared(run(burst), run(burst, seed=2, slower=3.0)).total
    assert row(total, "p50").reason == "nearly all calls of a run in fewer than 10 of 30 equal parts of its time"


def test_a_run_of_one_instant_has_no_rate() -> None:
    total = compared(run("UPDATE calls_compact SET t = TIMESTAMP '2023-11-14'"), run()).total
    assert math.isnan(row(total, "calls_per_second").before)


def test_a_percentile_with_few_slower_calls_gets_no_verdict() -> None:
    total = compared(run(calls=900), run(calls=900, seed=2)).total
    assert (row(total, "p99").verdict, row(total, "p99").reason) == ("too few to tell", "too few calls as slow")
    assert row(total, "p50").verdict == "same within noise"


def test_a_noisy_figure_is_not_reported_as_unchanged() -> None:
    slow_times = "UPDATE calls_compact SET delta_t = delta_t * (1 + 20 * (hash(epoch_us(t) // 20000000) % 2))"
    total = compared(run(slow_times), run(slow_times, seed=2, slower=1.1)).total
    assert row(total, "p50").verdict == "too noisy to tell"


def test_few_failures_are_compared_with_fishers_exact_test() -> None:
    few = compared(run(failing=0.0), run(failing=0.001, seed=2)).total
    spread = "UPDATE calls_compact SET success = false, error_type = 'E' WHERE epoch_us(t) % 40000000 = 0"
    many = compared(run(failing=0.0), run(spread, failing=0.0, seed=2)).total
    none = compared(run(failing=0.0), run(failing=0.0, seed=2)).total
    assert [row(each, "error_rate").test for each in (few, many, none)] == [FISHER] * 3
    assert [row(each, "error_rate").verdict for each in (few, many, none)] == [
        "too few to tell",
        "worse",
        "same within noise",
    ]
    assert row(many, "error_rate").relative == math.inf


def test_an_outage_counts_as_one_event() -> None:
    seconds = "epoch_us(t) - 1700000100000000 BETWEEN 0 AND 3e6"
    outage = f"UPDATE calls_compact SET success = false, error_type = 'E' WHERE {seconds}"
    result = compared(run(failing=0.0), run(outage, failing=0.0, seed=2))
    # twice the rate that is "worse" in the test above
    assert [each.finding.events / 6_000 for each in result.outages] == [pytest.approx(31 / 6_000)]
    assert row(result.total, "error_rate").verdict == "same within noise"
    assert _compare_text.counts(result) == {"better": 0, "worse": 1}


def test_a_certain_but_tiny_difference_is_too_small_to_matter() -> None:
    def constant(size: int) -> str:
        return f"UPDATE calls_compact SET response_size = {size}"

    total = compared(run(constant(1_000)), run(constant(1_001))).total
    assert row(total, "bytes_per_call").verdict == "too small to matter"
    total = compared(run(constant(1_000)), run(constant(1_001)), minimum=0.0).total
    assert row(total, "bytes_per_call").verdict == "more"


def test_a_difference_is_marked_if_and_only_if_it_exceeds_the_shown_noise() -> None:
    """The rows include some that would be significant alone, but not after the correction for multiple tests."""
    results = [compared(run(), run(seed=2, slower=slower), minimum=0.0) for slower in (1.01, 1.02, 1.03, 1.04)]
    rows = [each for result in results for each in result.total.differences if not math.isnan(each.noise)]
    assert [each for each in rows if each.larger_than_noise != (abs(each.absolute) > each.noise)] == []
    assert [each for each in rows if each.p < 0.01 and not each.larger_than_noise] != []


@pytest.mark.parametrize("option", [{"confidence": 1.0}, {"confidence": 0.4}, {"minimum": -1.0}, {"groups": -1}])
def test_an_argument_out_of_range_is_named_in_the_error(option: dict[str, Any]) -> None:
    with run(calls=1) as calls, pytest.raises(ValueError, match=f"^{next(iter(option))} must be"):
        compare(calls, calls, **option)


# Outages


def down(start: float, end: float, host: str = "", error: str = "ConnectFailed", share: float = 1.0) -> str:
    """Return a statement that lets a share of the calls in a part of a run of 600 seconds fail."""
    period = f"epoch_us(t) - 1700000000000000 BETWEEN {start * 6e8:.0f} AND {end * 6e8:.0f}"
    return (
        f"UPDATE calls_compact SET success = false, error_type = '{error}', error = '{error}: x' WHERE {period} "
        f"AND contains(host, '{host}') AND hash(call_id, 3) % 1000 < {share * 1_000:.0f};"
    )


OUTAGES: dict[str, tuple[str, dict[str, Any], list[float], str]] = {
    # What happens to the second run, its arguments, where its stretches begin and end, and what the headline names
    "the last 50 %": (down(0.5, 1), {}, [0.5, 1], "calls to all hosts failed (ConnectFailed: x)"),
    "the last 75 %": (down(0.25, 1), {}, [0.25, 1], "1.05 % -> 75."),
    "the last 90 %": (down(0.1, 1), {}, [0.1, 1], "1.05 % -> 90."),
    "three of 15 % in all": (
        down(0.1, 0.15) + down(0.4, 0.45) + down(0.8, 0.85),
        {},
        [0.1, 0.15, 0.4, 0.45, 0.8, 0.85],
        "3 times: ",
    ),
    "10 % of 20,000 calls": (down(0.45, 0.55), {"calls": 20_000}, [0.45, 0.55], "Worse (after): Outage: "),
    "half of 600 calls": (down(0.5, 1), {"calls": 600}, [0.5, 1], "Worse (after): Outage: "),
    "three seconds": (down(0.5, 0.505), {}, [0.5, 0.505], "31 of 31 calls"),
    "another class": (down(0.5, 0.6, error="AttemptTimeout"), {}, [0.5, 0.6], "AttemptTimeout"),
    "one host of two": (down(0.4, 0.6, host="host0"), {}, [0.4, 0.6], "calls to host0 failed"),
    "half of the calls": (down(0.4, 0.6, share=0.5), {}, [0.4, 0.6], "Worse (after): Failed: "),
    "at the start": (down(0, 0.2), {}, [0, 0.2], "Worse (after): Outage: from the start"),
}


@pytest.mark.parametrize("name", OUTAGES)
def test_an_outage_is_worse_and_the_rest_is_compared_apart_from_it(name: str) -> None:
    statements, arguments, ends, says = OUTAGES[name]
    result = compared(run(**arguments), run(statements, seed=2, **arguments))
    (outage,) = result.outages
    assert (outage.run, outage.verdict) == ("after", "worse")
    found = [(each - datetime(2023, 11, 14, 22, 13, 20)).total_seconds() / 600  # noqa: DTZ001 - as in DuckDB
             for stretch in outage.finding.stretches for each in (stretch.start, stretch.end)]  # fmt: skip
    assert found == pytest.approx(ends, abs=0.015)
    assert _compare_text.counts(result) == {"better": 0, "worse": 1}
    text = "\n".join(_compare_text.texts(result))
    assert says in text
    assert "Apart from the outage: " in text
    assert verdicts(result.total)["p50"] == "same within noise"


def test_a_host_that_is_down_in_the_whole_run_is_an_outage_and_is_left_out_of_both_runs() -> None:
    """Without the calls of this host, which take twice the time, the second run would have shorter durations."""
    slow = "UPDATE calls_compact SET delta_t = 2 * delta_t WHERE host = 'host0';"
    dead = "UPDATE calls_compact SET delta_t = delta_t / 100 WHERE NOT success;"
    result = compared(run(slow, hosts=3), run(slow + down(0, 1, host="host0") + dead, seed=2, hosts=3))
    (outage,) = result.outages
    assert (outage.run, outage.verdict, outage.finding.stretches) == ("after", "worse", ())
    assert (outage.finding.by, outage.finding.names) == ("host", ("host0",))
    assert _compare_text.counts(result) == {"better": 0, "worse": 1}
    texts = _compare_text.texts(result)
    assert re.match(
        r"Worse \(after\): Outage: from the first call to the last\. ([\d,]+) of \1 calls to host0 ", texts[0]
    )
    assert verdicts(result.total)["p50"] == "same within noise"


def test_a_run_in_which_all_calls_failed_is_an_outage_and_not_faster() -> None:
    dead = "UPDATE calls_compact SET delta_t = delta_t / 100;"
    result = compared(run(), run(down(0, 1) + dead, seed=2))
    assert [(each.run, each.verdict, each.finding.events) for each in result.outages] == [("after", "worse", 6_000)]
    assert _compare_text.counts(result) == {"better": 0, "worse": 1}
    texts = _compare_text.texts(result)
    assert texts[0].startswith(
        "Worse (after): Outage: from the first call to the last. 6,000 of 6,000 calls to all hosts failed ("
    )
    assert any(re.fullmatch(r"All calls: \d\.\d\d % -> 100\.00 % failed\.", each) for each in texts)
    assert texts[-1] == "Apart from the outage: too few to tell: fewer than 100 calls in a run"


def test_failures_that_take_less_time_than_successes_make_no_run_better() -> None:
    dead = "UPDATE calls_compact SET delta_t = delta_t / 100, error_type = 'ConnectFailed' WHERE NOT success;"
    result = compared(run(dead), run(down(0, 1, share=0.7) + dead, seed=2))
    assert (result.outages, _compare_text.counts(result)["better"]) == ((), 0)
    assert (verdicts(result.total)["error_rate"], verdicts(result.total)["p50"]) == ("worse", "less")
    (text,) = _compare_text.texts(result)
    assert re.match(r"Worse: error rate x [\d.]+, .*; less: p50 -\d", text)


def slow(start: float, end: float, times: float, host: str = "") -> str:
    """Return a statement that lets the calls in a part of a run of 600 seconds take longer."""
    period = f"epoch_us(t) - 1700000000000000 BETWEEN {start * 6e8:.0f} AND {end * 6e8:.0f}"
    return f"UPDATE calls_compact SET delta_t = {times} * delta_t WHERE {period} AND contains(host, '{host}');"


@pytest.mark.parametrize(
    ("start", "end", "times", "host", "arguments"),
    [
        (0.4, 0.5, 3, "", {"calls": 2_000}),
        (0.5, 1, 8, "", {"calls": 600}),
        (0.3, 0.6, 4, "host1", {"calls": 1_500}),
    ],
    ids=["a tenth", "half", "one host"],
)
def test_a_stretch_of_slow_calls_is_worse_and_the_rest_is_compared_apart_from_it(
    start: float, end: float, times: float, host: str, arguments: dict[str, Any]
) -> None:
    result = compared(run(**arguments), run(slow(start, end, times, host), seed=2, **arguments))
    (found,) = result.outages
    assert (found.run, found.verdict, found.finding.kind) == ("after", "worse", "slower")
    assert found.finding.names == ((host,) if host else ())
    assert found.finding.figure / found.finding.baseline == pytest.approx(times, rel=0.12)
    (stretch,) = found.finding.stretches
    first = datetime(2023, 11, 14, 22, 13, 20)  # noqa: DTZ001 - as in DuckDB
    assert [(each - first).total_seconds() / 600 for each in (stretch.start, stretch.end)] == pytest.approx(
        [start, end], abs=0.02
    )
    assert _compare_text.counts(result) == {"better": 0, "worse": 1}
    said = _compare_text.texts(result)
    assert said[0].startswith("Worse (after): Slower: ")
    assert any(each.startswith("Apart from the slow stretch: no difference") for each in said)
    assert not any(each.startswith("All calls: ") for each in said)


def test_a_slow_stretch_is_no_difference_if_the_other_run_has_one_or_it_is_short() -> None:
    both = compared(run(slow(0.1, 0.3, 5), calls=900), run(slow(0.6, 0.8, 5), calls=900, seed=2))
    short = compared(run(calls=2_000), run(slow(0.5, 0.52, 8), calls=2_000, seed=2))
    assert (both.outages, short.outages) == ((), ())
    better = compared(run(slow(0.1, 0.3, 5), calls=900), run(calls=900, seed=2))
    assert [(each.run, each.verdict, each.finding.kind) for each in better.outages] == [("before", "better", "slower")]


def test_an_outage_and_a_slow_stretch_at_the_same_time_are_left_out_once() -> None:
    """Both are of all calls: their time is not removed twice."""
    statements = slow(0.4, 0.6, 6) + down(0.5, 0.7, share=0.6)
    result = compared(run(calls=1_000), run(statements, calls=1_000, seed=2))
    assert sorted(each.finding.kind for each in result.outages) == ["failures", "slower"]
    assert "Apart from the outages and slow stretches: " in "\n".join(_compare_text.texts(result))
    assert _compare_text.counts(result) == {"better": 0, "worse": 2}


def test_outages_of_all_calls_that_are_longer_than_an_int32_of_microseconds_together() -> None:
    """Three of 18 minutes: DuckDB takes each length for an INT32, whose largest value is 35 min 47 s."""
    statements = "".join(down(start, start + 1.8) for start in (3.6, 16.2, 28.8))
    result = compared(run(seconds=21_600), run(statements, seconds=21_600, seed=2))
    assert [len(each.finding.stretches) for each in result.outages] == [3]
    assert _compare_text.counts(result) == {"better": 0, "worse": 1}


def test_two_runs_with_like_outages_are_not_worse_and_the_first_run_may_be_the_worse_one() -> None:
    alike = compared(run(down(0.5, 0.6)), run(down(0.2, 0.31), seed=2))
    assert [(each.run, each.verdict) for each in alike.outages] == [
        ("after", "in both runs"),
        ("before", "in both runs"),
    ]
    assert _compare_text.counts(alike) == {"better": 0, "worse": 0}
    assert "In both runs (after): Outage: " in _compare_text.texts(alike)[0]
    better = compared(run(down(0.5, 0.6)), run(seed=2))
    assert _compare_text.counts(better) == {"better": 1, "worse": 0}


def test_an_outage_elsewhere_or_of_another_class_is_not_the_one_of_the_other_run() -> None:
    """The second run also has the outage of the first one, or an equally large one that is another."""
    first = down(0.2, 0.4, host="host0", error="HTTPStatusError 503")
    for second, verdicts, counts in (
        (down(0.2, 0.4, host="host1", error="HTTPStatusError 503"), ["worse", "better"], (1, 1)),
        (down(0.2, 0.4, host="host0"), ["worse", "better"], (1, 1)),
        (down(0.2, 0.3, error="HTTPStatusError 503"), ["worse", "better"], (1, 1)),
        (first + down(0.5, 0.9, host="host1"), ["worse", "in both runs", "in both runs"], (1, 0)),
    ):
        result = compared(run(first), run(second, seed=2))
        assert [each.verdict for each in result.outages] == verdicts
        found = _compare_text.counts(result)
        assert (found["worse"], found["better"]) == counts


def of_six_classes(seed: int) -> str:
    """Return a statement for an outage with more classes than are listed, nearly as many of each."""
    name = f"'Class' || hash(call_id, {seed}) % 6"
    return down(0.4, 0.5, "host0") + (
        f"UPDATE calls_compact SET error_type = {name}, error = {name} || ': x' WHERE error_type = 'ConnectFailed';"
    )


def test_an_outage_beside_failures_that_both_runs_have_is_worse() -> None:
    """A host refuses calls in both runs at times, and is down in one of them: their error classes are compared."""
    starts = (0.05, 0.25, 0.45, 0.65, 0.85)
    holds = "".join(down(start, start + 0.03, "host0", "HTTPStatusError 429") for start in starts)
    outage = down(0.7, 0.76, "host0")
    for before, after, verdicts in (
        (holds, holds, ["in both runs", "in both runs"]),
        (holds, holds + outage, ["worse", "in both runs"]),
        (holds + outage, holds, ["in both runs", "better"]),
        (holds, holds + down(0.88, 0.99, "host0"), ["worse", "in both runs"]),
        (of_six_classes(3), of_six_classes(4), ["in both runs", "in both runs"]),
    ):
        result = compared(run(before), run(after, seed=2))
        assert [each.verdict for each in result.outages] == verdicts


def test_what_is_worse_apart_from_an_outage_is_also_counted() -> None:
    result = compared(run(hosts=1), run(down(0.4, 0.6), seed=2, slower=1.3, hosts=1))
    found = _compare_text.counts(result)["worse"]
    assert found == 1 + [each.verdict for each in result.total.differences].count("worse") > 3


TAIL = "UPDATE calls_compact SET delta_t = delta_t * {} WHERE host IN ({}) AND hash(call_id, 7) % 100 < 6"


@pytest.mark.parametrize("seed", [2, 3])
def test_a_tail_on_one_host_is_worse(seed: int) -> None:
    """Its percentiles may be too noisy: with a few slow calls less, the p95 of 375 calls would be the same."""
    sizes: dict[str, Any] = {"calls": 3_000, "hosts": 8, "seconds": 6_000}
    result = compared(run(**sizes), run(TAIL.format(60, "'host1'"), **sizes, seed=seed))
    (host,) = (each for each in result.hosts.compared if any(row.larger_than_noise for row in each.differences))
    found = row(host, "slow_share")
    assert (host.name, found.verdict, found.before) == ("host1", "worse", 0)
    said = f"Worse at one host: host1 slow calls 0.00 % -> {found.after * 100:.2f} %"
    assert said in _compare_text.texts(result)
    assert "Slow calls take more than 10 times the median of the first run." in _compare_text.method(result)
    back = compared(run(TAIL.format(60, "'host1'"), **sizes, seed=seed), run(**sizes))
    assert row(back.total, "slow_share").verdict == "better"


def test_a_group_with_an_undecided_difference_is_not_called_the_same() -> None:
    sizes: dict[str, Any] = {"calls": 3_000, "hosts": 8, "seconds": 6_000}
    changed = ", ".join(f"'host{number}'" for number in range(8))
    result = compared(run(**sizes), run(TAIL.format(8, changed), **sizes, seed=2))
    undecided = [group.name for group in result.hosts.compared if _compare_text.open_figures(group)]
    (said,) = (each for each in _compare_text.texts(result) if re.match(r"Not decided at \d hosts: ", each))
    assert said.startswith(f"Not decided at {len(undecided)} hosts: {undecided[0]} ")
    assert said.endswith(f"; and {len(undecided) - 3} more")
    assert re.search(r"p95 20\d ms -> \d+ ms \(the noise could hide a difference of a half\)", said)
    stated = dict(_compare_text.rest(result.hosts))
    assert re.findall(r"host\d", stated["Not decided"]) == undecided
    assert not set(undecided) & set(re.findall(r"host\d", stated.get("Nothing larger than noise", "")))


@pytest.mark.parametrize(
    ("figure", "unit", "values", "p", "is_named"),
    [
        ("error_rate", "1", (0.0, 0.04), 0.004, True),
        ("error_rate", "1", (0.0, 0.04), 0.2, False),
        ("error_share", "1", (0.0, 0.04), 0.004, False),
        ("p95", "s", (0.2, 0.1), 0.2, True),
        ("p95", "s", (0.2, 0.3), 0.2, False),
        ("p95", "s", (0.2, math.nan), math.nan, False),
    ],
)
def test_only_large_undecided_differences_of_groups_are_named(
    figure: str, unit: str, values: tuple[float, float], p: float, is_named: bool
) -> None:
    before, after = values
    error = "E" * (figure == "error_share")
    undecided = Difference(
        figure=figure, error=error, unit=unit, before=before, after=after, p=p, verdict="too few to tell", reason="few"
    )
    same = dataclasses.replace(undecided, verdict="same within noise")
    assert bool(_compare_text.open_figures(Compared(name="h", differences=(undecided, same)))) is is_named
    assert not _compare_text.open_figures(Compared(name="h", differences=(same,)))
    assert not _compare_text.open_figures(Compared(name="h", differences=(undecided,)))


def test_an_undecided_difference_is_named_with_its_figures() -> None:
    result = compared(run(failing=0.0), run(failing=0.001, seed=2))
    assert re.search(
        r"Not decided: error rate 0\.00 % -> 0\.\d\d % \(too few independent failures\)",
        _compare_text.texts(result)[-1],
    )


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(300, "Calls: 6,000 -> 3,000 (-50.0 %), in 10 min 0 s -> 5 min 0 s. Not tested: the URLs may "), (540, None)],
)
def test_a_run_with_far_fewer_calls_is_named_although_all_else_is_equal(seconds: int, says: str | None) -> None:
    said = _compare_text.texts(compared(run(), run(seed=2, calls=10 * seconds, seconds=seconds)))
    assert said[0].startswith("No difference of all calls is larger than noise: ")
    (number,) = (each for each in said if each.startswith("Calls: ")) if says else ("",)
    assert number.startswith(says or "")
    assert ("Calls: " in "".join(said)) is bool(says)


@pytest.mark.parametrize(("slower", "verdict"), [(1.0, "same within noise"), (1.5, "worse")])
def test_pauses_that_are_most_of_a_run_are_left_out(slower: float, verdict: str) -> None:
    """Seven nights of a tenth of a day, in one log."""
    nights = """UPDATE calls_compact SET t = make_timestamp(1700000000000000 + (epoch_us(t) - 1700000000000000) * 100
        + (epoch_us(t) - 1700000000000000) // 86000000 * 86400000000)"""
    result = compared(run(nights), run(nights, seed=2, slower=slower))
    assert not result.outages
    assert {verdicts(each)["p50"] for each in result.groups} == {verdict}
    assert result.before.seconds > 6 * 86_400


@pytest.mark.soak
def test_equal_runs_have_no_more_false_alarms_than_without_outages() -> None:
    """1,000 pairs: 99 % confidence for each of three tables allows 30 pairs in which a table has a mark."""
    alarms = outages = 0
    for seed in range(1_000):
        chance = random.Random(seed)
        arguments: dict[str, Any] = {
            "calls": chance.choice([1_000, 3_000, 6_000]),
            "seconds": chance.choice([60, 600, 3_600]),
            "failing": chance.choice([0.0, 0.001, 0.01, 0.05, 0.3]),
            "hosts": chance.choice([1, 2, 5]),
        }
        result = compared(run(seed=2 * seed + 100, **arguments), run(seed=2 * seed + 101, **arguments))
        alarms += any(_compare_text.counts(result).values())
        outages += bool(result.outages)
    assert alarms <= 30
    assert outages <= 2


# Error rates

Draw = Callable[[np.random.Generator], npt.NDArray[np.float64]]


def independent(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    return rng.lognormal(0, 0.5, 3_000)


def correlated(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Durations that are similar to those of their neighbours: an AR(1) process with one step for every 10 calls."""
    wave = rng.normal(size=300)
    for i in range(1, 300):
        wave[i] = 0.8 * wave[i - 1] + 0.6 * wave[i]
    return np.exp(0.4 * np.repeat(wave, 10)) * rng.lognormal(0, 0.5, 3_000)


def detection_rates(draw: Draw, times: float, repetitions: int, level: float) -> dict[str, float]:
    """Return how often each test finds a difference if the durations of the second run are multiplied by `times`."""
    rng = np.random.default_rng(7)
    found: dict[str, int] = dict.fromkeys(("mean", "p50", "p95", "share", "naive"), 0)
    levels = (0.01, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.997, 0.9999)
    for _ in range(repetitions):
        runs = [draw(rng), draw(rng) * times]
        ps = {"mean": _noise.welch(*(estimated_mean(each) for each in runs)).p}
        for name, at in (("p50", 0.5), ("p95", 0.95)):
            first, second = (estimated_percentile(each, at, levels) for each in runs)
            ps[name] = _noise.welch(first, second).p if first and second else 1.0
        shares = [_noise.share(sums_of_batches(each > 2.5), [100] * BATCHES) for each in runs]
        test = _noise.fisher(*shares) if _noise.are_few(*shares) else _noise.welch(*(s.estimate for s in shares))
        ps["share"] = test.p
        apart = (runs[1].mean() - runs[0].mean()) / math.sqrt(sum(each.var() / each.size for each in runs))
        ps["naive"] = 2 * NormalDist().cdf(-abs(apart))
        for name, p in ps.items():
            found[name] += p <= level
    return {name: count / repetitions for name, count in found.items()}


def sums_of_batches(values: npt.NDArray[Any]) -> list[int]:
    return [int(each) for each in values.reshape(BATCHES, -1).sum(axis=1)]


def estimated_mean(values: npt.NDArray[np.float64]) -> Estimate:
    return _noise.ratio([float(each) for each in values.reshape(BATCHES, -1).sum(axis=1)], [100] * BATCHES)


def estimated_percentile(values: npt.NDArray[np.float64], level: float, levels: Sequence[float]) -> Estimate | None:
    curve = [float(each) for each in np.quantile(values, levels)]
    no_slower = _noise.share(sums_of_batches(values <= curve[levels.index(level)]), [100] * BATCHES)
    return _noise.percentile_estimate(level, no_slower, levels, curve, confidence=0.99)


@pytest.mark.parametrize("draw", [independent, correlated])
def test_false_positives_are_not_more_frequent_than_the_significance_level(draw: Draw) -> None:
    repetitions, level = 250, 0.05
    found = detection_rates(draw, 1.0, repetitions, level)
    naive = found.pop("naive")
    # Without a fixed seed, 1 in 200 runs of this test would exceed the bound
    bound = level + 2.6 * math.sqrt(level * (1 - level) / repetitions)
    assert all(rate <= bound for rate in found.values()), found
    if draw is correlated:
        assert naive > 4 * level, "the calls are not correlated enough for this test"


def test_differences_of_20_percent_are_found() -> None:
    found = detection_rates(independent, 1.2, 100, 0.001)
    assert all(found[kind] > 0.95 for kind in ("mean", "p50", "p95")), found


def test_a_doubled_error_rate_is_found() -> None:
    rng, found = np.random.default_rng(3), 0
    for _ in range(100):
        shares = [_noise.share([int(n) for n in rng.binomial(333, p, BATCHES)], [333] * BATCHES) for p in (0.01, 0.02)]
        found += _noise.welch(shares[0].estimate, shares[1].estimate).p < 0.001
    assert found > 90


def test_a_full_comparison_of_equal_runs_marks_nothing() -> None:
    """Tests the whole comparison, from the table in DuckDB to the correction for multiple tests."""
    for seed in range(10, 16, 2):
        result = compared(run(seed=seed), run(seed=seed + 1))
        groups = [result.total, *result.hosts.compared, *result.projects.compared]
        assert [each for group in groups for each in group.differences if each.larger_than_noise] == []


# The arithmetic, compared with published tables and simple cases


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [(2.228, 10, 0.05), (3.169, 10, 0.01), (4.587, 10, 0.001), (2.750, 30, 0.01), (3.646, 30, 0.001)],
)
def test_students_t_matches_the_published_tables(t: float, freedom: float, p: float) -> None:
    assert _noise.student_p(t, freedom) == pytest.approx(p, rel=0.03)
    assert _noise.student_bound(p, freedom) == pytest.approx(t, rel=0.005)
    assert _noise.student_p(_noise.student_bound(p, freedom), freedom) == pytest.approx(p)


def test_students_t_with_infinite_degrees_of_freedom_is_the_normal_distribution() -> None:
    assert _noise.student_p(1.959964, math.inf) == pytest.approx(0.05, rel=1e-5)
    assert _noise.student_bound(0.05, math.inf) == pytest.approx(1.959964, rel=1e-5)


def spread_evenly(events: int, calls: int) -> _noise.Share:
    estimate = Estimate(value=events / calls, below=0, above=0, freedom=29)
    return _noise.Share(estimate=estimate, events=events, calls=calls, design_effect=1.0)


def test_fishers_exact_test_matches_its_published_example() -> None:
    """The lady tasting tea (The Design of Experiments, 1935): 3 of 4 correct has the two-sided p-value 34 / 70."""
    assert _noise.fisher(spread_evenly(3, 4), spread_evenly(1, 4)).p == pytest.approx(34 / 70)
    assert _noise.fisher(spread_evenly(4, 4), spread_evenly(0, 4)).p == pytest.approx(2 / 70)


def test_events_in_clumps_of_eight_count_as_one_event_each() -> None:
    eight, none = dataclasses.replace(spread_evenly(8, 8_000), design_effect=8.0), spread_evenly(0, 8_000)
    assert _noise.fisher(eight, none).p == _noise.fisher(spread_evenly(1, 1_000), spread_evenly(0, 1_000)).p == 1
    plenty = [spread_evenly(50, 1_000), spread_evenly(40, 1_000)]
    assert not _noise.are_few(*plenty)
    assert _noise.are_few(plenty[0], dataclasses.replace(plenty[1], design_effect=8.0))


def test_holm_raises_the_level_after_each_test_that_passes() -> None:
    assert _noise.holm([0.03, 0.001, 0.9], 0.05) == pytest.approx([0.025, 0.05 / 3, 0.025])
    assert _noise.holm([], 0.05) == []


def test_a_trend_reduces_the_degrees_of_freedom() -> None:
    assert _noise.rate(range(BATCHES), 30.0).freedom == pytest.approx(3)  # the minimum
    assert _noise.rate([1, 2] * 15, 30.0).freedom == BATCHES - 1


def test_a_constant_rate_has_no_noise() -> None:
    same = _noise.rate([5] * BATCHES, 30.0)
    assert (same.value, same.above, _noise.welch(same, same).p) == (5.0, 0.0, 1.0)
    assert _noise.effective_batches([0] * BATCHES) == 0


def test_a_percentile_whose_interval_leaves_the_curve_is_none() -> None:
    share = _noise.share([1] * BATCHES, [2] * BATCHES)
    assert _noise.percentile_estimate(0.5, share, [0.4, 0.5, 0.6], [1.0, 2.0, 3.0], confidence=0.99) is None


# Output


def rendered(comparison: Comparison, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    show_comparison(console, comparison)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def test_the_output_fits_80_columns_and_states_the_verdicts(different: Comparison) -> None:
    text = rendered(different, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    line = next(line for line in text.splitlines() if line.startswith("p95"))
    assert line.split()[2:5:2] == ["ms", "ms"]
    assert line.rstrip().endswith("worse")
    assert "Only after: new (50 calls)" in text
    assert "Hosts, larger than noise" in text
    assert "Noise is how much a figure differs between 30 batches of its own run" in text


def test_a_wide_terminal_also_shows_noise_p_value_and_test(different: Comparison) -> None:
    text = rendered(different, 200)
    assert max(map(len, text.splitlines())) <= 200
    assert {"Difference", "Noise", "p", "Test,"} <= set(text.split())
    assert WOODRUFF in text


def test_too_little_data_is_reported_in_the_output(short: Comparison) -> None:
    text = rendered(short, 80)
    assert "Too few to tell: a run shorter than 10 s" in text
    assert "same within noise" not in text
    assert "Too few to tell: host0, host1" in text
    assert "Projects" not in text, "the only project contains all calls"
    assert "because there are too few calls" in text


def test_omitted_hosts_and_error_classes_are_counted_in_the_output() -> None:
    total = Compared(name="", differences=(), more_errors=1_234)
    result = dataclasses.replace(compared(run(hosts=3), run(hosts=3), groups=1), total=total)
    for text in (rendered(result, 80), _compare_text.markdown(result)):
        assert "1,234 rarer error classes" in text
        assert "2 more with fewer calls" in text
        assert "Nothing larger than noise: host" in text


def test_further_hosts_of_one_run_are_counted_in_the_output() -> None:
    moved = "UPDATE calls_compact SET host = 'x' || host"
    assert "Only before: host0 (" in rendered(compared(run(), run(moved), groups=1), 80)
    assert "and 1 more" in rendered(compared(run(), run(moved), groups=1), 80)


def test_a_comparison_of_two_empty_runs_has_no_figures() -> None:
    result = compared(run(calls=0), run(calls=0))
    assert "run.csv: no calls" in rendered(result, 80)
    assert result.to_dict()["total"]["differences"][1]["before"] is None


def test_json_output_has_every_figure_and_no_nan(different: Comparison) -> None:
    result = json.loads(json.dumps(different.to_dict(), allow_nan=False))
    assert result["before"]["files"] == ["logs/run.csv"]
    assert result["before"]["start"] == "2023-11-14T22:13:20Z"
    assert result["before"]["seconds"] == pytest.approx(600, abs=1)
    slower = next(each for each in result["total"]["differences"] if each["figure"] == "p95")
    assert (slower["verdict"], slower["larger_than_noise"], slower["unit"]) == ("worse", True, "s")
    assert slower["relative"] == pytest.approx(row(different.total, "p95").relative)
    assert result["hosts"]["only_after"] == [{"name": "new", "calls": 50}]


def test_markdown_output_is_a_table_with_escaped_names(different: Comparison) -> None:
    text = _compare_text.markdown(different)
    lines = text.splitlines()
    assert lines[0] == "# Before and after"
    assert "| Figure | Before | After | Difference | Change | Noise | p | Verdict |" in lines
    assert any(line.startswith("| p95 | 2") and line.endswith("| worse |") for line in lines)
    assert any(line.startswith("| host0: p95 | ") for line in lines)
    assert r"- Only after: Q\|\* (50 calls)" in lines


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (math.nan, "s", "-"),
        (0.0, "s", "0 s"),
        (0.000012, "s", "12.0 us"),
        (0.1234, "s", "123 ms"),
        (-12.345, "s", "-12.3 s"),
        (0.0123, "1", "1.23 %"),
        (1e-7, "1", "<0.01 %"),
        (1234567, "{call}", "1,234,567"),
        (1234.5, "{call}/s", "1,234/s"),
        (999.4, "By", "999 B"),
        (1_500, "By", "1.50 kB"),
        (2.5e6, "By", "2.50 MB"),
        (7e12, "By", "7.00 TB"),
    ],
)
def test_figures_are_shown_with_their_units(value: float, unit: str, text: str) -> None:
    assert _compare_text.amount(value, unit) == text


def test_changes_are_shown_in_percent_or_as_factors() -> None:
    def changed(before: float, after: float) -> str:
        return _compare_text.change(Difference(figure="p50", unit="s", before=before, after=after))

    assert [changed(1, 1.1), changed(2, 1), changed(1, 12), changed(0, 1), changed(0, 0), changed(math.nan, 1)] == [
        "+10.0 %",
        "-50.0 %",
        "x 12.0",
        "new",
        "+0.0 %",
        "-",
    ]


@pytest.mark.parametrize(("hours", "text"), [(0, "12.0 s"), (1, "1 h 0 min"), (30, "1 d 6 h")])
def test_periods_are_shown_in_readable_units(hours: int, text: str) -> None:
    start = datetime(2024, 1, 1)  # noqa: DTZ001 - DuckDB returns naive times in UTC
    end = datetime.fromtimestamp(start.timestamp() + hours * 3600 + 12)  # noqa: DTZ006
    with run(calls=1) as calls:
        which = dataclasses.replace(compare(calls, calls).before, start=start, end=end)
    assert f"in {text} from 2024-01-01 00:00:00 UTC" in _compare_text.run(which)


def test_control_characters_in_names_are_escaped() -> None:
    assert (_compare_text.name(""), _compare_text.name("a\nb\x1b[31m")) == ("(none)", r"a\nb\x1b[31m")
