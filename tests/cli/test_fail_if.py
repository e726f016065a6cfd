"""Tests of the conditions of ``--fail-if``: their meaning, their messages, and the errors for invalid conditions."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_connector.cli._fail_if import Condition, LimitComparison, parse

NAMES: dict[str, str] = dict.fromkeys(("calls", "failed", "error_rate", "p99", "x"), "any")
VALUES: dict[str, float] = {"calls": 90, "failed": 3, "error_rate": 0.034, "p99": 3.2}

SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
UNITS = {"": 0, "%": -2, "s": 0, "ms": -3, "us": -6}


# Evaluating a condition


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("error_rate>0.01", ["error_rate is 0.034, above 0.01"]),
        ("error_rate > 1%", ["error_rate is 3.4%, above 1%"]),
        ("error_rate > 4 %", []),
        ("p99 > 2s or error_rate > 1%", ["p99 is 3.20 s, above 2s", "error_rate is 3.4%, above 1%"]),
        ("p99 > 4s or error_rate > 1%", ["error_rate is 3.4%, above 1%"]),
        ("p99>2500ms", ["p99 is 3.20 s, above 2500ms"]),
        ("p99 >= 3200000us", ["p99 is 3.20 s, at least 3200000us"]),
        ("p99 > 3.199s", ["p99 is 3.2 s, above 3.199s"]),
        ("failed >= 1 and calls < 100", ["failed is 3, at least 1", "calls is 90, below 100"]),
        ("failed >= 1 and calls < 90", []),
        ("failed >= 1 AND calls < 90 Or calls <= 90", ["calls is 90, at most 90"]),
        ("calls == 90or failed != 2", ["calls is 90, equal to 90", "failed is 3, not 2"]),
        ("failed>1 and calls>1 or failed>1", ["failed is 3, above 1", "calls is 90, above 1"]),
        ("  calls>+.9e2\tor\ncalls>-1.e0 ", ["calls is 90, above -1.e0"]),
    ],
)
def test_the_comparisons_that_hold_are_reported(text: str, messages: list[str]) -> None:
    assert parse(text, NAMES).check(VALUES) == messages


def test_and_binds_tighter_than_or() -> None:
    held = parse("x>0 or x>0 and calls>1000", NAMES).check({"x": 1, "calls": 1})
    assert held == ["x is 1, above 0"]
    assert not parse("x>9 and calls>0 or x>9", NAMES).check({"x": 1, "calls": 1})


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("values", [{}, {"x": math.nan}], ids=["missing", "NaN"])
def test_a_comparison_with_a_missing_or_nan_value_never_holds(sign: str, values: dict[str, float]) -> None:
    condition = parse(f"x {sign} 1", NAMES)
    assert condition.check(values) == []
    assert parse(f"x {sign} 1 or calls > 1", NAMES).check({**values, "calls": 2}) == ["calls is 2, above 1"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.inf, "x is inf, above 0.1"),
        (0.1000000001, "x is 0.1000000001, above 0.1"),
        (1 / 3, "x is 0.333333, above 0.1"),
        (1e6, "x is 1000000, above 0.1"),
        (1e15, "x is 1e+15, above 0.1"),
        (1234.5678, "x is 1234.57, above 0.1"),
    ],
)
def test_values_are_shown_in_a_readable_form(value: float, message: str) -> None:
    assert parse("x > 0.1", NAMES).check({"x": value}) == [message]


def test_a_value_just_above_the_limit_is_shown_with_enough_digits_to_differ() -> None:
    (message,) = parse("x > 1%", NAMES).check({"x": 0.01000000002})
    assert re.fullmatch(r"x is 1\.000000002\d*%, above 1%", message)


@given(st.integers(0, 10_000), st.sampled_from(["%", "ms", "us"]))
def test_a_unit_scales_a_number_exactly(digits: int, unit: str) -> None:
    """`0.7%` must equal the float 0.007; a division by 100 can give a neighbouring float."""
    expected = float(f"{digits}e{UNITS[unit] - 1}")
    assert parse(f"x == {digits / 10}{unit}", NAMES).check({"x": expected})


# Invalid conditions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a name, found the end at character 1"),
        ("  ", "expected a name, found the end at character 3"),
        ("eror_rate > 1", "unknown name, found 'eror_rate' at character 1"),
        ("calls > 1 and  Failed > 1", "unknown name, found 'Failed' at character 16"),
        ("0.01 < x", "expected a name, found '0.01' at character 1"),
        ("(x > 1)", "expected a name, found '(x' at character 1"),
        ("x", "expected one of >= <= == != > <, found the end at character 2"),
        ("x = 1", "expected one of >= <= == != > <, found '=' at character 3"),
        ("x >", "expected a number, found the end at character 4"),
        ("x > calls", "expected a number, found 'calls' at character 5"),
        ("x > nan", "expected a number, found 'nan' at character 5"),
        ("x >> 1", "expected a number, found '>' at character 4"),
        ("x > 1m", "unknown unit (there are %, s, ms, us), found 'm' at character 6"),
        ("x > 1 S", "unknown unit (there are %, s, ms, us), found 'S' at character 7"),
        ("x > 1e999", "too large a number, found '1e999' at character 5"),
        ("x > 1e99999", "too large a number, found '1e99999' at character 5"),
        ("x > 1 % %", "expected 'and', 'or' or the end, found '%' at character 9"),
        ("x > 1, calls > 1", "expected 'and', 'or' or the end, found ',' at character 6"),
        ("x > 1 && calls > 1", "expected 'and', 'or' or the end, found '&&' at character 7"),
        ("x > 1 and", "expected a name, found the end at character 10"),
        ("x > 1 or or", "unknown name, found 'or' at character 10"),
        ("x > \u0661", "expected a number, found '\u0661' at character 5"),
        ("x > __import__('os')", "expected a number, found '__import__' at character 5"),
        ("x > 1\0", "expected 'and', 'or' or the end, found '\\x00' at character 6"),
    ],
)
def test_an_invalid_condition_is_refused_with_the_expected_token_and_the_position(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse(text, NAMES)
    shown = str(caught.value)
    assert shown.startswith(f"--fail-if {text!r}: ")
    assert "the names are: calls, error_rate, failed, p99, x; an example: " in shown
    assert shown.isprintable()


# Generated conditions


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[str, str, str, str]:
    name, sign = draw(st.sampled_from(sorted(NAMES))), draw(st.sampled_from(sorted(SIGNS)))
    number = draw(st.sampled_from(["0", "1", "-1", "2.5", "1e2", ".5", "100"]))
    return name, sign, number, draw(st.sampled_from(sorted(UNITS)))


SPACES = st.text(" \t", max_size=2)


@given(
    clauses=st.lists(st.lists(comparisons(), min_size=1, max_size=3), min_size=1, max_size=3),
    values=st.dictionaries(
        st.sampled_from(sorted(NAMES)),
        st.sampled_from([0.0, 0.01, 0.025, 1.0, 2.5, 100.0, -1.0, 1e-6]) | st.floats(),
    ),
    space=SPACES,
)
def test_a_condition_evaluates_like_the_same_expression_in_python(
    clauses: list[list[tuple[str, str, str, str]]], values: dict[str, float], space: str
) -> None:
    def holds(name: str, sign: str, number: str, unit: str) -> bool:
        value = values.get(name, math.nan)
        scale = 10.0 ** UNITS[unit]
        mantissa = float(number)
        limit = mantissa * scale if UNITS[unit] == 0 else mantissa / 10.0 ** -UNITS[unit]
        return not math.isnan(value) and SIGNS[sign](value, limit)

    text = f"{space} or{space} ".join(
        f"{space} and ".join(space.join([name, sign, number, unit]) for name, sign, number, unit in clause)
        for clause in clauses
    )
    condition = parse(text, NAMES)
    messages = condition.check(values)

    assert condition.text == text
    assert bool(messages) == any(all(holds(*each) for each in clause) for clause in clauses)
    assert [
        [(each.name, each.operator, each.number, each.unit) for each in all_of] for all_of in condition.alternatives
    ] == clauses
    for each in messages:
        assert re.fullmatch(r"\w+ is \S+(?: \w+)*, [a-z ]+ \S+", each)


@given(st.text("cx1.% <>=!andors\n(\u2028", max_size=30) | st.text(max_size=20))
def test_any_text_is_parsed_or_refused_with_the_known_names(text: str) -> None:
    try:
        condition = parse(text, {"x": "any"})
    except ValueError as error:
        assert "the names are: x" in str(error)  # noqa: PT017 - most texts are refused, but not all
    else:
        assert isinstance(condition, Condition)
        condition.check({"x": 1.0})


def test_conditions_are_comparable_hashable_and_immutable() -> None:
    condition = parse("x > 1%", NAMES)
    assert condition == Condition("x > 1%", ((LimitComparison("x", ">", 0.01, "1", "%"),),))
    assert hash(condition) == hash(parse("x > 1%", NAMES))
    with pytest.raises(AttributeError):
        condition.text = "y"  # type: ignore[misc]
