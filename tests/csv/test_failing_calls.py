"""The N-th system call on the log fails, for N = 1, 2, 3 ... until a run passes untouched.

SQLite's loop (sqlite.org/testing.html, "I/O Error Testing"), with errors, short writes, a disk that fills up, and a
process that is killed at that call. After every run the accounting adds up, and the files hold what it says.
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
from support.failing_calls import WRITES, Children, Fault, Say, children, export, numbers

from otel_connector import CSVSpanExporter

pytestmark = pytest.mark.skipif(bool(failing_calls.MISSING), reason=failing_calls.MISSING)

ROWS = 12  # of the first run, and then
MORE = 4  # of the second
MOVED_AFTER = 6  # rows, as logrotate does
HANGS = 10  # seconds; a run takes some hundredths of one
AFTERWARDS = 1_000  # the number of a row that is written when all is well again

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
    "rotating": {"rotate_rows": 4},
    "synced": {"fsync_interval": 0},
    "background": {"mode": "background"},
}


STEP = 1 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 4
"""Of the calls at which a process is killed: each in `.ci/run`, one in four by default."""

# In the child.


def workload(say: Say, folder: str, options: dict[str, Any], fault: dict[str, Any]) -> None:
    """Write two runs of rows to one log, which is renamed in the middle of the first."""
    failing_calls.arm(folder, fault)
    path, handed = Path(folder, "logs.csv"), itertools.count(1)
    for run, rows in enumerate((ROWS, MORE)):
        try:
            exporter = CSVSpanExporter(path, **options)
        except OSError as error:
            say({"run": run, "refused": str(error)})
            continue
        for number in itertools.islice(handed, rows):
            export(exporter, number)
            say({"run": run, "number": number, "counts": exporter.counts()})
            if number == MOVED_AFTER:
                with failing_calls.spared(), suppress(FileNotFoundError):  # not there when own rotation has failed
                    path.rename(path.with_suffix(".csv.moved"))
        exporter.force_flush()
        say({"run": run, "counts": exporter.counts()})
        exporter.shutdown()
        say({"run": run, "closed": exporter.counts()})
    failing_calls.disarm()


def loop(say: Say, folder: str, options: dict[str, Any], fault: dict[str, Any]) -> None:
    """Do the workload with the first call failing, the second, and so on; in one process, as nothing ends it."""
    for nth in itertools.count(1):
        failing_calls.end_a_hang(HANGS)
        own, said = folder_of(Path(folder), nth), list[object]()
        try:
            workload(said.append, str(own), options, {**fault, "nth": nth})
            raised = ""
        except Exception as error:  # noqa: BLE001 - told to the test, which wants none
            failing_calls.disarm()
            raised = f"{type(error).__name__}: {error}"
        hit = failing_calls.first_hit()
        say({"said": said, "hit": hit, "raised": raised, "open": descriptors(str(own))})
        if not hit:
            break


def folder_of(parent: Path, nth: int) -> Path:
    """Make a folder whose name is not the beginning of another one's."""
    folder = parent / f"{nth:04}"
    folder.mkdir()
    return folder


def descriptors(folder: str) -> list[str]:
    """Return the files in `folder` that are open."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]  # not the one that lists the folder
    return [str(link.readlink()) for link in links if str(link.readlink()).startswith(folder)]


# In the test.


@pytest.fixture(scope="module")
def child_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Children]:
    with children(failing_calls.compiled(tmp_path_factory.mktemp("shim")), __file__) as prepared:
        yield prepared


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_call_may_fail(fault: str, options: str, child_processes: Children, tmp_path: Path) -> None:
    plan = FAULTS[fault]
    ended = child_processes.run(loop, folder=str(tmp_path), options=OPTIONS[options], fault=asdict(plan))
    assert ended.code == 0, f"{fault} from call {len(ended.said) + 1} on: it hangs"
    wrong = Wrong()
    for nth, run in enumerate(ended.said, 1):
        with wrong.collect(f"{fault} from call {nth} ({run['hit'] or 'none'}) on"):
            assert run["raised"] == ""
            assert run["open"] == []
            check_told(run["said"], plan)
            check_files(tmp_path / f"{nth:04}", run["said"], synced=options == "synced")
    assert not wrong.found, str(wrong)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("death", DEATHS)
def test_every_call_may_be_the_last(death: str, options: str, child_processes: Children, tmp_path: Path) -> None:
    wrong = Wrong()
    for nth in itertools.count(1, STEP):
        folder, plan = folder_of(tmp_path, nth), replace(DEATHS[death], nth=nth)
        ended = child_processes.run(workload, folder=str(folder), options=OPTIONS[options], fault=asdict(plan))
        with wrong.collect(f"{death} at call {nth}"):
            assert ended.code in {0, -signal.SIGKILL}
            check_told(ended.said, plan)
            check_files(folder, ended.said, killed=True)
        if ended.code != -signal.SIGKILL:
            break
    assert not wrong.found, str(wrong)


@dataclass
class Wrong:
    """What did not hold, of the runs of a test."""

    found: list[str] = field(default_factory=list)

    @contextmanager
    def collect(self, what: str) -> Iterator[None]:
        try:
            yield
        except (AssertionError, OSError, ValueError) as error:
            self.found.append(f"{what}: {str(error)[:400]}")

    def __str__(self) -> str:
        return "\n".join([f"{len(self.found)} runs are wrong, the first of them:", *self.found[:8]])


def check_told(said: list[Any], plan: Fault) -> None:
    """Check what was said of the rows: each that was handed over is written, waiting or lost at every moment."""
    handed = [0, 0]
    for value in said:
        handed[value["run"]] += "number" in value
        if "refused" in value:
            assert re.match(r"\[Errno [0-9]+\] logfile: .", value["refused"])
            continue
        counts = value.get("counts") or value["closed"]
        assert sum(counts) == handed[value["run"]]
        if "closed" in value:
            assert counts[1] == 0, "nothing waits after the end"
            assert counts[2] == 0 or plan.times != 1, "nothing is lost when the disk is well again"


def check_files(folder: Path, said: list[Any], *, synced: bool = False, killed: bool = False) -> None:
    """Check that the files, once the next writer has opened the log, hold the rows that were counted, once and whole.

    Args:
        folder: Where they are.
        said: What was said of them.
        synced: A failed fsync leaves open what the disk has: rows that were not counted, or that were written again.
        killed: The process may have written more than it came to tell, and half a row to a file on its way out.
    """
    closing = CSVSpanExporter(folder / "logs.csv")
    export(closing, AFTERWARDS)
    closing.shutdown()
    files = [path for path in folder.iterdir() if path.suffix != ".torn" and path.stat().st_size]  # or no header yet
    found = [number for path in files for number in numbers(path, unfinished=killed and path.name != "logs.csv")]
    rows = set(found)
    assert synced or len(found) == len(rows), f"a row is there twice: {sorted(found)}"
    last = {value["run"]: value.get("closed") or value.get("counts") for value in said}
    written = sum(counts[0] for counts in last.values() if counts) + 1
    more = (synced or killed) and len(rows) > written
    assert more or len(rows) == written, f"{written} counted, but {sorted(rows)}"
    assert AFTERWARDS in rows
    assert rows <= {*range(1, ROWS + MORE + 1), AFTERWARDS}
