"""Tests of the rows that were written since the last successful fsync."""

from __future__ import annotations

import pytest

from otel_connector._csv._fsync import UnsyncedRows

A, B, C = b"a" * 10, b"b" * 10, b"c" * 10


def test_without_an_interval_no_row_is_kept() -> None:
    unsynced = UnsyncedRows(None, 5)
    assert not unsynced.add([A, B])
    assert not unsynced.rows


@pytest.mark.parametrize(("interval", "limit", "due"), [(0, 100, [True, True]), (60.0, 15, [False, True])])
def test_fsync_is_due_for_each_row_or_when_too_many_bytes_are_kept(
    interval: float, limit: int, due: list[bool]
) -> None:
    unsynced = UnsyncedRows(interval, limit)
    assert [unsynced.add([row]) for row in (A, B)] == due


def test_rows_are_forgotten_when_they_are_on_the_disk() -> None:
    unsynced = UnsyncedRows(60.0, 25)
    unsynced.add([A, B])
    unsynced.synced(A)
    assert list(unsynced.rows) == [B]
    assert not unsynced.add([C])
    unsynced.synced(C)
    assert not unsynced.rows


def test_rows_that_another_fsync_has_covered_take_no_later_row_with_them() -> None:
    unsynced = UnsyncedRows(60.0, 25)
    unsynced.add([B])
    unsynced.synced(A)
    assert list(unsynced.rows) == [B]


def test_adding_the_same_rows_again_after_an_interruption_does_nothing() -> None:
    unsynced = UnsyncedRows(60.0, 25)
    for _ in range(2):
        assert not unsynced.add([A, B])
        unsynced.count_bytes()
    assert list(unsynced.rows) == [A, B]
    assert unsynced.add([C])
