"""Runs pytest for `.ci/run`, and decides whether the tests have passed.

    python .ci/run_tests.py FOLDER LABEL [--] COMMAND...

COMMAND is pytest, with its arguments. FOLDER gets the reports, of which `report` makes the summary at the end::

    python .ci/run_tests.py --summary FOLDER

The exit code is 0 only if each test ran and passed. What failed is run once more, one test after the other: some tests
measure, and a machine that does other things too can make one of them fail. The second run has to run at least as many
tests as had failed. There is no second run after a teardown that failed, nor after a run that left processes, ports or
files behind: it would show nothing about them. A test that is skipped, or expected to fail, has shown nothing and fails
the run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

TESTS_FAILED = 1  # of pytest's exit codes, the one with which a second run has a meaning
SLOWEST = 25


@dataclass(frozen=True)
class Case:
    """One test of a report.

    Attributes:
        name: Its file and its id.
        seconds: Of the call, the set-up and the teardown.
        state: ``passed``, ``failed`` or ``skipped``.
        message: Why it was skipped.
        in_teardown: Whether a teardown failed. It may be that of a fixture which other tests have used, so running this
            test once more shows nothing.
    """

    name: str
    seconds: float
    state: str
    message: str = ""
    in_teardown: bool = False


def cases(report: Path) -> list[Case]:
    """Read a JUnit report; a test that failed and whose teardown failed, too, is one case."""
    if not report.exists():
        return []
    found: dict[str, Case] = {}
    for element in ET.parse(report).iter("testcase"):
        name = f"{element.get('classname', '')}::{element.get('name', '')}"
        skipped = element.find("skipped")
        error = element.find("error")
        failed = element.find("failure") is not None or error is not None
        in_teardown = error is not None and str(error.get("message")).startswith("failed on teardown")
        state = "failed" if failed else "passed" if skipped is None else "skipped"
        if name in found:
            state = "failed" if found[name].state == "failed" else state
            in_teardown = in_teardown or found[name].in_teardown
        message = "" if skipped is None else str(skipped.get("message"))
        found[name] = Case(name, float(element.get("time", "0")), state, message, in_teardown)
    return list(found.values())


def run(folder: Path, label: str, command: list[str]) -> int:
    """Run the tests, and those that failed once more; return the exit code."""
    report, again = folder / f"{label}.xml", folder / f"{label}.again.xml"
    cache = ["-o", f"cache_dir={folder / f'{label}.cache'}"]
    begun = time.monotonic()
    code = subprocess.run([*command, *cache, f"--junitxml={report}"], check=False).returncode
    first, second = cases(report), list[Case]()
    failed = [case for case in first if case.state == "failed"]
    if code == TESTS_FAILED and failed and not any(case.in_teardown for case in failed):
        print(f"=== {label}: {len(failed)} failed, once more by themselves", flush=True)
        last = ["-n", "0", "--last-failed", "--last-failed-no-failures", "none"]
        code = subprocess.run([*command, *cache, *last, f"--junitxml={again}"], check=False).returncode
        second = cases(again)
        if len(second) < len(failed):
            print(f"=== {label}: {len(failed)} failed, and only {len(second)} of them could be run once more")
            code = code or TESTS_FAILED
    skipped = [case for case in (*first, *second) if case.state == "skipped"]
    for case in skipped:
        print(f"=== {label}: skipped: {case.name}: {case.message}")
    print(f"=== {label}: {len(first)} tests, {len(failed)} failed at first, {len(skipped)} skipped", flush=True)
    result = {
        "label": label,
        "tests": len(first),
        "seconds": time.monotonic() - begun,
        "slowest": sorted(((case.seconds, case.name) for case in first), reverse=True)[:SLOWEST],
        "second": sorted(case.name for case in failed) if code == 0 else [],
    }
    (folder / f"{label}.json").write_text(json.dumps(result), encoding="utf-8")
    return code or (TESTS_FAILED if skipped or not first else 0)


def summary(folder: Path) -> None:
    """Print the slowest tests, and those that passed only when they were run once more."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    slowest = sorted((tuple(each) for result in results for each in result["slowest"]), reverse=True)
    print(f"the {SLOWEST} slowest tests:")
    for seconds, name in slowest[:SLOWEST]:
        print(f"  {seconds:7.2f} s  {name}")
    second = [f"  {result['label']}: {name}" for result in results for name in result["second"]]
    print("passed only in the second run:", *(second or ["  none"]), sep="\n")


if __name__ == "__main__":
    if sys.argv[1] == "--summary":
        summary(Path(sys.argv[2]))
    else:
        sys.exit(run(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
