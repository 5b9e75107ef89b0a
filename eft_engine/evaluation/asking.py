"""Many prompts in flight together, and each answer as soon as it is there."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from eft_engine.config import CompositionOptions, Prompt, SamplingParams
from eft_engine.outputs import RequestOutput
from eft_engine.weights import RewardWeights

if TYPE_CHECKING:
    from eft_engine.engine.engine import Engine

TICK_S = 0.2
"""How often who waits for answers is told that none has come."""
LEAST_IN_FLIGHT = 32


class Arrived(NamedTuple):
    """An answer, the place of its prompt, and when it came (`time.perf_counter`)."""

    place: int
    output: RequestOutput
    at: float


def ask(
    engine: Engine,
    prompts: Sequence[Prompt],
    *,
    sampling: SamplingParams,
    reward_weights: RewardWeights,
    composition: CompositionOptions | None,
    on_wait: Callable[[], None] | None = None,
) -> Generator[Arrived]:
    """Answers in the order in which they are finished. Closing the iterator cancels the others.

    Args:
        engine: who is asked; at most twice as many prompts are in flight as it works on together.
        prompts: raw and chat prompts may be mixed.
        sampling, reward_weights, composition: as for `Engine.generate`.
        on_wait: called a few times a second; what it raises ends the asking.

    Raises:
        RequestError, GenerationError: as from `Engine.generate`, of the first prompt that fails.
    """
    arrived: queue.SimpleQueue[Arrived] = queue.SimpleQueue()
    room = asyncio.Semaphore(max(LEAST_IN_FLIGHT, 2 * engine.config.max_num_seqs))

    async def one(place: int, prompt: Prompt) -> None:
        async with room:
            output = await engine.agenerate(
                prompt, sampling=sampling, reward_weights=reward_weights, composition=composition
            )
            arrived.put(Arrived(place, output, time.perf_counter()))

    async def everything() -> None:
        tasks = [asyncio.ensure_future(one(place, prompt)) for place, prompt in enumerate(prompts)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    if not prompts:
        return
    with _LoopThread() as loop:
        asking = loop.start(everything())
        while True:
            is_over = asking.done()  # looked at first: what came before is in the queue then
            try:
                yield arrived.get(timeout=0.0 if is_over else TICK_S)
            except queue.Empty:
                if is_over:
                    asking.result()
                    return
            if on_wait is not None:
                on_wait()


class _LoopThread:
    """An event loop in a thread of its own, so that the caller may have one as well. What runs at the end is cancelled."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="eft-asking", daemon=True)

    def __enter__(self) -> _LoopThread:
        self._thread.start()
        return self

    def start(self, work: Coroutine[Any, Any, None]) -> Any:
        """Run it there; a `concurrent.futures.Future`."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def __exit__(self, *_: object) -> None:
        self.start(_cancel_others()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
