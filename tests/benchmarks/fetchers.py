"""The time that ``otel-connector fetch`` and other programs take for a list of URLs.

All fetch the same list, 20 URLs at a time (wget: one at a time), write the responses to the disk, and retry failures.
The start of the program is included. They share one core, and their runs alternate. Programs that are not installed are
skipped. There are two servers: one responds immediately, so that the cost of a call matters, and one after 20 ms.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import statistics
import sys
import time
from pathlib import Path

from serving import SMALL

_CONCURRENCY = 20
_ROUNDS = 3

_OURS = "otel-connector fetch"
_SCRIPT = "a script with aiohttp-retry"

SCRIPT = """
import asyncio, sys
import aiohttp
from aiohttp_retry import ExponentialRetry, RetryClient

async def main(urls, out, concurrency):
    lines = open(urls)
    async with RetryClient(retry_options=ExponentialRetry(attempts=5)) as client:
        with open(out, "w") as file:
            async def work():
                for line in lines:
                    async with client.get(line.strip()) as response:
                        file.write(f"{line.strip()} {response.status} {await response.text()}\\n")
            await asyncio.gather(*(work() for _ in range(concurrency)))

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def _commands(folder: Path) -> dict[str, list[str]]:
    urls, out, script = folder / "urls.txt", folder / "out", folder / "script.py"
    ours = [sys.executable, "-m", "otel_connector", "fetch", str(urls), "--quiet", "--concurrency", str(_CONCURRENCY)]
    curl = ["xargs", "-a", str(urls), "-P", str(_CONCURRENCY), "-n", "1"]
    curl += ["curl", "-sSf", "--retry", "5", "--create-dirs"]
    return {
        _OURS: [*ours, "--out", str(out / "results.jsonl"), "--log", str(out / "logs.csv")],
        _SCRIPT: [sys.executable, str(script), str(urls), str(out / "results"), str(_CONCURRENCY)],
        "aria2c": ["aria2c", "-q", "-i", str(urls), "-j", str(_CONCURRENCY), "-d", str(out), "-m", "5"],
        "wget -i": ["wget", "-q", "-i", str(urls), "-P", str(out), "-t", "5"],
        "xargs -P curl": [*curl, "--output-dir", str(out), "-O"],
    }


async def _seconds(command: list[str], folder: Path) -> float:
    """Run a command, and return the seconds from its start to its exit."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    started = time.perf_counter()
    process = await asyncio.create_subprocess_exec(*command)
    if await process.wait() != 0:
        raise RuntimeError(f"{command} failed")
    return time.perf_counter() - started


async def _speeds(urls: list[str], commands: dict[str, list[str]], folder: Path) -> dict[str, float]:
    """Return the URLs per second of each command, relative to ``otel-connector fetch``."""
    (folder / "urls.txt").write_text("\n".join(urls) + "\n")
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(_ROUNDS):
        for name in random.sample(list(commands), len(commands)):
            found[name].append(await _seconds(commands[name], folder))
    return {
        name: statistics.median(ours / theirs for ours, theirs in zip(found[_OURS], seconds, strict=True))
        for name, seconds in found.items()
    }


async def table(server: str, folder: Path) -> None:
    """Measure and print."""
    (folder / "script.py").write_text(SCRIPT)
    commands = {name: command for name, command in _commands(folder).items() if shutil.which(command[0])}
    fast = await _speeds([f"{server}/{SMALL}?n={number}" for number in range(5_000)], commands, folder)
    slow = await _speeds([f"{server}/slow?n={number}" for number in range(1_000)], commands, folder)
    print("| URLs a second, otel-connector fetch = 1 | a server that answers at once | one that takes 20 ms |")
    print("|---|--:|--:|")
    for name in commands:
        print(f"| {name} | {fast[name]:.2f} | {slow[name]:.2f} |", flush=True)
