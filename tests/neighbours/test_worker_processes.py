"""Tests in workers of gunicorn, uvicorn and Celery: no call is lost when a worker is replaced or terminated."""

from __future__ import annotations

import csv
import re
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.collector import Collector, collector
from support.forked import Program
from support.otlp_receiver import Received, attributes_of, grpc_receiver
from support.processes import ROOT, Process, clean_environment

from otel_connector.testing import FaultServer, json_body

REQUESTS = 8
WORKERS = 2
MAX_REQUESTS = 3
CLIENT = 3  # SpanKind in OTLP

GUNICORN = """
from otel_connector import configure

def post_fork(server, worker):
    configure("worker")

def post_worker_init(worker):
    worker.log.info("ready for requests")
"""

# An application that has made calls before gunicorn forks its workers (--preload)
PRELOADED = """
import asyncio, os
import aiohttp
from otel_connector import AsyncConnector

connector = AsyncConnector(os.environ["SHOP_LOG"])

async def call(path):
    async with aiohttp.ClientSession() as session:
        await connector.get(session, os.environ["SHOP_STOCK"] + path, "preloaded")

for number in range(3):
    asyncio.run(call(f"/price/{number}"))

def app(environ, start_response):
    asyncio.run(call(environ["PATH_INFO"]))
    start_response("204 No Content", [])
    return []
"""

# The application that uvicorn runs. Each request makes one call
ASGI = """
import os, signal
import aiohttp
from otel_connector import AsyncConnector, configure

configure("worker", signals=(signal.SIGTERM,))
connector = AsyncConnector(os.environ["SHOP_LOG"])

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for done in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{done}.complete"})
        return
    async with aiohttp.ClientSession() as session:
        await connector.get(session, os.environ["SHOP_STOCK"] + scope["path"], "asgi")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})
"""

CELERY = """
import asyncio, os, sys
import aiohttp
from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown, worker_ready
from otel_connector import AsyncConnector, configure

app = Celery("jobs", broker="memory://")
app.conf.update(worker_redirect_stdouts=False, broker_connection_retry_on_startup=True)
app.conf.worker_proc_alive_timeout = 60  # after 4 s, Celery would kill a worker that a busy machine delays
telemetry = None

@worker_process_init.connect
def begin(**_):
    global telemetry
    telemetry = configure("worker")
    os.write(1, b"started\\n")

@worker_process_shutdown.connect
def end(**_):
    telemetry.shutdown()

@app.task(name="call")
def call(number):
    async def main():
        async with aiohttp.ClientSession() as session:
            url = f"{os.environ['SHOP_STOCK']}/stock/{number}"
            await AsyncConnector(os.environ["SHOP_LOG"]).get(session, url, "job")
    asyncio.run(main())
    os.write(1, b"done by %d\\n" % os.getpid())

@worker_ready.connect
def send(**_):
    for number in range(int(sys.argv[1])):
        call.delay(number)

app.Worker(pool="prefork", concurrency=2, max_tasks_per_child=int(sys.argv[2]), loglevel="ERROR", quiet=True).start()
"""


@pytest.fixture(scope="module")
def real_collector() -> Iterator[Collector]:
    with collector() as running:
        yield running


@pytest.fixture
def upstream(server: FaultServer) -> FaultServer:
    for number in range(REQUESTS):
        for name in ("price", "stock"):
            server.script(f"/{name}/{number}", json_body({"price": 1, "stock": 2}))
    return server


@contextmanager
def running(command: list[str], folder: Path, upstream: FaultServer, exports: Mapping[str, str]) -> Iterator[Process]:
    """Run a server with worker processes, which send their calls to `upstream`. Kill all of them at the end.

    `exports` are the environment variables with which it exports its telemetry.
    """
    address = f"http://127.0.0.1:{upstream.port}"
    variables = {"SHOP_PRICES": address, "SHOP_STOCK": address, "SHOP_LOG": str(folder / "logs.csv")}
    path = f"{ROOT}:{folder}:{ROOT / 'examples' / 'service'}"
    process = Program(
        command,
        cwd=folder,
        env=clean_environment(
            {
                **exports,
                **variables,
                "PYTHONPATH": path,
                "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "process",
                "PYTHONUNBUFFERED": "1",
                "OTEL_EXPORTER_OTLP_TIMEOUT": "60",  # after 10 s, a busy machine might get the spans once more
            }
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill_all()


def bound_port(process: Process, before: str) -> int:
    """Return the port that the server logs, in a line with `before` in front of the address."""
    for line in process.stderr:
        if found := re.search(rf"{before} http://127\.0\.0\.1:(\d+)", line):
            return int(found[1])
    raise AssertionError("the server has ended")


def send_request(port: int, path: str) -> None:
    """Send a request until it is answered: the server may just be replacing the worker."""
    deadline = time.monotonic() + 30
    while not answers(port, path):
        assert time.monotonic() < deadline


def answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            answer.read()
    except OSError:
        return False
    return True


def assert_all_requests_are_logged_and_exported(
    folder: Path, at: Collector, upstream: FaultServer, workers: int = WORKERS
) -> None:
    """Check that every request has a row and a span, and that the spans come from more than `workers` processes."""
    with (folder / "logs.csv").open(newline="", encoding="utf-8") as file:
        rows = Counter(row["call_id"] for row in csv.DictReader(file))
    assert sum(rows.values()) == len(rows) == len(upstream.requests)
    sent = [request.headers["traceparent"].split("-") for request in upstream.requests]
    assert {"-".join(parts[1:3]) for parts in sent} == set(rows)

    received = at.received
    received.wait_for(lambda: Counter({i: n for i, n in received.call_ids(CLIENT).items() if i in rows}) == rows)
    pids = {
        attributes_of(each.resource)["process.pid"]
        for each in received.resource_spans
        for scope in each.scope_spans
        if any(f"{span.trace_id.hex()}-{span.span_id.hex()}" in rows for span in scope.spans)
    }
    assert len(pids) > workers


@pytest.mark.neighbours("rotel", "gunicorn")
def test_gunicorn_workers_lose_no_calls_when_they_are_replaced_or_terminated(
    upstream: FaultServer, real_collector: Collector, tmp_path: Path
) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(GUNICORN)
    command = ["-m", "gunicorn", "shop:make_app", "-k", "aiohttp.GunicornWebWorker", "-b", "127.0.0.1:0"]
    command += ["-w", "1", "--max-requests", str(MAX_REQUESTS), "--no-control-socket"]
    with running(command, tmp_path, upstream, real_collector.environment()) as process:
        port = bound_port(process, "Listening at:")
        for number in range(REQUESTS):
            if number % (MAX_REQUESTS + 1) == 0:  # the worker checks its number of requests once a second
                assert next(line for line in process.stderr if "ready for requests" in line)
            send_request(port, f"/offer/{number}")
        # A worker may miss a SIGTERM that arrives before it has set its handlers
        assert next(line for line in process.stderr if "ready for requests" in line)
        process.terminate()
        _, log_output = process.communicate(timeout=60)
    assert "Traceback" not in log_output
    assert_all_requests_are_logged_and_exported(tmp_path, real_collector, upstream, workers=1)


@pytest.mark.neighbours("gunicorn")
def test_gunicorn_workers_of_a_preloaded_application_report_their_own_calls(
    upstream: FaultServer, tmp_path: Path
) -> None:
    """The calls that the parent has made before are in the log. No provider was set then, so they are not reported."""
    (tmp_path / "gunicorn.conf.py").write_text(GUNICORN)
    (tmp_path / "preloaded.py").write_text(PRELOADED)
    command = ["-m", "gunicorn", "preloaded:app", "--preload", "-b", "127.0.0.1:0", "-w", "2", "--no-control-socket"]
    received = Received()
    with grpc_receiver(received) as endpoint:
        exports = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
        with running(command, tmp_path, upstream, exports) as process:
            port = bound_port(process, "Listening at:")
            for _ in range(2):
                assert next(line for line in process.stderr if "ready for requests" in line)
            for number in range(REQUESTS):
                send_request(port, f"/stock/{number}")
            process.terminate()
            _, log_output = process.communicate(timeout=60)
    assert "Traceback" not in log_output
    with (tmp_path / "logs.csv").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == REQUESTS + 3
    assert len(received.call_ids(CLIENT)) == REQUESTS
    for name, total in (("otel_connector.rows.written", REQUESTS), ("http.client.active_requests", 0)):
        assert sum(point.as_int for point in received.points(name)) == total
    assert sum(point.count for point in received.points("http.client.request.duration")) == REQUESTS


@pytest.mark.neighbours("rotel", "uvicorn")
def test_uvicorn_workers_lose_no_calls_when_they_are_replaced_or_terminated(
    upstream: FaultServer, real_collector: Collector, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(ASGI)
    command = ["-m", "uvicorn", "program:app", "--port", "0", "--workers", str(WORKERS)]
    command += ["--limit-max-requests", str(MAX_REQUESTS)]
    with running(command, tmp_path, upstream, real_collector.environment()) as process:
        port = bound_port(process, "Uvicorn running on")
        last = WORKERS * (MAX_REQUESTS - 1) + 1
        for number in range(last + 1):
            # Before the first request, both listen. Before the last one, one of them has reached its limit, and a third
            # replaces it
            for _ in range({0: WORKERS, last: 1}.get(number, 0)):
                assert next(line for line in process.stderr if "startup complete" in line)
            send_request(port, f"/stock/{number}")
        process.terminate()
        _, log_output = process.communicate(timeout=60)
    assert "Traceback" not in log_output
    assert_all_requests_are_logged_and_exported(tmp_path, real_collector, upstream, workers=1)


@pytest.mark.neighbours("rotel", "celery")
def test_celery_workers_lose_no_calls_when_they_are_replaced_or_terminated(
    upstream: FaultServer, real_collector: Collector, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(CELERY)
    command = ["program.py", str(REQUESTS), str(MAX_REQUESTS)]
    with running(command, tmp_path, upstream, real_collector.environment()) as process:
        # A worker is replaced after its last job. If the new one starts while Celery shuts down, it may be terminated
        # while it has the lock of the queue, for which the exit handler of billiard (4.3) then waits without end
        started, done = 0, Counter[str]()
        while done.total() < REQUESTS or started < WORKERS + list(done.values()).count(MAX_REQUESTS):
            line = process.stdout.readline()
            assert line, "Celery has ended"
            started += line == "started\n"
            done.update(re.findall(r"done by (\d+)", line))
        process.terminate()
        _, log_output = process.communicate(timeout=60)
    assert "Traceback" not in log_output
    assert_all_requests_are_logged_and_exported(tmp_path, real_collector, upstream)
