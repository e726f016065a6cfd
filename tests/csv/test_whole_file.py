"""Tests of the function that writes every file that is not appended to: reports, pictures and checkpoints.

The programs that the expected values come from: `cp` and `curl -o` follow a symbolic link and keep the mode of an
existing file; `mkstemp` (POSIX) creates with O_EXCL and mode 0600.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import processes
from support.forked import Program

from otel_connector._csv._whole_file import check_target, write_whole

OTHER = 12_345  # the uid and the gid of another user
needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="gives files to other users")


@pytest.fixture(autouse=True)
def common_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def made(path: Path, mode: int = 0o644, content: str = "old") -> Path:
    path.write_text(content)
    path.chmod(mode)
    return path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def left_behind(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("logs", "umask", "mode"),
    [
        ((), 0o022, 0o600),
        ((0o600,), 0o022, 0o600),
        ((0o644,), 0o022, 0o644),
        ((0o644,), 0o077, 0o600),  # the umask counts, as for any new file
        ((0o666,), 0o002, 0o664),
        ((0o644, 0o640), 0o022, 0o640),
        ((0o640, 0o604), 0o022, 0o600),
        ((0o400,), 0o022, 0o600),  # its owner may write it in any case
        ((0o755,), 0o022, 0o644),
    ],
)
def test_a_new_file_has_the_narrowest_mode_of_its_sources(
    tmp_path: Path, logs: tuple[int, ...], umask: int, mode: int
) -> None:
    like = [str(made(tmp_path / f"{number}.csv", each)) for number, each in enumerate(logs)]
    os.umask(umask)
    write_whole(str(tmp_path / "new"), b"x", like=like)
    assert oct(mode_of(tmp_path / "new")) == oct(mode)
    assert os.umask(umask) == umask


@pytest.mark.parametrize(
    ("before", "log", "after"),
    [
        (0o640, 0o644, 0o640),
        (0o644, 0o644, 0o644),
        (0o600, 0o644, 0o600),
        (0o755, 0o644, 0o755),
        (0o644, 0o600, 0o600),  # narrower than the file: users who may not read the log may not read its report
        (0o660, 0o640, 0o640),
    ],
)
def test_an_existing_file_keeps_its_mode_unless_a_source_has_a_narrower_one(
    tmp_path: Path, before: int, log: int, after: int
) -> None:
    target = made(tmp_path / "old", before)
    write_whole(str(target), b"new", like=[str(made(tmp_path / "log", log))])
    assert (oct(mode_of(target)), target.read_bytes()) == (oct(after), b"new")


def test_a_source_that_was_removed_counts_as_private(tmp_path: Path) -> None:
    write_whole(str(tmp_path / "new"), b"", like=[str(tmp_path / "gone")])
    assert mode_of(tmp_path / "new") == 0o600


@needs_root
def test_the_owner_and_the_group_of_an_existing_file_are_kept(tmp_path: Path) -> None:
    target = made(tmp_path / "old", 0o640)
    os.chown(target, OTHER, OTHER)
    log = made(tmp_path / "log")
    os.chown(log, OTHER, OTHER)
    write_whole(str(target), b"new", like=[str(log)])
    status = target.stat()
    assert (status.st_uid, status.st_gid, mode_of(target)) == (OTHER, OTHER, 0o640)


@needs_root
def test_a_file_of_another_user_than_the_log_becomes_ones_own(tmp_path: Path) -> None:
    """Its owner would read what the log contains."""
    target, log = made(tmp_path / "old", 0o640), made(tmp_path / "log", 0o600)
    os.chown(target, OTHER, 0)
    write_whole(str(target), b"new", like=[str(log)])
    assert (target.stat().st_uid, mode_of(target)) == (os.geteuid(), 0o600)


@needs_root
def test_a_log_that_was_removed_may_have_had_another_owner(tmp_path: Path) -> None:
    target = made(tmp_path / "old", 0o640)
    os.chown(target, OTHER, 0)
    write_whole(str(target), b"new", like=[str(tmp_path / "gone")])
    assert target.stat().st_uid == os.geteuid()


@needs_root
@pytest.mark.parametrize(("mode", "expected"), [(0o640, 0o600), (0o664, 0o644), (0o660, 0o600)])
def test_the_group_of_the_new_file_gets_what_others_have_if_it_is_not_the_group_of_the_log(
    tmp_path: Path, mode: int, expected: int
) -> None:
    log = made(tmp_path / "log", mode)
    os.chown(log, 0, OTHER)
    write_whole(str(tmp_path / "new"), b"x", like=[str(log)])
    assert oct(mode_of(tmp_path / "new")) == oct(expected)


@needs_root
def test_a_group_that_cannot_be_kept_loses_its_access() -> None:
    """As in `cp -p`: the mode would otherwise give the members of another group what it gave the old one."""
    with tempfile.TemporaryDirectory() as name:  # the folders above `tmp_path` are closed to other users
        folder = Path(name)
        target, log = made(folder / "old", 0o664), made(folder / "log")
        os.chown(folder, OTHER, OTHER)
        os.chown(target, OTHER, OTHER + 1)
        os.setegid(OTHER)
        os.seteuid(OTHER)
        try:
            write_whole(str(target), b"new", like=[str(log)])
        finally:
            os.seteuid(0)
            os.setegid(0)
        assert (target.read_bytes(), oct(mode_of(target)), target.stat().st_gid) == (b"new", oct(0o604), OTHER)


@pytest.mark.parametrize("exists", [True, False])
def test_symbolic_links_are_followed_and_stay(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "target"
    if exists:
        made(target, 0o640)
    (tmp_path / "second").symlink_to("real/target")
    (tmp_path / "first").symlink_to("second")
    write_whole(str(tmp_path / "first"), b"new", like=[str(made(tmp_path / "log"))])
    assert (tmp_path / "first").readlink() == Path("second")
    assert target.read_bytes() == b"new"
    assert mode_of(target) == (0o640 if exists else 0o644)
    assert left_behind(tmp_path) == left_behind(tmp_path / "real") == []


@needs_root
def test_a_link_of_another_user_is_refused(tmp_path: Path) -> None:
    target = made(tmp_path / "victim")
    (tmp_path / "r.html").symlink_to(target)
    os.lchown(tmp_path / "r.html", OTHER, OTHER)
    with pytest.raises(OSError, match="a symbolic link that belongs to another user"):
        write_whole(str(tmp_path / "r.html"), b"new")
    assert target.read_text() == "old"


@needs_root
@pytest.mark.parametrize(
    ("folder_mode", "folder_owner", "refused"),
    [(0o1777, 0, True), (0o770, 0, True), (0o755, 0, False), (0o755, OTHER, True)],
    ids=["like /tmp", "of a group", "private", "of the owner of the file"],
)
def test_a_file_that_another_user_may_have_planted_is_refused(
    tmp_path: Path, folder_mode: int, folder_owner: int, refused: bool
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    target = made(folder / "r.html")
    os.chown(target, OTHER, OTHER)
    os.chown(folder, folder_owner, 0)
    folder.chmod(folder_mode)
    if refused:
        with pytest.raises(OSError, match=re.escape(f"belongs to another user ({OTHER})")) as caught:
            write_whole(str(target), b"new")
        assert (caught.value.errno, caught.value.filename) == (errno.EPERM, str(target))
        assert target.read_text() == "old"
    else:
        write_whole(str(target), b"new")
        assert target.read_text() == "new"


@pytest.mark.parametrize("kind", ["folder", "fifo", "device", "link to a device"])
def test_what_is_not_a_file_of_its_own_is_refused_and_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "target"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path(os.devnull)
    else:
        path.symlink_to(os.devnull)
    before = path.lstat()
    with pytest.raises(OSError, match=r"not a regular file|Is a directory") as caught:
        write_whole(str(path), b"new")
    assert caught.value.filename == str(path)
    assert os.path.samestat(before, path.lstat())
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("name", ["/dev/stdout", "output"])
def test_the_file_that_standard_output_is_written_to_is_refused(tmp_path: Path, name: str) -> None:
    """The rest of the output would go to the replaced file, which has no name any more."""
    program = f"from otel_connector._csv._whole_file import write_whole; write_whole({name!r}, b'x')"
    with (tmp_path / "output").open("wb") as output:
        process = Program(["-c", program], cwd=tmp_path, stdout=output, stderr=subprocess.PIPE, text=True)
        with process:
            _, error = process.communicate()
    assert f"standard output or standard error is written to this file: {name!r}" in error


def test_a_target_is_checked_if_the_outputs_are_closed(tmp_path: Path) -> None:
    target = made(tmp_path / "old")
    program = f"from otel_connector._csv._whole_file import write_whole; write_whole({str(target)!r}, b'new')"
    done = processes.run(["sh", "-c", '"$0" -c "$1" >&- 2>&-', sys.executable, program], cwd=tmp_path)
    assert done.returncode == 0
    assert target.read_text() == "new"


def interrupted() -> Iterator[str]:
    """Raise what Ctrl-C raises while the new file exists."""
    yield os.devnull
    raise KeyboardInterrupt


@pytest.mark.parametrize("failure", ["content", "interrupt", "rename", "no folder", "long name"])
def test_nothing_is_left_behind_by_a_failure(tmp_path: Path, failure: str) -> None:
    target = made(tmp_path / "old")
    if failure == "content":
        with pytest.raises(TypeError):
            write_whole(str(target), "a text")  # type: ignore[arg-type]
    elif failure == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            write_whole(str(target), b"new", like=interrupted())
        assert target.read_text() == "old"
    elif failure == "rename":  # the target becomes a folder after it was checked
        folder = tmp_path / "log"
        made(folder)

        class Like:
            def __iter__(self) -> Iterator[str]:
                target.unlink()
                target.mkdir()
                yield str(folder)

        with pytest.raises(IsADirectoryError) as caught:
            write_whole(str(target), b"new", like=Like())
        assert caught.value.filename == str(target)
    else:
        path = tmp_path / "no" / "file" if failure == "no folder" else tmp_path / ("x" * 256)
        with pytest.raises(OSError, match=re.escape(str(path))):
            write_whole(str(path), b"new")
    assert left_behind(tmp_path) == []


def test_a_name_of_the_greatest_length_can_be_written(tmp_path: Path) -> None:
    """NAME_MAX of POSIX file systems is 255 bytes; the name of the new file must not be longer than that."""
    target = tmp_path / ("x" * 255)
    write_whole(str(target), b"new")
    assert target.read_bytes() == b"new"


def test_planted_files_with_predictable_names_are_not_used(tmp_path: Path) -> None:
    """CWE-377: names with the process id can be predicted, and links were followed."""
    victim = made(tmp_path / "victim")
    planted = [tmp_path / f".r.html.{os.getpid()}", tmp_path / f"r.html.{os.getpid()}", tmp_path / ".r.html"]
    for path in planted:
        path.symlink_to(victim)
    write_whole(str(tmp_path / "r.html"), b"secret")
    assert victim.read_text() == "old"
    assert all(path.is_symlink() for path in planted)


def test_the_status_of_a_missing_file_is_none(tmp_path: Path) -> None:
    assert check_target(str(tmp_path / "new")) == (tmp_path / "new", None)
