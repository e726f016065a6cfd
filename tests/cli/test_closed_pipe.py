"""A closed output, as of `| head`, changes no exit code, and is no error."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.logs import call, write

from otel_connector.cli import app


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("review a.csv --fail-if failed>0", 1),
        ("review a.csv --json", 0),
        ("review a.csv --follow", 0),
        ("review --compare a.csv a.csv --fail-if worse==0", 1),
        ("check a.csv", 0),
        ("check b.csv a.csv", 1),
    ],
)
def test_a_closed_pipe_changes_no_exit_code(
    command: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.csv", [call(n, error="E: x" * (n > 38)) for n in range(40)])
    (tmp_path / "b.csv").write_bytes((tmp_path / "a.csv").read_bytes() + b"damage\n")
    monkeypatch.chdir(tmp_path)
    reader, writer = os.pipe()
    os.close(reader)
    before = signal.getsignal(signal.SIGTERM)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        try:
            assert app(command.split(), standalone_mode=False) == code
        finally:
            signal.signal(signal.SIGTERM, before)
    assert "pipe" not in capfd.readouterr().err.lower()
