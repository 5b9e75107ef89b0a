"""Turns: nobody fills the queue for the others, callers alternate, and nothing that was taken is kept."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter

import pytest

from eft_engine import errors
from eft_integrations.server.callers.admission import CallerLimitError, Room, TooManyAnswersError, Turns
from eft_integrations.server.callers.callers import Caller
from eft_integrations.server.errors import ApiError

A, B, C = (Caller(name) for name in "abc")


def turns_of(*callers: Caller, num_places: int = 2, capacity: int | None = 12) -> Turns:
    """Turns of these callers."""
    return Turns(num_places=num_places, capacity=capacity, callers=lambda: callers, retry_after_s=lambda waiting: 7)


async def test_callers_take_turns_however_many_each_has_waiting() -> None:
    turns = turns_of(A, B, num_places=1, capacity=20)
    order: list[str] = []

    async def answer(room: Room, name: str) -> None:
        async with room.place():
            order.append(name)
            await asyncio.sleep(0)

    with turns.room(A, 6) as many, turns.room(B, 2) as few:
        async with many.place():
            tasks = [asyncio.create_task(answer(many, "a")) for _ in range(5)]
            await asyncio.sleep(0)
            tasks += [asyncio.create_task(answer(few, "b")) for _ in range(2)]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
    assert order == ["a", "b", "a", "b", "a", "a", "a"]


def test_who_fills_the_common_half_leaves_room_for_everyone_else() -> None:
    turns = turns_of(A, B, C, capacity=12)
    with contextlib.ExitStack() as held:
        for _ in range(8):
            held.enter_context(turns.room(A, 1))
        with pytest.raises(errors.QueueFullError, match="4 are kept for other callers"), turns.room(A, 1):
            pass
        held.enter_context(turns.room(B, 2))
        held.enter_context(turns.room(C, 2))
        with pytest.raises(errors.QueueFullError), turns.room(B, 1):
            pass
    assert turns.in_hand == {}
    with turns.room(A, 8):
        pass


async def test_place_is_kept_for_whoever_has_none() -> None:
    turns = Turns(num_places=5, num_stepped=4, capacity=None, callers=lambda: (A, B, C))
    placed: list[str] = []

    async def ask(name: str) -> None:
        await turns.take(name)
        placed.append(name)

    async with asyncio.TaskGroup() as asked:

        async def come(*names: str) -> list[str]:
            del placed[:]
            for name in names:
                asked.create_task(ask(name))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            return placed

        assert await come(*"aaaaaaaa") == ["a"] * 3, "the engine steps four, and two others have none"
        assert await come("b", "b") == ["b"], "who has none waits for nobody"
        turns.give_back("a")
        assert await come() == [], "this one is for c"
        assert await come("c") == ["c", "a"], "nobody has none: all places are given out, also the one that gets ahead"
        assert turns.num_waiting == 5
        turns.give_back("c")
        assert await come() == [], "c has none again, and three are placed"
        turns.give_back("b")
        assert await come() == ["b"], "whose last answer it was: next is who has none and waits"
        for name in "aaabaaaa":
            turns.give_back(name)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    assert turns.num_waiting == 0


def test_one_caller_alone_has_all_the_room() -> None:
    for turns in (turns_of(A, capacity=5), turns_of(capacity=5)):
        with turns.room(A, 5), pytest.raises(errors.QueueFullError), turns.room(A, 1):
            pass


def test_call_that_no_retry_can_serve_is_400_and_what_may_fit_later_is_429() -> None:
    turns = turns_of(A, B, capacity=12)
    with pytest.raises(TooManyAnswersError) as never, turns.room(A, 10):
        pass
    assert never.value.kind.status == 400
    with turns.room(A, 9), pytest.raises(errors.QueueFullError), turns.room(A, 9):
        pass
    limited = Caller("a", max_requests=2, max_tokens_in_flight=100)
    with pytest.raises(TooManyAnswersError, match="this key allows 2"), turns.room(limited, 3):
        pass
    with pytest.raises(ApiError, match="101 tokens in one call") as too_long, turns.room(limited, 1, num_tokens=101):
        pass
    assert too_long.value.kind.status == 400
    with turns.room(limited, 1, num_tokens=60):
        with pytest.raises(CallerLimitError) as later, turns.room(limited, 2):
            pass
        assert (later.value.kind.status, later.value.headers) == (429, {"Retry-After": "7"})
        with pytest.raises(CallerLimitError, match="60 tokens in flight"), turns.room(limited, 1, num_tokens=41):
            pass
        with turns.room(limited, 1, num_tokens=40):
            pass


@pytest.mark.parametrize("seed", range(20))
async def test_whoever_leaves_at_whatever_moment_no_place_is_lost(seed: int) -> None:
    chance = random.Random(seed)
    turns = turns_of(A, B, C, num_places=3, capacity=None)
    running: Counter[str] = Counter()
    most = 0

    async def ask(caller: Caller, count: int) -> None:
        nonlocal most

        async def answer(room: Room) -> None:
            nonlocal most
            async with room.place():
                running[caller.name] += 1
                most = max(most, running.total())
                try:
                    for _ in range(chance.randrange(4)):
                        await asyncio.sleep(0)
                finally:
                    running[caller.name] -= 1

        with turns.room(caller, count) as room:
            await asyncio.gather(*(answer(room) for _ in range(count)))

    tasks = [asyncio.create_task(ask(chance.choice((A, B, C)), chance.randrange(1, 5))) for _ in range(60)]
    while not all(task.done() for task in tasks):
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0)
    assert most == 3
    assert (turns.num_waiting, turns.in_hand, running.total()) == (0, {}, 0)
    with turns.room(A, 3) as room:
        for _ in range(3):
            await asyncio.wait_for(turns.take("a"), 1)
        for _ in range(3):
            turns.give_back("a")
        assert room is not None
