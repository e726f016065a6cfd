"""``otel-connector fetch`` with lists that contain one odd URL each: it never affects the other URLs of its list.

The shapes are from the tests of the WHATWG URL Standard. The lists are fetched in a process with its own network, in
which every name and every address leads to a server on the loopback. So nothing leaves the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from support.command_line import run_here
from support.own_network import run_in_own_network
from support.samples import THOROUGH
from support.small_server import SmallServer

# Each of these ended the run, or the URL of another resource was requested
OWN = [
    *("http://[]@/", "http://127.0.0.1\0/", "http://u%3Ax:p@127.0.0.1/", "https://.example.com/"),
    *(
        "http://127.0.0.1/caf\udce9",
        "http://127.0.0.1/a\tb",
        "http://ho%01st/x",
        "http://h\x0bost/",
        f"http://{'ﷺ' * 2000}/",
    ),
]
OF_OTHERS: list[str] = json.loads((Path(__file__).parents[1] / "data" / "url_shapes.json").read_text())["shapes"]
SHAPES = OWN + OF_OTHERS
# All of them take half a minute of two cores. `.ci/run` selects "thorough"
STEP = 2 if THOROUGH else 8
SELECTED = [*range(len(OWN)), *range(len(OWN), len(SHAPES), STEP)]
OTHERS = 7
WITHOUT = ("uvloop", "")  # both event loops, in turn


def test_there_are_three_hundred_shapes() -> None:
    assert len(set(OF_OTHERS)) == len(OF_OTHERS) >= 300


def test_an_odd_url_affects_no_other_url_of_its_list() -> None:
    done = run_in_own_network(__file__, f"fetch_lists({SELECTED})")
    assert done.returncode == 0, done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout)
    assert [result["shape"] for result in results] == [SHAPES[number] for number in SELECTED]
    for result in results:
        failed = result["odd"] != [True]
        assert result == {
            "shape": result["shape"],
            "odd": [not failed],  # one outcome
            "others": OTHERS,
            "codes": [int(failed)] * 2,
            "retried": [result["url"]] * failed,
            "url": result["url"],
            "error": result["error"],
        }
        assert bool(result["error"]) == failed
        assert not result["error"].startswith(("TypeError", "ValueError", "IndexError", "UnicodeError"))


# In the process with its own network


def fetch_lists(numbers: list[int]) -> None:
    """Fetch each list, then again with ``--resume``; print what was logged, as JSON."""
    with every_address_here(), tempfile.TemporaryDirectory() as folder:
        results = [fetch_list(Path(folder) / str(number), SHAPES[number]) for number in numbers]
    sys.stdout.write(json.dumps(results))


def fetch_list(folder: Path, shape: str) -> dict[str, Any]:
    folder.mkdir()
    others = [f"http://127.0.0.1/{number}" for number in range(OTHERS)]
    lines = [*others[:4], shape, *others[4:]]
    (folder / "urls").write_bytes(b"".join(encoded(line) + b"\n" for line in lines))
    arguments, without = (
        ["fetch", "urls", "--tries", "1", "--out", "out.jsonl", "--quiet"],
        WITHOUT[int(folder.name) % 2],
    )
    codes = [run_here(folder, *arguments, without=without).code]
    rows = read(folder / "logs.csv")
    codes.append(run_here(folder, *arguments, "--resume", without=without).code)
    fetched = Counter(row["url"] for row in rows if row["success"] == "True")
    odd = [row for row in rows if row["url"] not in others]
    return {
        "shape": shape,
        "odd": [row["success"] == "True" for row in odd],
        "others": sum(fetched[url] == 1 for url in others),
        "codes": codes,
        "retried": [row["url"] for row in read(folder / "logs.csv")[len(rows) :]],
        "url": odd[0]["url"],
        "error": odd[0]["error"],
    }


def encoded(line: str) -> bytes:
    """Return the bytes of a line; a surrogate is one byte or, if it stands for none, its three bytes."""
    try:
        return line.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return line.encode("utf-8", "surrogatepass")


def read(log: Path) -> list[dict[str, str]]:
    with log.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


@contextlib.contextmanager
def every_address_here() -> Iterator[None]:
    """Serve the ports 80 and 443 of all addresses, without TLS, and answer for all name servers."""
    if shutil.which("ip") is not None:  # otherwise, other addresses than 127.0.0.1 cannot be reached
        for family, everything in (("-4", "0.0.0.0/0"), ("-6", "::/0")):
            subprocess.run(["ip", family, "route", "add", "local", everything, "dev", "lo"], check=False)
    loop = asyncio.new_event_loop()
    listening, stop = threading.Event(), loop.create_future()

    async def serve() -> None:
        names, _ = await loop.create_datagram_endpoint(NameServer, ("0.0.0.0", 53))
        servers = [
            await loop.create_server(lambda: SmallServer(set()), host, port)
            for host in ("0.0.0.0", "::")
            for port in (80, 443)
        ]
        listening.set()
        await stop
        names.close()
        for server in servers:
            server.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert listening.wait(10)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set_result, None)
        thread.join()
        loop.close()


class NameServer(asyncio.DatagramProtocol):
    """Answers every question for an IPv4 address with 127.0.0.1, and any other with no record (RFC 1035, section 4)."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        end = data.index(0, 12) + 5  # of the question: a name, its type and its class
        has_record = data[end - 4 : end] == b"\0\1\0\1"
        record = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4\x7f\0\0\1" if has_record else b""
        counts = b"\0\1" + has_record.to_bytes(2, "big") + bytes(4)
        self.transport.sendto(data[:2] + b"\x81\x80" + counts + data[12:end] + record, addr)
