"""A log identifies a URL without its secrets. Two URLs of a list that differ only in these are rejected, never skipped.

So a URL with a new signature is recognized (`resume`), and no URL is left out silently.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from support.command_line import Finished, run_here, run_with_input
from support.logs import Log, call, rows
from typer import Context

from otel_connector import DEFAULT_REDACTED_PARAMS, AsyncConnector, Chunk, fetch_chunk
from otel_connector._csv._format import HEADER
from otel_connector._redact import Redactor
from otel_connector.cli import app
from otel_connector.cli._continue_command import continue_command
from otel_connector.testing import FaultServer, ok

NESTED = quote("http://a.example/p?key=", safe="") + "{}"


@pytest.fixture
def api() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.script("/f", ok)
        yield server


def connector(log: Log | None, **options: Any) -> AsyncConnector:
    return AsyncConnector(None if log is None else log.path, n_tries=1, **options)


async def fetched(subject: AsyncConnector, urls: Any, **options: Any) -> list[str]:
    async with aiohttp.ClientSession() as session:
        outcomes = subject.get_many(session, urls, "P", ordered=True, max_concurrency=1, resume=True, **options)
        return [str(outcome.url) async for outcome in outcomes]


# Each differs only in a secret
SAME = {
    "parameter": (["/f?key=1", "/f?key=2"], "'key' differs, and is redacted", ["key"]),
    "another spelling": (["/f?Api-Key=1", "/f?Api-Key=2"], "'api_key' differs, and is redacted", ["api_key"]),
    "nested": ([f"/f?u={NESTED.format(1)}", f"/f?u={NESTED.format(2)}"], "'key' differs, and is redacted", ["key"]),
    "two": (["/f?key=1&sig=1", "/f?key=2&sig=2"], "'key' and 'sig' differ, and are redacted", ["key", "sig"]),
    "one of two": (["/f?key=1&sig=1", "/f?key=1&sig=2"], "'sig' differs, and is redacted", ["sig"]),
    "word": (["/f?key=1", "/f?key=REDACTED"], "'key' differs, and is redacted", ["key"]),
    "word first": (["/f?key=REDACTED", "/f?key=1"], "'key' differs, and is redacted", ["key"]),
    "userinfo": (["u:1@/f", "u:2@/f"], "the user or the password before the host differs, and is redacted", []),
    "far apart": (["/f?key=1", "/f?n=1", "/f?n=2", "/f?key=2"], "'key' differs, and is redacted", ["key"]),
}


def urls_of(api: FaultServer, paths: list[str]) -> list[str]:
    base = api.url("/")[:-1]
    return [base + path if path[0] == "/" else base.replace("//", f"//{path[:-2]}") + path[-2:] for path in paths]


@pytest.mark.parametrize("case", SAME.values(), ids=SAME)
async def test_such_a_list_is_rejected_before_anything_is_requested(
    case: tuple[list[str], str, list[str]], api: FaultServer, log: Log
) -> None:
    paths, what, names = case
    urls = urls_of(api, paths)
    for given in (urls, tuple(urls), dict.fromkeys(urls).keys()):
        with pytest.raises(ValueError, match=r"^urls: two different URLs are http://.*REDACTED") as caught:
            await fetched(connector(log), given)
        assert what in str(caught.value)
        shown = ", ".join(map(repr, names))
        advice = f"; if no secret, pass redact_params=DEFAULT_REDACTED_PARAMS - {{{shown}}}"
        assert (advice in str(caught.value)) == bool(names)
    assert api.requests == []
    if names:
        subject = connector(log, redact_params=DEFAULT_REDACTED_PARAMS - set(names))
        assert await fetched(subject, urls) == urls


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_iterator_is_stopped_at_the_second_of_the_urls(asynchronous: bool, api: FaultServer, log: Log) -> None:
    urls = [api.url("/f", key=1), api.url("/f", n=1), api.url("/f", key=2), api.url("/f", n=2)]

    async def one_by_one() -> AsyncIterator[str]:
        for url in urls:
            yield url

    with pytest.raises(ValueError, match="'key' differs"):
        await fetched(connector(log), one_by_one() if asynchronous else iter(urls))
    assert {request.query for request in api.requests} <= {"key=1", "n=1"}


async def test_what_is_the_same_url_or_differs_in_the_open_is_accepted(api: FaultServer, log: Log) -> None:
    """Also a repeated URL, in any spelling, and a token that the session or `params` adds to all of them."""
    urls = [api.url("/f?key=1&n=1"), api.url("/f?key=1&n=1"), api.url("/f?key=1&n=1").replace("http", "HTTP")]
    urls += [api.url("/f?key=2&n=2"), api.url("/f?token=&n=3"), "not a url?key=1", "not a url?key=2"]
    assert len(await fetched(connector(log), urls)) == len(urls)
    assert await fetched(connector(log), urls) == urls[-2:]
    assert len(await fetched(connector(log), [api.url("/f"), api.url("/f", n=9)], params={"token": "t"})) == 2
    # Too long for a row: it is never taken for completed
    long = [api.url("/f?n=" + "a" * 9_000 + f"&key={key}") for key in (1, 2)]
    assert len(await fetched(connector(log), long)) == 2


async def test_a_url_with_a_new_signature_is_recognized(api: FaultServer, log: Log) -> None:
    assert len(await fetched(connector(log), [api.url("/f?n=1&sig=old"), api.url("/f?n=2&sig=old")])) == 2
    new = [api.url("/f?n=1&sig=new"), api.url("/f?n=2&sig=new"), api.url("/f?n=3&sig=new")]
    assert await fetched(connector(log), new) == new[2:]


async def test_without_resume_the_outcomes_distinguish_the_urls(api: FaultServer, log: Log) -> None:
    async with aiohttp.ClientSession() as session:
        urls = [api.url("/f", key=1), api.url("/f", key=2)]
        assert len([outcome async for outcome in connector(log).get_many(session, urls, "P")]) == 2


async def test_urls_of_an_older_log_that_only_redaction_makes_equal_are_not_known(api: FaultServer, log: Log) -> None:
    """``key`` was no secret in the older run: another value is another resource, and is requested."""
    older = connector(log, redact_params=["sig"])
    assert len(await fetched(older, [api.url("/f?key=1&sig=a"), api.url("/f?key=2&sig=a"), api.url("/f?n=1")])) == 3
    assert await fetched(connector(log), [api.url("/f?key=9&sig=b"), api.url("/f?n=1")]) == [api.url("/f?key=9&sig=b")]
    # Its row has the redacted form, by which it is recognized now
    assert await fetched(connector(log), [api.url("/f?key=9&sig=c")]) == []


async def test_a_url_of_an_older_log_is_known_by_its_redacted_form(api: FaultServer, log: Log) -> None:
    older, url, long = connector(log, redact_params=["sig"]), api.url("/f?key=1"), api.url("/f?key=1&n=" + "a" * 9_000)
    log.path.write_bytes(HEADER + rows(*(call(number, url=url) for number in (1, 2))))
    outcomes = AsyncConnector(log.path).get_many
    async with aiohttp.ClientSession() as session:
        run = outcomes(session, [url], "P", resume=True)
        assert [outcome async for outcome in run] == []
        assert run.resumed is not None
        assert run.resumed.done == 1
    await fetched(older, [long])  # it is cut in the log, so its end is unknown
    assert await fetched(connector(log), [long]) == [long]


async def test_rows_of_an_older_log_are_redacted_as_now_before_they_are_compared(api: FaultServer, log: Log) -> None:
    """A URL that is unknown after that is requested again, never left out."""
    older = [
        api.url("/f?pwd=old&n=1"),  # pwd was not redacted then
        api.url("/f?u=REDACTED"),  # all of u was redacted then
        api.url("/f?key=REDACTED"),
        api.url("/f?n=4"),
        api.url("/f?a=b:c@d&n=5,%226%22"),
    ]
    log.path.write_bytes(HEADER + rows(*(call(number, url=url) for number, url in enumerate(older))))
    nested = f"/f?u={NESTED.format(1)}"
    now = [api.url("/f?pwd=new&n=1"), api.url(nested), api.url("/f?key=7"), api.url("/f?n=4"), older[4]]
    assert await fetched(connector(log), now) == [now[1]]
    # A URL that was redacted then and is not now is unknown
    assert await fetched(connector(log, redact_params=["sig"]), [now[2]]) == [now[2]]


async def test_a_chunk_with_such_urls_is_rejected(api: FaultServer, tmp_path: Path) -> None:
    urls = [api.url("/f", key=1), api.url("/f", key=2)]
    chunk: dict[str, Any] = {
        "urls": urls,
        "project": "P",
        "log": str(tmp_path / "l.csv"),
        "results": str(tmp_path / "r.jsonl"),
    }
    with pytest.raises(ValueError, match="'key' differs"):
        await fetch_chunk(Chunk(**chunk))
    assert api.requests == []
    report = await fetch_chunk(Chunk(**chunk, connector={"redact_params": DEFAULT_REDACTED_PARAMS - {"key"}}))
    assert report.succeeded == 2


# The command line


def fetch(folder: Path, *arguments: str) -> Finished:
    return run_here(folder, "fetch", *arguments)


@pytest.mark.parametrize("template", ["/f?key={}", "/f?a=1&token={:05}&b=2", f"/f?u={NESTED}", "/f;jsessionid={}/x"])
def test_a_template_with_its_number_in_a_secret_is_rejected(template: str, api: FaultServer, tmp_path: Path) -> None:
    code, out, error = fetch(tmp_path, api.url("/")[:-1] + template, "--range", "1:60", "--out", "r.jsonl")
    assert (code, out) == (2, "")
    assert "\notel-connector fetch: two different URLs are http://127.0.0.1:" in error
    assert " after redaction, so the log cannot tell them apart: '" in error
    assert api.requests == []


def test_a_name_is_declared_as_no_secret(api: FaultServer, tmp_path: Path) -> None:
    template = api.url("/f?key={}")
    _, _, error = fetch(tmp_path, template, "--range", "1:60")
    assert error.endswith("'key' differs, and is redacted; if no secret, run the command with --no-redact key\n")
    assert fetch(tmp_path, template, "--range", "1:60", "--no-redact", "Key", "--out", "r.jsonl")[0] == 0
    assert len({request.query for request in api.requests}) == len(api.requests) == 60
    assert len(set((tmp_path / "r.jsonl").read_text().splitlines())) == 60
    assert f'"url":"{api.url("/f?key=60")}"' in (tmp_path / "r.jsonl").read_text().replace(" ", "")
    code, out, _ = fetch(tmp_path, template, "--range", "1:61", "--no-redact", "key", "--out", "r.jsonl", "--resume")
    assert (code, "1 ok, 0 failed, 0 retries, 60 skipped" in out) == (0, True)


def test_a_name_is_declared_as_a_secret(api: FaultServer, tmp_path: Path) -> None:
    assert fetch(tmp_path, api.url("/f?mine=hush"), "--redact", "mine", "--out", "r.jsonl")[0] == 0
    assert "hush" not in (tmp_path / "logs.csv").read_text() + (tmp_path / "r.jsonl").read_text()
    _, _, error = fetch(tmp_path, api.url("/f?mine={}"), "--range", "1:2", "--redact", "mine")
    assert error.endswith("'mine' differs, and is redacted; if no secret, run the command without --redact mine\n")
    code, _, error = fetch(tmp_path, api.url("/f"), "--no-redact", "mine")
    assert (code, error) == (
        2,
        "otel-connector fetch: --no-redact 'mine' is not a parameter that is redacted by default\n",
    )


def test_a_list_in_a_file_is_checked_before_anything_is_requested(api: FaultServer, tmp_path: Path) -> None:
    urls = [api.url("/f", n=number) for number in range(3_000)]
    (tmp_path / "urls").write_text("\n".join([api.url("/f", key=1), *urls, api.url("/f", key=2)]))
    code, _, error = fetch(tmp_path, "urls")
    assert (code, "'key' differs" in error) == (2, True)
    assert api.requests == []
    (tmp_path / "urls").write_text("\n".join([api.url("/f?key=1&n=1"), api.url("/f?key=2&n=2")] * 2))
    assert fetch(tmp_path, "urls", "--out", "r.jsonl")[0] == 0


def test_a_list_in_a_pipe_is_stopped_at_the_second_of_the_urls(api: FaultServer, tmp_path: Path) -> None:
    urls = f"{api.url('/f', key=1)}\n{api.url('/f', key=2)}\n".encode()
    code, _, error = run_with_input(urls, tmp_path, "fetch", "-")
    assert (code, "'key' differs, and is redacted" in error) == (2, True)
    assert {request.query for request in api.requests} <= {"key=1"}


# The command that continues


def parsed(*arguments: str) -> Context:
    """Return the context of ``fetch`` with these arguments, without a run."""
    from typer.main import get_command

    command: Any = get_command(app)
    context: Context = command.commands["fetch"].make_context("fetch", list(arguments))
    return context


EVERY_OPTION = [
    *("https://u:hush@a.example/f?n={:05}&token=hush", "--range=1:9:2", "--project", "a 'b' $c", "--log=-l.csv"),
    *("--out", "r\n\x1b[2J\udcff.jsonl", "--concurrency=3", "--rate", "2.5", "--per-host=2", "--tries", "4"),
    *("--timeout", "1.5", "--deadline=60", "--retry-status", "404", "--retry-status=418"),
    *(
        "-qH",
        "Authorization: Bearer hush",
        "--header=X-Key:hush",
        "-H@the headers",
        "--header",
        "@-",
        "--resume-from=a.csv",
        "--resume-from",
        "b c.csv",
    ),
    *(
        "--keep-cookies",
        "--dedupe",
        "--redact",
        "mine",
        "--no-redact=key",
        "--fail-if",
        "failed > 3 or error_rate > 1%",
    ),
]


def test_the_command_that_continues_has_every_option_and_is_read_back_by_a_shell() -> None:
    command = continue_command(parsed(*EVERY_OPTION), Redactor())
    assert "hush" not in command
    assert command.isprintable()
    words = (
        subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True, timeout=30)
        .stdout.decode(errors="surrogateescape")
        .split("\0")[:-1]
    )
    assert words[:2] == ["otel-connector", "fetch"]
    assert "https://REDACTED:REDACTED@a.example/f?n={:05}&token=REDACTED" in words
    given, again = parsed(*EVERY_OPTION).params, parsed(*words[2:]).params
    given |= {"resume": True, "header": ["Authorization: REDACTED", "X-Key: REDACTED", "@the headers", "@-"]}
    given["source"] = "https://REDACTED:REDACTED@a.example/f?n={:05}&token=REDACTED"
    assert again == given


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["https://h/?key={}", "--range", "1:1"], "'https://h/?key={}' --range 1:1"),
        (["https://h/?key=a{}b", "--range", "1:1"], "'https://h/?key=REDACTED{}REDACTED' --range 1:1"),
        (["https://h/?key={:05}&b={{", "--range", "1:1"], "'https://h/?key={:05}&b={{' --range 1:1"),
        (["https://h/?token=//u:p@{}", "--range", "1:1"], "'https://h/?token=REDACTED{}' --range 1:1"),
        (["http://h:{}/?a", "--range", "80:81"], "'http://h:{}/?a' --range 80:81"),
        (["http://u@[h/{}", "--range", "80:81"], "'REDACTED{}' --range 80:81"),
        (["https://h/?key=1"], "'https://h/?key=REDACTED'"),
        (["HTTPS://u:p@h/"], "HTTPS://REDACTED:REDACTED@h/"),
        (["a=b@c.txt"], "a=b@c.txt"),
        (["-"], "-"),
        (["é.txt", "--project", "é"], r"$'\xc3\xa9.txt' --project $'\xc3\xa9'"),
        (["it's\t\\.txt"], r"$'it\x27s\x09\x5c.txt'"),
    ],
)
def test_the_command_that_continues_keeps_the_placeholder_and_redacts_urls(arguments: list[str], shown: str) -> None:
    command = continue_command(parsed(*arguments), Redactor())
    assert command == f"otel-connector fetch {shown} --resume"
    assert shlex.split(command)[:2] == ["otel-connector", "fetch"]


def test_a_file_that_looks_like_an_option_follows_the_options() -> None:
    assert (
        continue_command(parsed("--dedupe", "--", "-x"), Redactor()) == "otel-connector fetch --dedupe --resume -- -x"
    )
