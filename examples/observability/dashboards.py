"""The three dashboards: `python dashboards.py` writes their JSON into `grafana/dashboards`.

Names are those that Prometheus gives OpenTelemetry's metrics, whether it is sent them over OTLP (version 3, its default
translation) or scrapes `opentelemetry-exporter-prometheus`: dots become underscores, the unit and `_total` follow.

- What has no `otel_connector_success` is not ours: other instrumentations record `http.client.request.duration`, too.
- `rate` and `increase` see nothing of what a series had when it was first scraped; where a number must be exact, the
  counters themselves are taken (`last_over_time`), and count since the program began.
"""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.builders.dashboard import Dashboard
from panels import (
    RED,
    YELLOW,
    amount,
    buckets,
    choice,
    lines,
    number,
    page,
    query,
    ranking,
    rows,
    section,
    to_json,
)

FOLDER = Path(__file__).parent / "grafana" / "dashboards"

DURATION = "http_client_request_duration_seconds"
CALLS = f"{DURATION}_count"
ACTIVE = "http_client_active_requests"
RECEIVED = "otel_connector_received_bytes_total"
RETRIES = "otel_connector_retries_total"
PAUSED = "otel_connector_host_paused"
QUEUE_TIME = "otel_connector_queue_time_seconds_total"
WRITTEN, WAITING, LOST = (
    "otel_connector_rows_written_total",
    "otel_connector_rows_waiting",
    "otel_connector_rows_lost_total",
)

# What each metric can be narrowed by: not all of them have all labels
JOB = 'job=~"$job"'
HOST = f'{JOB}, server_address=~"$host"'
PROJECT = f'{JOB}, otel_connector_project=~"$project"'
CHOSEN = f'{PROJECT}, server_address=~"$host"'
OURS = f'otel_connector_success!="", {CHOSEN}'
SUCCEEDED = f'otel_connector_success="true", {CHOSEN}'
FAILED = f'otel_connector_success="false", {CHOSEN}'
ERRORS = f'error_type!="", {OURS}'
GIVEN_UP = f'error_type="", {FAILED}'
ALL_OF_JOB = f'otel_connector_success!="", {JOB}'

# The same numbers as in prometheus/rules.yml, where the alerts are
MANY_ERRORS = {0.01: YELLOW, 0.05: RED}
MANY_RETRIES = {0.1: YELLOW, 0.5: RED}
SLOW = {1.0: YELLOW, 5.0: RED}

SERVICE = choice("job", "Service", "`service.name`, as Prometheus' label job.", f"{WRITTEN}, job")
PROJECTS = choice("project", "Project", "The `project_name` of the calls.", f"{CALLS}{{{JOB}}}, otel_connector_project")
HOSTS = choice("host", "Host", "`server.address` of the URL asked for.", f"{CALLS}{{{PROJECT}}}, server_address")
TOTAL = amount("planned", "URLs in the job", "How many calls the job is to make; for progress and time left.", "1000")

PROGRAM, LEGEND = "job, instance", "{{job}} {{instance}}"
IN_SERVICE = "Of the whole service: its counter has no label for a project or a host."
EXPORTS, EXPORT_BUCKETS = (f"otel_sdk_exporter_operation_duration_seconds_{part}" for part in ("count", "bucket"))
SPAN_EXPORTER = f'otel_component_type=~".*span_exporter", {JOB}'
SDK_METRICS = (
    "The SDK counts its own spans where the program's environment has `OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED=true`"
    " (its own name for it, which it may change)."
)


def per_second(metric: str, selector: str, by: str = "") -> str:
    """Return the rate of a counter, summed, by these labels."""
    return f"{_sum(by)}(rate({metric}{{{selector}}}[$__rate_interval]))"


def so_far(metric: str, selector: str, by: str = "") -> str:
    """Return what the counters of all programs in the time range stood at in the end, summed, by these labels."""
    return f"{_sum(by)}(last_over_time({metric}{{{selector}}}[$__range]))"


def error_share(by: str = "") -> str:
    """Return errors per call; 0 where there are none, which have no series."""
    calls = per_second(CALLS, OURS, by)
    return f"({per_second(CALLS, ERRORS, by)} or 0 * {calls}) / {calls}"


def quantile(share: float, by: str = "") -> str:
    """Return the duration that this share of the calls stays below."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {per_second(f'{DURATION}_bucket', OURS, labels)})"


def service() -> Dashboard:
    """Return the dashboard of whoever answers for a service: rate, errors, duration."""
    built = page(
        "otel-connector-service",
        "otel_connector / Calls of a service",
        "How the calls that a service makes go: rate, errors and duration, by project and by host.",
        SERVICE,
        PROJECTS,
        HOSTS,
    )
    section(
        built,
        "Now",
        number(
            "Calls", "Calls that ended, a second. A call with its retries is one.", "reqps", per_second(CALLS, OURS)
        ),
        number(
            "Errors",
            "Share of the calls that failed after all their tries. What its caller gave up is none. Yellow from 1 %,"
            " red from 5 %, where the alert OtelConnectorErrorRateHigh is.",
            "percentunit",
            error_share(),
            steps=MANY_ERRORS,
        ),
        number("Median", "Half of the calls take less, retries and waits included.", "s", quantile(0.5)),
        number(
            "p99",
            "One call in a hundred takes longer. Yellow from 1 s, red from 5 s, where the alert OtelConnectorSlow is."
            " Above 10 s, the last bucket, the true value is not known.",
            "s",
            quantile(0.99),
            steps=SLOW,
        ),
        number(
            "Retries",
            f"Attempts after the first, per call. {IN_SERVICE} Yellow from 0.1, red from 0.5, where the alert"
            " OtelConnectorRetryStorm is: every second call asks its server again.",
            "short",
            f"{per_second(RETRIES, JOB)} / {per_second(CALLS, ALL_OF_JOB)}",
            steps=MANY_RETRIES,
            decimals=2,
        ),
        number("Under way", "Calls that have begun and not ended. By host only.", "short", f"sum({ACTIVE}{{{HOST}}})"),
    )
    section(
        built,
        "Duration",
        lines(
            "How long calls take",
            "Retries and waits included. A dot is one call: its trace is behind it.",
            "s",
            query(quantile(0.5), "median"),
            query(quantile(0.95), "p95"),
            query(quantile(0.99), "p99", exemplars=True),
            span=12,
            steps=SLOW,
        ),
        buckets(
            "Calls by duration",
            "The darker, the more calls took that long. Two bands show what an average hides: fast answers, and those"
            " that were tried again. A dot is one call: its trace is behind it.",
            "s",
            f"sum by (le) (increase({DURATION}_bucket{{{OURS}}}[$__rate_interval]))",
        ),
    )
    _rate_errors_duration(built, "project", "otel_connector_project")
    _rate_errors_duration(built, "host", "server_address")
    section(
        built,
        "What goes wrong",
        lines(
            "Errors by class",
            "What the call's last attempt ended in: a status, or the connector's error.",
            "reqps",
            query(per_second(CALLS, ERRORS, "error_type"), "{{error_type}}"),
            span=6,
            stacked=True,
        ),
        lines(
            "Retries by reason",
            f"Attempts after the first, a second, by what the attempt before ended in. {IN_SERVICE}",
            "reqps",
            query(per_second(RETRIES, JOB, "otel_connector_reason"), "{{otel_connector_reason}}"),
            span=6,
            stacked=True,
        ),
        lines(
            "Given up by their caller",
            "Calls that were cancelled: no errors, but somebody waited in vain.",
            "reqps",
            query(per_second(CALLS, GIVEN_UP, "otel_connector_project"), "{{otel_connector_project}}"),
            span=6,
        ),
        lines(
            "Under way by host",
            "A line that only climbs is a host that does not answer.",
            "short",
            query(f"sum by (server_address) ({ACTIVE}{{{HOST}}})", "{{server_address}}"),
            span=6,
        ),
    )
    return built


def _rate_errors_duration(built: Dashboard, name: str, label: str) -> None:
    legend = f"{{{{{label}}}}}"
    section(
        built,
        f"By {name}",
        lines(
            f"Calls by {name}", "Calls that ended, a second.", "reqps", query(per_second(CALLS, OURS, label), legend)
        ),
        lines(
            f"Errors by {name}",
            "Share of the calls that failed after all their tries; from the dashed line on it is an alert.",
            "percentunit",
            query(error_share(label), legend),
            steps={0.05: RED},
            most=1,
        ),
        lines(
            f"p95 by {name}",
            "One call in twenty takes longer. A dot is one call: its trace is behind it.",
            "s",
            query(quantile(0.95, label), legend, exemplars=True),
        ),
    )


def collection() -> Dashboard:
    """Return the dashboard of whoever waits for a job to end: how far it is, and what holds it up."""
    built = page(
        "otel-connector-collection",
        "otel_connector / Collecting data",
        "How far a job is, how fast it goes and what it stumbles over. Totals are those of the programs that ran in the"
        " time range, each since it began.",
        SERVICE,
        PROJECTS,
        HOSTS,
        TOTAL,
    )
    done = so_far(CALLS, OURS)
    section(
        built,
        "Progress",
        number("Done", "Calls that ended, well or not.", "short", done, decimals=0),
        number(
            "Progress",
            "Calls that ended, of the URLs in the job (type them in above).",
            "percentunit",
            f"{done} / $planned",
        ),
        number(
            "Time left",
            "What is left of the URLs in the job, at the pace of now.",
            "s",
            f"clamp_min($planned - {done}, 0) / {per_second(CALLS, OURS)}",
        ),
        number("Succeeded", "Calls with a result.", "short", so_far(CALLS, SUCCEEDED), decimals=0),
        number(
            "Failed",
            "Calls without a result; `--resume` makes them again. Yellow from the first on.",
            "short",
            f"{so_far(CALLS, FAILED)} or vector(0)",
            steps={1: YELLOW},
            decimals=0,
        ),
        number(
            "Received", "Bytes of body, after content decoding. By project only.", "bytes", so_far(RECEIVED, PROJECT)
        ),
    )
    section(
        built,
        "Throughput",
        lines(
            "Calls by outcome",
            "Calls that ended, a second.",
            "reqps",
            query(per_second(CALLS, SUCCEEDED), "succeeded"),
            query(per_second(CALLS, FAILED), "failed"),
            stacked=True,
        ),
        lines(
            "Bytes by project",
            "Bytes of body a second, after content decoding.",
            "Bps",
            query(per_second(RECEIVED, PROJECT, "otel_connector_project"), "{{otel_connector_project}}"),
            stacked=True,
        ),
        lines(
            "Done so far by project",
            "A line that stops climbing is a project that is finished, or stuck.",
            "short",
            query(f"sum by (otel_connector_project) ({CALLS}{{{OURS}}})", "{{otel_connector_project}}"),
        ),
    )
    section(
        built,
        "Hosts",
        lines(
            "Calls by host",
            "Calls that ended, a second. A host that is paused falls to nothing for as long as it asked for.",
            "reqps",
            query(per_second(CALLS, OURS, "server_address"), "{{server_address}}"),
            span=6,
        ),
        lines(
            "Under way by host",
            "Calls that have begun and not ended; one that waits before another attempt has begun.",
            "short",
            query(f"sum by (server_address) ({ACTIVE}{{{HOST}}})", "{{server_address}}"),
            span=6,
        ),
        lines(
            "Hosts paused",
            "Hosts that asked for a pause (`Retry-After` with 429 or 503) which has not ended: no call to them is sent."
            " `stats().hosts_paused` has their names; a host of two programs counts in each.",
            "short",
            query(f"sum by ({PROGRAM}) ({PAUSED}{{{JOB}}})", LEGEND),
            span=6,
        ),
        lines(
            "Time in the queue",
            "What a call waits for its turn, on average: for a connection of the pool, a limiter, a host's pause. Noted"
            " when the wait is over. What climbs beside calls that stay fast is the program's own limit; a single"
            f" call's is on its span, `otel_connector.queue.duration`. {IN_SERVICE}",
            "s",
            query(f"{per_second(QUEUE_TIME, JOB)} / {per_second(CALLS, ALL_OF_JOB)}", "per call"),
            span=6,
        ),
    )
    section(
        built,
        "What goes wrong",
        rows(
            "Failures",
            "Calls without a result, by what their last attempt ended in. No class: their caller gave them up.",
            so_far(CALLS, FAILED, "error_type, otel_connector_project, server_address"),
            {"error_type": "Error", "otel_connector_project": "Project", "server_address": "Host", "Value": "Calls"},
        ),
        ranking(
            "Retries by reason",
            f"Attempts after the first, by what the attempt before ended in. {IN_SERVICE}",
            "short",
            so_far(RETRIES, JOB, "otel_connector_reason"),
            "{{otel_connector_reason}}",
            span=12,
        ),
    )
    return built


def health() -> Dashboard:
    """Return the dashboard of the library itself: does every call leave its row and its span."""
    built = page(
        "otel-connector-health",
        "otel_connector / Its own health",
        "Whether every call leaves its row in the log and its span in the collector.",
        SERVICE,
    )
    written, waiting, lost = (f"sum({metric}{{{JOB}}})" for metric in (WRITTEN, WAITING, LOST))
    section(
        built,
        "Rows",
        number("Rows written", "Rows in the logs of the programs that run now.", "short", written, decimals=0).span(6),
        number(
            "Rows waiting",
            "Rows that the disk has refused so far; they are in memory, and gone if the program is killed. Red from"
            " one on: after five minutes it is the alert OtelConnectorRowsWaiting.",
            "short",
            waiting,
            steps={1: RED},
            decimals=0,
        ).span(6),
        number(
            "Rows lost",
            "Rows that never got into a log. Red from one on: the alert OtelConnectorRowsLost.",
            "short",
            lost,
            steps={1: RED},
            decimals=0,
        ).span(6),
        number(
            "Calls without a row",
            "Calls that ended, less rows written, waiting and lost. More than 0 where a connector has no log"
            " (`logfile=None`); below 0 where other spans have rows too, or several providers count.",
            "short",
            f"sum({CALLS}{{{ALL_OF_JOB}}}) - {written} - {waiting} - {lost}",
            decimals=0,
        ).span(6),
        lines("Rows written by program", "Rows a second.", "short", query(per_second(WRITTEN, JOB, PROGRAM), LEGEND)),
        lines(
            "Rows waiting by program",
            "What stays above 0 is a disk that is full, gone or locked.",
            "short",
            query(f"sum by ({PROGRAM}) ({WAITING}{{{JOB}}})", LEGEND),
        ),
        lines(
            "Rows lost by program",
            "Since the program began.",
            "short",
            query(f"sum by ({PROGRAM}) ({LOST}{{{JOB}}})", LEGEND),
        ),
    )
    _spans(built)
    return built


def _spans(built: Dashboard) -> None:
    queue = "otel_sdk_processor_span_queue"
    section(
        built,
        "Spans",
        lines(
            "Spans started",
            f"Spans of the whole program, a second, by the sampler's decision. {SDK_METRICS}",
            "short",
            query(
                per_second("otel_sdk_span_started_total", JOB, "otel_span_sampling_result"),
                "{{otel_span_sampling_result}}",
            ),
            stacked=True,
        ),
        lines(
            "The batch processor's queue",
            f"How full it is. When it is full, spans are dropped; rows are not affected. {SDK_METRICS}",
            "percentunit",
            query(
                f"sum by ({PROGRAM}) ({queue}_size{{{JOB}}}) / sum by ({PROGRAM}) ({queue}_capacity{{{JOB}}})",
                LEGEND,
            ),
            steps={0.8: YELLOW},
            most=1,
        ),
        lines(
            "Spans dropped",
            "Spans a second that the processor has thrown away, by its reason: a hole in traces, none in the log."
            f" {SDK_METRICS}",
            "short",
            query(
                per_second(
                    "otel_sdk_processor_span_processed_total", f'error_type!="", {JOB}', f"{PROGRAM}, error_type"
                ),
                f"{LEGEND} {{{{error_type}}}}",
            ),
        ),
        lines(
            "Exports of spans",
            f"Batches a second that the collector took, and that it did not, by status or error. {SDK_METRICS}",
            "short",
            query(per_second(EXPORTS, f'error_type="", http_response_status_code="", {SPAN_EXPORTER}'), "taken"),
            query(
                " or ".join(
                    per_second(EXPORTS, f'{label}!="", {SPAN_EXPORTER}', "error_type, http_response_status_code")
                    for label in ("error_type", "http_response_status_code")
                ),
                "{{error_type}} {{http_response_status_code}}",
            ),
            span=12,
            stacked=True,
        ),
        lines(
            "One export takes (p95)",
            f"Tries after the first included. {SDK_METRICS}",
            "s",
            query(f"histogram_quantile(0.95, {per_second(EXPORT_BUCKETS, SPAN_EXPORTER, f'le, {PROGRAM}')})", LEGEND),
            span=12,
        ),
    )


DASHBOARDS = {"service": service, "collection": collection, "health": health}


def main() -> None:
    for name, make in DASHBOARDS.items():
        path = FOLDER / f"{name}.json"
        path.write_text(to_json(make()), encoding="utf-8")
        print(path)


def _sum(by: str) -> str:
    return f"sum by ({by}) " if by else "sum"


if __name__ == "__main__":
    main()
