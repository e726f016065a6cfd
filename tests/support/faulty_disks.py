"""Disks that fail for real, as root on Linux: full, read-only, shut down, frozen, hanging, lying about fsync.

Each is a context manager that yields a `Disk` and takes away what it made, however the test ends. Where the machine
cannot make one, the test is skipped and says why. Knows nothing of the connector: a disk has a file, a moment at which
it fails, and one at which it answers again.

Run as a program, the file serves the FUSE file system of `fuse`: mfusepy must be in a process of its own, because a
thread that waits for a file system in the same process may hold what that file system needs.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import errno
import fcntl
import importlib.util
import os
import queue
import resource
import shutil
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support import processes

NAME = "logs.csv"
"""Name of the log on every disk."""

PATIENCE = 20.0
"""Seconds after which a disk that hangs lets go by itself, so that a failing test cannot stop the machine."""

_EXT4_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), fs/ext4/ext4.h
_FLUSH_FIRST, _LIKE_A_POWER_CUT = 0, 2  # its EXT4_GOING_FLAGS_DEFAULT and _NOLOGFLUSH
_PAGE = 4_096
_WORDS = ("mounted", "done", "hanging")  # all that the FUSE process says


@dataclass(kw_only=True)
class Disk:
    """A place for a log, and what happens to it.

    Attributes:
        path: The log.
        strike: Makes it fail.
        heal: Makes it answer again; harmless when called twice, or without `strike`.
        elsewhere: Returns the other files that rows may be in, older than the log; a disk that is not `readable` is
            asked only when nobody has the log open any more.
        readable: Whether the log can be read while the disk fails.
        refuses: Whether no row can be written while it fails; else a writer may go on in the file that it has.
    """

    path: Path
    strike: Callable[[], object]
    heal: Callable[[], object]
    elsewhere: Callable[[], list[Path]] = list
    readable: bool = True
    refuses: bool = True

    def files(self) -> list[Path]:
        """Return the files that are there, the log last."""
        return [file for file in [*self.elsewhere(), self.path] if file.exists()]


# What the machine must have.


def need(*programs: str, device: str = "") -> None:
    """Skip the test if this is not root on Linux, or a program or a device file is missing."""
    if sys.platform != "linux":
        pytest.skip("these faults are made with what Linux has")
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    if missing := [name for name in programs if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if device and not Path(device).exists():
        pytest.skip(f"no {device} on this machine")


def run(*command: str | os.PathLike[str]) -> str:
    """Run a program to its end and return what it printed; its own message is in the error if it fails."""
    done = processes.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return str(done.stdout)


def _unmount(folder: Path) -> None:
    """Take off all that is mounted there, at once if nobody uses it and else as soon as nobody does."""
    while _mounts_on(folder):  # not os.path.ismount: a FUSE mount whose program is gone does not answer
        run("umount", "--lazy", folder)


@contextlib.contextmanager
def mounted(folder: Path, *arguments: str | os.PathLike[str]) -> Iterator[Path]:
    """Mount something on a new folder (or an old one) for the time of the block."""
    need("mount", "umount")
    folder.mkdir(exist_ok=True)
    before = len(_mounts_on(folder))
    run("mount", *arguments, folder)
    try:
        yield folder
    finally:
        while len(_mounts_on(folder)) > before:
            run("umount", "--lazy", folder)


def _mounts_on(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.split()[4] == str(folder)]


# Disks in memory: no room, no inodes.


def _use_up(folder: Path) -> None:
    """Write until the file system has not a byte left that is not in a page of some file already."""
    with (folder / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(_PAGE))


@contextlib.contextmanager
def full(folder: Path) -> Iterator[Disk]:
    """A tmpfs on which the last page is used up, and which then grows. The row that meets the end is cut short."""
    with mounted(folder, "-t", "tmpfs", "-o", "size=64k", "none"):
        yield Disk(
            path=folder / NAME,
            strike=lambda: _use_up(folder),
            heal=lambda: run("mount", "-o", "remount,size=1m", folder),
        )


@contextlib.contextmanager
def full_when_rotated(folder: Path) -> Iterator[Disk]:
    """As `full`, and the file with half a row at its end is then renamed, while there is still no room."""
    path, old = folder / NAME, folder / f"{NAME}.1"

    def heal() -> None:
        if not old.exists() and path.exists():
            path.rename(old)
        run("mount", "-o", "remount,size=1m", folder)

    with mounted(folder, "-t", "tmpfs", "-o", "size=64k", "none"):
        yield Disk(path=path, strike=lambda: _use_up(folder), heal=heal, elsewhere=lambda: [old])


@contextlib.contextmanager
def without_inodes(folder: Path) -> Iterator[Disk]:
    """A tmpfs whose last inode is used up as the log is renamed, so that the new one cannot be made."""
    path, old = folder / NAME, folder / f"{NAME}.1"

    def strike() -> None:
        path.rename(old)
        with contextlib.suppress(OSError):
            for number in range(100):
                (folder / str(number)).touch()

    with mounted(folder, "-t", "tmpfs", "-o", "nr_inodes=10", "none"):
        yield Disk(
            path=path,
            strike=strike,
            heal=lambda: run("mount", "-o", "remount,nr_inodes=1000", folder),
            elsewhere=lambda: [old],
            refuses=False,
        )


# Folders and attributes.


@contextlib.contextmanager
def read_only_when_rotated(folder: Path) -> Iterator[Disk]:
    """A folder over which a read-only bind mount is laid as the log is renamed.

    A mount whose files are open for writing cannot be made read-only itself: mount(2) says EBUSY.
    """
    need("mount", "umount")
    folder.mkdir()
    data = folder.with_name(f"{folder.name}-data")
    data.mkdir()
    path, old = data / NAME, data / f"{NAME}.1"

    def strike() -> None:
        path.rename(old)
        run("mount", "--bind", data, folder)
        run("mount", "-o", "remount,ro,bind", folder)

    def heal() -> None:
        while len(_mounts_on(folder)) > 1:
            run("umount", "--lazy", folder)

    with mounted(folder, "--bind", data):
        yield Disk(path=folder / NAME, strike=strike, heal=heal, elsewhere=lambda: [old], refuses=False)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """Lay a read-only bind mount of the folder itself over it."""
    with mounted(folder, "--bind", folder):
        run("mount", "-o", "remount,ro,bind", folder)
        yield folder


@contextlib.contextmanager
def attribute(path: Path, letter: str) -> Iterator[None]:
    """Give a file an attribute of chattr(1) for the time of the block."""
    need("chattr")
    run("chattr", f"+{letter}", path)
    try:
        yield
    finally:
        run("chattr", f"-{letter}", path)


@contextlib.contextmanager
def immutable(folder: Path) -> Iterator[Disk]:
    """A file that gets the attribute ``i``: every write to it, by whatever descriptor, is EPERM."""
    with ext4(folder), contextlib.ExitStack() as attributes:
        path = folder / NAME
        yield Disk(path=path, strike=lambda: attributes.enter_context(attribute(path, "i")), heal=attributes.close)


# Disks on a loop device.


@contextlib.contextmanager
def loop_device(image: Path) -> Iterator[str]:
    """Return the block device of a fresh ext4 image."""
    need("losetup", "mkfs.ext4", device="/dev/loop-control")
    with image.open("wb") as file:
        file.truncate(16 * 2**20)
    run("mkfs.ext4", "-q", "-F", image)
    device = run("losetup", "--find", "--show", image).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def ext4(folder: Path) -> Iterator[str]:
    """An ext4 file system of its own on `folder`, which turns read-only when it finds an error; its device."""
    with (
        loop_device(folder.with_name(f"{folder.name}.img")) as device,
        mounted(folder, "-o", "errors=remount-ro", device),
    ):
        yield device


def shut_down(folder: Path, flags: int = _FLUSH_FIRST) -> None:
    """Shut the ext4 file system down: from now on all that is done to it is EIO."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _EXT4_SHUTDOWN, struct.pack("I", flags))
    finally:
        os.close(descriptor)


def _find_an_error(folder: Path, device: str) -> None:
    """Make ext4 believe that it has found itself damaged, with all that was written on the disk before.

    What is only in the cache is gone when ext4 gives up, as in a power cut; see `with_power_cut` for that.
    """
    run("sync", "--file-system", folder)
    Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error").write_text("a test\n", encoding="utf-8")


@contextlib.contextmanager
def _replaced(folder: Path, break_it: Callable[[Path, str], None], *, readable: bool) -> Iterator[Disk]:
    """An ext4 disk that breaks and never comes back: in its place, under the same path, comes an empty one.

    Only a writer that opens the path again sees that, and only when it has let go of the old disk's file can the old
    disk be mounted afresh.
    """
    first, second, again = (folder.with_name(f"{folder.name}-{name}") for name in ("first", "second", "again"))
    second.mkdir()
    folder.symlink_to(first)
    with contextlib.ExitStack() as later, ext4(first) as device:

        def heal() -> None:
            if folder.readlink() == first:
                folder.with_name("swapped").symlink_to(second)
                folder.with_name("swapped").replace(folder)  # in one step: no row may see neither
                _unmount(first)

        def elsewhere() -> list[Path]:
            if folder.readlink() == first:  # still there
                return []
            if not again.exists():
                later.enter_context(mounted(again, device))
            return [again / NAME]

        yield Disk(
            path=folder / NAME,
            strike=lambda: break_it(first, device),
            heal=heal,
            elsewhere=elsewhere,
            readable=readable,
        )
        later.close()


def shut_down_and_replaced(folder: Path) -> contextlib.AbstractContextManager[Disk]:
    """Return a disk on which everything is EIO from one moment on, until another one takes its place."""
    return _replaced(folder, lambda first, _: shut_down(first), readable=False)


def damaged_and_replaced(folder: Path) -> contextlib.AbstractContextManager[Disk]:
    """Return a disk that is found damaged, turns read-only (EROFS) and is replaced by another one."""
    return _replaced(folder, _find_an_error, readable=True)


@contextlib.contextmanager
def with_power_cut(folder: Path) -> Iterator[Disk]:
    """An ext4 disk that keeps only what was fsynced: `strike` cuts its power, `files` starts it again."""
    again = folder.with_name(f"{folder.name}-again")
    with contextlib.ExitStack() as later, ext4(folder) as device:

        def restart() -> list[Path]:
            _unmount(folder)
            later.enter_context(mounted(again, device))
            return [again / NAME]

        yield Disk(
            path=folder / NAME,
            strike=lambda: shut_down(folder, _LIKE_A_POWER_CUT),
            heal=lambda: None,
            elsewhere=restart,
            readable=False,
        )
        later.close()


@contextlib.contextmanager
def frozen(folder: Path) -> Iterator[Disk]:
    """An ext4 disk that is frozen, as a snapshot does it: who writes waits in the kernel and cannot be killed.

    A child thaws it: when told to, after `PATIENCE` seconds, or when this process is gone.
    """
    need("fsfreeze", "timeout", "sh")
    guards: list[processes.Process] = []

    def strike() -> None:
        thaw = f'timeout {PATIENCE} cat; exec fsfreeze --unfreeze "$0"'
        guards.append(processes.Process(["sh", "-c", thaw, folder], stdin=subprocess.PIPE))
        run("fsfreeze", "--freeze", folder)

    def heal() -> None:
        while guards:
            guards.pop().communicate()

    with ext4(folder):
        try:
            yield Disk(path=folder / NAME, strike=strike, heal=heal)
        finally:
            heal()


def someone_waits_for_a_disk() -> bool:
    """Whether a thread of this process is in the state D: in the kernel, waiting for a disk."""
    for status in Path("/proc/self/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            if status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "D":
                return True
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    """Ask again and again until it is so."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"never: {condition.__name__}")
        os.sched_yield()


# Limits: of the process that calls them, so run what uses them `in_a_child`.


@contextlib.contextmanager
def limited_size(folder: Path) -> Iterator[Disk]:
    """RLIMIT_FSIZE: the row that meets the limit is cut short, the next ones are EFBIG."""
    folder.mkdir()
    path, (soft, hard) = folder / NAME, resource.getrlimit(resource.RLIMIT_FSIZE)
    yield Disk(
        path=path,
        strike=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, hard)),
        heal=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)),
    )


@contextlib.contextmanager
def without_descriptors(folder: Path) -> Iterator[Disk]:
    """RLIMIT_NOFILE as the log is renamed: the new one cannot be opened (EMFILE)."""
    folder.mkdir()
    path, old, (soft, hard) = folder / NAME, folder / f"{NAME}.1", resource.getrlimit(resource.RLIMIT_NOFILE)

    def strike() -> None:
        path.rename(old)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))

    yield Disk(
        path=path,
        strike=strike,
        heal=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
        elsewhere=lambda: [old],
        readable=False,  # for lack of a descriptor, too
        refuses=False,
    )


def in_a_child(module_file: str, function: str, *arguments: str | os.PathLike[str]) -> None:
    """Call a function of a test module in a process of its own; its traceback is in the error."""
    listed = ", ".join(repr(os.fspath(each)) for each in arguments)
    command, environment = processes.function(module_file, f"{function}({listed})")
    done = processes.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        raise AssertionError(f"{function}{arguments}: {done.stderr}")


# Rotation.


def logrotate(path: Path, *directives: str) -> Callable[[], list[str | os.PathLike[str]]]:
    """Return what gives the command that rotates the log, as the machine's own logrotate does it."""
    need("logrotate")
    configuration = path.with_name("logrotate.conf")
    lines = "".join(f"    {directive}\n" for directive in ("rotate 99", "missingok", *directives))
    configuration.write_text(f"{path} {{\n{lines}}}\n", encoding="utf-8")
    configuration.chmod(0o600)
    return lambda: ["logrotate", "--force", "--state", path.with_name("state"), configuration]


def rotated(path: Path) -> list[Path]:
    """Return the files that the log was rotated to, whoever gave them their names, and the log itself last."""
    return [*sorted(set(path.parent.glob(f"{path.stem}*")) - {path}), path]


# A file system of ours, by FUSE.


@dataclass(kw_only=True)
class FuseDisk(Disk):
    """A disk that does what it is told.

    Attributes:
        wait_until_it_hangs: Returns when a write hangs.
        after_a_power_cut: Puts what has been fsynced into another file; makes none if the folder has not been.
    """

    wait_until_it_hangs: Callable[[], object]
    after_a_power_cut: Callable[[Path], object]


class _Daemon:
    """The process that serves the file system, and what it says."""

    def __init__(self, folder: Path) -> None:
        command, environment = processes.function(__file__, f"main({str(folder)!r})")
        self._process = processes.Process(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**environment, "FUSE_LIBRARY_NAME": "fuse3"},
        )
        self._said: dict[str, queue.SimpleQueue[bool]] = {word: queue.SimpleQueue() for word in _WORDS}
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def tell(self, command: str) -> None:
        """Have something done."""
        self._process.stdin.write(f"{command}\n")
        self.hear("done")

    def hear(self, word: str) -> None:
        """Return when it has said the word."""
        if not self._said[word].get(timeout=PATIENCE):
            raise OSError(f"the FUSE process has ended and did not say {word!r}")

    def kill(self) -> None:
        """End it; whoever waits for its disk gets an error."""
        self._process.kill()
        with self._process:
            self._listener.join()

    def _listen(self) -> None:
        for line in self._process.stdout:
            self._said[line.strip()].put(True)
        for heard in self._said.values():
            heard.put(False)


@contextlib.contextmanager
def fuse(folder: Path, faults: Sequence[str] = ()) -> Iterator[FuseDisk]:
    """A FUSE disk.

    Args:
        folder: Where to mount it.
        faults: What `strike` tells it: ``write``, ``fsync`` or ``flush`` (which is close(2)) with the name of an errno;
            ``write short`` cuts every write, ``write short-once`` one, with EIO after it, ``write hang`` stops one;
            ``open stale`` makes all descriptors there are good for nothing (ESTALE).
    """
    need("umount", device="/dev/fuse")
    if importlib.util.find_spec("mfusepy") is None or ctypes.util.find_library("fuse3") is None:
        pytest.skip("mfusepy or libfuse3 is not installed")
    folder.mkdir()
    daemon = _Daemon(folder)

    def strike() -> None:
        for fault in faults:
            daemon.tell(fault)

    try:
        daemon.hear("mounted")
        yield FuseDisk(
            path=folder / NAME,
            strike=strike,
            heal=lambda: daemon.tell("heal"),
            wait_until_it_hangs=lambda: daemon.hear("hanging"),
            after_a_power_cut=lambda target: daemon.tell(f"durable {target}"),
            refuses="write short" not in faults,  # what comes in pieces comes as a whole in the end
        )
    finally:
        daemon.kill()
        _unmount(folder)


class FaultyFiles:
    """The operations of the file system: files in memory, each with what a power cut would leave of it."""

    use_ns = True  # times in nanoseconds, as mfusepy wants to be told

    def __init__(self) -> None:
        """Begin with no file and no fault."""
        self.faults: dict[str, str] = {}
        self.healed = threading.Event()
        self._lock = threading.Lock()
        self._files: dict[str, bytearray] = {}
        self._durable: dict[str, bytearray] = {}
        self._unsynced: dict[str, list[tuple[int, bytes]]] = {}
        self._in_the_folder: set[str] = set()  # the names that a power cut would leave
        self._generation = 0

    def durable(self, name: str) -> bytes | None:
        """Return what a power cut would leave of a file; None if that is not even its name."""
        path = f"/{name}"
        return bytes(self._durable[path]) if path in self._in_the_folder else None

    def set(self, operation: str, fault: str) -> None:
        """Let an operation fail from now on."""
        if operation == "open":
            self._generation += 1
        self.healed.clear()
        self.faults[operation] = fault

    def heal(self) -> None:
        """Let no operation fail any more; descriptors that went stale stay so."""
        self.faults.clear()
        self.healed.set()

    def init(self, path: str) -> None:
        """Say that the file system is there."""
        print("mounted", flush=True)  # noqa: T201 - that is the way to the test

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
        return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": len(self._file(path))}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *(name[1:] for name in self._files)]

    def create(self, path: str, mode: int) -> int:
        for kind in (self._files, self._durable):
            kind[path] = bytearray()
        self._unsynced[path] = []
        return self._generation

    def open(self, path: str, flags: int) -> int:
        self._file(path)
        return self._generation

    def chmod(self, path: str, mode: int) -> int:
        return 0

    def unlink(self, path: str) -> int:
        self._file(path)
        del self._files[path]
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return bytes(self._file(path)[offset : offset + size])

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        with self._lock:
            for content in (self._file(path), self._durable[path]):
                del content[length:]
        return 0

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        if fh != self._generation:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        fault = self.faults.get("write")
        if fault == "short":
            data = data[:7]
        elif fault == "short-once":
            data, self.faults["write"] = data[:7], "EIO"
        elif fault == "hang":
            print("hanging", flush=True)  # noqa: T201 - as above
            self.faults.pop("write", None)
            self.healed.wait(PATIENCE)
        elif fault:
            _fail(fault)
        with self._lock:
            _put(self._file(path), offset, data)
            self._unsynced[path].append((offset, data))
        return len(data)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        """Make what was written durable; or fail, and never try these bytes again.

        That is what Linux does: the pages of a failed writeback are marked clean, and the next fsync, which finds
        nothing to do, succeeds.
        """
        with self._lock:
            unsynced, self._unsynced[path] = self._unsynced[path], []
            if fault := self.faults.pop("fsync", ""):
                _fail(fault)
            for offset, data in unsynced:
                _put(self._durable[path], offset, data)
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        self._in_the_folder = set(self._files)
        return 0

    def flush(self, path: str, fh: int) -> int:
        """Answer close(2)."""
        if fault := self.faults.get("flush"):
            _fail(fault)
        return 0

    def _file(self, path: str) -> bytearray:
        try:
            return self._files[path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None


def _fail(name: str) -> None:
    number: int = getattr(errno, name)
    raise OSError(number, os.strerror(number))


def _put(content: bytearray, offset: int, data: bytes) -> None:
    content.extend(bytes(max(offset - len(content), 0)))  # a hole
    content[offset : offset + len(data)] = data


def _obey(files: FaultyFiles, folder: str) -> None:
    """Do what is told on standard input; at its end the test is gone, and so is the disk."""
    for line in sys.stdin:
        command, *arguments = line.split(maxsplit=1)
        if command == "heal":
            files.heal()
        elif command == "durable":
            if (content := files.durable(NAME)) is not None:
                Path(arguments[0].strip()).write_bytes(content)
        else:
            files.set(command, arguments[0].strip())
        print("done", flush=True)  # noqa: T201 - as above
    processes.run(["umount", "--lazy", folder], check=False)
    os._exit(1)


def main(folder: str) -> None:
    """Serve the file system on `folder` until killed."""
    # By its name: it has no types, and is there in this process only
    mfusepy: Any = importlib.import_module("mfusepy")
    files = FaultyFiles()
    threading.Thread(target=_obey, args=(files, folder), daemon=True).start()
    mfusepy.FUSE(files, folder, foreground=True, direct_io=True, attr_timeout=0)
