"""Tests of ``otel-connector fetch --header @FILE``, and that no secret of a header is printed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import command_line, processes
from support.command_line import run_here, run_with_input

from otel_connector.testing import FaultServer, json_body


@pytest.fixture
def api() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.script("/ok", json_body(1))
        yield server


# As `curl -H @FILE` sends them; there, too, a blank line is skipped. Lines that start with # are comments, as in a list
FILES = {
    "one header": b"X-A: 1",
    "line ends of Windows": b"X-A: 1\r\nX-B: 2\r\n",
    "blank lines and comments": b"# the key\n\nX-A: 1\n  \n#X-C: 3\nX-B:2\n",
    "a byte order mark": b"\xef\xbb\xbfX-A: 1\n",
    "white space around": b"  X-A :  1  \n\tX-B: 2",
    "a value with a colon and an @": b"X-A: a:@b\n",
    "a character that is not ASCII": "X-A: \u00e9\n".encode(),
    "an empty value": b"X-A:\n",
}
SENT = {
    "a value with a colon and an @": "a:@b",
    "a character that is not ASCII": "\u00e9".encode().decode("latin-1"),
    "an empty value": "",
}


@pytest.mark.parametrize("stdin", [False, True], ids=["@FILE", "@-"])
@pytest.mark.parametrize("name", FILES)
def test_headers_are_read_from_a_file(name: str, stdin: bool, api: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "headers").write_bytes(FILES[name])
    if stdin:
        assert run_with_input(FILES[name], tmp_path, "fetch", api.url("/ok"), "-H", "@-").code == 0
    else:
        assert run_here(tmp_path, "fetch", api.url("/ok"), "-H@headers", "--header", "X-Other: 3").code == 0
    (request,) = api.requests
    sent = {key: value for key, value in request.headers.items() if key.startswith(("X-", "#"))}
    expected = {"X-A": SENT.get(name, "1")} | ({"X-B": "2"} if b"X-B" in FILES[name] else {})
    assert sent == (expected if stdin else {**expected, "X-Other": "3"})


BAD: dict[str, tuple[bytes, str]] = {
    "only the secret": (b"# key\nhush", "--header @headers: line 2 must be 'NAME: VALUE' or @FILE"),
    "the name of no header": (
        b"Authorization hush: x",
        "--header @headers: line 1 must start with the name of a header",
    ),
    "a control character": (b"X-A: hu\x0bsh", "--header @headers: line 1 'X-A' must be one line"),
    "Latin-1": (b"X-A: hush\xe9", "--header @headers: the file is not in UTF-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_message_about_a_file_of_headers_shows_no_value(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    (tmp_path / "headers").write_bytes(content)
    code, out, error = run_here(tmp_path, "fetch", "http://127.0.0.1:9/", "-H", "@headers")
    assert (code, out, "hush" in error) == (2, "", False)
    assert error.startswith(f"otel-connector fetch: {message}")


@pytest.mark.parametrize(
    "value", ["hush", "Authorization=hush", "Bearer hush: x", ": hush", "X-A: hush\n"[:-1] + "\x07"]
)
def test_a_message_about_a_header_shows_no_value(value: str, tmp_path: Path) -> None:
    code, out, error = run_here(tmp_path, "fetch", "http://127.0.0.1:9/", "-H", "X-B: 1", "-H", value)
    assert (code, out, "hush" in error) == (2, "", False)
    assert error.startswith("otel-connector fetch: --header number 2 ")


def test_urls_and_headers_cannot_both_be_standard_input(tmp_path: Path) -> None:
    assert run_here(tmp_path, "fetch", "-", "-H", "@-") == (
        2,
        "",
        "otel-connector fetch: --header @- and URLS - cannot both be standard input\n",
    )


def test_a_closed_standard_input_is_reported(tmp_path: Path) -> None:
    assert run_with_input(None, tmp_path, "fetch", "http://127.0.0.1:9/", "-H", "@-") == (
        2,
        "",
        "otel-connector fetch: --header: -: standard input is closed\n",
    )


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_the_command_that_continues_names_the_file_and_not_its_headers(api: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "headers").write_text("Authorization: Bearer hush\n")
    arguments = (api.url("/ok?n={}"), "--range", "1:1000000", "-qH@headers")
    with command_line.start(tmp_path, "fetch", *arguments, stdout=subprocess.PIPE) as process:
        log = tmp_path / "logs.csv"
        processes.wait_until(lambda: log.exists() and log.read_bytes().count(b"\n") > 20, process)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert f"Continue with: otel-connector fetch '{arguments[0]}' --range 1:1000000 --header @headers --quiet" in error
    assert "hush" not in out + error
    assert "REDACTED" not in error, "nothing has to be replaced"
    assert {request.headers["Authorization"] for request in api.requests} == {"Bearer hush"}
