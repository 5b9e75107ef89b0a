"""Whatever comes, goes, fails, is cancelled or reloaded: turns keep no room and no place, and hold what they promise."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from eft_engine import EngineConfig, errors
from eft_integrations.backends.pool import backend_of
from eft_integrations.backends.refusals import Refusal, eft_meaning
from eft_integrations.server.callers.admission import CallerLimitError, InHand, Room, Turns
from eft_integrations.server.callers.callers import Caller, KeySettings
from eft_integrations.server.errors import ApiError
from eft_integrations.server.settings import ServerSettings
from tests.integrations.server.serving import in_process
from tests.toy import make_trio

PLACES, STEPPED, CAPACITY = (1, 3), (None, 2), 10
LIMITS = {"a": (None, None), "b": (4, None), "c": (None, 50)}
EVERYBODY = [Caller(name, answers, tokens) for name, (answers, tokens) in LIMITS.items()]


class BrokenError(Exception):
    """Of an answer that fails."""


@dataclass
class Asked:
    """A call: who asks at which engine, for how much, and how it goes on."""

    caller: Caller
    engine: int
    count: int
    num_tokens: int
    go_on: list[asyncio.Future[None]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    num_waiting: int = 0
    num_placed: int = 0

    async def run(self, turns: Turns) -> None:
        """All answers, each of which keeps its place until it is told to go on or to fail; one that fails ends all of them."""
        with turns.room(self.caller, self.count, num_tokens=self.num_tokens) as room:
            try:
                async with asyncio.TaskGroup() as answers:
                    for _ in range(self.count):
                        answers.create_task(self._answer(room))
            except* BrokenError:
                pass  # the call is over

    async def _answer(self, room: Room) -> None:
        self.num_waiting += 1
        async with contextlib.AsyncExitStack() as placed:
            try:
                await placed.enter_async_context(room.place())
            finally:
                self.num_waiting -= 1
            self.num_placed += 1
            self.go_on.append(asyncio.get_running_loop().create_future())
            try:
                await self.go_on[-1]
            finally:
                self.num_placed -= 1


class Machine(RuleBasedStateMachine):
    """Two engines of one server; after every step the loop runs until nothing is left to do."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.callers = EVERYBODY[:2]
        everywhere = InHand()
        self.turns = [
            Turns(
                num_places=places,
                capacity=CAPACITY,
                num_stepped=stepped,
                callers=lambda: self.callers,
                everywhere=everywhere,
            )
            for places, stepped in zip(PLACES, STEPPED, strict=True)
        ]
        self.asked: list[Asked] = []

    def teardown(self) -> None:
        for own in self.asked:
            assert own.task is not None
            own.task.cancel()
        self.settle()
        assert [turns.in_hand for turns in self.turns] == [{}, {}]
        assert [turns.num_waiting for turns in self.turns] == [0, 0]
        self.callers = ()
        for turns, places in zip(self.turns, PLACES, strict=True):  # every place is there again
            for _ in range(places):
                self.loop.run_until_complete(asyncio.wait_for(turns.take("a"), 0.05))
        self.loop.close()

    def settle(self) -> None:
        """Let everything happen that can."""

        async def some_time() -> None:
            for _ in range(12):
                await asyncio.sleep(0)

        self.loop.run_until_complete(some_time())
        self.asked = [own for own in self.asked if own.task is not None and not own.task.done()]

    @rule(
        caller=st.sampled_from(EVERYBODY),
        engine=st.integers(0, 1),
        count=st.integers(1, 12),
        num_tokens=st.integers(0, 60),
    )
    def ask(self, caller: Caller, engine: int, count: int, num_tokens: int) -> None:
        own = Asked(caller, engine, count, num_tokens if caller.max_tokens_in_flight else 0)
        together = [own, *(other for other in self.asked if other.caller is caller)]
        own.task = self.loop.create_task(own.run(self.turns[engine]))
        self.asked.append(own)
        self.settle()
        if own.task.done():  # refused: with an error of ours, and for a reason
            with pytest.raises((ApiError, errors.QueueFullError)) as refused:
                own.task.result()
            if isinstance(refused.value, CallerLimitError):
                num_answers = sum(other.count for other in together)
                all_tokens = sum(other.num_tokens for other in together)
                assert num_answers > (caller.max_requests or 99) or all_tokens > (caller.max_tokens_in_flight or 999)

    @rule(chosen=st.randoms(use_true_random=False), fails=st.booleans())
    def end_an_answer(self, chosen: object, fails: bool) -> None:
        waiting = [future for own in self.asked for future in own.go_on if not future.done()]
        if not waiting:
            return
        future = chosen.choice(waiting)  # type: ignore[attr-defined]
        if fails:
            future.set_exception(BrokenError)
        else:
            future.set_result(None)
        self.settle()

    @rule(chosen=st.randoms(use_true_random=False), at_once=st.integers(1, 3))
    def leave(self, chosen: object, at_once: int) -> None:
        for _ in range(at_once):
            if self.asked:
                chosen.choice(self.asked).task.cancel()  # type: ignore[attr-defined]
        self.settle()

    @rule(num_callers=st.integers(0, 3))
    def reload(self, num_callers: int) -> None:
        self.callers = EVERYBODY[:num_callers]

    @invariant()
    def promises_are_kept(self) -> None:
        for engine, turns in enumerate(self.turns):
            here = [own for own in self.asked if own.engine == engine]
            placed = sum(own.num_placed for own in here)
            in_hand = Counter[str]()
            for own in here:
                in_hand[own.caller.name] += own.count
            assert turns.in_hand == dict(in_hand)
            assert in_hand.total() <= CAPACITY
            waiting = sum(own.num_waiting for own in here)
            assert turns.num_waiting == waiting
            assert placed <= PLACES[engine]
            if waiting and placed < PLACES[engine]:  # somebody waits and a place is free: it is kept
                assert STEPPED[engine] is not None
                assert placed >= STEPPED[engine] - 1
                with_place = {own.caller.name for own in here if own.num_placed}
                assert {own.caller.name for own in here if own.num_waiting} <= with_place
        for caller in EVERYBODY:
            own_calls = [own for own in self.asked if own.caller is caller]
            assert sum(own.count for own in own_calls) <= (caller.max_requests or 10**9)
            assert sum(own.num_tokens for own in own_calls) <= (caller.max_tokens_in_flight or 10**9)


TestTurns = Machine.TestCase
TestTurns.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def turns_of(num_callers: int, *, capacity: int) -> tuple[Turns, list[Caller]]:
    """Turns of so many callers."""
    callers = [Caller(f"caller-{number}") for number in range(num_callers)]
    return Turns(num_places=2, capacity=capacity, callers=lambda: callers), callers


@pytest.mark.parametrize("num_callers", [2, 3, 10, 1000])
def test_who_floods_leaves_room_however_many_keys_there_are(num_callers: int) -> None:
    turns, callers = turns_of(num_callers, capacity=32)
    with contextlib.ExitStack() as held:
        with contextlib.suppress(errors.QueueFullError):
            for _ in range(32):
                held.enter_context(turns.room(callers[0], 1))
        assert 16 <= turns.in_hand["caller-0"] < 32
        with turns.room(callers[-1], 1):
            pass


def test_limits_of_a_key_hold_over_all_engines_together() -> None:
    everywhere = InHand()
    one, other = (Turns(num_places=2, capacity=8, everywhere=everywhere) for _ in range(2))
    limited = Caller("a", max_requests=2)
    with one.room(limited, 1), other.room(limited, 1), pytest.raises(ApiError, match="has 2 answers in hand"):
        one.room(limited, 1).__enter__()
    with one.room(limited, 2):
        pass


async def test_call_of_many_answers_is_admitted_whole_and_shares_places() -> None:
    turns = Turns(num_places=3, capacity=128)
    most = running = 0

    async def answer(room: Room) -> None:
        nonlocal most, running
        async with room.place():
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

    with turns.room(Caller("a"), 128) as room:
        await asyncio.gather(*(answer(room) for _ in range(128)))
        with pytest.raises(errors.QueueFullError):
            turns.room(Caller("b"), 1).__enter__()
    with pytest.raises(ApiError, match="129 answers in one call"):
        turns.room(Caller("a"), 129).__enter__()
    assert (most, turns.in_hand) == (3, {})


async def test_flood_of_one_key_lets_the_other_through() -> None:
    """Over the real engine: who comes when another has filled its part of the queue is answered among the next."""
    keys = [KeySettings.model_validate({"name": name, "key": name}) for name in ("flood", "other")]
    asked = {"model": "m", "prompt": "abc", "max_tokens": 30, "ignore_eos": True, "temperature": 0}
    ended: list[str] = []

    async def ask(client: httpx.AsyncClient, key: str) -> int:
        reply = await client.post("/v1/completions", json=asked, headers={"x-api-key": key}, timeout=60)
        ended.append(key if reply.status_code == 200 else "refused")
        return reply.status_code

    with make_trio("llama", context_len=512).engine(max_num_seqs=2) as engine:
        limits = ServerSettings(keys=keys, engine=EngineConfig(max_num_seqs=2, max_queued_requests=22))
        async with in_process({"m": backend_of(engine)}, limits) as client:
            flood = [asyncio.create_task(ask(client, "flood")) for _ in range(30)]
            while "refused" not in ended:
                await asyncio.sleep(0.01)
            assert await ask(client, "other") == 200
            behind = 18 - ended.count("flood")
            statuses = Counter(await asyncio.gather(*flood))
    assert statuses == {200: 18, 429: 12}
    assert behind >= 8, "it waited for most of the flood"


@pytest.mark.parametrize(
    ("limits", "code", "told"),
    [
        ({}, "rate_limit_exceeded", (4, 4)),
        ({"max_requests": 4}, "key_limit_exceeded", (4, 4)),
        ({"max_tokens_in_flight": 40}, "key_limit_exceeded", (40, 40)),
    ],
)
def test_server_in_front_knows_what_is_full_behind_it(limits: dict[str, Any], code: str, told: tuple[int, int]) -> None:
    turns, caller = Turns(num_places=1, capacity=4), Caller("front", **limits)
    with turns.room(caller, 4, num_tokens=40), pytest.raises((errors.QueueFullError, CallerLimitError)) as full:
        turns.room(caller, 1, num_tokens=10).__enter__()
    understood = eft_meaning(Refusal(429, str(full.value), code), context_len=1)
    assert isinstance(understood, errors.QueueFullError)
    assert (understood.num_queued, understood.limit) == told
