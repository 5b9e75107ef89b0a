"""Requests are made ready beside the event loop, a few at once: what takes long makes way for what does not."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Iterator

import pytest

from eft_engine import errors, overdue, preparing
from eft_engine.overdue import at_most, for_others
from eft_engine.preparing import prepared


@pytest.fixture(autouse=True)
def given_back() -> Iterator[None]:
    """Every turn is given back."""
    places = preparing._places
    before = [own._value for own in (places.short, places.long, places.long_ones)]
    yield
    assert [own._value for own in (places.short, places.long, places.long_ones)] == before


def _over() -> errors.RequestError:
    return errors.RequestError("over")


def _nothing() -> None:
    """What is called while something is busy."""


def busy(end: threading.Event, begun: threading.Semaphore) -> None:
    """Work of Python's until somebody ends it."""
    begun.release()
    with for_others(), at_most(60, _over):
        while not end.is_set():
            _nothing()


async def test_what_takes_long_makes_way_for_what_does_not() -> None:
    end, begun = threading.Event(), threading.Semaphore(0)
    count = preparing.SHORT_AT_ONCE + preparing.LONG_AT_ONCE + 2
    long = [asyncio.create_task(prepared(busy, end, begun)) for _ in range(count)]
    try:
        assert await asyncio.wait_for(prepared(len, "abc"), 60) == 3
        assert not any(task.done() for task in long)
        while preparing._places.long_ones._value > preparing.MOST_LONG - count:
            await asyncio.sleep(0.01)  # until all of them are known to be long
        assert preparing._places.short._value == preparing.SHORT_AT_ONCE
        assert preparing._places.long._value == 0
    finally:
        end.set()
    await asyncio.gather(*long)


async def test_too_much_that_takes_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing._places, "long_ones", threading.Semaphore(1))
    end, begun = threading.Event(), threading.Semaphore(0)
    long = asyncio.create_task(prepared(busy, end, begun))
    while preparing._places.long_ones._value:
        await asyncio.sleep(0.01)
    try:
        with pytest.raises(errors.QueueFullError):
            await prepared(busy, end, begun)
    finally:
        end.set()
    await long
    monkeypatch.undo()


async def test_what_nobody_waits_for_any_more_is_not_begun() -> None:
    end, begun, called = threading.Event(), threading.Semaphore(0), []

    def holds_its_turn() -> None:
        begun.release()
        end.wait(60)

    short = [asyncio.create_task(prepared(holds_its_turn)) for _ in range(preparing.SHORT_AT_ONCE)]
    for _ in short:
        await asyncio.to_thread(begun.acquire)
    late = asyncio.create_task(prepared(called.append, "late"))
    await asyncio.sleep(0.05)
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await late
    end.set()
    await asyncio.gather(*short)
    await prepared(_nothing)
    assert not called


def test_elsewhere_nothing_waits_for_a_turn() -> None:
    for _ in range(preparing.MOST_LONG + 1):
        with preparing.making_way() as may_go_on:
            assert may_go_on


async def test_long_work_for_others_rests_in_these_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rest on an event loop would stop everybody."""
    rests: list[str] = []
    monkeypatch.setattr(overdue, "time", _Clock(rests))

    def long() -> None:
        end = time.thread_time() + 0.1
        with at_most(60, _over):
            while time.thread_time() < end:
                _nothing()

    def for_all() -> None:
        with for_others():
            long()

    for_all()
    await prepared(contextvars.Context().run, long)
    assert rests == []
    await prepared(for_all)
    assert rests
    assert all(name.startswith("eft-prepare") for name in rests)
    assert not preparing.is_preparing()


class _Clock:
    """The clock, which notes in what threads somebody sleeps."""

    def __init__(self, rests: list[str]) -> None:
        self._rests = rests
        self.thread_time = time.thread_time

    def sleep(self, seconds: float) -> None:
        """Do not."""
        self._rests.append(threading.current_thread().name)
