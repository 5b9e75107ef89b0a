"""Callers leave, each in one way: what they held is free, and every request is counted once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from eft_engine import Engine, GenerationDelta
from eft_engine.engine.sequence import GenerationSequence, Sequence
from eft_engine.errors import EngineClosedError
from tests.engine.gate import Gate
from tests.engine.leaving import CALLS, ENDLESS, LEAVING, Watched, cheap_collections, tiny_trio, watched
from tests.toy import ToyTrio

pytestmark = [
    pytest.mark.only_torch,
    # What asyncio says of tasks whose loop was closed under them.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def trio() -> Iterator[ToyTrio]:
    """One for all engines."""
    with cheap_collections():
        yield tiny_trio()


@pytest.fixture
def fresh(trio: ToyTrio) -> Iterator[Watched]:
    """An engine of one test, which keeps nothing."""
    own = watched(trio, max_warm_prefixes=0)
    with own.engine:
        yield own


@pytest.fixture
def gate(fresh: Watched, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """That of the fresh engine; open at the end, however the test ends."""
    own = Gate(monkeypatch, fresh.engine._trio.networks[0])
    yield own
    own.open()


@pytest.mark.parametrize("leave", LEAVING)
@pytest.mark.parametrize("num_read", [0, 1, 5])
def test_stream_is_left(fresh: Watched, leave: Callable[[list[Any]], None], num_read: int) -> None:
    streams = [fresh.engine.stream("abc", sampling=ENDLESS)]
    for _ in range(num_read):
        next(streams[0])
    leave(streams)
    fresh.check_free(leave)
    assert fresh.engine.stats().num_cancelled == 1


def test_stream_is_left_while_it_waits_for_its_turn(fresh: Watched, gate: Gate) -> None:
    running = [fresh.engine.stream("abc", sampling=ENDLESS) for _ in range(3)]
    assert gate.reached.wait(60)
    waiting = [fresh.engine.stream("abc", sampling=ENDLESS) for _ in range(2)]
    stats = fresh.engine.stats()
    assert stats.num_running + stats.num_waiting == 5 > 3 >= stats.num_running
    waiting.clear()
    running.clear()
    gate.open()
    fresh.check_free("waiting")
    assert fresh.engine.stats().num_cancelled == 5


def test_next_of_a_stream_that_nobody_else_holds_has_its_piece(fresh: Watched) -> None:
    assert next(fresh.engine.stream("abc", sampling=ENDLESS)).token_ids
    fresh.check_free("sync")

    async def first() -> GenerationDelta:
        return await anext(fresh.engine.astream("abc", sampling=ENDLESS))

    assert asyncio.run(first()).token_ids
    fresh.check_free("async")


def test_stream_that_another_thread_closes_ends_for_the_one_that_waits(fresh: Watched, gate: Gate) -> None:
    stream = fresh.engine.stream("abc", sampling=ENDLESS)
    pieces: list[GenerationDelta] = []
    reading = threading.Thread(target=lambda: pieces.extend(stream))
    reading.start()
    assert gate.reached.wait(60)
    stream.close()
    reading.join(60)
    assert not reading.is_alive()
    assert not pieces
    gate.open()
    fresh.check_free("threads")


@pytest.mark.parametrize("looks", range(1, 7))
def test_caller_leaves_between_two_looks(fresh: Watched, monkeypatch: pytest.MonkeyPatch, looks: int) -> None:
    """The engine's thread sees `cancelled` change at whichever of its looks."""
    seen = 0

    def cancelled(_: GenerationSequence) -> bool:
        nonlocal seen
        seen += 1
        return seen >= looks

    monkeypatch.setattr(GenerationSequence, "cancelled", property(cancelled, lambda *_: None), raising=False)
    stream = fresh.engine.stream("abc", sampling=ENDLESS)
    fresh.check_free(looks)
    assert fresh.engine.stats().num_cancelled == 1
    del stream


def test_request_that_was_left_when_the_engine_closes_is_counted(fresh: Watched, gate: Gate) -> None:
    streams = [fresh.engine.stream("abc", sampling=ENDLESS) for _ in range(5)]
    assert gate.reached.wait(60)
    del streams[1:]
    closing = threading.Thread(target=fresh.engine.close)
    closing.start()
    while not fresh.engine._worker._closed:
        time.sleep(0.001)
    gate.open()
    closing.join(60)
    with pytest.raises(EngineClosedError):
        list(streams[0])
    stats = fresh.engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_failed, stats.num_cancelled) == (0, 0, 1, 4)


BLOCKING_CALLS: list[Callable[[Engine], object]] = [
    lambda engine: engine.generate(["abc", "x"], sampling=ENDLESS),
    lambda engine: engine.score("abc", "def" * 10_000),
    lambda engine: list(engine.stream("abc", sampling=ENDLESS)),
]


@pytest.mark.parametrize("call", BLOCKING_CALLS, ids=["generate", "score", "stream"])
def test_thread_is_interrupted(fresh: Watched, gate: Gate, call: Callable[[Engine], object]) -> None:
    """As Ctrl-C does, while it waits."""
    left = threading.Event()

    def interrupt() -> None:
        assert gate.reached.wait(60)
        while not left.wait(0.01):  # a signal that comes just before the wait begins does not end it
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def raises_once(*_: object) -> None:
        if not left.is_set():
            left.set()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, raises_once)
    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            call(fresh.engine)
    finally:
        left.set()
        interrupting.join(60)
        signal.signal(signal.SIGUSR1, before)
    gate.open()
    fresh.check_free("interrupted")
    assert fresh.engine.stats().num_finished == 0


def test_call_is_interrupted_when_its_requests_are_queued_and_nobody_waits_yet(
    fresh: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = fresh.engine._worker.submit

    def interrupted(sequences: list[Sequence]) -> None:
        submit(sequences)
        raise KeyboardInterrupt

    monkeypatch.setattr(fresh.engine._worker, "submit", interrupted)
    for call in BLOCKING_CALLS:
        with pytest.raises(KeyboardInterrupt):
            call(fresh.engine)
    fresh.check_free("queued")


# ---- in an event loop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("how", ["cancelled", "timed out", "loop closed"])
def test_call_of_an_event_loop_is_left_while_it_waits(
    fresh: Watched, gate: Gate, call: Callable[[Engine], Awaitable[object]], how: str
) -> None:

    async def ask() -> object:
        return await call(fresh.engine)

    async def leave() -> None:
        task = asyncio.create_task(ask())
        while not gate.reached.is_set():
            await asyncio.sleep(0.001)
        if how == "cancelled":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(task, 0)

    if how == "loop closed":
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)
        task = loop.create_task(ask())
        while not gate.reached.is_set():
            loop.run_until_complete(asyncio.sleep(0.001))
        loop.close()
        del task
    else:
        asyncio.run(leave())
    gate.open()
    fresh.check_free(how)
    gc.collect()


async def test_async_stream_is_left(fresh: Watched) -> None:
    """Dropping it frees at once: the event loop does not come round in between."""
    engine = fresh.engine
    engine.astream("abc", sampling=ENDLESS)
    stream = engine.astream("abc", sampling=ENDLESS)
    await stream.aclose()
    assert await anext(stream, None) is None
    assert fresh.num_submitted == 0, "a stream that nobody reads is not asked for"

    stream = engine.astream("abc", sampling=ENDLESS)
    await anext(stream)
    del stream
    fresh.check_free("dropped")

    async with contextlib.aclosing(engine.astream("abc", sampling=ENDLESS)) as stream:
        await anext(stream)
    fresh.check_free("closed")
    assert await anext(stream, None) is None

    stream = engine.astream("abc", sampling=ENDLESS)
    await anext(stream)
    with pytest.raises(KeyError):
        await stream.athrow(KeyError("left"))
    fresh.check_free("thrown at")


async def test_async_stream_that_is_closed_beside_its_reader_ends_for_it(fresh: Watched) -> None:
    stream = fresh.engine.astream("abc", sampling=ENDLESS)
    for num_turns in (0, 1, 20):  # before it was submitted, and after
        stream = fresh.engine.astream("abc", sampling=ENDLESS)

        async def read(own: Any = stream) -> int:
            return len([piece async for piece in own])

        task = asyncio.create_task(read())
        for _ in range(num_turns):
            await asyncio.sleep(0.001)
        await stream.aclose()
        assert await asyncio.wait_for(task, 60) >= 0
        fresh.check_free(num_turns)


async def test_two_tasks_do_not_read_one_stream_at_once(fresh: Watched) -> None:
    stream = fresh.engine.astream("abc", sampling=ENDLESS)
    reading = asyncio.create_task(stream.__anext__())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="another task waits"):
        await anext(stream)
    assert (await reading).token_ids
    await stream.aclose()
    fresh.check_free("two tasks")
