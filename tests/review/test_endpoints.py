"""Tests of the endpoints: which URLs are calls of the same one."""

from __future__ import annotations

import random
import re
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.logs import call, write

from otel_connector import review
from otel_connector.review import _load
from otel_connector.review._endpoints import LOCATION, MOST_ENDPOINTS, OTHER, in_steps, path_sql

# GET paths as the documentation of these APIs writes them
PATHS = {
    # https://docs.github.com/rest
    "api.github.com": """/user /users/{login} /users/{login}/repos /orgs/{org}/members /orgs/{org}/repos /rate_limit
        /repos/{owner}/{repo} /repos/{owner}/{repo}/issues /repos/{owner}/{repo}/issues/{number}
        /repos/{owner}/{repo}/issues/{number}/comments /repos/{owner}/{repo}/commits/{sha}
        /repos/{owner}/{repo}/releases/latest /repos/{owner}/{repo}/pulls /gists/{hex} /search/issues""",
    # https://docs.stripe.com/api
    "api.stripe.com": """/v1/charges /v1/charges/{key} /v1/customers /v1/customers/{key} /v1/customers/search
        /v1/customers/{key}/payment_methods /v1/invoices/{key}/lines /v1/balance""",
    # https://www.twilio.com/docs/usage/api
    "api.twilio.com": """/2010-04-01/Accounts/{sid}.json /2010-04-01/Accounts/{sid}/Calls.json
        /2010-04-01/Accounts/{sid}/Calls/{sid}.json /2010-04-01/Accounts/{sid}/AvailablePhoneNumbers""",
    # https://developer.atlassian.com/cloud/trello/rest
    "api.trello.com": "/1/boards/{hex} /1/boards/{hex}/cards /1/cards/{hex}/actions /1/members/me",
    # https://cloud.google.com/storage/docs/json_api, https://cloud.google.com/pubsub/docs/reference/rest
    "googleapis.com": "/storage/v1/b/{slug}/o/{slug} /v1/projects/{number}:getIamPolicy /v1/projects/{number}",
    # https://kubernetes.io/docs/reference/kubernetes-api
    "k8s.example.com": "/api/v1/nodes/{slug} /api/v1/namespaces/{slug}/pods/{slug} /apis/apps/v1/deployments",
    # https://www.mediawiki.org/wiki/API:REST_API, https://frankfurter.dev
    "en.wikipedia.org": "/w/rest.php/v1/page/{title}/history /w/rest.php/v1/page/{title} /w/rest.php/v1/search/page",
    "api.frankfurter.dev": "/v1/latest /v1/{date} /v1/currencies",
    "crates.io": "/api/v1/crates/{slug} /api/v1/crates/{slug}/{version}/download /api/v1/categories /api/v1/summary",
    "shop.example.com": "/items/{uuid}/stock /items/{uuid} /orders/{number}/lines/{number} /health /oauth2/keys",
}
NAMES = (
    *("amber", "birch", "cobalt", "delta", "ember", "falcon", "garnet", "harbor"),
    *("indigo", "jasper", "kelvin", "lumen", "maple", "onyx", "quartz"),
)


def values(seed: int) -> dict[str, Callable[[], str]]:
    """Return functions that make values, by the names in `PATHS`."""
    numbers = random.Random(seed)

    def text(letters: str, length: int) -> str:
        return "".join(numbers.choices(letters, k=length))

    def slug() -> str:
        return "-".join(numbers.sample(NAMES, 2))

    return {
        "date": lambda: f"20{numbers.randrange(10, 27)}-{numbers.randrange(1, 13):02}-{numbers.randrange(1, 29):02}",
        "hex": lambda: text("0123456789abcdef", 24),
        "key": lambda: "ch_" + text("ABCDEFabcdef0123456789", 16),
        "number": lambda: str(numbers.randrange(1, 10 ** numbers.randrange(1, 9))),
        "sha": lambda: text("0123456789abcdef", 40),
        "sid": lambda: "AC" + text("0123456789abcdef", 32),
        "title": lambda: f"{slug().title().replace('-', '_')}_(album)",
        "uuid": lambda: str(uuid.UUID(int=numbers.getrandbits(128))),
        "version": lambda: ".".join(str(numbers.randrange(12)) for _ in range(3)),
        **dict.fromkeys(("login", "org", "owner", "repo", "slug"), slug),
    }


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs.csv"


def endpoints(log: Path, urls: list[str]) -> list[str]:
    with review.load(write(log, (call(n, url=url) for n, url in enumerate(urls)))) as calls:
        return [name for (name,) in calls.rows("SELECT endpoint FROM calls ORDER BY t")]


def test_95_percent_of_the_paths_of_documented_apis_are_grouped_right(log: Path, monkeypatch: Any) -> None:
    """A path is right if all its URLs, and no others, have one endpoint."""
    monkeypatch.setattr("otel_connector.review._endpoints.MOST_ENDPOINTS", 1_000)
    made = values(7)
    paths = [host + path for host, listed in PATHS.items() for path in listed.split()] * 30
    urls = ["https://" + re.sub(r"\{(\w+)\}", lambda found: made[found[1]](), path) for path in paths]
    names, used = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for path, name in zip(paths, endpoints(log, urls), strict=True):
        names[path].add(name)
        used[name].add(path)
    wrong = [path for path, found in names.items() if len(found) > 1 or any(len(used[name]) > 1 for name in found)]
    assert len(wrong) <= 0.05 * len(names), wrong


ENDPOINTS = [
    ("https://h", "h/"),
    ("https://h/", "h/"),
    ("https://h?x=1", "h/"),
    ("https://h/a/", "h/a/"),
    ("https://h//a//7", "h//a//{id}"),
    ("https://h/7/8/9/b?x=/1", "h/7/{id}/{id}/b"),  # the first segment may be a version, as in api.trello.com/1/
    ("https://h/2010-04-01/Accounts/1", "h/2010-04-01/Accounts/{id}"),
    ("https://h/a/2010-04-01", "h/a/{id}"),
    ("https://h/a/2026-11-29T10:00:00Z/b", "h/a/{id}/b"),
    ("https://h/1234", "h/{id}"),
    ("https://h/a/7.json", "h/a/{id}.json"),
    ("https://h/a/7:run", "h/a/{id}:run"),
    ("https://u:p@10.0.0.1:80/v1/123e4567-e89b-12d3-a456-426614174000#/x", "10.0.0.1:80/v1/{id}"),
    ("https://h/deadbeefdeadbeef", "h/{id}"),
    ("https://h/v2/oauth2/sha256/load_15", "h/v2/oauth2/sha256/load_15"),
    ("https://h/a/10.0.0.1", "h/a/{id}"),
    ("https://h/a/user@example.com", "h/a/{id}"),
    ("https://h/a/BqXnxYBINim1YnFF", "h/a/{id}"),
    ("https://h/it's/\u00e9/7", "h/it's/\u00e9/{id}"),
    ("no url", ""),
]


def test_the_endpoint_of_a_url(log: Path) -> None:
    """Each URL has a host of its own, because the endpoint of a URL depends on the others."""
    made = [
        (url.replace("//h", f"//h{number}", 1), re.sub("^h", f"h{number}", endpoint))
        for number, (url, endpoint) in enumerate(ENDPOINTS)
    ]
    assert list(zip((url for url, _ in made), endpoints(log, [url for url, _ in made]), strict=True)) == made


@pytest.mark.parametrize("seed", range(4))
def test_the_short_way_to_the_endpoint_of_a_frequent_form_leads_to_the_same_one(seed: int, log: Path) -> None:
    """`Endpoints.of` knows no such way. A form is frequent here, but its URLs may have any odd segment."""
    chance, made = random.Random(seed), values(seed)
    odd = ["", "7", "7.json", "8:run", "v1", "2.0", "{id}", "-7", "\u00e9", "me", "list", "it's", "a.b", 16 * "d"]

    def segment() -> str:
        return chance.choice(odd) if chance.random() < 0.2 else chance.choice([made["slug"], made["number"]])()

    forms = ("users/{}", "users/{}/posts", "users/me/{}", "1/boards/{}", "{}", "a/{}/b/{}", "list", "w/rest.php/{}", "")
    starts = ("https://h", "http://h", "https://u:p@h", "https://h:8080", "HTTPS://h")
    urls = [
        f"{chance.choices(starts, (20, 5, 1, 5, 1))[0]}/{chance.choice(forms).format(segment(), segment())}"
        + chance.choices(["", "?x=/users/7", "#/users/7", "/", "//"], (10, 5, 1, 1, 1))[0]
        for _ in range(2_000)
    ]
    # All values of a position are sure, or one of them may be a version
    urls += [f"https://n/orders/{made['number']()}{chance.choice(['', '.json', ':run'])}" for _ in range(200)]
    urls += ["https://m/7", *(f"https://m/{number}" for number in range(1_000, 1_100))]
    with review.load(write(log, (call(n, url=url) for n, url in enumerate(urls)))) as calls:
        located = in_steps("SELECT url, endpoint AS found FROM calls", *LOCATION, path_sql())
        rows = in_steps(f"SELECT * RENAME path AS whole FROM ({located})", *calls.endpoints.sql)
        found = calls.rows(f"SELECT url, found, whole, known IS NOT NULL FROM ({rows})")
    assert [row[:2] for row in found if row[1] != calls.endpoints.of(row[2])] == []
    assert sum(known for *_, known in found) > 300


def test_a_frequent_sibling_of_many_values_is_an_endpoint_of_its_own(log: Path) -> None:
    names = [f"{first}{second}" for first in NAMES for second in NAMES]
    urls = [f"https://h/users/{name}" for name in (*names, *["me"] * 100)]
    assert endpoints(log, urls) == ["h/users/{id}"] * len(names) + ["h/users/me"] * 100


def test_the_busiest_of_962_resources_keep_their_names(log: Path) -> None:
    """Calls are unevenly distributed (Zipf): more than 40 resources have many times the calls of most others."""
    resources = [f"{first}{second}{third}" for first in NAMES for second in NAMES for third in NAMES[:5]][:962]
    paths = [
        f"/{name}{'/7' if n % 2 else ''}" for rank, name in enumerate(resources, 1) for n in range(1 + 400 // rank)
    ]
    found = Counter(endpoints(log, [f"https://h{path}" for path in paths]))
    assert [name for name, _ in found.most_common(6)] == [
        *("h/{id}", "h/{id}/{id}"),
        *(f"h/{resources[0]}", f"h/{resources[0]}/{{id}}", f"h/{resources[1]}", f"h/{resources[1]}/{{id}}"),
    ]
    assert (len(found) <= MOST_ENDPOINTS, found[OTHER]) == (True, 0)


def test_siblings_with_the_same_continuations_are_values_though_each_is_frequent(log: Path) -> None:
    urls = [f"https://h/{org}/{page}" for org in NAMES[:6] for page in ("members", "repos", "teams")] * 30
    assert set(endpoints(log, urls)) == {"h/{id}/members", "h/{id}/repos", "h/{id}/teams"}


WORDS = [f"{first}{second}" for first in NAMES for second in NAMES][:200]


@pytest.mark.parametrize(
    ("template", "endpoint"),
    [
        ("/v1/{word}", "/v1/{word}"),
        ("/v1/{word}/{n}", "/v1/{word}/{id}"),
        ("/v1/{word}/{n}/status", "/v1/{word}/{id}/status"),
        ("/endpoint-{number}/x", "/endpoint-{number}/x"),
        ("/{half}/{rest}", "/{half}/{rest}"),
        ("/v1/{half}/{n}/{rest}", "/v1/{half}/{id}/{rest}"),
        ("/v1/{word}/slug-{letters}", "/v1/{word}/{id}"),
    ],
)
def test_one_bad_and_one_slow_endpoint_of_200_have_their_names(template: str, endpoint: str, log: Path) -> None:
    def path(pattern: str, number: int) -> str:
        names = {"word": WORDS[number % 200], "half": NAMES[number % 200 % 15], "rest": NAMES[number % 200 // 15]}
        letters = "".join("abcdefghij"[int(digit)] for digit in str(number))
        return pattern.format(n=number, number=number % 200, letters=letters, id="{id}", **names)

    unlike: dict[int, dict[str, Any]] = {77: {"error": "E: x"}, 133: {"delta_t": 5.0}}
    made = [call(n, url=f"https://h{path(template, n)}", **unlike.get(n % 200, {})) for n in range(5_000)]
    with review.load(write(log, made)) as calls:
        found = calls.rows(
            "SELECT endpoint, success, count(*) FROM calls_compact "
            "WHERE NOT success OR delta_t > 1 GROUP BY ALL ORDER BY success"
        )
        ((names,),) = calls.rows("SELECT count(DISTINCT endpoint) FROM calls_compact")
    assert found == [(f"h{path(endpoint, 77)}", False, 25), (f"h{path(endpoint, 133)}", True, 25)]
    assert names <= MOST_ENDPOINTS


@pytest.mark.parametrize(("failing", "apart"), [(10, True), (11, False)])
def test_values_that_failed_in_an_outage_stay_one_endpoint(failing: int, apart: bool, log: Path) -> None:
    """A few that fail have their names: a page that is gone. Many have a common cause."""
    failed = {"error": "E: x"}
    made = [call(n, url=f"https://h/a/{WORDS[n // 10]}", **(failed if n < 10 * failing else {})) for n in range(2_000)]
    with review.load(write(log, made)) as calls:
        ((names,),) = calls.rows("SELECT count(DISTINCT endpoint) FROM calls_compact")
    assert names == (failing + 1 if apart else 1)


def test_the_most_important_of_many_endpoints_have_a_name(log: Path) -> None:
    """Of 200 endpoints one fails and one is slow; both have few calls."""
    made = [call(n, url=f"https://h{n % 200}.example/x", delta_t=0.01) for n in range(1_000)]
    made += [call(2_000 + n, url="https://bad.example/x", error="E: x") for n in range(3)]
    made += [call(3_000 + n, url="https://slow.example/x", delta_t=30.0) for n in range(3)]
    with review.load(write(log, made)) as calls:
        found = dict(calls.rows("SELECT endpoint, count(*) FROM calls_compact GROUP BY 1"))
    assert len(found) == MOST_ENDPOINTS
    assert found[OTHER] == 5 * (200 - MOST_ENDPOINTS + 3)
    assert found["bad.example/x"] == found["slow.example/x"] == 3


def test_the_endpoints_of_a_large_log_come_from_all_of_its_parts(tmp_path: Path, monkeypatch: Any) -> None:
    """The second half of the calls, in another file, has endpoints of its own."""
    monkeypatch.setattr("otel_connector.review._sources._BLOCK", 400)
    monkeypatch.setattr(_load, "_SAMPLE", 20_000)
    monkeypatch.setattr(_load, "_LARGE", 0)
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    names = [f"{first}-{second}" for first in NAMES for second in NAMES]
    write(first, (call(n, url=f"https://h/early/{name}") for n, name in enumerate(names)))
    write(second, (call(n, url=f"https://h/late/{name}") for n, name in enumerate(names, 1_000)))
    with review.load(first, second) as calls:
        found = calls.rows("SELECT endpoint, count(*) FROM calls_compact GROUP BY 1 ORDER BY 1")
        assert calls.rows("SELECT endpoint, count(*) FROM calls GROUP BY 1 ORDER BY 1") == found
    assert found == [("h/early/{id}", len(names)), ("h/late/{id}", len(names))]


def test_rules_of_endpoints_without_a_name_of_their_own_are_not_applied(log: Path) -> None:
    frequent = [call(n, url=f"https://h{n % 60}.example/list") for n in range(60 * 40)]
    rare = [call(5_000 + n, url=f"https://z.example/x/{a}-x") for n, a in enumerate(NAMES)]
    rare += [call(6_000 + n, url=f"https://z.example/x/{name}") for n, name in enumerate(NAMES)]
    with review.load(write(log, frequent + rare)) as calls:
        found = dict(calls.rows("SELECT endpoint, count(*) FROM calls_compact GROUP BY 1"))
    assert len(found) == MOST_ENDPOINTS
    assert found[OTHER] == 11 * 40 + len(rare)


def test_a_condition_can_use_the_endpoint(log: Path) -> None:
    made = [call(0, url="https://h/a/7"), call(1, url="https://h/a/8"), call(2, url="https://h/b")]
    with review.load(write(log, made), where="endpoint = 'h/a/{id}'") as calls:
        assert len(calls) == 2


@pytest.mark.parametrize("large", [False, True])
def test_two_compared_runs_have_the_same_endpoints(large: bool, tmp_path: Path, monkeypatch: Any) -> None:
    """A position of values has many in one run, and two or one in the other; alone, these would be names there."""
    monkeypatch.setattr(_load, "_LARGE", 0 if large else 2**40)
    users = [f"https://h/users/{first}{second}" for first in NAMES[:8] for second in NAMES[:5]]
    others = [f"https://h/a/{first}-{second}" for first in NAMES for second in NAMES]
    first, second = [*users, *others[:1] * 2], [*users[:2], *others]
    paths = [
        write(tmp_path / f"{name}.csv", (call(n, url=url) for n, url in enumerate(urls)))
        for name, urls in (("before", first), ("after", second))
    ]
    with review.load(paths[0]) as before, review.load(paths[1]) as after:
        assert before.rows("SELECT DISTINCT endpoint FROM calls ORDER BY 1") == [
            ("h/a/amber-amber",),
            ("h/users/{id}",),
        ]
        compared = review.compare(before, after)
        for calls in (before, after):
            found = dict(calls.rows("SELECT endpoint, count(*) FROM calls GROUP BY 1"))
            assert calls.rows("SELECT endpoint, count(*) FROM calls_compact GROUP BY ALL ORDER BY 1") == sorted(
                found.items()
            )
            assert calls.rows("SELECT count(*), count(host) FROM calls_compact") == [(len(calls), len(calls))]
    assert {each.name for each in compared.endpoints.compared} == {"h/a/{id}", "h/users/{id}"}
    assert compared.endpoints.only_before == compared.endpoints.only_after == ()


def test_two_runs_of_the_same_endpoints_are_not_grouped_again(log: Path) -> None:
    with review.load(write(log, (call(n) for n in range(40)))) as before, review.load(log) as after:
        found = before.endpoints
        review.compare(before, after)
        assert before.endpoints is found
