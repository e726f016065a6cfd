"""Writes parts of the sentences of a verdict: places, counts, and the reasons of failures.

Knows neither times nor the run.

Used by ``review._verdict_text``.
"""

from __future__ import annotations

import re

from otel_connector._record import one_line
from otel_connector._units import counted, share
from otel_connector.review._verdict import Finding

MOST_NAMES = 3
"""Places, or stretches, in a sentence."""

NAME_LIMIT = 120
"""Characters of a host, an endpoint or a class."""

_TEXT_LIMIT = 160  # characters of an error
_NEARLY_ALL = 0.9
_AIOHTTP = re.compile(r"Cannot connect to host .* \[(.*)\]", re.DOTALL)  # the reason is in the brackets


def where(found: Finding) -> str:
    """Return where the calls went, or the project that made them."""
    return f"{'of' if found.by == 'project' else 'to'} {names_of(found)}" if found.by else "to all hosts"


def names_of(found: Finding) -> str:
    """Return the places of a finding; of many their number and the first ones."""
    without = "(none)" if found.by == "project" else "URLs without a host"
    names = ", ".join(one_line(name, NAME_LIMIT) or without for name in found.names[:MOST_NAMES])
    number = len(found.names)
    if number <= MOST_NAMES:
        return f"project{'s' * (number > 1)} {names}" if found.by == "project" else names
    return f"{number:,} of {counted(number + found.others, found.by)} ({names} and {number - MOST_NAMES:,} more)"


def the_other(failures: int, found: Finding) -> str:
    """Return the sentence about failures that neither are in a finding nor elsewhere."""
    if found.one_class:
        return f"Failures of other classes, anywhere in the run: {failures:,}."
    return f"The other {f'{failures:,} failures are' if failures > 1 else 'failure is'} described separately."


def other_places(found: Finding) -> str:
    """Return the places that a finding does not name."""
    return f"the other {counted(found.others, found.by) if found.others > 1 else found.by}"


def spared(found: Finding) -> str:
    """Return the sentence about the other places at the same time; empty if there are none."""
    if not found.others or not found.stretches or not found.beside_calls:
        return ""
    return f"{other_places(found).capitalize()}: {part_of(found.beside_events, found.beside_calls)} in the same time."


def part_of(part: int, whole: int) -> str:
    """Return how many of some calls, with their share."""
    return f"{part:,} of {counted(whole, 'call')}{f' ({share(part / whole)})' if whole else ''}"


def time_share(found: Finding) -> str:
    """Return the share of the time that the events of a finding took."""
    return f"{share(found.share_of_time)} of the time of all calls"


def classes(found: Finding) -> str:
    """Return the classes of the failures, and the message of the most frequent one, if they have no `reasons`."""
    name, number = found.classes[0]
    text = one_line(name, NAME_LIMIT)
    if len(found.reasons) <= 1 and found.example and (message := _message(found.example.error, name.partition(" ")[0])):
        # The message of one of the failures may not be that of all
        text += f"{': ' if found.reasons and ':' in found.reasons[0].error else ', such as: '}{message}"
    if number == found.events:
        return text
    if number >= _NEARLY_ALL * found.events:
        return f"nearly all {text}"
    parts = [f"{count:,} {one_line(other, NAME_LIMIT)}" for other, count in found.classes[1:]]
    more = found.events - sum(count for _, count in found.classes)
    return f"{number:,} {text}; {', '.join([*parts, *([f'{more:,} of other classes'] if more else [])])}"


def error_text(error: str) -> str:
    """Return the class and the message of an error."""
    name = error.partition(":")[0]
    message = _message(error, name)
    return f"{one_line(name, NAME_LIMIT)}{f': {message}' if message else ''}"


def _message(error: str, name: str) -> str:
    """Return the message of an error of a class; of one of aiohttp, the reason."""
    message = error.removeprefix(name).removeprefix(":").strip()
    return one_line(match[1] if (match := _AIOHTTP.fullmatch(message)) else message, _TEXT_LIMIT)
