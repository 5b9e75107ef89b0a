"""Engines whose requests are counted, and ways in which callers leave them."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Awaitable, Iterator
from typing import Any

import pytest

from eft_engine import Engine, SamplingParams
from eft_engine.engine.sequence import Sequence
from tests.toy import ToyTrio, make_model, make_tokenizer

ENDLESS = SamplingParams(temperature=0.0, max_tokens=100_000, ignore_eos=True)
"""A request that nobody ends would run on for many minutes."""


class Watched:
    """An engine whose requests are counted as they come."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.num_submitted = 0
        original = engine._worker.submit

        def submit(sequences: list[Sequence]) -> None:
            original(sequences)
            self.num_submitted += len(sequences)

        engine._worker.submit = submit  # type: ignore[method-assign]

    def check_free(self, what: object, *, forget_warm: bool = False) -> None:
        """Wait until nothing runs, then: every request was counted once, and no slot is held but those of warm conversations."""
        deadline = time.monotonic() + 30
        while (stats := self.engine.stats()).num_running or stats.num_waiting:
            assert time.monotonic() < deadline, f"{what}: requests of callers that left still run: {stats}"
            time.sleep(0.0005)
        assert stats.num_finished + stats.num_failed + stats.num_cancelled == self.num_submitted, f"{what}: {stats}"
        prefixes = self.engine._worker._scheduler._prefixes
        if forget_warm:
            prefixes.clear()
        for network in self.engine._trio.networks:
            warm = sum(prefix.network is network for conversation in prefixes._warm for prefix in conversation)
            held = sum(slot is not None for slot in network.kv_cache._slots)
            assert held == warm, f"{what}: {network.name} has {held} slots in use and {warm} warm ones"
            if not warm:
                network.kv_cache.trim()
                assert network.kv_cache.num_bytes == 0, f"{what}: {network.name}"


def tiny_trio() -> ToyTrio:
    """As small as models get."""
    base, tuned, reference = (
        make_model("llama", hidden_size=16, num_layers=1, seed=seed, context_len=200_000) for seed in (1, 2, 3)
    )
    return ToyTrio(base, tuned, reference, make_tokenizer())


def watched(trio: ToyTrio, **config: object) -> Watched:
    """Fewer rows than callers, short chunks."""
    return Watched(trio.engine(max_num_seqs=3, prefill_chunk_len=16, speculation={"drafter": "none"}, **config))


@contextlib.contextmanager
def cheap_collections() -> Iterator[None]:
    """Inside, collecting garbage looks at what came since alone."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


# ---- leaving a stream ------------------------------------------------------------------------------------------------------


def drop(streams: list[Any]) -> None:
    """The last reference goes."""
    streams.clear()


def tie_into_a_knot(streams: list[Any]) -> None:
    """Only the collector of cycles finds it."""
    knot = [*streams]
    knot.append(knot)
    streams.clear()
    del knot
    gc.collect()


def close(streams: list[Any]) -> None:
    """While it is held."""
    streams[0].close()
    assert next(streams[0], None) is None


def throw(streams: list[Any]) -> None:
    """As a context manager does."""
    with pytest.raises(KeyError):
        streams[0].throw(KeyError("left"))


LEAVING = [drop, tie_into_a_knot, close, throw]


# ---- waiting in an event loop ----------------------------------------------------------------------------------------------


def first_piece(engine: Engine, prompt: str = "abc") -> Awaitable[object]:
    """Of a stream."""
    return anext(engine.astream(prompt, sampling=ENDLESS))


def whole_answers(engine: Engine, prompt: str = "abc") -> Awaitable[object]:
    """Of a list."""
    answers: Awaitable[object] = engine.agenerate([prompt, prompt], sampling=ENDLESS)
    return answers


def long_score(engine: Engine, prompt: str = "abc") -> Awaitable[object]:
    """Hundreds of steps."""
    return engine.ascore(prompt, "def" * 10_000)


CALLS = [first_piece, whole_answers, long_score]
