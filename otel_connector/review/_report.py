"""Writes the report: one HTML file that needs no network, with charts to zoom and tables to search.

vl-convert provides the JavaScript of the charts, which the page contains once; `report.js` is our own. The Content
Security Policy of the page allows only these two scripts and no requests. So a hostile text that `_html` did not escape
would still have no effect. Does not know how figures and charts are computed.

Used by ``review`` and ``review._compare_html``.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from functools import cache
from importlib.resources import files
from typing import Any

from otel_connector._arguments import checked_instance
from otel_connector._units import NONE, counted, duration, moment, rate, share, size
from otel_connector._version import __version__
from otel_connector.review._filters import quoted
from otel_connector.review._findings import COLUMNS, condition_of
from otel_connector.review._html import Cell, Column, script_json, table, text, verdict_block, words
from otel_connector.review._judge import verdict as judge
from otel_connector.review._load import Calls
from otel_connector.review._lost_time import Retries
from otel_connector.review._pictures import MISSING
from otel_connector.review._points import points
from otel_connector.review._sources import LogFile
from otel_connector.review._summary import Group, Summary
from otel_connector.review._trace_url import TraceURL
from otel_connector.review._verdict import Verdict
from otel_connector.review._verdict_text import Wording
from otel_connector.review._verdict_text import lines as lines_of

_MOST_FAILED, _MOST_SLOW = 200, 50  # calls in a table
_SLOTS = 20  # parts of the run from which failed calls are taken in turn
_MANY_FAIL = 0.01  # share of failed calls from which it is highlighted
_LISTED_DAMAGE = 5  # damaged lines of a file
_LISTED_QUIET = 3  # periods without calls
_TRIANGLE = '<span class="mark" aria-hidden="true">&#9650;</span> '

# In each frame until the chart is drawn. <noscript> is not shown if a server forbids only this page to run scripts
_NOT_DRAWN = (
    '<p class="faint">The script of this page draws this chart. If it stays empty, the server that shows the page '
    "forbids scripts (Content-Security-Policy): download the file, and open it from disk.</p>"
)

_BESIDE = ("distribution", "errors")  # charts beside each other

_FIGURES = ("Calls", "Failed", "Rate", "p50", "p95", "p99", "Max", "Received")
_FIGURE_COLUMNS = tuple(Column(name, number=True) for name in _FIGURES)


def html_report(
    calls: Calls,
    summary: Summary,
    *,
    title: str = "Calls",
    trace_url: str | None = None,
    verdict: Verdict | None = None,
    command: str = "",
) -> str:
    """Return the report: a complete HTML page that needs no other file.

    Args:
        calls: The result of `load`.
        summary: The result of `summarize`. Its ``top`` limits the tables of projects, hosts and endpoints. They can be
            searched, so some hundreds are useful.
        title: The heading of the page.
        trace_url: The URL of a trace, with ``{trace_id}``, ``{span_id}`` or ``{call_id}`` in it, such as
            ``http://localhost:16686/trace/{trace_id}``. Without it, calls have no links.
        verdict: The result of `verdict`; None: it is computed, without a list of URLs.
        command: The command that fetches the URLs that failed or have no row, for the verdict.

    Raises:
        TypeError: An argument has the wrong type; the message names it.
        ImportError: Altair or vl-convert is not installed; names the extra that installs them.
        ValueError: `trace_url` is not an http or https URL, or has other placeholders.
    """
    checked_instance("calls", calls, Calls)
    checked_instance("summary", summary, Summary)
    checked_instance("title", title, str)
    checked_instance("command", command, str)
    if verdict is not None:
        checked_instance("verdict", verdict, Verdict)
    traces = None if trace_url is None else TraceURL(trace_url)
    try:
        from otel_connector.review._charts import OVER_TIME, charts

        library = _library()
    except ImportError:
        raise ImportError(MISSING) from None
    found = points(calls)
    schemes = {} if found is None else {name: charts(found, dark=name == "dark") for name in ("light", "dark")}
    specs = {
        scheme: {name: figure.to_dict(validate=False) for name, figure in figures.items()}
        for scheme, figures in schemes.items()
    }
    datasets, figures = _separated(specs)
    verdict = verdict or judge(calls, summary)
    lines = lines_of(verdict, Wording(traces=traces, command=command))
    block = verdict_block(lines)
    body = "\n".join([block, *_sections(calls, summary, verdict, traces, _arranged(figures, OVER_TIME))])
    return page(title, _period(summary), body, script_json({"datasets": datasets, "charts": specs}), library)


@cache
def _library() -> str:
    """Return the JavaScript that draws charts. Bundling it takes seconds."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _separated(specs: dict[str, dict[str, dict[str, Any]]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Move the data and the titles out of the specifications, of which each chart has one for each colour scheme.

    Returns:
        The data, which the page contains once, and the figures, by chart, in which `report.js` draws.
    """
    datasets, figures = dict[str, Any](), dict[str, str]()
    for by_name in specs.values():
        for name, spec in by_name.items():
            datasets |= spec.pop("datasets")  # a name means the same data in all charts
            title = spec.pop("title")
            head = f"<h3>{html.escape(title['text'])}</h3><p>{html.escape(title['subtitle'])}</p>"
            chart = f'<div class="chart" id="chart-{name}">{_NOT_DRAWN}</div>'
            figures[name] = f"<figure><figcaption>{head}</figcaption>{chart}</figure>"
            spec |= {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    return datasets, figures


def _arranged(figures: dict[str, str], over_time: Sequence[str]) -> tuple[str, str]:
    """Return the charts over time, and those beside each other."""
    beside = (f'<div class="card">{figures[name]}</div>' for name in _BESIDE if name in figures)
    return "".join(figures[name] for name in over_time if name in figures), "".join(beside)


def _sections(
    calls: Calls, summary: Summary, verdict: Verdict, traces: TraceURL | None, charts: tuple[str, str]
) -> Iterator[str]:
    yield _files(summary.files)
    if not summary.total.calls:
        yield _section("nothing", "No calls", "<p>The files contain no calls that match.</p>")
        return
    yield _section("overview", "Overview", _cards(summary) + _remarks(summary))
    linked, beside = charts
    yield _section(
        "over-time", "Over time", f'<div id="moves" class="moves" hidden></div><div class="card">{linked}</div>'
    )
    yield _section("what", "Latency and errors", f'<div class="pair">{beside}</div>{_errors(summary, traces)}')
    yield _section("projects", "Projects", _groups("Project", summary.projects, summary.more_projects, "projects"))
    yield _section("hosts", "Hosts", _groups("Host", summary.hosts, summary.more_hosts, "hosts"))
    yield _section(
        "endpoints", "Endpoints", _groups("Endpoint", summary.endpoints, summary.more_endpoints, "endpoints")
    )
    if summary.retries and summary.retries.lost:
        yield _section("lost-time", "Lost time", _lost_time(summary.retries))
    yield _section("slowest", "Slowest calls", _calls(_slowest(calls), traces, "slowest calls"))
    if summary.total.failed:
        yield _section("failed", "Failed calls", _failed(calls, summary, verdict, traces))
    if summary.quarters:
        yield _section("quarters", "Quarters of the period", _quarters(summary))


def _section(name: str, heading: str, content: str) -> str:
    title = f'<h2 id="{name}-heading">{heading}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-heading">{title}{content}</section>'


def _period(summary: Summary) -> str:
    total = summary.total
    if not total.seconds:
        return f"{moment(total.start)} UTC" if total.calls else "No calls"
    return f"{moment(total.start)} to {moment(total.end)} UTC, {duration(total.seconds)}"


def _cards(summary: Summary) -> str:
    total, latency = summary.total, summary.total.latency
    mark = _TRIANGLE if total.failed else ""
    tone = "" if total.error_rate < _MANY_FAIL else " bad"
    projects = counted(len(summary.projects) + summary.more_projects, "project")
    hosts = counted(len(summary.hosts) + summary.more_hosts, "host")
    cards = (
        ("Calls", f"{total.calls:,}", f"{projects}, {hosts}", ""),
        ("Succeeded", share(1 - total.error_rate), f"{mark}{total.failed:,} failed", tone),
        ("Rate", _calls_per(total.rate), f"at most {summary.bursts.peak_calls:,} in one second", ""),
        ("Received", size(total.bytes), f"{size(total.bytes / total.calls)} per call", ""),
        ("p50", duration(latency.p50), "the median duration", ""),
        ("p95", duration(latency.p95), "95 % of the calls took no longer", ""),
        ("p99", duration(latency.p99), "99 % of the calls took no longer", ""),
        ("Max", duration(latency.max), "the longest call", ""),
    )
    shown = "".join(
        f'<div class="tile{tone}"><dt>{name}</dt><dd><strong>{value}</strong><small>{note}</small></dd></div>'
        for name, value, note, tone in cards
    )
    return f'<dl class="tiles">{shown}</dl>'


def _calls_per(per_second: float) -> str:
    return rate(per_second).replace("/", " calls/")


def _remarks(summary: Summary) -> str:
    """Return sentences about the busiest second and the periods without calls."""
    bursts, quiet = summary.bursts, summary.quiet
    remarks = [f"Busiest second: {moment(bursts.peak)}, {counted(bursts.peak_calls, 'call')} started."]
    remarks += [f"Without calls: {duration(each.seconds)} from {moment(each.start)}." for each in quiet[:_LISTED_QUIET]]
    if more := len(quiet[_LISTED_QUIET:]):
        remarks.append(f"{counted(more, 'more period')} without calls.")
    return f'<ul class="remarks">{"".join(f"<li>{each}</li>" for each in remarks)}</ul>'


def _files(logs: Sequence[LogFile]) -> str:
    """Return the list of files with their problems. It is open if the figures do not include everything."""
    items = "".join(f"<li><code>{text(log.path)}</code>{''.join(_problems(log))}</li>" for log in logs)
    good = sum(not log.problem for log in logs)
    damaged = sum(log.damaged for log in logs)
    counts = f"{counted(good, 'file')} read, {counted(damaged, 'damaged line')}"
    if bad := len(logs) - good:
        counts += f", {counted(bad, 'file')} not read"
    is_open = " open" if damaged or bad else ""
    return f'<details class="files"{is_open}><summary>{counts}</summary><ul>{items}</ul></details>'


def _problems(log: LogFile) -> Iterator[str]:
    if log.problem:
        yield f' <strong class="bad">not read</strong>: {text(log.problem)}'
    if log.damaged:
        lines = "".join(f"<li>line {number:,}: {text(what)}</li>" for number, what in log.damage[:_LISTED_DAMAGE])
        more = log.damaged - len(log.damage[:_LISTED_DAMAGE])
        lines += f"<li>and {more:,} more</li>" if more else ""
        count = counted(log.damaged, "damaged line")
        yield f' <strong class="bad">{count}</strong>, not counted as calls<ul>{lines}</ul>'
    if log.unfinished:
        yield " The last line has no line end and is not counted: it is torn, or a program is writing it."
    if log.torn is not None:
        yield f" <code>{text(log.torn.path)}</code>: {counted(log.torn.lines, 'unfinished line')}, not counted."


def _groups(name: str, groups: Sequence[Group], more: int, searched: str) -> str:
    shown = table(
        (Column(name), *_FIGURE_COLUMNS),
        ((words(each.name), *_figures(each)) for each in groups),
        caption=f"{name}s, by number of calls",
        searched=searched,
    )
    return shown + (f'<p class="faint">and {more:,} more {searched}, with fewer calls</p>' if more else "")


def _figures(group: Group) -> Iterator[Cell]:
    latency = group.latency
    yield Cell(f"{group.calls:,}", group.calls)
    failed = share(group.error_rate)
    marked = f'<span class="bad">{_TRIANGLE}{failed}</span>'
    yield Cell(marked if group.error_rate >= _MANY_FAIL else failed, _order(group.error_rate))
    yield Cell(_calls_per(group.rate), _order(group.rate))
    for seconds in (latency.p50, latency.p95, latency.p99, latency.max):
        yield Cell(duration(seconds), _order(seconds))
    yield Cell(size(group.bytes), group.bytes)


def _order(value: float) -> float:
    return -1.0 if math.isnan(value) else value


def _quarters(summary: Summary) -> str:
    columns = (Column("Quarter"), Column("First call (UTC)"), *_FIGURE_COLUMNS)
    rows = (
        (Cell(text(each.name.capitalize())), Cell(moment(each.start)), *_figures(each)) for each in summary.quarters
    )
    return table(columns, rows, caption="The period in four parts of equal length")


def _lost_time(found: Retries) -> str:
    names = ("Failed attempts", "In attempts", "Waiting", "Queued", "Together")
    lost = (
        (
            words(each.reason),
            words(each.host),
            Cell(f"{each.attempts:,}", each.attempts),
            *(Cell(duration(s), s) for s in (each.failing, each.waiting, each.queued, each.seconds)),
        )
        for each in found.lost
    )
    columns = (Column("Reason"), Column("Host"), *(Column(name, number=True) for name in names))
    shown = table(columns, lost, caption="Time lost to failed attempts, also of calls that succeeded later")
    heads = [Column(name, number=True) for name in ("Attempts", "Succeeded only then", "Failed")]
    tries = ((Cell(str(each.attempts)), Cell(f"{each.succeeded:,}"), Cell(f"{each.failed:,}")) for each in found.tries)
    shown += table(heads, tries, caption="Calls with more than one attempt")
    heads = [Column("From (UTC)"), Column("Retries", number=True)]
    return shown + table(
        heads,
        ((Cell(moment(each.start)), Cell(f"{each.retries:,}")) for each in found.over_time),
        caption="Retries over time",
    )


def _errors(summary: Summary, traces: TraceURL | None) -> str:
    if not summary.errors:
        return '<p class="good">No call failed.</p>'
    numbers = (Column("Calls", number=True), Column("Share", number=True))
    columns = (Column("Class"), *numbers, Column("Example"), Column("URL"), Column("call_id"))
    rows = (
        (
            words(each.name),
            Cell(f"{each.calls:,}", each.calls),
            Cell(share(each.share), each.share),
            words(each.example.error),
            words(each.example.url),
            _call_id(each.example.call_id, traces),
        )
        for each in summary.errors
    )
    more = f'<p class="faint">and {summary.more_errors:,} more classes</p>' if summary.more_errors else ""
    return table(columns, rows, caption="Errors by class, with an example of each") + more


_CALL = "call_id, project, t, delta_t, url, response_code, error"
_CallRow = tuple[str, str, datetime, float, str, int | None, str]
_TIMED_OUT = ("AttemptTimeout", "DeadlineExceeded", "TimeoutError")  # classes of calls that ended by a limit


def _slowest(calls: Calls) -> list[_CallRow]:
    """Return the slowest calls: half of them timeouts, and half of them answers, as far as there are so many."""
    timed_out = f"error_type IN ({', '.join(map(quoted, _TIMED_OUT))})"
    return calls.rows(
        f"SELECT {_CALL} FROM (SELECT *, row_number() OVER (PARTITION BY {timed_out} ORDER BY delta_t DESC, t DESC, "
        "call_id DESC) AS number FROM calls_compact WHERE call_id IS NOT NULL) "
        f"QUALIFY row_number() OVER (ORDER BY number, delta_t DESC, call_id) <= {_MOST_SLOW} "
        "ORDER BY delta_t DESC, t DESC, call_id DESC"
    )


def _failed(calls: Calls, summary: Summary, verdict: Verdict, traces: TraceURL | None) -> str:
    """Return failed calls, half of them from the worst stretch, as far as there are so many.

    Of both halves, each error class, host and twentieth of the run has the same right, so that frequent failures leave
    room for rare ones, and the calls are spread over the time.
    """
    worst = next((each for each in verdict.findings if each.kind == "failures"), None)
    inside = "FALSE" if worst is None else condition_of(worst)
    total, place = summary.total, COLUMNS[-1]
    slot = f"floor((epoch_us(t) - epoch_us(TIMESTAMP '{total.start}')) / {total.seconds * 1e6 / _SLOTS + 1})"
    rows = calls.rows(
        f"SELECT {_CALL} FROM (SELECT *, row_number() OVER (PARTITION BY inside ORDER BY turn, error_type, call_id) "
        f"AS number FROM (SELECT *, {inside} AS inside, row_number() OVER (PARTITION BY {inside}, error_type, {place}, "
        f"{slot} ORDER BY hash(call_id), call_id) AS turn FROM calls_compact "
        f"WHERE NOT success AND call_id IS NOT NULL)) ORDER BY number, inside DESC LIMIT {_MOST_FAILED}"
    )
    rows = sorted(rows, key=lambda row: (row[2], row[0]))
    shown = len(rows)
    what = "spread over the run" if worst is None else "half of them from the worst finding, the others from the rest"
    note = f'<p class="faint">{shown:,} of {summary.total.failed:,} failed calls, some of each class: {what}</p>'
    return (note if shown < summary.total.failed else "") + _calls(rows, traces, "failed calls")


def _calls(rows: Iterable[_CallRow], traces: TraceURL | None, searched: str) -> str:
    numbers = (Column("Duration", number=True), Column("Status", number=True))
    columns = (Column("Start (UTC)"), *numbers, *map(Column, ("Project", "URL", "Outcome", "Error", "call_id")))
    cells = (
        (
            Cell(f'<time datetime="{t.isoformat()}Z">{moment(t)}</time>', t.replace(tzinfo=timezone.utc).timestamp()),
            Cell(duration(delta_t), delta_t),
            Cell(NONE if code is None else str(code), -1 if code is None else code),
            words(project),
            words(url),
            Cell(_outcome(error)),
            words(error),
            _call_id(call_id, traces),
        )
        for call_id, project, t, delta_t, url, code, error in rows
    )
    return table(columns, cells, caption=searched.capitalize(), searched=searched)


def _outcome(error: str) -> str:
    """Return how a call ended: by a limit of time, by a failure, or with an answer."""
    return "answered" if not error else "timed out" if error.partition(":")[0] in _TIMED_OUT else "failed"


def _call_id(call_id: str, traces: TraceURL | None) -> Cell:
    shown = f"<code>{text(call_id).replace('-', '-<wbr>')}</code>"
    if traces is None:
        return Cell(shown)
    link = html.escape(traces.of(call_id))
    return Cell(f'<a href="{link}" target="_blank" rel="noopener noreferrer">{shown}</a>')


def page(title: str, period: str, body: str, data: str, library: str) -> str:
    style, script = (
        files("otel_connector.review").joinpath(name).read_text(encoding="utf-8")
        for name in ("report.css", "report.js")
    )
    policy = (
        f"default-src 'none'; script-src {_hash(library)} {_hash(script)}; style-src {_hash(style)}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    name = text(title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{name}</title>
<style>{style}</style>
</head>
<body>
<header>
<div><h1>{name}</h1><p>{period}</p></div>
<button type="button" id="scheme" hidden>Dark</button>
</header>
<main>
{body}
</main>
<footer><p>otel-connector {__version__}. Times are UTC. Percentiles are exact, and interpolated between the two
nearest calls.</p></footer>
<noscript><p>Sorting and searching the tables need JavaScript.</p></noscript>
<script type="application/json" id="data">{data}</script>
<script>{library}</script>
<script>{script}</script>
</body>
</html>
"""


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
