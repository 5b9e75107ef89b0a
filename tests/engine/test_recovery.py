"""Steps that fail: the requests at fault end with a typed error, the others get the text they get alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eft_engine import Engine, SamplingParams
from eft_engine.engine.sequence import GenerationSequence
from eft_engine.errors import EngineStepError, StepOutOfMemoryError
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.memory import is_out_of_memory
from eft_engine.models.network import Block
from tests.toy import make_trio

PROMPTS = ["abc", "the cat sat on the mat", "x", "Hello, world! " * 4, "12345", "one two three", "zz", "Q"]
SAMPLED = [SamplingParams(temperature=0.8, seed=seed, max_tokens=10, ignore_eos=True) for seed in range(len(PROMPTS))]
Forward = Callable[[list[Block]], Any]


@pytest.fixture(
    scope="module", params=["llama", pytest.param("falcon_h1", marks=[pytest.mark.only_torch, pytest.mark.thorough])]
)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """One engine for all tests of an architecture: it must survive each of them."""
    with make_trio(request.param).engine(prefill_chunk_len=16) as engine:
        yield engine


@pytest.fixture(scope="module")
def expected(engine: Engine) -> list[tuple[int, ...]]:
    """What every prompt gives alone."""
    return [
        engine.generate(prompt, sampling=sampling).token_ids for prompt, sampling in zip(PROMPTS, SAMPLED, strict=True)
    ]


def patch_forward(patch: pytest.MonkeyPatch, network: LanguageModel, check: Callable[[list[Block]], None]) -> None:
    """Let `check`, which may raise, see the blocks before every forward pass of `network`."""
    original: Forward = network.forward

    def checked(blocks: list[Block]) -> Any:
        check(blocks)
        return original(blocks)

    patch.setattr(network, "forward", checked)


def collect(engine: Engine) -> list[tuple[int, ...] | EngineStepError]:
    """The answers to all prompts, in flight together, errors included."""
    streams = [engine.stream(prompt, sampling=sampling) for prompt, sampling in zip(PROMPTS, SAMPLED, strict=True)]
    results: list[tuple[int, ...] | EngineStepError] = []
    for stream in streams:
        try:
            results.append(tuple(token_id for delta in stream for token_id in delta.token_ids))
        except EngineStepError as error:
            results.append(error)
    return results


def test_exception_fails_the_request_at_fault_only(
    engine: Engine, expected: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_token = engine.tokenizer.encode("Q")[0]

    def refuse_bad(blocks: list[Block]) -> None:
        if any(block.slot.length == 0 and block.token_ids[0] == bad_token for block in blocks):
            raise RuntimeError("cannot read this")

    patch_forward(monkeypatch, engine._trio.networks[0], refuse_bad)
    *fine, failed = collect(engine)
    assert fine == expected[:-1]
    assert isinstance(failed, EngineStepError)
    assert "cannot read this" in str(failed)


def test_memory_that_runs_out_shrinks_the_batch(
    engine: Engine, expected: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, sizes = [], []

    def at_most_two(blocks: list[Block]) -> None:
        if len(blocks) > 2:
            refused.append(len(blocks))
            raise torch.OutOfMemoryError("pretended")
        sizes.append(len(blocks))

    patch_forward(monkeypatch, engine._trio.networks[0], at_most_two)
    assert collect(engine) == expected
    assert refused
    assert max(sizes) == 2


def test_request_that_does_not_fit_alone_fails(engine: Engine, expected: list[tuple[int, ...]]) -> None:
    def never(_: list[Block]) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")

    with pytest.MonkeyPatch.context() as patch:
        patch_forward(patch, engine._trio.networks[0], never)
        with pytest.raises(StepOutOfMemoryError, match="not enough memory"):
            engine.generate(PROMPTS, sampling=SAMPLED)
    assert collect(engine) == expected


def test_memory_that_runs_out_at_admission(engine: Engine, expected: list[tuple[int, ...]]) -> None:
    prefixes = engine._worker._scheduler._prefixes
    original, chance = prefixes.attach, random.Random(0)

    def sometimes(*args: Any) -> None:
        if chance.random() < 0.3:
            raise MemoryError("pretended")
        original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "attach", sometimes)
        results = collect(engine)
    assert all(
        result == wanted or isinstance(result, StepOutOfMemoryError)
        for result, wanted in zip(results, expected, strict=True)
    )
    assert collect(engine) == expected


def test_unforeseen_failure_fails_what_is_in_flight_and_nothing_after(
    engine: Engine, expected: list[tuple[int, ...]]
) -> None:
    def broken() -> None:
        raise RuntimeError("not foreseen")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._worker._scheduler, "drop_finished", broken)
        results = collect(engine)
    assert all(isinstance(result, EngineStepError) and "not foreseen" in str(result) for result in results)
    assert collect(engine) == expected
    for network in engine._trio.networks:
        held = sum(slot is not None for slot in network.kv_cache._slots)
        assert held <= engine._worker._scheduler._prefixes._max_warm


def test_request_that_cannot_take_its_tokens_fails_alone(
    engine: Engine, expected: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = GenerationSequence.commit

    def fail_one(self: GenerationSequence, *args: Any) -> None:
        if self.sampling.seed == 3:
            raise ValueError("no text for this")
        commit(self, *args)

    monkeypatch.setattr(GenerationSequence, "commit", fail_one)
    results = collect(engine)
    assert isinstance(results[3], EngineStepError)
    assert isinstance(results[3].__cause__, ValueError)
    assert results[:3] + results[4:] == expected[:3] + expected[4:]


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), share=st.floats(0.02, 0.3))
def test_text_is_the_same_whatever_is_preempted(
    engine: Engine, expected: list[tuple[int, ...]], seed: int, share: float
) -> None:
    """Passes of every member fail at random, for lack of memory, and so every request is preempted again and again."""
    chance = random.Random(seed)

    def sometimes(blocks: list[Block]) -> None:
        if len(blocks) > 1 and chance.random() < share:
            raise torch.OutOfMemoryError("pretended")

    with pytest.MonkeyPatch.context() as patch:
        for network in engine._trio.networks:
            patch_forward(patch, network, sometimes)
        assert collect(engine) == expected


@pytest.mark.only_torch
@pytest.mark.parametrize("seed", range(6))
def test_text_is_the_same_whatever_breaks_off_in_the_middle(
    expected: list[tuple[int, ...]], seed: int, request: pytest.FixtureRequest
) -> None:
    """Some layers of a model in torch have done the pass and some have not when memory runs out."""
    architecture = request.node.callspec.params["engine"]
    chance = random.Random(seed)
    broken: list[torch.nn.Module] = []

    def sometimes(layer: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if len(args[0]) > 1 and chance.random() < 0.1:
            broken.append(layer)
            raise torch.OutOfMemoryError("pretended")

    with make_trio(architecture).engine(prefill_chunk_len=16, cpu_kernels=False) as in_torch:
        for network in in_torch._trio.networks:
            for layer in network.model.model.layers:
                layer.register_forward_pre_hook(sometimes)
        assert collect(in_torch) == expected
    assert broken


def test_what_out_of_memory_looks_like() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
