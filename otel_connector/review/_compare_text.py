"""Formats a comparison as text: figures with their units, changes, verdicts, and a report in Markdown.

Knows nothing of how a comparison is computed, and nothing of terminals.

Used by ``cli._compare_view``, ``cli._review_command`` and ``review._compare_html``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from otel_connector._record import one_line
from otel_connector._units import NONE, counted, duration, listed_files, moment, rate, share, size
from otel_connector.review._comparison import (
    LARGER_THAN_NOISE,
    SLOW_CALLS,
    Compared,
    Comparison,
    Difference,
    FigureVerdict,
    Groups,
    OnlyIn,
    Outage,
    Run,
)
from otel_connector.review._formats import escaped, markdown_table, verdict_in_markdown
from otel_connector.review._noise import BATCHES
from otel_connector.review._verdict_text import Sentences, sentences, texts_of

_MOST_IN_TITLE = 3  # logs of a run
_MOST_NAMED = 3  # groups in a sentence
_TWICE = 2.0  # times the change of all calls, from which a group is named
_FEWEST_MISSED = 10  # calls to a host that a run of this length should have; fewer may be missing by chance
_PREPOSITIONS = {"project": "in", "host": "at", "endpoint": "at"}
_NAME_LIMIT = 200  # characters of a name from a log
_LABELS = {
    "calls_per_second": "calls per second",
    "error_rate": "error rate",
    "slow_share": "slow calls",
    "bytes_per_call": "bytes per call",
}
_FORMATS: dict[str, Callable[[float], str]] = {
    "{call}": "{:,.0f}".format,
    "{call}/s": rate,
    "1": share,
    "s": duration,
    "By": size,
}
_FACTOR = 9.995  # relative change from which it is shown as a factor: 1,000 % would be the next number
_LEAST_P = 0.0005  # smallest p that three decimals show
_UNDECIDED = ("too few to tell", "too noisy to tell")
_VISIBLE = 0.2  # relative change from which an undecided figure is named in the headline
_LITTLE = 0.01  # probability by chance, without the correction, from which an undecided share of a group is named
_SHOWN = ("error_rate", "p50", "p99")  # figures that are named although they are the same
_UNKNOWN = ("too few to tell", "too noisy to tell", "not tested")


def label(row: Difference) -> str:
    """Return the name of a figure. An error class is indented, below the error rate."""
    return f"  {name(row.error)}" if row.error else _LABELS.get(row.figure, row.figure)


def name(text: str) -> str:
    """Return a name from a log as one line, not too long and not empty."""
    return one_line(text, _NAME_LIMIT) or "(none)"


def amount(value: float, unit: str) -> str:
    """Return a value, or a difference, with its unit."""
    if not math.isfinite(value):
        return NONE
    return f"{'-' if value < 0 else ''}{_FORMATS[unit](abs(value))}"


def difference(row: Difference) -> str:
    """Return `after` minus `before` with a sign; for shares in percentage points."""
    text = amount(row.absolute, row.unit).replace("%", "pp")
    return f"+{text}" if row.absolute > 0 else text


def change(row: Difference) -> str:
    """Return the difference as a share of `before`, or as a factor."""
    if math.isnan(row.relative):
        return NONE
    if math.isinf(row.relative):
        return "new"
    if row.relative >= _FACTOR:
        return f"x {row.relative + 1:,.1f}"
    return f"{row.relative * 100:+.1f} %"


def noise(row: Difference) -> str:
    """Return the noise of a figure."""
    text = amount(row.noise, row.unit)
    return text if text == NONE else f"±{text.replace('%', 'pp')}"


def p_value(row: Difference) -> str:
    """Return the p-value with three decimals."""
    if math.isnan(row.p):
        return NONE
    return f"{row.p:.3f}" if row.p >= _LEAST_P else "<0.001"


def headline(comparison: Comparison) -> list[Sentences]:
    """Return what became better or worse: the outages, all calls apart from them, single groups, and the undecided."""
    lines = [_outage(each, comparison) for each in comparison.outages]
    tested = _tested(comparison.total.differences)
    if any(each.finding.kind == "failures" for each in comparison.outages):
        before, after = (
            share(each.failed / each.calls) if each.calls else NONE for each in (comparison.before, comparison.after)
        )
        lines.append(Sentences(f"All calls: {before} -> {after} failed."))
    if comparison.outages:
        tested = f"{all_calls(comparison).removeprefix('All calls ').capitalize()}: {tested[0].lower()}{tested[1:]}"
    lines += map(Sentences, (tested, *_of_groups(comparison), *_without_calls(comparison)))
    lines += map(Sentences, _number_of_calls(comparison))
    if undecided := [_undecided(row) for row in comparison.total.differences if _is_visible(row)]:
        lines.append(Sentences(f"Not decided: {'; '.join(undecided)}"))
    lines += map(Sentences, _undecided_groups(comparison))
    return lines


def texts(comparison: Comparison) -> list[str]:
    """Return the headline as texts; details are indented."""
    return texts_of(headline(comparison))


def _outage(each: Outage, comparison: Comparison) -> Sentences:
    of_run = comparison.before if each.run == "before" else comparison.after
    found = sentences(each.finding, of_run)
    label = each.verdict[0].upper() + each.verdict[1:]
    return Sentences(f"{label} ({each.run}): {found.text}", found.details)


def _tested(rows: Sequence[Difference]) -> str:
    """Return one sentence about everything that became better or worse for all calls."""
    parts = list[str]()
    for verdict in LARGER_THAN_NOISE:
        if found := [_changed(row) for row in rows if row.verdict == verdict]:
            parts.append(f"{verdict}: {', '.join(found)}")
    if parts:
        text = "; ".join(parts)
        return text[0].upper() + text[1:]
    if all(row.verdict in _UNKNOWN for row in rows):
        reason = next((row.reason for row in rows if row.reason), "")
        return _with("Too few to tell", reason)
    shown = (
        f"{label(row)} {' / '.join(figures(row))}"
        for row in rows
        if row.figure in _SHOWN and row.verdict not in _UNDECIDED
    )
    return _with("No difference of all calls is larger than noise", ", ".join(shown))


def _changed(row: Difference) -> str:
    """Return the name of a figure with its change; a share that was zero has none, so with its values."""
    return f"{label(row).strip()} {change(row) if math.isfinite(row.relative) else ' -> '.join(figures(row))}"


def _with(statement: str, details: str) -> str:
    return f"{statement}: {details}" if details else statement


def _of_groups(comparison: Comparison) -> Iterator[str]:
    """Yield sentences about the marks of the tables that all calls do not have, or only with half of the change."""
    total = comparison.total.differences
    named: dict[tuple[str, str, FigureVerdict], float]
    named = {(row.figure, row.error, row.verdict): abs(row.relative) for row in total}
    for _, one, groups in tables(comparison):
        for verdict in LARGER_THAN_NOISE:
            found = list[str]()
            for group in groups.compared:
                rows = [row for row in group.differences if row.verdict == verdict]
                if new := [row for row in rows if _has_twice(row, named)]:
                    found.append(f"{name(group.name)} {', '.join(map(_changed, new))}")
            if found:
                where = f"{_PREPOSITIONS[one]} {f'one {one}' if len(found) == 1 else counted(len(found), one)}"
                more = [f"and {len(found) - _MOST_NAMED:,} more"] if len(found) > _MOST_NAMED else []
                yield f"{verdict.capitalize()} {where}: {'; '.join(found[:_MOST_NAMED] + more)}"


def _has_twice(row: Difference, named: Mapping[tuple[str, str, FigureVerdict], float]) -> bool:
    return abs(row.relative) >= _TWICE * named.get((row.figure, row.error, row.verdict), 0.0)


def _without_calls(comparison: Comparison) -> Iterator[str]:
    """Yield sentences about the hosts that one of the runs lacks, and not by chance."""
    before, after, hosts = comparison.before, comparison.after, comparison.hosts
    for only, more, has, lacks, texts in (
        (hosts.only_before, hosts.more[1], before, after, ("second", "before")),
        (hosts.only_after, hosts.more[2], after, before, ("first", "after")),
    ):
        found = [host for host in only if host.calls * min(lacks.calls / has.calls, 1) >= _FEWEST_MISSED]
        left_out = [each for each in comparison.outages if (each.run == "after") is (lacks is after)]
        apart = f", {_apart(left_out)}" if left_out else ""
        for host in found[:_MOST_NAMED]:
            yield f"No calls to {name(host.name)} in the {texts[0]} run{apart}; {host.calls:,} {texts[1]}"
        if len(found) > _MOST_NAMED:
            rest = counted(len(only) + more - _MOST_NAMED, "more host")
            yield f"No calls to {rest} in the {texts[0]} run{apart}"


def _number_of_calls(comparison: Comparison) -> Iterator[str]:
    """Yield a sentence if the runs differ much in their calls: one of them may have stopped."""
    runs = (comparison.before, comparison.after)
    before, after = (run.calls for run in runs)
    if before and after and abs(after - before) >= _VISIBLE * before:
        relative = change(Difference(figure="calls", unit="{call}", before=before, after=after))
        lengths = " -> ".join(duration(run.seconds) for run in runs)
        numbers = f"Calls: {before:,} -> {after:,} ({relative}), in {lengths}."
        yield f"{numbers} Not tested: the URLs may be others, or one of the runs stopped."


def _is_visible(row: Difference) -> bool:
    """Return whether the figures of an undecided row differ so much that a reader would ask."""
    if row.figure == "slow_share":
        return _is_large(row)
    is_visible = math.isfinite(row.absolute) and (row.figure == "error_rate" or abs(row.relative) >= _VISIBLE)
    return row.verdict in _UNDECIDED and not row.error and is_visible


def _undecided_groups(comparison: Comparison) -> Iterator[str]:
    """Yield sentences about the groups without marks of which a figure differs much, although it is not decided."""
    for _, one, groups in tables(comparison):
        if found := [group for group in groups.compared if open_figures(group)]:
            where = f"{_PREPOSITIONS[one]} {f'one {one}' if len(found) == 1 else counted(len(found), one)}"
            named = [f"{name(group.name)} {open_figures(group)}" for group in found[:_MOST_NAMED]]
            more = [f"and {len(found) - _MOST_NAMED:,} more"] if len(found) > _MOST_NAMED else []
            yield f"Not decided {where}: {'; '.join(named + more)}"


def open_figures(group: Compared) -> str:
    """Return the figures of a group without marks that differ much, although it is not decided; empty if none does."""
    rows = group.differences
    if any(row.larger_than_noise for row in rows) or all(row.verdict in _UNKNOWN for row in rows):
        return ""
    return ", ".join(map(_undecided, filter(_is_large, rows)))


def _is_large(row: Difference) -> bool:
    """Return whether a figure was tested, is undecided and differs much: a duration twice, a share by little chance."""
    if row.verdict not in _UNDECIDED or row.error or math.isnan(row.p):
        return False
    return row.p <= _LITTLE if row.unit == "1" else abs(row.absolute) >= min(row.before, row.after) > 0


def _undecided(row: Difference) -> str:
    return f"{label(row)} {' -> '.join(figures(row))} ({row.reason})"


def counts(comparison: Comparison) -> dict[str, int]:
    """Return how often the output says better, and worse: lines about outages and slow stretches, marked figures."""
    shown = [comparison.total, *(group for _, _, groups in tables(comparison) for group in groups.compared)]
    verdicts: list[str] = [each.verdict for each in comparison.outages]
    verdicts += [row.verdict for each in shown for row in each.differences]
    return {name: verdicts.count(name) for name in ("better", "worse")}


def title(comparison: Comparison) -> str:
    """Return the names of the logs of both runs."""
    return f"{_files(comparison.after, _MOST_IN_TITLE)} against {_files(comparison.before, _MOST_IN_TITLE)}"


def _files(which: Run, most: int | None) -> str:
    return listed_files([one_line(Path(path).name, _NAME_LIMIT) for path in which.files], most)


def run(which: Run, most: int | None = None) -> str:
    """Return the names of at most `most` files, the number of calls and the period of a run."""
    files = _files(which, most)
    if not which.start:
        return f"{files}: no calls"
    return f"{files}: {counted(which.calls, 'call')} in {duration(which.seconds)} from {moment(which.start)} UTC"


def method(comparison: Comparison) -> str:
    """Return how noise and differences were told apart."""
    tests = {row.test for group in comparison.groups for row in group.differences if row.test}
    return (
        f"Noise is how much a figure differs between {BATCHES} batches of its own run: equal intervals of time. "
        f"A difference is larger than noise at {comparison.confidence * 100:.4g} % confidence for each table as a "
        f"whole (Holm's correction), and if it is {comparison.minimum * 100:.3g} % or more. "
        f"Tests: {'; '.join(sorted(tests)) or 'none, because there are too few calls'}. "
        f"Slow calls take more than {SLOW_CALLS} times the median of the first run."
    )


def all_calls(comparison: Comparison) -> str:
    """Return the title of the table of all calls."""
    return f"All calls {_apart(comparison.outages)}".rstrip()


def _apart(left_out: Sequence[Outage]) -> str:
    """Return what is left out of a comparison."""
    kinds = [each.finding.kind for each in left_out]
    nouns = ("outages", "slow stretches") if len(kinds) > 1 else ("outage", "slow stretch")
    named = [noun for kind, noun in zip(("failures", "slower"), nouns, strict=True) if kind in kinds]
    return f"apart from the {' and '.join(named)}" if named else ""


def tables(comparison: Comparison) -> Iterator[tuple[str, str, Groups]]:
    """Yield the tables of projects, hosts and endpoints to show. A single group with all calls needs no table."""
    for title, one, groups in (
        ("Projects", "project", comparison.projects),
        ("Hosts", "host", comparison.hosts),
        ("Endpoints", "endpoint", comparison.endpoints),
    ):
        if len(groups.compared) != 1 or groups.only_before or groups.only_after or any(groups.more):
            yield title, one, groups


def marked(group: Compared) -> list[Difference]:
    """Return the figures that differ by more than noise."""
    return [row for row in group.differences if row.larger_than_noise]


def rest(groups: Groups) -> Iterator[tuple[str, str]]:
    """Yield statements about the groups without marks, each with the names of the groups it is about."""
    unmarked = [group for group in groups.compared if not marked(group)]
    few = [group for group in unmarked if all(row.verdict in _UNKNOWN for row in group.differences)]
    undecided = [group for group in unmarked if open_figures(group)]
    same = [group for group in unmarked if group not in few and group not in undecided]
    for statement, names in (
        ("Nothing larger than noise", [name(group.name) for group in same]),
        ("Not decided", [f"{name(group.name)} {open_figures(group)}" for group in undecided]),
        ("Too few to tell", [name(group.name) for group in few]),
        ("Only before", _with_calls(groups.only_before, groups.more[1])),
        ("Only after", _with_calls(groups.only_after, groups.more[2])),
        ("Not compared", [f"{groups.more[0]:,} more with fewer calls"] if groups.more[0] else []),
    ):
        if names:
            yield statement, ", ".join(names)


def _with_calls(only: Sequence[OnlyIn], more: int) -> list[str]:
    names = [f"{name(each.name)} ({counted(each.calls, 'call')})" for each in only]
    return [*names, f"and {more:,} more"] if more else names


def markdown(comparison: Comparison) -> str:
    """Return a report in Markdown, with tables in GitHub's syntax."""
    lines = ["# Before and after", "", *verdict_in_markdown(headline(comparison)), ""]
    lines += [f"- before: {escaped(run(comparison.before))}", f"- after: {escaped(run(comparison.after))}"]
    lines += ["", f"## {all_calls(comparison)}", "", *_markdown_table("Figure", [("", comparison.total.differences)])]
    if comparison.total.more_errors:
        lines += ["", f"{comparison.total.more_errors:,} rarer error classes are not shown."]
    for title, one, groups in tables(comparison):
        lines += ["", f"## {title}", ""]
        rows = [(group.name, found) for group in groups.compared if (found := marked(group))]
        if rows:
            lines += [*_markdown_table(f"Larger than noise, by {one}", rows), ""]
        lines += [f"- {statement}: {escaped(names)}" for statement, names in rest(groups)]
    return "\n".join([*lines, "", escaped(method(comparison)), ""])


def _markdown_table(first: str, groups: Sequence[tuple[str, Sequence[Difference]]]) -> Iterator[str]:
    rows = (
        [
            f"{f'{name(group)}: ' if group or first != 'Figure' else ''}{label(row).strip()}",
            *(*figures(row), difference(row), change(row), noise(row), p_value(row), verdict(row)),
        ]
        for group, differences in groups
        for row in differences
    )
    head = (first, "Before", "After", "Difference", "Change", "Noise", "p", "Verdict")
    return markdown_table(head, rows, texts=(0, 7))


def figures(row: Difference) -> tuple[str, str]:
    """Return the values before and after."""
    return amount(row.before, row.unit), amount(row.after, row.unit)


def verdict(row: Difference) -> str:
    """Return the verdict, with the reason if there is one."""
    return f"{row.verdict}: {row.reason}" if row.reason else row.verdict
