"""Runs a web service, its two unreliable upstreams and its callers, with one trace through all of them.

Start it with `python examples/service`. Each part is a process. They send their spans to the collector at
`OTEL_EXPORTER_OTLP_ENDPOINT`. Without this variable they send them to a receiver in this process, and one trace is
printed as a tree.
"""

import argparse
import asyncio
import csv
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import aiohttp
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans
from receiver import receiver
from trace_tree import tree

from otel_connector import AsyncConnector, configure

HERE = Path(__file__).parent


@contextmanager
def running(program: str, *arguments: str) -> Iterator[str]:
    """Run a program that prints its address. At the end, terminate it, so that it sends its spans."""
    command = [sys.executable, str(HERE / program), *arguments]
    # In another session, so that Ctrl-C reaches only this program, which then ends the others
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:  # noqa: S603 - a program of this example
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGTERM)


async def load(shop: str, log: Path, requests: int, concurrency: int) -> str:
    """Request that many offers from the service and return the numbers of successes and failures."""
    connector = AsyncConnector(log, overwrite_log=True, n_tries=1, timeout=10)
    urls = (f"{shop}/offer/{number % 100}" for number in range(requests))
    async with aiohttp.ClientSession() as session:
        async for _ in connector.get_many(session, urls, "shop", max_concurrency=concurrency):
            pass
    stats = connector.stats()
    return f"{stats.calls_succeeded} offers, {stats.calls_failed} requests that failed"


def slowest(log: Path) -> dict[str, str] | None:
    """Return the row of the slowest call that succeeded. Usually it needed more than one attempt."""
    with log.open(newline="", encoding="utf-8") as file:
        good = (row for row in csv.DictReader(file) if row["success"] == "True")
        return max(good, key=lambda row: float(row["delta_t"]), default=None)


def at_least_one(text: str) -> int:
    """Parse a number of the command line."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def interrupted(number: int, frame: FrameType | None) -> None:
    """Do as Ctrl-C does, so that the other programs are ended, too. `asyncio.run` cancels its task then."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # ignored, as in the background of a script
        raise KeyboardInterrupt
    handler(number, frame)


def main() -> None:
    """Start all parts, make the requests, stop all parts, and print where the results are."""
    parser = argparse.ArgumentParser(prog="python examples/service", description=__doc__)
    parser.add_argument("--requests", type=at_least_one, default=200, help="number of requests (default 200)")
    parser.add_argument("--concurrency", type=at_least_one, default=10, help="requests at a time (default 10)")
    parser.add_argument("--folder", type=Path, default=Path("service-logs"), help="for logs (default service-logs)")
    parser.add_argument("--attempt-spans", action="store_true", help="give each attempt a span, not an event")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    callers, shop = options.folder / "callers.csv", options.folder / "shop.csv"
    shop.unlink(missing_ok=True)
    os.environ.update(SHOP_LOG=str(shop), SHOP_ATTEMPT_SPANS=str(int(options.attempt_spans)))
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    collector = next((os.environ[name] for name in names if os.environ.get(name)), None)
    spans: list[ResourceSpans] = []

    with ExitStack() as stack:
        if not collector:
            os.environ["OTEL_EXPORTER_OTLP_PROTOCOL"] = "http/protobuf"
            os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = stack.enter_context(receiver(spans))
        os.environ["SHOP_PRICES"] = stack.enter_context(running("upstream.py", "price"))
        os.environ["SHOP_STOCK"] = stack.enter_context(running("upstream.py", "stock"))
        address = stack.enter_context(running("shop.py"))
        with configure("callers"):
            print(asyncio.run(load(address, callers, options.requests, options.concurrency)))

    print(f"rows: {callers} (callers to service), {shop} (service to upstreams)")
    row = slowest(shop)
    if row is None:
        print("no call of the service succeeded")
        return
    trace_id = row["call_id"].partition("-")[0]
    print(f"the slowest call of the service took {row['delta_t']} s; its trace: {trace_id}")
    if collector:
        print(f"the spans were sent to {collector}")
    else:
        print(tree(spans, trace_id) or "not received here: not sampled, or exported elsewhere (OTEL_TRACES_*)")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupted)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped")
