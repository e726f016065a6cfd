"""A real collector with a backend: rotel's agent receives OTLP and exports it to a receiver in this process.

This module does not depend on the connector.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from support.otlp_receiver import Received, grpc_receiver
from support.processes import Process, wait_until

_GRPC, _HTTP = 24317, 24318  # not the usual ports: a collector of this machine may listen on them at every address
_numbers = itertools.count()


def own_address() -> str:
    """Return a loopback address that no other test uses, computed from the process id and a counter.

    The agent cannot bind port 0. On an address of its own, every port is free.
    """
    number = os.getpid() % 2**20 << 4 | next(_numbers) % 2**4
    return str(ipaddress.IPv4Address("127.0.0.0") + number)


@dataclass(frozen=True)
class Collector:
    """A running collector, the telemetry that it has exported, and its endpoints by protocol."""

    process: Process
    received: Received
    endpoints: Mapping[str, str]

    def environment(self, protocol: str = "grpc") -> dict[str, str]:
        """Return the environment variables with which a program exports to this collector."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoints[protocol],
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }


def endpoints_at(address: str) -> dict[str, str]:
    """Return the endpoints of the agent on that address, by protocol."""
    return {"grpc": f"http://{address}:{_GRPC}", "http/protobuf": f"http://{address}:{_HTTP}"}


@contextmanager
def agent(address: str, *options: str) -> Iterator[Process]:
    """Run rotel's agent on `address`. It is killed at the end of the block."""
    found = find_spec("rotel")
    assert found is not None
    program = str(Path(str(found.origin)).parent / "rotel-agent")
    command = [program, "start", "--pid-file", os.devnull, *options]
    command += ["--otlp-grpc-endpoint", f"{address}:{_GRPC}", "--otlp-http-endpoint", f"{address}:{_HTTP}"]
    assert not _listens(address, _GRPC), f"another program listens on port {_GRPC} of all addresses"
    output = subprocess.PIPE if "--debug-log" in options else subprocess.DEVNULL
    with Process(command, stdout=output, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: _listens(address, _GRPC) and _listens(address, _HTTP), process)
            yield process
        finally:
            process.kill_all()


def forwarding(backend: str) -> list[str]:
    """Return the options with which the agent exports everything to the endpoint `backend`.

    By default it would send a request once more after 5 s, even if the machine was only too busy to answer it.
    """
    exporter = ["--exporter", "otlp", "--otlp-exporter-endpoint", backend, "--otlp-exporter-request-timeout", "60s"]
    return ["--disable-batching", *exporter]


def _listens(address: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


@contextmanager
def collector() -> Iterator[Collector]:
    """Run a collector and its backend."""
    received, address = Received(), own_address()
    with grpc_receiver(received) as backend, agent(address, *forwarding(backend)) as process:
        yield Collector(process, received, endpoints_at(address))
