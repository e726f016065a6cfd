"""Tests of the rows that wait for the disk: in order, bounded, and removed once."""

from __future__ import annotations

from otel_connector._csv._backlog import Backlog

A, B, C = b"a" * 10, b"b" * 10, b"c" * 10


def test_rows_are_kept_in_order_up_to_the_limit() -> None:
    backlog = Backlog(20)
    assert [backlog.add(row) for row in (A, B, C)] == [True, True, False]
    assert backlog.first(1) == [A]
    assert backlog.first(9) == [A, B]
    assert backlog.ends_with(B)
    assert not backlog.ends_with(bytes(bytearray(B))), "an equal row is another row"


def test_the_first_row_is_kept_regardless_of_its_size() -> None:
    backlog = Backlog(1)
    assert backlog.add(A)
    assert not backlog.add(B)


def test_removed_rows_make_room_and_removing_them_again_does_nothing() -> None:
    backlog = Backlog(20)
    for row in (A, B):
        backlog.add(row)
    for _ in range(2):
        backlog.remove([A])
        assert backlog.first(9) == [B]
    assert backlog.add(C)
    backlog.remove([B, C])
    backlog.remove([C])
    assert not backlog.rows
    assert not backlog.ends_with(C)
    assert backlog.add(A)
    assert backlog.add(B)


def test_rows_that_wait_from_the_start_count_regardless_of_their_size() -> None:
    backlog = Backlog(20, [A, B, C])
    assert backlog.first(9) == [A, B, C]
    backlog.remove([A])
    assert not backlog.add(A)
    backlog.remove([B])
    assert backlog.add(A)


def test_bytes_can_be_counted_again_after_an_interrupted_change() -> None:
    backlog = Backlog(20, [A, B])
    backlog.rows.popleft()  # `remove`, interrupted before it counts
    backlog.count_bytes()
    assert backlog.add(C)
