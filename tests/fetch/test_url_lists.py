"""Tests of the lists of ``otel-connector fetch``: which lines are URLs, which URLs are the same, lists that change."""

from __future__ import annotations

import asyncio
import bz2
import codecs
import csv
import gzip
import lzma
import os
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote

import brotli
import pytest
from support import command_line, processes
from support.command_line import run_here, run_with_input

from otel_connector import AsyncConnector
from otel_connector._fetch._fetch import Fetch, FetchOptions
from otel_connector._fetch._url_lists import UrlLines
from otel_connector.testing import FaultServer, hold, json_body

zstd: Any = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


@pytest.fixture
def api() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.script("/ok", json_body(1))
        yield server


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# A list that changes while it is read

PADDING = f"# {'x' * 30_000}\n"  # five URLs have three blocks
URLS = 12


def rewritten(path: Path, text: str) -> None:
    with path.open("r+") as file:
        file.write(text)
        file.truncate()


def appended(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def replaced(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


# What happens to the list after it was counted; whether the exit code is 0; the problem; whether all URLs are fetched
CHANGES: dict[str, tuple[Callable[[Path, str], None], int, str, bool]] = {
    "emptied (> urls)": (lambda path, _: rewritten(path, ""), 2, "was changed", False),
    "cut within a line": (lambda path, _: os.truncate(path, path.stat().st_size - 31_010), 2, "was changed", False),
    "cut after a line": (lambda path, text: rewritten(path, text[: text.rindex("# ")]), 2, "was changed", False),
    "rewritten with other URLs": (
        lambda path, text: rewritten(path, text.replace("n=", "m=")), 2, "was changed", False
    ),
    "rewritten with longer lines": (
        lambda path, text: rewritten(path, text.replace("?", "?z=1&")), 2, "was changed", False
    ),
    "rewritten in reverse (sort -o)": (
        lambda path, text: rewritten(path, "".join(text.splitlines(keepends=True)[::-1])), 2, "was changed", False
    ),
    "appended to": (appended, 2, "has grown", True),
    "rewritten with the same URLs": (rewritten, 0, "", True),
    "removed; the open file stays (POSIX unlink)": (lambda path, _: path.unlink(), 0, "", True),
    "replaced by a rename; the open file stays (POSIX rename)": (replaced, 0, "", True),
}  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="an open file can be replaced")
@pytest.mark.parametrize("stdin", [False, True], ids=["file", "stdin"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_list_that_changes_is_reported_and_no_cut_line_is_fetched(
    name: str, stdin: bool, api: FaultServer, tmp_path: Path
) -> None:
    change, code, problem, complete = CHANGES[name]
    urls, held, path = [api.url("/ok", n=number) for number in range(URLS)], hold(), tmp_path / "urls"
    api.script("/ok", [held.step, *[json_body(1)] * URLS])
    text = "".join(f"{url}\n{PADDING}" for url in urls)
    path.write_text(text)
    listed = "-" if stdin else "urls"

    def change_list() -> None:
        held.arrived.wait(30)
        change(path, text)
        held.release()

    with ThreadPoolExecutor(1) as thread, path.open() as file:
        changed = thread.submit(change_list)
        ended, out, error = run_with_input(file, tmp_path, "fetch", listed, "--concurrency", "1")
        changed.result()
    assert ended == code, error
    assert f"{URLS} URLs, up to 1 in flight" in error
    assert bool(problem) == (f"otel-connector fetch: {listed} {problem}" in error)
    requested = [f"http://{request.headers['Host']}{request.path}?{request.query}" for request in api.requests]
    assert requested == urls[: len(requested)], "in this order, and no other URL"
    assert (len(requested) == URLS) == complete
    assert f"{len(requested)} of {URLS} URLs" in out or complete
    assert "Traceback" not in error


def test_a_last_line_that_is_continued_later_is_cut_and_not_fetched(api: FaultServer, tmp_path: Path) -> None:
    """The writer of the list had written a part of it when the URLs were counted."""
    path = tmp_path / "urls"
    path.write_text(f"{api.url('/ok?n=1')}\n{api.url('/ok?n=2')}")
    urls = UrlLines(str(path))
    appended(path, "34\n")
    run = Fetch(AsyncConnector(None), urls, FetchOptions(project="P", concurrency=1))
    asyncio.run(run.run())
    assert [request.query for request in api.requests] == ["n=1"]
    assert (run.progress().done, run.progress().total) == (1, 2)
    assert "has grown" in (run.list_problem or "")


def test_a_list_that_was_changed_before_the_first_call_requests_nothing(api: FaultServer, tmp_path: Path) -> None:
    path = tmp_path / "urls"
    path.write_text(f"{api.url('/ok?n=1')}\n")
    urls = UrlLines(str(path))
    rewritten(path, f"{api.url('/ok?n=2')}\n")
    run = Fetch(AsyncConnector(None), urls, FetchOptions(project="P", concurrency=1))
    asyncio.run(run.run())
    assert (api.requests, "was changed" in (run.list_problem or "")) == ([], True)


def test_standard_input_starts_where_the_shell_has_positioned_it(api: FaultServer, tmp_path: Path) -> None:
    first = f"{api.url('/ok?n=1')}\n"
    (tmp_path / "urls").write_text(f"{first}{api.url('/ok?n=2')}\n")
    with (tmp_path / "urls").open("rb", buffering=0) as file:
        assert file.read(len(first)) == first.encode()
        code, out, error = run_with_input(file, tmp_path, "fetch", "-")
    assert (code, "Done: 1 URL in" in out) == (0, True), error
    assert error.startswith("1 URL, up to")
    assert [request.query for request in api.requests] == ["n=2"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_list_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The address 0 of a process is not mapped."""
    assert run_here(tmp_path, "fetch", "/proc/self/mem")[::2] == (
        2,
        "otel-connector fetch: /proc/self/mem: Input/output error\n",
    )


# Lines that are more than a URL

MORE = {
    "an option after a tab (aria2)": "{}\tout=foo",
    "two URLs after a tab (aria2: mirrors)": "{0}\t{0}",
    "a comment": "{} # note",
    "a comment after a tab": "{}\t# note",
    "two URLs": "{0} {0}",
    "two URLs and a comma": "{0}, {0}",
    "three URLs": "{0} {0} {0}",
    "a label": "{} label",
    "a size (a listing)": "{} 1024",
    "a form feed": "{0}\f{0}",
    "a vertical tab": "{0}\v{0}",
    "line ends of a Mac before 2001": "{0}\r{0}\r",
    "a space that is not encoded (RFC 3986, section 2)": "{}?q=a b",
    "text before the URL": "GET {}",
}


@pytest.mark.parametrize("name", MORE)
def test_a_line_that_is_more_than_a_url_is_a_failed_call_that_names_the_line(
    name: str, api: FaultServer, tmp_path: Path
) -> None:
    line = MORE[name].format(api.url("/ok"))
    (tmp_path / "urls").write_text(f"# the list\n{api.url('/ok?n=1')}\n{line}\n\n{api.url('/ok?n=2')}\n", newline="")
    code, out, error = run_here(tmp_path, "fetch", "urls")
    assert {request.query for request in api.requests} == {"n=1", "n=2"}
    assert code == 1
    why = "line 3 of the list has white space in it: write one URL on a line, and %20 for a space in a URL"
    assert f"otel-connector fetch: {why}\n" in error
    (failed,) = [row for row in rows(tmp_path) if row["success"] == "False"]
    assert failed["error"].startswith(f"InvalidURL: url is not a URL: {why}: ")
    assert "2 ok, 1 failed" in out
    assert run_here(tmp_path, "fetch", "urls", "--resume").code == 1


def test_the_message_counts_further_lines_in_every_block(api: FaultServer, tmp_path: Path) -> None:
    lines = [api.url("/ok"), *[PADDING.strip()] * 5, *[f"{api.url('/ok')} x"] * 1_001]
    (tmp_path / "urls").write_text("\n".join(lines))
    error = run_here(tmp_path, "fetch", "urls").error
    assert re.search(r"fetch: line 7 of the list has white space in it: .* \(1,000 more lines\)\n", error)


@pytest.mark.parametrize("line", ["  {}  ", "\t{}\r", "{}\u00a0", "\ufeff{}"])
def test_white_space_around_a_url_is_removed(line: str, api: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "urls").write_text(line.format(api.url("/ok")) + "\n", encoding="utf-8", newline="")
    assert run_here(tmp_path, "fetch", "urls", "--quiet") == (0, "", "")
    assert [row["url"] for row in rows(tmp_path)] == [api.url("/ok")]


# Unicode's White_Space beyond ASCII (PropList.txt): an IRI may contain most of these (RFC 3987, section 2.2, ucschar),
# and curl and wget send them. But a line with one may also be more than a URL, and the escape says which is meant
BLANKS = (
    "\u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
ZERO_WIDTH = "\u180e\u200b\u2060\ufeff"


@pytest.mark.parametrize("char", BLANKS + ZERO_WIDTH, ids=lambda char: f"U+{ord(char):04X}")
def test_a_blank_of_unicode_joins_nothing_to_a_url(char: str, api: FaultServer, tmp_path: Path) -> None:
    url = api.url("/ok")
    lines = [f"{url}{char}{url}", f"{url}{char}HTTP://x"]
    lines += [f"{url}{char}out=foo", f"{url}{char}# note"] if char in BLANKS else []
    (tmp_path / "urls").write_text("\n".join([f"{url}?n=1", *lines]), encoding="utf-8", newline="")
    code, _, error = run_here(tmp_path, "fetch", "urls")
    assert (code, [request.query for request in api.requests]) == (1, ["n=1"])
    escaped = "".join(f"%{byte:02X}" for byte in char.encode())
    assert (
        f"otel-connector fetch: line 2 of the list has U+{ord(char):04X} in it: write one URL on a line, "
        f"and {escaped} for this character in a URL" in error
    )
    assert sum(row["error"].startswith("InvalidURL: ") for row in rows(tmp_path)) == len(lines)


def test_a_no_break_space_of_latin_1_does_not_join_two_urls(api: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "urls").write_text(f"{api.url('/ok')}\u00a0{api.url('/ok')}", encoding="latin-1")
    assert "has the byte A0 in it: write one URL on a line, and %A0 for" in run_here(tmp_path, "fetch", "urls").error
    assert api.requests == []


@pytest.mark.parametrize("char", "\u200b\u200c\u200d\u2060\ufeff\u00ad")
def test_a_character_without_a_width_is_sent_as_a_part_of_a_url(char: str, api: FaultServer, tmp_path: Path) -> None:
    """RFC 3987, section 2.2 (ucschar); ZWJ and ZWNJ are letters of some languages."""
    api.script(f"/a{quote(char)}b", json_body(1))
    (tmp_path / "urls").write_text(f"{api.url('/')}a{char}b", encoding="utf-8")
    assert run_here(tmp_path, "fetch", "urls").code == 0


# Encodings and compression

LIST = "http://127.0.0.1:9/ok\nhttp://127.0.0.1:9/\u00e9\n"
ENCODED: dict[str, tuple[bytes, str]] = {
    "UTF-16 with a mark (PowerShell, Notepad)": (codecs.BOM_UTF16_LE + LIST.encode("utf-16-le"), "UTF-16"),
    "UTF-16 with a mark, big-endian": (codecs.BOM_UTF16_BE + LIST.encode("utf-16-be"), "UTF-16"),
    "UTF-16 without a mark": (LIST.encode("utf-16-le"), "UTF-16LE"),
    "UTF-16 without a mark, big-endian": (LIST.encode("utf-16-be"), "UTF-16BE"),
    "UTF-32 with a mark": (LIST.encode("utf-32"), "UTF-32"),
    "UTF-32 without a mark": (LIST.encode("utf-32-be"), "UTF-32BE"),
}
COMPRESSED: dict[str, tuple[bytes, str, str]] = {
    "gzip (RFC 1952)": (gzip.compress(LIST.encode()), "gzip", "gzip -dc"),
    "zstd (RFC 8878)": (zstd.compress(LIST.encode()), "zstd", "zstd -dc"),
    "xz": (lzma.compress(LIST.encode()), "xz", "xz -dc"),
    "bzip2": (bz2.compress(LIST.encode()), "bzip2", "bzip2 -dc"),
    "lzma": (lzma.compress(LIST.encode(), lzma.FORMAT_ALONE), "lzma", "xz -dc"),
    "lz4": (b"\x04\x22\x4d\x18\x64\x40\xa7", "lz4", "lz4 -dc"),
}


@pytest.mark.parametrize("name", [*ENCODED, *COMPRESSED])
def test_a_list_in_another_encoding_is_reported_with_what_to_do(name: str, tmp_path: Path) -> None:
    if name in ENCODED:
        content, encoding = ENCODED[name]
        message = f"it's is in {encoding}, not in UTF-8; convert it: iconv -f {encoding} -t UTF-8 {{}}"
    else:
        content, compression, program = COMPRESSED[name]
        message = f"it's is compressed ({compression}); unpack it: {program} {{}}"
    (tmp_path / "it's").write_bytes(content)
    message = f"otel-connector fetch: {message} | otel-connector fetch -\n"
    quoted = """'it'"'"'s'"""
    assert run_here(tmp_path, "fetch", "it's") == (2, "", message.format(quoted))
    code, _, error = run_with_input(content, tmp_path, "fetch", "-")
    assert (code, error.splitlines()[-1]) == (2, message.format("-").replace("it's", "-", 1).strip())


def test_a_zip_archive_is_reported(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "urls.zip", "w") as archive:
        archive.writestr("urls", LIST)
    assert (
        "urls.zip is compressed (zip); unpack it: unzip -p urls.zip | " in run_here(tmp_path, "fetch", "urls.zip").error
    )


def test_a_tar_archive_is_reported(tmp_path: Path) -> None:
    (tmp_path / "urls").write_text(LIST, encoding="utf-8")
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "urls.tar", "w", format=form) as archive:
            archive.add(tmp_path / "urls", "urls")
        message = "urls.tar is compressed (tar); unpack it: tar -xOf urls.tar | otel-connector fetch -\n"
        assert run_here(tmp_path, "fetch", "urls.tar").error.endswith(message)


@pytest.mark.parametrize("number", [1, 2, 100, 10_000])
def test_a_list_that_is_called_as_a_brotli_file_is_reported_if_it_is_not_text(number: int, tmp_path: Path) -> None:
    """RFC 7932 has no magic number."""
    urls = "".join(f"{LIST}{n}" for n in range(number)).encode()
    (tmp_path / "urls.br").write_bytes(brotli.compress(urls, quality=5))
    message = "urls.br is compressed (brotli); unpack it: brotli -dc urls.br | otel-connector fetch -\n"
    assert run_here(tmp_path, "fetch", "urls.br").error.endswith(message)


def test_a_text_that_is_called_as_a_brotli_file_is_read(api: FaultServer, tmp_path: Path) -> None:
    api.script("/%E9", json_body(1))
    (tmp_path / "urls.br").write_bytes(f"# Brazil\r\n\t{api.url('/ok')}\n{api.url('/')}\u00e9\n".encode("latin-1"))
    assert run_here(tmp_path, "fetch", "urls.br").code == 0


@pytest.mark.skipif(sys.platform == "win32", reason="iconv")
@pytest.mark.parametrize("name", ENCODED)
def test_the_command_of_the_message_converts_the_list(name: str, tmp_path: Path) -> None:
    content, encoding = ENCODED[name]
    done = processes.run(["iconv", "-f", encoding, "-t", "UTF-8"], input=content, capture_output=True, check=True)
    assert done.stdout.decode("utf-8-sig") == LIST


# Ranges


@pytest.mark.parametrize(
    "numbers",
    [
        *("1:99999999999999999999", "99999999999999999999:1", "-99999999999999999999:0", "1:2:99999999999999999999"),
        *("9223372036854775807:9223372036854775808", f"1:{'9' * 5_000}", "00000000000000000001:2"),
    ],
)
def test_a_range_with_numbers_that_are_too_long_is_refused(numbers: str, tmp_path: Path) -> None:
    code, out, error = run_here(tmp_path, "fetch", "http://127.0.0.1:9/{}", "--range", numbers)
    assert (code, out) == (2, "")
    assert error == f"otel-connector fetch: --range '{numbers}' must have numbers of at most 18 characters\n"


def test_a_range_of_nearly_64_bits_is_not_held_in_memory(api: FaultServer, tmp_path: Path) -> None:
    process = command_line.start(
        tmp_path, "fetch", api.url("/ok?n={}"), "--range", "-99999999999999999:999999999999999999"
    )
    with process:
        while not api.requests:
            assert process.poll() is None
        process.terminate()
        _, error = process.communicate(timeout=60)
    assert error.startswith("1,099,999,999,999,999,999 URLs, up to")
    assert "n=-99999999999999999" in {request.query for request in api.requests}


@pytest.mark.parametrize("template", ["http://u:hush@h/{}/{}", "http://h/?token=hush&{", "http://u:hush@h/{:s}"])
def test_the_message_about_a_template_shows_no_secret(template: str, tmp_path: Path) -> None:
    for arguments in ([template, "--range", "1:2"], [template], [template.replace("http", "ftp")]):
        code, out, error = run_here(tmp_path, "fetch", *arguments)
        assert (code, "hush" in out + error, "REDACTED" in error) == (2, False, True), error


_LARGE = "the width and the precision of a number of --range must be at most 999"
FORMATS = {
    "digits that are not ASCII": ("{:\u0669\u0669\u0669\u0669\u0669\u0669\u0669\u0669\u0669\u0669\u0669}", _LARGE),
    "a width": ("{:99999999999999}", _LARGE),
    "a width that is too large for Python": ("{:99999999999999999999}", _LARGE),
    "a width with zeros": ("{:0999999999}", _LARGE),
    "a width after a fill": ("{:*>9999}", _LARGE),
    "a precision": ("{:.99999999999f}", _LARGE),
    "a precision of a small result": ("{:.9999g}", _LARGE),
    "a nested format": ("{:{}}", "it must have one {}, for the numbers of --range"),
    "a nested format with a name": ("{:{width}}", "it must have one {}, for the numbers of --range"),
    "an attribute": ("{.real}", "it must have one {}, for the numbers of --range"),
    "an attribute of an attribute": ("{.__class__.__init__}", "it must have one {}, for the numbers of --range"),
    "an index": ("{[0]}", "it must have one {}, for the numbers of --range"),
    "a number": ("{0}", "it must have one {}, for the numbers of --range"),
    "a conversion": ("{!r:>99999999999}", _LARGE),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_that_is_not_for_a_number_in_a_url_is_refused(name: str, tmp_path: Path) -> None:
    """RFC 9110, section 4.1: URLs of 8,000 octets are the recommended minimum; longer numbers are a mistake."""
    given, why = FORMATS[name]
    code, out, error = run_here(tmp_path, "fetch", f"http://127.0.0.1:1/{given}", "--range", "1:2")
    assert (code, out, "Traceback" in error) == (2, "", False)
    assert f"'http://127.0.0.1:1/{given}' is not a template: " in error
    assert why in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("given", "sent"), [("{:05}", "00001"), ("{:,}", "1"), ("{:x}", "1"), ("{:.2f}", "1.00")])
def test_a_format_for_numbers_is_used(given: str, sent: str, api: FaultServer, tmp_path: Path) -> None:
    api.script(f"/{sent}", json_body(1))
    assert run_here(tmp_path, "fetch", f"{api.url('/')}{given}", "--range", "1:1").code == 0


# Which URLs are the same

SAME = {
    "the same text": ("{}/ok", "{}/ok"),
    "a scheme in upper case (RFC 3986, section 6.2.2.1)": ("{}/ok", "{u}/ok"),
    "a fragment, which is not sent but is in the log": ("{}/ok#a", "{}/ok#a"),
    "dot segments (RFC 3986, section 6.2.2.3)": ("{}/a/../ok", "{}/ok"),
    "characters that have to be encoded": ("{}/\u00e9", "{}/%C3%A9"),
    "an empty query, which is not sent": ("{}/ok", "{}/ok?"),
    "a secret": ("{}/ok?token=1", "{u}/ok?token=1"),
}
DIFFERENT = {
    "an empty path, which the log shows as it was given": ("{}", "{}/"),
    "a path in upper case": ("{}/ok", "{}/OK"),
    "an escape that need not be one: a signature may hold for one of them": ("{}/~a", "{}/%7Ea"),
    "texts that are cut in the log": (f"{{}}/{'a' * 9_000}", f"{{}}/{'a' * 8_999}b"),
    "lines that are no URL": ("no-url", "no-url2"),
}


@pytest.mark.parametrize("name", SAME | DIFFERENT)
def test_dedupe_and_resume_take_the_same_urls_for_one(name: str, api: FaultServer, tmp_path: Path) -> None:
    base = api.url("/").removesuffix("/")
    first, second = (line.format(base, u=base.replace("http", "HTTP")) for line in (SAME | DIFFERENT)[name])
    for path in ("/", "/%C3%A9", "/OK", "/~a", "/%7Ea", f"/{'a' * 9_000}", f"/{'a' * 8_999}b"):
        api.script(path, json_body(1))
    (tmp_path / "urls").write_text(f"{first}\n{second}\n{second}\n", encoding="utf-8")
    run_here(tmp_path, "fetch", "urls", "--dedupe", "--log", "logs.csv")
    deduped = len(rows(tmp_path))
    (tmp_path / "logs.csv").unlink()
    for line in (first, second):
        (tmp_path / "urls").write_text(f"{line}\n", encoding="utf-8")
        run_here(tmp_path, "fetch", "urls", "--resume")
    assert (deduped, len(rows(tmp_path))) == ((1, 1) if name in SAME else (2, 2))


def test_urls_that_differ_in_a_secret_are_rejected_with_dedupe_in_a_pipe_too(api: FaultServer, tmp_path: Path) -> None:
    urls = f"{api.url('/ok?token=1')}\n{api.url('/ok?token=2')}\n".encode()
    code, _, error = run_with_input(urls, tmp_path, "fetch", "-", "--dedupe")
    assert (code, "'token' differs, and is redacted" in error) == (2, True)
