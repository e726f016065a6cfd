"""Tests of hosts and endpoints that are slower than the others, and of runs whose hosts follow each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.planted import HOSTS, REFUSED, SECONDS, Night, attempt, night, slower

from otel_connector import review
from otel_connector._record import AttemptRecord
from otel_connector.review._cells import Cells, Location, LocationTotals
from otel_connector.review._slow_places import slow_places
from otel_connector.review._verdict_text import texts

EPOCH = datetime.fromisoformat("1970-01-01")
API, SHOP, CDN, AUTH = HOSTS
UNEQUAL = (*[API] * 10, *[SHOP] * 6, *[CDN] * 4, *[AUTH] * 2)
"""45, 27, 18 and 9 % of the calls."""

PATHS = ("items", "users", "news", "prices")


def judged(made: Night, path: Path) -> review.Verdict:
    with review.load(made.write(path)) as calls:
        return review.verdict(calls, review.summarize(calls))


def at_paths(made: Night) -> Night:
    """Give each host four endpoints with equal calls."""
    for number, each in enumerate(made.calls):
        host = each["url"].split("/")[2]
        each["url"] = f"https://{host}/v1/{PATHS[number % 4]}/{number}"
    return made


def in_turn(made: Night, names: Iterable[str] = HOSTS) -> Night:
    """Let the calls go to one place after the other, as from a sorted list of URLs."""
    places = list(names)
    for number, each in enumerate(made.calls):
        place = places[number * len(places) // len(made.calls)]
        each["url"] = f"https://{place}/{'' if '/' in place else 'v1/items/'}{number}"
    return made


def to(*places: str) -> Callable[[dict[str, Any]], bool]:
    return lambda each: any(f"//{place}/" in each["url"] for place in places)


def again(made: dict[str, Any], wait: float) -> list[AttemptRecord]:
    """Return the attempts of a call that succeeded at the second one."""
    failed = attempt(made, 1, 0.0, 0.01, wait=wait, reason="status_503", status=503)
    return [failed, attempt(made, 2, 0.01 + wait, 0.01, status=200)]


SHOP_AND_AUTH = ((SHOP, 8), (AUTH, 8))


@pytest.mark.parametrize(
    ("calls", "hosts", "times", "named"),
    [
        (300, UNEQUAL, ((SHOP, 8),), (SHOP,)),
        (600, UNEQUAL, ((API, 60),), (API,)),
        (1_000, UNEQUAL, ((AUTH, 4),), (AUTH,)),
        (300, HOSTS[:2], ((API, 5),), (API,)),
        (300, UNEQUAL, SHOP_AND_AUTH, (AUTH, SHOP)),
        (
            600,
            UNEQUAL,
            ((f"{API}/v1/items", 20), (f"{SHOP}/v1/users", 20)),
            (f"{API}/v1/items/{{id}}", f"{SHOP}/v1/users/{{id}}"),
        ),
    ],
    ids=[
        "27 % of the calls",
        "nearly all of the time",
        "all endpoints of a host, each with 2 % of the calls",
        "one of two",
        "two of four",
        "endpoints of two hosts",
    ],
)
def test_slow_places_are_named(
    calls: int, hosts: tuple[str, ...], times: tuple[tuple[str, float], ...], named: tuple[str, ...], tmp_path: Path
) -> None:
    made = at_paths(night(calls=calls, hosts=hosts, failing=0.0))
    for place, factor in times:
        slower(filter(to(place), made.calls), factor)
    verdict = judged(made, tmp_path / "prices.csv")
    (found,) = verdict.findings
    assert (found.kind, tuple(sorted(found.names)), found.period) == ("slow", named, None)
    pronoun = "They are" if len(named) > 1 else "It is"
    assert f"  {pronoun} slow from the first call to the last." in texts(verdict)
    assert found.figure >= 3 * found.baseline


def run_of(*places: tuple[str, int, float]) -> Cells:
    """Return the cells of a run, from the path, the calls and the median in ms of each endpoint."""
    totals: dict[Location, LocationTotals] = {
        (path.partition("/")[0], path): LocationTotals(
            calls=calls,
            failed=0,
            seconds=calls * ms / 900,
            first=0,
            last=1,
            bytes=0,
            success_seconds=calls * ms / 900,
            p50=ms / 1_000,
            size=None,
        )
        for path, calls, ms in places
    }
    return Cells(
        columns=("host", "endpoint"),
        places=totals,
        edges=[0, 1],
        source="",
        conditions={},
        by_event={},
        classes=[],
        sizes=[],
        calls=sum(each.calls for each in totals.values()),
        seconds=sum(each.seconds for each in totals.values()),
    )


FAST = (("d/x", 100, 80), ("d/y", 100, 80))


@pytest.mark.parametrize(
    ("run", "named"),
    [
        ([("a/x", 200, 320), *FAST], ("a",)),
        ([("a/x", 200, 220), *FAST], ()),
        ([("a/x", 1_800, 320), *FAST], ("a",)),
        ([("a/x", 100, 800), ("b/x", 99, 800), *FAST], ("a", "b")),
        ([("a/x", 100, 800), ("b/x", 99, 800), ("d/x", 200, 80)], ("a", "b")),
        ([("a/x", 100, 800), ("b/x", 101, 800), ("d/x", 200, 80)], ()),
        ([("a/x", 100, 4_000), ("b/x", 101, 400), ("d/x", 200, 80)], ("a",)),
        ([("a/x", 100, 800), ("b/x", 99, 800), ("c/x", 98, 800), *FAST[:1]], ()),
        ([("a/x", 9, 800), ("b/x", 99, 800), ("c/x", 100, 80), *FAST], ("a", "b")),
        ([("a/x", 2, 800), ("b/x", 99, 800), ("c/x", 100, 80), *FAST], ("b",)),
        ([("a/x", 8, 340), ("c/x", 100, 80), *FAST], ("a",)),
        ([("a/x", 8, 310), ("c/x", 100, 80), *FAST], ()),
        ([("a/x", 7, 900), ("c/x", 100, 80), *FAST], ()),
        ([("a/x", 50, 800), ("a/y", 40, 80), *FAST], ("a/x",)),
        ([("a/x", 50, 800), ("a/y", 50, 790), ("a/z", 50, 80), *FAST], ("a",)),
        ([("a/x", 50, 800), ("a/y", 50, 790), ("a/z", 130, 80), *FAST], ("a/x", "a/y")),
        ([("a/x", 50, 800), ("a/y", 50, 80)], ("a/x",)),
        ([("a/x", 50, 800), ("a/y", 50, 790), ("a/z", 50, 80)], ()),
        ([("a/x", 50, 800), ("b/x", 50, 790), ("b/y", 50, 790), ("a/z", 90, 80), *FAST], ("b",)),
        ([("a/x", 50, 0), ("d/x", 50, 0)], ()),
        ([("a/x", 50, 80)], ()),
        ([], ()),
    ],
    ids=[
        "four times the others",
        "less than three times",
        "90 % of the calls",
        "two of three hosts, with half of the calls",
        "two of three",
        "two of three, with more than half of the calls",
        "one of three, slower than a second one",
        "three of four: one is fast",
        "two, one of which takes little time",
        "two, one of which takes nearly no time",
        "eight calls",
        "eight calls, by chance",
        "seven calls",
        "one endpoint of two, with most of the calls of its host",
        "most endpoints of a host",
        "most endpoints of a host, with less than half of its calls",
        "an endpoint of the only host",
        "most endpoints of the only host: one is fast",
        "a host, and an endpoint of another one",
        "no time",
        "one place",
        "no places",
    ],
)
def test_slow_places_are_found_in_the_totals(run: list[tuple[str, int, float]], named: tuple[str, ...]) -> None:
    found = slow_places(run_of(*run))
    assert tuple(sorted(found[1].names) if found else ()) == named


def test_a_host_that_is_down_is_not_one_of_the_fast_ones(tmp_path: Path) -> None:
    """Without a success it has no duration."""
    made = night(calls=300, hosts=UNEQUAL, failing=0.0)
    made.fail(0, SECONDS, API, REFUSED, delta_t=0.001)
    slower(filter(to(SHOP, CDN, AUTH), made.calls), 1.5)
    assert [each.kind for each in judged(made, tmp_path / "prices.csv").findings] == ["failures"]


@pytest.mark.parametrize(("wait", "kinds"), [(0.5, ["retries"]), (0.01, ["retries", "slow"])])
def test_retries_are_why_a_host_is_slow_if_their_waits_take_the_time(
    wait: float, kinds: list[str], tmp_path: Path
) -> None:
    made = night(calls=300, failing=0.0)
    for each in filter(to(AUTH), made.calls):
        each["delta_t"] = round(each["delta_t"] + 0.5, 6)
        made.attempts += again(each, wait)
    assert sorted(each.kind for each in judged(made, tmp_path / "prices.csv").findings) == kinds


@pytest.mark.parametrize(
    ("kind", "host", "said"),
    [
        ("slow", AUTH, "  It is slow {}."),
        ("slow", CDN, "  It is slow {}."),
        ("failures", CDN, f"Outage: {{}}. 100 of 100 calls to {CDN} failed (ConnectFailed: "),
        ("retries", CDN, f"Retries: {{}}. 100 of 100 calls (100.00 %) to {CDN} were attempted again: "),
    ],
)
def test_a_place_that_was_called_in_a_part_of_the_run_has_its_times(
    kind: str, host: str, said: str, tmp_path: Path
) -> None:
    made = in_turn(night(calls=400, failing=0.0))
    times = [each["t"] for each in filter(to(host), made.calls)]
    for each in filter(to(host), made.calls):
        if kind == "slow":
            slower(iter([each]), 6)
        elif kind == "failures":
            each |= {"success": False, "error": REFUSED.format(host), "response_code": None, "response_size": 0}
        else:
            made.attempts += again(each, 0.01)
    verdict = judged(made, tmp_path / "prices.csv")
    (found,) = verdict.findings
    assert (found.kind, found.names) == (kind, (host,))
    first, last = (f"{EPOCH + timedelta(seconds=which(times)):%H:%M:%S}" for which in (min, max))
    when = f"from {first} to the end, {last}" if host == AUTH else f"{first} to {last}"
    said = said.format(f"from the first call there to the last: {when} (1 h 9 min)")
    assert [each[: len(said)] for each in texts(verdict)].count(said) == 1


NOTHING = "Nothing unusual: failures, durations and sizes of each host and endpoint are even over the whole run."
OTHERS = "  The quarters of the run have other hosts or endpoints: "


def test_durations_and_sizes_of_a_sorted_list_are_not_even(tmp_path: Path) -> None:
    """Each host and endpoint is, and so the quarters are not: their figures are those of the table by quarter."""
    made = in_turn(night(calls=300, failing=0.0), [f"{API}/{each}" for each in ("a", "b", "c", "d")])
    for path, longer, larger in (("b", 2.5, 0.2), ("c", 1, 8), ("d", 3.5, 1)):
        for each in filter(to(f"{API}/{path}"), made.calls):
            each["response_size"] = int(each["response_size"] * larger)
            each["delta_t"] = round(each["delta_t"] * longer, 6)
    with review.load(made.write(tmp_path / "prices.csv")) as loaded:
        summary = review.summarize(loaded)
        verdict = review.verdict(loaded, summary)
    medians = [each.latency.p50 for each in summary.quarters]
    sizes = [each.bytes / each.calls for each in summary.quarters]
    assert verdict.mixed == review.Mixed(durations=(min(medians), max(medians)), sizes=(min(sizes), max(sizes)))
    nothing, durations, bodies = texts(verdict)[1:]
    assert nothing == NOTHING
    assert re.fullmatch(rf"{OTHERS}their median durations are \d\d\.\d ms to (2|3)\d\d ms\.", durations)
    assert re.fullmatch(rf"{OTHERS}the mean sizes of their bodies are \d\d\d B to 1\d\.\d kB\.", bodies)


def test_a_quarter_with_few_calls_is_not_compared(tmp_path: Path) -> None:
    made = in_turn(night(calls=100, failing=0.0), [f"{API}/a", f"{API}/b"])
    slower(filter(to(f"{API}/b"), made.calls), 2.5)
    verdict = judged(made, tmp_path / "prices.csv")
    assert (texts(verdict)[1:], verdict.mixed) == ([NOTHING], review.Mixed())
