"""Finds the collector that telemetry is sent to: one named by the environment, or one that listens on this machine.

Does not know what is sent, nor the terminal.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from otel_connector._redact import Redactor


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """An OTLP receiver.

    Attributes:
        endpoint: Its address, redacted.
        protocol: The OTLP protocol of the port on which it was found; None if the environment defines the endpoint.
    """

    endpoint: str
    protocol: str | None = None

    def set_protocol(self, environ: MutableMapping[str, str]) -> None:
        """Set ``OTEL_EXPORTER_OTLP_PROTOCOL`` if the protocol is known and the variable is not set."""
        if self.protocol is not None:
            environ.setdefault("OTEL_EXPORTER_OTLP_PROTOCOL", self.protocol)


def find_collector(environ: Mapping[str, str], ports: tuple[int, int] = (4317, 4318)) -> Collector | None:
    """Return the collector that the environment names, else one that listens on this machine, else None.

    Args:
        environ: The environment. Only the presence of an endpoint is checked; the SDK interprets the variables.
        ports: The ports to try, of OTLP over gRPC and over HTTP. The defaults are those of the specification
            (OpenTelemetry Protocol Exporter, "Configuration Options").
    """
    for signal in ("", "TRACES_", "METRICS_"):
        if endpoint := environ.get(f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT"):
            return Collector(endpoint=Redactor().url(endpoint))
    for port, protocol in zip(ports, ("grpc", "http/protobuf"), strict=True):
        if _accepts_connections(port):
            return Collector(endpoint=f"http://localhost:{port}", protocol=protocol)
    return None


def _accepts_connections(port: int) -> bool:
    try:
        # On the loopback, a connection is accepted or refused much faster than this
        with socket.create_connection(("127.0.0.1", port), timeout=0.25):
            return True
    except OSError:
        return False
