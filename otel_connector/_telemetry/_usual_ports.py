"""The ports of OTLP on which a receiver usually listens, and whether a process accepts connections there.

Used by ``_telemetry._export_problem``, ``_telemetry._exporter_watch`` and ``cli._collector``.
"""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

PORTS = {"grpc": 4317, "http/protobuf": 4318}
"""Of each protocol (OpenTelemetry Protocol Exporter, "Configuration Options")."""

_TIMEOUT = 0.25  # seconds; on the loopback, connections are accepted or refused well within this time


def accepts_connections(host: str, port: int) -> bool:
    """Return whether a process accepts connections."""
    try:
        with socket.create_connection((host, port), _TIMEOUT):
            return True
    except OSError:
        return False


def other_protocol(protocol: str) -> str:
    """Return the protocol of OTLP that is not this one."""
    return next(name for name in PORTS if name != protocol)


def other_origin(origin: str, protocol: str) -> str | None:
    """Return the address of the other protocol, if a process listens there.

    Args:
        origin: The scheme, the host and the port of an endpoint; another port than the usual one has no other.
        protocol: Its protocol.
    """
    parts, port = urlsplit(origin), PORTS[other_protocol(protocol)]
    try:
        is_usual = parts.port == PORTS.get(protocol, 0)
    except ValueError:  # a target of grpc, such as ipv4:127.0.0.1:4317
        return None
    if not is_usual or not accepts_connections(parts.hostname or "", port):
        return None
    return f"{origin.rpartition(':')[0]}:{port}"
