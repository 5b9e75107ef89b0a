"""A rounded copy of the tuned model drafts over its slots: no bit of any text follows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eft_engine import Engine, EngineConfig, SamplingParams, SpeculationOptions, TunedPair
from eft_engine.errors import EngineStepError
from eft_engine.models.native import draft_copy
from eft_engine.models.native.draft_copy import DraftCopy, draft_quantization
from eft_engine.models.network import Block
from tests.choice import thorough_but
from tests.toy import make_model, make_trio, save_adapter, save_trio

PROMPTS = ["What is it?", "A prompt that is long enough to be read in chunks. " * 3, "x", "And then?"]
GREEDY = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True, logprobs=2)
RANDOM = SamplingParams(temperature=0.9, max_tokens=32, ignore_eos=True, seed=7, logprobs=2)
PLAIN = SpeculationOptions(drafter="none")
FOUR = SpeculationOptions(drafter="tuned", max_draft_tokens=4, adaptive=False, min_confidence=0.0)
pytestmark = pytest.mark.only_torch


def copies_of(engine: Engine) -> list[DraftCopy]:
    """Those that draft."""
    return [network.drafter for network in engine._trio.networks if isinstance(network.drafter, DraftCopy)]


def answers(engine: Engine, sampling: SamplingParams, speculation: SpeculationOptions) -> list[tuple[Any, ...]]:
    """Texts and their log-probabilities: all prompts together, then the first one again, warm."""
    outputs = engine.generate(PROMPTS, sampling=sampling, reward_weights=0.8, speculation=speculation)
    outputs.append(engine.generate(PROMPTS[0], sampling=sampling, reward_weights=1.0, speculation=speculation))
    return [(output.token_ids, output.logprobs) for output in outputs]


@pytest.mark.parametrize("kind", thorough_but(["int8", "int4"], often=["int4"]))
@pytest.mark.parametrize("family", thorough_but(["llama", "qwen3", "gemma3"], often=["gemma3"]))
def test_texts_and_logprobs_are_those_without_it(family: str, kind: str) -> None:
    for sampling in (GREEDY, RANDOM):
        with make_trio(family).engine(cpu_kernels=True, draft_quantization="none") as engine:
            assert not copies_of(engine)
            expected = answers(engine, sampling, PLAIN)
        with make_trio(family).engine(cpu_kernels=True, draft_quantization=kind) as engine:
            assert len(copies_of(engine)) == 1
            for speculation in (FOUR, SpeculationOptions(), PLAIN):
                assert answers(engine, sampling, speculation) == expected


def test_it_has_the_adapters_of_its_network(tmp_path: Path) -> None:
    folders = save_trio(tmp_path / "trio")
    adapter = save_adapter(make_model("llama", seed=3), tmp_path / "adapter", seed=1)

    def engine(kind: str) -> Engine:
        config = EngineConfig.model_validate({"cpu_kernels": True, "draft_quantization": kind, "show_progress": False})
        return Engine.load(
            folders["base"], pairs={"chat": TunedPair(str(adapter), folders["reference"])}, config=config
        )

    with engine("none") as own:
        expected = answers(own, GREEDY, PLAIN)
        assert answers(own, GREEDY, FOUR) == expected
        num_accepted = own.stats().num_accepted
    with engine("int8") as own:
        (copy,) = copies_of(own)
        adapters: set[str | None] = set()
        forward = copy.forward

        def noting(blocks: Sequence[Block]) -> Tensor:
            adapters.update(block.adapter for block in blocks)
            return forward(blocks)

        copy.forward = noting  # type: ignore[method-assign]
        assert answers(own, GREEDY, FOUR) == expected
        assert own.stats().num_accepted >= 0.7 * num_accepted > 0, "it drafts what the tuned model would"
    assert len(adapters) == 1
    assert None not in adapters


def test_it_says_nearly_what_its_network_says() -> None:
    with make_trio("llama").engine(cpu_kernels=True, draft_quantization="int8") as engine:
        network = next(own for own in engine._trio.networks if own.drafter is not None)
        assert network.drafter is not None
        slot = network.kv_cache.allocate()
        expected = network.forward([Block(slot, list(range(3, 40)), 5)])
        slot.truncate(32)
        found = network.drafter.forward([Block(slot, list(range(35, 40)), 5)])
        assert slot.length == 37
        assert (found - expected).abs().max() < 0.05 * expected.abs().max()
        network.kv_cache.release(slot)


def test_the_tuned_model_is_read_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    with make_trio("llama").engine(cpu_kernels=True, draft_quantization="int8") as engine:
        networks = [*engine._trio.networks, *copies_of(engine)]
        passes = dict.fromkeys([network.name for network in networks], 0)
        for network in networks:

            def forward(blocks: Sequence[Block], name: str = network.name, original: Any = network.forward) -> Tensor:
                passes[name] += 1
                result: Tensor = original(blocks)
                return result

            monkeypatch.setattr(network, "forward", forward)
        output = engine.generate(PROMPTS[0], sampling=GREEDY, reward_weights=1.0, speculation=FOUR)
    steps = output.metrics.num_steps
    assert passes["base"] == passes["chat.reference"] == steps
    assert passes["chat.tuned"] == steps + 4, "of the first step, in which it reads the prompt, are its drafts its own"
    assert passes["chat.tuned (drafting)"] > 3 * (steps - 2)


def test_a_copy_that_fails_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    with make_trio("llama").engine(cpu_kernels=True, draft_quantization="none") as engine:
        expected = engine.generate(PROMPTS[0], sampling=GREEDY, reward_weights=1.0, speculation=PLAIN).token_ids
    with make_trio("llama").engine(cpu_kernels=True, draft_quantization="int8") as engine:
        (copy,) = copies_of(engine)
        calls = 0
        original = copy.forward

        def fails_once(blocks: Sequence[Block]) -> Tensor:
            nonlocal calls
            calls += 1
            logits = original(blocks)
            if calls == 6:
                raise RuntimeError("out of luck")
            return logits

        monkeypatch.setattr(copy, "forward", fails_once)
        try:
            first: Any = engine.generate(PROMPTS[0], sampling=GREEDY, reward_weights=1.0, speculation=FOUR).token_ids
        except EngineStepError:
            first = expected  # its own request may fail; the next one may not
        assert calls >= 6
        assert first == expected
        assert engine.generate(PROMPTS[0], sampling=GREEDY, reward_weights=1.0, speculation=FOUR).token_ids == expected


def test_not_a_number_in_the_copy_ends_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    with make_trio("llama").engine(cpu_kernels=True, draft_quantization="int8") as engine:
        expected = engine.generate(PROMPTS[0], sampling=GREEDY, reward_weights=1.0, speculation=PLAIN).token_ids
        (copy,) = copies_of(engine)
        original = copy.forward
        monkeypatch.setattr(copy, "forward", lambda blocks: original(blocks) * torch.nan)
        output = engine.generate(PROMPTS[0], sampling=GREEDY, reward_weights=1.0, speculation=FOUR)
    assert output.token_ids == expected
    assert output.metrics.num_accepted == 0


def test_who_has_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama").to(torch.bfloat16)

    def chosen(*members: str, quantization: Any = "none", **config: object) -> str:
        return draft_quantization(
            model, EngineConfig.model_validate(config), members=members, quantization=quantization
        )

    tuned = ("chat.tuned", "chat.reference")
    assert chosen(*tuned) == "none", "small models"
    assert chosen(*tuned, draft_quantization="int8") == "int8"
    assert chosen("base", *tuned, draft_quantization="int4") == "int4"
    assert chosen("chat.reference", draft_quantization="int4") == "none", "it never drafts"
    assert chosen(*tuned, draft_quantization="int4", quantization="int4") == "none", "it is one itself"
    monkeypatch.setattr(draft_copy, "LEAST_PARAMETERS", 1000)
    assert chosen(*tuned) == "int4"
    assert chosen("base", *tuned) == "none"
    assert chosen(*tuned, draft_quantization="none") == "none"
    monkeypatch.setattr(draft_copy, "available_memory", lambda device: 1000)
    assert chosen(*tuned) == "none", "there is no memory for it"
