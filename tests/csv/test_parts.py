"""Tests of `log_files`, and of the readers that use it: review, replay and resume.

A log that is named by a link or a pattern, or whose parts are compressed, has the same rows as one named by its path.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from support.logs import call, rows

from otel_connector import review
from otel_connector._csv._check import check, repair
from otel_connector._csv._done import read_done
from otel_connector._csv._format import HEADER
from otel_connector._csv._parts import log_files, log_name, next_part, torn_file
from otel_connector._replay._replay import Replay
from otel_connector.csv_exporter import CSVSpanExporter


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(folder: Path, *names: str) -> None:
    for name in names:
        os.close(os.open(folder / name, os.O_CREAT, 0o600))  # `Path.touch` takes twice as long


NAMES: dict[str, tuple[list[str], list[str], list[str]]] = {
    # what there is in the folder, what is named, what is found
    "a log": (["logs.csv", "other.csv"], ["logs.csv"], ["logs.csv"]),
    "parts": (
        ["logs.csv", "logs.part-000002.csv", "logs.part-000001.csv"],
        ["logs.csv"],
        ["logs.part-000001.csv", "logs.part-000002.csv", "logs.csv"],
    ),
    "the order of numbers": (
        ["logs.csv", "logs.part-999999.csv", "logs.part-1000000.csv", "logs.part-123456.csv", "logs.part-000007.csv"],
        ["logs.csv"],
        ["logs.part-000007.csv", "logs.part-123456.csv", "logs.part-999999.csv", "logs.part-1000000.csv", "logs.csv"],
    ),
    "parts of earlier versions": (
        ["logs.csv", "logs.000002.csv", "logs.000001.csv.gz"],
        ["logs.csv"],
        ["logs.000001.csv.gz", "logs.000002.csv", "logs.csv"],
    ),
    "parts of an earlier version, and later ones": (
        ["logs.csv", "logs.000002.csv", "logs.000001.csv", "logs.part-000003.csv", "logs.part-000004.csv"],
        ["logs.csv"],
        ["logs.000001.csv", "logs.000002.csv", "logs.part-000003.csv", "logs.part-000004.csv", "logs.csv"],
    ),
    "a number of an earlier version that rotation had made under the present name": (
        ["logs.csv", "logs.000001.csv", "logs.part-000001.csv"],
        ["logs.csv"],
        ["logs.part-000001.csv", "logs.csv"],
    ),
    "numbers of an earlier version with a gap": (
        ["logs.csv", "logs.000001.csv", "logs.000002.csv", "logs.000004.csv", "logs.001500.csv"],
        ["logs.csv"],
        ["logs.000001.csv", "logs.000002.csv", "logs.csv"],
    ),
    "numbers that rotation does not write": (
        [
            "logs.csv",
            "logs.000000.csv",
            "logs.0000000001.csv",
            "logs.00000.csv",
            "logs.\u0660\u0660\u0660\u0660\u0660\u0661.csv",
            "logs.part-000000.csv",
            "logs.part-0000001.csv",
            "logs.part-00001.csv",
            "logs.part-1.csv",
            "logs.part000001.csv",
            "logs-part-000001.csv",
            "logs.part-\u0660\u0660\u0660\u0660\u0660\u0661.csv",
        ],
        ["logs.csv"],
        ["logs.csv"],
    ),
    "compressed parts": (
        ["logs.csv", "logs.part-000002.csv", "logs.part-000001.csv.gz"],
        ["logs.csv"],
        ["logs.part-000001.csv.gz", "logs.part-000002.csv", "logs.csv"],
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
        ["a.csv"],
    ),
    "side files of a compressed log": (
        [
            "h.csv.gz",
            "h.csv.torn",
            "h.csv.replayed",
            "h.csv.replayed.ab_12cd3",
            "h.attempts.csv.gz",
            "h.000001.csv.torn",
        ],
        ["h*"],
        ["h.csv.gz"],
    ),
    "compressed side files": (
        ["h.csv.gz", "h.csv.torn.gz", "h.csv.replayed.xz", "h.csv.gz.torn", "h.csv.gz.replayed", "h.attempts.csv.torn"],
        ["h*"],
        ["h.csv.gz"],
    ),
    "side files of rotated logs": (
        ["h.000001.csv.gz", "h.csv.torn", "h.attempts.csv", "h.attempts.000001.csv.gz", "i.csv.1", "i.csv.replayed"],
        ["*"],
        ["h.000001.csv.gz", "i.csv.1"],
    ),
    "side files of a log without a suffix": (
        ["h", "h.000001", "h.torn", "h.replayed", "h.attempts", "h.attempts.000001"],
        ["h*"],
        ["h.000001", "h"],
    ),
    "side files of no log": (
        ["a.torn", "b.csv.replayed", "c.attempts.csv", "d.csv"],
        ["*"],
        ["a.torn", "b.csv.replayed", "c.attempts.csv", "d.csv"],
    ),
    "side files beside a path": (["a.csv", "a.csv.torn", "a.attempts.csv", "a.csv.replayed"], ["a.csv"], ["a.csv"]),
    "only side files": (["a.csv", "a.csv.torn"], ["*.torn"], ["a.csv.torn"]),
    "a side file by its path": (["a.csv", "a.csv.torn"], ["a.csv.torn"], ["a.csv.torn"]),
    "a log that is named like a side file": (["a.attempts.csv", "b.csv"], ["*"], ["a.attempts.csv", "b.csv"]),
    "side files of a part": (
        ["h.csv", "h.part-000001.csv.torn", "h.attempts.part-000001.csv", "h.part-000001.csv.gz"],
        ["h*"],
        ["h.part-000001.csv.gz", "h.csv"],
    ),
    "no suffix, and parts": (["logs", "logs.part-000001"], ["logs"], ["logs.part-000001", "logs"]),
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


# A log that was renamed by a backup script: ISO 8601 basic and extended, what date(1) prints, and Unix time
ARCHIVES = (
    *("20261128", "20261128T093000", "20261128T093000Z", "20261128093000", "2026112809", "202611", "2026-11-28"),
    *("2026-11-28T09:30:00Z", "2026-11-28_093000", "261128", "281126", "112826", "010326", "093000", "2026332"),
    *("1795858200", "1795858200000", "2026W48", "26-11"),
    # the hour after midnight, with `date +%H%M%S`
    *("001500", "000130", "000000", "000002", "005959", "000959"),
    *("1", "2", "7"),  # logrotate
)


@pytest.mark.parametrize("parts", [[], ["logs.part-000001.csv", "logs.part-000002.csv.gz"]], ids=["alone", "parts"])
@pytest.mark.parametrize(
    "form", ["logs.{}.csv", "logs.csv.{}", "logs.csv-{}", "logs.{}.csv.gz", "{}.logs.csv", "logs-{}.csv"]
)
def test_a_log_that_was_archived_by_date_is_another_log(form: str, parts: list[str], folder: Path) -> None:
    make(folder, "logs.csv", *parts)
    for name in map(form.format, ARCHIVES):
        make(folder, name)
        assert log_files(["logs.csv"]) == [*parts, "logs.csv"], name
        assert log_files([name]) == [name]
        assert next_part(Path("logs.csv")) == Path(f"logs.part-{len(parts) + 1:06d}.csv"), name
        (folder / name).unlink()


def test_daily_archives_are_not_parts_even_without_a_gap(folder: Path) -> None:
    make(folder, "logs.csv", "logs.000001.csv", *(f"logs.202611{day}.csv" for day in range(10, 31)))
    assert log_files(["logs.csv"]) == ["logs.000001.csv", "logs.csv"]


@pytest.mark.parametrize("last", [1, 9_999, 999_999, 99_999_999])
@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_a_part_is_found_again_without_those_before_it(last: int, ending: str, folder: Path) -> None:
    make(folder, "logs.csv", f"logs.part-{last:06d}.{ending}")
    part = next_part(Path("logs.csv"))
    assert part.name == f"logs.part-{last + 1:06d}.csv"
    make(folder, part.name)
    assert log_files(["logs.csv"]) == [f"logs.part-{last:06d}.{ending}", part.name, "logs.csv"]
    assert log_name(str(part)) == "logs.csv"


def test_ten_thousand_parts_of_an_earlier_version_are_continued(folder: Path) -> None:
    make(folder, "logs.csv", *(f"logs.{number:06d}.csv" for number in range(1, 10_000)))
    for last in ("logs.0010000.csv.gz", "logs.010000.csv.gz"):  # of the development of 0.2, and of 0.1
        make(folder, last)
        assert log_files(["logs.csv"])[-2:] == [last, "logs.csv"]
        assert next_part(Path("logs.csv")).name == "logs.part-010001.csv"
        (folder / last).unlink()


LOG_NAMES = {
    "part.csv": ["part.csv", "part.part-000001.csv"],
    "h.csv": [
        "h.part-000001.csv",
        "h.part-1000000.csv.gz",
        "h.csv",
        "h.csv.gz",
        "h.000001.csv",
        "h.000001.csv.gz",
        "h.1000000.csv",
        "h.csv.1",
        "h.csv.2.gz",
    ],
    "i.csv": [
        "i.csv-20261129",
        "i.csv-20261129.zst",
        "i.20261129.csv",
        "i.20261129.000001.csv",
        "i.2026-11-28.csv",
        "i.csv.2026-11-28.gz",
    ],
    "h": ["h", "h.gz", "h.part-000001", "h.part-000001.gz", "h.000001", "h.000001.bz2"],
    "run-7": ["run-7"],
    "h.12345.csv": ["h.12345.csv"],
    "..000001": ["..000001"],
    ".gz": [".gz"],
    "h\n.csv": ["h\n.000001.csv.gz"],
}


@pytest.mark.parametrize("name", LOG_NAMES)
def test_all_files_of_a_log_lead_to_its_name(name: str, folder: Path) -> None:
    for file in LOG_NAMES[name]:
        assert (log_name(file), log_name(str(folder / file))) == (name, str(folder / name))


def test_a_link_leads_to_the_name_of_its_target(folder: Path) -> None:
    (folder / "data").mkdir()
    make(folder, "data/h.000001.csv.gz")
    (folder / "again.csv").symlink_to("link.csv")
    (folder / "link.csv").symlink_to("data/h.000001.csv.gz")
    (folder / "gone.csv").symlink_to("nowhere/h.csv")
    assert log_name("again.csv") == log_name("link.csv") == str(folder / "data" / "h.csv")
    assert log_name("gone.csv") == str(folder / "nowhere" / "h.csv")


def test_the_side_files_of_a_link_lie_beside_its_target(folder: Path) -> None:
    """Those beside the link are of an earlier version."""
    (folder / "data").mkdir()
    make(folder, "data/h.csv.gz", "data/h.csv.replayed", "current.csv.torn", "current.csv.replayed")
    (folder / "current.csv").symlink_to("data/h.csv.gz")
    assert torn_file("current.csv") == str(folder / "data" / "h.csv.torn")
    assert log_files(["cur*"]) == ["current.csv"]
    assert log_files(["data/h*"]) == ["data/h.csv.gz"]
    (folder / "data" / "h.csv.gz").unlink()
    (folder / "data" / "h.csv.replayed").unlink()
    (folder / "data").rmdir()
    assert log_files(["current.csv.*"]) == ["current.csv.replayed", "current.csv.torn"], "of a log that is gone"


@pytest.mark.parametrize("cut_by", ["the writer", "check --repair"])
def test_an_unfinished_line_is_kept_beside_the_file_and_found_under_each_name(cut_by: str, folder: Path) -> None:
    (folder / "data").mkdir()
    log = folder / "data" / "h.csv"
    log.write_bytes(HEADER + rows(call(0)) + rows(call(1))[:-9])
    (folder / "link.csv").symlink_to("data/h.csv")
    if cut_by == "the writer":
        CSVSpanExporter("link.csv").shutdown()
    else:
        assert repair("link.csv") == len(rows(call(1))) - 9
    assert sorted(path.name for path in folder.rglob("*.torn")) == ["h.csv.torn"]
    for name in ("link.csv", "data/h.csv"):
        assert check(name).torn == (folder / "data" / "h.csv.torn").stat().st_size
        with review.load(name) as calls:
            torn = calls.files[0].torn
        assert torn is not None
        assert torn.lines == 1
    log.with_name("h.csv.gz").write_bytes(gzip.compress(log.read_bytes()))
    log.unlink()
    assert check("data/h.csv.gz").torn == (folder / "data" / "h.csv.torn").stat().st_size


def test_each_file_has_its_own_torn_file() -> None:
    for file, torn in {
        "h.csv": "h.csv.torn",
        "h.csv.gz": "h.csv.torn",
        "h.000001.csv": "h.000001.csv.torn",
        "h.000001.csv.gz": "h.000001.csv.torn",
        "h.csv.torn": "h.csv.torn",
    }.items():
        assert torn_file(file) == torn


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
    assert sorted(path.name for path in Path("data").iterdir()) == [
        "logs.csv",
        "logs.part-000001.csv",
        "logs.part-000002.csv",
    ]
    if compressed:
        part = folder / "data" / "logs.part-000001.csv"
        part.with_name("logs.part-000001.csv.gz").write_bytes(gzip.compress(part.read_bytes()))
        part.unlink()
    (folder / "data" / "logs.csv.torn").write_bytes(rows(call(20))[:-9])
    (folder / "data" / "logs.attempts.csv").write_bytes(HEADER + rows(call(21)))
    assert read(name) == 12
