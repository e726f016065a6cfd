"""Checks the messages about wrong arguments: each names the parameter.

Every parameter in seconds follows the same rule and gives the same messages: an int or a float, not a bool, finite, and
not negative. Some parameters must not be 0 either. `WRONG` has a wrong value of every parameter of the public functions
and classes; a test compares it with their signatures.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import pytest
from opentelemetry.sdk.trace.export import ConsoleSpanExporter

import otel_connector
from otel_connector import (
    AsyncConnector,
    Chunk,
    CSVSpanExporter,
    CSVSpanProcessor,
    RetryBudget,
    RetryPolicy,
    configure,
    fetch_chunk,
    review,
    testing,
)
from otel_connector._replay._replay import Replay
from otel_connector.testing import Arrival, FakeClock, FaultServer, drip, slow_body, slow_headers

Use: TypeAlias = "Callable[[Any, Path], object]"


def timeout_with(field: str) -> Use:
    """Return a use of the value as one of the limits of an `aiohttp.ClientTimeout`."""
    return lambda value, _: AsyncConnector(None, timeout=aiohttp.ClientTimeout(**{field: value}))


def policy_with(field: str) -> Use:
    """Return a use of the value as a field of a `RetryPolicy`."""
    return lambda value, _: RetryPolicy(**{field: value})


POSITIVE: dict[str, tuple[str, Use]] = {
    "AsyncConnector(timeout)": ("timeout", lambda value, _: AsyncConnector(None, timeout=value)),
    "AsyncConnector(deadline)": ("deadline", lambda value, _: AsyncConnector(None, deadline=value)),
    "configure(exit_timeout)": ("exit_timeout", lambda value, _: configure(exit_timeout=value).__enter__()),
    "Replay(rate)": ("rate", lambda value, _: Replay([], ConsoleSpanExporter(), to="", rate=value)),
}
NOT_NEGATIVE: dict[str, tuple[str, Use]] = {
    "CSVSpanExporter(fsync_interval)": (
        "fsync_interval",
        lambda value, path: CSVSpanExporter(path, fsync_interval=value).shutdown(),
    ),
    "FakeClock(start)": ("start", lambda value, _: FakeClock(value)),
    "FakeClock.advance(seconds)": ("seconds", lambda value, _: FakeClock().advance(value)),
    "slow_headers(seconds)": ("seconds", lambda value, _: slow_headers(value)),
    "slow_body(seconds)": ("seconds", lambda value, _: slow_body(value)),
    "drip(interval)": ("interval", lambda value, _: drip(value)),
}
for field in ("total", "connect", "sock_read", "sock_connect"):
    NOT_NEGATIVE[f"AsyncConnector(timeout=ClientTimeout({field}))"] = (f"timeout.{field}", timeout_with(field))
for field in ("backoff", "backoff_cap", "retry_after_cap"):
    NOT_NEGATIVE[f"RetryPolicy({field})"] = (field, policy_with(field))
PARAMETERS = POSITIVE | NOT_NEGATIVE
OTHER_TYPES = ["1", True, [1], 1j]
OUT_OF_RANGE = [-1, -0.001, math.inf, -math.inf, math.nan, 10**400]


@pytest.mark.parametrize("value", OTHER_TYPES, ids=repr)
@pytest.mark.parametrize("parameter", PARAMETERS)
def test_seconds_of_another_type_are_rejected(parameter: str, value: object, tmp_path: Path) -> None:
    name, use = PARAMETERS[parameter]
    with pytest.raises(TypeError, match=rf"^{re.escape(name)} must be a number of \w+.*, not {re.escape(repr(value))}"):
        use(value, tmp_path / "logs.csv")
    assert not (tmp_path / "logs.csv").exists()


@pytest.mark.parametrize("value", OUT_OF_RANGE, ids=lambda value: f"{value:.0}" if isinstance(value, float) else "int")
@pytest.mark.parametrize("parameter", PARAMETERS)
def test_seconds_out_of_range_are_rejected(parameter: str, value: float, tmp_path: Path) -> None:
    name, use = PARAMETERS[parameter]
    least = "more than 0" if parameter in POSITIVE else "0 or more"
    message = rf"^{re.escape(name)} must be {least} \w+.*, and finite, not {re.escape(repr(value))}"
    with pytest.raises(ValueError, match=message):
        use(value, tmp_path / "logs.csv")
    assert not (tmp_path / "logs.csv").exists()


@pytest.mark.parametrize("parameter", POSITIVE)
def test_zero_is_rejected_where_it_would_be_no_limit(parameter: str, tmp_path: Path) -> None:
    name, use = POSITIVE[parameter]
    with pytest.raises(ValueError, match=rf"^{name} must be more than 0 "):
        use(0, tmp_path / "logs.csv")


@pytest.mark.parametrize("parameter", NOT_NEGATIVE)
def test_zero_is_accepted_elsewhere(parameter: str, tmp_path: Path) -> None:
    NOT_NEGATIVE[parameter][1](0, tmp_path / "logs.csv")


def in_a_session(method: str) -> Callable[..., object]:
    """Return a function that calls a method of a connector with an open session, unless another one is given."""

    async def use(session: Any, **arguments: Any) -> None:
        async with aiohttp.ClientSession() as opened:
            result = getattr(AsyncConnector(None), method)(opened if session is None else session, **arguments)
            await (anext(result) if method == "get_many" else result)

    return lambda **arguments: asyncio.run(use(**arguments))


def new(kind: Any) -> Any:
    """Return an object whose content is not used, because a check of another argument fails first."""
    return object.__new__(kind)


# The function, valid values of the parameters without a default, and a wrong value of each parameter
WRONG: dict[Callable[..., object], tuple[Callable[..., object], dict[str, Any], dict[str, Any]]] = {
    AsyncConnector: (
        AsyncConnector,
        {"logfile": None},
        dict.fromkeys(("retry", "retry_budget", "rate_limiter", "on_retry", "tracer_provider", "meter_provider"), 1)
        | dict.fromkeys(("propagate", "attempt_spans", "attempts", "fair_reading", "overwrite_log", "clock"), 1)
        | dict.fromkeys(("logfile", "timeout", "deadline", "n_tries", "max_body_bytes"), 0)
        | {"adaptive_concurrency": -1, "redact_params": "token"},
    ),
    AsyncConnector.get: (
        in_a_session("get"),
        {"session": None, "url": "http://a/", "project_name": "P"},
        {"session": 1, "url": 1, "project_name": 1, "decode": 1, "template": ""},
    ),
    AsyncConnector.get_many: (
        in_a_session("get_many"),
        {"session": None, "urls": [], "project_name": "P"},
        {"session": 1, "urls": "http://a/", "project_name": 1, "decode": 1, "template": ""}
        | {"max_concurrency": 0, "ordered": 1, "resume": "logs.csv", "sink": 1},
    ),
    AsyncConnector.rate_limit: (
        lambda **arguments: asyncio.run(AsyncConnector(None).rate_limit(**arguments)),
        {},
        {"delay": -1},
    ),
    RetryPolicy: (RetryPolicy, {}, {"statuses": {200}, "backoff": -1, "backoff_cap": -1, "retry_after_cap": -1}),
    RetryBudget: (
        RetryBudget,
        {},
        dict.fromkeys(("capacity", "retry_cost", "throttling_cost", "refund"), 0),
    ),
    CSVSpanExporter: (
        CSVSpanExporter,
        {"path": "no/logs.csv"},
        {"path": 1, "overwrite": 1, "mode": [], "fsync_interval": -1, "permissions": 0, "spans": "all"}
        | {"redact_params": "token"}
        | dict.fromkeys(("rotate_rows", "rotate_bytes", "backlog_bytes"), 0),
    ),
    CSVSpanProcessor: (CSVSpanProcessor, {}, {"exporter": 1}),
    configure: (
        configure,
        {},
        {"service_name": " ", "exit_timeout": 0, "resource_attributes": 1, "signals": 1},
    ),
    Chunk: (
        Chunk,
        {"urls": [], "project": "P", "log": "logs.csv"},
        {"urls": "http://a/", "project": 1, "log": "", "results": "logs.csv", "connector": 1, "max_concurrency": 0}
        | {"options": {"resume": True}, "keep_cookies": 1},
    ),
    fetch_chunk: (lambda **arguments: asyncio.run(fetch_chunk(**arguments)), {}, {"chunk": 1}),
    review.load: (
        lambda **arguments: review.load("logs.csv", **arguments),
        {},
        {"where": " ", "max_unpacked_bytes": 0},
    ),
    review.summarize: (review.summarize, {"calls": new(review.Calls)}, {"calls": "logs.csv", "top": -1}),
    review.compare: (
        review.compare,
        {"before": new(review.Calls), "after": new(review.Calls)},
        {"before": "logs.csv", "after": "logs.csv", "confidence": "99%", "minimum": -1, "groups": 1.5},
    ),
    review.figures: (review.figures, {"calls": new(review.Calls)}, {"calls": "logs.csv", "dark": 1}),
    review.save_pictures: (
        review.save_pictures,
        {"calls": new(review.Calls), "path": "x.png", "form": "png"},
        {"calls": "logs.csv", "path": "", "form": "gif", "dark": 1},
    ),
    review.html_report: (
        review.html_report,
        {"calls": new(review.Calls), "summary": new(review.Summary)},
        {
            "calls": "logs.csv",
            "summary": 1,
            "title": 1,
            "trace_url": "x",
            "timezone": "Mars",
            "verdict": 1,
            "command": 1,
        },
    ),
    review.verdict: (
        review.verdict,
        {"calls": new(review.Calls), "summary": new(review.Summary)},
        {"calls": "logs.csv", "summary": 1, "urls": "urls.txt"},
    ),
    FaultServer: (FaultServer, {}, {"tls": 1}),
    FaultServer.script: (FaultServer().script, {"path": "/", "steps": 200}, {"path": "x", "steps": []}),
    FakeClock: (FakeClock, {}, {"start": -1, "randoms": 1}),
    FakeClock.advance: (FakeClock().advance, {}, {"seconds": -1}),
    FakeClock.sleep: (lambda **arguments: asyncio.run(FakeClock().sleep(**arguments)), {}, {"delay": "1"}),
    Arrival.wait: (Arrival().wait, {}, {"timeout": -1}),
    testing.Step: (testing.Step, {"name": "s", "play": print}, {"name": 1, "play": 1}),
    testing.hold: (testing.hold, {}, {"then": 1, "arrivals": 0}),
    testing.hold_in_body: (testing.hold_in_body, {}, {"arrivals": 0}),
    testing.respond: (testing.respond, {}, {"status": 100, "body": "x", "headers": "x", "content_type": 1}),
    testing.redirect: (testing.redirect, {"location": "/"}, {"location": "a\nb", "status": 200}),
    testing.retry_after: (testing.retry_after, {"value": 1}, {"value": -1, "status": 100}),
    slow_headers: (slow_headers, {}, {"seconds": -1}),
    slow_body: (slow_body, {}, {"seconds": -1}),
    drip: (drip, {}, {"interval": -1}),
    testing.endless: (testing.endless, {}, {"chunk": 0}),
    testing.reset_in_body: (testing.reset_in_body, {}, {"after": -1}),
    testing.truncated: (testing.truncated, {}, {"sent": -1, "promised": 16}),
    testing.compressed: (testing.compressed, {"body": b""}, {"body": "x", "encoding": "rar"}),
    testing.bomb: (testing.bomb, {"size": 1}, {"size": 0, "encoding": "rar"}),
}
ANY = {  # parameters that accept every value, and those that Python passes
    AsyncConnector.get: {"self", "default", "aiohttp_options"},
    AsyncConnector.get_many: {"self", "aiohttp_options"},
    review.load: {"paths"},
    testing.json_body: {"value"},
}
PUBLIC = {
    "otel_connector": otel_connector,
    "otel_connector.review": review,
    "otel_connector.testing": testing,
}
# Values that the package returns, and exceptions; users do not create them
RETURNED = {
    "Arrival",
    "Attempt",
    "CallRecord",
    "ChunkReport",
    "ConnectorStats",
    "Hold",
    "Outcome",
    "Outcomes",
    "ReceivedRequest",
    "Resumed",
}


@pytest.mark.parametrize(
    ("function", "parameter"),
    [(function, parameter) for function, (_, _, wrong) in WRONG.items() for parameter in wrong],
    ids=lambda value: getattr(value, "__qualname__", value),
)
def test_the_message_about_a_wrong_argument_starts_with_its_name(
    function: Callable[..., object], parameter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    use, valid, wrong = WRONG[function]
    with pytest.raises((TypeError, ValueError), match=rf"^{parameter}\b"):
        use(**{**valid, parameter: wrong[parameter]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function", WRONG, ids=lambda function: function.__qualname__)
def test_every_parameter_has_a_wrong_value(function: Callable[..., object]) -> None:
    parameters = set(inspect.signature(function).parameters) - {"self"} - ANY.get(function, set())
    assert parameters == set(WRONG[function][2])


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_function_and_class_is_in_the_table(module: str) -> None:
    names = set(PUBLIC[module].__all__) - RETURNED
    created = {
        name
        for name in names
        if callable(value := getattr(PUBLIC[module], name))
        and not (
            inspect.isclass(value)
            and (issubclass(value, Exception) or value.__module__.startswith("otel_connector.review"))
        )
        and not getattr(value, "_is_protocol", False)
        and inspect.signature(value).parameters
    }
    assert {getattr(PUBLIC[module], name) for name in created} <= WRONG.keys() | ANY.keys()
