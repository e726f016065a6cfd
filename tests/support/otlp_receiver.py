"""OTLP receivers in this process, over gRPC and over HTTP, and the received telemetry.

They bind port 0 of the loopback interface. This module does not depend on the connector.
"""

from __future__ import annotations

import gzip
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as traces_grpc

_REQUESTS: dict[str, tuple[Any, str]] = {
    "/v1/traces": (traces_pb.ExportTraceServiceRequest, "resource_spans"),
    "/v1/metrics": (metrics_pb.ExportMetricsServiceRequest, "resource_metrics"),
    "/v1/logs": (logs_pb.ExportLogsServiceRequest, "resource_logs"),
}


def value_of(any_value: Any) -> Any:
    """Return the value in an OTLP ``AnyValue``; a list for an array."""
    kind = any_value.WhichOneof("value")
    return (
        [value_of(each) for each in any_value.array_value.values] if kind == "array_value" else getattr(any_value, kind)
    )


def attributes_of(message: Any) -> dict[str, Any]:
    """Return the attributes of a span, an event, a resource, a data point or a log record."""
    return {each.key: value_of(each.value) for each in message.attributes}


class Received:
    """The received telemetry: the groups of each signal, in the order of their arrival.

    Attributes:
        resources: The attributes of the resource of each group, of all signals.
    """

    def __init__(self) -> None:
        self.resource_spans: list[Any] = []
        self.resource_metrics: list[Any] = []
        self.resource_logs: list[Any] = []
        self.resources: list[dict[str, Any]] = []
        self._changed = threading.Condition()

    def add(self, signal: str, groups: Any) -> None:
        """Store the groups of a request. `signal` is the name of their list."""
        with self._changed:
            getattr(self, signal).extend(groups)
            self.resources += [attributes_of(group.resource) for group in groups]
            self._changed.notify_all()

    def spans(self, kind: int | None = None) -> list[Any]:
        """Return all spans, or those of one kind as OTLP numbers them (2 is SERVER, 3 is CLIENT)."""
        spans = [span for each in self.resource_spans for scope in each.scope_spans for span in scope.spans]
        return [span for span in spans if kind in {None, span.kind}]

    def call_ids(self, kind: int | None = None) -> Counter[str]:
        """Return the call_id of each span, with the number of times it arrived."""
        return Counter(f"{span.trace_id.hex()}-{span.span_id.hex()}" for span in self.spans(kind))

    def metric_names(self) -> set[str]:
        """Return the names of all metrics."""
        return {
            metric.name for each in self.resource_metrics for scope in each.scope_metrics for metric in scope.metrics
        }

    def points(self, name: str) -> list[Any]:
        """Return the last data points of a metric from each resource. They are cumulative, so they are its totals."""
        last: dict[bytes, list[Any]] = {}
        for each in self.resource_metrics:
            for metric in (metric for scope in each.scope_metrics for metric in scope.metrics if metric.name == name):
                kind = metric.WhichOneof("data")
                last[each.resource.SerializeToString()] = list(getattr(metric, kind).data_points)
        return [point for points in last.values() for point in points]

    def log_records(self) -> list[Any]:
        """Return all log records."""
        return [record for each in self.resource_logs for scope in each.scope_logs for record in scope.log_records]

    def wait_for(self, condition: Callable[[], object], seconds: float = 60) -> None:
        """Wait until the received telemetry meets the condition."""
        with self._changed:
            assert self._changed.wait_for(condition, seconds), "did not arrive"


@contextmanager
def grpc_receiver(received: Received, *, metrics: bool = True, limit: int = 4 * 2**20) -> Iterator[str]:
    """Receive over gRPC during the block, and yield the endpoint. Without `metrics`, it takes none, as Jaeger.

    `limit` is the most bytes of a request, also of `http_receiver`.
    """

    class Traces(traces_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
            received.add("resource_spans", request.resource_spans)
            return traces_pb.ExportTraceServiceResponse()

    class Metrics(metrics_grpc.MetricsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
            received.add("resource_metrics", request.resource_metrics)
            return metrics_pb.ExportMetricsServiceResponse()

    class Logs(logs_grpc.LogsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
            received.add("resource_logs", request.resource_logs)
            return logs_pb.ExportLogsServiceResponse()

    with ThreadPoolExecutor(max_workers=2) as pool:
        server = grpc.server(pool, options=[("grpc.max_receive_message_length", limit)])
        traces_grpc.add_TraceServiceServicer_to_server(Traces(), server)  # type: ignore[no-untyped-call]
        if metrics:
            metrics_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)  # type: ignore[no-untyped-call]
        logs_grpc.add_LogsServiceServicer_to_server(Logs(), server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.stop(grace=None).wait()


@contextmanager
def http_receiver(received: Received, port: int = 0, *, limit: int = 2**30) -> Iterator[str]:
    """Receive over HTTP with protobuf during the block, and yield the endpoint."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keep-alive: on a closed connection, the exporter may send a request twice

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Encoding"] == "gzip":
                body = gzip.decompress(body)
            status = 404 if self.path not in _REQUESTS else 413 if len(body) > limit else 200
            if status == 200:
                request, signal = _REQUESTS[self.path]
                received.add(signal, getattr(request.FromString(body), signal))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
