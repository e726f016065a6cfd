"""The cost of a call with OTLP export to one collector: the connector, the floor and the peers."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from call_cost import BARE, print_ratio, show, spent
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from serving import SMALL
from variants import Telemetry, Variants

sys.path.insert(0, str(Path(__file__).parent.parent))
from support.collector import agent, endpoints_at, own_address

_OURS, _FLOOR, _PEERS = "in full, OTLP to a collector", "floor, the same collector", "peers, the same collector"
_BATCH = 512  # the default of the SDK; a slice has as many calls


@contextmanager
def collector() -> Generator[str]:
    """Run rotel's agent, which discards everything, and yield its gRPC endpoint."""
    address = own_address()
    with agent(address, "--exporter", "blackhole"):
        yield endpoints_at(address)["grpc"]


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
