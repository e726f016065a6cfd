"""Selects the collector that telemetry is sent to: one named by the environment, or one that listens on this machine.

Does not know what is sent, nor the terminal.

Used by ``cli._demo_command`` and ``cli._replay_command``.
"""

from __future__ import annotations

import socket
from collections.abc import MutableMapping

from otel_connector._redact import Redactor


def select_collector(environ: MutableMapping[str, str], ports: tuple[int, int] = (4317, 4318)) -> str | None:
    """Return the endpoint of a collector, redacted: from the environment, else on this machine; None if there is none.

    For a collector on this machine, ``OTEL_EXPORTER_OTLP_PROTOCOL`` is set if it is not, because the SDK must use the
    protocol of the port.

    Args:
        environ: The environment. Only the presence of an endpoint is checked; the SDK interprets the variables.
        ports: The ports to try, of OTLP over gRPC and over HTTP. The defaults are those of the specification
            (OpenTelemetry Protocol Exporter, "Configuration Options").
    """
    for signal in ("", "TRACES_", "METRICS_"):
        if endpoint := environ.get(f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT"):
            return Redactor().url(endpoint)
    for port, protocol in zip(ports, ("grpc", "http/protobuf"), strict=True):
        if _accepts_connections(port):
            environ.setdefault("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            return f"http://localhost:{port}"
    return None


def _accepts_connections(port: int) -> bool:
    try:
        # On the loopback, a connection is accepted or refused much faster than this
        with socket.create_connection(("127.0.0.1", port), timeout=0.25):
            return True
    except OSError:
        return False
