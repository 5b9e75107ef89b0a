"""Python code that data keep busy is ended after its time; nothing else is."""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from eft_engine.errors import InvalidOptionError
from eft_engine.overdue import at_most, for_others


@pytest.fixture(autouse=True)
def _for_others() -> Iterator[None]:
    with for_others():
        yield


def late() -> InvalidOptionError:
    """What is raised."""
    return InvalidOptionError("late", option="x")


def calls_for_ever() -> None:
    """Calls another function again and again."""
    while True:
        len_of([1])


def len_of(items: list[int]) -> int:
    """A length."""
    return len(items)


def test_what_takes_too_long_is_ended_though_it_catches_what_it_can() -> None:
    def stubborn() -> None:
        while True:
            try:
                calls_for_ever()
            except Exception:
                continue

    with pytest.raises(InvalidOptionError, match="late"), at_most(0.05, late):
        stubborn()
    assert sys.gettrace() is None or "_Watch" not in repr(sys.gettrace())


def test_what_is_in_time_goes_on_and_errors_are_its_own() -> None:
    with at_most(5, late):
        assert len_of([1]) == 1
    with pytest.raises(ZeroDivisionError), at_most(5, late):
        _ = 1 / 0


def test_the_outer_time_counts() -> None:
    with pytest.raises(InvalidOptionError), at_most(0.05, late), at_most(100, late):
        calls_for_ever()


def test_waiting_is_no_work() -> None:
    with at_most(0.05, late):
        threading.Event().wait(0.2)
        for _ in range(1000):
            len_of([1])


def test_the_watch_outlives_what_is_thrown_away_while_it_looks() -> None:
    """An error in a generator that is closed because nobody has it any more is heard by nobody."""

    def thrown_away(num_closed: list[int]) -> None:
        def one() -> Iterator[int]:
            try:
                yield 1
            finally:
                num_closed[0] += 1

        while True:
            for _ in range(200):
                next(one())
            len_of(num_closed)

    closed = [0]
    with pytest.raises(InvalidOptionError, match="late"), at_most(0.05, late):
        thrown_away(closed)
    assert closed[0] > 200


def test_a_debugger_keeps_its_place_except_in_work_for_others() -> None:
    found: list[object] = []

    def own(frame: FrameType, event: str, argument: object) -> None:
        """A debugger's."""

    def work() -> None:
        before = sys.gettrace()
        sys.settrace(own)
        try:
            with at_most(60, late):
                found.append(sys.gettrace())
            with for_others(), at_most(60, late):
                found.append(sys.gettrace())
            found.append(sys.gettrace())
        finally:
            sys.settrace(before)

    contextvars.Context().run(work)
    assert (found[0], found[2]) == (own, own)
    assert "_Watch" in repr(found[1])
