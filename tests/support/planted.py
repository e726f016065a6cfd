"""Writes logs of a night in which something happened, with what a review has to say about it.

Each cause is a function in `CAUSES`: it changes the calls of an ordinary night. Times are seconds since the first call.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from otel_connector import CallRecord
from otel_connector._csv._format import ATTEMPTS, encode_attempt
from otel_connector._record import AttemptRecord
from support.logs import START, rows, write

CALLS, SECONDS = 2_000, 16_800
"""The calls of a night, and its length: 4 h 40 min."""

HOSTS = ("api.example.com", "shop.example.com", "cdn.example.com", "auth.example.com")
SECTIONS = [
    "orders",
    "refunds",
    "users",
    "carts",
    "prices",
    "stock",
    "offers",
    "labels",
    "routes",
    "parcels",
    "taxes",
    "ledgers",
    "audits",
    "quotas",
    "tokens",
    "hooks",
    "images",
    "themes",
    "pages",
    "drafts",
]
VERBS = ["list", "count", "find", "match", "merge", "split", "check", "close", "renew", "print"]
REFUSED = "ConnectFailed: Cannot connect to host {}:443 ssl:default [Connect call failed ('10.0.0.7', 443)]"
UNKNOWN_HOST = "ConnectFailed: Cannot connect to host {}:443 ssl:default [Name or service not known]"
EXPIRED = (
    "CertificateRejected: Cannot connect to host {}:443 ssl:True [SSLCertVerificationError: (1, '[SSL: "
    "CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired (_ssl.c:1006)')]"
)
NOT_JSON = "DecodeFailed: JSONDecodeError: Expecting value: line 1 column 1 (char 0)"
CUT = "BodyTruncated: the body ended after 1400 of 9120 bytes"
BUSY = "HTTPStatusError: 503 Service Unavailable"


@dataclass
class Night:
    """The calls of a log, and its attempts.

    Attributes:
        calls: The fields of each call, in the order of their start.
        attempts: The rows of the attempts log.
        order: The order of the rows in the file; None for that of the ends of the calls.
        tail: What follows the last row.
        urls: The URLs that were to be fetched; None for those of the calls.
    """

    calls: list[dict[str, Any]]
    attempts: list[AttemptRecord] = field(default_factory=list[AttemptRecord])
    order: list[int] | None = None
    tail: bytes = b""
    urls: list[str] | None = None

    def between(self, start: float, end: float, host: str = "") -> Iterator[dict[str, Any]]:
        """Yield the calls that started in a period, to a host."""
        return (each for each in self.calls if start <= each["t"] - START < end and host in each["url"])

    def fail(self, start: float, end: float, host: str, error: str, *, share: float = 1.0, **fields: Any) -> None:
        """Let a share of the calls of a period fail."""
        chance = random.Random(f"{start}{host}")
        for each in self.between(start, end, host):
            if chance.random() < share:
                each |= {
                    "success": False,
                    "error": error.format(each["url"].split("/")[2]),
                    "response_code": None,
                    "response_size": 0,
                    **fields,
                }

    def write(self, path: Path) -> Path:
        """Write the log, and the attempts log if there are attempts."""
        made = [CallRecord(**each) for each in self.calls]
        order = self.order or sorted(range(len(made)), key=lambda number: made[number].t + made[number].delta_t)
        write(path, [made[number] for number in order])
        with path.open("ab") as file:
            file.write(self.tail)
        if self.attempts:
            beside = path.with_name(f"{path.stem}.attempts.csv")
            beside.write_bytes(ATTEMPTS.header + b"".join(map(encode_attempt, self.attempts)))
        return path


def night(seed: int = 1, calls: int = CALLS, hosts: tuple[str, ...] = HOSTS, failing: float = 0.004) -> Night:
    """Return an ordinary night: durations around 80 ms, some failures, all of it even over time and hosts."""
    return Night([each.copy() for each in _calls_of_a_night(seed, calls, hosts, failing)])


@cache
def _calls_of_a_night(seed: int, calls: int, hosts: tuple[str, ...], failing: float) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    made = list[dict[str, Any]]()
    for number in range(calls):
        failed = chance.random() < failing
        host = chance.choice(hosts)
        made.append(
            {
                "call_id": f"{seed * 10**9 + number + 1:032x}-{number + 1:016x}",
                "project": "Prices",
                "t": round(START + (number + chance.random()) * SECONDS / calls, 6),
                "delta_t": round(0.08 * math.exp(0.5 * chance.gauss(0, 1)), 6),
                "url": f"https://{host}/v1/{'items' if number % 2 else 'users'}/{number}",
                "redirect_url": "",
                "response_size": 0 if failed else int(2_000 * math.exp(0.6 * chance.gauss(0, 1))),
                "response_code": 503 if failed else 200,
                "success": not failed,
                "error": BUSY if failed else "",
            }
        )
    return made


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A cause and what the first screen names.

    Attributes:
        kind: The kind of the first finding.
        says: Texts of the verdict.
        start: When the finding starts; None if it is about the whole run.
        end: When it ends.
        slack: Seconds by which its times may differ.
        plant: Changes a night.
    """

    kind: str
    says: tuple[str, ...]
    start: float | None = None
    end: float = SECONDS
    slack: float = 120.0
    plant: Callable[[Night], None]


CAUSES: dict[str, Cause] = {}
Plant = Callable[[Night], None]


def cause(kind: str, *says: str, **expected: float) -> Callable[[Plant], Plant]:
    """Add a cause to `CAUSES`, by the words of the name of its function."""

    def add(plant: Plant) -> Plant:
        CAUSES[plant.__name__.replace("_", " ")] = Cause(kind=kind, says=says, plant=plant, **expected)
        return plant

    return add


def slower(made: Iterator[dict[str, Any]], factor: float) -> None:
    for each in made:
        each["delta_t"] = round(each["delta_t"] * factor, 6)


@cause("slow", "Slow: ", "calls to shop.example.com", "against", "from the first call to the last")
def slow_host(made: Night) -> None:
    slower(made.between(0, SECONDS, HOSTS[1]), 30)


@cause("slow", "Slow: ", "calls to api.example.com/v1/users/{id} take", "the other 7 endpoints")
def slow_endpoint(made: Night) -> None:
    slower((each for each in made.between(0, SECONDS, HOSTS[0]) if "/users/" in each["url"]), 60)


@cause(
    "failures",
    "Failed: ",
    "calls to api.example.com/v1/refunds/count-refunds failed",
    "from the first call to the last",
)
def one_bad_endpoint_of_200(made: Night) -> None:
    for number, each in enumerate(made.calls):
        section, verb = SECTIONS[number % 20], VERBS[number // 20 % 10]
        each["url"] = f"https://{HOSTS[0]}/v1/{section}/{verb}-{section}?page={number // 200}"
    made.fail(0, SECONDS, "/count-refunds?", "HTTPStatusError: 500 Internal Server Error", response_code=500)


@cause("failures", "Outage: ", "all hosts", "ConnectFailed", start=0, end=1_500)
def outage_at_the_start(made: Night) -> None:
    made.fail(0, 1_500, "", REFUSED)


@cause("failures", "Outage: ", "calls to api.example.com failed", "ConnectFailed", "Elsewhere", start=4_360, end=5_465)
def outage_in_the_middle(made: Night) -> None:
    made.fail(4_360, 5_465, HOSTS[0], REFUSED)


@cause("failures", "Outage: ", "503", "to the end", start=9_000)
def outage_at_the_end(made: Night) -> None:
    made.fail(9_000, SECONDS, "", BUSY, response_code=503)


@cause("failures", "Outage: 6 times: ", "cdn.example.com", "ConnectFailed", start=3_000, end=13_600)
def flapping(made: Night) -> None:
    for start in range(3_000, 14_000, 2_000):
        made.fail(start, start + 600, HOSTS[2], REFUSED)


@cause("waits", "Waiting: ", "api.example.com asked for pauses of 58.0 s", "429", "--rate", start=0)
def holds_after_429(made: Night) -> None:
    for each in made.between(0, SECONDS, HOSTS[0]):
        if each["success"]:
            half = each["delta_t"] / 2
            each["delta_t"] = round(2 * half + 58.0, 6)
            made.attempts += [
                attempt(each, 1, 0.0, half, wait=58.0, reason="status_429", status=429),
                attempt(each, 2, half + 58.0, half, status=200),
            ]


@cause(
    "retries",
    "Retries: ",
    "auth.example.com",
    "were attempted again",
    "status_503",
    "Next: one of the retried calls: call_id ",
)
def retries(made: Night) -> None:
    for each in made.between(0, SECONDS, HOSTS[3]):
        if each["success"] and int(each["call_id"][-3:], 16) % 3:
            each["delta_t"] = round(each["delta_t"] + 0.5, 6)
            made.attempts += [
                attempt(each, 1, 0.0, each["delta_t"] / 2 - 0.25, wait=0.5, reason="status_503", status=503),
                attempt(each, 2, each["delta_t"] / 2 + 0.25, each["delta_t"] / 2 - 0.25, status=200),
            ]


def attempt(
    made: dict[str, Any],
    number: int,
    after: float,
    seconds: float,
    *,
    wait: float | None = None,
    reason: str = "",
    status: int | None = None,
) -> AttemptRecord:
    return AttemptRecord(
        call_id=made["call_id"],
        number=number,
        t=round(made["t"] + after, 6),
        duration=round(seconds, 6),
        queue=0.0,
        wait=wait,
        reason=reason,
        status=status,
        error_type=str(status) if reason else "",
        retry_after=wait if status == 429 else None,
    )


@cause("failures", "Failed: ", "DecodeFailed", "JSONDecodeError", start=6_000)
def html_instead_of_json(made: Night) -> None:
    made.fail(6_000, SECONDS, HOSTS[1], NOT_JSON, response_code=200, response_size=3_741)


@cause("same size", "3,741 bytes", "status 200", "call_id", start=6_000)
def html_with_status_200(made: Night) -> None:
    for each in made.between(6_000, SECONDS, HOSTS[1]):
        each |= {"response_size": 3_741, "success": True, "error": "", "response_code": 200}


@cause("failures", "Failed: ", "BodyTruncated", "the body ended after", start=2_000, end=9_000, slack=300.0)
def truncation(made: Night) -> None:
    made.fail(2_000, 9_000, HOSTS[2], CUT, share=0.4, response_code=200, response_size=1_400)


@cause("larger bodies", "Larger bodies: ", "quarter")
def growing_bodies(made: Night) -> None:
    for each in made.between(0, SECONDS):
        factor = math.exp(3 * (each["t"] - START) / SECONDS)
        each["response_size"] = int(each["response_size"] * factor)
        each["delta_t"] = round(each["delta_t"] * factor**0.5, 6)


@cause("failures", "Outage: ", "CertificateRejected", "certificate has expired", "auth.example.com", start=10_000)
def certificate(made: Night) -> None:
    made.fail(10_000, SECONDS, HOSTS[3], EXPIRED)


@cause("failures", "Outage: ", "Name or service not known", "shop.example.com", start=12_000, end=13_000)
def dns(made: Night) -> None:
    made.fail(12_000, 13_000, HOSTS[1], UNKNOWN_HOST)


@cause("clock", "Clock: at 16:26:", "set back by 59 min 5")
def clock_set_back(made: Night) -> None:
    made.order = sorted(range(len(made.calls)), key=lambda number: made.calls[number]["t"])
    for each in made.between(8_000, SECONDS):
        each["t"] = round(each["t"] - 3_600, 6)


@cause("slower", "Slower: ", "all hosts", start=8_400, slack=600.0)
def a_deploy_at_noon(made: Night) -> None:
    slower(made.between(8_400, SECONDS), 1.3)


@cause("tail", "Tail: ", "cdn.example.com", "p99", "from the first call to the last")
def a_tail_on_one_host(made: Night) -> None:
    for each in made.between(0, SECONDS, HOSTS[2]):
        if int(each["call_id"][-3:], 16) % 16 == 0:
            each["delta_t"] = round(each["delta_t"] * 90, 6)


@cause("slower", "Slower: ", start=0, end=600)
def slow_first_calls(made: Night) -> None:
    slower(made.between(0, 600), 20)


@cause("stopped", "Stopped: ", "1,010 of 2,000 URLs have no row", "torn row")
def a_job_that_stopped(made: Night) -> None:
    made.urls = [each["url"] for each in made.calls]
    made.tail = rows(CallRecord(**made.calls[990]))[:60]
    del made.calls[990:]


@cause("failures", "Outage: ", "api.example.com", "Slow: ", "shop.example.com", start=4_000, end=6_000)
def two_causes(made: Night) -> None:
    made.fail(4_000, 6_000, HOSTS[0], REFUSED)
    slower(made.between(0, SECONDS, HOSTS[1]), 30)
