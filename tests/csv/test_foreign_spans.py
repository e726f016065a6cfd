"""Rows of the HTTP spans of other clients: `CSVSpanExporter(spans="http")`.

The names of attributes are those of the semantic conventions 1.44 (stable) and 1.11 (old, contrib's default).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode
from support.logs import Log

from otel_connector import AsyncConnector, CallRecord, CSVSpanExporter, CSVSpanProcessor, review
from otel_connector._csv._check import check
from otel_connector.testing import FakeClock, FaultServer, ok

START = 1_790_000_000_123_456_789
OLD: dict[str, Any] = {"http.method": "GET", "http.url": "http://h/", "http.status_code": 200}
STABLE: dict[str, Any] = {"http.request.method": "GET", "url.full": "http://h/", "http.response.status_code": 200}
ERROR = Status(StatusCode.ERROR)
SCOPE = InstrumentationScope("opentelemetry.instrumentation.httpx")


def exception(kind: Any, message: Any) -> Event:
    return Event("exception", {"exception.type": kind, "exception.message": message})


def span(attributes: Any = None, number: int = 1, **arguments: Any) -> ReadableSpan:
    """Return a span of another client: a GET that was answered with 200 after 1.5 s."""
    given: dict[str, Any] = {
        "context": SpanContext(number, number, is_remote=False),
        "resource": Resource({"service.name": "prices"}),
        "attributes": STABLE if attributes is None else attributes,
        "kind": SpanKind.CLIENT,
        "instrumentation_scope": SCOPE,
        "start_time": START,
        "end_time": START + 1_500_000_000,
    }
    return ReadableSpan("GET", **given | arguments)


def rows_of(path: Path, *spans: ReadableSpan, **options: Any) -> list[CallRecord]:
    """Return the rows that an exporter writes for these spans. Every line of its file is a whole row."""
    options = {"spans": "http", "overwrite": True, **options}
    exporter = CSVSpanExporter(path, **options)
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    exporter.shutdown()
    report = check(path)
    assert (report.whole, report.altered, report.rows) == (True, 0, exporter.counts().written)
    return Log(path).records()


@pytest.mark.parametrize("attributes", [OLD, STABLE, {**OLD, **STABLE}], ids=["old", "stable", "http/dup"])
@pytest.mark.parametrize("method", ["GET", "POST", "_OTHER"])
def test_an_http_span_has_a_row(attributes: dict[str, Any], method: str, tmp_path: Path) -> None:
    sent = {name: method if name.endswith("method") else value for name, value in attributes.items()}
    assert rows_of(tmp_path / "logs.csv", span(sent)) == [
        CallRecord(
            call_id=f"{1:032x}-{1:016x}",
            project="prices",
            t=1_790_000_000.123456,
            delta_t=1.5,
            url="http://h/",
            redirect_url="",
            response_size=0,
            response_code=200,
            success=True,
            error="",
        )
    ]


NO_STATUS = {name: value for name, value in STABLE.items() if "status" not in name}
OTHERS: dict[str, dict[str, Any]] = {
    "of a server": {"kind": SpanKind.SERVER},
    "internal": {"kind": SpanKind.INTERNAL},
    "a producer": {"kind": SpanKind.PRODUCER},
    # semantic conventions, "Elasticsearch": http.request.method and url.full are on the span of the database client
    "Elasticsearch": {"attributes": {**STABLE, "db.system.name": "elasticsearch"}},
    "Elasticsearch, old": {"attributes": {**STABLE, "db.system": "elasticsearch"}},
    # semantic conventions, "AWS SDK" and "RPC"
    "AWS, old": {"attributes": {**OLD, "rpc.system": "aws-api"}},
    "an RPC": {"attributes": {**STABLE, "rpc.system.name": "connectrpc"}},
    "messaging": {"attributes": {**STABLE, "messaging.system": "aws_sqs"}},
    "a database": {"attributes": {"db.system": "postgresql", "server.address": "h"}},
    "without attributes": {"attributes": {}},
    "an attempt of the connector": {"instrumentation_scope": InstrumentationScope("otel_connector")},
    "without a context": {"context": None},
    "ids of zeros": {"context": SpanContext(0, 0, is_remote=False)},
    "ids that are too large": {"context": SpanContext(1 << 128, 1 << 64, is_remote=False)},
    "not started": {"start_time": None},
    "not ended": {"end_time": None},
    "before 1970": {"start_time": -1},
    "after the year 9999": {"start_time": 10**21, "end_time": 10**21},
    "later than a float": {"start_time": 10**500, "end_time": 10**500},
    "of more than thirty years": {"start_time": 0, "end_time": 10**19},
    "times of another type": {"start_time": 1.5, "end_time": "2"},
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_span_has_no_row(other: str, tmp_path: Path) -> None:
    spans = [span(number=1), span(**{"number": 2, **OTHERS[other]}), span(number=3)]
    ids = [int(record.call_id[-16:], 16) for record in rows_of(tmp_path / "logs.csv", *spans)]
    assert ids == [1, 3], "and it does not prevent the rows of the others"


def test_a_span_without_a_scope_or_with_a_negative_duration_has_a_row(tmp_path: Path) -> None:
    spans = span(instrumentation_scope=None), span(number=2, end_time=START - 1)
    assert [record.delta_t for record in rows_of(tmp_path / "logs.csv", *spans)] == [1.5, 0.0]


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ({"http.response.body.size": 12}, 12),
        ({"http.response_content_length": 12}, 12),
        ({"http.response.body.size": 12, "http.response_content_length": 13}, 12),
        ({"http.response.body.size": "12", "http.response_content_length": 13}, 13),
        ({"http.response.body.size": 0}, 0),
        ({"http.response.body.size": 2**63 - 1}, 2**63 - 1),
        ({"http.response.body.size": 2**63}, 0),
        ({"http.response.body.size": -1}, 0),
        ({"http.response.body.size": True}, 0),
        ({"http.response.body.size": 1.5}, 0),
    ],
    ids=str,
)
def test_the_size_of_the_body(attributes: dict[str, Any], size: int, tmp_path: Path) -> None:
    (record,) = rows_of(tmp_path / "logs.csv", span({**STABLE, **attributes}))
    assert record.response_size == size


@pytest.mark.parametrize(
    ("changes", "arguments", "code", "error"),
    [
        # RFC 9110, section 15: 4xx and 5xx are errors, and what is above is treated like them; 3xx is none
        ({"http.response.status_code": 404}, {"status": ERROR}, 404, "HTTPStatusError: 404 Not Found"),
        ({"http.response.status_code": 503}, {}, 503, "HTTPStatusError: 503 Service Unavailable"),
        ({"http.response.status_code": 599, "error.type": "599"}, {}, 599, "HTTPStatusError: 599"),
        ({"http.response.status_code": 999}, {}, 999, "HTTPStatusError: 999"),
        ({"http.response.status_code": 404}, {"status": Status(StatusCode.OK)}, 404, "HTTPStatusError: 404 Not Found"),
        ({"http.response.status_code": 302}, {}, 302, None),
        ({"http.response.status_code": 304}, {}, 304, None),
        ({"http.response.status_code": 101}, {}, 101, None),
        # Not statuses
        ({"http.response.status_code": 0}, {}, None, ""),
        ({"http.response.status_code": 1_000}, {}, None, ""),
        ({"http.response.status_code": "200"}, {}, None, ""),
        ({"http.response.status_code": True}, {}, None, ""),
        # contrib's httpx after a cancellation: the conventions require the code if there was a response
        (NO_STATUS, {}, None, ""),
        # contrib's four clients, as recorded
        (
            {**NO_STATUS, "error.type": "ReadTimeout"},
            {
                "status": Status(StatusCode.ERROR, "ReadTimeout: timed out"),
                "events": [exception("httpx.ReadTimeout", "timed out")],
            },
            None,
            "ReadTimeout: timed out",
        ),
        (
            NO_STATUS,
            {
                "status": Status(StatusCode.ERROR, "CancelledError"),
                "events": [exception("asyncio.exceptions.CancelledError", "")],
            },
            None,
            "CancelledError",
        ),
        # urllib3 1 and 2 name the object of a connection
        (NO_STATUS, {"events": [exception("a.E", "<C object at 0x7f1e>: no")]}, None, "E: <C object>: no"),
        # The exception of the end is the last one
        (NO_STATUS, {"events": [exception("a.A", "1"), exception("b.B", "2"), Event("log")]}, None, "B: 2"),
        ({**NO_STATUS, "error.type": "a.A"}, {"events": [exception(1, 2)]}, None, "A"),
        (NO_STATUS, {"events": [Event("exception", None)], "status": ERROR}, None, "_OTHER"),
        # Without the event (the limit of events is 0, or `record_exception=False`)
        (NO_STATUS, {"status": Status(StatusCode.ERROR, "ReadTimeout: timed out")}, None, "ReadTimeout: timed out"),
        (NO_STATUS, {"status": Status(StatusCode.ERROR, "TimeoutError")}, None, "TimeoutError"),
        (
            {**NO_STATUS, "error.type": "httpx.ReadTimeout"},
            {"status": Status(StatusCode.ERROR, "ReadTimeout: x")},
            None,
            "ReadTimeout: x",
        ),
        ({**NO_STATUS, "error.type": "timeout"}, {"status": Status(StatusCode.ERROR, "E: x")}, None, "timeout: E: x"),
        (NO_STATUS, {"status": Status(StatusCode.ERROR, "it broke")}, None, "_OTHER: it broke"),
        (NO_STATUS, {"status": ERROR}, None, "_OTHER"),  # semantic conventions, error.type
        # A response whose body failed, or that a hook rejected
        ({"error.type": "IncompleteRead"}, {}, 200, "IncompleteRead"),
        ({}, {"status": Status(StatusCode.ERROR, "no price in it")}, 200, "_OTHER: no price in it"),
    ],
)
@pytest.mark.parametrize("names", ["stable", "old"])
def test_success_and_error(
    changes: dict[str, Any], arguments: dict[str, Any], code: int | None, error: str | None, names: str, tmp_path: Path
) -> None:
    attributes = changes if changes.keys() >= NO_STATUS.keys() else {**STABLE, **changes}
    if names == "old":
        renamed = dict(zip(STABLE, OLD, strict=True))
        attributes = {renamed.get(name, name): value for name, value in attributes.items()}
    (record,) = rows_of(tmp_path / "logs.csv", span(attributes, **arguments))
    assert (record.response_code, record.success, record.error) == (code, error is None, error or "")


def test_fields_that_the_span_does_not_have_are_empty(tmp_path: Path) -> None:
    bare = span({"http.method": 5, "url.full": 3}, resource=Resource({"service.name": 7}))
    (record,) = rows_of(tmp_path / "logs.csv", bare)
    assert record[1:2] + record[4:] == ("", "", "", 0, None, False, "")


def test_url_and_error_are_redacted(tmp_path: Path) -> None:
    url = "https://user:pass@h/?token=s1&page=2&tenant=s2"
    failed = span(
        {**NO_STATUS, "url.full": url},
        events=[exception("E", f"Max retries exceeded with url: /?token=s1 ({url})")],
    )
    path = tmp_path / "logs.csv"
    (record,) = rows_of(path, failed)
    assert record.url == "https://REDACTED:REDACTED@h/?token=REDACTED&page=2&tenant=s2"
    assert record.error == f"E: Max retries exceeded with url: /?token=REDACTED ({record.url})"
    quoted = [exception("E", "s1+1, s1%2B1 and abc are not valid")]
    (record,) = rows_of(path, span({**NO_STATUS, "url.full": "/?token=s1%2B1&key=abc"}, events=quoted))
    assert record.error == "E: REDACTED, REDACTED and abc are not valid"
    (record,) = rows_of(path, failed, redact_params=["tenant"])
    assert record.url == "https://REDACTED:REDACTED@h/?token=s1&page=2&tenant=REDACTED"
    assert "s2" not in record.error


@pytest.mark.parametrize(
    ("kind", "message", "shown"),
    [  # h11 (in httpx), http.client (in urllib3), requests
        ("LocalProtocolError", r"Illegal header value b'S3CRET\n'", "Illegal header value REDACTED"),
        ("ValueError", r"""Invalid header value b"S'3CRET\n\"\"""", "Invalid header value REDACTED"),
        (
            "InvalidHeader",
            r"return character(s) in header value: 'S3CRET\n'",
            "return character(s) in header value: REDACTED",
        ),
        ("ValueError", "Invalid header value", "Invalid header value"),
    ],
)
def test_a_header_value_that_is_refused_is_redacted(kind: str, message: str, shown: str, log: Log) -> None:
    """A key that was read from a file ends in a line break, which these clients quote."""
    (record,) = rows_of(log.path, span(NO_STATUS, events=[exception(kind, message)]))
    assert record.error == f"{kind}: {shown}"


def test_long_texts_are_cut_and_control_characters_escaped(tmp_path: Path) -> None:
    huge = "x" * 5_000_000
    spans = [
        span({**STABLE, "url.full": f"http://h/{huge}", "error.type": huge}, status=Status(StatusCode.ERROR, huge)),
        span(NO_STATUS, number=2, events=[exception(f"a.{huge}", huge)]),
        span({**NO_STATUS, "url.full": "http://h/\u202e"}, number=3, events=[exception("E", "a\nb\x00")]),
    ]
    *cut, escaped = rows_of(tmp_path / "logs.csv", *spans)
    assert [len(record.url) for record in cut] == [8_192, 9]
    assert all(2_000 < len(record.error) <= 2_048 and record.error.startswith("xxx") for record in cut)
    assert (escaped.url, escaped.error) == ("http://h/\\u202e", "E: a\\nb\\x00")


NAMES = [
    *STABLE,
    *OLD,
    *("http.response.body.size", "http.response_content_length", "error.type", "db.system", "otel_connector.call_id"),
]
VALUES = st.one_of(
    st.sampled_from([None, True, -1, 0, 200, 404, 10**400, 10**5_000, 1.5, float("nan"), float("inf")]),
    st.sampled_from(["", "=1", "a,b", '"', "\n", "\u2028", "\ud800", "a.b: c", "x" * 9_000, b"b", [], {}, ["a"], (1,)]),
    st.text(max_size=5),
)
TIMES = st.one_of(st.integers(-(10**20), 10**20), st.integers(), st.none(), st.floats(), st.just(10**5_000))


@given(
    st.dictionaries(st.sampled_from(NAMES), VALUES),
    st.fixed_dictionaries(
        {},
        optional={
            "start_time": TIMES,
            "end_time": TIMES,
            "status": st.builds(
                Status, st.sampled_from(StatusCode), st.sampled_from([None, "", "E: x", "\ud800", "=1"])
            ),
            "events": st.lists(st.builds(exception, VALUES, VALUES), max_size=2),
            "kind": st.sampled_from([*SpanKind, None, "CLIENT"]),
            "context": st.builds(SpanContext, st.integers(0, 1 << 129), st.integers(0, 1 << 65), st.just(False)),
            "resource": st.builds(lambda name: Resource({"service.name": name}), VALUES),
            "instrumentation_scope": st.sampled_from([None, SCOPE]),
        },
    ),
)
def test_no_span_raises_or_writes_a_line_that_is_not_a_row(
    tmp_path_factory: pytest.TempPathFactory, attributes: dict[str, Any], arguments: dict[str, Any]
) -> None:
    changed = span({**STABLE, **attributes}, **arguments)
    path = tmp_path_factory.getbasetemp() / "hostile.csv"
    kept = rows_of(path, changed, span(number=2**63))[-1]
    assert kept.call_id == f"{2**63:032x}-{2**63:016x}"
    rows_of(path, changed, spans="connector")


def test_attributes_that_raise_do_not_prevent_other_rows(tmp_path: Path) -> None:
    class Span(ReadableSpan):
        @property
        def attributes(self) -> Any:
            raise RuntimeError

    broken = Span("GET", SpanContext(7, 7, is_remote=False), resource=Resource.get_empty())
    assert len(rows_of(tmp_path / "logs.csv", broken, span())) == 1


# With a provider


def of_contrib(provider: TracerProvider) -> None:
    """Make a span as contrib's requests instrumentation does."""
    tracer = provider.get_tracer("opentelemetry.instrumentation.requests")
    with tracer.start_as_current_span(
        "GET", kind=SpanKind.CLIENT, attributes={"http.method": "GET", "http.url": "http://h/"}
    ) as (made):
        made.set_attribute("http.status_code", 200)


@pytest.mark.parametrize(("sampler", "rows"), [(ALWAYS_ON, 1), (ALWAYS_OFF, 0)])
def test_a_span_that_arrives_twice_has_one_row(sampler: Sampler, rows: int, log: Log) -> None:
    exporter = CSVSpanExporter(log.path, spans="http")
    provider = TracerProvider(sampler, resource=Resource({"service.name": "prices"}), shutdown_on_exit=False)
    for _ in range(2):
        provider.add_span_processor(CSVSpanProcessor(exporter))
    of_contrib(provider)
    provider.shutdown()
    assert [record.project for record in log.records()] == ["prices"] * rows


@contextmanager
def contrib(provider: TracerProvider) -> Iterator[None]:
    AioHttpClientInstrumentor().instrument(tracer_provider=provider)
    try:
        yield
    finally:
        AioHttpClientInstrumentor().uninstrument()


@pytest.mark.parametrize("attempt_spans", [False, True])
@pytest.mark.parametrize("is_logfile_too", [False, True])
async def test_a_call_of_the_connector_has_one_row_beside_contrib(
    attempt_spans: bool, is_logfile_too: bool, server: FaultServer, log: Log
) -> None:
    server.script("/call", [503, ok])
    server.script("/bare", ok)
    exporter = CSVSpanExporter(log.path, spans="http")
    provider = TracerProvider(resource=Resource({"service.name": "prices"}), shutdown_on_exit=False)
    provider.add_span_processor(CSVSpanProcessor(exporter))
    connector = AsyncConnector(
        exporter if is_logfile_too else None, tracer_provider=provider, attempt_spans=attempt_spans, clock=FakeClock()
    )
    with contrib(provider):
        async with aiohttp.ClientSession() as session:
            await connector.get(session, server.url("/call"), "P")
            async with session.get(server.url("/bare")) as response:
                await response.read()
    provider.shutdown()
    found = [(record.project, record.url, record.response_code) for record in log.records()]
    assert found == [("P", server.url("/call"), 200), ("prices", server.url("/bare"), 200)]
    assert len({record.call_id for record in log.records()}) == 2


async def test_a_call_whose_fields_the_sdk_has_dropped_has_no_second_row(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    server.script("/call", ok)
    exporter = CSVSpanExporter(log.path, spans="http")
    provider = TracerProvider(span_limits=SpanLimits(max_span_attributes=3), shutdown_on_exit=False)
    provider.add_span_processor(CSVSpanProcessor(exporter))
    await AsyncConnector(exporter, tracer_provider=provider).get(session, server.url("/call"), "P")
    provider.shutdown()
    assert log.only().project == "P"


def test_review_reads_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "logs.csv"
    failed = {**STABLE, "http.response.status_code": 404}
    rows_of(path, span(), span(failed, number=2), span(NO_STATUS, number=3), span(number=4, end_time=START + 10**9))
    with review.load(path) as calls:
        summary = review.summarize(calls)
        rows = calls.connection.sql(
            "SELECT project, host, delta_t, response_code, success, error_type FROM calls ORDER BY call_id"
        ).fetchall()
    assert rows == [
        ("prices", "h", 1.5, 200, True, ""),
        ("prices", "h", 1.5, 404, False, "HTTPStatusError 404"),
        ("prices", "h", 1.5, None, False, "no error given"),
        ("prices", "h", 1.0, 200, True, ""),
    ]
    assert (summary.total.calls, summary.total.failed) == (4, 2)


# Which spans: the argument, the variable, and neither


CHOICES: Sequence[tuple[str | None, str | None, int, int]] = [
    # argument, variable, rows of an HTTP span, log lines
    (None, None, 0, 1),
    (None, "", 0, 1),
    (None, "connector", 0, 0),
    (None, "http", 1, 0),
    ("connector", None, 0, 0),
    ("connector", "http", 0, 0),
    ("http", None, 1, 0),
    ("http", "connector", 1, 0),
    ("http", "all", 1, 0),
]


@pytest.mark.parametrize(("argument", "variable", "rows", "lines"), CHOICES)
def test_the_first_http_span_without_a_row_is_logged(
    argument: Any,
    variable: str | None,
    rows: int,
    lines: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if variable is not None:
        monkeypatch.setenv("OTEL_CONNECTOR_CSV_SPANS", variable)
    database, path = span({"db.system": "redis"}, number=3), tmp_path / "logs.csv"
    assert len(rows_of(path, database, span(), span(), spans=argument)) == rows
    line = (
        f"{path}: HTTP requests of other clients have no rows; the first is a span of {SCOPE.name}. "
        'Set OTEL_CONNECTOR_CSV_SPANS=http, or pass spans="http", to write them; with "connector", this line is not '
        "logged"
    )
    assert caplog.record_tuples == [("otel_connector", logging.WARNING, line)] * lines
    assert len(rows_of(path, span(number=2, instrumentation_scope=None), spans=argument)) == rows
    assert len(caplog.records) == 2 * lines, "one for each exporter"


def test_a_log_handler_that_raises_does_not_affect_the_export(tmp_path: Path) -> None:
    class Raises(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError(record)

    handler = Raises()
    logging.getLogger("otel_connector").addHandler(handler)
    try:
        assert rows_of(tmp_path / "logs.csv", span(), spans=None) == []
    finally:
        logging.getLogger("otel_connector").removeHandler(handler)


@pytest.mark.parametrize("value", ["HTTP", " Http "])
def test_the_variable_is_read_without_regard_to_case(value: Any, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry specification, "Environment Variable Specification", enum values."""
    monkeypatch.setenv("OTEL_CONNECTOR_CSV_SPANS", value)
    assert CSVSpanExporter(log.path)._foreign_redactor is not None


@pytest.mark.parametrize("value", ["all", "https", "1"])
def test_another_value_is_refused_with_the_name_of_its_place(
    value: Any, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=f"^spans must be 'connector' or 'http', not '{value}'$"):
        CSVSpanExporter(log.path, spans=value)
    monkeypatch.setenv("OTEL_CONNECTOR_CSV_SPANS", value)
    with pytest.raises(ValueError, match=f"^OTEL_CONNECTOR_CSV_SPANS must be 'connector' or 'http', not '{value}'$"):
        CSVSpanExporter(log.path)
    assert not log.path.exists()
    AsyncConnector(log.path)  # no span of the SDK reaches its exporter


def test_an_empty_argument_is_refused(log: Log) -> None:
    empty: Any = ""
    with pytest.raises(ValueError, match=r"^spans must be"):
        CSVSpanExporter(log.path, spans=empty)
