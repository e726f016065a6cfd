"""Conditions under which a job counts as failed, such as ``p99 > 2s or error_rate > 1%``.

A condition consists of comparisons of a name with a number, joined by ``and`` and ``or``. It is parsed, never executed.
Does not know what the names mean, nor where their values come from.

Used by ``cli._exit_codes``, ``cli._fetch_command`` and ``cli._review_command``.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from otel_connector._units import duration

# Longer operators come first: the pattern below takes the first that matches
_OPERATORS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    ">=": (operator.ge, "at least"),
    "<=": (operator.le, "at most"),
    "==": (operator.eq, "equal to"),
    "!=": (operator.ne, "not"),
    ">": (operator.gt, "above"),
    "<": (operator.lt, "below"),
}

_UNITS = {"": 0, "%": -2, "s": 0, "ms": -3, "us": -6}  # the power of ten of each unit
_DURATIONS = frozenset({"s", "ms", "us"})
_UNITS_OF = {"number": ("",), "share": ("", "%"), "seconds": ("", "s", "ms", "us")}

# Each pattern includes the space behind the token
_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_.]*)\s*")
_OPERATOR = re.compile(rf"({'|'.join(map(re.escape, _OPERATORS))})\s*")
_NUMBER = re.compile(r"(([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:[eE]([+-]?[0-9]{1,4}))?)\s*")
_UNIT = re.compile(r"(%|(?!(?:and|or)\b)[A-Za-z]+|)\s*", re.IGNORECASE)
_CONNECTIVE = re.compile(r"((?:and|or)\b)\s*", re.IGNORECASE)
_QUOTED = re.compile(r"[A-Za-z0-9_.]+|\S{1,3}")  # the part of the text that an error message quotes

_EXACT_LIMIT = 1e15  # whole numbers below this are shown with all digits


@dataclass(frozen=True, slots=True)
class LimitComparison:
    """One comparison of a value with a limit.

    Attributes:
        name: The name of the value.
        operator: One of ``> >= < <= == !=``.
        limit: The limit in the base unit of the value: seconds, or a share of 1.
        number: The limit as written, without its unit.
        unit: The unit as written: ``%``, ``s``, ``ms``, ``us`` or none.
    """

    name: str
    operator: str
    limit: float
    number: str
    unit: str

    def holds(self, values: Mapping[str, float]) -> bool:
        """Whether the comparison is true. It is false for a value that is missing or NaN, also with ``!=``."""
        value = values.get(self.name, math.nan)
        return not math.isnan(value) and _OPERATORS[self.operator][0](value, self.limit)

    def described(self, value: float) -> str:
        """Return the comparison with a value in words: ``p99 is 3.20 s, above 2s``."""
        if self.unit in _DURATIONS and 0 <= value < math.inf:
            text, limit, exact = duration(value), duration(self.limit), f"{value!r} s"
        else:
            number = value * 10.0 ** -_UNITS[self.unit]
            text, limit = _readable(number) + self.unit, _readable(float(self.number)) + self.unit
            exact = f"{number!r}{self.unit}"
        shown = exact if value != self.limit and text == limit else text  # rounding may hide the difference
        return f"{self.name} is {shown}, {_OPERATORS[self.operator][1]} {self.number}{self.unit}"


@dataclass(frozen=True, slots=True)
class Condition:
    """Comparisons joined by ``and`` and ``or``; ``and`` has the higher precedence.

    Attributes:
        text: The condition as written.
        alternatives: The condition holds if all comparisons of at least one alternative hold.
    """

    text: str
    alternatives: tuple[tuple[LimitComparison, ...], ...]

    def check(self, values: Mapping[str, float]) -> list[str]:
        """Return descriptions of the comparisons that make the condition hold; empty if it does not hold.

        Args:
            values: The value of each name. A comparison with a missing or NaN value (the p99 of no calls) is false.
        """
        holding = (all_of for all_of in self.alternatives if all(each.holds(values) for each in all_of))
        return list(dict.fromkeys(each.described(values[each.name]) for all_of in holding for each in all_of))

    def undecided(self, values: Mapping[str, float]) -> list[str]:
        """Return the names without a value that decide whether the condition holds; empty if it does not depend on any.

        Args:
            values: As for `check`, which returned nothing.
        """
        return sorted(
            {
                each.name
                for all_of in self.alternatives
                for each in all_of
                if math.isnan(values.get(each.name, math.nan))
                and all(other.holds(values) or math.isnan(values.get(other.name, math.nan)) for other in all_of)
            }
        )


def parse(text: str, names: Mapping[str, str]) -> Condition:
    """Parse a condition such as ``failed >= 1 and calls < 100``.

    Args:
        text: Comparisons (``> >= < <= == !=``) of a name with a number. The number may have a unit: ``%`` for
            hundredths; ``s``, ``ms``, ``us`` for seconds and their parts.
        names: The known names and their kinds: ``number``, ``share`` (of 1) or ``seconds``. The kind decides which
            units are allowed; any other kind allows all.

    Raises:
        ValueError: The text is not a condition. The message contains the error, its position and the known names.
    """
    parser = _Parser(text, names)
    alternatives = [[parser.comparison()]]
    while connective := parser.connective():
        if connective == "or":
            alternatives.append([])
        alternatives[-1].append(parser.comparison())
    return Condition(text, tuple(map(tuple, alternatives)))


class _Parser:
    """Parses one condition from left to right."""

    def __init__(self, text: str, names: Mapping[str, str]) -> None:
        self._text = text
        self._names = names
        self._at = 0
        self._next(_SPACE)

    def comparison(self) -> LimitComparison:
        start, name = self._at, self._next(_NAME)
        if name is None or name[1] not in self._names:
            raise self._error("expected a name") if name is None else self._error("unknown name", start)
        sign = self._next(_OPERATOR)
        if sign is None:
            raise self._error(f"expected one of {' '.join(_OPERATORS)}")
        start, number = self._at, self._next(_NUMBER)
        if number is None:
            raise self._error("expected a number")
        unit_start, match = self._at, self._next(_UNIT)
        unit = match[1] if match else ""
        if unit not in _UNITS:
            raise self._error(f"unknown unit (there are {', '.join(filter(None, _UNITS))})", unit_start)
        allowed = _UNITS_OF.get(self._names[name[1]], tuple(_UNITS))
        if unit not in allowed:
            units = " or ".join(filter(None, allowed)) or "none"
            raise self._error(f"{name[1]} has another unit ({units})", unit_start)
        # The exponent is adjusted, because a division can give a neighbouring float: 0.7% must be exactly 0.007
        limit = float(f"{number[2]}e{int(number[3] or 0) + _UNITS[unit]}")
        if math.isinf(limit):
            raise self._error("too large a number", start)
        return LimitComparison(name[1], sign[1], limit, number[1], unit)

    def connective(self) -> str:
        """Return the next ``and`` or ``or``; an empty string at the end."""
        connective = self._next(_CONNECTIVE)
        if connective is None and self._at < len(self._text):
            raise self._error("expected 'and', 'or' or the end")
        return connective[1].lower() if connective else ""

    def _next(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Return the match of a pattern at the present position, and move behind it."""
        match = pattern.match(self._text, self._at)
        self._at = match.end() if match else self._at
        return match

    def _error(self, what: str, at: int | None = None) -> ValueError:
        match = _QUOTED.search(self._text, self._at if at is None else at)
        found, column = (repr(match[0]), match.start() + 1) if match else ("the end", len(self._text) + 1)
        names = ", ".join(sorted(self._names))
        example = "error_rate > 1%" if "error_rate" in self._names else f"{min(self._names)} > 10"
        return ValueError(
            f"--fail-if {self._text!r}: {what}, found {found} at character {column}; the names are: {names}; "
            f"an example: {example!r}"
        )


def _readable(value: float) -> str:
    """Format a number: whole numbers with all digits, others with six."""
    is_whole = abs(value) < _EXACT_LIMIT and value == int(value)
    return str(int(value)) if is_whole else f"{value:.6g}"
