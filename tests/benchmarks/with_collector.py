"""The cost of a call with OTLP export to one collector: the connector, the floor and the peers."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import rotel
from call_cost import BARE, print_ratio, show, spent
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from serving import SMALL
from variants import Telemetry, Variants

_OURS, _FLOOR, _PEERS = "in full, OTLP to a collector", "floor, the same collector", "peers, the same collector"
_BATCH = 512  # the default of the SDK; a slice has as many calls


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def collector() -> Generator[str]:
    """Run rotel's agent, which discards everything, and yield its gRPC endpoint."""
    agent = Path(rotel.__file__).parent / "rotel-agent"
    grpc, http = _free_port(), _free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [str(agent), "start", "--exporter", "blackhole", "--pid-file", f"{folder}/pid"]
        command += ["--otlp-grpc-endpoint", f"127.0.0.1:{grpc}", "--otlp-http-endpoint", f"127.0.0.1:{http}"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", grpc)) == 0:
                        break
            yield f"http://127.0.0.1:{grpc}"
            process.terminate()


async def table(server: str, folder: Path, rounds: int = 9, calls: int = 2 * _BATCH) -> None:
    """Measure and print."""
    with collector() as endpoint:
        telemetries = {
            name: Telemetry(
                OTLPSpanExporter(endpoint, insecure=True),
                PeriodicExportingMetricReader(OTLPMetricExporter(endpoint, insecure=True), 5_000),
            )
            for name in (_OURS, _FLOOR, _PEERS)
        }
        async with Variants(folder) as make:
            variants = {
                BARE: await make.bare(),
                _OURS: await make.ours(telemetries[_OURS]),
                _FLOOR: await make.floor(telemetries[_FLOOR]),
                _PEERS: await make.peers(telemetries[_PEERS]),
            }
            url = f"{server}/{SMALL}"
            found = await spent(variants, telemetries, url, rounds=rounds, calls=calls, calls_per_slice=_BATCH)
        for telemetry in telemetries.values():
            telemetry.shutdown()
    show(found)
    print()
    print_ratio(found, _OURS, _FLOOR, "the floor")
    print_ratio(found, _OURS, _PEERS, "the peers")
