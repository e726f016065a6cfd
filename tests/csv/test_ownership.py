"""Tests that a file which another user put into a shared folder is not used: as log, results, checkpoint or part.

CWE-379 and CWE-283: in a folder such as ``/tmp`` another user can create the file first, or between the rename and the
new file of a rotation, and then read or change what this program writes and believes.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.command_line import run_here
from support.logs import call, rows

from otel_connector import AsyncConnector, review
from otel_connector._csv._check import check, repair
from otel_connector._csv._done import read_done
from otel_connector._csv._file import AppendFile
from otel_connector._csv._format import HEADER
from otel_connector._csv._options import LogOptions
from otel_connector._csv._parts import log_files
from otel_connector._csv._writer import RowWriter
from otel_connector._fetch._chunk import Chunk, fetch_chunk
from otel_connector._fetch._results import ResultsFile
from otel_connector._replay._replay import Replay

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")

OTHER = 65_534
LOG = HEADER + rows(call(0), call(1))
REFUSED = re.escape(f"belongs to another user ({pwd.getpwuid(OTHER).pw_name}), in a folder that others may write")

# Mode and owner of the folder
SHARED = {
    "as /tmp": (0o1777, 0),
    "world-writable": (0o777, 0),
    "group-writable": (0o770, 0),
    "group-writable, setgid": (0o2775, 0),
    "of the other user": (0o755, OTHER),
}


@pytest.fixture(params=SHARED)
def shared(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    mode, owner = SHARED[request.param]
    os.chown(folder, owner, 0)
    folder.chmod(mode)
    monkeypatch.chdir(folder)
    return folder


def plant(path: str, content: bytes = LOG, owner: int = OTHER) -> None:
    Path(path).write_bytes(content)
    Path(path).chmod(0o666)
    os.chown(path, owner, owner)


def replay(*names: str, checkpoint: str | None = None) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    list(Replay(names, exporter, to="http://c", rate=None, checkpoint=checkpoint).run())
    return exporter


def own_log() -> None:
    if not Path("logs.csv").exists():
        Path("logs.csv").write_bytes(LOG)


def chunk() -> None:
    asyncio.run(fetch_chunk(Chunk(project="P", urls=(), log="logs.csv", results="r.jsonl")))


def resume(*others: str) -> None:
    own_log()
    read_done("logs.csv", others, "P")


def replay_own_log(checkpoint: str | None = None) -> None:
    own_log()
    replay("logs.csv", checkpoint=checkpoint)


def replay_part() -> None:
    Path("logs.000001.csv").write_bytes(LOG)
    replay("logs.000001.csv")


def review_own_log() -> None:
    own_log()
    review.load("logs.csv").close()


def torn() -> None:
    Path("logs.csv").write_bytes(LOG[:-9])
    repair("logs.csv")


USES: dict[str, tuple[str, Callable[[], object]]] = {  # the file that is planted, and what would use it
    "the log": ("logs.csv", lambda: RowWriter("logs.csv", HEADER)),
    "the log, to be emptied": ("logs.csv", lambda: RowWriter("logs.csv", HEADER, LogOptions(overwrite=True))),
    "the log of a connector": ("logs.csv", lambda: AsyncConnector("logs.csv")),
    "the log of a chunk": ("logs.csv", chunk),
    "the results of a chunk": ("r.jsonl", chunk),
    "the results": ("r.jsonl", lambda: ResultsFile("r.jsonl", resume=True)),
    "compressed results": ("r.jsonl.gz", lambda: ResultsFile("r.jsonl.gz", resume=True)),
    "a log to repair": ("logs.csv", lambda: repair("logs.csv")),
    "the file of unfinished lines": ("logs.csv.torn", torn),
    "the own log of resume": ("logs.csv", resume),
    "a part of the own log of resume": ("logs.000001.csv", resume),
    "another log of resume": ("other.csv", lambda: resume("other.csv")),
    "a part of another log of resume": ("logs.000001.csv", lambda: read_done(None, ["*.csv"], "P")),
    "a part in a review": ("logs.000001.csv", review_own_log),
    "a part in a replay": ("logs.000001.csv", replay_own_log),
    "the checkpoint": ("logs.csv.replayed", replay_own_log),
    "a checkpoint of version 0.1.0": ("logs.000001.csv.replayed", replay_part),
    "a checkpoint by name": ("here", lambda: replay_own_log("here")),
}


@pytest.mark.parametrize("use", USES)
def test_a_file_of_another_user_in_a_shared_folder_is_refused_and_not_changed(use: str, shared: Path) -> None:
    name, run = USES[use]
    content = b"" if "results" in use or "checkpoint" in use or "unfinished" in use else LOG[:-9]
    plant(name, content)
    with pytest.raises(OSError, match=REFUSED) as caught:
        run()
    assert name in str(caught.value)
    assert Path(name).read_bytes() == content
    assert Path(name).stat().st_uid == OTHER


@pytest.mark.parametrize("use", USES)
def test_the_same_file_is_used_if_it_is_the_users(use: str, shared: Path) -> None:
    name, run = USES[use]
    if "results" in use or "checkpoint" in use or "unfinished" in use:
        plant(name, b"", owner=0)
    else:
        plant(name, LOG, owner=0)
    run()


def test_a_file_of_root_is_used_by_another_user() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's folder can be read by root only
        Path(folder).chmod(0o777)
        path = Path(folder, "logs.csv")
        plant(str(path), owner=0)
        os.seteuid(OTHER)
        try:
            writer = RowWriter(path, HEADER)
            assert writer.write([rows(call(2))])
            writer.close()
        finally:
            os.seteuid(0)
        assert path.read_bytes() == LOG + rows(call(2))


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o711])
def test_a_file_of_another_user_is_used_in_a_folder_that_no_other_user_may_write(mode: int, tmp_path: Path) -> None:
    """As before: the owner of the folder has put it there on purpose, for example as the log of a service."""
    tmp_path.chmod(mode)
    path = tmp_path / "logs.csv"
    plant(str(path))
    assert RowWriter(path, HEADER).write([rows(call(2))])
    assert read_done(str(path), [], "P").rows == 3


@pytest.mark.parametrize("link_in", ["shared", "private"])
def test_the_folder_of_a_link_and_that_of_its_target_count(link_in: str, tmp_path: Path) -> None:
    """The owner of a shared folder can replace the link, and the owner of the other one the file."""
    folders = {name: tmp_path / name for name in ("shared", "private")}
    for name, folder in folders.items():
        folder.mkdir()
        folder.chmod(0o1777 if name == "shared" else 0o700)
    link = folders.pop(link_in) / "logs.csv"
    target = next(iter(folders.values())) / "logs.csv"
    plant(str(target))
    link.symlink_to(target)
    with pytest.raises(PermissionError, match=REFUSED):
        RowWriter(link, HEADER)
    assert target.read_bytes() == LOG


def test_a_user_without_a_name_is_shown_by_number(shared: Path) -> None:
    plant("logs.csv", owner=1_234_567)
    with pytest.raises(PermissionError, match=r"belongs to another user \(1234567\)"):
        RowWriter("logs.csv", HEADER)


def test_reading_a_log_by_its_name_is_allowed(shared: Path) -> None:
    """A review reports what is in the file; with the log, its parts of the same owner are read."""
    for name in ("logs.csv", "logs.000001.csv"):
        plant(name)
    assert log_files(["logs.csv"]) == ["logs.000001.csv", "logs.csv"]
    assert check("logs.csv").whole
    with review.load("logs.csv") as calls:
        assert len(calls) == 4
    assert len(replay("logs.csv").get_finished_spans()) == 2


@pytest.mark.parametrize("planted", ["a file", "a link"])
def test_a_file_that_is_planted_during_a_rotation_receives_no_rows(
    planted: str, shared: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another user creates it between the rename and the new file. The rows go to the old file, under its new name."""

    def plant_it(file: AppendFile) -> None:
        rename(file)
        if planted == "a file":
            plant("logs.csv", HEADER)
        else:
            plant("elsewhere.csv", HEADER)
            Path("logs.csv").symlink_to("elsewhere.csv")
            os.lchown("logs.csv", OTHER, OTHER)

    writer = RowWriter("logs.csv", HEADER, LogOptions(rotate_rows=1))
    assert writer.write([rows(call(0))])
    rename = AppendFile.rename_to_part
    with monkeypatch.context() as patch:
        patch.setattr(AppendFile, "rename_to_part", plant_it)
        assert writer.write([rows(call(1))])
    assert writer.write([rows(call(2))])
    assert Path("logs.csv").read_bytes() == HEADER
    assert Path("logs.part-000001.csv").read_bytes() == HEADER + rows(call(0), call(1), call(2))
    assert "belongs to another user" in caplog.text
    Path("logs.csv").unlink()
    writer.close()
    assert RowWriter("logs.csv", HEADER).write([rows(call(3))])
    assert Path("logs.csv").read_bytes() == HEADER + rows(call(3))


def test_a_new_file_of_a_rotation_is_created_exclusively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, int]] = []
    system_open = os.open

    def record(path: str, flags: int, mode: int = 0o777) -> int:
        opened.append((str(path), flags))
        return system_open(path, flags, mode)

    path = tmp_path / "logs.csv"
    writer = RowWriter(path, HEADER, LogOptions(rotate_rows=1))
    monkeypatch.setattr(os, "open", record)
    for number in range(3):
        assert writer.write([rows(call(number))])
    flags = [flags for name, flags in opened if name == str(path)]
    assert len(flags) == 2
    assert all(each & os.O_EXCL and each & os.O_CREAT for each in flags)


def test_commands_name_the_file_and_its_owner(shared: Path) -> None:
    (shared / "urls").write_text("http://127.0.0.1:1/\n")
    plant("logs.csv")
    for arguments in (
        ("fetch", "urls"),
        ("fetch", "urls", "--log", "new.csv", "--resume-from", "logs.csv"),
        ("check", "--repair", "logs.csv"),
    ):
        done = run_here(shared, *arguments)
        assert done.code == 2
        assert re.search(f"logs.csv: .*{REFUSED}", done.error), done.error
    plant("r.jsonl", b"")
    Path("logs.csv").unlink()
    done = run_here(shared, "fetch", "urls", "--out", "r.jsonl")
    assert (done.code, bool(re.search(f"r.jsonl: .*{REFUSED}", done.error))) == (2, True), done.error
    assert stat.S_IMODE(Path("r.jsonl").stat().st_mode) == 0o666
