"""Tests of loading and summarizing logs: every line is a row or damage, and figures match pandas and polars."""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.forked import run_python
from support.logs import START, busy_hour, call, rows, write

from otel_connector import review
from otel_connector._csv._format import HEADER, encode_row
from otel_connector._record import CallRecord, one_line
from otel_connector.review import _files, _load, _summary
from otel_connector.review._query import Answer

EPOCH = datetime.fromisoformat("1970-01-01")


def at(second: float) -> datetime:
    """Return the naive UTC time, as in DuckDB, `second` seconds after the first call."""
    return EPOCH + timedelta(seconds=START + second)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs.csv"


texts = st.text(max_size=30).map(one_line)
records = st.lists(
    st.builds(
        CallRecord,
        call_id=st.builds("{:032x}-{:016x}".format, st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1)),
        project=texts,
        t=st.integers(0, 4_000_000_000_000_000).map(lambda us: us / 1e6),
        delta_t=st.integers(0, 10**10).map(lambda us: us / 1e6),
        url=texts | st.builds("http://{}/{}".format, st.sampled_from(["a.example", "b.example:81"]), st.integers(0, 9)),
        redirect_url=texts,
        response_size=st.integers(0, 2**40),
        response_code=st.none() | st.integers(100, 599),
        success=st.booleans(),
        error=texts,
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda record: record.call_id,
)


# An example takes 0.1 s, because three libraries read the log
@settings(max_examples=settings().max_examples // 3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records)
def test_the_figures_match_those_of_pandas_and_polars(log: Path, made: list[CallRecord]) -> None:
    import pandas as pd
    import polars as pl

    write(log, made)
    texts = {"call_id": str, "project": str, "url": str, "redirect_url": str, "error": str}
    frame = pd.read_csv(log, keep_default_na=False, na_values={"response_code": [""]}, dtype=texts)
    lazy = pl.read_csv(log, schema_overrides=dict.fromkeys(texts, pl.String))
    with review.load(log) as calls:
        summary = review.summarize(calls, top=100)
        assert calls.files == (review.LogFile(path=str(log)),)
        got = {row[0]: row for row in calls.relation.fetchall()}
    assert summary.total.calls == len(made) == len(frame) == lazy.height
    assert summary.total.failed == int((~frame["success"]).sum())
    assert summary.total.bytes == int(frame["response_size"].sum())
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)):
        figure = getattr(summary.total.latency, name)
        assert figure == pytest.approx(frame["delta_t"].quantile(q), rel=1e-12, abs=1e-15)
        assert figure == pytest.approx(lazy["delta_t"].quantile(q, interpolation="linear"), rel=1e-12, abs=1e-15)
    by_cell = {group.calls for group in summary.projects}
    assert by_cell == set(frame.groupby("project").size())
    for record in made:
        row = got[record.call_id]
        assert (row[1], row[4], row[5], row[9]) == (record.project, record.url, record.redirect_url, record.error)
        assert (row[2] - EPOCH) / timedelta(microseconds=1) == round(record.t * 1e6)
        assert (row[3], *row[6:9]) == (record.delta_t, record.response_size, record.response_code, record.success)


ONE = rows(call(1))
DAMAGE: dict[str, tuple[bytes, int, int, str]] = {
    # Bytes between one good row and two others: number of rows read, number of damaged lines, text about the first
    "nothing": (b"", 3, 0, ""),
    "garbage": (b"garbage\n", 3, 1, "a row has 10 cells, this one has 1"),
    "an empty line": (b"\n", 3, 1, "a row has 10 cells, this one has 0"),
    "a row torn in quotes": (ONE[:-1] + b'"torn, \n', 3, 1, "unexpected end of data"),
    "a torn row, joined to the next row": (ONE[:40], 2, 1, "is not an id"),
    "not UTF-8": (b"\xff\xfe" + ONE, 3, 1, "not UTF-8 from byte 0"),
    "a hole before a row": (b"\0" * 5_000 + ONE, 3, 1, "contains NUL bytes"),
    "a second header": (HEADER + ONE, 4, 1, "the line is a header"),
    "a line that is too long": (b"x" * 3_000_000 + b"\n", 3, 1, "longer than any row"),
    "NaN as time": (ONE.replace(b"1790000001.000000", b"nan"), 3, 1, "t must be from 0 to 253402300799, not nan"),
    "a time out of range": (
        ONE.replace(b"1790000001.000000", b"1e300"),
        3,
        1,
        "t must be from 0 to 253402300799, not 1e+300",
    ),
    "a negative duration": (ONE.replace(b"0.250000", b"-1"), 3, 1, "delta_t must be from 0 to 1000000000, not -1"),
    "not True or False": (ONE.replace(b"True", b"maybe"), 3, 1, "success must be True or False"),
    "an empty size": (ONE.replace(b",100,", b",,"), 3, 1, "response_size must be a number"),
    "a size out of range": (
        ONE.replace(b",100,", b",9" + b"9" * 20 + b","),
        3,
        1,
        "response_size must be from 0 to 9223372036854775807, not 9",
    ),
    "an invalid id": (ONE.replace(b"-0000", b"+0000", 1)[3:], 3, 1, "is not an id"),
    "line ends of another program": (ONE[:-1] + b"\r\n", 4, 0, ""),
    "sizes whose sum overflows int64": (b"".join(rows(call(n, response_size=2**63 - 1)) for n in (7, 8)), 5, 0, ""),
    "quotes in a row after damage": (b"garbage\n" + rows(call(1, error="X: a, b", project="=1")), 4, 1, "has 1"),
    "unnecessary quotes": (ONE.replace(b",P,", b',"P",'), 4, 0, ""),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_lines_are_counted_and_the_other_rows_are_read(name: str, log: Path) -> None:
    between, whole, damaged, what = DAMAGE[name]
    log.write_bytes(HEADER + rows(call(0)) + between + rows(call(2), call(3)))
    with review.load(log) as calls:
        (file,) = calls.files
        assert (len(calls), file.damaged, len(file.damage)) == (whole, damaged, damaged)
    if damaged:
        line, text = file.damage[0]
        assert line == 3
        assert what in text


@pytest.mark.parametrize("beside", [b"", b"garbage\n"], ids=["whole", "damaged"])
def test_an_unfinished_last_line_is_reported_and_not_counted(beside: bytes, tmp_path: Path) -> None:
    last = rows(call(9, error='AttemptTimeout: "no answer", or such, within the time that there was'))
    for kept in (1, 60, -30, -1):  # one byte; its start; cut in its error; all but its line end
        (tmp_path / f"logs{kept}.csv").write_bytes(HEADER + rows(call(0), call(1)) + beside + last[:kept])
    with review.load(tmp_path / "*.csv") as calls:
        assert [(file.unfinished, file.damaged) for file in calls.files] == [(True, bool(beside))] * 4
        assert len(calls) == 4 * 2


def test_only_the_first_20_damaged_lines_are_described(log: Path) -> None:
    log.write_bytes(HEADER + b"x\n" * 50)
    with review.load(log) as calls:
        assert (calls.files[0].damaged, len(calls.files[0].damage)) == (50, 20)
        assert review.summarize(calls).damaged == 50


def test_a_log_that_another_program_saved_is_read(tmp_path: Path) -> None:
    starts = (
        b"\xef\xbb\xbf" + HEADER,
        HEADER.replace(b"\n", b"\r\n"),
        b'"' + HEADER[:-1].replace(b",", b'","') + b'"\n',
    )
    for number, start in enumerate(starts):
        (tmp_path / f"{number}.csv").write_bytes(start + rows(call(0), call(1)))
    with review.load(tmp_path / "*.csv") as calls:
        assert [(file.problem, file.damaged) for file in calls.files] == [("", 0)] * len(starts)
        assert len(calls) == 2 * len(starts)


def test_compressed_logs_are_read_under_any_name(tmp_path: Path) -> None:
    packed = gzip.compress(HEADER + rows(call(0), call(1)))
    for name in ("logs.csv.gz", "logs.csv-20261125"):
        (tmp_path / name).write_bytes(packed)
        with review.load(tmp_path / name) as calls:
            assert (len(calls), calls.files[0].damaged) == (2, 0)


@pytest.mark.parametrize("cut", [1, 400])
def test_the_complete_rows_of_a_truncated_compressed_log_are_read(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "logs.csv.gz"
    path.write_bytes(
        gzip.compress(HEADER + rows(*(call(n, url=f"http://h/{random.Random(n).random()}") for n in range(900))))[:-cut]
    )
    with review.load(path) as calls:
        assert 500 < len(calls) <= 900
        assert "cannot be unpacked" in calls.files[0].damage[0][1]
        assert calls.files[0].damaged == 1


def test_a_wrong_checksum_of_a_compressed_log_is_counted_as_damage(tmp_path: Path) -> None:
    path = tmp_path / "logs.csv.gz"
    packed = bytearray(gzip.compress(HEADER + rows(call(0), call(1))))
    packed[-8] ^= 1
    path.write_bytes(packed)
    with review.load(path) as calls:
        assert (len(calls), calls.files[0].damaged) == (2, 1)
        assert "CRC check failed" in calls.files[0].damage[0][1]


def test_a_file_that_is_not_a_log_is_reported_and_the_others_are_read(log: Path, tmp_path: Path) -> None:
    others = {
        "empty": (b"", "the file is empty"),
        "another CSV": (b"a,b\n1,2\n", "its first line is 'a,b'"),
        "zstd": (b"\x28\xb5\x2f\xfd....", "compressed (zstd)"),
        "truncated compressed log": (gzip.compress(HEADER * 900)[:12], "the file cannot be unpacked"),
        "random bytes": (random.Random(5).randbytes(64) + b"\n", "not a log: the file is binary"),
    }
    for name, (content, message) in others.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(message)):
            review.load(tmp_path / name)
    write(log, [call(0)])
    with review.load(log, *(tmp_path / name for name in others)) as calls:
        assert (len(calls), [bool(file.problem) for file in calls.files]) == (1, [False, *[True] * len(others)])


def test_a_flipped_bit_in_a_compressed_log_is_counted_as_damage(tmp_path: Path) -> None:
    made = (call(n, url=f"http://h/{random.Random(n).random()}") for n in range(2_000))
    packed = gzip.compress(HEADER + rows(*made))
    for at in range(1, 15):
        spoilt = bytearray(packed)
        spoilt[len(packed) * at // 16] ^= 4
        (tmp_path / f"logs{at:02}.csv.gz").write_bytes(spoilt)
    with review.load(tmp_path / "*.gz") as calls:
        assert len(calls.files) == 14
        assert [file for file in calls.files if not file.damaged] == []


def test_a_memory_limit_that_is_too_low_raises_os_error(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(log, map(call, range(1_000)))
    monkeypatch.setattr(_load, "MEMORY_LIMIT", "1KB")
    with pytest.raises(OSError, match="cannot be reviewed"):
        review.load(log)


def test_a_log_of_many_rows_has_the_same_summary_and_may_use_the_memory_of_the_machine(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(log, busy_hour())
    with review.load(log) as calls:
        expected = review.summarize(calls)
        (limit,) = calls.rows("SELECT current_setting('memory_limit')")
    monkeypatch.setattr(_load, "MANY_ROWS", expected.total.calls)
    monkeypatch.setattr(_summary, "MANY_ROWS", expected.total.calls)
    with review.load(log) as calls:
        assert review.summarize(calls) == expected
        assert calls.rows("SELECT current_setting('memory_limit')") != [limit]
    assert len(expected.quarters) == 4


def test_a_path_that_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(ValueError, match=r"regular file|directory"):
            review.load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="No such file or directory"):
        review.load(tmp_path / "nothing.csv")
    with pytest.raises(FileNotFoundError, match="no file matches this pattern"):
        review.load(tmp_path / "nothing*.csv")


def test_load_without_a_path_or_with_a_list_of_paths_is_refused(log: Path) -> None:
    with pytest.raises(ValueError, match="paths must name at least one log"):
        review.load()
    with pytest.raises(TypeError, match=r"paths must be paths, one after the other as in load\(\*paths\), not list"):
        review.load([log])  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


INTERRUPTED = """
from pathlib import Path
from otel_connector import review

mkdir = Path.mkdir
def interrupted(path, mode=0o777):
    mkdir(path, mode)
    raise KeyboardInterrupt

Path.mkdir = interrupted
review.load("logs.csv")
"""


def test_an_interrupt_just_after_the_temporary_folder_is_created_removes_it(log: Path, tmp_path: Path) -> None:
    write(log, [call(0)])
    folder = tmp_path / "temporary"
    folder.mkdir()
    done = run_python(["-c", INTERRUPTED], log.parent, TMPDIR=str(folder))
    assert "KeyboardInterrupt" in done.stderr
    assert not list(folder.iterdir())


def test_the_repr_of_calls_names_the_log(log: Path) -> None:
    write(log, [call(0)])
    with review.load(log) as calls:
        assert repr(calls) == f"<Calls of {log}>"


def test_rotated_parts_and_patterns_are_resolved_to_files(tmp_path: Path) -> None:
    log = write(tmp_path / "logs.csv", [call(2)])
    write(tmp_path / "logs.000001.csv", [call(0)])
    write(tmp_path / "logs.000002.csv", [call(1)])
    write(tmp_path / "a[1]*.csv", [call(3)])
    (tmp_path / "logs.csv.torn").write_bytes(b"torn\nand torn")
    with review.load(log, tmp_path / "a[1]*.csv") as calls:
        assert len(calls) == 4
        torn = calls.files[2].torn
        assert torn is not None
        assert (torn.lines, torn.size) == (2, 13)
        (tmp_path / "logs.csv.torn").write_bytes(b"torn\n")
        whole = _files.find_torn_file(str(log))
        assert whole is not None
        assert whole.lines == 1
        assert calls.files[0].torn is None


def test_a_log_that_is_being_written_is_read_without_damage(log: Path) -> None:
    write(log, map(call, range(1_000)))
    stop = threading.Event()

    further = [encode_row(call(number)) for number in range(1_000, 20_000)]

    def append() -> None:
        with log.open("ab", buffering=0) as file:
            for row in takewhile(lambda _: not stop.is_set(), further):
                file.write(row)

    writer = threading.Thread(target=append)
    writer.start()
    try:
        for _ in range(3):
            before = log.stat().st_size // 200
            with review.load(log) as calls:
                assert len(calls) >= before
                assert calls.files[0].damaged == 0
    finally:
        stop.set()
        writer.join()


@pytest.fixture(scope="module")
def busy_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[review.Calls]:
    with review.load(write(tmp_path_factory.mktemp("busy") / "logs.csv", busy_hour())) as calls:
        yield calls


@pytest.mark.parametrize("many", [0, 100_000])
def test_the_summary_has_groups_errors_slowest_calls_pauses_bursts_and_quarters(
    many: int, busy_log: review.Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_connector.review._summary._MANY", many)  # above it, only the listed groups are computed
    made = busy_hour()
    summary = review.summarize(busy_log, top=2)
    whole = review.summarize(busy_log, top=100)
    assert (len(whole.projects), whole.more_projects, whole.projects[:2]) == (4, 0, summary.projects)
    assert [(group.name, group.calls) for group in summary.projects] == [("Prices", 2_000), ("Weather", 1_000)]
    assert (summary.more_projects, summary.more_hosts, summary.more_errors) == (2, 2, 0)
    assert [group.name for group in summary.hosts] == ["a.example", "b.example"]
    assert [each.name for each in summary.errors] == ["HTTPStatusError 503", "InvalidURL"]
    assert sum(each.calls for each in summary.errors) == summary.total.failed
    assert summary.errors[1].example.url == "no url"
    assert summary.errors[0].share == summary.errors[0].calls / len(made)
    assert [each.delta_t for each in summary.slowest] == sorted((r.delta_t for r in made), reverse=True)[:10]
    assert [(each.start, each.seconds) for each in summary.quiet] == [(at(999), 601.0)]
    assert (summary.bursts.peak, summary.bursts.peak_calls) == (at(300), 41)
    assert (summary.bursts.median, summary.bursts.seconds) == (1.0, 1)
    first, *_, last = summary.quarters
    assert last.latency.p50 > 3 * first.latency.p50
    assert last.error_rate > 3 * first.error_rate
    assert sum(quarter.calls for quarter in summary.quarters) == summary.total.calls
    assert summary.total.rate == summary.total.calls / 3_599
    assert summary.total.succeeded + summary.total.failed == summary.total.calls


@pytest.mark.parametrize("example", [busy_hour(), busy_hour()[::-1]], ids=["original order", "reversed"])
def test_a_large_log_has_the_same_summary_and_keeps_few_texts(
    example: list[CallRecord], log: Path, busy_log: review.Calls, monkeypatch: Any
) -> None:
    write(log, example)
    small = review.summarize(busy_log)
    monkeypatch.setattr(_load, "_LARGE", 0)
    monkeypatch.setattr(_load, "_SAMPLE", 100_000)
    monkeypatch.setattr(_load, "_KEPT", 1e-6)  # so that the texts of some classes are only in the log
    with review.load(log) as calls:
        large = review.summarize(calls)
        ((kept,),) = calls.rows("SELECT count(url) FROM calls_compact")
        ((whole,),) = calls.rows("SELECT count(url) FROM calls")
    assert kept < len(example) / 2
    assert whole == len(example)
    assert large.total == small.total
    assert large.slowest == small.slowest
    assert [(each.name, each.calls) for each in large.errors] == [(each.name, each.calls) for each in small.errors]
    assert all(each.example.error for each in large.errors)


def test_equal_values_are_listed_in_the_same_order_for_any_order_of_the_rows(log: Path) -> None:
    """Every call has an equal: in its second, of its URL, its duration, its project and its error class."""
    made = [
        call(n, t=START + n // 40, url=f"https://h{n % 3}.example/", project=f"{n % 4}", error="E: x")
        for n in range(400)
    ]
    random_numbers = random.Random(1)
    found = list[review.Summary]()
    for _ in range(4):
        random_numbers.shuffle(made)
        with review.load(write(log, made)) as calls:
            found.append(review.summarize(calls))
    assert found == [found[0]] * len(found)
    assert found[0].bursts.peak == at(0)
    assert [int(each.call_id[:32], 16) for each in found[0].slowest] == [400, 398, 399]


def test_the_summary_of_a_log_without_calls_has_no_figures(log: Path) -> None:
    write(log, [])
    with review.load(log) as calls:
        summary = review.summarize(calls)
    assert (summary.total.calls, summary.quarters, summary.quiet, summary.slowest, summary.errors) == (
        0,
        (),
        (),
        (),
        (),
    )
    assert summary.bursts == review.Bursts(peak=None, peak_calls=0, median=0.0, seconds=0)
    assert math.isnan(summary.total.error_rate)
    assert math.isnan(summary.total.rate)
    assert math.isnan(summary.total.latency.p99)


def test_the_summary_of_one_call_has_its_duration_as_every_percentile(log: Path) -> None:
    write(log, [call(0)])
    with review.load(log) as calls:
        summary = review.summarize(calls)
    assert summary.total.latency == review.Latency(p50=0.25, p90=0.25, p95=0.25, p99=0.25, max=0.25)
    assert (summary.quarters, summary.quiet, summary.bursts.peak_calls) == ((), (), 1)
    assert summary.slowest[0].trace_id == f"{1:032x}"


HOSTS = {
    "https://api.example.com/x": "api.example.com",
    "http://[::1]:8080/": "[::1]:8080",
    "https://REDACTED@api.example.com:81?q=/a/b": "api.example.com:81",
    "https://h#/x@y": "h",
    "https://h": "h",
    "/relative": "",
    "": "",
}
CLASSES = [
    ("AttemptTimeout: no answer within 5 s: really", None, "AttemptTimeout"),
    ("HTTPStatusError: 404 Not Found", 404, "HTTPStatusError 404"),
    ("CancelledError", None, "CancelledError"),
    ("", None, "no error given"),
]


def test_the_host_is_extracted_from_the_url(log: Path) -> None:
    write(log, (call(number, url=url) for number, url in enumerate(HOSTS)))
    with review.load(log) as calls:
        assert dict(calls.rows("SELECT url, host FROM calls")) == HOSTS


def test_the_error_type_is_derived_from_error_and_status_code(log: Path) -> None:
    write(log, (call(n, error=error, response_code=code) for n, (error, code, _) in enumerate(CLASSES)))
    with review.load(log) as calls:
        assert calls.rows("SELECT error, response_code, error_type FROM calls ORDER BY t") == CLASSES


def test_a_where_condition_selects_calls_and_an_invalid_one_is_refused(log: Path) -> None:
    write(log, map(call, range(10)))
    with review.load(log, where="t >= '2026-09-21 14:13:25' AND host = 'api.example.com'") as calls:
        assert len(calls) == 5
        assert calls.rows("SELECT count(*) FROM calls") == [(5,)]
        assert calls.rows("SELECT count(*) FROM log") == [(10,)]
    invalid = ("nosuch > 1", "nosuch(url)", "project = 1", "url::TINYINT = 1", ")", "sum(delta_t) > 1", "1; 2")
    for wrong in invalid:
        with pytest.raises(ValueError, match=f"^where {re.escape(repr(wrong))} is not a valid condition: "):
            review.load(log, where=wrong)
    with pytest.raises(ValueError, match=r"^where must not be empty$"):
        review.load(log, where=" ")


def test_a_where_condition_does_not_hide_damaged_lines(log: Path) -> None:
    log.write_bytes(HEADER + rows(call(0)) + b"garbage\n" + rows(call(1)))
    with review.load(log, where="project = 'none'") as calls:
        assert (len(calls), calls.files[0].damaged) == (0, 1)


def test_calls_are_available_as_pandas_polars_and_duckdb_objects(log: Path) -> None:
    write(log, [call(0), call(1, error="AttemptTimeout: x")])
    calls = review.load(log)
    assert list(calls.df().columns) == calls.pl().columns == HEADER.decode().strip().split(",")
    assert calls.pl()["response_code"].to_list() == [200, None]
    assert str(calls.df()["t"].dtype).startswith("datetime64")
    assert calls.sql("SELECT max(delta_t) FROM calls").fetchall() == [(0.25,)]
    others = review.load(log)
    relation, of_others = others.relation, others._folder
    del others
    assert relation.limit(1).fetchall()[0][1] == "P"  # usable after its `Calls` is gone
    shutil.rmtree(of_others)  # otherwise it stays until the end of the program
    folder = Path(calls._folder)
    assert folder.is_dir()
    calls.close()
    calls.close()
    assert not folder.exists()
    with pytest.raises(duckdb.Error):
        len(calls)


JUPYTER = """
import json, sys, types
shell = types.SimpleNamespace(config=json.loads(sys.argv[2]))
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: shell)
sys.modules["ipywidgets"] = None
from otel_connector import review
with review.load(sys.argv[1]) as calls:
    print(calls.sql("SELECT count(*), current_setting('enable_progress_bar') FROM calls").fetchall())
"""


@pytest.mark.parametrize("apps", [{"IPKernelApp": {}}, {}], ids=["Jupyter", "IPython"])
def test_a_log_is_loaded_in_jupyter_without_ipywidgets(apps: dict[str, Any], log: Path) -> None:
    """DuckDB recognizes Jupyter by these names, and then refuses to set its progress bar."""
    write(log, [call(0)])
    done = run_python(["-c", JUPYTER, str(log), json.dumps(apps)], log.parent)
    assert (done.returncode, done.stdout) == (0, "[(1, False)]\n")


@pytest.mark.parametrize(("name", "package"), [("df", "pandas"), ("pl", "polars")])
def test_a_missing_package_for_a_frame_is_reported(name: str, package: str, log: Path, monkeypatch: Any) -> None:
    with review.load(write(log, [call(0)])) as calls:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=rf"Calls.{name} needs {package}: pip install {package}"):
            getattr(calls, name)()


def test_an_error_names_the_log_and_not_its_link(log: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(_load, "_LARGE", 0)
    with review.load(write(log, [call(0)])) as calls:
        log.unlink()
        with pytest.raises(OSError, match=re.escape(str(log))) as caught:
            calls.rows("SELECT count(url) FROM calls")
        with pytest.raises(ValueError, match=re.escape(str(log))) as answer:
            Answer(calls, "SELECT count(url) FROM calls")
    assert "otel_connector-review-" not in f"{caught.value}{answer.value}"


def test_the_side_files_of_a_log_are_left_out_if_they_are_named_with_it(log: Path) -> None:
    write(log, [call(0)])
    torn = Path(f"{log}.torn")
    torn.write_text("half a l", encoding="utf-8")
    Path(f"{log}.replayed").write_text("{}", encoding="utf-8")
    with review.load(log, torn, f"{log}.replayed") as calls:
        assert [file.path for file in calls.files] == [str(log)]
        assert calls.files[0].torn is not None
    with pytest.raises(ValueError, match="not a log"):
        review.load(torn)


def test_temporary_files_are_removed(log: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    log.write_bytes(HEADER + b"garbage\n")
    with review.load(log):
        assert len(list(tmp_path.glob("otel_connector-review-*/*.csv"))) == 1
    with pytest.raises(ValueError, match="where"):
        review.load(log, where="oops")
    assert list(tmp_path.glob("otel_connector-review-*")) == []


def test_a_missing_duckdb_is_reported_with_the_extra_to_install(log: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
    with pytest.raises(ImportError, match=r"otel-connector\[review\]"):
        review.load(log)
