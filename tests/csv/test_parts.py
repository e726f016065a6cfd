"""Tests of `log_files`, and of the readers that use it: review, replay and resume.

A log that is named by a link or a pattern, or whose parts are compressed, has the same rows as one named by its path.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from support.logs import call, rows

from otel_connector import review
from otel_connector._csv._done import read_done
from otel_connector._csv._format import HEADER
from otel_connector._csv._parts import log_files
from otel_connector._replay._replay import Replay
from otel_connector.csv_exporter import CSVSpanExporter


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"")


NAMES: dict[str, tuple[list[str], list[str], list[str]]] = {
    # what there is in the folder, what is named, what is found
    "a log": (["logs.csv", "other.csv"], ["logs.csv"], ["logs.csv"]),
    "parts": (
        ["logs.csv", "logs.000002.csv", "logs.000001.csv"],
        ["logs.csv"],
        ["logs.000001.csv", "logs.000002.csv", "logs.csv"],
    ),
    "the order of numbers": (
        ["logs.csv", "logs.1000000.csv", "logs.999999.csv"],
        ["logs.csv"],
        ["logs.999999.csv", "logs.1000000.csv", "logs.csv"],
    ),
    "compressed parts": (
        ["logs.csv", "logs.000002.csv", "logs.000001.csv.gz"],
        ["logs.csv"],
        ["logs.000001.csv.gz", "logs.000002.csv", "logs.csv"],
    ),
    "parts that must be unpacked first": (["l.csv", "l.000001.csv.zst"], ["l.csv"], ["l.000001.csv.zst", "l.csv"]),
    "a part that is being compressed": (
        ["logs.csv", "logs.000001.csv", "logs.000001.csv.gz"],
        ["logs.csv"],
        ["logs.000001.csv", "logs.csv"],
    ),
    "a compressed log": (
        ["logs.csv.gz", "logs.000001.csv.gz"],
        ["logs.csv.gz"],
        ["logs.000001.csv.gz", "logs.csv.gz"],
    ),
    "a part": (["logs.csv", "logs.000001.csv", "logs.000002.csv"], ["logs.000001.csv"], ["logs.000001.csv"]),
    "a log with a date": (
        ["logs.20261129.csv", "logs.20261129.000001.csv"],
        ["logs.20261129.csv"],
        ["logs.20261129.000001.csv", "logs.20261129.csv"],
    ),
    "each file once": (
        ["logs.csv", "logs.000001.csv"],
        ["logs.000001.csv", "logs.csv", "logs*.csv", "./logs.csv"],
        ["logs.000001.csv", "logs.csv"],
    ),
    "a pattern": (
        ["a.csv", "b.csv", "b.000001.csv.gz", "c.txt"],
        ["*.csv"],
        ["a.csv", "b.000001.csv.gz", "b.csv"],
    ),
    "a pattern for parts": (["logs.csv", "logs.000001.csv"], ["logs.0*.csv"], ["logs.000001.csv"]),
    "a name that looks like a pattern": (["a[1].csv", "a1.csv"], ["a[1].csv"], ["a[1].csv"]),
    "side files": (
        ["a.csv", "a.csv.torn", "a.csv.replayed", "a.attempts.csv", "a.attempts.000001.csv", "a.000001.csv.torn"],
        ["a*"],
        ["a.000001.csv.torn", "a.csv"],
    ),
    "side files beside a path": (["a.csv", "a.csv.torn", "a.attempts.csv", "a.csv.replayed"], ["a.csv"], ["a.csv"]),
    "only side files": (["a.csv", "a.csv.torn"], ["*.torn"], ["a.csv.torn"]),
    "a side file by its path": (["a.csv", "a.csv.torn"], ["a.csv.torn"], ["a.csv.torn"]),
    "a log that is named like a side file": (["a.attempts.csv", "b.csv"], ["*"], ["a.attempts.csv", "b.csv"]),
    "no suffix": (["logs", "logs.000001", "logs.000001.csv"], ["logs"], ["logs.000001", "logs"]),
}


@pytest.mark.parametrize("case", NAMES)
def test_the_files_of_logs_are_found_in_order_and_once(case: str, folder: Path) -> None:
    there, named, found = NAMES[case]
    make(folder, *there)
    assert log_files(named) == found
    assert log_files(str(folder / name) for name in named) == [str(folder / name) for name in found]


def test_the_parts_of_a_link_lie_beside_its_target(folder: Path) -> None:
    (folder / "data").mkdir()
    make(folder, "data/real.csv", "data/real.000001.csv", "current.000001.csv")
    (folder / "current.csv").symlink_to("data/real.csv")
    expected = [str(folder / "data/real.000001.csv"), "current.csv"]
    assert log_files(["current.csv"]) == log_files(["curr*t.csv", "data/real.csv"]) == expected


def test_names_without_a_file_are_refused(folder: Path) -> None:
    (folder / "link.csv").symlink_to("nothing.csv")
    for name in ("none.csv", "*.none", "link.csv"):
        with pytest.raises(FileNotFoundError):
            log_files([name])
    assert log_files([]) == []
    assert log_files([str(folder)]) == [str(folder)], "its reader says that it is a folder"


class CollectingExporter(SpanExporter):
    def __init__(self) -> None:
        self.urls: list[str] = []

    def export(self, spans: list[ReadableSpan]) -> SpanExportResult:  # type: ignore[override]
        self.urls += [str((span.attributes or {})["otel_connector.url"]) for span in spans]
        return SpanExportResult.SUCCESS


def reviewed(name: str) -> int:
    with review.load(name) as calls:
        return len(calls)


def replayed(name: str) -> int:
    exporter = CollectingExporter()
    list(Replay([name], exporter, to="http://collector", ignore_checkpoint=True).run())
    return len(set(exporter.urls))


def resumed(name: str) -> int:
    return len(read_done(None, [name], "P"))


def resumed_own(name: str) -> int:
    return len(read_done(name, [], "P"))


@pytest.mark.parametrize("read", [reviewed, replayed, resumed, resumed_own])
@pytest.mark.parametrize("name", ["data/logs.csv", "current.csv", "data/lo*s.csv"])
@pytest.mark.parametrize("compressed", [False, True])
def test_every_reader_reads_all_parts(read: Callable[[str], int], name: str, compressed: bool, folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "current.csv").symlink_to("data/logs.csv")
    exporter = CSVSpanExporter("current.csv", rotate_rows=5)
    for number in range(12):
        exporter.export_record(call(number), None)
    exporter.shutdown()
    assert sorted(path.name for path in Path("data").iterdir()) == ["logs.000001.csv", "logs.000002.csv", "logs.csv"]
    if compressed:
        part = folder / "data" / "logs.000001.csv"
        part.with_name("logs.000001.csv.gz").write_bytes(gzip.compress(part.read_bytes()))
        part.unlink()
    (folder / "data" / "logs.csv.torn").write_bytes(rows(call(20))[:-9])
    (folder / "data" / "logs.attempts.csv").write_bytes(HEADER + rows(call(21)))
    assert read(name) == 12
