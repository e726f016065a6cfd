"""Says what to do after a run: a command, or a call to look at, the step for the worst finding first.

Knows nothing of how the findings are written.

Used by ``review._verdict_text``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from otel_connector._record import one_line
from otel_connector._units import counted
from otel_connector.review._trace_url import TraceURL
from otel_connector.review._verdict import Finding, Verdict

_NAME_LIMIT = 120  # characters of a host or endpoint
_BELOW = 0.98  # times the rate that a host answered
_WHOLE = 100  # a rate from which it is written without decimals
_EXAMPLES = {
    "gap": "a call before the pause",
    "clock": "a call before the step of the clock",
    "retries": "one of the retried calls",
    "larger bodies": "one of the calls with larger bodies",
    "smaller bodies": "one of the calls with smaller bodies",
}


def next_steps(
    verdict: Verdict, shown: Sequence[Finding], command: str, traces: TraceURL | None
) -> list[tuple[str, str]]:
    """Return the steps, each with the link to its trace; empty for none.

    Args:
        verdict: The verdict.
        shown: Its findings that are written, the worst first.
        command: The beginning of the command that fetches the rest; empty if it is not known.
        traces: The template of the links; None for none.
    """
    worst = shown[0] if shown else None
    left = verdict.urls.left if command else 0
    options, reasons = ["--resume"] * bool(left), [f"{counted(left, 'URL')} left"] * bool(left)
    if worst is not None and worst.kind == "waits":
        slower, reason = _slower(worst, verdict.seconds)
        options.append(slower)
        reasons += [*["all URLs again"] * bool(command and not left), reason]
    fetch = [(f"{' '.join(filter(None, (command, *options)))}   ({'; '.join(reasons)})", "")] * bool(options)
    example = _example(shown, traces)
    is_about_urls = worst is None or worst.kind in {"failures", "stopped", "waits"}
    return [*fetch, *example] if is_about_urls else [*example, *fetch]


def _slower(found: Finding, seconds: float) -> tuple[str, str]:
    """Return the option for a rate below that of a host that refused calls, and the reason."""
    digits = 1 - math.floor(math.log10(found.baseline * _BELOW))
    below = math.floor(found.baseline * _BELOW * 10**digits) / 10**digits
    average = f"the {_per_second(found.baseline)} to {one_line(found.names[0], _NAME_LIMIT)}"
    between, calls = seconds - found.seconds, found.calls - found.beside_calls
    faster = f"; {_per_second(calls / between)} between the pauses" if between > 0 and calls else ""
    return f"--rate {below:g}", f"below {average} over the whole run, pauses included{faster}"


def _per_second(value: float) -> str:
    """Return a rate in the unit of the option, also a slow one."""
    return f"{value:.3g}/s" if value < _WHOLE else f"{value:,.0f}/s"


def _example(shown: Sequence[Finding], traces: TraceURL | None) -> list[tuple[str, str]]:
    """Return the call to look at: that of the worst finding that has one, or its place if the call is not known."""
    for found in shown:
        if (call := found.example) is not None:
            failed = "one of the failed calls" if found.events > 1 else "the failed call"
            what = _EXAMPLES.get(found.kind, "one of these calls" if call.success else failed)
            return [(f"{what}: call_id {call.call_id}", traces.of(call.call_id) if traces is not None else "")]
        if found.kind == "retries" and found.names:
            return [(f"the calls to {one_line(found.names[0], _NAME_LIMIT)}", "")]
    return []
