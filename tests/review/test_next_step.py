"""Tests of the first and the last sentence of a verdict: what became of the URLs, and what to do next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.logs import call, write
from support.planted import HOSTS, SECONDS, Night, attempt, night, slower

from otel_connector import CallRecord, review
from otel_connector.review._verdict_text import Wording, texts

REASONS = ["status_503"] * 6 + ["timeout"] * 4 + ["truncated"] * 3 + ["connection"] * 2 + ["status_429"]


def judged(made: Night, path: Path) -> review.Verdict:
    with review.load(made.write(path)) as calls:
        return review.verdict(calls, review.summarize(calls))


def polled(urls: int, times: int, failed: set[tuple[int, int]]) -> list[CallRecord]:
    """Return calls that fetch each URL several times, of which some fail: a URL, and which of its calls."""
    return [
        call(
            time * urls + url,
            url=f"https://api.example.com/{url}",
            **({"error": "E: x"} if (url, time) in failed else {}),
        )
        for time in range(times)
        for url in range(urls)
    ]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            polled(5, 10, {(0, 0), (1, 9), (1, 4)}),  # also a URL whose last call failed
            "All 5 URLs were fetched in 50 calls. 3 calls failed (6.00 %). 2 URLs failed in one call and succeeded in",
        ),
        (
            polled(130, 2, {(url, time) for url in range(10) for time in range(2)}),
            "120 of 130 URLs were fetched in 260 calls. 10 failed for good (7.69 %). 20 calls failed (7.69 %). Median",
        ),
        (
            polled(20, 2, {(0, 0), (0, 1), (1, 0)}),
            "19 of 20 URLs were fetched in 40 calls. 1 failed for good (5.00 %). 3 calls failed (7.50 %). 1 URL failed",
        ),
        (polled(50, 1, {(3, 0)}), "49 of 50 URLs were fetched. 1 failed (2.00 %). Median"),
    ],
    ids=["polled", "failed for good", "both", "once"],
)
def test_calls_of_a_url_are_no_attempts(made: list[CallRecord], said: str, tmp_path: Path) -> None:
    """Curl and wget count as retries only the attempts of one transfer, too."""
    with review.load(write(tmp_path / "logs.csv", made)) as calls:
        verdict = review.verdict(calls, review.summarize(calls))
    assert texts(verdict)[0].startswith(said)
    assert verdict.urls.retried == 0


@pytest.mark.parametrize(
    ("urls", "times", "said"),
    [
        (
            40,
            1,
            "39 of 40 URLs were fetched. 2 of them (5.13 %) succeeded only after another attempt. 1 failed (2.50 %).",
        ),
        (
            20,
            2,
            "All 20 URLs were fetched in 40 calls. 2 of them (10.00 %) succeeded only after another attempt, in one",
        ),
        (
            1,
            40,
            "The only URL was fetched in 40 calls. It succeeded only after another attempt, in one call or more. 1",
        ),
    ],
    ids=["once", "twice", "one"],
)
def test_attempts_are_those_of_the_attempts_log(urls: int, times: int, said: str, tmp_path: Path) -> None:
    """The call that failed after its attempts is not one that succeeded only after another."""
    made = Night([each._asdict() for each in polled(urls, times, {(0, 0)})])
    for each in made.calls[:3]:
        made.attempts += [
            attempt(each, 1, 0.0, 0.01, wait=0.1, reason="timeout"),
            attempt(each, 2, 0.2, 0.01, reason="" if each["success"] else "timeout"),
        ]
    assert texts(judged(made, tmp_path / "logs.csv"))[0].startswith(said)


def retried(reasons: list[str], failing: int) -> Night:
    """Return a night in which every fifth call is retried, two for each reason; some fail at their last attempt."""
    made = night(calls=160, failing=0.0)
    for number, (each, reason) in enumerate(zip(made.calls[::5], [*reasons] * 2, strict=True)):
        fails = number % failing == 0
        made.attempts += [
            attempt(each, 1, 0.0, 0.01, wait=0.5, reason=reason),
            attempt(each, 2, 0.51, 0.01, reason="not retried" if fails else ""),
        ]
        if fails:
            each |= {"success": False, "error": "E: x"}
    return made


def test_the_reasons_of_retries_are_those_after_which_another_attempt_was_made(tmp_path: Path) -> None:
    verdict = judged(retried(REASONS, failing=8), tmp_path / "logs.csv")
    (found,) = (each for each in verdict.findings if each.kind == "retries")
    (said,) = (each for each in texts(verdict) if each.startswith("Retries: "))
    assert said.endswith(
        "32 of 160 calls (20.00 %) to all hosts were attempted again: 28 succeeded, 4 failed. They had 32 retries "
        "(status_503 12, timeout 8, truncated 6, connection 4, status_429 2)."
    )
    assert sum(number for _, number in found.classes) == found.retries == 32
    assert verdict.urls.retried == found.succeeded == 28
    assert found.seconds == pytest.approx(16.0)


def test_of_many_reasons_the_others_are_a_number(tmp_path: Path) -> None:
    verdict = judged(retried([f"status_{500 + number}" for number in range(16)], failing=99), tmp_path / "logs.csv")
    (said,) = (each for each in texts(verdict) if each.startswith("Retries: "))
    assert said.endswith(", status_511 2, other reasons 8).")


def test_retries_name_a_call_or_their_place(tmp_path: Path) -> None:
    made = night(calls=400, failing=0.0)
    for each in made.between(0, SECONDS, HOSTS[1]):
        made.attempts += [
            attempt(each, 1, 0.0, 0.01, wait=0.1, reason="timeout"),
            attempt(each, 2, 0.2, 0.01, status=200),
        ]
    slowest = max(made.between(0, SECONDS, HOSTS[1]), key=lambda each: each["delta_t"])
    verdict = judged(made, tmp_path / "logs.csv")
    (found,) = verdict.findings
    assert texts(verdict)[-1] == f"Next: one of the retried calls: call_id {slowest['call_id']}"
    assert texts(replace(verdict, findings=(replace(found, example=None),)))[-1] == f"Next: the calls to {HOSTS[1]}"
    everywhere = replace(found, example=None, by="", names=())
    assert not texts(replace(verdict, findings=(everywhere,)))[-1].startswith("Next")


def test_the_first_step_is_about_the_worst_finding(tmp_path: Path) -> None:
    """A rate is one for refused calls; URLs that are left are not why a host is slow."""
    made = night(calls=600, failing=0.0)
    slower(made.between(0, SECONDS, HOSTS[1]), 60)
    made.calls[5] |= {"success": False, "error": "E: x"}
    for each in list(made.between(0, SECONDS, HOSTS[0]))[:20]:
        made.attempts.append(attempt(each, 1, 0.0, 0.01, wait=58.0, reason="status_429", status=429))
    verdict = judged(made, tmp_path / "logs.csv")
    slowest = max(made.calls, key=lambda each: each["delta_t"])
    by_kind = {each.kind: each for each in verdict.findings}
    slow, waits = by_kind["slow"], by_kind["waits"]
    wording = Wording(command="otel-connector fetch u.txt")

    def steps(*findings: review.Finding) -> list[str]:
        return [each for each in texts(replace(verdict, findings=findings), wording) if each[:4] in {"Next", "Or: "}]

    resume, slow_call = "otel-connector fetch u.txt --resume", f"one of these calls: call_id {slowest['call_id']}"
    assert steps(slow, waits) == [f"Next: {slow_call}", f"Or: {resume}   (1 URL left)"]
    first, second = steps(waits, slow)
    assert first.startswith(f"Next: {resume} --rate 0.00")
    assert second == f"Or: {slow_call}"
    assert steps() == [f"Next: {resume}   (1 URL left)"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"calls": 4_000, "baseline": 400.0, "seconds": 4.0},
            [
                "4,000 calls to it in 6.00 s, 667/s. Over the whole run, these are 400/s",
                "--rate 390   (below the 400/s",
            ],
        ),
        (
            {"calls": 286, "baseline": 23.06, "seconds": 6.02},
            [
                "286 calls to it in 3.98 s, 71.9/s. Over the whole run, these are 23.1/s",
                "--rate 22   (below the 23.1/s",
            ],
        ),
        ({"calls": 20, "baseline": 2.0, "seconds": 10.0}, ["--rate 1.9   (below the 2/s", "pauses included)"]),
    ],
    ids=["fast", "demo", "only pauses"],
)
def test_the_rate_after_refusals_is_below_the_average(values: dict[str, Any], said: list[str], tmp_path: Path) -> None:
    made = polled(11, 1, set())
    with review.load(write(tmp_path / "logs.csv", made)) as calls:
        verdict = review.verdict(calls, review.summarize(calls))
    assert verdict.start
    pauses = review.Stretch(start=verdict.start, end=verdict.start, calls=1, events=1)
    values = {**values, "stretches": (pauses,), "figure": 1.0, "share_of_time": 0.5}
    found = review.Finding(kind="waits", weight=0.5, by="host", names=HOSTS[:1], events=1, **values)
    shown = "\n".join(texts(replace(verdict, findings=(found,))))
    assert [each for each in said if each not in shown] == []
    assert ("Between the pauses" in shown) == (values["seconds"] < verdict.seconds)


def test_retries_in_two_stretches_are_two(tmp_path: Path) -> None:
    made = night(failing=0.0)
    for each in [*made.between(3_000, 4_500), *made.between(10_000, 11_500)]:
        made.attempts += [
            attempt(each, 1, 0.0, 0.01, wait=0.1, reason="timeout"),
            attempt(each, 2, 0.2, 0.01, status=200),
        ]
    (found,) = judged(made, tmp_path / "logs.csv").findings
    assert [(each.events, each.seconds < 1_600) for each in found.stretches] == [
        (len(list(made.between(start, start + 1_500))), True) for start in (3_000, 10_000)
    ]
    assert sum(each.calls for each in found.stretches) == found.calls
    assert found.other_events == 0
