"""Tests of the verdict: a planted cause is named with its times, and an ordinary night has none."""

from __future__ import annotations

import io
import json
import math
import random
import re
import sys
from datetime import datetime, timedelta
from html import unescape
from pathlib import Path

import pytest
from rich.console import Console
from support.command_line import run_here
from support.logs import START, call, write
from support.planted import (
    BUSY,
    CAUSES,
    CUT,
    EXPIRED,
    HOSTS,
    NOT_JSON,
    REFUSED,
    SECONDS,
    SECTIONS,
    UNKNOWN_HOST,
    VERBS,
    Night,
    attempt,
    night,
    slower,
)

from otel_connector import review
from otel_connector._units import duration
from otel_connector.cli._review_view import summary_view
from otel_connector.review import _described, _findings, _judge, _load, _report, _stretches
from otel_connector.review._formats import as_json, as_markdown
from otel_connector.review._html import verdict_block
from otel_connector.review._trace_url import TraceURL
from otel_connector.review._verdict_text import Wording, lines, texts

EPOCH = datetime.fromisoformat("1970-01-01")


def at(seconds: float) -> datetime:
    """Return the naive UTC time so many seconds after the first call of a night."""
    return EPOCH + timedelta(seconds=START + seconds)


def judged(made: Night, path: Path) -> tuple[review.Summary, review.Verdict]:
    with review.load(made.write(path)) as calls:
        summary = review.summarize(calls)
        return summary, review.verdict(calls, summary, urls=made.urls)


def screen(summary: review.Summary, verdict: review.Verdict, width: int = 80, height: int = 24) -> str:
    """Return the first screen of a terminal as one text."""
    console = Console(width=width, height=height, file=io.StringIO(), highlight=False)
    console.print(summary_view(summary, texts(verdict), width=width, lines=height))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue().splitlines()
    assert len(shown) <= height - 2
    assert max(map(len, shown)) <= width
    return re.sub(r"\s+", " ", " ".join(shown))


@pytest.mark.parametrize("name", CAUSES)
def test_the_first_screen_names_a_planted_cause_with_its_times(name: str, tmp_path: Path) -> None:
    cause, made = CAUSES[name], night()
    cause.plant(made)
    summary, verdict = judged(made, tmp_path / "prices.csv")
    first = verdict.findings[0]
    assert first.kind == cause.kind
    page = unescape(re.sub("<[^>]*>", " ", verdict_block(lines(verdict))))
    for text in (screen(summary, verdict), re.sub(r"\s+", " ", page), re.sub(r"\s+", " ", " ".join(texts(verdict)))):
        assert [each for each in cause.says if each not in text] == []
        if cause.start is not None:
            for time, planted in (
                (first.stretches[0].start, at(cause.start)),
                (first.stretches[-1].end, at(cause.end)),
            ):
                assert abs((time - planted).total_seconds()) <= cause.slack
                assert f"{time:%H:%M:%S}" in text
    if cause.start is None and cause.kind not in {"clock", "stopped"}:
        assert first.stretches == ()


@pytest.mark.parametrize("seed", range(4))
def test_a_good_night_is_two_lines(seed: int, tmp_path: Path) -> None:
    """Durations may have a rhythm, calls may come in bursts, and failures in clumps: this is not unusual."""
    made, chance = night(seed=seed + 10, failing=0.001), random.Random(seed)
    if seed == 1:
        for each in made.calls:  # a job that runs every hour for ten minutes
            each["t"] = round(START + (each["t"] - START) // 3_600 * 3_600 + (each["t"] - START) % 3_600 / 6, 6)
    if seed == 2:
        for start in chance.sample(range(SECONDS), 8):
            made.fail(start, start + 10, "", BUSY, response_code=503)
    if seed == 3:
        made = night(seed=13, hosts=HOSTS[:1], failing=0.0)
    _, verdict = judged(made, tmp_path / "prices.csv")
    assert verdict.findings == ()
    work, nothing = texts(verdict)
    assert re.match(r"(All )?[0-9,]+ (of 2,000 )?URLs were fetched\.", work)
    even = "failures, durations and sizes of each host and endpoint are even over the whole run"
    assert nothing == f"Nothing unusual: {even}."


@pytest.mark.parametrize(
    ("failing", "host", "said"),
    [
        (range(0), "", ["12 calls, all succeeded. Too few to compare parts of the run."]),
        (
            range(5, 12),
            "b.example",
            [
                "12 calls, 7 failed. Too few to compare parts of the run.",
                "Outage: from 14:13:25 to the end, 14:13:31 (6.00 s). 7 of 7 calls to b.example failed (E: refused).",
                "  Elsewhere: 0 of 5 calls (0.00 %) failed.",
                "  The failed calls took 1.75 s, 58.33 % of the time of all calls.",
                f"Next: one of the failed calls: call_id {6:032x}-{6:016x}",
            ],
        ),
        (
            range(3, 4),
            "api.example.com",
            [
                "12 calls, 1 failed. Too few to compare parts of the run.",
                "Failed: at 14:13:23. 1 of 1 call to api.example.com failed (E: refused).",
                "  Elsewhere: 0 of 11 calls (0.00 %) failed.",
                "  The failed call took 250 ms, 8.33 % of the time of all calls.",
                f"Next: the failed call: call_id {4:032x}-{4:016x}",
            ],
        ),
    ],
    ids=["none", "outage", "one"],
)
def test_a_short_log_says_what_failed(failing: range, host: str, said: list[str], tmp_path: Path) -> None:
    failed = {"error": "E: refused", "url": f"https://{host}/x"}
    path = write(tmp_path / "short.csv", [call(n, **(failed if n in failing else {})) for n in range(12)])
    with review.load(path) as calls:
        verdict = review.verdict(calls, review.summarize(calls))
    assert texts(verdict)[: len(said)] == said
    assert verdict.too_few


@pytest.mark.parametrize("calls", [0, 12])
def test_a_short_log_says_which_urls_have_no_row(calls: int, tmp_path: Path) -> None:
    write(tmp_path / "short.csv", [call(n) for n in range(calls)])
    listed = tmp_path / "urls.txt"
    listed.write_text("".join(f"https://api.example.com/{n}\n" for n in range(1_500)))
    run = run_here(tmp_path, "review", "short.csv", "--urls", "urls.txt")
    assert f"Stopped: {1_500 - calls:,} of 1,500 URLs have no row." in run.out
    command = "otel-connector fetch urls.txt --log short.csv --resume"
    assert f"Next: {command}   ({1_500 - calls:,} URLs left)" in run.out
    assert run_here(tmp_path, "review", "short.csv").out.count("\nNext") == 0


def test_only_urls_of_the_list_are_left(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [call(n, error="X: y") for n in range(5)])
    (tmp_path / "urls.txt").write_text("https://api.example.com/1\nhttps://api.example.com/other\n")
    assert "--resume   (2 URLs left)" in run_here(tmp_path, "review", "a.csv", "--urls", "urls.txt").out
    (tmp_path / "urls.txt").write_text("")
    assert "left" not in run_here(tmp_path, "review", "a.csv", "--urls", "urls.txt").out


@pytest.mark.parametrize(
    ("urls", "failed", "said"),
    [
        ("", False, "Next: --rate 0.029   ("),
        ("urls.txt", False, "Next: otel-connector fetch urls.txt --log a.csv --rate 0.029   (all URLs again; "),
        ("urls.txt", True, "Next: otel-connector fetch urls.txt --log a.csv --resume --rate 0.029   (1 URL left; "),
    ],
    ids=["no list", "all fetched", "some left"],
)
def test_the_next_command_after_refusals_is_complete(urls: str, failed: bool, said: str, tmp_path: Path) -> None:
    made = night(failing=0.0)
    for each in made.between(0, SECONDS, HOSTS[0]):
        made.attempts.append(attempt(each, 1, 0.0, each["delta_t"], wait=58.0, reason="status_429", status=429))
    if failed:
        made.calls[7] |= {"success": False, "error": BUSY}
    made.write(tmp_path / "a.csv")
    (tmp_path / "urls.txt").write_text("".join(f"{each['url']}\n" for each in made.calls))
    options = ("--urls", urls) if urls else ()
    shown = run_here(tmp_path, "review", "a.csv", *options).out
    why = f"below the 0.0298/s to {HOSTS[0]} over the whole run, pauses included; 0.0308/s between the pauses)"
    assert f"{said}{why}\n" in shown


@pytest.mark.parametrize(
    ("start", "end"), [(9_000, SECONDS), (6_000, 10_000), (0, 6_000)], ids=["end", "middle", "start"]
)
@pytest.mark.parametrize("size", [None, 100, 0], ids=["a fifth", "about 100", "empty"])
def test_bodies_that_become_smaller_are_smaller(start: int, end: int, size: int | None, tmp_path: Path) -> None:
    made, chance = night(failing=0.0), random.Random(2)
    small = list(made.between(start, end, HOSTS[1]))
    for each in small:
        each["response_size"] = each["response_size"] // 5 if size is None else size and chance.randrange(90, 110)
    _, verdict = judged(made, tmp_path / "prices.csv")
    (found,) = verdict.findings
    label, kind = ("Same size", "same size") if size == 0 else ("Smaller bodies", "smaller bodies")
    assert (found.kind, found.names, len(found.stretches)) == (kind, HOSTS[1:2], 1)
    (stretch,) = found.stretches
    for time, planted in ((stretch.start, small[0]), (stretch.end, small[-1])):
        assert abs((time - at(planted["t"] - START)).total_seconds()) < 300
    assert found.example is not None
    assert found.example.t >= at(start - 300)
    said = texts(verdict)
    assert said[1].startswith(f"{label}: ")
    assert f" to {HOSTS[1]} have " in said[1]
    assert found.calls == pytest.approx(len(small), abs=15)


def test_pauses_explain_why_an_endpoint_of_their_host_is_slow(tmp_path: Path) -> None:
    made = night()
    for each in made.between(0, SECONDS, f"{HOSTS[0]}/v1/users"):
        if each["success"]:
            made.attempts.append(attempt(each, 1, 0.0, each["delta_t"], wait=58.0, reason="status_429", status=429))
            each["delta_t"] = round(each["delta_t"] + 58.0, 6)
    _, verdict = judged(made, tmp_path / "prices.csv")
    assert [(each.kind, each.names) for each in verdict.findings] == [("waits", (HOSTS[0],))]


def test_calls_that_start_during_pauses_are_not_counted_between_them(tmp_path: Path) -> None:
    """A client may pause only the refused calls. Their retries are the pauses, even if they are too few for a place."""
    made = night(calls=300, failing=0.0)
    calls = list(made.between(0, SECONDS, HOSTS[0]))
    for each in calls[::6]:
        made.attempts.append(attempt(each, 1, 0.0, 0.02, wait=150.0, reason="status_429", status=429))
        made.attempts.append(attempt(each, 2, 150.02, 0.1, status=200))
        each["delta_t"] = 150.12
    ends = [(each["t"] + 0.02, each["t"] + 150.02) for each in calls[::6]]
    inside = sum(any(low <= each["t"] < high for low, high in ends) for each in calls)
    _, verdict = judged(made, tmp_path / "prices.csv")
    (found,) = verdict.findings
    assert (found.kind, found.names, found.calls, found.beside_calls) == ("waits", HOSTS[:1], len(calls), inside)
    between = f"{len(calls) - inside} calls to it in {duration(verdict.seconds - found.seconds)}"
    said = rf"  Between the pauses, the run made {between}, [\d.]+/h, and {inside} during them"
    assert re.match(said, texts(verdict)[3])
    rate = (len(calls) - inside) / (verdict.seconds - found.seconds)
    assert f"pauses included; {rate:.3g}/s between the pauses)" in texts(verdict)[4]


def test_an_outage_of_every_host_spares_none_by_chance(tmp_path: Path) -> None:
    """Half of the calls to 100 hosts fail, each of which has about five calls in the outage: some have no failure."""
    made = night(calls=6_000, hosts=tuple(f"h{number}.example.com" for number in range(100)))
    made.fail(8_000, 9_500, "", BUSY, share=0.5, response_code=503)
    _, verdict = judged(made, tmp_path / "prices.csv")
    assert (verdict.findings[0].kind, verdict.findings[0].by) == ("failures", "")
    assert "calls to all hosts failed" in texts(verdict)[1]


@pytest.mark.parametrize(("share", "named"), [(0.5, True), (0.25, True), (0.05, False)])
def test_error_pages_with_status_200_are_named_although_not_all_answers_are_one(
    share: float, named: bool, tmp_path: Path
) -> None:
    made, chance = night(), random.Random(3)
    for each in made.between(6_000, SECONDS, HOSTS[1]):
        if each["success"] and chance.random() < share:
            each["response_size"] = 3_741
    _, verdict = judged(made, tmp_path / "prices.csv")
    assert [(each.kind, each.names) for each in verdict.findings] == [("same size", HOSTS[1:2])] * named


def test_failures_over_the_whole_run_are_named_with_their_class(tmp_path: Path) -> None:
    made = night(failing=0.0)
    made.fail(0, SECONDS, "", "HTTPStatusError: 404 Not Found", share=0.3, response_code=404)
    _, verdict = judged(made, tmp_path / "prices.csv")
    (found,) = verdict.findings
    assert (found.kind, found.by, found.stretches) == ("failures", "", ())
    assert "Failed: from the first call to the last. " in texts(verdict)[1]
    assert "calls to all hosts failed (HTTPStatusError 404: 404 Not Found)" in texts(verdict)[1]


def test_a_class_is_named_although_all_failures_together_are_even(tmp_path: Path) -> None:
    made = night(failing=0.0)
    made.fail(0, SECONDS, "", "HTTPStatusError: 404 Not Found", share=0.45, response_code=404)
    for each in made.between(6_000, 7_500):
        if each["success"] is False and random.Random(each["call_id"]).random() < 0.2:
            each |= {"error": REFUSED.format("h"), "response_code": None}
    _, verdict = judged(made, tmp_path / "prices.csv")
    rest, found = verdict.findings
    assert [name for name, _ in found.classes] == ["ConnectFailed"]
    assert [name for name, _ in rest.classes] == ["HTTPStatusError 404"]
    assert at(5_900) < found.stretches[0].start < found.stretches[-1].end < at(7_600)


@pytest.mark.parametrize(("down", "spared"), [(HOSTS[:2], 2), (HOSTS[:3], 1)])
def test_an_outage_of_several_hosts_is_one_finding(down: tuple[str, ...], spared: int, tmp_path: Path) -> None:
    made = night()
    for host in down:
        made.fail(5_000, 6_500, host, REFUSED)
    _, verdict = judged(made, tmp_path / "prices.csv")
    (found,) = verdict.findings
    assert (sorted(found.names), found.others) == (sorted(down), spared)
    assert "Elsewhere: " in texts(verdict)[2]
    assert ("The other 2 hosts: " if spared > 1 else "The other host: ") in texts(verdict)[2]


def test_only_a_gap_that_is_unusual_for_the_log_is_named(tmp_path: Path) -> None:
    made = night()
    made.calls = [each for each in made.calls if not 4_000 <= each["t"] - START < 6_000]
    _, verdict = judged(made, tmp_path / "prices.csv")
    (found,) = verdict.findings
    assert (found.kind, 1_990 < found.seconds < 2_020) == ("gap", True)
    assert texts(verdict)[1].startswith("No calls: 15:")
    before = max((each for each in made.calls if each["t"] - START < 4_000), key=lambda each: each["t"])
    assert texts(verdict)[-1] == f"Next: a call before the pause: call_id {before['call_id']}"


def test_urls_are_counted_and_not_only_calls(tmp_path: Path) -> None:
    """A URL that failed and then succeeded is done; one that has no row is missing."""
    records = [call(n, error="ConnectFailed: refused") for n in range(10)]
    records += [call(100 + n, url=f"https://api.example.com/{n}") for n in range(60)]
    listed = [f"https://api.example.com/{n}" for n in range(80)]
    with review.load(write(tmp_path / "logs.csv", records)) as calls:
        verdict = review.verdict(calls, review.summarize(calls), urls=[*listed, listed[0]])
    assert verdict.urls == review.Urls(total=60, done=60, failed=0, retried=0, recovered=10, missing=20, left=20)
    assert texts(verdict)[0].startswith(
        "60 of 80 URLs were fetched in 70 calls. 10 calls failed (14.29 %). 10 URLs failed in one call and succeeded "
        "in another. Median"
    )


@pytest.mark.parametrize(
    "urls",
    [  # each pair has the same hash in DuckDB, forwards or backwards
        ("00000000/00000003", "00000009/00000073"),
        ("pp00000002/item-no/00000057/stock?lang=de", "pp00000006/item-no/00000017/stock?lang=de"),
    ],
)
def test_two_urls_are_never_counted_as_one(urls: tuple[str, ...], tmp_path: Path) -> None:
    host = ("api", "a")[urls[0].startswith("p")]
    records = [call(number, url=f"https://{host}.example.com/{url}") for number, url in enumerate(urls)]
    with review.load(write(tmp_path / "a.csv", records)) as calls:
        assert review.verdict(calls, review.summarize(calls)).urls.total == 2


def test_urls_are_counted_in_several_statements_if_there_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = {"error": "ConnectFailed: refused"}
    records = [call(n, url=f"https://a/{n % 500}", **({} if n % 7 else failed)) for n in range(900)]
    log = write(tmp_path / "a.csv", records)
    with review.load(log) as calls:
        summary = review.summarize(calls)
        expected = review.verdict(calls, summary).urls
        monkeypatch.setattr(_judge, "_URLS_AT_A_TIME", 100)
        assert review.verdict(calls, summary).urls == expected
    assert (expected.total, expected.failed) == (500, 500 - len({n % 500 for n in range(900) if n % 7}))


def test_the_next_step_is_a_command_and_a_link(tmp_path: Path) -> None:
    made = night()
    CAUSES["outage in the middle"].plant(made)
    _, verdict = judged(made, tmp_path / "prices.csv")
    wording = Wording(traces=TraceURL("http://localhost:16686/trace/{trace_id}"), command="otel-connector fetch u.txt")
    *_, step, example = texts(verdict, wording)
    assert step == f"Next: otel-connector fetch u.txt --resume   ({verdict.urls.failed} URLs left)"
    call_id = verdict.findings[0].example.call_id if verdict.findings[0].example else ""
    link = f"http://localhost:16686/trace/{call_id.partition('-')[0]}"
    assert example == f"Or: one of the failed calls: call_id {call_id}   {link}"
    block = verdict_block(lines(verdict, wording))
    assert f'<a href="{link}" target="_blank" rel="noopener noreferrer">{link}</a>' in block


def test_json_and_markdown_have_the_same_facts(tmp_path: Path) -> None:
    made = night()
    CAUSES["two causes"].plant(made)
    summary, verdict = judged(made, tmp_path / "prices.csv")
    facts = json.loads(as_json(summary, verdict))["verdict"]
    assert facts["text"] == texts(verdict)
    assert [each["kind"] for each in facts["findings"]] == [each.kind for each in verdict.findings]
    assert facts["findings"][0]["stretches"][0]["seconds"] == verdict.findings[0].stretches[0].seconds
    shown = as_markdown(summary, verdict).replace("\\", "")
    assert [each.text for each in lines(verdict) if f"- {each.text}" not in shown] == []


def test_the_command_takes_the_list_of_urls(tmp_path: Path) -> None:
    made = night(calls=200)
    (tmp_path / "urls.txt").write_text(
        "\n".join([each["url"] for each in made.calls] + ["http://[", "http://x/?key=1"])
    )
    del made.calls[150:]
    made.write(tmp_path / "logs.csv")
    done = run_here(tmp_path, "review", "logs.csv", "--urls", "urls.txt")
    assert "Stopped: 52 of 202 URLs have no row." in done.out
    assert "Next: otel-connector fetch urls.txt --log logs.csv --resume   (" in done.out
    done = run_here(tmp_path, "review", "logs.csv", "--urls", "missing.txt")
    assert (done.code, "--urls" in done.error) == (2, True)


def test_a_hostile_text_is_no_link(tmp_path: Path) -> None:
    made = night()
    made.fail(5_000, 6_500, HOSTS[0], "ConnectFailed: <b>   http://evil.example/")
    _, verdict = judged(made, tmp_path / "prices.csv")
    block = verdict_block(lines(verdict))
    assert "&lt;b&gt;" in block
    assert "<a " not in block


def test_the_listed_failures_show_the_worst_stretch_and_the_rest_of_the_run(tmp_path: Path) -> None:
    made = night(failing=0.0)
    made.fail(5_000, 8_500, "", REFUSED)
    made.fail(0, SECONDS, HOSTS[1], BUSY, share=0.6, response_code=503)
    with review.load(made.write(tmp_path / "prices.csv")) as calls:
        summary = review.summarize(calls)
        rows, what = _report._failed(calls, summary, review.verdict(calls, summary))
        page = review.html_report(calls, summary)
    times = [row[2] for row in rows]
    assert (len(times), times) == (200, sorted(times))
    worst = [each for each in times if at(5_000) <= each < at(8_500)]
    assert 90 <= len(worst) <= 100
    assert len({(each - at(5_000)) // timedelta(seconds=875) for each in worst}) == 4  # in each quarter of it
    others = [each for each in times if each not in worst]
    assert len({(each - at(0)) // timedelta(seconds=1_680) for each in others}) >= 8  # of 10 parts of the run
    assert re.search(rf">200 of [\d,]+ failed calls, some of each class: {what}<", page)
    assert "half of them from the worst finding" in what


def test_the_slowest_calls_are_timeouts_and_answers(tmp_path: Path) -> None:
    made = night(calls=400, failing=0.0)
    for each in made.calls[:120]:
        each |= {"delta_t": 30.0, "success": False, "error": "AttemptTimeout: no response within 30 s"}
    made.calls[200] |= {"success": False, "error": BUSY, "response_code": 503, "delta_t": 9.0}
    with review.load(made.write(tmp_path / "prices.csv")) as calls:
        rows = _report._slowest(calls)
    outcomes = [row[6] for row in rows]  # the column Outcome shows the class of a failure
    assert [outcomes.count(each) for each in ("AttemptTimeout", "HTTPStatusError 503", "")] == [25, 1, 24]
    assert [row[3] for row in rows] == sorted((row[3] for row in rows), reverse=True)


MANY = tuple(f"{letter}.example.com" for letter in "abcdefgh")


def test_the_worst_findings_are_written_and_the_others_counted(tmp_path: Path) -> None:
    made = night(hosts=MANY)
    for number, host in enumerate(MANY[:7]):
        made.fail(2_000 * number, 2_000 * number + 1_500, host, REFUSED)
    _, verdict = judged(made, tmp_path / "prices.csv")
    assert len([each for each in verdict.findings if each.kind == "failures"]) == 6
    assert any(re.match(r"\d further findings?: see --json\.", each) for each in texts(verdict))


def test_some_of_many_hosts_that_are_down_at_the_same_time_are_one_finding(tmp_path: Path) -> None:
    made = night(hosts=MANY, failing=0.0)
    for host in MANY[2:4]:
        made.fail(5_000, 9_000, host, REFUSED)
        made.fail(5_000, 9_000, host, "AttemptTimeout: no response within 5 s", share=0.5)
    _, verdict = judged(made, tmp_path / "prices.csv")
    (found,) = verdict.findings
    assert (sorted(found.names), len(found.classes)) == (sorted(MANY[2:4]), 2)
    assert re.search(
        r" failed \(\d+ (ConnectFailed|AttemptTimeout): .*; \d+ (ConnectFailed|AttemptTimeout)\)", texts(verdict)[1]
    )


def test_failures_beside_an_outage_are_another_finding(tmp_path: Path) -> None:
    made = night(failing=0.05)
    made.fail(5_000, 7_000, "", REFUSED)
    _, verdict = judged(made, tmp_path / "prices.csv")
    assert [(each.by, bool(each.stretches)) for each in verdict.findings] == [("", True), ("", False)]
    assert sum(each.events for each in verdict.findings) == verdict.failed


def test_a_stretch_is_worse_than_more_failures_in_the_rest_of_the_run(tmp_path: Path) -> None:
    """The next step and the listed calls are those of the stretch; the classes of the rest are only its own."""
    made = night(failing=0.031, calls=10_000, hosts=HOSTS[:1])
    made.fail(8_000, 8_800, "", REFUSED, share=0.5)
    with review.load(made.write(tmp_path / "prices.csv")) as calls:
        summary = review.summarize(calls)
        verdict = review.verdict(calls, summary)
        rows, _ = _report._failed(calls, summary, verdict)
    stretch, rest = verdict.findings
    assert rest.events > stretch.events
    assert (rest.rest, rest.stretches, stretch.events + rest.events) == (True, (), verdict.failed)
    assert stretch.other_events == rest.events == sum(number for _, number in rest.classes)
    assert dict(rest.classes).get("ConnectFailed", 0) <= 2  # at the edges of the stretch
    said = texts(verdict)
    assert re.match(r"(Failed|Outage): 16:2\d:\d\d to 16:\d\d:\d\d ", said[1])
    assert f"Failed: in the rest of the run. {rest.events:,} of {rest.calls:,} calls failed (" in "\n".join(said)
    assert stretch.example is not None
    assert said[-1].endswith(stretch.example.call_id)
    assert len([row for row in rows if at(7_990) < row[2] < at(8_810)]) >= 90


def test_failures_of_a_host_in_a_stretch_are_not_counted_again_in_the_rest_of_the_run(tmp_path: Path) -> None:
    made = night(calls=6_000)
    made.fail(0, SECONDS, HOSTS[0], BUSY, share=0.06, response_code=503)
    made.fail(8_000, 10_500, HOSTS[0], REFUSED, share=0.5)
    _, verdict = judged(made, tmp_path / "prices.csv")
    stretch, rest = verdict.findings
    assert (stretch.names, rest.names, rest.rest) == (HOSTS[:1], HOSTS[:1], True)
    assert stretch.events + rest.events + rest.other_events == verdict.failed
    assert sum(number for _, number in rest.classes) == rest.events
    said = "\n".join(texts(verdict))
    assert f"Failed: in the rest of the run. {rest.events} of {rest.calls:,} calls to {HOSTS[0]} failed" in said
    assert f"The other {stretch.events} failures are described separately." in said


def test_a_class_at_one_host_does_not_hide_the_failures_of_the_others(tmp_path: Path) -> None:
    made = night(failing=0.2)
    for number, each in enumerate(made.between(0, SECONDS, HOSTS[3])):
        if number % 12 == 0:
            each |= {"success": False, "error": REFUSED.format(HOSTS[3]), "response_code": None, "response_size": 0}
    _, verdict = judged(made, tmp_path / "prices.csv")
    rest, of_class = verdict.findings
    assert (of_class.names, of_class.one_class, of_class.other_events) == (HOSTS[3:], True, 0)
    assert (rest.by, rest.calls, rest.events + of_class.events) == ("", verdict.calls, verdict.failed)
    said = "\n".join(texts(verdict))
    assert re.search(r"The other 3 hosts: 0 of 1,\d\d\d calls \(0\.00 %\) failed with ConnectFailed\.", said)
    assert f"Failures of other classes, anywhere in the run: {rest.events}." in said


def test_a_gap_does_not_begin_or_end_with_the_run(tmp_path: Path) -> None:
    """There are always calls before it and after it, although they may be few."""
    for start, end in ((8_700, SECONDS - 100), (100, 7_000)):
        made = night()
        made.calls = [each for each in made.calls if not start <= each["t"] - START < end]
        _, verdict = judged(made, tmp_path / f"{start}.csv")
        (line,) = (each for each in texts(verdict) if each.startswith("No calls: "))
        assert re.match(r"No calls: \d\d:\d\d:\d\d to \d\d:\d\d:\d\d \([^,]*\)\. No call", line)


def test_a_host_that_fails_in_the_whole_run(tmp_path: Path) -> None:
    made = night(hosts=HOSTS[:2], failing=0.0)
    made.fail(0, SECONDS, HOSTS[0], EXPIRED)
    _, verdict = judged(made, tmp_path / "prices.csv")
    (found,) = verdict.findings
    assert (found.names, found.stretches) == (HOSTS[:1], ())


def test_bodies_that_are_larger_for_some_time(tmp_path: Path) -> None:
    made = night()
    for each in made.between(5_000, 9_000):
        each["response_size"] *= 5
    _, verdict = judged(made, tmp_path / "prices.csv")
    assert verdict.findings[0].kind == "larger bodies"
    assert re.match(r"Larger bodies: 15:\d\d:\d\d to 16:\d\d:\d\d .* 2\.\d\d kB in the rest", texts(verdict)[1])


def test_a_small_difference_of_durations_is_not_a_finding(tmp_path: Path) -> None:
    made = night()
    for number, each in enumerate(made.calls):
        each["delta_t"] = 0.1 + number % 7 / 1_000
    slower(made.between(8_000, SECONDS), 1.1)
    assert judged(made, tmp_path / "prices.csv")[1].findings == ()


def test_retries_of_the_whole_run_and_in_a_stretch(tmp_path: Path) -> None:
    for end, stretches in ((SECONDS, 0), (6_000, 1)):
        made = night(seed=end)
        for number, each in enumerate(made.between(3_000 * stretches, end)):
            if number % 3 == 0 and each["success"]:
                half = each["delta_t"] / 2
                made.attempts += [
                    attempt(each, 1, 0.0, half, wait=0.0, reason="connection"),
                    attempt(each, 2, half, half, status=200),
                ]
        _, verdict = judged(made, tmp_path / f"{end}.csv")
        (found,) = verdict.findings
        assert (found.kind, found.by, len(found.stretches)) == ("retries", "", stretches)
        assert re.search(
            rf" were attempted again: {found.events} succeeded, 0 failed\. They had {found.events} retries "
            rf"\(connection {found.events}\)\.",
            texts(verdict)[1],
        )


def attempt_again(made: Night, start: float, end: float, host: str, share: float, wait: float) -> None:
    """Let a share of the successes wait for a second attempt."""
    chance = random.Random(8)
    for each in made.between(start, end, host):
        if each["success"] and chance.random() < share:
            half = each["delta_t"] / 2
            each["delta_t"] = round(each["delta_t"] + wait, 6)
            made.attempts += [
                attempt(each, 1, 0.0, half, wait=wait, reason="status_503", status=503),
                attempt(each, 2, half + wait, half, status=200),
            ]


@pytest.mark.parametrize(
    ("start", "end", "host", "share", "wait"),
    [
        (6_000, 9_000, HOSTS[3], 0.4, 2.0),
        (6_000, 9_000, HOSTS[3], 0.9, 2.0),
        (6_000, 9_000, "", 0.3, 3.0),
        (0, SECONDS, HOSTS[3], 0.1, 3.0),
    ],
    ids=["tail", "slower", "all hosts", "whole run"],
)
def test_waits_before_retries_explain_why_calls_take_longer(
    start: float, end: float, host: str, share: float, wait: float, tmp_path: Path
) -> None:
    made = night(seed=3)
    attempt_again(made, start, end, host, share, wait)
    assert [each.kind for each in judged(made, tmp_path / "prices.csv")[1].findings] == ["retries"]


@pytest.mark.parametrize(("start", "host"), [(12_000, HOSTS[3]), (6_000, HOSTS[1])], ids=["later", "elsewhere"])
def test_waits_before_retries_explain_no_slow_calls_at_another_time_or_host(
    start: float, host: str, tmp_path: Path
) -> None:
    made = night(seed=3)
    attempt_again(made, 6_000, 9_000, HOSTS[3], 0.4, 2.0)
    slower(made.between(start, start + 2_000, host), 20)
    found = judged(made, tmp_path / "prices.csv")[1].findings
    assert sorted((each.kind, *each.names) for each in found) == [("retries", HOSTS[3]), ("slower", host)]


def test_waits_before_retries_explain_no_failures(tmp_path: Path) -> None:
    made = night(seed=3)
    attempt_again(made, 0, SECONDS, HOSTS[3], 0.1, 3.0)
    made.fail(6_000, 8_000, HOSTS[3], REFUSED)
    assert {each.kind for each in judged(made, tmp_path / "prices.csv")[1].findings} == {"failures", "retries"}


def test_a_stretch_is_found_although_the_fit_of_the_rates_has_not_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stretches, "_ROUNDS", 1)
    found = _stretches.find([20] * 100, [18 if 40 <= n < 50 else n % 2 for n in range(100)])
    assert found is not None
    assert found.ranges == ((40, 50),)


@pytest.mark.parametrize(
    ("place", "others"),
    [("api.example.com/v1/refunds/count-refunds", "the other 49 endpoints"), ("h7.example.com", "the other 99 hosts")],
    ids=["endpoint", "host"],
)
def test_one_of_many_that_is_far_slower_is_named_although_it_takes_little_of_the_time(
    place: str, others: str, tmp_path: Path
) -> None:
    made = night(failing=0.0)
    for number, each in enumerate(made.calls):
        section, verb = SECTIONS[number % 20], VERBS[number // 20 % 10]
        path = f"api.example.com/v1/{section}/{verb}-{section}?page={number // 200}"
        each["url"] = f"https://{f'h{number % 100}.example.com/{number}' if place.startswith('h') else path}"
    slower((each for each in made.calls if re.search(rf"//{place}[/?]", each["url"])), 10)
    _, verdict = judged(made, tmp_path / "prices.csv")
    (found,) = verdict.findings
    assert (found.kind, found.names, found.share_of_time < 0.12) == ("slow", (place,), True)
    assert re.match(rf"Slow: .*calls to {place} take .* {others}", texts(verdict)[1])


def test_endpoints_whose_durations_are_spread_are_not_slow(tmp_path: Path) -> None:
    """Their medians are up to five times that of all."""
    made, chance = night(failing=0.0), random.Random(4)
    times = [math.exp(0.6 * chance.gauss(0, 1)) for _ in SECTIONS]
    for number, each in enumerate(made.calls):
        each["url"] = f"https://{HOSTS[0]}/v1/{SECTIONS[number % 20]}/list"
        each["delta_t"] = round(each["delta_t"] * times[number % 20], 6)
    assert judged(made, tmp_path / "prices.csv")[1].findings == ()


def test_the_work_for_slow_places_grows_with_their_number_and_not_with_its_square(tmp_path: Path) -> None:
    with review.load(farm(400, 0, 0, 0).write(tmp_path / "prices.csv")) as calls:
        run = _described.Search(calls, _described.parts_of(calls))
        functions = list[str]()
        sys.setprofile(lambda frame, event, _: functions.append(frame.f_code.co_name) if event == "call" else None)
        found = list(_findings._slow(run))
        sys.setprofile(None)
    assert found == []
    assert 400 < len(functions) < 40 * 400


def farm(hosts: int, down: int, start: float, end: float, calls: int = 2_000) -> Night:
    """Return a night of many hosts, of which some are down in a period; all names of hosts have the same length."""
    names = tuple(f"h{number:03d}.example.com" for number in range(hosts))
    made = night(calls=calls, hosts=names)
    for name in names[:down]:
        made.fail(start, end, name, REFUSED)
    return made


@pytest.mark.parametrize(
    ("hosts", "down", "start", "end"),
    [(500, 100, 5_000, 15_000), (200, 50, 0, SECONDS), (100, 80, 5_000, 9_000)],
    ids=["a stretch", "the whole run", "most of them"],
)
def test_many_hosts_that_are_down_are_one_sentence_with_their_number(
    hosts: int, down: int, start: float, end: float, tmp_path: Path
) -> None:
    """Each has a few calls only, of which nearly all failed, and nearly none of the others."""
    summary, verdict = judged(farm(hosts, down, start, end), tmp_path / "prices.csv")
    (found,) = verdict.findings
    assert (found.kind, found.by) == ("failures", "host")
    assert found.names[:2] == ("h000.example.com", "h001.example.com")
    assert 0.85 * down < len(found.names) <= 1.05 * down
    assert found.events >= 0.97 * max(found.calls, verdict.failed - 10)
    said = (
        f"calls to {len(found.names)} of {len(found.names) + found.others} hosts (h000.example.com, h001.example.com, "
    )
    assert re.match(
        rf"Outage: .*[\d,]+ of [\d,]+ {re.escape(said)}h00\d\.example\.com and \d+ more\) failed \(", texts(verdict)[1]
    )
    page = unescape(re.sub("<[^>]*>", "", verdict_block(lines(verdict))))
    markdown = as_markdown(summary, verdict).replace("\\", "")
    facts = json.loads(as_json(summary, verdict))["verdict"]
    assert all(
        said in re.sub(r"\s+", " ", text) for text in (screen(summary, verdict), page, markdown, facts["text"][1])
    )
    assert facts["findings"][0]["names"] == list(found.names)


def test_hosts_with_few_calls_that_are_down_at_the_same_time_belong_to_the_outage(tmp_path: Path) -> None:
    (found,) = judged(farm(40, 3, 6_000, 9_000), tmp_path / "prices.csv")[1].findings
    assert (found.names, found.calls) == (tuple(f"h{number:03d}.example.com" for number in range(3)), found.events)


@pytest.mark.parametrize(
    ("counts", "down"),
    [
        ([("a", 5, 5), ("b", 40, 0), ("c", 60, 1)], ("a",)),
        ([("a", 2, 2), ("b", 2, 0), ("c", 2, 1), ("d", 3, 1)], ()),
        ([(str(number), 1, number % 2) for number in range(100)], ()),
        ([("a", 9, 9), ("b", 9, 9)], ()),
        ([("a", 9, 0), ("b", 9, 0)], ()),
        ([], ()),
    ],
    ids=["one", "chance", "one call each", "all", "none", "no places"],
)
def test_places_are_down_if_they_explain_the_failures(
    counts: list[tuple[str, int, int]], down: tuple[str, ...]
) -> None:
    assert _stretches.down(counts) == down


@pytest.mark.parametrize(
    ("counts", "names"),
    [
        ([("a", 16, 16), ("b", 6, 0), ("c", 9, 9), ("d", 13, 0)], ("a", "c")),
        ([("a", 4, 4), ("b", 1, 0)], ("a",)),
        ([("a", 85, 8), ("b", 215, 1)], ("a",)),
        ([("a", 30, 12), ("b", 30, 20)], ()),
        ([("a", 4, 3), ("b", 1, 0)], ()),
        ([(f"{number}", 1, number % 2) for number in range(1_000)], ()),
        ([(f"{number}", 2, number % 3) for number in range(300)], ()),
        ([("a", 0, 0), ("b", 9, 9)], ()),
        ([], ()),
    ],
    ids=["two", "one call", "partly", "half as many", "chance", "one call each", "two calls each", "no calls", "none"],
)
def test_places_without_a_failure_are_spared_unless_it_is_chance(
    counts: list[tuple[str, int, int]], names: tuple[str, ...]
) -> None:
    assert _stretches.affected(counts, in_stretch=True).names == names


def test_even_failures_of_a_whole_run_have_no_place_although_some_places_have_none() -> None:
    counts = [("a", 110, 6), ("b", 106, 4), ("c", 40, 0), ("d", 44, 0)]
    assert _stretches.affected(counts).names == ()
    assert _stretches.affected(counts, in_stretch=True).names == ("a", "b")


SIX = tuple(f"{letter}.example.com" for letter in "abcdef")


@pytest.mark.parametrize(("seed", "down"), [(1, 3), (2, 3), (3, 2), (4, 5)])
def test_hosts_of_a_small_log_without_a_failure_are_not_named_in_an_outage(
    seed: int, down: int, tmp_path: Path
) -> None:
    made = night(seed=seed, calls=300, hosts=SIX, failing=0.0)
    for host in SIX[:down]:
        made.fail(6_000, 8_400, host, REFUSED)
    _, verdict = judged(made, tmp_path / "prices.csv")
    (found,) = verdict.findings
    assert (found.by, found.names, found.events) == ("host", SIX[:down], found.calls)
    assert (found.events, found.others, found.beside_events) == (verdict.failed, 6 - down, 0)


@pytest.mark.parametrize(("others", "end", "seed"), [(1, 11_400, 5), (0, 11_400, 6), (1, SECONDS, 7)])
def test_few_failures_of_one_host_have_its_name_and_their_times(
    others: int, end: int, seed: int, tmp_path: Path
) -> None:
    """Eight of 300 calls are too few for a stretch that chance would not explain in any of the hosts."""
    made = night(seed=seed, calls=300, failing=0.0)
    bad = list(made.between(6_600 * (end < SECONDS), end, HOSTS[2]))
    for each in bad[:: len(bad) // 8 + 1] + bad[-1:]:
        each |= {"success": False, "error": "HTTPStatusError: 502 Bad Gateway", "response_code": 502}
    for each in list(made.between(600, 1_200, HOSTS[2]))[:others]:
        each |= {"success": False, "error": BUSY, "response_code": 503}
    _, verdict = judged(made, tmp_path / "prices.csv")
    (found,) = verdict.findings
    is_part = end < SECONDS
    assert (found.kind, found.names, found.others) == ("failures", HOSTS[2:3], 3)
    assert (len(found.stretches), found.one_class) == (is_part, is_part and bool(others))
    assert found.events + others * is_part == verdict.failed
    assert found.calls + found.other_calls == 300
    assert found.other_events == 0
    for stretch in found.stretches:
        assert at(6_500) < stretch.start < stretch.end < at(end)
        assert (stretch.start, stretch.end) == (at(bad[0]["t"] - START), at(bad[-1]["t"] - START))


@pytest.mark.parametrize("kind", ["a stretch", "the whole run", "two hosts", "mostly one host"])
@pytest.mark.parametrize("calls", [300, 3_000])
def test_a_project_that_fails_at_any_host_is_named(calls: int, kind: str, tmp_path: Path) -> None:
    made, chance = night(calls=calls, failing=0.001), random.Random(2)
    hosts = HOSTS[:2] if kind == "two hosts" else HOSTS
    start, end = (0, SECONDS) if kind in {"the whole run", "two hosts"} else (8_000, 12_000)
    for each in made.calls:
        share = 0.8 if kind == "mostly one host" and HOSTS[1] in each["url"] else 0.3
        if each["url"].split("/")[2] in hosts and chance.random() < share:
            each["project"] = "Orders"
    for each in made.between(start, end):
        if each["project"] == "Orders":
            each |= {"success": False, "error": "HTTPStatusError: 403 Forbidden", "response_code": 403}
    _, verdict = judged(made, tmp_path / "prices.csv")
    (found,) = verdict.findings
    assert (found.by, found.names, found.others, found.calls) == ("project", ("Orders",), 1, found.events)
    assert found.events == sum(each["project"] == "Orders" for each in made.between(start, end))
    assert f"{found.events:,} of {found.events:,} calls of project Orders failed (HTTPStatus" in texts(verdict)[1]
    if found.stretches:
        assert re.match(r"  Elsewhere: .* The other project: \d of \d", texts(verdict)[2])


def test_a_project_that_fails_beside_an_outage_of_a_host_is_named(tmp_path: Path) -> None:
    made, chance = night(calls=1_000, failing=0.001), random.Random(2)
    made.fail(2_000, 4_000, HOSTS[0], BUSY, response_code=503)
    for each in made.calls:
        each["project"] = chance.choice(("Prices", "Orders", "Stock"))
        if each["project"] == "Orders" and each["success"] and chance.random() < 0.3:
            each |= {"success": False, "error": "HTTPStatusError: 403 Forbidden", "response_code": 403}
    _, verdict = judged(made, tmp_path / "prices.csv")
    project, outage = sorted(verdict.findings, key=lambda each: -each.weight)
    assert (outage.names, len(outage.stretches)) == (HOSTS[:1], 1)
    assert (project.by, project.names, project.rest) == ("project", ("Orders",), True)
    assert project.calls + project.other_calls == 1_000 - outage.calls
    assert project.events + project.other_events == verdict.failed - outage.events
    rest = f"in the rest of the run. {project.events} of {project.calls} calls of project Orders failed"
    assert rest in "\n".join(texts(verdict))


@pytest.mark.parametrize(
    ("seed", "start", "end", "factor", "number"), [(2, 6_700, SECONDS, 1.0, 1), (1, 1_000, 2_500, 1.6, 2)]
)
def test_a_host_that_is_slow_in_half_of_a_run_does_not_make_all_hosts_slower(
    seed: int, start: float, end: float, factor: float, number: int, tmp_path: Path
) -> None:
    """Unless all of them are slower, in another part. Nor is the host slow in the whole run then."""
    made = night(seed=seed)
    slower(made.between(start, end, HOSTS[1]), 10)
    slower(made.between(9_000, SECONDS), factor)
    _, verdict = judged(made, tmp_path / "prices.csv")
    assert [(each.kind, each.names) for each in verdict.findings] == [
        ("slower", HOSTS[1:2]),
        ("slower", ()),
    ][:number]


def test_a_project_is_not_named_if_its_endpoint_or_its_host_explains_the_failures(tmp_path: Path) -> None:
    for place in (f"{HOSTS[1]}/v1/items", HOSTS[1]):
        made = night(failing=0.001)
        for each in made.between(0, SECONDS, place):
            each["project"] = "Orders"
        made.fail(8_000, 12_000, place, BUSY, response_code=503)
        (found,) = judged(made, tmp_path / "prices.csv")[1].findings
        assert (found.by in {"host", "endpoint"}, found.names[0].startswith(place)) == (True, True)


@pytest.mark.parametrize(("failed", "named"), [(5, False), (12, True)])
def test_few_failures_of_a_small_log_are_named_if_they_are_more_than_one_percent_beyond_chance(
    failed: int, named: bool, tmp_path: Path
) -> None:
    made = night(seed=3, calls=300, failing=0.0)
    for each in made.calls[5 :: 300 // failed]:
        each |= {"success": False, "error": BUSY, "response_code": 503}
    found = judged(made, tmp_path / "prices.csv")[1].findings
    assert [(each.kind, each.by, each.stretches) for each in found] == [("failures", "", ())] * named


@pytest.mark.parametrize("seed", [1, 2])
def test_slow_first_calls_of_a_small_log_are_slower_and_no_tail(seed: int, tmp_path: Path) -> None:
    made = night(seed=seed, calls=300)
    CAUSES["slow first calls"].plant(made)
    (found,) = judged(made, tmp_path / "prices.csv")[1].findings
    (stretch,) = found.stretches
    assert (found.kind, stretch.start < at(120), at(480) < stretch.end < at(720)) == ("slower", True, True)


def test_four_failures_in_a_row_of_one_host_are_an_outage_of_a_small_log(tmp_path: Path) -> None:
    made = night(seed=1, calls=300, failing=0.0)
    CAUSES["dns"].plant(made)
    (found,) = judged(made, tmp_path / "prices.csv")[1].findings
    assert (found.names, found.events, found.calls, len(found.stretches)) == (HOSTS[1:2], 4, 4, 1)


@pytest.mark.parametrize(("seconds", "named"), [(90, True), (20, False)])
def test_a_clock_set_back_by_minutes_is_found_in_a_night(seconds: int, named: bool, tmp_path: Path) -> None:
    """Rows of several processes are out of order by some seconds, so a smaller step is not told from them."""
    made = night(failing=0.0)
    made.order = sorted(range(len(made.calls)), key=lambda number: made.calls[number]["t"])
    for each in made.between(8_000, SECONDS):
        each["t"] = round(each["t"] - seconds, 6)
    for first in range(0, 2_000, 40):  # neighbours of two processes
        made.order[first], made.order[first + 1] = made.order[first + 1], made.order[first]
    _, verdict = judged(made, tmp_path / "prices.csv")
    found = [(each.kind, seconds - 20 < each.seconds <= seconds) for each in verdict.findings]
    assert found == [("clock", True)] * named


def test_rows_in_another_order_are_no_step_of_the_clock(tmp_path: Path) -> None:
    for key in ("url", "call_id"):
        made = night(failing=0.0, seed=2)
        random.Random(5).shuffle(made.calls)
        made.order = sorted(range(len(made.calls)), key=lambda number: made.calls[number][key])
        assert judged(made, tmp_path / f"{key}.csv")[1].findings == ()


@pytest.mark.parametrize("project", ["Prices", "Prices, daily"], ids=["plain row", "row with quotes"])
def test_a_call_that_takes_minutes_is_no_step_of_the_clock(project: str, tmp_path: Path) -> None:
    """Its row follows those of calls that started after it."""
    made = night(calls=300, failing=0.0)
    made.calls[150] |= {"project": project, "delta_t": 900.0}
    assert "clock" not in {each.kind for each in judged(made, tmp_path / "prices.csv")[1].findings}


def test_servers_that_are_down_and_the_other_failures_are_two_sentences(tmp_path: Path) -> None:
    """As in the demo: two hosts answer nothing, each few calls, and the calls to a third fail in five ways."""
    made = night(calls=300, hosts=HOSTS[:1], failing=0.0)
    for number, each in enumerate(made.calls):
        host = HOSTS[1] if number % 50 == 7 else HOSTS[2] if number % 75 == 30 else HOSTS[0]
        each["url"] = f"https://{host}/items/{number}"
        if host != HOSTS[0] or number % 5 == 0:
            error = f"Reason{number % 25 // 5}: x" if host == HOSTS[0] else REFUSED.format(host)
            each |= {"success": False, "error": error, "response_code": None, "response_size": 0}
    _, verdict = judged(made, tmp_path / "demo.csv")
    said = texts(verdict)
    down, rest = verdict.findings
    assert (down.names, down.events, down.calls, down.others) == ((HOSTS[2], HOSTS[1]), 10, 10, 1)
    assert (rest.events + 10, rest.calls + 10) == (verdict.failed, 300)
    assert (
        f"Outage: from the first call to the last. 10 of 10 calls to {HOSTS[2]}, {HOSTS[1]} failed (ConnectF" in said[1]
    )
    (other,) = (each for each in said if each.startswith("Failed: "))
    assert re.search(rf"in the rest of the run\. {rest.events} of 290 calls failed \(\d+ Reason\d: x; ", other)
    assert other.endswith(f", {rest.events - sum(number for _, number in rest.classes)} of other classes).")
    assert "separately" not in "".join(said)


DOWN, NO_NAME = "ConnectFailed: Connect call failed ('10.0.0.7', 443)", "ConnectFailed: Name or service not known"


@pytest.mark.parametrize("start", [4_200, 9_000], ids=["one stretch", "two"])
@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (REFUSED, UNKNOWN_HOST, (DOWN, NO_NAME)),
        (REFUSED, EXPIRED, (DOWN, "CertificateRejected: SSLCertVerificationError: (1, '[SSL: CERTIF")),
        (BUSY, REFUSED, ("HTTPStatusError: 503 Service Unavailable", DOWN)),
        (CUT, CUT.replace("1400", "52"), ()),
    ],
    ids=["message", "class", "status", "same"],
)
def test_errors_one_after_the_other_are_named_with_their_times(
    start: float, first: str, second: str, said: tuple[str, ...], tmp_path: Path
) -> None:
    made = night(failing=0.0)
    made.fail(3_000, 4_200, HOSTS[0], first, response_code=503 if first == BUSY else None)
    made.fail(start, start + 900, HOSTS[0], second)
    (found,) = (verdict := judged(made, tmp_path / "prices.csv")[1]).findings
    times = [each.start for each in found.reasons]
    planted = [next(made.between(time, SECONDS, HOSTS[0]))["t"] - START for time in (3_000, start)]
    assert times == list(map(at, planted))[: max(len(said), 1)]
    _, outage, *details = texts(verdict)
    assert [each for each in details if "Reasons" in each] == details[: len(said) // 2]
    for time, error in zip(times, said, strict=False):
        assert f" from {time:%H:%M:%S} {error}" in details[0]
    assert "Connect call failed" not in outage


def test_the_listed_failures_of_a_large_log_show_the_worst_stretch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The texts of a frequent class are not so few that a rare one takes the places of the incident."""
    made = night(calls=20_000, failing=0.003)
    made.fail(6_000, 9_000, HOSTS[0], REFUSED)
    log = made.write(tmp_path / "prices.csv")
    monkeypatch.setattr(_load, "_LARGE", 0)
    monkeypatch.setattr(_load, "_SAMPLE", 400_000)
    with review.load(log) as calls:
        verdict = review.verdict(calls, summary := review.summarize(calls))
        rows, _ = _report._failed(calls, summary, verdict)
        assert calls.rows("SELECT count(*) FROM calls_with_text WHERE error_type = 'ConnectFailed'")[0][0] > 800
    assert verdict.findings[0].names == HOSTS[:1]
    assert len(rows) == 200
    assert sum("ConnectFailed" in str(row) for row in rows) >= 100


def test_a_message_is_that_of_all_failures_or_an_example(tmp_path: Path) -> None:
    made, chance = night(failing=0.0), random.Random(3)
    for each in made.between(3_000, 4_200, HOSTS[0]):
        error = chance.choice([REFUSED, UNKNOWN_HOST]).format(HOSTS[0])
        each |= {"success": False, "error": error, "response_code": None, "response_size": 0}
    _, verdict = judged(made, tmp_path / "prices.csv")
    assert re.search(r"failed \(ConnectFailed, such as: (Connect call|Name or)", texts(verdict)[1])
    assert "Reasons" not in "".join(texts(verdict))


@pytest.mark.parametrize("background", [0.0, 0.03])
def test_the_errors_of_a_large_log_are_those_of_the_outage(
    background: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps the texts of all rare failures, and of about 5,000 of each other class: here of 40."""
    monkeypatch.setattr(_load, "_LARGE", 0)
    monkeypatch.setattr(_load, "_SAMPLE", 100_000)
    monkeypatch.setattr(_load, "_KEPT", 40)
    made = night(failing=0.0)
    made.fail(2_000, 6_000, HOSTS[0], REFUSED, share=0.97)
    made.fail(9_000, 12_000, HOSTS[0], UNKNOWN_HOST, share=0.97)
    chance = random.Random(4)
    for each in made.calls:
        if each["success"] and HOSTS[0] in each["url"] and chance.random() < background:
            each |= {"success": False, "error": BUSY, "response_code": 503, "response_size": 0}
    _, verdict = judged(made, tmp_path / "prices.csv")
    assert [each.error.partition("[")[2].rstrip("]") for each in verdict.findings[0].reasons] == [
        each.removeprefix("ConnectFailed: ") for each in (DOWN, NO_NAME)
    ]


def test_failures_at_one_more_place_do_not_hide_those_of_the_others(tmp_path: Path) -> None:
    """As in the demo, some URLs of which are invalid: they have no host."""
    made = night(calls=300, hosts=HOSTS[:1], failing=0.0)
    for number, each in enumerate(made.calls):
        each["url"] = f"https://{HOSTS[1] if number % 50 == 7 else HOSTS[0]}/items/{number}"
        if number % 75 == 30:
            each["url"] = f"http//{HOSTS[0]}/items/{number}"
        if number % 5 == 0 or number % 50 == 7:
            each |= {"success": False, "error": f"Reason{number % 25}: x", "response_code": None, "response_size": 0}
    _, verdict = judged(made, tmp_path / "demo.csv")
    assert [each.names for each in verdict.findings] == [(HOSTS[1],), (), ("",)]
    assert sum(each.events for each in verdict.findings) == verdict.failed
    assert all(f"{each.events} of {each.calls} calls" in "".join(texts(verdict)) for each in verdict.findings)


def test_timeouts_of_another_host_do_not_hide_a_slow_one(tmp_path: Path) -> None:
    made = night()
    slower(made.between(0, SECONDS, HOSTS[1]), 30)
    made.fail(6_000, 8_500, HOSTS[0], "AttemptTimeout: no answer within 30 s", delta_t=30.0)
    _, verdict = judged(made, tmp_path / "prices.csv")
    assert sorted((each.kind, *each.names) for each in verdict.findings) == [
        ("failures", HOSTS[0]),
        ("slow", HOSTS[1]),
    ]


TWICE = ((4_000, 5_200), (11_000, 12_200))


def sometimes(made: Night, kind: str) -> None:
    """Change the calls of two stretches of a night."""
    places = {"tail": HOSTS[2], "retries": HOSTS[3], "failures": HOSTS[1]}
    calls = [each for start, end in TWICE for each in made.between(start, end, places.get(kind, ""))]
    for number, each in enumerate(calls):
        if kind == "same size":
            each |= {"response_size": 1_532, "success": True, "error": "", "response_code": 200}
        elif kind == "larger bodies":
            each["response_size"] *= 5
        elif kind == "failures":
            each |= {"success": False, "error": BUSY, "response_code": 503}
        elif kind == "retries" and number % 5:
            first = attempt(each, 1, 0.0, 0.01, wait=0.01, reason="status_503", status=503)
            made.attempts += [first, attempt(each, 2, 0.02, 0.01, status=200)]
        elif kind == "slower" or (kind == "tail" and number % 3 == 0):
            slower(iter([each]), 5 if kind == "slower" else 90)


@pytest.mark.parametrize("kind", ["failures", "slower", "tail", "same size", "larger bodies", "retries"])
def test_each_of_several_stretches_is_named_with_its_times(kind: str, tmp_path: Path) -> None:
    made = night(failing=0.0)
    sometimes(made, kind)
    summary, verdict = judged(made, tmp_path / "prices.csv")
    (found,) = verdict.findings
    assert (found.kind, len(found.stretches)) == (kind, 2)
    for stretch, (start, end) in zip(found.stretches, TWICE, strict=True):
        assert abs((stretch.start - at(start)).total_seconds()) < 120
        assert abs((stretch.end - at(end)).total_seconds()) < 120
    assert found.calls == sum(each.calls for each in found.stretches)
    times = [f"{each.start:%H:%M:%S} to {each.end:%H:%M:%S} (" for each in found.stretches]
    pattern = r"(Outage|[A-Z][a-z]+( [a-z]+)?): 2 times: " + r"[^)]*\), ".join(map(re.escape, times))
    for text in (texts(verdict)[1], screen(summary, verdict).partition("p99")[2].partition(". ")[2]):
        assert re.match(pattern, text), text


def staggered(made: Night, parts: dict[str, tuple[float, float, str]]) -> None:
    for place, (start, end, error) in parts.items():
        made.fail(start, end, place, error, share=0.98)


OVERLAPPING = {HOSTS[1]: (5_040, 8_400, REFUSED), HOSTS[2]: (6_720, 10_080, NOT_JSON)}


@pytest.mark.parametrize(
    ("parts", "seed"),
    [
        *((OVERLAPPING, seed) for seed in (0, 2)),
        ({HOSTS[n]: (3_000 + 2_000 * n, 5_000 + 2_000 * n, REFUSED) for n in range(4)}, 1),
        ({HOSTS[1]: (5_040, 11_760, REFUSED), HOSTS[2]: (7_560, 9_240, BUSY)}, 1),
        ({f"{HOSTS[1]}/v1/items": (5_040, 8_400, BUSY), f"{HOSTS[1]}/v1/users": (6_720, 10_080, NOT_JSON)}, 1),
    ],
    ids=["overlapping", "overlapping, 2", "in turn", "one in the other", "endpoints of one host"],
)
def test_outages_of_places_at_different_times_are_a_finding_each(
    parts: dict[str, tuple[float, float, str]], seed: int, tmp_path: Path
) -> None:
    made = night(seed=seed, calls=4_000)
    staggered(made, parts)
    _, verdict = judged(made, tmp_path / "prices.csv")
    assert sorted(name for each in verdict.findings for name in each.names) == sorted(
        f"{place}/{{id}}" if "/" in place else place for place in parts
    )
    for found in verdict.findings:
        (stretch,) = found.stretches
        start, end, _ = parts[found.names[0].removesuffix("/{id}")]
        assert abs((stretch.start - at(start)).total_seconds()) < 150
        assert abs((stretch.end - at(end)).total_seconds()) < 150
        assert found.events >= 0.95 * found.calls


@pytest.mark.parametrize(
    "others",
    [[-365 * 86_400], [10 * 365 * 86_400], [-90 * 86_400 + 60 * n for n in range(5)]],
    ids=["one a year before", "one ten years later", "five test calls"],
)
def test_calls_at_quite_another_time_do_not_hide_when_an_outage_was(others: list[int], tmp_path: Path) -> None:
    """Parts of equal length would have the whole night in one of them."""
    made = night()
    extra = [each.copy() for each in made.calls[: len(others)]]
    made.fail(6_000, 6_900, HOSTS[0], REFUSED)
    planted = list(made.between(6_000, 6_900, HOSTS[0]))
    for number, (each, time) in enumerate(zip(extra, others, strict=True)):
        made.calls.append(each | {"t": START + time, "call_id": f"{number + 1:032x}-{number + 1:016x}"})
    _, verdict = judged(made, tmp_path / "prices.csv")
    found = next(each for each in verdict.findings if each.kind == "failures")
    assert (found.names, found.calls, found.events) == (HOSTS[:1], len(planted), len(planted))
    (stretch,) = found.stretches
    assert (stretch.start, stretch.end) == (at(planted[0]["t"] - START), at(planted[-1]["t"] - START))


@pytest.mark.parametrize("night_of", [0, 6])
def test_an_outage_in_the_middle_of_one_of_seven_nights_is_not_at_an_end(night_of: int, tmp_path: Path) -> None:
    made = night(calls=3_500, failing=0.0)
    for number, each in enumerate(made.calls):
        each["t"] = round(START + number // 500 * 86_400 + number % 500 * 14.4, 6)
    start = night_of * 86_400
    made.fail(start + 2_900, start + 4_300, HOSTS[1], REFUSED)
    _, verdict = judged(made, tmp_path / "prices.csv")
    (found,) = (each for each in verdict.findings if each.kind == "failures")
    (stretch,) = found.stretches
    assert (stretch.from_start, stretch.to_end) == (False, False)
    assert any(text.startswith("Outage: 2026-09-2") for text in texts(verdict))


def test_an_outage_that_is_worse_in_its_middle_is_one_finding(tmp_path: Path) -> None:
    """Its edges are those of all of it, and not of the worst part."""
    made = night(calls=4_000)
    made.fail(5_000, 11_000, "", BUSY, share=0.35, response_code=503)
    made.fail(7_000, 9_000, "", BUSY, response_code=503)
    _, verdict = judged(made, tmp_path / "prices.csv")
    (found,) = verdict.findings
    assert found.stretches[0].start < at(5_150)
    assert found.stretches[-1].end > at(10_850)


def test_outages_of_many_hosts_that_follow_each_other_are_one_finding(tmp_path: Path) -> None:
    """They are more than the findings of a verdict."""
    made = night(calls=4_000, hosts=MANY, failing=0.0)
    staggered(made, {host: (4_000 + 1_000 * n, 5_000 + 1_000 * n, REFUSED) for n, host in enumerate(MANY)})
    (found,) = judged(made, tmp_path / "prices.csv")[1].findings
    assert (found.kind, len(found.stretches)) == ("failures", 1)
    assert at(3_900) < found.stretches[0].start < at(4_100)
    assert at(11_700) < found.stretches[0].end < at(12_100)
