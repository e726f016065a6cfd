"""From logs to understanding: `load` reads them, `summarize` says what happened, `compare` what changed.

Needs the extra ``review`` (DuckDB; Altair and vl-convert for pictures). Knows neither OpenTelemetry nor aiohttp.
"""

from otel_connector.review._compare import compare
from otel_connector.review._comparison import Compared, Comparison, Difference, Groups, OnlyIn, Run
from otel_connector.review._load import Calls, LogFile, load
from otel_connector.review._pictures import figures, save_pictures
from otel_connector.review._report import html_report
from otel_connector.review._summary import (
    Bursts,
    Call,
    ErrorClass,
    Group,
    Latency,
    Quiet,
    Summary,
    summarize,
)

__all__ = [
    "Bursts",
    "Call",
    "Calls",
    "Compared",
    "Comparison",
    "Difference",
    "ErrorClass",
    "Group",
    "Groups",
    "Latency",
    "LogFile",
    "OnlyIn",
    "Quiet",
    "Run",
    "Summary",
    "compare",
    "figures",
    "html_report",
    "load",
    "save_pictures",
    "summarize",
]
