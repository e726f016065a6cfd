"""Tests in which the N-th system call on the log fails, for N = 1, 2, 3 ... until no call is left to fail.

The loop is that of SQLite (sqlite.org/testing.html, "I/O Error Testing"). The faults are errors, short writes, a disk
that fills up, and a process that is killed at that call. After every run the accounting must match the files.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from support import failing_calls
from support.failing_calls import WRITES, Children, Fault, Say, export, numbers

from otel_connector import CSVSpanExporter

ROWS_OF_FIRST_RUN = 6  # every system call of the writer is made in them; further rows repeat the same calls
ROWS_OF_SECOND_RUN = 2
MOVED_AFTER = 3  # rows; the log is then renamed, as logrotate does
HANG_TIMEOUT = 10  # seconds; a run takes some hundredths of a second
ROW_AFTER_THE_FAULT = 1_000  # number of the row that is written after the fault has ended

INTERRUPTIBLE = ("open", *WRITES, "read", "flock", "fsync", "fdatasync", "ftruncate", "close")  # signal(7)
ON_A_FULL_DISK = ("open", *WRITES, "fsync", "fdatasync", "rename", "link", "close")  # close(2): as NFS reports it

FAULTS = {
    "EIO": Fault(action="fail", value=errno.EIO),
    "EIO-for-ever": Fault(action="fail", value=errno.EIO, times=-1),
    "ENOSPC": Fault(action="fail", value=errno.ENOSPC, only=ON_A_FULL_DISK),
    "ENOSPC-for-ever": Fault(action="fail", value=errno.ENOSPC, times=-1, only=ON_A_FULL_DISK),
    "EINTR": Fault(action="fail", value=errno.EINTR, only=INTERRUPTIBLE),
    "EINTR-thrice": Fault(action="fail", value=errno.EINTR, times=3, only=INTERRUPTIBLE),
    "read-only": Fault(
        action="fail", value=errno.EROFS, times=-1, only=("open", *WRITES, "ftruncate", "rename", "link", "unlink")
    ),
    "short": Fault(action="short", value=500, only=WRITES),
    "short-for-ever": Fault(action="short", value=300, times=-1, only=WRITES),
    "fills-up": Fault(action="full", value=400, times=4, only=WRITES),
    "fills-up-for-ever": Fault(action="full", value=900, times=-1, only=WRITES),
}

DEATHS = {
    "killed": Fault(action="torn", value=0),
    "killed-in-a-write": Fault(action="torn", value=600, only=WRITES),
}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotating": {"rotate_rows": 3},
    "synced": {"fsync_interval": 0},
    "background": {"mode": "background"},
}


STEP = 1 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 4
"""Step between the system calls that fail: every call in `.ci/run`, every fourth by default.

Each fault begins at another call, so every call fails in some of the default runs of a log, too.
"""

# In the child.


def workload(say: Say, folder: str, options: dict[str, Any], fault: dict[str, Any]) -> None:
    """Write rows to a log in two runs. The log is renamed in the middle of the first run."""
    failing_calls.arm(folder, fault)
    path, handed = Path(folder, "logs.csv"), itertools.count(1)
    for run, rows in enumerate((ROWS_OF_FIRST_RUN, ROWS_OF_SECOND_RUN)):
        try:
            exporter = CSVSpanExporter(path, **options)
        except OSError as error:
            say({"run": run, "refused": str(error)})
            continue
        for number in itertools.islice(handed, rows):
            export(exporter, number)
            say({"run": run, "number": number, "counts": exporter.counts()})
            if number == MOVED_AFTER:
                # The file is missing if the rotation of the writer has failed
                with failing_calls.spared(), suppress(FileNotFoundError):
                    path.rename(path.with_suffix(".csv.moved"))
        exporter.force_flush()
        say({"run": run, "counts": exporter.counts()})
        exporter.shutdown()
        say({"run": run, "closed": exporter.counts()})
    failing_calls.disarm()


def loop(say: Say, folder: str, options: dict[str, Any], fault: dict[str, Any], first: int) -> None:
    """Run the workload with the call `first` failing, then with a later one, and so on. No fault ends the process."""
    for nth in itertools.count(first, STEP):
        failing_calls.end_a_hang(HANG_TIMEOUT)
        own, said = folder_of(Path(folder), nth), list[object]()
        try:
            workload(said.append, str(own), options, {**fault, "nth": nth})
            raised = ""
        except Exception as error:  # noqa: BLE001 - reported to the test, which expects none
            failing_calls.disarm()
            raised = f"{type(error).__name__}: {error}"
        hit = failing_calls.first_hit()
        say({"nth": nth, "said": said, "hit": hit, "raised": raised, "open": descriptors(str(own))})
        if not hit:
            break


def folder_of(parent: Path, nth: int) -> Path:
    """Create a folder whose name is not a prefix of another one's."""
    folder = parent / f"{nth:04}"
    folder.mkdir()
    return folder


def descriptors(folder: str) -> list[str]:
    """Return the files in `folder` that are open."""
    # The descriptor that listed the folder is closed by the time of `is_symlink`
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [str(link.readlink()) for link in links if str(link.readlink()).startswith(folder)]


# In the test.


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_accounting_and_the_files_agree_whichever_system_call_fails(
    fault: str, options: str, child_processes: Children, tmp_path: Path
) -> None:
    plan = FAULTS[fault]
    first = 1 + list(FAULTS).index(fault) % STEP
    ended = child_processes.run(loop, folder=str(tmp_path), options=OPTIONS[options], fault=asdict(plan), first=first)
    assert ended.code == 0, f"{fault}: the run after {len(ended.said)} others hangs"
    assert ended.said
    failed = FailedRuns()
    for run in ended.said:
        nth = run["nth"]
        with failed.collect(f"{fault} from call {nth} ({run['hit'] or 'none'}) on"):
            assert run["raised"] == ""
            assert run["open"] == []
            check_counts(run["said"], plan)
            check_files(tmp_path / f"{nth:04}", run["said"], synced=options == "synced")
    assert not failed.found, str(failed)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("death", DEATHS)
def test_the_accounting_and_the_files_agree_when_killed_at_any_system_call(
    death: str, options: str, child_processes: Children, tmp_path: Path
) -> None:
    failed = FailedRuns()
    for nth in itertools.count(1 + list(DEATHS).index(death), STEP):
        folder, plan = folder_of(tmp_path, nth), replace(DEATHS[death], nth=nth)
        ended = child_processes.run(workload, folder=str(folder), options=OPTIONS[options], fault=asdict(plan))
        with failed.collect(f"{death} at call {nth}"):
            assert ended.code in {0, -signal.SIGKILL}
            check_counts(ended.said, plan)
            check_files(folder, ended.said, killed=True)
        if ended.code != -signal.SIGKILL:
            break
    assert not failed.found, str(failed)


@dataclass
class FailedRuns:
    """Collects the failed checks of the runs of a test."""

    found: list[str] = field(default_factory=list)

    @contextmanager
    def collect(self, what: str) -> Iterator[None]:
        try:
            yield
        except (AssertionError, OSError, ValueError) as error:
            self.found.append(f"{what}: {str(error)[:400]}")

    def __str__(self) -> str:
        return "\n".join([f"{len(self.found)} runs failed, the first of them:", *self.found[:8]])


def check_counts(said: list[Any], plan: Fault) -> None:
    """Check the reported counts: every exported row is counted as written, waiting or lost at every moment."""
    handed = [0, 0]
    for value in said:
        handed[value["run"]] += "number" in value
        if "refused" in value:
            assert re.match(r"\[Errno [0-9]+\] path: .", value["refused"])
            continue
        counts = value.get("counts") or value["closed"]
        assert sum(counts) == handed[value["run"]]
        if "closed" in value:
            assert counts[1] == 0, "no row waits after shutdown"
            assert counts[2] == 0 or plan.times != 1, "no row is lost when the fault was temporary"


def check_files(folder: Path, said: list[Any], *, synced: bool = False, killed: bool = False) -> None:
    """Check that the files hold every counted row once and whole, after the next writer has opened the log.

    Args:
        folder: The folder of the log.
        said: The values that the child reported.
        synced: Whether rows are fsynced. After a failed fsync, rows may be there that were not counted or are repeated.
        killed: Whether the process was killed. It may have written more rows than it reported, and a partial row to a
            file that was being renamed.
    """
    closing = CSVSpanExporter(folder / "logs.csv")
    export(closing, ROW_AFTER_THE_FAULT)
    closing.shutdown()
    # An empty file is one that the process had just created, without a header
    files = [path for path in folder.iterdir() if path.suffix != ".torn" and path.stat().st_size]
    found = [number for path in files for number in numbers(path, unfinished=killed and path.name != "logs.csv")]
    rows = set(found)
    assert synced or len(found) == len(rows), f"a row is there twice: {sorted(found)}"
    last = {value["run"]: value.get("closed") or value.get("counts") for value in said}
    written = sum(counts[0] for counts in last.values() if counts) + 1
    more = (synced or killed) and len(rows) > written
    assert more or len(rows) == written, f"{written} counted, but {sorted(rows)}"
    assert ROW_AFTER_THE_FAULT in rows
    assert rows <= {*range(1, ROWS_OF_FIRST_RUN + ROWS_OF_SECOND_RUN + 1), ROW_AFTER_THE_FAULT}
