"""The version, read by the build and put on every span and metric.

Used by ``__init__``, ``_replay._row_span``, ``_telemetry._metrics``, ``_telemetry._spans``, ``cli`` and
``review._html``.
"""

__version__ = "0.2.0"
