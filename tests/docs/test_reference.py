"""Tests of the reference in `docs`: it matches the code, and all telemetry that is sent matches its declaration.

Names from the semantic conventions must exist there and must not be deprecated.
"""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from opentelemetry.semconv import schemas
from support import reference
from support.documents import DOCS
from support.logs import Log
from support.sdk import SDK

from otel_connector import COLUMNS, AsyncConnector, ConnectorError
from otel_connector._telemetry import _names
from otel_connector._telemetry._metrics import HOST_LIMIT, PROJECT_LIMIT, TEMPLATE_LIMIT
from otel_connector._telemetry._names import (
    ATTEMPT_SPAN_ATTRIBUTES,
    CALL_ATTRIBUTES,
    CALL_DURATION,
    CONVENTIONS,
    EVENT_ATTRIBUTES,
    FIELD_PREFIX,
    HEADER_ATTRIBUTES,
    HTTP_ATTRIBUTES,
    IN_DEVELOPMENT,
    LABELS,
    METRICS,
    OURS,
    TEMPLATE_ATTRIBUTE,
    Attribute,
)
from otel_connector.testing import FakeClock, FaultServer, ok, redirect, respond, retry_after

OTLP = {str: "string", bool: "boolean", int: "int", float: "double", tuple: "string[]"}
HEADERS = re.compile(r"(http\.(?:request|response)\.header\.)\w+")
TEMPLATE = "/items/{id}"
KINDS = {"Histogram": "histogram", "Sum, monotonic": "counter", "Sum": "up-down counter"}


def test_the_generated_files_are_what_the_code_generates() -> None:
    generated = reference.files()
    assert {"reference/commands.md", "reference/telemetry.md"} < generated.keys()
    for name, text in generated.items():
        found = (DOCS / name).read_text(encoding="utf-8")
        assert found.split() == text.split(), f"{name}: run `python -m support.reference` in `tests`"


def test_the_reference_states_the_limits_of_labels() -> None:
    conditions = {label.name: label.when for label in LABELS}
    assert f"after {HOST_LIMIT} hosts" in conditions[_names.SERVER_ADDRESS]
    assert f"after {PROJECT_LIMIT} projects" in conditions[_names.PROJECT]
    assert f"after {TEMPLATE_LIMIT} templates" in conditions[_names.URL_TEMPLATE]


def test_every_command_of_the_reference_is_in_the_help() -> None:
    listed = reference.help_of("").partition("Commands:")[2].splitlines()
    assert {line.split()[0] for line in listed if line.startswith("  ") and line[2:3].isalpha()} >= set(
        reference.COMMANDS
    )


def types(attributes: Iterable[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(HEADERS.sub(r"\1<key>", name), OTLP[type(value)]) for each in attributes for name, value in each.items()}


def declared(attributes: Iterable[Attribute]) -> set[tuple[str, str]]:
    return {(attribute.name, attribute.type) for attribute in attributes}


class SlowLimiter:
    """Makes each attempt wait."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    async def __aenter__(self) -> None:
        await self._clock.sleep(0.25)

    async def __aexit__(self, *_: object) -> None:
        pass


async def make_calls_of_all_kinds(server: FaultServer, sdk: SDK, log: Log, *, attempt_spans: bool) -> AsyncConnector:
    """Make calls that succeed, queue, are retried, are redirected and fail, so that each attribute is set by one."""
    server.script("/ok", ok)
    server.script("/flaky", [retry_after(1, status=500), ok])
    server.script("/gone", 404)
    server.script("/away", redirect("/ok"))
    server.script("/moved", respond(303, headers=[("Location", "/gone"), ("Retry-After", "1")]))
    clock = FakeClock()
    subject = AsyncConnector(
        log.path,
        n_tries=2,
        attempt_spans=attempt_spans,
        adaptive_concurrency=1,
        rate_limiter=SlowLimiter(clock),
        clock=clock,
        **sdk.providers,
    )
    urls = [server.url(path) for path in ("/ok", "/ok", "/flaky", "/gone", "/away", "/moved")]
    async with aiohttp.ClientSession(headers={"X-Sent": "1"}) as session:
        outcomes = await asyncio.gather(
            *(subject.get(session, url, "P") for url in urls),
            subject.get(session, "http://127.0.0.1:1/", "P", template=TEMPLATE),
            return_exceptions=True,
        )
    assert [isinstance(outcome, ConnectorError) for outcome in outcomes] == [
        False,
        False,
        False,
        True,
        False,
        True,
        True,
    ]
    return subject


@pytest.fixture
def captured_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture all headers, by the variables of contrib."""
    for kind in ("REQUEST", "RESPONSE"):
        monkeypatch.setenv(f"OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_{kind}", ".*")


@pytest.mark.usefixtures("captured_headers")
async def test_spans_and_events_have_exactly_the_declared_attributes(server: FaultServer, sdk: SDK, log: Log) -> None:
    await make_calls_of_all_kinds(server, sdk, log, attempt_spans=False)
    spans = sdk.spans.get_finished_spans()
    assert {span.name for span in spans} == {_names.CALL_NAME, f"{_names.CALL_NAME} {TEMPLATE}"}
    all_declared = declared((*HTTP_ATTRIBUTES, *HEADER_ATTRIBUTES, TEMPLATE_ATTRIBUTE, *CALL_ATTRIBUTES))
    assert types(dict(span.attributes or {}) for span in spans) == all_declared
    events = [event for span in spans for event in span.events]
    assert {event.name for event in events} == {_names.ATTEMPT_EVENT}
    assert types(dict(event.attributes or {}) for event in events) == declared(EVENT_ATTRIBUTES)


@pytest.mark.usefixtures("captured_headers")
async def test_call_and_attempt_spans_have_exactly_the_declared_attributes(
    server: FaultServer, sdk: SDK, log: Log
) -> None:
    await make_calls_of_all_kinds(server, sdk, log, attempt_spans=True)
    calls: list[dict[str, Any]] = []
    attempts: list[dict[str, Any]] = []
    for span in sdk.spans.get_finished_spans():
        (attempts if span.name.startswith(_names.CALL_NAME) else calls).append(dict(span.attributes or {}))
    error_type = [attribute for attribute in CALL_ATTRIBUTES if attribute.name == _names.ERROR_TYPE]
    assert types(calls) == declared([TEMPLATE_ATTRIBUTE, *CALL_ATTRIBUTES])
    assert types(attempts) == declared(
        [*HTTP_ATTRIBUTES, *HEADER_ATTRIBUTES, TEMPLATE_ATTRIBUTE, *error_type, *ATTEMPT_SPAN_ATTRIBUTES]
    )


@pytest.mark.parametrize("attempt_spans", [False, True])
async def test_metrics_have_the_declared_kind_unit_description_and_attributes(
    attempt_spans: bool, server: FaultServer, sdk: SDK, log: Log
) -> None:
    subject = await make_calls_of_all_kinds(server, sdk, log, attempt_spans=attempt_spans)
    data = sdk.metrics.get_metrics_data()
    assert data is not None
    found: set[Any] = set()
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        monotonic = ", monotonic" if getattr(metric.data, "is_monotonic", False) else ""
        kind = KINDS[f"{type(metric.data).__name__}{monotonic}"]
        labels = types(dict(point.attributes or {}) for point in metric.data.data_points)
        found.add((metric.name, kind, metric.unit, metric.description, frozenset(labels)))
    by_name = {label.name: label for label in LABELS}
    assert found == {
        (m.name, m.kind, m.unit, m.description, frozenset(declared(by_name[label] for label in m.labels)))
        for m in METRICS
        if attempt_spans or m is not CALL_DURATION
    }
    assert subject.stats().calls_active == 0  # keeps the connector, and with it calls_active, until here


def test_the_fields_on_a_span_are_the_columns_of_the_log() -> None:
    names = {attribute.name for attribute in CALL_ATTRIBUTES}
    assert names - {FIELD_PREFIX + column for column in COLUMNS} == {_names.ERROR_TYPE, _names.QUEUE_DURATION}


# The semantic conventions: their package has a constant for each name, with its description below it.


def constants(part: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the description of each constant in one folder of the package."""
    for path in sorted((SEMCONV / part).glob("*.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for node, below in pairwise(body):
            match node, below:
                case ast.AnnAssign(value=ast.Constant(str(name))), ast.Expr(ast.Constant(str(text))):
                    yield name, text


SEMCONV = Path(schemas.__file__).parent
STABLE_ATTRIBUTES = dict(constants("attributes"))
ALL_ATTRIBUTES = {**dict(constants("_incubating/attributes")), **STABLE_ATTRIBUTES}
STABLE_METRICS = dict(constants("metrics"))
ALL_METRICS = {**dict(constants("_incubating/metrics")), **STABLE_METRICS}
CONVENTION_NAMESPACES = {name.partition(".")[0] for name in [*ALL_ATTRIBUTES, *ALL_METRICS]}
ATTRIBUTES = sorted(
    {*HTTP_ATTRIBUTES, *HEADER_ATTRIBUTES, TEMPLATE_ATTRIBUTE, *CALL_ATTRIBUTES, *ATTEMPT_SPAN_ATTRIBUTES}
    | {*EVENT_ATTRIBUTES, *LABELS}
)


def test_the_constants_of_the_conventions_were_read() -> None:
    assert "http.request.method" in STABLE_ATTRIBUTES
    assert ALL_ATTRIBUTES["http.method"].strip().startswith("Deprecated:")
    assert "Unit: {request}" in ALL_METRICS["http.client.active_requests"]
    assert {"http", "url", "server", "error", "network", "otel"} < CONVENTION_NAMESPACES


@pytest.mark.parametrize("attribute", ATTRIBUTES, ids=lambda attribute: str(attribute.name))
def test_an_attribute_in_a_namespace_of_the_conventions_is_one_of_them(attribute: Attribute) -> None:
    if attribute.name.partition(".")[0] in CONVENTION_NAMESPACES:
        name = attribute.name.removesuffix(".<key>")
        assert attribute.source == (CONVENTIONS if name in STABLE_ATTRIBUTES else IN_DEVELOPMENT)
        assert not ALL_ATTRIBUTES[name].strip().startswith("Deprecated")
    else:
        assert attribute.source == OURS
        assert attribute.name.startswith(FIELD_PREFIX)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: str(metric.name))
def test_a_metric_in_a_namespace_of_the_conventions_is_one_of_them(metric: _names.Metric) -> None:
    if metric.name.partition(".")[0] not in CONVENTION_NAMESPACES:
        assert metric.source == OURS
        return
    assert metric.source == (CONVENTIONS if metric.name in STABLE_METRICS else IN_DEVELOPMENT)
    lines = [line.strip() for line in ALL_METRICS[metric.name].strip().splitlines()]
    assert lines[0] == metric.description.rstrip(".")
    assert f"Unit: {metric.unit}" in lines
    assert f"Instrument: {metric.kind.replace('-', '').replace(' ', '')}" in lines
