"""A fetch while it runs, until Ctrl-C or its end, and what is said about it then."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from rich.text import Text

from otel_connector._fetch._fetch import Fetch
from otel_connector._redact import DEFAULT_REDACTED_PARAMS, REDACTED, Redactor
from otel_connector.cli._exit_codes import INTERRUPTED, USAGE, WRONG
from otel_connector.cli._fail_if import Condition
from otel_connector.cli._fetch_view import FetchView, in_the_end
from otel_connector.cli._terminal import complain, moves, say, table, unbreakable
from otel_connector.providers import configure


def _runner() -> tuple[str, Callable[[Coroutine[Any, Any, None]], None]]:
    """Return the event loop's name, and what runs a coroutine on it: uvloop's, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return "asyncio", asyncio.run
    return "uvloop", uvloop.run


def fetch_and_show(run: Fetch, *, quiet: bool) -> None:
    """Run it, show it, and listen for Ctrl-C."""
    console = unbreakable(sys.stderr)
    name, run_on_loop = _runner()
    now = run.progress()
    if not quiet:
        count = "URLs as they come" if now.total is None else f"{now.total:,} {'URL' if now.total == 1 else 'URLs'}"
        say(console, f"{count}, up to {run.options.concurrency} at a time, on {name}")
    telemetry = configure("otel-connector-fetch") if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") else nullcontext()
    with telemetry, suppress(KeyboardInterrupt):
        run_on_loop(_watched(run, None if quiet else FetchView(console, run, moving=moves(console, sys.stderr))))


async def _watched(run: Fetch, view: FetchView | None) -> None:
    loop, fetching = asyncio.get_running_loop(), asyncio.ensure_future(run.run())
    showing: asyncio.Future[None] | None = None

    def interrupted() -> None:
        if not run.stopped:
            run.stop()
            complain(
                f"Stopping when the calls under way ({run.progress().active}) have ended; Ctrl-C ends them at once"
            )
            return
        loop.remove_signal_handler(signal.SIGINT)  # a third one ends the program
        fetching.cancel()

    with suppress(NotImplementedError):  # Windows: there Ctrl-C cancels all of it
        loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        begun = asyncio.ensure_future(run.begun.wait())
        await asyncio.wait({fetching, begun}, return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        if view is not None:
            view.say_what_was_found()
            showing = asyncio.ensure_future(view.show())
        await fetching
    except asyncio.CancelledError:
        if not run.stopped:
            raise
    finally:
        if showing is not None:
            showing.cancel()
            with suppress(asyncio.CancelledError):
                await showing


def exit_code(run: Fetch, condition: Condition, log: Path) -> int:
    """Return the exit code, and say why it is what it is."""
    missing = run.rows_missing()
    if missing:
        complain(
            f"otel-connector fetch: {log}: rows that could not be written: {missing:,}; --resume fetches those again"
        )
    if run.stopped:
        complain(f"Go on with: {_again(sys.argv[1:])}")
        return INTERRUPTED
    holding = condition.check(run.figures())
    complain(*(f"otel-connector fetch: {each}" for each in holding))
    return USAGE if missing else WRONG if holding else 0


def _again(arguments: Sequence[str]) -> str:
    """Return the command that goes on, without what is secret in it."""
    redact, shown = Redactor(DEFAULT_REDACTED_PARAMS).text, list[str]()
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_header = before in {"-H", "--header"} or argument.startswith(("-H", "--header="))
        if is_header and ":" in argument:
            shown.append(f"{argument.partition(':')[0]}: {REDACTED}")
        else:
            shown.append(redact(argument))
    command = f"otel-connector {shlex.join([*shown, *([] if '--resume' in shown else ['--resume'])])}"
    return command if shown == list(arguments) else f"{command}  (with the secrets in the place of {REDACTED})"


def show_result(run: Fetch, log: Path, out: Path | None) -> None:
    """Say what came of it."""
    console = unbreakable(sys.stdout)
    if run.failures:
        failures = table("Failed", "Calls")
        for name, count in run.failures.most_common(10):
            failures.add_row(Text(name, style="red"), f"{count:,}")
        console.print(failures)
        console.print()
    say(console, f"{'Stopped' if run.stopped else 'Done'}: {in_the_end(run.progress())}")
    say(console, f"Log: {log.absolute()}", *([] if out is None else [f"Results: {out.absolute()}"]))
