"""Unmodified programs with other HTTP clients under `opentelemetry-instrument`: one variable gives them a log.

A receiver in this process gets the same spans over OTLP/HTTP. So the exporter itself sends requests through an
instrumented client; they have no rows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.documents import block_starting
from support.forked import OPENTELEMETRY_INSTRUMENT, run_python
from support.logs import Log
from support.otlp_receiver import Received, http_receiver

from otel_connector import review
from otel_connector._csv._check import check
from otel_connector.testing import FaultServer, ok, redirect

pytestmark = pytest.mark.neighbours(
    *("opentelemetry.distro", "opentelemetry.instrumentation.httpx", "httpx"),
    *("opentelemetry.instrumentation.requests", "opentelemetry.instrumentation.urllib3", "urllib3"),
)

# Each client sends these requests; the last one has nothing to connect to
PROGRAM = """
import asyncio, contextlib, sys
import aiohttp, httpx, requests, urllib3

async def with_aiohttp(method, url):
    async with aiohttp.ClientSession() as session, session.request(method, url) as response:
        await response.read()

async def with_async_httpx(method, url):
    async with httpx.AsyncClient() as client:
        await client.request(method, url)

clients = {{
    "aiohttp": lambda *request: asyncio.run(with_aiohttp(*request)),
    "httpx": httpx.request,
    "async_httpx": lambda *request: asyncio.run(with_async_httpx(*request)),
    "requests": requests.request,
    "urllib3": lambda *request: urllib3.request(*request, retries=False),
}}
for client in {clients}:
    for method, url in [("GET", "{base}/a?token=s3cret&page=1"), ("POST", "{base}/a"), ("GET", "{base}/missing"),
                        ("GET", f"http://user:pa55word@127.0.0.1:{closed}/{{client}}?token=s3cret")]:
        with contextlib.suppress(Exception):
            clients[client](method, url)
"""

INSTRUMENTED = """
import runpy, sys
from opentelemetry.instrumentation.auto_instrumentation import initialize
initialize()
runpy.run_path(sys.argv[1], run_name="__main__")
"""

# The class of each client's error if nothing listens, and the user in its URL: urllib3 sends it in a header only
CLIENTS = {
    "aiohttp": ("ClientConnectorError", "REDACTED:REDACTED@"),
    "httpx": ("ConnectError", "REDACTED:REDACTED@"),
    "async_httpx": ("ConnectError", "REDACTED:REDACTED@"),
    "requests": ("ConnectionError", "REDACTED:REDACTED@"),
    "urllib3": ("NewConnectionError", ""),
}
NAMES = {"old names": "", "stable names": "http"}
SHELL = block_starting("shell", "pip install opentelemetry-distro opentelemetry-instrumentation-httpx")


def run(
    folder: Path,
    base: str,
    closed_port: int,
    *,
    clients: Sequence[str] = ("httpx",),
    end: str = "",
    by: str = INSTRUMENTED,
    **variables: str,
) -> str:
    """Run the program, and the code `end` after it, under `opentelemetry-instrument`. Return its output.

    `by` is the code of that command, which starts a new interpreter, or only what it runs in the new interpreter.
    """
    (folder / "app.py").write_text(PROGRAM.format(clients=[*clients], base=base, closed=closed_port) + end)
    variables = {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none", **variables}
    interpreter = [sys.executable] if by == OPENTELEMETRY_INSTRUMENT else []
    done = run_python(["-c", by, *interpreter, "app.py"], folder, **variables)
    assert done.returncode == 0
    return str(done.stdout + done.stderr)


@pytest.fixture
def base(server: FaultServer) -> str:
    """Return the start of the URLs of a server that answers the program."""
    server.script("/a", ok)
    server.script("/missing", 404)
    return server.url("/")[:-1]


def documented(name: str) -> str:
    """Return the value that the documentation gives to a variable."""
    *_, exports, command = SHELL.splitlines()
    assert command == "opentelemetry-instrument python app.py"
    return dict(each.split("=", 1) for each in exports.removeprefix("export ").split())[name]


@pytest.mark.parametrize("names", NAMES)
def test_a_program_has_one_row_for_each_client_span(names: str, base: str, closed_port: int, tmp_path: Path) -> None:
    received = Received()
    with http_receiver(received) as endpoint:
        output = run(
            tmp_path,
            base,
            closed_port,
            clients=[*CLIENTS],
            by=OPENTELEMETRY_INSTRUMENT if names == "stable names" else INSTRUMENTED,
            OTEL_TRACES_EXPORTER="csv,otlp",
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_SEMCONV_STABILITY_OPT_IN=NAMES[names],
            **{name: documented(name) for name in ("OTEL_CONNECTOR_CSV_SPANS", "OTEL_CONNECTOR_CSV_PATH")},
            OTEL_SERVICE_NAME=documented("OTEL_SERVICE_NAME"),
        )
    assert output == ""
    log = Log(tmp_path / documented("OTEL_CONNECTOR_CSV_PATH"))
    records = log.records()
    assert {record.call_id: 1 for record in records} == received.call_ids(kind=3)
    assert {record.project for record in records} == {"prices"}
    for number, (client, (error, user)) in enumerate(CLIENTS.items()):
        *answered, refused = records[4 * number : 4 * number + 4]
        assert [record[4:] for record in answered] == [
            (f"{base}/a?token=REDACTED&page=1", "", 0, 200, True, ""),
            (f"{base}/a", "", 0, 200, True, ""),
            (f"{base}/missing", "", 0, 404, False, "HTTPStatusError: 404 Not Found"),
        ]
        url = f"http://{user}127.0.0.1:{closed_port}/{client}?token=REDACTED"
        assert refused[4:9] == (url, "", 0, None, False)
        assert refused.error.startswith(f"{error}: ")
    assert all(secret not in log.path.read_text() for secret in ("s3cret", "pa55word"))

    spans = {f"{span.trace_id.hex()}-{span.span_id.hex()}": span for span in received.spans(kind=3)}
    for record in records:
        span = spans[record.call_id]
        assert abs(record.t - span.start_time_unix_nano / 1e9) < 2e-6
        assert abs(record.delta_t - (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9) < 2e-6
    assert check(log.path).whole
    with review.load(log.path) as calls:
        total = review.summarize(calls).total
    assert (total.calls, total.failed) == (20, 10)


FOLLOWING = """
async def redirected():
    async with aiohttp.ClientSession() as session, session.get("{base}/moved") as response:
        await response.read()

asyncio.run(redirected())
requests.get("{base}/moved")
httpx.get("{base}/moved", follow_redirects=True)
urllib3.request("GET", "{base}/moved")
urllib3.request("GET", "{base}/busy", retries=urllib3.Retry(1, status_forcelist=[503]))
"""


def test_a_row_is_a_span_also_of_redirects_and_retries(
    base: str, server: FaultServer, closed_port: int, tmp_path: Path
) -> None:
    server.script("/moved", redirect("/a"))
    server.script("/busy", [503, ok])
    variables = {"OTEL_TRACES_EXPORTER": "csv", "OTEL_CONNECTOR_CSV_SPANS": "http"}
    assert run(tmp_path, base, closed_port, clients=(), end=FOLLOWING.format(base=base), **variables) == ""
    found = [
        (record.url.removeprefix(base), record.response_code)
        for record in Log(tmp_path / "otel_connector.csv").records()
    ]
    one, each = [("/moved", 200)], [("/moved", 302), ("/a", 200)]
    assert found == [*one, *one, *each, *each, ("/busy", 200)]


def test_the_configuration_file_accepts_the_parameter(base: str, closed_port: int, tmp_path: Path) -> None:
    (tmp_path / "otel.yaml").write_text(
        'file_format: "1.0"\ntracer_provider:\n  processors:\n'
        "    - simple: {exporter: {csv: {path: logs.csv, spans: http, redact_params: [page]}}}\n"
    )
    output = run(tmp_path, base, closed_port, OTEL_CONFIG_FILE="otel.yaml")
    assert "Traceback" not in output
    records = Log(tmp_path / "logs.csv").records()
    assert [record.response_code for record in records] == [200, 200, 404, None]
    assert "page=REDACTED" in records[0].url


def test_without_the_variable_one_line_names_it(base: str, closed_port: int, tmp_path: Path) -> None:
    """With contrib's logging instrumentation the line is exported, because the root logger has a handler then."""
    received = Received()
    with http_receiver(received) as endpoint:
        variables = {
            "OTEL_TRACES_EXPORTER": "csv",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        }
        off = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "logging"}
        printed = run(tmp_path, base, closed_port, **variables, **off)
        # At the exit, the SDK stops the export of logs before that of spans
        flush = "from opentelemetry import trace; trace.get_tracer_provider().force_flush()"
        assert run(tmp_path, base, closed_port, end=flush, **variables, OTEL_LOGS_EXPORTER="otlp") == ""
    lines = [record.body.string_value for record in received.log_records()]
    assert printed.splitlines() == [line for line in lines if "otel_connector" in line]
    assert printed.startswith(
        "otel_connector.csv: HTTP requests of other clients have no rows; the first is a span of "
    )
    assert "opentelemetry.instrumentation.httpx. Set OTEL_CONNECTOR_CSV_SPANS=http," in printed
    assert Log(tmp_path / "otel_connector.csv").records() == []


def test_a_wrong_value_names_the_variable(base: str, closed_port: int, tmp_path: Path) -> None:
    variables = {"OTEL_TRACES_EXPORTER": "csv", "OTEL_CONNECTOR_CSV_SPANS": "all"}
    output = run(tmp_path, base, closed_port, **variables)
    assert "ValueError: OTEL_CONNECTOR_CSV_SPANS must be 'connector' or 'http', not 'all'" in output
    assert not (tmp_path / "otel_connector.csv").exists()
