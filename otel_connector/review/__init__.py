"""Analyses logs: `load` reads them, `summarize` and `compare` return figures, `html_report` returns a page.

Needs the extra ``review`` (DuckDB; Altair and vl-convert for charts). Knows neither OpenTelemetry nor aiohttp.

Used by applications, ``cli._review_command`` and ``cli._review_view``.
"""

from otel_connector.review._compare import compare
from otel_connector.review._comparison import Compared, Comparison, Difference, Groups, OnlyIn, Outage, Run
from otel_connector.review._judge import verdict
from otel_connector.review._load import Calls, load
from otel_connector.review._lost_time import LostTime, Retried, Retries, Tries
from otel_connector.review._pictures import figures, save_pictures
from otel_connector.review._report import html_report
from otel_connector.review._sources import LogFile
from otel_connector.review._summary import Bursts, ErrorClass, Group, Latency, ListedCall, Quiet, Summary, summarize
from otel_connector.review._verdict import Finding, Mixed, Reason, Stretch, Urls, Verdict

__all__ = [
    "Bursts",
    "Calls",
    "Compared",
    "Comparison",
    "Difference",
    "ErrorClass",
    "Finding",
    "Group",
    "Groups",
    "Latency",
    "ListedCall",
    "LogFile",
    "LostTime",
    "Mixed",
    "OnlyIn",
    "Outage",
    "Quiet",
    "Reason",
    "Retried",
    "Retries",
    "Run",
    "Stretch",
    "Summary",
    "Tries",
    "Urls",
    "Verdict",
    "compare",
    "figures",
    "html_report",
    "load",
    "save_pictures",
    "summarize",
    "verdict",
]
