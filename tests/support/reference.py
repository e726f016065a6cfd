"""Generates the reference in the README from the code. To update it, run `python -m support.reference` in `tests`.

A test compares the README with the generated text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from typer.testing import CliRunner

from otel_connector._telemetry import _names
from otel_connector._telemetry._metrics import SCHEMA_URL, SCOPE
from otel_connector.cli import app
from support.processes import ROOT

README = ROOT / "README.md"
BEGIN, END = "<!-- made by tests/support/reference.py: begin -->\n", "<!-- end -->\n"
COMMANDS = ("demo", "check", "fetch", "review", "replay")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    names = list(head)
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def attributes(of: Iterable[_names.Attribute]) -> Iterator[str]:
    """Yield the table of some attributes."""
    yield from table(
        ("attribute", "type", "unit", "present", "source"),
        ((f"`{each.name}`", each.type, each.unit, each.when, each.source) for each in of),
    )


def telemetry() -> Iterator[str]:
    """Yield the lines about spans, events and metrics."""
    call, attempts = _names.CALL_NAME, _names.CALL_WITH_ATTEMPT_SPANS_NAME
    yield f"""\
The instrumentation scope is `{SCOPE}`, with the version of the package and the schema URL `{SCHEMA_URL}`.

**The span of a call**: `{call}`, kind CLIENT, from the call to the decoded body. Its status is ERROR if the call fails,
otherwise unset, even if the caller cancelled it. With `attempt_spans=True` its name is `{attempts}`, its kind INTERNAL,
and it lacks the first seven attributes; each attempt has a CLIENT span `{call}` with these and `{_names.ERROR_TYPE}`.
"""
    yield from attributes((*_names.HTTP_ATTRIBUTES, *_names.CALL_ATTRIBUTES))
    yield f"**Its events**: `{_names.ATTEMPT_EVENT}`, one for each failed attempt, at the end of the attempt.\n"
    yield from attributes(_names.EVENT_ATTRIBUTES)
    yield "**The metrics**. All except the histogram are observable: they are read when metrics are collected.\n"
    yield from table(
        ("metric", "kind", "unit", "description", "attributes", "source"),
        (
            (f"`{m.name}`", m.kind, m.unit, m.description, " ".join(f"`{label}`" for label in m.labels), m.source)
            for m in _names.METRICS
        ),
    )
    yield "**The attributes of the metrics**:\n"
    yield from attributes(_names.LABELS)


def help_of(command: str) -> str:
    """Return the output of `--help` for a command."""
    variables = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    done = CliRunner().invoke(app, [*command.split(), "--help"], prog_name="otel-connector", env=variables)
    assert done.exit_code == 0, done.output
    return done.stdout


def commands() -> Iterator[str]:
    """Yield the help texts of the commands, each in a collapsed section."""
    for command in COMMANDS:
        text = "\n".join(line.rstrip() for line in help_of(command).strip().splitlines())
        yield f"<details><summary><code>otel-connector {command} --help</code></summary>\n"
        yield f"```text\n{text}\n```\n\n</details>"
    yield ""


def reference() -> str:
    """Return the whole reference."""
    return "\n".join([*telemetry(), *commands()])


def main() -> None:
    """Write the reference into the README."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{reference()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
