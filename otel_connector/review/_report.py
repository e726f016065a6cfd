"""Writes the report: one HTML file that needs no network, with charts to zoom and tables to search.

vl-convert provides the JavaScript of the charts, which the page contains once; `report.js` is our own. The Content
Security Policy of the page allows only these two scripts and no requests. So a hostile text that `_html` did not escape
would still have no effect. The order and the markup are in ``templates``. Does not know how figures and charts are
computed.

Used by ``review``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from otel_connector._arguments import checked_instance
from otel_connector._units import NONE, counted, duration, listed_files, rate, share, size
from otel_connector.review._described import COLUMNS, condition_of
from otel_connector.review._filters import quoted
from otel_connector.review._formats import lost_time
from otel_connector.review._html import Cell, Column, page, rendered, script_json, table, verdict_block, words
from otel_connector.review._judge import verdict as judge
from otel_connector.review._load import Calls
from otel_connector.review._lost_time import TIMED_OUT, Retries
from otel_connector.review._pictures import MISSING
from otel_connector.review._points import points
from otel_connector.review._sources import LogFile
from otel_connector.review._summary import ErrorClass, Group, Summary
from otel_connector.review._trace_url import TraceURL
from otel_connector.review._verdict import Verdict
from otel_connector.review._verdict_text import Wording
from otel_connector.review._verdict_text import lines as lines_of
from otel_connector.review._zone import Zone

_MOST_FAILED, _MOST_SLOW = 200, 50  # calls in a table
_SLOTS = 20  # parts of the run from which failed calls are taken in turn
_MANY_FAIL = 0.01  # share of failed calls from which it is highlighted
_LISTED_DAMAGE = 5  # damaged lines of a file
_MOST_NAMES = 3  # logs in a title
_PATH_LIMIT = 70  # characters of the path of a URL

_BESIDE = ("distribution", "errors")  # charts beside each other

_FIGURES = ("Calls", "Failed", "Rate", "p50", "p95", "p99", "Max", "Received")
_FIGURE_COLUMNS = tuple(Column(name, number=True) for name in _FIGURES)


def html_report(
    calls: Calls,
    summary: Summary,
    *,
    title: str | None = None,
    trace_url: str | None = None,
    timezone: str = "UTC",
    verdict: Verdict | None = None,
    command: str = "",
) -> str:
    """Return the report: a complete HTML page that needs no other file.

    Args:
        calls: The result of `load`.
        summary: The result of `summarize`. Its ``top`` limits the tables of projects, hosts and endpoints. They can be
            searched, so some hundreds are useful.
        title: The heading of the page; None for the names of the logs.
        trace_url: The URL of a trace, with ``{trace_id}``, ``{span_id}`` or ``{call_id}`` in it, such as
            ``http://localhost:16686/trace/{trace_id}``. Without it, calls have no links.
        timezone: The time zone of the times of the page, such as ``Europe/Berlin``.
        verdict: The result of `verdict`; None: it is computed, without a list of URLs.
        command: The command that fetches the URLs that failed or have no row, for the verdict.

    Raises:
        TypeError: An argument has the wrong type; the message names it.
        ImportError: Altair, Jinja2 or vl-convert is not installed; names the extra that installs them.
        ValueError: `trace_url` is not an http or https URL, or has other placeholders; `timezone` is unknown.
    """
    checked_instance("calls", calls, Calls)
    checked_instance("summary", summary, Summary)
    if title is not None:
        checked_instance("title", title, str)
    checked_instance("command", command, str)
    if verdict is not None:
        checked_instance("verdict", verdict, Verdict)
    traces = None if trace_url is None else TraceURL(trace_url)
    zone = Zone(checked_instance("timezone", timezone, str))
    try:
        import_module("jinja2")
        import_module("vl_convert")
        from otel_connector.review._chart_style import darkened
        from otel_connector.review._charts import OVER_TIME, charts
    except ImportError:
        raise ImportError(MISSING) from None
    found = points(calls, has_attempts=summary.retries is not None)
    shown = None if found is None else zone.shifted(found)
    drawn: dict[str, Any] = {} if shown is None else charts(shown, dark=False)
    # Altair takes longer to copy the data than for all else
    specs = {name: figure.to_dict(validate=False, ignore=["datasets"]) for name, figure in drawn.items()}
    datasets = dict[str, Any]()  # a name means the same data in all charts
    for figure in drawn.values():
        datasets |= figure.datasets
    titles = {name: spec.pop("title") for name, spec in specs.items()}
    for spec in specs.values():
        spec |= {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    found_verdict = verdict or judge(calls, summary)
    values: dict[str, Any] = {
        "verdict": verdict_block(lines_of(found_verdict, Wording(traces=traces, command=command, zone=zone.info))),
        "figures": titles,
        "over_time": [name for name in OVER_TIME if name in titles],
        "beside": [name for name in _BESIDE if name in titles],
        **_files(summary.files),
        **_Sections(calls, summary, found_verdict, traces, zone).values(),
    }
    name = title or _name(summary)
    data = script_json({"datasets": datasets, "charts": {"light": specs, "dark": darkened(specs)}})
    body = rendered("report", **values)
    library = _library() if drawn else ""
    return str(page(name, _period(summary, zone), body, data, library, zone=zone.name)) + "\n"


@cache
def _library() -> str:
    """Return the JavaScript that draws charts. Bundling it takes seconds."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _name(summary: Summary) -> str:
    names = [Path(file.path).name for file in summary.files if not file.problem]
    return listed_files(names, _MOST_NAMES)


def _period(summary: Summary, zone: Zone) -> str:
    total = summary.total
    if not total.seconds:
        return f"{zone.moment(total.start)} {zone.name}" if total.calls else "No calls"
    return f"{zone.moment(total.start)} to {zone.moment(total.end)} {zone.name}, {duration(total.seconds)}"


def _files(logs: Sequence[LogFile]) -> dict[str, Any]:
    """Return the values for the list of files. It is open if the figures do not include everything."""
    good = sum(not log.problem for log in logs)
    damaged = sum(log.damaged for log in logs)
    counts = f"{counted(good, 'file')} read, {counted(damaged, 'damaged line')}"
    if bad := len(logs) - good:
        counts += f", {counted(bad, 'file')} not read"
    return {
        "files": logs,
        "files_counts": counts,
        "files_open": bool(damaged or bad),
        "most_damage": _LISTED_DAMAGE,
    }


def _calls_per(per_second: float) -> str:
    return rate(per_second).replace("/", " calls/")


def _and_more(number: int) -> str:
    return f" and {number - 1:,} more" if number > 1 else ""


def _order(value: float) -> float:
    return -1.0 if math.isnan(value) else value


def _number(value: int) -> Cell:
    return Cell(f"{value:,}", value)


def _seconds(value: float) -> Cell:
    return Cell(duration(value), _order(value))


def _figures(group: Group) -> Iterator[Cell]:
    latency = group.latency
    yield _number(group.calls)
    failed = share(group.error_rate)
    yield Cell(
        rendered("failed_share", share=failed) if group.error_rate >= _MANY_FAIL else failed, _order(group.error_rate)
    )
    yield Cell(_calls_per(group.rate), _order(group.rate))
    yield from map(_seconds, (latency.p50, latency.p95, latency.p99, latency.max))
    yield Cell(size(group.bytes), group.bytes)


_CALL = "call_id, project, t, delta_t, url, host, error_type, response_code, success, error, endpoint"
_CallRow = tuple[str, str, datetime, float, str, str, str, int | None, bool, str, str]


def _slowest(calls: Calls) -> list[_CallRow]:
    """Return the slowest calls: half of them timeouts, and half of them answers, as far as there are so many."""
    timed_out = f"error_type IN ({', '.join(map(quoted, TIMED_OUT))})"
    return calls.rows(
        f"SELECT {_CALL} FROM (SELECT *, row_number() OVER (PARTITION BY {timed_out} ORDER BY delta_t DESC, t DESC, "
        "call_id DESC) AS number FROM calls_compact WHERE call_id IS NOT NULL) "
        f"QUALIFY row_number() OVER (ORDER BY number, delta_t DESC, call_id) <= {_MOST_SLOW} "
        "ORDER BY delta_t DESC, t DESC, call_id DESC"
    )


def _failed(calls: Calls, summary: Summary, verdict: Verdict) -> tuple[list[_CallRow], str]:
    """Return failed calls, half of them from the worst stretch, as far as there are so many, and which these are.

    Of both halves, each error class, host and twentieth of the run has the same right, so that frequent failures leave
    room for rare ones, and the calls are spread over the time.
    """
    failures = [each for each in verdict.findings if each.kind == "failures"]
    worst = next((each for each in failures if each.stretches), failures[0] if failures else None)
    inside = "FALSE" if worst is None else condition_of(worst)
    total, place = summary.total, COLUMNS[-1]
    slot = f"floor((epoch_us(t) - epoch_us(TIMESTAMP '{total.start}')) / {total.seconds * 1e6 / _SLOTS + 1})"
    rows = calls.rows(
        f"SELECT {_CALL} FROM (SELECT *, row_number() OVER (PARTITION BY inside ORDER BY turn, error_type, call_id) "
        f"AS number FROM (SELECT *, {inside} AS inside, row_number() OVER (PARTITION BY {inside}, error_type, {place}, "
        f"{slot} ORDER BY hash(call_id), call_id) AS turn FROM calls_compact "
        f"WHERE NOT success AND call_id IS NOT NULL)) ORDER BY number, inside DESC LIMIT {_MOST_FAILED}"
    )
    what = "spread over the run" if worst is None else "half of them from the worst finding, the others from the rest"
    return sorted(rows, key=lambda row: (row[2], row[0])), what


class _Sections:
    """The values of the template ``report``, except those of the charts and files."""

    def __init__(self, calls: Calls, summary: Summary, verdict: Verdict, traces: TraceURL | None, zone: Zone) -> None:
        self._run = calls
        self._verdict = verdict
        self._summary = summary
        self._traces = traces
        self._zone = zone

    def values(self) -> dict[str, Any]:
        summary = self._summary
        if not summary.total.calls:
            return {"tiles": []}
        lost, (failed, note) = summary.retries, self._failed()
        return {
            "tiles": list(self._tiles()),
            "remarks": list(self._remarks()),
            "errors": self._errors() if summary.errors else "",
            "more_errors": summary.more_errors,
            "failed": failed,
            "failed_note": note,
            "groups": [
                self._groups("Endpoint", summary.endpoints, summary.more_endpoints),
                self._groups("Host", summary.hosts, summary.more_hosts),
                self._groups("Project", summary.projects, summary.more_projects),
            ],
            "lost": list(self._lost_time(lost)) if lost and lost.reasons else [],
            "lost_note": lost_time(lost) if lost else "",
            "slowest": self._calls(_slowest(self._run), "slowest calls"),
            "quarters": self._quarters() if summary.quarters else "",
        }

    def _tiles(self) -> Iterator[dict[str, Any]]:
        summary, total = self._summary, self._summary.total
        latency = total.latency
        projects = counted(len(summary.projects) + summary.more_projects, "project")
        hosts = counted(len(summary.hosts) + summary.more_hosts, "host")
        endpoints = counted(len(summary.endpoints) + summary.more_endpoints, "endpoint")
        mark = "\u25b2 " if total.failed else ""
        yield {"name": "Calls", "value": f"{total.calls:,}", "note": f"{projects}, {hosts}, {endpoints}", "bad": False}
        bad = total.error_rate >= _MANY_FAIL
        succeeded = share(1 - total.error_rate)
        yield {"name": "Succeeded", "value": succeeded, "note": f"{mark}{total.failed:,} failed", "bad": bad}
        for name, value, note in (
            ("Rate", _calls_per(total.rate), f"at most {summary.bursts.peak_calls:,} in one second"),
            ("Received", size(total.bytes), f"{size(total.bytes / total.calls)} per call"),
            ("p50", duration(latency.p50), "the median duration"),
            ("p95", duration(latency.p95), "95 % of the calls took no longer"),
            ("p99", duration(latency.p99), "99 % of the calls took no longer"),
            ("Max", duration(latency.max), "the longest call"),
        ):
            yield {"name": name, "value": value, "note": note, "bad": False}

    def _remarks(self) -> Iterator[str]:
        """Yield sentences about the busiest second and the periods without calls."""
        bursts = self._summary.bursts
        yield f"Busiest second: {self._zone.moment(bursts.peak)}, {counted(bursts.peak_calls, 'call')} started."
        for each in self._summary.quiet:
            yield f"Without calls: {duration(each.seconds)} from {self._zone.moment(each.start)}."

    def _groups(self, name: str, groups: Sequence[Group], more: int) -> dict[str, Any]:
        plural = f"{name.lower()}s"
        shown = table(
            (Column(name), *_FIGURE_COLUMNS),
            ((words(each.name), *_figures(each)) for each in groups),
            caption=f"{name}s, by number of calls",
            searched=plural,
        )
        return {"name": plural, "heading": f"{name}s", "table": shown, "more": more}

    def _quarters(self) -> str:
        columns = (Column("Quarter"), Column(f"First call ({self._zone.name})"), *_FIGURE_COLUMNS)
        rows = (
            (Cell(each.name.capitalize()), Cell(self._zone.moment(each.start)), *_figures(each))
            for each in self._summary.quarters
        )
        return table(columns, rows, caption="The period in four parts of equal length")

    def _errors(self) -> str:
        numbers = (Column("Calls", number=True), Column("Share", number=True))
        times = Column(f"First and last ({self._zone.name})")
        columns = (Column("Class"), *numbers, times, *map(Column, ("Hosts", "Endpoints", "Example", "call_id")))
        rows = (
            (
                words(each.name),
                _number(each.calls),
                Cell(share(each.share), each.share),
                _lines(self._time(each.first), self._time(each.last)),
                words(f"{each.host}{_and_more(each.hosts)}"),
                _url(f"{_endpoint(each)}{_and_more(each.endpoints)}", each.endpoint),
                _lines(words(each.example.error), _url(_path(each.example.url, each.host), each.example.url)),
                self._call_id(each.example.call_id),
            )
            for each in self._summary.errors
        )
        return table(columns, rows, caption="Errors by class, with an example of each")

    def _lost_time(self, found: Retries) -> Iterator[dict[str, Any]]:
        names = ("Failed attempts", "In attempts", "Back-off", "Retry-After", "Queued", "Together")
        numbers = tuple(Column(name, number=True) for name in names)
        for by, lost, more in (
            ("Host", found.hosts, found.more_hosts),
            ("Endpoint", found.endpoints, found.more_endpoints),
        ):
            rows = (
                (
                    *(words(each.reason), words(each.name), _number(each.attempts)),
                    *map(_seconds, (each.failing, each.waiting, each.asked, each.queued, each.seconds)),
                )
                for each in lost
            )
            plural = f"reasons and {by.lower()}s"
            caption = f"Time lost to failed attempts by {by.lower()}, also of calls that succeeded later"
            yield {
                "caption": caption,
                "table": table((Column("Reason"), Column(by), *numbers), rows, caption=caption, searched=plural),
                "more": more,
                "what": f"{plural}, with less time",
            }
        heads = [Column(name, number=True) for name in ("Attempts", "Succeeded only then", "Failed")]
        tries = [tuple(map(_number, (each.attempts, each.succeeded, each.failed))) for each in found.tries]
        if tries:
            caption = "Calls with more than one attempt"
            yield {"caption": caption, "table": table(heads, tries, caption=caption), "more": 0, "what": ""}

    def _failed(self) -> tuple[str, str]:
        """Return the table of failed calls, and a note if it does not have all of them."""
        failed = self._summary.total.failed
        if not failed:
            return "", ""
        rows, what = _failed(self._run, self._summary, self._verdict)
        note = f"{len(rows):,} of {failed:,} failed calls, some of each class: {what}"
        return self._calls(rows, "failed calls"), note if len(rows) < failed else ""

    def _calls(self, rows: Sequence[_CallRow], searched: str) -> str:
        columns = (
            Column(f"Start ({self._zone.name})"),
            *(Column("Duration", number=True), Column("Outcome"), Column("Host")),
            *map(Column, ("Path", "Error", "Project", "call_id")),
        )
        return table(
            columns,
            map(self._call, rows),
            caption=searched.capitalize(),
            searched=searched,
            data=[{"t": self._milliseconds(row[2]), "class": row[6], "endpoint": row[10]} for row in rows],
        )

    def _call(self, row: _CallRow) -> Sequence[Cell]:
        call_id, project, t, delta_t, url, host, error_type, code, success, error, _ = row
        status = NONE if code is None else str(code)
        return (
            self._time(t),
            _seconds(delta_t),
            words(status if success else error_type),
            words(host),
            _url(_path(url), url),
            words(error),
            words(project),
            self._call_id(call_id),
        )

    def _time(self, time: datetime) -> Cell:
        html = rendered("time", iso=f"{time.isoformat()}Z", shown=self._zone.moment(time))
        return Cell(html, time.replace(tzinfo=timezone.utc).timestamp())

    def _milliseconds(self, time: datetime) -> float:
        """Return a time as charts have it."""
        return self._zone.local(time).replace(tzinfo=timezone.utc).timestamp() * 1e3

    def _call_id(self, call_id: str) -> Cell:
        return Cell(rendered("call_id", call_id=call_id, link=self._traces.of(call_id) if self._traces else ""))


def _url(shown: str, url: str) -> Cell:
    """Return a cell with a part of a URL; the whole is its tooltip."""
    return Cell(words(shown, _PATH_LIMIT).html, whole=url)


def _lines(first: Cell, second: Cell) -> Cell:
    """Return a cell with the content of two."""
    return Cell(rendered("lines", lines=(first.html, second.html)), first.order, second.whole)


def _endpoint(found: ErrorClass) -> str:
    """Return an endpoint without its host, if that is the host of the row."""
    return found.endpoint.removeprefix(found.host if found.endpoint.startswith(f"{found.host}/") else "")


def _path(url: str, host: str = "") -> str:
    """Return a URL without its scheme and host; the whole of it if it has none.

    Args:
        url: The URL.
        host: If it is given, the host of a URL of another host is returned, too.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    of_url = parts.netloc.rpartition("@")[2]
    path = parts._replace(scheme="", netloc="").geturl() or "/"
    return url if not of_url else path if host in {"", of_url} else f"{of_url}{path}"
