"""All outcomes of a call: the steps of the server, and the expected row, span and error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from otel_connector import COLUMNS, AsyncConnector, CallRecord
from otel_connector.testing import (
    FakeClock,
    bomb,
    corrupt_gzip,
    disconnect,
    empty,
    endless,
    garbage,
    hold_in_body,
    ok,
    redirect,
    reset,
    reset_in_body,
    respond,
    silent,
    truncated,
    truncated_chunks,
)
from support.logs import Log
from support.sdk import SDK

OK_BODY = b'{"ok": true}'


@dataclass(frozen=True)
class Outcome:
    """A scenario: the steps of the server, and the expected row and span."""

    steps: Any
    error: str = ""  # name of the class; empty for a success
    message: str = ""  # part of the message
    code: int | None = 200
    size: int | None = None  # None: any
    attempts: int = 1  # includes those that aiohttp makes by itself after a broken connection
    events: int | None = None  # None: one for each failed attempt
    error_type: str | None = None  # None: otel_connector.<error>

    @property
    def timeout(self) -> float:
        """Return the timeout of an attempt: short if it is waited for, and long enough for a busy machine if not."""
        return 0.2 if self.error == "AttemptTimeout" else 20


OUTCOMES = {
    "success": Outcome(ok, size=len(OK_BODY)),
    "success after retries": Outcome([503, truncated(), ok], size=len(OK_BODY), attempts=3),
    "404": Outcome(404, "HTTPStatusError", "404 Not Found", code=404, error_type="404"),
    "503 to the end": Outcome(503, "HTTPStatusError", "503 ", code=503, attempts=3, error_type="503"),
    "timeout before the headers": Outcome(silent, "AttemptTimeout", "no response within", code=None, attempts=3),
    "timeout inside the body": Outcome(hold_in_body().step, "AttemptTimeout", "body not complete", attempts=3),
    "reset before the headers": Outcome(reset, "ConnectFailed", "reset", code=None, attempts=4, events=2),
    "closed before the headers": Outcome(disconnect, "ConnectFailed", "disconnected", code=None, attempts=4, events=2),
    "reset inside the body": Outcome(reset_in_body(16), "BodyTruncated", "the body ended after", attempts=3),
    "closed inside the body": Outcome(truncated(16, 64), "BodyTruncated", "ended after 16 bytes", size=16, attempts=3),
    "closed between chunks": Outcome(truncated_chunks(), "BodyTruncated", "the body ended after", attempts=3),
    "not JSON": Outcome(respond(body=b"<html>"), "DecodeFailed", "JSONDecodeError", size=6),
    "empty body": Outcome(empty, "DecodeFailed", "the body is empty", size=0),
    "broken gzip": Outcome(corrupt_gzip, "DecodeFailed", "gzip"),
    "endless body": Outcome(endless(), "BodyTooLarge", "1000000 bytes"),
    "gzip bomb": Outcome(bomb(2_000_000), "BodyTooLarge", "1000000 bytes"),
    "not HTTP": Outcome(garbage, "MalformedResponse", "", code=None),
    "redirect without end": Outcome(redirect("/x"), "RedirectRefused", "redirects", code=302),
    "redirect to another scheme": Outcome(redirect("ftp://h/x"), "RedirectRefused", "ftp://h/x", code=302),
    "redirect to no URL": Outcome(redirect("http://[::1"), "RedirectRefused", "", code=302),
}


def connector(log: Log | None, sdk: SDK | None, clock: FakeClock, **options: Any) -> AsyncConnector:
    providers: dict[str, Any] = sdk.providers if sdk else {}
    arguments = {"n_tries": 3, "timeout": 0.2, "max_body_bytes": 1_000_000, "clock": clock, **providers, **options}
    return AsyncConnector(log.path if log else None, **arguments)


def assert_span_carries(span: ReadableSpan, record: CallRecord) -> None:
    """Check that the span has the ten fields of the row as attributes, except empty ones."""
    expected = {name: getattr(record, name) for name in COLUMNS if getattr(record, name) not in {None, ""}}
    assert span.attributes is not None
    carried = {key.removeprefix("otel_connector."): value for key, value in span.attributes.items()}
    assert {name: carried.get(name) for name in expected} == expected
    assert not [name for name in COLUMNS if name in carried and name not in expected]


def assert_times_agree(span: ReadableSpan, record: CallRecord) -> None:
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time / 1e9 == record.t
    assert (span.end_time - span.start_time) / 1e9 == pytest.approx(record.delta_t, abs=1e-9)
