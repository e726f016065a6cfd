"""An OpenTelemetry SDK that stores its spans and metrics in memory. It does not depend on the connector."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

RESOURCE = Resource.create()
"""The resource of all providers. To detect it takes longer than a call."""


@dataclass
class SDK:
    """A tracer provider and a meter provider with exporters in memory."""

    spans: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    metrics: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)

    def __post_init__(self) -> None:
        self.tracer_provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.meter_provider = MeterProvider([self.metrics], RESOURCE, shutdown_on_exit=False)

    @property
    def providers(self) -> dict[str, Any]:
        """Return the keyword arguments of a connector that set both providers."""
        return {"tracer_provider": self.tracer_provider, "meter_provider": self.meter_provider}

    def span(self) -> Any:
        """Return the only span that has ended."""
        (span,) = self.spans.get_finished_spans()
        return span

    def points(self, name: str) -> list[Any]:
        """Return the current data points of a metric."""
        data = self.metrics.get_metrics_data()
        return [] if data is None else points(data, name)


def points(data: MetricsData, name: str) -> list[Any]:
    """Return the data points of the metric with this name."""
    return [
        point
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    ]
