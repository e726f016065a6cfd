"""Tests of the file of the attempts log: it has the options and the guarantees of the log that it is beside.

What is in its rows is tested in ``tests/call/test_attempts.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import linecache
import os
import random
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import failing_calls, faulty_disks
from support.command_line import finish, run_here, start
from support.failing_calls import WRITES, Children, Fault, Say, fork, joined
from support.logs import Log, attempts_in, call, write
from support.otlp_receiver import Received, grpc_receiver
from support.records import BLANK, NASTY

from otel_connector import AsyncConnector, ConnectorError, CSVSpanExporter, RetryPolicy
from otel_connector._csv import _backlog, _file, _flusher, _lock, _writer
from otel_connector._csv._check import check
from otel_connector._csv._done import read_done
from otel_connector._csv._format import ATTEMPTS, CALLS, HEADER, decode_attempt, encode_attempt
from otel_connector._csv._lines import read_row
from otel_connector._csv._parts import attempts_file, log_files
from otel_connector._record import AttemptRecord
from otel_connector.csv_exporter import CSVSpanProcessor
from otel_connector.testing import FakeClock, FaultServer

AT_ONCE = RetryPolicy(backoff=0)
ATTEMPT = AttemptRecord(BLANK.call_id, 1, 1_700_000_000.25, 0.5, 0.0, 1.0, "status_503", 503, "503")


@pytest.fixture
def server() -> Any:
    with FaultServer() as server:
        server.script("/x", 503)
        yield server


@pytest.fixture
def beside(log: Log) -> Path:
    """Return the path of the attempts log."""
    return log.path.with_name("logs.attempts.csv")


def connector(log: Any, **options: Any) -> AsyncConnector:
    return AsyncConnector(log, **{"n_tries": 2, "retry": AT_ONCE, "clock": FakeClock(), "attempts": True, **options})


def fail(subject: AsyncConnector, server: FaultServer, calls: int = 1) -> None:
    """Make calls of two attempts each, which fail."""

    async def make() -> None:
        async with aiohttp.ClientSession() as session:
            for number in range(calls):
                with contextlib.suppress(ConnectorError):
                    await subject.get(session, server.url("/x", n=number), "P")

    asyncio.run(make())


def numbers(attempts: Iterable[AttemptRecord]) -> list[int]:
    return [attempt.number for attempt in attempts]


def assert_two_for_each_row(log: Log, attempts: Iterable[AttemptRecord] | None = None) -> None:
    """Check that each call of the log has two attempts, and no other call has any."""
    found = Counter(attempt.call_id for attempt in (log.attempts() if attempts is None else attempts))
    assert found == dict.fromkeys((record.call_id for record in log.records()), 2)


# The format of a row.


@given(
    st.builds(
        AttemptRecord,
        call_id=st.just(BLANK.call_id),
        number=st.integers(1, 2**31 - 1),
        t=st.integers(0, 2**33).map(lambda each: each / 2),
        duration=st.integers(0, 10**9).map(lambda each: each / 2),
        queue=st.integers(0, 10**6).map(lambda each: each / 4),
        wait=st.none() | st.integers(0, 10**6).map(lambda each: each / 4),
        reason=st.sampled_from(["", "status_503", "connection"]),
        status=st.integers(100, 999),
        retry_after=st.none() | st.integers(1, 10**6).map(lambda each: each / 4),
        error_type=st.sampled_from([each for each in NASTY if len(each) < 100 and each.isprintable()]),
    )
)
def test_every_encoded_attempt_is_decoded_unchanged(record: AttemptRecord) -> None:
    line = encode_attempt(record)
    assert line.count(b"\n") == 1
    assert read_row(line[:-1], ATTEMPTS)[1] == record


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"call_id": "7"}, "call_id '7' is not an id"),
        ({"number": "x"}, "number must be a number, not 'x'"),
        ({"duration": "-1"}, "duration must be from 0"),
        ({"wait": "soon"}, "wait must be a number, not 'soon'"),
        ({"retry_after": "soon"}, "retry_after must be a number, not 'soon'"),
        ({"status": "1e999"}, "status must be a number"),
        ({"t": "nan"}, "t must be from 0"),
        ({"number": "0"}, "number must be from 1 to 2147483647, not 0"),
        ({"status": "9999"}, "status must be from 0 to 999, not 9999"),
        ({"reason": "", "status": "", "error_type": ""}, "reason, status and error_type are all empty"),
    ],
)
def test_a_cell_that_is_not_a_value_of_its_column_is_named(changed: dict[str, str], message: str) -> None:
    cells = dict(zip(ATTEMPTS.columns, encode_attempt(ATTEMPT).decode().strip().split(","), strict=True))
    with pytest.raises(ValueError, match=message):
        decode_attempt(list((cells | changed).values()))


def test_a_row_of_a_call_is_not_a_row_of_an_attempt() -> None:
    with pytest.raises(ValueError, match="number must be a number, not ''"):
        read_row(CALLS.encode(BLANK)[:-1], ATTEMPTS)


# The options of the log are those of the file.


def test_the_file_is_private_and_is_appended_or_emptied_with_the_log(
    server: FaultServer, log: Log, beside: Path
) -> None:
    for _ in range(2):
        fail(connector(log.path), server)
    assert beside.stat().st_mode & 0o777 == 0o600
    assert numbers(log.attempts()) == [1, 2, 1, 2]
    assert_two_for_each_row(log)

    fail(connector(log.path, overwrite_log=True), server)
    assert numbers(log.attempts()) == [1, 2]
    assert_two_for_each_row(log)


def test_the_file_has_the_options_of_an_exporter_that_two_connectors_share(
    server: FaultServer, log: Log, beside: Path, tmp_path: Path
) -> None:
    exporter = CSVSpanExporter(log.path, rotate_rows=3, permissions=0o640)
    first, second = connector(exporter), connector(exporter)
    without = connector(exporter, attempts=False)
    for subject in (first, second, without):
        fail(subject, server, 2)
    exporter.shutdown()

    names = ["logs.attempts.part-000001.csv", "logs.attempts.part-000002.csv", "logs.attempts.csv"]
    assert {path.name for path in tmp_path.iterdir()} == {*names, "logs.csv", "logs.part-000001.csv"}
    assert log_files([str(beside)]) == [str(tmp_path / name) for name in names]
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o640] * 5
    attempts = [attempts_in(tmp_path / name) for name in names]
    assert [len(each) for each in attempts] == [3, 3, 2]
    assert len({attempt.call_id for each in attempts for attempt in each}) == 4
    assert exporter.counts() == (6, 0, 0), "only the rows of calls are counted"


def test_a_renamed_file_is_created_again(server: FaultServer, log: Log, beside: Path) -> None:
    subject = connector(log.path, n_tries=3)
    fail(subject, server)
    moved = beside.rename(beside.with_name("logs.attempts.csv.1"))
    fail(subject, server)
    assert (numbers(attempts_in(moved)), numbers(log.attempts())) == ([1, 2, 3], [1, 2, 3])


def test_in_background_mode_the_rows_are_written_by_a_flush_and_at_the_end(server: FaultServer, log: Log) -> None:
    exporter = CSVSpanExporter(log.path, mode="background")
    subject = connector(exporter)
    fail(subject, server)
    assert exporter.force_flush()
    assert_two_for_each_row(log)
    fail(subject, server)
    CSVSpanProcessor(exporter).shutdown()
    assert_two_for_each_row(log)
    assert numbers(log.attempts()) == [1, 2, 1, 2]


def test_a_log_that_is_a_link_has_its_attempts_beside_its_target(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "logs.csv").symlink_to(tmp_path / "data" / "target.csv")
    connector(tmp_path / "logs.csv")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["target.attempts.csv", "target.csv"]


def test_a_link_that_leads_to_another_log_later_keeps_its_attempts_beside_the_first_one(
    server: FaultServer, tmp_path: Path
) -> None:
    """As documented: the log follows the link, the attempts log does not. ``call_id`` still joins them."""
    link = tmp_path / "cur.csv"
    link.symlink_to("first.csv")
    subject = connector(link)
    link.unlink()
    link.symlink_to("second.csv")
    fail(subject, server)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cur.csv",
        "first.attempts.csv",
        "first.csv",
        "second.csv",
    ]
    assert {each.call_id for each in attempts_in(tmp_path / "first.attempts.csv")} == {
        Log(tmp_path / "second.csv").only().call_id
    }


# Files that cannot be used.


def test_a_file_of_another_kind_is_refused_and_not_changed(log: Log, beside: Path) -> None:
    beside.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"attempts: '.*logs\.attempts\.csv': the file has another header"):
        connector(log.path)
    assert beside.read_text() == "a,b\n1,2\n"


def test_a_folder_is_refused(log: Log, beside: Path) -> None:
    beside.mkdir()
    with pytest.raises(IsADirectoryError, match=r"attempts: .*logs\.attempts\.csv"):
        connector(CSVSpanExporter(log.path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize("link", [False, True], ids=["file", "link"])
def test_a_file_that_another_user_has_put_there_is_refused(link: bool, tmp_path: Path) -> None:
    (shared := tmp_path / "shared").mkdir()
    shared.chmod(0o1777)
    planted = shared / "logs.attempts.csv"
    if link:
        planted.symlink_to(tmp_path / "victim")
    else:
        planted.write_bytes(b"")
    os.chown(planted, 65_534, 65_534, follow_symlinks=False)
    with pytest.raises(PermissionError, match=r"attempts: .*belongs to another user"):
        connector(shared / "logs.csv")
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("command", [("demo", "--calls", "1"), ("fetch", "http://127.0.0.1:1/", "--tries", "1")])
def test_the_commands_name_the_file_that_cannot_be_used(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "logs.attempts.csv").write_text("a,b\n")
    done = run_here(tmp_path, *command, "--log", "logs.csv")
    assert done.code == 2
    assert "--log: logs.attempts.csv: the file has another header: 'a,b'" in done.error
    assert done.error.endswith("; --no-attempts does not write it\n") is (command[0] == "fetch")


@pytest.mark.parametrize(("options", "written"), [((), True), (("--attempts",), True), (("--no-attempts",), False)])
def test_fetch_can_be_told_to_write_no_attempts_log(options: tuple[str, ...], written: bool, tmp_path: Path) -> None:
    done = run_here(tmp_path, "fetch", "http://127.0.0.1:1/", "--tries", "1", *options)
    assert done.code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs.attempts.csv"] * written + ["logs.csv"]


def test_without_attempts_fetch_leaves_a_file_with_that_name_alone(tmp_path: Path) -> None:
    (tmp_path / "logs.attempts.csv").write_text("a,b\n")
    done = run_here(tmp_path, "fetch", "http://127.0.0.1:1/", "--tries", "1", "--no-attempts")
    assert (done.code, (tmp_path / "logs.attempts.csv").read_text()) == (1, "a,b\n")


@pytest.mark.parametrize("attempts", ["--attempts", "--no-attempts"])
@pytest.mark.parametrize("out", ["logs.attempts.csv", "./logs.attempts.csv", "link", "LOG"])
def test_the_results_cannot_be_in_the_attempts_log(out: str, attempts: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("logs.attempts.csv")
    (tmp_path / "LOG").symlink_to("logs.csv")
    log, out = ("LOG", "logs.attempts.csv") if out == "LOG" else ("logs.csv", out)
    done = run_here(tmp_path, "fetch", "http://127.0.0.1:1/", "--log", log, "--out", out, attempts)
    message = f"--out: {out}: this file is a log, or belongs to one"
    assert (done.code, message.replace("./", "") in done.error) == (2, True)
    assert not (tmp_path / "logs.csv").exists()


FOREIGN = {
    "a file of another kind": b"a,b\n1,2\n",
    "a log": HEADER + CALLS.encode(BLANK),
    "a binary file": bytes(5_000),
    "a row without the header": encode_attempt(ATTEMPT),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("opened_by", ["a path", "an exporter"])
def test_overwriting_empties_no_file_that_is_not_an_attempts_log(
    opened_by: str, content: bytes, log: Log, beside: Path
) -> None:
    write(log.path, [call(0)])
    before = log.path.read_bytes()
    beside.write_bytes(content)
    by_path = opened_by == "a path"
    log_or_exporter = log.path if by_path else CSVSpanExporter(log.path, overwrite=True)
    with pytest.raises(ValueError, match=r"attempts: '.*logs\.attempts\.csv': the file (has another header|begins)"):
        connector(log_or_exporter, overwrite_log=by_path)
    assert beside.read_bytes() == content
    assert log.path.read_bytes() == (before if by_path else HEADER)


@pytest.mark.parametrize("kind", ["folder", "pipe", "locked"])
@pytest.mark.parametrize("name", ["logs.csv", "logs.attempts.csv"])
def test_overwriting_empties_no_file_if_the_other_one_cannot_be_opened(
    name: str, kind: str, log: Log, beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_file, "_OPENING_TIMEOUT", 0.0)
    write(log.path, [call(0)])
    beside.write_bytes(ATTEMPTS.header + encode_attempt(ATTEMPT))
    file = log.path.with_name(name)
    other = {log.path, beside} - {file}
    before = [path.read_bytes() for path in other]
    with file.open() as locked:
        if kind == "locked":
            _lock.lock(locked.fileno(), 0.0)
        else:
            file.unlink()
            (os.mkfifo if kind == "pipe" else Path.mkdir)(file)
        argument = "logfile" if file == log.path else "attempts"
        with pytest.raises(OSError, match=rf"{argument}: .*{re.escape(str(file))}"):
            connector(log.path, overwrite_log=True)
    assert [path.read_bytes() for path in other] == before


@pytest.mark.parametrize("content", [b"", ATTEMPTS.header[:20], ATTEMPTS.header + encode_attempt(ATTEMPT)[:30]])
def test_overwriting_empties_an_attempts_log_of_which_the_end_is_missing(
    content: bytes, log: Log, beside: Path
) -> None:
    beside.write_bytes(content)
    connector(log.path, overwrite_log=True)
    assert (log.path.read_bytes(), beside.read_bytes()) == (HEADER, ATTEMPTS.header)


# Nothing is lost or damaged.


def make_failing_calls(say: Say, path: str, url: str, first: int, fault: dict[str, Any] | None) -> None:
    """Make calls of two attempts forever, and report the number of each call after it has raised."""
    subject = AsyncConnector(path, n_tries=2, retry=AT_ONCE, attempts=True)
    if fault is not None:
        failing_calls.arm(path.removesuffix(".csv"), fault)  # both files

    async def caller(session: aiohttp.ClientSession, count: Iterable[int]) -> None:
        for number in count:
            with contextlib.suppress(ConnectorError):
                await subject.get(session, url, str(number))
            say(number)

    async def callers() -> None:
        count = itertools.count(first)
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(caller(session, count) for _ in range(8)))

    asyncio.run(callers())


def whole_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[1:-1] if path.exists() else []


@pytest.mark.parametrize("kills", [6, pytest.param(4_000, marks=pytest.mark.soak)])
def test_no_attempt_of_a_call_that_returned_is_missing_after_kill_9(
    kills: int, child_processes: Children, server: FaultServer, log: Log, beside: Path
) -> None:
    chance, torn = random.Random(seed := random.SystemRandom().randrange(2**32)), Counter[int]()
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    halves = set[str]()
    for kill in range(kills):
        # A call writes its attempts first and then its row
        nth = 2 * chance.randrange(30) + (1 if kill % 4 == 1 else 2)
        fault = Fault(action="torn", value=chance.randrange(1, 1_000), nth=nth, only=WRITES)
        ended = child_processes.run(
            make_failing_calls,
            None if kill % 2 else chance.uniform(0, 0.1),
            path=str(log.path),
            url=server.url("/x"),
            first=kill * 1_000_000,
            fault=asdict(fault) if kill % 2 else None,
        )
        assert ended.code == -signal.SIGKILL
        rows = [read_row(line, CALLS)[1] for line in whole_lines(log.path)]
        attempts = Counter(read_row(line, ATTEMPTS)[1].call_id for line in whole_lines(beside))
        assert set(map(str, ended.said)) <= {row.project for row in rows}
        assert {attempts[row.call_id] for row in rows} <= {2}, "attempts are written before the row of their call"
        # A write that was cut between its two lines has left the first of them
        halves, before = {each for each, number in attempts.items() if number == 1}, halves
        torn[kill % 4] += beside.exists() and (not beside.read_bytes().endswith(b"\n") or halves > before)
        connector(log.path)  # the next writer repairs both files
        assert check(beside).whole
        assert check(log.path).whole
    assert torn[1] == len(range(1, kills, 4))
    assert beside.with_name("logs.attempts.csv.torn").exists()


@pytest.mark.parametrize("mode", ["call", "background"])
def test_rows_wait_while_the_disk_is_full_and_are_written_in_order_when_it_has_room(
    mode: Any, server: FaultServer, tmp_path: Path
) -> None:
    with faulty_disks.full(tmp_path / "disk") as disk:
        exporter, log = CSVSpanExporter(disk.path, mode=mode), Log(disk.path)
        try:
            subject = connector(exporter)
            fail(subject, server, 5)
            assert exporter.force_flush()
            disk.strike()
            fail(subject, server, 60)
            assert not exporter.force_flush()
            disk.heal()
            fail(subject, server, 5)
            assert exporter.force_flush()
            assert len(log.records()) == 70
            assert numbers(log.attempts()) == [1, 2] * 70
            assert_two_for_each_row(log)
        finally:
            exporter.shutdown()


@pytest.mark.parametrize("mode", ["call", "background"])
@pytest.mark.parametrize(("name", "lost"), [("logs.csv", 1), ("logs.attempts.csv", 2)])
def test_rows_that_still_wait_when_the_file_is_closed_are_logged_as_lost(
    name: str, lost: int, mode: Any, server: FaultServer, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = CSVSpanExporter(log.path, mode=mode)
    subject = connector(exporter)
    file = log.path.with_name(name)
    file.unlink()
    file.mkdir()
    fail(subject, server)
    for _ in range(2):
        exporter.shutdown()
    lines = [line for line in caplog.messages if "lost" in line]
    rows = "1 row" if lost == 1 else "2 rows"
    assert lines == [f"{file}: {rows} lost, because the disk refused them"]
    assert exporter.counts().lost == (name == "logs.csv")


def test_with_an_fsync_for_each_row_a_power_cut_loses_no_attempt(server: FaultServer, tmp_path: Path) -> None:
    with faulty_disks.with_power_cut(tmp_path / "disk") as disk:
        exporter = CSVSpanExporter(disk.path, fsync_interval=0)
        fail(connector(exporter), server, 5)
        disk.strike()
        exporter.shutdown()
        (path,) = disk.elsewhere()
        log = Log(path)
        assert len(log.records()) == 5
        assert_two_for_each_row(log)


def test_a_forked_child_writes_its_own_attempts_and_none_of_its_parent(server: FaultServer, log: Log) -> None:
    subject = connector(log.path)
    fail(subject, server, 2)

    joined(fork(lambda: fail(subject, server, 3)))
    fail(subject, server)
    assert len(log.records()) == 6
    assert_two_for_each_row(log)


class Interrupted(BaseException):
    """Raised by the trace function, instead of a signal handler."""


FILES = {module.__file__ for module in (_writer, _backlog, _flusher, _file, _lock)}


def write_interrupted(say: Say, folder: str) -> None:
    """Write a call, with an exception before the first line of the writer's files, then the second, and so on."""
    for nth in itertools.count(1):
        path = Path(folder, f"{nth}.csv")
        interrupted = interrupted_write(CSVSpanExporter(path), nth)
        files = path, Path(attempts_file(str(path)))
        say([interrupted, *(file.read_text() for file in files)])
        if not interrupted:
            return


def interrupted_write(exporter: CSVSpanExporter, nth: int) -> str:
    """Write a call, and raise before the `nth` line; return the rows that were being written, empty for none."""
    exporter.open_attempts()
    left, interrupted = nth, ""

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left, interrupted
        del argument
        if frame.f_code.co_filename not in FILES:
            return None
        # See `test_interrupted_writes.interrupt`
        if event == "line" and not linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith(
            "with "
        ):
            left -= 1
            if not left:
                sys.settrace(None)
                interrupted = "attempts" if is_within(frame, exporter._attempts) else "calls"
                raise Interrupted
        return trace

    sys.settrace(trace)
    with contextlib.suppress(Interrupted):
        exporter.export_record(BLANK, None, [ATTEMPT, ATTEMPT])
    sys.settrace(None)
    exporter.shutdown()
    return interrupted


def is_within(frame: FrameType | None, writer: object) -> bool:
    """Return whether a frame was called, directly or not, by a method of the writer."""
    while frame is not None:
        if frame.f_locals.get("self") is writer:
            return True
        frame = frame.f_back
    return False


def test_a_signal_handler_that_raises_during_the_write_of_the_attempts_loses_no_row(
    child_processes: Children, tmp_path: Path
) -> None:
    """In a child process, without coverage, which uses a trace function, too."""
    code, written = child_processes.run(write_interrupted, folder=str(tmp_path))
    assert code == 0
    calls = (CALLS.header + CALLS.encode(BLANK)).decode()
    attempts = (ATTEMPTS.header + encode_attempt(ATTEMPT) * 2).decode()
    assert {interrupted for interrupted, _, _ in written} == {"attempts", "calls", ""}
    for interrupted, found_calls, found_attempts in written:
        # A handler that raises before a write has accepted its rows has interrupted the code that calls it
        assert found_calls == calls or (interrupted == "calls" and found_calls == HEADER.decode())
        assert found_attempts == attempts or (interrupted, found_attempts) == ("attempts", ATTEMPTS.header.decode())


# Commands.


def test_check_reports_and_repairs_the_attempts_with_their_log(tmp_path: Path) -> None:
    write(tmp_path / "logs.csv", [call(0)])
    for name in ("logs.attempts.part-000001.csv", "logs.attempts.csv"):
        (tmp_path / name).write_bytes(ATTEMPTS.header + encode_attempt(ATTEMPT))
    (tmp_path / "logs.attempts.csv").write_bytes(ATTEMPTS.header + encode_attempt(ATTEMPT) * 2 + b"0af7")

    done = run_here(tmp_path, "check", "logs*.csv")
    assert done.code == 1
    assert [line.partition(", bytes")[0] for line in done.out.splitlines() if not line.startswith(" ")] == [
        "logs.csv: intact; rows: 1, damaged lines: 0",
        "logs.attempts.part-000001.csv: intact; rows: 1, damaged lines: 0",
        "logs.attempts.csv: DAMAGED; rows: 2, damaged lines: 0",
    ]
    done = run_here(tmp_path, "check", "--repair", "logs.csv")
    assert (done.code, (tmp_path / "logs.attempts.csv.torn").read_bytes()) == (0, b"0af7")
    assert (tmp_path / "logs.attempts.csv").read_bytes() == ATTEMPTS.header + encode_attempt(ATTEMPT) * 2


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (encode_attempt(ATTEMPT), 1, "the header is missing; the line itself is a whole row"),
        (ATTEMPTS.header + CALLS.encode(BLANK), 1, "number must be a number, not ''"),
        (ATTEMPTS.header.replace(b"\n", b"\r\n"), 1, "ALTERED"),
        (ATTEMPTS.header * 2, 1, "the line is a header: files were joined"),
        (ATTEMPTS.header + encode_attempt(ATTEMPT).replace(b"0.500000", b"0.5"), 1, "altered lines: 1"),
        (b"", 2, "not a log: the file is empty"),
        (HEADER, 0, "intact; rows: 0"),
    ],
)
def test_check_of_an_attempts_log_by_its_name(content: bytes, code: int, words: str, tmp_path: Path) -> None:
    (tmp_path / "logs.attempts.csv").write_bytes(content)
    done = run_here(tmp_path, "check", "logs.attempts.csv")
    assert (done.code, words in done.out + done.error) == (code, True)


LOG_OF_CALLS = HEADER + CALLS.encode(BLANK)


@pytest.mark.parametrize("arguments", [("logs.csv",), ("logs.attempts.csv", "logs.csv"), ("*.csv",)])
@pytest.mark.parametrize(
    ("content", "why"),
    {
        "empty": (b"", "not a log: the file is empty"),
        "unrelated": (b"a,b\n", "not a log: its first line is 'a,b', not the header"),
        "a log": (LOG_OF_CALLS, "not an attempts log: the file is a log of calls"),
        "missing": (None, "No such file or directory"),
    }.values(),
)
def test_check_says_that_a_file_is_not_the_attempts_log_of_a_log_and_checks_the_log(
    content: bytes | None, why: str, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    write(tmp_path / "logs.csv", [call(0)])
    beside = tmp_path / "logs.attempts.csv"
    if content is None:
        beside.symlink_to("nowhere")
        arguments = ("logs.csv",)
    else:
        beside.write_bytes(content)
    done = run_here(tmp_path, "check", *arguments)
    assert (done.code, done.out.splitlines()) == (2, ["logs.csv: intact; rows: 1, damaged lines: 0, bytes: 205"])
    assert done.error == f"otel-connector check: logs.attempts.csv: the attempts log of logs.csv: {why}\n"


def test_check_does_not_say_that_review_reads_the_rows_of_an_attempts_log(tmp_path: Path) -> None:
    content = ATTEMPTS.header + encode_attempt(ATTEMPT).replace(b"0.500000", b"0.5")
    (tmp_path / "logs.attempts.csv").write_bytes(content)
    done = run_here(tmp_path, "check", "logs.attempts.csv")
    assert done.out.endswith("  Altered lines have another form (line end, quotes, numbers)\n")


@pytest.mark.parametrize("name", ["logs.csv", "logs.20261128.csv", "logs"])
def test_patterns_skip_the_attempts_of_a_log(name: str, tmp_path: Path) -> None:
    connector(tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 2
    assert log_files([f"{tmp_path}/logs*"]) == [str(tmp_path / name)]


def test_other_commands_say_what_an_attempts_log_is_and_do_not_replace_it(tmp_path: Path) -> None:
    write(tmp_path / "logs.csv", [call(0)])
    content = ATTEMPTS.header + encode_attempt(ATTEMPT)
    (tmp_path / "logs.attempts.csv").write_bytes(content)
    done = run_here(tmp_path, "review", "logs.attempts.csv")
    assert done.code == 2
    assert "logs.attempts.csv: not a log: the file has the attempts of a log; name the log" in done.error
    done = run_here(tmp_path, "review", "--html", "logs.attempts.csv", "logs.csv")
    assert (done.code, "this file is a log, or belongs to one" in done.error) == (2, True)
    assert (tmp_path / "logs.attempts.csv").read_bytes() == content


# A shell expands ``*.csv`` to the attempts log, too; a pattern in quotes can match one whose log is elsewhere.

LEFT_OUT = "left out, because attempts logs have no calls: h.attempts.part-000001.csv.gz, h.attempts.csv"


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """Return a folder with two logs, and the attempts log of a third, with a compressed part."""
    for number, name in enumerate(("a.csv", "b.csv")):
        write(tmp_path / name, [call(10 * number + each) for each in range(3)])
    content = ATTEMPTS.header + encode_attempt(ATTEMPT)
    (tmp_path / "h.attempts.csv").write_bytes(content)
    (tmp_path / "h.attempts.part-000001.csv.gz").write_bytes(gzip.compress(content))
    return tmp_path


EXPANDED = ("a.csv", "h.attempts.csv", "h.attempts.part-000001.csv.gz", "b.csv")
FETCH = ("fetch", "http://127.0.0.1:1/", "--tries", "1", "--fail-if", "skipped > 1")
RESUME_FROM = tuple(f"--resume-from={name}" for name in EXPANDED)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    {
        "review": (("review", *EXPANDED), "6 calls"),
        "review, a pattern": (("review", "*.csv*"), "6 calls"),
        "review --json": (("review", "--json", *EXPANDED), '"calls": 6'),
        "compare": (("review", "--compare", *EXPANDED), "b.csv"),
        "replay": (("replay", *EXPANDED), "6"),
        "replay, a pattern": (("replay", "*.csv*"), "6"),
        "resume": ((*FETCH, *RESUME_FROM), ""),
        "resume, a pattern": ((*FETCH, "--resume-from", "*.csv*"), ""),
    }.values(),
    ids=str,
)
def test_an_attempts_log_among_logs_is_left_out_with_one_line(
    arguments: tuple[str, ...], shown: str, both: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with grpc_receiver(Received()) as endpoint:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint} if arguments[0] == "replay" else {}
        done = run_here(both, *arguments, **variables)
    assert (done.code, shown in done.out) == (0, True)
    (line,) = (line for line in caplog.messages if "left out" in line)
    names = line.rpartition(": ")[2].split(", ")
    assert sorted(names) == sorted(EXPANDED[1:3])


@pytest.mark.parametrize(
    "command", [("review",), ("review", "--compare", "a.csv"), ("replay",), (*FETCH, "--resume-from")], ids=str
)
def test_an_attempts_log_alone_is_an_error_that_says_what_it_is(
    command: tuple[str, ...], both: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (both / "h.attempts.part-000001.csv.gz").unlink()
    done = run_here(both, *command, "h.attempts.csv")
    compared = "--compare" in command
    assert done.code == 2
    assert ("--compare needs two logs" if compared else "has the attempts of a log; name the log") in done.error
    assert any("left out" in line for line in caplog.messages) is compared


def test_the_attempts_log_of_a_resume_is_left_out_of_the_further_logs(both: Path) -> None:
    names = [str(both / name) for name in EXPANDED]
    assert read_done(names[0], names[1:], "P").files == [names[0], names[3]]
    with pytest.raises(ValueError, match="has the attempts of a log; name the log"):
        read_done(names[0], names[1:2], "P")


def test_the_line_is_on_standard_error_and_follow_prints_it_once(both: Path) -> None:
    program = start(both, "review", "--follow", *EXPANDED)
    assert program.stdout is not None
    for calls in (6, 7):  # two updates
        assert any(f"{calls} calls" in line for line in program.stdout)
        with (both / "a.csv").open("ab") as file:
            file.write(CALLS.encode(call(30)))
    program.send_signal(signal.SIGINT)
    done = finish(program)
    assert done.code == 130
    assert done.error.splitlines() == [LEFT_OUT]
