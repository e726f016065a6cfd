"""A real collector with a backend behind it, and what arrives there.

rotel's agent takes OTLP and passes it on; a sink in this process keeps it. Knows nothing of the connector.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rotel
from oteltest.sink import GrpcSink

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    """A port of the loopback that was free a moment ago."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port: int = listener.getsockname()[1]
        return port


def value_of(any_value: Any) -> Any:
    """What one of OTLP's values holds; a list for an array."""
    kind = any_value.WhichOneof("value")
    return (
        [value_of(each) for each in any_value.array_value.values] if kind == "array_value" else getattr(any_value, kind)
    )


def attributes_of(message: Any) -> dict[str, Any]:
    """The attributes of a span, an event, a resource, a data point or a log record."""
    return {each.key: value_of(each.value) for each in message.attributes}


class Received:
    """What a backend got."""

    def __init__(self) -> None:
        self.resource_spans: list[Any] = []
        self.resource_metrics: list[Any] = []
        self.resource_logs: list[Any] = []
        self._changed = threading.Condition()

    def handle_trace(self, request: Any, headers: Any) -> None:
        self._keep(self.resource_spans, request.resource_spans)

    def handle_metrics(self, request: Any, headers: Any) -> None:
        self._keep(self.resource_metrics, request.resource_metrics)

    def handle_logs(self, request: Any, headers: Any) -> None:
        self._keep(self.resource_logs, request.resource_logs)

    def _keep(self, kept: list[Any], new: Any) -> None:
        with self._changed:
            kept.extend(new)
            self._changed.notify_all()

    def spans(self, kind: int | None = None) -> list[Any]:
        """All spans, or those of one kind as OTLP numbers them (2 is SERVER, 3 is CLIENT)."""
        spans = [span for each in self.resource_spans for scope in each.scope_spans for span in scope.spans]
        return [span for span in spans if kind in {None, span.kind}]

    def call_ids(self, kind: int | None = None) -> Counter[str]:
        """What the spans' rows are called."""
        return Counter(f"{span.trace_id.hex()}-{span.span_id.hex()}" for span in self.spans(kind))

    def points(self, name: str) -> list[Any]:
        """The last data points of a metric that each resource sent; cumulative, so they are its totals."""
        last: dict[bytes, list[Any]] = {}
        for each in self.resource_metrics:
            for metric in (metric for scope in each.scope_metrics for metric in scope.metrics if metric.name == name):
                kind = metric.WhichOneof("data")
                last[each.resource.SerializeToString()] = list(getattr(metric, kind).data_points)
        return [point for points in last.values() for point in points]

    def log_records(self) -> list[Any]:
        """All log records."""
        return [record for each in self.resource_logs for scope in each.scope_logs for record in scope.log_records]

    def wait_for(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Wait until what has arrived meets the condition."""
        with self._changed:
            assert self._changed.wait_for(condition, seconds), "did not arrive"


@dataclass(frozen=True)
class Collector:
    """A collector that runs, what has come out of it, and where it listens, by protocol."""

    process: subprocess.Popen[bytes]
    received: Received
    endpoints: Mapping[str, str]

    def environment(self, protocol: str = "grpc") -> dict[str, str]:
        """The variables that have a program send here."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoints[protocol],
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }


@contextmanager
def agent(grpc: int, http: int, backend: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run rotel's agent, which passes on what it gets, until the end of the block at most."""
    command = [
        str(Path(rotel.__file__).parent / "rotel-agent"),
        "start",
        "--pid-file",
        os.devnull,
        "--disable-batching",
    ]
    command += ["--otlp-grpc-endpoint", f"127.0.0.1:{grpc}", "--otlp-http-endpoint", f"127.0.0.1:{http}"]
    command += ["--exporter", "otlp", "--otlp-exporter-endpoint", f"http://127.0.0.1:{backend}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            give_up = time.monotonic() + 20
            while not (listens(grpc) and listens(http)):
                assert process.poll() is None, "the agent does not run with this Python"
                assert time.monotonic() < give_up
            yield process
        finally:
            process.kill()


def listens(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def collector() -> Iterator[Collector]:
    """Run a collector and its backend."""
    received, port = Received(), free_port()
    grpc, http = free_port(), free_port()
    handler: Any = received  # it has the methods of the class it would have to be of
    sink = GrpcSink(handler, logging.getLogger("sink"), port=port)
    with ExitStack() as stack:
        sink.start()
        stack.callback(sink.stop)
        process = stack.enter_context(agent(grpc, http, port))
        endpoints = {"grpc": f"http://127.0.0.1:{grpc}", "http/protobuf": f"http://127.0.0.1:{http}"}
        yield Collector(process, received, endpoints)


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what tells OpenTelemetry something, and with `more`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return {**clean, "PYTHONPATH": str(ROOT), **more}


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program in the folder until it ends by itself."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
