"""Threads that read and write next to the work: order, errors, and nothing left behind."""

from __future__ import annotations

import threading

import pytest
from helpers.processes import GUARD, until

from vsr_trt.runtime.restore.read_ahead import Behind, ahead


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()} & {"read", "write"}


def test_items_come_in_order_and_are_fetched_early() -> None:
    fetched: list[int] = []

    def items():
        for number in range(6):
            fetched.append(number)
            yield number

    found = ahead(items(), depth=2)
    assert next(found) == 0
    until(lambda: len(fetched) >= 4)
    assert fetched == [0, 1, 2, 3], "two wait, one more is in the hand of the thread that puts it"
    assert list(found) == [1, 2, 3, 4, 5]
    assert not threads()


def test_an_error_comes_after_the_items_before_it() -> None:
    def items():
        yield 1
        yield 2
        raise ValueError("the third is broken")

    got = []
    with pytest.raises(ValueError, match="the third"):
        for item in ahead(items()):
            got.append(item)
    assert got == [1, 2]
    assert not threads()


def test_who_stops_early_leaves_no_thread() -> None:
    found = ahead(iter(range(1000)))
    next(found)
    found.close()
    assert not threads()


def test_writing_is_in_order_and_complete() -> None:
    written: list[int] = []
    go_on = threading.Event()

    def write(item: int) -> None:
        assert go_on.wait(GUARD)
        written.append(item)

    with Behind(write, depth=2) as behind:
        for number in range(3):
            behind.put(number)
        assert not written, "the caller goes on before anything is written"
        go_on.set()
        for number in range(3, 10):
            behind.put(number)
    assert written == list(range(10))
    assert not threads()


def test_a_write_that_fails_is_told_and_nothing_is_written_after_it() -> None:
    written: list[int] = []

    def write(item: int) -> None:
        if item == 3:
            raise OSError("disk full")
        written.append(item)

    with pytest.raises(OSError, match="disk full"), Behind(write) as behind:
        for number in range(50):
            behind.put(number)
    assert written == [0, 1, 2]
    assert not threads()
    with pytest.raises(OSError, match="disk full"), Behind(write) as behind:
        behind.put(3)  # known on leaving at the latest
    assert not threads()


def test_an_error_of_the_caller_is_not_waited_with() -> None:
    started, written = threading.Event(), []

    def write(item: int) -> None:
        started.set()
        until(lambda: behind._given_up)  # still at it when the caller has left
        written.append(item)

    with pytest.raises(KeyboardInterrupt), Behind(write, depth=5) as behind:
        for number in range(5):
            behind.put(number)
        started.wait()
        raise KeyboardInterrupt
    assert written == [0], "what waits is given up"
    assert not threads()
