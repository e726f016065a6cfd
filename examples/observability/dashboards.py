"""The three dashboards: `python dashboards.py` writes their JSON into `grafana/dashboards`.

Metric names are those of Prometheus, whether it receives the metrics over OTLP (version 3, default translation) or
scrapes `opentelemetry-exporter-prometheus`: dots become underscores, and the unit and `_total` are appended.

- Other instrumentations record `http.client.request.duration`, too. Series of the connector have the label
  `otel_connector_success`.
- A connector with `attempt_spans=True` records attempts there, and its calls as `otel_connector.call.duration`. The
  queries use the latter for the programs that have it.
- `rate` and `increase` do not count the first value of a series. Exact numbers are read from the counters themselves
  (`last_over_time`), which start with the program.
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
CALL_DURATION = "otel_connector_call_duration_seconds"  # only with attempt_spans=True
ACTIVE = "http_client_active_requests"
RECEIVED = "otel_connector_received_bytes_total"
RETRIES = "otel_connector_retries_total"
PAUSED = "otel_connector_host_paused"
QUEUE_TIME = "otel_connector_queue_time_seconds_total"
RETRY_DELAY = "otel_connector_retry_delay_seconds_total"
WAITED = f'__name__=~"{QUEUE_TIME}|{RETRY_DELAY}"'
OF_RETRIES = 'otel_connector_reason!~"first_attempt|redirect"'
WRITTEN, WAITING, LOST = (
    "otel_connector_rows_written_total",
    "otel_connector_rows_waiting",
    "otel_connector_rows_lost_total",
)

# Selectors for the variables of a dashboard. Not every metric has all labels
JOB = 'job=~"$job"'
HOST = f'{JOB}, server_address=~"$host"'
PROJECT = f'{JOB}, otel_connector_project=~"$project"'
CHOSEN = f'{PROJECT}, server_address=~"$host"'
OURS = f'otel_connector_success!="", {CHOSEN}'
SUCCEEDED = f'otel_connector_success="true", {CHOSEN}'
FAILED = f'otel_connector_success="false", {CHOSEN}'
ERRORS = f'error_type!="", {OURS}'
CANCELLED = f'error_type="", {FAILED}'
ALL_OF_JOB = f'otel_connector_success!="", {JOB}'

# The limits of the alerts in prometheus/rules.yml
MANY_ERRORS = {0.01: YELLOW, 0.05: RED}
MANY_RETRIES = {0.1: YELLOW, 0.5: RED}
SLOW = {1.0: YELLOW, 5.0: RED}

# A quantile beyond the last boundary of the histogram is not known: PromQL returns that boundary. A View that changes
# the boundaries requires another number here and in prometheus/rules.yml
ABOVE = {300.0: "above 5 min, the last boundary"}

SERVICE = choice("job", "Service", "`service.name`, in the Prometheus label `job`.", f"{WRITTEN}, job")
PROJECTS = choice("project", "Project", "The `project_name` of the calls.", f"{CALLS}{{{JOB}}}, otel_connector_project")
HOSTS = choice("host", "Host", "`server.address` of the requested URL.", f"{CALLS}{{{PROJECT}}}, server_address")
TOTAL = amount("planned", "URLs in the job", "Number of calls of the whole job, for progress and time left.", "1000")

PROGRAM, LEGEND = "job, instance", "{{job}} {{instance}}"
EXPORTS, EXPORT_TIME = (f"otel_sdk_exporter_operation_duration_seconds_{part}" for part in ("count", "sum"))
SPAN_EXPORTER = f'otel_component_type=~".*span_exporter", {JOB}'
SDK_METRICS = (
    "Requires `OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED=true` in the environment of the program. The SDK may rename its"
    " metrics."
)


def per_second(metric: str, selector: str, by: str = "") -> str:
    """Return the rate of a counter, summed, by these labels."""
    return f"{_sum(by)}({_of(metric, selector, 'rate', '$__rate_interval')})"


def so_far(metric: str, selector: str, by: str = "") -> str:
    """Return the last values of the counters of all programs in the time range, summed, by these labels."""
    return f"{_sum(by)}({_of(metric, selector, 'last_over_time', '$__range')})"


def error_share(by: str = "") -> str:
    """Return errors per call. Without errors there is no series, and the result is 0."""
    calls = per_second(CALLS, OURS, by)
    return f"({per_second(CALLS, ERRORS, by)} or 0 * {calls}) / {calls}"


def quantile(share: float, by: str = "") -> str:
    """Return a quantile of the duration of calls."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {per_second(f'{DURATION}_bucket', OURS, labels)})"


def service() -> Dashboard:
    """Return the dashboard of a service: rate, errors, duration."""
    built = page(
        "otel-connector-service",
        "otel_connector / Calls of a service",
        "Rate, errors and duration of the calls that a service makes, by project and by host.",
        SERVICE,
        PROJECTS,
        HOSTS,
    )
    _service_now(built)
    _service_duration(built)
    _rate_errors_duration(built, "project", "otel_connector_project")
    _rate_errors_duration(built, "host", "server_address")
    _service_failures(built)
    return built


def _service_now(built: Dashboard) -> None:
    section(
        built,
        "Now",
        number(
            "Calls",
            "Completed calls per second. A call with its retries counts once.",
            "reqps",
            per_second(CALLS, OURS),
        ),
        number(
            "Errors",
            "Share of the calls that failed after all attempts. A call cancelled by its caller is not an error. Yellow"
            " from 1 %, red from 5 %, the limit of the alert OtelConnectorErrorRateHigh.",
            "percentunit",
            error_share(),
            steps=MANY_ERRORS,
        ),
        number(
            "Median", "Half of the calls take less time, including retries and waits.", "s", quantile(0.5), named=ABOVE
        ),
        number(
            "p99",
            "1 % of the calls take longer. Yellow from 1 s, red from 5 s, the limit of the alert OtelConnectorSlow."
            " The last boundary of the histogram is 5 min; a greater value is not known.",
            "s",
            quantile(0.99),
            steps=SLOW,
            named=ABOVE,
        ),
        number(
            "Retries",
            "Retries per call. Yellow from 0.1, red from 0.5, the limit of the alert OtelConnectorRetryStorm: one retry"
            " for every two calls.",
            "short",
            f"{per_second(RETRIES, CHOSEN)} / {per_second(CALLS, OURS)}",
            steps=MANY_RETRIES,
            decimals=2,
        ),
        number(
            "In flight", "Calls that have started and not ended. By host only.", "short", f"sum({ACTIVE}{{{HOST}}})"
        ),
    )


def _service_duration(built: Dashboard) -> None:
    section(
        built,
        "Duration",
        lines(
            "Duration of calls",
            "Including retries and waits. A dot is one call, and opens its trace. A line at 5 min, the last boundary of"
            " the histogram, is at that value or above it.",
            "s",
            query(quantile(0.5), "median"),
            query(quantile(0.95), "p95"),
            query(quantile(0.99), "p99", exemplars=True),
            span=12,
            steps=SLOW,
            named=ABOVE,
        ),
        buckets(
            "Calls by duration",
            "The darker, the more calls took that long. Two bands are typical: calls that succeeded at the first"
            " attempt, and calls that were retried. The row +Inf has the calls above 5 min, the last boundary. A dot is"
            " one call, and opens its trace.",
            "s",
            f"sum by (le) ({_of(f'{DURATION}_bucket', OURS, 'increase', '$__rate_interval')})",
        ),
    )


def _service_failures(built: Dashboard) -> None:
    section(
        built,
        "Failures and retries",
        lines(
            "Errors by class",
            "Result of the last attempt of a failed call: a status, or an exception class.",
            "reqps",
            query(per_second(CALLS, ERRORS, "error_type"), "{{error_type}}"),
            span=6,
            stacked=True,
        ),
        lines(
            "Retries by reason",
            "Retries per second, by the result of the attempt before.",
            "reqps",
            query(per_second(RETRIES, CHOSEN, "otel_connector_reason"), "{{otel_connector_reason}}"),
            span=6,
            stacked=True,
        ),
        lines(
            "Cancelled calls",
            "Calls per second that were cancelled by their caller. They are not errors.",
            "reqps",
            query(per_second(CALLS, CANCELLED, "otel_connector_project"), "{{otel_connector_project}}"),
            span=6,
        ),
        lines(
            "In flight by host",
            "A line that only rises shows a host that does not respond.",
            "short",
            query(f"sum by (server_address) ({ACTIVE}{{{HOST}}})", "{{server_address}}"),
            span=6,
        ),
    )


def _rate_errors_duration(built: Dashboard, name: str, label: str) -> None:
    legend = f"{{{{{label}}}}}"
    section(
        built,
        f"By {name}",
        lines(
            f"Calls by {name}", "Completed calls per second.", "reqps", query(per_second(CALLS, OURS, label), legend)
        ),
        lines(
            f"Errors by {name}",
            "Share of the calls that failed after all attempts. The dashed line is the limit of the alert.",
            "percentunit",
            query(error_share(label), legend),
            steps={0.05: RED},
            most=1,
        ),
        lines(
            f"p95 by {name}",
            "5 % of the calls take longer. A dot is one call, and opens its trace.",
            "s",
            query(quantile(0.95, label), legend, exemplars=True),
            named=ABOVE,
        ),
    )


def collection() -> Dashboard:
    """Return the dashboard of a job that collects data: its progress, and what delays it."""
    built = page(
        "otel-connector-collection",
        "otel_connector / Collecting data",
        "Progress, throughput and failures of a job. Totals are those of all programs that ran in the time range, each"
        " since its start.",
        SERVICE,
        PROJECTS,
        HOSTS,
        TOTAL,
    )
    _progress(built)
    _throughput(built)
    _hosts(built)
    _failures(built)
    _waiting(built)
    return built


def _progress(built: Dashboard) -> None:
    done = so_far(CALLS, OURS)
    section(
        built,
        "Progress",
        number("Done", "Completed calls, successful or not.", "short", done, decimals=0),
        number(
            "Progress",
            "Completed calls, as a share of the URLs in the job (enter their number above).",
            "percentunit",
            f"{done} / $planned",
        ),
        number(
            "Time left",
            "Time for the remaining URLs of the job, at the current rate.",
            "s",
            f"clamp_min($planned - {done}, 0) / {per_second(CALLS, OURS)}",
        ),
        number("Succeeded", "Calls with a result.", "short", so_far(CALLS, SUCCEEDED), decimals=0),
        number(
            "Failed",
            "Calls without a result; `--resume` repeats them. Yellow from 1.",
            "short",
            f"{so_far(CALLS, FAILED)} or vector(0)",
            steps={1: YELLOW},
            decimals=0,
        ),
        number(
            "Received", "Bytes of body, after content decoding. By project only.", "bytes", so_far(RECEIVED, PROJECT)
        ),
    )


def _throughput(built: Dashboard) -> None:
    section(
        built,
        "Throughput",
        lines(
            "Calls by outcome",
            "Completed calls per second.",
            "reqps",
            query(per_second(CALLS, SUCCEEDED), "succeeded"),
            query(per_second(CALLS, FAILED), "failed"),
            stacked=True,
        ),
        lines(
            "Bytes by project",
            "Bytes of body per second, after content decoding.",
            "Bps",
            query(per_second(RECEIVED, PROJECT, "otel_connector_project"), "{{otel_connector_project}}"),
            stacked=True,
        ),
        lines(
            "Done so far by project",
            "A line that stops rising shows a project that is finished or blocked.",
            "short",
            query(f"sum by (otel_connector_project) ({_of(CALLS, OURS)})", "{{otel_connector_project}}"),
        ),
    )


def _hosts(built: Dashboard) -> None:
    section(
        built,
        "Hosts",
        lines(
            "Calls by host",
            "Completed calls per second. A paused host has none during its pause.",
            "reqps",
            query(per_second(CALLS, OURS, "server_address"), "{{server_address}}"),
            span=6,
        ),
        lines(
            "In flight by host",
            "Calls that have started and not ended, including those that wait before a retry.",
            "short",
            query(f"sum by (server_address) ({ACTIVE}{{{HOST}}})", "{{server_address}}"),
            span=6,
        ),
        lines(
            "Hosts paused",
            "Hosts whose requested pause (`Retry-After` with 429 or 503) has not ended. No request is sent to them."
            " `stats().hosts_paused` lists them. A host that two programs have paused counts twice.",
            "short",
            query(f"sum by ({PROGRAM}) ({PAUSED}{{{JOB}}})", LEGEND),
            span=6,
        ),
        lines(
            "Time in the queue",
            "Average time that a call waits for a connection of the pool, a limiter, or the end of a host's pause."
            " Counted when the wait ends. If it rises while calls stay fast, the cause is a limit of the program. The"
            " wait of a single call is on its span, `otel_connector.queue.duration`.",
            "s",
            query(f"{per_second(QUEUE_TIME, CHOSEN)} / {per_second(CALLS, OURS)}", "per call"),
            span=6,
        ),
    )


def _failures(built: Dashboard) -> None:
    section(
        built,
        "Failures and retries",
        rows(
            "Failures",
            "Calls without a result, by the result of their last attempt. Without a class: cancelled by their caller.",
            so_far(CALLS, FAILED, "error_type, otel_connector_project, server_address"),
            {"error_type": "Error", "otel_connector_project": "Project", "server_address": "Host", "Value": "Calls"},
        ),
        ranking(
            "Retries by reason",
            "Retries, by the result of the attempt before.",
            "short",
            so_far(RETRIES, CHOSEN, "otel_connector_reason"),
            "{{otel_connector_reason}}",
            span=12,
        ),
    )


def _waiting(built: Dashboard) -> None:
    section(
        built,
        "Waiting",
        ranking(
            "Waiting by host",
            "Time that calls waited for a server: in its queue, during its pauses, and before retries. Time of all"
            " calls together, so it may exceed the time range.",
            "s",
            so_far("", f"{WAITED}, {CHOSEN}", "server_address"),
            "{{server_address}}",
            span=12,
        ),
        ranking(
            "Cost of retries",
            "Time that calls waited before retries, in the queue included, by the result of the attempt before. The"
            " durations of the failed attempts are not part of it.",
            "s",
            so_far("", f"{WAITED}, {OF_RETRIES}, {CHOSEN}", "otel_connector_reason"),
            "{{otel_connector_reason}}",
            span=12,
        ),
    )


def health() -> Dashboard:
    """Return the dashboard of the library itself: whether every call has its row and its span."""
    built = page(
        "otel-connector-health",
        "otel_connector / Rows and spans",
        "Whether every call has its row in the log and its span in the collector.",
        SERVICE,
    )
    _rows(built)
    _spans(built)
    return built


def _rows(built: Dashboard) -> None:
    written, waiting, lost = (so_far(metric, JOB) for metric in (WRITTEN, WAITING, LOST))
    section(
        built,
        "Rows",
        number("Rows written", "By all programs that ran in the time range.", "short", written, decimals=0).span(6),
        number(
            "Rows waiting",
            "Rows in memory that could not be written yet. They are lost if the program is killed. Red from 1; after"
            " five minutes, the alert OtelConnectorRowsWaiting.",
            "short",
            f"sum({WAITING}{{{JOB}}})",
            steps={1: RED},
            decimals=0,
        ).span(6),
        number(
            "Rows lost",
            "Rows that were not written to a log, of all programs that ran in the time range. Red from 1: the alert"
            " OtelConnectorRowsLost.",
            "short",
            lost,
            steps={1: RED},
            decimals=0,
        ).span(6),
        number(
            "Calls without a row",
            "Completed calls, minus rows written, waiting and lost. Greater than 0 if a connector has no log"
            " (`logfile=None`); less than 0 if other spans have rows too, or if several providers count.",
            "short",
            f"{so_far(CALLS, ALL_OF_JOB)} - {written} - {waiting} - {lost}",
            decimals=0,
        ).span(6),
        lines("Rows written by program", "Rows per second.", "short", query(per_second(WRITTEN, JOB, PROGRAM), LEGEND)),
        lines(
            "Rows waiting by program",
            "A value that stays above 0 means that the disk is full, missing or locked.",
            "short",
            query(f"sum by ({PROGRAM}) ({WAITING}{{{JOB}}})", LEGEND),
        ),
        lines(
            "Rows lost by program",
            "Since the start of the program.",
            "short",
            query(f"sum by ({PROGRAM}) ({LOST}{{{JOB}}})", LEGEND),
        ),
    )


def _spans(built: Dashboard) -> None:
    queue = "otel_sdk_processor_span_queue"
    section(
        built,
        "Spans",
        lines(
            "Spans started",
            f"Spans of the whole program per second, by the decision of the sampler. {SDK_METRICS}",
            "short",
            query(
                per_second("otel_sdk_span_started_total", JOB, "otel_span_sampling_result"),
                "{{otel_span_sampling_result}}",
            ),
            stacked=True,
        ),
        lines(
            "Queue of the batch processor",
            f"Share of the queue in use. If it is full, spans are dropped; rows are not affected. {SDK_METRICS}",
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
            "Spans per second that the processor has dropped, by reason. They are missing in traces, not in the log."
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
            f"Batches per second: accepted by the collector, or failed, by status or error. {SDK_METRICS}",
            "short",
            query(per_second(EXPORTS, f'error_type="", http_response_status_code="", {SPAN_EXPORTER}'), "accepted"),
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
            "Duration of an export",
            "Average, including retries. The SDK's boundaries (0, 5, 10 s, ...) are too coarse for a percentile."
            f" {SDK_METRICS}",
            "s",
            query(
                f"{per_second(EXPORT_TIME, SPAN_EXPORTER, PROGRAM)} / {per_second(EXPORTS, SPAN_EXPORTER, PROGRAM)}",
                LEGEND,
            ),
            span=12,
        ),
    )


DASHBOARDS = {"service": service, "collection": collection, "health": health}


def main() -> None:
    for name, make in DASHBOARDS.items():
        path = FOLDER / f"{name}.json"
        path.write_text(to_json(make()), encoding="utf-8")
        print(path)


def _of(metric: str, selector: str, function: str = "", window: str = "") -> str:
    """Return a function of a metric. If the metric has the durations of requests, return that of the calls."""

    def value(metric: str, selector: str) -> str:
        return f"{function}({metric}{{{selector}}}[{window}])" if function else f"{metric}{{{selector}}}"

    if not metric.startswith(DURATION):
        return value(metric, selector)
    calls = value(metric.replace(DURATION, CALL_DURATION), selector)
    return f"{calls} or {value(metric, selector)} unless on (job, instance) {value(f'{CALL_DURATION}_count', JOB)}"


def _sum(by: str) -> str:
    return f"sum by ({by}) " if by else "sum"


if __name__ == "__main__":
    main()
