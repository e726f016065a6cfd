"""Tests of the files in `examples/observability`: their tools accept them, and they are consistent with each other.

No container is started. Grafana's types, promtool and the JSON schema of compose files check the files; other values
are compared between the files.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from support import processes
from support.backends import BUILD, programs
from support.backends import EXAMPLE as FOLDER

from otel_connector._telemetry._metrics import _DURATION_BUCKETS

JSON = {path.name: path.read_text(encoding="utf-8") for path in (FOLDER / "grafana" / "dashboards").iterdir()}
DASHBOARDS = {Path(name).stem: json.loads(text) for name, text in JSON.items()}

pytestmark = pytest.mark.neighbours("promql_parser", "check_jsonschema", "grafana_foundation_sdk")


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


ALERTS = {rule["alert"]: rule for rule in read("prometheus/rules.yml")["groups"][0]["rules"] if "alert" in rule}


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return processes.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)


# The dashboards.

if sys.version_info >= (3, 11):  # required by grafana-foundation-sdk

    def test_the_committed_dashboards_are_the_output_of_their_program(tmp_path: Path) -> None:
        for path in FOLDER.glob("*.py"):
            shutil.copy(path, tmp_path)
        made = tmp_path / "grafana" / "dashboards"
        made.mkdir(parents=True)
        done = run(sys.executable, "-W", "error", "dashboards.py", folder=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert {path.name: path.read_text(encoding="utf-8") for path in made.iterdir()} == JSON


SHAPE = """
import type { Dashboard } from "@grafana/schema";
// JSON has texts where the types have enums, and TypeScript does not accept a text as an enum
type Plain<T> =
  unknown extends T ? T : T extends string ? `${T}` : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
export type Shape = Plain<Dashboard>;
"""


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node.js with npm")
def test_grafanas_typescript_types_accept_the_dashboards(tmp_path: Path) -> None:
    """The types are of the Grafana version in the compose file. They must reject a wrong dashboard, too."""
    grafana = read("compose.yaml")["services"]["grafana"]["image"].split(":")[1]
    packages = [f"@grafana/schema@{grafana}", "typescript@5.9.3"]
    installed = run("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *packages, folder=tmp_path)
    assert installed.returncode == 0, installed.stderr
    wrong = copy.deepcopy(DASHBOARDS["health"])
    wrong["panels"][1]["gridPos"]["height"] = 1
    wrong["panels"][1]["fieldConfig"]["defaults"]["thresholds"]["mode"] = "absolut"
    models = {**DASHBOARDS, "wrong": wrong}
    (tmp_path / "shape.ts").write_text(SHAPE)
    for name, model in models.items():
        text = f'import type {{ Shape }} from "./shape.js";\nexport const model: Shape = {json.dumps(model, indent=1)};'
        (tmp_path / f"{name}.ts").write_text(text)
    options = ["--noEmit", "--skipLibCheck", "--strict", "--pretty", "false", "--target", "es2022"]
    options += ["--lib", "es2022"]  # without the types of the DOM, which take a quarter of the time
    modules = ["--module", "nodenext", "--moduleResolution", "nodenext"]
    checked = run("node_modules/.bin/tsc", *options, *modules, *(f"{name}.ts" for name in models), folder=tmp_path)
    assert re.findall(r"^([\w.]+)\(", checked.stdout, re.MULTILINE) == ["wrong.ts", "wrong.ts"], checked.stdout


@pytest.mark.parametrize("name", sorted(DASHBOARDS))
def test_panels_do_not_overlap_and_have_a_description_and_a_unit(name: str) -> None:
    occupied: set[tuple[int, int]] = set()
    for panel in DASHBOARDS[name]["panels"]:
        x, y, width, height = (panel["gridPos"][side] for side in "xywh")
        cells = {(column, line) for column in range(x, x + width) for line in range(y, y + height)}
        assert not cells & occupied
        assert x + width <= 24
        occupied |= cells
        if "targets" in panel:
            assert panel["description"].endswith((".", ")"))
            assert panel["type"] in {"heatmap", "table"} or panel["fieldConfig"]["defaults"]["unit"]
    assert len({column for column, _ in occupied}) == 24


def test_only_queries_of_durations_request_exemplars() -> None:
    with_exemplars = {
        panel["title"]
        for panel in DASHBOARDS["service"]["panels"]
        for target in panel.get("targets", [])
        if target.get("exemplar")
    }
    assert with_exemplars == {"Duration of calls", "Calls by duration", "p95 by project", "p95 by host"}


# Prometheus.


@pytest.mark.backends
def test_promtool_accepts_the_rules_and_their_tests_pass() -> None:
    promtool = programs()["promtool"]
    checked = run(promtool, "check", "rules", "--lint-fatal", "rules.yml", folder=FOLDER / "prometheus")
    assert checked.returncode == 0, checked.stderr
    tested = run(promtool, "test", "rules", "rules.test.yml", folder=FOLDER / "prometheus")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    tests = read("prometheus/rules.test.yml")["tests"]
    assert {case["alertname"] for test in tests for case in test.get("alert_rule_test", [])} == set(ALERTS)


@pytest.mark.backends
def test_promtool_accepts_the_configuration() -> None:
    checked = run(programs()["promtool"], "check", "config", "prometheus.yml", folder=FOLDER / "prometheus")
    assert checked.returncode == 0, checked.stderr
    assert "1 rule files found" in checked.stdout


def test_values_at_the_last_boundary_are_shown_as_above_it() -> None:
    last = _DURATION_BUCKETS[-1]
    shown = f"above {last / 60:.0f} min, the last boundary"
    with_quantiles = [
        panel
        for panel in DASHBOARDS["service"]["panels"]
        if any("histogram_quantile" in target["expr"] for target in panel.get("targets", []))
    ]
    assert len(with_quantiles) == 5
    for panel in with_quantiles:
        (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
        assert mapping["type"] == "range"
        assert (mapping["options"]["from"], mapping["options"]["to"]) == (last, None)
        assert mapping["options"]["result"]["text"] == shown
    assert (
        f"{{{{ if ge $value {last} }}}}{shown}{{{{ else }}}}" in ALERTS["OtelConnectorSlow"]["annotations"]["summary"]
    )


def test_colours_and_alerts_use_the_same_thresholds() -> None:
    panels = {panel["title"]: panel for panel in DASHBOARDS["service"]["panels"]}
    for title, alert in (("Errors", "ErrorRateHigh"), ("Retries", "RetryStorm"), ("p99", "Slow")):
        highest = panels[title]["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]
        limit = re.search(r"> ([\d.]+)", ALERTS[f"OtelConnector{alert}"]["expr"])
        assert limit is not None
        assert highest == {"color": "red", "value": float(limit[1])}
    assert set(re.findall(r"OtelConnector\w+", "".join(JSON.values()))) <= set(ALERTS)
    pages = {f"/d/{model['uid']}" for model in DASHBOARDS.values()}
    assert {alert["annotations"]["dashboard"] for alert in ALERTS.values()} <= pages


# The containers.


def test_the_containers_have_the_versions_of_the_programs_that_the_tests_run() -> None:
    """The modules of Jaeger and Prometheus have numbers of their own: 2.13.0 is v1.76.0, and 3.16.0 is v0.316.0."""
    images = {name: service["image"].rpartition(":")[2] for name, service in read("compose.yaml")["services"].items()}
    manifest = BUILD.with_name("backends.yaml").read_text(encoding="utf-8")
    script = BUILD.read_text(encoding="utf-8")
    built = dict(re.findall(r"^(\w+)=v[\d.]+ +# the module of \w+(?: \d)? ([\d.]+)$", script, re.MULTILINE))
    collector = re.search(r"^collector=v([\d.]+)$", script, re.MULTILINE)
    assert collector is not None
    parts = re.findall(r"/(?:collector|opentelemetry-collector-contrib)/\S+ v(0[\d.]+)$", manifest, re.MULTILINE)
    assert set(parts) == {collector[1]}
    expected = {"jaeger": built["jaeger"], "prometheus": f"v{built['prometheus']}", "collector": collector[1]}
    assert {name: images[name] for name in expected} == expected
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f" {version.removeprefix('v')}" in readme for version in images.values())


def test_the_compose_file_is_valid() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"]
    checked = run(*command, folder=FOLDER)
    assert checked.returncode == 0, checked.stdout
    for service in read("compose.yaml")["services"].values():
        assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for mount in service.get("volumes", []):
            source, _, mode = mount.split(":")
            assert (FOLDER / source).exists()
            assert mode == "ro"


def test_the_collector_exports_to_the_other_services() -> None:
    services, collector = read("compose.yaml")["services"], read("collector/config.yaml")
    for pipeline in collector["service"]["pipelines"].values():
        assert all(set(names) <= set(collector[kind]) for kind, names in pipeline.items())
    assert collector["service"]["extensions"] == list(collector["extensions"])
    listening = [part["endpoint"] for part in collector["receivers"]["otlp"]["protocols"].values()]
    listening.append(collector["extensions"]["health_check"]["endpoint"])
    published = [port.split(":")[-1] for port in services["collector"]["ports"]]
    assert listening == [f"0.0.0.0:{port}" for port in published]
    targets = [exporter["endpoint"] for exporter in collector["exporters"].values()]
    assert targets == ["jaeger:4317", "http://prometheus:9090/api/v1/otlp"]
    assert {"jaeger", "prometheus"} <= set(services)
    features = "--enable-feature=exemplar-storage,created-timestamp-zero-ingestion"
    assert {"--web.enable-otlp-receiver", features} <= set(services["prometheus"]["command"])


def test_grafana_is_configured_with_the_addresses_of_the_other_services() -> None:
    sources = read("grafana/provisioning/datasources/datasources.yaml")["datasources"]
    by_uid = {source["uid"]: source for source in sources}
    addresses = {uid: (source["type"], source["url"]) for uid, source in by_uid.items()}
    assert addresses == {
        "prometheus": ("prometheus", "http://prometheus:9090"),
        "jaeger": ("jaeger", "http://jaeger:16686"),
    }
    # Prometheus stores the trace id of an exemplar received over OTLP in this label
    exemplar = {"name": "trace_id", "datasourceUid": "jaeger"}
    assert by_uid["prometheus"]["jsonData"]["exemplarTraceIdDestinations"] == [exemplar]
    back = by_uid["jaeger"]["jsonData"]["tracesToMetrics"]
    assert back["datasourceUid"] == "prometheus"
    for query in back["queries"]:
        promql_parser.parse(query["query"].replace("$$__tags", 'server_address="a"'))
    for model in DASHBOARDS.values():
        assert model["templating"]["list"][0]["current"]["value"] == "prometheus"
    (provider,) = read("grafana/provisioning/dashboards/dashboards.yaml")["providers"]
    mounts = read("compose.yaml")["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts
