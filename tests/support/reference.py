"""Generates the pages `docs/reference/telemetry.md` and `commands.md` from the code, and the badges of the README.

To update them, run `python -m support.reference` in `tests`. A test compares the files with the generated text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from typer.testing import CliRunner

from otel_connector._telemetry import _names
from otel_connector._telemetry._metrics import SCHEMA_URL, SCOPE
from otel_connector.cli import app
from support.documents import DOCS
from support.processes import ROOT

COMMANDS = [command.callback.__name__ for command in app.registered_commands if command.callback]


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
# Which spans, events and metrics does a call have?

One span, an event for each failed attempt, and the metrics below. This page is generated from the table from which the
code takes all names.

The instrumentation scope is `{SCOPE}`, with the version of the package and the schema URL `{SCHEMA_URL}`.

## The span of a call

`{call}`, or `{call} /items/{{id}}` with `template="/items/{{id}}"`, kind CLIENT, from the first attempt (after the wait
in the queue) to the decoded body. Its status is ERROR if the call fails, otherwise unset, even if the caller cancelled
it. With `attempt_spans=True` its name is `{attempts}`, its kind INTERNAL, and it lacks the first nine attributes; each
attempt has a CLIENT span with the name above, with these, `{_names.URL_TEMPLATE}` and `{_names.ERROR_TYPE}`.
"""
    yield from attributes(
        (*_names.HTTP_ATTRIBUTES, *_names.HEADER_ATTRIBUTES, _names.TEMPLATE_ATTRIBUTE, *_names.CALL_ATTRIBUTES)
    )
    yield (
        "`<key>` is the name of a header, in lower case and with `_` for `-`. The variables are those of [contrib's "
        "aiohttp instrumentation](../opentelemetry/frameworks.md#settings-of-contribs-aiohttp-instrumentation).\n"
    )
    yield (
        "## The spans of its attempts\n\nOnly with `attempt_spans=True`, beside the attributes above. Each starts where"
        " the one before it ended, after `retry.wait` and `retry.queue`: spans and these times are together exactly "
        f"the span of the call. If the call ended while it waited, its span has `{_names.RETRY_REASON}` ....\n"
    )
    yield from attributes(_names.ATTEMPT_SPAN_ATTRIBUTES)
    yield f"## Its events\n\n`{_names.ATTEMPT_EVENT}`, one for each failed attempt, at the end of the attempt.\n"
    yield from attributes(_names.EVENT_ATTRIBUTES)
    yield "## The metrics\n\nAll except the histogram are observable: they are read when metrics are collected.\n"
    yield from table(
        ("metric", "kind", "unit", "description", "attributes", "source"),
        (
            (f"`{m.name}`", m.kind, m.unit, m.description, " ".join(f"`{label}`" for label in m.labels), m.source)
            for m in _names.METRICS
        ),
    )
    yield "## The attributes of the metrics\n"
    yield from attributes(_names.LABELS)


def help_of(command: str) -> str:
    """Return the output of `--help` for a command."""
    variables = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    done = CliRunner().invoke(app, [*command.split(), "--help"], prog_name="otel-connector", env=variables)
    assert done.exit_code == 0, done.output
    return done.stdout


def commands() -> Iterator[str]:
    """Yield the lines about the commands."""
    yield "# Which options does a command have?\n"
    yield f"Those that its `--help` prints. This page is generated from it, for {len(COMMANDS)} commands.\n"
    for command in COMMANDS:
        text = "\n".join(line.rstrip() for line in help_of(command).strip().splitlines())
        yield f"## otel-connector {command}\n\n```text\n{text}\n```\n"


def pages() -> dict[str, str]:
    """Return the text of each generated page."""
    return {
        name: "\n".join(lines).rstrip("\n") + "\n"
        for name, lines in (("telemetry.md", telemetry()), ("commands.md", commands()))
    }


def badges() -> dict[str, str]:
    """Return the text of each badge of the README; what it says is read from `pyproject.toml`."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    versions = re.findall(r"Python :: (3\.\d+)", project)
    (licence,) = re.findall(r'^license = "(.*)"', project, re.MULTILINE)
    (coverage,) = re.findall(r"^fail_under = (\d+)", project, re.MULTILINE)
    assert re.search(r"^strict = true", project, re.MULTILINE)
    return {
        "python": badge("Python", f"{versions[0]} to {versions[-1]}"),
        "licence": badge("licence", licence),
        "types": badge("types", "mypy and pyright, strict"),
        "coverage": badge("coverage of branches", f"{coverage} %"),
    }


def badge(name: str, value: str) -> str:
    """Return a badge as an SVG: what it is about, and its value."""
    left, right = (7 * len(text) + 14 for text in (name, value))
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" aria-label="{name}: {value}">
<rect width="{left + right}" height="20" rx="3" fill="#444"/>
<path d="M{left} 0h{right - 3}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3h-{right - 3}z" fill="#2f6f9f"/>
<g fill="#fff" font-family="Verdana, DejaVu Sans, sans-serif" font-size="11" text-anchor="middle">
<text x="{left / 2}" y="14" textLength="{left - 14}">{name}</text>
<text x="{left + right / 2}" y="14" textLength="{right - 14}">{value}</text>
</g>
</svg>
"""


def files() -> dict[str, str]:
    """Return the text of each generated file in `docs`."""
    written = {f"reference/{name}": text for name, text in pages().items()}
    return written | {f"assets/badge-{name}.svg": text for name, text in badges().items()}


def main() -> None:
    """Write the files."""
    for name, text in files().items():
        (DOCS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
