r"""Tests that a review depends on the content of a log only, not on the names of the log, of its folders and of TMPDIR.

The table of names has each form that DuckDB treats specially: `~` (home folder), `*`, `?`, `[`, `{` (patterns), `\`
(their escape), `scheme:/` (extensions that it downloads), `key=value` (columns of a partition), suffixes (compression).
The right values are those of the file, as cat(1) prints it.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from support import faulty_disks
from support.command_line import finish, run_here, start
from support.logs import busy_hour, call, rows, write

from otel_connector import COLUMNS, CallRecord, review
from otel_connector._csv._format import HEADER
from otel_connector.review import _files, _load

MADE = [call(n) for n in range(3)] + [call(3, error="HTTPStatusError: 503", response_code=503, project="")]
NAMES = (
    *("~", "~root", "s3:", "http:", "https:", "hf:", "file:", "a*b", "a?b", "[a]", "[!a]", "[a", r"\[a]", r"\*", "a\\"),
    *("{a,b}", "{a", "**", "a'b", 'a"b', "a;b", "a\nb", "a b", " ", "-", "$HOME", "%41", "#", "\u00e9", "a=b", "="),
)
PARTITIONS = (
    *("project=Other", "success=True", "delta_t=9", "response_code=200", "t=5", "error=none", "url=x", "call_id=1"),
    *("redirect_url=x", "response_size=7", "host=x", "error_type=x", "extra_cell=x", "success_cell=True", "t_number=1"),
    *("endpoint=x", "url_path=x", "path=x", "applied=x"),
)
SUFFIXED = (*(f"a.{suffix}" for suffix in ("gz", "csv.gz", "zst", "parquet", "json", "duckdb")), "t=5.csv", "s3:.csv")
NOT_UTF_8 = os.fsdecode(b"b\xff")


def in_the_file(*paths: str | Path) -> list[Any]:
    """Return the rows of logs as a review reads them, and fail unless all of these files were read, and no other."""
    with review.load(*paths) as calls:
        assert [(file.path, file.problem, file.damaged) for file in calls.files] == [
            (str(each), "", 0) for each in paths
        ]
        found = calls.rows("SELECT * FROM log ORDER BY t")
        assert calls.rows(f"SELECT {', '.join(COLUMNS)} FROM calls ORDER BY t") == found
        return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("plain") / "plain.csv", MADE)


@pytest.fixture(scope="module")
def expected(plain: Path) -> list[Any]:
    found = in_the_file(plain)
    assert len(found) == len(MADE)
    return found


def named_logs(names: Sequence[str]) -> dict[str, list[CallRecord]]:
    """Return the calls of a log for each name; their times are different."""
    return {
        name: [record._replace(t=record.t + 10 * number, project=str(number)) for record in MADE]
        for number, name in enumerate(names)
    }


def in_one_file(logs: Mapping[str, list[CallRecord]], folder: Path) -> list[Any]:
    """Return the rows of all of these logs, in one file with an ordinary name."""
    (folder / "ordinary").mkdir()
    return in_the_file(write(folder / "ordinary" / "logs.csv", chain.from_iterable(logs.values())))


@pytest.mark.parametrize(
    "names", [[*NAMES, NOT_UTF_8], ["/".join(PARTITIONS)]], ids=["special to DuckDB", "all partitions"]
)
def test_the_name_of_a_folder_changes_nothing(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = named_logs(names)
    expected = in_one_file(logs, tmp_path)
    monkeypatch.chdir(tmp_path)
    paths = list[str]()
    for name, made in logs.items():
        folder = tmp_path / name
        folder.mkdir(parents=True)
        write(folder / "logs.csv", made[:2])
        (folder / "packed.csv.gz").write_bytes(gzip.compress(HEADER + rows(*made[2:])))
        paths += [str(folder / "logs.csv"), f"{name}/packed.csv.gz"]
    monkeypatch.setattr(_load, "_LARGE", 0)  # the rows of a large log are read again by each query
    assert in_the_file(*paths) == expected


def test_the_name_of_a_log_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = named_logs([*NAMES, *SUFFIXED, NOT_UTF_8])
    expected = in_one_file(logs, tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, made in logs.items():
        write(tmp_path / name, made)
    assert in_the_file(*logs) == expected


def test_the_absolute_name_of_a_log_changes_nothing(tmp_path: Path, expected: list[Any]) -> None:
    folder = tmp_path / "a*b" / "{a,b}" / "t=5"
    folder.mkdir(parents=True)
    assert in_the_file(write(folder / "[a].csv", MADE)) == expected


REFUSED = [name for name in NAMES if {*name} & {*r"\?"}]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "packed.csv.gz"
    path.write_bytes(gzip.compress(HEADER + rows(*MADE)))
    return path


def test_the_name_of_tmpdir_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: Path, packed: Path, expected: list[Any]
) -> None:
    monkeypatch.setattr(_load, "_LARGE", 0)
    both = sorted([*expected, *expected], key=itemgetter(COLUMNS.index("t")))
    names = [name for name in (*PARTITIONS[:2], *NAMES) if name not in REFUSED]
    for first in range(0, len(names), 7):  # in one path
        folder = tmp_path.joinpath(*names[first : first + 7])
        folder.mkdir(parents=True)
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        assert in_the_file(plain, packed) == both
        assert not list(folder.iterdir())


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_a_name_of_tmpdir_that_duckdb_cannot_use_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: Path, packed: Path
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    for path in (plain, packed):
        with pytest.raises(OSError, match=r"DuckDB cannot use a path with this name.* set TMPDIR") as caught:
            review.load(path)
        assert caught.value.filename == str(tmp_path / name)
    assert not list((tmp_path / name).iterdir())


def test_a_tmpdir_whose_name_is_not_utf_8_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / NOT_UTF_8))
    with pytest.raises(OSError, match="set TMPDIR"):
        review.load(write(tmp_path / "logs.csv", MADE))


def test_a_review_does_not_depend_on_the_current_folder_after_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_load, "_LARGE", 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    write(tmp_path / "logs.csv", MADE)
    write(tmp_path / "other" / "logs.csv", [call(9)])
    with review.load("logs.csv") as calls:
        monkeypatch.chdir(tmp_path / "other")
        assert calls.rows("SELECT count(*) FROM log") == calls.rows("SELECT count(*) FROM calls") == [(len(MADE),)]


def test_a_tilde_does_not_read_a_file_of_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(tmp_path / "~" / "x.csv", MADE)
    write(tmp_path / "home" / "x.csv", [call(n + 9) for n in range(len(MADE))])
    assert [row[0] for row in in_the_file("~/x.csv")] == [record.call_id for record in MADE]


def test_each_option_that_duckdb_guesses_is_set_and_no_extension_is_downloaded(tmp_path: Path) -> None:
    with review.load(write(tmp_path / "logs.csv", MADE)) as calls:
        for setting in ("autoinstall_known_extensions", "autoload_known_extensions", "python_enable_replacements"):
            assert calls.rows("SELECT current_setting(?)", [setting]) == [(False,)]
        statements = calls.rows("SELECT sql FROM duckdb_views() WHERE NOT internal AND contains(sql, 'read_csv')")
    ((statement,),) = statements
    # Options with an automatic default: https://duckdb.org/docs/stable/data/csv/overview#parameters
    guessed = ("auto_detect", "hive_partitioning", "union_by_name", "filename", "compression", "header", "delim")
    for option in (*guessed, "quote", "escape", "nullstr", "columns"):
        assert f"{option} = " in statement.replace('"', ""), option
    package = Path(_load.__file__).parent.parent
    sources = [path.read_text(encoding="utf-8") for path in package.rglob("*.py")]
    assert sum(source.count(".connect(") for source in sources if "import duckdb" in source) == 1
    assert sum(source.count("read_csv(") for source in sources) == sum(
        len(re.findall(r"\{DIALECT\},\s", source)) for source in sources
    )
    assert not any(call in source for source in sources for call in ("duckdb.sql(", "duckdb.execute(", "read_json("))


def test_a_partition_cannot_hide_failures(tmp_path: Path) -> None:
    folder = tmp_path / "success=True" / "project=Other"
    folder.mkdir(parents=True)
    write(folder / "logs.csv", [call(n, error="ConnectFailed: refused", project="Prices") for n in range(5)])
    for path in (str(folder / "logs.csv"), "success=True/project=Other/logs.csv"):
        done = run_here(tmp_path, "review", path, "--project", "Prices", "--fail-if", "error_rate > 1%")
        assert (done.code, "5 calls" in done.out) == (1, True)


# One bad file.


def test_a_log_that_vanishes_while_it_is_read_is_named_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = write(tmp_path / "good.csv", MADE), write(tmp_path / "bad.csv", MADE)
    symlink_to = Path.symlink_to

    def remove_after_link(link: Path, target: Path) -> None:
        symlink_to(link, target)
        bad.unlink(missing_ok=True)

    monkeypatch.setattr(Path, "symlink_to", remove_after_link)
    with review.load(good, bad) as calls:
        assert len(calls) == len(MADE)
        assert [file.problem for file in calls.files] == ["", "No such file or directory"]
    write(bad, MADE)
    with pytest.raises(ValueError, match=r"bad\.csv: No such file or directory"):
        review.load(bad)


def test_a_log_that_is_renamed_while_it_is_read_has_not_grown(tmp_path: Path) -> None:
    log = _files.inspect_log(str(write(tmp_path / "logs.csv", MADE)))
    (tmp_path / "logs.csv").rename(tmp_path / "logs.csv.1")
    assert log.grown() == 0


def test_logs_are_copied_where_the_file_system_has_no_links(
    plain: Path, monkeypatch: pytest.MonkeyPatch, expected: list[Any]
) -> None:
    def refuse(_link: Path, _target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")  # vfat; Windows without the privilege

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert in_the_file(plain) == expected


# The folder for temporary files.


@pytest.mark.parametrize("form", ["damaged", "compressed", "large"])
def test_a_full_tmpdir_is_named_with_the_variable_that_sets_it(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, folder = tmp_path / "logs.csv", tmp_path / "full"
    content = HEADER + rows(*busy_hour())
    log.write_bytes({"damaged": content + b"x\n", "compressed": gzip.compress(content), "large": content}[form])
    monkeypatch.setattr(_load, "_LARGE", 0 if form == "large" else _load._LARGE)
    with faulty_disks.mounted(folder, "-t", "tmpfs", "-o", "size=64k", "none"):
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        done = run_here(tmp_path, "review", "logs.csv")
        assert not list(folder.iterdir())
    assert (done.code, done.out) == (2, "")
    why = "No space left on device; a review writes temporary files there: set TMPDIR to another folder"
    assert done.error == f"otel-connector review: {folder}: {why}\n"


def test_a_tmpdir_without_inodes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "logs.csv", MADE)
    folder = tmp_path / "full"
    with faulty_disks.mounted(folder, "-t", "tmpfs", "-o", "nr_inodes=1", "none"):
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        done = run_here(tmp_path, "review", "logs.csv")
    assert done.code == 2
    assert f"{folder}: No space left on device" in done.error
    assert "set TMPDIR" in done.error


def test_without_a_usable_folder_for_temporary_files_the_message_names_tmpdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "logs.csv", MADE)

    def none_usable() -> str:  # the error of tempfile.gettempdir in Python 3.10 to 3.14
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none_usable)
    done = run_here(tmp_path, "review", "logs.csv")
    why = "No usable temporary directory found in ['/tmp', '/var/tmp']; set TMPDIR to a folder with free space"
    assert (done.code, done.error) == (2, f"otel-connector review: {why}\n")


def test_a_query_without_memory_and_temporary_space_raises_os_error(tmp_path: Path) -> None:
    with review.load(write(tmp_path / "logs.csv", MADE)) as calls:
        calls.sql("SET max_temp_directory_size='0KB'")
        calls.sql("SET memory_limit='1MB'")
        with pytest.raises(OSError, match=r"cannot be reviewed.*set TMPDIR to another folder"):
            calls.rows("SELECT list(range ORDER BY hash(range)) FROM range(10000000)")


# Compressed logs.


def test_a_compressed_log_beyond_the_limit_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    content = HEADER + rows(*map(call, range(1_000)))
    for name in ("a.csv.gz", "b.csv.gz", "c.csv.gz"):
        (tmp_path / name).write_bytes(gzip.compress(content))
    write(tmp_path / "plain.csv", MADE)
    limit = 2 * len(content)
    with review.load(tmp_path / "*.csv*", max_unpacked_bytes=limit) as calls:
        assert (len(calls), [file.problem for file in calls.files]) == (2_004, ["", "", calls.files[2].problem, ""])
        assert "--max-unpacked-bytes (max_unpacked_bytes)" in calls.files[2].problem
        assert "0 B were left" in calls.files[2].problem
        assert not list(Path(calls._folder).glob("2.csv.copy"))
    done = run_here(tmp_path, "review", "a.csv.gz", "plain.csv", "--json", "--max-unpacked-bytes", "1000")
    assert (done.code, json.loads(done.out)["total"]["calls"]) == (2, 4)
    assert "a.csv.gz: not read: the compressed logs have more bytes after decompression" in done.error


@pytest.mark.parametrize("byte", [b"\0", b"a", b"\n"], ids=ascii)
def test_a_decompression_bomb_ends_at_the_limit(byte: bytes, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.csv.gz"
    bomb.write_bytes(gzip.compress(HEADER + rows(call(0))) + 4 * gzip.compress(byte * 2**13))
    assert bomb.stat().st_size < 1_000
    with pytest.raises(ValueError, match=r"bomb\.csv\.gz: not read.*20\.0 kB were left for this one"):
        review.load(bomb, max_unpacked_bytes=20_000)
    with review.load(bomb) as calls:
        assert len(calls) == 1


def test_line_ends_reach_the_limit_as_fast_as_rows(tmp_path: Path) -> None:
    """A line counts at least 64 bytes, which each row has: the time is that of a log with as many bytes."""
    bomb = tmp_path / "bomb.csv.gz"
    content = HEADER + rows(call(0))
    bomb.write_bytes(gzip.compress(content + b"\n" * 100))
    with review.load(bomb, max_unpacked_bytes=len(content) + 6_400) as calls:
        assert calls.files[0].damaged == 100
    with pytest.raises(ValueError, match="not read: the compressed logs have more bytes"):
        review.load(bomb, max_unpacked_bytes=len(content) + 6_399)
    for limit, code in ((len(content) + 6_400, 1), (len(content) + 6_399, 2)):
        done = run_here(tmp_path, "check", "bomb.csv.gz", "--max-unpacked-bytes", str(limit))
        assert (done.code, "not read: the compressed logs have more bytes" in done.error) == (code, code == 2)


# The output for programs.


PRINTED = (["--json"], ["--csv"], ["--markdown"])
QUERIED = [[*form, "--sql", "SELECT DISTINCT project FROM calls"] for form in PRINTED]


ENCODINGS = ["iso-8859-1", "utf-16", "cp1252:strict", "ascii", "iso-8859-1", "utf-8"]


@pytest.mark.parametrize(
    ("options", "encoding"),
    [*zip([*PRINTED, *QUERIED], ENCODINGS, strict=True)],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_output_for_programs_is_utf_8_in_every_locale(options: list[str], encoding: str, tmp_path: Path) -> None:
    """RFC 8259, section 8.1: JSON text MUST be encoded using UTF-8."""
    projects = ["\u65e5\u672c", "\u20ac", "\U0001f600"]
    write(tmp_path / "logs.csv", [call(n, project=name) for n, name in enumerate(projects)])
    extra = {"PYTHONIOENCODING": encoding}
    done = finish(start(tmp_path, "review", "logs.csv", *options, extra=extra, encoding="utf-8"))
    assert (done.code, done.error) == (0, "")
    assert all(name in done.out for name in projects)
    assert done.out == run_here(tmp_path, "review", "logs.csv", *options).out


def test_a_comparison_for_programs_is_utf_8_in_every_locale(tmp_path: Path) -> None:
    for name in ("before.csv", "after.csv"):
        write(tmp_path / name, [call(n, project="\u65e5\u672c") for n in range(40)])
    command = ("review", "--compare", "before.csv", "after.csv", "--json")
    done = finish(start(tmp_path, *command, extra={"PYTHONIOENCODING": "iso-8859-1"}, encoding="utf-8"))
    assert (done.code, "\u65e5\u672c" in done.out) == (0, True)


def test_a_file_name_that_is_not_utf_8_is_escaped_in_json(tmp_path: Path) -> None:
    write(tmp_path / f"{NOT_UTF_8}.csv", MADE)
    done = finish(start(tmp_path, "review", f"{NOT_UTF_8}.csv", "--json", encoding="utf-8"))
    assert done.code == 0
    assert json.loads(done.out)["files"][0]["path"] == f"{NOT_UTF_8}.csv"
