"""Real backends: Jaeger, Prometheus and an OpenTelemetry Collector, on loopback addresses of their own.

`.ci/build_backends` builds the programs. They run with the files of `examples/observability`: the collector with its
configuration, Jaeger and Prometheus with the commands of the compose file. Only addresses and paths are replaced. This
module does not depend on the connector.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from support import processes
from support.collector import own_address
from support.processes import ROOT, Process, wait_until

EXAMPLE = ROOT / "examples" / "observability"
BUILD = ROOT / ".ci" / "build_backends"
MISSING = f"needs Jaeger, Prometheus and a collector; {BUILD.relative_to(ROOT)} builds them with Go"


@cache
def programs() -> dict[str, Path]:
    """Return the programs by name: jaeger, prometheus, promtool and otelcol. Empty if one of them is missing."""
    try:
        found = processes.run([BUILD, "--find"], capture_output=True, text=True)
    except OSError:  # no bash, or an installed package without the script
        return {}
    return {Path(line).name.partition("-")[0]: Path(line) for line in found.stdout.splitlines() if not found.returncode}


@contextmanager
def _running(command: list[str], folder: Path, ready: Callable[[], str], **environment: str) -> Iterator[Process]:
    """Run a program until the end of the block. It is ready when it answers the URL of `ready` with 200.

    `ready` returns an empty text as long as it does not know the URL.
    """
    name, *options = command
    with (folder / f"{name}.log").open("ab") as log:
        process = Process(
            [programs()[name], *options],
            cwd=folder,
            stdout=log,
            stderr=log,
            env=processes.clean_environment(environment),
        )
    try:
        try:
            wait_until(lambda: _answers(ready()), process)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{(folder / f'{name}.log').read_text()[-2000:]}") from None
        yield process
    finally:
        process.kill_all()
        process.wait()


def _answers(url: str) -> bool:
    if not url:
        return False
    try:
        with urlopen(url, timeout=5):
            return True
    except (URLError, OSError):
        return False


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Return the first true result of the condition. It is evaluated every 50 ms."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        pause.wait(0.05)
    return result


@dataclass(frozen=True)
class Jaeger:
    """A running Jaeger, with the default configuration.

    Attributes:
        address: The address at which it listens, on its usual ports.
    """

    address: str

    def get(self, path: str, **params: object) -> Any:
        """Return the data of an answer of the API that its page uses."""
        with urlopen(f"http://{self.address}:16686/api/{path}?{urlencode(params)}", timeout=30) as answer:
            return json.load(answer)["data"]

    def spans(self, service: str, least: int = 0, **params: object) -> list[dict[str, Any]]:
        """Return all spans of all traces of a service, with the attributes in `tags` as a dictionary.

        Args:
            service: Its `service.name`.
            least: Wait for this number of spans. By default, Jaeger stores a batch 200 ms after it has accepted it.
            params: Further parameters of the search.
        """

        def found() -> list[dict[str, Any]]:
            traces = self.get("traces", service=service, limit=100_000, **params)
            return [span for trace in traces for span in trace["spans"]]

        spans: list[dict[str, Any]] = wait_for(lambda: len(now := found()) >= least and now) if least else found()
        return [{**span, "tags": {tag["key"]: tag["value"] for tag in span["tags"]}} for span in spans]


@contextmanager
def jaeger(folder: Path) -> Iterator[Jaeger]:
    """Run Jaeger as in the compose file, which gives it no configuration."""
    address = own_address()
    not_from_the_variable = {"jaeger_query.http": 16686, "jaeger_query.grpc": 16685, "healthcheckv2.grpc": 13132}
    command = ["jaeger"]
    command += [f"--set=extensions.{part}.endpoint={address}:{port}" for part, port in not_from_the_variable.items()]
    with _running(command, folder, lambda: f"http://{address}:16686/", JAEGER_LISTEN_HOST=address):
        yield Jaeger(address)


@dataclass
class Prometheus:
    """A running Prometheus."""

    address: str

    @property
    def otlp(self) -> str:
        """The endpoint of metrics, over HTTP."""
        return f"http://{self.address}/api/v1/otlp/v1/metrics"

    def get(self, path: str, **params: object) -> Any:
        with urlopen(f"http://{self.address}/api/v1/{path}?{urlencode(params, doseq=True)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def rules(self, after: float) -> list[dict[str, Any]]:
        """Return the rules of the only group, when all of them have been evaluated after that time."""

        def evaluated() -> Any:
            (group,) = self.get("rules")["groups"]
            return group["rules"] if all(_unix(rule["lastEvaluation"]) > after for rule in group["rules"]) else None

        rules: list[dict[str, Any]] = wait_for(evaluated)
        return rules

    def series(self, query: str, at: float | None = None) -> list[tuple[dict[str, str], float]]:
        """Return the series of an instant query, without the label of the metric name."""
        data = self.get("query", query=query, **({} if at is None else {"time": at}))
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [
            ({name: value for name, value in one["metric"].items() if name != "__name__"}, float(one["value"][1]))
            for one in data["result"]
        ]


def _unix(moment: str) -> float:
    """Return an RFC 3339 time in seconds. Python does not parse nanoseconds."""
    seconds, fraction = moment.removesuffix("Z").partition(".")[::2]
    return max(datetime.fromisoformat(f"{seconds}+00:00").timestamp() + float(f"0.{fraction or 0}"), 0)


@contextmanager
def prometheus(folder: Path, evaluation_interval: str = "") -> Iterator[Prometheus]:
    """Run Prometheus with the command of the compose file, its configuration and its rules.

    Args:
        folder: For its data.
        evaluation_interval: Replaces that of the configuration.
    """
    text = (EXAMPLE / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    text = text.replace("rule_files: [rules.yml]", f"rule_files: [{EXAMPLE}/prometheus/rules.yml]")
    if evaluation_interval:
        text = re.sub(r"(?<=evaluation_interval: )\w+", evaluation_interval, text)
    (folder / "prometheus.yml").write_text(text, encoding="utf-8")
    compose = yaml.safe_load((EXAMPLE / "compose.yaml").read_text(encoding="utf-8"))
    paths = {"/etc/prometheus/prometheus.yml": str(folder / "prometheus.yml"), "/prometheus": str(folder / "data")}
    command = ["prometheus"]
    for option in compose["services"]["prometheus"]["command"]:
        name, equals, value = option.partition("=")
        command.append(f"{name}{equals}{paths.get(value, value)}")

    def address() -> str:
        log = (folder / "prometheus.log").read_text(encoding="utf-8")
        return next(reversed(re.findall(r'msg="Listening on".* address=(\S+)', log)), "")

    def ready() -> str:
        return f"http://{found}/-/ready" if (found := address()) else ""

    with _running([*command, "--web.listen-address=127.0.0.1:0"], folder, ready):
        yield Prometheus(address())


class Collector:
    """A collector, which can be killed and started again at the same address."""

    def __init__(self, folder: Path, config: str, address: str) -> None:
        self._folder, self._address = folder, address
        self._stack = ExitStack()
        self.endpoints = {"grpc": f"http://{address}:4317", "http/protobuf": f"http://{address}:4318"}
        (folder / "config.yaml").write_text(config, encoding="utf-8")
        # Its own metrics have a fixed port of 127.0.0.1
        (folder / "quiet.yaml").write_text("service: {telemetry: {metrics: {level: none}}}", encoding="utf-8")

    def start(self) -> None:
        """Start it, and wait until it is healthy."""
        command = ["otelcol", "--config=config.yaml", "--config=quiet.yaml"]
        running = _running(command, self._folder, lambda: f"http://{self._address}:13133/")
        processes.keep_running(self._stack.enter_context(running))  # it may outlast the test that starts it again

    def kill(self) -> None:
        """Kill it. What it has accepted and not passed on is lost."""
        self._stack.close()

    def environment(self, protocol: str = "grpc") -> dict[str, str]:
        """Return the environment variables with which a program exports to this collector."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoints[protocol],
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }

    def log(self) -> str:
        """Return what it has logged."""
        return (self._folder / "otelcol.log").read_text(encoding="utf-8")


@contextmanager
def collector(
    folder: Path, traces: Jaeger, metrics: Prometheus, change: Callable[[str], str] = str
) -> Iterator[Collector]:
    """Run a collector with the configuration of the example.

    Args:
        folder: For its files.
        traces: Where it sends traces.
        metrics: Where it sends metrics.
        change: Changes the text of the configuration.
    """
    address = own_address()
    config = (EXAMPLE / "collector" / "config.yaml").read_text(encoding="utf-8")
    for old, new in {
        "0.0.0.0": address,
        "jaeger:4317": f"{traces.address}:4317",
        "prometheus:9090": metrics.address,
    }.items():
        assert old in config
        config = config.replace(old, new)
    running = Collector(folder, change(config), address)
    try:
        running.start()
        yield running
    finally:
        running.kill()


@dataclass(frozen=True)
class Backends:
    """The three programs, connected as in the example."""

    jaeger: Jaeger
    prometheus: Prometheus
    collector: Collector


@contextmanager
def backends(folder: Path) -> Iterator[Backends]:
    """Run the three programs."""
    with jaeger(folder) as traces, prometheus(folder) as metrics, collector(folder, traces, metrics) as between:
        yield Backends(traces, metrics, between)
