"""Tests of `optional_module`: which module it imports, and which error it raises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from otel_connector._optional_module import optional_module


def test_the_first_installed_module_is_imported() -> None:
    assert optional_module("no_such_module", "json", "csv", needed_by="this test", install="json") is json


def test_a_missing_module_is_reported_with_the_install_command() -> None:
    with pytest.raises(ImportError, match=r"--out needs b_missing: pip install 'x\[cli\]'") as caught:
        optional_module("a_missing", "b_missing", needed_by="--out", install="'x[cli]'")
    assert caught.value.name == "b_missing"


def test_the_error_of_an_installed_but_broken_module_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text("raise ImportError('a shared library is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="a shared library is missing"):
        optional_module("broken_module", "json", needed_by="this test", install="json")
