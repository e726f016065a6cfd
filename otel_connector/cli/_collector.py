"""Finds out whether there is an OTLP collector: an endpoint in the environment, or a port of this machine.

Does not know what is sent.

Used by ``cli._demo_command`` and ``cli._replay_command``.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from otel_connector._telemetry._usual_ports import PORTS, accepts_connections


def select_collector(environ: MutableMapping[str, str], ports: Mapping[str, int] = PORTS) -> bool:
    """Return whether the environment has an endpoint, or a process of this machine accepts connections at a usual port.

    For a collector on this machine, ``OTEL_EXPORTER_OTLP_PROTOCOL`` is set if it is not, because the SDK must use the
    protocol of the port.

    Args:
        environ: The environment. Only the presence of an endpoint is checked; the SDK interprets the variables.
        ports: The port to try for each protocol.
    """
    if any(environ.get(f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT") for signal in ("", "TRACES_", "METRICS_")):
        return True
    for protocol, port in ports.items():
        if accepts_connections("127.0.0.1", port):
            environ.setdefault("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            return True
    return False
