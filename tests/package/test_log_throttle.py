"""Checks how often a warning is logged: a few lines in each interval, then their number."""

from __future__ import annotations

from otel_connector._log_throttle import LOG_INTERVAL, LogThrottle


def test_the_first_line_of_each_interval_is_admitted() -> None:
    throttle = LogThrottle()
    assert throttle.admit(-5.0) == "", "monotonic time may start anywhere"
    assert throttle.admit(0.0) is None
    assert throttle.admit(LOG_INTERVAL - 5.001) is None
    assert throttle.admit(LOG_INTERVAL - 5) == "; 2 similar messages were not logged"
    assert throttle.admit(LOG_INTERVAL) is None


def test_an_interval_starts_with_a_line_and_not_by_the_clock() -> None:
    throttle = LogThrottle()
    assert throttle.is_over(0.0), "none has started"
    assert throttle.admit(100.0) == ""
    assert not throttle.is_over(100.0 + LOG_INTERVAL - 0.001)
    assert throttle.is_over(100.0 + LOG_INTERVAL)
    assert throttle.admit(1_000.0) == "", "no line was left out"


def test_several_lines_may_be_admitted_in_each_interval() -> None:
    throttle = LogThrottle(lines=3)
    assert [throttle.admit(1.0) for _ in range(5)] == ["", "", "", None, None]
    assert throttle.admit(1 + LOG_INTERVAL) == "; 2 similar messages were not logged"
    assert throttle.admit(1 + LOG_INTERVAL) == ""
