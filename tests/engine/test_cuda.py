"""On a GPU the engine says what it says on a CPU: with recorded passes and without, in streams, with drafts and adapters.

pytest tests/engine/test_cuda.py                  needs a GPU with CUDA
pytest --device cuda tests/engine                 and all tests of toy trios there
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from eft_engine import Engine, EngineConfig, LoadedPair, SamplingParams, SpeculationOptions, TunedPair
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.network import Block
from eft_engine.models.recording import RecordedPasses, recorder_for
from tests.toy import (
    ARCHITECTURES,
    ToyTrio,
    make_model,
    make_tokenizer,
    make_trio,
    naive_greedy,
    save_adapter,
    shape_of,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")

PROMPTS = ["A", "Once upon a time there was", "naïve façade – déjà vu"]
WEIGHTS = [0.5, 1.0, 2.0]
MAX_TOKENS = 16
GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
DRAFTERS = ("none", "tuned", "prompt_lookup")


def expected_texts(trio: ToyTrio) -> list[list[int]]:
    """What the ten-line loop says on the CPU."""
    return [
        naive_greedy(trio, trio.tokenizer.encode(prompt), weight=weight, max_tokens=MAX_TOKENS)
        for prompt, weight in zip(PROMPTS, WEIGHTS, strict=True)
    ]


def on_gpu(trio: ToyTrio, **config: Any) -> Engine:
    """The trio's engine on a GPU; the trio itself stays where it is."""
    base, tuned, reference = (copy.deepcopy(own).to("cuda") for own in (trio.base, trio.tuned, trio.reference))
    pairs = {"chat": LoadedPair(tuned, reference)}
    return Engine.from_models(base, tokenizer=trio.tokenizer, pairs=pairs, config=EngineConfig.model_validate(config))


def recordings(engine: Engine) -> list[RecordedPasses]:
    """Those of every network that makes any."""
    return [
        network.recorded
        for network in engine._trio.networks
        if isinstance(network, LanguageModel) and network.recorded is not None
    ]


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_text_equals_the_ten_line_loop_on_a_cpu(architecture: str, cuda_graphs: bool) -> None:
    trio = make_trio(architecture)
    expected = expected_texts(trio)
    with on_gpu(trio, cuda_graphs=cuda_graphs, prefill_chunk_len=16, max_warm_prefixes=2) as engine:
        for drafter in DRAFTERS:
            speculation = SpeculationOptions.model_validate({"drafter": drafter, "adaptive": False})
            outputs = engine.generate(PROMPTS, sampling=GREEDY, reward_weights=WEIGHTS, speculation=speculation)
            assert [list(output.token_ids) for output in outputs] == expected, drafter
        alone = engine.generate(PROMPTS[2], sampling=GREEDY, reward_weights=WEIGHTS[2])  # with warm slots around
        assert list(alone.token_ids) == expected[2]
        streamed = [
            id for event in engine.stream(PROMPTS[1], sampling=GREEDY, reward_weights=1.0) for id in event.token_ids
        ]
        assert streamed == expected[1]
        assert len(engine._worker._stepper._runner._streams) == 3
        made = recordings(engine)
        assert len(made) == (3 if cuda_graphs else 0)
        assert all(own.num_replayed > own.num_made > 1 for own in made)


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_sampled_text_equals_that_of_a_cpu(cuda_graphs: bool) -> None:
    trio = make_trio("llama")
    sampling = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=MAX_TOKENS, seed=3)
    pairs = {"chat": LoadedPair(copy.deepcopy(trio.tuned), copy.deepcopy(trio.reference))}
    with Engine.from_models(copy.deepcopy(trio.base), tokenizer=trio.tokenizer, pairs=pairs) as engine:
        expected = [output.token_ids for output in engine.generate(PROMPTS, sampling=sampling, reward_weights=WEIGHTS)]
    with on_gpu(trio, cuda_graphs=cuda_graphs) as engine:
        outputs = engine.generate(PROMPTS, sampling=sampling, reward_weights=WEIGHTS)
        assert [output.token_ids for output in outputs] == expected


def test_scores_are_those_of_a_cpu() -> None:
    trio = make_trio("qwen3")
    with on_gpu(trio) as engine:
        scored = engine.score("The sky is", " blue and wide", reward_weights=0.7)
    pairs = {"chat": LoadedPair(trio.tuned, trio.reference)}
    with Engine.from_models(trio.base, tokenizer=trio.tokenizer, pairs=pairs) as engine:
        expected = engine.score("The sky is", " blue and wide", reward_weights=0.7)
    found, right = ([token.composed for token in own.tokens] for own in (scored, expected))
    assert found == pytest.approx(right, abs=1e-4)


def test_idle_rows_of_a_recording_keep_what_they_hold() -> None:
    """A pass over three slots is padded to four; the fourth holds a warm prompt of its own."""
    model = make_model("llama", seed=3).to("cuda")
    ids = [[(13 * row + 7 * column) % 250 for column in range(9)] for row in range(4)]

    def run(*, recorded: bool) -> torch.Tensor:
        network = LanguageModel(model, name="toy", recorder=recorder_for(model) if recorded else None)
        slots = [network.kv_cache.allocate() for _ in range(4)]
        network.forward([Block(slot, own[:5], 0) for slot, own in zip(slots, ids, strict=True)])
        for column in (5, 6, 7):
            network.forward(
                [Block(slot, own[column : column + 1], 1) for slot, own in zip(slots[:3], ids, strict=False)]
            )
        logits = network.forward([Block(slots[3], ids[3][5:], 4)]).clone()
        network.release()
        return logits

    torch.testing.assert_close(run(recorded=True), run(recorded=False), rtol=1e-4, atol=1e-4)


def test_a_trio_with_an_adapter_says_the_same(tmp_path: Path) -> None:
    """The tuned model is the reference with an adapter: one network, whose rows change sides from pass to pass."""
    trio = make_trio("llama")
    adapter = save_adapter(trio.reference, tmp_path / "adapter", seed=3)
    tuned = PeftModel.from_pretrained(copy.deepcopy(trio.reference), str(adapter)).merge_and_unload()
    for name, member in (("base", trio.base), ("reference", trio.reference)):
        member.save_pretrained(tmp_path / name)
        trio.tokenizer.save_pretrained(tmp_path / name)
    expected = expected_texts(dataclasses.replace(trio, tuned=tuned))
    pairs = {"chat": TunedPair(str(adapter), str(tmp_path / "reference"))}
    config = EngineConfig(device="cuda", dtype="float32")
    with Engine.load(str(tmp_path / "base"), pairs=pairs, config=config) as engine:
        for drafter in DRAFTERS:
            speculation = SpeculationOptions.model_validate({"drafter": drafter, "adaptive": False})
            outputs = engine.generate(PROMPTS, sampling=GREEDY, reward_weights=WEIGHTS, speculation=speculation)
            assert [list(output.token_ids) for output in outputs] == expected, drafter
        assert [own.num_replayed > own.num_made > 1 for own in recordings(engine)] == [True, True]


def test_a_network_that_looks_at_its_numbers_runs_without_recordings(caplog: pytest.LogCaptureFixture) -> None:
    trio = make_trio("llama")
    expected = expected_texts(trio)
    with on_gpu(trio) as engine, caplog.at_level(logging.WARNING):
        base = engine._trio.networks[0]
        assert isinstance(base, LanguageModel)
        base.model.register_forward_hook(lambda module, args, output: output.logits.sum().item() and None)
        outputs = engine.generate(PROMPTS, sampling=GREEDY, reward_weights=WEIGHTS)
        assert [list(output.token_ids) for output in outputs] == expected
        assert len([line for line in caplog.messages if "run without CUDA graphs" in line]) == 1


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_experts_are_recorded_or_run_as_they_are(implementation: str) -> None:
    def model(hidden_size: int, seed: int) -> Any:
        torch.manual_seed(seed)
        shape = shape_of(hidden_size) | {
            "head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        }
        own = Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape)).eval()
        own.set_experts_implementation(implementation)
        return own

    trio = ToyTrio(model(64, 1), model(32, 2), model(32, 3), make_tokenizer())
    expected = expected_texts(trio)
    with on_gpu(trio) as engine:
        outputs = engine.generate(PROMPTS, sampling=GREEDY, reward_weights=WEIGHTS)
        assert [list(output.token_ids) for output in outputs] == expected
