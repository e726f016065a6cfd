"""Holds the plan of the package: who may import whom, what a bare import loads, which names are public.

The table below is the plan. A file without a row fails, so a new file has to say where it belongs. Imports are read
from the syntax tree, those inside functions included: an import that runs late is still an import. Imports under
`TYPE_CHECKING` count for the levels (a type is knowledge of the other file), but not for the "never imports" column,
which is about what a module loads when it runs.
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
from pathlib import Path
from types import ModuleType

import pytest
from support import processes

PACKAGE = "otel_connector"
OTEL = "opentelemetry"
AIOHTTP_INSIDES = ("aiohttp.client", "aiohttp.client_exceptions", "aiohttp.client_reqrep", "aiohttp.connector")
CSV_INSIDES = ("otel_connector._csv_format", "otel_connector._csv_writer")


@dataclass(frozen=True, slots=True)
class Room:
    """One row of the plan: the level, and what must never be imported (a name forbids all below it)."""

    level: int
    never: tuple[str, ...] = ()


# Keyed by the first name below the package: a module, or a package with all its modules.
ROOMS = {
    "_clock": Room(0, (OTEL, "aiohttp")),
    "_before_exit": Room(0, (OTEL, "aiohttp", "asyncio")),
    "_errors": Room(0, (OTEL, *AIOHTTP_INSIDES)),
    "_fail_if": Room(0, (OTEL, "aiohttp", "asyncio")),
    "_on_signal": Room(0, (OTEL, "aiohttp", "asyncio")),
    "_record": Room(0, (OTEL, "aiohttp")),
    "_redact": Room(0, (OTEL, "aiohttp")),
    "_terminal": Room(0, (OTEL, "aiohttp", "asyncio", "typer")),
    "_torn_tail": Room(0, (OTEL, "aiohttp", "asyncio")),
    "_vocabulary": Room(0, (OTEL, "aiohttp", "asyncio")),
    "_version": Room(0, (OTEL, "aiohttp")),
    "_content_coding": Room(1, (OTEL, "aiohttp", "asyncio")),
    "_csv_format": Room(1, (OTEL, "aiohttp", "otel_connector._csv_writer")),
    "_fair_reading": Room(1, (OTEL,)),
    "_instruments": Room(1, ("opentelemetry.sdk", "opentelemetry.exporter", "aiohttp")),
    "_log_file": Room(1, (OTEL, "aiohttp", "asyncio")),
    "_retry": Room(1, (OTEL, "aiohttp", "asyncio", "time")),
    "_arguments": Room(2, (OTEL,)),
    "_journal": Room(1, (OTEL, "aiohttp", "asyncio")),
    "_pacing": Room(2, (OTEL,)),
    "_bulk": Room(3, (OTEL, "aiohttp", "rich", "typer")),
    "_url_lists": Room(2, (OTEL, "aiohttp")),
    "_row_span": Room(3, ("opentelemetry.exporter", "aiohttp", "asyncio")),
    "_resume": Room(3, (OTEL, "aiohttp", "asyncio")),
    "_call": Room(3, (OTEL, *CSV_INSIDES)),
    "_csv_check": Room(2, (OTEL, "aiohttp", "asyncio", "otel_connector._csv_writer")),
    "_background": Room(2, (OTEL, "aiohttp", "asyncio")),
    "_csv_writer": Room(2, (OTEL, "aiohttp", "asyncio")),
    "_results": Room(2, (OTEL, "aiohttp")),
    "_telemetry": Room(2, ("opentelemetry.sdk", "opentelemetry.exporter", "aiohttp")),
    "_transport": Room(2, (OTEL, "otel_connector._retry")),
    "csv_exporter": Room(3, ("aiohttp", "asyncio")),
    "_bounded_exit": Room(4, (OTEL, "aiohttp")),
    "_connector": Room(4, ("opentelemetry.exporter", "csv", "rich", "typer", *CSV_INSIDES)),
    "providers": Room(5, ("aiohttp", "otel_connector._connector")),
    "testing": Room(5, ("pytest",)),
    "review": Room(5, (OTEL, "aiohttp", "asyncio", "rich", "typer")),
    "_review_view": Room(6, (OTEL, "aiohttp", "asyncio", "typer")),
    "_chunk": Room(5, (OTEL, "rich", "typer")),
    "_demo": Room(6, (OTEL, "rich", "typer")),
    "_fetch": Room(6, (OTEL, "rich", "typer")),
    "_log_lines": Room(3, (OTEL, "aiohttp", "asyncio")),
    "_replay_checkpoint": Room(1, (OTEL, "aiohttp", "asyncio")),
    "_replay": Room(6, ("aiohttp", "asyncio", "rich", "typer", "otel_connector._csv_writer")),
    "_fetch_view": Room(7, (OTEL, "aiohttp", "typer")),
    "_compare_view": Room(7, (OTEL, "aiohttp", "typer")),
    "cli": Room(8),
    "__main__": Room(9),
}
DISCOURAGED = {"config", "constants", "helpers", "utils"}
# Loading any of these costs every user, also the one who has no use for it.
HEAVY = ("altair", "duckdb", "grpc", "opentelemetry.exporter", "opentelemetry.sdk.metrics", "requests", "rich", "typer")


def package_folder() -> Path:
    """The folder of the package under test, without importing it: in the tree or installed."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


FOLDER = package_folder()
FILES = sorted(path.relative_to(FOLDER) for path in FOLDER.rglob("*.py"))
ROOM_FILES = [file for file in FILES if file != Path("__init__.py")]


def name_of(file: Path) -> str:
    """`review/html.py` -> `otel_connector.review.html`."""
    parts = (PACKAGE, *file.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file) for file in FILES}


def room_name(module: str) -> str:
    """`otel_connector.review.html` -> `review`; the package itself -> ``."""
    return module.split(".")[1] if "." in module else ""


@dataclass(frozen=True, slots=True)
class Import:
    """One imported dotted name, and whether it is there for type checkers only."""

    name: str
    line: int
    typing_only: bool


def is_type_checking(node: ast.AST) -> bool:
    """Whether `node` is an `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def base_of(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    """The absolute module a `from` imports from."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parents = parts[: len(parts) - node.level + is_package]
    return ".".join([*parents, *([node.module] if node.module else [])])


def late_import(node: ast.AST) -> str | None:
    """The module that `import_module("...")` names, where it names one outright."""
    match node:
        case ast.Call(ast.Name("import_module") | ast.Attribute(attr="import_module"), [ast.Constant(str(name)), *_]):
            return name
    return None


def imports_of(tree: ast.AST, module: str, *, is_package: bool = False, typing_only: bool = False) -> Iterator[Import]:
    """Every import below `tree`; of `from a import b`, `a` alone if `b` is not a module known to be one."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = base_of(node, module, is_package=is_package)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                # `from otel_connector import _retry` is an import of `_retry`; of a foreign package the same is
                # assumed, so that `from opentelemetry import sdk` cannot slip past a rule on `opentelemetry.sdk`.
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
            if (called := late_import(node)) is not None:
                yield Import(called, getattr(node, "lineno", 0), typing_only)
            yield from imports_of(node, module, is_package=is_package, typing_only=typing_only)


def imports_in(file: Path) -> list[Import]:
    """The imports of one file of the package."""
    tree = ast.parse((FOLDER / file).read_text(encoding="utf-8"))
    return list(imports_of(tree, name_of(file), is_package=file.name == "__init__.py"))


def within(name: str, parent: str) -> bool:
    """Whether the dotted `name` is `parent` or below it."""
    return name == parent or name.startswith(f"{parent}.")


def broken_rules(module: str, imported: Import) -> Iterator[str]:
    """What an import of `module` breaks in the plan, in words."""
    mine = room_name(module)
    room = ROOMS[mine]
    where = f"{module}:{imported.line} imports {imported.name}"
    if not imported.typing_only:
        yield from (f"{where}: never {name} here" for name in room.never if within(imported.name, name))
    if not within(imported.name, PACKAGE):
        return
    theirs = room_name(imported.name)
    if theirs == mine:
        return  # the modules of one room may know each other
    if not theirs:
        yield f"{where}: the front door is for users; import the room"
    elif theirs not in ROOMS:
        yield f"{where}: it has no row in the plan"
    elif ROOMS[theirs].level >= room.level:
        yield f"{where}: level {ROOMS[theirs].level} is not below level {room.level}"


@pytest.mark.parametrize("file", ROOM_FILES, ids=str)
def test_every_file_has_its_row_in_the_plan(file: Path) -> None:
    assert room_name(name_of(file)) in ROOMS, f"{file}: give it a level and its rules in ROOMS"


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_every_row_of_the_plan_has_its_file(room: str) -> None:
    assert f"{PACKAGE}.{room}" in MODULES


@pytest.mark.parametrize("file", ROOM_FILES, ids=str)
def test_imports_follow_the_plan(file: Path) -> None:
    module = name_of(file)
    assert [broken for imported in imports_in(file) for broken in broken_rules(module, imported)] == []


def test_nothing_imports_the_command_line() -> None:
    importers = [
        f"{name_of(file)}:{imported.line}"
        for file in FILES
        for imported in imports_in(file)
        if room_name(imported.name) in {"__main__", "cli"}
        and room_name(name_of(file)) not in {"__main__", room_name(imported.name)}
    ]
    assert importers == []


def test_the_front_door_only_opens_rooms() -> None:
    """`__init__` imports from our rooms, and of the rest only what a lazy name needs."""
    foreign = {imported.name.split(".")[0] for imported in imports_in(Path("__init__.py"))} - {PACKAGE}
    assert foreign <= {"__future__", "importlib", "typing"}


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("_retry", "import time", "never time"),
        ("_retry", "def f():\n    import asyncio.events", "never asyncio"),
        ("_retry", "importlib.import_module('aiohttp.web')", "never aiohttp"),
        ("_telemetry", "from opentelemetry import sdk", "never opentelemetry.sdk"),
        ("_telemetry", "from opentelemetry import trace", None),
        ("_transport", "from otel_connector import _retry", "never otel_connector._retry"),
        ("_transport", "from . import _telemetry", "level 2 is not below level 2"),
        ("_transport", "if TYPE_CHECKING:\n    from ._connector import X", "level 4 is not below level 2"),
        ("_transport", "if TYPE_CHECKING:\n    from opentelemetry.trace import Span", None),
        ("_errors", "from ._record import CallRecord", "level 0 is not below level 0"),
        ("_demo", "from otel_connector import AsyncConnector", "front door"),
        ("_demo", "from ._connector import AsyncConnector", None),
        ("testing._hold", "from . import _steps\nfrom .._clock import Clock", None),
        ("providers", "from .cli import main", "level 8"),
        ("__main__", "from .cli import main", None),
    ],
)
def test_the_rules_see_what_they_should(module: str, line: str, broken: str | None) -> None:
    found = [
        rule
        for imported in imports_of(ast.parse(line), f"{PACKAGE}.{module}")
        for rule in broken_rules(f"{PACKAGE}.{module}", imported)
    ]
    assert bool(found) is (broken is not None)
    assert broken is None or any(broken in rule for rule in found)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_no_file_is_named_after_nothing(file: Path) -> None:
    assert DISCOURAGED.isdisjoint(part.strip("_") for part in file.with_suffix("").parts)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_module_says_what_it_is_for(file: Path) -> None:
    docstring = ast.get_docstring(ast.parse((FOLDER / file).read_text(encoding="utf-8")))
    assert docstring, f"{file} has no docstring"


def test_every_level_in_a_docstring_is_the_plans() -> None:
    """A docstring that opens with "Level n:" says the same as the plan."""
    said = {
        room_name(name_of(file)): int(found[1])
        for file in ROOM_FILES
        if (found := re.match(r'"""Level (\d)', (FOLDER / file).read_text(encoding="utf-8")))
    }
    assert said == {room: ROOMS[room].level for room in said}


def test_a_bare_import_loads_nothing_heavy() -> None:
    program = f"import json, sys, {PACKAGE}; print(json.dumps(sorted(sys.modules)))"
    done = processes.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    assert PACKAGE in loaded
    assert [name for name in loaded for heavy in HEAVY if within(name, heavy)] == []


@pytest.fixture
def front_door() -> ModuleType:
    """The package as a user sees it."""
    return importlib.import_module(PACKAGE)


def rank(name: str) -> tuple[bool, bool, str]:
    """The order ruff keeps in `__all__`: constants, classes, the rest."""
    return not name.isupper(), not name[0].isupper(), name


def test_public_names_are_sorted_and_there(front_door: ModuleType) -> None:
    names = front_door.__all__
    assert names == sorted(set(names), key=rank)
    for name in names:
        getattr(front_door, name)


def test_public_names_say_where_they_are_imported_from(front_door: ModuleType) -> None:
    """A traceback, `error.type` and a CSV cell say `otel_connector.X`, never the private file it lives in."""
    exported = {name: getattr(front_door, name) for name in front_door.__all__}
    strangers = {
        name: value.__module__
        for name, value in exported.items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ != PACKAGE
    }
    assert strangers == {}


def test_nothing_else_looks_public(front_door: ModuleType) -> None:
    """`dir()` shows the public names, those loaded late included, and the public files once they are imported."""
    submodules = {room for room in ROOMS if not room.startswith("_")}
    looks_public = {name for name in dir(front_door) if not name.startswith("_")}
    public = {name for name in front_door.__all__ if not name.startswith("_")}
    assert looks_public - submodules == public


def test_a_name_that_is_not_there_says_so(front_door: ModuleType) -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        front_door.no_such_name  # noqa: B018  # the look-up is the test
