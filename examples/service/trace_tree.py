"""Prints a trace as a tree of text, from the spans that an OTLP receiver has received."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status


@dataclass(frozen=True, slots=True)
class Node:
    """A span, its service, and its children in the order of their start."""

    service: str
    span: Span
    children: list[Node]

    @property
    def kind(self) -> str:
        """`CLIENT`, `SERVER`, `INTERNAL`, ..."""
        return str(Span.SpanKind.Name(self.span.kind)).removeprefix("SPAN_KIND_")

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of the span."""
        return values(self.span.attributes)

    def walk(self) -> Iterator[Node]:
        """Yield this span and all its descendants."""
        yield self
        for child in self.children:
            yield from child.walk()


def values(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    """Return OTLP's attributes as a dictionary."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value") for each in attributes}


def roots_of(received: Iterable[ResourceSpans], trace_id: str) -> list[Node]:
    """Return the spans of a trace without a parent in it, usually one, each with its descendants."""
    nodes: dict[bytes, Node] = {}
    for resource in received:
        service = str(values(resource.resource.attributes).get("service.name", "?"))
        for scope in resource.scope_spans:
            nodes.update({s.span_id: Node(service, s, []) for s in scope.spans if s.trace_id.hex() == trace_id})
    roots: list[Node] = []
    for node in sorted(nodes.values(), key=lambda node: node.span.start_time_unix_nano):
        parent = nodes.get(node.span.parent_span_id)
        (roots if parent is None else parent.children).append(node)
    return roots


def shown_value(value: object) -> str:
    """Return a value as text; a float with three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def lines(node: Node, before: str = "", below: str = "") -> Iterator[str]:
    """Yield the lines of the tree: one for each span and for each of its events."""
    span, attributes = node.span, node.attributes
    seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    result = [attributes.get(name) for name in ("url.full", "http.response.status_code", "error.type")]
    failed = "ERROR" if span.status.code == Status.STATUS_CODE_ERROR else None
    shown = [node.service, node.kind, span.name, f"{seconds * 1e3:.1f} ms", *result, failed]
    yield before + "  ".join(str(each) for each in shown if each is not None)
    for event in span.events:
        shown_values = {name: value for name, value in values(event.attributes).items() if not name.endswith(".start")}
        about = ", ".join(f"{name} {shown_value(value)}" for name, value in shown_values.items())
        yield f"{below}{'│' if node.children else ' '}   * {event.name}: {about.replace(event.name + '.', '')}"
    for child in node.children:
        last = child is node.children[-1]
        yield from lines(child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "))


def tree(received: Iterable[ResourceSpans], trace_id: str) -> str:
    """Return a trace as text."""
    return "\n".join(line for root in roots_of(received, trace_id) for line in lines(root))
