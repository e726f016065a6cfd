"""Writes a verdict as sentences: those of the terminal, of HTML, of Markdown and of JSON.

Every sentence has its numbers, and every rate its count. Knows neither DuckDB nor how the sentences are laid out.

Used by ``cli._review_command``, ``review._compare_text``, ``review._formats``, ``review._html`` and ``review._report``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone, tzinfo
from itertools import chain, repeat
from typing import Protocol

from otel_connector._record import one_line
from otel_connector._units import counted, duration, moment, rate, share, size
from otel_connector.review._next_step import next_steps
from otel_connector.review._phrases import (
    MOST_NAMES,
    NAME_LIMIT,
    classes,
    error_text,
    names_of,
    other_places,
    part_of,
    spared,
    the_other,
    time_share,
    where,
)
from otel_connector.review._trace_url import TraceURL
from otel_connector.review._verdict import Finding, Stretch, Verdict

MOST = 4
"""How many findings are written; JSON has all."""

_OUTAGE = 0.5  # share of failures from which a stretch is an outage
_FEWEST_OF_OUTAGE = 4  # failures
# Classes of failures after a response: the server was there
_ANSWERED = ("DecodeFailed", "Body", "ResultRejected", "HTTPStatusError 4", "RedirectRefused", "InvalidURL")


_NOTHING = "Nothing unusual: failures, durations and sizes of each host and endpoint are even over the whole run."


@dataclass(frozen=True, slots=True)
class Sentences:
    """A sentence or two about one thing.

    Attributes:
        text: The text.
        details: Further sentences about it.
        link: The link to a trace at its end; empty for none.
    """

    text: str
    details: tuple[str, ...] = ()
    link: str = ""

    @property
    def whole(self) -> str:
        """The text with the link."""
        return f"{self.text}   {self.link}" if self.link else self.text


@dataclass(frozen=True, slots=True)
class Wording:
    """How times and calls are written.

    Attributes:
        zone: The time zone of the times.
        traces: The template of the links to traces; None for none.
        command: The beginning of the command that fetches the rest; empty if it is not known.
    """

    zone: tzinfo = timezone.utc
    traces: TraceURL | None = None
    command: str = ""


UTC = Wording()


def lines(verdict: Verdict, wording: Wording = UTC) -> list[Sentences]:
    """Return the verdict: whether it worked, the worst things, and what to do next."""
    shown = verdict.findings[:MOST]
    writer = _Writer(verdict, wording)
    found = [Sentences(" ".join(_work(verdict)))]
    if not shown and not verdict.too_few:
        found.append(_line(_NOTHING, *_mixed(verdict)))
    found += [writer.line(each) for each in shown]
    if more := len(verdict.findings) - len(shown):
        found.append(Sentences(f"{counted(more, 'further finding')}: see --json."))
    if verdict.unfinished:
        found.append(Sentences(_TORN))
    steps = zip(
        chain(["Next"], repeat("Or")), next_steps(verdict, shown, wording.command, wording.traces), strict=False
    )
    return [*found, *(Sentences(f"{label}: {step}", link=link) for label, (step, link) in steps)]


_TORN = (
    "The log ends in a torn row: the program was killed, the machine lost power, or a program is still writing the log."
)


def texts(verdict: Verdict, wording: Wording = UTC) -> list[str]:
    """Return the lines as texts; details are indented."""
    return texts_of(lines(verdict, wording))


def texts_of(found: Iterable[Sentences]) -> list[str]:
    """Return sentences as texts; details are indented."""
    return [text for each in found for text in (each.whole, *(f"  {detail}" for detail in each.details))]


def sentences(finding: Finding, run: Period, wording: Wording = UTC) -> Sentences:
    """Return the sentences about a finding of a run."""
    return _Writer(run, wording).line(finding)


def period_of(verdict: Verdict, wording: Wording = UTC) -> str:
    """Return the period of the run."""
    start, end = (moment(_local(each, wording)) for each in (verdict.start, verdict.end))
    return f"{start} to {end} {_zone(verdict.start, wording)} ({duration(verdict.seconds)})"


def _local(time: datetime | None, wording: Wording) -> datetime | None:
    return None if time is None else time.replace(tzinfo=timezone.utc).astimezone(wording.zone)


def _zone(time: datetime | None, wording: Wording) -> str:
    local = _local(time, wording)
    return "" if local is None else local.tzname() or ""


def _work(verdict: Verdict) -> Iterator[str]:
    """Yield the answer to "did it work?"."""
    urls, calls = verdict.urls, verdict.calls
    if not calls:
        yield "No calls."
        return
    if verdict.too_few:
        failed = f"{verdict.failed:,} failed" if verdict.failed else "all succeeded"
        yield f"{counted(calls, 'call')}, {failed}. Too few to compare parts of the run."
        return
    wanted = urls.total + (urls.missing or 0)
    done = f"{urls.done:,} of {wanted:,} URLs were" if urls.done < wanted else f"All {wanted:,} URLs were"
    done = "The only URL was" if urls.done == wanted == 1 else done
    is_repeated = calls != urls.total
    yield f"{done} fetched{f' in {calls:,} calls' if is_repeated else ''}."
    if urls.retried:
        of_them = f"{urls.retried:,} of them ({share(urls.retried / urls.done)})" if urls.done > 1 else "It"
        yield f"{of_them} succeeded only after another attempt{', in one call or more' if is_repeated else ''}."
    if is_repeated and urls.failed:
        yield f"{urls.failed:,} failed for good ({share(urls.failed / urls.total)})."
    if verdict.failed:
        what = counted(verdict.failed, "call") if is_repeated else f"{verdict.failed:,}"
        yield f"{what} failed ({share(verdict.failed / calls)})."
    if urls.recovered:
        yield f"{counted(urls.recovered, 'URL')} failed in one call and succeeded in another."
    yield f"Median {duration(verdict.p50)}, p99 {duration(verdict.p99)}."


def _mixed(verdict: Verdict) -> Iterator[str]:
    """Yield what differs over time because the calls go to other hosts or endpoints."""
    mixed, quarters = verdict.mixed, "The quarters of the run have other hosts or endpoints"
    if mixed.durations:
        low, high = map(duration, mixed.durations)
        yield f"{quarters}: their median durations are {low} to {high}."
    if mixed.sizes:
        low, high = map(size, mixed.sizes)
        yield f"{quarters}: the mean sizes of their bodies are {low} to {high}."


class Period(Protocol):
    """The part of a run that is known of it."""

    @property
    def start(self) -> datetime | None: ...
    @property
    def end(self) -> datetime | None: ...
    @property
    def calls(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def seconds(self) -> float: ...


class _Writer:
    """Writes the findings of one run."""

    def __init__(self, run: Period, wording: Wording) -> None:
        self._run = run
        self._wording = wording

    def line(self, finding: Finding) -> Sentences:
        by_kind: dict[str, Callable[[Finding], Sentences]] = {
            "failures": self._failures,
            "slow": self._slow,
            "slower": self._slower,
            "tail": self._tail,
            "same size": self._same_size,
            "larger bodies": self._bodies,
            "smaller bodies": self._bodies,
            "gap": self._gap,
            "clock": self._clock,
            "stopped": self._stopped,
            "waits": self._waits,
            "retries": self._retries,
        }
        return by_kind[finding.kind](finding)

    def _failures(self, found: Finding) -> Sentences:
        share_failed = found.events / found.calls
        is_outage = (
            (found.stretches or found.by != "endpoint")
            and found.events >= _FEWEST_OF_OUTAGE
            and share_failed >= _OUTAGE
            and not found.classes[0][0].startswith(_ANSWERED)
        )
        label = "Outage" if is_outage else "Failed"
        to = "" if found.rest and not found.by else f" {where(found)}"
        failed = f"{found.events:,} of {counted(found.calls, 'call')}{to} failed ({classes(found)})"
        text = f"{label}: {self.when(found)}. {failed}."
        failed = f"failed with {one_line(found.classes[0][0], NAME_LIMIT)}" if found.one_class else "failed"
        is_rest = found.one_class and found.calls + found.other_calls == self._run.calls
        there = other_places(found).capitalize() if is_rest and found.by and not found.stretches else "Elsewhere"
        elsewhere = f"{there}: {part_of(found.other_events, found.other_calls)} {failed}. {spared(found)}".rstrip()
        left = 0 if found.rest and not found.by else self._run.failed - found.events - found.other_events
        others = the_other(left, found) if left > 0 else ""
        cost = f"The failed call{'s' * (found.events > 1)} took {duration(found.seconds)}, {time_share(found)}."
        reasons = self._reasons(found)
        return _line(text, reasons, elsewhere if found.other_calls else "", others, cost if found.seconds else "")

    def _reasons(self, found: Finding) -> str:
        """Return from when on there was which error, if there are several one after the other."""
        number = len(found.reasons)
        parts = [f"from {self.at(each.start)} {error_text(each.error)}" for each in found.reasons[:MOST_NAMES]]
        parts += [f"{number - MOST_NAMES} more changes"] if number > MOST_NAMES else []
        return f"Reasons: {'; '.join(parts)}." if number > 1 else ""

    def _slow(self, found: Finding) -> Sentences:
        return _line(
            f"Slow: calls {where(found)} take {duration(found.figure)} (median) against {duration(found.baseline)} for "
            f"{other_places(found)}. {share(found.calls / self._run.calls)} of the calls, {time_share(found)}.",
            f"{'They are' if len(found.names) > 1 else 'It is'} slow {self.when(found)}.",
        )

    def _slower(self, found: Finding) -> Sentences:
        return _line(
            f"Slower: {self.when(found)}. The calls {where(found)} took {duration(found.figure)} (median), and "
            f"{duration(found.baseline)} in the rest of the run: {found.figure / found.baseline:,.1f} times as long.",
            f"{counted(found.calls, 'call')} in {'them' if len(found.stretches) > 1 else 'it'}, "
            f"{counted(found.other_calls, 'call')} in the rest.",
        )

    def _tail(self, found: Finding) -> Sentences:
        elsewhere = "in the rest of the run" if found.stretches else f"for {other_places(found)}"
        return _line(
            f"Tail: {self.when(found)}. {part_of(found.events, found.calls)} {where(found)} took more than 10 times "
            f"the median: p99 {duration(found.figure)} against {duration(found.baseline)} {elsewhere}.",
            f"They took {duration(found.seconds)}, {time_share(found)}.",
        )

    def _same_size(self, found: Finding) -> Sentences:
        low, high = found.sizes
        status = f"status {found.example.response_code}" if found.example else "a success"
        return _line(
            f"Same size: {self.when(found)}. {found.events:,} of {counted(found.calls, 'successful call')} "
            f"{where(found)} have {found.figure:,.0f} bytes each; in the rest of the run, the sizes are {low:,} to "
            f"{high:,} bytes.",
            f"They have {status}{': look at one, it may be an error page' if found.figure else ' and no body'}.",
        )

    def _bodies(self, found: Finding) -> Sentences:
        if found.quarters:
            sizes = ", ".join(map(size, found.quarters))
            return _line(
                f"Larger bodies: those of the calls {where(found)} grow from quarter to quarter of the run: {sizes} "
                "(medians)."
            )
        sizes = f"have {size(found.figure)} (median), and {size(found.baseline)} in the rest of the run"
        return _line(f"{found.kind.capitalize()}: {self.when(found)}. Those of the calls {where(found)} {sizes}.")

    def _gap(self, found: Finding) -> Sentences:
        return _line(f"No calls: {self._span(found.stretches[0])}. No call started in it.")

    def _clock(self, found: Finding) -> Sentences:
        return _line(
            f"Clock: at {self.at(found.stretches[0].start)} it was set back by {duration(found.seconds)}: calls "
            "after it have times that calls before it have, too.",
            "Or rows of another run were appended.",
        )

    def _stopped(self, found: Finding) -> Sentences:
        speed = rate(self._run.calls / self._run.seconds) if self._run.seconds else "one call"
        last = f" The last row is of {self.at(self._run.end)}. Up to then {speed}." if self._run.calls else ""
        return _line(f"Stopped: {found.events:,} of {found.calls + found.events:,} URLs have no row.{last}")

    def _waits(self, found: Finding) -> Sentences:
        between = self._run.seconds - found.seconds
        calls, inside = found.calls - found.beside_calls, found.beside_calls
        relation = between > 0 and (
            f"Between the pauses, the run made {counted(calls, 'call')} to it in {duration(between)}"
            f"{f', {rate(calls / between, found.baseline)}' if calls else ''}"
            f"{f', and {inside:,} during them' if inside else ''}. Over the whole run, these are "
            f"{rate(found.baseline)}: below this rate, a quota would not have been exceeded."
        )
        (pauses,) = found.stretches
        return _line(
            f"Waiting: {names_of(found)} asked for pauses of {duration(found.figure)} (429, median), "
            f"{counted(found.beside_events, 'time')}. {duration(found.seconds)} of the "
            f"{duration(self._run.seconds)} were pauses ({share(found.share_of_time)}), "
            f"from {self.at(pauses.start)} to {self.at(pauses.end)}.",
            f"{part_of(found.events, found.calls)} to it were answered by 429 at least once.",
            relation or "",
        )

    def _retries(self, found: Finding) -> Sentences:
        more = found.retries - sum(number for _, number in found.classes)
        reasons = [f"{one_line(name, NAME_LIMIT)} {number:,}" for name, number in found.classes]
        reasons += [f"other reasons {more:,}"] if more else []
        return _line(
            f"Retries: {self.when(found)}. {part_of(found.events, found.calls)} {where(found)} were attempted again: "
            f"{found.succeeded:,} succeeded, {found.events - found.succeeded:,} failed. "
            f"They had {counted(found.retries, 'retry', 'retries')} ({', '.join(reasons)}).",
            f"Elsewhere: {part_of(found.other_events, found.other_calls)}." if found.other_calls else "",
            f"The waits before them took {duration(found.seconds)}.",
        )

    def when(self, found: Finding) -> str:
        """Return when it happened: the number of several stretches, and the times of the first ones."""
        if found.rest:
            return "in the rest of the run"
        if not found.stretches:
            there = f" there to the last: {self.period(found.period)}" if found.period else " to the last"
            return f"from the first call{there}"
        number, last = len(found.stretches), self.at(found.stretches[-1].end)
        more = f", and {number - MOST_NAMES} more until {last}" if number > MOST_NAMES else ""
        times = f"{', '.join(map(self.period, found.stretches[:MOST_NAMES]))}{more}"
        return times if number == 1 else f"{number} times: {times}"

    def period(self, stretch: Stretch) -> str:
        """Return the start, the end and the length of a stretch."""
        if stretch.start == stretch.end:
            return f"at {self.at(stretch.start)}"
        if stretch.to_end:
            return f"from {self.at(stretch.start)} to the end, {self.at(stretch.end)} ({duration(stretch.seconds)})"
        if stretch.from_start:
            return f"from the start, {self.at(stretch.start)}, to {self.at(stretch.end)} ({duration(stretch.seconds)})"
        return self._span(stretch)

    def _span(self, stretch: Stretch) -> str:
        """Return a stretch between calls."""
        return f"{self.at(stretch.start)} to {self.at(stretch.end)} ({duration(stretch.seconds)})"

    def at(self, time: datetime | None) -> str:
        """Return a time, with the day if the run is longer than its first day."""
        local = _local(time, self._wording)
        days = {
            each.date()
            for each in (_local(self._run.start, self._wording), local, _local(self._run.end, self._wording))
            if each is not None
        }
        return moment(local) if len(days) > 1 or local is None else f"{local:%H:%M:%S}"


def _line(text: str, *details: str) -> Sentences:
    return Sentences(text, tuple(filter(None, details)))
