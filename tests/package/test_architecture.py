"""Checks the structure of the package: which file imports which, what a bare import loads, which names are public.

`WINGS` is the plan. It lists every file, so a new file has to be added to it. Imports are read from the syntax tree,
including those inside functions. An import under `TYPE_CHECKING` counts for the order of the files, because a type is
knowledge of the other file. It does not count for "never", which is about what a module loads when it runs.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from support import processes

PACKAGE = "otel_connector"
OTEL = "opentelemetry"
SDK = ("opentelemetry.sdk", "opentelemetry.exporter")
AIOHTTP_INSIDES = ("aiohttp.client", "aiohttp.client_exceptions", "aiohttp.client_reqrep", "aiohttp.connector")
TERMINAL = ("rich", "typer")
WRITER = ("otel_connector._csv._writer", "otel_connector._csv._background")


@dataclass(frozen=True, slots=True)
class Wing:
    """A subpackage and its files, or the files of one layer that are in no subpackage (`name` is empty).

    Attributes:
        layer: A file imports from lower layers and from its own subpackage.
        never: What no file of it imports. A name stands for everything below it, too.
        files: Each file, with what it does not import in addition. Within a subpackage, a file imports only files
            that are listed above it, so there is no cycle.
    """

    layer: int
    name: str
    never: tuple[str, ...]
    files: dict[str, tuple[str, ...]]


WINGS = [
    Wing(8, "", (), {"__main__": ()}),
    Wing(
        7,
        "cli",
        (OTEL,),
        {
            "_fail_if": ("aiohttp", "asyncio", *TERMINAL),
            "_cursor": ("aiohttp", "asyncio", "rich", "typer"),
            "_stop_signals": ("aiohttp", "asyncio", "rich", "typer"),
            "_terminal": ("aiohttp", "asyncio", "typer"),
            "_option_errors": ("aiohttp", "asyncio", "rich"),
            "_exit_codes": ("aiohttp", "asyncio"),
            "_collector": ("aiohttp", "asyncio", *TERMINAL),
            "_demo": TERMINAL,
            "_call_filters": ("aiohttp", "asyncio", "rich"),
            "_review_view": ("aiohttp", "asyncio", "typer"),
            "_compare_view": ("aiohttp", "asyncio", "typer"),
            "_review_options": ("rich",),
            "_continue_command": ("aiohttp", "asyncio", "rich"),
            "_fetch_view": ("aiohttp", "typer"),
            "_redact_options": ("aiohttp", "asyncio", "rich"),
            "_fetch_options": ("rich",),
            "_header_option": ("aiohttp", "asyncio", "rich"),
            "_check_command": (),
            "_doctor_view": ("aiohttp", "asyncio", "rich", "typer"),
            "_doctor_command": (),
            "_demo_command": (),
            "_fetch_command": (),
            "_replay_command": (),
            "_review_command": (),
        },
    ),
    Wing(
        6,
        "_fetch",
        (OTEL, *TERMINAL),
        {
            "_url_lists": ("aiohttp",),
            "_cookies": (),
            "_result_line": ("aiohttp", "asyncio"),
            "_result_formats": ("aiohttp", "asyncio"),
            "_results": ("aiohttp",),
            "_chunk": (),
            "_fetch": (),
        },
    ),
    Wing(
        5,
        "review",
        (OTEL, "aiohttp", "asyncio", *TERMINAL),
        {
            "_trace_url": (),
            "_filters": (),
            "_endpoints": ("duckdb",),
            "_noise": (),
            "_files": (),
            "_repaired": (),
            "_sources": ("csv", "duckdb"),
            "_rows": ("duckdb",),
            "_load": (),
            "_lost_time": ("duckdb",),
            "_clock": ("duckdb",),
            "_summary": (),
            "_verdict": ("duckdb",),
            "_stretches": ("duckdb",),
            "_pauses": ("duckdb",),
            "_cells": (),
            "_anomalies": ("duckdb",),
            "_reasons": ("duckdb",),
            "_described": (),
            "_slow_places": (),
            "_failures": (),
            "_findings": (),
            "_attempts": (),
            "_judge": (),
            "_next_step": ("duckdb",),
            "_phrases": ("duckdb",),
            "_verdict_text": ("duckdb",),
            "_html": (),
            "_points": (),
            "_vega": ("altair", "duckdb"),
            "_chart_style": ("duckdb",),
            "_charts": ("duckdb",),
            "_pictures": (),
            "_json": ("duckdb",),
            "_formats": ("duckdb",),
            "_query": (),
            "_comparison": ("duckdb",),
            "_compared_events": (),
            "_compare": (),
            "_compare_text": (),
            "_zone": ("duckdb",),
            "_report": (),
            "_compare_html": (),
        },
    ),
    Wing(5, "", (), {"_connector": ("csv", *SDK, *TERMINAL, *WRITER)}),
    Wing(
        4,
        "_call",
        (OTEL, "otel_connector._csv"),
        {
            "_retry": ("aiohttp", "asyncio", "time"),
            "_call_log": ("aiohttp", "asyncio"),
            "_content_coding": ("aiohttp", "asyncio"),
            "_ranges": ("asyncio",),
            "_aiohttp_private": (),
            "_bounded_content": (),
            "_fair_reading": (),
            "_host_limits": ("aiohttp",),
            "_pacing": (),
            "_urls": ("aiohttp", "asyncio"),
            "_exchange": ("asyncio",),
            "_credentials": ("aiohttp", "asyncio"),
            "_options": ("asyncio",),
            "_aiohttp_errors": (),
            "_body": (),
            "_transport": ("otel_connector._call._retry",),
            "_settings": ("asyncio",),
            "_attempts": ("aiohttp", "otel_connector._call"),
            "_call": (),
            "_resume": (),
        },
    ),
    Wing(
        4,
        "_replay",
        ("aiohttp", "asyncio", *TERMINAL, *WRITER),
        {
            "_checkpoint": (OTEL,),
            "_row_span": ("opentelemetry.exporter",),
            "_replay": (),
        },
    ),
    Wing(4, "", ("aiohttp",), {"_doctor": ("asyncio",), "csv_exporter": ("asyncio",), "providers": ()}),
    Wing(
        3,
        "_csv",
        (OTEL, "aiohttp", "asyncio"),
        {
            "_ownership": (),
            "_parts": (),
            "_lock": (),
            "_options": (),
            "_backlog": (),
            "_fsync": (),
            "_flusher": (),
            "_format": (),
            "_torn_tail": (),
            "_lines": (),
            "_whole_file": (),
            "_file": (),
            "_check": (),
            "_done": (),
            "_writer": (),
            "_background": (),
        },
    ),
    Wing(
        3,
        "_telemetry",
        (*SDK, "aiohttp"),
        {
            "_names": (OTEL,),
            "_metrics": (),
            "_attributes": (),
            "_call_ids": (),
            "_foreign_spans": (),
            "_propagation": (),
            "_call_span": (),
            "_contrib_settings": (),
            "_spans": (),
            "_usual_ports": (OTEL,),
            "_variable_values": (OTEL,),
            "_tls_files": (OTEL,),
            "_export_problem": (OTEL,),
            "_http_answers": (),
            "_grpc_answers": (OTEL,),
            "_bounded_session": (OTEL,),
            "_exporter_watch": (OTEL,),
            "_sdk_variables": (OTEL,),
            "_sdk_exit": (OTEL,),
        },
    ),
    Wing(
        2,
        "",
        ("aiohttp", *TERMINAL),
        {"_bulk": (OTEL,), "_connector_stats": (OTEL, "asyncio"), "_distinct_urls": (OTEL,)},
    ),
    Wing(
        2,
        "testing",
        ("pytest",),
        {
            "_answers": (),
            "_encodings": (),
            "_request": (),
            "_steps": (),
            "_hold": (),
            "_peer": (),
            "_server": (),
            "_fake_clock": (),
        },
    ),
    Wing(1, "_exit", (OTEL, "aiohttp", "asyncio"), {"_before_exit": (), "_on_signal": ()}),
    Wing(
        1,
        "",
        (OTEL,),
        {
            "_arguments": (),
            "_guard": ("aiohttp", "asyncio"),
            "_optional_module": ("aiohttp", "asyncio"),
            "_redact": ("aiohttp",),
            "_serial_executor": ("aiohttp", "asyncio"),
        },
    ),
    Wing(
        0,
        "",
        (OTEL, PACKAGE),
        {
            "_after_fork": ("aiohttp", "asyncio"),
            "_clock": ("aiohttp",),
            "_errors": AIOHTTP_INSIDES,
            "_log_throttle": ("aiohttp", "asyncio"),
            "_percentile": ("aiohttp",),
            "_recent_calls": ("aiohttp",),
            "_record": ("aiohttp",),
            "_retry_after": ("aiohttp", "asyncio", "time"),
            "_secret_notations": ("aiohttp",),
            "_secret_patterns": ("aiohttp",),
            "_units": ("aiohttp",),
            "_version": ("aiohttp",),
        },
    ),
]
DISCOURAGED = {"config", "constants", "helpers", "utils"}
# Loading any of these costs every user, including those who do not use it
HEAVY = ("altair", "duckdb", "grpc", "opentelemetry.exporter", "opentelemetry.sdk.metrics", "requests", "rich", "typer")


@dataclass(frozen=True, slots=True)
class Position:
    """The position of a file in the plan: its subpackage, and its number in the list of files there."""

    wing: Wing
    number: int
    never: tuple[str, ...]


def plan() -> dict[str, Position]:
    """Return the dotted name of each file in the plan; a subpackage stands for its `__init__`, which is the last."""
    positions: dict[str, Position] = {}
    for wing in WINGS:
        prefix = f"{PACKAGE}.{wing.name}".rstrip(".")
        for number, (file, never) in enumerate(wing.files.items()):
            positions[f"{prefix}.{file}"] = Position(wing, number, wing.never + never)
        if wing.name:
            positions[prefix] = Position(wing, len(wing.files), wing.never)
    return positions


PLAN = plan()


def package_folder() -> Path:
    """Return the folder of the package, in the source tree or installed, without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


FOLDER = package_folder()
FILES = sorted(path.relative_to(FOLDER) for path in FOLDER.rglob("*.py"))


def name_of(file: Path) -> str:
    """Convert `review/html.py` to `otel_connector.review.html`."""
    parts = (PACKAGE, *file.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file) for file in FILES}
PLANNED = [file for file in FILES if file != Path("__init__.py")]


@dataclass(frozen=True, slots=True)
class Import:
    """One imported dotted name. `typing_only` means that it is imported only under `TYPE_CHECKING`."""

    name: str
    line: int
    typing_only: bool


def is_type_checking(node: ast.AST) -> bool:
    """Return whether `node` is an `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def base_of(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    """Return the absolute name of the module that a `from` imports from."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parents = parts[: len(parts) - node.level + is_package]
    return ".".join([*parents, *([node.module] if node.module else [])])


def dynamic_import(node: ast.AST) -> str | None:
    """Return the module of a call ``import_module("...")`` with a constant name; None for any other node."""
    match node:
        case ast.Call(ast.Name("import_module") | ast.Attribute(attr="import_module"), [ast.Constant(str(name)), *_]):
            return name
    return None


def imports_of(tree: ast.AST, module: str, *, is_package: bool = False, typing_only: bool = False) -> Iterator[Import]:
    """Yield every import below `tree`. For `from a import b` in the package, yield `a` if `b` is not a module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = base_of(node, module, is_package=is_package)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                # For other packages, every `b` is assumed to be a module. Otherwise `from opentelemetry import sdk`
                # would not match a rule about `opentelemetry.sdk`
                own_name = base.split(".")[0] == PACKAGE and full not in MODULES
                yield Import(base if own_name else full, node.lineno, typing_only)
        elif is_type_checking(node) and isinstance(node, ast.If):
            for part in node.body:
                block = ast.Module([part], [])
                yield from imports_of(block, module, is_package=is_package, typing_only=True)
            for part in node.orelse:
                block = ast.Module([part], [])
                yield from imports_of(block, module, is_package=is_package, typing_only=typing_only)
        else:
            if (called := dynamic_import(node)) is not None:
                yield Import(called, getattr(node, "lineno", 0), typing_only)
            yield from imports_of(node, module, is_package=is_package, typing_only=typing_only)


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse((FOLDER / file).read_text(encoding="utf-8"))


@cache
def imports_in(file: Path) -> list[Import]:
    """Return the imports of one file of the package."""
    return list(imports_of(tree_of(file), name_of(file), is_package=file.name == "__init__.py"))


def within(name: str, parent: str) -> bool:
    """Return whether the dotted `name` is `parent` or below it."""
    return name == parent or name.startswith(f"{parent}.")


def broken_rules(module: str, imported: Import) -> Iterator[str]:
    """Describe what an import of `module` breaks in the plan."""
    position = PLAN[module]
    where = f"{module}:{imported.line} imports {imported.name}"
    if not imported.typing_only:
        yield from (f"{where}: never {name} here" for name in position.never if within(imported.name, name))
    if not within(imported.name, PACKAGE):
        return
    theirs = PLAN.get(imported.name)
    if imported.name == PACKAGE:
        yield f"{where}: that is for users; import the file"
    elif theirs is None:
        yield f"{where}: it is not in the plan"
    elif theirs.wing is position.wing and position.wing.name:
        if theirs.number >= position.number:
            yield f"{where}: it is not listed above in {position.wing.name}"
    elif theirs.wing.layer >= position.wing.layer:
        yield f"{where}: layer {theirs.wing.layer} is not below layer {position.wing.layer}"


FEW_USERS = 6
"""The number of files that a docstring names. If there are more, it names their parts of the package."""


def users_of(module: str) -> list[str]:
    """Return the files that import `module`, without the package's name; a subpackage stands for its `__init__`."""
    users = {
        name_of(file).partition(".")[2] or "__init__"
        for file in FILES
        for imported in imports_in(file)
        if imported.name == module and name_of(file) != module
    }
    return sorted(users)


def users_sentence(module: str) -> str:
    """Return the last sentence of a module's docstring: what uses the module."""
    users = users_of(module)
    if len(users) > FEW_USERS:
        users = sorted({user.partition(".")[0] for user in users})
    names = [f"``{user}``" for user in users]
    if not any(part.startswith("_") or part == "cli" for part in module.split(".")[1:]) or module == f"{PACKAGE}.cli":
        names.insert(0, "the command" if module in {f"{PACKAGE}.__main__", f"{PACKAGE}.cli"} else "applications")
    if module == f"{PACKAGE}.__main__":
        names = ["the command ``otel-connector``"]
    return f"Used by {', '.join(names[:-1])} and {names[-1]}." if len(names) > 1 else f"Used by {names[0]}."


def last_sentence(file: Path) -> str:
    """Return the last paragraph of the docstring of a module, on one line."""
    return " ".join((ast.get_docstring(tree_of(file)) or "").rpartition("\n\n")[2].split())


def test_the_docstring_of_a_module_ends_with_what_uses_it() -> None:
    planned = [file for file in PLANNED if (FOLDER / file).stat().st_size]
    assert {str(file): last_sentence(file) for file in planned} == {
        str(file): users_sentence(name_of(file)) for file in planned
    }


def test_the_plan_lists_every_file_and_no_other() -> None:
    assert PLAN.keys() == MODULES - {PACKAGE}


def test_imports_follow_the_plan() -> None:
    imports = [(name_of(file), imported) for file in PLANNED for imported in imports_in(file)]
    assert len(imports) > len(PLANNED)
    assert [broken for module, imported in imports for broken in broken_rules(module, imported)] == []


def test_nothing_imports_the_command_line() -> None:
    importers = [
        f"{name_of(file)}:{imported.line}"
        for file in PLANNED
        for imported in imports_in(file)
        if within(imported.name, f"{PACKAGE}.cli") and PLAN[name_of(file)].wing.layer < PLAN[imported.name].wing.layer
    ]
    assert importers == []


def test_the_package_itself_only_reexports() -> None:
    """`__init__` imports from the package, and of the rest only what a lazy name needs."""
    foreign = {imported.name.split(".")[0] for imported in imports_in(Path("__init__.py"))} - {PACKAGE}
    assert foreign <= {"__future__", "importlib", "typing"}


@pytest.mark.parametrize("wing", [wing.name for wing in WINGS if wing.name.startswith("_")])
def test_a_private_subpackage_has_an_empty_init(wing: str) -> None:
    assert (FOLDER / wing / "__init__.py").read_bytes() == b""


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("_call._retry", "import time", "never time"),
        ("_call._retry", "def f():\n    import asyncio.events", "never asyncio"),
        ("_call._retry", "importlib.import_module('aiohttp.web')", "never aiohttp"),
        ("_telemetry._spans", "from opentelemetry import sdk", "never opentelemetry.sdk"),
        ("_telemetry._spans", "from opentelemetry import trace", None),
        ("_call._transport", "from otel_connector._call import _retry", "never otel_connector._call._retry"),
        ("_call._transport", "from ._call import Call", "not listed above in _call"),
        ("_call._transport", "from ._content_coding import X", None),
        ("_call._transport", "from otel_connector._replay._checkpoint import X", "layer 4 is not below layer 4"),
        ("_call._transport", "if TYPE_CHECKING:\n    from .._connector import X", "layer 5 is not below layer 4"),
        ("_call._transport", "if TYPE_CHECKING:\n    from opentelemetry.trace import Span", None),
        ("_errors", "from ._record import CallRecord", "layer 0 is not below layer 0"),
        ("_errors", "from ._record import CallRecord", "never otel_connector here"),
        ("csv_exporter", "from .providers import configure", "layer 4 is not below layer 4"),
        ("cli._demo", "from otel_connector import AsyncConnector", "for users"),
        ("cli._demo", "from .._connector import AsyncConnector", None),
        ("testing._steps", "from . import _hold", "not listed above in testing"),
        ("testing._hold", "from . import _steps\nfrom .._clock import Clock", None),
        ("providers", "from .cli import main", "layer 7"),
        ("__main__", "from .cli import main", None),
    ],
)
def test_the_rules_find_what_they_should(module: str, line: str, broken: str | None) -> None:
    found = [
        rule
        for imported in imports_of(ast.parse(line), f"{PACKAGE}.{module}")
        for rule in broken_rules(f"{PACKAGE}.{module}", imported)
    ]
    assert bool(found) is (broken is not None)
    assert broken is None or any(broken in rule for rule in found)


def test_no_file_has_a_meaningless_name() -> None:
    assert [file for file in FILES for part in file.with_suffix("").parts if part.strip("_") in DISCOURAGED] == []


def test_every_module_has_a_docstring() -> None:
    assert [file for file in FILES if (FOLDER / file).stat().st_size and not ast.get_docstring(tree_of(file))] == []


def test_a_function_has_at_most_60_lines_and_a_module_450() -> None:
    """Without the docstring of the function."""
    too_long = []
    for file in FILES:
        if len((FOLDER / file).read_text(encoding="utf-8").splitlines()) > 450:
            too_long.append(str(file))
        for function in ast.walk(tree_of(file)):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                docstring = ast.get_docstring(function, clean=False) or ""
                lines = (function.end_lineno or 0) - function.lineno + 1 - len(docstring.splitlines())
                if lines > 60:
                    too_long.append(f"{file}: {function.name}")
    assert too_long == []


def test_two_types_have_different_names() -> None:
    """A name means one thing in the whole package. The annotations of `cli` have the names of the options."""
    files: dict[str, set[str]] = {}
    for file in FILES:
        for node in ast.walk(tree_of(file)):
            match node:
                case ast.ClassDef(name) | ast.AnnAssign(ast.Name(name), ast.Name("TypeAlias")):
                    files.setdefault(name.lstrip("_"), set()).add(str(file))
    assert {name: sorted(found) for name, found in files.items() if len(found) > 1} == {}


def test_importing_the_package_loads_no_heavy_module() -> None:
    program = f"import json, sys, {PACKAGE}; print(json.dumps(sorted(sys.modules)))"
    done = processes.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    assert PACKAGE in loaded
    assert [name for name in loaded for heavy in HEAVY if within(name, heavy)] == []


@pytest.fixture
def package() -> ModuleType:
    """Import the package as a user does."""
    return importlib.import_module(PACKAGE)


def rank(name: str) -> tuple[bool, bool, str]:
    """Return a sort key with ruff's order of `__all__`: constants, classes, other names."""
    return not name.isupper(), not name[0].isupper(), name


def test_public_names_are_sorted_and_exist(package: ModuleType) -> None:
    names = package.__all__
    assert names == sorted(set(names), key=rank)
    for name in names:
        getattr(package, name)


def test_public_names_have_the_package_as_their_module(package: ModuleType) -> None:
    """So a traceback, `error.type` and the log show ``otel_connector.X`` and not the private module that defines X."""
    exported = {name: getattr(package, name) for name in package.__all__}
    others = {
        name: value.__module__
        for name, value in exported.items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ != PACKAGE
    }
    assert others == {}


def test_dir_shows_only_public_names(package: ModuleType) -> None:
    """`dir()` shows the public names, including lazy ones, and the public modules that have been imported."""
    submodules = {name.split(".")[1] for name in PLAN}
    looks_public = {name for name in dir(package) if not name.startswith("_")}
    public = {name for name in package.__all__ if not name.startswith("_")}
    assert looks_public - submodules == public


def test_an_unknown_name_is_named_in_the_error(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        package.no_such_name  # noqa: B018 - the attribute access is tested


def test_the_page_about_the_architecture_has_every_layer() -> None:
    page = (processes.ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for wing in WINGS:
        if wing.layer > 1:
            (row,) = re.findall(rf"^\| {wing.layer} \| (.*?) \|", page, re.MULTILINE)
            assert {f"`{name}`" for name in ([wing.name] if wing.name else wing.files)} <= set(row.split(", "))
