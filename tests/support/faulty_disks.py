"""Real disks that fail: full, read-only, shut down, frozen, hanging, or losing data at fsync. They need root on Linux.

Each disk is a context manager that yields a `Disk` and removes everything it created, however the test ends. If the
machine does not support a disk, the test is skipped with the reason. This module does not depend on the connector: a
disk has a log file, and functions that make it fail and recover.

The FUSE file system of `fuse` is served by `main` in a separate process. In the same process, a thread that waits for
the file system could hold a lock that the file system needs.
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

from support import forked, processes

NAME = "logs.csv"
"""Name of the log on every disk."""

PATIENCE = 20.0
"""Seconds after which a hanging disk recovers by itself, so that a failing test cannot block the machine."""

_EXT4_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), fs/ext4/ext4.h
_FLUSH_FIRST, _LIKE_A_POWER_CUT = 0, 2  # EXT4_GOING_FLAGS_DEFAULT and EXT4_GOING_FLAGS_NOLOGFLUSH
_PAGE = 4_096
_WORDS = ("mounted", "done", "hanging")  # the messages of the FUSE process


@dataclass(kw_only=True)
class Disk:
    """A disk with a log, and functions that make it fail and recover.

    Attributes:
        path: The log.
        strike: Makes the disk fail.
        heal: Makes the disk work again. May be called twice, or without `strike`.
        elsewhere: Returns the other files that may contain rows, older than the log. If the disk is not `readable`,
            this may be called only after all processes have closed the log.
        readable: Whether the log can be read while the disk fails.
        refuses: Whether no row can be written while the disk fails. Otherwise rows may still go to the open file.
    """

    path: Path
    strike: Callable[[], object]
    heal: Callable[[], object]
    elsewhere: Callable[[], list[Path]] = list
    readable: bool = True
    refuses: bool = True

    def files(self) -> list[Path]:
        """Return the files that exist, the log last."""
        return [file for file in [*self.elsewhere(), self.path] if file.exists()]


# Requirements and mounts.


def need(*programs: str, device: str = "") -> None:
    """Skip the test unless it runs as root on Linux and all programs and the device file exist."""
    if sys.platform != "linux":
        pytest.skip("these faults are made with what Linux has")
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    if missing := [name for name in programs if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if device and not Path(device).exists():
        pytest.skip(f"no {device} on this machine")


def run(*command: str | os.PathLike[str]) -> str:
    """Run a program and return its output. If it fails, raise OSError with its error output."""
    done = processes.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return str(done.stdout)


def _unmount(folder: Path) -> None:
    """Unmount everything on the folder; a mount that is in use is removed as soon as it is no longer used."""
    while _mounts_on(folder):  # os.path.ismount fails for a FUSE mount whose process has exited
        run("umount", "--lazy", folder)


@contextlib.contextmanager
def mounted(folder: Path, *arguments: str | os.PathLike[str]) -> Iterator[Path]:
    """Mount a file system on a folder, or a file on a file, during the block. The folder is created if necessary."""
    need("mount", "umount")
    if not folder.exists():
        folder.mkdir()
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


# Disks in memory: no space, no inodes.


def _use_up(folder: Path) -> None:
    """Write until the file system has no free page. Only the last pages of existing files have room left."""
    with (folder / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(_PAGE))


@contextlib.contextmanager
def full(folder: Path) -> Iterator[Disk]:
    """Yield a tmpfs that becomes full, and is enlarged by `heal`. The row that reaches the limit is cut short."""
    with mounted(folder, "-t", "tmpfs", "-o", "size=64k", "none"):
        yield Disk(
            path=folder / NAME,
            strike=lambda: _use_up(folder),
            heal=lambda: run("mount", "-o", "remount,size=1m", folder),
        )


@contextlib.contextmanager
def full_when_rotated(folder: Path) -> Iterator[Disk]:
    """Yield a disk like `full`, on which the log with its partial row is renamed while there is still no space."""
    path, old = folder / NAME, folder / f"{NAME}.1"

    def heal() -> None:
        if not old.exists() and path.exists():
            path.rename(old)
        run("mount", "-o", "remount,size=1m", folder)

    with mounted(folder, "-t", "tmpfs", "-o", "size=64k", "none"):
        yield Disk(path=path, strike=lambda: _use_up(folder), heal=heal, elsewhere=lambda: [old])


@contextlib.contextmanager
def without_inodes(folder: Path) -> Iterator[Disk]:
    """Yield a tmpfs without free inodes after the log is renamed, so that a new log cannot be created."""
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


# Read-only folders and file attributes.


@contextlib.contextmanager
def read_only_when_rotated(folder: Path) -> Iterator[Disk]:
    """Yield a folder that gets a read-only bind mount when the log is renamed.

    A mount with files that are open for writing cannot be made read-only itself: mount(2) returns EBUSY.
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
    """Mount the folder read-only onto itself during the block."""
    with mounted(folder, "--bind", folder):
        run("mount", "-o", "remount,ro,bind", folder)
        yield folder


@contextlib.contextmanager
def attribute(path: Path, letter: str) -> Iterator[None]:
    """Give a file an attribute of chattr(1) during the block."""
    need("chattr")
    run("chattr", f"+{letter}", path)
    try:
        yield
    finally:
        run("chattr", f"-{letter}", path)


@contextlib.contextmanager
def immutable(folder: Path) -> Iterator[Disk]:
    """Yield a disk whose log gets the attribute ``i``: writes fail with EPERM, also through an open descriptor."""
    with ext4(folder), contextlib.ExitStack() as attributes:
        path = folder / NAME
        yield Disk(path=path, strike=lambda: attributes.enter_context(attribute(path, "i")), heal=attributes.close)


# Disks on a loop device.


@contextlib.contextmanager
def loop_device(image: Path) -> Iterator[str]:
    """Yield the block device of a new ext4 image."""
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
    """Mount a new ext4 file system on `folder` that turns read-only when it finds an error. Yield its device."""
    with (
        loop_device(folder.with_name(f"{folder.name}.img")) as device,
        mounted(folder, "-o", "errors=remount-ro", device),
    ):
        yield device


def shut_down(folder: Path, flags: int = _FLUSH_FIRST) -> None:
    """Shut the ext4 file system down. From now on every operation on it fails with EIO."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _EXT4_SHUTDOWN, struct.pack("I", flags))
    finally:
        os.close(descriptor)


def _find_an_error(folder: Path, device: str) -> None:
    """Make ext4 report damage, after all earlier writes have reached the disk.

    Data that is only in the cache is lost when ext4 stops, as in a power cut; `with_power_cut` simulates that.
    """
    run("sync", "--file-system", folder)
    Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error").write_text("a test\n", encoding="utf-8")


@contextlib.contextmanager
def _replaced(folder: Path, break_it: Callable[[Path, str], None], *, readable: bool) -> Iterator[Disk]:
    """Yield an ext4 disk that breaks permanently. `heal` puts an empty disk under the same path.

    Only a writer that reopens the path finds the new disk. The old disk can be mounted again only after the writer has
    closed its file there.
    """
    first, second, again = (folder.with_name(f"{folder.name}-{name}") for name in ("first", "second", "again"))
    second.mkdir()
    folder.symlink_to(first)
    with contextlib.ExitStack() as later, ext4(first) as device:

        def heal() -> None:
            if folder.readlink() == first:
                folder.with_name("swapped").symlink_to(second)
                # Atomic: at every moment, the path must lead to one of the disks
                folder.with_name("swapped").replace(folder)
                _unmount(first)

        def elsewhere() -> list[Path]:
            if folder.readlink() == first:  # not replaced
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
    """Return a disk on which every operation fails with EIO from `strike` on, until it is replaced by another disk."""
    return _replaced(folder, lambda first, _: shut_down(first), readable=False)


def damaged_and_replaced(folder: Path) -> contextlib.AbstractContextManager[Disk]:
    """Return a disk that reports damage, turns read-only (EROFS) and is replaced by another disk."""
    return _replaced(folder, _find_an_error, readable=True)


@contextlib.contextmanager
def with_power_cut(folder: Path) -> Iterator[Disk]:
    """Yield an ext4 disk that keeps only fsynced data: `strike` simulates a power cut, `files` mounts it again."""
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
    """Yield an ext4 disk that is frozen, as for a snapshot. A writer waits in the kernel and cannot be killed.

    A child process unfreezes the disk: on `heal`, after `PATIENCE` seconds, or when this process has exited.
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


def a_thread_waits_for_a_disk() -> bool:
    """Return whether a thread of this process is in state D: it waits for a disk in the kernel."""
    for status in Path("/proc/self/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # the thread has ended in the meantime
            if status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "D":
                return True
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until the condition is true. Raise TimeoutError after `PATIENCE` seconds."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"never: {condition.__name__}")
        os.sched_yield()


# Resource limits. They apply to the calling process, so use them `in_a_child`.


@contextlib.contextmanager
def limited_size(folder: Path) -> Iterator[Disk]:
    """Yield a disk with RLIMIT_FSIZE: the row that reaches the limit is cut short, later writes fail with EFBIG."""
    folder.mkdir()
    path, (soft, hard) = folder / NAME, resource.getrlimit(resource.RLIMIT_FSIZE)
    yield Disk(
        path=path,
        strike=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, hard)),
        heal=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)),
    )


@contextlib.contextmanager
def without_descriptors(folder: Path) -> Iterator[Disk]:
    """Yield a disk on which the log is renamed, and RLIMIT_NOFILE prevents opening a new log (EMFILE)."""
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
        readable=False,  # reading needs a free descriptor, too
        refuses=False,
    )


def in_a_child(module_file: str, function: str, *arguments: str | os.PathLike[str]) -> None:
    """Call a function of a test module in a separate process. If it fails, the error contains its traceback."""
    listed = ", ".join(repr(os.fspath(each)) for each in arguments)
    command, environment = processes.function(module_file, f"{function}({listed})")
    done = forked.run_python(command[1:], Path.cwd(), PYTHONPATH=environment["PYTHONPATH"])
    if done.returncode:
        raise AssertionError(f"{function}{arguments}: {done.stderr}")


# Rotation.


def logrotate(path: Path, *directives: str) -> Callable[[], list[str | os.PathLike[str]]]:
    """Return a function that returns the logrotate command for the log."""
    need("logrotate")
    configuration = path.with_name("logrotate.conf")
    lines = "".join(f"    {directive}\n" for directive in ("rotate 99", "missingok", *directives))
    configuration.write_text(f"{path} {{\n{lines}}}\n", encoding="utf-8")
    configuration.chmod(0o600)
    return lambda: ["logrotate", "--force", "--state", path.with_name("state"), configuration]


def rotated(path: Path) -> list[Path]:
    """Return the files that the log was rotated to, by logrotate or by the writer, and the log itself last."""
    return [*sorted(set(path.parent.glob(f"{path.stem}*")) - {path}), path]


# A FUSE file system.


@dataclass(kw_only=True)
class FuseDisk(Disk):
    """A disk of the FUSE file system, with faults that the test selects.

    Attributes:
        wait_until_it_hangs: Returns when a write hangs.
        after_a_power_cut: Copies the fsynced content of the log to another file; creates none if the folder was not
            fsynced.
    """

    wait_until_it_hangs: Callable[[], object]
    after_a_power_cut: Callable[[Path], object]


class _Daemon:
    """The process that serves the file system, and its messages."""

    def __init__(self, folder: Path) -> None:
        command, environment = processes.function(__file__, f"main({str(folder)!r})")
        self._process = forked.Program(
            command[1:],
            cwd="/",
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
        """Send a command, and wait until it is done."""
        self._process.stdin.write(f"{command}\n")
        self.hear("done")

    def hear(self, word: str) -> None:
        """Wait for a message of the process."""
        if not self._said[word].get(timeout=PATIENCE):
            raise OSError(f"the FUSE process has ended and did not say {word!r}")

    def kill(self) -> None:
        """Kill the process. Operations that wait for the file system fail."""
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
    """Yield a FUSE disk.

    Args:
        folder: Where to mount it.
        faults: The faults that `strike` starts: ``write``, ``fsync`` or ``flush`` (at close(2)) with the name of an
            errno; ``write short`` cuts every write short; ``write short-once`` cuts one write, and later ones fail with
            EIO; ``write hang`` makes one write hang; ``open stale`` makes writes through existing descriptors fail with
            ESTALE.
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
            refuses="write short" not in faults,  # short writes are completed by further writes
        )
    finally:
        daemon.kill()
        _unmount(folder)


class FaultyFiles:
    """The operations of the file system. Files are in memory, each with the content that a power cut would leave."""

    use_ns = True  # times in nanoseconds; an option of mfusepy

    def __init__(self) -> None:
        """Create a file system without files and without faults."""
        self.faults: dict[str, str] = {}
        self.healed = threading.Event()
        self._lock = threading.Lock()
        self._files: dict[str, bytearray] = {}
        self._durable: dict[str, bytearray] = {}
        self._unsynced: dict[str, list[tuple[int, bytes]]] = {}
        self._in_the_folder: set[str] = set()  # the fsynced names, which a power cut would leave
        self._generation = 0

    def durable(self, name: str) -> bytes | None:
        """Return the content that a power cut would leave of a file; None if its name was not fsynced."""
        path = f"/{name}"
        return bytes(self._durable[path]) if path in self._in_the_folder else None

    def set(self, operation: str, fault: str) -> None:
        """Make an operation fail from now on."""
        if operation == "open":
            self._generation += 1
        self.healed.clear()
        self.faults[operation] = fault

    def heal(self) -> None:
        """End all faults. Stale descriptors stay stale."""
        self.faults.clear()
        self.healed.set()

    def init(self, path: str) -> None:
        """Report that the file system is mounted."""
        print("mounted", flush=True)  # noqa: T201 - read by the test

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
        """Make written data durable, or fail and never write this data again.

        Linux behaves in this way: it marks the pages of a failed writeback as clean. The next fsync finds nothing to
        write, and succeeds.
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
        """Handle close(2)."""
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
    """Execute the commands on standard input. At its end the test has exited: unmount the disk and exit."""
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
    # Imported by name: it has no type annotations, and only this process needs it
    mfusepy: Any = importlib.import_module("mfusepy")
    files = FaultyFiles()
    threading.Thread(target=_obey, args=(files, folder), daemon=True).start()
    mfusepy.FUSE(files, folder, foreground=True, direct_io=True, attr_timeout=0)
