"""Whatever callers do, in whatever order and from wherever: afterwards everything is free, and every request is counted once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from eft_engine import Engine, SamplingParams
from tests.choice import thorough_but
from tests.engine.leaving import CALLS, ENDLESS, LEAVING, Watched, cheap_collections, tiny_trio, watched

SHORT = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
PROMPTS = ["abc", "the cat sat on the mat", "the cat sat on the mat and then it left", "x", "12345 " * 6]

pytestmark = [
    pytest.mark.only_torch,
    # What asyncio says of tasks whose loop was closed under them.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", params=[0, 3])
def shared(request: pytest.FixtureRequest) -> Iterator[Watched]:
    """One engine for all schedules, which keeps no conversation or three."""
    with cheap_collections():
        own = watched(tiny_trio(), max_warm_prefixes=request.param)
        with own.engine:
            yield own


def any_prompt(chance: random.Random) -> tuple[str, float]:
    """And a weight: the base alone, or all three."""
    return chance.choice(PROMPTS), chance.choice([0.0, 0.0, 0.5])


def callers_of_a_thread(engine: Engine, chance: random.Random, *, num_held: int = 2) -> None:
    """Open streams, read them and leave them in turns; what is open at the end is dropped.

    Whoever waits holds `num_held` streams at most, or rows might never become free.
    """
    streams: list[Any] = []
    for _ in range(chance.randint(2, 7)):
        action = chance.choice(["open", "open", "open", "read", "leave", "leave", "answer", "score", "look"])
        prompt, weight = any_prompt(chance)
        while len(streams) > (num_held if action in ("read", "answer", "score") else 5):
            streams.pop(chance.randrange(len(streams)))
        if action == "open":
            streams.append(engine.stream(prompt, sampling=ENDLESS, reward_weights=weight))
        elif action == "answer":
            engine.generate(prompt, sampling=SHORT, reward_weights=weight)
        elif action == "score":
            engine.score(prompt, "abc", reward_weights=weight)
        elif action == "look":
            engine.stats()
        elif streams and action == "read":
            next(chance.choice(streams))
        elif streams:
            chance.choice(LEAVING)([streams.pop(chance.randrange(len(streams)))])


def callers_of_two_threads(engine: Engine, chance: random.Random) -> None:
    """At once."""
    own, other = (random.Random(chance.random()) for _ in range(2))
    beside = threading.Thread(target=callers_of_a_thread, args=(engine, other), kwargs={"num_held": 1})
    beside.start()
    callers_of_a_thread(engine, own, num_held=1)
    beside.join()


async def caller_of_a_loop(engine: Engine, chance: random.Random) -> None:
    """One that reads some and leaves, is cancelled, runs out of time, or gets its answer."""
    prompt, weight = any_prompt(chance)
    action = chance.choice(["unread", "drop", "close", "throw", "cancel", "cancel", "late", "late", "answer", "score"])
    if action in ("unread", "drop", "close", "throw"):
        stream = engine.astream(prompt, sampling=ENDLESS, reward_weights=weight)
        for _ in range(0 if action == "unread" else chance.randint(1, 3)):
            await anext(stream)
        if action == "close":
            await stream.aclose()
        elif action == "throw":
            with contextlib.suppress(KeyError):
                await stream.athrow(KeyError("left"))
    elif action == "cancel":
        task = asyncio.ensure_future(chance.choice(CALLS)(engine, prompt))
        for _ in range(chance.randint(0, 4)):
            await asyncio.sleep(chance.choice([0, 0.0005]))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    elif action == "late":
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(chance.choice(CALLS)(engine, prompt), chance.choice([0, 0.0005, 0.001, 0.002]))
    elif action == "answer":
        await engine.agenerate(prompt, sampling=SHORT, reward_weights=weight)
    else:
        await engine.ascore(prompt, "abc", reward_weights=weight)


def callers_of_a_loop(engine: Engine, chance: random.Random) -> None:
    """At once."""

    async def all_of_them() -> None:
        callers = [caller_of_a_loop(engine, random.Random(chance.random())) for _ in range(chance.randint(1, 4))]
        await asyncio.gather(*callers)

    asyncio.run(all_of_them())


def callers_of_a_loop_that_is_closed(engine: Engine, chance: random.Random) -> None:
    """In the middle of everything."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    callers = [caller_of_a_loop(engine, random.Random(chance.random())) for _ in range(chance.randint(1, 4))]
    tasks = [loop.create_task(caller) for caller in callers]
    loop.run_until_complete(asyncio.sleep(chance.choice([0, 0.001, 0.002])))
    loop.run_until_complete(loop.shutdown_default_executor())  # what it has begun may still submit
    loop.close()
    del tasks, callers


SCHEDULES = [
    callers_of_a_thread,
    callers_of_a_thread,
    callers_of_two_threads,
    callers_of_a_loop,
    callers_of_a_loop_that_is_closed,
]


@pytest.mark.parametrize("hundred", thorough_but(map(str, range(10)), often=("0", "7")))
def test_whatever_callers_do_everything_is_free_afterwards(shared: Watched, hundred: str) -> None:
    """A thousand schedules for an engine that keeps nothing, and as many for one that keeps conversations."""
    for seed in range(100 * int(hundred), 100 * (int(hundred) + 1)):
        chance = random.Random(seed)
        schedule = chance.choice(SCHEDULES)
        schedule(shared.engine, chance)
        shared.check_free(f"{schedule.__name__} with seed {seed}", forget_warm=chance.random() < 0.2)
