"""Conditions under which a job counts as failed, such as ``p99 > 2s or error_rate > 1%``.

A condition is comparisons of a name with a number, joined by ``and`` and ``or``. Nothing in it is ever run: it is read
letter by letter. Knows neither what the names mean nor where their values come from.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import cast

# The longer ones first, or `>=` would be read as `>` and a stray `=`
_OPERATORS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    ">=": (operator.ge, "at least"),
    "<=": (operator.le, "at most"),
    "==": (operator.eq, "equal to"),
    "!=": (operator.ne, "not"),
    ">": (operator.gt, "above"),
    "<": (operator.lt, "below"),
}

# What a unit goes with; a name without a kind takes all
_UNITS_OF = {"number": ("",), "share": ("", "%"), "seconds": ("", "s", "ms", "us")}

_UNITS = {"": 0, "%": -2, "s": 0, "ms": -3, "us": -6}  # powers of ten

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_OPERATOR = re.compile("|".join(map(re.escape, _OPERATORS)))
_NUMBER = re.compile(r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:[eE]([+-]?[0-9]{1,4}))?")
_UNIT = re.compile(r"%|(?!(?:and|or)\b)[A-Za-z]+", re.IGNORECASE)
_JOINT = re.compile(r"(?:and|or)\b", re.IGNORECASE)
_NEXT = re.compile(r"[A-Za-z0-9_.]+|\S{1,3}")  # what an error message shows

_WHOLE_LIMIT = 1e15  # whole numbers below it are shown with all their digits


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison of a value with a limit.

    Attributes:
        name: Whose value is compared.
        operator: One of ``> >= < <= == !=``.
        limit: What it is compared with, in the value's own unit: seconds, or a share of 1.
        number: The limit as it was written, without its unit.
        unit: The unit as it was written: ``%``, ``s``, ``ms``, ``us`` or none.
    """

    name: str
    operator: str
    limit: float
    number: str
    unit: str

    def holds(self, values: Mapping[str, float]) -> bool:
        """Whether it does; never for a value that is missing or not a number, ``!=`` included."""
        value = values.get(self.name, math.nan)
        return not math.isnan(value) and _OPERATORS[self.operator][0](value, self.limit)

    def described(self, value: float) -> str:
        """Say how a value compares, in the unit of the limit: ``p99 is 3.2s, above 2s``."""
        shown = _shown(value * 10.0 ** -_UNITS[self.unit])
        if value != self.limit and shown == _shown(float(self.number)):  # it is not far from it
            shown = repr(value * 10.0 ** -_UNITS[self.unit])
        return f"{self.name} is {shown}{self.unit}, {_OPERATORS[self.operator][1]} {self.number}{self.unit}"


@dataclass(frozen=True, slots=True)
class Condition:
    """Comparisons joined by ``and`` and ``or``, of which ``and`` binds tighter.

    Attributes:
        text: The condition as it was written.
        alternatives: It holds if all comparisons of one of these hold.
    """

    text: str
    alternatives: tuple[tuple[Comparison, ...], ...]

    def check(self, values: Mapping[str, float]) -> list[str]:
        """Return which comparisons made it hold, as text; none if it does not.

        Args:
            values: The value of each name. One that is missing or NaN (the p99 of no calls) fails its comparison.
        """
        holding = (all_of for all_of in self.alternatives if all(each.holds(values) for each in all_of))
        told = (each.described(values[each.name]) for all_of in holding for each in all_of)
        return list(dict.fromkeys(told))


def parse(text: str, names: Collection[str] | Mapping[str, str]) -> Condition:
    """Read a condition such as ``failed >= 1 and calls < 100``.

    Args:
        text: Comparisons (``> >= < <= == !=``) of a name with a number, which may have a unit: ``%`` for hundredths,
            ``s``, ``ms``, ``us`` for seconds and their parts.
        names: The names that there are; in a mapping, also what each is: a ``number``, a ``share`` of 1, ``seconds``.

    Raises:
        ValueError: It cannot be read; the message names what is wrong and where, and the names that there are.
    """
    reader = _Reader(text, names)
    alternatives = [[reader.comparison()]]
    while joint := reader.joint():
        if joint == "or":
            alternatives.append([])
        alternatives[-1].append(reader.comparison())
    return Condition(text, tuple(map(tuple, alternatives)))


class _Reader:
    """Reads one condition from its beginning to its end."""

    def __init__(self, text: str, names: Collection[str] | Mapping[str, str]) -> None:
        self._text = text
        self._names = names
        self._kinds = dict(cast("Mapping[str, str]", names)) if isinstance(names, Mapping) else dict[str, str]()
        self._at = 0
        self._pass_space()

    def comparison(self) -> Comparison:
        start, name = self._at, self._taken(_NAME)
        if name is None or name[0] not in self._names:
            raise self._error("expected a name") if name is None else self._error("unknown name", start)
        sign = self._taken(_OPERATOR)
        if sign is None:
            raise self._error(f"expected one of {' '.join(_OPERATORS)}")
        start, number = self._at, self._taken(_NUMBER)
        if number is None:
            raise self._error("expected a number")
        unit_start, unit = self._at, self._taken(_UNIT)
        letters = unit[0] if unit else ""
        kind = self._kinds.get(name[0])
        if kind is not None and letters in _UNITS and letters not in _UNITS_OF[kind]:
            known = " or ".join(filter(None, _UNITS_OF[kind])) or "none"
            raise self._error(f"{name[0]} has another unit ({known})", unit_start)
        if letters not in _UNITS:
            raise self._error(f"unknown unit (there are {', '.join(filter(None, _UNITS))})", unit_start)
        # By its digits, not by a division: 0.7% is then the very number that 0.007 is
        limit = float(f"{number[1]}e{int(number[2] or 0) + _UNITS[letters]}")
        if math.isinf(limit):
            raise self._error("too large a number", start)
        return Comparison(name[0], sign[0], limit, number[0], letters)

    def joint(self) -> str:
        """Return the ``and`` or ``or`` that comes next, nothing at the end."""
        joint = self._taken(_JOINT)
        if joint is None and self._at < len(self._text):
            raise self._error("expected 'and', 'or' or the end")
        return joint[0].lower() if joint else ""

    def _taken(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Pass over what comes next if the pattern matches it, and over the space behind it."""
        found = pattern.match(self._text, self._at)
        if found:
            self._at = found.end()
            self._pass_space()
        return found

    def _pass_space(self) -> None:
        self._at = len(self._text) - len(self._text[self._at :].lstrip())

    def _error(self, what: str, at: int | None = None) -> ValueError:
        at = self._at if at is None else at
        found = _NEXT.search(self._text, at)
        found_text, place = (repr(found[0]), found.start() + 1) if found else ("the end", len(self._text) + 1)
        names = ", ".join(sorted(self._names))
        return ValueError(
            f"{self._text!r}: {what}, found {found_text} at character {place}; the names are: {names}; "
            f"an example: {'error_rate > 1%' if 'error_rate' in self._names else f'{min(self._names)} > 10'!r}"
        )


def _shown(value: float) -> str:
    """Write a number for people: whole ones with all their digits, others with six."""
    whole = abs(value) < _WHOLE_LIMIT and value == int(value)
    return str(int(value)) if whole else f"{value:.6g}"
