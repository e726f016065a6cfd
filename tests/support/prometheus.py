"""A real Prometheus, and a server of metrics that it scrapes, both on free ports of the loopback interface."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from support import processes


class Scraped:
    """A WSGI application that serves the metrics of a program at ``/metrics`` and counts the scrapes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._metrics = make_wsgi_app(registry)
        self._scrapes = 0
        self._change = threading.Condition()

    def __call__(self, environ: Any, start_response: Any) -> Any:
        with self._change:
            self._scrapes += 1
            self._change.notify_all()
        return self._metrics(environ, start_response)

    def wait(self) -> float:
        """Wait until Prometheus has stored the current metrics, and return the time."""
        with self._change:
            # One scrape that starts now, and the next one, which starts when the first is stored
            target = self._scrapes + 2
            assert self._change.wait_for(lambda: self._scrapes >= target, 20)
        return time.time()

    @contextmanager
    def served(self) -> Iterator[int]:
        """Serve the metrics, and yield the port."""

        class Silent(WSGIRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
                pass

        with make_server("127.0.0.1", 0, self, handler_class=Silent) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield server.server_port
            finally:
                server.shutdown()
                thread.join()


@dataclass
class Prometheus:
    """A running Prometheus."""

    address: str

    def get(self, path: str, **params: object) -> Any:
        with urlopen(f"http://{self.address}/api/v1/{path}?{urlencode(params, doseq=True)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def rules_evaluated(self) -> float:
        """Return the time since which every rule has been evaluated, in Unix seconds; 0 if one has not been."""
        last = min(rule["lastEvaluation"] for group in self.get("rules")["groups"] for rule in group["rules"])
        moment, fraction = last.removesuffix("Z").partition(".")[::2]  # Python does not parse nanoseconds
        return max(datetime.fromisoformat(f"{moment}+00:00").timestamp() + float(f"0.{fraction or 0}"), 0)

    def series(self, query: str, at: float | None = None) -> list[tuple[dict[str, str], float]]:
        """Return the series of an instant query, without the label of the metric name."""
        data = self.get("query", query=query, **({} if at is None else {"time": at}))
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [
            ({name: value for name, value in one["metric"].items() if name != "__name__"}, float(one["value"][1]))
            for one in data["result"]
        ]


@contextmanager
def prometheus(folder: Path, port: int, rules: Path) -> Iterator[Prometheus]:
    """Run a Prometheus that stores its data in `folder`, scrapes the port as job ``example`` and evaluates the rules.

    Prometheus waits up to 5 s before its first scrape.
    """
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "200ms"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "example", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command += ["--web.listen-address=127.0.0.1:0"]
    environment = {**os.environ, "TZ": "UTC"}
    with processes.Process(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        log = ""
        for line in process.stderr:
            log += line
            if "ready to receive web requests" in line:
                break
        listening = re.search(r'msg="Listening on" address=(\S+)', log)
        assert listening is not None, log
        drain = threading.Thread(target=process.stderr.read)
        drain.start()
        try:
            yield Prometheus(listening[1])
        finally:
            process.terminate()
            drain.join()
