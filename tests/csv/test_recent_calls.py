"""Tests of the memory of recent calls: each call once, bounded, and safe between threads."""

from __future__ import annotations

import threading

from otel_connector._recent_calls import RecentCalls


def test_a_call_is_new_once() -> None:
    calls = RecentCalls(10)
    assert [calls.add(("a", 1)), calls.add(("a", 1)), calls.add(("a", 2))] == [True, False, True]
    same = "the same object"
    assert [calls.add(same), calls.add(same)] == [True, False]


def test_at_least_the_given_number_is_remembered() -> None:
    calls = RecentCalls(3)
    for number in range(100):
        assert calls.add(number)
        assert not any(calls.add(before) for before in range(max(number - 2, 0), number))
    assert calls.add(0)


def test_of_several_threads_one_adds_a_call() -> None:
    calls, added = RecentCalls(10_000), list[bool]()
    threads = [threading.Thread(target=lambda: added.extend(map(calls.add, range(2_000)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(added) == 2_000
