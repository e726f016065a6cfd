"""Tests of `ResultsFile` and `result_line`: the format of a line, and that files stay readable after any failure.

The failures include full disks, torn writes, cancelled callers and ``kill -9``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import fcntl
import gc
import gzip
import itertools
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import duckdb
import pytest
import uvloop
from hypothesis import example, given
from hypothesis import strategies as st
from support import failing_calls, faulty_disks, processes
from support.failing_calls import WRITES, Children, Fault, Say
from support.forked import Program

from otel_connector._csv import _lock
from otel_connector._fetch._result_line import result_line
from otel_connector._fetch._results import ResultsFile

zstd: Any = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")

ENDINGS = ["jsonl", "jsonl.gz", "jsonl.zst"]
UNPACK: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes,
    ".gz": gzip.decompress,
    ".zst": zstd.decompress,
}
PACK: dict[str, Callable[[bytes], bytes]] = {".jsonl": bytes, ".gz": gzip.compress, ".zst": zstd.compress}
ID = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
T = 1_795_951_041.860568
OTHER_USER = 65_534
CALLERS = 24
KILLS = 2  # at random times, and as many again in the middle of a write

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture(params=ENDINGS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"results.{request.param}"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def line_of(number: int, length: int = 0) -> bytes:
    return result_line(f"http://a/?n={number}", ID, T, 200, b'{"x": "%b"}' % (b"x" * length))


def content_of(path: Path) -> bytes:
    return unpacked(path.suffix, path.read_bytes())


def unpacked(suffix: str, data: bytes) -> bytes:
    return UNPACK[suffix](data) if data else b""


def first_end(suffix: str, data: bytes) -> int:
    """Return where the first line or member ends."""
    if suffix == ".jsonl":
        return data.index(b"\n") + 1
    decoder = zstd.ZstdDecompressor() if suffix == ".zst" else zlib.decompressobj(wbits=31)
    decoder.decompress(data)
    return len(data) - len(decoder.unused_data)


def size_of(path: Path) -> int:
    return path.stat().st_size


def numbers(content: bytes) -> list[int]:
    """Return the numbers of the lines in `content`. Every line must be complete."""
    assert content.endswith(b"\n") or not content
    return [int(json.loads(line)["url"].rpartition("=")[2]) for line in content.splitlines()]


def run(main: Awaitable[Any], new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop) -> Any:
    loop = new_loop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


async def write_all(file: ResultsFile, lines: list[bytes]) -> None:
    await asyncio.gather(*map(file.write, lines))


def write_batches(path: Path, batches: list[list[bytes]], *, resume: bool = False) -> int:
    """Write the batches one after the other. Return how many bytes were cut when the file was opened."""

    async def main() -> None:
        for batch in batches:
            await write_all(file, batch)
        await file.aclose()

    file = ResultsFile(path, resume=resume)
    run(main())
    return file.cut


def no_writer_thread_runs() -> bool:
    """Return whether every writer thread has ended. A thread that is ending has 5 seconds for it."""
    threads = [thread for thread in threading.enumerate() if thread.name == "otel_connector.results"]
    for thread in threads:
        thread.join(5)
    return not any(thread.is_alive() for thread in threads)


@contextlib.contextmanager
def blocked_thread(file: ResultsFile) -> Iterator[threading.Event]:
    """Block the writer thread before its next batch, as a hanging disk does, until the event is set."""
    gate = threading.Event()
    file._executor.start()
    file._executor.submit(gate.wait)
    try:
        yield gate
    finally:
        gate.set()


# Readers of the whole file

# JSON for which at least one reader rejects the whole file
REJECTED = {
    "a lone surrogate (RFC 7493, section 2.1)": r'"cut\ud83d"',
    "a lone surrogate in upper case": r'"\uD83D"',
    "a lone second half": r'["\udc00", "\ud83d\ude00"]',
    "the halves in the wrong order": r'"\ude00\ud83d"',
    "a lone surrogate in a key": r'{"a\ud83d": 1}',
    "a nested lone surrogate": r'[{"a": ["\ud83dx"]}]',
    "a number beyond a double (RFC 7493, section 2.2)": "1E400",
    "a negative one": "[-1e400]",
    "one with the exponent of a double": "1.8e+308",
    "a nested one": '{"a": [1, {"b": 1.0e999}]}',
    "an integer beyond a double": "1" + "0" * 400,
    "an integer of more than 127 bits (polars)": str(2**127),
    "a negative one of more than 127 bits (polars)": str(-(2**127)),
    "an exponent of eleven digits (polars)": "0e99999999999",
    "two members of one name (RFC 7493, section 2.3; DuckDB, polars)": '{"a": 1, "b": 0, "a": 2}',
    "a nested object with two members of one name": '[{"b": {"a": 1, "a": 2}}]',
    "two escapes of one name": r'{"a": 1, "\u0061": 2}',
    "101 levels": "[" * 101 + "]" * 101,
    "300 levels of objects (DuckDB, jq 1.6)": '{"a":' * 300 + "1" + "}" * 300,
}
ACCEPTED = {
    "a pair of surrogates": r'"\ud83d\ude00 \uD83D\uDE00"',
    "an escaped backslash before a u": r'"\\ud83d"',
    "numbers that a double rounds": "[0.1234567890123456789012, 1e-400, 1e308, 0e400, 123456789012345678901]",
    "the largest integer": f"[{2**127 - 1}, 1.5e100]",
    "digits in a string": '"' + "1" * 400 + 'e999"',
    "no name": '{"": 1}',
    "NUL in a name": r'{"a\u0000": "\uffff"}',
    "100 levels": "[" * 100 + "]" * 100,
    "many short arrays": f"[{', '.join(['[]'] * 300)}]",
    "brackets in a string": '"' + "[" * 300 + '"',
}


@pytest.fixture(scope="module")
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


@pytest.mark.parametrize("name", REJECTED | ACCEPTED)
def test_no_body_makes_the_file_unreadable_for_any_reader(
    name: str, database: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    import polars as pl

    body, path = (REJECTED | ACCEPTED)[name], tmp_path / "r.jsonl"
    other = result_line("http://a/2", ID, T, 200, b"plain")
    path.write_bytes(result_line("http://a/1", ID, T, 200, body.encode()) + other)
    first = json.loads(path.read_bytes().splitlines()[0])
    if name in REJECTED:
        assert first["text"] == body
    else:
        assert first["json"] == json.loads(body)
    expected = ["http://a/1", "http://a/2"]
    table = f"read_json('{path}', format='newline_delimited')"
    assert database.execute(f"SELECT url FROM (SELECT * FROM {table})").fetchall() == [(url,) for url in expected]
    assert pl.read_ndjson(path)["url"].to_list() == expected


def test_jq_reads_every_line(tmp_path: Path) -> None:
    if (reader := shutil.which("jq")) is None:
        pytest.skip("needs jq")
    bodies = REJECTED | ACCEPTED
    (tmp_path / "r.jsonl").write_bytes(
        b"".join(result_line(name, ID, T, 200, body.encode()) for name, body in bodies.items())
    )
    done = processes.run([reader, "-r", ".url", tmp_path / "r.jsonl"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(bodies)


# Format of a line


def parsed(line: bytes) -> dict[str, Any]:
    """Parse one line with numbers kept as text, and check that it is a single line by every definition."""
    assert line.endswith(b"\n")
    assert len(line.decode().splitlines()) == 1
    result: dict[str, Any] = json.loads(line, parse_float=str, parse_int=str)
    return result


@pytest.mark.parametrize(
    ("body", "content"),
    [
        (b"", b'"text":""'),
        (b"null", b'"json":null'),
        (b'{"b": 1, "a": 2, "B": 3}', b'"json":{"b": 1, "a": 2, "B": 3}'),
        (
            b"[1.10, 1e308, -0, 0.1234567890123456789012, 1E+2]",
            b'"json":[1.10, 1e308, -0, 0.1234567890123456789012, 1E+2]',
        ),
        (b'\r\n{\n\t"a":\r[\n]}\n', b'"json":  { \t"a": [ ]} '),
        (b'"\\n\\u2028\\ud83d\\ude00"', b'"json":"\\n\\u2028\\ud83d\\ude00"'),
        ('{"\u2028\u2029": "\x85\u00e9"}'.encode(), '"json":{"\\u2028\\u2029": "\\u0085\u00e9"}'.encode()),
        (b'\xef\xbb\xbf{"a": 1}', b'"json":{"a": 1}'),
        ('{"\u00e9": "\U0001f600"}'.encode("utf-16"), '"json":{"\u00e9": "\U0001f600"}'.encode()),
        ('["\u00e9"]'.encode("utf-16-le"), '"json":["\u00e9"]'.encode()),
        ('["\u00e9"]'.encode("utf-32-be"), '"json":["\u00e9"]'.encode()),
        (b"NaN", b'"text":"NaN"'),
        (b"[1, -Infinity]", b'"text":"[1, -Infinity]"'),
        (b"{'a': 1}", b'"text":"{\'a\': 1}"'),
        (b'{"a": 1} {"b": 2}', b'"text":"{\\"a\\": 1} {\\"b\\": 2}"'),
        (b'"a\nb"', b'"text":"\\"a\\nb\\""'),
        (
            "a\x85\u2028\u2029\r\n\x0b\x1c\0\x1b".encode(),
            b'"text":"a\\u0085\\u2028\\u2029\\r\\n\\u000b\\u001c\\u0000\\u001b"',
        ),
        (b"\xef\xbb\xbfa", b'"text":"\xef\xbb\xbfa"'),
        (b"\xff\xfe\x00", b'"base64":"//4A"'),
        (b'"\xed\xa0\x80"', b'"base64":"Iu2ggCI="'),
        (b"[" * 100_000 + b"]" * 100_000, b'"text":"' + b"[" * 100_000 + b"]" * 100_000 + b'"'),
    ],
)
def test_a_body_is_stored_as_json_text_or_base64(body: bytes, content: bytes) -> None:
    line = result_line("http://a/", ID, T, 200, body)

    assert line == b'{"url":"http://a/","call_id":"%b","t":1795951041.860568,"status":200,%b}\n' % (
        ID.encode(),
        content,
    )
    parsed(line)


def test_a_number_with_more_digits_than_python_parses_is_stored_as_text() -> None:
    digits = b"1" * 5_000
    assert json.loads(result_line("u", ID, T, 200, digits))["text"] == digits.decode()


def test_special_characters_in_urls_are_escaped() -> None:
    line = result_line('http://\u00e9/"\\\n\u2028\ud800', ID, T, None, b"1")
    assert line == '{"url":"http://\u00e9/\\"\\\\\\n\\u2028\\\\ud800","call_id":"'.encode() + ID.encode() + (
        b'","t":1795951041.860568,"status":null,"json":1}\n'
    )
    assert parsed(line)["status"] is None


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(1 - 2**127, 2**127 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    value=JSON,
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 1]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32-le"]),
)
def test_json_bodies_are_copied_unchanged_apart_from_encoding(
    value: Any, ascii_only: bool, indent: int | None, encoding: str
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    try:
        body = text.encode(encoding)
    except UnicodeEncodeError:  # a lone surrogate that is not escaped
        return
    line = result_line("u", ID, T, 200, body)

    assert json.loads(line)["json"] == value
    assert parsed(line)["json"] == json.loads(text, parse_float=str, parse_int=str)


@given(st.text(), st.binary() | st.text('[]{}",:0eE.- \n\u2028\\u').map(str.encode))
@example("\udfff", b"\x00\x00\xfe\xff")
def test_every_body_can_be_restored_from_its_line(url: str, body: bytes) -> None:
    line = parsed(result_line(url, ID, T, 200, body))

    (kind,) = line.keys() - {"url", "call_id", "t", "status"}
    if kind == "json":
        assert line["json"] == json.loads(body, parse_float=str, parse_int=str)
    else:
        assert body == (line["text"].encode() if kind == "text" else base64.b64decode(line["base64"]))


# Writing


@pytest.mark.parametrize("new_loop", LOOPS, ids=["asyncio", "uvloop"])
def test_thousands_of_concurrent_writes_keep_their_order_and_share_members(
    new_loop: Callable[[], asyncio.AbstractEventLoop], path: Path
) -> None:
    lines = [line_of(number) for number in range(3_000)]
    file = ResultsFile(path, resume=False)

    async def main() -> None:
        assert no_writer_thread_runs()
        await asyncio.gather(*map(file.write, lines))
        assert content_of(path) == b"".join(lines)
        await file.aclose()
        assert no_writer_thread_runs()

    run(main(), new_loop)

    assert file.cut == 0
    assert path.stat().st_size < 3_000 * (10 if path.suffix != ".jsonl" else 200)  # not one member per line
    assert content_of(path) == b"".join(lines)


def test_a_line_is_in_the_file_when_its_write_returns(path: Path) -> None:
    async def caller(first: int) -> None:
        for number in range(first, first + 20):
            line = line_of(number, length=number % 7 * 100)
            await file.write(line)
            assert line in content_of(path)

    async def main() -> None:
        await asyncio.gather(*(caller(100 * each) for each in range(10)))
        await file.aclose()

    file = ResultsFile(path, resume=False)
    run(main())
    assert sorted(numbers(content_of(path))) == [100 * each + number for each in range(10) for number in range(20)]


async def test_writing_and_closing_do_not_block_the_event_loop(path: Path) -> None:
    """The guard that all tests share is active here: it raises an error on a blocking call."""
    file = await asyncio.to_thread(ResultsFile, path, resume=False)
    await write_all(file, [line_of(number) for number in range(100)])
    await file.write(line_of(100, length=3 * 2**20))
    await file.aclose()
    assert numbers(await asyncio.to_thread(content_of, path)) == list(range(101))


def test_standard_programs_can_read_the_file(path: Path) -> None:
    lines = [line_of(number, length=number) for number in range(300)]
    write_batches(path, [lines[start : start + 7] for start in range(0, 300, 7)])

    if path.suffix == ".gz":
        with gzip.open(path) as file:
            assert list(file) == lines
    if path.suffix == ".zst":
        with zstd.open(path) as file:
            assert list(file) == lines
    program = {".gz": "gzip", ".zst": "zstd", ".jsonl": "cat"}[path.suffix]
    if shutil.which(program):
        with path.open("rb") as packed:
            arguments = [program] if program == "cat" else [program, "-dc"]
            assert processes.run(arguments, stdin=packed, capture_output=True, check=True).stdout == b"".join(lines)


@pytest.mark.parametrize("line", [b"", b"\n\n", b"{}", b"{}\n{}\n", b"{}\n{}"])
async def test_data_that_is_not_exactly_one_line_is_refused(line: bytes, plain: Path) -> None:
    file = await asyncio.to_thread(ResultsFile, plain, resume=False)
    with pytest.raises(ValueError, match="one line"):
        await file.write(line)
    await file.aclose()
    assert not await asyncio.to_thread(plain.read_bytes)


# Cancelled callers


async def test_cancelling_a_write_does_not_affect_other_writes(path: Path) -> None:
    file = await asyncio.to_thread(ResultsFile, path, resume=False)
    with blocked_thread(file):
        tasks = [asyncio.ensure_future(file.write(line_of(number))) for number in range(10)]
        await asyncio.sleep(0)
        tasks[0].cancel()  # the writer thread already has its line
        tasks[5].cancel()  # its line is queued
        await asyncio.wait([tasks[0], tasks[5]])
        assert len(file._waiting) == 8  # the cancelled line was removed from the queue
    done = await asyncio.gather(*tasks, return_exceptions=True)
    await file.aclose()

    assert [isinstance(each, asyncio.CancelledError) for each in done] == [number in {0, 5} for number in range(10)]
    assert numbers(await asyncio.to_thread(content_of, path)) == [0, 1, 2, 3, 4, 6, 7, 8, 9]


async def test_a_thousand_cancelled_writes_leave_no_queued_lines(plain: Path) -> None:
    file = await asyncio.to_thread(ResultsFile, plain, resume=False)
    with blocked_thread(file):
        for number in range(1_000):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(file.write(line_of(number)), 0.000_001)
        assert not file._waiting
    await file.write(line_of(1_000))
    await file.aclose()
    assert numbers(await asyncio.to_thread(plain.read_bytes))[-1] == 1_000


def test_the_file_stays_usable_when_a_loop_ends_during_a_write(path: Path) -> None:
    file = ResultsFile(path, resume=False)

    async def leave() -> None:
        tasks.extend(asyncio.ensure_future(file.write(line_of(number))) for number in (1, 2))
        await asyncio.sleep(0)

    tasks: list[asyncio.Future[None]] = []
    with blocked_thread(file):
        asyncio.run(leave())
        assert all(task.cancelled() for task in tasks)
    run(write_all(file, [line_of(3)]))
    run(file.aclose())
    assert numbers(content_of(path)) == [1, 3]


def test_concurrent_writes_from_two_event_loops_are_refused(plain: Path) -> None:
    file = ResultsFile(plain, resume=False)
    first = asyncio.new_event_loop()
    with blocked_thread(file):
        task = first.create_task(file.write(line_of(1)))
        first.run_until_complete(asyncio.sleep(0))
        with pytest.raises(RuntimeError, match="another event loop"):
            run(file.write(line_of(2)))
    first.run_until_complete(task)
    run(file.write(line_of(3)))  # loops may follow one another
    first.run_until_complete(file.write(line_of(4)))
    first.run_until_complete(file.aclose())
    first.close()
    assert numbers(plain.read_bytes()) == [1, 3, 4]


# Closing


@pytest.mark.parametrize("new_loop", LOOPS, ids=["asyncio", "uvloop"])
def test_queued_lines_are_written_before_the_file_closes(
    new_loop: Callable[[], asyncio.AbstractEventLoop], path: Path
) -> None:
    async def main() -> None:
        with blocked_thread(file) as gate:
            writes = [asyncio.ensure_future(file.write(line_of(number))) for number in range(5)]
            await asyncio.sleep(0)
            closings = [asyncio.ensure_future(file.aclose()) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(ValueError, match="closed"):
                await file.write(line_of(5))
            gate.set()
        await asyncio.gather(*writes, *closings)
        assert no_writer_thread_runs()
        await file.aclose()

    file = ResultsFile(path, resume=False)
    run(main(), new_loop)
    file.close()
    assert numbers(content_of(path)) == list(range(5))


def test_close_without_a_running_loop_writes_the_queued_lines(path: Path) -> None:
    file = ResultsFile(path, resume=False)
    loop = asyncio.new_event_loop()
    with blocked_thread(file):
        writes = [loop.create_task(file.write(line_of(number))) for number in range(3)]
        loop.run_until_complete(asyncio.sleep(0))  # here the program is stopped by Ctrl-C
    file.close()
    assert no_writer_thread_runs()
    file.close()
    assert numbers(content_of(path)) == [0, 1, 2]
    loop.run_until_complete(asyncio.gather(*writes))  # their outcome is available to tasks that still wait
    loop.close()


def test_closing_without_a_write_leaves_an_empty_private_file(path: Path) -> None:
    ResultsFile(path, resume=False).close()
    run(ResultsFile(path, resume=False).aclose())  # an empty file has no results, so it is not refused
    assert path.read_bytes() == b""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_cancelled_aclose_continues_in_the_background(plain: Path) -> None:
    file = await asyncio.to_thread(ResultsFile, plain, resume=False)
    with blocked_thread(file):
        write = asyncio.ensure_future(file.write(line_of(1)))
        await asyncio.sleep(0)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(file.aclose(), 0.000_001)
    await write
    await file.aclose()
    assert await asyncio.to_thread(no_writer_thread_runs)


def test_garbage_collection_releases_the_lock_and_ends_the_thread(plain: Path) -> None:
    file = ResultsFile(plain, resume=False)
    run(file.write(line_of(1)))
    assert any(thread.name == "otel_connector.results" for thread in threading.enumerate())
    del file
    gc.collect()
    assert no_writer_thread_runs()
    write_batches(plain, [[line_of(2)]], resume=True)
    assert numbers(plain.read_bytes()) == [1, 2]


@pytest.mark.parametrize("written", [False, True])
def test_an_error_of_the_system_call_close_is_raised(
    written: bool,
    plain: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(fd: int) -> None:
        close(fd)
        if fd == file._fd:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    file, close = ResultsFile(plain, resume=False), os.close
    if written:
        run(file.write(line_of(1)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", full)
        with pytest.raises(OSError, match=r"results\.jsonl") as caught:
            file.close()
    assert caught.value.errno == errno.EDQUOT
    with pytest.raises(OSError, match=r"results\.jsonl"):
        run(file.aclose())


# Resuming


def test_an_existing_file_with_results_is_refused_without_resume(path: Path) -> None:
    write_batches(path, [[line_of(1)]])
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"--resume.*another name.*results") as caught:
        ResultsFile(path, resume=False)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert write_batches(path, [[line_of(2)]], resume=True) == 0
    assert numbers(content_of(path)) == [1, 2]


def test_a_file_truncated_at_any_byte_can_be_resumed(path: Path) -> None:
    write_batches(path, [[line_of(number) for number in range(2)], [line_of(2, length=9)]])
    whole = path.read_bytes()
    ends = [0]
    while ends[-1] < len(whole):
        ends.append(ends[-1] + first_end(path.suffix, whole[ends[-1] :]))

    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        end = max(each for each in ends if each <= length)
        file = ResultsFile(path, resume=True)
        assert file.cut == length - end
        assert path.read_bytes() == whole[:end]
        if length % 8 and not {length, length + 1} & {*ends}:
            file.close()
            continue
        run(file.write(line_of(6)))
        file.close()
        assert numbers(content_of(path)) == [*numbers(unpacked(path.suffix, whole[:end])), 6]


def test_the_tail_cut_off_a_plain_file_is_saved_to_the_torn_file(plain: Path) -> None:
    plain.write_bytes(line_of(1) + b'{"url": "of another program, without a line end"}')
    assert write_batches(plain, [[line_of(2)]], resume=True) == 49
    assert numbers(plain.read_bytes()) == [1, 2]
    assert b"another program" in plain.with_name("results.jsonl.torn").read_bytes()


def test_resuming_handles_members_of_any_size_with_little_memory(path: Path) -> None:
    """There are thousands of small members, and one that is far larger when unpacked."""
    pack = PACK[path.suffix]
    long = b'{"url":"' + b"x" * (16 * 2**20) + b'"}\n'
    content = b"".join(pack(line_of(number)) for number in range(2_000)) + pack(long) + pack(b"") + pack(line_of(1))
    path.write_bytes(content + pack(line_of(2))[:-1])
    torn = len(pack(line_of(2))) - 1
    del long
    tracemalloc.start()
    try:
        file = ResultsFile(path, resume=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    file.close()
    assert file.cut == torn
    assert path.stat().st_size == len(content)
    assert peak < 4 * 2**20, f"{peak:,}"


@pytest.mark.parametrize(
    ("ending", "content", "what"),
    [
        ("jsonl", b"call_id,project,t\n", "does not contain JSON lines: its first byte is b'c'"),
        ("jsonl", gzip.compress(b"{}\n"), "does not contain JSON lines: its first byte is b'.x1f'"),
        ("jsonl", bytes(9), "does not contain JSON lines"),
        ("gz", b"{}\n", "is not gzip .Error -3"),
        ("gz", zstd.compress(b"{}\n"), "is not gzip"),
        ("gz", gzip.compress(b"a,b\n"), "does not contain JSON lines: its first byte is b'a'"),
        ("gz", gzip.compress(b"a,b\n" * 9)[:-8], "does not contain JSON lines: its first byte is b'a'"),
        ("gz", gzip.compress(b"{}\n{}"), "does not end with a complete line"),
        ("zst", b"{}\n{}\n", "is not zstd"),
        ("zst", gzip.compress(b"{}\n"), "is not zstd"),
        ("zst", zstd.compress(b"a,b\n"), "does not contain JSON lines: its first byte is b'a'"),
        ("zst", zstd.compress(b"{}"), "does not end with a complete line"),
    ],
    ids=[
        *("jsonl-csv", "jsonl-gzip", "jsonl-zeros", "gz-plain", "gz-zstd", "gz-csv", "gz-torn-csv", "gz-half-a-line"),
        *("zst-plain", "zst-gzip", "zst-csv", "zst-half-a-line"),
    ],
)
def test_a_file_of_another_format_is_refused_and_not_changed(
    ending: str, content: bytes, what: str, tmp_path: Path
) -> None:
    path = tmp_path / f"results.{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"results\.{ending}' {what}.*; nothing was changed"):
        ResultsFile(path, resume=True)
    assert path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["in the middle", "NUL bytes behind"])
def test_complete_members_after_damage_are_not_truncated(damage: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"results.{ending}"
    for number in range(3):
        write_batches(path, [[line_of(number)]], resume=True)
    size, first = path.stat().st_size, len(PACK[f".{ending}"](line_of(0)))
    content = bytearray(path.read_bytes())
    if damage == "in the middle":
        content[size // 2] ^= 1
    else:
        content += bytes(99)
    path.write_bytes(content)

    with pytest.raises(
        ValueError, match=r"damaged after its first \d+ bytes .*; to continue without the rest: truncate -s \d+;"
    ) as caught:
        ResultsFile(path, resume=True)
    assert path.read_bytes() == content
    assert first > 0
    os.truncate(path, int(str(caught.value).partition("truncate -s ")[2].partition(";")[0]))
    write_batches(path, [[line_of(9)]], resume=True)
    assert numbers(content_of(path)) == ([0, 9] if damage == "in the middle" else [0, 1, 2, 9])


def test_the_file_extension_selects_the_format_case_insensitively(tmp_path: Path) -> None:
    write_batches(tmp_path / "R.GZ", [[line_of(1)]])
    assert gzip.decompress((tmp_path / "R.GZ").read_bytes()) == line_of(1)


def test_without_the_zstd_package_no_file_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'otel-connector\[cli\]'"):
        ResultsFile(tmp_path / "r.zst", resume=False)
    assert not list(tmp_path.iterdir())


# Paths and files that are refused


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (Path.mkdir, errno.EISDIR),
        (os.mkfifo, errno.EINVAL),
        (lambda path: path.symlink_to(path), errno.ELOOP),
        (lambda path: path.symlink_to("/dev/null"), errno.EINVAL),
    ],
    ids=["folder", "fifo", "loop", "device"],
)
def test_a_path_that_is_not_a_regular_file_is_refused_immediately(
    make: Callable[[Path], None], number: int, path: Path
) -> None:
    make(path)
    with pytest.raises(OSError, match="results") as caught:
        ResultsFile(path, resume=True)
    assert caught.value.errno == number


def test_a_file_name_with_a_nul_character_is_refused() -> None:
    with pytest.raises(OSError, match="null"):
        ResultsFile("a\0b", resume=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has other users")
def test_a_symbolic_link_of_another_user_is_refused(plain: Path) -> None:
    target = plain.with_name("target")
    plain.symlink_to(target)
    os.chown(plain, OTHER_USER, OTHER_USER, follow_symlinks=False)
    with pytest.raises(OSError, match="belongs to another user"):
        ResultsFile(plain, resume=False)
    assert not target.exists()
    os.chown(plain, 0, 0, follow_symlinks=False)
    write_batches(plain, [[line_of(1)]])
    assert numbers(target.read_bytes()) == [1]


# Locks: two programs and one file


def test_two_programs_cannot_write_one_file(path: Path) -> None:
    program = (
        "import sys; from otel_connector._fetch._results import ResultsFile\n"
        f"file = ResultsFile({str(path)!r}, resume=True); print(flush=True); sys.stdin.read()"
    )
    write_batches(path, [[line_of(1)]])
    with Program(["-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        for resume in (False, True):
            with pytest.raises(BlockingIOError, match="another process is writing this file") as caught:
                ResultsFile(path, resume=resume)
            assert caught.value.filename == str(path)
        other.kill()
    write_batches(path, [[line_of(2)]], resume=True)
    assert numbers(content_of(path)) == [1, 2]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_results_are_written_on_file_systems_without_locks(
    number: int, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    if number == errno.EIO:
        with pytest.raises(OSError, match=os.strerror(number)):
            ResultsFile(plain, resume=False)
        return
    write_batches(plain, [[line_of(1)]])
    assert numbers(plain.read_bytes()) == [1]


def test_results_are_written_on_platforms_without_fcntl(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lock, "fcntl", None)
    file = ResultsFile(path, resume=False)
    run(file.write(line_of(1)))
    file.close()
    assert numbers(content_of(path)) == [1]


# Disks that fail


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Limit the files of this process to `size` bytes: a write beyond that is short, the next one fails (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def failures(file: ResultsFile, lines: list[bytes]) -> list[OSError]:
    done = await asyncio.gather(*map(file.write, lines), return_exceptions=True)
    return [each for each in done if isinstance(each, OSError)]


def incompressible_line(number: int) -> bytes:
    """Return a line that compression cannot make smaller than a kilobyte."""
    return result_line(f"http://a/?n={number}", ID, T, 200, random.Random(number).randbytes(2_000))


def test_a_short_write_removes_its_batch_and_every_caller_gets_the_error(path: Path) -> None:
    async def main() -> list[OSError]:
        await file.write(incompressible_line(0))
        whole.append(content_of(path))
        with file_size_limit(size_of(path) + 700):
            # Written as a batch of one, then a batch of nine
            errors = await failures(file, [incompressible_line(number) for number in range(1, 11)])
        # These fail even if there is room, because earlier lines are missing
        return errors + await failures(file, [incompressible_line(11), incompressible_line(12)])

    file, whole = ResultsFile(path, resume=False), list[bytes]()
    errors = run(main())
    file.close()

    assert [error.errno for error in errors] == [errno.EFBIG] * 12
    assert all(error.filename == str(path) for error in errors)
    assert len({id(error) for error in errors}) == 12
    assert content_of(path) == whole[0] == incompressible_line(0)
    assert write_batches(path, [[line_of(3)]], resume=True) == 0
    assert numbers(content_of(path)) == [0, 3]


def test_a_partial_batch_that_cannot_be_truncated_is_cut_on_resume(path: Path) -> None:
    faulty_disks.need("chattr")

    async def main() -> None:
        await file.write(incompressible_line(0))
        with faulty_disks.attribute(path, "a"), file_size_limit(size_of(path) + 700):  # the file can only grow
            assert await failures(file, [incompressible_line(1)])

    file = ResultsFile(path, resume=False)
    run(main())
    file.close()
    assert write_batches(path, [[line_of(2)]], resume=True) == 700
    assert numbers(content_of(path)) == [0, 2]


def test_on_a_full_disk_writes_fail_and_the_file_can_be_resumed_later(path: Path, tmp_path: Path) -> None:
    with faulty_disks.full(tmp_path / "disk") as disk:
        path = disk.path.with_name(path.name)

        async def main() -> int:
            lines = [incompressible_line(number) for number in range(100)]
            for number in range(0, 10, 2):
                await write_all(file, lines[number : number + 2])
            disk.strike()
            return len(await failures(file, lines[10:]))

        file = ResultsFile(path, resume=False)
        failed = run(main())
        file.close()
        assert failed >= 80
        assert numbers(content_of(path)) == list(range(100 - failed))
        disk.heal()
        write_batches(path, [[line_of(100)]], resume=True)
        assert numbers(content_of(path))[-1] == 100


def test_any_exception_in_the_writer_thread_is_raised_as_an_oserror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(**_: int) -> None:
        raise MemoryError

    monkeypatch.setattr(zlib, "compressobj", no_memory)
    file = ResultsFile(tmp_path / "r.gz", resume=False)
    for _ in range(2):
        with pytest.raises(OSError, match="MemoryError") as caught:
            run(file.write(line_of(1)))
        assert caught.value.errno == errno.EIO
    file.close()


# kill -9


def write_forever(say: Say, path: str, first: int, fault: dict[str, Any] | None) -> None:
    """In the child: write lines forever, and report the number of each line when its write has returned."""
    file = ResultsFile(path, resume=True)
    if fault is not None:
        failing_calls.arm(path, fault)
    asyncio.run(_write_forever(say, file, itertools.count(first)))


async def _write_forever(say: Say, file: ResultsFile, count: Iterator[int]) -> None:
    async def caller() -> None:
        for number in count:
            await file.write(line_of(number, length=number * 37 % 900))
            say(number)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))


def test_no_line_whose_write_returned_is_missing_after_kill_9(path: Path, child_processes: Children) -> None:
    chance, returned, torn, content = random.Random(6), 0, 0, b""
    for kill in range(2 * KILLS):
        in_a_write = kill % 2 == 1
        fault = asdict(Fault(action="torn", value=chance.randrange(1, 1_000), nth=chance.randrange(1, 40), only=WRITES))
        ended = child_processes.run(
            write_forever,
            None if in_a_write else chance.uniform(0, 0.1),
            path=str(path),
            first=kill * 1_000_000,
            fault=fault if in_a_write else None,
        )
        assert ended.code == -signal.SIGKILL
        size = path.stat().st_size if path.exists() else 0
        file = ResultsFile(path, resume=True)
        file.close()
        before, content = content, content_of(path)
        assert content.startswith(before)
        there = numbers(content[len(before) :])
        assert all(number >= kill * 1_000_000 for number in there)
        assert len(there) == len(set(there))
        assert set(ended.said) <= set(there)
        assert len(there) <= len(ended.said) + CALLERS
        assert file.cut == size - path.stat().st_size
        assert file.cut > 0 or not in_a_write
        returned, torn = returned + len(ended.said), torn + (file.cut > 0)
    assert torn >= KILLS
    assert returned > 20 * KILLS


def test_short_writes_are_continued_until_the_batch_is_complete(path: Path, child_processes: Children) -> None:
    """Every write of the process is short, and every batch is complete nevertheless."""
    ended = child_processes.run(
        write_ten_batches, path=str(path), fault=asdict(Fault(action="short", value=300, times=-1, only=WRITES))
    )
    assert ended.code == 0
    assert numbers(content_of(path)) == list(range(200))


def write_ten_batches(say: Say, path: str, fault: dict[str, Any]) -> None:
    failing_calls.arm(path, fault)
    write_batches(Path(path), [[line_of(number) for number in range(start, start + 20)] for start in range(0, 200, 20)])


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
async def test_calls_lists_the_calls_in_the_file(ending: str, tmp_path: Path) -> None:
    """Long lines before it, and URLs or bodies that contain the same text, make no difference.

    Lines of version 0.1 have no start.
    """
    path, odd = tmp_path / f"r.{ending}", 'http://a/","call_id":"1-1","status":'
    file = await asyncio.to_thread(ResultsFile, path, resume=False)
    ids = [f"{number:032x}-{number:016x}" for number in range(1, 30)]
    for number, call_id in enumerate(ids):
        body = b'{"x":"' + b"y" * (300_000 * (number % 3)) + b'","call_id":"2-2","status":1}'
        await file.write(result_line(odd, call_id, T + number, 200, body))
    await file.write(b'{"url":"u","call_id":"%b","status":200,"json":1}\n' % ID.encode())
    await file.write(b'{"a": "' + b"z" * 400_000 + b'"}\n')
    await file.write(b'{"another": "tool"}\n')
    expected = [*((call_id, round(T + number, 6)) for number, call_id in enumerate(ids)), (ID, None)]
    assert await asyncio.to_thread(lambda: list(file.calls())) == expected
    await file.aclose()
