"""The error classes match the tree in the docstring of their module, and every error can be copied and pickled."""

from __future__ import annotations

import builtins
import copy
import inspect
import pickle
import re

import aiohttp
import pytest
from multidict import CIMultiDict

from otel_connector import _errors
from otel_connector._errors import BodyTooLarge, ConnectorError, HTTPStatusError

CLASSES = {name: cls for name, cls in inspect.getmembers(_errors, inspect.isclass) if issubclass(cls, ConnectorError)}
TREE_LINE = re.compile(
    r"^    (?P<indent>[| ]*)(?:\+-- )?(?P<name>\w+)(?: \((?P<bases>[\w., ]+)\))?(?P<notes>(?: .*)?)$", re.MULTILINE
)


def make(cls: type[ConnectorError]) -> ConnectorError:
    if cls is HTTPStatusError:
        headers = CIMultiDict([("Retry-After", "1"), ("Set-Cookie", "a"), ("Set-Cookie", "b")])
        return HTTPStatusError("503 Busy", status=503, headers=headers, retry_after=1.5)
    return BodyTooLarge("too large", limit=7) if cls is BodyTooLarge else cls("what: happened")


def documented_tree() -> list[tuple[str, tuple[str, ...], list[str]]]:
    """Name, bases and attributes of each class in the tree of the docstring."""
    rows, parents = [], [""] * 9
    for match in TREE_LINE.finditer((_errors.__doc__ or "").partition("::")[2].partition("Outside")[0]):
        depth = (len(match["indent"]) + 4 * ("+--" in match[0])) // 4
        parents[depth] = match["name"]
        bases = [parents[depth - 1]] if depth else []
        bases += re.findall(r"[\w.]+", match["bases"] or "")
        rows.append((match["name"], tuple(bases), re.findall(r"\.(\w+)", match["notes"])))
    return rows


def base_of(name: str) -> type[BaseException]:
    if name == "aiohttp.ClientError":
        return aiohttp.ClientError
    found: type[BaseException] = CLASSES.get(name) or getattr(builtins, name)
    return found


@pytest.mark.parametrize(("name", "bases", "attributes"), documented_tree())
def test_a_class_has_the_documented_bases_and_attributes(
    name: str, bases: tuple[str, ...], attributes: list[str]
) -> None:
    assert CLASSES[name].__bases__ == tuple(map(base_of, bases))
    assert set(attributes) <= set(vars(make(CLASSES[name])))
    assert inspect.getdoc(CLASSES[name])


def test_every_class_is_in_the_documented_tree() -> None:
    assert sorted(name for name, _, _ in documented_tree()) == sorted(CLASSES)


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_a_new_error_has_no_call_id_url_or_attempts(cls: type[ConnectorError]) -> None:
    error = make(cls)
    assert (error.call_id, error.url, error.attempts) == ("", "", 0)
    assert str(error) == error.args[0]


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, *range(pickle.HIGHEST_PROTOCOL + 1)])
def test_a_copied_or_unpickled_error_has_all_attributes_but_no_cause(cls: type[ConnectorError], copied: object) -> None:
    error = make(cls)
    error.call_id, error.url, error.attempts = "id", "https://host/", 3
    error.__cause__ = OSError("no")
    duplicate = copied(error) if callable(copied) else pickle.loads(pickle.dumps(error, copied))  # type: ignore[arg-type]

    assert type(duplicate) is cls
    assert (str(duplicate), duplicate.args, vars(duplicate)) == (str(error), error.args, vars(error))
    assert duplicate.__cause__ is None
    if isinstance(duplicate, HTTPStatusError):
        assert isinstance(duplicate.headers, CIMultiDict)
        assert duplicate.headers["retry-AFTER"] == "1"
        assert duplicate.headers.getall("set-cookie") == ["a", "b"]


def test_changed_arguments_of_an_error_are_pickled() -> None:
    error = make(HTTPStatusError)
    error.args = ("redacted",)
    assert str(pickle.loads(pickle.dumps(error))) == "redacted"
