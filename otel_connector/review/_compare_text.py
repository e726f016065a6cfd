"""A comparison in words: figures with their units, changes, and a report in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from otel_connector._record import one_line
from otel_connector._units import NONE
from otel_connector.review._compare import Compared, Comparison, Difference, Groups, OnlyIn, Run
from otel_connector.review._formats import escaped
from otel_connector.review._noise import STRETCHES

_NAME_LIMIT = 200  # characters of a name from a log
_LABELS = {"calls_per_second": "calls per second", "error_rate": "error rate", "bytes_per_call": "bytes per call"}
_MANY_TIMES = 9.995  # from here on a change is said as a factor
_UNKNOWABLE = ("too few to tell", "too noisy to tell", "not tested")


def label(row: Difference) -> str:
    """Name a figure; an error class is indented below the error rate."""
    return f"  {name(row.error)}" if row.error else _LABELS.get(row.figure, row.figure)


def name(text: str) -> str:
    """Return a name from a log so that it can be shown."""
    return one_line(text, _NAME_LIMIT) or "(none)"


def amount(value: float, unit: str) -> str:
    """Return a figure with its unit, in three digits or more."""
    if not math.isfinite(value):
        return NONE
    match unit:
        case "{call}":
            return f"{value:,.0f}"
        case "1":
            return f"{_digits(value * 100)} %"
        case "s":
            return f"{_digits(value)} s" if abs(value) >= 1 else f"{_digits(value * 1000)} ms"
        case "By":
            return _size(value)
        case _:
            return f"{_digits(value)}{unit.removeprefix('{call}')}"


def _size(value: float) -> str:
    for prefix in ("", "k", "M"):
        if abs(value) < 999.5:  # noqa: PLR2004 - what would be shown as 1,000
            return f"{_digits(value)} {prefix}B"
        value /= 1000
    return f"{_digits(value)} GB"


def _digits(value: float) -> str:
    size = abs(value)
    places = 0 if size >= 99.95 or not size else 1 if size >= 9.995 else 2  # noqa: PLR2004 - three digits
    if 0 < size < 0.1:  # noqa: PLR2004 - two places would leave one digit
        return f"{value:.2g}" if size >= 1e-4 else f"{value:.1e}"  # noqa: PLR2004
    return f"{value:,.{places}f}"


def difference(row: Difference) -> str:
    """Return after less before, with a sign; of shares in percentage points."""
    text = amount(row.absolute, row.unit)
    if row.unit == "1":
        text = text.replace("%", "pp")
    return f"+{text}" if row.absolute > 0 else text


def change(row: Difference) -> str:
    """Return the difference as a share of before, or as a factor."""
    if math.isnan(row.relative):
        return NONE
    if math.isinf(row.relative):
        return "new"
    if row.relative >= _MANY_TIMES:
        return f"x {_digits(row.relative + 1)}"
    return f"{row.relative * 100:+.1f} %"


def noise(row: Difference) -> str:
    """Return what chance alone may make of it."""
    text = amount(row.noise, row.unit)
    return text if text == NONE else f"±{text.replace('%', 'pp')}"


def p_value(row: Difference) -> str:
    """Return p, as far as anybody reads it."""
    if math.isnan(row.p):
        return NONE
    return f"{row.p:.3f}" if row.p >= 0.0005 else "<0.001"  # noqa: PLR2004 - what three places show


def headline(comparison: Comparison) -> str:
    """Say in a line what became better and worse of all calls."""
    rows = comparison.total.differences
    said = [
        f"{verdict}: " + ", ".join(f"{label(row).strip()} {change(row)}" for row in rows if row.verdict == verdict)
        for verdict in ("worse", "better", "more", "less")
        if any(row.verdict == verdict for row in rows)
    ]
    if said:
        text = "; ".join(said)
        return text[0].upper() + text[1:]
    if all(row.verdict in _UNKNOWABLE for row in rows):
        reason = next((row.reason for row in rows if row.reason), "")
        return f"Too few to tell: {reason}"
    return "No difference of all calls is larger than noise"


def run(which: Run) -> str:
    """Say what one of the two is."""
    files = ", ".join(one_line(Path(path).name, _NAME_LIMIT) for path in which.files) or NONE
    if not which.start:
        return f"{files}: no calls"
    return f"{files}: {which.calls:,} calls in {_period(which.seconds)} from {which.start:%Y-%m-%d %H:%M:%S} UTC"


def _period(seconds: float) -> str:
    if seconds < 100:  # noqa: PLR2004 - three digits
        return amount(seconds, "s")
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


def method(comparison: Comparison) -> str:
    """Say how noise was told from difference."""
    tests = {row.test for group in _all_groups(comparison) for row in group.differences if row.test}
    return (
        f"Noise is how much a figure differs between {STRETCHES} equal stretches of time of its own run. "
        f"Larger than it is what differs at {comparison.confidence * 100:.4g} % confidence for each table as a whole "
        f"(Holm's correction), and by {comparison.minimum * 100:.3g} % or more. "
        f"Tests: {'; '.join(sorted(tests)) or 'none, there is too little for any'}."
    )


def _all_groups(comparison: Comparison) -> Iterator[Compared]:
    yield comparison.total
    yield from comparison.projects.compared
    yield from comparison.hosts.compared


def tables(comparison: Comparison) -> Iterator[tuple[str, str, Groups]]:
    """Yield what is to be shown of projects and of hosts: not a single one that has all calls."""
    for title, one, groups in (("Projects", "project", comparison.projects), ("Hosts", "host", comparison.hosts)):
        if len(groups.compared) != 1 or groups.only_before or groups.only_after or any(groups.more):
            yield title, one, groups


def marked(group: Compared) -> list[Difference]:
    """Return the figures that differ by more than noise."""
    return [row for row in group.differences if row.larger_than_noise]


def rest(groups: Groups) -> Iterator[tuple[str, str]]:
    """Yield what there is to say of groups without marks, each with the groups it is said of."""
    quiet = [group for group in groups.compared if not marked(group)]
    few = [group for group in quiet if all(row.verdict in _UNKNOWABLE for row in group.differences)]
    told = [group for group in quiet if group not in few]
    for what, names in (
        ("Nothing larger than noise", [name(group.name) for group in told]),
        ("Too few to tell", [name(group.name) for group in few]),
        ("Only before", _with_calls(groups.only_before, groups.more[1])),
        ("Only after", _with_calls(groups.only_after, groups.more[2])),
        ("Not compared", [f"{groups.more[0]:,} more with fewer calls"] if groups.more[0] else []),
    ):
        if names:
            yield what, ", ".join(names)


def _with_calls(only: Sequence[OnlyIn], more: int) -> list[str]:
    names = [f"{name(each.name)} ({each.calls:,} calls)" for each in only]
    return [*names, f"and {more:,} more"] if more else names


def markdown(comparison: Comparison) -> str:
    """Return a report in Markdown, with tables as GitHub has them."""
    lines = ["# Before and after", "", escaped(headline(comparison)), ""]
    lines += [f"- before: {escaped(run(comparison.before))}", f"- after: {escaped(run(comparison.after))}"]
    lines += ["", "## All calls", "", *_markdown_table("Figure", [("", comparison.total.differences)])]
    if comparison.total.more_errors:
        lines += ["", f"{comparison.total.more_errors:,} rarer error classes are not shown."]
    for title, one, groups in tables(comparison):
        lines += ["", f"## {title}", ""]
        rows = [(group.name, found) for group in groups.compared if (found := marked(group))]
        if rows:
            lines += [*_markdown_table(f"Larger than noise, by {one}", rows), ""]
        lines += [f"- {what}: {escaped(names)}" for what, names in rest(groups)]
    return "\n".join([*lines, "", escaped(method(comparison)), ""])


def _markdown_table(first: str, groups: Sequence[tuple[str, Sequence[Difference]]]) -> Iterator[str]:
    yield f"| {first} | Before | After | Difference | Change | Noise | p | Verdict |"
    yield "|---|--:|--:|--:|--:|--:|--:|---|"
    for group, rows in groups:
        for row in rows:
            what = f"{name(group)}: {label(row).strip()}" if group or first != "Figure" else label(row).strip()
            cells = [what, *figures(row), difference(row), change(row), noise(row), p_value(row), verdict(row)]
            yield "| " + " | ".join(map(escaped, cells)) + " |"


def figures(row: Difference) -> tuple[str, str]:
    """Return before and after."""
    return amount(row.before, row.unit), amount(row.after, row.unit)


def verdict(row: Difference) -> str:
    """Return what came of it, and why if nothing did."""
    return f"{row.verdict}: {row.reason}" if row.reason else row.verdict
