"""Tests of the CSV format: a record is one line, and every reader returns the same record."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from support.records import BLANK, NASTY_RECORDS, RECORDS, as_written, read_csv, read_duckdb, read_pandas, read_polars

from otel_connector import review
from otel_connector._csv._format import HEADER, cell, decode_row, encode_row
from otel_connector._record import COLUMNS, TEXT_LIMIT, URL_LIMIT, CallRecord

# OWASP, "CSV Injection": the characters that start a formula, and their full-width and small forms in Unicode
STARTS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20", "\ufe66", "\ufe62", "\ufe63", "\ufe6b")


@pytest.mark.parametrize(
    "records", [NASTY_RECORDS, NASTY_RECORDS[::-1], NASTY_RECORDS[:1]], ids=["all", "reversed", "one"]
)
@pytest.mark.parametrize("read", [read_csv, read_pandas, read_polars, read_duckdb])
def test_every_reader_gets_the_same_records(
    read: Callable[[Path], list[list[str]]], records: list[CallRecord], tmp_path: Path
) -> None:
    path = tmp_path / "logs.csv"
    path.write_bytes(HEADER + b"".join(map(encode_row, records)))

    assert [decode_row(cells) for cells in read(path)] == [as_written(record) for record in records]


@given(RECORDS)
@example(BLANK._replace(project="'" * 9 + "=" * TEXT_LIMIT, url='"' * URL_LIMIT))
def test_a_row_is_one_line_without_formulas_and_decodes_to_its_record(record: CallRecord) -> None:
    line = encode_row(record).decode()
    (cells,) = csv.reader(io.StringIO(line, newline=""))

    assert line.splitlines(keepends=True) == [line]
    assert line.endswith("\n")
    assert not [cell for cell in cells if cell.startswith(STARTS)]
    assert decode_row(cells) == as_written(record)
    assert encode_row(as_written(record)) == encode_row(record)


def test_a_row_has_the_documented_format() -> None:
    record = BLANK._replace(
        project="=P", url="https://h/?a=1,2", response_size=17, response_code=404, error='E: "no"\n'
    )

    assert HEADER.decode() == ",".join(COLUMNS) + "\n"
    assert encode_row(record).decode() == (
        f"{BLANK.call_id},'=P,1700000000.250000,0.500000,"
        '"https://h/?a=1,2",,17,404,False,"E: ""no""\\n"\n'
    )  # fmt: skip


def cell_by_cell(record: CallRecord) -> bytes:
    """Encode a record cell by cell."""
    texts = [cell(record.call_id), cell(record.project), f"{record.t:.6f}", f"{record.delta_t:.6f}"]
    texts += [cell(record.url, URL_LIMIT), cell(record.redirect_url, URL_LIMIT), str(record.response_size)]
    texts += ["" if record.response_code is None else str(record.response_code), str(record.success)]
    return (",".join([*texts, cell(record.error)]) + "\n").encode()


@given(RECORDS)
def test_a_row_is_its_encoded_cells(record: CallRecord) -> None:
    assert encode_row(record) == cell_by_cell(record)


def test_unusual_texts_are_escaped_and_truncated_in_each_cell() -> None:
    lengths = (BLANK._replace(url="u" * length) for length in range(1_900, 2_100))
    for record in (*NASTY_RECORDS, *lengths):
        assert encode_row(record) == cell_by_cell(record)


@pytest.mark.parametrize("text", ["{}", "a{}b", "'{}"])
def test_every_special_character_is_escaped(text: str) -> None:
    characters = [chr(code) for code in (*range(0x300), 0x61C, *range(0x2000, 0x2070), 0xFEFF, *range(0xFF00, 0xFF30))]
    for column in ("call_id", "project", "url", "redirect_url", "error"):
        records = [BLANK._replace(**{column: text.format(each)}) for each in characters]  # type: ignore[arg-type]
        assert [encode_row(record) for record in records] == [cell_by_cell(record) for record in records]


TRACE, SPAN = "0123456789abcdef" * 2, "0123456789abcdef"


CALL_ID = f"{TRACE}-{SPAN}"
ALMOST_CALL_IDS = [CALL_ID[:at] + each + CALL_ID[at + 1 :] for at in (0, 31, 32, 33, 48) for each in ',"\n=-\x7fé😀']
ALMOST_CALL_IDS += [CALL_ID + more for more in ("a", ",", ",=1", '"')] + [CALL_ID[:end] for end in (0, 31, 32, 33, 48)]


@pytest.mark.parametrize("call_id", [CALL_ID, *ALMOST_CALL_IDS])
def test_an_unusual_call_id_is_escaped(call_id: str) -> None:
    record = BLANK._replace(project="project", url="http://host/", call_id=call_id)
    assert encode_row(record) == cell_by_cell(record)


@pytest.mark.parametrize("column", ["project", "url", "redirect_url", "error"])
def test_a_formula_in_any_text_column_is_escaped_and_decoded(column: str, tmp_path: Path) -> None:
    texts = [text for start in STARTS for text in (f"{start}1", f"'{start}1", f"''{start}")]
    records = [BLANK._replace(**{column: text}) for text in texts]  # type: ignore[arg-type]
    lines = list(map(encode_row, records))
    for text, record, line in zip(texts, records, lines, strict=True):
        cells = line.decode().rstrip("\n").split(",")
        assert cells[COLUMNS.index(column)] == f"'{text}"
        assert decode_row(cells) == record
    (tmp_path / "logs.csv").write_bytes(HEADER + b"".join(lines))
    with review.load(tmp_path / "logs.csv") as calls:
        assert sorted(calls.rows(f"SELECT {column} FROM log")) == sorted((text,) for text in texts)


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("t", "x"),
        ("t", ""),
        ("delta_t", "1,5"),
        ("response_size", "1.5"),
        ("response_code", "abc"),
        ("success", "true"),
    ],
)
def test_a_cell_of_the_wrong_type_is_refused_with_its_column(column: str, cell: str) -> None:
    cells = encode_row(BLANK).decode().rstrip("\n").split(",")
    cells[COLUMNS.index(column)] = cell
    with pytest.raises(ValueError, match=f"^{column} must be .*, not {cell!r}"):
        decode_row(cells)


@pytest.mark.parametrize("count", [0, 1, 9, 11])
def test_a_row_with_the_wrong_number_of_cells_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"10 cells, this one has {count}$"):
        decode_row(["0"] * count)
