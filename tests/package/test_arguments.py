"""Checks that every parameter in seconds, wherever it is, follows the same rule and gives the same messages.

The rule: an int or a float, no bool, finite, and not negative. Some parameters must not be 0 either.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import pytest
from opentelemetry.sdk.trace.export import ConsoleSpanExporter

from otel_connector import AsyncConnector, CSVSpanExporter, RetryPolicy, configure
from otel_connector._replay._replay import Replay
from otel_connector.testing import FakeClock, drip, slow_body, slow_headers

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
