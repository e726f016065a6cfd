"""Tests of the package's architecture: allowed imports, modules loaded by ``import otel_connector``, public names.

The table `RULES` contains the rules. A file without an entry fails, so a new file needs one. Imports are read from the
syntax tree and include those inside functions. Imports under `TYPE_CHECKING` count for the levels, because the file
then depends on the other file. They do not count as forbidden imports, because they load no module.
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
class ImportRules:
    """The rules of one part of the package: its level, and modules that it must not import, with their submodules."""

    level: int
    forbidden: tuple[str, ...] = ()


# The key is the first name below the package: a module, or a subpackage with all its modules.
RULES = {
    "_clock": ImportRules(0, (OTEL, "aiohttp")),
    "_before_exit": ImportRules(0, (OTEL, "aiohttp", "asyncio")),
    "_errors": ImportRules(0, (OTEL, *AIOHTTP_INSIDES)),
    "_fail_if": ImportRules(0, (OTEL, "aiohttp", "asyncio")),
    "_on_signal": ImportRules(0, (OTEL, "aiohttp", "asyncio")),
    "_record": ImportRules(0, (OTEL, "aiohttp")),
    "_redact": ImportRules(0, (OTEL, "aiohttp")),
    "_terminal": ImportRules(0, (OTEL, "aiohttp", "asyncio", "typer")),
    "_torn_tail": ImportRules(0, (OTEL, "aiohttp", "asyncio")),
    "_vocabulary": ImportRules(0, (OTEL, "aiohttp", "asyncio")),
    "_version": ImportRules(0, (OTEL, "aiohttp")),
    "_content_coding": ImportRules(1, (OTEL, "aiohttp", "asyncio")),
    "_csv_format": ImportRules(1, (OTEL, "aiohttp", "otel_connector._csv_writer")),
    "_fair_reading": ImportRules(1, (OTEL,)),
    "_instruments": ImportRules(1, ("opentelemetry.sdk", "opentelemetry.exporter", "aiohttp")),
    "_log_file": ImportRules(1, (OTEL, "aiohttp", "asyncio")),
    "_retry": ImportRules(1, (OTEL, "aiohttp", "asyncio", "time")),
    "_arguments": ImportRules(2, (OTEL,)),
    "_journal": ImportRules(1, (OTEL, "aiohttp", "asyncio")),
    "_pacing": ImportRules(2, (OTEL,)),
    "_bulk": ImportRules(3, (OTEL, "aiohttp", "rich", "typer")),
    "_url_lists": ImportRules(2, (OTEL, "aiohttp")),
    "_row_span": ImportRules(3, ("opentelemetry.exporter", "aiohttp", "asyncio")),
    "_resume": ImportRules(3, (OTEL, "aiohttp", "asyncio")),
    "_call": ImportRules(3, (OTEL, *CSV_INSIDES)),
    "_csv_check": ImportRules(2, (OTEL, "aiohttp", "asyncio", "otel_connector._csv_writer")),
    "_background": ImportRules(2, (OTEL, "aiohttp", "asyncio")),
    "_csv_writer": ImportRules(2, (OTEL, "aiohttp", "asyncio")),
    "_results": ImportRules(2, (OTEL, "aiohttp")),
    "_telemetry": ImportRules(2, ("opentelemetry.sdk", "opentelemetry.exporter", "aiohttp")),
    "_transport": ImportRules(2, (OTEL, "otel_connector._retry")),
    "csv_exporter": ImportRules(3, ("aiohttp", "asyncio")),
    "_bounded_exit": ImportRules(4, (OTEL, "aiohttp")),
    "_connector": ImportRules(4, ("opentelemetry.exporter", "csv", "rich", "typer", *CSV_INSIDES)),
    "providers": ImportRules(5, ("aiohttp", "otel_connector._connector")),
    "testing": ImportRules(5, ("pytest",)),
    "review": ImportRules(5, (OTEL, "aiohttp", "asyncio", "rich", "typer")),
    "_review_view": ImportRules(6, (OTEL, "aiohttp", "asyncio", "typer")),
    "_chunk": ImportRules(5, (OTEL, "rich", "typer")),
    "_demo": ImportRules(6, (OTEL, "rich", "typer")),
    "_fetch": ImportRules(6, (OTEL, "rich", "typer")),
    "_log_lines": ImportRules(3, (OTEL, "aiohttp", "asyncio")),
    "_replay_checkpoint": ImportRules(1, (OTEL, "aiohttp", "asyncio")),
    "_replay": ImportRules(6, ("aiohttp", "asyncio", "rich", "typer", "otel_connector._csv_writer")),
    "_fetch_view": ImportRules(7, (OTEL, "aiohttp", "typer")),
    "_compare_view": ImportRules(7, (OTEL, "aiohttp", "typer")),
    "cli": ImportRules(8),
    "__main__": ImportRules(9),
}
DISCOURAGED = {"config", "constants", "helpers", "utils"}
# Modules that take long to load. They must be loaded only when they are used.
HEAVY = ("altair", "duckdb", "grpc", "opentelemetry.exporter", "opentelemetry.sdk.metrics", "requests", "rich", "typer")


def package_folder() -> Path:
    """Return the folder of the package, in the source tree or installed, without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


FOLDER = package_folder()
FILES = sorted(path.relative_to(FOLDER) for path in FOLDER.rglob("*.py"))
FILES_WITH_RULES = [file for file in FILES if file != Path("__init__.py")]


def name_of(file: Path) -> str:
    """Convert `review/html.py` to `otel_connector.review.html`."""
    parts = (PACKAGE, *file.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file) for file in FILES}


def part_of(module: str) -> str:
    """Return `review` for `otel_connector.review.html`, and an empty text for the package itself."""
    return module.split(".")[1] if "." in module else ""


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


def imports_in(file: Path) -> list[Import]:
    """Return the imports of one file of the package."""
    tree = ast.parse((FOLDER / file).read_text(encoding="utf-8"))
    return list(imports_of(tree, name_of(file), is_package=file.name == "__init__.py"))


def within(name: str, parent: str) -> bool:
    """Return whether the dotted `name` is `parent` or below it."""
    return name == parent or name.startswith(f"{parent}.")


def broken_rules(module: str, imported: Import) -> Iterator[str]:
    """Yield a message for each rule that an import of `module` breaks."""
    own_part = part_of(module)
    rules = RULES[own_part]
    where = f"{module}:{imported.line} imports {imported.name}"
    if not imported.typing_only:
        yield from (f"{where}: {name} is forbidden here" for name in rules.forbidden if within(imported.name, name))
    if not within(imported.name, PACKAGE):
        return
    other_part = part_of(imported.name)
    if other_part == own_part:
        return  # the modules of one subpackage may import each other
    if not other_part:
        yield f"{where}: the package itself is for users; import the module"
    elif other_part not in RULES:
        yield f"{where}: it has no entry in RULES"
    elif RULES[other_part].level >= rules.level:
        yield f"{where}: level {RULES[other_part].level} is not below level {rules.level}"


@pytest.mark.parametrize("file", FILES_WITH_RULES, ids=str)
def test_every_file_has_import_rules(file: Path) -> None:
    assert part_of(name_of(file)) in RULES, f"{file}: add its level and forbidden imports to RULES"


@pytest.mark.parametrize("part", sorted(RULES))
def test_every_entry_of_the_rules_has_a_file(part: str) -> None:
    assert f"{PACKAGE}.{part}" in MODULES


@pytest.mark.parametrize("file", FILES_WITH_RULES, ids=str)
def test_imports_obey_the_rules(file: Path) -> None:
    module = name_of(file)
    assert [broken for imported in imports_in(file) for broken in broken_rules(module, imported)] == []


def test_only_main_imports_the_command_line() -> None:
    importers = [
        f"{name_of(file)}:{imported.line}"
        for file in FILES
        for imported in imports_in(file)
        if part_of(imported.name) in {"__main__", "cli"}
        and part_of(name_of(file)) not in {"__main__", part_of(imported.name)}
    ]
    assert importers == []


def test_the_init_file_imports_only_the_package_and_what_lazy_names_need() -> None:
    foreign = {imported.name.split(".")[0] for imported in imports_in(Path("__init__.py"))} - {PACKAGE}
    assert foreign <= {"__future__", "importlib", "typing"}


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("_retry", "import time", "time is forbidden"),
        ("_retry", "def f():\n    import asyncio.events", "asyncio is forbidden"),
        ("_retry", "importlib.import_module('aiohttp.web')", "aiohttp is forbidden"),
        ("_telemetry", "from opentelemetry import sdk", "opentelemetry.sdk is forbidden"),
        ("_telemetry", "from opentelemetry import trace", None),
        ("_transport", "from otel_connector import _retry", "otel_connector._retry is forbidden"),
        ("_transport", "from . import _telemetry", "level 2 is not below level 2"),
        ("_transport", "if TYPE_CHECKING:\n    from ._connector import X", "level 4 is not below level 2"),
        ("_transport", "if TYPE_CHECKING:\n    from opentelemetry.trace import Span", None),
        ("_errors", "from ._record import CallRecord", "level 0 is not below level 0"),
        ("_demo", "from otel_connector import AsyncConnector", "is for users"),
        ("_demo", "from ._connector import AsyncConnector", None),
        ("testing._hold", "from . import _steps\nfrom .._clock import Clock", None),
        ("providers", "from .cli import main", "level 8"),
        ("__main__", "from .cli import main", None),
    ],
)
def test_a_broken_rule_is_reported(module: str, line: str, broken: str | None) -> None:
    found = [
        rule
        for imported in imports_of(ast.parse(line), f"{PACKAGE}.{module}")
        for rule in broken_rules(f"{PACKAGE}.{module}", imported)
    ]
    assert bool(found) is (broken is not None)
    assert broken is None or any(broken in rule for rule in found)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_no_file_has_a_meaningless_name(file: Path) -> None:
    assert DISCOURAGED.isdisjoint(part.strip("_") for part in file.with_suffix("").parts)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_module_has_a_docstring(file: Path) -> None:
    docstring = ast.get_docstring(ast.parse((FOLDER / file).read_text(encoding="utf-8")))
    assert docstring, f"{file} has no docstring"


def test_levels_in_docstrings_agree_with_the_rules() -> None:
    stated = {
        part_of(name_of(file)): int(found[1])
        for file in FILES_WITH_RULES
        if (found := re.match(r'"""Level (\d)', (FOLDER / file).read_text(encoding="utf-8")))
    }
    assert stated == {part: RULES[part].level for part in stated}


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
    submodules = {part for part in RULES if not part.startswith("_")}
    looks_public = {name for name in dir(package) if not name.startswith("_")}
    public = {name for name in package.__all__ if not name.startswith("_")}
    assert looks_public - submodules == public


def test_an_unknown_name_is_named_in_the_error(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        package.no_such_name  # noqa: B018 - the attribute access is tested
