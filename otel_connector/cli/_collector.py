"""Finds out whether there is an OTLP collector: an endpoint in the environment, or a port of this machine.

Does not know what is sent.

Used by ``cli._demo_command`` and ``cli._replay_command``.
"""

from __future__ import annotations

import socket
from collections.abc import MutableMapping


def select_collector(environ: MutableMapping[str, str], ports: tuple[int, int] = (4317, 4318)) -> bool:
    """Return whether the environment has an endpoint, or a process of this machine accepts connections at a usual port.

    For a collector on this machine, ``OTEL_EXPORTER_OTLP_PROTOCOL`` is set if it is not, because the SDK must use the
    protocol of the port.

    Args:
        environ: The environment. Only the presence of an endpoint is checked; the SDK interprets the variables.
        ports: The ports to try, of OTLP over gRPC and over HTTP. The defaults are those of the specification
            (OpenTelemetry Protocol Exporter, "Configuration Options").
    """
    if any(environ.get(f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT") for signal in ("", "TRACES_", "METRICS_")):
        return True
    for port, protocol in zip(ports, ("grpc", "http/protobuf"), strict=True):
        if _accepts_connections(port):
            environ.setdefault("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            return True
    return False


def _accepts_connections(port: int) -> bool:
    try:
        # Connections on the loopback are accepted or refused well within this time
        with socket.create_connection(("127.0.0.1", port), timeout=0.25):
            return True
    except OSError:
        return False
