"""The number of instructions of a call, counted by valgrind. It does not depend on other load on the machine.

Instructions in the kernel are not counted, and cache misses have no effect, so the ratios differ from those of time.
But a change of one per cent is visible.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop
from serving import SMALL
from variants import ONE_PERCENT, Call, Telemetry, Variants

_FEWER, _MORE = 100, 400  # calls; the difference excludes work that is done once

KINDS: dict[str, Callable[[Variants], Awaitable[Call]]] = {
    "bare aiohttp": lambda make: make.bare(),
    "no SDK, no CSV": lambda make: make.ours(csv=False),
    "CSV only": lambda make: make.ours(),
    "1 % sampled, metrics, CSV": lambda make: make.ours(Telemetry(sampler=ONE_PERCENT)),
    "in full, spans discarded": lambda make: make.ours(Telemetry()),
    "floor": lambda make: make.floor(Telemetry()),
    "peers": lambda make: make.peers(Telemetry()),
}


def run(kind: str, url: str, calls: int) -> None:
    """Make that many calls. Called in a separate process."""

    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with Variants(Path(folder)) as make:
                call = await KINDS[kind](make)
                for _ in range(calls):
                    await call(url)

    uvloop.run(main())
    os._exit(0)  # the work at exit is not counted


def _counted(kind: str, url: str, calls: int) -> int:
    program = f"import instructions; instructions.run({kind!r}, {url!r}, {calls})"
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    folder = Path(__file__).parent
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    (line,) = (line for line in done.stderr.splitlines() if "Collected" in line)
    return int(line.rpartition(":")[2])


async def table(server: str, folder: Path) -> None:
    """Measure and print."""
    del folder
    if shutil.which("valgrind") is None:
        print("valgrind is not installed")
        return
    url = f"{server}/{SMALL}"
    print("| variant | instructions of a call, bare aiohttp = 1 |")
    print("|---|--:|")
    bare = 0.0
    for kind in KINDS:
        found = (_counted(kind, url, _MORE) - _counted(kind, url, _FEWER)) / (_MORE - _FEWER)
        bare = bare or found
        print(f"| {kind} | {found / bare:.2f} |", flush=True)
